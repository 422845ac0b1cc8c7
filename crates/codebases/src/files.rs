//! Single files of a codebase: listed, read, put. By descriptor, beneath the tree, through no link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_layers::copy::{self, reopen};
use ringfence_layers::names::Named;
use ringfence_layers::random_id;
use ringfence_sys::fd;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::change::Used;
use crate::store::PUT;
use crate::{Codebase, Codebases, Error, Record, WORKSPACE, index};

/// Bytes of one name, of a path, and levels of directories: what the kernel and tools take.
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 4000;
const MAX_DEPTH: usize = 512;
/// Bytes that stay free on the disk.
const FREE_FLOOR: u64 = ringfence_layers::quota::FREE_FLOOR;
const CHUNK: usize = 256 << 10;

/// A path in a codebase as people write it: relative, or as the sandbox sees it. What leads out, or
/// cannot be a name, is refused. The tree itself is the empty path.
pub fn inside(path: &OsStr) -> Result<PathBuf, Error> {
    let wrong = |problem: &str| Err(Error::file(path, problem));
    let bytes = path.as_bytes();
    let workspace = bytes
        .strip_prefix(WORKSPACE.as_bytes())
        .filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for part in workspace.unwrap_or(bytes).split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return wrong("leads out of the codebase"),
            part if part.contains(&0) => return wrong("has a zero byte in its name"),
            part if part.len() > MAX_NAME => return wrong("has a name longer than 255 bytes"),
            part => {
                depth += 1;
                clean.push(OsStr::from_bytes(part));
            }
        }
    }
    if depth > MAX_DEPTH || clean.as_os_str().len() > MAX_PATH {
        return wrong("is too long");
    }
    Ok(clean)
}

impl Codebases {
    /// What lies in a directory of a codebase, or, `recursive`, anywhere below it.
    pub fn files(
        &self,
        codebase: &Codebase,
        path: &OsStr,
        recursive: bool,
    ) -> Result<Vec<Named>, Error> {
        let path = inside(path)?;
        let names = self.names(codebase)?;
        let bytes = path.as_os_str().as_bytes();
        let reading = |e| Error::io("read", codebase.path.join(index::INDEX))(e);
        if !bytes.is_empty() {
            match names.get(bytes).map_err(reading)? {
                None => return Err(Error::Missing(path)),
                Some(entry) if !entry.is_dir() => return Ok(vec![entry]),
                Some(_) => {}
            }
        }
        if recursive { names.below(bytes) } else { names.children(bytes) }.map_err(reading)
    }

    /// Puts a file into a codebase, over one that is there. Directories on the way are made. The codebase
    /// has the old file or the new one, whatever happens.
    pub fn put(
        &self,
        name: &str,
        path: &OsStr,
        mode: Option<u32>,
        content: impl Read,
    ) -> Result<Record, Error> {
        let record = self.put_as(name, path, mode, content, Used::Refused)?;
        let codebase = self.opened(record)?;
        self.names(&codebase)?;
        Ok(self.get(&codebase.record.id)?.record)
    }

    /// The same, and what becomes of sandboxes that run on it is said by `used`. The index is made when
    /// it is needed.
    pub fn put_as(
        &self,
        name: &str,
        path: &OsStr,
        mode: Option<u32>,
        mut content: impl Read,
        used: Used,
    ) -> Result<Record, Error> {
        let path = inside(path)?;
        let Some(file_name) = path.file_name() else {
            return Err(Error::file(path, "is not the name of a file"));
        };
        let codebase = self.get(name)?;
        if codebase.record.sealed {
            return Err(Error::Sealed(codebase.record.name));
        }
        let draft = format!("{PUT}{}", random_id()?);
        let shown = codebase.path.join(&draft);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&codebase.dir, &*draft, flags, Mode::RUSR | Mode::WUSR)
            .map_err(Error::os("make", &shown))?;
        let done = write(File::from(file), &mut content, mode, &shown)
            .and_then(|()| self.place(&codebase.record.id, &draft, &path, file_name, mode, used));
        if done.is_err() {
            let _ = copy::remove_tree(codebase.dir.as_fd(), draft.as_ref());
        }
        done
    }

    fn place(
        &self,
        id: &str,
        draft: &str,
        path: &Path,
        name: &OsStr,
        mode: Option<u32>,
        used: Used,
    ) -> Result<Record, Error> {
        let parent = path.parent().unwrap_or(Path::new(""));
        self.alter(
            id,
            used,
            |codebase, tree| {
                if existing(tree, parent)? != parent {
                    return Ok(());
                }
                match fd::stat_name(open_directory(tree, parent)?, name) {
                    Ok(stat) if fd::kind(&stat) == FileType::RegularFile => {
                        if mode.is_none() {
                            let like = Mode::from_raw_mode(stat.st_mode & 0o777);
                            let flags = rustix::fs::AtFlags::empty();
                            rustix::fs::chmodat(&codebase.dir, draft, like, flags)
                                .map_err(Error::os("set the mode of", path))?;
                        }
                        Ok(())
                    }
                    Ok(stat) => Err(Error::file(path, other_kind(fd::kind(&stat)))),
                    Err(Errno::NOENT) => Ok(()),
                    Err(errno) => Err(Error::os("look at", path)(errno)),
                }
            },
            |codebase, tree| {
                let dir = make_directories(tree, parent)?;
                rustix::fs::renameat(&codebase.dir, draft, &dir, name)
                    .map_err(Error::os("put", path))?;
                sync(&dir, parent)
            },
        )
    }

    /// Writes a file of a codebase to `out`; answers its size.
    pub fn get_file(
        &self,
        codebase: &Codebase,
        path: &OsStr,
        mut out: impl Write,
    ) -> Result<u64, Error> {
        let (mut file, _) = codebase.open_file(path)?;
        std::io::copy(&mut file, &mut out)
            .and_then(|n| out.flush().map(|()| n))
            .map_err(|source| Error::Stream { what: "write the file", source })
    }
}

impl Codebase {
    /// A regular file, and its size.
    pub fn open_file(&self, path: &OsStr) -> Result<(File, u64), Error> {
        let (path, place, stat) = self.look_at(path)?;
        match fd::kind(&stat) {
            FileType::RegularFile => {}
            other => return Err(Error::file(path, other_kind(other))),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = reopen(&place, flags, true).map_err(Error::os("open", &path))?;
        Ok((File::from(file), stat.st_size as u64))
    }

    /// What lies at a path; a link itself, not where it leads. Through no link either.
    pub fn stat(&self, path: &OsStr) -> Result<Stat, Error> {
        self.look_at(path).map(|(_, _, stat)| stat)
    }

    /// What lies in a directory now, without the index, by name; at most `most`, and whether there is
    /// more.
    pub fn children(
        &self,
        path: &OsStr,
        most: usize,
    ) -> Result<(Vec<(OsString, Stat)>, bool), Error> {
        let (path, place, stat) = self.look_at(path)?;
        if fd::kind(&stat) != FileType::Directory {
            return Err(Error::file(path, "is not a directory"));
        }
        let dir = reopen(&place, OFlags::RDONLY | OFlags::DIRECTORY, true)
            .map_err(Error::os("open", &path))?;
        let (names, more) = fd::list(dir.as_fd(), most).map_err(Error::os("list", &path))?;
        let mut found = Vec::with_capacity(names.len());
        for (name, _) in names {
            match fd::stat_name(&place, &*name) {
                Ok(stat) => found.push((name, stat)),
                // Removed meanwhile.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::os("look at", path.join(&name))(errno)),
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((found, more))
    }

    fn look_at(&self, path: &OsStr) -> Result<(PathBuf, OwnedFd, Stat), Error> {
        let path = inside(path)?;
        let tree = self.open_tree()?;
        let place = match fd::open_beneath(tree.as_fd(), path.as_os_str().as_bytes(), fd::PLACE) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Error::Missing(path)),
            Err(Errno::LOOP) => {
                return Err(Error::file(path, "leads through a symbolic link"));
            }
            Err(errno) => return Err(Error::os("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&place).map_err(Error::os("look at", &path))?;
        Ok((path, place, stat))
    }
}

pub(crate) fn other_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "is a directory",
        FileType::Symlink => "is a symbolic link, and none is followed",
        FileType::RegularFile => "is a file",
        _ => "is not a regular file",
    }
}

/// How far down `path` there are directories.
pub(crate) fn existing(tree: &OwnedFd, path: &Path) -> Result<PathBuf, Error> {
    let mut at = PathBuf::new();
    for part in path.components() {
        let dir = open_directory(tree, &at)?;
        match fd::stat_name(&dir, part.as_os_str()) {
            Ok(stat) if fd::kind(&stat) == FileType::Directory => at.push(part),
            Ok(stat) => return Err(Error::file(at.join(part), other_kind(fd::kind(&stat)))),
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(Error::os("look at", at.join(part))(errno)),
        }
    }
    Ok(at)
}

pub(crate) fn open_directory(tree: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
    let flags = fd::PLACE | OFlags::DIRECTORY;
    fd::open_beneath(tree.as_fd(), path.as_os_str().as_bytes(), flags)
        .map_err(Error::os("open", path))
}

/// The directory at `path`, made with what is missing on the way.
pub(crate) fn make_directories(tree: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
    let mut at = existing(tree, path)?;
    for part in path.components().skip(at.components().count()) {
        let dir = open_directory(tree, &at)?;
        at.push(part);
        rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755))
            .map_err(Error::os("make", &at))?;
    }
    open_directory(tree, path)
}

pub(crate) fn sync(place: &OwnedFd, path: &Path) -> Result<(), Error> {
    let dir = reopen(place, OFlags::RDONLY | OFlags::DIRECTORY, false)
        .map_err(Error::os("open", path))?;
    rustix::fs::fsync(dir).map_err(Error::os("sync", path))
}

fn write(
    mut file: File,
    content: &mut impl Read,
    mode: Option<u32>,
    path: &Path,
) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK];
    let mut checked = 0;
    let mut written = 0_u64;
    loop {
        let n = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Error::Stream { what: "read the content", source }),
        };
        if written >= checked {
            let free = rustix::fs::fstatvfs(&file).map_err(Error::os("look at", path))?;
            if free.f_bavail.saturating_mul(free.f_frsize) < FREE_FLOOR {
                return Err(Error::Refused(format!(
                    "the space on the disk of the store goes below {FREE_FLOOR} bytes"
                )));
            }
            checked = written + (32 << 20);
        }
        file.write_all(&buffer[..n]).map_err(Error::io("write", path))?;
        written += n as u64;
    }
    let mode = Mode::from_raw_mode(mode.unwrap_or(0o644) & 0o777);
    rustix::fs::fchmod(&file, mode).map_err(Error::os("set the mode of", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}
