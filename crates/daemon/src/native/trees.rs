//! Many files at once: from the wire to a command and back.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ringfence_api::{FoundFiles, MoveFile, Search, Unpacked};
use ringfence_supervisor::trees::Ask as About;
use ringfence_supervisor::{Command, Reply};
use serde::Deserialize;

use super::codebases::{received, sent};
use super::{Ask, Body, Handled, query, unexpected};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct At {
    #[serde(default)]
    path: String,
}

type Where = Result<Query<At>, QueryRejection>;

pub(crate) async fn rename(
    ask: Ask,
    Path(sandbox): Path<String>,
    Body(MoveFile { from, to }): Body<MoveFile>,
) -> Handled<StatusCode> {
    ask.run(Command::InFiles(About::Move { sandbox, from, to })).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn search(
    ask: Ask,
    Path(sandbox): Path<String>,
    what: Result<Query<Search>, QueryRejection>,
) -> Handled<Json<FoundFiles>> {
    let about = About::Search { sandbox, search: query(what)? };
    match ask.run(Command::InFiles(about)).await? {
        Reply::Found(found) => Ok(Json(found)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn pack(ask: Ask, Path(sandbox): Path<String>, at: Where) -> Handled<Response> {
    let At { path } = query(at)?;
    match ask.run(Command::InFiles(About::Pack { sandbox, path })).await? {
        Reply::Download(download) => {
            Ok(([(header::CONTENT_TYPE, "application/x-tar")], sent(download)).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn unpack(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
    request: Request,
) -> Handled<Json<Unpacked>> {
    let At { path } = query(at)?;
    let about = About::Unpack { sandbox, path, content: received(request) };
    match ask.run(Command::InFiles(about)).await? {
        Reply::Unpacked(unpacked) => Ok(Json(unpacked)),
        other => Err(unexpected(&other)),
    }
}
