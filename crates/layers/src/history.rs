//! What a layer was and may be again: snapshots, checkpoints, forks. Nothing here copies content:
//! the open delta is sealed and records say which sealed deltas are shown. Only [`compact`] touches
//! files, and it links them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use ringfence_sys::fd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::store::{self, Checkpoint, Held, Record, Snapshot, Stamp, Store, check_name};
use crate::{Error, copy, merge};

/// Sealed deltas above which a stack is made flat when there is time. Each costs a little at the
/// mount and at every look-up of a name that is in none.
pub const SOFT_DEPTH: usize = 32;
/// Sealed deltas above which it is made flat at once: overlayfs takes 500 lower directories.
pub const HARD_DEPTH: usize = 400;
/// Checkpoints that are kept; older ones are forgotten.
pub const MAX_CHECKPOINTS: usize = 1_000;
/// Where a flat delta is made, in the layer's own directory, until it is whole.
const DRAFT: &str = "draft";

/// What the host had under each changed name, in a delta; and copies of small files as they were.
const BASES: &str = "base.jsonl";
const BASE_COPIES: &str = "base";
/// Bytes of one delta's account of the host: millions of names.
const MAX_BASES: u64 = 1 << 30;

/// What [`undo`] went back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undone {
    /// Steps that were taken back, the newest first, with their commands.
    pub steps: Vec<Checkpoint>,
}

/// The open delta becomes the last of the sealed ones; the next run makes a new one. One that nothing
/// was written to stays open.
fn seal(store: &Store, record: &mut Record) -> Result<(), Error> {
    let Some(open) = record.open.clone() else { return Ok(()) };
    let path = store.delta_path(&open);
    let delta = match fd::open_absolute(&path, fd::DIRECTORY) {
        Ok(delta) => delta,
        // Nothing was ever made in it.
        Err(Errno::NOENT) => {
            record.open = None;
            return Ok(());
        }
        Err(errno) => return Err(Error::os("open", path)(errno)),
    };
    if untouched(&delta, record.roots.len(), &path)? {
        return Ok(());
    }
    for index in 0..record.roots.len() {
        if let Some(root) = directory(&delta, Path::new(&index.to_string()), &path)? {
            store::remove(root.as_fd(), "work".as_ref(), &path)?;
        }
    }
    record.stack.push(open);
    record.open = None;
    Ok(())
}

/// Seals what runs of a layer wrote, while nobody uses it: what the next one is not to see as its own.
pub fn seal_open(store: &Store, name: &str) -> Result<(), Error> {
    store.edit(name, |record| seal(store, record))
}

fn directory(at: &OwnedFd, name: &Path, path: &Path) -> Result<Option<OwnedFd>, Error> {
    use std::os::unix::ffi::OsStrExt as _;
    match fd::open_beneath(at.as_fd(), name.as_os_str().as_bytes(), fd::DIRECTORY) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::os("open", path.join(name))(errno)),
    }
}

/// Whether an open delta holds nothing: no name in any tree, and the roots as they were made.
fn untouched(delta: &OwnedFd, roots: usize, path: &Path) -> Result<bool, Error> {
    for index in 0..roots {
        let place = format!("{index}/tree");
        let tree = match fd::open_beneath(delta.as_fd(), place.as_bytes(), fd::DIRECTORY) {
            Ok(tree) => tree,
            Err(Errno::NOENT) => continue,
            // Closed by the command: so it was written to.
            Err(Errno::ACCESS) => return Ok(false),
            Err(errno) => return Err(Error::os("open", path.join(place))(errno)),
        };
        let (names, _) = fd::list(tree.as_fd(), 1).map_err(Error::os("list", path))?;
        let attributes = copy::attribute_names(&copy::through_proc(&tree))
            .map_err(Error::os("read the attributes of", path))?;
        if !names.is_empty() || attributes.iter().any(|key| merge::kept(key)) {
            return Ok(false);
        }
        // Its mode may have been changed; what it was made with is the real directory's, which may
        // have changed too. A change alone is kept.
        let stat = rustix::fs::fstat(&tree).map_err(Error::os("look at", path))?;
        let [written, changed] = fd::times(&stat);
        if written == changed {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Keeps what the layer shows now under the name `snapshot`.
pub fn snapshot(store: &Store, name: &str, snapshot: &str, now: Stamp) -> Result<(), Error> {
    check_name(snapshot)?;
    store.edit(name, |record| {
        if record.snapshots.contains_key(snapshot) {
            return Err(Error::Refused(format!(
                "layer {name} has a snapshot called {snapshot} already; \
                 `ringfence snapshot --remove {name} {snapshot}` forgets it"
            )));
        }
        seal(store, record)?;
        let kept = Snapshot { stack: record.stack.clone(), created: now };
        record.snapshots.insert(snapshot.to_owned(), kept);
        Ok(())
    })
}

/// Forgets a snapshot, and what only it needed.
pub fn forget(store: &Store, name: &str, snapshot: &str) -> Result<(), Error> {
    check_name(snapshot)?;
    store.edit(name, |record| {
        record.snapshots.remove(snapshot).map(|_| ()).ok_or_else(|| no_snapshot(name, snapshot))
    })
}

fn no_snapshot(name: &str, snapshot: &str) -> Error {
    Error::Refused(format!("layer {name} has no snapshot called {snapshot}"))
}

/// The layer shows again what it showed at the snapshot. What it shows now stays reachable by
/// [`undo`].
pub fn restore(store: &Store, name: &str, snapshot: &str, now: Stamp) -> Result<(), Error> {
    check_name(snapshot)?;
    store.edit(name, |record| {
        let Some(stack) = record.snapshots.get(snapshot).map(|s| s.stack.clone()) else {
            return Err(no_snapshot(name, snapshot));
        };
        seal(store, record)?;
        mark(record, Some(format!("ringfence restore {name} {snapshot}")), now);
        record.stack = stack;
        // What is still open holds nothing; its place would be on top of another stack.
        record.open = None;
        Ok(())
    })
}

fn mark(record: &mut Record, command: Option<String>, now: Stamp) -> u64 {
    let n = record.checkpoints.last().map_or(0, |last| last.n) + 1;
    let stack = record.stack.clone();
    record.checkpoints.push(Checkpoint { n, stack, created: now, command });
    let old = record.checkpoints.len().saturating_sub(MAX_CHECKPOINTS);
    record.checkpoints.drain(..old);
    n
}

/// Before `command` runs in the layer: what it shows now gets a number, to which [`undo`] goes back.
/// A layer that is not there yet is made, as an empty one is what that goes back to.
pub fn checkpoint(
    store: &Store,
    name: &str,
    command: Option<String>,
    now: Stamp,
) -> Result<u64, Error> {
    check_name(name)?;
    if matches!(store.layer(name), Err(Error::NoLayer(_))) {
        let mut record = store::new_record(now)?;
        let n = mark(&mut record, command, now);
        return store.create(name, &record).map(|()| n);
    }
    let (n, depth) = store.edit(name, |record| {
        seal(store, record)?;
        let n = mark(record, command, now);
        Ok((n, record.stack.len()))
    })?;
    // Else the mount would be refused. All others are made flat after a run.
    if depth >= HARD_DEPTH {
        compact(store, name)?;
    }
    Ok(n)
}

/// Takes back the last `steps` checkpointed commands (and restores), with all that was written since.
pub fn undo(store: &Store, name: &str, steps: usize) -> Result<Undone, Error> {
    store.edit(name, |record| {
        let have = record.checkpoints.len();
        if have == 0 {
            return Err(Error::Refused(format!(
                "layer {name} has no checkpoint; `ringfence run --layer {name} --checkpoint` makes one"
            )));
        }
        if steps == 0 || steps > have {
            return Err(Error::Refused(format!(
                "layer {name} has {have} checkpoint{}, so undo takes a number from 1 to {have}",
                if have == 1 { "" } else { "s" }
            )));
        }
        let mut undone = record.checkpoints.split_off(have - steps);
        undone.reverse();
        if let Some(oldest) = undone.last() {
            record.stack.clone_from(&oldest.stack);
        }
        record.open = None;
        Ok(Undone { steps: undone })
    })
}

/// A new layer that shows what `name` shows, with its snapshots and checkpoints. Both go on apart.
pub fn fork(store: &Store, name: &str, new: &str, now: Stamp) -> Result<(), Error> {
    check_name(new)?;
    let lock = store.lock()?;
    store.free(new)?;
    // Under one lock: between two, what the new record will name could be collected.
    let mut held = store.hold_locked(&lock, name)?;
    held.mend()?;
    let mut record = held.layer.record.clone();
    seal(store, &mut record)?;
    if record != held.layer.record {
        held.save(record.clone())?;
    }
    record.id = store::random_id()?;
    record.created = now;
    record.used = now;
    record.open = None;
    // Not synced: until a run ended in it there is nothing to lose that the first one does not have. The
    // first one's record is, where it changed: two layers must never share a delta that is open.
    store.create_locked(&lock, new, &record, false)
}

/// Makes a deep stack flat, if it is one. For the end of a run, and after a snapshot.
pub fn settle(store: &Store, name: &str) -> Result<(), Error> {
    if store.layer(name)?.record.stack.len() < SOFT_DEPTH { Ok(()) } else { compact(store, name) }
}

/// Makes one sealed delta of the layer's sealed ones. What snapshots, checkpoints and forks still name
/// stays; files are shared with it, so this costs names and not content. Killed at any moment, the
/// layer is as before or as after.
pub fn compact(store: &Store, name: &str) -> Result<(), Error> {
    let mut held = store.hold(name)?;
    held.mend()?;
    let record = held.layer.record.clone();
    if record.stack.len() < 2 {
        return Ok(());
    }
    let draft = draft(&held)?;
    let path = held.layer.path().join(DRAFT);
    for index in 0..record.roots.len() {
        let trees = sealed_trees(store, &record, index)?;
        if trees.is_empty() {
            continue;
        }
        rustix::fs::mkdirat(&draft, index.to_string(), Mode::RWXU)
            .map_err(Error::os("make", &path))?;
        let place = format!("{index}/tree");
        rustix::fs::mkdirat(&draft, &*place, Mode::RWXU).map_err(Error::os("make", &path))?;
        let tree = fd::open_beneath(draft.as_fd(), place.as_bytes(), fd::DIRECTORY)
            .map_err(Error::os("open", &path))?;
        merge::flatten(&trees, &tree)?;
    }
    merge_bases(store, &record.stack, &draft, &path)?;
    rustix::fs::syncfs(&draft).map_err(Error::os("write", &path))?;
    let lock = store.lock()?;
    let flat = store.adopt(&lock, &held.layer, DRAFT)?;
    let mut record = held.layer.record.clone();
    record.stack = vec![flat];
    held.save(record)?;
    drop(held);
    store.collect(lock)
}

/// An empty directory in the layer's own, in which a delta is made out of sight of the collection.
/// What a killed one left is removed.
pub(crate) fn draft(held: &Held) -> Result<OwnedFd, Error> {
    let path = held.layer.path().join(DRAFT);
    store::remove(held.layer.dir.as_fd(), DRAFT.as_ref(), &path)?;
    rustix::fs::mkdirat(&held.layer.dir, DRAFT, Mode::RWXU).map_err(Error::os("make", &path))?;
    fd::open_beneath(held.layer.dir.as_fd(), DRAFT.as_bytes(), fd::DIRECTORY)
        .map_err(Error::os("open", path))
}

/// What the host had, as each of the deltas remembers it, in the order in which they are read: where
/// two speak of one name, the later one counts.
fn merge_bases(store: &Store, stack: &[String], draft: &OwnedFd, path: &Path) -> Result<(), Error> {
    let mut lines = Vec::new();
    for id in stack {
        let from = store.delta_path(id);
        let delta = fd::open_absolute(&from, fd::DIRECTORY).map_err(Error::os("open", &from))?;
        match fd::read_regular(delta.as_fd(), BASES.as_bytes(), MAX_BASES) {
            Ok(text) => lines.extend(text),
            Err(e) if e.is_absent() => {}
            Err(e) => {
                return Err(Error::Corrupt { path: from.join(BASES), problem: e.to_string() });
            }
        }
        let Some(copies) = directory(&delta, Path::new(BASE_COPIES), &from)? else { continue };
        match rustix::fs::mkdirat(draft, BASE_COPIES, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::os("make", path)(errno)),
        }
        let to = fd::open_beneath(draft.as_fd(), BASE_COPIES.as_bytes(), fd::DIRECTORY)
            .map_err(Error::os("open", path))?;
        let (names, _) = fd::list(copies.as_fd(), usize::MAX).map_err(Error::os("list", &from))?;
        for (name, _) in names {
            match rustix::fs::linkat(&copies, &name, &to, &name, rustix::fs::AtFlags::empty()) {
                // Named by its content: the same.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::os("link", from.join(&name))(errno)),
            }
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    store::replace(draft.as_fd(), BASES, path, &lines, true)
}

/// The sealed trees of one root that are there, bottom first.
fn sealed_trees(store: &Store, record: &Record, index: usize) -> Result<Vec<OwnedFd>, Error> {
    open_trees(record.stack.iter().map(|id| store.delta_path(id)), index)
}

/// Trees of one root in `deltas`, in their order, where they are there.
pub(crate) fn open_trees(
    deltas: impl Iterator<Item = std::path::PathBuf>,
    index: usize,
) -> Result<Vec<OwnedFd>, Error> {
    let mut trees = Vec::new();
    for delta in deltas {
        let path = delta.join(index.to_string()).join("tree");
        match fd::open_absolute(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC) {
            Ok(tree) => trees.push(tree),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::os("open", path)(errno)),
        }
    }
    Ok(trees)
}

#[cfg(test)]
mod tests;
