//! Commands in a sandbox that stays.

use std::process::{Command, Stdio};

use serde_json::json;

use super::world::{Daemon, environment, room, until};
use crate::harness::{Ran, as_each_user, has};

#[test]
fn create_exec_remove() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box", "--label", "a=b"]);
        assert!(id.starts_with("sb_") && id.len() == 35, "{id}");
        daemon.shell("box", "echo kept > file; exit 3").failed_with(3);
        let ran = daemon.shell(&id, "cat file; pwd").ok();
        assert_eq!(ran.out, format!("kept\n{}\n", place.workspace().display()));
        let listed = daemon.ringfence(&["list", "--json"]).ok();
        let listed: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
        assert_eq!(listed[0]["id"], id.as_str());
        assert_eq!(listed[0]["labels"], json!({ "a": "b" }));
        assert_eq!(listed[0]["state"], "idle");
        daemon.ringfence(&["create", "--name", "box"]).failed_with(125).says("already");
        daemon.ringfence(&["remove", "box"]).ok();
        assert_eq!(daemon.ringfence(&["list", "--json"]).ok().out.trim(), "[]");
        daemon.ringfence(&["exec", "box", "--", "true"]).failed_with(125).says("no such sandbox");
        assert_eq!(std::fs::read_to_string(place.workspace().join("file")).unwrap(), "kept\n");
    });
}

#[test]
fn streams_are_separate_and_exact() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let noise: Vec<u8> =
            (0..700_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        place.write("noise", &noise);
        let script = "cat noise & head -c 300000 noise >&2; wait; printf end";
        let mut command = daemon.command(&["exec", "box", "--", "/bin/sh", "-c", script]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, [&noise[..], b"end"].concat());
        assert_eq!(output.stderr, &noise[..300_000]);
        // A process that is left behind and holds the pipe does not hold up the answer.
        let ran = daemon.shell("box", "sleep 1000 & echo done").ok();
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("done\n", ""));
    });
}

#[test]
fn input_environment_directory_and_signal() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box", "--env", "A=1", "--env", "B=1"]);
        std::fs::create_dir(place.workspace().join("sub")).unwrap();
        place.own(&place.workspace().join("sub"));
        let script = "cat; echo $A$B; pwd; kill -TERM $$";
        let args = ["exec", "box", "--env", "B=2", "--cwd", "sub", "--", "/bin/sh", "-c", script];
        let mut child =
            daemon.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"in\xff\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let sub = format!("{}/sub", place.workspace().display());
        assert_eq!(output.stdout, [b"in\xff\n12\n", sub.as_bytes(), b"\n"].concat());
        assert_eq!(output.status.code(), Some(128 + 15));
        // Without input there is its end, and not a terminal or a pipe that nobody writes to.
        assert_eq!(daemon.shell("box", "cat").ok().out, "");
        daemon
            .ringfence(&["exec", "box", "--cwd", "/nonexistent", "--", "true"])
            .failed_with(125)
            .says("working directory");
        daemon.ringfence(&["exec", "box", "--", "nonexistent"]).failed_with(125).says("not found");
    });
}

/// What a shell without job control starts behind `&` ignores these signals, and so does what that starts.
#[test]
fn a_command_can_be_interrupted_however_the_daemon_was_started() {
    as_each_user(|place| {
        let script = "kill -INT $$; kill -QUIT $$; kill -HUP $$; echo went on";
        let deaf = |command: &mut Command| {
            let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            let mut shell = place.command("/bin/sh");
            shell.args(["-c", "trap '' INT QUIT HUP; exec \"$@\"", "sh"]);
            shell.arg(command.get_program()).args(args);
            shell.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
            shell
        };
        let mut bare = place.command("/bin/sh");
        bare.args(["-c", script]);
        assert_eq!(Ran::of(&mut deaf(&mut bare)).ok().out, "went on\n", "the control");
        let mut kept = place.ringfence(["run", "--", "/bin/sh", "-c", script]);
        assert_eq!(
            Ran::of(&mut deaf(&mut kept)).ok().out,
            "went on\n",
            "a run keeps what nohup says"
        );

        room(place);
        let mut daemon = place.ringfence(["daemon"]);
        environment(place, &mut daemon);
        let daemon = Daemon::of(place, deaf(&mut daemon).stdout(Stdio::null()).spawn().unwrap());
        daemon.create(&["--name", "box"]);
        daemon.shell("box", script).failed_with(128 + 2);
        daemon.shell("box", "kill -QUIT $$").failed_with(128 + 3);
        daemon.shell("box", "kill -HUP $$").failed_with(128 + 1);
        let session = daemon.ringfence(&["session", "create", "box"]).ok().out;
        let line = format!("sh -c '{script}'");
        daemon.ringfence(&["session", "exec", "box", session.trim(), "--", &line]).failed_with(130);
    });
}

#[test]
fn a_timeout_ends_what_the_command_started() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let script = "(exec setsid sleep 1000) & echo $!; (sleep 1000; true) & echo $!; sleep 1000";
        let args = ["exec", "box", "--timeout", "1s", "--json", "--", "/bin/sh", "-c", script];
        let ran = daemon.ringfence(&args).failed_with(128 + 9);
        let result: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(result["ended"]["reason"], "timeout");
        let pids = result["stdout"]["data"].as_str().unwrap().replace('\n', " ");
        assert_eq!(pids.split_whitespace().count(), 2, "{result}");
        let alive = format!("for p in {pids}; do kill -0 $p && echo $p; done");
        until("both are gone", || daemon.shell("box", &alive).out.is_empty());
        // The control: what was not killed is there.
        let pid = daemon.shell("box", "sleep 1000 & echo $!").ok().out;
        let alive = format!("kill -0 {pid}");
        daemon.shell("box", alive.trim()).ok();
    });
}

/// The events of a stream: names and bytes by stream, in order.
fn read(body: &str, stream: &str) -> (Option<u64>, String) {
    let mut first = None;
    let mut text = String::new();
    for event in body.split("\n\n") {
        let Some(data) = event.strip_prefix(&format!("event: {stream}\ndata: ")) else { continue };
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        first = first.or(data["offset"].as_u64());
        text.push_str(data["data"].as_str().unwrap());
        assert_eq!(data.get("lost"), None, "{data}");
    }
    (first, text)
}

#[test]
fn a_background_command_is_read_again_from_where_one_was() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let script = "echo one; while ! [ -e go ]; do sleep 0.05; done; echo two; echo err >&2";
        let exec = format!("/v1/sandboxes/{id}/exec");
        let started = daemon.post(&exec, &json!({ "shell": script, "background": true })).is(202);
        let exec = started.json()["id"].as_str().unwrap().to_owned();
        let at = format!("/v1/sandboxes/{id}/execs/{exec}");
        until("the first line", || daemon.get(&at).json()["stdout_bytes"] == 4);
        assert_eq!(daemon.sandbox(&id)["state"], "running");
        // A follower that goes away in the middle.
        let cut = daemon.curl(&["--max-time", "1"], &format!("{at}/stream")).body;
        assert_eq!(read(&cut, "stdout"), (Some(0), "one\n".into()));
        place.write("go", "");
        let rest = daemon.get(&format!("{at}/stream?stdout_offset=4")).is(200).body;
        assert_eq!(read(&rest, "stdout"), (Some(4), "two\n".into()));
        assert_eq!(read(&rest, "stderr"), (Some(0), "err\n".into()));
        // After its end too, all of it, once.
        let all = daemon.get(&format!("{at}/stream")).is(200).body;
        assert_eq!(read(&all, "stdout").1, "one\ntwo\n");
        assert!(all.contains("event: ended"), "{all}");
        let listed = daemon.get(&format!("/v1/sandboxes/{id}/execs")).json();
        assert_eq!(listed["execs"][0]["ended"]["exit_code"], 0, "{listed}");
    });
}

#[test]
fn a_command_waits_for_a_slow_reader() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        const BYTES: u64 = 40 << 20;
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let exec = format!("http://localhost/v1/sandboxes/{id}/exec/stream");
        let body = json!({ "shell": format!("head -c {BYTES} /dev/zero | tr '\\0' x") });
        // What stops reads nothing.
        let mut curl = place.command("curl");
        curl.args(["-sS", "-N", "--unix-socket"]).arg(daemon.socket());
        curl.args(["-H", "Content-Type: application/json", "-d", &body.to_string(), &exec]);
        let mut curl = curl.stdout(Stdio::piped()).spawn().unwrap();
        let list = format!("/v1/sandboxes/{id}/execs");
        let bytes = || daemon.get(&list).json()["execs"][0]["stdout_bytes"].as_u64();
        let mut before = None;
        until("the command stands still", || {
            let now = bytes();
            let same = now.is_some_and(|n| n > 0) && now == before;
            before = now;
            std::thread::sleep(std::time::Duration::from_millis(200));
            same
        });
        assert!(before.unwrap() < BYTES / 4, "{before:?}");
        daemon.shell(&id, "true").ok();
        // The rest comes, whole.
        let mut text = String::new();
        std::io::Read::read_to_string(curl.stdout.as_mut().unwrap(), &mut text).unwrap();
        assert!(curl.wait().unwrap().success());
        assert_eq!(read(&text, "stdout").1.len() as u64, BYTES);
    });
}

#[test]
fn a_key_runs_a_request_once() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let post = |path: &str, key: &str, body: &serde_json::Value| {
            let key = format!("Idempotency-Key: {key}");
            let body = body.to_string();
            let json = "Content-Type: application/json";
            daemon.curl(&["-H", json, "-H", &key, "-d", &body], path)
        };
        let made_of = json!({ "workspace": place.workspace() });
        let id = post("/v1/sandboxes", "k1", &made_of).is(201).json()["id"].clone();
        assert_eq!(post("/v1/sandboxes", "k1", &made_of).is(201).json()["id"], id);
        assert_ne!(post("/v1/sandboxes", "k2", &made_of).is(201).json()["id"], id);
        let exec = format!("/v1/sandboxes/{}/exec", id.as_str().unwrap());
        let once = json!({ "shell": "echo x >> count; cat count" });
        for _ in 0..3 {
            assert_eq!(post(&exec, "k", &once).is(200).json()["stdout"]["data"], "x\n");
        }
        let other = post(&exec, "k", &json!({ "shell": "true" })).is(409);
        assert_eq!(other.reason(), "conflict");
        assert_eq!(std::fs::read_to_string(place.workspace().join("count")).unwrap(), "x\n");
    });
}
