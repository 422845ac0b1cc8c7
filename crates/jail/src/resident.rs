//! PID 1 of a sandbox that stays: it starts commands, and opens and changes files, on request.
//!
//! ```text
//! owner (daemon)                  PID 1 (resident init)            commands
//!                                 view, network, limits, no caps,
//!                                 Landlock, seccomp: itself
//!   exec: strings + 3 fds ──────▶ shares its memory for a moment ─▶ setsid, fds, cwd, execve
//!   ◀── started or refused ────── waits a few ms at most
//!   ◀── ended: status, usage ──── reaps
//!   open, make, remove, rename ─▶ as the sandbox may
//! ```
//!
//! Confined once: every command inherits exactly what init itself is under, so nothing is prepared per
//! command, and what init does for files is allowed to whom it is done for and to nobody else.
//!
//! What is inside cannot reach it: the channel is close-on-exec and closed in each new process before
//! that executes anything; init is not dumpable, so it can be neither traced nor looked into; the kernel
//! lets no signal from inside end PID 1. What asks cannot hold it up: no message is sent that would
//! wait, requests are read only while an answer can be sent, and everything has a bound.
//!
//! Runs after the clone: no allocation, no locks, no panics.

use std::ffi::CStr;
use std::sync::atomic::Ordering;

use ringfence_sys::raw::{self, Errno, Usage, resolve};
use ringfence_sys::shared::Page;
use ringfence_sys::starter::{Counts, MOST_BYTES, Progress, Starter, Step, Watched};
use ringfence_sys::subreaper;

use crate::asks::Asks;
use crate::broker::Broker;
use crate::child::{self, Fail, Res, at};
use crate::init::{self, CHILDREN, CONTROL, HIGH, LOCK, SUPERVISOR};
use crate::message;
use crate::spawn::Birth;
use crate::spec::JailSpec;
use crate::stage::Stage;

/// Commands that may be running at once in one sandbox.
pub const MOST_COMMANDS: usize = 128;
/// Bytes of the head of every message, both ways; strings follow those of requests.
pub const HEAD: usize = 64;
/// Bytes of strings in a request.
pub const MOST_STRINGS: usize = MOST_BYTES - HEAD;

/// Kinds of messages.
pub mod kind {
    /// Start a command: its strings, with three descriptors. With `value` 1 the first is a terminal that
    /// controls it.
    pub const EXEC: u8 = 1;
    /// Send signal `value` to command `token` and what it started, or with token 0 to everything.
    pub const SIGNAL: u8 = 2;
    /// Open a path: flags in `value`, mode in `extra`.
    pub const OPEN: u8 = 3;
    /// Make a directory: mode in `extra`.
    pub const MAKE_DIRECTORY: u8 = 4;
    /// Remove a file, or an empty directory (`value` 1).
    pub const REMOVE: u8 = 5;
    /// Rename the first path to the second.
    pub const RENAME: u8 = 6;
    /// Send signal `value` to what command `of` started after the process with pid `extra` was; with
    /// `extra` 0 to the command's own process alone.
    pub const SIGNAL_SINCE: u8 = 7;
    /// Set permissions of a file or directory, not through a link: mode in `extra`.
    pub const CHMOD: u8 = 8;
    /// Put a regular file in place as a whole: its path, that of a draft beside it, and `extra` bytes.
    pub const PUT: u8 = 9;

    /// The command runs; its pid inside in `value`.
    pub const STARTED: u8 = 65;
    /// It does not: errno in `value`, [`super::Refusal`] in `extra`.
    pub const REFUSED: u8 = 66;
    /// It ended: wait status in `value`, usage in `usage`.
    pub const ENDED: u8 = 67;
    /// What was asked of files is done (`value` 0, with a descriptor after OPEN) or failed (errno).
    pub const DONE: u8 = 68;
}

/// Why a command was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The request is malformed.
    Request = 1,
    /// Too many commands, or no process could be made.
    Process = 2,
    /// The standard descriptors.
    Descriptors = 3,
    /// The working directory.
    Directory = 4,
    /// The program.
    Execute = 5,
}

impl Refusal {
    pub fn from_u32(n: u32) -> Self {
        match n {
            2 => Self::Process,
            3 => Self::Descriptors,
            4 => Self::Directory,
            5 => Self::Execute,
            _ => Self::Request,
        }
    }
}

/// The head of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub kind: u8,
    /// Chosen by whoever asks; never 0 for a command.
    pub token: u64,
    pub value: i32,
    pub extra: u32,
    pub counts: Counts,
    pub usage: Usage,
    /// Another token, that of the command which is meant.
    pub of: u64,
}

impl Head {
    pub fn encode(&self) -> [u8; HEAD] {
        let mut out = [0u8; HEAD];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(0, &[self.kind]);
        put(2, &self.counts.candidates.to_le_bytes());
        put(4, &self.counts.arguments.to_le_bytes());
        put(6, &self.counts.variables.to_le_bytes());
        put(8, &self.token.to_le_bytes());
        put(16, &self.value.to_le_bytes());
        put(20, &self.extra.to_le_bytes());
        put(24, &self.usage.user_us.to_le_bytes());
        put(32, &self.usage.system_us.to_le_bytes());
        put(40, &self.usage.peak_kib.to_le_bytes());
        put(48, &self.of.to_le_bytes());
        out
    }

    /// `None` where it is too short.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
            bytes.get(at..at + N)?.try_into().ok()
        }
        if bytes.len() < HEAD {
            return None;
        }
        Some(Self {
            kind: *bytes.first()?,
            counts: Counts {
                candidates: u16::from_le_bytes(part(bytes, 2)?),
                arguments: u16::from_le_bytes(part(bytes, 4)?),
                variables: u16::from_le_bytes(part(bytes, 6)?),
            },
            token: u64::from_le_bytes(part(bytes, 8)?),
            value: i32::from_le_bytes(part(bytes, 16)?),
            extra: u32::from_le_bytes(part(bytes, 20)?),
            usage: Usage {
                user_us: u64::from_le_bytes(part(bytes, 24)?),
                system_us: u64::from_le_bytes(part(bytes, 32)?),
                peak_kib: u64::from_le_bytes(part(bytes, 40)?),
            },
            of: u64::from_le_bytes(part(bytes, 48)?),
        })
    }
}

/// Where init keeps its end of the channel.
const CHANNEL: i32 = 10;
/// And of that for rules of names that are replaced, where there is one.
const ASKS: i32 = 11;
/// Commands whose calls are held that may be there at once, with what they left running.
const MOST_LISTENERS: usize = 192;
/// What is polled before listeners.
const OTHERS: usize = 6;
/// How long a start is waited for before something else is looked at. Usually it takes a tenth.
const START_MS: u32 = 20;
/// How often a start that took longer is looked at again.
const AGAIN_MS: i32 = 5;
/// Descriptors that init itself needs besides the limit of its commands.
const OWN_FDS: u64 = 32;

/// A command, or the answer about one that could not be started.
#[derive(Clone, Copy, Default)]
struct Command {
    token: u64,
    /// 0: this entry is free.
    pid: i32,
    /// Where it is being started, plus one.
    place: u8,
    /// What has not been said yet.
    owed: Owed,
    status: i32,
    usage: Usage,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Owed {
    #[default]
    Nothing,
    Started,
    /// Started, and it has ended already.
    Both,
    Ended,
    Refused(u32, i32),
}

struct Resident<'a> {
    starter: Starter<'a>,
    commands: [Command; MOST_COMMANDS],
    names: Option<Names<'a>>,
}

/// Rules of names: see [`crate::broker`]. Each command comes with a listener of its own, which concerns
/// everything that it starts.
struct Names<'a> {
    broker: Broker<'a>,
    /// Where commands send their listeners.
    arrivals: i32,
    /// -1: free.
    listeners: [i32; MOST_LISTENERS],
}

impl Names<'_> {
    fn take_arrivals(&mut self) {
        let mut byte = [0u8; 1];
        while let Ok((n, fd)) = raw::recv_with_fd(self.arrivals, &mut byte, libc::MSG_DONTWAIT) {
            let Some(fd) = fd else {
                if n == 0 {
                    return;
                }
                continue;
            };
            match self.listeners.iter_mut().find(|l| **l < 0) {
                Some(free) => {
                    *free = fd;
                    Broker::adopt(fd);
                }
                // Without a listener the calls that it would have held fail.
                None => raw::close(fd),
            }
        }
    }

    fn has_room(&self) -> bool {
        self.listeners.contains(&-1)
    }

    /// What came in at listeners, by the entries that were polled for them.
    fn serve(&mut self, polled: &[libc::pollfd]) {
        for (at, entry) in polled.iter().enumerate() {
            if entry.fd < 0 || entry.revents == 0 {
                continue;
            }
            if entry.revents & libc::POLLIN != 0 {
                self.broker.serve_at(entry.fd);
            } else if let Some(listener) = self.listeners.get_mut(at) {
                // Every process that it concerns has ended.
                self.broker.dismiss(entry.fd);
                raw::close(entry.fd);
                *listener = -1;
            }
        }
        self.broker.retry();
    }
}

/// Never returns: the rest of PID 1's life.
pub(crate) fn run(birth: &Birth<'_>) -> ! {
    let done = set_up(birth).and_then(|(starter, names)| {
        let commands = [Command::default(); MOST_COMMANDS];
        let needed = needed(birth.spec, names.is_some());
        if needed.is_none() {
            init::forget_plan(birth);
        }
        Resident { starter, commands, names }.stay(birth.page, needed)
    });
    match done {
        Ok(()) => raw::exit(0),
        Err(fail) => init::fail_and_exit(birth.page, &fail),
    }
}

/// What is still looked at of the plan: by the broker, and when private copies are handed out.
fn needed(spec: &JailSpec, names: bool) -> Option<&JailSpec> {
    let copies = spec.view.as_ref().is_some_and(|view| view.copies.is_some());
    (names || copies).then_some(spec)
}

/// All of it before the first command: nothing has been confined that could hinder it.
fn set_up<'a>(birth: &Birth<'a>) -> Result<(Starter<'a>, Option<Names<'a>>), Fail> {
    let Birth { spec, trees, page, has_network, judge, .. } = *birth;
    at(Stage::Session, raw::setsid())?;
    child::view(spec, trees)?;
    child::leave_host(spec)?;
    place_descriptors(birth)?;
    // First, so that what is listed of sockets inside does not tell whether it was there before.
    child::network(spec, has_network)?;
    let pair =
        if spec.watch.is_empty() { None } else { Some(at(Stage::Broker, raw::seqpacket_pair())?) };
    let watched =
        pair.map(|(_, socket)| Watched { filter: &spec.seccomp, watch: &spec.watch, socket });
    let starter = at(Stage::Resident, Starter::new(watched))?;
    // Commands inherit it; init blocks everything anyway.
    raw::default_pipe_signal();
    at(Stage::Dumpable, raw::set_dumpable(false))?;
    let few = spec.rlimits.iter().any(|l| l.resource == libc::RLIMIT_NOFILE && l.value < OWN_FDS);
    if few {
        return Err(Fail::new(Stage::Rlimit, Errno(libc::EINVAL)));
    }
    child::private(spec, page, true)?;
    if spec.resident_files > 0 {
        let (_, hard) = at(Stage::Rlimit, raw::getrlimit(libc::RLIMIT_NOFILE))?;
        let soft = spec.resident_files.min(hard);
        at(Stage::Rlimit, raw::setrlimit(libc::RLIMIT_NOFILE, soft, hard))?;
    }
    child::landlock(spec)?;
    let names = match (pair, judge) {
        (Some((arrivals, _)), Some(judge)) => {
            let asks = Asks::new(if spec.asks >= 0 { ASKS } else { -1 });
            let broker = at(Stage::Broker, Broker::new(-1, judge, asks))?;
            Some(Names { broker, arrivals, listeners: [-1; MOST_LISTENERS] })
        }
        (Some(_), None) => return Err(Fail::new(Stage::Broker, Errno(libc::EINVAL))),
        (None, _) => None,
    };
    page.started.store(1, Ordering::Release);
    at(Stage::Resident, raw::send_now(CONTROL, &[message::READY, 0]))?;
    Ok((starter, names))
}

/// Nothing of the supervisor's stays open here but what is named.
fn place_descriptors(birth: &Birth<'_>) -> Res {
    let Birth { spec, control, supervisor, .. } = *birth;
    let children = at(Stage::Descriptors, raw::signalfd(libc::SIGCHLD))?;
    let keep = [
        (control, CONTROL),
        (supervisor, SUPERVISOR),
        (children, CHILDREN),
        (spec.lock, LOCK),
        (spec.resident, CHANNEL),
        (spec.asks, ASKS),
    ];
    let mut high = [-1; 6];
    for (slot, (fd, _)) in high.iter_mut().zip(keep) {
        if fd >= 0 {
            *slot = at(Stage::Descriptors, raw::dup_from(fd, HIGH))?;
        }
    }
    for (fd, (_, number)) in high.iter().zip(keep) {
        if *fd >= 0 {
            at(Stage::Descriptors, raw::dup3(*fd, number, libc::O_CLOEXEC))?;
        }
    }
    // Taken, so that no descriptor that arrives later becomes one of a command's before its time.
    for fd in 0..3 {
        at(Stage::Descriptors, raw::dup3(CONTROL, fd, libc::O_CLOEXEC))?;
    }
    for fd in 0..CHANNEL {
        if fd > 2 && !keep.iter().any(|(from, number)| *from >= 0 && *number == fd) {
            raw::close(fd);
        }
    }
    let first = if spec.asks >= 0 { ASKS + 1 } else { CHANNEL + 1 };
    at(Stage::Descriptors, raw::close_from(first as u32, false))
}

impl Resident<'_> {
    /// Until whoever asks, or the supervisor, is gone or says so.
    fn stay(mut self, page: &Page, spec: Option<&JailSpec>) -> Res {
        let mut fds = [raw::pollin(-1); OTHERS + MOST_LISTENERS];
        let others = [CHILDREN, CHANNEL, SUPERVISOR, CONTROL];
        for (entry, fd) in fds.iter_mut().zip(others) {
            entry.fd = fd;
        }
        if let Some(names) = &self.names {
            fds[4].fd = names.arrivals;
            fds[5].fd = if spec.is_some_and(|spec| spec.asks >= 0) { ASKS } else { -1 };
        }
        let mut polled = OTHERS;
        loop {
            let pending = self.settle();
            let room = self.tell() && can_answer();
            // Without room for answers nothing more is asked of us.
            fds[1].events = if room { libc::POLLIN } else { libc::POLLOUT };
            let mut patience = if pending { AGAIN_MS } else { -1 };
            if let Some(names) = &self.names {
                for (entry, fd) in fds.iter_mut().skip(OTHERS).zip(names.listeners) {
                    (entry.fd, entry.revents) = (fd, 0);
                }
                polled =
                    OTHERS + names.listeners.iter().rposition(|l| *l >= 0).map_or(0, |n| n + 1);
                if names.broker.patience() >= 0 {
                    patience = AGAIN_MS;
                }
            }
            let asked = fds.get_mut(..polled).unwrap_or_default();
            at(Stage::Resident, raw::poll(asked, patience))?;
            if fds[0].revents != 0 {
                init::drain(CHILDREN);
                self.reap();
            }
            let gone = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
            if fds[2].revents != 0 || (fds[1].revents | fds[3].revents) & gone != 0 {
                break;
            }
            if let Some(names) = &mut self.names {
                if fds[5].revents & libc::POLLIN != 0 {
                    names.broker.hear();
                } else if fds[5].revents != 0 {
                    fds[5].fd = -1;
                }
                names.serve(fds.get(OTHERS..polled).unwrap_or_default());
                // After: an entry that was polled may have become free.
                names.take_arrivals();
            }
            if fds[1].revents & libc::POLLIN != 0 && !self.obey() {
                break;
            }
            if fds[3].revents & libc::POLLIN != 0 {
                ignore(CONTROL);
            }
        }
        init::end_everyone();
        if let Some(spec) = spec {
            init::hand_out_copies(spec);
        }
        page.ended.store(1, Ordering::Release);
        page.emptied.store(1, Ordering::Release);
        Ok(())
    }

    /// Looks at starts that take long. True while there are some.
    fn settle(&mut self) -> bool {
        let mut pending = false;
        for command in &mut self.commands {
            if command.place == 0 {
                continue;
            }
            match self.starter.progress(usize::from(command.place - 1)) {
                Progress::Pending => pending = true,
                progress => {
                    command.place = 0;
                    settled(command, progress);
                }
            }
        }
        pending
    }

    /// Says what is owed. False when it could not be said now.
    fn tell(&mut self) -> bool {
        for command in &mut self.commands {
            while command.owed != Owed::Nothing {
                let Some((head, next)) = command.next_word() else { break };
                match raw::send_now(CHANNEL, &head.encode()) {
                    Ok(()) => {
                        command.owed = next;
                        if next == Owed::Nothing && head.kind != kind::STARTED {
                            *command = Command::default();
                        }
                    }
                    Err(Errno(libc::EAGAIN)) => return false,
                    // Gone: the channel says so too.
                    Err(_) => return true,
                }
            }
        }
        true
    }

    fn reap(&mut self) {
        loop {
            match raw::reap_any() {
                Ok((pid, status, usage)) if pid > 0 => {
                    let known = self.commands.iter_mut().find(|c| c.pid == pid);
                    let Some(command) = known else { continue };
                    command.status = status;
                    command.usage = usage;
                    if command.place > 0 {
                        // Its end came first; the place says what it was.
                        let place = usize::from(command.place - 1);
                        command.place = 0;
                        settled(command, self.starter.progress(place));
                    }
                    // Nobody has this pid any more.
                    command.pid = -1;
                    command.owed = match command.owed {
                        Owed::Started => Owed::Both,
                        Owed::Nothing => Owed::Ended,
                        other => other,
                    };
                }
                Err(Errno(libc::EINTR)) => {}
                _ => return,
            }
        }
    }

    /// One request. False when there will be none.
    fn obey(&mut self) -> bool {
        // Without a free place for its strings a request can only be refused.
        let Some(place) = self.starter.free() else {
            self.refuse_unread();
            return true;
        };
        let received = raw::recv_with_three(CHANNEL, self.starter.bytes(place));
        let (len, fds) = match received {
            Ok((0, _)) => return false,
            Ok(received) => received,
            Err(Errno(libc::EAGAIN | libc::EINTR)) => return true,
            Err(Errno(libc::EMSGSIZE)) => {
                self.refuse_read(place);
                return true;
            }
            Err(_) => return false,
        };
        let head = self.starter.bytes(place).get(..len).and_then(Head::decode);
        if let Some(head) = head {
            match head.kind {
                kind::EXEC => self.exec(place, len, &head, fds),
                kind::SIGNAL => self.signal(&head),
                kind::SIGNAL_SINCE => {
                    self.signal_since(&head);
                    done(&head, 0, -1);
                }
                _ => {
                    let strings = self.starter.bytes(place).get(HEAD..len).unwrap_or_default();
                    let broker = self.names.as_mut().map(|names| &mut names.broker);
                    answer(&head, strings, broker);
                }
            }
        }
        for fd in fds.into_iter().filter(|fd| *fd >= 0) {
            raw::close(fd);
        }
        true
    }

    fn exec(&mut self, place: usize, len: usize, head: &Head, fds: [i32; 3]) {
        let refuse = |refusal: Refusal, errno: i32| {
            refused(head.token, refusal, errno);
        };
        let used = |c: &Command| c.pid != 0 || c.owed != Owed::Nothing || c.place != 0;
        if head.token == 0
            || fds.contains(&-1)
            || self.commands.iter().any(|c| c.token == head.token)
        {
            return refuse(Refusal::Request, libc::EINVAL);
        }
        let Some(free) = self.commands.iter().position(|c| !used(c)) else {
            return refuse(Refusal::Process, libc::EAGAIN);
        };
        if let Some(names) = &mut self.names {
            if !names.has_room() {
                return refuse(Refusal::Process, libc::EAGAIN);
            }
            names.broker.begin_as_first();
        }
        match self.starter.start(place, len, HEAD, head.counts, (fds, head.value == 1)) {
            Err(errno @ Errno(libc::EINVAL | libc::E2BIG)) => refuse(Refusal::Request, errno.0),
            Err(errno) => refuse(Refusal::Process, errno.0),
            Ok(pid) => {
                self.starter.wait(place, START_MS);
                let Some(command) = self.commands.get_mut(free) else { return };
                *command = Command { token: head.token, pid, ..Command::default() };
                match self.starter.progress(place) {
                    Progress::Pending => command.place = place as u8 + 1,
                    progress => settled(command, progress),
                }
            }
        }
    }

    fn signal(&self, head: &Head) {
        if head.token == 0 {
            // Every process of the namespace but init itself.
            let _ = raw::kill(-1, head.value);
            return;
        }
        if let Some(command) = self.commands.iter().find(|c| c.token == head.token && c.pid > 0) {
            // What left its session is found through its parents: none may end before its children are
            // known, or they would be ours like everybody's.
            if head.value == libc::SIGKILL {
                let _ = raw::kill(-command.pid, libc::SIGSTOP);
            }
            subreaper::signal_tree(command.pid, head.value);
            let _ = raw::kill(-command.pid, head.value);
        }
    }

    /// For one line of a shell that goes on: what it started before stays.
    fn signal_since(&self, head: &Head) {
        let Some(shell) = self.commands.iter().find(|c| c.token == head.of && c.pid > 0) else {
            return;
        };
        let since = head.extra as i32;
        if since == 0 {
            let _ = raw::kill(shell.pid, head.value);
            return;
        }
        if head.value == libc::SIGKILL {
            subreaper::signal_since(shell.pid, since, libc::SIGSTOP);
        }
        subreaper::signal_since(shell.pid, since, head.value);
    }

    /// A request came while every place is in use by a start that somebody stopped.
    fn refuse_unread(&self) {
        let mut head = [0u8; HEAD];
        // Longer than that is expected; what is cut off is not needed.
        if let Ok((n, fd)) = raw::recv_with_fd(CHANNEL, &mut head, libc::MSG_DONTWAIT) {
            if let Some(fd) = fd {
                raw::close(fd);
            }
            if let Some(head) = head.get(..n).and_then(Head::decode) {
                match head.kind {
                    kind::EXEC => refused(head.token, Refusal::Process, libc::EAGAIN),
                    kind::SIGNAL => self.signal(&head),
                    _ => done(&head, libc::EAGAIN, -1),
                }
            }
        }
    }

    /// What did not fit has its head in the place all the same.
    fn refuse_read(&mut self, place: usize) {
        if let Some(head) = Head::decode(self.starter.bytes(place)) {
            match head.kind {
                kind::EXEC => refused(head.token, Refusal::Request, libc::E2BIG),
                kind::SIGNAL => {}
                _ => done(&head, libc::E2BIG, -1),
            }
        }
    }
}

impl Command {
    /// What is to be said next, and what is owed after it.
    fn next_word(&self) -> Option<(Head, Owed)> {
        let head = Head { token: self.token, ..Head::default() };
        Some(match self.owed {
            Owed::Nothing => return None,
            Owed::Started | Owed::Both => {
                let next = if self.owed == Owed::Both { Owed::Ended } else { Owed::Nothing };
                (Head { kind: kind::STARTED, value: self.pid.max(0), ..head }, next)
            }
            Owed::Ended => {
                let head =
                    Head { kind: kind::ENDED, value: self.status, usage: self.usage, ..head };
                (head, Owed::Nothing)
            }
            Owed::Refused(refusal, errno) => {
                // Its process is reaped first: the entry is needed to know whose that was.
                if self.pid > 0 {
                    return None;
                }
                (Head { kind: kind::REFUSED, value: errno, extra: refusal, ..head }, Owed::Nothing)
            }
        })
    }
}

fn settled(command: &mut Command, progress: Progress) {
    command.owed = match progress {
        Progress::Pending | Progress::Executed => Owed::Started,
        Progress::Failed(step, errno) => {
            let refusal = match step {
                Step::Descriptors => Refusal::Descriptors,
                Step::Directory => Refusal::Directory,
                Step::Execute => Refusal::Execute,
                Step::Filter => Refusal::Process,
            };
            Owed::Refused(refusal as u32, errno.0)
        }
    };
}

fn can_answer() -> bool {
    let mut out = [libc::pollfd { fd: CHANNEL, events: libc::POLLOUT, revents: 0 }];
    matches!(raw::poll(&mut out, 0), Ok(1))
}

/// There is room for it: that was asked before the request was read.
fn refused(token: u64, refusal: Refusal, errno: i32) {
    let head =
        Head { kind: kind::REFUSED, token, value: errno, extra: refusal as u32, ..Head::default() };
    let _ = raw::send_now(CHANNEL, &head.encode());
}

fn done(asked: &Head, errno: i32, fd: i32) {
    let head = Head { kind: kind::DONE, token: asked.token, value: errno, ..Head::default() };
    // There is room for it, so that this does not wait.
    let _ = raw::send_with_fd(CHANNEL, &head.encode(), fd);
}

/// What is asked of files. As any process of the sandbox may, and nothing more: init is under the same
/// rules.
fn answer(head: &Head, strings: &[u8], broker: Option<&mut Broker<'_>>) {
    let result = on_files(head, strings, broker);
    match result {
        Ok(fd) => {
            done(head, 0, fd);
            if fd >= 0 {
                raw::close(fd);
            }
        }
        Err(errno) => done(head, errno.0, -1),
    }
}

/// An absolute path, and what follows it.
pub(crate) fn path(strings: &[u8]) -> raw::Result<(&CStr, &[u8])> {
    let invalid = Errno(libc::EINVAL);
    let path = CStr::from_bytes_until_nul(strings).map_err(|_| invalid)?;
    if path.to_bytes().first() != Some(&b'/') {
        return Err(invalid);
    }
    Ok((path, strings.get(path.to_bytes_with_nul().len()..).unwrap_or_default()))
}

fn on_files(head: &Head, strings: &[u8], broker: Option<&mut Broker<'_>>) -> raw::Result<i32> {
    let (first, rest) = path(strings)?;
    let here = libc::AT_FDCWD;
    let nothing = |()| -1;
    match head.kind {
        kind::OPEN => open(first, head.value, head.extra, broker),
        kind::MAKE_DIRECTORY => match broker {
            Some(broker) => broker.mkdir_own(first, head.extra & 0o777),
            None => raw::mkdirat(here, first, head.extra & 0o777),
        }
        .map(nothing),
        kind::REMOVE => {
            let flags = if head.value != 0 { libc::AT_REMOVEDIR } else { 0 };
            remove(first, flags, broker).map(nothing)
        }
        kind::RENAME => rename(first, path(rest)?.0, broker).map(nothing),
        kind::CHMOD => match broker {
            Some(broker) => broker.chmod_own(first, head.extra & 0o777),
            None => chmod(here, first, head.extra & 0o777),
        }
        .map(nothing),
        kind::PUT => {
            let (draft, bytes) = path(rest)?;
            let bytes = bytes.get(..head.extra as usize).ok_or(Errno(libc::EINVAL))?;
            put(first, draft, bytes, broker).map(nothing)
        }
        _ => Err(Errno(libc::ENOSYS)),
    }
}

fn open(path: &CStr, flags: i32, mode: u32, broker: Option<&mut Broker<'_>>) -> raw::Result<i32> {
    const FLAGS: i32 = libc::O_ACCMODE
        | libc::O_CREAT
        | libc::O_EXCL
        | libc::O_TRUNC
        | libc::O_APPEND
        | libc::O_DIRECTORY
        | libc::O_NOFOLLOW
        | libc::O_PATH;
    // Neither a terminal nor a pipe without a reader may hold us up.
    let always = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    let path_only = flags & libc::O_PATH != 0;
    let flags = if path_only { libc::O_CLOEXEC } else { always } | (flags & FLAGS);
    let mode = if flags & libc::O_CREAT != 0 { mode & 0o777 } else { 0 };
    let changes = flags & (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) != 0;
    if let Some(broker) = broker.filter(|_| changes && !path_only) {
        return broker.open_own(path, flags, mode);
    }
    // `/proc/self/fd` would be init's.
    raw::openat2_once(libc::AT_FDCWD, path, flags, mode, resolve::NO_MAGICLINKS)
}

fn remove(path: &CStr, flags: i32, broker: Option<&mut Broker<'_>>) -> raw::Result<()> {
    match broker {
        Some(broker) => broker.unlink_own(path, flags),
        None => raw::unlinkat(libc::AT_FDCWD, path, flags),
    }
}

fn rename(from: &CStr, to: &CStr, broker: Option<&mut Broker<'_>>) -> raw::Result<()> {
    match broker {
        Some(broker) => broker.rename_own(from, to, 0),
        None => raw::renameat(libc::AT_FDCWD, from, libc::AT_FDCWD, to),
    }
}

/// Whoever reads the file sees the old bytes or the new ones. What is there keeps its mode, has to be a
/// regular file, and such as may be written.
fn put(
    path: &CStr,
    draft: &CStr,
    bytes: &[u8],
    mut broker: Option<&mut Broker<'_>>,
) -> raw::Result<()> {
    let mode = match open(path, libc::O_PATH | libc::O_NOFOLLOW, 0, broker.as_deref_mut()) {
        Ok(there) => {
            let mode = raw::file_mode(there);
            raw::close(there);
            let mode = mode?;
            if mode & libc::S_IFMT != libc::S_IFREG {
                return Err(Errno(libc::EINVAL));
            }
            let flags = libc::O_WRONLY | libc::O_NOFOLLOW;
            raw::close(open(path, flags, 0, broker.as_deref_mut())?);
            mode & 0o777
        }
        Err(Errno(libc::ENOENT)) => 0o644,
        Err(errno) => return Err(errno),
    };
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let file = open(draft, flags, mode, broker.as_deref_mut())?;
    let mut rest = bytes;
    let mut written = Ok(());
    while !rest.is_empty() && written.is_ok() {
        written = match raw::write(file, rest) {
            Ok(0) => Err(Errno(libc::EIO)),
            Ok(n) => {
                rest = rest.get(n..).unwrap_or_default();
                Ok(())
            }
            Err(Errno(libc::EINTR)) => Ok(()),
            Err(errno) => Err(errno),
        };
    }
    raw::close(file);
    let done = written.and_then(|()| rename(draft, path, broker.as_deref_mut()));
    if done.is_err() {
        let _ = remove(draft, 0, broker);
    }
    done
}

/// Never through a link: those of the process file system lead out of the view, and one that a command
/// puts there meanwhile would be followed.
pub(crate) fn chmod(dir: i32, path: &CStr, mode: u32) -> raw::Result<()> {
    let open = |flags: i32| {
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | flags;
        raw::openat2_once(dir, path, flags, 0, resolve::NO_MAGICLINKS)
    };
    let fd = open(libc::O_PATH)?;
    let done = raw::chmod_open(fd, mode);
    raw::close(fd);
    if done != Err(Errno(libc::ENOSYS)) {
        return done;
    }
    // An older kernel: only of what may be read or written.
    let wait = libc::O_NONBLOCK | libc::O_NOCTTY;
    let fd = open(libc::O_RDONLY | wait).or_else(|_| open(libc::O_WRONLY | wait))?;
    let done = raw::fchmod(fd, mode);
    raw::close(fd);
    done
}

/// Nothing that comes there concerns a sandbox that stays.
fn ignore(socket: i32) {
    let mut message = [0u8; 2];
    while let Ok((n, fd)) = raw::recv_with_fd(socket, &mut message, libc::MSG_DONTWAIT) {
        if let Some(fd) = fd {
            raw::close(fd);
        }
        if n == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        let head = Head {
            kind: kind::ENDED,
            token: u64::MAX - 3,
            value: -7,
            extra: 9,
            counts: Counts { candidates: 1, arguments: 2, variables: 3 },
            usage: Usage { user_us: 4, system_us: 5, peak_kib: 6 },
            of: 8,
        };
        assert_eq!(Head::decode(&head.encode()), Some(head));
        assert_eq!(Head::decode(&head.encode()[..HEAD - 1]), None);
    }
}
