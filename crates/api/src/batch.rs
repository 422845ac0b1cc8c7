//! Many requests at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CreateSandbox, ExecRequest, ExecResult, Problem, Sandbox};

/// Sandboxes to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchCreate {
    /// At most 256.
    #[schemars(length(max = 256))]
    pub items: Vec<CreateSandbox>,
    /// How many at a time: 1 to 64, default 8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: Option<usize>,
}

/// Commands to run, each to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchExec {
    /// At most 256.
    #[schemars(length(max = 256))]
    pub items: Vec<BatchItem>,
    /// How many at a time: 1 to 64, default 8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: Option<usize>,
}

/// A command and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// Id or name.
    pub sandbox: String,
    pub exec: ExecRequest,
}

/// What came of one item: one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome<T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

/// In the order of the items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchCreated {
    pub results: Vec<Outcome<Sandbox>>,
}

/// In the order of the items.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchExecuted {
    pub results: Vec<Outcome<ExecResult>>,
}
