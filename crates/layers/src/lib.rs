//! Copy-on-write changes over real directories.
#![forbid(unsafe_code)]

pub mod copy;
#[cfg(target_os = "linux")]
pub mod fuse;
