use super::*;
use crate::{Error, check_name};

#[test]
fn names_are_names() {
    for good in ["a", "A1.b_c-d", "0", &"x".repeat(64)] {
        check_name(good).unwrap();
    }
    for bad in ["", ".", "..", "-a", ".a", "a/b", "a b", "é", "a\0", &"x".repeat(65)] {
        assert!(matches!(check_name(bad), Err(Error::Name(_))), "{bad:?}");
    }
}

#[test]
fn a_layer_in_use_is_refused_by_name_and_pid() {
    let f = Fixture::new();
    let session = f.begin();
    let me = format!("layer l is in use by pid {}", std::process::id());
    let again = f.store.begin("l", &[Root::new(f.host())], Stamp::now()).unwrap_err();
    assert_eq!(again.to_string(), me);
    assert_eq!(f.store.discard("l").unwrap_err().to_string(), me);
    assert_eq!(f.store.layers().unwrap()[0].in_use.as_ref().unwrap().pid, std::process::id());
    session.finish(&Outcome::default()).unwrap();
    assert_eq!(f.store.layers().unwrap()[0].in_use, None);
    f.store.discard("l").unwrap();
    assert!(matches!(f.store.layer("l"), Err(Error::NoLayer(_))));
    for part in ["layers", "deltas"] {
        assert_eq!(fs::read_dir(f.dir.path().join("state").join(part)).unwrap().count(), 0);
    }
}

#[test]
fn what_somebody_else_removes_is_left_to_them_and_the_lock_is_free() {
    let f = Fixture::new();
    f.run(|o| o.write("a", "1"));
    f.store.set_aside("l").unwrap();
    let layers = f.dir.path().join("state/layers");
    let gone = fs::read_dir(&layers).unwrap().next().unwrap().unwrap().path();
    assert!(gone.file_name().unwrap().to_str().unwrap().starts_with(".gone-"));
    // As one who is removing it.
    let other = fs::File::open(&gone).unwrap();
    other.lock().unwrap();
    f.store.collect(f.store.lock().unwrap()).unwrap();
    assert!(gone.join("record.json").exists());
    // The delta was nobody's any more.
    assert_eq!(fs::read_dir(f.dir.path().join("state/deltas")).unwrap().count(), 0);
    // The name is free meanwhile.
    f.run(|o| o.write("a", "2"));
    assert_eq!(f.diff(), "A a");
    drop(other);
    f.store.collect(f.store.lock().unwrap()).unwrap();
    assert!(!gone.exists());
    assert_eq!(f.diff(), "A a");
}

#[test]
fn what_a_killed_run_began_to_make_is_nobodys_layer() {
    let f = Fixture::new();
    f.run(|o| o.write("a", "1"));
    let layers = f.dir.path().join("state/layers");
    // As far as it is before its record is there.
    let begun = layers.join(".new-0123456789abcdef");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join("lock"), "").unwrap();
    assert_eq!(f.store.names().unwrap(), ["l"]);
    f.store.collect(f.store.lock().unwrap()).unwrap();
    assert!(!begun.exists());
    assert_eq!(f.diff(), "A a");

    // What cannot be made leaves nothing either.
    let missing = f.dir.path().join("missing");
    f.store.begin("m", &[Root::new(missing)], Stamp::now()).unwrap_err();
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 1);
    assert!(matches!(f.store.layer("m"), Err(Error::NoLayer(_))));
}

#[test]
fn a_damaged_record_is_named_and_nothing_is_collected() {
    let f = Fixture::new();
    f.run(|o| o.write("a", "1"));
    let record = f.dir.path().join("state/layers/l/record.json");
    let good = fs::read(&record).unwrap();
    for bad in [&b""[..], b"{", b"{\"version\":1}", &good[..good.len() / 2]] {
        fs::write(&record, bad).unwrap();
        let e = f.store.layer("l").unwrap_err().to_string();
        assert!(e.contains("record.json is damaged"), "{e}");
        assert!(f.store.layers().unwrap()[0].record.is_err());
        f.store.collect(f.store.lock().unwrap()).unwrap();
    }
    fs::write(&record, b"{\"version\": 2}").unwrap();
    let e = f.store.layer("l").unwrap_err().to_string();
    assert!(e.contains("is of format 2; this ringfence knows format 1"), "{e}");
    let evil = String::from_utf8(good.clone()).unwrap();
    let open = f.dir.path().join("state/deltas");
    let id = fs::read_dir(&open).unwrap().next().unwrap().unwrap().file_name();
    let evil = evil.replace(id.to_str().unwrap(), "../../../../etc");
    fs::write(&record, evil).unwrap();
    assert!(f.store.layer("l").unwrap_err().to_string().contains("is not the id of a delta"));
    fs::write(&record, good).unwrap();
    assert_eq!(f.diff(), "A a");
}

#[test]
fn a_store_that_is_not_the_callers_alone_is_refused() {
    let f = Fixture::new();
    let state = f.dir.path().join("state");
    for mode in [0o755, 0o770, 0o701] {
        fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
        let e = Store::open(&state).unwrap_err().to_string();
        assert!(e.contains("is open to others"), "{e}");
    }
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    Store::open(&state).unwrap();
    let link = f.dir.path().join("link");
    symlink(&state, &link).unwrap();
    assert!(Store::open(&link).unwrap_err().to_string().contains("is not a directory"));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&state, Some(1234), None).unwrap();
        assert!(Store::open(&state).unwrap_err().to_string().contains("belongs to somebody else"));
    }
}

#[test]
fn shared_deltas_live_as_long_as_one_layer_names_them() {
    let f = Fixture::new();
    f.run(|o| o.write("a", "1"));
    let mut record = f.store.layer("l").unwrap().record;
    record.stack = vec![record.open.take().unwrap()];
    f.store
        .edit("l", |r| {
            *r = record.clone();
            Ok(())
        })
        .unwrap();
    f.store.create("fork", &record).unwrap();
    assert!(f.store.create("fork", &record).unwrap_err().to_string().contains("exists already"));
    f.store.discard("l").unwrap();
    let fork = f.store.layer("fork").unwrap();
    assert_eq!(review(&fork, None, &[]).unwrap().items.len(), 1);
    f.store.discard("fork").unwrap();
    assert_eq!(fs::read_dir(f.dir.path().join("state/deltas")).unwrap().count(), 0);
}

#[test]
fn another_directory_under_the_same_name_is_not_taken_for_the_root() {
    let f = Fixture::new();
    f.run(|o| o.write("a", "1"));
    fs::rename(f.host(), f.dir.path().join("moved")).unwrap();
    fs::create_dir(f.host()).unwrap();
    let e = f.store.begin("l", &[Root::new(f.host())], Stamp::now()).unwrap_err().to_string();
    assert!(e.contains("is not the directory that layer l was made over"), "{e}");
    // Nor is anything applied to it.
    let e = apply(&f.store, &Request::default()).unwrap_err().to_string();
    assert!(e.contains("is not the directory that layer l was made over"), "{e}");
}

#[test]
fn the_view_of_a_new_layer_looks_like_its_root() {
    let f = Fixture::new();
    fs::set_permissions(f.host(), fs::Permissions::from_mode(0o2750)).unwrap();
    let session = f.begin();
    let upper = &session.mounts()[0].upper;
    assert_eq!(upper.metadata().unwrap().mode() & 0o7777, 0o2750);
    assert_eq!(upper.metadata().unwrap().mtime_nsec(), f.host().metadata().unwrap().mtime_nsec());
    // The host's own change of it is not the layer's.
    fs::set_permissions(f.host(), fs::Permissions::from_mode(0o700)).unwrap();
    session.finish(&Outcome::default()).unwrap();
    assert_eq!(f.diff(), "");
}

#[test]
fn where_layers_are_kept() {
    let home = Path::new("/home/u");
    let of = |a: Option<&str>, b: Option<&str>| {
        Store::default_directory(a.map(OsStr::new), b.map(OsStr::new), home)
    };
    assert_eq!(of(None, None), Path::new("/home/u/.local/state/ringfence"));
    assert_eq!(of(None, Some("/s")), Path::new("/s/ringfence"));
    assert_eq!(of(Some("/own"), Some("/s")), Path::new("/own"));
    assert_eq!(of(Some("relative"), Some("x")), Path::new("/home/u/.local/state/ringfence"));
}
