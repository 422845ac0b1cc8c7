//! A small directory tree that lies in an overlay just above what it hides: a whiteout for each name
//! that rules make invisible, an empty file without permissions for each that is only listed, and the
//! directories on the way to them. What it says costs nothing per access; the kernel does not even
//! look at what lies below a whiteout.
//!
//! A mask belongs to one tree, the host's directory or one sealed delta, and lies directly above it,
//! below the deltas that came later. So a deletion, a replaced directory or an opaque one further up
//! means the same with a mask as without.
//!
//! Masks are kept in the store under a key that is a digest of all that went into them. One that
//! exists is used as it is, so a start costs a look at what is covered and at the directories around.
//! A mask never changes, and is never removed while a run uses it: names would appear.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_sys::fd;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::index::path_of;
use crate::{Error, Store, copy, random_id};

/// Part of the key; raised with every change of what a mask looks like.
const FORMAT: &[u8] = b"ringfence mask 1\n";
/// Masks that are kept; beyond, those go first that were not made lately and that no run uses.
const MOST_KEPT: usize = 64;
/// Masks that are looked at when some have to go.
const MOST_LISTED: usize = 1 << 16;
/// A mask in the making that is older than this was left by a process that was killed.
const ABANDONED_SECONDS: i64 = 600;
const PREFIX: &str = ".";

/// How a name is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cover {
    /// It does not exist, nor does anything below it.
    Hidden,
    /// It can be listed and its status read, nothing more. Never a directory.
    Listed,
}

/// A covered name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Relative to the root of the tree, without leading `/`.
    pub path: Vec<u8>,
    pub cover: Cover,
}

/// A mask in use. It stays as it is while this lives.
#[derive(Debug)]
pub struct Mask {
    tree: PathBuf,
    _lock: OwnedFd,
    /// It was made for this run.
    pub made: bool,
}

impl Mask {
    /// What to mount.
    pub fn tree(&self) -> &Path {
        &self.tree
    }
}

/// The status of everything that a mask shows.
struct Shown<'e> {
    /// Directories on the way, parents first.
    directories: BTreeMap<&'e [u8], Stat>,
    /// `None` for what is hidden, which has no status to show.
    entries: Vec<(&'e Entry, Option<Stat>)>,
}

impl Store {
    /// The mask for `entries` of the tree at `root`; `None` where nothing is covered.
    pub fn mask(&self, root: BorrowedFd<'_>, entries: &[Entry]) -> Result<Option<Mask>, Error> {
        if entries.is_empty() {
            return Ok(None);
        }
        let masks = self.path().join("masks");
        let dir = open_or_make(&masks)?;
        let shown = look(root, entries, &masks)?;
        let key = key(root, &shown, &masks)?;
        loop {
            if let Some(mask) = take(&dir, &masks, &key)? {
                return Ok(Some(mask));
            }
            let draft = format!("{PREFIX}new-{}", random_id()?);
            let made = make(&dir, &draft, root, &shown).map_err(|(what, path, errno)| Error::Os {
                what,
                path: masks.join(&draft).join(path_of(&path)),
                errno,
            });
            let settled = made.and_then(|()| {
                rustix::fs::renameat(&dir, &*draft, &dir, &*key)
                    .map_err(Error::os("keep", masks.join(&key)))
            });
            match settled {
                Ok(()) => {
                    let mask = take(&dir, &masks, &key)?;
                    prune(&dir);
                    if let Some(mask) = mask {
                        return Ok(Some(Mask { made: true, ..mask }));
                    }
                }
                Err(e) => {
                    let _ = copy::remove_tree(dir.as_fd(), draft.as_ref());
                    // Somebody else made the same meanwhile.
                    let taken = matches!(
                        e,
                        Error::Os { errno: Errno::EXIST | Errno::NOTEMPTY, what: "keep", .. }
                    );
                    if !taken {
                        return Err(e);
                    }
                }
            }
        }
    }
}

fn open_or_make(masks: &Path) -> Result<OwnedFd, Error> {
    match rustix::fs::mkdir(masks, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Error::os("make", masks)(errno)),
    }
    rustix::fs::open(masks, fd::DIRECTORY, Mode::empty()).map_err(Error::os("open", masks))
}

/// Takes a finished mask for use.
fn take(dir: &OwnedFd, masks: &Path, key: &str) -> Result<Option<Mask>, Error> {
    let lock = format!("{key}/lock");
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, &*lock, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::os("open", masks.join(lock))(errno)),
    };
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        // It is about to be removed.
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(Error::os("lock", masks.join(lock))(errno)),
    }
    let ours = rustix::fs::fstat(&fd).map_err(Error::os("look at", masks.join(&lock)))?;
    match fd::stat_name(dir, &*lock) {
        Ok(there) if fd::id(&there) == fd::id(&ours) => {}
        // Removed before it was locked.
        _ => return Ok(None),
    }
    Ok(Some(Mask { tree: masks.join(key).join("tree"), _lock: fd, made: false }))
}

/// Directories above a relative path, the root first.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::once(&[][..])
        .chain(path.iter().enumerate().filter(|(_, b)| **b == b'/').map(move |(at, _)| &path[..at]))
}

/// What is gone meanwhile is left out: nothing of it is seen.
fn look<'e>(root: BorrowedFd<'_>, entries: &'e [Entry], masks: &Path) -> Result<Shown<'e>, Error> {
    let mut shown = Shown { directories: BTreeMap::new(), entries: Vec::new() };
    let stat = |path: &[u8]| -> Result<Option<Stat>, Error> {
        // `fstatat` would follow links on the way.
        let opened = fd::open_beneath(root, path, fd::PLACE);
        match opened.and_then(|fd| rustix::fs::fstat(&fd)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(Error::os("look at", masks.join(path_of(path)))(errno)),
        }
    };
    'entries: for entry in entries {
        for directory in above(&entry.path) {
            if shown.directories.contains_key(directory) {
                continue;
            }
            match stat(directory)? {
                Some(s) if fd::kind(&s) == FileType::Directory => {
                    shown.directories.insert(directory, s);
                }
                _ => continue 'entries,
            }
        }
        match entry.cover {
            Cover::Hidden => shown.entries.push((entry, None)),
            Cover::Listed => match stat(&entry.path)? {
                Some(s) if fd::kind(&s) != FileType::Directory => {
                    shown.entries.push((entry, Some(s)));
                }
                _ => {}
            },
        }
    }
    Ok(shown)
}

/// A digest of all that a mask shows.
fn key(root: BorrowedFd<'_>, shown: &Shown<'_>, masks: &Path) -> Result<String, Error> {
    use std::fmt::Write as _;
    let root = rustix::fs::fstat(root).map_err(Error::os("look at", masks))?;
    let mut digest = Sha256::new();
    digest.update(FORMAT);
    let (dev, ino) = fd::id(&root);
    digest.update(dev.to_le_bytes());
    digest.update(ino.to_le_bytes());
    let mut add = |kind: u8, path: &[u8], stat: Option<&Stat>| {
        digest.update([kind]);
        digest.update((path.len() as u64).to_le_bytes());
        digest.update(path);
        let Some(stat) = stat else { return };
        digest.update(stat.st_mode.to_le_bytes());
        digest.update(stat.st_uid.to_le_bytes());
        digest.update(stat.st_gid.to_le_bytes());
        for (seconds, nanoseconds) in fd::times(stat) {
            digest.update(seconds.to_le_bytes());
            digest.update(nanoseconds.to_le_bytes());
        }
        digest.update(stat.st_size.to_le_bytes());
    };
    for (path, stat) in &shown.directories {
        add(b'd', path, Some(stat));
    }
    for (entry, stat) in &shown.entries {
        add(if entry.cover == Cover::Hidden { b'h' } else { b'l' }, &entry.path, stat.as_ref());
    }
    let mut text = String::with_capacity(32);
    for byte in &digest.finalize()[..16] {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

type Failed = (&'static str, Vec<u8>, Errno);

/// Makes a mask under a name that nobody looks at.
fn make(dir: &OwnedFd, draft: &str, root: BorrowedFd<'_>, shown: &Shown<'_>) -> Result<(), Failed> {
    let fail = |what| move |errno| (what, Vec::new(), errno);
    rustix::fs::mkdirat(dir, draft, Mode::RWXU).map_err(fail("make"))?;
    let own = rustix::fs::openat(dir, draft, fd::DIRECTORY, Mode::empty()).map_err(fail("open"))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(&own, "lock", flags, Mode::RUSR | Mode::WUSR).map_err(fail("make"))?;
    rustix::fs::mkdirat(&own, "tree", Mode::RWXU).map_err(fail("make"))?;
    let tree =
        rustix::fs::openat(&own, "tree", fd::DIRECTORY, Mode::empty()).map_err(fail("open"))?;
    fill(tree.as_fd(), root, shown)
}

/// Fills an empty directory with a mask.
fn fill(tree: BorrowedFd<'_>, root: BorrowedFd<'_>, shown: &Shown<'_>) -> Result<(), Failed> {
    for path in shown.directories.keys().filter(|p| !p.is_empty()) {
        at(tree, path, |dir, name| rustix::fs::mkdirat(dir, name, Mode::RWXU))
            .map_err(|errno| ("make", path.to_vec(), errno))?;
    }
    for (entry, stat) in &shown.entries {
        at(tree, &entry.path, |dir, name| match stat {
            None => whiteout(dir, name),
            Some(stat) => placeholder(dir, name, stat),
        })
        .map_err(|errno| ("make", entry.path.clone(), errno))?;
    }
    // Children before their parents, whose times they would change.
    for path in shown.directories.keys().rev() {
        like(tree, root, path).map_err(|errno| ("set attributes of", path.to_vec(), errno))?;
    }
    Ok(())
}

/// Calls `act` with the directory of a path and its last name.
fn at(
    tree: BorrowedFd<'_>,
    path: &[u8],
    act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match path.iter().rposition(|b| *b == b'/') {
        None => act(tree, OsStr::from_bytes(path)),
        Some(cut) => {
            let dir = fd::open_beneath(tree, &path[..cut], fd::PLACE | OFlags::DIRECTORY)?;
            act(dir.as_fd(), OsStr::from_bytes(&path[cut + 1..]))
        }
    }
}

/// The mark of overlayfs for a name that does not exist. Needs no privilege since Linux 5.8.
fn whiteout(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// A file like the covered one, without content or permissions. A device or a link stays what it is: a
/// device cannot be opened in a sandbox, and what a link says is part of the listing.
fn placeholder(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> Result<(), Errno> {
    match fd::kind(stat) {
        FileType::RegularFile => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            rustix::fs::ftruncate(&file, stat.st_size as u64)?;
        }
        kind @ (FileType::Fifo | FileType::Socket) => {
            rustix::fs::mknodat(dir, name, kind, Mode::empty(), 0)?;
        }
        _ => return Ok(()),
    }
    let [(seconds, nanoseconds), _] = fd::times(stat);
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Gives a directory of the mask mode, owner, attributes and times of the original.
fn like(tree: BorrowedFd<'_>, root: BorrowedFd<'_>, path: &[u8]) -> Result<(), Errno> {
    let from = match fd::open_beneath(root, path, fd::PLACE | OFlags::DIRECTORY) {
        Ok(from) => from,
        // Gone meanwhile: nothing of it is seen.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let to = fd::open_beneath(tree, path, fd::PLACE | OFlags::DIRECTORY)?;
    let mut how = copy::How {
        // Those of overlayfs say how layers are put together, not what a directory is.
        attributes: &|name| !name.as_bytes().starts_with(b"user.overlay."),
        owner: copy::Owner::SameIfAllowed,
        sync: copy::Sync::No,
        mode_mask: 0o7777,
        unlock: false,
        progress: &mut |_| Ok(()),
    };
    copy::metadata(from.as_fd(), to.as_fd(), OsStr::from_bytes(path), &mut how)
        .map(drop)
        .map_err(|e| e.errno().unwrap_or(Errno::IO))
}

/// Removes masks that are not used, when there are many. What cannot be removed now can be later.
fn prune(dir: &OwnedFd) {
    let Ok((names, _)) = fd::list(dir.as_fd(), MOST_LISTED) else { return };
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let mut aged = Vec::new();
    for (name, _) in names {
        let Ok(stat) = fd::stat_name(dir, &*name) else { continue };
        let [(modified, _), _] = fd::times(&stat);
        if !name.as_bytes().starts_with(PREFIX.as_bytes()) {
            aged.push((modified, name));
        } else if now - modified > ABANDONED_SECONDS {
            let _ = copy::remove_tree(dir.as_fd(), &name);
        }
    }
    if aged.len() <= MOST_KEPT {
        return;
    }
    aged.sort_unstable();
    let surplus = aged.len() - MOST_KEPT / 2;
    for (_, name) in aged.into_iter().take(surplus) {
        let lock = Path::new(&name).join("lock");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(dir, &lock, flags, Mode::empty()) else { continue };
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let Ok(id) = random_id() else { return };
        let gone = format!("{PREFIX}gone-{id}");
        if rustix::fs::renameat(dir, &name, dir, &*gone).is_ok() {
            let _ = copy::remove_tree(dir.as_fd(), gone.as_ref());
        }
    }
}

#[cfg(test)]
mod tests;
