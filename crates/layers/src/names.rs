//! The names of a tree that nobody changes but us: every path with its type, size and time, in one
//! file that is searched where it lies. A question costs as many looks as it has answers, not as many
//! as the tree has files.
//!
//! ```text
//! header     magic, number of entries, where the parts are, of what the index is
//! entries    40 bytes each, by path
//! by name    numbers of entries and how the last part of their path begins, in the order of that
//! by end     the same, read backwards
//! text       the paths
//! sums       one for each 4 KiB of all above
//! sum        of the sums
//! ```
//!
//! Whatever is read was compared with its sum before it is believed: rules are looked up here, and a name
//! that a damaged index lacked would not be hidden.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"rfnames2";
const HEADER: u64 = 96;
const ENTRY: u64 = 40;
/// A number and [`HEAD`] bytes.
const SLOT: u64 = 16;
/// Bytes of a name that are in its slot: most comparisons need no more of it.
const HEAD: usize = 12;
/// What one sum is of.
const BLOCK: u64 = 4096;
/// Blocks that are kept for the next question.
const MOST_KEPT: usize = 1024;
/// Bytes of the text of one path that are read.
const MAX_PATH: u32 = 1 << 20;
/// Entries that are read at once where many are wanted.
const BATCH: u64 = 256;

/// One name of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Relative to the tree, without leading `/`.
    pub path: Vec<u8>,
    pub kind: FileType,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
}

impl Named {
    /// The last part of the path.
    pub fn name(&self) -> &[u8] {
        &self.path[name_at(&self.path)..]
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }
}

fn name_at(path: &[u8]) -> usize {
    path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1)
}

/// What the last part of a path is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like<'a> {
    Exactly(&'a [u8]),
    Starts(&'a [u8]),
    Ends(&'a [u8]),
}

impl Like<'_> {
    pub fn matches(&self, name: &[u8]) -> bool {
        match self {
            Self::Exactly(text) => name == *text,
            Self::Starts(text) => name.starts_with(text),
            Self::Ends(text) => name.ends_with(text),
        }
    }
}

/// What an index is of, in words of whoever wrote it. One that says something else is of another tree,
/// or of the same at another time.
pub type State = [u64; 4];

/// Writes the index of `entries`, which are brought into order.
pub fn write(entries: &mut [Named], state: State, out: &mut impl Write) -> Result<()> {
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let count = entries.len() as u64;
    let by_name = HEADER + count * ENTRY;
    let by_end = by_name + count * SLOT;
    let text_at = by_end + count * SLOT;
    let length = text_at + entries.iter().map(|e| e.path.len() as u64).sum::<u64>();
    let depth = entries.iter().map(|e| depth(&e.path)).max().unwrap_or(0);
    let directories = entries.iter().filter(|e| e.is_dir()).count() as u64;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(MAGIC);
    for number in [count, by_name, by_end, text_at, length, depth, directories].iter().chain(&state)
    {
        bytes.extend(number.to_le_bytes());
    }
    let mut at = text_at;
    for entry in entries.iter() {
        bytes.extend(at.to_le_bytes());
        bytes.extend((entry.path.len() as u32).to_le_bytes());
        bytes.extend((name_at(&entry.path) as u32).to_le_bytes());
        bytes.extend(u32::from(kind_number(entry.kind)).to_le_bytes());
        bytes.extend(entry.mtime.1.to_le_bytes());
        bytes.extend(entry.mtime.0.to_le_bytes());
        bytes.extend(entry.size.to_le_bytes());
        at += entry.path.len() as u64;
    }
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by(|a, b| entries[*a as usize].name().cmp(entries[*b as usize].name()));
    for number in &order {
        bytes.extend(number.to_le_bytes());
        bytes.extend(head(entries[*number as usize].name().iter()));
    }
    order.sort_by(|a, b| {
        let backwards = |n: u32| entries[n as usize].name().iter().rev();
        backwards(*a).cmp(backwards(*b)).then(a.cmp(b))
    });
    for number in &order {
        bytes.extend(number.to_le_bytes());
        bytes.extend(head(entries[*number as usize].name().iter().rev()));
    }
    for entry in entries.iter() {
        bytes.extend(&entry.path);
    }
    let sums: Vec<u8> = bytes.chunks(BLOCK as usize).flat_map(sum).collect();
    out.write_all(&bytes)?;
    out.write_all(&sums)?;
    out.write_all(&sum(&sums))
}

/// Levels of a path.
fn depth(path: &[u8]) -> u64 {
    path.split(|b| *b == b'/').count() as u64
}

/// The first bytes of a name; zeros, which no name has, where it is shorter.
fn head<'b>(name: impl Iterator<Item = &'b u8>) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    for (slot, byte) in head.iter_mut().zip(name) {
        *slot = *byte;
    }
    head
}

/// Against damage, not against somebody who writes where only we write.
fn sum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&Sha256::digest(bytes)[..8]);
    sum
}

fn kind_number(kind: FileType) -> u8 {
    (kind.as_raw_mode() >> 12) as u8
}

/// An index as it lies on the disk.
#[derive(Debug)]
pub struct Names {
    file: OwnedFd,
    count: u64,
    by_name: u64,
    by_end: u64,
    /// Of what the sums are of.
    length: u64,
    depth: u64,
    directories: u64,
    state: State,
    sums: Vec<u8>,
    kept: Mutex<HashMap<u64, Arc<[u8]>>>,
}

struct Raw {
    path_at: u64,
    path_len: u32,
    name_at: u32,
    kind: u32,
    nanoseconds: u32,
    seconds: i64,
    size: u64,
}

fn damaged() -> Error {
    Error::new(ErrorKind::InvalidData, "the index of names is damaged")
}

impl Names {
    /// The index called `name` in `directory`; `None` where there is none.
    pub fn open(directory: BorrowedFd<'_>, name: &str) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let whole = rustix::fs::fstat(&file)?.st_size as u64;
        let mut header = [0; HEADER as usize];
        if whole < HEADER + 8 {
            return Err(damaged());
        }
        read_whole(&file, &mut header, 0)?;
        if &header[..8] != MAGIC {
            return Err(damaged());
        }
        let number = |at: usize| u64_at(&header, at * 8);
        let (count, by_name, by_end, text, length) =
            (number(1), number(2), number(3), number(4), number(5));
        let sums_length = length.div_ceil(BLOCK) * 8;
        let fits = u32::try_from(count).is_ok()
            && by_name == HEADER + count * ENTRY
            && by_end == by_name + count * SLOT
            && text == by_end + count * SLOT
            && text <= length
            && length.checked_add(sums_length + 8) == Some(whole);
        if !fits {
            return Err(damaged());
        }
        let mut sums = vec![0; sums_length as usize];
        read_whole(&file, &mut sums, length)?;
        let mut of_sums = [0; 8];
        read_whole(&file, &mut of_sums, length + sums_length)?;
        let state = std::array::from_fn(|i| number(8 + i));
        let (depth, directories) = (number(6), number(7));
        let kept = Mutex::default();
        let found =
            Self { file, count, by_name, by_end, length, depth, directories, state, sums, kept };
        // The first block is compared with its sum only here.
        if of_sums != sum(&found.sums) || found.read(0, HEADER as usize)? != header {
            return Err(damaged());
        }
        Ok(Some(found))
    }

    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The most levels that a path has.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    pub fn directories(&self) -> u64 {
        self.directories
    }

    /// What it is of.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether its file still has a name: who changes the tree takes it away first.
    pub fn is_kept(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|s| s.st_nlink > 0)
    }

    /// A part of the file, as it was written.
    fn block(&self, number: u64) -> Result<Arc<[u8]>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = kept.get(&number) {
            return Ok(Arc::clone(block));
        }
        let at = number * BLOCK;
        let mut bytes = vec![0; BLOCK.min(self.length.saturating_sub(at)) as usize];
        read_whole(&self.file, &mut bytes, at)?;
        let sum_at = number as usize * 8;
        if self.sums.get(sum_at..sum_at + 8) != Some(&sum(&bytes)[..]) {
            return Err(damaged());
        }
        let block: Arc<[u8]> = bytes.into();
        if kept.len() < MOST_KEPT {
            kept.insert(number, Arc::clone(&block));
        }
        Ok(block)
    }

    fn read(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let end = at.checked_add(length as u64).filter(|end| *end <= self.length);
        let end = end.ok_or_else(damaged)?;
        let mut bytes = Vec::with_capacity(length);
        let mut next = at;
        while next < end {
            let block = self.block(next / BLOCK)?;
            let from = (next % BLOCK) as usize;
            let to = block.len().min(from + (end - next) as usize);
            bytes.extend_from_slice(block.get(from..to).ok_or_else(damaged)?);
            next += (to - from) as u64;
        }
        Ok(bytes)
    }

    fn raw(&self, number: u64) -> Result<Raw> {
        if number >= self.count {
            return Err(damaged());
        }
        let bytes = self.read(HEADER + number * ENTRY, ENTRY as usize)?;
        Ok(raw_of(&bytes))
    }

    fn named(&self, raw: &Raw) -> Result<Named> {
        if raw.path_len > MAX_PATH || raw.name_at > raw.path_len {
            return Err(damaged());
        }
        Ok(Named {
            path: self.read(raw.path_at, raw.path_len as usize)?,
            kind: FileType::from_raw_mode(raw.kind << 12),
            size: raw.size,
            mtime: (raw.seconds, raw.nanoseconds),
        })
    }

    fn path(&self, number: u64) -> Result<Vec<u8>> {
        let raw = self.raw(number)?;
        self.named(&raw).map(|n| n.path)
    }

    /// The first number in `0..count` for which `at_or_after` holds.
    fn partition(&self, mut before: impl FnMut(u64) -> Result<bool>) -> Result<u64> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if before(middle)? { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The first entry whose path is not before `path`.
    fn lower_bound(&self, path: &[u8]) -> Result<u64> {
        self.partition(|n| Ok(self.path(n)?.as_slice() < path))
    }

    pub fn get(&self, path: &[u8]) -> Result<Option<Named>> {
        let at = self.lower_bound(path)?;
        if at == self.count {
            return Ok(None);
        }
        let found = self.named(&self.raw(at)?)?;
        Ok((found.path == path).then_some(found))
    }

    /// Everything below a directory (`""`: all), by path.
    pub fn below(&self, directory: &[u8]) -> Result<Vec<Named>> {
        let (from, to) = self.range_below(directory)?;
        self.range(from, to)
    }

    fn range_below(&self, directory: &[u8]) -> Result<(u64, u64)> {
        if directory.is_empty() {
            return Ok((0, self.count));
        }
        // What follows a slash in the order of bytes is `0`.
        let with = |last: u8| directory.iter().copied().chain([last]).collect::<Vec<u8>>();
        Ok((self.lower_bound(&with(b'/'))?, self.lower_bound(&with(b'0'))?))
    }

    fn range(&self, from: u64, to: u64) -> Result<Vec<Named>> {
        let mut found = Vec::with_capacity((to - from) as usize);
        let mut at = from;
        while at < to {
            let n = BATCH.min(to - at);
            let bytes = self.read(HEADER + at * ENTRY, (n * ENTRY) as usize)?;
            let raws: Vec<Raw> = bytes.chunks_exact(ENTRY as usize).map(raw_of).collect();
            // Paths lie one after the other in the same order.
            let (Some(first), Some(last)) = (raws.first(), raws.last()) else { break };
            let end = last.path_at.saturating_add(last.path_len.into());
            let length = end.checked_sub(first.path_at).ok_or_else(damaged)?;
            if length > BATCH * u64::from(MAX_PATH) {
                return Err(damaged());
            }
            let text = self.read(first.path_at, length as usize)?;
            for raw in &raws {
                let start = raw.path_at.checked_sub(first.path_at).ok_or_else(damaged)? as usize;
                let path = text.get(start..start + raw.path_len as usize).ok_or_else(damaged)?;
                found.push(Named {
                    path: path.to_vec(),
                    kind: FileType::from_raw_mode(raw.kind << 12),
                    size: raw.size,
                    mtime: (raw.seconds, raw.nanoseconds),
                });
            }
            at += n;
        }
        Ok(found)
    }

    /// What lies directly in a directory, by path. Costs as much as there are answers, however much
    /// lies below them.
    pub fn children(&self, directory: &[u8]) -> Result<Vec<Named>> {
        let (mut at, to) = self.range_below(directory)?;
        let skip = if directory.is_empty() { 0 } else { directory.len() + 1 };
        let mut found = Vec::new();
        while at < to {
            let entry = self.named(&self.raw(at)?)?;
            let deeper = entry.path.get(skip..).and_then(|r| r.iter().position(|b| *b == b'/'));
            match deeper {
                None => {
                    found.push(entry);
                    at += 1;
                }
                Some(cut) => {
                    let mut beyond = entry.path[..skip + cut].to_vec();
                    beyond.push(b'0');
                    at = self.lower_bound(&beyond)?.max(at + 1);
                }
            }
        }
        Ok(found)
    }

    /// All entries whose last part is like this, in no particular order.
    pub fn like(&self, like: Like<'_>) -> Result<Vec<Named>> {
        let (part, text, backwards) = match like {
            Like::Exactly(text) | Like::Starts(text) => (self.by_name, text.to_vec(), false),
            Like::Ends(text) => (self.by_end, text.iter().rev().copied().collect(), true),
        };
        let slot = |n: u64| -> Result<(u32, Vec<u8>)> {
            let bytes = self.read(part + n * SLOT, SLOT as usize)?;
            Ok((u32_at(&bytes, 0), bytes[4..].to_vec()))
        };
        let wanted = head(text.iter());
        let is_before = |n: u64| -> Result<bool> {
            let (number, begins) = slot(n)?;
            let order = match begins.as_slice().cmp(&wanted) {
                // Where the text is shorter, the zeros say that the name ends there too.
                Ordering::Equal if text.len() >= HEAD => {
                    let found = self.named(&self.raw(number.into())?)?;
                    let name = found.name();
                    if backwards { name.iter().rev().cmp(text.iter()) } else { name.cmp(&text[..]) }
                }
                order => order,
            };
            Ok(order == Ordering::Less)
        };
        let mut at = self.partition(is_before)?;
        let mut all = Vec::new();
        while at < self.count {
            let found = self.named(&self.raw(slot(at)?.0.into())?)?;
            if !like.matches(found.name()) {
                break;
            }
            all.push(found);
            at += 1;
        }
        Ok(all)
    }

    /// All entries whose last part is like one of these, by path, each once.
    pub fn candidates<'l>(&self, likes: impl IntoIterator<Item = Like<'l>>) -> Result<Vec<Named>> {
        let mut found = Vec::new();
        for like in likes {
            found.extend(self.like(like)?);
        }
        found.sort_unstable_by(|a: &Named, b: &Named| a.path.cmp(&b.path));
        found.dedup_by(|a, b| a.path == b.path);
        Ok(found)
    }
}

fn read_whole(file: &OwnedFd, bytes: &mut [u8], at: u64) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], at + done as u64) {
            Ok(0) => return Err(damaged()),
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte))
}

/// `bytes` are as many as an entry has.
fn raw_of(bytes: &[u8]) -> Raw {
    Raw {
        path_at: u64_at(bytes, 0),
        path_len: u32_at(bytes, 8),
        name_at: u32_at(bytes, 12),
        kind: u32_at(bytes, 16),
        nanoseconds: u32_at(bytes, 20),
        seconds: u64_at(bytes, 24) as i64,
        size: u64_at(bytes, 32),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use proptest::prelude::*;

    use super::*;

    const STATE: State = [7, 1, 2, 3];

    fn indexed(paths: &[&str]) -> (tempfile::TempDir, Names) {
        let dir = tempfile::tempdir().unwrap();
        let mut entries: Vec<Named> = paths
            .iter()
            .map(|p| Named {
                path: p.as_bytes().to_vec(),
                kind: FileType::RegularFile,
                size: p.len() as u64,
                mtime: (-3, 999),
            })
            .collect();
        let mut file = std::fs::File::create(dir.path().join("names")).unwrap();
        write(&mut entries, STATE, &mut file).unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        let names = Names::open(opened.as_fd(), "names").unwrap().unwrap();
        (dir, names)
    }

    fn paths(found: &[Named]) -> Vec<&str> {
        found.iter().map(|n| std::str::from_utf8(&n.path).unwrap()).collect()
    }

    #[test]
    fn questions_are_answered_from_the_file() {
        let (_dir, names) = indexed(&[
            "a",
            "a-b",
            "a/x.key",
            "a/y/z.key",
            "a0",
            "secrets",
            "secrets/in",
            ".env",
            ".env.local",
            "b/.env",
        ]);
        assert_eq!(names.len(), 10);
        assert_eq!(names.get(b"a/y/z.key").unwrap().unwrap().size, 9);
        assert_eq!(names.get(b"a/y").unwrap(), None);
        assert_eq!(names.get(b"a").unwrap().unwrap().mtime, (-3, 999));
        assert_eq!(paths(&names.below(b"a").unwrap()), ["a/x.key", "a/y/z.key"]);
        assert_eq!(
            paths(&names.children(b"").unwrap()),
            [".env", ".env.local", "a", "a-b", "a0", "secrets"]
        );
        assert_eq!(paths(&names.children(b"secrets").unwrap()), ["secrets/in"]);
        let likes = [Like::Ends(b".key"), Like::Starts(b".env"), Like::Exactly(b"secrets")];
        assert_eq!(
            paths(&names.candidates(likes).unwrap()),
            [".env", ".env.local", "a/x.key", "a/y/z.key", "b/.env", "secrets"]
        );
        assert_eq!((names.depth(), names.directories(), names.state()), (3, 0, STATE));
        assert!(names.is_kept());
    }

    #[test]
    fn damage_is_an_error_and_never_another_answer() {
        let (dir, _) = indexed(&["a/b", "c", "d.key"]);
        let good = std::fs::read(dir.path().join("names")).unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        for cut in 0..good.len() {
            std::fs::write(dir.path().join("names"), &good[..cut]).unwrap();
            let read = Names::open(opened.as_fd(), "names").and_then(|n| n.unwrap().below(b""));
            assert!(read.is_err(), "cut at {cut}");
        }
        assert!(Names::open(opened.as_fd(), "none").unwrap().is_none());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(dir.path().join("names"), &bad).unwrap();
            let read = Names::open(opened.as_fd(), "names").and_then(|n| n.unwrap().below(b""));
            assert!(read.is_err(), "another byte at {at}");
        }
    }

    #[test]
    fn damage_is_seen_where_a_question_leads_and_a_removed_index_is_known_as_such() {
        let many: Vec<String> = (0..5000).map(|n| format!("d{}/name-{n:05}.rs", n % 50)).collect();
        let mut all: Vec<&str> = many.iter().map(String::as_str).collect();
        all.extend(["d1/server.key", "d2/.env"]);
        let (dir, names) = indexed(&all);
        let likes = || [Like::Ends(b".key"), Like::Exactly(b".env")];
        assert_eq!(paths(&names.candidates(likes()).unwrap()), ["d1/server.key", "d2/.env"]);
        let file = dir.path().join("names");
        let good = std::fs::read(&file).unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        // Wherever it is, the answer is the right one or none.
        for at in (0..good.len()).step_by(1021) {
            let mut bad = good.clone();
            bad[at] = !bad[at];
            std::fs::write(&file, &bad).unwrap();
            let answer =
                Names::open(opened.as_fd(), "names").and_then(|n| n.unwrap().candidates(likes()));
            if let Ok(found) = answer {
                assert_eq!(paths(&found), ["d1/server.key", "d2/.env"], "another byte at {at}");
            }
        }
        assert!(names.is_kept());
        std::fs::remove_file(&file).unwrap();
        assert!(!names.is_kept());
    }

    proptest! {
        #[test]
        fn answers_are_those_of_a_look_at_every_name(
            all in prop::collection::btree_set("[ab.]{1,3}(/[ab.]{1,3}){0,3}", 0..40),
            text in "[ab.]{1,3}",
            directory in "[ab.]{1,3}",
        ) {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let (_dir, names) = indexed(&all);
            let name = |p: &str| p.rsplit('/').next().unwrap().to_owned();
            for like in [Like::Exactly(text.as_bytes()), Like::Starts(text.as_bytes()), Like::Ends(text.as_bytes())] {
                let mut found = names.like(like).unwrap();
                found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
                let mut wanted: Vec<&str> =
                    all.iter().copied().filter(|p| like.matches(name(p).as_bytes())).collect();
                wanted.sort_unstable();
                prop_assert_eq!(paths(&found), wanted);
            }
            let inside = format!("{directory}/");
            let mut below: Vec<&str> = all.iter().copied().filter(|p| p.starts_with(&inside)).collect();
            below.sort_unstable();
            let found = names.below(directory.as_bytes()).unwrap();
            prop_assert_eq!(paths(&found), below.clone());
            below.retain(|p| !p[inside.len()..].contains('/'));
            let found = names.children(directory.as_bytes()).unwrap();
            prop_assert_eq!(paths(&found), below);
        }
    }
}
