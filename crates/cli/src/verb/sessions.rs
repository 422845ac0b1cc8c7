//! `ringfence session`: shells that stay, in sandboxes that the daemon keeps.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::{CreateSession, ExecResult, Session, SessionExec, SessionState, Sessions};
use ringfence_client::{DELETE, GET, NOTHING, POST, segment};

use super::daemon::connect;
use super::sandboxes::{code, input, json, pairs, place, sandbox, streamed, text, time, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};

fn session() -> Arg {
    Arg::new("session").value_name("SESSION").required(true).help("Its id")
}

fn environment(help: &'static str) -> Arg {
    value("env", "KEY=VALUE", help).action(ArgAction::Append)
}

pub fn command() -> Command {
    Command::new("session")
        .about("Shells that stay in a sandbox: directory, variables, functions")
        .subcommand_required(true)
        .subcommand(
            Command::new("create")
                .about("Start a shell; prints its id")
                .arg(sandbox())
                .arg(value("shell", "SHELL", "bash, sh or the path of one (default: /bin/sh)"))
                .arg(environment("A variable of the shell; repeatable"))
                .arg(value("cwd", "DIR", "Where it starts, as it is seen inside"))
                .arg(json()),
        )
        .subcommand(
            Command::new("list")
                .about("List the sessions of a sandbox, and the last that were closed")
                .arg(sandbox())
                .arg(json()),
        )
        .subcommand(
            Command::new("exec")
                .about("Run a text in the shell")
                .arg(sandbox())
                .arg(session())
                .arg(value("timeout", "TIME", "Kill it and what it started after this long"))
                .arg(json())
                .arg(Arg::new("text").value_name("TEXT").required(true).last(true)),
        )
        .subcommand(
            Command::new("remove")
                .about("End the shell and what it started")
                .arg(sandbox())
                .arg(session()),
        )
        .after_help(
            "Exit codes of exec:\n  the text's own; 128+N when signal N ended it; 125 it was not run\n\nExamples:\n  id=$(ringfence session create box)\n  ringfence session exec box $id -- 'cd src; export A=1'\n  ringfence session exec box $id -- 'pwd; echo $A'\n  ringfence session remove box $id",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let of = matches.subcommand_matches("session");
    let done = match of.and_then(ArgMatches::subcommand) {
        Some(("create", m)) => create(m),
        Some(("list", m)) => list(m),
        Some(("exec", m)) => exec(m),
        Some(("remove", m)) => remove(m),
        _ => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

fn there(m: &ArgMatches) -> String {
    format!("{}/sessions/{}", place(m), segment(text(m, "session").unwrap_or_default()))
}

fn create(m: &ArgMatches) -> Result<ExitCode, String> {
    let request = CreateSession {
        shell: text(m, "shell").map(ToOwned::to_owned),
        environment: pairs(m, "env")?,
        cwd: text(m, "cwd").map(ToOwned::to_owned),
    };
    let path = format!("{}/sessions", place(m));
    let made: Session = connect()?.call(POST, &path, Some(&request)).map_err(|e| e.to_string())?;
    Ok(if m.get_flag("json") {
        output::print_json(&made)
    } else {
        output::print(&format!("{}\n", made.id))
    })
}

fn list(m: &ArgMatches) -> Result<ExitCode, String> {
    let path = format!("{}/sessions", place(m));
    let found: Sessions = connect()?.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&found.sessions));
    }
    let mut out = String::new();
    for s in found.sessions {
        let state = match (s.state, s.busy) {
            (SessionState::Active, true) => "busy".to_owned(),
            (SessionState::Active, false) => "active".to_owned(),
            (SessionState::Closed, _) => format!("closed: {}", s.reason.unwrap_or_default()),
        };
        let _ = writeln!(out, "{:35}  {:18}  {}", s.id, printable(&state), printable(&s.shell));
    }
    Ok(output::print(&out))
}

fn exec(m: &ArgMatches) -> Result<ExitCode, String> {
    let request = SessionExec {
        command: text(m, "text").unwrap_or_default().to_owned(),
        stdin: input()?,
        stdin_base64: true,
        timeout_ms: time(m, "timeout")?,
    };
    let mut client = connect()?;
    let path = format!("{}/exec", there(m));
    if m.get_flag("json") {
        let result: ExecResult =
            client.call(POST, &path, Some(&request)).map_err(|e| e.to_string())?;
        let printed = output::print_json(&result);
        let code = result.exec.ended.as_ref().map_or(crate::exit::FAILED, code);
        return Ok(if printed == ExitCode::SUCCESS { ExitCode::from(code) } else { printed });
    }
    streamed(|each| client.stream(&format!("{path}/stream"), &request, each))
}

fn remove(m: &ArgMatches) -> Result<ExitCode, String> {
    let mut client = connect()?;
    let path = there(m);
    // Deleting what is not there is no error; an id that was mistyped is one.
    let _: Session = client.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
    client.call::<()>(DELETE, &path, NOTHING).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}
