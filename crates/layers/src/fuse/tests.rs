//! What the kernel shows of a view, against what the rules say. Each case mounts in a mount namespace of
//! its own thread, for which it must be root; ordinary users come through the binary (`tests/e2e`).
#![allow(clippy::unwrap_used)]

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_policy::{Fragment, Places};
use ringfence_sys::{fuse, raw};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps};

use super::{Options, Owners, Rules, View};

const NONE: &str = "lift = [\"guard\", \"secret\"]\n[files]\nsystem = false\ngit = \"open\"\n";

/// Ordered rules: pattern, permission, priority.
fn ordered(rules: &[(&str, &str, i32)]) -> String {
    let mut text = NONE.to_owned();
    for (pattern, permission, priority) in rules {
        text += "[[files.rules]]\n";
        for (key, value) in [("pattern", pattern), ("permission", permission)] {
            text += &[key, " = \"", value, "\"\n"].concat();
        }
        text += &["priority = ", &priority.to_string(), "\n"].concat();
    }
    text
}

fn everything() -> String {
    ordered(&[("**/*", "write", 0)])
}

/// A served directory.
struct Seen {
    /// As the host has it.
    real: PathBuf,
    /// As it is shown.
    at: PathBuf,
    view: Option<View>,
}

impl Seen {
    fn rules(&self, text: &str) -> Rules {
        rules(&self.real, text)
    }

    fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.at.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.real.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn rules(root: &Path, text: &str) -> Rules {
    Rules {
        policy: Arc::new(Fragment::parse("p.toml", text.as_bytes()).unwrap().finish().unwrap()),
        places: Places { workspace: root.to_owned(), home: "/nonexistent".into() },
        extra: Vec::new(),
        root: root.to_owned(),
    }
}

fn served(text: &str, case: impl FnOnce(&mut Seen) + Send) {
    served_with(text, |_| {}, case);
}

fn served_with(
    text: &str,
    change: impl FnOnce(&mut Options) + Send,
    case: impl FnOnce(&mut Seen) + Send,
) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can mount outside a user namespace");
        return;
    }
    let run = || {
        let place = tempfile::tempdir().unwrap();
        let (real, at) = (place.path().join("real"), place.path().join("at"));
        fs::create_dir(&real).unwrap();
        fs::create_dir(&at).unwrap();
        raw::unshare(libc_newns()).unwrap();
        let private = 1 << 18;
        raw::mount_setattr(-100, c"/", raw::mnt::AT_RECURSIVE, 0, private, -1).unwrap();
        let options =
            fuse::Options { uid: 0, gid: 0, others: true, attributes: raw::mnt::ATTR_NODEV };
        let name = CString::new(at.as_os_str().as_bytes()).unwrap();
        let device = match fuse::mount_at(&name, &options) {
            Ok(device) => device,
            Err(errno) => return println!("skipped: no fuse here: {errno}"),
        };
        let mut options = Options::new(Owners::Host);
        change(&mut options);
        let root = File::open(&real).unwrap().into();
        let view = View::serve(device, root, rules(&real, text), options).unwrap();
        let mut seen = Seen { real, at, view: Some(view) };
        case(&mut seen);
        drop(seen.view.take());
        raw::umount2(&name, 2).unwrap();
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

/// `CLONE_NEWNS`, as the kernel counts.
fn libc_newns() -> i32 {
    0x2_0000
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: std::io::Result<T>, errno: rustix::io::Errno) {
    let error = result.expect_err("should be refused");
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}");
}

use rustix::io::Errno;

#[test]
fn each_permission_means_what_the_documents_say() {
    let text = ordered(&[
        ("**/*", "none", 0),
        ("/v/**", "view", 10),
        ("/r/**", "read", 10),
        ("/w/**", "write", 10),
        ("/w/hidden/**", "none", 20),
    ]);
    served(&text, |seen| {
        for name in ["n", "v", "r", "w", "w/hidden"] {
            seen.write(&format!("{name}/file"), "content");
            std::os::unix::fs::symlink("file", seen.real.join(name).join("link")).unwrap();
        }
        assert_eq!(seen.names("."), ["r", "v", "w"]);
        assert_eq!(seen.names("w"), ["file", "link"]);
        let at = |path: &str| seen.at.join(path);

        refused(fs::symlink_metadata(at("n")), Errno::NOENT);
        refused(fs::read(at("n/file")), Errno::NOENT);
        refused(fs::read(at("w/hidden/file")), Errno::NOENT);
        refused(fs::remove_dir(at("n")), Errno::NOENT);

        assert_eq!(fs::metadata(at("v/file")).unwrap().len(), 7);
        assert_eq!(fs::read_link(at("v/link")).unwrap(), Path::new("file"));
        assert_eq!(seen.names("v"), ["file", "link"]);
        refused(File::open(at("v/file")), Errno::ACCESS);
        refused(fs::remove_file(at("v/file")), Errno::ACCESS);
        let mut names = [0u8; 64];
        assert_eq!(rustix::fs::listxattr(at("v/file"), &mut names[..]).unwrap(), 0);

        assert_eq!(fs::read_to_string(at("r/file")).unwrap(), "content");
        let write = OpenOptions::new().write(true).to_owned();
        refused(write.open(at("r/file")), Errno::ACCESS);
        refused(fs::remove_file(at("r/file")), Errno::ACCESS);
        refused(fs::write(at("r/new"), ""), Errno::ACCESS);
        refused(fs::create_dir(at("r/new")), Errno::ACCESS);
        refused(std::os::unix::fs::symlink("x", at("r/new")), Errno::ACCESS);
        refused(fs::rename(at("r/file"), at("w/moved")), Errno::ACCESS);
        refused(fs::rename(at("w/file"), at("r/file")), Errno::ACCESS);
        refused(fs::hard_link(at("r/file"), at("w/linked")), Errno::ACCESS);
        refused(
            fs::set_permissions(at("r/file"), fs::Permissions::from_mode(0o777)),
            Errno::ACCESS,
        );
        let now = Timestamps {
            last_access: Timespec { tv_sec: 1, tv_nsec: 2 },
            last_modification: Timespec { tv_sec: 3, tv_nsec: 4 },
        };
        let times = |path: &str| {
            let done = rustix::fs::utimensat(rustix::fs::CWD, at(path), &now, AtFlags::empty());
            done.map_err(std::io::Error::from)
        };
        refused(times("r/file"), Errno::ACCESS);
        let attribute = |path: &str| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(at(path), "user.a", b"v", flags).map_err(std::io::Error::from)
        };
        refused(attribute("r/file"), Errno::ACCESS);

        times("w/file").unwrap();
        let meta = fs::metadata(at("w/file")).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (3, 4));
        attribute("w/file").unwrap();
        fs::write(at("w/file"), "new").unwrap();
        fs::rename(at("w/file"), at("w/other")).unwrap();
        fs::hard_link(at("w/other"), at("w/third")).unwrap();
        assert_eq!(fs::read_to_string(seen.real.join("w/third")).unwrap(), "new");
        let (a, b) = (fs::metadata(at("w/other")).unwrap(), fs::metadata(at("w/third")).unwrap());
        assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    });
}

#[test]
fn whether_a_hidden_name_exists_cannot_be_told() {
    let text = ordered(&[("**/*", "write", 0), ("**/*.key", "none", 10)]);
    served(&text, |seen| {
        seen.write("d/there.key", "secret");
        let at = |path: &str| seen.at.join(path);
        for name in ["d/there.key", "d/absent.key"] {
            refused(fs::symlink_metadata(at(name)), Errno::NOENT);
            refused(File::open(at(name)), Errno::NOENT);
            refused(fs::remove_file(at(name)), Errno::NOENT);
            refused(fs::write(at(name), "x"), Errno::ACCESS);
            refused(fs::create_dir(at(name)), Errno::ACCESS);
            refused(std::os::unix::fs::symlink("x", at(name)), Errno::ACCESS);
            refused(fs::rename(at(name), at("x")), Errno::NOENT);
        }
        seen.write("visible", "v");
        refused(fs::rename(at("visible"), at("d/there.key")), Errno::ACCESS);
        refused(fs::hard_link(at("visible"), at("d/there.key")), Errno::ACCESS);
        // The directory looks empty, and what it holds is not removed.
        assert!(seen.names("d").is_empty());
        refused(fs::remove_dir(at("d")), Errno::NOTEMPTY);
        assert_eq!(fs::read_to_string(seen.real.join("d/there.key")).unwrap(), "secret");
    });
}

#[test]
fn what_the_host_makes_and_renames_is_decided_as_it_appears() {
    let text = ordered(&[("**/*", "write", 0), ("**/.env*", "none", 10)]);
    served(&text, |seen| {
        seen.write("a/plain", "visible");
        let at = |path: &str| seen.at.join(path);
        assert_eq!(fs::read_to_string(at("a/plain")).unwrap(), "visible");
        let host = |from: &str, to: &str| {
            fs::rename(seen.real.join(from), seen.real.join(to)).unwrap();
        };
        host("a/plain", "a/.env");
        refused(fs::read(at("a/plain")), Errno::NOENT);
        refused(fs::read(at("a/.env")), Errno::NOENT);
        assert!(seen.names("a").is_empty());
        host("a/.env", "a/back");
        assert_eq!(fs::read_to_string(at("a/back")).unwrap(), "visible");
        seen.write("a/.env.local", "secret");
        assert_eq!(seen.names("a"), ["back"]);
        // A directory that is held open is not a way to what it becomes.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let held = rustix::fs::open(at("a"), flags, Mode::empty()).unwrap();
        host("a", ".env.d");
        let read = rustix::fs::openat(&held, "back", OFlags::RDONLY, Mode::empty());
        refused(read.map_err(Into::into), Errno::NOENT);
        refused(fs::read_dir(at(".env.d")), Errno::NOENT);
    });
}

#[test]
fn a_directory_moves_only_if_all_of_it_may_change_its_name() {
    let text = ordered(&[
        ("**/*", "write", 0),
        ("**/.env", "none", 10),
        ("/fixed/**", "read", 10),
        ("/there/x/**", "read", 10),
    ]);
    served(&text, |seen| {
        seen.write("with/deep/.env", "secret");
        seen.write("with/deep/plain", "p");
        seen.write("free/deep/plain", "p");
        seen.write("other/x/y", "y");
        let at = |path: &str| seen.at.join(path);
        refused(fs::rename(at("with"), at("moved")), Errno::ACCESS);
        refused(fs::rename(at("with/deep"), at("deep")), Errno::ACCESS);
        assert!(seen.real.join("with/deep/.env").exists());
        // Where it would go, something could no longer be changed.
        refused(fs::rename(at("other"), at("there")), Errno::ACCESS);
        let exchange = |a: &str, b: &str| {
            let (here, flags) = (rustix::fs::CWD, RenameFlags::EXCHANGE);
            let done = rustix::fs::renameat_with(here, at(a), here, at(b), flags);
            done.map_err(std::io::Error::from)
        };
        refused(exchange("free", "with"), Errno::ACCESS);
        refused(exchange("with", "free"), Errno::ACCESS);

        let open = File::open(at("free/deep/plain")).unwrap();
        fs::rename(at("free"), at("moved")).unwrap();
        assert_eq!(fs::read_to_string(at("moved/deep/plain")).unwrap(), "p");
        assert_eq!(open.metadata().unwrap().len(), 1);
        exchange("moved", "other").unwrap();
        assert_eq!(seen.names("moved"), ["x"]);
        assert_eq!(seen.names("other"), ["deep"]);
        let flags = RenameFlags::NOREPLACE;
        let here = rustix::fs::CWD;
        let kept = rustix::fs::renameat_with(here, at("moved/x/y"), here, at("other"), flags);
        refused(kept.map_err(Into::into), Errno::EXIST);
    });
}

#[test]
fn links_lead_to_what_their_targets_path_permits() {
    let text = ordered(&[("**/*", "write", 0), ("/secrets/**", "none", 10), ("/r/**", "read", 10)]);
    served(&text, |seen| {
        seen.write("secrets/k", "secret");
        seen.write("r/file", "read");
        seen.write("d/file", "plain");
        let at = |path: &str| seen.at.join(path);
        std::os::unix::fs::symlink("secrets/k", at("to-secret")).unwrap();
        refused(fs::read(at("to-secret")), Errno::NOENT);
        std::os::unix::fs::symlink("r/file", at("to-read")).unwrap();
        assert_eq!(fs::read_to_string(at("to-read")).unwrap(), "read");
        refused(fs::write(at("to-read"), "x"), Errno::ACCESS);
        refused(fs::hard_link(at("secrets/k"), at("mine")), Errno::NOENT);
        // The host's own second name of a hidden file is a name of its own.
        fs::hard_link(seen.real.join("secrets/k"), seen.real.join("d/also")).unwrap();
        assert_eq!(fs::read_to_string(at("d/also")).unwrap(), "secret");
        // A directory that becomes a link under the server leads nowhere.
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let held = rustix::fs::open(at("d"), flags, Mode::empty()).unwrap();
        fs::remove_dir_all(seen.real.join("d")).unwrap();
        std::os::unix::fs::symlink("/etc", seen.real.join("d")).unwrap();
        let read = rustix::fs::openat(&held, "passwd", OFlags::RDONLY, Mode::empty());
        refused(read.map_err(Into::into), Errno::NOENT);
    });
}

#[test]
fn rules_are_replaced_while_files_are_open() {
    served(&everything(), |seen| {
        seen.write("a/file", "content");
        seen.write("b", "b");
        let at = |path: &str| seen.at.join(path);
        let mut open = File::open(at("a/file")).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        let mut writer = OpenOptions::new().append(true).open(at("b")).unwrap();

        let narrow = ordered(&[("**/*", "read", 0), ("/a/**", "view", 10)]);
        seen.view.as_ref().unwrap().set_rules(seen.rules(&narrow)).unwrap();
        refused(File::open(at("a/file")), Errno::ACCESS);
        // What the kernel had read of it is gone.
        let mut buffer = [0u8; 4];
        refused(rustix::io::pread(&open, &mut buffer, 0).map_err(Into::into), Errno::ACCESS);
        refused(writer.write(b"x"), Errno::ACCESS);
        assert_eq!(fs::read_to_string(at("b")).unwrap(), "b");

        let hidden = ordered(&[("**/*", "read", 0), ("/a/**", "none", 10)]);
        seen.view.as_ref().unwrap().set_rules(seen.rules(&hidden)).unwrap();
        assert_eq!(seen.names("."), ["b"]);
        refused(fs::symlink_metadata(at("a")), Errno::NOENT);

        seen.view.as_ref().unwrap().set_rules(seen.rules(&everything())).unwrap();
        assert_eq!(rustix::io::pread(&open, &mut buffer, 0), Ok(4));
        writer.write_all(b"x").unwrap();
        assert_eq!(fs::read_to_string(seen.real.join("b")).unwrap(), "bx");
    });
}

#[test]
fn rules_are_replaced_under_load_and_names_are_believed_no_longer() {
    let believed = |options: &mut Options| options.fresh = std::time::Duration::from_secs(60);
    served_with(&everything(), believed, |seen| {
        for n in 0..50 {
            seen.write(&format!("d/{n}"), "x");
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        // Not in this thread's namespace of mounts: by a descriptor that it holds.
        let held = File::open(seen.at.join("d")).unwrap();
        let busy = || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for n in 0..50 {
                    let flags = OFlags::RDONLY;
                    let _ = rustix::fs::openat(&held, n.to_string(), flags, Mode::empty());
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(busy);
            scope.spawn(busy);
            let hidden = ordered(&[("**/*", "write", 0), ("/d/**", "none", 10)]);
            for _ in 0..20 {
                assert!(seen.at.join("d/7").exists());
                seen.view.as_ref().unwrap().set_rules(seen.rules(&hidden)).unwrap();
                refused(fs::symlink_metadata(seen.at.join("d/7")), Errno::NOENT);
                refused(fs::symlink_metadata(seen.at.join("d")), Errno::NOENT);
                seen.view.as_ref().unwrap().set_rules(seen.rules(&everything())).unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

#[test]
fn files_behave_as_they_do_on_the_host() {
    served(&everything(), |seen| {
        let at = |path: &str| seen.at.join(path);
        // Removed while open.
        let mut file = OpenOptions::new();
        let file = file.read(true).write(true).create(true).truncate(true);
        let mut gone = file.open(at("gone")).unwrap();
        gone.write_all(b"abc").unwrap();
        fs::remove_file(at("gone")).unwrap();
        gone.write_all(b"def").unwrap();
        assert_eq!(gone.metadata().unwrap().len(), 6);
        gone.set_len(2).unwrap();
        let mut two = [0u8; 8];
        assert_eq!(rustix::io::pread(&gone, &mut two, 0), Ok(2));
        assert_eq!(gone.metadata().unwrap().nlink(), 0);

        // Without a name, then with one.
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let nameless = rustix::fs::open(&seen.at, flags, Mode::from_raw_mode(0o640)).unwrap();
        rustix::io::write(&nameless, b"named").unwrap();
        let link = format!("/proc/self/fd/{}", nameless.as_raw_fd());
        let here = rustix::fs::CWD;
        rustix::fs::linkat(here, link, here, at("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        rustix::io::write(&nameless, b"!").unwrap();
        assert_eq!(fs::read_to_string(at("named")).unwrap(), "named!");

        // Holes, appended bytes, ranges copied.
        let sparse = file.open(at("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        rustix::io::pwrite(&sparse, b"data", 512 << 20).unwrap();
        let data = rustix::fs::seek(&sparse, SeekFrom::Data(0)).unwrap();
        assert_eq!(data, 512 << 20);
        assert!(fs::metadata(at("sparse")).unwrap().blocks() < 1024);
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&sparse, flags, 0, 4096).unwrap();
        let copy = file.open(at("copy")).unwrap();
        let (mut from, mut to) = (512 << 20, 0);
        let copied = rustix::fs::copy_file_range(&sparse, Some(&mut from), &copy, Some(&mut to), 4);
        assert_eq!(copied, Ok(4));
        let mut append = OpenOptions::new().append(true).open(at("copy")).unwrap();
        append.write_all(b"+").unwrap();
        append.write_all(b"+").unwrap();
        assert_eq!(fs::read_to_string(at("copy")).unwrap(), "data++");

        // Two names, one content, whoever writes.
        fs::write(at("one"), "1").unwrap();
        fs::hard_link(at("one"), at("two")).unwrap();
        let reader = File::open(at("two")).unwrap();
        let mut byte = [0u8; 1];
        rustix::io::pread(&reader, &mut byte, 0).unwrap();
        fs::write(at("one"), "2").unwrap();
        rustix::io::pread(&reader, &mut byte, 0).unwrap();
        assert_eq!(byte, *b"2");

        // What the host writes is seen by who has it open.
        fs::write(seen.real.join("one"), "host's").unwrap();
        assert_eq!(fs::read_to_string(at("one")).unwrap(), "host's");

        // The modes asked for, whatever mask the server has.
        OpenOptions::new().write(true).create_new(true).mode(0o666).open(at("mode")).unwrap();
        let mask = rustix::process::umask(Mode::empty());
        rustix::process::umask(mask);
        let mode = fs::metadata(seen.real.join("mode")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o666 & !mask.as_raw_mode());

        // Names of any bytes, and as many as there are.
        let odd = OsStr::from_bytes(b"\xff\n \x01'*[");
        fs::write(seen.at.join(odd), "odd").unwrap();
        assert_eq!(fs::read(seen.real.join(odd)).unwrap(), b"odd");
        fs::create_dir(at("many")).unwrap();
        for n in 0..3000 {
            File::create(seen.real.join(format!("many/a-rather-long-name-{n}"))).unwrap();
        }
        assert_eq!(seen.names("many").len(), 3000);

        rustix::fs::mknodat(
            here,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(at("socket")).is_ok());
        drop(socket);
        assert!(rustix::fs::statvfs(&seen.at).unwrap().f_blocks > 0);
    });
}

#[test]
fn a_path_longer_than_a_path_may_be_is_walked_in_parts() {
    served(&everything(), |seen| {
        let name = "d".repeat(200);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut here = rustix::fs::open(&seen.at, flags, Mode::empty()).unwrap();
        for _ in 0..30 {
            rustix::fs::mkdirat(&here, &name, Mode::from_raw_mode(0o755)).unwrap();
            here = rustix::fs::openat(&here, &name, flags, Mode::empty()).unwrap();
        }
        let flags = OFlags::RDWR | OFlags::CREATE;
        let file = rustix::fs::openat(&here, "f", flags, Mode::from_raw_mode(0o600)).unwrap();
        rustix::io::write(&file, b"deep").unwrap();
        let again = rustix::fs::openat(&here, "f", OFlags::RDONLY, Mode::empty()).unwrap();
        let mut text = [0u8; 8];
        assert_eq!(rustix::io::read(&again, &mut text), Ok(4));
    });
}

#[test]
fn files_of_a_demoted_root_never_run_as_root() {
    let demoted = |options: &mut Options| {
        options.owners = Owners::One { uid: 0, gid: 0, demoted: true };
    };
    served_with(&everything(), demoted, |seen| {
        seen.write("tool", "#!");
        let path = seen.at.join("tool");
        refused(fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)), Errno::PERM);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let new =
            OpenOptions::new().write(true).create_new(true).mode(0o4755).open(seen.at.join("x"));
        refused(new, Errno::PERM);
        refused(std::os::unix::fs::chown(&path, Some(1), None), Errno::PERM);
        let node = rustix::fs::mknodat(
            rustix::fs::CWD,
            seen.at.join("null"),
            rustix::fs::FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 3),
        );
        refused(node.map_err(Into::into), Errno::PERM);
        let trusted = |name: &str| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&path, name, b"y", flags).map_err(std::io::Error::from)
        };
        refused(trusted("trusted.overlay.opaque"), Errno::OPNOTSUPP);
        refused(trusted("security.other"), Errno::OPNOTSUPP);
        refused(trusted("user.overlay.opaque"), Errno::PERM);
        trusted("user.mine").unwrap();
    });
}

#[test]
fn without_its_server_a_view_answers_nothing() {
    served(&everything(), |seen| {
        seen.write("file", "content");
        let open = File::open(seen.at.join("file")).unwrap();
        drop(seen.view.take());
        refused(fs::read(seen.at.join("file")), Errno::NOTCONN);
        refused(fs::read_dir(&seen.at), Errno::NOTCONN);
        let mut buffer = [0u8; 4];
        refused(rustix::io::pread(&open, &mut buffer, 0).map_err(Into::into), Errno::NOTCONN);
    });
}

#[test]
fn what_the_user_may_write_can_be_written_whoever_owns_it() {
    let one = Owners::One { uid: 1000, gid: 1000, demoted: false };
    let nobody = u32::MAX;
    let groups = [1000, 50];
    for (uid, gid, mode, shown) in [
        (1000, 7, 0o644, (1000, 1000)),
        (0, 50, 0o664, (1000, 1000)),
        (0, 7, 0o664, (nobody, nobody)),
        (0, 7, 0o666, (1000, 1000)),
        (0, 1000, 0o644, (nobody, 1000)),
    ] {
        assert_eq!(one.shown(uid, gid, mode, &groups), shown, "{uid} {gid} {mode:o}");
    }
    let demoted = Owners::One { uid: 0, gid: 0, demoted: true };
    assert_eq!(demoted.shown(1000, 0, 0o666, &[0]), (nobody, 0));
    assert_eq!(Owners::Host.shown(5, 6, 0, &[]), (5, 6));
}
