//! The decision.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::name::{Host, Name, fold};
use super::rule::{HostPattern, List, Parsed, PortRange, RuleError, parse_entry};
use super::special::{Opens, embedded, special};
use crate::{HostRule, Network};

/// Where an entry without ports is listened for on hosts where each port needs a listener.
const USUAL_PORTS: [u16; 3] = [22, 80, 443];

/// Compiled host rules. Cheap to share (`Arc`), replaced whole when the policy is reloaded.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    allow: Hosts,
    deny: Hosts,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

impl Reason {
    /// Stable word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::NotListed => "not-listed",
            Self::Port => "port",
            Self::SpecialAddress => "special-address",
            Self::ResolvedSpecial => "resolved-special",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed by",
            Self::Denied => "denied by",
            Self::NotListed => "not in network.allow",
            Self::Port => "allowed on other ports only, by",
            Self::SpecialAddress => "a special address that network.allow does not list",
            Self::ResolvedSpecial => {
                "the name leads to a special address, which network.allow does not list"
            }
        })
    }
}

impl Verdict<'_> {
    /// What to do about a refusal: lower case, one line. `resolved` is the address that a name led
    /// to, where that is the matter.
    pub fn remedy(&self, host: &Host, port: u16, resolved: Option<IpAddr>) -> Option<String> {
        let allow = |host: &Host| {
            let entry = written(host, port);
            format!("allow it with --allow-host {entry} or network.allow = [\"{entry}\"]")
        };
        match self.reason {
            Reason::Allowed => None,
            Reason::Denied => self
                .rule
                .map(|rule| format!("take `{}` out of network.deny ({})", rule.host, rule.origin)),
            Reason::NotListed | Reason::Port => Some(allow(host)),
            Reason::SpecialAddress | Reason::ResolvedSpecial => {
                let address = match (resolved, host) {
                    (Some(address), _) => fold(address),
                    (None, Host::Address(address)) => fold(*address),
                    (None, Host::Name(name)) if name.as_str() == "localhost" => {
                        return Some(format!(
                            "allow this port of the host's loopback with --allow-host \
                             localhost:{port} or network.allow = [\"localhost:{port}\"]"
                        ));
                    }
                    (None, Host::Name(_)) => return None,
                };
                match special(address).map(|s| s.opens) {
                    Some(Opens::Nothing) => None,
                    Some(Opens::Localhost) => Some(format!(
                        "allow this port of the host's loopback with --allow-host \
                         localhost:{port} or network.allow = [\"localhost:{port}\"]"
                    )),
                    _ => Some(allow(&Host::Address(address))),
                }
            }
        }
    }
}

/// A host as an entry would say it.
fn written(host: &Host, port: u16) -> String {
    match host {
        Host::Address(a) if a.is_ipv6() => format!("[{a}]:{port}"),
        // A word alone would be a group.
        Host::Name(name) if !name.as_str().contains('.') && name.as_str() != "localhost" => {
            format!("{name}.:{port}")
        }
        host => format!("{host}:{port}"),
    }
}

impl fmt::Display for Verdict<'_> {
    /// ``allowed by `npm` (ringfence.toml:3)``.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)?;
        match self.rule {
            Some(rule) if matches!(self.reason, Reason::ResolvedSpecial) => {
                write!(f, " (the name by `{}`, {})", rule.host, rule.origin)
            }
            Some(rule) => write!(f, " `{}` ({})", rule.host, rule.origin),
            None => Ok(()),
        }
    }
}

/// One pattern's ports and the entry it is from.
#[derive(Clone, Debug)]
struct Hit {
    rule: usize,
    /// None: all.
    ports: Box<[PortRange]>,
}

impl Hit {
    fn on(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|r| r.contains(port))
    }

    fn ranges(&self) -> &[PortRange] {
        if self.ports.is_empty() { &[PortRange::ALL] } else { &self.ports }
    }
}

/// A compiled list of host rules, for whatever is said of hosts.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    entries: Vec<HostRule>,
    exact: HashMap<Box<str>, Vec<Hit>>,
    /// By the name that stands after `*.`.
    below: HashMap<Box<str>, Vec<Hit>>,
    any: Vec<Hit>,
    v4: Vec<(Ipv4Net, Hit)>,
    v6: Vec<(Ipv6Net, Hit)>,
    local: Vec<Hit>,
}

impl Hosts {
    /// Every entry that is not a rule is reported.
    pub fn compile(entries: &[HostRule], list: List) -> Result<Self, Vec<RuleError>> {
        let mut hosts = Self { entries: entries.to_vec(), ..Self::default() };
        let mut errors = Vec::new();
        for (rule, entry) in entries.iter().enumerate() {
            match parse_entry(&entry.host, list) {
                Err(problem) => errors.push(RuleError {
                    entry: entry.host.clone(),
                    problem,
                    origin: entry.origin.clone(),
                }),
                Ok(Parsed::Pattern(pattern, ports)) => {
                    hosts.add(pattern, Hit { rule, ports: ports.into() });
                }
                Ok(Parsed::Group(group, ports)) => {
                    let ports: Box<[PortRange]> = match list {
                        List::Allow if ports.is_empty() => {
                            group.ports.iter().map(|p| PortRange::one(*p)).collect()
                        }
                        _ => ports.into(),
                    };
                    for host in group.hosts {
                        let hit = Hit { rule, ports: ports.clone() };
                        // Held canonical by a test.
                        hosts.exact.entry((*host).into()).or_default().push(hit);
                    }
                }
            }
        }
        if errors.is_empty() { Ok(hosts) } else { Err(errors) }
    }

    fn add(&mut self, pattern: HostPattern, hit: Hit) {
        match pattern {
            HostPattern::Any => self.any.push(hit),
            HostPattern::Exact(name) => {
                self.exact.entry(name.as_str().into()).or_default().push(hit);
            }
            HostPattern::Subdomains(name) => {
                self.below.entry(name.as_str().into()).or_default().push(hit);
            }
            HostPattern::Network(IpNet::V4(net)) => self.v4.push((net, hit)),
            HostPattern::Network(IpNet::V6(net)) => self.v6.push((net, hit)),
            HostPattern::HostLoopback => self.local.push(hit),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry that lists this name on this port.
    pub fn lists(&self, name: &Name, port: u16) -> Option<&HostRule> {
        self.name_hits(name).find(|h| h.on(port)).map(|h| &self.entries[h.rule])
    }

    fn rule(&self, hit: &Hit) -> Option<&HostRule> {
        self.entries.get(hit.rule)
    }

    /// The nearest first.
    fn name_hits<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Hit> {
        let local = if name.as_str() == "localhost" { &self.local[..] } else { &[] };
        let exact = self.exact.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        let below: &HashMap<_, _> = &self.below;
        let parents = (!below.is_empty()).then(|| name.parents());
        local
            .iter()
            .chain(exact)
            .chain(
                parents
                    .into_iter()
                    .flatten()
                    .filter_map(|p| below.get(p))
                    .flat_map(|hits: &Vec<Hit>| hits),
            )
            .chain(&self.any)
    }

    /// The narrowest first among networks that hold the address.
    fn network_hits(&self, address: IpAddr) -> Vec<(IpNet, &Hit)> {
        let mut hits: Vec<(IpNet, &Hit)> = match address {
            IpAddr::V4(a) => self
                .v4
                .iter()
                .filter(|(net, _)| net.contains(&a))
                .map(|(net, hit)| (IpNet::V4(*net), hit))
                .collect(),
            IpAddr::V6(a) => self
                .v6
                .iter()
                .filter(|(net, _)| net.contains(&a))
                .map(|(net, hit)| (IpNet::V6(*net), hit))
                .collect(),
        };
        hits.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        hits
    }

    /// What denies an address, by itself or by what it carries inside.
    fn denying(&self, address: IpAddr) -> Vec<&Hit> {
        let inner = match address {
            IpAddr::V6(a) => embedded(a).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let mut hits: Vec<&Hit> = Vec::new();
        for a in [Some(address), inner].into_iter().flatten() {
            hits.extend(self.network_hits(a).into_iter().map(|(_, hit)| hit));
            if a.is_loopback() {
                hits.extend(&self.local);
            }
        }
        hits.extend(&self.any);
        hits
    }

    fn denies(&self, address: IpAddr, port: u16) -> Option<&HostRule> {
        self.denying(address).into_iter().find(|h| h.on(port)).and_then(|h| self.rule(h))
    }
}

/// An address against the allow list.
enum Listed<'a> {
    Yes(Option<&'a HostRule>),
    /// On other ports.
    Port(Option<&'a HostRule>),
    Special,
    No,
}

impl Rules {
    /// Compiles the network chapter. Every entry that is not a rule is reported.
    pub fn compile(network: &Network) -> Result<Self, Vec<RuleError>> {
        match network {
            Network::None | Network::Host => Ok(Self::default()),
            Network::Filtered { allow, deny, .. } => Self::of(allow, deny),
        }
    }

    /// As [`Self::compile`], from the two lists.
    pub fn of(allow: &[HostRule], deny: &[HostRule]) -> Result<Self, Vec<RuleError>> {
        match (Hosts::compile(allow, List::Allow), Hosts::compile(deny, List::Deny)) {
            (Ok(allow), Ok(deny)) => Ok(Self { allow, deny }),
            (Err(mut a), Err(d)) => {
                a.extend(d);
                Err(a)
            }
            (Err(e), _) | (_, Err(e)) => Err(e),
        }
    }

    /// Whether nothing at all can be reached: the filter is then not started.
    pub fn is_empty(&self) -> bool {
        // A deny of everything is the common way to say it besides an empty list.
        self.allow.is_empty() || self.deny.any.iter().any(|h| h.ports.is_empty())
    }

    /// A name before it is resolved. `port` `None`: may it be reached on any port (DNS)?
    pub fn name(&self, name: &Name, port: Option<u16>) -> Verdict<'_> {
        let Some(port) = port else { return self.name_on_any_port(name) };
        if let Some(hit) = self.deny.name_hits(name).find(|h| h.on(port)) {
            return refused(Reason::Denied, self.deny.rule(hit));
        }
        let mut other = None;
        for hit in self.allowing(name) {
            if hit.on(port) {
                return allowed(self.allow.rule(hit));
            }
            other = other.or(Some(hit));
        }
        match other {
            Some(hit) => refused(Reason::Port, self.allow.rule(hit)),
            None if name.is_local() => refused(Reason::SpecialAddress, None),
            None => refused(Reason::NotListed, None),
        }
    }

    /// `localhost` and what is below is the loopback, which `*` does not mean.
    fn allowing<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Hit> {
        let most = if name.is_local() {
            if name.as_str() == "localhost" { self.allow.local.len() } else { 0 }
        } else {
            usize::MAX
        };
        self.allow.name_hits(name).take(most)
    }

    fn name_on_any_port(&self, name: &Name) -> Verdict<'_> {
        let denied: Vec<&Hit> = self.deny.name_hits(name).collect();
        let mut listed = false;
        for hit in self.allowing(name) {
            listed = true;
            for range in hit.ranges() {
                if !covered(*range, &denied) {
                    return allowed(self.allow.rule(hit));
                }
            }
        }
        if let Some(hit) = denied.first()
            && (listed || hit.ports.is_empty())
        {
            return refused(Reason::Denied, self.deny.rule(hit));
        }
        if name.is_local() {
            return refused(Reason::SpecialAddress, None);
        }
        refused(Reason::NotListed, None)
    }

    /// A connection to an address that stands for no name.
    pub fn address(&self, address: IpAddr, port: u16) -> Verdict<'_> {
        let address = fold(address);
        if let Some(rule) = self.deny.denies(address, port) {
            return refused(Reason::Denied, Some(rule));
        }
        match self.listed(address, port) {
            Listed::Yes(rule) => allowed(rule),
            Listed::Port(rule) => refused(Reason::Port, rule),
            Listed::Special => refused(Reason::SpecialAddress, None),
            Listed::No => refused(Reason::NotListed, None),
        }
    }

    /// As [`Self::address`], on any port.
    pub fn address_on_any_port(&self, address: IpAddr) -> Verdict<'_> {
        let address = fold(address);
        let (special, hits) = self.opening(address);
        let denied = self.deny.denying(address);
        let free = hits.iter().find(|h| h.ranges().iter().any(|r| !covered(*r, &denied)));
        if let Some(hit) = free {
            return allowed(self.allow.rule(hit));
        }
        match denied.iter().find(|h| h.ports.is_empty() || !hits.is_empty()) {
            Some(hit) => refused(Reason::Denied, self.deny.rule(hit)),
            None if special => refused(Reason::SpecialAddress, None),
            None => refused(Reason::NotListed, None),
        }
    }

    /// Whether the address is special, and what of the allow list counts for it.
    fn opening(&self, address: IpAddr) -> (bool, Vec<&Hit>) {
        let special = special(address);
        let hits: Vec<&Hit> = match special.map(|s| s.opens) {
            // 127.0.0.1 and ::1 are where services listen; the rest of 127/8 leads nowhere.
            Some(Opens::Localhost)
                if address == IpAddr::V4(Ipv4Addr::LOCALHOST) || address.is_ipv6() =>
            {
                self.allow.local.iter().collect()
            }
            Some(Opens::Localhost | Opens::Nothing) => Vec::new(),
            Some(opens) => self
                .allow
                .network_hits(address)
                .into_iter()
                .filter(|(net, _)| match opens {
                    Opens::Within(range) => range.contains(net),
                    _ => net.prefix_len() == net.max_prefix_len(),
                })
                .map(|(_, hit)| hit)
                .collect(),
            None => self
                .allow
                .network_hits(address)
                .into_iter()
                .map(|(_, hit)| hit)
                .chain(&self.allow.any)
                .collect(),
        };
        (special.is_some(), hits)
    }

    fn listed(&self, address: IpAddr, port: u16) -> Listed<'_> {
        let (special, hits) = self.opening(address);
        if let Some(hit) = hits.iter().find(|h| h.on(port)) {
            return Listed::Yes(self.allow.rule(hit));
        }
        match hits.first() {
            Some(hit) => Listed::Port(self.allow.rule(hit)),
            None if special => Listed::Special,
            None => Listed::No,
        }
    }

    /// On which ports a host may be reached, as far as can be told without resolving; sorted, not
    /// overlapping.
    pub fn ports(&self, host: &Host) -> Vec<PortRange> {
        let (allow, deny): (Vec<&Hit>, Vec<&Hit>) = match host {
            Host::Name(name) => {
                (self.allowing(name).collect(), self.deny.name_hits(name).collect())
            }
            Host::Address(address) => {
                let address = fold(*address);
                (self.opening(address).1, self.deny.denying(address))
            }
        };
        minus(&union(&allow), &union(&deny))
    }

    /// An address that an allowed name resolved to, before it is dialled.
    pub fn resolved(&self, name: &Name, address: IpAddr, port: u16) -> Verdict<'_> {
        let by_name = self.name(name, Some(port));
        if !by_name.allowed {
            return by_name;
        }
        let address = fold(address);
        if let Some(rule) = self.deny.denies(address, port) {
            return refused(Reason::Denied, Some(rule));
        }
        // Whoever answers for `localhost` does not get to lead it elsewhere.
        if name.is_local() && !address.is_loopback() {
            return refused(Reason::ResolvedSpecial, by_name.rule);
        }
        if special(address).is_none() || matches!(self.listed(address, port), Listed::Yes(_)) {
            by_name
        } else {
            refused(Reason::ResolvedSpecial, by_name.rule)
        }
    }

    /// Ports of the sandbox's loopback that lead to the host's (`localhost:PORT` entries).
    pub fn host_loopback_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self
            .allow
            .local
            .iter()
            .flat_map(|h| h.ports.iter())
            .flat_map(|r| r.first..=r.last)
            .filter(|p| self.deny.denies(IpAddr::V4(Ipv4Addr::LOCALHOST), *p).is_none())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Ports that rules name, for hosts without nftables, where each needs a listener of its own.
    /// Entries without ports stand for 22, 80 and 443.
    pub fn listed_ports(&self) -> Vec<u16> {
        let hosts = &self.allow;
        let hits = hosts
            .exact
            .values()
            .chain(hosts.below.values())
            .flatten()
            .chain(&hosts.any)
            .chain(hosts.v4.iter().map(|(_, h)| h))
            .chain(hosts.v6.iter().map(|(_, h)| h))
            .chain(&hosts.local);
        let mut ports: Vec<u16> = Vec::new();
        for hit in hits {
            if hit.ports.is_empty() {
                ports.extend(USUAL_PORTS);
            } else {
                ports.extend(hit.ports.iter().flat_map(|r| r.first..=r.last));
            }
        }
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// Sorted, merged.
fn union(hits: &[&Hit]) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = hits.iter().flat_map(|h| h.ranges()).copied().collect();
    ranges.sort_unstable();
    let mut out: Vec<PortRange> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => out.push(range),
        }
    }
    out
}

/// What of `all` is not in `gone`; both sorted and merged.
fn minus(all: &[PortRange], gone: &[PortRange]) -> Vec<PortRange> {
    let mut out = Vec::new();
    for range in all {
        let mut next = u32::from(range.first);
        let last = u32::from(range.last);
        for g in gone {
            let (first, end) = (u32::from(g.first), u32::from(g.last));
            if end < next || first > last {
                continue;
            }
            if first > next {
                out.push(PortRange { first: next as u16, last: (first - 1) as u16 });
            }
            next = end + 1;
        }
        if next <= last {
            out.push(PortRange { first: next as u16, last: range.last });
        }
    }
    out
}

/// Whether every port of `range` is in one of the hits.
fn covered(range: PortRange, by: &[&Hit]) -> bool {
    let mut next = u32::from(range.first);
    while next <= u32::from(range.last) {
        let step = by
            .iter()
            .flat_map(|h| h.ranges())
            .filter(|r| (u32::from(r.first)..=u32::from(r.last)).contains(&next))
            .map(|r| u32::from(r.last) + 1)
            .max();
        match step {
            Some(after) => next = after,
            None => return false,
        }
    }
    true
}

fn allowed(rule: Option<&HostRule>) -> Verdict<'_> {
    Verdict { allowed: true, rule, reason: Reason::Allowed }
}

fn refused(reason: Reason, rule: Option<&HostRule>) -> Verdict<'_> {
    Verdict { allowed: false, rule, reason }
}
