//! What the sandboxes of an owner with a name may be made of: nothing of the daemon's user's.
//!
//! Such an owner knows a token and is not the user whose files, hosts and variables the daemon could hand
//! out. So its sandboxes have workspaces of their own or codebases of its own, and of a policy it may say
//! what limits them and which of the hosts of its record they reach. What is not known to be harmless is
//! refused ([`check`]); and what a profile would bring of the user's home is left out ([`confine`]).

use ringfence_api::codebases::CreateCodebase;
use ringfence_api::{CreateSandbox, OwnerLimits};
use ringfence_policy::{
    Base, Effect, Environment, Files, LayerWanted, Network, Permission, Policy,
};

use crate::error::{Error, Kind};
use crate::spawner;

/// The profiles: none of them shows more of the host than its system directories once it is confined.
const PROFILES: &[&str] =
    &["workspace", "strict", "restrictive", "agent-safe", "development", "read-only", "view-only"];
/// Chapters of a policy.
const CHAPTERS: &[&str] = &["limits", "network", "layer"];
/// Variables of the daemon that its commands get.
const PASS: &[&str] = &["PATH", "LANG", "LC_*", "TZ"];

fn no(what: impl Into<String>) -> Error {
    Error::new(Kind::Refused, what).with(
        "an owner with a token has workspaces of its own (leave workspace out) or its own codebases, and may set limits, layer and the hosts that its record has",
    )
}

/// Whether a sandbox may be made of this.
pub(crate) fn check(made_of: &CreateSandbox, limits: &OwnerLimits) -> Result<(), Error> {
    if !made_of.workspace.is_empty() {
        return Err(no("workspace: directories of the host are the daemon's user's"));
    }
    if let Some(other) = made_of.profiles.iter().find(|p| !PROFILES.contains(&p.as_str())) {
        return Err(no(format!("profiles: {other} is not one of {}", PROFILES.join(", "))));
    }
    let chapters = made_of.policy.iter().flat_map(|policy| policy.keys());
    if let Some(other) = chapters.into_iter().find(|c| !CHAPTERS.contains(&c.as_str())) {
        return Err(no(format!("policy.{other}: only {} may be said", CHAPTERS.join(", "))));
    }
    if made_of.rules.iter().any(|rule| rule.pattern.split('/').any(|part| part == "..")) {
        return Err(no("rules: a pattern that leads out"));
    }
    let policy = spawner::policy_of(made_of)?;
    network(&policy.network, &limits.hosts)?;
    layer(&policy.layer)
}

fn network(network: &Network, hosts: &[String]) -> Result<(), Error> {
    let (allow, egress) = match network {
        Network::None => return Ok(()),
        Network::Host => return Err(no("network: the host's network is the daemon's user's")),
        Network::Filtered { allow, deny: _, egress } => (allow, egress),
    };
    if let Some(other) = allow.iter().find(|rule| !hosts.contains(&rule.host)) {
        return Err(no(format!("network.allow: {} is not in the record of the owner", other.host)));
    }
    if egress.upstream_proxy.is_some() || !egress.inspect.is_empty() || !egress.secrets.is_empty() {
        return Err(no("network: only allow and deny may be said"));
    }
    Ok(())
}

fn layer(wanted: &LayerWanted) -> Result<(), Error> {
    let LayerWanted { name, quota: _, inodes: _, checkpoint: _, exact: _, share_cache } = wanted;
    if name.is_some() || !share_cache.is_empty() {
        return Err(no("policy.layer: only quota, inodes, checkpoint and exact may be said"));
    }
    Ok(())
}

/// Whether a codebase may be made of this.
pub(crate) fn check_codebase(made: &CreateCodebase) -> Result<(), Error> {
    match made.directory {
        Some(_) => Err(no("directory: directories of the host are the daemon's user's")),
        None => Ok(()),
    }
}

/// Takes out of a policy whatever it has of the daemon's user.
pub(crate) fn confine(policy: &mut Policy) {
    // Each by its name: what policies learn later is looked at before it compiles. What `check` has judged
    // stays.
    let Policy {
        layers: _,
        files,
        network: _,
        environment,
        limits: _,
        processes,
        pty: _,
        layer: _,
        ssh,
        accept_missing,
    } = policy;
    let Files { rules, guard_git, system: _, toolchains, tmp_bytes: _, shm_bytes: _, devices } =
        files;
    // What takes away stays.
    rules.retain(|rule| {
        rule.base == Base::Workspace
            || rule.effect == Effect::Cap
            || rule.permission == Permission::None
    });
    *guard_git = true;
    *toolchains = false;
    devices.clear();
    let Environment { pass, deny: _, set: _ } = environment;
    *pass = PASS.iter().map(|&name| name.to_owned()).collect();
    processes.nested_namespaces = false;
    accept_missing.clear();
    *ssh = ringfence_policy::Ssh::default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: serde_json::Value) -> Result<(), Error> {
        let hosts = vec!["example.com".to_owned(), "npm".to_owned()];
        let limits = OwnerLimits { hosts, ..OwnerLimits::default() };
        check(&serde_json::from_value(value).unwrap(), &limits)
    }

    #[test]
    fn nothing_of_the_daemons_user_can_be_named() {
        for allowed in [
            json!({}),
            json!({ "codebase": "app", "profiles": ["agent-safe"] }),
            json!({ "layer": true, "rules": [{ "pattern": "/docs/**", "permission": "write", "priority": 1 }] }),
            json!({ "policy": { "limits": { "memory": "64m", "pids": 10 }, "layer": { "quota": "1m" } } }),
            json!({ "policy": { "network": { "allow": ["example.com", "npm"] } } }),
            json!({ "policy": { "network": { "mode": "none" } } }),
        ] {
            of(allowed.clone()).unwrap_or_else(|e| panic!("{allowed}: {e}"));
        }
        for refused in [
            json!({ "workspace": "/" }),
            json!({ "workspace": "/home/me/project" }),
            json!({ "workspace": "relative" }),
            json!({ "profiles": ["code"] }),
            json!({ "profiles": ["permissive"] }),
            json!({ "profiles": ["moderate"] }),
            json!({ "profiles": ["agent-safe", "full-access", "code"] }),
            json!({ "policy": { "files": { "read": ["~"] } } }),
            json!({ "policy": { "files": { "write": ["/"] } } }),
            json!({ "policy": { "files": {} } }),
            json!({ "policy": { "extends": "permissive" } }),
            json!({ "policy": { "lift": ["secret"] } }),
            json!({ "policy": { "environment": { "pass": ["*"] } } }),
            json!({ "policy": { "acceptMissing": ["namespaces"] } }),
            json!({ "policy": { "accept_missing": ["namespaces"] } }),
            json!({ "policy": { "processes": { "nested_namespaces": true } } }),
            json!({ "policy": { "network": { "mode": "host" } } }),
            json!({ "policy": { "network": { "allow": ["*"] } } }),
            json!({ "policy": { "network": { "allow": ["example.com:22"] } } }),
            json!({ "policy": { "network": { "allow": ["*.example.com"] } } }),
            json!({ "policy": { "network": { "allow": ["localhost:5432"] } } }),
            json!({ "policy": { "layer": { "name": "other" } } }),
            json!({ "rules": [{ "pattern": "/../**", "permission": "write", "priority": 1 }] }),
        ] {
            let error = of(refused.clone()).expect_err(&refused.to_string());
            assert!(matches!(error.kind, Kind::Refused | Kind::Invalid), "{refused}: {error}");
        }
    }

    #[test]
    fn what_profiles_bring_of_the_users_home_is_left_out() {
        for name in PROFILES {
            let made_of =
                CreateSandbox { profiles: vec![(*name).to_owned()], ..CreateSandbox::default() };
            let mut policy = spawner::policy_of(&made_of).unwrap();
            let hides =
                |p: &Policy| p.files.rules.iter().filter(|r| r.effect == Effect::Cap).count();
            let before = hides(&policy);
            confine(&mut policy);
            assert_eq!(hides(&policy), before, "{name}");
            let grants = |r: &&ringfence_policy::Rule| {
                r.base != Base::Workspace
                    && r.effect != Effect::Cap
                    && r.permission > Permission::None
            };
            assert_eq!(policy.files.rules.iter().find(grants), None, "{name}");
            assert!(!policy.files.toolchains && policy.files.devices.is_empty(), "{name}");
            assert_eq!(policy.network, Network::None, "{name}");
            assert!(policy.environment.pass.iter().all(|p| PASS.contains(&p.as_str())), "{name}");
        }
    }
}
