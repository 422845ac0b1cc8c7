//! What an apply is about to do, on disk before it does it.
//!
//! An apply goes through these states; each is on disk before its first step:
//!
//! ```text
//! prepare   new objects are made under temporary names beside their places; nothing is seen yet
//! commit    each takes its place by one rename; what was there keeps the temporary name
//! clean     all are in place; what was there before is removed, the layer forgets the changes
//! undone    all is as before; what was made is removed
//! ```
//!
//! Where a step stands is read off the inode numbers under the two names, so every step can be done
//! again and undone after a kill at any moment.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use ringfence_sys::fd;
use rustix::fs::Mode;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::object::Meta;
use crate::{Error, Layer, Stamp, lossless, store};

/// Largest journal that is read, bytes.
const MAX_JOURNAL: u64 = 1 << 30;
const PLAN: &str = "plan.json";
const DIRECTORY: &str = "journal";
/// One that has served, on its way out.
const ENDED: &str = ".journal-ended";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Prepare,
    Commit,
    Clean,
    Undone,
}

/// A path of one root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub root: usize,
    #[serde(with = "lossless")]
    pub path: PathBuf,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Empty: everything.
    pub paths: Vec<Place>,
    /// Only these hunks of these files.
    pub hunks: Vec<(Place, Vec<usize>)>,
    /// Where both changed a name, the layer's object is taken.
    pub theirs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// The temporary object takes the place.
    Put,
    /// What is there goes away.
    Remove,
    /// Mode, owner, attributes and times of what is there change.
    Metadata,
}

/// One step of an apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    pub place: Place,
    pub act: Act,
    /// Beside the place.
    pub temporary: String,
    /// What is there before.
    pub old: Option<Meta>,
    /// Device and inode of what was made.
    pub new: Option<(u64, u64)>,
    /// Of [`Act::Metadata`]: what is to be, and what was.
    pub change: Option<(Look, Look)>,
}

/// What can be changed of an object without replacing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// `None`: as it is.
    pub mtime: Option<Stamp>,
    /// `user.` attributes; `None`: as they are.
    pub attributes: Option<Vec<(Attribute, Vec<u8>)>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute(#[serde(with = "lossless")] PathBuf);

impl Attribute {
    pub fn new(name: OsString) -> Self {
        Self(name.into())
    }

    pub fn name(&self) -> &std::ffi::OsStr {
        self.0.as_os_str()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub version: u32,
    pub state: State,
    pub started: Stamp,
    pub request: Request,
    pub ops: Vec<Op>,
    /// Every change that the steps bring about, for the layer to forget: where, and whether the layer
    /// still holds something for the place (some hunks were left).
    pub brought: Vec<(Place, bool)>,
    /// Directories of the host whose times the steps change.
    #[serde(default)]
    pub times: Vec<Time>,
    /// Directories of the host that their mode closes to their owner, with that mode: open while the steps
    /// are done.
    #[serde(default)]
    pub opened: Vec<(Place, u32)>,
}

/// The time of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    pub place: Place,
    pub was: Stamp,
    /// What it has in the layer; `None`: what comes of the steps.
    pub be: Option<Stamp>,
}

/// The journal's directory.
#[derive(Debug)]
pub struct Journal {
    dir: OwnedFd,
    path: PathBuf,
}

impl Journal {
    /// Begins one; the layer has none yet.
    pub fn begin(layer: &Layer, plan: &Plan) -> Result<Self, Error> {
        let path = layer.path().join(DIRECTORY);
        store::remove(layer.dir.as_fd(), ENDED.as_ref(), &path)?;
        rustix::fs::mkdirat(&layer.dir, DIRECTORY, Mode::RWXU).map_err(Error::os("make", &path))?;
        let journal = Self::at(layer)?;
        journal.write(plan)?;
        rustix::fs::fsync(&layer.dir).map_err(Error::os("write", &path))?;
        Ok(journal)
    }

    fn at(layer: &Layer) -> Result<Self, Error> {
        let path = layer.path().join(DIRECTORY);
        let dir = rustix::fs::openat(&layer.dir, DIRECTORY, fd::DIRECTORY, Mode::empty())
            .map_err(Error::os("open", &path))?;
        Ok(Self { dir, path })
    }

    /// The journal of a layer that has one. Without a plan in it nothing was begun.
    pub fn open(layer: &Layer) -> Result<Option<(Self, Option<Plan>)>, Error> {
        if !layer.unfinished() {
            return Ok(None);
        }
        let journal = Self::at(layer)?;
        let path = journal.path.join(PLAN);
        let bytes = match fd::read_regular(journal.dir.as_fd(), PLAN.as_bytes(), MAX_JOURNAL) {
            Ok(bytes) => bytes,
            Err(e) if e.is_absent() => return Ok(Some((journal, None))),
            Err(e) => return Err(Error::Corrupt { path, problem: e.to_string() }),
        };
        let plan: Plan = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Corrupt { path: path.clone(), problem: e.to_string() })?;
        if plan.version != crate::VERSION {
            let found = plan.version.into();
            return Err(Error::Version { path, found, known: crate::VERSION });
        }
        Ok(Some((journal, Some(plan))))
    }

    pub fn write(&self, plan: &Plan) -> Result<(), Error> {
        let text = serde_json::to_vec(plan)
            .map_err(|e| Error::Corrupt { path: self.path.join(PLAN), problem: e.to_string() })?;
        store::replace(self.dir.as_fd(), PLAN, &self.path, &text, true)
    }

    /// Nothing is left to do. By one rename: a journal without a plan is one that was not begun.
    pub fn end(self, layer: &Layer) -> Result<(), Error> {
        let fail = |what| Error::os(what, self.path.clone());
        store::remove(layer.dir.as_fd(), ENDED.as_ref(), &self.path)?;
        rustix::fs::renameat(&layer.dir, DIRECTORY, &layer.dir, ENDED).map_err(fail("end"))?;
        rustix::fs::fsync(&layer.dir).map_err(fail("end"))?;
        crate::crash::point();
        store::remove(layer.dir.as_fd(), ENDED.as_ref(), &self.path)
    }
}

impl Place {
    pub fn new(root: usize, path: impl Into<PathBuf>) -> Self {
        Self { root, path: path.into() }
    }

    pub fn shown(&self, roots: &[PathBuf]) -> PathBuf {
        roots.get(self.root).map_or_else(|| self.path.clone(), |r| r.join(&self.path))
    }
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    NotDone,
    Done,
    /// Somebody else changed the place.
    Foreign,
}

impl Op {
    /// Reads off the names where the step stands.
    pub fn stand(&self, dir: &OwnedFd, name: &std::ffi::OsStr) -> Result<Stand, Errno> {
        let at = crate::object::look(dir.as_fd(), name)?.map(|m| (m.dev, m.ino));
        let aside = crate::object::look(dir.as_fd(), self.temporary.as_ref())?;
        let aside = aside.map(|m| (m.dev, m.ino));
        let old = self.old.map(|m| (m.dev, m.ino));
        Ok(match self.act {
            Act::Put if at.is_some() && at == self.new => Stand::Done,
            Act::Put if at == old && aside == self.new && aside.is_some() => Stand::NotDone,
            Act::Remove if at.is_none() && aside == old => Stand::Done,
            Act::Remove | Act::Metadata if at == old => Stand::NotDone,
            _ => Stand::Foreign,
        })
    }
}
