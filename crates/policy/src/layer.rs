//! The file form of a policy: every field optional, so that layers can be laid over each other.
//!
//! [`Fragment::merge`] is associative: a later layer's scalar wins, lists append without repeats,
//! `environment.set` is merged by name. [`Fragment::finish`] turns what was merged into a
//! [`Policy`], adding the built-in rules that were not lifted.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::marker::PhantomData;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::decide::{HASH_START, Prehashed, hash_end, hash_on};
use crate::egress::NetworkFragment;
use crate::error::{PolicyError, nearest};
use crate::node::{self, Format, LOCATED, NodeDeserializer};
use crate::quantity::{Bytes, Count, Cpu, Millis};
use crate::{
    Base, Effect, Environment, Files, Kind, LayerWanted, Limits, Origin, Permission, Policy,
    Processes, Pty, Rule, SshFragment, builtin, pattern,
};

/// Smallest accepted memory limit: below it not even a shell starts.
const MIN_MEMORY: u64 = 1 << 20;
/// Largest accepted number of processes: the kernel's `PID_MAX_LIMIT` on 64 bit.
const MAX_PIDS: u64 = 1 << 22;
/// Descriptors 0, 1, 2 and one to work with.
const MIN_OPEN_FILES: u64 = 4;
/// Far above any kernel's `fs.nr_open`.
const MAX_OPEN_FILES: u64 = 1 << 30;
/// A tmpfs of less than a page cannot be.
const MIN_TMPFS: u64 = 4096;

/// `/tmp` and `/var/tmp`: room for builds; pages are taken only when written.
const DEFAULT_TMP_BYTES: u64 = 2 << 30;
/// `/dev/shm`: what browsers and numerical programs expect.
const DEFAULT_SHM_BYTES: u64 = 512 << 20;
/// Time to tidy up between SIGTERM and SIGKILL.
const DEFAULT_GRACE_MS: u64 = 5000;

/// Protections that `accept_missing` may name. A run never goes on without a system call filter, and
/// never with neither namespaces nor Landlock, whatever is accepted.
pub const PROTECTIONS: &[&str] = &[
    // Guarded names inside a writable workspace, which Landlock alone cannot hold.
    "guards",
    // Hidden files inside a readable directory, likewise.
    "hidden-files",
    // Signals and abstract sockets towards processes outside, before Landlock's sixth version.
    "landlock-scope",
    // Ordered rules of names that may come later, where no exact view can be served: held then for
    // what exists at the start.
    "exact-view",
    // Patterns in a workspace too large to be looked through.
    "pattern-walk",
    // Limits that need a control group: both, or one.
    "cgroup",
    "memory-limit",
    "cpu-limit",
    // The egress filter where namespaces are refused: the run then has no network at all.
    "network-filter",
];

/// A value and where it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Located<T> {
    pub value: T,
    pub origin: Origin,
}

/// An element of a list: a pattern, a name, a host.
pub type Entry = Located<String>;

impl<T> Located<T> {
    pub fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

impl From<&str> for Entry {
    fn from(value: &str) -> Self {
        Self::new(value.to_owned(), Origin::default())
    }
}

impl From<String> for Entry {
    fn from(value: String) -> Self {
        Self::new(value, Origin::default())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = Located<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<Self::Value, D::Error> {
                T::deserialize(deserializer).map(|value| Located::new(value, Origin::default()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let missing = || serde::de::Error::custom("value without a place");
                let layer = seq.next_element()?.ok_or_else(missing)?;
                let line: u32 = seq.next_element()?.ok_or_else(missing)?;
                let value = seq.next_element()?.ok_or_else(missing)?;
                let line = (line > 0).then_some(line);
                Ok(Located::new(value, Origin { layer, line }))
            }
        }
        deserializer.deserialize_newtype_struct(LOCATED, Read(PhantomData))
    }
}

impl<T: Serialize> Serialize for Located<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// One text or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneOrMany(pub Vec<Entry>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either(Vec<String>);
        impl<'de> Deserialize<'de> for Either {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Read;
                impl<'de> Visitor<'de> for Read {
                    type Value = Either;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a profile name, \"@user\", a path, or a list of these")
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Either, E> {
                        Ok(Either(vec![text.to_owned()]))
                    }
                    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Either, A::Error> {
                        let mut all = Vec::new();
                        while let Some(text) = seq.next_element()? {
                            all.push(text);
                        }
                        Ok(Either(all))
                    }
                }
                deserializer.deserialize_any(Read)
            }
        }
        let Located { value, origin } = Located::<Either>::deserialize(deserializer)?;
        Ok(Self(value.0.into_iter().map(|v| Located::new(v, origin.clone())).collect()))
    }
}

impl Serialize for OneOrMany {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl JsonSchema for OneOrMany {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" } }
            ]
        })
    }
}

/// A policy file, or the part of a policy that one layer says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "ringfence policy")]
pub struct Fragment {
    /// For editors; has no effect.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// What this layer is laid over: a profile name, `@user` (the user's own configuration), or a
    /// path (contains `/` or starts with `.`), relative to this file.
    #[serde(skip_serializing_if = "is_default")]
    pub extends: OneOrMany,
    /// Ids of built-in rules to remove, or of whole groups (`guard`, `secret`). Honoured only from
    /// layers that the user trusts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lift: Vec<Entry>,
    /// Protections that may be missing on this host without refusing to run.
    #[serde(alias = "acceptMissing", skip_serializing_if = "Vec::is_empty")]
    pub accept_missing: Vec<Entry>,
    #[serde(skip_serializing_if = "is_default")]
    pub files: FilesFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub network: NetworkFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub environment: EnvironmentFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub limits: LimitsFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub processes: ProcessesFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub terminal: TerminalFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub layer: LayerFragment,
    #[serde(skip_serializing_if = "is_default")]
    pub ssh: SshFragment,
    /// Names of the layers merged into this one, lowest first.
    #[serde(skip)]
    pub layers: Vec<String>,
    /// Stands on its own: built-in profiles and imported files are not laid over the default
    /// profile.
    #[serde(skip)]
    pub complete: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How executable git state is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Git {
    /// Hooks, config and attributes of every repository in writable places do not change.
    Guard,
    /// No protection. Honoured only from trusted layers.
    Open,
}

/// Files and directories. Patterns are relative to the workspace unless they begin with `/` or `~/`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FilesFragment {
    /// May be read and changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub write: Vec<Entry>,
    /// May be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<Entry>,
    /// May be listed; content refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub view: Vec<Entry>,
    /// Invisible, whatever a less specific rule grants.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Entry>,
    /// Not writable, whatever a less specific rule grants.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protect: Vec<Entry>,
    /// Executable git state: `guard` (default) or `open`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git: Option<Git>,
    /// Mount the usual system directories read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<bool>,
    /// Make toolchains found in home readable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toolchains: Option<bool>,
    /// Size of the private `/tmp`.
    #[serde(alias = "tmpSize", skip_serializing_if = "Option::is_none")]
    pub tmp_size: Option<Bytes>,
    /// Size of the private `/dev/shm`.
    #[serde(alias = "shmSize", skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<Bytes>,
    /// Device nodes beyond the minimal set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Entry>,
    /// Ordered rules with AgentFense's semantics, relative to the workspace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Located<OrderedRule>>,
    /// Finished rules from elsewhere (imports); not part of the file form.
    #[serde(skip)]
    pub extra: Vec<Rule>,
}

/// How the pattern of an ordered rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrderedKind {
    /// `*` within one segment, `**` across.
    #[default]
    Glob,
    /// The path itself or anything below.
    Directory,
    /// Equality.
    File,
}

/// One ordered rule: highest priority, then file over directory over glob, then the more specific
/// pattern decides alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderedRule {
    pub pattern: String,
    pub permission: Permission,
    #[serde(default)]
    pub priority: i32,
    #[serde(default, rename = "type")]
    pub kind: OrderedKind,
}

/// Network mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Loopback of its own only.
    None,
    /// Only the hosts of `allow`, through the egress filter.
    Filtered,
    /// The host's network.
    Host,
}

/// Environment variables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnvironmentFragment {
    /// Names or `PREFIX_*` patterns to copy; an exact name also copies a secret.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pass: Vec<Entry>,
    /// Names or patterns never copied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Entry>,
    /// Fixed values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
}

/// Resource limits; `"unlimited"` removes one that a lower layer set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsFragment {
    /// Memory of the whole sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// CPUs of the whole sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Count>,
    /// Largest file.
    #[serde(alias = "fileSize", skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Bytes>,
    /// Open files of one process.
    #[serde(alias = "openFiles", skip_serializing_if = "Option::is_none")]
    pub open_files: Option<Count>,
    /// Core dumps; 0 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<Bytes>,
    /// Wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Millis>,
    /// Time between SIGTERM and SIGKILL at the timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<Millis>,
}

/// What processes may do with each other and the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessesFragment {
    /// One level of nested user namespaces (browsers).
    #[serde(alias = "nestedNamespaces", skip_serializing_if = "Option::is_none")]
    pub nested_namespaces: Option<bool>,
    /// Debuggers among the sandbox's own processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ptrace: Option<bool>,
    /// io_uring system calls.
    #[serde(alias = "ioUring", skip_serializing_if = "Option::is_none")]
    pub io_uring: Option<bool>,
}

/// Terminal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TerminalFragment {
    /// Relay the terminal through a pty of the sandbox's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
}

/// Where writes land, and how rules of names are held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LayerFragment {
    /// Keep what the command writes in the layer of this name; `auto` makes one up, `none` takes back
    /// what a lower layer says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// End the run when its layer holds more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Bytes>,
    /// End the run when its layer holds more files and directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<Count>,
    /// Seal what each run changes, so that it can be undone by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<bool>,
    /// Without a layer: decide every operation in the workspace by its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Tools whose real caches may be written (`npm`, `cargo`, ...), or `all`.
    #[serde(alias = "shareCache", skip_serializing_if = "Vec::is_empty")]
    pub share_cache: Vec<Entry>,
}

impl LayerFragment {
    /// The name that takes back another.
    const NONE: &str = "none";
    /// The name of a layer that the caller did not choose.
    pub const AUTO: &str = "auto";

    fn merge(&mut self, over: Self) {
        self.name = over.name.or(self.name.take());
        self.quota = over.quota.or(self.quota);
        self.inodes = over.inodes.or(self.inodes);
        self.checkpoint = over.checkpoint.or(self.checkpoint);
        self.exact = over.exact.or(self.exact);
        append(&mut self.share_cache, over.share_cache);
    }

    fn check(&self, at: &Origin) -> Result<(), PolicyError> {
        const LONGEST: usize = 64;
        let Some(name) = &self.name else { return Ok(()) };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins && name.len() <= LONGEST && name.chars().all(plain) {
            return Ok(());
        }
        Err(PolicyError::Invalid {
            at: at.clone(),
            key: "layer.name".to_owned(),
            message: format!(
                "{name:?} is not a name of a layer: at most {LONGEST} letters, digits, `.`, `_` and `-`, the first a letter or a digit"
            ),
        })
    }

    fn finish(self) -> LayerWanted {
        // No limit is one that nothing reaches: an absent one leaves what the layer has.
        let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        LayerWanted {
            name: self.name.filter(|name| name != Self::NONE),
            quota: self.quota.map(|b| number(b.0)),
            inodes: self.inodes.map(|n| number(n.0)),
            checkpoint: self.checkpoint.unwrap_or(false),
            exact: self.exact.unwrap_or(false),
            share_cache: self.share_cache.into_iter().map(|e| e.value).collect(),
        }
    }
}

/// Appends what is not there yet, comparing values only: who said it first keeps the credit.
pub(crate) fn append<T: Eq + Hash>(list: &mut Vec<Located<T>>, over: Vec<Located<T>>) {
    append_by(list, over, |entry| &entry.value);
}

fn append_plain<T: Eq + Hash>(list: &mut Vec<T>, over: Vec<T>) {
    append_by(list, over, |entry| entry);
}

fn append_by<T, K: Eq + Hash>(list: &mut Vec<T>, over: Vec<T>, key: impl Fn(&T) -> &K) {
    /// Up to here comparing with every entry is quicker than hashing.
    const FEW: usize = 16;
    if list.len() + over.len() <= FEW {
        for entry in over {
            if !list.iter().any(|e| key(e) == key(&entry)) {
                list.push(entry);
            }
        }
        return;
    }
    // A hash that was not seen is enough to know that the value is new.
    let mut seen = HashSet::<u64, BuildHasherDefault<Prehashed>>::default();
    seen.reserve(list.len() + over.len());
    seen.extend(list.iter().map(|e| quick_hash(key(e))));
    list.reserve(over.len());
    for entry in over {
        let new = seen.insert(quick_hash(key(&entry)));
        if new || !list.iter().any(|e| key(e) == key(&entry)) {
            list.push(entry);
        }
    }
}

fn quick_hash(value: &impl Hash) -> u64 {
    struct Quick(u64);
    impl Hasher for Quick {
        fn finish(&self) -> u64 {
            hash_end(self.0)
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0 = hash_on(self.0, bytes);
        }
    }
    let mut hasher = Quick(HASH_START);
    value.hash(&mut hasher);
    hasher.finish()
}

impl Fragment {
    /// Reads a policy file in ringfence's own schema. `name` is used in messages and as the origin
    /// of its rules; the format follows its ending.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, PolicyError> {
        Self::parse_as(name, bytes, Format::of(name))
    }

    /// As [`Self::parse`], with the format said.
    pub fn parse_as(name: &str, bytes: &[u8], format: Format) -> Result<Self, PolicyError> {
        let node = node::parse(name, bytes, format)?;
        Self::from_node(name, &node)
    }

    pub(crate) fn from_node(name: &str, node: &node::Node) -> Result<Self, PolicyError> {
        let mut fragment = Self::deserialize(NodeDeserializer { node, file: name })
            .map_err(|e| e.into_policy_error(name))?;
        // Repeats within one file: merging must not depend on whether a layer was merged before.
        fragment = Self::default().merge(fragment);
        fragment.layers = vec![name.to_owned()];
        // Said of this file, so that a mode of a layer below does not silence its hosts.
        if fragment.network.mode.is_none() && !fragment.network.allow.is_empty() {
            fragment.network.mode = Some(NetworkMode::Filtered);
        }
        fragment.check().map_err(|mut error| {
            // Scalars carry no line; look the key up again.
            if let PolicyError::Invalid { at, key, .. } = &mut error {
                at.line = at.line.or_else(|| node.line_of(key));
            }
            error
        })?;
        Ok(fragment)
    }

    /// An empty fragment of the layer called `name` (`command line`).
    pub fn named(name: &str) -> Self {
        Self { layers: vec![name.to_owned()], ..Self::default() }
    }

    /// Gives every entry that has no origin yet the layer name `name`: for fragments filled in by
    /// hand.
    #[must_use]
    pub fn with_origin(mut self, name: &str) -> Self {
        fn fill<T>(list: &mut [Located<T>], name: &str) {
            for entry in list {
                if entry.origin.layer.is_empty() {
                    name.clone_into(&mut entry.origin.layer);
                }
            }
        }
        for list in [
            &mut self.extends.0,
            &mut self.lift,
            &mut self.accept_missing,
            &mut self.files.write,
            &mut self.files.read,
            &mut self.files.view,
            &mut self.files.deny,
            &mut self.files.protect,
            &mut self.files.devices,
            &mut self.network.allow,
            &mut self.network.deny,
            &mut self.network.inspect,
            &mut self.environment.pass,
            &mut self.environment.deny,
            &mut self.ssh.agent,
            &mut self.ssh.sign,
            &mut self.layer.share_cache,
        ] {
            fill(list, name);
        }
        fill(&mut self.files.rules, name);
        fill(&mut self.network.rules, name);
        fill(self.network.upstream_proxy.as_mut_slice(), name);
        for secret in self.network.secrets.values_mut() {
            fill(std::slice::from_mut(secret), name);
        }
        if self.layers.is_empty() {
            self.layers.push(name.to_owned());
        }
        self
    }

    /// Lays `over` over `self`. Associative; [`Fragment::default`] changes nothing.
    #[must_use]
    pub fn merge(mut self, over: Self) -> Self {
        append(&mut self.extends.0, over.extends.0);
        append(&mut self.lift, over.lift);
        append(&mut self.accept_missing, over.accept_missing);
        append_plain(&mut self.layers, over.layers);
        self.complete |= over.complete;
        self.files.merge(over.files);
        self.network.merge(over.network);
        append(&mut self.environment.pass, over.environment.pass);
        append(&mut self.environment.deny, over.environment.deny);
        self.environment.set.extend(over.environment.set);
        let (mine, theirs) = (self.limits, over.limits);
        self.limits = LimitsFragment {
            memory: theirs.memory.or(mine.memory),
            cpu: theirs.cpu.or(mine.cpu),
            pids: theirs.pids.or(mine.pids),
            file_size: theirs.file_size.or(mine.file_size),
            open_files: theirs.open_files.or(mine.open_files),
            core: theirs.core.or(mine.core),
            timeout: theirs.timeout.or(mine.timeout),
            grace: theirs.grace.or(mine.grace),
        };
        let (mine, theirs) = (self.processes, over.processes);
        self.processes = ProcessesFragment {
            nested_namespaces: theirs.nested_namespaces.or(mine.nested_namespaces),
            ptrace: theirs.ptrace.or(mine.ptrace),
            io_uring: theirs.io_uring.or(mine.io_uring),
        };
        self.terminal.pty = over.terminal.pty.or(self.terminal.pty);
        self.layer.merge(over.layer);
        append(&mut self.ssh.agent, over.ssh.agent);
        append(&mut self.ssh.sign, over.ssh.sign);
        self.schema = over.schema.or(self.schema);
        self
    }

    /// Checks every value; [`Self::parse`] and [`Self::finish`] call it.
    pub fn check(&self) -> Result<(), PolicyError> {
        self.files.check(&self.last_layer())?;
        self.layer.check(&self.last_layer())?;
        self.network.check()?;
        for (key, list) in [
            ("environment.pass", &self.environment.pass),
            ("environment.deny", &self.environment.deny),
        ] {
            for entry in list {
                check_variable(&entry.value).map_err(|m| invalid(entry, key, m))?;
            }
        }
        self.ssh.check().map_err(|(key, entry, message)| invalid(entry, key, message))?;
        for (name, value) in &self.environment.set {
            let refuse = |message: &str| PolicyError::Invalid {
                at: self.last_layer(),
                key: format!("environment.set.{name}"),
                message: message.to_owned(),
            };
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(refuse("a variable's name is not empty and holds no `=` or nul byte"));
            }
            if value.contains('\0') {
                return Err(refuse("value contains a nul byte"));
            }
        }
        for entry in &self.lift {
            if !builtin::is_liftable(&entry.value) {
                let ids = builtin::liftable_ids();
                let hint = nearest(&entry.value, ids.iter().copied()).map(str::to_owned);
                return Err(PolicyError::UnknownRule {
                    at: entry.origin.clone(),
                    id: entry.value.clone(),
                    hint,
                    known: ids.iter().map(|id| (*id).to_owned()).collect(),
                });
            }
        }
        for entry in &self.accept_missing {
            if !PROTECTIONS.contains(&entry.value.as_str()) {
                let message = match nearest(&entry.value, PROTECTIONS.iter().copied()) {
                    Some(hint) => {
                        format!("unknown protection \"{}\", did you mean \"{hint}\"?", entry.value)
                    }
                    None => format!(
                        "unknown protection \"{}\"; allowed: {}",
                        entry.value,
                        PROTECTIONS.join(", ")
                    ),
                };
                return Err(invalid(entry, "accept_missing", message));
            }
        }
        self.limits.check(&self.last_layer())
    }

    /// Where to point when a value has lost its line in merging.
    fn last_layer(&self) -> Origin {
        Origin { layer: self.layers.last().cloned().unwrap_or_default(), line: None }
    }

    /// What of this layer could widen what the layers below allow, by key, with its place. An
    /// untrusted layer (a file that came with a checkout) may only narrow.
    pub fn narrowing_only(&self) -> Result<(), Vec<String>> {
        let mut wide: Vec<String> = Vec::new();
        let mut lists = |key: &str, list: &[Entry]| {
            for entry in list {
                wide.push(format!("{key} = \"{}\" ({})", entry.value, entry.origin));
            }
        };
        lists("extends", &self.extends.0);
        lists("lift", &self.lift);
        lists("accept_missing", &self.accept_missing);
        lists("files.write", &self.files.write);
        lists("files.read", &self.files.read);
        lists("files.view", &self.files.view);
        lists("files.devices", &self.files.devices);
        lists("environment.pass", &self.environment.pass);
        lists("ssh.agent", &self.ssh.agent);
        lists("ssh.sign", &self.ssh.sign);
        lists("layer.share_cache", &self.layer.share_cache);
        for rule in &self.files.rules {
            // `Set` raises as well as lowers.
            if rule.value.permission != Permission::None {
                wide.push(format!("files.rules \"{}\" ({})", rule.value.pattern, rule.origin));
            }
        }
        for rule in &self.files.extra {
            if rule.effect != Effect::Cap && rule.permission != Permission::None {
                wide.push(format!("files \"{}\" ({})", rule.pattern, rule.origin));
            }
        }
        for name in self.environment.set.keys() {
            wide.push(format!("environment.set.{name}"));
        }
        let mut key = |key: &str, widens: bool| {
            if widens {
                wide.push(key.to_owned());
            }
        };
        key("files.git = \"open\"", self.files.git == Some(Git::Open));
        key("files.system = true", self.files.system == Some(true));
        key("files.toolchains = true", self.files.toolchains == Some(true));
        // Whether a size or limit is larger than the one below is not known here; any may be.
        key("files.tmp_size", self.files.tmp_size.is_some());
        key("files.shm_size", self.files.shm_size.is_some());
        key("limits.memory", self.limits.memory.is_some());
        key("limits.cpu", self.limits.cpu.is_some());
        key("limits.pids", self.limits.pids.is_some());
        key("limits.file_size", self.limits.file_size.is_some());
        key("limits.open_files", self.limits.open_files.is_some());
        key("limits.core", self.limits.core.is_some_and(|core| core != Bytes::new(0)));
        key("limits.timeout", self.limits.timeout.is_some());
        key("limits.grace", self.limits.grace.is_some());
        key("processes.nested_namespaces", self.processes.nested_namespaces == Some(true));
        key("processes.ptrace", self.processes.ptrace == Some(true));
        key("processes.io_uring", self.processes.io_uring == Some(true));
        key("terminal.pty", self.terminal.pty == Some(Pty::Never));
        // One of the user's own may be meant, or taken away.
        let name = self.layer.name.as_deref();
        key("layer.name", name.is_some_and(|name| name != LayerFragment::AUTO));
        key("layer.quota", self.layer.quota.is_some());
        key("layer.inodes", self.layer.inodes.is_some());
        key("layer.checkpoint = false", self.layer.checkpoint == Some(false));
        key("layer.exact = false", self.layer.exact == Some(false));
        self.network.widening(&mut wide);
        if wide.is_empty() { Ok(()) } else { Err(wide) }
    }

    /// As [`Self::narrowing_only`], knowing what lies below: limits and sizes that are no larger
    /// than `below`'s narrow, and so does naming what `below` names too.
    #[allow(clippy::option_option)] // unset, unlimited and limited are three things
    pub fn narrowing_over(&self, below: &Self) -> Result<(), Vec<String>> {
        // Unlimited is the largest number; unset below means what `finish` makes of it.
        fn at_most<T: Into<u64>>(
            new: Option<Option<T>>,
            old: Option<Option<T>>,
            default: u64,
        ) -> bool {
            let number = |limit: Option<T>| limit.map_or(u64::MAX, Into::into);
            new.is_none_or(|new| number(new) <= old.map_or(default, number))
        }
        let mut rest = self.clone();
        macro_rules! drop_if_narrow {
            ($($part:ident . $field:ident, $default:expr;)*) => {$(
                let (new, old) = (self.$part.$field.map(|v| v.0), below.$part.$field.map(|v| v.0));
                if at_most(new, old, $default) {
                    rest.$part.$field = None;
                }
            )*};
        }
        drop_if_narrow! {
            limits.memory, u64::MAX;
            limits.cpu, u64::MAX;
            limits.pids, u64::MAX;
            limits.file_size, u64::MAX;
            limits.open_files, u64::MAX;
            limits.core, 0;
            limits.timeout, u64::MAX;
            limits.grace, DEFAULT_GRACE_MS;
            files.tmp_size, DEFAULT_TMP_BYTES;
            files.shm_size, DEFAULT_SHM_BYTES;
            layer.quota, u64::MAX;
            layer.inodes, u64::MAX;
        }
        let known = |list: &mut Vec<Entry>, below: &[Entry]| {
            list.retain(|e| !below.iter().any(|b| b.value == e.value));
        };
        known(&mut rest.extends.0, &below.extends.0);
        known(&mut rest.lift, &below.lift);
        known(&mut rest.accept_missing, &below.accept_missing);
        known(&mut rest.files.write, &below.files.write);
        known(&mut rest.files.read, &below.files.read);
        known(&mut rest.files.view, &below.files.view);
        known(&mut rest.files.devices, &below.files.devices);
        rest.network.forget(&below.network);
        known(&mut rest.environment.pass, &below.environment.pass);
        known(&mut rest.ssh.agent, &below.ssh.agent);
        known(&mut rest.ssh.sign, &below.ssh.sign);
        known(&mut rest.layer.share_cache, &below.layer.share_cache);
        if rest.layer.name == below.layer.name {
            rest.layer.name = None;
        }
        if rest.files.system == below.files.system {
            rest.files.system = None;
        }
        if rest.files.toolchains == below.files.toolchains {
            rest.files.toolchains = None;
        }
        if rest.terminal.pty == below.terminal.pty {
            rest.terminal.pty = None;
        }
        for (new, old) in [
            (&mut rest.processes.nested_namespaces, below.processes.nested_namespaces),
            (&mut rest.processes.ptrace, below.processes.ptrace),
            (&mut rest.processes.io_uring, below.processes.io_uring),
            (&mut rest.layer.checkpoint, below.layer.checkpoint),
            (&mut rest.layer.exact, below.layer.exact),
        ] {
            if *new == old {
                *new = None;
            }
        }
        if rest.files.git == below.files.git {
            rest.files.git = None;
        }
        rest.files.rules.retain(|r| !below.files.rules.iter().any(|b| b.value == r.value));
        rest.files.extra.retain(|r| !below.files.extra.contains(r));
        rest.environment.set.retain(|name, value| below.environment.set.get(name) != Some(value));
        rest.narrowing_only()
    }

    /// The finished policy. Adds the built-in rules that were not lifted and the defaults; `extends`
    /// must have been resolved (it is ignored here).
    pub fn finish(self) -> Result<Policy, PolicyError> {
        self.check()?;
        let lifted: BTreeSet<&str> = self.lift.iter().map(|e| e.value.as_str()).collect();
        let is_lifted = |id: &str| {
            lifted.contains(id)
                || id.split_once('.').is_some_and(|(group, _)| lifted.contains(group))
        };
        let mut rules: Vec<Rule> = Vec::with_capacity(256);
        builtin::add_rules(&mut rules, &is_lifted);
        let Self { files, network, environment, limits, processes, terminal, layer, ssh, .. } =
            self;
        let guard_git = files.git != Some(Git::Open) && !is_lifted("guard.git");
        for (list, effect, permission) in [
            (files.write, Effect::Grant, Permission::Write),
            (files.read, Effect::Grant, Permission::Read),
            (files.view, Effect::Grant, Permission::View),
            (files.deny, Effect::Cap, Permission::None),
            (files.protect, Effect::Cap, Permission::Read),
        ] {
            for entry in list {
                let (base, pattern) =
                    pattern::parse_native(&entry.value).map_err(|m| invalid(&entry, "files", m))?;
                rules.push(Rule {
                    base,
                    pattern,
                    kind: Kind::Path,
                    effect,
                    permission,
                    priority: 0,
                    id: None,
                    origin: entry.origin,
                });
            }
        }
        for Located { value, origin } in files.rules {
            rules.push(Rule {
                base: Base::Workspace,
                pattern: value.pattern,
                kind: match value.kind {
                    OrderedKind::Glob => Kind::Glob,
                    OrderedKind::Directory => Kind::Directory,
                    OrderedKind::File => Kind::File,
                },
                effect: Effect::Set,
                permission: value.permission,
                priority: value.priority,
                id: None,
                origin,
            });
        }
        rules.extend(files.extra);

        let texts =
            |list: Vec<Entry>| -> Vec<String> { list.into_iter().map(|e| e.value).collect() };
        Ok(Policy {
            layers: self.layers,
            files: Files {
                rules,
                guard_git,
                system: files.system.unwrap_or(true),
                toolchains: files.toolchains.unwrap_or(false),
                tmp_bytes: files.tmp_size.and_then(|b| b.0).unwrap_or(DEFAULT_TMP_BYTES),
                shm_bytes: files.shm_size.and_then(|b| b.0).unwrap_or(DEFAULT_SHM_BYTES),
                devices: files.devices.into_iter().map(|e| PathBuf::from(e.value)).collect(),
            },
            network: network.finish()?,
            environment: Environment {
                pass: texts(environment.pass),
                deny: texts(environment.deny),
                set: environment.set,
            },
            limits: Limits {
                memory: limits.memory.and_then(|b| b.0),
                cpu_percent: limits.cpu.and_then(|c| c.0),
                pids: limits.pids.and_then(|c| c.0),
                file_size: limits.file_size.and_then(|b| b.0),
                open_files: limits.open_files.and_then(|c| c.0),
                core: limits.core.map_or(Some(0), |b| b.0),
                timeout_ms: limits.timeout.and_then(|m| m.0),
                grace_ms: limits.grace.map_or(Some(DEFAULT_GRACE_MS), |m| m.0),
            },
            processes: Processes {
                nested_namespaces: processes.nested_namespaces.unwrap_or(false),
                ptrace: processes.ptrace.unwrap_or(false),
                io_uring: processes.io_uring.unwrap_or(false),
            },
            pty: terminal.pty.unwrap_or_default(),
            layer: layer.finish(),
            ssh: ssh.finish(),
            accept_missing: texts(self.accept_missing),
        })
    }
}

impl FilesFragment {
    fn merge(&mut self, over: Self) {
        append(&mut self.write, over.write);
        append(&mut self.read, over.read);
        append(&mut self.view, over.view);
        append(&mut self.deny, over.deny);
        append(&mut self.protect, over.protect);
        self.git = over.git.or(self.git);
        self.system = over.system.or(self.system);
        self.toolchains = over.toolchains.or(self.toolchains);
        self.tmp_size = over.tmp_size.or(self.tmp_size);
        self.shm_size = over.shm_size.or(self.shm_size);
        append(&mut self.devices, over.devices);
        append(&mut self.rules, over.rules);
        append_plain(&mut self.extra, over.extra);
    }

    fn check(&self, at: &Origin) -> Result<(), PolicyError> {
        for (key, size) in [("files.tmp_size", self.tmp_size), ("files.shm_size", self.shm_size)] {
            let message = match size {
                Some(Bytes(None)) => {
                    "a private tmpfs has a size; write one such as \"1g\"".to_owned()
                }
                Some(Bytes(Some(size))) if size < MIN_TMPFS => {
                    format!("{size} is too small; the least is {MIN_TMPFS}")
                }
                _ => continue,
            };
            return Err(PolicyError::Invalid { at: at.clone(), key: key.to_owned(), message });
        }
        for (key, list) in [
            ("files.write", &self.write),
            ("files.read", &self.read),
            ("files.view", &self.view),
            ("files.deny", &self.deny),
            ("files.protect", &self.protect),
        ] {
            for entry in list {
                pattern::parse_native(&entry.value).map_err(|m| invalid(entry, key, m))?;
            }
        }
        for rule in &self.rules {
            let is_glob = rule.value.kind == OrderedKind::Glob;
            pattern::check_ordered(&rule.value.pattern, is_glob).map_err(|message| {
                PolicyError::Invalid {
                    at: rule.origin.clone(),
                    key: "files.rules.pattern".to_owned(),
                    message,
                }
            })?;
        }
        for entry in &self.devices {
            check_device(&entry.value).map_err(|m| invalid(entry, "files.devices", m))?;
        }
        Ok(())
    }
}

impl LimitsFragment {
    fn check(&self, at: &Origin) -> Result<(), PolicyError> {
        let bounds = [
            ("limits.memory", self.memory.and_then(|b| b.0), MIN_MEMORY, u64::MAX),
            ("limits.pids", self.pids.and_then(|c| c.0), 1, MAX_PIDS),
            (
                "limits.open_files",
                self.open_files.and_then(|c| c.0),
                MIN_OPEN_FILES,
                MAX_OPEN_FILES,
            ),
            ("limits.timeout", self.timeout.and_then(|m| m.0), 1, u64::MAX),
        ];
        for (key, value, low, high) in bounds {
            let Some(value) = value else { continue };
            let message = if value < low {
                format!("{value} is too small; the least is {low}")
            } else if value > high {
                format!("{value} is absurdly large; the most is {high}")
            } else {
                continue;
            };
            return Err(PolicyError::Invalid { at: at.clone(), key: key.to_owned(), message });
        }
        Ok(())
    }
}

pub(crate) fn invalid(entry: &Entry, key: &str, message: String) -> PolicyError {
    PolicyError::Invalid { at: entry.origin.clone(), key: key.to_owned(), message }
}

fn check_device(text: &str) -> Result<(), String> {
    let wrong = || format!("\"{text}\" is not a device; write a path such as \"/dev/kvm\"");
    let rest = text.strip_prefix("/dev/").ok_or_else(wrong)?;
    if text.contains('\0')
        || rest.split('/').any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(wrong());
    }
    if pattern::has_meta(rest) {
        return Err(format!("\"{text}\": devices are named one by one, without wildcards"));
    }
    Ok(())
}

fn check_variable(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty name".to_owned());
    }
    if text.contains(['=', '\0']) {
        return Err(format!("{text:?} is not a variable's name"));
    }
    Ok(())
}
