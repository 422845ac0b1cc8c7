//! `ringfence layers`: what is kept apart, how large it is, who uses it. And what all verbs of layers
//! share: the store, and which layer is meant.

use crate::exit::ExitCode;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;

use clap::ArgMatches;
use ringfence_layers::journal::Place;
use ringfence_layers::{Record, Stamp, Store, Summary, history, shown};
use ringfence_sandbox::prepare::Request;
use serde_json::{Value, json};

use super::policy::clean;
use crate::help;
use crate::output;

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("layers") else { return output::fail("not layers") };
    let done = match m.subcommand() {
        Some(("compact", m)) => compact(m),
        _ => list(m.get_flag("json")),
    };
    done.unwrap_or_else(output::fail)
}

/// The store of this user; `None` where no layer was ever made.
pub fn store() -> Result<Option<Store>, String> {
    let path = Request::current().store();
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => Store::open(&path).map(Some).map_err(|e| e.to_string()),
    }
}

/// The store and the layer that was named, or the only one.
pub fn meant(m: &ArgMatches) -> Result<(Store, String), String> {
    let name = m.get_one::<String>("name").cloned();
    let none = || "there is no layer; `ringfence run --layer NAME -- COMMAND` makes one".to_owned();
    let Some(store) = store()? else { return Err(none()) };
    if let Some(name) = name {
        return Ok((store, name));
    }
    let mut names = store.names().map_err(|e| e.to_string())?;
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok((store, name)),
        (None, _) => Err(none()),
        (Some(_), false) => Err("there are several layers: name one of `ringfence layers`".into()),
    }
}

/// Where paths that were typed lie in a layer's roots.
pub fn place(record: &Record, typed: &OsStr) -> Result<Place, String> {
    let here = std::env::current_dir().map_err(|e| format!("current directory: {e}"))?;
    let path = clean(&here.join(typed));
    // Directories that lead elsewhere are followed; the name itself is kept.
    let named = match (path.parent().map(std::fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.clone(),
    };
    let whole = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
    let of = |path: &Path| {
        let roots = record.roots.iter().enumerate();
        roots
            .filter_map(|(n, r)| Some((n, r, path.strip_prefix(&r.path).ok()?.to_owned())))
            .max_by_key(|(_, r, _)| r.path.as_os_str().len())
            .map(|(n, _, relative)| Place::new(n, relative))
    };
    let is_root = record.roots.iter().any(|r| r.path == whole);
    of(if is_root { &whole } else { &named })
        .or_else(|| of(&path))
        .ok_or_else(|| format!("{} is in none of the layer's directories", shown(&path)))
}

/// A path of the host as people would type it from here.
pub fn short(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    match here.and_then(|h| path.strip_prefix(h).ok().map(Path::to_owned)) {
        Some(relative) if relative.as_os_str().is_empty() => ".".into(),
        Some(relative) => shown(&relative),
        None => shown(path),
    }
}

fn compact(m: &ArgMatches) -> Result<ExitCode, String> {
    let (store, name) = meant(m)?;
    let deltas = |store: &Store| store.layer(&name).map(|layer| layer.record.stack.len());
    let before = deltas(&store).map_err(|e| e.to_string())?;
    history::compact(&store, &name).map_err(|e| e.to_string())?;
    let after = deltas(&store).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&json!({ "layer": name, "before": before, "after": after })));
    }
    Ok(output::print(&format!("layer {name}: {before} sealed deltas before, {after} now\n")))
}

fn list(as_json: bool) -> Result<ExitCode, String> {
    let mut rows = Vec::new();
    let mut values = Vec::new();
    if let Some(store) = store()? {
        for summary in store.layers().map_err(|e| e.to_string())? {
            let usage = summary.record.as_ref().ok().and_then(|r| store.usage(r).ok());
            values.push(value(&summary, usage));
            rows.push((summary, usage));
        }
    }
    if as_json {
        return Ok(output::print_json(&json!({ "layers": values })));
    }
    if rows.is_empty() {
        return Ok(output::print("no layers; `ringfence run --layer NAME -- COMMAND` makes one\n"));
    }
    Ok(output::print(&table(&rows)))
}

fn value(summary: &Summary, usage: Option<ringfence_layers::Usage>) -> Value {
    let seconds = |s: Stamp| s.0;
    let in_use = summary.in_use.as_ref().map(|h| json!({ "pid": h.pid }));
    match &summary.record {
        Err(problem) => json!({ "name": summary.name, "problem": problem, "in_use": in_use }),
        Ok(r) => json!({
            "name": summary.name,
            "roots": r.roots.iter().map(|r| json!({
                "path": r.path.to_string_lossy(),
                "path_bytes": ringfence_layers::bytes_of(&r.path),
            })).collect::<Vec<_>>(),
            "bytes": usage.map(|u| u.bytes),
            "inodes": usage.map(|u| u.inodes),
            "deltas": r.deltas().len(),
            "created": seconds(r.created),
            "used": seconds(r.used),
            "in_use": in_use,
            "snapshots": r.snapshots.iter().map(|(name, s)| json!({
                "name": name, "created": seconds(s.created),
            })).collect::<Vec<_>>(),
            "checkpoints": r.checkpoints.len(),
            "quota": r.quota,
            "policy": r.policy,
            "unfinished_apply": summary.unfinished,
        }),
    }
}

fn table(rows: &[(Summary, Option<ringfence_layers::Usage>)]) -> String {
    let mut out = String::new();
    let width = rows.iter().map(|(s, _)| s.name.len()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        out,
        "{:<width$}  {:>8} {:>8} {:>6}  {:<9} {:<9} {:<10} directories",
        "layer", "size", "files", "deltas", "made", "used", "in use"
    );
    for (summary, usage) in rows {
        let name = &summary.name;
        let in_use = summary.in_use.as_ref().map_or("-".into(), |h| format!("pid {}", h.pid));
        match &summary.record {
            Err(problem) => {
                let _ = writeln!(out, "{name:<width$}  {}", output::printable(problem));
            }
            Ok(r) => {
                let roots: Vec<String> = r.roots.iter().map(|r| shown(&r.path)).collect();
                let _ = writeln!(
                    out,
                    "{name:<width$}  {:>8} {:>8} {:>6}  {:<9} {:<9} {in_use:<10} {}",
                    usage.map_or("?".into(), |u| size(u.bytes)),
                    usage.map_or("?".into(), |u| u.inodes.to_string()),
                    r.deltas().len(),
                    age(r.created),
                    age(r.used),
                    roots.join(" ")
                );
                if !r.snapshots.is_empty() {
                    let names: Vec<&str> = r.snapshots.keys().map(String::as_str).collect();
                    let _ = writeln!(out, "{:<width$}  snapshots: {}", "", names.join(" "));
                }
                if summary.unfinished {
                    let _ = writeln!(
                        out,
                        "{:<width$}  an apply was interrupted: ringfence apply {name} --resume or --rollback",
                        ""
                    );
                }
            }
        }
    }
    out
}

/// With one digit behind the point.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    for unit in ["K", "M", "G"] {
        if tenths < 10240 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        tenths /= 1024;
    }
    format!("{}.{} T", tenths / 10, tenths % 10)
}

fn age(stamp: Stamp) -> String {
    let seconds = Stamp::now().0 - stamp.0;
    match seconds {
        ..60 => "just now".into(),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}
