use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::tar::{Kind, Member};
use super::*;
use crate::testing::{self, lay, opaque, strategies, whiteout};
use crate::{copy, merge};

fn packed(trees: &[&Path], format: Format) -> Vec<u8> {
    let mut out = Vec::new();
    let trees: Vec<OwnedFd> = trees.iter().map(|path| testing::open(path)).collect();
    export(&[(PathBuf::from("/r"), trees)], &mut out, format).unwrap();
    out
}

fn unpacked(bytes: &[u8], into: &Path) -> Result<Imported, Error> {
    fs::create_dir_all(into).unwrap();
    let trees = [Import { tree: testing::open(into), lower: None }];
    // The disk of whoever tests may be nearly full.
    Import::read(&trees, bytes, Limits { free: 0, ..Limits::default() })
}

/// Everything of a tree that a layer keeps, as text.
fn all(path: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(at) = stack.pop() {
        let place = path.join(&at);
        let stat = fs::symlink_metadata(&place).unwrap();
        let c = std::ffi::CString::new(place.as_os_str().as_bytes()).unwrap();
        let attributes: Vec<_> = if stat.is_symlink() {
            Vec::new()
        } else {
            copy::attribute_names(&c)
                .unwrap()
                .into_iter()
                .filter(|key| {
                    !key.as_bytes().starts_with(b"user.overlay.o") || key == merge::OPAQUE
                })
                .map(|key| (copy::attribute(&c, &key).unwrap(), key))
                .collect()
        };
        let kind = stat.file_type();
        let content = if kind.is_file() {
            let one = first.entry(stat.ino()).or_insert_with(|| at.clone());
            // A mark has no mode, and only root reads such a file.
            let closed = stat.mode() & 0o400 == 0 && stat.len() == 0;
            let bytes = if closed { Vec::new() } else { fs::read(&place).unwrap() };
            format!("{bytes:?} {one:?}")
        } else if kind.is_symlink() {
            format!("{:?}", fs::read_link(&place).unwrap())
        } else {
            String::new()
        };
        let mark = kind.is_char_device();
        found.insert(
            at.clone(),
            format!(
                "{kind:?} {:o} {} {} {:?} {attributes:?} {content}",
                if mark { 0 } else { stat.mode() },
                stat.uid(),
                stat.gid(),
                if mark { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) },
            ),
        );
        if kind.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(&place).unwrap().map(|e| at.join(e.unwrap().file_name())).collect();
            // So that the first of several names is the same in every tree.
            names.sort();
            stack.extend(names.into_iter().rev());
        }
    }
    found
}

/// A delta with everything that one can hold.
fn full(tree: &Path) {
    fs::create_dir_all(tree.join("dir/deep")).unwrap();
    fs::write(tree.join("dir/file"), "content").unwrap();
    fs::hard_link(tree.join("dir/file"), tree.join("another name")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let long = "l".repeat(255);
    fs::create_dir_all(tree.join(&long).join(&long)).unwrap();
    fs::write(tree.join(&long).join(&long).join(&long), "long").unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"caf\xe9\n")), "bytes").unwrap();
    fs::write(tree.join("grün"), "utf-8").unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    symlink("t".repeat(300), tree.join("long link")).unwrap();
    rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    whiteout(&tree.join("gone"));
    whiteout(&tree.join("dir/gone"));
    opaque(&tree.join("dir/deep"));
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(tree.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("empty", "user.a=b%3D", b"odd\0\nvalue");
    set("dir", "user.large", &[7; 1500]);
    set("dir", "user.overlay.impure", b"y");
    let mut sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.seek(std::io::SeekFrom::Start(40 << 20)).unwrap();
    sparse.write_all(b"in the middle").unwrap();
    for (name, mode) in [("dir", 0o1770), ("empty", 0o400), ("dir/file", 0o755)] {
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, sec, nsec) in
        [("dir/file", 1_234_567_890, 123_456_789), ("empty", -5, 500_000_000), ("link", 7, 1)]
    {
        let time = rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(CWD, tree.join(name), &times, flags).unwrap();
    }
}

#[test]
fn a_layer_comes_back_as_it_was_and_its_bytes_are_always_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, back) = (dir.path().join("tree"), dir.path().join("back"));
    fs::create_dir(&tree).unwrap();
    full(&tree);
    for format in [Format::Tar, Format::TarZstd] {
        let bytes = packed(&[&tree], format);
        assert_eq!(bytes, packed(&[&tree], format));
        let back = back.join(format!("{format:?}"));
        let done = unpacked(&bytes, &back).unwrap();
        assert_eq!((done.privileged, done.owners, done.attributes), (0, 0, 0));
        let mut was = all(&tree);
        // What overlayfs notes for itself stays behind.
        let text = was.get_mut(Path::new("dir")).unwrap();
        *text = text.replace(", (Some([121]), \"user.overlay.impure\")", "");
        assert_eq!(was, all(&back));
        let sparse = fs::metadata(back.join("sparse")).unwrap();
        assert_eq!(sparse.len(), 64 << 20);
        assert!(sparse.blocks() * 512 <= 64 << 10, "{}", sparse.blocks());
        // Another inode, another order in the directory, another day: the same bytes.
        assert_eq!(bytes, packed(&[&back], format));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn a_stack_comes_back_as_one_delta_that_shows_the_same(
        deltas in proptest::collection::vec(strategies::changes(), 1..4)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut view = testing::Tree::new();
        let host: testing::Tree = ["a", "a/a", "b"].into_iter()
            .map(|p| (PathBuf::from(p), testing::Node::Directory))
            .chain([(PathBuf::from("a/a/b"), testing::Node::Fifo)])
            .collect();
        view.extend(host.clone());
        let mut made = Vec::new();
        for (n, changes) in deltas.iter().enumerate() {
            let upper = dir.path().join(n.to_string());
            fs::create_dir(&upper).unwrap();
            let below = view.clone();
            for change in changes {
                testing::change(&upper, &below, &mut view, change);
            }
            made.push(upper);
        }
        let made: Vec<&Path> = made.iter().map(PathBuf::as_path).collect();
        let bytes = packed(&made, Format::Tar);
        let back = dir.path().join("back");
        unpacked(&bytes, &back).unwrap();
        let mut seen = host;
        lay(&mut seen, &back);
        prop_assert_eq!(seen, view);
        prop_assert_eq!(bytes, packed(&[&back], Format::Tar));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let dir = tempfile::tempdir().unwrap();
        let _ = unpacked(&bytes, dir.path());
    }

    #[test]
    fn a_damaged_archive_is_an_error_or_harmless(at in 0..4096usize, bit in 0..8u8, cut in 0..2usize) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("d")).unwrap();
        fs::write(tree.join("d/f"), "content").unwrap();
        symlink("/", tree.join("l")).unwrap();
        whiteout(&tree.join("w"));
        let mut bytes = packed(&[&tree], Format::Tar);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if cut == 1 {
            bytes.truncate(at);
        }
        let done = unpacked(&bytes, &dir.path().join("back"));
        if cut == 1 {
            prop_assert!(done.is_err());
        }
        prop_assert!(!dir.path().join("x").exists());
    }
}

#[test]
fn tar_and_python_of_the_system_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, out) = (dir.path().join("tree"), dir.path().join("out"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&out).unwrap();
    full(&tree);
    if !rustix::process::geteuid().is_root() {
        // GNU tar gives a file its mode before its attributes, which needs root where the mode forbids it.
        fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let bytes = packed(&[&tree], Format::TarZstd);
    let file = dir.path().join("l.tar.zst");
    fs::write(&file, &bytes).unwrap();
    let command = "zstd -dqc \"$1\" | tar --xattrs --xattrs-include='user.*' -xf - -C \"$2\"";
    let done =
        Command::new("sh").args(["-c", command, "sh"]).arg(&file).arg(&out).output().unwrap();
    if !done.status.success() && !Path::new("/usr/bin/zstd").exists() {
        println!("skipped: there is no zstd");
        return;
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let only_age = said.lines().all(|line| line.contains("implausibly old time stamp"));
    assert!(done.status.success() && only_age, "{said}");
    let (was, is) = (all(&tree), all(&out));
    let mut differ = Vec::new();
    for (path, text) in &was {
        if is.get(path) != Some(text) {
            differ.push(path.to_str().unwrap_or("?").to_owned());
        }
    }
    // What only overlayfs writes another way.
    assert_eq!(differ, ["dir", "dir/deep", "dir/gone", "gone"], "{was:#?} {is:#?}");
    for mark in [".wh.gone", "dir/.wh.gone", "dir/deep/.wh..wh..opq"] {
        assert_eq!(fs::metadata(out.join(mark)).unwrap().len(), 0);
    }
    // The other reader that everybody has; it knows nothing of xattrs.
    let script = "import sys,tarfile
t=tarfile.open(fileobj=sys.stdin.buffer,mode='r|')
for m in t: print(m.type.decode(), repr(m.name), m.size, m.mtime)";
    let mut python = match Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(python) => python,
        Err(e) => {
            println!("skipped: no python3: {e}");
            return;
        }
    };
    let mut stdin = python.stdin.take().unwrap();
    let bytes = packed(&[&tree], Format::Tar);
    let feed = std::thread::spawn(move || stdin.write_all(&bytes));
    let text = python.wait_with_output().unwrap();
    feed.join().unwrap().unwrap();
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("0 'sparse' 67108864"), "{text}");
    assert!(text.contains("'caf\\udce9\\n'"), "{text}");
    assert_eq!(text.lines().count(), was.len() + 1, "{text}");
}

#[test]
fn files_of_more_than_8_gib_keep_their_size() {
    let mut member = Member::new(b"big".to_vec(), Kind::File);
    member.size = 9 << 30;
    let mut bytes = Vec::new();
    tar::write_header(&mut bytes, &member).unwrap();
    let found = tar::Reader::new(&bytes[..]).next_member().unwrap().unwrap();
    assert_eq!(found, member);
}

/// Name, kind, text of a link, content.
type Row<'a> = (&'a [u8], Kind, &'a [u8], &'a [u8]);

fn archive(members: &[Row<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, link, content) in members {
        let mut member = Member::new(path.to_vec(), *kind);
        member.link = link.to_vec();
        member.size = content.len() as u64;
        member.mode = 0o755;
        member.uid = rustix::process::geteuid().as_raw().into();
        member.gid = rustix::process::getegid().as_raw().into();
        tar::write_header(&mut out, &member).unwrap();
        out.extend(*content);
        out.extend(vec![0; tar::padding(member.size)]);
    }
    tar::write_end(&mut out).unwrap();
    out
}

#[test]
fn hostile_archives_are_refused_and_touch_nothing_outside() {
    use Kind::{Device, Directory, Fifo, File, HardLink, Symlink};
    let rows: Vec<(&str, Vec<Row<'_>>)> = vec![
        ("an absolute name", vec![(b"/tmp/x", File, b"", b"")]),
        ("a name with ..", vec![(b"../x", File, b"", b"")]),
        ("a name with ..", vec![(b"a/../../x", File, b"", b"")]),
        ("used as one", vec![(b"l", Symlink, b"../outside", b""), (b"l/x", File, b"", b"evil")]),
        ("used as one", vec![(b"l", Symlink, b"..", b""), (b"l/outside/x", Directory, b"", b"")]),
        ("used as one", vec![(b"l", Symlink, b".", b""), (b"l/.wh.x", File, b"", b"")]),
        ("used as one", vec![(b"f", File, b"", b""), (b"f/x", File, b"", b"")]),
        (
            "used as one",
            vec![(b".wh.w", File, b"", b""), (b"f", Fifo, b"", b""), (b"f/x", File, b"", b"")],
        ),
        ("further name", vec![(b"x", HardLink, b"nothing", b"")]),
        ("a name with ..", vec![(b"x", HardLink, b"../outside/kept", b"")]),
        ("an absolute name", vec![(b"x", HardLink, b"/etc/passwd", b"")]),
        (
            "further name",
            vec![(b"l", Symlink, b"../outside", b""), (b"x", HardLink, b"l/kept", b"")],
        ),
        ("further name", vec![(b"d", Directory, b"", b""), (b"x", HardLink, b"d", b"")]),
        ("further name", vec![(b".wh.w", File, b"", b""), (b"x", HardLink, b"w", b"")]),
        ("a device", vec![(b"x", Device, b"", b"")]),
        ("twice", vec![(b"x", File, b"", b"1"), (b"x", File, b"", b"2")]),
        ("twice", vec![(b"x", File, b"", b"1"), (b"./x", Symlink, b"/", b"")]),
        ("twice", vec![(b"x", Directory, b"", b""), (b"x", File, b"", b"")]),
        ("twice", vec![(b"x/", Directory, b"", b""), (b"x", Directory, b"", b"")]),
        ("twice", vec![(b".wh.x", File, b"", b""), (b".wh.x", File, b"", b"")]),
        ("no empty file", vec![(b".wh.x", File, b"", b"content")]),
        ("no empty file", vec![(b".wh.x", Symlink, b"/", b"")]),
        ("no empty file", vec![(b".wh..wh..opq", Directory, b"", b"")]),
        ("means nothing", vec![(b".wh.", File, b"", b"")]),
        ("means nothing", vec![(b".wh..", File, b"", b"")]),
        ("means nothing", vec![(b".wh...", File, b"", b"")]),
        ("means nothing", vec![(b".wh..wh.aufs", File, b"", b"")]),
        ("whose name is a mark", vec![(b".wh.d/x", File, b"", b"")]),
        ("whose name is a mark", vec![(b".wh..wh..opq/x", File, b"", b"")]),
        ("whose text cannot be", vec![(b"l", Symlink, b"", b"")]),
        ("not the name of a file", vec![(b".", File, b"", b"")]),
    ];
    for (why, members) in rows {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        let before = all(&outside);
        let e = unpacked(&archive(&members), &dir.path().join("into")).unwrap_err().to_string();
        assert!(e.contains(why), "{members:?}: {e}");
        assert_eq!(before, all(&outside), "{members:?}");
        assert_eq!(fs::metadata(outside.join("kept")).unwrap().nlink(), 1);
    }
    // The control: the same parts where they belong.
    let dir = tempfile::tempdir().unwrap();
    let good = archive(&[
        (b"d/", Directory, b"", b""),
        (b"d/f", File, b"", b"x"),
        (b"l", Symlink, b"../outside", b""),
        (b"x", HardLink, b"d/f", b""),
        (b"y", HardLink, b"./l", b""),
    ]);
    unpacked(&good, dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"x");
}

#[test]
fn marks_beside_objects_are_about_lower_layers() {
    use Kind::{Directory, File};
    // In either order: the object stays, a directory hides what lies below it.
    let orders: [[Row<'_>; 4]; 2] = [
        [
            (b".wh.d", File, b"", b""),
            (b"d", Directory, b"", b""),
            (b".wh.f", File, b"", b""),
            (b"f", File, b"", b"new"),
        ],
        [
            (b"d", Directory, b"", b""),
            (b".wh.d", File, b"", b""),
            (b"f", File, b"", b"new"),
            (b".wh.f", File, b"", b""),
        ],
    ];
    for members in orders {
        let dir = tempfile::tempdir().unwrap();
        unpacked(&archive(&members), dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
        let mut value = [0; 4];
        assert!(rustix::fs::getxattr(dir.path().join("d"), merge::OPAQUE, &mut value[..]).is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
    // A directory that only its content tells of, after a mark.
    let dir = tempfile::tempdir().unwrap();
    unpacked(&archive(&[(b".wh.d", File, b"", b""), (b"d/f", File, b"", b"")]), dir.path())
        .unwrap();
    let mut value = [0; 4];
    assert!(rustix::fs::getxattr(dir.path().join("d"), merge::OPAQUE, &mut value[..]).is_ok());
}

#[test]
fn privilege_does_not_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = Vec::new();
    let mut member = Member::new(b"suid".to_vec(), Kind::File);
    member.mode = 0o6755;
    for (key, value) in [
        ("security.capability", &b"\x01\0\0\x02"[..]),
        ("trusted.overlay.opaque", b"y"),
        ("user.overlay.redirect", b"/etc"),
        ("user.fine", b"v"),
    ] {
        member.attributes.insert(key.as_bytes().to_vec(), value.to_vec());
    }
    member.uid = rustix::process::geteuid().as_raw().into();
    member.gid = rustix::process::getegid().as_raw().into();
    tar::write_header(&mut out, &member).unwrap();
    tar::write_end(&mut out).unwrap();
    let done = unpacked(&out, dir.path()).unwrap();
    assert_eq!((done.privileged, done.attributes), (1, 3));
    let made = dir.path().join("suid");
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, 0o755);
    let c = std::ffi::CString::new(made.as_os_str().as_bytes()).unwrap();
    assert_eq!(copy::attribute_names(&c).unwrap(), ["user.fine"]);
}

#[test]
fn bombs_end_at_their_limits() {
    let limits = Limits { free: 0, ..Limits::default() };
    let read = |bytes: &[u8], limits: Limits| {
        let dir = tempfile::tempdir().unwrap();
        let done =
            Import::read(&[Import { tree: testing::open(dir.path()), lower: None }], bytes, limits);
        (done, du(dir.path()))
    };
    // One pattern again and again packs well; zeros cost nothing and are let through.
    for (byte, packs) in [(b'x', true), (0, false)] {
        let content = vec![byte; 100 << 20];
        let plain = archive(&[(b"f", Kind::File, b"", &content)]);
        let small = zstd::encode_all(&plain[..], 19).unwrap();
        assert!(small.len() < 64 << 10);
        let (done, used) = read(&small, Limits { ratio: 100, ..limits });
        if packs {
            let e = done.unwrap_err().to_string();
            assert_eq!(e, "refused: the archive holds more than 100 times its own size");
            assert!(used <= RATIO_SLACK, "{used}");
        } else {
            done.unwrap();
            assert!(used < 1 << 20, "{used}");
        }
        let (done, used) = read(&plain, Limits { written: 1 << 20, ..limits });
        assert_eq!(done.is_err(), packs);
        assert!(used <= 2 << 20, "{used}");
        let (done, _) = read(&small, Limits { content: 1 << 20, ..limits });
        assert!(matches!(done, Err(Error::TooMuch { .. })));
    }
    // A header that claims everything, and nothing after it.
    let mut member = Member::new(b"f".to_vec(), Kind::File);
    member.size = 200 << 30;
    let mut claim = Vec::new();
    tar::write_header(&mut claim, &member).unwrap();
    let (done, used) = read(&claim, limits);
    assert!(matches!(done, Err(Error::Tar(tar::Error::Truncated))), "{done:?}");
    assert!(used < 1 << 20);
    let many: Vec<_> = (0..100).map(|n| format!("{n}").into_bytes()).collect();
    let many: Vec<_> = many.iter().map(|n| (&n[..], Kind::File, &b""[..], &b""[..])).collect();
    let (done, _) = read(&archive(&many), Limits { members: 99, ..limits });
    assert_eq!(done.unwrap_err().to_string(), "refused: the archive holds more than 99 members");
    let deep = "d/".repeat(1001);
    let (done, _) = read(&archive(&[(deep.as_bytes(), Kind::Directory, b"", b"")]), limits);
    assert!(done.unwrap_err().to_string().contains("too deep"));
    let (done, used) =
        read(&archive(&[(b"f", Kind::File, b"", b"x")]), Limits { free: u64::MAX / 2, ..limits });
    assert!(matches!(done, Err(Error::Space { .. })));
    assert!(used < 1 << 20);
}

/// Where the ratio is looked at, and one chunk.
const RATIO_SLACK: u64 = 65 << 20;

fn du(path: &Path) -> u64 {
    fs::read_dir(path).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn what_readers_could_take_in_two_ways_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let header = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        tar::write_header(&mut out, &Member::new(b"f".to_vec(), Kind::File)).unwrap();
        change(&mut out);
        let sum: u64 = out[..512]
            .iter()
            .enumerate()
            .map(|(at, b)| u64::from(if (148..156).contains(&at) { b' ' } else { *b }))
            .sum();
        out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar::write_end(&mut out).unwrap();
        out
    };
    let records = |text: &str| {
        let mut out = header(&|h| h[156] = b'x');
        out.truncate(512);
        let size = format!("{:011o}", text.len());
        out[124..135].copy_from_slice(size.as_bytes());
        let sum: u64 = out[..512]
            .iter()
            .enumerate()
            .map(|(at, b)| u64::from(if (148..156).contains(&at) { b' ' } else { *b }))
            .sum();
        out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(text.as_bytes());
        out.extend(vec![0; tar::padding(text.len() as u64)]);
        out
    };
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("unknown type", header(&|h| h[156] = b'V')),
        ("sparse", header(&|h| h[156] = b'S')),
        (
            "content where none belongs",
            header(&|h| {
                h[156] = b'2';
                h[134] = b'1';
            }),
        ),
        ("a size", header(&|h| h[124..136].copy_from_slice(b"-0000000001\0"))),
        ("a size", header(&|h| h[124..136].copy_from_slice(&[0xff; 12]))),
        ("wrong", {
            let mut h = header(&|_| {});
            h[0] = b'g';
            h
        }),
        ("sparse", [records("22 GNU.sparse.major=1\n"), header(&|_| {})].concat()),
        ("a record", [records("99 path=x\n"), header(&|_| {})].concat()),
        ("a record", [records("0 path=x\n"), header(&|_| {})].concat()),
        ("a record", [records("9 path=xy\n"), header(&|_| {})].concat()),
        ("two sets", [records("10 path=x\n"), records("10 path=y\n"), header(&|_| {})].concat()),
        ("without a member", [records("10 path=x\n"), vec![0; 1024]].concat()),
        ("zero byte", [records("11 path=x\0\n"), header(&|_| {})].concat()),
        ("after its end", [vec![0; 1024], header(&|_| {})].concat()),
        ("in the middle", Vec::new()),
        ("in the middle", header(&|_| {})[..512].to_vec()),
        ("gzip", vec![0x1f, 0x8b, 8, 0]),
    ];
    for (why, bytes) in rows {
        let e = unpacked(&bytes, &dir.path().join("into")).unwrap_err().to_string();
        assert!(e.contains(why), "{why}: {e}");
        fs::remove_dir_all(dir.path().join("into")).unwrap();
    }
    // The size of the records counts, as for every reader of today.
    let mut out = records("10 size=4\n");
    out.extend(&header(&|_| {})[..512]);
    out.extend(b"abcd");
    out.extend(vec![0; 508 + 1024]);
    unpacked(&out, &dir.path().join("into")).unwrap();
    assert_eq!(fs::read(dir.path().join("into/f")).unwrap(), b"abcd");
}

#[test]
fn several_roots_go_where_they_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let tree = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (one, two) = (tree("one"), tree("two"));
    fs::write(one.join("f"), "1").unwrap();
    fs::write(two.join("f"), "2").unwrap();
    whiteout(&two.join("w"));
    let mut bytes = Vec::new();
    let roots = [
        (PathBuf::from("/home/me/project"), vec![testing::open(&one)]),
        (PathBuf::from("/home/me/.npm"), vec![testing::open(&two)]),
    ];
    export(&roots, &mut bytes, Format::TarZstd).unwrap();
    let e = unpacked(&bytes, &dir.path().join("x")).unwrap_err().to_string();
    assert!(e.ends_with("by --root: /home/me/project, /home/me/.npm"), "{e}");
    let import = |names: &[&str], bytes: &[u8]| {
        let trees: Vec<_> =
            names.iter().map(|n| Import { tree: testing::open(&tree(n)), lower: None }).collect();
        Import::read(&trees, bytes, Limits { free: 0, ..Limits::default() })
    };
    assert!(matches!(
        import(&["a", "b", "c"], &bytes),
        Err(Error::RootCount { found: 2, given: 3 })
    ));
    import(&["y", "z"], &bytes).unwrap();
    assert_eq!(all(&dir.path().join("y")), all(&one));
    assert_eq!(all(&dir.path().join("z")), all(&two));
    // One root has no list; its members are nobody's number.
    let plain = packed(&[&one], Format::Tar);
    assert!(matches!(import(&["p", "q"], &plain), Err(Error::RootCount { found: 1, given: 2 })));
}

#[test]
fn names_that_an_image_layer_cannot_hold_are_an_error_with_their_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/.wh.x"), "").unwrap();
    let trees = vec![testing::open(dir.path())];
    let e = export(&[("/r".into(), trees)], Vec::new(), Format::Tar).unwrap_err().to_string();
    assert!(e.starts_with("d/.wh.x: "), "{e}");
}

#[test]
fn a_parent_that_is_not_described_looks_like_the_one_below() {
    let dir = tempfile::tempdir().unwrap();
    let (lower, into) = (dir.path().join("lower"), dir.path().join("into"));
    fs::create_dir_all(lower.join("a/b")).unwrap();
    fs::create_dir(&into).unwrap();
    fs::set_permissions(lower.join("a/b"), fs::Permissions::from_mode(0o711)).unwrap();
    let bytes = archive(&[(b"a/b/c", Kind::File, b"", b"")]);
    let trees = [Import { tree: testing::open(&into), lower: Some(testing::open(&lower)) }];
    Import::read(&trees, &bytes[..], Limits { free: 0, ..Limits::default() }).unwrap();
    let look = |path: &Path| {
        let m = fs::metadata(path.join("a/b")).unwrap();
        (m.mode(), m.mtime(), m.mtime_nsec())
    };
    assert_eq!(look(&into), look(&lower));
}

#[test]
fn any_time_that_is_read_is_written_and_read_again() {
    let far = 1i64 << 40;
    let times = [
        (0, 0),
        (-1, 999_999_999),
        (far, 0),
        (-far, 1),
        (i64::MAX, 5),
        (i64::MIN, 0),
        (i64::MIN, 5),
    ];
    for mtime in times {
        let member = tar::Member { mtime, ..tar::Member::new(b"f".to_vec(), tar::Kind::File) };
        let mut bytes = Vec::new();
        tar::write_header(&mut bytes, &member).unwrap();
        let read = tar::Reader::new(&bytes[..]).next_member().unwrap().unwrap();
        assert_eq!(read.mtime, mtime);
    }
    // Found by the fuzzer: a number in binary, in the header.
    let mut header = Vec::new();
    tar::write_header(&mut header, &tar::Member::new(b"f".to_vec(), tar::Kind::File)).unwrap();
    header[136..148].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let sum = |h: &[u8]| {
        h.iter()
            .enumerate()
            .map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) })
            .sum::<u32>()
    };
    let text = format!("{:06o}\0 ", sum(&header[..512]));
    header[148..156].copy_from_slice(text.as_bytes());
    let read = tar::Reader::new(&header[..]).next_member().unwrap().unwrap();
    assert_eq!(read.mtime, (far, 0));
    let mut again = Vec::new();
    tar::write_header(&mut again, &read).unwrap();
    assert_eq!(tar::Reader::new(&again[..]).next_member().unwrap().unwrap(), read);
}
