//! After the decision: what does the client speak, and is it about the host that was judged?
//!
//! The server's bytes flow at once, so protocols where the server speaks first work. The client's
//! first bytes are held until they say what they are: TLS must name the judged host, plain HTTP is
//! handed to the proxy's code, which looks at every request, anything else is relayed.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use ringfence_policy::net::{Host, Name};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::Asked;
use crate::gate::{Gate, Opened, Refusal, Why};
use crate::hello::{self, First};
use crate::http;
use crate::inspect::{self, Inspector};
use crate::limits::{FIRST_BYTES, FIRST_BYTES_SIZE, REFUSED_LINGER, REFUSED_WAIT};
use crate::record::{explain_json, printable};
use crate::splice;

/// First byte of a TLS record that carries a hello.
const TLS_HANDSHAKE: u8 = 22;
/// Read at a time before the relay takes over.
const CHUNK: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is to be done after the first bytes.
enum Verdict {
    Relay,
    Http(Vec<u8>),
    /// TLS ends here.
    Inspect(Arc<Inspector>, Vec<u8>),
    /// Refused; with what the client is told.
    Refused(Answer),
    /// A side is gone.
    Gone,
}

/// How a refusal is said to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Alert,
    Body(String),
    Reset,
}

/// Serves a connection that was let through.
pub(crate) async fn run<G: Gate>(
    gate: Arc<G>,
    client: TcpStream,
    prefix: Vec<u8>,
    asked: Asked,
    opened: Opened,
) {
    set_options(&opened.stream);
    // Boxed: what judging needs is given back before the long part of a connection's life.
    let verdict = Box::pin(first(&*gate, &client, prefix, &asked, &opened)).await;
    match verdict {
        Verdict::Relay => {
            drop((gate, asked));
            let _ = splice::relay(&client, &opened.stream, &opened.ticket).await;
        }
        Verdict::Http(prefix) => {
            let mode = http::Mode::Origin { asked, first: Some(opened) };
            Box::pin(http::serve(gate, client, prefix, mode)).await;
        }
        Verdict::Inspect(inspector, prefix) => {
            Box::pin(inspect::serve(inspector, gate, client, prefix, asked, opened)).await;
        }
        Verdict::Refused(answer) => {
            let _ = opened.stream.set_zero_linger();
            drop(opened);
            Box::pin(say(client, answer)).await;
        }
        Verdict::Gone => {
            let _ = (client.set_zero_linger(), opened.stream.set_zero_linger());
        }
    }
}

/// For connections, and for listeners, whose connections inherit it: small packets are not for us to
/// delay, and a peer that has vanished is to be noticed.
pub(crate) fn set_options(socket: impl std::os::fd::AsFd) {
    use rustix::net::sockopt;
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
}

/// Holds the client's bytes until they can be judged; the server's flow.
async fn first<G: Gate>(
    gate: &G,
    client: &TcpStream,
    prefix: Vec<u8>,
    asked: &Asked,
    opened: &Opened,
) -> Verdict {
    let server = &opened.stream;
    let mut held = prefix;
    let mut deadline = (!held.is_empty()).then(|| Instant::now() + FIRST_BYTES);
    let mut server_ended = false;
    loop {
        if !held.is_empty() {
            match hello::read(&held) {
                First::More if held.len() >= FIRST_BYTES_SIZE => {
                    let why = Why::Malformed("the first message is too long to be judged".into());
                    gate.refuse(asked, why);
                    return Verdict::Refused(Answer::Reset);
                }
                First::More => {}
                First::Http => return Verdict::Http(held),
                First::Malformed(what) => {
                    gate.refuse(asked, Why::Malformed(what.to_owned()));
                    return Verdict::Refused(Answer::Reset);
                }
                First::Tls { server_name, encrypted } => {
                    let judged = judge_hello(&asked.host, server_name.as_deref(), encrypted)
                        .and_then(|()| judge_claim(gate, asked, server_name.as_deref()));
                    if let Err(why) = judged {
                        gate.refuse(asked, why);
                        return Verdict::Refused(Answer::Alert);
                    }
                    return match gate.inspector().filter(|i| i.inspects(&asked.host)) {
                        Some(inspector) => Verdict::Inspect(inspector, held),
                        None => forward(server, &held, opened).await,
                    };
                }
                First::Opaque => return opaque(gate, asked, &held, opened).await,
            }
        }
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = client.readable() => {
                if ready.is_err() {
                    return Verdict::Gone;
                }
                match read_into(client, &mut held) {
                    Ok(0) if held.is_empty() => return Verdict::Relay,
                    Ok(0) if !is_text(&held) => {
                        // Nothing more will come that could show whose hello this is.
                        let why = Why::Malformed("ended within its client hello".into());
                        gate.refuse(asked, why);
                        return Verdict::Refused(Answer::Reset);
                    }
                    // Less than a request's first line is no request.
                    Ok(0) => return opaque(gate, asked, &held, opened).await,
                    Ok(_) => {
                        deadline.get_or_insert_with(|| Instant::now() + FIRST_BYTES);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Verdict::Gone,
                }
            }
            ready = server.readable(), if !server_ended => {
                if ready.is_err() {
                    return Verdict::Gone;
                }
                let mut back = Vec::new();
                match read_into(server, &mut back) {
                    Ok(0) => {
                        server_ended = true;
                        let _ = rustix::net::shutdown(client, rustix::net::Shutdown::Write);
                    }
                    Ok(n) => {
                        if splice::send(client, &back).await.is_err() {
                            return Verdict::Gone;
                        }
                        opened.ticket.received(n as u64);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Verdict::Gone,
                }
            }
            () = late => {
                let why = Why::Limit("the first message did not arrive in time".into());
                gate.refuse(asked, why);
                return Verdict::Refused(Answer::Reset);
            }
        }
    }
}

/// Lets pass what has no requests, except to a host whose requests are chosen.
async fn opaque<G: Gate>(gate: &G, asked: &Asked, held: &[u8], opened: &Opened) -> Verdict {
    if gate.inspector().is_some_and(|inspector| inspector.has_rules(&asked.host)) {
        gate.refuse(asked, inspect::unjudgeable(&asked.host));
        return Verdict::Refused(Answer::Reset);
    }
    forward(&opened.stream, held, opened).await
}

/// Whether it begins as a line of text would: not as a client hello of TLS or of what was before it.
fn is_text(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|&b| b != TLS_HANDSHAKE && b.is_ascii())
}

/// Reads once, through a buffer that all connections share.
fn read_into(from: &TcpStream, to: &mut Vec<u8>) -> io::Result<usize> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(CHUNK, 0);
        let n = from.try_read(scratch)?;
        to.extend_from_slice(&scratch[..n]);
        Ok(n)
    })
}

async fn forward(server: &TcpStream, held: &[u8], opened: &Opened) -> Verdict {
    if splice::send(server, held).await.is_err() {
        return Verdict::Gone;
    }
    opened.ticket.sent(held.len() as u64);
    Verdict::Relay
}

/// Whether a TLS client hello is about the host that was judged.
fn judge_hello(host: &Host, server_name: Option<&[u8]>, encrypted: bool) -> Result<(), Why> {
    match host {
        Host::Name(judged) => {
            let Some(text) = server_name else { return Err(Why::ServerName(None)) };
            // The same canonical form as the judged name's; what has none agrees with nothing.
            if Name::parse(text).is_ok_and(|name| name == *judged) {
                Ok(())
            } else {
                Err(Why::ServerName(Some(printable(&String::from_utf8_lossy(text), 253))))
            }
        }
        // The address was listed, so every host behind it was; but one that hides its name even
        // from the rules that deny names is not let through.
        Host::Address(_) if encrypted => Err(Why::EncryptedHello),
        Host::Address(_) => Ok(()),
    }
}

/// An address that is allowed does not open a name that is denied.
fn judge_claim<G: Gate>(gate: &G, asked: &Asked, server_name: Option<&[u8]>) -> Result<(), Why> {
    let (Host::Address(_), Some(Ok(name))) = (&asked.host, server_name.map(Name::parse)) else {
        return Ok(());
    };
    if gate.denies(&name, asked.port) { Err(Why::DeniedName(name)) } else { Ok(()) }
}

/// Refuses a connection for which nothing was opened, in the protocol that the client speaks.
pub(crate) async fn turn_away(client: TcpStream, refusal: &Refusal) {
    let mut held = Vec::new();
    let seen = tokio::time::timeout(REFUSED_WAIT, async {
        loop {
            client.readable().await?;
            match read_into(&client, &mut held) {
                Ok(0) => return Ok(First::Opaque),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Err(e),
            }
            match hello::read(&held) {
                First::More if held.len() < FIRST_BYTES_SIZE => {}
                first => return Ok(first),
            }
        }
    })
    .await;
    let answer = match seen {
        Ok(Ok(First::Tls { .. })) => Answer::Alert,
        Ok(Ok(First::Http)) => Answer::Body(explain_json(&refusal.0)),
        _ if held.first() == Some(&TLS_HANDSHAKE) => Answer::Alert,
        _ => Answer::Reset,
    };
    say(client, answer).await;
}

/// Says it and ends the connection such that the client can read it.
async fn say(client: TcpStream, answer: Answer) {
    let bytes = match answer {
        Answer::Reset => {
            let _ = client.set_zero_linger();
            return;
        }
        Answer::Alert => hello::alert().to_vec(),
        Answer::Body(body) => format!(
            "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    };
    let _ = tokio::time::timeout(REFUSED_LINGER, async {
        splice::send(&client, &bytes).await?;
        let _ = rustix::net::shutdown(&client, rustix::net::Shutdown::Write);
        // Closing with unread bytes would reset, and a reset overtakes what was said.
        let mut rest = Vec::new();
        loop {
            client.readable().await?;
            match read_into(&client, &mut rest) {
                Ok(0) => return io::Result::Ok(()),
                Ok(_) => rest.clear(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    })
    .await;
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
