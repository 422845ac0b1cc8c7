//! Talks to the daemon over its unix socket, one request after the other.
#![forbid(unsafe_code)]
#![cfg(unix)]

pub mod keys;
pub mod terminal;

use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use ringfence_api::{ErrorBody, Exec, ExecRequest, ExecResult, Output};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why there is no answer, or what the daemon said instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("no daemon at {path}: {problem}")]
    Absent { path: String, problem: String },
    #[error("lost the daemon: {0}")]
    Lost(String),
    /// What was to be sent.
    #[error("cannot read what is to be sent: {0}")]
    Source(String),
    #[error("{}{}", .0.message, remedy(.0))]
    Refused(Box<ringfence_api::Problem>),
}

fn remedy(problem: &ringfence_api::Problem) -> String {
    if problem.remedy.is_empty() { String::new() } else { format!("; {}", problem.remedy) }
}

fn lost(e: impl std::fmt::Display) -> Error {
    Error::Lost(e.to_string())
}

pub use hyper::Method;
use hyper::header::HeaderName;
pub use hyper::header::{IF_MATCH, IF_NONE_MATCH};

pub const GET: Method = Method::GET;
pub const POST: Method = Method::POST;
pub const DELETE: Method = Method::DELETE;
pub const PATCH: Method = Method::PATCH;
/// The variable with the token of an owner, for whoever asks as one.
pub const TOKEN: &str = "RINGFENCE_TOKEN";

fn authorization() -> Option<String> {
    let token = std::env::var(TOKEN).ok().filter(|token| !token.is_empty())?;
    Some(format!("Bearer {token}"))
}

/// No body.
pub const NOTHING: Option<&()> = None;

/// What a streamed command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Started(Exec),
    Stdout(Output),
    Stderr(Output),
    Ended(Exec),
}

type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: Vec<u8>) -> Outgoing {
    Full::from(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Read at once of what is sent as it is read.
const PIECE: usize = 64 << 10;

/// A body that is read when there is room for more of it.
struct Source {
    from: Box<dyn Read + Send>,
    /// What went wrong with reading it.
    wrong: Arc<Mutex<Option<std::io::Error>>>,
}

impl Body for Source {
    type Data = Bytes;
    type Error = std::io::Error;

    /// Waits for the reader: nothing else is done by this thread meanwhile.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let mut piece = vec![0; PIECE];
        loop {
            return Poll::Ready(match self.from.read(&mut piece) {
                Ok(0) => None,
                Ok(n) => {
                    piece.truncate(n);
                    Some(Ok(Frame::data(piece.into())))
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let kind = e.kind();
                    *self.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    Some(Err(kind.into()))
                }
            });
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Outgoing>,
}

impl Client {
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let absent = |e: std::io::Error| Error::Absent {
            path: socket.display().to_string(),
            problem: e.kind().to_string(),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lost)?;
        let sender = runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(socket).await.map_err(absent)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(lost)?;
            tokio::spawn(connection);
            Ok::<_, Error>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    /// A request with a JSON body, or none, and its JSON answer. Nothing (204) reads as null.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let body = match body {
            Some(body) => Some(serde_json::to_vec(body).map_err(lost)?),
            None => None,
        };
        let (_, bytes) = self.bytes(method, path, body)?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(lost)
    }

    fn bytes(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            let response = send(sender, method, path, body).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(lost)?.to_bytes();
            if status.is_success() { Ok((status, bytes)) } else { Err(refused(status, &bytes)) }
        })
    }

    /// Sends bytes, and reads the JSON answer.
    pub fn put<T: DeserializeOwned>(&mut self, path: &str, bytes: Vec<u8>) -> Result<T, Error> {
        let (_, bytes) = self.bytes(Method::PUT, path, Some(bytes))?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(lost)
    }

    /// Sends what is read, as it is read, and reads the JSON answer.
    pub fn put_from<T: DeserializeOwned>(
        &mut self,
        path: &str,
        from: Box<dyn Read + Send>,
    ) -> Result<T, Error> {
        self.put_when(path, None, from)
    }

    /// The same on a condition: `If-Match` or `If-None-Match`, and what it says.
    pub fn put_when<T: DeserializeOwned>(
        &mut self,
        path: &str,
        condition: Option<(HeaderName, &str)>,
        from: Box<dyn Read + Send>,
    ) -> Result<T, Error> {
        let wrong = Arc::new(Mutex::new(None));
        let body = Source { from, wrong: wrong.clone() }.boxed_unsync();
        let sender = &mut self.sender;
        let answer = self.runtime.block_on(async {
            let response = send_body(sender, Method::PUT, path, condition, Some(body)).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(lost)?.to_bytes();
            if status.is_success() { Ok(bytes) } else { Err(refused(status, &bytes)) }
        });
        if let Some(e) = wrong.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Error::Source(e.kind().to_string()));
        }
        let bytes = answer?;
        let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(bytes).map_err(lost)
    }

    /// Writes an answer as it comes.
    pub fn download(&mut self, path: &str, to: &mut dyn std::io::Write) -> Result<(), Error> {
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            let response = send(sender, Method::GET, path, None).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let bytes = body.collect().await.map_err(lost)?.to_bytes();
                return Err(refused(status, &bytes));
            }
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(lost)?;
                to.write_all(frame.data_ref().map_or(&[][..], |data| data)).map_err(lost)?;
            }
            to.flush().map_err(lost)
        })
    }

    /// Runs a command to its end.
    pub fn exec(&mut self, sandbox: &str, request: &ExecRequest) -> Result<ExecResult, Error> {
        self.call(Method::POST, &format!("/v1/sandboxes/{}/exec", segment(sandbox)), Some(request))
    }

    /// Runs a command and hands out what it does as it comes.
    pub fn exec_stream(
        &mut self,
        sandbox: &str,
        request: &ExecRequest,
        each: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        self.stream(&format!("/v1/sandboxes/{}/exec/stream", segment(sandbox)), request, each)
    }

    /// Posts a request that is answered by the events of a command.
    pub fn stream(
        &mut self,
        path: &str,
        request: &impl Serialize,
        each: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(request).map_err(lost)?;
        self.told(Method::POST, path, Some(body), &mut |bytes| {
            if let Some(event) = event_of(bytes)? {
                each(event);
            }
            Ok(true)
        })
    }

    /// Follows what happens, until `each` has had enough (false) or the daemon ends.
    pub fn happens(
        &mut self,
        path: &str,
        each: &mut dyn FnMut(ringfence_api::Event) -> bool,
    ) -> Result<(), Error> {
        let mut wrong = Ok(());
        self.events(path, &mut |_, data| match serde_json::from_str(data) {
            Ok(event) => each(event),
            Err(e) => {
                wrong = Err(lost(e));
                false
            }
        })?;
        wrong
    }

    /// What a command writes, from the offsets in `path` on, until it ends.
    pub fn follow(&mut self, path: &str, each: &mut dyn FnMut(Event)) -> Result<(), Error> {
        self.told(Method::GET, path, None, &mut |bytes| {
            if let Some(event) = event_of(bytes)? {
                each(event);
            }
            Ok(true)
        })
    }

    /// Server-sent events, by name and data, until their end or until `each` has enough.
    pub fn events(
        &mut self,
        path: &str,
        each: &mut dyn FnMut(&str, &str) -> bool,
    ) -> Result<(), Error> {
        self.told(Method::GET, path, None, &mut |bytes| {
            Ok(parts_of(bytes)?.is_none_or(|(name, data)| each(name, data)))
        })
    }

    fn told(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        each: &mut dyn FnMut(&[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            let response = send(sender, method, path, body).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let bytes = body.collect().await.map_err(lost)?.to_bytes();
                return Err(refused(status, &bytes));
            }
            let mut rest = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(lost)?;
                rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(at) = rest.windows(2).position(|w| w == b"\n\n") {
                    let event: Vec<u8> = rest.drain(..at + 2).collect();
                    if !each(&event)? {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }
}

async fn send(
    sender: &mut SendRequest<Outgoing>,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Response<Incoming>, Error> {
    send_body(sender, method, path, None, body.map(whole)).await
}

async fn send_body(
    sender: &mut SendRequest<Outgoing>,
    method: Method,
    path: &str,
    condition: Option<(HeaderName, &str)>,
    body: Option<Outgoing>,
) -> Result<Response<Incoming>, Error> {
    sender.ready().await.map_err(lost)?;
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if let Some(authorization) = authorization() {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    if let Some((name, value)) = condition {
        request = request.header(name, value);
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(body.unwrap_or_else(|| whole(Vec::new()))).map_err(lost)?;
    sender.send_request(request).await.map_err(lost)
}

fn refused(status: StatusCode, bytes: &[u8]) -> Error {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => Error::Refused(Box::new(body.error)),
        Err(_) => Error::Lost(format!("it answered {status}")),
    }
}

/// The name of an event and its data.
fn parts_of(bytes: &[u8]) -> Result<Option<(&str, &str)>, Error> {
    let text = std::str::from_utf8(bytes).map_err(lost)?;
    let line = |name: &str| text.lines().find_map(|l| l.strip_prefix(name));
    Ok(line("event: ").zip(line("data: ")))
}

fn event_of(bytes: &[u8]) -> Result<Option<Event>, Error> {
    let Some((name, data)) = parts_of(bytes)? else { return Ok(None) };
    let event = match name {
        "started" => Event::Started(serde_json::from_str(data).map_err(lost)?),
        "stdout" => Event::Stdout(serde_json::from_str(data).map_err(lost)?),
        "stderr" => Event::Stderr(serde_json::from_str(data).map_err(lost)?),
        "ended" => Event::Ended(serde_json::from_str(data).map_err(lost)?),
        // Of a newer daemon.
        _ => return Ok(None),
    };
    Ok(Some(event))
}

/// One part of a path, whatever it is made of.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            use std::fmt::Write as _;
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
