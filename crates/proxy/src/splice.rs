//! Moves bytes between two sockets without touching them: socket to pipe to socket, in the kernel.
//!
//! A direction borrows a pipe from a small stock only while bytes are in flight, so a connection
//! that is idle costs its two sockets and its task. Where pipes run out or a socket cannot be
//! spliced, bytes go through one buffer that all connections share.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::gate::Ticket;

/// Size that is asked for, the most that an ordinary user gets. With 16 streams on two processors,
/// 512 KiB was slower by a tenth and 128 KiB by a quarter.
const PIPE: usize = 1024 * 1024;
/// Pipes that are kept for the next use. The kernel grants an ordinary user 64 MiB in all.
const STOCK: usize = 16;
/// Pipes at a time, half of that share. Connections beyond use the shared buffer.
const MOST: usize = 32;
/// Bytes asked for at a time.
const CHUNK: usize = PIPE;
/// The shared buffer.
const BUFFER: usize = 64 * 1024;

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

#[derive(Default)]
struct Stock {
    spare: Vec<Pipe>,
    lent: usize,
}

thread_local! {
    static PIPES: RefCell<Stock> = RefCell::default();
    static SHARED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A pipe on loan. It goes back only when it is empty.
struct Loan {
    pipe: Option<Pipe>,
    inside: usize,
}

impl Loan {
    fn take() -> Option<Self> {
        PIPES.with_borrow_mut(|stock| {
            let pipe = match stock.spare.pop() {
                Some(pipe) => pipe,
                None if stock.lent < MOST => {
                    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                    // Refused beyond the user's share: then it is a small pipe.
                    let _ = fcntl_setpipe_size(&write, PIPE);
                    Pipe { read, write }
                }
                None => return None,
            };
            stock.lent += 1;
            Some(Self { pipe: Some(pipe), inside: 0 })
        })
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let (pipe, empty) = (self.pipe.take(), self.inside == 0);
        // The thread's stock may be gone when the runtime is taken down with it.
        let _ = PIPES.try_with(|stock| {
            let mut stock = stock.borrow_mut();
            stock.lent = stock.lent.saturating_sub(1);
            if empty && stock.spare.len() < STOCK {
                stock.spare.extend(pipe);
            }
        });
    }
}

/// Relays both directions until both have ended. An end of one direction is passed on as such, a
/// reset as a reset of the other side.
pub(crate) async fn relay(
    client: &TcpStream,
    server: &TcpStream,
    ticket: &Ticket,
) -> io::Result<()> {
    let mut out = std::pin::pin!(pump(client, server, |n| ticket.sent(n)));
    let mut back = std::pin::pin!(pump(server, client, |n| ticket.received(n)));
    let result = tokio::select! {
        first = &mut out => rest(first, back).await,
        first = &mut back => rest(first, out).await,
    };
    if result.is_err() {
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
    result.map_err(|broken| match broken {
        Broken::Read(e) | Broken::Write(e) => e,
    })
}

/// After one direction is over.
async fn rest(
    first: Result<(), Broken>,
    other: impl Future<Output = Result<(), Broken>>,
) -> Result<(), Broken> {
    match first {
        Ok(()) => other.await,
        // It takes no more, but what it said before is still to be delivered.
        Err(Broken::Write(e)) => {
            let _ = other.await;
            Err(Broken::Write(e))
        }
        Err(broken) => Err(broken),
    }
}

/// Which side of a direction failed.
enum Broken {
    Read(io::Error),
    Write(io::Error),
}

enum Step {
    End,
    Idle,
    /// This socket cannot be spliced.
    Copy,
}

async fn pump(from: &TcpStream, to: &TcpStream, count: impl Fn(u64)) -> Result<(), Broken> {
    let mut spliced = true;
    loop {
        from.readable().await.map_err(Broken::Read)?;
        let loan = if spliced { Loan::take() } else { None };
        let step = match loan {
            Some(loan) => burst(from, to, loan, &count).await?,
            None => copy(from, to, &count).await?,
        };
        match step {
            Step::End => break,
            Step::Idle => {}
            Step::Copy => spliced = false,
        }
    }
    // Not connected any more: then the other side knows already.
    let _ = rustix::net::shutdown(to, rustix::net::Shutdown::Write);
    Ok(())
}

/// Moves what is there through the pipe.
async fn burst(
    from: &TcpStream,
    to: &TcpStream,
    mut loan: Loan,
    count: &impl Fn(u64),
) -> Result<Step, Broken> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        let Some(pipe) = loan.pipe.as_ref() else { return Ok(Step::Copy) };
        let fill = || splice(from, None, &pipe.write, None, CHUNK, flags).map_err(io::Error::from);
        let mut left = match from.try_io(Interest::READABLE, fill) {
            Ok(0) => return Ok(Step::End),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Idle),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(Step::Copy),
            Err(e) => return Err(Broken::Read(e)),
        };
        let moved = left;
        while left > 0 {
            loan.inside = left;
            let Some(pipe) = loan.pipe.as_ref() else { return Ok(Step::Copy) };
            let drain = || splice(&pipe.read, None, to, None, left, flags).map_err(io::Error::from);
            match to.try_io(Interest::WRITABLE, drain) {
                Ok(0) => return Err(Broken::Write(io::ErrorKind::WriteZero.into())),
                Ok(n) => left -= n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    to.writable().await.map_err(Broken::Write)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Broken::Write(e)),
            }
        }
        loan.inside = 0;
        count(moved as u64);
        tokio::task::consume_budget().await;
    }
}

/// One round through the shared buffer. What the other side does not take at once waits in memory
/// of its own.
async fn copy(from: &TcpStream, to: &TcpStream, count: &impl Fn(u64)) -> Result<Step, Broken> {
    let taken = SHARED.with_borrow_mut(|buffer| -> Result<(usize, Vec<u8>), Broken> {
        buffer.resize(BUFFER, 0);
        let read = from.try_read(buffer).map_err(Broken::Read)?;
        let written = match to.try_write(&buffer[..read]) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(Broken::Write(e)),
        };
        Ok((read, buffer[written..read].to_vec()))
    });
    let (read, rest) = match taken {
        Ok((0, _)) => return Ok(Step::End),
        Ok(taken) => taken,
        Err(Broken::Read(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Idle),
        Err(broken) => return Err(broken),
    };
    send(to, &rest).await.map_err(Broken::Write)?;
    count(read as u64);
    tokio::task::consume_budget().await;
    Ok(Step::Idle)
}

/// Writes all of it.
pub(crate) async fn send(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::io::Errno;
    use rustix::net::SendFlags;
    if bytes.is_empty() {
        return Ok(());
    }
    // Of a new socket the event loop does not know yet that it takes bytes.
    match rustix::net::send(to, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
