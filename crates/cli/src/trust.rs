//! Which policy files may be obeyed: those whose exact content the user has approved. Kept outside
//! every workspace, in the user's state directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Canonical path of a policy file to the hash of its trusted content.
#[derive(Debug, Default)]
pub struct Store {
    file: PathBuf,
    entries: BTreeMap<PathBuf, String>,
}

/// `$XDG_STATE_HOME/ringfence/trust.json`, else `~/.local/state/ringfence/trust.json`.
fn store_path() -> Option<PathBuf> {
    let absolute = |v: std::ffi::OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    let base = std::env::var_os("XDG_STATE_HOME")
        .and_then(absolute)
        .or_else(|| std::env::var_os("HOME").and_then(absolute).map(|h| h.join(".local/state")))?;
    Some(base.join("ringfence/trust.json"))
}

/// The name a policy file goes by: its directory free of symlinks, its own name as it is.
pub fn key_path(path: &Path) -> PathBuf {
    let Some(name) = path.file_name() else { return path.to_owned() };
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    std::fs::canonicalize(parent).map_or_else(|_| path.to_owned(), |p| p.join(name))
}

pub fn hash(path: &Path, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for b in Sha256::digest(ringfence_policy::search::trust_key(path, bytes)) {
        let _ = write!(text, "{b:02x}");
    }
    text
}

impl Store {
    /// A missing store trusts nothing; a damaged one is an error, so that it is not overwritten.
    pub fn open() -> io::Result<Self> {
        let Some(file) = store_path() else { return Ok(Self::default()) };
        let entries = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{}: {e}", crate::output::printable(&file)),
                )
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e),
        };
        Ok(Self { file, entries })
    }

    pub fn trusts(&self, path: &Path, bytes: &[u8]) -> bool {
        self.entries.get(path).is_some_and(|h| *h == hash(path, bytes))
    }

    /// Trusted once, with other content.
    pub fn changed(&self, path: &Path, bytes: &[u8]) -> bool {
        self.entries.get(path).is_some_and(|h| *h != hash(path, bytes))
    }

    pub fn record(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.entries.insert(path.to_owned(), hash(path, bytes));
        self.save()
    }

    pub fn revoke(&mut self, path: &Path) -> io::Result<bool> {
        let was = self.entries.remove(path).is_some();
        self.save()?;
        Ok(was)
    }

    pub fn entries(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.entries.iter().map(|(p, h)| (p.as_path(), h.as_str()))
    }

    /// Written beside and renamed, so that a crash leaves the old or the new one.
    fn save(&self) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let Some(dir) = self.file.parent() else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no home to keep the trust store in",
            ));
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let temporary = self.file.with_extension(format!("json.{}", std::process::id()));
        let text = serde_json::to_vec_pretty(&self.entries).map_err(io::Error::other)?;
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, &text)
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&temporary, &self.file))
            .inspect_err(|_| {
                let _ = std::fs::remove_file(&temporary);
            })
    }
}
