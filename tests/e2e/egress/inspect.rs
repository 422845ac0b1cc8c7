//! Hosts whose TLS ends outside: programs trust the run's authority by themselves, requests are judged,
//! credentials are put in where the sandbox cannot see them, and nothing of it is left.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::clients::NO_PROXIES;
use super::probe::filtered_places;
use super::world::{World, token};
use crate::harness::{Place, Ran, User, as_each_user, binary, has, mode};

const SECRET: &str = "the-real-credential-4711";

/// What the host's programs need to trust the world: those with a bundle of their own do not look at the
/// system's.
const TRUST: &str = "export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
export NODE_EXTRA_CA_CERTS=$SSL_CERT_FILE REQUESTS_CA_BUNDLE=$SSL_CERT_FILE PIP_CERT=$SSL_CERT_FILE \
npm_config_cafile=$SSL_CERT_FILE
";

const POLICY: &str = r#"
[network]
allow = ["*.example.com"]
inspect = ["good.example.com", "git.example.com", "pypi.example.com", "npm.example.com"]

[[network.rules]]
hosts = ["good.example.com"]
methods = ["GET"]
paths = ["/open/**", "/echo/**"]

[network.secrets.tok]
hosts = ["good.example.com", "git.example.com", "pypi.example.com", "npm.example.com"]
from = "env:REAL_TOKEN"
env = "MY_TOKEN"
"#;

/// `sh -c SCRIPT` under a policy file, by a caller that has the credential.
fn command(world: &World, p: &Place, policy: &str, flags: &[&str], script: &str) -> Command {
    let file = p.write("../outside/policy.toml", policy);
    let mut command = world.command(p, "timeout");
    command.args(["-k1", "150"]).arg(binary()).arg("run").arg("-s").arg(file).args(flags);
    command.args(["--", "/bin/sh", "-c", script]).env("REAL_TOKEN", SECRET);
    command
}

fn inspected(world: &World, p: &Place, flags: &[&str], script: &str) -> Ran {
    Ran::of(&mut command(world, p, POLICY, flags, script))
}

/// The same hosts, without looking into connections.
fn passed_on(world: &World, p: &Place, script: &str) -> Ran {
    let policy = "[network]\nallow = [\"*.example.com\"]\n";
    Ran::of(&mut command(world, p, policy, &[], script))
}

/// The requests with this word that reached a server.
fn requests(world: &World, word: &str) -> Vec<Value> {
    world.log(word).into_iter().filter(|e| e["event"] == "http").collect()
}

/// Name, body of a shell function that asks `$1` in the path, what is printed.
const CLIENTS: [(&str, &str, &str); 8] = [
    ("curl", "curl -sS --max-time 20 https://good.example.com/open/$1", "reached"),
    (
        "curl-without-environment",
        "env -i /usr/bin/curl -sS --max-time 20 https://good.example.com/open/$1",
        "reached",
    ),
    (
        "python3",
        "python3 -c 'import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())' https://good.example.com/open/$1",
        "reached",
    ),
    (
        "requests",
        "python3 -c 'import sys, requests
print(requests.get(sys.argv[1], timeout=20).text)' https://good.example.com/open/$1",
        "reached",
    ),
    (
        "node",
        "node -e 'fetch(process.argv[1]).then(r => r.text()).then(console.log)' https://good.example.com/open/$1",
        "reached",
    ),
    (
        "git",
        "git clone -q https://git.example.com/$1/repo.git c-$1 && cat c-$1/file && rm -rf c-$1",
        "from the repository",
    ),
    (
        "pip",
        "PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONFIG_FILE=/dev/null python3 -m pip install -q --no-cache-dir \
            --disable-pip-version-check --retries 0 --timeout 20 --target t-$1 \
            --index-url https://pypi.example.com/$1/simple/ ringtest >&2 &&
        PYTHONPATH=t-$1 python3 -c 'import ringtest; print(ringtest.WORD)'; rm -rf t-$1",
        "from the wheel",
    ),
    (
        "npm",
        "mkdir n-$1 && cd n-$1 && printf '{\"name\":\"app\",\"version\":\"1.0.0\"}' >package.json &&
        npm install --registry https://npm.example.com/$1/ --cache $PWD/cache --no-audit --no-fund \
            --no-update-notifier --fetch-retries 0 --fetch-timeout 20000 ringtest >&2 &&
        node -p 'require(\"ringtest\")'; cd ..; rm -rf n-$1",
        "from the package",
    ),
];

fn present(p: &Place, name: &str) -> bool {
    let python = |args: &[&str]| {
        let there = Ran::of(p.command("python3").args(args)).code == Some(0);
        if !there {
            println!("skipped: python3 has no {name}");
        }
        there
    };
    match name {
        "curl-without-environment" => Path::new("/usr/bin/curl").exists(),
        "requests" => python(&["-c", "import requests"]),
        "pip" => python(&["-m", "pip", "--version"]),
        other => has(other),
    }
}

#[test]
fn programs_trust_the_authority_of_the_run_by_themselves() {
    for (world, p) in filtered_places() {
        let clients: Vec<_> = CLIENTS.iter().filter(|(name, ..)| present(&p, name)).collect();
        for way in ["on the host", "passed on", "inspected", "inspected without proxies"] {
            let words: Vec<String> = clients.iter().map(|_| token()).collect();
            let mut script = String::new();
            for ((name, body, _), word) in clients.iter().zip(&words) {
                let _ = writeln!(script, "f() {{\n{body}\n}}");
                let _ = writeln!(script, "(f {word}) </dev/null; echo \"{name}=$?\"");
            }
            let ran = match way {
                "on the host" => world.bare(&p, &format!("{TRUST}{script}")),
                "passed on" => passed_on(world, &p, &format!("{TRUST}{script}")),
                "inspected" => inspected(world, &p, &[], &script),
                _ => inspected(world, &p, &[], &format!("{NO_PROXIES}{script}")),
            };
            for ((name, _, says), word) in clients.iter().zip(&words) {
                assert!(ran.out.contains(&format!("\n{name}=0\n")), "{way}, {name}: {ran:#?}");
                assert!(ran.out.contains(says), "{way}, {name}: {ran:#?}");
                // Who adds the credential has seen the request.
                let expected = if way.starts_with("inspected") {
                    Value::from(format!("Bearer {SECRET}"))
                } else {
                    Value::Null
                };
                let all = requests(world, word);
                assert!(!all.is_empty(), "{way}, {name}: {ran:#?}");
                for request in all {
                    assert_eq!(request["authorization"], expected, "{way}, {name}: {request:#}");
                }
            }
        }
    }
}

#[test]
fn java_trusts_it_too() {
    const GET: &str = "
import java.net.URI;
import java.net.http.*;
class Get {
    public static void main(String[] args) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(args[0])).build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}";
    if !has("javac") || !has("java") || !Path::new("/etc/ssl/certs/java/cacerts").exists() {
        println!("skipped: no JDK with the system's store");
        return;
    }
    let built = Place::new(User::Me);
    built.write("Get.java", GET);
    Ran::of(built.command("javac").arg("Get.java")).ok();
    let class = std::fs::read(built.workspace().join("Get.class")).unwrap();
    for (world, p) in filtered_places() {
        p.write("Get.class", &class);
        let script = "java -XX:TieredStopAtLevel=1 -cp . Get https://good.example.com/open/java";
        // The control: the host's own store does not know the world.
        passed_on(world, &p, script).says("PKIX");
        inspected(world, &p, &[], script).ok().says("reached good.example.com");
    }
}

#[test]
fn without_inspection_a_host_shows_its_own_certificate() {
    let script = "for h in good git; do
        openssl s_client -connect $h.example.com:443 -servername $h.example.com </dev/null 2>/dev/null |
            openssl x509 -noout -issuer; done";
    for (world, p) in filtered_places() {
        let own = |ran: &Ran| ran.out.matches("ringfence test CA").count();
        let ours = |ran: &Ran| ran.out.matches("ringfence sandbox ").count();
        let ran = passed_on(world, &p, script);
        assert_eq!((own(&ran), ours(&ran)), (2, 0), "{ran:#?}");
        let flags = ["--inspect", "good.example.com"];
        let policy = "[network]\nallow = [\"*.example.com\"]\n";
        let ran = Ran::of(&mut command(world, &p, policy, &flags, script));
        assert_eq!((own(&ran), ours(&ran)), (1, 1), "{ran:#?}");
    }
}

#[test]
fn methods_and_paths_are_judged_and_recorded() {
    for (world, p) in filtered_places() {
        let log = p.outside().join("log");
        let words: Vec<String> = (0..4).map(|_| token()).collect();
        let [get, post, path, dots] = &words[..] else { unreachable!() };
        let script = format!(
            "ask() {{ curl -sS --max-time 20 --path-as-is -w '\\n%{{http_code}}\\n' \"$@\"; }}
            ask https://good.example.com/open/{get}
            ask -d data https://good.example.com/open/{post}
            ask https://good.example.com/closed/{path}
            ask https://good.example.com/open/../closed/{dots}"
        );
        // The control: all of it arrives.
        let ran = passed_on(world, &p, &script);
        assert_eq!(ran.out.matches("\n200\n").count(), 4, "{ran:#?}");
        let before: Vec<usize> = words.iter().map(|w| requests(world, w).len()).collect();
        assert_eq!(before, [1; 4]);

        let flags = ["-m", "--log", log.to_str().unwrap()];
        let ran = inspected(world, &p, &flags, &script);
        assert_eq!(ran.out.matches("\n200\n").count(), 1, "{ran:#?}");
        assert_eq!(ran.out.matches("\n403\n").count(), 3, "{ran:#?}");
        let after: Vec<usize> = words.iter().map(|w| requests(world, w).len()).collect();
        assert_eq!(after, [2, 1, 1, 1], "{ran:#?}");
        // What an agent can act on.
        let body = &ran.out[ran.out.find('{').unwrap()..];
        let body = serde_json::Deserializer::from_str(body).into_iter::<Value>().next();
        let body = body.unwrap().unwrap();
        assert_eq!(body["reason"], "method", "{body:#}");
        assert!(body["detail"].as_str().unwrap().contains(&format!("POST /open/{post}")));
        assert!(body["origin"].as_str().unwrap().ends_with("policy.toml:6"), "{body:#}");
        assert!(body["remedy"].as_str().unwrap().contains("methods = [\"POST\"]"), "{body:#}");
        assert!(ran.err.contains(&format!("GET /closed/{path}")), "{ran:#?}");
        // And the log has each request.
        let log = std::fs::read_to_string(&log).unwrap();
        let records: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let record = |word: &str| {
            let of = |r: &&Value| r["detail"]["detail"].as_str().is_some_and(|d| d.contains(word));
            &records.iter().find(of).unwrap_or_else(|| panic!("{word}: {log}"))["detail"]
        };
        let answered = format!("GET /open/{get}: answered 200, with a secret");
        assert_eq!(record(get)["detail"], answered.as_str());
        assert_eq!(record(get)["allowed"], true);
        for (word, reason) in [(post, "method"), (path, "path")] {
            assert_eq!(record(word)["reason"], reason);
            assert_eq!(record(word)["allowed"], false);
        }
        assert!(!log.contains(SECRET), "{log}");
    }
}

#[test]
fn a_secret_is_nowhere_inside_and_goes_to_its_host_only() {
    for (world, p) in filtered_places() {
        let (to_host, basic, elsewhere, plain) = (token(), token(), token(), token());
        let policy = POLICY.replace(
            "hosts = [\"good.example.com\", \"git.example.com\", \"pypi.example.com\", \"npm.example.com\"]\nfrom",
            "hosts = [\"good.example.com\"]\nfrom",
        ) + "\n[environment]\npass = [\"REAL_TOKEN\", \"COPY\"]\nset = { GIVEN = \"@\" }\n";
        let policy = policy.replace('@', SECRET);
        let script = format!(
            "env; cat /proc/self/environ /proc/$$/environ /proc/1/environ 2>/dev/null | tr '\\0' '\\n'
            echo; echo ---
            ask() {{ curl -sS --max-time 20 -w '\\n%{{http_code}}\\n' \"$@\"; }}
            ask -H \"Authorization: token $MY_TOKEN\" https://good.example.com/echo/{to_host}
            ask -u \"me:$MY_TOKEN\" https://good.example.com/echo/{basic}
            ask -H \"X-Key: $MY_TOKEN\" https://git.example.com/open/{elsewhere}
            ask -H \"Authorization: $MY_TOKEN\" http://good.example.com/echo/{plain}"
        );
        let run = |policy: &str| {
            let mut command = command(world, &p, policy, &[], &script);
            Ran::of(command.env("COPY", format!("https://me:{SECRET}@good.example.com/")))
        };
        // The control: without the chapter the policy passes it, and everything shows it.
        let chapter = policy.find("inspect = ").unwrap();
        let rest = policy.find("[environment]").unwrap();
        let ran = run(&format!("{}{}", &policy[..chapter], &policy[rest..]));
        assert!(ran.out.matches(SECRET).count() > 3, "{ran:#?}");
        for word in [&elsewhere, &plain] {
            assert_eq!(requests(world, word).len(), 1, "{ran:#?}");
        }

        let ran = run(&policy);
        assert!(!ran.out.contains(SECRET) && !ran.err.contains(SECRET), "{ran:#?}");
        let placeholder = |line: &str| line.contains("ringfence-secret-tok-");
        for name in ["MY_TOKEN=", "REAL_TOKEN=", "COPY=https://me:", "GIVEN="] {
            let line = ran.out.lines().find(|l| l.starts_with(name));
            assert!(line.is_some_and(placeholder), "{name}: {ran:#?}");
        }
        // Towards its host it is real, in the form that the program chose, and what comes back is not.
        let authorization =
            |word: &str| requests(world, word).pop().unwrap()["authorization"].clone();
        assert_eq!(authorization(&to_host), format!("token {SECRET}").as_str());
        let sent = authorization(&basic);
        let real = Ran::of(p.command("base64").arg("-d").stdin(text(&sent.as_str().unwrap()[6..])));
        assert_eq!(real.out, format!("me:{SECRET}"));
        assert_eq!(ran.out.matches("\n200\n").count(), 2, "{ran:#?}");
        assert_eq!(ran.out.matches("\n403\n").count(), 2, "{ran:#?}");
        // To other hosts, and in the clear, nothing goes out at all.
        for word in [&elsewhere, &plain] {
            assert_eq!(requests(world, word).len(), 1, "{word}, the control's only: {ran:#?}");
        }
    }
}

fn text(text: &str) -> std::process::Stdio {
    use std::io::{Seek as _, Write as _};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

#[test]
fn a_secret_from_a_file_is_hidden_where_the_file_would_be_seen() {
    for (world, p) in filtered_places() {
        let file = p.write("token", format!("{SECRET}\n"));
        mode(&file, 0o600);
        std::os::unix::fs::symlink("token", p.workspace().join("link")).unwrap();
        let word = token();
        let policy =
            POLICY.replace("env:REAL_TOKEN", &format!("file:{}/link", p.workspace().display()));
        let script = format!(
            "cat token link; cat ../*/token; curl -sS https://good.example.com/open/{word}; exit 0"
        );
        passed_on(world, &p, "cat token").ok().says(SECRET);
        let ran = Ran::of(&mut command(world, &p, &policy, &[], &script)).ok();
        assert!(!ran.out.contains(SECRET), "{ran:#?}");
        assert_eq!(
            requests(world, &word)[0]["authorization"],
            format!("Bearer {SECRET}").as_str(),
            "{ran:#?}"
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{SECRET}\n"));
    }
}

#[test]
fn the_authority_exists_inside_only() {
    for (world, p) in filtered_places() {
        // The line of the certificate that holds nothing but its key (validity and names may be those of
        // another run of the same second), from inside, while the host looks for it.
        let script = "sed -n 6p /.ringfence-trust/authority.pem; tail -2 /etc/ssl/certs/ca-certificates.crt |
            grep -q END && echo covered; head -c 1 >/dev/null";
        let store = "/etc/ssl/certs/ca-certificates.crt";
        let sum = || world.bare(&p, &format!("sha256sum {store} /etc/ssl/certs/java/cacerts")).out;
        let before = sum();
        let mut command = command(world, &p, POLICY, &[], script);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            std::io::BufRead::read_line(&mut out, line).unwrap();
        }
        assert_eq!(lines[1], "covered\n");
        let line = lines[0].trim_end();
        assert!(line.len() > 40, "{lines:?}");
        let places = format!(
            "{} {} {} {} /etc /run /dev/shm /var/tmp /usr/local/share",
            p.root().display(),
            p.home().display(),
            world.dir().display(),
            std::env::temp_dir().display()
        );
        let look = format!(
            "find {places} -maxdepth 6 -xdev -type f -size -2000k -mmin -3 -exec grep -lF -e '{line}' {{}} + 2>/dev/null; true"
        );
        // The search itself finds what is there.
        let planted = p.outside().join("planted");
        std::fs::write(&planted, format!("{line}\n")).unwrap();
        assert!(world.bare(&p, &look).out.contains("planted"));
        std::fs::remove_file(&planted).unwrap();
        assert_eq!(world.bare(&p, &look).out, "", "while it runs");
        assert_eq!(sum(), before);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        assert_eq!(world.bare(&p, &look).out, "", "afterwards");
        assert_eq!(sum(), before);
        let again = inspected(world, &p, &[], script);
        assert_ne!(again.out.lines().next(), Some(line), "each run has its own");
    }
}

#[test]
fn it_is_said_what_is_inspected_and_what_is_covered() {
    for (world, p) in filtered_places() {
        let ran = inspected(world, &p, &["--explain"], "true").ok();
        for text in [
            "\ninspection  4 hosts, CA only inside\n",
            "\nsecrets     tok: only placeholders inside\n",
        ] {
            assert!(ran.out.contains(text), "{ran:#?}");
        }
        let cover = "/etc/ssl/certs/ca-certificates.crt           covered by /.ringfence-trust/authorities.pem";
        assert!(ran.out.contains(cover), "{ran:#?}");
        let ran = inspected(
            world,
            &p,
            &["--status", "-"],
            "exec 2>&1; for f in $SSL_CERT_FILE $REQUESTS_CA_BUNDLE \
            /etc/ssl/certs/ca-certificates.crt; do : >>$f; done >/dev/null",
        );
        let status: Value = serde_json::from_str(&ran.out[ran.out.find("{\n").unwrap()..]).unwrap();
        let enforced = |name: &str| {
            let all = status["enforced"].as_array().unwrap();
            all.iter().find(|e| e["name"] == name).map(|e| e["detail"].clone())
        };
        assert_eq!(enforced("inspection"), Some("4 hosts, CA only inside".into()));
        assert_eq!(enforced("secrets"), Some("tok: only placeholders inside".into()));
        // A variable that the policy pins stays as it is; one that the caller passes does not.
        let flags = ["-e", "SSL_CERT_FILE=/pinned", "-e", "PIP_CERT", "-e", "MY_TOKEN"];
        let mut command =
            command(world, &p, POLICY, &flags, "echo $SSL_CERT_FILE $PIP_CERT $MY_TOKEN");
        let ran = Ran::of(command.env("PIP_CERT", "/passed").env("MY_TOKEN", "another")).ok();
        let start = "/pinned /.ringfence-trust/authorities.pem ringfence-secret-tok-";
        assert!(ran.out.starts_with(start), "{ran:#?}");
        // Where nothing is inspected nothing is there.
        let ran =
            passed_on(world, &p, "ls -A / | grep -c ringfence; echo \"${SSL_CERT_FILE-none}\"");
        assert_eq!(ran.out, "0\nnone\n", "{ran:#?}");
    }
}

#[test]
fn a_secret_that_is_not_there_or_not_trusted_runs_nothing() {
    as_each_user(|p| {
        let refuses_with = |code: i32, policy: &str, args: &[&str], texts: &[&str]| {
            p.write("ringfence.toml", policy);
            let mut command =
                p.ringfence(["run"].iter().chain(args).chain(&["--", "touch", "ran"]));
            let mut ran = Ran::of(command.env("SET", SECRET).env("EMPTY", "")).failed_with(code);
            for text in texts {
                ran = ran.says(text);
            }
            assert!(!ran.err.contains(SECRET), "{ran:#?}");
            assert!(!p.workspace().join("ran").exists(), "{ran:#?}");
        };
        let refuses = |policy: &str, args: &[&str], texts: &[&str]| {
            refuses_with(125, policy, args, texts);
        };
        let named = ["-s", "ringfence.toml"];
        let from = |from: &str| POLICY.replace("env:REAL_TOKEN", from);
        let key = "ringfence.toml:11: network.secrets.tok.from: ";
        refuses(&from("env:NOT_SET"), &named, &[key, "the variable NOT_SET is not set"]);
        refuses(
            &from("file:/nowhere/token"),
            &named,
            &[key, "/nowhere/token: no such file or directory"],
        );
        refuses(
            &from("env:EMPTY"),
            &named,
            &["ringfence.toml:11: network.secrets.tok: the value is empty"],
        );
        refuses(&from(SECRET), &named, &["network.secrets.tok.from: write \"env:NAME\""]);
        refuses(
            &from("env:SET").replace("inspect = [", "inspect = [\"x.example\"] #"),
            &named,
            &["is not inspected"],
        );
        // A project's own file may not take credentials.
        refuses_with(126, &from("env:SET"), &[], &["is not trusted yet", "network.secrets.tok"]);
        refuses(
            "",
            &["--inspect", "10.1.2.3"],
            &["--inspect: ", "only hosts with a name can be inspected"],
        );
        refuses(
            "",
            &["--network", "none", "--inspect", "a.example"],
            &["--inspect: --network none reaches no host"],
        );
        // The control: with the credential it runs.
        p.write("ringfence.toml", from("env:SET"));
        let mut command = p.ringfence(["run", "-s", "ringfence.toml", "--", "touch", "ran"]);
        Ran::of(command.env("SET", SECRET)).ok();
        assert!(p.workspace().join("ran").exists());
    });
}
