//! Brings changes of a layer to the host, all of what was asked for or, after a kill, as much as can be
//! taken up or taken back. `journal` has the states.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use crate::base::{self, Base, Was};
use crate::copy::{self, How, Links, Owner};
use crate::crash;
use crate::delta::Trees;
use crate::journal::{Act, Attribute, Journal, Look, Op, Place, Plan, Request, Stand, State};
use crate::object::{self, Kind, Meta};
use crate::review::{self, Item, Judge, Review, STRIPPED, Verdict, selects};
use crate::{Error, Held, Layer, Stamp, Store, text};

/// How names of an apply's own files begin.
pub const TEMPORARY: &str = ".ringfence-apply-";

/// What came of an apply.
#[derive(Debug, Default)]
pub struct Report {
    pub applied: Vec<Line>,
    pub conflicts: Vec<Line>,
    pub refused: Vec<Line>,
    /// What is to be known besides: bits dropped, owners not kept.
    pub notes: Vec<Line>,
}

/// A path of the host and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub path: PathBuf,
    pub letter: char,
    pub text: String,
    /// Why the host may run it later.
    pub executable: Option<&'static str>,
}

/// What is made at a place.
#[derive(Clone, Debug)]
enum Make {
    /// The layer's object.
    Object(usize),
    /// This text, in a file like the layer's.
    Text(Vec<u8>, u32, usize),
    Metadata(Box<(Look, Look)>),
    Remove,
}

/// Which items are applied, and how.
struct Chosen {
    makes: Vec<(usize, Make, bool)>,
    report: Report,
}

/// What an apply of `request` would do.
pub fn preview(review: &Review, request: &Request) -> Result<Report, Error> {
    Ok(choose(review, request)?.report)
}

/// Who decides, who is told.
pub struct Context<'a> {
    /// What may be applied at all; `None`: everything.
    pub judge: Option<&'a dyn Judge>,
    /// Directories in which a shell finds programs.
    pub search: &'a [PathBuf],
    /// Told what is going to be done, before it is.
    pub tell: &'a mut dyn FnMut(&Report),
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("search", &self.search).finish_non_exhaustive()
    }
}

/// Applies what was asked for. Conflicts and refusals are reported and left in the layer.
pub fn apply(
    store: &Store,
    name: &str,
    request: &Request,
    context: &mut Context<'_>,
) -> Result<Report, Error> {
    let mut held = store.hold(name)?;
    if held.layer.unfinished() {
        return Err(Error::Unfinished(name.to_owned()));
    }
    held.mend()?;
    run(store, &mut held, request, context)
}

/// Ends an apply that was interrupted.
pub fn resume(store: &Store, name: &str, context: &mut Context<'_>) -> Result<Report, Error> {
    let mut held = store.hold(name)?;
    let Some((journal, plan)) = Journal::open(&held.layer)? else {
        return Err(Error::Refused(format!("layer {name} has no unfinished apply")));
    };
    let Some(mut plan) = plan else {
        journal.end(&held.layer)?;
        return Err(Error::Refused(
            "the apply had not begun; nothing was changed, apply again".into(),
        ));
    };
    match plan.state {
        State::Prepare => {
            // Nothing is in place yet: made anew, of what the host is now.
            let trees = open(&held.layer)?;
            sweep(&trees, &plan, false)?;
            journal.end(&held.layer)?;
            run(store, &mut held, &plan.request, context)
        }
        State::Commit => {
            let mut report = Report::default();
            let trees = open(&held.layer)?;
            commit(&trees, &plan, &mut report, true)?;
            finish(store, &mut held, &trees, journal, &mut plan, &mut report)?;
            Ok(report)
        }
        State::Clean => {
            let mut report = Report::default();
            let trees = open(&held.layer)?;
            finish(store, &mut held, &trees, journal, &mut plan, &mut report)?;
            Ok(report)
        }
        State::Undone => {
            let trees = open(&held.layer)?;
            sweep(&trees, &plan, false)?;
            journal.end(&held.layer)?;
            Err(Error::Refused("the apply was rolled back; that is complete now".into()))
        }
    }
}

/// Takes an interrupted apply back. What could not be, is reported.
pub fn roll_back(store: &Store, name: &str) -> Result<Report, Error> {
    let held = store.hold(name)?;
    let Some((journal, plan)) = Journal::open(&held.layer)? else {
        return Err(Error::Refused(format!("layer {name} has no unfinished apply")));
    };
    let mut report = Report::default();
    let Some(mut plan) = plan else {
        journal.end(&held.layer)?;
        return Ok(report);
    };
    let trees = open(&held.layer)?;
    match plan.state {
        State::Clean => {
            return Err(Error::Refused(format!(
                "the apply was complete but for its tidying: `ringfence apply {name} --resume`"
            )));
        }
        State::Prepare | State::Undone => {}
        State::Commit => {
            for op in plan.ops.iter().rev() {
                backward(&trees, op, &mut report)?;
                crash::point();
            }
            sync(&trees, &touched(&plan))?;
            plan.state = State::Undone;
            journal.write(&plan)?;
            crash::point();
        }
    }
    sweep(&trees, &plan, false)?;
    journal.end(&held.layer)?;
    Ok(report)
}

fn open(layer: &Layer) -> Result<Vec<Trees>, Error> {
    (0..layer.record.roots.len()).map(|index| Trees::open(layer, index)).collect()
}

fn run(
    store: &Store,
    held: &mut Held,
    request: &Request,
    context: &mut Context<'_>,
) -> Result<Report, Error> {
    // Before the host is looked at: what is touched later has a later time.
    let started = Stamp::now();
    let review = review::review(&held.layer, context.judge, context.search)?;
    let Chosen { makes, mut report } = choose(&review, request)?;
    (context.tell)(&report);
    if makes.is_empty() {
        forget_if_empty(store, held, &review)?;
        return Ok(report);
    }
    let (ops, builds) = order(&review, &makes)?;
    let mut plan = Plan {
        version: crate::VERSION,
        state: State::Prepare,
        started,
        request: request.clone(),
        ops,
        brought: makes
            .iter()
            .map(|(item, _, partly)| {
                let item = &review.items[*item];
                (Place::new(item.root, &item.change.path), *partly)
            })
            .collect(),
    };
    let journal = Journal::begin(&held.layer, &plan)?;
    crash::point();
    if let Err(e) = prepare(&review, &makes, &builds, &mut plan, &mut report) {
        // Nothing is in place: as if it had not been asked for.
        sweep(&review.trees, &plan, false)?;
        journal.end(&held.layer)?;
        return Err(e);
    }
    crash::point();
    plan.state = State::Commit;
    journal.write(&plan)?;
    crash::point();
    commit(&review.trees, &plan, &mut report, false)?;
    finish(store, held, &review.trees, journal, &mut plan, &mut report)?;
    Ok(report)
}

fn line(review: &Review, item: &Item, text: impl Into<String>) -> Line {
    Line {
        path: review.absolute(item),
        letter: item.change.kind.letter(),
        text: text.into(),
        executable: item.executable,
    }
}

fn choose(review: &Review, request: &Request) -> Result<Chosen, Error> {
    let mut report = Report::default();
    let mut makes = Vec::new();
    let mut found = vec![false; request.paths.len()];
    let mut left: Option<(usize, PathBuf)> = None;
    for (index, item) in review.items.iter().enumerate() {
        let path = &item.change.path;
        let hunks = request.hunks.iter().find(|(p, _)| p.root == item.root && p.path == *path);
        let here: Vec<PathBuf> = request
            .paths
            .iter()
            .chain(request.hunks.iter().map(|(p, _)| p))
            .filter(|p| p.root == item.root)
            .map(|p| p.path.clone())
            .collect();
        for (place, found) in request.paths.iter().zip(&mut found) {
            *found |= place.root == item.root && path.starts_with(&place.path);
        }
        let everything = request.paths.is_empty() && request.hunks.is_empty();
        // A new directory comes along where only something in it was named.
        let leads = item.change.new.is_some_and(|(m, _)| m.is_dir())
            && here.iter().any(|p| p.starts_with(path));
        if !(everything || leads || (!here.is_empty() && selects(&here, path))) {
            continue;
        }
        if left.as_ref().is_some_and(|(root, dir)| *root == item.root && path.starts_with(dir)) {
            report.conflicts.push(line(review, item, "its directory is in conflict"));
            continue;
        }
        let make = match &item.verdict {
            Verdict::Refused(why) => {
                report.refused.push(line(review, item, why));
                continue;
            }
            Verdict::Conflict(why) if !request.theirs => {
                report.conflicts.push(line(review, item, why));
                if item.change.new.is_some_and(|(m, _)| m.is_dir()) {
                    left = Some((item.root, path.clone()));
                }
                continue;
            }
            _ => make(review, item)?,
        };
        let (make, partly) = match hunks {
            Some((_, numbers)) => some_hunks(review, item, numbers)?,
            None => (make, false),
        };
        if let Some(note) = &item.note {
            report.notes.push(line(review, item, note));
        }
        report.applied.push(line(review, item, ""));
        makes.push((index, make, partly));
    }
    let unknown = request.paths.iter().zip(found).find(|(_, found)| !found).map(|(p, _)| p);
    let missing = request
        .hunks
        .iter()
        .map(|(p, _)| p)
        .find(|p| !review.items.iter().any(|i| i.root == p.root && i.change.path == p.path));
    if let Some(place) = unknown.or(missing) {
        let path = place.shown(&review.roots);
        return Err(Error::Refused(format!(
            "the layer changes nothing at {}",
            crate::shown(&path)
        )));
    }
    Ok(Chosen { makes, report })
}

/// The layer's object, or what both sides made of it.
fn make(review: &Review, item: &Item) -> Result<Make, Error> {
    let change = &item.change;
    let Some((new, tree)) = change.new else { return Ok(Make::Remove) };
    match (&item.verdict, change.old) {
        (Verdict::Merge(text, mode), _) => Ok(Make::Text(text.clone(), *mode, tree)),
        (Verdict::Mode(mode), Some(old)) => {
            let was =
                Look { mode: old.mode, uid: old.uid, gid: old.gid, mtime: None, attributes: None };
            let be = Look { mode: *mode, ..was.clone() };
            Ok(Make::Metadata(Box::new((be, was))))
        }
        (_, Some(old))
            if change.kind == crate::delta::ChangeKind::Metadata
                || (new.is_dir() && old.is_dir()) =>
        {
            let trees = &review.trees[item.root];
            let be = if change.path.as_os_str().is_empty() {
                Look { mode: new.mode, uid: old.uid, gid: old.gid, mtime: None, attributes: None }
            } else {
                let (dir, name) = trees.parent(tree, &change.path)?;
                look_of(&dir, name, &new, &trees.trees[tree].0.join(&change.path))?
            };
            let was = if change.path.as_os_str().is_empty() {
                Look { mode: old.mode, ..be.clone() }
            } else {
                let (dir, name) = trees.host_parent(&change.path)?;
                look_of(&dir, name, &old, &review.absolute(item))?
            };
            let mode = if new.kind == Kind::File { be.mode & !STRIPPED } else { be.mode & !0o4000 };
            // Who may not give a file away keeps it.
            let root = rustix::process::geteuid().is_root();
            let (uid, gid) = if root { (be.uid, be.gid) } else { (was.uid, was.gid) };
            Ok(Make::Metadata(Box::new((Look { mode, uid, gid, ..be }, was))))
        }
        _ => Ok(Make::Object(tree)),
    }
}

fn look_of(dir: &OwnedFd, name: &OsStr, meta: &Meta, shown: &Path) -> Result<Look, Error> {
    let place = object::place(dir.as_fd(), name).map_err(Error::os("open", shown))?;
    let attributes = object::attributes(&place)
        .map_err(Error::os("read the attributes of", shown))?
        .into_iter()
        .map(|(name, value)| (Attribute::new(name), value))
        .collect();
    Ok(Look {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: Some(meta.mtime),
        attributes: Some(attributes),
    })
}

fn some_hunks(review: &Review, item: &Item, numbers: &[usize]) -> Result<(Make, bool), Error> {
    let shown = crate::shown(&review.absolute(item));
    let refuse = |why: &str| Err(Error::Refused(format!("{shown}: {why}")));
    let Some((new, tree)) = item.change.new.filter(|(m, _)| m.kind == Kind::File) else {
        return refuse("only changes of a text have hunks");
    };
    if !matches!(item.verdict, Verdict::Take) {
        return refuse("changed on the host too: apply it as a whole");
    }
    let (Some(before), Some(after)) = review.texts(item)? else {
        return refuse("only changes of a text have hunks");
    };
    match text::take(&before, &after, numbers) {
        Ok(text) if text == after => Ok((Make::Object(tree), false)),
        Ok(text) => {
            let mode = item.change.old.map_or(new.mode, |m| m.mode) & !STRIPPED;
            Ok((Make::Text(text, mode, tree), true))
        }
        Err((bad, n)) => refuse(&format!("there is no hunk {bad}, it has {n}")),
    }
}

/// Something to make before anything is seen: for which step, and where in what it makes.
struct Build {
    op: usize,
    /// Relative to the step's own object; empty for that object.
    inside: PathBuf,
    make: usize,
}

/// Steps in an order in which none is in the way of another.
fn order(review: &Review, makes: &[(usize, Make, bool)]) -> Result<(Vec<Op>, Vec<Build>), Error> {
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
fn prepare(
    review: &Review,
    makes: &[(usize, Make, bool)],
    builds: &[Build],
    plan: &mut Plan,
    report: &mut Report,
) -> Result<(), Error> {
    let mut links: Vec<Links> = Vec::new();
    for (trees, walked) in review.trees.iter().zip(&review.walks) {
        let mut known = Links::new(trees.host.try_clone().map_err(Error::io("open", &trees.root))?);
        // A file that the layer only gave a further name to is linked, not copied.
        for held in walked.held.iter().filter(|h| h.change.is_none()) {
            if let Some((meta, _)) = held.new
                && meta.nlink > 1
                && walked.links.get(&(meta.dev, meta.ino)).is_some_and(|l| l.len() > 1)
            {
                let (dir, name) = trees.host_parent(&held.path)?;
                let key = (meta.dev, meta.ino);
                known
                    .remember(key, dir.as_fd(), name, held.path.clone())
                    .map_err(copied(&trees.root.join(&held.path)))?;
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

fn how(progress: &mut dyn FnMut(u64) -> Result<(), Errno>, directory: bool) -> How<'_> {
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

fn copied(shown: &Path) -> impl FnOnce(copy::Error) -> Error {
    let path = shown.to_owned();
    move |e| match e.errno() {
        Some(errno) => Error::Os { what: "copy", path, errno },
        None => Error::Refused(format!("{}: {e}", crate::shown(&path))),
    }
}

fn write_text(
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

/// Objects up to which each is synced by itself; beyond, their file systems are, with all that others
/// write there.
const FEW: usize = 32;

/// What was made or renamed under these names is on the disk afterwards.
fn sync(trees: &[Trees], names: &[(usize, PathBuf)]) -> Result<(), Error> {
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
fn touched(plan: &Plan) -> Vec<(usize, PathBuf)> {
    plan.ops.iter().map(|op| (op.place.root, op.place.path.clone())).collect()
}

/// Puts everything in its place.
fn commit(trees: &[Trees], plan: &Plan, report: &mut Report, again: bool) -> Result<(), Error> {
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
fn parent<'o>(trees: &Trees, op: &'o Op) -> Result<Option<(OwnedFd, &'o OsStr)>, Error> {
    match trees.host_parent(&op.place.path) {
        Ok(found) => Ok(Some(found)),
        Err(Error::Os { errno: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn forward(
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
        (Some(now), Some(old)) => now.untouched(old),
        (None, None) => true,
        _ => false,
    };
    // A mode that was half set before a kill has a new time already. And what was linked to has one.
    let linked = now.zip(op.old).is_some_and(|(now, old)| now.nlink != old.nlink);
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

/// Whether what was moved aside is what was looked at: nobody wrote to it in the last moment.
fn same_aside(trees: &Trees, dir: &OwnedFd, op: &Op, plan: &Plan) -> Result<bool, Errno> {
    let Some(old) = &op.old else { return Ok(true) };
    let Some(now) = object::look(dir.as_fd(), op.temporary.as_ref())? else { return Ok(false) };
    if (now.dev, now.ino) != (old.dev, old.ino) {
        return Ok(false);
    }
    if !old.is_dir() {
        return Ok(now.mtime == old.mtime && now.size == old.size);
    }
    let aside = op.place.path.with_file_name(&op.temporary);
    let below = review::changed_below(trees, &aside, plan.started);
    Ok(now.mtime == old.mtime && matches!(below, Ok(None)))
}

fn give(place: &OwnedFd, look: &Look) -> Result<(), Errno> {
    let path = copy::through_proc(place);
    let stat = rustix::fs::fstat(place)?;
    if (stat.st_uid, stat.st_gid) != (look.uid, look.gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(look.uid), rustix::fs::Gid::from_raw(look.gid));
        rustix::fs::chownat(place, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    if let Some(wanted) = &look.attributes {
        for (name, _) in object::attributes(place)? {
            if !wanted.iter().any(|(w, _)| w.name() == name) {
                rustix::fs::removexattr(&path, &name)?;
            }
        }
        for (name, value) in wanted {
            rustix::fs::setxattr(&path, name.name(), value, XattrFlags::empty())?;
        }
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(look.mode), AtFlags::empty())?;
    }
    if let Some(Stamp(seconds, nanos)) = look.mtime {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(0, rustix::fs::UTIME_OMIT),
            last_modification: time(seconds, nanos.into()),
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    }
    Ok(())
}

fn backward(trees: &[Trees], op: &Op, report: &mut Report) -> Result<(), Error> {
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
fn sweep(trees: &[Trees], plan: &Plan, old: bool) -> Result<(), Error> {
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

/// After everything is in place.
fn finish(
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
    journal.end(&held.layer)?;
    crash::point();
    let review = review::review(&held.layer, None, &[])?;
    forget_if_empty(store, held, &review)
}

/// A layer that changes nothing any more begins anew: its deltas would only hide what the host does
/// from now on.
fn forget_if_empty(store: &Store, held: &mut Held, review: &Review) -> Result<(), Error> {
    if !review.items.is_empty() {
        return Ok(());
    }
    let lock = store.lock()?;
    let mut record = held.layer.record.clone();
    record.stack.clear();
    record.open = None;
    held.save(record)?;
    store.collect(&lock)
}

/// The layer's changes are the host's now: they leave the open delta; where they must stay (a sealed
/// delta has them too), it is noted that they are dealt with.
fn forget(layer: &Layer, trees: &[Trees], plan: &Plan) -> Result<(), Error> {
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
fn top_object(trees: &Trees, path: &Path) -> Result<Option<(u64, Stamp)>, Error> {
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
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(Error::os("remove", shown)(errno)),
    }
    match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(errno) => Err(Error::os("remove", shown)(errno)),
    }
}

/// Throws changes away that lie in the open delta; the rest of the layer stays.
pub fn discard(store: &Store, name: &str, places: &[Place]) -> Result<Vec<Place>, Error> {
    let mut held = store.hold(name)?;
    if held.layer.unfinished() {
        return Err(Error::Unfinished(name.to_owned()));
    }
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

fn sealed(name: &str) -> Error {
    Error::Refused(format!(
        "that lies in a sealed delta of layer {name} (a snapshot or checkpoint): restore an earlier one, or discard the layer"
    ))
}
