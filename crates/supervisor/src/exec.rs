//! A command in a sandbox: its output as it comes, its end, what is kept of it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringfence_api::{Ended, Usage};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;
use crate::journal::About;
use crate::link::{End, Link, Started};
use crate::log::{Follower, Log, Piece};
use crate::terminal::Terminal;
use crate::{lock, now_ms};

/// Read from a pipe at once: as much as it holds.
const PIECE: usize = 64 << 10;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Some of a command's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub stream: Stream,
    /// Of the first byte.
    pub offset: u64,
    /// Bytes before it that were asked for and are gone.
    pub lost: u64,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub struct Exec {
    pub(crate) id: String,
    sandbox: String,
    argv: Vec<String>,
    started: Instant,
    started_ms: u64,
    pid: i32,
    token: u64,
    link: Arc<Link>,
    logs: [Arc<Log>; 2],
    ended: watch::Receiver<Option<Ended>>,
    /// Why we killed it.
    killed: Mutex<Option<&'static str>>,
    /// Of a line in a session: who signals what it started, and nothing else of the shell.
    kills: Option<mpsc::Sender<i32>>,
    terminal: Option<Arc<Terminal>>,
}

/// What a command reads from its standard input.
#[derive(Clone, Debug)]
pub enum Input {
    /// All of it.
    Whole(Vec<u8>),
    /// As it comes, until the other end of the channel is dropped.
    Parts(Parts),
}

/// Read once.
#[derive(Clone, Debug)]
pub struct Parts(Arc<Mutex<Option<mpsc::Receiver<Vec<u8>>>>>);

impl Input {
    pub fn parts(from: mpsc::Receiver<Vec<u8>>) -> Self {
        Self::Parts(Parts(Arc::new(Mutex::new(Some(from)))))
    }
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(bytes)
    }
}

/// What a command is started with, besides the program.
pub(crate) struct Birth {
    pub id: String,
    pub sandbox: String,
    pub argv: Vec<String>,
    /// For the record, and the command as it is written there.
    pub told: (About, Vec<String>),
    /// The ends of its pipes that we read from.
    pub output: [OwnedFd; 2],
    /// Where its input is written to, and what.
    pub input: Option<(OwnedFd, Input)>,
    pub timeout: Option<Duration>,
    /// Of each stream.
    pub kept: usize,
}

impl Exec {
    /// Takes over a command that was started. `done` is called once, at its end.
    pub(crate) fn new(
        birth: Birth,
        started: Started,
        began: Instant,
        link: Arc<Link>,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        Self::taken_over(birth, started, began, link, (None, None), done)
    }

    /// The same for a line in a session.
    pub(crate) fn in_session(
        birth: Birth,
        started: Started,
        began: Instant,
        link: Arc<Link>,
        kills: mpsc::Sender<i32>,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        Self::taken_over(birth, started, began, link, (Some(kills), None), done)
    }

    /// The same for a command whose output comes from a terminal.
    pub(crate) fn on_terminal(
        birth: Birth,
        started: Started,
        began: Instant,
        link: Arc<Link>,
        terminal: Arc<Terminal>,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        Self::taken_over(birth, started, began, link, (None, Some(terminal)), done)
    }

    fn taken_over(
        birth: Birth,
        started: Started,
        began: Instant,
        link: Arc<Link>,
        (kills, terminal): (Option<mpsc::Sender<i32>>, Option<Arc<Terminal>>),
        done: impl FnOnce() + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        let logs = [Arc::new(Log::new(birth.kept)), Arc::new(Log::new(birth.kept))];
        let (exited, exit) = watch::channel(false);
        let mut drained = Vec::with_capacity(2);
        for (log, fd) in logs.iter().zip(birth.output) {
            let (drain, wait) = oneshot::channel();
            drained.push(wait);
            let pipe = receiver(fd).map_err(|e| Error::internal(e.to_string()))?;
            tokio::spawn(pump(pipe, log.clone(), exit.clone(), drain));
        }
        if let Some((fd, input)) = birth.input {
            tokio::spawn(feed(fd, input));
        }
        let (publish, ended) = watch::channel(None);
        let exec = Arc::new(Self {
            id: birth.id,
            sandbox: birth.sandbox,
            argv: birth.argv,
            started: began,
            started_ms: now_ms(),
            pid: started.pid,
            token: started.token,
            link,
            logs,
            ended,
            killed: Mutex::new(None),
            kills,
            terminal,
        });
        let watched = exec.clone();
        let (about, shown) = birth.told;
        about.started(&exec.id, &shown);
        tokio::spawn(async move {
            let end = watched.wait_for(started.ended, birth.timeout).await;
            let duration_us = watched.started.elapsed().as_micros() as u64;
            let _ = exited.send(true);
            for wait in drained {
                let _ = wait.await;
            }
            // Who waits for the end finds the bookkeeping done.
            done();
            let ended = watched.describe(end, duration_us);
            about.ended(&watched.id, shown, watched.started_ms, &ended);
            crate::metrics::ended(&ended);
            let _ = publish.send(Some(ended));
        });
        Ok(exec)
    }

    /// The end, with the timeout kept meanwhile.
    async fn wait_for(
        &self,
        mut end: oneshot::Receiver<End>,
        timeout: Option<Duration>,
    ) -> Option<End> {
        if let Some(timeout) = timeout {
            match tokio::time::timeout(timeout, &mut end).await {
                Ok(end) => return end.ok(),
                Err(_) => {
                    let _ = self.kill_for("timeout", libc::SIGKILL).await;
                }
            }
        }
        end.await.ok()
    }

    fn describe(&self, end: Option<End>, duration_us: u64) -> Ended {
        let Some((status, usage)) = end else {
            return Ended {
                exit_code: None,
                signal: Some(libc::SIGKILL),
                reason: "sandbox".into(),
                duration_us,
                usage: Usage::default(),
            };
        };
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        let killed = *lock(&self.killed);
        let reason = match (signal, killed) {
            (Some(_), Some(why)) | (None, Some(why @ "timeout")) => why,
            (Some(_), None) => "signal",
            (None, _) => "exit",
        };
        Ended {
            exit_code: signal.is_none().then(|| libc::WEXITSTATUS(status)),
            signal,
            reason: reason.into(),
            duration_us,
            usage,
        }
    }

    async fn kill_for(&self, why: &'static str, signal: i32) -> Result<(), Error> {
        lock(&self.killed).get_or_insert(why);
        if let Some(kills) = &self.kills {
            // Nobody listens once it has ended.
            let _ = kills.send(signal).await;
            return Ok(());
        }
        self.link.signal(self.token, signal).await
    }

    /// Signals the command and what it started. Nothing where it has ended.
    pub(crate) async fn kill(&self, signal: i32) -> Result<(), Error> {
        if self.ended.borrow().is_some() {
            return Ok(());
        }
        self.kill_for("killed", signal).await
    }

    /// Its terminal, where it has one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_deref()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for the end: all that the command wrote before it has been taken.
    pub async fn finished(&self) -> Option<Ended> {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await.ok()?;
        end.clone()
    }

    /// As it stands.
    pub fn described(&self) -> ringfence_api::Exec {
        let [stdout, stderr] = &self.logs;
        ringfence_api::Exec {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            argv: self.argv.clone(),
            started_ms: self.started_ms,
            pid: self.pid,
            stdout_bytes: stdout.len(),
            stderr_bytes: stderr.len(),
            ended: self.ended.borrow().clone(),
        }
    }

    /// What is kept of its output.
    pub fn output(&self) -> [Chunk; 2] {
        let [stdout, stderr] = &self.logs;
        [chunk(Stream::Stdout, stdout.all()), chunk(Stream::Stderr, stderr.all())]
    }

    /// Follows both streams from these offsets on. While it is followed, the command waits for who reads.
    pub fn follow(self: &Arc<Self>, stdout: u64, stderr: u64) -> Following {
        let [out, err] = &self.logs;
        Following {
            exec: self.clone(),
            stdout: Follower::new(out, stdout),
            stderr: Follower::new(err, stderr),
            last: Stream::Stderr,
        }
    }
}

/// A reader of a command's output.
#[derive(Debug)]
pub struct Following {
    exec: Arc<Exec>,
    stdout: Follower,
    stderr: Follower,
    last: Stream,
}

impl Following {
    /// The next piece; `None` when the command has ended and all was read.
    pub async fn next(&mut self) -> Option<Chunk> {
        let mut ended = self.exec.ended.clone();
        loop {
            // Asked before the logs are: what came before the end is there then.
            let over = ended.borrow_and_update().is_some();
            if let Some(chunk) = self.try_next() {
                return Some(chunk);
            }
            if over {
                return None;
            }
            tokio::select! {
                Some(piece) = self.stdout.next() => return Some(chunk(Stream::Stdout, piece)),
                Some(piece) = self.stderr.next() => return Some(chunk(Stream::Stderr, piece)),
                changed = ended.changed() => if changed.is_err() {
                    return self.try_next();
                },
                // Both streams are at their end before the command is.
                else => return None,
            }
        }
    }

    fn try_next(&mut self) -> Option<Chunk> {
        // In turns, so that neither waits for a flood on the other.
        let order = match self.last {
            Stream::Stdout => [Stream::Stderr, Stream::Stdout],
            Stream::Stderr => [Stream::Stdout, Stream::Stderr],
        };
        for stream in order {
            let follower = match stream {
                Stream::Stdout => &mut self.stdout,
                Stream::Stderr => &mut self.stderr,
            };
            if let Some(piece) = follower.try_next() {
                self.last = stream;
                return Some(chunk(stream, piece));
            }
        }
        None
    }
}

fn chunk(stream: Stream, piece: Piece) -> Chunk {
    Chunk { stream, offset: piece.offset, lost: piece.lost, bytes: piece.bytes }
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(fd.as_fd(), true)?;
    pipe::Receiver::from_owned_fd(fd)
}

/// From the pipe into the log, while there is room. `drained` is told once everything that was in the
/// pipe at the command's exit is in the log; what it left running may write on.
async fn pump(
    pipe: pipe::Receiver,
    log: Arc<Log>,
    mut exit: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) {
    let mut drained = Some(drained);
    let mut buffer = vec![0u8; PIECE];
    loop {
        let free = log.free().await;
        let room = free.min(PIECE);
        // Before it is read: empty after that means that all of it was taken.
        let exited = *exit.borrow_and_update();
        let into = buffer.get_mut(..room).unwrap_or_default();
        // Not what the runtime has heard of the pipe yet, but the pipe itself.
        let read = if exited && drained.is_some() {
            rustix::io::read(&pipe, &mut *into).map_err(io::Error::from)
        } else {
            pipe.try_read(into)
        };
        match read {
            Ok(0) => break,
            Ok(n) => log.push(buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if exited && let Some(drained) = drained.take() {
                    let _ = drained.send(());
                }
                tokio::select! {
                    ready = pipe.readable() => if ready.is_err() {
                        break;
                    },
                    changed = exit.changed(), if drained.is_some() => if changed.is_err() {
                        break;
                    },
                }
            }
            Err(_) => break,
        }
    }
    log.end();
    if let Some(drained) = drained {
        let _ = drained.send(());
    }
}

/// All of the input, then its end. A command that does not read it is not waited for longer than it
/// lives.
async fn feed(fd: OwnedFd, input: Input) {
    let nonblocking = rustix::io::ioctl_fionbio(fd.as_fd(), true);
    if nonblocking.is_ok()
        && let Ok(mut pipe) = pipe::Sender::from_owned_fd(fd)
    {
        match input {
            Input::Whole(bytes) => drop(pipe.write_all(&bytes).await),
            Input::Parts(parts) => {
                let Some(mut parts) = lock(&parts.0).take() else { return };
                while let Some(bytes) = parts.recv().await {
                    if pipe.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
