//! Attempts to reach something, made by `probe.py` on the host (the control) or inside.

use serde_json::{Value, json};

use super::world::{NAIVE_PROXY, World, filtered_world, token, world};
use crate::harness::{Place, Ran, User, is_root};

/// The ways of a TCP connection: as any program, by the HTTP proxy, through a tunnel, by SOCKS.
pub const WAYS: [&str; 4] = ["direct", "http", "connect", "socks"];

#[derive(Clone, Debug)]
pub struct Attempt {
    /// What the servers log when it arrives.
    pub word: String,
    /// The answer that shows that it arrived.
    pub proof: String,
    /// The naive proxy and the host without ringfence let it through.
    pub control: bool,
    value: Value,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub attempt: Attempt,
    pub got: String,
    pub error: String,
}

impl Outcome {
    pub fn reached(&self) -> bool {
        self.got.contains(&self.attempt.proof)
    }
}

/// `GET /word`, with the host as Host header.
pub fn get(host: &str, word: &str) -> String {
    format!("GET /{word} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

impl Attempt {
    /// A request for `/word`; `@` in the host stands for the word.
    pub fn new(way: &str, host: &str, port: u16) -> Self {
        let word = token();
        let host = host.replace('@', &word);
        let name = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let send = match way {
            "http" => format!(
                "GET http://{name}:{port}/{word} HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n"
            ),
            "udp" | "ping" | "rawping" | "abstract" => word.clone(),
            // Bytes that are no part of a header stay in the name only.
            _ => get(&name.replace(|c: char| c.is_control(), "-"), &word),
        };
        let proof = match way {
            "udp" => format!("reached {word}"),
            "ping" | "rawping" => word.clone(),
            "abstract" => "reached an abstract socket".to_owned(),
            _ => format!("{word} at "),
        };
        let value = json!({
            "way": way, "host": host, "port": port, "send": [send], "until": proof,
        });
        Self { word, proof, control: true, value }
    }

    /// By each way of a TCP connection.
    pub fn each_way(host: &str, port: u16) -> Vec<Self> {
        WAYS.iter().map(|way| Self::new(way, host, port)).collect()
    }

    /// What is sent instead, step by step; `@` stands for the word.
    pub fn sends<S: AsRef<str>>(mut self, steps: &[S]) -> Self {
        let steps: Vec<_> = steps.iter().map(|s| s.as_ref().replace("@W@", &self.word)).collect();
        self.value["send"] = json!(steps);
        self
    }

    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(s) => Value::String(s.replace("@W@", &self.word)),
            other => other,
        };
        self.value[key] = value;
        self
    }

    pub fn proof(mut self, proof: &str) -> Self {
        self.proof = proof.replace("@W@", &self.word);
        self.value["until"] = json!(self.proof);
        self
    }

    /// With TLS and this server name; empty is none.
    pub fn tls(self, name: &str) -> Self {
        self.set("tls", name)
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Not even the control can do it.
    pub fn no_control(mut self) -> Self {
        self.control = false;
        self
    }
}

pub fn outcomes(ran: &Ran, attempts: Vec<Attempt>) -> Vec<Outcome> {
    let line = ran.out.lines().last().unwrap_or_default();
    let answers: Vec<Value> =
        serde_json::from_str(line).unwrap_or_else(|e| panic!("no answers: {e}: {ran:#?}"));
    assert_eq!(answers.len(), attempts.len());
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    attempts
        .into_iter()
        .zip(answers)
        .map(|(attempt, a)| Outcome { attempt, got: text(&a["got"]), error: text(&a["error"]) })
        .collect()
}

pub fn furnish(p: &Place, attempts: &[Attempt]) {
    p.write("probe.py", include_str!("probe.py"));
    let values: Vec<_> = attempts.iter().map(|a| &a.value).collect();
    p.write("attempts.json", serde_json::to_vec(&values).unwrap());
}

pub const PROBE: &str = "python3 -I probe.py attempts.json";

/// On the host, through the naive proxy.
pub fn bare(world: &World, p: &Place, attempts: Vec<Attempt>) -> Vec<Outcome> {
    furnish(p, &attempts);
    let script =
        format!("http_proxy=http://{NAIVE_PROXY} all_proxy=socks5h://{NAIVE_PROXY} exec {PROBE}");
    outcomes(&world.bare(p, &script).ok(), attempts)
}

/// Inside.
pub fn fenced(world: &World, p: &Place, flags: &[&str], attempts: Vec<Attempt>) -> Vec<Outcome> {
    furnish(p, &attempts);
    outcomes(&world.fenced(p, flags, PROBE).ok(), attempts)
}

/// Inside, with what was said besides; the script runs the probe at its end.
pub fn fenced_with(
    world: &World,
    p: &Place,
    flags: &[&str],
    attempts: Vec<Attempt>,
    script: &str,
) -> (Vec<Outcome>, Ran) {
    furnish(p, &attempts);
    let ran = world.fenced(p, flags, script).ok();
    (outcomes(&ran, attempts), ran)
}

/// The word of an attempt.
pub fn token_of(o: &Outcome) -> String {
    o.attempt.word.clone()
}

/// What an attack must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// Nothing arrives and no name is asked for.
    Vanish,
    /// Nothing arrives; names may be resolved outside.
    NotArrive,
}

/// As each user: every attempt arrives without ringfence and none with it, where `good.example.com`
/// is allowed (by every way, which is tried as well) and what `flags` say.
#[track_caller]
pub fn refused(flags: &[&str], must: Must, attempts: impl Fn() -> Vec<Attempt>) -> Vec<Outcome> {
    let mut all = Vec::new();
    for (world, p) in places() {
        let controls = attempts().into_iter().filter(|a| a.control).collect();
        for o in bare(world, &p, controls) {
            assert!(o.reached(), "the control must arrive as {:?}: {o:#?}", p.user);
            let seen = !world.reached(&o.attempt.word).is_empty();
            assert!(seen, "the log must have the control: {o:#?}");
        }
        let Some(world) = filtered_world() else { continue };
        let good: Vec<_> = Attempt::each_way("good.example.com", 80);
        let (good_ones, attempts) = (good.len(), attempts());
        // A refusal that keeps its connection open is not waited out: the servers' log is what counts.
        let bad = attempts.into_iter().map(|a| match a.value.get("wait") {
            Some(_) => a,
            None => a.set("wait", 3),
        });
        let attempts = good.into_iter().chain(bad).collect();
        let flags = [&["--allow-host", "good.example.com"], flags].concat();
        let mut found = fenced(world, &p, &flags, attempts);
        for o in found.drain(..good_ones) {
            assert!(o.reached(), "what is allowed must be reached as {:?}: {o:#?}", p.user);
        }
        for o in &found {
            assert!(!o.reached(), "must be refused as {:?}: {o:#?}", p.user);
            let reached = world.reached(&o.attempt.word);
            assert!(reached.is_empty(), "{reached:#?} as {:?}: {o:#?}", p.user);
            if must == Must::Vanish {
                let asked = world.asked(&o.attempt.word);
                assert!(asked.is_empty(), "{asked:#?} as {:?}: {o:#?}", p.user);
            }
        }
        all.extend(found);
    }
    all
}

/// As each user: every attempt arrives, with ringfence too.
#[track_caller]
pub fn allowed(flags: &[&str], attempts: impl Fn() -> Vec<Attempt>) {
    for (world, p) in places() {
        for o in bare(world, &p, attempts()) {
            assert!(o.reached(), "the control must arrive as {:?}: {o:#?}", p.user);
        }
        let Some(world) = filtered_world() else { continue };
        for o in fenced(world, &p, flags, attempts()) {
            assert!(o.reached(), "must be allowed as {:?}: {o:#?}", p.user);
            assert!(!world.reached(&o.attempt.word).is_empty(), "{o:#?}");
        }
    }
}

/// A workspace of each user; none where there is no world.
pub fn places() -> Vec<(&'static World, Place)> {
    let Some(world) = world() else { return Vec::new() };
    let users = if is_root() { vec![User::Me, User::Ordinary] } else { vec![User::Me] };
    users.into_iter().map(|user| (world, Place::new(user))).collect()
}

/// The same, where the binary filters.
pub fn filtered_places() -> Vec<(&'static World, Place)> {
    if filtered_world().is_some() { places() } else { Vec::new() }
}
