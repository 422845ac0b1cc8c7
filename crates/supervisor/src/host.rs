//! The daemon's side of the [`crate::spawner`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ringfence_api::CreateSandbox;
use ringfence_sys::cgroup;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::sync::{mpsc, oneshot};

use crate::channel::Channel;
use crate::error::{Error, Kind};
use crate::spawner::{MOST, Made, Order, Word};
use crate::tended::Tended;
use crate::{lock, metrics};

type Answer = oneshot::Sender<Result<(Made, OwnedFd), Error>>;

/// The end of a sandbox.
#[derive(Debug)]
pub(crate) struct End {
    pub number: u64,
    pub reason: String,
    /// What it left that host programs would have obeyed.
    pub held: Vec<String>,
}

/// Names the store of layers to whoever prepares a sandbox.
const STORE: &str = "RINGFENCE_STATE";

/// A spawner.
#[derive(Debug)]
pub(crate) struct Host {
    channel: Channel,
    process: Mutex<Process>,
    /// `None` once the spawner is gone.
    waiting: Mutex<Option<HashMap<u64, Answer>>>,
    /// Who waits for a copy of it.
    dividing: Mutex<HashMap<u64, oneshot::Sender<Option<i32>>>>,
    /// For other limits.
    limited: Mutex<HashMap<u64, oneshot::Sender<Option<String>>>>,
    hidden: Vec<String>,
    /// The one sandbox that it is for, whose end is told also where it could not.
    alone: Option<u64>,
}

/// A child of ours.
#[derive(Debug)]
enum Process {
    Executed(Child),
    /// A copy of another.
    Divided(Pid),
    Ended,
}

impl Process {
    /// Until it has ended.
    fn wait(&mut self) {
        match self {
            Self::Executed(child) => drop(child.wait()),
            Self::Divided(pid) => {
                let pid = Some(*pid);
                let _ = rustix::io::retry_on_intr(|| waitpid(pid, WaitOptions::empty()));
            }
            Self::Ended => {}
        }
        // Its number may be another's now.
        *self = Self::Ended;
    }
}

/// A number that no sandbox of any spawner had.
pub(crate) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Host {
    /// Starts one, a new execution of `program` with `arguments`. It hides the `store` of layers. `ends` gets
    /// the end of every sandbox, and is dropped when the spawner is gone.
    pub(crate) fn start(
        program: &std::path::Path,
        arguments: &[String],
        (hidden, store): (Vec<String>, &std::path::Path),
        alone: Option<u64>,
        ends: mpsc::UnboundedSender<End>,
    ) -> io::Result<Arc<Self>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(program)
            .args(arguments)
            .env(STORE, store)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Self::new(ours, Process::Executed(child), hidden, alone, ends)
    }

    fn new(
        channel: OwnedFd,
        process: Process,
        hidden: Vec<String>,
        alone: Option<u64>,
        ends: mpsc::UnboundedSender<End>,
    ) -> io::Result<Arc<Self>> {
        let host = Arc::new(Self {
            channel: Channel::new(channel)?,
            process: Mutex::new(process),
            waiting: Mutex::new(Some(HashMap::new())),
            dividing: Mutex::default(),
            limited: Mutex::default(),
            hidden,
            alone,
        });
        tokio::spawn(listen(host.clone(), ends));
        Ok(host)
    }

    /// A copy of this one, for the sandbox of that number; quicker than another execution. `None` where it
    /// cannot be made.
    pub(crate) async fn divide(
        &self,
        number: u64,
        ends: mpsc::UnboundedSender<End>,
    ) -> Option<Arc<Self>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .ok()?;
        let (told, wait) = oneshot::channel();
        lock(&self.dividing).insert(number, told);
        let order = serde_json::to_vec(&Order::Divide { number }).ok()?;
        if self.is_gone() || self.channel.send(&order, &[theirs.as_fd()]).await.is_err() {
            lock(&self.dividing).remove(&number);
            return None;
        }
        drop(theirs);
        let process = Process::Divided(Pid::from_raw(wait.await.ok()??)?);
        Self::new(ours, process, self.hidden.clone(), Some(number), ends).ok()
    }

    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.waiting).is_none()
    }

    /// It is not needed: it ends, and what it holds with it.
    pub(crate) fn dismiss(&self) {
        self.channel.shut();
    }

    /// Has a sandbox made under a [`number`]: what it is, and the channel to its init.
    pub(crate) async fn make(
        &self,
        number: u64,
        (made_of, guest): (&CreateSandbox, bool),
        tended: Option<&Tended>,
    ) -> Result<(Made, OwnedFd), Error> {
        let gone = || Error::new(Kind::Lost, "the spawner ended").with("try again");
        let (answer, wait) = oneshot::channel();
        lock(&self.waiting).as_mut().ok_or_else(gone)?.insert(number, answer);
        let hidden = self.hidden.clone();
        let tended = tended.cloned().map(Box::new);
        let made_of = Box::new(made_of.clone());
        let order = Order::Make { number, made_of, guest, hidden, tended };
        if let Err(e) = self.order(&order).await {
            if let Some(waiting) = lock(&self.waiting).as_mut() {
                waiting.remove(&number);
            }
            return Err(e);
        }
        wait.await.map_err(|_| gone())?
    }

    /// Changes what a sandbox's control groups hold.
    pub(crate) async fn limit(&self, number: u64, request: cgroup::Request) -> Result<(), Error> {
        let (answer, wait) = oneshot::channel();
        lock(&self.limited).insert(number, answer);
        let cgroup::Request { memory, cpu_percent, pids } = request;
        let ordered = self.order(&Order::Limit { number, memory, cpu_percent, pids }).await;
        if let Err(e) = ordered {
            lock(&self.limited).remove(&number);
            return Err(e);
        }
        match wait.await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => {
                Err(Error::new(Kind::Conflict, why).with("stop it, change it, start it"))
            }
            Err(_) => Err(Error::lost()),
        }
    }

    /// Ends a sandbox whose init does not.
    pub(crate) async fn kill(&self, number: u64) {
        // Gone already is as good.
        let _ = self.order(&Order::Kill { number }).await;
    }

    /// What is written to the layer of a sandbox will not be asked for: its end is quicker.
    pub(crate) async fn forget(&self, number: u64) {
        let _ = self.order(&Order::Forget { number }).await;
    }

    async fn order(&self, order: &Order) -> Result<(), Error> {
        let bytes = serde_json::to_vec(order).map_err(|e| Error::internal(e.to_string()))?;
        if bytes.len() > MOST {
            return Err(Error::new(
                Kind::TooLarge,
                format!("the request is larger than the {} KiB that are taken", MOST >> 10),
            ));
        }
        self.channel
            .send(&bytes, &[])
            .await
            .map_err(|e| Error::new(Kind::Lost, format!("cannot reach the spawner: {e}")))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.channel.shut();
        lock(&self.process).wait();
    }
}

/// Hands on what the spawner says, until it is gone.
async fn listen(host: Arc<Host>, ends: mpsc::UnboundedSender<End>) {
    let mut buffer = vec![0u8; MOST];
    loop {
        let (length, fds) = match host.channel.receive(&mut buffer).await {
            Ok((0, _)) | Err(_) => break,
            Ok(received) => received,
        };
        let word = buffer.get(..length).and_then(|bytes| serde_json::from_slice(bytes).ok());
        let Some(word) = word else { break };
        hear(&host, word, fds, &ends);
    }
    lock(&host.waiting).take();
    lock(&host.dividing).clear();
    lock(&host.limited).clear();
    let process = host.clone();
    // It may still be ending its sandboxes.
    let _ = tokio::task::spawn_blocking(move || lock(&process.process).wait()).await;
    if let Some(number) = host.alone {
        // Nobody listens to it where the end was told.
        let _ = ends.send(End { number, reason: "host-lost".into(), held: Vec::new() });
    }
}

fn hear(host: &Host, word: Word, fds: Vec<OwnedFd>, ends: &mpsc::UnboundedSender<End>) {
    let answer = |number: u64| lock(&host.waiting).as_mut().and_then(|all| all.remove(&number));
    match word {
        Word::Made { number, made } => {
            metrics::prepared(metrics::Pool::Namespaces, made.prepared);
            if let (Some(answer), Some(fd)) = (answer(number), fds.into_iter().next()) {
                // Nobody waits: the channel is dropped, and the sandbox ends.
                let _ = answer.send(Ok((made, fd)));
            }
        }
        Word::Refused { number, kind, message } => {
            if let Some(answer) = answer(number) {
                let _ = answer.send(Err(Error::new(Kind::from_text(&kind), message)));
            }
        }
        Word::Limited { number, refused } => {
            if let Some(answer) = lock(&host.limited).remove(&number) {
                let _ = answer.send(refused);
            }
        }
        Word::Ended { number, reason, held } => {
            let _ = ends.send(End { number, reason, held });
        }
        Word::Divided { number, pid } => {
            if let Some(told) = lock(&host.dividing).remove(&number) {
                let _ = told.send(pid);
            }
        }
    }
}
