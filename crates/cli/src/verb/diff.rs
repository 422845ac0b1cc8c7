//! `ringfence diff`: what a layer changed, as names, numbers, a patch or data.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;

use clap::ArgMatches;
use ringfence_layers::delta::ChangeKind;
use ringfence_layers::review::{Item, Review, Verdict, review};
use ringfence_layers::{Layer, diff};
use serde_json::json;

use super::layers::{meant, place, short};
use crate::help;
use crate::output::{self, printable};

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("diff") else { return output::fail("not diff") };
    show(m).unwrap_or_else(output::fail)
}

/// Directories in which a shell finds programs.
pub fn search() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|p| p.is_absolute()).collect()
}

fn show(m: &ArgMatches) -> Result<ExitCode, String> {
    let (store, name) = meant(m)?;
    let text = |e: ringfence_layers::Error| e.to_string();
    let layer = store.layer(&name).map_err(text)?;
    warn(&store, &layer);
    let places = m
        .get_many::<OsString>("paths")
        .into_iter()
        .flatten()
        .map(|typed| place(&layer.record, typed))
        .collect::<Result<Vec<_>, _>>()?;
    let review = review(&layer, None, &search()).map_err(text)?;
    let items: Vec<&Item> = review
        .items
        .iter()
        .filter(|i| {
            places.is_empty()
                || places.iter().any(|p| p.root == i.root && i.change.path.starts_with(&p.path))
        })
        .collect();
    if m.get_flag("json") {
        let all: Vec<_> = items.iter().map(|i| diff::json(&review, i)).collect();
        return Ok(output::print_json(&json!({
            "layer": name,
            "unfinished_apply": layer.unfinished(),
            "changes": all,
        })));
    }
    if m.get_flag("stat") {
        return Ok(output::print(&diff::stat(&review, &items).map_err(text)?));
    }
    if m.get_flag("patch") {
        let patch = diff::patch(&review, &items, m.get_flag("binary")).map_err(text)?;
        return Ok(print_patch(&patch));
    }
    Ok(output::print(&names(&review, &items)))
}

/// What may make the answer another one in a moment.
fn warn(store: &ringfence_layers::Store, layer: &Layer) {
    let name = &layer.name;
    if layer.unfinished() {
        output::say(format_args!(
            "an apply of layer {name} was interrupted: `ringfence apply {name} --resume` or `--rollback`"
        ));
    }
    if let Ok(Some(holder)) = store.holder(name) {
        output::say(format_args!("layer {name} is in use by pid {}: it may change", holder.pid));
    }
}

fn names(review: &Review, items: &[&Item]) -> String {
    let on = output::colours(&std::io::stdout());
    let mut out = String::new();
    for item in items {
        let kind = item.change.kind;
        let letter = kind.letter().to_string();
        let letter = match kind {
            ChangeKind::Added => output::green(&letter, on),
            ChangeKind::Deleted => output::red(&letter, on),
            _ => output::yellow(&letter, on),
        };
        let directory = item.change.new.map(|(m, _)| m).or(item.change.old);
        let slash = if directory.is_some_and(|m| m.is_dir()) { "/" } else { "" };
        let _ = write!(out, "{letter}  {}{slash}", short(&review.absolute(item)));
        match &item.verdict {
            Verdict::Conflict(why) => {
                let _ = write!(out, "  {}", output::red(&format!("conflict: {why}"), on));
            }
            Verdict::Refused(why) => {
                let _ = write!(out, "  {}", output::red(&format!("refused: {why}"), on));
            }
            Verdict::Merge(..) | Verdict::Mode(_) => {
                let _ = write!(out, "  merged with what changed meanwhile");
            }
            Verdict::Take => {}
        }
        if let Some(why) = item.executable {
            let _ = write!(out, "  {}", output::bold(&format!("! {why}"), on));
        }
        out.push('\n');
    }
    out
}

/// To a file or a program as it is; to a terminal in colours, and so that no file commands it.
fn print_patch(patch: &[u8]) -> ExitCode {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return match stdout.lock().write_all(patch).and_then(|()| stdout.lock().flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                output::fail(format_args!("cannot write to stdout: {e}"))
            }
            _ => ExitCode::SUCCESS,
        };
    }
    let on = output::colours(&stdout);
    let mut out = String::new();
    for line in String::from_utf8_lossy(patch).lines() {
        let safe = line.replace('\t', "    ");
        let safe = printable(&safe);
        let painted = match line.as_bytes().first() {
            _ if line.starts_with("+++") || line.starts_with("---") || line.starts_with("diff") => {
                output::bold(&safe, on)
            }
            Some(b'+') => output::green(&safe, on),
            Some(b'-') => output::red(&safe, on),
            Some(b'@') => output::yellow(&safe, on),
            _ => safe.into_owned(),
        };
        let _ = writeln!(out, "{painted}");
    }
    output::print(&out)
}
