//! Layers of sandboxes: from the wire to a command and back.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ringfence_api::layers::{Applied, Chosen, Fork, LayerChanges, LayerInfo, Undo};
use ringfence_supervisor::layers::{Answer, Ask as Wish};
use ringfence_supervisor::{Command, Reply};
use serde::Deserialize;

use super::bodies::sent;
use super::{Ask, Body, Handled, Path, query};
use crate::problem::Problem;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct At {
    path: Option<String>,
    binary: bool,
    snapshot: Option<String>,
    zstd: bool,
}

type Where = Result<Query<At>, QueryRejection>;

async fn run(ask: &Ask, sandbox: String, wish: Wish) -> Handled<Answer> {
    match ask.run(Command::Layer { sandbox, ask: wish }).await? {
        Reply::Layer(answer) => Ok(answer),
        other => Err(super::unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> Problem {
    Problem::internal(format!("the supervisor answered {answer:?}"))
}

async fn done(ask: &Ask, sandbox: String, wish: Wish) -> Handled<StatusCode> {
    run(ask, sandbox, wish).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn info(ask: Ask, Path(id): Path<String>) -> Handled<Json<LayerInfo>> {
    match run(&ask, id, Wish::Info).await? {
        Answer::Info(info) => Ok(Json(info)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn diff(
    ask: Ask,
    Path(id): Path<String>,
    at: Where,
) -> Handled<Json<LayerChanges>> {
    let At { path, .. } = query(at)?;
    match run(&ask, id, Wish::Diff { path }).await? {
        Answer::Changes(changes) => Ok(Json(changes)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn patch(ask: Ask, Path(id): Path<String>, at: Where) -> Handled<Response> {
    let At { path, binary, .. } = query(at)?;
    match run(&ask, id, Wish::Patch { path, binary }).await? {
        Answer::Patch(bytes) => {
            Ok(([(header::CONTENT_TYPE, "text/x-diff")], bytes).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn export(ask: Ask, Path(id): Path<String>, at: Where) -> Handled<Response> {
    let At { snapshot, zstd, .. } = query(at)?;
    let kind = if zstd { "application/zstd" } else { "application/x-tar" };
    match run(&ask, id, Wish::Export { snapshot, zstd }).await? {
        Answer::Bytes(download) => {
            Ok(([(header::CONTENT_TYPE, kind)], sent(download)).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn apply(
    ask: Ask,
    Path(id): Path<String>,
    Body(chosen): Body<Chosen>,
) -> Handled<Json<Applied>> {
    match run(&ask, id, Wish::Apply(chosen)).await? {
        Answer::Applied(applied) => Ok(Json(applied)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn discard(
    ask: Ask,
    Path(id): Path<String>,
    Body(chosen): Body<Chosen>,
) -> Handled<StatusCode> {
    done(&ask, id, Wish::Discard(chosen)).await
}

pub(crate) async fn checkpoint(ask: Ask, Path(id): Path<String>) -> Handled<StatusCode> {
    done(&ask, id, Wish::Checkpoint).await
}

pub(crate) async fn undo(
    ask: Ask,
    Path(id): Path<String>,
    Body(Undo { steps }): Body<Undo>,
) -> Handled<StatusCode> {
    done(&ask, id, Wish::Undo { steps }).await
}

pub(crate) async fn fork(
    ask: Ask,
    Path(id): Path<String>,
    Body(Fork { layer }): Body<Fork>,
) -> Handled<StatusCode> {
    done(&ask, id, Wish::Fork(layer)).await
}

pub(crate) async fn snapshot(
    ask: Ask,
    Path((id, snapshot)): Path<(String, String)>,
) -> Handled<StatusCode> {
    done(&ask, id, Wish::Snapshot(snapshot)).await
}

pub(crate) async fn forget(
    ask: Ask,
    Path((id, snapshot)): Path<(String, String)>,
) -> Handled<StatusCode> {
    done(&ask, id, Wish::Forget(snapshot)).await
}

pub(crate) async fn restore(
    ask: Ask,
    Path((id, snapshot)): Path<(String, String)>,
) -> Handled<StatusCode> {
    done(&ask, id, Wish::Restore(snapshot)).await
}
