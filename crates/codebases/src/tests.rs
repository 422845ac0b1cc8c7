//! Codebases made, changed, killed half-way, shared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ringfence_layers::pack::tar::{Kind, Member, padding, write_end, write_header};
use ringfence_layers::{Outcome, Root, Stamp, Store};

use crate::{Codebases, Error, From, Made, Options};

mod random;
mod shared;

pub(crate) struct World {
    pub dir: tempfile::TempDir,
    pub all: Codebases,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let all = Codebases::open(&dir.path().join("state")).unwrap();
        Self { dir, all }
    }

    pub fn source(&self) -> PathBuf {
        let path = self.dir.path().join("source");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn make(&self, name: &str, from: From<'_>) -> Result<Made, Error> {
        self.all.create(name, from, &Options::default(), &mut |_| {})
    }

    /// What lies in the store, without the lock.
    pub fn left(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path().join("state/codebases"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != "lock")
            .collect();
        names.sort_unstable();
        names
    }

    pub fn archive(&self, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        self.all.get(name).unwrap().export(&mut out, false).unwrap();
        out
    }
}

/// Everything of a tree that a user could notice.
pub(crate) fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_vec()
        } else if meta.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let mut names = vec![0u8; 4096];
        let n = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let times = (meta.mtime(), meta.mtime_nsec());
        let text = format!(
            "{:o} {times:?} {links} {:?} {}",
            meta.mode(),
            String::from_utf8_lossy(&names[..n]),
            crate::manifest::digest(&content)
        );
        all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
    }
    all
}

/// Something of everything.
fn furnish(root: &Path) {
    std::fs::create_dir_all(root.join("src/deep/er")).unwrap();
    std::fs::write(root.join("src/a.rs"), "fn main() {}\n").unwrap();
    std::fs::write(root.join("src/deep/er/empty"), "").unwrap();
    std::fs::write(root.join("run.sh"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(root.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::hard_link(root.join("src/a.rs"), root.join("src/same.rs")).unwrap();
    symlink("src/a.rs", root.join("link")).unwrap();
    symlink("/etc/passwd", root.join("out")).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"caf\xe9\n")), "x").unwrap();
    let big = std::fs::File::create(root.join("sparse")).unwrap();
    big.set_len(9 << 20).unwrap();
    rustix::fs::setxattr(root.join("run.sh"), "user.note", b"v", rustix::fs::XattrFlags::empty())
        .unwrap();
    std::fs::create_dir(root.join("closed")).unwrap();
    std::fs::write(root.join("closed/in"), "in").unwrap();
    std::fs::set_permissions(root.join("closed"), PermissionsExt::from_mode(0o555)).unwrap();
}

#[test]
fn a_directory_becomes_a_codebase_exactly() {
    let w = World::new();
    let source = w.source();
    furnish(&source);
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let mut told = 0;
    let made = w
        .all
        .create("one", From::Directory(&source), &Options::default(), &mut |p| told = p.names)
        .unwrap();
    assert_eq!(made.skipped, [source.canonicalize().unwrap().join("socket")]);
    assert!(told > 8);
    std::fs::remove_file(source.join("socket")).unwrap();
    // Removing the socket changed the time of the directory.
    let mut wanted = seen(&source);
    wanted.remove(Path::new(""));
    let codebase = w.all.get("one").unwrap();
    let mut found = seen(&codebase.tree());
    found.remove(Path::new(""));
    assert_eq!(found, wanted);
    assert_eq!(codebase.record.files, 7);
    assert_eq!(codebase.record.version, 1);
    assert!(codebase.record.id.starts_with("cb_") && codebase.record.id.len() == 19);
    assert_eq!(w.all.get(&codebase.record.id).unwrap().record, codebase.record);
    assert_eq!(w.left(), std::slice::from_ref(&codebase.record.id));
    // The index says what a look says.
    let names = w.all.names(&codebase).unwrap();
    assert_eq!(names.len(), codebase.record.entries);
    assert_eq!(names.len() as usize, wanted.len());
    assert_eq!(names.get(b"src/a.rs").unwrap().unwrap().size, 13);
    let here = w.all.files(&codebase, OsStr::new("/workspace/src"), false).unwrap();
    let paths: Vec<&[u8]> = here.iter().map(|n| &n.path[..]).collect();
    assert_eq!(paths, [&b"src/a.rs"[..], b"src/deep", b"src/same.rs"]);
    assert!(w.make("one", From::Nothing).unwrap_err().to_string().contains("exists already"));
    w.all.remove("one").unwrap();
    assert!(w.left().is_empty());
    assert!(matches!(w.all.get("one"), Err(Error::NoCodebase(_))));
}

#[test]
fn patterns_leave_out_as_git_does() {
    let w = World::new();
    let source = w.source();
    for path in ["target/x", "src/target/y", "a.log", "keep.log", "src/b.log", "docs/target"] {
        std::fs::create_dir_all(source.join(path).parent().unwrap()).unwrap();
        std::fs::write(source.join(path), path).unwrap();
    }
    let list = w.dir.path().join("ignore");
    std::fs::write(&list, "# comment\n*.log\n!keep.log\n/target\n").unwrap();
    let options = Options {
        exclude_from: vec![list],
        exclude: vec!["docs/target".into()],
        ..Options::default()
    };
    w.all.create("one", From::Directory(&source), &options, &mut |_| {}).unwrap();
    let codebase = w.all.get("one").unwrap();
    let found = w.all.files(&codebase, OsStr::new(""), true).unwrap();
    let files: Vec<&str> = found
        .iter()
        .filter(|f| !f.is_dir())
        .map(|f| std::str::from_utf8(&f.path).unwrap())
        .collect();
    assert_eq!(files, ["keep.log", "src/target/y"]);
}

#[test]
fn the_store_is_not_copied_into_itself() {
    let w = World::new();
    let error = w.make("one", From::Directory(w.dir.path())).unwrap_err();
    assert!(error.to_string().contains("holds the store itself"), "{error}");
    assert!(w.left().is_empty());
}

#[test]
fn names_are_checked() {
    let w = World::new();
    for name in ["", ".x", "a/b", "../x", "a b", &"n".repeat(65)] {
        assert!(matches!(w.make(name, From::Nothing), Err(Error::Name(_))), "{name}");
    }
}

fn tar(members: &[(Member, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (member, content) in members {
        let mut member = member.clone();
        member.size = content.len() as u64;
        write_header(&mut out, &member).unwrap();
        out.extend_from_slice(content);
        out.extend(vec![0; padding(member.size)]);
    }
    write_end(&mut out).unwrap();
    out
}

fn file(path: &str) -> Member {
    Member::new(path.into(), Kind::File)
}

fn from(bytes: Vec<u8>) -> From<'static> {
    From::Stream(Box::new(std::io::Cursor::new(bytes)))
}

#[test]
fn archives_of_all_three_kinds() {
    let w = World::new();
    let plain = tar(&[(file("a/b"), b"content"), (file("c"), b"")]);
    let zstd = zstd::encode_all(&plain[..], 3).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let path = w.dir.path().join("x.tgz");
    std::fs::write(&path, gzip.finish().unwrap()).unwrap();
    w.make("plain", from(plain)).unwrap();
    w.make("zstd", from(zstd)).unwrap();
    w.make("gzip", From::Archive(&path)).unwrap();
    let of = |name: &str| {
        let mut all = seen(&w.all.get(name).unwrap().tree());
        // No member describes the top: it is as old as the codebase.
        let top = all.remove(Path::new("")).unwrap();
        assert!(top.starts_with("40755 "), "{top}");
        all
    };
    assert_eq!(of("plain"), of("zstd"));
    assert_eq!(of("plain"), of("gzip"));
    let mut out = Vec::new();
    let codebase = w.all.get("gzip").unwrap();
    assert_eq!(w.all.get_file(&codebase, OsStr::new("a/b"), &mut out).unwrap(), 7);
    assert_eq!(out, b"content");
}

#[test]
fn hostile_archives_leave_nothing() {
    let w = World::new();
    let outside = w.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let link = |path: &str, to: &Path| Member {
        link: to.as_os_str().as_bytes().to_vec(),
        ..Member::new(path.into(), Kind::Symlink)
    };
    let mut opaque = Member::new("d".into(), Kind::Directory);
    opaque.attributes.insert(b"user.overlay.opaque".to_vec(), b"y".to_vec());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("up", tar(&[(file("../evil"), b"x")])),
        ("absolute", tar(&[(file("/tmp/evil"), b"x")])),
        ("through a link", tar(&[(link("l", &outside), b""), (file("l/evil"), b"x")])),
        ("twice", tar(&[(file("a"), b"x"), (file("a"), b"y")])),
        ("device", tar(&[(Member::new("dev".into(), Kind::Device), b"")])),
        ("whiteout", tar(&[(file(".wh.passwd"), b"")])),
        ("opaque", tar(&[(file("d/.wh..wh..opq"), b""), (file("d/x"), b"")])),
        ("cut", tar(&[(file("a"), b"x")])[..700].to_vec()),
        ("not one", b"hello, this is not an archive".repeat(100)),
    ];
    for (what, bytes) in cases {
        let answer = w.make("evil", from(bytes));
        assert!(answer.is_err(), "{what}");
        assert!(w.left().is_empty(), "{what}: {:?}", w.left());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{what}");
    }
    // What overlayfs would take for an order is left out, as it is from layers.
    w.make("plain", from(tar(&[(opaque, b"")]))).unwrap();
    // The control: the same names, harmless.
    w.make("good", from(tar(&[(link("l", &outside), b""), (file("k/evil"), b"x")]))).unwrap();
}

#[test]
fn an_index_is_that_of_the_recorded_tree_or_none() {
    let w = World::new();
    let source = w.source();
    w.make("one", From::Directory(&source)).unwrap();
    let get = || w.all.get("one").unwrap();
    let before = get();
    let file = before.tree().parent().unwrap().join("names");
    let old = std::fs::read(&file).unwrap();
    assert!(before.index().is_some());
    w.all.put("one", OsStr::new("d/late"), None, &b"x"[..]).unwrap();
    let after = get();
    assert!(after.index().unwrap().get(b"d/late").unwrap().is_some());
    // Whoever asked before the change does not get what is of after it.
    assert!(before.index().is_none());
    // The one of before does not come back.
    std::fs::write(&file, &old).unwrap();
    assert!(after.index().is_none());
    let listed = w.all.files(&after, OsStr::new(""), true).unwrap();
    assert!(listed.iter().any(|named| named.path == b"d/late"));
    let renewed = get();
    assert!(renewed.index().is_some());
    std::fs::write(renewed.tree().join("by hand"), "x").unwrap();
    assert!(renewed.index().is_none(), "the directory itself says that it was changed");
    // An index that is in use when the tree is changed is known as removed.
    w.all.put("one", OsStr::new("d/later"), None, &b"x"[..]).unwrap();
    let used = get().index().unwrap();
    assert!(used.is_kept());
    w.all.put("one", OsStr::new("d/latest"), None, &b"x"[..]).unwrap();
    assert!(!used.is_kept());
}

#[test]
fn files_are_put_and_read_beneath_the_tree_only() {
    let w = World::new();
    let outside = w.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    let source = w.source();
    symlink(&outside, source.join("dir")).unwrap();
    symlink(outside.join("secret"), source.join("link")).unwrap();
    std::fs::write(source.join("run.sh"), "old").unwrap();
    std::fs::set_permissions(source.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    w.make("one", From::Directory(&source)).unwrap();
    let put =
        |path: &str, content: &str| w.all.put("one", OsStr::new(path), None, content.as_bytes());
    assert_eq!(put("new/dir/file", "1").unwrap().version, 2);
    let record = put("/workspace/run.sh", "new!").unwrap();
    assert_eq!((record.version, record.files, record.size), (3, 2, 5));
    let codebase = w.all.get("one").unwrap();
    assert_eq!(codebase.record, record);
    let mode = codebase.tree().join("run.sh").metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o755, "a file keeps its mode");
    for (path, why) in [
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("", "not the name"),
        ("/workspace/", "not the name"),
        ("dir/evil", "symbolic link"),
        ("link", "symbolic link"),
        ("new", "is a directory"),
        ("run.sh/x", "is a file"),
        ("a\0b", "zero byte"),
    ] {
        let error = put(path, "evil").unwrap_err().to_string();
        assert!(error.contains(why), "{path}: {error}");
    }
    let get = |path: &str| {
        let mut out = Vec::new();
        w.all.get_file(&codebase, OsStr::new(path), &mut out).map(|_| out)
    };
    assert_eq!(get("new/dir/file").unwrap(), b"1");
    for path in ["link", "dir/secret", "../state/codebases.db", "new", "nothing"] {
        assert!(get(path).is_err(), "{path}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    // Nothing half-made is left beside the tree, and the index knows what was put.
    let left: Vec<_> = std::fs::read_dir(codebase.tree().parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|n| !matches!(n.to_str(), Some("tree" | "names" | "lock")))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(w.all.names(&codebase).unwrap().get(b"new/dir/file").unwrap().is_some());
    w.all.seal("one").unwrap();
    assert!(matches!(put("more", ""), Err(Error::Sealed(_))));
}

#[test]
fn what_a_sandbox_runs_on_does_not_change() {
    let w = World::new();
    w.make("one", From::Nothing).unwrap();
    let codebase = w.all.get("one").unwrap();
    let store = Store::open(&w.dir.path().join("state")).unwrap();
    let roots = [Root::new(codebase.tree())];
    let session = store.begin("work", &roots, Stamp::now()).unwrap();
    let put = || w.all.put("one", OsStr::new("x"), None, &b"x"[..]);
    assert!(matches!(put(), Err(Error::InUse { .. })));
    assert!(matches!(w.all.remove("one"), Err(Error::InUse { .. })));
    let layers = w.all.layers(&codebase).unwrap();
    assert_eq!(layers.names, ["work"]);
    assert!(layers.used.is_some());
    session.finish(&Outcome::default()).unwrap();
    put().unwrap();
    w.all.remove("one").unwrap();
    assert!(w.left().is_empty());
}

#[test]
fn what_a_killed_process_left_goes() {
    let w = World::new();
    w.make("one", From::Nothing).unwrap();
    let id = w.all.get("one").unwrap().record.id;
    let store = w.dir.path().join("state/codebases");
    for left in [".new-cb_0011223344556677", ".gone-0011223344556677", "cb_8899aabbccddeeff"] {
        std::fs::create_dir_all(store.join(left).join("tree/deep")).unwrap();
        std::fs::write(store.join(left).join("tree/deep/file"), "x").unwrap();
    }
    // One that is being made is not touched.
    let making = w.all.draft().unwrap();
    let mut wanted = vec![format!(".new-{}", making.id), id.clone()];
    wanted.sort_unstable();
    assert_eq!(w.left(), wanted);
    w.make("two", From::Nothing).unwrap();
    assert!(w.left().contains(&wanted[0]));
    drop(making);
    assert_eq!(w.left().len(), 2);
    // Without an index, as after a kill in the middle of a change, the tree is looked at anew.
    let codebase = w.all.get("one").unwrap();
    std::fs::write(codebase.tree().join("appeared"), "123").unwrap();
    std::fs::remove_file(store.join(&id).join("names")).unwrap();
    assert!(w.all.names(&codebase).unwrap().get(b"appeared").unwrap().is_some());
    let record = w.all.get("one").unwrap().record;
    assert_eq!((record.size, record.files, record.version), (3, 1, 2));
}

#[test]
fn many_at_once_agree() {
    let w = World::new();
    let state = w.dir.path().join("state");
    std::thread::scope(|scope| {
        for n in 0..6 {
            let state = state.clone();
            scope.spawn(move || {
                let all = Codebases::open(&state).unwrap();
                let name = format!("c{}", n % 3);
                // Two want each name: one gets it.
                let _ = all.create(&name, From::Nothing, &Options::default(), &mut |_| {});
                for k in 0..5 {
                    let path = format!("f{n}-{k}");
                    all.put(&name, OsStr::new(&path), None, path.as_bytes()).unwrap();
                }
            });
        }
    });
    let all = w.all.list().unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|r| r.files == 10 && r.version == 11), "{all:?}");
    assert_eq!(w.left().len(), 3);
}
