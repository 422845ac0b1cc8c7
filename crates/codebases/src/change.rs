//! Changes of a codebase, also while sandboxes run on it: these keep the tree that they were started on.
//!
//! What lies below a mounted overlay must not change, and rules of names were compiled of what was there.
//! So the first change after a sandbox began makes another tree, in which every file is a further name of
//! the same file (a change replaces files and never writes to one), and the former is kept beside it until
//! nobody runs on it. Sandboxes that start later get the new tree.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_layers::copy::{self, How, Owner, Sync, reopen};
use ringfence_layers::{Stamp, merge, random_id};
use ringfence_sys::fd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::files::{existing, inside, make_directories, open_directory, other_kind, sync};
use crate::store::{PUT, TREE, make_directory};
use crate::{Codebase, Codebases, Error, Record, index, make};

/// A former tree.
const WAS: &str = ".was-";
/// Names in one directory.
const MOST: usize = 10_000_000;

/// What a change does where a sandbox runs on the codebase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It is not made.
    Refused,
    /// The sandbox keeps the tree that it has.
    Kept,
}

impl Codebases {
    /// Makes a directory, and those on the way. One that is there is no error.
    pub fn make_directory(&self, name: &str, path: &OsStr, used: Used) -> Result<Record, Error> {
        let path = inside(path)?;
        self.alter(
            name,
            used,
            |_, tree| match existing(tree, &path)? {
                _ if path.as_os_str().is_empty() => {
                    Err(Error::file(&path, "is the codebase itself"))
                }
                _ => Ok(()),
            },
            |_, tree| {
                make_directories(tree, &path)?;
                sync(&open_directory(tree, path.parent().unwrap_or(Path::new("")))?, &path)
            },
        )
    }

    /// Removes a file, a link, an empty directory or, `whole`, a directory with all that is in it.
    pub fn remove_file(
        &self,
        name: &str,
        path: &OsStr,
        whole: bool,
        used: Used,
    ) -> Result<Record, Error> {
        let (parent, last) = named(path)?;
        let path = parent.join(&last);
        self.alter(
            name,
            used,
            |_, tree| {
                let stat = stat(tree, &parent, &last)?;
                if fd::kind(&stat) == FileType::Directory && !whole {
                    let dir = open_directory(tree, &path)?;
                    let dir = reopen(&dir, OFlags::RDONLY | OFlags::DIRECTORY, true)
                        .map_err(Error::os("open", &path))?;
                    let (names, _) = fd::list(dir.as_fd(), 1).map_err(Error::os("list", &path))?;
                    if !names.is_empty() {
                        return Err(Error::file(&path, "is a directory that is not empty"));
                    }
                }
                Ok(())
            },
            |_, tree| {
                let dir = open_directory(tree, &parent)?;
                copy::remove_tree(dir.as_fd(), &last)?;
                sync(&dir, &parent)
            },
        )
    }

    /// Gives what lies at `from` the name `to`. A file takes the place of a file.
    pub fn move_file(
        &self,
        name: &str,
        from: &OsStr,
        to: &OsStr,
        used: Used,
    ) -> Result<Record, Error> {
        let (from_parent, from_last) = named(from)?;
        let (to_parent, to_last) = named(to)?;
        let (from, to) = (from_parent.join(&from_last), to_parent.join(&to_last));
        if to.starts_with(&from) && to != from {
            return Err(Error::file(to, "lies in what is to be moved"));
        }
        self.alter(
            name,
            used,
            |_, tree| {
                let moved = stat(tree, &from_parent, &from_last)?;
                if existing(tree, &to_parent)? != to_parent {
                    return Ok(());
                }
                match stat(tree, &to_parent, &to_last) {
                    Ok(there)
                        if fd::kind(&there) == FileType::Directory
                            || fd::kind(&moved) == FileType::Directory =>
                    {
                        Err(Error::file(&to, "is there already"))
                    }
                    Ok(_) | Err(Error::Missing(_)) => Ok(()),
                    Err(e) => Err(e),
                }
            },
            |_, tree| {
                let source = open_directory(tree, &from_parent)?;
                let target = make_directories(tree, &to_parent)?;
                rustix::fs::renameat(&source, &from_last, &target, &to_last)
                    .map_err(Error::os("move", &from))?;
                sync(&source, &from_parent)?;
                sync(&target, &to_parent)
            },
        )
    }

    /// Puts what an archive holds below `path`, over files that are there. The archive may be anybody's;
    /// it is read as a whole before anything is changed, and a directory where it has a file, or the
    /// other way round, refuses it.
    pub fn put_archive<'a>(
        &self,
        name: &str,
        path: &OsStr,
        from: Box<dyn Read + 'a>,
        used: Used,
    ) -> Result<Record, Error> {
        let path = inside(path)?;
        let codebase = self.get(name)?;
        if codebase.record.sealed {
            return Err(Error::Sealed(codebase.record.name));
        }
        let draft = format!("{PUT}{}", random_id()?);
        make_directory(codebase.dir.as_fd(), &draft, &codebase.path.join(&draft))?;
        let done = self.unpack_over(&codebase, &draft, &path, from, used);
        let _ = copy::remove_tree(codebase.dir.as_fd(), draft.as_ref());
        done
    }

    fn unpack_over<'a>(
        &self,
        codebase: &Codebase,
        draft: &str,
        path: &Path,
        from: Box<dyn Read + 'a>,
        used: Used,
    ) -> Result<Record, Error> {
        let shown = codebase.path.join(draft);
        let unpacked = rustix::fs::openat(&codebase.dir, draft, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &shown))?;
        make::unpack(&unpacked, from, &mut |_| {})?;
        let look = index::look(unpacked.as_fd(), true)?;
        rustix::fs::syncfs(&unpacked).map_err(Error::os("sync", &shown))?;
        // Directories before what is in them.
        let mut names: Vec<(PathBuf, FileType)> = look
            .names
            .iter()
            .map(|n| (PathBuf::from(OsStr::from_bytes(&n.path)), n.kind))
            .collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        self.alter(
            &codebase.record.id,
            used,
            |_, tree| {
                existing(tree, path)?;
                for (name, kind) in &names {
                    let (parent, last) = named(path.join(name).as_os_str())?;
                    if existing(tree, &parent)? != parent {
                        continue;
                    }
                    match stat(tree, &parent, &last) {
                        Err(Error::Missing(_)) => {}
                        Err(e) => return Err(e),
                        Ok(there) => {
                            let there = fd::kind(&there);
                            let both = |k: FileType| (there == k) == (*kind == k);
                            if !both(FileType::Directory) {
                                return Err(Error::file(path.join(name), other_kind(there)));
                            }
                        }
                    }
                }
                Ok(())
            },
            |_, tree| {
                make_directories(tree, path)?;
                for (name, kind) in &names {
                    let to = path.join(name);
                    if *kind == FileType::Directory {
                        make_directories(tree, &to)?;
                        continue;
                    }
                    let (from_parent, last) = named(name.as_os_str())?;
                    let source = open_directory(&unpacked, &from_parent)?;
                    let target = open_directory(tree, to.parent().unwrap_or(Path::new("")))?;
                    rustix::fs::renameat(&source, &last, &target, &last)
                        .map_err(Error::os("put", &to))?;
                }
                for (name, kind) in names.iter().rev() {
                    if *kind == FileType::Directory {
                        let from = open_directory(&unpacked, name)?;
                        let like = rustix::fs::fstat(&from).map_err(Error::os("look at", name))?;
                        let made = open_directory(tree, &path.join(name))?;
                        copy::mode_and_times(made.as_fd(), &like, name.as_os_str())?;
                    }
                }
                rustix::fs::syncfs(tree).map_err(Error::os("sync", path))
            },
        )
    }

    /// One change under the lock: `check` may refuse it, before anything is different; `change` makes it.
    pub(crate) fn alter(
        &self,
        name: &str,
        used: Used,
        check: impl FnOnce(&Codebase, &OwnedFd) -> Result<(), Error>,
        change: impl FnOnce(&Codebase, &OwnedFd) -> Result<(), Error>,
    ) -> Result<Record, Error> {
        let _lock = self.lock()?;
        let mut codebase = self.get(name)?;
        if codebase.record.sealed {
            return Err(Error::Sealed(codebase.record.name));
        }
        let mut tree = codebase.open_tree()?;
        let in_use = self.runs_on(&codebase, &tree)?;
        if let (Some((layer, pid)), Used::Refused) = (&in_use, used) {
            return Err(Error::InUse {
                codebase: codebase.record.name,
                layer: layer.clone(),
                pid: *pid,
            });
        }
        Self::sweep_puts(&codebase)?;
        check(&codebase, &tree)?;
        self.sweep_former(&codebase)?;
        // A tree without an index is looked at anew.
        index::remove(codebase.dir.as_fd(), &codebase.path)?;
        if in_use.is_some() {
            part(&codebase, &tree)?;
            tree = codebase.open_tree()?;
        }
        let done = change(&codebase, &tree);
        codebase.record.updated = Stamp::now();
        codebase.record.version += 1;
        self.database.changed(&codebase.record)?;
        done?;
        index::note(codebase.dir.as_fd(), codebase.record.version);
        Ok(codebase.record)
    }

    /// A layer that a sandbox runs in over this very tree.
    fn runs_on(
        &self,
        codebase: &Codebase,
        tree: impl std::os::fd::AsFd,
    ) -> Result<Option<(String, u32)>, Error> {
        let stat = rustix::fs::fstat(tree).map_err(Error::os("look at", codebase.tree()))?;
        let (path, (_, ino)) = (codebase.tree(), fd::id(&stat));
        for name in self.store.names()? {
            let Ok(layer) = self.store.layer(&name) else { continue };
            if layer.record.roots.iter().any(|root| root.path == path && root.ino == ino)
                && let Some(holder) = self.store.holder(&name)?
            {
                return Ok(Some((name, holder.pid)));
            }
        }
        Ok(None)
    }

    /// Removes former trees that nobody runs on. Under the lock.
    fn sweep_former(&self, codebase: &Codebase) -> Result<(), Error> {
        let (names, _) =
            fd::list(codebase.dir.as_fd(), MOST).map_err(Error::os("list", &codebase.path))?;
        for (name, _) in names {
            if !name.as_bytes().starts_with(WAS.as_bytes()) {
                continue;
            }
            let place = rustix::fs::openat(&codebase.dir, &*name, fd::DIRECTORY, Mode::empty())
                .map_err(Error::os("open", codebase.path.join(&name)))?;
            if self.runs_on(codebase, &place)?.is_none() {
                copy::remove_tree(codebase.dir.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    /// Lets a layer that nobody runs in lie over the codebase as it is now: its tree may be another one
    /// than when the layer was last used. What the layer changed stays, by name.
    pub fn settle(&self, codebase: &Codebase, layer: &str) -> Result<(), Error> {
        let tree = codebase.open_tree()?;
        let stat = rustix::fs::fstat(&tree).map_err(Error::os("look at", codebase.tree()))?;
        let (path, (dev, ino)) = (codebase.tree(), fd::id(&stat));
        match self.store.layer(layer) {
            Ok(found) if found.record.roots.iter().any(|r| r.path == path && r.ino != ino) => {}
            Ok(_) | Err(ringfence_layers::Error::NoLayer(_)) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        self.store.edit(layer, |record| {
            for root in record.roots.iter_mut().filter(|r| r.path == path) {
                (root.dev, root.ino) = (dev, ino);
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// The directory and the last name of a path that has one.
fn named(path: &OsStr) -> Result<(PathBuf, OsString), Error> {
    let path = inside(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.to_owned())),
        _ => Err(Error::file(path, "is the codebase itself")),
    }
}

fn stat(tree: &OwnedFd, parent: &Path, name: &OsStr) -> Result<Stat, Error> {
    let path = parent.join(name);
    if existing(tree, parent)? != parent {
        return Err(Error::Missing(path));
    }
    match fd::stat_name(open_directory(tree, parent)?, name) {
        Err(Errno::NOENT) => Err(Error::Missing(path)),
        other => other.map_err(Error::os("look at", path)),
    }
}

/// Makes another tree of the same files and puts it in the place of the one that is in use.
fn part(codebase: &Codebase, tree: &OwnedFd) -> Result<(), Error> {
    // Its name afterwards, when the former tree has it; nobody runs on what has it before.
    let draft = format!("{WAS}{}", random_id()?);
    let shown = codebase.path.join(&draft);
    make_directory(codebase.dir.as_fd(), &draft, &shown)?;
    let done = rustix::fs::openat(&codebase.dir, &*draft, fd::DIRECTORY, Mode::empty())
        .map_err(Error::os("open", &shown))
        .and_then(|made| {
            again(tree, &made)?;
            rustix::fs::syncfs(&made).map_err(Error::os("sync", &shown))
        })
        .and_then(|()| {
            let dir = &codebase.dir;
            rustix::fs::renameat_with(dir, &*draft, dir, TREE, RenameFlags::EXCHANGE)
                .map_err(Error::os("replace", codebase.tree()))
        });
    if done.is_err() {
        let _ = copy::remove_tree(codebase.dir.as_fd(), draft.as_ref());
    }
    done
}

/// Fills the empty `made` with the directories of `tree`, and with its files by further names.
fn again(tree: &OwnedFd, made: &OwnedFd) -> Result<(), Error> {
    let mut none = |_: u64| Ok(());
    let mut full: Vec<PathBuf> = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let shown = || path.clone();
        let from = open_directory(tree, &path)?;
        let listed = reopen(&from, OFlags::RDONLY | OFlags::DIRECTORY, true)
            .map_err(Error::os("open", shown()))?;
        let to = fd::open_beneath(made.as_fd(), path.as_os_str().as_bytes(), fd::DIRECTORY)
            .map_err(Error::os("open", shown()))?;
        let (names, _) = fd::list(listed.as_fd(), MOST).map_err(Error::os("list", shown()))?;
        for (name, kind) in names {
            let here = path.join(&name);
            if kind != FileType::Directory {
                rustix::fs::linkat(&listed, &name, &to, &name, AtFlags::empty())
                    .map_err(Error::os("name again", &here))?;
                continue;
            }
            directory(listed.as_fd(), to.as_fd(), &name, &mut none)?;
            full.push(here.clone());
            todo.push(here);
        }
    }
    full.push(PathBuf::new());
    full.sort();
    for path in full.iter().rev() {
        let like = open_directory(tree, path)?;
        let like = rustix::fs::fstat(&like).map_err(Error::os("look at", path))?;
        let to = open_directory(made, path)?;
        copy::mode_and_times(to.as_fd(), &like, path.as_os_str())?;
    }
    Ok(())
}

/// A directory without what is in it, open to us while it is filled.
fn directory(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    progress: &mut dyn FnMut(u64) -> Result<(), Errno>,
) -> Result<(), Error> {
    let mut how = How {
        attributes: &|key| merge::kept(key),
        owner: Owner::Caller,
        sync: Sync::No,
        mode_mask: 0o1777,
        unlock: true,
        progress,
    };
    copy::object(from, name, to, name, None, &mut how)?;
    rustix::fs::chmodat(to, name, Mode::RWXU, AtFlags::empty())
        .map_err(Error::os("set the mode of", PathBuf::from(name)))
}
