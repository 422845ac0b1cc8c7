//! Bytes between the user's terminal and the sandbox's, through two bounded buffers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize};

use super::Ground;
use super::outer::{Io, Tty, same};

/// As much as the kernel keeps for a pty in one direction; more would only delay Ctrl-C.
const BUFFER: usize = 64 * 1024;
/// What a pipe takes without blocking once it polls writable (`PIPE_BUF`).
const UNBLOCKED_CHUNK: usize = 4096;
/// At the end, or before a stop, output is written as long as the terminal takes some this often.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// Output that is still produced at the end (by what outlived init) is not waited for longer.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Nor that of processes which go on while the command is stopped: the user waits for the prompt.
const STOP_LIMIT: Duration = Duration::from_millis(300);
/// Of a terminal that nobody looks at.
const DEFAULT_SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

const GONE: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

/// Which of master, input, output are ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    master: PollFlags,
    input: PollFlags,
    output: PollFlags,
}

impl Ready {
    pub(super) fn new([master, input, output]: [PollFlags; 3]) -> Self {
        Self { master, input, output }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    On,
    HungUp,
    /// Somebody took the foreground from us without stopping us.
    LostForeground,
}

/// The user's side: the terminal, or, where a pty is forced on something else, stdin and stdout.
#[derive(Debug)]
struct Outer {
    terminal: Option<Tty>,
    /// Instead of the terminal.
    input: Option<OwnedFd>,
    /// Instead of the terminal.
    output: Option<OwnedFd>,
}

impl Outer {
    fn new(io: Io) -> io::Result<Self> {
        let dup =
            |wanted: bool, fd| wanted.then(|| rustix::io::fcntl_dupfd_cloexec(fd, 3)).transpose();
        let [input, output] = io.redirected;
        Ok(Self {
            terminal: io.terminal,
            input: dup(input, rustix::stdio::stdin())?,
            output: dup(output, rustix::stdio::stdout())?,
        })
    }

    fn input(&self) -> BorrowedFd<'_> {
        match (&self.input, &self.terminal) {
            (Some(fd), _) => fd.as_fd(),
            (None, Some(tty)) => tty.as_fd(),
            (None, None) => rustix::stdio::stdin(),
        }
    }

    fn output(&self) -> BorrowedFd<'_> {
        match (&self.output, &self.terminal) {
            (Some(fd), _) => fd.as_fd(),
            (None, Some(tty)) => tty.as_fd(),
            (None, None) => rustix::stdio::stdout(),
        }
    }

    /// The keys come from the terminal.
    fn reads_terminal(&self) -> bool {
        self.input.is_none() && self.terminal.is_some()
    }

    fn write_never_blocks(&self) -> bool {
        self.output.is_none() && self.terminal.as_ref().is_some_and(|tty| tty.nonblocking)
    }

    fn in_foreground(&self) -> bool {
        !self.reads_terminal() || self.terminal.as_ref().is_none_or(Tty::in_foreground)
    }
}

#[derive(Debug)]
pub(super) struct Relay {
    master: OwnedFd,
    master_open: bool,
    outer: Outer,
    input_open: bool,
    inward: Buffer,
    outward: Buffer,
    /// The command has a claim on the keyboard: it is interactive, or asked for it.
    claimed: bool,
    /// The keyboard is relayed now.
    front: bool,
    /// Another program may write to the terminal while it is raw; see [`Relay::cooked_output`].
    shares_output: bool,
    /// The inner terminal's first settings, until the user's are copied.
    untouched: Option<Termios>,
    /// The last byte that went in, for [`Relay::end_input`].
    last_in: u8,
}

impl Relay {
    /// Makes the inner terminal look like the user's.
    pub(super) fn new(master: OwnedFd, io: Io) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        let claimed = io.is_interactive();
        let shares_output = io.shares_output();
        let outer = Outer::new(io)?;
        if outer.terminal.is_none() {
            termios::tcsetwinsize(&master, DEFAULT_SIZE)?;
        }
        // On Linux the master stands for its slave here.
        let untouched = Some(termios::tcgetattr(&master)?);
        let mut relay = Self {
            master,
            master_open: true,
            outer,
            input_open: true,
            inward: Buffer::new(),
            outward: Buffer::new(),
            claimed,
            front: false,
            shares_output,
            untouched,
            last_in: b'\n',
        };
        relay.sync_size();
        relay.copy_settings();
        Ok(relay)
    }

    /// Copies the size; the kernel sends SIGWINCH inside if it differs.
    pub(super) fn sync_size(&self) {
        if let Some(Ok(size)) = self.outer.terminal.as_ref().map(Tty::size) {
            // Cosmetic: a failure shows as a wrong size, nothing else.
            let _ = termios::tcsetwinsize(&self.master, size);
        }
    }

    /// Copies the settings: erase character, UTF-8, line ends. Not from the background, where they
    /// are what the user's shell needs to edit its command line; then it is done when we first come to
    /// the foreground, unless the command has made its own by then.
    fn copy_settings(&mut self) {
        if !self.outer.in_foreground() {
            return;
        }
        let (Some(tty), Some(untouched)) = (&self.outer.terminal, self.untouched.take()) else {
            return;
        };
        if let (Ok(theirs), Ok(ours)) = (tty.settings(), termios::tcgetattr(&self.master))
            && same(&ours, &untouched)
        {
            // Failing leaves the kernel's own defaults, which serve.
            let _ = termios::tcsetattr(&self.master, OptionalActions::Now, &theirs);
        }
    }

    /// The command asked for the terminal.
    pub(super) fn demand(&mut self) {
        self.claimed = true;
    }

    pub(super) fn outer_in_front(&self) -> bool {
        self.outer.in_foreground()
    }

    pub(super) fn in_front(&self) -> bool {
        self.front
    }

    /// Takes the user's terminal if the command has a claim on it and we are in the foreground.
    pub(super) fn claim(&mut self) -> Ground {
        // Whatever we believed about the modes is over after a stop, so start from what is.
        self.release();
        self.copy_settings();
        if self.claimed && self.outer_in_front() {
            self.front = self.make_raw();
        }
        if self.front { Ground::Front } else { Ground::Back }
    }

    fn make_raw(&mut self) -> bool {
        let cooked = self.cooked_output();
        match &mut self.outer {
            Outer { input: None, terminal: Some(tty), .. } => tty.make_raw(cooked).is_ok(),
            _ => true,
        }
    }

    /// In `ringfence -- python3 | tee log`, `tee` writes to the terminal too and needs its line ends
    /// to be translated. So there the output modes stay on, unless a full-screen program inside has
    /// switched its own off. What is translated twice gets a second carriage return, which does
    /// nothing.
    fn cooked_output(&self) -> bool {
        self.shares_output
            && termios::tcgetattr(&self.master)
                .is_ok_and(|t| t.output_modes.contains(OutputModes::OPOST))
    }

    /// Gives the user's terminal back.
    pub(super) fn release(&mut self) {
        self.front = false;
        if let Some(tty) = &mut self.outer.terminal {
            tty.restore();
        }
    }

    /// What to poll for: master, input, output.
    pub(super) fn interest(&self) -> [PollFd<'_>; 3] {
        let mut master = PollFlags::empty();
        master.set(PollFlags::IN, self.outward.has_room());
        master.set(PollFlags::OUT, !self.inward.is_empty());
        let mut input = PollFlags::empty();
        input.set(PollFlags::IN, self.reads());
        let mut output = PollFlags::empty();
        output.set(PollFlags::OUT, !self.outward.is_empty());
        // A closed descriptor reports its end whether asked or not, so ask another one instead.
        let idle = || PollFd::from_borrowed_fd(self.outer.output(), PollFlags::empty());
        [
            if self.master_open { PollFd::new(&self.master, master) } else { idle() },
            // Of a pipe, the end may only be seen once there is room for what comes before it.
            if self.input_open && (self.reads() || self.outer.reads_terminal()) {
                PollFd::from_borrowed_fd(self.outer.input(), input)
            } else {
                idle()
            },
            PollFd::from_borrowed_fd(self.outer.output(), output),
        ]
    }

    fn reads(&self) -> bool {
        self.front && self.input_open && self.inward.has_room()
    }

    pub(super) fn pump(&mut self, ready: Ready) -> Pumped {
        if self.reads() && !ready.input.is_empty() {
            match self.inward.fill(self.outer.input()) {
                Ok(0) if self.outer.reads_terminal() => return Pumped::HungUp,
                Ok(0) => self.end_input(),
                Err(Errno::IO) if !self.outer_in_front() => return Pumped::LostForeground,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Pumped::HungUp,
            }
        } else if self.outer.reads_terminal() && ready.input.intersects(GONE) {
            return Pumped::HungUp;
        }
        if self.master_open {
            if let Some(last) = self.inward.last() {
                self.last_in = last;
            }
            match self.inward.flush(self.master.as_fd(), BUFFER) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.inward.clear(),
            }
            if !ready.master.is_empty() {
                self.read_master();
            }
        }
        if self.write_outer(!ready.output.is_empty()).is_err() || ready.output.intersects(GONE) {
            return Pumped::HungUp;
        }
        Pumped::On
    }

    /// How much output came.
    fn read_master(&mut self) -> usize {
        if !self.master_open || !self.outward.has_room() {
            return 0;
        }
        match self.outward.fill(self.master.as_fd()) {
            Ok(n) if n > 0 => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // EIO: every holder of the slave is gone.
            Ok(_) | Err(_) => {
                self.master_open = false;
                0
            }
        }
    }

    fn write_outer(&mut self, ready: bool) -> Result<(), Errno> {
        if self.outward.is_empty() {
            return Ok(());
        }
        let most = match (self.outer.write_never_blocks(), ready) {
            (true, _) => BUFFER,
            (false, true) => UNBLOCKED_CHUNK,
            (false, false) => return Ok(()),
        };
        if self.front && self.shares_output {
            self.make_raw();
        }
        match self.outward.flush(self.outer.output(), most) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The end of input, as a user types it: the EOF character, twice if a line was begun (the first
    /// one only sends the line).
    pub(super) fn end_input(&mut self) {
        if !self.input_open {
            return;
        }
        self.input_open = false;
        let eof =
            termios::tcgetattr(&self.master).map_or(4, |t| t.special_codes[SpecialCodeIndex::VEOF]);
        let last = self.inward.last().unwrap_or(self.last_in);
        let eofs = [eof; 2];
        self.inward.push(&eofs[..if last == b'\n' { 1 } else { 2 }]);
    }

    /// Writes what the command has output until it stopped.
    pub(super) fn show_rest(&mut self) {
        self.drain(STOP_LIMIT);
    }

    fn drain(&mut self, limit: Duration) {
        let start = Instant::now();
        loop {
            let came = self.read_master();
            if came == 0 && self.outward.is_empty() {
                return;
            }
            let before = self.outward.len();
            if !self.wait_for_output() || self.write_outer(true).is_err() {
                return;
            }
            let stuck = came == 0 && self.outward.len() == before;
            if stuck || start.elapsed() > limit {
                return;
            }
        }
    }

    fn wait_for_output(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.outer.output(), PollFlags::OUT)];
        let patience = Timespec { tv_sec: DRAIN_PATIENCE.as_secs() as _, tv_nsec: 0 };
        let polled = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&patience)));
        polled.is_ok_and(|n| n > 0) && fds[0].revents().contains(PollFlags::OUT)
    }

    /// The command has ended: nothing more comes than what the master still holds.
    pub(super) fn finish(&mut self) {
        self.drain(END_LIMIT);
        self.release();
    }
}

/// Bytes on their way, at most [`BUFFER`] of them.
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the content: it is what the user types.
        f.debug_struct("Buffer").field("len", &self.len()).finish()
    }
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER].into_boxed_slice(), start: 0, end: 0 }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn has_room(&self) -> bool {
        self.len() < self.bytes.len()
    }

    fn last(&self) -> Option<u8> {
        if self.is_empty() { None } else { self.bytes.get(self.end - 1).copied() }
    }

    fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    fn make_room(&mut self) {
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// One read.
    fn fill(&mut self, from: BorrowedFd<'_>) -> Result<usize, Errno> {
        self.make_room();
        let n = rustix::io::read(from, &mut self.bytes[self.end..])?;
        self.end += n;
        Ok(n)
    }

    /// One write of at most `most` bytes.
    fn flush(&mut self, to: BorrowedFd<'_>, most: usize) -> Result<(), Errno> {
        if self.is_empty() {
            return Ok(());
        }
        let stop = self.end.min(self.start + most);
        self.start += rustix::io::write(to, &self.bytes[self.start..stop])?;
        if self.is_empty() {
            self.clear();
        }
        Ok(())
    }

    /// As many as fit.
    fn push(&mut self, bytes: &[u8]) {
        self.make_room();
        let n = bytes.len().min(self.bytes.len() - self.end);
        self.bytes[self.end..self.end + n].copy_from_slice(&bytes[..n]);
        self.end += n;
    }
}
