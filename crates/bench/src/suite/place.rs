//! Where it is measured: a home and workspaces of its own, a copy of the binary, and an end to all of it.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::work::Work;
use crate::peer::Room;
use crate::runner::Timed;

/// The path of everything that is measured: what differs between users is not on it.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What cases of the other binary are called before they are in a result of their own.
pub const AGAINST: &str = "against: ";

#[derive(Debug)]
pub struct Place {
    /// Without symlinks, since sandboxes show it so.
    real: PathBuf,
    /// Removes it all when this process ends, however that comes.
    broom: Child,
}

/// Waits until nobody holds its standard input any more, lets go of what a killed server left mounted, and
/// removes everything. What the kernel leaves in the work directory of an overlay is closed to its own
/// owner.
const SWEEP: &str = r#"trap '' INT TERM HUP
read _
cd /
while read -r _ _ _ _ at _; do
  case $at in "$0"/*) umount -l "$at" ;; esac
done </proc/self/mountinfo
chmod -R u+rwx "$0"
rm -rf --one-file-system "$0""#;

fn problem(path: &Path, e: &std::io::Error) -> String {
    format!("{}: {}", path.display(), e.kind())
}

impl Place {
    pub fn new(binary: &Path, against: Option<&Path>) -> Result<Self, String> {
        let make = || -> std::io::Result<Self> {
            let root = tempfile::Builder::new().prefix("ringfence-bench").tempdir()?;
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755))?;
            let real = root.path().canonicalize()?;
            let mut broom = Command::new("/bin/sh");
            broom.args(["-c", SWEEP]).arg(&real).stdin(Stdio::piped());
            let broom = broom.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            // From here on it is the broom's.
            let _ = root.keep();
            for dir in ["home", "work", "peers", "against", "against/home"] {
                std::fs::create_dir(real.join(dir))?;
            }
            Ok(Self { real, broom })
        };
        let place = make().map_err(|e| format!("cannot make a directory to measure in: {e}"))?;
        let copy = place.binary();
        std::fs::copy(binary, &copy).map_err(|e| problem(binary, &e))?;
        if let Some(other) = against {
            let copy = place.path("against/ringfence");
            std::fs::copy(other, &copy).map_err(|e| problem(other, &e))?;
        }
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
        Timed { name, argv, dir, env, fails: false, absent: None }
    }

    /// A piece of work behind these words.
    pub fn timed(&self, name: &str, work: &Work, prefix: &[OsString]) -> Timed {
        let argv = prefix.iter().chain(&work.argv).cloned().collect();
        let mut timed = self.command(name, argv);
        timed.dir.push(&work.dir);
        timed.env.extend(work.env.iter().cloned());
        timed
    }

    /// The same, confined by ringfence with these flags.
    pub fn confined(&self, name: &str, work: &Work, flags: &[&str]) -> Timed {
        self.by(self.binary(), name, work, flags)
    }

    /// The same by the other binary, which has a home of its own: what the two keep there may differ.
    pub fn against(&self, name: &str, work: &Work, flags: &[&str]) -> Timed {
        let binary = self.path("against/ringfence");
        let mut timed = self.by(binary, &format!("{AGAINST}{name}"), work, flags);
        timed.env.push(("HOME".into(), self.path("against/home").into()));
        timed
    }

    fn by(&self, binary: PathBuf, name: &str, work: &Work, flags: &[&str]) -> Timed {
        let mut prefix: Vec<OsString> = vec![binary.into()];
        let more = work.flags.iter().map(OsString::from);
        let (separator, flags) = flags.split_last().unwrap_or((&"--", &[]));
        prefix.extend(flags.iter().map(Into::into));
        prefix.extend(more);
        prefix.push(separator.into());
        self.timed(name, work, &prefix)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.broom.stdin.take());
        let _ = self.broom.wait();
    }
}
