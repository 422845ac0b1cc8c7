//! Brings changes of a layer to the host, all of what was asked for or, after a kill, as much as can be
//! taken up or taken back. `journal` has the states.

mod forget;
mod prepare;
mod steps;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

pub use forget::discard;
use forget::{finish, forget_if_empty};
use prepare::{order, prepare};
use steps::{backward, commit, sweep, sync, touched};

use crate::base::{Bases, Was};
use crate::delta::{ChangeKind, Trees};
use crate::journal::{Act, Attribute, Journal, Look, Op, Place, Plan, Request, State, Time};
use crate::object::{self, Kind, Meta};
use crate::review::{self, Item, Judge, Review, STRIPPED, Verdict, selects};
use crate::{Error, Held, Layer, Stamp, Store, crash, text};

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
    held.mend()?;
    // Other layers have the same tree below them, and its index would no longer be true.
    let codebases = store.codebases();
    if let Some(root) = held.layer.record.roots.iter().find(|r| r.path.starts_with(&codebases)) {
        return Err(Error::Refused(format!(
            "layer {name} lies over a codebase ({}), which no apply changes: take what it changed by \
             `ringfence export {name} FILE.tar.zst` or `ringfence diff {name} --patch`",
            crate::shown(&root.path)
        )));
    }
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
            steps::directories_as_before(&trees, &plan)?;
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
            steps::directories_as_before(&trees, &plan)?;
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
    if plan.state == State::Clean {
        return Err(Error::Refused(format!(
            "the apply was complete but for its tidying: `ringfence apply {name} --resume`"
        )));
    }
    let trees = open(&held.layer)?;
    take_back(&held.layer, &trees, journal, &mut plan, &mut report)?;
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
    let started = held.moment()?;
    let review = review::review(&held.layer, context.judge, context.search)?;
    let Chosen { makes, mut report } = choose(&review, request)?;
    (context.tell)(&report);
    let mut times = directory_times(&held.layer, &review, request, &makes, &report)?;
    if makes.is_empty() && times.is_empty() {
        forget_if_empty(store, held, &review)?;
        return Ok(report);
    }
    let (ops, builds) = order(&review, &makes)?;
    let opened = touched_directories(&review, &ops, &mut times)?;
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
        times,
        opened,
    };
    let journal = Journal::begin(&held.layer, &plan)?;
    crash::point();
    let prepared = steps::open_directories(&review.trees, &mut plan)
        .and_then(|()| prepare(&review, &makes, &builds, &mut plan, &mut report));
    if let Err(e) = prepared {
        // Nothing is in place: as if it had not been asked for.
        sweep(&review.trees, &plan, false)?;
        steps::directories_as_before(&review.trees, &plan)?;
        journal.end(&held.layer)?;
        return Err(e);
    }
    crash::point();
    plan.state = State::Commit;
    journal.write(&plan)?;
    crash::point();
    if let Err(e) = commit(&review.trees, &plan, &mut report, false) {
        // As far as it came it is taken back; if that fails too, the journal still knows.
        take_back(&held.layer, &review.trees, journal, &mut plan, &mut Report::default())?;
        return Err(e);
    }
    finish(store, held, &review.trees, journal, &mut plan, &mut report)?;
    Ok(report)
}

/// When all of a layer is applied: directories that both sides have, whose times the layer changed, be it
/// by what was made in them. Not of those that the host changed too, or that keep something back.
fn directory_times(
    layer: &Layer,
    review: &Review,
    request: &Request,
    makes: &[(usize, Make, bool)],
    report: &Report,
) -> Result<Vec<Time>, Error> {
    let mut times = Vec::new();
    if !(request.paths.is_empty() && request.hunks.is_empty()) {
        return Ok(times);
    }
    let bases = Bases::load(layer)?;
    for (root, (trees, walked)) in review.trees.iter().zip(&review.walks).enumerate() {
        let kept = |dir: &Path| {
            let dir = trees.root.join(dir);
            report.conflicts.iter().chain(&report.refused).any(|l| l.path.parent() == Some(&dir))
        };
        for held in &walked.held {
            let (Some((new, _)), Some(old)) = (held.new, held.old) else { continue };
            let was = bases.of(root, &held.path).map(|b| &b.was);
            let unchanged =
                matches!(was, Some(Was::Object(known)) if known.meta.mtime == old.mtime);
            let both = new.is_dir() && old.is_dir() && new.mtime != old.mtime;
            if both && unchanged && !held.path.as_os_str().is_empty() && !kept(&held.path) {
                let place = Place::new(root, &held.path);
                times.push(Time { place, was: old.mtime, be: Some(new.mtime) });
            }
        }
        // The root of a delta is as old as the delta, if nothing was made in it.
        let made = makes.iter().any(|(item, ..)| {
            let item = &review.items[*item];
            item.root == root && item.change.path.parent() == Some(Path::new(""))
        });
        if made && !kept(Path::new("")) {
            let be = Some(time_of(&trees.trees[0].1, &trees.trees[0].0)?);
            let was = time_of(&trees.host, &trees.root)?;
            times.push(Time { place: Place::new(root, ""), was, be });
        }
    }
    Ok(times)
}

fn time_of(dir: &OwnedFd, shown: &Path) -> Result<Stamp, Error> {
    rustix::fs::fstat(dir).map(|s| Meta::of(&s).mtime).map_err(Error::os("look at", shown))
}

/// Of all directories in which steps are done, the times that they have before. Answers those that must
/// be opened for it.
fn touched_directories(
    review: &Review,
    ops: &[Op],
    times: &mut Vec<Time>,
) -> Result<Vec<(Place, u32)>, Error> {
    let mut known: BTreeSet<Place> = times.iter().map(|t| t.place.clone()).collect();
    let (mut seen, mut opened) = (BTreeSet::new(), Vec::new());
    let me = rustix::process::geteuid();
    for op in ops.iter().filter(|op| op.act != Act::Metadata) {
        let parent = op.place.path.parent().unwrap_or(Path::new(""));
        let place = Place::new(op.place.root, parent);
        if !seen.insert(place.clone()) {
            continue;
        }
        let trees = &review.trees[op.place.root];
        let shown = trees.root.join(parent);
        let dir = object::open_directory(trees.host.as_fd(), parent.as_os_str(), false)
            .map_err(Error::os("open", &shown))?;
        let stat = rustix::fs::fstat(&dir).map_err(Error::os("look at", &shown))?;
        let meta = Meta::of(&stat);
        if known.insert(place.clone()) {
            times.push(Time { place: place.clone(), was: meta.mtime, be: None });
        }
        if meta.mode & 0o300 != 0o300 && !me.is_root() && meta.uid == me.as_raw() {
            opened.push((place, meta.mode));
        }
    }
    Ok(opened)
}

/// Undoes the steps that were done, and removes what was made.
fn take_back(
    layer: &Layer,
    trees: &[Trees],
    journal: Journal,
    plan: &mut Plan,
    report: &mut Report,
) -> Result<(), Error> {
    if plan.state == State::Commit {
        for op in plan.ops.iter().rev() {
            backward(trees, op, report)?;
            crash::point();
        }
        sync(trees, &touched(plan))?;
        plan.state = State::Undone;
        journal.write(plan)?;
        crash::point();
    }
    sweep(trees, plan, false)?;
    steps::directories_as_before(trees, plan)?;
    journal.end(layer)
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
        let replaced = matches!(make, Make::Object(_) | Make::Text(..));
        let me = rustix::process::geteuid();
        if let Some(old) = item.change.old.filter(|m| replaced && m.uid != me.as_raw())
            && !me.is_root()
        {
            let text = format!("belonged to user {}, and belongs to you afterwards", old.uid);
            report.notes.push(line(review, item, text));
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
        // In the layer its names came apart, so they do here: the others keep what they have.
        (_, Some(old)) if !old.is_dir() && old.nlink > 1 => Ok(Make::Object(tree)),
        (_, Some(old)) if change.kind == ChangeKind::Metadata || (new.is_dir() && old.is_dir()) => {
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
