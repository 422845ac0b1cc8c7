//! Connections to the server: verified, pooled for one client connection, reopened through the gate.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{COOKIE, HOST, HeaderValue, TE};
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ringfence_policy::net::Host;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::Inspector;
use super::io::Counted;
use crate::Asked;
use crate::gate::{Gate, Opened, Refusal};

/// How long a TLS handshake may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(15);

/// Connections at a time for a client that speaks HTTP/2 to a server that does not.
const CONNECTIONS: usize = 16;

/// Why nothing came back.
#[derive(Debug)]
pub(super) enum Failure {
    /// The gate refused to dial again; recorded.
    Refused(Box<Refusal>),
    /// The server's certificate is not what it should be, or no TLS can be had with it.
    Tls(String),
    /// The connection broke.
    Broken(String),
}

enum Sender {
    Http1(http1::SendRequest<Incoming>),
    Http2(http2::SendRequest<Incoming>),
}

/// A connection for one request.
struct Lease {
    sender: Sender,
    /// Held until an HTTP/1 connection is free again.
    permit: Option<OwnedSemaphorePermit>,
    /// Just opened: that it broke is no accident of waiting.
    fresh: bool,
}

#[derive(Default)]
struct Pool {
    idle: Vec<http1::SendRequest<Incoming>>,
    shared: Option<http2::SendRequest<Incoming>>,
    /// Of the rules under which these were opened.
    generation: u64,
}

impl Pool {
    /// Forgets what other rules let through.
    fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
    }
}

/// One server, for one client connection.
pub(super) struct Upstream<G> {
    gate: Arc<G>,
    inspector: Arc<Inspector>,
    asked: Asked,
    encrypted: bool,
    /// What is offered: HTTP/2 only if the client offered it, so that both sides speak the same.
    alpn: Vec<Vec<u8>>,
    authority: String,
    pool: Mutex<Pool>,
    permits: Arc<Semaphore>,
    /// Drivers of connections; they end with this.
    tasks: std::sync::Mutex<JoinSet<()>>,
}

impl<G: Gate> Upstream<G> {
    pub(super) fn new(
        gate: Arc<G>,
        inspector: Arc<Inspector>,
        asked: Asked,
        encrypted: bool,
        alpn: Vec<Vec<u8>>,
    ) -> Self {
        let generation = gate.generation();
        let usual = if encrypted { 443 } else { 80 };
        let host = match &asked.host {
            Host::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            other => other.to_string(),
        };
        let authority =
            if asked.port == usual { host } else { format!("{host}:{port}", port = asked.port) };
        // A client that speaks HTTP/1 asks one thing at a time: with one permit it waits for the
        // connection it had instead of opening another.
        let at_once = if alpn.iter().any(|name| name == b"h2") { CONNECTIONS } else { 1 };
        Self {
            gate,
            inspector,
            asked,
            encrypted,
            alpn,
            authority,
            pool: Mutex::new(Pool { generation, ..Pool::default() }),
            permits: Arc::new(Semaphore::new(at_once)),
            tasks: std::sync::Mutex::default(),
        }
    }

    /// Uses the connection that was opened when the client came. Says whether it speaks HTTP/2.
    pub(super) async fn begin(&self, opened: Opened) -> Result<bool, Failure> {
        let sender = self.handshake(opened).await?;
        let mut pool = self.pool.lock().await;
        Ok(match sender {
            Sender::Http1(sender) => {
                pool.idle.push(sender);
                false
            }
            Sender::Http2(sender) => {
                pool.shared = Some(sender);
                true
            }
        })
    }

    async fn handshake(&self, opened: Opened) -> Result<Sender, Failure> {
        let _ = opened.stream.set_nodelay(true);
        let stream = Counted::new(opened.stream, opened.ticket);
        if !self.encrypted {
            return self.speak(stream, false).await;
        }
        let mut config = self.inspector.client().map_err(Failure::Tls)?;
        config.alpn_protocols.clone_from(&self.alpn);
        let name = match &self.asked.host {
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|e| Failure::Tls(e.to_string()))?,
            Host::Address(address) => ServerName::from(*address),
        };
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = match tokio::time::timeout(HANDSHAKE, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(tls_failure(&error)),
            Err(_) => {
                return Err(Failure::Tls("the server takes too long over the handshake".into()));
            }
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.speak(stream, http2).await
    }

    async fn speak<S>(&self, stream: S, http2: bool) -> Result<Sender, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let broken = |e: hyper::Error| Failure::Broken(e.to_string());
        let stream = TokioIo::new(stream);
        if http2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_header_list_size(super::serve::LARGEST_HEAD)
                .handshake(stream)
                .await
                .map_err(broken)?;
            self.spawn(async {
                let _ = connection.await;
            });
            return Ok(Sender::Http2(sender));
        }
        let (sender, connection) = http1::Builder::new().handshake(stream).await.map_err(broken)?;
        self.spawn(async {
            let _ = connection.with_upgrades().await;
        });
        Ok(Sender::Http1(sender))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Sends a request whose header is clean. A connection that ended while it was idle is replaced once.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Failure> {
        loop {
            let Lease { sender, permit, fresh } = self.lease().await?;
            let sent = match sender {
                Sender::Http2(mut sender) => {
                    self.shape(&mut request, true);
                    sender.try_send_request(request).await
                }
                Sender::Http1(mut sender) => {
                    self.shape(&mut request, false);
                    let sent = sender.try_send_request(request).await;
                    if sent.is_ok() {
                        let upstream = Arc::downgrade(self);
                        let generation = self.gate.generation();
                        self.spawn(async move {
                            // Ready again when the response was read to its end.
                            if sender.ready().await.is_ok()
                                && let Some(upstream) = upstream.upgrade()
                            {
                                let mut pool = upstream.pool.lock().await;
                                if pool.generation == generation {
                                    pool.idle.push(sender);
                                }
                            }
                            drop(permit);
                        });
                    }
                    sent
                }
            };
            match sent {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    Some(again) if !fresh => request = again,
                    _ => return Err(Failure::Broken(error.into_error().to_string())),
                },
            }
        }
    }

    /// The shared connection, an idle one, or a new one.
    async fn lease(&self) -> Result<Lease, Failure> {
        let shared = |pool: &mut Pool| {
            pool.renew(self.gate.generation());
            pool.shared.clone().filter(|sender| !sender.is_closed())
        };
        if let Some(sender) = shared(&mut *self.pool.lock().await) {
            return Ok(Lease { sender: Sender::Http2(sender), permit: None, fresh: false });
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let mut pool = self.pool.lock().await;
        if let Some(sender) = shared(&mut pool) {
            return Ok(Lease { sender: Sender::Http2(sender), permit: None, fresh: false });
        }
        while let Some(sender) = pool.idle.pop() {
            if !sender.is_closed() {
                return Ok(Lease { sender: Sender::Http1(sender), permit, fresh: false });
            }
        }
        let opened = self
            .gate
            .open(&self.asked)
            .await
            .map_err(|refusal| Failure::Refused(refusal.into()))?;
        let sender = self.handshake(opened).await?;
        if let Sender::Http2(sender) = &sender {
            pool.shared = Some(sender.clone());
        }
        Ok(Lease { sender, permit, fresh: true })
    }

    /// Gives a request the form of the protocol that the server speaks.
    fn shape(&self, request: &mut Request<Incoming>, http2: bool) {
        let target = request.uri().path_and_query().cloned();
        let mut uri = Uri::builder();
        if http2 {
            let scheme = if self.encrypted { "https" } else { "http" };
            uri = uri.scheme(scheme).authority(self.authority.as_str());
        }
        if let Some(target) = target {
            uri = uri.path_and_query(target);
        }
        if let Ok(uri) = uri.build() {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let headers = request.headers_mut();
        if http2 {
            headers.remove(HOST);
            return;
        }
        headers.remove(TE);
        if let Ok(host) = HeaderValue::from_str(&self.authority) {
            headers.insert(HOST, host);
        }
        // HTTP/2 lets a client split its cookies; HTTP/1 does not.
        let cookies: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if cookies.len() > 1
            && let Ok(mut joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
        {
            joined.set_sensitive(true);
            headers.insert(COOKIE, joined);
        }
    }
}

/// Keeps what the client can do something about apart from what broke.
fn tls_failure(error: &io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => Failure::Tls(error.to_string()),
        None => Failure::Broken(error.to_string()),
    }
}
