//! A version of a codebase in an object store: what it holds, and by which chunks.
//!
//! Lines of JSON, compressed with zstd: a header, one line for each name, a line with the digest of
//! all lines before it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write as _};

use ringfence_layers::pack::tar::{Kind, Member};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The format.
const FORMAT: u32 = 1;
/// Bytes of one chunk of content.
pub(crate) const CHUNK: usize = 4 << 20;
/// Bytes of a manifest as it is transferred, and of its text: some million names.
pub(crate) const MAX_PACKED: u64 = 512 << 20;
const MAX_TEXT: u64 = 4 << 30;
/// Memory that decompression may take, as a power of two.
pub(crate) const WINDOW_LOG: u32 = 27;
const LEVEL: i32 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub ringfence_codebase: u32,
    pub name: String,
    pub version: u64,
    /// Digest of the lines of all names: the same tree has the same.
    pub tree: String,
    pub size: u64,
    pub files: u64,
}

/// One name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    path: Bytes,
    kind: char,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    mode: u32,
    mtime: (i64, u32),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<(Bytes, Bytes)>,
    /// SHA-256 of each [`CHUNK`] bytes of the content; the last may be shorter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Text where it is, else numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Raw(Vec<u8>),
}

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Raw(bytes.to_vec()),
        }
    }

    fn get(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Raw(bytes) => bytes,
        }
    }
}

const KINDS: [(Kind, char); 5] = [
    (Kind::File, 'f'),
    (Kind::Directory, 'd'),
    (Kind::Symlink, 'l'),
    (Kind::HardLink, 'h'),
    (Kind::Fifo, 'p'),
];

impl Line {
    /// Owners stay out of it: a codebase belongs to whoever has it.
    pub fn new(member: &Member, chunks: Vec<String>) -> Option<Self> {
        let kind = KINDS.iter().find(|(kind, _)| *kind == member.kind)?.1;
        Some(Self {
            path: Bytes::new(&member.path),
            kind,
            size: member.size,
            mode: member.mode & 0o1777,
            mtime: member.mtime,
            link: (!member.link.is_empty()).then(|| Bytes::new(&member.link)),
            attributes: member
                .attributes
                .iter()
                .map(|(key, value)| (Bytes::new(key), Bytes::new(value)))
                .collect(),
            chunks,
        })
    }

    pub fn member(&self, uid: u32, gid: u32) -> Result<Member, String> {
        let wrong = |why: &str| format!("the manifest holds {why}");
        let kind = KINDS.iter().find(|(_, c)| *c == self.kind).ok_or(wrong("an unknown type"))?.0;
        let wanted = if kind == Kind::File { self.size.div_ceil(CHUNK as u64) } else { 0 };
        if self.chunks.len() as u64 != wanted || (kind != Kind::File && self.size != 0) {
            return Err(wrong("a file with too many or too few chunks"));
        }
        if !self.chunks.iter().all(|c| is_digest(c)) {
            return Err(wrong("a chunk without a digest"));
        }
        let mut attributes = BTreeMap::new();
        for (key, value) in &self.attributes {
            if key.get().contains(&0) || key.get().is_empty() {
                return Err(wrong("an attribute without a name"));
            }
            attributes.insert(key.get().to_vec(), value.get().to_vec());
        }
        let path = self.path.get().to_vec();
        let link = self.link.as_ref().map(|l| l.get().to_vec()).unwrap_or_default();
        if path.contains(&0) || link.contains(&0) {
            return Err(wrong("a name with a zero byte"));
        }
        Ok(Member {
            size: self.size,
            mode: self.mode & 0o1777,
            uid: uid.into(),
            gid: gid.into(),
            mtime: self.mtime,
            link,
            attributes,
            ..Member::new(path, kind)
        })
    }

    /// Digests with the bytes that each stands for.
    pub fn pieces(&self) -> impl Iterator<Item = (&str, usize)> {
        self.chunks.iter().enumerate().map(|(at, digest)| {
            let left = self.size - (at * CHUNK) as u64;
            (digest.as_str(), usize::try_from(left).unwrap_or(CHUNK).min(CHUNK))
        })
    }
}

/// 64 lower-case hexadecimal digits.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A whole version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub header: Header,
    pub lines: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct End {
    sha256: String,
}

impl Manifest {
    pub fn new(name: &str, version: u64, lines: Vec<Line>) -> Result<Self, String> {
        let mut hash = Sha256::new();
        let (mut size, mut files) = (0_u64, 0);
        for line in &lines {
            hash.update(serde_json::to_vec(line).map_err(|e| e.to_string())?);
            hash.update(b"\n");
            size = size.saturating_add(line.size);
            files += u64::from(line.kind == 'f');
        }
        let tree = hex(&hash.finalize());
        let name = name.to_owned();
        let header = Header { ringfence_codebase: FORMAT, name, version, tree, size, files };
        Ok(Self { header, lines })
    }

    pub fn pack(&self) -> Result<Vec<u8>, String> {
        let pack = || -> std::io::Result<Vec<u8>> {
            let mut out = zstd::Encoder::new(Vec::new(), LEVEL)?;
            let mut hash = Sha256::new();
            let mut put = |mut text: Vec<u8>| {
                text.push(b'\n');
                hash.update(&text);
                out.write_all(&text)
            };
            put(serde_json::to_vec(&self.header)?)?;
            for line in &self.lines {
                put(serde_json::to_vec(line)?)?;
            }
            let end = End { sha256: hex(&hash.finalize()) };
            out.write_all(&serde_json::to_vec(&end)?)?;
            out.finish()
        };
        pack().map_err(|e| e.to_string())
    }

    /// From bytes that may be anybody's.
    pub fn unpack(packed: &[u8], name: &str, version: u64) -> Result<Self, String> {
        let damaged = |e: &dyn std::fmt::Display| format!("the manifest is damaged: {e}");
        let mut decoder = zstd::Decoder::with_buffer(packed).map_err(|e| damaged(&e))?;
        decoder.window_log_max(WINDOW_LOG).map_err(|e| damaged(&e))?;
        let mut from = BufReader::new(decoder.take(MAX_TEXT));
        let mut hash = Sha256::new();
        let mut text = Vec::new();
        let mut header: Option<Header> = None;
        let mut lines = Vec::new();
        loop {
            text.clear();
            let n = from.read_until(b'\n', &mut text).map_err(|e| damaged(&e))?;
            if n == 0 {
                return Err(damaged(&"it ends in the middle"));
            }
            if text.last() != Some(&b'\n') {
                let end: End = serde_json::from_slice(&text).map_err(|e| damaged(&e))?;
                if end.sha256 != hex(&hash.finalize()) {
                    return Err(damaged(&"its digest is another"));
                }
                break;
            }
            hash.update(&text);
            if header.is_none() {
                header = Some(serde_json::from_slice(&text).map_err(|e| damaged(&e))?);
            } else {
                lines.push(serde_json::from_slice(&text).map_err(|e| damaged(&e))?);
            }
        }
        let header = header.ok_or_else(|| damaged(&"it has no header"))?;
        if header.ringfence_codebase != FORMAT {
            return Err("the manifest is of a format that this version does not know".into());
        }
        let same = Self::new(name, version, lines)?;
        if same.header != header {
            return Err(damaged(&"it is of something else"));
        }
        Ok(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let mut member = Member::new(b"a/\xff".to_vec(), Kind::File);
        member.size = CHUNK as u64 + 1;
        member.mtime = (-1, 5);
        member.attributes.insert(b"user.x".to_vec(), vec![0, 255]);
        let chunks = vec![digest(b"1"), digest(b"2")];
        let mut link = Member::new(b"l".to_vec(), Kind::Symlink);
        link.link = b"../elsewhere".to_vec();
        let lines =
            vec![Line::new(&member, chunks).unwrap(), Line::new(&link, Vec::new()).unwrap()];
        Manifest::new("n", 3, lines).unwrap()
    }

    #[test]
    fn a_manifest_comes_back_as_it_was() {
        let manifest = sample();
        let packed = manifest.pack().unwrap();
        let back = Manifest::unpack(&packed, "n", 3).unwrap();
        assert_eq!(back, manifest);
        let member = back.lines[0].member(7, 8).unwrap();
        assert_eq!(member.path, b"a/\xff");
        assert_eq!((member.uid, member.mtime), (7, (-1, 5)));
        let pieces: Vec<usize> = back.lines[0].pieces().map(|(_, n)| n).collect();
        assert_eq!(pieces, [CHUNK, 1]);
    }

    #[test]
    fn a_manifest_of_something_else_is_refused() {
        let packed = sample().pack().unwrap();
        assert!(Manifest::unpack(&packed, "m", 3).unwrap_err().contains("something else"));
        assert!(Manifest::unpack(&packed, "n", 4).unwrap_err().contains("something else"));
        for cut in [0, 1, packed.len() / 2, packed.len() - 1] {
            assert!(Manifest::unpack(&packed[..cut], "n", 3).is_err());
        }
        let text = zstd::decode_all(&packed[..]).unwrap();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            let changed = zstd::encode_all(&changed[..], 1).unwrap();
            assert!(Manifest::unpack(&changed, "n", 3).is_err(), "byte {at}");
        }
    }

    #[test]
    fn lines_that_lie_are_refused() {
        let mut line = sample().lines[0].clone();
        line.chunks.pop();
        assert!(line.member(0, 0).is_err());
        let mut line = sample().lines[0].clone();
        line.chunks[0] = "../../../../etc/passwd".into();
        assert!(line.member(0, 0).is_err());
    }
}
