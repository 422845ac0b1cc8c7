//! What a command wrote to one of its streams, as much of it as is kept, and who reads it.
//!
//! While somebody follows, nothing is dropped that they have not read: the pipe fills and the command
//! waits. While nobody does, the oldest goes. Every byte has an offset, so that nobody who comes back
//! reads one twice or misses one without being told.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::lock;

/// Kept of each stream.
pub(crate) const KEPT: usize = 1 << 20;
/// Kept where the whole is the answer: nobody follows, the end is waited for.
pub(crate) const KEPT_WHOLE: usize = 8 << 20;
/// Handed out at once.
const PIECE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Log {
    inner: Mutex<Inner>,
    /// There is more to read, or the end.
    more: Notify,
    /// There is room.
    room: Notify,
}

#[derive(Debug)]
struct Inner {
    /// Offset of the first byte that is kept.
    base: u64,
    data: VecDeque<u8>,
    most: usize,
    /// Nothing will come any more.
    ended: bool,
    /// Up to where each has read.
    followers: HashMap<u64, u64>,
    next: u64,
}

/// Some bytes of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    pub offset: u64,
    /// Bytes before `offset` that the reader asked for and that are gone.
    pub lost: u64,
    pub bytes: Vec<u8>,
}

impl Inner {
    fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }

    fn free(&self) -> usize {
        let Some(read) = self.followers.values().min() else { return self.most };
        let droppable = read.saturating_sub(self.base).min(self.data.len() as u64) as usize;
        self.most.saturating_sub(self.data.len() - droppable)
    }

    fn piece(&self, from: u64, most: usize) -> Piece {
        let offset = from.clamp(self.base, self.end());
        let skip = (offset - self.base) as usize;
        let bytes = self.data.iter().skip(skip).take(most).copied().collect();
        Piece { offset, lost: offset.saturating_sub(from), bytes }
    }
}

impl Log {
    pub(crate) fn new(most: usize) -> Self {
        let inner = Inner {
            base: 0,
            data: VecDeque::new(),
            most,
            ended: false,
            followers: HashMap::new(),
            next: 0,
        };
        Self { inner: Mutex::new(inner), more: Notify::new(), room: Notify::new() }
    }

    /// Waits until something can be taken; how much.
    pub(crate) async fn free(&self) -> usize {
        loop {
            let wait = self.room.notified();
            match lock(&self.inner).free() {
                0 => {}
                free => return free,
            }
            wait.await;
        }
    }

    /// Takes bytes; at most what [`Self::free`] said.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut inner = lock(&self.inner);
        inner.data.extend(bytes);
        let surplus = inner.data.len().saturating_sub(inner.most);
        inner.data.drain(..surplus);
        inner.base += surplus as u64;
        drop(inner);
        self.more.notify_waiters();
    }

    pub(crate) fn end(&self) {
        lock(&self.inner).ended = true;
        self.more.notify_waiters();
    }

    /// Bytes that ever came.
    pub(crate) fn len(&self) -> u64 {
        lock(&self.inner).end()
    }

    /// All that is kept.
    pub(crate) fn all(&self) -> Piece {
        lock(&self.inner).piece(0, usize::MAX)
    }
}

/// What may be pushed now.
#[cfg(feature = "fuzzing")]
pub(crate) fn room(log: &Log) -> usize {
    lock(&log.inner).free()
}

/// A reader that nothing is dropped behind.
#[derive(Debug)]
pub(crate) struct Follower {
    log: std::sync::Arc<Log>,
    number: u64,
    at: u64,
}

impl Follower {
    pub(crate) fn new(log: &std::sync::Arc<Log>, from: u64) -> Self {
        let mut inner = lock(&log.inner);
        let number = inner.next;
        inner.next += 1;
        inner.followers.insert(number, from);
        drop(inner);
        Self { log: log.clone(), number, at: from }
    }

    /// What comes next, without waiting; `None` when it is not there yet.
    pub(crate) fn try_next(&mut self) -> Option<Piece> {
        let mut inner = lock(&self.log.inner);
        let piece = inner.piece(self.at, PIECE);
        if piece.bytes.is_empty() && piece.lost == 0 {
            return None;
        }
        self.at = piece.offset + piece.bytes.len() as u64;
        inner.followers.insert(self.number, self.at);
        drop(inner);
        self.log.room.notify_waiters();
        Some(piece)
    }

    /// Waits for more.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            let log = self.log.clone();
            let wait = log.more.notified();
            tokio::pin!(wait);
            wait.as_mut().enable();
            if let Some(piece) = self.try_next() {
                return Some(piece);
            }
            if lock(&log.inner).ended {
                return None;
            }
            wait.await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        lock(&self.log.inner).followers.remove(&self.number);
        self.log.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_oldest_goes_and_is_counted() {
        let log = Arc::new(Log::new(4));
        log.push(b"abcdef");
        let kept = Piece { offset: 2, lost: 2, bytes: b"cdef".to_vec() };
        assert_eq!(log.all(), kept);
        assert_eq!(Follower::new(&log, 0).try_next(), Some(kept));
        assert_eq!(log.len(), 6);
    }

    #[test]
    fn nothing_is_dropped_behind_a_follower() {
        let log = Arc::new(Log::new(4));
        let mut follower = Follower::new(&log, 0);
        log.push(b"abc");
        assert_eq!(lock(&log.inner).free(), 1);
        log.push(b"d");
        assert_eq!(lock(&log.inner).free(), 0);
        assert_eq!(follower.try_next().unwrap().bytes, b"abcd");
        assert_eq!(lock(&log.inner).free(), 4);
        log.push(b"efgh");
        assert_eq!(
            follower.try_next(),
            Some(Piece { offset: 4, lost: 0, bytes: b"efgh".to_vec() })
        );
        log.push(b"i");
        drop(follower);
        // Who comes back reads on where it was.
        assert_eq!(Follower::new(&log, 8).try_next().unwrap().bytes, b"i");
    }
}
