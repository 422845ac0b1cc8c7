//! How far something long has come: a line on a terminal's standard error, nothing in a pipe, and gone when it is over.

use std::io::{IsTerminal as _, Read, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

pub struct Bar {
    bar: ProgressBar,
    what: &'static str,
}

impl Bar {
    /// Of so many bytes, where that is known.
    pub fn new(what: &'static str, total: Option<u64>) -> Self {
        let error = std::io::stderr();
        // Where lines cannot be replaced there are none.
        if !error.is_terminal() || std::env::var_os("TERM").is_some_and(|t| t == "dumb") {
            return Self { bar: ProgressBar::hidden(), what };
        }
        let (bar, look) = match total {
            Some(total) => {
                (ProgressBar::new(total), "{msg} [{bar:24}] {bytes} of {total_bytes}, {eta} left")
            }
            None => (ProgressBar::no_length(), "{msg} {bytes}"),
        };
        let ascii = !output::colours(&error);
        if let Ok(style) = ProgressStyle::with_template(look) {
            bar.set_style(if ascii { style.progress_chars("#>-") } else { style });
        }
        // Often enough for people; each drawing takes time from what it tells of.
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        bar.set_message(what);
        Self { bar, what }
    }

    /// So many bytes by now, and names where these are counted.
    pub fn tell(&self, names: u64, bytes: u64) {
        if names > 0 && !self.bar.is_hidden() {
            self.bar.set_message(format!("{} {names} names,", self.what));
        }
        self.bar.set_position(bytes);
    }

    /// Tells what is read.
    pub fn counts<'a>(&self, from: impl Read + Send + 'a) -> Box<dyn Read + Send + 'a> {
        if self.bar.is_hidden() { Box::new(from) } else { Box::new(self.bar.wrap_read(from)) }
    }

    /// Tells what is written.
    pub fn counts_to<W: Write>(&self, to: W) -> impl Write + use<W> {
        self.bar.wrap_write(to)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What is shorter than this needs no word.
const A_MOMENT: Duration = Duration::from_millis(400);

/// Something whose length nobody knows: on a terminal a line says what is waited for, once it takes a moment, until this
/// is dropped.
pub struct Wait(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Wait {
    pub fn new(what: &'static str) -> Self {
        let bar = Bar::new(what, None);
        if bar.bar.is_hidden() {
            return Self(None);
        }
        let (over, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let is_over = || !matches!(wait.recv_timeout(A_MOMENT), Err(RecvTimeoutError::Timeout));
            if is_over() {
                return;
            }
            let error = std::io::stderr();
            let ticks =
                if output::colours(&error) { "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ " } else { "|/-\\ " };
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
                bar.bar.set_style(style.tick_chars(ticks));
            }
            bar.bar.reset_elapsed();
            bar.bar.enable_steady_tick(Duration::from_millis(100));
            let _ = wait.recv();
        });
        Self(Some((over, thread)))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some((over, thread)) = self.0.take() {
            drop(over);
            // Its line is gone then.
            let _ = thread.join();
        }
    }
}

/// Bytes that are left to be read of a regular file.
pub fn rest_of(file: impl std::os::fd::AsFd) -> Option<u64> {
    let stat = rustix::fs::fstat(&file).ok()?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return None;
    }
    let at = rustix::fs::tell(&file).ok()?;
    u64::try_from(stat.st_size).ok()?.checked_sub(at)
}
