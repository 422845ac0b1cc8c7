//! `ringfence files read|write|...`: one file of a sandbox that the daemon keeps, or one directory.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{Read, Write as _};

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::{FileChange, FileInfo, Listing};
use ringfence_client::{Client, DELETE, GET, IF_MATCH, IF_NONE_MATCH, NOTHING, POST, segment};

use super::daemon::connect;
use super::files::{place, tree};
use super::sandboxes::{json, text, value};
use crate::exit::ExitCode;
use crate::output::{self, printable};
use crate::progress::{self, Bar};

/// Read at once where the whole is larger.
const PIECE: u64 = 16 << 20;

fn file() -> Arg {
    Arg::new("path")
        .value_name("PATH")
        .required(true)
        .help("Relative to the workspace, or as it is seen inside")
}

fn directory() -> Arg {
    Arg::new("path").value_name("DIR").help("As it is seen inside (default: the workspace)")
}

fn number(name: &'static str, help: &'static str) -> Arg {
    value(name, "BYTES", help).value_parser(clap::value_parser!(u64))
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn durable() -> Arg {
    switch("durable", "Wait until it is on the disk")
}

/// Only if nobody else was there.
fn conditions() -> [Arg; 2] {
    [
        value("if-match", "TAG", "Only if the file is still as `files stat --json` said (etag)")
            .conflicts_with("new"),
        switch("new", "Only if there is no such file yet"),
    ]
}

fn local(help: &'static str) -> Arg {
    Arg::new("local").value_name("FILE").help(help).value_parser(clap::value_parser!(OsString))
}

pub fn commands() -> [Command; 10] {
    let verb =
        |name: &'static str, about: &'static str| Command::new(name).about(about).arg(tree());
    [
        verb("read", "Write a file to standard output")
            .arg(file())
            .arg(number("offset", "Its first byte (default: 0)"))
            .arg(number("length", "At most so many bytes")),
        verb("write", "Put a file in place as a whole, from standard input")
            .arg(file())
            .arg(durable())
            .args(conditions()),
        verb("list", "List what is in a directory").arg(directory()).arg(json()),
        verb("stat", "Say what a name is; a link is not followed").arg(file()).arg(json()),
        verb("remove", "Remove a file or an empty directory").arg(file()),
        verb("mkdir", "Make a directory").arg(file()),
        verb("chmod", "Set the permissions of a file or directory")
            .arg(Arg::new("mode").value_name("MODE").required(true).help("In octal digits: 644"))
            .arg(file()),
        verb("watch", "Say what changes in a directory, until it or the sandbox ends")
            .arg(directory())
            .arg(switch("recursive", "Also below it").short('r'))
            .arg(json().help("Print a line of JSON for each change")),
        verb("upload", "Put a file of this machine into the sandbox")
            .arg(local("Which").required(true))
            .arg(Arg::new("path").value_name("PATH").help("Where (default: its name)"))
            .arg(durable())
            .args(conditions()),
        verb("download", "Put a file of the sandbox on this machine")
            .arg(file())
            .arg(local("Where; what is there is replaced (default: its name)")),
    ]
}

pub fn main(verb: &str, m: &ArgMatches) -> Result<ExitCode, String> {
    match verb {
        "read" => read(m),
        "write" => put(m, text(m, "path").unwrap_or_default(), Box::new(std::io::stdin())),
        "list" => list(m),
        "stat" => stat(m),
        "remove" => done(m, &DELETE, ""),
        "mkdir" => done(m, &POST, "/directory"),
        "chmod" => done(m, &POST, "/chmod"),
        "watch" => watch(m),
        "upload" => upload(m),
        "download" => download(m),
        _ => Err("no such verb".into()),
    }
}

fn url(m: &ArgMatches, what: &str) -> String {
    format!("{}/files{what}?path={}", place(m), segment(text(m, "path").unwrap_or_default()))
}

fn done(m: &ArgMatches, method: &ringfence_client::Method, what: &str) -> Result<ExitCode, String> {
    let mut url = url(m, what);
    if what == "/chmod" {
        let _ = write!(url, "&mode={}", segment(text(m, "mode").unwrap_or_default()));
    }
    connect()?.call::<()>(method.clone(), &url, NOTHING).map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn info(client: &mut Client, m: &ArgMatches) -> Result<FileInfo, String> {
    client.call(GET, &url(m, "/stat"), NOTHING).map_err(|e| e.to_string())
}

/// In pieces, so that any size can be read.
fn pieces(
    client: &mut Client,
    m: &ArgMatches,
    (mut offset, end): (u64, u64),
    to: &mut dyn std::io::Write,
) -> Result<(), String> {
    while offset < end {
        let length = PIECE.min(end - offset);
        let mut piece = Vec::new();
        let url = format!("{}&offset={offset}&length={length}", url(m, ""));
        client.download(&url, &mut piece).map_err(|e| e.to_string())?;
        if piece.is_empty() {
            break;
        }
        offset += piece.len() as u64;
        to.write_all(&piece).map_err(|e| format!("cannot write: {}", e.kind()))?;
    }
    to.flush().map_err(|e| format!("cannot write: {}", e.kind()))
}

fn read(m: &ArgMatches) -> Result<ExitCode, String> {
    let offset: u64 = m.get_one("offset").copied().unwrap_or(0);
    let mut client = connect()?;
    // The first says what is wrong, also with an empty file.
    let mut first = Vec::new();
    let length: u64 = m.get_one("length").copied().unwrap_or(u64::MAX);
    let begin = format!("{}&offset={offset}&length={}", url(m, ""), PIECE.min(length));
    client.download(&begin, &mut first).map_err(|e| e.to_string())?;
    let mut out = std::io::stdout().lock();
    out.write_all(&first).map_err(|e| format!("cannot write: {}", e.kind()))?;
    let from = offset.saturating_add(first.len() as u64);
    let rest = if first.len() as u64 == PIECE { offset.saturating_add(length) } else { from };
    pieces(&mut client, m, (from, rest), &mut out)?;
    Ok(ExitCode::SUCCESS)
}

/// Sent as it is read, whatever its size.
fn put(m: &ArgMatches, path: &str, from: Box<dyn Read + Send>) -> Result<ExitCode, String> {
    let mut url = format!("{}/files?path={}", place(m), segment(path));
    if m.get_flag("durable") {
        url.push_str("&durable=true");
    }
    let condition = match text(m, "if-match") {
        Some(tag) => Some((IF_MATCH, tag)),
        None => m.get_flag("new").then_some((IF_NONE_MATCH, "*")),
    };
    if condition.is_some() && text(m, "sandbox").is_some_and(|name| name.starts_with("codebase:")) {
        return Err("--if-match, --new: not for files of a codebase".into());
    }
    connect()?
        .put_when::<serde::de::IgnoredAny>(&url, condition, from)
        .map_err(|e| e.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn line(out: &mut String, info: &FileInfo) {
    let FileInfo { name, kind, size, mode, .. } = info;
    let _ = writeln!(out, "{kind:9}  {mode:04o}  {size:>12}  {}", printable(name));
}

fn list(m: &ArgMatches) -> Result<ExitCode, String> {
    let mut m_path = url(m, "/list");
    if text(m, "path").is_none() {
        m_path.push('.');
    }
    let found: Listing = connect()?.call(GET, &m_path, NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&found));
    }
    let mut out = String::new();
    found.entries.iter().for_each(|info| line(&mut out, info));
    if found.truncated {
        output::say("there are more: a limit was reached");
    }
    Ok(output::print(&out))
}

fn stat(m: &ArgMatches) -> Result<ExitCode, String> {
    let info = info(&mut connect()?, m)?;
    if m.get_flag("json") {
        return Ok(output::print_json(&info));
    }
    let mut out = String::new();
    line(&mut out, &info);
    Ok(output::print(&out))
}

fn watch(m: &ArgMatches) -> Result<ExitCode, String> {
    let mut url = url(m, "/watch");
    if m.get_flag("recursive") {
        url.push_str("&recursive=true");
    }
    let json = m.get_flag("json");
    let mut wrong = None;
    let told = connect()?.events(&url, &mut |name, data| {
        let text = if json {
            format!("{{\"event\":\"{name}\",\"data\":{data}}}\n")
        } else {
            match serde_json::from_str::<FileChange>(data) {
                Ok(FileChange { path, from: Some(from), .. }) => {
                    format!("{name}  {}  {}\n", printable(&from), printable(&path))
                }
                Ok(FileChange { path, .. }) => format!("{name}  {}\n", printable(&path)),
                Err(_) => format!("{name}\n"),
            }
        };
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        wrong = written.err();
        wrong.is_none()
    });
    told.map_err(|e| e.to_string())?;
    match wrong {
        Some(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write: {}", e.kind()))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn upload(m: &ArgMatches) -> Result<ExitCode, String> {
    let local = m.get_one::<OsString>("local").ok_or("which file?")?;
    let shown = printable(local);
    let file = std::fs::File::open(local).map_err(|e| format!("{shown}: {}", e.kind()))?;
    let name = std::path::Path::new(local).file_name().and_then(|name| name.to_str());
    let path = text(m, "path").or(name).ok_or_else(|| format!("{shown}: say where to put it"))?;
    let bar = Bar::new("sent", progress::rest_of(&file));
    let sent = put(m, path, bar.counts(file));
    drop(bar);
    sent
}

/// What is there is replaced when all has come.
fn download(m: &ArgMatches) -> Result<ExitCode, String> {
    let path = text(m, "path").unwrap_or_default();
    let name = path.rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."));
    let local = match m.get_one::<OsString>("local") {
        Some(local) => local.clone(),
        None => name.ok_or("say where to put it")?.into(),
    };
    let shown = printable(&local).into_owned();
    let wrong = |e: std::io::Error| format!("{shown}: {}", e.kind());
    let mut client = connect()?;
    let size = info(&mut client, m)?.size;
    let mut draft = local.clone();
    draft.push(format!(".ringfence-{}", std::process::id()));
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&draft).map_err(wrong)?;
    let bar = Bar::new("received", Some(size));
    let mut counted = bar.counts_to(&mut file);
    let put = pieces(&mut client, m, (0, size), &mut counted)
        .and_then(|()| std::fs::rename(&draft, &local).map_err(wrong));
    if put.is_err() {
        // Perhaps it is that which cannot be done.
        let _ = std::fs::remove_file(&draft);
    }
    put.map(|()| ExitCode::SUCCESS)
}
