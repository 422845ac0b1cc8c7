//! Sandboxes through stops, kills and new starts of the daemon.

use std::process::Stdio;

use serde_json::json;

use super::world::{Daemon, Process, until};
use crate::harness::{as_each_user, has, is_root};

#[test]
fn stop_start_freeze() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box"]);
        let turn = |verb: &str| {
            daemon.curl(&["-X", "POST"], &format!("/v1/sandboxes/{id}/{verb}")).is(200).json()
        };
        let exec = format!("/v1/sandboxes/{id}/exec");
        let count = "while :; do echo x >> count; sleep 0.02; done";
        daemon.post(&exec, &json!({ "shell": count, "background": true })).is(202);
        let lines = || std::fs::read(place.workspace().join("count")).map_or(0, |b| b.len());
        until("it counts", || lines() > 2);
        assert_eq!(turn("freeze")["state"], "frozen");
        assert_eq!(turn("freeze")["state"], "frozen");
        let mut before = 0;
        until("it stands still", || {
            let now = lines();
            let same = now == before;
            before = now;
            std::thread::sleep(std::time::Duration::from_millis(200));
            same
        });
        let refused = daemon.post(&exec, &json!({ "argv": ["true"] })).is(409);
        assert_eq!(refused.reason(), "conflict");
        assert_eq!(daemon.ringfence(&["start", "box"]).ok().out, "running\n");
        until("it counts again", || lines() > before + 2);
        assert_eq!(daemon.ringfence(&["stop", "box"]).ok().out, "stopped\n");
        let stopped = lines();
        daemon.shell("box", "true").failed_with(125).says("start it first");
        assert_eq!(daemon.ringfence(&["start", "box"]).ok().out, "idle\n");
        daemon.shell("box", "true").ok();
        assert_eq!(lines(), stopped);
        for _ in 0..2 {
            daemon.curl(&["-X", "DELETE"], &format!("/v1/sandboxes/{id}")).is(204);
        }
        assert_eq!(daemon.get(&format!("/v1/sandboxes/{id}")).is(404).reason(), "not-found");
    });
}

#[test]
fn lives_and_idle_times_end() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let short = daemon.create(&["--ttl", "1s"]);
        let idle = daemon.create(&["--idle", "1s"]);
        let stays = daemon.create(&[]);
        until("the short one is gone", || {
            daemon.get(&format!("/v1/sandboxes/{short}")).status == 404
        });
        until("the idle one is stopped", || daemon.sandbox(&idle)["state"] == "stopped");
        assert_eq!(daemon.sandbox(&idle)["reason"], "idle");
        assert_eq!(daemon.sandbox(&stays)["state"], "idle");
    });
}

/// `kill -9` of the daemon at several moments: what was acknowledged is there after the next start,
/// and nothing else is.
#[test]
fn a_killed_daemon_loses_nothing_and_leaves_nothing() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let mut daemon = Daemon::start(place);
        let kept = daemon.create(&["--name", "kept", "--persistent", "--label", "x=y"]);
        let stopped = daemon.create(&["--name", "stopped", "--persistent"]);
        daemon.ringfence(&["stop", "stopped"]).ok();
        let removed = daemon.create(&["--persistent"]);
        daemon.ringfence(&["remove", &removed]).ok();
        let list = |daemon: &Daemon<'_>| {
            let listed = daemon.get("/v1/sandboxes").is(200).json();
            let all = listed["sandboxes"].as_array().unwrap().clone();
            let mut ids: Vec<_> =
                all.iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
            ids.sort();
            ids
        };
        let mut expected = [kept.clone(), stopped.clone()];
        expected.sort();
        for moment in 0..6u64 {
            let passing = daemon.create(&[]);
            let exec = json!({ "shell": "sleep 1000", "background": true });
            daemon.post(&format!("/v1/sandboxes/{passing}/exec"), &exec).is(202);
            daemon.post("/v1/sandboxes/kept/exec", &exec).is(202);
            // Something is under way: it may or may not have been done, and none of it stays half.
            let busy = match moment % 3 {
                0 => vec!["create"],
                1 => vec!["exec", "kept", "--", "/bin/sh", "-c", "echo begun; sleep 1000"],
                _ => vec!["remove", passing.as_str()],
            };
            let mut busy =
                daemon.command(&busy).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(moment * 4));
            let family = daemon.kill();
            assert!(family.len() >= 4, "spawner, two inits and a command: {family:?}");
            busy.wait().unwrap();
            until("what it had started is gone", || family.iter().all(|p| !p.is_there()));
            daemon.start_again();
            assert_eq!(list(&daemon), expected);
            until("the persistent one is back", || daemon.sandbox("kept")["state"] == "idle");
            assert_eq!(daemon.sandbox("kept")["reason"], "restarted");
            assert_eq!(daemon.sandbox("kept")["labels"], json!({ "x": "y" }));
            assert_eq!(daemon.sandbox("stopped")["state"], "stopped");
            daemon.shell("kept", "echo works").ok().says("works");
        }
    });
}

#[test]
fn without_its_spawner_the_daemon_says_so_and_goes_on() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box"]);
        let spawner = daemon.family().remove(0);
        let inside = spawner.below();
        assert!(!inside.is_empty());
        spawner.kill();
        until("the sandboxes end with it", || inside.iter().all(|p| !p.is_there()));
        let state = || {
            let listed = daemon.ringfence(&["list", "--json"]).ok().out;
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            (listed[0]["state"].clone(), listed[0]["reason"].clone())
        };
        until("it is lost", || state() == (json!("failed"), json!("host-lost")));
        daemon.ringfence(&["start", "box"]).ok();
        daemon.shell(&id, "true").ok();
    });
}

#[test]
fn a_sandbox_that_was_killed_from_outside_says_so() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let running = daemon
            .command(&["exec", "box", "--json", "--", "sleep", "1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Among them are helpers that wait in prepared places.
        let read = |pid: i32, name: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
        };
        let command = || daemon.family().into_iter().find(|p| read(p.pid, "comm") == "sleep\n");
        until("the command runs", || command().is_some());
        let status = read(command().unwrap().pid, "status");
        let init = status.lines().find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok());
        Process::of(init.unwrap()).unwrap().kill();
        let output = running.wait_with_output().unwrap();
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["ended"]["reason"], "sandbox");
        until("it failed", || {
            let listed = daemon.ringfence(&["list", "--json"]).ok().out;
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            listed[0]["state"] == "failed" && listed[0]["reason"] == "killed"
        });
        daemon.ringfence(&["start", "box"]).ok();
        daemon.shell("box", "true").ok();
    });
}

/// What starts the commands of a sandbox is held up, by whoever can do that from outside: who asks is told so soon and
/// not left waiting, others go on, and the sandbox goes on, or is ended and used again.
#[test]
fn a_sandbox_that_does_not_answer() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        use rustix::process::Signal;
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let init = daemon.family().remove(0).below().remove(0);
        daemon.create(&["--name", "calm"]);
        // The control: nobody inside can do it.
        daemon.shell("box", "kill -STOP 1; kill -TSTP 1; echo asked").ok().says("asked");
        daemon.shell("box", "true").ok();
        init.signal(Signal::STOP);
        let long = json!({ "argv": ["sleep", "600"] });
        let refused = daemon.curl(
            &["-i", "-H", "Content-Type: application/json", "-d", &long.to_string()],
            "/v1/sandboxes/box/exec",
        );
        assert!(refused.is_busy(), "{refused:?}");
        assert!(refused.body.contains("its init was stopped from outside"), "{refused:?}");
        let files = daemon.get("/v1/sandboxes/box/files?path=x").is(503);
        assert_eq!(files.reason(), "busy");
        let freeze = daemon.curl(&["-X", "POST"], "/v1/sandboxes/box/freeze").is(503);
        assert_eq!(freeze.reason(), "busy");
        assert_eq!(daemon.sandbox("box")["state"], "idle");
        daemon.shell("calm", "true").ok();
        daemon.get("/v1/sandboxes").is(200);
        // When it goes on, what was refused ends as it begins.
        init.signal(Signal::CONT);
        let looks = "grep -lx sleep /proc/[0-9]*/comm || echo none";
        super::world::until("nothing of it runs", || {
            daemon.shell("box", looks).ok().out == "none\n"
        });
        init.signal(Signal::STOP);
        daemon.ringfence(&["stop", "box"]).ok();
        assert!(!init.is_there());
        daemon.ringfence(&["start", "box"]).ok();
        daemon.shell("box", "true").ok();
    });
}

#[test]
fn the_daemon_starts_once_and_stops() {
    as_each_user(|place| {
        {
            let daemon = Daemon::start(place);
            daemon.ringfence(&["daemon"]).failed_with(125).says("running already");
            let mode = |path: &std::path::Path| {
                std::os::unix::fs::PermissionsExt::mode(
                    &std::fs::symlink_metadata(path).unwrap().permissions(),
                ) & 0o777
            };
            assert_eq!(mode(&daemon.socket()), 0o600);
            assert_eq!(mode(daemon.socket().parent().unwrap()), 0o700);
            assert_eq!(mode(&place.home().join("state/daemon")), 0o700);
        }
        let mut command = place.ringfence(["list"]);
        super::world::environment(place, &mut command);
        let ran = crate::harness::Ran::of(&mut command);
        ran.failed_with(125).says("ringfence daemon start");
        let background = |args: &[&str]| {
            let mut command = place.ringfence(args);
            super::world::environment(place, &mut command);
            crate::harness::Ran::of(&mut command)
        };
        background(&["daemon", "start"]).ok();
        background(&["daemon", "start"]).ok().says("already");
        background(&["create", "--name", "box"]).ok();
        background(&["exec", "box", "--", "true"]).ok();
        background(&["daemon", "stop"]).ok();
        background(&["daemon", "status"]).failed_with(125);
        if is_root() {
            println!("ran as root too");
        }
    });
}
