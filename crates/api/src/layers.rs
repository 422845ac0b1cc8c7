//! The layer of a sandbox: what it changed, and what becomes of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openapi::NAME;

/// What is kept of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LayerInfo {
    pub layer: String,
    /// What it takes on the disk.
    pub bytes: u64,
    pub inodes: u64,
    pub snapshots: Vec<Snapshot>,
    /// What can be taken back, the newest first.
    pub checkpoints: Vec<Checkpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// How many steps of an undo lead before it.
    pub steps: usize,
    pub created_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub command: Option<String>,
}

/// What a layer holds, compared with what lies below it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LayerChanges {
    pub layer: String,
    /// The sandbox runs: it may change.
    pub in_use: bool,
    /// As `ringfence diff --json` has them: path, status (`A`, `M`, `D`, `T`, `m`), old, new, verdict.
    pub changes: Vec<serde_json::Map<String, serde_json::Value>>,
}

/// What to bring to the real files, or to throw away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Chosen {
    /// Absolute, or relative to the workspace; none: all.
    pub paths: Vec<String>,
    /// Say what would be done, and change nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Where both changed something, take the layer's.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub theirs: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    pub applied: Vec<Line>,
    pub conflicts: Vec<Line>,
    /// What the sandbox's policy would not have let it write.
    pub refused: Vec<Line>,
    pub notes: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    pub path: String,
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// Why the host may run it later.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub executable: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Undo {
    /// How many checkpoints, the newest first.
    pub steps: usize,
}

impl Default for Undo {
    fn default() -> Self {
        Self { steps: 1 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// The name of the new layer.
    #[schemars(regex(pattern = NAME))]
    pub layer: String,
}
