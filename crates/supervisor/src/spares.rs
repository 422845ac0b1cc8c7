//! Spawners that are there before a sandbox needs one of its own, each with namespaces that nobody was in. Each
//! makes one sandbox and ends with it. How many there are follows how many are asked for: none, while nobody
//! asks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::lock;

const MOST: usize = 8;
/// After so long without need there are fewer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Spares(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// With the number of the sandbox that each will make.
    ready: VecDeque<(u64, Arc<Host>)>,
    wanted: usize,
    /// Somebody makes more.
    busy: bool,
    /// When one was last missing, or there was reason to have fewer.
    since: Instant,
}

impl Default for Spares {
    fn default() -> Self {
        let inner = Inner { ready: VecDeque::new(), wanted: 0, busy: false, since: Instant::now() };
        Self(Mutex::new(inner))
    }
}

impl Spares {
    /// One that is there. Where none is, there will be more.
    pub(crate) fn take(&self) -> Option<(u64, Arc<Host>)> {
        let mut inner = lock(&self.0);
        while let Some((number, host)) = inner.ready.pop_front() {
            if !host.is_gone() {
                return Some((number, host));
            }
        }
        inner.wanted = (inner.wanted * 2).clamp(1, MOST);
        inner.since = Instant::now();
        None
    }

    /// Whether the caller is to make some: one at a time, until [`Spares::add`] says that it is enough.
    pub(crate) fn begin(&self) -> bool {
        let mut inner = lock(&self.0);
        inner.ready.len() < inner.wanted && !std::mem::replace(&mut inner.busy, true)
    }

    /// Whether there should be another; `None` could not be made.
    pub(crate) fn add(&self, made: Option<(u64, Arc<Host>)>) -> bool {
        let mut inner = lock(&self.0);
        let failed = made.is_none();
        inner.ready.extend(made);
        inner.busy = !failed && inner.ready.len() < inner.wanted;
        inner.busy
    }

    /// Fewer, where they were not needed for a time.
    pub(crate) fn look_after(&self) {
        let mut inner = lock(&self.0);
        if inner.wanted == 0 || inner.since.elapsed() < PATIENCE {
            return;
        }
        inner.since = Instant::now();
        inner.wanted /= 2;
        while inner.ready.len() > inner.wanted {
            if let Some((_, host)) = inner.ready.pop_back() {
                host.dismiss();
            }
        }
    }
}
