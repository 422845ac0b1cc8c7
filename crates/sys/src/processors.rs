//! Processors: which ones a process may use, and putting a new one on another than its maker's.
//!
//! The scheduler often leaves a new process behind the one that made it, and then nothing happens at
//! the same time.

use crate::raw::{Errno, Result};

/// Of a mask: 1024 processors.
pub(crate) const WORDS: usize = 1024 / usize::BITS as usize;

/// A set of processors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processors(pub(crate) [usize; WORDS]);

impl Processors {
    /// Those of the calling thread; `None` when it has only one, or more than can be said here.
    pub fn several() -> Option<Self> {
        let mut mask = [0usize; WORDS];
        // SAFETY: `mask` is valid for writes of its size.
        let n = unsafe {
            libc::syscall(
                libc::SYS_sched_getaffinity,
                0,
                std::mem::size_of_val(&mask),
                mask.as_mut_ptr(),
            )
        };
        let several = n > 0 && mask.iter().map(|w| w.count_ones()).sum::<u32>() > 1;
        several.then_some(Self(mask))
    }

    /// Puts a process on another processor than the caller's. A refusal only costs time.
    pub fn move_away(mut self, pid: i32) {
        // SAFETY: no arguments.
        let here = unsafe { libc::sched_getcpu() };
        let Ok(here) = usize::try_from(here) else { return };
        let bits = usize::BITS as usize;
        let Some(word) = self.0.get_mut(here / bits) else { return };
        *word &= !(1 << (here % bits));
        let _ = self.give(pid);
    }

    /// Lets a process (0: the caller) use these.
    pub fn give(&self, pid: i32) -> Result<()> {
        // SAFETY: the mask is valid for reads of its size.
        let r = unsafe {
            libc::syscall(
                libc::SYS_sched_setaffinity,
                pid,
                std::mem::size_of_val(&self.0),
                self.0.as_ptr(),
            )
        };
        if r < 0 { Err(Errno::last()) } else { Ok(()) }
    }
}
