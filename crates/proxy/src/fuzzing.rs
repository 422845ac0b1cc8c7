//! What the fuzzer calls (`fuzz/`): each parser of bytes from the sandbox, with the laws that hold
//! for whatever it accepts. A broken law panics. Not in a release.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ringfence_policy::net::{Host, Name};

use crate::http::{body, head, route};
use crate::pool::Pair;
use crate::{Asked, Via, dns, hello, socks};

/// The answer for a client's first bytes does not depend on how they are cut.
pub fn client_hello(bytes: &[u8]) {
    let whole = hello::read(bytes);
    let mut cut = bytes.len() / 2;
    while cut > 0 {
        let part = hello::read(&bytes[..cut]);
        assert!(part == hello::First::More || part == whole, "{cut}: {part:?}, {whole:?}");
        cut /= 2;
    }
    if let hello::First::Tls { server_name: Some(name), .. } = whole {
        assert!(!name.is_empty());
        host_name(&name);
    }
}

/// A whole conversation; the first byte says where it begins.
pub fn socks(bytes: &[u8]) {
    let (mut stage, mut rest) = match bytes.split_first() {
        Some((0, rest)) => (socks::Stage::Login, rest),
        Some((1, rest)) => (socks::Stage::Request, rest),
        Some((2, rest)) => (socks::Stage::Greeting, rest),
        _ => (socks::Stage::Greeting, bytes),
    };
    loop {
        let step = socks::step(stage, rest);
        // Every cut near the beginning, where the fields are; fewer of what is long.
        for cut in (0..rest.len().min(24)).chain((24..rest.len().min(600)).step_by(97)) {
            let part = socks::step(stage, &rest[..cut]);
            assert!(part == socks::Step::More || part == step, "{cut}: {part:?}, {step:?}");
        }
        match step {
            socks::Step::Say(_, length, next) => {
                rest = &rest[length..];
                stage = next;
            }
            socks::Step::Connect { host, port, length } => {
                assert!(length <= rest.len() && port > 0);
                canonical(&host);
                return;
            }
            socks::Step::More | socks::Step::Fault(..) => return,
        }
    }
}

/// What [`http`] read, for comparison with another parser.
#[derive(Debug)]
pub struct Read {
    pub method: String,
    pub target: String,
    pub minor: u8,
    pub fields: Vec<(String, Vec<u8>)>,
    pub length: usize,
}

/// A request head, where it would go, what would be sent, and its body; an answer too.
pub fn http(bytes: &[u8]) -> Option<Read> {
    let _ = head::response(bytes);
    let _ = body::decode(bytes);
    let (request, length) = head::request(bytes).ok()??;
    assert!(length <= bytes.len());
    let client: SocketAddr = ([127, 0, 0, 1], 1).into();
    let host = Host::parse(b"a.example").ok()?;
    let origin = Asked { host, port: 80, via: Via::Direct, client };
    for origin in [None, Some(&origin)] {
        match route::route(&request, origin, client) {
            Ok(route::Route::Forward(forward)) => rebuilt(&request, &forward),
            Ok(route::Route::Connect(asked)) => canonical(&asked.host),
            Ok(route::Route::Help) | Err(_) => {}
        }
    }
    if request.length == head::Length::Chunked {
        let _ = body::decode(&bytes[length..]);
    }
    let fields = request.fields.into_iter().map(|f| (f.name, f.value)).collect();
    let minor = u8::from(!request.old);
    Some(Read { method: request.method, target: request.target, minor, fields, length })
}

/// What is sent passes the same parser, is for the judged host, and frames the same body.
fn rebuilt(request: &head::Request, forward: &route::Forward) {
    canonical(&forward.asked.host);
    let again = head::request(&forward.head);
    let Ok(Some((again, length))) = again else { panic!("the rebuilt head: {again:?}") };
    assert_eq!(length, forward.head.len());
    assert_eq!(again.method, request.method);
    assert_eq!(again.length, request.length);
    let hosts: Vec<&[u8]> = head::all(&again.fields, "host").collect();
    assert_eq!(hosts.len(), 1);
    let (host, port) = route::authority(hosts[0]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((&host, port.unwrap_or(80)), (&forward.asked.host, forward.asked.port));
}

/// Whatever is asked, the answer is one: it has the query's id, fits, can be read, and gives no address
/// but that of an allowed name.
pub fn dns(bytes: &[u8]) {
    use hickory_proto::op::Message;
    use hickory_proto::rr::RData;
    let client = SocketAddr::from(([127, 0, 0, 1], 4000));
    for tcp in [false, true] {
        let Some(answer) = dns::answer(&Names, bytes, client, tcp) else { continue };
        assert!(bytes.len() >= 12 && answer[..2] == bytes[..2] && answer[2] & 0x80 != 0);
        assert!(tcp || answer.len() <= 1232, "{}", answer.len());
        let read = Message::from_vec(&answer);
        assert!(read.is_ok(), "{read:?}: {answer:?}");
        let Ok(message) = read else { continue };
        for record in &message.answers {
            let local = record.name.to_ascii().to_ascii_lowercase().contains("localhost");
            match &record.data {
                RData::A(a) => assert!(local || a.0 == PAIR.v4, "{a}"),
                RData::AAAA(a) => assert!(local || a.0 == PAIR.v6, "{a}"),
                RData::PTR(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

const PAIR: Pair = Pair {
    v4: std::net::Ipv4Addr::new(198, 18, 0, 7),
    v6: std::net::Ipv6Addr::new(0xfd72, 0x696e, 0x6766, 0, 0, 0, 0, 7),
};

/// `*.example` is allowed, `*.many` has had enough.
struct Names;

impl dns::Registry for Names {
    fn standing(&self, name: &Name, _client: SocketAddr, _now: Instant) -> dns::Standing {
        match name.as_str() {
            text if text.ends_with(".example") => dns::Standing::Allowed(PAIR),
            text if text.ends_with(".many") => dns::Standing::Limit,
            _ => dns::Standing::Refused,
        }
    }

    fn name_of(&self, address: IpAddr) -> Option<Name> {
        (address == PAIR.v4 || address == PAIR.v6).then(|| Name::parse(b"a.example").ok()).flatten()
    }

    fn six(&self) -> bool {
        true
    }
}

/// The canonical form is its own canonical form.
pub fn host_name(bytes: &[u8]) {
    if let Ok(host) = Host::parse(bytes) {
        canonical(&host);
    }
}

fn canonical(host: &Host) {
    let text = host.to_string();
    assert_eq!(Host::parse(text.as_bytes()).as_ref(), Ok(host));
    if let Host::Name(name) = host {
        let name = name.as_str();
        assert!(!name.is_empty() && name.len() <= 253 && !name.ends_with('.'), "{name:?}");
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        assert!(name.bytes().all(plain), "{name:?}");
        assert!(name.split('.').all(|label| matches!(label.len(), 1..=63)), "{name:?}");
    }
}

/// Inputs to begin with.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    use hello::samples::{extension, hello, records, server_name};
    let texts = |texts: &[&str]| -> Vec<Vec<u8>> {
        texts.iter().map(|t| t.replace('\n', "\r\n").into_bytes()).collect()
    };
    match target {
        "client_hello" => {
            let name = server_name(&[(0, b"a.example")]);
            let sets = [
                vec![name.clone()],
                vec![extension(0xfe0d, &[0; 20]), name.clone(), extension(43, &[2, 3, 4])],
                vec![name.clone(), name.clone()],
                vec![server_name(&[(0, b"a.example"), (0, b"b.example")])],
                vec![],
            ];
            let mut seeds: Vec<_> = sets.iter().map(|s| records(&hello(Some(s)), 9000)).collect();
            seeds.push(records(&hello(Some(&[name])), 7));
            seeds.push(records(&hello(None), 9000));
            seeds.push(b"\x80\x2e\x01\x03\x01".to_vec());
            seeds.extend(texts(&[
                "GET / HTTP/1.1\n",
                " get / http/1.0\n",
                "FOO / HTTP/1.1\n",
                "PRI * HTTP/2.0\n\nSM\n\n",
                "SSH-2.0-OpenSSH_9 Debian\n",
                "EHLO me\n",
            ]));
            seeds
        }
        "socks" => {
            let greetings: [&[u8]; 3] = [b"\x05\x01\0", b"\x05\x02\x02\0", b"\x05\x01\x02"];
            let login = b"\x01\x04user\x02pw";
            let requests: [&[u8]; 5] = [
                b"\x05\x01\0\x03\x09a.example\x01\xbb",
                b"\x05\x01\0\x01\x7f\0\0\x01\0\x50",
                b"\x05\x01\0\x04\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x01\0\x50",
                b"\x05\x01\0\x03\x0ea\0.example.com\x01\xbb",
                b"\x05\x03\0\x01\0\0\0\0\0\0",
            ];
            let mut seeds = vec![[b"\0", &login[..], requests[0]].concat(), b"\x04\x01".to_vec()];
            for request in requests {
                seeds.push([b"\x01", request].concat());
                seeds.push([greetings[0], request, b"GET / HTTP/1.1\r\n"].concat());
                seeds.push([greetings[2], login, request].concat());
            }
            seeds.push(greetings[1].to_vec());
            seeds
        }
        "http" => texts(&[
            "GET / HTTP/1.1\nHost: a.example\n\n",
            "GET http://a.example/x?y HTTP/1.1\nHost: a.example:80\nAccept: */*\n\n",
            "CONNECT [::1]:443 HTTP/1.1\nHost: [::1]:443\n\n",
            "POST / HTTP/1.1\nHost: a.example\nContent-Length: 3\n\nabc",
            "POST / HTTP/1.1\nHost: a.example\nTransfer-Encoding: chunked\nTE: trailers\n\n\
             3;x=y\nabc\n0\nTrailer: 1\n\n",
            "GET / HTTP/1.1\nHost: a.example\nConnection: Upgrade\nUpgrade: websocket\n\n",
            "OPTIONS * HTTP/1.0\nHost: a.example\n\n",
            "HTTP/1.1 200 OK\nContent-Length: 3\nConnection: close, x\nx: y\n\nabc",
            "a\n0123456789\n0\n\n",
            "GET / HTTP/1.1\nHost: a.example\nX: a\n b\nContent-Length: 1\nContent-Length: 2\n\n",
        ]),
        "dns" => {
            let mut seeds = Vec::new();
            for kind in [1_u8, 28, 12, 16, 65, 255] {
                for edns in [false, true] {
                    let mut query =
                        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0".to_vec();
                    query.extend([kind, 0, 1]);
                    if edns {
                        query[11] = 1;
                        query.extend(b"\0\0\x29\x10\0\0\0\0\0\0\0");
                    }
                    seeds.push(query);
                }
            }
            // A name that points at itself.
            seeds.push(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01".to_vec());
            seeds
        }
        "host_name" => texts(&[
            "a.example",
            "A.Example.",
            "xn--bcher-kva.example",
            "bücher.example",
            "127.0.0.1",
            "0x7f.1",
            "2130706433",
            "0177.0.0.1",
            "[::ffff:127.0.0.1]",
            "::1",
            "fe80::1%eth0",
            "a_b.example",
            "-a.example",
            "a..b",
            "evil\0.example",
            "1.2.3.4.",
        ]),
        _ => Vec::new(),
    }
}
