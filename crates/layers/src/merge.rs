//! The trees of a stack as one: what a single delta would hold that shows the same. For export and for
//! making a deep stack flat; nothing here is on the way of a start.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::copy::{self, attribute, attribute_names, reopen, through_proc};
use crate::object;

/// The root of a tree is the empty path.
fn shown(path: &Path) -> String {
    crate::shown(if path.as_os_str().is_empty() { Path::new(".") } else { path })
}

/// Attributes by which overlayfs keeps its own account.
pub const OVERLAY: &[u8] = b"user.overlay.";
/// Marks a directory whose lower ones do not show.
pub const OPAQUE: &str = "user.overlay.opaque";
/// Those of overlayfs that change nothing of what a delta means: where a copy came from, that a
/// directory holds such copies, which mount it was. And what a program inside called `user.overlay.x`.
fn means_nothing(key: &[u8]) -> bool {
    matches!(key, b"user.overlay.origin" | b"user.overlay.impure" | b"user.overlay.uuid")
        || key.starts_with(b"user.overlay.overlay.")
}

/// Why the trees of a stack could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot {what}: {errno}", shown(path))]
    Os { what: &'static str, path: PathBuf, errno: Errno },
    #[error("{}: has the attribute {attribute}, which no delta of this version has", shown(path))]
    Invalid { path: PathBuf, attribute: String },
    #[error(transparent)]
    Copy(#[from] copy::Error),
}

/// One object of the merged tree.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Relative to the root.
    pub path: &'a Path,
    pub name: &'a OsStr,
    /// Which tree it lies in (0: the bottom).
    pub tree: usize,
    /// The directory it lies in there (`O_PATH`); for the root itself that very directory.
    pub parent: BorrowedFd<'a>,
    pub stat: Stat,
}

impl Entry<'_> {
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What names of one file have in common. Trees may lie on different devices.
    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    pub fn key(&self) -> (u64, u64) {
        (self.stat.st_dev as u64, self.stat.st_ino as u64)
    }

    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    pub fn links(&self) -> u64 {
        self.stat.st_nlink as u64
    }

    /// The object itself, without access to its content.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        let name = if self.name.is_empty() { OsStr::new(".") } else { self.name };
        copy::place(self.parent, name).map_err(failed("open", self.path))
    }
}

/// Told of each object, in the order of the bytes of the names, directories before their content.
pub trait Visitor {
    type Error: From<Error>;
    /// A directory, the root itself first; `opaque`: nothing of what lies below the stack shows in it.
    fn enter(&mut self, entry: &Entry<'_>, opaque: bool) -> Result<(), Self::Error>;
    /// The directory whose content was told.
    fn leave(&mut self, path: &Path) -> Result<(), Self::Error>;
    /// Anything else.
    fn object(&mut self, entry: &Entry<'_>) -> Result<(), Self::Error>;
    /// What lies below the stack under this name does not show.
    fn whiteout(&mut self, path: &Path) -> Result<(), Self::Error>;
}

struct Frame {
    path: PathBuf,
    /// Trees that take part, top first, with their descriptors while the frame is worked on: one for
    /// each level of a deep tree would be more than there are.
    sources: Vec<(usize, Option<OwnedFd>)>,
    opaque: bool,
    names: std::collections::btree_map::IntoIter<OsString, Vec<(usize, Stat)>>,
}

/// Walks `trees` (bottom first) as one.
pub fn walk<V: Visitor>(trees: &[OwnedFd], visitor: &mut V) -> Result<(), V::Error> {
    let mut frames: Vec<Frame> = Vec::new();
    if trees.is_empty() {
        return Ok(());
    }
    let all: Vec<usize> = (0..trees.len()).rev().collect();
    let mut tops = Vec::new();
    for &tree in &all {
        tops.push((tree, stat_of(&trees[tree], Path::new(""))?));
    }
    let (sources, opaque) = merged(trees, Path::new(""), &tops)?;
    let top = tops[0].0;
    let root = open_at(&trees[top], Path::new(""))?;
    let entry = Entry {
        path: Path::new(""),
        name: OsStr::new(""),
        tree: top,
        parent: root.as_fd(),
        stat: tops[0].1,
    };
    visitor.enter(&entry, opaque)?;
    push(trees, &mut frames, PathBuf::new(), sources, opaque)?;
    while let Some(frame) = frames.last_mut() {
        let Some((name, found)) = frame.names.next() else {
            visitor.leave(&frame.path)?;
            frames.pop();
            continue;
        };
        let path = frame.path.join(&name);
        let (tree, stat) = found[0];
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_whiteout(&stat) {
            // Where nothing below shows there is nothing to hide.
            if !frame.opaque {
                visitor.whiteout(&path)?;
            }
            continue;
        }
        // Below an opaque directory there is nothing that another mark could hide.
        let below = frame.opaque;
        let parent = parent_in(trees, frame, tree)?;
        let entry = Entry { path: &path, name: &name, tree, parent, stat };
        if kind != FileType::Directory {
            understood(&entry)?;
            visitor.object(&entry)?;
            continue;
        }
        let (sources, cut) = merged(trees, &path, &found)?;
        visitor.enter(&entry, cut && !below)?;
        for (_, fd) in &mut frame.sources {
            *fd = None;
        }
        push(trees, &mut frames, path, sources, cut || below)?;
    }
    Ok(())
}

/// Which trees a directory takes its content from, top first, and whether something cuts off what
/// lies below the stack: a mark, or an object in the middle that is no directory.
fn merged(
    trees: &[OwnedFd],
    path: &Path,
    found: &[(usize, Stat)],
) -> Result<(Vec<usize>, bool), Error> {
    let mut sources = Vec::new();
    for (tree, stat) in found {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok((sources, true));
        }
        sources.push(*tree);
        if is_opaque(&trees[*tree], path)? {
            return Ok((sources, true));
        }
    }
    Ok((sources, false))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Os { what, path: path.to_owned(), errno }
}

fn open_at(tree: impl AsFd, path: &Path) -> Result<OwnedFd, Error> {
    open_beneath(tree.as_fd(), path).map_err(failed("open", path))
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    copy::open_beneath(root, path)
}

fn stat_of(tree: &OwnedFd, path: &Path) -> Result<Stat, Error> {
    rustix::fs::fstat(open_at(tree, path)?).map_err(failed("look at", path))
}

pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether the directory `path` of `tree` is marked; an error if it is marked as nothing we know.
fn is_opaque(tree: &OwnedFd, path: &Path) -> Result<bool, Error> {
    let place = open_at(tree, path)?;
    let at = through_proc(&place);
    let mut opaque = false;
    for key in attribute_names(&at).map_err(failed("read the attributes of", path))? {
        let bytes = key.as_bytes();
        if !bytes.starts_with(OVERLAY) || means_nothing(bytes) {
            continue;
        }
        let value = attribute(&at, &key).map_err(failed("read the attributes of", path))?;
        if key != OPAQUE || value.as_deref() != Some(b"y") {
            return Err(invalid(path, &key));
        }
        opaque = true;
    }
    Ok(opaque)
}

fn invalid(path: &Path, key: &OsStr) -> Error {
    Error::Invalid { path: path.to_owned(), attribute: key.to_string_lossy().into_owned() }
}

/// Nothing of overlayfs on a file but what means nothing: a file whose content lies elsewhere
/// (metacopy) would be copied empty.
fn understood(entry: &Entry<'_>) -> Result<(), Error> {
    if entry.kind() != FileType::RegularFile {
        return Ok(());
    }
    let place = entry.open()?;
    let at = through_proc(&place);
    for key in attribute_names(&at).map_err(failed("read the attributes of", entry.path))? {
        if key.as_bytes().starts_with(OVERLAY) && !means_nothing(key.as_bytes()) {
            return Err(invalid(entry.path, &key));
        }
    }
    Ok(())
}

fn push(
    trees: &[OwnedFd],
    frames: &mut Vec<Frame>,
    path: PathBuf,
    sources: Vec<usize>,
    opaque: bool,
) -> Result<(), Error> {
    let mut names: BTreeMap<OsString, Vec<(usize, Stat)>> = BTreeMap::new();
    for &tree in &sources {
        let place = open_at(&trees[tree], &path)?;
        let listed = reopen(&place, OFlags::RDONLY | OFlags::DIRECTORY, false)
            .map_err(failed("list", &path))?;
        let entries = rustix::fs::Dir::new(listed).map_err(failed("list", &path))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", &path))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let stat = object::stat(place.as_fd(), name)
                .map_err(|e| failed("look at", &path.join(name))(e))?;
            names.entry(name.to_owned()).or_default().push((tree, stat));
        }
    }
    let sources = sources.into_iter().map(|tree| (tree, None)).collect();
    frames.push(Frame { path, sources, opaque, names: names.into_iter() });
    Ok(())
}

fn parent_in<'a>(
    trees: &[OwnedFd],
    frame: &'a mut Frame,
    tree: usize,
) -> Result<BorrowedFd<'a>, Error> {
    let path = &frame.path;
    let source = frame.sources.iter_mut().find(|(t, _)| *t == tree);
    let Some((_, fd)) = source else {
        return Err(failed("open", path)(Errno::NOENT));
    };
    if fd.is_none() {
        *fd = Some(open_at(&trees[tree], path)?);
    }
    fd.as_ref().map(AsFd::as_fd).ok_or_else(|| failed("open", path)(Errno::NOENT))
}

/// Attributes that a delta keeps: the user's own and access lists, nothing of overlayfs.
pub fn kept(key: &OsStr) -> bool {
    let key = key.as_bytes();
    (key.starts_with(b"user.") && !key.starts_with(OVERLAY))
        || key == b"system.posix_acl_access"
        || key == b"system.posix_acl_default"
}

/// Makes the empty directory `into` show what `trees` (bottom first) show as a stack. Files are linked,
/// not copied, where the file system lets us: sealed deltas never change. Nothing is synced.
pub fn flatten(trees: &[OwnedFd], into: &OwnedFd) -> Result<(), Error> {
    let root = open_at(into, Path::new(""))?;
    let at = open_at(into, Path::new(""))?;
    let mut made = Flat {
        links: copy::Links::new(open_at(into, Path::new(""))?),
        root,
        at,
        directories: Vec::new(),
    };
    walk(trees, &mut made)
}

struct Flat {
    root: OwnedFd,
    /// The directory that is being filled.
    at: OwnedFd,
    links: copy::Links,
    /// For each open directory the one that it takes its attributes from, when it is full.
    directories: Vec<Stat>,
}

fn how(progress: &mut dyn FnMut(u64) -> Result<(), Errno>) -> copy::How<'_> {
    copy::How {
        attributes: &kept,
        owner: copy::Owner::SameIfAllowed,
        sync: copy::Sync::No,
        mode_mask: 0o7777,
        unlock: true,
        progress,
    }
}

impl Visitor for Flat {
    type Error = Error;

    fn enter(&mut self, entry: &Entry<'_>, opaque: bool) -> Result<(), Error> {
        if !entry.name.is_empty() {
            rustix::fs::mkdirat(&self.at, entry.name, Mode::RWXU)
                .map_err(failed("make", entry.path))?;
            self.at = open_beneath(self.at.as_fd(), Path::new(entry.name))
                .map_err(failed("open", entry.path))?;
        }
        copy::metadata(
            entry.open()?.as_fd(),
            self.at.as_fd(),
            entry.path.as_os_str(),
            &mut how(&mut |_| Ok(())),
        )?;
        let made = through_proc(&self.at);
        rustix::fs::chmodat(CWD, &made, Mode::RWXU, AtFlags::empty())
            .map_err(failed("open", entry.path))?;
        if opaque {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&made, OPAQUE, b"y", flags)
                .map_err(failed("set the attributes of", entry.path))?;
        }
        self.directories.push(entry.stat);
        Ok(())
    }

    fn leave(&mut self, path: &Path) -> Result<(), Error> {
        if let Some(stat) = self.directories.pop() {
            copy::mode_and_times(self.at.as_fd(), &stat, path.as_os_str())?;
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        self.at = open_beneath(self.root.as_fd(), parent).map_err(failed("open", parent))?;
        Ok(())
    }

    fn object(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        let flags = AtFlags::SYMLINK_FOLLOW;
        let place = entry.open()?;
        // What the descriptor is, whatever the modes of the directories above it.
        match rustix::fs::linkat(CWD, through_proc(&place), &self.at, entry.name, flags) {
            Ok(()) => return Ok(()),
            // Another file system, too many names, not ours to link.
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failed("link", entry.path)(errno)),
        }
        copy::object(
            entry.parent,
            entry.name,
            self.at.as_fd(),
            entry.name,
            Some((&mut self.links, entry.path)),
            &mut how(&mut |_| Ok(())),
        )?;
        Ok(())
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), Error> {
        let Some(name) = path.file_name() else { return Ok(()) };
        make_whiteout(self.at.as_fd(), name).map_err(failed("hide", path))
    }
}

/// The mark of overlayfs that a name is gone. Anybody may make it.
pub fn make_whiteout(at: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::mknodat(at, name, FileType::CharacterDevice, Mode::empty(), 0)
}

#[cfg(test)]
mod tests;
