//! The one door: every protocol asks here, nothing else dials.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ringfence_policy::net::Name;
use tokio::net::TcpStream;

use crate::Asked;
use crate::inspect::Inspector;
use crate::record::{Record, Sink};

/// Decides, resolves, checks and dials. One implementation (`judge`), and fakes in tests.
pub(crate) trait Gate: Send + Sync + 'static {
    /// The whole way out. A refusal has been recorded when this returns.
    fn open(&self, asked: &Asked) -> impl Future<Output = Result<Opened, Refusal>> + Send;

    /// Refuses for something that was seen after the decision (another server name, a malformed
    /// request). Writes the record.
    fn refuse(&self, asked: &Asked, why: Why) -> Refusal;

    /// Whether the rules deny this name on this port: for what a client says of a host that was judged
    /// by its address.
    fn denies(&self, _name: &Name, _port: u16) -> bool {
        false
    }

    /// Records a request of an inspected connection that was answered: method and path, what the server
    /// said, and since when.
    fn passed(&self, asked: &Asked, what: &str, since: Instant) {
        let _ = (asked, what, since);
    }

    /// What looks into connections of chosen hosts, if anything does.
    fn inspector(&self) -> Option<Arc<Inspector>> {
        None
    }

    /// Changes when the rules do: a connection that was opened under other rules serves no further
    /// request.
    fn generation(&self) -> u64 {
        0
    }
}

/// What protocols find wrong by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The TLS server name is not the judged one; `None`: it is missing.
    ServerName(Option<String>),
    /// The Host header is not the judged name.
    HostHeader(String),
    /// A name that the rules deny, asked for at an address that they allow.
    DeniedName(Name),
    /// An encrypted client hello without a judged name.
    EncryptedHello,
    /// Not what the protocol allows; the text says what.
    Malformed(String),
    /// A limit of the filter; the text says which.
    Limit(String),
    /// What the inspection of a request found.
    Request(Box<Finding>),
}

impl From<Finding> for Why {
    fn from(found: Finding) -> Self {
        Self::Request(Box::new(found))
    }
}

/// Why a request of an inspected connection was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The record's `reason`.
    pub reason: &'static str,
    /// The record's `detail`: method and path among others, never a secret.
    pub detail: String,
    /// The record's `origin`: where the rules of the host begin.
    pub origin: Option<String>,
    /// The record's `remedy`.
    pub remedy: Option<String>,
}

/// A connection to the outside.
#[derive(Debug)]
pub(crate) struct Opened {
    pub stream: TcpStream,
    pub ticket: Ticket,
}

/// Counts a connection that was let through; its end is recorded when this is dropped.
pub(crate) struct Ticket {
    record: Record,
    sink: Sink,
    started: Instant,
    out: AtomicU64,
    back: AtomicU64,
    /// What lasts as long as the connection: its entry among the open ones, its name's address.
    holds: Option<Box<dyn std::any::Any + Send + Sync>>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Ticket {
    pub(crate) fn new(record: Record, sink: Sink) -> Self {
        Self {
            record,
            sink,
            started: Instant::now(),
            out: AtomicU64::new(0),
            back: AtomicU64::new(0),
            holds: None,
        }
    }

    /// Drops `holds` with the ticket.
    pub(crate) fn holding(mut self, holds: impl std::any::Any + Send + Sync) -> Self {
        self.holds = Some(Box::new(holds));
        self
    }

    /// Bytes from the sandbox outward.
    pub(crate) fn sent(&self, bytes: u64) {
        self.out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from outside into the sandbox.
    pub(crate) fn received(&self, bytes: u64) {
        self.back.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.record.bytes_out = self.out.load(Ordering::Relaxed);
        self.record.bytes_in = self.back.load(Ordering::Relaxed);
        self.record.duration_ms = self.started.elapsed().as_millis() as u64;
        (self.sink)(&self.record);
    }
}

/// A refusal that was recorded.
#[derive(Clone, Debug)]
pub(crate) struct Refusal(pub Record);
