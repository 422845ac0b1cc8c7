//! A directory tree, byte for byte: what a run must leave as it was.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Everything about one name that a user could notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    modified: (i64, i64),
    /// Hash of a file, target of a link, nothing for the rest.
    content: String,
}

/// By path relative to the root; directories included.
pub type Snapshot = BTreeMap<PathBuf, Entry>;

/// All of a tree.
pub fn of(root: &Path) -> Snapshot {
    only(root, &|_| true)
}

/// The part of a tree whose relative paths are wanted.
pub fn only(root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Snapshot {
    let mut found = Snapshot::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().unwrap();
        let relative = path.strip_prefix(root).unwrap();
        if meta.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        if wanted(relative) {
            let content = if meta.is_file() {
                format!("{:x?}", Sha256::digest(std::fs::read(&path).unwrap()))
            } else if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else {
                String::new()
            };
            let entry = Entry {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                links: meta.nlink(),
                size: if meta.is_dir() { 0 } else { meta.size() },
                modified: (meta.mtime(), meta.mtime_nsec()),
                content,
            };
            found.insert(relative.to_owned(), entry);
        }
    }
    found
}

/// Fails with the names that differ.
#[track_caller]
pub fn assert_same(before: &Snapshot, after: &Snapshot, what: &str) {
    let mut differences = Vec::new();
    for (path, entry) in before {
        match after.get(path) {
            None => differences.push(format!("gone: {}", path.display())),
            Some(now) if now != entry => {
                differences.push(format!("changed: {}: {entry:?} -> {now:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    let new = after.keys().filter(|p| !before.contains_key(*p));
    differences.extend(new.map(|p| format!("new: {}", p.display())));
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
