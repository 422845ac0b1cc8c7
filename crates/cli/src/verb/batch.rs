//! `ringfence batch`: many requests to the daemon in one.

use std::ffi::OsString;
use std::io::Read as _;

use clap::{ArgMatches, Command};
use ringfence_api::{BatchCreate, BatchCreated, BatchExec, BatchExecuted};
use ringfence_client::POST;

use super::daemon::connect;
use crate::exit::ExitCode;
use crate::help;
use crate::output;
use crate::progress::Wait;

/// The most that is read from standard input.
const MOST_INPUT: u64 = 32 << 20;

pub fn command() -> Command {
    Command::new("batch")
        .about("Make many sandboxes, or run many commands, by one request")
        .subcommand_required(true)
        .subcommand(Command::new("create").about("Make sandboxes: {\"items\": [{\"workspace\": ...}]}"))
        .subcommand(
            Command::new("exec")
                .about("Run commands: {\"items\": [{\"sandbox\": ..., \"exec\": {\"argv\": [...]}}]}"),
        )
        .after_help(
            "The request is JSON on standard input; `concurrency` in it says how many at a time (8). Prints a result or an error for each item, as JSON.\n\nExit codes:\n  0 when there is a result for each; 125 else\n\nExample:\n  echo '{\"items\": [{\"sandbox\": \"box\", \"exec\": {\"shell\": \"make\"}}]}' | ringfence batch exec",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let of = matches.subcommand_matches("batch");
    match of.and_then(ArgMatches::subcommand_name) {
        Some("create") => create(),
        Some("exec") => exec(),
        _ => Err("no such verb".into()),
    }
    .unwrap_or_else(output::fail)
}

fn request<T: serde::de::DeserializeOwned>() -> Result<T, String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MOST_INPUT + 1).read_to_string(&mut text);
    read.map_err(|e| format!("standard input: {}", e.kind()))?;
    serde_json::from_str(&text).map_err(|e| format!("standard input: {e}"))
}

fn printed(done: &impl serde::Serialize, whole: bool) -> ExitCode {
    match output::print_json(done) {
        ExitCode::SUCCESS if !whole => ExitCode::from(crate::exit::FAILED),
        printed => printed,
    }
}

fn create() -> Result<ExitCode, String> {
    let asked: BatchCreate = request()?;
    let wait = Wait::new("making sandboxes");
    let done: BatchCreated =
        connect()?.call(POST, "/v1/batch/sandboxes", Some(&asked)).map_err(|e| e.to_string())?;
    drop(wait);
    Ok(printed(&done, done.results.iter().all(|r| r.error.is_none())))
}

fn exec() -> Result<ExitCode, String> {
    let asked: BatchExec = request()?;
    let wait = Wait::new("running commands");
    let done: BatchExecuted =
        connect()?.call(POST, "/v1/batch/exec", Some(&asked)).map_err(|e| e.to_string())?;
    drop(wait);
    Ok(printed(&done, done.results.iter().all(|r| r.error.is_none())))
}
