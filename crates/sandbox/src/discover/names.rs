//! Guarded names that do not exist at the start: a mount cannot hold them, so they are looked for
//! after the run and taken out of the way. The same for repositories made during the run.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::config::executable_keys;
use super::fd;
use super::git::{MAX_CONFIG, has_some_shape, pointer};

/// Added to a name that appeared during a run and would be obeyed by host programs.
pub const HELD_SUFFIX: &str = ".ringfence-held";
/// Names tried before giving up: `x.ringfence-held`, `x.ringfence-held-1`, ...
const MAX_HELD: u32 = 1_000;
/// Longest name of one directory entry, bytes.
const MAX_NAME: usize = 255;
/// Git directories inspected in one new repository (submodules, worktrees).
const MAX_GIT_DIRS: usize = 1_024;
/// Entries looked at in one directory of a new repository.
const MAX_LISTED: usize = 10_000;

/// What was at a guarded name before the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// At `at` (the name or a directory on the way) is a symbolic link with this text.
    Link {
        at: PathBuf,
        target: PathBuf,
    },
    /// A directory on the way could not be entered.
    Closed,
}

/// Guarded names that were absent (or links) at the start.
#[derive(Debug)]
pub struct Absent {
    root: OwnedFd,
    names: Vec<(PathBuf, Before)>,
}

impl Absent {
    pub fn names(&self) -> &[(PathBuf, Before)] {
        &self.names
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A guarded name that appeared or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appeared {
    /// What to take away, relative to the root: the name, or a link or closed directory on the way.
    pub path: PathBuf,
    /// The guarded name that it provides.
    pub guarded: PathBuf,
    pub is_dir: bool,
    pub is_symlink: bool,
}

/// What is at a name now.
enum Probe {
    Absent,
    Link { at: PathBuf, target: PathBuf },
    Closed { at: PathBuf },
    Present { is_dir: bool },
}

/// Follows `name` from `root` without following a link.
fn probe(root: BorrowedFd<'_>, name: &Path) -> io::Result<Probe> {
    // Mostly there is nothing, and one call says so.
    let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
    let bytes = name.as_os_str().as_bytes();
    if plain
        && !bytes.is_empty()
        && matches!(fd::open_beneath(root, bytes, fd::PLACE), Err(Errno::NOENT | Errno::NOTDIR))
    {
        return Ok(Probe::Absent);
    }
    let mut held: Option<OwnedFd> = None;
    let mut at = PathBuf::new();
    let mut parts = name.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(part) = part else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain relative path"));
        };
        let from = held.as_ref().map_or(root, OwnedFd::as_fd);
        at.push(part);
        let stat = match fd::stat_name(from, part) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Probe::Absent),
            Err(Errno::ACCESS) => {
                at.pop();
                return Ok(Probe::Closed { at });
            }
            Err(errno) => return Err(errno.into()),
        };
        match fd::kind(&stat) {
            FileType::Symlink => {
                let target = fd::read_link(from, part)?;
                return Ok(Probe::Link { at, target });
            }
            kind if parts.peek().is_none() => {
                return Ok(Probe::Present { is_dir: kind == FileType::Directory });
            }
            FileType::Directory => {
                let flags = fd::PLACE | OFlags::DIRECTORY;
                held = Some(rustix::fs::openat(from, part, flags, Mode::empty())?);
            }
            _ => return Ok(Probe::Absent),
        }
    }
    Ok(Probe::Present { is_dir: true })
}

/// Remembers which of `names` (relative to `root`, plain) do not exist or lead through a link.
///
/// # Errors
/// When `root` cannot be used, or a name is not a plain relative path.
pub fn absent_names<P: AsRef<Path>>(root: BorrowedFd<'_>, names: &[P]) -> io::Result<Absent> {
    let mut absent = Vec::new();
    for name in names {
        let name = name.as_ref();
        let before = match probe(root, name)? {
            Probe::Present { .. } => continue,
            Probe::Absent => Before::Nothing,
            Probe::Link { at, target } => Before::Link { at, target },
            Probe::Closed { .. } => Before::Closed,
        };
        absent.push((name.to_owned(), before));
    }
    Ok(Absent { root: root.try_clone_to_owned()?, names: absent })
}

/// Looks for names that appeared or whose links changed since. A directory on the way that cannot be
/// entered any more counts as appeared: what it holds is unknown.
pub fn sweep(before: &Absent) -> Vec<Appeared> {
    let mut found = Vec::new();
    for (name, was) in &before.names {
        let (path, is_dir, is_symlink) = match (probe(before.root.as_fd(), name), was) {
            (Ok(Probe::Absent), _) | (Ok(Probe::Closed { .. }), Before::Closed) => continue,
            (Ok(Probe::Link { at, target }), Before::Link { at: was_at, target: was_target })
                if at == *was_at && target == *was_target =>
            {
                continue;
            }
            (Ok(Probe::Link { at, .. }), _) => (at, false, true),
            (Ok(Probe::Closed { at }), _) => (at, true, false),
            (Ok(Probe::Present { is_dir }), _) => (name.clone(), is_dir, false),
            (Err(_), _) => (name.clone(), false, false),
        };
        // The root itself cannot be taken away.
        if path.as_os_str().is_empty() {
            continue;
        }
        found.push(Appeared { path, guarded: name.clone(), is_dir, is_symlink });
    }
    found
}

/// Renames `path` (relative to `root`) to `<name>.ringfence-held[-N]` in its directory; the answer is
/// the new relative path. Never replaces anything, never follows a link.
///
/// # Errors
/// The operating system's, and `AlreadyExists` when a thousand names are taken.
pub fn hold(root: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let dir = fd::open_beneath(root, parent.as_os_str().as_bytes(), fd::PLACE | OFlags::DIRECTORY)?;
    for attempt in 0..MAX_HELD {
        let suffix = match attempt {
            0 => HELD_SUFFIX.to_owned(),
            n => format!("{HELD_SUFFIX}-{n}"),
        };
        let kept = name.len().min(MAX_NAME - suffix.len());
        let held = [&name.as_bytes()[..kept], suffix.as_bytes()].concat();
        let renamed = rustix::fs::renameat_with(&dir, name, &dir, &*held, RenameFlags::NOREPLACE);
        let renamed = match renamed {
            // A file system without RENAME_NOREPLACE: the run is over, so looking first is enough.
            Err(Errno::INVAL | Errno::NOSYS) => match fd::stat_name(&dir, &*held) {
                Err(Errno::NOENT) => rustix::fs::renameat(&dir, name, &dir, &*held),
                Ok(_) => Err(Errno::EXIST),
                Err(errno) => Err(errno),
            },
            other => other,
        };
        match renamed {
            Ok(()) => return Ok(parent.join(OsStr::from_bytes(&held))),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// What a repository made during the run would let the host's git run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewRepository {
    /// Relative to the root.
    pub git_dirs: Vec<PathBuf>,
    /// Executable hooks that were renamed: old and new relative path.
    pub held: Vec<(PathBuf, PathBuf)>,
    /// Configuration file (relative) and executable key.
    pub keys: Vec<(PathBuf, String)>,
    /// What could not be inspected or held, or leads out of the root, and why.
    pub suspicious: Vec<(PathBuf, String)>,
}

/// Inspects a repository that appeared during the run (a directory with a `.git` entry, or a bare one;
/// relative to `root`), and holds its executable hooks.
///
/// # Errors
/// Only when the directory cannot be opened; everything else is part of the answer.
pub fn inspect_new_repository(root: BorrowedFd<'_>, path: &Path) -> io::Result<NewRepository> {
    let dir = fd::open_beneath(root, path.as_os_str().as_bytes(), fd::PLACE | OFlags::DIRECTORY)?;
    let mut inspector = Inspector { root, seen: HashSet::new(), out: NewRepository::default() };
    let link = path.join(".git");
    match fd::stat_name(&dir, ".git").map(|s| fd::kind(&s)) {
        Ok(FileType::Directory) => inspector.git_dir(link),
        Ok(FileType::RegularFile) => match pointer(dir.as_fd(), b".git") {
            Ok(text) => match text.strip_prefix(b"gitdir:") {
                Some(target) => inspector.leads(&link, path, target.trim_ascii()),
                None => inspector.suspect(link, "not a git link: no gitdir in it"),
            },
            Err(e) => inspector.suspect(link, &e.to_string()),
        },
        Ok(FileType::Symlink) => match fd::read_link(&dir, ".git") {
            Ok(target) => inspector.leads(&link, path, target.as_os_str().as_bytes()),
            Err(e) => inspector.suspect(link, &e.to_string()),
        },
        Ok(_) => inspector.suspect(link, "neither file nor directory"),
        Err(Errno::NOENT) => inspector.git_dir(path.to_owned()),
        Err(errno) => inspector.suspect(link, &errno.to_string()),
    }
    inspector.out.suspicious.sort();
    inspector.out.suspicious.dedup();
    Ok(inspector.out)
}

struct Inspector<'a> {
    root: BorrowedFd<'a>,
    seen: HashSet<PathBuf>,
    out: NewRepository,
}

impl Inspector<'_> {
    fn suspect(&mut self, path: PathBuf, why: &str) {
        self.out.suspicious.push((path, why.to_owned()));
    }

    /// `name` sends git to `target`, as seen from `dir`; followed only within the root.
    fn leads(&mut self, name: &Path, dir: &Path, target: &[u8]) {
        use std::os::fd::AsRawFd as _;
        // The root's own path, asked of the kernel: a pointer may be absolute.
        let root = std::fs::read_link(format!("/proc/self/fd/{}", self.root.as_raw_fd()));
        let found = root.and_then(|root| {
            let real = fd::real(&root.join(dir), Path::new(OsStr::from_bytes(target)))?;
            Ok(real.strip_prefix(&root).map(Path::to_owned).map_err(|_| real.clone()))
        });
        match found {
            Ok(Ok(inside)) => self.git_dir(inside),
            Ok(Err(outside)) => {
                self.suspect(name.to_owned(), &format!("leads out to {}", outside.display()));
            }
            Err(e) => self.suspect(name.to_owned(), &format!("leads nowhere: {e}")),
        }
    }

    fn git_dir(&mut self, path: PathBuf) {
        if !self.seen.insert(path.clone()) {
            return;
        }
        if self.seen.len() > MAX_GIT_DIRS {
            self.suspect(path, "not looked at: too many git directories");
            return;
        }
        let flags = fd::PLACE | OFlags::DIRECTORY;
        let dir = match fd::open_beneath(self.root, path.as_os_str().as_bytes(), flags) {
            Ok(dir) => dir,
            Err(errno) => {
                self.suspect(path, &errno.to_string());
                return;
            }
        };
        self.out.git_dirs.push(path.clone());
        self.hooks(&path, dir.as_fd());
        for name in ["config", "config.worktree"] {
            self.config(&path.join(name), dir.as_fd(), name);
        }
        match pointer(dir.as_fd(), b"commondir") {
            Ok(target) => self.leads(&path.join("commondir"), &path, &target),
            Err(e) if e.is_absent() => {}
            Err(e) => self.suspect(path.join("commondir"), &e.to_string()),
        }
        for (entry, kind) in self.listed(&path.join("worktrees"), dir.as_fd(), b"worktrees") {
            if kind == FileType::Directory {
                self.git_dir(path.join("worktrees").join(entry));
            }
        }
        self.modules(&path.join("modules"));
    }

    /// Git directories at any level of `modules/`.
    fn modules(&mut self, modules: &Path) {
        let mut pending = vec![modules.to_owned()];
        let mut looked = 0;
        while let Some(path) = pending.pop() {
            for (entry, kind) in self.listed(&path, self.root, path.as_os_str().as_bytes()) {
                if kind != FileType::Directory {
                    continue;
                }
                looked += 1;
                if looked > MAX_LISTED {
                    self.suspect(path, "not looked at: too many modules");
                    return;
                }
                let below = path.join(entry);
                let name = below.as_os_str().as_bytes();
                match fd::open_beneath(self.root, name, fd::PLACE | OFlags::DIRECTORY) {
                    Ok(dir) if has_some_shape(dir.as_fd()) => self.git_dir(below),
                    Ok(_) => pending.push(below),
                    Err(errno) => self.suspect(below, &errno.to_string()),
                }
            }
        }
    }

    fn listed(
        &mut self,
        path: &Path,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Vec<(std::ffi::OsString, FileType)> {
        match fd::open_beneath(dir, name, fd::DIRECTORY)
            .and_then(|fd| fd::list(fd.as_fd(), MAX_LISTED))
        {
            Ok((names, more)) => {
                if more {
                    self.suspect(path.to_owned(), "not all looked at: too many entries");
                }
                names
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Vec::new(),
            Err(errno) => {
                self.suspect(path.to_owned(), &errno.to_string());
                Vec::new()
            }
        }
    }

    fn hooks(&mut self, git_dir: &Path, dir: BorrowedFd<'_>) {
        let hooks = git_dir.join("hooks");
        match fd::stat_name(dir, "hooks").map(|s| fd::kind(&s)) {
            Ok(FileType::Symlink) => self.take(hooks),
            Ok(FileType::Directory) => {
                for (name, _) in self.listed(&hooks, dir, b"hooks") {
                    if !name.as_bytes().ends_with(b".sample")
                        && !name
                            .as_bytes()
                            .windows(HELD_SUFFIX.len())
                            .any(|w| w == HELD_SUFFIX.as_bytes())
                        && Self::is_live(dir, &name)
                    {
                        self.take(hooks.join(name));
                    }
                }
            }
            _ => {}
        }
    }

    /// git runs a hook when it is executable; a link may lead to anything.
    fn is_live(git_dir: BorrowedFd<'_>, name: &OsStr) -> bool {
        let path = [b"hooks/", name.as_bytes()].concat();
        fd::stat_name(git_dir, &*path).is_ok_and(|stat| match fd::kind(&stat) {
            FileType::Symlink => true,
            FileType::RegularFile => stat.st_mode & 0o111 != 0,
            _ => false,
        })
    }

    fn take(&mut self, path: PathBuf) {
        match hold(self.root, &path) {
            Ok(held) => self.out.held.push((path, held)),
            Err(e) => self.suspect(path, &format!("could not be held: {e}")),
        }
    }

    /// Whether every working tree that the configuration at `path` names lies within the root.
    fn tree_is_inside(&self, path: &Path, bytes: &[u8]) -> bool {
        use std::os::fd::AsRawFd as _;
        let Ok(root) = std::fs::read_link(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
        else {
            return false;
        };
        let dir = path.parent().map_or_else(|| root.clone(), |dir| root.join(dir));
        super::config::parse(bytes).iter().filter(|e| e.is("core", "worktree")).all(|entry| {
            let value = entry.value.as_deref().unwrap_or_default();
            fd::real(&dir, Path::new(OsStr::from_bytes(value)))
                .is_ok_and(|real| real.starts_with(&root))
        })
    }

    fn config(&mut self, path: &Path, dir: BorrowedFd<'_>, name: &str) {
        match fd::read_regular(dir, name.as_bytes(), MAX_CONFIG) {
            Ok(bytes) => {
                let mut keys = executable_keys(&bytes);
                // A submodule's configuration names its working tree.
                if self.tree_is_inside(path, &bytes) {
                    keys.retain(|key| key != "core.worktree");
                }
                self.out.keys.extend(keys.into_iter().map(|key| (path.to_owned(), key)));
            }
            Err(e) if e.is_absent() => {}
            Err(e) => self.suspect(path.to_owned(), &e.to_string()),
        }
    }
}
