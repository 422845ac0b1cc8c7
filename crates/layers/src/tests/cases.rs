use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use super::*;
use crate::review::{Judge, Verdict};

#[test]
fn each_kind_of_change_is_found_and_applied() {
    let f = Fixture::new();
    f.write("mod", "one\n");
    f.write("gone", "x");
    f.write("dir/a", "a");
    f.write("dir/b", "b");
    f.write("kind", "file");
    f.write("mode", "m");
    f.write("same", "same");
    f.write("back", "back");
    f.run(|o| {
        o.write("mod", "two\n");
        o.write("new", "new");
        o.mkdir("fresh");
        o.write("fresh/x", "x");
        o.remove("gone");
        o.remove("dir");
        o.remove("kind");
        o.mkdir("kind");
        o.write("kind/in", "in");
        o.chmod("mode", 0o600);
        o.copy_up("same");
        o.chmod("back", 0o600);
        o.chmod("back", 0o644);
        o.symlink("mod", "ln");
    });
    assert_eq!(
        f.diff(),
        "D dir\nA fresh\nA fresh/x\nD gone\nT kind\nA kind/in\nA ln\nM mod\nm mode\nA new"
    );
    f.apply_all();
    let expected = [
        ("back", "644 back"),
        ("fresh", "dir 755"),
        ("fresh/x", "644 x"),
        ("kind", "dir 755"),
        ("kind/in", "644 in"),
        ("ln", "-> mod"),
        ("mod", "644 two\n"),
        ("mode", "600 m"),
        ("new", "644 new"),
        ("same", "644 same"),
    ];
    let expected: BTreeMap<PathBuf, String> =
        expected.into_iter().map(|(p, t)| (p.into(), t.to_owned())).collect();
    assert_eq!(tree(&f.host()), expected);
    // Nothing is left of the deltas.
    let record = f.store.layer("l").unwrap().record;
    assert_eq!((record.stack.len(), record.open), (0, None));
    assert_eq!(fs::read_dir(f.dir.path().join("state/deltas")).unwrap().count(), 0);
}

#[test]
fn an_opaque_directory_deletes_what_it_does_not_repeat() {
    let f = Fixture::new();
    f.write("d/keep", "1");
    f.write("d/drop", "2");
    f.write("d/sub/x", "3");
    f.run(|o| {
        o.remove("d");
        o.mkdir("d");
        o.write("d/keep", "1");
        o.write("d/new", "4");
    });
    let diff = f.diff();
    assert!(diff.contains("D d/drop\n") && diff.contains("A d/new\nD d/sub"), "{diff}");
    f.apply_all();
    assert_eq!(f.read("d/new"), "4");
    assert!(!f.host().join("d/drop").exists() && !f.host().join("d/sub").exists());
}

#[test]
fn a_stack_of_deltas_reads_as_one() {
    let f = Fixture::new();
    f.write("a", "1");
    f.write("b", "1");
    f.write("d/x", "1");
    f.run(|o| {
        o.write("a", "2");
        o.write("only-first", "1");
        o.remove("d");
    });
    f.store
        .edit("l", |record| {
            let open = record.open.take().unwrap();
            record.stack.push(open);
            Ok(())
        })
        .unwrap();
    f.run(|o| {
        o.remove("only-first");
        o.write("a", "3");
        o.write("b", "2");
        o.mkdir("d");
        o.write("d/y", "1");
    });
    assert_eq!(f.diff(), "M a\nM b\nD d/x\nA d/y");
    // One path: the sealed delta keeps what it has, but it is dealt with.
    assert_eq!(f.apply(&["a"]).applied.len(), 1);
    assert_eq!(f.diff(), "M b\nD d/x\nA d/y");
    f.apply_all();
    assert_eq!((f.read("a"), f.read("b"), f.read("d/y")), ("3".into(), "2".into(), "1".into()));
}

#[test]
fn what_the_host_changed_meanwhile_is_merged_or_a_conflict_and_never_lost() {
    let f = Fixture::new();
    let text = |n: u32, what: &str| {
        (0..30)
            .map(|i| if i == n { format!("{what}\n") } else { format!("{i}\n") })
            .collect::<String>()
    };
    for name in ["merge", "clash", "binary", "dropped", "removed", "same", "touched"] {
        f.write(name, &text(99, ""));
    }
    f.write("mode", "x");
    f.write("tree/a", "x");
    f.run(|o| {
        for name in ["merge", "clash", "dropped", "same", "touched"] {
            o.write(name, &text(3, "layer"));
        }
        o.write("binary", "a\0b");
        o.remove("removed");
        o.remove("tree");
        o.write("both", "layer");
        o.chmod("mode", 0o600);
    });
    f.write("merge", &text(25, "host"));
    f.write("clash", &text(3, "host"));
    f.write("binary", "c\0d");
    fs::remove_file(f.host().join("dropped")).unwrap();
    f.write("removed", "changed");
    f.write("same", &text(3, "layer"));
    // Written again as it was.
    f.write("touched", &text(99, ""));
    f.write("both", "host");
    f.write("mode", "y");
    f.write("tree/b", "new on the host");
    settle();
    let before = tree(&f.host());
    let report = f.apply(&[]);
    let mut conflicts: Vec<_> =
        report.conflicts.iter().map(|l| l.path.file_name().unwrap().to_str().unwrap()).collect();
    conflicts.sort_unstable();
    assert_eq!(conflicts, ["binary", "both", "clash", "dropped", "removed", "tree"]);
    let after = tree(&f.host());
    for name in ["binary", "both", "clash", "removed", "tree", "tree/a", "tree/b"] {
        assert_eq!(after.get(Path::new(name)), before.get(Path::new(name)), "{name}");
    }
    assert!(!f.host().join("dropped").exists());
    let merged = f.read("merge");
    assert!(merged.contains("layer\n") && merged.contains("host\n"), "{merged}");
    assert_eq!(f.read("touched"), text(3, "layer"));
    assert_eq!(after[Path::new("mode")], "600 y");
    f.no_temporaries();
    // The conflicts stay in the layer; the rest left it.
    assert_eq!(f.diff(), "M binary\nM both\nM clash\nA dropped\nD removed\nD tree");
    // By choice the layer's side is taken.
    let request = Request {
        paths: vec![Place::new(0, "clash"), Place::new(0, "tree")],
        theirs: true,
        ..Request::default()
    };
    let report = apply(&f.store, &request).unwrap();
    assert_eq!(report.applied.len(), 2, "{report:#?}");
    assert_eq!(f.read("clash"), text(3, "layer"));
    assert!(!f.host().join("tree").exists());
}

#[test]
fn what_changed_while_a_run_went_on_is_not_guessed() {
    let f = Fixture::new();
    f.write("a", "1");
    f.write("b", "1");
    let session = f.begin();
    let o = Overlay::of(&session);
    o.write("a", "layer");
    o.write("b", "layer");
    settle();
    f.write("a", "host");
    session.finish(&Outcome::default()).unwrap();
    let report = f.apply(&[]);
    assert_eq!(report.conflicts.len(), 1, "{report:#?}");
    assert_eq!((f.read("a"), f.read("b")), ("host".into(), "layer".into()));
}

#[test]
fn the_bases_of_a_killed_run_are_made_later() {
    let f = Fixture::new();
    f.write("a", "1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    let session = f.begin();
    Overlay::of(&session).write("a", "layer\n2\n3\n4\n5\n6\n7\n8\n9\n");
    // As a kill: nothing is finished.
    drop(session);
    settle();
    f.run(|o| o.write("x", "x"));
    f.write("a", "1\n2\n3\n4\n5\n6\n7\n8\nhost\n");
    settle();
    let report = f.apply(&[]);
    assert!(report.conflicts.is_empty(), "{report:#?}");
    assert_eq!(f.read("a"), "layer\n2\n3\n4\n5\n6\n7\n8\nhost\n");
}

#[test]
fn a_later_run_does_not_forget_what_the_first_one_saw() {
    let f = Fixture::new();
    f.write("a", "1");
    f.run(|o| o.copy_up("a"));
    f.write("a", "host");
    f.run(|o| o.write("a", "layer"));
    let report = f.apply(&[]);
    assert_eq!(report.conflicts.len(), 1, "{report:#?}");
    assert_eq!(f.read("a"), "host");
}

#[test]
fn hunks_are_applied_one_by_one() {
    let f = Fixture::new();
    let lines = |change: &[usize]| {
        (0..40)
            .map(|i| if change.contains(&i) { format!("L{i}\n") } else { format!("{i}\n") })
            .collect::<String>()
    };
    f.write("a", &lines(&[]));
    f.run(|o| o.write("a", &lines(&[2, 20, 38])));
    let hunk = |n: usize| {
        let hunks = vec![(Place::new(0, "a"), vec![n])];
        apply(&f.store, &Request { hunks, ..Request::default() })
    };
    assert!(hunk(4).unwrap_err().to_string().contains("there is no hunk 4, it has 3"));
    hunk(2).unwrap();
    assert_eq!(f.read("a"), lines(&[20]));
    // What is left is two hunks now.
    hunk(2).unwrap();
    assert_eq!(f.read("a"), lines(&[20, 38]));
    assert_eq!(f.diff(), "M a");
    f.apply_all();
    assert_eq!(f.read("a"), lines(&[2, 20, 38]));
}

#[test]
fn hard_links_attributes_times_and_odd_names_survive() {
    let f = Fixture::new();
    f.write("a", "1");
    f.write("kept", "k");
    let odd = OsStr::from_bytes(b"caf\xe9\n\x1b[2J");
    f.run(|o| {
        o.write("x", "shared");
        o.link("x", "y");
        // A further name of what the host has.
        o.link("kept", "second");
        o.write("a", "2");
        attribute(&o.upper.join("a"), "user.mine", "v");
        attribute(&o.upper.join("a"), "user.overlay.origin", "ignored");
        fs::write(o.upper.join(odd), "odd").unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        fs::File::open(o.upper.join("a")).unwrap().set_modified(time).unwrap();
        o.mkdir("d");
        o.write("d/in", "1");
        fs::File::open(o.upper.join("d")).unwrap().set_modified(time).unwrap();
        o.chmod("d", 0o555);
    });
    f.apply_all();
    let ino = |p: &str| f.host().join(p).metadata().unwrap().ino();
    assert_eq!(ino("x"), ino("y"));
    assert_eq!(ino("kept"), ino("second"));
    let mut value = [0u8; 8];
    let n = rustix::fs::getxattr(f.host().join("a"), "user.mine", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"v");
    assert!(
        rustix::fs::getxattr(f.host().join("a"), "user.overlay.origin", &mut value[..]).is_err()
    );
    assert_eq!(fs::read(f.host().join(odd)).unwrap(), b"odd");
    for path in ["a", "d"] {
        let meta = f.host().join(path).metadata().unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_000_000_000, 123_456_789), "{path}");
    }
    assert_eq!(f.host().join("d").metadata().unwrap().mode() & 0o7777, 0o555);
    fs::set_permissions(f.host().join("d"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_could_run_with_rights_or_mislead_is_refused_or_stripped() {
    use std::os::unix::net::UnixListener;
    let f = Fixture::new();
    f.write("victim", "v");
    f.run(|o| {
        o.write("suid", "x");
        o.chmod("suid", 0o6755);
        o.write(".wh.victim", "");
        o.write(".ringfence-apply-x", "");
        let _keep = UnixListener::bind(o.upper.join("socket")).unwrap();
        rustix::fs::mknodat(CWD, o.upper.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        o.symlink("/etc/passwd", "link");
        if rustix::process::geteuid().is_root() {
            let null = rustix::fs::makedev(1, 3);
            let device = FileType::CharacterDevice;
            rustix::fs::mknodat(CWD, o.upper.join("null"), device, Mode::RUSR, null).unwrap();
        }
    });
    let report = f.apply(&[]);
    let refused: Vec<_> =
        report.refused.iter().map(|l| l.path.file_name().unwrap().to_str().unwrap()).collect();
    let mut expected = vec![".ringfence-apply-x", ".wh.victim", "null", "socket"];
    if !rustix::process::geteuid().is_root() {
        expected.remove(2);
    }
    assert_eq!(refused, expected);
    let after = tree(&f.host());
    assert_eq!(after[Path::new("suid")], "755 x");
    assert_eq!(after[Path::new("link")], "-> /etc/passwd");
    assert!(after.contains_key(Path::new("fifo")));
    for name in expected {
        assert!(!after.contains_key(Path::new(name)), "{name}");
    }
    assert_eq!(report.notes.len(), 1, "{report:#?}");
}

#[test]
fn a_symlink_on_the_host_is_never_followed() {
    let f = Fixture::new();
    let outside = f.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    f.write("d/x", "1");
    f.run(|o| {
        o.write("d/x", "layer");
        o.write("d/y", "layer");
    });
    // The directory becomes a way out.
    fs::remove_dir_all(f.host().join("d")).unwrap();
    symlink(&outside, f.host().join("d")).unwrap();
    settle();
    let report = f.apply(&[]);
    assert!(!report.conflicts.is_empty() && report.applied.is_empty(), "{report:#?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_delta_that_means_what_is_not_understood_is_an_error() {
    for (name, value) in [
        ("user.overlay.redirect", "/etc"),
        ("user.overlay.metacopy", ""),
        ("user.overlay.opaque", "x"),
        ("user.overlay.whiteouts", "y"),
    ] {
        let f = Fixture::new();
        let session = f.begin();
        let o = Overlay::of(&session);
        o.mkdir("d");
        attribute(&o.upper.join("d"), name, value);
        let e = session.finish(&Outcome::default()).unwrap_err().to_string();
        assert!(e.contains("/tree/d: ") && e.contains(name), "{e}");
    }
}

struct NotHooks;

impl Judge for NotHooks {
    fn refusal(&self, path: &Path) -> Option<String> {
        path.to_string_lossy().contains("hooks").then(|| "guarded".into())
    }
}

#[test]
fn what_the_policy_does_not_permit_is_not_applied() {
    let f = Fixture::new();
    f.write(".git/hooks/x", "old");
    f.write("whole/hooks/y", "old");
    f.run(|o| {
        o.write(".git/hooks/pre-commit", "evil");
        o.write(".git/hooks/x", "evil");
        o.remove("whole");
        o.write("fine", "fine");
        o.mkdir("hooks-new");
        o.write("hooks-new/in", "x");
    });
    let report = {
        let mut context = Context { judge: Some(&NotHooks), ..unjudged() };
        apply::apply(&f.store, "l", &Request::default(), &mut context).unwrap()
    };
    assert_eq!(report.refused.len(), 5, "{report:#?}");
    assert_eq!(report.applied.len(), 1);
    let after = tree(&f.host());
    assert_eq!(after[Path::new(".git/hooks/x")], "644 old");
    assert!(!after.contains_key(Path::new(".git/hooks/pre-commit")));
    assert!(after.contains_key(Path::new("whole/hooks/y")));
    assert_eq!(f.read("fine"), "fine");
    // It stays in the layer, with its mark.
    let marked = f.review().items.iter().filter(|i| i.executable.is_some()).count();
    assert_eq!(marked, 2);
}

#[test]
fn a_part_is_discarded_and_the_rest_stays() {
    let f = Fixture::new();
    f.write("a", "1");
    f.write("b", "1");
    f.run(|o| {
        o.write("a", "2");
        o.write("b", "2");
        o.mkdir("d");
        o.write("d/x", "1");
    });
    apply::discard(&f.store, "l", &[Place::new(0, "d"), Place::new(0, "a")]).unwrap();
    assert_eq!(f.diff(), "M b");
    let e = apply::discard(&f.store, "l", &[Place::new(0, "a")]).unwrap_err().to_string();
    assert!(e.contains("changes nothing at"), "{e}");
    apply::discard(&f.store, "l", &[Place::new(0, "b")]).unwrap();
    assert_eq!(f.diff(), "");
    assert_eq!(fs::read_dir(f.dir.path().join("state/deltas")).unwrap().count(), 0);
    assert_eq!((f.read("a"), f.read("b")), ("1".into(), "1".into()));
}

#[test]
fn a_verdict_names_the_first_thing_that_is_newer() {
    let f = Fixture::new();
    f.write("d/deep/er/x", "1");
    f.run(|o| o.remove("d"));
    f.write("d/deep/er/x", "2");
    let review = f.review();
    let Verdict::Conflict(why) = &review.items[0].verdict else { panic!("{review:?}") };
    assert!(why.contains("d/deep"), "{why}");
}

#[test]
fn directories_get_the_times_that_they_have_in_the_layer() {
    let f = Fixture::new();
    for path in ["held/a", "theirs/a", "refused/a", "alone/a", "part/a", "b"] {
        f.write(path, "one\n");
    }
    f.run(|o| {
        for dir in ["held", "theirs", "refused", "part"] {
            o.write(&format!("{dir}/new"), "new");
            o.remove(&format!("{dir}/a"));
            touch(&o.upper.join(dir), 1_000_000_000);
        }
        // Its time is all that the layer changed of it.
        o.copy_up("alone");
        touch(&o.upper.join("alone"), 1_100_000_000);
        o.write("b", "two\n");
        touch(&o.upper, 1_200_000_000);
    });
    let at = |path: &str| f.host().join(path).metadata().unwrap().mtime();
    // The host's own change, and one that is a conflict.
    f.write("theirs/other", "other");
    f.write("refused/new", "the host's");
    let (alone, before) = (at("alone"), at(""));
    assert!(alone > 1_100_000_000 && before > 1_200_000_000);
    // A part says nothing of its directory.
    f.apply(&["part/new"]);
    assert!(at("part") > 1_200_000_000);
    let report = f.apply(&[]);
    assert_eq!(report.conflicts.len(), 1, "{report:#?}");
    assert_eq!((at("held"), at("alone"), at("")), (1_000_000_000, 1_100_000_000, 1_200_000_000));
    assert!(at("theirs") > 1_000_000_000 && at("refused") > 1_000_000_000);
}

#[test]
fn of_a_file_with_several_names_one_is_changed_and_another_removed() {
    let f = Fixture::new();
    f.write("a", "one\n");
    fs::hard_link(f.host().join("a"), f.host().join("z")).unwrap();
    f.run(|o| {
        o.write("a", "two\n");
        o.remove("z");
    });
    f.apply_all();
    assert_eq!(tree(&f.host()), [(PathBuf::from("a"), "644 two\n".to_owned())].into());
    // And where the other name goes with its directory.
    let f = Fixture::new();
    f.write("a", "one\n");
    f.write("d/x", "x");
    fs::hard_link(f.host().join("a"), f.host().join("d/z")).unwrap();
    f.run(|o| {
        o.write("a", "two\n");
        o.remove("d");
    });
    f.apply_all();
    assert_eq!(tree(&f.host()), [(PathBuf::from("a"), "644 two\n".to_owned())].into());
}

#[test]
fn a_mode_that_one_of_several_names_got_is_not_given_to_the_others() {
    let f = Fixture::new();
    f.write("a", "one\n");
    fs::hard_link(f.host().join("a"), f.host().join("z")).unwrap();
    f.run(|o| o.chmod("a", 0o600));
    f.apply_all();
    let expected = [("a", "600 one\n"), ("z", "644 one\n")];
    assert_eq!(tree(&f.host()), expected.map(|(p, t)| (p.into(), t.to_owned())).into());
    // A pipe is no other.
    let f = Fixture::new();
    let pipe = |at: &Path, mode| {
        rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
    };
    pipe(&f.host().join("a"), 0o644);
    fs::hard_link(f.host().join("a"), f.host().join("z")).unwrap();
    f.run(|o| pipe(&o.upper.join("a"), 0o600));
    f.apply_all();
    let mode = |name| fs::symlink_metadata(f.host().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a"), mode("z")), (0o600, 0o644));
}
