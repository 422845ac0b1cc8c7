//! Runs in a layer, and what can be done with it afterwards.

mod apply;
mod caches;
mod codebases;
mod fuse;
mod history;
mod reload;
mod rules;
mod run;
mod tools;
