//! ringfence's own REST interface, `/v1`.

mod batch;
mod bodies;
mod codebases;
mod conditions;
mod events;
mod exec;
mod extract;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod layers;
mod sandboxes;
mod sessions;
mod stats;
mod terminal;
mod trees;
mod watch;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::routing::{delete, get, patch, post, put};
use axum::{Json, Router};
use ringfence_api::Health;
use ringfence_supervisor::{Caller, Command, Reply};

pub(crate) use self::extract::{Body, Path, query};
use crate::App;
use crate::problem::Problem;

/// The largest body of a request: a file, or a command's input.
const MOST_BODY: usize = 64 << 20;
/// Bytes of an idempotency key.
const MOST_KEY: usize = 128;

pub(crate) use bodies::content;

type Handled<T> = Result<T, Problem>;

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/health", get(health))
        .route("/v1/openapi.json", get(openapi))
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route("/v1/sandboxes/{id}/start", post(sandboxes::start))
        .route("/v1/sandboxes/{id}/stop", post(sandboxes::stop))
        .route("/v1/sandboxes/{id}/freeze", post(sandboxes::freeze))
        .route("/v1/sandboxes/{id}/extend", post(sandboxes::extend))
        .route("/v1/sandboxes/{id}/limits", patch(sandboxes::limit))
        .route("/v1/sandboxes/{id}/exec", post(exec::run))
        .route("/v1/sandboxes/{id}/exec/stream", post(exec::stream))
        .route("/v1/sandboxes/{id}/execs", get(exec::list))
        .route("/v1/sandboxes/{id}/execs/{exec}", get(exec::get))
        .route("/v1/sandboxes/{id}/execs/{exec}/stream", get(exec::follow))
        .route("/v1/sandboxes/{id}/execs/{exec}/kill", post(exec::kill))
        .route("/v1/sandboxes/{id}/execs/{exec}/terminal", get(terminal::attach))
        .route("/v1/batch/sandboxes", post(batch::create))
        .route("/v1/batch/exec", post(batch::exec))
        .route("/v1/sandboxes/{id}/sessions", post(sessions::create).get(sessions::list))
        .route("/v1/sandboxes/{id}/sessions/{session}", get(sessions::get).delete(sessions::delete))
        .route("/v1/sandboxes/{id}/sessions/{session}/exec", post(sessions::run))
        .route("/v1/sandboxes/{id}/sessions/{session}/exec/stream", post(sessions::stream))
        .route("/v1/sandboxes/{id}/files", get(files::read))
        .route("/v1/sandboxes/{id}/files", put(files::write))
        .route("/v1/sandboxes/{id}/files", delete(files::remove))
        .route("/v1/sandboxes/{id}/files/stat", get(files::stat))
        .route("/v1/sandboxes/{id}/files/list", get(files::list))
        .route("/v1/sandboxes/{id}/files/move", post(trees::rename))
        .route("/v1/sandboxes/{id}/files/search", get(trees::search))
        .route("/v1/sandboxes/{id}/files/archive", get(trees::pack).put(trees::unpack))
        .route("/v1/sandboxes/{id}/files/watch", get(watch::watch))
        .route("/v1/sandboxes/{id}/files/chmod", post(trees::chmod))
        .route("/v1/sandboxes/{id}/files/directory", post(files::make_directory))
        .route("/v1/sandboxes/{id}/layer", get(layers::info))
        .route("/v1/sandboxes/{id}/layer/diff", get(layers::diff))
        .route("/v1/sandboxes/{id}/layer/patch", get(layers::patch))
        .route("/v1/sandboxes/{id}/layer/archive", get(layers::export))
        .route("/v1/sandboxes/{id}/layer/apply", post(layers::apply))
        .route("/v1/sandboxes/{id}/layer/discard", post(layers::discard))
        .route("/v1/sandboxes/{id}/layer/checkpoint", post(layers::checkpoint))
        .route("/v1/sandboxes/{id}/layer/undo", post(layers::undo))
        .route("/v1/sandboxes/{id}/layer/fork", post(layers::fork))
        .route("/v1/sandboxes/{id}/layer/snapshots/{snapshot}", put(layers::snapshot))
        .route("/v1/sandboxes/{id}/layer/snapshots/{snapshot}", delete(layers::forget))
        .route("/v1/sandboxes/{id}/layer/snapshots/{snapshot}/restore", post(layers::restore))
        .route("/v1/owner", get(events::owner))
        .route("/v1/events", get(events::follow))
        .route("/v1/audit", get(events::audit))
        .route("/v1/sandboxes/{id}/stats", get(stats::one))
        .route("/v1/stats", get(stats::all))
        .route("/metrics", get(stats::metrics))
        .route("/v1/codebases", post(codebases::create).get(codebases::list))
        .route("/v1/codebases/{codebase}", get(codebases::get).delete(codebases::delete))
        .route("/v1/codebases/{codebase}/seal", post(codebases::seal))
        .route("/v1/codebases/{codebase}/archive", get(codebases::export).put(codebases::import))
        .route("/v1/codebases/{codebase}/files", get(codebases::read))
        .route("/v1/codebases/{codebase}/files", put(codebases::write))
        .route("/v1/codebases/{codebase}/files", delete(codebases::remove))
        .route("/v1/codebases/{codebase}/files/stat", get(codebases::stat))
        .route("/v1/codebases/{codebase}/files/list", get(codebases::list_files))
        .route("/v1/codebases/{codebase}/files/directory", post(codebases::make_directory))
        .route("/v1/codebases/{codebase}/files/move", post(codebases::rename))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_that)
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .with_state(app)
}

async fn nowhere(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {}", uri.path()))
        .with("GET /v1/openapi.json lists what there is")
}

async fn not_that(method: Method, uri: Uri) -> Problem {
    let message = format!("{method} is not for {}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", message)
}

async fn health() -> Json<Health> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Json(Health { status: "ok".into(), version, pid: std::process::id() })
}

async fn openapi(
    axum::extract::State(app): axum::extract::State<Arc<App>>,
) -> ([(header::HeaderName, &'static str); 1], String) {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.clone())
}

/// The supervisor and who asks it.
pub(crate) struct Ask {
    app: Arc<App>,
    caller: Caller,
    /// The idempotency key of the request.
    key: Option<String>,
}

impl Ask {
    pub(crate) async fn run(&self, command: Command) -> Handled<Reply> {
        Ok(self.app.supervisor.run(self.caller, command).await?)
    }
}

impl FromRequestParts<Arc<App>> for Ask {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Problem::forbidden("nobody knows who asks"))?;
        let key = key(&parts.headers)?;
        Ok(Self { app: app.clone(), caller, key })
    }
}

fn key(headers: &HeaderMap) -> Handled<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key)
            if (1..=MOST_KEY).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(Some(key.to_owned()))
        }
        _ => {
            Err(Problem::invalid(format!("Idempotency-Key: not 1 to {MOST_KEY} plain characters")))
        }
    }
}

/// Not what was asked for: a mistake of ours.
pub(crate) fn unexpected(reply: &Reply) -> Problem {
    Problem::internal(format!("the supervisor answered {reply:?}"))
}

#[cfg(test)]
mod tests {
    /// The document lists exactly what is served.
    #[test]
    fn every_route_is_in_the_document_and_the_other_way_round() {
        let source = include_str!("mod.rs");
        let served: std::collections::BTreeSet<String> = source
            .lines()
            .filter_map(|line| {
                let (path, handlers) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
                let has = |m: &&str| handlers.contains(&format!("{m}("));
                let methods = ["get", "post", "put", "delete", "patch"].into_iter().filter(has);
                Some(methods.map(|m| format!("{m} {path}")).collect::<Vec<_>>())
            })
            .flatten()
            .collect();
        let told = ringfence_api::openapi::routes().map(|(m, p)| format!("{m} {p}")).collect();
        assert_eq!(served, told);
    }
}
