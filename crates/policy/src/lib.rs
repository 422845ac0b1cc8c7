//! What is allowed: types, file formats, layering, decisions. Pure functions; no I/O beyond reading
//! the files that are handed in.
#![forbid(unsafe_code)]

mod model;

pub use model::*;
