//! What lies in the workspace and in home that a plan must know before it is made: git layouts and
//! what of them must not change, names that match a per-file pattern, guarded names that do not
//! exist yet, toolchains.
//!
//! Everything read here may have been written by an earlier, hostile run. So:
//! - paths are walked by descriptor and a symbolic link is never followed behind the caller's back;
//! - only regular files are read, without blocking, up to a named size;
//! - every loop has a named bound, and hitting it is part of the answer, never silence.
//!
//! Nothing here decides: [`Walk`], [`GitGuards`] and [`Toolchains`] say what exists; the plan says
//! what is done about it. Threads that a walk starts are joined before it returns.

#[cfg(target_os = "linux")]
mod cache;
mod config;
#[cfg(target_os = "linux")]
mod git;
#[cfg(target_os = "linux")]
mod indexed;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod toolchains;
#[cfg(target_os = "linux")]
mod walk;

pub use config::{Entry, executable_keys, parse};
#[cfg(target_os = "linux")]
use ringfence_sys::fd;
#[cfg(target_os = "linux")]
pub use {
    cache::cache_directory,
    git::{
        ConfigFile, GitGuards, GitOptions, Guard, Kind, Repository, discover_git, identity,
        read_copy,
    },
    indexed::{indexed, indexed_patterns},
    names::{
        Absent, Appeared, Before, HELD_SUFFIX, NewRepository, absent_names, hold,
        inspect_new_repository, sweep,
    },
    toolchains::{
        Contents, PRIVATE_CACHES, PrivateCache, TOOL_ENVIRONMENT, Tool, ToolVariable, Toolchains,
        toolchains,
    },
    walk::{
        Found, Matcher, RepositoryHint, Shape, Statistics, Truncated, Verdict, Walk, WalkOptions,
        walk,
    },
};

#[cfg(all(test, target_os = "linux"))]
mod tests;
