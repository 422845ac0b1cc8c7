//! A tree of files in memory, and what each operation on it should come to.
//!
//! No kernel is asked. [`View`] says through whose eyes the tree is seen: the host's, or a
//! sandbox's with its law and the deviations that its mechanism documents.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::law::{Law, Permission};
use crate::ops::{At, How, Op, Reply, SLOTS, Seen, Type, shown};

pub type Node = usize;
pub type Name = Vec<u8>;

/// Why an operation failed, as far as it matters: a set, one bit for each.
pub type Errors = u32;
pub const NO_ENTRY: Errors = 1;
/// EACCES, EPERM, EROFS.
pub const DENIED: Errors = 2;
pub const EXISTS: Errors = 4;
pub const NOT_EMPTY: Errors = 8;
pub const NOT_DIRECTORY: Errors = 16;
pub const IS_DIRECTORY: Errors = 32;
pub const INVALID: Errors = 64;
pub const LOOP: Errors = 128;
pub const TOO_LONG: Errors = 256;
/// EXDEV: another mount, or a directory that a layer cannot move.
pub const ACROSS: Errors = 512;
/// EBUSY: something is mounted here.
pub const BUSY: Errors = 1024;
/// Nobody reads that pipe.
pub const NO_READER: Errors = 2048;
pub const NO_SLOT: Errors = 4096;
/// EOPNOTSUPP.
pub const UNSUPPORTED: Errors = 8192;
/// ESTALE: of an overlay only.
pub const STALE: Errors = 16384;
const ANYTHING: Errors = !0;

pub fn class(code: i32) -> Errors {
    use rustix::io::Errno as E;
    match E::from_raw_os_error(code) {
        E::NOENT => NO_ENTRY,
        E::ACCESS | E::PERM | E::ROFS => DENIED,
        E::EXIST => EXISTS,
        E::NOTEMPTY => NOT_EMPTY,
        E::NOTDIR => NOT_DIRECTORY,
        E::ISDIR => IS_DIRECTORY,
        E::INVAL => INVALID,
        E::LOOP => LOOP,
        E::NAMETOOLONG => TOO_LONG,
        E::XDEV => ACROSS,
        E::BUSY => BUSY,
        E::NXIO => NO_READER,
        E::BADF => NO_SLOT,
        E::OPNOTSUPP => UNSUPPORTED,
        E::STALE => STALE,
        _ => 1 << 31,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    File(Vec<u8>),
    Directory(BTreeMap<Name, Node>),
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
pub struct Inode {
    pub what: What,
    pub mode: u16,
    /// Set by an operation and not touched since.
    pub seconds: Option<i64>,
    pub attribute: Option<Vec<u8>>,
    /// Of a directory.
    parent: Node,
    /// A directory that was there before the layer.
    pub below: bool,
    /// A file from below the layer that got another name in this run: an overlay has an inode for
    /// each, and of a change of mode by one name the others may not know.
    twin: bool,
}

impl Inode {
    pub fn kind(&self) -> Type {
        match self.what {
            What::File(_) => Type::File,
            What::Directory(_) => Type::Directory,
            What::Symlink(_) => Type::Symlink,
            What::Fifo => Type::Fifo,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Tree {
    pub nodes: Vec<Inode>,
}

pub const ROOT: Node = 0;

/// A path from the workspace, as names.
pub type Names = Vec<Name>;

pub fn joined(names: &[Name]) -> Vec<u8> {
    names.join(&b'/')
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.add(What::Directory(BTreeMap::new()), ROOT);
        tree
    }
}

impl Tree {
    fn add(&mut self, what: What, parent: Node) -> Node {
        let mode = if matches!(what, What::Directory(_)) { 0o755 } else { 0o644 };
        let inode =
            Inode { what, mode, seconds: None, attribute: None, parent, below: false, twin: false };
        self.nodes.push(inode);
        self.nodes.len() - 1
    }

    pub fn entries(&self, node: Node) -> Option<&BTreeMap<Name, Node>> {
        match &self.nodes[node].what {
            What::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self, node: Node) -> &mut BTreeMap<Name, Node> {
        match &mut self.nodes[node].what {
            What::Directory(entries) => entries,
            other => panic!("{other:?} has no entries"),
        }
    }

    pub fn make(&mut self, directory: Node, name: &[u8], what: What) -> Node {
        let node = self.add(what, directory);
        self.entries_mut(directory).insert(name.to_vec(), node);
        node
    }

    pub fn link(&mut self, directory: Node, name: &[u8], node: Node) {
        self.entries_mut(directory).insert(name.to_vec(), node);
        if self.entries(node).is_some() {
            self.nodes[node].parent = directory;
        }
    }

    pub fn unlink(&mut self, directory: Node, name: &[u8]) {
        self.entries_mut(directory).remove(name);
    }

    /// Where a directory lies now; `None` when it was removed.
    pub fn path_of(&self, mut directory: Node) -> Option<Names> {
        let mut names = Vec::new();
        while directory != ROOT {
            let parent = self.nodes[directory].parent;
            let (name, _) = self.entries(parent)?.iter().find(|(_, n)| **n == directory)?;
            names.push(name.clone());
            directory = parent;
        }
        names.reverse();
        Some(names)
    }

    /// Every name, directories before what is in them.
    pub fn all(&self) -> Vec<(Names, Node)> {
        let mut out = Vec::new();
        self.below(ROOT, &mut Vec::new(), &mut out);
        out
    }

    fn below(&self, directory: Node, path: &mut Names, out: &mut Vec<(Names, Node)>) {
        for (name, node) in self.entries(directory).into_iter().flatten() {
            path.push(name.clone());
            out.push((path.clone(), *node));
            self.below(*node, path, out);
            path.pop();
        }
    }

    fn is_inside(&self, mut node: Node, directory: Node) -> bool {
        loop {
            if node == directory {
                return true;
            }
            if node == ROOT || self.entries(node).is_none() {
                return false;
            }
            node = self.nodes[node].parent;
        }
    }

    /// As a layer sees it at its start: what is changed by one name of a file is not changed by the
    /// others, since each is copied by itself.
    pub fn as_lower(&self) -> Self {
        let mut copy = self.clone();
        let mut seen = BTreeSet::new();
        for inode in &mut copy.nodes {
            inode.below = true;
        }
        for (path, node) in self.all() {
            if self.entries(node).is_none() && !seen.insert(node) {
                let (name, above) = path.split_last().unwrap();
                let own = copy.nodes[node].clone();
                copy.nodes.push(own);
                let new = copy.nodes.len() - 1;
                let parent = copy.at(above).unwrap();
                copy.entries_mut(parent).insert(name.clone(), new);
            }
        }
        copy
    }

    pub fn at(&self, path: &[Name]) -> Option<Node> {
        path.iter().try_fold(ROOT, |node, name| self.entries(node)?.get(name).copied())
    }
}

/// How a hidden name shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Not at all.
    Absent,
    /// Listed, without any right.
    Masked,
}

/// Through whose eyes.
#[derive(Debug)]
pub struct View<'a> {
    /// `None`: everything may be done.
    pub law: Option<&'a Law>,
    pub hidden: Hidden,
    /// What is mounted inside: cannot be moved, and nothing moves or is linked across.
    pub mounts: BTreeSet<Names>,
    /// Modes bind (nobody is root inside).
    pub modes: bool,
    /// Directories from below the layer cannot be moved.
    pub layer: bool,
    /// A grant inside what is not `write` may hold for what was there at the start only.
    pub closed: bool,
    /// Some rule caps at `read`, which is a mount where the name exists.
    sealed: bool,
    /// Mounts say that they are read-only before anything is looked for.
    pub early: bool,
    decided: RefCell<HashMap<Names, Permission>>,
}

impl<'a> View<'a> {
    pub fn of_host(is_root: bool) -> Self {
        Self {
            law: None,
            hidden: Hidden::Absent,
            mounts: BTreeSet::new(),
            modes: !is_root,
            layer: false,
            early: false,
            closed: false,
            sealed: false,
            decided: RefCell::default(),
        }
    }

    pub fn of_sandbox(law: &'a Law, hidden: Hidden, mounts: BTreeSet<Names>, layer: bool) -> Self {
        let early = layer || hidden == Hidden::Masked;
        Self {
            law: Some(law),
            closed: layer,
            sealed: law.seals(),
            hidden,
            mounts,
            modes: true,
            layer,
            early,
            decided: RefCell::default(),
        }
    }

    pub fn permission(&self, path: &[Name]) -> Permission {
        let Some(law) = self.law else { return Permission::Write };
        if let Some(known) = self.decided.borrow().get(path) {
            return *known;
        }
        let bytes =
            if path.is_empty() { b".".to_vec() } else { [b"./", &joined(path)[..]].concat() };
        let decided = law.decide(Path::new(OsStr::from_bytes(&bytes)));
        self.decided.borrow_mut().insert(path.to_vec(), decided);
        decided
    }

    /// As it shows: of a pipe in an exact view, without what its permission does not allow.
    fn mode(&self, path: &[Name], inode: &Inode) -> u16 {
        let exact = self.law.is_some() && !self.early;
        let withheld = match self.permission(path) {
            _ if !exact || inode.what != What::Fifo => 0,
            Permission::None | Permission::View => 0o777,
            Permission::Read => 0o333,
            Permission::Write => 0,
        };
        inode.mode & !withheld
    }

    /// Whether the name may be made, removed and moved.
    fn may_name(&self, path: &[Name]) -> bool {
        let above = &path[..path.len().saturating_sub(1)];
        self.permission(path) == Permission::Write
            && (self.hidden == Hidden::Absent || self.permission(above) == Permission::Write)
    }

    fn mount(&self, path: &[Name]) -> Option<&[Name]> {
        (0..=path.len())
            .rev()
            .map(|n| &path[..n])
            .find(|p| self.mounts.contains(*p))
            .and_then(|p| self.mounts.get(p).map(Vec::as_slice))
    }
}

/// Where a path leads.
#[derive(Clone, Debug)]
struct Place {
    directory: Node,
    path: Names,
    node: Option<Node>,
}

impl Place {
    fn name(&self) -> &[u8] {
        self.path.last().map_or(b"", Vec::as_slice)
    }

    fn above(&self) -> &[Name] {
        &self.path[..self.path.len().saturating_sub(1)]
    }
}

/// What may come of an operation.
#[derive(Debug)]
pub struct Expected {
    /// If not empty it must fail, with one of these.
    pub fails: Errors,
    /// It may fail with these instead of succeeding.
    pub may: Errors,
    reply: Wanted,
    effect: Effect,
}

#[derive(Debug)]
enum Wanted {
    Done,
    Bytes(Vec<u8>),
    Names(Vec<(Vec<u8>, Type)>),
    Stat { kind: Type, size: Option<u64>, mode: Option<u16>, seconds: Option<i64> },
    Anything,
}

#[derive(Debug)]
enum Effect {
    Nothing,
    Content(Node, Vec<u8>),
    Make(Node, Name, What),
    Link(Node, Name, Node),
    Remove(Node, Name),
    Move { from: (Node, Name), to: (Node, Name), node: Node },
    Exchange { from: (Node, Name, Node), to: (Node, Name, Node) },
    Mode(Node, u16),
    Seconds(Node, i64),
    Attribute(Node, Vec<u8>),
    Slot(u8, Node),
}

fn fails(errors: Errors) -> Expected {
    Expected { fails: errors, may: 0, reply: Wanted::Anything, effect: Effect::Nothing }
}

/// A tree and the directories that somebody holds open in it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub tree: Tree,
    pub slots: [Option<Node>; SLOTS],
    /// Held directories that the host moved: what they lead to now is not promised.
    pub lost: [bool; SLOTS],
}

const MOST_LINKS: usize = 40;
const LONGEST_NAME: usize = 255;

impl Model {
    fn walk(&self, view: &View<'_>, at: &At, follow: bool) -> Result<Place, Errors> {
        let tree = &self.tree;
        let mut directory = match at.slot {
            None => ROOT,
            Some(slot) => self.slots[slot as usize % SLOTS].ok_or(NO_SLOT)?,
        };
        // What can be done in a removed directory is the kernel's matter, and changes nothing.
        let mut path = tree.path_of(directory).ok_or(ANYTHING)?;
        let split = |bytes: &[u8]| -> Vec<Name> {
            bytes
                .split(|b| *b == b'/')
                .filter(|n| !n.is_empty() && *n != b".")
                .map(<[u8]>::to_vec)
                .collect()
        };
        let mut names: VecDeque<Name> = split(&at.path).into();
        let mut links = 0;
        let here = |directory: Node, path: Names| Place {
            directory: tree.nodes[directory].parent,
            path,
            node: Some(directory),
        };
        loop {
            let Some(name) = names.pop_front() else { return Ok(here(directory, path)) };
            if name == b".." {
                if path.pop().is_none() {
                    return Err(ANYTHING);
                }
                directory = tree.nodes[directory].parent;
                continue;
            }
            let last = names.is_empty();
            if name.len() > LONGEST_NAME {
                path.push(name);
                let sealed = last && view.early && !view.may_name(&path);
                return Err(if sealed { TOO_LONG | DENIED } else { TOO_LONG });
            }
            let entry = tree.entries(directory).and_then(|e| e.get(&name)).copied();
            path.push(name);
            let hidden = view.permission(&path) == Permission::None;
            let node = match view.hidden {
                Hidden::Absent if hidden => None,
                Hidden::Masked if hidden && entry.is_some() && !last => {
                    return Err(DENIED | NOT_DIRECTORY);
                }
                _ => entry,
            };
            let what = node.map(|n| &tree.nodes[n].what);
            match what {
                Some(What::Symlink(target)) if follow || !last => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(LOOP);
                    }
                    path.pop();
                    for name in split(target).into_iter().rev() {
                        names.push_front(name);
                    }
                }
                _ if last => return Ok(Place { directory, path, node }),
                Some(What::Directory(_)) => directory = node.unwrap_or(ROOT),
                Some(_) => return Err(NOT_DIRECTORY),
                None => return Err(NO_ENTRY),
            }
        }
    }

    /// What an operation should come to.
    pub fn expect(&self, view: &View<'_>, op: &Op) -> Expected {
        let mut expected = self.try_expect(view, op).unwrap_or_else(|errors| {
            let mut expected = fails(errors);
            if errors == ANYTHING {
                (expected.fails, expected.may) = (0, ANYTHING);
            }
            expected
        });
        if let Op::Write { at, .. }
        | Op::Append { at, .. }
        | Op::Truncate { at, .. }
        | Op::Read { at }
        | Op::Attribute { at, .. } = op
            && let Ok(Place { node: Some(node), .. }) = self.walk(view, at, true)
            && self.tree.nodes[node].twin
        {
            expected.may |= DENIED;
        }
        // What exists and may only be read is a mount.
        if view.closed && expected.fails & DENIED != 0 {
            expected.may |= BUSY | ACROSS;
        }
        if view.closed && view.sealed && op.places().len() > 1 {
            expected.may |= BUSY | ACROSS;
        }
        if view.closed && op.places().into_iter().any(|at| self.is_closed(view, at)) {
            expected.may |= DENIED;
            // That is a mount, and so a name cannot leave it.
            if op.places().len() > 1 {
                expected.may |= BUSY | ACROSS;
            }
        }
        expected
    }

    /// Whether what is around a name is not `write`.
    fn is_closed(&self, view: &View<'_>, at: &At) -> bool {
        [true, false].into_iter().filter_map(|follow| self.walk(view, at, follow).ok()).any(
            |place| {
                (0..place.path.len()).any(|n| view.permission(&place.path[..n]) < Permission::Write)
            },
        )
    }

    /// Whether the mode refuses these bits; of a twin it may or may not.
    fn refuses(&self, view: &View<'_>, node: Node, bits: u16) -> bool {
        let inode = &self.tree.nodes[node];
        view.modes && inode.mode & bits != bits && !inode.twin
    }

    /// The sandbox starts anew: nothing is open, nothing is cached.
    pub fn restarts(&mut self) {
        (self.slots, self.lost) = Default::default();
        for inode in &mut self.tree.nodes {
            inode.twin = false;
        }
    }

    fn try_expect(&self, view: &View<'_>, op: &Op) -> Result<Expected, Errors> {
        let done = |fails: Errors, effect: Effect| {
            Ok(Expected { fails, may: 0, reply: Wanted::Done, effect })
        };
        let answer = |fails: Errors, reply: Wanted| {
            Ok(Expected { fails, may: 0, reply, effect: Effect::Nothing })
        };
        let if_so = |condition: bool, errors: Errors| if condition { errors } else { 0 };
        let what = |node: Node| &self.tree.nodes[node].what;
        let denied =
            |place: &Place| if_so(view.permission(&place.path) < Permission::Write, DENIED);
        // Opening what is there for writing.
        let writing = |place: &Place, node: Node| {
            denied(place)
                | match what(node) {
                    What::Directory(_) => IS_DIRECTORY,
                    What::Fifo => NO_READER,
                    What::File(_) => 0,
                    What::Symlink(_) => LOOP,
                }
                | if_so(self.refuses(view, node, 0o200), DENIED)
        };
        let reading = |place: &Place, node: Node| {
            let permission = view.permission(&place.path);
            match what(node) {
                What::Directory(_) => if_so(permission < Permission::View, DENIED),
                _ => {
                    if_so(permission < Permission::Read || self.refuses(view, node, 0o400), DENIED)
                }
            }
        };
        let content = |node: Node| match what(node) {
            What::File(data) => data.clone(),
            _ => Vec::new(),
        };
        let unnamed = |place: &Place| if_so(!view.may_name(&place.path), DENIED);
        // Of a mount that is read-only it is said before anything is looked for.
        let missing = |place: &Place| NO_ENTRY | if_so(view.early, unnamed(place));
        // A new name.
        let naming = |place: &Place| if_so(place.node.is_some(), EXISTS) | unnamed(place);
        let make = |at: &At, new: What| {
            let place = self.walk(view, at, false)?;
            done(naming(&place), Effect::Make(place.directory, place.name().to_vec(), new))
        };
        match op {
            Op::Write { at, data, new } => {
                let place = self.walk(view, at, !new)?;
                match place.node {
                    Some(node) => done(
                        writing(&place, node) | if_so(*new, EXISTS),
                        Effect::Content(node, data.0.clone()),
                    ),
                    None => done(
                        denied(&place),
                        Effect::Make(
                            place.directory,
                            place.name().to_vec(),
                            What::File(data.0.clone()),
                        ),
                    ),
                }
            }
            Op::Append { at, data } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                let all = [content(node), data.0.clone()].concat();
                done(writing(&place, node), Effect::Content(node, all))
            }
            Op::Truncate { at, length } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                let mut all = content(node);
                all.resize(*length as usize, 0);
                done(writing(&place, node), Effect::Content(node, all))
            }
            Op::Read { at } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                let directory = if_so(self.tree.entries(node).is_some(), IS_DIRECTORY);
                answer(reading(&place, node) | directory, Wanted::Bytes(content(node)))
            }
            Op::List { at } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                let Some(entries) = self.tree.entries(node) else {
                    return Err(NOT_DIRECTORY | reading(&place, node));
                };
                let mut names = Vec::new();
                for (name, node) in entries {
                    let path = [&place.path[..], std::slice::from_ref(name)].concat();
                    if view.hidden == Hidden::Masked || view.permission(&path) > Permission::None {
                        names.push((name.clone(), self.tree.nodes[*node].kind()));
                    }
                }
                answer(reading(&place, node), Wanted::Names(names))
            }
            Op::Stat { at, follow } => {
                let place = self.walk(view, at, *follow)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                let inode = &self.tree.nodes[node];
                let kind = inode.kind();
                if view.permission(&place.path) == Permission::None {
                    // A mask: that there is something, and nothing of it.
                    let stat = Wanted::Stat { kind, size: None, mode: Some(0), seconds: None };
                    return answer(0, stat);
                }
                let size = match &inode.what {
                    What::File(data) => Some(data.len() as u64),
                    What::Symlink(target) => Some(target.len() as u64),
                    _ => None,
                };
                let placeholder = view.layer && view.permission(&place.path) == Permission::View;
                let mode =
                    (kind != Type::Symlink && !placeholder).then(|| view.mode(&place.path, inode));
                answer(0, Wanted::Stat { kind, size, mode, seconds: inode.seconds })
            }
            Op::Readlink { at } => {
                let place = self.walk(view, at, false)?;
                match what(place.node.ok_or(NO_ENTRY)?) {
                    What::Symlink(target) => answer(0, Wanted::Bytes(target.clone())),
                    _ => Err(INVALID),
                }
            }
            Op::Symlink { target, at } => make(at, What::Symlink(target.0.clone())),
            Op::Mkdir { at } => make(at, What::Directory(BTreeMap::new())),
            Op::Fifo { at } => make(at, What::Fifo),
            Op::Unlink { at } => {
                let place = self.walk(view, at, false)?;
                let node = place.node.ok_or_else(|| missing(&place))?;
                let directory = if_so(self.tree.entries(node).is_some(), IS_DIRECTORY);
                let busy = if_so(view.mounts.contains(&place.path), BUSY);
                done(
                    unnamed(&place) | directory | busy,
                    Effect::Remove(place.directory, place.name().to_vec()),
                )
            }
            Op::Rmdir { at } => {
                let place = self.walk(view, at, false)?;
                let node = place.node.ok_or_else(|| missing(&place))?;
                if self.tree.entries(node).is_none() {
                    let busy = if_so(view.mounts.contains(&place.path), BUSY);
                    return Err(NOT_DIRECTORY | unnamed(&place) | busy);
                }
                let busy = if_so(view.mounts.contains(&place.path), BUSY);
                done(
                    // What is hidden in it may not be told apart from what may not be removed.
                    unnamed(&place) | busy | self.not_empty(view, &place.path, node),
                    Effect::Remove(place.directory, place.name().to_vec()),
                )
            }
            Op::Link { from, to } => {
                let (from, to) = self.walk_both(view, from, to, |p| view.mount(p))?;
                let node = from.node.ok_or(NO_ENTRY)?;
                let permission = view.permission(&from.path);
                done(
                    // What may not be changed could be by its new name.
                    if_so(permission < Permission::Write, DENIED)
                        | if_so(self.tree.entries(node).is_some(), DENIED)
                        | naming(&to)
                        | if_so(view.mount(&from.path) != view.mount(to.above()), ACROSS),
                    Effect::Link(to.directory, to.name().to_vec(), node),
                )
            }
            Op::Nameless { directory, to, data } => {
                let place = self.walk(view, directory, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                // In a layer only the name counts that it gets.
                let here = denied(&place);
                let mut errors = if view.closed { 0 } else { here };
                if self.tree.entries(node).is_none() {
                    return Err(here | NOT_DIRECTORY);
                }
                // Seen by the kernel only after the file was made.
                let new = self.walk(view, to, false).map_err(|e| e | here)?;
                errors |= naming(&new);
                errors |= if_so(view.mount(&place.path) != view.mount(new.above()), ACROSS);
                let file = What::File(data.0.clone());
                let mut expected =
                    done(errors, Effect::Make(new.directory, new.name().to_vec(), file))?;
                expected.may = here;
                Ok(expected)
            }
            Op::Rename { from, to, how } => self.expect_rename(view, from, to, *how),
            Op::Chmod { at, mode } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                // Directories stay usable; that modes bind is shown by files.
                let mode = if self.tree.entries(node).is_some() { *mode | 0o700 } else { *mode };
                done(denied(&place), Effect::Mode(node, mode))
            }
            Op::Utimes { at, seconds } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                done(denied(&place), Effect::Seconds(node, i64::from(*seconds)))
            }
            Op::Attribute { at, value } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                let inode = &self.tree.nodes[node];
                let errors = denied(&place)
                    | reading(&place, node)
                    | if_so(inode.what == What::Fifo, DENIED)
                    | if_so(self.refuses(view, node, 0o200), DENIED);
                let mut expected = done(errors, Effect::Attribute(node, value.0.clone()))?;
                expected.may = UNSUPPORTED;
                Ok(expected)
            }
            Op::OpenDirectory { slot, at } => {
                let place = self.walk(view, at, true)?;
                let node = place.node.ok_or(NO_ENTRY)?;
                if self.tree.entries(node).is_none() {
                    return Err(NOT_DIRECTORY | reading(&place, node));
                }
                done(reading(&place, node), Effect::Slot(*slot, node))
            }
            Op::Dump => answer(0, Wanted::Anything),
        }
    }

    /// Where held directories lie.
    pub fn held(&self) -> [Option<Names>; SLOTS] {
        self.slots.map(|slot| slot.and_then(|node| self.tree.path_of(node)))
    }

    /// Held directories that lie elsewhere now are not used any more: all of them, or those that came
    /// behind one of these mounts or from there, which an open directory does not pass.
    pub fn lose(&mut self, held: &[Option<Names>; SLOTS], mounts: Option<&BTreeSet<Names>>) {
        let now = self.held();
        for ((lost, before), now) in self.lost.iter_mut().zip(held).zip(&now) {
            let below =
                |path: &Option<Names>, mount| path.as_ref().is_some_and(|p| p.starts_with(mount));
            *lost |= match mounts {
                None => now != before,
                Some(mounts) => mounts.iter().any(|m| below(now, m) != below(before, m)),
            };
        }
    }

    /// Whether an operation begins in a directory that the host moved.
    pub fn is_lost(&self, op: &Op) -> bool {
        op.places().into_iter().any(|at| at.slot.is_some_and(|s| self.lost[s as usize % SLOTS]))
    }

    /// Whether an operation would move or remove one of these places.
    pub fn moves_any(&self, view: &View<'_>, op: &Op, places: &BTreeSet<Names>) -> bool {
        let named: &[&At] = match op {
            Op::Rename { from, to, .. } => &[from, to],
            Op::Unlink { at } | Op::Rmdir { at } => &[at],
            _ => &[],
        };
        named.iter().filter_map(|at| self.walk(view, at, false).ok()).any(|found| {
            places.range(found.path.clone()..).next().is_some_and(|p| p.starts_with(&found.path))
        })
    }

    /// Why a directory cannot be removed or replaced. In a layer what is hidden in it goes with it: of the
    /// layer only, the real tree keeps it.
    fn not_empty(&self, view: &View<'_>, path: &[Name], directory: Node) -> Errors {
        let hidden = self.has_hidden(view, path, directory);
        let visible = self.tree.entries(directory).into_iter().flatten().any(|(name, _)| {
            let path = [path, std::slice::from_ref(name)].concat();
            view.hidden == Hidden::Masked || view.permission(&path) > Permission::None
        });
        match (visible, hidden) {
            (false, false) => 0,
            (false, true) if view.layer => 0,
            (_, true) => NOT_EMPTY | DENIED,
            (true, false) => NOT_EMPTY,
        }
    }

    fn has_hidden(&self, view: &View<'_>, path: &[Name], directory: Node) -> bool {
        self.tree.entries(directory).into_iter().flatten().any(|(name, _)| {
            let path = [path, std::slice::from_ref(name)].concat();
            view.permission(&path) == Permission::None
        })
    }

    /// Both names of an operation. Where one of them is not there and the other is elsewhere, either
    /// may be told.
    fn walk_both<'v>(
        &self,
        view: &View<'_>,
        from: &At,
        to: &At,
        mount: impl Fn(&[Name]) -> Option<&'v [Name]>,
    ) -> Result<(Place, Place), Errors> {
        match (self.walk(view, from, false), self.walk(view, to, false)) {
            (Ok(from), Ok(to)) => {
                let apart = mount(from.above()) != mount(to.above())
                    || mount(&from.path) != mount(to.above());
                if from.node.is_none() {
                    let mut errors = NO_ENTRY;
                    if apart {
                        errors |= ACROSS;
                    }
                    if to.node.is_some() {
                        errors |= EXISTS;
                    }
                    let from_denied = view.hidden == Hidden::Masked && !view.may_name(&from.path);
                    if from_denied || !view.may_name(&to.path) {
                        errors |= DENIED;
                    }
                    return Err(errors);
                }
                Ok((from, to))
            }
            // Whether both lie in one mount is asked before their last names are looked at.
            (Err(a), Err(b)) => Err(a | b | ACROSS),
            (Err(ANYTHING), _) | (_, Err(ANYTHING)) => Err(ANYTHING),
            (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => Err(errors | DENIED | ACROSS | NO_ENTRY),
        }
    }

    fn expect_rename(
        &self,
        view: &View<'_>,
        from: &At,
        to: &At,
        how: How,
    ) -> Result<Expected, Errors> {
        let (from, to) = self.walk_both(view, from, to, |p| view.mount(p))?;
        let node = from.node.ok_or(NO_ENTRY)?;
        let tree = &self.tree;
        let mut errors = 0;
        let mut may = 0;
        let mut add = |condition: bool, error: Errors| {
            if condition {
                errors |= error;
            }
        };
        for place in [&from, &to] {
            add(!view.may_name(&place.path), DENIED);
        }
        add(view.mount(from.above()) != view.mount(to.above()), ACROSS);
        let is_directory = |node: Node| tree.entries(node).is_some();
        let same = to.node == Some(node);
        let exchange = how == How::Exchange;
        add(how == How::NoReplace && to.node.is_some(), EXISTS);
        add(exchange && to.node.is_none(), NO_ENTRY);
        if !same || from.path != to.path {
            add(is_directory(node) && tree.is_inside(to.directory, node), INVALID);
        }
        if let Some(target) = to.node.filter(|_| !same) {
            if exchange {
                add(is_directory(target) && tree.is_inside(from.directory, target), INVALID);
            } else {
                add(is_directory(target) && tree.is_inside(from.directory, target), NOT_EMPTY);
                match (is_directory(node), tree.entries(target)) {
                    (true, None) => add(true, NOT_DIRECTORY),
                    (false, Some(_)) => add(true, IS_DIRECTORY),
                    (true, Some(_)) => {
                        add(true, self.not_empty(view, &to.path, target));
                    }
                    (false, None) => {}
                }
            }
        }
        if same && view.layer {
            may |= STALE;
        }
        if !same {
            add(view.mounts.contains(&from.path) || view.mounts.contains(&to.path), BUSY);
            let cannot_move =
                |node: Node| view.layer && is_directory(node) && tree.nodes[node].below;
            add(cannot_move(node), ACROSS);
            add(exchange && to.node.is_some_and(cannot_move), ACROSS);
            // What lies below takes other permissions with its other path.
            let mut moved = vec![(&from.path, &to.path, node)];
            if let Some(target) = to.node.filter(|_| exchange) {
                moved.push((&to.path, &from.path, target));
            }
            for (old, new, node) in moved {
                let mut below = Vec::new();
                tree.below(node, &mut Vec::new(), &mut below);
                for (rest, _) in below {
                    let before = view.permission(&[&old[..], &rest[..]].concat());
                    let after = view.permission(&[&new[..], &rest[..]].concat());
                    add(after > before, DENIED);
                    if before != after || after < Permission::Write {
                        may |= DENIED;
                    }
                }
            }
        }
        if same {
            // Nothing happens, whether that is said before or after it is found to be denied.
            const EARLY: Errors = DENIED | BUSY | ACROSS;
            may |= errors & EARLY;
            errors &= !EARLY;
        }
        let names = |place: &Place| (place.directory, place.name().to_vec());
        let effect = match to.node {
            // Two names of one file: nothing happens.
            Some(target) if target == node => Effect::Nothing,
            Some(target) if exchange => {
                let ((fd, fname), (td, tname)) = (names(&from), names(&to));
                Effect::Exchange { from: (fd, fname, node), to: (td, tname, target) }
            }
            _ => Effect::Move { from: names(&from), to: names(&to), node },
        };
        Ok(Expected { fails: errors, may, reply: Wanted::Done, effect })
    }

    /// Compares what came of an operation with what should, and follows it.
    pub fn follow(&mut self, view: &View<'_>, op: &Op, reply: &Reply) -> Result<(), String> {
        if let Op::Dump = op {
            let Reply::Tree(seen) = reply else { return Err(format!("{reply:?} to a dump")) };
            return self.compare(view, seen);
        }
        let expected = self.expect(view, op);
        match reply {
            Reply::Failed(code) => {
                let class = class(*code);
                let allowed =
                    if expected.fails == 0 { expected.may } else { expected.fails | expected.may };
                if class & allowed == 0 {
                    return Err(format!(
                        "failed with {:?}, should {}",
                        rustix::io::Errno::from_raw_os_error(*code),
                        in_words(&expected)
                    ));
                }
                return Ok(());
            }
            _ if expected.fails != 0 => {
                return Err(format!("{reply:?}, but should {}", in_words(&expected)));
            }
            _ => {}
        }
        let agrees = match (&expected.reply, reply) {
            (Wanted::Anything, _) | (Wanted::Done, Reply::Done) => true,
            (Wanted::Bytes(wanted), Reply::Bytes(bytes)) => wanted == bytes,
            (Wanted::Names(wanted), Reply::Names(names)) => wanted == names,
            (
                Wanted::Stat { kind, size, mode, seconds },
                Reply::Stat { kind: k, size: s, mode: m, seconds: t },
            ) => {
                kind == k
                    && size.is_none_or(|size| size == *s)
                    && mode.is_none_or(|mode| mode == *m)
                    && seconds.is_none_or(|seconds| seconds == *t)
            }
            _ => false,
        };
        if let (Wanted::Names(wanted), Reply::Names(names)) = (&expected.reply, reply)
            && !agrees
        {
            let only = |a: &[(Vec<u8>, Type)], b: &[(Vec<u8>, Type)]| {
                let rest = a.iter().filter(|one| !b.contains(one));
                rest.fold(String::new(), |t, (n, k)| format!("{t} {} {k:?}", shown(n)))
            };
            let (more, less) = (only(names, wanted), only(wanted, names));
            return Err(format!("lists{more}, which should not be; does not list{less}"));
        }
        if !agrees {
            return Err(format!("answered {reply:?}, should answer {:?}", expected.reply));
        }
        self.apply(view, expected.effect);
        Ok(())
    }

    fn apply(&mut self, view: &View<'_>, effect: Effect) {
        let tree = &mut self.tree;
        match effect {
            Effect::Nothing => {}
            Effect::Content(node, data) => {
                tree.nodes[node].what = What::File(data);
                tree.nodes[node].seconds = None;
            }
            Effect::Make(directory, name, what) => {
                tree.make(directory, &name, what);
                tree.nodes[directory].seconds = None;
            }
            Effect::Link(directory, name, node) => {
                tree.nodes[node].twin |= view.layer && tree.nodes[node].below;
                tree.link(directory, &name, node);
                tree.nodes[directory].seconds = None;
            }
            Effect::Remove(directory, name) => {
                tree.unlink(directory, &name);
                tree.nodes[directory].seconds = None;
            }
            Effect::Move { from, to, node } => {
                tree.unlink(from.0, &from.1);
                tree.link(to.0, &to.1, node);
                tree.nodes[from.0].seconds = None;
                tree.nodes[to.0].seconds = None;
            }
            Effect::Exchange { from, to } => {
                tree.link(from.0, &from.1, to.2);
                tree.link(to.0, &to.1, from.2);
                tree.nodes[from.0].seconds = None;
                tree.nodes[to.0].seconds = None;
            }
            Effect::Mode(node, mode) => tree.nodes[node].mode = mode,
            Effect::Seconds(node, seconds) => tree.nodes[node].seconds = Some(seconds),
            Effect::Attribute(node, value) => tree.nodes[node].attribute = Some(value),
            Effect::Slot(slot, node) => self.slots[slot as usize % SLOTS] = Some(node),
        }
    }

    /// The whole tree as it should be seen, beside the one that was.
    pub fn compare(&self, view: &View<'_>, seen: &[Seen]) -> Result<(), String> {
        let mut expected: BTreeMap<Vec<u8>, (Names, Node)> = BTreeMap::new();
        let mut gone: Option<Names> = None;
        for (path, node) in self.tree.all() {
            if gone.as_ref().is_some_and(|g| path.starts_with(g)) {
                continue;
            }
            gone = None;
            if view.permission(&path) == Permission::None {
                gone = Some(path.clone());
                if view.hidden == Hidden::Absent {
                    continue;
                }
            }
            expected.insert(joined(&path), (path, node));
        }
        for one in seen {
            let Some((path, node)) = expected.remove(&one.path) else {
                return Err(format!("{}: is there, but should not be: {one:?}", shown(&one.path)));
            };
            let inode = &self.tree.nodes[node];
            let say = |what: &str| {
                Err(format!("{}: other {what}: {one:?}, should be {inode:?}", shown(&one.path)))
            };
            let permission = view.permission(&path);
            if one.kind != inode.kind() {
                return say("type");
            }
            if permission == Permission::None {
                if one.mode != 0 || one.content.is_ok() {
                    return say("mask");
                }
                continue;
            }
            // What is only listed in a layer is a placeholder without any right.
            let placeholder = view.layer && permission == Permission::View && one.mode == 0;
            if one.kind != Type::Symlink && one.mode != view.mode(&path, inode) && !placeholder {
                return say("mode");
            }
            if inode.seconds.is_some_and(|seconds| seconds != one.seconds) {
                return say("time");
            }
            let readable = permission >= Permission::Read && !self.refuses(view, node, 0o400);
            let (content, size) = match &inode.what {
                What::File(data) => (readable.then_some(data.as_slice()), Some(data.len())),
                What::Symlink(target) => (Some(target.as_slice()), Some(target.len())),
                _ => (Some(&[][..]), None),
            };
            let unsure =
                inode.twin && !matches!(&one.content, Ok(seen) if Some(&seen[..]) != content);
            if one.content.as_ref().ok().map(Vec::as_slice) != content && !unsure {
                return say("content");
            }
            if size.is_some_and(|size| size as u64 != one.size) {
                return say("size");
            }
            let has_attribute = readable && matches!(one.kind, Type::File | Type::Directory);
            if has_attribute && one.attribute != inode.attribute && one.content.is_ok() {
                return say("attribute");
            }
        }
        match expected.first_key_value() {
            None => Ok(()),
            Some((path, _)) => Err(format!("{}: should be there, but is not", shown(path))),
        }
    }
}

fn in_words(expected: &Expected) -> String {
    let names = |errors: Errors| {
        const ALL: [(Errors, &str); 15] = [
            (NO_ENTRY, "ENOENT"),
            (DENIED, "denied"),
            (EXISTS, "EEXIST"),
            (NOT_EMPTY, "ENOTEMPTY"),
            (NOT_DIRECTORY, "ENOTDIR"),
            (IS_DIRECTORY, "EISDIR"),
            (INVALID, "EINVAL"),
            (LOOP, "ELOOP"),
            (TOO_LONG, "ENAMETOOLONG"),
            (ACROSS, "EXDEV"),
            (BUSY, "EBUSY"),
            (NO_READER, "ENXIO"),
            (NO_SLOT, "EBADF"),
            (UNSUPPORTED, "EOPNOTSUPP"),
            (STALE, "ESTALE"),
        ];
        let named = ALL.iter().filter(|(bit, _)| errors & bit != 0).map(|(_, name)| *name);
        named.collect::<Vec<_>>().join(" or ")
    };
    if expected.fails == 0 {
        format!("succeed (or fail with {:?})", names(expected.may))
    } else {
        format!("fail with {}", names(expected.fails | expected.may))
    }
}
