//! What happened, told to whoever follows it and written down.
//!
//! ```text
//! whoever does something ── record ──▶ ring of the last ones ──▶ followers, each at its own pace
//!                                 └──▶ a thread ── batches ──▶ SQLite: audit.db
//! ```
//!
//! Who records does not wait. A batch is written every [`PAUSE`], or at once where somebody waits for it
//! ([`Journal::flush`]): what was created or removed is written down before that is answered.

mod about;
mod log;
mod redact;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ringfence_api::Event;
use tokio::sync::{oneshot, watch};

use crate::error::Error;
use crate::supervisor::Caller;
use crate::{lock, now_ms};

pub(crate) use about::{About, Deed};
pub(crate) use log::{Kept, Wanted};
pub(crate) use redact::shown;

/// Events that followers get without asking the log.
const RING: usize = 4096;
/// How long records are collected before they are written.
const PAUSE: Duration = Duration::from_millis(100);
/// Records that wait to be written. What comes on top is counted and not kept.
const MOST_WAITING: usize = 50_000;
/// Refusals of one kind are told once in this time.
const ALIKE_MS: u64 = 1000;
/// Kinds of refusals that are told apart.
const MOST_ALIKE: usize = 256;
/// Events that a follower gets at once.
const PAGE: usize = 256;

/// Whose something is: the daemon's user, or an owner with a name. Numbers of names are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(i64);

impl Owner {
    /// The user that the daemon runs as.
    pub fn user() -> Self {
        Self(i64::from(rustix::process::geteuid().as_raw()))
    }

    /// The owner with this number, from 1 on.
    pub fn named(number: u32) -> Self {
        Self(-i64::from(number.max(1)))
    }

    /// Of [`Self::named`].
    pub fn number(self) -> Option<u32> {
        u32::try_from(-self.0).ok().filter(|n| *n > 0)
    }

    pub(crate) fn raw(self) -> i64 {
        self.0
    }

    pub(crate) fn of_raw(raw: i64) -> Self {
        Self(raw)
    }
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// `api`, or the dialect.
    pub interface: &'static str,
    pub uid: Option<u32>,
    pub pid: Option<i32>,
}

impl Source {
    /// Nobody asked.
    pub(crate) const ITSELF: Self = Self { interface: "daemon", uid: None, pid: None };
}

tokio::task_local! {
    /// Who asked for what is being done.
    pub(crate) static CALLER: Caller;
}

/// Where it was asked for.
pub(crate) fn source() -> Source {
    CALLER.try_with(|caller| caller.source).unwrap_or(Source::ITSELF)
}

enum Order {
    Write(Kept),
    /// Answered when all before it is written.
    Flush(oneshot::Sender<()>),
    Read(Box<Wanted>, oneshot::Sender<Result<Vec<Event>, String>>),
}

#[derive(Debug)]
pub struct Journal {
    ring: Mutex<Ring>,
    orders: mpsc::Sender<Order>,
    /// Raised by each event.
    told: watch::Sender<u64>,
    waiting: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    alike: Mutex<HashMap<(Owner, String), (u64, u64)>>,
    names: Mutex<HashMap<Owner, String>>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<(Owner, Arc<Event>)>,
    /// The last id of each owner.
    last: HashMap<Owner, u64>,
    /// The last id of each owner that is not in `events` any more.
    gone: HashMap<Owner, u64>,
    /// Before the first event of this daemon.
    start: u64,
}

impl Journal {
    /// Opens or makes the log.
    pub(crate) fn open(file: &Path) -> Result<Arc<Self>, Error> {
        let wrong = |e: rusqlite::Error| {
            Error::internal(format!("{}: {e}", file.display()))
                .with("move the file away to begin a new audit log")
        };
        let (log, last) = log::Log::open(file).map_err(wrong)?;
        let (orders, heard) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer { log, waiting: waiting.clone(), lost: lost.clone() };
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.serve(&heard))
            .map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
        // Ids that were told and not written before a kill are not given again: those of a new daemon begin
        // with the time.
        let start = now_ms().saturating_mul(1000).max(last);
        let ring = Mutex::new(Ring { start, ..Ring::default() });
        let told = watch::channel(0).0;
        Ok(Arc::new(Self {
            ring,
            orders,
            told,
            waiting,
            lost,
            alike: Mutex::default(),
            names: Mutex::default(),
        }))
    }

    /// Something happened. Does not wait.
    pub(crate) fn record(&self, owner: Owner, source: Source, event: Event) {
        self.note(owner, source, event, true);
    }

    /// The same for what followers hear of and nobody writes down.
    pub(crate) fn tell(&self, owner: Owner, event: Event) {
        self.note(owner, source(), event, false);
    }

    /// What an owner is called.
    pub(crate) fn name(&self, owner: Owner, name: String) {
        lock(&self.names).insert(owner, name);
    }

    fn note(&self, owner: Owner, from: Source, event: Event, keep: bool) {
        let name = lock(&self.names).get(&owner).cloned();
        let event = Event {
            at_ms: now_ms(),
            owner: name.unwrap_or_else(|| owner.raw().to_string()),
            interface: from.interface.to_owned(),
            uid: from.uid,
            pid: from.pid,
            ..event
        };
        {
            let mut ring = lock(&self.ring);
            let start = ring.start;
            let last = ring.last.entry(owner).or_insert(start);
            *last += 1;
            let event = Arc::new(Event { id: *last, ..event });
            ring.events.push_back((owner, event.clone()));
            if ring.events.len() > RING
                && let Some((of, oldest)) = ring.events.pop_front()
            {
                ring.gone.insert(of, oldest.id);
            }
            if keep {
                // Under the lock: they are written in the order of their ids.
                self.order(Kept { owner, event });
            }
        }
        self.told.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn order(&self, kept: Kept) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The thread is there as long as we are.
        let _ = self.orders.send(Order::Write(kept));
    }

    /// Somebody was refused. A flood of them is told as one with a number.
    pub(crate) fn refused(&self, owner: Owner, from: Source, event: Event) {
        let alike = format!(
            "{} {:?} {:?} {:?} {:?} {:?}",
            from.interface, from.uid, event.reason, event.action, event.sandbox, event.subject
        );
        let now = now_ms();
        let count = {
            let mut all = lock(&self.alike);
            if all.len() >= MOST_ALIKE {
                all.retain(|_, (at, more)| *more > 0 || now.saturating_sub(*at) < ALIKE_MS);
            }
            // Still as many: whoever varies what it asks is told as one.
            let key = if all.len() >= MOST_ALIKE { String::new() } else { alike };
            let (at, more) = all.entry((owner, key)).or_insert((0, 0));
            if now.saturating_sub(*at) < ALIKE_MS {
                *more += 1;
                return;
            }
            *at = now;
            std::mem::take(more) + 1
        };
        let count = (count > 1).then_some(count);
        self.record(owner, from, Event { kind: "refused".into(), count, ..event });
    }

    /// Waits until all that was recorded is written down. What could not be is counted, and said.
    pub(crate) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).is_ok() {
            let _ = wait.await;
        }
    }

    /// What was written down.
    pub(crate) async fn read(&self, wanted: Wanted) -> Result<Vec<Event>, Error> {
        let (done, wait) = oneshot::channel();
        let gone = || Error::internal("the audit log ended");
        self.orders.send(Order::Read(Box::new(wanted), done)).map_err(|_| gone())?;
        let read = wait.await.map_err(|_| gone())?;
        read.map_err(|e| Error::internal(format!("cannot read the audit log: {e}")))
    }

    /// Follows an owner's events: those after an id, else from now on.
    pub(crate) fn follow(
        self: &Arc<Self>,
        owner: Owner,
        sandbox: Option<String>,
        after: Option<u64>,
    ) -> Events {
        let ring = lock(&self.ring);
        let now = ring.last.get(&owner).copied().unwrap_or(ring.start);
        drop(ring);
        let at = after.unwrap_or(now);
        Events { journal: self.clone(), owner, sandbox, at, heard: self.told.subscribe() }
    }
}

/// Somebody who follows.
#[derive(Debug)]
pub struct Events {
    journal: Arc<Journal>,
    owner: Owner,
    sandbox: Option<String>,
    /// All up to this one were seen.
    at: u64,
    heard: watch::Receiver<u64>,
}

impl Events {
    /// The next ones, as many as there are; waits for one. An error where the log cannot be read.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, Error> {
        loop {
            self.heard.borrow_and_update();
            let found = match self.recent() {
                Some(found) => found,
                None => self.older().await?,
            };
            if !found.is_empty() {
                return Ok(found);
            }
            if self.heard.changed().await.is_err() {
                return Err(Error::internal("the journal ended"));
            }
        }
    }

    /// Of the ring; `None` where it does not reach back that far.
    fn recent(&mut self) -> Option<Vec<Arc<Event>>> {
        let ring = lock(&self.journal.ring);
        // Nothing of this daemon before its start is in the ring.
        let reaches = ring.gone.get(&self.owner).copied().unwrap_or(ring.start);
        if self.at < reaches {
            return None;
        }
        let own = ring.events.iter().rev().filter(|(of, _)| *of == self.owner);
        let mut new: Vec<Arc<Event>> =
            own.map(|(_, event)| event).take_while(|e| e.id > self.at).cloned().collect();
        drop(ring);
        new.reverse();
        new.truncate(PAGE);
        self.at = new.last().map_or(self.at, |last| last.id);
        new.retain(|event| self.wants(event));
        Some(new)
    }

    async fn older(&mut self) -> Result<Vec<Arc<Event>>, Error> {
        let wanted = Wanted {
            owner: self.owner,
            sandbox: self.sandbox.clone(),
            after: self.at,
            limit: PAGE,
            ..Wanted::of(self.owner)
        };
        // Before it is read: all up to there is on its way into the log, what comes later in the ring.
        let reaches = {
            let ring = lock(&self.journal.ring);
            ring.gone.get(&self.owner).copied().unwrap_or(ring.start)
        };
        let read = self.journal.read(wanted).await?;
        if read.len() < PAGE {
            self.at = self.at.max(reaches);
        }
        self.at = read.last().map_or(self.at, |last| last.id.max(self.at));
        if read.is_empty() {
            // Whoever waits now has to look again.
            self.heard.mark_changed();
        }
        Ok(read.into_iter().map(Arc::new).collect())
    }

    fn wants(&self, event: &Event) -> bool {
        self.sandbox.is_none() || self.sandbox == event.sandbox
    }
}

struct Writer {
    log: log::Log,
    waiting: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    /// Until the journal is gone.
    fn serve(mut self, heard: &mpsc::Receiver<Order>) {
        let mut failing = false;
        while let Ok(first) = heard.recv() {
            let mut batch = Vec::new();
            let mut flushed = Vec::new();
            let mut asked = Vec::new();
            let until = std::time::Instant::now() + PAUSE;
            let mut next = Some(first);
            while let Some(order) = next.take() {
                match order {
                    Order::Write(kept) => batch.push(kept),
                    Order::Flush(done) => flushed.push(done),
                    Order::Read(wanted, done) => asked.push((wanted, done)),
                }
                let pressed = !(flushed.is_empty() && asked.is_empty());
                let left = until.saturating_duration_since(std::time::Instant::now());
                next = if batch.len() >= PAGE * 16 {
                    None
                } else if pressed {
                    heard.try_recv().ok()
                } else {
                    heard.recv_timeout(left).ok()
                };
            }
            self.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
            let lost = self.lost.swap(0, Ordering::Relaxed);
            crate::fault::point("audit.begun");
            if let Err(e) = self.log.write(&batch, lost) {
                self.lost.fetch_add(lost + batch.len() as u64, Ordering::Relaxed);
                if !failing {
                    crate::complain(&format!("cannot write the audit log: {e}"));
                }
                failing = true;
            } else {
                failing = false;
            }
            crate::fault::point("audit.written");
            for done in flushed {
                let _ = done.send(());
            }
            for (wanted, done) in asked {
                let _ = done.send(self.log.read(&wanted).map_err(|e| e.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, sandbox: &str) -> Event {
        Event { kind: kind.into(), sandbox: Some(sandbox.into()), ..Event::default() }
    }

    fn kinds(all: &[Arc<Event>]) -> Vec<String> {
        all.iter().map(|e| e.kind.clone()).collect()
    }

    #[tokio::test]
    async fn owners_hear_of_their_own_only_and_numbers_tell_nothing_of_others() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::open(&place.path().join("audit.db")).unwrap();
        let (a, b) = (Owner::named(1), Owner::named(2));
        let mut of_a = journal.follow(a, None, None);
        let mut of_one = journal.follow(a, Some("x".into()), None);
        journal.record(a, Source::ITSELF, event("1", "x"));
        for _ in 0..10 {
            journal.record(b, Source::ITSELF, event("foreign", "x"));
        }
        journal.record(a, Source::ITSELF, event("2", "y"));
        journal.record(a, Source::ITSELF, event("3", "x"));
        let heard = of_a.next().await.unwrap();
        assert_eq!(kinds(&heard), ["1", "2", "3"]);
        let ids: Vec<u64> = heard.iter().map(|e| e.id).collect();
        assert_eq!(ids, [ids[0], ids[0] + 1, ids[0] + 2]);
        assert_eq!(kinds(&of_one.next().await.unwrap()), ["1", "3"]);
        let read = journal.read(Wanted::of(a)).await.unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(journal.read(Wanted::of(b)).await.unwrap().len(), 10);
        assert!(journal.read(Wanted::of(Owner::named(3))).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn who_was_away_reads_on_from_the_ring_the_log_and_after_a_restart() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("audit.db");
        let journal = Journal::open(&file).unwrap();
        let owner = Owner::user();
        let many = RING + 1000;
        let first = journal.follow(owner, None, None);
        for n in 0..many {
            journal.record(owner, Source::ITSELF, event(&n.to_string(), "x"));
        }
        let all = |mut events: Events, most: usize| async move {
            let mut seen = Vec::new();
            while seen.len() < most {
                seen.extend(events.next().await.unwrap());
            }
            seen
        };
        let begin = first.at;
        let seen = all(first, many).await;
        let wanted: Vec<String> = (0..many).map(|n| n.to_string()).collect();
        assert_eq!(kinds(&seen), wanted);
        let middle = seen[many - 10].id;
        let rest = all(journal.follow(owner, None, Some(middle)), 9).await;
        assert_eq!(kinds(&rest), wanted[many - 9..]);
        journal.flush().await;
        // As after a kill: nothing was closed.
        let again = Journal::open(&file).unwrap();
        again.record(owner, Source::ITSELF, event("new", "x"));
        let seen = all(again.follow(owner, None, Some(begin)), many + 1).await;
        assert_eq!(seen.len(), many + 1);
        assert_eq!(seen[many].kind, "new");
        assert!(seen.windows(2).all(|w| w[0].id < w[1].id));
    }

    #[tokio::test]
    async fn a_flood_of_refusals_is_one() {
        let place = tempfile::tempdir().unwrap();
        let journal = Journal::open(&place.path().join("audit.db")).unwrap();
        let refusal = |n: u64| Event { subject: Some(n.to_string()), ..Event::default() };
        for n in 0..100_000 {
            journal.refused(Owner::user(), Source::ITSELF, refusal(n % 5000));
        }
        let read = journal.read(Wanted { limit: 100_000, ..Wanted::of(Owner::user()) }).await;
        assert!(read.unwrap().len() < 20 * MOST_ALIKE);
    }
}
