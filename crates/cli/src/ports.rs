//! `-p`: a port of the sandbox on the host. The host's listener lives here, the connection inside is
//! made by the sandbox's init (it alone sits in that network namespace) and handed out as a
//! descriptor, so nothing of ours listens or runs inside.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Host address and port inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub host: SocketAddr,
    pub inside: u16,
}

/// `PORT`, `ADDR:PORT`, `[v6]:PORT` or `HOSTPORT:SANDBOXPORT`; without an address the loopback.
pub fn parse<'a>(values: impl Iterator<Item = &'a OsStr>) -> Result<Vec<Port>, String> {
    values.map(|v| one(&v.to_string_lossy())).collect()
}

fn one(text: &str) -> Result<Port, String> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let number = |s: &str| s.parse::<u16>().ok().filter(|p| *p != 0);
    if let Some(port) = number(text) {
        return Ok(Port { host: SocketAddr::new(loopback, port), inside: port });
    }
    if let Ok(address) = text.parse::<SocketAddr>()
        && address.port() != 0
    {
        return Ok(Port { host: address, inside: address.port() });
    }
    if let Some((host, inside)) = text.split_once(':')
        && let (Some(host), Some(inside)) = (number(host), number(inside))
    {
        return Ok(Port { host: SocketAddr::new(loopback, host), inside });
    }
    Err(format!(
        "--port: `{text}` is not PORT, ADDR:PORT or HOST:SANDBOX with ports from 1 to 65535 and a literal address"
    ))
}

/// Why a port of a filtered sandbox cannot be exposed: a connection to it, from whomever, would arrive
/// at the filter and not at a server inside, and be let out as the sandbox's own.
pub fn taken(inside: u16, host_loopback: &[u16]) -> Option<String> {
    const DNS: u16 = 53;
    if [DNS, ringfence_sandbox::network::PROXY_PORT].contains(&inside) {
        return Some(format!(
            "--port: port {inside} of the sandbox is the egress filter's; let the server listen on another"
        ));
    }
    host_loopback.contains(&inside).then(|| {
        format!(
            "--port: port {inside} of the sandbox leads to the host's loopback (localhost:{inside} in network.allow); let the server listen on another"
        )
    })
}

/// Binds before the run starts: a port that is taken is an error, not a surprise later.
pub fn listen(ports: &[Port]) -> Result<Vec<(TcpListener, u16)>, String> {
    ports
        .iter()
        .map(|p| {
            TcpListener::bind(p.host)
                .and_then(|l| l.set_nonblocking(true).map(|()| (l, p.inside)))
                .map_err(|e| format!("--port: cannot listen on {}: {e}", p.host))
        })
        .collect()
}

/// Ends the forwarding when dropped.
#[derive(Debug)]
pub struct Forwarder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connections at one time; more wait in the listener's backlog.
const MOST: usize = 512;

/// Starts forwarding over `connector`, the channel to init.
pub fn serve(listeners: Vec<(TcpListener, u16)>, connector: Option<OwnedFd>) -> Option<Forwarder> {
    let connector = connector?;
    if listeners.is_empty() {
        return None;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let open = Arc::new(AtomicUsize::new(0));
        while !flag.load(Ordering::Relaxed) {
            let mut fds: Vec<libc::pollfd> =
                listeners.iter().map(|(l, _)| ringfence_sys::raw::pollin(l.as_raw_fd())).collect();
            // Wakes up now and then to see whether it should stop.
            if ringfence_sys::raw::poll(&mut fds, 100).is_err() {
                return;
            }
            for (listener, inside) in &listeners {
                if open.load(Ordering::Relaxed) >= MOST {
                    break;
                }
                match listener.accept() {
                    Ok((outer, _)) => connect(outer, &connector, *inside, &open),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        }
    });
    Some(Forwarder { stop, thread: Some(thread) })
}

fn connect(outer: TcpStream, connector: &OwnedFd, inside: u16, open: &Arc<AtomicUsize>) {
    let Some(inner) = request(connector, inside, 4).or_else(|| request(connector, inside, 6))
    else {
        // Nobody listens inside: the caller sees its connection closed.
        let _ = outer.shutdown(Shutdown::Both);
        return;
    };
    let _ = outer.set_nonblocking(false);
    open.fetch_add(1, Ordering::Relaxed);
    let open = Arc::clone(open);
    std::thread::spawn(move || {
        let (Ok(outer2), Ok(inner2)) = (outer.try_clone(), inner.try_clone()) else { return };
        let back = std::thread::spawn(move || copy(inner2, outer2));
        copy(outer, inner);
        let _ = back.join();
        open.fetch_sub(1, Ordering::Relaxed);
    });
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Asks init for a connection to `port` on the sandbox's loopback.
fn request(connector: &OwnedFd, port: u16, family: u8) -> Option<TcpStream> {
    let [high, low] = port.to_be_bytes();
    ringfence_sys::raw::send_with_fd(connector.as_raw_fd(), &[family, high, low], -1).ok()?;
    let mut answer = [0u8; 1];
    let (_, fd) = ringfence_sys::raw::recv_owned(connector.as_fd(), &mut answer).ok()?;
    let stream = TcpStream::from(fd?);
    // The connection was started without blocking; on loopback it is decided by now.
    let mut fds = [libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLOUT, revents: 0 }];
    ringfence_sys::raw::poll(&mut fds, 1000).ok().filter(|n| *n > 0)?;
    stream.take_error().ok().filter(Option::is_none)?;
    stream.peer_addr().ok()?;
    stream.set_nonblocking(false).ok()?;
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_lead_to_the_filter_are_not_exposed() {
        assert_eq!(taken(3000, &[7001]), None);
        assert!(taken(7001, &[7001]).is_some_and(|text| text.contains("localhost:7001")));
        assert!(taken(808, &[]).is_some() && taken(53, &[]).is_some());
    }

    #[test]
    fn the_forms_of_a_port() {
        let p = |s| one(s).map(|p| (p.host.to_string(), p.inside));
        assert_eq!(p("3000"), Ok(("127.0.0.1:3000".into(), 3000)));
        assert_eq!(p("0.0.0.0:80"), Ok(("0.0.0.0:80".into(), 80)));
        assert_eq!(p("[::1]:80"), Ok(("[::1]:80".into(), 80)));
        assert_eq!(p("8080:3000"), Ok(("127.0.0.1:8080".into(), 3000)));
        for bad in ["0", "70000", "x", "localhost:3000", "1:2:3", ":80", "", "-1"] {
            assert!(one(bad).is_err(), "{bad}");
        }
    }
}
