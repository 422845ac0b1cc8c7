//! Files of a sandbox: from the wire to a command and back.

use axum::Json;
use axum::body::Bytes;
use axum::extract::Query;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::{StatusCode, header};
use ringfence_api::{FileInfo, Listing};
use ringfence_supervisor::trees::Ask as Wish;
use ringfence_supervisor::{Command, Reply};
use serde::Deserialize;

use super::{Ask, Handled, Path, body, query, unexpected};

#[derive(Debug, Deserialize)]
pub(crate) struct At {
    path: String,
    #[serde(default)]
    offset: u64,
    length: Option<u64>,
    #[serde(default)]
    durable: bool,
}

type Where = Result<Query<At>, QueryRejection>;

pub(crate) async fn read(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
) -> Handled<([(header::HeaderName, &'static str); 1], Vec<u8>)> {
    let At { path, offset, length, .. } = query(at)?;
    match ask.run(Command::ReadFile { sandbox, path, offset, length }).await? {
        Reply::Bytes(bytes) => Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn write(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
    bytes: Result<Bytes, BytesRejection>,
) -> Handled<StatusCode> {
    let At { path, durable, .. } = query(at)?;
    let bytes = bytes.map_err(|e| body(&e))?.to_vec();
    ask.run(Command::InFiles(Wish::Write { sandbox, path, bytes, durable })).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn stat(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
) -> Handled<Json<FileInfo>> {
    let At { path, .. } = query(at)?;
    match ask.run(Command::StatFile { sandbox, path }).await? {
        Reply::File(info) => Ok(Json(info)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn list(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
) -> Handled<Json<Listing>> {
    let At { path, .. } = query(at)?;
    match ask.run(Command::ListFiles { sandbox, path }).await? {
        Reply::Listing(listing) => Ok(Json(listing)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn make_directory(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
) -> Handled<StatusCode> {
    let At { path, .. } = query(at)?;
    ask.run(Command::MakeDirectory { sandbox, path }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn remove(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
) -> Handled<StatusCode> {
    let At { path, .. } = query(at)?;
    ask.run(Command::RemoveFile { sandbox, path }).await?;
    Ok(StatusCode::NO_CONTENT)
}
