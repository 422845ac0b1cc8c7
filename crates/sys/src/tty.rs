//! Terminal calls that must work between `clone3` and `execve`.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::raw::{Errno, Result};

fn ioctl(fd: i32, request: libc::c_ulong, argument: usize) -> Result<i32> {
    // SAFETY: used in this file only, with requests that take an integer or a pointer to a value
    // that outlives the call.
    let r = unsafe { libc::ioctl(fd, request as _, argument) };
    if r < 0 { Err(Errno::last()) } else { Ok(r) }
}

/// Unlocks a pty master and opens its slave by descriptor, without a path.
pub fn open_peer(master: i32) -> Result<i32> {
    let unlock = 0i32;
    ioctl(master, libc::TIOCSPTLCK as _, (&raw const unlock) as usize)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    ioctl(master, libc::TIOCGPTPEER as _, flags as usize)
}

/// The same for a program's own descriptors.
pub fn open_other_end(master: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let fd = open_peer(master.as_raw_fd())?;
    // SAFETY: the kernel has just made it for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `slave` the controlling terminal of the calling session leader.
pub fn make_controlling(slave: i32) -> Result<()> {
    ioctl(slave, libc::TIOCSCTTY as _, 0).map(|_| ())
}

/// Puts process group `group` in the foreground of the terminal.
pub fn set_foreground(slave: i32, group: i32) -> Result<()> {
    ioctl(slave, libc::TIOCSPGRP as _, (&raw const group) as usize).map(|_| ())
}
