//! Whose the other end of a TCP connection on this machine is.
//!
//! The kernel lists every connection with the user who made its socket and the number of that socket; the
//! processes that hold it are found by that number. Admitted is a process of the daemon's own user that
//! is in the daemon's own user namespace: a command of a sandbox that has the host's network is in
//! another one. What cannot be found out is refused.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio::sync::OnceCell;

use crate::access::is_outside;

/// A list that changes while it is read may leave one out.
const TRIES: usize = 3;

const OTHER_USER: &str = "this daemon serves another user";
const INSIDE: &str = "a command of a sandbox may not ask";

/// The other side of a connection. Asked after once: a connection does not change hands unless whoever
/// has it gives it away.
#[derive(Debug)]
pub(crate) struct Neighbour {
    here: Option<SocketAddr>,
    there: SocketAddr,
    verdict: OnceCell<Result<(), &'static str>>,
}

impl Neighbour {
    pub(crate) fn new(here: Option<SocketAddr>, there: SocketAddr) -> Self {
        Self { here, there, verdict: OnceCell::new() }
    }

    /// Why it may not ask, if so.
    pub(crate) async fn admit(&self) -> Result<(), &'static str> {
        let Some(here) = self.here else { return Err(OTHER_USER) };
        let there = self.there;
        let look = || async move {
            let looked = tokio::task::spawn_blocking(move || judge(here, there)).await;
            looked.unwrap_or(Err(OTHER_USER))
        };
        *self.verdict.get_or_init(look).await
    }
}

fn judge(here: SocketAddr, there: SocketAddr) -> Result<(), &'static str> {
    let own = rustix::process::geteuid().as_raw();
    let (user, socket) = (0..TRIES).find_map(|_| listed(there, here)).ok_or(OTHER_USER)?;
    if user != own {
        return Err(OTHER_USER);
    }
    let mut holders = holders(socket).into_iter().peekable();
    // Whom we cannot look at has something to hide, as what is inside has.
    if holders.peek().is_none() || !holders.all(is_outside) {
        return Err(INSIDE);
    }
    Ok(())
}

/// Who made the socket with these addresses, and its number.
fn listed(local: SocketAddr, remote: SocketAddr) -> Option<(u32, u64)> {
    let wanted = format!("{} {} ", written(local), written(remote));
    let mapped = format!("{} {} ", written(in_six(local)), written(in_six(remote)));
    [("/proc/net/tcp", wanted), ("/proc/net/tcp6", mapped)].into_iter().find_map(
        |(file, wanted)| {
            let list = std::fs::read_to_string(file).ok()?;
            list.lines().find_map(|line| found(line, &wanted))
        },
    )
}

/// `sl local remote state queues timer retransmits user timeout socket ...`
fn found(line: &str, wanted: &str) -> Option<(u32, u64)> {
    let rest = line.trim_start().split_once(": ")?.1.strip_prefix(wanted)?;
    let mut fields = rest.split_ascii_whitespace().skip(4);
    let user = fields.next()?.parse().ok()?;
    let socket = fields.nth(1)?.parse().ok()?;
    // Nobody holds it any more.
    (socket != 0).then_some((user, socket))
}

/// As a socket that takes both kinds of addresses has it.
fn in_six(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(IpAddr::V6(ip), address.port())
}

/// As the kernel writes it: in words of its own byte order.
fn written(address: SocketAddr) -> String {
    let mut text = String::new();
    let mut word = |bytes: [u8; 4]| {
        let _ = write!(text, "{:08X}", u32::from_ne_bytes(bytes));
    };
    match address.ip() {
        IpAddr::V4(ip) => word(ip.octets()),
        IpAddr::V6(ip) => words(ip).into_iter().for_each(word),
    }
    let _ = write!(text, ":{:04X}", address.port());
    text
}

fn words(ip: Ipv6Addr) -> [[u8; 4]; 4] {
    let o = ip.octets();
    let word = |n: usize| std::array::from_fn(|i| o.get(n * 4 + i).copied().unwrap_or_default());
    [word(0), word(1), word(2), word(3)]
}

/// The processes that have the socket open, of those that we may look at.
fn holders(socket: u64) -> Vec<i32> {
    let name = format!("socket:[{socket}]");
    let holds = |pid: &i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        descriptors
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new(&name)))
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(holds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        assert_eq!(written("127.0.0.1:18888".parse().unwrap()), "0100007F:49C8");
        let mapped = in_six("127.0.0.1:80".parse().unwrap());
        assert_eq!(written(mapped), "0000000000000000FFFF00000100007F:0050");
        let line = "   5: 0100007F:A1B2 0100007F:49C8 01 00000000:00000000 00:00000000 00000000  1000        0 98765 1 0";
        assert_eq!(found(line, "0100007F:A1B2 0100007F:49C8 "), Some((1000, 98765)));
        assert_eq!(found(line, "0100007F:A1B2 0100007F:49C9 "), None);
    }

    #[test]
    fn a_connection_of_our_own_is_found_and_one_that_is_closed_is_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                println!("skipped: {address} cannot be listened at here");
                continue;
            };
            let here = listener.local_addr().unwrap();
            let client = std::net::TcpStream::connect(here).unwrap();
            let there = client.local_addr().unwrap();
            let (user, socket) = listed(there, here).unwrap();
            assert_eq!(user, rustix::process::geteuid().as_raw());
            assert_eq!(holders(socket), [std::process::id() as i32]);
            assert_eq!(judge(here, there), Ok(()));
            drop(client);
            assert_eq!(judge(here, there), Err(OTHER_USER));
        }
    }
}
