//! The sandbox's only name server. It never asks another: names that the rules may let through get
//! addresses of the pool, all others do not exist, so a query by itself tells nobody anything.
//!
//! | question | answer |
//! |---|---|
//! | A, AAAA of an allowed name | its address of the pool |
//! | HTTPS, SVCB, TXT, MX, … of one | exists, has no such data (which also hides ECH and HTTP/3 hints) |
//! | any other name | NXDOMAIN, with the extended error "prohibited" for who speaks EDNS |
//! | PTR of an address of the pool | the name |
//! | `localhost` | the loopback |
//! | zone transfers, other classes | REFUSED |
//! | other operations | NOTIMP |
//! | what cannot be read | FORMERR, or silence where there is no header to answer |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::Message;
use ringfence_policy::net::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::judge::Judge;
use crate::limits::DNS_TCP_IDLE;

/// Seconds that an answer is good for. The address stays the name's for the run, so this only keeps
/// programs from asking all the time.
const TTL: u32 = 60;
/// What fits one packet everywhere (DNS flag day 2020).
const UDP_SIZE: u16 = 1232;
const PLAIN_SIZE: usize = 512;
/// Queries that are answered before others get a turn.
const TURN: usize = 64;

const HEADER: usize = 12;
const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

mod kind {
    pub(super) const A: u16 = 1;
    pub(super) const PTR: u16 = 12;
    pub(super) const AAAA: u16 = 28;
    pub(super) const OPT: u16 = 41;
    pub(super) const IXFR: u16 = 251;
    pub(super) const AXFR: u16 = 252;
    pub(super) const ANY: u16 = 255;
}

mod code {
    pub(super) const OK: u16 = 0;
    pub(super) const FORMERR: u16 = 1;
    pub(super) const SERVFAIL: u16 = 2;
    pub(super) const NXDOMAIN: u16 = 3;
    pub(super) const NOTIMP: u16 = 4;
    pub(super) const REFUSED: u16 = 5;
    pub(super) const BADVERS: u16 = 16;
}

/// Extended DNS errors (RFC 8914).
#[derive(Clone, Copy, Debug)]
enum Extended {
    Prohibited,
    NotReady,
}

impl Extended {
    fn parts(self) -> (u16, &'static str) {
        match self {
            Self::Prohibited => (18, "not in network.allow of ringfence"),
            Self::NotReady => (14, "limit of ringfence"),
        }
    }
}

/// What the rules say of a name on any port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Allowed(crate::pool::Pair),
    /// Has been or will be recorded.
    Refused,
    /// The pool is full, or a wildcard has let through enough.
    Limit,
}

/// Who says it: the judge, and fakes in tests.
pub(crate) trait Registry {
    fn standing(&self, name: &Name, client: SocketAddr, now: Instant) -> Standing;
    fn name_of(&self, address: IpAddr) -> Option<Name>;
    /// Whether the sandbox can connect to IPv6 addresses at all.
    fn six(&self) -> bool;
}

/// The question as it stands in the query.
struct Question<'a> {
    /// With the case as sent: resolvers check that it comes back (0x20).
    raw: &'a [u8],
    labels: Vec<&'a [u8]>,
    kind: u16,
    class: u16,
}

fn question(query: &[u8]) -> Option<Question<'_>> {
    let mut at = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = *query.get(at)? as usize;
        at += 1;
        match length {
            0 => break,
            // A pointer or an extended label has nothing to point to in a first name.
            64.. => return None,
            _ => labels.push(query.get(at..at + length)?),
        }
        at += length;
        if at - HEADER > 255 {
            return None;
        }
    }
    let word = |at: usize| Some(u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]));
    let (kind, class) = (word(at)?, word(at + 2)?);
    Some(Question { raw: &query[HEADER..at + 4], labels, kind, class })
}

/// A response while it is put together.
struct Reply {
    bytes: Vec<u8>,
    /// Where the question ends.
    asked: usize,
    answers: u16,
    code: u16,
    edns: bool,
    extended: Option<Extended>,
}

impl Reply {
    fn new(query: &[u8], question: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(PLAIN_SIZE);
        bytes.extend_from_slice(&query[..2]);
        // Response, operation and "recursion desired" as asked, "recursion available".
        bytes.extend_from_slice(&[0x80 | (query[2] & 0x79), 0x80]);
        bytes.extend_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(question);
        let asked = bytes.len();
        Self { bytes, asked, answers: 0, code: code::OK, edns: false, extended: None }
    }

    fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    fn extended(mut self, extended: Extended) -> Self {
        self.extended = Some(extended);
        self
    }

    /// A record of the name that was asked for.
    fn record(&mut self, kind: u16, data: &[u8]) {
        self.bytes.extend_from_slice(&[0xC0, HEADER as u8]);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.bytes.extend_from_slice(&TTL.to_be_bytes());
        self.bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(data);
        self.answers += 1;
    }

    fn finish(mut self, size: usize) -> Vec<u8> {
        self.bytes[3] |= (self.code & 0xF) as u8;
        self.bytes[6..8].copy_from_slice(&self.answers.to_be_bytes());
        if self.edns {
            let opt = self.opt();
            self.bytes.extend_from_slice(&opt);
            self.bytes[11] = 1;
        }
        if self.bytes.len() > size {
            // Only a name as the answer can be that long; TCP has room.
            self.bytes.truncate(self.asked);
            self.bytes[2] |= 0x02;
            self.bytes[6..12].fill(0);
        }
        self.bytes
    }

    fn opt(&self) -> Vec<u8> {
        let mut data = Vec::new();
        if let Some(extended) = self.extended {
            let (info, text) = extended.parts();
            data.extend_from_slice(&15_u16.to_be_bytes());
            data.extend_from_slice(&(text.len() as u16 + 2).to_be_bytes());
            data.extend_from_slice(&info.to_be_bytes());
            data.extend_from_slice(text.as_bytes());
        }
        let mut bytes = vec![0];
        bytes.extend_from_slice(&kind::OPT.to_be_bytes());
        bytes.extend_from_slice(&UDP_SIZE.to_be_bytes());
        bytes.extend_from_slice(&[(self.code >> 4) as u8, 0, 0, 0]);
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&data);
        bytes
    }
}

/// `name` in wire form.
fn wire(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.as_str().len() + 2);
    for label in name.as_str().split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The address that an `in-addr.arpa` or `ip6.arpa` name is about.
fn reverse(labels: &[&[u8]]) -> Option<IpAddr> {
    let text = |label: &[u8]| std::str::from_utf8(label).map(str::to_ascii_lowercase).ok();
    match labels {
        [d, c, b, a, family, arpa]
            if family.eq_ignore_ascii_case(b"in-addr") && arpa.eq_ignore_ascii_case(b"arpa") =>
        {
            let mut octets = [0_u8; 4];
            for (octet, label) in octets.iter_mut().zip([a, b, c, d]) {
                *octet = text(label)?.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        [nibbles @ .., family, arpa]
            if nibbles.len() == 32
                && family.eq_ignore_ascii_case(b"ip6")
                && arpa.eq_ignore_ascii_case(b"arpa") =>
        {
            let mut bits = 0_u128;
            for label in nibbles.iter().rev() {
                let [digit] = label else { return None };
                bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
            }
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}

fn is_reverse(labels: &[&[u8]]) -> bool {
    labels.last().is_some_and(|l| l.eq_ignore_ascii_case(b"arpa"))
}

fn is_localhost(labels: &[&[u8]]) -> bool {
    labels.last().is_some_and(|l| l.eq_ignore_ascii_case(b"localhost"))
}

/// The answer to one query; `None`: what is not a query gets none.
pub(crate) fn answer<R: Registry>(
    registry: &R,
    query: &[u8],
    client: SocketAddr,
    tcp: bool,
) -> Option<Vec<u8>> {
    // Shorter than a header, or a response.
    if query.len() < HEADER || query[2] & 0x80 != 0 {
        return None;
    }
    let bare = |code| Some(Reply::new(query, &[]).code(code).finish(PLAIN_SIZE));
    if query[2] & 0x78 != 0 {
        return bare(code::NOTIMP);
    }
    if query[4..6] != [0, 1] || query[6..10] != [0, 0, 0, 0] {
        return bare(code::FORMERR);
    }
    let (Some(asked), Ok(message)) = (question(query), Message::from_vec(query)) else {
        return bare(code::FORMERR);
    };
    let mut reply = Reply::new(query, asked.raw);
    reply.edns = message.edns.is_some();
    let size = if tcp {
        usize::from(u16::MAX)
    } else {
        usize::from(message.max_payload().clamp(PLAIN_SIZE as u16, UDP_SIZE))
    };
    if message.version() != 0 {
        return Some(reply.code(code::BADVERS).finish(size));
    }
    let foreign = !matches!(asked.class, CLASS_IN | CLASS_ANY)
        || matches!(asked.kind, kind::AXFR | kind::IXFR | kind::OPT)
        || asked.labels.is_empty();
    if foreign {
        return Some(reply.code(code::REFUSED).finish(size));
    }
    let both = matches!(asked.kind, kind::ANY);
    if is_localhost(&asked.labels) {
        if both || asked.kind == kind::A {
            reply.record(kind::A, &Ipv4Addr::LOCALHOST.octets());
        }
        if both || asked.kind == kind::AAAA {
            reply.record(kind::AAAA, &Ipv6Addr::LOCALHOST.octets());
        }
        return Some(reply.finish(size));
    }
    if is_reverse(&asked.labels) {
        let name = reverse(&asked.labels).and_then(|address| registry.name_of(address));
        return Some(match name {
            Some(name) => {
                if both || asked.kind == kind::PTR {
                    reply.record(kind::PTR, &wire(&name));
                }
                reply.finish(size)
            }
            None => reply.code(code::NXDOMAIN).finish(size),
        });
    }
    // A dot within a label would become a boundary in the text that is judged.
    let plain = asked.labels.iter().all(|label| !label.contains(&b'.'));
    let name = plain.then(|| Name::parse(&asked.labels.join(&b'.')).ok()).flatten();
    let Some(name) = name else {
        return Some(reply.code(code::NXDOMAIN).extended(Extended::Prohibited).finish(size));
    };
    Some(match registry.standing(&name, client, Instant::now()) {
        Standing::Allowed(pair) => {
            if both || asked.kind == kind::A {
                reply.record(kind::A, &pair.v4.octets());
            }
            if registry.six() && (both || asked.kind == kind::AAAA) {
                reply.record(kind::AAAA, &pair.v6.octets());
            }
            reply.finish(size)
        }
        Standing::Refused => reply.code(code::NXDOMAIN).extended(Extended::Prohibited).finish(size),
        Standing::Limit => reply.code(code::SERVFAIL).extended(Extended::NotReady).finish(size),
    })
}

/// What a client gets that asks too often: answered without being read.
fn too_often(query: &[u8]) -> Option<Vec<u8>> {
    (query.len() >= HEADER && query[2] & 0x80 == 0)
        .then(|| Reply::new(query, &[]).code(code::REFUSED).finish(PLAIN_SIZE))
}

/// Serves one UDP socket until the task is dropped.
pub(crate) async fn serve_udp(judge: Arc<Judge>, socket: UdpSocket) {
    let mut buffer = vec![0; 4096];
    let mut turn = 0;
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer; anything lasting must not spin.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        };
        let query = &buffer[..length];
        let reply = if judge.dns_rate.take() {
            answer(&*judge, query, client, false)
        } else {
            too_often(query)
        };
        if let Some(reply) = reply {
            let _ = socket.try_send_to(&reply, client);
        }
        turn += 1;
        if turn % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Serves one TCP connection.
pub(crate) async fn serve_tcp(judge: Arc<Judge>, mut stream: TcpStream, client: SocketAddr) {
    let mut buffer = Vec::new();
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            buffer.resize(usize::from(length), 0);
            stream.read_exact(&mut buffer).await.map(|_| ())
        };
        if !matches!(tokio::time::timeout(DNS_TCP_IDLE, read).await, Ok(Ok(()))) {
            return;
        }
        let reply = if judge.dns_rate.take() {
            answer(&*judge, &buffer, client, true)
        } else {
            too_often(&buffer)
        };
        let Some(reply) = reply else { return };
        let mut framed = Vec::with_capacity(reply.len() + 2);
        framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        framed.extend_from_slice(&reply);
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
