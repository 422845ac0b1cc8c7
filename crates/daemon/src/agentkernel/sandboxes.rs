//! Sandboxes: made, looked at, turned off and on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::StatusCode;
use ringfence_api::{CreateSandbox, Sandbox, State};
use ringfence_supervisor::{Command, Kind, Reply};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::{Ask, BACKEND, Body, DIALECT, Handled, LABEL, OURS, Path, Query, Raw};
use super::{names, success, unexpected};
use crate::stamp::rfc3339;

/// What a sandbox gets where nothing is said of it.
const PROCESSORS: u32 = 1;
const MEMORY_MB: u64 = 512;
const RESTRICTED_MB: u64 = 256;
/// What an entry of the audit says of one that was made.
pub(super) const CREATED: &str = "sandbox_created";
/// What runs sandboxes of theirs, and not ours.
const THEIRS: [&str; 13] = [
    "docker",
    "podman",
    "firecracker",
    "apple",
    "hyperlight",
    "cloudhypervisor",
    "kubernetes",
    "nomad",
    "daytona",
    "runloop",
    "e2b",
    "modal",
    "agentcomputer",
];
/// The longest that a life is extended by: ten years.
const MOST_EXTENDED: u64 = 10 * 365 * 24 * 3600;

/// Their profiles. Two are built in here by the same names; the third shows the caller's home, and here
/// what that is for: the toolchains in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    Permissive,
    Moderate,
    Restrictive,
}

impl Profile {
    /// None is not the same as one that nobody knows.
    pub(super) fn named(name: Option<&str>) -> Handled<Self> {
        match name.map(str::to_ascii_lowercase).as_deref() {
            None | Some("moderate") => Ok(Self::Moderate),
            Some("permissive") => Ok(Self::Permissive),
            Some("restrictive") => Ok(Self::Restrictive),
            Some(_) => {
                let name = name.unwrap_or_default();
                Err(Fault::invalid(format!(
                    "Invalid profile '{name}'. Use: permissive, moderate, restrictive"
                )))
            }
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::Moderate => "moderate",
            Self::Restrictive => "restrictive",
        }
    }

    fn built_in(self) -> &'static str {
        if self == Self::Permissive { "workspace" } else { self.text() }
    }

    /// The workspace is the sandbox's own, so nothing in it is the host's to guard.
    fn policy(self, asked: &Asked) -> Value {
        let mut limits = serde_json::Map::new();
        if let Some(processors) = asked.vcpus {
            limits.insert("cpu".into(), processors.into());
        }
        if let Some(memory) = asked.memory_mb {
            limits.insert("memory".into(), format!("{memory}m").into());
        }
        let mut policy = json!({
            "files": { "write": ["."] },
            "lift": ["guard", "secret"],
            "accept_missing": ["cgroup"],
            "limits": limits,
        });
        if self == Self::Permissive
            && let Some(policy) = policy.as_object_mut()
        {
            policy.insert("network".into(), json!({ "mode": "host" }));
            policy.insert("environment".into(), json!({ "pass": ["*"] }));
        }
        policy
    }
}

/// What is asked for besides a name and a profile.
#[derive(Debug, Default)]
pub(super) struct Asked {
    image: Option<String>,
    vcpus: Option<u32>,
    memory_mb: Option<u64>,
    description: Option<String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Create {
    name: String,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    vcpus: Option<u32>,
    #[serde(default)]
    memory_mb: Option<u64>,
    #[serde(default)]
    profile: Option<String>,
    #[serde(default)]
    backend: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    source_url: Option<String>,
    #[serde(default)]
    volumes: Option<Vec<String>>,
    #[serde(default)]
    secrets: Option<Vec<String>>,
    #[serde(default)]
    secret_files: Option<Vec<String>>,
    #[serde(default)]
    ports: Option<Vec<String>>,
    #[serde(default)]
    placeholder_secrets: Option<bool>,
    // Whatever these say: null and empty is as if they were not there.
    #[serde(default)]
    network: Option<Value>,
    #[serde(default)]
    agent: Option<Value>,
    #[serde(default)]
    init_script: Option<Value>,
    #[serde(default)]
    secret_mappings: Option<Value>,
    #[serde(default)]
    lifecycle: Option<Value>,
}

fn says(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

impl Create {
    /// What is not there is refused, not left out: a secret that is silently missing is worse.
    fn check(&self) -> Handled<()> {
        names::sandbox(&self.name)?;
        self.image.as_deref().map_or(Ok(()), names::image)?;
        if let Some(backend) = &self.backend
            && ![BACKEND, "", "auto", "automatic"].contains(&backend.as_str())
        {
            let message = format!("Backend '{backend}' is not available on this system");
            let known = THEIRS.contains(&backend.as_str());
            let status =
                if known { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
            return Err(Fault::new(status, message));
        }
        let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
        let missing = [
            ("source_url", self.source_url.is_some()),
            ("volumes", given(&self.volumes)),
            ("secrets", given(&self.secrets)),
            ("secret_files", given(&self.secret_files)),
            ("ports", given(&self.ports)),
            ("placeholder_secrets", self.placeholder_secrets == Some(true)),
            ("network", says(self.network.as_ref())),
            ("agent", says(self.agent.as_ref())),
            ("init_script", says(self.init_script.as_ref())),
            ("secret_mappings", says(self.secret_mappings.as_ref())),
            ("lifecycle", says(self.lifecycle.as_ref())),
        ];
        match missing.into_iter().find(|(_, given)| *given) {
            Some((name, _)) => {
                Err(Fault::invalid(format!("{name}: ringfence does not serve this")))
            }
            None if self.vcpus == Some(0) || self.memory_mb == Some(0) => {
                Err(Fault::invalid("vcpus and memory_mb cannot be 0"))
            }
            None => Ok(()),
        }
    }
}

/// Makes one over a workspace of its own; one with a name stays until it is removed.
pub(super) async fn make(
    ask: &Ask,
    name: Option<String>,
    profile: Profile,
    asked: Asked,
) -> Handled<Sandbox> {
    let policy = profile.policy(&asked).as_object().cloned();
    let mut labels = asked.labels;
    if labels.keys().any(|k| k.starts_with(OURS) || k == LABEL) {
        return Err(Fault::invalid(format!("labels cannot begin with {OURS}")));
    }
    labels.insert(LABEL.into(), DIALECT.into());
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    let remembered = [
        ("profile", Some(profile.text().to_owned())),
        ("image", asked.image),
        ("description", asked.description.filter(|text| !text.is_empty())),
        ("vcpus", number(asked.vcpus.map(u64::from))),
        ("memory-mb", number(asked.memory_mb)),
    ];
    let remembered = remembered.into_iter().filter_map(|(k, v)| Some((format!("{OURS}{k}"), v?)));
    labels.extend(remembered);
    let links = ["app", "workspace"].map(|n| (format!("/{n}"), n.to_owned()));
    let made_of = Box::new(CreateSandbox {
        persistent: name.is_some(),
        name,
        labels,
        links: links.into(),
        profiles: vec![profile.built_in().into()],
        policy,
        ..CreateSandbox::default()
    });
    let began = Instant::now();
    match ask.run(Command::Create { made_of, key: None }).await? {
        Reply::Sandbox(sandbox) => {
            made(ask, &sandbox, began.elapsed());
            Ok(*sandbox)
        }
        other => Err(unexpected(&other)),
    }
}

/// Counted and written down.
pub(super) fn made(ask: &Ask, sandbox: &Sandbox, took: Duration) {
    ask.dialect.counts.life("created", took);
    ask.dialect.audit.note(&sandbox.id, CREATED, creation(sandbox));
}

/// What an entry of the audit says of its creation.
pub(super) fn creation(sandbox: &Sandbox) -> Value {
    let mut all = described(sandbox);
    if let Some(all) = all.as_object_mut() {
        all.retain(|key, _| ["name", "image", "backend", "labels"].contains(&key.as_str()));
    }
    all
}

/// The sandbox's id, as an id of theirs is written.
fn uuid(id: &str) -> String {
    let digits = id.trim_start_matches("sb_");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

fn status(state: State) -> &'static str {
    match state {
        State::Creating | State::Running | State::Idle => "running",
        State::Frozen => "paused",
        State::Stopped | State::Failed | State::Destroyed => "stopped",
    }
}

/// Processors and memory: what was asked for, else what the profile gives. None where it gives no limit.
pub(super) fn resources(labels: &BTreeMap<String, String>) -> Map<String, Value> {
    let remembered = |name: &str| labels.get(&format!("{OURS}{name}"));
    let number = |name: &str| remembered(name).and_then(|n| n.parse::<u64>().ok());
    let (processors, memory) = match remembered("profile").map(String::as_str) {
        Some("permissive") => (None, None),
        // Half a processor, which they have no number for.
        Some("restrictive") => (Some(PROCESSORS), Some(RESTRICTED_MB)),
        _ => (Some(PROCESSORS), Some(MEMORY_MB)),
    };
    let all = [
        ("vcpus", number("vcpus").or(processors.map(u64::from))),
        ("memory_mb", number("memory-mb").or(memory)),
    ];
    all.into_iter().filter_map(|(name, n)| Some((name.to_owned(), n?.into()))).collect()
}

pub(super) fn described(sandbox: &Sandbox) -> Value {
    let remembered = |name: &'static str| {
        Some((name, Value::from(sandbox.labels.get(&format!("{OURS}{name}"))?.clone())))
    };
    let theirs = |name: &&String| !name.starts_with(OURS) && *name != LABEL;
    let labels: BTreeMap<_, _> = sandbox.labels.iter().filter(|(name, _)| theirs(name)).collect();
    let labels = (!labels.is_empty()).then(|| ("labels", json!(labels)));
    let mut described = json!({
        "name": sandbox.name.as_deref().unwrap_or(&sandbox.id),
        "uuid": uuid(&sandbox.id),
        "status": status(sandbox.state),
        "backend": BACKEND,
        "created_at": rfc3339(sandbox.created_ms),
        "placeholder_secrets": false,
    });
    if let Some(described) = described.as_object_mut() {
        described.extend(resources(&sandbox.labels));
        for (name, value) in
            [remembered("image"), remembered("description"), labels].into_iter().flatten()
        {
            described.insert(name.into(), value);
        }
    }
    described
}

pub(super) async fn create(
    ask: Ask,
    Body(create): Body<Create>,
) -> Handled<(StatusCode, Json<Value>)> {
    create.check()?;
    let profile = Profile::named(create.profile.as_deref())?;
    let Create { name, image, vcpus, memory_mb, labels, description, .. } = create;
    let labels = labels.unwrap_or_default();
    let asked = Asked { image, vcpus, memory_mb, description, labels };
    let sandbox = make(&ask, Some(name), profile, asked).await?;
    Ok((StatusCode::CREATED, success(described(&sandbox))))
}

/// Those that were made here and have a name.
pub(super) async fn all(ask: &Ask) -> Handled<Vec<Sandbox>> {
    match ask.run(Command::List).await? {
        Reply::Sandboxes(mut all) => {
            all.retain(|s| s.name.is_some() && s.labels.get(LABEL).is_some_and(|l| l == DIALECT));
            Ok(all)
        }
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn list(
    ask: Ask,
    Query(query): Query<Vec<(String, String)>>,
) -> Handled<Json<Value>> {
    let mut wanted = Vec::new();
    for (_, label) in query.iter().filter(|(name, _)| name == "label") {
        let pair = label.split_once(':');
        let (key, value) = pair.ok_or_else(|| Fault::invalid("label: it is key:value"))?;
        if key.starts_with(OURS) || key == LABEL {
            return Ok(success(json!([])));
        }
        wanted.push((key, value));
    }
    let all = all(&ask).await?;
    let chosen = |s: &&Sandbox| {
        wanted.iter().all(|(key, value)| s.labels.get(*key).is_some_and(|v| v == value))
    };
    Ok(success(all.iter().filter(chosen).map(described).collect::<Vec<_>>()))
}

pub(super) async fn get(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    Ok(success(described(&ask.find(&name).await?)))
}

pub(super) async fn by_uuid(ask: Ask, Path(uuid): Path<String>) -> Handled<Json<Value>> {
    let digits = uuid.replace('-', "").to_ascii_lowercase();
    if digits.len() != 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Fault::invalid("Invalid sandbox UUID"));
    }
    let id = format!("sb_{digits}");
    let all = all(&ask).await?;
    match all.iter().find(|sandbox| sandbox.id == id) {
        Some(sandbox) => Ok(success(described(sandbox))),
        None => Err(Fault::new(StatusCode::NOT_FOUND, "Sandbox not found")),
    }
}

pub(super) async fn remove(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    turn(&ask, &sandbox, &name, Command::Delete(sandbox.id.clone()), "removed").await?;
    ask.dialect.detached.forget(&sandbox.id);
    Ok(success("Sandbox removed"))
}

/// Carries it out, counts it, and writes it down where they do.
async fn turn(
    ask: &Ask,
    sandbox: &Sandbox,
    name: &str,
    command: Command,
    action: &'static str,
) -> Handled<()> {
    let began = Instant::now();
    ask.run(command).await?;
    ask.dialect.counts.life(action, began.elapsed());
    let profile = sandbox.labels.get(&format!("{OURS}profile"));
    let (kind, of) = match action {
        "started" => ("sandbox_started", json!({ "name": name, "profile": profile })),
        "stopped" => ("sandbox_stopped", json!({ "name": name })),
        "removed" => ("sandbox_removed", json!({ "name": name })),
        _ => return Ok(()),
    };
    ask.dialect.audit.note(&sandbox.id, kind, of);
    Ok(())
}

fn conflict(name: &str, what: &str) -> Fault {
    Fault::new(StatusCode::CONFLICT, format!("Sandbox '{name}' is {what}"))
}

pub(super) async fn start(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    if matches!(sandbox.state, State::Running | State::Idle) {
        return Err(conflict(&name, "already running"));
    }
    turn(&ask, &sandbox, &name, Command::Start(sandbox.id.clone()), "started").await?;
    Ok(success("Sandbox started"))
}

pub(super) async fn resume(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    if sandbox.state != State::Frozen {
        return Err(conflict(&name, "not paused"));
    }
    turn(&ask, &sandbox, &name, Command::Start(sandbox.id.clone()), "resumed").await?;
    Ok(success("Sandbox resumed"))
}

pub(super) async fn stop(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    if matches!(sandbox.state, State::Stopped | State::Failed) {
        return Err(conflict(&name, "not running"));
    }
    turn(&ask, &sandbox, &name, Command::Stop(sandbox.id.clone()), "stopped").await?;
    Ok(success("Sandbox stopped"))
}

pub(super) async fn pause(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find_running(&name).await?;
    turn(&ask, &sandbox, &name, Command::Freeze(sandbox.id.clone()), "paused").await?;
    Ok(success("Sandbox paused"))
}

/// What this backend has no means for.
pub(super) async fn unsupported(ask: Ask, Path(name): Path<String>) -> Fault {
    match ask.find(&name).await {
        Ok(_) => {
            let message = format!("Backend '{BACKEND}' does not support this operation");
            Fault::new(StatusCode::UNPROCESSABLE_ENTITY, message)
        }
        Err(fault) => fault,
    }
}

/// Seconds, or a sequence: `90`, `30m`, `1h30m`; days too, which their client for Node promises.
fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let plain = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let mut seconds = 0u64;
    if plain(text) {
        seconds = text.parse().ok()?;
    } else {
        let mut rest = text;
        while !rest.is_empty() {
            let (digits, after) = rest.split_at(rest.find(['s', 'm', 'h', 'd'])?);
            let mut after = after.chars();
            let factor = match after.next()? {
                'm' => 60,
                'h' => 3600,
                'd' => 86_400,
                _ => 1,
            };
            if !plain(digits) {
                return None;
            }
            seconds = seconds.checked_add(digits.parse::<u64>().ok()?.checked_mul(factor)?)?;
            rest = after.as_str();
        }
    }
    (1..=MOST_EXTENDED).contains(&seconds).then_some(seconds)
}

#[derive(Debug, Default, Deserialize)]
struct Extend {
    by: Option<String>,
}

/// The body may be missing, or be anything: then it is an hour.
pub(super) async fn extend(
    ask: Ask,
    Path(name): Path<String>,
    Raw(body): Raw,
) -> Handled<Json<Value>> {
    let Extend { by } = serde_json::from_slice(&body).unwrap_or_default();
    let by = by.as_deref().unwrap_or("1h");
    let seconds = seconds(by)
        .ok_or_else(|| Fault::invalid(format!("Invalid time format: '{by}' (30m, 2h, 1d)")))?;
    let sandbox = match ask.find(&name).await {
        Ok(sandbox) => sandbox.id,
        Err(fault) => return Err(fault),
    };
    match ask.run(Command::Extend { sandbox, seconds }).await {
        Ok(Reply::Sandbox(sandbox)) => {
            Ok(success(json!({ "expires_at": sandbox.expires_ms.map(rfc3339) })))
        }
        Ok(other) => Err(unexpected(&other)),
        Err(e) if e.kind == Kind::NotFound => {
            Err(Fault::new(StatusCode::NOT_FOUND, format!("Sandbox '{name}' not found")))
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ids() {
        for (text, wanted) in [
            ("90", Some(90)),
            ("30m", Some(1800)),
            ("2h", Some(7200)),
            ("1d", Some(86_400)),
            ("1h30m", Some(5400)),
            ("1m 1s", None),
        ] {
            assert_eq!(seconds(text), wanted, "{text}");
        }
        for text in ["", "h", "-1h", "1w", "0", "1.5h", "99999999999999999999d", "9999999d"] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert_eq!(
            uuid("sb_0123456789abcdef0123456789abcdef"),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
    }
}
