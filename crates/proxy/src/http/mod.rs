//! HTTP/1: the proxy that programs are told about, and plain HTTP that was caught on its way.
//!
//! ```text
//! client ─▶ head (strict) ─▶ route: whose request is it? ─▶ gate ─▶ rebuilt head ─▶ server
//!        ◀──────────────── rebuilt head ◀─ head (strict) ◀─────────────────────────
//! ```
//!
//! Every request of a connection is judged by its own host. Heads are written anew; bodies go
//! through piece by piece, both ways at once, without a limit of time.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod head;
pub(crate) mod route;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringfence_policy::net::Host;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::gate::{Gate, Opened, Refusal, Ticket, Why};
use crate::inspect::Inspector;
use crate::{Asked, Via, tunnel};
use body::{Broken, Framing, Incoming, pump};
use head::{Length, Request, Response, put};
use route::{Fault, Forward, Route};

/// A connection between two requests.
const IDLE: Duration = Duration::from_secs(600);
/// From the first byte of a request head to its last.
const HEAD: Duration = Duration::from_secs(30);
/// From the request to the head of its answer: models think for long.
const ANSWER: Duration = Duration::from_secs(3600);
/// After the last word, for what the client still sends; closing at once would reset the connection
/// and take the answer with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// Connections to different servers that wait for another request of one client connection.
const POOL: usize = 4;
/// Interim answers (1xx) to one request.
const INTERIM: usize = 64;
/// Between two ends of an upgraded connection.
const RELAY: usize = 16 * 1024;

/// Whom the client believes to talk to.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one for each connection, moved once
pub(crate) enum Mode {
    /// To the proxy.
    Proxy { client: SocketAddr },
    /// To the server it asked for: requests must be for that.
    Origin { asked: Asked, first: Option<Opened> },
}

/// What an ill-formed request asked for.
pub(crate) fn nowhere(via: Via, client: SocketAddr) -> Asked {
    Asked { host: Host::Address(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port: 0, via, client }
}

/// Closes so that the last answer arrives.
pub(crate) async fn linger(stream: &mut TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let drain = async {
        let mut room = [0; 1024];
        let mut left = LINGER_BYTES;
        while let Ok(n @ 1..) = stream.read(&mut room).await {
            left = left.saturating_sub(n);
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(LINGER, drain).await;
}

/// Serves a client connection whose first bytes were read already. Boxed because a tunnel may hold
/// plain HTTP again.
pub(crate) fn serve<G: Gate>(
    gate: Arc<G>,
    mut client: TcpStream,
    prefix: Vec<u8>,
    mode: Mode,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let _ = client.set_nodelay(true);
        match Box::pin(talk(&*gate, &mut client, prefix, mode)).await {
            Next::Close => {}
            Next::Linger => linger(&mut client).await,
            Next::Tunnel { rest, asked, opened } => {
                tunnel::run(gate, client, rest, asked, opened).await;
            }
        }
    })
}

/// What becomes of the client's connection.
#[allow(clippy::large_enum_variant)] // as above
enum Next {
    Close,
    Linger,
    Tunnel { rest: Vec<u8>, asked: Asked, opened: Opened },
}

/// A connection to a server that was judged for this client connection.
struct Upstream {
    host: Host,
    port: u16,
    generation: u64,
    opened: Opened,
}

impl Upstream {
    /// Nothing has come since the last answer, not even the end.
    fn quiet(&self) -> bool {
        let read = self.opened.stream.try_read(&mut [0]);
        matches!(read, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

struct Client<'a> {
    incoming: Incoming<ReadHalf<'a>>,
    out: WriteHalf<'a>,
}

async fn talk<G: Gate>(gate: &G, stream: &mut TcpStream, prefix: Vec<u8>, mode: Mode) -> Next {
    let (read, out) = stream.split();
    let mut client = Client { incoming: Incoming::new(read, prefix), out };
    let mut pool = Vec::new();
    let (peer, origin) = match mode {
        Mode::Proxy { client } => (client, None),
        Mode::Origin { asked, first } => {
            if let Some(opened) = first {
                let (host, port, generation) = (asked.host.clone(), asked.port, gate.generation());
                pool.push(Upstream { host, port, generation, opened });
            }
            (asked.client, Some(asked))
        }
    };
    let nobody = origin.clone().unwrap_or_else(|| nowhere(Via::Http, peer));
    loop {
        let request = match next_request(&mut client.incoming).await {
            Ok(Some(request)) => request,
            Ok(None) => return Next::Close,
            Err(why) => {
                let refusal = gate.refuse(&nobody, why);
                return last_word(&mut client, &answer::refusal(&refusal, None, true)).await;
            }
        };
        let routed = match route::route(&request, origin.as_ref(), peer) {
            Ok(routed) => routed,
            Err(Fault { asked, why }) => {
                let refusal = gate.refuse(asked.as_ref().unwrap_or(&nobody), why);
                let text = answer::refusal(&refusal, Some(&request), true);
                return last_word(&mut client, &text).await;
            }
        };
        match routed {
            Route::Help => {
                if client.out.write_all(&answer::help(&request)).await.is_err() {
                    return Next::Close;
                }
                if !request.keeps() {
                    return Next::Linger;
                }
            }
            Route::Connect(asked) => {
                return match gate.open(&asked).await {
                    Ok(opened) => {
                        let granted = b"HTTP/1.1 200 Connection established\r\n\r\n";
                        if client.out.write_all(granted).await.is_err() {
                            return Next::Close;
                        }
                        Next::Tunnel { rest: client.incoming.into_held(), asked, opened }
                    }
                    Err(refusal) => {
                        let text = answer::refusal(&refusal, Some(&request), true);
                        last_word(&mut client, &text).await
                    }
                };
            }
            Route::Forward(forward) => {
                if let Some(name) =
                    forward.claimed.as_ref().filter(|n| gate.denies(n, forward.asked.port))
                {
                    let refusal = gate.refuse(&forward.asked, Why::DeniedName(name.clone()));
                    let text = answer::refusal(&refusal, Some(&request), true);
                    return last_word(&mut client, &text).await;
                }
                if let Some(inspector) = gate.inspector()
                    && let Err(why) = in_the_clear(&inspector, &forward.asked, &request)
                {
                    let refusal = gate.refuse(&forward.asked, why);
                    let text = answer::refusal(&refusal, Some(&request), true);
                    return last_word(&mut client, &text).await;
                }
                match exchange(gate, &mut client, &mut pool, &request, &forward).await {
                    Ended::Again => {}
                    Ended::Gone => return Next::Close,
                    Ended::Last => return Next::Linger,
                }
            }
        }
        client.incoming.rest();
    }
}

/// Hosts whose requests are judged are judged without TLS, too.
fn in_the_clear(inspector: &Inspector, asked: &Asked, request: &Request) -> Result<(), Why> {
    let fields = request.fields.iter().map(|field| (field.name.as_str(), &field.value[..]));
    inspector.judge_plain(&asked.host, &request.method, &request.target, fields)
}

async fn last_word(client: &mut Client<'_>, text: &[u8]) -> Next {
    match client.out.write_all(text).await {
        Ok(()) => Next::Linger,
        Err(_) => Next::Close,
    }
}

/// The next request; `None` if the client is done.
async fn next_request(incoming: &mut Incoming<ReadHalf<'_>>) -> Result<Option<Request>, Why> {
    if incoming.held().is_empty() {
        match timeout(IDLE, incoming.more()).await {
            Ok(Ok(1..)) => {}
            _ => return Ok(None),
        }
    }
    let whole = async {
        loop {
            match head::request(incoming.held()) {
                Ok(Some((request, length))) => {
                    incoming.take(length);
                    return Ok(Some(request));
                }
                Ok(None) => {}
                Err(problem) => return Err(Why::Malformed(problem.into())),
            }
            match incoming.more().await {
                Ok(1..) => {}
                // An empty line before the end is polite.
                _ if incoming.held().iter().all(|b| b"\r\n".contains(b)) => return Ok(None),
                _ => return Err(Why::Malformed("the request ends within its head".into())),
            }
        }
    };
    let late = || Err(Why::Limit("the head of the request takes too long".into()));
    timeout(HEAD, whole).await.unwrap_or_else(|_| late())
}

impl Request {
    /// The client wants to send another one.
    fn keeps(&self) -> bool {
        !self.old && !head::lists(&self.fields, "connection", "close")
    }

    fn empty(&self) -> bool {
        matches!(self.length, Length::None | Length::Bytes(0))
    }
}

/// How an exchange ended.
enum Ended {
    /// The client may send another request.
    Again,
    /// That was the last; close gently.
    Last,
    /// Nobody is there, or the answer broke off: close at once.
    Gone,
}

/// One request and its answer.
async fn exchange<G: Gate>(
    gate: &G,
    client: &mut Client<'_>,
    pool: &mut Vec<Upstream>,
    request: &Request,
    forward: &Forward,
) -> Ended {
    let asked = &forward.asked;
    loop {
        let (mut upstream, fresh) = match pooled(pool, asked, gate.generation()) {
            Some(upstream) => (upstream, false),
            None => match gate.open(asked).await {
                Ok(opened) => {
                    let _ = opened.stream.set_nodelay(true);
                    let (host, port) = (asked.host.clone(), asked.port);
                    (Upstream { host, port, generation: gate.generation(), opened }, true)
                }
                Err(refusal) => return decline(client, request, &refusal, None).await,
            },
        };
        match once(client, &mut upstream, request, forward).await {
            Outcome::Done { again, reuse } => {
                if reuse {
                    pool.truncate(POOL - 1);
                    pool.insert(0, upstream);
                }
                return if again { Ended::Again } else { Ended::Last };
            }
            Outcome::Upgraded { early } => {
                let Opened { stream, ticket } = &mut upstream.opened;
                relay(client, stream, ticket, early).await;
                return Ended::Gone;
            }
            // The server closed an idle connection as the request was under way.
            Outcome::Silent if !fresh && request.empty() && request.harmless() => {}
            Outcome::Silent => {
                let why = Why::Malformed("the server closed the connection without answer".into());
                return decline(client, request, &gate.refuse(asked, why), Some(502)).await;
            }
            Outcome::Late => {
                let why = Why::Limit("the server takes too long to answer".into());
                return decline(client, request, &gate.refuse(asked, why), Some(504)).await;
            }
            Outcome::BadAnswer(problem) => {
                let why = Why::Malformed(format!("the answer of the server: {problem}"));
                return decline(client, request, &gate.refuse(asked, why), Some(502)).await;
            }
            Outcome::BadBody { problem, answered } => {
                let refusal = gate.refuse(asked, Why::Malformed(problem.into()));
                if answered {
                    return Ended::Gone;
                }
                let text = answer::refusal(&refusal, Some(request), true);
                return match client.out.write_all(&text).await {
                    Ok(()) => Ended::Last,
                    Err(_) => Ended::Gone,
                };
            }
            Outcome::Gone => return Ended::Gone,
        }
    }
}

impl Request {
    /// May be sent twice.
    fn harmless(&self) -> bool {
        matches!(&self.method[..], "GET" | "HEAD" | "OPTIONS")
    }
}

/// Takes a connection out that may serve this request.
fn pooled(pool: &mut Vec<Upstream>, asked: &Asked, generation: u64) -> Option<Upstream> {
    pool.retain(|u| u.generation == generation && u.quiet());
    let at = pool.iter().position(|u| u.host == asked.host && u.port == asked.port)?;
    Some(pool.remove(at))
}

/// Answers in place of the server. A body that nobody reads ends the connection.
async fn decline(
    client: &mut Client<'_>,
    request: &Request,
    refusal: &Refusal,
    status: Option<u16>,
) -> Ended {
    let again = request.keeps() && request.empty();
    let text = answer::with_status(refusal, Some(request), !again, status);
    match client.out.write_all(&text).await {
        Ok(()) if again => Ended::Again,
        Ok(()) => Ended::Last,
        Err(_) => Ended::Gone,
    }
}

/// What one try with one server connection came to.
enum Outcome {
    Done {
        again: bool,
        reuse: bool,
    },
    Upgraded {
        early: Vec<u8>,
    },
    /// Not a byte of an answer, and nothing said to the client.
    Silent,
    Late,
    BadAnswer(head::Problem),
    BadBody {
        problem: head::Problem,
        answered: bool,
    },
    Gone,
}

/// What both directions know of each other.
#[derive(Default)]
struct Progress {
    /// The request is out, whole.
    sent: AtomicBool,
    /// The client has got the head of the answer.
    answered: AtomicBool,
}

async fn once(
    client: &mut Client<'_>,
    upstream: &mut Upstream,
    request: &Request,
    forward: &Forward,
) -> Outcome {
    let Opened { stream, ticket } = &mut upstream.opened;
    let (read, mut write) = stream.split();
    let mut back = Incoming::new(read, Vec::new());
    let progress = Progress::default();
    let mut taken = true;
    let outcome = {
        let send = async {
            write.write_all(&forward.head).await.map_err(|_| Broken::Receiver)?;
            ticket.sent(forward.head.len() as u64);
            let framing = match request.length {
                Length::Chunked => Framing::Chunked,
                _ => Framing::Plain,
            };
            let count = |n| ticket.sent(n);
            pump(&mut client.incoming, &mut write, request.length, framing, count).await
        };
        let receive = receive(&mut back, &mut client.out, request, forward, ticket, &progress);
        tokio::pin!(send, receive);
        let mut sending = true;
        loop {
            tokio::select! {
                biased;
                sent = &mut send, if sending => {
                    sending = false;
                    match sent {
                        Ok(()) => progress.sent.store(true, Ordering::Relaxed),
                        // It may have said why before it stopped to listen.
                        Err(Broken::Receiver) => taken = false,
                        Err(Broken::Sender(problem)) => {
                            let answered = progress.answered.load(Ordering::Relaxed);
                            break Outcome::BadBody { problem, answered };
                        }
                        Err(Broken::Cut) => break Outcome::Gone,
                    }
                }
                outcome = &mut receive => break outcome,
            }
        }
    };
    match outcome {
        Outcome::Done { again, reuse } => Outcome::Done {
            // What is left of the request would be taken for the next one.
            again: again && progress.sent.load(Ordering::Relaxed),
            reuse: reuse
                && taken
                && progress.sent.load(Ordering::Relaxed)
                && back.held().is_empty(),
        },
        Outcome::Upgraded { .. } => Outcome::Upgraded { early: back.into_held() },
        outcome => outcome,
    }
}

/// The head of the next answer.
async fn next_answer(back: &mut Incoming<ReadHalf<'_>>) -> Result<Response, Outcome> {
    loop {
        match head::response(back.held()) {
            Ok(Some((response, length))) => {
                back.take(length);
                return Ok(response);
            }
            Ok(None) => {}
            Err(problem) => return Err(Outcome::BadAnswer(problem)),
        }
        match back.more().await {
            Ok(1..) => {}
            Ok(0) | Err(_) if back.held().is_empty() => return Err(Outcome::Silent),
            Ok(0) | Err(_) => return Err(Outcome::BadAnswer("it ends within its head")),
        }
    }
}

/// Takes the answer and passes it on.
async fn receive(
    back: &mut Incoming<ReadHalf<'_>>,
    out: &mut WriteHalf<'_>,
    request: &Request,
    forward: &Forward,
    ticket: &Ticket,
    progress: &Progress,
) -> Outcome {
    let mut interim = 0;
    let response = loop {
        let response = match timeout(ANSWER, next_answer(back)).await {
            Ok(Ok(response)) => response,
            // Something of the answer has been seen, if only an interim one.
            Ok(Err(Outcome::Silent)) if interim > 0 => {
                return Outcome::BadAnswer("it ends before its head");
            }
            Ok(Err(outcome)) => return outcome,
            Err(_) => return Outcome::Late,
        };
        match response.status {
            101 if forward.upgrade => {
                let Ok(text) = answer_head(&response, None, true, true) else {
                    return Outcome::BadAnswer("connection names a field of the message");
                };
                return match out.write_all(&text).await {
                    Ok(()) => Outcome::Upgraded { early: Vec::new() },
                    Err(_) => Outcome::Gone,
                };
            }
            101 => return Outcome::BadAnswer("it switches protocols, which nobody asked for"),
            100..=199 => {
                interim += 1;
                if interim > INTERIM {
                    return Outcome::BadAnswer("too many interim answers");
                }
                if request.old {
                    continue;
                }
                let Ok(text) = answer_head(&response, None, true, false) else {
                    return Outcome::BadAnswer("connection names a field of the message");
                };
                if out.write_all(&text).await.is_err() {
                    return Outcome::Gone;
                }
            }
            _ => break response,
        }
    };
    let bodiless = request.method == "HEAD" || matches!(response.status, 204 | 304);
    let length = if bodiless { Length::None } else { response.length };
    let reuse = !response.old
        && length != Length::Close
        && !head::lists(&response.fields, "connection", "close");
    let ends = request.old && matches!(length, Length::Chunked | Length::Close);
    let again = request.keeps() && !ends && progress.sent.load(Ordering::Relaxed);
    let framing = match length {
        Length::Chunked | Length::Close if !request.old => Framing::Chunked,
        _ => Framing::Plain,
    };
    let told = match (response.length, framing) {
        _ if response.status == 204 => None,
        // What a GET would have got.
        (Length::Close, _) if bodiless => None,
        (Length::Chunked, _) if bodiless && !request.old => Some(Length::Chunked),
        (Length::Bytes(n), _) => Some(Length::Bytes(n)),
        (_, Framing::Chunked) => Some(Length::Chunked),
        (_, Framing::Plain) => None,
    };
    let Ok(text) = answer_head(&response, told, again, false) else {
        return Outcome::BadAnswer("connection names a field of the message");
    };
    progress.answered.store(true, Ordering::Relaxed);
    if out.write_all(&text).await.is_err() {
        return Outcome::Gone;
    }
    ticket.received(text.len() as u64);
    match pump(back, out, length, framing, |n| ticket.received(n)).await {
        Ok(()) => Outcome::Done { again, reuse },
        Err(_) => Outcome::Gone,
    }
}

/// The head of an answer for the client.
fn answer_head(
    response: &Response,
    length: Option<Length>,
    again: bool,
    upgraded: bool,
) -> Result<Vec<u8>, head::Problem> {
    let mut text = format!("HTTP/1.1 {} ", response.status).into_bytes();
    text.extend_from_slice(&response.reason);
    text.extend_from_slice(b"\r\n");
    head::forward(&response.fields, &mut text)?;
    match length {
        Some(Length::Bytes(n)) => put(&mut text, "Content-Length", n.to_string().as_bytes()),
        Some(Length::Chunked) => put(&mut text, "Transfer-Encoding", b"chunked"),
        _ => {}
    }
    if upgraded {
        put(&mut text, "Connection", b"Upgrade");
        for value in head::all(&response.fields, "upgrade") {
            put(&mut text, "Upgrade", value);
        }
    } else if !again {
        put(&mut text, "Connection", b"close");
    }
    text.extend_from_slice(b"\r\n");
    Ok(text)
}

/// After an upgrade: bytes both ways until both are done.
async fn relay(client: &mut Client<'_>, stream: &mut TcpStream, ticket: &Ticket, early: Vec<u8>) {
    let (mut read, mut write) = stream.split();
    let begun = client.incoming.held().to_vec();
    client.incoming.take(begun.len());
    let out = async {
        if write.write_all(&begun).await.is_ok() {
            ticket.sent(begun.len() as u64);
            pour(client.incoming.inner(), &mut write, |n| ticket.sent(n)).await
        } else {
            false
        }
    };
    let back = async {
        if client.out.write_all(&early).await.is_ok() {
            ticket.received(early.len() as u64);
            pour(&mut read, &mut client.out, |n| ticket.received(n)).await
        } else {
            false
        }
    };
    tokio::pin!(out, back);
    let (mut one, mut other) = (true, true);
    while one || other {
        let clean = tokio::select! {
            clean = &mut out, if one => { one = false; clean }
            clean = &mut back, if other => { other = false; clean }
        };
        if !clean {
            return;
        }
    }
}

/// Until the end, which is passed on; false if it broke.
async fn pour<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    from: &mut R,
    to: &mut W,
    count: impl Fn(u64),
) -> bool {
    let mut room = vec![0; RELAY];
    loop {
        match from.read(&mut room).await {
            Ok(0) => return to.shutdown().await.is_ok(),
            Ok(n) => {
                if to.write_all(&room[..n]).await.is_err() {
                    return false;
                }
                count(n as u64);
            }
            Err(_) => return false,
        }
    }
}
