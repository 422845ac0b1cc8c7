//! The noun itself: plan, status, discovery, backends.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod agent;
#[cfg(target_os = "linux")]
mod answers;
#[cfg(target_os = "linux")]
mod copies;
#[cfg(unix)]
pub mod discover;
#[cfg(target_os = "linux")]
pub mod held;
#[cfg(target_os = "linux")]
pub mod inspection;
pub mod judge;
pub mod layer;
#[cfg(target_os = "linux")]
pub mod lower;
#[cfg(target_os = "linux")]
pub mod moved;
pub mod names;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
pub mod plan;
#[cfg(all(test, target_os = "linux"))]
mod plan_tests;
#[cfg(target_os = "linux")]
pub mod prepare;
#[cfg(target_os = "linux")]
pub mod renew;
#[cfg(target_os = "linux")]
pub mod run;
pub mod status;
#[cfg(target_os = "linux")]
mod survey;
#[cfg(target_os = "linux")]
mod sweep;
#[cfg(unix)]
pub mod terminal;
#[cfg(target_os = "linux")]
pub mod trace;
#[cfg(target_os = "linux")]
pub mod view;

#[cfg(target_os = "linux")]
pub use ringfence_jail::{Early, egress, resident};
