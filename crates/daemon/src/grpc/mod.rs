//! `ringfence.v1` over gRPC, beside REST at the same places. It says the same in the same words: messages
//! have the names of the JSON, and are made of the same types by them.

mod codebases;
mod events;
mod execs;
mod files;
mod layers;
mod sandboxes;
mod sessions;
/// Made of `crates/daemon/proto/ringfence.proto` by prost and tonic. What is asked can be written as JSON
/// (`Serialize`), what is answered be read from it (`Deserialize`, `default`).
#[allow(clippy::all, clippy::pedantic, missing_debug_implementations)]
#[rustfmt::skip]
mod wire;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, unfold};
use prost::Message as _;
use ringfence_supervisor::codebases::Download;
use ringfence_supervisor::{Caller, Command, Error, Kind, Reply, Supervisor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tonic::{Code, Request, Status};

use crate::problem::Problem;
use wire::codebases_server::CodebasesServer;
use wire::events_server::EventsServer;
use wire::execs_server::ExecsServer;
use wire::files_server::FilesServer;
use wire::layers_server::LayersServer;
use wire::sandboxes_server::SandboxesServer;
use wire::sessions_server::SessionsServer;

/// The largest message either way; what may be larger goes in parts.
const MOST_MESSAGE: usize = 64 << 20;
/// Of a part, where they are cut here: clients take 4 MiB unless told.
const PART: usize = 1 << 20;
/// Bytes of a refused call that are taken.
const MOST_UNHEARD: usize = 64 << 10;
const KIND: &str = "application/grpc";
const DOMAIN: &str = "ringfence";
const INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

type Handled<T> = Result<T, Status>;
type Answer<T> = Result<tonic::Response<T>, Status>;
type Parts = BoxStream<'static, Handled<wire::Part>>;

/// What handlers know.
#[derive(Clone, Debug)]
struct Grpc {
    supervisor: Arc<Supervisor>,
}

/// Routes to the services, for a router that has others too.
pub(crate) fn router(supervisor: Arc<Supervisor>) -> Router {
    let grpc = Grpc { supervisor };
    macro_rules! served {
        ($router:expr, $($name:literal => $server:ident),*) => {
            $router$(.route_service(
                concat!("/ringfence.v1.", $name, "/{call}"),
                $server::new(grpc.clone())
                    .max_decoding_message_size(MOST_MESSAGE)
                    .max_encoding_message_size(MOST_MESSAGE),
            ))*
        };
    }
    served!(Router::new(),
        "Sandboxes" => SandboxesServer,
        "Execs" => ExecsServer,
        "Sessions" => SessionsServer,
        "Files" => FilesServer,
        "Layers" => LayersServer,
        "Codebases" => CodebasesServer,
        "Events" => EventsServer
    )
}

/// Whether a request is a call, whose refusals are said in another way.
pub(crate) fn is_call(headers: &HeaderMap) -> bool {
    let kind = headers.get(axum::http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with(KIND))
}

/// A refusal that came before any handler. Some clients take an answer before their last byte for a broken
/// connection.
pub(crate) async fn refused(problem: Problem, call: axum::extract::Request) -> Response {
    let _ = axum::body::to_bytes(call.into_body(), MOST_UNHEARD).await;
    let problem = problem.body();
    let code = match problem.status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        _ => Code::Unknown,
    };
    status(code, problem.message, problem.reason, problem.remedy)
        .into_http::<axum::body::Body>()
        .into_response()
}

/// The supervisor and who asks it.
struct Ask {
    supervisor: Arc<Supervisor>,
    caller: Caller,
}

impl Grpc {
    /// Of a call.
    fn of<T>(&self, request: Request<T>) -> Handled<(Ask, T)> {
        let (_, extensions, message) = request.into_parts();
        let caller = extensions.get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Status::permission_denied("nobody knows who asks"))?;
        Ok((Ask { supervisor: self.supervisor.clone(), caller }, message))
    }
}

impl Ask {
    async fn run(&self, command: Command) -> Handled<Reply> {
        self.supervisor.run(self.caller, command).await.map_err(said)
    }

    async fn done(&self, command: Command) -> Answer<wire::Nothing> {
        self.run(command).await?;
        Ok(tonic::Response::new(wire::Nothing {}))
    }
}

/// `google.rpc.Status`, as `grpc-status-details-bin` has it.
#[derive(Clone, PartialEq, prost::Message)]
struct Details {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    more: Vec<prost_types::Any>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

fn status(code: Code, message: String, reason: String, remedy: String) -> Status {
    let mut info = ErrorInfo { reason, domain: DOMAIN.into(), ..ErrorInfo::default() };
    if !remedy.is_empty() {
        info.metadata.insert("remedy".into(), remedy);
    }
    let info = prost_types::Any { type_url: INFO.into(), value: info.encode_to_vec() };
    let details = Details { code: code as i32, message: message.clone(), more: vec![info] };
    Status::with_details(code, message, details.encode_to_vec().into())
}

fn said(e: Error) -> Status {
    let code = match e.kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict | Kind::Changed => Code::FailedPrecondition,
        Kind::Lost => Code::Aborted,
        Kind::Busy => Code::Unavailable,
        Kind::Limit | Kind::TooLarge => Code::ResourceExhausted,
        Kind::Refused => Code::PermissionDenied,
        Kind::Alone | Kind::Internal => Code::Internal,
    };
    status(code, e.message, e.kind.text().into(), e.remedy)
}

fn invalid(message: impl Into<String>) -> Status {
    said(Error::invalid(message))
}

fn unexpected(reply: &impl std::fmt::Debug) -> Status {
    Status::internal(format!("the supervisor answered {reply:?}"))
}

/// What a message says, without what is only the message's: the fields that `apart` names.
fn fields(message: &impl Serialize, apart: &[&str]) -> Handled<Map<String, Value>> {
    match serde_json::to_value(message) {
        Ok(Value::Object(mut fields)) => {
            fields.retain(|name, value| !apart.contains(&name.as_str()) && !value.is_null());
            Ok(fields)
        }
        other => Err(Status::internal(format!("{other:?}"))),
    }
}

/// From the wire.
fn asked<T: DeserializeOwned>(fields: Map<String, Value>) -> Handled<T> {
    serde_json::from_value(Value::Object(fields)).map_err(|e| invalid(e.to_string()))
}

/// To the wire.
fn told<T: DeserializeOwned>(what: &impl Serialize) -> Handled<T> {
    serde_json::to_value(what)
        .and_then(serde_json::from_value)
        .map_err(|e| Status::internal(e.to_string()))
}

fn answer<T: DeserializeOwned>(what: &impl Serialize) -> Answer<T> {
    told(what).map(tonic::Response::new)
}

/// A download in parts.
fn sent(download: Download) -> Parts {
    unfold(download, |mut download| async move {
        let part = download.recv().await?;
        let part = part.map(|data| wire::Part { data });
        Some((part.map_err(|e| Status::internal(e.to_string())), download))
    })
    .boxed()
}

/// Bytes in parts.
fn cut(bytes: &[u8]) -> Parts {
    let parts: Vec<_> =
        bytes.chunks(PART).map(|data| Ok(wire::Part { data: data.into() })).collect();
    futures_util::stream::iter(parts).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_reason_and_remedy_in_its_details() {
        let status =
            said(Error::new(Kind::Conflict, "the sandbox is frozen").with("start it first"));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = Details::decode(status.details()).unwrap();
        assert_eq!((details.code, details.message.as_str()), (9, "the sandbox is frozen"));
        let info = ErrorInfo::decode(details.more[0].value.as_slice()).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("conflict", "ringfence"));
        assert_eq!(info.metadata["remedy"], "start it first");
    }
}
