//! Host rules: tables, and laws against a slow evaluator written from the documentation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use ringfence_policy::net::{GROUPS, Host, HostPattern, Name, Reason, Rules, special};
use ringfence_policy::{HostRule, Network, Origin};

fn list(entries: &[impl AsRef<str>]) -> Vec<HostRule> {
    let origin = |line| Origin { layer: "p.toml".into(), line: Some(line) };
    let entries = entries.iter().zip(1..);
    entries.map(|(e, n)| HostRule { host: e.as_ref().to_owned(), origin: origin(n) }).collect()
}

fn rules(allow: &[&str], deny: &[&str]) -> Rules {
    Rules::of(&list(allow), &list(deny)).unwrap()
}

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn nothing_is_allowed_by_nothing() {
    for empty in [
        Rules::default(),
        rules(&[], &[]),
        rules(&[], &["x.example"]),
        rules(&["npm"], &["*"]),
        Rules::compile(&Network::None).unwrap(),
    ] {
        assert!(empty.is_empty());
        assert!(!empty.name(&name("example.com"), None).allowed);
        assert!(!empty.name(&name("example.com"), Some(443)).allowed);
        assert!(!empty.address(ip("1.1.1.1"), 443).allowed);
        assert!(!empty.address(ip("127.0.0.1"), 443).allowed);
        assert!(empty.host_loopback_ports().is_empty());
    }
}

#[test]
fn suffix_tricks() {
    let r = rules(&["example.com", "*.sub.example.org"], &[]);
    for (host, allowed) in [
        ("example.com", true),
        ("EXAMPLE.com.", true),
        ("notexample.com", false),
        ("example.com.evil.test", false),
        ("a.example.com", false),
        ("example.co", false),
        ("xn--example-.com", false),
        ("a.sub.example.org", true),
        ("a.b.sub.example.org", true),
        ("sub.example.org", false),
        ("xsub.example.org", false),
        ("sub.example.org.evil.test", false),
    ] {
        let Ok(n) = Name::parse(host.as_bytes()) else {
            assert!(!allowed, "{host}");
            continue;
        };
        assert_eq!(r.name(&n, Some(443)).allowed, allowed, "{host}");
        assert_eq!(r.name(&n, None).allowed, allowed, "{host}");
    }
}

#[test]
fn deny_wins_and_the_entry_is_named() {
    let r = rules(&["*", "a.example"], &["*.bad.example", "a.example:80"]);
    let v = r.name(&name("x.bad.example"), Some(443));
    assert_eq!((v.allowed, v.reason), (false, Reason::Denied));
    assert_eq!(v.to_string(), "denied by `*.bad.example` (p.toml:1)");
    assert_eq!(r.name(&name("a.example"), Some(80)).reason, Reason::Denied);
    let v = r.name(&name("a.example"), Some(443));
    assert_eq!(v.to_string(), "allowed by `a.example` (p.toml:2)", "the nearest is named");
    // On some port it may be reached, so its name resolves.
    assert!(r.name(&name("a.example"), None).allowed);
    let r = rules(&["a.example:443"], &["a.example:1-500"]);
    assert_eq!(r.name(&name("a.example"), None).reason, Reason::Denied);
}

#[test]
fn ports() {
    let r =
        rules(&["a.example:443,8000-8100", "localhost:3000-3002,5432", "npm"], &["localhost:3001"]);
    assert!(r.name(&name("a.example"), Some(8100)).allowed);
    let v = r.name(&name("a.example"), Some(80));
    assert_eq!(v.reason, Reason::Port);
    assert_eq!(v.rule.unwrap().host, "a.example:443,8000-8100");
    assert_eq!(r.host_loopback_ports(), [3000, 3002, 5432]);
    assert!(r.name(&name("registry.npmjs.org"), Some(443)).allowed);
    assert_eq!(r.name(&name("registry.npmjs.org"), Some(80)).reason, Reason::Port);
    let mut listed: Vec<u16> = vec![443];
    listed.extend(3000..=3002);
    listed.push(5432);
    listed.extend(8000..=8100);
    assert_eq!(r.listed_ports(), listed);
    assert_eq!(rules(&["x.example"], &[]).listed_ports(), [22, 80, 443]);
    let shown: Vec<String> =
        r.ports(&Host::Name(name("localhost"))).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["3000", "3002", "5432"]);
    assert!(rules(&["npm:8443"], &[]).name(&name("registry.npmjs.org"), Some(8443)).allowed);
    assert!(!rules(&["npm:8443"], &[]).name(&name("registry.npmjs.org"), Some(443)).allowed);
    // A denied group is denied on every port.
    assert!(!rules(&["*"], &["npm"]).name(&name("registry.npmjs.org"), Some(8443)).allowed);
}

#[test]
fn the_hosts_loopback_is_only_its_ports() {
    let r = rules(&["*", "0.0.0.0/0", "::/0", "localhost:5432"], &[]);
    for host in ["127.0.0.1", "::1"] {
        assert!(r.address(ip(host), 5432).allowed, "{host}");
        assert!(!r.address(ip(host), 5433).allowed, "{host}");
    }
    assert!(!r.address(ip("127.0.0.2"), 5432).allowed);
    assert!(!r.address(ip("0.0.0.0"), 5432).allowed);
    assert!(r.name(&name("localhost"), Some(5432)).allowed);
    assert_eq!(r.name(&name("localhost"), Some(80)).reason, Reason::Port);
    assert!(!r.name(&name("x.localhost"), Some(5432)).allowed);
    assert!(r.resolved(&name("localhost"), ip("127.0.0.1"), 5432).allowed);
    // Whoever answers for it does not lead it elsewhere.
    assert!(!r.resolved(&name("localhost"), ip("93.184.216.34"), 5432).allowed);
    let r = rules(&["*"], &[]);
    assert_eq!(r.name(&name("localhost"), Some(80)).reason, Reason::SpecialAddress);
    assert_eq!(r.name(&name("localhost"), None).reason, Reason::SpecialAddress);
}

#[test]
fn special_addresses_need_an_entry_of_their_own() {
    let all = rules(&["*", "0.0.0.0/0", "::/0", "rebind.example"], &[]);
    for address in [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "fd00:ec2::254",
        "10.0.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "::",
        "fe80::1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.5",
        "2002:a00:1::1",
        "168.63.129.16",
    ] {
        let v = all.address(ip(address), 80);
        assert_eq!(v.reason, Reason::SpecialAddress, "{address}");
        let v = all.resolved(&name("rebind.example"), ip(address), 80);
        assert_eq!(v.reason, Reason::ResolvedSpecial, "{address}");
        assert_eq!(v.rule.unwrap().host, "rebind.example");
    }
    assert!(all.address(ip("1.1.1.1"), 80).allowed);
    assert!(all.resolved(&name("rebind.example"), ip("1.1.1.1"), 80).allowed);
    assert!(all.resolved(&name("rebind.example"), ip("64:ff9b::1.1.1.1"), 80).allowed);

    // A range opens what it lies wholly within the special range for.
    let r = rules(&["10.1.0.0/16:5432", "db.example", "8.0.0.0/6"], &[]);
    assert!(r.address(ip("10.1.2.3"), 5432).allowed);
    assert!(r.address(ip("::ffff:10.1.2.3"), 5432).allowed);
    assert_eq!(r.address(ip("10.1.2.3"), 80).reason, Reason::Port);
    assert_eq!(r.address(ip("10.2.0.0"), 5432).reason, Reason::SpecialAddress);
    assert!(r.resolved(&name("db.example"), ip("10.1.2.3"), 5432).allowed);
    assert!(!r.resolved(&name("db.example"), ip("10.1.2.3"), 80).allowed);
    assert!(r.address(ip("9.9.9.9"), 1).allowed);

    // What hands out credentials is opened by itself only.
    let r = rules(&["169.254.0.0/16", "fd00::/8"], &[]);
    assert!(r.address(ip("169.254.1.1"), 80).allowed);
    assert!(r.address(ip("fd12::1"), 80).allowed);
    assert!(!r.address(ip("169.254.169.254"), 80).allowed);
    assert!(!r.address(ip("fd00:ec2::254"), 80).allowed);
    assert!(rules(&["169.254.169.254:80"], &[]).address(ip("169.254.169.254"), 80).allowed);

    // A denied address is denied in whatever carries it.
    let r = rules(&["*", "a.example"], &["1.2.3.0/24"]);
    for address in ["1.2.3.4", "::ffff:1.2.3.4", "64:ff9b::1.2.3.4"] {
        assert_eq!(r.address(ip(address), 80).reason, Reason::Denied, "{address}");
        assert_eq!(r.resolved(&name("a.example"), ip(address), 80).reason, Reason::Denied);
    }
}

#[test]
fn remedies_are_entries_that_work() {
    let r = rules(&["a.example:443", "*.b.example"], &["x.b.example"]);
    for (host, port) in [
        ("c.example", 80),
        ("a.example", 80),
        ("wiki", 80),
        ("10.0.0.1", 22),
        ("fd12::1", 22),
        ("localhost", 5432),
        ("169.254.169.254", 80),
    ] {
        let parsed = Host::parse(host.as_bytes()).unwrap();
        let verdict = |r: &Rules| match &parsed {
            Host::Name(n) => r.name(n, Some(port)).allowed,
            Host::Address(a) => r.address(*a, port).allowed,
        };
        assert!(!verdict(&r));
        let remedy = match &parsed {
            Host::Name(n) => r.name(n, Some(port)).remedy(&parsed, port, None),
            Host::Address(a) => r.address(*a, port).remedy(&parsed, port, None),
        }
        .unwrap();
        let entry = remedy.split_once("--allow-host ").unwrap().1.split(' ').next().unwrap();
        assert!(verdict(&rules(&[entry], &[])), "{remedy}");
    }
    let host = Host::Name(name("x.b.example"));
    let v = r.name(&name("x.b.example"), Some(1));
    assert_eq!(
        v.remedy(&host, 1, None).unwrap(),
        "take `x.b.example` out of network.deny (p.toml:1)"
    );
    let v = r.resolved(&name("a.b.example"), ip("10.0.0.1"), 1);
    assert_eq!(
        v.remedy(&Host::Name(name("a.b.example")), 1, Some(ip("10.0.0.1"))).unwrap(),
        "allow it with --allow-host 10.0.0.1:1 or network.allow = [\"10.0.0.1:1\"]"
    );
}

#[test]
fn every_bad_entry_is_reported() {
    let errors = Rules::of(&list(&["npm", "npn", "*.com"]), &list(&["a b"])).unwrap_err();
    let entries: Vec<&str> = errors.iter().map(|e| e.entry.as_str()).collect();
    assert_eq!(entries, ["npn", "*.com", "a b"]);
    assert_eq!(errors[1].origin.line, Some(3));
}

#[test]
fn groups_are_in_the_documentation() {
    let text = include_str!("../../../../docs/policy.md");
    for g in GROUPS {
        let ports: Vec<String> = g.ports.iter().map(ToString::to_string).collect();
        let row = format!("| `{}` | {} | {} |", g.name, g.about, ports.join(", "));
        assert!(text.contains(&row), "docs/policy.md lacks: {row}");
    }
}

#[test]
fn compiling_and_deciding_is_quick() {
    // Generous bounds for a debug build on a shared machine.
    let all: Vec<String> = (0..10_000).map(|i| format!("*.h{i}.example")).collect();
    let start = std::time::Instant::now();
    let r = Rules::of(&list(&all), &[]).unwrap();
    let n = name("a.b.c.h9999.example");
    for _ in 0..10_000 {
        assert!(r.name(&n, Some(443)).allowed);
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
}

// ---------------------------------------------------------------- laws

/// A small world, so that rules and questions meet.
fn label() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "not-a", "example", "test", "xn--bcher-kva"])
}

fn domain() -> impl Strategy<Value = String> {
    prop::collection::vec(label(), 2..4).prop_map(|l| l.join("."))
}

fn v4() -> impl Strategy<Value = Ipv4Addr> {
    let byte = || prop::sample::select(vec![0u8, 1, 10, 100, 127, 169, 192, 254, 255]);
    prop_oneof![
        (byte(), byte(), byte(), byte()).prop_map(|(a, b, c, d)| Ipv4Addr::new(a, b, c, d)),
        any::<u32>().prop_map(Ipv4Addr::from_bits),
        Just(Ipv4Addr::new(169, 254, 169, 254)),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        v4().prop_map(IpAddr::V4),
        v4().prop_flat_map(|a| prop::sample::select(embeddings(a))).prop_map(IpAddr::V6),
        any::<u128>().prop_map(|b| IpAddr::V6(Ipv6Addr::from_bits(b))),
        (0u128..0x10000).prop_map(|b| IpAddr::V6(Ipv6Addr::from_bits((0x2606u128 << 112) | b))),
    ]
}

/// Every way a v6 address carries a v4 one.
fn embeddings(a: Ipv4Addr) -> Vec<Ipv6Addr> {
    let bits = u128::from(a.to_bits());
    let at = |prefix: &str, low: u128| {
        Ipv6Addr::from_bits(prefix.parse::<Ipv6Addr>().unwrap().to_bits() | low)
    };
    vec![
        at("::ffff:0:0", bits),
        at("::", bits),
        at("::ffff:0:0:0", bits),
        at("64:ff9b::", bits),
        at("64:ff9b:1::", bits),
        at("2002::", bits << 80),
        at("2001::", bits ^ 0xffff_ffff),
        at("fe80::5efe:0:0", bits),
        at("2606:4700::5efe:0:0", bits),
        at("2606:4700::200:5efe:0:0", bits),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![22u16, 80, 443, 8050])
}

fn entry() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        3 => domain(),
        3 => domain().prop_map(|d| format!("*.{d}")),
        1 => Just("*".to_owned()),
        1 => prop::sample::select(GROUPS.iter().map(|g| g.name.to_owned()).collect::<Vec<_>>()),
        2 => (v4(), 0u8..=32).prop_map(|(a, n)| {
            ipnet_text(IpAddr::V4(a), n)
        }),
        1 => (any::<u128>(), 0u8..=128).prop_map(|(a, n)| {
            ipnet_text(IpAddr::V6(Ipv6Addr::from_bits(a)), n)
        }),
    ];
    (host, prop::sample::select(vec!["", ":443", ":80,443", ":8000-8100"])).prop_map(
        |(host, ports)| {
            if host.contains(':') && !ports.is_empty() {
                format!("[{host}]{ports}")
            } else {
                format!("{host}{ports}")
            }
        },
    )
}

fn ipnet_text(address: IpAddr, length: u8) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(bits - u32::from(length)).unwrap_or(0);
            format!("{}/{length}", Ipv4Addr::from_bits(a.to_bits() & mask))
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(bits - u32::from(length)).unwrap_or(0);
            format!("{}/{length}", Ipv6Addr::from_bits(a.to_bits() & mask))
        }
    }
}

/// Only entries that may be allowed; what is refused is refused.
fn entries(most: usize) -> impl Strategy<Value = Vec<String>> {
    use ringfence_policy::net::{List, check_entry};
    prop::collection::vec(entry(), 0..most)
        .prop_map(|list| list.into_iter().filter(|e| check_entry(e, List::Allow).is_ok()).collect())
}

/// Spells a name otherwise.
fn respell(name: &str, how: u8) -> String {
    let text: String = name
        .chars()
        .enumerate()
        .map(
            |(i, c)| {
                if (usize::from(how) >> (i % 5)) & 1 == 1 { c.to_ascii_uppercase() } else { c }
            },
        )
        .collect();
    let text = if how & 32 == 0 { text } else { text.replace('.', "\u{3002}") };
    if how & 64 == 0 { text } else { format!("{text}.") }
}

/// The documentation, word by word, without any index.
struct Slow<'a> {
    allow: &'a [String],
    deny: &'a [String],
}

struct SlowEntry {
    patterns: Vec<HostPattern>,
    ports: Vec<(u16, u16)>,
}

impl SlowEntry {
    fn of(text: &str, allow: bool) -> Self {
        let (host, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (h, p) = rest.split_once(']').unwrap();
                (h, p.strip_prefix(':'))
            }
            None if text.matches(':').count() == 1 => {
                let (h, p) = text.split_once(':').unwrap();
                (h, Some(p))
            }
            None => (text, None),
        };
        let group = GROUPS.iter().find(|g| g.name == host);
        let patterns = match group {
            Some(g) => g.hosts.iter().map(|h| HostPattern::parse(h).unwrap()).collect(),
            None => vec![HostPattern::parse(host).unwrap()],
        };
        let ports = match (ports, group) {
            (Some(p), _) => p
                .split(',')
                .map(|r| {
                    let (a, b) = r.split_once('-').unwrap_or((r, r));
                    (a.parse().unwrap(), b.parse().unwrap())
                })
                .collect(),
            (None, Some(g)) if allow => g.ports.iter().map(|p| (*p, *p)).collect(),
            _ => vec![(1, u16::MAX)],
        };
        Self { patterns, ports }
    }

    fn on(&self, port: u16) -> bool {
        self.ports.iter().any(|(a, b)| (*a..=*b).contains(&port))
    }

    fn name(&self, name: &str) -> bool {
        self.patterns.iter().any(|p| match p {
            HostPattern::Any => true,
            HostPattern::Exact(n) => n.as_str() == name,
            HostPattern::Subdomains(n) => name.ends_with(&format!(".{n}")),
            _ => false,
        })
    }

    fn address(&self, a: IpAddr) -> bool {
        self.patterns.iter().any(|p| match p {
            HostPattern::Any => true,
            HostPattern::Network(n) => n.contains(&a),
            _ => false,
        })
    }
}

impl Slow<'_> {
    fn name(&self, name: &str, port: u16) -> bool {
        let hits = |list: &[String], allow| {
            list.iter().map(|e| SlowEntry::of(e, allow)).any(|e| e.on(port) && e.name(name))
        };
        hits(self.allow, true) && !hits(self.deny, false)
    }

    /// For public v4 addresses, where nothing is special.
    fn public(&self, a: IpAddr, port: u16) -> bool {
        let hits = |list: &[String], allow| {
            list.iter().map(|e| SlowEntry::of(e, allow)).any(|e| e.on(port) && e.address(a))
        };
        hits(self.allow, true) && !hits(self.deny, false)
    }
}

fn compiled(allow: &[String], deny: &[String]) -> Rules {
    Rules::of(&list(allow), &list(deny)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn bytes_never_panic_and_canonical_is_canonical(text in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(host) = Host::parse(&text) {
            let again = host.to_string();
            prop_assert_eq!(Host::parse(again.as_bytes()).unwrap(), host);
        }
    }

    #[test]
    fn text_never_panics_and_canonical_is_canonical(text in "[a-z0-9.xXnß一-]{0,20}(\\.[a-z0-9äß]{1,8}){0,3}\\.?") {
        if let Ok(host) = Host::parse(text.as_bytes()) {
            let again = host.to_string();
            prop_assert_eq!(Host::parse(again.as_bytes()).unwrap(), host.clone());
            if let Host::Name(n) = host {
                prop_assert!(n.as_str().len() <= 253);
                prop_assert!(n.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b)));
                prop_assert!(n.as_str().parse::<IpAddr>().is_err());
            }
        }
    }

    #[test]
    fn entries_never_panic(text in "\\PC{0,40}") {
        let _ = Rules::of(&list(&[&text]), &list(&[&text]));
    }

    #[test]
    fn every_spelling_of_an_address_is_one(a in v4(), how in 0usize..6) {
        let bits = a.to_bits();
        let o = a.octets();
        let text = match how {
            0 => a.to_string(),
            1 => bits.to_string(),
            2 => format!("0x{bits:X}"),
            3 => format!("0{:o}.0x{:x}.{}", o[0], o[1], u32::from(o[2]) << 8 | u32::from(o[3])),
            4 => format!("[::ffff:{a}]"),
            _ => format!("{}.{}", o[0], bits & 0xff_ffff),
        };
        prop_assert_eq!(Host::parse(text.as_bytes()), Ok(Host::Address(a.into())), "{}", text);
    }

    #[test]
    fn spelling_makes_no_difference(allow in entries(6), deny in entries(3), d in domain(), how: u8, p in port()) {
        let r = compiled(&allow, &deny);
        let other = Name::parse(respell(&d, how).as_bytes()).unwrap();
        prop_assert_eq!(r.name(&name(&d), Some(p)), r.name(&other, Some(p)));
        prop_assert_eq!(&other, &name(&d));
        // Nor does the spelling of the rules.
        let spelled: Vec<String> = allow.iter().map(|e| if e.contains('/') || GROUPS.iter().any(|g| e.split(':').next() == Some(g.name)) { e.clone() } else { e.to_ascii_uppercase() }).collect();
        prop_assert_eq!(compiled(&spelled, &deny).name(&other, Some(p)).allowed, r.name(&other, Some(p)).allowed);
    }

    #[test]
    fn names_agree_with_the_slow_evaluator(allow in entries(8), deny in entries(4), d in domain(), p in port()) {
        let r = compiled(&allow, &deny);
        let slow = Slow { allow: &allow, deny: &deny };
        let v = r.name(&name(&d), Some(p));
        prop_assert_eq!(v.allowed, slow.name(&d, p), "{:?} {:?} {:?}", allow, deny, v);
        prop_assert_eq!(v.allowed, v.reason == Reason::Allowed);
        if v.allowed {
            prop_assert!(r.name(&name(&d), None).allowed, "dns answers what may be reached");
            prop_assert!(r.ports(&Host::Name(name(&d))).iter().any(|range| range.contains(p)));
            prop_assert!(!r.resolved(&name(&d), ip("::1"), p).allowed);
        }
        prop_assert_eq!(r.name(&name(&d), None).allowed, !r.ports(&Host::Name(name(&d))).is_empty());
    }

    #[test]
    fn addresses_agree_with_the_slow_evaluator(allow in entries(8), deny in entries(4), a in v4(), p in port()) {
        let a = IpAddr::V4(a);
        let r = compiled(&allow, &deny);
        let slow = Slow { allow: &allow, deny: &deny };
        let fast = r.address(a, p).allowed;
        if special(a).is_none() {
            prop_assert_eq!(fast, slow.public(a, p), "{:?} {:?}", allow, deny);
        } else {
            prop_assert!(!fast || slow.public(a, p));
        }
        prop_assert_eq!(r.address_on_any_port(a).allowed, !r.ports(&a.into()).is_empty());
    }

    #[test]
    fn adding_a_deny_never_allows(allow in entries(6), deny in entries(3), more in entry(), d in domain(), a in address(), p in port()) {
        let before = compiled(&allow, &deny);
        let mut denies = deny.clone();
        denies.push(more);
        let after = compiled(&allow, &denies);
        prop_assert!(before.name(&name(&d), Some(p)).allowed || !after.name(&name(&d), Some(p)).allowed);
        prop_assert!(before.name(&name(&d), None).allowed || !after.name(&name(&d), None).allowed);
        prop_assert!(before.address(a, p).allowed || !after.address(a, p).allowed);
        prop_assert!(before.resolved(&name(&d), a, p).allowed || !after.resolved(&name(&d), a, p).allowed);
    }

    #[test]
    fn the_order_of_entries_makes_no_difference(allow in entries(6), deny in entries(3), d in domain(), a in address(), p in port()) {
        let (mut x, mut y) = (allow.clone(), deny.clone());
        x.reverse();
        y.reverse();
        let (r, s) = (compiled(&allow, &deny), compiled(&x, &y));
        prop_assert_eq!(r.name(&name(&d), Some(p)).allowed, s.name(&name(&d), Some(p)).allowed);
        prop_assert_eq!(r.address(a, p).reason, s.address(a, p).reason);
        prop_assert_eq!(r.resolved(&name(&d), a, p).reason, s.resolved(&name(&d), a, p).reason);
    }

    #[test]
    fn what_carries_a_special_address_is_special(a in v4()) {
        if special(a.into()).is_some() {
            for v6 in embeddings(a) {
                prop_assert!(special(v6.into()).is_some(), "{} of {}", v6, a);
            }
        }
    }

    #[test]
    fn wide_entries_open_nothing_special(a in address(), p in port(), d in domain()) {
        let r = rules(&["*", "0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "8000::/1"], &[]);
        let verdict = r.address(a, p);
        prop_assert_eq!(verdict.allowed, special(a).is_none(), "{}", a);
        prop_assert_eq!(r.resolved(&name(&d), a, p).allowed, special(a).is_none());
    }
}
