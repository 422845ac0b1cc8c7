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

use std::sync::Arc;

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
}

pub(crate) fn grpc(supervisor: Arc<Supervisor>) -> Router {
    let ours = supervisor.clone();
    let fense = Fense { supervisor };
    let sandboxes = SandboxServiceServer::new(fense.clone());
    let codebases = CodebaseServiceServer::new(fense);
    let routes = tonic::service::Routes::new(
        sandboxes.max_decoding_message_size(MOST_MESSAGE).max_encoding_message_size(MOST_MESSAGE),
    )
    .add_service(codebases.max_decoding_message_size(MOST_MESSAGE));
    routes.into_axum_router().layer(from_fn_with_state((Door::Grpc, ours), check))
}

pub(crate) fn rest(supervisor: Arc<Supervisor>) -> Router {
    let ours = supervisor.clone();
    rest::router(Fense { supervisor }).layer(from_fn_with_state((Door::Rest, ours), check))
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
                    let _ = axum::body::to_bytes(request.into_body(), MOST_UNHEARD).await;
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
    caller: Caller,
}

impl Fense {
    fn ask(&self, extensions: &axum::http::Extensions) -> Handled<Ask> {
        let caller = extensions.get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Status::permission_denied("nobody knows who asks"))?;
        Ok(Ask { supervisor: self.supervisor.clone(), caller })
    }

    /// Of a call.
    fn of<T>(&self, request: tonic::Request<T>) -> Handled<(Ask, T)> {
        let (_, extensions, message) = request.into_parts();
        let caller = extensions.get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Status::permission_denied("nobody knows who asks"))?;
        Ok((Ask { supervisor: self.supervisor.clone(), caller }, message))
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
        Kind::Conflict => Code::FailedPrecondition,
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
fn page<T>(all: Vec<T>, size: i32, token: &str) -> Handled<(Vec<T>, String)> {
    let from: usize = match token {
        "" => 0,
        token => token.parse().map_err(|_| Status::invalid_argument("page_token: it is none"))?,
    };
    let size = if size > 0 { size as usize } else { usize::MAX };
    let more = all.len() > from.saturating_add(size);
    let next = if more { (from + size).to_string() } else { String::new() };
    Ok((all.into_iter().skip(from).take(size).collect(), next))
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn pages_follow_each_other() {
        let all = || vec![1, 2, 3];
        assert_eq!(page(all(), 0, "").unwrap(), (vec![1, 2, 3], String::new()));
        assert_eq!(page(all(), 2, "").unwrap(), (vec![1, 2], "2".to_owned()));
        assert_eq!(page(all(), 2, "2").unwrap(), (vec![3], String::new()));
        assert_eq!(page(all(), 3, "").unwrap().1, "");
        assert_eq!(page(all(), 1, "9").unwrap(), (vec![], String::new()));
        assert!(page(all(), 1, "x").is_err());
    }
}
