//! The store: a directory of the caller's own with layers (names) and deltas (content).
//!
//! ```text
//! lock                          short, while records change and deltas are collected
//! layers/NAME/record.json       replaced as a whole
//! layers/NAME/last.json         when and under which policy it was last used
//! layers/NAME/lock              held by a run or an apply; says by whom and since when
//! layers/NAME/journal/          an apply in progress
//! deltas/ID/<root>/{tree,work}  overlayfs' upper and work directory, one pair for each root
//! deltas/ID/base.jsonl          what the host had under each changed name
//! ```
//!
//! A layer's lock is taken only while the store's is held, so a layer cannot vanish between.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ringfence_sys::fd;
use rustix::fs::{FlockOperation, Mode, OFlags, Timestamps, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::delta::Walked;
use crate::{Error, base, copy, lossless, object};

/// The format of everything in the store.
pub const VERSION: u32 = 1;
/// Largest record that is read, bytes: thousands of snapshots.
const MAX_RECORD: u64 = 16 << 20;
/// Longest name of a layer or snapshot.
const MAX_NAME: usize = 64;
/// Layers and deltas that are listed.
const MAX_LISTED: usize = 1 << 20;
/// Bytes of the note of the last use are a multiple of this, so that its length seldom changes.
const USE_STEP: usize = 128;
/// Bytes of a lock file: three numbers and their names.
const HOLDER: usize = 128;
/// Prefix of what is being removed.
const GONE: &str = ".gone-";
/// Of layers in the making, under the store's lock: without it, what is called so was left.
const NEW: &str = ".new-";

/// A moment of the host's clock, seconds and nanoseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp(pub i64, pub u32);

impl Stamp {
    /// Whether a change that was given this time can only have been made before `moment`. Some file
    /// systems keep whole seconds, or even ones, and cut off the rest.
    pub fn surely_before(self, moment: Self) -> bool {
        if self.1 == 0 { self.0 + 2 < moment.0 } else { self < moment }
    }

    /// Now, by the clock that file systems take their times from: a file changed before now has no
    /// later time, a file changed from now on no earlier one.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        Self(now.tv_sec, now.tv_nsec as u32)
    }
}

/// What is on disk about a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// Random; the same name made again is another layer.
    pub id: String,
    pub created: Stamp,
    pub used: Stamp,
    /// Directories that the layer lies over; a delta's numbered directories count from here.
    pub roots: Vec<RootRecord>,
    /// Sealed deltas, bottom first. Immutable, shared between layers.
    pub stack: Vec<String>,
    /// The delta that runs write to.
    pub open: Option<String>,
    #[serde(default)]
    pub quota: Option<Quota>,
    #[serde(default)]
    pub snapshots: BTreeMap<String, Snapshot>,
    #[serde(default)]
    pub checkpoints: Vec<Checkpoint>,
    /// Names of the policy layers of the last run.
    #[serde(default)]
    pub policy: Vec<String>,
}

/// The last run, in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    used: Stamp,
    policy: Vec<String>,
}

const USE: &str = "last.json";
/// Trees that layers may lie over.
const CODEBASES: &str = "codebases";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    #[serde(with = "lossless")]
    pub path: PathBuf,
    pub dev: u64,
    pub ino: u64,
    /// Mode of the directory when the layer first lay over it.
    pub mode: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    pub bytes: Option<u64>,
    pub inodes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub stack: Vec<String>,
    pub created: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub n: u64,
    pub stack: Vec<String>,
    pub created: Stamp,
    #[serde(default)]
    pub command: Option<String>,
}

impl Record {
    /// Every delta that the layer still needs.
    pub fn deltas(&self) -> BTreeSet<&str> {
        self.stack
            .iter()
            .chain(&self.open)
            .chain(self.snapshots.values().flat_map(|s| &s.stack))
            .chain(self.checkpoints.iter().flat_map(|c| &c.stack))
            .map(String::as_str)
            .collect()
    }

    /// What is seen now, top first.
    pub fn visible(&self) -> impl Iterator<Item = &str> {
        self.open.iter().chain(self.stack.iter().rev()).map(String::as_str)
    }
}

/// A directory to lay a layer over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Absolute and real.
    pub path: PathBuf,
}

impl Root {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

/// What an overlay is mounted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where the command sees it.
    pub root: PathBuf,
    /// Top first: sealed deltas, then the real directory.
    pub lower: Vec<PathBuf>,
    /// Of `lower`, what hides names in the real directory.
    pub mask: Option<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// How a run ended, for the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Names of the policy's layers.
    pub policy: Vec<String>,
}

/// Who holds a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// Set by a run: its deltas are being written since.
    pub run: Option<Stamp>,
}

/// A layer as listed.
#[derive(Clone, Debug)]
pub struct Summary {
    pub name: String,
    /// Or why it cannot be read.
    pub record: Result<Record, String>,
    pub in_use: Option<Holder>,
    pub unfinished: bool,
}

/// What something takes on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The store of layers of one user.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
    layers: OwnedFd,
    deltas: OwnedFd,
    path: PathBuf,
}

/// Held while records change.
#[derive(Debug)]
pub struct StoreLock {
    _fd: OwnedFd,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const PRIVATE: Mode = Mode::RWXU;
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Store {
    /// Where layers are kept: `$RINGFENCE_STATE`, `$XDG_STATE_HOME/ringfence` or
    /// `~/.local/state/ringfence`.
    pub fn default_directory(
        override_by: Option<&OsStr>,
        xdg_state_home: Option<&OsStr>,
        home: &Path,
    ) -> PathBuf {
        let absolute = |value: Option<&OsStr>| {
            value.map(Path::new).filter(|p| p.is_absolute()).map(Path::to_owned)
        };
        absolute(override_by)
            .or_else(|| absolute(xdg_state_home).map(|base| base.join("ringfence")))
            .unwrap_or_else(|| home.join(".local/state/ringfence"))
    }

    /// Opens the store, which is made if it is not there.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let dir = match rustix::fs::open(state, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(state)
                    .map_err(Error::io("make", state))?;
                rustix::fs::open(state, DIRECTORY, Mode::empty())
                    .map_err(Error::os("open", state))?
            }
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(Error::NotYours { path: state.into(), why: "is not a directory" });
            }
            Err(errno) => return Err(Error::os("open", state)(errno)),
        };
        let own = |dir: &OwnedFd, path: &Path| -> Result<(), Error> {
            let stat = rustix::fs::fstat(dir).map_err(Error::os("look at", path))?;
            let refuse = |why| Err(Error::NotYours { path: path.into(), why });
            if stat.st_uid != rustix::process::geteuid().as_raw() {
                return refuse("belongs to somebody else");
            }
            if stat.st_mode & 0o077 != 0 {
                return refuse("is open to others");
            }
            Ok(())
        };
        own(&dir, state)?;
        // Everything below is reached without following a link; the way here may have some.
        let real = std::fs::canonicalize(state).map_err(Error::io("resolve", state))?;
        let state = &*real;
        let part = |name: &'static str| -> Result<OwnedFd, Error> {
            let path = state.join(name);
            make_directory(dir.as_fd(), name.as_ref(), &path)?;
            let fd = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())
                .map_err(Error::os("open", &path))?;
            own(&fd, &path)?;
            Ok(fd)
        };
        let (layers, deltas) = (part("layers")?, part("deltas")?);
        Ok(Self { dir, layers, deltas, path: state.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the store's lock. It is held for moments only.
    pub fn lock(&self) -> Result<StoreLock, Error> {
        let path = self.path.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.dir, "lock", flags, FILE).map_err(Error::os("open", &path))?;
        loop {
            match flock(&fd, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other.map_err(Error::os("lock", &path))?,
            }
        }
        Ok(StoreLock { _fd: fd })
    }

    /// Names of all layers.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        let path = self.path.join("layers");
        let (names, _) = list_again(&self.layers).map_err(Error::os("list", path))?;
        Ok(names
            .into_iter()
            .filter_map(|(name, _)| name.into_string().ok())
            .filter(|name| check_name(name).is_ok())
            .collect())
    }

    /// Every layer. One that cannot be read is listed with the reason.
    pub fn layers(&self) -> Result<Vec<Summary>, Error> {
        let mut all = Vec::new();
        for name in self.names()? {
            let layer = match self.layer(&name) {
                Ok(layer) => layer,
                // Discarded meanwhile.
                Err(Error::NoLayer(_)) => continue,
                Err(e) => {
                    let record = Err(e.to_string());
                    let in_use = self.holder(&name).ok().flatten();
                    all.push(Summary { name, record, in_use, unfinished: false });
                    continue;
                }
            };
            all.push(Summary {
                in_use: self.holder(&name)?,
                unfinished: layer.unfinished(),
                name,
                record: Ok(layer.record),
            });
        }
        Ok(all)
    }

    /// A layer, to look at.
    pub fn layer(&self, name: &str) -> Result<Layer, Error> {
        check_name(name)?;
        let path = self.layer_path(name);
        let dir = match rustix::fs::openat(&self.layers, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Err(Error::NoLayer(name.to_owned())),
            Err(errno) => return Err(Error::os("open", path)(errno)),
        };
        let mut record = read_record(dir.as_fd(), &path)?;
        if let Some(last) = read_use(dir.as_fd()).filter(|last| last.used >= record.used) {
            (record.used, record.policy) = (last.used, last.policy);
        }
        Ok(Layer { name: name.to_owned(), record, dir, path, deltas: self.path.join("deltas") })
    }

    /// Who holds a layer now.
    pub fn holder(&self, name: &str) -> Result<Option<Holder>, Error> {
        let path = self.layer_path(name).join("lock");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let relative = format!("{name}/lock");
        let fd = match rustix::fs::openat(&self.layers, &*relative, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::os("open", path)(errno)),
        };
        match flock(&fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => {
                Ok(Some(read_holder(&fd).unwrap_or(Holder { pid: 0, run: None })))
            }
            Err(errno) => Err(Error::os("lock", path)(errno)),
        }
    }

    /// Takes a layer for oneself: nothing else can run in it, change or discard it.
    pub fn hold(&self, name: &str) -> Result<Held, Error> {
        let lock = self.lock()?;
        self.hold_locked(&lock, name)
    }

    pub(crate) fn hold_locked(&self, _lock: &StoreLock, name: &str) -> Result<Held, Error> {
        let layer = self.layer(name)?;
        let Taken { fd, killed, .. } = take(&layer.dir, name, &layer.path, false)?;
        Ok(Held { layer, lock: fd, killed, mended: false })
    }

    /// Begins a run that writes to the layer, which is made if needed. Nothing here grows with the
    /// tree or the layer.
    pub fn begin(&self, name: &str, roots: &[Root], now: Stamp) -> Result<Session, Error> {
        check_name(name)?;
        let lock = self.lock()?;
        match self.layer(name) {
            Ok(layer) => self.begin_in(&lock, layer, roots, false),
            Err(Error::NoLayer(_)) => {
                let path = self.layer_path(name);
                let (draft, dir) = self.draft(&lock, &path)?;
                let (name, record) = (name.to_owned(), new_record(now)?);
                let deltas = self.path.join("deltas");
                let layer = Layer { name, record, dir, path: path.clone(), deltas };
                let begun = self
                    .begin_in(&lock, layer, roots, true)
                    .and_then(|session| self.name(&draft, &path).map(|()| session));
                if begun.is_err() {
                    let _ = remove(self.layers.as_fd(), draft.as_ref(), &path);
                }
                begun
            }
            Err(e) => Err(e),
        }
    }

    fn begin_in(
        &self,
        _lock: &StoreLock,
        layer: Layer,
        roots: &[Root],
        is_new: bool,
    ) -> Result<Session, Error> {
        let (name, path) = (layer.name.clone(), layer.path.clone());
        if layer.unfinished() {
            return Err(Error::Unfinished(name));
        }
        let Taken { fd, killed, at } = take(&layer.dir, &name, &path, true)?;
        let mut held = Held { layer, lock: fd, killed, mended: false };
        if killed.is_some() {
            held.mend()?;
            held.mended = false;
            let holder = Holder { pid: std::process::id(), run: Some(at) };
            write_holder(&held.lock, Some(&holder))
                .map_err(Error::os("write", path.join("lock")))?;
        }
        let fresh = held.layer.record.stack.is_empty() && held.layer.record.open.is_none();
        let mut record = held.layer.record.clone();
        let mut indexes = Vec::with_capacity(roots.len());
        for root in roots {
            indexes.push(root_index(&mut record, &name, root)?);
        }
        let open = match &record.open {
            Some(open) => open.clone(),
            None => record.open.insert(self.new_delta()?).clone(),
        };
        let mut mounts = Vec::with_capacity(roots.len());
        for (root, index) in roots.iter().zip(indexes) {
            let (upper, work) = self.delta_of_root(&open, index, &root.path)?;
            let lower = record
                .stack
                .iter()
                .rev()
                .map(|id| self.delta_path(id).join(index.to_string()).join("tree"))
                .filter(|tree| tree.symlink_metadata().is_ok())
                .chain([root.path.clone()])
                .collect();
            mounts.push(Mount { root: root.path.clone(), lower, mask: None, upper, work });
        }
        if is_new || record != held.layer.record {
            // Not synced: until a run ended there is nothing to lose.
            write_record(held.layer.dir.as_fd(), &path, &record, !fresh)?;
            held.layer.record = record;
        }
        Ok(Session { held, mounts, started: at })
    }

    /// A directory for a layer in the making. It gets its name when its record is there: a layer without
    /// one would be damaged. What a killed process leaves is collected.
    fn draft(&self, _lock: &StoreLock, path: &Path) -> Result<(String, OwnedFd), Error> {
        let draft = format!("{NEW}{}", random_id()?);
        make_directory(self.layers.as_fd(), draft.as_ref(), path)?;
        let dir = rustix::fs::openat(&self.layers, &*draft, DIRECTORY, Mode::empty())
            .map_err(Error::os("open", path))?;
        Ok((draft, dir))
    }

    /// Gives a layer that was made its name.
    fn name(&self, draft: &str, path: &Path) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default();
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(&self.layers, draft, &self.layers, name, flags)
            .map_err(Error::os("make", path))
    }

    /// Changes a layer's record under the store's lock, while nobody uses the layer.
    pub fn edit<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Record) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let lock = self.lock()?;
        let mut held = self.hold_locked(&lock, name)?;
        held.mend()?;
        let mut record = held.layer.record.clone();
        let answer = change(&mut record)?;
        held.save(record)?;
        drop(held);
        self.collect(lock)?;
        Ok(answer)
    }

    /// Puts a new layer into the store; an error if the name is taken.
    pub fn create(&self, name: &str, record: &Record) -> Result<(), Error> {
        let lock = self.lock()?;
        self.create_locked(&lock, name, record, true)
    }

    pub(crate) fn create_locked(
        &self,
        lock: &StoreLock,
        name: &str,
        record: &Record,
        synced: bool,
    ) -> Result<(), Error> {
        check_name(name)?;
        self.free(name)?;
        let path = self.layer_path(name);
        let (draft, dir) = self.draft(lock, &path)?;
        let made = write_record(dir.as_fd(), &path, record, synced)
            .and_then(|()| self.name(&draft, &path));
        if made.is_err() {
            let _ = remove(self.layers.as_fd(), draft.as_ref(), &path);
        }
        made
    }

    /// An error if the name is taken.
    pub(crate) fn free(&self, name: &str) -> Result<(), Error> {
        match self.layer(name) {
            Err(Error::NoLayer(_)) => Ok(()),
            Ok(_) => Err(Error::Refused(format!("a layer called {name} exists already"))),
            Err(e) => Err(e),
        }
    }

    /// Makes a delta of a directory that was filled in the layer's own, where nothing collects it. A
    /// record must name it before the lock is given back.
    pub(crate) fn adopt(
        &self,
        _lock: &StoreLock,
        layer: &Layer,
        draft: &str,
    ) -> Result<String, Error> {
        let id = random_id()?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(&layer.dir, draft, &self.deltas, &*id, flags)
            .map_err(Error::os("keep", layer.path.join(draft)))?;
        sync(&self.deltas, &self.path.join("deltas"))?;
        Ok(id)
    }

    /// Removes a layer with everything that no other layer needs.
    pub fn discard(&self, name: &str) -> Result<(), Error> {
        let lock = self.lock()?;
        let held = self.aside(name)?;
        sync(&self.layers, &self.layer_path(name))?;
        drop(held);
        self.collect(lock)
    }

    /// The first half of it, which waits for nothing: nobody finds the layer any more. What it holds goes
    /// with the next [`Store::collect`].
    pub fn set_aside(&self, name: &str) -> Result<(), Error> {
        let _lock = self.lock()?;
        self.aside(name).map(drop)
    }

    /// What keeps others from it.
    fn aside(&self, name: &str) -> Result<Taken, Error> {
        check_name(name)?;
        let path = self.layer_path(name);
        let dir = match rustix::fs::openat(&self.layers, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Err(Error::NoLayer(name.to_owned())),
            Err(errno) => return Err(Error::os("open", path)(errno)),
        };
        // A record that cannot be read does not keep its layer from being thrown away, but an
        // apply that stopped half-way does: its journal knows how to mend the host.
        let held = take(&dir, name, &path, false)?;
        if has_journal(&dir) {
            return Err(Error::Unfinished(name.to_owned()));
        }
        give_up(&self.layers, name.as_ref(), &path)?;
        Ok(held)
    }

    /// Removes deltas that no layer names, and what was set aside. Does nothing as long as a record cannot
    /// be read: that record may name them. Who waits for the lock does not wait for that: under it they only
    /// lose their names.
    pub fn collect(&self, lock: StoreLock) -> Result<(), Error> {
        let mut needed = BTreeSet::new();
        for name in self.names()? {
            match self.layer(&name) {
                Ok(layer) => needed.extend(layer.record.deltas().into_iter().map(str::to_owned)),
                Err(Error::NoLayer(_)) => {}
                Err(_) => return Ok(()),
            }
        }
        let (layers, deltas) = (self.path.join("layers"), self.path.join("deltas"));
        for name in listed(&self.layers, &layers)? {
            if name.as_bytes().starts_with(NEW.as_bytes()) {
                give_up(&self.layers, &name, &layers.join(&name))?;
            }
        }
        for name in listed(&self.deltas, &deltas)? {
            if name.to_str().is_some_and(|id| is_id(id) && !needed.contains(id)) {
                give_up(&self.deltas, &name, &deltas.join(&name))?;
            }
        }
        drop(lock);
        for (dir, path) in [(&self.layers, layers), (&self.deltas, deltas)] {
            for name in listed(dir, &path)? {
                if name.as_bytes().starts_with(GONE.as_bytes()) {
                    clear(dir, &name, &path.join(&name))?;
                }
            }
        }
        Ok(())
    }

    /// What the deltas of a record take on the disk; shared ones count in full.
    pub fn usage(&self, record: &Record) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for id in record.deltas() {
            let path = self.delta_path(id);
            let root = object::open_tree(&path).map_err(Error::os("open", &path))?;
            let mut pending = vec![PathBuf::new()];
            let mut counted = BTreeSet::new();
            while let Some(at) = pending.pop() {
                // A directory that a sandbox closed is counted as empty.
                let Ok(dir) = object::open_directory(root.as_fd(), at.as_os_str(), true) else {
                    continue;
                };
                let shown = path.join(&at);
                let (names, _) =
                    fd::list(dir.as_fd(), usize::MAX).map_err(Error::os("list", &shown))?;
                for (name, _) in names {
                    let Ok(stat) = fd::stat_name(&dir, &*name) else { continue };
                    if fd::links(&stat) > 1
                        && fd::kind(&stat) != rustix::fs::FileType::Directory
                        && !counted.insert(fd::id(&stat))
                    {
                        continue;
                    }
                    usage.inodes += 1;
                    usage.bytes += stat.st_blocks as u64 * 512;
                    if fd::kind(&stat) == rustix::fs::FileType::Directory {
                        pending.push(at.join(&name));
                    }
                }
            }
        }
        Ok(usage)
    }

    /// Where codebases lie, which layers may lie over.
    pub fn codebases(&self) -> PathBuf {
        let path = self.path.join(CODEBASES);
        std::fs::canonicalize(&path).unwrap_or(path)
    }

    pub fn layer_path(&self, name: &str) -> PathBuf {
        self.path.join("layers").join(name)
    }

    pub fn delta_path(&self, id: &str) -> PathBuf {
        self.path.join("deltas").join(id)
    }

    /// Makes an empty delta. Under the store's lock: what no record names is collected.
    pub fn new_delta(&self) -> Result<String, Error> {
        let id = random_id()?;
        make_directory(self.deltas.as_fd(), id.as_ref(), &self.delta_path(&id))?;
        Ok(id)
    }

    /// Upper and work directory of a root in an open delta, made where they are not there.
    fn delta_of_root(
        &self,
        id: &str,
        index: usize,
        root: &Path,
    ) -> Result<(PathBuf, PathBuf), Error> {
        let path = self.delta_path(id).join(index.to_string());
        let (upper, work) = (path.join("tree"), path.join("work"));
        let delta = rustix::fs::openat(&self.deltas, id, DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        make_directory(delta.as_fd(), index.to_string().as_ref(), &path)?;
        let dir = rustix::fs::openat(&delta, &*index.to_string(), DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        make_directory(dir.as_fd(), "work".as_ref(), &work)?;
        empty_work(dir.as_fd(), &path)?;
        match rustix::fs::mkdirat(&dir, "tree", PRIVATE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok((upper, work)),
            Err(errno) => return Err(Error::os("make", upper)(errno)),
        }
        // The top directory of the view is this one: it must look like the root.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let like = rustix::fs::open(root, flags, Mode::empty()).map_err(Error::os("open", root))?;
        let like = rustix::fs::fstat(&like).map_err(Error::os("look at", root))?;
        let tree = rustix::fs::openat(&dir, "tree", DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &upper))?;
        let us = rustix::fs::fstat(&tree).map_err(Error::os("look at", &upper))?;
        if (us.st_uid, us.st_gid) != (like.st_uid, like.st_gid) {
            let owner = rustix::fs::Uid::from_raw(like.st_uid);
            let group = rustix::fs::Gid::from_raw(like.st_gid);
            // Only root can; for others the view says that the directory is theirs.
            let _ = rustix::fs::fchown(&tree, Some(owner), Some(group));
        }
        rustix::fs::fchmod(&tree, Mode::from_raw_mode(like.st_mode & 0o7777))
            .map_err(Error::os("set the mode of", &upper))?;
        let [(seconds, nanos), _] = fd::times(&like);
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        rustix::fs::futimens(&tree, &Timestamps { last_access: time, last_modification: time })
            .map_err(Error::os("set the time of", &upper))?;
        Ok((upper, work))
    }
}

/// The number of a root in the record, where it is entered if it is new.
pub(crate) fn root_index(record: &mut Record, layer: &str, root: &Root) -> Result<usize, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let real = fd::open_absolute(&root.path, flags).map_err(Error::os("open", &root.path))?;
    let stat = rustix::fs::fstat(&real).map_err(Error::os("look at", &root.path))?;
    let (dev, ino) = fd::id(&stat);
    match record.roots.iter().position(|r| r.path == root.path) {
        // Device numbers of some file systems change when the host starts again.
        Some(index) if record.roots[index].ino == ino => Ok(index),
        Some(_) => Err(Error::OtherRoot { layer: layer.to_owned(), path: root.path.clone() }),
        None => {
            let mode = stat.st_mode & 0o7777;
            record.roots.push(RootRecord { path: root.path.clone(), dev, ino, mode });
            Ok(record.roots.len() - 1)
        }
    }
}

/// A layer, as its record was when it was read.
#[derive(Debug)]
pub struct Layer {
    pub name: String,
    pub record: Record,
    pub(crate) dir: OwnedFd,
    pub(crate) path: PathBuf,
    deltas: PathBuf,
}

impl Layer {
    /// Whether a root is the tree of a codebase of this store.
    pub(crate) fn is_over_codebase(&self, root: &Path) -> bool {
        self.deltas.parent().is_some_and(|store| root.starts_with(store.join(CODEBASES)))
    }

    /// An apply was interrupted.
    pub fn unfinished(&self) -> bool {
        has_journal(&self.dir)
    }

    /// Trees of one root as they are seen, top first.
    pub fn trees(&self, index: usize) -> Vec<PathBuf> {
        self.record
            .visible()
            .map(|id| self.deltas.join(id).join(index.to_string()).join("tree"))
            .filter(|tree| tree.symlink_metadata().is_ok())
            .collect()
    }

    pub fn delta_path(&self, id: &str) -> PathBuf {
        self.deltas.join(id)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A layer that is ours for now.
#[derive(Debug)]
pub struct Held {
    pub layer: Layer,
    lock: OwnedFd,
    /// The start of a run that did not end properly.
    killed: Option<Stamp>,
    /// What it left undone was done.
    mended: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody was killed who only looked. A run clears its mark itself, when it has ended.
        if read_holder(&self.lock).is_some_and(|h| h.run.is_none()) || self.mended {
            let _ = write_holder(&self.lock, None);
        }
    }
}

impl Held {
    /// Now, by the clock of the file times (see [`moment`]).
    pub fn moment(&self) -> Result<Stamp, Error> {
        moment(&self.lock).map_err(Error::os("touch", self.layer.path.join("lock")))
    }

    /// Does what a killed run could not do any more. An error while an apply is unfinished: the layer is
    /// not to change under it.
    pub fn mend(&mut self) -> Result<(), Error> {
        if self.layer.unfinished() {
            return Err(Error::Unfinished(self.layer.name.clone()));
        }
        if let Some(since) = self.killed {
            base::note(&self.layer, since)?;
            self.killed = None;
            self.mended = true;
        }
        Ok(())
    }

    /// Notes the last run beside the record: every run does, and waiting for the disk would cost more
    /// than the run.
    fn note_use(&mut self, last: &Use) -> Result<(), Error> {
        let mut text = serde_json::to_vec(last).unwrap_or_default();
        let path = self.layer.path.join(USE);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.layer.dir, USE, flags, FILE)
            .map_err(Error::os("write", &path))?;
        // In place: file systems write out at once what replaces a file. Half of it is as good as none.
        text.resize(text.len().next_multiple_of(USE_STEP), b' ');
        rustix::io::pwrite(&fd, &text, 0).map_err(Error::os("write", &path))?;
        let had = rustix::fs::fstat(&fd).map_err(Error::os("look at", &path))?.st_size;
        if had == text.len() as i64 {
            return Ok(());
        }
        rustix::fs::ftruncate(&fd, text.len() as u64).map_err(Error::os("write", &path))
    }

    /// Replaces the record.
    pub fn save(&mut self, record: Record) -> Result<(), Error> {
        write_record(self.layer.dir.as_fd(), &self.layer.path, &record, true)?;
        self.layer.record = record;
        Ok(())
    }
}

/// One run in a layer, from before its sandbox is made until it ended. Dropped without
/// [`Session::finish`] it counts as killed; nothing is lost by that.
#[derive(Debug)]
pub struct Session {
    held: Held,
    mounts: Vec<Mount>,
    started: Stamp,
}

impl Session {
    pub fn name(&self) -> &str {
        &self.held.layer.name
    }

    /// What to mount, in the order of the roots.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    pub fn started(&self) -> Stamp {
        self.started
    }

    /// The layer is ours as long as anybody has this open.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.held.lock.as_fd()
    }

    pub fn record(&self) -> &Record {
        &self.held.layer.record
    }

    /// Sets what the layer may hold from now on; a part that is not given stays as it was, the largest
    /// number takes a limit back.
    pub fn limit(&mut self, quota: Quota) -> Result<(), Error> {
        let mut record = self.held.layer.record.clone();
        let old = record.quota.unwrap_or(Quota { bytes: None, inodes: None });
        record.quota = Some(Quota {
            bytes: quota.bytes.or(old.bytes).filter(|n| *n != u64::MAX),
            inodes: quota.inodes.or(old.inodes).filter(|n| *n != u64::MAX),
        });
        if record == self.held.layer.record { Ok(()) } else { self.held.save(record) }
    }

    /// The run ended: notes what the host had under each name that was changed.
    pub fn finish(mut self, outcome: &Outcome) -> Result<Vec<Walked>, Error> {
        let walks = base::note(&self.held.layer, self.started)?;
        for mount in &self.mounts {
            let Some(delta) = mount.work.parent() else { continue };
            let dir = fd::open_absolute(delta, DIRECTORY).map_err(Error::os("open", delta))?;
            empty_work(dir.as_fd(), delta)?;
        }
        self.held.note_use(&Use { used: Stamp::now(), policy: outcome.policy.clone() })?;
        write_holder(&self.held.lock, None)
            .map_err(Error::os("write", self.held.layer.path.join("lock")))?;
        Ok(walks)
    }
}

/// Whether this may be the name of a layer or a snapshot.
pub fn check_name(name: &str) -> Result<(), Error> {
    let good = name.len() <= MAX_NAME
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if good { Ok(()) } else { Err(Error::Name(name.to_owned())) }
}

/// A layer's lock, just taken.
struct Taken {
    fd: OwnedFd,
    /// The start of a run that did not end properly.
    killed: Option<Stamp>,
    /// When it was taken, by the clock of file times: nothing changed earlier has a later time, nothing
    /// changed later an earlier one.
    at: Stamp,
}

/// Takes a layer's lock, and reads who held it without giving it back.
fn take(dir: &OwnedFd, name: &str, path: &Path, run: bool) -> Result<Taken, Error> {
    let path = path.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, "lock", flags, FILE).map_err(Error::os("open", &path))?;
    let asked = std::time::Instant::now();
    loop {
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                let pid = read_holder(&fd).map(|h| h.pid).filter(|pid| *pid != 0);
                // The processes of a killed run are about to end; until then they have it. Where nobody
                // is named, a process that the last holder was starting has it, until it is another
                // program.
                if asked.elapsed() < ENDING && pid.is_none_or(is_gone) {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    continue;
                }
                return Err(Error::InUse { name: name.to_owned(), pid });
            }
            Err(errno) => return Err(Error::os("lock", path)(errno)),
        }
    }
    let killed = read_holder(&fd).and_then(|h| h.run);
    let fail = Error::os("write", path);
    let at = match moment(&fd) {
        Ok(at) => at,
        Err(errno) => return Err(fail(errno)),
    };
    // The older of two killed runs stays known until its work was done.
    let holder = Holder { pid: std::process::id(), run: killed.or(run.then_some(at)) };
    write_holder(&fd, Some(&holder)).map_err(fail)?;
    Ok(Taken { fd, killed, at })
}

/// Time that the processes of a killed run get to end.
const ENDING: std::time::Duration = std::time::Duration::from_secs(2);

fn is_gone(pid: u32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid as i32);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
}

/// Now: kernels with fine file times give an exact one to what was looked at since its last change, and no
/// later change anywhere an earlier one.
fn moment(fd: &OwnedFd) -> Result<Stamp, Errno> {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::fstat(fd)?;
    rustix::fs::futimens(fd, &Timestamps { last_access: now, last_modification: now })?;
    let [_, (seconds, nanos)] = fd::times(&rustix::fs::fstat(fd)?);
    Ok(Stamp(seconds, nanos))
}

/// Always as long, so that the file keeps its block.
fn write_holder(fd: &OwnedFd, holder: Option<&Holder>) -> Result<(), Errno> {
    let mut text = match holder {
        Some(holder) => serde_json::to_vec(holder).map_err(|_| Errno::INVAL)?,
        None => Vec::new(),
    };
    text.resize(HOLDER.max(text.len()), b' ');
    rustix::io::pwrite(fd, &text, 0).map(|_| ())
}

fn read_holder(fd: &OwnedFd) -> Option<Holder> {
    let mut text = [0; HOLDER];
    let n = rustix::io::pread(fd, &mut text, 0).ok()?;
    serde_json::from_slice(&text[..n]).ok()
}

fn has_journal(dir: &OwnedFd) -> bool {
    fd::stat_name(dir, "journal").is_ok()
}

/// A record without deltas.
pub fn new_record(now: Stamp) -> Result<Record, Error> {
    Ok(Record {
        version: VERSION,
        id: random_id()?,
        created: now,
        used: now,
        roots: Vec::new(),
        stack: Vec::new(),
        open: None,
        quota: None,
        snapshots: BTreeMap::new(),
        checkpoints: Vec::new(),
        policy: Vec::new(),
    })
}

/// 16 random hexadecimal digits.
pub fn random_id() -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut bytes = [0u8; 8];
    let mut file = File::open("/dev/urandom").map_err(Error::io("open", "/dev/urandom"))?;
    file.read_exact(&mut bytes).map_err(Error::io("read", "/dev/urandom"))?;
    let mut text = String::with_capacity(16);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn is_id(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Names in a directory that is listed more than once: a descriptor remembers how far it was read, and
/// a second listing of the layers that found none would collect every delta.
fn list_again(dir: &OwnedFd) -> Result<(Vec<(OsString, rustix::fs::FileType)>, bool), Errno> {
    let fresh = rustix::fs::openat(dir, ".", DIRECTORY, Mode::empty())?;
    fd::list(fresh.as_fd(), MAX_LISTED)
}

fn make_directory(dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), Error> {
    match rustix::fs::mkdirat(dir, name, PRIVATE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::os("make", path)(errno)),
    }
}

fn read_record(dir: BorrowedFd<'_>, path: &Path) -> Result<Record, Error> {
    let path = path.join("record.json");
    let bytes = fd::read_regular(dir, b"record.json", MAX_RECORD).map_err(|e| match e {
        fd::ReadError::Os(errno) if errno != Errno::NOENT => Error::os("read", &path)(errno),
        e => Error::Corrupt { path: path.clone(), problem: e.to_string() },
    })?;
    let corrupt = |problem: String| Error::Corrupt { path: path.clone(), problem };
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(VERSION) => {}
        Some(found) => return Err(Error::Version { path, found, known: VERSION }),
        None => return Err(corrupt("it has no version".into())),
    }
    let record: Record = serde_json::from_value(value).map_err(|e| corrupt(e.to_string()))?;
    // Ids become parts of paths.
    if let Some(bad) = record.deltas().into_iter().find(|id| !is_id(id)) {
        return Err(corrupt(format!("`{}` is not the id of a delta", bad.escape_debug())));
    }
    Ok(record)
}

fn write_record(
    dir: BorrowedFd<'_>,
    path: &Path,
    record: &Record,
    synced: bool,
) -> Result<(), Error> {
    let file = path.join("record.json");
    let text = serde_json::to_vec_pretty(record)
        .map_err(|e| Error::Corrupt { path: file.clone(), problem: e.to_string() })?;
    replace(dir, "record.json", path, &text, synced)
}

/// Of no further consequence if it is lost with the host's power.
fn read_use(dir: BorrowedFd<'_>) -> Option<Use> {
    serde_json::from_slice(&fd::read_regular(dir, USE.as_bytes(), MAX_RECORD).ok()?).ok()
}

/// Replaces a file as a whole: after a kill the old content is there or the new.
pub(crate) fn replace(
    dir: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    text: &[u8],
    synced: bool,
) -> Result<(), Error> {
    let path = path.join(name);
    let draft = format!(".{name}.new");
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, &*draft, flags, FILE).map_err(Error::os("write", &path))?;
    let mut file = File::from(fd);
    file.write_all(text).map_err(Error::io("write", &path))?;
    if synced {
        rustix::fs::fsync(&file).map_err(Error::os("write", &path))?;
    }
    rustix::fs::renameat(dir, &*draft, dir, name).map_err(Error::os("write", &path))?;
    if synced {
        rustix::fs::fsync(dir).map_err(Error::os("write", &path))?;
    }
    Ok(())
}

fn listed(dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>, Error> {
    let (names, _) = list_again(dir).map_err(Error::os("list", path))?;
    Ok(names.into_iter().map(|(name, _)| name).collect())
}

/// Takes the name of a layer or delta away. What it holds is removed by whoever collects.
fn give_up(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Error> {
    let gone = format!("{GONE}{}", random_id()?);
    rustix::fs::renameat(dir, name, dir, &*gone).map_err(Error::os("remove", path))
}

/// Removes what nobody finds any more, unless somebody else is at it.
fn clear(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Error> {
    let held = match rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()) {
        Ok(held) => held,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(Error::os("open", path)(errno)),
    };
    match flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => remove(dir.as_fd(), name, path),
        Err(Errno::WOULDBLOCK) => Ok(()),
        Err(errno) => Err(Error::os("lock", path)(errno)),
    }
}

fn sync(dir: &OwnedFd, path: &Path) -> Result<(), Error> {
    rustix::fs::fsync(dir).map_err(Error::os("write", path))
}

/// Empties the work directory beside a delta's tree: what the kernel left in it, and the mark of a mount
/// that did not write back, with which it would refuse the next. The directory itself stays for the next
/// run: some file systems take a millisecond to remove one.
fn empty_work(delta: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let path = path.join("work");
    let dir = rustix::fs::openat(delta, "work", DIRECTORY, Mode::empty())
        .map_err(Error::os("open", &path))?;
    // All that overlayfs makes there without an index, which is never asked for.
    remove(dir.as_fd(), "work".as_ref(), &path)
}

/// Removes a tree of the store. What a sandbox closed to its owner is opened first.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), Error> {
    copy::remove_tree(dir, name).map_err(|e| Error::Os {
        what: "remove",
        path: path.into(),
        errno: e.errno().unwrap_or(Errno::IO),
    })
}
