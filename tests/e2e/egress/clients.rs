//! Programs as people use them: each reaches the host that is allowed and nothing else, whether it
//! obeys proxy variables or not.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::world::{World, filtered_world, fresh_address, name_of, token, world};
use crate::harness::{Place, Ran, User, has, is_root, mode};

/// Takes away every variable that names a proxy: what is reached then is reached by the way every
/// program has.
pub const NO_PROXIES: &str = "
for v in $(env | sed -n 's/^\\([A-Za-z_]*[Pp][Rr][Oo][Xx][Yy][A-Za-z_]*\\)=.*/\\1/p') \
    JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS MAVEN_OPTS GRADLE_OPTS NODE_OPTIONS GIT_SSH_COMMAND \
    GIT_CONFIG_COUNT; do unset $v; done
";

/// And this requires that they are there.
const PROXIES: &str = "
[ -n \"$HTTPS_PROXY$https_proxy\" ] && [ -n \"$http_proxy\" ] && [ -n \"$ALL_PROXY$all_proxy\" ] || {
    env | grep -i proxy; echo 'no proxy variables' >&2; exit 99
}
";

struct Client {
    /// All must be installed.
    needs: &'static [&'static str],
    allowed: &'static str,
    /// Entries beside the name itself.
    ports: &'static [&'static str],
    /// A shell function's body: reaches host `$1` with the word `$2` in what it sends. `$ca` and `$id`
    /// are the certificate and the ssh key, `$repo` the path of the repository.
    body: &'static str,
    /// What it prints when it arrived.
    says: &'static str,
    /// With proxy variables it works too (it uses or ignores them).
    proxies: bool,
}

const ORDINARY: Client = Client {
    needs: &[],
    allowed: "good.example.com",
    ports: &[],
    body: "",
    says: "reached",
    proxies: true,
};

/// What a case needs in its workspace.
fn furnish(world: &World, p: &Place) {
    p.write("ca.pem", std::fs::read(world.dir().join("ca.pem")).unwrap());
    mode(&p.write("id", std::fs::read(world.dir().join("id")).unwrap()), 0o600);
}

fn prelude(world: &World) -> String {
    format!(
        "ca=$PWD/ca.pem id=$PWD/id repo={}/srv/repo.git\nexport ca id repo\n",
        world.dir().display()
    )
}

/// Once with everything, then with what is refused.
fn try_both(client: &Client, allowed: &(String, String), refused: &(String, String)) -> String {
    let (host, word) = allowed;
    let (other, other_word) = refused;
    let body = client.body;
    format!(
        "client() {{\n{body}\n}}
mkdir -p a b
(cd a && client {host} {word}) >a.out 2>a.err; echo allowed=$?
(cd b && client {other} {other_word}) >b.out 2>b.err; echo refused=$?
cat a.out; echo ---; cat b.out; {{ cat a.err; echo ---; cat b.err; }} >&2
rm -rf a b a.out b.out a.err b.err\n"
    )
}

/// `prepare` says how the script begins and which directory it needs to read, or that it cannot be.
fn each_user(client: &Client, prepare: impl Fn(&Place) -> Option<(String, PathBuf)>) {
    let users = if is_root() { vec![User::Me, User::Ordinary] } else { vec![User::Me] };
    if client.needs.iter().any(|program| !has(program)) {
        return;
    }
    for user in users {
        let Some(world) = world() else { return };
        let p = Place::new(user);
        furnish(world, &p);
        let Some((more, readable)) = prepare(&p) else { continue };
        let words = || {
            let address = fresh_address();
            ((client.allowed.to_owned(), token()), (name_of(&address), token()), address)
        };
        let start = prelude(world) + &more;

        // The control: on the host both are reached.
        let (allowed, refused, address) = words();
        let ran = world.bare(&p, &(start.clone() + &try_both(client, &allowed, &refused)));
        assert!(
            ran.out.starts_with("allowed=0\nrefused=0\n"),
            "the control must succeed as {user:?}: {ran:#?}"
        );
        assert_eq!(ran.out.matches(client.says).count(), 2, "{ran:#?}");
        world.something_of(&address, &ran);
        assert!(!world.asked(&refused.0).is_empty(), "{ran:#?}");

        let Some(world) = filtered_world() else { continue };
        for environment in [NO_PROXIES, PROXIES] {
            if environment == PROXIES && !client.proxies {
                continue;
            }
            let (allowed, refused, address) = words();
            let mut flags = vec!["--allow-host".to_owned(), allowed.0.clone()];
            for port in client.ports {
                flags.extend(["--allow-host".to_owned(), format!("{}:{port}", allowed.0)]);
            }
            for dir in [world.dir(), &readable] {
                flags.extend(["-r".to_owned(), dir.display().to_string()]);
            }
            let script = start.clone() + environment + &try_both(client, &allowed, &refused);
            let begin = std::time::Instant::now();
            let ran = world.fenced(&p, &flags, &script);
            let way = if environment == PROXIES { "with proxies" } else { "without proxies" };
            assert!(
                ran.out.starts_with("allowed=0\nrefused=")
                    && !ran.out.starts_with("allowed=0\nrefused=0\n"),
                "{way} as {user:?}: the allowed host and only that: {ran:#?}"
            );
            assert_eq!(ran.out.matches(client.says).count(), 1, "{way} as {user:?}: {ran:#?}");
            for word in [&address, &refused.0, &refused.1] {
                world.nothing_of(word, &ran);
            }
            // A refusal is told at once, not by a time-out.
            let took = begin.elapsed();
            assert!(took.as_secs() < 30, "{way} as {user:?}: {took:?}: {ran:#?}");
        }
    }
}

fn with(client: &Client) {
    each_user(client, |p| Some((String::new(), p.workspace())));
}

#[test]
fn curl() {
    with(&Client {
        needs: &["curl"],
        body: "curl -sS --max-time 15 --cacert $ca http://$1/$2 >/dev/null && curl -sS --max-time 15 --cacert $ca https://$1/$2",
        ..ORDINARY
    });
}

#[test]
fn wget() {
    with(&Client {
        needs: &["wget"],
        body: "wget -q -T 15 -t 1 --ca-certificate=$ca -O- https://$1/$2",
        ..ORDINARY
    });
}

#[test]
fn git_over_https() {
    with(&Client {
        allowed: "git.example.com",
        body: "GIT_SSL_CAINFO=$ca git clone -q https://$1/$2/repo.git c && cat c/file",
        says: "from the repository",
        ..ORDINARY
    });
}

#[test]
fn git_over_ssh() {
    if !std::path::Path::new("/usr/sbin/sshd").exists() {
        println!("skipped: sshd is not installed");
        return;
    }
    with(&Client {
        needs: &["ssh"],
        allowed: "git.example.com",
        body: "export GIT_SSH_COMMAND=\"ssh -F none -i $id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=15\"
            git clone -q ssh://git@$1$repo c && cat c/file",
        says: "from the repository",
        ..ORDINARY
    });
}

#[test]
fn python_urllib() {
    with(&Client {
        body: "python3 -c '
import ssl, sys, urllib.request
tls = ssl.create_default_context(cafile=sys.argv[1])
print(urllib.request.urlopen(f\"https://{sys.argv[2]}/{sys.argv[3]}\", timeout=15, context=tls).read().decode())
' $ca $1 $2",
        ..ORDINARY
    });
}

#[test]
fn python_requests() {
    let p = Place::new(User::Me);
    if Ran::of(p.command("python3").args(["-c", "import requests"])).code != Some(0) {
        println!("skipped: python3 has no requests");
        return;
    }
    with(&Client {
        body: "python3 -c '
import requests, sys
print(requests.get(f\"https://{sys.argv[2]}/{sys.argv[3]}\", timeout=15, verify=sys.argv[1]).text)
' $ca $1 $2",
        ..ORDINARY
    });
}

#[test]
fn node_fetch_and_http() {
    with(&Client {
        needs: &["node"],
        body: "NODE_EXTRA_CA_CERTS=$ca node -e '
const [host, word] = process.argv.slice(1);
const get = kind => new Promise((done, failed) => require(kind).get(`${kind}://${host}/${word}`, answer => {
    let text = \"\";
    answer.on(\"data\", more => text += more).on(\"end\", () => answer.statusCode == 200 ? done(text) : failed(text));
}).on(\"error\", failed));
(async () => {
    const failed = [];
    for (const way of [() => fetch(`https://${host}/${word}`).then(r => r.ok ? r.text() : Promise.reject(r.status)),
                       () => get(\"http\"), () => get(\"https\")])
        try { var text = await way(); } catch (e) { failed.push(e); }
    // Arrived by some ways only: neither allowed nor refused.
    if (failed.length % 3) process.stdout.write(\"reached by some ways only, reached\");
    if (failed.length) { console.error(failed); process.exit(1); }
    process.stdout.write(text);
})();
' $1 $2",
        ..ORDINARY
    });
}

#[test]
fn a_static_program_with_its_own_resolver() {
    static BUILT: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if !has("gcc") {
            return None;
        }
        let p = Place::new(User::Me);
        p.write("raw.c", include_str!("raw.c"));
        Ran::of(p.command("gcc").args(["-O1", "-static", "-o", "raw", "raw.c"])).ok();
        Some(std::fs::read(p.workspace().join("raw")).unwrap())
    });
    let Some(program) = built else { return };
    for more in ["", "tcp"] {
        let body = format!("../raw $1 80 $2 {more}");
        let client = Client { body: body.leak(), proxies: false, ..ORDINARY };
        each_user(&client, |p| {
            mode(&p.write("raw", program), 0o755);
            Some((String::new(), p.workspace()))
        });
    }
}

#[test]
fn java_http_client() {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    let java = ["/usr/lib/jvm/java-17-openjdk-amd64/bin", "/usr/bin"]
        .into_iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("java").exists() && dir.join("javac").exists());
    let Some(java) = java else {
        println!("skipped: no JDK is installed");
        return;
    };
    let class = BUILT.get_or_init(|| {
        let p = Place::new(User::Me);
        p.write("Reach.java", include_str!("Reach.java"));
        let flags = ["-J-XX:TieredStopAtLevel=1", "Reach.java"];
        Ran::of(p.command(java.join("javac")).args(flags)).ok();
        std::fs::read(p.workspace().join("Reach.class")).unwrap()
    });
    let body = format!(
        "{}/java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -cp .. Reach $ca https://$1/$2",
        java.display()
    );
    each_user(&Client { body: body.leak(), ..ORDINARY }, |p| {
        p.write("Reach.class", class);
        Some((String::new(), java.clone()))
    });
}

#[test]
fn npm_install() {
    with(&Client {
        needs: &["npm"],
        allowed: "npm.example.com",
        body: "printf '{\"name\":\"app\",\"version\":\"1.0.0\"}' >package.json
            npm install --registry https://$1/$2/ --cafile $ca --cache $PWD/cache --no-audit --no-fund \
                --no-update-notifier --fetch-retries 0 --fetch-timeout 15000 ringtest &&
            node -p 'require(\"ringtest\")'",
        says: "from the package",
        ..ORDINARY
    });
}

#[test]
fn pip_install() {
    let p = Place::new(User::Me);
    if Ran::of(p.command("python3").args(["-m", "pip", "--version"])).code != Some(0) {
        println!("skipped: python3 has no pip");
        return;
    }
    with(&Client {
        allowed: "pypi.example.com",
        body: "PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONFIG_FILE=/dev/null python3 -m pip install -q --no-cache-dir \
                --disable-pip-version-check --retries 0 --timeout 15 --cert $ca --target t \
                --index-url https://$1/$2/simple/ ringtest >&2 &&
            PYTHONPATH=t python3 -c 'import ringtest; print(ringtest.WORD)'",
        says: "from the wheel",
        ..ORDINARY
    });
}

#[test]
fn cargo_fetch() {
    let client = Client {
        allowed: "crates.example.com",
        body: "mkdir -p src .cargo && : >src/lib.rs
            printf '[package]\\nname=\"app\"\\nversion=\"1.0.0\"\\nedition=\"2021\"\\n[workspace]\\n[dependencies]\\nringtest={version=\"1\",registry=\"ours\"}\\n' >Cargo.toml
            printf '[registries.ours]\\nindex=\"sparse+https://%s/%s/\"\\n[net]\\nretry=0\\n' $1 $2 >.cargo/config.toml
            export CARGO_HOME=$PWD/home CARGO_HTTP_CAINFO=$ca CARGO_HTTP_TIMEOUT=15
            cargo fetch && grep -rh from.the.crate home/registry/src",
        says: "from the crate",
        ..ORDINARY
    };
    each_user(&client, |p| {
        if std::path::Path::new("/usr/bin/cargo").exists() {
            return Some((String::new(), p.workspace()));
        }
        // rustup's, where the user may read it. Its proxy would look for a toolchain first.
        let toolchain = toolchain().filter(|_| p.user == User::Me);
        if toolchain.is_none() {
            println!("skipped: no cargo that user {} may run", p.ids().0);
        }
        toolchain.map(|t| (format!("PATH={}:$PATH\n", t.join("bin").display()), t))
    });
}

fn toolchain() -> Option<PathBuf> {
    let found = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let root = PathBuf::from(String::from_utf8(found.stdout).ok()?.trim());
    root.join("bin/cargo").exists().then_some(root)
}

#[test]
fn a_protocol_whose_server_speaks_first() {
    with(&Client {
        allowed: "pg.example.com",
        ports: &["5432"],
        body: "python3 -c '
import socket, sys
s = socket.create_connection((sys.argv[1], 5432), 15)
lines = s.makefile()
greeting = lines.readline()
if not greeting: sys.exit(\"no greeting\")
s.sendall(f\"{sys.argv[2]}\\n\".encode())
print(greeting, lines.readline())
' $1 $2",
        ..ORDINARY
    });
}
