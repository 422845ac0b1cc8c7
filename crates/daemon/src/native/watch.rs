//! A watched directory: from the wire to a command, and back as server-sent events.

use axum::body::Body as Content;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header;
use axum::response::Response;
use futures_util::stream::unfold;
use ringfence_api::{Watch, WatchEnded};
use ringfence_supervisor::trees::Ask as About;
use ringfence_supervisor::watch::Told;
use ringfence_supervisor::{Command, Reply};

use super::exec::event;
use super::{Ask, Handled, Path, query, unexpected};
use crate::problem::Problem;

pub(crate) async fn watch(
    ask: Ask,
    Path(sandbox): Path<String>,
    what: Result<Query<Watch>, QueryRejection>,
) -> Handled<Response> {
    let about = About::Watch { sandbox, watch: query(what)? };
    let watch = match ask.run(Command::InFiles(about)).await? {
        Reply::Watch(watch) => watch,
        other => return Err(unexpected(&other)),
    };
    let nothing = || serde_json::json!({});
    let ready = Some(event("ready", &nothing()));
    let events = unfold((watch, ready), move |(mut watch, ready)| async move {
        let bytes = match ready {
            Some(ready) => ready,
            None => match watch.next().await? {
                Told::Created(change) => event("created", &change),
                Told::Changed(change) => event("changed", &change),
                Told::Attributes(change) => event("attributes", &change),
                Told::Moved(change) => event("moved", &change),
                Told::Removed(change) => event("removed", &change),
                Told::Overflow => event("overflow", &nothing()),
                Told::Ended(reason) => event("ended", &WatchEnded { reason }),
            },
        };
        Some((Ok::<_, std::convert::Infallible>(bytes), (watch, None)))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream")
        .header(header::CACHE_CONTROL, "no-store")
        .body(Content::from_stream(events))
        .map_err(|e| Problem::internal(e.to_string()))
}
