//! A connection as the program made it: where did it want to go?

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ringfence_policy::net::Host;
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::gate::Gate;
use crate::judge::Judge;
use crate::limits::FIRST_BYTE;
use crate::process::plain;
use crate::{Asked, Via, Way, dns, http, socks, tunnel};

const DNS_PORT: u16 = 53;
const SOCKS5: u8 = 5;

/// Where the connection was going before it was redirected.
pub(crate) fn original(stream: &TcpStream, peer: SocketAddr, way: Way) -> io::Result<SocketAddr> {
    if way == Way::Local {
        return Ok(plain(stream.local_addr()?));
    }
    // Of the listener's family, as each listens for one only.
    let found = match peer {
        SocketAddr::V4(_) => sockopt::ip_original_dst(stream).map(SocketAddr::V4),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(stream).map(SocketAddr::V6),
    };
    match found {
        Ok(address) => Ok(plain(address)),
        // Not tracked, so not redirected: it came to the listener itself.
        Err(Errno::NOENT | Errno::NOPROTOOPT | Errno::OPNOTSUPP) => Ok(plain(stream.local_addr()?)),
        Err(e) => Err(e.into()),
    }
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    judge: Arc<Judge>,
    client: TcpStream,
    peer: SocketAddr,
    original: SocketAddr,
) {
    if original.ip().is_loopback() && original.port() == judge.proxy_port {
        return Box::pin(proxy(judge, client, peer)).await;
    }
    if original.port() == DNS_PORT {
        return Box::pin(dns::serve_tcp(judge, client, peer)).await;
    }
    // Held until the end: the address must not come to stand for another name meanwhile.
    let (host, _hold) = match judge.pool.hold(original.ip()) {
        Some((name, hold)) => (Host::Name(name), Some(hold)),
        None => (judge.host_at(original.ip(), original.port()), None),
    };
    let asked = Asked { host, port: original.port(), via: Via::Direct, client: peer };
    let answer = Box::pin(judge.open(&asked)).await;
    match answer {
        Ok(opened) => Box::pin(tunnel::run(judge, client, Vec::new(), asked, opened)).await,
        Err(refusal) => Box::pin(tunnel::turn_away(client, &refusal)).await,
    }
}

/// The client came to the filter itself: SOCKS or HTTP, as its first byte says.
async fn proxy(judge: Arc<Judge>, client: TcpStream, peer: SocketAddr) {
    let mut first = [0];
    match tokio::time::timeout(FIRST_BYTE, client.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        _ => return,
    }
    if first[0] == SOCKS5 {
        Box::pin(socks::serve(judge, client, Vec::new(), peer)).await;
    } else {
        let mode = http::Mode::Proxy { client: peer };
        Box::pin(http::serve(judge, client, Vec::new(), mode)).await;
    }
}
