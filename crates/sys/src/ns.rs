//! Making a process in namespaces of its own.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd, OwnedFd};

use crate::raw::{self, Errno, Result};

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

/// Which one it is after [`divide`].
#[derive(Debug)]
pub enum Divided {
    /// With the copy's pid.
    Original(i32),
    /// With its own descriptor of what it was to keep.
    Copy(OwnedFd),
}

/// Makes a copy of this process, as a further child of its own parent. Of the descriptors the copy has
/// the standard ones and `keep`; whatever owns another is to be forgotten there, not dropped. Refused
/// (`EBUSY`) where there are several threads: the copy would have what the others were in the middle of.
pub fn divide(keep: BorrowedFd<'_>) -> Result<Divided> {
    const KEPT: i32 = 3;
    let threads = std::fs::read_dir("/proc/self/task");
    let threads = threads.map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EIO)))?;
    if threads.count() != 1 {
        return Err(Errno(libc::EBUSY));
    }
    // What is sent at its end is what is sent at ours.
    let mut args = CloneArgs { flags: libc::CLONE_PARENT as u64, ..CloneArgs::default() };
    // SAFETY: no stack, no shared memory; there is one thread, so that nothing in the copy is half done.
    let pid = unsafe { clone_either(&mut args) }?;
    if pid != 0 {
        return Ok(Divided::Original(pid as i32));
    }
    let from = keep.as_raw_fd();
    if from != KEPT {
        raw::dup3(from, KEPT, libc::O_CLOEXEC)?;
    }
    raw::close_from(KEPT as u32 + 1, false)?;
    // SAFETY: its former owners are forgotten, as is promised.
    Ok(Divided::Copy(unsafe { OwnedFd::from_raw_fd(KEPT) }))
}
