//! A stack of deltas as an archive.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use ringfence_sys::fd;
use rustix::fs::{FileType, OFlags, Stat};

use super::tar::{self, Kind, Member};
use super::{Error, MANIFEST, Manifest, OPAQUE, WHITEOUT};
use crate::merge::{self, Entry, Visitor};
use crate::{copy, shown};

/// zstd's own default: faster ones gain little here, the disk is slower.
const LEVEL: i32 = 3;
/// Bytes of a file read at once.
const CHUNK: usize = 256 << 10;

/// What the archive is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Tar,
    TarZstd,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    pub members: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What no archive holds: sockets.
    pub skipped: Vec<PathBuf>,
}

/// Writes the layer that `roots` (each with its trees, bottom first) make.
pub fn export(
    roots: &[(PathBuf, Vec<OwnedFd>)],
    out: impl Write,
    format: Format,
) -> Result<Exported, Error> {
    let out = std::io::BufWriter::with_capacity(CHUNK, out);
    match format {
        Format::Tar => {
            let mut out = out;
            let done = members(roots, &mut out)?;
            out.flush().map_err(writing)?;
            Ok(done)
        }
        Format::TarZstd => {
            let mut out = zstd::Encoder::new(out, LEVEL).map_err(writing)?;
            // So that what was damaged on the way is not unpacked.
            out.include_checksum(true).map_err(writing)?;
            let done = members(roots, &mut out)?;
            out.finish().and_then(|mut out| out.flush()).map_err(writing)?;
            Ok(done)
        }
    }
}

fn writing(source: std::io::Error) -> Error {
    Error::Stream { what: "write the archive", source }
}

fn members(roots: &[(PathBuf, Vec<OwnedFd>)], out: &mut impl Write) -> Result<Exported, Error> {
    let mut done = Exported::default();
    if let [(_, trees)] = roots {
        root(Vec::new(), trees, out, &mut done)?;
    } else {
        let names = roots.iter().map(|(path, _)| shown(path)).collect();
        let text = serde_json::to_vec(&Manifest { ringfence: 1, roots: names })
            .map_err(|e| writing(e.into()))?;
        let mut member = Member::new(MANIFEST.into(), Kind::File);
        member.size = text.len() as u64;
        tar::write_header(out, &member).map_err(writing)?;
        out.write_all(&text).map_err(writing)?;
        out.write_all(&[0; tar::BLOCK][..tar::padding(member.size)]).map_err(writing)?;
        for (index, (_, trees)) in roots.iter().enumerate() {
            root(format!("{index}/").into_bytes(), trees, out, &mut done)?;
        }
    }
    tar::write_end(out).map_err(writing)?;
    Ok(done)
}

fn root(
    prefix: Vec<u8>,
    trees: &[OwnedFd],
    out: &mut impl Write,
    done: &mut Exported,
) -> Result<(), Error> {
    let buffer = vec![0; CHUNK];
    merge::walk(trees, &mut Writer { prefix, out, done, links: HashMap::new(), buffer })
}

struct Writer<'a, W> {
    prefix: Vec<u8>,
    out: &'a mut W,
    done: &'a mut Exported,
    /// Files with several names: device and inode to the first name.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

fn os(what: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::Os { what, path: path.to_owned(), errno }
}

impl<W: Write> Writer<'_, W> {
    fn name(&self, path: &Path) -> Vec<u8> {
        let mut name = self.prefix.clone();
        name.extend(path.as_os_str().as_bytes());
        name
    }

    fn put(&mut self, member: &Member) -> Result<(), Error> {
        self.done.members += 1;
        tar::write_header(self.out, member).map_err(writing)
    }

    /// An empty file whose name says something.
    fn mark(&mut self, parent: &Path, name: &[u8]) -> Result<(), Error> {
        let mut whole = self.name(parent);
        if !parent.as_os_str().is_empty() {
            whole.push(b'/');
        }
        whole.extend(name);
        let mut member = Member::new(whole, Kind::File);
        member.mode = 0;
        self.put(&member)
    }

    fn content(&mut self, entry: &Entry<'_>, size: u64) -> Result<(), Error> {
        let file = copy::reopen(&entry.open()?, OFlags::RDONLY | OFlags::NONBLOCK, true)
            .map_err(os("open", entry.path))?;
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match rustix::io::read(&file, &mut self.buffer[..want]) {
                Err(rustix::io::Errno::INTR) => continue,
                // Sealed deltas do not change; somebody is in the store by hand.
                Ok(0) => return Err(os("read all of", entry.path)(rustix::io::Errno::STALE)),
                other => other.map_err(os("read", entry.path))?,
            };
            self.out.write_all(&self.buffer[..n]).map_err(writing)?;
            left -= n as u64;
        }
        self.done.bytes += size;
        self.out.write_all(&[0; tar::BLOCK][..tar::padding(size)]).map_err(writing)
    }
}

fn mtime(stat: &Stat) -> (i64, u32) {
    fd::times(stat)[0]
}

fn attributes(entry: &Entry<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Error> {
    let place = entry.open()?;
    let at = copy::through_proc(&place);
    let mut all = BTreeMap::new();
    for key in copy::attribute_names(&at).map_err(os("read the attributes of", entry.path))? {
        if !merge::kept(&key) {
            continue;
        }
        if let Some(value) =
            copy::attribute(&at, &key).map_err(os("read the attributes of", entry.path))?
        {
            all.insert(key.as_bytes().to_vec(), value);
        }
    }
    Ok(all)
}

fn describe(entry: &Entry<'_>, name: Vec<u8>, kind: Kind) -> Result<Member, Error> {
    // Would be read as a mark.
    if entry.name.as_bytes().starts_with(WHITEOUT) {
        return Err(Error::Unwritable { path: entry.path.to_owned() });
    }
    Ok(Member {
        mode: entry.stat.st_mode & 0o7777,
        uid: entry.stat.st_uid.into(),
        gid: entry.stat.st_gid.into(),
        mtime: mtime(&entry.stat),
        attributes: attributes(entry)?,
        ..Member::new(name, kind)
    })
}

impl<W: Write> Visitor for Writer<'_, W> {
    type Error = Error;

    fn enter(&mut self, entry: &Entry<'_>, opaque: bool) -> Result<(), Error> {
        let mut name = self.name(entry.path);
        if name.is_empty() {
            name.push(b'.');
        }
        if !name.ends_with(b"/") {
            name.push(b'/');
        }
        let member = describe(entry, name, Kind::Directory)?;
        self.put(&member)?;
        if opaque {
            self.mark(entry.path, OPAQUE)?;
        }
        Ok(())
    }

    fn leave(&mut self, _: &Path) -> Result<(), Error> {
        Ok(())
    }

    fn object(&mut self, entry: &Entry<'_>) -> Result<(), Error> {
        let name = self.name(entry.path);
        let kind = match entry.kind() {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            // Nothing else gets into a delta, and no archive would bring it back.
            _ => {
                self.done.skipped.push(entry.path.to_owned());
                return Ok(());
            }
        };
        let mut member = describe(entry, name.clone(), kind)?;
        if entry.links() > 1 {
            match self.links.get(&entry.key()) {
                Some(first) => {
                    member.kind = Kind::HardLink;
                    member.link.clone_from(first);
                    // The first name has them.
                    member.attributes.clear();
                    return self.put(&member);
                }
                None => {
                    self.links.insert(entry.key(), name);
                }
            }
        }
        if kind == Kind::Symlink {
            let text =
                crate::object::link(entry.parent, entry.name).map_err(os("read", entry.path))?;
            member.link = text.into_os_string().into_encoded_bytes();
        }
        if kind == Kind::File {
            member.size = entry.stat.st_size as u64;
        }
        self.put(&member)?;
        if kind == Kind::File { self.content(entry, member.size) } else { Ok(()) }
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        // A hidden name that looks like a mark cannot be said either.
        if name.starts_with(WHITEOUT) {
            return Err(Error::Unwritable { path: path.to_owned() });
        }
        self.mark(path.parent().unwrap_or(Path::new("")), &[WHITEOUT, name].concat())
    }
}
