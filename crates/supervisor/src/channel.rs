//! Messages with descriptors over a `SOCK_SEQPACKET` socket, for tokio.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Descriptors in one message.
const MOST: usize = 3;

/// The type serves for waiting only: messages are sent and received by [`send`] and [`receive`].
#[derive(Debug)]
pub(crate) struct Channel(UnixDatagram);

impl Channel {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        UnixDatagram::from_std(fd.into()).map(Self)
    }

    pub(crate) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match self.0.try_io(Interest::WRITABLE, || send(self.0.as_fd(), bytes, fds)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.0.writable().await?,
                sent => return sent,
            }
        }
    }

    /// One message; no bytes at the end. What does not fit is an error.
    pub(crate) async fn receive(&self, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        loop {
            match self.0.try_io(Interest::READABLE, || receive(self.0.as_fd(), bytes)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.0.readable().await?,
                received => return received,
            }
        }
    }

    /// The other side sees the end, whoever else holds this socket.
    pub(crate) fn shut(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    let parts = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &parts, &mut ancillary, flags))?;
    Ok(())
}

pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let message = match received {
        Err(rustix::io::Errno::CONNRESET) => return Ok((0, Vec::new())),
        message => message?,
    };
    let mut fds = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            fds.extend(some);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((message.bytes, fds))
}
