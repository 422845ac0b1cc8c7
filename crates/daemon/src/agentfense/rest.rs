//! The same over REST, as their gateway has it: messages as JSON, names in camel case, enums by name,
//! 64-bit numbers as text.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prost_types::{Duration, Timestamp};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

use super::{Ask, Fense, MOST_MESSAGE, wire};
use crate::stamp::rfc3339;

/// An error of a call, as their gateway says it.
#[derive(Debug)]
pub(super) struct Fault(pub Status);

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = match self.0.code() {
            Code::Ok => StatusCode::OK,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
                StatusCode::BAD_REQUEST
            }
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
            Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let code = i32::from(self.0.code());
        let body = json!({ "code": code, "message": self.0.message(), "details": [] });
        (status, Json(body)).into_response()
    }
}

type Handled = Result<Json<Value>, Fault>;

pub(super) fn router(fense: Fense) -> Router {
    Router::new()
        .route("/v1/sandboxes", post(create).get(list))
        .route("/v1/sandboxes/{id}", get(one).delete(destroy))
        .route("/v1/sandboxes/{id}/start", post(start))
        .route("/v1/sandboxes/{id}/stop", post(stop))
        .route("/v1/sandboxes/{id}/exec", post(exec))
        .route("/v1/sandboxes/{id}/sessions", post(create_session).get(sessions))
        .route("/v1/sessions/{id}", get(session).delete(destroy_session))
        .route("/v1/sessions/{id}/exec", post(session_exec))
        .route("/v1/codebases", post(create_codebase).get(codebases))
        .route("/v1/codebases/{id}", get(codebase).delete(delete_codebase))
        .route("/v1/codebases/{id}/files", get(files))
        .route("/health", get(health))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_that)
        .layer(DefaultBodyLimit::max(MOST_MESSAGE))
        .with_state(fense)
}

async fn nowhere() -> Fault {
    Fault(Status::not_found("Not Found"))
}

async fn not_that() -> Fault {
    Fault(Status::unimplemented("Method Not Allowed"))
}

async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

impl FromRequestParts<Fense> for Ask {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, fense: &Fense) -> Result<Self, Fault> {
        Ok(fense.ask(&parts.extensions)?)
    }
}

/// A JSON body, of a request that says that it is one: a web page cannot send that without asking.
struct Body<T>(T);

impl<T: DeserializeOwned + Default> axum::extract::FromRequest<Fense> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, fense: &Fense) -> Result<Self, Fault> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = kind.and_then(|v| v.split(';').next()).unwrap_or_default().trim();
        let is_json = kind.eq_ignore_ascii_case("application/json");
        let bytes = Bytes::from_request(request, fense)
            .await
            .map_err(|_| Status::resource_exhausted("the body cannot be read, or is too large"))?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        if !is_json {
            return Err(Fault(Status::invalid_argument("the body is not said to be JSON")));
        }
        let parsed = serde_json::from_slice(&bytes)
            .and_then(|value| serde_json::from_value(without_null(value)));
        Ok(parsed.map(Self).map_err(|e| Status::invalid_argument(format!("body: {e}")))?)
    }
}

/// Null is as if it were not there.
fn without_null(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(name, value)| (name, without_null(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(all) => all.into_iter().map(without_null).collect::<Vec<_>>().into(),
        other => other,
    }
}

/// A number: text, or a number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(i64),
    Text(String),
}

impl Number {
    fn of(number: Option<Self>) -> Result<i64, Status> {
        match number {
            None => Ok(0),
            Some(Self::Plain(n)) => Ok(n),
            Some(Self::Text(text)) => text
                .parse()
                .map_err(|_| Status::invalid_argument(format!("{text:?} is not a number"))),
        }
    }
}

/// An enum: its name, or its number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Name {
    Number(i32),
    Text(String),
}

impl Name {
    fn of(name: Option<Self>, from: fn(&str) -> Option<i32>) -> Result<i32, Status> {
        match name {
            None => Ok(0),
            Some(Self::Number(n)) => Ok(n),
            Some(Self::Text(text)) => from(&text)
                .ok_or_else(|| Status::invalid_argument(format!("nobody knows {text:?}"))),
        }
    }
}

/// `1.5s`.
fn duration(text: Option<String>) -> Result<Option<Duration>, Status> {
    let Some(text) = text else { return Ok(None) };
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    let duration = seconds.and_then(|s| std::time::Duration::try_from_secs_f64(s).ok());
    match duration.and_then(|d| Duration::try_from(d).ok()) {
        Some(duration) => Ok(Some(duration)),
        None => Err(Status::invalid_argument(format!("{text:?} is not a time (1.5s)"))),
    }
}

fn moment(at: Option<&Timestamp>) -> Value {
    at.map_or(Value::Null, |at| {
        let ms = at.seconds.max(0) as u64 * 1000 + at.nanos.max(0) as u64 / 1_000_000;
        rfc3339(ms).into()
    })
}

fn sandbox_of(sandbox: &wire::Sandbox) -> Value {
    let rules: Vec<Value> = sandbox
        .permissions
        .iter()
        .map(|rule| {
            json!({
                "pattern": rule.pattern,
                "type": rule.r#type().as_str_name(),
                "permission": rule.permission().as_str_name(),
                "priority": rule.priority,
            })
        })
        .collect();
    let resources = sandbox.resources.map(|r| {
        json!({
            "memoryBytes": r.memory_bytes.to_string(),
            "cpuQuota": r.cpu_quota.to_string(),
            "cpuShares": r.cpu_shares.to_string(),
            "pidsLimit": r.pids_limit.to_string(),
        })
    });
    json!({
        "id": sandbox.id,
        "codebaseId": sandbox.codebase_id,
        "permissions": rules,
        "status": sandbox.status().as_str_name(),
        "labels": sandbox.labels,
        "createdAt": moment(sandbox.created_at.as_ref()),
        "startedAt": moment(sandbox.started_at.as_ref()),
        "stoppedAt": moment(sandbox.stopped_at.as_ref()),
        "expiresAt": moment(sandbox.expires_at.as_ref()),
        "runtime": sandbox.runtime().as_str_name(),
        "image": sandbox.image,
        "resources": resources,
    })
}

fn session_of(session: &wire::Session) -> Value {
    json!({
        "id": session.id,
        "sandboxId": session.sandbox_id,
        "status": session.status().as_str_name(),
        "shell": session.shell,
        "createdAt": moment(session.created_at.as_ref()),
        "closedAt": moment(session.closed_at.as_ref()),
    })
}

fn codebase_of(codebase: &wire::Codebase) -> Value {
    json!({
        "id": codebase.id,
        "name": codebase.name,
        "ownerId": codebase.owner_id,
        "size": codebase.size.to_string(),
        "fileCount": codebase.file_count,
        "createdAt": moment(codebase.created_at.as_ref()),
        "updatedAt": moment(codebase.updated_at.as_ref()),
    })
}

fn result_of(result: &wire::ExecResult) -> Value {
    let took = result.duration.as_ref().map(|d| {
        let nanos = format!("{:09}", d.nanos);
        let nanos = nanos.trim_end_matches('0');
        let point = if nanos.is_empty() { "" } else { "." };
        format!("{}{point}{nanos}s", d.seconds)
    });
    json!({
        "stdout": result.stdout,
        "stderr": result.stderr,
        "exitCode": result.exit_code,
        "duration": took,
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Rule {
    pattern: String,
    #[serde(rename = "type")]
    kind: Option<Name>,
    permission: Option<Name>,
    priority: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Resources {
    #[serde(alias = "memory_bytes")]
    memory_bytes: Option<Number>,
    #[serde(alias = "cpu_quota")]
    cpu_quota: Option<Number>,
    #[serde(alias = "cpu_shares")]
    cpu_shares: Option<Number>,
    #[serde(alias = "pids_limit")]
    pids_limit: Option<Number>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Create {
    #[serde(alias = "codebase_id")]
    codebase_id: String,
    permissions: Vec<Rule>,
    #[serde(alias = "expires_in")]
    expires_in: Option<String>,
    labels: HashMap<String, String>,
    runtime: Option<Name>,
    image: String,
    resources: Option<Resources>,
}

impl Create {
    fn wire(self) -> Result<wire::CreateSandboxRequest, Status> {
        let rule = |rule: Rule| -> Result<_, Status> {
            Ok(wire::PermissionRule {
                pattern: rule.pattern,
                r#type: Name::of(rule.kind, |n| {
                    wire::PatternType::from_str_name(n).map(Into::into)
                })?,
                permission: Name::of(rule.permission, |n| {
                    wire::Permission::from_str_name(n).map(Into::into)
                })?,
                priority: Number::of(rule.priority)?
                    .try_into()
                    .map_err(|_| Status::invalid_argument("priority: it is no 32-bit number"))?,
            })
        };
        let resources = |r: Resources| -> Result<_, Status> {
            Ok(wire::ResourceLimits {
                memory_bytes: Number::of(r.memory_bytes)?,
                cpu_quota: Number::of(r.cpu_quota)?,
                cpu_shares: Number::of(r.cpu_shares)?,
                pids_limit: Number::of(r.pids_limit)?,
            })
        };
        Ok(wire::CreateSandboxRequest {
            codebase_id: self.codebase_id,
            permissions: self.permissions.into_iter().map(rule).collect::<Result<_, _>>()?,
            expires_in: duration(self.expires_in)?,
            labels: self.labels,
            runtime: Name::of(self.runtime, |n| {
                wire::RuntimeType::from_str_name(n).map(Into::into)
            })?,
            image: self.image,
            resources: self.resources.map(resources).transpose()?,
        })
    }
}

async fn create(ask: Ask, Body(asked): Body<Create>) -> Handled {
    Ok(Json(sandbox_of(&ask.create(asked.wire()?).await?)))
}

/// What stands behind the question mark, with either spelling.
#[derive(Debug, Default)]
struct Asked {
    codebase_id: String,
    owner_id: String,
    page_size: i32,
    page_token: String,
    path: String,
    recursive: bool,
}

impl Asked {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, Status> {
        let mut asked = Self::default();
        for (name, value) in pairs {
            let wrong = || Status::invalid_argument(format!("{name}: {value:?} is none"));
            match name.as_str() {
                "codebase_id" | "codebaseId" => asked.codebase_id = value,
                "owner_id" | "ownerId" => asked.owner_id = value,
                "page_token" | "pageToken" => asked.page_token = value,
                "path" => asked.path = value,
                "page_size" | "pageSize" => {
                    asked.page_size = value.parse().map_err(|_| wrong())?;
                }
                "recursive" => {
                    asked.recursive = match value.as_str() {
                        "1" | "t" | "T" | "true" | "True" | "TRUE" => true,
                        "0" | "f" | "F" | "false" | "False" | "FALSE" => false,
                        _ => return Err(wrong()),
                    };
                }
                _ => {}
            }
        }
        Ok(asked)
    }
}

impl FromRequestParts<Fense> for Asked {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, fense: &Fense) -> Result<Self, Fault> {
        let pairs = Query::<Vec<(String, String)>>::from_request_parts(parts, fense)
            .await
            .map_err(|e| Status::invalid_argument(e.body_text()))?;
        Ok(Self::of(pairs.0)?)
    }
}

async fn list(ask: Ask, asked: Asked) -> Handled {
    let Asked { codebase_id, page_size, page_token, .. } = asked;
    let answer =
        ask.list(wire::ListSandboxesRequest { codebase_id, page_size, page_token }).await?;
    let all: Vec<Value> = answer.sandboxes.iter().map(sandbox_of).collect();
    Ok(Json(json!({ "sandboxes": all, "nextPageToken": answer.next_page_token })))
}

async fn one(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(Json(sandbox_of(&ask.get(&id).await?)))
}

async fn start(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(Json(sandbox_of(&ask.start(&id).await?)))
}

async fn stop(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(Json(sandbox_of(&ask.stop(&id).await?)))
}

fn nothing(_: wire::Empty) -> Json<Value> {
    Json(Value::Object(Map::new()))
}

async fn destroy(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(nothing(ask.destroy(&id).await?))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Exec {
    command: String,
    stdin: String,
    env: HashMap<String, String>,
    workdir: String,
    timeout: Option<String>,
}

async fn exec(ask: Ask, Path(id): Path<String>, Body(asked): Body<Exec>) -> Handled {
    let Exec { command, stdin, env, workdir, timeout } = asked;
    let timeout = duration(timeout)?;
    let asked = wire::ExecRequest { sandbox_id: id, command, stdin, env, workdir, timeout };
    Ok(Json(result_of(&ask.exec(asked).await?)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shell {
    shell: String,
    env: HashMap<String, String>,
}

async fn create_session(ask: Ask, Path(id): Path<String>, Body(asked): Body<Shell>) -> Handled {
    let Shell { shell, env } = asked;
    let asked = wire::CreateSessionRequest { sandbox_id: id, shell, env };
    Ok(Json(session_of(&ask.create_session(asked).await?)))
}

async fn sessions(ask: Ask, Path(id): Path<String>) -> Handled {
    let answer = ask.sessions(&id).await?;
    Ok(Json(json!({ "sessions": answer.sessions.iter().map(session_of).collect::<Vec<_>>() })))
}

async fn session(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(Json(session_of(&ask.get_session(&id).await?)))
}

async fn destroy_session(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(nothing(ask.destroy_session(&id).await?))
}

async fn session_exec(ask: Ask, Path(id): Path<String>, Body(asked): Body<Exec>) -> Handled {
    let timeout = duration(asked.timeout)?;
    let asked = wire::SessionExecRequest { session_id: id, command: asked.command, timeout };
    Ok(Json(result_of(&ask.session_exec(asked).await?)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NewCodebase {
    name: String,
    #[serde(alias = "owner_id")]
    owner_id: String,
}

async fn create_codebase(ask: Ask, Body(asked): Body<NewCodebase>) -> Handled {
    let NewCodebase { name, owner_id } = asked;
    let asked = wire::CreateCodebaseRequest { name, owner_id };
    Ok(Json(codebase_of(&ask.create_codebase(asked).await?)))
}

async fn codebases(ask: Ask, asked: Asked) -> Handled {
    let Asked { owner_id, page_size, page_token, .. } = asked;
    let asked = wire::ListCodebasesRequest { owner_id, page_size, page_token };
    let answer = ask.list_codebases(asked).await?;
    let all: Vec<Value> = answer.codebases.iter().map(codebase_of).collect();
    Ok(Json(json!({ "codebases": all, "nextPageToken": answer.next_page_token })))
}

async fn codebase(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(Json(codebase_of(&ask.get_codebase(&id).await?)))
}

async fn delete_codebase(ask: Ask, Path(id): Path<String>) -> Handled {
    Ok(nothing(ask.delete_codebase(&id).await?))
}

async fn files(ask: Ask, Path(id): Path<String>, asked: Asked) -> Handled {
    let Asked { path, recursive, .. } = asked;
    let answer =
        ask.list_files(wire::ListFilesRequest { codebase_id: id, path, recursive }).await?;
    let all: Vec<Value> = answer
        .files
        .iter()
        .map(|file| {
            json!({
                "path": file.path,
                "name": file.name,
                "isDir": file.is_dir,
                "size": file.size.to_string(),
                "modifiedAt": moment(file.modified_at.as_ref()),
            })
        })
        .collect();
    Ok(Json(json!({ "files": all })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &[(&str, &str)]) -> Result<Asked, Status> {
        Asked::of(query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn queries_are_read_as_their_gateway_reads_them() {
        assert!(
            asked(&[("recursive", "1"), ("pageSize", "7")])
                .is_ok_and(|a| a.recursive && a.page_size == 7)
        );
        assert!(asked(&[("recursive", "F"), ("unknown", "x")]).is_ok_and(|a| !a.recursive));
        for wrong in [("recursive", ""), ("recursive", "yes"), ("page_size", "x")] {
            assert!(asked(&[wrong]).is_err(), "{wrong:?}");
        }
        let body = json!({ "a": null, "b": [{ "c": null, "d": 1 }] });
        assert_eq!(without_null(body), json!({ "b": [{ "d": 1 }] }));
    }
}
