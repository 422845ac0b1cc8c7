//! The daemon killed at every labelled step of what it does. After the next start nothing that was
//! acknowledged is lost, nothing that was said to be gone is back, and nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::attacks::free_port;
use super::clients;
use super::world::{Daemon, Process, until};
use crate::harness::{Place, as_each_user, binary, has};

/// As `crates/supervisor/src` has them (`every_labelled_step_is_in_a_list`).
const STEPS: [&str; 20] = [
    "create.entered",
    "make.ordered",
    "make.answered",
    "create.alive",
    "store.begun",
    "store.committed",
    "create.kept",
    "exec.asked",
    "exec.started",
    "session.ready",
    "session.held",
    "stop.begun",
    "stop.ended",
    "start.alive",
    "destroy.begun",
    "destroy.forgotten",
    "destroy.ended",
    "audit.begun",
    "audit.written",
    SNAPSHOT,
];
/// A snapshot is made, and has no name yet.
const SNAPSHOT: &str = "snapshot.made";
/// Kills in every run of the tests, for each user; `RINGFENCE_FAULTS` asks for another number.
const KILLS: usize = 40;

/// What must be true of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    There,
    Stopped,
    Gone,
    /// The request that decides it was not answered.
    Either,
}

struct Run<'d, 'p> {
    daemon: &'d mut Daemon<'p>,
    /// Where it speaks agentkernel's dialect, which has the snapshots of workspaces.
    port: u16,
    known: BTreeMap<String, Known>,
    seen: Vec<Process>,
}

impl Run<'_, '_> {
    /// Asks; whether it was answered. What the daemon had started so far is remembered.
    fn asks(&mut self, args: &[&str]) -> bool {
        self.seen.extend(self.daemon.family());
        self.daemon.ringfence(args).code == Some(0)
    }

    /// A sandbox that is kept, and a snapshot of it that nobody is told of.
    fn takes_a_snapshot(&mut self, name: &str) {
        let (place, port) = (self.daemon.place, self.port);
        clients::post(place, port, "/sandboxes", &json!({ "name": name })).is(201);
        self.known.insert(name.into(), Known::There);
        self.seen.extend(self.daemon.family());
        let body = json!({ "sandbox": name, "name": format!("of-{name}") });
        assert_eq!(clients::post(place, port, "/snapshots", &body).status, 0);
    }

    /// One request after the other, until the daemon is dead.
    fn goes(&mut self, name: &str) {
        let steps: [(&[&str], Option<Known>); 8] = [
            (&["create", "--persistent", "--name", name], Some(Known::There)),
            (&["exec", name, "--", "sh", "-c", "sleep 1000 & true"], None),
            (&["session", "create", name], None),
            (&["session", "line", name], None),
            (&["stop", name], Some(Known::Stopped)),
            (&["start", name], Some(Known::There)),
            (&["exec", name, "--", "true"], None),
            (&["remove", name], Some(Known::Gone)),
        ];
        let mut session = String::new();
        for (args, then) in steps {
            let before = self.known.get(name).copied().unwrap_or(Known::Gone);
            let answered = match args {
                ["session", "create", _] => {
                    self.seen.extend(self.daemon.family());
                    let ran = self.daemon.ringfence(args);
                    ran.out.trim().clone_into(&mut session);
                    ran.code == Some(0)
                }
                ["session", "line", _] => {
                    self.asks(&["session", "exec", name, &session, "--", "true"])
                }
                args => self.asks(args),
            };
            if let Some(then) = then {
                // Started or stopped it is there, whichever it was when the daemon died.
                let unknown = if then == Known::Gone || before == Known::Gone {
                    Known::Either
                } else {
                    Known::There
                };
                self.known.insert(name.into(), if answered { then } else { unknown });
            }
            if !answered {
                until("it died, and did not only refuse", || self.daemon.has_died());
                return;
            }
        }
    }
}

fn is_as_known(daemon: &Daemon<'_>, known: &mut BTreeMap<String, Known>, step: &str) {
    let listed = daemon.get("/v1/sandboxes").is(200).json();
    let listed = listed["sandboxes"].as_array().unwrap();
    let names: Vec<&str> = listed.iter().map(|s| s["name"].as_str().unwrap()).collect();
    for (name, known) in known.iter() {
        let is_there = names.contains(&name.as_str());
        match known {
            Known::There | Known::Stopped => assert!(is_there, "{step}: {name} is lost: {names:?}"),
            Known::Gone => assert!(!is_there, "{step}: {name} is back: {names:?}"),
            Known::Either => {}
        }
        if *known == Known::Stopped {
            assert_eq!(daemon.sandbox(name)["state"], "stopped", "{step}: {name}");
        }
    }
    for name in names {
        assert!(known.contains_key(name), "{step}: nobody asked for {name}");
        // What is there can be used, and then be removed.
        until("it can be used", || {
            daemon.ringfence(&["start", name]).code == Some(0)
                && daemon.shell(name, "true").code == Some(0)
        });
        daemon.ringfence(&["remove", name]).ok();
        known.insert(name.into(), Known::Gone);
    }
}

pub fn kills() -> usize {
    std::env::var("RINGFENCE_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS)
}

/// Whether the binary has labelled steps at all.
pub fn has_steps() -> bool {
    let looked = Command::new("grep").args(["-qaF", "RINGFENCE_FAULT"]).arg(binary()).status();
    let has = looked.is_ok_and(|status| status.success());
    if !has {
        println!("skipped: only a debug build has labelled steps");
    }
    has
}

pub fn can_be_killed_at_steps() -> bool {
    if !cfg!(debug_assertions) || std::env::var_os("RINGFENCE_BIN").is_some() {
        println!("skipped: only a debug build has labelled steps");
        return false;
    }
    has("curl")
}

pub fn left_in(place: &Place) -> String {
    place
        .bare(
            "ls -A; ls -A ../run/ringfence; grep -c \"$(dirname $PWD)\" /proc/self/mountinfo; true",
        )
        .ok()
        .out
}

/// But for the directories of owners.
fn files_below(snapshots: &Path) -> usize {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    entries(snapshots).map(|owner| entries(&owner.path()).count()).sum()
}

/// The labels that a source gives to steps.
fn labels(source: &str) -> Vec<String> {
    let told = |text: &str| text.split('"').nth(1).map(ToOwned::to_owned);
    let points = source.split("fault::point(").skip(1);
    let mut found: Vec<String> =
        points.filter(|rest| rest.starts_with('"')).filter_map(told).collect();
    // Those that are chosen by what is asked.
    for line in source.lines().filter(|line| line.contains("=> [\"")) {
        found.extend(line.split('"').skip(1).step_by(2).map(ToOwned::to_owned));
    }
    found
}

/// A step that is labelled in the code and killed at by no test would be a promise that nobody keeps.
#[test]
fn every_labelled_step_is_in_a_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../supervisor/src");
    let Ok(_) = std::fs::read_dir(&root) else {
        println!("skipped: the sources are not here");
        return;
    };
    let mut there = BTreeSet::new();
    let mut rooms = vec![root];
    let mut chosen = 0;
    while let Some(room) = rooms.pop() {
        for entry in std::fs::read_dir(room).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                rooms.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                if source.contains("fault::point(") {
                    there.extend(labels(&source));
                    let variable = |rest: &&str| !rest.starts_with('"');
                    chosen += source.split("fault::point(").skip(1).filter(variable).count();
                }
            }
        }
    }
    let listed: BTreeSet<String> =
        STEPS.iter().chain(&super::layer_faults::STEPS).map(|step| (*step).to_owned()).collect();
    let missing: Vec<&String> = there.difference(&listed).collect();
    assert!(missing.is_empty(), "no test kills the daemon at {missing:?}");
    let gone: Vec<&String> = listed.difference(&there).collect();
    assert!(gone.is_empty(), "no code has the steps {gone:?}");
    // `begun` and `done` of what is asked of layers: another such place needs a look at `labels`.
    assert_eq!(chosen, 2, "steps whose labels are not written where they are");
}

#[test]
fn killed_at_every_labelled_step() {
    if !can_be_killed_at_steps() {
        return;
    }
    as_each_user(|place| {
        let port = free_port();
        let mut daemon = Daemon::with(place, &["--agentkernel", &format!("127.0.0.1:{port}")]);
        let mut known = BTreeMap::new();
        let clean = left_in(place);
        let mut died = 0;
        for n in 0..kills() {
            let step = STEPS[n % STEPS.len()];
            // Also the second time: in the store, of a stop; of a make, when it is started again.
            let again = matches!(
                step,
                "store.begun"
                    | "store.committed"
                    | "make.ordered"
                    | "make.answered"
                    | "exec.asked"
                    | "exec.started"
            );
            let time = if again { n / STEPS.len() % 2 + 1 } else { 1 };
            daemon.kill();
            daemon.start_to_die(&format!("{step}:{time}"));
            let known_before = std::mem::take(&mut known);
            let mut run = Run { daemon: &mut daemon, port, known: known_before, seen: Vec::new() };
            match step {
                SNAPSHOT => run.takes_a_snapshot(&format!("box{n}")),
                _ => run.goes(&format!("box{n}")),
            }
            let seen;
            (known, seen) = (run.known, run.seen);
            // The last answer may have been on its way.
            until("it died at its step", || daemon.has_died());
            died += 1;
            until("what it had started is gone", || seen.iter().all(|p| !p.is_there()));
            crate::residue::no_process_of(&place.workspace());
            daemon.start_again();
            is_as_known(&daemon, &mut known, step);
            let snapshots = clients::ask(place, port, &[], "/snapshots").is(200).json();
            assert_eq!(snapshots["data"], json!([]), "{step}: half a snapshot is there");
            assert_eq!(files_below(&place.home().join("state/daemon/snapshots")), 0, "{step}");
            assert_eq!(left_in(place), clean, "{step}");
        }
        println!("{died} kills at {} steps", STEPS.len());
    });
}
