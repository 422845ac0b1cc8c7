//! Snapshots of workspaces that are a sandbox's own: the files as they were at one moment, from which
//! sandboxes are made.
//!
//! A snapshot is a copy, for a workspace is written to in place; where the file system shares blocks
//! between files it takes no room of its own. They lie with the daemon's state, which no sandbox sees.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_api::{CreateSandbox, State};
use ringfence_layers::copy::{self, How, Links, Owner, Sync};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;

use crate::error::{Error, Kind};
use crate::files::blocking;
use crate::journal;
use crate::machine::Event;
use crate::sandbox::Sandbox;
use crate::{fault, now_ms, random, still, workspaces};

/// Snapshots of one owner.
const MOST: usize = 256;
/// Bytes of a name.
const MOST_NAME: usize = 64;
/// Levels of a workspace, and names in it: what a sandbox made is copied while it stands still.
const MOST_DEPTH: usize = 1000;
const MOST_NAMES: usize = 1_000_000;
/// Begins the names of those that are being made or removed: no snapshot's begins so.
const UNFINISHED: &str = ".";
const RECORD: &str = "record.json";
const TREE: &str = "tree";

/// What can be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    Take {
        sandbox: String,
        name: String,
    },
    List,
    Get(String),
    Forget(String),
    /// Makes a sandbox with these files, of what that one was made of. It is not started.
    Restore {
        snapshot: String,
        name: String,
    },
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    /// Of the sandbox that it was taken of, which may be gone.
    pub sandbox: String,
    pub created_ms: u64,
    /// What that sandbox was made of.
    pub made_of: CreateSandbox,
}

/// Where they are.
#[derive(Debug)]
pub(crate) struct Shots {
    root: PathBuf,
    /// Held alone by who removes one: a copy of it that was begun is finished first.
    lock: RwLock<()>,
}

fn no_snapshot() -> Error {
    Error::new(Kind::NotFound, "no such snapshot").with("list the snapshots")
}

fn failed(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |e| Error::internal(format!("cannot {what} {}: {e}", path.display()))
}

fn check(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty()
        || name.len() > MOST_NAME
        || !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.chars().all(plain)
    {
        return Err(Error::invalid(format!(
            "snapshot: {name:?} is not of at most {MOST_NAME} letters, digits, dashes and underscores"
        )));
    }
    Ok(())
}

impl Shots {
    /// Removes what a daemon that was killed left unfinished.
    pub(crate) fn new(root: PathBuf) -> Self {
        for owner in entries(&root) {
            for entry in entries(&owner) {
                let name = entry.file_name().unwrap_or_default();
                if name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                    discard(&entry);
                }
            }
        }
        Self { root, lock: RwLock::default() }
    }

    fn of(&self, owner: journal::Owner) -> PathBuf {
        self.root.join(owner.raw().to_string())
    }

    /// Oldest first.
    pub(crate) async fn list(&self, owner: journal::Owner) -> Result<Vec<Snapshot>, Error> {
        let of = self.of(owner);
        blocking(move || Ok(list(&of))).await
    }

    pub(crate) async fn get(&self, owner: journal::Owner, name: &str) -> Result<Snapshot, Error> {
        check(name)?;
        let at = self.of(owner).join(name);
        blocking(move || read(&at)).await
    }

    /// Of a sandbox that nobody starts or stops meanwhile. Its commands stand still while it is copied.
    pub(crate) async fn take(
        &self,
        sandbox: &Arc<Sandbox>,
        workspace: &Path,
        name: &str,
    ) -> Result<Snapshot, Error> {
        check(name)?;
        let _kept = self.lock.read().await;
        if sandbox.state() == State::Destroyed {
            return Err(Error::no_sandbox(Some(&sandbox.id)));
        }
        if Path::new(&sandbox.made_of.workspace) != workspace {
            return Err(Error::new(Kind::Conflict, "the sandbox has no workspace of its own")
                .with(
                    "make one without a workspace, or with \"layer\": true and snapshots of that",
                ));
        }
        let taken = Snapshot {
            name: name.to_owned(),
            sandbox: sandbox.made_of.name.clone().unwrap_or_else(|| sandbox.id.clone()),
            created_ms: now_ms(),
            made_of: sandbox.made_of.clone(),
        };
        let still = stand_still(sandbox).await?;
        let (of, from, record) = (self.of(sandbox.owner), workspace.to_owned(), taken.clone());
        let made = blocking(move || keep(&of, &from, &record)).await;
        if still {
            go_on(sandbox).await?;
        }
        made.map(|()| taken)
    }

    /// The files of a snapshot become those of a workspace that is not there yet.
    pub(crate) async fn fill(
        &self,
        owner: journal::Owner,
        name: &str,
        workspace: &str,
    ) -> Result<(), Error> {
        check(name)?;
        let _kept = self.lock.read().await;
        let (tree, to) = (self.of(owner).join(name).join(TREE), PathBuf::from(workspace));
        blocking(move || {
            if let Some(above) = to.parent() {
                private(above)?;
            }
            copied(&tree, &to)
        })
        .await
    }

    pub(crate) async fn forget(&self, owner: journal::Owner, name: &str) -> Result<(), Error> {
        check(name)?;
        let _alone = self.lock.write().await;
        let of = self.of(owner);
        let (at, gone) = (of.join(name), of.join(format!("{UNFINISHED}{}", random()?)));
        blocking(move || {
            match std::fs::rename(&at, &gone) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Err(no_snapshot()),
                other => other.map_err(failed("remove", &at))?,
            }
            sync(&of)?;
            discard(&gone);
            Ok(())
        })
        .await
    }
}

/// Whether it was running: then it stands still now, and what is asked of it meanwhile is refused.
async fn stand_still(sandbox: &Sandbox) -> Result<bool, Error> {
    if !matches!(sandbox.state(), State::Idle | State::Running) {
        return Ok(false);
    }
    let live = sandbox.live().ok_or_else(Error::lost)?;
    sandbox.happened(Event::Frozen, "snapshot");
    if let Err(e) = still::hold(sandbox, &live).await {
        sandbox.happened(Event::Ready { commands: sandbox.commands() > 0 }, "snapshot");
        return Err(e);
    }
    Ok(true)
}

async fn go_on(sandbox: &Sandbox) -> Result<(), Error> {
    let live = sandbox.live().ok_or_else(Error::lost)?;
    still::release(sandbox, &live).await?;
    sandbox.happened(Event::Ready { commands: sandbox.commands() > 0 }, "snapshot");
    Ok(())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(directory).into_iter().flatten().flatten();
    all.map(|entry| entry.path()).collect()
}

fn list(of: &Path) -> Vec<Snapshot> {
    let mut all: Vec<Snapshot> = entries(of).iter().filter_map(|at| read(at).ok()).collect();
    all.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
    all
}

fn read(at: &Path) -> Result<Snapshot, Error> {
    let path = at.join(RECORD);
    let bytes = match std::fs::read(&path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(no_snapshot());
        }
        other => other.map_err(failed("read", &path))?,
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::internal(format!("{} is no record: {e}", path.display())))
}

fn private(path: &Path) -> Result<(), Error> {
    let mut made = std::fs::DirBuilder::new();
    made.recursive(true).mode(0o700).create(path).map_err(failed("make", path))
}

fn sync(directory: &Path) -> Result<(), Error> {
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", directory))
}

fn discard(path: &Path) {
    workspaces::discard(path);
}

/// Under its name it is there as a whole, and on the disk, or not at all.
fn keep(of: &Path, workspace: &Path, record: &Snapshot) -> Result<(), Error> {
    let taken = || {
        Error::new(Kind::Conflict, format!("there is a snapshot {} already", record.name))
            .with("choose another name, or delete that one")
    };
    private(of)?;
    let at = of.join(&record.name);
    if at.symlink_metadata().is_ok() {
        return Err(taken());
    }
    if entries(of).len() >= MOST {
        return Err(Error::new(Kind::Limit, format!("there are {MOST} snapshots already"))
            .with("delete some"));
    }
    let made = of.join(format!("{UNFINISHED}{}", random()?));
    let whole = || -> Result<(), Error> {
        private(&made)?;
        copied(workspace, &made.join(TREE))?;
        let path = made.join(RECORD);
        let text = serde_json::to_vec_pretty(record).map_err(|e| Error::internal(e.to_string()))?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("make", &path))?;
        file.write_all(&text).map_err(failed("write", &path))?;
        // All of it at once: each file for itself takes a time that depends on how many there are.
        rustix::fs::syncfs(&file).map_err(|e| failed("sync", &path)(e.into()))?;
        fault::point("snapshot.made");
        match rustix::fs::renameat_with(CWD, &made, CWD, &at, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => return Err(taken()),
            other => other.map_err(|e| failed("name", &at)(e.into()))?,
        }
        sync(of)
    };
    let done = whole();
    if done.is_err() {
        discard(&made);
    }
    done
}

fn said(e: copy::Error) -> Error {
    match e {
        copy::Error::Changed { .. } => {
            Error::new(Kind::Busy, "its files were changed while they were copied")
                .with("try again")
        }
        e => Error::internal(format!("cannot copy the workspace: {e}")),
    }
}

fn directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open", path)(e.into()))
}

/// What is below one directory becomes what is below another, which is made for it. No link is followed.
/// What means nothing without its process, or what only the machine's owner could make, is left out.
fn copied(from: &Path, to: &Path) -> Result<(), Error> {
    let os = |what, path: PathBuf| move |e: Errno| failed(what, &path)(e.into());
    std::fs::DirBuilder::new().mode(0o700).create(to).map_err(failed("make", to))?;
    let (source, target) = (directory(from)?, directory(to)?);
    let again = rustix::io::fcntl_dupfd_cloexec(&target, 0).map_err(os("open", to.to_owned()))?;
    let mut links = Links::new(again);
    let mut none = |_| Ok(());
    let mut how = How {
        attributes: &|name| name.as_encoded_bytes().starts_with(b"user."),
        owner: Owner::SameIfAllowed,
        sync: Sync::No,
        mode_mask: 0o7777,
        unlock: true,
        progress: &mut none,
    };
    // A stack of its own: a hostile tree can be deeper than a thread's.
    let mut made = vec![PathBuf::new()];
    let (mut next, mut names) = (0, 0);
    while let Some(below) = made.get(next).cloned() {
        next += 1;
        if below.components().count() > MOST_DEPTH {
            let message = format!("the workspace is deeper than {MOST_DEPTH} directories");
            return Err(Error::new(Kind::TooLarge, message));
        }
        let at =
            copy::open_beneath(source.as_fd(), &below).map_err(os("open", from.join(&below)))?;
        let into =
            copy::open_beneath(target.as_fd(), &below).map_err(os("open", to.join(&below)))?;
        let listed = copy::reopen(&at, OFlags::RDONLY | OFlags::DIRECTORY, true)
            .map_err(os("read", from.join(&below)))?;
        let listed = Dir::read_from(&listed).map_err(os("read", from.join(&below)))?;
        for entry in listed {
            let entry = entry.map_err(os("read", from.join(&below)))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let path = below.join(name);
            names += 1;
            if names > MOST_NAMES {
                let message = format!("the workspace has more than {MOST_NAMES} names");
                return Err(Error::new(Kind::TooLarge, message));
            }
            let stat = copy::place(at.as_fd(), name)
                .and_then(rustix::fs::fstat)
                .map_err(os("look at", from.join(&path)))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                rustix::fs::mkdirat(&into, name, Mode::RWXU).map_err(os("make", to.join(&path)))?;
                made.push(path);
                continue;
            }
            match copy::object(
                at.as_fd(),
                name,
                into.as_fd(),
                name,
                Some((&mut links, &path)),
                &mut how,
            ) {
                Ok(_) | Err(copy::Error::Kind { .. }) => {}
                Err(e) => return Err(said(e)),
            }
        }
    }
    // Modes and times of directories last: making what is in them would change or forbid it.
    for below in made.iter().rev() {
        let at = copy::open_beneath(source.as_fd(), below).map_err(os("open", from.join(below)))?;
        let into = copy::open_beneath(target.as_fd(), below).map_err(os("open", to.join(below)))?;
        let name = below.file_name().unwrap_or(OsStr::new("."));
        copy::metadata(at.as_fd(), into.as_fd(), name, &mut how).map_err(said)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn record(name: &str, created_ms: u64) -> Snapshot {
        let made_of = CreateSandbox::default();
        Snapshot { name: name.into(), sandbox: "box".into(), created_ms, made_of }
    }

    #[test]
    fn a_copy_has_what_the_workspace_has() {
        let root = tempfile::tempdir().unwrap();
        let from = root.path().join("from");
        fs::create_dir_all(from.join("closed/deep")).unwrap();
        fs::write(from.join("closed/deep/file"), "text").unwrap();
        fs::hard_link(from.join("closed/deep/file"), from.join("twin")).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink("/etc", from.join("leads")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        fs::set_permissions(from.join("closed/deep/file"), Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("closed"), Permissions::from_mode(0o500)).unwrap();
        let to = root.path().join("to");
        copied(&from, &to).unwrap();
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_link(to.join("leads")).unwrap(), Path::new("/etc"));
        assert!(to.join("socket").symlink_metadata().is_err());
        let file = fs::metadata(to.join("closed/deep/file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4751, 2));
        assert_eq!(fs::metadata(to.join("twin")).unwrap().ino(), file.ino());
        assert_eq!(fs::metadata(to.join("closed")).unwrap().mode() & 0o7777, 0o500);
        for at in [&from, &to] {
            fs::set_permissions(at.join("closed"), Permissions::from_mode(0o700)).unwrap();
        }
        assert!(copied(&from, &to).is_err(), "what is there is not written over");
        let deep = root.path().join("deep");
        fs::create_dir_all(deep.join("d/".repeat(MOST_DEPTH + 1))).unwrap();
        let refused = copied(&deep, &root.path().join("copy")).unwrap_err();
        assert_eq!(refused.kind, Kind::TooLarge);
    }

    #[test]
    fn one_that_was_begun_is_swept_and_one_that_was_made_is_not() {
        let root = tempfile::tempdir().unwrap();
        let of = root.path().join("0");
        let workspace = root.path().join("workspace");
        fs::create_dir(&workspace).unwrap();
        fs::write(workspace.join("x"), "1").unwrap();
        keep(&of, &workspace, &record("second", 2)).unwrap();
        keep(&of, &workspace, &record("first", 1)).unwrap();
        let again = keep(&of, &workspace, &record("first", 3)).unwrap_err();
        assert_eq!(again.kind, Kind::Conflict);
        fs::create_dir_all(of.join(".half/tree")).unwrap();
        let _shots = Shots::new(root.path().to_owned());
        assert!(!of.join(".half").exists());
        let names: Vec<String> = list(&of).into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["first", "second"]);
        for bad in ["", ".half", "a/b", "..", "a.b", "-a"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
