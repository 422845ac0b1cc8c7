//! What happens, as server-sent events, and what happened.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::body::{Body as Content, Bytes};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures_util::stream::unfold;
use ringfence_api::{Audit, AuditQuery, FollowEvents, OwnerInfo};
use ringfence_supervisor::{Command, Events, Reply};

use super::{Ask, Handled, query, unexpected};
use crate::problem::Problem;

/// Something is said at least this often, so that both ends hear of a connection that broke.
const QUIET: Duration = Duration::from_secs(15);
/// Said at once and when nothing happens.
const NOTHING: Bytes = Bytes::from_static(b": nothing\n\n");

pub(crate) async fn follow(
    ask: Ask,
    headers: HeaderMap,
    which: Result<Query<FollowEvents>, QueryRejection>,
) -> Handled<Response> {
    let mut which = query(which)?;
    if let Some(last) = headers.get("last-event-id") {
        let last = last.to_str().ok().and_then(|id| id.trim().parse().ok());
        which.after = Some(last.ok_or_else(|| Problem::invalid("Last-Event-ID: not a number"))?);
    }
    let events = match ask.run(Command::Events(which)).await? {
        Reply::Events(events) => events,
        other => return Err(unexpected(&other)),
    };
    // The next ones are taken when the last were sent: nothing is collected for a slow reader.
    let stream = unfold((events, true), |(mut events, first)| async move {
        let bytes = if first { NOTHING } else { next(&mut events).await? };
        Some((Ok::<_, Infallible>(bytes), (events, false)))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store")
        .body(Content::from_stream(stream))
        .map_err(|e| Problem::internal(e.to_string()))
}

async fn next(events: &mut Events) -> Option<Bytes> {
    let Ok(told) = tokio::time::timeout(QUIET, events.next()).await else { return Some(NOTHING) };
    let mut out = String::new();
    for event in told.ok()? {
        let data = serde_json::to_string(&*event).ok()?;
        let _ = write!(out, "id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.kind);
    }
    Some(out.into())
}

pub(crate) async fn audit(
    ask: Ask,
    which: Result<Query<AuditQuery>, QueryRejection>,
) -> Handled<Json<Audit>> {
    match ask.run(Command::Audit(query(which)?)).await? {
        Reply::Audit(audit) => Ok(Json(audit)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn owner(ask: Ask) -> Handled<Json<OwnerInfo>> {
    match ask.run(Command::Owner).await? {
        Reply::Owner(info) => Ok(Json(*info)),
        other => Err(unexpected(&other)),
    }
}
