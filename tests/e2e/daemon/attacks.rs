//! Who should not get anything from the daemon, from outside and from inside, each with its control.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use serde_json::json;

use super::world::{Answer, Daemon, answer, until};
use crate::harness::{ORDINARY_ID, Place, User, as_each_user, has, is_root, mode};

/// Another user at the socket, even where its directory and name were opened up.
#[test]
fn another_user_at_the_socket() {
    if !is_root() || !has("curl") {
        println!("skipped: needs root, to be two users");
        return;
    }
    for (user, other) in [(User::Me, ORDINARY_ID), (User::Ordinary, 0)] {
        let place = Place::new(user);
        let daemon = Daemon::start(&place);
        let id = daemon.create(&["--name", "box"]);
        let ask = |path: &str| -> std::process::Command {
            let mut command = std::process::Command::new("curl");
            command.args(["-sS", "--unix-socket"]).arg(daemon.socket()).uid(other).gid(other);
            command.arg(format!("http://localhost{path}"));
            command
        };
        if other != 0 {
            assert_ne!(ask("/v1/health").stderr(Stdio::null()).status().unwrap().code(), Some(0));
        }
        mode(&place.root().join("run"), 0o755);
        mode(&place.root().join("run/ringfence"), 0o755);
        mode(&daemon.socket(), 0o666);
        for path in ["/v1/health", "/v1/sandboxes", &format!("/v1/sandboxes/{id}"), "/nonexistent"]
        {
            assert_eq!(answer(&mut ask(path)).is(403).reason(), "forbidden");
        }
        // The control: its own user.
        daemon.get("/v1/health").is(200);
        daemon.get(&format!("/v1/sandboxes/{id}")).is(200);
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Over TCP: no token, a wrong one, a page in a browser, a name that was made to lead here.
#[test]
fn callers_over_tcp() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let port = free_port();
        let daemon = Daemon::listening(place, &[format!("127.0.0.1:{port}")]);
        let file = place.home().join("state/daemon/token");
        let token = std::fs::read_to_string(&file).unwrap();
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
        let authorization = format!("Authorization: Bearer {}", token.trim());
        let ask = |headers: &[&str], path: &str| -> Answer {
            let mut command = place.command("curl");
            for header in headers {
                command.args(["-H", header]);
            }
            answer(command.arg(format!("http://127.0.0.1:{port}{path}")))
        };
        for path in ["/v1/health", "/v1/sandboxes", "/v1/openapi.json", "/nonexistent"] {
            assert_eq!(ask(&[], path).is(401).reason(), "unauthorized");
            let wrong = format!("{authorization}x");
            assert_eq!(ask(&[&wrong], path).is(401).reason(), "unauthorized");
            assert_eq!(ask(&["Authorization: Bearer "], path).is(401).reason(), "unauthorized");
            for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"] {
                let host = format!("Host: {host}:{port}");
                assert_eq!(ask(&[&authorization, &host], path).is(403).reason(), "forbidden");
            }
            let page = [authorization.as_str(), "Origin: https://evil.example"];
            assert_eq!(ask(&page, path).is(403).reason(), "forbidden");
            assert_eq!(ask(&[&authorization, "Origin: null"], path).is(403).reason(), "forbidden");
        }
        // The control.
        ask(&[&authorization], "/v1/health").is(200);
        ask(&[&authorization, &format!("Host: localhost:{port}")], "/v1/sandboxes").is(200);
        // A form of a page says that it is text.
        let body = json!({ "workspace": place.workspace() }).to_string();
        let plain = daemon.curl(&["-H", "Content-Type: text/plain", "-d", &body], "/v1/sandboxes");
        assert_eq!(plain.is(415).reason(), "invalid");
        let origin = daemon.curl(&["-H", "Origin: http://localhost"], "/v1/health");
        assert_eq!(origin.is(403).reason(), "forbidden");
        drop(daemon);
        let mut wide = place.ringfence(["daemon", "--listen", "0.0.0.0:0"]);
        super::world::environment(place, &mut wide);
        crate::harness::Ran::of(&mut wide).failed_with(125).says("loopback");
    });
}

/// The daemon's socket and state lie in directories that the policy grants, and are still out of reach
/// from inside.
#[test]
fn a_command_inside_at_the_socket_of_the_daemon() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let socket = daemon.socket();
        let root = place.root().display().to_string();
        let made_of = json!({
            "name": "box", "workspace": place.workspace(),
            "policy": { "files": { "write": [place.root(), place.home()] } },
        });
        daemon.post("/v1/sandboxes", &made_of).is(201);
        let script = format!(
            "ls -A {root} | grep -q project && echo sees; curl -sS --unix-socket {} http://localhost/v1/health; ls -A {root}/run/ringfence {root}/home/state/daemon; true",
            socket.display()
        );
        // The control: outside it answers.
        assert!(place.bare(&script).ok().out.contains("\"ok\""));
        let ran = daemon.shell("box", &script).ok();
        assert!(ran.out.starts_with("sees\n"), "{ran:?}");
        assert!(!ran.out.contains("ok") && !ran.out.contains("sock"), "{ran:?}");
        assert!(!ran.out.contains("state.db") && !ran.out.contains("token"), "{ran:?}");
    });
}

/// From another user namespace, where every sandbox is, the socket itself refuses.
#[test]
fn a_peer_from_another_namespace() {
    if !has("curl") || !has("unshare") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let ask = |program: &[&str]| {
            let mut command = place.command(program[0]);
            command.args(&program[1..]).args(["--unix-socket"]).arg(daemon.socket());
            command.arg("http://localhost/v1/health").args(["-sS", "-w", "\n%{http_code}"]);
            crate::harness::Ran::of(&mut command)
        };
        let made = crate::harness::Ran::of(place.command("unshare").args(["-U", "true"]));
        if made.code != Some(0) {
            println!("skipped: this host lets nobody make a user namespace");
            return;
        }
        assert!(ask(&["unshare", "-U", "curl"]).out.ends_with("403"));
        assert!(ask(&["curl"]).out.ends_with("200"));
    });
}

/// Init and its channel: not to be seen, traced, stopped or ended from inside.
#[test]
fn a_command_inside_at_its_init() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        // Only the standard descriptors; the fourth is the listing's own.
        let fds = daemon.shell("box", "ls /proc/self/fd | wc -l").ok().out;
        assert_eq!(fds.trim(), "4");
        let script = "ls /proc/1/fd && echo fds; cat /proc/1/environ && echo environ; cat /proc/1/mem && echo mem; \
             kill -9 1; kill -STOP 1; kill -TERM 1; kill -CHLD 1; sleep 0.2; echo here";
        let ran = daemon.shell("box", script).ok();
        assert_eq!(ran.out, "here\n", "{ran:?}");
        daemon.shell("box", "echo there").ok().says("there");
        // The control: the same against a process of its own.
        let script = "sleep 1000 & p=$!; ls /proc/$p/fd >/dev/null && echo fds; kill -9 $p; wait $p; echo $?";
        assert_eq!(daemon.shell("box", script).ok().out, "fds\n137\n");
    });
}

/// Whatever has just been started is stopped, again and again: others are not held up.
#[test]
fn a_command_inside_that_stops_all_others() {
    if !has("python3") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        daemon.create(&["--name", "other"]);
        let stopper = "import os,signal\n\
            me=os.getpid()\n\
            open('ready','w')\n\
            while not os.path.exists('enough'):\n\
            \x20for p in os.listdir('/proc'):\n\
            \x20\x20if p.isdigit() and int(p) not in (1,me):\n\
            \x20\x20\x20try: os.kill(int(p),signal.SIGSTOP)\n\
            \x20\x20\x20except OSError: pass\n";
        place.write("stopper.py", stopper);
        let mut running = daemon
            .command(&["exec", "box", "--", "python3", "stopper.py"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ready = place.workspace().join("ready");
        let mut over = false;
        until("it stops", || {
            over = running.try_wait().unwrap().is_some();
            over || ready.exists()
        });
        if over {
            println!("skipped: python3 cannot be run inside");
            return;
        }
        // They may stand still, and then their time is over; init goes on.
        for _ in 0..6 {
            let args = ["exec", "box", "--timeout", "200ms", "--", "/bin/true"];
            let code = daemon.ringfence(&args).code;
            assert!(matches!(code, Some(0 | 137 | 125)), "{code:?}");
        }
        daemon.shell("other", "true").ok();
        place.write("enough", "");
        running.wait().unwrap();
        until("init starts commands", || daemon.shell("box", "true").code == Some(0));
    });
}

/// What holds a command of a run holds each command of a sandbox that stays, exactly.
#[test]
fn every_command_is_confined_as_that_of_a_run() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let script = "grep -E '^(NoNewPrivs|Seccomp|Seccomp_filters|Cap[A-Za-z]*|Groups|Uid|Gid|SigIgn|SigBlk):' /proc/self/status; \
             cat /proc/self/limits; cat /proc/self/uid_map; ls -A /; ls -A /dev; cat /proc/net/dev; cat /proc/self/mounts | wc -l; \
             unshare -U true; mount -t tmpfs x /mnt; cat /etc/shadow; dmesg; ls /proc/1/root; nice";
        let run = place.shell(&[], script);
        for _ in 0..2 {
            let exec = daemon.shell("box", script);
            assert_eq!(
                exec.out.replace(char::is_numeric, "0"),
                run.out.replace(char::is_numeric, "0")
            );
            let status = |out: &str| -> Vec<String> {
                let own =
                    |l: &&str| l.starts_with("Cap") || l.starts_with("Sec") || l.starts_with("NoN");
                out.lines().filter(own).map(ToOwned::to_owned).collect()
            };
            assert_eq!(status(&exec.out), status(&run.out));
            assert_eq!(exec.err, run.err);
        }
        // The control: outside it is not so.
        assert!(place.bare("grep NoNewPrivs /proc/self/status").out.contains('0'));
    });
}

/// Forks without end in one sandbox: the daemon answers, and the neighbours run.
#[test]
fn a_fork_storm_in_one_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let made_of = json!({
            "workspace": place.workspace(), "name": "storm", "policy": { "limits": { "pids": 64 } },
        });
        daemon.post("/v1/sandboxes", &made_of).is(201);
        daemon.create(&["--name", "calm"]);
        let storm =
            json!({ "shell": "f() { f | f & }; f; while :; do f; done", "background": true });
        daemon.post("/v1/sandboxes/storm/exec", &storm).is(202);
        for _ in 0..10 {
            daemon.get("/v1/health").is(200);
            daemon.shell("calm", "true").ok();
            // Refused, perhaps; answered in any case.
            let storm = daemon
                .post("/v1/sandboxes/storm/exec", &json!({ "argv": ["true"], "timeout_ms": 1000 }));
            assert!(matches!(storm.status, 200 | 429), "{storm:?}");
        }
        daemon.ringfence(&["remove", "storm"]).ok();
        daemon.shell("calm", "true").ok();
    });
}
