//! What can go wrong, in words.

use std::path::PathBuf;

use ringfence_layers::shown;
use rustix::io::Errno;

/// Why something about a codebase was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot {what}: {errno}", shown(path))]
    Os { what: &'static str, path: PathBuf, errno: Errno },
    #[error("there is no codebase called {0}: `ringfence codebase list` names them")]
    NoCodebase(String),
    #[error("a codebase called {0} exists already")]
    Taken(String),
    #[error(
        "\"{}\" cannot be the name of a codebase: letters, digits, `.`, `_` and `-`, at most 64, \
         beginning with a letter or digit",
        .0.escape_debug()
    )]
    Name(String),
    #[error("codebase {0} is sealed: it can be mounted and read, not changed")]
    Sealed(String),
    #[error(
        "codebase {codebase} is in use by layer {layer} (pid {pid}): a tree does not change under a \
         running sandbox; wait until it ended"
    )]
    InUse { codebase: String, layer: String, pid: u32 },
    #[error("{} is not in the codebase", shown(.0))]
    Missing(PathBuf),
    #[error("{}: {problem}", shown(path))]
    File { path: PathBuf, problem: String },
    #[error("{0}")]
    Refused(String),
    #[error("the record of codebases, {}: {problem}", shown(path))]
    Database { path: PathBuf, problem: String },
    #[error(transparent)]
    Layers(#[from] ringfence_layers::Error),
    #[error(transparent)]
    Archive(#[from] ringfence_layers::pack::Error),
    #[error("{0}")]
    Copy(#[from] ringfence_layers::copy::Error),
    #[error("cannot {what}: {source}")]
    Stream { what: &'static str, source: std::io::Error },
    /// Never with a credential in it.
    #[error("{url}: {problem}")]
    Remote { url: String, problem: String },
}

impl Error {
    /// For `map_err` of a system call about `path`.
    pub fn os(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Self {
        let path = path.into();
        move |errno| Self::Os { what, path, errno }
    }

    /// The same for the standard library's errors.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |e| Self::Os { what, path, errno: Errno::from_io_error(&e).unwrap_or(Errno::IO) }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: problem.into() }
    }
}
