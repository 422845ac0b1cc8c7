//! Verbs of the command line for what the interface can do, as a person uses them.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use super::world::{Daemon, until};
use crate::harness::{Ran, as_each_user};

/// Runs a verb with something on its standard input.
fn fed(daemon: &Daemon<'_>, args: &[&str], input: &[u8]) -> Ran {
    let mut command = daemon.command(args);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        signal: None,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn files_of_a_sandbox_one_by_one() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let files = |verb: &str, rest: &[&str]| {
            let mut args = vec!["files", verb, "box"];
            args.extend(rest);
            daemon.ringfence(&args)
        };
        files("mkdir", &["d"]).ok();
        fed(&daemon, &["files", "write", "box", "d/x", "--durable"], b"0123456789").ok();
        assert_eq!(files("read", &["d/x"]).ok().out, "0123456789");
        assert_eq!(files("read", &["d/x", "--offset", "3", "--length", "4"]).ok().out, "3456");
        assert_eq!(files("read", &["d/x", "--offset", "8"]).ok().out, "89");
        assert_eq!(daemon.shell("box", "cat d/x").ok().out, "0123456789");
        files("chmod", &["750", "d/x"]).ok();
        let stat: Value =
            serde_json::from_str(&files("stat", &["d/x", "--json"]).ok().out).unwrap();
        assert_eq!((&stat["size"], &stat["mode"]), (&10.into(), &0o750.into()));
        files("list", &["d"]).ok().says("0750");
        let list: Value = serde_json::from_str(&files("list", &["--json"]).ok().out).unwrap();
        assert!(list["entries"].as_array().unwrap().iter().any(|e| e["name"] == "d"), "{list}");
        // To this machine and back.
        let local = place.outside().join("copy");
        let shown = local.to_str().unwrap();
        files("download", &["d/x", shown]).ok();
        assert_eq!(std::fs::read_to_string(&local).unwrap(), "0123456789");
        daemon.ringfence(&["files", "upload", "box", shown, "d/y"]).ok();
        assert_eq!(daemon.shell("box", "cat d/y").ok().out, "0123456789");
        // More than is read at once.
        daemon.shell("box", "head -c 40000000 /dev/zero > large; echo end >> large").ok();
        files("download", &["large", shown]).ok();
        assert_eq!(std::fs::metadata(&local).unwrap().len(), 40_000_004);
        files("remove", &["d/y"]).ok();
        let gone = files("read", &["d/y"]);
        assert_eq!(gone.code, Some(125), "{gone:?}");
        // What is wrong is said, and nothing is left of it.
        let failed = files("download", &["d/none", shown]);
        assert_eq!(failed.code, Some(125), "{failed:?}");
        assert_eq!(std::fs::read_dir(place.outside()).unwrap().count(), 1);
    });
}

#[test]
fn a_watch_is_followed_until_the_sandbox_ends() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let out = place.outside().join("told");
        let file = std::fs::File::create(&out).unwrap();
        let mut command = daemon.command(&["files", "watch", "box", "--recursive", "--json"]);
        let mut child = command.stdout(file).spawn().unwrap();
        let told = || std::fs::read_to_string(&out).unwrap();
        until("it is ready", || told().contains("\"ready\""));
        daemon.shell("box", "mkdir d; echo 1 > d/x").ok();
        until("it is told", || told().contains("\"d/x\""));
        daemon.ringfence(&["stop", "box"]).ok();
        assert!(child.wait().unwrap().success());
        let last = told().lines().last().unwrap().to_owned();
        let last: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&last["event"], &last["data"]["reason"]), (&"ended".into(), &"sandbox".into()));
    });
}

#[test]
fn commands_are_listed_followed_and_killed() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box", "--ttl", "1h", "--label", "team=web"]);
        let begin = |script: &str| {
            let args = ["exec", "box", "--background", "--", "/bin/sh", "-c", script];
            daemon.ringfence(&args).ok().out.trim().to_owned()
        };
        let id = begin("echo one; echo two >&2; while ! [ -e go ]; do sleep 0.05; done; exit 3");
        daemon.ringfence(&["execs", "list", "box"]).ok().says(&id);
        daemon.ringfence(&["execs", "show", "box", &id]).ok().says("runs");
        daemon.shell("box", "touch go").ok();
        let logs = daemon.ringfence(&["execs", "logs", "box", &id]);
        assert_eq!((logs.code, logs.out.as_str()), (Some(3), "one\n"), "{logs:?}");
        assert!(logs.err.contains("two"), "{logs:?}");
        let rest = daemon.ringfence(&["execs", "logs", "box", &id, "--stdout", "2"]);
        assert_eq!(rest.out, "e\n");
        let id = begin("sleep 1000");
        daemon.ringfence(&["execs", "kill", "box", &id, "--signal", "15"]).ok();
        let logs = daemon.ringfence(&["execs", "logs", "box", &id]);
        assert_eq!(logs.code, Some(128 + 15), "{logs:?}");
        // Its life.
        let show = daemon.ringfence(&["show", "box"]).ok();
        assert!(show.out.contains("idle") && show.out.contains("team=web"), "{show:?}");
        let expires = || {
            let shown = daemon.ringfence(&["show", "box", "--json"]).ok().out;
            serde_json::from_str::<Value>(&shown).unwrap()["expires_ms"].as_u64().unwrap()
        };
        let before = expires();
        daemon.ringfence(&["extend", "box", "10m"]).ok();
        assert_eq!(expires() - before, 600_000);
        assert_eq!(daemon.ringfence(&["freeze", "box"]).ok().out.trim(), "frozen");
        assert_eq!(daemon.ringfence(&["start", "box"]).ok().out.trim(), "idle");
    });
}

#[test]
fn files_of_a_codebase_by_the_same_verbs() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.ringfence(&["codebase", "create", "app"]).ok();
        let files = |verb: &str, rest: &[&str]| {
            let mut args = vec!["files", verb, "codebase:app"];
            args.extend(rest);
            daemon.ringfence(&args)
        };
        files("mkdir", &["d"]).ok();
        fed(&daemon, &["files", "write", "codebase:app", "d/x"], b"text").ok();
        files("move", &["d/x", "d/y"]).ok();
        assert_eq!(files("read", &["d/y"]).ok().out, "text");
        files("stat", &["d/y"]).ok().says("file");
        files("list", &["d"]).ok().says("y");
        let archive = daemon.command(&["files", "pack", "codebase:app"]).output().unwrap().stdout;
        files("remove", &["d/y"]).ok();
        assert_eq!(files("read", &["d/y"]).code, Some(125));
        fed(&daemon, &["files", "unpack", "codebase:app"], &archive).ok();
        assert_eq!(files("read", &["d/y"]).ok().out, "text");
        // Only a sandbox has a view to be searched.
        assert_eq!(files("search", &["d"]).code, Some(125));
    });
}
