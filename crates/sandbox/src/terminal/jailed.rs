//! The control channel of a real jail, as the supervisor wants it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use ringfence_jail::{Jailed, message};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{Child, Event, Ground};

impl Child for Jailed {
    fn control_fd(&self) -> BorrowedFd<'_> {
        self.control()
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        Jailed::pidfd(self)
    }

    fn read_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            match read_event(self.control())? {
                Some(Event::Copies(directory)) => self.keep_copies(directory),
                other => return Ok(other),
            }
        }
    }

    fn signal(&mut self, signal: i32) {
        Jailed::signal(self, signal);
    }

    fn signal_all(&mut self, signal: i32) {
        Jailed::signal_all(self, signal);
    }

    fn resume(&mut self, ground: Ground) {
        let message = [message::RESUME, u8::from(ground == Ground::Front)];
        // A closed channel means that init is gone, which the pidfd tells.
        let _ = ringfence_sys::raw::send_with_fd(self.control().as_raw_fd(), &message, -1);
    }

    fn kill(&mut self) {
        Jailed::kill(self);
    }
}

/// One message of two bytes, perhaps with a descriptor.
pub(super) fn read_event(control: BorrowedFd<'_>) -> io::Result<Option<Event>> {
    loop {
        let mut bytes = [0u8; 2];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(control, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
        });
        let count = match received {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(e) => return Err(e.into()),
        };
        let fd = ancillary.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match (count, bytes[0], fd) {
            (0, ..) => return Ok(Some(Event::Closed)),
            (_, message::TERMINAL, Some(master)) => return Ok(Some(Event::Terminal(master))),
            (_, message::COPIES, Some(directory)) => return Ok(Some(Event::Copies(directory))),
            (_, message::STOPPED, _) => return Ok(Some(Event::Stopped(i32::from(bytes[1])))),
            // From a newer init, perhaps; nothing that this side could act on.
            _ => {}
        }
    }
}
