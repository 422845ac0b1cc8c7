//! Sessions: from the wire to a command and back.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::Response;
use ringfence_api::{CreateSession, ExecResult, Follow, Session, SessionExec, Sessions};
use ringfence_supervisor::session::Ask as About;
use ringfence_supervisor::{Command, Exec, Reply};

use super::exec::{events, exec_of, input, result};
use super::{Ask, Body, Handled, Path, unexpected};

type Names = Path<(String, String)>;

fn one(reply: Reply) -> Handled<Json<Session>> {
    match reply {
        Reply::Session(session) => Ok(Json(*session)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn create(
    ask: Ask,
    Path(sandbox): Path<String>,
    Body(request): Body<CreateSession>,
) -> Handled<(StatusCode, Json<Session>)> {
    let about = About::Create { sandbox, request };
    Ok((StatusCode::CREATED, one(ask.run(Command::InSession(about)).await?)?))
}

pub(crate) async fn list(ask: Ask, Path(sandbox): Path<String>) -> Handled<Json<Sessions>> {
    match ask.run(Command::InSession(About::List { sandbox })).await? {
        Reply::Sessions(sessions) => Ok(Json(Sessions { sessions })),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn get(ask: Ask, Path((sandbox, session)): Names) -> Handled<Json<Session>> {
    let about = About::Get { sandbox: Some(sandbox), session };
    one(ask.run(Command::InSession(about)).await?)
}

pub(crate) async fn delete(ask: Ask, Path((sandbox, session)): Names) -> Handled<StatusCode> {
    let about = About::Delete { sandbox: Some(sandbox), session };
    ask.run(Command::InSession(about)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn begin(
    ask: &Ask,
    (sandbox, session): (String, String),
    mut request: SessionExec,
    whole: bool,
) -> Handled<Arc<Exec>> {
    let input = input(request.stdin.take(), request.stdin_base64)?;
    let (sandbox, request) = (Some(sandbox), Box::new(request));
    let about = About::Exec { sandbox, session, request, input, whole };
    exec_of(ask.run(Command::InSession(about)).await?)
}

pub(crate) async fn run(
    ask: Ask,
    Path(names): Names,
    Body(request): Body<SessionExec>,
) -> Handled<Json<ExecResult>> {
    let exec = begin(&ask, names, request, true).await?;
    Ok(Json(result(&exec).await))
}

pub(crate) async fn stream(
    ask: Ask,
    Path(names): Names,
    Body(request): Body<SessionExec>,
) -> Handled<Response> {
    events(&begin(&ask, names, request, false).await?, Follow::default())
}
