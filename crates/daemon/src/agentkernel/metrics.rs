//! What is counted since the daemon started, as their metrics have it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};

use super::BACKEND;

/// Bounds of their histograms, in seconds.
const REQUEST: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const LIFECYCLE: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const COMMAND: [f64; 11] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// What commands of runs are counted as.
const POOL: &str = "pool";

/// The words that paths are made of; others are names, or lead nowhere.
const WORDS: [&str; 26] = [
    "health",
    "status",
    "stats",
    "metrics",
    "backends",
    "doctor",
    "audit",
    "gc",
    "events",
    "run",
    "stream",
    "batch",
    "sandboxes",
    "start",
    "stop",
    "pause",
    "resume",
    "extend",
    "logs",
    "exec",
    "detach",
    "detached",
    "snapshots",
    "restore",
    "fork",
    "resize",
];

/// A path as their metrics name it: what stands for a thing is `:name`, so there are few.
pub(super) fn route(path: &str) -> String {
    let mut route = String::new();
    let mut before = "";
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        let named = matches!(before, "sandboxes" | "snapshots" | "detached" | "by-uuid");
        let word = match segment {
            "by-uuid" if before == "sandboxes" => segment,
            _ if named => ":name",
            "files" if route == "/sandboxes/:name" => return route + "/files",
            _ if WORDS.contains(&segment) && route.len() < 64 => segment,
            _ => return "other".to_owned(),
        };
        route.push('/');
        route.push_str(word);
        before = word;
    }
    route
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By method, path and status.
    requests: BTreeMap<(String, String, u16), u64>,
    /// By method and path.
    took: BTreeMap<(String, String), Histogram>,
    /// By action.
    lives: BTreeMap<&'static str, Histogram>,
    /// By backend.
    commands: BTreeMap<&'static str, Histogram>,
}

/// How many there were within each bound, and what they took.
#[derive(Debug, Default)]
struct Histogram {
    within: Vec<u64>,
    count: u64,
    seconds: f64,
}

impl Histogram {
    fn add(&mut self, bounds: &[f64], took: Duration) {
        self.within.resize(bounds.len(), 0);
        let seconds = took.as_secs_f64();
        for (within, _) in self.within.iter_mut().zip(bounds).filter(|(_, most)| seconds <= **most)
        {
            *within += 1;
        }
        self.count += 1;
        self.seconds += seconds;
    }

    fn write(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64]) {
        for (within, most) in self.within.iter().zip(bounds) {
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{most}\"}} {within}");
        }
        let Self { count, seconds, .. } = self;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}");
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

impl Counts {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The methods of a request are the client's to invent: others than those that are served are one.
    pub(super) fn request(&self, method: &Method, path: &str, status: StatusCode, took: Duration) {
        let served = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        let method = served.into_iter().find(|m| *m == method.as_str()).unwrap_or("other");
        let key = (method.to_owned(), path.to_owned());
        let mut inner = self.inner();
        *inner.requests.entry((key.0.clone(), key.1.clone(), status.as_u16())).or_default() += 1;
        inner.took.entry(key).or_default().add(&REQUEST, took);
    }

    pub(super) fn life(&self, action: &'static str, took: Duration) {
        self.inner().lives.entry(action).or_default().add(&LIFECYCLE, took);
    }

    /// `pool`: of a run, in a sandbox of its own.
    pub(super) fn command(&self, pool: bool, took: Duration) {
        let backend = if pool { POOL } else { BACKEND };
        self.inner().commands.entry(backend).or_default().add(&COMMAND, took);
    }

    /// As Prometheus reads it.
    pub(super) fn text(&self, active: usize) -> String {
        let inner = self.inner();
        let mut out = String::new();
        let kind = |out: &mut String, name: &str, kind: &str| {
            let _ = writeln!(out, "# TYPE {name} {kind}");
        };
        kind(&mut out, "agentkernel_build_info", "gauge");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(out, "agentkernel_build_info{{version=\"{version}\"}} 1");
        kind(&mut out, "agentkernel_sandboxes_active", "gauge");
        let _ = writeln!(out, "agentkernel_sandboxes_active {active}");
        let name = "agentkernel_http_requests_total";
        kind(&mut out, name, "counter");
        for ((method, path, status), count) in &inner.requests {
            let labels = format!("method=\"{method}\",path=\"{path}\",status=\"{status}\"");
            let _ = writeln!(out, "{name}{{{labels}}} {count}");
        }
        let name = "agentkernel_http_request_duration_seconds";
        kind(&mut out, name, "histogram");
        for ((method, path), histogram) in &inner.took {
            let labels = format!("method=\"{method}\",path=\"{path}\"");
            histogram.write(&mut out, name, &labels, &REQUEST);
        }
        let of = |action: &str| format!("action=\"{action}\",backend=\"{BACKEND}\"");
        let lives = inner.lives.iter().map(|(action, histogram)| (of(action), histogram));
        family(&mut out, "agentkernel_sandbox_lifecycle", lives.collect(), &LIFECYCLE);
        let of = |backend: &str| format!("backend=\"{backend}\"");
        let commands = inner.commands.iter().map(|(backend, histogram)| (of(backend), histogram));
        family(&mut out, "agentkernel_command", commands.collect(), &COMMAND);
        out
    }
}

/// How many, and how long they took.
fn family(out: &mut String, name: &str, all: Vec<(String, &Histogram)>, bounds: &[f64]) {
    let total = if name.ends_with("command") { "s_total" } else { "_total" };
    let _ = writeln!(out, "# TYPE {name}{total} counter");
    for (labels, histogram) in &all {
        let _ = writeln!(out, "{name}{total}{{{labels}}} {}", histogram.count);
    }
    let name = format!("{name}_duration_seconds");
    let _ = writeln!(out, "# TYPE {name} histogram");
    for (labels, histogram) in all {
        histogram.write(out, &name, &labels, bounds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_labels() {
        for (path, wanted) in [
            ("/sandboxes", "/sandboxes"),
            ("/sandboxes/box", "/sandboxes/:name"),
            ("/sandboxes/stop/stop", "/sandboxes/:name/stop"),
            ("/sandboxes/by-uuid/0-1", "/sandboxes/by-uuid/:name"),
            ("/sandboxes/box/files/a/b", "/sandboxes/:name/files"),
            ("/sandboxes/box/exec/detached/ex_1/logs", "/sandboxes/:name/exec/detached/:name/logs"),
            ("/snapshots/x/restore", "/snapshots/:name/restore"),
            ("/nonesuch", "other"),
            ("/sandboxes/box/nonesuch", "other"),
            ("/run/stream", "/run/stream"),
        ] {
            assert_eq!(route(path), wanted, "{path}");
        }
        assert_eq!(route(&"/run".repeat(1000)), "other");
    }

    #[test]
    fn what_was_counted_is_said_by_label() {
        let counts = Counts::default();
        let get = Method::GET;
        counts.request(&get, "/health", StatusCode::OK, Duration::from_millis(2));
        counts.request(&get, "/health", StatusCode::OK, Duration::from_secs(60));
        let odd = Method::from_bytes(b"ODD").unwrap();
        counts.request(&odd, "other", StatusCode::NOT_FOUND, Duration::ZERO);
        counts.life("created", Duration::from_millis(20));
        counts.command(true, Duration::from_millis(5));
        let text = counts.text(3);
        for line in [
            "agentkernel_sandboxes_active 3",
            "agentkernel_http_requests_total{method=\"GET\",path=\"/health\",status=\"200\"} 2",
            "agentkernel_http_requests_total{method=\"other\",path=\"other\",status=\"404\"} 1",
            "agentkernel_http_request_duration_seconds_bucket{method=\"GET\",path=\"/health\",le=\"0.001\"} 0",
            "agentkernel_http_request_duration_seconds_bucket{method=\"GET\",path=\"/health\",le=\"10\"} 1",
            "agentkernel_http_request_duration_seconds_count{method=\"GET\",path=\"/health\"} 2",
            "agentkernel_sandbox_lifecycle_total{action=\"created\",backend=\"ringfence\"} 1",
            "agentkernel_commands_total{backend=\"pool\"} 1",
            "agentkernel_command_duration_seconds_bucket{backend=\"pool\",le=\"0.01\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
