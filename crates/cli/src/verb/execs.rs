//! `ringfence execs`, `show`, `freeze`, `extend`: what runs in a sandbox that the daemon keeps, and its life.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command};
use ringfence_api::{Exec, Execs, Extend, Kill, Sandbox};
use ringfence_client::{GET, NOTHING, POST, segment};
use ringfence_policy::Millis;

use super::daemon::connect;
use super::sandboxes::{json, place, sandbox, streamed, text, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};

fn exec() -> Arg {
    Arg::new("exec").value_name("EXEC").required(true).help("Its id (`ringfence execs list`)")
}

fn number(name: &'static str, help: &'static str) -> Arg {
    value(name, "BYTE", help).value_parser(clap::value_parser!(u64))
}

pub fn commands() -> [Command; 4] {
    [
        Command::new("show")
            .about("Show a sandbox that the daemon keeps")
            .arg(sandbox())
            .arg(json())
            .after_help("Example:\n  ringfence show box --json"),
        Command::new("freeze")
            .about("Stop every process of a sandbox where it stands; `start` lets them go on")
            .arg(sandbox())
            .arg(json())
            .after_help("Example:\n  ringfence freeze box; ringfence start box"),
        Command::new("extend")
            .about("Let a sandbox live longer")
            .arg(sandbox())
            .arg(Arg::new("time").value_name("TIME").required(true).help("How much (30m, 2h)"))
            .arg(json())
            .after_help("Example:\n  ringfence extend box 1h"),
        Command::new("execs")
            .about("Commands of a sandbox: those that run, and the last that ended")
            .subcommand_required(true)
            .subcommand(Command::new("list").about("List them").arg(sandbox()).arg(json()))
            .subcommand(
                Command::new("show").about("Show one").arg(sandbox()).arg(exec()).arg(json()),
            )
            .subcommand(
                Command::new("logs")
                    .about("Write what it wrote, and what it goes on to write, until it ends")
                    .arg(sandbox())
                    .arg(exec())
                    .arg(number("stdout", "Begin with this byte of standard output (default: 0)"))
                    .arg(number("stderr", "Begin with this byte of standard error (default: 0)")),
            )
            .subcommand(
                Command::new("kill")
                    .about("Send it, and what it started, a signal")
                    .arg(sandbox())
                    .arg(exec())
                    .arg(
                        value("signal", "N", "Which (default: 9)")
                            .value_parser(clap::value_parser!(i32).range(1..=64)),
                    ),
            )
            .after_help(
                "Exit codes of logs:\n  the command's own; 128+N when signal N ended it\n\nExamples:\n  id=$(ringfence exec box --background -- make all)\n  ringfence execs logs box $id\n  ringfence execs kill box $id --signal 15",
            ),
    ]
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let done = match matches.subcommand() {
        Some(("show", m)) => show(m),
        Some(("freeze", m)) => freeze(m),
        Some(("extend", m)) => extend(m),
        Some(("execs", m)) => match m.subcommand() {
            Some(("list", m)) => list(m),
            Some(("show", m)) => one(m),
            Some(("logs", m)) => logs(m),
            Some(("kill", m)) => kill(m),
            _ => Err("no such verb".into()),
        },
        _ => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

fn there(m: &ArgMatches) -> String {
    format!("{}/execs/{}", place(m), segment(text(m, "exec").unwrap_or_default()))
}

fn show(m: &ArgMatches) -> Result<ExitCode, String> {
    let sandbox: Sandbox = connect()?.call(GET, &place(m), NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&sandbox));
    }
    let mut out = String::new();
    let Sandbox { id, name, state, reason, workspace, layer, commands, .. } = &sandbox;
    let held = sandbox.frozen_by.map(|by| format!(", held by {}", by.text())).unwrap_or_default();
    let _ = writeln!(out, "id         {}", printable(id));
    let _ = writeln!(out, "name       {}", printable(name.as_deref().unwrap_or("-")));
    let _ = writeln!(out, "state      {} ({}{held})", state.text(), printable(reason));
    let _ = writeln!(out, "workspace  {}", printable(workspace));
    let _ = writeln!(out, "layer      {}", printable(layer.as_deref().unwrap_or("-")));
    let _ = writeln!(out, "commands   {commands}");
    for (key, value) in &sandbox.labels {
        let _ = writeln!(out, "label      {}={}", printable(key), printable(value));
    }
    for line in &sandbox.degraded {
        let _ = writeln!(out, "degraded   {}", printable(line));
    }
    Ok(output::print(&out))
}

fn said(m: &ArgMatches, sandbox: &Sandbox) -> ExitCode {
    if m.get_flag("json") {
        output::print_json(sandbox)
    } else {
        output::print(&format!("{}\n", sandbox.state.text()))
    }
}

fn freeze(m: &ArgMatches) -> Result<ExitCode, String> {
    let path = format!("{}/freeze", place(m));
    let sandbox: Sandbox = connect()?.call(POST, &path, NOTHING).map_err(|e| e.to_string())?;
    Ok(said(m, &sandbox))
}

fn extend(m: &ArgMatches) -> Result<ExitCode, String> {
    let given = text(m, "time").unwrap_or_default();
    let Millis(ms) = Millis::parse(given)?;
    let seconds = ms.ok_or("a sandbox lives for ever by having no end")?.div_ceil(1000);
    let path = format!("{}/extend", place(m));
    let request = Extend { seconds };
    let sandbox: Sandbox =
        connect()?.call(POST, &path, Some(&request)).map_err(|e| e.to_string())?;
    Ok(said(m, &sandbox))
}

fn line(out: &mut String, exec: &Exec) {
    let state = match &exec.ended {
        None => "runs".to_owned(),
        Some(ended) => match (ended.exit_code, ended.signal) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => ended.reason.clone(),
        },
    };
    let words = exec.argv.join(" ");
    let _ = writeln!(out, "{:35}  {state:10}  {}", exec.id, printable(&words));
}

fn list(m: &ArgMatches) -> Result<ExitCode, String> {
    let path = format!("{}/execs", place(m));
    let found: Execs = connect()?.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&found.execs));
    }
    let mut out = String::new();
    found.execs.iter().for_each(|exec| line(&mut out, exec));
    Ok(output::print(&out))
}

fn one(m: &ArgMatches) -> Result<ExitCode, String> {
    let exec: Exec = connect()?.call(GET, &there(m), NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&exec));
    }
    let mut out = String::new();
    line(&mut out, &exec);
    Ok(output::print(&out))
}

fn logs(m: &ArgMatches) -> Result<ExitCode, String> {
    let from = |name| m.get_one::<u64>(name).copied().unwrap_or(0);
    let (out, err) = (from("stdout"), from("stderr"));
    let path = format!("{}/stream?stdout_offset={out}&stderr_offset={err}", there(m));
    let mut client = connect()?;
    streamed(|each| client.follow(&path, each))
}

fn kill(m: &ArgMatches) -> Result<ExitCode, String> {
    let request = m.get_one("signal").map_or_else(Kill::default, |n| Kill { signal: *n });
    let path = format!("{}/kill", there(m));
    connect()?.call::<()>(POST, &path, Some(&request)).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}
