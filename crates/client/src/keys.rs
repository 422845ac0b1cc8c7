//! Keys of a terminal, one after the other, with the signals that matter to whoever draws on it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Error, lost};

/// What happened first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Key(u8),
    /// The terminal has another size.
    Resized,
    /// This program was told to end, by this signal, or the keyboard is gone.
    Told(i32),
    /// The time is over.
    Nothing,
}

/// Reads keys. Nothing is changed about the terminal itself.
#[derive(Debug)]
pub struct Keys {
    runtime: tokio::runtime::Runtime,
    keyboard: pipe::Receiver,
    resized: Signal,
    ends: [(i32, Signal); 3],
}

impl Keys {
    pub fn new(keyboard: BorrowedFd<'_>) -> Result<Self, Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lost)?;
        let entered = runtime.enter();
        // As in `terminal::relay`: shared with whoever started us, so not made nonblocking.
        let own = keyboard.try_clone_to_owned().map_err(lost)?;
        let keyboard = pipe::Receiver::from_owned_fd_unchecked(own).map_err(lost)?;
        let resized = signal(SignalKind::window_change()).map_err(lost)?;
        let end = |number, kind| Ok::<_, Error>((number, signal(kind).map_err(lost)?));
        let ends = [
            end(1, SignalKind::hangup())?,
            end(2, SignalKind::interrupt())?,
            end(15, SignalKind::terminate())?,
        ];
        drop(entered);
        Ok(Self { runtime, keyboard, resized, ends })
    }

    /// Waits for at most so long.
    pub fn wait(&mut self, longest: Duration) -> Happened {
        let (keys, resized) = (&mut self.keyboard, &mut self.resized);
        let [(hangup, hung_up), (interrupt, interrupted), (terminate, terminated)] = &mut self.ends;
        self.runtime.block_on(async {
            // One: with less in it than asked for, a read would wait.
            let mut key = [0u8];
            tokio::select! {
                read = keys.read(&mut key) => match (read, key) {
                    (Ok(1), [key]) => Happened::Key(key),
                    _ => Happened::Told(*hangup),
                },
                _ = resized.recv() => Happened::Resized,
                _ = hung_up.recv() => Happened::Told(*hangup),
                _ = interrupted.recv() => Happened::Told(*interrupt),
                _ = terminated.recv() => Happened::Told(*terminate),
                () = tokio::time::sleep(longest) => Happened::Nothing,
            }
        })
    }
}
