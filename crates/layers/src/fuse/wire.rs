//! The kernel's protocol, as `include/uapi/linux/fuse.h` has it: requests are taken apart, answers put
//! together. Everything is in the machine's byte order.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;

/// Bytes of the largest read or write; also what a listing may take.
pub(super) const MOST: usize = 1 << 20;
/// A request: the largest write, its header, and room for names.
pub(super) const REQUEST: usize = MOST + 64 * 1024;
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// The version that is spoken. Newer kernels go on speaking it.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 41;

pub(super) mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// What the two sides agree on.
pub(super) mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
}

/// How an open file is treated.
pub(super) mod fopen {
    pub const DIRECT_IO: u32 = 1;
    pub const KEEP_CACHE: u32 = 2;
    pub const NOFLUSH: u32 = 32;
    pub const PASSTHROUGH: u32 = 128;
}

/// Which attributes are set.
pub(super) mod fattr {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    pub const FH: u32 = 64;
    pub const ATIME_NOW: u32 = 128;
    pub const MTIME_NOW: u32 = 256;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_write_in.write_flags`.
pub(super) const WRITE_KILL_SUIDGID: u32 = 4;

mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
}

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub body: Body<'a>,
}

impl<'a> Request<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Errno> {
        let mut head = Body(bytes);
        let (length, opcode) = (head.u32()? as usize, head.u32()?);
        let (unique, node) = (head.u64()?, head.u64()?);
        let (uid, gid) = (head.u32()?, head.u32()?);
        let body = bytes.get(IN_HEADER..length).ok_or(Errno::INVAL)?;
        Ok(Self { opcode, unique, node, uid, gid, body: Body(body) })
    }
}

/// What is left of a request to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        let bytes = self.take(4)?.try_into().map_err(|_| Errno::INVAL)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        let bytes = self.take(8)?.try_into().map_err(|_| Errno::INVAL)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    pub fn skip(&mut self, n: usize) -> Result<(), Errno> {
        self.take(n).map(|_| ())
    }

    /// Text up to a NUL byte.
    pub fn text(&mut self) -> Result<&'a OsStr, Errno> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Errno::INVAL)?;
        let text = self.take(end)?;
        self.skip(1)?;
        Ok(OsStr::from_bytes(text))
    }

    /// The name of an entry; the kernel sends no other, and nothing else would stay in its directory.
    pub fn name(&mut self) -> Result<&'a OsStr, Errno> {
        let name = self.text()?;
        match name.as_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(name),
        }
    }
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    /// Access, modification, change: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub block: u32,
}

/// An answer under construction; its buffer is used again and again.
#[derive(Debug)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    length: usize,
}

impl Answer {
    pub fn new() -> Self {
        Self { bytes: vec![0; OUT_HEADER + MOST + 4096], length: OUT_HEADER }
    }

    pub fn clear(&mut self) {
        self.length = OUT_HEADER;
    }

    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }

    pub fn u16(&mut self, value: u16) {
        self.put(&value.to_ne_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }

    /// Room for `n` bytes that [`Answer::filled`] counts.
    pub fn room(&mut self, n: usize) -> &mut [u8] {
        let end = self.length + n;
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.length..end]
    }

    pub fn filled(&mut self, n: usize) {
        self.length += n;
    }

    /// Bytes after the header.
    pub fn payload(&self) -> usize {
        self.length - OUT_HEADER
    }

    pub fn attributes(&mut self, a: &Attributes) {
        self.u64(a.ino);
        self.u64(a.size);
        self.u64(a.blocks);
        for (seconds, _) in a.times {
            self.u64(seconds as u64);
        }
        for (_, nanoseconds) in a.times {
            self.u32(nanoseconds);
        }
        for value in [a.mode, a.links, a.uid, a.gid, a.device, a.block, 0] {
            self.u32(value);
        }
    }

    /// Attributes with how long they are good.
    pub fn attributes_for(&mut self, valid: Valid, a: &Attributes) {
        self.u64(valid.seconds);
        self.u32(valid.nanoseconds);
        self.u32(0);
        self.attributes(a);
    }

    pub fn entry(&mut self, node: u64, name: Valid, attributes: Valid, a: &Attributes) {
        self.u64(node);
        self.u64(0);
        self.u64(name.seconds);
        self.u64(attributes.seconds);
        self.u32(name.nanoseconds);
        self.u32(attributes.nanoseconds);
        self.attributes(a);
    }

    pub fn opened(&mut self, handle: u64, flags: u32, backing: u32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(backing);
    }

    /// One line of a listing, if it fits into `size` bytes of payload.
    pub fn listed(&mut self, ino: u64, next: u64, kind: u32, name: &[u8], size: usize) -> bool {
        let length = (24 + name.len()).next_multiple_of(8);
        if self.payload() + length > size {
            return false;
        }
        self.u64(ino);
        self.u64(next);
        self.u32(name.len() as u32);
        self.u32(kind);
        self.put(name);
        self.put(&[0; 8][..length - 24 - name.len()]);
        true
    }

    /// The finished message.
    pub fn finish(&mut self, unique: u64, result: Result<(), Errno>) -> &[u8] {
        let error = match result {
            Ok(()) => 0,
            Err(errno) => {
                self.clear();
                -errno.raw_os_error()
            }
        };
        self.header(unique, error)
    }

    fn header(&mut self, unique: u64, error: i32) -> &[u8] {
        self.bytes[..4].copy_from_slice(&(self.length as u32).to_ne_bytes());
        self.bytes[4..8].copy_from_slice(&error.to_ne_bytes());
        self.bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        &self.bytes[..self.length]
    }
}

/// How long the kernel may believe an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Valid {
    pub seconds: u64,
    pub nanoseconds: u32,
}

/// What the kernel has read of a file is no longer good.
pub(super) fn forget_content(node: u64) -> Vec<u8> {
    let mut answer = Answer { bytes: Vec::new(), length: OUT_HEADER };
    answer.u64(node);
    answer.u64(0);
    answer.u64(0);
    answer.header(0, notify::INVAL_INODE).to_vec()
}

/// What the kernel knows of a name is no longer good.
pub(super) fn forget_name(parent: u64, name: &OsStr) -> Vec<u8> {
    let mut answer = Answer { bytes: Vec::new(), length: OUT_HEADER };
    answer.u64(parent);
    answer.u32(name.len() as u32);
    answer.u32(0);
    answer.put(name.as_bytes());
    answer.put(&[0]);
    answer.header(0, notify::INVAL_ENTRY).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_or_no_name_is_refused() {
        assert_eq!(Request::parse(&[0; 12]).unwrap_err(), Errno::INVAL);
        let mut bytes = vec![0u8; 40];
        bytes[..4].copy_from_slice(&100u32.to_ne_bytes());
        assert_eq!(Request::parse(&bytes).unwrap_err(), Errno::INVAL);
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"a"] {
            assert_eq!(Body(bad).name().unwrap_err(), Errno::INVAL, "{bad:?}");
        }
        assert_eq!(Body(b"...\0").name().unwrap(), OsStr::new("..."));
    }

    #[test]
    fn lines_of_a_listing_are_padded_and_never_cut() {
        let mut answer = Answer::new();
        assert!(answer.listed(1, 2, 8, b"a", 64));
        assert_eq!(answer.payload(), 32);
        assert!(answer.listed(1, 2, 8, b"12345678", 64));
        assert_eq!(answer.payload(), 64);
        assert!(!answer.listed(1, 2, 8, b"b", 64));
        assert_eq!(answer.payload(), 64);
    }

    #[test]
    fn structures_have_the_kernels_sizes() {
        let mut answer = Answer::new();
        answer.attributes(&Attributes::default());
        assert_eq!(answer.payload(), 88);
        answer.clear();
        answer.entry(1, Valid::default(), Valid::default(), &Attributes::default());
        assert_eq!(answer.payload(), 128);
        answer.clear();
        answer.attributes_for(Valid::default(), &Attributes::default());
        assert_eq!(answer.payload(), 104);
        assert_eq!(answer.finish(7, Err(Errno::ACCESS)).len(), 16);
    }
}
