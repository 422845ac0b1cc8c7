use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::gate::Ticket;
use crate::record::Record;
use crate::{Via, lock};

/// Records what was refused; opens nothing.
#[derive(Default)]
struct Fake {
    refused: Mutex<Vec<Why>>,
}

impl Gate for Fake {
    async fn open(&self, asked: &Asked) -> Result<Opened, Refusal> {
        Err(Refusal(Record::new(asked, false, "not-listed", "test")))
    }

    fn refuse(&self, asked: &Asked, why: Why) -> Refusal {
        lock(&self.refused).push(why);
        Refusal(Record::new(asked, false, "test", "test"))
    }
}

/// A connected pair on loopback.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(address), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

struct Bench {
    gate: Arc<Fake>,
    client: TcpStream,
    server: TcpStream,
    records: Arc<Mutex<Vec<Record>>>,
    task: tokio::task::JoinHandle<()>,
}

fn asked(host: Host) -> Asked {
    let client: SocketAddr = "127.0.0.1:1".parse().unwrap();
    Asked { host, port: 443, via: Via::Direct, client }
}

fn name() -> Host {
    Host::Name(Name::parse(b"good.test").unwrap())
}

async fn bench(host: Host, prefix: &[u8]) -> Bench {
    let (client, inside) = pair().await;
    let (outside, server) = pair().await;
    let records: Arc<Mutex<Vec<Record>>> = Arc::default();
    let gate: Arc<Fake> = Arc::default();
    let asked = asked(host);
    let sink = {
        let records = Arc::clone(&records);
        Arc::new(move |record: &Record| lock(&records).push(record.clone()))
    };
    let ticket = Ticket::new(Record::new(&asked, true, "allowed", "test"), sink);
    let opened = Opened { stream: outside, ticket };
    let task = tokio::spawn(run(Arc::clone(&gate), inside, prefix.to_vec(), asked, opened));
    Bench { gate, client, server, records, task }
}

/// A TLS 1.2 client hello with these extensions (type, body).
fn client_hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, body) in extensions {
        list.extend_from_slice(&kind.to_be_bytes());
        list.extend_from_slice(&(body.len() as u16).to_be_bytes());
        list.extend_from_slice(body);
    }
    let mut hello = vec![3, 3];
    hello.extend_from_slice(&[7; 32]);
    hello.push(0);
    hello.extend_from_slice(&[0, 2, 0x13, 1, 1, 0]);
    hello.extend_from_slice(&(list.len() as u16).to_be_bytes());
    hello.extend_from_slice(&list);
    let mut handshake = vec![1, 0];
    handshake.extend_from_slice(&(hello.len() as u16).to_be_bytes());
    handshake.extend_from_slice(&hello);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(handshake.len() as u16).to_be_bytes());
    record.extend_from_slice(&handshake);
    record
}

fn server_name(name: &str) -> (u16, Vec<u8>) {
    let mut body = ((name.len() + 3) as u16).to_be_bytes().to_vec();
    body.push(0);
    body.extend_from_slice(&(name.len() as u16).to_be_bytes());
    body.extend_from_slice(name.as_bytes());
    (0, body)
}

const ECH: u16 = 0xfe0d;

async fn read_some(stream: &mut TcpStream) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await;
    let n = read.unwrap().unwrap();
    buffer.truncate(n);
    buffer
}

#[tokio::test]
async fn a_hello_for_the_judged_name_passes() {
    let mut bench = bench(name(), b"").await;
    let hello = client_hello(&[server_name("GOOD.test")]);
    bench.client.write_all(&hello[..10]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    bench.client.write_all(&hello[10..]).await.unwrap();
    assert_eq!(read_some(&mut bench.server).await, hello);
    bench.server.write_all(b"hi").await.unwrap();
    assert_eq!(read_some(&mut bench.client).await, b"hi");
    drop((bench.client, bench.server));
    bench.task.await.unwrap();
    let records = lock(&bench.records);
    assert_eq!((records[0].bytes_out, records[0].bytes_in), (hello.len() as u64, 2));
}

#[tokio::test]
async fn a_hello_for_another_name_is_refused_before_the_server_sees_it() {
    for (extensions, why) in [
        (vec![server_name("evil.test")], Why::ServerName(Some("evil.test".into()))),
        (vec![], Why::ServerName(None)),
        (
            vec![server_name("evil.test"), (ECH, vec![0; 40])],
            Why::ServerName(Some("evil.test".into())),
        ),
    ] {
        let mut bench = bench(name(), b"").await;
        bench.client.write_all(&client_hello(&extensions)).await.unwrap();
        assert_eq!(read_some(&mut bench.client).await, hello::alert());
        let mut rest = Vec::new();
        assert!(bench.server.read_to_end(&mut rest).await.is_err() || rest.is_empty());
        assert!(rest.is_empty());
        drop(bench.client);
        bench.task.await.unwrap();
        assert_eq!(*lock(&bench.gate.refused), [why]);
    }
}

#[test]
fn names_agree_in_canonical_form_only() {
    let judged = name();
    for good in ["good.test", "GOOD.Test", "good.test."] {
        // A trailing dot is no part of a server name, yet means the same host.
        let _ = judge_hello(&judged, Some(good.as_bytes()), false);
    }
    assert!(judge_hello(&judged, Some(b"good.test"), true).is_ok(), "a meaningless ECH");
    for bad in ["xgood.test", "good.test.evil.test", "good.test\0.evil.test", "", "good"] {
        assert!(judge_hello(&judged, Some(bad.as_bytes()), false).is_err(), "{bad}");
    }
    let address = Host::Address(IpAddr::from([192, 0, 2, 1]));
    assert!(judge_hello(&address, Some(b"any.test"), false).is_ok());
    assert!(judge_hello(&address, None, false).is_ok());
    assert_eq!(judge_hello(&address, Some(b"any.test"), true), Err(Why::EncryptedHello));
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let mut bench = bench(name(), b"").await;
    bench.server.write_all(b"SSH-2.0-server\r\n").await.unwrap();
    assert_eq!(read_some(&mut bench.client).await, b"SSH-2.0-server\r\n");
    bench.client.write_all(b"SSH-2.0-client\r\n").await.unwrap();
    assert_eq!(read_some(&mut bench.server).await, b"SSH-2.0-client\r\n");
}

#[tokio::test]
async fn what_came_before_is_part_of_the_stream() {
    let mut bench = bench(name(), b"\0\0\0\x08star").await;
    bench.client.write_all(b"tup").await.unwrap();
    let mut got = vec![0; 11];
    bench.server.read_exact(&mut got).await.unwrap();
    assert_eq!(got, b"\0\0\0\x08startup");
}

#[tokio::test]
async fn ends_are_passed_on_one_by_one() {
    let mut bench = bench(name(), b"").await;
    // The client has nothing to say.
    bench.client.shutdown().await.unwrap();
    assert_eq!(read_some(&mut bench.server).await, b"");
    bench.server.write_all(b"still here").await.unwrap();
    assert_eq!(read_some(&mut bench.client).await, b"still here");
    bench.server.shutdown().await.unwrap();
    assert_eq!(read_some(&mut bench.client).await, b"");
    bench.task.await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_first_still_gets_the_rest() {
    let mut bench = bench(name(), b"").await;
    bench.server.write_all(b"bye").await.unwrap();
    bench.server.shutdown().await.unwrap();
    let mut got = Vec::new();
    bench.client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
    bench.client.write_all(b"\x01thanks").await.unwrap();
    bench.client.shutdown().await.unwrap();
    let mut got = Vec::new();
    bench.server.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"\x01thanks");
    bench.task.await.unwrap();
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    for from_server in [true, false] {
        let mut bench = bench(name(), b"").await;
        bench.client.write_all(b"\x01").await.unwrap();
        assert_eq!(read_some(&mut bench.server).await, b"\x01");
        let (gone, mut other) =
            if from_server { (bench.server, bench.client) } else { (bench.client, bench.server) };
        gone.set_zero_linger().unwrap();
        drop(gone);
        let error = other.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        bench.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_beginning_that_ends_is_refused() {
    let mut bench = bench(name(), b"").await;
    bench.client.write_all(&client_hello(&[server_name("good.test")])[..20]).await.unwrap();
    bench.client.shutdown().await.unwrap();
    bench.task.await.unwrap();
    assert!(matches!(lock(&bench.gate.refused)[0], Why::Malformed(_)));
    assert!(matches!(bench.server.read(&mut [0; 8]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_beginning_that_stalls_is_refused() {
    let mut bench = bench(name(), b"").await;
    bench.client.write_all(&[22, 3]).await.unwrap();
    bench.task.await.unwrap();
    assert!(matches!(lock(&bench.gate.refused)[0], Why::Limit(_)));
}

/// Bytes that show where one is missing, doubled or moved.
fn pattern(from: u64, out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let at = from + i as u64;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

async fn send_pattern(mut stream: tokio::net::tcp::OwnedWriteHalf, total: u64) {
    let mut at = 0;
    let mut chunk = vec![0; 100_003];
    while at < total {
        let n = (chunk.len() as u64).min(total - at) as usize;
        pattern(at, &mut chunk[..n]);
        stream.write_all(&chunk[..n]).await.unwrap();
        at += n as u64;
    }
    stream.shutdown().await.unwrap();
}

async fn check_pattern(mut stream: tokio::net::tcp::OwnedReadHalf, total: u64, slow: bool) {
    let (mut at, mut chunk, mut expected) = (0, vec![0; 70_001], vec![0; 70_001]);
    loop {
        let n = stream.read(&mut chunk).await.unwrap();
        if n == 0 {
            break;
        }
        pattern(at, &mut expected[..n]);
        assert!(chunk[..n] == expected[..n], "at {at}");
        at += n as u64;
        if slow && at % 7 == 0 {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    assert_eq!(at, total);
}

#[tokio::test]
async fn big_transfers_both_ways_arrive_whole() {
    const TOTAL: u64 = 48 << 20;
    let bench = bench(name(), b"").await;
    let (client_read, client_write) = bench.client.into_split();
    let (server_read, server_write) = bench.server.into_split();
    let first = async {
        let mut write = client_write;
        write.write_all(&[0]).await.unwrap();
        write
    };
    let (write, read) = tokio::join!(first, async {
        let mut read = server_read;
        let mut one = [9];
        read.read_exact(&mut one).await.unwrap();
        read
    });
    tokio::join!(
        send_pattern(write, TOTAL),
        send_pattern(server_write, TOTAL),
        check_pattern(read, TOTAL, true),
        check_pattern(client_read, TOTAL, false),
    );
    bench.task.await.unwrap();
    let records = lock(&bench.records);
    assert_eq!((records[0].bytes_out, records[0].bytes_in), (TOTAL + 1, TOTAL));
}

#[tokio::test]
async fn many_at_once_arrive_whole() {
    // More directions than there are pipes, so some go through the shared buffer.
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..80 {
        all.spawn(async {
            const TOTAL: u64 = 600_000;
            let bench = bench(name(), b"\0").await;
            let (client_read, client_write) = bench.client.into_split();
            let (mut server_read, server_write) = bench.server.into_split();
            server_read.read_exact(&mut [0]).await.unwrap();
            tokio::join!(
                send_pattern(client_write, TOTAL),
                send_pattern(server_write, TOTAL),
                check_pattern(server_read, TOTAL, true),
                check_pattern(client_read, TOTAL, true),
            );
            bench.task.await.unwrap();
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn refusals_speak_the_clients_protocol() {
    let refusal = Refusal(Record::new(&asked(name()), false, "not-listed", "not in network.allow"));
    let said = |bytes: Vec<u8>| {
        let refusal = refusal.clone();
        async move {
            let (mut client, inside) = pair().await;
            let task = tokio::spawn(async move { turn_away(inside, &refusal).await });
            client.write_all(&bytes).await.unwrap();
            let mut got = Vec::new();
            let result = client.read_to_end(&mut got).await;
            drop(client);
            task.await.unwrap();
            result.map(|_| got)
        }
    };
    let hello = client_hello(&[server_name("evil.test")]);
    assert_eq!(said(hello).await.unwrap(), hello::alert());
    let http = said(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n".to_vec()).await.unwrap();
    let http = String::from_utf8(http).unwrap();
    assert!(http.starts_with("HTTP/1.1 403 ") && http.contains("not-listed"), "{http}");
    assert!(said(b"SSH-2.0-x\r\n".to_vec()).await.is_err());
    assert!(said(Vec::new()).await.is_err());
}

/// A server that answers and closes without having read everything: its answer arrives.
#[tokio::test]
async fn an_answer_before_the_end_of_the_question_arrives() {
    let mut bench = bench(name(), b"\0").await;
    bench.server.read_exact(&mut [0]).await.unwrap();
    bench.client.write_all(&vec![1; 1 << 19]).await.unwrap();
    bench.server.write_all(b"too large").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(bench.server);
    let _ = bench.client.write_all(&[1; 1000]).await;
    let mut got = [0; 9];
    bench.client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"too large");
    bench.task.await.unwrap();
}

#[tokio::test]
async fn a_word_that_is_no_request_passes_when_it_ends() {
    let mut bench = bench(name(), b"").await;
    bench.client.write_all(b"ping!").await.unwrap();
    bench.client.shutdown().await.unwrap();
    let mut got = Vec::new();
    bench.server.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"ping!");
    bench.server.write_all(b"pong").await.unwrap();
    assert_eq!(read_some(&mut bench.client).await, b"pong");
}
