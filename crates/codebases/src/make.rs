//! Making a codebase: from a directory, from an archive, or empty.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use ringfence_layers::copy::{self, How, Links, Owner, Sync, reopen};
use ringfence_layers::pack::{Import, Limits};
use ringfence_layers::{Stamp, merge};
use ringfence_sys::fd;
use rustix::fs::{FileType, Mode, OFlags};

use crate::store::{Draft, TREE, caller, open_named};
use crate::{Codebases, Error, Record, index};

/// Names in one directory.
const MOST: usize = 10_000_000;
/// Times a file is copied again that changed while it was copied.
const TRIES: usize = 4;
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Skipped names that are told one by one.
const MOST_TOLD: usize = 100;

/// What a codebase is made from.
pub enum From<'a> {
    Nothing,
    Directory(&'a Path),
    /// A tar archive, also compressed with zstd or gzip.
    Archive(&'a Path),
    Stream(Box<dyn Read + 'a>),
}

impl std::fmt::Debug for From<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Directory(_) => "Directory",
            Self::Archive(_) => "Archive",
            Self::Stream(_) => "Stream",
        })
    }
}

/// How it is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whose it is; `None`: the caller's id.
    pub owner: Option<String>,
    /// Nothing can be put into it later.
    pub sealed: bool,
    /// Files with patterns as in `.gitignore`: what they match is left out of a directory.
    pub exclude_from: Vec<PathBuf>,
    /// Such patterns.
    pub exclude: Vec<String>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub names: u64,
    pub bytes: u64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Made {
    pub record: Record,
    /// What no codebase can hold: sockets, devices. The first of them.
    pub skipped: Vec<PathBuf>,
}

impl Codebases {
    /// Makes a codebase. Nothing of it can be seen before it is complete.
    pub fn create(
        &self,
        name: &str,
        from: From<'_>,
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Made, Error> {
        self.check_free(name)?;
        let exclude = patterns(options)?;
        let draft = self.draft()?;
        let tree = rustix::fs::openat(&draft.dir, TREE, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", draft.path.join(TREE)))?;
        let mut skipped = Vec::new();
        // As it stays where nothing describes it.
        rustix::fs::fchmod(&tree, Mode::from_raw_mode(0o755))
            .map_err(Error::os("set the mode of", draft.path.join(TREE)))?;
        match from {
            From::Nothing => {}
            From::Directory(path) => {
                let source = std::fs::canonicalize(path).map_err(Error::io("open", path))?;
                if self.path.starts_with(&source) {
                    return Err(Error::file(source, "holds the store itself"));
                }
                let mut copying = Copying::new(&tree, exclude, progress)?;
                copying.all(&source)?;
                skipped = copying.skipped;
            }
            From::Archive(path) => unpack(&tree, Box::new(open_named(path)?), progress)?,
            From::Stream(stream) => unpack(&tree, stream, progress)?,
        }
        let record = indexed(&draft, &tree, name, (options, 1))?;
        self.keep(draft, &record)?;
        Ok(Made { record, skipped })
    }
}

fn patterns(options: &Options) -> Result<Gitignore, Error> {
    let mut builder = GitignoreBuilder::new("");
    for file in &options.exclude_from {
        let text = std::fs::read(file).map_err(Error::io("read", file))?;
        let text =
            String::from_utf8(text).map_err(|_| Error::file(file, "is not text in utf-8"))?;
        for line in text.lines() {
            builder.add_line(None, line).map_err(|e| Error::file(file, e.to_string()))?;
        }
    }
    for line in &options.exclude {
        builder
            .add_line(None, line)
            .map_err(|e| Error::Refused(format!("--exclude {line}: {e}")))?;
    }
    builder.build().map_err(|e| Error::Refused(e.to_string()))
}

/// Writes the index of a finished tree, and what is to be recorded of it.
pub(crate) fn indexed(
    draft: &Draft<'_>,
    tree: &OwnedFd,
    name: &str,
    (options, version): (&Options, u64),
) -> Result<Record, Error> {
    let mut look = index::look(tree.as_fd(), true)?;
    index::write(draft.dir.as_fd(), &draft.path, &mut look, version)?;
    let now = Stamp::now();
    Ok(Record {
        id: draft.id.clone(),
        name: name.to_owned(),
        owner: options.owner.clone().unwrap_or_else(caller),
        created: now,
        updated: now,
        size: look.size,
        files: look.files,
        entries: look.names.len() as u64,
        sealed: options.sealed,
        version,
    })
}

/// Fills the empty `tree` with what an archive holds, which may be anybody's.
pub(crate) fn unpack(
    tree: &OwnedFd,
    from: Box<dyn Read + '_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let counted = Counted { from, bytes: 0, progress };
    let mut from = BufReader::with_capacity(256 << 10, counted);
    let start =
        from.fill_buf().map_err(|source| Error::Stream { what: "read the archive", source })?;
    let gzip = start.starts_with(&GZIP);
    let tree = tree.try_clone().map_err(Error::io("open", "tree"))?;
    let import = [Import { tree, lower: None }];
    if gzip {
        Import::read(&import, flate2::bufread::MultiGzDecoder::new(from), Limits::default())?;
    } else {
        Import::read(&import, from, Limits::default())?;
    }
    Ok(())
}

struct Counted<'a, 'p> {
    from: Box<dyn Read + 'a>,
    bytes: u64,
    progress: &'p mut dyn FnMut(Progress),
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(into)?;
        self.bytes += n as u64;
        (self.progress)(Progress { names: 0, bytes: self.bytes });
        Ok(n)
    }
}

/// A directory on its way into a tree.
struct Copying<'a> {
    tree: &'a OwnedFd,
    links: Links,
    exclude: Gitignore,
    progress: &'a mut dyn FnMut(Progress),
    done: Progress,
    skipped: Vec<PathBuf>,
}

impl<'a> Copying<'a> {
    fn new(
        tree: &'a OwnedFd,
        exclude: Gitignore,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        let root = tree.try_clone().map_err(Error::io("open", TREE))?;
        let (done, skipped) = (Progress::default(), Vec::new());
        Ok(Self { tree, links: Links::new(root), exclude, progress, done, skipped })
    }

    fn all(&mut self, source: &Path) -> Result<(), Error> {
        let from = rustix::fs::open(source, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", source))?;
        let stat = rustix::fs::fstat(&from).map_err(Error::os("look at", source))?;
        // Directories whose times and modes are set when they are full; by their level, since a closed
        // one would not let its own content be made.
        let mut full: Vec<PathBuf> = Vec::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let shown = || source.join(&path);
            let place = fd::open_beneath(from.as_fd(), bytes(&path), fd::PLACE | OFlags::DIRECTORY)
                .map_err(Error::os("open", shown()))?;
            let opened = reopen(&place, OFlags::RDONLY | OFlags::DIRECTORY, false)
                .map_err(Error::os("open", shown()))?;
            let to = fd::open_beneath(self.tree.as_fd(), bytes(&path), fd::DIRECTORY)
                .map_err(Error::os("open", shown()))?;
            let (names, _) = fd::list(opened.as_fd(), MOST).map_err(Error::os("list", shown()))?;
            for (name, kind) in names {
                let here = path.join(&name);
                if self.exclude.matched(&here, kind == FileType::Directory).is_ignore() {
                    continue;
                }
                if matches!(
                    kind,
                    FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice
                ) {
                    if self.skipped.len() < MOST_TOLD {
                        self.skipped.push(source.join(&here));
                    }
                    continue;
                }
                let (opened, to) = (opened.as_fd(), to.as_fd());
                if self.one(opened, &name, to, &here, source)? == FileType::Directory {
                    todo.push(here.clone());
                    full.push(here);
                }
                self.done.names += 1;
                (self.progress)(self.done);
            }
        }
        for path in full.iter().rev() {
            self.finish(from.as_fd(), path, source)?;
        }
        copy::mode_and_times(self.tree.as_fd(), &stat, OsStr::new(TREE))?;
        Ok(())
    }

    fn one(
        &mut self,
        from: BorrowedFd<'_>,
        name: &OsString,
        to: BorrowedFd<'_>,
        path: &Path,
        source: &Path,
    ) -> Result<FileType, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let bytes = &mut self.done.bytes;
            let mut progress = |n: u64| {
                *bytes += n;
                Ok(())
            };
            let mut how = how(&mut progress);
            let at = Some((&mut self.links, path));
            match copy::object(from, name, to, name, at, &mut how) {
                Ok(copied) if copied.kind == FileType::Directory => {
                    // Open for us while it is being filled.
                    rustix::fs::chmodat(to, name, Mode::RWXU, rustix::fs::AtFlags::empty())
                        .map_err(Error::os("set the mode of", source.join(path)))?;
                    return Ok(copied.kind);
                }
                Ok(copied) => return Ok(copied.kind),
                Err(copy::Error::Changed { .. }) if tries < TRIES => {}
                Err(copy::Error::Os { what, errno, .. }) => {
                    return Err(Error::os(what, source.join(path))(errno));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn finish(&self, from: BorrowedFd<'_>, path: &Path, source: &Path) -> Result<(), Error> {
        let open = |root| fd::open_beneath(root, bytes(path), fd::PLACE | OFlags::DIRECTORY);
        let like = open(from)
            .and_then(|dir| rustix::fs::fstat(&dir))
            .map_err(Error::os("look at", source.join(path)))?;
        let made = open(self.tree.as_fd()).map_err(Error::os("open", source.join(path)))?;
        copy::mode_and_times(made.as_fd(), &like, path.as_os_str())?;
        Ok(())
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// The caller's own, without privilege, and nothing that means something to overlayfs.
fn how(progress: &mut dyn FnMut(u64) -> Result<(), rustix::io::Errno>) -> How<'_> {
    How {
        attributes: &|key| merge::kept(key),
        owner: Owner::Caller,
        sync: Sync::No,
        mode_mask: 0o1777,
        unlock: false,
        progress,
    }
}
