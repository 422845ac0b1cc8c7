//! The daemon killed at every labelled step of what it does to layers, and in the middle of an apply. After the
//! next start what was acknowledged is there, an apply that was not has changed all or nothing, and nothing is
//! left.

use serde_json::json;

use super::faults::{can_be_killed_at_steps, kills, left_in};
use super::world::{Answer, Daemon, until};
use crate::harness::{Place, as_each_user};

/// As `crates/supervisor/src/layers.rs` has them.
pub const STEPS: [&str; 11] = [
    "snapshot.begun",
    "snapshot.taken",
    "snapshot.done",
    "checkpoint.begun",
    "checkpoint.done",
    "undo.begun",
    "undo.done",
    "fork.begun",
    "fork.done",
    "apply.begun",
    "apply.done",
];
/// Points in an apply of three changes (`crates/layers/src/crash.rs`) at which it is killed too.
const POINTS: usize = 14;
/// What the sandbox changes, beside the file that stays.
const CHANGED: [(&str, &str); 3] = [("one", "1"), ("two", "2"), ("three", "3")];

/// What was answered before the daemon died.
#[derive(Debug, Default)]
struct Told {
    created: bool,
    written: bool,
    snapshot: bool,
    checkpoint: bool,
    fork: bool,
    applied: bool,
}

struct Run<'d, 'p> {
    daemon: &'d mut Daemon<'p>,
    name: String,
    told: Told,
}

impl Run<'_, '_> {
    fn ask(&self, method: &str, path: &str, body: &str) -> bool {
        let at = format!("/v1/sandboxes/{}/{path}", self.name);
        let kind = "Content-Type: application/json";
        let Answer { status, body } =
            self.daemon.curl(&["-X", method, "-H", kind, "-d", body], &at);
        assert!(matches!(status, 0 | 200..=299), "{method} {at}: {status} {body}");
        status != 0
    }

    /// One request after the other; false when one was not answered.
    fn goes(&mut self) -> bool {
        let made = ["create", "--persistent", "--layer", "--name", &self.name];
        self.told.created = self.daemon.ringfence(&made).code == Some(0);
        let script = "printf 1 > one; printf 2 > two; printf 3 > three";
        self.told.written = self.told.created
            && self.daemon.shell(&self.name, script).code == Some(0)
            && self.daemon.ringfence(&["stop", &self.name]).code == Some(0);
        if !self.told.written {
            return false;
        }
        self.told.snapshot = self.ask("PUT", "layer/snapshots/kept", "");
        if !self.told.snapshot {
            return false;
        }
        self.told.checkpoint = self.ask("POST", "layer/checkpoint", "");
        if !self.told.checkpoint || !self.ask("POST", "layer/undo", r#"{"steps":1}"#) {
            return false;
        }
        let fork = json!({ "layer": format!("fork-{}", self.name) }).to_string();
        self.told.fork = self.ask("POST", "layer/fork", &fork);
        if !self.told.fork {
            return false;
        }
        self.told.applied = self.ask("POST", "layer/apply", "{}");
        self.told.applied
    }
}

/// Which of the changes are in the real tree.
fn applied(place: &Place) -> Vec<bool> {
    let is = |(name, text): &(&str, &str)| {
        std::fs::read_to_string(place.workspace().join(name)).is_ok_and(|found| found == *text)
    };
    CHANGED.iter().map(is).collect()
}

fn is_as_told(run: &Run<'_, '_>, place: &Place, step: &str) {
    let Run { daemon, name, told } = run;
    let all = applied(place);
    assert!(all.iter().all(|is| *is == all[0]), "{step}: half of it is applied: {all:?}");
    assert!(!told.applied || all[0], "{step}: what was applied is not there");
    let listed = daemon.get("/v1/sandboxes").is(200).body;
    let is_there = listed.contains(&format!("\"{name}\""));
    assert!(is_there || !told.created, "{step}: {name} is lost: {listed}");
    if is_there && told.written {
        assert_eq!(daemon.sandbox(name)["state"], "stopped", "{step}");
        let info = daemon.get(&format!("/v1/sandboxes/{name}/layer")).is(200).json();
        let kept = info["snapshots"].as_array().unwrap().iter().any(|s| s["name"] == "kept");
        assert!(kept || !told.snapshot, "{step}: the snapshot is lost: {info}");
        let inside = daemon.ringfence(&["start", name]).code == Some(0)
            && daemon.shell(name, "cat one two three").ok().out == "123";
        assert!(inside, "{step}: what the sandbox wrote is lost");
    }
    let fork = format!("fork-{name}");
    let forks = daemon.ringfence(&["layers", "--json"]).ok().out.contains(&fork);
    assert!(forks || !told.fork, "{step}: the fork is lost");
    if forks {
        daemon.ringfence(&["discard", &fork]).ok();
    }
    if is_there {
        daemon.ringfence(&["remove", name]).ok();
    }
    for (name, _) in CHANGED {
        let _ = std::fs::remove_file(place.workspace().join(name));
    }
}

#[test]
fn killed_at_every_labelled_step_of_layers() {
    if !can_be_killed_at_steps() {
        return;
    }
    as_each_user(|place| {
        let mut daemon = Daemon::start(place);
        place.bare("echo here > stays").ok();
        let clean = left_in(place);
        let steps: Vec<String> = STEPS
            .iter()
            .map(|step| (*step).to_owned())
            .chain((1..=POINTS).map(|n| format!("layer:{n}")))
            .collect();
        let mut died = 0;
        for n in 0..kills() {
            let step = &steps[n % steps.len()];
            daemon.kill();
            daemon.start_to_die(step);
            let name = format!("layered{n}");
            let mut run = Run { daemon: &mut daemon, name, told: Told::default() };
            let all = run.goes();
            // An apply may have fewer points than that.
            if !all || run.daemon.has_died() {
                until("it died at its step", || run.daemon.has_died());
                died += 1;
            } else {
                run.daemon.kill();
            }
            crate::residue::no_process_of(&place.workspace());
            run.daemon.start_again();
            is_as_told(&run, place, step);
            until("no layer is left", || {
                !run.daemon.ringfence(&["layers", "--json"]).ok().out.contains("sb_")
            });
            assert_eq!(left_in(place), clean, "{step}");
        }
        println!("{died} kills at {} steps of layers", steps.len());
        assert!(died * 2 > kills(), "{died} of {}", kills());
    });
}
