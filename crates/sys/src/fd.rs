//! Paths by descriptor, never through a symbolic link: how what may be hostile is walked and read.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Times an open is tried again when a rename raced with it (`EAGAIN` of `openat2`).
const MAX_RACES: usize = 16;
/// Bytes of one path handed to the kernel in one call (`PATH_MAX` less the final NUL and some room).
const PATH_CHUNK: usize = 4000;
/// Buffer for directory entries, bytes: some 800 names a call; the kernel fills at most what it has.
pub const LIST_BUFFER: usize = 32 * 1024;

/// Opens a directory for listing.
pub const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Opens a place without any access to its content.
pub const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

const NO_LINKS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens `relative` beneath `root`; no component may be a symbolic link or `..`. The empty path is
/// `root` itself. Paths longer than the kernel takes in one call are opened in several.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    relative: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    if relative.is_empty() {
        return open_step(root, b".", flags);
    }
    if relative.len() <= PATH_CHUNK {
        return open_step(root, relative, flags);
    }
    let mut rest = relative;
    let mut held: Option<OwnedFd> = None;
    while rest.len() > PATH_CHUNK {
        let cut = rest[..PATH_CHUNK].iter().rposition(|&b| b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = held.as_ref().map_or(root, AsFd::as_fd);
        held = Some(open_step(from, &rest[..cut], PLACE | OFlags::DIRECTORY)?);
        rest = &rest[cut + 1..];
    }
    open_step(held.as_ref().map_or(root, AsFd::as_fd), rest, flags)
}

fn open_step(root: BorrowedFd<'_>, relative: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 0..MAX_RACES {
        match rustix::fs::openat2(root, relative, flags, Mode::empty(), NO_LINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Some container filters know only calls older than openat2 (Linux 5.6).
            Err(Errno::NOSYS | Errno::PERM) => return open_by_component(root, relative, flags),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// The same promise without `openat2`: one component at a time, each refusing to be a link.
fn open_by_component(
    root: BorrowedFd<'_>,
    relative: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let mut names =
        relative.split(|&b| b == b'/').filter(|n| !n.is_empty() && *n != b".").peekable();
    let mut held: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let from = held.as_ref().map_or(root, AsFd::as_fd);
        let how = if names.peek().is_some() { PLACE | OFlags::DIRECTORY } else { flags };
        held = Some(rustix::fs::openat(from, name, how | OFlags::NOFOLLOW, Mode::empty())?);
    }
    match held {
        Some(fd) => Ok(fd),
        None => rustix::fs::openat(root, ".", flags, Mode::empty()),
    }
}

/// Opens an absolute path none of whose components is a symbolic link.
pub fn open_absolute(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let bytes = path.as_os_str().as_bytes();
    let relative = bytes.strip_prefix(b"/").ok_or(Errno::INVAL)?;
    if bytes.len() <= PATH_CHUNK {
        let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), links) {
            Err(Errno::AGAIN | Errno::INTR | Errno::NOSYS | Errno::PERM) => {}
            other => return other,
        }
    }
    let top = rustix::fs::open("/", PLACE | OFlags::DIRECTORY, Mode::empty())?;
    open_beneath(top.as_fd(), trim_slashes(relative), flags)
}

fn trim_slashes(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&b| b != b'/').unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|&b| b != b'/').map_or(start, |at| at + 1);
    &bytes[start..end]
}

/// `lstat` of one name in a directory.
pub fn stat_name(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Device and inode number. The widths of these fields differ between architectures.
#[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
pub fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

#[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
pub fn links(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

/// Seconds and nanoseconds of mtime, then of ctime.
#[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
pub fn times(stat: &Stat) -> [(i64, u32); 2] {
    [
        (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
    ]
}

pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("not a regular file")]
    NotRegular,
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    #[error("{0}")]
    Os(#[from] Errno),
}

impl ReadError {
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Os(Errno::NOENT | Errno::NOTDIR))
    }
}

/// Reads a regular file of at most `limit` bytes, never through a link, never blocking: the type is
/// looked at before the open (opening a device can have effects) and again after it.
pub fn read_regular(dir: BorrowedFd<'_>, name: &[u8], limit: u64) -> Result<Vec<u8>, ReadError> {
    read_with_stat(dir, name, limit).map(|(bytes, _)| bytes)
}

/// As [`read_regular`], with what was read.
pub fn read_with_stat(
    dir: BorrowedFd<'_>,
    name: &[u8],
    limit: u64,
) -> Result<(Vec<u8>, Stat), ReadError> {
    let seen = stat_name(dir, name)?;
    if kind(&seen) != FileType::RegularFile {
        return Err(ReadError::NotRegular);
    }
    let flags =
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = open_beneath(dir, name, flags)?;
    let stat = rustix::fs::fstat(&fd)?;
    if kind(&stat) != FileType::RegularFile {
        return Err(ReadError::NotRegular);
    }
    if stat.st_size as u64 > limit {
        return Err(ReadError::TooLarge(limit));
    }
    let mut bytes = Vec::with_capacity(stat.st_size as usize + 1);
    // One byte beyond the limit tells "exactly the limit" from "grew meanwhile".
    let read = File::from(fd).take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|e| ReadError::Os(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge(limit));
    }
    Ok((bytes, stat))
}

/// Names in a directory with their types, at most `limit`; the flag says that there were more. From the
/// beginning, however far an earlier listing of the descriptor came.
pub fn list(dir: BorrowedFd<'_>, limit: usize) -> Result<(Vec<(OsString, FileType)>, bool), Errno> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = Vec::<u8>::with_capacity(LIST_BUFFER);
    let mut raw = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        if names.len() == limit {
            return Ok((names, true));
        }
        let mut kind = entry.file_type();
        let name = OsStr::from_bytes(name).to_owned();
        if kind == FileType::Unknown {
            kind = stat_name(dir, &*name).map_or(FileType::Unknown, |s| self::kind(&s));
        }
        names.push((name, kind));
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok((names, false))
}

/// The text of a symbolic link.
pub fn read_link(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<PathBuf, Errno> {
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
}

/// Where `path`, seen from the directory `base`, really is. Links are followed here as the tool that
/// reads `path` would follow them; the answer is a candidate that must be opened with links refused
/// and then verified. A tail that does not exist yet is kept as spelled.
pub fn real(base: &Path, path: &Path) -> std::io::Result<PathBuf> {
    let joined = base.join(path);
    // Mostly there is neither a link nor a `..`: then one call says so.
    let plain = joined.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if plain && open_absolute(&joined, PLACE).is_ok() {
        return Ok(joined.components().collect());
    }
    let mut tail: Vec<OsString> = Vec::new();
    let mut head = joined.as_path();
    loop {
        match std::fs::canonicalize(head) {
            Ok(mut found) => {
                found.extend(tail.iter().rev());
                return Ok(found);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // `file_name` is `None` after `..`: what lies above a missing directory is unknown.
                let (Some(name), Some(parent)) = (head.file_name(), head.parent()) else {
                    return Err(e);
                };
                // A dangling link exists as a name: it has no real place.
                if head.symlink_metadata().is_ok() {
                    return Err(e);
                }
                tail.push(name.to_owned());
                head = parent;
            }
            Err(e) => return Err(e),
        }
    }
}
