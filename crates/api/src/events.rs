//! What happened: to sandboxes, commands, sessions, layers, files, codebases, and who was refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that happened, as it is told and as it is written down. What makes no sense for its kind is
/// left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Event {
    /// Raised by every event of an owner, not by one each time; what `Last-Event-ID` says.
    pub id: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `sandbox.created`, `sandbox.state`, `sandbox.removed`, `sandbox.changed`, `exec.started`,
    /// `exec.ended`, `session.started`, `session.ended`, `layer.changed`, `file.changed`,
    /// `codebase.changed`, `refused`, or `audit.lost`: so many records could not be written down.
    pub kind: String,
    /// Whose it is: the number of the daemon's user, or the name of an owner.
    pub owner: String,
    /// Where it was asked for: `api`, `agentkernel`, `agentfense`; `daemon`: by itself.
    pub interface: String,
    /// Who asked, as the kernel names them; unknown over TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The sandbox's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The command, session, path, codebase or snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was done, or asked for in vain: `write`, `apply`, `extend`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<crate::State>,
    /// Why: of a state or an end as there, of a refusal for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The command, with `***` for what looks like a secret; long ones are cut.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Of how many alike this is the one that is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// There are more: ask again with `after`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<u64>,
}

/// Which events to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FollowEvents {
    /// Of this sandbox only, by id or name; also when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Those after this id; the header `Last-Event-ID` says the same. Without both: from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// Which records of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuditQuery {
    /// Of this sandbox only, by id or name; also when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Of this kind; one that ends with a dot stands for all that begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// From and until when, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Those after this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most so many; default 100, at most 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Of a named owner; for the daemon's user alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}
