//! Many files at once: from the wire to a command and back.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ringfence_api::{FoundFiles, MoveFile, Search, Unpacked};
use ringfence_supervisor::trees::Ask as About;
use ringfence_supervisor::{Command, Reply};
use serde::Deserialize;

use super::bodies::{received, sent};
use super::{Ask, Body, Handled, Path, query, unexpected};
use crate::problem::Problem;

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

/// As `644` says it.
pub(super) fn mode(text: &str) -> Handled<u32> {
    let digits = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits => Ok(mode),
        _ => Err(Problem::invalid("mode: not such as 644")),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Permissions {
    path: String,
    mode: String,
}

impl Permissions {
    pub(crate) fn mode(&self) -> Handled<u32> {
        mode(&self.mode)
    }
}

pub(crate) async fn chmod(
    ask: Ask,
    Path(sandbox): Path<String>,
    what: Result<Query<Permissions>, QueryRejection>,
) -> Handled<StatusCode> {
    let what = query(what)?;
    let (mode, path) = (what.mode()?, what.path);
    ask.run(Command::InFiles(About::Chmod { sandbox, path, mode })).await?;
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
