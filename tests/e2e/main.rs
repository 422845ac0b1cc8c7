//! What needs a kernel. Every case runs the built binary as a process of its own, as whoever runs the
//! tests and, when that is root, as an ordinary user as well.
//!
//! A case that cannot be made on this host prints why (`skipped: ...`) and passes; nothing else may.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests

mod harness;

mod agent;
mod attacks;
mod basics;
mod daemon;
mod egress;
mod errors;
mod ladder;
mod layers;
mod residue;
mod terminal;
mod tools;
