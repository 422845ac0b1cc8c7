//! A gate for tests: hosts stand for loopback servers, everything is remembered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Asked;
use crate::gate::{Gate, Opened, Refusal, Ticket, Why};
use crate::inspect::Inspector;
use crate::record::Record;

/// Longer than anything takes here.
pub(crate) const LONG: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Fake {
    /// `host:port` that may be reached, and where it is.
    pub hosts: HashMap<String, SocketAddr>,
    pub opened: Mutex<Vec<String>>,
    pub refused: Mutex<Vec<String>>,
    pub ended: Arc<Mutex<Vec<Record>>>,
    pub generation: AtomicU64,
    pub inspector: Mutex<Option<Arc<Inspector>>>,
}

impl Fake {
    pub(crate) fn new(hosts: &[(&str, SocketAddr)]) -> Arc<Self> {
        let hosts = hosts.iter().map(|(h, a)| ((*h).to_owned(), *a)).collect();
        Arc::new(Self { hosts, ..Self::default() })
    }

    pub(crate) fn opened(&self) -> Vec<String> {
        self.opened.lock().unwrap().clone()
    }

    pub(crate) fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }

    fn no(&self, asked: &Asked, reason: &'static str, detail: &str) -> Refusal {
        self.refused.lock().unwrap().push(format!("{}:{} {reason}", asked.host, asked.port));
        Refusal(Record::new(asked, false, reason, detail))
    }
}

impl Gate for Fake {
    async fn open(&self, asked: &Asked) -> Result<Opened, Refusal> {
        let key = format!("{}:{}", asked.host, asked.port);
        let Some(address) = self.hosts.get(&key) else {
            return Err(self.no(asked, "not-listed", "not in network.allow"));
        };
        let Ok(stream) = TcpStream::connect(address).await else {
            return Err(self.no(asked, "unreachable", "connection refused"));
        };
        self.opened.lock().unwrap().push(key);
        let ended = Arc::clone(&self.ended);
        let sink = Arc::new(move |r: &Record| ended.lock().unwrap().push(r.clone()));
        let ticket = Ticket::new(Record::new(asked, true, "allowed", "allowed"), sink);
        Ok(Opened { stream, ticket })
    }

    fn refuse(&self, asked: &Asked, why: Why) -> Refusal {
        let (reason, detail) = match why {
            Why::ServerName(name) => ("sni-mismatch", name.unwrap_or_default()),
            Why::HostHeader(name) => ("host-mismatch", name),
            Why::EncryptedHello => ("ech", String::new()),
            Why::Malformed(text) => ("malformed", text),
            Why::Limit(text) => ("limit", text),
            Why::DeniedName(name) => ("denied", name.to_string()),
            Why::Request(found) => (found.reason, found.detail),
        };
        self.no(asked, reason, &detail)
    }

    fn inspector(&self) -> Option<Arc<Inspector>> {
        self.inspector.lock().unwrap().clone()
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }
}

/// Runs on a runtime like the filter's.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("it hangs") });
}

/// Both ends of a loopback connection.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

/// A server that does the same with every connection.
pub(crate) async fn server<F, D>(each: F) -> SocketAddr
where
    F: Fn(TcpStream) -> D + Send + 'static,
    D: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

/// Reads up to and with `end`.
pub(crate) async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => text.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8(text).unwrap()
}

/// Reads to the end.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends `text`, where a line feed stands for CR LF.
pub(crate) async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.replace('\n', "\r\n").as_bytes()).await.unwrap();
}
