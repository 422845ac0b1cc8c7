use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record as Answer};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use ringfence_policy::Origin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

/// Lets through the names and addresses of one entry each; 127.0.0.1 stands for a public address
/// and the rest of 127.0.0.0/8 for special ones.
struct Fake {
    name: HostRule,
    address: Option<IpAddr>,
}

fn rule(host: &str) -> HostRule {
    let origin = Origin { layer: "ringfence.toml".into(), line: Some(3) };
    HostRule { host: host.into(), origin }
}

impl Fake {
    fn verdict(&self, allowed: bool, otherwise: Reason) -> Verdict<'_> {
        Verdict {
            allowed,
            rule: allowed.then_some(&self.name),
            reason: if allowed { Reason::Allowed } else { otherwise },
        }
    }
}

impl Book for Fake {
    fn name(&self, name: &Name, port: Option<u16>) -> Verdict<'_> {
        let listed = match self.name.host.strip_prefix("*.") {
            Some(suffix) => name.as_str().ends_with(&format!(".{suffix}")),
            None => name.as_str() == self.name.host,
        };
        if listed && port == Some(9) {
            return Verdict { allowed: false, rule: Some(&self.name), reason: Reason::Port };
        }
        self.verdict(listed, Reason::NotListed)
    }

    fn address(&self, address: IpAddr, _: u16) -> Verdict<'_> {
        self.verdict(self.address == Some(address), Reason::NotListed)
    }

    fn resolved(&self, _: &Name, address: IpAddr, _: u16) -> Verdict<'_> {
        self.verdict(address == IpAddr::from([127, 0, 0, 1]), Reason::ResolvedSpecial)
    }
}

/// A name server whose answer is a function of how often it was asked.
async fn name_server(
    answers: impl Fn(&str, u32) -> Vec<IpAddr> + Send + 'static,
) -> (Resolver, Arc<AtomicU64>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        let mut rounds = HashMap::new();
        loop {
            let (n, client) = socket.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            let query = Message::from_vec(&buffer[..n]).unwrap();
            let question = query.queries[0].clone();
            let name = question.name().to_ascii().to_lowercase();
            let round = rounds.entry((name.clone(), question.query_type())).or_insert(0);
            *round += 1;
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.metadata.recursion_available = true;
            reply.add_query(question.clone());
            for address in answers(name.trim_end_matches('.'), *round) {
                let data = match address {
                    IpAddr::V4(a) => RData::A(A(a)),
                    IpAddr::V6(a) => RData::AAAA(AAAA(a)),
                };
                if data.record_type() == question.query_type() {
                    reply.add_answer(Answer::from_rdata(question.name().clone(), 0, data));
                }
            }
            if reply.answers.is_empty() {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
        }
    });
    let mut connection = ConnectionConfig::udp();
    connection.port = address.port();
    let server = NameServerConfig::new(address.ip(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = Duration::from_secs(1);
    (Resolver::fixed(config, options), asked)
}

struct Bench {
    judge: Arc<Judge>,
    records: Arc<Mutex<Vec<Record>>>,
    queries: Arc<AtomicU64>,
}

async fn bench(
    book: Fake,
    upstream: Option<&str>,
    answers: impl Fn(&str, u32) -> Vec<IpAddr> + Send + 'static,
) -> Bench {
    let (resolver, queries) = name_server(answers).await;
    let records: Arc<Mutex<Vec<Record>>> = Arc::default();
    let sink = {
        let records = Arc::clone(&records);
        Arc::new(move |record: &Record| lock(&records).push(record.clone()))
    };
    let judge = Judge::new(Parts {
        book: Arc::new(book),
        resolver,
        inspector: None,
        sink,
        finder: Finder::new(None, None),
        upstream: upstream.map(|u| Upstream::parse(u).unwrap()),
        proxy_port: 808,
        six: true,
    });
    Bench { judge: Arc::new(judge), records, queries }
}

fn good() -> Fake {
    Fake { name: rule("good.test"), address: None }
}

fn to(host: &str, port: u16) -> Asked {
    Asked {
        host: Host::parse(host.as_bytes()).unwrap(),
        port,
        via: Via::Direct,
        client: "127.0.0.1:4000".parse().unwrap(),
    }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// A server that counts who comes.
async fn server(address: SocketAddr) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            open.push(stream);
        }
    });
    (port, count)
}

async fn refused(bench: &Bench, asked: &Asked) -> Record {
    let refusal = bench.judge.open(asked).await.unwrap_err();
    let last = lock(&bench.records).last().cloned().unwrap();
    assert_eq!(last.to_string(), refusal.0.to_string());
    refusal.0
}

#[tokio::test]
async fn an_allowed_name_is_dialled_at_its_checked_address() {
    let bench = bench(good(), None, |_, _| vec![ip(7), ip(1), ip(8)]).await;
    let (port, _) = server("127.0.0.1:0".parse().unwrap()).await;
    for _ in 0..3 {
        let opened = bench.judge.open(&to("good.test", port)).await.unwrap();
        assert_eq!(opened.stream.peer_addr().unwrap().ip(), ip(1));
    }
    let records = lock(&bench.records);
    assert_eq!((records.len(), records[0].reason, records[0].address), (3, "allowed", Some(ip(1))));
    assert_eq!(records[0].origin.as_deref(), Some("ringfence.toml:3"));
}

#[tokio::test]
async fn a_name_that_is_not_listed_is_never_looked_up() {
    let bench = bench(good(), None, |_, _| vec![ip(1)]).await;
    let record = refused(&bench, &to("evil.test", 443)).await;
    assert_eq!(record.reason, "not-listed");
    let remedy = record.remedy.unwrap();
    assert!(remedy.contains("--allow-host evil.test:443"), "{remedy}");
    assert_eq!(refused(&bench, &to("good.test", 9)).await.reason, "port");
    assert_eq!(bench.queries.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_with_special_addresses_only_is_refused() {
    let bench = bench(good(), None, |_, _| vec![ip(9), "198.18.0.7".parse().unwrap()]).await;
    let record = refused(&bench, &to("good.test", 443)).await;
    assert_eq!((record.reason, record.name.as_deref()), ("resolved-special", Some("good.test")));
    assert_eq!(record.address, Some(ip(9)));
}

#[tokio::test]
async fn a_name_without_address_and_a_dead_server_are_told_apart() {
    let bench = bench(good(), None, |_, _| vec![]).await;
    assert_eq!(refused(&bench, &to("good.test", 443)).await.reason, "unresolvable");
    let bench = self::bench(good(), None, |_, _| vec![ip(1)]).await;
    assert_eq!(refused(&bench, &to("good.test", 1)).await.reason, "unreachable");
}

/// The name server gives an allowed address first and a special one ever after, or both, or in
/// turn: whatever is dialled was checked.
#[tokio::test]
async fn rebinding_never_leads_to_an_unchecked_address() {
    let bench = bench(good(), None, |_, round| match round % 3 {
        1 => vec![ip(1)],
        2 => vec![ip(66)],
        _ => vec![ip(66), ip(1)],
    })
    .await;
    let (port, _) = server("127.0.0.1:0".parse().unwrap()).await;
    let (_, private) = server(SocketAddr::new(ip(66), port)).await;
    let mut outcomes = [0, 0];
    for _ in 0..30 {
        match bench.judge.open(&to("good.test", port)).await {
            Ok(opened) => {
                assert_eq!(opened.stream.peer_addr().unwrap().ip(), ip(1));
                outcomes[0] += 1;
            }
            Err(refusal) => {
                assert_eq!(refusal.0.reason, "resolved-special");
                outcomes[1] += 1;
            }
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}: the server did change its mind");
    assert_eq!(private.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn addresses_are_judged_as_addresses() {
    let book = Fake { address: Some(ip(1)), ..good() };
    let bench = bench(book, None, |_, _| vec![]).await;
    let (port, count) = server("127.0.0.1:0".parse().unwrap()).await;
    assert!(bench.judge.open(&to("127.0.0.1", port)).await.is_ok());
    // The same address in another spelling, and the name that means it.
    let mapped =
        Asked { host: Host::Address("::ffff:127.0.0.1".parse().unwrap()), ..to("a", port) };
    assert!(bench.judge.open(&mapped).await.is_ok());
    assert!(bench.judge.open(&to("localhost", port)).await.is_ok());
    let record = refused(&bench, &to("127.0.0.2", port)).await;
    assert!(record.detail.contains("stands for none"), "{}", record.detail);
    let record = refused(&bench, &to("198.18.3.3", port)).await;
    assert_eq!(record.reason, "not-listed");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(count.load(Ordering::SeqCst), 3);
    assert_eq!(bench.queries.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn new_rules_close_what_they_forbid() {
    let bench = bench(good(), None, |_, _| vec![ip(1)]).await;
    let (port, _) = server("127.0.0.1:0".parse().unwrap()).await;
    let asked = to("good.test", port);
    let connection = bench.judge.connections.begin(asked.client);
    let opened = bench.judge.open(&asked).await.unwrap();
    bench.judge.replace(Arc::new(good()));
    let closed = |connection: Arc<Connection>| async move {
        tokio::time::timeout(Duration::from_millis(50), connection.closed()).await.is_ok()
    };
    assert!(!closed(Arc::clone(&connection)).await, "still allowed");
    bench.judge.replace(Arc::new(Fake { name: rule("other.test"), address: None }));
    assert!(closed(Arc::clone(&connection)).await);
    drop(opened);
    bench.judge.replace(Arc::new(Fake { name: rule("third.test"), address: None }));
    assert!(!closed(Arc::clone(&connection)).await, "nothing is open any more");
    bench.judge.connections.end(asked.client, &connection);
    assert!(lock(&bench.judge.connections.served).is_empty());
    assert_eq!(refused(&bench, &asked).await.reason, "not-listed");
}

#[tokio::test]
async fn refused_names_are_recorded_once_then_counted() {
    let bench = bench(good(), None, |_, _| vec![]).await;
    let client = "127.0.0.1:4001".parse().unwrap();
    let ask = |text: &str| {
        let name = Name::parse(text.as_bytes()).unwrap();
        bench.judge.standing(&name, client, Instant::now())
    };
    for _ in 0..150 {
        assert_eq!(ask("evil.test"), Standing::Refused);
    }
    {
        let records = lock(&bench.records);
        let details: Vec<_> = records.iter().map(|r| r.detail.as_str()).collect();
        assert_eq!(details.len(), 3, "{details:?}");
        assert!(details[2].ends_with("(asked 100 times)"));
        assert_eq!(records[0].via, Via::Dns);
    }
    for i in 0..5_000 {
        ask(&format!("a{i}.evil.test"));
    }
    let records = lock(&bench.records);
    assert!(records.len() <= REFUSED_NAMES + 4, "{}", records.len());
    assert_eq!(records.last().unwrap().reason, "limit");
}

#[tokio::test]
async fn names_under_a_wildcard_are_limited_at_every_door() {
    let book = Fake { name: rule("*.wild.test"), address: None };
    let bench = bench(book, None, |_, _| vec![]).await;
    let client = "127.0.0.1:4001".parse().unwrap();
    let mut limited = 0;
    for i in 0..2_000 {
        let name = Name::parse(format!("secret{i}.wild.test").as_bytes()).unwrap();
        limited +=
            usize::from(bench.judge.standing(&name, client, Instant::now()) == Standing::Limit);
    }
    assert!(limited > 900, "{limited}");
    assert!(lock(&bench.records).iter().any(|r| r.reason == "limit"));
    let record = refused(&bench, &to("one-more.wild.test", 443)).await;
    assert_eq!(record.reason, "limit");
    assert_eq!(bench.queries.load(Ordering::SeqCst), 0);
}

/// A proxy that answers `status` and then echoes.
async fn upstream(status: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://me:secret@{}", listener.local_addr().unwrap());
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 1000];
            let n = stream.read(&mut head).await.unwrap();
            lock(&seen).push(String::from_utf8_lossy(&head[..n]).into_owned());
            let answer = format!("HTTP/1.1 {status}\r\nVia: x\r\n\r\nhello");
            stream.write_all(answer.as_bytes()).await.unwrap();
            tokio::spawn(async move { stream.read(&mut [0; 10]).await });
        }
    });
    (url, heads)
}

#[tokio::test]
async fn an_upstream_proxy_gets_the_name_and_only_allowed_ones() {
    let (url, heads) = upstream("200 ok").await;
    let bench = bench(good(), Some(&url), |_, _| vec![ip(1)]).await;
    let mut opened = bench.judge.open(&to("good.test", 443)).await.unwrap();
    let mut first = [0; 5];
    opened.stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"hello", "what follows the head is the server's");
    assert_eq!(refused(&bench, &to("evil.test", 443)).await.reason, "not-listed");
    let heads = lock(&heads);
    assert_eq!(heads.len(), 1);
    assert!(heads[0].starts_with("CONNECT good.test:443 HTTP/1.1\r\n"));
    assert!(heads[0].contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"));
    assert_eq!(bench.queries.load(Ordering::SeqCst), 0, "resolved there");
}

#[tokio::test]
async fn an_upstream_proxy_that_refuses_is_named() {
    let (url, _) = upstream("407 Proxy Authentication Required").await;
    let bench = bench(good(), Some(&url), |_, _| vec![]).await;
    let record = refused(&bench, &to("good.test", 443)).await;
    assert_eq!(record.reason, "upstream");
    assert!(record.detail.contains("407"), "{}", record.detail);
}

#[test]
fn counts_are_said_at_powers_of_ten() {
    let said: Vec<u64> = (1..=1000).filter(|&n| is_power_of_ten(n)).collect();
    assert_eq!(said, [1, 10, 100, 1000]);
}
