//! For tests: deltas written as overlayfs writes them, and what a stack of them shows, worked out in
//! the plainest way.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};

use crate::merge::OPAQUE;

/// What lies under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
    Fifo,
}

/// Names relative to the root.
pub type Tree = BTreeMap<PathBuf, Node>;

pub fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

pub fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

pub fn opaque(path: &Path) {
    rustix::fs::setxattr(path, OPAQUE, b"y", XattrFlags::empty()).unwrap();
}

fn cut(tree: &mut Tree, path: &Path) {
    tree.retain(|name, _| !name.starts_with(path));
}

/// What shows when the delta `upper` lies over `tree`.
pub fn lay(tree: &mut Tree, upper: &Path) {
    lay_at(tree, upper, Path::new(""));
}

fn lay_at(tree: &mut Tree, upper: &Path, at: &Path) {
    let mut names: Vec<_> =
        fs::read_dir(upper.join(at)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = at.join(&name);
        let place = upper.join(&path);
        let stat = fs::symlink_metadata(&place).unwrap();
        if stat.file_type().is_char_device() && stat.rdev() == 0 {
            cut(tree, &path);
        } else if stat.is_dir() {
            let mut value = [0; 4];
            let marked = rustix::fs::getxattr(&place, OPAQUE, &mut value[..]).is_ok();
            if marked || tree.get(&path) != Some(&Node::Directory) {
                cut(tree, &path);
            }
            tree.insert(path.clone(), Node::Directory);
            lay_at(tree, upper, &path);
        } else {
            cut(tree, &path);
            let node = if stat.is_symlink() {
                Node::Link(fs::read_link(&place).unwrap())
            } else if stat.file_type().is_fifo() {
                Node::Fifo
            } else {
                Node::File(fs::read(&place).unwrap())
            };
            tree.insert(path, node);
        }
    }
}

/// A change as a command makes it.
#[derive(Clone, Debug)]
pub enum Change {
    Write(PathBuf, u8),
    Link(PathBuf),
    Mkdir(PathBuf),
    Remove(PathBuf),
    /// Another name of a file of the same run.
    Hard(PathBuf, PathBuf),
}

/// Makes `change` in `upper`, which lies over what shows `below`, as overlayfs would, and in `view`,
/// which is what shows with `upper`. What a kernel would refuse does nothing.
pub fn change(upper: &Path, below: &Tree, view: &mut Tree, change: &Change) {
    let parent_is_there = |view: &Tree, path: &Path| {
        let parent = path.parent().unwrap();
        parent.as_os_str().is_empty() || view.get(parent) == Some(&Node::Directory)
    };
    let ready = |path: &Path| fs::create_dir_all(upper.join(path.parent().unwrap())).unwrap();
    let clear = |path: &Path| {
        let place = upper.join(path);
        match fs::symlink_metadata(&place) {
            Ok(stat) if stat.is_dir() => fs::remove_dir_all(&place).unwrap(),
            Ok(_) => fs::remove_file(&place).unwrap(),
            Err(_) => {}
        }
    };
    match change {
        Change::Write(path, byte) => {
            if !parent_is_there(view, path) || view.get(path) == Some(&Node::Directory) {
                return;
            }
            ready(path);
            clear(path);
            let content = vec![*byte; usize::from(*byte)];
            fs::write(upper.join(path), &content).unwrap();
            view.insert(path.clone(), Node::File(content));
        }
        Change::Link(path) => {
            if !parent_is_there(view, path) || view.contains_key(path) {
                return;
            }
            ready(path);
            clear(path);
            symlink("../x", upper.join(path)).unwrap();
            view.insert(path.clone(), Node::Link("../x".into()));
        }
        Change::Mkdir(path) => {
            if !parent_is_there(view, path) || view.contains_key(path) {
                return;
            }
            ready(path);
            let hid = fs::symlink_metadata(upper.join(path)).is_ok();
            clear(path);
            fs::create_dir(upper.join(path)).unwrap();
            if hid {
                opaque(&upper.join(path));
            }
            view.insert(path.clone(), Node::Directory);
        }
        Change::Remove(path) => {
            if !view.contains_key(path) {
                return;
            }
            ready(path);
            clear(path);
            // Below an opaque directory a mark does no harm.
            if below.contains_key(path) {
                whiteout(&upper.join(path));
            }
            cut(view, path);
        }
        Change::Hard(from, to) => {
            let Some(node @ Node::File(_)) = view.get(from).cloned() else { return };
            if !parent_is_there(view, to) || view.contains_key(to) {
                return;
            }
            if fs::symlink_metadata(upper.join(from)).is_err() {
                return;
            }
            ready(to);
            clear(to);
            fs::hard_link(upper.join(from), upper.join(to)).unwrap();
            view.insert(to.clone(), node);
        }
    }
}

pub mod strategies {
    use super::*;
    use proptest::prelude::*;

    pub fn path() -> impl Strategy<Value = PathBuf> {
        // Few names, so that they meet.
        proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4)
            .prop_map(|parts| parts.into_iter().collect())
    }

    pub fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => (path(), any::<u8>()).prop_map(|(p, b)| Change::Write(p, b)),
            1 => path().prop_map(Change::Link),
            4 => path().prop_map(Change::Mkdir),
            3 => path().prop_map(Change::Remove),
            1 => (path(), path()).prop_map(|(a, b)| Change::Hard(a, b)),
        ]
    }

    pub fn changes() -> impl Strategy<Value = Vec<Change>> {
        proptest::collection::vec(change(), 0..12)
    }
}
