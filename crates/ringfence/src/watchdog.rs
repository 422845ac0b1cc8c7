//! Keeps a deadline whether or not anybody waits: one thread per command that has one. It touches
//! neither signals nor terminal of the program around it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringfence_jail::{Jailed, message};
use ringfence_sandbox::run::Deadline;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use rustix::process::{Signal, pidfd_send_signal};

use crate::error::Error;

const IN_TIME: u8 = 0;
const TIMED_OUT: u8 = 1;

#[derive(Debug)]
pub(crate) struct Watchdog {
    thread: Option<JoinHandle<()>>,
    outcome: Arc<AtomicU8>,
}

impl Watchdog {
    pub(crate) fn start(jailed: &Jailed, deadline: Deadline) -> Result<Self, Error> {
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let fds = copy(jailed.pidfd()).and_then(|p| copy(jailed.control()).map(|c| (p, c)));
        let (pidfd, control) = fds.map_err(|e| Error::io("watch the deadline", e))?;
        let outcome = Arc::new(AtomicU8::new(IN_TIME));
        let told = Arc::clone(&outcome);
        let thread = std::thread::Builder::new()
            .name("ringfence-deadline".into())
            .spawn(move || watch(&pidfd, &control, deadline, &told))
            .map_err(|e| Error::io("watch the deadline", e))?;
        Ok(Self { thread: Some(thread), outcome })
    }

    /// Whether the deadline passed. Only after init has ended, which ends the thread.
    pub(crate) fn timed_out(mut self) -> bool {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.outcome.load(Ordering::Acquire) == TIMED_OUT
    }
}

fn watch(pidfd: &OwnedFd, control: &OwnedFd, deadline: Deadline, outcome: &AtomicU8) {
    if ended_within(pidfd, deadline.timeout) {
        return;
    }
    outcome.store(TIMED_OUT, Ordering::Release);
    for signal in [Signal::TERM, Signal::CONT] {
        let message = [message::SIGNAL_ALL, signal.as_raw() as u8];
        // An init that cannot be reached is ending.
        let _ = send(control, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
    if !ended_within(pidfd, deadline.grace) {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}

/// Waits for the end of init, at most this long.
pub(crate) fn ended_within(pidfd: impl std::os::fd::AsFd, time: Duration) -> bool {
    let until = Instant::now().checked_add(time);
    loop {
        let rest = until.map(|u| u.saturating_duration_since(Instant::now()));
        let timeout = rest.and_then(|r| Timespec::try_from(r).ok());
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()).map_err(io::Error::from) {
            Ok(0) => {
                if rest.is_some_and(|r| r.is_zero()) {
                    return false;
                }
            }
            Ok(_) => return true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Better to act too early than never.
            Err(_) => return false,
        }
    }
}
