//! Asking the resident init of one sandbox.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_api::Usage;
use ringfence_sandbox::resident::{HEAD, Head, MOST_STRINGS, Refusal, kind};
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::channel::Channel;
use crate::error::{Error, Kind};
use crate::{lock, processes};

/// How long an answer is waited for: init answers at once unless somebody inside holds the machine up.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long it is looked at whether there can be an answer. Of an init that left one out, nobody waits longer
/// than that for another, until it has said something again.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes that a message may carry beside paths.
pub(crate) const MOST_PUT: usize = MOST_STRINGS / 2;

/// A command that could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub refusal: Refusal,
    pub errno: i32,
}

/// Wait status and what was used.
pub(crate) type End = (i32, Usage);

#[derive(Debug)]
enum Waits {
    Command { started: Option<oneshot::Sender<Result<i32, Refused>>>, ended: oneshot::Sender<End> },
    Files(oneshot::Sender<Result<Option<OwnedFd>, Errno>>),
}

#[derive(Debug)]
pub(crate) struct Link {
    channel: Channel,
    next: AtomicU64,
    /// `None` once init is gone.
    waiting: Mutex<Option<HashMap<u64, Waits>>>,
    shut: AtomicBool,
    /// Init as the host numbers it, and when it started.
    init: Option<(u32, u64)>,
    /// An answer was waited for in vain, and nothing was heard since.
    silent: AtomicBool,
}

/// A command's way to its end.
#[derive(Debug)]
pub(crate) struct Started {
    pub token: u64,
    pub pid: i32,
    pub ended: oneshot::Receiver<End>,
}

/// What init is to execute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program<'a> {
    pub cwd: &'a str,
    pub candidates: &'a [String],
    pub argv: &'a [String],
    pub environment: &'a [String],
    /// Its standard input is a terminal that is to control it.
    pub terminal: bool,
}

impl Link {
    pub(crate) fn new(channel: OwnedFd, init: Option<(u32, u64)>) -> Result<Arc<Self>, Error> {
        let channel = Channel::new(channel).map_err(|e| Error::internal(e.to_string()))?;
        let link = Arc::new(Self {
            channel,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            shut: AtomicBool::new(false),
            init,
            silent: AtomicBool::new(false),
        });
        tokio::spawn(listen(link.clone()));
        Ok(link)
    }

    /// Ends the sandbox: its init sees the end of the channel.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        self.channel.shut();
    }

    /// Whether that was us.
    pub(crate) fn was_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    fn expect(&self, waits: Waits) -> Result<u64, Error> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).as_mut().ok_or_else(Error::lost)?.insert(token, waits);
        Ok(token)
    }

    fn forget(&self, token: u64) {
        if let Some(waiting) = lock(&self.waiting).as_mut() {
            waiting.remove(&token);
        }
    }

    /// Whether init was stopped, which only somebody outside can do.
    pub(crate) fn is_stopped(&self) -> bool {
        self.init.is_some_and(processes::is_stopped)
    }

    /// Waits for what init says or takes, as long as there is hope.
    async fn heard<T>(&self, what: impl Future<Output = T>) -> Result<T, Error> {
        let mut what = std::pin::pin!(what);
        let patience = if self.silent.load(Ordering::Relaxed) { LOOK } else { PATIENCE };
        let mut waited = Duration::ZERO;
        while waited < patience {
            if let Ok(done) = tokio::time::timeout(LOOK, &mut what).await {
                return Ok(done);
            }
            waited += LOOK;
            if self.is_stopped() {
                return Err(stopped());
            }
        }
        self.silent.store(true, Ordering::Relaxed);
        Err(unresponsive())
    }

    /// Init has done all that it was asked for before this is answered.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        // Whatever it says of the directory.
        self.files(Head { kind: kind::OPEN, value: flags, ..Head::default() }, &["/"])
            .await
            .map(drop)
    }

    async fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.heard(self.channel.send(message, fds)).await?.map_err(|_| Error::lost())
    }

    /// Starts a command with these as its 0, 1 and 2.
    pub(crate) async fn exec(
        &self,
        program: Program<'_>,
        fds: [BorrowedFd<'_>; 3],
    ) -> Result<Result<Started, Refused>, Error> {
        let (started, wait) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let value = i32::from(program.terminal);
        let mut head = Head { kind: kind::EXEC, value, ..Head::default() };
        let message = message(program, &mut head)?;
        let token = self.expect(Waits::Command { started: Some(started), ended })?;
        head.token = token;
        let mut message = message;
        for (to, from) in message.iter_mut().zip(head.encode()) {
            *to = from;
        }
        if let Err(e) = self.send(&message, &fds).await {
            self.forget(token);
            return Err(e);
        }
        match self.heard(wait).await {
            Ok(Ok(Ok(pid))) => Ok(Ok(Started { token, pid, ended: end })),
            Ok(Ok(Err(refused))) => Ok(Err(refused)),
            Ok(Err(_)) => Err(Error::lost()),
            Err(e) => {
                // Somebody holds it; it shall not run when nobody expects it any more.
                let _ = self.signal(token, libc::SIGKILL).await;
                Err(e)
            }
        }
    }

    /// To a command and what it started; token 0: to everything inside.
    pub(crate) async fn signal(&self, token: u64, signal: i32) -> Result<(), Error> {
        let head = Head { kind: kind::SIGNAL, token, value: signal, ..Head::default() };
        self.send(&head.encode(), &[]).await
    }

    /// One request about files. A descriptor after an open.
    pub(crate) async fn files(
        &self,
        head: Head,
        paths: &[&str],
    ) -> Result<Result<Option<OwnedFd>, Errno>, Error> {
        self.files_with(head, paths, &[]).await
    }

    /// The same with bytes, where a message has room for them: see [`MOST_PUT`].
    pub(crate) async fn files_with(
        &self,
        mut head: Head,
        paths: &[&str],
        bytes: &[u8],
    ) -> Result<Result<Option<OwnedFd>, Errno>, Error> {
        let mut message = vec![0u8; HEAD];
        for path in paths {
            append(&mut message, path)?;
        }
        message.extend_from_slice(bytes);
        let (done, wait) = oneshot::channel();
        head.token = self.expect(Waits::Files(done))?;
        for (to, from) in message.iter_mut().zip(head.encode()) {
            *to = from;
        }
        if let Err(e) = self.send(&message, &[]).await {
            self.forget(head.token);
            return Err(e);
        }
        match self.heard(wait).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Error::lost()),
            Err(e) => {
                self.forget(head.token);
                Err(e)
            }
        }
    }
}

fn unresponsive() -> Error {
    Error::new(Kind::Busy, "the sandbox does not answer").with("stop it, or try again")
}

fn stopped() -> Error {
    Error::new(
        Kind::Busy,
        "the sandbox does not answer: its init was stopped from outside (SIGSTOP, or a debugger)",
    )
    .with("let it go on (SIGCONT), or stop the sandbox")
}

fn append(message: &mut Vec<u8>, text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(Error::invalid("a nul byte cannot be passed to the kernel"));
    }
    message.extend(text.as_bytes());
    message.push(0);
    if message.len() > HEAD + MOST_STRINGS {
        return Err(Error::new(
            Kind::TooLarge,
            format!("arguments and environment are larger than {} KiB", MOST_STRINGS >> 10),
        )
        .with("pass the data on standard input or in a file"));
    }
    Ok(())
}

fn message(program: Program<'_>, head: &mut Head) -> Result<Vec<u8>, Error> {
    let mut message = Vec::with_capacity(4096);
    message.resize(HEAD, 0);
    append(&mut message, program.cwd)?;
    let groups = [program.candidates, program.argv, program.environment];
    let mut counts = [0u16; 3];
    for (count, group) in counts.iter_mut().zip(groups) {
        for text in group {
            append(&mut message, text)?;
        }
        *count = u16::try_from(group.len())
            .map_err(|_| Error::new(Kind::TooLarge, "too many arguments or variables"))?;
    }
    let [candidates, arguments, variables] = counts;
    head.counts.candidates = candidates;
    head.counts.arguments = arguments;
    head.counts.variables = variables;
    Ok(message)
}

/// Hands on what init says, until it is gone; then nobody is left waiting.
async fn listen(link: Arc<Link>) {
    let mut buffer = [0u8; HEAD];
    loop {
        let (length, fds) = match link.channel.receive(&mut buffer).await {
            Ok((0, _)) | Err(_) => break,
            Ok(received) => received,
        };
        let Some(head) = buffer.get(..length).and_then(Head::decode) else { break };
        link.silent.store(false, Ordering::Relaxed);
        hear(&link, &head, fds);
    }
    lock(&link.waiting).take();
}

fn hear(link: &Link, head: &Head, fds: Vec<OwnedFd>) {
    let mut waiting = lock(&link.waiting);
    let Some(all) = waiting.as_mut() else { return };
    match head.kind {
        kind::STARTED => {
            if let Some(Waits::Command { started, .. }) = all.get_mut(&head.token)
                && let Some(started) = started.take()
            {
                let _ = started.send(Ok(head.value));
            }
        }
        kind::REFUSED => {
            if let Some(Waits::Command { started: Some(started), .. }) = all.remove(&head.token) {
                let refusal = Refusal::from_u32(head.extra);
                let _ = started.send(Err(Refused { refusal, errno: head.value }));
            }
        }
        kind::ENDED => {
            if let Some(Waits::Command { ended, .. }) = all.remove(&head.token) {
                let usage = Usage {
                    user_us: head.usage.user_us,
                    system_us: head.usage.system_us,
                    peak_kib: head.usage.peak_kib,
                };
                let _ = ended.send((head.value, usage));
            }
        }
        kind::DONE => {
            if let Some(Waits::Files(done)) = all.remove(&head.token) {
                let answer = match head.value {
                    0 => Ok(fds.into_iter().next()),
                    errno => Err(Errno::from_raw_os_error(errno)),
                };
                let _ = done.send(answer);
            }
        }
        _ => {}
    }
}

/// A pipe: the end to read from, the end to write to.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Error::new(Kind::Limit, format!("cannot make a pipe: {e}")))
}

/// What a command without input reads.
pub(crate) fn null() -> Result<OwnedFd, Error> {
    let file =
        std::fs::File::open("/dev/null").map_err(|e| Error::internal(format!("/dev/null: {e}")))?;
    Ok(file.into())
}
