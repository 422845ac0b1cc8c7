//! Where it is measured: a home and workspaces of its own, a copy of the binary, and an end to all of it.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::work::Work;
use crate::peer::Room;
use crate::runner::Timed;

/// The path of everything that is measured: what differs between users is not on it.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug)]
pub struct Place {
    root: tempfile::TempDir,
    /// The same without symlinks, since sandboxes show it so.
    real: PathBuf,
}

fn problem(path: &Path, e: &std::io::Error) -> String {
    format!("{}: {}", path.display(), e.kind())
}

impl Place {
    pub fn new(binary: &Path) -> Result<Self, String> {
        let make = || -> std::io::Result<Self> {
            let root = tempfile::Builder::new().prefix("ringfence-bench").tempdir()?;
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
            let real = root.path().canonicalize()?;
            for dir in ["home", "work", "peers"] {
                std::fs::create_dir(real.join(dir))?;
            }
            Ok(Self { root, real })
        };
        let place = make().map_err(|e| format!("cannot make a directory to measure in: {e}"))?;
        let copy = place.binary();
        std::fs::copy(binary, &copy).map_err(|e| problem(binary, &e))?;
        Ok(place)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.real.join(name)
    }

    pub fn binary(&self) -> PathBuf {
        self.path("ringfence")
    }

    pub fn workspace(&self) -> PathBuf {
        self.path("work")
    }

    pub fn env(&self) -> Vec<(OsString, OsString)> {
        [("PATH", PATH.into()), ("HOME", self.path("home").into()), ("LANG", "C.UTF-8".into())]
            .into_iter()
            .map(|(name, value): (_, OsString)| (name.into(), value))
            .collect()
    }

    /// For peers: they may write to the one workspace that all work is done in.
    pub fn room(&self) -> Room {
        let (workspace, home) = (self.workspace(), self.path("home"));
        Room { workspace, home, place: self.path("peers"), env: self.env() }
    }

    pub fn command(&self, name: &str, argv: Vec<OsString>) -> Timed {
        let (name, dir, env) = (name.into(), self.workspace(), self.env());
        Timed { name, argv, dir, env, fails: false, before: None, absent: None }
    }

    /// A piece of work behind these words.
    pub fn timed(&self, name: &str, work: &Work, prefix: &[OsString]) -> Timed {
        let argv = prefix.iter().chain(&work.argv).cloned().collect();
        let mut timed = self.command(name, argv);
        timed.dir.push(&work.dir);
        timed.env.extend(work.env.iter().cloned());
        timed.before.clone_from(&work.before);
        timed
    }

    /// The same, confined by ringfence with these flags.
    pub fn confined(&self, name: &str, work: &Work, flags: &[&str]) -> Timed {
        let mut prefix: Vec<OsString> = vec![self.binary().into()];
        let more = work.flags.iter().map(OsString::from);
        let (separator, flags) = flags.split_last().unwrap_or((&"--", &[]));
        prefix.extend(flags.iter().map(Into::into));
        prefix.extend(more);
        prefix.push(separator.into());
        self.timed(name, work, &prefix)
    }
}

impl Drop for Place {
    /// What the kernel leaves in the work directory of an overlay is closed to its own owner.
    fn drop(&mut self) {
        open_up(self.root.path());
    }
}

fn open_up(directory: &Path) {
    let Ok(meta) = std::fs::symlink_metadata(directory) else { return };
    if meta.permissions().mode() & 0o700 != 0o700 {
        let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            open_up(&entry.path());
        }
    }
}
