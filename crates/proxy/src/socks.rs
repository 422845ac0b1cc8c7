//! SOCKS 5 (RFC 1928): `CONNECT` by name or address.
//!
//! A name becomes canonical once, by [`Host::parse`]; that is judged and dialled. What follows the
//! request in the same packet goes into the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ringfence_policy::net::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::gate::{Gate, Refusal, Why};
use crate::{Asked, Via, http, tunnel};

/// From the first byte to the whole request.
const PATIENCE: Duration = Duration::from_secs(20);
/// Greeting, name with password, request: 257 + 513 + 262, and a first packet for the tunnel.
const ROOM: usize = 2048;

const NO_PASSWORD: u8 = 0;
const PASSWORD: u8 = 2;
const NONE_FITS: u8 = 0xff;

/// Reply codes.
const GRANTED: u8 = 0;
const FAILURE: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const HOST_UNREACHABLE: u8 = 4;
const REFUSED: u8 = 5;
const EXPIRED: u8 = 6;
const NO_SUCH_COMMAND: u8 = 7;
const NO_SUCH_ADDRESS: u8 = 8;

/// Where in the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Greeting,
    Login,
    Request,
}

/// What the bytes so far mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// Say this, take so many bytes away, go on there.
    Say(&'static [u8], usize, Stage),
    /// The request, and its length.
    Connect {
        host: Host,
        port: u16,
        length: usize,
    },
    /// Say this, and no more.
    Fault(&'static [u8], String),
}

const fn reply(code: u8) -> [u8; 10] {
    [5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Reads one message at the beginning of `bytes`. Pure; the answer does not change when more follow.
pub fn step(stage: Stage, bytes: &[u8]) -> Step {
    match stage {
        Stage::Greeting => greeting(bytes),
        Stage::Login => login(bytes),
        Stage::Request => request(bytes),
    }
}

fn greeting(bytes: &[u8]) -> Step {
    match bytes {
        [] | [5] => Step::More,
        [4, ..] => Step::Fault(
            &[0, 0x5b, 0, 0, 0, 0, 0, 0],
            "socks 4 is not spoken here, socks 5 is (socks5h://)".into(),
        ),
        [5, 0, ..] => Step::Fault(&[5, NONE_FITS], "socks without a method".into()),
        [5, n, rest @ ..] => {
            let n = usize::from(*n);
            let Some(methods) = rest.get(..n) else { return Step::More };
            if methods.contains(&NO_PASSWORD) {
                Step::Say(&[5, NO_PASSWORD], 2 + n, Stage::Request)
            } else if methods.contains(&PASSWORD) {
                Step::Say(&[5, PASSWORD], 2 + n, Stage::Login)
            } else {
                Step::Fault(&[5, NONE_FITS], "socks with unknown methods only".into())
            }
        }
        _ => Step::Fault(&[], "not socks 5".into()),
    }
}

/// Any name and password will do: some clients cannot go without, and who asks is known anyway.
fn login(bytes: &[u8]) -> Step {
    match bytes {
        [] | [1] => Step::More,
        [1, n, rest @ ..] => {
            let n = usize::from(*n);
            let Some(m) = rest.get(n) else { return Step::More };
            let length = 3 + n + usize::from(*m);
            if bytes.len() < length {
                Step::More
            } else {
                Step::Say(&[1, 0], length, Stage::Request)
            }
        }
        _ => Step::Fault(&[1, 1], "not a socks user name and password".into()),
    }
}

fn request(bytes: &[u8]) -> Step {
    const BAD: [u8; 10] = reply(FAILURE);
    const COMMAND: [u8; 10] = reply(NO_SUCH_COMMAND);
    const ADDRESS: [u8; 10] = reply(NO_SUCH_ADDRESS);
    let fault = |say, text: &str| Step::Fault(say, text.into());
    match bytes {
        [] | [5] => return Step::More,
        [5, 1, ..] => {}
        [5, 2, ..] => return fault(&COMMAND, "socks BIND is not allowed"),
        [5, 3, ..] => return fault(&COMMAND, "socks UDP ASSOCIATE is not allowed"),
        [5, ..] => return fault(&COMMAND, "no such socks command"),
        _ => return fault(&BAD, "not a socks 5 request"),
    }
    match bytes.get(2) {
        None => return Step::More,
        Some(0) => {}
        Some(_) => return fault(&BAD, "a socks request whose reserved byte is not zero"),
    }
    let Some(kind) = bytes.get(3) else { return Step::More };
    let (start, length) = match kind {
        1 => (4, 4),
        4 => (4, 16),
        3 => match bytes.get(4) {
            None => return Step::More,
            Some(n) => (5, usize::from(*n)),
        },
        _ => return fault(&ADDRESS, "no such socks address type"),
    };
    let end = start + length;
    let Some(port) = bytes.get(end..end + 2) else { return Step::More };
    let port = u16::from_be_bytes([port[0], port[1]]);
    let address = &bytes[start..end];
    let host = if let (1, Ok(four)) = (kind, <[u8; 4]>::try_from(address)) {
        Host::Address(IpAddr::V4(Ipv4Addr::from(four)))
    } else if let (4, Ok(sixteen)) = (kind, <[u8; 16]>::try_from(address)) {
        // Through the same door as text, so that a mapped address is what it means.
        let text = Ipv6Addr::from(sixteen).to_string();
        match Host::parse(text.as_bytes()) {
            Ok(host) => host,
            Err(problem) => return Step::Fault(&BAD, problem.to_string()),
        }
    } else {
        match Host::parse(address) {
            Ok(host) => host,
            Err(problem) => return Step::Fault(&BAD, problem.to_string()),
        }
    };
    if port == 0 {
        return fault(&BAD, "port 0 cannot be reached");
    }
    Step::Connect { host, port, length: end + 2 }
}

/// The code for a refusal of the gate.
fn code(refusal: &Refusal) -> u8 {
    match refusal.0.reason {
        "unreachable" if http::answer::late(&refusal.0) => EXPIRED,
        "unreachable" if refusal.0.detail.contains("refused") => REFUSED,
        "unresolvable" | "unreachable" | "upstream" => HOST_UNREACHABLE,
        "malformed" | "limit" => FAILURE,
        _ => NOT_ALLOWED,
    }
}

/// Serves one connection whose first bytes, perhaps none, were read already.
pub(crate) async fn serve<G: Gate>(
    gate: Arc<G>,
    mut client: TcpStream,
    prefix: Vec<u8>,
    address: SocketAddr,
) {
    let nowhere = http::nowhere(Via::Socks, address);
    let talk = tokio::time::timeout(PATIENCE, converse(&mut client, prefix)).await;
    let (asked, rest) = match talk {
        Ok(Ok(Some((host, port, rest)))) => {
            (Asked { host, port, via: Via::Socks, client: address }, rest)
        }
        Ok(Ok(None)) => return,
        Ok(Err((say, problem))) => {
            gate.refuse(&nowhere, Why::Malformed(problem));
            if client.write_all(say).await.is_ok() {
                http::linger(&mut client).await;
            }
            return;
        }
        Err(_) => {
            gate.refuse(&nowhere, Why::Limit("the socks request takes too long".into()));
            return;
        }
    };
    match gate.open(&asked).await {
        Ok(opened) => {
            if client.write_all(&reply(GRANTED)).await.is_ok() {
                tunnel::run(gate, client, rest, asked, opened).await;
            }
        }
        Err(refusal) => {
            if client.write_all(&reply(code(&refusal))).await.is_ok() {
                http::linger(&mut client).await;
            }
        }
    }
}

type Talk = Result<Option<(Host, u16, Vec<u8>)>, (&'static [u8], String)>;

/// Up to the request; `None` if the client went away.
async fn converse(client: &mut TcpStream, mut bytes: Vec<u8>) -> Talk {
    let mut stage = Stage::Greeting;
    loop {
        match step(stage, &bytes) {
            Step::Say(say, length, next) => {
                bytes.drain(..length);
                stage = next;
                if client.write_all(say).await.is_err() {
                    return Ok(None);
                }
            }
            Step::Connect { host, port, length } => {
                bytes.drain(..length);
                return Ok(Some((host, port, bytes)));
            }
            Step::Fault(say, problem) => return Err((say, problem)),
            Step::More => {
                bytes.reserve(ROOM);
                match client.read_buf(&mut bytes).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Ok(None),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::{Fake, pair, run, server, until};

    fn by_name(name: &[u8], port: u16) -> Vec<u8> {
        let mut bytes = vec![5, 1, 0, 3, name.len() as u8];
        bytes.extend(name);
        bytes.extend(port.to_be_bytes());
        bytes
    }

    /// What a server that says `hi` and echoes gives to `bytes`, sent in one piece or byte by byte.
    async fn talk(gate: &Arc<Fake>, bytes: &[u8], slowly: bool) -> Vec<u8> {
        let (mut client, inner) = pair().await;
        client.set_nodelay(true).unwrap();
        let address = client.local_addr().unwrap();
        tokio::spawn(serve(Arc::clone(gate), inner, Vec::new(), address));
        if slowly {
            for byte in bytes {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        } else {
            client.write_all(bytes).await.unwrap();
        }
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        let _ = client.read_to_end(&mut got).await;
        got
    }

    const OK: [u8; 10] = reply(GRANTED);

    #[test]
    fn connections_and_what_follows_at_once() {
        run(async {
            let at = server(|mut s| async move {
                s.write_all(b"hi").await.unwrap();
                let got = until(&mut s, "!").await;
                s.write_all(got.as_bytes()).await.unwrap();
            })
            .await;
            let gate = Fake::new(&[("a.example:22", at), ("192.0.2.1:22", at), ("::2:22", at)]);
            let six = [&[5, 1, 0, 4][..], &[0; 15], &[2, 0, 22]].concat();
            let mapped = [&[5, 1, 0, 4][..], &[0; 10], &[0xff, 0xff, 192, 0, 2, 1, 0, 22]].concat();
            for request in [
                by_name(b"A.example", 22),
                vec![5, 1, 0, 1, 192, 0, 2, 1, 0, 22],
                six,
                mapped,
                by_name(b"3221225985", 22),
                by_name(b"a.EXAMPLE.", 22),
            ] {
                for (hello, said) in [
                    (&b"\x05\x01\0"[..], &b"\x05\0"[..]),
                    (b"\x05\x03\x01\x02\0", b"\x05\0"),
                    (b"\x05\x01\x02\x01\x01u\0", b"\x05\x02\x01\0"),
                ] {
                    for slowly in [false, true] {
                        let all = [hello, &request, b"ping!"].concat();
                        let want = [said, &OK, b"hiping!"].concat();
                        assert_eq!(talk(&gate, &all, slowly).await, want);
                    }
                }
            }
            assert!(gate.refused().is_empty());
        });
    }

    #[test]
    fn refusals_have_their_codes() {
        run(async {
            let gate = Fake::new(&[("down.example:1", ([127, 0, 0, 1], 1).into())]);
            let table: &[(&[u8], u8)] = &[
                (&by_name(b"evil.example", 443), NOT_ALLOWED),
                (&by_name(b"down.example", 1), REFUSED),
                (&by_name(b"", 443), FAILURE),
                (&by_name(b"a.example", 0), FAILURE),
                (&by_name(b"evil.example\0.a.example", 443), FAILURE),
                (&by_name(b"a.example\r\n", 443), FAILURE),
                (&by_name(b"a.example:22", 443), FAILURE),
                (&by_name(b"fe80::1%eth0", 443), FAILURE),
                (b"\x05\x02\0\x01\x01\x02\x03\x04\0\x50", NO_SUCH_COMMAND),
                (b"\x05\x03\0\x01\0\0\0\0\0\0", NO_SUCH_COMMAND),
                (b"\x05\x09\0\x01\0\0\0\0\0\0", NO_SUCH_COMMAND),
                (b"\x05\x01\0\x02\0\0\0\0\0\0", NO_SUCH_ADDRESS),
                (b"\x05\x01\x01\x01\0\0\0\0\0\0", FAILURE),
                (b"\x04\x01\0", FAILURE),
            ];
            for (bytes, code) in table {
                let got = talk(&gate, &[b"\x05\x01\0", *bytes].concat(), false).await;
                assert_eq!(got, [&[5, 0], &reply(*code)[..]].concat(), "{bytes:x?}");
            }
            assert_eq!(gate.refused().len(), table.len());
            assert_eq!(talk(&gate, b"\x05\x01\x01", false).await, [5, NONE_FITS]);
            assert_eq!(talk(&gate, b"\x04\x01\0\x50", false).await[..2], [0, 0x5b]);
            assert!(gate.opened().is_empty());
        });
    }

    proptest! {
        /// A whole request is undecided until its last byte, and what follows changes nothing.
        #[test]
        fn a_request_is_read_to_its_end(
            name in "[a-z0-9]{1,30}\\.[a-z]{2,9}", port in 1_u16.., tail in any::<[u8; 3]>(),
        ) {
            let mut bytes = by_name(name.as_bytes(), port);
            for cut in 0..bytes.len() {
                prop_assert_eq!(step(Stage::Request, &bytes[..cut]), Step::More);
            }
            let length = bytes.len();
            let host = Host::parse(name.as_bytes()).unwrap();
            let want = Step::Connect { host, port, length };
            prop_assert_eq!(step(Stage::Request, &bytes), want.clone());
            bytes.extend(tail);
            prop_assert_eq!(step(Stage::Request, &bytes), want);
        }

        #[test]
        fn an_answer_never_changes(
            start in prop::collection::vec(0_u8..6, 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = [start, tail].concat();
            for stage in [Stage::Greeting, Stage::Login, Stage::Request] {
                let whole = step(stage, &bytes);
                for cut in 0..bytes.len() {
                    let part = step(stage, &bytes[..cut]);
                    prop_assert!(part == Step::More || part == whole);
                }
            }
        }
    }
}
