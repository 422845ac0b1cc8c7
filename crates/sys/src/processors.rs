//! Processors: which ones a process may use, and putting a new one on another than its maker's.
//!
//! The scheduler often leaves a new process behind the one that made it, and then nothing happens at
//! the same time. Where another processor is free, the new process is put there; where none is, it would
//! only wait behind somebody else's work, for milliseconds.

use rustix::fs::{Mode, OFlags};

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

    /// As [`Processors::several`], if it looks as if another one were free.
    pub fn free() -> Option<Self> {
        let several = Self::several()?;
        let count: usize = several.0.iter().map(|w| w.count_ones() as usize).sum();
        // With many processors a few busy ones are seldom the one that is found.
        (busy()? <= count / 8).then_some(several)
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

/// How many others are running now, anywhere on this host; `None` where that cannot be read.
fn busy() -> Option<usize> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/loadavg", flags, Mode::empty()).ok()?;
    let mut text = [0u8; 64];
    let n = rustix::io::read(&file, &mut text).ok()?;
    running(&text[..n])
}

/// From `0.20 0.18 0.12 2/80 11206`: those that run, without the one that asks.
fn running(loadavg: &[u8]) -> Option<usize> {
    let field = loadavg.split(|b| *b == b' ').nth(3)?;
    let count = field.split(|b| *b == b'/').next()?;
    std::str::from_utf8(count).ok()?.parse::<usize>().ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_run_are_read_without_the_one_that_asks() {
        assert_eq!(running(b"0.20 0.18 0.12 1/80 11206\n"), Some(0));
        assert_eq!(running(b"0.20 0.18 0.12 12/80 11206\n"), Some(11));
        assert_eq!(running(b"0.20 0.18 0.12 0/80 11206\n"), None);
        assert_eq!(running(b"0.20 0.18"), None);
        assert_eq!(running(b""), None);
    }

    #[test]
    fn this_host_says_how_many_run() {
        assert!(busy().is_some());
    }
}
