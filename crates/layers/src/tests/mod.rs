//! The crate against real directories, with deltas made as overlayfs makes them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::apply::{self, Context, Report};
use crate::journal::{Place, Request};
use crate::review::{Review, review};
use crate::{Outcome, Root, Session, Stamp, Store};

mod cases;
mod crash;
mod random;
mod records;

/// A store and a host directory.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Drop for Fixture {
    /// What its owner may not write cannot be removed.
    fn drop(&mut self) {
        let closed = self.dir.path().join("host/ro");
        let _ = fs::set_permissions(closed, fs::Permissions::from_mode(0o755));
    }
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("host")).unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        Self { dir, store }
    }

    pub fn host(&self) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join("host")
    }

    /// Writes a file of the host.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.host().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn begin(&self) -> Session {
        settle();
        self.store.begin("l", &[Root::new(self.host())], Stamp::now()).unwrap()
    }

    /// A run that changes what `change` does.
    pub fn run(&self, change: impl FnOnce(&Overlay)) {
        let session = self.begin();
        change(&Overlay::of(&session));
        session.finish(&Outcome::default()).unwrap();
        settle();
    }

    pub fn review(&self) -> Review {
        review(&self.store.layer("l").unwrap(), None, &[]).unwrap()
    }

    /// Letters and paths of what differs.
    pub fn diff(&self) -> String {
        let lines: Vec<String> = self
            .review()
            .items
            .iter()
            .map(|i| format!("{} {}", i.change.kind.letter(), i.change.path.display()))
            .collect();
        lines.join("\n")
    }

    pub fn apply(&self, paths: &[&str]) -> Report {
        let paths = paths.iter().map(|p| Place::new(0, *p)).collect();
        let request = Request { paths, ..Request::default() };
        apply(&self.store, &request).unwrap()
    }

    pub fn apply_all(&self) {
        let report = self.apply(&[]);
        assert!(report.conflicts.is_empty() && report.refused.is_empty(), "{report:#?}");
        assert_eq!(self.diff(), "");
        self.no_temporaries();
    }

    pub fn no_temporaries(&self) {
        let left: Vec<_> = tree(&self.host())
            .into_keys()
            .filter(|p| p.to_string_lossy().contains("ringfence-apply"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!self.store.layer("l").unwrap().unfinished());
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.host().join(path)).unwrap()
    }
}

pub fn apply(store: &Store, request: &Request) -> Result<Report, crate::Error> {
    apply::apply(store, "l", request, &mut unjudged())
}

pub fn unjudged() -> Context<'static> {
    Context { judge: None, search: &[], tell: Box::leak(Box::new(|_: &Report| {})) }
}

/// Waits until the clock of file times has gone on.
pub fn settle() {
    let now = Stamp::now();
    while Stamp::now() == now {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// What overlayfs does to its upper directory.
pub struct Overlay {
    pub upper: PathBuf,
    /// Top first; the last is the host.
    pub lower: Vec<PathBuf>,
}

impl Overlay {
    pub fn of(session: &Session) -> Self {
        let mount = &session.mounts()[0];
        Self { upper: mount.upper.clone(), lower: mount.lower.clone() }
    }

    /// Where a path is seen below the upper directory.
    pub fn below(&self, path: &str) -> Option<PathBuf> {
        for (n, lower) in self.lower.iter().enumerate() {
            let at = lower.join(path);
            // An upper opaque directory hides all below it.
            let chain = [self.upper.clone()].into_iter().chain(self.lower[..n].iter().cloned());
            let hidden = chain.into_iter().any(|top| {
                Path::new(path)
                    .ancestors()
                    .skip(1)
                    .any(|a| opaque(&top.join(a)) || blocks(&top.join(a)))
            });
            if hidden {
                break;
            }
            match at.symlink_metadata() {
                Ok(meta) if whiteout(&meta) => return None,
                Ok(_) => return Some(at),
                Err(_) => {}
            }
        }
        None
    }

    pub fn parents(&self, path: &str) {
        let all: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        for dir in all.into_iter().rev() {
            let at = self.upper.join(dir);
            if at.symlink_metadata().is_err() {
                let below = self.below(dir.to_str().unwrap()).unwrap();
                fs::create_dir(&at).unwrap();
                fs::set_permissions(&at, below.metadata().unwrap().permissions()).unwrap();
            }
        }
    }

    pub fn copy_up(&self, path: &str) {
        self.parents(path);
        let at = self.upper.join(path);
        if at.symlink_metadata().is_ok() {
            return;
        }
        let below = self.below(path).unwrap();
        if below.symlink_metadata().unwrap().is_dir() {
            fs::create_dir(&at).unwrap();
            fs::set_permissions(&at, below.metadata().unwrap().permissions()).unwrap();
        } else {
            let mut cp = std::process::Command::new("cp");
            cp.args(["-a", "-T"]).arg(&below).arg(&at);
            assert!(cp.status().unwrap().success());
        }
    }

    pub fn write(&self, path: &str, content: &str) {
        self.parents(path);
        let at = self.upper.join(path);
        if at.symlink_metadata().is_ok_and(|m| whiteout(&m)) {
            fs::remove_file(&at).unwrap();
        } else if at.symlink_metadata().is_err() && self.below(path).is_some() {
            self.copy_up(path);
        }
        fs::write(at, content).unwrap();
    }

    pub fn mkdir(&self, path: &str) {
        self.parents(path);
        let at = self.upper.join(path);
        let white = at.symlink_metadata().is_ok_and(|m| whiteout(&m));
        if white {
            fs::remove_file(&at).unwrap();
        }
        fs::create_dir(&at).unwrap();
        if white {
            rustix::fs::setxattr(&at, "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        }
    }

    pub fn remove(&self, path: &str) {
        self.parents(path);
        let at = self.upper.join(path);
        match at.symlink_metadata() {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&at).unwrap(),
            Ok(_) => fs::remove_file(&at).unwrap(),
            Err(_) => {}
        }
        if self.below(path).is_some() {
            rustix::fs::mknodat(CWD, &at, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }
    }

    pub fn chmod(&self, path: &str, mode: u32) {
        self.copy_up(path);
        fs::set_permissions(self.upper.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn link(&self, old: &str, new: &str) {
        self.copy_up(old);
        self.parents(new);
        let at = self.upper.join(new);
        if at.symlink_metadata().is_ok() {
            fs::remove_file(&at).unwrap();
        }
        fs::hard_link(self.upper.join(old), at).unwrap();
    }

    pub fn symlink(&self, target: &str, path: &str) {
        self.parents(path);
        let at = self.upper.join(path);
        if at.symlink_metadata().is_ok() {
            fs::remove_file(&at).unwrap();
        }
        symlink(target, at).unwrap();
    }
}

fn whiteout(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn opaque(path: &Path) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::getxattr(path, "user.overlay.opaque", &mut value[..]).is_ok()
}

/// Something that is no directory stands where one would have to be.
fn blocks(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| !m.is_dir())
}

/// Everything in a tree: kind, mode, content; files with several names by which share one.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let mut entries: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = path.symlink_metadata().unwrap();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            let mode = meta.permissions().mode() & 0o7777;
            let mut text = if meta.is_dir() {
                pending.push(path.clone());
                format!("dir {mode:o}")
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_file() {
                format!("{mode:o} {}", String::from_utf8_lossy(&fs::read(&path).unwrap()))
            } else {
                format!("{:?} {mode:o}", meta.file_type())
            };
            if meta.is_file() && meta.nlink() > 1 {
                inodes
                    .entry(meta.ino())
                    .and_modify(|first| *first = (*first).clone().min(relative.clone()))
                    .or_insert(relative.clone());
                text = format!("{text} #{}", meta.ino());
            }
            all.insert(relative, text);
        }
    }
    // Inode numbers differ between trees that are the same: the first name stands for them.
    for text in all.values_mut() {
        for (ino, first) in &inodes {
            let mark = format!(" #{ino}");
            if let Some(cut) = text.strip_suffix(&mark) {
                *text = format!("{cut} = {}", first.display());
                break;
            }
        }
    }
    all
}

/// Sets the time of a file or directory.
pub fn touch(path: &Path, seconds: i64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.unsigned_abs());
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// Sets an attribute of a file.
pub fn attribute(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, OsStr::new(name), value.as_bytes(), XattrFlags::empty()).unwrap();
}
