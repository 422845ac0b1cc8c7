//! Codebases: named trees in the store, made from a directory, an archive or single files, that any
//! number of sandboxes mount, each with its own rules and its own layer.
//!
//! ```text
//! codebases.db               SQLite: names, owners, sizes, versions
//! codebases/lock             short, while codebases come and go or files are put into one
//! codebases/ID/tree          the files; nobody writes here but us, never a sandbox
//! codebases/ID/.was-ID       a former tree, as long as a sandbox runs on it
//! codebases/ID/names         the index of the tree; missing while a change is under way
//! codebases/.new-ID          being made; its `lock` is held by whoever makes it
//! codebases/.gone-ID         being removed
//! ```
//!
//! Everything appears by a rename, after it is complete, and is recorded then. What a killed process
//! left is removed at the next change.
#![forbid(unsafe_code)]

mod change;
mod error;
pub mod files;
mod index;
mod make;
mod manifest;
mod record;
pub mod remote;
mod store;

pub use change::Used;
pub use error::Error;
pub use make::{From, Made, Options, Progress};
pub use record::Record;
pub use store::{Codebase, Codebases, Layers, WORKSPACE};

#[cfg(test)]
mod tests;
