//! What the inspection of chosen hosts needs inside: its authority where programs look for authorities,
//! and placeholders where they look for credentials. Made by whoever runs the filter; this crate knows
//! neither certificates nor secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where files of inspection stand inside. No host has this name, and only `/` is around it, so that
/// nothing of the host can come to lie there.
pub const OWN: &str = "/.ringfence-trust";

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Entries of `network.inspect`.
    pub hosts: usize,
    /// Names of the secrets.
    pub secrets: Vec<String>,
    /// Files of the host, without links, that are covered inside where they are visible.
    pub covers: BTreeMap<PathBuf, Arc<[u8]>>,
    /// Files of our own, directly in [`OWN`].
    pub files: BTreeMap<PathBuf, Arc<[u8]>>,
    /// Variables that lead to those files, over what the caller passes.
    pub environment: BTreeMap<&'static str, PathBuf>,
    /// Variables that hold the placeholders of secrets.
    pub placeholders: Vec<(String, String)>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Inspection {
    /// Of [`Status`](crate::status::Status): what is inspected.
    pub(crate) fn detail(&self) -> String {
        let hosts = if self.hosts == 1 { "host" } else { "hosts" };
        format!("{} {hosts}, CA only inside", self.hosts)
    }

    /// The secrets by name, where there are any.
    pub(crate) fn secrets(&self) -> Option<String> {
        (!self.secrets.is_empty())
            .then(|| format!("{}: only placeholders inside", self.secrets.join(", ")))
    }

    /// The file with this content, if it is one of ours already.
    pub(crate) fn file_with(&self, content: &[u8]) -> Option<&Path> {
        self.files.iter().find(|(_, known)| known[..] == *content).map(|(path, _)| path.as_path())
    }
}
