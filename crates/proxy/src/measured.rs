//! What the component benches call (`bench/components.rs`): each parser of bytes from the sandbox as the
//! filter calls it, without the laws that the fuzzer checks. Not in a release.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ringfence_policy::net::Name;

use crate::hello::samples;
use crate::http::head;
use crate::pool::Pair;
use crate::{dns, hello, socks};

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4000);
const PAIR: Pair = Pair {
    v4: Ipv4Addr::new(198, 18, 0, 7),
    v6: Ipv6Addr::new(0xfd72, 0x696e, 0x6766, 0, 0, 0, 0, 7),
};

/// `*.example` is allowed.
struct Names;

impl dns::Registry for Names {
    fn standing(&self, name: &Name, _client: SocketAddr, _now: Instant) -> dns::Standing {
        if name.as_str().ends_with(".example") {
            dns::Standing::Allowed(PAIR)
        } else {
            dns::Standing::Refused
        }
    }

    fn name_of(&self, _address: IpAddr) -> Option<Name> {
        None
    }

    fn six(&self) -> bool {
        true
    }
}

/// A query by UDP is read and answered.
pub fn dns(query: &[u8]) -> Option<Vec<u8>> {
    dns::answer(&Names, query, CLIENT, false)
}

/// A greeting and a request are read; whether they say where to connect.
pub fn socks(conversation: &[u8]) -> bool {
    let (mut stage, mut rest) = (socks::Stage::Greeting, conversation);
    loop {
        match socks::step(stage, rest) {
            socks::Step::Say(_, length, next) => (stage, rest) = (next, &rest[length..]),
            socks::Step::Connect { .. } => return true,
            socks::Step::More | socks::Step::Fault(..) => return false,
        }
    }
}

/// Whether a whole request's head is there.
pub fn http(bytes: &[u8]) -> bool {
    matches!(head::request(bytes), Ok(Some(_)))
}

/// Whether a client's first bytes name a server.
pub fn client_hello(bytes: &[u8]) -> bool {
    matches!(hello::read(bytes), hello::First::Tls { server_name: Some(_), .. })
}

/// Bytes that a client of TLS begins with.
pub fn client_hello_of(name: &str) -> Vec<u8> {
    let name = samples::server_name(&[(0, name.as_bytes())]);
    samples::records(&samples::hello(Some(&[name])), 9000)
}
