//! A command's terminal: made in the sandbox's own devpts, moved into the log of its output.
//!
//! The daemon holds the master; the slave is the command's and nobody else's. What the command writes is
//! bytes here and is never obeyed; what is typed reaches it through its own line discipline.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfence_api::TerminalSize;
use ringfence_sandbox::resident::{Head, kind};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::error::{Error, Kind};
use crate::exec::{Birth, Exec};
use crate::link::{self, End, Link, Started};
use crate::log::KEPT;
use crate::sandbox::{Live, Permit, Sandbox};
use crate::supervisor::Asked;

/// Moved at once.
const PIECE: usize = 16 << 10;

/// The type of its ends serves for waiting: a terminal can be waited for as a pipe can.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    output: tokio::sync::Mutex<pipe::Receiver>,
    keys: tokio::sync::Mutex<pipe::Sender>,
}

impl Terminal {
    /// A new one, of the sandbox's own.
    pub(crate) async fn open(link: &Link, size: TerminalSize) -> Result<Self, Error> {
        let head = Head { kind: kind::OPEN, value: libc::O_RDWR, ..Head::default() };
        let master = match link.files(head, &["/dev/ptmx"]).await? {
            Ok(Some(master)) => master,
            Ok(None) => return Err(Error::lost()),
            Err(errno) => {
                let text = ringfence_sys::raw::Errno(errno.raw_os_error()).to_string();
                return Err(Error::new(
                    Kind::Refused,
                    format!("the sandbox has no terminals: {text}"),
                ));
            }
        };
        let internal = |e: io::Error| Error::internal(format!("cannot open the terminal: {e}"));
        rustix::io::ioctl_fionbio(&master, true).map_err(|e| internal(e.into()))?;
        let copy = || master.try_clone().map_err(internal);
        let output = pipe::Receiver::from_owned_fd_unchecked(copy()?).map_err(internal)?;
        let keys = pipe::Sender::from_owned_fd_unchecked(copy()?).map_err(internal)?;
        let terminal = Self { output: output.into(), keys: keys.into(), master };
        terminal.resize(size)?;
        Ok(terminal)
    }

    /// What the command gets.
    fn slave(&self) -> Result<OwnedFd, Error> {
        ringfence_sys::tty::open_other_end(self.master.as_fd())
            .map_err(|e| Error::internal(format!("cannot open the terminal: {e}")))
    }

    /// Says how large it is; the command hears of it.
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size)
            .map_err(|e| Error::internal(format!("cannot resize the terminal: {e}")))
    }

    /// Types. Waits while the command does not read.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.keys.lock().await.write_all(bytes).await
    }

    /// What the command wrote; nothing at the end. An error where there is nothing yet.
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(&self.master, buffer) {
            // Nobody has the other end any more.
            Err(rustix::io::Errno::IO) => Ok(0),
            read => Ok(read?),
        }
    }
}

/// Starts a command with a terminal.
pub(crate) async fn start(
    sandbox: &Arc<Sandbox>,
    (live, permit): (Live, Permit),
    asked: &Asked,
    terminal: Terminal,
    (id, timeout_ms): (String, Option<u64>),
) -> Result<Arc<Exec>, Error> {
    let began = Instant::now();
    let slave = terminal.slave()?;
    let fds = [slave.as_fd(); 3];
    let started = asked.start(&live.link, fds, true).await?;
    drop(slave);
    let (output, log) = link::pipe()?;
    // Ended at once: there is one stream.
    let (stderr, _) = link::pipe()?;
    let timeout = timeout_ms.or(live.made.timeout_ms).map(Duration::from_millis);
    let birth = Birth {
        id,
        sandbox: sandbox.id.clone(),
        argv: asked.argv.clone(),
        told: (sandbox.about(), asked.shown.clone()),
        output: [output, stderr],
        input: None,
        timeout,
        kept: KEPT,
    };
    rustix::io::ioctl_fionbio(&log, true).map_err(|e| Error::internal(e.to_string()))?;
    let log = pipe::Sender::from_owned_fd(log).map_err(|e| Error::internal(e.to_string()))?;
    let terminal = Arc::new(terminal);
    let (ended, wait) = oneshot::channel();
    tokio::spawn(relay(terminal.clone(), log, started.ended, ended));
    let started = Started { ended: wait, ..started };
    let exec = Exec::on_terminal(birth, started, began, live.link.clone(), terminal, move || {
        drop(permit);
    })?;
    sandbox.remember(exec.clone());
    Ok(exec)
}

/// From the terminal into the log, and on to the end: all that was written before it comes first.
async fn relay(
    terminal: Arc<Terminal>,
    mut log: pipe::Sender,
    mut end: oneshot::Receiver<End>,
    ended: oneshot::Sender<End>,
) {
    let mut buffer = vec![0u8; PIECE];
    let mut output = terminal.output.lock().await;
    let end = loop {
        tokio::select! {
            read = output.read(&mut buffer) => match read {
                Ok(n) if n > 0 => {
                    if log.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                        break end.await;
                    }
                }
                // It closed its terminal and goes on.
                _ => break end.await,
            },
            end = &mut end => break end,
        }
    };
    while let Ok(n) = terminal.read_now(&mut buffer) {
        if n == 0 || log.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    drop(log);
    if let Ok(end) = end {
        let _ = ended.send(end);
    }
}
