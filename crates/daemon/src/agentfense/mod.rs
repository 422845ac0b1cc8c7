//! The interface of AgentFense, for its clients as they are: `sandbox.v1` over gRPC, and the same over
//! REST. What they ask is said to the supervisor. docs/dialects.md tells what differs.

mod codebases;
mod convert;
mod rest;
mod sandboxes;
/// Made of `crates/daemon/proto/agentfense.proto` by prost and tonic.
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations)]
#[rustfmt::skip]
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use ringfence_supervisor::{Caller, Command, Error, Kind, Reply, Supervisor};
use tonic::{Code, Status};

use crate::access::{self, Peer};
use wire::codebase_service_server::CodebaseServiceServer;
use wire::sandbox_service_server::SandboxServiceServer;

/// Where its clients look.
pub const GRPC: &str = "127.0.0.1:9000";
pub const REST: &str = "127.0.0.1:8080";
/// The largest message: a file comes in parts, a command's input does not.
const MOST_MESSAGE: usize = 32 << 20;
/// Bytes of a refused call that are taken.
const MOST_UNHEARD: usize = 64 << 10;
/// How long they are waited for.
const UNHEARD: Duration = Duration::from_secs(2);
/// Bytes of one answer: their clients take 4 MiB.
const MOST_ANSWER: usize = (4 << 20) - (64 << 10);
/// What its sandboxes are told apart by.
const LABEL: &str = "ringfence.dialect";
const DIALECT: &str = "agentfense";
/// What is remembered of a request, as labels: their names begin so.
const OURS: &str = "agentfense.";

type Handled<T> = Result<T, Status>;

/// How it is served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub grpc: std::net::SocketAddr,
    pub rest: std::net::SocketAddr,
}

/// What handlers know.
#[derive(Clone, Debug)]
struct Fense {
    supervisor: Arc<Supervisor>,
    known: Arc<Known>,
}

/// What only this dialect asks for, remembered while the daemon runs.
#[derive(Debug, Default)]
struct Known {
    inner: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// When a sandbox was started and stopped.
    times: HashMap<String, (Option<u64>, Option<u64>)>,
    /// By sandbox, what was put into its codebase since it was started, and whether its rules let it have
    /// that: if not, no command can have changed it.
    uploads: HashMap<String, HashMap<String, bool>>,
}

impl Known {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a running sandbox has of a path that was put there: it was given it, or it was not.
    fn given(&self, sandbox: &str, path: &str) -> Option<bool> {
        self.memory().uploads.get(sandbox)?.get(path).copied()
    }

    /// It sees its codebase as that is now.
    fn started(&self, sandbox: &str, at_ms: u64) {
        let mut memory = self.memory();
        memory.uploads.remove(sandbox);
        memory.times.insert(sandbox.to_owned(), (Some(at_ms), None));
    }

    fn forget(&self, gone: impl Fn(&str) -> bool) {
        let mut memory = self.memory();
        memory.uploads.retain(|id, _| !gone(id));
        memory.times.retain(|id, _| !gone(id));
    }
}

/// Both doors lead to one.
pub(crate) fn routers(supervisor: Arc<Supervisor>) -> [Router; 2] {
    let ours = supervisor.clone();
    let fense = Fense { supervisor, known: Arc::default() };
    let rest = rest::router(fense.clone()).layer(from_fn_with_state((Door::Rest, ours), check));
    [grpc(fense), rest]
}

fn grpc(fense: Fense) -> Router {
    let ours = fense.supervisor.clone();
    let sandboxes = SandboxServiceServer::new(fense.clone());
    let codebases = CodebaseServiceServer::new(fense);
    let routes = tonic::service::Routes::new(
        sandboxes.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(MOST_MESSAGE),
    )
    .add_service(codebases.max_decoding_message_size(MOST_MESSAGE));
    routes.into_axum_router().layer(from_fn_with_state((Door::Grpc, ours), check))
}

/// By which way a request came.
#[derive(Clone, Copy, Debug)]
enum Door {
    Grpc,
    Rest,
}

async fn check(
    State((door, supervisor)): State<(Door, Arc<Supervisor>)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let here = (&*supervisor, "agentfense");
    match access::neighbour(&peer, request.headers(), request.uri(), here).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(why) => {
            let status = Status::permission_denied(why);
            match door {
                Door::Grpc => {
                    // Some clients take an answer before their last byte for a broken connection.
                    let rest = axum::body::to_bytes(request.into_body(), MOST_UNHEARD);
                    let _ = tokio::time::timeout(UNHEARD, rest).await;
                    status.into_http()
                }
                Door::Rest => rest::Fault(status).into_response(),
            }
        }
    }
}

/// The supervisor and who asks it.
#[derive(Clone)]
struct Ask {
    supervisor: Arc<Supervisor>,
    known: Arc<Known>,
    caller: Caller,
}

impl Fense {
    fn ask(&self, extensions: &axum::http::Extensions) -> Handled<Ask> {
        let caller = extensions.get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Status::permission_denied("nobody knows who asks"))?;
        Ok(Ask { supervisor: self.supervisor.clone(), known: self.known.clone(), caller })
    }

    /// Of a call.
    fn of<T>(&self, request: tonic::Request<T>) -> Handled<(Ask, T)> {
        let (_, extensions, message) = request.into_parts();
        Ok((self.ask(&extensions)?, message))
    }
}

impl Ask {
    async fn run(&self, command: Command) -> Result<Reply, Error> {
        self.supervisor.run(self.caller, command).await
    }
}

fn said(e: Error) -> Status {
    let code = match e.kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict | Kind::Changed => Code::FailedPrecondition,
        Kind::Busy | Kind::Lost => Code::Aborted,
        Kind::Limit | Kind::TooLarge => Code::ResourceExhausted,
        Kind::Refused => Code::PermissionDenied,
        Kind::Alone | Kind::Internal => Code::Internal,
    };
    Status::new(code, e.message)
}

fn unexpected(reply: &impl std::fmt::Debug) -> Status {
    Status::internal(format!("the supervisor answered {reply:?}"))
}

/// A page of a list: what is on it, and where the next one begins.
fn page<T>(all: Vec<T>, size: i32, token: &str) -> (Vec<T>, String) {
    // Theirs ignores tokens: one that was not made here is none.
    let from: usize = token.parse().unwrap_or(0);
    let size = if size > 0 { size as usize } else { usize::MAX };
    let more = all.len() > from.saturating_add(size);
    let next = if more { (from + size).to_string() } else { String::new() };
    (all.into_iter().skip(from).take(size).collect(), next)
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn pages_follow_each_other() {
        let all = || vec![1, 2, 3];
        assert_eq!(page(all(), 0, ""), (vec![1, 2, 3], String::new()));
        assert_eq!(page(all(), 2, ""), (vec![1, 2], "2".to_owned()));
        assert_eq!(page(all(), 2, "2"), (vec![3], String::new()));
        assert_eq!(page(all(), 3, "").1, "");
        assert_eq!(page(all(), 1, "9"), (vec![], String::new()));
        assert_eq!(page(all(), 1, "x"), (vec![1], "1".to_owned()));
    }
}
