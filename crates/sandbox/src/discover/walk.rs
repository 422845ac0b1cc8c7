//! One pass over the workspace: per-file patterns and repositories, by descriptor.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, RawDir, Stat};
use rustix::io::Errno;

use super::cache::{self, Again, Cached, Key, Line, Note, NoteKind, Record, Stamp, Store};
use super::fd;

/// Names looked at in one walk. A large monorepo with its dependencies has some hundred thousand;
/// a tree beyond this takes seconds and is better told than waited for.
pub const MAX_ENTRIES: u64 = 2_000_000;
/// Levels below the root. Tools break long before; a hostile tree can be deeper.
pub const MAX_DEPTH: usize = 1_000;
/// Bytes of all directory paths kept at once (a deep tree of long names makes each path long).
pub const MAX_PATH_BYTES: u64 = 256 << 20;
/// Threads, the caller's included: listing is limited by locks of the kernel beyond a few.
pub const MAX_THREADS: u32 = 8;
/// Directories walked before other threads are started: a small tree is done by then, and starting
/// a thread costs as much as listing ten directories.
const SERIAL_DIRECTORIES: usize = 64;
/// Directories whose stamps one thread checks before another is worth starting.
const SERIAL_STAMPS: usize = 1_024;
/// Fewer directories are walked as quickly as a cache is read, so none is written for them.
const CACHE_FROM: usize = 256;
/// A directory that changed this shortly before it was listed may change again without its ctime
/// moving: the kernel's clock for timestamps ticks every 1 to 10 ms.
const RACY: Duration = Duration::from_millis(50);
/// The same for file systems that keep whole seconds (both timestamps without a fraction).
const RACY_SECONDS: Duration = Duration::from_secs(2);
/// Local directories waiting in one thread before it shares with idle ones.
const SHARE_FROM: usize = 4;

/// File systems whose directory timestamps can be relied on: local, and kept by the kernel itself.
/// ext2/3/4, xfs, btrfs, tmpfs, overlayfs, f2fs, zfs, bcachefs.
const STAMPED: [u64; 8] = [
    0xEF53,
    0x5846_5342,
    0x9123_683E,
    0x0102_1994,
    0x794C_7630,
    0xF2F5_2010,
    0x2FC1_2FC1,
    0xCA45_1A4E,
];

/// What a matcher says of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No pattern names it; look below if it is a directory.
    Pass,
    /// Rule `rule` (the matcher's own numbering) names it. `descend`: look below a directory all the
    /// same, because other rules may name something deeper.
    Match { rule: u32, descend: bool },
    /// Not named, and nothing below can be.
    Skip,
}

/// A compiled set of patterns. Called from several threads.
pub trait Matcher: Sync {
    /// `path` is relative to the workspace, without leading or trailing `/`.
    fn verdict(&self, path: &[u8], is_dir: bool) -> Verdict;

    /// Changes whenever any verdict or rule number could change; part of the cache's key.
    fn fingerprint(&self) -> [u8; 16];
}

/// A name that matched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Relative to the workspace.
    pub path: PathBuf,
    pub rule: u32,
    pub is_dir: bool,
    /// The name is a link; what it leads to was not looked at.
    pub is_symlink: bool,
    /// A name of git's own (a branch may be called `server.key`): it lies in `refs` or `logs` of a `.git`
    /// directory, where nothing but hashes and messages are.
    pub is_ref: bool,
    /// Hard links; 1 for directories.
    pub nlink: u64,
    pub ino: u64,
    pub dev: u64,
    /// Other names of the same file in the workspace, which matched nothing themselves.
    pub aliases: Vec<PathBuf>,
    /// Names of the same file that were not seen in the workspace.
    pub unseen: u64,
}

/// How a repository shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// The directory has an entry `.git`.
    DotGit,
    /// The directory holds `HEAD`, `objects` and `refs`.
    Bare,
}

/// A directory that git may take for a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryHint {
    /// Relative to the workspace; empty for the workspace itself.
    pub path: PathBuf,
    pub shape: Shape,
}

/// Which bound ended a walk early. What lies beyond is unknown: refuse, or say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Truncated {
    /// More than [`MAX_ENTRIES`] names.
    Entries,
    /// More than [`MAX_PATH_BYTES`] of directory paths.
    PathBytes,
    /// This directory lies deeper than [`MAX_DEPTH`].
    Depth(PathBuf),
}

impl std::fmt::Display for Truncated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entries => write!(f, "more than {MAX_ENTRIES} names"),
            Self::PathBytes => write!(f, "directory paths longer than {MAX_PATH_BYTES} bytes"),
            Self::Depth(path) => {
                write!(f, "more than {MAX_DEPTH} levels of directories at {}", path.display())
            }
        }
    }
}

/// How the answer came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub directories: u64,
    /// Directories that were listed in this walk (the others were as the cache had them).
    pub listed: u64,
    /// Names looked at in this walk.
    pub entries: u64,
    pub threads: u32,
    pub cache_read: bool,
    pub cache_written: bool,
}

/// What a walk found. Everything is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    pub matches: Vec<Found>,
    pub repositories: Vec<RepositoryHint>,
    /// Directories that could not be listed, with the reason: what they hold is unknown.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Directories on another device than their parent.
    pub mounts: Vec<PathBuf>,
    pub truncated: Option<Truncated>,
    pub statistics: Statistics,
}

/// How to walk.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalkOptions<'a> {
    /// Where to remember the walk (see [`super::cache_directory`]); `None`: nowhere.
    pub cache: Option<&'a Path>,
    /// Most threads, the calling one included; 0: as many as this process may use, at most
    /// `MAX_THREADS`.
    pub threads: u32,
}

/// Walks the directory `root`. Other threads are joined before this returns.
///
/// # Errors
/// Only when the root itself cannot be examined; everything else is part of the answer.
pub fn walk(
    root: BorrowedFd<'_>,
    matcher: &dyn Matcher,
    options: &WalkOptions<'_>,
) -> std::io::Result<Walk> {
    let root_stat = rustix::fs::fstat(root)?;
    if fd::kind(&root_stat) != FileType::Directory {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    let threads = match options.threads {
        0 => usable_processors().min(MAX_THREADS),
        asked => asked.min(MAX_THREADS),
    };
    let stamped = rustix::fs::fstatfs(root).is_ok_and(|s| STAMPED.contains(&(s.f_type as u64)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let walker = Walker {
        root,
        root_dev: fd::id(&root_stat).0,
        matcher,
        settled: stamped.then(|| now.saturating_sub(RACY)),
        settled_seconds: now.saturating_sub(RACY_SECONDS),
        threads,
        entries: AtomicU64::new(0),
        path_bytes: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        truncated: Mutex::new(None),
    };
    let key =
        Key { dev: walker.root_dev, ino: fd::id(&root_stat).1, fingerprint: matcher.fingerprint() };
    let cache_path = options.cache.filter(|_| stamped);
    let store = cache_path.and_then(|path| Store::open(path, &root_stat));
    let bytes = store.as_ref().and_then(|store| store.load(&key));
    let cached = bytes.as_deref().and_then(cache::decode).unwrap_or_default();

    let cache_read = !cached.is_empty();
    let mut tree = if cache_read { Tree::renewed(&walker, cached) } else { Tree::fresh(&walker) };
    tree.find_aliases(&walker);
    let truncated = walker.truncated.lock().unwrap_or_else(PoisonError::into_inner).take();
    let worth = tree.changed && truncated.is_none() && tree.directories() >= CACHE_FROM;
    let cache_written = worth
        && cache_path
            .and_then(|path| store.or_else(|| Store::create(path, &root_stat)))
            .and_then(|store| store.save(&key, cache::encode(&key, &tree.lines())?))
            .is_some();
    let statistics = Statistics {
        directories: tree.directories() as u64,
        listed: tree.new.len() as u64,
        entries: walker.entries.load(Ordering::Relaxed),
        threads: tree.threads,
        cache_read,
        cache_written,
    };
    Ok(tree.answer(walker.root_dev, truncated, statistics))
}

/// Processors that this process may use; the standard library would read cgroup files for it.
fn usable_processors() -> u32 {
    rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count()).max(1)
}

/// What all threads of one walk share.
struct Walker<'a> {
    root: BorrowedFd<'a>,
    root_dev: u64,
    matcher: &'a dyn Matcher,
    /// A ctime before this (since the epoch) can be relied on; `None`: none can.
    settled: Option<Duration>,
    settled_seconds: Duration,
    threads: u32,
    entries: AtomicU64,
    path_bytes: AtomicU64,
    stop: AtomicBool,
    truncated: Mutex<Option<Truncated>>,
}

/// A directory to list.
#[derive(Debug)]
struct Task {
    path: Vec<u8>,
    parent_dev: u64,
    /// Its directories may be in the cache and are looked at on their own then.
    again: bool,
}

/// What one thread produced.
#[derive(Default)]
struct Produced {
    records: Vec<Record>,
    /// Cached directories that still are directories of a parent that was listed again.
    present: Vec<usize>,
}

/// Cached directories, for a walk that renews some of them.
#[derive(Clone, Copy, Default)]
struct Known<'a> {
    cached: &'a [Cached<'a>],
    states: &'a [State],
    /// Inode numbers of matched files with several names, and how many.
    shared: Option<&'a HashMap<u64, u64>>,
}

impl Known<'_> {
    fn index(&self, path: &[u8]) -> Option<usize> {
        let index = self.cached.binary_search_by(|c| c.path.to_bytes().cmp(path)).ok()?;
        (self.states[index] != State::Gone).then_some(index)
    }
}

/// What became of a cached directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Same,
    Changed,
    Gone,
}

impl Walker<'_> {
    fn truncate(&self, why: Truncated) {
        self.stop.store(true, Ordering::Relaxed);
        let mut slot = self.truncated.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(why);
    }

    /// Whether a directory with this stat can be recognised as unchanged later.
    fn again(&self, stat: &Stat) -> Again {
        let stamp = Stamp::of(stat);
        let coarse = stamp.mtime_nsec == 0 && stamp.ctime_nsec == 0;
        let ctime = Duration::new(u64::try_from(stamp.ctime).unwrap_or(0), stamp.ctime_nsec);
        match self.settled {
            Some(settled) if ctime < settled && (!coarse || ctime < self.settled_seconds) => {
                Again::Stamp(stamp)
            }
            _ => Again::List,
        }
    }

    /// Lists one directory, appends its record, and puts its directories on `tasks`.
    fn directory(
        &self,
        task: Task,
        known: Known<'_>,
        scratch: &mut Scratch,
        tasks: &mut Vec<Task>,
        produced: &mut Produced,
    ) {
        let opened = fd::open_beneath(self.root, &task.path, fd::DIRECTORY)
            .and_then(|dir| rustix::fs::fstat(&dir).map(|stat| (dir, stat)));
        let mut notes = Vec::new();
        let (dev, again) = match opened {
            Ok((dir, stat)) => {
                let (dev, _) = fd::id(&stat);
                let mut listing =
                    Listing { walker: self, known, task: &task, dev, tasks, produced, notes };
                let listed = listing.read(dir.as_fd(), scratch);
                notes = listing.notes;
                let mut again = self.again(&stat);
                if let Err(errno) = listed {
                    notes.push(Note::of_directory(NoteKind::Unreadable(errno)));
                    again = Again::Tree;
                }
                (dev, again)
            }
            // Removed or replaced since its parent was listed: no longer a directory of the tree.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return,
            Err(errno) => {
                notes.push(Note::of_directory(NoteKind::Unreadable(errno)));
                (task.parent_dev, Again::Tree)
            }
        };
        if dev != task.parent_dev {
            notes.push(Note::of_directory(NoteKind::Mount));
        }
        // Another device has timestamps of its own making: its topmost directory is remembered as
        // "walk this again", what lies below is not remembered.
        let foreign = dev != self.root_dev;
        produced.records.push(Record {
            path: task.path,
            again: if foreign { Again::Tree } else { again },
            foreign: foreign && task.parent_dev != self.root_dev,
            notes,
        });
    }

    /// Walks from `tasks` until nothing is left; the flag says how many threads took part.
    fn run(&self, mut tasks: Vec<Task>, known: Known<'_>) -> (Produced, u32) {
        let mut produced = Produced::default();
        let mut scratch = Scratch::default();
        let mut done = 0;
        while let Some(task) = tasks.pop() {
            if self.stop.load(Ordering::Relaxed) {
                return (produced, 1);
            }
            self.directory(task, known, &mut scratch, &mut tasks, &mut produced);
            done += 1;
            if done == SERIAL_DIRECTORIES && self.threads > 1 {
                break;
            }
        }
        if tasks.is_empty() {
            return (produced, 1);
        }
        let pool = Pool::new(tasks, self.threads);
        let others: Vec<Produced> = std::thread::scope(|scope| {
            let handles: Vec<_> = (1..self.threads)
                .map_while(|_| {
                    pool.join();
                    let work = || self.work(&pool, known, Scratch::default(), Produced::default());
                    let handle = std::thread::Builder::new().spawn_scoped(scope, work);
                    if handle.is_err() {
                        pool.leave();
                    }
                    handle.ok()
                })
                .collect();
            pool.join();
            let mine = std::mem::take(&mut produced);
            let mut all = vec![self.work(&pool, known, scratch, mine)];
            for handle in handles {
                match handle.join() {
                    Ok(theirs) => all.push(theirs),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        });
        let threads = others.len() as u32;
        for other in others {
            produced.records.extend(other.records);
            produced.present.extend(other.present);
        }
        (produced, threads)
    }

    fn work(
        &self,
        pool: &Pool,
        known: Known<'_>,
        mut scratch: Scratch,
        mut produced: Produced,
    ) -> Produced {
        let mut tasks = Vec::new();
        while pool.take(&mut tasks) {
            while let Some(task) = tasks.pop() {
                if self.stop.load(Ordering::Relaxed) {
                    tasks.clear();
                    pool.abandon();
                    break;
                }
                self.directory(task, known, &mut scratch, &mut tasks, &mut produced);
                pool.share(&mut tasks);
            }
        }
        produced
    }

    /// Looks at every cached directory's stamp.
    fn check(&self, cached: &[Cached<'_>]) -> Vec<State> {
        let one = |cached: &Cached<'_>| {
            let Again::Stamp(stamp) = cached.again else { return State::Changed };
            let path = if cached.path.is_empty() { c"." } else { cached.path };
            match fd::stat_name(self.root, path) {
                Ok(stat) if fd::id(&stat).0 == self.root_dev && Stamp::of(&stat) == stamp => {
                    State::Same
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => State::Gone,
                _ => State::Changed,
            }
        };
        let parts = (cached.len() / SERIAL_STAMPS).clamp(1, self.threads as usize);
        if parts == 1 {
            return cached.iter().map(one).collect();
        }
        let mut chunks = cached.chunks(cached.len().div_ceil(parts));
        let first = chunks.next().unwrap_or_default();
        std::thread::scope(|scope| {
            let handles: Vec<_> = chunks
                .map(|chunk| {
                    let work = move || chunk.iter().map(one).collect::<Vec<_>>();
                    (chunk, std::thread::Builder::new().spawn_scoped(scope, work))
                })
                .collect();
            let mut states: Vec<State> = first.iter().map(one).collect();
            for (chunk, handle) in handles {
                match handle.map(std::thread::ScopedJoinHandle::join) {
                    Ok(Ok(part)) => states.extend(part),
                    Ok(Err(panic)) => std::panic::resume_unwind(panic),
                    // No thread to be had: the work remains.
                    Err(_) => states.extend(chunk.iter().map(one)),
                }
            }
            states
        })
    }
}

/// Buffers that each thread uses again and again.
struct Scratch {
    names: Vec<u8>,
    path: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { names: Vec::with_capacity(fd::LIST_BUFFER), path: Vec::new() }
    }
}

/// One directory while it is listed.
struct Listing<'a, 'w> {
    walker: &'a Walker<'w>,
    known: Known<'a>,
    task: &'a Task,
    dev: u64,
    tasks: &'a mut Vec<Task>,
    produced: &'a mut Produced,
    notes: Vec<Note>,
}

impl Listing<'_, '_> {
    fn read(&mut self, dir: BorrowedFd<'_>, scratch: &mut Scratch) -> Result<(), Errno> {
        let path = &mut scratch.path;
        path.clear();
        path.extend_from_slice(&self.task.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        let base = path.len();
        scratch.names.clear();
        let mut raw = RawDir::new(dir, scratch.names.spare_capacity_mut());
        let mut bare = BareShape::default();
        let mut count = 0_u64;
        let mut result = Ok(());
        while let Some(entry) = raw.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    result = Err(errno);
                    break;
                }
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            count += 1;
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                // Some file systems do not say; a name that is gone meanwhile is no name.
                match fd::stat_name(dir, name) {
                    Ok(stat) => kind = fd::kind(&stat),
                    Err(_) => continue,
                }
            }
            path.truncate(base);
            path.extend_from_slice(name);
            bare.see(name, kind);
            if name.eq_ignore_ascii_case(b".git") {
                self.notes.push(Note::of_directory(NoteKind::DotGit));
            }
            self.entry(dir, name, kind, entry.ino(), path);
        }
        let is_dot_git = self.task.path.rsplit(|&b| b == b'/').next() == Some(b".git");
        if bare.is_complete() && !is_dot_git {
            self.notes.push(Note::of_directory(NoteKind::Bare));
        }
        let before = self.walker.entries.fetch_add(count, Ordering::Relaxed);
        if before + count > MAX_ENTRIES {
            self.walker.truncate(Truncated::Entries);
        }
        result
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &[u8], kind: FileType, ino: u64, path: &[u8]) {
        let is_dir = kind == FileType::Directory;
        let is_symlink = kind == FileType::Symlink;
        let matcher = self.walker.matcher;
        let mut verdict = matcher.verdict(path, is_dir);
        if is_symlink && !matches!(verdict, Verdict::Match { .. }) {
            // What a link leads to is not looked at, so it may stand for a directory too.
            verdict = matcher.verdict(path, true);
        }
        let mut descend = is_dir;
        match verdict {
            Verdict::Pass => {}
            Verdict::Skip => descend = false,
            Verdict::Match { rule, descend: below } => {
                descend &= below;
                let stat = if is_dir { None } else { fd::stat_name(dir, name).ok() };
                let (dev, ino) = stat.map_or((self.dev, ino), |s| fd::id(&s));
                self.notes.push(Note {
                    kind: NoteKind::Match { rule, is_dir, is_symlink },
                    name: name.to_vec(),
                    ino,
                    dev,
                    nlink: stat.map_or(1, |s| fd::links(&s)),
                });
            }
        }
        let unmatched = !is_dir && !matches!(verdict, Verdict::Match { .. });
        if unmatched && self.known.shared.is_some_and(|shared| shared.contains_key(&ino)) {
            self.notes.push(Note {
                kind: NoteKind::Alias,
                name: name.to_vec(),
                ino,
                dev: self.dev,
                nlink: 0,
            });
        }
        if descend {
            self.descend(path);
        }
    }

    fn descend(&mut self, path: &[u8]) {
        if self.task.again
            && let Some(index) = self.known.index(path)
        {
            self.produced.present.push(index);
            return;
        }
        let walker = self.walker;
        if path.split(|&b| b == b'/').count() > MAX_DEPTH {
            walker.truncate(Truncated::Depth(to_path(path)));
            return;
        }
        let length = path.len() as u64;
        if walker.path_bytes.fetch_add(length, Ordering::Relaxed) + length > MAX_PATH_BYTES {
            walker.truncate(Truncated::PathBytes);
            return;
        }
        self.tasks.push(Task { path: path.to_vec(), parent_dev: self.dev, again: false });
    }
}

/// Whether what lies in this directory are references of a repository.
pub(super) fn is_ref(directory: &[u8]) -> bool {
    let mut parts = directory.split(|&b| b == b'/');
    parts.by_ref().any(|part| part == b".git")
        && parts.any(|part| matches!(part, b"refs" | b"logs"))
}

/// Which parts of a bare repository a directory has.
#[derive(Default)]
struct BareShape {
    head: bool,
    objects: bool,
    refs: bool,
}

impl BareShape {
    fn see(&mut self, name: &[u8], kind: FileType) {
        match name {
            b"HEAD" => self.head = kind != FileType::Directory,
            b"objects" => self.objects = matches!(kind, FileType::Directory | FileType::Symlink),
            b"refs" => self.refs = matches!(kind, FileType::Directory | FileType::Symlink),
            _ => {}
        }
    }

    fn is_complete(&self) -> bool {
        self.head && self.objects && self.refs
    }
}

impl Note {
    fn of_directory(kind: NoteKind) -> Self {
        Self { kind, name: Vec::new(), ino: 0, dev: 0, nlink: 0 }
    }
}

/// Directories to be listed, for several threads.
struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
    idle: AtomicUsize,
}

struct Queue {
    tasks: Vec<Task>,
    /// Threads that may still add tasks.
    busy: usize,
    share: usize,
}

impl Pool {
    fn new(tasks: Vec<Task>, threads: u32) -> Self {
        let queue = Queue { tasks, busy: 0, share: threads as usize };
        Self { queue: Mutex::new(queue), wake: Condvar::new(), idle: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self) {
        self.lock().busy += 1;
    }

    fn leave(&self) {
        self.lock().busy -= 1;
        self.wake.notify_all();
    }

    fn abandon(&self) {
        self.lock().tasks.clear();
    }

    /// Waits for work; false when there is none and none can come.
    fn take(&self, into: &mut Vec<Task>) -> bool {
        let mut queue = self.lock();
        queue.busy -= 1;
        self.idle.fetch_add(1, Ordering::Relaxed);
        loop {
            if !queue.tasks.is_empty() {
                let count = queue.tasks.len().div_ceil(queue.share);
                let from = queue.tasks.len() - count;
                into.extend(queue.tasks.drain(from..));
                queue.busy += 1;
                self.idle.fetch_sub(1, Ordering::Relaxed);
                return true;
            }
            if queue.busy == 0 {
                self.wake.notify_all();
                return false;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives half of the own tasks away when another thread has none.
    fn share(&self, tasks: &mut Vec<Task>) {
        if tasks.len() < SHARE_FROM || self.idle.load(Ordering::Relaxed) == 0 {
            return;
        }
        // The oldest are the nearest to the root and stand for the most work.
        let half = tasks.len() / 2;
        self.lock().tasks.extend(tasks.drain(..half));
        self.wake.notify_one();
    }
}

/// What is known of the whole tree: directories listed in this walk and those still as cached.
struct Tree<'a> {
    new: Vec<Record>,
    old: Vec<Cached<'a>>,
    /// Matched files that had several names when the cache was written: their other names are known.
    shared: HashMap<u64, u64>,
    /// Differs from what the cache holds.
    changed: bool,
    threads: u32,
}

impl<'a> Tree<'a> {
    fn fresh(walker: &Walker<'_>) -> Self {
        let (produced, threads) = walker.run(vec![walker.root_task()], Known::default());
        let mut new = produced.records;
        new.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Self { new, old: Vec::new(), shared: HashMap::new(), changed: true, threads }
    }

    /// Lists again what changed since `cached` was written, and keeps the rest.
    fn renewed(walker: &Walker<'_>, cached: Vec<Cached<'a>>) -> Self {
        let mut states = walker.check(&cached);
        // What lies below a directory that is gone belongs to another directory of that name.
        for (index, record) in cached.iter().enumerate() {
            if record.parent.is_some_and(|parent| states[parent as usize] == State::Gone) {
                states[index] = State::Gone;
            }
        }
        let mut shared = HashMap::new();
        for note in cached.iter().filter(|c| c.has_notes()).flat_map(|c| c.notes(walker.root_dev)) {
            if matches!(note.kind, NoteKind::Match { is_dir: false, .. }) && note.nlink > 1 {
                shared.insert(note.ino, note.nlink);
            }
        }
        let tasks: Vec<Task> = cached
            .iter()
            .zip(&states)
            .filter(|(_, state)| **state == State::Changed)
            .map(|(cached, _)| Task {
                path: cached.path.to_bytes().to_vec(),
                parent_dev: walker.root_dev,
                again: true,
            })
            .collect();
        if tasks.is_empty() && !states.contains(&State::Gone) {
            let new = Vec::new();
            return Self { new, old: cached, shared, changed: false, threads: 1 };
        }
        let known = Known { cached: &cached, states: &states, shared: Some(&shared) };
        let (produced, threads) = walker.run(tasks, known);
        let present: HashSet<usize> = produced.present.iter().copied().collect();
        // What is gone takes all below with it; parents come before their children.
        let mut gone = vec![false; cached.len()];
        for (index, record) in cached.iter().enumerate() {
            let above = record.parent.map(|parent| parent as usize);
            gone[index] = states[index] == State::Gone
                || above.is_some_and(|parent| {
                    gone[parent] || states[parent] == State::Changed && !present.contains(&index)
                });
        }
        let mut new = produced.records;
        new.retain(|record| match known.index(&record.path) {
            Some(index) => !gone[index],
            None => true,
        });
        new.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for (state, gone) in states.iter_mut().zip(&gone) {
            if *gone {
                *state = State::Gone;
            }
        }
        let old = cached
            .iter()
            .zip(&states)
            .filter(|(_, state)| **state == State::Same)
            .map(|(cached, _)| *cached)
            .collect();
        Self { new, old, shared, changed: true, threads }
    }

    fn directories(&self) -> usize {
        self.new.len() + self.old.len()
    }

    /// Directories to remember, sorted.
    fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> = self.old.iter().map(|c| Line::Old(*c)).collect();
        lines.extend(self.new.iter().filter(|r| !r.foreign).map(Line::New));
        lines.sort_unstable_by(|a, b| a.path().cmp(b.path()));
        lines
    }

    /// All notes with the directory they belong to.
    fn notes(&self, root_dev: u64) -> Vec<(Vec<u8>, Note)> {
        let old = self.old.iter().filter(|c| c.has_notes()).flat_map(|cached| {
            let path = cached.path.to_bytes();
            cached.notes(root_dev).into_iter().map(move |note| (path.to_vec(), note))
        });
        let new = self
            .new
            .iter()
            .flat_map(|record| record.notes.iter().map(|n| (record.path.clone(), n.clone())));
        old.chain(new).collect()
    }

    /// Finds the other names of matched files that have several, when they are not known already.
    fn find_aliases(&mut self, walker: &Walker<'_>) {
        let mut wanted = HashMap::new();
        let mut stale = false;
        // Links can be added anywhere: the count of a cached match is looked at again.
        for cached in self.old.iter().filter(|c| c.has_notes()) {
            for note in cached.notes(walker.root_dev) {
                if !matches!(note.kind, NoteKind::Match { is_dir: false, .. }) {
                    continue;
                }
                let path = join(cached.path.to_bytes(), &note.name);
                let nlink = fd::stat_name(walker.root, path).map_or(0, |s| fd::links(&s));
                stale |= nlink != note.nlink;
                if nlink > 1 {
                    wanted.insert(note.ino, nlink);
                }
            }
        }
        for note in self.new.iter().flat_map(|r| &r.notes) {
            if matches!(note.kind, NoteKind::Match { is_dir: false, .. }) && note.nlink > 1 {
                wanted.insert(note.ino, note.nlink);
                stale |= self.shared.get(&note.ino) != Some(&note.nlink);
            }
        }
        // An unchanged count can hide one name lost and one gained; both move a directory's stamp.
        if !stale {
            return;
        }
        self.list_all(walker, &wanted);
    }

    /// Lists the whole tree again, with the inode numbers to look for.
    fn list_all(&mut self, walker: &Walker<'_>, wanted: &HashMap<u64, u64>) {
        walker.entries.store(0, Ordering::Relaxed);
        walker.path_bytes.store(0, Ordering::Relaxed);
        let known = Known { cached: &[], states: &[], shared: Some(wanted) };
        let (produced, threads) = walker.run(vec![walker.root_task()], known);
        self.new = produced.records;
        self.new.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.old.clear();
        self.changed = true;
        self.threads = self.threads.max(threads);
    }

    fn answer(&self, dev: u64, truncated: Option<Truncated>, statistics: Statistics) -> Walk {
        let mut walk = Walk { truncated, statistics, ..Walk::default() };
        // (device, inode) to the other names and the number of matched names.
        let mut aliases: HashMap<(u64, u64), Vec<PathBuf>> = HashMap::new();
        let mut matched: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let notes = self.notes(dev);
        for (dir, note) in &notes {
            match note.kind {
                NoteKind::Match { .. } => *matched.entry((note.dev, note.ino)).or_default() += 1,
                NoteKind::Alias => {
                    let names = aliases.entry((note.dev, note.ino)).or_default();
                    names.push(to_path(&join(dir, &note.name)));
                }
                _ => {}
            }
        }
        for names in aliases.values_mut() {
            names.sort_unstable();
        }
        for (dir, note) in notes {
            match note.kind {
                NoteKind::Match { rule, is_dir, is_symlink } => {
                    let id = (note.dev, note.ino);
                    let path = join(&dir, &note.name);
                    let aliases = aliases.get(&id).cloned().unwrap_or_default();
                    let seen = aliases.len() as u64 + matched.get(&id).copied().unwrap_or(1);
                    walk.matches.push(Found {
                        is_ref: is_ref(&dir),
                        path: to_path(&path),
                        rule,
                        is_dir,
                        is_symlink,
                        nlink: note.nlink,
                        ino: note.ino,
                        dev: note.dev,
                        aliases,
                        unseen: if is_dir { 0 } else { note.nlink.saturating_sub(seen) },
                    });
                }
                NoteKind::Alias => {}
                NoteKind::DotGit => {
                    walk.repositories.push(RepositoryHint::new(dir, Shape::DotGit));
                }
                NoteKind::Bare => walk.repositories.push(RepositoryHint::new(dir, Shape::Bare)),
                NoteKind::Mount => walk.mounts.push(to_path(&dir)),
                NoteKind::Unreadable(errno) => {
                    walk.unreadable.push((to_path(&dir), errno.to_string()));
                }
            }
        }
        walk.matches.sort_unstable();
        walk.repositories.sort_unstable();
        walk.repositories.dedup();
        walk.mounts.sort_unstable();
        walk.unreadable.sort_unstable();
        walk
    }
}

impl Walker<'_> {
    fn root_task(&self) -> Task {
        Task { path: Vec::new(), parent_dev: self.root_dev, again: false }
    }
}

impl RepositoryHint {
    pub(super) fn new(path: Vec<u8>, shape: Shape) -> Self {
        Self { path: PathBuf::from(OsString::from_vec(path)), shape }
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

pub(super) fn to_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}
