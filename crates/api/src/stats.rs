//! What sandboxes and the daemon use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::State;

/// What a sandbox uses now, and has used since its processes were started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxStats {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    pub state: State,
    /// Commands that are running.
    pub commands: usize,
    /// Commands that were started in it since the daemon knows it.
    pub execs: u64,
    /// Of its control group: bytes with the page cache. Of its processes: the sum of what each has in
    /// memory; pages that several share are counted for each.
    pub memory_bytes: u64,
    /// CPU time so far, in microseconds.
    pub cpu_us: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from disks and written to them; absent where the kernel does not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub io: Option<DiskIo>,
    /// What its layer takes on the disk; absent without one, and in lists.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disk: Option<DiskUse>,
    /// Which of `memory`, `cpu`, `pids` and `io` are of a control group of its own. The others are added up
    /// over its processes.
    pub from_cgroup: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskIo {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskUse {
    pub bytes: u64,
    pub inodes: u64,
}

/// What the daemon's own process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DaemonStats {
    pub pid: u32,
    pub memory_bytes: u64,
    pub cpu_us: u64,
    pub open_files: u64,
    pub uptime_ms: u64,
}

/// All of one's own sandboxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// When it was looked, in milliseconds since 1970.
    pub at_ms: u64,
    /// For the daemon's own user alone: others would see how busy it is with whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon: Option<DaemonStats>,
    pub sandboxes: Vec<SandboxStats>,
}
