//! Codebases: named trees that sandboxes are made from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openapi::NAME;

/// What a codebase is made of. With neither archive nor directory it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateCodebase {
    /// Letters, digits, `.`, `_` and `-`, at most 64.
    #[schemars(regex(pattern = NAME))]
    pub name: String,
    /// A directory of the host to copy, absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/[^\\u0000]*$"))]
    pub directory: Option<String>,
    /// Patterns as in `.gitignore`: what they match of the directory is left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Whose it is said to be; default: the id of the daemon's user. It gives nobody any right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Nothing can be put into it later.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Codebase {
    /// `cb_` and 16 hexadecimal digits.
    pub id: String,
    pub name: String,
    pub owner: String,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    pub updated_ms: i64,
    /// Bytes of all files.
    pub size: u64,
    pub files: u64,
    /// Everything with a name.
    pub entries: u64,
    pub sealed: bool,
    /// Raised by every change.
    pub version: u64,
    /// Ids of the sandboxes that are made from it.
    pub sandboxes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Codebases {
    pub codebases: Vec<Codebase>,
}

/// What may be done with names in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FilePermission {
    /// They do not exist.
    None,
    /// They are listed, and neither read nor changed.
    View,
    Read,
    Write,
}

/// How a pattern matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PatternType {
    /// `*` within one segment, `**` across.
    #[default]
    Glob,
    /// The path itself or anything below.
    Directory,
    /// Equality.
    File,
}

/// A rule of names: the highest priority decides, then file over directory over glob, then the more
/// specific pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRule {
    /// Relative to the workspace.
    pub pattern: String,
    pub permission: FilePermission,
    #[serde(default)]
    pub priority: i32,
    #[serde(default, rename = "type")]
    pub kind: PatternType,
}

/// Where a sandbox's changes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Layer {
    /// A layer of its own, which goes with the sandbox; or none.
    Own(bool),
    /// The layer of this name, which stays when the sandbox goes.
    Named(String),
}
