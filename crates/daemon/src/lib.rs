//! The daemon: HTTP in front of the supervisor. It authenticates, converts and streams; what may be
//! done the supervisor decides.
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod access;
pub mod agentfense;
pub mod agentkernel;
mod grpc;
mod native;
mod neighbour;
mod places;
mod problem;
mod stamp;
pub mod tls;

/// What the fuzzer calls.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::native::fuzzing::{bodies, queries, seeds};
}

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum::middleware::Next;
use axum::serve::IncomingStream;
use ringfence_supervisor::metrics::{self, Interface};
use ringfence_supervisor::{Settings, Supervisor};
use tokio::net::{TcpListener, UnixListener};

use access::{Door, Peer};
pub use places::Places;
pub use ringfence_supervisor::owners;
pub use stamp::rfc3339;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Failed {
    let what = what.into();
    move |e| {
        let text = e.to_string().to_lowercase();
        Failed(format!("{what}: {}", text.split(" (os error").next().unwrap_or_default()))
    }
}

/// How it is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub places: Places,
    /// For one program alone: says on standard output when it can be asked, as a line of JSON with the
    /// path of the socket, and ends with its standard input.
    pub private: bool,
    /// Addresses to listen at besides the socket; callers there need the token. On loopback only, without TLS.
    pub listen: Vec<SocketAddr>,
    /// TLS at these addresses.
    pub tls: Option<tls::Files>,
    /// The interface of agentkernel, where it is asked for.
    pub agentkernel: Option<agentkernel::Options>,
    /// That of AgentFense.
    pub agentfense: Option<agentfense::Options>,
    /// The program and arguments that are the spawner; one more is added, for [`spawner`].
    pub spawner: (PathBuf, Vec<String>),
}

/// What handlers know.
#[derive(Debug)]
struct App {
    supervisor: Arc<Supervisor>,
    openapi: String,
}

/// Serves until it is told to end (SIGTERM, SIGINT). One thread moves all requests; files are read and
/// written on others.
pub fn run(options: &Options) -> Result<(), Failed> {
    let tls = transport(options)?;
    if let Some(dialect) = &options.agentkernel {
        loopback("--agentkernel", dialect.address)?;
    }
    if let Some(dialect) = &options.agentfense {
        loopback("--agentfense", dialect.grpc)?;
        loopback("--agentfense", dialect.rest)?;
    }
    let _lock = options.places.prepare()?;
    let open_files = ringfence_supervisor::spawner::more_files();
    let token = if options.listen.is_empty() { None } else { Some(options.places.token()?) };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("cannot start the runtime"))?
        .block_on(serve(options, (token, tls), open_files))
}

/// What is spoken at `--listen`; the token goes over a wire only where nobody can read it there.
fn transport(options: &Options) -> Result<Option<tls::Tls>, Failed> {
    if let Some(files) = &options.tls {
        if options.listen.is_empty() {
            return Err(Failed("--tls-cert: there is nothing to encrypt; give --listen".into()));
        }
        return tls::Tls::load(files).map(Some);
    }
    match options.listen.iter().find(|a| !a.ip().is_loopback()) {
        Some(bad) => Err(Failed(format!(
            "--listen: {bad} is not a loopback address; without encryption the token could be read on the way; give --tls-cert and --tls-key"
        ))),
        None => Ok(None),
    }
}

/// Whose the other end is can be told of connections on this machine only.
fn loopback(flag: &str, address: SocketAddr) -> Result<(), Failed> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(Failed(format!("{flag}: {address} is not a loopback address")))
}

async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address).await.map_err(failed(format!("{flag}: {address}")))
}

async fn serve(
    options: &Options,
    (token, tls): (Option<String>, Option<tls::Tls>),
    open_files: u64,
) -> Result<(), Failed> {
    let (program, mut arguments) = options.spawner.clone();
    arguments.push(open_files.to_string());
    let places = &options.places;
    let socket = places.socket();
    let unix = listen_unix(places)?;
    let mut tcp = Vec::new();
    for address in &options.listen {
        tcp.push(bind("--listen", *address).await?);
    }
    let kernel = match &options.agentkernel {
        Some(dialect) => Some((bind("--agentkernel", dialect.address).await?, dialect)),
        None => None,
    };
    let fense = match &options.agentfense {
        Some(dialect) => Some((
            bind("--agentfense", dialect.grpc).await?,
            bind("--agentfense", dialect.rest).await?,
        )),
        None => None,
    };
    let settings = Settings {
        store: places.state.join("state.db"),
        layers: places.layers(),
        spawner: (program, arguments),
        hidden: hidden(options),
        workspaces: places.workspaces(),
        owners: places.owners(),
    };
    let supervisor = Supervisor::start(settings).await.map_err(|e| Failed(e.to_string()))?;
    let version = env!("CARGO_PKG_VERSION");
    let document = ringfence_api::openapi::document(version);
    let app = Arc::new(App { supervisor: supervisor.clone(), openapi: document.to_string() });
    if let Some((listener, dialect)) = kernel {
        let router = agentkernel::router(supervisor.clone(), dialect.key.clone());
        tokio::spawn(serve_router(listener, counted(router, Interface::Agentkernel)));
    }
    if let Some((grpc, rest)) = fense {
        let [calls, requests] = agentfense::routers(supervisor.clone());
        tokio::spawn(serve_router(grpc, counted(calls, Interface::AgentfenseGrpc)));
        tokio::spawn(serve_router(rest, counted(requests, Interface::AgentfenseRest)));
    }
    let router = native::router(app).merge(grpc::router(supervisor.clone()));
    for listener in tcp {
        let door = Door {
            token: token.clone(),
            names: tls.as_ref().map(tls::Tls::names),
            supervisor: supervisor.clone(),
        };
        match &tls {
            Some(tls) => {
                let listener = tls::Listener::new(listener, tls).map_err(failed("--listen"))?;
                tokio::spawn(serve_one(listener, router.clone(), door));
            }
            None => drop(tokio::spawn(serve_one(listener, router.clone(), door))),
        }
    }
    let door = Door { token, names: None, supervisor: supervisor.clone() };
    tokio::spawn(serve_one(unix, router, door));
    if options.private {
        let said = serde_json::json!({ "socket": places.socket(), "version": version });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{said}").and_then(|()| out.flush()).map_err(failed("standard output"))?;
    }
    told_to_end(options.private).await?;
    supervisor.shut_down().await;
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// What no sandbox may see. Of the key a path is enough: who has the certificate's key can pose as us.
fn hidden(options: &Options) -> Vec<String> {
    let mut hidden = options.places.hidden();
    let key = options.tls.as_ref().map(|files| &files.key);
    let key = key.and_then(|key| std::fs::canonicalize(key).ok());
    hidden.extend(key.and_then(|key| key.into_os_string().into_string().ok()));
    hidden
}

async fn serve_one<L>(listener: L, router: Router, door: Door)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
    Peer: for<'a> Connected<IncomingStream<'a, L>>,
{
    let router = router.layer(axum::middleware::from_fn_with_state(Arc::new(door), access::check));
    serve_router(listener, counted(router, Interface::Rest)).await;
}

/// Answers are counted, refusals too.
fn counted(router: Router, interface: Interface) -> Router {
    router.layer(axum::middleware::from_fn(move |request: Request, next: Next| async move {
        let interface = match interface {
            Interface::Rest if grpc::is_call(request.headers()) => Interface::Grpc,
            other => other,
        };
        let response = next.run(request).await;
        metrics::answered(interface, response.status().as_u16());
        response
    }))
}

async fn serve_router<L>(listener: L, router: Router)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
    Peer: for<'a> Connected<IncomingStream<'a, L>>,
{
    let service = router.into_make_service_with_connect_info::<Peer>();
    // It does not end by itself.
    let _ = axum::serve(listener, service).await;
}

/// Nobody else can connect at any moment: the directory is the caller's alone, and so is the name.
fn listen_unix(places: &Places) -> Result<UnixListener, Failed> {
    let path = places.socket();
    let shown = path.display().to_string();
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(shown)(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed(shown.clone()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(failed(shown))?;
    Ok(listener)
}

async fn told_to_end(by_input: bool) -> Result<(), Failed> {
    use tokio::signal::unix::{SignalKind, signal};
    let wrong = |e| failed("cannot watch for signals")(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let input = async { if by_input { input_ends().await } else { std::future::pending().await } };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = input => {}
    }
    Ok(())
}

async fn input_ends() {
    let (over, input) = tokio::sync::oneshot::channel();
    // A thread that may wait for ever: nothing waits for it.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = over.send(());
    });
    let _ = input.await;
}

/// The spawner's part of the program: see [`Options::spawner`]. `argument` is what was added.
pub fn spawner(orders: &OwnedFd, argument: &str) -> u8 {
    ringfence_supervisor::spawner::serve(orders, argument.parse().unwrap_or(0))
}
