//! Looking at a whole tree once, for its index.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_layers::copy::{attribute, attribute_names, reopen, through_proc};
use ringfence_layers::merge::OVERLAY;
use ringfence_layers::names::{self, Named, State};
use ringfence_sys::fd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::store::TREE;

/// The file beside the tree.
pub(crate) const INDEX: &str = "names";
/// Before the name of one that is being written.
pub(crate) const DRAFT: &str = ".names-";
/// Names that one codebase may have.
const MOST: usize = 20_000_000;

/// Beside the tree after a change that left no index: the version that it is recorded as.
const NOTE: &str = ".version";

/// The tree is as recorded, and counted when somebody needs it.
pub(crate) fn note(codebase: BorrowedFd<'_>, version: u64) {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(codebase, NOTE, flags, Mode::RUSR | Mode::WUSR) {
        // Without it the version is raised once more, and that is all.
        let _ = rustix::io::write(&file, version.to_string().as_bytes());
    }
}

pub(crate) fn take_note(codebase: BorrowedFd<'_>) -> Option<u64> {
    let text = fd::read_regular(codebase, NOTE.as_bytes(), 32).ok()?;
    let _ = rustix::fs::unlinkat(codebase, NOTE, AtFlags::empty());
    std::str::from_utf8(&text).ok()?.parse().ok()
}

/// What a tree holds.
#[derive(Debug)]
pub(crate) struct Look {
    pub names: Vec<Named>,
    pub size: u64,
    pub files: u64,
}

/// Walks the tree. With `ours` everything that belongs to somebody else is given to the caller: a
/// sandbox has one id on the disk, and could not change what belongs to another. What only overlayfs
/// understands is refused.
pub(crate) fn look(tree: BorrowedFd<'_>, ours: bool) -> Result<Look, Error> {
    let mut found = Look { names: Vec::new(), size: 0, files: 0 };
    let me = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(directory) = todo.pop() {
        let shown = || PathBuf::from(std::ffi::OsStr::from_bytes(&directory));
        let place = fd::open_beneath(tree, &directory, fd::PLACE | OFlags::DIRECTORY)
            .map_err(Error::os("open", shown()))?;
        if ours {
            plain(&place, &shown())?;
        }
        let opened: OwnedFd = reopen(&place, OFlags::RDONLY | OFlags::DIRECTORY, true)
            .map_err(Error::os("open", shown()))?;
        let left = MOST.saturating_sub(found.names.len());
        let (names, more) = fd::list(opened.as_fd(), left).map_err(Error::os("list", shown()))?;
        if more {
            return Err(Error::Refused(format!("a codebase can have at most {MOST} names")));
        }
        for (name, _) in names {
            let mut path = directory.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name.as_bytes());
            let whole = || PathBuf::from(std::ffi::OsStr::from_bytes(&path));
            // By the place: a directory whose mode closes it cannot be searched by name.
            let at = fd::open_beneath(tree, &path, fd::PLACE);
            let object = match at {
                Ok(object) => object,
                Err(errno) => return Err(Error::os("open", whole())(errno)),
            };
            let stat = rustix::fs::fstat(&object).map_err(Error::os("look at", whole()))?;
            let kind = fd::kind(&stat);
            match kind {
                FileType::RegularFile
                | FileType::Directory
                | FileType::Symlink
                | FileType::Fifo => {}
                _ => {
                    return Err(Error::file(
                        whole(),
                        "a device: the archive is a layer over something else, or not of files",
                    ));
                }
            }
            if ours && (stat.st_uid, stat.st_gid) != (me, group) {
                let (uid, gid) = (rustix::fs::Uid::from_raw(me), rustix::fs::Gid::from_raw(group));
                let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&object, "", Some(uid), Some(gid), flags)
                    .map_err(Error::os("take over", whole()))?;
                // The change of owner takes these bits away where they are not wanted anyway.
                if kind != FileType::Symlink {
                    let mode = Mode::from_raw_mode(stat.st_mode & 0o1777);
                    rustix::fs::chmodat(
                        rustix::fs::CWD,
                        through_proc(&object),
                        mode,
                        AtFlags::empty(),
                    )
                    .map_err(Error::os("set the mode of", whole()))?;
                }
            }
            if kind == FileType::RegularFile {
                found.files += 1;
                found.size = found.size.saturating_add(stat.st_size as u64);
            }
            if kind == FileType::Directory {
                todo.push(path.clone());
            }
            let size = if kind == FileType::Directory { 0 } else { stat.st_size as u64 };
            found.names.push(Named { path, kind, size, mtime: fd::times(&stat)[0] });
        }
    }
    Ok(found)
}

/// A directory that overlayfs would read as a command.
fn plain(directory: &OwnedFd, path: &Path) -> Result<(), Error> {
    let at = through_proc(directory);
    for key in attribute_names(&at).map_err(Error::os("look at", path))? {
        if key.as_bytes().starts_with(OVERLAY)
            && attribute(&at, &key).map_err(Error::os("look at", path))?.is_some()
        {
            let problem = "hides what lies below it: the archive is a layer over something else";
            return Err(Error::file(path, problem));
        }
    }
    Ok(())
}

/// What the index of a version says that it is of. By the directory itself a tree is known that was put
/// there in another way.
pub(crate) fn state(codebase: BorrowedFd<'_>, path: &Path, version: u64) -> Result<State, Error> {
    let stat = fd::stat_name(codebase, TREE).map_err(Error::os("look at", path.join(TREE)))?;
    let [(seconds, nanoseconds), _] = fd::times(&stat);
    Ok([version, fd::id(&stat).1, seconds as u64, nanoseconds.into()])
}

/// Takes the index away before the tree is changed, also for whoever looks after a crash of the host.
pub(crate) fn remove(codebase: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    match rustix::fs::unlinkat(codebase, INDEX, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(Error::os("renew", path.join(INDEX))(errno)),
    }
    take_note(codebase);
    rustix::fs::fsync(codebase).map_err(Error::os("sync", path))
}

/// Puts the index of `look` into the directory of the codebase, as a whole.
pub(crate) fn write(
    codebase: BorrowedFd<'_>,
    path: &Path,
    look: &mut Look,
    version: u64,
) -> Result<(), Error> {
    let state = state(codebase, path, version)?;
    let draft = format!("{DRAFT}{}", std::process::id());
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(codebase, &*draft, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Error::os("make", path.join(&draft)))?;
    let mut file = std::fs::File::from(file);
    names::write(&mut look.names, state, &mut file)
        .map_err(Error::io("write", path.join(&draft)))?;
    file.sync_data().map_err(Error::io("sync", path.join(&draft)))?;
    rustix::fs::renameat(codebase, &*draft, codebase, INDEX)
        .map_err(Error::os("keep", path.join(INDEX)))
}
