//! Ways around the decision. Each arrives in its control, by the same way on the host, and never inside.

use super::probe::{Attempt, Must, Outcome, WAYS, allowed, bare, fenced, get, places, refused};
use super::world::{World, filtered_world, fresh_address, name_of};

const GOOD: &str = "good.example.com";
/// Two names of one server.
const FRONT: [&str; 2] = ["good.front.example.net", "bad.front.example.net"];

/// Each host, by each way.
fn each(hosts: &[&str], port: u16) -> Vec<Attempt> {
    hosts.iter().flat_map(|host| Attempt::each_way(host, port)).collect()
}

#[test]
fn names_that_are_not_listed() {
    refused(&["--allow-host", "*.wild.example.com"], Must::Vanish, || {
        let mut all = each(
            &[
                "@.example.org",
                // Around the label boundary and the end.
                "@good.example.com",
                "@wild.example.com",
                "a.@wild.example.com",
                "@.good.example.com",
                "good.example.com.@.example.org",
                "a.wild.example.com.@.example.org",
                "good-example.com.@.example.org",
            ],
            80,
        );
        let name = name_of(&fresh_address());
        for way in ["direct", "connect", "socks"] {
            all.push(
                Attempt::new(way, "@.refused.example.org", 443).tls("@W@.refused.example.org"),
            );
            // Allowed by what the client says, not by where it goes.
            all.push(Attempt::new(way, &name, 443).tls(GOOD).sends(&[get(GOOD, "@W@")]));
            all.push(Attempt::new(way, &name, 80).sends(&[get(GOOD, "@W@")]));
        }
        all
    });
}

#[test]
fn the_apex_is_not_below_the_wildcard() {
    refused(&["--allow-host", "*.wild.example.com"], Must::NotArrive, || {
        each(&["wild.example.com"], 80)
    });
    allowed(&["--allow-host", "*.wild.example.com"], || {
        each(&["@.wild.example.com", "b.@.wild.example.com"], 80)
    });
}

#[test]
fn one_name_in_any_spelling() {
    allowed(&["--allow-host", "Good.Example.COM.", "--allow-host", "*.v6only.example.com"], || {
        each(
            &["good.example.com", "GOOD.eXample.com", "good.example.com.", "@.v6only.example.com"],
            80,
        )
    });
}

#[test]
fn bytes_that_end_or_split_a_name() {
    refused(&["--allow-host", "*.wild.example.com"], Must::Vanish, || {
        let mut all = vec![
            // A C string ends where a matcher of suffixes goes on.
            Attempt::new("socks", "@.example.org\0.wild.example.com", 80),
            Attempt::new("connect", "@.example.org\0.wild.example.com", 80),
            Attempt::new("socks", "@.example.org\0good.example.com", 80),
        ];
        for odd in ["\r\n", "\n", "\t", " ", "%00", "%2e", "#", "/", "?", "\\", "@", ":80:"] {
            let listed_last = format!("@W@.example.org{odd}.wild.example.com");
            let listed_first = format!("a.wild.example.com{odd}@W@.example.org");
            for name in [&listed_last, &listed_first] {
                for way in ["connect", "socks"] {
                    all.push(Attempt::new(way, GOOD, 80).set("host", name.as_str()).no_control());
                }
                // There, what follows is a path.
                if name == &listed_first && matches!(odd, "/" | "?" | "#") {
                    continue;
                }
                let request = format!("GET http://{name}/@W@ HTTP/1.1\r\nHost: {name}\r\n\r\n");
                all.push(Attempt::new("http", GOOD, 80).sends(&[request]).no_control());
            }
        }
        all.push(Attempt::new("socks", "", 80).no_control());
        all.push(Attempt::new("socks", "@.wild.example.com..", 80).no_control());
        all.push(
            Attempt::new("socks", &format!("@.{}.wild.example.com", "a".repeat(64)), 80)
                .no_control(),
        );
        all
    });
}

/// Where nothing of a sandbox should get, however it is written.
const METADATA: [&str; 9] = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "0xa9.254.0251.254",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
];

#[test]
fn special_addresses_in_every_spelling_even_where_everything_is_allowed() {
    refused(&["--allow-host", "*"], Must::NotArrive, || {
        let mut all = each(&METADATA, 80);
        all.extend(each(
            &[
                "fd00:ec2::254",
                "10.1.2.3",
                "172.16.5.5",
                "192.168.7.7",
                "100.100.100.200",
                "0xa010203",
            ],
            80,
        ));
        for address in ["169.254.169.254", "10.1.2.3"] {
            all.push(Attempt::new("mapped", address, 80));
            all.push(Attempt::new("socksip", address, 80));
            all.push(Attempt::new("socksip", &format!("::ffff:{address}"), 80));
        }
        for odd in [
            "169.254.169.254.",
            "::ffff:169.254.169.254%lo",
            "[169.254.169.254]",
            "\u{ef}\u{bc}\u{91}69.254.169.254",
            "169\u{e3}\u{80}\u{82}254.169.254",
            "::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
        ] {
            for way in ["http", "connect", "socks"] {
                all.push(Attempt::new(way, odd, 80).no_control());
            }
        }
        all
    });
}

#[test]
fn services_of_the_hosts_loopback_in_every_spelling() {
    refused(&["--allow-host", "*"], Must::NotArrive, || {
        each(
            &[
                "127.0.0.1",
                "localhost",
                "127.1",
                "2130706433",
                "0x7f000001",
                "0177.0.0.1",
                "0.0.0.0",
                "0",
                "::1",
                "::",
                "::ffff:127.0.0.1",
            ],
            7001,
        )
    });
}

#[test]
fn allowed_names_that_lead_to_special_addresses() {
    let names = [
        "@.private.example.com",
        "@.private172.example.com",
        "@.private192.example.com",
        "@.shared.example.com",
        "@.meta.example.com",
        "@.meta6.example.com",
        "@.mapped.example.com",
        "@.nat64.example.com",
        "@.alias.example.com",
        "hosts-private.example.com",
    ];
    refused(&["--allow-host", "*.example.com"], Must::NotArrive, || {
        let mut all = each(&names, 80);
        all.extend(each(
            &["@.loop.example.com", "@.loop6.example.com", "@.zero.example.com"],
            7001,
        ));
        all
    });
}

#[test]
fn a_private_address_is_reached_where_it_is_listed() {
    allowed(&["--allow-host", "10.1.0.0/16", "--allow-host", "*.private.example.com"], || {
        each(&["10.1.2.3", "@.private.example.com"], 80)
    });
}

#[test]
fn names_of_the_hosts_file() {
    allowed(&["--allow-host", "hosts-public.example.com"], || {
        each(&["hosts-public.example.com"], 80)
    });
}

#[test]
fn a_name_that_changes_between_check_and_dial() {
    let attempts = || -> Vec<Attempt> {
        let mut all = Vec::new();
        for way in WAYS {
            let name = format!("{}.rebind.example.com", super::world::token());
            all.extend((0..8).map(|_| Attempt::new(way, &name, 80)));
        }
        all.extend((0..4).flat_map(|_| each(&["@.mixed.example.com"], 80)));
        all
    };
    let astray = |world: &World, all: &[Outcome]| -> Vec<String> {
        let arrived = all.iter().flat_map(|o| world.reached(&o.attempt.word));
        arrived.filter(|line| line.contains("\"10.1.2.")).collect()
    };
    for (world, p) in places() {
        let control = bare(world, &p, attempts());
        assert!(astray(world, &control).len() > 8, "the control must go astray: {control:#?}");
        let Some(world) = filtered_world() else { continue };
        let inside = fenced(world, &p, &["--allow-host", "*.example.com"], attempts());
        assert_eq!(astray(world, &inside), Vec::<String>::new(), "{inside:#?}");
        let reached = inside.iter().filter(|o| o.reached()).count();
        assert!(reached > 0, "the public address may be reached: {inside:#?}");
    }
}

#[test]
fn addresses_that_no_rule_lists() {
    refused(&["--allow-host", "45.30.0.0/16:80"], Must::Vanish, || {
        let mut all = Vec::new();
        for port in [80, 8080] {
            let six = format!("2606:77::{}", fresh_address().rsplit('.').next().unwrap());
            all.extend(each(&[&fresh_address(), &six], port));
        }
        all.push(Attempt::new("mapped", &fresh_address(), 80));
        all.push(Attempt::new("socksip", &fresh_address(), 80));
        all.push(Attempt::new("socksip", "2606:78::1", 80));
        for way in ["direct", "connect", "socks"] {
            all.push(Attempt::new(way, &fresh_address(), 443).tls(GOOD).sends(&[get(GOOD, "@W@")]));
        }
        // Listed, on another port.
        all.extend(each(&["45.30.1.2"], 8080));
        all
    });
    allowed(&["--allow-host", "45.30.0.0/16:80", "--allow-host", "2606:79::/32"], || {
        let mut all = each(&["45.30.1.2", "2606:79::5"], 80);
        all.push(Attempt::new("mapped", "45.30.1.2", 80));
        all.push(Attempt::new("direct", "2606:79::5", 443).tls("whatever.example.com"));
        all
    });
}

#[test]
fn ports_that_no_rule_lists() {
    let flags =
        ["--allow-host", "api.good.example.com:80", "--allow-host", "pg.example.com:8000-8100"];
    refused(&flags, Must::NotArrive, || {
        let mut all = each(&["api.good.example.com"], 8080);
        all.extend(each(&["pg.example.com"], 80));
        all
    });
    allowed(&flags, || {
        let mut all = each(&["api.good.example.com"], 80);
        all.extend(each(&["pg.example.com"], 8080));
        all
    });
}

#[test]
fn what_is_denied_wins() {
    let flags = ["--allow-host", "*.wild.example.com", "--deny-host", "*.no.wild.example.com"];
    refused(&flags, Must::Vanish, || {
        each(&["@.no.wild.example.com", "a.@.no.wild.example.com"], 80)
    });
    allowed(&flags, || each(&["@.yes.wild.example.com"], 80));
}

/// As each user: in the control the word arrives at the host that is not allowed, inside it does not.
/// What belongs to the allowed one may arrive.
#[track_caller]
fn not_at_the_other_host(attempts: impl Fn() -> Vec<Attempt>) {
    let bad = |world: &World, o: &Outcome| -> Vec<String> {
        let arrived = world.reached(&o.attempt.word);
        arrived
            .into_iter()
            .filter(|line| line.contains(FRONT[1]) || line.contains("CONNECT"))
            .collect()
    };
    for (world, p) in places() {
        for o in bare(world, &p, attempts().into_iter().filter(|a| a.control).collect()) {
            assert!(!bad(world, &o).is_empty(), "the control must arrive as {:?}: {o:#?}", p.user);
        }
        let Some(world) = filtered_world() else { continue };
        for o in fenced(world, &p, &["--allow-host", FRONT[0]], attempts()) {
            let bad = bad(world, &o);
            assert!(bad.is_empty(), "as {:?}: {bad:#?} {o:#?}", p.user);
        }
    }
}

#[test]
fn one_server_of_several_names() {
    let [good, other] = FRONT;
    allowed(&["--allow-host", good], || {
        let mut all = each(&[good], 80);
        for way in ["direct", "connect", "socks"] {
            all.push(Attempt::new(way, good, 443).tls(good));
        }
        all
    });
    not_at_the_other_host(|| {
        let mut all = Vec::new();
        for way in ["direct", "connect", "socks"] {
            let to = |port| Attempt::new(way, good, port);
            // The name in the hello, and none at all.
            all.push(to(443).tls(other).sends(&[get(other, "@W@")]));
            all.push(to(443).tls("").sends(&[get(other, "@W@")]));
            // The first request, a later one, one that came with the first, one in pieces.
            let first = format!("GET /@W@ HTTP/1.1\r\nHost: {good}\r\n\r\n");
            let second = get(other, "@W@");
            all.push(to(80).sends(&[second.as_str()]));
            all.push(to(80).sends(&[&first, &second]).proof("never").set("wait", 1));
            all.push(to(80).sends(&[first.clone() + &second]).proof("never").set("wait", 1));
            let (a, b) = second.split_at(second.len() - 40);
            all.push(to(80).sends(&[a, b]));
            // Which of two?
            let two = |a: &str, b: &str| {
                format!("GET /@W@ HTTP/1.1\r\nHost: {a}\r\nHost: {b}\r\nConnection: close\r\n\r\n")
            };
            all.push(to(80).sends(&[two(good, other)]));
            all.push(to(80).sends(&[two(other, good)]).no_control());
            let odd = format!(
                "GET /@W@ HTTP/1.1\r\nHost: {good}\r\nHost : {other}\r\nConnection: close\r\n\r\n"
            );
            all.push(to(80).sends(&[odd]));
            let absolute = format!(
                "GET http://{other}/@W@ HTTP/1.1\r\nHost: {good}\r\nConnection: close\r\n\r\n"
            );
            all.push(to(80).sends(&[absolute]));
            let old = format!("GET /@W@ HTTP/1.0\r\nhOST:\t{other} \r\n\r\n");
            all.push(to(80).sends(&[old]));
            let bare_lines = format!("GET /@W@ HTTP/1.1\nHost: {other}\nConnection: close\n\n");
            all.push(to(80).sends(&[bare_lines]));
        }
        // At the proxy: the absolute URI counts, whatever Host says.
        let absolute = |uri: &str, host: &str| {
            format!("GET http://{uri}/@W@ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        };
        all.push(Attempt::new("proxy", good, 80).sends(&[absolute(good, other)]));
        all.push(Attempt::new("proxy", good, 80).sends(&[absolute(other, good)]).no_control());
        all.push(
            Attempt::new("proxy", good, 80)
                .sends(&[absolute(&format!("{good}@{other}"), good)])
                .no_control(),
        );
        all
    });
}

/// An address may be listed, or everything: a name that is denied stays denied where the client says it.
#[test]
fn denied_names_at_addresses_that_are_allowed() {
    let [good, bad] = FRONT;
    let flags = ["--allow-host", "*", "--allow-host", "45.20.0.0/16", "--deny-host", bad];
    let attempts = |name: &'static str| {
        let mut all = Vec::new();
        for way in ["direct", "connect", "socks"] {
            let to = |port| Attempt::new(way, "45.20.0.1", port);
            all.push(to(443).tls(name).sends(&[get(name, "@W@")]));
            all.push(to(80).sends(&[get(name, "@W@")]));
            all.push(to(80).sends(&[get(&name.to_uppercase(), "@W@")]));
        }
        all
    };
    refused(&flags, Must::NotArrive, || attempts(bad));
    allowed(&flags, || attempts(good));
}

#[test]
fn requests_hidden_in_others() {
    let [good, other] = FRONT;
    not_at_the_other_host(|| {
        let hidden = format!("GET /@W@ HTTP/1.1\r\nHost: {other}\r\nConnection: close\r\n\r\n");
        let body = format!("0\r\n\r\n{hidden}");
        let mut all = Vec::new();
        for way in ["direct", "connect", "socks", "proxy"] {
            let target = if way == "proxy" { format!("http://{good}/x") } else { "/x".to_owned() };
            for encoding in [
                "Transfer-Encoding: chunked",
                "Transfer-Encoding : chunked",
                "Transfer-Encoding:\tchunked",
                "Transfer-Encoding: xchunked",
                "Transfer-Encoding: identity, chunked",
                "transfer-encoding: chunked\r\nTransfer-Encoding: chunked",
            ] {
                // The word replaces four bytes fewer or more: what counts is that the body is longer.
                let length = body.len() + 40;
                let head = format!(
                    "POST {target} HTTP/1.1\r\nHost: {good}\r\nContent-Length: {length}\r\n{encoding}\r\n\r\n"
                );
                let attempt = Attempt::new(way, good, 80).sends(&[head + &body]);
                all.push(attempt.proof("never").set("wait", 1));
            }
            for lengths in [
                "Content-Length: 0\r\nContent-Length: 400",
                "Content-Length: 400\r\nContent-Length: 0",
                "Content-Length: +0",
                "Content-Length: 0x0",
                "Content-Length: 400, 0",
            ] {
                let head = format!("POST {target} HTTP/1.1\r\nHost: {good}\r\n{lengths}\r\n\r\n");
                let attempt = Attempt::new(way, good, 80).sends(&[head + &hidden]);
                all.push(attempt.proof("never").set("wait", 1).no_control());
            }
        }
        all
    });
}

#[test]
fn tunnels_in_tunnels_and_one_after_the_other() {
    let connect = |to: &str| format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    refused(&[], Must::Vanish, || {
        let target = "@W@.example.org";
        let request = get(target, "@W@");
        let open = connect(&format!("{target}:80"));
        let mut all = vec![
            // Through the proxy to the proxy.
            Attempt::new("proxy", GOOD, 80).sends(&[&connect("@PROXY@"), &open, &request]),
            Attempt::new("proxy", GOOD, 80).sends(&[connect("@PROXY@") + &open + &request]),
        ];
        for way in ["proxy", "direct", "socks", "connect"] {
            // After one that is allowed, on the same connection.
            let first = if way == "proxy" { connect("good.example.com:80") } else { String::new() };
            for steps in
                [vec![first.clone(), open.clone(), request.clone()], vec![first + &open + &request]]
            {
                let steps: Vec<String> = steps.into_iter().filter(|s| !s.is_empty()).collect();
                all.push(Attempt::new(way, GOOD, 80).sends(&steps).no_control());
            }
        }
        // A refusal does not open the connection for what follows.
        all.push(Attempt::new("proxy", GOOD, 80).sends(&[open.clone() + &request]));
        all.push(
            Attempt::new("proxy", GOOD, 80)
                .sends(&[format!("GET http://{target}/@W@ HTTP/1.1\r\nHost: {target}\r\n\r\n")]),
        );
        all
    });
}
