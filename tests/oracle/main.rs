//! The oracle: what a plain model says against what the code and the kernel do.
//!
//! - `law` is the documented meaning of rules, written a second time; `policy` compares the compiled
//!   rules with it.
//! - `model` is a tree of files in memory, without a call to the kernel; `play` carries random
//!   operations out inside a sandbox and on the host and compares every answer, and both trees.
//!
//! Everything random comes from a seed, which a failure prints, with the fewest operations that show it.
//! `RINGFENCE_ORACLE_OPS` sets how many operations each mechanism gets as each user (a few seconds'
//! worth by default), `RINGFENCE_ORACLE_SEED` the first seed, `RINGFENCE_ORACLE_PAIRS` how many pairs of
//! rule set and path are decided.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests
#![allow(clippy::unnecessary_debug_formatting)] // names hold newlines and bytes that are no text
#![allow(clippy::format_push_string, clippy::type_complexity)] // what is made here is read once

#[path = "../e2e/harness.rs"]
mod harness;

mod direct;
mod exact;
mod inside;
mod law;
mod layer;
mod masked;
mod model;
mod ops;
mod play;
mod policy;
mod random;

use play::{Case, Mechanism, Tally, game};

/// Operations of one game.
const GAME: usize = 500;
/// Operations of each mechanism and user in every test run.
const OPERATIONS: u64 = 6_000;

/// Plays games until there were enough operations.
fn games(mechanism: Mechanism, user: harness::User) {
    let wanted = random::number("RINGFENCE_ORACLE_OPS", OPERATIONS) as usize;
    let mut seed = random::number("RINGFENCE_ORACLE_SEED", 1);
    let mut tally = Tally::default();
    let start = std::time::Instant::now();
    while tally.operations < wanted {
        if let Some(why) = game(&Case::new(mechanism, user, seed), GAME, &mut tally) {
            panic!("{why}");
        }
        seed += 1;
    }
    println!("{mechanism:?} as {user:?}: {tally:?} in {:?}, next seed {seed}", start.elapsed());
}

/// Plays games that once failed, as each user.
fn again(mechanism: Mechanism, seeds: &[u64]) {
    if !can(mechanism) {
        return;
    }
    harness::as_each_user(|place| {
        for seed in seeds {
            let case = Case::new(mechanism, place.user, *seed);
            if let Some(why) = game(&case, GAME, &mut Tally::default()) {
                panic!("{why}");
            }
        }
    });
}

/// The oracle can fail: of a rule that the model knows and the sandbox was not told, it tells.
fn notices(mechanism: Mechanism) {
    let user = if harness::is_root() && mechanism != Mechanism::Exact {
        harness::User::Ordinary
    } else {
        harness::User::Me
    };
    let noticed = (1..60).find_map(|seed| {
        let mut case = Case::new(mechanism, user, seed);
        // It may have changed nothing.
        if case.rules.len() < 2 {
            return None;
        }
        case.rules.pop();
        game(&case, 200, &mut Tally::default())
    });
    let said = noticed.expect("a sandbox that lacks a rule agrees with the model");
    println!("{}", said.lines().next().unwrap_or_default());
}

/// Whether this binary and this host offer a mechanism; prints why not.
fn can(mechanism: Mechanism) -> bool {
    let place = harness::Place::new(harness::User::Me);
    let said = |arguments: &[&str]| {
        let mut command = place.ringfence(arguments);
        command.env("RINGFENCE_STATE", place.root().join("state"));
        let ran = harness::Ran::of(&mut command);
        format!("{}{}", ran.out, ran.err)
    };
    let (there, what) = match mechanism {
        Mechanism::Masked => {
            let flags = ["run", "-t", "agent-safe", "--layer", "probe", "--explain", "--", "true"];
            (said(&flags).contains("names-live"), "a layer that holds rules of names")
        }
        Mechanism::Exact => {
            let there = said(&["run", "--help"]).contains("--exact");
            let device = rustix::fs::open(
                "/dev/fuse",
                rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            );
            (
                there && device.is_ok() && harness::has("unshare"),
                "an exact view, /dev/fuse, unshare",
            )
        }
        Mechanism::Direct | Mechanism::Layer => (true, ""),
    };
    if !there {
        println!("skipped: not had here: {what}");
    }
    there
}
