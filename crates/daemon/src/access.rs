//! Who may ask.
//!
//! At the socket: the user that the daemon runs as, by what the kernel says of the peer, and only from
//! the daemon's own user namespace: a command of a sandbox has the same user and is in another one.
//! Over TCP: who knows the token. Web pages: nobody; a browser sends `Origin`, or a `Host` that is not
//! this machine's own name for itself.
//!
//! Other daemons' interfaces have clients that send no token. There the kernel is asked whose the other
//! end of the connection is: see [`crate::neighbour`].

use std::os::fd::AsFd as _;
use std::sync::Arc;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use ringfence_supervisor::{Caller, Owner, Source, Supervisor, peer};
use tokio::net::{TcpListener, UnixListener};

use crate::grpc;
use crate::neighbour::Neighbour;
use crate::problem::Problem;
use crate::tls::{self, Names};

/// What is known of the other side of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// `None`: the kernel did not say.
    Local(Option<Local>),
    Remote(Arc<Neighbour>),
}

/// A process that connected to the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    uid: u32,
    pid: Option<i32>,
    /// It is in no sandbox.
    outside: bool,
}

impl Peer {
    fn source(&self, interface: &'static str) -> Source {
        let local = match self {
            Self::Local(local) => *local,
            Self::Remote(_) => None,
        };
        Source { interface, uid: local.map(|l| l.uid), pid: local.and_then(|l| l.pid) }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self::Local(credentials.map(|c| Local {
            uid: c.uid(),
            pid: c.pid(),
            outside: is_peer_outside(stream.io(), c.pid()),
        }))
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let here = stream.io().local_addr().ok();
        Self::Remote(Arc::new(Neighbour::new(here, *stream.remote_addr())))
    }
}

impl Connected<IncomingStream<'_, tls::Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, tls::Listener>) -> Self {
        let here = stream.io().get_ref().0.local_addr().ok();
        Self::Remote(Arc::new(Neighbour::new(here, *stream.remote_addr())))
    }
}

/// The same of whoever connected, held meanwhile: it may end, and its number be another's.
fn is_peer_outside(socket: &tokio::net::UnixStream, pid: Option<i32>) -> bool {
    match peer::pidfd(socket.as_fd()) {
        Ok(held) => peer::about(held, is_outside).unwrap_or(false),
        // An older kernel: by the number alone.
        Err(rustix::io::Errno::NOPROTOOPT) => pid.is_some_and(is_outside),
        Err(_) => false,
    }
}

/// Whether a process is in our own user namespace, and so in no sandbox.
pub(crate) fn is_outside(pid: i32) -> bool {
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user")).ok();
    let ours = namespace("self");
    ours.is_some() && namespace(&pid.to_string()) == ours
}

/// By which way requests come.
#[derive(Debug)]
pub(crate) struct Door {
    /// What callers over TCP must know.
    pub token: Option<String>,
    pub supervisor: Arc<Supervisor>,
    /// Whose certificate is shown there: hosts of that name are this machine's too.
    pub names: Option<Names>,
}

pub(crate) async fn check(
    State(door): State<Arc<Door>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let call = grpc::is_call(request.headers());
    let source = peer.source(if call { "grpc" } else { "api" });
    match admit(&door, &peer, request.headers(), request.uri()) {
        Ok(owner) => {
            request.extensions_mut().insert(Caller { owner, source });
            next.run(request).await
        }
        Err(problem) => {
            door.supervisor.refused(source, problem.reason());
            if call { grpc::refused(problem, request).await } else { problem.into_response() }
        }
    }
}

/// Whose request it is.
fn admit(door: &Door, peer: &Peer, headers: &HeaderMap, uri: &Uri) -> Result<Owner, Problem> {
    let own = rustix::process::geteuid().as_raw();
    if headers.contains_key(header::ORIGIN) {
        return Err(Problem::forbidden("web pages may not ask"));
    }
    match peer {
        Peer::Local(Some(local)) if local.uid == own && local.outside => {
            if !headers.contains_key(header::AUTHORIZATION) {
                return Ok(Owner::user());
            }
        }
        Peer::Local(_) => return Err(Problem::forbidden("this daemon serves another user")),
        Peer::Remote(_) => {
            if !says_own_host(headers, uri, door.names.as_ref()) {
                return Err(Problem::forbidden("the Host of the request is not this machine"));
            }
        }
    }
    // A token that is wrong is not made good by who sends it.
    if has_token(headers, door.token.as_deref()) {
        return Ok(Owner::user());
    }
    let named = bearer(headers).and_then(|token| door.supervisor.owner_of_token(token));
    named.ok_or_else(Problem::unauthorized)
}

/// Who asks at an interface whose clients have no token: a process of this very user, in no sandbox, and
/// no web page. Why not, else.
pub(crate) async fn neighbour(
    peer: &Peer,
    headers: &HeaderMap,
    uri: &Uri,
    (supervisor, interface): (&Supervisor, &'static str),
) -> Result<Caller, &'static str> {
    let source =
        Source { uid: Some(rustix::process::geteuid().as_raw()), ..peer.source(interface) };
    let judged = judge(peer, headers, uri).await;
    if judged.is_err() {
        supervisor.refused(Source { uid: None, ..source }, "forbidden");
    }
    judged.map(|()| Caller { owner: Owner::user(), source })
}

async fn judge(peer: &Peer, headers: &HeaderMap, uri: &Uri) -> Result<(), &'static str> {
    if headers.contains_key(header::ORIGIN) {
        return Err("web pages may not ask");
    }
    if !says_own_host(headers, uri, None) {
        return Err("the Host of the request is not this machine");
    }
    let Peer::Remote(neighbour) = peer else { return Err("nobody knows who asks") };
    neighbour.admit().await
}

/// A name that no page can make lead here: one of loopback, or one that the certificate is for. HTTP/2 says
/// it in the address; who says it twice says the same.
fn says_own_host(headers: &HeaderMap, uri: &Uri, names: Option<&Names>) -> bool {
    let hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let mut said: Vec<&str> = hosts.collect();
    if said.len() > 1 {
        return false;
    }
    said.extend(uri.authority().map(axum::http::uri::Authority::as_str));
    !said.is_empty() && said.into_iter().all(|host| is_own_name(host, names))
}

fn is_own_name(host: &str, names: Option<&Names>) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, port)) => (name, port.strip_prefix(':').or(port.is_empty().then_some("80"))),
        None => host.rsplit_once(':').map_or((host, Some("80")), |(name, port)| (name, Some(port))),
    };
    port.is_some_and(|port| port.parse::<u16>().is_ok())
        && (name.eq_ignore_ascii_case("localhost")
            || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            || names.is_some_and(|names| names.has(name)))
}

/// The token of a request that has one only.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(given), None) = (given.next(), given.next()) else { return None };
    given.to_str().ok()?.strip_prefix("Bearer ")
}

fn has_token(headers: &HeaderMap, token: Option<&str>) -> bool {
    match (bearer(headers), token) {
        (Some(given), Some(token)) => is_same(given.as_bytes(), token.as_bytes()),
        _ => false,
    }
}

/// In a time that says nothing of where they differ.
pub(crate) fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_host() {
        let with = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            headers
        };
        for host in ["localhost", "localhost:18888", "127.0.0.1:80", "[::1]:80", "LOCALHOST:1"] {
            assert!(says_own_host(&with(host), &Uri::from_static("/"), None), "{host}");
        }
        for host in [
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "10.0.0.1:80",
            "",
            "localhost:x",
            "0.0.0.0:80",
        ] {
            assert!(!says_own_host(&with(host), &Uri::from_static("/"), None), "{host}");
        }
        let none = HeaderMap::new();
        assert!(!says_own_host(&none, &Uri::from_static("/"), None));
        // HTTP/2 has it in the address; two that differ are one too many.
        assert!(says_own_host(&none, &Uri::from_static("http://localhost:1/"), None));
        assert!(!says_own_host(&none, &Uri::from_static("http://example.com/"), None));
        let two = Uri::from_static("http://localhost/");
        assert!(!says_own_host(&with("example.com"), &two, None));
    }

    #[test]
    fn a_token_must_be_the_whole_one() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            headers
        };
        assert!(has_token(&with("Bearer abc"), Some("abc")));
        for wrong in ["Bearer ab", "Bearer abcd", "Bearer ", "abc", "Basic abc"] {
            assert!(!has_token(&with(wrong), Some("abc")), "{wrong}");
        }
        assert!(!has_token(&with("Bearer abc"), None));
    }
}
