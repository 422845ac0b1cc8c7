//! What the daemon is asked and what it answers: plain data. The OpenAPI document is made of these
//! types ([`openapi`]), so that it cannot say anything else.
#![forbid(unsafe_code)]

mod batch;
mod changes;
pub mod codebases;
mod events;
pub mod layers;
mod limits;
pub mod openapi;
mod owners;
mod sessions;
mod stats;
mod terminal;
mod trees;

pub use batch::{BatchCreate, BatchCreated, BatchExec, BatchExecuted, BatchItem, Outcome};
pub use changes::{FileChange, Watch, WatchEnded};
pub use events::{Audit, AuditQuery, Event, FollowEvents};
pub use limits::SandboxLimits;
pub use owners::{OwnerInfo, OwnerLimits, OwnerUse};
pub use sessions::{CreateSession, Session, SessionExec, SessionState, Sessions};
pub use stats::{DaemonStats, DiskIo, DiskUse, SandboxStats, Stats};
pub use terminal::{Attach, FromTerminal, TerminalSize, ToTerminal};
pub use trees::{Found, FoundFiles, MoveFile, Search, Unpacked};

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openapi::{NAME, PLAIN};

/// What a sandbox is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateSandbox {
    /// A name of one's own: letters, digits, `-`, `_` and `.`, at most 64. Unique among one's sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = NAME))]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[schemars(extend("propertyNames" = {"maxLength": 256}))]
    #[schemars(extend("additionalProperties" = {"type": "string", "maxLength": 256}))]
    pub labels: BTreeMap<String, String>,
    /// The directory to work in, absolute. Without a layer, what is written there is written to the real
    /// tree. Empty with `codebase`; else empty is a directory of the sandbox's own, which goes with it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workspace: String,
    /// The codebase to work in, by name or id, seen at `/workspace`. What is written goes to a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codebase: Option<String>,
    /// True: what is written goes to a layer of the sandbox's own; or the name of a layer that stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<codebases::Layer>,
    /// Rules of names in the workspace, over those of profiles and policy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<codebases::FileRule>,
    /// It is not started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Names at the root that lead into the workspace (`/app` to `src/app`), unless something is there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<String, String>,
    /// Built-in profiles, lowest first; none: `workspace`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<String>,
    /// A policy as in a policy file, over the profiles. It may not name other files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<serde_json::Map<String, serde_json::Value>>,
    /// Variables of every command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("propertyNames" = {"pattern": "^[^=\\u0000]+$"}))]
    #[schemars(extend("additionalProperties" = {"type": "string", "pattern": PLAIN}))]
    pub environment: BTreeMap<String, String>,
    /// Comes back when the daemon or the machine starts again.
    pub persistent: bool,
    /// Destroyed this long after it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Stopped when no command has run for this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_stop_seconds: Option<u64>,
}

/// How much longer a sandbox is to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// After the end it has; where it has none, from now.
    pub seconds: u64,
}

/// Where a sandbox is in its life.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Creating,
    /// A command runs.
    Running,
    /// Ready, and no command runs.
    Idle,
    /// Every process is stopped until it is started again.
    Frozen,
    /// No process is there; it can be started.
    Stopped,
    /// It could not be made or was lost; it can be started or deleted.
    Failed,
    Destroyed,
}

impl State {
    pub const ALL: [Self; 7] = [
        Self::Creating,
        Self::Running,
        Self::Idle,
        Self::Frozen,
        Self::Stopped,
        Self::Failed,
        Self::Destroyed,
    ];

    pub fn text(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Idle => "idle",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Destroyed => "destroyed",
        }
    }
}

/// What holds the processes of a frozen sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FrozenBy {
    /// The freezer of its control group: nothing inside can undo it.
    Cgroup,
    /// SIGSTOP to each, until none was seen to go on.
    Signals,
}

impl FrozenBy {
    pub fn text(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Signals => "signals",
        }
    }
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sandbox {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub state: State,
    /// Why it is in this state: `created`, `requested`, `idle`, `ttl`, `oom`, `killed`, `host-lost`,
    /// `restarted`, or what went wrong.
    pub reason: String,
    /// What holds it, while it is frozen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub frozen_by: Option<FrozenBy>,
    /// As it is seen inside.
    pub workspace: String,
    /// The id of the codebase that it works in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub codebase: Option<String>,
    /// The name of the layer that its changes go to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rules: Vec<codebases::FileRule>,
    pub profiles: Vec<String>,
    pub persistent: bool,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_ms: Option<u64>,
    /// Commands that are running.
    pub commands: usize,
    /// What it is limited by; where that is weaker than it should be, `degraded` says it.
    #[serde(default)]
    pub limits: SandboxLimits,
    /// What is weaker than it should be, a line for each.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub degraded: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sandboxes {
    pub sandboxes: Vec<Sandbox>,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Program and arguments, as they are.
    pub argv: Vec<String>,
    /// A line for `/bin/sh -c`, instead of `argv`.
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
    /// What it reads from standard input; then the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// `stdin` is base64.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin_base64: bool,
    /// After this long it and what it started are killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Answer as soon as it runs; ask for its output and end by its id.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub background: bool,
    /// Give it a terminal of this size; all it writes is `stdout` then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// What a command used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    pub user_us: u64,
    pub system_us: u64,
    /// Kibibytes of its largest process.
    pub peak_kib: u64,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ended {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
    /// `exit`, `signal`, `timeout`, `killed` (on request), `sandbox` (the sandbox ended).
    pub reason: String,
    pub duration_us: u64,
    pub usage: Usage,
}

/// A command, running or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    pub id: String,
    pub sandbox: String,
    pub argv: Vec<String>,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    /// Its process id inside.
    pub pid: i32,
    /// Bytes of output so far.
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Execs {
    pub execs: Vec<Exec>,
}

/// Bytes as text: as they are where they are UTF-8, else as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Text {
    pub data: String,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub base64: bool,
    /// Bytes that were before these and are not kept.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub lost: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A finished command and its output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecResult {
    #[serde(flatten)]
    pub exec: Exec,
    pub stdout: Text,
    pub stderr: Text,
}

/// One server-sent event of a command's output; the event's name is `stdout`, `stderr`, `started`,
/// `lost` or `ended`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Of the first byte, in its stream.
    pub offset: u64,
    #[serde(flatten)]
    pub text: Text,
}

/// From where to follow a command's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Follow {
    pub stdout_offset: u64,
    pub stderr_offset: u64,
}

/// Which signal; default 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kill {
    #[schemars(range(min = 1, max = 64))]
    pub signal: i32,
}

impl Default for Kill {
    fn default() -> Self {
        Self { signal: 9 }
    }
}

/// A name in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileInfo {
    pub name: String,
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: String,
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Milliseconds since 1970.
    pub modified_ms: i64,
    /// Of the state that it is in, as `ETag` says it: of regular files, where one is asked for by its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub etag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    pub entries: Vec<FileInfo>,
    /// There are more than are listed.
    pub truncated: bool,
}

/// What every error looks like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    pub error: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// For programs: `not-found`, `conflict`, `invalid`, ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub remedy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    pub version: String,
    pub pid: u32,
}
