//! Owns many sandboxes behind one [`Command`] enum; knows no transport.
//!
//! ```text
//! daemon ── Command ──▶ Supervisor ─┬─ machine: may it? (no I/O)
//!                                   ├─ store: what must outlive us (SQLite)
//!                                   ├─ host ── orders ──▶ spawner: a small process of one thread
//!                                   │                       └─ makes jails, waits for them
//!                                   └─ link ── requests ──▶ PID 1 of each sandbox
//!                                                           └─ commands
//! ```
//!
//! The process with the many threads never forks: jails are made by the [`spawner`]. The end of this
//! process is the end of the spawner and of every sandbox, each for itself: they see their sockets close.
#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]

mod channel;
pub mod codebases;
mod error;
mod exec;
mod fault;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guest;
mod host;
mod journal;
pub mod layers;
mod limits;
mod link;
mod log;
pub mod machine;
pub mod metrics;
pub mod owners;
mod processes;
mod quota;
mod realm;
mod sandbox;
pub mod session;
pub mod snapshots;
mod spares;
pub mod spawner;
pub mod stats;
mod still;
mod store;
mod supervisor;
mod tended;
mod terminal;
pub mod trees;
mod versions;
pub mod watch;
mod workspaces;

pub use error::{Error, Kind};
pub use exec::{Chunk, Exec, Following, Input, Stream};
pub use files::{Arriving, Written};
pub use journal::{Events, Owner, Source};
pub use ringfence_sys::peer;
pub use supervisor::{Caller, Command, Reply, Settings, Supervisor};
pub use terminal::Terminal;
pub use versions::{Got, Part, Read, Tags, When, etag};

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Locks; what a panicking thread left is still whole, since nothing here is changed in two steps.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// For whoever reads what the daemon says. Nobody, perhaps: that is no reason to end.
fn complain(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "ringfence: {text}");
}

/// 128 random bits that nobody can guess, in hexadecimal digits.
pub fn random() -> Result<String, Error> {
    let half = || {
        ringfence_layers::random_id()
            .map_err(|e| Error::internal(format!("cannot get random bytes: {e}")))
    };
    Ok(half()? + &half()?)
}

/// The same after a prefix that says what they name.
fn random_id(prefix: &str) -> Result<String, Error> {
    random().map(|id| format!("{prefix}{id}"))
}
