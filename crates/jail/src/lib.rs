//! Turns a finished [`JailSpec`] into a confined process and is its PID 1.
//!
//! The life of a jail:
//!
//! ```text
//! supervisor                     PID 1 (init)                     command
//!   clone3(namespaces) ────────▶ waits for the id maps
//!   id maps, source trees ─go──▶ private root, steps, pivot
//!                                limits, capabilities, Landlock, seccomp
//!                                fork ──────────────────────────▶ session, cwd, execve
//!   waits on pidfd + control ◀── reaps, forwards signals
//! ```
//!
//! Everything between `clone3` and `execve` works on prepared C strings and raw calls; it neither
//! allocates nor locks, so that a multi-threaded program may use it.
#![cfg(target_os = "linux")]

pub mod asks;
mod broker;
mod child;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod init;
mod moments;
pub mod resident;
mod spawn;
mod spec;
mod stage;

pub use broker::{Allowed, Judge};
pub use moments::Noted;
pub use ringfence_sys::early::Early;
pub use ringfence_sys::egress;
pub use spawn::{Jailed, spawn};
pub use spec::*;
pub use stage::{Failure, Stage};

/// Messages on the control channel (`SOCK_SEQPACKET`, two bytes each: kind and value).
pub mod message {
    /// Supervisor to init: send signal VALUE to the command's process group.
    pub const SIGNAL: u8 = 1;
    /// Supervisor to init: send signal VALUE to every process of the sandbox.
    pub const SIGNAL_ALL: u8 = 2;
    /// Supervisor to init: let the command go on, in the foreground of its terminal (VALUE 1) or not.
    pub const RESUME: u8 = 3;
    /// Init to supervisor: the command was stopped by signal VALUE.
    pub const STOPPED: u8 = 4;
    /// Init to supervisor: here is the master of the sandbox's terminal (with one descriptor).
    pub const TERMINAL: u8 = 5;
    /// Init to supervisor, at the end: the command changed a private copy; here is the directory that
    /// they lie in (with one descriptor).
    pub const COPIES: u8 = 6;
    /// Resident init to supervisor: set-up is complete, commands may be asked for.
    pub const READY: u8 = 7;
}
