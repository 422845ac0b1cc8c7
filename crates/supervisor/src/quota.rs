//! What an owner has, and whether there may be more of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringfence_api::codebases::Layer;
use ringfence_api::{CreateSandbox, OwnerInfo, OwnerLimits, OwnerUse};

use crate::codebases::{Answer, Ask};
use crate::error::{Error, Kind};
use crate::realm::Realm;
use crate::sandbox::Sandbox;
use crate::supervisor::{Caller, Reply, Supervisor};
use crate::{lock, spawner};

/// Why not.
fn full(what: &str, has: u64, most: u64) -> Error {
    Error::new(Kind::Limit, format!("{what}: the owner has {has} of {most}"))
        .with("end or remove some, or have the limit raised: ringfence daemon token limit")
}

fn too_much(what: &str, has: u64, more: u64, most: u64) -> Error {
    Error::new(
        Kind::Limit,
        format!("{what}: {has} of {most} bytes are taken, {more} more are asked for"),
    )
    .with("ask for less, remove a sandbox, or have the limit raised: ringfence daemon token limit")
}

/// As above for all owners together: how many others have is nobody's business.
fn busy(what: &str, most: u64) -> Error {
    Error::new(Kind::Busy, format!("{what}: the daemon has as many as it may, {most}"))
        .with("try again later, or have it raised: ringfence daemon token limit everybody")
}

/// Whether the daemon takes one more sandbox.
pub(crate) fn admits_among_all(everybody: &OwnerLimits, has: u64) -> Result<(), Error> {
    match everybody.sandboxes {
        Some(most) if has >= most => Err(busy("sandboxes", most)),
        _ => Ok(()),
    }
}

/// Memory that stays free for what runs: below it no sandbox is made.
const FREE: u64 = 64 << 20;

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// When so much was free that it is not looked at again for a moment.
static PLENTY: Mutex<Option<Instant>> = Mutex::new(None);
/// That moment: to look takes the kernel as long as a tenth of making a sandbox.
const MOMENT: Duration = Duration::from_millis(50);

/// Whether this machine has memory for one more sandbox.
pub(crate) fn memory_is_free() -> Result<(), Error> {
    if lock(&PLENTY).is_some_and(|seen| seen.elapsed() < MOMENT) {
        return Ok(());
    }
    // Where nobody says, nothing is refused for it.
    let free = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    *lock(&PLENTY) = free.filter(|free| *free >= 8 * FREE).map(|_| Instant::now());
    if free.is_none_or(|free| free >= FREE) {
        return Ok(());
    }
    Err(Error::new(Kind::Busy, format!("less than {} MiB of memory are free here", FREE >> 20))
        .with("end something that takes memory, then try again"))
}

/// What a sandbox takes by what it is made of: memory and disk.
pub(crate) fn taken(made_of: &CreateSandbox) -> (Option<u64>, Option<u64>) {
    // It was checked when it was made.
    let Ok(policy) = spawner::policy_of(made_of) else { return (None, None) };
    let layered = made_of.codebase.is_some() || matches!(made_of.layer, Some(Layer::Own(true)));
    let disk = policy.layer.quota.filter(|quota| layered && *quota < u64::MAX >> 1);
    (policy.limits.memory, disk)
}

/// Whether what limits by bytes is said at all.
pub(crate) fn says_enough(made_of: &CreateSandbox, limits: &OwnerLimits) -> Result<(), Error> {
    let (memory, disk) = taken(made_of);
    if limits.memory.is_some() && memory.is_none() {
        return Err(Error::invalid("policy.limits.memory: this owner's memory is limited")
            .with("say how much of it the sandbox may have"));
    }
    if limits.disk.is_some() && disk.is_none() {
        return Err(Error::invalid("policy.layer.quota: this owner's disk is limited").with(
            "say how much of it the sandbox may have, and give it a layer of its own or a codebase",
        ));
    }
    Ok(())
}

/// Of sandboxes alone: what codebases take is not in it.
pub(crate) fn used<'a>(all: impl Iterator<Item = &'a Arc<Sandbox>>, bytes: bool) -> OwnerUse {
    let mut used = OwnerUse::default();
    for sandbox in all {
        used.sandboxes += 1;
        used.commands += sandbox.commands() as u64;
        used.sessions += sandbox.sessions.open() as u64;
        if bytes {
            let limits = sandbox.limits();
            used.memory = used.memory.saturating_add(limits.memory.unwrap_or(0));
            used.disk = used.disk.saturating_add(limits.disk.unwrap_or(0));
        }
    }
    used
}

/// Whether one more sandbox fits among those that there are. `codebases`: bytes of these.
pub(crate) fn admits(
    limits: &OwnerLimits,
    used: &OwnerUse,
    made_of: &CreateSandbox,
    codebases: u64,
) -> Result<(), Error> {
    if let Some(most) = limits.sandboxes
        && used.sandboxes >= most
    {
        return Err(full("sandboxes", used.sandboxes, most));
    }
    let (memory, disk) = taken(made_of);
    let fits = |what: &str, most: Option<u64>, has: u64, more: Option<u64>| match (most, more) {
        (Some(most), Some(more)) if has.saturating_add(more) > most => {
            Err(too_much(what, has, more, most))
        }
        _ => Ok(()),
    };
    fits("memory", limits.memory, used.memory, memory)?;
    fits("disk", limits.disk, used.disk.saturating_add(codebases), disk)
}

impl Realm {
    /// Bytes of its codebases.
    pub(crate) async fn codebases(&self) -> Result<u64, Error> {
        match self.shelf.run(Ask::List).await? {
            Answer::Codebases(all) => Ok(all.iter().map(|c| c.size).sum()),
            _ => Ok(0),
        }
    }
}

impl Supervisor {
    /// What an owner has.
    pub(crate) async fn owner(&self, caller: Caller) -> Result<Reply, Error> {
        let realm = self.realm(caller)?;
        let mut used = self.used_by(caller.owner, true);
        used.disk = used.disk.saturating_add(realm.codebases().await?);
        let (owner, limits) = (realm.name.clone(), realm.limits.clone());
        Ok(Reply::Owner(Box::new(OwnerInfo { owner, limits, used })))
    }

    /// Whether an owner may start another command.
    pub(crate) fn admits_command(&self, caller: Caller) -> Result<(), Error> {
        self.admits_one(caller, "commands", |limits| limits.commands, |used| used.commands)
    }

    pub(crate) fn admits_session(&self, caller: Caller) -> Result<(), Error> {
        self.admits_one(caller, "sessions", |limits| limits.sessions, |used| used.sessions)
    }

    /// Of what all together may have, and of what the owner may.
    fn admits_one(
        &self,
        caller: Caller,
        what: &str,
        may: impl Fn(&OwnerLimits) -> Option<u64>,
        has: impl Fn(&OwnerUse) -> u64,
    ) -> Result<(), Error> {
        if let Some(most) = may(&self.realms.owners.everybody()) {
            let has = has(&self.used_by_all());
            if has >= most {
                return Err(busy(what, most));
            }
        }
        let Some(most) = may(&self.realm(caller)?.limits) else { return Ok(()) };
        let has = has(&self.used_by(caller.owner, false));
        if has >= most { Err(full(what, has, most)) } else { Ok(()) }
    }

    /// Whether an owner may put more into its codebases.
    pub(crate) async fn admits_bytes(&self, caller: Caller) -> Result<(), Error> {
        let realm = self.realm(caller)?;
        let Some(most) = realm.limits.disk else { return Ok(()) };
        let has = self.used_by(caller.owner, true).disk.saturating_add(realm.codebases().await?);
        if has >= most { Err(full("disk", has, most)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_read_as_the_kernel_says_it() {
        let text = "MemTotal:  2000 kB\nMemFree: 1 kB\nMemAvailable:     1536 kB\n";
        assert_eq!(available(text), Some(1536 << 10));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(memory_is_free().map_err(|e| e.kind).err(), None);
    }

    #[test]
    fn sums_do_not_go_over_what_an_owner_may_have() {
        let made_of: CreateSandbox = serde_json::from_value(serde_json::json!({
            "layer": true, "policy": { "limits": { "memory": "10m" }, "layer": { "quota": "20m" } },
        }))
        .unwrap();
        let limits = OwnerLimits {
            memory: Some(25 << 20),
            disk: Some(50 << 20),
            sandboxes: Some(9),
            ..OwnerLimits::default()
        };
        let used = |n: u64| OwnerUse {
            sandboxes: n,
            memory: n * (10 << 20),
            disk: n * (20 << 20),
            ..OwnerUse::default()
        };
        let fits = |n, codebases| admits(&limits, &used(n), &made_of, codebases);
        assert!(fits(0, 0).is_ok() && fits(1, 10 << 20).is_ok());
        assert!(fits(1, (10 << 20) + 1).unwrap_err().message.starts_with("disk"));
        assert!(fits(2, 0).unwrap_err().message.starts_with("memory"));
        assert!(says_enough(&made_of, &limits).is_ok());
        let bare = CreateSandbox::default();
        assert!(says_enough(&bare, &limits).unwrap_err().message.contains("limits.memory"));
    }
}
