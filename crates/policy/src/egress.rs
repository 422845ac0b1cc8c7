//! The network chapter's file form: hosts, and what the filter does besides deciding by them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layer::{Entry, Located, NetworkMode, append, invalid};
use crate::net::{self, HostPattern, List, Upstream};
use crate::{Egress, HostRule, Network, Origin, PolicyError, RequestRule, Secret, SecretSource};

/// Says that there is no upstream proxy, over a layer that names one.
const NO_UPSTREAM: &str = "none";

/// Network access.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkFragment {
    /// Unset: `filtered` where a host is allowed, else `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<NetworkMode>,
    /// Hosts: `example.com`, `*.example.com` (strict subdomains), `*`, addresses, ranges, groups
    /// such as `npm`, `localhost:PORT`; each with `:PORTS` or on any port. An empty list allows
    /// nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Entry>,
    /// Wins over `allow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Entry>,
    /// Set the usual proxy variables inside (default). The filter works without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies: Option<bool>,
    /// A proxy outside that everything goes through, `http://[user:password@]host[:port]`, or
    /// `none`.
    #[serde(alias = "upstreamProxy", skip_serializing_if = "Option::is_none")]
    pub upstream_proxy: Option<Entry>,
    /// Hosts whose TLS is terminated so that requests can be judged and credentials put in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inspect: Vec<Entry>,
    /// What may be asked of inspected hosts; hosts that no rule names are not limited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Located<RequestFragment>>,
    /// Credentials that stay outside, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Located<SecretFragment>>,
}

/// Requests that are allowed of inspected hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestFragment {
    /// Names as in `network.allow`, each of them inspected.
    pub hosts: Vec<String>,
    /// Unset: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths; `*` matches within a segment, `**` across. Unset: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// A credential: where it is read outside, and where it is put.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretFragment {
    /// Names as in `network.allow`, each of them inspected.
    pub hosts: Vec<String>,
    /// Header that carries it (default `authorization`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The header's value, `{}` for the credential; `Bearer {}` for `authorization`, else `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// `env:NAME`, a variable of the caller, or `file:PATH`.
    pub from: String,
    /// Variable inside that holds a placeholder for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

const DEFAULT_HEADER: &str = "authorization";

/// Headers that say how a message travels; a credential in one would break it, or another's request.
const NOT_FOR_SECRETS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl NetworkFragment {
    pub(crate) fn merge(&mut self, over: Self) {
        self.mode = over.mode.or(self.mode);
        append(&mut self.allow, over.allow);
        append(&mut self.deny, over.deny);
        self.proxies = over.proxies.or(self.proxies);
        if over.upstream_proxy.is_some() {
            self.upstream_proxy = over.upstream_proxy;
        }
        append(&mut self.inspect, over.inspect);
        append(&mut self.rules, over.rules);
        self.secrets.extend(over.secrets);
    }

    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        for (key, list, kind) in
            [("network.allow", &self.allow, List::Allow), ("network.deny", &self.deny, List::Deny)]
        {
            for entry in list {
                net::check_entry(&entry.value, kind)
                    .map_err(|m| invalid(entry, key, format!("{:?}: {m}", entry.value)))?;
            }
        }
        if let Some(entry) = &self.upstream_proxy
            && entry.value != NO_UPSTREAM
        {
            Upstream::parse(&entry.value)
                .map_err(|m| invalid(entry, "network.upstream_proxy", m))?;
        }
        for entry in &self.inspect {
            check_inspected(&entry.value).map_err(|m| invalid(entry, "network.inspect", m))?;
        }
        for rule in &self.rules {
            rule.value.check().map_err(|(key, message)| PolicyError::Invalid {
                at: rule.origin.clone(),
                key: format!("network.rules.{key}"),
                message,
            })?;
        }
        for (name, secret) in &self.secrets {
            let refuse = |key: &str, message: String| PolicyError::Invalid {
                at: secret.origin.clone(),
                key: format!("network.secrets.{name}{key}"),
                message,
            };
            if !is_token(name) {
                return Err(refuse(
                    "",
                    "a secret's name is made of letters, digits, `-` and `_`".to_owned(),
                ));
            }
            secret.value.check().map_err(|(key, message)| refuse(&format!(".{key}"), message))?;
        }
        Ok(())
    }

    /// What could widen, or see or send more than the layers below.
    pub(crate) fn widening(&self, wide: &mut Vec<String>) {
        let mut lists = |key: &str, list: &[Entry]| {
            for entry in list {
                wide.push(format!("{key} = \"{}\" ({})", entry.value, entry.origin));
            }
        };
        lists("network.allow", &self.allow);
        lists("network.inspect", &self.inspect);
        if let Some(entry) = &self.upstream_proxy {
            wide.push(format!("network.upstream_proxy ({})", entry.origin));
        }
        // One of a host's rules must match, so that each further one allows more.
        for rule in &self.rules {
            wide.push(format!("network.rules ({})", rule.origin));
        }
        for (name, secret) in &self.secrets {
            wide.push(format!("network.secrets.{name} ({})", secret.origin));
        }
        if matches!(self.mode, Some(NetworkMode::Host | NetworkMode::Filtered)) {
            wide.push("network.mode".to_owned());
        }
    }

    /// Takes out what the layers below say too.
    pub(crate) fn forget(&mut self, below: &Self) {
        let known = |list: &mut Vec<Entry>, below: &[Entry]| {
            list.retain(|e| !below.iter().any(|b| b.value == e.value));
        };
        known(&mut self.allow, &below.allow);
        known(&mut self.inspect, &below.inspect);
        self.rules.retain(|r| !below.rules.iter().any(|b| b.value == r.value));
        self.secrets.retain(|name, s| below.secrets.get(name).is_none_or(|b| b.value != s.value));
        let value = |e: &Option<Entry>| e.as_ref().map(|e| e.value.clone());
        if value(&self.upstream_proxy) == value(&below.upstream_proxy) {
            self.upstream_proxy = None;
        }
        if self.mode == below.mode {
            self.mode = None;
        }
    }

    pub(crate) fn finish(self) -> Result<Network, PolicyError> {
        let mode = self.mode.unwrap_or(if self.allow.is_empty() {
            NetworkMode::None
        } else {
            NetworkMode::Filtered
        });
        match mode {
            NetworkMode::None => return Ok(Network::None),
            NetworkMode::Host => return Ok(Network::Host),
            NetworkMode::Filtered => {}
        }
        self.check_inspected()?;
        let hosts = |list: Vec<Entry>| -> Vec<HostRule> {
            list.into_iter().map(|e| HostRule { host: e.value, origin: e.origin }).collect()
        };
        let egress = Egress {
            proxies: self.proxies.unwrap_or(true),
            upstream_proxy: self
                .upstream_proxy
                .map(|e| e.value)
                .filter(|value| value != NO_UPSTREAM),
            inspect: hosts(self.inspect),
            requests: self.rules.into_iter().map(RequestFragment::finish).collect(),
            secrets: self
                .secrets
                .into_iter()
                .map(|(name, s)| s.value.finish(name, s.origin))
                .collect::<Result<_, _>>()?,
        };
        Ok(Network::Filtered {
            allow: hosts(self.allow),
            deny: hosts(self.deny),
            egress: Box::new(egress),
        })
    }

    /// A rule or secret of a host that is not inspected would hold nothing.
    fn check_inspected(&self) -> Result<(), PolicyError> {
        let inspected: Vec<HostPattern> =
            self.inspect.iter().flat_map(|e| net::patterns(&e.value).unwrap_or_default()).collect();
        let check = |hosts: &[String], key: String, at: &Origin| {
            for host in hosts {
                let inside = net::patterns(host)
                    .unwrap_or_default()
                    .iter()
                    .all(|p| inspected.iter().any(|i| i.contains(p)));
                if !inside {
                    return Err(PolicyError::Invalid {
                        at: at.clone(),
                        key,
                        message: format!(
                            "{host:?} is not inspected, so this would have no effect; add it to \
                             network.inspect"
                        ),
                    });
                }
            }
            Ok(())
        };
        for rule in &self.rules {
            check(&rule.value.hosts, "network.rules.hosts".to_owned(), &rule.origin)?;
        }
        let mut variables: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, secret) in &self.secrets {
            let key = format!("network.secrets.{name}");
            check(&secret.value.hosts, format!("{key}.hosts"), &secret.origin)?;
            if let Some(variable) = &secret.value.env
                && let Some(other) = variables.insert(variable, name)
            {
                return Err(PolicyError::Invalid {
                    at: secret.origin.clone(),
                    key: format!("{key}.env"),
                    message: format!("{variable} holds the placeholder of `{other}` already"),
                });
            }
        }
        Ok(())
    }
}

/// The entry's key within its table, and what is wrong.
type Wrong = (&'static str, String);

impl RequestFragment {
    fn check(&self) -> Result<(), Wrong> {
        check_names(&self.hosts)?;
        for method in &self.methods {
            if !is_token(method) {
                return Err(("methods", format!("{method:?} is not a method; write GET")));
            }
        }
        for path in &self.paths {
            check_path(path).map_err(|m| ("paths", format!("{path:?} {m}")))?;
        }
        Ok(())
    }

    fn finish(rule: Located<Self>) -> RequestRule {
        let Located { value, origin } = rule;
        RequestRule {
            hosts: value.hosts,
            methods: value.methods.iter().map(|m| m.to_ascii_uppercase()).collect(),
            paths: value.paths,
            origin,
        }
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("does not begin with `/`");
    }
    if path.chars().any(|c| c.is_control() || matches!(c, ' ' | '?' | '#' | '\\')) {
        return Err("holds what a path cannot: a space, `?`, `#`, `\\` or a control character");
    }
    if path.split('/').any(|s| s == "." || s == "..") {
        return Err("holds `.` or `..`, which requests are judged without");
    }
    if path.split('/').any(|s| s.contains("**") && s != "**") {
        return Err("has `**` beside other text; it stands alone between slashes");
    }
    Ok(())
}

impl SecretFragment {
    fn header(&self) -> String {
        self.header.as_deref().unwrap_or(DEFAULT_HEADER).to_ascii_lowercase()
    }

    fn format(&self) -> String {
        self.format.clone().unwrap_or_else(|| {
            if self.header() == DEFAULT_HEADER { "Bearer {}" } else { "{}" }.to_owned()
        })
    }

    fn check(&self) -> Result<(), Wrong> {
        check_names(&self.hosts)?;
        if self.hosts.iter().any(|h| h == "*") {
            return Err(("hosts", "a credential is for hosts that are named".to_owned()));
        }
        let header = self.header();
        if !is_token(&header) {
            return Err(("header", format!("{header:?} is not a header's name")));
        }
        if NOT_FOR_SECRETS.contains(&header.as_str()) {
            return Err(("header", format!("`{header}` is the connection's own")));
        }
        let format = self.format();
        if format.matches("{}").count() != 1
            || !format.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        {
            return Err((
                "format",
                "write ascii text with `{}` once, where the credential goes, as in \"Bearer {}\""
                    .to_owned(),
            ));
        }
        self.source().map_err(|m| ("from", m))?;
        if let Some(variable) = &self.env
            && !is_variable(variable)
        {
            return Err(("env", format!("{variable:?} is not a variable's name")));
        }
        Ok(())
    }

    fn source(&self) -> Result<SecretSource, String> {
        if let Some(name) = self.from.strip_prefix("env:")
            && is_variable(name)
        {
            return Ok(SecretSource::Env(name.to_owned()));
        }
        match self.from.strip_prefix("file:") {
            Some(path)
                if (path.starts_with('/') || path.starts_with("~/")) && !path.contains('\0') =>
            {
                Ok(SecretSource::File(PathBuf::from(path)))
            }
            Some(_) => Err("a file is named by an absolute path, or below home as `~/...`".into()),
            // What stands there may be the credential itself.
            None => Err("write \"env:NAME\" or \"file:PATH\", never the credential itself".into()),
        }
    }

    fn finish(self, name: String, origin: Origin) -> Result<Secret, PolicyError> {
        let from = self.source().map_err(|message| PolicyError::Invalid {
            at: origin.clone(),
            key: format!("network.secrets.{name}.from"),
            message,
        })?;
        Ok(Secret {
            name,
            header: self.header(),
            format: self.format(),
            from,
            hosts: self.hosts,
            env: self.env,
            origin,
        })
    }
}

fn check_names(hosts: &[String]) -> Result<(), Wrong> {
    if hosts.is_empty() {
        return Err(("hosts", "no host is named".to_owned()));
    }
    hosts.iter().try_for_each(|host| check_inspected(host)).map_err(|m| ("hosts", m))
}

/// Inspection is of names: an address has no certificate to speak for.
pub fn check_inspected(text: &str) -> Result<(), String> {
    let patterns = net::patterns(text).map_err(|m| format!("{text:?}: {m}"))?;
    if patterns.iter().any(|p| matches!(p, HostPattern::Network(_) | HostPattern::HostLoopback)) {
        return Err(format!("{text:?}: only hosts with a name can be inspected"));
    }
    Ok(())
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn is_variable(text: &str) -> bool {
    is_token(text) && !text.contains('-') && !text.starts_with(|c: char| c.is_ascii_digit())
}
