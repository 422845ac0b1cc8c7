//! Loading a program into the kernel. Nothing here allocates.

use rustix::io::Errno;

use super::{MAX_INSTRUCTIONS, SockFilter};

/// Options of [`install`] (`SECCOMP_FILTER_FLAG_*`). Combine with `|`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// No option.
    pub const NONE: Self = Self(0);
    /// Give the filter to every thread of the process, not only to the caller.
    pub const TSYNC: Self = Self(1);
    /// Record refused calls in the audit log.
    pub const LOG: Self = Self(1 << 1);
    /// Do not switch on the Speculative Store Bypass mitigation for the process. Kernels before 5.16
    /// switch it on for every filtered process, which slows everything the sandbox runs; later
    /// kernels do not, having found that it protects nothing the process could not protect itself.
    pub const SPEC_ALLOW: Self = Self(1 << 2);
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    filter: *const SockFilter,
}

/// Sets `no_new_privs` on the calling thread, which [`install`] needs from a caller without
/// `CAP_SYS_ADMIN`. Async-signal-safe.
pub fn set_no_new_privs() -> Result<(), Errno> {
    // SAFETY: prctl with integer arguments only; it touches no memory of ours.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Loads `program` for the calling thread and whatever it forks or executes from now on. It cannot
/// be taken off again.
///
/// Async-signal-safe: one system call, no allocation, so it may run between fork and exec. The caller
/// must have set `no_new_privs` (or hold `CAP_SYS_ADMIN`).
///
/// Errors: `EINVAL` for a program that is empty, longer than [`MAX_INSTRUCTIONS`] or malformed, or for
/// a flag this kernel lacks; `EACCES` without `no_new_privs`; `ESRCH` where [`Flags::TSYNC`] met a
/// thread with a filter of its own; `ENOSYS` on a kernel without seccomp.
pub fn install(program: &[SockFilter], flags: Flags) -> Result<(), Errno> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return Err(Errno::INVAL);
    }
    let fprog = Program { len: program.len() as u16, filter: program.as_ptr() };
    // SAFETY: `fprog` and the instructions behind it outlive the call, and the kernel only reads
    // them; `Program` and `SockFilter` have the layout of `sock_fprog` and `sock_filter`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags.0,
            std::ptr::from_ref(&fprog),
        )
    };
    match done {
        0 => Ok(()),
        // With TSYNC: the id of the thread that could not be brought along; nothing was installed.
        thread if thread > 0 => Err(Errno::SRCH),
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    // SAFETY: errno is a thread-local integer that always exists.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
