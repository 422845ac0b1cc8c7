//! The walk remembered between runs: one small binary file per workspace and set of patterns.
//!
//! The file is an optimisation and never an authority: it is used only when it belongs to the caller
//! in a directory that nobody else can write and that is not part of the workspace, and each of its
//! directories counts only while the directory's inode number, mtime and ctime are what they were.
//! A sandbox can set an mtime back, but not a ctime, and making, removing or renaming a name moves
//! both.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::fd;

/// Largest cache that is read or written, bytes: some 400,000 directories.
const MAX_BYTES: usize = 64 << 20;
/// Workspaces remembered; beyond, the oldest files are removed when one is written.
const MAX_FILES: usize = 256;
/// Levels climbed to see whether the cache lies in the workspace; deeper than any sane home.
const MAX_CLIMB: usize = 256;
/// Bumped with every change of format or of meaning.
const MAGIC: [u8; 8] = *b"RFWALK\0\x01";
const HEADER: usize = 64;
/// The checksum covers everything after itself.
const SUMMED_FROM: usize = 24;
/// `parent` of the root record.
const NO_PARENT: u32 = u32::MAX;

/// Where walks are remembered: `$XDG_CACHE_HOME/ringfence/walk` or `~/.cache/ringfence/walk`.
pub fn cache_directory(xdg_cache_home: Option<&OsStr>, home: &Path) -> PathBuf {
    match xdg_cache_home.map(Path::new) {
        Some(base) if base.is_absolute() => base.join("ringfence/walk"),
        _ => home.join(".cache/ringfence/walk"),
    }
}

/// What must be unchanged for a directory to count as unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub ino: u64,
    pub mtime: i64,
    pub ctime: i64,
    pub mtime_nsec: u32,
    pub ctime_nsec: u32,
}

impl Stamp {
    pub fn of(stat: &Stat) -> Self {
        let [(mtime, mtime_nsec), (ctime, ctime_nsec)] = fd::times(stat);
        Self { ino: fd::id(stat).1, mtime, ctime, mtime_nsec, ctime_nsec }
    }
}

/// What was noted about a directory or a name in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    Match {
        rule: u32,
        is_dir: bool,
        is_symlink: bool,
    },
    /// Another name of a matched file.
    Alias,
    DotGit,
    Bare,
    /// The directory lies on another device than its parent.
    Mount,
    /// The directory could not be listed.
    Unreadable(Errno),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub kind: NoteKind,
    /// Empty when the note is about the directory itself.
    pub name: Vec<u8>,
    pub ino: u64,
    pub dev: u64,
    pub nlink: u64,
}

/// How a directory is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Listed again when the stamp differs.
    Stamp(Stamp),
    /// Always listed again (it had changed just before it was listed).
    List,
    /// Always walked again with all below (another device, or not readable then).
    Tree,
}

/// One directory, as walked.
#[derive(Clone, Debug)]
pub struct Record {
    /// Relative to the root, empty for the root itself.
    pub path: Vec<u8>,
    pub again: Again,
    /// Not on the root's device: not remembered, except a `Tree` record for the topmost.
    pub foreign: bool,
    pub notes: Vec<Note>,
}

/// One directory, as remembered.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    pub path: &'a CStr,
    /// Index of the parent; smaller than the own one.
    pub parent: Option<u32>,
    pub again: Again,
    notes: &'a [u8],
    note_count: u32,
}

impl Cached<'_> {
    /// The notes, with `dev` of the root (only such directories have notes here).
    pub fn notes(&self, dev: u64) -> Vec<Note> {
        let mut cursor = Cursor { bytes: self.notes };
        (0..self.note_count).map_while(|_| cursor.note(dev)).collect()
    }

    pub fn has_notes(&self) -> bool {
        self.note_count > 0
    }
}

/// What a cache file must say it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub dev: u64,
    pub ino: u64,
    pub fingerprint: [u8; 16],
}

impl Key {
    fn file_name(&self) -> String {
        use std::fmt::Write as _;
        let mut name = format!("{:x}-{:x}-", self.dev, self.ino);
        for byte in &self.fingerprint {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// The directory of cache files, found to be the caller's alone and outside the workspace.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
}

impl Store {
    /// Opens it; `None` when it does not exist or must not be trusted.
    pub fn open(path: &Path, root: &Stat) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&dir).ok()?;
        let private = stat.st_uid == rustix::process::geteuid().as_raw()
            && stat.st_mode & 0o022 == 0
            && !is_beneath(dir.as_fd(), &stat, root);
        private.then_some(Self { dir })
    }

    /// Makes it, mode 0700 with all that is missing above, and opens it.
    pub fn create(path: &Path, root: &Stat) -> Option<Self> {
        if let Some(store) = Self::open(path, root) {
            return Some(store);
        }
        // Never make anything inside the workspace: look at the nearest directory that exists.
        let existing = path.ancestors().find(|p| p.is_dir())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(existing, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&dir).ok()?;
        if is_beneath(dir.as_fd(), &stat, root) {
            return None;
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).ok()?;
        Self::open(path, root)
    }

    /// The bytes of a cache file that is the caller's, whole and about `key`.
    pub fn load(&self, key: &Key) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, key.file_name(), flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let size = usize::try_from(stat.st_size).ok()?;
        if fd::kind(&stat) != rustix::fs::FileType::RegularFile
            || stat.st_uid != rustix::process::geteuid().as_raw()
            || stat.st_mode & 0o022 != 0
            || !(HEADER..=MAX_BYTES).contains(&size)
        {
            return None;
        }
        let mut bytes = Vec::with_capacity(size + 1);
        File::from(fd).take(MAX_BYTES as u64).read_to_end(&mut bytes).ok()?;
        let mut head = Cursor { bytes: &bytes };
        let sound = head.take(8)? == MAGIC
            && head.u64()? == bytes.len() as u64
            && head.u64()? == checksum(&bytes[SUMMED_FROM..])
            && head.u64()? == key.dev
            && head.u64()? == key.ino
            && head.take(16)? == key.fingerprint;
        sound.then_some(bytes)
    }

    /// Writes a cache file under another name and renames it; the reader sees all or nothing.
    pub fn save(&self, key: &Key, mut bytes: Vec<u8>) -> Option<()> {
        if bytes.len() > MAX_BYTES {
            return None;
        }
        let sum = checksum(&bytes[SUMMED_FROM..]);
        bytes[16..24].copy_from_slice(&sum.to_le_bytes());
        let name = key.file_name();
        let draft = format!("{name}.{}", std::process::id());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(&self.dir, &*draft, flags, mode).ok()?;
        let written = File::from(fd).write_all(&bytes).is_ok()
            && rustix::fs::renameat(&self.dir, &*draft, &self.dir, &*name).is_ok();
        if !written {
            let _ = rustix::fs::unlinkat(&self.dir, &*draft, AtFlags::empty());
            return None;
        }
        self.prune();
        Some(())
    }

    /// Removes the oldest half when there are too many.
    fn prune(&self) {
        let Ok((names, _)) = fd::list(self.dir.as_fd(), 4 * MAX_FILES) else { return };
        if names.len() <= MAX_FILES {
            return;
        }
        let mut aged: Vec<_> = names
            .into_iter()
            .filter_map(|(name, _)| {
                let stat = fd::stat_name(&self.dir, &*name).ok()?;
                Some((stat.st_mtime, name))
            })
            .collect();
        aged.sort_unstable();
        let surplus = aged.len() - (MAX_FILES / 2).min(aged.len());
        for (_, name) in aged.into_iter().take(surplus) {
            let _ = rustix::fs::unlinkat(&self.dir, &*name, AtFlags::empty());
        }
    }
}

/// Whether a directory is `root` or lies below it, found by climbing.
fn is_beneath(dir: BorrowedFd<'_>, stat: &Stat, root: &Stat) -> bool {
    let same = |a: &Stat, b: &Stat| fd::id(a) == fd::id(b);
    if same(stat, root) {
        return true;
    }
    let Ok(mut at) = dir.try_clone_to_owned() else { return true };
    let mut here = *stat;
    for _ in 0..MAX_CLIMB {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(up) = rustix::fs::openat(&at, "..", flags, Mode::empty()) else { return true };
        let Ok(above) = rustix::fs::fstat(&up) else { return true };
        if same(&above, root) {
            return true;
        }
        if same(&above, &here) {
            return false;
        }
        (at, here) = (up, above);
    }
    true
}

/// Finds accidents (a torn write, a bad block), not forgery: the file is the caller's own.
fn checksum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = bytes.len() as u64 ^ PRIME;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.iter().rev().fold(0_u64, |w, &b| w << 8 | u64::from(b));
        sum = (sum ^ word).wrapping_mul(PRIME).rotate_left(29);
    }
    for &byte in chunks.remainder() {
        sum = (sum ^ u64::from(byte)).wrapping_mul(PRIME).rotate_left(29);
    }
    sum
}

/// Reads a whole cache; `None` on the first inconsistency.
pub fn decode(bytes: &[u8]) -> Option<Vec<Cached<'_>>> {
    let mut cursor = Cursor { bytes: bytes.get(HEADER - 8..)? };
    let count = cursor.u32()?;
    cursor.u32()?;
    // A record takes more than 48 bytes: a count that cannot be is not believed.
    if count as usize > bytes.len() / 48 {
        return None;
    }
    let mut records: Vec<Cached<'_>> = Vec::with_capacity(count as usize);
    for index in 0..count {
        let record = cursor.record(index)?;
        // Sorted order is what lets a path be looked up.
        if records.last().is_some_and(|last| last.path.to_bytes() >= record.path.to_bytes()) {
            return None;
        }
        records.push(record);
    }
    cursor.bytes.is_empty().then_some(records)
}

/// What to write: directories in the order of their paths.
#[derive(Debug)]
pub enum Line<'a> {
    Old(Cached<'a>),
    New(&'a Record),
}

impl Line<'_> {
    pub fn path(&self) -> &[u8] {
        match self {
            Line::Old(cached) => cached.path.to_bytes(),
            Line::New(record) => &record.path,
        }
    }
}

/// Puts a cache file together, but for its checksum. `lines` are sorted by path and unique.
pub fn encode(key: &Key, lines: &[Line<'_>]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(HEADER + lines.len() * 96);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&key.dev.to_le_bytes());
    out.extend_from_slice(&key.ino.to_le_bytes());
    out.extend_from_slice(&key.fingerprint);
    out.extend_from_slice(&u32::try_from(lines.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&0_u32.to_le_bytes());
    for line in lines {
        let path = line.path();
        let parent = if path.is_empty() {
            NO_PARENT
        } else {
            let cut = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
            lines.binary_search_by(|l| l.path().cmp(&path[..cut])).ok()? as u32
        };
        let (again, count) = match line {
            Line::Old(cached) => (cached.again, cached.note_count),
            Line::New(record) => (record.again, u32::try_from(record.notes.len()).ok()?),
        };
        let (flag, stamp) = match again {
            Again::Stamp(stamp) => (0_u32, stamp),
            Again::List => (1, EMPTY_STAMP),
            Again::Tree => (2, EMPTY_STAMP),
        };
        out.extend_from_slice(&parent.to_le_bytes());
        out.extend_from_slice(&u32::try_from(path.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        out.extend_from_slice(&flag.to_le_bytes());
        out.extend_from_slice(&stamp.ino.to_le_bytes());
        out.extend_from_slice(&stamp.mtime.to_le_bytes());
        out.extend_from_slice(&stamp.ctime.to_le_bytes());
        out.extend_from_slice(&stamp.mtime_nsec.to_le_bytes());
        out.extend_from_slice(&stamp.ctime_nsec.to_le_bytes());
        let length_at = out.len();
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(path);
        out.push(0);
        let notes_at = out.len();
        match line {
            Line::Old(cached) => out.extend_from_slice(cached.notes),
            Line::New(record) => {
                for note in &record.notes {
                    put_note(&mut out, note)?;
                }
            }
        }
        let length = u32::try_from(out.len() - notes_at).ok()?;
        out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
    let total = out.len() as u64;
    out[8..16].copy_from_slice(&total.to_le_bytes());
    Some(out)
}

const EMPTY_STAMP: Stamp = Stamp { ino: 0, mtime: 0, ctime: 0, mtime_nsec: 0, ctime_nsec: 0 };

fn put_note(out: &mut Vec<u8>, note: &Note) -> Option<()> {
    let (kind, flags, number) = match note.kind {
        NoteKind::Match { rule, is_dir, is_symlink } => {
            (0_u8, u8::from(is_dir) | u8::from(is_symlink) << 1, rule)
        }
        NoteKind::Alias => (1, 0, 0),
        NoteKind::DotGit => (2, 0, 0),
        NoteKind::Bare => (3, 0, 0),
        NoteKind::Mount => (4, 0, 0),
        NoteKind::Unreadable(errno) => (5, 0, errno.raw_os_error() as u32),
    };
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&u16::try_from(note.name.len()).ok()?.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&note.ino.to_le_bytes());
    out.extend_from_slice(&note.nlink.to_le_bytes());
    out.extend_from_slice(&note.name);
    Some(())
}

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    fn record(&mut self, index: u32) -> Option<Cached<'a>> {
        let parent = match self.u32()? {
            NO_PARENT if index == 0 => None,
            parent if parent < index => Some(parent),
            _ => return None,
        };
        let path_length = self.u32()? as usize;
        let note_count = self.u32()?;
        let flag = self.u32()?;
        let ino = self.u64()?;
        let mtime = i64::from_le_bytes(self.array()?);
        let ctime = i64::from_le_bytes(self.array()?);
        let mtime_nsec = self.u32()?;
        let ctime_nsec = self.u32()?;
        let again = match flag {
            0 => Again::Stamp(Stamp { ino, mtime, ctime, mtime_nsec, ctime_nsec }),
            1 => Again::List,
            2 => Again::Tree,
            _ => return None,
        };
        let notes_length = self.u32()? as usize;
        let path = CStr::from_bytes_with_nul(self.take(path_length.checked_add(1)?)?).ok()?;
        let notes = self.take(notes_length)?;
        let mut check = Cursor { bytes: notes };
        for _ in 0..note_count {
            check.note(0)?;
        }
        if !check.bytes.is_empty() {
            return None;
        }
        Some(Cached { path, parent, again, notes, note_count })
    }

    fn note(&mut self, dev: u64) -> Option<Note> {
        let [kind, flags] = self.array()?;
        let length = u16::from_le_bytes(self.array()?);
        let number = self.u32()?;
        let ino = self.u64()?;
        let nlink = self.u64()?;
        let name = self.take(usize::from(length))?.to_vec();
        let kind = match kind {
            0 => {
                NoteKind::Match { rule: number, is_dir: flags & 1 != 0, is_symlink: flags & 2 != 0 }
            }
            1 => NoteKind::Alias,
            2 => NoteKind::DotGit,
            3 => NoteKind::Bare,
            4 => NoteKind::Mount,
            5 => NoteKind::Unreadable(Errno::from_raw_os_error(number as i32)),
            _ => return None,
        };
        Some(Note { kind, name, ino, dev, nlink })
    }
}
