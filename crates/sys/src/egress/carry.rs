//! Carries a [`Program`] out, in the process that sits in the namespace: bare system calls, no
//! allocation, nothing thread-local, because that process shares its memory with a running one.

use std::sync::atomic::Ordering;

use super::Step;
use super::netlink::Messages;
use super::program::{BACKLOG_ARGUMENT, Kind, LAST_RULE, OPTIONAL, Program, Wanted};
use crate::bare;
use crate::moments::now;

/// Does everything; the outcome is in the program.
pub(crate) fn carry_out(program: &Program) {
    let mut clock = Clock { program, last: now() };
    if let Err((step, errno)) = steps(program, &mut clock) {
        program.outcome.errno.store(errno, Ordering::Relaxed);
        program.outcome.failed.store(step as u32, Ordering::Relaxed);
        for wanted in &program.sockets {
            let fd = wanted.fd.swap(-1, Ordering::Relaxed);
            if fd >= 0 {
                close(fd);
            }
        }
    }
}

type Res = Result<(), (Step, i32)>;

fn steps(program: &Program, clock: &mut Clock<'_>) -> Res {
    let no_ipv6 = &program.outcome.no_ipv6;
    match talk(libc::NETLINK_ROUTE, &program.routes) {
        Answer::Done { .. } => {}
        Answer::NoIpv6 => no_ipv6.store(1, Ordering::Relaxed),
        Answer::Refused(errno) => return Err((Step::Routes, errno)),
    }
    clock.stop(Step::Routes);
    let way_local = match talk(libc::NETLINK_NETFILTER, &program.rules) {
        Answer::Done { last_rule: true } => false,
        answer => {
            // Whatever the reason: the other way keeps everything inside just as well.
            let errno = match answer {
                Answer::Refused(errno) => errno,
                _ => libc::EPROTO,
            };
            program.outcome.nftables.store(errno, Ordering::Relaxed);
            true
        }
    };
    clock.stop(Step::Nftables);
    if way_local {
        match talk(libc::NETLINK_ROUTE, &program.local_routes) {
            Answer::Done { .. } => {}
            Answer::NoIpv6 => no_ipv6.store(1, Ordering::Relaxed),
            Answer::Refused(errno) => return Err((Step::LocalRoutes, errno)),
        }
        clock.stop(Step::LocalRoutes);
    }
    for (kind, step) in
        [(Kind::Tcp, Step::Listener), (Kind::Udp, Step::Dns), (Kind::Diagnosis, Step::Diagnosis)]
    {
        for wanted in program.sockets.iter().filter(|w| w.kind == kind) {
            if wanted.local_only && !way_local {
                continue;
            }
            match make(wanted) {
                Ok(fd) => wanted.fd.store(fd, Ordering::Relaxed),
                Err(_) if wanted.optional => {}
                Err(_) if wanted.v6 => no_ipv6.store(1, Ordering::Relaxed),
                Err(errno) => return Err((step, errno)),
            }
        }
        clock.stop(step);
    }
    Ok(())
}

enum Answer {
    Done {
        last_rule: bool,
    },
    /// Only what is optional was refused.
    NoIpv6,
    Refused(i32),
}

/// Sends all messages at once; the kernel has carried them out when `write` returns, and only what
/// was refused (or asked to be acknowledged) is answered.
fn talk(protocol: i32, messages: &Messages) -> Answer {
    const NLMSG_ERROR: u16 = 2;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = match socket(libc::AF_NETLINK, kind, protocol) {
        Ok(fd) => fd,
        Err(errno) => return Answer::Refused(errno),
    };
    let bytes = messages.bytes();
    let args = [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0];
    // SAFETY: the buffer is valid for reads of its length.
    let sent = unsafe { bare::syscall(libc::SYS_write, args) };
    if sent < 0 {
        close(fd);
        return Answer::Refused(-sent as i32);
    }
    let mut answer = Answer::Done { last_rule: false };
    // A message of answer: header, error, header of the request; what is longer is cut off.
    let mut buffer = [0u32; 16];
    loop {
        let args = [fd as usize, buffer.as_mut_ptr() as usize, std::mem::size_of_val(&buffer), 0];
        // SAFETY: the buffer is valid for writes of its size.
        let n = unsafe { bare::syscall(libc::SYS_read, args) };
        if n == -(libc::EINTR as isize) {
            continue;
        }
        if n < 0 && n != -(libc::EAGAIN as isize) {
            answer = Answer::Refused(-n as i32);
        }
        if n < 20 {
            break;
        }
        // Length; then kind and flags, two bytes each.
        let [a, b, ..] = buffer[1].to_ne_bytes();
        if u16::from_ne_bytes([a, b]) != NLMSG_ERROR {
            continue;
        }
        let (sequence, error) = (buffer[2], buffer[4] as i32);
        match (error, &answer) {
            (0, Answer::Done { .. }) if sequence == LAST_RULE => {
                answer = Answer::Done { last_rule: true };
            }
            (0, _) | (_, Answer::Refused(_)) => {}
            (_, _) if sequence >= OPTIONAL => answer = Answer::NoIpv6,
            _ => answer = Answer::Refused(-error),
        }
    }
    close(fd);
    answer
}

fn make(wanted: &Wanted) -> Result<i32, i32> {
    let common = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let address = &wanted.address;
    let family = if wanted.v6 { libc::AF_INET6 } else { libc::AF_INET };
    let fd = match wanted.kind {
        Kind::Diagnosis => {
            return socket(libc::AF_NETLINK, libc::SOCK_RAW | common, libc::NETLINK_SOCK_DIAG);
        }
        Kind::Tcp => socket(family, libc::SOCK_STREAM | common, 0)?,
        Kind::Udp => socket(family, libc::SOCK_DGRAM | common, 0)?,
    };
    let done = (|| {
        if wanted.v6 {
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
        }
        if wanted.local_only && wanted.kind == Kind::Udp {
            // IPv6 does not count an address as its own because a route says so.
            let (level, option) = if wanted.v6 {
                (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)
            } else {
                (libc::IPPROTO_IP, libc::IP_FREEBIND)
            };
            set(fd, level, option)?;
        }
        let args = [fd as usize, address.bytes.as_ptr() as usize, address.length, 0];
        // SAFETY: the address is valid for reads of its length.
        check(unsafe { bare::syscall(libc::SYS_bind, args) })?;
        if wanted.kind == Kind::Tcp {
            // Connections that it accepts never leave the machine, so there is no congestion to
            // control: what the host chose for its network (BBR, say) would only pace them. It is
            // always there, and a matter of speed alone.
            let name = b"reno";
            let args = [
                fd as usize,
                libc::IPPROTO_TCP as usize,
                libc::TCP_CONGESTION as usize,
                name.as_ptr() as usize,
                name.len(),
                0,
            ];
            // SAFETY: the name is valid for reads of its length.
            let _ = unsafe { bare::syscall6(libc::SYS_setsockopt, args) };
            // SAFETY: plain integers.
            check(unsafe {
                bare::syscall(libc::SYS_listen, [fd as usize, BACKLOG_ARGUMENT, 0, 0])
            })?;
        }
        Ok(())
    })();
    match done {
        Ok(()) => Ok(fd),
        Err(errno) => {
            close(fd);
            Err(errno)
        }
    }
}

fn check(r: isize) -> Result<isize, i32> {
    if r < 0 { Err(-r as i32) } else { Ok(r) }
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<i32, i32> {
    let args = [family as usize, kind as usize, protocol as usize, 0];
    // SAFETY: plain integers.
    check(unsafe { bare::syscall(libc::SYS_socket, args) }).map(|fd| fd as i32)
}

/// Sets an option to 1.
fn set(fd: i32, level: i32, option: i32) -> Result<(), i32> {
    let one = 1i32;
    let value = (&raw const one) as usize;
    let args = [fd as usize, level as usize, option as usize, value, 4, 0];
    // SAFETY: the value is valid for reads of its size.
    check(unsafe { bare::syscall6(libc::SYS_setsockopt, args) }).map(|_| ())
}

fn close(fd: i32) {
    // SAFETY: a descriptor of our own making.
    unsafe { bare::syscall(libc::SYS_close, [fd as usize, 0, 0, 0]) };
}

struct Clock<'a> {
    program: &'a Program,
    last: u64,
}

impl Clock<'_> {
    fn stop(&mut self, step: Step) {
        let now = now();
        if let Some(word) = self.program.outcome.nanos.get(step as usize) {
            word.store(now.wrapping_sub(self.last) as u32, Ordering::Relaxed);
        }
        self.last = now;
    }
}
