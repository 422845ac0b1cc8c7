//! What the daemon's answers cost beside the plain thing: a command beside a spawn, a sandbox's life, files,
//! and what two thousand sandboxes that do nothing take.

#![allow(clippy::cast_precision_loss)] // figures for people

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, Daemon};
use crate::looks::{KERNEL, children, kernel_by_kind, pss, rss};
use crate::{micros, tree};

/// Clients at once, where there are many.
const CLIENTS: usize = 8;
/// How long rates are taken.
const WHILE: Duration = Duration::from_secs(2);
/// Files of the codebase.
const MANY: usize = 50_000;
const TRUE: &[u8] = br#"{"argv":["/bin/true"]}"#;
const PARTS: [&str; 7] = ["spawn", "rate", "plain", "codebase", "batch", "files", "density"];

/// `only`: one of the parts, or all but density, which takes its time.
pub fn groups(binary: &Path, rounds: usize, only: Option<&str>, idle: usize) -> Vec<Value> {
    let wanted = |part: &str| only.map_or(part != "density", |only| only == part);
    assert!(only.is_none_or(|only| PARTS.contains(&only)), "parts: {PARTS:?}");
    let mut groups = Vec::new();
    if PARTS.iter().any(|part| *part != "density" && wanted(part)) {
        let daemon = Daemon::start(binary);
        let few = (rounds / 4).max(10);
        if wanted("spawn") {
            groups.extend(one_client(&daemon, rounds));
        }
        if wanted("rate") {
            groups.push(rate_of_exec(&daemon));
        }
        if wanted("plain") {
            groups.push(lives("create, exec, destroy", "<= 4 ms", &daemon, &plain(&daemon), few));
        }
        if wanted("codebase") || wanted("batch") {
            let of = codebase(&daemon);
            if wanted("codebase") {
                let name = "the same on a codebase of 50,000 files";
                groups.push(lives(name, "<= 4 ms", &daemon, &of, few));
            }
            if wanted("batch") {
                groups.push(batch(&daemon, &[("plain", plain(&daemon)), ("codebase", of)]));
            }
        }
        if wanted("files") {
            groups.extend(files(&daemon, rounds));
        }
    }
    if wanted("density") {
        groups.push(density(binary, idle));
    }
    groups
}

fn plain(daemon: &Daemon) -> Value {
    json!({ "workspace": daemon.work() })
}

/// The codebase of many files; what a sandbox on it is made of.
fn codebase(daemon: &Daemon) -> Value {
    let from = daemon.root.path().join("tree");
    tree(&from, MANY);
    daemon.client().json("POST", "/v1/codebases", &json!({ "name": "many", "directory": from }));
    json!({ "codebase": "many", "profiles": ["agent-safe"] })
}

fn spawn() {
    let mut command = Command::new("/bin/true");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
}

fn timed(what: impl FnOnce()) -> Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

/// A row of the table.
fn row(case: &str, times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let at = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
    json!({
        "case": case, "min": at(0), "p50": at(50), "p90": at(90), "p95": at(95), "p99": at(99),
    })
}

fn value(case: &str, value: f64, unit: &str) -> Value {
    json!({ "case": case, "value": value, "unit": unit })
}

fn p99_beside_p50(row: &Value) -> Value {
    let times = row["p99"].as_f64().unwrap() / row["p50"].as_f64().unwrap();
    value(&format!("p99 of {}", row["case"].as_str().unwrap()), times, "times its p50")
}

fn one_client(daemon: &Daemon, rounds: usize) -> Vec<Value> {
    let mut client = daemon.client();
    let id = client.create(&plain(daemon));
    let (mut bare, mut asked, mut health) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds + 3 {
        let spawned = timed(spawn);
        let exec = timed(|| client.exec(&id, TRUE));
        let answer = timed(|| assert_eq!(client.ask("GET", "/v1/health", b"").0, 200));
        if round >= 3 {
            bare.push(spawned);
            asked.push(exec);
            health.push(answer);
        }
    }
    client.delete(&id);
    let rows = [
        row("spawn of /bin/true", &mut bare),
        row("exec of it", &mut asked),
        row("an answer alone", &mut health),
    ];
    let shares = [p99_beside_p50(&rows[0]), p99_beside_p50(&rows[1])];
    vec![
        json!({ "group": "exec, one client", "aim": "1.5 times", "rounds": rounds, "unit": "us", "rows": rows }),
        json!({ "group": "the slow ones", "aim": "5 times", "rows": shares }),
    ]
}

/// How often a second all of them together do it.
fn rate(clients: Vec<Box<dyn FnMut() + Send>>) -> f64 {
    let begin = Instant::now();
    let done: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .map(|mut once| {
                scope.spawn(move || {
                    let mut done = 0usize;
                    while begin.elapsed() < WHILE {
                        once();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    done as f64 / begin.elapsed().as_secs_f64()
}

/// The same done by as many clients as there are ids, one of them for each.
fn rate_of(
    daemon: &Daemon,
    ids: &[String],
    once: impl Fn(&mut Client, &str, usize) + Clone + Send + 'static,
) -> f64 {
    let clients = ids.iter().cloned().enumerate().map(|(n, id)| {
        let (mut client, once) = (daemon.client(), once.clone());
        Box::new(move || once(&mut client, &id, n)) as Box<dyn FnMut() + Send>
    });
    rate(clients.collect())
}

fn rate_of_exec(daemon: &Daemon) -> Value {
    let mut client = daemon.client();
    let ids: Vec<String> = (0..CLIENTS).map(|_| client.create(&plain(daemon))).collect();
    let spawners = || (0..CLIENTS).map(|_| Box::new(spawn) as Box<dyn FnMut() + Send>).collect();
    // Twice in turns, so that a machine that slows down shows.
    let exec = |client: &mut Client, id: &str, _| client.exec(id, TRUE);
    let (first, one) = (rate(spawners()), rate_of(daemon, &ids, exec));
    let same = vec![ids[0].clone(); CLIENTS];
    let (second, two) = (rate(spawners()), rate_of(daemon, &same, exec));
    for id in ids {
        client.delete(&id);
    }
    json!({ "group": "exec, 8 clients", "aim": "0.8 of the spawns", "rows": [
        value("spawn of /bin/true", f64::midpoint(first, second), "per second"),
        value("exec of it in 8 sandboxes", one, "per second"),
        value("exec of it in one sandbox", two, "per second"),
    ] })
}

/// A sandbox made, used once and destroyed.
fn lives(name: &str, aim: &str, daemon: &Daemon, of: &Value, rounds: usize) -> Value {
    let mut client = daemon.client();
    let mut times: [Vec<Duration>; 5] = Default::default();
    for round in 0..rounds + 3 {
        let spawned = timed(spawn);
        let mut id = String::new();
        let create = timed(|| id = client.create(of));
        let exec = timed(|| client.exec(&id, TRUE));
        let delete = timed(|| client.delete(&id));
        if round >= 3 {
            let all = [spawned, create + exec + delete, create, exec, delete];
            for (times, time) in times.iter_mut().zip(all) {
                times.push(time);
            }
        }
    }
    let cases = ["spawn of /bin/true", "all three", "create", "first exec", "destroy"];
    let rows: Vec<Value> = cases.iter().zip(&mut times).map(|(case, t)| row(case, t)).collect();
    json!({ "group": name, "aim": aim, "rounds": rounds, "unit": "us", "rows": rows })
}

fn batch(daemon: &Daemon, kinds: &[(&str, Value)]) -> Value {
    const ITEMS: usize = 100;
    let mut client = daemon.client();
    let mut rows = Vec::new();
    for (name, of) in kinds {
        let mut times = Vec::new();
        for _ in 0..5 {
            let items = json!({ "items": vec![of; ITEMS] });
            let mut made = Value::Null;
            times.push(timed(|| made = client.json("POST", "/v1/batch/sandboxes", &items)));
            for one in made["results"].as_array().unwrap() {
                client.delete(one["result"]["id"].as_str().unwrap());
            }
        }
        rows.push(row(name, &mut times));
    }
    json!({ "group": "100 sandboxes in one request", "aim": "250 ms", "rounds": 5, "unit": "us", "rows": rows })
}

fn files(daemon: &Daemon, rounds: usize) -> Vec<Value> {
    let mut client = daemon.client();
    let id = client.create(&plain(daemon));
    let path = |name: &str| format!("/v1/sandboxes/{id}/files?path={name}");
    let mut rows = Vec::new();
    for (name, size) in [("1 KB", 1000), ("1 MB", 1_000_000)] {
        let file = format!("f{size}");
        std::fs::write(daemon.work().join(&file), vec![b'x'; size]).unwrap();
        let (plain, asked) = (daemon.work().join(&file), path(&file));
        let (mut bare, mut read) = (Vec::new(), Vec::new());
        for round in 0..rounds + 3 {
            let direct = timed(|| drop(std::fs::read(&plain).unwrap()));
            let time = timed(|| {
                let (status, bytes) = client.ask("GET", &asked, b"");
                assert!(status == 200 && bytes.len() == size);
            });
            if round >= 3 {
                bare.push(direct);
                read.push(time);
            }
        }
        rows.push(row(&format!("read {name} directly"), &mut bare));
        rows.push(row(&format!("read {name}"), &mut read));
    }
    let ids = vec![id.clone(); CLIENTS];
    let kind = "application/octet-stream";
    let reads = rate_of(daemon, &ids, |client, id, _| {
        let (status, _) = client.ask("GET", &format!("/v1/sandboxes/{id}/files?path=f1000"), b"");
        assert_eq!(status, 200);
    });
    let write = move |durable: &'static str| {
        move |client: &mut Client, id: &str, n: usize| {
            let path = format!("/v1/sandboxes/{id}/files?path=w{n}{durable}");
            let (status, _) = client.ask_as("PUT", &path, kind, &[b'y'; 1000]);
            assert_eq!(status, 204);
        }
    };
    let writes = rate_of(daemon, &ids, write(""));
    let durable = rate_of(daemon, &ids, write("&durable=true"));
    client.delete(&id);
    vec![
        json!({ "group": "read a file", "aim": "1 KB 0.2 ms, 1 MB 1.5 ms", "rounds": rounds, "unit": "us", "rows": rows }),
        json!({ "group": "files of 1 KB, 8 clients", "aim": "15,000 reads, 8,000 writes", "rows": [
            value("read", reads, "per second"),
            value("write", writes, "per second"),
            value("write, on the disk before the answer", durable, "per second"),
        ] }),
    ]
}

/// Sandboxes that do nothing: their memory, and whether making one more costs more.
fn density(binary: &Path, idle: usize) -> Value {
    const ENDS: usize = 100;
    let daemon = Daemon::start(binary);
    let mut client = daemon.client();
    let of = plain(&daemon);
    // What is made once is no sandbox's.
    client.create(&of);
    let spawner = children(daemon.pid())[0];
    let (before, daemon_before) = (kernel_by_kind(), rss(daemon.pid()));
    let mut times = Vec::with_capacity(idle);
    for _ in 0..idle {
        times.push(timed(|| drop(client.create(&of))));
    }
    let inits = children(spawner);
    let after = kernel_by_kind();
    let grown = |n: usize| after[n].saturating_sub(before[n]) as f64 / idle as f64;
    let kernel: f64 = (0..KERNEL.len()).map(grown).sum();
    let memory: u64 = inits.iter().filter_map(|pid| pss(*pid)).sum();
    let memory = memory as f64 / inits.len() as f64;
    let own = pss(spawner).unwrap_or(0) as f64 / idle as f64;
    let resident = rss(daemon.pid());
    let ended = timed(|| {
        let all = client.json("GET", "/v1/sandboxes", &Value::Null);
        for one in all["sandboxes"].as_array().unwrap() {
            client.delete(one["id"].as_str().unwrap());
        }
    });
    let last = times.len().saturating_sub(ENDS);
    let mut first = times[..ENDS.min(times.len())].to_vec();
    let mut final_ones = times[last..].to_vec();
    let mut rows = vec![
        row("create, the first 100", &mut first),
        row("create, the last 100", &mut final_ones),
        value("processes for each", (inits.len() - 1) as f64 / idle as f64, ""),
        value("PSS of its init", memory, "KiB"),
        value("kernel memory", kernel, "KiB"),
        value("of the spawner", own, "KiB"),
        value("of the daemon", resident.saturating_sub(daemon_before) as f64 / idle as f64, "KiB"),
        value("daemon's resident memory", resident as f64 / 1024.0, "MiB"),
        value("destroyed", idle as f64 / ended.as_secs_f64(), "per second"),
    ];
    for (n, kind) in KERNEL.iter().enumerate() {
        rows.push(value(
            &format!("kernel memory: {}", kind.trim_end_matches(':')),
            grown(n),
            "KiB",
        ));
    }
    json!({ "group": format!("{idle} idle sandboxes"), "aim": "512 KiB all in; create 2 times", "rounds": idle, "unit": "us", "rows": rows })
}
