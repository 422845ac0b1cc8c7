//! One entry of `network.allow` or `network.deny`, compiled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::groups::{GROUPS, Group, group};
use super::name::{Host, Name};
use super::special::{Opens, POOL_V4, POOL_V6, special};
use crate::error::nearest;

/// Ports `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub const ALL: Self = Self { first: 1, last: u16::MAX };

    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub(super) fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
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
    /// As written.
    pub entry: String,
    pub problem: String,
    /// Where it was written.
    pub origin: crate::Origin,
}

/// Which list an entry stands in. What is too wide to be allowed may be denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Allow,
    Deny,
}

/// One entry: a group or a pattern, and on which ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    Group(&'static Group, Vec<PortRange>),
    /// No ports: all.
    Pattern(HostPattern, Vec<PortRange>),
}

/// More entries of ports than anybody writes.
const MOST_RANGES: usize = 64;
/// Each port of the host's loopback is a listener or a redirection.
const MOST_LOOPBACK_PORTS: usize = 1024;
/// Ports of the sandbox's loopback on which the filter itself answers: DNS and the proxies.
pub const FILTER_PORTS: [u16; 2] = [53, 808];

/// Below these a stranger can have a name; a wildcard over one would let everybody in. Suffixes of
/// one label are refused without a list, but for those that are nobody's on the internet.
const PUBLIC: &[&str] = &[
    // Registries.
    "ac.at",
    "ac.jp",
    "ac.nz",
    "ac.uk",
    "ac.za",
    "co.at",
    "co.id",
    "co.il",
    "co.in",
    "co.jp",
    "co.ke",
    "co.kr",
    "co.nz",
    "co.th",
    "co.uk",
    "co.za",
    "com.ar",
    "com.au",
    "com.br",
    "com.cn",
    "com.co",
    "com.eg",
    "com.hk",
    "com.mx",
    "com.my",
    "com.ng",
    "com.pe",
    "com.ph",
    "com.pk",
    "com.pl",
    "com.sa",
    "com.sg",
    "com.tr",
    "com.tw",
    "com.ua",
    "com.ve",
    "com.vn",
    "edu.au",
    "edu.cn",
    "gen.nz",
    "go.jp",
    "gov.au",
    "gov.br",
    "gov.cn",
    "gov.in",
    "gov.uk",
    "ltd.uk",
    "me.uk",
    "ne.jp",
    "net.au",
    "net.br",
    "net.cn",
    "net.in",
    "net.nz",
    "net.uk",
    "or.at",
    "or.jp",
    "or.kr",
    "org.au",
    "org.br",
    "org.cn",
    "org.in",
    "org.nz",
    "org.uk",
    "org.za",
    "plc.uk",
    "eu.org",
    "in-addr.arpa",
    "ip6.arpa",
    // Hosting, where a name costs nothing.
    "azurewebsites.net",
    "blob.core.windows.net",
    "blogspot.com",
    "cloudapp.azure.com",
    "cloudfront.net",
    "deno.dev",
    "duckdns.org",
    "firebaseapp.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "glitch.me",
    "herokuapp.com",
    "loca.lt",
    "netlify.app",
    "ngrok-free.app",
    "ngrok.app",
    "ngrok.io",
    "nip.io",
    "onrender.com",
    "pages.dev",
    "r2.dev",
    "railway.app",
    "render.com",
    "replit.app",
    "replit.dev",
    "run.app",
    "s3.amazonaws.com",
    "serveo.net",
    "sslip.io",
    "surge.sh",
    "trycloudflare.com",
    "vercel.app",
    "web.app",
    "workers.dev",
    "appspot.com",
];
const PRIVATE: &[&str] =
    &["corp", "home", "internal", "intranet", "lan", "local", "private", "test"];

impl HostPattern {
    /// The part of an entry before its ports; groups are not patterns.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains("://") {
            return Err("a host is written without scheme and path".to_owned());
        }
        if let Some(base) = text.strip_prefix("*.") {
            return match parse_host(base)? {
                Host::Name(name) => Ok(Self::Subdomains(name)),
                Host::Address(_) => {
                    Err("addresses have no subdomains; write a range such as 10.0.0.0/8".to_owned())
                }
            };
        }
        if text.contains('*') {
            return Err(
                "`*` stands alone or is the whole first label, as in `*.example.com`".to_owned()
            );
        }
        if let Some((address, length)) = text.split_once('/') {
            return network(address, length);
        }
        match parse_host(text)? {
            Host::Address(address) => {
                let plain = text.trim_start_matches('[').trim_end_matches(']');
                match plain.parse::<IpAddr>() {
                    // Rules are read by people: one spelling.
                    Ok(a) if super::name::fold(a) == a => Ok(Self::Network(address.into())),
                    _ => Err(format!("this is an odd spelling of {address}; write that")),
                }
            }
            Host::Name(name) if name.as_str() == "localhost" => Ok(Self::HostLoopback),
            Host::Name(name) => Ok(Self::Exact(name)),
        }
    }

    /// Whether it covers a name.
    pub fn covers(&self, name: &Name) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(n) => n == name,
            Self::Subdomains(base) => name.parents().any(|p| p == base.as_str()),
            Self::HostLoopback => name.as_str() == "localhost",
            Self::Network(_) => false,
        }
    }
}

impl HostPattern {
    /// Whether every name that `other` covers is covered by this. Ports are not looked at.
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Network(_) | Self::HostLoopback) => false,
            (Self::Any, _) => true,
            (Self::Subdomains(base), Self::Subdomains(inner)) if base == inner => true,
            (_, Self::Exact(name) | Self::Subdomains(name)) if *self != Self::HostLoopback => {
                match self {
                    // The names below `name`, but not the name itself.
                    Self::Exact(_) => self == other,
                    _ => self.covers(name),
                }
            }
            (Self::Network(net), Self::Network(inner)) => net.contains(inner),
            _ => self == other,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => name.fmt(f),
            Self::Subdomains(name) => write!(f, "*.{name}"),
            Self::Network(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Network(net) => net.fmt(f),
            Self::HostLoopback => f.write_str("localhost"),
        }
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    Host::parse(text.as_bytes()).map_err(|e| e.to_string())
}

fn network(address: &str, length: &str) -> Result<HostPattern, String> {
    let wrong = || "a host is written without scheme and path, a range as 10.0.0.0/8".to_owned();
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let most = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
    let net = length
        .parse()
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| format!("a prefix of {length} bits, {most} are the most"))?;
    if net.trunc() != net {
        return Err(format!("bits are set beyond the prefix; write {}", net.trunc()));
    }
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return Err(match v6.prefix_len().checked_sub(96) {
            Some(length) => format!("v4-mapped addresses are v4 here; write {v4}/{length}"),
            None => "v4-mapped addresses are v4 here; write an ipv4 range".to_owned(),
        });
    }
    Ok(HostPattern::Network(net))
}

/// Parts of an entry: host and ports, brackets taken off.
fn split(text: &str) -> Result<(std::borrow::Cow<'_, str>, Option<&str>), String> {
    use std::borrow::Cow;
    let ports = |rest: &'_ str| -> Result<(), String> {
        if rest.is_empty() || rest.starts_with(':') {
            Ok(())
        } else {
            Err("after `]` comes `/LENGTH`, `:PORT` or nothing".to_owned())
        }
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (inner, rest) =
            rest.split_once(']').ok_or_else(|| "a bracket is not closed".to_owned())?;
        if !inner.contains(':') {
            return Err("brackets are for ipv6 addresses and ranges".to_owned());
        }
        // `[2001:db8::]/32:443` is what some write for `[2001:db8::/32]:443`.
        let (host, rest) = match rest.strip_prefix('/') {
            Some(length) if !inner.contains('/') => {
                let end = length.find(':').unwrap_or(length.len());
                (Cow::Owned(format!("{inner}/{}", &length[..end])), &length[end..])
            }
            _ => (Cow::Borrowed(inner), rest),
        };
        ports(rest)?;
        return Ok((host, rest.strip_prefix(':')));
    }
    match text.bytes().filter(|b| *b == b':').count() {
        1 => Ok(text.split_once(':').map_or((Cow::Borrowed(text), None), |(host, ports)| {
            (Cow::Borrowed(host), Some(ports))
        })),
        // None, or bare IPv6, where a port would be ambiguous.
        _ => Ok((Cow::Borrowed(text), None)),
    }
}

fn parse_ports(text: &str) -> Result<Vec<PortRange>, String> {
    let wrong = |part: &str| {
        format!("`{part}` is not a port; write one (443), a range (8000-8100) or a list (80,443)")
    };
    let port = |text: &str, whole: &str| -> Result<u16, String> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong(whole));
        }
        match text.parse::<u16>() {
            Ok(p) if p > 0 => Ok(p),
            _ => Err(format!("port {text} is not between 1 and 65535")),
        }
    };
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => PortRange { first: port(first, part)?, last: port(last, part)? },
            None => PortRange::one(port(part, part)?),
        };
        if range.first > range.last {
            return Err(format!("`{part}` goes backwards"));
        }
        ranges.push(range);
    }
    if ranges.len() > MOST_RANGES {
        return Err(format!("more than {MOST_RANGES} ports and ranges in one entry"));
    }
    Ok(ranges)
}

/// Reads one entry and checks whether it may stand in that list.
pub(super) fn parse_entry(text: &str, list: List) -> Result<Parsed, String> {
    if text.is_empty() {
        return Err("the host is empty".to_owned());
    }
    if text.contains("://") {
        return Err("a host is written without scheme and path".to_owned());
    }
    let (host, ports) = split(text)?;
    let ports = ports.map(parse_ports).transpose()?.unwrap_or_default();
    // A word alone is a group, so that a slip in its name is not taken for a host.
    if is_word(&host) && !host.eq_ignore_ascii_case("localhost") {
        if let Some(group) = group(&host) {
            return Ok(Parsed::Group(group, ports));
        }
        return Err(unknown_group(&host));
    }
    let pattern = HostPattern::parse(&host)?;
    if list == List::Allow {
        check_allowed(&pattern, &ports)?;
    }
    Ok(Parsed::Pattern(pattern, ports))
}

fn is_word(host: &str) -> bool {
    !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && host.bytes().any(|b| b.is_ascii_alphabetic())
        && !host.starts_with("0x")
        && !host.starts_with("0X")
}

fn unknown_group(word: &str) -> String {
    let names = GROUPS.iter().map(|g| g.name);
    let hint = match nearest(word, names.clone()) {
        Some(hint) => format!(", did you mean `{hint}`? "),
        None => format!("; known groups: {}; ", names.collect::<Vec<_>>().join(", ")),
    };
    format!(
        "unknown group `{word}`{hint}a host whose name is one word is written with a dot at its \
         end: `{word}.`"
    )
}

fn check_allowed(pattern: &HostPattern, ports: &[PortRange]) -> Result<(), String> {
    match pattern {
        HostPattern::Exact(name) | HostPattern::Subdomains(name) if name.is_local() => {
            Err("names of the loopback are allowed as `localhost:PORT` only".to_owned())
        }
        HostPattern::Any | HostPattern::Exact(_) => Ok(()),
        HostPattern::Subdomains(base) => {
            let base = base.as_str();
            if PUBLIC.contains(&base) || (!base.contains('.') && !PRIVATE.contains(&base)) {
                return Err(format!(
                    "anybody can have a name below {base}; name the domain (`*.example.{base}`), \
                     or allow every host with `*`"
                ));
            }
            Ok(())
        }
        HostPattern::HostLoopback => {
            if ports.is_empty() {
                return Err("this is the host's loopback; say which ports of it, as in \
                            `localhost:5432` or `localhost:8000-8100`"
                    .to_owned());
            }
            if ports.iter().map(|r| r.count()).sum::<usize>() > MOST_LOOPBACK_PORTS {
                return Err(format!(
                    "more than {MOST_LOOPBACK_PORTS} ports of the host's loopback"
                ));
            }
            if let Some(port) = FILTER_PORTS.iter().find(|p| ports.iter().any(|r| r.contains(**p)))
            {
                return Err(format!("port {port} of the sandbox's loopback is the filter's own"));
            }
            Ok(())
        }
        HostPattern::Network(net) => {
            let pool = match net {
                IpNet::V4(n) => POOL_V4.contains(n),
                IpNet::V6(n) => POOL_V6.contains(n),
            };
            if pool {
                return Err("these addresses stand for names inside the sandbox".to_owned());
            }
            // `::/3` and the like begin at a special address and are not special.
            let inside = special(net.network()).filter(|_| special(net.broadcast()).is_some());
            match inside {
                Some(s) if s.opens == Opens::Localhost => {
                    Err("a loopback address means the sandbox's own; write `localhost:PORT` for a \
                     port of the host's"
                        .to_owned())
                }
                Some(s) if s.opens == Opens::Nothing && net.prefix_len() >= 8 => {
                    Err(format!("{} addresses cannot be reached", s.what))
                }
                _ => Ok(()),
            }
        }
    }
}

/// Whether `text` may stand in `network.allow` or `network.deny`.
pub fn check_entry(text: &str, list: List) -> Result<(), String> {
    parse_entry(text, list).map(|_| ())
}

/// What an entry names, groups taken apart, without ports; for lists whose entries may be as wide as
/// denies.
pub fn patterns(text: &str) -> Result<Vec<HostPattern>, String> {
    match parse_entry(text, List::Deny)? {
        Parsed::Pattern(pattern, _) => Ok(vec![pattern]),
        Parsed::Group(group, _) => group.hosts.iter().map(|h| HostPattern::parse(h)).collect(),
    }
}
