//! What can go wrong, with the path it went wrong at.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::shown;

/// Why something was not done. Nothing is lost by any of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {errno}", shown(path))]
    Os { what: &'static str, path: PathBuf, errno: Errno },
    #[error(
        "{} {why}; the store of layers must be a directory of your own, mode 0700",
        shown(path)
    )]
    NotYours { path: PathBuf, why: &'static str },
    #[error(
        "`{}` is not a name: letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 64",
        .0.escape_debug()
    )]
    Name(String),
    #[error("no layer is called {0}; `ringfence layers` lists them")]
    NoLayer(String),
    #[error("layer {name} is in use by {}", pid.map_or("another process".into(), |p| format!("pid {p}")))]
    InUse { name: String, pid: Option<u32> },
    #[error("{} is damaged: {problem}", shown(path))]
    Corrupt { path: PathBuf, problem: String },
    #[error("{} is of format {found}; this ringfence knows format {known}", shown(path))]
    Version { path: PathBuf, found: u64, known: u32 },
    #[error(
        "{} is not the directory that layer {layer} was made over; apply or discard the layer, or use another name",
        shown(path)
    )]
    OtherRoot { layer: String, path: PathBuf },
    #[error("the delta cannot be trusted: {}: {problem}", shown(path))]
    Delta { path: PathBuf, problem: String },
    #[error("layer {0} has an unfinished apply: `ringfence apply {0} --resume` or `--rollback`")]
    Unfinished(String),
    #[error("{0}")]
    Refused(String),
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
}

impl From<crate::merge::Error> for Error {
    fn from(e: crate::merge::Error) -> Self {
        use crate::merge::Error as Merge;
        match e {
            Merge::Os { what, path, errno } => Self::Os { what, path, errno },
            Merge::Invalid { path, attribute } => Self::Delta {
                path,
                problem: format!("it has the attribute {attribute}, which means nothing here"),
            },
            Merge::Copy(e) => Self::Refused(e.to_string()),
        }
    }
}
