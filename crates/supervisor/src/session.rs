//! A shell that stays: what one line does to directory, variables and functions, the next one finds.
//!
//! ```text
//! daemon                               shell (bash or sh)                   holder, one for each line
//!   orders ──── pipe ────────────────▶ reads lines
//!   pipes of a line's output ────────────────────────────────────────────▶ 0, 1, 2; does nothing
//!                                      { text } <, > /proc/HOLDER/fd/0,1,2
//!   ◀── records ── pipe, its fd 9 ──── "e 7 0": line 7 ended with 0
//! ```
//!
//! Every line has pipes of its own: what it left running writes to these and not into the output of the
//! next one. How a line ended comes by another pipe, which is closed while the text runs, so that no
//! output looks like it. The shell is an interactive one without a terminal, because only such a one
//! gives up what it is at when it is interrupted, and goes on.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringfence_api::{CreateSession, Event, ExecRequest, SessionExec, SessionState, Usage};
use ringfence_sandbox::resident::{Head, kind};
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};

use crate::error::{Error, Kind};
use crate::exec::{Birth, Exec};
use crate::journal::{About, shown};
use crate::link::{self, End, Link, Started};
use crate::log::{KEPT, KEPT_WHOLE};
use crate::sandbox::{Live, Permit, Sandbox};
use crate::supervisor::Asked;
use crate::{fault, lock, now_ms, random_id};

/// Sessions of one sandbox that are open, and those remembered that are not.
const MOST: usize = 32;
const REMEMBERED: usize = 16;
/// Lines that wait for the one before them.
const MOST_WAITING: usize = 16;
/// Bytes of a line.
const MOST_TEXT: usize = 1 << 20;
/// How long a shell may take until it reads lines.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often and how many times a shell is interrupted before it is killed.
const AGAIN: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 40;
/// Bytes of a record.
const MOST_RECORD: u64 = 64;

/// Sourced for each line, for two reasons: a sourced text may `return`, and bash says nothing of its
/// jobs meanwhile. The shell's own descriptors are closed in it.
const SOURCED: &str = "\\command eval \"$_ringfence\" 7<&- 9>&-\n";
/// Said to the shell before anything else.
const FIRST: &str = "PS1= PS2= PS4='+ '\n\
    exec 9>&1 7<&2 >/dev/null 2>/dev/null\n";
const BASH: &str = "if [ -n \"${BASH_VERSION-}\" ]; then set +o history +H; unset MAILCHECK; fi\n";
const READY: &str = "{ _ringfence=:; . /proc/self/fd/7; } && \\command printf 'r 0 0\\n' >&9\n";
/// Variables that only an interactive shell obeys.
const INTERACTIVE: [&str; 5] = ["ENV", "PROMPT_COMMAND", "TMOUT", "MAILCHECK", "HISTFILE"];

/// What may be asked of sessions. With `sandbox` unset a session is looked for in all of the caller's.
#[derive(Clone, Debug)]
pub enum Ask {
    Create {
        sandbox: String,
        request: CreateSession,
    },
    List {
        sandbox: String,
    },
    Get {
        sandbox: Option<String>,
        session: String,
    },
    Delete {
        sandbox: Option<String>,
        session: String,
    },
    Exec {
        sandbox: Option<String>,
        session: String,
        request: Box<SessionExec>,
        input: Option<Vec<u8>>,
        whole: bool,
    },
}

/// The sessions of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<VecDeque<Arc<Session>>>);

impl Sessions {
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.0).iter().cloned().collect()
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Session>> {
        lock(&self.0).iter().find(|s| s.id == id).cloned()
    }

    pub(crate) fn open(&self) -> usize {
        lock(&self.0).iter().filter(|s| !s.is_closed()).count()
    }

    fn add(&self, session: Arc<Session>) {
        let mut all = lock(&self.0);
        all.push_back(session);
        if all.iter().filter(|s| s.is_closed()).count() > REMEMBERED
            && let Some(oldest) = all.iter().position(|s| s.is_closed())
        {
            all.remove(oldest);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    pub id: String,
    sandbox: String,
    shell: String,
    created_ms: u64,
    link: Arc<Link>,
    token: u64,
    pid: i32,
    /// For the record.
    about: About,
    environment: BTreeMap<String, String>,
    turn: Arc<tokio::sync::Mutex<Turn>>,
    waiting: AtomicUsize,
    /// How the shell ended, once it has.
    closed: watch::Receiver<Option<Closed>>,
    /// Why we ended it.
    why: Mutex<Option<&'static str>>,
}

#[derive(Clone, Debug)]
struct Closed {
    end: Option<End>,
    reason: String,
    at_ms: u64,
}

/// What only the line that has its turn may use.
#[derive(Debug)]
struct Turn {
    orders: pipe::Sender,
    records: mpsc::Receiver<Record>,
    next: u64,
}

/// `e`: a line ended, with its status; `s`: the shell reads lines; `r`: it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    what: u8,
    number: u64,
    status: u8,
}

fn record(line: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.trim_end_matches('\n').split(' ');
    let what = match words.next()?.as_bytes() {
        [what @ (b'e' | b's' | b'r')] => *what,
        _ => return None,
    };
    let (number, status) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(Record { what, number, status })
}

/// A text as one word of the shell's.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Starts a shell.
pub(crate) async fn create(
    sandbox: &Arc<Sandbox>,
    request: &CreateSession,
) -> Result<Arc<Session>, Error> {
    if sandbox.sessions.open() >= MOST {
        return Err(Error::new(Kind::Limit, format!("there are {MOST} sessions already"))
            .with("delete some"));
    }
    let shell = request.shell.clone().unwrap_or_else(|| "/bin/sh".into());
    let (live, permit) = sandbox.enter()?;
    if shell.is_empty() || shell.contains('\0') {
        return Err(Error::invalid("shell: not the name or path of a program"));
    }
    let name = shell.rsplit('/').next().unwrap_or_default();
    let mut argv = vec![shell.clone()];
    if name == "bash" {
        argv.push("--norc".into());
    }
    argv.extend(["-i".into(), "-s".into()]);
    let asked = ExecRequest {
        argv,
        environment: request.environment.clone(),
        cwd: request.cwd.clone(),
        ..ExecRequest::default()
    };
    let mut asked = Asked::of(sandbox, &live, &asked)?.without(&INTERACTIVE);
    // As it calls itself in what it says.
    if let Some(first) = asked.argv.first_mut() {
        name.clone_into(first);
    }
    let internal = |e: std::io::Error| Error::internal(e.to_string());
    let (read_orders, orders) = link::pipe()?;
    let (records, write_records) = link::pipe()?;
    let sourced = sourced().map_err(|e| internal(e.into()))?;
    let fds = [read_orders.as_fd(), write_records.as_fd(), sourced.as_fd()];
    let started = asked.start(&live.link, fds, false).await?;
    drop((read_orders, write_records, sourced));
    for fd in [&orders, &records] {
        rustix::io::ioctl_fionbio(fd, true).map_err(|e| internal(e.into()))?;
    }
    let orders = pipe::Sender::from_owned_fd(orders).map_err(internal)?;
    let (told, heard) = mpsc::channel(4);
    tokio::spawn(listen(pipe::Receiver::from_owned_fd(records).map_err(internal)?, told));
    let (publish, closed) = watch::channel(None);
    let turn = Turn { orders, records: heard, next: 1 };
    let session = Arc::new(Session {
        id: random_id("se_")?,
        sandbox: sandbox.id.clone(),
        shell: shell.clone(),
        created_ms: now_ms(),
        link: live.link.clone(),
        token: started.token,
        pid: started.pid,
        about: sandbox.about(),
        environment: request.environment.clone(),
        turn: Arc::new(tokio::sync::Mutex::new(turn)),
        waiting: AtomicUsize::new(0),
        closed,
        why: Mutex::new(None),
    });
    tokio::spawn(session.clone().watch(started.ended, publish));
    let ready = tokio::time::timeout(PATIENCE, session.ready()).await;
    if !ready.unwrap_or(false) {
        session.end("failed").await;
        return Err(Error::new(Kind::Refused, format!("{shell} does not answer as a shell does"))
            .with("use bash or sh; /proc must be visible in the sandbox"));
    }
    fault::point("session.ready");
    drop(permit);
    session.about.record(Event {
        kind: "session.started".into(),
        subject: Some(session.id.clone()),
        argv: vec![session.shell.clone()],
        ..Event::default()
    });
    sandbox.sessions.add(session.clone());
    Ok(session)
}

/// A file of [`SOURCED`] that nobody can change and anybody may read.
fn sourced() -> rustix::io::Result<OwnedFd> {
    let fd = memfd_create("ringfence", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::io::write(&fd, SOURCED.as_bytes())?;
    fchmod(&fd, Mode::from_raw_mode(0o444))?;
    fcntl_add_seals(&fd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(fd)
}

/// Records as they come. Who floods the pipe waits: none is taken before somebody wants it.
async fn listen(records: pipe::Receiver, told: mpsc::Sender<Record>) {
    let mut records = BufReader::with_capacity(MOST_RECORD as usize, records);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut records).take(MOST_RECORD).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(n) if n > 0) {
            return;
        }
        if let Some(record) = record(&line)
            && told.send(record).await.is_err()
        {
            return;
        }
    }
}

impl Session {
    /// Those that a text may have got its secrets from.
    fn variables<'a>(&'a self, sandbox: &'a Sandbox) -> [&'a BTreeMap<String, String>; 2] {
        [&sandbox.made_of.environment, &self.environment]
    }

    async fn ready(&self) -> bool {
        let mut turn = self.turn.lock().await;
        let text = [FIRST, BASH, READY].concat();
        if turn.orders.write_all(text.as_bytes()).await.is_err() {
            return false;
        }
        let mut closed = self.closed.clone();
        tokio::select! {
            record = turn.records.recv() => record.is_some_and(|r| r.what == b'r'),
            () = gone(&mut closed) => false,
        }
    }

    async fn watch(
        self: Arc<Self>,
        ended: oneshot::Receiver<End>,
        publish: watch::Sender<Option<Closed>>,
    ) {
        let end = ended.await.ok();
        let why = *lock(&self.why);
        let reason = match (why, end) {
            (Some(why), _) => why.into(),
            (None, None) => "sandbox".into(),
            (None, Some((status, _))) if libc::WIFSIGNALED(status) => "signal".into(),
            (None, Some(_)) => "exit".into(),
        };
        self.about.record(Event {
            kind: "session.ended".into(),
            subject: Some(self.id.clone()),
            reason: Some(String::clone(&reason)),
            started_ms: Some(self.created_ms),
            ..Event::default()
        });
        let _ = publish.send(Some(Closed { end, reason, at_ms: now_ms() }));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Ends the shell and what it started.
    pub(crate) async fn end(&self, why: &'static str) {
        if self.is_closed() {
            return;
        }
        lock(&self.why).get_or_insert(why);
        let _ = self.link.signal(self.token, libc::SIGKILL).await;
        let mut closed = self.closed.clone();
        let _ = tokio::time::timeout(PATIENCE, gone(&mut closed)).await;
    }

    pub(crate) fn described(&self) -> ringfence_api::Session {
        let closed = self.closed.borrow().clone();
        ringfence_api::Session {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            shell: self.shell.clone(),
            state: if closed.is_some() { SessionState::Closed } else { SessionState::Active },
            reason: closed.as_ref().map(|c| c.reason.clone()),
            created_ms: self.created_ms,
            closed_ms: closed.map(|c| c.at_ms),
            pid: self.pid,
            busy: self.turn.try_lock().is_err(),
        }
    }

    fn gone(&self) -> Error {
        let reason = self.closed.borrow().as_ref().map(|c| c.reason.clone()).unwrap_or_default();
        Error::new(Kind::Conflict, format!("the session is closed: {reason}"))
            .with("make a new one")
    }

    /// Waits for the lines before.
    async fn turn(self: &Arc<Self>) -> Result<OwnedMutexGuard<Turn>, Error> {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= MOST_WAITING {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Error::new(Kind::Limit, "too many commands wait for this session")
                .with("try again later, or use another session"));
        }
        let turn = self.turn.clone().lock_owned().await;
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        Ok(turn)
    }
}

async fn gone(closed: &mut watch::Receiver<Option<Closed>>) {
    let _ = closed.wait_for(Option::is_some).await;
}

/// Runs a line in the shell.
pub(crate) async fn exec(
    sandbox: &Arc<Sandbox>,
    session: &Arc<Session>,
    request: &SessionExec,
    input: Option<Vec<u8>>,
    whole: bool,
) -> Result<Arc<Exec>, Error> {
    if request.command.contains('\0') || request.command.len() > MOST_TEXT {
        return Err(Error::invalid(format!(
            "command: it has a nul byte, or more than {} KiB",
            MOST_TEXT >> 10
        )));
    }
    let (_, guard) = sandbox.enter()?;
    let mut turn = session.turn().await?;
    drop(guard);
    if session.is_closed() {
        return Err(session.gone());
    }
    let (live, permit) = sandbox.enter()?;
    let began = Instant::now();
    let (stdout, out) = open_pipe()?;
    let (stderr, err) = open_pipe()?;
    let (stdin, input) = match input {
        Some(bytes) => {
            let (theirs, ours) = open_pipe()?;
            (theirs, Some((ours, bytes.into())))
        }
        None => (link::null()?, None),
    };
    let has_input = input.is_some();
    let holder = hold(sandbox, session, &live, [&stdin, &out, &err]).await?;
    drop((stdin, out, err));
    let id = random_id("ex_")?;
    let timeout = request.timeout_ms.or(live.made.timeout_ms).map(Duration::from_millis);
    let birth = Birth {
        id: id.clone(),
        sandbox: sandbox.id.clone(),
        told: (
            sandbox.about(),
            shown(std::slice::from_ref(&request.command), &session.variables(sandbox)),
        ),
        argv: vec![request.command.clone()],
        output: [stdout, stderr],
        input,
        timeout,
        kept: if whole { KEPT_WHOLE } else { KEPT },
    };
    let (kills, killed) = mpsc::channel(4);
    let (ended, wait) = oneshot::channel();
    let started = Started { token: session.token, pid: session.pid, ended: wait };
    let number = turn.next;
    turn.next += 1;
    let pid = holder.pid;
    let stdin = if has_input { format!("/proc/{pid}/fd/0") } else { "/dev/null".into() };
    let text = quoted(&request.command);
    let order = format!(
        "{{ _ringfence={text}; . /proc/self/fd/7; }} <{stdin} >/proc/{pid}/fd/1 2>/proc/{pid}/fd/2; \\command printf 'e {number} %s\\n' \"$?\" >&9\n"
    );
    fault::point("session.held");
    let line = Line { session: session.clone(), holder, number, killed };
    let home = Arc::downgrade(sandbox);
    let done = done(permit, home, id, whole);
    let exec = Exec::in_session(birth, started, began, live.link.clone(), kills, done)?;
    tokio::spawn(async move {
        let end = line.run(&mut turn, order).await;
        drop(turn);
        let _ = ended.send(end);
    });
    if !whole || !exec.has_ended() {
        sandbox.remember(exec.clone());
    }
    Ok(exec)
}

fn done(
    permit: Permit,
    home: std::sync::Weak<Sandbox>,
    id: String,
    whole: bool,
) -> impl FnOnce() + Send + 'static {
    move || {
        drop(permit);
        if whole && let Some(sandbox) = home.upgrade() {
            sandbox.forget(&id);
        }
    }
}

/// A pipe that the shell may open by its name: for a root caller it is another user.
fn open_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = link::pipe()?;
    let mode = Mode::from_raw_mode(0o666);
    fchmod(&read, mode).map_err(|e| Error::internal(format!("cannot open up a pipe: {e}")))?;
    Ok((read, write))
}

/// A process that has these open and does nothing.
async fn hold(
    sandbox: &Sandbox,
    session: &Session,
    live: &Live,
    fds: [&OwnedFd; 3],
) -> Result<Started, Error> {
    let idle = "while :; do kill -STOP $$; done";
    let request = ExecRequest {
        argv: vec![session.shell.clone(), "-c".into(), idle.into()],
        ..ExecRequest::default()
    };
    Asked::of(sandbox, live, &request)?.start(&live.link, fds.map(|fd| fd.as_fd()), false).await
}

/// A line on its way.
struct Line {
    session: Arc<Session>,
    holder: Started,
    number: u64,
    killed: mpsc::Receiver<i32>,
}

impl Line {
    async fn run(mut self, turn: &mut Turn, order: String) -> End {
        let end = self.go(turn, order).await;
        let _ = self.session.link.signal(self.holder.token, libc::SIGKILL).await;
        end
    }

    async fn go(&mut self, turn: &mut Turn, order: String) -> End {
        let Turn { orders, records, .. } = turn;
        let mut closed = self.session.closed.clone();
        // Whose turn it is has a shell that reads. Where nobody does, it is gone: that is heard.
        tokio::select! {
            _ = orders.write_all(order.as_bytes()) => {}
            () = gone(&mut closed) => {}
        }
        let ended = loop {
            tokio::select! {
                record = records.recv() => match record {
                    Some(r) if r.what == b'e' && r.number == self.number => break Some(r.status),
                    Some(_) => {}
                    None => break None,
                },
                () = gone(&mut closed) => break None,
                Some(signal) = self.killed.recv() => {
                    if signal == libc::SIGKILL {
                        return self.interrupt(orders, records).await;
                    }
                    self.signal(self.holder.pid, signal).await;
                }
            }
        };
        match ended {
            Some(status) => (i32::from(status) << 8, Usage::default()),
            None => self.with_the_shell().await,
        }
    }

    /// As the shell ended.
    async fn with_the_shell(&self) -> End {
        let mut closed = self.session.closed.clone();
        gone(&mut closed).await;
        let end = closed.borrow().as_ref().and_then(|closed| closed.end);
        end.unwrap_or((libc::SIGKILL, Usage::default()))
    }

    /// To what was started since this process was, or with 0 to the shell alone. It has been sent when
    /// this returns.
    async fn signal(&self, since: i32, signal: i32) {
        let head = Head {
            kind: kind::SIGNAL_SINCE,
            value: signal,
            extra: since as u32,
            of: self.session.token,
            ..Head::default()
        };
        let _ = self.session.link.files(head, &[]).await;
    }

    /// Ends what the line started, and has the shell give the line up. One that does not is killed.
    async fn interrupt(
        &self,
        orders: &mut pipe::Sender,
        records: &mut mpsc::Receiver<Record>,
    ) -> End {
        let killed = (libc::SIGKILL, Usage::default());
        for attempt in 0..ATTEMPTS {
            // As from a keyboard, the shell first: bash goes on with its text when what it waits for
            // ends otherwise.
            let order = if attempt % 2 == 0 {
                [(0, libc::SIGINT), (self.holder.pid, libc::SIGINT)]
            } else {
                [(self.holder.pid, libc::SIGKILL), (0, libc::SIGINT)]
            };
            for (since, signal) in order {
                self.signal(since, signal).await;
            }
            // Answered by a shell that was interrupted for the last time: nothing of it is on the way
            // when the next line comes.
            let sync = self.number * u64::from(ATTEMPTS) + u64::from(attempt);
            let order = format!("\\command printf 's {sync} 0\\n' >&9\n");
            let answered = async {
                let _ = orders.write_all(order.as_bytes()).await;
                while let Some(record) = records.recv().await {
                    if record.what == b's' && record.number == sync {
                        return true;
                    }
                }
                false
            };
            match tokio::time::timeout(AGAIN, answered).await {
                Ok(true) => {
                    self.signal(self.holder.pid, libc::SIGKILL).await;
                    return killed;
                }
                Ok(false) => break,
                Err(_) if self.session.is_closed() => return killed,
                Err(_) => {}
            }
        }
        self.session.end("timeout").await;
        killed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_record_is_one() {
        let is = |what, number, status| Some(Record { what, number, status });
        assert_eq!(record(b"e 7 130\n"), is(b'e', 7, 130));
        assert_eq!(record(b"s 1 0\n"), is(b's', 1, 0));
        for wrong in ["", "e", "e 7", "e 7 256\n", "x 1 1\n", "e 7 1 1\n", "ee 7 1\n", "e -1 0\n"] {
            assert_eq!(record(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_text_is_one_word() {
        assert_eq!(quoted("a 'b'\n$c"), "'a '\\''b'\\''\n$c'");
    }
}
