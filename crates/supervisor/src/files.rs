//! Files of a sandbox, as it sees them. Its init opens and changes them, under the sandbox's own rules;
//! here only bytes are moved through descriptors that it handed out.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use ringfence_api::{FileInfo, Listing};
use ringfence_sandbox::resident::{Head, kind};
use rustix::fs::{AtFlags, Dir, FileType, Stat, fstat, fstatfs, statat};
use rustix::io::Errno;
use tokio::sync::{RwLock, mpsc};

use crate::error::{Error, Kind};
use crate::link::{Link, MOST_PUT};
use crate::lock;
use crate::versions::{self, Got, Part, Read, When};

/// The most that is read in one request.
pub(crate) const MOST: u64 = 64 << 20;
/// The most that is written in one, where no limit of the sandbox's is lower: as of an archive.
const MOST_WRITTEN: u64 = 16 << 30;
/// Written at once of what arrives; as much is in memory, and what is on its way.
const PIECE: usize = 256 << 10;
/// Read without a thread of its own, which would take longer.
const AT_ONCE: u64 = 64 << 10;
/// Names in one listing.
const MOST_NAMES: usize = 10_000;

/// File systems whose files are doors into the kernel: they are looked at by whoever reads, which here
/// would be the daemon.
const KERNEL: [i64; 5] = [0x9fa0, 0x6265_6572, 0x27_e0eb, 0x6367_7270, 0x7367_6570];

pub(crate) fn said(what: &str, path: &str, errno: Errno) -> Error {
    let text = ringfence_sys::raw::Errno(errno.raw_os_error()).to_string();
    let message = format!("cannot {what} {path}: {text}");
    match errno {
        Errno::NOENT | Errno::NOTDIR => Error::new(Kind::NotFound, message),
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::LOOP | Errno::XDEV => {
            Error::new(Kind::Refused, message).with(
                "the sandbox's policy does not allow it; `ringfence policy explain PATH` says why",
            )
        }
        Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::BUSY => {
            Error::new(Kind::Conflict, message)
        }
        Errno::NAMETOOLONG | Errno::INVAL => Error::invalid(message),
        Errno::NOSPC | Errno::DQUOT => Error::new(Kind::Limit, message),
        _ => Error::new(Kind::Refused, message),
    }
}

/// The path of a request, as init is to see it.
pub(crate) fn absolute(path: &str, cwd: &str) -> Result<String, Error> {
    if path.is_empty() || path.contains('\0') {
        return Err(Error::invalid("path: it is empty or has a nul byte"));
    }
    if path.starts_with('/') { Ok(path.to_owned()) } else { Ok(format!("{cwd}/{path}")) }
}

async fn open(
    link: &Link,
    path: &str,
    flags: i32,
    mode: u32,
    what: &str,
) -> Result<OwnedFd, Error> {
    let head = Head { kind: kind::OPEN, value: flags, extra: mode, ..Head::default() };
    match link.files(head, &[path]).await? {
        Ok(Some(fd)) => Ok(fd),
        Ok(None) => Err(Error::lost()),
        Err(errno) => Err(said(what, path, errno)),
    }
}

/// Whether it lies in a file system of the kernel's, or nobody knows.
pub(crate) fn is_kernels(fd: &OwnedFd) -> bool {
    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    fstatfs(fd).map_or(true, |system| KERNEL.contains(&(system.f_type as i64)))
}

/// Only what lies on a disk is read or written here.
pub(crate) fn plain(fd: &OwnedFd, path: &str, wanted: FileType) -> Result<(), Error> {
    let stat = fstat(fd).map_err(|e| said("look at", path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != wanted {
        let what = if wanted == FileType::Directory { "directory" } else { "regular file" };
        return Err(Error::new(Kind::Refused, format!("{path} is not a {what}")));
    }
    if is_kernels(fd) && wanted != FileType::Directory {
        return Err(Error::new(Kind::Refused, format!("{path} is the kernel's")));
    }
    Ok(())
}

pub(crate) async fn read(link: &Link, path: &str, part: Part, when: &When) -> Result<Read, Error> {
    let fd = open(link, path, libc::O_RDONLY, 0, "read").await?;
    plain(&fd, path, FileType::RegularFile)?;
    let stat = fstat(&fd).map_err(|e| said("read", path, e))?;
    let (tag, size) = (versions::tag(&stat), stat.st_size as u64);
    if when.has(&tag) {
        return Ok(Read { tag, size, got: Got::Same });
    }
    let Some((offset, wanted)) = part.of(size) else {
        return Ok(Read { tag, size, got: Got::Beyond });
    };
    if wanted > MOST {
        return Err(Error::new(
            Kind::TooLarge,
            format!("{path} has {wanted} bytes from there on, at most {MOST} are read at once"),
        )
        .with("read it in parts: offset and length, or Range"));
    }
    let path = path.to_owned();
    let read = move || {
        let file = File::from(fd);
        let mut bytes = vec![0u8; wanted as usize];
        let mut at = 0;
        while at < bytes.len() {
            match file.read_at(bytes.get_mut(at..).unwrap_or_default(), offset + at as u64) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::new(Kind::Refused, format!("cannot read {path}: {e}")));
                }
            }
        }
        bytes.truncate(at);
        Ok(Read { tag, size, got: Got::Bytes { offset, bytes } })
    };
    if wanted <= AT_ONCE { read() } else { blocking(read).await }
}

pub(crate) async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(what)
        .await
        .unwrap_or_else(|_| Err(Error::internal("a thread ended")))
}

/// Bytes that come while they are written. No bytes: that was all. Whoever takes them first has them.
#[derive(Clone)]
pub struct Arriving {
    parts: Arc<Mutex<Option<mpsc::Receiver<Piece>>>>,
    length: Option<u64>,
}

type Piece = std::io::Result<Vec<u8>>;

impl Arriving {
    /// `length`: as whoever sends it says.
    pub fn new(parts: mpsc::Receiver<Piece>, length: Option<u64>) -> Self {
        Self { parts: Arc::new(Mutex::new(Some(parts))), length }
    }
}

impl std::fmt::Debug for Arriving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arriving")
    }
}

/// What is to be in a file.
#[derive(Clone, Debug)]
pub enum Written {
    Whole(Vec<u8>),
    /// Never in memory as a whole.
    Arriving(Arriving),
}

/// How a file is put in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write<'a> {
    /// Its bytes are on the disk, under that name, before the answer is.
    pub durable: bool,
    pub when: &'a When,
    /// Bytes of it, at most.
    pub most: u64,
    /// Held alone from the last look at what is there until that is replaced, and by all others shared.
    pub turn: &'a RwLock<()>,
}

/// Puts a file in place as a whole: whoever reads it sees the old bytes or the new ones. Where there is a condition,
/// it holds when the name is taken, as far as others come through here too.
pub(crate) async fn write(
    link: &Link,
    path: &str,
    bytes: Written,
    how: Write<'_>,
) -> Result<Option<String>, Error> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() || matches!(name, "." | "..") {
        return Err(Error::invalid(format!("{path} does not name a file")));
    }
    let draft = format!("{directory}/{}", crate::random_id(".ringfence-")?);
    let most = MOST_PUT.min(AT_ONCE as usize);
    if let Written::Whole(bytes) = &bytes
        && !how.durable
        && how.when.is_always()
        && bytes.len() <= most
        && path.len() + draft.len() < MOST_PUT / 2
    {
        // Init does all of it: one request instead of four, and only its own sandbox waits for the disk.
        let head = Head { kind: kind::PUT, extra: bytes.len() as u32, ..Head::default() };
        let _turn = how.turn.read().await;
        if link.files_with(head, &[path, &draft], bytes).await?.is_ok() {
            return Ok(None);
        }
        // Step by step it shows what is wrong.
    }
    let there = replaced(link, path).await?;
    admitted(there.as_ref(), path, how.when)?;
    // What is there keeps its mode.
    let mode = there.map_or(0o644, |stat| stat.st_mode & 0o777);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let file = File::from(open(link, &draft, flags, mode, "write").await?);
    let placed = match fill(file, bytes, how, path).await {
        Ok(file) => place(link, (&draft, path), &file, how).await,
        Err(e) => Err(e),
    };
    if placed.is_err() {
        let head = Head { kind: kind::REMOVE, ..Head::default() };
        let _ = link.files(head, &[&draft]).await;
    }
    let tag = placed?;
    if how.durable {
        keep_names(link, &format!("{directory}/.")).await?;
    }
    Ok(Some(tag))
}

/// The plain file that a write is to replace, if one is there and may be written.
async fn replaced(link: &Link, path: &str) -> Result<Option<Stat>, Error> {
    let head = Head { kind: kind::OPEN, value: libc::O_PATH | libc::O_NOFOLLOW, ..Head::default() };
    match link.files(head, &[path]).await? {
        Ok(Some(there)) => {
            plain(&there, path, FileType::RegularFile)?;
            // That what is there may be written says the sandbox, not only that its directory may.
            drop(open(link, path, libc::O_WRONLY | libc::O_NOFOLLOW, 0, "write").await?);
            fstat(&there).map(Some).map_err(|e| said("write", path, e))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(said("write", path, errno)),
        Ok(None) => Err(Error::lost()),
    }
}

/// What is there is as it has to be for a write.
fn admitted(there: Option<&Stat>, path: &str, when: &When) -> Result<(), Error> {
    when.admits(path, there.map(versions::tag).as_deref())
}

/// Writes all of it. A thread is used for what is there, not while more is waited for.
async fn fill(file: File, bytes: Written, how: Write<'_>, path: &str) -> Result<File, Error> {
    let failed = |path: &str| {
        let path = path.to_owned();
        move |e: std::io::Error| Error::new(Kind::Limit, format!("cannot write {path}: {e}"))
    };
    let most = how.most.min(MOST_WRITTEN);
    let too_large = || {
        Error::new(Kind::TooLarge, format!("{path}: more than {most} bytes"))
            .with("the limit is the layer's (`ringfence limits`), and 16 GiB for one file")
    };
    let mut file = file;
    match bytes {
        Written::Whole(bytes) => {
            if bytes.len() as u64 > most {
                return Err(too_large());
            }
            file = put(file, bytes, failed(path)).await?;
        }
        Written::Arriving(Arriving { parts, length }) => {
            // Said before anything of it is written.
            if length.is_some_and(|length| length > most) {
                return Err(too_large());
            }
            let cut = || Error::invalid("the body ended before it was whole");
            let mut parts = lock(&parts).take().ok_or_else(cut)?;
            let mut whole = false;
            let mut written = 0u64;
            while !whole {
                let mut piece = Vec::new();
                // As much as is there, so that a thread is not asked for each crumb.
                while piece.len() < PIECE {
                    let part = match parts.try_recv() {
                        Ok(part) => part,
                        Err(_) if !piece.is_empty() => break,
                        Err(_) => parts.recv().await.ok_or_else(cut)?,
                    };
                    let part = part.map_err(|_| cut())?;
                    if part.is_empty() {
                        whole = true;
                        break;
                    }
                    piece.extend_from_slice(&part);
                }
                written += piece.len() as u64;
                if written > most {
                    return Err(too_large());
                }
                file = put(file, piece, failed(path)).await?;
            }
        }
    }
    if !how.durable {
        return Ok(file);
    }
    let failed = failed(path);
    blocking(move || file.sync_data().map(|()| file).map_err(failed)).await
}

async fn put(
    mut file: File,
    bytes: Vec<u8>,
    failed: impl FnOnce(std::io::Error) -> Error + Send + 'static,
) -> Result<File, Error> {
    blocking(move || file.write_all(&bytes).map(|()| file).map_err(failed)).await
}

/// The draft takes the name. Answers the tag of what is there then.
async fn place(
    link: &Link,
    (draft, path): (&str, &str),
    file: &File,
    how: Write<'_>,
) -> Result<String, Error> {
    let (_alone, _shared);
    if how.when.is_always() {
        _shared = how.turn.read().await;
    } else {
        _alone = how.turn.write().await;
        admitted(replaced(link, path).await?.as_ref(), path, how.when)?;
    }
    let head = Head { kind: kind::RENAME, ..Head::default() };
    link.files(head, &[draft, path]).await?.map_err(|errno| said("write", path, errno))?;
    // Its new name is told in its times.
    Ok(versions::tag(&fstat(file).map_err(|e| said("look at", path, e))?))
}

/// What is called how in a directory is on the disk when this is answered.
async fn keep_names(link: &Link, directory: &str) -> Result<(), Error> {
    let fd = open(link, directory, libc::O_RDONLY | libc::O_DIRECTORY, 0, "write to").await?;
    let shown = directory.to_owned();
    blocking(move || rustix::fs::fsync(fd).map_err(|e| said("write to", &shown, e))).await
}

pub(crate) fn info(name: String, stat: &Stat) -> FileInfo {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    };
    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    FileInfo {
        name,
        kind: kind.into(),
        size: stat.st_size as u64,
        mode: stat.st_mode & 0o7777,
        etag: None,
        modified_ms: (stat.st_mtime as i64)
            .saturating_mul(1000)
            .saturating_add(stat.st_mtime_nsec as i64 / 1_000_000),
    }
}

pub(crate) async fn stat(link: &Link, path: &str) -> Result<FileInfo, Error> {
    let fd = open(link, path, libc::O_PATH | libc::O_NOFOLLOW, 0, "look at").await?;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stat = fstat(&fd).map_err(|e| said("look at", path, e))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let etag = is_file.then(|| versions::etag(&versions::tag(&stat)));
    Ok(FileInfo { etag, ..info(name.to_owned(), &stat) })
}

pub(crate) async fn list(link: &Link, path: &str) -> Result<Listing, Error> {
    let fd = open(link, path, libc::O_RDONLY | libc::O_DIRECTORY, 0, "list").await?;
    plain(&fd, path, FileType::Directory)?;
    let path = path.to_owned();
    blocking(move || {
        let mut listing = Listing { entries: Vec::new(), truncated: false };
        for entry in Dir::read_from(&fd).map_err(|e| said("list", &path, e))? {
            let entry = entry.map_err(|e| said("list", &path, e))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if listing.entries.len() == MOST_NAMES {
                listing.truncated = true;
                break;
            }
            // Gone by now, perhaps.
            let Ok(stat) = statat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let name = std::ffi::OsStr::from_bytes(name.to_bytes());
            listing.entries.push(info(name.to_string_lossy().into_owned(), &stat));
        }
        listing.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    })
    .await
}

pub(crate) async fn make_directory(link: &Link, path: &str) -> Result<(), Error> {
    let head = Head { kind: kind::MAKE_DIRECTORY, extra: 0o755, ..Head::default() };
    link.files(head, &[path]).await?.map(drop).map_err(|e| said("make", path, e))
}

pub(crate) async fn remove(link: &Link, path: &str) -> Result<(), Error> {
    let head = |value| Head { kind: kind::REMOVE, value, ..Head::default() };
    match link.files(head(0), &[path]).await? {
        Ok(_) => Ok(()),
        Err(Errno::ISDIR) => {
            link.files(head(1), &[path]).await?.map(drop).map_err(|e| said("remove", path, e))
        }
        Err(errno) => Err(said("remove", path, errno)),
    }
}
