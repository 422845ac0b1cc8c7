//! The egress filter: accepts what leaves the sandbox, asks [`ringfence_policy::net::Rules`], dials the
//! address that was checked, forwards or refuses, and says why.
//!
//! ```text
//! sandbox's namespace │ supervisor's
//!   connect ──redirect──▶ listener ─▶ [transparent] ─┐
//!   HTTP proxy, SOCKS ──▶ (same)   ─▶ [http] [socks] ├▶ [judge]: rules, resolve, check, dial ─▶ [tunnel]
//!   DNS query ──────────▶ udp, tcp ─▶ [dns] ─ [pool] ┘                                           splice
//! ```
//!
//! The sockets were made inside the sandbox's network namespace and handed out; this crate runs in
//! the supervisor, on one thread of its own, and needs no privilege.
#![forbid(unsafe_code)]

pub mod control;
mod dns;
mod filter;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod hello;
mod http;
pub mod inspect;
mod judge;
mod limits;
#[cfg(feature = "bench")]
pub mod measured;
mod pool;
mod process;
pub mod record;
mod resolve;
mod socks;
mod splice;
#[cfg(test)]
mod testing;
mod transparent;
mod tunnel;
mod upstream;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringfence_policy::Network;
use ringfence_policy::net::Rules;
use ringfence_sys::egress::{Made, PORT};

pub use filter::Filter;
pub use record::{Process, Record, Sink};
pub use ringfence_sys::egress::Way;

/// Sockets that were made in the sandbox's network namespace.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Listening TCP sockets: redirected connections, connections to the proxies, DNS over TCP.
    pub tcp: Vec<OwnedFd>,
    /// Bound UDP sockets that get every DNS query.
    pub udp: Vec<OwnedFd>,
    /// `NETLINK_SOCK_DIAG` socket of that namespace: whose connection is it?
    pub diagnosis: Option<OwnedFd>,
    pub way: Way,
}

impl From<Made> for Sockets {
    fn from(made: Made) -> Self {
        Self { tcp: made.tcp, udp: made.udp, diagnosis: made.diagnosis, way: made.way }
    }
}

/// What a filter is made of.
pub struct Config {
    pub sockets: Sockets,
    pub rules: Arc<Rules>,
    /// Looks into connections of chosen hosts.
    pub inspector: Option<Arc<inspect::Inspector>>,
    /// Gets every record; called on the filter's thread, must not block for long.
    pub sink: Sink,
    /// A corporate proxy that everything goes through (`http://[user:password@]host:port`).
    pub upstream: Option<String>,
    /// Where the sandbox finds the HTTP and SOCKS proxy: the address that is its own destination.
    pub proxy_port: u16,
    /// Pid of the sandbox's PID 1 on the host: processes are looked for below it.
    pub init: Option<i32>,
    /// Lets the rules be replaced from outside.
    pub control: Option<control::Control>,
}

impl Config {
    /// As a policy has it, on what was made in the sandbox.
    pub fn of(network: &Network, rules: Arc<Rules>, made: Made, sink: Sink) -> Self {
        let upstream = match network {
            Network::Filtered { egress, .. } => egress.upstream_proxy.clone(),
            Network::None | Network::Host => None,
        };
        Self {
            sockets: made.into(),
            rules,
            inspector: None,
            sink,
            upstream,
            proxy_port: PORT,
            init: None,
            control: None,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// By which door a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A connection as the program made it.
    Direct,
    /// `GET http://…` at the proxy.
    Http,
    /// `CONNECT` at the proxy.
    Connect,
    Socks,
    Dns,
}

/// One wish to reach something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub host: ringfence_policy::net::Host,
    pub port: u16,
    pub via: Via,
    /// The client's address inside.
    pub client: SocketAddr,
}

/// Locks; what a panicking thread left is still whole, since nothing here is changed in two steps.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
