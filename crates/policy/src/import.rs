//! `fence.json` and `greywall.json` as they are. What cannot be honoured yet is an error that names
//! every such key; what asks for nothing (empty lists, `false`, defaults) is accepted.

use std::path::Path;

use crate::error::nearest;
use crate::layer::{Entry, Fragment, Located, NetworkMode};
use crate::net::List;
use crate::node::{self, Format, Member, Node, Value};
use crate::{Effect, KeyAt, Kind, Origin, Permission, PolicyError, Pty, Rule, pattern, priority};

/// Whose schema a file is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Ringfence,
    Fence,
    Greywall,
}

/// An imported file, with what was accepted without effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    pub fragment: Fragment,
    pub dialect: Dialect,
    /// Keys that need nothing here, each with the reason.
    pub notes: Vec<KeyAt>,
}

/// Reads a policy file of any known dialect.
pub fn load(name: &str, bytes: &[u8]) -> Result<Fragment, PolicyError> {
    load_with_notes(name, bytes).map(|imported| imported.fragment)
}

/// As [`load`], with the notes.
pub fn load_with_notes(name: &str, bytes: &[u8]) -> Result<Imported, PolicyError> {
    let node = node::parse(name, bytes, Format::of(name))?;
    read(name, &node, dialect(name, &node))
}

pub(crate) fn read(name: &str, node: &Node, dialect: Dialect) -> Result<Imported, PolicyError> {
    match dialect {
        Dialect::Ringfence => Ok(Imported {
            fragment: Fragment::from_node(name, node)?,
            dialect: Dialect::Ringfence,
            notes: Vec::new(),
        }),
        other => Import::new(name, other).run(node),
    }
}

/// By file name, else by keys that only the others have.
pub(crate) fn dialect(name: &str, node: &Node) -> Dialect {
    if Format::of(name) == Format::Toml {
        return Dialect::Ringfence;
    }
    let file = Path::new(name).file_name().and_then(|n| n.to_str()).unwrap_or(name);
    match file.trim_start_matches('.') {
        "fence.json" | "fence.jsonc" => return Dialect::Fence,
        "greywall.json" | "greywall.jsonc" => return Dialect::Greywall,
        "ringfence.json" | "ringfence.jsonc" => return Dialect::Ringfence,
        _ => {}
    }
    let has = |key: &str| node.get(key).is_some();
    let inside = |table: &str, keys: &[&str]| {
        node.get(table).is_some_and(|m| keys.iter().any(|k| m.node.get(k).is_some()))
    };
    if has("credentials")
        || has("schemaVersion")
        || has("generatedBy")
        || inside("network", &["proxyUrl", "httpProxyUrl", "dnsAddr", "forwardPorts", "rules"])
    {
        Dialect::Greywall
    } else if ["filesystem", "command", "ssh", "allowPty", "devices", "macos"]
        .iter()
        .any(|k| has(k))
        || inside("network", &["allowedDomains", "deniedDomains", "allowLocalBinding"])
    {
        Dialect::Fence
    } else {
        Dialect::Ringfence
    }
}

const TOP: &[&str] = &[
    "$schema",
    "extends",
    "allowPty",
    "forceNewSession",
    "network",
    "filesystem",
    "devices",
    "command",
    "ssh",
    "macos",
    "credentials",
    "allowAudio",
    "schemaVersion",
    "generatedBy",
    "driftAckHash",
];
const FILESYSTEM: &[&str] = &[
    "defaultDenyRead",
    "strictDenyRead",
    "allowRead",
    "allowExecute",
    "denyRead",
    "allowWrite",
    "denyWrite",
    "allowGitConfig",
    "wslInterop",
];
const NETWORK: &[&str] = &[
    "allowedDomains",
    "deniedDomains",
    "defaultAction",
    "upstreamProxy",
    "allowUnixSockets",
    "allowAllUnixSockets",
    "allowLocalBinding",
    "allowLocalOutbound",
    "allowLocalOutboundPorts",
    "httpProxyPort",
    "socksProxyPort",
    "proxyUrl",
    "httpProxyUrl",
    "dnsAddr",
    "forwardPorts",
    "rules",
];
const COMMAND: &[&str] =
    &["deny", "allow", "useDefaults", "runtimeExecPolicy", "acceptSharedBinaryCannotRuntimeDeny"];
const SSH: &[&str] = &[
    "allowedHosts",
    "deniedHosts",
    "allowedCommands",
    "deniedCommands",
    "allowAllCommands",
    "inheritDeny",
];

/// Places that are private and writable in any case; granting the host's is never meant.
const PRIVATE_TMP: &[&str] = &["/tmp", "/private/tmp", "/var/tmp", "/tmp/fence", "/dev/shm"];

/// As `code`, with every host allowed.
const RELAXED: &str = "code-relaxed";

/// Where Greywall expects its proxy by default.
const GREYPROXY: &[&str] = &[
    "socks5://localhost:43052",
    "socks5h://localhost:43052",
    "http://localhost:43051",
    "localhost:43053",
    "127.0.0.1:43053",
];

/// How Fence's templates are had here.
const TEMPLATES: &[(&str, Result<&str, &str>)] = &[
    ("code", Ok("code")),
    ("code-strict", Ok("code")),
    ("local-dev-server", Ok("workspace")),
    (RELAXED, Ok("code")),
    ("git-readonly", Err("denies commands; the nearest profile is \"workspace\"")),
    ("disable-telemetry", Err("filters hosts only; the nearest profile is \"workspace\"")),
    ("hermes", Err("the nearest profile is \"code\"")),
];

struct Import<'a> {
    file: &'a str,
    dialect: Dialect,
    fragment: Fragment,
    notes: Vec<KeyAt>,
    not_yet: Vec<KeyAt>,
}

/// Whether a value asks for anything.
fn asks(node: &Node) -> bool {
    match &node.value {
        Value::Null | Value::Bool(false) => false,
        Value::Str(text) => !text.is_empty(),
        Value::List(list) => !list.is_empty(),
        Value::Table(members) => members.iter().any(|m| asks(&m.node)),
        Value::Int(i) => *i != 0,
        Value::Bool(true) | Value::Float(_) | Value::Date => true,
    }
}

impl<'a> Import<'a> {
    fn new(file: &'a str, dialect: Dialect) -> Self {
        let mut fragment = Fragment::named(file);
        fragment.complete = true;
        Self { file, dialect, fragment, notes: Vec::new(), not_yet: Vec::new() }
    }

    fn at(&self, line: Option<u32>) -> Origin {
        Origin { layer: self.file.to_owned(), line }
    }

    fn run(mut self, node: &Node) -> Result<Imported, PolicyError> {
        let mut fence = Strict::default();
        for member in members(node) {
            let key = member.key.as_str();
            match key {
                "$schema" | "schemaVersion" | "generatedBy" | "driftAckHash" => {}
                "extends" => self.extends(member)?,
                "allowPty" => {
                    if self.flag(key, member)? == Some(true) {
                        self.fragment.terminal.pty = Some(Pty::Auto);
                    }
                }
                "forceNewSession" => {
                    if self.flag(key, member)? == Some(true) {
                        self.note(key, member, "every sandbox has a session of its own");
                    }
                }
                "network" => self.network(member)?,
                "filesystem" => self.filesystem(member, &mut fence)?,
                "devices" => self.devices(member)?,
                "command" => self.command(member)?,
                "ssh" => self.ssh(member)?,
                "macos" => {
                    self.table(key, member)?;
                    if asks(&member.node) {
                        self.note(key, member, "concerns macos only");
                    }
                }
                "credentials" | "allowAudio" => {
                    if asks(&member.node) {
                        self.refuse(key, member, "");
                    }
                }
                _ => return Err(self.unknown(key, key, member, TOP)),
            }
        }
        if !self.not_yet.is_empty() {
            return Err(PolicyError::NotYet { keys: self.not_yet });
        }
        self.defaults(&fence);
        // Repeats within the file go, as in every layer.
        let fragment = Fragment::default().merge(self.fragment);
        fragment.check()?;
        Ok(Imported { fragment, dialect: self.dialect, notes: self.notes })
    }

    /// What the other product does where its file says nothing.
    fn defaults(&mut self, fence: &Strict) {
        let greywall = self.dialect == Dialect::Greywall;
        let strict = fence.strict == Some(true);
        let deny_read = strict || fence.deny_read.unwrap_or(greywall);
        let files = &mut self.fragment.files;
        files.system = Some(!strict);
        files.toolchains = Some(!strict);
        let entry = |value: &str| {
            Located::new(value.to_owned(), Origin { layer: self.file.to_owned(), line: None })
        };
        if !deny_read {
            files.read.push(entry("/"));
        }
        if greywall {
            files.write.push(entry("."));
        }
        self.fragment.environment.pass.push(entry("*"));
        if !self.fragment.network.allow.is_empty() {
            self.fragment.network.mode = Some(NetworkMode::Filtered);
        } else if self.fragment.extends.0.is_empty() {
            self.fragment.network.mode = Some(NetworkMode::None);
        }
    }

    fn extends(&mut self, member: &Member) -> Result<(), PolicyError> {
        let Some(name) = self.text("extends", member)? else { return Ok(()) };
        let at = self.at(member.line);
        if self.dialect == Dialect::Greywall && !name.is_empty() {
            self.refuse("extends", member, "greywall itself never resolves it");
            return Ok(());
        }
        if name == RELAXED {
            self.fragment.network.allow.push(Located::new("*".to_owned(), at.clone()));
            self.note("extends", member, "every public host, through the filter");
        }
        let target = if name == "@base" {
            "@user".to_owned()
        } else if name.contains('/') || name.starts_with('.') {
            name
        } else {
            match TEMPLATES.iter().find(|(template, _)| *template == name) {
                Some((_, Ok(profile))) => (*profile).to_owned(),
                Some((_, Err(why))) => {
                    let note = format!("template \"{name}\": {why}");
                    self.not_yet.push(KeyAt { key: "extends".to_owned(), at, note });
                    return Ok(());
                }
                None => {
                    let known = TEMPLATES.iter().map(|(t, _)| (*t).to_owned()).collect();
                    return Err(PolicyError::UnknownProfile { at, name, known });
                }
            }
        };
        self.fragment.extends.0.push(Located::new(target, at));
        Ok(())
    }

    fn filesystem(&mut self, table: &Member, fence: &mut Strict) -> Result<(), PolicyError> {
        self.table("filesystem", table)?;
        for member in members(&table.node) {
            let key = format!("filesystem.{}", member.key);
            match member.key.as_str() {
                "defaultDenyRead" => fence.deny_read = self.flag(&key, member)?,
                "strictDenyRead" => fence.strict = self.flag(&key, member)?,
                "allowRead" => {
                    let list = self.list(&key, member)?;
                    self.fragment.files.read.extend(list);
                }
                "allowExecute" => {
                    let list = self.list(&key, member)?;
                    if !list.is_empty() {
                        self.note(&key, member, "granted as reading, listing included");
                    }
                    self.fragment.files.read.extend(list);
                }
                "allowWrite" => {
                    let mut list = self.list(&key, member)?;
                    let before = list.len();
                    list.retain(|e| !PRIVATE_TMP.contains(&e.value.trim_end_matches(['/', '*'])));
                    if list.len() < before {
                        self.note(&key, member, "the sandbox has a /tmp of its own");
                    }
                    self.fragment.files.write.extend(list);
                }
                "denyRead" => self.deny(&key, member, Permission::None)?,
                "denyWrite" => self.deny(&key, member, Permission::Read)?,
                "allowGitConfig" => {
                    if self.flag(&key, member)? == Some(true) {
                        self.refuse(&key, member, "write files.git = \"open\" in ringfence.toml");
                    }
                }
                "wslInterop" => {
                    if self.flag(&key, member)? == Some(true) {
                        self.refuse(&key, member, "");
                    }
                }
                other => return Err(self.unknown(&key, other, member, FILESYSTEM)),
            }
        }
        Ok(())
    }

    /// A deny of Fence wins over every allow, however specific.
    fn deny(&mut self, key: &str, member: &Member, to: Permission) -> Result<(), PolicyError> {
        for entry in self.list(key, member)? {
            let (base, pattern) = pattern::parse_native(&entry.value).map_err(|message| {
                PolicyError::Invalid { at: entry.origin.clone(), key: key.to_owned(), message }
            })?;
            self.fragment.files.extra.push(Rule {
                base,
                pattern,
                kind: Kind::Path,
                effect: Effect::Cap,
                permission: to,
                priority: priority::IMPORTED_DENY,
                id: None,
                origin: entry.origin,
            });
        }
        Ok(())
    }

    fn network(&mut self, table: &Member) -> Result<(), PolicyError> {
        self.table("network", table)?;
        let mut local = LocalOutbound::default();
        for member in members(&table.node) {
            let key = format!("network.{}", member.key);
            match member.key.as_str() {
                "allowedDomains" => {
                    let list = self.domains(&key, member, List::Allow)?;
                    if list.iter().any(|e| e.value == "*") {
                        self.note(
                            &key,
                            member,
                            "`*` is every public host, through the filter; private addresses need \
                             an entry of their own",
                        );
                    }
                    self.fragment.network.allow.extend(list);
                }
                "deniedDomains" => {
                    let list = self.domains(&key, member, List::Deny)?;
                    self.fragment.network.deny.extend(list);
                }
                "defaultAction" => match self.text(&key, member)?.as_deref() {
                    None | Some("deny" | "") => {}
                    Some("proxy") => self.refuse(
                        &key,
                        member,
                        "an upstream proxy gets what is allowed, here, not what is in no list",
                    ),
                    Some(other) => {
                        return Err(PolicyError::Invalid {
                            at: self.at(member.line),
                            key,
                            message: format!("unknown value \"{other}\"; allowed: deny, proxy"),
                        });
                    }
                },
                "upstreamProxy" => {
                    if self.text(&key, member)?.is_some_and(|url| !url.is_empty()) {
                        self.note(
                            &key,
                            member,
                            "gets only hosts in neither list, which are refused; write \
                             network.upstream_proxy in ringfence.toml to send everything there",
                        );
                    }
                }
                "allowLocalBinding" => {
                    local.binding = self.flag(&key, member)?;
                    if local.binding == Some(true) {
                        self.note(&key, member, "the sandbox has a loopback of its own");
                    }
                }
                "allowLocalOutbound" => {
                    local.outbound = self.flag(&key, member)?;
                    local.outbound_member = Some(member);
                }
                "allowLocalOutboundPorts" => {
                    local.ports = self.ports(&key, member)?;
                    local.ports_member = Some(member);
                }
                "forwardPorts" => {
                    let ports = self.ports(&key, member)?;
                    self.fragment.network.allow.extend(ports);
                }
                "rules" => self.rules(&key, member)?,
                "allowUnixSockets" | "allowAllUnixSockets" => {
                    if asks(&member.node) {
                        self.note(&key, member, "concerns macos only");
                    }
                }
                "httpProxyPort" | "socksProxyPort" => {
                    if asks(&member.node) {
                        self.note(&key, member, "fence itself binds random ports");
                    }
                }
                "proxyUrl" | "httpProxyUrl" | "dnsAddr" => {
                    let text = self.text(&key, member)?.unwrap_or_default();
                    if GREYPROXY.contains(&text.as_str()) {
                        self.note(
                            &key,
                            member,
                            "the filter is built in; no proxy beside it is used",
                        );
                    } else if !text.is_empty() {
                        self.refuse(
                            &key,
                            member,
                            "the filter is built in and decides by the rules",
                        );
                    }
                }
                other => return Err(self.unknown(&key, other, member, NETWORK)),
            }
        }
        self.local_outbound(local);
        Ok(())
    }

    /// `allowLocalOutbound` follows `allowLocalBinding` where it is not said, and opens the ports
    /// that are listed.
    fn local_outbound(&mut self, local: LocalOutbound<'_>) {
        let on = local.outbound.or(local.binding).unwrap_or(false);
        if on {
            if let (true, Some(member)) = (local.ports.is_empty(), local.outbound_member)
                && local.outbound == Some(true)
            {
                self.note(
                    "network.allowLocalOutbound",
                    member,
                    "opens what network.allowLocalOutboundPorts lists, which is nothing",
                );
            }
            self.fragment.network.allow.extend(local.ports);
        } else if let Some(member) = local.ports_member
            && !local.ports.is_empty()
        {
            self.note(
                "network.allowLocalOutboundPorts",
                member,
                "not opened: network.allowLocalOutbound is off",
            );
        }
    }

    /// Domains as Fence writes them: a word alone is a host there, and there are no groups.
    fn domains(&self, key: &str, member: &Member, list: List) -> Result<Vec<Entry>, PolicyError> {
        let mut entries = self.list(key, member)?;
        for entry in &mut entries {
            let word = !entry.value.is_empty()
                && entry.value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if word && entry.value == "localhost" && list == List::Allow {
                return Err(PolicyError::Invalid {
                    at: entry.origin.clone(),
                    key: key.to_owned(),
                    message: "localhost is the sandbox's own; name the ports of the host's in \
                              network.allowLocalOutboundPorts"
                        .to_owned(),
                });
            }
            if word && entry.value != "localhost" {
                entry.value.push('.');
            }
            check_host(key, entry, list)?;
        }
        Ok(entries)
    }

    /// Ports of the host's loopback.
    fn ports(&self, key: &str, member: &Member) -> Result<Vec<Entry>, PolicyError> {
        let list = match &member.node.value {
            Value::Null => return Ok(Vec::new()),
            Value::List(list) => list,
            _ => return self.wrong(key, "a list", &member.node),
        };
        list.iter()
            .map(|node| match node.value {
                Value::Int(port) => {
                    let entry = Located::new(format!("localhost:{port}"), self.at(node.line));
                    check_host(key, &entry, List::Allow)?;
                    Ok(entry)
                }
                _ => self.wrong(key, "a port", node),
            })
            .collect()
    }

    /// Greywall's rules for its proxy.
    fn rules(&mut self, key: &str, member: &Member) -> Result<(), PolicyError> {
        const KEYS: &[&str] = &["destination", "port", "action", "notes"];
        let list = match &member.node.value {
            Value::Null => return Ok(()),
            Value::List(list) => list,
            _ => return self.wrong(key, "a list", &member.node),
        };
        for (index, rule) in list.iter().enumerate() {
            let key = format!("{key}[{index}]");
            if !matches!(rule.value, Value::Table(_)) {
                return self.wrong(&key, "a table", rule);
            }
            let (mut destination, mut ports, mut deny) = (None, None, false);
            for member in members(rule) {
                let key = format!("{key}.{}", member.key);
                match member.key.as_str() {
                    "destination" => destination = self.text(&key, member)?,
                    "port" => {
                        ports = match &member.node.value {
                            Value::Int(port) => Some(port.to_string()),
                            _ => self.text(&key, member)?,
                        }
                        .filter(|p| !p.is_empty() && p != "*");
                    }
                    "action" => match self.text(&key, member)?.as_deref() {
                        None | Some("" | "allow") => {}
                        Some("deny") => deny = true,
                        Some(other) => {
                            return Err(PolicyError::Invalid {
                                at: self.at(member.line),
                                key,
                                message: format!("unknown value \"{other}\"; allowed: allow, deny"),
                            });
                        }
                    },
                    "notes" => {}
                    other => return Err(self.unknown(&key, other, member, KEYS)),
                }
            }
            let Some(destination) = destination.filter(|d| !d.is_empty()) else {
                return Err(PolicyError::Invalid {
                    at: self.at(rule.line),
                    key,
                    message: "no destination".to_owned(),
                });
            };
            let list = if deny { List::Deny } else { List::Allow };
            let ports = ports.map(|p| p.replace(' ', ""));
            for host in destinations(&destination, deny) {
                let host = match &ports {
                    Some(ports) if host.contains(':') => format!("[{host}]:{ports}"),
                    Some(ports) => format!("{host}:{ports}"),
                    None => host,
                };
                let entry = Located::new(host, self.at(rule.line));
                check_host(&key, &entry, list)?;
                if deny {
                    self.fragment.network.deny.push(entry);
                } else {
                    self.fragment.network.allow.push(entry);
                }
            }
        }
        Ok(())
    }

    fn devices(&mut self, table: &Member) -> Result<(), PolicyError> {
        self.table("devices", table)?;
        for member in members(&table.node) {
            let key = format!("devices.{}", member.key);
            match member.key.as_str() {
                "allow" => {
                    let list = self.list(&key, member)?;
                    self.fragment.files.devices.extend(list);
                }
                "mode" => match self.text(&key, member)?.as_deref() {
                    None | Some("auto" | "minimal" | "") => {}
                    Some("host") => self.refuse(&key, member, "name the devices in devices.allow"),
                    Some(other) => {
                        return Err(PolicyError::Invalid {
                            at: self.at(member.line),
                            key,
                            message: format!(
                                "unknown value \"{other}\"; allowed: auto, minimal, host"
                            ),
                        });
                    }
                },
                other => return Err(self.unknown(&key, other, member, &["mode", "allow"])),
            }
        }
        Ok(())
    }

    fn command(&mut self, table: &Member) -> Result<(), PolicyError> {
        self.table("command", table)?;
        for member in members(&table.node) {
            let key = format!("command.{}", member.key);
            match member.key.as_str() {
                "deny" | "allow" => {
                    if !self.list(&key, member)?.is_empty() {
                        self.refuse(&key, member, "commands are not filtered yet");
                    }
                }
                "useDefaults" => {
                    if self.flag(&key, member)? == Some(true) {
                        self.note(
                            &key,
                            member,
                            "fence's default list names what a sandbox cannot do without capabilities",
                        );
                    }
                }
                "runtimeExecPolicy" | "acceptSharedBinaryCannotRuntimeDeny" => {
                    if asks(&member.node) {
                        self.note(&key, member, "no command is denied");
                    }
                }
                other => return Err(self.unknown(&key, other, member, COMMAND)),
            }
        }
        Ok(())
    }

    fn ssh(&mut self, table: &Member) -> Result<(), PolicyError> {
        self.table("ssh", table)?;
        for member in members(&table.node) {
            let key = format!("ssh.{}", member.key);
            if !SSH.contains(&member.key.as_str()) {
                return Err(self.unknown(&key, &member.key, member, SSH));
            }
            if asks(&member.node) {
                self.refuse(&key, member, "");
            }
        }
        Ok(())
    }

    fn refuse(&mut self, key: &str, member: &Member, note: &str) {
        let at = self.at(member.line);
        self.not_yet.push(KeyAt { key: key.to_owned(), at, note: note.to_owned() });
    }

    fn note(&mut self, key: &str, member: &Member, note: &str) {
        let at = self.at(member.line);
        self.notes.push(KeyAt { key: key.to_owned(), at, note: note.to_owned() });
    }

    fn unknown(&self, key: &str, last: &str, member: &Member, known: &[&str]) -> PolicyError {
        PolicyError::UnknownKey {
            at: self.at(member.line),
            key: key.to_owned(),
            hint: nearest(last, known.iter().copied()).map(str::to_owned),
            known: known.iter().map(|k| (*k).to_owned()).collect(),
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str, node: &Node) -> Result<T, PolicyError> {
        Err(PolicyError::Invalid {
            at: self.at(node.line),
            key: key.to_owned(),
            message: format!("expected {expected}, found {}", node.kind()),
        })
    }

    fn table(&self, key: &str, member: &Member) -> Result<(), PolicyError> {
        match member.node.value {
            Value::Table(_) | Value::Null => Ok(()),
            _ => self.wrong(key, "a table", &member.node),
        }
    }

    fn flag(&self, key: &str, member: &Member) -> Result<Option<bool>, PolicyError> {
        match member.node.value {
            Value::Bool(b) => Ok(Some(b)),
            Value::Null => Ok(None),
            _ => self.wrong(key, "true or false", &member.node),
        }
    }

    fn text(&self, key: &str, member: &Member) -> Result<Option<String>, PolicyError> {
        match &member.node.value {
            Value::Str(s) => Ok(Some(s.clone())),
            Value::Null => Ok(None),
            _ => self.wrong(key, "text", &member.node),
        }
    }

    fn list(&self, key: &str, member: &Member) -> Result<Vec<Entry>, PolicyError> {
        match &member.node.value {
            Value::Null => Ok(Vec::new()),
            Value::List(list) => list
                .iter()
                .map(|node| match &node.value {
                    Value::Str(s) => Ok(Located::new(s.clone(), self.at(node.line))),
                    _ => self.wrong(key, "text", node),
                })
                .collect(),
            _ => self.wrong(key, "a list", &member.node),
        }
    }
}

fn members(node: &Node) -> &[Member] {
    match &node.value {
        Value::Table(members) => members,
        _ => &[],
    }
}

fn check_host(key: &str, entry: &Entry, list: List) -> Result<(), PolicyError> {
    crate::net::check_entry(&entry.value, list).map_err(|m| PolicyError::Invalid {
        at: entry.origin.clone(),
        key: key.to_owned(),
        message: format!("{:?}: {m}", entry.value),
    })
}

/// Greywall's `**.a.b` is all below a domain. Whether it means the domain too is not said anywhere:
/// a deny takes it along, an allow does not.
fn destinations(text: &str, deny: bool) -> Vec<String> {
    if matches!(text, "*" | "**") {
        return vec!["*".to_owned()];
    }
    let dotted = |host: &str| {
        let word = !host.contains(['.', ':', '/']) && host != "localhost";
        if word { format!("{host}.") } else { host.to_owned() }
    };
    match text.strip_prefix("**.").or_else(|| text.strip_prefix("*.")) {
        Some(base) if deny => vec![format!("*.{base}"), dotted(base)],
        Some(base) => vec![format!("*.{base}")],
        None => vec![dotted(text)],
    }
}

#[derive(Default)]
struct LocalOutbound<'a> {
    binding: Option<bool>,
    outbound: Option<bool>,
    outbound_member: Option<&'a Member>,
    ports: Vec<Entry>,
    ports_member: Option<&'a Member>,
}

#[derive(Default)]
struct Strict {
    deny_read: Option<bool>,
    strict: Option<bool>,
}
