//! Run commands confined, in the manner of `std::process`.
//!
//! ```
//! use ringfence::{Sandbox, Stdio};
//! # let dir = tempfile::tempdir()?;
//!
//! let sandbox = Sandbox::builder()
//!     .workspace(dir.path()) // writable
//!     .profile("workspace")  // the default: system readable, home and secrets hidden, no network
//!     .deny_read("**/*.token")
//!     .env("GREETING", "hello")
//!     .timeout(std::time::Duration::from_secs(30))
//!     .build()?;
//!
//! let output = sandbox.command("sh").arg("-c").arg("echo $GREETING | tee note").output()?;
//! assert!(output.status.success());
//! assert_eq!(output.stdout, b"hello\n");
//! assert_eq!(std::fs::read(dir.path().join("note"))?, b"hello\n");
//!
//! // What held it, in words and as data.
//! assert!(output.report.enforced.iter().any(|p| p.name == "seccomp"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`Sandbox`] is a finished policy and a place; nothing exists of it in the kernel until a
//! [`Command`] runs, and nothing of it is left when that command has ended. It is the same run that
//! the command line makes, by the same functions: a command that cannot be confined as the policy
//! asks is not run.
//!
//! # Differences from `std::process`
//!
//! - Standard input is empty unless [`Command::stdin`] says otherwise: a confined command should not
//!   read what is typed to the program around it.
//! - Dropping a [`Child`] kills everything in its sandbox and waits for the end. Nothing outlives
//!   its handle, and nothing outlives the program either.
//! - The environment is what the policy lets pass of this program's, not all of it.
//! - [`Child::id`] is the host's id of the sandbox's init, not of the command.
//! - No terminal is relayed. An inherited descriptor that is a terminal reaches the command as it is
//!   (the system call filter keeps it from typing into it).
//!
//! It may be used from any thread of a multi-threaded program: between clone and exec only raw system
//! calls on prepared memory are made. The program must not ignore `SIGCHLD` and must not wait for
//! children that are not its own.
//!
//! On other systems than Linux only the policy types exist.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod builder;
#[cfg(target_os = "linux")]
mod child;
#[cfg(target_os = "linux")]
mod command;
#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod stdio;
#[cfg(target_os = "linux")]
mod watchdog;

#[cfg(target_os = "linux")]
pub use builder::{Builder, Sandbox};
#[cfg(target_os = "linux")]
pub use child::{Child, Output};
#[cfg(target_os = "linux")]
pub use command::Command;
#[cfg(target_os = "linux")]
pub use error::Error;
pub use ringfence_policy::{
    Environment, Files, Fragment, Limits, Network, Permission, Policy, PolicyError, Processes,
};
#[cfg(target_os = "linux")]
pub use ringfence_sandbox::plan::Plan;
#[cfg(target_os = "linux")]
pub use ringfence_sandbox::run::RunError;
#[cfg(target_os = "linux")]
pub use ringfence_sandbox::status::{End, Protection, Rung, Status};
#[cfg(target_os = "linux")]
pub use stdio::Stdio;

/// What is told of connections that leave a sandbox, by [`Builder::on_network`].
#[cfg(target_os = "linux")]
pub mod network {
    pub use ringfence_proxy::{Process, Record, Via};
}

/// The policy of a built-in profile.
///
/// ```
/// let strict = ringfence::profile("strict")?;
/// assert_eq!(strict.network, ringfence::Network::None);
/// assert!(ringfence::profile("no-such-profile").is_err());
/// # Ok::<(), ringfence::PolicyError>(())
/// ```
pub fn profile(name: &str) -> Result<Policy, PolicyError> {
    ringfence_policy::profiles::policy(name)
}

/// Names of the built-in profiles.
pub fn profiles() -> Vec<String> {
    ringfence_policy::profiles::names()
}
