//! A corporate proxy that everything goes through, with `CONNECT`.
//!
//! Names are judged here and resolved there: this host often cannot resolve them, and that proxy
//! dials what it resolves anyway. So rules about names and about addresses that a program asks for
//! hold; the check of the addresses that a name leads to is that proxy's. The host's loopback is
//! still dialled directly.

use std::io;
use std::net::IpAddr;

use ringfence_policy::net::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::limits::{UPSTREAM, UPSTREAM_HEAD};
use crate::record::printable;
use crate::resolve::{Resolver, dial};

const DEFAULT_PORT: u16 = 3128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    host: Host,
    port: u16,
    /// Value of `Proxy-Authorization`.
    authorization: Option<Secret>,
}

#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("network.upstream: {what}"))
}

impl Upstream {
    /// Takes `http://[user:password@]host:port`.
    pub(crate) fn parse(text: &str) -> io::Result<Self> {
        let rest = text
            .strip_prefix("http://")
            .ok_or_else(|| invalid("only http://[user:password@]host:port is possible"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(invalid("a proxy has no path"));
        }
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().map_err(|_| invalid("the port is not a number"))?;
                (host, port)
            }
            _ => (place, DEFAULT_PORT),
        };
        let host = Host::parse(host.as_bytes()).map_err(|e| invalid(&e.to_string()))?;
        let authorization =
            user.map(|user| Secret(format!("Basic {}", base64(&percent_decoded(user)))));
        Ok(Self { host, port, authorization })
    }

    /// A connection to `host:port` through the proxy.
    pub(crate) async fn connect(
        &self,
        resolver: &Resolver,
        host: &Host,
        port: u16,
    ) -> io::Result<TcpStream> {
        tokio::time::timeout(UPSTREAM, self.tunnel(resolver, host, port))
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the upstream proxy did not answer in time")))
    }

    async fn tunnel(&self, resolver: &Resolver, host: &Host, port: u16) -> io::Result<TcpStream> {
        let failed =
            |e: &dyn std::fmt::Display| io::Error::other(format!("the upstream proxy: {e}"));
        let addresses = match &self.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => resolver.lookup(name).await.map_err(|e| failed(&e))?,
        };
        let (mut stream, _) = dial(&addresses, self.port).await.map_err(|e| failed(&e))?;
        let target = match host {
            Host::Address(IpAddr::V6(a)) => format!("[{a}]:{port}"),
            host => format!("{host}:{port}"),
        };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(Secret(value)) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(value);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        // Byte by byte: what follows the head is the other side's and must stay in the socket.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= UPSTREAM_HEAD {
                return Err(failed(&"its answer is too long"));
            }
            head.push(stream.read_u8().await.map_err(|_| failed(&"it hung up"))?);
        }
        let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        let http = words.next().is_some_and(|v| v.starts_with("HTTP/1."));
        match words.next() {
            Some(status) if http && status.len() == 3 && status.starts_with('2') => Ok(stream),
            _ => Err(failed(&format!("it answered {}", printable(&line, 200)))),
        }
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        let code = hex.and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, &b| bits << 8 | u32::from(b))
            << (8 * (3 - group.len()));
        for i in 0..4 {
            if i <= group.len() {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    }

    #[test]
    fn upstreams_are_read() {
        let plain = Upstream::parse("http://proxy.corp.test:8080/").unwrap();
        assert_eq!((plain.host.to_string().as_str(), plain.port), ("proxy.corp.test", 8080));
        let auth = Upstream::parse("http://me:p%40ss@10.0.0.1").unwrap();
        assert_eq!(auth.authorization, Some(Secret("Basic bWU6cEBzcw==".into())));
        assert_eq!(auth.port, DEFAULT_PORT);
        assert!(!format!("{auth:?}").contains("bWU6"));
        for bad in ["https://a:1", "proxy:3128", "http://", "http://a:b", "http://a/x"] {
            assert!(Upstream::parse(bad).is_err(), "{bad}");
        }
    }
}
