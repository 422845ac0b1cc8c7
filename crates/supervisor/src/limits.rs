//! Limits that are changed while a sandbox is there.
//!
//! What a control group holds is changed at once, where the sandbox has one for it; the time of commands
//! too. What the kernel or a thread was given for good when the sandbox started is changed while it is
//! stopped. What cannot be is refused by its name, and then nothing is changed.

use std::sync::Arc;

use ringfence_api::{CreateSandbox, SandboxLimits};
use ringfence_sys::cgroup;
use serde_json::{Map, Value, json};

use crate::error::{Error, Kind};
use crate::machine::Ask;
use crate::sandbox::Sandbox;
use crate::supervisor::{Reply, Supervisor, described};
use crate::{quota, spawner, tended};

/// What a sandbox is limited by, as it is made of.
pub(crate) fn of(made_of: &CreateSandbox) -> SandboxLimits {
    // It was checked when it was made.
    let Ok(policy) = spawner::policy_of(made_of) else { return SandboxLimits::default() };
    let layered = tended::layer_of(made_of, "").is_some();
    SandboxLimits {
        memory: policy.limits.memory,
        cpu_percent: policy.limits.cpu_percent,
        cpu_shares: None,
        pids: policy.limits.pids,
        disk: policy.layer.quota.filter(|_| layered),
        open_files: policy.limits.open_files,
        timeout_ms: policy.limits.timeout_ms,
    }
}

fn chapter<'a>(
    policy: &'a mut Map<String, Value>,
    name: &str,
) -> Option<&'a mut Map<String, Value>> {
    policy.entry(name).or_insert_with(|| json!({})).as_object_mut()
}

/// The same with other limits.
pub(crate) fn with(made_of: &CreateSandbox, wanted: SandboxLimits) -> CreateSandbox {
    let SandboxLimits { memory, cpu_percent, cpu_shares: _, pids, disk, open_files, timeout_ms } =
        wanted;
    let mut made_of = made_of.clone();
    let mut policy = made_of.policy.take().unwrap_or_default();
    let of_limits = [
        ("memory", "memory", memory.map(|n| json!(n))),
        ("cpu", "cpu", cpu_percent.map(|n| json!(f64::from(n) / 100.0))),
        ("pids", "pids", pids.map(|n| json!(n))),
        ("open_files", "openFiles", open_files.map(|n| json!(n))),
        ("timeout", "timeout", timeout_ms.map(|n| json!(format!("{n}ms")))),
    ];
    for (name, other, value) in of_limits {
        if let Some(value) = value
            && let Some(limits) = chapter(&mut policy, "limits")
        {
            limits.remove(other);
            limits.insert(name.to_owned(), value);
        }
    }
    if let Some(disk) = disk
        && let Some(layer) = chapter(&mut policy, "layer")
    {
        layer.insert("quota".to_owned(), json!(disk));
    }
    made_of.policy = Some(policy).filter(|policy| !policy.is_empty());
    made_of
}

fn not_now(what: &str) -> Error {
    Error::new(Kind::Conflict, format!("{what}: cannot be changed while the sandbox runs"))
        .with("stop it, change it, start it")
}

/// What cannot be asked for at all.
fn check(wanted: SandboxLimits, made_of: &CreateSandbox) -> Result<(), Error> {
    if wanted == SandboxLimits::default() {
        return Err(Error::invalid("limits: nothing is to be changed"));
    }
    let zero = [
        ("memory", wanted.memory == Some(0)),
        ("cpu_percent", wanted.cpu_percent == Some(0)),
        ("pids", wanted.pids == Some(0)),
        ("disk", wanted.disk == Some(0)),
        ("open_files", wanted.open_files == Some(0)),
        ("timeout_ms", wanted.timeout_ms == Some(0)),
    ];
    if let Some((name, _)) = zero.iter().find(|(_, zero)| *zero) {
        return Err(Error::invalid(format!("{name}: with 0 nothing could run")));
    }
    if wanted.cpu_shares.is_some() {
        return Err(Error::new(Kind::Refused, "cpu_shares: sandboxes have no shares")
            .with("limit it by cpu_percent"));
    }
    if wanted.disk.is_some() && tended::layer_of(made_of, "").is_none() {
        return Err(Error::new(
            Kind::Refused,
            "disk: the sandbox has no layer, which is what is limited",
        )
        .with("make it with \"layer\": true, or of a codebase"));
    }
    // As a policy it has to make sense too.
    spawner::policy_of(&with(made_of, wanted)).map(drop)
}

impl Supervisor {
    /// Changes limits of a sandbox.
    pub(crate) async fn limit(
        &self,
        sandbox: &Arc<Sandbox>,
        wanted: SandboxLimits,
    ) -> Result<Reply, Error> {
        let _life = sandbox.life.lock().await;
        sandbox.may(Ask::Delete)?;
        let before = sandbox.made_of_now();
        check(wanted, &before)?;
        let after = with(&before, wanted);
        let realm = self.realms.of(sandbox.owner)?;
        let others = self.used_besides(sandbox);
        let codebases = match realm.limits.disk {
            Some(_) => realm.codebases().await?,
            None => 0,
        };
        quota::admits(&realm.limits, &others, &after, codebases)?;
        if let Some(live) = sandbox.live() {
            if wanted.disk.is_some() {
                return Err(not_now("disk"));
            }
            if wanted.open_files.is_some() {
                return Err(not_now("open_files"));
            }
            let request = cgroup::Request {
                memory: wanted.memory,
                cpu_percent: wanted.cpu_percent,
                pids: wanted.pids,
            };
            if !request.is_empty() {
                let host = match &live.host {
                    Some(own) => own.clone(),
                    None => self.host().await?,
                };
                host.limit(live.number, request).await?;
            }
            if let Some(timeout_ms) = wanted.timeout_ms {
                sandbox.set_timeout(timeout_ms);
            }
        }
        sandbox.set_limits(wanted);
        self.keep(sandbox).await?;
        Ok(described(sandbox))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_of(value: Value) -> CreateSandbox {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_changed_is_what_is_made_of_and_the_rest_stays() {
        let before = made_of(json!({
            "layer": true,
            "policy": { "limits": { "memory": "64m", "openFiles": 100 }, "network": { "mode": "none" } },
        }));
        let wanted = SandboxLimits {
            memory: Some(1 << 30),
            cpu_percent: Some(150),
            pids: Some(7),
            disk: Some(5 << 20),
            open_files: Some(256),
            timeout_ms: Some(1500),
            cpu_shares: None,
        };
        let after = with(&before, wanted);
        assert_eq!(of(&after), wanted);
        assert_eq!(after.policy.as_ref().unwrap()["network"], json!({ "mode": "none" }));
        let some = SandboxLimits { pids: Some(8), ..SandboxLimits::default() };
        assert_eq!(of(&with(&after, some)), SandboxLimits { pids: Some(8), ..wanted });
        let bare = made_of(json!({}));
        assert_eq!(with(&bare, SandboxLimits::default()), bare);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        let plain = made_of(json!({}));
        for (wanted, name) in [
            (json!({}), "limits"),
            (json!({ "memory": 0 }), "memory"),
            (json!({ "pids": 0 }), "pids"),
            (json!({ "cpu_shares": 5 }), "cpu_shares"),
            (json!({ "disk": 5 }), "disk"),
        ] {
            let error = check(serde_json::from_value(wanted).unwrap(), &plain).unwrap_err();
            assert!(error.message.starts_with(name), "{error}");
        }
    }
}
