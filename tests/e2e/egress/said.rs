//! What is said of a refusal: in the log, on the terminal, to the client; and beforehand.

use serde_json::Value;

use super::probe::{Attempt, Outcome, PROBE, fenced, filtered_places, token_of};
use super::world::World;
use crate::harness::{Place, Ran, binary};

const RULES: &str = r#"
[network]
allow = ["good.example.com", "*.wild.example.com", "45.30.0.0/16", "pg.example.com:5432"]
deny = ["no.wild.example.com", "45.30.9.9"]
"#;

fn rules(p: &Place) -> String {
    p.write("../outside/rules.toml", RULES).display().to_string()
}

/// Host, port, whether the rules let it through, the reason if not.
const TABLE: [(&str, u16, bool, &str); 17] = [
    ("good.example.com", 80, true, ""),
    ("good.example.com", 8080, true, ""),
    ("api.good.example.com", 80, false, "not-listed"),
    ("some.wild.example.com", 80, true, ""),
    ("deeper.some.wild.example.com", 80, true, ""),
    ("wild.example.com", 80, false, "not-listed"),
    ("no.wild.example.com", 80, false, "denied"),
    ("nowild.example.com", 80, false, "not-listed"),
    ("45.30.1.2", 80, true, ""),
    ("45.30.9.9", 80, false, "denied"),
    ("45.31.1.2", 80, false, "not-listed"),
    ("2606:31::1", 80, false, "not-listed"),
    ("pg.example.com", 5432, true, ""),
    ("pg.example.com", 80, false, "port"),
    ("169.254.169.254", 80, false, "special-address"),
    ("10.1.2.3", 80, false, "special-address"),
    ("192.168.7.7", 80, false, "special-address"),
];

fn attempts(way: &str) -> Vec<Attempt> {
    TABLE
        .iter()
        .map(|(host, port, ..)| {
            let attempt = Attempt::new(way, host, *port);
            match (*port, way) {
                (5432, "http") => attempt.proof("hello from the server"),
                (5432, _) => attempt.sends(&["@W@\n"]).proof("reached @W@"),
                _ => attempt,
            }
        })
        .collect()
}

/// Every object of the log that is a record of a connection or a name.
fn records(text: &str) -> Vec<Value> {
    fn walk(v: Value, found: &mut Vec<Value>) {
        if v.get("reason").is_some() && v.get("allowed").is_some() {
            found.push(v);
        } else if let Value::Object(map) = v {
            map.into_iter().for_each(|(_, v)| walk(v, found));
        }
    }
    let mut found = Vec::new();
    for line in text.lines() {
        walk(serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")), &mut found);
    }
    found
}

fn run(world: &World, p: &Place, way: &str) -> (Vec<Outcome>, Ran, Vec<Value>) {
    let log = p.outside().join(format!("log-{way}"));
    let rules = rules(p);
    let flags = ["--settings", &rules, "-m", "--log", log.to_str().unwrap()];
    let list = attempts(way);
    let (all, ran) = super::probe::fenced_with(world, p, &flags, list, PROBE);
    let records = records(&std::fs::read_to_string(&log).unwrap());
    (all, ran, records)
}

#[test]
fn every_refusal_is_recorded_with_its_reason_and_explained_beforehand() {
    for (world, p) in filtered_places() {
        for way in ["direct", "connect", "socks", "http"] {
            let (all, ran, records) = run(world, &p, way);
            for (o, (host, port, allowed, reason)) in all.iter().zip(TABLE) {
                // An answer that came with a request is none to a server that speaks first.
                if way == "http" && port == 5432 {
                    continue;
                }
                assert_eq!(o.reached(), allowed, "{way} {host}:{port}: {o:#?}\n{ran:#?}");
                let of = |r: &&Value| {
                    let same = |v: &Value| v.as_str().is_some_and(|s| s == host);
                    (same(&r["name"]) || same(&r["address"]))
                        && (r["port"] == port || r["via"] == "dns")
                };
                let mine: Vec<_> =
                    records.iter().filter(of).filter(|r| r["allowed"] == allowed).collect();
                if allowed {
                    continue;
                }
                let record =
                    mine.first().unwrap_or_else(|| panic!("{way} {host}:{port}: {records:#?}"));
                // A question does not say for which port.
                if record["via"] != "dns" {
                    assert_eq!(record["reason"], reason, "{way} {host}:{port}: {record:#}");
                    assert!(record["process"]["program"].is_string(), "{way}: {record:#}");
                }
                assert!(record["time_ms"].as_u64() > Some(0), "{record:#}");
                assert!(!record["detail"].as_str().unwrap().is_empty(), "{record:#}");
                if reason == "denied" {
                    assert_eq!(record["rule"], host, "{record:#}");
                    assert!(record["origin"].is_string(), "{record:#}");
                } else if reason != "special-address" {
                    assert!(!record["remedy"].as_str().unwrap().is_empty(), "{record:#}");
                }
                // One line for people.
                let line = ran.err.lines().find(|l| l.contains(host));
                assert!(line.is_some(), "{way} {host}:{port} is not said: {}", ran.err);
            }
        }
        for (host, port, allowed, reason) in TABLE {
            let what = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            let mut command = world.command(&p, binary());
            command.args(["policy", "explain", &what, "--json"]).args(["--settings", &rules(&p)]);
            let ran = Ran::of(&mut command);
            let said: Value =
                serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
            assert_eq!(said["allowed"], allowed, "{what}: {ran:#?}");
            assert_eq!(said["word"], if allowed { "allowed" } else { reason }, "{what}: {ran:#?}");
        }
    }
}

#[test]
fn a_client_is_told_in_its_own_language() {
    let name = "@.example.org";
    let attempts = || {
        vec![
            Attempt::new("http", name, 80),
            Attempt::new("connect", name, 443),
            Attempt::new("socks", name, 443),
            Attempt::new("direct", "45.66.6.6", 80),
            Attempt::new("direct", "45.66.6.6", 443).tls("x.example.org"),
            Attempt::new("direct", "45.66.6.6", 6379).sends(&["\u{1}\u{2}@W@"]),
        ]
    };
    for (world, p) in filtered_places() {
        let all = fenced(world, &p, &["--allow-host", "good.example.com"], attempts());
        let [http, connect, socks, plain, tls, raw] = &all[..] else { panic!("{all:#?}") };
        for (o, text, about) in [
            (http, &http.got, token_of(http)),
            (connect, &connect.error, token_of(connect)),
            (plain, &plain.got, "45.66.6.6".to_owned()),
        ] {
            assert!(text.contains("HTTP/1.1 403 "), "{o:#?}");
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {o:#?}"));
            assert!(body.is_object() && body.to_string().contains(&about), "{body:#}");
            assert!(body.to_string().contains("remedy"), "{body:#}");
        }
        assert!(socks.error.contains("code 2"), "{socks:#?}");
        assert!(tls.error.to_lowercase().replace('_', " ").contains("access denied"), "{tls:#?}");
        assert!(raw.error.contains("reset") || raw.error.contains("refused"), "{raw:#?}");
    }
}

#[test]
fn a_policy_file_is_quoted_with_its_line_and_can_do_without_variables() {
    for (world, p) in filtered_places() {
        let file = p.write(
            "../outside/rules.toml",
            "# The rules.\n\n[network]\nproxies = false\nallow = [\"good.example.com\", \"*.wild.example.com\"]\n\
             deny = [\n  \"no.wild.example.com\",\n]\n",
        );
        let log = p.outside().join("log");
        let flags = ["--settings", file.to_str().unwrap(), "--log", log.to_str().unwrap()];
        let attempts = ["good", "yes.wild", "no.wild"]
            .map(|name| Attempt::new("direct", &format!("{name}.example.com"), 80))
            .to_vec();
        let script = format!("env | grep -i _proxy; {PROBE}");
        let (all, ran) = super::probe::fenced_with(world, &p, &flags, attempts, &script);
        assert!(ran.out.starts_with('['), "no proxy is named: {ran:#?}");
        assert_eq!(
            all.iter().map(Outcome::reached).collect::<Vec<_>>(),
            [true, true, false],
            "{all:#?}"
        );
        let records = records(&std::fs::read_to_string(&log).unwrap());
        let denied = records.iter().find(|r| r["name"] == "no.wild.example.com");
        let origin = denied.unwrap_or_else(|| panic!("{records:#?}"))["origin"].to_string();
        assert!(origin.contains("rules.toml:7"), "{origin}");
    }
}
