//! What is allowed: types, file formats, layering, decisions. Pure functions; no I/O beyond reading
//! the files that are handed in.
//!
//! - [`Fragment`] is the file form, every field optional; [`resolve`] lays fragments over each other.
//! - [`Policy`] is the finished form; [`CompiledRules`] decides paths by it.
//! - [`profiles`] and [`builtin_rules`] are what ringfence brings along.
//! - [`import`] reads `fence.json` and `greywall.json`.
#![forbid(unsafe_code)]

mod builtin;
mod decide;
mod egress;
mod environment;
mod error;
mod explain;
pub mod import;
mod layer;
mod model;
pub mod net;
mod node;
pub mod pattern;
mod problems;
pub mod profiles;
mod quantity;
mod resolve;
mod schema;
pub mod search;
mod ssh;

pub use builtin::*;
pub use decide::*;
pub use egress::*;
pub use environment::*;
pub use error::*;
pub use explain::*;
pub use layer::*;
pub use model::*;
pub use node::Format;
pub use problems::problems;
pub use quantity::*;
pub use resolve::*;
pub use schema::schema;
pub use ssh::*;

/// Largest policy file, bytes. The largest real one known is a few kilobytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
