//! TLS in front of `--listen`.
//!
//! Handshakes run beside each other, so many of them and each for so long: who connects and says nothing
//! keeps nobody else out, unless with hundreds of connections, and then for seconds.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Failed;

/// Handshakes at a time.
const MOST_HANDSHAKES: usize = 512;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an accept that failed, for want of descriptors say.
const PAUSE: Duration = Duration::from_millis(100);

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The chain as PEM, the server's own first.
    pub certificate: PathBuf,
    /// Its private key as PEM.
    pub key: PathBuf,
}

/// What was in them.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    names: Names,
}

/// What the certificate is for.
#[derive(Clone, Debug)]
pub(crate) struct Names(CertificateDer<'static>);

impl Names {
    /// Whether a client that checks would be content to find it at this host.
    pub(crate) fn has(&self, host: &str) -> bool {
        let Ok(certificate) = ParsedCertificate::try_from(&self.0) else { return false };
        let name = ServerName::try_from(host);
        name.is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    }
}

impl Tls {
    pub(crate) fn load(files: &Files) -> Result<Self, Failed> {
        let wrong = |flag: &str, path: &Path, e: &dyn std::fmt::Display| {
            Failed(format!("{flag}: {}: {}", path.display(), e.to_string().to_lowercase()))
        };
        let bad = |e: &dyn std::fmt::Display| wrong("--tls-cert", &files.certificate, e);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
            .and_then(Iterator::collect)
            .map_err(|e| bad(&e))?;
        let own = chain.first().ok_or_else(|| bad(&"there is no certificate in it"))?.clone();
        private(&files.key).map_err(|e| wrong("--tls-key", &files.key, &e))?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|e| wrong("--tls-key", &files.key, &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad(&e))?
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let mut config = config.map_err(|e| wrong("--tls-key", &files.key, &e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), names: Names(own) })
    }

    pub(crate) fn names(&self) -> Names {
        self.names.clone()
    }
}

/// A key that everybody can read is no secret.
fn private(key: &Path) -> Result<(), String> {
    let mode = std::fs::metadata(key).map_err(|e| e.to_string())?.permissions().mode();
    let others = mode & 0o007;
    if others == 0 { Ok(()) } else { Err("others can use it; chmod o= it".into()) }
}

/// Connections whose handshake is done.
#[derive(Debug)]
pub(crate) struct Listener {
    local: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl Listener {
    pub(crate) fn new(tcp: TcpListener, tls: &Tls) -> io::Result<Self> {
        let local = tcp.local_addr()?;
        let (done, ready) = mpsc::channel(MOST_HANDSHAKES);
        tokio::spawn(accept(tcp, TlsAcceptor::from(tls.config.clone()), done));
        Ok(Self { local, ready })
    }
}

async fn accept(
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    while !done.is_closed() {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, peer)) = tcp.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // Who speaks no TLS is told so by an alert, and gone.
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                let _ = done.send((stream, peer)).await;
            }
        });
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The task above does not end before this does.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.local)
    }
}
