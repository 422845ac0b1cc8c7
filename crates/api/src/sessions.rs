//! Shells that stay.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openapi::PLAIN;

/// A shell to start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateSession {
    /// `bash`, `sh` or the path of one; default: `/bin/sh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Variables over the sandbox's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("propertyNames" = {"pattern": "^[^=\\u0000]+$"}))]
    #[schemars(extend("additionalProperties" = {"type": "string", "pattern": PLAIN}))]
    pub environment: BTreeMap<String, String>,
    /// Where it starts, as it is seen inside; default: the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    Active,
    Closed,
}

/// A shell that keeps directory, variables and functions from one command to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    pub id: String,
    pub sandbox: String,
    pub shell: String,
    pub state: SessionState,
    /// Why it is closed: `exit` (of the shell), `signal`, `deleted`, `timeout` (it could not be brought
    /// to give up a command), `sandbox` (the sandbox ended).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_ms: Option<u64>,
    /// The shell's process id inside.
    pub pid: i32,
    /// A command runs in it.
    pub busy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sessions {
    pub sessions: Vec<Session>,
}

/// A command for a session's shell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionExec {
    /// Text of the shell's, of any number of lines.
    #[schemars(regex(pattern = PLAIN))]
    pub command: String,
    /// What it reads from standard input; then the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// `stdin` is base64.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin_base64: bool,
    /// After this long it and what it started are killed, and the shell goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}
