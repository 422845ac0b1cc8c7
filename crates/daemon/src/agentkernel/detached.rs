//! Commands that nobody waits for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::http::HeaderMap;
use ringfence_supervisor::{Command, Kind, Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use super::exec::{self, Request, code};
use super::fault::Fault;
use super::{Ask, Body, Handled, Path, Query, success, unexpected};
use crate::stamp::rfc3339;

const SIGKILL: i32 = 9;
/// How long a command that was killed is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Commands of one sandbox whose ids are kept before those that nobody remembers are dropped.
const MOST_KNOWN: usize = 128;

/// The commands that were detached: others of a sandbox are not shown here. By sandbox, their ids.
#[derive(Debug, Default)]
pub(super) struct Known {
    all: Mutex<HashMap<String, Vec<String>>>,
}

impl Known {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Vec<String>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, sandbox: &str, command: &str) -> bool {
        self.all().get(sandbox).is_some_and(|ids| ids.iter().any(|id| id == command))
    }

    /// How many of that sandbox there are then.
    fn add(&self, sandbox: &str, command: &str) -> usize {
        let mut all = self.all();
        let ids = all.entry(sandbox.to_owned()).or_default();
        ids.push(command.to_owned());
        ids.len()
    }

    fn keep(&self, sandbox: &str, remembered: &[ringfence_api::Exec]) {
        if let Some(ids) = self.all().get_mut(sandbox) {
            ids.retain(|id| remembered.iter().any(|exec| exec.id == *id));
        }
    }

    pub(super) fn forget(&self, sandbox: &str) {
        self.all().remove(sandbox);
    }
}

fn described(name: &str, exec: &ringfence_api::Exec) -> Value {
    let code = exec.ended.as_ref().map(|ended| code(Some(ended)));
    let status = match code {
        None => "running",
        Some(0) => "completed",
        Some(_) => "failed",
    };
    json!({
        "id": exec.id,
        "sandbox": name,
        "command": exec.argv,
        "pid": exec.pid,
        "status": status,
        "exit_code": code,
        "started_at": rfc3339(exec.started_ms),
    })
}

async fn find(
    ask: &Ask,
    name: &str,
    command: String,
) -> Handled<std::sync::Arc<ringfence_supervisor::Exec>> {
    let sandbox = ask.find(name).await?.id;
    let missing = format!("Detached command '{command}' not found");
    if !ask.dialect.detached.has(&sandbox, &command) {
        return Err(Fault::new(axum::http::StatusCode::NOT_FOUND, missing));
    }
    match ask.run(Command::FindExec { sandbox, exec: command }).await {
        Ok(Reply::Exec(exec)) => Ok(exec),
        Ok(other) => Err(unexpected(&other)),
        Err(e) if e.kind == Kind::NotFound => {
            Err(Fault::new(axum::http::StatusCode::NOT_FOUND, missing))
        }
        Err(e) => Err(e.into()),
    }
}

pub(super) async fn start(
    ask: Ask,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(request): Body<Request>,
) -> Handled<Json<Value>> {
    let sandbox = ask.find_running(&name).await?;
    let began = std::time::Instant::now();
    let exec = exec::start(&ask, &sandbox, request.traced(&headers), false).await?;
    let started = exec.described();
    if ask.dialect.detached.add(&sandbox.id, &started.id) > MOST_KNOWN {
        ask.dialect.detached.keep(&sandbox.id, &execs(&ask, sandbox.id.clone()).await?);
    }
    let (dialect, of) = (ask.dialect.clone(), name.clone());
    tokio::spawn(async move {
        let ended = exec.finished().await;
        dialect.counts.command(false, began.elapsed());
        dialect.audit.ran(&sandbox.id, &of, &exec.described().argv, code(ended.as_ref()));
    });
    Ok(success(described(&name, &started)))
}

async fn execs(ask: &Ask, sandbox: String) -> Handled<Vec<ringfence_api::Exec>> {
    match ask.run(Command::Execs(sandbox)).await? {
        Reply::Execs(execs) => Ok(execs),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn list(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    let execs = execs(&ask, sandbox.id.clone()).await?;
    let its = execs.iter().filter(|exec| ask.dialect.detached.has(&sandbox.id, &exec.id));
    Ok(success(its.map(|exec| described(&name, exec)).collect::<Vec<_>>()))
}

pub(super) async fn get(
    ask: Ask,
    Path((name, command)): Path<(String, String)>,
) -> Handled<Json<Value>> {
    let exec = find(&ask, &name, command).await?;
    Ok(success(described(&name, &exec.described())))
}

#[derive(Debug, Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    stream: Option<String>,
}

pub(super) async fn logs(
    ask: Ask,
    Path((name, command)): Path<(String, String)>,
    Query(Which { stream }): Query<Which>,
) -> Handled<Json<Value>> {
    let exec = find(&ask, &name, command).await?;
    let [stdout, stderr] = exec.output();
    let (name, chunk) = match stream.as_deref() {
        Some("stderr") => ("stderr", stderr),
        _ => ("stdout", stdout),
    };
    let mut said = json!({ name: String::from_utf8_lossy(&chunk.bytes) });
    if chunk.lost > 0
        && let Some(said) = said.as_object_mut()
    {
        said.insert("truncated".into(), true.into());
    }
    Ok(success(said))
}

pub(super) async fn kill(
    ask: Ask,
    Path((name, command)): Path<(String, String)>,
) -> Handled<Json<Value>> {
    let exec = find(&ask, &name, command.clone()).await?;
    let sandbox = ask.find(&name).await?.id;
    ask.run(Command::Kill { sandbox, exec: command, signal: SIGKILL }).await?;
    // Who asks next hears that it has ended.
    let _ = tokio::time::timeout(PATIENCE, exec.finished()).await;
    Ok(success("Command killed"))
}
