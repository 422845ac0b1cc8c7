use std::fs;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

struct Pair {
    _dir: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        Self { _dir: dir, from, to }
    }

    fn copy(&self, name: impl AsRef<OsStr>) -> Result<Copied, Error> {
        self.copy_as(name.as_ref(), name.as_ref(), &mut |_| Ok(()))
    }

    fn copy_as(
        &self,
        name: &OsStr,
        new: &OsStr,
        progress: &mut dyn FnMut(u64) -> Result<(), Errno>,
    ) -> Result<Copied, Error> {
        let (from, to) = (dir(&self.from), dir(&self.to));
        object(from.as_fd(), name, to.as_fd(), new, None, &mut how(progress))
    }
}

fn dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn how(progress: &mut dyn FnMut(u64) -> Result<(), Errno>) -> How<'_> {
    How {
        attributes: &|key| key.as_bytes().starts_with(b"user.") && key != "user.left",
        owner: Owner::SameIfAllowed,
        sync: Sync::No,
        mode_mask: 0o7777,
        unlock: false,
        progress,
    }
}

/// Mode, size, and mtime and atime to the nanosecond.
fn look(path: &Path) -> (u32, u64, i64, i64, i64) {
    let m = fs::symlink_metadata(path).unwrap();
    (m.mode(), m.len(), m.mtime(), m.mtime_nsec(), m.atime())
}

fn age(path: &Path) {
    let at = |tv_sec| Timespec { tv_sec, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: at(1_000_000_000), last_modification: at(1_234_567_890) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn files_keep_content_mode_times_and_attributes() {
    let p = Pair::new();
    for (name, mode, content) in
        [("a", 0o640, "text"), ("empty", 0o755, ""), ("suid", 0o4755, "x"), ("ro", 0o400, "y")]
    {
        let path = p.from.join(name);
        fs::write(&path, content).unwrap();
        let c = through(&path);
        for key in ["user.kept", "user.left"] {
            rustix::fs::setxattr(&c, key, b"v\0w", XattrFlags::empty()).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        age(&path);
        let done = p.copy(name).unwrap();
        assert_eq!(done.bytes, content.len() as u64);
        assert!(done.owner_kept && !done.linked);
        let made = p.to.join(name);
        assert_eq!(look(&made), look(&path));
        assert_eq!(fs::read(&made).unwrap(), content.as_bytes());
        let c = through(&made);
        assert_eq!(attribute(&c, OsStr::new("user.kept")).unwrap().unwrap(), b"v\0w");
        assert_eq!(attribute(&c, OsStr::new("user.left")).unwrap(), None);
    }
}

fn through(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

#[test]
fn directories_links_and_fifos_are_copied_as_themselves() {
    let p = Pair::new();
    fs::create_dir(p.from.join("d")).unwrap();
    fs::write(p.from.join("d/not copied"), "").unwrap();
    fs::set_permissions(p.from.join("d"), fs::Permissions::from_mode(0o1751)).unwrap();
    symlink("/nowhere/\u{fffd}", p.from.join("l")).unwrap();
    rustix::fs::mknodat(CWD, p.from.join("f"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for name in ["d", "l", "f"] {
        age(&p.from.join(name));
        p.copy(name).unwrap();
        if name != "d" {
            assert_eq!(look(&p.to.join(name)), look(&p.from.join(name)));
        }
    }
    let (from, to) = (look(&p.from.join("d")), look(&p.to.join("d")));
    assert_eq!((from.0, from.2, from.3), (to.0, to.2, to.3));
    assert_eq!(fs::read_dir(p.to.join("d")).unwrap().count(), 0);
    assert_eq!(fs::read_link(p.to.join("l")).unwrap(), Path::new("/nowhere/\u{fffd}"));
    assert!(fs::symlink_metadata(p.to.join("f")).unwrap().file_type().is_fifo());
}

#[test]
fn no_link_is_followed_and_nothing_is_replaced() {
    let p = Pair::new();
    let outside = p.from.join("outside");
    fs::write(&outside, "kept").unwrap();
    fs::write(p.from.join("a"), "new").unwrap();
    symlink(&outside, p.to.join("a")).unwrap();
    assert!(p.copy("a").unwrap_err().exists());
    assert_eq!(fs::read(&outside).unwrap(), b"kept");
    // Nor a name that leads elsewhere.
    for name in ["../from/a", "..", ".", "", "a/b"] {
        assert!(matches!(p.copy(name), Err(Error::Name { .. })), "{name}");
    }
    // A directory that is replaced by a link is not gone into.
    fs::create_dir(p.to.join("d")).unwrap();
    symlink("/", p.to.join("d/up")).unwrap();
    assert!(open_beneath(dir(&p.to).as_fd(), Path::new("d/up/etc")).is_err());
    assert!(open_beneath(dir(&p.to).as_fd(), Path::new("../from")).is_err());
}

#[test]
fn devices_and_sockets_are_refused_by_kind() {
    let p = Pair::new();
    let _held = std::os::unix::net::UnixListener::bind(p.from.join("s")).unwrap();
    assert!(matches!(p.copy("s"), Err(Error::Kind { kind: FileType::Socket, .. })));
    // The device that anybody may make: a whiteout.
    rustix::fs::mknodat(CWD, p.from.join("w"), FileType::CharacterDevice, Mode::empty(), 0)
        .unwrap();
    let e = p.copy("w").unwrap_err();
    assert_eq!(e.to_string(), "w: a character device is neither copied nor made");
    assert!(!p.to.join("s").exists() && !p.to.join("w").exists());
}

#[test]
fn holes_stay_holes_and_a_sparse_file_of_10_gib_costs_nothing() {
    let p = Pair::new();
    let path = p.from.join("sparse");
    let mut f = fs::File::create(&path).unwrap();
    f.set_len(10 << 30).unwrap();
    for at in [0u64, 5 << 30, (10 << 30) - 3] {
        f.seek(std::io::SeekFrom::Start(at)).unwrap();
        f.write_all(b"abc").unwrap();
    }
    let begun = std::time::Instant::now();
    let mut seen = 0;
    p.copy_as(OsStr::new("sparse"), OsStr::new("n"), &mut |n| {
        seen += n;
        Ok(())
    })
    .unwrap();
    assert!(begun.elapsed().as_millis() < 2000, "{:?}", begun.elapsed());
    assert_eq!(seen, 10 << 30);
    let made = fs::metadata(p.to.join("n")).unwrap();
    assert_eq!(made.len(), 10 << 30);
    assert!(made.blocks() * 512 <= 1 << 20, "{} blocks", made.blocks());
    let mut f = fs::File::open(p.to.join("n")).unwrap();
    for at in [0u64, 5 << 30, (10 << 30) - 3] {
        let mut bytes = [0; 3];
        f.seek(std::io::SeekFrom::Start(at)).unwrap();
        f.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
    }
}

#[test]
fn every_name_that_the_kernel_takes_is_copied() {
    let p = Pair::new();
    let long = "n".repeat(255);
    let names: [&[u8]; 5] = [long.as_bytes(), b"\xff\xfe", b"new\nline", b" ", b"-rf *"];
    for name in names {
        let name = OsStr::from_bytes(name);
        fs::write(p.from.join(name), name.as_bytes()).unwrap();
        p.copy(name).unwrap();
        assert_eq!(fs::read(p.to.join(name)).unwrap(), name.as_bytes());
    }
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let p = Pair::new();
    fs::create_dir(p.to.join("sub")).unwrap();
    fs::write(p.from.join("a"), "x").unwrap();
    symlink("a", p.from.join("l")).unwrap();
    fs::hard_link(p.from.join("a"), p.from.join("b")).unwrap();
    fs::hard_link(p.from.join("l"), p.from.join("m")).unwrap();
    let (from, to) = (dir(&p.from), dir(&p.to));
    let sub = dir(&p.to.join("sub"));
    let mut links = Links::new(dir(&p.to));
    let mut none = |_| Ok(());
    let mut how = how(&mut none);
    let mut go = |name: &str, at: &OwnedFd, path: &str, links: &mut Links| {
        let new = Path::new(path).file_name().unwrap();
        object(from.as_fd(), name.as_ref(), at.as_fd(), new, Some((links, path.as_ref())), &mut how)
            .unwrap()
            .linked
    };
    assert!(!go("a", &sub, "sub/a", &mut links));
    assert!(go("b", &to, "b", &mut links));
    assert!(!go("l", &to, "l", &mut links));
    assert!(go("m", &to, "m", &mut links));
    let ino = |path: &str| fs::symlink_metadata(p.to.join(path)).unwrap().ino();
    assert_eq!(ino("sub/a"), ino("b"));
    assert_eq!(ino("l"), ino("m"));
    // What took the first name meanwhile is not linked.
    fs::write(p.to.join("other"), "").unwrap();
    fs::rename(p.to.join("other"), p.to.join("sub/a")).unwrap();
    assert!(!go("b", &to, "b2", &mut links));
    assert_eq!(fs::read(p.to.join("b2")).unwrap(), b"x");
}

#[test]
fn an_end_by_the_caller_leaves_nothing_half_made() {
    let p = Pair::new();
    fs::write(p.from.join("a"), vec![1; 1 << 20]).unwrap();
    let e = p.copy_as(OsStr::new("a"), OsStr::new("a"), &mut |_| Err(Errno::CANCELED)).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::CANCELED));
    assert!(!p.to.join("a").exists());
}

#[test]
fn a_file_that_changes_meanwhile_is_an_error() {
    let p = Pair::new();
    let path = p.from.join("a");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let mut grow = |_| {
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        Ok(())
    };
    let e = p.copy_as(OsStr::new("a"), OsStr::new("a"), &mut grow).unwrap_err();
    assert!(matches!(e, Error::Changed { .. }), "{e}");
    assert!(!p.to.join("a").exists());
}

#[test]
fn a_tree_is_removed_however_deep_and_closed() {
    let p = Pair::new();
    let mut at = dir(&p.from);
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let next = rustix::fs::openat(&at, "d", flags, Mode::empty()).unwrap();
        rustix::fs::openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        at = next;
    }
    rustix::fs::mkdirat(&at, "closed", Mode::empty()).unwrap();
    symlink("/", p.from.join("d/link")).unwrap();
    remove_tree(dir(&p.from).as_fd(), OsStr::new("d")).unwrap();
    remove_tree(dir(&p.from).as_fd(), OsStr::new("d")).unwrap();
    assert!(!p.from.join("d").exists() && Path::new("/usr").exists());
}
