//! Measures, keeps, compares and draws: what `ringfence bench` does.
//!
//! `model` is what is kept, `suite` what is measured, `runner` how, `peer` beside whom; `compare` reads
//! two reports, `report` and `text` make one readable.
#![forbid(unsafe_code)]
#![cfg(unix)]
#![allow(clippy::cast_precision_loss)] // figures for people

pub mod compare;
pub mod join;
pub mod machine;
pub mod model;
pub mod page;
pub mod peer;
pub mod published;
pub mod runner;
pub mod stats;
pub mod suite;
pub mod text;
pub mod trace;
