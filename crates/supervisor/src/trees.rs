//! Many files of a sandbox at once: looked for, handed out and taken as an archive.
//!
//! Every file and directory is opened by the sandbox's init, one request each, under the sandbox's own
//! rules: so nothing is found, read or written here that a command could not, and init answers others in
//! between. Walking, reading and unpacking is done by a thread of ours, and has bounds.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use globset::{GlobBuilder, GlobMatcher};
use ringfence_api::{Found, FoundFiles, Search, Unpacked};
use ringfence_layers::pack::tar::{self, Member, Reader};
use ringfence_sandbox::resident::{Head, kind};
use rustix::fs::{AtFlags, Dir, FileType, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codebases::{Content, Download};
use crate::error::{Error, Kind};
use crate::files::{absolute, is_kernels, plain, said};
use crate::link::Link;

/// Such work that one sandbox may cause at once.
const AT_ONCE: usize = 2;
/// How long a search may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Names that are looked at, and how deep.
const MOST_NAMES: usize = 500_000;
const DEEPEST: usize = 128;
/// Of a file, what is searched; lines of it that are answered, and bytes of each.
const MOST_SEARCHED: u64 = 16 << 20;
const MOST_LINES: usize = 100;
const MOST_LINE: usize = 400;
/// Answers at most, and where nothing is said.
const MOST_FOUND: usize = 10_000;
const FOUND: usize = 1000;
/// Bytes and members that an archive may unpack to.
const MOST_UNPACKED: u64 = 16 << 30;
const MOST_MEMBERS: usize = 500_000;
const PIECE: usize = 64 << 10;

/// What may be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    Move { sandbox: String, from: String, to: String },
    Search { sandbox: String, search: Search },
    Pack { sandbox: String, path: String },
    Unpack { sandbox: String, path: String, content: Content },
    Chmod { sandbox: String, path: String, mode: u32 },
    Watch { sandbox: String, watch: ringfence_api::Watch },
}

/// How much of it a sandbox may cause at once.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self::of(AT_ONCE)
    }
}

impl Room {
    pub(crate) fn of(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    pub(crate) fn take(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.0.clone().try_acquire_owned().map_err(|_| {
            Error::new(Kind::Limit, "the sandbox's files are busy with other such requests")
                .with("try again later")
        })
    }
}

pub(crate) async fn rename(link: &Link, from: &str, to: &str) -> Result<(), Error> {
    let head = Head { kind: kind::RENAME, ..Head::default() };
    link.files(head, &[from, to]).await?.map(drop).map_err(|e| said("move", from, e))
}

pub(crate) async fn chmod(link: &Link, path: &str, mode: u32) -> Result<(), Error> {
    if mode > 0o777 {
        return Err(Error::invalid("mode: only the nine bits of permissions can be set"));
    }
    let head = Head { kind: kind::CHMOD, extra: mode, ..Head::default() };
    let wrong = |e| said("set the permissions of", path, e);
    link.files(head, &[path]).await?.map(drop).map_err(wrong)
}

/// Called with a name from the root on, its path, what it is, and the directory that has it. False: enough.
type Each<'a> = dyn FnMut(&str, &str, &Stat, &OwnedFd) -> Result<bool, Error> + 'a;

/// Init, asked from a thread.
struct Inside {
    link: Arc<Link>,
    runtime: Handle,
}

impl Inside {
    fn ask(&self, head: Head, paths: &[&str]) -> Result<Result<Option<OwnedFd>, Errno>, Error> {
        self.runtime.block_on(self.link.files(head, paths))
    }

    fn open(&self, path: &str, flags: i32, mode: u32) -> Result<Result<OwnedFd, Errno>, Error> {
        let head = Head { kind: kind::OPEN, value: flags, extra: mode, ..Head::default() };
        match self.ask(head, &[path])? {
            Ok(Some(fd)) => Ok(Ok(fd)),
            Ok(None) => Err(Error::lost()),
            Err(errno) => Ok(Err(errno)),
        }
    }

    /// A regular file's bytes, or nothing where they may not be read.
    fn file(&self, path: &str) -> Result<Option<File>, Error> {
        let fd = self.open(path, libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
        Ok(fd.ok().filter(|fd| plain(fd, path, FileType::RegularFile).is_ok()).map(File::from))
    }

    /// Everything below a directory, parents first and names in order. What may not be listed, and what
    /// is the kernel's, is passed over. Answers whether all was seen.
    fn walk(&self, root: &str, each: &mut Each<'_>) -> Result<bool, Error> {
        let first = self.open(root, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let first = first.map_err(|e| said("list", root, e))?;
        let mut seen = 0;
        let mut whole = true;
        let mut open = vec![(String::new(), entries(&first)?, first)];
        while let Some((prefix, names, fd)) = open.last_mut() {
            let Some((name, stat)) = names.pop() else {
                open.pop();
                continue;
            };
            seen += 1;
            if seen > MOST_NAMES {
                return Ok(false);
            }
            let below = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let path = format!("{}/{below}", root.trim_end_matches('/'));
            if !each(&below, &path, &stat, fd)? {
                return Ok(false);
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            if open.len() >= DEEPEST {
                whole = false;
                continue;
            }
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            if let Ok(fd) = self.open(&path, flags, 0)?
                && !is_kernels(&fd)
                && let Ok(names) = entries(&fd)
            {
                open.push((below, names, fd));
            }
        }
        Ok(whole)
    }
}

/// The names in a directory, last first. Those that are not UTF-8 cannot be asked for.
fn entries(fd: &OwnedFd) -> Result<Vec<(String, Stat)>, Error> {
    let wrong = |e: Errno| said("list", "a directory", e);
    let mut all = Vec::new();
    for entry in Dir::read_from(fd).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        // Gone by now, perhaps.
        let Ok(stat) = statat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if all.len() == MOST_NAMES {
            break;
        }
        all.push((name.to_owned(), stat));
    }
    all.sort_by(|(a, _), (b, _)| b.cmp(a));
    Ok(all)
}

async fn on_a_thread<T: Send + 'static>(
    link: Arc<Link>,
    permit: OwnedSemaphorePermit,
    what: impl FnOnce(&Inside) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let inside = Inside { link, runtime: Handle::current() };
    crate::files::blocking(move || {
        let done = what(&inside);
        drop(permit);
        done
    })
    .await
}

fn kind_of(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    }
}

pub(crate) async fn search(
    link: Arc<Link>,
    permit: OwnedSemaphorePermit,
    root: String,
    search: Search,
) -> Result<FoundFiles, Error> {
    let glob = search.name.as_deref().map(glob).transpose()?;
    let text = search.content.clone().filter(|text| !text.is_empty());
    let most = search.limit.map_or(FOUND, |n| n as usize);
    if !(1..=MOST_FOUND).contains(&most) {
        return Err(Error::invalid(format!("limit: not from 1 to {MOST_FOUND}")));
    }
    on_a_thread(link, permit, move |inside| {
        let end = Instant::now() + PATIENCE;
        let mut found = Vec::new();
        let whole = inside.walk(&root, &mut |below, path, stat, _| {
            let name = below.rsplit('/').next().unwrap_or(below);
            let is_named = glob
                .as_ref()
                .is_none_or(|(glob, whole)| glob.is_match(if *whole { below } else { name }));
            if is_named {
                let hit = Found {
                    path: below.to_owned(),
                    kind: kind_of(stat).into(),
                    size: stat.st_size as u64,
                    line: None,
                    text: None,
                };
                match &text {
                    None => found.push(hit),
                    Some(text) if hit.kind == "file" => {
                        if let Some(file) = inside.file(path)? {
                            lines(file, text, &hit, &mut found);
                        }
                    }
                    Some(_) => {}
                }
            }
            Ok(found.len() < most && Instant::now() < end)
        })?;
        let truncated = !whole || found.len() > most;
        found.truncate(most);
        Ok(FoundFiles { found, truncated })
    })
    .await
}

/// Of names, or with a slash of the whole path from the directory on.
pub(crate) fn glob(text: &str) -> Result<(GlobMatcher, bool), Error> {
    let glob = GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map_err(|e| Error::invalid(format!("name: {e}").to_lowercase()))?;
    Ok((glob.compile_matcher(), text.contains('/')))
}

/// The lines of a text file that have it.
fn lines(file: File, text: &str, hit: &Found, found: &mut Vec<Found>) {
    let mut bytes = Vec::new();
    if file.take(MOST_SEARCHED).read_to_end(&mut bytes).is_err()
        || bytes.iter().take(8192).any(|b| *b == 0)
    {
        return;
    }
    let mut told = 0;
    for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if memchr::memmem::find(line, text.as_bytes()).is_some() {
            let shown = line.get(..MOST_LINE).unwrap_or(line);
            found.push(Found {
                line: Some(number as u64 + 1),
                text: Some(String::from_utf8_lossy(shown).into_owned()),
                ..hit.clone()
            });
            told += 1;
            if told == MOST_LINES {
                return;
            }
        }
    }
}

/// Hands out what is below a directory as a tar archive, as it is asked for.
pub(crate) async fn pack(
    link: Arc<Link>,
    permit: OwnedSemaphorePermit,
    root: String,
) -> Result<Download, Error> {
    // What is wrong at once is said at once.
    let head =
        Head { kind: kind::OPEN, value: libc::O_RDONLY | libc::O_DIRECTORY, ..Head::default() };
    link.files(head, &[&root]).await?.map_err(|e| said("list", &root, e))?;
    let inside = Inside { link, runtime: Handle::current() };
    Ok(crate::codebases::download(move |out| {
        let _permit = permit;
        let gone = |e: std::io::Error| Error::new(Kind::Lost, e.to_string());
        let whole = inside.walk(&root, &mut |below, path, stat, parent| {
            member(&inside, out, (below, path), stat, parent).map_err(gone)?;
            Ok(true)
        });
        // An archive that is not whole must not look like one.
        if !whole.map_err(|e| e.message)? {
            return Err("there are too many files below it".into());
        }
        tar::write_end(&mut &mut *out).map_err(|e| e.to_string())
    }))
}

/// What may not be read is left out, as are sockets and the like.
fn member(
    inside: &Inside,
    mut out: &mut dyn std::io::Write,
    (below, path): (&str, &str),
    stat: &Stat,
    parent: &OwnedFd,
) -> std::io::Result<()> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => tar::Kind::File,
        FileType::Directory => tar::Kind::Directory,
        FileType::Symlink => tar::Kind::Symlink,
        _ => return Ok(()),
    };
    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    let mut member = Member {
        mode: stat.st_mode & 0o777,
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        ..Member::new(below.as_bytes().to_vec(), kind)
    };
    match kind {
        tar::Kind::Symlink => {
            let name = below.rsplit('/').next().unwrap_or(below);
            let Ok(text) = readlinkat(parent, name, Vec::new()) else { return Ok(()) };
            member.link = text.into_bytes();
            tar::write_header(&mut out, &member)
        }
        tar::Kind::File => {
            let Some(mut file) = inside.file(path).map_err(|e| std::io::Error::other(e.message))?
            else {
                return Ok(());
            };
            member.size = fstat(&file)?.st_size as u64;
            tar::write_header(&mut out, &member)?;
            // Exactly as much as was said, whatever becomes of the file meanwhile.
            let copied = std::io::copy(&mut (&mut file).take(member.size), &mut out)?;
            std::io::copy(&mut std::io::repeat(0).take(member.size - copied), &mut out)?;
            out.write_all(&[0; tar::BLOCK][..tar::padding(member.size)])
        }
        _ => {
            member.path.push(b'/');
            tar::write_header(&mut out, &member)
        }
    }
}

/// Puts the members of an archive below a directory. Regular files and directories only; each file is put
/// in place as a whole, and no link is followed on the way to it.
pub(crate) async fn unpack(
    link: Arc<Link>,
    permit: OwnedSemaphorePermit,
    root: String,
    content: Content,
) -> Result<Unpacked, Error> {
    let from = content.take();
    on_a_thread(link, permit, move |inside| {
        let head = Head { kind: kind::MAKE_DIRECTORY, extra: 0o755, ..Head::default() };
        match inside.ask(head, &[&root])? {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(said("make", &root, errno)),
        }
        let mut into = Into { inside, root, made: HashSet::new(), done: Unpacked::default() };
        let mut archive = Reader::new(from);
        let wrong = |e: &tar::Error| Error::invalid(e.to_string());
        let mut members = 0;
        while let Some(member) = archive.next_member().map_err(|e| wrong(&e))? {
            members += 1;
            if members > MOST_MEMBERS {
                return Err(Error::new(Kind::TooLarge, "the archive has too many members"));
            }
            into.take(&mut archive, &member)?;
        }
        Ok(into.done)
    })
    .await
}

struct Into<'a> {
    inside: &'a Inside,
    root: String,
    /// Directories that are there and are no links.
    made: HashSet<String>,
    done: Unpacked,
}

/// The path of a member below the directory; `None` for the directory itself.
pub(crate) fn below(member: &Member) -> Result<Option<String>, Error> {
    let shown = String::from_utf8_lossy(&member.path).replace(char::is_control, "\u{fffd}");
    let refused = |why: &str| Err(Error::invalid(format!("the archive's {shown}: {why}")));
    let Ok(path) = std::str::from_utf8(&member.path) else { return refused("it is not utf-8") };
    if path.starts_with('/') {
        return refused("it is an absolute path");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return refused("it leads out of the directory");
    }
    if parts.len() > DEEPEST || path.len() > 4000 {
        return refused("it is too deep or too long");
    }
    match member.kind {
        tar::Kind::File | tar::Kind::Directory => {}
        tar::Kind::HardLink | tar::Kind::Symlink => return refused("links are not unpacked"),
        tar::Kind::Fifo | tar::Kind::Device => {
            return refused("devices and pipes are not unpacked");
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

impl Into<'_> {
    fn take(
        &mut self,
        archive: &mut Reader<Box<dyn std::io::Read + Send>>,
        member: &Member,
    ) -> Result<(), Error> {
        let Some(below) = below(member)? else { return Ok(()) };
        let (parent, name) = below.rsplit_once('/').unwrap_or(("", &below));
        self.directory(parent)?;
        if member.kind == tar::Kind::Directory {
            return self.directory(&below);
        }
        self.done.bytes = self.done.bytes.saturating_add(member.size);
        if self.done.bytes > MOST_UNPACKED {
            return Err(Error::new(Kind::TooLarge, "the archive's files are too large"));
        }
        let directory = self.at(parent);
        let path = format!("{directory}/{name}");
        let draft = format!("{directory}/{}", crate::random_id(".ringfence-")?);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let fd = self.inside.open(&draft, flags, member.mode & 0o777)?;
        let mut file = File::from(fd.map_err(|e| said("write", &path, e))?);
        let put = fill(archive, &mut file, &path).and_then(|()| {
            let head = Head { kind: kind::RENAME, ..Head::default() };
            self.inside.ask(head, &[&draft, &path])?.map(drop).map_err(|e| said("write", &path, e))
        });
        if put.is_err() {
            let head = Head { kind: kind::REMOVE, ..Head::default() };
            let _ = self.inside.ask(head, &[&draft]);
        }
        self.done.files += 1;
        put
    }

    fn at(&self, below: &str) -> String {
        let root = self.root.trim_end_matches('/');
        if below.is_empty() { root.to_owned() } else { format!("{root}/{below}") }
    }

    /// Makes what is missing of a path; what is there must be directories.
    fn directory(&mut self, below: &str) -> Result<(), Error> {
        for (end, _) in below.match_indices('/').chain([(below.len(), "")]) {
            let part = below.get(..end).unwrap_or_default();
            if part.is_empty() || self.made.contains(part) {
                continue;
            }
            let path = self.at(part);
            let head = Head { kind: kind::MAKE_DIRECTORY, extra: 0o755, ..Head::default() };
            match self.inside.ask(head, &[&path])? {
                Ok(_) => self.done.directories += 1,
                Err(Errno::EXIST) => {
                    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
                    self.inside.open(&path, flags, 0)?.map_err(|e| said("write to", &path, e))?;
                }
                Err(errno) => return Err(said("make", &path, errno)),
            }
            self.made.insert(part.to_owned());
        }
        Ok(())
    }
}

fn fill(
    archive: &mut Reader<Box<dyn std::io::Read + Send>>,
    file: &mut File,
    path: &str,
) -> Result<(), Error> {
    let mut buffer = vec![0u8; PIECE];
    loop {
        let n = archive.content(&mut buffer).map_err(|e| Error::invalid(e.to_string()))?;
        if n == 0 {
            return Ok(());
        }
        file.write_all(buffer.get(..n).unwrap_or_default())
            .map_err(|e| Error::new(Kind::Limit, format!("cannot write {path}: {e}")))?;
    }
}

pub(crate) fn place(path: &str, cwd: &str) -> Result<String, Error> {
    absolute(if path.is_empty() { "." } else { path }, cwd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_below_is_unpacked() {
        let is = |path: &str, kind| below(&Member::new(path.as_bytes().to_vec(), kind));
        assert_eq!(is("./a//b/", tar::Kind::Directory).unwrap().unwrap(), "a/b");
        assert_eq!(is("./", tar::Kind::Directory).unwrap(), None);
        for (path, kind) in [
            ("/etc/x", tar::Kind::File),
            ("a/../../x", tar::Kind::File),
            ("..", tar::Kind::Directory),
            ("a", tar::Kind::Symlink),
            ("a", tar::Kind::HardLink),
            ("a", tar::Kind::Device),
            ("a", tar::Kind::Fifo),
        ] {
            assert!(is(path, kind).is_err(), "{path} {kind:?}");
        }
        assert!(is(&"a/".repeat(200), tar::Kind::Directory).is_err());
    }
}
