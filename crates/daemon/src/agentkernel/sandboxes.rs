//! Sandboxes: made, looked at, turned off and on.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery};
use axum::http::StatusCode;
use ringfence_api::{CreateSandbox, Sandbox, State};
use ringfence_supervisor::{Command, Kind, Reply};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Ask, BACKEND, Body, DIALECT, Handled, LABEL, OURS, count, names, success, unexpected};
use crate::stamp::rfc3339;

/// What a sandbox gets where nothing is said of it.
const PROCESSORS: u32 = 1;
const MEMORY_MB: u64 = 512;
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
    labels: BTreeMap<String, String>,
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
}

impl Create {
    /// What is not there is refused, not left out: a secret that is silently missing is worse.
    fn check(&self) -> Handled<()> {
        names::sandbox(&self.name)?;
        self.image.as_deref().map_or(Ok(()), names::image)?;
        if let Some(backend) = &self.backend
            && backend != BACKEND
        {
            let message = format!("Backend '{backend}' is not available on this system");
            return Err(Fault::invalid(message));
        }
        let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
        let missing = [
            ("source_url", self.source_url.is_some()),
            ("volumes", given(&self.volumes)),
            ("secrets", given(&self.secrets)),
            ("secret_files", given(&self.secret_files)),
            ("ports", given(&self.ports)),
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
    match ask.run(Command::Create { made_of, key: None }).await? {
        Reply::Sandbox(sandbox) => {
            count(&ask.dialect.counts.created);
            Ok(*sandbox)
        }
        other => Err(unexpected(&other)),
    }
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

pub(super) fn described(sandbox: &Sandbox) -> Value {
    let remembered = |name: &str| sandbox.labels.get(&format!("{OURS}{name}"));
    let number = |name: &str| remembered(name).and_then(|n| n.parse::<u64>().ok());
    let theirs = |name: &&String| !name.starts_with(OURS) && *name != LABEL;
    let labels: BTreeMap<_, _> = sandbox.labels.iter().filter(|(name, _)| theirs(name)).collect();
    let mut described = json!({
        "name": sandbox.name.as_deref().unwrap_or(&sandbox.id),
        "uuid": uuid(&sandbox.id),
        "status": status(sandbox.state),
        "backend": BACKEND,
        "vcpus": number("vcpus").unwrap_or(PROCESSORS.into()),
        "memory_mb": number("memory-mb").unwrap_or(MEMORY_MB),
        "created_at": rfc3339(sandbox.created_ms),
        "labels": labels,
    });
    if let Some(described) = described.as_object_mut() {
        let image = remembered("image").map(|image| ("image", image.clone()));
        let expires = sandbox.expires_ms.map(|at| ("expires_at", rfc3339(at)));
        for (name, value) in image.into_iter().chain(expires) {
            described.insert(name.into(), value.into());
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
    let Create { name, image, vcpus, memory_mb, labels, .. } = create;
    let asked = Asked { image, vcpus, memory_mb, labels };
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

pub(super) async fn list(ask: Ask, RawQuery(query): RawQuery) -> Handled<Json<Value>> {
    let query = query.unwrap_or_default();
    let wanted: Vec<(&str, &str)> = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("label="))
        .filter_map(|label| label.split_once(':').or_else(|| label.split_once("%3A")))
        .collect();
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
    ask.run(Command::Delete(sandbox.id)).await?;
    count(&ask.dialect.counts.removed);
    Ok(success("Sandbox removed"))
}

pub(super) async fn start(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    ask.run(Command::Start(sandbox.id)).await?;
    Ok(success("Sandbox started"))
}

pub(super) async fn stop(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    ask.run(Command::Stop(sandbox.id)).await?;
    Ok(success("Sandbox stopped"))
}

pub(super) async fn pause(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    ask.run(Command::Freeze(sandbox.id)).await?;
    Ok(success("Sandbox paused"))
}

/// `30m`, `2h`, `1d`, or seconds.
fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(digits) => (digits, text.chars().last()?),
        None => (text, 's'),
    };
    let factor = match unit {
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => 1,
    };
    let seconds = digits.parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=MOST_EXTENDED).contains(&seconds).then_some(seconds)
}

#[derive(Debug, Default, Deserialize)]
struct Extend {
    by: Option<String>,
}

/// The body may be missing: then it is an hour.
pub(super) async fn extend(
    ask: Ask,
    Path(name): Path<String>,
    body: Bytes,
) -> Handled<Json<Value>> {
    let Extend { by } = if body.is_empty() {
        Extend::default()
    } else {
        serde_json::from_slice(&body).map_err(|e| Fault::invalid(format!("Invalid JSON: {e}")))?
    };
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
        for (text, wanted) in
            [("90", Some(90)), ("30m", Some(1800)), ("2h", Some(7200)), ("1d", Some(86_400))]
        {
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
