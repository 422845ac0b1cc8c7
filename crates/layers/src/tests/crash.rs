//! A kill at every step of an apply; then it is resumed, or taken back.

use std::process::Command;

use super::*;

const DIRECTORY: &str = "RINGFENCE_TEST_CRASH_DIRECTORY";
const POINT: &str = "RINGFENCE_TEST_CRASH_POINT";

fn prepare(f: &Fixture) {
    f.write("mod", "one\n");
    f.write("gone", "x");
    f.write("dir/a", "a");
    f.write("dir/b/c", "b");
    f.write("kind", "file");
    f.write("mode", "m");
    f.write("was-dir/x", "x");
    f.write("timed/old", "old");
    f.write("ro/old", "old");
    fs::set_permissions(f.host().join("ro"), fs::Permissions::from_mode(0o555)).unwrap();
    f.run(|o| {
        o.write("mod", "two\n");
        o.write("new", "new");
        o.mkdir("fresh");
        o.mkdir("fresh/deep");
        o.write("fresh/deep/x", "x");
        o.link("fresh/deep/x", "fresh/y");
        o.remove("gone");
        o.remove("dir");
        o.remove("kind");
        o.mkdir("kind");
        o.write("kind/in", "in");
        o.remove("was-dir");
        o.write("was-dir", "file now");
        o.chmod("mode", 0o600);
        o.symlink("mod", "ln");
        o.remove("timed/old");
        o.write("timed/new", "new");
        touch(&o.upper.join("timed"), TIMED);
        fs::create_dir(o.upper.join("ro")).unwrap();
        o.write("ro/new", "new");
        o.remove("ro/old");
        fs::set_permissions(o.upper.join("ro"), fs::Permissions::from_mode(0o555)).unwrap();
    });
}

/// The time of a directory in which names come and go.
const TIMED: i64 = 1_000_000_000;

/// Runs in a process of its own, which ends at a point that the environment names.
#[test]
fn victim() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let point: usize = std::env::var(POINT).unwrap().parse().unwrap();
    let store = Store::open(&Path::new(&dir).join("state")).unwrap();
    crate::crash::arm(point);
    apply(&store, &Request::default()).unwrap();
}

/// Ends in a kill, or not, if there are fewer points.
fn killed(f: &Fixture, point: usize) -> bool {
    use std::os::unix::process::ExitStatusExt as _;
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::victim", "--test-threads=1"])
        .env(DIRECTORY, f.dir.path())
        .env(POINT, point.to_string())
        .output()
        .unwrap();
    assert!(
        output.status.success() || output.status.signal() == Some(9),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.status.signal() == Some(9)
}

fn times(root: &Path) -> BTreeMap<PathBuf, (i64, i64)> {
    tree(root)
        .into_keys()
        .chain([PathBuf::new()])
        .map(|p| {
            let meta = root.join(&p).symlink_metadata().unwrap();
            (p, (meta.mtime(), meta.mtime_nsec()))
        })
        .collect()
}

#[test]
fn a_kill_at_any_step_is_resumed_or_taken_back() {
    let finished = {
        let f = Fixture::new();
        prepare(&f);
        f.apply_all();
        tree(&f.host())
    };
    let mut points = 0;
    let mut both = [0, 0];
    'points: for point in 1.. {
        for back in [false, true] {
            let f = Fixture::new();
            prepare(&f);
            let (before, before_times) = (tree(&f.host()), times(&f.host()));
            if !killed(&f, point) {
                break 'points;
            }
            points = point;
            let unfinished = f.store.layer("l").unwrap().unfinished();
            if !unfinished {
                // Killed after the end: all is there.
                assert_eq!(tree(&f.host()), finished, "point {point}");
                continue;
            }
            let e = apply(&f.store, &Request::default()).unwrap_err();
            assert!(e.to_string().contains("unfinished apply"), "{e}");
            assert!(f.store.discard("l").is_err());
            if back {
                match apply::roll_back(&f.store, "l") {
                    Ok(report) => {
                        assert!(report.conflicts.is_empty(), "point {point}: {report:#?}");
                        assert_eq!(tree(&f.host()), before, "point {point}");
                        assert_eq!(times(&f.host()), before_times, "point {point}");
                        f.no_temporaries();
                        both[1] += 1;
                        // Nothing of the layer was lost by it.
                        f.apply_all();
                    }
                    Err(e) => {
                        assert!(e.to_string().contains("complete but for its tidying"), "{e}");
                        apply::resume(&f.store, "l", &mut unjudged()).unwrap();
                    }
                }
            } else {
                let report = apply::resume(&f.store, "l", &mut unjudged()).unwrap();
                assert!(report.conflicts.is_empty(), "point {point}: {report:#?}");
                both[0] += 1;
            }
            assert_eq!(tree(&f.host()), finished, "point {point}, back {back}");
            assert_eq!(f.diff(), "", "point {point}");
            f.no_temporaries();
            let timed = f.host().join("timed").metadata().unwrap();
            assert_eq!(timed.mtime(), TIMED, "point {point}, back {back}");
        }
    }
    println!("{points} points, {} resumed, {} taken back", both[0], both[1]);
    assert!(points > 20 && both[0] > 20 && both[1] > 15, "{points} {both:?}");
}

#[test]
fn what_the_host_did_between_kill_and_resume_is_kept() {
    // Which point is before the commit's end is found by trying: at each, the host writes a file that
    // the apply was to replace.
    let mut conflicts = 0;
    for point in 1.. {
        let f = Fixture::new();
        prepare(&f);
        if !killed(&f, point) {
            break;
        }
        settle();
        f.write("mod", "the host's own");
        if !f.store.layer("l").unwrap().unfinished() {
            continue;
        }
        let report = apply::resume(&f.store, "l", &mut unjudged()).unwrap();
        assert_eq!(f.read("mod"), "the host's own", "point {point}: {report:#?}");
        conflicts += report.conflicts.len();
        f.no_temporaries();
    }
    assert!(conflicts > 3, "{conflicts}");
}
