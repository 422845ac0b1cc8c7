//! What the daemon and its callers have of secrets: nothing of it is found in a sandbox, nor is what one sandbox
//! was given found in another or in what serves it.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::attacks::free_port;
use super::owners::Owner;
use super::transports::{certificate, flags};
use super::world::{Daemon, Process, environment, room, until};
use crate::harness::{Place, Ran, as_each_user, binary, has, is_root};

/// Variables of the daemon, as a shell that started it may have had them.
const GIVEN: [(&str, &str); 5] = [
    ("AWS_SECRET_ACCESS_KEY", "SECRET-of-the-cloud"),
    ("ANTHROPIC_API_KEY", "SECRET-of-the-model"),
    ("RINGFENCE_TOKEN_OF_CI", "SECRET-of-the-fence"),
    ("DATABASE_URL", "postgres://me:SECRET-of-the-base@db/x"),
    ("LD_AUDIT_OPTIONS", "SECRET-of-the-loader"),
];

/// All that a command can look at: variables, command lines and descriptors of every process, and files
/// wherever it may read.
fn look(roots: &str) -> String {
    format!(
        "env; for p in /proc/[0-9]*; do cat $p/environ $p/cmdline; ls -l $p/fd $p/cwd $p/root; done; \
         cat /proc/keys /proc/self/mountinfo /proc/net/unix; \
         grep -rsaE -D skip 'rfo_|SECRET|PRIVATE KEY' {roots} $HOME /dev/shm /etc/ssl/private; \
         grep -saE -D skip 'rfo_|SECRET|PRIVATE KEY' /run/*; true"
    )
}

fn has_any<'a>(text: &str, secrets: &'a [String]) -> Option<&'a String> {
    secrets.iter().find(|secret| text.contains(secret.as_str()))
}

/// The daemon's token, its TLS key, its variables, and the tokens of owners: not in a sandbox of the daemon's user,
/// of whoever sent the token, or of another owner, however much of the file system its policy grants.
#[test]
fn of_the_daemon_and_its_callers_reach_no_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let files = certificate(place, "server");
        let listen = format!("127.0.0.1:{}", free_port());
        let daemon = Daemon::with_environment(place, &flags(&listen, &files), &GIVEN);
        let (web, ci) = (Owner::new(&daemon, "web", &[]), Owner::new(&daemon, "ci", &[]));
        let state = place.home().join("state/daemon");
        let token = std::fs::read_to_string(state.join("token")).unwrap().trim().to_owned();
        let key = std::fs::read_to_string(&files.1).unwrap().lines().nth(1).unwrap().to_owned();
        let mut secrets = vec![token, key, web.token.clone(), ci.token.clone()];
        secrets.extend(GIVEN.iter().map(|(_, value)| (*value).to_owned()));
        let roots = place.root().display().to_string();
        let look = look(&roots);
        // The control: outside, the same look finds the key, the token and the variables.
        let pid = daemon.process().pid;
        let bare = place
            .bare(&format!("cat /proc/{pid}/environ; cat {roots}/home/state/daemon/token; {look}"));
        for secret in [&secrets[0], &secrets[4], &secrets[5], &secrets[6], &secrets[7]] {
            assert!(bare.out.contains(secret.as_str()), "{secret} is not there to be found");
        }
        assert!(bare.out.contains("PRIVATE KEY"));
        let wide = json!({ "files": { "read": ["/", place.root()], "write": [place.home()] } });
        for made_of in [
            json!({ "name": "plain", "workspace": place.workspace() }),
            json!({ "name": "wide", "workspace": place.workspace(), "policy": wide }),
            json!({ "name": "open", "workspace": place.workspace(), "profiles": ["permissive"] }),
            json!({ "name": "layered", "workspace": place.workspace(), "layer": true }),
        ] {
            daemon.post("/v1/sandboxes", &made_of).is(201);
            let name = made_of["name"].as_str().unwrap();
            let ran = daemon.shell(name, &look);
            assert_eq!(has_any(&ran.out, &secrets), None, "{name}: {}", ran.out);
            // A shell that stays, and what is started in it.
            let made =
                daemon.post(&format!("/v1/sandboxes/{name}/sessions"), &json!({})).is(201).json();
            let exec =
                format!("/v1/sandboxes/{name}/sessions/{}/exec", made["id"].as_str().unwrap());
            let said = daemon.post(&exec, &json!({ "command": look })).is(200);
            assert_eq!(has_any(&said.body, &secrets), None, "{name}: {said:?}");
        }
        for owner in [&web, &ci] {
            let id = owner.create(&json!({}));
            let ran = owner.shell(&id, &look);
            let out = ran["stdout"]["data"].as_str().unwrap();
            assert!(out.contains("PATH="), "{out}");
            assert_eq!(has_any(out, &secrets), None, "{out}");
        }
        // Nor do the processes that serve sandboxes have what was sent with a request.
        let sent = [web.token.clone(), ci.token.clone()];
        for process in daemon.family() {
            let told = told_of(&process);
            assert_eq!(has_any(&told, &sent), None, "{process:?}: {told}");
        }
    });
}

/// Variables and arguments of a process, as its user sees them from outside.
fn told_of(process: &Process) -> String {
    let read = |what: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{what}", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    format!("{} {}", read("environ"), read("cmdline"))
}

/// What one sandbox, command or session is given as variables is for its commands alone: neither another sandbox,
/// of the same owner or of another, nor init or the process beside the sandbox gets it, and nothing loads what it
/// names.
#[test]
fn of_one_sandbox_are_its_commands_alone() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let (web, ci) = (Owner::new(&daemon, "web", &[]), Owner::new(&daemon, "ci", &[]));
        let given = |mark: &str| {
            json!({
                "KEY": format!("SECRET-{mark}"),
                // For whoever would heed them: a loader, shells, ringfence itself.
                "LD_PRELOAD": format!("/tmp/SECRET-{mark}.so"),
                "BASH_ENV": format!("/tmp/SECRET-{mark}.sh"),
                "ENV": format!("/tmp/SECRET-{mark}.sh"),
                "RINGFENCE_STATE": format!("/tmp/SECRET-{mark}"),
            })
        };
        let id = |made: &Value| made["id"].as_str().unwrap().to_owned();
        let own = daemon.post(
            "/v1/sandboxes",
            // With a layer: a process of its own stays beside it.
            &json!({ "workspace": place.workspace(), "layer": true, "environment": given("own") }),
        );
        let own = id(&own.is(201).json());
        let of_web = web.create(&json!({ "environment": given("web") }));
        let of_ci = ci.create(&json!({ "environment": given("ci") }));
        let beside = web.create(&json!({}));
        let exec =
            json!({ "argv": ["sleep", "1000"], "background": true, "environment": given("exec") });
        web.post(&format!("/v1/sandboxes/{of_web}/exec"), &exec).is(202);
        let look = "env; cat /proc/[0-9]*/environ; ls / /tmp; true";
        let out = |ran: Value| ran["stdout"]["data"].as_str().unwrap().to_owned();
        // The control: its own are there.
        let seen = out(web.shell(&of_web, look));
        assert!(seen.contains("SECRET-web") && seen.contains("SECRET-exec"), "{seen}");
        assert!(!seen.contains("SECRET-ci") && !seen.contains("SECRET-own"), "{seen}");
        let seen = out(ci.shell(&of_ci, look));
        assert!(seen.contains("SECRET-ci"), "{seen}");
        for mark in ["SECRET-web", "SECRET-exec", "SECRET-own"] {
            assert!(!seen.contains(mark), "{mark}: {seen}");
        }
        let seen = out(web.shell(&beside, look));
        assert!(!seen.contains("SECRET"), "{seen}");
        let seen = daemon.shell(&own, look).ok().out;
        assert!(seen.contains("SECRET-own") && !seen.contains("SECRET-web"), "{seen}");
        // What serves them has none: only the command that sleeps was given something.
        let holders: Vec<Process> =
            daemon.family().into_iter().filter(|p| told_of(p).contains("SECRET")).collect();
        assert_eq!(holders.len(), 1, "{holders:?}");
        assert!(told_of(&holders[0]).contains("SECRET-exec"));
        // And what they name is nowhere read, in the library that a process of ours would have loaded neither.
        for process in daemon.family().iter().filter(|p| **p != holders[0]) {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid));
            assert!(!maps.unwrap_or_default().contains("SECRET"), "{process:?}");
        }
    });
}

/// What the daemon takes from its own environment it takes at its start: no request changes it, and what a
/// caller says in a header is no name, path or variable of a sandbox.
#[test]
fn headers_of_a_request_are_no_variables() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box"]);
        let body = json!({ "shell": "env; cat /proc/[0-9]*/environ; true" }).to_string();
        let args = [
            "-H",
            "Content-Type: application/json",
            "-H",
            "X-Api-Key: SECRET-of-a-header",
            "-H",
            "Cookie: SECRET-of-a-header",
            "-H",
            "Proxy: http://SECRET-of-a-header",
            "-H",
            "X-Forwarded-User: SECRET-of-a-header",
            "-d",
            &body,
        ];
        let ran = daemon.curl(&args, &format!("/v1/sandboxes/{id}/exec")).is(200);
        assert!(ran.body.contains("PATH=") && !ran.body.contains("SECRET"), "{ran:?}");
        let events = daemon.get("/v1/audit?limit=1000").is(200);
        assert!(
            events.body.contains(&id) && !events.body.contains("SECRET-of-a-header"),
            "{events:?}"
        );
    });
}

/// Less than 64 MiB of memory free on the machine, as the kernel would say it: no sandbox is made and what runs goes
/// on; with more, it is made. A file of its own is mounted over `/proc/meminfo`, for the daemon alone.
#[test]
fn where_memory_is_short_no_sandbox_is_made() {
    if !has("curl") || !has("unshare") || !has("setpriv") || !has("nsenter") {
        return;
    }
    if !is_root() {
        println!("skipped: needs root, to say something else in the place of /proc/meminfo");
        return;
    }
    as_each_user(|place: &Place| {
        let said = place.root().join("meminfo");
        let free = |kib: u64| {
            std::fs::write(&said, format!("MemTotal: 8000000 kB\nMemAvailable: {kib} kB\n"))
                .unwrap();
        };
        free(8_000_000);
        room(place);
        let (user, group) = place.ids();
        let mut command = Command::new("unshare");
        command.args(["-m", "/bin/sh", "-c"]).arg(format!(
            "mount --bind {} /proc/meminfo && exec setpriv --reuid {user} --regid {group} --clear-groups {} daemon",
            said.display(),
            binary().display()
        ));
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", place.home());
        environment(place, &mut command);
        command.current_dir(place.workspace()).stdin(Stdio::null()).stdout(Stdio::null());
        let daemon = Daemon::of(place, command.process_group(0).spawn().unwrap());
        free(63 << 10);
        for _ in 0..2 {
            let made = daemon
                .curl(&["-i", "-H", "Content-Type: application/json", "-d", "{}"], "/v1/sandboxes");
            assert!(made.is_busy(), "{made:?}");
        }
        daemon.ringfence(&["create"]).failed_with(125).says("64 MiB");
        assert_eq!(daemon.get("/v1/sandboxes").is(200).json(), json!({ "sandboxes": [] }));
        // The control: the same daemon, as soon as the machine says what is so.
        let pid = daemon.process().pid.to_string();
        Ran::of(Command::new("nsenter").args(["-t", &pid, "-m", "umount", "/proc/meminfo"])).ok();
        until("the spawner sees it", || {
            daemon.post("/v1/sandboxes", &json!({ "name": "box" })).status == 201
        });
        daemon.shell("box", "echo works").ok().says("works");
    });
}

/// Limits of all owners together: each is held against the daemon's user and owners alike, whoever came first, says
/// when to come back, tells nobody what others have, and ends as soon as it is raised.
#[test]
fn all_owners_together_have_no_more_than_is_said() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let limit = |args: &[&str]| {
            let mut all = vec!["daemon", "token", "limit", "everybody"];
            all.extend(args);
            daemon.ringfence(&all).ok();
        };
        let (web, ci) = (Owner::new(&daemon, "web", &[]), Owner::new(&daemon, "ci", &[]));
        let first = web.create(&json!({}));
        let second = ci.create(&json!({}));
        let third = daemon.create(&["--name", "own"]);
        limit(&["--sandboxes", "3", "--commands", "2", "--sessions", "1"]);
        let made = json!({}).to_string();
        let create = ["-i", "-H", "Content-Type: application/json", "-d", &made];
        for refused in [
            daemon.curl(&create, "/v1/sandboxes"),
            web.curl(&create, "/v1/sandboxes"),
            ci.curl(&create, "/v1/sandboxes"),
        ] {
            assert!(refused.is_busy(), "{refused:?}");
            assert!(!refused.body.contains("ci") && !refused.body.contains("web"), "{refused:?}");
        }
        let sleep = json!({ "argv": ["sleep", "1000"], "background": true });
        let exec = |id: &str| format!("/v1/sandboxes/{id}/exec");
        let running = web.post(&exec(&first), &sleep).is(202).json();
        ci.post(&exec(&second), &sleep).is(202);
        for refused in [
            web.post(&exec(&first), &sleep),
            ci.post(&exec(&second), &sleep),
            daemon.post(&exec(&third), &sleep),
        ] {
            assert_eq!(refused.is(503).reason(), "busy");
        }
        let kill = format!("/v1/sandboxes/{first}/execs/{}/kill", running["id"].as_str().unwrap());
        web.post(&kill, &json!({})).is(204);
        until("there is room for the daemon's user", || {
            daemon.post(&exec(&third), &sleep).status == 202
        });
        let sessions = |id: &str| format!("/v1/sandboxes/{id}/sessions");
        ci.post(&sessions(&second), &json!({})).is(201);
        assert_eq!(web.post(&sessions(&first), &json!({})).is(503).reason(), "busy");
        assert_eq!(daemon.post(&sessions(&third), &json!({})).is(503).reason(), "busy");
        // What is no new sandbox, command or session goes on.
        daemon.get("/v1/health").is(200);
        web.get(&format!("/v1/sandboxes/{first}")).is(200);
        daemon.curl(&["-X", "PUT", "-d", "x"], "/v1/sandboxes/own/files?path=x").is(204);
        // The control: more is allowed, and is there at once.
        limit(&["--sandboxes", "4", "--commands", "9", "--sessions", "2"]);
        web.create(&json!({}));
        assert_eq!(ci.post("/v1/sandboxes", &json!({})).is(503).reason(), "busy");
        web.post(&exec(&first), &sleep).is(202);
        web.post(&sessions(&first), &json!({})).is(201);
    });
}
