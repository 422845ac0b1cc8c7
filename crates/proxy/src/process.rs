//! Whose connection is it? The kernel says which socket (`sock_diag`, on a socket of the sandbox's
//! network namespace), `/proc` says which process below the sandbox's PID 1 holds it.
//!
//! Only used to say why: no decision depends on it, and a process that is gone is just not named.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};

use crate::limits::{ATTRIBUTION_RATE, Bucket};
use crate::lock;
use crate::record::{Process, printable};

/// Processes that are looked at.
const PROCESSES: usize = 4096;
/// Descriptors of one process that are looked at.
const DESCRIPTORS: usize = 4096;
/// Arguments that are reported, and bytes of each.
const ARGUMENTS: usize = 32;
const ARGUMENT: usize = 256;
/// Answers that one question may bring; a hostile namespace is full of sockets.
const ANSWERS: usize = 256;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const ALL_STATES: u32 = u32::MAX;
const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// Offsets in `inet_diag_msg`, after the netlink header.
const SOURCE_PORT: usize = 4;
const TARGET_PORT: usize = 6;
const INODE: usize = 68;
const MESSAGE: usize = 72;

/// Kind of socket that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
}

#[derive(Debug)]
pub(crate) struct Finder {
    /// Behind a lock: questions and answers of two threads must not mix.
    diagnosis: Option<Mutex<OwnedFd>>,
    init: Option<i32>,
    rate: Bucket,
}

impl Finder {
    pub(crate) fn new(diagnosis: Option<OwnedFd>, init: Option<i32>) -> Self {
        Self { diagnosis: diagnosis.map(Mutex::new), init, rate: Bucket::new(ATTRIBUTION_RATE) }
    }

    /// Whether there is anything to look at.
    pub(crate) fn is_able(&self) -> bool {
        self.diagnosis.is_some() && self.init.is_some()
    }

    /// The process whose socket has `client` as its own address. `ports` are where the socket may
    /// be connected to: a program can use one source port for several destinations.
    pub(crate) fn find(
        &self,
        kind: Kind,
        client: SocketAddr,
        ports: &[u16],
        patience: Duration,
    ) -> Option<Process> {
        let (diagnosis, init) = (self.diagnosis.as_ref()?, self.init?);
        if client.port() == 0 || !self.rate.take() {
            return None;
        }
        let deadline = Instant::now() + patience;
        let inode = {
            let socket = lock(diagnosis);
            inode(&socket, kind, client, ports).ok()??
        };
        holder(init, inode, deadline)
    }
}

fn inode(
    socket: &OwnedFd,
    kind: Kind,
    client: SocketAddr,
    ports: &[u16],
) -> io::Result<Option<u32>> {
    let mut buffer = vec![0_u8; 32 * 1024];
    // What an earlier question left unread is not this one's answer.
    while rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
    let mut found: Vec<(u16, u32)> = Vec::new();
    // A socket of the other family may use an address of this one (v4-mapped); the kernel lists it
    // under its own.
    let families: &[u8] = if client.is_ipv4() { &[2, 10] } else { &[10] };
    for &family in families {
        rustix::net::send(socket, &question(family, kind, client.port()), SendFlags::empty())?;
        'answers: loop {
            let (_, length) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
            let mut rest = &buffer[..length.min(buffer.len())];
            while rest.len() >= HEADER {
                let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let word = u16::from_ne_bytes([rest[4], rest[5]]);
                if size < HEADER || size > rest.len() || matches!(word, NLMSG_DONE | NLMSG_ERROR) {
                    break 'answers;
                }
                let body = &rest[HEADER..size];
                if word == SOCK_DIAG_BY_FAMILY
                    && body.len() >= MESSAGE
                    && u16::from_be_bytes([body[SOURCE_PORT], body[SOURCE_PORT + 1]])
                        == client.port()
                    && found.len() < ANSWERS
                {
                    let target = u16::from_be_bytes([body[TARGET_PORT], body[TARGET_PORT + 1]]);
                    let inode = u32::from_ne_bytes([
                        body[INODE],
                        body[INODE + 1],
                        body[INODE + 2],
                        body[INODE + 3],
                    ]);
                    if inode != 0 {
                        found.push((target, inode));
                    }
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
    if found.iter().any(|(port, _)| ports.contains(port)) {
        found.retain(|(port, _)| ports.contains(port));
    }
    // Two sockets left: rather no name than a wrong one.
    let first = found.first().map(|(_, inode)| *inode);
    Ok(first.filter(|first| found.iter().all(|(_, inode)| inode == first)))
}

/// `inet_diag_req_v2` for all sockets with this source port.
fn question(family: u8, kind: Kind, port: u16) -> [u8; REQUEST] {
    let mut bytes = [0_u8; REQUEST];
    bytes[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = match kind {
        Kind::Tcp => 6,
        Kind::Udp => 17,
    };
    bytes[20..24].copy_from_slice(&ALL_STATES.to_ne_bytes());
    bytes[24..26].copy_from_slice(&port.to_be_bytes());
    bytes
}

/// The first process below `init` (or itself) with a descriptor of that socket.
fn holder(init: i32, inode: u32, deadline: Instant) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    let mut queue = VecDeque::from([init]);
    let mut seen = 0;
    while let Some(pid) = queue.pop_front() {
        seen += 1;
        if seen > PROCESSES || Instant::now() > deadline {
            return None;
        }
        if holds(pid, &wanted) {
            return Some(describe(pid));
        }
        queue.extend(children(pid));
    }
    None
}

fn holds(pid: i32, wanted: &str) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .flatten()
        .take(DESCRIPTORS)
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted))
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .take(PROCESSES)
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn describe(pid: i32) -> Process {
    let program = fs::read_link(format!("/proc/{pid}/exe"))
        .map(|path| printable(&path.to_string_lossy(), ARGUMENT))
        .unwrap_or_default();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = command
        .split(|&b| b == 0)
        .take(ARGUMENTS)
        .filter(|argument| !argument.is_empty())
        .map(|argument| printable(&String::from_utf8_lossy(argument), ARGUMENT))
        .collect();
    Process { pid, program, command }
}

/// A v4-mapped address as the v4 address it is.
pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    #[test]
    fn finds_this_process_by_its_socket() {
        let diagnosis = rustix::net::socket(
            rustix::net::AddressFamily::NETLINK,
            rustix::net::SocketType::DGRAM,
            Some(rustix::net::netlink::SOCK_DIAG),
        );
        let Ok(diagnosis) = diagnosis else {
            println!("skipped: no sock_diag socket here");
            return;
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(target).unwrap();
        let pid = std::process::id() as i32;
        let finder = Finder::new(Some(diagnosis), Some(pid));
        let found = finder.find(Kind::Tcp, client.local_addr().unwrap(), &[target.port()], LONG);
        let found = found.unwrap();
        assert_eq!(found.pid, pid);
        assert!(found.program.contains("ringfence_proxy"), "{found:?}");
        assert!(!found.command.is_empty());
        // By IPv6, and by IPv6 that speaks IPv4, which the kernel lists under the former.
        for (at, to) in [("[::1]:0", "::1"), ("[::]:0", "::ffff:127.0.0.1")] {
            let Ok(listener) = std::net::TcpListener::bind(at) else { continue };
            let port = listener.local_addr().unwrap().port();
            let target = SocketAddr::new(to.parse().unwrap(), port);
            let client = std::net::TcpStream::connect(target).unwrap();
            let found = finder.find(Kind::Tcp, plain(client.local_addr().unwrap()), &[port], LONG);
            assert_eq!(found.map(|p| p.pid), Some(pid), "{to}");
        }
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = finder.find(Kind::Udp, udp.local_addr().unwrap(), &[], LONG);
        assert_eq!(found.map(|p| p.pid), Some(pid));
        assert_eq!(finder.find(Kind::Tcp, "127.0.0.1:1".parse().unwrap(), &[], LONG), None);
    }
}
