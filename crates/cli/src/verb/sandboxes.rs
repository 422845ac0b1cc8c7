//! `ringfence create|start|exec|stop|remove|list`: sandboxes that the daemon keeps.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::{CreateSandbox, ExecRequest, Output, Sandbox, Sandboxes, Text};
use ringfence_client::{DELETE, Event, GET, NOTHING, POST, segment};
use ringfence_policy::{Fragment, Millis};

use super::daemon::connect;
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};
use crate::progress::Wait;

/// The most that is read from standard input for a command.
const MOST_INPUT: u64 = 32 << 20;

pub(super) fn json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

pub(super) fn sandbox() -> Arg {
    Arg::new("sandbox").value_name("SANDBOX").required(true).help("Its name or id")
}

pub(super) fn value(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

pub fn commands() -> [Command; 6] {
    [
        Command::new("create")
            .about("Make a sandbox that the daemon keeps")
            .arg(value("name", "NAME", "A name for it"))
            .arg(
                value("workspace", "DIR", "Directory to work in (default: the current one)")
                    .short('w')
                    .value_parser(clap::value_parser!(OsString)),
            )
            .args(super::made_from::flags())
            .arg(
                value("profile", "NAME", "Built-in profile; repeat to layer")
                    .short('t')
                    .action(ArgAction::Append),
            )
            .arg(
                value("settings", "FILE", "Policy file over the profiles; it may not extend files")
                    .short('s')
                    .value_parser(clap::value_parser!(OsString)),
            )
            .arg(
                value("label", "KEY=VALUE", "A label; repeatable").action(ArgAction::Append),
            )
            .arg(
                value("env", "KEY=VALUE", "A variable of every command; repeatable")
                    .action(ArgAction::Append),
            )
            .arg(value("ttl", "TIME", "Destroy it this long after (30m, 2h)"))
            .arg(value("idle", "TIME", "Stop it when no command has run for this long"))
            .arg(
                Arg::new("persistent")
                    .long("persistent")
                    .action(ArgAction::SetTrue)
                    .help("Make it again when the daemon starts again"),
            )
            .arg(json())
            .after_help(
                "Prints its id.\n\nExamples:\n  ringfence create --name box\n  ringfence create -t read-only -w ~/src/project --ttl 1h\n  ringfence create --name ci --persistent --idle 30m --label team=web\n  ringfence create --codebase app -t agent-safe --rule 'write:/out/**:10'",
            ),
        Command::new("start")
            .about("Make a stopped sandbox again, or let a frozen one go on")
            .arg(sandbox())
            .arg(json())
            .after_help("Example:\n  ringfence start box"),
        Command::new("exec")
            .about("Run a command in a sandbox that the daemon keeps")
            .arg(sandbox())
            .arg(
                value("env", "KEY=VALUE", "A variable of the command; repeatable")
                    .action(ArgAction::Append),
            )
            .arg(value("cwd", "DIR", "Where it starts, as it is seen inside"))
            .arg(value("timeout", "TIME", "Kill it and what it started after this long (10s, 5m)"))
            .arg(
                Arg::new("terminal")
                    .long("terminal")
                    .short('t')
                    .action(ArgAction::SetTrue)
                    .conflicts_with("json")
                    .help("Give it a terminal, which this one shows"),
            )
            .arg(
                Arg::new("background")
                    .long("background")
                    .action(ArgAction::SetTrue)
                    .conflicts_with("terminal")
                    .help("Start it, print its id, and leave it (`ringfence execs`)"),
            )
            .arg(
                Arg::new("json")
                    .long("json")
                    .action(ArgAction::SetTrue)
                    .help("Print exit code, output, time and use as JSON at the end"),
            )
            .arg(
                Arg::new("command")
                    .value_name("COMMAND")
                    .num_args(1..)
                    .required(true)
                    .last(true)
                    .value_parser(clap::value_parser!(OsString)),
            )
            .after_help(
                "Standard input goes to the command as a whole, where it is not a terminal.\n\nExit codes:\n  the command's own; 128+N when signal N ended it; 125 it was not run\n\nExamples:\n  ringfence exec box -- make test\n  ringfence exec box --timeout 30s --json -- ./check\n  ringfence exec -t box -- vim notes\n  tar c src | ringfence exec box -- tar x",
            ),
        Command::new("stop")
            .about("End every process in a sandbox; `start` makes it again")
            .arg(sandbox())
            .arg(json())
            .after_help("Example:\n  ringfence stop box"),
        Command::new("remove")
            .about("End a sandbox and forget it; its workspace stays")
            .arg(sandbox().num_args(1..))
            .after_help("Example:\n  ringfence remove box"),
        Command::new("list")
            .about("List the sandboxes that the daemon keeps")
            .arg(json())
            .after_help("Examples:\n  ringfence list\n  ringfence list --json"),
    ]
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let done = match matches.subcommand() {
        Some(("create", m)) => create(m),
        Some(("start", m)) => turn(m, "start"),
        Some(("stop", m)) => turn(m, "stop"),
        Some(("exec", m)) => exec(m),
        Some(("remove", m)) => remove(m),
        Some(("list", m)) => list(m),
        _ => Err("no such verb".into()),
    };
    done.unwrap_or_else(output::fail)
}

pub(super) fn text<'a>(m: &'a ArgMatches, name: &str) -> Option<&'a str> {
    m.get_one::<String>(name).map(String::as_str)
}

/// `KEY=VALUE`, each.
pub(super) fn pairs<M: FromIterator<(String, String)>>(
    m: &ArgMatches,
    flag: &str,
) -> Result<M, String> {
    m.get_many::<String>(flag)
        .into_iter()
        .flatten()
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(format!("--{flag}: {} is not KEY=VALUE", printable(pair))),
        })
        .collect()
}

pub(super) fn time(m: &ArgMatches, flag: &str) -> Result<Option<u64>, String> {
    let Some(given) = text(m, flag) else { return Ok(None) };
    let ms = Millis::parse(given).map_err(|e| format!("--{flag}: {e}"))?;
    Ok(ms.0)
}

fn seconds(m: &ArgMatches, flag: &str) -> Result<Option<u64>, String> {
    Ok(time(m, flag)?.map(|ms| ms.div_ceil(1000)))
}

fn create(m: &ArgMatches) -> Result<ExitCode, String> {
    let codebase = text(m, "codebase").map(ToOwned::to_owned);
    let workspace = match &codebase {
        Some(_) if m.contains_id("workspace") => {
            return Err("--codebase and --workspace exclude each other".into());
        }
        Some(_) => String::new(),
        None => workspace(m)?,
    };
    let request = CreateSandbox {
        codebase,
        layer: super::made_from::layer(m),
        rules: super::made_from::rules(m)?,
        name: text(m, "name").map(ToOwned::to_owned),
        labels: pairs(m, "label")?,
        workspace,
        profiles: m.get_many("profile").into_iter().flatten().cloned().collect(),
        policy: m.get_one::<OsString>("settings").map(policy).transpose()?,
        environment: pairs(m, "env")?,
        persistent: m.get_flag("persistent"),
        ttl_seconds: seconds(m, "ttl")?,
        idle_stop_seconds: seconds(m, "idle")?,
        ..CreateSandbox::default()
    };
    let wait = Wait::new("making the sandbox");
    let made: Sandbox =
        connect()?.call(POST, "/v1/sandboxes", Some(&request)).map_err(|e| e.to_string())?;
    drop(wait);
    for line in &made.degraded {
        output::say(format_args!("degraded: {}", printable(line)));
    }
    Ok(shown(m, &made, &made.id))
}

fn workspace(m: &ArgMatches) -> Result<String, String> {
    let given = m.get_one::<OsString>("workspace").map_or(".".into(), OsString::clone);
    let workspace = std::fs::canonicalize(&given)
        .map_err(|e| format!("{}: {}", printable(&given), e.kind()))?;
    workspace
        .into_os_string()
        .into_string()
        .map_err(|path| format!("{}: the path is not utf-8", printable(&path)))
}

/// A policy file as the daemon takes it.
pub(super) fn policy(
    file: &OsString,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let shown = printable(file).into_owned();
    let bytes = std::fs::read(file).map_err(|e| format!("{shown}: {}", e.kind()))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown}: not utf-8"))?;
    // Whether it is a policy is said with line and key.
    Fragment::parse(&shown, text.as_bytes()).map_err(|e| e.to_string())?;
    toml::from_str(&text)
        .or_else(|_| serde_json::from_str(&text))
        .map_err(|_| format!("{shown}: neither toml nor json without comments"))
}

fn shown(m: &ArgMatches, sandbox: &Sandbox, word: &str) -> ExitCode {
    if m.get_flag("json") {
        output::print_json(sandbox)
    } else {
        output::print(&format!("{}\n", printable(word)))
    }
}

pub(super) fn place(m: &ArgMatches) -> String {
    format!("/v1/sandboxes/{}", segment(text(m, "sandbox").unwrap_or_default()))
}

fn turn(m: &ArgMatches, verb: &str) -> Result<ExitCode, String> {
    let path = format!("{}/{verb}", place(m));
    let wait = Wait::new(if verb == "stop" { "stopping it" } else { "making it again" });
    let sandbox: Sandbox = connect()?.call(POST, &path, NOTHING).map_err(|e| e.to_string())?;
    drop(wait);
    Ok(shown(m, &sandbox, sandbox.state.text()))
}

fn remove(m: &ArgMatches) -> Result<ExitCode, String> {
    let mut client = connect()?;
    for name in m.get_many::<String>("sandbox").into_iter().flatten() {
        let path = format!("/v1/sandboxes/{}", segment(name));
        // Deleting what is not there is no error; a name that was mistyped is one.
        let _: Sandbox = client.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
        client.call::<()>(DELETE, &path, NOTHING).map_err(|e| e.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(m: &ArgMatches) -> Result<ExitCode, String> {
    let found: Sandboxes =
        connect()?.call(GET, "/v1/sandboxes", NOTHING).map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&found.sandboxes));
    }
    let mut out = String::new();
    for s in found.sandboxes {
        let name = s.name.as_deref().unwrap_or("-");
        let state = s.state.text();
        let workspace = printable(&s.workspace).into_owned();
        let _ = writeln!(out, "{:35}  {state:9}  {name:20}  {workspace}", s.id);
    }
    Ok(output::print(&out))
}

pub(super) fn input() -> Result<Option<String>, String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = stdin.lock().take(MOST_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|e| format!("standard input: {}", e.kind()))?;
    if bytes.len() as u64 > MOST_INPUT {
        return Err(format!("standard input: more than {} MiB", MOST_INPUT >> 20));
    }
    Ok((!bytes.is_empty()).then(|| STANDARD.encode(bytes)))
}

fn exec(m: &ArgMatches) -> Result<ExitCode, String> {
    let words = m.get_many::<OsString>("command").into_iter().flatten();
    let argv = words
        .map(|word| word.to_str().map(ToOwned::to_owned))
        .collect::<Option<Vec<_>>>()
        .ok_or("the command is not utf-8")?;
    let request = ExecRequest {
        argv,
        environment: pairs(m, "env")?,
        cwd: text(m, "cwd").map(ToOwned::to_owned),
        timeout_ms: time(m, "timeout")?,
        ..ExecRequest::default()
    };
    let name = text(m, "sandbox").unwrap_or_default();
    if m.get_flag("terminal") {
        return super::attach::start(name, request, true);
    }
    let request = ExecRequest { stdin: input()?, stdin_base64: true, ..request };
    let mut client = connect()?;
    if m.get_flag("background") {
        let request = ExecRequest { background: true, ..request };
        let begun = client.exec(name, &request).map_err(|e| e.to_string())?.exec;
        return Ok(if m.get_flag("json") {
            output::print_json(&begun)
        } else {
            output::print(&format!("{}\n", begun.id))
        });
    }
    if m.get_flag("json") {
        let result = client.exec(name, &request).map_err(|e| e.to_string())?;
        let printed = output::print_json(&result);
        let code = result.exec.ended.as_ref().map_or(crate::exit::FAILED, code);
        return Ok(if printed == ExitCode::SUCCESS { ExitCode::from(code) } else { printed });
    }
    streamed(|each| client.exec_stream(name, &request, each))
}

pub(super) fn code(ended: &ringfence_api::Ended) -> u8 {
    match (ended.exit_code, ended.signal) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => (128 + signal) as u8,
        (None, None) => crate::exit::FAILED,
    }
}

/// What comes of a command goes where this program's output goes.
pub(super) fn streamed(
    run: impl FnOnce(&mut dyn FnMut(Event)) -> Result<(), ringfence_client::Error>,
) -> Result<ExitCode, String> {
    let mut end = None;
    let mut wrong = None;
    run(&mut |event| match event {
        Event::Stdout(output) => {
            keep(&mut wrong, write(&output, &mut std::io::stdout().lock()));
        }
        Event::Stderr(output) => {
            keep(&mut wrong, write(&output, &mut std::io::stderr().lock()));
        }
        Event::Ended(exec) => end = exec.ended,
        Event::Started(_) => {}
    })
    .map_err(|e| e.to_string())?;
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let ended = end.ok_or("the daemon ended before the command did")?;
    if ended.reason == "timeout" {
        output::say("the command was killed: its time was over");
    }
    Ok(ExitCode::from(code(&ended)))
}

/// The first thing that went wrong.
fn keep(wrong: &mut Option<String>, done: Result<(), String>) {
    if let Err(e) = done {
        wrong.get_or_insert(e);
    }
}

fn write(output: &Output, to: &mut impl std::io::Write) -> Result<(), String> {
    let Text { data, base64, .. } = &output.text;
    let bytes = if *base64 {
        STANDARD.decode(data).map_err(|e| format!("lost the daemon: {e}"))?
    } else {
        data.clone().into_bytes()
    };
    to.write_all(&bytes)
        .and_then(|()| to.flush())
        .map_err(|e| format!("cannot write: {}", e.kind()))
}
