use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::XattrFlags;

use super::*;
use crate::testing::{self, Tree, lay, strategies};

/// A host's tree and some deltas over it, written one after the other.
fn stack(dir: &Path, deltas: &[Vec<testing::Change>]) -> (PathBuf, Vec<PathBuf>, Tree) {
    let real = dir.join("real");
    fs::create_dir(&real).unwrap();
    for path in ["a/a/a", "a/b/c", "b/a/b", "b/c"] {
        fs::create_dir_all(real.join(path).parent().unwrap()).unwrap();
        fs::write(real.join(path), path).unwrap();
    }
    let mut view = Tree::new();
    lay(&mut view, &real);
    let mut made = Vec::new();
    for (n, changes) in deltas.iter().enumerate() {
        let upper = dir.join(format!("delta{n}"));
        fs::create_dir(&upper).unwrap();
        let below = view.clone();
        for change in changes {
            testing::change(&upper, &below, &mut view, change);
        }
        made.push(upper);
    }
    (real, made, view)
}

fn opened(paths: &[PathBuf]) -> Vec<OwnedFd> {
    paths.iter().map(|path| testing::open(path)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_flat_delta_shows_what_its_stack_shows(
        deltas in proptest::collection::vec(strategies::changes(), 1..5)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (real, made, view) = stack(dir.path(), &deltas);
        // The harness itself: what was written is what shows.
        let mut seen = Tree::new();
        lay(&mut seen, &real);
        for delta in &made {
            lay(&mut seen, delta);
        }
        prop_assert_eq!(&seen, &view);
        let flat = dir.path().join("flat");
        fs::create_dir(&flat).unwrap();
        flatten(&opened(&made), &testing::open(&flat)).unwrap();
        let mut seen = Tree::new();
        lay(&mut seen, &real);
        lay(&mut seen, &flat);
        prop_assert_eq!(&seen, &view);
        // Flat is flat: once more changes nothing.
        let again = dir.path().join("again");
        fs::create_dir(&again).unwrap();
        flatten(&opened(std::slice::from_ref(&flat)), &testing::open(&again)).unwrap();
        let (mut one, mut two) = (Tree::new(), Tree::new());
        lay(&mut one, &flat);
        lay(&mut two, &again);
        prop_assert_eq!(one, two);
    }
}

#[test]
fn the_kernel_agrees_that_a_flat_delta_shows_the_same() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = proptest::collection::vec(strategies::changes(), 1..5);
    let dir = tempfile::tempdir().unwrap();
    let mut script = String::from("set -e\n");
    for n in 0..40 {
        let deltas = strategy.new_tree(&mut runner).unwrap().current();
        let case = dir.path().join(n.to_string());
        fs::create_dir(&case).unwrap();
        let (_, made, _) = stack(&case, &deltas);
        for name in ["flat", "empty", "work", "one", "two"] {
            fs::create_dir(case.join(name)).unwrap();
        }
        flatten(&opened(&made), &testing::open(&case.join("flat"))).unwrap();
        let deltas: Vec<_> =
            made.iter().rev().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        write!(
            script,
            "cd {case}
mount -t overlay o -o userxattr,lowerdir={deltas}:real one
mount -t overlay o -o userxattr,lowerdir=flat:real two
for m in one two; do (cd $m; find . -mindepth 1 -printf '%p %y %m %l %n\\n' | sed 's/ [0-9]*$//' | sort; \
find . -type f | sort | xargs -r md5sum) > $m.txt; done
cmp one.txt two.txt || {{ echo case {n}; diff one.txt two.txt; exit 1; }}\n",
            case = case.display(),
            deltas = deltas.join(":"),
        )
        .unwrap();
    }
    // By a name that is not read as an option.
    script += "echo all the same\n";
    let out = Command::new("unshare").args(["-rm", "sh", "-c", &script]).output();
    let Ok(out) = out else {
        println!("skipped: there is no unshare");
        return;
    };
    let text =
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if text.contains("mount:") || text.contains("unshare:") {
        println!("skipped: an overlay cannot be mounted here: {text}");
        return;
    }
    assert!(text.contains("all the same"), "{text}");
}

#[test]
fn attributes_times_and_names_of_one_file_survive() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, flat) = (dir.path().join("1"), dir.path().join("2"), dir.path().join("flat"));
    for path in [&one, &two, &flat] {
        fs::create_dir(path).unwrap();
    }
    fs::create_dir(one.join("d")).unwrap();
    fs::write(one.join("d/a"), "x").unwrap();
    fs::hard_link(one.join("d/a"), one.join("b")).unwrap();
    rustix::fs::setxattr(one.join("d"), "user.note", b"v", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(one.join("d"), "user.overlay.impure", b"y", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(one.join("b"), "user.overlay.origin", b"", XattrFlags::empty()).unwrap();
    fs::set_permissions(one.join("d"), fs::Permissions::from_mode(0o1711)).unwrap();
    fs::write(two.join("c"), "y").unwrap();
    fs::set_permissions(two.as_path(), fs::Permissions::from_mode(0o750)).unwrap();
    let time = fs::metadata(one.join("d")).unwrap().modified().unwrap();
    flatten(&opened(&[one, two]), &testing::open(&flat)).unwrap();
    let d = fs::metadata(flat.join("d")).unwrap();
    assert_eq!((d.mode() & 0o7777, d.modified().unwrap()), (0o1711, time));
    assert_eq!(fs::metadata(&flat).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(
        fs::metadata(flat.join("d/a")).unwrap().ino(),
        fs::metadata(flat.join("b")).unwrap().ino()
    );
    let place = testing::open(&flat.join("d"));
    let at = through_proc(&place);
    assert_eq!(attribute(&at, OsStr::new("user.note")).unwrap().unwrap(), b"v");
    assert_eq!(attribute(&at, OsStr::new("user.overlay.impure")).unwrap(), None);
}

#[test]
fn what_we_do_not_understand_is_an_error_with_its_path() {
    for (key, value, on_file) in [
        ("user.overlay.redirect", "x", false),
        ("user.overlay.opaque", "x", false),
        ("user.overlay.metacopy", "", true),
        ("user.overlay.opaque", "y", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (one, flat) = (dir.path().join("1"), dir.path().join("flat"));
        fs::create_dir_all(one.join("d")).unwrap();
        fs::create_dir(&flat).unwrap();
        fs::write(one.join("d/f"), "").unwrap();
        let place = if on_file { "d/f" } else { "d" };
        rustix::fs::setxattr(one.join(place), key, value.as_bytes(), XattrFlags::empty()).unwrap();
        let e = flatten(&opened(&[one]), &testing::open(&flat)).unwrap_err().to_string();
        assert!(e.starts_with(&format!("{place}: has the attribute {key}")), "{e}");
    }
}

#[test]
fn a_directory_closed_by_a_command_is_read_and_closed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (one, flat) = (dir.path().join("1"), dir.path().join("flat"));
    fs::create_dir_all(one.join("d/e")).unwrap();
    fs::create_dir(&flat).unwrap();
    fs::write(one.join("d/e/f"), "x").unwrap();
    for path in ["d/e/f", "d/e", "d"] {
        fs::set_permissions(one.join(path), fs::Permissions::from_mode(0o0)).unwrap();
    }
    flatten(&opened(std::slice::from_ref(&one)), &testing::open(&flat)).unwrap();
    for tree in [&one, &flat] {
        for path in ["d", "d/e"] {
            assert_eq!(fs::metadata(tree.join(path)).unwrap().mode() & 0o7777, 0, "{path}");
            fs::set_permissions(tree.join(path), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    // One file under two names of two trees.
    assert_eq!(fs::metadata(flat.join("d/e/f")).unwrap().mode() & 0o7777, 0);
    fs::set_permissions(flat.join("d/e/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read(flat.join("d/e/f")).unwrap(), b"x");
}
