//! Owners that a token was made for, and what they may have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an owner may have. What is not said is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OwnerLimits {
    /// Sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<u64>,
    /// Commands that run at once, in all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands: Option<u64>,
    /// Sessions that are open, in all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// Bytes of memory: each sandbox has to have a limit (`policy.limits.memory`), and so much is what they
    /// come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes on the disk: each sandbox has to have a layer with a quota (`policy.layer.quota`), and so much is
    /// what these and the codebases come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Hosts that its sandboxes may be let through to, each as it may be named in `network.allow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// What an owner has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnerUse {
    pub sandboxes: u64,
    pub commands: u64,
    pub sessions: u64,
    /// Of the sandboxes' limits.
    pub memory: u64,
    /// Of the layers' quotas and the codebases.
    pub disk: u64,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnerInfo {
    /// The number of the daemon's user, or the name.
    pub owner: String,
    pub limits: OwnerLimits,
    pub used: OwnerUse,
}
