//! Decisions in words: which rule, from which file and line.

use std::fmt;

use crate::net::{self, Host, Hosts, List, PortRange, Reason, Rules};
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

/// What a policy says of a host, as far as can be told without resolving its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDecision {
    /// In canonical form, without port.
    pub host: String,
    pub port: Option<u16>,
    pub allowed: bool,
    /// Stable word: `allowed`, `denied`, `not-listed`, `port`, `special-address`, `invalid`, `none`,
    /// `host`.
    pub word: &'static str,
    /// The entry that decided, where one did.
    pub rule: Option<HostRule>,
    /// Lower-case sentence without full stop.
    pub reason: String,
    /// What else is to be known: ports, resolving, inspection.
    pub notes: Vec<String>,
    /// What to do about a refusal.
    pub remedy: Option<String>,
}

impl fmt::Display for HostDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "allowed" } else { "refused" };
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host)?,
            Some(port) => write!(f, "{}:{port}", self.host)?,
            None => write!(f, "{}", self.host)?,
        }
        write!(f, ": {verdict}, {}", self.reason)?;
        if let Some(rule) = &self.rule {
            write!(f, " `{}` ({})", rule.host, rule.origin)?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  remedy: {remedy}")?;
        }
        Ok(())
    }
}

/// `host`, `host:port`, `[v6]:port` or a bare IPv6 address.
fn split_host(text: &str) -> Result<(Host, Option<u16>), String> {
    let at = match text.rfind(']') {
        Some(at) => at + 1,
        None if text.bytes().filter(|b| *b == b':').count() == 1 => {
            text.find(':').unwrap_or(text.len())
        }
        None => text.len(),
    };
    let (host, port) = text.split_at(at);
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
            let port = port.parse().ok().filter(|p| *p > 0);
            Some(port.ok_or("a port is a number between 1 and 65535")?)
        }
        _ => return Err("after the host comes `:PORT` or nothing".to_owned()),
    };
    Ok((Host::parse(host.as_bytes()).map_err(|e| e.to_string())?, port))
}

impl Policy {
    /// What the network chapter says of `host` or `host:port`: the decision of a run, without
    /// resolving.
    pub fn explain_host(&self, text: &str) -> HostDecision {
        let mut answer = HostDecision {
            host: text.to_owned(),
            port: None,
            allowed: false,
            word: "invalid",
            rule: None,
            reason: String::new(),
            notes: Vec::new(),
            remedy: None,
        };
        let (host, port) = match split_host(text) {
            Ok(parts) => parts,
            Err(problem) => {
                answer.reason = problem;
                return answer;
            }
        };
        answer.host = host.to_string();
        answer.port = port;
        if let Host::Name(name) = &host
            && let Some(group) = net::group(name.as_str())
        {
            answer.notes.push(format!(
                "`{name}` is a group too; ask for a host of it: {}",
                group.hosts.join(", ")
            ));
        }
        let egress = match &self.network {
            Network::None => {
                answer.word = "none";
                "network none: nothing is reached".clone_into(&mut answer.reason);
                let (none, asked) = (Rules::default(), port.unwrap_or(HTTPS));
                let verdict = match &host {
                    Host::Name(name) => none.name(name, port),
                    Host::Address(a) => none.address(*a, asked),
                };
                answer.remedy = verdict
                    .remedy(&host, asked, None)
                    .map(|r| format!("{r}, or everything with --network host"));
                return answer;
            }
            Network::Host => {
                answer.word = "host";
                answer.allowed = true;
                "network host: the host's network is shared".clone_into(&mut answer.reason);
                return answer;
            }
            Network::Filtered { egress, .. } => egress,
        };
        let rules = match Rules::compile(&self.network) {
            Ok(rules) => rules,
            Err(errors) => {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                answer.reason = errors.join("; ");
                return answer;
            }
        };
        let verdict = match (&host, port) {
            (Host::Name(name), port) => rules.name(name, port),
            (Host::Address(a), Some(port)) => rules.address(*a, port),
            (Host::Address(a), None) => rules.address_on_any_port(*a),
        };
        answer.allowed = verdict.allowed;
        answer.word = verdict.reason.word();
        answer.rule = verdict.rule.cloned();
        answer.reason = match (verdict.reason, &host) {
            (Reason::SpecialAddress, Host::Address(a)) => {
                let what = net::special(*a).map_or("special", |s| s.what);
                format!("{} ({what})", verdict.reason)
            }
            (reason, _) => reason.to_string(),
        };
        answer.remedy = verdict.remedy(&host, port.unwrap_or(HTTPS), None);
        if !verdict.allowed {
            return answer;
        }
        if port.is_none() {
            let ports: Vec<String> = rules
                .ports(&host)
                .iter()
                .filter(|r| **r != PortRange::ALL)
                .map(ToString::to_string)
                .collect();
            if !ports.is_empty() {
                answer.notes.push(format!("on ports {} only", ports.join(", ")));
            }
        }
        if let Host::Name(name) = &host {
            if !name.is_local() {
                answer.notes.push(
                    "each address that the name leads to is judged too: special and denied ones \
                     are refused"
                        .to_owned(),
                );
            }
            if let Ok(inspect) = Hosts::compile(&egress.inspect, List::Deny)
                && let Some(rule) = inspect.lists(name, port.unwrap_or(HTTPS))
            {
                let limited = egress.requests.iter().any(|r| covers(&r.hosts, name));
                let how = if limited { "judged by network.rules" } else { "not limited" };
                answer.notes.push(format!(
                    "inspected by `{}` ({}), requests are {how}",
                    rule.host, rule.origin
                ));
                for secret in egress.secrets.iter().filter(|s| covers(&s.hosts, name)) {
                    answer.notes.push(format!(
                        "the header {} gets the secret `{}` ({})",
                        secret.header, secret.name, secret.origin
                    ));
                }
            }
        }
        answer
    }
}

const HTTPS: u16 = 443;

fn covers(hosts: &[String], name: &net::Name) -> bool {
    hosts.iter().filter_map(|h| net::patterns(h).ok()).flatten().any(|p| p.covers(name))
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
