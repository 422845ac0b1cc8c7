//! The user's terminal: finding it, and lending it out raw.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use ringfence_policy::Pty;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::termios::{self, OptionalActions, Termios, Winsize};

/// How the three standard descriptors reach the command.
#[derive(Debug)]
pub struct Io {
    pub(super) terminal: Option<Tty>,
    pty: [bool; 3],
    /// Whether stdin and stdout themselves are relayed, instead of the terminal's two directions.
    pub(super) redirected: [bool; 2],
}

impl Io {
    /// Looks at descriptors 0, 1 and 2.
    ///
    /// - `Auto`: those that are the user's terminal are replaced. One that is another terminal stays
    ///   as it is: whoever redirected to it meant it, and the kernel lets nobody type into a
    ///   terminal that does not control him.
    /// - `Always`: all three, terminal or not; stdin is relayed into it and its output to stdout.
    /// - `Never`: none. A real terminal then reaches the command, and only the system call filter
    ///   keeps it from typing into it.
    pub fn new(mode: Pty) -> Self {
        if mode == Pty::Never {
            return Self { terminal: None, pty: [false; 3], redirected: [false; 2] };
        }
        let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let devices = stdio.map(device);
        let first = devices.iter().position(Option::is_some);
        let terminal = first.and_then(|i| Tty::open(stdio[i]).ok());
        let is_terminal = match (first, &terminal) {
            (Some(first), Some(_)) => devices.map(|d| d == devices[first]),
            _ => [false; 3],
        };
        if mode == Pty::Always {
            let redirected = [!is_terminal[0], !is_terminal[1]];
            return Self { terminal, pty: [true; 3], redirected };
        }
        Self { terminal, pty: is_terminal, redirected: [false; 2] }
    }

    /// Which of 0, 1 and 2 are to be the sandbox's own terminal.
    pub fn pty(&self) -> [bool; 3] {
        self.pty
    }

    pub fn wants_pty(&self) -> bool {
        self.pty.contains(&true)
    }

    /// What the command writes to the terminal is not all that gets there: its stdout goes to another
    /// program, which may write to the terminal itself.
    pub(super) fn shares_output(&self) -> bool {
        !self.pty[1]
    }

    /// An interactive run: the command owns the keyboard from the start.
    pub(super) fn is_interactive(&self) -> bool {
        self.pty[0] && self.pty[1]
    }
}

/// The device number, if it is a terminal.
fn device(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let is_tty =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && termios::isatty(fd);
    is_tty.then_some(stat.st_rdev as u64)
}

/// The user's terminal, open for both directions.
#[derive(Debug)]
pub(super) struct Tty {
    fd: OwnedFd,
    /// Whether waiting on the descriptor is up to us. The ones we were given are shared with the
    /// user's shell, so their flags are not ours to change.
    pub(super) nonblocking: bool,
    raw: Option<Raw>,
}

impl Tty {
    fn open(given: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // `/dev/tty` opens also where the device node belongs to somebody else (after `su`).
        let own = if termios::tcgetpgrp(given).is_ok() {
            rustix::fs::open("/dev/tty", flags, Mode::empty())
        } else {
            Err(rustix::io::Errno::NOTTY)
        };
        let own = own.or_else(|_| {
            use std::os::fd::AsRawFd;
            rustix::fs::open(format!("/proc/self/fd/{}", given.as_raw_fd()), flags, Mode::empty())
        });
        Ok(match own {
            Ok(fd) => Self { fd, nonblocking: true, raw: None },
            Err(_) => Self {
                fd: rustix::io::fcntl_dupfd_cloexec(given, 3)?,
                nonblocking: false,
                raw: None,
            },
        })
    }

    pub(super) fn settings(&self) -> io::Result<Termios> {
        Ok(termios::tcgetattr(&self.fd)?)
    }

    pub(super) fn size(&self) -> io::Result<Winsize> {
        Ok(termios::tcgetwinsize(&self.fd)?)
    }

    /// Whether we may read. A terminal that does not control us has no say in it.
    pub(super) fn in_foreground(&self) -> bool {
        match termios::tcgetpgrp(&self.fd) {
            Ok(group) => group == rustix::process::getpgrp(),
            // The foreground group is in a pid namespace that we do not see.
            Err(rustix::io::Errno::OPNOTSUPP) => false,
            Err(_) => true,
        }
    }

    /// Without `cooked_output`, output is raw too.
    pub(super) fn make_raw(&mut self, cooked_output: bool) -> io::Result<()> {
        match &mut self.raw {
            Some(raw) if raw.cooked_output == cooked_output => Ok(()),
            // Anew: cheaper to understand than changing what is lent, and rare.
            _ => {
                self.raw = None;
                self.raw = Some(Raw::new(&self.fd, cooked_output)?);
                Ok(())
            }
        }
    }

    pub(super) fn restore(&mut self) {
        self.raw = None;
    }
}

impl AsFd for Tty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What has to be put back. Outside of [`Raw`], because the release build aborts on panic: then no
/// destructor runs, only the panic hook.
static LENT: Mutex<Option<Lent>> = Mutex::new(None);

struct Lent {
    tty: OwnedFd,
    before: Termios,
    ours: Termios,
}

/// While this lives, the terminal is raw.
#[derive(Debug)]
struct Raw {
    cooked_output: bool,
}

impl Raw {
    fn new(tty: &OwnedFd, cooked_output: bool) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // First, so that the message is readable.
                give_back();
                next(info);
            }));
        });
        let before = termios::tcgetattr(tty)?;
        let mut raw = before.clone();
        raw.make_raw();
        if cooked_output {
            raw.output_modes = before.output_modes;
        }
        let dup = rustix::io::fcntl_dupfd_cloexec(tty, 3)?;
        // "Now": what was typed ahead must not be thrown away.
        termios::tcsetattr(tty, OptionalActions::Now, &raw)?;
        // Read back, since the kernel may drop what the device cannot do.
        let ours = termios::tcgetattr(tty).unwrap_or(raw);
        *LENT.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Lent { tty: dup, before, ours });
        Ok(Self { cooked_output })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        give_back();
    }
}

/// Restores the terminal, unless somebody else has set it since: then it is theirs (the user's shell
/// after a SIGSTOP, or another ringfence on the same terminal that ended first).
fn give_back() {
    let lent = match LENT.try_lock() {
        Ok(mut lent) => lent.take(),
        Err(std::sync::TryLockError::Poisoned(lent)) => lent.into_inner().take(),
        Err(std::sync::TryLockError::WouldBlock) => None,
    };
    let Some(lent) = lent else { return };
    if termios::tcgetattr(&lent.tty).is_ok_and(|now| same(&now, &lent.ours)) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(&lent.tty, OptionalActions::Now, &lent.before);
    }
}

pub(super) fn same(a: &Termios, b: &Termios) -> bool {
    a.input_modes == b.input_modes
        && a.output_modes == b.output_modes
        && a.local_modes == b.local_modes
        && a.control_modes == b.control_modes
}
