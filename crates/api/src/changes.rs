//! What a watched directory tells.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// The directory; default: the workspace.
    pub path: String,
    /// Also everything below it.
    pub recursive: bool,
}

/// A change; the event's name says which: `created`, `changed`, `attributes`, `moved` or `removed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileChange {
    /// From the directory on.
    pub path: String,
    /// What it was called before, where it was moved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<String>,
    /// Whether it is one.
    pub directory: bool,
}

/// The last event, `ended`: nothing more comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatchEnded {
    /// `gone` (the directory is), or `sandbox` (which ended).
    pub reason: String,
}
