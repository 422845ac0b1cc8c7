//! Where a test may end the process, as a kill would: a unit test by `arm`, a test of a whole program by the
//! variable `RINGFENCE_FAULT` with `layer:N`, the N-th point that is passed. A release build has none of it.

#[cfg(not(any(test, debug_assertions)))]
pub fn point() {}

#[cfg(all(not(test), debug_assertions))]
pub fn point() {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    static ARMED: OnceLock<Option<usize>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("RINGFENCE_FAULT").ok()?;
        text.strip_prefix("layer:")?.parse().ok()
    });
    if let Some(time) = armed
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time
    {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}

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
