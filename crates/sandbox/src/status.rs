//! What is enforced, what is weaker than asked for, what is missing. Nothing is degraded silently.

use serde::{Deserialize, Serialize};

/// Which mechanism holds the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rung {
    /// Namespaces, Landlock and seccomp.
    Namespaces,
    /// Landlock and seccomp only: no private view, no private process table.
    Landlock,
}

/// One protection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Stable name: `mount-namespace`, `landlock`, `seccomp`, `network`, `pids-limit`, ...
    pub name: String,
    /// What exactly is (or is not) in force.
    pub detail: String,
}

impl Protection {
    pub fn new(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), detail: detail.into() }
    }
}

/// The report of one run. Schema version 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: u32,
    pub rung: Rung,
    pub layers: Vec<String>,
    pub enforced: Vec<Protection>,
    /// In force, but weaker than on a host that has everything.
    pub degraded: Vec<Protection>,
    /// Not in force. Non-empty only when `accept_missing` names each of them.
    pub missing: Vec<Protection>,
    /// Names of environment variables that were withheld.
    pub withheld_environment: Vec<String>,
    /// How it ended, once it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end: Option<End>,
}

/// Why and how a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// `exit`, `signal`, `timeout`, `oom`, `disk quota`, `killed`.
    pub reason: String,
    /// The command's exit code, where it exited.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signal: Option<i32>,
    pub wall_ms: u64,
    /// What host programs would have obeyed and the run made or changed: guarded names that were moved
    /// aside, and git configuration whose private copy was not kept. A line for each.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub held: Vec<String>,
    /// What the run's layer holds now.
    #[cfg(target_os = "linux")]
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<crate::layer::Changed>,
}

impl Status {
    pub fn new(rung: Rung, layers: Vec<String>) -> Self {
        Self {
            version: 1,
            rung,
            layers,
            enforced: Vec::new(),
            degraded: Vec::new(),
            missing: Vec::new(),
            withheld_environment: Vec::new(),
            end: None,
        }
    }

    pub fn enforce(&mut self, name: &str, detail: impl Into<String>) {
        self.enforced.push(Protection::new(name, detail));
    }

    pub fn degrade(&mut self, name: &str, detail: impl Into<String>) {
        self.degraded.push(Protection::new(name, detail));
    }

    pub fn miss(&mut self, name: &str, detail: impl Into<String>) {
        self.missing.push(Protection::new(name, detail));
    }
}
