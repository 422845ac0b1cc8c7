//! Object stores: a directory here; a real server that speaks S3 in the end-to-end tests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::World;
use crate::remote::{Place, Pushed, Remote, Wanted};
use crate::{Error, From, Made, Options};

fn remote(at: &Path) -> Remote {
    let url = format!("file://{}", at.display());
    Remote::open(&Place { url, ..Place::default() }).unwrap()
}

fn push(w: &World, remote: &Remote, force: bool) -> Result<Pushed, Error> {
    w.all.push("one", None, remote, force, &mut |_| {})
}

fn pull(w: &World, remote: &Remote, force: bool) -> Result<Made, Error> {
    let wanted = Wanted { theirs: "one", version: None, force };
    w.all.pull("one", remote, &wanted, &Options::default(), &mut |_| {})
}

fn put(w: &World, path: &str, content: &str) {
    w.all.put("one", OsStr::new(path), None, content.as_bytes()).unwrap();
}

fn chunks(at: &Path) -> Vec<PathBuf> {
    let Ok(directories) = std::fs::read_dir(at.join("chunks")) else { return Vec::new() };
    directories
        .flat_map(|d| std::fs::read_dir(d.unwrap().path()).unwrap())
        .map(|e| e.unwrap().path())
        .collect()
}

#[test]
fn only_what_is_missing_is_sent_and_several_machines_share() {
    let (a, b) = (World::new(), World::new());
    let at = a.dir.path().join("shared");
    a.make("one", From::Nothing).unwrap();
    put(&a, "x", "content");
    put(&a, "same", "content");
    put(&a, "y", "other");
    let r = remote(&at);
    let first = push(&a, &r, false).unwrap();
    assert_eq!((first.version, first.chunks, first.uploaded), (1, 3, 2), "the same is sent once");
    assert_eq!(chunks(&at).len(), 2);
    pull(&b, &r, false).unwrap();
    assert_eq!(a.archive("one"), b.archive("one"));
    put(&b, "z", "third");
    let second = push(&b, &r, false).unwrap();
    assert_eq!((second.version, second.uploaded), (2, 1));
    // The first machine changed it too, from an older version.
    put(&a, "mine", "mine");
    let error = push(&a, &r, false).unwrap_err().to_string();
    assert!(error.contains("has version 2 there"), "{error}");
    let error = pull(&a, &r, false).unwrap_err().to_string();
    assert!(error.contains("changed here"), "{error}");
    pull(&a, &r, true).unwrap();
    assert_eq!(a.archive("one"), b.archive("one"));
    assert_eq!(a.all.get("one").unwrap().record.version, 6);
    // Old versions stay.
    let wanted = Wanted { theirs: "one", version: Some(1), force: false };
    a.all.pull("old", &r, &wanted, &Options::default(), &mut |_| {}).unwrap();
    assert!(!a.all.get("old").unwrap().tree().join("z").exists());
    assert!(a.left().iter().all(|n| n.starts_with("cb_")), "{:?}", a.left());
}

#[test]
fn two_pushes_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let start = World::new();
    start.make("one", From::Nothing).unwrap();
    push(&start, &remote(at), false).unwrap();
    let outcomes: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn(move || {
                    let w = World::new();
                    let r = remote(at);
                    pull(&w, &r, false).unwrap();
                    put(&w, "who", &format!("{n}"));
                    (w, r)
                })
            })
            .collect();
        let ready: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let pushes: Vec<_> = ready
            .into_iter()
            .map(|(w, r)| scope.spawn(move || push(&w, &r, false).is_ok()))
            .collect();
        pushes.into_iter().map(|p| p.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|ok| **ok).count(), 1, "{outcomes:?}");
    assert_eq!(remote(at).latest("one").unwrap(), 2);
}

#[test]
fn nothing_damaged_is_used_and_a_pull_goes_on_where_it_was() {
    let (a, b) = (World::new(), World::new());
    let at = a.dir.path().join("shared");
    a.make("one", From::Nothing).unwrap();
    for n in 0..8 {
        put(&a, &format!("f{n}"), &format!("content {n}"));
    }
    let r = remote(&at);
    push(&a, &r, false).unwrap();
    let victim = chunks(&at).pop().unwrap();
    let good = std::fs::read(&victim).unwrap();
    let evil = zstd::encode_all(&b"evil"[..], 3).unwrap();
    for bad in [evil, good[..good.len() - 1].to_vec(), vec![0; 5 << 20]] {
        std::fs::write(&victim, bad).unwrap();
        assert!(pull(&b, &r, false).is_err());
        assert!(matches!(b.all.get("one"), Err(Error::NoCodebase(_))));
    }
    // What was fetched before is not fetched again: it is not even there any more.
    let fetched: Vec<String> = std::fs::read_dir(b.dir.path().join("state/codebases/.pull-one"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!fetched.is_empty());
    for path in chunks(&at) {
        if fetched.iter().any(|f| path.ends_with(f)) {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::write(&victim, &good).unwrap();
    pull(&b, &r, false).unwrap();
    assert_eq!(a.archive("one"), b.archive("one"));
    assert!(b.left().iter().all(|n| n.starts_with("cb_")), "{:?}", b.left());
}

#[test]
fn addresses_hold_no_credentials() {
    for url in ["s3://user:pass@bucket/x", "https://user:hunter2@host/x", "s3://b?secret=hunter2"] {
        let error = Remote::open(&Place { url: url.into(), ..Place::default() }).unwrap_err();
        assert!(!error.to_string().contains("hunter2@"), "{error}");
        assert!(!error.to_string().contains("pass@"), "{error}");
    }
}
