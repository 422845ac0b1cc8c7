//! The HTTP interface of agentkernel, for its clients as they are: what they ask is said to the
//! supervisor, what it answers is said as they expect it. docs/dialects.md tells what differs.

mod audit;
mod detached;
mod exec;
mod fault;
mod files;
mod info;
mod metrics;
mod names;
mod run;
mod sandboxes;
mod snapshots;

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_request};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ringfence_supervisor::{Caller, Command, Reply, Supervisor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::access::{self, Peer};
use fault::Fault;

/// Where its clients look.
pub const ADDRESS: &str = "127.0.0.1:18888";
/// The largest body of a request.
const MOST_BODY: usize = 16 << 20;
/// What is said without a key.
const PUBLIC: [&str; 4] = ["/health", "/status", "/metrics", "/stats"];
/// What its sandboxes are told apart by.
const LABEL: &str = "ringfence.dialect";
const DIALECT: &str = "agentkernel";
/// What is remembered of a request, as labels: their names begin so.
const OURS: &str = "agentkernel.";
/// The name of what runs sandboxes.
const BACKEND: &str = "ringfence";

type Handled<T> = Result<T, Fault>;

/// How it is served.
#[derive(Clone, Debug)]
pub struct Options {
    pub address: std::net::SocketAddr,
    /// Asked of every caller, as `Authorization: Bearer`, besides being this user's.
    pub key: Option<String>,
}

/// What handlers know.
#[derive(Debug)]
pub(crate) struct Dialect {
    supervisor: Arc<Supervisor>,
    key: Option<String>,
    began: Instant,
    counts: metrics::Counts,
    audit: audit::Audit,
    detached: detached::Known,
}

pub(crate) fn router(supervisor: Arc<Supervisor>, key: Option<String>) -> Router {
    let dialect = Arc::new(Dialect {
        supervisor,
        key,
        began: Instant::now(),
        counts: metrics::Counts::default(),
        audit: audit::Audit::default(),
        detached: detached::Known::default(),
    });
    let detached = "/sandboxes/{name}/exec/detached/{command}";
    let routes = Router::new()
        .route("/health", get(info::health))
        .route("/backends", get(info::backends))
        .route("/status", get(info::status))
        .route("/stats", get(info::stats))
        .route("/doctor", get(info::doctor))
        .route("/audit", get(info::audit))
        .route("/gc", post(info::gc))
        .route("/events", get(info::events))
        .route("/metrics", get(info::metrics))
        .route("/run", post(run::run))
        .route("/run/stream", post(run::stream))
        .route("/batch/run", post(run::batch))
        .route("/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/sandboxes/by-uuid/{uuid}", get(sandboxes::by_uuid))
        .route(
            "/sandboxes/{name}",
            get(sandboxes::get).delete(sandboxes::remove).patch(sandboxes::unsupported),
        )
        .route("/sandboxes/{name}/fork", post(sandboxes::unsupported))
        .route("/sandboxes/{name}/resize", post(sandboxes::unsupported))
        .route("/sandboxes/{name}/recover", post(sandboxes::unsupported))
        .route("/sandboxes/{name}/start", post(sandboxes::start))
        .route("/sandboxes/{name}/stop", post(sandboxes::stop))
        .route("/sandboxes/{name}/pause", post(sandboxes::pause))
        .route("/sandboxes/{name}/resume", post(sandboxes::resume))
        .route("/sandboxes/{name}/extend", post(sandboxes::extend))
        .route("/sandboxes/{name}/logs", get(info::logs))
        .route("/sandboxes/{name}/exec", post(exec::run))
        .route("/sandboxes/{name}/exec/detach", post(detached::start))
        .route("/sandboxes/{name}/exec/detached", get(detached::list))
        .route(detached, get(detached::get).delete(detached::kill))
        .route("/sandboxes/{name}/exec/detached/{command}/logs", get(detached::logs))
        .route("/sandboxes/{name}/files", post(files::write_all))
        .route(
            "/sandboxes/{name}/files/{*path}",
            get(files::read).put(files::write).delete(files::remove),
        )
        .route("/snapshots", get(snapshots::list).post(snapshots::take))
        .route("/snapshots/{name}", get(snapshots::get).delete(snapshots::forget))
        .route("/snapshots/{name}/restore", post(snapshots::restore))
        .fallback(nowhere)
        .method_not_allowed_fallback(nowhere)
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(from_fn_with_state(dialect.clone(), check))
        .with_state(dialect);
    // Around it: a layer within it runs when the route has been chosen.
    Router::new().fallback_service(routes).layer(map_request(flat))
}

/// Empty segments of a path mean nothing.
async fn flat(mut request: Request) -> Request {
    let path = request.uri().path();
    if path.contains("//") || (path.len() > 1 && path.ends_with('/')) {
        let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = format!("/{}{query}", segments.join("/")).parse().ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// Interfaces of theirs that are not about sandboxes.
const ELSEWHERE: [&str; 18] = [
    "benchmark",
    "lifecycle",
    "llm",
    "opencode",
    "policy",
    "proxy",
    "quotas",
    "scim",
    "orchestrations",
    "objects",
    "schedules",
    "stores",
    "tasks",
    "secrets",
    "images",
    "agents",
    "sessions",
    "permissions",
];

async fn nowhere(request: Request) -> Fault {
    let first = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    if ELSEWHERE.contains(&first) {
        let message = format!("{first}: ringfence does not serve this part of agentkernel");
        return Fault::new(StatusCode::NOT_IMPLEMENTED, message);
    }
    Fault::new(StatusCode::NOT_FOUND, "Not found")
}

/// Who may ask; and the key, where there is one.
async fn check(
    State(dialect): State<Arc<Dialect>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let here = (&*dialect.supervisor, DIALECT);
    let caller = access::neighbour(&peer, request.headers(), request.uri(), here).await;
    let (method, path) = (request.method().clone(), metrics::route(request.uri().path()));
    let began = Instant::now();
    let answer = match caller {
        Ok(caller) => admit(&dialect, caller, request, next).await,
        Err(why) => Fault::new(StatusCode::FORBIDDEN, why).into_response(),
    };
    dialect.counts.request(&method, &path, answer.status(), began.elapsed());
    answer
}

async fn admit(dialect: &Dialect, caller: Caller, mut request: Request, next: Next) -> Response {
    let public = request.method() == Method::GET && PUBLIC.contains(&request.uri().path());
    if !public
        && let Some(key) = &dialect.key
        && let Err(why) = bearer(&request, key)
    {
        dialect.supervisor.refused(caller.source, "unauthorized");
        return Fault::new(StatusCode::UNAUTHORIZED, why).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn bearer(request: &Request, key: &str) -> Result<(), &'static str> {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else {
        return Err("Missing Authorization header");
    };
    let Some(given) = value.to_str().ok().and_then(|v| v.strip_prefix("Bearer ")) else {
        return Err("Invalid authorization format. Use: Bearer <api_key>");
    };
    if access::is_same(given.as_bytes(), key.as_bytes()) {
        Ok(())
    } else {
        Err("Invalid bearer token")
    }
}

/// What every answer that is no error looks like.
fn success(data: impl Serialize) -> Json<serde_json::Value> {
    Json(json!({ "success": true, "data": data }))
}

/// The supervisor and who asks it.
#[derive(Clone)]
struct Ask {
    dialect: Arc<Dialect>,
    caller: Caller,
}

impl Ask {
    async fn run(&self, command: Command) -> Result<Reply, ringfence_supervisor::Error> {
        self.dialect.supervisor.run(self.caller, command).await
    }

    /// A sandbox that was made here, by its name.
    async fn find(&self, name: &str) -> Handled<ringfence_api::Sandbox> {
        names::sandbox(name)?;
        let absent = || Fault::new(StatusCode::NOT_FOUND, "Sandbox not found");
        match self.run(Command::Get(name.to_owned())).await {
            Ok(Reply::Sandbox(s)) if s.labels.get(LABEL).is_some_and(|l| l == DIALECT) => Ok(*s),
            Ok(Reply::Sandbox(_)) => Err(absent()),
            Ok(other) => Err(unexpected(&other)),
            Err(e) if e.kind == ringfence_supervisor::Kind::NotFound => Err(absent()),
            Err(e) => Err(e.into()),
        }
    }

    /// One that a command can run in.
    async fn find_running(&self, name: &str) -> Handled<ringfence_api::Sandbox> {
        use ringfence_api::State;
        let sandbox = self.find(name).await?;
        if matches!(sandbox.state, State::Running | State::Idle | State::Creating) {
            return Ok(sandbox);
        }
        let message =
            format!("Sandbox '{name}' is not running. Start it with: POST /sandboxes/{name}/start");
        Err(Fault::new(StatusCode::CONFLICT, message))
    }
}

/// Parts of the path. What is wrong with them is said as everything is.
struct Path<T>(T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Dialect>> for Path<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, dialect: &Arc<Dialect>) -> Handled<Self> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, dialect).await?;
        Ok(Self(path.0))
    }
}

/// What stands behind the question mark; the same of that.
struct Query<T>(T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Dialect>> for Query<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, dialect: &Arc<Dialect>) -> Handled<Self> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, dialect).await?;
        Ok(Self(query.0))
    }
}

impl FromRequestParts<Arc<Dialect>> for Ask {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, dialect: &Arc<Dialect>) -> Handled<Self> {
        let caller = parts.extensions.get::<Caller>().copied();
        let caller =
            caller.ok_or_else(|| Fault::new(StatusCode::FORBIDDEN, "nobody knows who asks"))?;
        Ok(Self { dialect: dialect.clone(), caller })
    }
}

/// A JSON body, of a request that says that it is one: a web page cannot send that without asking.
struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Arc<Dialect>> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, dialect: &Arc<Dialect>) -> Handled<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let kind = kind.and_then(|v| v.split(';').next()).unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let message = "The body is not said to be JSON (Content-Type: application/json)";
            return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let Raw(bytes) = Raw::from_request(request, dialect).await?;
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Self).map_err(|e| Fault::invalid(format!("Invalid JSON: {e}")))
    }
}

/// A body that need not be JSON.
struct Raw(Bytes);

impl FromRequest<Arc<Dialect>> for Raw {
    type Rejection = Fault;

    async fn from_request(request: Request, dialect: &Arc<Dialect>) -> Handled<Self> {
        Bytes::from_request(request, dialect).await.map(Self).map_err(|e| {
            if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
                return Fault::new(e.status(), "The body is too large");
            }
            Fault::invalid("Failed to read body")
        })
    }
}

fn unexpected(reply: &Reply) -> Fault {
    let message = format!("the supervisor answered {reply:?}");
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}
