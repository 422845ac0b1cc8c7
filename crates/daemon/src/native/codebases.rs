//! Codebases: from the wire to a command and back. Archives and files are streams both ways.

use std::io::Read;

use axum::Json;
use axum::body::Body as Stream;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream as Parts, StreamExt as _};
use ringfence_api::codebases::{Codebase, Codebases, CreateCodebase};
use ringfence_api::{FileInfo, Listing};
use ringfence_supervisor::codebases::{Answer, Ask as Wish, Content, Download};
use ringfence_supervisor::{Command, Reply};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Ask, Body, Handled, Path, query};
use crate::problem::Problem;

/// Parts of an upload that are on their way.
const PARTS: usize = 8;

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

/// A download as a body.
pub(crate) fn sent(download: Download) -> Stream {
    let parts = futures_util::stream::unfold(download, |mut download| async move {
        let part = download.recv().await?;
        Some((part, download))
    });
    Stream::from_stream(parts)
}

/// A body that is read on another thread, as fast as it comes.
pub(crate) fn received(request: Request) -> Content {
    let parts = request.into_body().into_data_stream();
    content(parts.map(|part| part.map(|b| b.to_vec()).map_err(std::io::Error::other)))
}

/// The same of parts that come by another way.
pub(crate) fn content(
    parts: impl Parts<Item = std::io::Result<Vec<u8>>> + Send + Unpin + 'static,
) -> Content {
    Content::new(Received { receiver: arriving(parts), part: Vec::new(), at: 0, ended: false })
}

/// Parts as they come; one of no bytes is the end of all.
pub(super) fn arriving(
    mut parts: impl Parts<Item = std::io::Result<Vec<u8>>> + Send + Unpin + 'static,
) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(PARTS);
    tokio::spawn(async move {
        while let Some(part) = parts.next().await {
            if part.as_ref().is_ok_and(Vec::is_empty) {
                continue;
            }
            let failed = part.is_err();
            // Nobody reads any more, or nothing more comes.
            if sender.send(part).await.is_err() || failed {
                return;
            }
        }
        // The end, and not only that the sender is gone.
        let _ = sender.send(Ok(Vec::new())).await;
    });
    receiver
}

struct Received {
    receiver: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Received {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.part.len() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Ok(part)) if part.is_empty() => self.ended = true,
                Some(part) => (self.part, self.at) = (part?, 0),
                None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            }
        }
        let rest = self.part.get(self.at..).unwrap_or_default();
        let n = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += n;
        Ok(n)
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
