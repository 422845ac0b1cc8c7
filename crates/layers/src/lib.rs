//! Copy-on-write over real directories: the store of layers, what a layer changed, and bringing that
//! to the real tree or throwing it away. Runs outside any sandbox and without privilege.
//!
//! - [`Store`] keeps layers; a [`Session`] is one run that writes to one.
//! - [`Layer::changes`] says what a layer changed against the host as it is now.
//! - [`apply`] brings changes to the host: three-way, by path or hunk, resumable after a kill.
//!
//! What a delta holds was written by a sandbox and may be hostile; every object is reached by
//! descriptor, beneath its root, never through a symbolic link.
#![forbid(unsafe_code)]

pub mod apply;
pub mod base;
pub mod copy;
mod crash;
pub mod delta;
pub mod diff;
mod error;
pub mod executable;
#[cfg(target_os = "linux")]
pub mod fuse;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod history;
pub mod index;
pub mod journal;
mod lossless;
pub mod mask;
pub mod merge;
pub mod names;
pub mod object;
pub mod pack;
pub mod quota;
pub mod review;
mod store;
pub mod text;

pub use error::Error;
pub use lossless::{bytes_of, shown};
pub use store::*;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
