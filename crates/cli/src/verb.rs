//! One file per verb.

pub mod completions;
pub mod doctor;
pub mod export;
pub mod history;
pub mod import;
pub mod init;
pub mod policy;
pub mod run;
pub mod selftest;
pub mod trust;
