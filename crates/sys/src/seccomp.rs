//! The system call filter: data with a reason per row, compiled to a binary search tree of classic
//! BPF and installed with one system call.
//!
//! The filter is a **deny list with a ceiling**. Ordinary tools (git, compilers, language runtimes,
//! debuggers) must not notice it, so a call that is not named is allowed; but every number above
//! [`NEWEST`], the newest call this table has been reviewed against, answers `ENOSYS`, so that a
//! call a future kernel adds is not allowed by silence. Programs handle `ENOSYS` for a new call
//! because they must also run on older kernels.
//!
//! Two layers stand behind every row (no capabilities, namespaces, Landlock); the filter removes
//! kernel surface and closes what those layers do not cover: terminal injection, io_uring (whose
//! operations no filter sees), nested user namespaces, unusual socket families.
//!
//! * [`table`] lists the rows in force, for documentation and `--explain`.
//! * [`evaluate`] is the meaning of the table: a plain walk over the rows.
//! * [`compile`] emits the program; tests hold it equal to [`evaluate`].
//! * [`install`] loads it; it does not allocate and may run between fork and exec.
//!
//! Both architectures are always compiled in, so both can be tested on either machine.

mod compile;
mod install;
mod names;
mod table;
#[cfg(test)]
mod tests;

pub use compile::{MAX_INSTRUCTIONS, SockFilter, compile};
pub use install::{Flags, install, set_no_new_privs};
pub use names::{Watch, watch};
pub use table::{NEWEST, RULES, Rule, TableRow, Test, When, evaluate, table};

/// An architecture whose call numbers are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86 (`AUDIT_ARCH_X86_64`). Its 32-bit and x32 entries are refused.
    X86_64,
    /// 64-bit Arm, little endian (`AUDIT_ARCH_AARCH64`). Its 32-bit entries are refused.
    Aarch64,
}

impl Arch {
    /// Every architecture with a table.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The value of `seccomp_data.arch` for this architecture (`AUDIT_ARCH_*`).
    pub const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::Aarch64 => 0xC000_00B7,
        }
    }
}

/// The architecture this program was built for, or `None` where there is no table: then no filter
/// can be had, and the caller must treat the layer as missing.
pub const fn native() -> Option<Arch> {
    if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Arch::X86_64)
    } else if cfg!(all(target_arch = "aarch64", target_endian = "little")) {
        Some(Arch::Aarch64)
    } else {
        None
    }
}

/// What the filter does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The call runs.
    Allow,
    /// The call does not run and returns this error number; 0 pretends success.
    Errno(u16),
    /// The whole process ends with `SIGSYS`.
    Kill,
    /// The call is held until the listener has answered it.
    Ask,
}

impl Action {
    /// The return value of the filter program (`SECCOMP_RET_*`).
    pub const fn code(self) -> u32 {
        match self {
            Self::Allow => 0x7FFF_0000,
            Self::Errno(errno) => 0x0005_0000 | errno as u32,
            Self::Kill => 0x8000_0000,
            Self::Ask => 0x7FC0_0000,
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Allow => f.write_str("allow"),
            Self::Kill => f.write_str("kill"),
            Self::Ask => f.write_str("ask"),
            Self::Errno(0) => f.write_str("pretend success"),
            Self::Errno(errno) => match table::errno_name(errno) {
                Some(name) => f.write_str(name),
                None => write!(f, "errno {errno}"),
            },
        }
    }
}

/// What a policy may relax or tighten. Everything that is not named here is fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Allow debugging calls (ptrace, reading another process's memory, taking its descriptors) and
    /// changing the limits of other processes. Safe in a PID namespace, where only the sandbox's own
    /// processes can be named; must be off without one.
    pub ptrace: bool,
    /// Allow io_uring, whose operations this filter cannot see.
    pub io_uring: bool,
    /// Allow nested namespaces, mounts inside them and `clone3`. Browsers and nested sandboxes
    /// need it; it opens a large part of the kernel.
    pub nested_namespaces: bool,
    /// Allow IPv4 and IPv6 sockets. Off where there is no network namespace to hold them.
    pub inet: bool,
    /// Answer changes of ownership with success and change nothing: for a root caller that is mapped
    /// to one unprivileged id, where package managers insist on `chown`.
    pub fake_chown: bool,
    /// Allow unix sockets with a name. Off keeps connected stream pairs, which have no name.
    pub unix: bool,
    /// Allow `fallocate` to reserve space. Off where a quota is held by looking: it takes any amount in
    /// one call. Programs write instead.
    pub reserve: bool,
}

impl Default for Options {
    /// The usual sandbox: own PID and network namespace, debuggers work, nothing relaxed.
    fn default() -> Self {
        Self {
            ptrace: true,
            io_uring: false,
            nested_namespaces: false,
            inet: true,
            fake_chown: false,
            unix: true,
            reserve: true,
        }
    }
}
