//! Commands that nobody waits for.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query};
use ringfence_supervisor::{Command, Kind, Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use super::exec::{self, Request, code};
use super::fault::Fault;
use super::{Ask, Body, Handled, success, unexpected};
use crate::stamp::rfc3339;

const SIGKILL: i32 = 9;
/// How long a command that was killed is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

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
    Body(request): Body<Request>,
) -> Handled<Json<Value>> {
    let sandbox = ask.find_running(&name).await?;
    let exec = exec::start(&ask, &sandbox, request, false).await?;
    Ok(success(described(&name, &exec.described())))
}

pub(super) async fn list(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    match ask.run(Command::Execs(sandbox.id)).await? {
        Reply::Execs(execs) => {
            Ok(success(execs.iter().map(|exec| described(&name, exec)).collect::<Vec<_>>()))
        }
        other => Err(unexpected(&other)),
    }
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
    let [stdout, stderr] = exec.output().map(|c| String::from_utf8_lossy(&c.bytes).into_owned());
    Ok(success(match stream.as_deref() {
        Some("stderr") => json!({ "stdout": null, "stderr": stderr }),
        _ => json!({ "stdout": stdout, "stderr": null }),
    }))
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
