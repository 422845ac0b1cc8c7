//! The oracle: what a plain model says against what the code and the kernel do.
//!
//! `law` is the documented meaning of rules, written a second time; `policy` compares the compiled
//! rules with it. Everything random comes from a seed, which a failure prints.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests
#![allow(clippy::unnecessary_debug_formatting)] // names hold newlines and bytes that are no text
#![allow(clippy::format_push_string, clippy::type_complexity)] // what is made here is read once

mod law;
mod policy;
mod random;
