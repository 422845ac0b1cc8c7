//! What this host and this project look like: every look at the file system that planning needs,
//! taken once, by descriptor, before anything is decided.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ringfence_sys::raw::{self, Errno, FileId};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Root with the right to map foreign ids: becomes an unprivileged host id.
    pub maps_ids: bool,
}

/// A top-level system entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemEntry {
    Directory(PathBuf),
    /// `bin -> usr/bin`.
    Link(PathBuf, PathBuf),
}

/// An object that exists: found by a rule's literal path, a walk, or as a base place.
#[derive(Clone, Debug)]
pub struct Object {
    /// Absolute, free of symlinks.
    pub path: PathBuf,
    pub id: FileId,
    pub uid: u32,
    pub nlink: u64,
    /// `O_PATH`; what is bound is this very object. `None` for what is only covered or held where it
    /// lies: the file id tells it, and there can be thousands.
    pub fd: Option<std::sync::Arc<OwnedFd>>,
}

impl Object {
    /// A descriptor of this very object; ESTALE when another lies there by now.
    pub fn open(&self) -> Result<OwnedFd, Errno> {
        if let Some(fd) = &self.fd {
            return fd.try_clone().map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EIO)));
        }
        let now = look_at_link(&self.path)?.filter(|now| now.id == self.id);
        let fd = now.and_then(|now| now.fd).ok_or(Errno(libc::ESTALE))?;
        std::sync::Arc::into_inner(fd).ok_or(Errno(libc::ESTALE))
    }
}

/// Looks up an absolute path. `Ok(None)`: does not exist. Symlinks are followed (`canonical`) first,
/// then the result is opened without following any.
pub fn look(path: &Path) -> Result<Option<Object>, Errno> {
    match open_plain(path, false) {
        Err(Errno(libc::ELOOP)) => {
            let Ok(real) = std::fs::canonicalize(path) else { return Ok(None) };
            // A second ELOOP means that it was changed under our feet: refuse.
            open_plain(&real, false)
        }
        r => r,
    }
}

/// As [`look`], but a symlink in the last place is the object itself, so that it can be held where it
/// is.
pub fn look_at_link(path: &Path) -> Result<Option<Object>, Errno> {
    open_plain(path, true)
}

fn open_plain(path: &Path, link: bool) -> Result<Option<Object>, Errno> {
    let c = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno(libc::EINVAL))?;
    let fd = match raw::open_path(&c) {
        Ok(fd) => fd,
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e),
    };
    let st = rustix::fs::fstat(&fd).map_err(|e| Errno(e.raw_os_error()))?;
    let object = object(path, &st, link)?;
    Ok(Some(Object { fd: Some(std::sync::Arc::new(fd)), ..object }))
}

/// ELOOP for a symlink, unless `link` allows it.
fn object(path: &Path, st: &rustix::fs::Stat, link: bool) -> Result<Object, Errno> {
    let kind = rustix::fs::FileType::from_raw_mode(st.st_mode);
    if !link && kind.is_symlink() {
        return Err(Errno(libc::ELOOP));
    }
    let id = FileId { dev: st.st_dev, ino: st.st_ino, is_dir: kind.is_dir() };
    let path = path.to_owned();
    #[allow(clippy::unnecessary_cast)] // narrower on some processors
    let nlink = st.st_nlink as u64;
    Ok(Object { path, id, uid: st.st_uid, nlink, fd: None })
}

/// The usual system directories, as they are on this host.
pub fn system_entries() -> Vec<SystemEntry> {
    const NAMES: [&str; 15] = [
        "usr",
        "etc",
        "opt",
        "bin",
        "sbin",
        "lib",
        "lib64",
        "lib32",
        "libx32",
        "libexec",
        "nix",
        "gnu",
        "snap",
        "run/current-system",
        "sys/devices/system",
    ];
    let mut found = Vec::with_capacity(10);
    for name in NAMES {
        let path = Path::new("/").join(name);
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            found.push(SystemEntry::Directory(path));
        } else if meta.is_symlink()
            && let Ok(target) = std::fs::read_link(&path)
        {
            found.push(SystemEntry::Link(path, target));
        }
    }
    found
}

/// Grants around what is hidden: a directory that holds something hidden becomes the entries in it,
/// as deep as needed. Symlinks need no right of their own.
pub fn split(entries: Vec<SystemEntry>, hidden: &[&Path]) -> Vec<SystemEntry> {
    let mut out = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry {
            SystemEntry::Directory(path) => split_one(path, hidden, &mut out),
            link @ SystemEntry::Link(..) => out.push(link),
        }
    }
    out
}

fn split_one(path: PathBuf, hidden: &[&Path], out: &mut Vec<SystemEntry>) {
    if hidden.contains(&path.as_path()) {
        return;
    }
    if !hidden.iter().any(|h| h.starts_with(&path)) {
        out.push(SystemEntry::Directory(path));
        return;
    }
    // What cannot be listed is not granted.
    let Ok(children) = std::fs::read_dir(&path) else { return };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|t| t.is_dir() || t.is_file()) {
            split_one(child.path(), hidden, out);
        }
    }
}

impl Caller {
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Self { uid, gid, maps_ids: uid == 0 && has_capabilities() && is_hosts_root() }
    }
}

/// Whether uid 0 is the host's: in a user namespace (a rootless container) root may neither map ids
/// that it was not given nor translate the owners of file systems that belong to the host.
fn is_hosts_root() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| is_whole_map(&map))
}

fn is_whole_map(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether root has what mapping a foreign id and opening trees needs (a container may have taken
/// it): CAP_SETGID, CAP_SETUID and CAP_SYS_ADMIN.
fn has_capabilities() -> bool {
    const NEEDED: rustix::thread::CapabilitySet = rustix::thread::CapabilitySet::SETGID
        .union(rustix::thread::CapabilitySet::SETUID)
        .union(rustix::thread::CapabilitySet::SYS_ADMIN);
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(NEEDED))
}

/// A host id for a root caller's sandbox: unprivileged, unlike any other run's, in the range that
/// systemd's list of reserved ids leaves unused (1879048192 to 2147483647). Only for callers with
/// [`Caller::maps_ids`], whose namespace has all ids.
pub fn foreign_id(pid: u32) -> u32 {
    const FIRST: u32 = 1_879_048_192;
    // Largest possible pid (PID_MAX_LIMIT) is 2^22, so this stays inside the range.
    FIRST + pid
}

/// Objects by canonical path, so that each is looked up once.
#[derive(Debug, Default)]
pub struct Objects {
    // Keyed by the bytes: comparing paths by component is many times slower.
    seen: HashMap<OsString, Option<Object>>,
    /// The directory that was last looked into, reached without symlinks.
    directory: Option<(OsString, OwnedFd)>,
}

impl Objects {
    pub fn look(&mut self, path: &Path) -> Result<Option<Object>, Errno> {
        match self.seen.get(path.as_os_str()) {
            Some(Some(object)) if object.fd.is_none() => {}
            Some(known) => return Ok(known.clone()),
            None => {}
        }
        let found = look(path)?;
        self.seen.insert(path.as_os_str().to_owned(), found.clone());
        Ok(found)
    }

    /// As [`Self::look`], for what will not be bound: tells the object without holding it.
    pub fn identify(&mut self, path: &Path) -> Result<Option<Object>, Errno> {
        if let Some(known) = self.seen.get(path.as_os_str()) {
            return Ok(known.clone());
        }
        let found = match self.stat(path) {
            // Through a symlink, or not worth a short cut.
            None => look(path)?.map(|object| Object { fd: None, ..object }),
            Some(r) => r?,
        };
        self.seen.insert(path.as_os_str().to_owned(), found.clone());
        Ok(found)
    }

    /// One call for each of the names in one directory. `None` where the long way must be taken.
    fn stat(&mut self, path: &Path) -> Option<Result<Option<Object>, Errno>> {
        use rustix::fs::{AtFlags, statat};
        let bytes = path.as_os_str().as_bytes();
        let slash = bytes.iter().rposition(|b| *b == b'/').filter(|at| *at > 0)?;
        let (parent, name) = (OsStr::from_bytes(&bytes[..slash]), &bytes[slash + 1..]);
        if matches!(name, b"" | b"." | b"..") {
            return None;
        }
        if self.directory.as_ref().is_none_or(|(known, _)| known != parent) {
            let c = CString::new(parent.as_bytes()).ok()?;
            let directory = raw::open_path(&c).ok()?;
            // A symlink in the last place is opened itself.
            let st = rustix::fs::fstat(&directory).ok()?;
            if !rustix::fs::FileType::from_raw_mode(st.st_mode).is_dir() {
                return None;
            }
            self.directory = Some((parent.to_owned(), directory));
        }
        let (_, directory) = self.directory.as_ref()?;
        match statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => object(path, &st, false).ok().map(|object| Ok(Some(object))),
            Err(rustix::io::Errno::NOENT) => Some(Ok(None)),
            Err(e) => Some(Err(Errno(e.raw_os_error()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SystemEntry, is_whole_map, split};

    #[test]
    fn what_is_hidden_is_left_out_of_what_is_granted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::create_dir_all(at("ssl/private")).unwrap();
        std::fs::write(at("ssl/public"), "").unwrap();
        std::fs::write(at("shadow"), "").unwrap();
        std::fs::write(at("passwd"), "").unwrap();
        let (shadow, private) = (at("shadow"), at("ssl/private"));
        let whole = vec![SystemEntry::Directory(dir.path().to_owned())];
        assert_eq!(split(whole.clone(), &[]), whole);
        let mut granted = split(whole, &[&shadow, &private]);
        granted.sort_by_key(|e| format!("{e:?}"));
        let expected = ["passwd", "ssl/public"].map(|p| SystemEntry::Directory(at(p)));
        assert_eq!(granted, expected);
    }

    #[test]
    fn the_short_way_finds_what_the_long_way_finds() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::fs::write(root.join("real/deep/file"), "").unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("real/deep/file", root.join("to-file")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
        let mut objects = super::Objects::default();
        for path in [
            "real/deep/file",
            "real/deep",
            "link/deep/file",
            "link/deep",
            "link",
            "to-file",
            "dangling",
            "none",
            "none/below",
            "real/deep/file/below",
            "real/deep/none",
            "real/.",
        ] {
            let path = root.join(path);
            let told = |o: Option<super::Object>| o.map(|o| (o.path, o.id, o.uid, o.nlink));
            let short = objects.identify(&path).map(told);
            let long = super::look(&path).map(told);
            assert_eq!(short, long, "{path:?}");
        }
    }

    #[test]
    fn root_of_a_container_is_not_the_hosts() {
        assert!(is_whole_map("         0          0 4294967295\n"));
        assert!(!is_whole_map("         0       1000          1\n"));
        assert!(!is_whole_map("         0     100000      65536\n"));
        assert!(!is_whole_map("0 1000 1\n1 100000 65536\n"));
        assert!(!is_whole_map(""));
    }
}

/// The directories above a clean absolute path, nearest first, as bytes.
pub fn above(path: &Path) -> impl Iterator<Item = &OsStr> {
    let mut rest = path.as_os_str().as_bytes();
    std::iter::from_fn(move || {
        let slash = rest.iter().rposition(|b| *b == b'/')?;
        if rest.len() == 1 {
            return None;
        }
        rest = if slash == 0 { b"/" } else { &rest[..slash] };
        Some(OsStr::from_bytes(rest))
    })
}

/// Whether a clean absolute path is `directory` or lies below it; by bytes.
pub fn lies_in(path: &Path, directory: &Path) -> bool {
    let (path, directory) = (path.as_os_str().as_bytes(), directory.as_os_str().as_bytes());
    directory == b"/"
        || path.strip_prefix(directory).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
}

#[cfg(test)]
mod path_tests {
    use super::*;

    #[test]
    fn paths_by_bytes_say_the_same_as_by_component() {
        for path in ["/", "/a", "/a/b", "/a/b/c d", "/ab"] {
            let path = Path::new(path);
            let by_component: Vec<&OsStr> = path.ancestors().skip(1).map(Path::as_os_str).collect();
            assert_eq!(above(path).collect::<Vec<_>>(), by_component);
            for directory in ["/", "/a", "/a/b", "/ab", "/a/bc"] {
                let directory = Path::new(directory);
                assert_eq!(lies_in(path, directory), path.starts_with(directory));
            }
        }
    }
}
