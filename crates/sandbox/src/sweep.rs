//! What a run may leave behind, and taking it away: guarded names that it created, and the private
//! temporary directory of the rung without namespaces.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use crate::copies::{After, Copies};
use crate::discover::{self, Absent};
use crate::plan::{Access, LandlockRule, Plan};
use crate::prepare::Listing;

/// Remembers which guarded names were absent at the start.
#[derive(Debug, Default)]
pub struct Watch {
    roots: Vec<(PathBuf, Absent)>,
    /// Guarded paths whose first part in the workspace did not exist.
    free: Vec<PathBuf>,
    workspace: PathBuf,
    git: Option<discover::GitGuards>,
    /// How many directories the workspace had, as far as they were counted.
    directories: u64,
    copies: Copies,
    in_layer: bool,
}

/// A run shorter than this gets the quick look for repositories that it made when the workspace is
/// large: the full one would take longer than the run.
const SHORT_RUN: std::time::Duration = std::time::Duration::from_millis(100);
/// Directories below which the full look costs next to nothing.
const SMALL_TREE: u64 = 256;

impl Watch {
    pub fn new(plan: &Plan) -> Self {
        // The real tree cannot be written; what a layer holds is looked at before it is applied.
        if plan.layer.is_some() {
            return Self { copies: Copies::new(plan), in_layer: true, ..Self::default() };
        }
        let mut roots: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
        let mut free = Vec::new();
        let mut read = None;
        let listing = plan.listing.as_ref().or_else(|| {
            let fd = open_directory(&plan.workspace).ok()?;
            read = Listing::read(fd.as_fd());
            read.as_ref()
        });
        for path in &plan.absent {
            // Most guarded names lie directly in the workspace and nothing is there: one listing
            // before and one after answers for all of them.
            if listing.is_some_and(|l| l.lacks(&plan.workspace, path)) {
                free.push(path.clone());
                continue;
            }
            let root = if path.starts_with(&plan.workspace) {
                plan.workspace.clone()
            } else {
                path.parent().map(PathBuf::from).unwrap_or_default()
            };
            let Ok(relative) = path.strip_prefix(&root) else { continue };
            match roots.iter_mut().find(|(r, _)| *r == root) {
                Some((_, names)) => names.push(relative.to_owned()),
                None => roots.push((root, vec![relative.to_owned()])),
            }
        }
        let roots = roots
            .into_iter()
            .filter_map(|(root, names)| {
                let fd = open_directory(&root).ok()?;
                let absent = discover::absent_names(fd.as_fd(), &names).ok()?;
                Some((root, absent))
            })
            .collect();
        let git = plan.guards_git.then(|| plan.git.clone());
        Self {
            roots,
            free,
            workspace: plan.workspace.clone(),
            git,
            directories: plan.directories,
            copies: Copies::new(plan),
            in_layer: false,
        }
    }

    /// Whether the command had private copies of files.
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Looks at repositories that the run made: hooks are moved aside, configuration that makes
    /// git run something is reported.
    fn new_repositories(
        &self,
        root: BorrowedFd<'_>,
        listing: Option<&Listing>,
        took: std::time::Duration,
        lines: &mut Vec<String>,
    ) {
        let Some(before) = &self.git else { return };
        let hints = if took < SHORT_RUN && self.directories > SMALL_TREE {
            crate::prepare::shallow_repositories(root, listing)
        } else {
            match discover::walk(root, &Repositories, &discover::WalkOptions::default()) {
                Ok(walk) => walk.repositories,
                Err(_) => return,
            }
        };
        for hint in before.new_since(&self.workspace, &hints) {
            let Ok(new) = discover::inspect_new_repository(root, &hint.path) else { continue };
            let at = |p: &std::path::Path| self.workspace.join(p).display().to_string();
            for (old, held) in new.held {
                lines.push(format!(
                    "{} is a git hook that the run created; it is now {}",
                    at(&old),
                    at(&held)
                ));
            }
            for (file, key) in new.keys {
                lines.push(format!(
                    "{} was created by the run and sets {key}: read it before using git there",
                    at(&file)
                ));
            }
            for (path, why) in new.suspicious {
                lines.push(format!("{} was created by the run: {why}", at(&path)));
            }
        }
    }

    /// Guarded names in places where nothing was.
    fn free_names(&self, root: BorrowedFd<'_>, listing: Option<&Listing>, lines: &mut Vec<String>) {
        for path in &self.free {
            let lacks = listing.is_some_and(|l| l.lacks(&self.workspace, path));
            if lacks || std::fs::symlink_metadata(path).is_err() {
                continue;
            }
            let Ok(relative) = path.strip_prefix(&self.workspace) else { continue };
            lines.push(held_line(path, relative, root, &self.workspace));
        }
    }

    /// Moves aside what appeared. Answers one line for each, and for what was not kept.
    pub fn finish(&mut self, took: std::time::Duration, after: &After) -> Vec<String> {
        let mut lines = Vec::new();
        self.copies.lines(after, &mut lines);
        for (root, absent) in &self.roots {
            for a in discover::sweep(absent) {
                lines.push(held_line(&root.join(&a.path), &a.path, absent.root(), root));
            }
        }
        if !self.in_layer
            && let Ok(root) = open_directory(&self.workspace)
        {
            let root = root.as_fd();
            let listing = Listing::read(root);
            self.free_names(root, listing.as_ref(), &mut lines);
            self.new_repositories(root, listing.as_ref(), took, &mut lines);
        }
        // A submodule is found by its working tree and by its git directory.
        let mut told = std::collections::HashSet::new();
        lines.retain(|line| told.insert(line.clone()));
        lines
    }
}

/// Moves a guarded name aside and says so.
fn held_line(
    name: &std::path::Path,
    relative: &std::path::Path,
    root: BorrowedFd<'_>,
    root_path: &std::path::Path,
) -> String {
    match discover::hold(root, relative) {
        Ok(new) => format!(
            "{} is a guarded name that the run created; it is now {}",
            name.display(),
            root_path.join(new).display()
        ),
        Err(e) => format!(
            "{} is a guarded name that the run created and could not be moved aside: {e}",
            name.display()
        ),
    }
}

/// Finds repositories and nothing else.
struct Repositories;

impl discover::Matcher for Repositories {
    fn verdict(&self, _path: &[u8], _is_dir: bool) -> discover::Verdict {
        discover::Verdict::Pass
    }

    fn fingerprint(&self) -> [u8; 16] {
        *b"repositories----"
    }
}

fn open_directory(path: &std::path::Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A private temporary directory on the rung without namespaces; removed when dropped. Locked as long
/// as its run lives, so that the next run can tell what a killed one left and take it away.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: std::os::fd::OwnedFd,
}

/// How old a directory without a lock must be: its run may be about to lock it.
const ABANDONED_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

fn lock(path: &std::path::Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::empty())?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

/// Removes the directories of this user's runs that were killed.
fn remove_abandoned(base: &std::path::Path) {
    use std::os::unix::fs::MetadataExt;
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().and_then(|n| n.strip_prefix("ringfence-")).is_some_and(|n| {
            n.split_once('-').is_some_and(|(pid, nanos)| {
                pid.bytes().all(|b| b.is_ascii_digit())
                    && nanos.len() == 8
                    && nanos.bytes().all(|b| b.is_ascii_hexdigit())
            })
        });
        let Ok(meta) = entry.metadata() else { continue };
        let old = meta.modified().is_ok_and(|t| t.elapsed().is_ok_and(|age| age > ABANDONED_AFTER));
        let private = meta.mode().trailing_zeros() >= 6;
        if ours
            && old
            && meta.is_dir()
            && meta.uid() == own
            && private
            && let Ok(_lock) = lock(&entry.path())
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Scratch {
    /// Makes it and points the plan's environment and rules at it.
    pub fn new(plan: &mut Plan) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let mut tries = 0u32;
        let base = std::env::temp_dir();
        remove_abandoned(&base);
        let path = loop {
            let nanos = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.subsec_nanos());
            let path = base.join(format!("ringfence-{}-{nanos:08x}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break path,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && tries < 16 => tries += 1,
                Err(e) => return Err(e),
            }
        };
        let lock = lock(&path)?;
        for (name, value) in &mut plan.environment {
            if name == "TMPDIR" {
                *value = path.clone().into();
            }
        }
        plan.landlock.push(LandlockRule {
            path: path.clone(),
            access: Access::Write,
            optional: false,
        });
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
