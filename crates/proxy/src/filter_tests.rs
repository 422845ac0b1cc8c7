use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ringfence_policy::{HostRule, Origin};

use super::*;
use crate::record::Record;

type Records = Arc<Mutex<Vec<Record>>>;

fn rules(allow: &[String]) -> Arc<Rules> {
    let entry = |host: &String| HostRule {
        host: host.clone(),
        origin: Origin { layer: "ringfence.toml".into(), line: Some(1) },
    };
    Arc::new(Rules::of(&allow.iter().map(entry).collect::<Vec<_>>(), &[]).unwrap())
}

struct Running {
    filter: Filter,
    /// The proxy inside.
    tcp: SocketAddr,
    /// A listener of a port of its own: what comes there is DNS over TCP.
    udp: SocketAddr,
    records: Records,
}

fn start(allow: &[String]) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp, udp) = (listener.local_addr().unwrap(), datagrams.local_addr().unwrap());
    let records: Records = Arc::default();
    let sink = {
        let records = Arc::clone(&records);
        Arc::new(move |record: &Record| lock(&records).push(record.clone()))
    };
    let filter = Filter::start(Config {
        sockets: Sockets {
            tcp: vec![OwnedFd::from(listener)],
            udp: vec![OwnedFd::from(datagrams)],
            ..Sockets::default()
        },
        inspector: None,
        rules: rules(allow),
        sink,
        upstream: None,
        proxy_port: tcp.port(),
        init: None,
        control: None,
    })
    .unwrap();
    Running { filter, tcp, udp, records }
}

/// An echo server of the host's loopback.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn connect(proxy: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// `CONNECT` and the head of its answer.
fn tunnel(proxy: SocketAddr, target: &str) -> (TcpStream, String) {
    let mut stream = connect(proxy);
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
        head.push(byte[0]);
    }
    (stream, String::from_utf8(head).unwrap())
}

fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"\x01hello").unwrap();
    let mut back = [0; 6];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"\x01hello");
}

#[test]
fn a_tunnel_leads_to_what_is_allowed_only() {
    let port = echo();
    let running = start(&[format!("localhost:{port}")]);
    let (mut stream, head) = tunnel(running.tcp, &format!("localhost:{port}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    echoes(&mut stream);
    drop(stream);
    let (_, head) = tunnel(running.tcp, "evil.test:443");
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let started = Instant::now();
    while lock(&running.records).len() < 2 && started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let records = lock(&running.records);
    let one = |allowed| records.iter().find(|r| r.allowed == allowed).unwrap();
    assert_eq!((one(true).bytes_out, one(true).bytes_in), (6, 6));
    assert_eq!((one(false).reason, one(false).port), ("not-listed", 443));
}

#[test]
fn socks_asks_the_same_judge() {
    let port = echo();
    let running = start(&[format!("localhost:{port}")]);
    for (target, code) in [(port, 0), (port ^ 1, 2)] {
        let mut stream = connect(running.tcp);
        stream.write_all(&[5, 1, 0]).unwrap();
        let mut method = [0; 2];
        stream.read_exact(&mut method).unwrap();
        let mut request = vec![5, 1, 0, 3, 9];
        request.extend_from_slice(b"localhost");
        request.extend_from_slice(&target.to_be_bytes());
        stream.write_all(&request).unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[1], code);
        if code == 0 {
            echoes(&mut stream);
        }
    }
}

#[test]
fn names_are_answered() {
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    let running = start(&["api.example.test".to_owned()]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for (name, code) in
        [("api.example.test.", ResponseCode::NoError), ("x.test.", ResponseCode::NXDomain)]
    {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        socket.send_to(&message.to_vec().unwrap(), running.udp).unwrap();
        let mut buffer = [0; 1500];
        let n = socket.recv(&mut buffer).unwrap();
        let reply = Message::from_vec(&buffer[..n]).unwrap();
        assert_eq!(reply.metadata.response_code, code);
    }
}

#[test]
fn new_rules_hold_at_once_and_close_what_they_forbid() {
    let (port, other) = (echo(), echo());
    let running = start(&[format!("localhost:{port}"), format!("localhost:{other}")]);
    let (mut stays, _) = tunnel(running.tcp, &format!("localhost:{other}"));
    let (mut goes, _) = tunnel(running.tcp, &format!("localhost:{port}"));
    echoes(&mut goes);
    echoes(&mut stays);
    running.filter.replace_rules(rules(&[format!("localhost:{other}")]));
    assert!(matches!(goes.read(&mut [0]), Ok(0) | Err(_)), "closed");
    echoes(&mut stays);
    let (_, head) = tunnel(running.tcp, &format!("localhost:{port}"));
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    running.filter.replace_rules(rules(&[format!("localhost:{port}")]));
    let (mut again, _) = tunnel(running.tcp, &format!("localhost:{port}"));
    echoes(&mut again);
}

#[test]
fn the_end_of_the_filter_is_the_end_of_the_network() {
    let port = echo();
    let running = start(&[format!("localhost:{port}")]);
    assert!(running.filter.is_running());
    let (mut open, _) = tunnel(running.tcp, &format!("localhost:{port}"));
    echoes(&mut open);
    let started = Instant::now();
    drop(running.filter);
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(running.tcp).is_err());
}

#[test]
fn what_is_asked_just_before_the_end_is_on_record() {
    for _ in 0..50 {
        let running = start(&["a.example".to_owned()]);
        let mut client = TcpStream::connect(running.tcp).unwrap();
        client.write_all(b"CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n").unwrap();
        drop(running.filter);
        let records = lock(&running.records);
        assert!(
            matches!(&**records, [one] if !one.allowed && one.reason == "not-listed"),
            "{records:?}"
        );
    }
}

#[test]
fn connections_beyond_the_limit_of_descriptors_do_not_spin() {
    assert!(lasting(&rustix::io::Errno::MFILE.into()));
    assert!(!lasting(&rustix::io::Errno::CONNABORTED.into()));
}

#[test]
fn an_upstream_that_is_none_is_an_error() {
    let config = Config {
        sockets: Sockets::default(),
        inspector: None,
        rules: Arc::default(),
        sink: Arc::new(|_| {}),
        upstream: Some("socks5://x".into()),
        proxy_port: 808,
        init: None,
        control: None,
    };
    let error = Filter::start(config).unwrap_err();
    assert!(error.to_string().starts_with("network.upstream: "), "{error}");
}

#[test]
fn few_descriptors_mean_few_connections() {
    assert_eq!(most_connections(None), CONNECTIONS);
    assert_eq!(most_connections(Some(1 << 20)), CONNECTIONS);
    assert_eq!(most_connections(Some(1024)), 256);
    assert_eq!(most_connections(Some(64)), LEAST_CONNECTIONS);
}
