//! `ringfence apply`: brings a layer's changes to the real files.

use crate::exit::ExitCode;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::ArgMatches;
use ringfence_layers::apply::{self, Context, Line, Report};
use ringfence_layers::journal::{self, Place};
use ringfence_layers::{Layer, Record, bytes_of, review};
use serde_json::{Value, json};

use super::diff::search;
use super::layers::{meant, place, short};
use super::policy;
use crate::flags::{Id, Typed};
use crate::output::{self, printable};
use crate::progress::Wait;
use crate::{exit, help};
use ringfence_sandbox::judge::OfPolicy;

/// Something was left in the layer.
const LEFT: u8 = 1;

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("apply") else { return output::fail("not apply") };
    go(m).unwrap_or_else(|e| match e {
        Failed::Said(code) => code,
        Failed::Text(text) => output::fail(text),
    })
}

enum Failed {
    Said(ExitCode),
    Text(String),
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<ringfence_layers::Error> for Failed {
    fn from(e: ringfence_layers::Error) -> Self {
        Self::Text(e.to_string())
    }
}

fn go(m: &ArgMatches) -> Result<ExitCode, Failed> {
    let (store, name) = meant(m)?;
    let as_json = m.get_flag("json");
    if m.get_flag("rollback") {
        let report = apply::roll_back(&store, &name)?;
        return Ok(told(&report, as_json, "taken back; what could not be:"));
    }
    let layer = store.layer(&name)?;
    let typed = typed(m, &layer)?;
    let layered = policy::layered(&typed).map_err(|e| Failed::Said(policy::refused(&e)))?;
    for note in &layered.notes {
        output::say(printable(note));
    }
    let roots: Vec<PathBuf> = layer.record.roots.iter().map(|r| r.path.clone()).collect();
    let judge = OfPolicy::new(&layered.policy, &policy::request(&typed), &roots)?;
    let search = search();
    if m.get_flag("resume") {
        let mut tell = |report: &Report| announce(report, as_json);
        let mut context = Context { judge: Some(&judge), search: &search, tell: &mut tell };
        let report = apply::resume(&store, &name, &mut context)?;
        return Ok(told(&report, as_json, "not applied:"));
    }
    let request = request(m, &layer.record)?;
    if m.get_flag("dry-run") {
        let review = review::review(&layer, Some(&judge), &search)?;
        let report = apply::preview(&review, &request)?;
        announce(&report, as_json);
        return Ok(told(&report, as_json, "would not be applied:"));
    }
    let mut wait = None;
    let mut tell = |report: &Report| {
        announce(report, as_json);
        wait = Some(Wait::new("applying"));
    };
    let mut context = Context { judge: Some(&judge), search: &search, tell: &mut tell };
    let report = apply::apply(&store, &name, &request, &mut context);
    drop(wait);
    let report = report?;
    Ok(told(&report, as_json, "not applied:"))
}

/// The flags of `run` that were given. Without a workspace it is the layer's directory that one stands
/// in, or its only one.
fn typed(m: &ArgMatches, layer: &Layer) -> Result<Typed, Failed> {
    let mut typed = policy::typed(m);
    for (name, id) in [("allow-write", Id::AllowWrite), ("lift", Id::Lift)] {
        let values = m.get_many::<OsString>(name).into_iter().flatten();
        typed.flags.extend(values.map(|v| (id, v.clone())));
    }
    if !typed.has(Id::Workspace) {
        let here = std::env::current_dir().map_err(|e| format!("current directory: {e}"))?;
        let roots = &layer.record.roots;
        let around = roots.iter().find(|r| here.starts_with(&r.path));
        if let Some(root) = around.or(roots.first()) {
            typed.flags.push((Id::Workspace, root.path.clone().into()));
        }
    }
    Ok(typed)
}

fn request(m: &ArgMatches, record: &Record) -> Result<journal::Request, String> {
    let paths = m
        .get_many::<OsString>("paths")
        .into_iter()
        .flatten()
        .map(|typed| place(record, typed))
        .collect::<Result<_, _>>()?;
    let hunks = m
        .get_many::<OsString>("hunk")
        .into_iter()
        .flatten()
        .map(|typed| hunk(record, typed))
        .collect::<Result<_, _>>()?;
    Ok(journal::Request { paths, hunks, theirs: m.get_flag("theirs") })
}

/// `PATH:N[,N]`; the path may have colons of its own.
fn hunk(record: &Record, typed: &OsStr) -> Result<(Place, Vec<usize>), String> {
    let wrong =
        || format!("--hunk: {}: not PATH:N or PATH:N,N, such as src/main.rs:1,3", printable(typed));
    let bytes = typed.as_bytes();
    let colon = bytes.iter().rposition(|b| *b == b':').ok_or_else(wrong)?;
    let numbers = std::str::from_utf8(&bytes[colon + 1..])
        .ok()
        .and_then(|text| text.split(',').map(|n| n.parse().ok()).collect::<Option<Vec<usize>>>())
        .ok_or_else(wrong)?;
    Ok((place(record, OsStr::from_bytes(&bytes[..colon]))?, numbers))
}

/// Before anything is changed: what the host may run later.
fn announce(report: &Report, as_json: bool) {
    if as_json {
        return;
    }
    for line in report.applied.iter().filter(|l| l.executable.is_some()) {
        let why = line.executable.unwrap_or_default();
        output::say(format_args!("{} {}: ! {why}", line.letter, short(&line.path)));
    }
}

fn told(report: &Report, as_json: bool, not: &str) -> ExitCode {
    let left = !(report.conflicts.is_empty() && report.refused.is_empty());
    let printed = if as_json {
        output::print_json(&json!({
            "applied": lines(&report.applied),
            "conflicts": lines(&report.conflicts),
            "refused": lines(&report.refused),
            "notes": lines(&report.notes),
        }))
    } else {
        let line = |l: &Line| format!("{}  {}\n", l.letter, short(&l.path));
        let text = report.applied.iter().map(line).collect::<Vec<_>>().concat();
        for line in &report.notes {
            output::say(format_args!("{}: {}", short(&line.path), line.text));
        }
        let printed = output::print(&text);
        if left {
            output::say(not);
        }
        for (word, all) in [("conflict", &report.conflicts), ("refused", &report.refused)] {
            for line in all {
                output::say(format_args!("  {word}: {}: {}", short(&line.path), line.text));
            }
        }
        printed
    };
    if printed != ExitCode::SUCCESS {
        return ExitCode::from(exit::FAILED);
    }
    if left { ExitCode::from(LEFT) } else { ExitCode::SUCCESS }
}

fn lines(lines: &[Line]) -> Vec<Value> {
    let one = |l: &Line| {
        json!({
            "path": l.path.to_string_lossy(),
            "path_bytes": bytes_of(&l.path),
            "status": l.letter.to_string(),
            "reason": (!l.text.is_empty()).then_some(&l.text),
            "executable": l.executable,
        })
    };
    lines.iter().map(one).collect()
}
