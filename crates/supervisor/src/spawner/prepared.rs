//! Places that are made before anybody asks for a sandbox: new namespaces with nothing in them, each held
//! by a helper that waits ([`Early`]). The network namespace is most of what a sandbox costs the kernel.
//!
//! Each is used by one sandbox, and ends with it: nothing comes back, so that no tenant finds anything of
//! another. How many there are follows how many are asked for, between [`LEAST`] and [`MOST`]. A copy of
//! the host's mounts belongs to each; when those change, all are thrown away.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use ringfence_sandbox::Early;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Kept while nobody asks.
const LEAST: usize = 1;
/// Each takes a quarter of a MiB of the kernel's memory.
const MOST: usize = 16;
/// After so long without need there are fewer.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is asked for now is not held up by making places for later.
const PAUSE: Duration = Duration::from_millis(1);

/// The places of one spawner.
#[derive(Debug)]
pub(super) struct Prepared {
    places: VecDeque<Early>,
    wanted: usize,
    most: usize,
    /// Says when mounts of the host change. Without it there are no places.
    mounts: Option<File>,
    /// When there were last fewer than were asked for, or there was reason to have fewer.
    since: Instant,
}

impl Prepared {
    /// For a spawner of many sandboxes, or of the one that it is there for.
    pub(super) fn new(alone: bool) -> Self {
        Self {
            places: VecDeque::new(),
            wanted: LEAST,
            most: if alone { 1 } else { MOST },
            mounts: File::open("/proc/self/mountinfo").ok(),
            since: Instant::now(),
        }
    }

    /// One that is ready, and whether it was made before; else one that is begun now, where that helps.
    pub(super) fn take(&mut self) -> (Option<Early>, bool) {
        if self.mounts_changed() {
            self.clear();
        }
        while let Some(place) = self.places.pop_front() {
            if place.is_alive() && place.ready() {
                return (Some(place), true);
            }
        }
        self.wanted = (self.wanted * 2).min(self.most);
        self.since = Instant::now();
        (Early::start(), false)
    }

    /// Has something exceptional when mounts of the host change.
    pub(super) fn mounts(&self) -> Option<BorrowedFd<'_>> {
        self.mounts.as_ref().map(File::as_fd)
    }

    /// None of them may be used, nor keep a file system of the host's from being let go.
    pub(super) fn clear(&mut self) {
        self.places.clear();
    }

    /// One that was taken and not used.
    pub(super) fn give_back(&mut self, place: Option<Early>) {
        if self.mounts.is_some() && self.places.len() < self.wanted {
            self.places.extend(place);
        }
    }

    /// Whether mounts of the host changed since the last time.
    fn mounts_changed(&self) -> bool {
        let Some(mounts) = &self.mounts else { return true };
        let mut fds = [PollFd::new(mounts, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    /// When there is something to do here, if nobody asks for anything.
    pub(super) fn due(&self) -> Option<Duration> {
        self.mounts.as_ref()?;
        if self.places.len() < self.wanted {
            return Some(PAUSE);
        }
        (self.wanted > LEAST).then(|| PATIENCE.saturating_sub(self.since.elapsed()))
    }

    /// A place more, or after a time without need fewer.
    pub(super) fn tend(&mut self) {
        if self.mounts.is_none() {
            return;
        }
        if self.places.len() < self.wanted {
            match Early::start_anyway() {
                Ok(place) => self.places.push_back(place),
                // What is wrong shows when a sandbox is made.
                Err(_) => self.mounts = None,
            }
        } else if self.wanted > LEAST && self.since.elapsed() >= PATIENCE {
            self.wanted = (self.wanted / 2).max(LEAST);
            self.since = Instant::now();
            self.places.truncate(self.wanted);
        }
    }

    /// In a copy of the process: they are the original's, and are not to be ended here.
    pub(super) fn forget(&mut self) {
        std::mem::forget(std::mem::take(&mut self.places));
    }
}
