//! Commands in a sandbox that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use ringfence_api::{Ended, ExecRequest};
use ringfence_supervisor::{Command, Exec, Kind, Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Ask, Body, Handled, Path, names, success, unexpected};

/// What a shell says where it cannot start a program.
const NOT_FOUND: i32 = 127;
const NOT_STARTED: i32 = 126;
/// Bytes of the path of a working directory.
const MOST_WORKDIR: usize = 1024;

#[derive(Debug, Deserialize)]
pub(super) struct Request {
    command: Vec<String>,
    /// `NAME=value`, each.
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    workdir: Option<String>,
    /// There is nobody to become: commands keep the user that they have.
    #[serde(default)]
    sudo: Option<bool>,
}

impl Request {
    pub(super) fn of(command: Vec<String>) -> Self {
        Self { command, env: None, workdir: None, sudo: None }
    }

    /// The trace that the request is part of is the command's, whatever its variables say.
    pub(super) fn traced(mut self, headers: &HeaderMap) -> Self {
        let header = |name: &str| headers.get(name)?.to_str().ok().map(ToOwned::to_owned);
        if let Some(parent) = header("traceparent") {
            let all = self.env.get_or_insert_default();
            all.retain(|pair| {
                !["TRACEPARENT=", "TRACESTATE="].iter().any(|name| pair.starts_with(name))
            });
            all.push(format!("TRACEPARENT={parent}"));
            all.extend(header("tracestate").map(|state| format!("TRACESTATE={state}")));
        }
        self
    }

    pub(super) fn command(&self) -> &[String] {
        &self.command
    }

    fn native(self, workspace: &str) -> Handled<ExecRequest> {
        if self.sudo == Some(true) {
            return Err(Fault::new(StatusCode::FORBIDDEN, "sudo is not enabled"));
        }
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
            Some(dir) if dir.len() > MOST_WORKDIR || dir.chars().any(char::is_control) => {
                return Err(Fault::invalid(
                    "Working directory is too long or has control characters",
                ));
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

/// Both streams, one after the other, a line break between them where both say something; and whether the
/// beginning of one is not kept.
pub(super) fn output(exec: &Exec) -> (String, bool) {
    let [stdout, stderr] = exec.output();
    let cut = stdout.lost + stderr.lost > 0;
    let [stdout, stderr] = [stdout, stderr].map(|c| String::from_utf8_lossy(&c.bytes).into_owned());
    let both = !stdout.is_empty() && !stderr.is_empty();
    (if both { format!("{stdout}\n{stderr}") } else { stdout + &stderr }, cut)
}

/// Waits for its end: what it wrote, or a fault with that in it.
pub(super) async fn finish(exec: &Exec) -> Handled<Value> {
    let ended = exec.finished().await;
    let (output, cut) = output(exec);
    match code(ended.as_ref()) {
        0 if cut => Ok(json!({ "output": output, "truncated": true })),
        0 => Ok(json!({ "output": output })),
        code => Err(Fault::command(code, output)),
    }
}

pub(super) async fn run(
    ask: Ask,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(request): Body<Request>,
) -> Handled<Json<Value>> {
    let sandbox = ask.find_running(&name).await?;
    let (began, command) = (std::time::Instant::now(), request.command().to_vec());
    let done = match start(&ask, &sandbox, request.traced(&headers), true).await {
        Ok(exec) => finish(&exec).await,
        Err(fault) => Err(fault),
    };
    let code = match &done {
        Ok(_) => Some(0),
        Err(fault) => fault.command.as_ref().map(|(code, _)| *code),
    };
    if let Some(code) = code {
        ask.dialect.counts.command(false, began.elapsed());
        ask.dialect.audit.ran(&sandbox.id, &name, &command, code);
    }
    done.map(success)
}
