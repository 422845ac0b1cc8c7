//! The tar format as image layers use it: ustar headers, PAX records where those do not suffice.
//!
//! Written: always the same bytes for the same members. Read: strictly, with a bound for everything
//! that is kept in memory, because the archive may be anybody's. What is ambiguous between readers
//! (two sizes, sparse members, data where none belongs) is refused instead of guessed.

use std::collections::BTreeMap;
use std::io::{Read, Write};

pub const BLOCK: usize = 512;
/// Bytes of the records before one member: room for a path and 64 KiB of attributes several times.
const MAX_RECORDS: u64 = 4 << 20;
/// Bytes of a path or of a link's text: the kernel takes 4,096 at once, tools make longer ones.
const MAX_PATH: u64 = 64 << 10;
/// The largest number that 11 octal digits hold.
const OCTAL_11: u64 = 0o777_7777_7777;
/// The largest number that 7 octal digits hold.
const OCTAL_7: u64 = 0o777_7777;

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the archive: {0}")]
    Io(#[from] std::io::Error),
    #[error("not a tar archive of a layer: {0}")]
    Malformed(&'static str),
    #[error("the archive ends in the middle")]
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// Character or block device.
    Device,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub size: u64,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds since 1970; the nanoseconds count forward also before it.
    pub mtime: (i64, u32),
    pub link: Vec<u8>,
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Member {
    pub fn new(path: Vec<u8>, kind: Kind) -> Self {
        Self {
            path,
            kind,
            size: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            link: Vec::new(),
            attributes: BTreeMap::new(),
        }
    }
}

/// Writes the header of `member`; `size` bytes of content and [`padding`] follow.
pub fn write_header(out: &mut impl Write, member: &Member) -> std::io::Result<()> {
    let records = records(member);
    if !records.is_empty() {
        let mut name = b"PaxHeaders/".to_vec();
        let base = member.path.rsplit(|b| *b == b'/').find(|part| !part.is_empty());
        name.extend(base.unwrap_or(b"x").iter().take(80));
        let mut header = [0; BLOCK];
        fill(&mut header, &name, b'x', records.len() as u64, &Member::new(Vec::new(), Kind::File));
        out.write_all(&header)?;
        out.write_all(&records)?;
        out.write_all(&[0; BLOCK][..padding(records.len() as u64)])?;
    }
    let mut header = [0; BLOCK];
    let flag = match member.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Device => b'3',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    fill(&mut header, &member.path, flag, member.size, member);
    out.write_all(&header)
}

/// The end of an archive: two empty blocks.
pub fn write_end(out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(&[0; BLOCK * 2])
}

/// Bytes from the end of `size` bytes of content to the next block.
pub fn padding(size: u64) -> usize {
    (BLOCK as u64 - size % BLOCK as u64) as usize % BLOCK
}

fn fill(header: &mut [u8; BLOCK], path: &[u8], flag: u8, size: u64, of: &Member) {
    let put = |header: &mut [u8; BLOCK], at: usize, max: usize, bytes: &[u8]| {
        let n = bytes.len().min(max);
        header[at..at + n].copy_from_slice(&bytes[..n]);
    };
    // Numbers that do not fit are in the records; the field is then 0 for readers without them.
    let octal = |header: &mut [u8; BLOCK], at: usize, digits: usize, number: u64, max: u64| {
        let number = if number > max { 0 } else { number };
        put(header, at, digits, format!("{number:0digits$o}").as_bytes());
    };
    put(header, 0, 100, path);
    octal(header, 100, 7, u64::from(of.mode & 0o7777), OCTAL_7);
    octal(header, 108, 7, of.uid, OCTAL_7);
    octal(header, 116, 7, of.gid, OCTAL_7);
    octal(header, 124, 11, size, OCTAL_11);
    octal(header, 136, 11, u64::try_from(of.mtime.0).unwrap_or(0), OCTAL_11);
    header[156] = flag;
    put(header, 157, 100, &of.link);
    put(header, 257, 8, b"ustar\x0000");
    put(header, 329, 7, b"0000000");
    put(header, 337, 7, b"0000000");
    let sum = checksum(header).0;
    put(header, 148, 8, format!("{sum:06o}\0 ").as_bytes());
}

/// The sum of a header whose own field counts as spaces: of unsigned bytes, and of signed ones, which
/// some old programs wrote.
fn checksum(header: &[u8; BLOCK]) -> (u64, i64) {
    let (mut unsigned, mut signed) = (0, 0);
    for (at, byte) in header.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        unsigned += u64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    (unsigned, signed)
}

/// The records that a member needs, in the order of their bytes.
fn records(member: &Member) -> Vec<u8> {
    let mut all: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut put = |key: &str, value: Vec<u8>| {
        all.insert(key.as_bytes().to_vec(), value);
    };
    let mut binary = false;
    for (key, text) in [("path", &member.path), ("linkpath", &member.link)] {
        let utf8 = std::str::from_utf8(text).is_ok();
        // Records are UTF-8. Other bytes go where all programs put and find them, while they fit.
        if text.len() > 100 || (utf8 && !text.is_ascii()) {
            binary |= !utf8;
            put(key, text.clone());
        }
    }
    if binary {
        put("hdrcharset", b"BINARY".to_vec());
    }
    if member.size > OCTAL_11 {
        put("size", member.size.to_string().into_bytes());
    }
    for (key, id) in [("uid", member.uid), ("gid", member.gid)] {
        if id > OCTAL_7 {
            put(key, id.to_string().into_bytes());
        }
    }
    let (seconds, nanoseconds) = member.mtime;
    if nanoseconds != 0 || !u64::try_from(seconds).is_ok_and(|s| s <= OCTAL_11) {
        put("mtime", time_text(seconds, nanoseconds).into_bytes());
    }
    for (key, value) in &member.attributes {
        let mut name = b"SCHILY.xattr.".to_vec();
        for byte in key {
            // As GNU tar does: `=` would end the name.
            match byte {
                b'=' => name.extend(b"%3D"),
                b'%' => name.extend(b"%25"),
                byte => name.push(*byte),
            }
        }
        all.insert(name, value.clone());
    }
    let mut out = Vec::new();
    // The character set applies to what follows it.
    let first = all.remove(&b"hdrcharset"[..]).map(|value| (b"hdrcharset".to_vec(), value));
    for (key, value) in first.into_iter().chain(all) {
        // "LENGTH KEY=VALUE\n", whose length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        out.extend(format!("{length} ").into_bytes());
        out.extend(key);
        out.push(b'=');
        out.extend(value);
        out.push(b'\n');
    }
    out
}

/// Decimal seconds with the nanoseconds after the point, which count away from zero in text.
fn time_text(seconds: i64, nanoseconds: u32) -> String {
    let (sign, whole, part) = if seconds < 0 && nanoseconds != 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
    } else if seconds < 0 {
        ("-", seconds.unsigned_abs(), 0)
    } else {
        ("", seconds.unsigned_abs(), nanoseconds)
    };
    if part == 0 {
        return format!("{sign}{whole}");
    }
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').to_owned()
}

fn time_of(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // As far as headers and file systems go: what is read from them must be read again from records.
    let whole = decimal(whole.as_bytes())?;
    let below = 0i64.checked_sub_unsigned(whole);
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let part: u32 = digits.parse().ok()?;
    Some(match (negative, part) {
        (false, _) => (i64::try_from(whole).ok()?, part),
        (true, 0) => (below?, 0),
        (true, _) => (below?.checked_sub(1)?, 1_000_000_000 - part),
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads members one after the other.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Of the current member: content not read yet, and the bytes to the next block after it.
    left: u64,
    pad: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, left: 0, pad: 0, ended: false }
    }

    pub fn source(&self) -> &R {
        &self.from
    }

    /// The next member, whatever was read of the one before; `None` at the end of the archive.
    pub fn next_member(&mut self) -> Result<Option<Member>, Error> {
        if self.ended {
            return Ok(None);
        }
        self.skip()?;
        let mut found = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        let mut any = false;
        loop {
            let mut header = [0; BLOCK];
            self.exactly(&mut header)?;
            if header.iter().all(|b| *b == 0) {
                if any {
                    return Err(Error::Malformed("records without a member"));
                }
                self.rest()?;
                self.ended = true;
                return Ok(None);
            }
            verify(&header)?;
            let size = number(&header[124..136]).ok_or(Error::Malformed("a size"))?;
            match header[156] {
                b'x' => {
                    let bytes = self.small(size, MAX_RECORDS)?;
                    if std::mem::replace(&mut found.seen, true) {
                        return Err(Error::Malformed("two sets of records for a member"));
                    }
                    found.read(&bytes)?;
                    any = true;
                }
                b'g' => {
                    let mut global = Records::default();
                    global.read(&self.small(size, MAX_RECORDS)?)?;
                    if global.decides() {
                        return Err(Error::Malformed("records that name all members"));
                    }
                }
                b'L' | b'K' => {
                    let mut text = self.small(size, MAX_PATH)?;
                    while text.last() == Some(&0) {
                        text.pop();
                    }
                    let slot = if header[156] == b'L' { &mut long_path } else { &mut long_link };
                    if slot.replace(text).is_some() {
                        return Err(Error::Malformed("two names for a member"));
                    }
                    any = true;
                }
                flag => {
                    return self.member(&header, flag, size, found, long_path, long_link).map(Some);
                }
            }
        }
    }

    fn member(
        &mut self,
        header: &[u8; BLOCK],
        flag: u8,
        size: u64,
        found: Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, Error> {
        let mut path = text(&header[..100]).to_vec();
        // GNU's own variant of the header has other things in the place of the prefix.
        if &header[257..263] == b"ustar\0" && header[345] != 0 {
            let mut whole = text(&header[345..500]).to_vec();
            whole.push(b'/');
            whole.extend(&path);
            path = whole;
        }
        let path = found.path.or(long_path).unwrap_or(path);
        let link = found.link.or(long_link).unwrap_or_else(|| text(&header[157..257]).to_vec());
        if path.contains(&0) || link.contains(&0) {
            return Err(Error::Malformed("a name with a zero byte"));
        }
        if path.len() as u64 > MAX_PATH || link.len() as u64 > MAX_PATH {
            return Err(Error::Malformed("a name too long"));
        }
        let kind = match flag {
            // Before POSIX a directory was a file whose name ends so.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(Error::Malformed("a sparse member")),
            _ => return Err(Error::Malformed("a member of unknown type")),
        };
        // The size of the records counts: a reader that took the other one would see other members.
        let size = found.size.unwrap_or(size);
        if kind != Kind::File && size != 0 {
            return Err(Error::Malformed("content where none belongs"));
        }
        self.left = size;
        self.pad = padding(size);
        let field = |range: std::ops::Range<usize>, what| {
            number(&header[range]).ok_or(Error::Malformed(what))
        };
        let mtime = if let Some(mtime) = found.mtime {
            mtime
        } else {
            let seconds = field(136..148, "a time")?;
            (i64::try_from(seconds).map_err(|_| Error::Malformed("a time"))?, 0)
        };
        Ok(Member {
            path,
            kind,
            size,
            mode: (field(100..108, "a mode")? & 0o7777) as u32,
            uid: found.uid.map_or_else(|| field(108..116, "an owner"), Ok)?,
            gid: found.gid.map_or_else(|| field(116..124, "a group"), Ok)?,
            mtime,
            link,
            attributes: found.attributes,
        })
    }

    /// Content of the current member; 0 at its end.
    pub fn content(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let want = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        loop {
            match self.from.read(&mut into[..want]) {
                Ok(0) => return Err(Error::Truncated),
                Ok(n) => {
                    self.left -= n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ended(e)),
            }
        }
    }

    fn skip(&mut self) -> Result<(), Error> {
        let mut buffer = vec![0; 16 << 10];
        while self.content(&mut buffer)? > 0 {}
        let pad = std::mem::take(&mut self.pad);
        self.exactly(&mut buffer[..pad])
    }

    fn small(&mut self, size: u64, max: u64) -> Result<Vec<u8>, Error> {
        if size > max {
            return Err(Error::Malformed("records too long"));
        }
        // As it comes: a header may claim more than there is.
        let mut bytes = Vec::new();
        let read = (&mut self.from).take(size).read_to_end(&mut bytes).map_err(ended)?;
        if (read as u64) < size {
            return Err(Error::Truncated);
        }
        let mut block = [0; BLOCK];
        self.exactly(&mut block[..padding(size)])?;
        Ok(bytes)
    }

    fn exactly(&mut self, into: &mut [u8]) -> Result<(), Error> {
        self.from.read_exact(into).map_err(ended)
    }

    /// After the first empty block nothing but empty ones; read, so that a checksum of what holds the
    /// archive is seen to be right.
    fn rest(&mut self) -> Result<(), Error> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match self.from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) if buffer[..n].iter().any(|b| *b != 0) => {
                    return Err(Error::Malformed("something after its end"));
                }
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ended(e)),
            }
        }
    }
}

fn ended(e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::UnexpectedEof { Error::Truncated } else { Error::Io(e) }
}

fn verify(header: &[u8; BLOCK]) -> Result<(), Error> {
    // Else hardly anything that the fuzzer makes would be looked at.
    if cfg!(feature = "fuzzing") {
        return Ok(());
    }
    let (unsigned, signed) = checksum(header);
    let told = number(&header[148..156]).ok_or(Error::Malformed("a checksum"))?;
    if told == unsigned || i64::try_from(told).is_ok_and(|told| told == signed) {
        Ok(())
    } else {
        Err(Error::Malformed("a checksum that is wrong"))
    }
}

/// Up to the first zero byte.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// Octal digits between spaces and zero bytes, or a big-endian number whose first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // Negative ones have the next bit too; none of our fields may be.
        let mut value = u64::from(field[0] & 0x7f);
        if value & 0x40 != 0 {
            return None;
        }
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return i64::try_from(value).ok().map(|_| value);
    }
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|b| matches!(b, b' ' | 0)).unwrap_or(digits.len());
    if digits[end..].iter().any(|b| !matches!(b, b' ' | 0)) {
        return None;
    }
    let mut value: u64 = 0;
    for digit in &digits[..end] {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}

/// What PAX records say of a member.
#[derive(Debug, Default)]
struct Records {
    seen: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Records {
    /// Whether they name, size or attribute something.
    fn decides(&self) -> bool {
        self.path.is_some()
            || self.link.is_some()
            || self.size.is_some()
            || !self.attributes.is_empty()
    }

    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        const WRONG: Error = Error::Malformed("a record");
        while !bytes.is_empty() {
            let space = bytes.iter().take(8).position(|b| *b == b' ').ok_or(WRONG)?;
            let length = decimal(&bytes[..space]).ok_or(WRONG)? as usize;
            // At least "N =\n".
            if length < space + 3 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err(WRONG);
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            // Names of attributes have no `=`, see `records`.
            let equals = record.iter().position(|b| *b == b'=').ok_or(WRONG)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.record(key, value)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let number = |value| decimal(value).ok_or(Error::Malformed("a number in a record"));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => {
                let size = number(value)?;
                if i64::try_from(size).is_err() {
                    return Err(Error::Malformed("a size"));
                }
                self.size = Some(size);
            }
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => {
                self.mtime = Some(time_of(value).ok_or(Error::Malformed("a time"))?);
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(Error::Malformed("a sparse member"));
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = decoded(name);
                    if name.is_empty() || name.contains(&0) {
                        return Err(Error::Malformed("the name of an attribute"));
                    }
                    self.attributes.insert(name, value.to_vec());
                }
            }
        }
        Ok(())
    }
}

fn decoded(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, tail)) = rest.split_first() {
        let (byte, skipped) = match (*byte, tail.get(..2)) {
            (b'%', Some(b"3D")) => (b'=', 2),
            (b'%', Some(b"25")) => (b'%', 2),
            (byte, _) => (byte, 0),
        };
        out.push(byte);
        rest = &tail[skipped..];
    }
    out
}
