//! Rules of names that changed while the sandbox runs. Init cannot compile new ones (it may not
//! allocate), so from the first change on it asks the supervisor about each name, over a channel of
//! packets:
//!
//! ```text
//! supervisor -> init   RENEWED                 ask from now on
//! init -> supervisor   HEARD                   no call is being carried out that was judged before
//! init -> supervisor   ASK, then the path
//! supervisor -> init   ANSWER, then a digit    0 nothing, 1 list, 2 read, 3 write
//! ```
//!
//! A supervisor that does not answer any more allows nothing.

use std::cell::Cell;

use ringfence_sys::raw::{self, Errno};

use crate::broker::{Allowed, PATH};

pub const RENEWED: u8 = b'n';
pub const HEARD: u8 = b'h';
pub const ASK: u8 = b'?';
pub const ANSWER: u8 = b'=';

impl Allowed {
    /// As it is sent.
    pub fn digit(self) -> u8 {
        match self {
            Self::Nothing => b'0',
            Self::List => b'1',
            Self::Read => b'2',
            Self::Write => b'3',
        }
    }

    fn of_digit(digit: u8) -> Self {
        match digit {
            b'1' => Self::List,
            b'2' => Self::Read,
            b'3' => Self::Write,
            _ => Self::Nothing,
        }
    }
}

/// Init's end.
pub(crate) struct Asks {
    channel: i32,
    asking: Cell<bool>,
    /// Told of new rules while something was being judged.
    owed: Cell<bool>,
}

impl Asks {
    /// -1: the rules stay as they are.
    pub(crate) fn new(channel: i32) -> Self {
        Self { channel, asking: Cell::new(false), owed: Cell::new(false) }
    }

    /// Between two calls: takes what the supervisor says.
    pub(crate) fn hear(&self) {
        let mut word = [0u8; 2];
        while let Ok((n @ 1.., fd)) = raw::recv_with_fd(self.channel, &mut word, libc::MSG_DONTWAIT)
        {
            close(fd);
            if n == 1 && word[0] == RENEWED {
                self.asking.set(true);
                self.owed.set(true);
            }
        }
        self.pay();
    }

    /// After a call: what was judged before the rules changed is done.
    pub(crate) fn pay(&self) {
        if self.owed.take() {
            let _ = raw::send_now(self.channel, &[HEARD]);
        }
    }

    /// What the supervisor says of a path; `None` as long as the rules of the start hold.
    pub(crate) fn allowed(&self, path: &[u8]) -> Option<Allowed> {
        self.asking.get().then(|| self.ask(path).unwrap_or(Allowed::Nothing))
    }

    fn ask(&self, path: &[u8]) -> Result<Allowed, Errno> {
        let mut question = [0u8; PATH + 1];
        question[0] = ASK;
        let end = path.len() + 1;
        let place = question.get_mut(1..end).ok_or(Errno(libc::ENAMETOOLONG))?;
        place.copy_from_slice(path);
        raw::send_with_fd(self.channel, &question[..end], -1)?;
        loop {
            let mut word = [0u8; 2];
            match raw::recv_with_fd(self.channel, &mut word, 0) {
                Ok((2, fd)) if word[0] == ANSWER => {
                    close(fd);
                    return Ok(Allowed::of_digit(word[1]));
                }
                // Newer ones still; this call may be decided by either.
                Ok((1, fd)) if word[0] == RENEWED => {
                    close(fd);
                    self.owed.set(true);
                }
                Ok((0, _)) => return Err(Errno(libc::EPIPE)),
                Ok((_, fd)) => close(fd),
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn close(fd: Option<i32>) {
    if let Some(fd) = fd {
        raw::close(fd);
    }
}
