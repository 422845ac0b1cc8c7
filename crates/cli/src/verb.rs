//! One file per verb.

pub mod apply;
pub mod attach;
pub mod batch;
pub mod bench;
pub mod codebase;
pub mod completions;
pub mod daemon;
pub mod diff;
pub mod discard;
pub mod doctor;
pub mod export;
pub mod files;
pub mod history;
pub mod import;
pub mod init;
pub mod layers;
pub mod made_from;
pub mod policy;
pub mod run;
pub mod sandboxes;
pub mod selftest;
pub mod sessions;
pub mod trust;
