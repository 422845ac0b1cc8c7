//! What the host had under a name when a layer first changed it.
//!
//! Noted at the end of each run, for names that are new in the delta: if the host's object has not been
//! touched since the run began, it is what the run saw. Else nobody knows, and an apply says so instead
//! of guessing. The clock is the one that file systems take their times from, so "since" has no gap.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ringfence_sys::fd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::delta::{Trees, Walked};
use crate::object::{self, Kind, Meta};
use crate::{Error, Layer, Stamp, lossless, store, text};

/// Largest file whose content is hashed; larger ones are known by inode, size and times alone.
const MAX_HASHED: u64 = 8 << 20;
/// Largest text of which a copy is kept, so that both sides' changes can be merged.
const MAX_COPIED: u64 = 256 << 10;
/// Largest file of bases that is read, bytes.
const MAX_FILE: u64 = 1 << 30;
const FILE: &str = "base.jsonl";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Was {
    /// It was touched while the run went on.
    Unknown,
    Absent,
    Object(Known),
    /// The layer has nothing there any more; what was known below does not count.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub meta: Meta,
    /// Of the content, or of a link's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// A copy of the content is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copied: bool,
}

/// What is known of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    pub root: usize,
    #[serde(with = "lossless")]
    pub path: PathBuf,
    /// When the run that first changed it began.
    pub since: Stamp,
    pub was: Was,
    /// Inode and time of the layer's object that the host has been brought to already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<(u64, Stamp)>,
}

/// The bases of everything that a layer shows.
#[derive(Debug, Default)]
pub struct Bases {
    entries: BTreeMap<(usize, PathBuf), (Base, String)>,
}

impl Bases {
    /// Reads those of every visible delta. Of several about one name the topmost counts: a later one
    /// is only written when the first became obsolete.
    pub fn load(layer: &Layer) -> Result<Self, Error> {
        let mut all = Self::default();
        let visible: Vec<&str> = layer.record.visible().collect();
        for id in visible.into_iter().rev() {
            for base in read(&layer.delta_path(id))? {
                let key = (base.root, base.path.clone());
                if base.was == Was::Gone {
                    all.entries.remove(&key);
                } else {
                    all.entries.insert(key, (base, id.to_owned()));
                }
            }
        }
        Ok(all)
    }

    /// Of a name, or of the directory above it that the host did not have.
    pub fn of(&self, root: usize, path: &Path) -> Option<&Base> {
        if let Some((base, _)) = self.entries.get(&(root, path.to_owned())) {
            return Some(base);
        }
        path.ancestors().skip(1).find_map(|above| {
            let (base, _) = self.entries.get(&(root, above.to_owned()))?;
            (base.was == Was::Absent).then_some(base)
        })
    }

    /// The copy of a text as it was.
    pub fn copy(&self, layer: &Layer, base: &Base) -> Option<Vec<u8>> {
        let Was::Object(Known { hash: Some(hash), copied: true, .. }) = &base.was else {
            return None;
        };
        let (_, id) = self.entries.get(&(base.root, base.path.clone()))?;
        let dir = fd::open_absolute(&layer.delta_path(id).join("base"), fd::DIRECTORY).ok()?;
        let bytes = fd::read_regular(dir.as_fd(), hash.as_bytes(), MAX_COPIED).ok()?;
        (object::hash_of(&bytes) == *hash).then_some(bytes)
    }
}

/// Notes what is not known yet of the names in the open delta, changed since `since`.
pub fn note(layer: &Layer, since: Stamp) -> Result<Vec<Walked>, Error> {
    let bases = Bases::load(layer)?;
    let mut walks = Vec::new();
    let mut new = Vec::new();
    let Some(open) = &layer.record.open else { return Ok(walks) };
    let dir = layer.delta_path(open);
    let at = fd::open_absolute(&dir, fd::DIRECTORY).map_err(Error::os("open", &dir))?;
    for root in 0..layer.record.roots.len() {
        if !has_tree(at.as_fd(), root) {
            walks.push(Walked::default());
            continue;
        }
        let trees = Trees::open(layer, root)?;
        let walked = trees.walk()?;
        for held in &walked.held {
            // A name that came with the sealed ones was noted when they were the open one.
            if held.in_added || bases.of(root, &held.path).is_some() {
                continue;
            }
            let was = match &held.old {
                None => Was::Absent,
                Some(meta) if !meta.ctime.surely_before(since) => Was::Unknown,
                Some(meta) => known(&trees, &held.path, meta, &at, &dir)?,
            };
            new.push(Base { root, path: held.path.clone(), since, was, settled: None });
        }
        walks.push(walked);
    }
    if !new.is_empty() {
        // Not waited for: what a crash takes of it is unknown then, and shows as a conflict.
        edit(&at, &dir, false, |all| {
            all.extend(new.into_iter().map(|b| ((b.root, b.path.clone()), b)));
        })?;
    }
    Ok(walks)
}

fn has_tree(delta: BorrowedFd<'_>, root: usize) -> bool {
    fd::stat_name(delta, format!("{root}/tree")).is_ok()
}

fn known(
    trees: &Trees,
    path: &Path,
    meta: &Meta,
    delta: &OwnedFd,
    shown: &Path,
) -> Result<Was, Error> {
    let mut known = Known { meta: *meta, hash: None, copied: false };
    if path.as_os_str().is_empty() {
        return Ok(Was::Object(known));
    }
    // Else the host is being changed at this moment.
    let Ok((parent, name)) = trees.host_parent(path) else { return Ok(Was::Unknown) };
    match meta.kind {
        Kind::File if meta.size <= MAX_COPIED => {
            match object::content(parent.as_fd(), name, MAX_COPIED, false) {
                Ok(Some(bytes)) => {
                    let hash = object::hash_of(&bytes);
                    if text::is_text(&bytes) {
                        keep(delta, shown, &hash, &bytes)?;
                        known.copied = true;
                    }
                    known.hash = Some(hash);
                }
                Ok(None) => return Ok(Was::Unknown),
                // Unreadable to us: inode and times must do.
                Err(_) => {}
            }
        }
        Kind::File => {
            known.hash = object::hash(parent.as_fd(), name, MAX_HASHED, false).unwrap_or_default();
        }
        Kind::Symlink => {
            if let Ok(target) = object::link(parent.as_fd(), name) {
                known.hash = Some(object::hash_of(target.as_os_str().as_encoded_bytes()));
            }
        }
        _ => {}
    }
    match object::look(parent.as_fd(), name) {
        Ok(Some(now)) if now.untouched(meta) => Ok(Was::Object(known)),
        _ => Ok(Was::Unknown),
    }
}

/// What the host has at a path that was just brought to it.
pub fn now(trees: &Trees, path: &Path, delta: &OwnedFd, shown: &Path) -> Result<Was, Error> {
    if path.as_os_str().is_empty() {
        let stat = rustix::fs::fstat(&trees.host).map_err(Error::os("look at", &trees.root))?;
        return known(trees, path, &Meta::of(&stat), delta, shown);
    }
    let (parent, name) = trees.host_parent(path)?;
    match object::look(parent.as_fd(), name).map_err(Error::os("look at", trees.root.join(path)))? {
        Some(meta) => known(trees, path, &meta, delta, shown),
        None => Ok(Was::Absent),
    }
}

/// Keeps a copy of a text as it was.
fn keep(delta: &OwnedFd, shown: &Path, hash: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = shown.join("base");
    match rustix::fs::mkdirat(delta, "base", Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(Error::os("make", path)(errno)),
    }
    let dir = rustix::fs::openat(delta, "base", fd::DIRECTORY, Mode::empty())
        .map_err(Error::os("open", &path))?;
    // Written under its name at once: a copy that a crash left short does not have its hash, and is not
    // used then.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&dir, hash, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => File::from(fd).write_all(bytes).map_err(Error::io("write", path.join(hash))),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::os("write", path.join(hash))(errno)),
    }
}

fn read(delta: &Path) -> Result<Vec<Base>, Error> {
    let path = delta.join(FILE);
    let dir = match fd::open_absolute(delta, fd::DIRECTORY) {
        Ok(dir) => dir,
        Err(errno) => return Err(Error::os("open", delta)(errno)),
    };
    let bytes = match fd::read_regular(dir.as_fd(), FILE.as_bytes(), MAX_FILE) {
        Ok(bytes) => bytes,
        Err(e) if e.is_absent() => return Ok(Vec::new()),
        Err(e) => return Err(Error::Corrupt { path, problem: e.to_string() }),
    };
    bytes
        .split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(n, line)| {
            serde_json::from_slice(line).map_err(|e| Error::Corrupt {
                path: path.clone(),
                problem: format!("line {}: {e}", n + 1),
            })
        })
        .collect()
}

/// Replaces the bases of a delta as a whole.
pub fn edit(
    delta: &OwnedFd,
    shown: &Path,
    synced: bool,
    change: impl FnOnce(&mut BTreeMap<(usize, PathBuf), Base>),
) -> Result<(), Error> {
    let mut all: BTreeMap<(usize, PathBuf), Base> =
        read(shown)?.into_iter().map(|b| ((b.root, b.path.clone()), b)).collect();
    change(&mut all);
    let mut out = Vec::new();
    for base in all.values() {
        serde_json::to_writer(&mut out, base)
            .map_err(|e| Error::Corrupt { path: shown.join(FILE), problem: e.to_string() })?;
        out.push(b'\n');
    }
    store::replace(delta.as_fd(), FILE, shown, &out, synced)
}
