//! A stack of deltas over a real directory, read as one list of changes.
//!
//! No directory is held open while its content is looked at, and nothing recurses: a sandbox makes
//! trees as deep as it likes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_sys::fd;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::object::{self, Kind, Meta, OVERLAY};
use crate::{Error, Layer, copy};

/// How a name differs from what the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
    /// Another kind of object than before.
    Type,
    /// Mode, owner, time or attributes only.
    Metadata,
}

impl ChangeKind {
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Modified => 'M',
            Self::Deleted => 'D',
            Self::Type => 'T',
            Self::Metadata => 'm',
        }
    }
}

/// One name that differs. A deleted directory is one change; an added one is one for itself and one
/// for each name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Relative to the root; empty for the root itself.
    pub path: PathBuf,
    pub kind: ChangeKind,
    /// What the layer has, and in which tree (0 is the top one).
    pub new: Option<(Meta, usize)>,
    /// What the host has now.
    pub old: Option<Meta>,
}

/// A name that a delta holds, whether or not it differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub path: PathBuf,
    pub new: Option<(Meta, usize)>,
    pub old: Option<Meta>,
    /// Below a directory that the host does not have.
    pub in_added: bool,
    pub change: Option<ChangeKind>,
}

/// The trees of one root of a layer, opened.
#[derive(Debug)]
pub struct Trees {
    /// Top first.
    pub trees: Vec<(PathBuf, OwnedFd)>,
    pub host: OwnedFd,
    pub root: PathBuf,
    /// Mode of the root when the layer was first laid over it.
    pub mode: u32,
}

/// Everything a walk found.
#[derive(Debug, Default)]
pub struct Walked {
    /// Sorted by path.
    pub held: Vec<Held>,
    /// Names of files that have several in the deltas, by device and inode.
    pub links: HashMap<(u64, u64), Vec<PathBuf>>,
}

impl Walked {
    pub fn changes(&self) -> Vec<Change> {
        self.held
            .iter()
            .filter_map(|h| {
                Some(Change { path: h.path.clone(), kind: h.change?, new: h.new, old: h.old })
            })
            .collect()
    }
}

/// What of the host shows through at a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    /// The host has nothing that this directory could be compared with.
    Nothing,
    Merged,
    /// The host has it, and the delta hides all its names.
    Opaque,
}

#[derive(Debug)]
struct Pending {
    path: PathBuf,
    trees: Vec<usize>,
    below: Below,
}

impl Trees {
    /// Opens the trees of root number `index`.
    pub fn open(layer: &Layer, index: usize) -> Result<Self, Error> {
        let record = &layer.record.roots[index];
        let trees = Self::of(&record.path, record.mode, layer.trees(index))?;
        let host = rustix::fs::fstat(&trees.host).map_err(Error::os("look at", &record.path))?;
        // Device numbers of some file systems change when the host starts again. A codebase that is changed
        // while it is in use gets another tree, with which layers are compared from then on.
        if fd::id(&host).1 != record.ino && !layer.is_over_codebase(&record.path) {
            return Err(Error::OtherRoot { layer: layer.name.clone(), path: record.path.clone() });
        }
        Ok(trees)
    }

    pub fn of(root: &Path, mode: u32, trees: Vec<PathBuf>) -> Result<Self, Error> {
        let host = fd::open_absolute(root, fd::DIRECTORY).map_err(Error::os("open", root))?;
        let trees = trees
            .into_iter()
            .map(|path| {
                let tree = object::open_tree(&path).map_err(Error::os("open", &path))?;
                Ok((path, tree))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { trees, host, root: root.to_owned(), mode })
    }

    /// The directory that holds `path` in a tree, and the name in it.
    pub fn parent<'p>(&self, tree: usize, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Error> {
        let (base, root) = &self.trees[tree];
        split(path)
            .and_then(|(parent, name)| {
                Ok((object::open_directory(root.as_fd(), parent, true)?, name))
            })
            .map_err(Error::os("open", base.join(path)))
    }

    /// The same on the host.
    pub fn host_parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Error> {
        split(path)
            .and_then(|(parent, name)| {
                Ok((object::open_directory(self.host.as_fd(), parent, false)?, name))
            })
            .map_err(Error::os("open", self.root.join(path)))
    }

    /// Whether a directory above the path hides what lies below its delta.
    pub fn is_hidden(&self, path: &Path) -> Result<bool, Error> {
        for above in path.ancestors().skip(1) {
            for (base, root) in &self.trees {
                let shown = base.join(above);
                match object::open_directory(root.as_fd(), above.as_os_str(), true) {
                    Ok(dir) if check_attributes(&dir, &shown)? => return Ok(true),
                    Ok(_) | Err(Errno::NOENT) => {}
                    // A whiteout, or another thing that is no directory.
                    Err(Errno::NOTDIR | Errno::LOOP) => return Ok(true),
                    Err(errno) => return Err(Error::os("open", shown)(errno)),
                }
            }
        }
        Ok(false)
    }

    /// Compares everything that the deltas hold with the host.
    pub fn walk(&self) -> Result<Walked, Error> {
        let mut walked = Walked::default();
        if self.trees.is_empty() {
            return Ok(walked);
        }
        let mut trees = Vec::new();
        let mut opaque = false;
        for (index, (path, tree)) in self.trees.iter().enumerate() {
            trees.push(index);
            if check_attributes(tree, path)? {
                opaque = true;
                break;
            }
        }
        self.top(&mut walked)?;
        let below = if opaque { Below::Opaque } else { Below::Merged };
        let mut pending = vec![Pending { path: PathBuf::new(), trees, below }];
        while let Some(next) = pending.pop() {
            self.directory(&next, &mut pending, &mut walked)?;
        }
        walked.held.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(walked)
    }

    /// The root itself: its mode is all that a layer can change of it.
    fn top(&self, walked: &mut Walked) -> Result<(), Error> {
        let stat = |fd: &OwnedFd, path: &Path| {
            rustix::fs::fstat(fd).map(|s| Meta::of(&s)).map_err(Error::os("look at", path))
        };
        let new = stat(&self.trees[0].1, &self.trees[0].0)?;
        let old = stat(&self.host, &self.root)?;
        if new.mode != self.mode && new.mode != old.mode {
            walked.held.push(Held {
                path: PathBuf::new(),
                new: Some((new, 0)),
                old: Some(old),
                in_added: false,
                change: Some(ChangeKind::Metadata),
            });
        }
        Ok(())
    }

    fn directory(
        &self,
        at: &Pending,
        pending: &mut Vec<Pending>,
        walked: &mut Walked,
    ) -> Result<(), Error> {
        // Per name the topmost entry; where that is a directory, those below it that it shows.
        let mut names: BTreeMap<OsString, Vec<(usize, Meta)>> = BTreeMap::new();
        let mut open: HashMap<usize, OwnedFd> = HashMap::new();
        for &tree in &at.trees {
            let (base, root) = &self.trees[tree];
            let path = base.join(&at.path);
            let dir = object::open_directory(root.as_fd(), at.path.as_os_str(), true)
                .map_err(Error::os("open", &path))?;
            let (listed, _) =
                fd::list(dir.as_fd(), usize::MAX).map_err(Error::os("list", &path))?;
            for (name, _) in listed {
                let meta = object::look(dir.as_fd(), &name)
                    .map_err(Error::os("look at", path.join(&name)))?;
                if let Some(meta) = meta {
                    names.entry(name).or_default().push((tree, meta));
                }
            }
            open.insert(tree, dir);
        }
        let host_path = self.root.join(&at.path);
        let host = match at.below {
            Below::Nothing => None,
            _ => Some(
                object::open_directory(self.host.as_fd(), at.path.as_os_str(), false)
                    .map_err(Error::os("open", &host_path))?,
            ),
        };
        if let (Below::Opaque, Some(host)) = (at.below, &host) {
            let (listed, _) =
                fd::list(host.as_fd(), usize::MAX).map_err(Error::os("list", &host_path))?;
            for (name, _) in listed {
                names.entry(name).or_default();
            }
        }
        for (name, entries) in names {
            let path = at.path.join(&name);
            let old = match &host {
                Some(host) => object::look(host.as_fd(), &name)
                    .map_err(Error::os("look at", host_path.join(&name)))?,
                None => None,
            };
            let mut held =
                Held { path, new: None, old, in_added: at.below == Below::Nothing, change: None };
            let top = entries.first().copied().filter(|(_, meta)| !meta.is_whiteout());
            let Some((tree, meta)) = top else {
                if old.is_some() {
                    held.change = Some(ChangeKind::Deleted);
                    walked.held.push(held);
                }
                continue;
            };
            let shown = self.trees[tree].0.join(&held.path);
            held.new = Some((meta, tree));
            let place = match meta.kind {
                Kind::File => object::open_file(open[&tree].as_fd(), &name, true),
                Kind::Directory => object::open_directory(open[&tree].as_fd(), &name, true),
                _ => object::place(open[&tree].as_fd(), &name),
            };
            let place = place.map_err(Error::os("open", &shown))?;
            if meta.is_dir() {
                let (trees, hidden) = self.shown_trees(&entries, &open, &name, &held.path)?;
                let is_dir = old.is_some_and(|m| m.is_dir());
                let below = match (is_dir, hidden || at.below == Below::Opaque) {
                    (false, _) => Below::Nothing,
                    (true, false) => Below::Merged,
                    (true, true) => Below::Opaque,
                };
                pending.push(Pending { path: held.path.clone(), trees, below });
                held.change = match (&old, &host) {
                    (Some(old), Some(host)) if is_dir => {
                        let theirs = object::place(host.as_fd(), &name)
                            .map_err(Error::os("open", host_path.join(&name)))?;
                        (!same_metadata(&meta, &place, old, &theirs, &shown)?)
                            .then_some(ChangeKind::Metadata)
                    }
                    (Some(_), _) => Some(ChangeKind::Type),
                    (None, _) => Some(ChangeKind::Added),
                };
            } else {
                check_file(&place, &shown)?;
                if meta.nlink > 1 && meta.kind == Kind::File {
                    walked.links.entry((meta.dev, meta.ino)).or_default().push(held.path.clone());
                }
                held.change = match (&old, &host) {
                    (Some(old), Some(host)) => self.compare(
                        &meta,
                        &place,
                        open[&tree].as_fd(),
                        old,
                        host.as_fd(),
                        &name,
                        &shown,
                    )?,
                    _ => Some(ChangeKind::Added),
                };
            }
            walked.held.push(held);
        }
        Ok(())
    }

    /// Of the directories of one name, those that are seen, and whether what lies below is hidden.
    fn shown_trees(
        &self,
        entries: &[(usize, Meta)],
        open: &HashMap<usize, OwnedFd>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(Vec<usize>, bool), Error> {
        let mut trees = Vec::new();
        for (tree, meta) in entries {
            if !meta.is_dir() {
                return Ok((trees, true));
            }
            trees.push(*tree);
            let shown = self.trees[*tree].0.join(path);
            let place =
                object::place(open[tree].as_fd(), name).map_err(Error::os("open", &shown))?;
            if check_attributes(&place, &shown)? {
                return Ok((trees, true));
            }
        }
        Ok((trees, false))
    }

    #[allow(clippy::too_many_arguments, reason = "two sides of the same few things")]
    fn compare(
        &self,
        new: &Meta,
        ours: &OwnedFd,
        ours_in: std::os::fd::BorrowedFd<'_>,
        old: &Meta,
        host: std::os::fd::BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
    ) -> Result<Option<ChangeKind>, Error> {
        if new.kind != old.kind {
            return Ok(Some(ChangeKind::Type));
        }
        let fail = |what| Error::os(what, shown);
        let same = match new.kind {
            Kind::File => {
                new.size == old.size && {
                    match object::open_file(host, name, false) {
                        Ok(theirs) => object::same_content(ours, &theirs, new.size)
                            .map_err(fail("compare"))?,
                        // What the host does not let us read cannot be called equal.
                        Err(Errno::ACCESS | Errno::PERM) => false,
                        Err(errno) => {
                            return Err(Error::os("read", self.root.join(name))(errno));
                        }
                    }
                }
            }
            Kind::Symlink => {
                let ours = object::link(ours_in, name).map_err(fail("read"))?;
                let theirs = object::link(host, name).map_err(fail("read"))?;
                ours == theirs
            }
            Kind::Device => new.rdev == old.rdev,
            Kind::Fifo | Kind::Socket | Kind::Directory => true,
        };
        if !same {
            return Ok(Some(ChangeKind::Modified));
        }
        let theirs = object::place(host, name).map_err(fail("open"))?;
        let equal = new.mtime == old.mtime && same_metadata(new, ours, old, &theirs, shown)?;
        Ok((!equal).then_some(ChangeKind::Metadata))
    }
}

/// Mode, owner and attributes are equal (times are not looked at: a directory's change with its names).
fn same_metadata(
    new: &Meta,
    ours: &OwnedFd,
    old: &Meta,
    theirs: &OwnedFd,
    shown: &Path,
) -> Result<bool, Error> {
    let mode = new.kind == Kind::Symlink || new.mode == old.mode;
    if !mode || (new.uid, new.gid) != (old.uid, old.gid) {
        return Ok(false);
    }
    let fail = |errno| Error::os("read the attributes of", shown)(errno);
    match (object::attributes(ours), object::attributes(theirs)) {
        (Ok(a), Ok(b)) => Ok(a == b),
        // Values of a file that one may not read are not readable either.
        (Err(Errno::ACCESS | Errno::PERM), _) | (_, Err(Errno::ACCESS | Errno::PERM)) => Ok(true),
        (Err(errno), _) | (_, Err(errno)) => Err(fail(errno)),
    }
}

fn split(path: &Path) -> Result<(&OsStr, &OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    Ok((path.parent().unwrap_or(Path::new("")).as_os_str(), name))
}

/// Of a directory: whether it hides what lies below. An attribute by which overlayfs would mean
/// something that is not understood here makes the delta invalid.
fn check_attributes(place: &OwnedFd, shown: &Path) -> Result<bool, Error> {
    // Most have none, and a descriptor that can be read says so at once.
    let mut none = [0u8; 1];
    if matches!(rustix::fs::flistxattr(place, &mut none[..]), Ok(0) | Err(Errno::OPNOTSUPP)) {
        return Ok(false);
    }
    let path = copy::through_proc(place);
    let names = copy::attribute_names(&path).map_err(Error::os("read the attributes of", shown))?;
    let mut opaque = false;
    for name in names {
        let Some(rest) = name.as_bytes().strip_prefix(OVERLAY) else { continue };
        match rest {
            b"opaque" => {
                let value = copy::attribute(&path, &name)
                    .map_err(Error::os("read the attributes of", shown))?;
                match value.as_deref() {
                    Some(b"y") => opaque = true,
                    None => {}
                    Some(_) => return Err(invalid(shown, &name)),
                }
            }
            b"origin" | b"impure" | b"uuid" => {}
            // What a program inside set as `user.overlay.x` of its own; it means nothing.
            _ if rest.starts_with(b"overlay.") => {}
            _ => return Err(invalid(shown, &name)),
        }
    }
    Ok(opaque)
}

/// Of anything but a directory.
fn check_file(place: &OwnedFd, shown: &Path) -> Result<(), Error> {
    if check_attributes(place, shown)? {
        return Err(invalid(shown, OsStr::new("user.overlay.opaque")));
    }
    Ok(())
}

fn invalid(path: &Path, attribute: &OsStr) -> Error {
    let problem = format!(
        "it has the attribute {}, which this version does not write",
        crate::shown(Path::new(attribute))
    );
    Error::Delta { path: path.into(), problem }
}
