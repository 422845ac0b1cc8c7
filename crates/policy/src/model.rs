//! What a finished policy is: plain data, no I/O, no defaults hidden in code that reads it.
//!
//! A [`Policy`] is what remains after every layer (built-in profile, user file, project file, command
//! line) was merged by [`crate::layer`]. The sandbox lowers it to a plan; nothing after this point
//! decides what is allowed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a path may be used for. The order is the order of power: `None < View < Read < Write`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Absent: not listed, `ENOENT` on lookup where the mechanism can say so.
    None,
    /// Listed and stat-able; content refused.
    View,
    /// Readable (and executable where the mode says so); any change refused.
    Read,
    /// Everything.
    Write,
}

/// How a rule moves the permission of the paths it covers. See `docs/policy.md`, "Precedence".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// At least this (allow lists).
    Grant,
    /// At most this (deny lists, guards).
    Cap,
    /// Exactly this (ordered rules: AgentFense presets, `[[files.rules]]`).
    Set,
}

/// Which places a pattern is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// The workspace root (`./x`, `x`, `**/x`).
    Workspace,
    /// The caller's home (`~/x`).
    Home,
    /// The host's root (`/x`).
    Root,
}

/// How a pattern matches. Native patterns cover what lies below a match; the ordered kinds follow
/// the AgentFense wire protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// ringfence's own: literal path or gitignore-like glob; covers the match and all below it.
    Path,
    /// AgentFense glob (`*` within one segment, `**` across).
    Glob,
    /// AgentFense directory: the path itself or anything below.
    Directory,
    /// AgentFense file: equality.
    File,
}

/// Where a rule came from, for `explain` and for error messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Layer name: `built-in workspace`, `command line`, or the file's path as given.
    pub layer: String,
    /// 1-based line in that file, where known.
    pub line: Option<u32>,
}

/// One file rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub base: Base,
    /// Path or glob relative to `base`, without leading `/`, cleaned; empty means the base itself.
    /// Patterns of the ordered kinds stay as written, since their specificity is computed on that.
    pub pattern: String,
    pub kind: Kind,
    pub effect: Effect,
    pub permission: Permission,
    /// Higher wins. Native rules use 0, imported Fence denies [`priority::IMPORTED_DENY`], guards
    /// [`priority::GUARD`].
    pub priority: i32,
    /// Stable id of a built-in rule (`secret.ssh`, `guard.git-hooks`), by which it can be lifted.
    pub id: Option<String>,
    pub origin: Origin,
}

impl Rule {
    /// A built-in guard, or one that a run adds. An ordered rule may have any priority, and is none.
    pub fn is_guard(&self) -> bool {
        self.priority >= priority::GUARD && self.effect == Effect::Cap
    }
}

/// Named priorities, so that no number is compared without its reason.
pub mod priority {
    /// Fence and Greywall let a deny win over every allow, however specific.
    pub const IMPORTED_DENY: i32 = 10_000;
    /// Built-in guards (git hooks, editor and agent configuration, ringfence's own policy) win over
    /// everything a policy file says unless they are lifted by id.
    pub const GUARD: i32 = 1_000_000;
}

/// Files chapter of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Every rule of every layer; the order carries no meaning.
    pub rules: Vec<Rule>,
    /// Protect executable git state (hooks, config, attributes) of every repository found in
    /// writable places. `false` only where the user lifted `guard.git`.
    pub guard_git: bool,
    /// Mount the usual system directories read-only (`/usr`, `/etc`, ...). Off: only what rules grant.
    pub system: bool,
    /// Make detected toolchains in home (cargo, rustup, nvm, pyenv, ...) readable.
    pub toolchains: bool,
    /// Sizes of the private tmpfs mounts, bytes.
    pub tmp_bytes: u64,
    pub shm_bytes: u64,
    /// Device nodes beyond the minimal set (`/dev/kvm`, `/dev/dri/renderD128`).
    pub devices: Vec<PathBuf>,
}

/// Network chapter. What lets a host through is compiled by [`crate::net::Rules`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "mode")]
pub enum Network {
    /// A private namespace with loopback only.
    None,
    /// Private namespace, egress through the filter to these hosts.
    Filtered {
        allow: Vec<HostRule>,
        deny: Vec<HostRule>,
        /// How the filter works besides deciding by host.
        #[serde(default)]
        egress: Box<Egress>,
    },
    /// The host's network, asked for explicitly.
    Host,
}

impl Network {
    /// Whether TLS to some hosts is to be terminated. Rules for requests and secrets need it.
    pub fn inspects(&self) -> bool {
        matches!(self, Self::Filtered { egress, .. } if !egress.inspect.is_empty())
    }
}

/// What the egress filter does besides deciding by host, name and port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Set the usual proxy variables inside. The filter works without them.
    pub proxies: bool,
    /// A proxy outside that everything goes through: `http://[user:password@]host[:port]`.
    pub upstream_proxy: Option<String>,
    /// Hosts whose TLS is terminated so that requests can be judged. They still have to be allowed.
    pub inspect: Vec<HostRule>,
    /// What may be asked of inspected hosts. A host that no rule names is not limited.
    pub requests: Vec<RequestRule>,
    /// Credentials put in outside, by name.
    pub secrets: Vec<Secret>,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            proxies: true,
            upstream_proxy: None,
            inspect: Vec::new(),
            requests: Vec::new(),
            secrets: Vec::new(),
        }
    }
}

/// Requests that are allowed of inspected hosts. Where rules name a host, one of them must match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRule {
    /// As in `network.allow`, names only.
    pub hosts: Vec<String>,
    /// Upper case; empty: any.
    pub methods: Vec<String>,
    /// Paths with `*` for within a segment and `**` across; empty: any.
    pub paths: Vec<String>,
    pub origin: Origin,
}

/// A credential that stays outside: the sandbox sees a placeholder, and a header towards the
/// credential's own hosts gets the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub name: String,
    /// As in `network.allow`, names only. Each has to be inspected.
    pub hosts: Vec<String>,
    pub header: String,
    /// The header's value; `{}` stands for the credential.
    pub format: String,
    pub from: SecretSource,
    /// Variable inside that holds the placeholder.
    pub env: Option<String>,
    pub origin: Origin,
}

/// Where a credential is read, outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// The caller's variable.
    Env(String),
    /// A file; `~/` is the caller's home.
    File(PathBuf),
}

/// An entry of a list of hosts, as written, with its origin. [`crate::net`] has its grammar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostRule {
    pub host: String,
    pub origin: Origin,
}

/// Environment chapter. Evaluation: start empty; copy what `pass` matches, minus what `deny` or the
/// built-in secret patterns match (unless `pass` names it exactly); then `set`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Names or `PREFIX_*` patterns copied from the caller. `*` copies all but secrets and loaders.
    pub pass: Vec<String>,
    /// Names or patterns never copied.
    pub deny: Vec<String>,
    /// Fixed values.
    pub set: BTreeMap<String, String>,
}

/// Resource limits; `None` means not limited by ringfence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory for the whole sandbox (cgroup).
    pub memory: Option<u64>,
    /// Hundredths of one CPU for the whole sandbox: 150 is one and a half (cgroup).
    pub cpu_percent: Option<u32>,
    /// Number of processes and threads (cgroup, else RLIMIT_NPROC).
    pub pids: Option<u64>,
    /// Largest file, bytes (RLIMIT_FSIZE).
    pub file_size: Option<u64>,
    /// Open files (RLIMIT_NOFILE).
    pub open_files: Option<u64>,
    /// Core dump size (RLIMIT_CORE), 0 by default.
    pub core: Option<u64>,
    /// Wall time, milliseconds.
    pub timeout_ms: Option<u64>,
    /// Time between SIGTERM and SIGKILL at the timeout, milliseconds.
    pub grace_ms: Option<u64>,
}

/// Process chapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Let the sandbox make one level of nested user namespaces (browsers); off by default.
    pub nested_namespaces: bool,
    /// ptrace and process_vm_* among the sandbox's own processes (gdb, strace).
    pub ptrace: bool,
    /// io_uring system calls.
    pub io_uring: bool,
}

/// Whether a terminal is relayed through a pty of the sandbox's own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Pty {
    /// When stdin and stdout are terminals.
    #[default]
    Auto,
    Always,
    Never,
}

/// Where writes land, and how rules of names are held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerWanted {
    /// `auto`: one whose name is made up.
    pub name: Option<String>,
    /// What the layer may hold, bytes; unset leaves what it has, the largest number is no limit.
    pub quota: Option<u64>,
    pub inodes: Option<u64>,
    pub checkpoint: bool,
    /// The workspace is served by path whether anything needs it or not.
    pub exact: bool,
    /// Tools whose caches were to be shared and are not granted yet.
    pub share_cache: Vec<String>,
}

/// A finished policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Names of the layers it was made from, lowest first.
    pub layers: Vec<String>,
    pub files: Files,
    pub network: Network,
    pub environment: Environment,
    pub limits: Limits,
    pub processes: Processes,
    pub pty: Pty,
    #[serde(default)]
    pub layer: LayerWanted,
    #[serde(default)]
    pub ssh: crate::Ssh,
    /// Protections that may be missing without refusing to run (see `Status`): `namespaces`,
    /// `landlock`, `seccomp`, `cgroup`, `guards`, ... Empty means all that the policy needs are
    /// required.
    pub accept_missing: Vec<String>,
}

/// The places that patterns are relative to. Paths are absolute, symlink-free and cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub workspace: PathBuf,
    pub home: PathBuf,
}

impl Places {
    pub fn base(&self, base: Base) -> &Path {
        match base {
            Base::Workspace => &self.workspace,
            Base::Home => &self.home,
            Base::Root => Path::new("/"),
        }
    }
}

/// The answer of [`Policy::decide_path`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    pub permission: Permission,
    /// The rule that had the last word; `None` when no rule covers the path.
    pub rule: Option<&'a Rule>,
}
