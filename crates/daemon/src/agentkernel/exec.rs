//! Commands in a sandbox that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::Path;
use ringfence_api::{Ended, ExecRequest};
use ringfence_supervisor::{Command, Exec, Kind, Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Ask, Body, Handled, count, names, success, unexpected};

/// What a shell says where it cannot start a program.
const NOT_FOUND: i32 = 127;
const NOT_STARTED: i32 = 126;

#[derive(Debug, Deserialize)]
pub(super) struct Request {
    command: Vec<String>,
    /// `NAME=value`, each.
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    workdir: Option<String>,
    /// There is nobody to become: commands keep the user that they have.
    #[serde(default, rename = "sudo")]
    _sudo: Option<bool>,
}

impl Request {
    pub(super) fn of(command: Vec<String>) -> Self {
        Self { command, env: None, workdir: None, _sudo: None }
    }

    fn native(self, workspace: &str) -> Handled<ExecRequest> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Fault::invalid("command is required"));
        }
        let mut environment = BTreeMap::new();
        for pair in self.env.unwrap_or_default() {
            match pair.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    environment.insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(Fault::invalid(format!("env: {pair:?} is not NAME=value"))),
            }
        }
        let cwd = match self.workdir {
            Some(dir) if !dir.starts_with('/') => {
                return Err(Fault::invalid("Working directory must be an absolute path"));
            }
            Some(dir) => Some(names::place(&dir, workspace)?),
            None => None,
        };
        Ok(ExecRequest { argv: self.command, environment, cwd, ..ExecRequest::default() })
    }
}

/// Starts it. What could not be started is as what a shell says of it.
pub(super) async fn start(
    ask: &Ask,
    sandbox: &ringfence_api::Sandbox,
    request: Request,
    whole: bool,
) -> Handled<Arc<Exec>> {
    let request = Box::new(request.native(&sandbox.workspace)?);
    count(&ask.dialect.counts.commands);
    let sandbox = sandbox.id.clone();
    let command = Command::Exec { sandbox, request, input: None, whole, key: None };
    match ask.run(command).await {
        Ok(Reply::Exec(exec)) => Ok(exec),
        Ok(other) => Err(unexpected(&other)),
        // The sandbox was there a moment ago: it is the program that is not.
        Err(e) if e.kind == Kind::NotFound => Err(Fault::command(NOT_FOUND, e.message)),
        Err(e) if e.kind == Kind::Refused => Err(Fault::command(NOT_STARTED, e.message)),
        Err(e) => Err(e.into()),
    }
}

/// The code that a shell gives it.
pub(super) fn code(ended: Option<&Ended>) -> i32 {
    match ended {
        Some(Ended { exit_code: Some(code), .. }) => *code,
        Some(Ended { signal: Some(signal), .. }) => 128 + signal,
        _ => 137,
    }
}

/// Both streams, one after the other.
pub(super) fn output(exec: &Exec) -> String {
    let [stdout, stderr] = exec.output();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&stdout.bytes) + &text(&stderr.bytes)
}

/// Waits for its end: what it wrote, or a fault with that in it.
pub(super) async fn finish(exec: &Exec) -> Handled<String> {
    let ended = exec.finished().await;
    match code(ended.as_ref()) {
        0 => Ok(output(exec)),
        code => Err(Fault::command(code, output(exec))),
    }
}

pub(super) async fn run(
    ask: Ask,
    Path(name): Path<String>,
    Body(request): Body<Request>,
) -> Handled<Json<Value>> {
    let sandbox = ask.find_running(&name).await?;
    let exec = start(&ask, &sandbox, request, true).await?;
    Ok(success(json!({ "output": finish(&exec).await? })))
}
