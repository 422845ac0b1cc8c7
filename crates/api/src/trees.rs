//! Many files at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A name to change; what has the new one is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveFile {
    #[schemars(regex(pattern = "^[^\\u0000]+$"))]
    pub from: String,
    #[schemars(regex(pattern = "^[^\\u0000]+$"))]
    pub to: String,
}

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// The directory; default: the workspace.
    pub path: String,
    /// A pattern (`*`, `?`, `[...]`, `{a,b}`, `**`) of names, or with a slash of paths from there on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A text that a line of a file has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Answers at most: 1 to 10000, default 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A name that was found, or a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// From the directory on.
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: String,
    pub size: u64,
    /// Of the text, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u64>,
    /// The line, or its first 400 bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundFiles {
    pub found: Vec<Found>,
    /// There may be more: a limit was reached.
    pub truncated: bool,
}

/// What came of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unpacked {
    pub files: u64,
    /// That were made.
    pub directories: u64,
    pub bytes: u64,
}
