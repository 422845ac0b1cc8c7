//! Everything that holds of a policy without a kernel.
#![allow(clippy::unwrap_used)]

mod decide;
mod environment;
mod import;
mod laws;
mod layering;
mod messages;
mod net;
mod problems;
mod profiles;
mod schema;
