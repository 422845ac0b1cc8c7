//! Rules of names in a layer that were replaced while the run goes on: from then on a thread of the
//! supervisor answers what init asks about each name (`ringfence_jail::asks`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ringfence_jail::Judge as _;
use ringfence_jail::asks::{ANSWER, ASK, HEARD, RENEWED};
use ringfence_layers::Mount;
use ringfence_sys::raw;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::layer::{LayerPlan, LayerRoot};
use crate::moved::Moved;
use crate::names::{NameJudge, NamesPlan};

/// For init to be done with the call that it carries out; it takes what a rename of a large directory
/// takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than the longest path.
const QUESTION: usize = 8 << 10;

/// What a layer's rules of names are judged in.
#[derive(Debug)]
struct Held {
    ours: OwnedFd,
    layer: LayerPlan,
    moved: Option<Moved>,
    /// As the store told of them, without masks.
    mounts: Vec<Mount>,
    by_broker: bool,
}

/// The thread that answers, from the first change on.
#[derive(Debug)]
struct Thread {
    orders: Sender<(Arc<NamesPlan>, Sender<()>)>,
    bell: Arc<OwnedFd>,
    hand: JoinHandle<()>,
}

/// Init's channel, and what may use it.
#[derive(Debug)]
pub(crate) struct Answers {
    held: Arc<Held>,
    /// The child of a root caller shares our table of descriptors for a while.
    theirs: OwnedFd,
    thread: Mutex<Option<Thread>>,
}

impl Answers {
    /// Before the jail is made.
    pub fn new(
        names: &NamesPlan,
        layer: &LayerPlan,
        moved: Option<&Moved>,
        mounts: &[Mount],
    ) -> io::Result<Self> {
        let (ours, theirs) = raw::seqpacket_owned()?;
        let (layer, moved, mounts) = (layer.clone(), moved.cloned(), mounts.to_vec());
        let by_broker = names.by_broker;
        let held = Arc::new(Held { ours, layer, moved, mounts, by_broker });
        Ok(Self { held, theirs, thread: Mutex::new(None) })
    }

    /// Init's end.
    pub fn number(&self) -> i32 {
        self.theirs.as_raw_fd()
    }

    /// Init says what may be changed.
    pub fn by_broker(&self) -> bool {
        self.held.by_broker
    }

    /// A directory of the layer that is another one than when the run began.
    pub fn replaced(&self) -> Option<&Path> {
        let here = |root: &&LayerRoot| {
            rustix::fs::lstat(&root.path).is_ok_and(|stat| stat.st_ino == root.object.id.ino)
        };
        self.held.layer.roots.iter().find(|root| !here(root)).map(|root| &*root.path)
    }

    pub fn mounts(&self) -> &[Mount] {
        &self.held.mounts
    }

    /// From its return on every name is decided by `names`, and no call is under way that was not.
    pub fn set(&self, names: Arc<NamesPlan>) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = Some(Thread::start(Arc::clone(&self.held))?);
        }
        thread.as_ref().map_or(Ok(()), |thread| thread.order(names))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Thread { orders, bell, hand }) = thread {
            drop(orders);
            ring(&bell);
            let _ = hand.join();
        }
    }
}

impl Thread {
    fn start(held: Arc<Held>) -> io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = channel();
        let heard = Arc::clone(&bell);
        let work = move || work(&held, &heard, &inbox);
        let hand = std::thread::Builder::new().name("names".into()).spawn(work)?;
        Ok(Self { orders, bell, hand })
    }

    fn order(&self, names: Arc<NamesPlan>) -> io::Result<()> {
        let ended = || io::Error::from(Errno::PIPE);
        let (done, wait) = channel();
        self.orders.send((names, done)).map_err(|_| ended())?;
        ring(&self.bell);
        match wait.recv_timeout(PATIENCE) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err(Errno::TIMEDOUT.into()),
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }
}

fn ring(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

/// One set of rules after another.
fn work(held: &Held, bell: &OwnedFd, inbox: &Receiver<(Arc<NamesPlan>, Sender<()>)>) {
    let Ok(mut next) = inbox.recv() else { return };
    loop {
        let (names, done) = next;
        let judge = NameJudge::new(&names, &held.layer, held.moved.as_ref());
        if raw::send_now(held.ours.as_raw_fd(), &[RENEWED]).is_err() {
            return;
        }
        let mut waiting = Some(done);
        loop {
            let mut fds =
                [PollFd::new(&held.ours, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let (asked, rung) = (fds[0].revents(), fds[1].revents());
            if asked.contains(PollFlags::IN) {
                if answer(held, &judge, &mut waiting).is_none() {
                    return;
                }
            } else if !asked.is_empty() {
                return;
            }
            if rung.is_empty() {
                continue;
            }
            let mut count = [0u8; 8];
            let _ = rustix::io::read(bell, &mut count);
            match inbox.try_recv() {
                Ok(order) => {
                    next = order;
                    break;
                }
                // The bell of the order that is being obeyed.
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }
}

/// `None`: init has ended.
fn answer(held: &Held, judge: &NameJudge, waiting: &mut Option<Sender<()>>) -> Option<()> {
    let mut question = [0u8; QUESTION];
    let (n, _) = raw::recv_owned(held.ours.as_fd(), &mut question).ok()?;
    match question.get(..n)?.split_first()? {
        (&HEARD, []) => {
            if let Some(done) = waiting.take() {
                let _ = done.send(());
            }
        }
        (&ASK, path) => {
            raw::send_now(held.ours.as_raw_fd(), &[ANSWER, judge.allowed(path).digit()]).ok()?;
        }
        _ => {}
    }
    Some(())
}
