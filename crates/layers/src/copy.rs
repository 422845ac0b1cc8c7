//! One object from one directory to another, by descriptor: content with its holes, mode, times,
//! extended attributes, owner where that is allowed, hard links. No symbolic link is ever followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::Errno;

use ringfence_sys::closed;

/// Bytes handed to the kernel in one `copy_file_range`: small enough that progress moves and a
/// signal is noticed, large enough that the call does not count.
const COPY_CHUNK: usize = 64 << 20;
/// Bytes read at once where the kernel copies nothing itself.
const READ_CHUNK: usize = 256 << 10;
/// Bytes of one path handed to the kernel in one call (`PATH_MAX` less the final NUL and some room).
const PATH_CHUNK: usize = 4000;
/// Levels that removing a tree holds open at once.
const MAX_OPEN: usize = 128;
/// The kernel's own limits: `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`.
const XATTR_MAX: usize = 64 << 10;

/// Why an object was not copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot {what}: {errno}", name.display())]
    Os { what: &'static str, name: PathBuf, errno: Errno },
    #[error("{}: {} is neither copied nor made", name.display(), kind_name(*kind))]
    Kind { name: PathBuf, kind: FileType },
    #[error("{}: changed while it was copied", name.display())]
    Changed { name: PathBuf },
    #[error("\"{}\" is not the name of one file", name.display())]
    Name { name: PathBuf },
}

impl Error {
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Os { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// The new name was taken.
    pub fn exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Socket => "a socket",
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a fifo",
        FileType::Unknown => "an object of unknown type",
    }
}

/// Who owns the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The same ids as the original, or it is an error.
    Same,
    /// The same ids where the caller may give them, else the caller.
    SameIfAllowed,
    /// The caller.
    Caller,
}

/// What a file system does after each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Content and metadata are on the disk when the call returns (not the name: that is the
    /// directory's, which the caller syncs).
    Yes,
    No,
}

/// How objects are copied.
pub struct How<'a> {
    /// Which extended attributes go along.
    pub attributes: &'a dyn Fn(&OsStr) -> bool,
    pub owner: Owner,
    pub sync: Sync,
    /// Bits of the mode that are kept: `0o7777`, or `0o777` to drop setuid, setgid and sticky.
    pub mode_mask: u32,
    /// The mode of a file or directory of the caller's own that closes it to him is changed for the
    /// moment of the `open`, where nothing else helps. Only for trees that nobody else uses, such as
    /// deltas.
    pub unlock: bool,
    /// Told how many bytes were dealt with (holes included); an error ends the copy.
    pub progress: &'a mut dyn FnMut(u64) -> Result<(), Errno>,
}

impl std::fmt::Debug for How<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("How")
            .field("owner", &self.owner)
            .field("sync", &self.sync)
            .field("mode_mask", &self.mode_mask)
            .field("unlock", &self.unlock)
            .finish_non_exhaustive()
    }
}

/// What was made.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    pub kind: FileType,
    /// Bytes of content, holes included; 0 for a further name of a file.
    pub bytes: u64,
    /// A further name of a file that was copied before.
    pub linked: bool,
    /// It belongs to whom the original belongs.
    pub owner_kept: bool,
}

/// Files with several names that were copied: the original's device and inode to the first name of the
/// copy, relative to `root`. The second name becomes a link instead of a second file.
#[derive(Debug)]
pub struct Links {
    root: OwnedFd,
    made: HashMap<(u64, u64), (PathBuf, (u64, u64))>,
}

impl Links {
    /// `root`: the directory below which all copies are made.
    pub fn new(root: OwnedFd) -> Self {
        Self { root, made: HashMap::new() }
    }

    /// Makes `new` in `to` another name of what was remembered for `key`; false if nothing was, or
    /// if its name means another file by now.
    pub fn link(&self, key: (u64, u64), to: BorrowedFd<'_>, new: &OsStr) -> Result<bool, Error> {
        let Some((path, made)) = self.made.get(&key) else { return Ok(false) };
        let parent = path.parent().unwrap_or(Path::new(""));
        let Some(name) = path.file_name() else { return Ok(false) };
        let parent = match open_beneath(self.root.as_fd(), parent) {
            Ok(parent) => parent,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(errno) => return Err(failed("open the directory of its first name", new, errno)),
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if id(&stat) == *made => {}
            _ => return Ok(false),
        }
        match rustix::fs::linkat(&parent, name, to, new, AtFlags::empty()) {
            Ok(()) => {}
            // The file system's limit of names of one file: the rest becomes a file of its own.
            Err(Errno::MLINK) => return Ok(false),
            Err(errno) => return Err(failed("link", new, errno)),
        }
        let linked = rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("look at", new, errno))?;
        if id(&linked) == *made { Ok(true) } else { Err(Error::Changed { name: new.into() }) }
    }

    /// Remembers that the copy of `key` is at `path` (relative to the root), found in `to`.
    pub fn remember(
        &mut self,
        key: (u64, u64),
        to: BorrowedFd<'_>,
        new: &OsStr,
        path: PathBuf,
    ) -> Result<(), Error> {
        let made = rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("look at", new, errno))?;
        self.made.insert(key, (path, id(&made)));
        Ok(())
    }
}

/// Opens the directory `path` beneath `root`, no component of which may be a link.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let bytes = path.as_os_str().as_bytes();
    if (1..PATH_CHUNK).contains(&bytes.len()) {
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(root, path, flags, Mode::empty(), beneath) {
            // A rename raced with it, or a filter that knows only older calls.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOSYS | Errno::PERM) => {}
            Err(Errno::ACCESS) => return closed::open(root, bytes, flags, beneath),
            other => return other,
        }
    }
    // One component at a time: paths may be longer than the kernel takes in one call.
    let mut at = place_as(root, OsStr::new("."), flags)?;
    for name in path.components() {
        let std::path::Component::Normal(name) = name else { return Err(Errno::XDEV) };
        at = place_as(at.as_fd(), name, flags)?;
    }
    Ok(at)
}

/// What a name is, without access to its content, also in a directory that its mode closes to its
/// owner.
pub fn place(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    place_as(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
}

fn place_as(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            closed::open(dir, name.as_bytes(), flags, ResolveFlags::NO_MAGICLINKS)
        }
        other => other,
    }
}

/// Device and inode number. The widths of these fields differ between architectures.
#[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

#[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
fn links(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

#[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec {
            tv_sec: stat.st_mtime as _,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

fn failed(what: &'static str, name: &OsStr, errno: Errno) -> Error {
    Error::Os { what, name: name.into(), errno }
}

/// One component: a name with a slash, or one that leads elsewhere, would undo "by descriptor".
fn checked(name: &OsStr) -> Result<(), Error> {
    let bytes = name.as_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(Error::Name { name: name.into() });
    }
    Ok(())
}

/// The name of an open object for calls that take no descriptor of this kind (`O_PATH`).
pub fn through_proc(fd: impl AsFd) -> CString {
    // No NUL can be in it.
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap_or_default()
}

/// Copies `name` in `from` to `new` in `to`, which must not be there. Of a directory only itself, with
/// its attributes; its times are given once more by [`metadata`] after its content was made.
/// `links` with the copy's path relative to their root keeps hard links.
pub fn object(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new: &OsStr,
    links_at: Option<(&mut Links, &Path)>,
    how: &mut How<'_>,
) -> Result<Copied, Error> {
    checked(name)?;
    checked(new)?;
    let place = self::place(from, name).map_err(|errno| failed("open", name, errno))?;
    let stat = rustix::fs::fstat(&place).map_err(|errno| failed("look at", name, errno))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let shared = kind != FileType::Directory && links(&stat) > 1;
    if shared
        && let Some((links, _)) = &links_at
        && links.link(id(&stat), to, new)?
    {
        return Ok(Copied { kind, bytes: 0, linked: true, owner_kept: true });
    }
    let (owner_kept, bytes) = match kind {
        FileType::RegularFile => file(&place, &stat, name, to, new, how)?,
        FileType::Directory => {
            rustix::fs::mkdirat(to, new, Mode::RWXU).map_err(|e| failed("make", new, e))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(to, new, flags, Mode::empty())
                .map_err(|errno| failed("open", new, errno))?;
            (metadata(place.as_fd(), made.as_fd(), name, how)?, 0)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&place, "", Vec::new())
                .map_err(|errno| failed("read", name, errno))?;
            rustix::fs::symlinkat(target, to, new).map_err(|e| failed("make", new, e))?;
            (unopened(&place, to, new, name, how)?, 0)
        }
        FileType::Fifo => {
            rustix::fs::mknodat(to, new, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(|errno| failed("make", new, errno))?;
            (unopened(&place, to, new, name, how)?, 0)
        }
        _ => return Err(Error::Kind { name: name.into(), kind }),
    };
    if shared && let Some((links, path)) = links_at {
        links.remember(id(&stat), to, new, path.to_owned())?;
    }
    Ok(Copied { kind, bytes, linked: false, owner_kept })
}

/// A fifo or link that was just made: through a descriptor that neither opens nor follows.
fn unopened(
    place: &OwnedFd,
    to: BorrowedFd<'_>,
    new: &OsStr,
    name: &OsStr,
    how: &mut How<'_>,
) -> Result<bool, Error> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(to, new, flags, Mode::empty())
        .map_err(|errno| failed("open", new, errno))?;
    metadata(place.as_fd(), made.as_fd(), name, how)
}

/// Opens for reading what `place` (`O_PATH`) is, and nothing that took its name since. What its mode
/// closes to its owner is opened all the same. `unlock`: where nothing else can do that, the mode is
/// changed for the moment.
pub fn reopen(place: impl AsFd, flags: OFlags, unlock: bool) -> Result<OwnedFd, Errno> {
    let path = through_proc(&place);
    // The last component is a magic link to the very object; O_NOFOLLOW would refuse it.
    let flags = (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC | OFlags::NOCTTY;
    match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    match closed::open(place.as_fd(), path.to_bytes(), flags, ResolveFlags::empty()) {
        Err(Errno::ACCESS) if unlock => {}
        other => return other,
    }
    let stat = rustix::fs::fstat(&place)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::ACCESS);
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    let opened = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        mode | Mode::RWXU
    } else {
        mode | Mode::RUSR
    };
    rustix::fs::chmodat(CWD, &path, opened, AtFlags::empty())?;
    let fd = rustix::fs::openat(CWD, &path, flags, Mode::empty());
    rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty())?;
    fd
}

fn file(
    place: &OwnedFd,
    stat: &Stat,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new: &OsStr,
    how: &mut How<'_>,
) -> Result<(bool, u64), Error> {
    let source = reopen(place, OFlags::RDONLY | OFlags::NONBLOCK, how.unlock)
        .map_err(|errno| failed("open", name, errno))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(to, new, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed("make", new, errno))?;
    let done = content(&source, &made, stat.st_size as u64, name, how).and_then(|()| {
        let after = rustix::fs::fstat(&source).map_err(|e| failed("look at", name, e))?;
        if after.st_size != stat.st_size
            || (after.st_mtime, after.st_mtime_nsec) != (stat.st_mtime, stat.st_mtime_nsec)
        {
            return Err(Error::Changed { name: name.into() });
        }
        metadata(place.as_fd(), made.as_fd(), name, how)
    });
    match done {
        Ok(owner_kept) => Ok((owner_kept, stat.st_size as u64)),
        Err(e) => {
            // Nothing half made stays.
            let _ = rustix::fs::unlinkat(to, new, AtFlags::empty());
            Err(e)
        }
    }
}

/// The bytes of `source`, `size` of them, into the empty file `made`; holes stay holes.
pub fn content(
    source: &OwnedFd,
    made: &OwnedFd,
    size: u64,
    name: &OsStr,
    how: &mut How<'_>,
) -> Result<(), Error> {
    let stop = |errno| failed("go on with", name, errno);
    if size == 0 {
        return Ok(());
    }
    if rustix::fs::ioctl_ficlone(made, source).is_ok() {
        // A clone is of the whole file as it is at that moment; more than `size` shows as a change.
        return (how.progress)(size).map_err(stop);
    }
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            // No data from here on.
            Err(Errno::NXIO) => size,
            // A file system that knows no holes: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(failed("read", name, errno)),
        };
        if data > at {
            (how.progress)(data - at).map_err(stop)?;
        }
        if data == size {
            break;
        }
        let end = match rustix::fs::seek(source, SeekFrom::Hole(data)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => size,
            Err(errno) => return Err(failed("read", name, errno)),
        };
        at = data;
        while at < end {
            let n = piece(source, made, at, end - at, name, &mut buffer)?;
            if n == 0 {
                return Err(Error::Changed { name: name.into() });
            }
            at += n;
            (how.progress)(n).map_err(stop)?;
        }
    }
    rustix::fs::ftruncate(made, size).map_err(|errno| failed("write", name, errno))
}

/// Up to `length` bytes at `at`; 0 at the end of the file.
fn piece(
    source: &OwnedFd,
    made: &OwnedFd,
    at: u64,
    length: u64,
    name: &OsStr,
    buffer: &mut Vec<u8>,
) -> Result<u64, Error> {
    if buffer.is_empty() {
        let (mut read, mut written) = (at, at);
        let chunk = usize::try_from(length).unwrap_or(COPY_CHUNK).min(COPY_CHUNK);
        match rustix::fs::copy_file_range(source, Some(&mut read), made, Some(&mut written), chunk)
        {
            // 0 can also mean a file of the kernel whose size is a lie: reading tells.
            Ok(n) if n > 0 => return Ok(n as u64),
            Err(Errno::INTR) => return piece(source, made, at, length, name, buffer),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::FBIG)) => {
                return Err(failed("write", name, errno));
            }
            // Between file systems that do not (EXDEV, EINVAL, ENOSYS, EPERM of filters).
            _ => buffer.resize(READ_CHUNK, 0),
        }
    }
    let want = usize::try_from(length).unwrap_or(READ_CHUNK).min(READ_CHUNK);
    let n = loop {
        match rustix::io::pread(source, &mut buffer[..want], at) {
            Err(Errno::INTR) => {}
            other => break other.map_err(|errno| failed("read", name, errno))?,
        }
    };
    let mut done = 0;
    while done < n {
        match rustix::io::pwrite(made, &buffer[done..n], at + done as u64) {
            Ok(0) => return Err(failed("write", name, Errno::IO)),
            Ok(m) => done += m,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("write", name, errno)),
        }
    }
    Ok(n as u64)
}

/// Owner, extended attributes, mode and times of `from` onto `to`, in the order in which none undoes
/// another; then synced if wanted. Both may be `O_PATH`. Says whether the owner was kept.
pub fn metadata(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &OsStr,
    how: &mut How<'_>,
) -> Result<bool, Error> {
    let stat = rustix::fs::fstat(from).map_err(|errno| failed("look at", name, errno))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let there = through_proc(to);
    let owner_kept = own(to, &stat, name, how.owner)?;
    attributes(&through_proc(from), &there, kind, name, how.attributes)?;
    if kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & how.mode_mask);
        rustix::fs::chmodat(CWD, &there, mode, AtFlags::empty())
            .map_err(|errno| failed("change the mode of", name, errno))?;
    }
    // Through the magic link, so that a link's own times are set and an O_PATH descriptor will do.
    rustix::fs::utimensat(CWD, &there, &times(&stat), AtFlags::empty())
        .map_err(|errno| failed("set the times of", name, errno))?;
    if how.sync == Sync::Yes && matches!(kind, FileType::RegularFile | FileType::Directory) {
        match rustix::fs::fsync(to) {
            // An O_PATH descriptor cannot be synced, and who hands one in did not write to it.
            Ok(()) | Err(Errno::BADF) => {}
            Err(errno) => return Err(failed("sync", name, errno)),
        }
    }
    Ok(owner_kept)
}

/// The mode and times of `like` onto the directory `to`, once it is full.
pub fn mode_and_times(to: BorrowedFd<'_>, like: &Stat, name: &OsStr) -> Result<(), Error> {
    let there = through_proc(to);
    rustix::fs::chmodat(CWD, &there, Mode::from_raw_mode(like.st_mode), AtFlags::empty())
        .map_err(|errno| failed("change the mode of", name, errno))?;
    rustix::fs::utimensat(CWD, &there, &times(like), AtFlags::empty())
        .map_err(|errno| failed("set the times of", name, errno))
}

fn own(to: BorrowedFd<'_>, like: &Stat, name: &OsStr, owner: Owner) -> Result<bool, Error> {
    let is = rustix::fs::fstat(to).map_err(|errno| failed("look at", name, errno))?;
    if (is.st_uid, is.st_gid) == (like.st_uid, like.st_gid) {
        return Ok(true);
    }
    if owner == Owner::Caller {
        return Ok(false);
    }
    let uid = rustix::fs::Uid::from_raw(like.st_uid);
    let gid = rustix::fs::Gid::from_raw(like.st_gid);
    match rustix::fs::chownat(to, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) if owner == Owner::SameIfAllowed => {
            // A group of the caller's can be given without privilege.
            let _ = rustix::fs::chownat(to, "", None, Some(gid), AtFlags::EMPTY_PATH);
            Ok(false)
        }
        Err(errno) => Err(failed("give to its owner", name, errno)),
    }
}

/// Names of the extended attributes of what `path` (through `/proc/self/fd`) is, sorted.
pub fn attribute_names(path: &CStr) -> Result<Vec<OsString>, Errno> {
    let mut buffer = vec![0u8; 1024];
    let n = loop {
        match rustix::fs::listxattr(path, &mut buffer[..]) {
            Err(Errno::RANGE) if buffer.len() < XATTR_MAX => buffer.resize(XATTR_MAX, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            other => break other?,
        }
    };
    let mut names: Vec<OsString> = buffer[..n]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsStr::from_bytes(name).to_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// The value of one extended attribute; `None` if it is not there.
pub fn attribute(path: &CStr, key: &OsStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0u8; 256];
    loop {
        match rustix::fs::getxattr(path, key, &mut buffer[..]) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) if buffer.len() < XATTR_MAX => buffer.resize(XATTR_MAX, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(Errno::ACCESS) => return closed::attribute(path, key).map(Some),
            Err(errno) => return Err(errno),
        }
    }
}

fn attributes(
    from: &CStr,
    to: &CStr,
    kind: FileType,
    name: &OsStr,
    wanted: &dyn Fn(&OsStr) -> bool,
) -> Result<(), Error> {
    // The kernel lets only files and directories have attributes of users.
    let user = matches!(kind, FileType::RegularFile | FileType::Directory);
    let names = attribute_names(from).map_err(|e| failed("read the attributes of", name, e))?;
    for key in names {
        if !wanted(&key) || (!user && key.as_bytes().starts_with(b"user.")) {
            continue;
        }
        let Some(value) =
            attribute(from, &key).map_err(|e| failed("read the attributes of", name, e))?
        else {
            continue;
        };
        rustix::fs::setxattr(to, &key, &value, XattrFlags::empty())
            .map_err(|errno| failed("set the attributes of", name, errno))?;
    }
    Ok(())
}

/// Takes a name away, also from a directory that its mode closes to its owner.
pub fn unlink(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::ACCESS) => closed::unlink(dir, name, flags),
        other => other,
    }
}

/// Removes `name` in `dir` with everything below it; absent is done. Directories of the caller's that
/// their mode closes are opened first.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    checked(name)?;
    let stat = match place(dir, name).and_then(rustix::fs::fstat) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed("look at", name, errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlink(dir, name, AtFlags::empty()).map_err(|errno| failed("remove", name, errno));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &OsStr| -> Result<OwnedFd, Errno> {
        let fd = place_as(at, name, flags)?;
        let stat = rustix::fs::fstat(&fd)?;
        if stat.st_mode & 0o700 != 0o700 && stat.st_uid == rustix::process::geteuid().as_raw() {
            // It goes anyway.
            rustix::fs::chmodat(CWD, through_proc(&fd), Mode::RWXU, AtFlags::empty())?;
        }
        reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY, false)
    };
    // A stack of its own: a hostile tree can be deeper than a thread's stack.
    let top = open(dir, name).map_err(|errno| failed("open", name, errno))?;
    let mut stack = vec![(top, name.to_owned())];
    let mut moved = 0u64;
    while let Some((at, _)) = stack.last() {
        let mut deeper = None;
        let entries = rustix::fs::Dir::read_from(at).map_err(|e| failed("list", name, e))?;
        for entry in entries {
            let entry = entry.map_err(|errno| failed("list", name, errno))?;
            let child = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(child.as_bytes(), b"." | b"..") {
                continue;
            }
            match rustix::fs::unlinkat(at, child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    match rustix::fs::unlinkat(at, child, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(Errno::NOTEMPTY | Errno::EXIST) if stack.len() >= MAX_OPEN => {
                            lift(&stack[0].0, at, child, &mut moved)?;
                        }
                        Err(Errno::NOTEMPTY | Errno::EXIST) => {
                            let fd =
                                open(at.as_fd(), child).map_err(|e| failed("open", child, e))?;
                            deeper = Some((fd, child.to_owned()));
                            break;
                        }
                        Err(errno) => return Err(failed("remove", child, errno)),
                    }
                }
                Err(errno) => return Err(failed("remove", child, errno)),
            }
        }
        if let Some(deeper) = deeper {
            stack.push(deeper);
            continue;
        }
        let Some((_, done)) = stack.pop() else { break };
        let parent = stack.last().map_or(dir, |(fd, _)| fd.as_fd());
        match unlink(parent, &done, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("remove", &done, errno)),
        }
    }
    Ok(())
}

/// Moves `child` of `at` up into `top`, where it is removed later: each level that is gone into costs
/// a descriptor, and a tree can be deeper than there are descriptors.
fn lift(top: &OwnedFd, at: &OwnedFd, child: &OsStr, moved: &mut u64) -> Result<(), Error> {
    loop {
        let name = format!(".lifted-{moved}");
        *moved += 1;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(at, child, top, &name, flags) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|errno| failed("remove", child, errno)),
        }
    }
}

/// As [`Error`], for callers that speak `std::io`.
impl From<Error> for std::io::Error {
    fn from(e: Error) -> Self {
        let kind = e.errno().map_or(ErrorKind::Other, |errno| {
            std::io::Error::from_raw_os_error(errno.raw_os_error()).kind()
        });
        Self::new(kind, e)
    }
}

#[cfg(test)]
mod tests;
