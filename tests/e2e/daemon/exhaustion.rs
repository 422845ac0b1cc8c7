//! Whoever takes all that there is in one sandbox hits its limit; the daemon and the neighbours go on
//! meanwhile. And limits that are changed while a sandbox runs.

use serde_json::{Value, json};

use super::world::{Daemon, until};
use crate::harness::{Place, as_each_user, has};

fn patch(daemon: &Daemon<'_>, sandbox: &str, limits: &Value) -> super::world::Answer {
    let body = limits.to_string();
    daemon.curl(
        &["-X", "PATCH", "-H", "Content-Type: application/json", "-d", &body],
        &format!("/v1/sandboxes/{sandbox}/limits"),
    )
}

/// A sandbox with these limits, or why there is none here.
fn limited(daemon: &Daemon<'_>, place: &Place, name: &str, policy: &Value, layer: bool) -> bool {
    let made_of = json!({
        "name": name, "workspace": place.workspace(), "layer": layer, "policy": policy,
    });
    let made = daemon.post("/v1/sandboxes", &made_of);
    if made.status == 201 {
        return true;
    }
    println!("skipped: this host cannot hold {policy}: {}", made.body);
    false
}

/// Others are served while it goes on.
fn neighbours_go_on(daemon: &Daemon<'_>) {
    for _ in 0..5 {
        daemon.get("/v1/health").is(200);
        daemon.get("/v1/sandboxes").is(200);
        daemon.shell("calm", "echo here").ok().says("here");
        daemon.curl(&["-X", "PUT", "-d", "x"], "/v1/sandboxes/calm/files?path=calm").is(204);
    }
}

fn start(daemon: &Daemon<'_>, sandbox: &str, script: &str) -> String {
    let request = json!({ "shell": script, "background": true });
    let exec = daemon.post(&format!("/v1/sandboxes/{sandbox}/exec"), &request).is(202).json();
    format!("/v1/sandboxes/{sandbox}/execs/{}", exec["id"].as_str().unwrap())
}

#[test]
fn a_memory_hog_in_one_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        if !limited(&daemon, place, "hog", &json!({ "limits": { "memory": "48m" } }), false) {
            return;
        }
        daemon.create(&["--name", "calm"]);
        // A line that never ends.
        let exec = start(&daemon, "hog", "while :; do tail /dev/zero; echo ended $?; done");
        neighbours_go_on(&daemon);
        until("it hits its limit", || {
            // Killed as a whole, or again and again one at a time where the kernel is older.
            let kept = daemon.curl(&["-m", "1"], &format!("{exec}/stream?stdout_offset=0"));
            daemon.sandbox("hog")["reason"] == "oom" || kept.body.contains("ended 137")
        });
        neighbours_go_on(&daemon);
        daemon.ringfence(&["remove", "hog"]).ok();
    });
}

#[test]
fn a_disk_filler_in_one_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        if !limited(&daemon, place, "filler", &json!({ "layer": { "quota": "16m" } }), true) {
            return;
        }
        assert_eq!(daemon.sandbox("filler")["limits"]["disk"], 16 << 20);
        daemon.create(&["--name", "calm"]);
        let script = "i=0; while [ $i -lt 64 ]; do dd if=/dev/zero of=f$i bs=1M count=1 2>/dev/null; i=$((i+1)); sleep 0.05; done";
        start(&daemon, "filler", script);
        neighbours_go_on(&daemon);
        until("it hits its limit", || {
            let state = daemon.sandbox("filler");
            state["state"] == "failed" && state["reason"].as_str().unwrap().contains("quota")
        });
        neighbours_go_on(&daemon);
    });
}

#[test]
fn a_log_flood_in_one_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "flood"]);
        daemon.create(&["--name", "calm"]);
        let exec = start(&daemon, "flood", "head -c 400000000 /dev/zero");
        neighbours_go_on(&daemon);
        let mut bytes = 0;
        until("it has written more than is kept", || {
            bytes = daemon.get(&exec).is(200).json()["stdout_bytes"].as_u64().unwrap();
            bytes > 64 << 20
        });
        let status = format!("/proc/{}/status", daemon.process().pid);
        let status = std::fs::read_to_string(status).unwrap();
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 96 << 10, "{kib} KiB");
        daemon.post(&format!("{exec}/kill"), &json!({})).is(204);
        let kept = daemon.get(&format!("{exec}/stream?stdout_offset=0")).is(200);
        assert!(kept.body.contains("\"lost\""));
        // A mebibyte of nul bytes, six characters each.
        assert!(kept.body.len() < 8 << 20);
        neighbours_go_on(&daemon);
    });
}

/// Takes terminals and descriptors until there are no more, tells how many, and keeps them.
const DRAINER: &str = "import os, time\n\
    taken = []\n\
    try:\n\
    \x20while True: taken.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))\n\
    except OSError as e: print('terminals', len(taken), e.errno, flush=True)\n\
    for fd in taken[64:]: os.close(fd)\n\
    files = []\n\
    try:\n\
    \x20while True: files.append(os.open('/dev/null', os.O_RDONLY))\n\
    except OSError as e: print('files', len(files) + 64, e.errno, flush=True)\n\
    for fd in taken[:64]: os.close(fd)\n\
    taken = [os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY) for _ in range(60)]\n\
    print('holds', flush=True)\n\
    time.sleep(1000)\n";

/// Whoever takes all terminals and descriptors gets those of its sandbox: 128 terminals, and as many descriptors
/// as each of its processes may have. Neighbours and the daemon have theirs.
#[test]
fn a_drainer_of_terminals_and_descriptors_in_one_sandbox() {
    if !has("curl") || !has("python3") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        place.write("drainer.py", DRAINER);
        if !limited(&daemon, place, "drain", &json!({ "limits": { "open_files": 300 } }), false) {
            return;
        }
        daemon.create(&["--name", "calm"]);
        let exec = start(&daemon, "drain", "exec /usr/bin/python3 drainer.py");
        let mut said = String::new();
        until("it has all that it gets", || {
            let kept = daemon.curl(&["-m", "1"], &format!("{exec}/stream?stdout_offset=0"));
            said = kept.body;
            said.contains("holds") || said.contains("\"ended\"")
        });
        if !said.contains("terminals") {
            println!("skipped: python3 cannot be run inside: {said}");
            return;
        }
        // ENOSPC and EMFILE; three are the standard ones.
        assert!(said.contains("terminals 128 28"), "{said}");
        assert!(said.contains("files 297 24"), "{said}");
        neighbours_go_on(&daemon);
        let terminal = json!({
            "shell": "stty size; tty", "background": true, "terminal": { "rows": 11, "columns": 22 },
        });
        let exec = daemon.post("/v1/sandboxes/calm/exec", &terminal).is(202).json();
        let exec = format!("/v1/sandboxes/calm/execs/{}", exec["id"].as_str().unwrap());
        let shown = daemon.get(&format!("{exec}/stream?stdout_offset=0")).is(200);
        assert!(shown.body.contains("11 22") && shown.body.contains("/dev/pts/"), "{shown:?}");
        // In the drained one too there is room for another process's files.
        daemon.shell("drain", "cat /proc/self/limits >/dev/null; echo here").ok().says("here");
    });
}

/// What is private has a size, and counts as the sandbox's memory: whoever fills it fills it for itself.
#[test]
fn a_filler_of_private_places_in_one_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let policy = json!({ "files": { "tmp_size": "8m" }, "limits": { "memory": "64m" } });
        if !limited(&daemon, place, "filler", &policy, false) {
            return;
        }
        daemon.create(&["--name", "calm"]);
        let fill = |directory: &str, mebibytes: u32| {
            format!(
                "dd if=/dev/zero of={directory}/x bs=1M count={mebibytes} 2>/dev/null && echo filled"
            )
        };
        for directory in ["/tmp", "$HOME"] {
            let script = format!("{}; stat -c %s {directory}/x", fill(directory, 16));
            assert_eq!(daemon.shell("filler", &script).out, "8388608\n", "{directory}");
            daemon.shell("filler", &format!("rm {directory}/x")).ok();
        }
        let exec = start(&daemon, "filler", &format!("{}; echo ended $?", fill("/dev/shm", 512)));
        neighbours_go_on(&daemon);
        until("it hits its limit", || {
            let kept = daemon.curl(&["-m", "1"], &format!("{exec}/stream?stdout_offset=0"));
            assert!(!kept.body.contains("\"data\":\"filled"), "{kept:?}");
            daemon.sandbox("filler")["reason"] == "oom" || kept.body.contains("ended 137")
        });
        neighbours_go_on(&daemon);
        // The control: less than that is there for whoever asks.
        for directory in ["/tmp", "$HOME", "/dev/shm"] {
            assert_eq!(
                daemon.shell("calm", &fill(directory, 16)).ok().out,
                "filled\n",
                "{directory}"
            );
        }
    });
}

/// Each limit is changed where it can be, is in force then, and is refused by its name where it cannot be.
#[test]
fn limits_are_changed_while_a_sandbox_runs() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "plain"]);
        for (limits, name) in [
            (json!({ "memory": 64 << 20 }), "memory"),
            (json!({ "pids": 10 }), "pids"),
            (json!({ "cpu_percent": 50 }), "cpu"),
            (json!({ "open_files": 100 }), "open_files"),
        ] {
            let refused = patch(&daemon, "plain", &limits).is(409).json();
            let message = refused["error"]["message"].as_str().unwrap();
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(patch(&daemon, "plain", &json!({ "disk": 5 })).is(403).reason(), "refused");
        assert_eq!(
            patch(&daemon, "plain", &json!({ "cpu_shares": 5 })).is(403).reason(),
            "refused"
        );
        for wrong in [json!({}), json!({ "pids": 0 }), json!({ "memory": -1 }), json!({ "x": 1 })] {
            assert_eq!(patch(&daemon, "plain", &wrong).is(400).reason(), "invalid");
        }
        assert_eq!(patch(&daemon, "none", &json!({ "pids": 5 })).is(404).reason(), "not-found");
        // The time of commands, at once.
        daemon.ringfence(&["limits", "plain", "--timeout", "200ms"]).ok().says("200");
        let slow = daemon.post("/v1/sandboxes/plain/exec", &json!({ "argv": ["sleep", "1000"] }));
        assert_eq!(slow.is(200).json()["ended"]["reason"], "timeout");
        // What the processes were given: while it is stopped.
        daemon.ringfence(&["stop", "plain"]).ok();
        patch(&daemon, "plain", &json!({ "open_files": 200 })).is(200);
        daemon.ringfence(&["start", "plain"]).ok();
        assert_eq!(daemon.shell("plain", "ulimit -n").ok().out.trim(), "200");
        let policy = json!({ "limits": { "pids": 64, "memory": "128m", "cpu": 2 } });
        if !limited(&daemon, place, "box", &policy, false) {
            return;
        }
        let forks = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done 2>&1; echo all";
        daemon.shell("box", forks).ok().says("all");
        let changed = patch(&daemon, "box", &json!({ "pids": 8 }));
        if changed.status == 409 {
            println!("skipped: no control group holds processes here: {}", changed.body);
            return;
        }
        let limits = changed.is(200).json()["limits"].clone();
        assert_eq!((&limits["pids"], &limits["memory"]), (&json!(8), &json!(128 << 20)));
        until("the others have ended", || {
            let ran = daemon
                .shell("box", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; echo all");
            !ran.out.contains("all")
        });
        patch(&daemon, "box", &json!({ "pids": 64, "memory": 64 << 20, "cpu_percent": 50 }))
            .is(200);
        until("there is room again", || daemon.shell("box", forks).out.contains("all"));
        daemon.ringfence(&["limits", "box", "--memory", "32m"]).ok().says("33554432");
        let exec = start(&daemon, "box", "tail /dev/zero");
        until("it hits the new limit", || {
            daemon.sandbox("box")["reason"] == "oom"
                || daemon.get(&exec).json().get("ended").is_some()
        });
    });
}
