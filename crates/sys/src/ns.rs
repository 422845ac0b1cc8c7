//! Making a process in namespaces of its own.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::raw::{Errno, Result};

/// The namespaces a process can get. Values are the kernel's `CLONE_NEW*`.
pub mod flags {
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    pub const ALL: u64 = USER | MOUNT | PID | NET | IPC | UTS | CGROUP;
    /// The child uses the parent's descriptor table until it leaves it.
    pub const FILES: u64 = libc::CLONE_FILES as u64;
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of the clone the caller is on.
#[derive(Debug)]
pub enum Side {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// `clone3`, or `clone` where a filter around us refuses the newer call because it cannot see its
/// flags (containers' default filters do): then the older one may still be allowed.
///
/// # Safety
/// As for [`clone`]; `args` asks for no stack and no shared memory, and its pointers are valid.
unsafe fn clone_either(args: &mut CloneArgs) -> Result<i64> {
    // SAFETY: `args` is a valid clone_args of the first version; no stack is given, so the child
    // continues here on a copy of this one.
    let new = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_mut(args), std::mem::size_of::<CloneArgs>())
    };
    if new >= 0 {
        return Ok(new);
    }
    match Errno::last() {
        Errno(libc::ENOSYS | libc::EPERM) => {}
        e => return Err(e),
    }
    // The flags used here fit into 32 bits; the pidfd goes where the parent's tid would.
    let flags = args.flags | args.exit_signal;
    // SAFETY: as above; the third argument is the same on every architecture.
    let old = unsafe {
        libc::syscall(libc::SYS_clone, flags, 0usize, args.pidfd as usize, 0usize, 0usize)
    };
    if old >= 0 { Ok(old) } else { Err(Errno::last()) }
}

/// `clone3` with its own memory (fork-like), SIGCHLD at exit, and a pidfd for the parent.
///
/// # Safety
/// The child of a multi-threaded process may only use async-signal-safe operations and must end in
/// `execve` or `_exit`.
pub unsafe fn clone(namespaces: u64) -> Result<Side> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: passed on from our caller; `args` is valid and `pidfd` outlives the call.
    match unsafe { clone_either(&mut args) }? {
        0 => Ok(Side::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// A plain fork without handlers, for PID 1 of a sandbox: the child's pid and pidfd, or `None` in
/// the child.
///
/// # Safety
/// As for [`clone`].
pub unsafe fn fork() -> Result<Option<(i32, i32)>> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as in `clone`.
    match unsafe { clone_either(&mut args) }? {
        0 => Ok(None),
        pid => Ok(Some((pid as i32, pidfd))),
    }
}
