//! What changes below a directory of a sandbox, as it comes.
//!
//! The kernel tells it of directories that the sandbox's init opened under the sandbox's own rules, and of
//! nothing else. It tells of names as they are on the file system, though, where something may lie over
//! them in the sandbox's view; so before anything is passed on
//!
//! - the directory must be, at this moment, what the sandbox finds under that path;
//! - nothing may be mounted over the name, now or when the watch began: what rules hide is such a name.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringfence_api::FileChange;
use ringfence_sandbox::resident::{Head, kind};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::error::{Error, Kind};
use crate::files::{is_kernels, plain, said};
use crate::link::Link;
use crate::sandbox::Live;

/// Watches that one sandbox may have.
pub(crate) const MOST: usize = 8;
/// Directories of one watch, and how deep.
const MOST_DIRECTORIES: usize = 4096;
const DEEPEST: usize = 128;
/// What may wait for its reader; then changes are lost, which is told.
const QUEUE: usize = 1024;
/// Events that are taken from the kernel before they are passed on.
const AT_ONCE: usize = 512;
const BUFFER: usize = 16 << 10;
/// What the second half of a move is waited for.
const BETWEEN: std::time::Duration = std::time::Duration::from_millis(2);
/// Why a watch ended: its sandbox did.
const SANDBOX: &str = "sandbox";

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Created(FileChange),
    Changed(FileChange),
    Attributes(FileChange),
    Moved(FileChange),
    Removed(FileChange),
    /// Some changes are not told: there were too many.
    Overflow,
    /// Nothing more comes.
    Ended(String),
}

/// A watch; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch(mpsc::Receiver<Told>);

impl Watch {
    pub async fn next(&mut self) -> Option<Told> {
        self.0.recv().await
    }
}

/// As the kernel told it.
struct Raw {
    watch: i32,
    what: ReadFlags,
    cookie: u32,
    name: Option<String>,
}

/// A directory that is watched.
struct Place {
    /// From the watched one on; empty for that itself.
    below: String,
    /// Names in it that something is mounted over.
    covered: HashSet<String>,
}

struct Watcher {
    link: Arc<Link>,
    /// The type serves for waiting only.
    kernel: UnixDatagram,
    root: String,
    recursive: bool,
    first: i32,
    places: HashMap<i32, Place>,
    out: mpsc::Sender<Told>,
    /// Something could not be told.
    lost: bool,
    _permit: OwnedSemaphorePermit,
}

/// Begins; what changes after the answer is told.
pub(crate) async fn watch(
    live: &Live,
    permit: OwnedSemaphorePermit,
    root: String,
    recursive: bool,
) -> Result<Watch, Error> {
    let limit = |e: Errno| {
        Error::new(Kind::Limit, format!("cannot watch: {e}")).with("end other watches of this user")
    };
    let kernel = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(limit)?;
    let kernel =
        UnixDatagram::from_std(kernel.into()).map_err(|e| Error::internal(e.to_string()))?;
    let (out, told) = mpsc::channel(QUEUE);
    let mut watcher = Watcher {
        link: live.link.clone(),
        kernel,
        root,
        recursive,
        first: -1,
        places: HashMap::new(),
        out,
        lost: false,
        _permit: permit,
    };
    let fd = watcher.open("", libc::O_RDONLY | libc::O_DIRECTORY).await?;
    let fd = fd.map_err(|e| said("watch", &watcher.root, e))?;
    plain(&fd, &watcher.root, FileType::Directory)?;
    if is_kernels(&fd) {
        return Err(Error::new(Kind::Refused, format!("{} is the kernel's", watcher.root)));
    }
    watcher.first = watcher.register(&fd).map_err(limit)?;
    drop(fd);
    if !watcher.add("", false).await? {
        return Err(Error::new(
            Kind::Limit,
            format!("more than {MOST_DIRECTORIES} directories, or than this user may watch"),
        )
        .with("watch a part of them"));
    }
    let mut ended = live.ended.clone();
    tokio::spawn(async move {
        let gone = async {
            // Or nobody is there any more who could say so.
            let _ = ended.wait_for(Option::is_some).await;
        };
        watcher.run(gone).await;
    });
    Ok(Watch(told))
}

/// The first may be named through a link, whose end it is then.
fn flags(below: &str) -> i32 {
    let link = if below.is_empty() { 0 } else { libc::O_NOFOLLOW };
    libc::O_RDONLY | libc::O_DIRECTORY | link
}

/// One of ours, that is being written beside the file that it becomes.
fn is_draft(name: &str) -> bool {
    name.strip_prefix(".ringfence-")
        .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_covered(directory: &OwnedFd, name: &str) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(directory, name, flags, StatxFlags::TYPE) {
        Ok(found) => found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        // What is not there has nothing over it.
        Err(e) => e != Errno::NOENT,
    }
}

impl Watcher {
    fn path(&self, below: &str) -> String {
        let root = self.root.trim_end_matches('/');
        if below.is_empty() { format!("{root}/.") } else { format!("{root}/{below}") }
    }

    async fn open(&self, below: &str, flags: i32) -> Result<Result<OwnedFd, Errno>, Error> {
        let head = Head { kind: kind::OPEN, value: flags, ..Head::default() };
        match self.link.files(head, &[&self.path(below)]).await? {
            Ok(Some(fd)) => Ok(Ok(fd)),
            Ok(None) => Err(Error::lost()),
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// The number by which the kernel tells of a directory: the same for the same one.
    fn register(&self, fd: &OwnedFd) -> Result<i32, Errno> {
        let what = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVE_SELF
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        inotify::add_watch(&self.kernel, format!("/proc/self/fd/{}", fd.as_raw_fd()), what)
    }

    /// Watches a directory, and with `recursive` what is below it; with `tell` what is in it is told as
    /// new. False when not all of it is watched.
    async fn add(&mut self, below: &str, tell: bool) -> Result<bool, Error> {
        let mut open = vec![below.to_owned()];
        let mut whole = true;
        while let Some(below) = open.pop() {
            // Gone by now, or not to be read.
            let Ok(fd) = self.open(&below, flags(&below)).await? else { continue };
            if is_kernels(&fd) {
                continue;
            }
            if self.places.len() >= MOST_DIRECTORIES || below.split('/').count() > DEEPEST {
                whole = false;
                continue;
            }
            let Ok(number) = self.register(&fd) else {
                whole = false;
                continue;
            };
            let (names, covered) = names(&fd);
            self.places.insert(number, Place { below: below.clone(), covered: covered.clone() });
            for (name, directory) in names {
                let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
                if tell && !covered.contains(&name) && !is_draft(&name) {
                    let change = FileChange { path: path.clone(), from: None, directory };
                    self.tell(Told::Created(change));
                }
                if directory && self.recursive {
                    open.push(path);
                }
            }
        }
        Ok(whole)
    }

    fn tell(&mut self, told: Told) {
        if self.lost || self.out.try_send(told).is_err() {
            self.lost = true;
        }
    }

    async fn run(mut self, gone: impl Future<Output = ()>) {
        let mut gone = std::pin::pin!(gone);
        let out = self.out.clone();
        loop {
            let events: io::Result<()> = tokio::select! {
                () = out.closed() => return,
                () = &mut gone => {
                    let _ = out.send(Told::Ended(SANDBOX.into())).await;
                    return;
                }
                Ok(room) = out.reserve(), if self.lost => {
                    room.send(Told::Overflow);
                    self.lost = false;
                    continue;
                }
                ready = self.kernel.readable() => ready,
            };
            let take = || self.kernel.try_io(Interest::READABLE, || read(self.kernel.as_fd()));
            let mut events = events.and_then(|()| take()).unwrap_or_default();
            // The kernel tells the two halves of a move one after the other.
            if events.last().is_some_and(|last| last.what.contains(ReadFlags::MOVED_FROM)) {
                tokio::time::sleep(BETWEEN).await;
                events.extend(take().unwrap_or_default());
            }
            // Not to be given up in the middle: what is watched depends on it.
            let why = match self.pass(events).await {
                Ok(None) => continue,
                Ok(Some(why)) => why,
                // Its init does not answer any more.
                Err(_) => SANDBOX.into(),
            };
            let _ = out.send(Told::Ended(why)).await;
            return;
        }
    }

    async fn pass(&mut self, events: Vec<Raw>) -> Result<Option<String>, Error> {
        let mut there: HashMap<i32, Option<OwnedFd>> = HashMap::new();
        let mut moved: Option<(u32, FileChange)> = None;
        let mut draft = None;
        let mut events = VecDeque::from(events);
        while let Some(Raw { watch, what, cookie, name }) = events.pop_front() {
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.lost = true;
                continue;
            }
            let last = what.intersects(ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF);
            if last && watch == self.first {
                return Ok(Some("gone".into()));
            }
            if what.contains(ReadFlags::IGNORED) {
                self.places.remove(&watch);
                there.remove(&watch);
                continue;
            }
            let (Some(place), Some(name)) = (self.places.get(&watch), name) else { continue };
            let path = match place.below.as_str() {
                "" => name.clone(),
                below => format!("{below}/{name}"),
            };
            let directory = what.contains(ReadFlags::ISDIR);
            let leaves = what.contains(ReadFlags::MOVED_FROM);
            // One that was moved is not followed there: it may be where the sandbox has no business.
            if leaves && directory {
                self.forget(&path);
            }
            if is_draft(&name) {
                draft = leaves.then_some(cookie).or(draft);
                continue;
            }
            if let Some((_, change)) = moved.take_if(|(other, _)| *other != cookie) {
                self.tell(Told::Removed(change));
            }
            if let Entry::Vacant(place) = there.entry(watch) {
                place.insert(self.still_there(watch).await?);
            }
            let Some(Some(found)) = there.get(&watch) else { continue };
            if !self.is_seen(watch, found, &name) {
                continue;
            }
            let change = FileChange { path, from: None, directory };
            if leaves {
                moved = Some((cookie, change));
                continue;
            }
            self.say(what, change, moved.take(), draft == Some(cookie) && cookie != 0).await?;
        }
        if let Some((_, change)) = moved {
            self.tell(Told::Removed(change));
        }
        Ok(None)
    }

    async fn say(
        &mut self,
        what: ReadFlags,
        change: FileChange,
        moved: Option<(u32, FileChange)>,
        was_draft: bool,
    ) -> Result<(), Error> {
        let arrives = what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        let enter = (arrives && change.directory && self.recursive).then(|| change.path.clone());
        let told = if what.contains(ReadFlags::DELETE) {
            Told::Removed(change)
        } else if let Some((_, before)) = moved {
            Told::Moved(FileChange { from: Some(before.path), ..change })
        } else if arrives && !was_draft {
            Told::Created(change)
        } else if what.contains(ReadFlags::ATTRIB) {
            Told::Attributes(change)
        } else {
            Told::Changed(change)
        };
        // Who was told of a move may rely on what comes from there; what is new is told with what is in it.
        let was_here = matches!(told, Told::Moved(_));
        let mut whole = true;
        if let (Some(below), true) = (&enter, was_here) {
            whole = self.add(below, false).await?;
        }
        self.tell(told);
        if let (Some(below), false) = (&enter, was_here) {
            whole = self.add(below, true).await?;
        }
        self.lost |= !whole;
        Ok(())
    }

    /// What the sandbox finds where this directory was, if it is still the same.
    async fn still_there(&mut self, watch: i32) -> Result<Option<OwnedFd>, Error> {
        let Some(place) = self.places.get(&watch) else { return Ok(None) };
        let below = place.below.clone();
        let found = self.open(&below, flags(&below)).await?;
        let found = found.ok().filter(|fd| self.register(fd) == Ok(watch));
        if found.is_none() {
            self.places.remove(&watch);
            // Gone already is as good.
            let _ = inotify::remove_watch(&self.kernel, watch);
        }
        Ok(found)
    }

    fn is_seen(&self, watch: i32, directory: &OwnedFd, name: &str) -> bool {
        self.places.get(&watch).is_some_and(|place| !place.covered.contains(name))
            && !is_covered(directory, name)
    }

    /// Watches nothing any more there and below.
    fn forget(&mut self, path: &str) {
        let kernel = &self.kernel;
        self.places.retain(|watch, place| {
            let rest = place.below.strip_prefix(path);
            let gone = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if gone {
                let _ = inotify::remove_watch(kernel, *watch);
            }
            !gone
        });
    }
}

/// Names in a directory with whether they are directories, and those that something is mounted over.
fn names(fd: &OwnedFd) -> (Vec<(String, bool)>, HashSet<String>) {
    let (mut all, mut covered) = (Vec::new(), HashSet::new());
    let Ok(entries) = Dir::read_from(fd) else { return (all, covered) };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        if is_covered(fd, name) {
            covered.insert(name.to_owned());
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => statx(fd, name, flags, StatxFlags::TYPE).is_ok_and(|s| {
                FileType::from_raw_mode(u32::from(s.stx_mode)) == FileType::Directory
            }),
            _ => false,
        };
        all.push((name.to_owned(), directory));
    }
    (all, covered)
}

/// What is there. Names that are not UTF-8 cannot be told.
fn read(kernel: BorrowedFd<'_>) -> io::Result<Vec<Raw>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = inotify::Reader::new(kernel, &mut buffer);
    let mut events = Vec::new();
    while events.len() < AT_ONCE || !reader.is_buffer_empty() {
        let event = match reader.next() {
            Ok(event) => event,
            Err(_) if !events.is_empty() => break,
            Err(e) => return Err(e.into()),
        };
        let (watch, what, cookie) = (event.wd(), event.events(), event.cookie());
        match event.file_name().map(std::ffi::CStr::to_str) {
            Some(Ok(name)) => {
                events.push(Raw { watch, what, cookie, name: Some(name.to_owned()) });
            }
            Some(Err(_)) => {}
            None => events.push(Raw { watch, what, cookie, name: None }),
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_known_by_their_names() {
        assert!(is_draft(&format!(".ringfence-{}", "0f".repeat(16))));
        for other in [".ringfence-", ".ringfence-0f", "a", ".ringfence.toml"] {
            assert!(!is_draft(other), "{other}");
        }
    }
}
