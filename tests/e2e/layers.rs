//! Runs in a layer, and what can be done with it afterwards.

mod apply;
mod caches;
mod history;
mod run;
mod tools;
