//! The client's side: TLS with our certificate, requests judged one by one, answers passed back.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST,
    HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SEC_WEBSOCKET_KEY,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::Authority as UriAuthority;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ringfence_policy::net::Host;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;

use super::body::Answer;
use super::io::Prefixed;
use super::upstream::{Failure, HANDSHAKE, Upstream};
use super::{Inspector, rules, secrets};
use crate::Asked;
use crate::gate::{Finding, Gate, Opened, Refusal, Why};
use crate::record::explain_json;

/// The largest head of a request or response.
pub(super) const LARGEST_HEAD: u32 = 64 * 1024;

/// How long a client may be silent between requests, and how long it may take over a head.
const IDLE: Duration = Duration::from_secs(300);

/// What is read of the body of a refused request while the answer is on its way, and for how long: a
/// client that writes before it reads would see a broken connection instead of the reason.
const DRAINED: usize = 32 * 1024 * 1024;
const DRAINING: Duration = Duration::from_secs(5);

/// The first byte of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Headers that mean one connection only (RFC 9110, 7.6.1), besides those that `Connection` names.
static HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Serves a client whose connection was decided and opened: TLS, or HTTP in the clear.
///
/// `prefix` is what was read of it already.
pub(crate) async fn serve<G: Gate>(
    inspector: Arc<Inspector>,
    gate: Arc<G>,
    client: TcpStream,
    prefix: Vec<u8>,
    asked: Asked,
    opened: Opened,
) {
    let _ = client.set_nodelay(true);
    let encrypted = prefix.first().is_none_or(|&byte| byte == TLS_HANDSHAKE);
    let client = Prefixed::new(prefix, client);
    let session = Session { inspector, gate, asked, encrypted };
    if encrypted {
        session.tls(client, opened).await;
    } else {
        let upstream = session.upstream(Vec::new());
        let failure = upstream.begin(opened).await.err().map(|failure| session.failed(failure));
        session.http(client, upstream, failure, false).await;
    }
}

/// One client connection.
struct Session<G> {
    inspector: Arc<Inspector>,
    gate: Arc<G>,
    asked: Asked,
    encrypted: bool,
}

/// What each request of a connection needs.
struct Requests<G> {
    session: Session<G>,
    upstream: Arc<Upstream<G>>,
    /// The server cannot be had: the answer to everything.
    failure: Option<Refusal>,
    /// Upgraded connections, which outlive the HTTP one that they began as, and bodies nobody wants.
    tasks: Mutex<JoinSet<()>>,
}

impl<G: Gate> Session<G> {
    fn upstream(&self, alpn: Vec<Vec<u8>>) -> Arc<Upstream<G>> {
        Arc::new(Upstream::new(
            Arc::clone(&self.gate),
            Arc::clone(&self.inspector),
            self.asked.clone(),
            self.encrypted,
            alpn,
        ))
    }

    /// The server is asked first, and the client gets the protocol that the server chose.
    async fn tls(self, client: Prefixed, opened: Opened) {
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), client);
        let Ok(Ok(start)) = tokio::time::timeout(HANDSHAKE, acceptor).await else {
            self.gate.refuse(&self.asked, Why::Malformed("not a TLS handshake".to_owned()));
            return;
        };
        let hello = start.client_hello();
        // The tunnel has looked already; a connection that came another way must not pass unseen.
        if let Some(name) = hello.server_name()
            && Host::parse(name.as_bytes()).ok().as_ref() != Some(&self.asked.host)
        {
            let name = name.to_owned();
            self.gate.refuse(&self.asked, Why::ServerName(Some(name)));
            return;
        }
        let offered: Vec<Vec<u8>> =
            hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let offers = |name: &[u8]| offered.iter().any(|offered| offered == name);
        let speaks_http1 = offered.is_empty() || offers(b"http/1.1");
        if !speaks_http1 && !offers(b"h2") {
            let what = "the client offers neither h2 nor http/1.1".to_owned();
            self.gate.refuse(&self.asked, Why::Malformed(what));
            return;
        }
        // A client that knows HTTP/2 only can be served by a server that does not.
        let known: &[&[u8]] = if offers(b"h2") { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        let upstream = self.upstream(known.iter().map(|name| name.to_vec()).collect());
        let (http2, failure) = match upstream.begin(opened).await {
            Ok(http2) => (http2 || !speaks_http1, None),
            Err(failure) => (!speaks_http1, Some(self.failed(failure))),
        };
        let leaf = match self.inspector.authority.leaf(&self.asked.host) {
            Ok(leaf) => leaf,
            Err(error) => {
                self.gate.refuse(&self.asked, Why::Limit(error.to_string()));
                return;
            }
        };
        let config = if http2 { leaf.http2 } else { leaf.http1 };
        // What fails here failed because of the client (it does not trust the authority): it knows.
        if let Ok(Ok(client)) = tokio::time::timeout(HANDSHAKE, start.into_stream(config)).await {
            self.http(client, upstream, failure, http2).await;
        }
    }

    async fn http<S>(
        self,
        client: S,
        upstream: Arc<Upstream<G>>,
        failure: Option<Refusal>,
        http2: bool,
    ) where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let requests =
            Arc::new(Requests { session: self, upstream, failure, tasks: Mutex::default() });
        let service = {
            let requests = Arc::clone(&requests);
            service_fn(move |request| {
                let requests = Arc::clone(&requests);
                async move { Ok::<_, Infallible>(requests.answer(request).await) }
            })
        };
        let client = TokioIo::new(client);
        if http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_header_list_size(LARGEST_HEAD);
            let _ = builder.serve_connection(client, service).await;
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .auto_date_header(false)
                .max_buf_size(LARGEST_HEAD as usize);
            let _ = builder.serve_connection(client, service).with_upgrades().await;
        }
        let mut tasks =
            std::mem::take(&mut *requests.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }

    /// Records that the server cannot be had.
    fn failed(&self, failure: Failure) -> Refusal {
        let (reason, detail, remedy) = match failure {
            Failure::Refused(refusal) => return *refusal,
            Failure::Tls(why) => (
                "upstream-tls",
                format!("the certificate or handshake of {} is refused: {why}", self.asked.host),
                "make the host trust the server's authority, or ask another server",
            ),
            Failure::Broken(why) => (
                "upstream",
                format!("the connection to {} broke: {why}", self.asked.host),
                "try again",
            ),
        };
        let finding = Finding { reason, detail, origin: None, remedy: Some(remedy.to_owned()) };
        self.gate.refuse(&self.asked, finding.into())
    }
}

impl<G: Gate> Requests<G> {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Answer> {
        let http2 = request.version() == Version::HTTP_2;
        let bodiless = request.method() == Method::HEAD;
        let judged = match &self.failure {
            Some(refusal) => Err(Refused::new(StatusCode::BAD_GATEWAY, refusal.clone())),
            None => self.judge(&mut request),
        };
        let answered = match judged {
            Ok(judged) => self.forward(request, judged).await,
            Err(refused) => {
                // Unless the client waits to be asked for the body.
                if !request.headers().contains_key(EXPECT) && !request.body().is_end_stream() {
                    self.spawn(drain(request.into_body()));
                }
                Err(refused)
            }
        };
        answered.unwrap_or_else(|refused| {
            let mut response = explain(refused.status, &refused.refusal);
            if bodiless {
                *response.body_mut() = Answer::Own(None);
            }
            if !http2 && self.failure.is_some() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        })
    }

    /// Lets `task` live as long as the client connection, or longer if it took that over.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Everything that is decided before a byte goes out; leaves a request that may go.
    fn judge(&self, request: &mut Request<Incoming>) -> Result<Judged, Box<Refused>> {
        let Session { inspector, gate, asked, encrypted } = &self.session;
        // Rules may have changed since the connection came.
        let inspector = gate.inspector().unwrap_or_else(|| Arc::clone(inspector));
        let refuse = |status, why| Err(Refused::new(status, gate.refuse(asked, why)));
        match addressed(request, asked, *encrypted) {
            Ok(()) => {}
            Err(Address::Malformed(why)) => {
                return refuse(StatusCode::BAD_REQUEST, Why::Malformed(why.to_owned()));
            }
            Err(Address::Elsewhere(host)) => {
                return refuse(StatusCode::MISDIRECTED_REQUEST, Why::HostHeader(host));
            }
        }
        let method = request.method().clone();
        let path = request.uri().path();
        let shown = rules::show(method.as_str(), path);
        let finding = |reason, detail: String| {
            Why::from(Finding { reason, detail, origin: None, remedy: None })
        };
        // A tunnel cannot be judged; TRACE shows the server's view of the headers, secrets included.
        if method == Method::CONNECT || method == Method::TRACE {
            let why = format!("{shown}: not possible where requests are inspected");
            return refuse(StatusCode::FORBIDDEN, finding("method", why));
        }
        let rules = &inspector.settings.rules;
        if let Err(found) =
            rules::judge(rules, &asked.host, method.as_str(), path, request.headers())
        {
            return refuse(StatusCode::FORBIDDEN, found.into());
        }
        let upgrade = is_websocket(request).then(|| hyper::upgrade::on(&mut *request));
        let trailers = has_token(request.headers(), &TE, "trailers");
        strip(request.headers_mut());
        // The body is framed anew, by what was read and not by what was said of it.
        request.headers_mut().remove(CONTENT_LENGTH);
        // hyper has answered it.
        request.headers_mut().remove(EXPECT);
        if trailers {
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        }
        let target = request.uri().path_and_query().map_or(String::new(), ToString::to_string);
        let headers = request.headers_mut();
        let secrets = &inspector.settings.secrets;
        let injected =
            match secrets::apply(secrets, &asked.host, *encrypted, &shown, &target, headers) {
                Ok(injected) => injected,
                Err(found) => return refuse(StatusCode::FORBIDDEN, found.into()),
            };
        if injected.any {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if upgrade.is_some() {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        let since = Instant::now();
        Ok(Judged { injected, upgrade, head: method == Method::HEAD, shown, since })
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        judged: Judged,
    ) -> Result<Response<Answer>, Box<Refused>> {
        let Judged { injected, upgrade, head, shown, since } = judged;
        let mut response = self.upstream.send(request).await.map_err(|failure| {
            Refused::new(StatusCode::BAD_GATEWAY, self.session.failed(failure))
        })?;
        let with = if injected.any { ", with a secret" } else { "" };
        let said = format!("{shown}: answered {}{with}", response.status().as_u16());
        self.session.gate.passed(&self.session.asked, &said, since);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, upgrade, &injected.needles);
        }
        let framed = response.headers().contains_key(TRANSFER_ENCODING);
        strip(response.headers_mut());
        let headers = response.headers_mut();
        injected.needles.scrub(headers);
        let plain = headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
        let searched = injected.any && plain && !injected.needles.is_empty();
        // A body that is searched changes its length. An answer to HEAD and a 304 have none, their
        // length is a statement about another answer.
        let bare = head || response.status() == StatusCode::NOT_MODIFIED;
        if framed || (searched && !bare) {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        let (mut parts, body) = response.into_parts();
        // The server of the client's side knows which version it speaks.
        parts.version = Version::default();
        Ok(Response::from_parts(parts, Answer::passed(body, injected.needles, searched)))
    }

    /// From here on bytes flow both ways.
    fn switch(
        &self,
        mut response: Response<Incoming>,
        upgrade: Option<OnUpgrade>,
        needles: &secrets::Needles,
    ) -> Result<Response<Answer>, Box<Refused>> {
        let to_websocket = has_token(response.headers(), &UPGRADE, "websocket");
        let Some(client) = upgrade.filter(|_| to_websocket) else {
            let why =
                Failure::Broken("it switched to a protocol that was not asked for".to_owned());
            return Err(Refused::new(StatusCode::BAD_GATEWAY, self.session.failed(why)));
        };
        let server = hyper::upgrade::on(&mut response);
        self.spawn(async move {
            let (Ok(client), Ok(server)) = tokio::join!(client, server) else { return };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
        let (mut parts, _) = response.into_parts();
        strip(&mut parts.headers);
        needles.scrub(&mut parts.headers);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        parts.version = Version::default();
        Ok(Response::from_parts(parts, Answer::Own(None)))
    }
}

/// What is remembered of a request while it is on its way.
struct Judged {
    injected: secrets::Injected,
    upgrade: Option<OnUpgrade>,
    head: bool,
    /// Method and path, for the record.
    shown: String,
    since: Instant,
}

/// How a refused request is answered.
struct Refused {
    status: StatusCode,
    refusal: Refusal,
}

impl Refused {
    fn new(status: StatusCode, refusal: Refusal) -> Box<Self> {
        Box::new(Self { status, refusal })
    }
}

/// Why a request is not for the judged host.
enum Address {
    Malformed(&'static str),
    Elsewhere(String),
}

/// Whether a request names the judged host, and no other, everywhere it names one.
fn addressed(request: &Request<Incoming>, asked: &Asked, encrypted: bool) -> Result<(), Address> {
    let uri = request.uri();
    let http2 = request.version() == Version::HTTP_2;
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Address::Malformed("the request has more than one Host header"));
    }
    if header.is_none() && !(http2 && uri.authority().is_some()) {
        return Err(Address::Malformed("the request has no Host header"));
    }
    if let Some(authority) = uri.authority() {
        is_asked(authority.as_str().as_bytes(), asked)?;
    }
    if let Some(header) = header {
        is_asked(header.as_bytes(), asked)?;
    }
    let scheme = if encrypted { "https" } else { "http" };
    if uri.scheme_str().is_some_and(|said| !said.eq_ignore_ascii_case(scheme)) {
        return Err(Address::Malformed("the scheme is not that of the connection"));
    }
    Ok(())
}

fn is_asked(text: &[u8], asked: &Asked) -> Result<(), Address> {
    let elsewhere =
        || Address::Elsewhere(String::from_utf8_lossy(text).chars().take(256).collect());
    let authority = UriAuthority::try_from(text).map_err(|_| elsewhere())?;
    let port = match authority.port() {
        Some(port) => Some(port.as_str().parse::<u16>().map_err(|_| elsewhere())?),
        None => None,
    };
    // User information would be sent nowhere; whoever writes it wants something to be misread.
    let same = !text.contains(&b'@')
        && Host::parse(authority.host().as_bytes()).is_ok_and(|host| host == asked.host)
        && port.is_none_or(|port| port == asked.port);
    if same { Ok(()) } else { Err(elsewhere()) }
}

/// Only WebSocket may take a judged connection over: `h2c` would be requests that nobody judges.
fn is_websocket(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && has_token(headers, &CONNECTION, "upgrade")
        && headers.get_all(UPGRADE).iter().count() == 1
        && headers[UPGRADE].as_bytes().eq_ignore_ascii_case(b"websocket")
        && headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Whether a comma-separated header holds `token`.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token.as_bytes()))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| value.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

/// Removes what means one connection only.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &CONNECTION).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP).filter(|name| **name != HOST) {
        headers.remove(name);
    }
}

/// Reads on for a while.
async fn drain(mut body: Incoming) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await
            && read < DRAINED
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _ = tokio::time::timeout(DRAINING, reading).await;
}

/// The refusal as an answer that an agent can act on.
fn explain(status: StatusCode, refusal: &Refusal) -> Response<Answer> {
    let body = explain_json(&refusal.0);
    let mut response = Response::new(Answer::Own(Some(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-ringfence-reason", HeaderValue::from_static(refusal.0.reason));
    response
}
