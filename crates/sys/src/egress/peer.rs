//! What an accepted connection tells: where it was meant to go, and whose it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::sockopt;

/// Where the client of a redirected connection wanted to go; the listener's own address if it
/// connected there on purpose. `None`: the kernel does not track the connection, so nothing was
/// redirected, and the socket's own address is the destination.
pub fn original_destination(fd: impl AsFd) -> io::Result<Option<SocketAddr>> {
    let own = SocketAddr::try_from(rustix::net::getsockname(&fd)?)?;
    let found = match own {
        SocketAddr::V4(_) => sockopt::ip_original_dst(&fd).map(SocketAddr::V4),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(&fd).map(SocketAddr::V6),
    };
    match found {
        Ok(address) => Ok(Some(address)),
        Err(Errno::NOENT | Errno::NOPROTOOPT | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// Of `struct inet_diag_msg`, with its netlink header.
const MESSAGE: usize = 16 + 72;
/// Answers of a dump that are read before giving up: each holds a few hundred sockets.
const MOST_READS: usize = 64;
const LISTEN: u8 = 10;

/// The inode of the client's end of a connection, as `/proc/PID/fd` names it (`socket:[INODE]`).
///
/// `diagnosis` is the socket of [`super::Made`]; `client` the accepted socket's peer, `server` the
/// destination as the client sees it. One request at a time.
pub fn socket_owner(
    diagnosis: BorrowedFd<'_>,
    client: SocketAddr,
    server: SocketAddr,
) -> Option<u64> {
    // What an earlier request may have left.
    let mut buffer = vec![0u8; 32 << 10];
    while rustix::io::read(diagnosis, &mut *buffer).is_ok_and(|n| n > 0) {}
    let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
    // A v6 socket can speak v4; asked for by its addresses it is found all the same.
    let families: &[i32] = if client.is_ipv4() { &[v4, v6] } else { &[v6] };
    ask(diagnosis, families[0], client, Some(server), &mut buffer)
        .or_else(|| families.iter().find_map(|f| ask(diagnosis, *f, client, None, &mut buffer)))
}

/// With a server: exactly that socket. Without: every socket with the client's port is looked at.
fn ask(
    diagnosis: BorrowedFd<'_>,
    family: i32,
    client: SocketAddr,
    server: Option<SocketAddr>,
    buffer: &mut [u8],
) -> Option<u64> {
    let request = request(family, client, server);
    rustix::io::write(diagnosis, &request).ok()?;
    for _ in 0..MOST_READS {
        let n = rustix::io::read(diagnosis, &mut *buffer).ok()?;
        let mut rest = buffer.get(..n)?;
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
            let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
            if matches!(kind, NLMSG_ERROR | NLMSG_DONE) {
                return None;
            }
            let message = rest.get(..length)?;
            if let Some(inode) = inode_of(message, client) {
                return Some(inode);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if server.is_some() {
            return None;
        }
    }
    None
}

/// `struct inet_diag_req_v2` behind a netlink header.
fn request(family: i32, client: SocketAddr, server: Option<SocketAddr>) -> Vec<u8> {
    let flags = if server.is_some() { REQUEST } else { REQUEST | DUMP };
    let mut m = Vec::with_capacity(72);
    m.extend(72u32.to_ne_bytes());
    m.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    m.extend(flags.to_ne_bytes());
    m.extend([0; 8]);
    m.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    // Every state but listening.
    m.extend((!(1u32 << LISTEN)).to_ne_bytes());
    m.extend(client.port().to_be_bytes());
    m.extend(server.map_or(0, |s| s.port()).to_be_bytes());
    m.extend(if server.is_some() { address(client.ip()) } else { [0; 16] });
    m.extend(server.map_or([0; 16], |s| address(s.ip())));
    m.extend([0; 4]);
    // No cookie.
    m.extend([0xff; 8]);
    m
}

fn address(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

/// The inode, if the message is about the socket that `client` is the own address of.
fn inode_of(message: &[u8], client: SocketAddr) -> Option<u64> {
    if message.len() < MESSAGE {
        return None;
    }
    let body = message.get(16..)?;
    let (family, state) = (*body.first()?, *body.get(1)?);
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let mapped = match client.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    // A v6 socket that speaks v4 shows its addresses mapped.
    let same =
        source == address(client.ip()) || (i32::from(family) == libc::AF_INET6 && source == mapped);
    if !same || port != client.port() || state == LISTEN {
        return None;
    }
    let inode = u32::from_ne_bytes(body.get(68..72)?.try_into().ok()?);
    // 0: a closed socket, on its way out.
    (inode != 0).then_some(u64::from(inode))
}
