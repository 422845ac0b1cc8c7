//! A frozen sandbox stands still, whatever holds it and whatever it does against that, and every way out of it works.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::world::{Daemon, Process, until};
use crate::harness::{Place, as_each_user, has};

/// With a group of limits, where the host gives one, and without.
const KINDS: [Option<&str>; 2] = [Some("64"), None];

/// A sandbox of each kind, by name; and what will hold it.
fn sandbox(daemon: &Daemon<'_>, place: &Place, name: &str, pids: Option<&str>) -> Option<String> {
    match pids {
        None => {
            daemon.create(&["--name", name]);
            Some("signals".into())
        }
        Some(most) => {
            place.write("limits.json", format!(r#"{{ "limits": {{ "pids": {most} }} }}"#));
            daemon.create(&["--name", name, "-s", "limits.json"]);
            if group(daemon).is_none() {
                println!("skipped: this user can have no group of cgroup v2 here");
                daemon.ringfence(&["remove", name]).ok();
                return None;
            }
            Some("cgroup".into())
        }
    }
}

/// The directory of a process's group of cgroup v2 that was made for one run.
fn group_of(pid: i32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    own.contains("ringfence-").then_some(())?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let point = line.split(' ').nth(4)?;
    Some(Path::new(point).join(own.trim_end_matches("/still")))
}

fn group(daemon: &Daemon<'_>) -> Option<PathBuf> {
    daemon.family().iter().find_map(|p| group_of(p.pid))
}

fn act(daemon: &Daemon<'_>, name: &str, verb: &str) -> Value {
    daemon.curl(&["-X", "POST"], &format!("/v1/sandboxes/{name}/{verb}")).is(200).json()
}

fn begin(daemon: &Daemon<'_>, name: &str, script: &str) -> String {
    let exec = json!({ "shell": script, "background": true });
    let begun = daemon.post(&format!("/v1/sandboxes/{name}/exec"), &exec).is(202).json();
    begun["id"].as_str().unwrap().to_owned()
}

/// Whether nothing is added to a file for a while.
fn stands_still(file: &Path) -> bool {
    let size = || std::fs::metadata(file).map_or(0, |m| m.len());
    let before = size();
    std::thread::sleep(std::time::Duration::from_millis(400));
    size() == before
}

/// Against SIGSTOP: two that wake each other and all others, as fast as they can, and ever new processes.
const RESISTS: &str = "
count() { while :; do echo x >> counted; done; }
wakes() { while :; do kill -CONT -1; done; }
forks() { while :; do (:) & wait; done; }
count & wakes & wakes & forks & wait";

/// The control of them all: SIGSTOP alone is undone from inside.
#[test]
fn a_signal_from_inside_wakes_what_was_stopped() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        daemon.shell("box", "sleep 1000 & echo $! > pid").ok();
        let comm = |p: &Process| std::fs::read_to_string(format!("/proc/{}/comm", p.pid));
        let state = |p: &Process| {
            let text = std::fs::read_to_string(format!("/proc/{}/stat", p.pid)).unwrap();
            text.rsplit_once(") ").unwrap().1[..1].to_owned()
        };
        let sleeps = || daemon.family().into_iter().find(|p| comm(p).is_ok_and(|c| c == "sleep\n"));
        until("it sleeps", || sleeps().is_some());
        let sleeps = sleeps().unwrap();
        sleeps.signal(rustix::process::Signal::STOP);
        until("it is stopped", || state(&sleeps) == "T");
        daemon.shell("box", "kill -CONT $(cat pid)").ok();
        until("it goes on", || state(&sleeps) == "S");
    });
}

#[test]
fn what_resists_stands_still_all_the_same() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        for pids in KINDS {
            let daemon = Daemon::start(place);
            let Some(by) = sandbox(&daemon, place, "box", pids) else { continue };
            let counted = place.workspace().join("counted");
            let _ = std::fs::remove_file(&counted);
            begin(&daemon, "box", RESISTS);
            until("it counts", || !stands_still(&counted));
            // Either it is held, or it is said that it is not, and then it goes on.
            let mut frozen = daemon.curl(&["-X", "POST"], "/v1/sandboxes/box/freeze");
            for _ in 0..20 {
                if frozen.status == 200 {
                    break;
                }
                assert_eq!(frozen.is(503).reason(), "busy");
                assert_eq!(daemon.sandbox("box")["state"], "running");
                frozen = daemon.curl(&["-X", "POST"], "/v1/sandboxes/box/freeze");
            }
            if frozen.status == 200 {
                let told = frozen.json();
                assert_eq!((&told["state"], &told["frozen_by"]), (&json!("frozen"), &json!(by)));
                for _ in 0..3 {
                    assert!(stands_still(&counted), "{by}");
                }
                daemon.ringfence(&["show", "box"]).ok().says(&format!("held by {by}"));
                assert_eq!(act(&daemon, "box", "start")["state"], "running");
            } else {
                // The freezer has no such excuse.
                assert_eq!(by, "signals");
                println!("signals could not hold it, which it said");
            }
            assert!(daemon.sandbox("box")["frozen_by"].is_null());
            until("it counts again", || !stands_still(&counted));
            daemon.ringfence(&["remove", "box"]).ok();
        }
    });
}

/// A command's end, a stop, a removal: none of them has to wait until it goes on.
#[test]
fn out_of_a_frozen_sandbox_there_is_every_way() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        for pids in KINDS {
            let daemon = Daemon::start(place);
            let Some(by) = sandbox(&daemon, place, "box", pids) else { continue };
            let freeze = || assert_eq!(act(&daemon, "box", "freeze")["frozen_by"], json!(by));
            let ended = |exec: &str| {
                let path = format!("/v1/sandboxes/box/execs/{exec}");
                daemon.get(&path).is(200).json()["ended"]["reason"].clone()
            };
            // Killed where it stands.
            let one = begin(&daemon, "box", "sleep 1000");
            freeze();
            freeze();
            let exec = daemon.post("/v1/sandboxes/box/exec", &json!({ "argv": ["true"] })).is(409);
            assert_eq!(exec.reason(), "conflict");
            daemon.ringfence(&["execs", "kill", "box", &one]).ok();
            until("the killed one has ended", || ended(&one) == "killed");
            assert_eq!(daemon.sandbox("box")["state"], "frozen");
            act(&daemon, "box", "start");
            daemon.shell("box", "true").ok();
            // A timeout comes also while it is frozen.
            let exec = json!({ "argv": ["sleep", "1000"], "background": true, "timeout_ms": 1500 });
            let late = daemon.post("/v1/sandboxes/box/exec", &exec).is(202).json();
            freeze();
            until("its time is over", || ended(late["id"].as_str().unwrap()) == "timeout");
            // What is there is used again and again.
            act(&daemon, "box", "start");
            freeze();
            act(&daemon, "box", "start");
            daemon.shell("box", "true").ok();
            begin(&daemon, "box", "sleep 1000");
            freeze();
            let group = group(&daemon);
            let family = daemon.family();
            assert_eq!(daemon.ringfence(&["stop", "box"]).ok().out, "stopped\n");
            assert!(group.is_none_or(|group| !group.exists()), "{by}");
            assert_eq!(daemon.ringfence(&["start", "box"]).ok().out, "idle\n");
            assert!(daemon.sandbox("box")["frozen_by"].is_null());
            let sleeping = |p: &&Process| {
                std::fs::read_to_string(format!("/proc/{}/comm", p.pid))
                    .is_ok_and(|c| c == "sleep\n")
            };
            assert_eq!(family.iter().filter(|p| p.is_there()).filter(sleeping).count(), 0);
            begin(&daemon, "box", "sleep 1000");
            freeze();
            daemon.ringfence(&["remove", "box"]).ok();
            daemon.get("/v1/sandboxes/box").is(404);
        }
    });
}

/// What is frozen when the daemon is killed goes with it, group and all.
#[test]
fn a_killed_daemon_leaves_nothing_frozen() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        for pids in KINDS {
            let mut daemon = Daemon::start(place);
            let Some(by) = sandbox(&daemon, place, "box", pids) else { continue };
            begin(&daemon, "box", "sleep 1000 & sleep 1000");
            assert_eq!(act(&daemon, "box", "freeze")["frozen_by"], json!(by));
            let group = group(&daemon);
            let family = daemon.kill();
            until("what it had started is gone", || family.iter().all(|p| !p.is_there()));
            until("so is its group", || group.as_ref().is_none_or(|group| !group.exists()));
            daemon.start_again();
        }
    });
}
