//! What a walk for rules of names would find, out of the index of a tree: as much work as there are
//! answers, not as there are files.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io::Result;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ringfence_layers::index::{Covering, Seen};
use ringfence_layers::mask::Cover;
use ringfence_layers::names::{Like, Named, Names};
use ringfence_policy::{ANY_NAME, CompiledRules, GlobRule, Mark, Permission};
use rustix::fs::FileType;

use super::fd;
use super::walk::{Found, MAX_DEPTH, RepositoryHint, Shape, Statistics, Walk, is_ref, to_path};
use crate::names::{HIDDEN, LISTED};

/// Names below directories that rules single out; where there are more, a walk is as quick.
const MOST_BELOW: usize = 20_000;
/// How `.git` may be spelled: as in a walk, case does not count.
const DOT_GIT: [&[u8]; 8] =
    [b".git", b".giT", b".gIt", b".gIT", b".Git", b".GiT", b".GIt", b".GIT"];

/// `None` where the index does not answer: rules that names alone do not say, an index that is damaged
/// or does not fit what is there, hard links of what is covered. Then a walk does.
pub fn indexed(
    rules: &CompiledRules<'_>,
    index: &Names,
    tree: BorrowedFd<'_>,
    shown: &Path,
) -> Option<Walk> {
    let marks = rules.marks(shown)?;
    if index.depth() > MAX_DEPTH as u64 || !plain_where_unmarked(rules, shown, index.depth()) {
        return None;
    }
    let mut looked = Looked {
        covering: Covering::new(rules, shown),
        index,
        closed: HashSet::new(),
        below: 0,
        covered: Vec::new(),
    };
    for named in index.candidates(marks.iter().map(like)).ok()? {
        looked.candidate(named).ok()?;
        if looked.below > MOST_BELOW {
            return None;
        }
    }
    let covered = looked.covered.iter().filter(|(named, _)| named.is_dir());
    let hidden: HashSet<&[u8]> = covered.map(|(named, _)| &*named.path).collect();
    let repositories = repositories(index, &hidden).ok()?;
    let covers = looked.covered.iter().map(|(named, cover)| {
        found(tree, named, if *cover == Cover::Hidden { HIDDEN } else { LISTED })
    });
    Some(answer(index, covers.collect::<Option<_>>()?, repositories))
}

/// As [`indexed`], for patterns: which of them names what, and nothing ends a walk.
pub fn indexed_patterns(
    globs: &[GlobRule<'_>],
    index: &Names,
    tree: BorrowedFd<'_>,
    shown: &Path,
) -> Option<Walk> {
    let mut marks = BTreeSet::new();
    for glob in globs {
        marks.append(&mut glob.marks(shown)?);
    }
    if index.depth() > MAX_DEPTH as u64 {
        return None;
    }
    let mut matches = Vec::new();
    let mut look = |named: &Named| -> Option<()> {
        let path = shown.join(OsStr::from_bytes(&named.path));
        if let Some(rule) = globs.iter().position(|glob| glob.matches(&path)) {
            matches.push(found(tree, named, rule as u32)?);
        }
        Some(())
    };
    let mut seen = 0;
    for named in index.candidates(marks.iter().map(like)).ok()? {
        look(&named)?;
        if named.is_dir() {
            let below = index.below(&named.path).ok()?;
            seen += below.len();
            if seen > MOST_BELOW {
                return None;
            }
            below.iter().try_for_each(&mut look)?;
        }
    }
    let repositories = repositories(index, &HashSet::new()).ok()?;
    Some(answer(index, matches, repositories))
}

fn like(mark: &Mark) -> Like<'_> {
    match mark {
        Mark::Exactly(name) => Like::Exactly(name),
        Mark::Starts(start) => Like::Starts(start),
        Mark::Ends(end) => Like::Ends(end),
    }
}

fn answer(index: &Names, mut matches: Vec<Found>, repositories: Vec<RepositoryHint>) -> Walk {
    matches.sort_unstable();
    matches.dedup();
    let directories = index.directories() + 1;
    let statistics = Statistics { directories, threads: 1, ..Statistics::default() };
    Walk { matches, repositories, statistics, ..Walk::default() }
}

/// Whether a path of which no name is marked is seen as it is, at every depth.
fn plain_where_unmarked(rules: &CompiledRules<'_>, shown: &Path, depth: u64) -> bool {
    let mut path = shown.to_owned();
    (0..depth).all(|_| {
        path.push(ANY_NAME);
        rules.decide(&path).permission > Permission::View
    })
}

struct Looked<'a> {
    covering: Covering<'a>,
    index: &'a Names,
    /// Directories of which everything below is known.
    closed: HashSet<Vec<u8>>,
    /// Names that were looked at below marked ones.
    below: usize,
    covered: Vec<(Named, Cover)>,
}

impl Looked<'_> {
    fn is_closed(&self, path: &[u8]) -> bool {
        above(path).any(|directory| self.closed.contains(directory))
    }

    /// A marked name: what it is, and what lies below it, has to be asked name by name. Parents come
    /// before what lies in them.
    fn candidate(&mut self, named: Named) -> Result<()> {
        if self.is_closed(&named.path) {
            return Ok(());
        }
        let is_dir = named.is_dir();
        let below = match self.covering.seen(&named.path, is_dir) {
            Seen::Plain if is_dir => self.index.below(&named.path)?,
            Seen::Covered(cover) => {
                self.covered.push((named.clone(), cover));
                Vec::new()
            }
            Seen::Plain => Vec::new(),
        };
        self.below += below.len();
        let mut hidden: HashSet<Vec<u8>> = HashSet::new();
        for inner in below {
            if above(&inner.path).any(|directory| hidden.contains(directory)) {
                continue;
            }
            if let Seen::Covered(cover) = self.covering.seen(&inner.path, inner.is_dir()) {
                if inner.is_dir() {
                    hidden.insert(inner.path.clone());
                }
                self.covered.push((inner, cover));
            }
        }
        if is_dir {
            self.closed.insert(named.path);
        }
        Ok(())
    }
}

/// Directories that git may take for a repository, where a walk would come to: not below hidden ones.
fn repositories(index: &Names, hidden: &HashSet<&[u8]>) -> Result<Vec<RepositoryHint>> {
    let reached = |path: &[u8]| !above(path).any(|directory| hidden.contains(directory));
    let mut hints = Vec::new();
    let dot_git = index.candidates(DOT_GIT.map(Like::Exactly))?;
    for named in dot_git.iter().filter(|named| reached(&named.path)) {
        hints.push(RepositoryHint::new(parent(&named.path).to_vec(), Shape::DotGit));
    }
    for named in index.like(Like::Exactly(b"HEAD"))? {
        let directory = parent(&named.path);
        let name = directory.rsplit(|b| *b == b'/').next();
        if named.is_dir() || name == Some(b".git") || !reached(&named.path) {
            continue;
        }
        let holds = |name: &str| {
            let path = match directory {
                b"" => name.as_bytes().to_vec(),
                _ => [directory, b"/", name.as_bytes()].concat(),
            };
            let kind = index.get(&path).map(|found| found.map(|found| found.kind));
            Ok::<_, std::io::Error>(matches!(kind?, Some(FileType::Directory | FileType::Symlink)))
        };
        if holds("objects")? && holds("refs")? {
            hints.push(RepositoryHint::new(directory.to_vec(), Shape::Bare));
        }
    }
    hints.sort_unstable();
    hints.dedup();
    Ok(hints)
}

/// Directories above a relative path, but for the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |cut| &path[..cut])
}

/// What is covered, as it is there. Of hard links the other names have to be found, which takes a walk.
fn found(tree: BorrowedFd<'_>, named: &Named, rule: u32) -> Option<Found> {
    let place = fd::open_beneath(tree, &named.path, fd::PLACE).ok()?;
    let stat = rustix::fs::fstat(&place).ok()?;
    let is_dir = named.is_dir();
    if fd::kind(&stat) != named.kind || !is_dir && fd::links(&stat) > 1 {
        return None;
    }
    let (dev, ino) = fd::id(&stat);
    Some(Found {
        path: to_path(&named.path),
        rule,
        is_dir,
        is_symlink: named.kind == FileType::Symlink,
        is_ref: is_ref(parent(&named.path)),
        nlink: 1,
        ino,
        dev,
        aliases: Vec::new(),
        unseen: 0,
    })
}
