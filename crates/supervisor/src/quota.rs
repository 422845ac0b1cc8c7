//! What an owner has, and whether there may be more of it.

use std::sync::Arc;

use ringfence_api::codebases::Layer;
use ringfence_api::{CreateSandbox, OwnerInfo, OwnerLimits, OwnerUse};

use crate::codebases::{Answer, Ask};
use crate::error::{Error, Kind};
use crate::realm::Realm;
use crate::sandbox::Sandbox;
use crate::spawner;
use crate::supervisor::{Caller, Reply, Supervisor};

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
            let (memory, disk) = *sandbox.taken.get_or_init(|| taken(&sandbox.made_of));
            used.memory = used.memory.saturating_add(memory.unwrap_or(0));
            used.disk = used.disk.saturating_add(disk.unwrap_or(0));
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
        let limits = &self.realm(caller)?.limits;
        let Some(most) = limits.commands else { return Ok(()) };
        let has = self.used_by(caller.owner, false).commands;
        if has >= most { Err(full("commands", has, most)) } else { Ok(()) }
    }

    pub(crate) fn admits_session(&self, caller: Caller) -> Result<(), Error> {
        let limits = &self.realm(caller)?.limits;
        let Some(most) = limits.sessions else { return Ok(()) };
        let has = self.used_by(caller.owner, false).sessions;
        if has >= most { Err(full("sessions", has, most)) } else { Ok(()) }
    }

    /// Whether an owner may put more into its codebases.
    pub(crate) async fn admits_bytes(&self, caller: Caller) -> Result<(), Error> {
        let realm = self.realm(caller)?;
        let Some(most) = realm.limits.disk else { return Ok(()) };
        let has = self.used_by(caller.owner, true).disk.saturating_add(realm.codebases().await?);
        if has >= most { Err(full("disk", has, most)) } else { Ok(()) }
    }
}
