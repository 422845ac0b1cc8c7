//! Which steps an apply has, and everything new, made under temporary names.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::steps::sync;
use super::{Make, Report, TEMPORARY, line};
use crate::copy::{self, How, Links, Owner};
use crate::delta::ChangeKind;
use crate::journal::{Act, Op, Place, Plan};
use crate::review::{Review, STRIPPED};
use crate::{Error, crash, object};

/// Something to make before anything is seen: for which step, and where in what it makes.
pub(super) struct Build {
    pub(super) op: usize,
    /// Relative to the step's own object; empty for that object.
    pub(super) inside: PathBuf,
    pub(super) make: usize,
}

/// Steps in an order in which none is in the way of another.
pub(super) fn order(
    review: &Review,
    makes: &[(usize, Make, bool)],
) -> Result<(Vec<Op>, Vec<Build>), Error> {
    let id = crate::random_id()?;
    let mut ops: Vec<Op> = Vec::new();
    let mut builds = Vec::new();
    let mut within: Option<usize> = None;
    for (number, (index, make, _)) in makes.iter().enumerate() {
        let item = &review.items[*index];
        let place = Place::new(item.root, &item.change.path);
        let inside = within.and_then(|op| {
            let top = &ops[op].place;
            let inside = place.path.strip_prefix(&top.path).ok()?;
            (top.root == place.root).then(|| (op, inside.to_owned()))
        });
        if let Some((op, inside)) = inside {
            builds.push(Build { op, inside, make: number });
            continue;
        }
        within = None;
        let (act, change) = match make {
            Make::Remove => (Act::Remove, None),
            Make::Metadata(change) => (Act::Metadata, Some((**change).clone())),
            Make::Object(_) | Make::Text(..) => (Act::Put, None),
        };
        if act == Act::Put {
            builds.push(Build { op: ops.len(), inside: PathBuf::new(), make: number });
            if item.change.new.is_some_and(|(m, _)| m.is_dir()) {
                within = Some(ops.len());
            }
        }
        let temporary = format!("{TEMPORARY}{}-{}", &id[..8], ops.len());
        ops.push(Op { place, act, temporary, old: item.change.old, new: None, change });
    }
    Ok((ops, builds))
}

/// Makes everything new under temporary names.
pub(super) fn prepare(
    review: &Review,
    makes: &[(usize, Make, bool)],
    builds: &[Build],
    plan: &mut Plan,
    report: &mut Report,
) -> Result<(), Error> {
    let mut links: Vec<Links> = Vec::new();
    for (root, (trees, walked)) in review.trees.iter().zip(&review.walks).enumerate() {
        let mut known = Links::new(trees.host.try_clone().map_err(Error::io("open", &trees.root))?);
        // A file that the layer only gave a further name to is linked, not copied; and so is one whose
        // mode alone it changed.
        let alone = makes.iter().filter_map(|(index, make, _)| {
            let item = &review.items[*index];
            let kept = matches!(make, Make::Metadata(_))
                && item.root == root
                && item.change.kind == ChangeKind::Metadata;
            kept.then_some((&item.change.path, item.change.new))
        });
        let same = walked.held.iter().filter(|h| h.change.is_none()).map(|h| (&h.path, h.new));
        for (path, new) in same.chain(alone) {
            if let Some((meta, _)) = new
                && !meta.is_dir()
                && meta.nlink > 1
                && walked.links.get(&(meta.dev, meta.ino)).is_some_and(|l| l.len() > 1)
            {
                let (dir, name) = trees.host_parent(path)?;
                let key = (meta.dev, meta.ino);
                known
                    .remember(key, dir.as_fd(), name, path.clone())
                    .map_err(copied(&trees.root.join(path)))?;
            }
        }
        links.push(known);
    }
    let mut directories = Vec::new();
    let mut made = Vec::new();
    for build in builds {
        let (index, make, _) = &makes[build.make];
        let item = &review.items[*index];
        let trees = &review.trees[item.root];
        let op = &plan.ops[build.op];
        let top = op.place.path.with_file_name(&op.temporary);
        let target =
            if build.inside.as_os_str().is_empty() { top } else { top.join(&build.inside) };
        let (to, new) = trees.host_parent(&target)?;
        let shown = review.absolute(item);
        made.push((item.root, target.clone()));
        match make {
            Make::Object(tree) if item.change.new.is_some_and(|(m, _)| m.is_dir()) => {
                rustix::fs::mkdirat(&to, new, Mode::RWXU).map_err(Error::os("make", &shown))?;
                directories.push((item.root, *tree, item.change.path.clone(), target.clone()));
            }
            Make::Object(tree) => {
                let (from, name) = trees.parent(*tree, &item.change.path)?;
                let mut none = |_| Ok(());
                let mut how = how(&mut none, false);
                let place = (&mut links[item.root], &*target);
                let copied =
                    copy::object(from.as_fd(), name, to.as_fd(), new, Some(place), &mut how)
                        .map_err(copied(&shown))?;
                if !copied.owner_kept {
                    report.notes.push(line(review, item, "belongs to you afterwards"));
                }
            }
            Make::Text(text, mode, tree) => {
                let (from, name) = trees.parent(*tree, &item.change.path)?;
                write_text(&from, name, &to, new, text, *mode, &shown)?;
            }
            Make::Metadata(_) | Make::Remove => {}
        }
        crash::point();
    }
    // Modes and times of directories last: making what is in them would change or forbid it.
    for (root, tree, path, target) in directories.iter().rev() {
        let trees = &review.trees[*root];
        let shown = trees.root.join(path);
        let (from, name) = trees.parent(*tree, path)?;
        let (to, new) = trees.host_parent(target)?;
        let from = object::place(from.as_fd(), name).map_err(Error::os("open", &shown))?;
        let to = object::place(to.as_fd(), new).map_err(Error::os("open", &shown))?;
        let mut none = |_| Ok(());
        copy::metadata(from.as_fd(), to.as_fd(), name, &mut how(&mut none, true))
            .map_err(copied(&shown))?;
    }
    for op in &mut plan.ops {
        if op.act == Act::Put {
            let trees = &review.trees[op.place.root];
            let (dir, _) = trees.host_parent(&op.place.path)?;
            let found = object::look(dir.as_fd(), op.temporary.as_ref())
                .map_err(Error::os("look at", op.place.shown(&review.roots)))?;
            op.new = found.map(|m| (m.dev, m.ino));
        }
    }
    sync(&review.trees, &made)
}

pub(super) fn how(progress: &mut dyn FnMut(u64) -> Result<(), Errno>, directory: bool) -> How<'_> {
    How {
        attributes: &|name| {
            object::is_own_attribute(name) || name.as_bytes().starts_with(b"system.posix_acl_")
        },
        owner: Owner::SameIfAllowed,
        sync: copy::Sync::No,
        mode_mask: if directory { 0o3777 } else { 0o7777 & !STRIPPED },
        unlock: true,
        progress,
    }
}

pub(super) fn copied(shown: &Path) -> impl FnOnce(copy::Error) -> Error {
    let path = shown.to_owned();
    move |e| match e.errno() {
        Some(errno) => Error::Os { what: "copy", path, errno },
        None => Error::Refused(format!("{}: {e}", crate::shown(&path))),
    }
}

pub(super) fn write_text(
    from: &OwnedFd,
    name: &OsStr,
    to: &OwnedFd,
    new: &OsStr,
    text: &[u8],
    mode: u32,
    shown: &Path,
) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(to, new, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Error::os("make", shown))?;
    let like = object::place(from.as_fd(), name).map_err(Error::os("open", shown))?;
    let mut none = |_| Ok(());
    copy::metadata(like.as_fd(), fd.as_fd(), name, &mut how(&mut none, false))
        .map_err(copied(shown))?;
    let mut file = File::from(fd);
    file.write_all(text).map_err(Error::io("write", shown))?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & !STRIPPED))
        .map_err(Error::os("set the mode of", shown))
}
