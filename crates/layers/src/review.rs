//! What an apply would do with each change: taken as it is, merged with what the host did meanwhile,
//! or not, and why.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ringfence_sys::fd;

use crate::base::{Base, Bases, Known, Was};
use crate::delta::{Change, Trees, Walked};
use crate::executable;
use crate::object::{self, Kind, Meta};
use crate::{Error, Layer, Stamp, text};

/// Says which places a policy lets a command write.
pub trait Judge {
    /// Why the absolute path may not be changed; `None` if it may.
    fn refusal(&self, path: &Path) -> Option<String>;
}

/// What becomes of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The host has what the layer started from: the layer's object takes its place.
    Take,
    /// Both changed it, in different places.
    Merge(Vec<u8>, u32),
    /// The host changed the content, the layer the mode.
    Mode(u32),
    /// Both changed it and it cannot be told what is meant.
    Conflict(String),
    /// It may not be applied.
    Refused(String),
}

/// One change with everything to be known before it is applied.
#[derive(Clone, Debug)]
pub struct Item {
    pub root: usize,
    pub change: Change,
    pub verdict: Verdict,
    /// Why the host may run it later.
    pub executable: Option<&'static str>,
    /// What is brought to the host otherwise than the layer has it.
    pub note: Option<String>,
}

/// A layer, compared with the host and judged.
#[derive(Debug)]
pub struct Review {
    pub roots: Vec<PathBuf>,
    /// Sorted by root and path.
    pub items: Vec<Item>,
    pub trees: Vec<Trees>,
    pub walks: Vec<Walked>,
}

/// Bits of a mode that are never brought to the host.
pub const STRIPPED: u32 = 0o6000;
/// Names beginning so mean the absence of another name, in image layers.
const WHITEOUT: &str = ".wh.";

/// Compares a layer with the host. `judge` says what may be applied at all; `path` are directories in
/// which the caller's shell finds programs.
pub fn review(layer: &Layer, judge: Option<&dyn Judge>, path: &[PathBuf]) -> Result<Review, Error> {
    let bases = Bases::load(layer)?;
    let mut review =
        Review { roots: Vec::new(), items: Vec::new(), trees: Vec::new(), walks: Vec::new() };
    for (index, root) in layer.record.roots.iter().enumerate() {
        let trees = Trees::open(layer, index)?;
        let walked = trees.walk()?;
        let mut blocked: Option<(PathBuf, bool)> = None;
        for change in walked.changes() {
            let base = bases.of(index, &change.path);
            let settled = base.and_then(|b| b.settled);
            if change.new.is_some_and(|(m, _)| Some((m.ino, m.ctime)) == settled) {
                continue;
            }
            // What lies in a directory that is not made cannot be made.
            let above = blocked.as_ref().filter(|(dir, _)| change.path.starts_with(dir));
            let verdict = match above {
                Some((_, true)) => Some(Verdict::Conflict("its directory is in conflict".into())),
                Some((_, false)) => Some(Verdict::Refused("its directory is refused".into())),
                None => {
                    let compared = compare(layer, &trees, &bases, base, &change)?;
                    compared.map(|verdict| {
                        refusal(&trees, &change, judge).map_or(verdict, Verdict::Refused)
                    })
                }
            };
            let Some(verdict) = verdict else { continue };
            let makes_directory = change.new.is_some_and(|(m, _)| m.is_dir())
                && change.old.is_none_or(|m| !m.is_dir());
            if above.is_none() && makes_directory {
                match verdict {
                    Verdict::Conflict(_) => blocked = Some((change.path.clone(), true)),
                    Verdict::Refused(_) => blocked = Some((change.path.clone(), false)),
                    _ => {}
                }
            }
            let executable = mark(&trees, &change, path);
            let note = change
                .new
                .filter(|(m, _)| m.mode & STRIPPED != 0 && m.kind == Kind::File)
                .map(|_| "set-user-id and set-group-id bits are dropped".to_owned());
            review.items.push(Item { root: index, change, verdict, executable, note });
        }
        review.roots.push(root.path.clone());
        review.trees.push(trees);
        review.walks.push(walked);
    }
    Ok(review)
}

fn mark(trees: &Trees, change: &Change, path: &[PathBuf]) -> Option<&'static str> {
    let (meta, _) = change.new.as_ref()?;
    if meta.is_dir() {
        return None;
    }
    executable::reason(&trees.root.join(&change.path), &change.path, meta, path)
}

/// Why the object cannot or may not be brought to the host.
fn refusal(trees: &Trees, change: &Change, judge: Option<&dyn Judge>) -> Option<String> {
    let name = change.path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(WHITEOUT) {
        return Some("the name stands for the absence of another in image layers".into());
    }
    if name.starts_with(crate::apply::TEMPORARY) {
        return Some("the name is one that an apply gives to its own files".into());
    }
    match change.new.map(|(m, _)| m.kind) {
        Some(Kind::Device) => return Some("a device node".into()),
        Some(Kind::Socket) => return Some("a socket".into()),
        _ => {}
    }
    let judge = judge?;
    let absolute = trees.root.join(&change.path);
    if let Some(why) = judge.refusal(&absolute) {
        return Some(why);
    }
    // With a directory goes all that it holds.
    let vanishes =
        change.old.is_some_and(|m| m.is_dir()) && change.new.is_none_or(|(m, _)| !m.is_dir());
    let mut inner = None;
    if vanishes {
        let looked = each_below(trees, &change.path, &mut |path, _| {
            let absolute = trees.root.join(path);
            inner = judge
                .refusal(&absolute)
                .map(|why| format!("it holds {}: {why}", crate::shown(&absolute)));
            inner.is_none()
        });
        if let Err(e) = looked {
            inner = Some(e.to_string());
        }
    }
    inner
}

/// Three-way: what the layer started from, what it has, what the host has. `None`: nothing is left to
/// do.
fn compare(
    layer: &Layer,
    trees: &Trees,
    bases: &Bases,
    base: Option<&Base>,
    change: &Change,
) -> Result<Option<Verdict>, Error> {
    let conflict = |why: &str| Ok(Some(Verdict::Conflict(why.to_owned())));
    let was = base.map_or(&Was::Unknown, |b| &b.was);
    let (known, old) = match (was, &change.old) {
        (Was::Object(known), None) => {
            return match change.new {
                Some((new, tree)) if same_as(trees, tree, &change.path, &new, known)? => Ok(None),
                Some(_) => conflict("deleted on the host"),
                None => Ok(None),
            };
        }
        // Nothing is there that could be lost.
        (Was::Absent | Was::Unknown | Was::Gone, None) => return Ok(Some(Verdict::Take)),
        (Was::Absent, Some(old)) => {
            return match change.new {
                None => Ok(None),
                Some((new, _)) if new.is_dir() && old.is_dir() => Ok(None),
                Some(_) => conflict("the host has made it too"),
            };
        }
        (Was::Unknown | Was::Gone, Some(_)) => {
            return conflict("the host may have changed it while a run went on");
        }
        (Was::Object(known), Some(old)) => (known, old),
    };
    if is_unchanged(trees, &change.path, old, known)? {
        // Of a directory that goes away, or makes room, all that it holds must be as it was.
        let vanishes = old.is_dir() && change.new.is_none_or(|(m, _)| !m.is_dir());
        if vanishes
            && let Some(base) = base
            && let Some(newer) = changed_below(trees, &change.path, base.since)?
        {
            return conflict(&format!("{} was changed on the host", crate::shown(&newer)));
        }
        return Ok(Some(Verdict::Take));
    }
    match change.new {
        None => conflict("changed on the host"),
        Some((new, tree)) => both_changed(layer, trees, bases, base, change, (new, tree), known),
    }
}

fn both_changed(
    layer: &Layer,
    trees: &Trees,
    bases: &Bases,
    base: Option<&Base>,
    change: &Change,
    (new, tree): (Meta, usize),
    known: &Known,
) -> Result<Option<Verdict>, Error> {
    let conflict = |why: &str| Ok(Some(Verdict::Conflict(why.to_owned())));
    let Some(old) = change.old else { return conflict("deleted on the host") };
    let kinds = (known.meta.kind, old.kind, new.kind);
    let mode = match (known.meta.mode, old.mode, new.mode) {
        (was, theirs, ours) if ours == was => theirs,
        (was, theirs, ours) if theirs == was => ours,
        (_, theirs, ours) if theirs == ours => ours,
        _ => return conflict("its mode was changed on the host too"),
    };
    match kinds {
        (Kind::Directory, Kind::Directory, Kind::Directory) => {
            Ok((mode != old.mode).then_some(Verdict::Mode(mode)))
        }
        (Kind::File, Kind::File, Kind::File) => {
            let (ours_in, name) = trees.parent(tree, &change.path)?;
            let (theirs_in, _) = trees.host_parent(&change.path)?;
            let fail = |errno| Error::os("read", trees.root.join(&change.path))(errno);
            let Some(hash) = &known.hash else { return conflict("changed on the host") };
            let read = |dir, ours| object::hash(dir, name, u64::MAX, ours).map_err(fail);
            let ours = read(ours_in.as_fd(), true)?;
            if ours.as_ref() == Some(hash) {
                // The layer left the content alone.
                return Ok((mode != old.mode).then_some(Verdict::Mode(mode)));
            }
            let theirs = read(theirs_in.as_fd(), false)?;
            if theirs.as_ref() == Some(hash) {
                // The host touched it, or changed its mode.
                let taken = mode == new.mode;
                return Ok(Some(if taken {
                    Verdict::Take
                } else {
                    match object::content(ours_in.as_fd(), name, text::MAX_TEXT, true) {
                        Ok(Some(bytes)) => Verdict::Merge(bytes, mode),
                        _ => Verdict::Conflict("its mode was changed on the host".into()),
                    }
                }));
            }
            if theirs == ours {
                return Ok((mode != old.mode).then_some(Verdict::Mode(mode)));
            }
            let Some(before) = base.and_then(|b| bases.copy(layer, b)) else {
                return conflict("changed on the host");
            };
            let text = |dir, ours| {
                let bytes = object::content(dir, name, text::MAX_TEXT, ours).map_err(fail)?;
                Ok::<_, Error>(bytes.filter(|b| text::is_text(b)))
            };
            let (Some(ours), Some(theirs)) =
                (text(ours_in.as_fd(), true)?, text(theirs_in.as_fd(), false)?)
            else {
                return conflict("changed on the host");
            };
            match text::merge(&before, &theirs, &ours) {
                Some(merged) if merged == theirs && mode == old.mode => Ok(None),
                Some(merged) => Ok(Some(Verdict::Merge(merged, mode))),
                None => conflict("the host changed the same lines"),
            }
        }
        _ => conflict("changed on the host"),
    }
}

/// Whether the host's object is what it was, by its identity or by all that can be compared.
fn is_unchanged(trees: &Trees, path: &Path, now: &Meta, known: &Known) -> Result<bool, Error> {
    let was = &known.meta;
    // Devices have other numbers after the host started again.
    if now.untouched(&Meta { dev: now.dev, ..*was }) {
        return Ok(true);
    }
    if (now.kind, now.mode, now.uid, now.gid) != (was.kind, was.mode, was.uid, was.gid) {
        return Ok(false);
    }
    match now.kind {
        // What is in it is compared name by name, or by time where it is all to go.
        Kind::Directory => Ok(now.ino == was.ino),
        Kind::File if now.size == was.size => {
            let Some(hash) = &known.hash else { return Ok(false) };
            let (parent, name) = trees.host_parent(path)?;
            let found = object::hash(parent.as_fd(), name, now.size, false)
                .map_err(Error::os("read", trees.root.join(path)))?;
            Ok(found.as_ref() == Some(hash))
        }
        Kind::Symlink => {
            let (parent, name) = trees.host_parent(path)?;
            let target = object::link(parent.as_fd(), name)
                .map_err(Error::os("read", trees.root.join(path)))?;
            let found = object::hash_of(target.as_os_str().as_encoded_bytes());
            Ok(known.hash.as_ref() == Some(&found))
        }
        _ => Ok(false),
    }
}

/// Whether the layer's object is what the host had: then it changed nothing.
fn same_as(
    trees: &Trees,
    tree: usize,
    path: &Path,
    new: &Meta,
    known: &Known,
) -> Result<bool, Error> {
    if (new.kind, new.mode) != (known.meta.kind, known.meta.mode) {
        return Ok(false);
    }
    match new.kind {
        Kind::Directory => Ok(true),
        Kind::File if new.size == known.meta.size => {
            let Some(hash) = &known.hash else { return Ok(false) };
            let (parent, name) = trees.parent(tree, path)?;
            let found = object::hash(parent.as_fd(), name, new.size, true)
                .map_err(Error::os("read", trees.trees[tree].0.join(path)))?;
            Ok(found.as_ref() == Some(hash))
        }
        _ => Ok(false),
    }
}

/// The first thing below a host's directory that was touched since.
pub fn changed_below(trees: &Trees, path: &Path, since: Stamp) -> Result<Option<PathBuf>, Error> {
    let mut newer = None;
    each_below(trees, path, &mut |path, meta| {
        if !meta.ctime.surely_before(since) && newer.is_none() {
            newer = Some(path.to_owned());
        }
        newer.is_none()
    })?;
    Ok(newer)
}

/// Calls `found` for everything in and below a host's directory, until it says no.
pub fn each_below(
    trees: &Trees,
    path: &Path,
    found: &mut dyn FnMut(&Path, &Meta) -> bool,
) -> Result<(), Error> {
    let mut pending = vec![path.to_owned()];
    while let Some(at) = pending.pop() {
        let shown = trees.root.join(&at);
        let dir = object::open_directory(trees.host.as_fd(), at.as_os_str(), false)
            .map_err(Error::os("open", &shown))?;
        let (names, _) = fd::list(dir.as_fd(), usize::MAX).map_err(Error::os("list", &shown))?;
        for (name, _) in names {
            let below = at.join(&name);
            let meta = object::look(dir.as_fd(), &name)
                .map_err(Error::os("look at", trees.root.join(&below)))?;
            let Some(meta) = meta else { continue };
            if !found(&below, &meta) {
                return Ok(());
            }
            if meta.is_dir() {
                pending.push(below);
            }
        }
    }
    Ok(())
}

/// A text, or `None` for what is not one.
pub type Text = Option<Vec<u8>>;

impl Review {
    pub fn absolute(&self, item: &Item) -> PathBuf {
        self.roots[item.root].join(&item.change.path)
    }

    /// What the host would hold afterwards, if it is a text that can be shown; and what it holds.
    pub fn texts(&self, item: &Item) -> Result<(Text, Text), Error> {
        let trees = &self.trees[item.root];
        let path = &item.change.path;
        let fail = |errno| Error::os("read", trees.root.join(path))(errno);
        let before = match item.change.old {
            Some(meta) if meta.kind == Kind::File => {
                let (dir, name) = trees.host_parent(path)?;
                object::content(dir.as_fd(), name, text::MAX_TEXT, false).map_err(fail)?
            }
            _ => Some(Vec::new()),
        };
        let after = match (&item.verdict, item.change.new) {
            (Verdict::Merge(text, _), _) => Some(text.clone()),
            (Verdict::Mode(_), _) => before.clone(),
            (_, Some((meta, tree))) if meta.kind == Kind::File => {
                let (dir, name) = trees.parent(tree, path)?;
                object::content(dir.as_fd(), name, text::MAX_TEXT, true).map_err(fail)?
            }
            _ => Some(Vec::new()),
        };
        let shown = |bytes: Option<Vec<u8>>| bytes.filter(|b| text::is_text(b));
        Ok((shown(before), shown(after)))
    }
}

/// Whether a change is one of those that were named: the path itself or anything below it.
pub fn selects(selected: &[PathBuf], path: &Path) -> bool {
    selected.is_empty() || selected.iter().any(|s| path.starts_with(s))
}
