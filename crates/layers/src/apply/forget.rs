//! What a layer has no more: changes that the host has now, changes that were thrown away.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Report;
use super::prepare::copied;
use super::steps::{finish_directories, sweep};
use crate::base::{self, Base, Was};
use crate::delta::Trees;
use crate::journal::{Journal, Place, Plan, State};
use crate::review::{self, Item, Review};
use crate::{Error, Held, Layer, Stamp, Store, copy, crash, object};

/// After everything is in place.
pub(super) fn finish(
    store: &Store,
    held: &mut Held,
    trees: &[Trees],
    journal: Journal,
    plan: &mut Plan,
    report: &mut Report,
) -> Result<(), Error> {
    if plan.state != State::Clean {
        // What the host kept to itself stays in the layer.
        plan.brought.retain(|(place, _)| {
            let shown = place
                .shown(&held.layer.record.roots.iter().map(|r| r.path.clone()).collect::<Vec<_>>());
            !report.conflicts.iter().any(|l| shown.starts_with(&l.path) && l.letter == '!')
        });
        plan.state = State::Clean;
        journal.write(plan)?;
    }
    crash::point();
    forget(&held.layer, trees, plan)?;
    crash::point();
    sweep(trees, plan, true)?;
    // After the last name in them came or went.
    finish_directories(trees, plan)?;
    crash::point();
    journal.end(&held.layer)?;
    crash::point();
    let review = review::review(&held.layer, None, &[])?;
    forget_if_empty(store, held, &review)
}

/// A layer that changes nothing any more begins anew: its deltas would only hide what the host does
/// from now on.
pub(super) fn forget_if_empty(
    store: &Store,
    held: &mut Held,
    review: &Review,
) -> Result<(), Error> {
    if !review.items.is_empty() {
        return Ok(());
    }
    let lock = store.lock()?;
    let mut record = held.layer.record.clone();
    record.stack.clear();
    record.open = None;
    held.save(record)?;
    store.collect(lock)
}

/// The layer's changes are the host's now: they leave the open delta; where they must stay (a sealed
/// delta has them too), it is noted that they are dealt with.
pub(super) fn forget(layer: &Layer, trees: &[Trees], plan: &Plan) -> Result<(), Error> {
    let Some(top) = layer.record.visible().next() else { return Ok(()) };
    let path = layer.delta_path(top);
    let is_open = layer.record.open.as_deref() == Some(top);
    let delta = object::open_tree(&path).map_err(Error::os("open", &path))?;
    let mut changed: BTreeMap<(usize, PathBuf), Base> = BTreeMap::new();
    for (place, partly) in plan.brought.iter().rev() {
        let trees = &trees[place.root];
        let key = (place.root, place.path.clone());
        let here = trees.trees.first().is_some_and(|(tree, _)| tree.starts_with(&path));
        let gone = !partly && is_open && here && take_out(trees, &place.path)?;
        let was = if gone { Was::Gone } else { base::now(trees, &place.path, &delta, &path)? };
        // What was applied and had to stay is not applied again.
        let settled = if gone || *partly { None } else { top_object(trees, &place.path)? };
        let base =
            Base { root: place.root, path: place.path.clone(), since: plan.started, was, settled };
        changed.insert(key, base);
    }
    base::edit(&delta, &path, true, |all| all.extend(changed))
}

/// What the layer shows at a path.
pub(super) fn top_object(trees: &Trees, path: &Path) -> Result<Option<(u64, Stamp)>, Error> {
    for index in 0..trees.trees.len() {
        let Ok((dir, name)) = trees.parent(index, path) else { continue };
        let found = object::look(dir.as_fd(), name)
            .map_err(Error::os("look at", trees.trees[index].0.join(path)))?;
        if let Some(meta) = found {
            return Ok(Some((meta.ino, meta.ctime)));
        }
    }
    Ok(None)
}

/// Removes a name from the open delta, if what then shows is the host's. Of a directory that still
/// holds something nothing is removed.
pub(crate) fn take_out(trees: &Trees, path: &Path) -> Result<bool, Error> {
    if path.as_os_str().is_empty() {
        return Ok(false);
    }
    for index in 1..trees.trees.len() {
        if let Ok((dir, name)) = trees.parent(index, path)
            && object::look(dir.as_fd(), name).is_ok_and(|m| m.is_some())
        {
            return Ok(false);
        }
    }
    if trees.is_hidden(path)? {
        return Ok(false);
    }
    let (base, _) = &trees.trees[0];
    let shown = base.join(path);
    let (dir, name) = match trees.parent(0, path) {
        Ok(found) => found,
        Err(Error::Os { errno: Errno::NOENT, .. }) => return Ok(true),
        Err(e) => return Err(e),
    };
    match copy::unlink(dir.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(Error::os("remove", shown)(errno)),
    }
    match copy::unlink(dir.as_fd(), name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(errno) => Err(Error::os("remove", shown)(errno)),
    }
}

/// Throws changes away that lie in the open delta; the rest of the layer stays.
pub fn discard(store: &Store, name: &str, places: &[Place]) -> Result<Vec<Place>, Error> {
    let mut held = store.hold(name)?;
    held.mend()?;
    let review = review::review(&held.layer, None, &[])?;
    let mut thrown = Vec::new();
    let Some(open) = held.layer.record.open.clone() else {
        return Err(sealed(name));
    };
    let path = held.layer.delta_path(&open);
    let mut gone = Vec::new();
    for place in places {
        let trees = &review.trees[place.root];
        let shown = place.shown(&review.roots);
        let touched: Vec<&Item> = review
            .items
            .iter()
            .filter(|i| i.root == place.root && i.change.path.starts_with(&place.path))
            .collect();
        if touched.is_empty() {
            return Err(Error::Refused(format!(
                "the layer changes nothing at {}",
                crate::shown(&shown)
            )));
        }
        // All or nothing: what a sealed delta holds would show again.
        let beneath = (1..trees.trees.len()).any(|index| {
            trees
                .parent(index, &place.path)
                .is_ok_and(|(dir, name)| object::look(dir.as_fd(), name).is_ok_and(|m| m.is_some()))
        });
        let here = trees.trees.first().is_some_and(|(tree, _)| tree.starts_with(&path));
        if beneath || !here || place.path.as_os_str().is_empty() {
            return Err(sealed(name));
        }
        if trees.is_hidden(&place.path)? && touched[0].change.old.is_some() {
            return Err(Error::Refused(format!(
                "{} lies in a directory that the layer made anew: discard that directory",
                crate::shown(&shown)
            )));
        }
        let (dir, name) = trees.parent(0, &place.path)?;
        copy::remove_tree(dir.as_fd(), name).map_err(copied(&shown))?;
        gone.extend(touched.iter().map(|i| Place::new(i.root, &i.change.path)));
        thrown.push(place.clone());
    }
    let delta = object::open_tree(&path).map_err(Error::os("open", &path))?;
    base::edit(&delta, &path, true, |all| {
        all.retain(|(root, path), _| {
            !gone.iter().any(|g: &Place| g.root == *root && path.starts_with(&g.path))
        });
    })?;
    let review = review::review(&held.layer, None, &[])?;
    forget_if_empty(store, &mut held, &review)?;
    Ok(thrown)
}

pub(super) fn sealed(name: &str) -> Error {
    Error::Refused(format!(
        "that lies in a sealed delta of layer {name} (a snapshot or checkpoint): restore an earlier one, or discard the layer"
    ))
}
