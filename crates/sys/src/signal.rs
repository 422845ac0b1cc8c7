//! Signals as descriptors: blocking, `signalfd`, and stopping oneself, for a supervisor that hands
//! on what it receives.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set; sigaddset only changes an initialised one and
    // refuses numbers that are no signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

fn change_mask(how: i32, set: &libc::sigset_t) -> libc::sigset_t {
    let mut before = MaybeUninit::uninit();
    // SAFETY: `set` is initialised and `before` is valid for writes. The call fails only for an
    // unknown `how`; all callers name a constant.
    unsafe {
        libc::sigemptyset(before.as_mut_ptr());
        libc::pthread_sigmask(how, set, before.as_mut_ptr());
        before.assume_init()
    }
}

/// The signals stay blocked for this thread as long as this lives.
pub struct Blocked {
    before: libc::sigset_t,
    /// A mask belongs to one thread, so the guard must not move to another.
    not_send: PhantomData<*const ()>,
}

impl std::fmt::Debug for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocked").finish_non_exhaustive()
    }
}

impl Blocked {
    pub fn new(signals: &[i32]) -> Self {
        let before = change_mask(libc::SIG_BLOCK, &set_of(signals));
        Self { before, not_send: PhantomData }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        change_mask(libc::SIG_SETMASK, &self.before);
    }
}

/// Whether the process ignores `signal`, as `nohup` and shells without job control arrange it.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action makes this a read; `action` is valid for writes, and a zeroed one is
    // a valid value should the call fail.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// An ignored SIGCHLD makes the kernel throw exit statuses away; a supervisor needs them.
pub fn keep_exit_statuses() {
    if is_ignored(libc::SIGCHLD) {
        // SAFETY: sets a default disposition; no handler is involved.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
}

/// Signals that whoever started this process had it ignore (`nohup`, `&` in a script) have their effects
/// again. SIGPIPE stays: the Rust runtime ignores it, and commands get it back.
pub fn ignore_nothing() {
    let ignored = (1..=64).filter(|s| *s != libc::SIGPIPE && is_ignored(*s));
    for signal in ignored {
        // SAFETY: sets a default disposition; no handler is involved.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Whether a blocked signal waits for delivery.
pub fn is_pending(signal: i32) -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigpending overwrites it, sigismember reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigpending(set.as_mut_ptr());
        libc::sigismember(set.as_ptr(), signal) == 1
    }
}

/// Sends a signal to the calling thread and lets it through even if it is blocked: it has acted, on
/// the whole process, when this returns. (Sent to the process, it might act on another thread later.)
pub fn raise(signal: i32) {
    // SAFETY: raise takes any number; one that is no signal is an error without effect.
    unsafe { libc::raise(signal) };
    let before = change_mask(libc::SIG_UNBLOCK, &set_of(&[signal]));
    change_mask(libc::SIG_SETMASK, &before);
}

/// One signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub signal: i32,
    /// The kernel sent it (the terminal, for those that a supervisor hands on), not a process.
    pub by_kernel: bool,
}

/// Blocked signals as a descriptor; does not block.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// The signals must be blocked, else they act before they can be read.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals);
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        // SAFETY: just made, owned by nobody else.
        check(fd).map(|fd| Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next one, or none.
    pub fn next(&self) -> io::Result<Option<Received>> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut bytes = [0u8; SIZE];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut bytes)) {
            // A signalfd answers whole records only.
            Ok(SIZE) => {
                // SAFETY: the kernel filled all bytes, every bit pattern is valid for this struct of
                // integers, and the read is unaligned.
                let info =
                    unsafe { bytes.as_ptr().cast::<libc::signalfd_siginfo>().read_unaligned() };
                // SI_KERNEL is 0x80; positive codes are the kernel's, the others name a sender.
                Ok(Some(Received { signal: info.ssi_signo as i32, by_kernel: info.ssi_code > 0 }))
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends SIGCONT to this process after a while, even if it is stopped then: the one way for a
/// stopped supervisor to keep a deadline. Dropping it calls it off.
pub struct Alarm(libc::timer_t);

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alarm").finish_non_exhaustive()
    }
}

impl Alarm {
    pub fn after(wait: Duration) -> io::Result<Self> {
        let mut timer = MaybeUninit::<libc::timer_t>::zeroed();
        // SAFETY: a zeroed sigevent is valid, and the fields that SIGEV_SIGNAL reads are set; `timer`
        // is valid for writes.
        let timer = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGCONT;
            check(libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()))?;
            Self(timer.assume_init())
        };
        // SAFETY: all-zero is a valid itimerspec.
        let mut when: libc::itimerspec = unsafe { std::mem::zeroed() };
        when.it_value.tv_sec = libc::time_t::try_from(wait.as_secs()).unwrap_or(libc::time_t::MAX);
        // A zero value would disarm it.
        when.it_value.tv_nsec = wait.subsec_nanos().max(1) as _;
        // SAFETY: the timer exists and `when` is initialised.
        check(unsafe { libc::timer_settime(timer.0, 0, &raw const when, std::ptr::null_mut()) })?;
        Ok(timer)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: made in `after`, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signals_are_read_from_the_descriptor() {
        let _blocked = Blocked::new(&[libc::SIGUSR2]);
        let fd = SignalFd::new(&[libc::SIGUSR2]).unwrap();
        assert_eq!(fd.next().unwrap(), None);
        // SAFETY: raise has no requirements. It is directed at this very thread.
        unsafe { libc::raise(libc::SIGUSR2) };
        assert!(is_pending(libc::SIGUSR2));
        let got = fd.next().unwrap().unwrap();
        assert_eq!(got, Received { signal: libc::SIGUSR2, by_kernel: false });
        assert_eq!(fd.next().unwrap(), None);
    }

    #[test]
    fn dispositions_are_read() {
        assert!(is_ignored(libc::SIGPIPE)); // by the Rust runtime
        assert!(!is_ignored(libc::SIGUSR1));
    }

    #[test]
    fn an_alarm_can_be_set_and_called_off() {
        let alarm = Alarm::after(Duration::from_secs(3600)).unwrap();
        drop(alarm);
    }
}
