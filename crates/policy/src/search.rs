//! Where policy files are looked for, and what a trusted file is known by. Pure: the caller looks
//! and hashes.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Names of a project's policy file, in order of preference within one directory.
pub const PROJECT_NAMES: &[&str] = &["ringfence.toml", "ringfence.jsonc", "ringfence.json"];

/// Names of the user's policy file below the configuration directory (`~/.config`).
pub const USER_NAMES: &[&str] =
    &["ringfence/ringfence.toml", "ringfence/ringfence.jsonc", "ringfence/ringfence.json"];

/// Marks the format of [`trust_key`]; changes when the format does, which ends all trust.
const TRUST_VERSION: &[u8] = b"ringfence trust 1\0";

/// Candidates for a project's policy file, nearest directory first, from `start` up to the root.
/// The first that exists counts.
pub fn project_candidates(start: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    start.ancestors().flat_map(|folder| PROJECT_NAMES.iter().map(move |name| folder.join(name)))
}

/// Candidates for the user's policy file.
pub fn user_candidates(config_home: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    USER_NAMES.iter().map(|name| config_home.join(name))
}

/// The bytes to hash for trusting the file at `path` (absolute, symlink-free) with this content.
/// Each part is preceded by its length, so that no two pairs give the same bytes.
pub fn trust_key(path: &Path, content: &[u8]) -> Vec<u8> {
    let path = path.as_os_str().as_bytes();
    let mut key = Vec::with_capacity(TRUST_VERSION.len() + 16 + path.len() + content.len());
    key.extend_from_slice(TRUST_VERSION);
    for part in [path, content] {
        key.extend_from_slice(&(part.len() as u64).to_le_bytes());
        key.extend_from_slice(part);
    }
    key
}
