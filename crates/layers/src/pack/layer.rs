//! Archives of whole layers: from the store and into it.

use std::io::{Read, Write};
use std::os::fd::AsFd as _;

use ringfence_sys::fd;
use rustix::fs::{Mode, OFlags};

use super::{Error, Exported, Format, Import, Imported, Limits, export};
use crate::history::{draft, open_trees};
use crate::store::{new_record, root_index};
use crate::{Error as StoreError, Record, Root, Stamp, Store, base};

/// Where an archive is unpacked, in the layer's own directory, until it is whole.
const DRAFT: &str = "draft";

/// Writes what a layer shows, or what it showed at a snapshot.
pub fn write_layer(
    store: &Store,
    name: &str,
    snapshot: Option<&str>,
    out: impl Write,
    format: Format,
) -> Result<Exported, Error> {
    // Held to the end, so that nothing changes or collects what is being read.
    let held = store.hold(name)?;
    let record = &held.layer.record;
    let stack: Vec<&String> = match snapshot {
        None => record.stack.iter().chain(&record.open).collect(),
        Some(snapshot) => match record.snapshots.get(snapshot) {
            Some(snapshot) => snapshot.stack.iter().collect(),
            None => {
                return Err(StoreError::Refused(format!(
                    "layer {name} has no snapshot called {snapshot}"
                ))
                .into());
            }
        },
    };
    let mut roots = Vec::with_capacity(record.roots.len());
    for (index, root) in record.roots.iter().enumerate() {
        let trees = open_trees(stack.iter().map(|id| store.delta_path(id)), index)?;
        roots.push((root.path.clone(), trees));
    }
    if roots.is_empty() {
        return Err(StoreError::Refused(format!("layer {name} holds nothing yet")).into());
    }
    export(&roots, out, format)
}

/// Makes the layer `name` of an archive, to lie over `roots`. On an error there is no layer.
pub fn read_layer(
    store: &Store,
    name: &str,
    roots: &[Root],
    from: impl Read,
    limits: Limits,
    now: Stamp,
) -> Result<Imported, Error> {
    match store.layer(name) {
        // What an import that was killed left.
        Ok(layer) if is_blank(&layer.record) => {}
        _ => store.create(name, &new_record(now)?)?,
    }
    let done = fill(store, name, roots, from, limits, now);
    if done.is_err() {
        store.discard(name)?;
    }
    done
}

fn is_blank(record: &Record) -> bool {
    record.deltas().is_empty() && record.roots.is_empty() && record.checkpoints.is_empty()
}

fn fill(
    store: &Store,
    name: &str,
    roots: &[Root],
    from: impl Read,
    limits: Limits,
    now: Stamp,
) -> Result<Imported, Error> {
    let mut held = store.hold(name)?;
    let mut record = held.layer.record.clone();
    let draft = draft(&held)?;
    let path = held.layer.path().join(DRAFT);
    let mut trees = Vec::with_capacity(roots.len());
    for root in roots {
        let index = root_index(&mut record, name, root)?;
        if index != trees.len() {
            return Err(StoreError::Refused("a directory was named twice".into()).into());
        }
        let place = format!("{index}/tree");
        for part in [&index.to_string(), &place] {
            rustix::fs::mkdirat(&draft, &**part, Mode::RWXU)
                .map_err(StoreError::os("make", &path))?;
        }
        let tree = fd::open_beneath(draft.as_fd(), place.as_bytes(), fd::DIRECTORY)
            .map_err(StoreError::os("open", &path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lower =
            fd::open_absolute(&root.path, flags).map_err(StoreError::os("open", &root.path))?;
        trees.push(Import { tree, lower: Some(lower) });
    }
    let done = Import::read(&trees, from, limits)?;
    rustix::fs::syncfs(&draft).map_err(StoreError::os("write", &path))?;
    let lock = store.lock()?;
    record.open = Some(store.adopt(&lock, &held.layer, DRAFT)?);
    held.save(record)?;
    drop(lock);
    // As if a run had made these changes now: what the host has is what they are compared with.
    base::note(&held.layer, now)?;
    Ok(done)
}
