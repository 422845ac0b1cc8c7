//! What `--help` says: a change shows up in review.

use crate::help;

/// As on a terminal of 100 columns.
fn text(path: &[&str]) -> String {
    let mut command = help::command().term_width(100);
    command.build();
    for name in path {
        command = command.find_subcommand(name).unwrap().clone().term_width(100);
    }
    // Clap pads; editors and reviewers should not see that.
    let text = command.render_long_help().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[test]
fn help() {
    insta::assert_snapshot!(text(&[]));
}

#[test]
fn run_help() {
    insta::assert_snapshot!(text(&["run"]));
}

#[test]
fn help_of_the_verbs() {
    for path in [
        &["policy"][..],
        &["codebase"],
        &["codebase", "create"],
        &["codebase", "push"],
        &["policy", "show"],
        &["policy", "check"],
        &["policy", "explain"],
        &["policy", "reload"],
        &["snapshot"],
        &["restore"],
        &["fork"],
        &["undo"],
        &["export"],
        &["import"],
        &["daemon"],
        &["create"],
        &["exec"],
        &["list"],
        &["attach"],
        &["batch"],
        &["files"],
        &["top"],
        &["stats"],
        &["files", "watch"],
        &["execs"],
        &["show"],
        &["freeze"],
        &["extend"],
        &["session"],
        &["session", "exec"],
        &["daemon", "token", "create"],
        &["daemon", "token"],
        &["limits"],
        &["events"],
        &["audit"],
        &["bench"],
        &["bench", "cold"],
        &["bench", "compare"],
        &["init"],
        &["trust"],
        &["layers"],
        &["diff"],
        &["apply"],
        &["discard"],
        &["doctor"],
        &["selftest"],
    ] {
        insta::assert_snapshot!(path.join("_"), text(path));
    }
}
