//! Copy-on-write changes over real directories.
#![forbid(unsafe_code)]

pub mod copy;
