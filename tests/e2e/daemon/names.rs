//! Rules of names in sandboxes that stay: held for commands and for the files interface alike.

use serde_json::json;

use super::world::{Answer, Daemon};
use crate::harness::{Place, as_each_user, has};

fn codebase(place: &Place, daemon: &Daemon<'_>) {
    let script = "mkdir -p $HOME/from/src $HOME/from/output $HOME/from/deep/secrets && cd $HOME/from && \
        echo readme > README && echo TOKEN > .env && echo key > src/a.key && echo s > deep/secrets/s && echo c > src/main.c";
    place.bare(script).ok();
    let from = place.home().join("from");
    daemon.post("/v1/codebases", &json!({ "name": "app", "directory": from })).is(201);
}

fn put(daemon: &Daemon<'_>, path: &str, bytes: &str) -> Answer {
    let path = format!("/v1/sandboxes/box/files?path={path}");
    daemon.curl(&["-X", "PUT", "--data-binary", bytes], &path)
}

/// The preset of agents: secrets do not exist, the rest is read, two directories are written. The control is
/// the same codebase under another preset.
#[test]
fn a_preset_holds_for_commands_and_for_files() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        codebase(place, &daemon);
        daemon
            .ringfence(&["create", "--codebase", "app", "-t", "agent-safe", "--name", "box"])
            .ok();
        daemon
            .ringfence(&["create", "--codebase", "app", "-t", "full-access", "--name", "control"])
            .ok();
        let seen = daemon.shell("box", "find . | sort | tr '\\n' ' '; cat README").ok().out;
        assert_eq!(seen, ". ./README ./deep ./output ./src ./src/main.c readme\n");
        let changes = "echo x > README; echo x > new; echo x > .env; mkdir -p tmp/a/.env; mv src/main.c output/; \
            ln README output/link; rm README; mkdir secrets; cp README output/x.pem; touch src/main.c; chmod 777 README";
        let ran = daemon.shell("box", changes);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        let allowed = "mkdir tmp; echo 1 > tmp/one && mv tmp/one output/two && cat output/two; umask; touch output/t; stat -c %a output/t; find . | sort | tr '\\n' ' '";
        let seen = daemon.shell("box", allowed).ok().out;
        let umask = daemon.shell("control", "umask; touch t; stat -c %a t").ok().out;
        let expected = format!(
            "1\n{umask}. ./README ./deep ./output ./output/t ./output/two ./src ./src/main.c ./tmp ./tmp/a "
        );
        assert_eq!(seen, expected);
        // Over the interface the same.
        for path in [".env", "src/a.key", "deep/secrets/s"] {
            let read = daemon.get(&format!("/v1/sandboxes/box/files?path={path}"));
            assert_eq!(read.is(404).reason(), "not-found", "{path}");
            let put = put(&daemon, path, "x");
            assert!([403, 404].contains(&put.status), "{path}: {put:?}");
        }
        for path in ["README", "new", "src/main.c", "output/.env", "output/a.pem"] {
            assert_eq!(put(&daemon, path, "x").is(403).reason(), "refused", "{path}");
        }
        for (method, path) in [
            ("DELETE", "files?path=README"),
            ("DELETE", "files?path=deep"),
            ("POST", "files/directory?path=elsewhere"),
            ("POST", "files/directory?path=output/secrets/x"),
        ] {
            let asked = daemon.curl(&["-X", method], &format!("/v1/sandboxes/box/{path}"));
            assert!((400..500).contains(&asked.status), "{path}: {asked:?}");
        }
        put(&daemon, "output/made", "over the interface").is(204);
        assert_eq!(daemon.shell("box", "cat output/made").ok().out, "over the interface");
        daemon.curl(&["-X", "DELETE"], "/v1/sandboxes/box/files?path=output/made").is(204);
        // The control sees and changes all of it.
        let all = daemon
            .shell(
                "control",
                "cat .env deep/secrets/s; echo x > README; mv src s2; echo y > .env; ls -A",
            )
            .ok();
        assert_eq!(all.out, "TOKEN\ns\n.env\nREADME\ndeep\noutput\ns2\nt\n", "{all:?}");
    });
}

/// Rules of a request: priorities, listing without reading, single files; and names that are only listed.
#[test]
fn rules_of_a_request() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        codebase(place, &daemon);
        let rules = json!([
            { "pattern": "**/*", "permission": "write", "priority": 1 },
            { "pattern": "/src", "permission": "read", "priority": 5, "type": "directory" },
            { "pattern": "/README", "permission": "view", "priority": 9, "type": "file" },
            { "pattern": "**/.env*", "permission": "none", "priority": 100 },
        ]);
        let made =
            json!({ "name": "box", "codebase": "app", "profiles": ["view-only"], "rules": rules });
        let made = daemon.post("/v1/sandboxes", &made).is(201).json();
        assert_eq!(made["rules"].as_array().map(Vec::len), Some(4), "{made}");
        let script = "ls -A; cat README && echo read; echo x > src/main.c && echo wrote; echo x > free && cat free; cat src/main.c; mv free .env2 && echo hid; ls -A";
        let ran = daemon.shell("box", script).ok();
        assert_eq!(
            ran.out, "README\ndeep\noutput\nsrc\nx\nc\nREADME\ndeep\nfree\noutput\nsrc\n",
            "{ran:?}"
        );
        assert_eq!(put(&daemon, "src/main.c", "x").is(403).reason(), "refused");
        assert_eq!(daemon.get("/v1/sandboxes/box/files?path=README").is(403).reason(), "refused");
        let wrong =
            json!({ "codebase": "app", "rules": [{ "pattern": "../x", "permission": "read" }] });
        assert_eq!(daemon.post("/v1/sandboxes", &wrong).is(400).reason(), "invalid");
    });
}

/// Many commands at once and one after the other, each held; what one leaves running stays held.
#[test]
fn every_command_is_held_and_what_it_leaves() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        codebase(place, &daemon);
        daemon
            .ringfence(&["create", "--codebase", "app", "-t", "agent-safe", "--name", "box"])
            .ok();
        let left = "(while [ ! -e /workspace/output/go ]; do sleep 0.05; done; echo x > /workspace/late; echo $? > /workspace/output/refused) >/dev/null 2>&1 &";
        daemon.shell("box", left).ok();
        std::thread::scope(|all| {
            for n in 0..8 {
                let daemon = &daemon;
                all.spawn(move || {
                    for m in 0..10 {
                        let script = format!(
                            "cd output && echo {n}-{m} > f{n}-{m} && mv f{n}-{m} g{n}-{m} && cat g{n}-{m}; echo x > ../bad{n}-{m} || echo held"
                        );
                        let ran = daemon.shell("box", &script).ok();
                        assert_eq!(ran.out, format!("{n}-{m}\nheld\n"), "{ran:?}");
                    }
                });
            }
        });
        daemon.shell("box", "touch output/go; while [ ! -s output/refused ]; do sleep 0.05; done; cat output/refused; ls").ok().says("README");
        let ran =
            daemon.shell("box", "cat output/refused; ls late bad*; ls output | grep -c ^g").ok();
        assert!(!ran.out.starts_with('0') && ran.out.ends_with("81\n"), "{ran:?}");
        assert!(!ran.out.contains("late") && !ran.out.contains("bad"), "{ran:?}");
    });
}

/// Ordered rules over a plain workspace: by the exact view, served by a process of the sandbox's own. Its end
/// is the sandbox's.
#[test]
fn rules_over_a_plain_workspace() {
    if !std::path::Path::new("/dev/fuse").exists() {
        println!("skipped: no /dev/fuse");
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        place.bare("cd \"$PWD\"; echo r > readme; echo t > .env; mkdir output").ok();
        let made = daemon.ringfence(&["create", "--name", "box", "-t", "agent-safe"]);
        if made.err.contains("/dev/fuse") {
            println!("skipped: {}", made.err);
            return;
        }
        made.ok();
        let ran = daemon
            .shell(
                "box",
                "ls -A; cat .env; echo x > readme || echo held; echo y > output/y && cat output/y",
            )
            .ok();
        assert!(ran.out.contains("held\ny\n") && !ran.out.contains(".env"), "{ran:?}");
        assert!(place.workspace().join("output/y").exists());
        // Who serves it is killed: nothing is left of the sandbox, and the daemon says so.
        daemon.spawner_beside().kill();
        super::world::until("it is lost", || daemon.sandbox("box")["state"] == "failed");
        daemon.ringfence(&["start", "box"]).ok();
        daemon.shell("box", "cat readme").ok().says("r");
    });
}

/// Sandboxes that begin while their codebase is being changed, by the daemon and by the command line: what a
/// rule hides is seen in none of them, whichever tree they got.
#[test]
fn what_begins_during_an_upload_sees_nothing_hidden() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        codebase(place, &daemon);
        // One that stays, so that every change makes another tree, and one that is changed in place.
        daemon
            .ringfence(&["create", "--codebase", "app", "-t", "agent-safe", "--name", "stays"])
            .ok();
        let enough = std::sync::atomic::AtomicBool::new(false);
        let at = "/v1/codebases/app/files";
        std::thread::scope(|all| {
            let _end = Enough(&enough);
            all.spawn(|| {
                let mut n = 0;
                while !enough.load(std::sync::atomic::Ordering::Relaxed) {
                    n += 1;
                    for path in ["deep/.env", "src/b.key", &format!("d{n}/secrets/s")] {
                        let path = format!("{at}?path={path}");
                        daemon.curl(&["-X", "PUT", "--data-binary", "HIDDEN"], &path).is(200);
                    }
                    for path in ["deep/.env", "src/b.key"] {
                        daemon.curl(&["-X", "DELETE"], &format!("{at}?path={path}")).is(204);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(n % 5 * 20));
                }
            });
            let look = "grep -rl HIDDEN /workspace; find /workspace -name '.env*' -o -name '*.key' -o -path '*/secrets/*'";
            let (mut seen, mut made) = (String::new(), 0);
            for n in 0..12 {
                // The last has the codebase to itself, as soon as a round of changes is over.
                if n == 11 {
                    enough.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                let name = format!("b{n}");
                let flags = ["create", "--codebase", "app", "-t", "agent-safe", "--name", &name];
                // All tries met a change: that is said, and is no sandbox.
                if daemon.ringfence(&flags).code == Some(0) {
                    made += 1;
                    seen += &daemon.shell(&name, look).out;
                    daemon.ringfence(&["remove", &name]).ok();
                }
                let flags =
                    ["run", "--codebase", "app", "-t", "agent-safe", "--", "/bin/sh", "-c", look];
                seen += &daemon.ringfence(&flags).out;
            }
            assert_eq!(seen, "");
            println!("{made} of 12 were made");
        });
        // The control: under another preset it is there.
        let path = format!("{at}?path=deep/.env");
        daemon.curl(&["-X", "PUT", "--data-binary", "HIDDEN"], &path).is(200);
        daemon
            .ringfence(&["create", "--codebase", "app", "-t", "full-access", "--name", "control"])
            .ok();
        daemon.shell("control", "grep -rl HIDDEN /workspace").ok().says("deep/.env");
    });
}

/// Set in the end, also when that is a panic: who waits for it would wait for ever.
struct Enough<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
