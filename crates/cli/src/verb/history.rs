//! `ringfence snapshot`, `restore`, `fork`, `undo`: what a layer was and may be again. Four verbs of a
//! few lines each, over the same store.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_layers::{Stamp, Store, history};
use ringfence_sandbox::prepare::Request;
use serde_json::json;

use crate::help;
use crate::output::{self, printable};

fn layer() -> Arg {
    Arg::new("name").value_name("LAYER").required(true).help("A layer of `ringfence layers`")
}

fn json_flag() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

fn snapshot_name() -> Arg {
    Arg::new("snapshot").value_name("SNAPSHOT").required(true)
}

pub fn commands() -> [Command; 4] {
    [
        Command::new("snapshot")
            .about("Keep what a layer holds now under a name; nothing is copied")
            .arg(layer())
            .arg(snapshot_name())
            .arg(
                Arg::new("remove")
                    .long("remove")
                    .action(ArgAction::SetTrue)
                    .help("Forget this snapshot, and what only it needed"),
            )
            .arg(json_flag())
            .after_help("Examples:\n  ringfence snapshot work before-upgrade\n  ringfence snapshot --remove work before-upgrade"),
        Command::new("restore")
            .about("Let a layer hold again what it held at a snapshot; `undo` takes that back")
            .arg(layer())
            .arg(snapshot_name())
            .arg(json_flag())
            .after_help("Example:\n  ringfence restore work before-upgrade"),
        Command::new("fork")
            .about("Make a second layer of one; both go on apart, nothing is copied")
            .arg(layer())
            .arg(Arg::new("new").value_name("NEW").required(true).help("The name of the new one"))
            .arg(json_flag())
            .after_help("Example:\n  ringfence fork work other-idea"),
        Command::new("undo")
            .about("Take back what checkpointed runs wrote to a layer")
            .arg(layer())
            .arg(
                Arg::new("steps")
                    .value_name("N")
                    .default_value("1")
                    .value_parser(clap::value_parser!(usize))
                    .help("How many, the newest first"),
            )
            .arg(
                Arg::new("list")
                    .long("list")
                    .action(ArgAction::SetTrue)
                    .help("Say what could be taken back, and change nothing"),
            )
            .arg(json_flag())
            .after_help("Examples:\n  ringfence run --layer work --checkpoint -- npm update\n  ringfence undo work --list\n  ringfence undo work\n  ringfence undo work 3"),
    ]
}

/// The store of this user, made if it is not there.
pub fn store() -> Result<Store, String> {
    Store::open(&Request::current().store()).map_err(|e| e.to_string())
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let done = match matches.subcommand() {
        Some(("snapshot", m)) => snapshot(m),
        Some(("restore", m)) => restore(m),
        Some(("fork", m)) => fork(m),
        Some(("undo", m)) => undo(m),
        _ => Err("not a verb of the history of layers".into()),
    };
    done.unwrap_or_else(output::fail)
}

fn text<'a>(m: &'a ArgMatches, id: &str) -> &'a str {
    m.get_one::<String>(id).map_or("", String::as_str)
}

fn said(m: &ArgMatches, value: &serde_json::Value, text: &str) -> ExitCode {
    if m.get_flag("json") { output::print_json(value) } else { output::print(text) }
}

fn snapshot(m: &ArgMatches) -> Result<ExitCode, String> {
    let (name, snapshot) = (text(m, "name"), text(m, "snapshot"));
    let store = store()?;
    let remove = m.get_flag("remove");
    if remove {
        history::forget(&store, name, snapshot).map_err(|e| e.to_string())?;
    } else {
        history::snapshot(&store, name, snapshot, Stamp::now())
            .and_then(|()| history::settle(&store, name))
            .map_err(|e| e.to_string())?;
    }
    let value = json!({ "layer": name, "snapshot": snapshot, "removed": remove });
    let what = if remove { "is forgotten" } else { "holds what the layer holds now" };
    Ok(said(m, &value, &format!("snapshot {snapshot} of layer {name} {what}\n")))
}

fn restore(m: &ArgMatches) -> Result<ExitCode, String> {
    let (name, snapshot) = (text(m, "name"), text(m, "snapshot"));
    history::restore(&store()?, name, snapshot, Stamp::now()).map_err(|e| e.to_string())?;
    let value = json!({ "layer": name, "snapshot": snapshot });
    let text = format!(
        "layer {name} is as at {snapshot}; `ringfence undo {name}` brings back what it was\n"
    );
    Ok(said(m, &value, &text))
}

fn fork(m: &ArgMatches) -> Result<ExitCode, String> {
    let (name, new) = (text(m, "name"), text(m, "new"));
    history::fork(&store()?, name, new, Stamp::now()).map_err(|e| e.to_string())?;
    let value = json!({ "layer": new, "of": name });
    Ok(said(m, &value, &format!("layer {new} holds what {name} holds\n")))
}

fn undo(m: &ArgMatches) -> Result<ExitCode, String> {
    let name = text(m, "name");
    let store = store()?;
    if m.get_flag("list") {
        let record = store.layer(name).map_err(|e| e.to_string())?.record;
        let mut out = String::new();
        let steps: Vec<_> = record.checkpoints.iter().rev().enumerate().collect();
        let values: Vec<_> = steps
            .iter()
            .map(|(n, c)| {
                json!({ "steps": n + 1, "checkpoint": c.n, "created": c.created.0, "command": c.command })
            })
            .collect();
        for (n, c) in &steps {
            let command = c.command.as_deref().unwrap_or("?");
            let _ = writeln!(out, "{:>4}  {}", n + 1, printable(command));
        }
        return Ok(said(m, &json!({ "layer": name, "undo": values }), &out));
    }
    let steps = m.get_one::<usize>("steps").copied().unwrap_or(1);
    let undone = history::undo(&store, name, steps).map_err(|e| e.to_string())?;
    let mut out = String::new();
    for step in &undone.steps {
        let command = step.command.as_deref().unwrap_or("?");
        let _ = writeln!(out, "taken back: {}", printable(command));
    }
    let values: Vec<_> =
        undone.steps.iter().map(|c| json!({ "checkpoint": c.n, "command": c.command })).collect();
    Ok(said(m, &json!({ "layer": name, "undone": values }), &out))
}
