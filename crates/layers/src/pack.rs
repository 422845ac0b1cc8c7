//! A layer as a file: the layer of an OCI image (`tar`, mostly compressed with zstd), and back.
//!
//! One root lies at the top of the archive; several lie in directories `0`, `1`, … after a member
//! `ringfence.json` that says what they were. The same stack gives the same bytes.

pub mod tar;

mod export;
mod import;
mod layer;

use std::path::PathBuf;

use rustix::io::Errno;

pub use export::{Exported, Format, export};
pub use import::{Import, Imported, Limits};
pub use layer::{read_layer, write_layer};

use crate::merge;

/// What hides a name of a lower layer: an empty file of this name before the hidden one.
const WHITEOUT: &[u8] = b".wh.";
/// What hides everything that a directory has in lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The member that names the roots where there are several.
const MANIFEST: &str = "ringfence.json";
/// The largest manifest that is read: some hundred paths.
const MAX_MANIFEST: u64 = 1 << 20;
/// The first bytes of what zstd and gzip compress.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why a layer was not exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Merge(#[from] merge::Error),
    #[error(transparent)]
    Store(#[from] crate::Error),
    #[error("cannot {what}: {source}")]
    Stream { what: &'static str, source: std::io::Error },
    #[error("{}: cannot {what}: {errno}", crate::shown(path))]
    Os { what: &'static str, path: PathBuf, errno: Errno },
    #[error(
        "{}: the format of image layers cannot hold a name that begins with .wh.",
        crate::shown(path)
    )]
    Unwritable { path: PathBuf },
    #[error("{0}")]
    Tar(#[from] tar::Error),
    #[error("{}: refused: {why}", crate::shown(path))]
    Refused { path: PathBuf, why: &'static str },
    #[error("refused: the archive holds more than {limit}")]
    TooMuch { limit: String },
    #[error("refused: {0}")]
    Compression(&'static str),
    #[error("the archive holds {} roots; name where each goes, in this order, by --root: {}", .0.len(), .0.join(", "))]
    Roots(Vec<String>),
    #[error("the archive holds {found} roots, but {given} were named")]
    RootCount { found: usize, given: usize },
    #[error("the space on the disk of the store goes below {floor} bytes")]
    Space { floor: u64 },
}

/// What the manifest says.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Manifest {
    ringfence: u32,
    roots: Vec<String>,
}

#[cfg(test)]
mod tests;
