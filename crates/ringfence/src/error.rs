//! What can go wrong, by kind.

use std::io;

use ringfence_policy::PolicyError;
use ringfence_sandbox::run::RunError;

/// Why a command did not run, or was lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The policy says something that cannot be.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The sandbox could not be made, or could not be made as the policy asks; or the command could
    /// not be executed in it. Nothing of the command has run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A path that cannot be part of a policy.
    #[error("{path}: {problem}")]
    Path { path: String, problem: String },
    /// A finished policy and layers of one were given.
    #[error(
        "a finished policy takes only allow_read and allow_write besides; change the policy itself, \
         or use profile and layer instead of it"
    )]
    TwoPolicies,
    /// Hosts were named for a network that no filter stands before, or that leads nowhere.
    #[error("{0}")]
    Network(&'static str),
    /// A pipe, a thread or a wait failed.
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

impl Error {
    pub(crate) fn io(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Io { what, source: source.into() }
    }

    /// The command was not found inside the sandbox.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Run(RunError::Exec { not_found: true, .. }))
    }

    /// The host or the policy refused: running it unconfined would be the only way, and that is not
    /// done.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Run(RunError::Exec { .. }) => false,
            Self::Run(e) => e.exit_code() == 126,
            _ => false,
        }
    }
}
