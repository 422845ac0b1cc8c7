//! The steps of an apply, forward and backward; each can be done again.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use ringfence_sys::fd;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use super::prepare::copied;
use super::{Line, Report};
use crate::delta::Trees;
use crate::journal::{Act, Look, Op, Place, Plan, Stand, Time};
use crate::object::{self, Kind, Meta};
use crate::{Error, Stamp, copy, crash, review};

/// Objects up to which each is synced by itself; beyond, their file systems are, with all that others
/// write there.
pub(super) const FEW: usize = 32;

/// What was made or renamed under these names is on the disk afterwards.
pub(super) fn sync(trees: &[Trees], names: &[(usize, PathBuf)]) -> Result<(), Error> {
    if names.len() > FEW {
        for trees in trees {
            rustix::fs::syncfs(&trees.host).map_err(Error::os("sync", &trees.root))?;
        }
        return Ok(());
    }
    for (root, path) in names {
        let trees = &trees[*root];
        let shown = trees.root.join(path);
        if path.as_os_str().is_empty() {
            rustix::fs::fsync(&trees.host).map_err(Error::os("sync", shown))?;
            continue;
        }
        // One that the host has moved away meanwhile is not ours to sync.
        let Ok((dir, name)) = trees.host_parent(path) else { continue };
        let found = object::look(dir.as_fd(), name).map_err(Error::os("look at", &shown))?;
        if found.is_some_and(|m| matches!(m.kind, Kind::File | Kind::Directory)) {
            let place = object::place(dir.as_fd(), name).map_err(Error::os("open", &shown))?;
            match copy::reopen(&place, OFlags::RDONLY | OFlags::NONBLOCK, false) {
                Ok(fd) => rustix::fs::fsync(fd).map_err(Error::os("sync", &shown))?,
                // A mode that keeps us out: with all the rest then.
                Err(_) => {
                    rustix::fs::syncfs(&trees.host).map_err(Error::os("sync", &shown))?;
                }
            }
        }
        rustix::fs::fsync(&dir).map_err(Error::os("sync", &shown))?;
    }
    Ok(())
}

/// Names of everything that the steps touch.
pub(super) fn touched(plan: &Plan) -> Vec<(usize, PathBuf)> {
    plan.ops.iter().map(|op| (op.place.root, op.place.path.clone())).collect()
}

/// Puts everything in its place.
pub(super) fn commit(
    trees: &[Trees],
    plan: &Plan,
    report: &mut Report,
    again: bool,
) -> Result<(), Error> {
    // Directories' times last: what happens in them changes those.
    let late = |op: &&Op| op.act == Act::Metadata;
    let (last, first): (Vec<&Op>, Vec<&Op>) = plan.ops.iter().partition(late);
    for op in first.into_iter().chain(last.into_iter().rev()) {
        forward(&trees[op.place.root], op, plan, report, again)?;
        crash::point();
    }
    sync(trees, &touched(plan))
}

/// The directory of a step's place, if it is still there.
pub(super) fn parent<'o>(trees: &Trees, op: &'o Op) -> Result<Option<(OwnedFd, &'o OsStr)>, Error> {
    match trees.host_parent(&op.place.path) {
        Ok(found) => Ok(Some(found)),
        Err(Error::Os { errno: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn forward(
    trees: &Trees,
    op: &Op,
    plan: &Plan,
    report: &mut Report,
    again: bool,
) -> Result<(), Error> {
    let shown = trees.root.join(&op.place.path);
    let fail = |what| Error::os(what, shown.clone());
    let mut meddled = |why: &str| {
        report.applied.retain(|l| l.path != shown);
        report.conflicts.push(Line {
            path: shown.clone(),
            letter: '!',
            text: why.to_owned(),
            executable: None,
        });
    };
    if op.place.path.as_os_str().is_empty() {
        let Some((be, _)) = &op.change else { return Ok(()) };
        return rustix::fs::fchmod(&trees.host, Mode::from_raw_mode(be.mode))
            .map_err(fail("set the mode of"));
    }
    let Some((dir, name)) = parent(trees, op)? else {
        meddled("its directory was moved on the host meanwhile");
        return Ok(());
    };
    match op.stand(&dir, name).map_err(fail("look at"))? {
        Stand::Done => return Ok(()),
        Stand::Foreign => {
            meddled("changed on the host meanwhile");
            return Ok(());
        }
        Stand::NotDone => {}
    }
    let now = object::look(dir.as_fd(), name).map_err(fail("look at"))?;
    let fresh = match (&now, &op.old) {
        // What this apply puts into a directory changes the directory's times.
        (Some(now), Some(old)) if op.act == Act::Metadata && now.is_same_directory(old) => true,
        (Some(now), Some(old)) => now.untouched(old),
        (None, None) => true,
        _ => false,
    };
    // A mode that was half set before a kill has a new time already. And what was linked to has one.
    // So has a file one of whose other names this apply moved aside before.
    let linked = now.zip(op.old).is_some_and(|(now, old)| {
        now.nlink != old.nlink || (now.has_content_of(&old) && other_name(op, plan))
    });
    let excused = linked || (again && op.act == Act::Metadata);
    if !fresh && !excused {
        meddled("changed on the host meanwhile");
        return Ok(());
    }
    let aside = op.temporary.as_str();
    match op.act {
        Act::Metadata => {
            let Some((be, _)) = &op.change else { return Ok(()) };
            let place = object::place(dir.as_fd(), name).map_err(fail("open"))?;
            give(&place, be).map_err(fail("change"))?;
        }
        Act::Put if op.old.is_none() => {
            match rustix::fs::renameat_with(&dir, aside, &dir, name, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => meddled("the host has made it meanwhile"),
                Err(errno) => return Err(fail("put in place")(errno)),
            }
        }
        Act::Put => {
            let exchange = RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&dir, aside, &dir, name, exchange)
                .map_err(fail("put in place"))?;
            crash::point();
            if !same_aside(trees, &dir, op, plan).map_err(fail("look at"))? {
                rustix::fs::renameat_with(&dir, aside, &dir, name, exchange)
                    .map_err(fail("put back"))?;
                meddled("changed on the host meanwhile");
            }
        }
        Act::Remove => {
            let keep = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(&dir, name, &dir, aside, keep).map_err(fail("remove"))?;
            crash::point();
            if !same_aside(trees, &dir, op, plan).map_err(fail("look at"))? {
                rustix::fs::renameat_with(&dir, aside, &dir, name, keep)
                    .map_err(fail("put back"))?;
                meddled("changed on the host meanwhile");
            }
        }
    }
    Ok(())
}

/// Whether another step is about another name of the same file.
fn other_name(op: &Op, plan: &Plan) -> bool {
    let id = |op: &Op| op.old.filter(|m| m.nlink > 1 && !m.is_dir()).map(|m| (m.dev, m.ino));
    id(op).is_some() && plan.ops.iter().any(|o| o.place != op.place && id(o) == id(op))
}

/// Whether what was moved aside is what was looked at: nobody wrote to it in the last moment.
pub(super) fn same_aside(
    trees: &Trees,
    dir: &OwnedFd,
    op: &Op,
    plan: &Plan,
) -> Result<bool, Errno> {
    let Some(old) = &op.old else { return Ok(true) };
    let Some(now) = object::look(dir.as_fd(), op.temporary.as_ref())? else { return Ok(false) };
    if (now.dev, now.ino) != (old.dev, old.ino) {
        return Ok(false);
    }
    if !old.is_dir() {
        return Ok(now.mtime == old.mtime && now.size == old.size);
    }
    let aside = op.place.path.with_file_name(&op.temporary);
    // Another name of a file whose name this apply moved aside has a new time by that alone.
    let ours = |now: &Meta| {
        now.nlink > 1
            && plan.ops.iter().any(|op| op.old.is_some_and(|old| now.has_content_of(&old)))
    };
    let mut untouched = true;
    let looked = review::each_below(trees, &aside, &mut |_, meta| {
        untouched &= meta.ctime.surely_before(plan.started) || ours(meta);
        untouched
    });
    Ok(now.mtime == old.mtime && looked.is_ok() && untouched)
}

pub(super) fn give(place: &OwnedFd, look: &Look) -> Result<(), Errno> {
    let path = copy::through_proc(place);
    let stat = rustix::fs::fstat(place)?;
    if (stat.st_uid, stat.st_gid) != (look.uid, look.gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(look.uid), rustix::fs::Gid::from_raw(look.gid));
        rustix::fs::chownat(place, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    if let Some(wanted) = &look.attributes {
        let have = object::attributes(place)?;
        let has = |name: &OsStr, value: &[u8]| have.iter().any(|(n, v)| n == name && v == value);
        let gone: Vec<_> =
            have.iter().filter(|(n, _)| !wanted.iter().any(|(w, _)| w.name() == *n)).collect();
        let new: Vec<_> = wanted.iter().filter(|(w, v)| !has(w.name(), v)).collect();
        if !(gone.is_empty() && new.is_empty()) && stat.st_mode & 0o200 == 0 {
            // Attributes take the right to write. The mode is set below in any case.
            let mode = Mode::from_raw_mode(stat.st_mode) | Mode::WUSR;
            rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty())?;
        }
        for (name, _) in gone {
            rustix::fs::removexattr(&path, name)?;
        }
        for (name, value) in new {
            rustix::fs::setxattr(&path, name.name(), value, XattrFlags::empty())?;
        }
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(look.mode), AtFlags::empty())?;
    }
    look.mtime.map_or(Ok(()), |time| set_time(place, time))
}

/// Directories of the caller's own that he may not write by their mode, but by changing it. The journal
/// knows what they had.
pub(super) fn open_directories(trees: &[Trees], plan: &mut Plan) -> Result<(), Error> {
    for (place, mode) in &plan.opened {
        let open = mode | 0o700;
        set_mode(trees, place, open)?;
        // A step that is about the directory itself finds it so.
        for op in plan.ops.iter_mut().filter(|op| op.place == *place) {
            op.old = op.old.map(|old| Meta { mode: open, ..old });
        }
        crash::point();
    }
    Ok(())
}

/// The modes that they had, but where a step gave them another one for good.
fn close_directories(trees: &[Trees], plan: &Plan, done: bool) -> Result<(), Error> {
    // Inner ones first: outer ones lead to them.
    for (place, mode) in plan.opened.iter().rev() {
        let steps = plan.ops.iter().filter(|op| done && op.place == *place);
        let new: Vec<u32> = steps.filter_map(|op| Some(op.change.as_ref()?.0.mode)).collect();
        // A step that the host prevented gave it none.
        if new.is_empty() || !new.contains(&mode_of(trees, place)?) {
            set_mode(trees, place, *mode)?;
        }
    }
    Ok(())
}

fn mode_of(trees: &[Trees], place: &Place) -> Result<u32, Error> {
    let trees = &trees[place.root];
    object::open_directory(trees.host.as_fd(), place.path.as_os_str(), false)
        .and_then(rustix::fs::fstat)
        .map(|stat| Meta::of(&stat).mode)
        .or_else(|errno| if errno == Errno::NOENT { Ok(0) } else { Err(errno) })
        .map_err(Error::os("look at", trees.root.join(&place.path)))
}

fn set_mode(trees: &[Trees], place: &Place, mode: u32) -> Result<(), Error> {
    let trees = &trees[place.root];
    let shown = trees.root.join(&place.path);
    match object::open_directory(trees.host.as_fd(), place.path.as_os_str(), false) {
        Ok(dir) => rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))
            .map_err(Error::os("set the mode of", shown)),
        // One that the host has moved away meanwhile is none of ours.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(errno) => Err(Error::os("open", shown)(errno)),
    }
}

/// The modes and times that directories have in the layer.
pub(super) fn finish_directories(trees: &[Trees], plan: &Plan) -> Result<(), Error> {
    close_directories(trees, plan, true)?;
    for time in &plan.times {
        if let Some(be) = time.be {
            give_time(trees, &time.place, be, &|_| Ok(true))?;
        }
    }
    Ok(())
}

/// The modes and times that directories had before, once all else in them is as before. No times where
/// somebody else made or changed a name meanwhile.
pub(super) fn directories_as_before(trees: &[Trees], plan: &Plan) -> Result<(), Error> {
    close_directories(trees, plan, false)?;
    let ours: BTreeSet<&Place> =
        plan.ops.iter().map(|op| &op.place).chain(plan.times.iter().map(|t| &t.place)).collect();
    for Time { place, was, .. } in &plan.times {
        give_time(trees, place, *was, &|dir| {
            let (names, _) = fd::list(dir.as_fd(), usize::MAX)?;
            for (name, _) in names {
                if ours.contains(&Place::new(place.root, place.path.join(&name))) {
                    continue;
                }
                let found = object::look(dir.as_fd(), &name)?;
                if found.is_none_or(|m| !m.ctime.surely_before(plan.started)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
    }
    Ok(())
}

fn give_time(
    trees: &[Trees],
    place: &Place,
    time: Stamp,
    wanted: &dyn Fn(&OwnedFd) -> Result<bool, Errno>,
) -> Result<(), Error> {
    let trees = &trees[place.root];
    let path = place.path.as_os_str();
    // One that the host has moved away meanwhile is none of ours.
    let Ok(dir) = object::open_directory(trees.host.as_fd(), path, false) else { return Ok(()) };
    let shown = trees.root.join(&place.path);
    if !wanted(&dir).map_err(Error::os("look at", &shown))? {
        return Ok(());
    }
    match set_time(&dir, time) {
        // Another user's, who lets us make names in it.
        Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(()),
        Err(errno) => Err(Error::os("set the times of", shown)(errno)),
    }
}

fn set_time(place: &OwnedFd, Stamp(seconds, nanos): Stamp) -> Result<(), Errno> {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(0, rustix::fs::UTIME_OMIT),
        last_modification: time(seconds, nanos.into()),
    };
    rustix::fs::utimensat(CWD, copy::through_proc(place), &times, AtFlags::empty())
}

pub(super) fn backward(trees: &[Trees], op: &Op, report: &mut Report) -> Result<(), Error> {
    let trees = &trees[op.place.root];
    let shown = trees.root.join(&op.place.path);
    let fail = |what| Error::os(what, shown.clone());
    let mut kept = |text: String| {
        report.conflicts.push(Line { path: shown.clone(), letter: '!', text, executable: None });
    };
    if op.place.path.as_os_str().is_empty() {
        let Some((_, was)) = &op.change else { return Ok(()) };
        return rustix::fs::fchmod(&trees.host, Mode::from_raw_mode(was.mode))
            .map_err(fail("set the mode of"));
    }
    let Some((dir, name)) = parent(trees, op)? else {
        kept("its directory was moved on the host meanwhile".into());
        return Ok(());
    };
    let aside = op.temporary.as_str();
    let stand = op.stand(&dir, name).map_err(fail("look at"))?;
    match (op.act, stand) {
        (Act::Metadata, Stand::NotDone) => {
            if let Some((_, was)) = &op.change {
                let place = object::place(dir.as_fd(), name).map_err(fail("open"))?;
                give(&place, was).map_err(fail("change back"))?;
            }
        }
        (_, Stand::NotDone) => {}
        (Act::Put, Stand::Done) if op.old.is_some() => {
            rustix::fs::renameat_with(&dir, aside, &dir, name, RenameFlags::EXCHANGE)
                .map_err(fail("put back"))?;
        }
        (Act::Put, Stand::Done) => {
            rustix::fs::renameat_with(&dir, name, &dir, aside, RenameFlags::NOREPLACE)
                .map_err(fail("take back"))?;
        }
        (Act::Remove, Stand::Done) => {
            rustix::fs::renameat_with(&dir, aside, &dir, name, RenameFlags::NOREPLACE)
                .map_err(fail("put back"))?;
        }
        (_, Stand::Foreign | Stand::Done) => {
            let there = object::look(dir.as_fd(), aside.as_ref()).map_err(fail("look at"))?;
            if there.map(|m| (m.dev, m.ino)) == op.old.map(|m| (m.dev, m.ino)) && there.is_some() {
                kept(format!("changed on the host meanwhile; what was there before is {aside}"));
            } else {
                kept("changed on the host meanwhile".into());
            }
        }
    }
    Ok(())
}

/// Removes what lies under temporary names: what was made, and, where `old` too, what was replaced.
pub(super) fn sweep(trees: &[Trees], plan: &Plan, old: bool) -> Result<(), Error> {
    for op in &plan.ops {
        let trees = &trees[op.place.root];
        if op.act == Act::Metadata {
            continue;
        }
        let Some((dir, _)) = parent(trees, op)? else { continue };
        let shown = trees.root.join(&op.place.path);
        let aside = OsStr::new(&op.temporary);
        let there = object::look(dir.as_fd(), aside).map_err(Error::os("look at", &shown))?;
        let Some(there) = there else { continue };
        let is_old = op.old.is_some_and(|o| (o.dev, o.ino) == (there.dev, there.ino));
        // Without the number of what was made, nothing had been put in place yet.
        if is_old && !old {
            continue;
        }
        copy::remove_tree(dir.as_fd(), aside).map_err(copied(&shown))?;
        crash::point();
    }
    Ok(())
}
