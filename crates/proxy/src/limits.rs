//! Every limit of the filter, with its reason.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ringfence_policy::net::Name;

use crate::lock;

/// Connections served at a time. More wait in the kernel's queue, so a sandbox that opens
/// thousands slows itself, not the host.
pub(crate) const CONNECTIONS: usize = 4096;
/// And this many even where descriptors are very few.
pub(crate) const LEAST_CONNECTIONS: usize = 16;
/// Descriptors that one connection takes: inside, outside, and its share of pipes.
pub(crate) const DESCRIPTORS_EACH: u64 = 3;
/// Descriptors that are not connections'.
pub(crate) const DESCRIPTORS_SPARE: u64 = 256;
/// Pause after the process ran out of descriptors or memory: accepting again at once would spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client of the proxies must say something within this time.
pub(crate) const FIRST_BYTE: Duration = Duration::from_secs(60);
/// From a client's first byte until its beginning can be judged. Tests do not wait as long.
pub(crate) const FIRST_BYTES: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// A `ClientHello` may be 16 KiB and more with post-quantum keys; a request's head is limited to less.
pub(crate) const FIRST_BYTES_SIZE: usize = 64 * 1024;
/// How long a refused client may take to say which protocol it speaks, so that the refusal is
/// said in it. Clients that wait for the server get a reset after this.
pub(crate) const REFUSED_WAIT: Duration = Duration::from_millis(250);
/// How long the answer to a refusal may take to be read.
pub(crate) const REFUSED_LINGER: Duration = Duration::from_secs(1);
/// Name to addresses.
pub(crate) const RESOLVE: Duration = Duration::from_secs(10);
/// All addresses of a name together.
pub(crate) const DIAL: Duration = Duration::from_secs(15);
/// One address alone gets this head start before the next is tried too (RFC 8305).
pub(crate) const DIAL_STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
pub(crate) const DIAL_ADDRESSES: usize = 8;
/// The answer of an upstream proxy to `CONNECT`.
pub(crate) const UPSTREAM: Duration = Duration::from_secs(20);
/// Its head.
pub(crate) const UPSTREAM_HEAD: usize = 16 * 1024;

/// DNS queries a second that are looked at; others are refused unread. A build with thousands of
/// lookups stays far below.
pub(crate) const DNS_RATE: Rate = Rate { each_second: 5_000.0, burst: 10_000.0 };
/// A DNS client on TCP may be silent for this long.
pub(crate) const DNS_TCP_IDLE: Duration = Duration::from_secs(20);
/// Refused names that are remembered to be reported once each.
pub(crate) const REFUSED_NAMES: usize = 1024;

/// Distinct names under one wildcard in one run: each lookup of `DATA.example.com` tells the
/// owner of `example.com` something.
pub(crate) const LABELS: usize = 1_000;
/// Bytes of all those names together, without the wildcard's own part.
pub(crate) const LABEL_BYTES: usize = 32 * 1024;
/// New names under one wildcard.
pub(crate) const LABEL_RATE: Rate = Rate { each_second: 20.0, burst: 200.0 };

/// Lookups of which process asked; each may walk the sandbox's processes.
pub(crate) const ATTRIBUTION_RATE: Rate = Rate { each_second: 50.0, burst: 100.0 };
/// Time for one of them while everything else waits.
pub(crate) const ATTRIBUTION: Duration = Duration::from_millis(50);
/// Time for one of them on a thread of its own, while only the refused client waits.
pub(crate) const ATTRIBUTION_ASIDE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub each_second: f64,
    pub burst: f64,
}

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    state: Mutex<(f64, Instant)>,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::new((rate.burst, Instant::now())) }
    }

    pub(crate) fn take(&self) -> bool {
        let mut state = lock(&self.state);
        let now = Instant::now();
        let earned = now.duration_since(state.1).as_secs_f64() * self.rate.each_second;
        state.0 = (state.0 + earned).min(self.rate.burst);
        state.1 = now;
        if state.0 < 1.0 {
            return false;
        }
        state.0 -= 1.0;
        true
    }
}

/// Counts the names that one wildcard lets through.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    rules: Mutex<HashMap<String, Counted>>,
}

#[derive(Debug)]
struct Counted {
    names: HashSet<Name>,
    bytes: usize,
    rate: Bucket,
}

impl Labels {
    /// Whether `name` may be used under `rule` (as written). Names seen before always may.
    pub(crate) fn admit(&self, rule: &str, name: &Name) -> Result<(), String> {
        // Only a wildcard with a suffix: its owner sees every lookup. `*` alone means that the
        // sandbox may talk to anyone anyway.
        let Some(suffix) = rule.strip_prefix("*.") else { return Ok(()) };
        let suffix = suffix.split(':').next().unwrap_or_default();
        let mut rules = lock(&self.rules);
        let counted = rules.entry(rule.to_owned()).or_insert_with(|| Counted {
            names: HashSet::new(),
            bytes: 0,
            rate: Bucket::new(LABEL_RATE),
        });
        if counted.names.contains(name) {
            return Ok(());
        }
        let bytes = name.as_str().len().saturating_sub(suffix.len());
        if counted.names.len() >= LABELS || counted.bytes + bytes > LABEL_BYTES {
            return Err(format!(
                "{rule} has let through {} names, {} bytes of labels, which is the limit of a run",
                counted.names.len(),
                counted.bytes
            ));
        }
        if !counted.rate.take() {
            return Err(format!("too many new names a second under {rule}"));
        }
        counted.bytes += bytes;
        counted.names.insert(name.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn labels_as_a_channel_are_limited() {
        let labels = Labels::default();
        let mut admitted = 0;
        for i in 0..5_000 {
            admitted +=
                usize::from(labels.admit("*.x.test", &name(&format!("d{i}.x.test"))).is_ok());
        }
        assert!((200..260).contains(&admitted), "{admitted}");
        assert!(labels.admit("*.x.test", &name("d0.x.test")).is_ok(), "a known name stays");
        assert!(labels.admit("*.y.test", &name("a.y.test")).is_ok(), "each rule has its own");
        assert!(labels.admit("y.test", &name("y.test")).is_ok());
    }

    #[test]
    fn a_bucket_refills() {
        let bucket = Bucket::new(Rate { each_second: 1_000.0, burst: 2.0 });
        assert!(bucket.take() && bucket.take() && !bucket.take());
        std::thread::sleep(Duration::from_millis(5));
        assert!(bucket.take());
    }
}
