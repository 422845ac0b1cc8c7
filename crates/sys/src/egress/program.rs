//! What is to be done in the namespace, prepared outside: no allocation is left for there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::netlink::{Messages, flag};
use super::{Error, Made, Step, Timings, Way};
use crate::raw::Errno;

/// Where redirected connections arrive, and where programs inside find the proxies: on 127.0.0.1 and
/// `[::1]`. A low port, which nothing inside has the capability to bind.
pub const PORT: u16 = 808;

/// Outgoing packets need a source outside 127.0.0.0/8. This one is of the range that RFC 7335 keeps
/// for such links, so it is nobody's address on the internet or in a private network.
pub const OWN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
pub const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd72, 0x696e, 0x6766, 1, 0, 0, 0, 1);

/// Listeners of [`Way::Local`], and ports of the host's loopback: each costs a socket or a rule.
pub const MOST_PORTS: usize = 64;

/// Name servers that glibc looks at are three; some lists are longer.
const MOST_SERVERS: usize = 8;

const DNS: u16 = 53;
/// Nothing can listen there, so datagrams are refused at once.
const CLOSED: u16 = 1;
const BACKLOG: u32 = 1024;

/// What the filter needs to know of the rules and the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Ports of the sandbox's loopback that lead to the host's.
    pub host_loopback: Vec<u16>,
    /// Ports to listen on where nftables is missing.
    pub ports: Vec<u16>,
    /// Of the resolver configuration that is seen inside: where nftables is missing, these get
    /// sockets of their own, so that answers come from whom was asked.
    pub nameservers: Vec<IpAddr>,
}

/// A prepared set-up, and its outcome. Shared with the process that carries it out.
#[derive(Debug)]
pub struct Program {
    pub(super) routes: Messages,
    pub(super) rules: Messages,
    pub(super) local_routes: Messages,
    pub(super) sockets: Vec<Wanted>,
    pub(super) outcome: Outcome,
}

/// From here on a message's refusal means no IPv6, not an error.
pub(super) const OPTIONAL: u32 = 100;
/// The answer that says that the rules are in force.
pub(super) const LAST_RULE: u32 = 99;

/// One socket.
#[derive(Debug)]
pub(super) struct Wanted {
    pub kind: Kind,
    pub address: SockAddr,
    /// Only with [`Way::Local`].
    pub local_only: bool,
    /// A refusal means no IPv6.
    pub v6: bool,
    /// A refusal is passed over.
    pub optional: bool,
    pub fd: AtomicI32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Udp,
    Diagnosis,
}

/// A `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct SockAddr {
    pub bytes: [u8; 28],
    pub length: usize,
}

impl SockAddr {
    fn new(ip: IpAddr, port: u16) -> Self {
        let mut bytes = [0u8; 28];
        let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        let length = match ip {
            IpAddr::V4(ip) => {
                bytes[4..8].copy_from_slice(&ip.octets());
                16
            }
            IpAddr::V6(ip) => {
                bytes[8..24].copy_from_slice(&ip.octets());
                28
            }
        };
        Self { bytes, length }
    }
}

/// Written inside, read outside once the work is done.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// A [`Step`]; 0 for success.
    pub failed: AtomicU32,
    pub errno: AtomicI32,
    /// 0 when the rules are in force.
    pub nftables: AtomicI32,
    pub no_ipv6: AtomicU32,
    pub nanos: [AtomicU32; Step::COUNT],
}

impl Program {
    pub fn new(config: &Config) -> Self {
        Self {
            routes: routes(),
            rules: rules(config),
            local_routes: local_routes(),
            sockets: sockets(config),
            outcome: Outcome::default(),
        }
    }

    /// What came of it: only once the carrying process has said that it is done.
    pub(crate) fn result(&self) -> Result<Made, Error> {
        let outcome = &self.outcome;
        let errno = |word: &AtomicI32| Errno(word.load(Ordering::Relaxed));
        if let Some(step) = Step::from_u32(outcome.failed.load(Ordering::Relaxed)) {
            return Err(Error { step, errno: errno(&outcome.errno) });
        }
        let mut made = Made {
            tcp: Vec::new(),
            udp: Vec::new(),
            diagnosis: None,
            way: Way::Redirect,
            without_nftables: None,
            ipv6: outcome.no_ipv6.load(Ordering::Relaxed) == 0,
            timings: Timings::default(),
        };
        for (slot, word) in made.timings.0.iter_mut().zip(&outcome.nanos) {
            *slot = word.load(Ordering::Relaxed);
        }
        if errno(&outcome.nftables).0 != 0 {
            made.way = Way::Local;
            made.without_nftables =
                Some(Error { step: Step::Nftables, errno: errno(&outcome.nftables) });
        }
        for wanted in &self.sockets {
            let Some(fd) = wanted.take() else { continue };
            match wanted.kind {
                Kind::Tcp => made.tcp.push(fd),
                Kind::Udp => made.udp.push(fd),
                Kind::Diagnosis => made.diagnosis = Some(fd),
            }
        }
        Ok(made)
    }
}

impl Drop for Program {
    /// Closes what nobody took.
    fn drop(&mut self) {
        for wanted in &self.sockets {
            drop(wanted.take());
        }
    }
}

impl Wanted {
    fn take(&self) -> Option<OwnedFd> {
        let fd = self.fd.swap(-1, Ordering::AcqRel);
        // SAFETY: the carrying process put it into the table that it shares with us, for us; the swap
        // makes sure that it is taken once.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn sockets(config: &Config) -> Vec<Wanted> {
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let wanted = |kind, ip: IpAddr, port| Wanted {
        kind,
        address: SockAddr::new(ip, port),
        local_only: false,
        v6: ip.is_ipv6(),
        optional: false,
        fd: AtomicI32::new(-1),
    };
    let mut all = vec![
        wanted(Kind::Tcp, v4, PORT),
        wanted(Kind::Tcp, v6, PORT),
        wanted(Kind::Udp, v4, DNS),
        wanted(Kind::Udp, v6, DNS),
        Wanted { optional: true, ..wanted(Kind::Diagnosis, v4, 0) },
    ];
    let stub = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
    let mut servers = vec![v4, v6];
    for server in config.nameservers.iter().take(MOST_SERVERS).chain([&stub]) {
        if !servers.contains(server) {
            servers.push(*server);
            let socket = wanted(Kind::Udp, *server, DNS);
            all.push(Wanted { local_only: true, optional: true, ..socket });
        }
    }
    let mut ports = vec![DNS];
    // The proxies' own port stays theirs.
    for port in config.host_loopback.iter().chain(&config.ports) {
        if *port != PORT && *port != 0 && !ports.contains(port) && ports.len() <= MOST_PORTS {
            ports.push(*port);
        }
    }
    for port in ports {
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            all.push(Wanted { local_only: true, ..wanted(Kind::Tcp, any, port) });
        }
    }
    all
}

pub(super) const BACKLOG_ARGUMENT: usize = BACKLOG as usize;

/// Loopback is always the first interface of a network namespace.
const LO: u32 = 1;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
/// The table of a namespace's own addresses, and the type of its routes.
const LOCAL: u8 = 255;
const TYPE_LOCAL: u8 = 2;

fn routes() -> Messages {
    const PERMANENT_NODAD: u8 = 0x80 | 0x02;
    const MAIN: u8 = 254;
    const LINK: u8 = 253;
    const UNIVERSE: u8 = 0;
    const UNICAST: u8 = 1;
    let mut m = Messages::default();
    let v4 = OWN_V4.octets();
    let v6 = OWN_V6.octets();
    let families = [
        (libc::AF_INET, v4.as_slice(), LINK, 1),
        (libc::AF_INET6, v6.as_slice(), UNIVERSE, OPTIONAL),
    ];
    for (family, own, scope, sequence) in families {
        let bits = (own.len() * 8) as u8;
        let mut header = vec![family as u8, bits, PERMANENT_NODAD, UNIVERSE];
        header.extend(LO.to_ne_bytes());
        m.message(NEWADDR, flag::CREATE, sequence, &header, |m| {
            m.attribute(1, own); // IFA_ADDRESS
            m.attribute(2, own); // IFA_LOCAL
        });
        route(&mut m, (family, &[]), [MAIN, scope, UNICAST], sequence + 1);
    }
    // The kernel adds this one itself, but later, from a work queue; until then answers to our own
    // address would be lost.
    route(&mut m, (libc::AF_INET6, &v6), [LOCAL, UNIVERSE, TYPE_LOCAL], OPTIONAL + 2);
    m
}

/// Every address is the sandbox's own.
fn local_routes() -> Messages {
    const HOST: u8 = 254;
    let mut m = Messages::default();
    route(&mut m, (libc::AF_INET, &[]), [LOCAL, HOST, TYPE_LOCAL], 1);
    route(&mut m, (libc::AF_INET6, &[]), [LOCAL, HOST, TYPE_LOCAL], OPTIONAL);
    m
}

/// A route through loopback: to one address, or with none to everywhere.
fn route(
    m: &mut Messages,
    (family, to): (i32, &[u8]),
    [table, scope, kind]: [u8; 3],
    sequence: u32,
) {
    const PROTOCOL_STATIC: u8 = 4;
    let bits = (to.len() * 8) as u8;
    let header = [family as u8, bits, 0, 0, table, PROTOCOL_STATIC, scope, kind, 0, 0, 0, 0];
    m.message(NEWROUTE, flag::CREATE, sequence, &header, |m| {
        if !to.is_empty() {
            m.attribute(1, to); // RTA_DST
        }
        m.attribute(4, &LO.to_ne_bytes()); // RTA_OIF
    });
}

/// Numbers of nftables' netlink protocol.
mod nft {
    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;
    pub const SUBSYSTEM: u16 = 10;
    pub const NEWTABLE: u16 = SUBSYSTEM << 8;
    pub const NEWCHAIN: u16 = (SUBSYSTEM << 8) | 3;
    pub const NEWRULE: u16 = (SUBSYSTEM << 8) | 6;
    /// `inet`: one chain for both families.
    pub const INET: u8 = 1;
    pub const IPV4: u8 = 2;
    pub const IPV6: u8 = 10;
    pub const META_NFPROTO: u32 = 15;
    pub const META_L4PROTO: u32 = 16;
    pub const NETWORK_HEADER: u32 = 1;
    pub const TRANSPORT_HEADER: u32 = 2;
    pub const REGISTER: u32 = 1;
    pub const VERDICT_REGISTER: u32 = 0;
    pub const RETURN: i32 = -5;
    pub const ACCEPT: u32 = 1;
    pub const HOOK_OUTPUT: u32 = 3;
    pub const PRIORITY_DSTNAT: i32 = -100;
    pub const PROTO_SPECIFIED: u32 = 2;
    pub const TABLE: &std::ffi::CStr = c"ringfence";
    pub const CHAIN: &std::ffi::CStr = c"egress";
}

/// The chain, in order:
///
/// 1. DNS over UDP, to whomever: to our socket. Loopback too, since the host's resolver configuration
///    often names a stub there.
/// 2. DNS over TCP: to the listener; the original port tells.
/// 3. Ports of the host's loopback that the policy opens: to the listener.
/// 4. Loopback and our own address: as ever, so that servers inside work.
/// 5. All other TCP: to the listener.
/// 6. All other UDP: to a closed port, so that QUIC falls back at once.
fn rules(config: &Config) -> Messages {
    let mut chain = Chain { messages: Messages::default(), sequence: 3 };
    let m = &mut chain.messages;
    m.message(nft::BATCH_BEGIN, 0, 0, &[0, 0, 0, nft::SUBSYSTEM as u8], |_| {});
    let header = [nft::INET, 0, 0, 0];
    m.message(nft::NEWTABLE, flag::CREATE, 1, &header, |m| m.text(1, nft::TABLE));
    m.message(nft::NEWCHAIN, flag::CREATE, 2, &header, |m| {
        m.text(1, nft::TABLE);
        m.text(3, nft::CHAIN);
        m.nest(4, |m| {
            m.number(1, nft::HOOK_OUTPUT);
            m.number(2, nft::PRIORITY_DSTNAT as u32);
        });
        m.number(5, nft::ACCEPT);
        m.text(7, c"nat");
    });
    let (tcp, udp) = (libc::IPPROTO_TCP as u8, libc::IPPROTO_UDP as u8);
    chain.rule(|m| {
        protocol(m, udp);
        port(m, DNS);
        redirect(m, DNS);
    });
    chain.rule(|m| {
        protocol(m, tcp);
        port(m, DNS);
        redirect(m, PORT);
    });
    for wanted in config.host_loopback.iter().take(MOST_PORTS) {
        chain.rule(|m| {
            protocol(m, tcp);
            port(m, *wanted);
            redirect(m, PORT);
        });
    }
    // By comparison, not by `fib`: one kernel module less to depend on.
    let local: [(u8, u32, &[u8]); 4] = [
        (nft::IPV4, 16, &[127]),
        (nft::IPV4, 16, &OWN_V4.octets()),
        (nft::IPV6, 24, &Ipv6Addr::LOCALHOST.octets()),
        (nft::IPV6, 24, &OWN_V6.octets()),
    ];
    for (family, offset, address) in local {
        chain.rule(|m| {
            expression(m, c"meta", |m| {
                m.number(1, nft::REGISTER);
                m.number(2, nft::META_NFPROTO);
            });
            equal(m, &[family]);
            payload(m, nft::NETWORK_HEADER, offset, address.len() as u32);
            equal(m, address);
            expression(m, c"immediate", |m| {
                m.number(1, nft::VERDICT_REGISTER);
                m.nest(2, |m| m.nest(2, |m| m.number(1, nft::RETURN as u32)));
            });
        });
    }
    chain.rule(|m| {
        protocol(m, tcp);
        redirect(m, PORT);
    });
    // Acknowledged, unlike the others: kernels before 6.10 do not acknowledge the end of a batch.
    chain.sequence = LAST_RULE;
    chain.rule(|m| {
        protocol(m, udp);
        redirect(m, CLOSED);
    });
    let mut m = chain.messages;
    m.message(nft::BATCH_END, 0, 0, &[0, 0, 0, nft::SUBSYSTEM as u8], |_| {});
    m
}

struct Chain {
    messages: Messages,
    sequence: u32,
}

impl Chain {
    fn rule(&mut self, body: impl FnOnce(&mut Messages)) {
        let ack = if self.sequence == LAST_RULE { flag::ACK } else { 0 };
        let flags = flag::CREATE | flag::APPEND | ack;
        let header = [nft::INET, 0, 0, 0];
        self.messages.message(nft::NEWRULE, flags, self.sequence, &header, |m| {
            m.text(1, nft::TABLE);
            m.text(2, nft::CHAIN);
            m.nest(4, body);
        });
        self.sequence += 1;
    }
}

fn expression(m: &mut Messages, name: &std::ffi::CStr, data: impl FnOnce(&mut Messages)) {
    m.nest(1, |m| {
        m.text(1, name);
        m.nest(2, data);
    });
}

fn protocol(m: &mut Messages, number: u8) {
    expression(m, c"meta", |m| {
        m.number(1, nft::REGISTER);
        m.number(2, nft::META_L4PROTO);
    });
    equal(m, &[number]);
}

fn port(m: &mut Messages, port: u16) {
    payload(m, nft::TRANSPORT_HEADER, 2, 2);
    equal(m, &port.to_be_bytes());
}

fn payload(m: &mut Messages, base: u32, offset: u32, length: u32) {
    expression(m, c"payload", |m| {
        m.number(1, nft::REGISTER);
        m.number(2, base);
        m.number(3, offset);
        m.number(4, length);
    });
}

fn equal(m: &mut Messages, value: &[u8]) {
    expression(m, c"cmp", |m| {
        m.number(1, nft::REGISTER);
        m.number(2, 0);
        m.nest(3, |m| m.attribute(1, value));
    });
}

fn redirect(m: &mut Messages, port: u16) {
    expression(m, c"immediate", |m| {
        m.number(1, nft::REGISTER);
        m.nest(2, |m| m.attribute(1, &port.to_be_bytes()));
    });
    expression(m, c"redir", |m| {
        m.number(1, nft::REGISTER);
        m.number(3, nft::PROTO_SPECIFIED);
    });
}
