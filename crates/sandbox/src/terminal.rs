//! The user's terminal, signals and deadlines while a sandbox runs.
//!
//! # Which descriptor gets what
//!
//! Every one of stdin, stdout and stderr that is the user's terminal is replaced by a terminal of
//! the sandbox's own, whose master the supervisor holds; every other descriptor stays what it is.
//! So pipes stay pipes, byte for byte, and no descriptor of the real terminal gets inside: there is
//! no way to type into it, to read what is typed to others, or to change its settings. Init always
//! starts a session of its own, so `/dev/tty` inside is the inner terminal or nothing.
//!
//! # Who reads the keyboard
//!
//! Two readers of one terminal steal each other's keys, and `ringfence -- ls | less` has two. So the
//! supervisor reads only what the command asks for:
//!
//! - stdin and stdout both are the terminal: the command starts in the foreground of the inner
//!   terminal, the real one is raw, every key goes inside (Ctrl-C and Ctrl-Z too: the inner line
//!   discipline makes signals of them).
//! - otherwise (`ls | less`, `cmd 2>log >out`, `echo x | vim -`), or when ringfence itself is in the
//!   background: the command starts in the *background* of the inner terminal and the real terminal
//!   is not touched. Output flows. The moment the command reads from its terminal or changes its
//!   modes, the kernel stops it with SIGTTIN or SIGTTOU, init reports that, and the supervisor takes
//!   the real terminal and lets it go on in the foreground. When ringfence is in the background, it
//!   stops itself with the same signal instead, so that the user's shell says so, as it would
//!   without a sandbox.
//!
//! | typed | what happens |
//! |---|---|
//! | `ringfence -- vim` | all three are inner; raw from the start |
//! | `ringfence -- ls \| less` | stdout is the pipe; the keyboard stays with `less` |
//! | `ringfence -- python3 \| tee log` | stdout is the pipe; raw from the first read on |
//! | `echo x \| ringfence -- vim -` | stdin is the pipe; raw as soon as vim sets its modes |
//! | `ringfence -- cmd 2>log` | stderr is the file; else as the first line |
//! | `ringfence -- cmd &` | output only; a read stops the job (tty input); `fg` brings it forward |
//! | no terminal (CI) | nothing is relayed, signals and deadlines only |
//!
//! # Job control
//!
//! The kernel discards SIGTSTP for orphaned process groups, so the command must not lead its session:
//! init leads it and the command has a process group of its own in it. When the command stops, init
//! says so; the supervisor shows the remaining output, gives the terminal back and stops itself; on
//! SIGCONT it takes the terminal again (size and settings are read anew) and init continues the
//! command's group.
//!
//! The same layout serves without a terminal: SIGTSTP is forwarded, the command's stop stops the
//! supervisor.
//!
//! # What init has to do
//!
//! Before it forks the command, with all signals blocked:
//!
//! 1. `setsid()`, always.
//! 2. With a terminal: open `/dev/ptmx` and its peer in the sandbox's own devpts, `TIOCSCTTY` the
//!    peer, send the master ([`Event::Terminal`]), wait for [`Child::resume`] and remember its
//!    [`Ground`]; no other message comes before it. Keep the peer open until the end.
//! 3. Fork. The command does `setpgid(0, 0)` and init does `setpgid(command, command)` (whichever
//!    runs first wins), and on [`Ground::Front`] the command does `tcsetpgrp(peer, getpid())` while
//!    SIGTTOU is still blocked. Then the peer becomes 0, 1, 2 as asked, mask empty, `execve`.
//!
//! Afterwards, with all signals still blocked:
//!
//! - `wait4(-1, WNOHANG | WUNTRACED)`: the command stopped: send [`Event::Stopped`].
//! - resume to the front: `tcsetpgrp(peer, getpgid(command))`, then SIGCONT to that group.
//! - resume to the back: `tcsetpgrp(peer, getpgid(init))`, then SIGCONT to the command's group.
//! - signals go to the command's group, except SIGUSR1 and SIGUSR2, which go to the command alone:
//!   their default action would kill children that nobody meant.
//! - the supervisor's end of the channel closed, or the supervisor dead: kill all.
#![cfg(target_os = "linux")]

mod jailed;
mod outer;
mod relay;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ringfence_policy::Pty;
use ringfence_sys::signal::{self, Alarm, Blocked, Received, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

pub use outer::Io;
use relay::Relay;

/// Signals that the supervisor takes for the command.
const TAKEN: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// Blocked besides: with them blocked, the supervisor may write to the terminal and set it right
/// while it is in the background.
const HELD: [i32; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// So many of the same signal ...
const INSIST_COUNT: u32 = 3;
/// ... each this soon after the one before, and the sandbox is killed: a user who keeps pressing
/// Ctrl-C means it.
const INSIST_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),
    #[error("cannot wait for the sandbox: {0}")]
    Wait(#[source] io::Error),
    #[error("cannot read from the sandbox's init: {0}")]
    Control(#[source] io::Error),
    #[error("cannot set up the sandbox's terminal: {0}")]
    Terminal(#[source] io::Error),
}

/// Where in its terminal the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// It may read: the user's keys are relayed.
    Front,
    /// Reading or changing modes stops it.
    Back,
}

/// What init reports.
#[derive(Debug)]
pub enum Event {
    /// The master of the terminal that it made; it waits for [`Child::resume`].
    Terminal(OwnedFd),
    /// The command was stopped by this signal.
    Stopped(i32),
    /// The command changed a private copy of a file; the directory of these.
    Copies(OwnedFd),
    /// Nothing will come any more.
    Closed,
}

/// The supervisor's hold on a sandbox's init.
///
/// Sending never fails: an init that cannot be reached is ending, which the pidfd tells.
pub trait Child {
    /// Readable when there may be an event.
    fn control_fd(&self) -> BorrowedFd<'_>;
    /// Readable when init, and with it the sandbox, has ended.
    fn pidfd(&self) -> BorrowedFd<'_>;
    /// The next event that has arrived, if any; does not block.
    fn read_event(&mut self) -> io::Result<Option<Event>>;
    /// Signals the command's process group (SIGUSR1 and SIGUSR2: the command alone).
    fn signal(&mut self, signal: i32);
    /// Signals every process of the sandbox.
    fn signal_all(&mut self, signal: i32);
    /// Lets the command go on, at first and after a stop. Without a terminal the ground is nothing.
    fn resume(&mut self, ground: Ground);
    /// Kills init, and so the sandbox.
    fn kill(&mut self);
}

/// When the sandbox must be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// SIGTERM to all of it at this moment,
    pub at: Instant,
    /// SIGKILL this much later.
    pub grace: Duration,
}

impl Deadline {
    pub fn after(timeout: Duration, grace: Duration) -> Option<Self> {
        Instant::now().checked_add(timeout).map(|at| Self { at, grace })
    }
}

/// What the supervisor did of its own accord; the command's status is the jail's to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The deadline passed before the end.
    pub timed_out: bool,
    /// It had to be killed: after the grace, or because the user insisted.
    pub killed: bool,
}

/// The exit code for a wait status: the command's own, or 128+n for the signal that ended it.
pub fn exit_code(wait_status: i32) -> i32 {
    if libc::WIFSIGNALED(wait_status) {
        128 + libc::WTERMSIG(wait_status)
    } else {
        libc::WEXITSTATUS(wait_status)
    }
}

/// Whether a run with this setting and these descriptors needs a terminal of its own.
pub fn wants_pty(mode: Pty) -> bool {
    Io::new(mode).wants_pty()
}

/// The signals of this process, taken for the sandbox. Make it before the sandbox is made, so that
/// none is lost in between, and keep it until the exit code is known: dropping it lets what is still
/// pending act.
///
/// Signals that are ignored at this moment (`nohup`, a shell's `&`) are left alone: the command
/// inherits that, as it would without a sandbox.
#[derive(Debug)]
pub struct Signals {
    taken: Vec<i32>,
    _blocked: Blocked,
}

impl Signals {
    pub fn take() -> Self {
        signal::keep_exit_statuses();
        // A blocked signal is queued even if it is ignored, so those must not be in the set.
        let ignorable = |s: &i32| *s != libc::SIGCONT && *s != libc::SIGWINCH;
        let taken: Vec<i32> =
            TAKEN.into_iter().filter(|s| !ignorable(s) || !signal::is_ignored(*s)).collect();
        let mut all = taken.clone();
        all.extend(HELD);
        Self { taken, _blocked: Blocked::new(&all) }
    }
}

/// Stays with the sandbox until it has ended: relays its terminal, hands on signals, keeps the
/// deadline, stops and continues with it. Returns when init has ended and its output is written.
pub fn supervise(
    child: &mut dyn Child,
    io: Io,
    signals: &Signals,
    deadline: Option<Deadline>,
) -> Result<Outcome, Error> {
    let signals = SignalFd::new(&signals.taken).map_err(Error::Signals)?;
    let held_back = io.wants_pty().then(Vec::new);
    Supervisor {
        child,
        signals,
        io: Some(io),
        relay: None,
        held_back,
        control_open: true,
        asked_to_stop: false,
        insist: Insist::default(),
        clock: deadline.map_or(Clock::Free, Clock::Until),
        outcome: Outcome::default(),
    }
    .run()
}

/// How far the deadline has come.
#[derive(Clone, Copy, Debug)]
enum Clock {
    Free,
    Until(Deadline),
    Grace(Instant),
}

#[derive(Debug, Default)]
struct Insist {
    signal: i32,
    count: u32,
    last: Option<Instant>,
}

impl Insist {
    /// True when this one means: now.
    fn again(&mut self, signal: i32, now: Instant) -> bool {
        let soon = self.last.is_some_and(|l| now.duration_since(l) <= INSIST_WITHIN);
        self.count = if soon && self.signal == signal { self.count + 1 } else { 1 };
        self.signal = signal;
        self.last = Some(now);
        self.count >= INSIST_COUNT
    }
}

struct Supervisor<'a> {
    child: &'a mut dyn Child,
    signals: SignalFd,
    /// Until the terminal came.
    io: Option<Io>,
    relay: Option<Relay>,
    /// What is to be sent once init has its terminal and listens; none when it listens already.
    held_back: Option<Vec<(Whom, i32)>>,
    control_open: bool,
    /// SIGTSTP came from outside: whoever else was meant has got it.
    asked_to_stop: bool,
    insist: Insist,
    clock: Clock,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Whom {
    Command,
    All,
}

/// What a round of polling found.
#[derive(Clone, Copy, Debug)]
struct Ready {
    signals: bool,
    ended: bool,
    control: bool,
    relay: relay::Ready,
}

impl Supervisor<'_> {
    fn run(mut self) -> Result<Outcome, Error> {
        loop {
            let ready = self.wait()?;
            if ready.signals {
                while let Some(received) = self.signals.next().map_err(Error::Signals)? {
                    self.on_signal(received);
                }
            }
            self.keep_time();
            if ready.control {
                self.on_control()?;
            }
            if let Some(relay) = &mut self.relay {
                match relay.pump(ready.relay) {
                    relay::Pumped::On => {}
                    relay::Pumped::HungUp => self.hang_up(),
                    relay::Pumped::LostForeground => {
                        relay.release();
                        self.child.resume(Ground::Back);
                    }
                }
            }
            // Init closed its end: it is ending. With a relay there may be output to fetch still;
            // without one, the caller can go on and waits for the rest itself.
            if ready.ended || (!self.control_open && self.relay.is_none()) {
                if let Some(relay) = &mut self.relay {
                    relay.finish();
                }
                return Ok(self.outcome);
            }
        }
    }

    fn wait(&self) -> Result<Ready, Error> {
        let timeout = match self.clock {
            Clock::Free => None,
            Clock::Until(d) => Some(d.at),
            Clock::Grace(at) => Some(at),
        }
        .map(|at| at.saturating_duration_since(Instant::now()))
        .and_then(|d| rustix::event::Timespec::try_from(d).ok());

        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.child.pidfd(), PollFlags::IN),
            // A closed channel reports its end for ever, so a place holder stands in for it.
            if self.control_open {
                PollFd::from_borrowed_fd(self.child.control_fd(), PollFlags::IN)
            } else {
                PollFd::new(&self.signals, PollFlags::empty())
            },
            PollFd::new(&self.signals, PollFlags::empty()),
            PollFd::new(&self.signals, PollFlags::empty()),
            PollFd::new(&self.signals, PollFlags::empty()),
        ];
        let mut used = 3;
        if let Some(relay) = &self.relay {
            for (slot, fd) in fds[3..].iter_mut().zip(relay.interest()) {
                *slot = fd;
            }
            used = fds.len();
        }
        match rustix::event::poll(&mut fds[..used], timeout.as_ref()) {
            // A stop and continue interrupts even though every signal is blocked.
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::Wait(e.into())),
        }
        Ok(Ready {
            signals: !fds[0].revents().is_empty(),
            ended: !fds[1].revents().is_empty(),
            control: self.control_open && !fds[2].revents().is_empty(),
            relay: relay::Ready::new([fds[3].revents(), fds[4].revents(), fds[5].revents()]),
        })
    }

    fn send(&mut self, whom: Whom, signal: i32) {
        if let Some(held) = &mut self.held_back {
            held.push((whom, signal));
            return;
        }
        match whom {
            Whom::Command => self.child.signal(signal),
            Whom::All => self.child.signal_all(signal),
        }
    }

    fn kill(&mut self) {
        self.outcome.killed = true;
        self.clock = Clock::Free;
        self.child.kill();
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        match self.clock {
            Clock::Until(d) if now >= d.at => {
                self.outcome.timed_out = true;
                if d.grace.is_zero() {
                    return self.kill();
                }
                self.send(Whom::All, libc::SIGTERM);
                // What is stopped could not obey.
                self.send(Whom::All, libc::SIGCONT);
                self.clock = now.checked_add(d.grace).map_or(Clock::Free, Clock::Grace);
            }
            Clock::Grace(at) if now >= at => self.kill(),
            _ => {}
        }
    }

    fn on_signal(&mut self, received: Received) {
        match received.signal {
            libc::SIGCONT => self.on_continue(),
            libc::SIGWINCH => match &mut self.relay {
                // The kernel tells the foreground of the inner terminal.
                Some(relay) => relay.sync_size(),
                None => self.send(Whom::Command, libc::SIGWINCH),
            },
            libc::SIGTSTP => {
                self.asked_to_stop = true;
                self.send(Whom::Command, libc::SIGTSTP);
            }
            // SIGHUP is no insisting: it makes servers read their configuration again.
            signal @ (libc::SIGINT | libc::SIGTERM | libc::SIGQUIT)
                if self.insist.again(signal, Instant::now()) =>
            {
                self.kill();
            }
            signal => self.send(Whom::Command, signal),
        }
    }

    fn on_control(&mut self) -> Result<(), Error> {
        while let Some(event) = self.child.read_event().map_err(Error::Control)? {
            match event {
                Event::Terminal(master) => self.on_terminal(master)?,
                Event::Stopped(signal) => self.on_stopped(signal),
                // Kept where it was read: whoever supervises does not look into them.
                Event::Copies(_) => {}
                Event::Closed => {
                    self.control_open = false;
                    break;
                }
            }
        }
        Ok(())
    }

    fn on_terminal(&mut self, master: OwnedFd) -> Result<(), Error> {
        // Init makes one terminal; another one has no user to talk to.
        let Some(io) = self.io.take() else { return Ok(()) };
        let mut relay = Relay::new(master, io).map_err(Error::Terminal)?;
        let ground = relay.claim();
        self.relay = Some(relay);
        self.child.resume(ground);
        for (whom, signal) in self.held_back.take().unwrap_or_default() {
            self.send(whom, signal);
        }
        Ok(())
    }

    /// The command stopped: because it wants the terminal, or because it was told to.
    fn on_stopped(&mut self, signal: i32) {
        let wants_terminal = signal == libc::SIGTTIN || signal == libc::SIGTTOU;
        let mut whole_job = false;
        if let Some(relay) = &mut self.relay {
            if wants_terminal {
                relay.demand();
                if relay.outer_in_front() {
                    let ground = relay.claim();
                    return self.child.resume(ground);
                }
            }
            // In front, the user stops the whole job (a script around us too), as the terminal does
            // when it is not raw. Else only ourselves: a sandbox must not stop who merely started it.
            whole_job = relay.in_front() && signal == libc::SIGTSTP && !self.asked_to_stop;
            relay.show_rest();
            relay.release();
        }
        self.asked_to_stop = false;
        if stop_self(signal, whole_job, self.clock) {
            // SIGCONT waits in the descriptor and does the rest.
            return;
        }
        // Nobody could continue us (an orphaned process group), so the kernel did not stop us.
        if wants_terminal {
            // A plain process would get an error from its read; the nearest is the end of its input.
            if let Some(relay) = &mut self.relay {
                relay.end_input();
            }
            self.child.resume(Ground::Front);
        } else {
            self.on_continue();
        }
    }

    fn on_continue(&mut self) {
        self.asked_to_stop = false;
        if self.held_back.is_some() {
            return;
        }
        let ground = match &mut self.relay {
            Some(relay) => {
                relay.sync_size();
                relay.claim()
            }
            None => Ground::Front,
        };
        self.child.resume(ground);
    }

    /// The user's terminal is gone.
    fn hang_up(&mut self) {
        // Dropping the master hangs the inner terminal up: reads end, writes fail.
        self.relay = None;
        self.send(Whom::Command, libc::SIGHUP);
        self.send(Whom::Command, libc::SIGCONT);
    }
}

/// Stops this process as `signal` would stop it. True when it was stopped and continued since.
fn stop_self(signal: i32, whole_job: bool, clock: Clock) -> bool {
    // A stopped supervisor keeps no deadline, so have it woken.
    let wake_at = match clock {
        Clock::Free => None,
        Clock::Until(d) => Some(d.at),
        Clock::Grace(at) => Some(at),
    };
    let _alarm =
        wake_at.and_then(|at| Alarm::after(at.saturating_duration_since(Instant::now())).ok());
    if let (true, Some(named)) = (whole_job, Signal::from_named_raw(signal)) {
        // Blocked here, so the others get it first. One that we may not signal is not stopped.
        let _ = rustix::process::kill_current_process_group(named);
    }
    signal::raise(signal);
    signal::is_pending(libc::SIGCONT)
}
