//! Inspection of chosen hosts, made ready before a run is planned: the run's authority, credentials, and
//! what the sandbox gets to see of both. A policy that inspects nothing pays nothing.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ringfence_policy::{Effect, Network, Permission, Policy, Rule, SecretSource, priority};
use ringfence_proxy::inspect::trust::{self, Stores};
use ringfence_proxy::inspect::{Authority, Inspector, Roots, Settings, read_secret};
use ringfence_sandbox::inspection::{self, Inspection};
use ringfence_sandbox::prepare::Request;

use crate::output::printable;

/// Layer name of the rules that hide files with credentials.
pub const SECRETS: &str = "network.secrets";

/// What looks into connections, where the policy asks for it. Changes what the run is planned from, so
/// that no credential reaches the sandbox by the environment or by its file.
pub fn prepare(
    policy: &mut Policy,
    request: &mut Request,
) -> Result<Option<Arc<Inspector>>, String> {
    let Network::Filtered { egress, .. } = &policy.network else { return Ok(None) };
    if egress.inspect.is_empty() {
        return Ok(None);
    }
    let variable = |name: &str| {
        let found = request.environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    };
    let settings = Settings::compile(egress, |from| read_secret(from, &variable))
        .map_err(|e| printable(&e.to_string()).into_owned())?;
    let authority =
        Arc::new(Authority::new(SystemTime::now()).map_err(|e| format!("network.inspect: {e}"))?);
    let stores = Stores::new(&trust::survey(&variable), &authority, Path::new(inspection::OWN));
    let inspector = Arc::new(Inspector::new(authority, settings, Roots::Host));

    let placeholder =
        |name: &str| inspector.placeholders().find(|(known, _)| *known == name).map(|(_, p)| p);
    let mut placeholders = Vec::new();
    let mut sources = Vec::new();
    let mut files = BTreeSet::new();
    for secret in &egress.secrets {
        let Some(placeholder) = placeholder(&secret.name) else { continue };
        if let Some(name) = &secret.env {
            placeholders.push((name.clone(), placeholder.to_owned()));
        }
        match &secret.from {
            SecretSource::Env(name) => sources.push((name.clone(), placeholder.to_owned())),
            SecretSource::File(path) => files.extend(names(path, variable("HOME"))),
        }
    }
    let found = Inspection {
        hosts: egress.inspect.len(),
        secrets: egress.secrets.iter().map(|secret| secret.name.clone()).collect(),
        covers: stores.masks,
        files: stores.files,
        environment: stores.environment,
        placeholders,
        notes: stores.notes,
    };
    withhold(policy, &mut request.environment, &inspector, &sources);
    for file in files {
        policy.files.rules.push(hidden(&file)?);
    }
    request.inspection = Some(Arc::new(found));
    Ok(Some(inspector))
}

/// Puts placeholders where the environment, the caller's or the policy's, holds credentials.
fn withhold(
    policy: &mut Policy,
    environment: &mut [(OsString, OsString)],
    inspector: &Inspector,
    sources: &[(String, String)],
) {
    for (name, value) in environment {
        let source = sources.iter().find(|(source, _)| OsStr::new(source) == name);
        if let Some((_, placeholder)) = source {
            *value = placeholder.into();
        } else if let Some(hidden) = inspector.hide(value.as_bytes()) {
            *value = OsString::from_vec(hidden);
        }
    }
    for value in policy.environment.set.values_mut() {
        let hidden = inspector.hide(value.as_bytes()).and_then(|text| String::from_utf8(text).ok());
        if let Some(hidden) = hidden {
            *value = hidden;
        }
    }
}

/// A file by the name that is written and by its own, where a link leads there.
fn names(path: &Path, home: Option<OsString>) -> Vec<PathBuf> {
    let named = match (path.strip_prefix("~/"), home) {
        (Ok(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path.to_owned(),
    };
    let real = std::fs::canonicalize(&named).ok();
    std::iter::once(named).chain(real).collect()
}

/// Hides a credential's file, whatever shows what lies around it.
fn hidden(file: &Path) -> Result<Rule, String> {
    let rule = Rule::grant_path(file, Permission::None, SECRETS).ok_or_else(|| {
        format!("{SECRETS}: cannot hide {}: its path is not utf-8", printable(file))
    })?;
    Ok(Rule { effect: Effect::Cap, priority: priority::IMPORTED_DENY, ..rule })
}
