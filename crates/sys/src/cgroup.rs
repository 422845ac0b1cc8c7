//! Control groups: memory, CPU and process limits for one run, by cgroup v2 and v1, where a writable
//! group is to be had.
//!
//! [`create`] finds the caller's own group in each hierarchy, makes a group for the run beneath or
//! beside it, sets the limits and says what could not be had and why. The child gets in by
//! `CLONE_INTO_CGROUP` ([`Scope::dir_fd`]) and by writing to the descriptors of
//! [`Scope::procs_fds`] with [`enter`], which needs neither paths nor memory. Dropping the [`Scope`]
//! kills what is left inside and removes the groups; [`sweep_stale`] removes those of a supervisor
//! that was killed before it could.

mod discover;
mod freeze;
mod reading;
mod scope;
#[cfg(test)]
mod tests;

pub use freeze::Freezer;
pub use reading::{Reader, Reading};
pub use scope::{Scope, Usage, create, enter, sweep_stale};

/// What a group can limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Controller {
    /// Memory, swap included.
    Memory,
    /// CPU time per period.
    Cpu,
    /// Processes and threads.
    Pids,
}

impl Controller {
    /// Every controller used here.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Cpu, Self::Pids];

    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl std::fmt::Display for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The limits of one run. `None` leaves a resource alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Memory of all processes together, in bytes, page cache included. Swap is not to be had on top.
    pub memory: Option<u64>,
    /// CPU time in percent of one CPU: 150 is one and a half CPUs.
    pub cpu_percent: Option<u32>,
    /// Processes and threads at one time.
    pub pids: Option<u64>,
}

impl Request {
    /// Whether nothing is asked for.
    pub const fn is_empty(&self) -> bool {
        self.memory.is_none() && self.cpu_percent.is_none() && self.pids.is_none()
    }

    /// The controllers that the request needs.
    pub fn controllers(&self) -> impl Iterator<Item = Controller> {
        let wanted = [
            (Controller::Memory, self.memory.is_some()),
            (Controller::Cpu, self.cpu_percent.is_some()),
            (Controller::Pids, self.pids.is_some()),
        ];
        wanted.into_iter().filter_map(|(controller, wanted)| wanted.then_some(controller))
    }
}

/// A limit that could not be had, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Missing {
    /// What was to be limited.
    pub controller: Controller,
    /// Why it is not, for people.
    pub reason: String,
}

/// What came of a [`Request`]. Every controller asked for is in exactly one of the two lists.
#[derive(Debug)]
pub struct Outcome {
    /// The groups, if any limit is in force.
    pub scope: Option<Scope>,
    /// Limits in force for whatever enters the scope.
    pub enforced: Vec<Controller>,
    /// Limits that could not be had.
    pub missing: Vec<Missing>,
}
