//! What the daemon tells of itself and of what its sandboxes use.

use serde_json::{Value, json};

use super::terminal::in_a_terminal;
use super::world::{Daemon, until};
use crate::harness::{as_each_user, has};
use crate::terminal::{CTRL_C, Shell};

/// The value of a series, by its name with its labels.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
    let found = found.unwrap_or_else(|| panic!("no {series} in:\n{text}"));
    found.parse().unwrap()
}

fn metrics(daemon: &Daemon<'_>) -> String {
    daemon.get("/metrics").is(200).body
}

/// The names of all series, without their values.
fn series(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    let mut names: Vec<_> = lines.map(|l| l.rsplit_once(' ').unwrap().0.to_owned()).collect();
    names.sort();
    names
}

#[test]
fn metrics_count_what_was_done() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box"]);
        let before = metrics(&daemon);
        assert!(before.ends_with("# EOF\n"), "{before}");
        for code in [0, 0, 3] {
            daemon.shell("box", &format!("exit {code}"));
        }
        daemon.shell("box", "kill -9 $$");
        let file = format!("/v1/sandboxes/{id}/files?path=note");
        daemon.curl(&["-X", "PUT", "-d", "hello"], &file).is(204);
        daemon.get(&file).is(200);
        daemon.get("/v1/sandboxes/none").is(404);
        let after = metrics(&daemon);
        let more = |name: &str| {
            let was = before.lines().any(|l| l.starts_with(&format!("{name} ")));
            value(&after, name) - if was { value(&before, name) } else { 0.0 }
        };
        assert!((value(&after, "ringfence_sandboxes{state=\"idle\"}") - 1.0).abs() < 0.1);
        for (name, times) in [
            ("ringfence_execs_total{reason=\"exit\"}", 3.0),
            ("ringfence_execs_total{reason=\"signal\"}", 1.0),
            ("ringfence_exec_seconds_count", 4.0),
            ("ringfence_exec_start_seconds_count", 4.0),
            ("ringfence_file_seconds_count{operation=\"write\"}", 1.0),
            ("ringfence_file_seconds_count{operation=\"read\"}", 1.0),
            ("ringfence_errors_total{reason=\"not-found\"}", 1.0),
            ("ringfence_requests_total{interface=\"rest\",status=\"4xx\"}", 1.0),
        ] {
            assert!((more(name) - times).abs() < 0.1, "{name}: {after}");
        }
        assert!(value(&after, "ringfence_create_seconds_count") > 0.9);
        assert!(value(&after, "ringfence_memory_bytes") > 0.0, "{after}");
        assert!(value(&after, "ringfence_mounts") > 1.0, "{after}");
        assert!(value(&after, "process_resident_memory_bytes") > 1e6, "{after}");
        assert!(value(&after, "process_open_fds") > 3.0, "{after}");
    });
}

/// Nothing that callers choose becomes a label: neither names, labels, paths nor programs.
#[test]
fn callers_cannot_make_series() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let work = |round: usize| {
            let name = format!("made-up-{round}");
            let id = daemon.create(&["--name", &name, "--label", &format!("made-up={round}")]);
            daemon.shell(&id, "true").ok();
            daemon.shell(&id, "exit 9");
            daemon.ringfence(&["exec", &id, "--", &format!("/made-up-{round}")]);
            daemon.get(&format!("/v1/sandboxes/{id}/files?path=made-up-{round}"));
            daemon.get(&format!("/v1/made-up-{round}"));
            daemon.curl(&["-X", &format!("MADE-UP-{round}")], "/v1/sandboxes");
            daemon.curl(&["-X", "DELETE"], &format!("/v1/sandboxes/{id}")).is(204);
        };
        work(0);
        let once = metrics(&daemon);
        (1..6).for_each(work);
        let often = metrics(&daemon);
        assert_eq!(series(&once), series(&often));
        assert!(!often.contains("made-up"), "{often}");
    });
}

#[test]
fn a_sandbox_tells_what_it_uses() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box", "--layer"]);
        let idle = daemon.create(&["--name", "other"]);
        let look = |id: &str| daemon.get(&format!("/v1/sandboxes/{id}/stats")).is(200).json();
        let n = |v: &Value, name: &str| v[name].as_u64().unwrap_or_else(|| panic!("{name}: {v}"));
        let before = look("box");
        assert_eq!(before["state"], "idle");
        assert!(n(&before, "pids") >= 1 && n(&before, "memory_bytes") > 0, "{before}");
        // It works, and holds 64 MiB, in three processes; what has ended counts.
        let script = "head -c 1000000 /dev/urandom > data; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; \
                      sleep 1000 & x=$(head -c 33554432 /dev/zero | tr '\\0' a); sleep 1000; echo $x";
        let body = json!({ "shell": script, "background": true });
        daemon.post(&format!("/v1/sandboxes/{id}/exec"), &body).is(202);
        until("it holds memory", || n(&look("box"), "memory_bytes") > 32 << 20);
        let busy = look("box");
        assert_eq!(busy["state"], "running");
        assert_eq!((n(&busy, "commands"), n(&busy, "execs")), (1, 1));
        assert!(n(&busy, "pids") >= n(&before, "pids") + 2, "{before} {busy}");
        assert!(n(&busy, "cpu_us") > n(&before, "cpu_us"), "{before} {busy}");
        assert!(n(&busy["disk"], "bytes") >= 1_000_000, "{busy}");
        // Each has its own figures.
        let other = look(&idle);
        assert!(n(&other, "memory_bytes") < 32 << 20, "{other}");
        assert_eq!((n(&other, "execs"), other.get("disk")), (0, None));
        let all = daemon.get("/v1/stats").is(200).json();
        let names: Vec<_> =
            all["sandboxes"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
        assert_eq!(names, ["box", "other"]);
        assert!(n(&all["daemon"], "memory_bytes") > 1_000_000, "{all}");
        assert_eq!(n(&all["daemon"], "pid"), u64::from(daemon.process().pid as u32));
        // Without processes nothing is used, and what was is forgotten.
        daemon.ringfence(&["stop", "box"]).ok();
        let stopped = look("box");
        assert_eq!((n(&stopped, "memory_bytes"), n(&stopped, "pids")), (0, 0));
        assert!(n(&stopped["disk"], "bytes") >= 1_000_000, "{stopped}");
        daemon.get("/v1/sandboxes/none/stats").is(404);
        let said = daemon.ringfence(&["stats", "other"]).ok().out;
        assert!(said.contains("idle") && said.contains("memory"), "{said}");
    });
}

/// With a limit there is a control group, where the host has them, and the figures are its.
#[test]
fn a_control_group_tells_what_it_counts() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        place.write("limits.toml", "[limits]\npids = 100\n");
        let settings = place.workspace().join("limits.toml");
        let made = daemon.ringfence(&["create", "-s", settings.to_str().unwrap()]).ok();
        let id = made.out.trim();
        let stats = daemon.get(&format!("/v1/sandboxes/{id}/stats")).is(200).json();
        let from = stats["from_cgroup"].as_array().unwrap();
        if made.err.contains("pids-limit") || from.is_empty() {
            println!("skipped: no control group can be made here: {}", made.err.trim());
            assert_eq!(from.len(), 0, "{stats}");
            return;
        }
        assert!(from.contains(&json!("pids")), "{stats}");
        assert!((1..20).contains(&stats["pids"].as_u64().unwrap()), "{stats}");
    });
}

fn beside_a_busy_one(case: impl Fn(&Daemon<'_>, &mut Shell)) {
    in_a_terminal(&["quiet", "busy"], |_, daemon, shell| {
        let busy = json!({ "shell": "while :; do :; done", "background": true });
        daemon.post("/v1/sandboxes/busy/exec", &busy).is(202);
        case(daemon, shell);
    });
}

#[test]
fn top_is_a_table_that_lives_and_goes() {
    beside_a_busy_one(|daemon, t| {
        t.resize(24, 100);
        for quit in ["q", CTRL_C] {
            t.send("\"$RF\" top --delay 200ms\n");
            t.expect("\u{1b}[?1049h");
            t.expect("2 sandboxes, 1 running");
            // The busy one is first; by name it stays, turned it does not.
            t.expect("busy ");
            t.send("n");
            t.expect("sorted by name");
            t.send("r");
            t.expect("quiet ");
            t.send(quit);
            t.expect("\u{1b}[?1049l");
            t.prompt();
            let out = t.run("[ \"$before\" = \"$(stty -g)\" ] && echo \"as\" before");
            assert!(out.contains("as before"), "{out}");
        }
        // The daemon ends under it: the terminal is given back.
        t.send("\"$RF\" top --delay 100ms; echo code=$?\n");
        t.expect("sorted by cpu");
        daemon.process().signal(rustix::process::Signal::TERM);
        t.expect("code=125");
        t.prompt();
        let out = t.run("[ \"$before\" = \"$(stty -g)\" ] && echo \"as\" before");
        assert!(out.contains("as before"), "{out}");
    });
}

#[test]
fn top_colours_only_where_it_may() {
    beside_a_busy_one(|_, t| {
        let head = "SANDBOX";
        let out = t.run("\"$RF\" top --once");
        assert!(out.contains(&format!("\u{1b}[1m{head}")), "{out}");
        let out = t.run("NO_COLOR=1 \"$RF\" top --once");
        assert!(out.contains(head) && !out.contains("\u{1b}[1m"), "{out}");
        let out = t.run("\"$RF\" top | cat; \"$RF\" top --once < /dev/null | wc -l");
        assert!(out.contains(head) && !out.contains("\u{1b}[1m"), "{out}");
        assert!(out.contains("\r\n4\r\n"), "{out}");
    });
}

#[test]
fn top_is_json_for_programs() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let once = daemon.ringfence(&["top", "--once", "--json"]).ok();
        let table: Value = serde_json::from_str(&once.out).unwrap();
        let row = &table["sandboxes"][0];
        assert_eq!((&row["name"], &row["state"]), (&json!("box"), &json!("idle")));
        assert!(row["cpu_percent"].is_number() && row["execs_per_second"].is_number(), "{row}");
        // A line for each look, until nobody reads.
        let program = format!(
            "\"{}\" top --json --delay 100ms | head -n 2",
            crate::harness::binary().display()
        );
        let mut shell = place.command("/bin/sh");
        super::world::environment(place, &mut shell);
        let lines = crate::harness::Ran::of(shell.args(["-c", &program])).ok().out;
        let tables = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        assert_eq!(tables.filter(|t| t["sandboxes"][0]["name"] == "box").count(), 2);
    });
}
