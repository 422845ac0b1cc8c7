//! `ringfence run --keep`: the run's sandbox is the daemon's, and stays when the command has ended.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::Path;

use ringfence_api::codebases::Layer;
use ringfence_api::{CreateSandbox, ExecRequest, Sandbox};
use ringfence_client::{DELETE, NOTHING, POST, segment};
use ringfence_policy::{Format, Fragment, Millis, Pty};

use super::daemon::connect;
use super::sandboxes::{input, policy, streamed};
use crate::exit::ExitCode;
use crate::flags::{Id, Typed};
use crate::layers;
use crate::output::{self, printable};
use crate::progress::Wait;

/// What is of this process, or of a single run: it cannot go on in the daemon.
const ALONE: [(Id, &str); 13] = [
    (Id::Grace, "--grace"),
    (Id::ShareCache, "--share-cache"),
    (Id::Checkpoint, "--checkpoint"),
    (Id::Exact, "--exact"),
    (Id::Port, "--port"),
    (Id::Inspect, "--inspect"),
    (Id::SshAgent, "--ssh-agent"),
    (Id::Explain, "--explain"),
    (Id::Json, "--json"),
    (Id::Status, "--status"),
    (Id::Log, "--log"),
    (Id::Debug, "--debug"),
    (Id::Monitor, "--monitor"),
];

pub fn main(typed: &Typed, argv: &[OsString]) -> ExitCode {
    kept(typed, argv).unwrap_or_else(output::fail)
}

fn utf8(value: &OsStr, what: &str) -> Result<String, String> {
    value.to_str().map(ToOwned::to_owned).ok_or_else(|| format!("{what} is not utf-8"))
}

fn kept(typed: &Typed, argv: &[OsString]) -> Result<ExitCode, String> {
    if let Some((_, flag)) = ALONE.iter().find(|(id, _)| typed.has(*id)) {
        return Err(format!("--keep and {flag} exclude each other: the sandbox is the daemon's"));
    }
    let mut flags = layers::from_flags(typed).map_err(|e| e.to_string())?;
    if let Some(passed) = flags.environment.pass.first() {
        let name = printable(&passed.value);
        return Err(format!(
            "--env {name}: the daemon has another environment; write {name}=VALUE"
        ));
    }
    let timeout = flags.limits.timeout.take().and_then(|Millis(ms)| ms);
    let terminal = match flags.terminal.pty.take() {
        Some(Pty::Always) => true,
        Some(Pty::Never) => false,
        _ => std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
    };
    let made_of = made_of(typed, flags)?;
    let argv = argv.iter().map(|word| utf8(word, "the command")).collect::<Result<_, _>>()?;
    let mut request =
        ExecRequest { argv, cwd: cwd(typed)?, timeout_ms: timeout, ..ExecRequest::default() };
    if !terminal {
        (request.stdin, request.stdin_base64) = (input()?, true);
    }
    let mut client = connect()?;
    let wait = Wait::new("making the sandbox");
    let made: Sandbox =
        client.call(POST, "/v1/sandboxes", Some(&made_of)).map_err(|e| e.to_string())?;
    drop(wait);
    for line in &made.degraded {
        output::say(format_args!("degraded: {}", printable(line)));
    }
    let ran = if terminal {
        super::attach::start(&made.id, request, true)
    } else {
        streamed(|each| client.exec_stream(&made.id, &request, each))
    };
    match ran {
        Ok(code) => {
            output::say(format_args!("kept: {}", made.id));
            Ok(code)
        }
        // Nothing ran in it: there is nothing to keep.
        Err(e) => {
            let path = format!("/v1/sandboxes/{}", segment(&made.id));
            let gone = connect()?.call::<()>(DELETE, &path, NOTHING);
            gone.map_err(|left| format!("{e}; and {} is left: {left}", made.id))?;
            Err(e)
        }
    }
}

/// Where the command starts, as it is seen inside.
fn cwd(typed: &Typed) -> Result<Option<String>, String> {
    let Some(cwd) = typed.last(Id::Cwd) else { return Ok(None) };
    if typed.has(Id::Codebase) {
        return utf8(cwd, "--cwd").map(Some);
    }
    let real = std::fs::canonicalize(Path::new(cwd))
        .map_err(|e| format!("--cwd: {}: {}", printable(cwd), e.kind()))?;
    utf8(real.as_os_str(), "--cwd").map(Some)
}

/// A policy that a run here would find is not left out silently, and not sent: the daemon takes what its
/// caller names.
fn no_policy_is_found(typed: &Typed) -> Result<(), String> {
    if typed.has(Id::Settings) || typed.has(Id::Profile) || typed.has(Id::NoConfig) {
        return Ok(());
    }
    let project = layers::find_project(typed).map_err(|e| e.to_string())?;
    let found = match project {
        Some(found) => Some(found),
        None => layers::find_user().map_err(|e| e.to_string())?,
    };
    match found {
        Some((path, _)) => Err(format!(
            "--keep: {} is for runs here; name it with --settings, or pass --no-config to do without it",
            printable(&path)
        )),
        None => Ok(()),
    }
}

fn made_of(typed: &Typed, flags: Fragment) -> Result<CreateSandbox, String> {
    no_policy_is_found(typed)?;
    let layer = typed.last(Id::Layer).map(|name| utf8(name, "--layer")).transpose()?;
    let layer = layer.map(|name| match name.as_str() {
        "auto" => Layer::Own(true),
        _ => Layer::Named(name),
    });
    let codebase = typed.last(Id::Codebase).map(|name| utf8(name, "--codebase")).transpose()?;
    let workspace = match &codebase {
        Some(_) if typed.has(Id::Workspace) => {
            return Err("--codebase and --workspace exclude each other".into());
        }
        Some(name) if name.contains(':') => {
            return Err("--keep: a codebase is seen at /workspace, and nowhere else".into());
        }
        Some(_) => String::new(),
        None => {
            let given = typed.last(Id::Workspace).unwrap_or(OsStr::new("."));
            let real = std::fs::canonicalize(Path::new(given))
                .map_err(|e| format!("--workspace: {}: {}", printable(given), e.kind()))?;
            utf8(real.as_os_str(), "--workspace")?
        }
    };
    let mut profiles = Vec::new();
    for value in typed.all(Id::Profile) {
        let all = utf8(value, "--profile")?;
        profiles.extend(all.split(',').map(|name| name.trim().to_owned()));
    }
    Ok(CreateSandbox {
        codebase,
        layer,
        workspace,
        profiles,
        policy: Some(laid_over(typed, flags)?),
        persistent: true,
        ..CreateSandbox::default()
    })
}

/// The flags over the file that was named.
fn laid_over(
    typed: &Typed,
    mut flags: Fragment,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    // It is said beside the policy.
    flags.layer.name = None;
    let whole = match typed.last(Id::Settings) {
        Some(file) => {
            let map = policy(&file.to_owned())?;
            let text = serde_json::to_vec(&map).map_err(|e| e.to_string())?;
            let file = Fragment::parse_as(&printable(file), &text, Format::Jsonc)
                .map_err(|e| e.to_string())?;
            let extends = file.extends.clone();
            Fragment { extends, ..file.merge(flags) }
        }
        None => flags,
    };
    match serde_json::to_value(whole) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err("the policy is no table".into()),
        Err(e) => Err(e.to_string()),
    }
}
