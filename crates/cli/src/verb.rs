//! One file per verb.

pub mod apply;
pub mod completions;
pub mod diff;
pub mod discard;
pub mod doctor;
pub mod init;
pub mod layers;
pub mod policy;
pub mod run;
pub mod selftest;
pub mod trust;
