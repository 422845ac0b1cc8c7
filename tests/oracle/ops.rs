//! Operations on files: how they are written down for the pipe, and how they are carried out.
//!
//! The executor is this test binary, started once more as `inside::executor`: in a sandbox it is what
//! is confined, outside it plays the host. It reads operations from standard input and answers each
//! with what came of it, so one start serves thousands of operations.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    self, AtFlags, FileType, Mode, OFlags, RenameFlags, Timestamps, XattrFlags, openat,
};
use rustix::io::Errno;

/// Directories that stay open between operations.
pub const SLOTS: usize = 4;
/// The one extended attribute that operations set.
pub const ATTRIBUTE: &str = "user.oracle";

/// A path from the workspace, or from a directory that was opened before.
#[derive(Clone, PartialEq, Eq)]
pub struct At {
    /// `None`: the workspace.
    pub slot: Option<u8>,
    pub path: Vec<u8>,
}

impl std::fmt::Debug for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.slot {
            Some(slot) => write!(f, "{slot}:{}", shown(&self.path)),
            None => f.write_str(&shown(&self.path)),
        }
    }
}

/// On one line, however many bytes and whichever.
pub fn shown(bytes: &[u8]) -> String {
    const LONG: usize = 255;
    let long =
        |c: char| bytes.len() > 200 && bytes.windows(100).any(|w| w.iter().all(|b| *b == c as u8));
    if bytes.len() >= LONG && (long('n') || long('l')) {
        // Names of the greatest length, and of one more.
        let text = bytes.escape_ascii().to_string();
        let text =
            text.replace(&"l".repeat(LONG + 1), "<256 l>").replace(&"n".repeat(LONG), "<255 n>");
        return format!("\"{text}\"");
    }
    match bytes {
        [first, rest @ ..] if rest.len() > 30 && rest.iter().all(|b| b == first) => {
            format!("{} times \"{}\"", bytes.len(), first.escape_ascii())
        }
        _ => format!("\"{}\"", bytes.escape_ascii()),
    }
}

/// What is written.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(pub Vec<u8>);

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

impl Wire for Data {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        Wire::get(from).map(Self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opens for writing, creating, truncating (or only creating, if `new`), and writes.
    Write {
        at: At,
        data: Data,
        new: bool,
    },
    Append {
        at: At,
        data: Data,
    },
    Truncate {
        at: At,
        length: u32,
    },
    Read {
        at: At,
    },
    List {
        at: At,
    },
    Stat {
        at: At,
        follow: bool,
    },
    Readlink {
        at: At,
    },
    Rename {
        from: At,
        to: At,
        how: How,
    },
    Link {
        from: At,
        to: At,
    },
    Symlink {
        target: Data,
        at: At,
    },
    Unlink {
        at: At,
    },
    Rmdir {
        at: At,
    },
    Mkdir {
        at: At,
    },
    Fifo {
        at: At,
    },
    Chmod {
        at: At,
        mode: u16,
    },
    Utimes {
        at: At,
        seconds: u32,
    },
    Attribute {
        at: At,
        value: Data,
    },
    OpenDirectory {
        slot: u8,
        at: At,
    },
    /// A file without a name in `directory`, then one.
    Nameless {
        directory: At,
        to: At,
        data: Data,
    },
    /// The whole tree as it is seen.
    Dump,
}

impl Op {
    /// Every path of the operation.
    pub fn places(&self) -> Vec<&At> {
        match self {
            Self::Write { at, .. }
            | Self::Append { at, .. }
            | Self::Truncate { at, .. }
            | Self::Read { at }
            | Self::List { at }
            | Self::Stat { at, .. }
            | Self::Readlink { at }
            | Self::Symlink { at, .. }
            | Self::Unlink { at }
            | Self::Rmdir { at }
            | Self::Mkdir { at }
            | Self::Fifo { at }
            | Self::Chmod { at, .. }
            | Self::Utimes { at, .. }
            | Self::Attribute { at, .. }
            | Self::OpenDirectory { at, .. } => vec![at],
            Self::Rename { from, to, .. } | Self::Link { from, to } => vec![from, to],
            Self::Nameless { directory, to, .. } => vec![directory, to],
            Self::Dump => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Plain,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    File,
    Directory,
    Symlink,
    Fifo,
    Other,
}

/// What was seen of one name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub path: Vec<u8>,
    pub kind: Type,
    pub size: u64,
    pub mode: u16,
    pub seconds: i64,
    /// Content of a file, target of a link, nothing of others; the error where it cannot be had.
    pub content: Result<Vec<u8>, i32>,
    pub attribute: Option<Vec<u8>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, kind, size, mode, seconds, content, attribute } = self;
        let content = match content {
            Ok(content) => shown(content),
            Err(code) => Errno::from_raw_os_error(*code).to_string(),
        };
        let attribute = attribute.as_deref().map_or_else(String::new, shown);
        let path = shown(path);
        write!(f, "{path} {kind:?} size {size} mode {mode:o} at {seconds}: {content} {attribute}")
    }
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Failed(i32),
    Done,
    Bytes(Vec<u8>),
    /// Sorted.
    Names(Vec<(Vec<u8>, Type)>),
    Stat {
        kind: Type,
        size: u64,
        mode: u16,
        seconds: i64,
    },
    Tree(Vec<Seen>),
}

/// Writes and reads what goes through the pipe.
pub trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(from: &mut &[u8]) -> Option<Self>;
}

macro_rules! wire_numbers {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(from: &mut &[u8]) -> Option<Self> {
                let (head, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_le_bytes(*head))
            }
        }
    )*};
}
wire_numbers!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(u8::get(from)? != 0)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(inner) = self {
            inner.put(out);
        }
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(if bool::get(from)? { Some(T::get(from)?) } else { None })
    }
}

impl<T: Wire> Wire for Result<T, i32> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(inner) => inner.put(out),
            Err(code) => code.put(out),
        }
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(if bool::get(from)? { Ok(T::get(from)?) } else { Err(i32::get(from)?) })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        (0..u32::get(from)?).map(|_| T::get(from)).collect()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(from: &mut &[u8]) -> Option<Self> {
        Some((A::get(from)?, B::get(from)?))
    }
}

macro_rules! wire_struct {
    ($name:ident { $($field:ident),* }) => {
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn get(from: &mut &[u8]) -> Option<Self> {
                $(let $field = Wire::get(from)?;)*
                Some(Self { $($field),* })
            }
        }
    };
}
wire_struct!(At { slot, path });
wire_struct!(Seen { path, kind, size, mode, seconds, content, attribute });

macro_rules! wire_enum {
    ($name:ident { $($number:literal $variant:ident { $($field:ident),* }),* }) => {
        impl Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.push($number);
                        $($field.put(out);)*
                    })*
                }
            }
            fn get(from: &mut &[u8]) -> Option<Self> {
                match u8::get(from)? {
                    $($number => {
                        $(let $field = Wire::get(from)?;)*
                        Some(Self::$variant { $($field),* })
                    })*
                    _ => None,
                }
            }
        }
    };
}
wire_enum!(How { 0 Plain {}, 1 NoReplace {}, 2 Exchange {} });
wire_enum!(Type { 0 File {}, 1 Directory {}, 2 Symlink {}, 3 Fifo {}, 4 Other {} });
wire_enum!(Op {
    0 Write { at, data, new },
    1 Append { at, data },
    2 Truncate { at, length },
    3 Read { at },
    4 List { at },
    5 Stat { at, follow },
    6 Readlink { at },
    7 Rename { from, to, how },
    8 Link { from, to },
    9 Symlink { target, at },
    10 Unlink { at },
    11 Rmdir { at },
    12 Mkdir { at },
    13 Fifo { at },
    14 Chmod { at, mode },
    15 Utimes { at, seconds },
    16 Attribute { at, value },
    17 OpenDirectory { slot, at },
    18 Nameless { directory, to, data },
    19 Dump {}
});

impl Wire for Reply {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Failed(code) => (0u8, *code).put(out),
            Self::Done => out.push(1),
            Self::Bytes(bytes) => {
                out.push(2);
                bytes.put(out);
            }
            Self::Names(names) => {
                out.push(3);
                names.put(out);
            }
            Self::Stat { kind, size, mode, seconds } => {
                out.push(4);
                ((*kind, *size), (*mode, *seconds)).put(out);
            }
            Self::Tree(seen) => {
                out.push(5);
                seen.put(out);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(match u8::get(from)? {
            0 => Self::Failed(i32::get(from)?),
            1 => Self::Done,
            2 => Self::Bytes(Wire::get(from)?),
            3 => Self::Names(Wire::get(from)?),
            4 => {
                let ((kind, size), (mode, seconds)) = Wire::get(from)?;
                Self::Stat { kind, size, mode, seconds }
            }
            5 => Self::Tree(Wire::get(from)?),
            _ => return None,
        })
    }
}

/// One end of the pipe: lists of things, each with its length before it.
pub fn send<T: Wire>(out: &mut impl std::io::Write, all: &[T]) -> std::io::Result<()> {
    let mut body = Vec::new();
    (all.len() as u32).put(&mut body);
    for item in all {
        item.put(&mut body);
    }
    out.write_all(&(body.len() as u32).to_le_bytes())?;
    out.write_all(&body)?;
    out.flush()
}

pub fn receive<T: Wire>(from: &mut impl std::io::Read) -> std::io::Result<Vec<T>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    from.read_exact(&mut body)?;
    Vec::get(&mut body.as_slice())
        .ok_or_else(|| std::io::Error::other("what came through the pipe cannot be read"))
}

/// Said before the first answer; test harnesses print lines of their own before.
pub const READY: &[u8] = b"\nthe oracle's executor is ready\n";

/// Serves operations until the pipe ends.
pub fn serve() {
    let root =
        openat(fs::CWD, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut slots: [Option<OwnedFd>; SLOTS] = [None, None, None, None];
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    output.write_all(READY).unwrap();
    output.flush().unwrap();
    while let Ok(batch) = receive::<Op>(&mut input) {
        let replies: Vec<Reply> = batch
            .iter()
            .map(|op| {
                carry_out(op, root.as_fd(), &mut slots)
                    .unwrap_or_else(|e| Reply::Failed(e.raw_os_error()))
            })
            .collect();
        if send(&mut output, &replies).is_err() {
            return;
        }
    }
}

const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

fn name(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path)
}

fn carry_out(
    op: &Op,
    root: BorrowedFd<'_>,
    slots: &mut [Option<OwnedFd>; SLOTS],
) -> Result<Reply, Errno> {
    // Copies, so that a slot can be replaced by what is opened from it.
    let directory = |at: &At| -> Result<OwnedFd, Errno> {
        match at.slot {
            None => rustix::io::dup(root),
            Some(slot) => {
                rustix::io::dup(slots[slot as usize % SLOTS].as_ref().ok_or(Errno::BADF)?)
            }
        }
    };
    let open = |at: &At, flags: OFlags| -> Result<OwnedFd, Errno> {
        openat(directory(at)?, name(&at.path), flags | OPEN, Mode::from_raw_mode(0o644))
    };
    let done = |()| Reply::Done;
    match op {
        Op::Write { at, data, new } => {
            let how = if *new { OFlags::EXCL } else { OFlags::TRUNC };
            write_all(&open(at, OFlags::WRONLY | OFlags::CREATE | how)?, &data.0).map(done)
        }
        Op::Append { at, data } => {
            write_all(&open(at, OFlags::WRONLY | OFlags::APPEND)?, &data.0).map(done)
        }
        Op::Truncate { at, length } => {
            fs::ftruncate(open(at, OFlags::WRONLY)?, u64::from(*length)).map(done)
        }
        Op::Read { at } => read_all(&open(at, OFlags::RDONLY)?).map(Reply::Bytes),
        Op::List { at } => list(open(at, OFlags::RDONLY | OFlags::DIRECTORY)?).map(Reply::Names),
        Op::Stat { at, follow } => {
            let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
            let stat = fs::statat(directory(at)?, name(&at.path), flags)?;
            Ok(Reply::Stat {
                kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
                size: stat.st_size as u64,
                mode: (stat.st_mode & 0o7777) as u16,
                seconds: stat.st_mtime,
            })
        }
        Op::Readlink { at } => fs::readlinkat(directory(at)?, name(&at.path), Vec::new())
            .map(|target| Reply::Bytes(target.into_bytes())),
        Op::Rename { from, to, how } => {
            let flags = match how {
                How::Plain => RenameFlags::empty(),
                How::NoReplace => RenameFlags::NOREPLACE,
                How::Exchange => RenameFlags::EXCHANGE,
            };
            fs::renameat_with(
                directory(from)?,
                name(&from.path),
                directory(to)?,
                name(&to.path),
                flags,
            )
            .map(done)
        }
        Op::Link { from, to } => fs::linkat(
            directory(from)?,
            name(&from.path),
            directory(to)?,
            name(&to.path),
            AtFlags::empty(),
        )
        .map(done),
        Op::Symlink { target, at } => {
            fs::symlinkat(name(&target.0), directory(at)?, name(&at.path)).map(done)
        }
        Op::Unlink { at } => {
            fs::unlinkat(directory(at)?, name(&at.path), AtFlags::empty()).map(done)
        }
        Op::Rmdir { at } => {
            fs::unlinkat(directory(at)?, name(&at.path), AtFlags::REMOVEDIR).map(done)
        }
        Op::Mkdir { at } => {
            fs::mkdirat(directory(at)?, name(&at.path), Mode::from_raw_mode(0o755)).map(done)
        }
        Op::Fifo { at } => fs::mknodat(
            directory(at)?,
            name(&at.path),
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .map(done),
        Op::Chmod { at, mode } => {
            let place = directory(at)?;
            let stat = fs::statat(&place, name(&at.path), AtFlags::empty())?;
            let mut mode = Mode::from_raw_mode(u32::from(*mode));
            // Directories stay usable; that modes bind is shown by files.
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                mode |= Mode::RWXU;
            }
            fs::chmodat(place, name(&at.path), mode, AtFlags::empty()).map(done)
        }
        Op::Utimes { at, seconds } => {
            let time = fs::Timespec { tv_sec: i64::from(*seconds), tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            fs::utimensat(directory(at)?, name(&at.path), &times, AtFlags::empty()).map(done)
        }
        Op::Attribute { at, value } => {
            fs::fsetxattr(open(at, OFlags::RDONLY)?, ATTRIBUTE, &value.0, XattrFlags::empty())
                .map(done)
        }
        Op::OpenDirectory { slot, at } => {
            let opened = open(at, OFlags::RDONLY | OFlags::DIRECTORY)?;
            slots[*slot as usize % SLOTS] = Some(opened);
            Ok(Reply::Done)
        }
        Op::Nameless { directory: place, to, data } => {
            let file = open(place, OFlags::WRONLY | OFlags::TMPFILE)?;
            write_all(&file, &data.0)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let target = directory(to)?;
            fs::linkat(fs::CWD, path, target, name(&to.path), AtFlags::SYMLINK_FOLLOW).map(done)
        }
        Op::Dump => {
            let mut seen = Vec::new();
            dump(
                &openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OPEN, Mode::empty())?,
                b"",
                &mut seen,
            );
            seen.sort();
            Ok(Reply::Tree(seen))
        }
    }
}

fn write_all(file: &OwnedFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        data = &data[rustix::io::write(file, data)?..];
    }
    Ok(())
}

fn read_all(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(file, &mut buffer)? {
            0 => return Ok(out),
            n => out.extend_from_slice(&buffer[..n]),
        }
    }
}

fn kind_of(kind: FileType) -> Type {
    match kind {
        FileType::RegularFile => Type::File,
        FileType::Directory => Type::Directory,
        FileType::Symlink => Type::Symlink,
        FileType::Fifo => Type::Fifo,
        _ => Type::Other,
    }
}

fn list(directory: OwnedFd) -> Result<Vec<(Vec<u8>, Type)>, Errno> {
    let mut names = Vec::new();
    for entry in fs::Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), kind_of(entry.file_type())));
        }
    }
    names.sort();
    Ok(names)
}

fn dump(directory: &OwnedFd, above: &[u8], seen: &mut Vec<Seen>) {
    let Ok(names) = rustix::io::dup(directory).and_then(list) else { return };
    for (own, _) in names {
        let path = if above.is_empty() { own.clone() } else { [above, b"/", &own].concat() };
        let Ok(stat) = fs::statat(directory, name(&own), AtFlags::SYMLINK_NOFOLLOW) else {
            // Listed, but not there.
            seen.push(Seen {
                path,
                kind: Type::Other,
                size: 0,
                mode: 0,
                seconds: 0,
                content: Err(Errno::NOENT.raw_os_error()),
                attribute: None,
            });
            continue;
        };
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        let file =
            openat(directory, name(&own), OFlags::RDONLY | OFlags::NOFOLLOW | OPEN, Mode::empty());
        let attribute = file.as_ref().ok().filter(|_| kind != Type::Fifo).and_then(|file| {
            let mut value = vec![0; 256];
            let length = fs::fgetxattr(file, ATTRIBUTE, value.as_mut_slice()).ok()?;
            value.truncate(length);
            Some(value)
        });
        let content = match kind {
            Type::File => file.as_ref().map_err(|e| *e).and_then(read_all),
            Type::Symlink => {
                fs::readlinkat(directory, name(&own), Vec::new()).map(std::ffi::CString::into_bytes)
            }
            Type::Directory => file.as_ref().map_err(|e| *e).map(|_| Vec::new()),
            _ => Ok(Vec::new()),
        };
        seen.push(Seen {
            path: path.clone(),
            kind,
            size: if kind == Type::Directory { 0 } else { stat.st_size as u64 },
            mode: (stat.st_mode & 0o7777) as u16,
            seconds: stat.st_mtime,
            content: content.map_err(Errno::raw_os_error),
            attribute,
        });
        if kind == Type::Directory
            && let Ok(below) = file
        {
            dump(&below, &path, seen);
        }
    }
}
