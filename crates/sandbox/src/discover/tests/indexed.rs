//! What an index answers is what a walk finds.

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ringfence_layers::names::{self as index, Named, Names};
use ringfence_policy::{
    Base, CompiledRules, Effect, Files, Fragment, GlobRule, Kind, Origin, Permission, Places,
    Policy, Rule, pattern,
};

use super::super::{Matcher, Verdict, Walk, WalkOptions, indexed, indexed_patterns, walk};
use super::{temporary, write};
use crate::names::{NamesPlan, Of};

fn policy(rules: Vec<Rule>) -> Policy {
    let mut policy = Fragment::default().finish().unwrap();
    policy.files = Files { rules, system: false, guard_git: false, ..policy.files };
    policy
}

fn rule(kind: Kind, effect: Effect, permission: Permission, pattern: &str) -> Rule {
    let pattern = match kind {
        Kind::Path => pattern::parse_native(&format!("./{pattern}")).unwrap().1,
        _ => pattern.to_owned(),
    };
    let (base, origin) = (Base::Workspace, Origin::default());
    Rule { base, pattern, kind, effect, permission, priority: 0, id: None, origin }
}

/// Everything below `at`, as a codebase indexes it.
fn listed(root: &Path, at: &Path, out: &mut Vec<Named>) {
    for entry in std::fs::read_dir(root.join(at)).unwrap() {
        let path = at.join(entry.unwrap().file_name());
        let stat = rustix::fs::lstat(root.join(&path)).unwrap();
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let bytes = path.as_os_str().as_bytes().to_vec();
        out.push(Named { path: bytes, kind, size: 0, mtime: (0, 0) });
        if kind.is_dir() {
            listed(root, &path, out);
        }
    }
}

fn index_of(root: &Path) -> Names {
    let (_dir, at) = temporary();
    let mut all = Vec::new();
    listed(root, Path::new(""), &mut all);
    index::write(&mut all, [0; 4], &mut std::fs::File::create(at.join("names")).unwrap()).unwrap();
    Names::open(std::fs::File::open(&at).unwrap().as_fd(), "names").unwrap().unwrap()
}

/// What is found by index, if that answers, and what by a walk.
fn both(root: &Path, rules: Vec<Rule>) -> (Option<Walk>, Walk) {
    let names = index_of(root);
    let places = Places { workspace: root.to_owned(), home: PathBuf::from("/h") };
    let of = Of { places: &places, cache: None, index: None, codebase: false };
    let plan = NamesPlan::new(&policy(rules), &[], of, Some(true)).unwrap();
    let tree: std::os::fd::OwnedFd = std::fs::File::open(root).unwrap().into();
    let walked = plan.walk(&tree, root).unwrap();
    (indexed(plan.rules(), &names, tree.as_fd(), root), walked)
}

struct Patterns<'a>(&'a [GlobRule<'a>], &'a Path);

impl Matcher for Patterns<'_> {
    fn verdict(&self, path: &[u8], _: bool) -> Verdict {
        let path = self.1.join(std::ffi::OsStr::from_bytes(path));
        match self.0.iter().position(|glob| glob.matches(&path)) {
            Some(rule) => Verdict::Match { rule: rule as u32, descend: true },
            None => Verdict::Pass,
        }
    }

    fn fingerprint(&self) -> [u8; 16] {
        [0; 16]
    }
}

/// The same for patterns, of which nothing ends a walk.
fn both_of_patterns(root: &Path, rules: Vec<Rule>) -> (Option<Walk>, Walk) {
    let names = index_of(root);
    let places = Places { workspace: root.to_owned(), home: PathBuf::from("/h") };
    let policy = policy(rules);
    let rules = CompiledRules::new(&policy, &places);
    let globs = rules.glob_rules();
    let tree = std::fs::File::open(root).unwrap();
    let walked = walk(tree.as_fd(), &Patterns(&globs, root), &WalkOptions::default()).unwrap();
    (indexed_patterns(&globs, &names, tree.as_fd(), root), walked)
}

fn assert_same(by_index: &Walk, walked: &Walk) {
    assert_eq!(by_index.matches, walked.matches);
    assert_eq!(by_index.repositories, walked.repositories);
}

#[test]
fn secrets_and_repositories_are_found_without_a_walk() {
    let (_dir, root) = temporary();
    for path in [
        ".env",
        "src/main.rs",
        "src/a-b/.env.local",
        "src/a/deep/x.key",
        "src/a.key/inside",
        "secrets/.git/HEAD",
        "sub/.GIT/HEAD",
        "mod/.git",
        "bare/HEAD",
        "bare/refs/x",
        "bare/objects/x",
        ".git/HEAD",
        ".git/refs/x",
        ".git/objects/x",
        "docs/HEAD",
    ] {
        write(root.join(path), "x");
    }
    std::os::unix::fs::symlink("src", root.join("link.key")).unwrap();
    let hide = |pattern: &str| rule(Kind::Path, Effect::Cap, Permission::None, pattern);
    let all = || rule(Kind::Path, Effect::Grant, Permission::Write, ".");
    let rules = || vec![all(), hide("**/.env*"), hide("**/*.key"), hide("**/secrets")];
    let (by_index, walked) = both(&root, rules());
    let by_index = by_index.unwrap();
    assert_same(&by_index, &walked);
    assert_eq!((by_index.matches.len(), by_index.repositories.len()), (6, 4), "{by_index:#?}");
    // Another name of a hidden file has to be looked for.
    std::fs::hard_link(root.join(".env"), root.join("plain")).unwrap();
    assert!(both(&root, rules()).0.is_none());
    // What gives nothing but to some, or speaks of the middle of names, is no matter for an index.
    std::fs::remove_file(root.join("plain")).unwrap();
    assert!(
        both(&root, vec![rule(Kind::Path, Effect::Grant, Permission::Write, "src")]).0.is_none()
    );
    assert!(both(&root, vec![all(), hide("**/*nv*")]).0.is_none());
}

#[test]
fn an_index_that_does_not_fit_answers_nothing() {
    let (_dir, root) = temporary();
    write(root.join("a/x.key"), "x");
    let names = {
        let (_place, at) = temporary();
        let gone = Named {
            path: b"a/y.key".to_vec(),
            kind: rustix::fs::FileType::RegularFile,
            size: 0,
            mtime: (0, 0),
        };
        let mut file = std::fs::File::create(at.join("names")).unwrap();
        index::write(&mut [gone], [0; 4], &mut file).unwrap();
        Names::open(std::fs::File::open(&at).unwrap().as_fd(), "names").unwrap().unwrap()
    };
    let places = Places { workspace: root.clone(), home: PathBuf::from("/h") };
    let rules = vec![
        rule(Kind::Path, Effect::Grant, Permission::Write, "."),
        rule(Kind::Path, Effect::Cap, Permission::None, "**/*.key"),
    ];
    let of = Of { places: &places, cache: None, index: None, codebase: false };
    let plan = NamesPlan::new(&policy(rules), &[], of, None).unwrap();
    let tree = std::fs::File::open(&root).unwrap();
    assert!(indexed(plan.rules(), &names, tree.as_fd(), &root).is_none());
}

fn name() -> impl Strategy<Value = &'static str> {
    let plain = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a-b"), Just("x.k"), Just("b.k")];
    prop_oneof![3 => plain, 1 => prop_oneof![Just(".git"), Just("HEAD"), Just("refs"), Just("objects")]]
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(name(), 1..5).prop_map(|names| names.join("/"))
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let part = prop_oneof![
        6 => name(),
        3 => prop_oneof![Just("*"), Just("*.k"), Just("a*"), Just("x*k")],
        1 => prop_oneof![Just("?"), Just("*-*")],
        3 => Just("**"),
    ];
    let pattern = proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let permission = prop_oneof![
        4 => Just(Permission::None),
        2 => Just(Permission::View),
        1 => Just(Permission::Read),
        1 => Just(Permission::Write),
    ];
    (pattern, permission, 0..5u8).prop_map(|(pattern, permission, what)| match what {
        0 => rule(Kind::Glob, Effect::Set, permission, &pattern),
        1 => rule(Kind::Directory, Effect::Set, permission, &pattern),
        2 => rule(Kind::Path, Effect::Grant, permission, &pattern),
        _ => rule(Kind::Path, Effect::Cap, permission, &pattern),
    })
}

#[test]
fn random_trees_and_rules() {
    let (answered, patterns) = (Cell::new(0), Cell::new(0));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cases = (
        proptest::collection::vec((path(), any::<bool>()), 0..14),
        proptest::collection::vec(a_rule(), 0..4),
        prop_oneof![6 => Just(true), 1 => Just(false)],
        any::<bool>(),
    );
    runner
        .run(&cases, |(paths, mut rules, open, ordered)| {
            let (_dir, root) = temporary();
            for (path, is_dir) in paths {
                let path = root.join(path);
                // A file may stand in the way.
                if is_dir {
                    let _ = std::fs::create_dir_all(path);
                } else if path.parent().is_some_and(|p| std::fs::create_dir_all(p).is_ok()) {
                    let _ = std::fs::write(path, "x");
                }
            }
            if open {
                rules.push(if ordered {
                    rule(Kind::Glob, Effect::Set, Permission::Write, "**/*")
                } else {
                    rule(Kind::Path, Effect::Grant, Permission::Write, ".")
                });
            }
            let (by_index, walked) = both_of_patterns(&root, rules.clone());
            if let Some(by_index) = by_index {
                patterns.set(patterns.get() + 1);
                prop_assert_eq!(&by_index.matches, &walked.matches);
                prop_assert_eq!(&by_index.repositories, &walked.repositories);
            }
            let (by_index, walked) = both(&root, rules);
            if let Some(by_index) = by_index {
                answered.set(answered.get() + 1);
                prop_assert_eq!(&by_index.matches, &walked.matches);
                prop_assert_eq!(&by_index.repositories, &walked.repositories);
                prop_assert_eq!(
                    by_index.statistics.directories >= walked.statistics.directories,
                    true
                );
            }
            Ok(())
        })
        .unwrap();
    let counts = (answered.get(), patterns.get());
    assert!(counts.0 > 50 && counts.1 > 50, "{counts:?} cases were answered by index");
}
