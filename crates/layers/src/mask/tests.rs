//! Masks over random trees and rules: what an overlay of mask and tree shows is what rules say.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ringfence_policy::{CompiledRules, Fragment, Permission, Places, Policy};

use super::{Cover, Entry};
use crate::Store;
use crate::index::{Covering, Seen};

const ROOT: &str = "/ws";

fn policy(rules: &[(String, &str, i32, &str)]) -> Policy {
    let mut text = String::from("{ \"files\": { \"system\": false, \"rules\": [");
    for (pattern, permission, priority, kind) in rules {
        let _ = write!(
            text,
            "{{ \"pattern\": {}, \"permission\": \"{permission}\", \"priority\": {priority}, \"type\": \"{kind}\" }},",
            serde_json::to_string(pattern).unwrap()
        );
    }
    text.push_str("] } }");
    Fragment::parse("test.jsonc", text.as_bytes()).unwrap().finish().unwrap()
}

fn places() -> Places {
    Places { workspace: ROOT.into(), home: "/home/u".into() }
}

/// What every name of a tree is decided to be, a hidden directory hiding all below it.
fn decided(rules: &CompiledRules<'_>, tree: &Path) -> BTreeMap<PathBuf, Permission> {
    fn below(
        rules: &CompiledRules<'_>,
        tree: &Path,
        at: &Path,
        out: &mut BTreeMap<PathBuf, Permission>,
    ) {
        for entry in std::fs::read_dir(tree.join(at)).unwrap() {
            let path = at.join(entry.unwrap().file_name());
            let permission = rules.decide(&Path::new(ROOT).join(&path)).permission;
            if permission == Permission::None {
                continue;
            }
            if tree.join(&path).symlink_metadata().unwrap().is_dir() {
                below(rules, tree, &path, out);
            }
            out.insert(path, permission);
        }
    }
    let mut out = BTreeMap::new();
    below(rules, tree, Path::new(""), &mut out);
    out
}

/// Walks as discovery does.
fn entries(covering: &Covering<'_>, tree: &Path, at: &Path, out: &mut Vec<Entry>) {
    use std::os::unix::ffi::OsStrExt as _;
    for entry in std::fs::read_dir(tree.join(at)).unwrap() {
        let path = at.join(entry.unwrap().file_name());
        let is_dir = tree.join(&path).symlink_metadata().unwrap().is_dir();
        match covering.seen(path.as_os_str().as_bytes(), is_dir) {
            Seen::Covered(cover) => {
                out.push(Entry { path: path.as_os_str().as_bytes().to_vec(), cover });
            }
            Seen::Plain if is_dir => entries(covering, tree, &path, out),
            Seen::Plain => {}
        }
    }
}

/// What an overlay of `mask` over `tree` shows: `true` where the content is the tree's.
fn merged(mask: Option<&Path>, tree: &Path, at: &Path, out: &mut BTreeMap<PathBuf, bool>) {
    for entry in std::fs::read_dir(tree.join(at)).unwrap() {
        let path = at.join(entry.unwrap().file_name());
        let is_dir = tree.join(&path).symlink_metadata().unwrap().is_dir();
        let over = mask.and_then(|m| m.join(&path).symlink_metadata().ok());
        match over {
            Some(over) if over.file_type().is_char_device() => {
                assert_eq!(over.rdev(), 0);
                continue;
            }
            Some(over) => {
                let own = tree.join(&path).symlink_metadata().unwrap();
                assert_eq!(over.is_dir(), is_dir, "{}", path.display());
                assert_eq!((over.mtime(), over.mtime_nsec()), (own.mtime(), own.mtime_nsec()));
                if is_dir {
                    assert_eq!(over.mode(), own.mode(), "{}", path.display());
                } else {
                    assert_eq!(over.permissions().mode() & 0o7777, 0);
                    assert_eq!(over.size(), own.size());
                }
                out.insert(path.clone(), is_dir);
            }
            None => {
                out.insert(path.clone(), true);
            }
        }
        if is_dir {
            let there = mask.filter(|m| m.join(&path).is_dir());
            merged(there, tree, &path, out);
        }
    }
}

fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, ringfence_sys::fd::DIRECTORY, rustix::fs::Mode::empty()).unwrap()
}

/// Files and directories by their paths.
fn plant(root: &Path, names: &[(String, bool)]) {
    for (n, (name, is_dir)) in names.iter().enumerate() {
        let path = root.join(name);
        // A file may stand in the way of a path below it.
        if *is_dir {
            let _ = std::fs::create_dir_all(&path);
        } else if path.parent().is_some_and(|p| std::fs::create_dir_all(p).is_ok()) {
            let _ = std::fs::write(&path, vec![b'x'; n * 37]);
        }
        if *is_dir && path.is_dir() {
            let mode = [0o755, 0o700, 0o1777][n % 3];
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

fn check(rules: &Policy, names: &[(String, bool)]) {
    let dir = tempfile::tempdir().unwrap();
    let (tree, state) = (dir.path().join("tree"), dir.path().join("state"));
    std::fs::create_dir(&tree).unwrap();
    plant(&tree, names);
    let rules = CompiledRules::new(rules, &places());
    let mut covered = Vec::new();
    entries(&Covering::new(&rules, Path::new(ROOT)), &tree, Path::new(""), &mut covered);
    let store = Store::open(&state).unwrap();
    let mask = store.mask(open(&tree).as_fd(), &covered).unwrap();
    assert_eq!(mask.is_none(), covered.is_empty());
    let mut shown = BTreeMap::new();
    merged(mask.as_ref().map(super::Mask::tree), &tree, Path::new(""), &mut shown);
    let expected: BTreeMap<PathBuf, bool> = decided(&rules, &tree)
        .into_iter()
        .map(|(path, permission)| {
            let is_dir = tree.join(&path).is_dir();
            (path, is_dir || permission > Permission::View)
        })
        .collect();
    assert_eq!(shown, expected);
}

fn name() -> impl Strategy<Value = String> {
    proptest::sample::select(vec![
        "a", "b", "A", ".env", "x.key", "X.KEY", "secrets", "output", "a b", "é", "*", "[a]", "-",
    ])
    .prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        name().prop_filter("a pattern", |n| !n.contains(['*', '['])),
        Just("*".to_owned()),
        Just("**".to_owned()),
        Just("*.key".to_owned()),
        Just("?".to_owned()),
        Just("[ab]".to_owned()),
        Just("a**".to_owned()),
        Just(".e*".to_owned()),
    ];
    (any::<bool>(), proptest::collection::vec(part, 1..4))
        .prop_map(|(rooted, parts)| format!("{}{}", if rooted { "/" } else { "" }, parts.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_overlay_of_mask_and_tree_shows_what_rules_say(
        names in proptest::collection::vec((path(), any::<bool>()), 0..24),
        rules in proptest::collection::vec(
            (
                pattern(),
                proptest::sample::select(vec!["none", "view", "read", "write"]),
                0..3i32,
                proptest::sample::select(vec!["glob", "glob", "directory", "file"]),
            ),
            1..7,
        ),
        whole in any::<bool>(),
    ) {
        let mut rules = rules;
        if whole {
            rules.push(("**/*".into(), "write", -1, "glob"));
        }
        check(&policy(&rules), &names);
    }
}

#[test]
fn a_mask_is_used_again_until_something_of_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, state) = (dir.path().join("tree"), dir.path().join("state"));
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/listed"), "12345").unwrap();
    let store = Store::open(&state).unwrap();
    let entry = |path: &str, cover| Entry { path: path.as_bytes().to_vec(), cover };
    let covered = [entry("a/b/hidden", Cover::Hidden), entry("a/b/listed", Cover::Listed)];
    let mask = |entries: &[Entry]| store.mask(open(&tree).as_fd(), entries).unwrap();
    assert!(mask(&[]).is_none());
    let first = mask(&covered).unwrap();
    assert!(first.made);
    let again = mask(&covered).unwrap();
    assert!(!again.made);
    assert_eq!(first.tree(), again.tree());
    let closed = std::fs::Permissions::from_mode(0o700);
    let changes: [&dyn Fn(); 3] = [
        &|| std::fs::write(tree.join("a/b/listed"), "123456").unwrap(),
        &|| std::fs::set_permissions(tree.join("a"), closed.clone()).unwrap(),
        &|| std::fs::write(tree.join("a/new"), "").unwrap(),
    ];
    for change in changes {
        change();
        assert!(mask(&covered).unwrap().made);
    }
    // What is gone is left out.
    std::fs::remove_dir_all(tree.join("a")).unwrap();
    let empty = mask(&covered).unwrap();
    assert_eq!(std::fs::read_dir(empty.tree()).unwrap().count(), 0);
}

#[test]
fn masks_that_are_not_used_go_when_there_are_many_and_those_in_use_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, state) = (dir.path().join("tree"), dir.path().join("state"));
    std::fs::create_dir(&tree).unwrap();
    let store = Store::open(&state).unwrap();
    let mask = |n: usize| {
        let entries = [Entry { path: format!("n{n}").into_bytes(), cover: Cover::Hidden }];
        store.mask(open(&tree).as_fd(), &entries).unwrap().unwrap()
    };
    let used = mask(0);
    for n in 1..super::MOST_KEPT * 2 {
        drop(mask(n));
    }
    let left = std::fs::read_dir(state.join("masks")).unwrap().count();
    assert!(left <= super::MOST_KEPT + 1, "{left}");
    assert!(used.tree().join("n0").symlink_metadata().unwrap().file_type().is_char_device());
}
