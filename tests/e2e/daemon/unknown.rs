//! A name that nothing has is named, by every verb, with what to do.

use std::fmt::Write as _;
use std::process::Stdio;

use super::world::Daemon;
use crate::harness::{Place, Ran, User, as_each_user};

/// One line for each verb: what it is asked, what it says, and its exit code.
fn told(place: &Place) -> String {
    let daemon = Daemon::start(place);
    daemon.create(&["--name", "box"]);
    let verbs: &[&str] = &[
        "exec nobody -- true",
        "exec --background nobody -- true",
        "start nobody",
        "stop nobody",
        "freeze nobody",
        "extend nobody 5m",
        "show nobody",
        "remove nobody",
        "stats nobody",
        "limits nobody",
        "limits nobody --pids 5",
        "execs list nobody",
        "execs logs nobody ex_0",
        "execs show box ex_0",
        "execs kill box ex_0",
        "session create nobody",
        "session list nobody",
        "session exec box se_0 -- true",
        "files read nobody x",
        "files write nobody x",
        "files list nobody",
        "files stat nobody x",
        "files remove nobody x",
        "files mkdir nobody x",
        "files chmod nobody 644 x",
        "files move nobody x y",
        "files search nobody",
        "files pack nobody",
        "files unpack nobody",
        "files watch nobody",
        "files download nobody x",
        "files read codebase:nobody x",
        "create --codebase nobody",
    ];
    let mut out = String::new();
    for verb in verbs {
        let words: Vec<&str> = verb.split(' ').collect();
        let ran = Ran::of(daemon.command(&words).stdin(Stdio::null()));
        let _ = write!(out, "{verb}\n  {:?} {}", ran.code, ran.err);
    }
    out
}

#[test]
fn names_that_nothing_has_are_named() {
    insta::assert_snapshot!("names_that_nothing_has", told(&Place::new(User::Me)));
    // Nobody is told anything else.
    as_each_user(|place| assert!(told(place).contains("no such sandbox: nobody")));
}

/// What was given as a name is not repeated as it is where that would command a terminal, nor without end.
#[test]
fn a_name_commands_no_terminal() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let ran = daemon.ringfence(&["show", "a\u{1b}[2J\u{7}"]).failed_with(125);
        assert!(!ran.err.contains(['\u{1b}', '\u{7}']), "{ran:?}");
        let ran = daemon.ringfence(&["show", &"x".repeat(5000)]).failed_with(125);
        assert!(ran.err.len() < 400, "{ran:?}");
    });
}
