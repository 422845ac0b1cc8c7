//! Real TLS on both sides: a server of ours, `serve` between, clients of all kinds.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringfence_policy::net::{Host, HostPattern, Name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeroize::Zeroizing;

use super::*;
use crate::gate::{Gate, Opened, Refusal, Ticket, Why};
use crate::{Asked, Record, Via};

const REAL: &str = "real-token/4711+abc";

type Sent = UnsyncBoxBody<Bytes, Infallible>;

// ---- the gate

struct Fake {
    to: SocketAddr,
    records: Arc<Mutex<Vec<Record>>>,
    opened: std::sync::atomic::AtomicUsize,
}

impl Gate for Fake {
    async fn open(&self, asked: &Asked) -> Result<Opened, Refusal> {
        self.opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let record = Record::new(asked, true, "allowed", "");
        let records = Arc::clone(&self.records);
        let sink: crate::Sink = Arc::new(move |r: &Record| records.lock().unwrap().push(r.clone()));
        Ok(Opened {
            stream: TcpStream::connect(self.to).await.unwrap(),
            ticket: Ticket::new(record, sink),
        })
    }

    fn refuse(&self, asked: &Asked, why: Why) -> Refusal {
        let (reason, detail) = match why {
            Why::Request(found) => (found.reason, found.detail),
            Why::HostHeader(host) => ("host-mismatch", host),
            Why::ServerName(name) => ("sni-mismatch", name.unwrap_or_default()),
            other => ("malformed", format!("{other:?}")),
        };
        let record = Record::new(asked, false, reason, &detail);
        self.records.lock().unwrap().push(record.clone());
        Refusal(record)
    }
}

// ---- the server

fn test_authority() -> (rcgen::Issuer<'static, rcgen::KeyPair>, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    (rcgen::Issuer::new(params, key), certificate)
}

fn server_config(
    issuer: &rcgen::Issuer<'_, rcgen::KeyPair>,
    name: &str,
    alpn: &[&str],
) -> ServerConfig {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap().der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

fn full(text: impl Into<Bytes>) -> Sent {
    Full::new(text.into()).boxed_unsync()
}

/// A body whose frames come from a channel.
struct Channel(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

impl futures_core::Stream for Channel {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

async fn origin(mut request: Request<Incoming>) -> Result<Response<Sent>, Infallible> {
    let mut seen = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        let _ = writeln!(seen, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/upload" => {
            let mut length = 0;
            while let Some(frame) = request.body_mut().frame().await {
                length += frame.unwrap().into_data().map_or(0, |data| data.len());
            }
            Response::new(full(format!("{length} bytes\n{seen}")))
        }
        "/large" => Response::new(full(vec![b'x'; 8 << 20])),
        "/events" => {
            let (send, receive) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                for n in 0..3 {
                    let event = Frame::data(Bytes::from(format!("data: {n}\n\n")));
                    if send.send(event).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
            let mut response = Response::new(StreamBody::new(Channel(receive)).boxed_unsync());
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        "/grpc" => {
            let message = request.body_mut().collect().await.unwrap();
            let sent = message.trailers().cloned().unwrap_or_default();
            let (send, receive) = tokio::sync::mpsc::channel(4);
            send.send(Frame::data(message.to_bytes())).await.unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            trailers.insert("x-sent", HeaderValue::from_str(&format!("{}", sent.len())).unwrap());
            trailers.insert("x-leak", HeaderValue::from_static(REAL));
            send.send(Frame::trailers(trailers)).await.unwrap();
            Response::new(StreamBody::new(Channel(receive)).boxed_unsync())
        }
        "/socket" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut text = [0; 4];
                while stream.read_exact(&mut text).await.is_ok() {
                    text.make_ascii_uppercase();
                    stream.write_all(&text).await.unwrap();
                }
            });
            Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .body(full(""))
                .unwrap()
        }
        "/leak" => {
            let mut response = Response::new(full(format!("body {seen}")));
            let sent = request.headers().get("authorization").cloned();
            if let Some(mut sent) = sent {
                sent.set_sensitive(false);
                response.headers_mut().insert("x-echo", sent);
            }
            response.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
            response
        }
        _ => Response::new(full(seen)),
    };
    if request.method() == Method::HEAD {
        return Ok(response.map(|_| Empty::new().boxed_unsync()));
    }
    Ok(response)
}

async fn serve_origin(listener: TcpListener, config: Option<ServerConfig>) {
    let acceptor = config.map(|config| TlsAcceptor::from(Arc::new(config)));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(origin)).await;
                return;
            };
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(origin)).await;
            } else {
                let builder = hyper::server::conn::http1::Builder::new();
                let serving = builder.serve_connection(TokioIo::new(stream), service_fn(origin));
                let _ = serving.with_upgrades().await;
            }
        });
    }
}

// ---- the world

struct World {
    front: SocketAddr,
    gate: Arc<Fake>,
    inspector: Arc<Inspector>,
    /// What the program inside sends instead of the secret.
    placeholder: String,
    directory: tempfile::TempDir,
}

#[derive(Clone, Copy)]
struct Shape<'a> {
    /// The name that is judged.
    name: &'a str,
    /// The name in the server's certificate.
    certified: &'a str,
    trusted: bool,
    alpn: &'a [&'a str],
    encrypted: bool,
    format: Option<&'a str>,
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Self {
            name: "api.example",
            certified: "api.example",
            trusted: true,
            alpn: &["h2", "http/1.1"],
            encrypted: true,
            format: None,
        }
    }
}

fn exact(name: &str) -> HostPattern {
    HostPattern::Exact(Name::parse(name.as_bytes()).unwrap())
}

impl World {
    async fn new(shape: Shape<'_>) -> Self {
        let (issuer, root) = test_authority();
        let config = server_config(&issuer, shape.certified, shape.alpn);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        tokio::spawn(serve_origin(listener, shape.encrypted.then_some(config)));

        let mut roots = RootCertStore::empty();
        if shape.trusted {
            roots.add(root).unwrap();
        } else {
            roots.add(test_authority().1).unwrap();
        }
        let rule = |methods: &[&str], paths: &[&str]| RequestRule {
            hosts: vec![exact("api.example")],
            methods: methods.iter().map(ToString::to_string).collect(),
            paths: paths.iter().map(|path| PathPattern::parse(path).unwrap()).collect(),
            origin: None,
        };
        let secret = Secret::new(
            "TOKEN",
            Zeroizing::new(REAL.as_bytes().to_vec()),
            vec![exact("api.example")],
            Some("authorization"),
            shape.format,
        )
        .unwrap();
        let placeholder = secret.placeholder().to_owned();
        let settings = Settings {
            hosts: vec![exact("other.example")],
            rules: vec![
                rule(&["GET", "HEAD"], &["/v1/**", "/large", "/events", "/socket", "/leak"]),
                rule(&["POST", "PUT"], &["/upload", "/grpc"]),
            ],
            secrets: vec![secret],
        };
        let authority = Arc::new(Authority::new(SystemTime::now()).unwrap());
        let inspector = Arc::new(Inspector::new(authority, settings, Roots::These(roots)));
        let gate = Arc::new(Fake { to, records: Arc::default(), opened: 0.into() });

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = listener.local_addr().unwrap();
        let host = Host::parse(shape.name.as_bytes()).unwrap();
        let world = Self {
            front,
            gate: gate.clone(),
            inspector: inspector.clone(),
            placeholder,
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(world.ca(), inspector.authority().certificate_pem()).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut client, address) = listener.accept().await.unwrap();
                let asked = Asked {
                    host: host.clone(),
                    port: front.port(),
                    via: Via::Direct,
                    client: address,
                };
                let (inspector, gate) = (inspector.clone(), gate.clone());
                tokio::spawn(async move {
                    let mut prefix = vec![0; 100];
                    let Ok(read) = client.read(&mut prefix).await else { return };
                    prefix.truncate(read);
                    let opened = gate.open(&asked).await.unwrap();
                    serve(inspector, gate, client, prefix, asked, opened).await;
                });
            }
        });
        world
    }

    fn ca(&self) -> std::path::PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn refusals(&self) -> Vec<(&'static str, String)> {
        let records = self.gate.records.lock().unwrap();
        records.iter().filter(|r| !r.allowed).map(|r| (r.reason, r.detail.clone())).collect()
    }

    fn assert_no_secret_told(&self) {
        let records = format!("{:?}", self.gate.records.lock().unwrap());
        assert!(!records.contains(REAL), "{records}");
        assert!(!format!("{:?}", self.inspector).contains(REAL));
    }

    async fn tls(&self, alpn: &[&str]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let pem = self.inspector.authority().certificate_pem();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(self.front).await.unwrap();
        let name = ServerName::try_from("api.example").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Sent> {
        let stream = self.tls(&["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        sender
    }

    fn url(&self, path: &str) -> String {
        format!("https://api.example:{}{path}", self.front.port())
    }

    /// Sends these bytes, reads to the end.
    async fn raw(&self, text: &str) -> String {
        let mut stream = self.tls(&["http/1.1"]).await;
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn curl(&self, arguments: &[&str]) -> Option<String> {
        let resolve = format!("api.example:{}:127.0.0.1", self.front.port());
        let ca = self.ca();
        let mut command = Command::new("curl");
        command
            .env_clear()
            .args([
                "-sS",
                "-i",
                "--max-time",
                "20",
                "--noproxy",
                "*",
                "--resolve",
                &resolve,
                "--cacert",
            ])
            .arg(ca)
            .args(arguments);
        run(command).await
    }
}

/// Standard output and error of a program, `None` if it is not there.
async fn run(mut command: Command) -> Option<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let Ok(output) = output else {
        println!("skipped: {program} is not installed");
        return None;
    };
    let error = String::from_utf8_lossy(&output.stderr);
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &error)
}

fn get(url: &str) -> Request<Sent> {
    Request::get(url).body(Empty::new().boxed_unsync()).unwrap()
}

async fn text(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

// ---- tests

#[tokio::test]
async fn curl_gets_what_the_rules_allow_over_both_versions() {
    let world = World::new(Shape::default()).await;
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
        let Some(out) = world.curl(&[flag, &world.url("/v1/x?y=z")]).await else { return };
        assert!(out.starts_with(&format!("{version} 200")), "{out}");
        assert!(
            out.contains("/v1/x?y=z")
                && out.contains(&format!("{version}.0").replace("1.1.0", "1.1")),
            "{out}"
        );
        let out = world.curl(&[flag, &world.url("/v2/x")]).await.unwrap();
        assert!(out.starts_with(&format!("{version} 403")), "{out}");
        assert!(out.contains("\"reason\": \"path\"") && out.contains("GET /v2/x"), "{out}");
        let out = world.curl(&[flag, "-X", "DELETE", &world.url("/v1/x")]).await.unwrap();
        assert!(out.contains("403") && out.contains("\"reason\": \"method\""), "{out}");
        let out = world.curl(&[flag, "--path-as-is", &world.url("/v1/../v2")]).await.unwrap();
        assert!(out.contains("403") && out.contains("\"reason\": \"path-ambiguous\""), "{out}");
        let out = world.curl(&[flag, "-I", &world.url("/v1/x")]).await.unwrap();
        assert!(out.starts_with(&format!("{version} 200")), "{out}");
        let out = world.curl(&[flag, "-I", &world.url("/v2/x")]).await.unwrap();
        assert!(out.starts_with(&format!("{version} 403")) && !out.contains("curl:"), "{out}");
        let other = format!("Host: evil.example:{}", world.front.port());
        let out = world.curl(&[flag, "-H", &other, &world.url("/v1/x")]).await.unwrap();
        assert!(out.starts_with(&format!("{version} 421")), "{out}");
    }
    // The control: without the authority nobody believes the certificate.
    let out = world.curl(&["--cacert", "/dev/null", &world.url("/v1/x")]).await.unwrap();
    assert!(!out.contains("200") && out.contains("curl: ("), "{out}");
    let refusals = world.refusals();
    assert_eq!(refusals.len(), 10, "{refusals:?}");
}

#[tokio::test]
async fn python_and_node_accept_the_certificates() {
    let world = World::new(Shape::default()).await;
    let (port, ca) = (world.front.port(), world.ca());
    let script = format!(
        "import ssl, socket, http.client\n\
         c = ssl.create_default_context(cafile={ca:?})\n\
         c.verify_flags |= ssl.VERIFY_X509_STRICT\n\
         s = c.wrap_socket(socket.create_connection(('127.0.0.1', {port})), server_hostname='api.example')\n\
         h = http.client.HTTPSConnection('api.example', {port}); h.sock = s\n\
         for path in ('/v1/a', '/nope'):\n\
        \x20   h.request('GET', path); r = h.getresponse(); print(r.status, r.read()[:10])\n"
    );
    let mut python = Command::new("python3");
    python.args(["-c", &script]);
    if let Some(out) = run(python).await {
        assert!(out.contains("200 b'GET /v1/a") && out.contains("403 b'"), "{out}");
    }
    let script = format!(
        "const https = require('https');\n\
         const go = (path) => new Promise((done) => https.get({{host: '127.0.0.1', port: {port}, path, \
         servername: 'api.example', headers: {{host: 'api.example:{port}'}}}}, (r) => {{ r.resume(); r.on('end', () => done(r.statusCode)); }})\
         .on('error', (e) => done(e.message)));\n\
         (async () => console.log(await go('/v1/a'), await go('/nope')))();"
    );
    let mut node = Command::new("node");
    node.env("NODE_EXTRA_CA_CERTS", &ca).args(["-e", &script]);
    if let Some(out) = run(node).await {
        assert!(out.contains("200 403"), "{out}");
    }
    let mut control = Command::new("node");
    control.args(["-e", &script]);
    if let Some(out) = run(control).await {
        assert!(!out.contains("200"), "{out}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_the_judged_one_is_misdirected() {
    let world = World::new(Shape::default()).await;
    let port = world.front.port();
    for (head, status) in [
        (format!("GET /v1/x HTTP/1.1\r\nHost: api.example:{port}\r\n"), "200"),
        (
            format!("GET https://api.example:{port}/v1/x HTTP/1.1\r\nHost: api.example:{port}\r\n"),
            "200",
        ),
        ("GET /v1/x HTTP/1.1\r\nHost: API.example\r\n".to_owned(), "200"),
        ("GET /v1/x HTTP/1.1\r\nHost: evil.example\r\n".to_owned(), "421"),
        ("GET /v1/x HTTP/1.1\r\nHost: api.example:1\r\n".to_owned(), "421"),
        ("GET /v1/x HTTP/1.1\r\nHost: api.example@evil.example\r\n".to_owned(), "421"),
        ("GET /v1/x HTTP/1.1\r\nHost: evil@api.example\r\n".to_owned(), "421"),
        ("GET /v1/x HTTP/1.1\r\nHost: api.example.evil\r\n".to_owned(), "421"),
        ("GET /v1/x HTTP/1.1\r\nHost: api.example, evil\r\n".to_owned(), "421"),
        (format!("GET https://evil.example/v1/x HTTP/1.1\r\nHost: api.example:{port}\r\n"), "421"),
        (
            format!("GET http://api.example:{port}/v1/x HTTP/1.1\r\nHost: api.example:{port}\r\n"),
            "400",
        ),
        ("GET /v1/x HTTP/1.1\r\n".to_owned(), "400"),
        ("GET /v1/x HTTP/1.1\r\nHost: api.example\r\nHost: evil.example\r\n".to_owned(), "400"),
        (format!("CONNECT api.example:{port} HTTP/1.1\r\nHost: api.example:{port}\r\n"), "403"),
        ("TRACE /v1/x HTTP/1.1\r\nHost: api.example\r\n".to_owned(), "403"),
    ] {
        let answer = world.raw(&format!("{head}Connection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        assert!(
            status == "200" || !answer.contains("GET /v1/x HTTP/1.1\nhost"),
            "{head}: {answer}"
        );
    }
    let mut sender = world.http2().await;
    for (url, status) in [
        (world.url("/v1/x"), 200),
        ("https://evil.example/v1/x".to_owned(), 421),
        (format!("http://api.example:{port}/v1/x"), 400),
    ] {
        let (got, body) = text(sender.send_request(get(&url)).await.unwrap()).await;
        assert_eq!(got, status, "{url}: {body}");
    }
    let mut both = get(&world.url("/v1/x"));
    both.headers_mut().insert("host", "evil.example".parse().unwrap());
    assert_eq!(sender.send_request(both).await.unwrap().status(), 421);
}

#[tokio::test]
async fn a_smuggled_request_is_judged_or_gone() {
    let world = World::new(Shape::default()).await;
    let inner = "GET /secret HTTP/1.1\r\nHost: api.example\r\n\r\n";
    for framing in [
        format!(
            "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
            inner.len() + 5
        ),
        format!("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("Content-Length: 0\r\n\r\n{inner}"),
        format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
        format!("Transfer-Encoding: xchunked\r\n\r\n{inner}"),
        format!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
    ] {
        let head = "PUT /upload HTTP/1.1\r\nHost: api.example\r\n";
        let mut stream = world.tls(&["http/1.1"]).await;
        stream.write_all(format!("{head}{framing}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_millis(300), reading).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("GET /secret HTTP"), "{framing}: {answer}");
    }
    // A body that is a request is a body.
    let inner = "GET /secret HTTP/1.1\r\nHost: api.example\r\n\r\n";
    let whole = format!(
        "PUT /upload HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{inner}",
        inner.len()
    );
    let answer = world.raw(&whole).await;
    assert!(answer.contains(&format!("{} bytes", inner.len())), "{answer}");
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_is_refused() {
    let wrong = Shape { certified: "evil.example", ..Shape::default() };
    let unknown = Shape { trusted: false, ..Shape::default() };
    for shape in [wrong, unknown] {
        let world = World::new(shape).await;
        for flag in ["--http1.1", "--http2"] {
            let Some(out) = world.curl(&[flag, &world.url("/v1/x")]).await else { return };
            assert!(out.contains(" 502") && out.contains("\"reason\": \"upstream-tls\""), "{out}");
            assert!(out.contains("invalid peer certificate"), "{out}");
        }
        assert_eq!(world.refusals().len(), 2);
    }
}

#[tokio::test]
async fn the_secret_goes_to_its_host_and_is_never_seen() {
    let world = World::new(Shape::default()).await;
    let basic = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("me:{}", world.placeholder))
    };
    for flag in ["--http1.1", "--http2"] {
        for sent in [format!("Bearer {}", world.placeholder), format!("Basic {basic}")] {
            let header = format!("Authorization: {sent}");
            let Some(out) = world.curl(&[flag, "-H", &header, &world.url("/leak")]).await else {
                return;
            };
            assert!(out.contains(" 200"), "{out}");
            assert!(!out.contains(REAL), "{out}");
            // The server had it: what came back was put back, in the header and in the body.
            assert!(out.contains(&format!("x-echo: {sent}")), "{out}");
            assert!(out.contains(&format!("\nauthorization: {sent}")), "{out}");
            assert!(out.contains("\naccept-encoding: identity"), "{out}");
            assert!(!out.contains("keep-alive"), "{out}");
        }
    }
    assert!(world.refusals().is_empty());
    world.assert_no_secret_told();

    // The control of "the server had it".
    let seen = Arc::new(Mutex::new(String::new()));
    let mut request = HeaderMap::new();
    request.insert("authorization", world.placeholder.parse().unwrap());
    let host = Host::parse(b"api.example").unwrap();
    let secrets = &world.inspector.settings.secrets;
    secrets::apply(secrets, &host, true, "GET /", "/", &mut request).unwrap();
    seen.lock().unwrap().push_str(request["authorization"].to_str().unwrap());
    assert_eq!(*seen.lock().unwrap(), REAL);

    let elsewhere =
        World::new(Shape { name: "other.example", certified: "other.example", ..Shape::default() });
    let elsewhere = elsewhere.await;
    let port = elsewhere.front.port();
    let resolve = format!("other.example:{port}:127.0.0.1");
    let url = format!("https://other.example:{port}/v9");
    let header = format!("X-Some: {}", elsewhere.placeholder);
    let out = elsewhere.curl(&["--resolve", &resolve, "-H", &header, &url]).await.unwrap();
    assert!(out.contains(" 403") && out.contains("secret-elsewhere"), "{out}");
    let query = format!("{url}?k={}", elsewhere.placeholder);
    let out = elsewhere.curl(&["--resolve", &resolve, &query]).await.unwrap();
    assert!(out.contains(" 403") && out.contains("secret-elsewhere"), "{out}");
    let out = elsewhere.curl(&["--resolve", &resolve, &url]).await.unwrap();
    assert!(out.contains(" 200"), "{out}");
    assert_eq!(elsewhere.refusals().len(), 2);
    elsewhere.assert_no_secret_told();
}

#[tokio::test]
async fn a_format_adds_the_header() {
    let world = World::new(Shape { format: Some("Bearer {}"), ..Shape::default() }).await;
    let mut sender = world.http2().await;
    let (status, body) = text(sender.send_request(get(&world.url("/v1/x"))).await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(body.contains(&format!("authorization: Bearer {}", world.placeholder)), "{body}");
    assert!(!body.contains(REAL), "{body}");
}

#[tokio::test]
async fn in_the_clear_requests_are_judged_and_get_no_secret() {
    let world = World::new(Shape { encrypted: false, ..Shape::default() }).await;
    for (path, header, status) in [
        ("/v1/x", "X-A: b".to_owned(), "200"),
        ("/v2/x", "X-A: b".to_owned(), "403"),
        ("/v1/x", format!("Authorization: {}", world.placeholder), "403"),
    ] {
        let mut stream = TcpStream::connect(world.front).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: api.example:{}\r\n{header}\r\nConnection: close\r\n\r\n",
            world.front.port()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        assert!(!answer.contains(REAL));
    }
    let reasons: Vec<_> = world.refusals().into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["path", "secret-plaintext"]);
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let world = World::new(Shape::default()).await;
    let file = world.directory.path().join("body");
    std::fs::write(&file, vec![7; 6 << 20]).unwrap();
    for flag in ["--http1.1", "--http2"] {
        let data = format!("@{}", file.display());
        let arguments = [flag, "--data-binary", &data, &world.url("/upload")];
        let Some(out) = world.curl(&arguments).await else { return };
        assert!(out.contains("6291456 bytes"), "{out}");
        // With HTTP/2 a file of unknown length is streamed anyway.
        let chunked = [
            "--http1.1",
            "-H",
            "Transfer-Encoding: chunked",
            "--data-binary",
            &data,
            &world.url("/upload"),
        ];
        let out = world.curl(&chunked).await.unwrap();
        assert!(out.contains("6291456 bytes"), "{out}");
        let refused = [flag, "-X", "POST", "-T", file.to_str().unwrap(), &world.url("/v1/x")];
        let out = world.curl(&refused).await.unwrap();
        assert!(out.contains(" 403"), "{flag}: {out}");
        let length = ["-o", "/dev/null", "-w", "%{size_download} %header{content-length}"];
        let out =
            world.curl(&[&[flag], &length[..], &[&world.url("/large")]].concat()).await.unwrap();
        assert!(out.contains("8388608 8388608"), "{out}");
    }
    // Bytes are counted.
    for _ in 0..50 {
        let out: u64 = world.gate.records.lock().unwrap().iter().map(|r| r.bytes_out).sum();
        if out > 4 * (6 << 20) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", world.gate.records.lock().unwrap());
}

#[tokio::test]
async fn events_arrive_when_they_are_sent_and_back_pressure_reaches_the_server() {
    let world = World::new(Shape { format: Some("Bearer {}"), ..Shape::default() }).await;
    let mut sender = world.http2().await;
    let begun = std::time::Instant::now();
    let mut response = sender.send_request(get(&world.url("/events"))).await.unwrap();
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: 0\n\n");
    assert!(begun.elapsed() < Duration::from_millis(190), "{:?}", begun.elapsed());
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(rest, "data: 1\n\ndata: 2\n\n");
    // Nothing is read: what was taken from the server is bounded by windows and buffers.
    let mut stream = world.tls(&["http/1.1"]).await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: api.example\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(stream);
    for _ in 0..50 {
        let ended = world.gate.records.lock().unwrap().iter().find(|r| r.allowed).cloned();
        if let Some(record) = ended {
            assert!(record.bytes_in < 8 << 20, "{record:?}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the connection to the server did not end");
}

#[tokio::test]
async fn trailers_pass_and_streams_share_a_connection() {
    let world = World::new(Shape::default()).await;
    let sender = world.http2().await;
    let mut waiting = Vec::new();
    for n in 0..20 {
        let (mut sender, url) = (sender.clone(), world.url("/grpc"));
        waiting.push(tokio::spawn(async move {
            let (send, receive) = tokio::sync::mpsc::channel(2);
            send.send(Frame::data(Bytes::from(format!("message {n}")))).await.unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("1"));
            send.send(Frame::trailers(trailers)).await.unwrap();
            drop(send);
            let request = Request::post(&url)
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(StreamBody::new(Channel(receive)).boxed_unsync())
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(trailers["x-sent"], "1");
            assert!(!format!("{trailers:?}").contains(REAL), "{trailers:?}");
            assert_eq!(body.to_bytes(), format!("message {n}"));
        }));
    }
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(world.gate.opened.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn http2_is_translated_for_a_server_that_speaks_http1() {
    let world = World::new(Shape { alpn: &["http/1.1"], ..Shape::default() }).await;
    let mut sender = world.http2().await;
    let mut request = get(&world.url("/v1/x"));
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    let (status, body) = text(sender.send_request(request).await.unwrap()).await;
    assert_eq!(status, 200);
    assert!(body.starts_with("GET /v1/x HTTP/1.1\n"), "{body}");
    assert!(body.contains(&format!("host: api.example:{}\n", world.front.port())), "{body}");
    assert!(body.contains("cookie: a=1; b=2\n"), "{body}");
    for _ in 0..5 {
        let (status, _) = text(sender.send_request(get(&world.url("/v1/y"))).await.unwrap()).await;
        assert_eq!(status, 200);
        // Let the connection come back to the pool.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.gate.opened.load(std::sync::atomic::Ordering::SeqCst), 1);
    let mut many = Vec::new();
    for _ in 0..40 {
        let (mut sender, url) = (sender.clone(), world.url("/events"));
        many.push(tokio::spawn(async move {
            text(sender.send_request(get(&url)).await.unwrap()).await
        }));
    }
    for task in many {
        let (status, body) = task.await.unwrap();
        assert_eq!(status, 200, "{body}");
    }
    assert!(world.gate.opened.load(std::sync::atomic::Ordering::SeqCst) <= 17);
}

#[tokio::test]
async fn a_connection_is_used_again_and_replaced_when_it_ended() {
    let world = World::new(Shape { alpn: &["http/1.1"], ..Shape::default() }).await;
    let urls = [world.url("/v1/a"), world.url("/v1/b"), world.url("/v1/c")];
    let Some(out) = world.curl(&["--http1.1", &urls[0], &urls[1], &urls[2]]).await else { return };
    assert_eq!(out.matches("HTTP/1.1 200").count(), 3, "{out}");
    assert_eq!(world.gate.opened.load(std::sync::atomic::Ordering::SeqCst), 1);
    // The server closes after each; the client does not notice.
    let ask = "GET /v1/x HTTP/1.1\r\nHost: api.example\r\n\r\n";
    let mut stream = world.tls(&["http/1.1"]).await;
    let opened = world.gate.opened.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..3 {
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.gate.opened.load(std::sync::atomic::Ordering::SeqCst), opened);
}

#[tokio::test]
async fn a_websocket_is_judged_and_then_free() {
    let world = World::new(Shape::default()).await;
    let head = |path: &str, to: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: api.example\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {to}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        )
    };
    let mut stream = world.tls(&["http/1.1"]).await;
    stream.write_all(head("/socket", "websocket").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    for _ in 0..3 {
        stream.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"PING");
    }
    drop(stream);
    let answer = world.raw(&head("/private", "websocket")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // h2c would be a tunnel of requests that nobody judges; the server does not even see the wish.
    let answer = world.raw(&head("/v1/x", "h2c").replace("\r\n\r\n", "\r\nX: y\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("upgrade"), "{answer}");
    assert!(!answer.contains("http2-settings"), "{answer}");
    // A server that switches without being asked.
    let answer = world.raw("GET /socket HTTP/1.1\r\nHost: api.example\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn another_server_name_is_not_served() {
    let world = World::new(Shape { name: "other.example", ..Shape::default() }).await;
    let Some(out) = world.curl(&[&world.url("/v1/x")]).await else { return };
    assert!(out.contains("curl: ("), "{out}");
    assert_eq!(world.refusals(), [("sni-mismatch", "api.example".to_owned())]);
}

#[tokio::test]
async fn programs_find_the_authority_through_the_stores() {
    let world = World::new(Shape::default()).await;
    let (port, own) = (world.front.port(), world.directory.path());
    let found = trust::survey(&|_| None);
    let stores = trust::Stores::new(&found, world.inspector.authority(), own);
    for (path, contents) in &stores.files {
        std::fs::write(path, contents).unwrap();
    }
    let url = world.url("/v1/x");
    let resolve = format!("api.example:{port}:127.0.0.1");
    let hosts = own.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 api.example\n").unwrap();
    let java = own.join("cacerts");
    std::fs::write(&java, trust::java_store(&found, world.inspector.authority())).unwrap();
    let source = own.join("Ask.java");
    std::fs::write(
        &source,
        "public class Ask { public static void main(String[] a) throws Exception { \
         var c = java.net.http.HttpClient.newHttpClient(); \
         var q = java.net.http.HttpRequest.newBuilder(java.net.URI.create(a[0])).build(); \
         System.out.println(c.send(q, java.net.http.HttpResponse.BodyHandlers.ofString()).body()); } }",
    )
    .unwrap();
    let python = format!(
        "import ssl, socket; s = ssl.create_default_context().wrap_socket(socket.create_connection(\
         ('127.0.0.1', {port})), server_hostname='api.example'); \
         s.sendall(b'GET /v1/x HTTP/1.1\\r\\nHost: api.example\\r\\nConnection: close\\r\\n\\r\\n'); print(s.recv(999))"
    );
    let git_resolve = format!("http.curloptResolve={resolve}");
    let java_hosts = format!("-Djdk.net.hosts.file={}", hosts.display());
    let java_options = trust::java_options(&java);
    let source = source.display().to_string();
    let cases: [(&str, Vec<&str>, &str); 4] = [
        ("curl", vec!["-sS", "--noproxy", "*", "--resolve", &resolve, &url], "/v1/x HTTP/"),
        ("python3", vec!["-c", &python], "/v1/x HTTP/"),
        // Not a repository, but a server that git believes.
        ("git", vec!["-c", &git_resolve, "ls-remote", &url], "not valid: is this a git repository"),
        ("java", vec![&java_hosts, &source, &url], "/v1/x HTTP/"),
    ];
    for (program, arguments, expected) in cases {
        for trusting in [true, false] {
            let mut command = Command::new(program);
            command.args(&arguments).current_dir(own).env("GIT_CONFIG_NOSYSTEM", "1");
            for name in stores.environment.keys() {
                command.env_remove(name);
            }
            if trusting {
                command.envs(&stores.environment).env("JAVA_TOOL_OPTIONS", &java_options);
            }
            let Some(out) = run(command).await else { break };
            assert_eq!(out.contains(expected), trusting, "{program}: {out}");
        }
    }
}

/// An HTTP proxy before `gate`; its address.
async fn proxy(gate: Arc<crate::testing::Fake>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, client) = listener.accept().await.unwrap();
            let mode = crate::http::Mode::Proxy { client };
            tokio::spawn(crate::http::serve(gate.clone(), stream, Vec::new(), mode));
        }
    });
    address
}

#[tokio::test]
async fn the_proxy_and_the_tunnel_inspect_what_they_should() {
    let tls = World::new(Shape::default()).await;
    let plain = World::new(Shape { encrypted: false, ..Shape::default() }).await;
    let (secure, open) = (tls.gate.to.port(), plain.gate.to.port());
    let gate = crate::testing::Fake::new(&[
        (&format!("api.example:{secure}"), tls.gate.to),
        (&format!("api.example:{open}"), plain.gate.to),
    ]);
    *gate.inspector.lock().unwrap() = Some(tls.inspector.clone());
    let address = proxy(gate.clone()).await;
    let through = format!("http://{address}");
    let curl = async |arguments: &[&str], url: String| {
        let mut command = Command::new("curl");
        command.env_clear().args(["-sS", "-x", &through, "--cacert"]).arg(tls.ca());
        command.args(arguments).arg(url);
        run(command).await
    };
    for (url, reason) in [
        (format!("https://api.example:{secure}/v1/x"), None),
        (format!("https://api.example:{secure}/v2/x"), Some("path")),
        (format!("http://api.example:{open}/v1/x"), None),
        (format!("http://api.example:{open}/v2/x"), Some("path")),
        (format!("http://api.example:{open}/v1/%2e%2e/v2"), Some("path-ambiguous")),
    ] {
        let Some(out) = curl(&["--path-as-is"], url.clone()).await else { return };
        match reason {
            None => assert!(out.contains("/v1/x HTTP/"), "{url}: {out}"),
            Some(reason) => {
                assert!(out.contains(&format!("\"reason\": \"{reason}\"")), "{url}: {out}");
            }
        }
    }
    let header = format!("Authorization: Bearer {}", tls.placeholder);
    let out = curl(&["-H", &header], format!("http://api.example:{open}/v1/x")).await.unwrap();
    assert!(out.contains("secret-plaintext"), "{out}");
    let upgrade = ["-H", "Connection: Upgrade", "-H", "Upgrade: h2c"];
    let out = curl(&upgrade, format!("http://api.example:{open}/v1/x")).await.unwrap();
    assert!(out.contains("\"opaque\""), "{out}");
    let out = curl(&["-H", &header], format!("https://api.example:{secure}/leak")).await.unwrap();
    assert!(out.contains(&format!("body GET https://api.example:{secure}/leak")), "{out}");
    assert!(out.contains(&format!("authorization: Bearer {}", tls.placeholder)), "{out}");
    assert!(!out.contains(REAL));

    // Neither TLS nor HTTP: refused where requests are chosen, the control passes.
    for inspector in [Some(tls.inspector.clone()), None] {
        let inspected = inspector.is_some();
        *gate.inspector.lock().unwrap() = inspector;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let connect =
            format!("CONNECT api.example:{open} HTTP/1.1\r\nHost: api.example:{open}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut answer = [0; 512];
        let read = stream.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        stream.write_all(b"\x00opaque\r\n\r\n").await.unwrap();
        // The server of the control says what it thinks of it.
        let read = stream.read(&mut answer).await.unwrap_or(0);
        assert_eq!(answer[..read].starts_with(b"HTTP/1.1 400"), !inspected);
    }
    // The control of inspection: without it our certificate is not what the client gets.
    let out = curl(&[], format!("https://api.example:{secure}/v1/x")).await.unwrap();
    assert!(out.contains("curl: ("), "{out}");
    let reasons = gate.refused().join(" ");
    assert!(
        reasons.contains(" opaque") && !format!("{:?}", gate.ended).contains(REAL),
        "{reasons}"
    );
}

#[tokio::test]
async fn other_rules_hold_for_the_next_request() {
    let world = World::new(Shape::default()).await;
    let port = world.gate.to.port();
    let gate = crate::testing::Fake::new(&[(&format!("api.example:{port}"), world.gate.to)]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let front = listener.local_addr().unwrap();
    let (inspector, serving) = (world.inspector.clone(), gate.clone());
    tokio::spawn(async move {
        let (client, address) = listener.accept().await.unwrap();
        let host = Host::parse(b"api.example").unwrap();
        let asked = Asked { host, port, via: Via::Direct, client: address };
        let opened = serving.open(&asked).await.unwrap();
        serve(inspector, serving, client, Vec::new(), asked, opened).await;
    });
    let mut world = world;
    world.front = front;
    let mut sender = world.http2().await;
    let url = format!("https://api.example:{port}/v1/x");
    assert_eq!(sender.send_request(get(&url)).await.unwrap().status(), 200);
    let renewed = world.inspector.renewed(Settings {
        hosts: vec![],
        rules: vec![RequestRule {
            hosts: vec![exact("api.example")],
            methods: vec!["POST".to_owned()],
            paths: vec![],
            origin: None,
        }],
        secrets: vec![
            Secret::new("TOKEN", Zeroizing::new(b"other-value".to_vec()), vec![], None, None)
                .unwrap(),
        ],
    });
    assert_eq!(renewed.placeholders().next(), Some(("TOKEN", world.placeholder.as_str())));
    *gate.inspector.lock().unwrap() = Some(Arc::new(renewed));
    gate.generation.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(sender.send_request(get(&url)).await.unwrap().status(), 403);
    // And the gate is asked anew.
    let post = || Request::post(&url).body(Empty::new().boxed_unsync()).unwrap();
    assert_eq!(sender.send_request(post()).await.unwrap().status(), 200);
    assert_eq!(gate.opened().len(), 2);
}

#[test]
fn what_is_inspected() {
    let authority = Arc::new(Authority::new(SystemTime::now()).unwrap());
    let settings = Settings {
        hosts: vec![exact("a.example")],
        rules: vec![RequestRule {
            hosts: vec![exact("b.example")],
            methods: vec![],
            paths: vec![],
            origin: None,
        }],
        secrets: vec![
            Secret::new("S", Zeroizing::new(b"x".to_vec()), vec![exact("c.example")], None, None)
                .unwrap(),
        ],
    };
    let inspector = Inspector::new(authority, settings, Roots::Host);
    let inspects = |name: &str| inspector.inspects(&Host::parse(name.as_bytes()).unwrap());
    assert!(inspects("a.example") && inspects("b.example") && inspects("c.example"));
    assert!(!inspects("d.example") && !inspects("x.a.example"));
    assert!(inspector.has_rules(&Host::parse(b"b.example").unwrap()));
    assert!(!inspector.has_rules(&Host::parse(b"c.example").unwrap()));
    assert_eq!(inspector.placeholders().count(), 1);
}

#[test]
fn the_host_s_roots_can_be_read() {
    if !Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        println!("skipped: no bundle of root certificates");
        return;
    }
    let begun = std::time::Instant::now();
    let store = host_roots().unwrap();
    println!("{} roots in {:?}", store.len(), begun.elapsed());
    assert!(!store.is_empty());
}
