//! A command's terminal. Over the WebSocket binary messages are bytes, both ways; text messages are these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Exec;

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// What a command's terminal is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ToTerminal {
    Resize(TerminalSize),
}

/// What is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FromTerminal {
    /// So many bytes are gone that were asked for.
    Lost(u64),
    /// The command ended, and all that it wrote was sent.
    Ended(Box<Exec>),
}

/// How to attach to a command's terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Attach {
    /// The first byte of its output to be sent.
    pub offset: u64,
    /// Hang up (SIGHUP) when the connection ends before the command does.
    pub hangup: bool,
}
