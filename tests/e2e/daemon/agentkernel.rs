//! agentkernel's own clients at the daemon, and who else comes to that door.

use serde_json::json;

use super::attacks::free_port;
use super::clients::{self, ask, post};
use super::world::{Answer, Daemon, until};
use crate::harness::{Place, User, as_each_user, has, is_root};

fn start(place: &Place) -> (Daemon<'_>, u16) {
    let port = free_port();
    (Daemon::with(place, &["--agentkernel", &format!("127.0.0.1:{port}")]), port)
}

fn base(port: u16) -> [(&'static str, String); 1] {
    [("AGENTKERNEL_BASE_URL", format!("http://localhost:{port}"))]
}

/// Workspaces of sandboxes' own that are there.
fn workspaces(place: &Place) -> usize {
    std::fs::read_dir(place.home().join("state/workspaces")).map_or(0, Iterator::count)
}

#[test]
fn the_python_client_as_it_is() {
    as_each_user(|place| {
        let (_daemon, port) = start(place);
        let script = include_str!("agentkernel.py");
        let Some(ran) = clients::python(place, script, &base(port)) else { return };
        assert_eq!(ran.ok().out, "all is well\n");
        until("every workspace went with its sandbox", || workspaces(place) == 0);
    });
}

#[test]
fn the_node_client_as_it_is() {
    as_each_user(|place| {
        let (_daemon, port) = start(place);
        let script = include_str!("agentkernel.mjs");
        let Some(ran) = clients::node(place, script, &base(port)) else { return };
        assert_eq!(ran.ok().out, "all is well\n");
        until("every workspace went with its sandbox", || workspaces(place) == 0);
    });
}

/// What an error is here.
#[track_caller]
fn error(answer: &Answer) -> String {
    let json = answer.json();
    assert_eq!(json["success"], false, "{answer:?}");
    json["error"].as_str().unwrap().to_owned()
}

/// A page in a browser, a name that was made to lead here, a form, another user: none gets anything, not
/// even of what does not exist. The control is the same request without it.
#[test]
fn pages_names_forms_and_other_users() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (daemon, port) = start(place);
        for path in ["/health", "/sandboxes", "/nonexistent", "/metrics"] {
            for header in ["Origin: https://evil.example", "Origin: null", "Host: evil.example"] {
                error(&ask(place, port, &["-H", header], path).is(403));
            }
            let rebound = format!("Host: evil.example:{port}");
            error(&ask(place, port, &["-H", &rebound], path).is(403));
        }
        ask(place, port, &[], "/sandboxes").is(200);
        ask(place, port, &["-H", &format!("Host: localhost:{port}")], "/health").is(200);
        let body = r#"{"command":["echo","x"]}"#;
        for kind in ["Content-Type: text/plain", "Content-Type: application/x-www-form-urlencoded"]
        {
            error(&ask(place, port, &["-H", kind, "-d", body], "/run").is(415));
        }
        post(place, port, "/run", &json!({ "command": ["echo", "x"] })).is(200);
        if is_root() {
            let other = match place.user {
                User::Me => Place::new(User::Ordinary),
                User::Ordinary => Place::new(User::Me),
            };
            for path in ["/health", "/sandboxes", "/nonexistent"] {
                let said = error(&ask(&other, port, &[], path).is(403));
                assert_eq!(said, "this daemon serves another user");
            }
            let body = json!({ "command": ["echo", "x"] });
            error(&post(&other, port, "/run", &body).is(403));
        } else {
            println!("skipped: needs root, to be two users");
        }
        drop(daemon);
        let mut wide = place.ringfence(["daemon", "--agentkernel", "0.0.0.0:0"]);
        super::world::environment(place, &mut wide);
        crate::harness::Ran::of(&mut wide).failed_with(125).says("loopback");
    });
}

/// Commands of a sandbox with the host's network have the user of the daemon, or one that is nobody's,
/// and reach the port: they are told apart by their namespace. The control is the same command outside.
#[test]
fn a_command_of_a_sandbox_at_the_port() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (_daemon, port) = start(place);
        let script = format!("curl -sS -w '\\n%{{http_code}}' http://127.0.0.1:{port}/sandboxes");
        let ran = place.shell(&["-t", "permissive"], &script).ok();
        assert!(ran.out.ends_with("\n403"), "{ran:?}");
        for profile in ["permissive", "moderate"] {
            let run = json!({ "command": ["sh", "-c", script], "profile": profile });
            let answer = post(place, port, "/run", &run).is(200).json();
            let output = answer["data"]["output"].as_str().unwrap().to_owned();
            assert!(output.ends_with("\n403"), "{output}");
        }
        assert!(place.bare(&script).ok().out.ends_with("\n200"));
    });
}

/// Where a key is set it is asked for, and no sandbox sees it.
#[test]
fn the_key_is_asked_for() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let key = [("AGENTKERNEL_API_KEY", "a-key-of-theirs")];
        let _daemon = Daemon::with_environment(place, &["--agentkernel", &address], &key);
        let get = |header: &str| ask(place, port, &["-H", header], "/sandboxes");
        assert_eq!(
            error(&ask(place, port, &[], "/sandboxes").is(401)),
            "Missing Authorization header"
        );
        for wrong in ["Bearer a-key-of-their", "Bearer a-key-of-theirs2", "Bearer "] {
            error(&get(&format!("Authorization: {wrong}")).is(401));
        }
        let said = error(&get("Authorization: Basic a-key-of-theirs").is(401));
        assert_eq!(said, "Invalid authorization format. Use: Bearer <api_key>");
        for open in ["/health", "/status", "/metrics", "/stats", "//health/"] {
            ask(place, port, &[], open).is(200);
        }
        for closed in ["/backends", "/doctor", "/audit", "/snapshots", "/sandboxes//"] {
            ask(place, port, &[], closed).is(401);
        }
        ask(place, port, &["-X", "POST"], "/health").is(401);
        get("Authorization: Bearer a-key-of-theirs").is(200);
        let body = r#"{"command":["sh","-c","env; cat /proc/*/environ 2>&1; true"],"profile":"permissive"}"#;
        let kind = "Content-Type: application/json";
        let key = "Authorization: Bearer a-key-of-theirs";
        let ran = ask(place, port, &["-H", kind, "-H", key, "-d", body], "/run").is(200);
        assert!(!ran.body.contains("a-key-of-theirs"), "{ran:?}");
    });
}

/// Paths of files that lead elsewhere, and links that do; bodies that are too large; callers that are
/// slow. The control of each is the plain one.
#[test]
fn paths_bodies_and_slow_callers() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        std::fs::write(place.outside().join("secret"), "SECRET").unwrap();
        place.own(&place.outside().join("secret"));
        let (daemon, port) = start(place);
        post(place, port, "/sandboxes", &json!({ "name": "box" })).is(201);
        let outside = place.outside();
        let outside = outside.to_str().unwrap().trim_start_matches('/');
        let climb = "../".repeat(12);
        let encoded = "%2e%2e%2f".repeat(12);
        for path in [
            format!("{climb}{outside}/secret"),
            format!("{encoded}{outside}/secret"),
            format!("app/{climb}{outside}/secret"),
            format!("{outside}/secret"),
            "proc/1/environ".to_owned(),
            "proc/self/root/etc/shadow".to_owned(),
            "/proc/self/root/etc/shadow".to_owned(),
        ] {
            let path = format!("/sandboxes/box/files/{path}");
            let answer = ask(place, port, &["--path-as-is"], &path);
            assert!([400, 403, 404].contains(&answer.status), "{path}: {answer:?}");
            assert!(!answer.body.contains("SECRET"), "{answer:?}");
            let put = ["--path-as-is", "-X", "PUT", "-H", "Content-Type: application/json"];
            let put: Vec<&str> = put.into_iter().chain(["-d", r#"{"content":"BAD"}"#]).collect();
            let answer = ask(place, port, &put, &path);
            // Below the private /tmp it is written: to that of the sandbox.
            assert!([200, 400, 403, 404, 409].contains(&answer.status), "{path}: {answer:?}");
            let secret = std::fs::read_to_string(place.outside().join("secret")).unwrap();
            assert_eq!(secret, "SECRET", "{path}");
        }
        // A link that a command made: it leads where the command sees it lead.
        let link = json!({ "command": ["ln", "-s", format!("/{outside}/secret"), "/app/link"] });
        post(place, port, "/sandboxes/box/exec", &link).is(200);
        let answer = ask(place, port, &[], "/sandboxes/box/files/app/link");
        assert!(!answer.body.contains("SECRET"), "{answer:?}");
        assert_eq!(std::fs::read_to_string(place.outside().join("secret")).unwrap(), "SECRET");
        let fine = json!({ "files": { "/app/plain": "fine" } });
        post(place, port, "/sandboxes/box/files", &fine).is(200);
        ask(place, port, &[], "/sandboxes/box/files/app/plain").is(200);

        let large = place.write("large", vec![b' '; (16 << 20) + 1]);
        let large = format!("@{}", large.display());
        let kind = "Content-Type: application/json";
        let data = ["-H", kind, "-H", "Expect:", "--data-binary", &large];
        error(&ask(place, port, &data, "/run").is(413));

        // Half of a request, many times, and nothing more.
        let slow: Vec<_> = (0..200)
            .map(|_| {
                use std::io::Write as _;
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.write_all(b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Le").unwrap();
                stream
            })
            .collect();
        post(place, port, "/run", &json!({ "command": ["echo", "x"] })).is(200);
        daemon.get("/v1/health").is(200);
        drop(slow);
    });
}

/// Its sandboxes are told apart from the daemon's others, survive the daemon with their files, and what
/// they leave when they are removed is nothing.
#[test]
fn sandboxes_stay_apart_and_come_back() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (mut daemon, port) = start(place);
        daemon.create(&["--name", "native"]);
        post(place, port, "/sandboxes", &json!({ "name": "theirs" })).is(201);
        let names = || ask(place, port, &[], "/sandboxes").is(200).json()["data"].clone();
        assert_eq!(names().as_array().unwrap().len(), 1);
        ask(place, port, &[], "/sandboxes/native").is(404);
        ask(place, port, &["-X", "DELETE"], "/sandboxes/native").is(404);
        post(place, port, "/sandboxes/native/exec", &json!({ "command": ["true"] })).is(404);
        post(place, port, "/sandboxes/theirs/files", &json!({ "files": { "/app/x": "kept" } }))
            .is(200);
        post(place, port, "/run", &json!({ "command": ["true"] })).is(200);
        let family = daemon.kill();
        until("all ended", || family.iter().all(|p| !p.is_there()));
        std::fs::create_dir(place.home().join("state/workspaces/sb_left")).unwrap();
        daemon.start_again();
        until("it is back", || names()[0]["status"] == "running");
        let read = || ask(place, port, &[], "/sandboxes/theirs/files/app/x");
        until("it can be used", || read().status == 200);
        assert_eq!(read().json()["data"]["content"], "kept");
        assert_eq!(workspaces(place), 1, "what nobody knows is swept");
        ask(place, port, &["-X", "POST"], "/sandboxes/theirs/stop").is(200);
        assert!(error(&read().is(409)).contains("not running"));
        ask(place, port, &["-X", "POST"], "/sandboxes/theirs/start").is(200);
        read().is(200);
        ask(place, port, &["-X", "DELETE"], "/sandboxes/theirs").is(200);
        assert_eq!(workspaces(place), 0);
    });
}

/// Who goes away ends what they ran, and leaves nothing.
#[test]
fn a_stream_that_nobody_reads_any_more() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (_daemon, port) = start(place);
        let mut command = place.command("curl");
        let body = r#"{"command":["sh","-c","echo begun; exec sleep 1000"]}"#;
        command.args(["-sSN", "-H", "Content-Type: application/json", "-d", body]);
        command.arg(format!("http://127.0.0.1:{port}/run/stream"));
        let mut curl = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut said = std::io::BufReader::new(curl.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("begun\\n") {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut said, &mut line).unwrap(), 0);
        }
        assert_eq!(workspaces(place), 1);
        curl.kill().unwrap();
        curl.wait().unwrap();
        until("it went with its reader", || workspaces(place) == 0);
    });
}

/// Shapes of answers that no client of theirs asks for, and what is wrong with a request in the envelope.
#[test]
fn answers_that_people_and_dashboards_read() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (_daemon, port) = start(place);
        let data = |path: &str| ask(place, port, &[], path).is(200).json()["data"].clone();
        let made =
            json!({ "name": "box", "labels": { "team": "a b" }, "description": "for tests" });
        let made = post(place, port, "/sandboxes", &made).is(201).json()["data"].clone();
        assert_eq!(
            (&made["description"], &made["placeholder_secrets"]),
            (&json!("for tests"), &json!(false))
        );
        assert_eq!(made["labels"], json!({ "team": "a b" }));
        let bare = post(place, port, "/sandboxes", &json!({ "name": "bare", "labels": null }));
        assert_eq!(bare.is(201).json()["data"].get("labels"), None);
        for (label, count) in [
            ("team:a%20b", 1),
            ("team%3Aa+b", 1),
            ("team:a", 0),
            ("ringfence.dialect:agentkernel", 0),
        ] {
            let found = data(&format!("/sandboxes?label={label}"));
            assert_eq!(found.as_array().unwrap().len(), count, "{label}");
        }
        error(&ask(place, port, &[], "/sandboxes?label=team").is(400));
        let stats = data("/stats");
        assert_eq!((&stats["sandbox_count"], &stats["sandbox_limit"]), (&json!(2), &json!(0)));
        assert!(stats["resource_usage"]["memory_total_mb"].as_u64().unwrap() > 0, "{stats}");
        let status = data("/status");
        assert_eq!(
            (&status["backend"], &status["api_key_configured"]),
            (&json!("ringfence"), &json!(false))
        );
        assert_eq!(data("/doctor")["healthy"], true);
        assert_eq!(post(place, port, "/gc", &json!({})).is(200).json()["data"]["count"], 0);
        error(&ask(place, port, &[], "/events").is(503));
        error(&ask(place, port, &["-X", "PATCH"], "/sandboxes/box").is(422));
        error(&ask(place, port, &["-X", "POST"], "/sandboxes/none/fork").is(404));
        // What axum would say by itself.
        error(&ask(place, port, &[], "/sandboxes/%ff").is(400));
        error(&ask(place, port, &["-X", "PUT"], "/sandboxes").is(404));
        // Empty segments mean nothing.
        ask(place, port, &["--path-as-is"], "//sandboxes//box/").is(200);
        // The trace of a request is that of the command.
        let run = json!({ "command": ["sh", "-c", "echo $TRACEPARENT $TRACESTATE"], "env": ["TRACEPARENT=mine", "TRACESTATE=mine"] });
        let run = run.to_string();
        let mut traced = vec!["-H", "Content-Type: application/json", "-d", &run];
        let said = |args: &[&str]| ask(place, port, args, "/sandboxes/box/exec").is(200).json();
        assert_eq!(said(&traced)["data"]["output"], "mine mine\n");
        traced.extend(["-H", "traceparent: 00-ab-cd-01"]);
        assert_eq!(said(&traced)["data"]["output"], "00-ab-cd-01\n");
        // Output that is cut is said to be.
        let flood = json!({ "command": ["sh", "-c", "head -c 9000000 /dev/zero | tr '\\0' x"] });
        let answer = post(place, port, "/run", &flood).is(200).json();
        assert_eq!(answer["data"]["truncated"], true);
        let metrics = ask(place, port, &[], "/metrics").is(200);
        for line in [
            "agentkernel_sandboxes_active 2",
            "agentkernel_http_requests_total{method=\"GET\",path=\"/sandboxes\",status=\"400\"} 1",
            "agentkernel_http_requests_total{method=\"POST\",path=\"/run\",status=\"200\"} 1",
            "agentkernel_commands_total{backend=\"pool\"} 1",
            "agentkernel_commands_total{backend=\"ringfence\"} 2",
        ] {
            assert!(metrics.body.lines().any(|l| l == line), "{line} in {}", metrics.body);
        }
    });
}

/// A link in a workspace leads nowhere when its snapshot is taken, and neither does one in a snapshot when a
/// sandbox is made from it; what native interfaces made, and what is another's, is none of these.
#[test]
fn snapshots_hold_what_the_sandbox_could_reach_and_no_more() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let secret = place.outside().join("secret");
        std::fs::write(&secret, "SECRET").unwrap();
        place.own(&secret);
        let (mut daemon, port) = start(place);
        daemon.create(&["--name", "native"]);
        let take = |sandbox: &str, name: &str| {
            let body = json!({ "sandbox": sandbox, "name": name });
            post(place, port, "/snapshots", &body)
        };
        error(&take("native", "stolen").is(404));
        post(place, port, "/sandboxes", &json!({ "name": "box" })).is(201);
        let outside = place.outside();
        let (outside, secret) = (outside.to_str().unwrap(), secret.to_str().unwrap());
        let script = format!(
            "echo plain > /app/plain; ln -s {secret} /app/file; ln -s {outside} /app/directory; cd /app; mkfifo fifo"
        );
        let run = json!({ "command": ["sh", "-c", script] });
        post(place, port, "/sandboxes/box/exec", &run).is(200);
        take("box", "shot").is(200);
        error(&take("box", "shot").is(409));
        // Nothing below the daemon's state is in reach of a sandbox.
        let family = daemon.kill();
        until("all ended", || family.iter().all(|p| !p.is_there()));
        let shots = place.home().join("state/daemon/snapshots");
        let found = place.bare(&format!(
            "grep -rl SECRET {}; find {} -name file -type l",
            shots.display(),
            shots.display()
        ));
        assert_eq!(found.out.lines().count(), 1, "a link and no content: {found:?}");
        // What a daemon that was killed left unfinished goes; what it acknowledged is there.
        let owner = std::fs::read_dir(&shots).unwrap().next().unwrap().unwrap().path();
        for half in [".half", ".half/tree"] {
            std::fs::create_dir(owner.join(half)).unwrap();
            place.own(&owner.join(half));
        }
        daemon.start_again();
        assert!(!owner.join(".half").exists());
        ask(place, port, &[], "/snapshots/shot").is(200);
        let restored = ask(place, port, &["-X", "POST"], "/snapshots/shot/restore").is(200).json();
        assert_eq!(restored["data"]["status"], "stopped");
        ask(place, port, &["-X", "POST"], "/sandboxes/box-restored/start").is(200);
        let read = |path: &str| {
            ask(place, port, &[], &format!("/sandboxes/box-restored/files/app/{path}"))
        };
        assert_eq!(read("plain").is(200).json()["data"]["content"], "plain\n");
        for path in ["file", "directory/secret"] {
            assert!(!read(path).body.contains("SECRET"), "{path}");
        }
        assert_eq!(std::fs::read_to_string(secret).unwrap(), "SECRET");
        if is_root() {
            let other = match place.user {
                User::Me => Place::new(User::Ordinary),
                User::Ordinary => Place::new(User::Me),
            };
            error(&ask(&other, port, &[], "/snapshots").is(403));
            error(&ask(&other, port, &["-X", "DELETE"], "/snapshots/shot").is(403));
        } else {
            println!("skipped: needs root, to be two users");
        }
        ask(place, port, &["-X", "DELETE"], "/snapshots/shot").is(200);
        assert_eq!(std::fs::read_dir(&owner).unwrap().count(), 0);
    });
}

/// Killed when a snapshot is made and has no name yet: it is not there, nothing of it is left, and its sandbox
/// is as it was.
#[test]
fn a_daemon_that_dies_while_it_takes_a_snapshot() {
    if !has("curl") || !super::faults::has_steps() {
        return;
    }
    as_each_user(|place| {
        let (mut daemon, port) = start(place);
        post(place, port, "/sandboxes", &json!({ "name": "box" })).is(201);
        let files = json!({ "files": { "/app/x": "kept" } });
        post(place, port, "/sandboxes/box/files", &files).is(200);
        let family = daemon.kill();
        until("all ended", || family.iter().all(|p| !p.is_there()));
        daemon.start_to_die("snapshot.made");
        let read = || ask(place, port, &[], "/sandboxes/box/files/app/x");
        until("it is back", || read().status == 200);
        let mut command = place.command("curl");
        command.args(["-sS", "-H", "Content-Type: application/json"]);
        command.args(["-d", r#"{"sandbox":"box","name":"shot"}"#]);
        command.arg(format!("http://127.0.0.1:{port}/snapshots"));
        assert_ne!(crate::harness::Ran::of(&mut command).code, Some(0));
        until("it died", || daemon.has_died());
        daemon.start_again();
        until("it is back", || read().status == 200);
        ask(place, port, &[], "/snapshots/shot").is(404);
        let shots = place.home().join("state/daemon/snapshots");
        for owner in std::fs::read_dir(shots).unwrap().flatten() {
            assert_eq!(std::fs::read_dir(owner.path()).unwrap().count(), 0);
        }
        let body = json!({ "sandbox": "box", "name": "shot" });
        post(place, port, "/snapshots", &body).is(200);
        ask(place, port, &[], "/snapshots/shot").is(200);
    });
}

/// Whoever runs next finds nothing of who ran before; the control is one sandbox, which keeps both. A tree
/// that is too deep for a snapshot holds nobody up.
#[test]
fn who_runs_next_finds_nothing() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (_daemon, port) = start(place);
        let said = |path: &str, script: &str| {
            let body = json!({ "command": ["sh", "-c", script] });
            let answer = post(place, port, path, &body).is(200).json();
            answer["data"]["output"].as_str().unwrap().to_owned()
        };
        let leave =
            "echo SECRET > /tmp/x; echo SECRET > /app/x; (exec -a left sleep 1000) & echo done";
        let look = "cat /tmp/x /app/x 2>/dev/null; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 100[0]'; true";
        let leave = leave.replace("exec -a left sleep", "exec sleep");
        said("/run", &format!("{leave} >/dev/null 2>&1"));
        assert_eq!(said("/run", look), "0\n");
        post(place, port, "/sandboxes", &json!({ "name": "box" })).is(201);
        said("/sandboxes/box/exec", &format!("({leave}) >/dev/null 2>&1"));
        assert_eq!(said("/sandboxes/box/exec", look), "SECRET\nSECRET\n1\n");
        let deep = "mkdir -p \"/app/$(printf 'd/%.0s' $(seq 1100))\"";
        said("/sandboxes/box/exec", deep);
        let body = json!({ "sandbox": "box", "name": "deep" });
        assert!(error(&post(place, port, "/snapshots", &body).is(413)).contains("deeper"));
        // It goes on.
        assert_eq!(said("/sandboxes/box/exec", "cat /app/x"), "SECRET\n");
        ask(place, port, &["-X", "DELETE"], "/sandboxes/box").is(200);
        until("all of it went", || workspaces(place) == 0);
    });
}
