//! `ringfence files`: files of a sandbox that the daemon keeps; here many at once, in [`super::one_file`] one.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Arg, ArgMatches, Command};
use ringfence_api::codebases::Codebase;
use ringfence_api::{FoundFiles, MoveFile, Unpacked};
use ringfence_client::{Client, GET, NOTHING, POST, segment};

use super::daemon::connect;
use super::sandboxes::{self, json, text, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};
use crate::progress::{self, Bar};

/// What stands before the name of a codebase.
const CODEBASE: &str = "codebase:";

pub(super) fn tree() -> Arg {
    Arg::new("sandbox")
        .value_name("SANDBOX")
        .required(true)
        .help("A sandbox by name or id, or codebase:NAME")
}

fn codebase(m: &ArgMatches) -> Option<&str> {
    text(m, "sandbox")?.strip_prefix(CODEBASE)
}

pub(super) fn place(m: &ArgMatches) -> String {
    match codebase(m) {
        Some(name) => format!("/v1/codebases/{}", segment(name)),
        None => sandboxes::place(m),
    }
}

/// Of all that is below a directory.
fn archive(m: &ArgMatches) -> String {
    let files = if codebase(m).is_some() { "" } else { "/files" };
    let path = segment(text(m, "path").unwrap_or_default());
    format!("{}{files}/archive?path={path}", place(m))
}

fn path() -> Arg {
    Arg::new("path").value_name("DIR").help("As it is seen inside (default: the workspace)")
}

pub fn command() -> Command {
    Command::new("files")
        .about("Read, write, watch, search, pack files of a sandbox, under its own rules")
        .subcommand_required(true)
        .subcommands(super::one_file::commands())
        .subcommand(
            Command::new("search")
                .about("Find names, or lines that have a text")
                .arg(tree())
                .arg(path())
                .arg(value("name", "PATTERN", "Names (*.rs), or with a slash paths (src/**/*.rs)"))
                .arg(value("content", "TEXT", "Lines that have this text"))
                .arg(
                    value("limit", "N", "Answers at most (default: 1000)")
                        .value_parser(clap::value_parser!(u32)),
                )
                .arg(json()),
        )
        .subcommand(
            Command::new("move")
                .about("Give a file or directory another name")
                .arg(tree())
                .arg(Arg::new("from").value_name("FROM").required(true))
                .arg(Arg::new("to").value_name("TO").required(true)),
        )
        .subcommand(
            Command::new("pack")
                .about("Write what is below a directory to standard output, as a tar archive")
                .arg(tree())
                .arg(path()),
        )
        .subcommand(
            Command::new("unpack")
                .about("Put a tar archive from standard input below a directory")
                .arg(tree())
                .arg(path())
                .arg(json()),
        )
        .after_help(
            "Of a codebase (codebase:NAME) files are read, written, listed, moved, removed, packed and unpacked.\nWhat the sandbox may not read is not found and not packed. Links and devices are not unpacked.\n\nExamples:\n  ringfence files read box src/main.rs\n  echo text | ringfence files write box notes\n  ringfence files chmod box 755 run.sh\n  ringfence files watch box src -r\n  ringfence files search box --name '*.rs' --content TODO\n  ringfence files pack box src > src.tar\n  tar c src | ringfence files unpack box",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let of = matches.subcommand_matches("files");
    let done = match of.and_then(ArgMatches::subcommand) {
        Some(("search", m)) => search(m),
        Some(("move", m)) => rename(m),
        Some(("pack", m)) => pack(m),
        Some(("unpack", m)) => unpack(m),
        Some((verb, m)) => super::one_file::main(verb, m),
        None => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

fn at(m: &ArgMatches, what: &str) -> String {
    format!("{}/files/{what}?path={}", place(m), segment(text(m, "path").unwrap_or_default()))
}

fn search(m: &ArgMatches) -> Result<ExitCode, String> {
    let mut url = at(m, "search");
    for name in ["name", "content"] {
        if let Some(given) = text(m, name) {
            let _ = write!(url, "&{name}={}", segment(given));
        }
    }
    if let Some(limit) = m.get_one::<u32>("limit") {
        let _ = write!(url, "&limit={limit}");
    }
    let found: FoundFiles = connect()?.call(GET, &url, NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&found));
    }
    let mut out = String::new();
    for hit in &found.found {
        let path = printable(&hit.path);
        let _ = match (&hit.line, &hit.text) {
            (Some(line), Some(text)) => writeln!(out, "{path}:{line}:{}", printable(text)),
            _ => writeln!(out, "{path}"),
        };
    }
    if found.truncated {
        output::say("there may be more: a limit was reached");
    }
    Ok(output::print(&out))
}

fn rename(m: &ArgMatches) -> Result<ExitCode, String> {
    let given = |name| text(m, name).unwrap_or_default().to_owned();
    let request = MoveFile { from: given("from"), to: given("to") };
    let mut path = format!("{}/files/move", place(m));
    if codebase(m).is_some() {
        let _ = write!(path, "?path={}&to={}", segment(&request.from), segment(&request.to));
    }
    connect()?.call::<()>(POST, &path, Some(&request)).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn pack(m: &ArgMatches) -> Result<ExitCode, String> {
    let bar = Bar::new("received", None);
    let mut out = bar.counts_to(std::io::stdout().lock());
    connect()?.download(&archive(m), &mut out).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn unpack(m: &ArgMatches) -> Result<ExitCode, String> {
    let stdin = std::io::stdin();
    let bar = Bar::new("sent", progress::rest_of(&stdin));
    let from = bar.counts(stdin);
    // What is shown of an answer is shown when the bar is gone.
    let send = |client: &mut Client, from| {
        let answer: Result<serde_json::Value, _> = client.put_from(&archive(m), from);
        drop(bar);
        answer.map_err(|e| e.to_string())
    };
    let answer = send(&mut connect()?, from)?;
    if m.get_flag("json") {
        return Ok(output::print_json(&answer));
    }
    let read = |e: serde_json::Error| format!("the daemon answered otherwise: {e}");
    let (files, bytes) = if codebase(m).is_some() {
        let now: Codebase = serde_json::from_value(answer).map_err(read)?;
        (now.files, now.size)
    } else {
        let done: Unpacked = serde_json::from_value(answer).map_err(read)?;
        (done.files, done.bytes)
    };
    Ok(output::print(&format!("{files} files, {bytes} bytes\n")))
}
