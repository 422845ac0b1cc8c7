//! Where a test may end the process, as a kill would. Not part of a build that is not a test.

#[cfg(not(test))]
pub fn point() {}

#[cfg(test)]
pub use armed::*;

#[cfg(test)]
mod armed {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// Points that are passed before the process ends; 0: it does not.
    static LEFT: AtomicUsize = AtomicUsize::new(0);

    pub fn arm(n: usize) {
        LEFT.store(n, SeqCst);
    }

    pub fn point() {
        if LEFT.load(SeqCst) > 0 && LEFT.fetch_sub(1, SeqCst) == 1 {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
    }
}
