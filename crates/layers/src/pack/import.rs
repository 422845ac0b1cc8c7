//! An archive, which may be anybody's, as the trees of a new delta.
//!
//! Nothing is resolved through a name that the archive made: every parent is opened beneath its tree
//! with links refused, every object is made anew and never replaced. Whatever is odd refuses the whole
//! archive; the caller throws the delta away.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_sys::fd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::tar::{Kind, Member, Reader};
use super::{Error, GZIP_MAGIC, MANIFEST, MAX_MANIFEST, Manifest, OPAQUE, WHITEOUT, ZSTD_MAGIC};
use crate::copy::through_proc;
use crate::merge::{self, make_whiteout};

/// Bytes of content read at once.
const CHUNK: usize = 256 << 10;
/// Runs of zeros of this length and place become holes: the block of nearly every file system.
const HOLE: usize = 4096;
/// Levels of directories; tools break long before.
const MAX_DEPTH: usize = 1_000;
/// Bytes of one name, and of a link's text: what the kernel takes.
const MAX_NAME: usize = 255;
const MAX_LINK: usize = 4095;
/// Bytes after which the ratio of what comes out to what goes in is looked at: small archives of
/// empty blocks have any ratio.
const RATIO_FROM: u64 = 64 << 20;
/// Content written between two looks at the free space.
const SPACE_EACH: u64 = 32 << 20;
/// Memory that decompression may take, as a power of two: zstd's own limit.
const WINDOW_LOG: u32 = 27;

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that are written (holes cost nothing).
    pub written: u64,
    /// Bytes of content, holes included.
    pub content: u64,
    pub members: u64,
    /// Bytes written for each byte of the archive.
    pub ratio: u64,
    /// Bytes that stay free on the disk.
    pub free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            written: 64 << 30,
            content: 256 << 30,
            members: 2_000_000,
            ratio: 2_000,
            free: crate::quota::FREE_FLOOR,
        }
    }
}

/// One tree to fill.
#[derive(Debug)]
pub struct Import {
    /// An empty directory of the caller's own.
    pub tree: OwnedFd,
    /// The directory that the layer will lie over: what the archive does not describe (parents of
    /// what it holds) is made like it.
    pub lower: Option<OwnedFd>,
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub members: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Files that lost setuid or setgid.
    pub privileged: u64,
    /// Objects that belong to the caller because he may not give them away.
    pub owners: u64,
    /// Extended attributes that no layer has.
    pub attributes: u64,
}

/// Counts what is read.
struct Counted<R> {
    from: R,
    read: std::rc::Rc<std::cell::Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(into)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

impl Import {
    /// Fills `trees` (one for each root, in the order of the archive) with what `from` holds. Nothing is
    /// synced.
    pub fn read(trees: &[Self], from: impl Read, limits: Limits) -> Result<Imported, Error> {
        let reading = |source| Error::Stream { what: "read the archive", source };
        let packed = std::rc::Rc::default();
        let counted = Counted { from, read: std::rc::Rc::clone(&packed) };
        let mut from = BufReader::with_capacity(CHUNK, counted);
        let start = from.fill_buf().map_err(reading)?;
        if start.starts_with(&GZIP_MAGIC) {
            return Err(Error::Compression("compressed with gzip: pipe it through `gunzip`"));
        }
        let mut taking = Taking {
            trees,
            limits,
            packed,
            done: Imported::default(),
            written: 0,
            checked: 0,
            directories: BTreeMap::new(),
            buffer: vec![0; CHUNK],
            me: rustix::process::geteuid().as_raw(),
        };
        for (tree, import) in trees.iter().enumerate() {
            // Until the archive says something else of it.
            if import.lower.is_some() {
                taking.like_lower(&Place { tree, path: PathBuf::new() }, false);
            }
        }
        if start.starts_with(&ZSTD_MAGIC) {
            let mut decoder = zstd::Decoder::with_buffer(from).map_err(reading)?;
            decoder.window_log_max(WINDOW_LOG).map_err(reading)?;
            taking.all(&mut Reader::new(decoder))?;
        } else {
            taking.all(&mut Reader::new(from))?;
        }
        taking.finish()
    }
}

/// What a directory gets when it is full.
struct Pending {
    mode: u32,
    mtime: (i64, u32),
    /// The archive described it; else it is like the lower one.
    described: bool,
}

struct Taking<'a> {
    trees: &'a [Import],
    limits: Limits,
    packed: std::rc::Rc<std::cell::Cell<u64>>,
    done: Imported,
    written: u64,
    /// Bytes written when the free space was last looked at.
    checked: u64,
    /// By tree and path.
    directories: BTreeMap<(usize, PathBuf), Pending>,
    buffer: Vec<u8>,
    me: u32,
}

/// A name of the archive, checked: which tree, and the path in it.
#[derive(Debug)]
struct Place {
    tree: usize,
    path: PathBuf,
}

impl Place {
    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

fn refused(path: &[u8], why: &'static str) -> Error {
    Error::Refused { path: OsStr::from_bytes(path).into(), why }
}

fn os(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Os { what, path: path.to_owned(), errno }
}

impl Taking<'_> {
    fn all<R: Read>(&mut self, from: &mut Reader<R>) -> Result<(), Error> {
        let mut first = true;
        while let Some(member) = from.next_member()? {
            self.done.members += 1;
            if self.done.members > self.limits.members {
                return Err(Error::TooMuch { limit: format!("{} members", self.limits.members) });
            }
            if std::mem::take(&mut first) && self.manifest(&member, from)? {
                continue;
            }
            self.member(&member, from)?;
        }
        Ok(())
    }

    /// Whether the first member is our manifest; then it must name as many roots as were given.
    fn manifest<R: Read>(&self, member: &Member, from: &mut Reader<R>) -> Result<bool, Error> {
        let several = self.trees.len() > 1;
        if member.path != MANIFEST.as_bytes() || member.kind != Kind::File {
            return if several {
                Err(Error::RootCount { found: 1, given: self.trees.len() })
            } else {
                Ok(false)
            };
        }
        if member.size > MAX_MANIFEST {
            return Err(refused(&member.path, "too large"));
        }
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let n = from.content(&mut buffer)?;
            if n == 0 {
                break;
            }
            text.extend(&buffer[..n]);
        }
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else {
            return Err(refused(&member.path, "not a list of roots"));
        };
        if manifest.ringfence != 1 {
            return Err(refused(&member.path, "of a format that this version does not know"));
        }
        match (manifest.roots.len(), self.trees.len()) {
            (found, given) if found == given => Ok(true),
            (_, 1) => Err(Error::Roots(manifest.roots)),
            (found, given) => Err(Error::RootCount { found, given }),
        }
    }

    /// What the name of a member means: only names that lead down, none of which is a mark.
    fn place(&self, name: &[u8]) -> Result<Place, Error> {
        if name.starts_with(b"/") {
            return Err(refused(name, "an absolute name"));
        }
        let mut parts = Vec::new();
        for part in name.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(refused(name, "a name with ..")),
                part if part.len() > MAX_NAME => return Err(refused(name, "a name too long")),
                part => parts.push(part),
            }
        }
        if parts.len() > MAX_DEPTH {
            return Err(refused(name, "directories too deep"));
        }
        // The last one may be a mark, and the caller looks; a directory cannot.
        if let [parents @ .., _] = &parts[..]
            && parents.iter().any(|part| part.starts_with(WHITEOUT))
        {
            return Err(refused(name, "a directory whose name is a mark"));
        }
        let mut tree = 0;
        let mut rest = &parts[..];
        if self.trees.len() > 1 {
            let Some((first, below)) = parts.split_first() else {
                return Err(refused(name, "not below the number of a root"));
            };
            let number = std::str::from_utf8(first).ok().and_then(|n| n.parse::<usize>().ok());
            match number {
                Some(n) if n < self.trees.len() && n.to_string().as_bytes() == *first => tree = n,
                _ => return Err(refused(name, "not below the number of a root")),
            }
            rest = below;
        }
        Ok(Place { tree, path: rest.iter().map(|part| OsStr::from_bytes(part)).collect() })
    }

    fn member<R: Read>(&mut self, member: &Member, from: &mut Reader<R>) -> Result<(), Error> {
        let place = self.place(&member.path)?;
        if place.path.as_os_str().is_empty() {
            if member.kind != Kind::Directory {
                return Err(refused(&member.path, "not the name of a file"));
            }
            return self.describe(&place, member);
        }
        if let Some(hidden) = place.name().as_bytes().strip_prefix(WHITEOUT) {
            return self.mark(&place, hidden, member);
        }
        let parent = self.parent(&place)?;
        let name = place.name();
        let at = parent.as_fd();
        let there = match fd::stat_name(&parent, name) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(os("look at", &place.path)(errno)),
        };
        // A mark beside an object is about lower layers only: the object stays, and nothing of a
        // directory below it shows.
        let hidden = there.as_ref().is_some_and(merge::is_whiteout);
        if let Some(stat) = &there {
            let both = member.kind == Kind::Directory && fd::kind(stat) == FileType::Directory;
            if hidden {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                    .map_err(os("replace", &place.path))?;
            } else if both {
                return self.describe(&place, member);
            } else {
                return Err(refused(&member.path, "the archive holds this name twice"));
            }
        }
        match member.kind {
            Kind::Directory => {
                rustix::fs::mkdirat(at, name, Mode::RWXU).map_err(os("make", &place.path))?;
                if hidden {
                    self.opaque(&place)?;
                }
                self.describe(&place, member)
            }
            Kind::File => self.file(&place, at, member, from),
            Kind::Symlink => {
                if member.link.is_empty() || member.link.len() > MAX_LINK {
                    return Err(refused(&member.path, "a link whose text cannot be"));
                }
                rustix::fs::symlinkat(&member.link[..], at, name)
                    .map_err(os("make", &place.path))?;
                self.attributes(&place, at, member)
            }
            Kind::Fifo => {
                rustix::fs::mknodat(at, name, FileType::Fifo, Mode::RUSR, 0)
                    .map_err(os("make", &place.path))?;
                self.attributes(&place, at, member)
            }
            Kind::HardLink => self.link(&place, at, member),
            Kind::Device => Err(refused(&member.path, "a device")),
        }
    }

    /// The directory that a member lies in; made where the archive did not describe it.
    fn parent(&mut self, place: &Place) -> Result<OwnedFd, Error> {
        let tree = &self.trees[place.tree].tree;
        match open(tree.as_fd(), place.parent()) {
            Ok(parent) => return Ok(parent),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(errno) => return Err(os("open", place.parent())(errno)),
        }
        let parents: Vec<&Path> =
            place.parent().ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        for path in parents.into_iter().rev() {
            let above = path.parent().unwrap_or(Path::new(""));
            let above = open(tree.as_fd(), above).map_err(os("open", above))?;
            let name = path.file_name().unwrap_or_default();
            let mut hidden = false;
            match fd::stat_name(&above, name) {
                Ok(stat) if merge::is_whiteout(&stat) => {
                    rustix::fs::unlinkat(&above, name, AtFlags::empty())
                        .map_err(os("replace", path))?;
                    hidden = true;
                }
                Ok(stat) if fd::kind(&stat) == FileType::Directory => continue,
                Ok(_) => {
                    return Err(refused(
                        place.path.as_os_str().as_bytes(),
                        "something that is no directory is used as one",
                    ));
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(os("look at", path)(errno)),
            }
            rustix::fs::mkdirat(&above, name, Mode::RWXU).map_err(os("make", path))?;
            let made = Place { tree: place.tree, path: path.to_owned() };
            if hidden {
                self.opaque(&made)?;
            }
            self.like_lower(&made, hidden);
        }
        open(tree.as_fd(), place.parent()).map_err(os("open", place.parent()))
    }

    /// A directory that only its content told of looks as the one that it lies over.
    fn like_lower(&mut self, place: &Place, hidden: bool) {
        let lower = self.trees[place.tree].lower.as_ref().filter(|_| !hidden);
        let stat = lower
            .and_then(|lower| open(lower.as_fd(), &place.path).ok())
            .and_then(|dir| rustix::fs::fstat(dir).ok());
        let pending = match stat {
            Some(stat) => Pending {
                mode: stat.st_mode & 0o1777,
                mtime: fd::times(&stat)[0],
                described: false,
            },
            None => Pending { mode: 0o755, mtime: (0, 0), described: false },
        };
        self.directories.entry((place.tree, place.path.clone())).or_insert(pending);
    }

    /// A directory, made already, gets what the archive says, when all is there.
    fn describe(&mut self, place: &Place, member: &Member) -> Result<(), Error> {
        let fd = open(self.trees[place.tree].tree.as_fd(), &place.path)
            .map_err(os("open", &place.path))?;
        self.dress(&place.path, fd.as_fd(), member)?;
        let pending = Pending { mode: member.mode & 0o3777, mtime: member.mtime, described: true };
        let key = (place.tree, place.path.clone());
        if self.directories.insert(key, pending).is_some_and(|before| before.described) {
            return Err(refused(&member.path, "the archive holds this name twice"));
        }
        Ok(())
    }

    fn mark(&mut self, place: &Place, hidden: &[u8], member: &Member) -> Result<(), Error> {
        if member.kind != Kind::File || member.size != 0 {
            return Err(refused(&member.path, "a mark that is no empty file"));
        }
        let parent = self.parent(place)?;
        if place.name().as_bytes() == OPAQUE {
            let path = place.parent().to_owned();
            return self.opaque(&Place { tree: place.tree, path });
        }
        // Marks of other programs, and names that could not be a member's.
        if hidden.starts_with(WHITEOUT) || matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(&member.path, "a mark that means nothing"));
        }
        let name = OsStr::from_bytes(hidden);
        match fd::stat_name(&parent, name) {
            Err(Errno::NOENT) => {
                make_whiteout(parent.as_fd(), name).map_err(os("hide", &place.path))
            }
            Ok(stat) if merge::is_whiteout(&stat) => {
                Err(refused(&member.path, "the archive holds this name twice"))
            }
            Ok(stat) if fd::kind(&stat) == FileType::Directory => {
                let path = place.parent().join(name);
                self.opaque(&Place { tree: place.tree, path })
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(os("look at", &place.path)(errno)),
        }
    }

    fn opaque(&self, place: &Place) -> Result<(), Error> {
        let fd = open(self.trees[place.tree].tree.as_fd(), &place.path)
            .map_err(os("open", &place.path))?;
        rustix::fs::setxattr(through_proc(&fd), merge::OPAQUE, b"y", XattrFlags::empty())
            .map_err(os("set the attributes of", &place.path))
    }

    fn file<R: Read>(
        &mut self,
        place: &Place,
        at: BorrowedFd<'_>,
        member: &Member,
        from: &mut Reader<R>,
    ) -> Result<(), Error> {
        let path = &place.path;
        self.done.bytes = self.done.bytes.saturating_add(member.size);
        // Told beforehand, so that a header alone is not believed for long.
        if self.done.bytes > self.limits.content {
            return Err(Error::TooMuch { limit: format!("{} bytes", self.limits.content) });
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(at, place.name(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(os("make", path))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut offset = 0;
        loop {
            // Whole chunks, so that holes are found at the same places however the bytes come.
            let mut filled = 0;
            while filled < buffer.len() {
                match from.content(&mut buffer[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                break;
            }
            self.pieces(&file, &buffer[..filled], offset, path)?;
            offset += filled as u64;
        }
        self.buffer = buffer;
        rustix::fs::ftruncate(&file, offset).map_err(os("write", path))?;
        self.attributes(place, at, member)
    }

    /// Writes what is not zero.
    fn pieces(
        &mut self,
        file: &OwnedFd,
        bytes: &[u8],
        offset: u64,
        path: &Path,
    ) -> Result<(), Error> {
        let zero = |block: &[u8]| block.iter().all(|b| *b == 0);
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            while at < bytes.len() && zero(&bytes[at..bytes.len().min(at + HOLE)]) {
                at = bytes.len().min(at + HOLE);
            }
            if at > start {
                continue;
            }
            while at < bytes.len() && !zero(&bytes[at..bytes.len().min(at + HOLE)]) {
                at = bytes.len().min(at + HOLE);
            }
            self.room((at - start) as u64, file, path)?;
            let mut done = start;
            while done < at {
                match rustix::io::pwrite(file, &bytes[done..at], offset + done as u64) {
                    Ok(0) => return Err(os("write", path)(Errno::IO)),
                    Ok(n) => done += n,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(os("write", path)(errno)),
                }
            }
        }
        Ok(())
    }

    /// Whether `more` bytes may be written.
    fn room(&mut self, more: u64, file: &OwnedFd, path: &Path) -> Result<(), Error> {
        self.written += more;
        if self.written > self.limits.written {
            return Err(Error::TooMuch { limit: format!("{} bytes", self.limits.written) });
        }
        if self.written > RATIO_FROM && self.written / self.packed.get().max(1) > self.limits.ratio
        {
            let limit = format!("{} times its own size", self.limits.ratio);
            return Err(Error::TooMuch { limit });
        }
        if self.checked == 0 || self.written - self.checked > SPACE_EACH {
            self.checked = self.written;
            let left = rustix::fs::fstatvfs(file).map_err(os("look at", path))?;
            if left.f_bavail.saturating_mul(left.f_frsize) < self.limits.free + SPACE_EACH {
                return Err(Error::Space { floor: self.limits.free });
            }
        }
        Ok(())
    }

    fn link(&mut self, place: &Place, at: BorrowedFd<'_>, member: &Member) -> Result<(), Error> {
        let first = self.place(&member.link)?;
        let wrong = || refused(&member.path, "a further name of what is not in the archive");
        if first.tree != place.tree || first.path.as_os_str().is_empty() {
            return Err(wrong());
        }
        let tree = self.trees[first.tree].tree.as_fd();
        let parent = open(tree, first.parent()).map_err(|_| wrong())?;
        let stat = fd::stat_name(&parent, first.name()).map_err(|_| wrong())?;
        if !matches!(fd::kind(&stat), FileType::RegularFile | FileType::Symlink | FileType::Fifo) {
            return Err(wrong());
        }
        rustix::fs::linkat(&parent, first.name(), at, place.name(), AtFlags::empty())
            .map_err(os("link", &place.path))
    }

    /// What the archive says of something that is no directory.
    fn attributes(
        &mut self,
        place: &Place,
        at: BorrowedFd<'_>,
        member: &Member,
    ) -> Result<(), Error> {
        let path = &place.path;
        let made =
            fd::open_beneath(at, place.name().as_bytes(), fd::PLACE).map_err(os("open", path))?;
        self.dress(path, made.as_fd(), member)?;
        if member.kind != Kind::Symlink {
            if member.mode & 0o6000 != 0 {
                self.done.privileged += 1;
            }
            let mode = Mode::from_raw_mode(member.mode & 0o1777);
            rustix::fs::chmodat(CWD, through_proc(&made), mode, AtFlags::empty())
                .map_err(os("set the mode of", path))?;
        }
        set_time(&made, member.mtime).map_err(os("set the time of", path))
    }

    /// Owner and extended attributes, as far as a layer has them.
    fn dress(&mut self, path: &Path, fd: BorrowedFd<'_>, member: &Member) -> Result<(), Error> {
        let stat: Stat = rustix::fs::fstat(fd).map_err(os("look at", path))?;
        if (u64::from(stat.st_uid), u64::from(stat.st_gid)) != (member.uid, member.gid) {
            let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
            match (id(member.uid), id(member.gid)) {
                (Some(uid), Some(gid)) if self.me == 0 => {
                    let (uid, gid) =
                        (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                    rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
                        .map_err(os("give to its owner", path))?;
                }
                _ => self.done.owners += 1,
            }
        }
        let at = through_proc(fd);
        for (key, value) in &member.attributes {
            let key = OsStr::from_bytes(key);
            let user = key.as_bytes().starts_with(b"user.");
            if !merge::kept(key) || (user && !matches!(member.kind, Kind::File | Kind::Directory)) {
                self.done.attributes += 1;
                continue;
            }
            match rustix::fs::setxattr(&at, key, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not a list of rights, too long, or nothing this file system keeps.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::RANGE | Errno::TOOBIG) => {
                    self.done.attributes += 1;
                }
                Err(errno) => return Err(os("set the attributes of", path)(errno)),
            }
        }
        Ok(())
    }

    /// Modes and times of directories, inner ones first, since outer ones may close the way.
    fn finish(self) -> Result<Imported, Error> {
        for ((tree, path), pending) in self.directories.iter().rev() {
            let dir = open(self.trees[*tree].tree.as_fd(), path).map_err(os("open", path))?;
            let mode = Mode::from_raw_mode(pending.mode);
            rustix::fs::chmodat(CWD, through_proc(&dir), mode, AtFlags::empty())
                .map_err(os("set the mode of", path))?;
            set_time(&dir, pending.mtime).map_err(os("set the time of", path))?;
        }
        Ok(self.done)
    }
}

fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    fd::open_beneath(root, path.as_os_str().as_bytes(), fd::PLACE | OFlags::DIRECTORY)
}

fn set_time(fd: &OwnedFd, mtime: (i64, u32)) -> Result<(), Errno> {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, through_proc(fd), &times, AtFlags::empty())
}
