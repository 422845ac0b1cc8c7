//! Single files of a codebase: listed, read, put. By descriptor, beneath the tree, through no link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_layers::copy::{self, reopen};
use ringfence_layers::names::Named;
use ringfence_layers::random_id;
use ringfence_sys::fd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

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
                None => return Err(Error::file(path, "is not in the codebase")),
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
        mut content: impl Read,
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
            .and_then(|()| self.place(&codebase.record.id, &draft, &path, file_name, mode));
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
    ) -> Result<Record, Error> {
        let _lock = self.lock()?;
        let mut codebase = self.get(id)?;
        if codebase.record.sealed {
            return Err(Error::Sealed(codebase.record.name));
        }
        self.unused(&codebase)?;
        Self::sweep_puts(&codebase)?;
        let tree = codebase.open_tree()?;
        // Everything that can be refused is looked at before the index goes.
        let parent = path.parent().unwrap_or(Path::new(""));
        let existing = existing(&tree, parent)?;
        if existing == parent {
            let dir = open_directory(&tree, parent)?;
            match fd::stat_name(&dir, name) {
                Ok(stat) if fd::kind(&stat) == FileType::RegularFile => {
                    if mode.is_none() {
                        let like = Mode::from_raw_mode(stat.st_mode & 0o777);
                        rustix::fs::chmodat(
                            &codebase.dir,
                            draft,
                            like,
                            rustix::fs::AtFlags::empty(),
                        )
                        .map_err(Error::os("set the mode of", path))?;
                    }
                }
                Ok(stat) => return Err(Error::file(path, other_kind(fd::kind(&stat)))),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::os("look at", path)(errno)),
            }
        }
        // A tree without an index is looked at anew.
        index::remove(codebase.dir.as_fd(), &codebase.path)?;
        let mut at = existing;
        for part in parent.components().skip(at.components().count()) {
            let dir = open_directory(&tree, &at)?;
            at.push(part);
            rustix::fs::mkdirat(&dir, part.as_os_str(), Mode::from_raw_mode(0o755))
                .map_err(Error::os("make", &at))?;
        }
        let dir = open_directory(&tree, parent)?;
        rustix::fs::renameat(&codebase.dir, draft, &dir, name).map_err(Error::os("put", path))?;
        rustix::fs::fsync(
            reopen(&dir, OFlags::RDONLY | OFlags::DIRECTORY, false)
                .map_err(Error::os("open", parent))?,
        )
        .map_err(Error::os("sync", parent))?;
        self.renew(&mut codebase)?;
        Ok(codebase.record)
    }

    /// Writes a file of a codebase to `out`; answers its size.
    pub fn get_file(
        &self,
        codebase: &Codebase,
        path: &OsStr,
        mut out: impl Write,
    ) -> Result<u64, Error> {
        let path = inside(path)?;
        let tree = codebase.open_tree()?;
        let place = match fd::open_beneath(tree.as_fd(), path.as_os_str().as_bytes(), fd::PLACE) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Error::file(path, "is not in the codebase"));
            }
            Err(Errno::LOOP) => {
                return Err(Error::file(path, "leads through a symbolic link"));
            }
            Err(errno) => return Err(Error::os("open", path)(errno)),
        };
        let stat = rustix::fs::fstat(&place).map_err(Error::os("look at", &path))?;
        match fd::kind(&stat) {
            FileType::RegularFile => {}
            other => return Err(Error::file(path, other_kind(other))),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = reopen(&place, flags, true).map_err(Error::os("open", &path))?;
        let mut file = File::from(file);
        std::io::copy(&mut file, &mut out)
            .and_then(|n| out.flush().map(|()| n))
            .map_err(|source| Error::Stream { what: "write the file", source })
    }
}

fn other_kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "is a directory",
        FileType::Symlink => "is a symbolic link, and none is followed",
        FileType::RegularFile => "is a file",
        _ => "is not a regular file",
    }
}

/// How far down `path` there are directories.
fn existing(tree: &OwnedFd, path: &Path) -> Result<PathBuf, Error> {
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

fn open_directory(tree: &OwnedFd, path: &Path) -> Result<OwnedFd, Error> {
    let flags = fd::PLACE | OFlags::DIRECTORY;
    fd::open_beneath(tree.as_fd(), path.as_os_str().as_bytes(), flags)
        .map_err(Error::os("open", path))
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
