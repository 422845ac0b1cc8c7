//! Runs in a layer, and what can be done with it afterwards.

mod apply;
mod codebases;
mod fuse;
mod rules;
mod run;
mod tools;
