//! Connections over loopback: raw clients and curl, raw servers and hyper.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming as Body};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ringfence_policy::net::Host;

use super::*;
use crate::testing::{Fake, pair, rest, run, say, server, until};

fn peer() -> SocketAddr {
    ([127, 0, 0, 1], 7).into()
}

fn asked(host: &str, port: u16) -> Asked {
    let host = Host::parse(host.as_bytes()).unwrap();
    Asked { host, port, via: Via::Direct, client: peer() }
}

/// A client connection to the proxy.
async fn proxy(gate: &Arc<Fake>) -> TcpStream {
    let (client, inner) = pair().await;
    tokio::spawn(serve(Arc::clone(gate), inner, Vec::new(), Mode::Proxy { client: peer() }));
    client
}

/// A client connection that was caught on its way to `a.example:80`.
async fn caught(gate: &Arc<Fake>) -> TcpStream {
    let (client, inner) = pair().await;
    let asked = asked("a.example", 80);
    let first = gate.open(&asked).await.unwrap();
    let mode = Mode::Origin { asked, first: Some(first) };
    tokio::spawn(serve(Arc::clone(gate), inner, Vec::new(), mode));
    client
}

/// A server by hyper that says what it got: `METHOD path host length-of-body`.
async fn echo() -> SocketAddr {
    server(|stream| async {
        let service = service_fn(|request: hyper::Request<Body>| async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes);
            let length = body.map_or(0, |b| b.len());
            let host = head.headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or("-");
            let text = format!("{} {} {host} {length}", head.method, head.uri);
            Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from(text))))
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

/// A server that gives these answers, one a request head, and closes.
async fn scripted(answers: &'static [&'static str]) -> SocketAddr {
    server(move |mut stream| async move {
        for answer in answers {
            until(&mut stream, "\r\n\r\n").await;
            say(&mut stream, answer).await;
        }
    })
    .await
}

/// A whole answer with a length.
async fn answer(client: &mut TcpStream) -> (String, String) {
    let head = until(client, "\r\n\r\n").await;
    let length = head
        .lines()
        .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned))
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn each_request_of_a_connection_is_judged() {
    run(async {
        let at = echo().await;
        let gate = Fake::new(&[("a.example:80", at), ("b.example:8080", at)]);
        let mut client = proxy(&gate).await;
        for (host, port, body) in [
            ("a.example", "", "GET /1 a.example 0"),
            ("A.EXAMPLE.", ":80", "GET /1 a.example 0"),
            ("b.example", ":8080", "GET /1 b.example:8080 0"),
            ("a.example", "", "GET /1 a.example 0"),
        ] {
            say(
                &mut client,
                &format!("GET http://{host}{port}/1 HTTP/1.1\nHost: {host}{port}\n\n"),
            )
            .await;
            let (head, text) = answer(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(text, body);
        }
        assert_eq!(gate.opened(), ["a.example:80", "b.example:8080"], "connections are kept");
        say(&mut client, "GET http://evil.example/ HTTP/1.1\nHost: evil.example\n\n").await;
        let (head, text) = answer(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        assert!(head.contains("\r\nX-Ringfence-Reason: not-listed\r\n"), "{head}");
        assert!(head.contains("\r\nContent-Type: application/json\r\n"), "{head}");
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
        // And the connection still serves.
        say(&mut client, "HEAD http://a.example/2 HTTP/1.1\nHost: a.example\n\n").await;
        let head = until(&mut client, "\r\n\r\n").await;
        assert!(head.contains("content-length: 0") || head.contains("200 OK"), "{head}");
        assert_eq!(gate.refused(), ["evil.example:80 not-listed"]);
        drop(client);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order_each_by_its_own_host() {
    run(async {
        let at = echo().await;
        let gate = Fake::new(&[("a.example:80", at)]);
        let mut client = caught(&gate).await;
        say(
            &mut client,
            "POST /1 HTTP/1.1\nHost: a.example\nContent-Length: 3\n\nabc\
             GET /2 HTTP/1.1\nHost: a.example\n\n\
             GET /3 HTTP/1.1\nHost: evil.example\n\n\
             GET /4 HTTP/1.1\nHost: a.example\n\n",
        )
        .await;
        assert_eq!(answer(&mut client).await.1, "POST /1 a.example 3");
        assert_eq!(answer(&mut client).await.1, "GET /2 a.example 0");
        let (head, _) = answer(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("host-mismatch"), "{head}");
        assert_eq!(rest(&mut client).await, "", "nothing after a refused host");
        assert_eq!(gate.opened().len(), 1);
    });
}

/// What a body hides is a body, for the server too.
#[test]
fn smuggled_requests_reach_nobody() {
    let table = [
        "POST / HTTP/1.1\nHost: a.example\nContent-Length: 6\nTransfer-Encoding: chunked\n\n0\n\nX",
        "POST / HTTP/1.1\nHost: a.example\nTransfer-Encoding: chunked\nTransfer-Encoding: x\n\n0\n\n",
        "POST / HTTP/1.1\nHost: a.example\nTransfer-Encoding: xchunked\n\n0\n\n",
        "POST / HTTP/1.1\nHost: a.example\nTransfer-Encoding : chunked\n\n0\n\n",
        "POST / HTTP/1.1\nHost: a.example\nX: y\n Transfer-Encoding: chunked\n\n0\n\n",
        "POST / HTTP/1.1\nHost: a.example\nContent-Length: 1\nContent-Length: 2\n\nab",
        "POST / HTTP/1.1\nHost: a.example\nContent-Length: 1, 2\n\nab",
        "POST / HTTP/1.1\nHost: a.example\nContent-Length: +1\n\na",
        "POST / HTTP/1.0\nHost: a.example\nTransfer-Encoding: chunked\n\n0\n\n",
        "GET / HTTP/1.1\nHost: a.example\nHost: evil.example\n\n",
        "GET / HTTP/1.1\nHost: a.example@evil.example\n\n",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.1\nHost: a.example\0.evil.example\n\n",
        "GET / HTTP/1.1\nHost: a.example\nConnection: content-length\nContent-Length: 1\n\na",
        "GET / HTTP/2.0\nHost: a.example\n\n",
        "PRI * HTTP/2.0\n\nSM\n\n",
        "GET /\u{b} HTTP/1.1\nHost: a.example\n\n",
        "GET http://a.example@evil.example/ HTTP/1.1\nHost: a.example\n\n",
        "CONNECT a.example:80 HTTP/1.1\nHost: a.example:80\nContent-Length: 4\n\nabcd",
    ];
    run(async {
        for text in table {
            let at = echo().await;
            let gate = Fake::new(&[("a.example:80", at)]);
            let mut client = caught(&gate).await;
            say(&mut client, text).await;
            let said = rest(&mut client).await;
            assert!(said.starts_with("HTTP/1.1 400 "), "{text:?}: {said}");
            assert_eq!(said.matches("HTTP/1.1 400 ").count(), 1, "{text:?}: {said}");
            assert_eq!(gate.refused().len(), 1, "{text:?}");
            let record = gate.ended.lock().unwrap().pop().unwrap();
            assert_eq!(record.bytes_out, 0, "{text:?}: something was sent");
        }
        // Bare line feeds, which `say` cannot.
        for text in
            ["GET / HTTP/1.1\nHost: a.example\n\n", "GET / HTTP/1.1\r\nHost: a.example\n\r\n"]
        {
            let gate = Fake::new(&[("a.example:80", echo().await)]);
            let mut client = caught(&gate).await;
            client.write_all(text.as_bytes()).await.unwrap();
            assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "));
        }
        // Control: the same, well-formed, comes through.
        let gate = Fake::new(&[("a.example:80", echo().await)]);
        let mut client = caught(&gate).await;
        say(
            &mut client,
            "POST / HTTP/1.1\nHost: a.example\nTransfer-Encoding: chunked\n\n\
            27\nGET /x HTTP/1.1\nHost: evil.example\n\n\n0\n\n",
        )
        .await;
        assert_eq!(answer(&mut client).await.1, "POST / a.example 39");
        assert!(gate.refused().is_empty());
    });
}

#[test]
fn a_broken_chunk_ends_everything() {
    run(async {
        let gate = Fake::new(&[("a.example:80", echo().await)]);
        let mut client = caught(&gate).await;
        say(
            &mut client,
            "POST / HTTP/1.1\nHost: a.example\nTransfer-Encoding: chunked\n\n\
            3\nabcX\n0\n\nGET / HTTP/1.1\nHost: a.example\n\n",
        )
        .await;
        let said = rest(&mut client).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1);
        assert_eq!(gate.refused(), ["a.example:80 malformed"]);
    });
}

#[test]
fn connect_opens_a_tunnel_with_what_was_sent_along() {
    run(async {
        let at = server(|mut s| async move {
            let got = until(&mut s, "!").await;
            s.write_all(format!("<{got}>").as_bytes()).await.unwrap();
        })
        .await;
        let gate = Fake::new(&[("a.example:443", at)]);
        let mut client = proxy(&gate).await;
        say(&mut client, "CONNECT a.example:443 HTTP/1.1\nHost: a.example\n\n\x01early").await;
        let head = until(&mut client, "\r\n\r\n").await;
        assert_eq!(head, "HTTP/1.1 200 Connection established\r\n\r\n");
        client.write_all(b" late!").await.unwrap();
        assert_eq!(rest(&mut client).await, "<\x01early late!>");
    });
}

/// However a CONNECT comes, it gets the answer of its own target.
#[test]
fn connect_gets_the_same_answer_wherever_it_is_said() {
    run(async {
        let at = echo().await;
        let gate = Fake::new(&[("a.example:80", at)]);
        let evil = "CONNECT evil.example:443 HTTP/1.1\nHost: evil.example:443\n\n";
        let request = "GET http://a.example/ HTTP/1.1\nHost: a.example\n\n";
        let tunnel = "CONNECT a.example:80 HTTP/1.1\nHost: a.example:80\n\n";
        for before in ["", request, tunnel] {
            let mut client = proxy(&gate).await;
            say(&mut client, &format!("{before}{evil}GET / HTTP/1.1\nHost: evil.example\n\n"))
                .await;
            let said = rest(&mut client).await;
            let last = said.rfind("HTTP/1.1 ").map(|at| &said[at..]).unwrap_or_default();
            assert!(last.starts_with("HTTP/1.1 403 "), "{before}: {said}");
            assert!(last.contains("not-listed") && last.contains("evil.example"), "{said}");
        }
        let mut client = caught(&gate).await;
        say(&mut client, evil).await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 403 "));
        assert_eq!(gate.refused(), vec!["evil.example:443 not-listed"; 4]);
        // Control.
        let mut client = proxy(&gate).await;
        say(&mut client, &format!("{tunnel}GET /in HTTP/1.1\nHost: a.example\n\n")).await;
        until(&mut client, "\r\n\r\n").await;
        assert_eq!(answer(&mut client).await.1, "GET /in a.example 0");
        // In the tunnel every request is judged, too.
        say(&mut client, "GET /in HTTP/1.1\nHost: evil.example\n\n").await;
        assert!(answer(&mut client).await.0.contains("host-mismatch"));
    });
}

#[test]
fn answers_of_every_length() {
    run(async {
        let table: &[(&str, &'static [&'static str], &str)] = &[
            ("GET", &["HTTP/1.1 200 OK\nContent-Length: 2\n\nab"], "Content-Length: 2\n\nab"),
            (
                "GET",
                &["HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2;x\nab\n0\nT: 1\n\n"],
                "Transfer-Encoding: chunked\n\n2\nab\n0\nT: 1\n\n",
            ),
            ("GET", &["HTTP/1.0 200 OK\n\nab"], "Transfer-Encoding: chunked\n\n2\nab\n0\n\n"),
            ("GET", &["HTTP/1.1 204 No Content\n\n"], "HTTP/1.1 204 No Content\n\n"),
            (
                "GET",
                &["HTTP/1.1 304 Not Modified\nContent-Length: 9\nA: b\n\n"],
                "A: b\nContent-Length: 9\n\n",
            ),
            ("HEAD", &["HTTP/1.1 200 OK\nContent-Length: 9\n\n"], "Content-Length: 9\n\n"),
            (
                "HEAD",
                &["HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n"],
                "Transfer-Encoding: chunked\n\n",
            ),
            (
                "GET",
                &["HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n"],
                "HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 0\n\n",
            ),
        ];
        for (method, script, end) in table {
            let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
            let mut client = caught(&gate).await;
            say(&mut client, &format!("{method} / HTTP/1.1\nHost: a.example\n\n")).await;
            client.shutdown().await.unwrap();
            let said = rest(&mut client).await.replace("\r\n", "\n");
            assert!(said.ends_with(end), "{script:?}: {said:?}");
            assert!(!said.contains("Connection"), "{said}");
        }
        // An old client gets neither chunks nor interim answers.
        let script: &[&str] =
            &["HTTP/1.1 103 x\n\nHTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n\
            2\nab\n0\n\n"];
        let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
        let mut client = caught(&gate).await;
        say(&mut client, "GET / HTTP/1.0\nHost: a.example\n\n").await;
        let said = rest(&mut client).await;
        assert_eq!(said, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab");
    });
}

#[test]
fn ambiguous_answers_are_refused() {
    let table: [&'static [&'static str]; 6] = [
        &["HTTP/1.1 200 OK\nContent-Length: 2\nTransfer-Encoding: chunked\n\n0\n\n"],
        &["HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 3\n\nabc"],
        &["HTTP/1.1 101 Switching\nUpgrade: x\nConnection: upgrade\n\n"],
        &["HTTP/1.1 200 OK\n folded\n\n"],
        &["SSH-2.0-x\n\n"],
        &[],
    ];
    run(async {
        for script in table {
            let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
            let mut client = caught(&gate).await;
            say(&mut client, "GET / HTTP/1.1\nHost: a.example\nConnection: close\n\n").await;
            let said = rest(&mut client).await;
            assert!(said.starts_with("HTTP/1.1 502 "), "{script:?}: {said}");
        }
    });
}

/// An answer that breaks off is not made to look whole.
#[test]
fn a_cut_answer_stays_cut() {
    run(async {
        let table: [(&'static [&'static str], &str); 3] = [
            (&["HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nab"], "\r\n2\r\nab\r\n"),
            (&["HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nabX"], "\r\n2\r\nab\r\n"),
            (&["HTTP/1.1 200 OK\nContent-Length: 5\n\nab"], "\r\n\r\nab"),
        ];
        for (script, end) in table {
            let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
            let mut client = caught(&gate).await;
            say(&mut client, "GET / HTTP/1.1\nHost: a.example\n\n").await;
            let said = rest(&mut client).await;
            assert!(said.ends_with(end), "{said:?}");
        }
    });
}

/// What a server says beyond its answer is nobody's answer.
#[test]
fn an_answer_too_many_is_dropped() {
    run(async {
        let script: &[&str] = &[
            "HTTP/1.1 200 OK\nContent-Length: 1\n\n1\
            HTTP/1.1 200 OK\nContent-Length: 4\n\nevil",
            "never",
        ];
        let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
        let mut client = caught(&gate).await;
        for _ in 0..3 {
            say(&mut client, "GET / HTTP/1.1\nHost: a.example\n\n").await;
            assert_eq!(answer(&mut client).await.1, "1");
        }
        assert_eq!(gate.opened().len(), 3);
    });
}

/// The same host in every spelling is one host, judged and dialled in one form.
#[test]
fn odd_spellings_are_judged_as_what_they_mean() {
    run(async {
        let at = echo().await;
        let gate = Fake::new(&[("192.0.2.1:80", at)]);
        let spellings =
            ["3221225985", "0xc0.0.2.1", "0300.0.2.1", "192.0.513", "[::ffff:192.0.2.1]"];
        for host in spellings {
            let mut client = proxy(&gate).await;
            say(&mut client, &format!("GET http://{host}/ HTTP/1.1\nHost: {host}\n\n")).await;
            assert_eq!(answer(&mut client).await.1, "GET / 192.0.2.1 0", "{host}");
        }
        assert_eq!(gate.opened(), vec!["192.0.2.1:80"; spellings.len()]);
        for host in ["[fe80::1%25eth0]", "a..example", ".example", "a.example%00", "a_b!.example"] {
            let mut client = proxy(&gate).await;
            say(&mut client, &format!("CONNECT {host}:443 HTTP/1.1\n\n")).await;
            assert!(rest(&mut client).await.starts_with("HTTP/1.1 400 "), "{host}");
        }
    });
}

#[test]
fn expect_continue_waits_for_the_server() {
    run(async {
        let at = server(|mut s| async move {
            let head = until(&mut s, "\r\n\r\n").await;
            assert!(head.contains("Expect: 100-continue"), "{head}");
            say(&mut s, "HTTP/1.1 100 Continue\n\n").await;
            let body = until(&mut s, "end").await;
            let text = format!("HTTP/1.1 200 OK\nContent-Length: {}\n\n{body}", body.len());
            say(&mut s, &text).await;
        })
        .await;
        let gate = Fake::new(&[("a.example:80", at)]);
        let mut client = caught(&gate).await;
        say(
            &mut client,
            "PUT / HTTP/1.1\nHost: a.example\nContent-Length: 7\n\
            Expect: 100-continue\n\n",
        )
        .await;
        assert_eq!(until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"the end").await.unwrap();
        assert_eq!(answer(&mut client).await.1, "the end");
    });
}

#[test]
fn an_early_answer_ends_the_connection() {
    run(async {
        let script: &[&str] = &["HTTP/1.1 413 Too Large\nContent-Length: 2\n\nno"];
        let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
        let mut client = caught(&gate).await;
        say(&mut client, "PUT / HTTP/1.1\nHost: a.example\nContent-Length: 99\n\n").await;
        let said = rest(&mut client).await;
        assert!(said.starts_with("HTTP/1.1 413 ") && said.ends_with("\r\n\r\nno"), "{said}");
        assert!(said.contains("Connection: close"), "{said}");
    });
}

#[test]
fn websockets_are_judged_then_left_alone() {
    run(async {
        let at = server(|mut s| async move {
            let head = until(&mut s, "\r\n\r\n").await;
            assert!(head.contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"), "{head}");
            say(
                &mut s,
                "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\n\
                Upgrade: websocket\n\n\x01hello",
            )
            .await;
            let mut got = Vec::new();
            s.read_to_end(&mut got).await.unwrap();
            s.write_all(&got).await.unwrap();
        })
        .await;
        let gate = Fake::new(&[("a.example:80", at)]);
        let mut client = caught(&gate).await;
        say(
            &mut client,
            "GET /chat HTTP/1.1\nHost: a.example\nConnection: keep-alive, Upgrade\n\
            Upgrade: websocket\nSec-WebSocket-Key: x\n\n",
        )
        .await;
        let head = until(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("Upgrade: websocket"), "{head}");
        until(&mut client, "\x01hello").await;
        // Half-closed: the answer still comes.
        client.write_all(b"\0\xff\r\n").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"\0\xff\r\n");
        let record = loop {
            if let Some(record) = gate.ended.lock().unwrap().pop() {
                break record;
            }
            tokio::task::yield_now().await;
        };
        assert!(record.bytes_out > 4 && record.bytes_in >= 10, "{record:?}");
    });
}

/// 8 MiB each way, in chunks and with a length; nothing is held back or lost.
#[test]
fn big_bodies_go_through_in_pieces() {
    const SIZE: usize = 8 << 20;
    run(async {
        let at = server(|stream| async {
            let service = service_fn(|request: hyper::Request<Body>| async move {
                // Straight back, without waiting for its end.
                Ok::<_, Infallible>(hyper::Response::new(request.into_body()))
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        })
        .await;
        for chunked in [false, true] {
            let gate = Fake::new(&[("a.example:80", at)]);
            let mut client = caught(&gate).await;
            let framing = if chunked {
                "Transfer-Encoding: chunked".into()
            } else {
                format!("Content-Length: {SIZE}")
            };
            say(&mut client, &format!("POST / HTTP/1.1\nHost: a.example\n{framing}\n\n")).await;
            let (mut read, mut write) = client.into_split();
            let feed = tokio::spawn(async move {
                let piece = vec![b'x'; 1 << 16];
                for _ in 0..SIZE >> 16 {
                    if chunked {
                        write.write_all(b"10000\r\n").await.unwrap();
                    }
                    write.write_all(&piece).await.unwrap();
                    if chunked {
                        write.write_all(b"\r\n").await.unwrap();
                    }
                }
                if chunked {
                    write.write_all(b"0\r\n\r\n").await.unwrap();
                }
                write
            });
            let mut got = 0;
            let mut room = vec![0; 1 << 16];
            while let Ok(n @ 1..) = read.read(&mut room).await {
                got += room[..n].iter().map(|b| usize::from(*b == b'x')).sum::<usize>();
                if got >= SIZE {
                    break;
                }
            }
            assert_eq!(got, SIZE);
            feed.await.unwrap();
        }
    });
}

/// A server that does not read stops the client; the filter holds no more than a few pieces.
#[test]
fn a_slow_server_holds_the_client_back() {
    run(async {
        let at = server(|stream| async move {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            drop(stream);
        })
        .await;
        let gate = Fake::new(&[("a.example:80", at)]);
        let mut client = caught(&gate).await;
        say(&mut client, "PUT / HTTP/1.1\nHost: a.example\nContent-Length: 1000000000\n\n").await;
        let piece = vec![0; 1 << 16];
        let mut sent = 0_usize;
        while timeout(Duration::from_millis(300), client.write_all(&piece)).await.is_ok() {
            sent += piece.len();
            assert!(sent < 64 << 20, "nothing holds it back");
        }
    });
}

#[test]
fn a_server_that_closed_meanwhile_is_dialled_again() {
    run(async {
        let script: &[&str] = &["HTTP/1.1 200 OK\nContent-Length: 1\n\n1"];
        let gate = Fake::new(&[("a.example:80", scripted(script).await)]);
        let mut client = caught(&gate).await;
        for _ in 0..3 {
            say(&mut client, "GET / HTTP/1.1\nHost: a.example\n\n").await;
            assert_eq!(answer(&mut client).await.1, "1");
        }
        assert_eq!(gate.opened().len(), 3);
        // Other rules: no connection outlives them.
        let gate = Fake::new(&[("a.example:80", echo().await)]);
        let mut client = caught(&gate).await;
        for generation in [0, 0, 1, 1, 2] {
            gate.generation.store(generation, Ordering::Relaxed);
            say(&mut client, "GET / HTTP/1.1\nHost: a.example\n\n").await;
            answer(&mut client).await;
        }
        assert_eq!(gate.opened().len(), 3);
    });
}

#[test]
fn the_answer_fits_the_asker() {
    run(async {
        let gate = Fake::new(&[("down.example:80", ([127, 0, 0, 1], 1).into())]);
        for (accept, kind) in [
            ("*/*", "application/json"),
            ("text/html, */*", "text/plain; charset=utf-8"),
            ("text/plain, application/json", "application/json"),
        ] {
            let mut client = proxy(&gate).await;
            say(
                &mut client,
                &format!(
                    "GET http://x.example/ HTTP/1.1\nHost: x.example\n\
                Accept: {accept}\n\n"
                ),
            )
            .await;
            let (head, _) = answer(&mut client).await;
            assert!(head.contains(&format!("Content-Type: {kind}\r\n")), "{head}");
        }
        let mut client = proxy(&gate).await;
        say(&mut client, "GET http://down.example/ HTTP/1.1\nHost: down.example\n\n").await;
        assert!(answer(&mut client).await.0.starts_with("HTTP/1.1 502 "));
        say(&mut client, "GET / HTTP/1.1\nHost: localhost:808\n\n").await;
        assert!(answer(&mut client).await.1.contains("ringfence policy explain"));
        say(&mut client, "HEAD http://x.example/ HTTP/1.1\nHost: x.example\n\n").await;
        let head = until(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        // A refused body is not read: the connection ends, the answer arrives.
        say(
            &mut client,
            &format!(
                "PUT http://x.example/ HTTP/1.1\nHost: x.example\n\
            Content-Length: 100000\n\n{}",
                "x".repeat(50_000)
            ),
        )
        .await;
        assert!(rest(&mut client).await.starts_with("HTTP/1.1 403 "));
    });
}

#[test]
fn an_idle_connection_is_small() {
    run(async {
        let (_client, mut inner) = pair().await;
        let gate = Fake::new(&[]);
        let mode = Mode::Proxy { client: peer() };
        let size = size_of_val(&talk(&*gate, &mut inner, Vec::new(), mode));
        println!("the future of an HTTP connection: {size} bytes");
        assert!(size < 8 * 1024, "{size}");
    });
}

#[test]
fn curl_goes_through() {
    if std::process::Command::new("curl").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no curl here");
        return;
    }
    run(async {
        let at = echo().await;
        let gate = Fake::new(&[("a.example:80", at)]);
        let served = Arc::clone(&gate);
        let port = server(move |stream| {
            serve(Arc::clone(&served), stream, Vec::new(), Mode::Proxy { client: peer() })
        })
        .await;
        let calls = Mutex::new(0);
        let curl = async |arguments: &[&str]| {
            *calls.lock().unwrap() += 1;
            let proxy = format!("http://{port}");
            let mut command = std::process::Command::new("curl");
            command.args(["-sS", "-m", "10", "-x", &proxy]).args(arguments);
            for name in ["no_proxy", "NO_PROXY"] {
                command.env_remove(name);
            }
            let run = tokio::task::spawn_blocking(move || command.output().unwrap());
            let output = run.await.unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(curl(&["http://a.example/x"]).await, "GET /x a.example 0");
        assert_eq!(curl(&["-p", "http://a.example/x"]).await, "GET /x a.example 0");
        let big = "x".repeat(100_000);
        assert_eq!(curl(&["-d", &big, "http://a.example/"]).await, "POST / a.example 100000");
        let chunked = ["-H", "Transfer-Encoding: chunked", "-d", "abc", "http://a.example/"];
        assert_eq!(curl(&chunked).await, "POST / a.example 3");
        let two = ["http://a.example/1", "http://a.example/2"];
        assert_eq!(curl(&two).await, "GET /1 a.example 0GET /2 a.example 0");
        let code = ["-o", "/dev/null", "-w", "%{http_code} %{http_connect}"];
        assert_eq!(curl(&[&code[..], &["http://evil.example/"]].concat()).await, "403 000");
        assert_eq!(curl(&[&code[..], &["-p", "http://evil.example/"]].concat()).await, "000 403");
        assert_eq!(gate.refused().len(), 2);
    });
}

/// Not a test: how fast bodies are. `cargo test --release -p ringfence-proxy fast -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn fast_bodies() {
    const SIZE: usize = 1 << 30;
    run(async {
        // Peers on threads of their own, as outside.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    use std::io::{Read, Write};
                    let _ = stream.read(&mut [0; 4096]);
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
                    let _ = stream.write_all(head.as_bytes());
                    let piece = vec![0; 1 << 17];
                    for _ in 0..SIZE >> 17 {
                        if stream.write_all(&piece).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let gate = Fake::new(&[("a.example:80", at)]);
        let served = Arc::clone(&gate);
        let front = server(move |stream| {
            serve(Arc::clone(&served), stream, Vec::new(), Mode::Proxy { client: peer() })
        })
        .await;
        for (what, to) in [("direct", at), ("filtered", front), ("direct", at), ("filtered", front)]
        {
            let fetch = move || {
                use std::io::{Read, Write};
                let mut stream = std::net::TcpStream::connect(to).unwrap();
                stream
                    .write_all(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
                    .unwrap();
                let mut room = vec![0; 1 << 17];
                let mut got = 0;
                while got < SIZE {
                    match stream.read(&mut room).unwrap() {
                        0 => break,
                        n => got += n,
                    }
                }
            };
            let begun = std::time::Instant::now();
            tokio::task::spawn_blocking(fetch).await.unwrap();
            println!("{what}: {:.2} GiB/s", 1.0 / begun.elapsed().as_secs_f64());
        }
    });
}
