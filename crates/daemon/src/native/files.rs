//! Files of a sandbox: from the wire to a command and back.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use ringfence_api::{FileInfo, Listing};
use ringfence_supervisor::{Arriving, Command, Got, Part, Read, Reply, Written, etag};
use serde::Deserialize;

use super::bodies::arriving;
use super::{Ask, Handled, Path, conditions, query, unexpected};
use crate::problem::Problem;

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

/// A part by what stands behind the question mark, else by `Range`.
pub(crate) async fn read(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
    headers: HeaderMap,
) -> Handled<Response> {
    let At { path, offset, length, .. } = query(at)?;
    let is_told = offset > 0 || length.is_some();
    let range = conditions::range(&headers).filter(|_| !is_told);
    let part = range.unwrap_or(Part::From { offset, length });
    let when = conditions::known(&headers)?;
    let Read { tag, size, got } =
        match ask.run(Command::ReadFile { sandbox, path, part, when }).await? {
            Reply::Read(read) => read,
            other => return Err(unexpected(&other)),
        };
    let tagged = [(header::ETAG, etag(&tag)), (header::ACCEPT_RANGES, "bytes".to_owned())];
    let mut response = match got {
        Got::Same => StatusCode::NOT_MODIFIED.into_response(),
        Got::Beyond => {
            let message = format!("Range: the file has {size} bytes");
            let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", message);
            let all = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            (all, problem).into_response()
        }
        Got::Bytes { offset, bytes } => {
            let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
            let length = bytes.len() as u64;
            // Shorter than it was a moment ago, perhaps down to nothing: that is no range.
            if range.is_some() && length > 0 {
                let last = offset + length - 1;
                let told = [(header::CONTENT_RANGE, format!("bytes {offset}-{last}/{size}"))];
                (StatusCode::PARTIAL_CONTENT, kind, told, bytes).into_response()
            } else {
                (kind, bytes).into_response()
            }
        }
    };
    for (name, value) in tagged {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Up to here a body is waited for as a whole, and then written by init at once.
const SMALL: usize = 64 << 10;

/// What is sent: as a whole where it is small, else as it comes.
async fn sent(request: Request) -> Handled<Written> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut parts = request.into_body().into_data_stream();
    let mut first = Vec::new();
    while let Some(part) = parts.next().await {
        first.extend_from_slice(&part.map_err(|_| Problem::invalid("the body cannot be read"))?);
        if first.len() > SMALL {
            let rest = parts.map(|part| part.map(|b| b.to_vec()).map_err(std::io::Error::other));
            let all = futures_util::stream::iter([Ok(first)]).chain(rest);
            return Ok(Written::Arriving(Arriving::new(arriving(all), length)));
        }
    }
    Ok(Written::Whole(first))
}

pub(crate) async fn write(
    ask: Ask,
    Path(sandbox): Path<String>,
    at: Where,
    request: Request,
) -> Handled<Response> {
    let At { path, durable, .. } = query(at)?;
    let when = conditions::when(request.headers())?;
    let bytes = sent(request).await?;
    match ask.run(Command::WriteFile { sandbox, path, bytes, durable, when }).await? {
        Reply::Written(Some(tag)) => {
            Ok((StatusCode::NO_CONTENT, [(header::ETAG, etag(&tag))]).into_response())
        }
        Reply::Written(None) => Ok(StatusCode::NO_CONTENT.into_response()),
        other => Err(unexpected(&other)),
    }
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
