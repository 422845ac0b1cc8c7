//! What sandboxes use, and the figures of the daemon.

use std::sync::Arc;

use ringfence_api::{DaemonStats, DiskIo, DiskUse, SandboxStats, State, Stats};
use ringfence_sys::cgroup;

use crate::error::{Error, Kind};
use crate::files::blocking;
use crate::metrics::{self, Now};
use crate::processes::{self, Processes, Used};
use crate::sandbox::Sandbox;
use crate::supervisor::{Caller, Supervisor};
use crate::{layers, lock, now_ms, tended};

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    One(String),
    All,
    /// As Prometheus reads it.
    Metrics,
}

/// What comes of it.
#[derive(Debug)]
pub enum Answer {
    One(Box<SandboxStats>),
    All(Stats),
    Metrics(String),
}

/// Whom the figures of all owners together are for.
fn may_see_all(caller: Caller) -> Result<(), Error> {
    if caller.owner == crate::journal::Owner::user() {
        return Ok(());
    }
    Err(Error::new(Kind::Refused, "the figures of the daemon are for its own user"))
}

impl Supervisor {
    pub(crate) async fn stats(self: &Arc<Self>, caller: Caller, ask: Ask) -> Result<Answer, Error> {
        match ask {
            Ask::One(name) => {
                let sandbox = self.find(caller, &name)?;
                let of = sandbox.clone();
                let one = blocking(move || {
                    Ok(look(&of, &Processes::read(), cgroup::Reader::new().as_ref()))
                });
                let mut one = one.await?;
                one.disk = self.disk(&sandbox).await;
                Ok(Answer::One(Box::new(one)))
            }
            Ask::All => {
                let own = self.of_owner(caller);
                let whole = may_see_all(caller).is_ok();
                blocking(move || Ok(Answer::All(all(&own, whole)))).await
            }
            Ask::Metrics => {
                may_see_all(caller)?;
                let everyone: Vec<_> = lock(&self.sandboxes).values().cloned().collect();
                blocking(move || {
                    metrics::render(&now(&everyone)).map_err(|e| Error::internal(e.to_string()))
                })
                .await
                .map(Answer::Metrics)
            }
        }
    }

    /// The sandboxes whose figures a caller sees in lists.
    fn of_owner(&self, caller: Caller) -> Vec<Arc<Sandbox>> {
        let all = lock(&self.sandboxes);
        let mut own: Vec<_> = all.values().filter(|s| s.owner == caller.owner).cloned().collect();
        own.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        own
    }

    async fn disk(&self, sandbox: &Arc<Sandbox>) -> Option<DiskUse> {
        tended::layer_of(&sandbox.made_of, &sandbox.id)?;
        match self.layer(sandbox, layers::Ask::Info).await {
            Ok(layers::Answer::Info(info)) => {
                Some(DiskUse { bytes: info.bytes, inodes: info.inodes })
            }
            // It has changed nothing yet.
            _ => Some(DiskUse::default()),
        }
    }
}

fn look(sandbox: &Sandbox, processes: &Processes, groups: Option<&cgroup::Reader>) -> SandboxStats {
    let described = sandbox.described();
    let init = sandbox.live().and_then(|live| live.made.init);
    let used = init.map(|init| processes.used(init)).unwrap_or_default();
    let group = match init {
        // Still this one.
        Some((pid, _)) if used != Used::default() => {
            groups.map(|groups| groups.of(pid)).unwrap_or_default()
        }
        _ => cgroup::Reading::default(),
    };
    let from = [
        ("memory", group.memory.is_some()),
        ("cpu", group.cpu_us.is_some()),
        ("pids", group.pids.is_some()),
        ("io", group.io.is_some()),
    ];
    let io = group.io.or(used.io);
    SandboxStats {
        id: described.id,
        name: described.name,
        state: described.state,
        commands: described.commands,
        execs: sandbox.entered(),
        memory_bytes: group.memory.unwrap_or(used.memory),
        cpu_us: group.cpu_us.unwrap_or(used.cpu_us),
        pids: group.pids.unwrap_or(used.pids),
        io: io.map(|(read_bytes, written_bytes)| DiskIo { read_bytes, written_bytes }),
        disk: None,
        from_cgroup: from.iter().filter(|(_, is)| *is).map(|(n, _)| (*n).to_owned()).collect(),
    }
}

fn daemon(processes: &Processes) -> DaemonStats {
    let pid = std::process::id();
    let used = processes.alone(pid);
    // This directory is open itself while it is counted.
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    DaemonStats {
        pid,
        memory_bytes: used.memory,
        cpu_us: used.cpu_us,
        open_files: open.saturating_sub(1) as u64,
        uptime_ms: metrics::uptime().as_millis() as u64,
    }
}

fn all(own: &[Arc<Sandbox>], whole: bool) -> Stats {
    let (processes, groups) = (Processes::read(), cgroup::Reader::new());
    Stats {
        at_ms: now_ms(),
        daemon: whole.then(|| daemon(&processes)),
        sandboxes: own.iter().map(|s| look(s, &processes, groups.as_ref())).collect(),
    }
}

fn now(everyone: &[Arc<Sandbox>]) -> Now {
    let (processes, groups) = (Processes::read(), cgroup::Reader::new());
    let mut now = Now { daemon: daemon(&processes), ..Now::default() };
    for sandbox in everyone {
        let one = look(sandbox, &processes, groups.as_ref());
        let at = State::ALL.iter().position(|state| *state == one.state);
        if let Some(count) = at.and_then(|at| now.states.get_mut(at)) {
            *count += 1;
        }
        now.commands += one.commands as u64;
        now.memory += one.memory_bytes;
        now.pids += one.pids;
        now.cpu_us += one.cpu_us;
        let io = one.io.unwrap_or_default();
        now.read += io.read_bytes;
        now.written += io.written_bytes;
        now.mounts += sandbox.live().map_or(0, |live| mounts(&live));
    }
    now
}

/// They do not change after the start, so they are counted once.
fn mounts(live: &crate::sandbox::Live) -> u64 {
    let count = || {
        let (pid, _) = live.made.init?;
        let list = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
        Some(list.lines().count() as u64)
    };
    *live.mounts.get_or_init(|| count().unwrap_or(0))
}

/// The init of a sandbox, with its age.
pub(crate) fn init(pid: i32) -> Option<(u32, u64)> {
    let pid = u32::try_from(pid).ok()?;
    Some((pid, processes::started(pid)?))
}
