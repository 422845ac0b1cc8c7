use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc;

use super::*;

fn watched(dir: &Path, bytes: Option<u64>, inodes: Option<u64>) -> Watched {
    Watched {
        sealed: Vec::new(),
        open: vec![dir.canonicalize().unwrap()],
        quota: Quota { bytes, inodes },
        floor: 0,
        init: None,
    }
}

/// Makes a watch whose end a writer can see.
fn start(what: Watched) -> (Watch, mpsc::Receiver<Exceeded>) {
    let (tell, told) = mpsc::channel();
    let watch = Watch::start(what, move |e| tell.send(e.clone()).unwrap()).unwrap();
    (watch, told)
}

#[test]
fn a_writer_is_told_of_before_it_is_far_above_its_quota() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 32 << 20;
    let (watch, told) = start(watched(dir.path(), Some(limit), None));
    let mut file = fs::File::create(dir.path().join("f")).unwrap();
    let chunk = vec![7; 256 << 10];
    let mut written = 0u64;
    while told.try_recv().is_err() {
        file.write_all(&chunk).unwrap();
        written += chunk.len() as u64;
        assert!(written < limit * 8, "nobody came");
    }
    println!("slack {} KiB", (written - limit) >> 10);
    assert!(written > limit && written < limit * 3, "{written}");
    let exceeded = watch.stop().unwrap();
    assert!(matches!(exceeded, Exceeded::Bytes { limit: l, .. } if l == limit), "{exceeded}");
    assert!(exceeded.to_string().ends_with("its quota is 32 MiB"), "{exceeded}");
}

#[test]
fn many_files_count_however_small_and_wherever() {
    let dir = tempfile::tempdir().unwrap();
    let (watch, told) = start(watched(dir.path(), None, Some(500)));
    let mut n = 0;
    while told.try_recv().is_err() {
        let at = dir.path().join(format!("{}", n / 50));
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join(n.to_string()), "").unwrap();
        n += 1;
        assert!(n < 200_000, "nobody came");
    }
    assert!(n > 400, "{n}");
    assert!(matches!(watch.stop(), Some(Exceeded::Inodes { limit: 500, .. })));
}

#[test]
fn below_the_quota_nothing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let (watch, told) = start(watched(dir.path(), Some(8 << 20), Some(100)));
    for n in 0..20 {
        fs::write(dir.path().join("f"), vec![1; 1 << 20]).unwrap();
        // Holes and further names cost nothing.
        fs::File::create(dir.path().join("s")).unwrap().set_len(n << 30).unwrap();
        let _ = fs::hard_link(dir.path().join("f"), dir.path().join(format!("l{n}")));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(told.try_recv().is_err());
    assert_eq!(watch.stop(), None);
}

#[test]
fn what_lies_in_sealed_deltas_and_closed_directories_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (sealed, open) = (dir.path().join("s"), dir.path().join("o"));
    fs::create_dir_all(open.join("d/e")).unwrap();
    fs::create_dir(&sealed).unwrap();
    fs::write(sealed.join("f"), vec![1; 3 << 20]).unwrap();
    fs::write(open.join("d/e/f"), vec![1; 3 << 20]).unwrap();
    for path in ["d/e", "d"] {
        fs::set_permissions(open.join(path), fs::Permissions::from_mode(0o0)).unwrap();
    }
    let mut what = watched(&open, Some(5 << 20), None);
    what.sealed.push(sealed.canonicalize().unwrap());
    let (watch, told) = start(what);
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(watch.stop().is_some());
    for path in ["d", "d/e"] {
        let mode = fs::metadata(open.join(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0, "{path}");
        fs::set_permissions(open.join(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn too_little_free_space_ends_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let mut what = watched(dir.path(), None, None);
    what.floor = u64::MAX;
    let (watch, told) = start(what);
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    let e = watch.stop().unwrap();
    assert!(matches!(e, Exceeded::Free { .. }), "{e}");
    let e = refuse_full(dir.path(), u64::MAX).unwrap_err().to_string();
    assert!(e.contains("MiB must stay so"), "{e}");
    refuse_full(dir.path(), 0).unwrap();
}

#[test]
fn what_cannot_be_counted_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    // Not a directory: as if the tree had been replaced.
    let (watch, told) = start(watched(&dir.path().join("f"), Some(1 << 30), None));
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(matches!(watch.stop(), Some(Exceeded::Uncounted(_))));
}
