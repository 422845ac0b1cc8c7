//! Making, using and removing the groups of one run.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::discover::{Hierarchies, Owner, Place, stale_under};
use super::{Controller, Missing, Outcome, Request};

/// The period that CPU time is counted in, in microseconds; the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// How long [`Scope::remove`] waits for killed processes to be gone. The kernel empties a group a
/// moment after the last exit, longer if a process sits in an uninterruptible call.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// Groups made by this process so far; makes their names unique together with the owner.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The groups of one run, one per hierarchy. Dropping it kills what is left inside and removes them.
#[derive(Debug)]
pub struct Scope {
    groups: Vec<Group>,
}

/// What a run used. A field is `None` where its controller is not in force or the kernel too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The most memory in use at one time, in bytes.
    pub memory_peak: Option<u64>,
    /// CPU time of all processes.
    pub cpu_time: Option<Duration>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// How often the process limit refused a fork.
    pub forks_refused: Option<u64>,
}

/// Makes groups for one run and sets the limits. Never fails as a whole: what could not be had is
/// listed with its reason, and nothing is left behind for it.
///
/// `label` becomes part of the groups' names, for people who look at the hierarchy.
///
/// On v2 the group is made under the nearest of the caller's own group and its ancestors that can be
/// written and hands the controllers on. That is seldom the caller's own, because a group with
/// processes in it cannot; a group beside the caller's own keeps the limits set there. A controller
/// that an ancestor has but does not hand on yet is switched on there, and stays so.
pub fn create(request: &Request, label: &str) -> Outcome {
    let mut outcome = Outcome { scope: None, enforced: Vec::new(), missing: Vec::new() };
    let mut wanted: Vec<Controller> = request.controllers().collect();
    let mut miss = |controllers: &[Controller], reason: &str| {
        outcome.missing.extend(
            controllers.iter().map(|&controller| Missing { controller, reason: reason.to_owned() }),
        );
    };
    wanted.retain(|&controller| {
        let zero = request.amount(controller) == 0;
        if zero {
            miss(&[controller], "a limit of 0 would let nothing run");
        }
        !zero
    });
    if wanted.is_empty() {
        return outcome;
    }
    let found = Hierarchies::read().and_then(|h| Owner::current().map(|owner| (h, owner)));
    let (hierarchies, owner) = match found {
        Ok(found) => found,
        Err(reason) => {
            miss(&wanted, &reason);
            return outcome;
        }
    };
    let name = owner.name(COUNT.fetch_add(1, Ordering::Relaxed), label);

    let mut groups: Vec<Group> = Vec::new();
    let (v1, v2): (Vec<_>, Vec<_>) = wanted.iter().partition(|&&c| hierarchies.on_v1(c));
    for controller in v1 {
        let made = hierarchies.v1(controller).and_then(|place| {
            let path = place.own.join(&name);
            // Controllers mounted together share the directory.
            if let Some(group) = groups.iter_mut().find(|group| group.path == path) {
                return group.limit(controller, request, &place.own);
            }
            let mut group = Group::make(path, false)?;
            group.limit(controller, request, &place.own)?;
            groups.push(group);
            Ok(())
        });
        match made {
            Ok(()) => outcome.enforced.push(controller),
            Err(reason) => {
                outcome
                    .missing
                    .push(Missing { controller, reason: format!("{reason} (cgroup v1)") });
            }
        }
    }
    match hierarchies.v2() {
        Err(reason) => {
            for controller in v2 {
                outcome.missing.push(Missing { controller, reason: reason.clone() });
            }
        }
        // Nothing to limit there, but a group can be killed as one and children can be born into it.
        Ok(place) if v2.is_empty() => {
            if !groups.is_empty()
                && let Ok(group) = Group::make(place.own.join(&name), true)
            {
                groups.push(group);
            }
        }
        Ok(place) => limit_v2(&place, &v2, request, &name, &mut groups, &mut outcome),
    }
    if groups.iter().any(|group| !group.controllers.is_empty()) {
        outcome.scope = Some(Scope { groups });
    }
    outcome
}

fn limit_v2(
    place: &Place,
    wanted: &[Controller],
    request: &Request,
    name: &str,
    groups: &mut Vec<Group>,
    outcome: &mut Outcome,
) {
    let mut miss = |controller, reason| outcome.missing.push(Missing { controller, reason });
    let parent = match choose_parent(place, wanted) {
        Ok(parent) => parent,
        Err(reason) => {
            for &controller in wanted {
                miss(controller, reason.clone());
            }
            return;
        }
    };
    let mut group = match Group::make(parent.path.join(name), true) {
        Ok(group) => group,
        Err(reason) => {
            for &controller in wanted {
                miss(controller, reason.clone());
            }
            return;
        }
    };
    let request = keep_own_limits(request, place, &parent.path);
    for &controller in wanted {
        let limited = if parent.hands_on.contains(&controller) {
            group.limit(controller, &request, &parent.path)
        } else {
            Err(format!("{} does not hand on the {controller} controller", parent.path.display()))
        };
        match limited {
            Ok(()) => outcome.enforced.push(controller),
            Err(reason) => miss(controller, reason),
        }
    }
    groups.push(group);
}

/// A v2 group under which a run's group can be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub path: PathBuf,
    /// Those of the wanted controllers that groups below it have.
    pub hands_on: Vec<Controller>,
}

/// The nearest group, from the caller's own upward, that can be written and hands on all wanted
/// controllers; else the nearest one that hands on most of them.
///
/// "Can be written" includes `cgroup.procs`: a process may only be moved by someone who may write the
/// one of the common ancestor of both groups, and that is the parent found here.
pub(super) fn choose_parent(place: &Place, wanted: &[Controller]) -> Result<Parent, String> {
    let mut best: Option<Parent> = None;
    let mut reason = None;
    for path in place.own.ancestors().take_while(|path| path.starts_with(&place.top)) {
        let writable = may_write(path).and_then(|()| may_write(&path.join("cgroup.procs")));
        if let Err(errno) = writable {
            reason.get_or_insert_with(|| refusal("write to the group", path, errno));
            continue;
        }
        // The root of the whole hierarchy has no type. Beneath a group with threads of its own there
        // is no place for processes.
        let kind = std::fs::read_to_string(path.join("cgroup.type")).ok();
        if kind.as_deref().is_some_and(|kind| kind.trim() != "domain") {
            reason.get_or_insert_with(|| format!("{} is a threaded group", path.display()));
            continue;
        }
        let mut hands_on = listed(&path.join("cgroup.subtree_control"), wanted);
        // A group with processes must not hand on anything. The kernel does not refuse that for cpu
        // and pids: it makes the group threaded, for good.
        let may_hand_on = || kind.is_none() || is_unused(path);
        if hands_on.len() < wanted.len()
            && may_hand_on()
            && listed(&path.join("cgroup.controllers"), wanted).len() == wanted.len()
        {
            let order: Vec<String> = wanted.iter().map(|c| format!("+{c}")).collect();
            let control = path.join("cgroup.subtree_control");
            if write_at(CWD, &control, &order.join(" ")).is_ok() {
                hands_on = listed(&control, wanted);
            }
        }
        if hands_on.len() == wanted.len() {
            return Ok(Parent { path: path.to_owned(), hands_on });
        }
        if hands_on.len() > best.as_ref().map_or(0, |best| best.hands_on.len()) {
            best = Some(Parent { path: path.to_owned(), hands_on });
        }
    }
    best.ok_or_else(|| {
        reason.unwrap_or_else(|| {
            format!(
                "no group between {} and {} hands on a controller",
                place.own.display(),
                place.top.display()
            )
        })
    })
}

/// With a group beside its own, the run would leave the limits that were set for the caller: take
/// over those that are tighter than the ones requested.
fn keep_own_limits(request: &Request, place: &Place, parent: &Path) -> Request {
    let mut kept = *request;
    let left = |path: &&Path| path.starts_with(parent) && *path != parent;
    for path in place.own.ancestors().take_while(left) {
        let read = |file: &str| std::fs::read_to_string(path.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        if let (Some(wanted), Some(own)) = (kept.memory, number("memory.max")) {
            kept.memory = Some(wanted.min(own));
        }
        if let (Some(wanted), Some(own)) = (kept.pids, number("pids.max")) {
            kept.pids = Some(wanted.min(own));
        }
        let own = read("cpu.max").and_then(|text| parse_cpu_max(&text));
        if let (Some(wanted), Some(own)) = (kept.cpu_percent, own) {
            kept.cpu_percent = Some(wanted.min(own));
        }
    }
    kept
}

/// `cpu.max` in percent of one CPU; `None` for no limit.
pub(super) fn parse_cpu_max(text: &str) -> Option<u32> {
    let (quota, period) = text.trim().split_once(' ')?;
    percent(quota.parse().ok()?, period.parse().ok()?)
}

fn percent(quota: u64, period: u64) -> Option<u32> {
    let percent = quota.checked_mul(100)?.checked_div(period)?;
    u32::try_from(percent.max(1)).ok()
}

/// Moves the calling process into the group of `fd`, one of [`Scope::procs_fds`].
///
/// The process must have a single thread, as it does between fork and exec. Async-signal-safe: one
/// write, no allocation.
///
/// Errors: `ENODEV` after the group was removed; `EACCES` if the process has taken another identity
/// than the one that made the scope and lacks the right to move itself.
pub fn enter(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::write(fd, b"0").map(drop)
}

/// Removes groups beside and beneath the caller's own whose supervisor is dead, killing what still
/// runs in them. Returns how many were removed.
///
/// Costs a directory listing per hierarchy; for `doctor` and for starts that ask for limits.
pub fn sweep_stale() -> usize {
    let (Ok(hierarchies), Ok(caller)) = (Hierarchies::read(), Owner::current()) else { return 0 };
    let mut parents: Vec<PathBuf> = Controller::ALL
        .into_iter()
        .filter_map(|controller| hierarchies.v1(controller).ok())
        .map(|place| place.own)
        .collect();
    if let Ok(place) = hierarchies.v2() {
        let visible = place.own.ancestors().take_while(|path| path.starts_with(&place.top));
        parents.extend(visible.map(Path::to_owned));
    }
    parents.dedup();
    let stale = parents.iter().flat_map(|parent| stale_under(parent, &caller));
    stale.filter(|path| clear(path, Duration::from_millis(500)).is_ok()).count()
}

impl Scope {
    /// The v2 group, for `CLONE_INTO_CGROUP` (Linux 5.7).
    pub fn dir_fd(&self) -> Option<BorrowedFd<'_>> {
        self.groups.iter().find(|group| group.v2).map(|group| group.dir.as_fd())
    }

    /// Descriptors to [`enter`] by: those of all groups, or, for a child that was born into
    /// [`Scope::dir_fd`], the others. They are closed on exec.
    ///
    /// Prefer to be born into the v2 group: moving a process there takes a lock that may have to
    /// wait for all CPUs, which costs 10 ms and more on an idle machine. Entering v1 groups does not.
    pub fn procs_fds(&self, born_into_v2: bool) -> impl Iterator<Item = BorrowedFd<'_>> {
        let rest = self.groups.iter().filter(move |group| !(born_into_v2 && group.v2));
        rest.map(|group| group.entry.as_fd())
    }

    /// Moves process `pid` with all its threads into every group.
    pub fn add(&self, pid: Pid) -> Result<(), Errno> {
        let text = pid.as_raw_nonzero().to_string();
        self.groups.iter().try_for_each(|group| write_at(&group.dir, "cgroup.procs", &text))
    }

    /// Whether `controller` is in force.
    pub fn limits(&self, controller: Controller) -> bool {
        self.groups.iter().any(|group| group.controllers.contains(&controller))
    }

    /// Sets other limits where there are such. What was set before one is refused stays set. Memory that
    /// is in use already is taken back as the kernel sees fit: by killing, where nothing else helps.
    pub fn change(&self, request: &Request) -> Result<(), String> {
        for group in &self.groups {
            let parent = group.path.parent().unwrap_or(&group.path);
            let request = match Hierarchies::read().and_then(|all| all.v2()) {
                Ok(place) if group.v2 => keep_own_limits(request, &place, parent),
                _ => *request,
            };
            for controller in request.controllers().filter(|c| group.controllers.contains(c)) {
                group.set(controller, &request, parent)?;
            }
        }
        Ok(())
    }

    /// Kills every process inside. Where the kernel can do that as one (v2, Linux 5.14) it does; else
    /// forks are stopped if a process limit is in force, and processes are killed until none is
    /// left, for at most a second.
    pub fn kill(&self) {
        for group in &self.groups {
            kill_all(&group.path, Duration::from_secs(1));
        }
    }

    /// Whether nothing runs inside.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| members(&group.path).is_empty())
    }

    /// Whether a process was killed because the memory limit was reached.
    pub fn oom_killed(&self) -> bool {
        self.usage().oom_kills.is_some_and(|kills| kills > 0)
    }

    /// What the run used so far.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for group in &self.groups {
            let has = |controller| group.controllers.contains(&controller);
            if has(Controller::Memory) {
                let (peak, events) = if group.v2 {
                    ("memory.peak", "memory.events")
                } else {
                    ("memory.max_usage_in_bytes", "memory.oom_control")
                };
                usage.memory_peak = group.read(peak).and_then(|text| text.trim().parse().ok());
                usage.oom_kills = group.read(events).and_then(|text| keyed(&text, "oom_kill"));
            }
            if has(Controller::Pids) {
                usage.forks_refused =
                    group.read("pids.events").and_then(|text| keyed(&text, "max"));
            }
            if group.v2 {
                let spent = group.read("cpu.stat").and_then(|text| keyed(&text, "usage_usec"));
                usage.cpu_time = spent.map(Duration::from_micros).or(usage.cpu_time);
            } else if has(Controller::Cpu) {
                // Only where cpuacct is mounted together with cpu, as it usually is.
                let spent = group.read("cpuacct.usage").and_then(|text| text.trim().parse().ok());
                usage.cpu_time = usage.cpu_time.or(spent.map(Duration::from_nanos));
            }
        }
        usage
    }

    /// Kills what is left inside and removes the groups, waiting up to five seconds for the kernel to
    /// empty them. Dropping the scope does the same and loses the error.
    pub fn remove(mut self) -> Result<(), Errno> {
        let mut result = Ok(());
        for group in self.groups.drain(..) {
            result = result.and(group.remove());
        }
        result
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // All at once before the first wait; `Group` removes itself.
        if !self.groups.is_empty() && !self.is_empty() {
            self.kill();
        }
    }
}

/// One group that was made here. Removed when dropped.
#[derive(Debug)]
struct Group {
    path: PathBuf,
    v2: bool,
    /// The directory, opened `O_PATH`.
    dir: OwnedFd,
    /// Where a process writes to get in.
    entry: OwnedFd,
    /// Limits in force here.
    controllers: Vec<Controller>,
    removed: bool,
}

impl Group {
    fn make(path: PathBuf, v2: bool) -> Result<Self, String> {
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
            .map_err(|errno| refusal("make a group in", path.parent().unwrap_or(&path), errno))?;
        let opened = (|| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(&path, flags, Mode::empty())?;
            // A process that moves itself through v1's `tasks` takes no global lock (see
            // `procs_fds`); a threaded v2 group would be needed for the same there.
            let file = if v2 { "cgroup.procs" } else { "tasks" };
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let entry = rustix::fs::openat(&dir, file, flags, Mode::empty())?;
            if v2 && read_at(&dir, "cgroup.type").is_some_and(|kind| kind.trim() != "domain") {
                // Beneath a threaded group: processes cannot enter.
                return Err(Errno::OPNOTSUPP);
            }
            Ok((dir, entry))
        })();
        match opened {
            Ok((dir, entry)) => {
                Ok(Self { path, v2, dir, entry, controllers: Vec::new(), removed: false })
            }
            Err(errno) => {
                let _ = rustix::fs::rmdir(&path);
                Err(refusal("use the group", &path, errno))
            }
        }
    }

    /// Sets the limit of `controller`. `parent` is the group above.
    fn limit(
        &mut self,
        controller: Controller,
        request: &Request,
        parent: &Path,
    ) -> Result<(), String> {
        self.set(controller, request, parent)?;
        self.controllers.push(controller);
        Ok(())
    }

    fn set(&self, controller: Controller, request: &Request, parent: &Path) -> Result<(), String> {
        let amount = request.amount(controller);
        let write = |file: &str, value: &str| {
            write_at(&self.dir, file, value)
                .map_err(|errno| refusal("write", &self.path.join(file), errno))
        };
        // Present only where the kernel accounts swap.
        let write_if_present = |file: &str, value: &str| match write_at(&self.dir, file, value) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(refusal("write", &self.path.join(file), errno)),
        };
        match (controller, self.v2) {
            (Controller::Memory, true) => {
                write("memory.max", &amount.to_string())?;
                write_if_present("memory.swap.max", "0")?;
                // One process killed leaves a tree in a state nobody tests: kill all (Linux 4.19).
                write_if_present("memory.oom.group", "1")?;
            }
            (Controller::Memory, false) => {
                // More than both together may be, where that is less by now: it is raised first.
                let text = amount.to_string();
                if write_at(&self.dir, "memory.limit_in_bytes", &text) == Err(Errno::INVAL) {
                    write_if_present("memory.memsw.limit_in_bytes", &text)?;
                }
                write("memory.limit_in_bytes", &text)?;
                if !write_if_present("memory.memsw.limit_in_bytes", &amount.to_string())? {
                    write_if_present("memory.swappiness", "0")?;
                }
            }
            (Controller::Cpu, true) => {
                write("cpu.max", &format!("{} {CPU_PERIOD}", amount * CPU_PERIOD / 100))?;
            }
            (Controller::Cpu, false) => {
                write("cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
                let quota = (amount * CPU_PERIOD / 100).to_string();
                match write_at(&self.dir, "cpu.cfs_quota_us", &quota) {
                    // v1 refuses more than the parent has. Then the parent's limit holds already.
                    Err(Errno::INVAL) if v1_cpu_percent(parent).is_some_and(|p| p <= amount) => {}
                    written => written.map_err(|errno| {
                        refusal("write", &self.path.join("cpu.cfs_quota_us"), errno)
                    })?,
                }
            }
            (Controller::Pids, _) => write("pids.max", &amount.to_string())?,
        }
        Ok(())
    }

    fn read(&self, file: &str) -> Option<String> {
        read_at(&self.dir, file)
    }

    fn remove(mut self) -> Result<(), Errno> {
        self.removed = true;
        clear(&self.path, REMOVE_PATIENCE)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.removed {
            let _ = clear(&self.path, REMOVE_PATIENCE);
        }
    }
}

impl Request {
    /// The limit of `controller`, 0 if there is none.
    fn amount(&self, controller: Controller) -> u64 {
        match controller {
            Controller::Memory => self.memory.unwrap_or(0),
            Controller::Cpu => self.cpu_percent.unwrap_or(0).into(),
            Controller::Pids => self.pids.unwrap_or(0),
        }
    }
}

fn v1_cpu_percent(group: &Path) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
    };
    // A quota of -1 is none, and does not parse.
    percent(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?).map(u64::from)
}

/// Removes the group at `path` and groups made inside it, killing what runs there, and waits for
/// the kernel for at most `patience`.
fn clear(path: &Path, patience: Duration) -> Result<(), Errno> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let errno = match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno @ (Errno::BUSY | Errno::NOTEMPTY | Errno::AGAIN | Errno::INTR)) => errno,
            Err(errno) => return Err(errno),
        };
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(errno);
        }
        kill_all(path, pause);
        if let Ok(entries) = std::fs::read_dir(path) {
            for entry in entries.filter_map(Result::ok) {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let _ = clear(&entry.path(), left);
                }
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Kills what runs in the group at `path`: as one where the kernel can, else one by one until none is
/// left or `patience` is over.
fn kill_all(path: &Path, patience: Duration) {
    if write_at(CWD, path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    // Stops forks, if there is a process limit here.
    let _ = write_at(CWD, path.join("pids.max"), "0");
    let start = Instant::now();
    loop {
        let pids = members(path);
        if pids.is_empty() {
            return;
        }
        // An id may change hands between reading and killing. Hold the processes first, then kill
        // those that are still listed: they are the ones held.
        let held: Vec<(Pid, OwnedFd)> = pids
            .into_iter()
            .filter_map(|pid| {
                Some((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?))
            })
            .collect();
        let still = members(path);
        for (_, process) in held.iter().filter(|(pid, _)| still.contains(pid)) {
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
        if start.elapsed() >= patience {
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Processes in the group at `path` that can be named from here.
pub(super) fn members(path: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of a PID namespace outside the caller's.
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

/// Whether the group at `path` has no processes of its own, not even ones that cannot be named.
pub(super) fn is_unused(path: &Path) -> bool {
    std::fs::read(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
}

/// The value after `key` in lines of `key value`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Those of `wanted` that the file at `path` names.
fn listed(path: &Path, wanted: &[Controller]) -> Vec<Controller> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let named = |c: &Controller| text.split_ascii_whitespace().any(|word| word == c.name());
    wanted.iter().copied().filter(named).collect()
}

pub(super) fn may_write(path: &Path) -> Result<(), Errno> {
    rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)
}

pub(super) fn write_at(
    dir: impl AsFd,
    file: impl rustix::path::Arg,
    text: &str,
) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, file, flags, Mode::empty())?;
    rustix::io::write(fd, text.as_bytes()).map(drop)
}

fn read_at(dir: impl AsFd, file: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, file, flags, Mode::empty()).ok()?;
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text).ok()?;
    Some(text)
}

pub(super) fn refusal(what: &str, path: &Path, errno: Errno) -> String {
    // Without the number that std appends, and in our style.
    let cause = std::io::Error::from(errno).to_string();
    let cause = cause.split(" (os error").next().unwrap_or_default().to_lowercase();
    format!("cannot {what} {}: {cause}", path.display())
}
