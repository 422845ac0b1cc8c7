//! What lies under a name, and whether two such things are the same.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use ringfence_sys::fd;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{Stamp, copy};

/// Attributes that belong to overlayfs; they are never part of what an object is.
pub const OVERLAY: &[u8] = b"user.overlay.";
/// Bytes compared at once.
const CHUNK: usize = 128 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    Device,
}

/// What `stat` says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub kind: Kind,
    /// Without the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Stamp,
    pub ctime: Stamp,
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub rdev: u64,
}

impl Meta {
    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    pub fn of(stat: &Stat) -> Self {
        let [mtime, ctime] = fd::times(stat);
        let (dev, ino) = fd::id(stat);
        let kind = match fd::kind(stat) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::Device,
        };
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            mtime: Stamp(mtime.0, mtime.1),
            ctime: Stamp(ctime.0, ctime.1),
            dev,
            ino,
            nlink: fd::links(stat),
            rdev: stat.st_rdev as u64,
        }
    }

    /// A name that a delta took away: the character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::Device && self.rdev == 0
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// The very object, not touched in between.
    pub fn untouched(&self, other: &Self) -> bool {
        (self.kind, self.dev, self.ino, self.ctime)
            == (other.kind, other.dev, other.ino, other.ctime)
            && (self.size == other.size || self.is_dir())
    }

    /// The very object, with nothing but its names changed as far as anybody can tell.
    pub fn has_content_of(&self, other: &Self) -> bool {
        let what = |m: &Self| (m.kind, m.dev, m.ino, m.size, m.mtime, m.mode, m.uid, m.gid);
        what(self) == what(other)
    }

    /// The very directory, whatever came and went in it.
    pub fn is_same_directory(&self, other: &Self) -> bool {
        let what = |m: &Self| (m.kind, m.dev, m.ino, m.mode, m.uid, m.gid);
        self.is_dir() && what(self) == what(other)
    }
}

/// `lstat`, `None` where nothing is.
pub fn look(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Meta>, Errno> {
    match stat(dir, name) {
        Ok(stat) => Ok(Some(Meta::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// `lstat`, also in a directory that its mode closes to its owner.
pub fn stat(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Stat, Errno> {
    match fd::stat_name(dir, name) {
        Err(Errno::ACCESS) => rustix::fs::fstat(copy::place(dir, name)?),
        other => other,
    }
}

/// A place without access to its content.
pub fn place(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    copy::place(dir, name)
}

/// The text of a symbolic link.
pub fn link(dir: BorrowedFd<'_>, name: &OsStr) -> Result<PathBuf, Errno> {
    match fd::read_link(dir, name) {
        Err(Errno::ACCESS) => fd::read_link(copy::place(dir, name)?, ""),
        other => other,
    }
}

/// Opens a regular file for reading; `ours` for trees of the store, where a mode that a sandbox set
/// does not keep us out. Callers have looked: opening a device could have effects.
pub fn open_file(dir: BorrowedFd<'_>, name: &OsStr, ours: bool) -> Result<OwnedFd, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty()) {
        Err(Errno::ACCESS) => {
            copy::reopen(place(dir, name)?, OFlags::RDONLY | OFlags::NONBLOCK, ours)?
        }
        other => other?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(fd)
}

/// Opens a directory beneath a tree for listing.
pub fn open_directory(root: BorrowedFd<'_>, path: &OsStr, ours: bool) -> Result<OwnedFd, Errno> {
    match fd::open_beneath(root, path.as_bytes(), fd::DIRECTORY) {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let at = copy::open_beneath(root, std::path::Path::new(path))?;
    copy::reopen(&at, OFlags::RDONLY | OFlags::DIRECTORY, ours)
}

/// The whole content, if it is not larger than `limit`.
pub fn content(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    limit: u64,
    ours: bool,
) -> Result<Option<Vec<u8>>, Errno> {
    let file = open_file(dir, name, ours)?;
    let size = rustix::fs::fstat(&file)?.st_size as u64;
    if size > limit {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(size as usize + 1);
    File::from(file).take(limit + 1).read_to_end(&mut bytes).map_err(|e| error(&e))?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

pub fn error(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

/// Hash of a file's content; `None` above `limit` bytes.
pub fn hash(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    limit: u64,
    ours: bool,
) -> Result<Option<String>, Errno> {
    use sha2::Digest as _;
    let file = open_file(dir, name, ours)?;
    if rustix::fs::fstat(&file)?.st_size as u64 > limit {
        return Ok(None);
    }
    let mut file = File::from(file);
    let mut sum = sha2::Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => sum.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(error(&e)),
        }
    }
    Ok(Some(hex(&sum.finalize())))
}

pub fn hash_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether two files hold the same; `size` is what both were seen to have.
pub fn same_content(ours: &OwnedFd, theirs: &OwnedFd, size: u64) -> Result<bool, Errno> {
    let (mut ours, mut theirs) = (reader(ours)?, reader(theirs)?);
    let room = usize::try_from(size).unwrap_or(CHUNK).saturating_add(1).min(CHUNK);
    let mut buffers = (vec![0; room], vec![0; room]);
    loop {
        let one = fill(&mut ours, &mut buffers.0).map_err(|e| error(&e))?;
        let other = fill(&mut theirs, &mut buffers.1).map_err(|e| error(&e))?;
        if buffers.0[..one] != buffers.1[..other] {
            return Ok(false);
        }
        // Less than there was room for: that was the end.
        if one < room {
            return Ok(true);
        }
    }
}

fn reader(fd: &OwnedFd) -> Result<File, Errno> {
    fd.try_clone().map(File::from).map_err(|e| error(&e))
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Names and values of the `user.` attributes that are the object's own, sorted. Links have none.
pub fn attributes(place: impl AsFd) -> Result<Vec<(OsString, Vec<u8>)>, Errno> {
    let mut none = [0u8; 1];
    if matches!(rustix::fs::flistxattr(&place, &mut none[..]), Ok(0) | Err(Errno::OPNOTSUPP)) {
        return Ok(Vec::new());
    }
    let path: CString = copy::through_proc(place);
    let mut all = Vec::new();
    for name in copy::attribute_names(&path)? {
        if is_own_attribute(&name)
            && let Some(value) = copy::attribute(&path, &name)?
        {
            all.push((name, value));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// An attribute that a layer brings to the host.
pub fn is_own_attribute(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(b"user.") && !bytes.starts_with(OVERLAY)
}

/// Opens a tree of the store: a directory that is where it is said to be.
pub fn open_tree(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    let at = fd::open_absolute(path, fd::PLACE | OFlags::DIRECTORY)?;
    copy::reopen(&at, OFlags::RDONLY | OFlags::DIRECTORY, true)
}
