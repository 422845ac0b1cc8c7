//! Decisions in words: which rule, from which file and line.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::{
    Base, Effect, Explanation, HostRule, Network, Permission, Policy, Rule, builtin_rule, pattern,
};

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::View => "view",
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grant => "grant",
            Self::Cap => "cap",
            Self::Set => "set",
        })
    }
}

impl Rule {
    /// The pattern as a policy file would write it.
    pub fn written(&self) -> String {
        match (self.base, self.pattern.as_str()) {
            (Base::Workspace, "") => ".".to_owned(),
            (Base::Workspace, pattern) => pattern.to_owned(),
            (Base::Home, "") => "~".to_owned(),
            (Base::Home, pattern) => format!("~/{pattern}"),
            (Base::Root, pattern) => format!("/{pattern}"),
        }
    }
}

/// `cap none on **/.env (secret.env, built-in)`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} on {} (", self.effect, self.permission, self.written())?;
        if let Some(id) = &self.id {
            write!(f, "{id}, ")?;
        }
        write!(f, "{})", self.origin)
    }
}

/// What a permission means, for people.
fn meaning(permission: Permission) -> &'static str {
    match permission {
        Permission::None => "invisible",
        Permission::View => "listed, content refused",
        Permission::Read => "readable, not writable",
        Permission::Write => "readable and writable",
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} ({})", self.path.display(), self.permission, meaning(self.permission))?;
        if self.root_visible {
            writeln!(f, "the workspace root is visible under ordered rules")?;
        }
        match self.decided {
            None if self.root_visible => {}
            None => writeln!(f, "no rule grants it")?,
            Some(rule) => {
                writeln!(f, "decided by: {rule}")?;
                if self.capped {
                    writeln!(f, "a deny binds ordered rules of any priority")?;
                }
                if let Some(builtin) = rule.id.as_deref().and_then(builtin_rule) {
                    writeln!(f, "reason: {}", builtin.reason)?;
                }
            }
        }
        if self.steps.len() > 1 {
            writeln!(f, "applied in this order:")?;
            for step in &self.steps {
                writeln!(f, "  {} -> {}", step.rule, step.after)?;
            }
        }
        Ok(())
    }
}

/// What a policy says of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDecision<'a> {
    /// Lower case, without port and trailing dot.
    pub host: String,
    pub port: Option<u16>,
    pub allowed: bool,
    /// The pattern that decided, where one did.
    pub rule: Option<&'a HostRule>,
    /// Lower-case sentence without full stop.
    pub reason: String,
}

impl fmt::Display for HostDecision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "allowed" } else { "refused" };
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host)?,
            Some(port) => write!(f, "{}:{port}", self.host)?,
            None => write!(f, "{}", self.host)?,
        }
        write!(f, ": {verdict}, {}", self.reason)?;
        if let Some(rule) = self.rule {
            write!(f, " `{}` ({})", rule.host, rule.origin)?;
        }
        Ok(())
    }
}

/// `host`, `host:port`, `[v6]:port` or a bare IPv6 address.
fn split_host(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':')?.parse().ok()?)),
        }
    } else if text.parse::<Ipv6Addr>().is_ok() {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        }
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some((address.to_string(), port));
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (host.len() <= 253 && host.split('.').all(label)).then_some((host, port))
}

/// Exact, or `*.suffix` for strict subdomains at a label's boundary.
fn host_matches(pattern: &str, host: &str) -> bool {
    // A port in the pattern belongs to the egress filter; by name alone it does not match.
    let pattern = pattern.strip_suffix('.').unwrap_or(pattern).to_ascii_lowercase();
    match pattern.strip_prefix("*.") {
        Some(suffix) => host
            .strip_suffix(suffix)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|labels| !labels.is_empty()),
        None => pattern == host,
    }
}

impl Policy {
    /// What the network chapter says of `host` or `host:port`.
    pub fn explain_host(&self, text: &str) -> HostDecision<'_> {
        let Some((host, port)) = split_host(text) else {
            return HostDecision {
                host: text.to_owned(),
                port: None,
                allowed: false,
                rule: None,
                reason: "not a host name or address".to_owned(),
            };
        };
        let answer = |allowed, rule, reason: &str| HostDecision {
            host: host.clone(),
            port,
            allowed,
            rule,
            reason: reason.to_owned(),
        };
        match &self.network {
            Network::None => answer(false, None, "network none"),
            Network::Host => answer(true, None, "network host: the host's network is shared"),
            Network::Filtered { allow, deny, .. } => {
                if let Some(rule) = deny.iter().find(|r| host_matches(&r.host, &host)) {
                    answer(false, Some(rule), "denied by")
                } else if let Some(rule) = allow.iter().find(|r| host_matches(&r.host, &host)) {
                    answer(true, Some(rule), "allowed by")
                } else {
                    answer(false, None, "network filtered: not in network.allow")
                }
            }
        }
    }
}

/// A rule made on the spot (from what was found on the host), pattern given as a path.
impl Rule {
    /// Grants `permission` on one absolute path and all below it; wildcards in names are escaped.
    pub fn grant_path(path: &std::path::Path, permission: Permission, layer: &str) -> Option<Self> {
        let text = path.to_str()?.strip_prefix('/')?;
        let escaped: String = if pattern::has_meta(text) {
            text.chars()
                .flat_map(|c| {
                    let meta = matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\' | '!' | ',');
                    meta.then_some('\\').into_iter().chain([c])
                })
                .collect()
        } else {
            text.to_owned()
        };
        Some(Self {
            base: Base::Root,
            pattern: escaped,
            kind: crate::Kind::Path,
            effect: Effect::Grant,
            permission,
            priority: 0,
            id: None,
            origin: crate::Origin { layer: layer.to_owned(), line: None },
        })
    }
}
