//! Where a command's standard descriptors lead.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::Error;

/// One standard descriptor of a command.
#[derive(Debug)]
pub struct Stdio(Kind);

#[derive(Debug)]
enum Kind {
    Inherit,
    Null,
    Piped,
    Given(OwnedFd),
}

impl Stdio {
    /// This program's own.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// `/dev/null`.
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// A new pipe; its other end is in [`crate::Child`].
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }

    /// The descriptor number for the command, what must stay open for it, and our end of a pipe.
    pub(crate) fn open(&self, number: i32) -> Result<Opened, Error> {
        let own = |fd: OwnedFd| Opened { number: None, theirs: Some(fd), ours: None };
        Ok(match &self.0 {
            Kind::Inherit => Opened { number: Some(number), theirs: None, ours: None },
            Kind::Null => {
                let file = File::options().read(true).write(true).open("/dev/null");
                own(file.map_err(|e| Error::io("open /dev/null", e))?.into())
            }
            Kind::Given(fd) => {
                own(fd.try_clone().map_err(|e| Error::io("copy a descriptor", e))?)
            }
            Kind::Piped => {
                let (read, write) =
                    pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::io("make a pipe", e))?;
                let (theirs, ours) = if number == 0 { (read, write) } else { (write, read) };
                Opened { number: None, theirs: Some(theirs), ours: Some(ours) }
            }
        })
    }
}

#[derive(Debug)]
pub(crate) struct Opened {
    number: Option<i32>,
    theirs: Option<OwnedFd>,
    pub(crate) ours: Option<OwnedFd>,
}

impl Opened {
    pub(crate) fn number(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.theirs.as_ref().map_or(self.number.unwrap_or(-1), AsRawFd::as_raw_fd)
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Given(fd))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Self(Kind::Given(file.into()))
    }
}

impl From<std::process::ChildStdout> for Stdio {
    fn from(pipe: std::process::ChildStdout) -> Self {
        Self(Kind::Given(pipe.into()))
    }
}

impl From<std::process::ChildStderr> for Stdio {
    fn from(pipe: std::process::ChildStderr) -> Self {
        Self(Kind::Given(pipe.into()))
    }
}
