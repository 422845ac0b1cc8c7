//! Who is at the other end of a unix socket.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

/// Not in every version of the bindings. Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;

/// The process that connected, held: its number is not another's as long as it lives. `NOPROTOOPT` where the
/// kernel is older.
pub fn pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `fd` has, and how many these were.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        let e = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&e).unwrap_or(Errno::IO));
    }
    if fd < 0 {
        return Err(Errno::SRCH);
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What is true of the process that a pidfd holds, asked by its number: `None` where it has ended by the
/// time that the answer is there, since the number may be another's then.
pub fn about<T>(pidfd: impl AsFd, ask: impl FnOnce(i32) -> T) -> Option<T> {
    let fd = pidfd.as_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let pid: i32 = info.lines().find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok())?;
    if pid <= 0 {
        return None;
    }
    let answer = ask(pid);
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    // Readable: it has ended.
    let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now)));
    (ended == Ok(0)).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_held_and_one_that_has_ended_is_nobody() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        match pidfd(ours.as_fd()) {
            Err(Errno::NOPROTOOPT) => println!("skipped: this kernel has no SO_PEERPIDFD"),
            held => {
                let own = about(held.unwrap(), |pid| pid);
                assert_eq!(own, Some(std::process::id() as i32));
            }
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let held = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(about(&held, |pid| pid), Some(child.id() as i32));
        // It ends while it is asked about.
        let asked = about(&held, |_| {
            child.kill().unwrap();
            child.wait().unwrap();
        });
        assert_eq!(asked, None);
        assert_eq!(about(&held, |pid| pid), None);
    }
}
