//! Addresses that stand for names inside the sandbox.
//!
//! A name gets one number for the run; the number gives its IPv4 and its IPv6 address. Numbers are
//! handed out in order. Only when all are taken is one used again: never while a connection uses
//! it, nor soon after it was last answered, since a program may still hold that answer and would
//! then reach another host under its name.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringfence_policy::net::Name;

use crate::lock;

/// 198.18.0.0/15, for benchmarks between networks (RFC 2544): nobody's service.
const V4: u32 = 0xC612_0000;
const V4_BITS: u32 = 17;
/// fd72:696e:6766::/64, a unique local prefix ("ring").
const V6: u128 = 0xfd72_696e_6766_0000_0000_0000_0000_0000;
/// Names at a time: bounds memory to some 10 MB for the longest of names.
const CAPACITY: usize = 32_768;
/// A number rests this long after its last answer before another name may get it.
const REST: Duration = Duration::from_secs(600);
/// Entries that are looked at for one that rests, in one request.
const SEARCH: usize = 512;

#[derive(Debug)]
pub(crate) struct Pool {
    capacity: usize,
    rest: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    numbers: HashMap<Name, u32>,
    entries: Vec<Entry>,
    /// Where the search for an entry to reuse goes on.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    answered: Instant,
    holds: u32,
}

/// Both addresses of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pair {
    fn of(number: u32) -> Self {
        // Number 0 is x.x.x.1: an address that ends in all zeroes looks like a network's.
        let host = number + 1;
        Self { v4: Ipv4Addr::from(V4 | host), v6: Ipv6Addr::from(V6 | u128::from(host)) }
    }
}

/// Keeps a name's addresses from being reused.
#[derive(Debug)]
pub(crate) struct Hold {
    pool: Arc<Pool>,
    number: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.pool.state).entries.get_mut(self.number as usize) {
            entry.holds = entry.holds.saturating_sub(1);
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(CAPACITY, REST)
    }
}

impl Pool {
    pub(crate) fn new(capacity: usize, rest: Duration) -> Self {
        let most = (1_usize << V4_BITS) - 2;
        Self { capacity: capacity.min(most), rest, state: Mutex::default() }
    }

    /// The addresses of `name`; `None`: the pool is full.
    pub(crate) fn answer(&self, name: &Name, now: Instant) -> Option<Pair> {
        let mut state = lock(&self.state);
        let State { numbers, entries, hand } = &mut *state;
        if let Some(&number) = numbers.get(name) {
            entries.get_mut(number as usize)?.answered = now;
            return Some(Pair::of(number));
        }
        let entry = Entry { name: name.clone(), answered: now, holds: 0 };
        let number = if entries.len() < self.capacity {
            entries.push(entry);
            entries.len() - 1
        } else {
            let number = (0..SEARCH.min(entries.len())).map(|i| (*hand + i) % entries.len()).find(
                |&number| {
                    let old = &entries[number];
                    old.holds == 0 && now.saturating_duration_since(old.answered) >= self.rest
                },
            );
            *hand = (number.unwrap_or(*hand + SEARCH) + 1) % entries.len().max(1);
            let number = number?;
            let old = std::mem::replace(&mut entries[number], entry);
            numbers.remove(&old.name);
            number
        } as u32;
        numbers.insert(name.clone(), number);
        Some(Pair::of(number))
    }

    /// Whether the address is one of the pool's, given out or not.
    pub(crate) fn covers(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => u32::from(a) >> V4_BITS == V4 >> V4_BITS,
            IpAddr::V6(a) => u128::from(a) >> 64 == V6 >> 64,
        }
    }

    fn number(address: IpAddr) -> Option<u32> {
        if !Self::covers(address) {
            return None;
        }
        let host = match address {
            IpAddr::V4(a) => u32::from(a) & ((1 << V4_BITS) - 1),
            IpAddr::V6(a) => u32::try_from(u128::from(a) & u128::from(u64::MAX)).ok()?,
        };
        host.checked_sub(1)
    }

    /// The name that an address stands for.
    pub(crate) fn name(&self, address: IpAddr) -> Option<Name> {
        let number = Self::number(address)?;
        Some(lock(&self.state).entries.get(number as usize)?.name.clone())
    }

    /// The same, for a connection: the address stays that name's until the hold is dropped.
    pub(crate) fn hold(self: &Arc<Self>, address: IpAddr) -> Option<(Name, Hold)> {
        let number = Self::number(address)?;
        let mut state = lock(&self.state);
        let entry = state.entries.get_mut(number as usize)?;
        entry.holds += 1;
        Some((entry.name.clone(), Hold { pool: Arc::clone(self), number }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(i: usize) -> Name {
        Name::parse(format!("n{i}.example.test").as_bytes()).unwrap()
    }

    #[test]
    fn both_addresses_lead_back() {
        let pool = Arc::new(Pool::default());
        let now = Instant::now();
        let pair = pool.answer(&name(1), now).unwrap();
        assert_eq!(pair.v4, Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(pair.v6, "fd72:696e:6766::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(pool.name(pair.v4.into()), Some(name(1)));
        assert_eq!(pool.name(pair.v6.into()), Some(name(1)));
        for stranger in ["198.18.0.0", "198.18.0.2", "198.20.0.1", "fd72:696e:6766:1::1", "::1"] {
            assert_eq!(pool.name(stranger.parse().unwrap()), None, "{stranger}");
        }
        assert_eq!(pool.name("fd72:696e:6766::1:0:1".parse().unwrap()), None);
    }

    #[test]
    fn a_full_pool_refuses_until_something_rests() {
        let pool = Arc::new(Pool::new(2, Duration::from_secs(10)));
        let start = Instant::now();
        let a = pool.answer(&name(0), start).unwrap();
        pool.answer(&name(1), start).unwrap();
        assert_eq!(pool.answer(&name(2), start), None);
        let later = start + Duration::from_secs(11);
        let (_, hold) = pool.hold(a.v4.into()).unwrap();
        pool.answer(&name(1), later).unwrap();
        assert_eq!(pool.answer(&name(2), later), None, "one is held, one was just answered");
        drop(hold);
        assert_eq!(pool.answer(&name(2), later), Some(a));
        assert_eq!(pool.name(a.v6.into()), Some(name(2)));
    }

    proptest! {
        /// Whatever is asked in whatever order: a held address keeps its name, an address answered
        /// less than the rest ago keeps its name, and no two names share one.
        #[test]
        fn an_address_never_changes_hands_too_early(
            steps in prop::collection::vec((0_usize..12, 0_u64..8, any::<bool>()), 1..200)
        ) {
            let rest = Duration::from_secs(10);
            let pool = Arc::new(Pool::new(4, rest));
            let mut now = Instant::now();
            let mut answered: HashMap<Ipv4Addr, (Name, Instant)> = HashMap::new();
            let mut holds = Vec::new();
            for (i, wait, hold) in steps {
                now += Duration::from_secs(wait);
                if let Some(pair) = pool.answer(&name(i), now) {
                    if let Some((old, at)) = answered.get(&pair.v4)
                        && *old != name(i)
                    {
                        prop_assert!(now.duration_since(*at) >= rest);
                    }
                    answered.insert(pair.v4, (name(i), now));
                    if hold {
                        holds.push((pair, name(i), pool.hold(pair.v6.into())));
                    } else if wait % 2 == 0 {
                        holds.pop();
                    }
                }
                for (pair, name, _) in &holds {
                    prop_assert_eq!(pool.name(pair.v4.into()), Some(name.clone()));
                    prop_assert_eq!(pool.name(pair.v6.into()), Some(name.clone()));
                }
                prop_assert!(lock(&pool.state).entries.len() <= 4);
                prop_assert!(lock(&pool.state).numbers.len() <= 4);
            }
        }
    }
}
