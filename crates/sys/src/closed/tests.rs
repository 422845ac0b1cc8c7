use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use rustix::fs::{Mode, XattrFlags};

use super::*;

const READ: OFlags = OFlags::RDONLY;
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn directory(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// Says why not where there is no such namespace.
fn offered(dir: &OwnedFd) -> bool {
    let there = open(dir.as_fd(), b"closed", READ | OFlags::DIRECTORY, NO_LINKS).is_ok();
    if !there {
        println!("skipped: no user namespaces on this host");
    }
    there
}

#[test]
fn what_is_ones_own_is_reached_and_not_changed() {
    let temporary = tempfile::tempdir().unwrap();
    let closed = temporary.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("file"), "text").unwrap();
    rustix::fs::setxattr(closed.join("file"), "user.x", b"value", XattrFlags::empty()).unwrap();
    mode(&closed.join("file"), 0);
    mode(&closed, 0);
    let dir = directory(temporary.path());
    if offered(&dir) {
        let file = open(dir.as_fd(), b"closed/file", READ, NO_LINKS).unwrap();
        let mut text = String::new();
        fs::File::from(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        let place = open(dir.as_fd(), b"closed/file", OFlags::PATH, NO_LINKS).unwrap();
        assert_eq!(rustix::fs::fstat(&place).unwrap().st_mode & 0o7777, 0);
        let path = format!("/proc/self/fd/{}\0", place.as_raw_fd());
        let path = CStr::from_bytes_with_nul(path.as_bytes()).unwrap();
        assert_eq!(attribute(path, OsStr::new("user.x")).unwrap(), b"value");
        assert_eq!(attribute(path, OsStr::new("user.y")), Err(Errno::NODATA));
        assert_eq!(open(dir.as_fd(), b"closed/none", READ, NO_LINKS).unwrap_err(), Errno::NOENT);
        let inner = open(dir.as_fd(), b"closed", OFlags::PATH, NO_LINKS).unwrap();
        unlink(inner.as_fd(), OsStr::new("file"), AtFlags::empty()).unwrap();
        assert_eq!(open(dir.as_fd(), b"closed/file", READ, NO_LINKS).unwrap_err(), Errno::NOENT);
    }
    mode(&closed, 0o700);
}

#[test]
fn what_is_anothers_stays_out_of_reach() {
    let temporary = tempfile::tempdir().unwrap();
    let (closed, theirs) = (temporary.path().join("closed"), temporary.path().join("theirs"));
    fs::create_dir(&closed).unwrap();
    fs::write(&theirs, "secret").unwrap();
    mode(&theirs, 0);
    let dir = directory(temporary.path());
    if !offered(&dir) {
        return;
    }
    // The control: while it is one's own.
    assert!(open(dir.as_fd(), b"theirs", READ, NO_LINKS).is_ok());
    let refused = |dir: &OwnedFd, path: &[u8]| open(dir.as_fd(), path, READ, NO_LINKS).unwrap_err();
    if rustix::process::geteuid().is_root() {
        chown(&theirs, Some(54_321), None).unwrap();
        assert_eq!(refused(&dir, b"theirs"), Errno::ACCESS);
        // One's own in another's group.
        chown(&theirs, Some(0), Some(54_321)).unwrap();
        assert_eq!(refused(&dir, b"theirs"), Errno::ACCESS);
    } else {
        assert_eq!(refused(&directory(Path::new("/etc")), b"shadow"), Errno::ACCESS);
    }
    // A link is none of the path.
    std::os::unix::fs::symlink("theirs", temporary.path().join("link")).unwrap();
    assert_eq!(refused(&dir, b"link"), Errno::LOOP);
}

#[test]
fn a_helper_that_is_gone_is_replaced_and_none_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    fs::create_dir(temporary.path().join("closed")).unwrap();
    let dir = directory(temporary.path());
    if !offered(&dir) {
        return;
    }
    HELPER.with_borrow(|helper| {
        rustix::process::pidfd_send_signal(&helper.as_ref().unwrap().pidfd, Signal::KILL).unwrap();
    });
    let again = || open(dir.as_fd(), b"closed", READ, NO_LINKS);
    // What it was asked as it ended is refused, not waited for.
    assert!(again().is_ok() || again().is_ok());
    let pidfd = HELPER.with_borrow_mut(|helper| {
        let pidfd = helper.as_ref().unwrap().pidfd.try_clone().unwrap();
        *helper = None;
        pidfd
    });
    // It was waited for, too.
    let gone = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    assert_eq!(gone, Err(Errno::SRCH));
}
