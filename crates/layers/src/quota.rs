//! A limit for what a layer holds, and a floor for what stays free on the disk, without privilege.
//!
//! The kernel's own quotas need privilege to set, so a thread of the supervisor watches: it looks at the
//! free space of the file system every few milliseconds (one call, whatever the layer holds), at the
//! sooner the less is left, and counts the layer whenever the free space has shrunk by what was left,
//! besides counting it from time to time. Over the limit, the run ends.
//!
//! What a run can hold above its limit ("slack"): what it writes between two looks and while it is
//! killed. The looks come at a rate at which a program that writes [`WRITE_RATE`] bytes a second gains
//! less than a look's time; `fallocate`, which takes any amount in one call, is refused by the filter
//! of system calls where there is a quota. If other programs free space at the same time, the layer is
//! only counted from time to time, and the slack is what can be written in between. Files that are
//! removed but still open are counted through `/proc` when the free space says that something is
//! missing. Whatever is miscounted, the floor holds: it is about the disk and nothing else.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringfence_sys::fd;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::{Error, Quota, Session, copy, object, shown};

/// Bytes that stay free on the file system of the store.
pub const FREE_FLOOR: u64 = 256 << 20;
/// Bytes that the fastest disk takes in a second; only how often the watch looks depends on it.
const WRITE_RATE: u64 = 4 << 30;
/// Names that the fastest file system makes in a second.
const CREATE_RATE: u64 = 500_000;
/// Time between two looks at the free space, at most and at least.
const SELDOM: Duration = Duration::from_millis(100);
const OFTEN: Duration = Duration::from_millis(1);
/// How long a run without a limit of its own may last before its disk is watched.
pub const HEAD_START: Duration = Duration::from_millis(3);
/// Time between two counts that nothing asked for, at least; and this many times what one takes.
const COUNT_EACH: Duration = Duration::from_millis(100);
const COUNT_SHARE: u32 = 10;
/// The same for looking for removed files that are open.
const OPEN_EACH: Duration = Duration::from_millis(250);
/// Counts that may fail one after the other before the run ends: what cannot be counted is not held.
const MAX_FAILED: u32 = 20;
/// Processes and descriptors looked at.
const MAX_PROCESSES: usize = 65_536;
const OVERLAYFS: u64 = 0x794c_7630;

/// Why a run was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exceeded {
    Bytes {
        used: u64,
        limit: u64,
    },
    Inodes {
        used: u64,
        limit: u64,
    },
    Free {
        left: u64,
        floor: u64,
    },
    /// Its size could not be found out.
    Uncounted(String),
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        match self {
            Self::Bytes { used, limit } => write!(
                f,
                "disk quota: the layer holds {} MiB, its quota is {} MiB",
                mib(*used),
                mib(*limit)
            ),
            Self::Inodes { used, limit } => {
                write!(
                    f,
                    "disk quota: the layer holds {used} files and directories, its quota is {limit}"
                )
            }
            Self::Free { left, floor } => write!(
                f,
                "disk quota: {} MiB are free on the disk of the layer, {} MiB must stay so",
                mib(*left),
                mib(*floor)
            ),
            Self::Uncounted(why) => {
                write!(f, "disk quota: cannot count what the layer holds: {why}")
            }
        }
    }
}

/// What deltas take on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Refuses what would begin with too little space.
pub fn refuse_full(dir: &Path, floor: u64) -> Result<(), Error> {
    let left = free(dir).map_err(Error::os("look at", dir))?;
    if left.bytes >= floor {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{}: {} MiB are free on its disk, and {} MiB must stay so; discard layers that are not needed, \
         or move the store by RINGFENCE_STATE",
        shown(dir),
        left.bytes >> 20,
        floor >> 20
    )))
}

/// What is free to the caller.
fn free(dir: &Path) -> Result<Usage, Errno> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(Usage { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes: stat.f_favail })
}

/// Counts trees; a file with several names once.
pub fn usage<'a>(trees: impl Iterator<Item = &'a Path>, stop: &AtomicBool) -> Result<Usage, Errno> {
    let mut count = Count { usage: Usage::default(), seen: HashSet::new(), stop };
    for tree in trees {
        match fd::open_absolute(tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC) {
            Ok(root) => count.tree(&root)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(count.usage)
}

struct Count<'a> {
    usage: Usage,
    seen: HashSet<(u64, u64)>,
    stop: &'a AtomicBool,
}

impl Count<'_> {
    /// What a command closes, even to itself, is counted all the same: not being looked at would be a
    /// way around the quota.
    fn tree(&mut self, root: &OwnedFd) -> Result<(), Errno> {
        // Paths and not descriptors: a tree can be deeper than there are descriptors.
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Errno::CANCELED);
            }
            let place = match copy::open_beneath(root.as_fd(), &path) {
                Ok(place) => place,
                // Removed or replaced meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(errno),
            };
            let stat = rustix::fs::fstat(&place)?;
            self.add(&stat);
            self.names(&place, &path, &mut todo)?;
        }
        Ok(())
    }

    fn names(
        &mut self,
        place: &OwnedFd,
        path: &Path,
        todo: &mut Vec<PathBuf>,
    ) -> Result<(), Errno> {
        let listed = copy::reopen(place, OFlags::RDONLY | OFlags::DIRECTORY, false)?;
        for entry in rustix::fs::Dir::new(listed)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = OsStr::from_bytes(name.to_bytes());
            match object::stat(place.as_fd(), name) {
                Ok(stat) if fd::kind(&stat) == FileType::Directory => {
                    todo.push(path.join(name));
                }
                Ok(stat) => self.add(&stat),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn add(&mut self, stat: &rustix::fs::Stat) {
        let shared = fd::kind(stat) != FileType::Directory && fd::links(stat) > 1;
        if shared && !self.seen.insert(fd::id(stat)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += stat.st_blocks as u64 * 512;
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    wake: (Mutex<bool>, Condvar),
    exceeded: Mutex<Option<Exceeded>>,
}

/// Watches the layer of a run.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What is watched.
#[derive(Debug)]
pub struct Watched {
    /// Trees that do not change.
    pub sealed: Vec<PathBuf>,
    /// Trees that the run writes to, all on one file system.
    pub open: Vec<PathBuf>,
    pub quota: Quota,
    pub floor: u64,
    /// The first process of the sandbox, whose descendants may hold removed files open.
    pub init: Option<u32>,
}

impl Watched {
    pub fn of(session: &Session, quota: Quota, init: Option<u32>) -> Self {
        let mounts = session.mounts();
        Self {
            // The last one is the host's own directory.
            sealed: mounts
                .iter()
                .flat_map(|m| m.lower.iter().take(m.lower.len().saturating_sub(1)))
                .cloned()
                .collect(),
            open: mounts.iter().map(|m| m.upper.clone()).collect(),
            quota,
            floor: FREE_FLOOR,
            init,
        }
    }
}

impl Watch {
    /// `end` is called once, on another thread, when the run must end.
    pub fn start(
        what: Watched,
        end: impl FnOnce(&Exceeded) + Send + 'static,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("quota".into())
            .spawn(move || {
                if let Some(exceeded) = Watcher::new(&what, &ours).watch() {
                    end(&exceeded);
                    *ours.exceeded.lock().unwrap_or_else(PoisonError::into_inner) = Some(exceeded);
                }
            })
            .map_err(Error::io("start a thread for", "the quota"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends the watch when the run has ended. Says why the run had to end, if it had to.
    pub fn stop(mut self) -> Option<Exceeded> {
        self.end();
        self.shared.exceeded.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        *self.shared.wake.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.wake.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

struct Watcher<'a> {
    what: &'a Watched,
    shared: &'a Shared,
    sealed: Usage,
    /// Of the last count, and the free space before it.
    used: Usage,
    at: Usage,
    /// Of the first.
    first: Option<(Usage, Usage)>,
    counted: Option<(Instant, Duration)>,
    looked: Option<(Instant, Duration)>,
    failed: u32,
}

impl<'a> Watcher<'a> {
    fn new(what: &'a Watched, shared: &'a Shared) -> Self {
        Self {
            what,
            shared,
            sealed: Usage::default(),
            used: Usage::default(),
            at: Usage::default(),
            first: None,
            counted: None,
            looked: None,
            failed: 0,
        }
    }

    fn watch(mut self) -> Option<Exceeded> {
        let place = self.what.open.first()?;
        let quota = self.what.quota;
        let counts = quota.bytes.is_some() || quota.inodes.is_some();
        if counts {
            match usage(self.what.sealed.iter().map(PathBuf::as_path), &self.shared.stop) {
                Ok(sealed) => self.sealed = sealed,
                Err(Errno::CANCELED) => return None,
                Err(errno) => return Some(Exceeded::Uncounted(errno.to_string())),
            }
        }
        loop {
            let now = match free(place) {
                Ok(now) => now,
                Err(errno) => return Some(Exceeded::Uncounted(errno.to_string())),
            };
            if now.bytes < self.what.floor {
                return Some(Exceeded::Free { left: now.bytes, floor: self.what.floor });
            }
            if counts
                && self.is_due(now)
                && let Some(exceeded) = self.count(now)
            {
                return Some(exceeded);
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            self.sleep(now);
        }
    }

    /// What is left of the quota by the last count; `None`: no limit.
    fn left(&self) -> (Option<u64>, Option<u64>) {
        let left = |limit: Option<u64>, used: u64| limit.map(|limit| limit.saturating_sub(used));
        (
            left(self.what.quota.bytes, self.used.bytes),
            left(self.what.quota.inodes, self.used.inodes),
        )
    }

    fn is_due(&self, now: Usage) -> bool {
        let Some((at, took)) = self.counted else { return true };
        let (bytes, inodes) = self.left();
        let gone = |left: Option<u64>, before: u64, now: u64| {
            left.is_some_and(|left| before.saturating_sub(now) > left)
        };
        // The free space shrank by more than was left, whoever did it.
        gone(bytes, self.at.bytes, now.bytes)
            || gone(inodes, self.at.inodes, now.inodes)
            // Exactly as before: nothing was written, or only what others freed to the byte.
            || (now != self.at && at.elapsed() >= COUNT_EACH.max(took * COUNT_SHARE))
            || self.failed > 0
    }

    fn count(&mut self, now: Usage) -> Option<Exceeded> {
        let begun = Instant::now();
        let open = match usage(self.what.open.iter().map(PathBuf::as_path), &self.shared.stop) {
            Ok(open) => open,
            Err(Errno::CANCELED) => return None,
            Err(errno) => {
                self.failed += 1;
                return (self.failed > MAX_FAILED).then(|| Exceeded::Uncounted(errno.to_string()));
            }
        };
        self.failed = 0;
        self.counted = Some((begun, begun.elapsed()));
        self.at = now;
        self.used = Usage {
            bytes: self.sealed.bytes + open.bytes,
            inodes: self.sealed.inodes + open.inodes,
        };
        let (first_free, first_used) = *self.first.get_or_insert((now, self.used));
        // Space that went since the run began and is in no file of the layer.
        let missing = first_free
            .bytes
            .saturating_sub(now.bytes)
            .saturating_sub(self.used.bytes.saturating_sub(first_used.bytes));
        if self.left().0.is_some_and(|left| missing > left) {
            // Found or not, it is looked for again at the next count.
            self.used.bytes += self.removed_but_open();
        }
        let over = |used: u64, limit: Option<u64>| limit.filter(|limit| used > *limit);
        if let Some(limit) = over(self.used.bytes, self.what.quota.bytes) {
            return Some(Exceeded::Bytes { used: self.used.bytes, limit });
        }
        if let Some(limit) = over(self.used.inodes, self.what.quota.inodes) {
            return Some(Exceeded::Inodes { used: self.used.inodes, limit });
        }
        None
    }

    /// Bytes of files without a name that processes of the sandbox hold open.
    fn removed_but_open(&mut self) -> u64 {
        let Some(init) = self.what.init else { return 0 };
        if let Some((at, took)) = self.looked
            && at.elapsed() < OPEN_EACH.max(took * COUNT_SHARE)
        {
            return 0;
        }
        let begun = Instant::now();
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for pid in descendants(init) {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in fds.flatten().take(MAX_PROCESSES) {
                let path = entry.path();
                let Ok(stat) = rustix::fs::stat(&path) else { continue };
                if fd::links(&stat) > 0 || fd::kind(&stat) != FileType::RegularFile {
                    continue;
                }
                // Not what lies in memory.
                let Ok(on) = rustix::fs::statfs(&path) else { continue };
                if on.f_type as u64 == OVERLAYFS && seen.insert(fd::id(&stat)) {
                    bytes += stat.st_blocks as u64 * 512;
                }
            }
        }
        self.looked = Some((begun, begun.elapsed()));
        bytes
    }

    fn sleep(&self, now: Usage) {
        let above = now.bytes.saturating_sub(self.what.floor);
        let (bytes, inodes) = self.left();
        let by_bytes = bytes.map_or(above, |left| left.min(above));
        let mut time = Duration::from_micros(by_bytes / (WRITE_RATE / 1_000_000));
        if let Some(inodes) = inodes {
            time = time.min(Duration::from_micros(inodes.saturating_mul(1_000_000) / CREATE_RATE));
        }
        let time = time.clamp(OFTEN, SELDOM);
        let (stopped, changed) = (&self.shared.wake.0, &self.shared.wake.1);
        let stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if !*stopped {
            drop(changed.wait_timeout(stopped, time));
        }
    }
}

/// `init` and everything that descends from it; in a process namespace that is everything in it.
fn descendants(init: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    for entry in all.flatten().take(MAX_PROCESSES) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // "PID (NAME) STATE PARENT ...", and the name may hold anything.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|p| p.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![init];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests;
