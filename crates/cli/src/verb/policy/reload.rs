//! `policy reload`: has running sandboxes read their rules again.

use crate::exit::ExitCode;
use std::fmt::Write as _;

use clap::ArgMatches;
use ringfence_proxy::control::{self, Answer, Id};
use serde_json::{Value, json};

use crate::exit;
use crate::output::{self, printable};
use crate::reload::summary;

pub fn main(m: &ArgMatches) -> ExitCode {
    let as_json = m.get_flag("json");
    let running = match control::running() {
        Ok(running) => running,
        Err(e) => return output::fail(format_args!("cannot look for runs: {e}")),
    };
    let uid = rustix::process::geteuid().as_raw();
    let mut mine: Vec<Id> =
        running.iter().filter(|id| uid == 0 || id.uid == uid).copied().collect();
    if let Some(pid) = m.get_one::<u32>("pid") {
        // Names can be taken by anybody: one's own first.
        let of = |ids: &[Id]| ids.iter().find(|id| id.pid == *pid).copied();
        match of(&mine).or_else(|| of(&running)) {
            Some(id) => mine = vec![id],
            None => {
                return output::fail(format_args!(
                    "no run with a network filter or with rules of names that can change has the pid {pid}{}",
                    if mine.is_empty() { "" } else { "; `ringfence policy reload` lists them" }
                ));
            }
        }
    } else if mine.is_empty() {
        return output::fail(
            "no run with a network filter or with rules of names that can change is going on",
        );
    } else if mine.len() > 1 && !m.get_flag("all") {
        return list(&mine, as_json);
    }
    reload(&mine, as_json)
}

/// What a pid runs, as far as that can be seen.
fn command(id: Id) -> String {
    let words = std::fs::read(format!("/proc/{}/cmdline", id.pid)).unwrap_or_default();
    let words: Vec<_> = words
        .split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect();
    words.join(" ")
}

fn list(runs: &[Id], as_json: bool) -> ExitCode {
    let printed = if as_json {
        let runs: Vec<Value> = runs
            .iter()
            .map(|id| json!({ "pid": id.pid, "uid": id.uid, "command": command(*id) }))
            .collect();
        output::print_json(&json!({ "running": runs }))
    } else {
        let mut text = String::new();
        for id in runs {
            let _ = writeln!(text, "{:>8}  {}", id.pid, printable(&command(*id)));
        }
        output::print(&text)
    };
    if printed != ExitCode::SUCCESS {
        return printed;
    }
    output::fail("several runs are going on; name one by its pid, or all of them by --all")
}

fn reload(runs: &[Id], as_json: bool) -> ExitCode {
    let mut worst = 0;
    let mut answers = Vec::new();
    let mut text = String::new();
    for id in runs {
        let pid = id.pid;
        let answer = control::ask(*id).unwrap_or_else(|e| {
            worst = exit::FAILED;
            let problem = Some(format!("cannot reach it: {e}"));
            Answer { pid, problem, ..Answer::default() }
        });
        if let Some(problem) = &answer.problem {
            if worst == 0 {
                worst = exit::REFUSED;
            }
            output::say(format_args!("{pid}: not reloaded, its rules stay: {}", {
                // Lines of a list of reasons stay lines.
                output::lines(problem)
            }));
        } else {
            let _ = writeln!(text, "{pid}: reloaded: {}", summary(&answer));
            for note in &answer.notes {
                let _ = writeln!(text, "  note: {}", printable(note));
            }
        }
        answers.push(answer);
    }
    let printed = if as_json {
        output::print_json(&json!({ "runs": answers }))
    } else {
        output::print(&text)
    };
    if worst == 0 { printed } else { ExitCode::from(worst) }
}
