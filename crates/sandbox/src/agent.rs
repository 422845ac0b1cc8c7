//! The caller's ssh agent, filtered: a socket inside whose other end is here. Chosen keys can be
//! listed and can sign logins; nothing else is passed on. The socket is made by init in the private
//! root and handed out by descriptor, so nothing lies on the host's file system, and it ends with the
//! run.

mod choose;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::Serialize;

pub(crate) use choose::choose;
pub use choose::{Granted, Key};

/// What became of a request to sign, or of one that never passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Signed,
    /// The agent itself would not: locked, not confirmed, or limited to other destinations.
    Declined,
    /// By this filter.
    Refused,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    pub outcome: Outcome,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Fingerprint and comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whom to log in as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Fingerprint of the host's key, where the client told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The agent has checked that this host takes part in the session that is signed for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_checked: bool,
    /// Of a signature that is not a login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Who asked, as the host counts processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Further refusals that were not told one by one.
    #[serde(skip_serializing_if = "is_zero")]
    pub unsaid: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's form
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh-agent: ")?;
        f.write_str(match self.outcome {
            Outcome::Signed => "signed",
            Outcome::Declined => "the agent declined to sign",
            Outcome::Refused => "refused",
        })?;
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        if let Some(user) = &self.user {
            write!(f, " a login as {user}")?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, " for the namespace {namespace}")?;
        }
        if let Some(host) = &self.host_key {
            write!(f, " at the host with key {host}")?;
        }
        if let Some(key) = &self.key {
            write!(f, " with {key}")?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " ({comment})")?;
        }
        if self.unsaid > 0 {
            write!(f, ", and {} refusals before it", self.unsaid)?;
        }
        Ok(())
    }
}

/// Told of every event, on the filter's thread.
#[derive(Clone)]
pub struct Sink(pub Arc<dyn Fn(&Event) + Send + Sync>);

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

/// Never waits: an agent with a full backlog is as good as none.
fn connect(agent: &Path) -> std::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(agent)?)?;
    Ok(fd.into())
}

/// The channel over which init hands out the socket: made before the jail.
#[derive(Debug)]
pub(crate) struct Channel {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Channel {
    pub fn new() -> ringfence_sys::raw::Result<Self> {
        let (ours, theirs) = ringfence_sys::raw::seqpacket_owned()?;
        Ok(Self { ours, theirs })
    }

    /// Init's end, by number.
    pub fn number(&self) -> i32 {
        self.theirs.as_raw_fd()
    }
}

/// The filter at work. Dropping it ends it and closes every connection.
#[derive(Debug)]
pub(crate) struct Agent {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    /// The child of a root caller shares our table of descriptors for a while, and nobody knows how
    /// long.
    _theirs: OwnedFd,
}

impl Agent {
    pub fn start(granted: Granted, channel: Channel, sink: Option<Sink>) -> std::io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let Channel { ours, theirs } = channel;
        let thread = std::thread::Builder::new().name("ssh-agent".into()).spawn(move || {
            if let Some(listener) = serve::receive(&ours, &stopped) {
                drop(ours);
                serve::Server::new(granted, sink).run(&listener, &stopped);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), _theirs: theirs })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
