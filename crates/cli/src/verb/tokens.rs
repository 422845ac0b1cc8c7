//! `ringfence daemon token`: owners with names, who ask the daemon with a token.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::{OwnerInfo, OwnerLimits};
use ringfence_client::{GET, NOTHING};
use ringfence_daemon::owners::{Owners, Record};
use ringfence_policy::Bytes;
use serde_json::json;

use super::daemon::{connect, places};
use super::sandboxes::{json as as_json, text, value};
use crate::exit::ExitCode;
use crate::output;

fn name() -> Arg {
    Arg::new("name").value_name("NAME").required(true).help("The owner's name")
}

fn limits() -> Vec<Arg> {
    let number = |name, help| value(name, "N", help).value_parser(clap::value_parser!(u64));
    vec![
        number("sandboxes", "Sandboxes that it may have"),
        number("commands", "Commands of it that may run at once"),
        number("sessions", "Sessions of it that may be open"),
        value("memory", "SIZE", "What its sandboxes' memory limits may come to (4g)"),
        value("disk", "SIZE", "What its layers' quotas and codebases may come to (20g)"),
        value("allow-host", "HOST", "A host that its sandboxes may be let through to; repeatable")
            .action(ArgAction::Append),
    ]
}

pub fn command() -> Command {
    Command::new("token")
        .about("Owners with names: each has sandboxes of its own and asks with a token")
        .subcommand_required(true)
        .subcommand(
            Command::new("create")
                .about("Make an owner; prints its token, which is shown this once")
                .arg(name())
                .args(limits())
                .arg(
                    Arg::new("rotate")
                        .long("rotate")
                        .action(ArgAction::SetTrue)
                        .help("A new token for an owner that has one, which ends"),
                )
                .after_help(
                    "Without a limit there is none. A running daemon knows at once.\n\nExamples:\n  ringfence daemon token create web --sandboxes 20 --memory 8g\n  RINGFENCE_TOKEN=... ringfence create --codebase app",
                ),
        )
        .subcommand(
            Command::new("limit")
                .about("Change what an owner may have; what is not said stays")
                .arg(name())
                .args(limits())
                .arg(
                    value("unlimited", "NAME", "Take a limit away (sandboxes, hosts, ...); repeatable")
                        .action(ArgAction::Append),
                ),
        )
        .subcommand(Command::new("list").about("List the owners").arg(as_json()))
        .subcommand(
            Command::new("show")
                .about("Say who asks (RINGFENCE_TOKEN), and what they may have and have")
                .arg(as_json()),
        )
        .subcommand(
            Command::new("revoke")
                .about("Let an owner's token hold no more; what it has stays")
                .arg(name()),
        )
}

pub fn run(m: &ArgMatches) -> ExitCode {
    let done = match m.subcommand() {
        Some(("create", m)) => create(m),
        Some(("limit", m)) => limit(m),
        Some(("list", m)) => list(m),
        Some(("show", m)) => show(m),
        Some(("revoke", m)) => revoke(m),
        _ => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

fn owners() -> Result<Owners, String> {
    let places = places();
    places.make().map_err(|e| e.to_string())?;
    Ok(Owners::new(places.owners()))
}

fn bytes(m: &ArgMatches, flag: &str) -> Result<Option<u64>, String> {
    let Some(given) = text(m, flag) else { return Ok(None) };
    Bytes::parse(given)
        .map(|bytes| Some(bytes.0.unwrap_or(u64::MAX)))
        .map_err(|e| format!("--{flag}: {e}"))
}

/// What was said, over what there is.
fn said(m: &ArgMatches) -> Result<impl FnOnce(&mut OwnerLimits), String> {
    let (memory, disk) = (bytes(m, "memory")?, bytes(m, "disk")?);
    let number = |flag: &str| m.get_one::<u64>(flag).copied();
    let numbers = [number("sandboxes"), number("commands"), number("sessions"), memory, disk];
    let hosts: Option<Vec<String>> =
        m.get_many::<String>("allow-host").map(|all| all.cloned().collect());
    Ok(move |limits: &mut OwnerLimits| {
        let OwnerLimits { sandboxes, commands, sessions, memory, disk, hosts: allowed } = limits;
        for (to, from) in [sandboxes, commands, sessions, memory, disk].into_iter().zip(numbers) {
            *to = from.or(*to);
        }
        if let Some(hosts) = hosts {
            *allowed = hosts;
        }
    })
}

fn create(m: &ArgMatches) -> Result<ExitCode, String> {
    let name = text(m, "name").unwrap_or_default();
    let made = owners()?.create(name, said(m)?, m.get_flag("rotate"));
    let (_, token) = made.map_err(told)?;
    Ok(output::print(&format!("{token}\n")))
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn told(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn limit(m: &ArgMatches) -> Result<ExitCode, String> {
    let name = text(m, "name").unwrap_or_default();
    let gone: Vec<&String> = m.get_many("unlimited").into_iter().flatten().collect();
    let known = ["sandboxes", "commands", "sessions", "memory", "disk", "hosts"];
    if let Some(other) = gone.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("--unlimited: {other} is not one of {}", known.join(", ")));
    }
    let said = said(m)?;
    let changed = owners()?.limit(name, |limits| {
        said(limits);
        for name in gone {
            match name.as_str() {
                "sandboxes" => limits.sandboxes = None,
                "commands" => limits.commands = None,
                "sessions" => limits.sessions = None,
                "memory" => limits.memory = None,
                "disk" => limits.disk = None,
                _ => limits.hosts.clear(),
            }
        }
    });
    Ok(output::print(&line(&changed.map_err(told)?)))
}

/// Of what may be seen: not the hash.
fn shown(record: &Record) -> serde_json::Value {
    json!({
        "name": record.name, "active": record.token.is_some(), "created_ms": record.created_ms,
        "limits": record.limits,
    })
}

fn words(limits: &OwnerLimits) -> String {
    let OwnerLimits { sandboxes, commands, sessions, memory, disk, hosts } = limits;
    let mut out = String::new();
    for (name, value) in [
        ("sandboxes", sandboxes),
        ("commands", commands),
        ("sessions", sessions),
        ("memory", memory),
        ("disk", disk),
    ] {
        if let Some(value) = value {
            let _ = write!(out, "  {name} {value}");
        }
    }
    if !hosts.is_empty() {
        let _ = write!(out, "  hosts {}", hosts.join(","));
    }
    out
}

fn line(record: &Record) -> String {
    let state = if record.token.is_some() { "active" } else { "revoked" };
    format!("{:20}  {state:7}{}\n", record.name, words(&record.limits))
}

fn list(m: &ArgMatches) -> Result<ExitCode, String> {
    let all = owners()?.all();
    if m.get_flag("json") {
        return Ok(output::print_json(&all.iter().map(shown).collect::<Vec<_>>()));
    }
    Ok(output::print(&all.iter().map(line).collect::<String>()))
}

fn show(m: &ArgMatches) -> Result<ExitCode, String> {
    let info: OwnerInfo = connect()?.call(GET, "/v1/owner", NOTHING).map_err(told)?;
    if m.get_flag("json") {
        return Ok(output::print_json(&info));
    }
    let used = info.used;
    Ok(output::print(&format!(
        "{}\nmay have:{}\nhas:  sandboxes {}  commands {}  sessions {}  memory {}  disk {}\n",
        info.owner,
        words(&info.limits),
        used.sandboxes,
        used.commands,
        used.sessions,
        used.memory,
        used.disk
    )))
}

fn revoke(m: &ArgMatches) -> Result<ExitCode, String> {
    owners()?.revoke(text(m, "name").unwrap_or_default()).map_err(told)?;
    Ok(ExitCode::SUCCESS)
}
