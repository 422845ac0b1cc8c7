//! The decision.

use std::fmt;
use std::net::IpAddr;

use super::name::Name;
use super::rule::RuleError;
use crate::{HostRule, Network};

/// Compiled host rules. Cheap to share (`Arc`), replaced whole when the policy is reloaded.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    _private: (),
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'a> {
    pub allowed: bool,
    /// The entry that decided, where one did.
    pub rule: Option<&'a HostRule>,
    pub reason: Reason,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// By an entry of `network.allow`.
    Allowed,
    /// By an entry of `network.deny`.
    Denied,
    /// No entry of `network.allow` matches.
    NotListed,
    /// The name is listed, but for other ports.
    Port,
    /// A private, link-local, metadata, loopback or otherwise special address that no entry lists
    /// as an address.
    SpecialAddress,
    /// An allowed name leads to such an address.
    ResolvedSpecial,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed by",
            Self::Denied => "denied by",
            Self::NotListed => "not in network.allow",
            Self::Port => "allowed on other ports only, by",
            Self::SpecialAddress => "a special address that network.allow does not list",
            Self::ResolvedSpecial => "the name leads to a special address, which network.allow does not list",
        })
    }
}

impl Rules {
    /// Compiles the network chapter. Every entry that is not a rule is reported.
    pub fn compile(_network: &Network) -> Result<Self, Vec<RuleError>> {
        Ok(Self::default())
    }

    /// Whether nothing at all can be reached: the filter is then not started.
    pub fn is_empty(&self) -> bool {
        true
    }

    /// A name before it is resolved. `port` `None`: may it be reached on any port (DNS)?
    pub fn name(&self, _name: &Name, _port: Option<u16>) -> Verdict<'_> {
        Verdict { allowed: false, rule: None, reason: Reason::NotListed }
    }

    /// A connection to an address that stands for no name.
    pub fn address(&self, _address: IpAddr, _port: u16) -> Verdict<'_> {
        Verdict { allowed: false, rule: None, reason: Reason::NotListed }
    }

    /// An address that an allowed name resolved to, before it is dialled.
    pub fn resolved(&self, _name: &Name, _address: IpAddr, _port: u16) -> Verdict<'_> {
        Verdict { allowed: false, rule: None, reason: Reason::NotListed }
    }

    /// Ports of the sandbox's loopback that lead to the host's (`localhost:PORT` entries).
    pub fn host_loopback_ports(&self) -> Vec<u16> {
        Vec::new()
    }

    /// Ports that rules name, for hosts without nftables, where each needs a listener of its own.
    /// Entries without ports stand for 22, 80 and 443.
    pub fn listed_ports(&self) -> Vec<u16> {
        Vec::new()
    }
}
