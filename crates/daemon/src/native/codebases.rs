//! Codebases: from the wire to a command and back. Archives and files are streams both ways.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use ringfence_api::codebases::{Codebase, Codebases, CreateCodebase};
use ringfence_api::{FileInfo, Listing};
use ringfence_supervisor::codebases::{Answer, Ask as Wish};
use ringfence_supervisor::{Command, Reply};
use serde::Deserialize;

use super::bodies::{received, sent};
use super::{Ask, Body, Handled, Path, query};
use crate::problem::Problem;

/// What is asked behind the question mark.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct At {
    path: String,
    to: String,
    offset: u64,
    length: Option<u64>,
    mode: Option<String>,
    owner: Option<String>,
    zstd: bool,
    create: bool,
    sealed: bool,
    recursive: bool,
}

type Where = Result<Query<At>, QueryRejection>;

/// The file or directory that the request is about, which has no default.
fn named(path: String) -> Handled<String> {
    if path.is_empty() { Err(Problem::invalid("path: it is missing or empty")) } else { Ok(path) }
}

async fn run(ask: &Ask, wish: Wish) -> Handled<Answer> {
    match ask.run(Command::Codebases(wish)).await? {
        Reply::Codebases(answer) => Ok(answer),
        other => Err(super::unexpected(&other)),
    }
}

fn unexpected(answer: &Answer) -> Problem {
    Problem::internal(format!("the supervisor answered {answer:?}"))
}

async fn one(ask: &Ask, wish: Wish) -> Handled<Json<Codebase>> {
    match run(ask, wish).await? {
        Answer::Codebase(codebase) => Ok(Json(*codebase)),
        other => Err(unexpected(&other)),
    }
}

async fn done(ask: &Ask, wish: Wish) -> Handled<StatusCode> {
    run(ask, wish).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn file(ask: &Ask, wish: Wish) -> Handled<Json<FileInfo>> {
    match run(ask, wish).await? {
        Answer::File(info) => Ok(Json(info)),
        other => Err(unexpected(&other)),
    }
}

async fn bytes(ask: &Ask, wish: Wish, kind: &'static str) -> Handled<Response> {
    match run(ask, wish).await? {
        Answer::Bytes(download) => {
            Ok(([(header::CONTENT_TYPE, kind)], sent(download)).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn create(
    ask: Ask,
    Body(asked): Body<CreateCodebase>,
) -> Handled<(StatusCode, Json<Codebase>)> {
    Ok((StatusCode::CREATED, one(&ask, Wish::Create(Box::new(asked))).await?))
}

pub(crate) async fn list(ask: Ask) -> Handled<Json<Codebases>> {
    match run(&ask, Wish::List).await? {
        Answer::Codebases(codebases) => Ok(Json(Codebases { codebases })),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn get(ask: Ask, Path(name): Path<String>) -> Handled<Json<Codebase>> {
    one(&ask, Wish::Get(name)).await
}

pub(crate) async fn delete(ask: Ask, Path(name): Path<String>) -> Handled<StatusCode> {
    done(&ask, Wish::Delete(name)).await
}

pub(crate) async fn seal(ask: Ask, Path(name): Path<String>) -> Handled<Json<Codebase>> {
    one(&ask, Wish::Seal(name)).await
}

pub(crate) async fn export(ask: Ask, Path(name): Path<String>, at: Where) -> Handled<Response> {
    let At { zstd, .. } = query(at)?;
    let kind = if zstd { "application/zstd" } else { "application/x-tar" };
    bytes(&ask, Wish::Export { name, zstd }, kind).await
}

pub(crate) async fn import(
    ask: Ask,
    Path(name): Path<String>,
    at: Where,
    request: Request,
) -> Handled<Json<Codebase>> {
    let At { path, owner, sealed, create, .. } = query(at)?;
    let wish = match create {
        true if !path.is_empty() => return Err(Problem::invalid("path: not with create")),
        true => Wish::CreateFrom { name, owner, sealed, content: received(request) },
        false => Wish::PutArchive { name, path, content: received(request) },
    };
    one(&ask, wish).await
}

pub(crate) async fn read(ask: Ask, Path(name): Path<String>, at: Where) -> Handled<Response> {
    let At { path, offset, length, .. } = query(at)?;
    bytes(&ask, Wish::Read { name, path: named(path)?, offset, length }, "application/octet-stream")
        .await
}

pub(crate) async fn write(
    ask: Ask,
    Path(name): Path<String>,
    at: Where,
    request: Request,
) -> Handled<Json<FileInfo>> {
    let At { path, mode, .. } = query(at)?;
    let mode = mode.as_deref().map(super::trees::mode).transpose()?;
    file(&ask, Wish::Write { name, path: named(path)?, mode, content: received(request) }).await
}

pub(crate) async fn remove(ask: Ask, Path(name): Path<String>, at: Where) -> Handled<StatusCode> {
    let At { path, recursive, .. } = query(at)?;
    done(&ask, Wish::Remove { name, path: named(path)?, recursive }).await
}

pub(crate) async fn stat(ask: Ask, Path(name): Path<String>, at: Where) -> Handled<Json<FileInfo>> {
    let At { path, .. } = query(at)?;
    file(&ask, Wish::Stat { name, path: named(path)? }).await
}

pub(crate) async fn list_files(
    ask: Ask,
    Path(name): Path<String>,
    at: Where,
) -> Handled<Json<Listing>> {
    let At { path, recursive, .. } = query(at)?;
    match run(&ask, Wish::ListFiles { name, path, recursive }).await? {
        Answer::Listing(listing) => Ok(Json(listing)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn make_directory(
    ask: Ask,
    Path(name): Path<String>,
    at: Where,
) -> Handled<StatusCode> {
    let At { path, .. } = query(at)?;
    done(&ask, Wish::MakeDirectory { name, path: named(path)? }).await
}

pub(crate) async fn rename(ask: Ask, Path(name): Path<String>, at: Where) -> Handled<StatusCode> {
    let At { path, to, .. } = query(at)?;
    done(&ask, Wish::Move { name, from: named(path)?, to: named(to)? }).await
}
