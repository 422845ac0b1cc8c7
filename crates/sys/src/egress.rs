//! The inside half of the egress filter: what makes every connection of a sandbox arrive at sockets
//! that the supervisor holds.
//!
//! A sandbox's network namespace has a loopback and nothing else; that is the wall. A [`Program`],
//! prepared outside, is carried out in the namespace before anything of the sandbox runs there
//! ([`crate::early::Early::prepare`]). It adds routes, so that connecting anywhere is possible at all,
//! steers what leaves, and makes the sockets where it arrives:
//!
//! | [`Way`] | steered by | original destination | limits |
//! |---|---|---|---|
//! | `Redirect` | one nftables chain | `SO_ORIGINAL_DST` | none |
//! | `Local` | a route that makes every address local | the accepted socket's own address | one listener for each port, DNS on the listed servers only |
//!
//! The second is for kernels without nftables, or around whose netlink a filter stands. In both, other
//! datagrams are answered with "connection refused" at once.
//!
//! Nothing here is a wall: whatever a program inside does to a destination changes only what it asks
//! the supervisor for.

mod carry;
mod netlink;
mod program;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::OwnedFd;

pub(crate) use carry::carry_out;
pub use program::{Config, MOST_PORTS, OWN_V4, OWN_V6, PORT, Program};

use crate::raw::Errno;

/// How connections arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Redirected by nftables to one listener for each family: the kernel remembers the original
    /// destination.
    #[default]
    Redirect,
    /// Every address is local, wildcard listeners on the listed ports: the accepted socket's own
    /// address is the original destination.
    Local,
}

/// The sockets, made in the namespace, owned by the supervisor: close-on-exec and non-blocking.
#[derive(Debug)]
pub struct Made {
    /// Listening; redirected connections, the proxies and DNS over TCP arrive at any of them.
    pub tcp: Vec<OwnedFd>,
    /// Bound; every one gets DNS queries.
    pub udp: Vec<OwnedFd>,
    /// `NETLINK_SOCK_DIAG`: whose connection is it?
    pub diagnosis: Option<OwnedFd>,
    pub way: Way,
    /// Why nftables could not be used, with [`Way::Local`].
    pub without_nftables: Option<Error>,
    /// The kernel has IPv6; without it nothing of that family is set up, and nothing can leave by it.
    pub ipv6: bool,
    /// What the set-up took.
    pub timings: Timings,
}

/// A step of the set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// The namespace itself.
    Namespace = 1,
    Routes = 2,
    Nftables = 3,
    LocalRoutes = 4,
    Listener = 5,
    Dns = 6,
    Diagnosis = 7,
}

impl Step {
    const COUNT: usize = 8;

    pub fn from_u32(n: u32) -> Option<Self> {
        [
            Self::Namespace,
            Self::Routes,
            Self::Nftables,
            Self::LocalRoutes,
            Self::Listener,
            Self::Dns,
            Self::Diagnosis,
        ]
        .into_iter()
        .find(|s| *s as u32 == n)
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Namespace => "network namespace",
            Self::Routes => "addresses and routes",
            Self::Nftables => "nftables",
            Self::LocalRoutes => "local routes",
            Self::Listener => "listening sockets",
            Self::Dns => "dns sockets",
            Self::Diagnosis => "socket diagnosis",
        }
    }
}

/// Which step was refused, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    pub step: Step,
    pub errno: Errno,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step.text(), self.errno)
    }
}

impl std::error::Error for Error {}

/// Nanoseconds for each step.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings([u32; Step::COUNT]);

impl Timings {
    pub fn of(&self, step: Step) -> std::time::Duration {
        let nanos = self.0.get(step as usize).copied().unwrap_or_default();
        std::time::Duration::from_nanos(u64::from(nanos))
    }

    pub fn total(&self) -> std::time::Duration {
        self.0.iter().map(|n| std::time::Duration::from_nanos(u64::from(*n))).sum()
    }
}

impl fmt::Debug for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = (0..Step::COUNT as u32).filter_map(Step::from_u32);
        f.debug_map().entries(steps.map(|s| (s.text(), self.of(s)))).finish()
    }
}
