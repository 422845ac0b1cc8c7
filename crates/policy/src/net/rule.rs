//! One entry of `network.allow` or `network.deny`, compiled.

use ipnet::IpNet;

use super::name::Name;

/// Ports `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// What an entry names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: every public name and address (private ranges still need their own rule).
    Any,
    /// `example.com`.
    Exact(Name),
    /// `*.example.com`: strict subdomains, not `example.com` itself.
    Subdomains(Name),
    /// `10.0.0.0/8`, `192.0.2.1`, `2001:db8::/32`.
    Network(IpNet),
    /// `localhost:PORT`: a port of the *host's* loopback.
    HostLoopback,
}

/// Why an entry is not a host rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entry}: {problem}")]
pub struct RuleError {
    pub entry: String,
    pub problem: String,
}
