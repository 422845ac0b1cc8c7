//! Where the daemon has its socket and its state.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::{Failed, failed};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Of the socket.
    pub runtime: PathBuf,
    /// Of what must outlive the daemon.
    pub state: PathBuf,
}

impl Places {
    /// By the environment: the socket in `$XDG_RUNTIME_DIR/ringfence`, the state beside the layers.
    pub fn of(state: &Path, runtime: Option<&OsStr>) -> Self {
        let state = state.join("daemon");
        let runtime = runtime.map(Path::new).filter(|p| p.is_absolute());
        Self { runtime: runtime.map_or_else(|| state.clone(), |p| p.join("ringfence")), state }
    }

    /// A directory made for it alone, where this user's sockets are, else where temporary files are.
    pub fn of_one_program() -> Result<Self, Failed> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        // The name of a socket has at most 107 bytes.
        let fits = |p: &PathBuf| p.is_absolute() && p.as_os_str().len() < 64;
        let base = runtime.filter(fits).unwrap_or_else(std::env::temp_dir);
        let random = ringfence_supervisor::random().map_err(|e| Failed(e.to_string()))?;
        let made = base.join(format!("ringfence-{}", random.get(..16).unwrap_or(&random)));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&made)
            .map_err(failed(made.display().to_string()))?;
        // Beside the state lie its layers and codebases, which are shown inside; the socket is hidden.
        let state = made.join("state");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&state)
            .map_err(failed(state.display().to_string()))?;
        Ok(Self { runtime: made.join("run"), state: state.join("daemon") })
    }

    /// What [`of_one_program`](Self::of_one_program) made.
    pub fn remove(&self) {
        if let Some(made) = self.runtime.parent() {
            let _ = std::fs::remove_dir_all(made);
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime.join("daemon.sock")
    }

    /// Of the workspaces that are a sandbox's own: beside the state, which no sandbox may see.
    pub(crate) fn workspaces(&self) -> PathBuf {
        self.state.with_file_name("workspaces")
    }

    /// The file of the owners that have names.
    pub fn owners(&self) -> PathBuf {
        self.state.join("owners.json")
    }

    /// Of layers and codebases: the daemon's state lies in it.
    pub(crate) fn layers(&self) -> PathBuf {
        self.state.parent().unwrap_or(&self.state).to_owned()
    }

    /// What no sandbox may see.
    pub(crate) fn hidden(&self) -> Vec<String> {
        let mut all: Vec<String> =
            [&self.runtime, &self.state].iter().map(|p| p.to_string_lossy().into_owned()).collect();
        all.dedup();
        all
    }

    /// Makes the directory of the state, for its owner alone.
    pub fn make(&self) -> Result<(), Failed> {
        private(&self.state)
    }

    /// Makes the directories, for their owner alone, and takes the lock that one daemon has. It is held
    /// as long as what is answered lives.
    pub(crate) fn prepare(&self) -> Result<std::fs::File, Failed> {
        for directory in [&self.runtime, &self.state] {
            private(directory)?;
        }
        let path = self.state.join("lock");
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed(path.display().to_string()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Failed("a daemon is running already: `ringfence daemon status`".into()))?;
        Ok(lock)
    }

    /// Where a daemon in the background says what went wrong, from its start on.
    pub fn log(&self) -> Result<(std::fs::File, PathBuf), Failed> {
        private(&self.state)?;
        let path = self.state.join("log");
        let mut options = std::fs::OpenOptions::new();
        let opened = options.create(true).write(true).truncate(true).mode(0o600).open(&path);
        Ok((opened.map_err(failed(path.display().to_string()))?, path))
    }

    /// The token for callers over TCP; made when there is none.
    pub(crate) fn token(&self) -> Result<String, Failed> {
        let path = self.state.join("token");
        let wrong = || failed(path.display().to_string());
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim().len() >= 32 => return Ok(text.trim().to_owned()),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(wrong()(e)),
            _ => {}
        }
        let token = token()?;
        let draft = self.state.join(".token");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&draft)
            .map_err(wrong())?;
        writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(wrong())?;
        std::fs::rename(&draft, &path).map_err(wrong())?;
        Ok(token)
    }
}

/// 256 random bits.
fn token() -> Result<String, Failed> {
    let random = || ringfence_supervisor::random().map_err(|e| Failed(e.to_string()));
    Ok(format!("{}{}", random()?, random()?))
}

fn private(directory: &Path) -> Result<(), Failed> {
    let shown = directory.display().to_string();
    if let Some(parent) = directory.parent() {
        // Layers and codebases are kept in it, and only where it is their owner's alone.
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(parent);
        made.map_err(failed(parent.display().to_string()))?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(shown)(e)),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(directory).map_err(failed(shown.clone()))?;
    let own = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
        return Err(Failed(format!(
            "{shown} is not a directory of yours alone: remove it, or take the rights of others away (chmod 700)"
        )));
    }
    Ok(())
}
