//! A few seconds of what `bench --soak` does for half an hour: random work on some sandboxes of one daemon, and
//! nothing is left of it. Nothing is timed.

#[allow(dead_code)] // benches measure with it, too
#[path = "../../../bench/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../../../bench/looks.rs"]
mod looks;
#[allow(dead_code)]
#[path = "../../../bench/soak.rs"]
mod soak;

use crate::harness::{Ran, User, as_each_user, binary, mode};

const SECONDS: usize = 6;
const SANDBOXES: usize = 8;
/// Says to the case below whose daemon it is to work on; as this user the whole of it runs.
const PROGRAM: &str = "RINGFENCE_SOAKED";

#[test]
fn some_seconds_of_random_work_leave_nothing() {
    as_each_user(|place| {
        let own = std::env::current_exe().unwrap();
        // The build directory may be closed to others.
        let program = match place.user {
            User::Me => own,
            User::Ordinary => {
                let copy = place.root().join("soak");
                let copied = std::process::Command::new("cp").arg(&own).arg(&copy).status();
                assert!(copied.unwrap().success());
                mode(&copy, 0o755);
                copy
            }
        };
        let mut command = place.command(program);
        command.args(["--exact", "daemon::soaking::the_work_itself", "--nocapture"]);
        let ran = Ran::of(command.env(PROGRAM, binary()).env("TMPDIR", place.home())).ok();
        assert!(ran.out.contains("\"create\":") && ran.out.contains("1 passed"), "{ran:?}");
    });
}

/// Started by the case above, as the user.
#[test]
fn the_work_itself() {
    if let Some(program) = std::env::var_os(PROGRAM) {
        let report = soak::run(program.as_ref(), SECONDS, SANDBOXES, soak::Machine::Shared);
        let done = report["operations"].as_object().unwrap();
        let count: u64 = done.values().filter_map(serde_json::Value::as_u64).sum();
        assert!(count > 0, "nothing was done: {report}");
    }
}
