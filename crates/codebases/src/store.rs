//! The store of codebases: finding, making room for, removing, and saying who uses one.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ringfence_layers::names::Names;
use ringfence_layers::{Stamp, Store, StoreLock, check_name, copy, random_id};
use ringfence_sys::fd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::record::Database;
use crate::{Error, Record, index};

/// Where a sandbox sees its codebase.
pub const WORKSPACE: &str = "/workspace";
pub(crate) const TREE: &str = "tree";
const LOCK: &str = "lock";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// A file that is being put into a codebase.
pub(crate) const PUT: &str = ".put-";
/// What a pull has fetched.
pub(crate) const PULL: &str = ".pull-";
const PREFIX: &str = "cb_";
/// Codebases and leftovers that are listed.
const MOST: usize = 1 << 20;
/// A file in the making that is older was left by a process that was killed, seconds.
const ABANDONED: i64 = 3600;
/// What a pull has fetched that nobody went on with, seconds.
const PULL_ABANDONED: i64 = 7 * 24 * 3600;

/// All codebases of one user.
#[derive(Debug)]
pub struct Codebases {
    pub(crate) store: Store,
    pub(crate) dir: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) database: Database,
}

/// One codebase, as recorded when it was asked for.
#[derive(Debug)]
pub struct Codebase {
    pub record: Record,
    /// The directory with the tree and the index.
    pub(crate) dir: OwnedFd,
    pub(crate) path: PathBuf,
}

/// What lies over a codebase.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Layers {
    pub names: Vec<String>,
    /// One of them that a sandbox runs in, and its process.
    pub used: Option<(String, u32)>,
}

/// Held while codebases come and go.
#[derive(Debug)]
pub(crate) struct Lock {
    _ours: OwnedFd,
    /// So that no run begins on what is being changed.
    _layers: StoreLock,
}

/// A directory for a codebase in the making. Dropped before it is kept, it goes.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    all: &'a Codebases,
    pub id: String,
    pub dir: OwnedFd,
    pub path: PathBuf,
    name: String,
    _lock: OwnedFd,
    kept: bool,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = copy::remove_tree(self.all.dir.as_fd(), self.name.as_ref());
        }
    }
}

fn open_lock(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, LOCK, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Error::os("open", path.join(LOCK)))
}

pub(crate) fn make_directory(at: BorrowedFd<'_>, name: &str, path: &Path) -> Result<(), Error> {
    rustix::fs::mkdirat(at, name, Mode::RWXU).map_err(Error::os("make", path))
}

impl Codebases {
    /// Opens the store below `state`, which is made if it is not there.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let store = Store::open(state)?;
        let path = state.join("codebases");
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::os("make", path)(errno)),
        }
        let dir = rustix::fs::open(&path, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        let database = state.join("codebases.db");
        // SQLite would make it as the umask says.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&database, flags, Mode::RUSR | Mode::WUSR)
            .map_err(Error::os("open", &database))?;
        let database = Database::open(&database)?;
        Ok(Self { store, dir, path, database })
    }

    /// Which file the database of a store is, where there is one: device and inode.
    pub fn database_id(state: &Path) -> Option<(u64, u64)> {
        rustix::fs::stat(state.join("codebases.db")).ok().map(|stat| fd::id(&stat))
    }

    /// All codebases, by name.
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        self.database.all()
    }

    /// A codebase by name or id.
    pub fn get(&self, name: &str) -> Result<Codebase, Error> {
        let record = self.database.find(name)?.ok_or_else(|| Error::NoCodebase(name.to_owned()))?;
        self.opened(record)
    }

    pub(crate) fn opened(&self, record: Record) -> Result<Codebase, Error> {
        let path = self.path.join(&record.id);
        let dir = rustix::fs::openat(&self.dir, &*record.id, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        Ok(Codebase { record, dir, path })
    }

    /// Waits for the lock. It is held for moments only.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        let ours = open_lock(self.dir.as_fd(), &self.path)?;
        loop {
            match flock(&ours, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other.map_err(Error::os("lock", self.path.join(LOCK)))?,
            }
        }
        Ok(Lock { _ours: ours, _layers: self.store.lock()? })
    }

    /// Whether the name is free and can be one.
    pub(crate) fn check_free(&self, name: &str) -> Result<(), Error> {
        check_name(name).map_err(|_| Error::Name(name.to_owned()))?;
        match self.database.find(name)? {
            Some(_) => Err(Error::Taken(name.to_owned())),
            None => Ok(()),
        }
    }

    /// An empty place for a codebase. What killed processes left goes first.
    pub(crate) fn draft(&self) -> Result<Draft<'_>, Error> {
        let left = {
            let lock = self.lock()?;
            self.leftovers(&lock)?
        };
        for name in left {
            copy::remove_tree(self.dir.as_fd(), name.as_ref())?;
        }
        let id = format!("{PREFIX}{}", random_id()?);
        let name = format!("{NEW}{id}");
        let path = self.path.join(&name);
        // Nobody looks for leftovers before the lock of this one is taken.
        let _lock = self.lock()?;
        make_directory(self.dir.as_fd(), &name, &path)?;
        let dir = rustix::fs::openat(&self.dir, &*name, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        let held = open_lock(dir.as_fd(), &path)?;
        flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(Error::os("lock", path.join(LOCK)))?;
        make_directory(dir.as_fd(), TREE, &path.join(TREE))?;
        Ok(Draft { all: self, id, dir, path, name, _lock: held, kept: false })
    }

    /// What is to be removed: renamed away where it was not, so that nobody can come to use it.
    fn leftovers(&self, _lock: &Lock) -> Result<Vec<String>, Error> {
        let (names, _) = fd::list(self.dir.as_fd(), MOST).map_err(Error::os("list", &self.path))?;
        let mut left = Vec::new();
        let gone = |name: &str| -> Result<String, Error> {
            let gone = format!("{GONE}{}", random_id()?);
            rustix::fs::renameat(&self.dir, name, &self.dir, &*gone)
                .map_err(Error::os("remove", self.path.join(name)))?;
            Ok(gone)
        };
        for (name, _) in names {
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(GONE) {
                left.push(name.to_owned());
            } else if name.starts_with(NEW) {
                let path = self.path.join(name);
                let dir = rustix::fs::openat(&self.dir, name, fd::DIRECTORY, Mode::empty())
                    .map_err(Error::os("open", &path))?;
                let lock = open_lock(dir.as_fd(), &path)?;
                if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    left.push(gone(name)?);
                }
            } else if name.starts_with(PULL) {
                let dir = rustix::fs::openat(&self.dir, name, fd::DIRECTORY, Mode::empty())
                    .map_err(Error::os("open", self.path.join(name)))?;
                let old = rustix::fs::fstat(&dir)
                    .is_ok_and(|s| fd::times(&s)[0].0 < Stamp::now().0 - PULL_ABANDONED);
                if old && flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    left.push(gone(name)?);
                }
            } else if name.starts_with(PREFIX) && self.database.find(name)?.is_none() {
                // Complete, but nobody recorded it; or no more.
                left.push(gone(name)?);
            }
        }
        Ok(left)
    }

    /// Records what was made under its name.
    pub(crate) fn keep(&self, mut draft: Draft<'_>, record: &Record) -> Result<(), Error> {
        // One call for all files: a crash of the host leaves the codebase whole or unrecorded.
        rustix::fs::syncfs(&draft.dir).map_err(Error::os("sync", &draft.path))?;
        let _lock = self.lock()?;
        self.check_free(&record.name)?;
        rustix::fs::renameat(&self.dir, &*draft.name, &self.dir, &*record.id)
            .map_err(Error::os("keep", self.path.join(&record.id)))?;
        draft.kept = true;
        rustix::fs::fsync(&self.dir).map_err(Error::os("sync", &self.path))?;
        self.database.insert(record)
    }

    /// Puts what was made in the place of a codebase that exists. Its record has the old version or the
    /// new one; in between it has no index, and is looked at anew.
    pub(crate) fn replace(&self, draft: &Draft<'_>, record: &Record) -> Result<(), Error> {
        rustix::fs::syncfs(&draft.dir).map_err(Error::os("sync", &draft.path))?;
        let _lock = self.lock()?;
        let codebase = self.get(&record.id)?;
        if codebase.record.sealed || codebase.record.version + 1 != record.version {
            return Err(Error::Refused(format!(
                "codebase {} was changed meanwhile by another process",
                codebase.record.name
            )));
        }
        self.unused(&codebase)?;
        index::remove(codebase.dir.as_fd(), &codebase.path)?;
        rustix::fs::renameat_with(
            &draft.dir,
            TREE,
            &codebase.dir,
            TREE,
            rustix::fs::RenameFlags::EXCHANGE,
        )
        .map_err(Error::os("replace", codebase.tree()))?;
        self.database.changed(record)?;
        rustix::fs::renameat(&draft.dir, index::INDEX, &codebase.dir, index::INDEX)
            .map_err(Error::os("keep", codebase.path.join(index::INDEX)))
    }

    /// Removes a codebase, unless a sandbox uses it. Layers over it stay, and can be looked at no more.
    pub fn remove(&self, name: &str) -> Result<Record, Error> {
        let (codebase, gone) = {
            let _lock = self.lock()?;
            let codebase = self.get(name)?;
            self.unused(&codebase)?;
            self.database.remove(&codebase.record.id)?;
            let gone = format!("{GONE}{}", random_id()?);
            rustix::fs::renameat(&self.dir, &*codebase.record.id, &self.dir, &*gone)
                .map_err(Error::os("remove", &codebase.path))?;
            (codebase, gone)
        };
        copy::remove_tree(self.dir.as_fd(), gone.as_ref())?;
        Ok(codebase.record)
    }

    /// From now on nothing can be put into it.
    pub fn seal(&self, name: &str) -> Result<Record, Error> {
        let _lock = self.lock()?;
        let mut codebase = self.get(name)?;
        self.database.seal(&codebase.record.id)?;
        codebase.record.sealed = true;
        Ok(codebase.record)
    }

    /// The layers that lie over a codebase.
    pub fn layers(&self, codebase: &Codebase) -> Result<Layers, Error> {
        let tree = codebase.tree();
        let mut found = Layers::default();
        for name in self.store.names()? {
            let Ok(layer) = self.store.layer(&name) else { continue };
            if layer.record.roots.iter().any(|root| root.path == tree) {
                if found.used.is_none() {
                    found.used = self.store.holder(&name)?.map(|holder| (name.clone(), holder.pid));
                }
                found.names.push(name);
            }
        }
        Ok(found)
    }

    /// An error if a sandbox runs on it. Only under the lock does the answer stay true.
    pub(crate) fn unused(&self, codebase: &Codebase) -> Result<(), Error> {
        match self.layers(codebase)?.used {
            Some((layer, pid)) => {
                Err(Error::InUse { codebase: codebase.record.name.clone(), layer, pid })
            }
            None => Ok(()),
        }
    }

    /// The index of a codebase; made anew where a killed process left none.
    pub fn names(&self, codebase: &Codebase) -> Result<Names, Error> {
        if let Some(names) = codebase.names()? {
            return Ok(names);
        }
        let _lock = self.lock()?;
        let mut codebase = self.get(&codebase.record.id)?;
        if codebase.names()?.is_none() {
            self.count(&mut codebase)?;
        }
        codebase
            .names()?
            .ok_or_else(|| Error::file(codebase.path.join(index::INDEX), "is not there"))
    }

    /// Index and counts of the tree as it is. Under the lock.
    fn count(&self, codebase: &mut Codebase) -> Result<(), Error> {
        let tree = codebase.open_tree()?;
        let mut look = index::look(tree.as_fd(), false)?;
        let known = index::take_note(codebase.dir.as_fd());
        let record = &mut codebase.record;
        (record.size, record.files) = (look.size, look.files);
        record.entries = look.names.len() as u64;
        if known != Some(record.version) {
            // A change that was not recorded to its end.
            record.version += 1;
            record.updated = Stamp::now();
        }
        // The record first: what has an index is recorded.
        self.database.changed(record)?;
        let version = codebase.record.version;
        index::write(codebase.dir.as_fd(), &codebase.path, &mut look, version)
    }

    /// Removes files in the making that nobody makes any more. Under the lock.
    pub(crate) fn sweep_puts(codebase: &Codebase) -> Result<(), Error> {
        let (names, _) =
            fd::list(codebase.dir.as_fd(), MOST).map_err(Error::os("list", &codebase.path))?;
        for (name, _) in names {
            let starts = |prefix: &str| name.to_str().is_some_and(|n| n.starts_with(prefix));
            let old = || {
                fd::stat_name(&codebase.dir, &*name)
                    .is_ok_and(|s| fd::times(&s)[1].0 < Stamp::now().0 - ABANDONED)
            };
            // An index is only written under the lock.
            if starts(index::DRAFT) || (starts(PUT) && old()) {
                copy::remove_tree(codebase.dir.as_fd(), &name)?;
            }
        }
        Ok(())
    }
}

impl Codebase {
    /// What sandboxes mount, below their layers.
    pub fn tree(&self) -> PathBuf {
        self.path.join(TREE)
    }

    pub(crate) fn open_tree(&self) -> Result<OwnedFd, Error> {
        rustix::fs::openat(&self.dir, TREE, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", self.tree()))
    }

    /// The same by path, for whoever was told of the version and must not wait for the record.
    pub fn index_of(tree: &Path, version: u64) -> Option<Names> {
        let path = tree.parent()?;
        let dir = rustix::fs::open(path, fd::DIRECTORY, Mode::empty()).ok()?;
        let names = Names::open(dir.as_fd(), index::INDEX).ok().flatten()?;
        let state = index::state(dir.as_fd(), path, version).ok()?;
        (names.state() == state).then_some(names)
    }

    /// The index, if it is that of the tree as it was recorded. Whoever goes by it looks afterwards, when
    /// nobody can change the codebase, whether it is kept ([`Names::is_kept`]).
    pub fn index(&self) -> Option<Names> {
        self.names().ok().flatten()
    }

    /// `None` where it has to be made anew.
    fn names(&self) -> Result<Option<Names>, Error> {
        match Names::open(self.dir.as_fd(), index::INDEX) {
            Ok(Some(names)) => {
                let state = index::state(self.dir.as_fd(), &self.path, self.record.version)?;
                Ok((names.state() == state).then_some(names))
            }
            Ok(None) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Ok(None),
            Err(e) => Err(Error::io("read", self.path.join(index::INDEX))(e)),
        }
    }

    /// The tree as an archive.
    pub fn export(
        &self,
        out: impl std::io::Write,
        compress: bool,
    ) -> Result<ringfence_layers::pack::Exported, Error> {
        use ringfence_layers::pack::{Format, export};
        let format = if compress { Format::TarZstd } else { Format::Tar };
        let roots = [(self.tree(), vec![self.open_tree()?])];
        Ok(export(&roots, out, format)?)
    }
}

/// Whoever calls, for the owner of what he makes.
pub(crate) fn caller() -> String {
    rustix::process::geteuid().as_raw().to_string()
}

/// Opens a directory or archive that the user named.
pub(crate) fn open_named(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(Error::io("open", path))
}
