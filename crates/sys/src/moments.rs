//! When the steps of a start were over, for whoever asks to be told where its time goes
//! (`run --trace-startup`). Off, a step costs one look at a flag. The flag is plain memory: a helper that
//! shares it and a process that is made with a copy of it know what the supervisor was asked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bare;

static ON: AtomicBool = AtomicBool::new(false);

/// From now on steps are noted, by this process and by those that it makes.
pub fn begin() {
    ON.store(true, Ordering::Relaxed);
}

/// Whether they are.
pub fn wanted() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Nanoseconds of the monotonic clock, by a bare system call: for a process that shares somebody else's
/// memory too.
pub fn now() -> u64 {
    let mut time = [0i64; 2];
    let args = [libc::CLOCK_MONOTONIC as usize, time.as_mut_ptr() as usize, 0, 0];
    // SAFETY: a timespec of a 64-bit machine is two 64-bit words.
    unsafe { bare::syscall(libc::SYS_clock_gettime, args) };
    (time[0] as u64).wrapping_mul(1_000_000_000).wrapping_add(time[1] as u64)
}

/// Room for as many steps as a start has.
pub const MOST: usize = 24;

/// When each step was over; 0 where it was not, or nobody asked.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Moments([AtomicU64; MOST]);

impl Moments {
    /// This step is over.
    pub fn note(&self, step: usize) {
        if wanted()
            && let Some(word) = self.0.get(step)
        {
            word.store(now(), Ordering::Relaxed);
        }
    }

    pub fn at(&self, step: usize) -> Option<u64> {
        let at = self.0.get(step)?.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_noted_until_somebody_asks() {
        let moments = Moments::default();
        moments.note(0);
        assert_eq!(moments.at(0), None);
        begin();
        let before = now();
        moments.note(1);
        moments.note(MOST);
        assert!(moments.at(1).is_some_and(|at| at >= before && at <= now()));
        assert_eq!((moments.at(0), moments.at(MOST)), (None, None));
    }
}
