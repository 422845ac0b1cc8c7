//! What sandboxes use: from the wire to a command and back.

use axum::Json;
use axum::extract::Path;
use axum::http::header;
use ringfence_api::{SandboxStats, Stats};
use ringfence_supervisor::stats::{Answer, Ask as Wanted};
use ringfence_supervisor::{Command, Reply};

use super::{Ask, Handled, unexpected};

/// What `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(crate) async fn one(ask: Ask, Path(id): Path<String>) -> Handled<Json<SandboxStats>> {
    match ask.run(Command::Stats(Wanted::One(id))).await? {
        Reply::Stats(Answer::One(one)) => Ok(Json(*one)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn all(ask: Ask) -> Handled<Json<Stats>> {
    match ask.run(Command::Stats(Wanted::All)).await? {
        Reply::Stats(Answer::All(all)) => Ok(Json(all)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn metrics(
    ask: Ask,
) -> Handled<([(header::HeaderName, &'static str); 1], String)> {
    match ask.run(Command::Stats(Wanted::Metrics)).await? {
        Reply::Stats(Answer::Metrics(text)) => Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text)),
        other => Err(unexpected(&other)),
    }
}
