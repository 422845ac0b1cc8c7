//! Which parts of which repositories must not change, and which git directories outside the workspace
//! a commit must be able to write.
//!
//! ```text
//! .git directory ---------------------------------> git dir = common dir
//! .git file "gitdir: G" (linked worktree) --------> G, with G/commondir -> common dir
//! .git file "gitdir: G" (submodule) --------------> G = <superproject>/.git/modules/<name>
//! HEAD + objects + refs (bare) -------------------> the directory itself
//! common dir: config hooks info/attributes objects/info/alternates
//!   worktrees/*: config.worktree commondir gitdir
//!   modules/**:  git dirs of submodules, each again with all of this
//! ```
//!
//! A `.git` file may name any directory, so a git directory outside the workspace is granted only
//! when it names this working tree itself and belongs to the workspace's owner. Inside the workspace
//! nothing needs to be believed: whatever git may take for a git directory is guarded.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::config::{Entry, parse};
use super::fd::{self, ReadError};
use super::walk::{RepositoryHint, Shape};

/// Repositories resolved for one workspace, modules included; every one costs some twenty calls.
pub const MAX_REPOSITORIES: usize = 4_096;
/// Bytes of a `.git` file, `commondir` or `gitdir`: a path and a few words.
const MAX_POINTER: u64 = 8 * 1024;
/// Bytes of one configuration file; git's own files are a few hundred to some thousand.
pub(super) const MAX_CONFIG: u64 = 1 << 20;
/// Configuration files of one workspace that are remembered as they are, and the bytes of all of them:
/// what a private root of limited size can hold copies of.
const MAX_REMEMBERED: usize = 1_024;
const MAX_REMEMBERED_BYTES: usize = 4 << 20;
/// Depth of configuration includes, as git itself bounds it.
const MAX_INCLUDE_DEPTH: usize = 10;
/// Included files read for one repository.
const MAX_INCLUDES: usize = 64;
/// Entries looked at in each of `worktrees/` and the directories of `modules/`.
const MAX_LISTED: usize = 10_000;
/// Levels of directories in `modules/` before a git directory (names of submodules hold slashes).
const MAX_MODULE_LEVELS: usize = 32;
/// Directories climbed in search of the repository around the workspace.
const MAX_CLIMB: usize = 256;

/// What git makes of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `.git` is a directory (or leads to one that names no other common directory).
    Plain,
    /// Made by `git worktree add`: objects, refs and config live in a common directory.
    Worktree,
    /// Its git directory lies in `modules/` of another repository.
    Submodule,
    /// No working tree: HEAD, objects and refs lie in the directory itself.
    Bare,
}

/// A path that exists and must not change during the run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// Absolute, free of symbolic links up to its last component.
    pub path: PathBuf,
    /// For people: `git hooks`, `git config`.
    pub what: &'static str,
    pub is_dir: bool,
    /// The name itself is a symbolic link: what it leads to inside the workspace has its own guard.
    pub is_symlink: bool,
}

/// A configuration file of a repository as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    pub bytes: Vec<u8>,
    /// Device and inode of what was read.
    pub id: (u64, u64),
    /// Permission bits.
    pub mode: u32,
}

/// One repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Absolute; `None` for a bare repository and for a module whose working tree is not known.
    pub worktree: Option<PathBuf>,
    pub git_dir: PathBuf,
    /// Where objects, refs, config and hooks live; equal to `git_dir` unless a linked worktree.
    pub common_dir: PathBuf,
    pub kind: Kind,
    pub guards: Vec<Guard>,
    /// Git directories outside the workspace that must be writable for `git commit`, verified to
    /// belong to this working tree and to the workspace's owner. Their guards are in `guards`.
    pub outside: Vec<PathBuf>,
    /// Guarded names that do not exist now.
    pub absent: Vec<PathBuf>,
    /// Directories that must stay where they are: renaming one would carry the guards below it away
    /// and leave the name free. Bind each onto itself, writable, before the guards. Parents before
    /// children.
    pub pins: Vec<PathBuf>,
}

/// Every repository that matters for a workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitGuards {
    pub repositories: Vec<Repository>,
    /// The repository above the workspace, when the workspace is part of its working tree. Its git
    /// directory is for reading only.
    pub enclosing: Option<Repository>,
    /// What was not accepted, and why. Nothing is granted for these.
    pub refused: Vec<(PathBuf, String)>,
    /// Every `.git` entry and bare repository with its device and inode, by path.
    pub entries: BTreeMap<PathBuf, (u64, u64)>,
    /// `config` and `config.worktree` of the repositories, by path, as far as they could be read and
    /// are not too many.
    pub configs: BTreeMap<PathBuf, Arc<ConfigFile>>,
}

impl GitGuards {
    /// All guards of all repositories, sorted, each once.
    pub fn guards(&self) -> Vec<&Guard> {
        let mut all: Vec<&Guard> = self.repositories.iter().flat_map(|r| &r.guards).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Directories (relative, as hinted) that hold a repository which was not there at the start: made
    /// during the run, or put under the name of another one.
    pub fn new_since<'h>(
        &self,
        workspace: &Path,
        hints: &'h [RepositoryHint],
    ) -> Vec<&'h RepositoryHint> {
        hints
            .iter()
            .filter(|hint| {
                let path = entry_path(workspace, hint);
                match identity(&path) {
                    Ok(id) => self.entries.get(&path) != Some(&id),
                    // Gone again, or only another spelling of the name.
                    Err(Errno::NOENT) => false,
                    Err(_) => true,
                }
            })
            .collect()
    }

    /// All pins, sorted (parents before children), each once.
    pub fn pins(&self) -> Vec<&Path> {
        Self::paths(self.repositories.iter().flat_map(|r| &r.pins))
    }

    /// All absent names, sorted, each once.
    pub fn absent(&self) -> Vec<&Path> {
        Self::paths(self.repositories.iter().flat_map(|r| &r.absent))
    }

    /// All git directories outside the workspace to be mounted writable, sorted, each once.
    pub fn outside(&self) -> Vec<&Path> {
        Self::paths(self.repositories.iter().flat_map(|r| &r.outside))
    }

    fn paths<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Vec<&'a Path> {
        let mut all: Vec<&Path> = paths.map(PathBuf::as_path).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What git knows from outside the repository.
#[derive(Clone, Copy, Debug, Default)]
pub struct GitOptions<'a> {
    /// For `~/` in configuration values; a repository at or above home is never `enclosing`.
    pub home: Option<&'a Path>,
    /// The caller's own configuration files (`~/.gitconfig`, `~/.config/git/config`): their
    /// `core.hooksPath` applies in every repository. Missing files are fine.
    pub user_config: &'a [PathBuf],
}

/// Resolves the repositories that a walk hinted at. `workspace` is absolute and free of links.
///
/// # Errors
/// Only when the workspace itself cannot be opened; everything else is part of the answer.
pub fn discover_git(
    workspace: &Path,
    hints: &[RepositoryHint],
    options: &GitOptions<'_>,
) -> std::io::Result<GitGuards> {
    let root = fd::open_absolute(workspace, fd::PLACE | OFlags::DIRECTORY)?;
    let owner = rustix::fs::fstat(&root)?.st_uid;
    let mut finder = Finder {
        workspace,
        owner,
        options,
        user_hooks: None,
        remembered: 0,
        seen: HashSet::new(),
        out: GitGuards::default(),
    };
    finder.user_hooks = finder.user_hooks_path();
    for hint in hints {
        let path = entry_path(workspace, hint);
        if let Ok(id) = identity(&path) {
            finder.out.entries.insert(path, id);
        }
    }
    // `.git` entries first: the directories that they lead to look bare when met on their own.
    for hint in hints.iter().filter(|h| h.shape == Shape::DotGit) {
        let dir = join(workspace, &hint.path);
        if let Err((path, why)) = finder.dot_git(&dir) {
            finder.out.refused.push((path, why));
        }
    }
    for hint in hints.iter().filter(|h| h.shape == Shape::Bare) {
        let dir = join(workspace, &hint.path);
        if !finder.seen.contains(&dir) {
            finder.add(Origin { git_dir: dir, worktree: None, kind: Kind::Bare, outside: None });
        }
    }
    if !hints.iter().any(|h| h.shape == Shape::DotGit && h.path.as_os_str().is_empty()) {
        finder.climb();
    }
    finder.out.refused.sort();
    finder.out.refused.dedup();
    Ok(finder.out)
}

/// What was refused and why.
type Refusal = (PathBuf, String);

/// A git directory about to be described.
struct Origin {
    git_dir: PathBuf,
    worktree: Option<PathBuf>,
    kind: Kind,
    /// What to mount writable for it.
    outside: Option<PathBuf>,
}

struct Finder<'a> {
    workspace: &'a Path,
    owner: u32,
    options: &'a GitOptions<'a>,
    /// `core.hooksPath` of the caller's own configuration.
    user_hooks: Option<PathBuf>,
    /// Bytes of the configuration files remembered.
    remembered: usize,
    /// Git directories described already.
    seen: HashSet<PathBuf>,
    out: GitGuards,
}

impl Finder<'_> {
    fn is_inside(&self, path: &Path) -> bool {
        path.starts_with(self.workspace)
    }

    /// The caller's own files, which may be links (home managers).
    fn user_hooks_path(&self) -> Option<PathBuf> {
        let mut found = None;
        for path in self.options.user_config {
            let Ok(path) = std::fs::canonicalize(path) else { continue };
            for entry in read_config(&path).unwrap_or_default() {
                if entry.is("core", "hookspath") {
                    found = entry.value.map(|v| self.expand(&v));
                }
            }
        }
        found
    }

    /// `~/` as git expands it.
    fn expand(&self, value: &[u8]) -> PathBuf {
        match (value.strip_prefix(b"~/"), self.options.home) {
            (Some(rest), Some(home)) => home.join(OsStr::from_bytes(rest)),
            _ => PathBuf::from(OsStr::from_bytes(value)),
        }
    }

    /// A directory of the workspace with an entry `.git`.
    fn dot_git(&mut self, dir: &Path) -> Result<(), Refusal> {
        let name = dir.join(".git");
        let refuse = |why: String| (name.clone(), why);
        let fd = fd::open_absolute(dir, fd::PLACE | OFlags::DIRECTORY)
            .map_err(|e| refuse(e.to_string()))?;
        let stat = match fd::stat_name(&fd, ".git") {
            Ok(stat) => stat,
            // Only another spelling (`.GIT`) is there, on a file system where that differs.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(refuse(errno.to_string())),
        };
        let worktree = Some(dir.to_owned());
        match fd::kind(&stat) {
            FileType::Directory => {
                self.add(Origin { git_dir: name, worktree, kind: Kind::Plain, outside: None });
                Ok(())
            }
            FileType::RegularFile => {
                let target = pointer(fd.as_fd(), b".git").map_err(|e| refuse(e.to_string()))?;
                let target = target
                    .strip_prefix(b"gitdir:")
                    .map(<[u8]>::trim_ascii)
                    .ok_or_else(|| refuse("not a git link: no gitdir in it".to_owned()))?;
                let git_dir = fd::real(dir, Path::new(OsStr::from_bytes(target)))
                    .map_err(|e| refuse(format!("its git directory is not there: {e}")))?;
                self.linked(dir, &git_dir, "git link file", false)
            }
            FileType::Symlink => {
                let target = fd::read_link(&fd, ".git").map_err(|e| refuse(e.to_string()))?;
                let git_dir = fd::real(dir, &target)
                    .map_err(|e| refuse(format!("a symbolic link to nowhere: {e}")))?;
                self.linked(dir, &git_dir, "git symbolic link", true)
            }
            _ => Err(refuse("neither file nor directory".to_owned())),
        }
    }

    /// The working tree `dir` names `git_dir` by a `.git` file or link.
    fn linked(
        &mut self,
        dir: &Path,
        git_dir: &Path,
        what: &'static str,
        is_symlink: bool,
    ) -> Result<(), Refusal> {
        let name = dir.join(".git");
        let guard = Guard { path: name.clone(), what, is_dir: false, is_symlink };
        let origin = self.origin(dir, git_dir);
        // The name is guarded whatever it leads to.
        let origin = match origin {
            Ok(origin) => origin,
            Err(why) => {
                self.out.repositories.push(Repository {
                    worktree: Some(dir.to_owned()),
                    git_dir: git_dir.to_owned(),
                    common_dir: git_dir.to_owned(),
                    kind: Kind::Plain,
                    guards: vec![guard],
                    outside: Vec::new(),
                    absent: Vec::new(),
                    pins: Vec::new(),
                });
                return Err((name, why));
            }
        };
        if let Some(repository) = self.add(origin) {
            repository.guards.push(guard);
        } else {
            // The git directory was met before (two names for it): the link is still guarded.
            let known = self.out.repositories.iter_mut().find(|r| r.git_dir == git_dir);
            if let Some(known) = known {
                known.guards.push(guard);
            }
        }
        Ok(())
    }

    /// Decides whether `git_dir` is accepted for the working tree `dir`.
    fn origin(&self, dir: &Path, git_dir: &Path) -> Result<Origin, String> {
        let shown = git_dir.display();
        let fd = fd::open_absolute(git_dir, fd::PLACE | OFlags::DIRECTORY)
            .map_err(|e| format!("its git directory {shown} cannot be opened: {e}"))?;
        let common =
            common_dir(fd.as_fd(), git_dir).map_err(|e| format!("commondir of {shown}: {e}"))?;
        let worktree = Some(dir.to_owned());
        if self.is_inside(git_dir) {
            let kind = match &common {
                Some(common) if !self.is_inside(common) => {
                    let common = common.display();
                    return Err(format!("{shown} names a common directory outside: {common}"));
                }
                Some(_) => Kind::Worktree,
                None if is_module(git_dir) => Kind::Submodule,
                None => Kind::Plain,
            };
            return Ok(Origin { git_dir: git_dir.to_owned(), worktree, kind, outside: None });
        }
        self.owned(&fd, git_dir)?;
        if let Some(common) = common {
            let back = pointer(fd.as_fd(), b"gitdir")
                .map_err(|e| format!("{shown} does not say which working tree it is of: {e}"))?;
            let back = fd::real(git_dir, Path::new(OsStr::from_bytes(&back))).ok();
            if back.as_deref() != Some(&dir.join(".git")) {
                return Err(format!("{shown} belongs to another working tree"));
            }
            let worktrees =
                git_dir.parent().filter(|p| p.file_name() == Some("worktrees".as_ref()));
            if worktrees.and_then(Path::parent) != Some(&*common) {
                return Err(format!("{shown} is not one of the worktrees of {}", common.display()));
            }
            let common_fd = fd::open_absolute(&common, fd::PLACE | OFlags::DIRECTORY)
                .map_err(|e| format!("{} cannot be opened: {e}", common.display()))?;
            self.owned(&common_fd, &common)?;
            if !has_shape(common_fd.as_fd()) {
                return Err(format!("{} is not a git directory", common.display()));
            }
            let outside = self.outside(common)?;
            return Ok(Origin {
                git_dir: git_dir.to_owned(),
                worktree,
                kind: Kind::Worktree,
                outside: Some(outside),
            });
        }
        if !has_shape(fd.as_fd()) {
            return Err(format!("{shown} is not a git directory"));
        }
        let back = read_config(&git_dir.join("config"))
            .map_err(|e| format!("config of {shown}: {e}"))?
            .into_iter()
            .rfind(|e| e.is("core", "worktree") && e.subsection.is_none())
            .and_then(|e| e.value)
            .and_then(|v| fd::real(git_dir, Path::new(OsStr::from_bytes(&v))).ok());
        if back.as_deref() != Some(dir) {
            return Err(format!(
                "{shown} lies outside the workspace and does not name {} as its working tree",
                dir.display()
            ));
        }
        let kind = if is_module(git_dir) { Kind::Submodule } else { Kind::Plain };
        let outside = self.outside(git_dir.to_owned())?;
        Ok(Origin { git_dir: git_dir.to_owned(), worktree, kind, outside: Some(outside) })
    }

    /// A directory outside that would be mounted writable must not contain more than a repository.
    fn outside(&self, path: PathBuf) -> Result<PathBuf, String> {
        let home = self.options.home.is_some_and(|home| home.starts_with(&path));
        if home || self.workspace.starts_with(&path) {
            return Err(format!("{} is more than a git directory", path.display()));
        }
        Ok(path)
    }

    fn owned(&self, fd: &OwnedFd, path: &Path) -> Result<(), String> {
        let stat = rustix::fs::fstat(fd).map_err(|e| format!("{}: {e}", path.display()))?;
        if stat.st_uid == self.owner {
            return Ok(());
        }
        Err(format!(
            "{} belongs to user {}, not to the workspace's owner",
            path.display(),
            stat.st_uid
        ))
    }

    /// Describes a git directory and the modules in it, once.
    fn add(&mut self, origin: Origin) -> Option<&mut Repository> {
        if !self.seen.insert(origin.git_dir.clone()) {
            return None;
        }
        if self.out.repositories.len() >= MAX_REPOSITORIES {
            let why = format!("more than {MAX_REPOSITORIES} repositories");
            self.out.refused.push((self.workspace.to_owned(), why));
            return None;
        }
        match self.describe(origin) {
            Ok((repository, modules)) => {
                let at = self.out.repositories.len();
                self.out.repositories.push(repository);
                for module in modules {
                    self.add(module);
                }
                self.out.repositories.get_mut(at)
            }
            Err(refusal) => {
                self.out.refused.push(refusal);
                None
            }
        }
    }

    fn describe(&mut self, origin: Origin) -> Result<(Repository, Vec<Origin>), Refusal> {
        let Origin { git_dir, worktree, mut kind, outside } = origin;
        let fail = |path: &Path, e: &dyn std::fmt::Display| (path.to_owned(), e.to_string());
        let fd = fd::open_absolute(&git_dir, fd::PLACE | OFlags::DIRECTORY)
            .map_err(|e| fail(&git_dir, &e))?;
        let common_dir = match common_dir(fd.as_fd(), &git_dir) {
            Ok(Some(common)) if !self.is_inside(&common) && outside.as_ref() != Some(&common) => {
                // Nothing of it is looked at or granted.
                let why = format!("names a common directory outside: {}", common.display());
                self.out.refused.push((git_dir.join("commondir"), why));
                git_dir.clone()
            }
            Ok(Some(common)) if common != git_dir => {
                kind = Kind::Worktree;
                common
            }
            Ok(_) => git_dir.clone(),
            Err(e) => {
                self.out.refused.push((git_dir.join("commondir"), e.to_string()));
                git_dir.clone()
            }
        };
        let mut repository = Repository {
            worktree,
            git_dir: git_dir.clone(),
            common_dir: common_dir.clone(),
            kind,
            guards: Vec::new(),
            outside: outside.into_iter().collect(),
            absent: Vec::new(),
            pins: Vec::new(),
        };
        let modules = self.common(&mut repository, &common_dir)?;
        if git_dir != common_dir {
            self.private(&mut repository, &git_dir, fd.as_fd());
        }
        self.configured(&mut repository);
        repository.guards.sort_unstable();
        repository.guards.dedup();
        repository.absent.sort_unstable();
        repository.absent.dedup();
        // The workspace itself is a mount point already.
        repository.pins.retain(|pin| pin != self.workspace);
        repository.pins.sort_unstable();
        repository.pins.dedup();
        Ok((repository, modules))
    }

    /// What every working tree of a repository shares.
    fn common(&mut self, out: &mut Repository, common: &Path) -> Result<Vec<Origin>, Refusal> {
        let fd = fd::open_absolute(common, fd::PLACE | OFlags::DIRECTORY)
            .map_err(|e| (common.to_owned(), e.to_string()))?;
        let fd = fd.as_fd();
        out.pins.push(common.to_owned());
        for (name, what) in [
            ("config", "git config"),
            ("config.worktree", "git config of the worktree"),
            ("hooks", "git hooks"),
            ("info/attributes", "git attributes"),
            ("objects/info/alternates", "git alternates"),
            ("commondir", "git common directory"),
        ] {
            self.name(out, common, fd, name, what);
        }
        for (name, kind) in self.listed(common, fd, "worktrees") {
            if kind != FileType::Directory {
                continue;
            }
            let worktrees = common.join("worktrees");
            let path = worktrees.join(&name);
            if let Ok(fd) = fd::open_absolute(&path, fd::PLACE | OFlags::DIRECTORY) {
                out.pins.push(worktrees);
                self.private(out, &path, fd.as_fd());
            }
        }
        let mut modules = Vec::new();
        self.modules(out, common, fd, &mut modules);
        Ok(modules)
    }

    /// What one linked worktree has of its own.
    fn private(&self, out: &mut Repository, dir: &Path, fd: BorrowedFd<'_>) {
        out.pins.push(dir.to_owned());
        self.name(out, dir, fd, "config.worktree", "git config of the worktree");
        self.name(out, dir, fd, "commondir", "git common directory");
        self.name(out, dir, fd, "gitdir", "git link back to the worktree");
    }

    /// Entries of a directory in a git directory; one that is missing or a link has none.
    fn listed(
        &mut self,
        dir: &Path,
        fd: BorrowedFd<'_>,
        name: &str,
    ) -> Vec<(std::ffi::OsString, FileType)> {
        match fd::open_beneath(fd, name.as_bytes(), fd::DIRECTORY)
            .and_then(|fd| fd::list(fd.as_fd(), MAX_LISTED))
        {
            Ok((names, false)) => names,
            Ok((names, true)) => {
                let why = format!("more than {MAX_LISTED} entries");
                self.out.refused.push((dir.join(name), why));
                names
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Vec::new(),
            Err(errno) => {
                self.out.refused.push((dir.join(name), errno.to_string()));
                Vec::new()
            }
        }
    }

    /// Git directories of submodules, whose names may hold slashes.
    fn modules(
        &mut self,
        out: &mut Repository,
        common: &Path,
        fd: BorrowedFd<'_>,
        found: &mut Vec<Origin>,
    ) {
        let mut pending = vec![(PathBuf::from("modules"), 0)];
        let mut looked = 0;
        while let Some((relative, level)) = pending.pop() {
            let name = relative.to_string_lossy().into_owned();
            let entries = match relative.to_str() {
                Some(name) => self.listed(common, fd, name),
                None => match fd::open_beneath(fd, relative.as_os_str().as_bytes(), fd::DIRECTORY)
                    .and_then(|fd| fd::list(fd.as_fd(), MAX_LISTED))
                {
                    Ok((names, _)) => names,
                    Err(_) => continue,
                },
            };
            looked += entries.len();
            if level > MAX_MODULE_LEVELS || looked > MAX_LISTED {
                let why = format!("more modules than can be looked at, at {name}");
                self.out.refused.push((common.join(&relative), why));
                return;
            }
            if entries.is_empty() {
                continue;
            }
            let mut holds = false;
            for (entry, kind) in entries {
                if kind != FileType::Directory {
                    continue;
                }
                let below = relative.join(&entry);
                let path = common.join(&below);
                let Ok(dir) = fd::open_beneath(fd, below.as_os_str().as_bytes(), fd::PLACE) else {
                    continue;
                };
                holds = true;
                if has_some_shape(dir.as_fd()) {
                    let worktree = read_config(&path.join("config"))
                        .unwrap_or_default()
                        .into_iter()
                        .rfind(|e| e.is("core", "worktree"))
                        .and_then(|e| e.value)
                        .and_then(|v| fd::real(&path, Path::new(OsStr::from_bytes(&v))).ok())
                        .filter(|w| self.is_inside(w) && w.is_dir());
                    found.push(Origin {
                        git_dir: path,
                        worktree,
                        kind: Kind::Submodule,
                        outside: None,
                    });
                } else {
                    pending.push((below, level + 1));
                }
            }
            if holds {
                out.pins.push(common.join(&relative));
            }
        }
    }

    /// One name in a git directory: guarded if it exists, else noted as absent.
    fn name(
        &self,
        out: &mut Repository,
        dir: &Path,
        fd: BorrowedFd<'_>,
        name: &str,
        what: &'static str,
    ) {
        let mut at = PathBuf::new();
        for part in Path::new(name).components() {
            at.push(part);
            let path = dir.join(&at);
            match fd::stat_name(fd, &*at) {
                Ok(stat) if fd::kind(&stat) == FileType::Symlink => {
                    self.symlink(out, path, what);
                    return;
                }
                Ok(stat) if at.as_os_str() == name => {
                    let is_dir = fd::kind(&stat) == FileType::Directory;
                    out.guards.push(Guard { path, what, is_dir, is_symlink: false });
                }
                Ok(_) => {}
                Err(_) => {
                    out.absent.push(dir.join(name));
                    return;
                }
            }
        }
    }

    /// A guarded name that is a link: the link and, inside the workspace, what it leads to.
    fn symlink(&self, out: &mut Repository, path: PathBuf, what: &'static str) {
        if let Ok(target) = std::fs::canonicalize(&path)
            && self.is_inside(&target)
        {
            let is_dir = target.is_dir();
            out.guards.push(Guard { path: target, what, is_dir, is_symlink: false });
        }
        out.guards.push(Guard { path, what, is_dir: false, is_symlink: true });
    }

    /// What the configuration names: included files, the effective hooks directory, programs.
    fn configured(&mut self, out: &mut Repository) {
        let mut entries = Vec::new();
        let mut budget = MAX_INCLUDES;
        for file in [out.common_dir.join("config"), out.git_dir.join("config.worktree")] {
            self.read_layered(out, &file, 0, &mut budget, &mut entries);
        }
        let base = out.worktree.clone().unwrap_or_else(|| out.git_dir.clone());
        let mut hooks = self.user_hooks.clone();
        for entry in &entries {
            if entry.is("core", "hookspath") {
                hooks = entry.value.as_ref().map(|value| self.expand(value));
            } else if entry.is_executable()
                && !matches!(&*entry.section, "include" | "includeif" | "url" | "protocol")
                && let Some(program) = entry.value.as_deref().and_then(program)
            {
                self.file(out, &base, &self.expand(program), "program named by git config");
            }
        }
        if let Some(hooks) = hooks.filter(|h| !h.as_os_str().is_empty()) {
            self.hooks(out, &base, &hooks);
        }
    }

    fn hooks(&self, out: &mut Repository, base: &Path, hooks: &Path) {
        let Ok(mut path) = fd::real(base, hooks) else { return };
        // husky keeps what git runs in `.husky/_`, which runs the scripts in `.husky`.
        if path.file_name() == Some("_".as_ref()) {
            path.pop();
        }
        if !self.is_inside(&path) || path == self.workspace || base.starts_with(&path) {
            return;
        }
        let spelled = base.join(hooks);
        if spelled.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            let what = "git hooks";
            out.guards.push(Guard { path: spelled, what, is_dir: false, is_symlink: true });
        }
        match path.symlink_metadata() {
            Ok(meta) => {
                let is_dir = meta.is_dir();
                // The directories on the way: renaming one would free the name.
                let way = path.ancestors().skip(1).take_while(|p| *p != base && self.is_inside(p));
                out.pins.extend(way.filter(|p| *p != self.workspace).map(Path::to_owned));
                let what = "git hooks";
                out.guards.push(Guard { path, what, is_dir, is_symlink: false });
            }
            Err(_) => out.absent.push(path),
        }
    }

    /// A file that configuration names: guarded when it lies in the workspace.
    fn file(&self, out: &mut Repository, base: &Path, path: &Path, what: &'static str) {
        let Ok(path) = fd::real(base, path) else { return };
        if !self.is_inside(&path) {
            return;
        }
        match path.symlink_metadata() {
            Ok(meta) if meta.is_file() => {
                out.guards.push(Guard { path, what, is_dir: false, is_symlink: false });
            }
            Ok(_) => {}
            Err(_) => out.absent.push(path),
        }
    }

    fn remember(&mut self, file: &Path, bytes: Vec<u8>, stat: &Stat) {
        if self.out.configs.contains_key(file) {
            return;
        }
        let all = self.remembered + bytes.len();
        if self.out.configs.len() >= MAX_REMEMBERED || all > MAX_REMEMBERED_BYTES {
            let why = "read-only: too much configuration for private copies".to_owned();
            self.out.refused.push((file.to_owned(), why));
            return;
        }
        self.remembered = all;
        let config = ConfigFile { bytes, id: fd::id(stat), mode: stat.st_mode & 0o777 };
        self.out.configs.insert(file.to_owned(), Arc::new(config));
    }

    /// A configuration file with what it includes, as if every condition held.
    fn read_layered(
        &mut self,
        out: &mut Repository,
        file: &Path,
        depth: usize,
        budget: &mut usize,
        entries: &mut Vec<Entry>,
    ) {
        let (bytes, stat) = match read_file(file) {
            Ok(read) => read,
            Err(e) if e.is_absent() => return,
            Err(e) => {
                self.out.refused.push((file.to_owned(), e.to_string()));
                return;
            }
        };
        let read = parse(&bytes);
        if depth == 0 {
            self.remember(file, bytes, &stat);
        }
        for entry in read {
            let included = (entry.is("include", "path") && entry.subsection.is_none())
                || entry.is("includeif", "path");
            let value = entry.value.as_deref().filter(|v| included && !v.is_empty());
            if let (Some(value), Some(dir)) = (value, file.parent()) {
                let path = self.expand(value);
                self.file(out, dir, &path, "included git config");
                if depth < MAX_INCLUDE_DEPTH
                    && *budget > 0
                    && let Ok(path) = fd::real(dir, &path)
                {
                    *budget -= 1;
                    self.read_layered(out, &path, depth + 1, budget, entries);
                } else {
                    let why = "not read: too many includes, or a broken path".to_owned();
                    self.out.refused.push((dir.join(path), why));
                }
            }
            entries.push(entry);
        }
    }

    /// Looks for the repository that the workspace is part of.
    fn climb(&mut self) {
        for dir in self.workspace.ancestors().skip(1).take(MAX_CLIMB) {
            if self.options.home.is_some_and(|home| home.starts_with(dir)) {
                return;
            }
            let Ok(fd) = fd::open_absolute(dir, fd::PLACE | OFlags::DIRECTORY) else { return };
            let Ok(stat) = fd::stat_name(&fd, ".git") else { continue };
            match self.enclosing(dir, fd.as_fd(), &stat) {
                Ok(origin) => {
                    let described = self.describe(origin);
                    match described {
                        Ok((repository, _)) => self.out.enclosing = Some(repository),
                        Err(refusal) => self.out.refused.push(refusal),
                    }
                }
                Err(why) => self.out.refused.push((dir.join(".git"), why)),
            }
            return;
        }
    }

    fn enclosing(&self, dir: &Path, fd: BorrowedFd<'_>, stat: &Stat) -> Result<Origin, String> {
        if stat.st_uid != self.owner {
            return Err(format!("belongs to user {}, not to the workspace's owner", stat.st_uid));
        }
        let git_dir = match fd::kind(stat) {
            FileType::Directory => dir.join(".git"),
            FileType::RegularFile => {
                let target = pointer(fd, b".git").map_err(|e| e.to_string())?;
                let target = target.strip_prefix(b"gitdir:").ok_or("no gitdir in it")?;
                let target = Path::new(OsStr::from_bytes(target.trim_ascii()));
                // Accepted on the same proof as any other git directory outside.
                let git_dir = fd::real(dir, target).map_err(|e| e.to_string())?;
                return self.origin(dir, &git_dir);
            }
            _ => return Err("neither file nor directory".to_owned()),
        };
        Ok(Origin { git_dir, worktree: Some(dir.to_owned()), kind: Kind::Plain, outside: None })
    }
}

/// What git starts from.
fn entry_path(workspace: &Path, hint: &RepositoryHint) -> PathBuf {
    let dir = join(workspace, &hint.path);
    match hint.shape {
        Shape::DotGit => dir.join(".git"),
        Shape::Bare => dir,
    }
}

/// Device and inode of a name, itself not followed.
pub fn identity(path: &Path) -> Result<(u64, u64), Errno> {
    let fd = fd::open_absolute(path, fd::PLACE)
        .or_else(|e| if e == Errno::LOOP { open_link(path) } else { Err(e) })?;
    let stat = rustix::fs::fstat(fd)?;
    Ok(fd::id(&stat))
}

/// Opens a name that is itself a link, without following it.
fn open_link(path: &Path) -> Result<OwnedFd, Errno> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let dir = fd::open_absolute(dir, fd::PLACE | OFlags::DIRECTORY)?;
    rustix::fs::openat(&dir, name, fd::PLACE, rustix::fs::Mode::empty())
}

fn join(workspace: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() { workspace.to_owned() } else { workspace.join(relative) }
}

/// `x/modules/name` of a git directory.
fn is_module(git_dir: &Path) -> bool {
    git_dir.components().rev().skip(1).any(|c| c.as_os_str() == "modules")
}

/// HEAD, and a place for objects: what git asks of a git directory.
fn has_shape(dir: BorrowedFd<'_>) -> bool {
    let has = |name: &str| fd::stat_name(dir, name).is_ok();
    has("HEAD") && has("objects") && (has("refs") || has("reftable"))
}

/// Enough of a git directory that git takes it for one or soon could. Directories of these names may
/// as well be parts of a submodule's name.
pub(super) fn has_some_shape(dir: BorrowedFd<'_>) -> bool {
    let has =
        |name: &str| fd::stat_name(dir, name).is_ok_and(|s| fd::kind(&s) != FileType::Directory);
    has("HEAD") || has("config")
}

/// A small file that holds a path; without its line end.
pub(super) fn pointer(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, ReadError> {
    let mut bytes = fd::read_regular(dir, name, MAX_POINTER)?;
    while bytes.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
}

/// Why `commondir` could not be followed.
#[derive(Debug, thiserror::Error)]
enum CommonError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Resolve(#[from] std::io::Error),
}

/// Where `commondir` leads; `None` when there is none.
fn common_dir(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<PathBuf>, CommonError> {
    match pointer(dir, b"commondir") {
        Ok(text) => Ok(Some(fd::real(path, Path::new(OsStr::from_bytes(&text)))?)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Reads and parses a configuration file; links on the way are refused.
fn read_config(path: &Path) -> Result<Vec<Entry>, ReadError> {
    read_file(path).map(|(bytes, _)| parse(&bytes))
}

fn read_file(path: &Path) -> Result<(Vec<u8>, Stat), ReadError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ReadError::Os(Errno::INVAL));
    };
    let dir = fd::open_absolute(dir, fd::PLACE | OFlags::DIRECTORY)?;
    fd::read_with_stat(dir.as_fd(), name.as_bytes(), MAX_CONFIG)
}

/// The private copy of a configuration file after a run, from its directory. Whatever ran may have put
/// anything in its place.
pub fn read_copy(copies: BorrowedFd<'_>, name: &Path) -> Result<Vec<u8>, ReadError> {
    let name = name.as_os_str().as_bytes();
    let directory = fd::open_beneath(copies, name, fd::PLACE | OFlags::DIRECTORY)?;
    fd::read_regular(directory.as_fd(), b"config", MAX_CONFIG)
}

/// The program in a command line, when it is spelled as a path.
fn program(command: &[u8]) -> Option<&[u8]> {
    let command = command.trim_ascii();
    let command = command.strip_prefix(b"!").unwrap_or(command).trim_ascii_start();
    let word = match command.first()? {
        quote @ (b'"' | b'\'') => command[1..].split(|b| b == quote).next()?,
        _ => command.split(u8::is_ascii_whitespace).next()?,
    };
    (word.contains(&b'/') && !word.contains(&b'$')).then_some(word)
}
