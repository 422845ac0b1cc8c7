//! Random work on many sandboxes of one daemon for a long time, then: is anything left, and does anything
//! grow? `bench --binary RINGFENCE --soak --seconds 1800 --sandboxes 200`.
//!
//! Counted are what belongs to the daemon's family (descriptors, memory, processes, namespaces that they are
//! in) and what the machine has of mounts, control groups and the daemon's own files. Samples are taken
//! after each minute's work, with every worker at rest.

#![allow(clippy::cast_precision_loss)] // figures for people

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, Daemon};
use super::looks::{children, kernel, pss, rss};

const WORKERS: usize = 4;
/// Between two samples.
const ROUND: Duration = Duration::from_secs(30);
/// How long at the end for what is going to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// The kernel takes namespaces away after their last process is gone.
const SETTLE: Duration = Duration::from_secs(3);
const KINDS: [&str; 14] = [
    "create",
    "exec",
    "write",
    "read",
    "list",
    "session",
    "background",
    "freeze",
    "stop",
    "start",
    "disconnect",
    "layer",
    "destroy",
    "upload",
];

/// What there is of everything.
fn sample(daemon: &Daemon, at: Duration) -> Value {
    let family = family(daemon.pid());
    let mut descriptors = 0;
    let mut namespaces = BTreeSet::new();
    for pid in &family {
        let list = |of: &str| std::fs::read_dir(format!("/proc/{pid}/{of}"));
        descriptors += list("fd").map_or(0, Iterator::count);
        for entry in list("ns").into_iter().flatten().flatten() {
            namespaces.extend(std::fs::read_link(entry.path()));
        }
    }
    let spawner = children(daemon.pid());
    json!({
        "seconds": at.as_secs(),
        "processes": family.len(),
        "spawners": spawner.len(),
        "descriptors": descriptors,
        "daemon_descriptors": std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count),
        "daemon_rss_kib": rss(daemon.pid()),
        "spawner_rss_kib": spawner.first().map_or(0, |pid| rss(*pid)),
        "spawner_pss_kib": spawner.first().and_then(|pid| pss(*pid)),
        "kernel_kib": kernel(),
        "namespaces": namespaces.len(),
        "mounts": std::fs::read_to_string("/proc/self/mounts").unwrap().lines().count(),
        "cgroups": directories(Path::new("/sys/fs/cgroup")),
        "files": entries(daemon.root.path()),
    })
}

fn family(of: u32) -> Vec<u32> {
    let mut all = vec![of];
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]));
        at += 1;
    }
    all
}

fn directories(of: &Path) -> usize {
    let below = std::fs::read_dir(of).into_iter().flatten().flatten();
    below
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| 1 + directories(&e.path()))
        .sum()
}

fn entries(of: &Path) -> usize {
    let below = std::fs::read_dir(of).into_iter().flatten().flatten();
    below
        .map(|e| 1 + if e.file_type().is_ok_and(|t| t.is_dir()) { entries(&e.path()) } else { 0 })
        .sum()
}

/// Numbers that look like chance and are the same in every soak.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

/// What one worker keeps.
struct Worker {
    client: Client,
    random: Random,
    /// Its own sandboxes, with whether each has a layer.
    own: Vec<(String, bool)>,
    most: usize,
    work: std::path::PathBuf,
    done: [usize; KINDS.len()],
    /// Answers of 409, 429 and 503: what is asked at random may not be in place.
    refused: usize,
    wrong: Vec<String>,
}

impl Worker {
    /// The status decides; an answer that no state of a sandbox explains is kept.
    fn ask(&mut self, method: &str, path: &str, body: &Value) -> Option<Value> {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.client.ask(method, path, text.as_bytes());
        match status {
            200..300 => Some(serde_json::from_slice(answer).unwrap_or(Value::Null)),
            409 | 429 | 503 => {
                self.refused += 1;
                None
            }
            _ => {
                let answer = String::from_utf8_lossy(answer).into_owned();
                if self.wrong.len() < 20 {
                    self.wrong.push(format!("{method} {path}: {status} {answer}"));
                }
                None
            }
        }
    }

    fn create(&mut self) {
        let layered = self.random.below(5) == 0;
        let of = if layered {
            json!({ "workspace": self.work, "layer": true })
        } else if self.random.below(2) == 0 {
            json!({})
        } else {
            json!({ "workspace": self.work })
        };
        if let Some(made) = self.ask("POST", "/v1/sandboxes", &of) {
            self.own.push((made["id"].as_str().unwrap().to_owned(), layered));
        }
    }

    fn destroy(&mut self, at: usize) {
        let (id, _) = self.own.swap_remove(at);
        self.ask("DELETE", &format!("/v1/sandboxes/{id}"), &Value::Null);
    }

    fn step(&mut self) {
        let few = self.own.len() < self.most / 2;
        let mut kind = self.random.below(KINDS.len());
        if few && self.random.below(2) == 0 || self.own.is_empty() {
            kind = 0;
        }
        if kind == 0 && self.own.len() >= self.most {
            kind = 12;
        }
        self.done[kind] += 1;
        if kind == 0 {
            return self.create();
        }
        let at = self.random.below(self.own.len());
        let (id, layered) = self.own[at].clone();
        let path = |rest: &str| format!("/v1/sandboxes/{id}{rest}");
        match KINDS[kind] {
            "exec" => drop(self.ask("POST", &path("/exec"), &json!({ "argv": ["/bin/true"] }))),
            "write" => self.write(&path("/files?path=soak")),
            "read" => drop(self.client.ask("GET", &path("/files?path=soak"), b"").0),
            "list" => drop(self.ask("GET", &path("/files/list?path=."), &Value::Null)),
            "session" => self.session(&path("/sessions")),
            "background" => {
                let body = json!({ "shell": "sleep 0.2; echo end", "background": true });
                self.ask("POST", &path("/exec"), &body);
            }
            "freeze" => {
                self.ask("POST", &path("/freeze"), &Value::Null);
                self.ask("POST", &path("/start"), &Value::Null);
            }
            "stop" => drop(self.ask("POST", &path("/stop"), &Value::Null)),
            "start" => drop(self.ask("POST", &path("/start"), &Value::Null)),
            "disconnect" => {
                let body = br#"{"shell":"echo begun; sleep 0.1; echo end"}"#;
                self.client.leave("POST", &path("/exec/stream"), body);
            }
            "layer" if layered => self.layer(&id),
            "upload" => {
                let body = [0u8; 1024];
                self.client.ask_as(
                    "PUT",
                    &path("/files/archive?path=."),
                    "application/x-tar",
                    &body,
                );
            }
            "destroy" => self.destroy(at),
            _ => {}
        }
    }

    fn write(&mut self, path: &str) {
        let body = vec![b's'; 1 + self.random.below(20_000)];
        self.client.ask_as("PUT", path, "application/octet-stream", &body);
    }

    fn session(&mut self, path: &str) {
        let Some(made) = self.ask("POST", path, &json!({})) else { return };
        let id = made["id"].as_str().unwrap().to_owned();
        self.ask("POST", &format!("{path}/{id}/exec"), &json!({ "command": "cd /tmp; echo $PWD" }));
        self.ask("DELETE", &format!("{path}/{id}"), &Value::Null);
    }

    fn layer(&mut self, id: &str) {
        let path = |rest: &str| format!("/v1/sandboxes/{id}{rest}");
        self.write(&path("/files?path=changed"));
        self.ask("GET", &path("/layer/diff"), &Value::Null);
        if self.ask("POST", &path("/stop"), &Value::Null).is_some() {
            self.ask("PUT", &path("/layer/snapshots/s"), &Value::Null);
            self.ask("POST", &path("/layer/checkpoint"), &Value::Null);
            self.ask("POST", &path("/layer/undo"), &json!({ "steps": 1 }));
            self.ask("DELETE", &path("/layer/snapshots/s"), &Value::Null);
        }
        self.ask("POST", &path("/start"), &Value::Null);
    }
}

/// Whose the machine is meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// What there is more of afterwards is left by the daemon.
    Ours,
    /// Others make mounts and control groups too.
    Shared,
}

/// Work, samples, the end; the report.
pub fn run(binary: &Path, seconds: usize, sandboxes: usize, machine: Machine) -> Value {
    let mut daemon = Daemon::start(binary);
    let begin = Instant::now();
    let limit = Duration::from_secs(seconds as u64);
    let round = ROUND.min(limit / 3);
    let (rest, over) = (Barrier::new(WORKERS + 1), AtomicBool::new(false));
    let (live, mut samples) = (AtomicUsize::new(0), Vec::new());
    // Everything that is made once has been made.
    let warm = daemon.client().create(&json!({ "layer": true, "workspace": daemon.work() }));
    daemon.client().delete(&warm);
    std::thread::sleep(SETTLE);
    let first = sample(&daemon, begin.elapsed());
    let workers: Vec<Worker> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|number| {
                let mut worker = Worker {
                    client: daemon.client(),
                    random: Random(number as u64 + 1),
                    own: Vec::new(),
                    most: sandboxes / WORKERS,
                    work: daemon.work(),
                    done: [0; KINDS.len()],
                    refused: 0,
                    wrong: Vec::new(),
                };
                let (rest, over, live) = (&rest, &over, &live);
                scope.spawn(move || {
                    while !over.load(Ordering::Acquire) {
                        let until = Instant::now() + round;
                        while Instant::now() < until {
                            worker.step();
                        }
                        live.fetch_add(worker.own.len(), Ordering::AcqRel);
                        rest.wait();
                        rest.wait();
                    }
                    while !worker.own.is_empty() {
                        worker.destroy(0);
                    }
                    worker
                })
            })
            .collect();
        loop {
            rest.wait();
            std::thread::sleep(SETTLE);
            let mut now = sample(&daemon, begin.elapsed());
            now["sandboxes"] = live.swap(0, Ordering::AcqRel).into();
            println!("{now}");
            samples.push(now);
            let done = begin.elapsed() >= limit;
            over.store(done, Ordering::Release);
            rest.wait();
            if done {
                break;
            }
        }
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(daemon.serves(), "the daemon ended");
    // Their connections end here, too.
    let workers: Vec<_> = workers.into_iter().map(|w| (w.done, w.refused, w.wrong)).collect();
    let end = Instant::now() + PATIENCE;
    let last = loop {
        std::thread::sleep(SETTLE);
        let last = sample(&daemon, begin.elapsed());
        if left(&first, &last, machine).is_none() || Instant::now() >= end {
            break last;
        }
    };
    println!("before: {first}\nafter: {last}");
    let mut done = serde_json::Map::new();
    for (at, kind) in KINDS.iter().enumerate() {
        done.insert(
            (*kind).into(),
            workers.iter().map(|(done, ..)| done[at]).sum::<usize>().into(),
        );
    }
    let report = json!({
        "seconds": begin.elapsed().as_secs(),
        "sandboxes": sandboxes,
        "before": first,
        "samples": samples,
        "after": last,
        "operations": done,
        "refused": workers.iter().map(|(_, refused, _)| refused).sum::<usize>(),
        "wrong": workers.iter().flat_map(|(.., wrong)| wrong.clone()).collect::<Vec<_>>(),
    });
    println!("{}\n{} refused\nwrong: {}", report["operations"], report["refused"], report["wrong"]);
    let wrong = report["wrong"].as_array().unwrap();
    assert!(wrong.is_empty(), "{} answers that nothing explains", wrong.len());
    assert_eq!(left(&report["before"], &report["after"], machine), None, "something is left");
    report
}

/// What there is more of than there was, of all that is counted exactly.
fn left(before: &Value, after: &Value, machine: Machine) -> Option<String> {
    let own = ["processes", "spawners", "descriptors", "namespaces"];
    let of_all = ["mounts", "cgroups"];
    own.into_iter()
        .chain(of_all.into_iter().filter(|_| machine == Machine::Ours))
        .find(|what| after[what].as_u64() > before[what].as_u64())
        .map(|what| format!("{what}: {} before, {} after", before[what], after[what]))
}
