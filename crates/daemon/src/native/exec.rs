//! Commands: from the wire to a command and back, whole or as a stream of events.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body as Content, Bytes};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::unfold;
use ringfence_api::{ExecRequest, ExecResult, Execs, Follow, Kill, Output, Text};
use ringfence_supervisor::{Chunk, Command, Exec, Reply, Stream};
use serde::Serialize;

use super::{Ask, Body, Handled, Path, query, unexpected};
use crate::problem::Problem;

pub(super) fn input(text: Option<String>, base64: bool) -> Handled<Option<Vec<u8>>> {
    let Some(text) = text else { return Ok(None) };
    if !base64 {
        return Ok(Some(text.into_bytes()));
    }
    STANDARD.decode(text).map(Some).map_err(|e| Problem::invalid(format!("stdin: {e}")))
}

pub(super) async fn begin(
    ask: &Ask,
    id: String,
    mut request: ExecRequest,
    whole: bool,
) -> Handled<Arc<Exec>> {
    let input = input(request.stdin.take(), request.stdin_base64)?;
    let key = ask.key.clone();
    let (request, input) = (Box::new(request), input.map(Into::into));
    let command = Command::Exec { sandbox: id, request, input, whole, key };
    exec_of(ask.run(command).await?)
}

pub(super) fn exec_of(reply: Reply) -> Handled<Arc<Exec>> {
    match reply {
        Reply::Exec(exec) => Ok(exec),
        other => Err(unexpected(&other)),
    }
}

async fn find(ask: &Ask, (sandbox, exec): (String, String)) -> Handled<Arc<Exec>> {
    exec_of(ask.run(Command::FindExec { sandbox, exec }).await?)
}

fn text(chunk: Chunk) -> Text {
    let lost = chunk.lost;
    match String::from_utf8(chunk.bytes) {
        Ok(data) => Text { data, base64: false, lost },
        Err(e) => Text { data: STANDARD.encode(e.as_bytes()), base64: true, lost },
    }
}

pub(crate) async fn run(
    ask: Ask,
    Path(id): Path<String>,
    Body(request): Body<ExecRequest>,
) -> Handled<(StatusCode, Json<ExecResult>)> {
    let background = request.background;
    let exec = begin(&ask, id, request, !background).await?;
    if background {
        let (stdout, stderr) = (Text::default(), Text::default());
        let result = ExecResult { exec: exec.described(), stdout, stderr };
        return Ok((StatusCode::ACCEPTED, Json(result)));
    }
    Ok((StatusCode::OK, Json(result(&exec).await)))
}

/// At its end.
pub(super) async fn result(exec: &Exec) -> ExecResult {
    exec.finished().await;
    let [stdout, stderr] = exec.output().map(text);
    ExecResult { exec: exec.described(), stdout, stderr }
}

pub(crate) async fn stream(
    ask: Ask,
    Path(id): Path<String>,
    Body(request): Body<ExecRequest>,
) -> Handled<Response> {
    let exec = begin(&ask, id, request, false).await?;
    events(&exec, Follow::default())
}

pub(crate) async fn list(ask: Ask, Path(id): Path<String>) -> Handled<Json<Execs>> {
    match ask.run(Command::Execs(id)).await? {
        Reply::Execs(execs) => Ok(Json(Execs { execs })),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn get(
    ask: Ask,
    Path(names): Path<(String, String)>,
) -> Handled<Json<ringfence_api::Exec>> {
    Ok(Json(find(&ask, names).await?.described()))
}

pub(crate) async fn follow(
    ask: Ask,
    Path(names): Path<(String, String)>,
    from: Result<Query<Follow>, QueryRejection>,
) -> Handled<Response> {
    let from = query(from)?;
    events(&find(&ask, names).await?, from)
}

pub(crate) async fn kill(
    ask: Ask,
    Path((sandbox, exec)): Path<(String, String)>,
    Body(Kill { signal }): Body<Kill>,
) -> Handled<StatusCode> {
    ask.run(Command::Kill { sandbox, exec, signal }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn event(name: &str, data: &impl Serialize) -> Bytes {
    // What was just described can be written.
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// The next piece is taken when the last one was sent: a slow reader slows the command down, and nothing
/// is collected here.
pub(super) fn events(exec: &Arc<Exec>, from: Follow) -> Handled<Response> {
    let following = exec.follow(from.stdout_offset, from.stderr_offset);
    let begin = VecDeque::from([event("started", &exec.described())]);
    let state = (exec.clone(), Some(following), begin);
    let stream = unfold(state, |(exec, following, mut ready)| async move {
        if let Some(bytes) = ready.pop_front() {
            return Some((Ok::<_, std::convert::Infallible>(bytes), (exec, following, ready)));
        }
        let mut following = following?;
        let Some(chunk) = following.next().await else {
            let bytes = event("ended", &exec.described());
            return Some((Ok(bytes), (exec, None, ready)));
        };
        let name = match chunk.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let bytes = event(name, &Output { offset: chunk.offset, text: text(chunk) });
        Some((Ok(bytes), (exec, Some(following), ready)))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store")
        .body(Content::from_stream(stream))
        .map_err(|e| Problem::internal(e.to_string()))
}
