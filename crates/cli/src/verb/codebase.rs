//! `ringfence codebase`: named trees in the store, that sandboxes are made from.

use crate::exit::ExitCode;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_codebases::remote::{Place, Remote, Wanted};
use ringfence_codebases::{Codebases, Error, From, Made, Options, Record};
use ringfence_layers::{bytes_of, shown};
use ringfence_sandbox::prepare::Request;
use rustix::fs::FileType;
use serde_json::{Value, json};

use super::layers::size;
use crate::help;
use crate::output::{self, printable};
use crate::progress::Bar;

fn name() -> Arg {
    Arg::new("name").value_name("NAME").required(true).help("The codebase, or its id (cb_…)")
}

fn path(required: bool, help: &'static str) -> Arg {
    Arg::new("path")
        .value_name("PATH")
        .required(required)
        .value_parser(clap::value_parser!(OsString))
        .help(help)
}

fn value(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .value_parser(clap::value_parser!(OsString))
        .help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn json_flag() -> Arg {
    switch("json", "Print JSON")
}

fn remote() -> [Arg; 3] {
    [
        Arg::new("url")
            .value_name("URL")
            .required(true)
            .help("s3://BUCKET[/PREFIX] or file:///DIRECTORY"),
        Arg::new("endpoint")
            .long("endpoint")
            .value_name("URL")
            .help("A server that speaks S3 (default: AWS_ENDPOINT_URL, else AWS)"),
        Arg::new("region").long("region").value_name("NAME").help("Default: AWS_REGION"),
    ]
}

const REMOTE: &str = "Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or another of the usual ways of\nAWS), never from the command line. Content is stored once, by its SHA-256, compressed; every version\nis kept.";

pub fn command() -> Command {
    Command::new("codebase")
        .about("Named trees that any number of sandboxes start from (run --codebase NAME)")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help("Examples:\n  ringfence codebase create app --from . --exclude-from .gitignore\n  ringfence run --codebase app -- npm test     sees the tree at /workspace; writes go to a layer\n  ringfence run --codebase app --layer idea -- claude\n  ringfence diff idea                          what it changed; the codebase stays as it is\n  ringfence codebase files app src -r\n  ringfence codebase push app s3://team/codebases")
        .subcommand(
            Command::new("create")
                .about("Make a codebase from a directory, a tar archive, or empty")
                .arg(Arg::new("name").value_name("NAME").required(true).help("Letters, digits, . _ -"))
                .arg(value("from", "DIR", "Copy this directory (without copying content where the file system can share it)"))
                .arg(value("tar", "FILE|-", "Unpack this archive: tar, also .gz or .zst; - is stdin").conflicts_with("from"))
                .arg(value("exclude-from", "FILE", "Leave out what the patterns in FILE match, as in .gitignore; repeatable").action(ArgAction::Append).requires("from"))
                .arg(Arg::new("exclude").long("exclude").value_name("PATTERN").action(ArgAction::Append).requires("from").help("Leave out what PATTERN matches, as in .gitignore; repeatable"))
                .arg(Arg::new("owner").long("owner").value_name("NAME").help("Whose it is, in words (default: your id)"))
                .arg(switch("sealed", "Nothing can be put into it later"))
                .arg(json_flag())
                .after_help("Examples:\n  ringfence codebase create app --from . --exclude-from .gitignore --exclude .git\n  git archive HEAD | ringfence codebase create app --tar -\n  ringfence codebase create empty\n\nSockets and devices are left out. Files become yours; set-user-id bits are dropped. An archive with\nnames that lead out of it, devices, or the same name twice is refused as a whole."),
        )
        .subcommand(Command::new("list").about("List codebases").arg(json_flag()).after_help("Example:\n  ringfence codebase list --json"))
        .subcommand(Command::new("show").about("What is known of a codebase, and which layers lie over it").arg(name()).arg(json_flag()).after_help("Example:\n  ringfence codebase show app"))
        .subcommand(
            Command::new("files")
                .about("List what is in a codebase, from its index")
                .arg(name())
                .arg(path(false, "A directory or file in it (default: the top)"))
                .arg(Arg::new("recursive").short('r').long("recursive").action(ArgAction::SetTrue).help("Everything below"))
                .arg(json_flag())
                .after_help("Examples:\n  ringfence codebase files app\n  ringfence codebase files app src -r --json"),
        )
        .subcommand(
            Command::new("put")
                .about("Put a file into a codebase, from stdin")
                .arg(name())
                .arg(path(true, "Where, relative to the codebase or below /workspace"))
                .arg(Arg::new("mode").long("mode").value_name("OCTAL").help("Permissions (default: as before, or 644)"))
                .arg(json_flag())
                .after_help("Example:\n  ringfence codebase put app conf/app.toml < app.toml\n\nDirectories on the way are made. A sealed codebase, and one that a sandbox runs on, is not changed."),
        )
        .subcommand(Command::new("get").about("Write a file of a codebase to stdout").arg(name()).arg(path(true, "Which")).after_help("Example:\n  ringfence codebase get app conf/app.toml"))
        .subcommand(Command::new("seal").about("Let nothing be put into a codebase any more").arg(name()).arg(json_flag()).after_help("Example:\n  ringfence codebase seal app"))
        .subcommand(Command::new("remove").about("Remove a codebase that no sandbox runs on").arg(name()).arg(json_flag()).after_help("Example:\n  ringfence codebase remove app\n\nLayers over it stay, but cannot be run in any more: `ringfence discard` removes them."))
        .subcommand(
            Command::new("export")
                .about("Write a codebase as a tar archive")
                .arg(name())
                .arg(Arg::new("output").short('o').long("output").value_name("FILE|-").value_parser(clap::value_parser!(OsString)).help("Where to (default: stdout); compressed if it ends in .zst"))
                .arg(switch("zstd", "Compress it"))
                .after_help("Examples:\n  ringfence codebase export app -o app.tar.zst\n  ringfence codebase export app | tar -tv\n\nThe same tree gives the same bytes."),
        )
        .subcommand(
            Command::new("push")
                .about("Put a codebase into an object store as a new version; only what is missing is sent")
                .arg(name())
                .args(remote())
                .arg(Arg::new("to").long("to").value_name("NAME").help("Its name there (default: the same)"))
                .arg(switch("force", "Also over a version that this tree does not come from"))
                .arg(json_flag())
                .after_help(format!("Examples:\n  ringfence codebase push app s3://team/codebases\n  ringfence codebase push app s3://b --endpoint http://127.0.0.1:8333\n  ringfence codebase push app file:///mnt/share\n\n{REMOTE}")),
        )
        .subcommand(
            Command::new("pull")
                .about("Get a codebase from an object store; an interrupted pull goes on where it was")
                .arg(Arg::new("name").value_name("NAME").required(true).help("Its name there"))
                .args(remote())
                .arg(Arg::new("to").long("to").value_name("NAME").help("Its name here (default: the same)"))
                .arg(Arg::new("version").long("version").value_name("N").value_parser(clap::value_parser!(u64)).help("Default: the newest"))
                .arg(switch("force", "Also over a tree that was changed here"))
                .arg(switch("sealed", "Nothing can be put into it later"))
                .arg(json_flag())
                .after_help(format!("Examples:\n  ringfence codebase pull app s3://team/codebases\n  ringfence codebase pull app file:///mnt/share --version 3 --to app-old\n\n{REMOTE}\nNothing is used before its digest was checked.")),
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let found = matches.subcommand_matches("codebase").and_then(ArgMatches::subcommand);
    let Some((verb, m)) = found else { return output::fail("not codebase") };
    let done = match verb {
        "create" => create(m),
        "list" => list(m),
        "show" => show(m),
        "files" => files(m),
        "put" => put(m),
        "get" => get(m),
        "seal" => changed(m, "sealed", Codebases::seal),
        "remove" => changed(m, "removed", Codebases::remove),
        "export" => export(m),
        "push" => push(m),
        _ => pull(m),
    };
    done.unwrap_or_else(|e| output::fail(printable(&e.to_string())))
}

pub fn open() -> Result<Codebases, Error> {
    Codebases::open(&Request::current().store())
}

fn text<'m>(m: &'m ArgMatches, name: &str) -> Option<&'m str> {
    m.get_one::<String>(name).map(String::as_str)
}

fn named(m: &ArgMatches) -> &str {
    text(m, "name").unwrap_or_default()
}

/// The path, empty without one.
fn inside(m: &ArgMatches) -> &OsStr {
    m.get_one::<OsString>("path").map_or(OsStr::new(""), OsString::as_os_str)
}

fn record_json(record: &Record) -> Value {
    json!({
        "id": record.id,
        "name": record.name,
        "owner": record.owner,
        "created": record.created.0,
        "updated": record.updated.0,
        "size": record.size,
        "files": record.files,
        "entries": record.entries,
        "sealed": record.sealed,
        "version": record.version,
    })
}

fn options(m: &ArgMatches) -> Options {
    let all = |id: &str| m.try_get_many::<OsString>(id).ok().flatten().into_iter().flatten();
    Options {
        owner: m.try_get_one::<String>("owner").ok().flatten().cloned(),
        sealed: m.get_flag("sealed"),
        exclude_from: all("exclude-from").map(PathBuf::from).collect(),
        exclude: m
            .try_get_many::<String>("exclude")
            .ok()
            .flatten()
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
    }
}

fn create(m: &ArgMatches) -> Result<ExitCode, Error> {
    let path = |id: &str| m.get_one::<OsString>(id).map(Path::new);
    let from = match (path("from"), path("tar")) {
        (Some(directory), _) => From::Directory(directory),
        (_, Some(file)) if file == Path::new("-") => {
            From::Stream(Box::new(std::io::stdin().lock()))
        }
        (_, Some(file)) => From::Archive(file),
        _ => From::Nothing,
    };
    let bar = Bar::new("copied", None);
    let made = open()?.create(named(m), from, &options(m), &mut |p| bar.tell(p.names, p.bytes))?;
    drop(bar);
    Ok(tell_made(m, &made, "made"))
}

fn tell_made(m: &ArgMatches, made: &Made, what: &str) -> ExitCode {
    let Made { record, skipped } = made;
    if m.get_flag("json") {
        let mut value = record_json(record);
        value["skipped"] = skipped.iter().map(|p| Value::from(shown(p))).collect();
        return output::print_json(&value);
    }
    for path in skipped {
        output::say(format_args!("left out: {} is neither file, directory nor link", shown(path)));
    }
    output::print(&format!(
        "codebase {} {what}: {} files, {}; version {} ({})\n",
        record.name,
        record.files,
        size(record.size),
        record.version,
        record.id
    ))
}

fn list(m: &ArgMatches) -> Result<ExitCode, Error> {
    let all = open()?.list()?;
    if m.get_flag("json") {
        return Ok(output::print_json(&all.iter().map(record_json).collect::<Vec<_>>()));
    }
    if all.is_empty() {
        output::say("no codebases: `ringfence codebase create NAME --from DIR` makes one");
        return Ok(ExitCode::SUCCESS);
    }
    let width = all.iter().map(|r| r.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for r in &all {
        let sealed = if r.sealed { "  sealed" } else { "" };
        let _ = writeln!(
            out,
            "{:width$}  {}  version {:<4} {:>9} files  {:>10}{sealed}",
            r.name,
            r.id,
            r.version,
            r.files,
            size(r.size)
        );
    }
    Ok(output::print(&out))
}

fn show(m: &ArgMatches) -> Result<ExitCode, Error> {
    let all = open()?;
    let codebase = all.get(named(m))?;
    let layers = all.layers(&codebase)?;
    let r = &codebase.record;
    if m.get_flag("json") {
        let mut value = record_json(r);
        value["tree"] = Value::from(shown(&codebase.tree()));
        value["layers"] = layers.names.clone().into();
        value["in_use_by"] = layers.used.map(|(name, _)| name).into();
        return Ok(output::print_json(&value));
    }
    let mut out = String::new();
    let _ = writeln!(out, "{} ({}) of {}", r.name, r.id, printable(&r.owner));
    let _ = writeln!(out, "version  {}{}", r.version, if r.sealed { ", sealed" } else { "" });
    let _ = writeln!(out, "holds    {} files, {} names, {}", r.files, r.entries, size(r.size));
    let _ = writeln!(out, "tree     {}", shown(&codebase.tree()));
    let used = layers.used.map(|(name, pid)| format!("; in use by {name}, pid {pid}"));
    let names = if layers.names.is_empty() { "none".into() } else { layers.names.join(", ") };
    let _ = writeln!(out, "layers   {names}{}", used.unwrap_or_default());
    Ok(output::print(&out))
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        FileType::RegularFile => "file",
        _ => "fifo",
    }
}

fn files(m: &ArgMatches) -> Result<ExitCode, Error> {
    let all = open()?;
    let codebase = all.get(named(m))?;
    let found = all.files(&codebase, inside(m), m.get_flag("recursive"))?;
    let path = |named: &ringfence_layers::names::Named| {
        use std::os::unix::ffi::OsStrExt as _;
        PathBuf::from(OsStr::from_bytes(&named.path))
    };
    if m.get_flag("json") {
        let all: Vec<Value> = found
            .iter()
            .map(|f| {
                let path = path(f);
                let mut value = json!({
                    "path": shown(&path),
                    "kind": kind(f.kind),
                    "size": f.size,
                    "modified": f.mtime.0,
                });
                if let Some(base64) = bytes_of(&path) {
                    value["path_base64"] = base64.into();
                }
                value
            })
            .collect();
        return Ok(output::print_json(&all));
    }
    let mut out = String::new();
    for f in &found {
        let mark = if f.is_dir() { "/" } else { "" };
        let _ = writeln!(out, "{:>12}  {}{mark}", f.size, shown(&path(f)));
    }
    Ok(output::print(&out))
}

fn put(m: &ArgMatches) -> Result<ExitCode, Error> {
    let mode = match text(m, "mode") {
        Some(text) => match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Some(mode),
            _ => {
                return Err(Error::Refused(format!(
                    "--mode: {} is not such as 644",
                    printable(text)
                )));
            }
        },
        None => None,
    };
    let record = open()?.put(named(m), inside(m), mode, std::io::stdin().lock())?;
    Ok(told(m, &record, "changed"))
}

fn told(m: &ArgMatches, record: &Record, what: &str) -> ExitCode {
    if m.get_flag("json") {
        return output::print_json(&record_json(record));
    }
    output::print(&format!("codebase {} {what}: version {}\n", record.name, record.version))
}

fn get(m: &ArgMatches) -> Result<ExitCode, Error> {
    let all = open()?;
    let codebase = all.get(named(m))?;
    match all.get_file(&codebase, inside(m), std::io::stdout().lock()) {
        Err(Error::Stream { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => drop(other?),
    }
    Ok(ExitCode::SUCCESS)
}

fn changed(
    m: &ArgMatches,
    what: &str,
    change: impl Fn(&Codebases, &str) -> Result<Record, Error>,
) -> Result<ExitCode, Error> {
    let record = change(&open()?, named(m))?;
    Ok(told(m, &record, what))
}

fn export(m: &ArgMatches) -> Result<ExitCode, Error> {
    let codebase = open()?.get(named(m))?;
    let target = m.get_one::<OsString>("output").map(Path::new).filter(|p| *p != Path::new("-"));
    let compress =
        m.get_flag("zstd") || target.is_some_and(|p| p.extension() == Some("zst".as_ref()));
    let exported = match target {
        Some(path) => {
            let file = std::fs::File::create(path).map_err(Error::io("make", path))?;
            codebase.export(file, compress)?
        }
        None if std::io::stdout().is_terminal() => {
            return Err(Error::Refused(
                "an archive is not for a terminal: redirect it, or name a file with -o".into(),
            ));
        }
        None => codebase.export(std::io::stdout().lock(), compress)?,
    };
    if target.is_some() {
        output::say(format_args!("{} names, {}", exported.members, size(exported.bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

fn open_remote(m: &ArgMatches) -> Result<Remote, Error> {
    let owned = |id: &str| text(m, id).map(str::to_owned);
    Remote::open(&Place {
        url: owned("url").unwrap_or_default(),
        endpoint: owned("endpoint"),
        region: owned("region"),
    })
}

fn push(m: &ArgMatches) -> Result<ExitCode, Error> {
    let all = open()?;
    let remote = open_remote(m)?;
    let bar = Bar::new("read", None);
    let pushed = all.push(named(m), text(m, "to"), &remote, m.get_flag("force"), &mut |p| {
        bar.tell(p.names, p.bytes);
    })?;
    drop(bar);
    if m.get_flag("json") {
        return Ok(output::print_json(&pushed));
    }
    let state = if pushed.new { "pushed as" } else { "is there already as" };
    Ok(output::print(&format!(
        "codebase {} {state} version {}: {} of {} chunks sent, {}\n",
        named(m),
        pushed.version,
        pushed.uploaded,
        pushed.chunks,
        size(pushed.uploaded_bytes)
    )))
}

fn pull(m: &ArgMatches) -> Result<ExitCode, Error> {
    let all = open()?;
    let remote = open_remote(m)?;
    let wanted = Wanted {
        theirs: named(m),
        version: m.get_one::<u64>("version").copied(),
        force: m.get_flag("force"),
    };
    let name = text(m, "to").unwrap_or(wanted.theirs);
    let bar = Bar::new("fetched", None);
    let made =
        all.pull(name, &remote, &wanted, &options(m), &mut |p| bar.tell(p.names, p.bytes))?;
    drop(bar);
    Ok(tell_made(m, &made, "pulled"))
}
