//! What happens is told and written down: who ran what where, when, and how it ended.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::world::{Daemon, until};
use crate::harness::{as_each_user, has};

/// The audit log, by the command line.
pub fn audit(daemon: &Daemon<'_>, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["audit", "--json", "--limit", "100000"];
    all.extend(args);
    let out = daemon.ringfence(&all).ok().out;
    serde_json::from_str::<Vec<Value>>(&out).unwrap()
}

fn texts(events: &[Value], field: &str) -> Vec<String> {
    events.iter().map(|e| e[field].as_str().unwrap_or("-").to_owned()).collect()
}

/// Somebody who follows, from some event on.
struct Follower {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Follower {
    fn start(daemon: &Daemon<'_>, args: &[&str], path: &str) -> Self {
        let mut curl = daemon.place.command("curl");
        curl.args(["-sS", "-N", "--unix-socket"]).arg(daemon.socket()).args(args);
        curl.arg(format!("http://localhost{path}")).stdout(Stdio::piped());
        let mut child = curl.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut follower = Self { child, lines };
        // What is asked for from here on comes.
        assert_eq!(follower.lines.next().unwrap().unwrap(), ": nothing");
        follower
    }

    fn next(&mut self) -> Value {
        let mut id = String::new();
        loop {
            let line = self.lines.next().unwrap().unwrap();
            if let Some(said) = line.strip_prefix("id: ") {
                said.clone_into(&mut id);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(event["id"].to_string(), id);
                return event;
            }
        }
    }

    fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut seen = Vec::new();
        loop {
            let event = self.next();
            let over = event["kind"] == kind;
            seen.push(event);
            if over {
                return seen;
            }
        }
    }
}

#[test]
fn who_ran_what_where_when_and_how_it_ended() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box", "--env", "DEPLOY_TOKEN=correct-horse-battery"]);
        daemon.shell("box", "exit 3").failed_with(3);
        let request =
            json!({ "argv": ["/bin/sh", "-c", "echo correct-horse-battery; kill -9 $$"] });
        daemon.post("/v1/sandboxes/box/exec", &request).is(200);
        let slow = json!({ "argv": ["sleep", "1000"], "timeout_ms": 50 });
        daemon.post("/v1/sandboxes/box/exec", &slow).is(200);
        daemon.curl(&["-X", "PUT", "-d", "x"], "/v1/sandboxes/box/files?path=a").is(204);
        daemon.curl(&["-X", "PUT", "-d", "x"], "/v1/sandboxes/box/files?path=/etc/a").is(403);
        let session = daemon.ringfence(&["session", "create", "box"]).ok().out;
        daemon.ringfence(&["session", "exec", "box", session.trim(), "--", "false"]).failed_with(1);
        daemon.ringfence(&["session", "remove", "box", session.trim()]).ok();
        daemon.ringfence(&["codebase", "create", "app"]).ok();
        daemon.post("/v1/codebases", &json!({ "name": "lib" })).is(201);
        daemon.ringfence(&["stop", "box"]).ok();
        daemon.ringfence(&["remove", "box"]).ok();
        let all = audit(&daemon, &[]);
        let kinds: Vec<(String, String)> =
            texts(&all, "kind").into_iter().zip(texts(&all, "state")).collect();
        let kinds: Vec<(&str, &str)> =
            kinds.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(
            kinds,
            [
                ("sandbox.state", "idle"),
                ("sandbox.created", "-"),
                ("exec.started", "-"),
                ("exec.ended", "-"),
                ("exec.started", "-"),
                ("exec.ended", "-"),
                ("exec.started", "-"),
                ("exec.ended", "-"),
                ("file.changed", "-"),
                ("refused", "-"),
                ("session.started", "-"),
                ("exec.started", "-"),
                ("exec.ended", "-"),
                ("session.ended", "-"),
                ("codebase.changed", "-"),
                ("sandbox.state", "stopped"),
                ("sandbox.state", "destroyed"),
                ("sandbox.removed", "-"),
            ],
            "{all:#?}"
        );
        // Who, where, by which way.
        let ids = place.ids();
        for event in &all {
            assert_eq!(event["owner"], ids.0.to_string(), "{event}");
            assert_eq!(event["interface"], "api", "{event}");
            assert_eq!(event["uid"], ids.0, "{event}");
            assert!(event["pid"].as_i64().unwrap() > 1, "{event}");
            if event["kind"] != "codebase.changed" {
                assert_eq!(event["sandbox"], id.as_str(), "{event}");
                assert_eq!(event["name"], "box", "{event}");
            }
        }
        let ended: Vec<&Value> = all.iter().filter(|e| e["kind"] == "exec.ended").collect();
        assert_eq!(ended[0]["argv"], json!(["/bin/sh", "-c", "exit 3"]));
        assert_eq!((&ended[0]["exit_code"], &ended[0]["reason"]), (&json!(3), &json!("exit")));
        assert!(ended[0]["duration_us"].as_u64().unwrap() > 0);
        assert_eq!((&ended[1]["signal"], &ended[1]["reason"]), (&json!(9), &json!("signal")));
        assert_eq!(ended[2]["reason"], "timeout");
        let file = all.iter().find(|e| e["kind"] == "file.changed").unwrap();
        assert_eq!((&file["action"], &file["subject"]), (&json!("write"), &json!("a")));
        let refused = all.iter().find(|e| e["kind"] == "refused").unwrap();
        assert_eq!((&refused["action"], &refused["reason"]), (&json!("write"), &json!("refused")));
        // No secret, in the answers or on the disk.
        let state = place.home().join("state/daemon");
        for name in ["audit.db", "audit.db-wal"] {
            let path = state.join(name);
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(13).any(|w| w == b"correct-horse"), "{name}");
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &std::fs::metadata(&state).unwrap().permissions(),
            );
            assert_eq!(mode & 0o077, 0);
        }
        assert_eq!(ended[1]["argv"][2], "echo ***; kill -9 $$");
        // Filters and pages.
        assert_eq!(audit(&daemon, &["--kind", "exec.ended"]).len(), 4);
        assert_eq!(audit(&daemon, &["--sandbox", &id, "--kind", "exec."]).len(), 8);
        assert!(audit(&daemon, &["--sandbox", "none"]).is_empty());
        let page = daemon.get("/v1/audit?limit=5").is(200).json();
        assert_eq!(page["events"].as_array().unwrap().len(), 5);
        let next = page["next"].to_string();
        let rest = daemon.get(&format!("/v1/audit?limit=1000&after={next}")).is(200).json();
        assert_eq!(rest["events"].as_array().unwrap().len(), all.len() - 5);
        assert!(rest.get("next").is_none());
        assert_eq!(daemon.get("/v1/audit?limit=0").is(400).reason(), "invalid");
        assert_eq!(daemon.get("/v1/audit?color=red").is(400).reason(), "invalid");
        let text = daemon.ringfence(&["audit", "--kind", "exec.ended"]).ok().out;
        assert!(text.lines().next().unwrap().contains("box"), "{text}");
        assert!(text.contains("exit 3") && text.contains("signal 9"), "{text}");
    });
}

#[test]
fn events_come_as_they_happen_and_who_was_away_reads_on() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "other"]);
        let mut all = Follower::start(&daemon, &[], "/v1/events");
        let id = daemon.create(&["--name", "box"]);
        let mut one = Follower::start(&daemon, &[], "/v1/events?sandbox=box");
        daemon.shell("other", "true").ok();
        daemon.shell("box", "true").ok();
        daemon.ringfence(&["remove", "box"]).ok();
        let seen = all.until("sandbox.removed");
        let of_one = one.until("sandbox.removed");
        assert_eq!(
            texts(&of_one, "kind"),
            [
                "sandbox.state",
                "exec.started",
                "sandbox.state",
                "exec.ended",
                "sandbox.state",
                "sandbox.removed"
            ]
        );
        assert_eq!(texts(&of_one, "state")[..3], ["running", "-", "idle"]);
        assert!(of_one.iter().all(|e| e["sandbox"] == id.as_str()));
        let foreign = seen.iter().filter(|e| e["name"] == "other").count();
        assert!(foreign >= 2, "{seen:#?}");
        // From any event on, the same.
        for at in [0, 3, seen.len() - 2] {
            let header = format!("Last-Event-ID: {}", seen[at]["id"]);
            let mut again = Follower::start(&daemon, &["-H", &header], "/v1/events");
            assert_eq!(again.until("sandbox.removed"), seen[at + 1..]);
        }
        let bad = daemon.curl(&["-H", "Last-Event-ID: x"], "/v1/events");
        assert_eq!(bad.is(400).reason(), "invalid");
        // By the command line.
        let before = (seen[0]["id"].as_u64().unwrap() - 1).to_string();
        let args = ["events", "--json", "--after", &before, "--count", "2", "--kind", "exec."];
        let out = daemon.ringfence(&args).ok().out;
        assert_eq!(out.lines().count(), 2, "{out}");
    });
}

/// What a kill of the daemon loses of the record, and what not.
#[test]
fn what_was_acknowledged_is_in_the_record_after_a_kill() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let mut daemon = Daemon::start(place);
        for round in 0..5 {
            let id = daemon.create(&[]);
            daemon.kill();
            daemon.start_again();
            let of = audit(&daemon, &["--sandbox", &id, "--kind", "sandbox.created"]);
            assert_eq!(of.len(), 1, "round {round}");
            let id = daemon.create(&[]);
            daemon.ringfence(&["remove", &id]).ok();
            daemon.kill();
            daemon.start_again();
            let of = audit(&daemon, &["--sandbox", &id, "--kind", "sandbox.removed"]);
            assert_eq!(of.len(), 1, "round {round}");
        }
        // Of all else, at most what happened just before: what an answer about the record has shown is there.
        let id = daemon.create(&[]);
        daemon.shell(&id, "true").ok();
        let before = audit(&daemon, &[]);
        daemon.shell(&id, "false").failed_with(1);
        daemon.kill();
        daemon.start_again();
        let after = audit(&daemon, &[]);
        assert_eq!(after[..before.len()], before);
        // Ids go on: who follows misses nothing that is new.
        daemon.create(&["--name", "last"]);
        let all = audit(&daemon, &[]);
        let ids: Vec<u64> = all.iter().map(|e| e["id"].as_u64().unwrap()).collect();
        assert!(ids.windows(2).all(|w| w[0] < w[1]));
    });
}

/// A command inside that makes the record long: it stays within its bounds and says what it left out, and
/// nobody waits for it.
#[test]
fn a_long_command_is_recorded_in_short() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let long: Vec<String> = (0..200).map(|_| "x".repeat(500)).collect();
        let argv = [vec!["true".to_owned()], long].concat();
        let request = json!({ "argv": argv });
        daemon.post("/v1/sandboxes/box/exec", &request).is(200);
        let seen = audit(&daemon, &["--kind", "exec.ended"]);
        assert!(seen[0].to_string().len() < 6000);
        assert!(
            seen[0]["argv"]
                .as_array()
                .unwrap()
                .last()
                .unwrap()
                .as_str()
                .unwrap()
                .ends_with("more]")
        );
    });
}

/// Refusals at the door: each kind is recorded, a flood of one is one record.
#[test]
fn who_was_refused_at_the_door_is_recorded() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let port = super::attacks::free_port();
        let daemon = Daemon::listening(place, &[format!("127.0.0.1:{port}")]);
        for _ in 0..20 {
            let mut command = place.command("curl");
            command.arg(format!("http://127.0.0.1:{port}/v1/sandboxes"));
            super::world::answer(&mut command).is(401);
        }
        daemon.curl(&["-H", "Origin: http://evil.example"], "/v1/health").is(403);
        let mut refused = Vec::new();
        until("both are there", || {
            refused = audit(&daemon, &["--kind", "refused"]);
            texts(&refused, "reason").contains(&"forbidden".to_owned())
        });
        assert!(refused.len() < 20, "{refused:#?}");
        assert_eq!(refused[0]["reason"], "unauthorized");
        assert!(refused[0].get("uid").is_none());
        let page = refused.iter().find(|e| e["reason"] == "forbidden").unwrap();
        assert_eq!(page["uid"], place.ids().0);
    });
}
