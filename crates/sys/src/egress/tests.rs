use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::*;
use crate::early::Early;
use crate::raw;
use crate::seccomp::{Flags, SockFilter, install};

const SOON: Duration = Duration::from_secs(5);

/// One test at a time: a child has copies of every descriptor of its moment, and an end of stream
/// comes when the last is closed.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A network namespace with the filter's sockets.
struct Net {
    early: Early,
    made: Made,
}

fn set_up(config: &Config) -> std::result::Result<Net, Error> {
    let mut early = Early::start_anyway().unwrap();
    early.prepare(Program::new(config));
    let made = early.network()?;
    Ok(Net { early, made })
}

/// `None`, and said so, where this host has no namespaces for us.
fn net(config: &Config) -> Option<Net> {
    match set_up(config) {
        Ok(net) => Some(net),
        Err(e) if e.step == Step::Namespace => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

fn redirecting(config: &Config) -> Option<Net> {
    let net = net(config)?;
    if let Some(e) = net.made.without_nftables {
        println!("skipped: {e}");
        return None;
    }
    Some(net)
}

/// A process of its own; what `run` answers arrives at [`Child::answer`].
struct Child {
    pid: i32,
    pipe: OwnedFd,
}

fn child(run: impl FnOnce() -> String) -> Child {
    let (read, write) = rustix::pipe::pipe().unwrap();
    // SAFETY: glibc keeps its own locks usable in the child, which ends in _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        drop(read);
        let run = std::panic::AssertUnwindSafe(run);
        let answer = std::panic::catch_unwind(run).unwrap_or_else(|_| "panicked".into());
        let _ = std::fs::File::from(write).write_all(answer.as_bytes());
        raw::exit(0);
    }
    Child { pid, pipe: read }
}

impl Child {
    fn answer(self) -> String {
        let mut text = String::new();
        let mut fds = [raw::pollin(self.pipe.as_raw_fd())];
        assert_eq!(raw::poll(&mut fds, 20_000), Ok(1), "no answer");
        std::fs::File::from(self.pipe.try_clone().unwrap()).read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = raw::kill(self.pid, libc::SIGKILL);
        let _ = raw::wait4(self.pid, 0);
    }
}

impl Net {
    /// Runs a client in the namespace, with all capabilities there.
    fn inside(&self, run: impl FnOnce() -> String) -> Child {
        let pidfd = self.early.pidfd().as_raw_fd();
        child(move || {
            raw::setns(pidfd, libc::CLONE_NEWUSER | libc::CLONE_NEWNET).unwrap();
            run()
        })
    }
}

fn accept(listener: &OwnedFd) -> TcpStream {
    let mut fds = [raw::pollin(listener.as_raw_fd())];
    assert_eq!(raw::poll(&mut fds, 5000), Ok(1), "nobody came");
    let (stream, _) = TcpListener::from(listener.try_clone().unwrap()).accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

fn line(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Connects, says who it is, and stays until the other side closes.
fn visit(target: &str) -> String {
    let mut stream = match TcpStream::connect_timeout(&address(target), SOON) {
        Ok(s) => s,
        Err(e) => return e.to_string(),
    };
    let said = inode(&stream);
    writeln!(stream, "{said}").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    let peer = stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
    format!("{rest} {peer}")
}

fn check_visit(net: &Net, target: &str, listener: &OwnedFd, expected: &str) {
    let client = net.inside(|| visit(target));
    let mut stream = accept(listener);
    let said: u64 = line(&mut stream).parse().unwrap();
    let own = stream.local_addr().unwrap();
    let tracked = match own {
        SocketAddr::V4(_) => sockopt::ip_original_dst(&stream).map(SocketAddr::V4),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(&stream).map(SocketAddr::V6),
    };
    let original = match net.made.way {
        Way::Redirect => tracked.unwrap(),
        Way::Local => {
            assert!(tracked.is_err(), "{tracked:?}");
            own
        }
    };
    assert_eq!(original, address(expected), "{target}");
    let sockets = sockets(net.made.diagnosis.as_ref().unwrap(), &stream);
    assert!(sockets.contains(&said), "{target}: {said} is not among {sockets:?}");
    stream.write_all(b"seen").unwrap();
    drop(stream);
    let answer = client.answer();
    assert!(answer.starts_with("seen "), "{target}: {answer}");
}

/// Inodes of the sockets with the peer's port as their own, as the namespace's diagnosis tells.
fn sockets(diagnosis: &OwnedFd, stream: &TcpStream) -> Vec<u64> {
    const DUMP_OF_A_FAMILY: u32 = 0x0301_0014;
    let peer = stream.peer_addr().unwrap();
    let mut found = Vec::new();
    // A socket of IPv6 that speaks IPv4 is listed under the former.
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut question = vec![0u8; 72];
        question[..4].copy_from_slice(&72u32.to_ne_bytes());
        question[4..8].copy_from_slice(&DUMP_OF_A_FAMILY.to_ne_bytes());
        question[16..18].copy_from_slice(&[family as u8, libc::IPPROTO_TCP as u8]);
        question[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
        question[24..26].copy_from_slice(&peer.port().to_be_bytes());
        rustix::io::write(diagnosis, &question).unwrap();
        let mut answer = vec![0u8; 32 << 10];
        while let Ok(n) = rustix::io::read(diagnosis, &mut *answer) {
            // Each `inet_diag_msg` ends in the inode, behind 16 + 68 bytes; attributes follow.
            let mut rest = &answer[..n];
            while let Some(message) = rest.get(..88) {
                let length = u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize;
                found.push(u64::from(u32::from_ne_bytes(message[84..].try_into().unwrap())));
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
    found
}

#[test]
fn every_tcp_connection_arrives_with_its_destination() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    for target in
        ["93.184.216.34:443", "1.2.3.4:65000", "10.0.0.1:22", "169.254.169.254:80", "8.8.8.8:53"]
    {
        check_visit(&net, target, &net.made.tcp[0], target);
    }
    if !net.made.ipv6 {
        println!("skipped: no ipv6");
        return;
    }
    for target in ["[2001:db8::5]:443", "[fd72:696e:6766::7]:6543", "[2001:db8::1]:53"] {
        check_visit(&net, target, &net.made.tcp[1], target);
    }
    check_visit(&net, "[::ffff:192.0.2.7]:8443", &net.made.tcp[0], "192.0.2.7:8443");
}

#[test]
fn the_listeners_own_address_is_known_as_such() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    check_visit(&net, "127.0.0.1:808", &net.made.tcp[0], "127.0.0.1:808");
    if net.made.ipv6 {
        check_visit(&net, "[::1]:808", &net.made.tcp[1], "[::1]:808");
    }
}

#[test]
fn chosen_ports_of_the_loopback_lead_outside() {
    let _alone = alone();
    let config = Config { host_loopback: vec![5432, 6379], ..Config::default() };
    let Some(net) = redirecting(&config) else { return };
    check_visit(&net, "127.0.0.1:5432", &net.made.tcp[0], "127.0.0.1:5432");
    check_visit(&net, "127.0.0.1:6379", &net.made.tcp[0], "127.0.0.1:6379");
    if net.made.ipv6 {
        check_visit(&net, "[::1]:5432", &net.made.tcp[1], "[::1]:5432");
    }
    let refused = net.inside(|| visit("127.0.0.1:5433")).answer();
    assert!(refused.contains("refused"), "{refused}");
}

/// A server inside and its client, on every address that is the sandbox's own.
fn talks_to_itself(v6: bool) -> String {
    let mut said = String::new();
    let own =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9)), OWN_V4.into()];
    let own6 = [IpAddr::V6(Ipv6Addr::LOCALHOST), OWN_V6.into()];
    for ip in own.into_iter().chain(own6.into_iter().filter(|_| v6)) {
        let server = TcpListener::bind((ip, 0)).unwrap();
        let mut client = TcpStream::connect_timeout(&server.local_addr().unwrap(), SOON).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        client.write_all(b"hello\n").unwrap();
        assert_eq!(line(&mut accepted), "hello");
        let (a, b) = (UdpSocket::bind((ip, 0)).unwrap(), UdpSocket::bind((ip, 0)).unwrap());
        a.send_to(b"datagram", b.local_addr().unwrap()).unwrap();
        b.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(b.recv_from(&mut buffer).unwrap(), (8, a.local_addr().unwrap()));
        let _ = std::fmt::Write::write_fmt(&mut said, format_args!("{ip} "));
    }
    said
}

#[test]
fn servers_inside_are_reached_as_ever() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    let v6 = net.made.ipv6;
    let said = net.inside(|| talks_to_itself(v6)).answer();
    assert!(said.starts_with("127.0.0.1 127.9.9.9 192.0.0.2 "), "{said}");
}

fn refuses_datagrams(v6: bool) -> String {
    let mut said = String::new();
    for target in ["8.8.8.8:443", "192.0.2.1:123", "[2001:db8::1]:443"] {
        let target = address(target);
        if target.is_ipv6() && !v6 {
            continue;
        }
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let start = Instant::now();
        socket.send(b"quic?").unwrap();
        let e = socket.recv(&mut [0; 16]).unwrap_err();
        let fast = start.elapsed() < Duration::from_millis(50);
        let _ = std::fmt::Write::write_fmt(&mut said, format_args!("{:?} {fast}\n", e.kind()));
    }
    said
}

#[test]
fn other_datagrams_are_refused_at_once() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    let v6 = net.made.ipv6;
    let said = net.inside(|| refuses_datagrams(v6)).answer();
    assert!(!said.is_empty() && said.lines().all(|l| l == "ConnectionRefused true"), "{said}");
}

/// Asks `server` by a connected and by an unconnected socket; the answer must come from it.
fn asks(server: &str) -> String {
    let server = address(server);
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let mut buffer = [0; 64];
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(server).unwrap();
    socket.send(b"connected").unwrap();
    let n = match socket.recv(&mut buffer) {
        Ok(n) => n,
        Err(e) => return format!("connected, from {}: {e}", socket.local_addr().unwrap()),
    };
    assert_eq!(&buffer[..n], b"connected!");
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.send_to(b"free", server).unwrap();
    match socket.recv_from(&mut buffer) {
        Ok((n, from)) => {
            assert_eq!(&buffer[..n], b"free!");
            if from == server { "ok".into() } else { format!("from {from}") }
        }
        Err(e) => format!("unconnected: {e}"),
    }
}

/// Answers two queries on any of the sockets; false when none comes.
fn answer_two(sockets: &[OwnedFd]) -> bool {
    for _ in 0..2 {
        let mut fds: Vec<_> = sockets.iter().map(|s| raw::pollin(s.as_raw_fd())).collect();
        if !matches!(raw::poll(&mut fds, 5000), Ok(1..)) {
            return false;
        }
        let at = fds.iter().position(|f| f.revents != 0).unwrap();
        let socket = UdpSocket::from(sockets[at].try_clone().unwrap());
        let mut buffer = [0; 64];
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        buffer[n] = b'!';
        socket.send_to(&buffer[..=n], from).unwrap();
    }
    true
}

fn check_dns(net: &Net, servers: &[&str]) {
    for server in servers {
        if !net.made.ipv6 && server.starts_with('[') {
            continue;
        }
        let client = net.inside(|| asks(server));
        let came = answer_two(&net.made.udp);
        assert_eq!((client.answer().as_str(), came), ("ok", true), "{server}");
    }
}

#[test]
fn dns_is_answered_by_whom_was_asked() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    check_dns(
        &net,
        &[
            "8.8.8.8:53",
            "127.0.0.53:53",
            "127.0.0.1:53",
            "10.1.2.3:53",
            "[2001:4860:4860::8888]:53",
            "[::1]:53",
        ],
    );
}

#[test]
fn sockets_are_neither_inherited_nor_left() {
    let _alone = alone();
    let Some(net) = net(&Config::default()) else { return };
    let all = net.made.tcp.iter().chain(&net.made.udp).chain(&net.made.diagnosis);
    for fd in all {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let said = child(|| {
        let before = count();
        // Taken by nobody.
        let mut early = Early::start_anyway().unwrap();
        early.prepare(Program::new(&Config::default()));
        early.ready();
        drop(early);
        // Taken and dropped.
        let net = set_up(&Config::default()).unwrap();
        let during = count();
        drop(net);
        format!("{} {}", during > before, count() == before)
    });
    assert_eq!(said.answer(), "true true");
}

/// Deletes the table and the default route: errno of each.
fn tears_down() -> String {
    let mut table = netlink::Messages::default();
    let begin = [0, 0, 0, 10];
    table.message(0x10, 0, 0, &begin, |_| {});
    table.message((10 << 8) | 2, netlink::flag::ACK, 1, &[1, 0, 0, 0], |m| {
        m.text(1, c"ringfence");
    });
    table.message(0x11, 0, 0, &begin, |_| {});
    let mut route = netlink::Messages::default();
    let header = [2, 0, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    route.message(25, netlink::flag::ACK, 1, &header, |_| {});
    let errno = |protocol, messages: &netlink::Messages| {
        // SAFETY: plain integers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol) };
        assert!(fd >= 0);
        // SAFETY: just made.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::write(&fd, messages.bytes()).unwrap();
        let mut answer = [0u8; 256];
        let n = rustix::io::read(&fd, &mut answer).unwrap();
        assert!(n >= 20);
        -i32::from_ne_bytes(answer[16..20].try_into().unwrap())
    };
    format!("{} {}", errno(libc::NETLINK_NETFILTER, &table), errno(libc::NETLINK_ROUTE, &route))
}

#[test]
fn what_runs_inside_can_change_neither_rules_nor_routes() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    let eperm = format!("{0} {0}", libc::EPERM);
    let without = net.inside(|| {
        raw::drop_capabilities().unwrap();
        tears_down()
    });
    assert_eq!(without.answer(), eperm, "without capabilities");
    let nested = net.inside(|| {
        raw::drop_capabilities().unwrap();
        raw::unshare(libc::CLONE_NEWUSER).unwrap();
        tears_down()
    });
    let nested = nested.answer();
    // Some hosts refuse user namespaces to a process with unmapped ids, which is as good.
    assert!(nested == eperm || nested == "panicked", "in a nested user namespace: {nested}");
    let low = net.inside(|| {
        raw::drop_capabilities().unwrap();
        let bind = |a: &str| TcpListener::bind(a).map_err(|e| e.kind()).err();
        format!("{:?} {:?}", bind("127.0.0.2:808"), bind("0.0.0.0:53"))
    });
    assert_eq!(low.answer(), "Some(PermissionDenied) Some(PermissionDenied)");
    // The control: with capabilities in the owning namespace both work.
    assert_eq!(net.inside(tears_down).answer(), "0 0");
}

/// Everything that follows in this process answers `errno` to `socket(AF_NETLINK, _, protocol)`, or
/// to `unshare` for -1.
fn refuse(protocol: i32, errno: u32) {
    let load = |k: u32| SockFilter { code: 0x20, jt: 0, jf: 0, k };
    let unless = |k: u32, jf: u8| SockFilter { code: 0x15, jt: 0, jf, k };
    let answer = |k: u32| SockFilter { code: 0x06, jt: 0, jf: 0, k };
    let allow = answer(0x7fff_0000);
    let deny = answer(0x0005_0000 | errno);
    let program = if protocol < 0 {
        vec![load(0), unless(libc::SYS_unshare as u32, 1), deny, allow]
    } else {
        vec![
            load(0),
            unless(libc::SYS_socket as u32, 5),
            load(16),
            unless(libc::AF_NETLINK as u32, 3),
            load(32),
            unless(protocol as u32, 1),
            deny,
            allow,
        ]
    };
    raw::set_no_new_privs().unwrap();
    install(&program, Flags::NONE).unwrap();
}

#[test]
fn without_nftables_listed_ports_work() {
    let _alone = alone();
    let config = Config {
        ports: vec![22, 80, 443, 808, 6543],
        host_loopback: vec![5432],
        nameservers: vec!["8.8.4.4".parse().unwrap(), "2001:db8::53".parse().unwrap()],
    };
    let said = child(|| {
        refuse(libc::NETLINK_NETFILTER, libc::EPROTONOSUPPORT as u32);
        let Some(net) = net(&config) else { return "skipped".into() };
        let why = net.made.without_nftables.unwrap();
        assert_eq!((net.made.way, why.errno), (Way::Local, Errno(libc::EPROTONOSUPPORT)));
        assert_eq!(why.to_string(), "nftables: protocol not supported");
        let listener = |target: &str| {
            let target = address(target);
            let found = net.made.tcp.iter().find(|l| {
                let own = TcpListener::from(l.try_clone().unwrap()).local_addr().unwrap();
                own.port() == target.port() && own.is_ipv4() == target.is_ipv4()
            });
            found.unwrap()
        };
        for target in ["93.184.216.34:443", "127.1.0.5:443", "10.0.0.1:22", "1.2.3.4:6543"] {
            check_visit(&net, target, listener(target), target);
        }
        for target in ["127.0.0.1:5432", "8.8.8.8:53", "127.0.0.1:808"] {
            check_visit(&net, target, listener(target), target);
        }
        if net.made.ipv6 {
            for target in ["[2001:db8::5]:443", "[::1]:808"] {
                check_visit(&net, target, listener(target), target);
            }
        }
        let refused = net.inside(|| visit("93.184.216.34:444")).answer();
        assert!(refused.contains("refused"), "{refused}");
        let v6 = net.made.ipv6;
        let said = net.inside(|| refuses_datagrams(v6)).answer();
        assert!(said.lines().all(|l| l == "ConnectionRefused true"), "{said}");
        check_dns(
            &net,
            &["127.0.0.1:53", "127.0.0.53:53", "8.8.4.4:53", "[::1]:53", "[2001:db8::53]:53"],
        );
        let said = net.inside(|| talks_to_itself(v6)).answer();
        assert!(said.starts_with("127.0.0.1 "), "{said}");
        println!("{:?}", net.made.timings);
        "held".into()
    });
    let said = said.answer();
    assert!(said == "held" || said == "skipped", "{said}");
}

#[test]
fn a_refused_step_is_named() {
    let _alone = alone();
    let attempt = |protocol, errno: i32| {
        let said = child(move || {
            refuse(protocol, errno as u32);
            set_up(&Config::default()).map_or_else(|e| e.to_string(), |_| "made".into())
        });
        said.answer()
    };
    assert_eq!(attempt(-1, libc::EPERM), "network namespace: operation not permitted");
    if net(&Config::default()).is_some() {
        let said = attempt(libc::NETLINK_ROUTE, libc::EACCES);
        assert_eq!(said, "addresses and routes: permission denied");
    }
}

/// Names resolve with the C library's resolver, whatever the configuration names.
#[test]
fn the_c_library_asks_us() {
    let _alone = alone();
    let Some(net) = redirecting(&Config::default()) else { return };
    let client = net.inside(|| {
        let found = ("ringfence-test.example", 80).to_socket_addrs();
        found.map_or_else(|e| e.to_string(), |_| "found".into())
    });
    let mut asked = false;
    let end = Instant::now() + SOON;
    let mut buffer = [0u8; 1024];
    while !asked && Instant::now() < end {
        for socket in &net.made.udp {
            let socket = UdpSocket::from(socket.try_clone().unwrap());
            let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
            asked |= buffer[..n].windows(14).any(|w| w == b"ringfence-test");
            // NXDOMAIN.
            buffer[2] |= 0x80;
            buffer[3] = 3;
            let _ = socket.send_to(&buffer[..n], from);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(client);
    assert!(asked);
}

/// `cargo test -p ringfence-sys --release egress::tests::timing -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn timing() {
    let _alone = alone();
    let config = Config { host_loopback: vec![5432], ..Config::default() };
    let mut all: Vec<Timings> = Vec::new();
    let mut built = Vec::new();
    let mut waited = Vec::new();
    for _ in 0..200 {
        let mut early = Early::start_anyway().unwrap();
        assert!(early.ready());
        let t = Instant::now();
        let program = Program::new(&config);
        built.push(t.elapsed());
        let t = Instant::now();
        early.prepare(program);
        all.push(early.network().unwrap().timings);
        waited.push(t.elapsed());
    }
    let median = |mut v: Vec<Duration>| {
        v.sort_unstable();
        v[v.len() / 2]
    };
    for n in 0..Step::COUNT as u32 {
        let Some(step) = Step::from_u32(n) else { continue };
        let median = median(all.iter().map(|t| t.of(step)).collect());
        println!("{:<24} {median:?}", step.text());
    }
    println!("{:<24} {:?}", "total", median(all.iter().map(Timings::total).collect()));
    println!("{:<24} {:?}", "building", median(built));
    println!("{:<24} {:?}", "order to sockets", median(waited));
}
