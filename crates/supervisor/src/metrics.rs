//! What is counted and measured while the daemon serves. One set for the process; nothing in it grows
//! with the number of sandboxes, owners or names: the values of every label are listed in this file.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use ringfence_api::{Ended, State};

use crate::error::Error;
use crate::supervisor::Command;
use crate::trees::Ask;

/// One label, whose name is in its type.
macro_rules! label {
    ($name:ident, $field:ident) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name {
            $field: &'static str,
        }
    };
}

label!(ByReason, reason);
label!(ByState, state);
label!(ByPool, pool);
label!(ByOperation, operation);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    interface: &'static str,
    status: &'static str,
}

/// By which interface a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    Rest,
    Grpc,
    Agentkernel,
    AgentfenseGrpc,
    AgentfenseRest,
}

impl Interface {
    fn text(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Grpc => "grpc",
            Self::Agentkernel => "agentkernel",
            Self::AgentfenseGrpc => "agentfense-grpc",
            Self::AgentfenseRest => "agentfense-rest",
        }
    }
}

/// What is made before it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Of a sandbox.
    Namespaces,
    /// For one sandbox.
    Spawners,
}

impl Pool {
    fn label(self) -> ByPool {
        let pool = match self {
            Self::Namespaces => "namespaces",
            Self::Spawners => "spawners",
        };
        ByPool { pool }
    }
}

/// One was wanted, and there or not.
pub(crate) fn prepared(pool: Pool, there: bool) {
    let counted = if there { &METRICS.hits } else { &METRICS.misses };
    counted.get_or_create(&pool.label()).inc();
}

/// Which histogram a command's time belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    /// Until it runs.
    Exec,
    File(&'static str),
    Other,
}

impl Operation {
    pub(crate) fn of(command: &Command) -> Self {
        match command {
            Command::Create { .. } => Self::Create,
            Command::Exec { .. } => Self::Exec,
            Command::ReadFile { .. } => Self::File("read"),
            Command::WriteFile { .. } => Self::File("write"),
            Command::StatFile { .. } => Self::File("stat"),
            Command::ListFiles { .. } => Self::File("list"),
            Command::MakeDirectory { .. } => Self::File("make-directory"),
            Command::RemoveFile { .. } => Self::File("remove"),
            Command::InFiles(ask) => match ask {
                Ask::Chmod { .. } => Self::File("chmod"),
                Ask::Move { .. } => Self::File("move"),
                Ask::Search { .. } => Self::File("search"),
                Ask::Pack { .. } => Self::File("pack"),
                Ask::Unpack { .. } => Self::File("unpack"),
                // Lasts as long as somebody looks.
                Ask::Watch { .. } => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// Why sandboxes end that nobody ended; whatever else there may be is `other`.
const ENDS: [&str; 9] =
    ["exit", "signal", "killed", "oom", "timeout", "disk quota", "host-lost", "idle", "failed"];

#[derive(Debug)]
struct Metrics {
    created: Counter,
    deleted: Counter,
    hits: Family<ByPool, Counter>,
    misses: Family<ByPool, Counter>,
    ends: Family<ByReason, Counter>,
    errors: Family<ByReason, Counter>,
    execs: Family<ByReason, Counter>,
    exec_cpu: Counter<f64, std::sync::atomic::AtomicU64>,
    requests: Family<Answered, Counter>,
    create: Histogram,
    start: Histogram,
    exec: Histogram,
    files: Family<ByOperation, Histogram>,
    began: Instant,
}

/// From 50 microseconds on, each four times the one before, to 13 seconds.
fn short() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(50e-6, 4.0, 10))
}

/// From half a millisecond on, to two hours and a quarter.
fn long() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(500e-6, 4.0, 13))
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    created: Counter::default(),
    deleted: Counter::default(),
    hits: Family::default(),
    misses: Family::default(),
    ends: Family::default(),
    errors: Family::default(),
    execs: Family::default(),
    exec_cpu: Counter::default(),
    requests: Family::default(),
    create: short(),
    start: short(),
    exec: long(),
    files: Family::new_with_constructor(short),
    began: Instant::now(),
});

/// The daemon starts.
pub(crate) fn begin() {
    LazyLock::force(&METRICS);
}

pub(crate) fn uptime() -> Duration {
    METRICS.began.elapsed()
}

/// A command was carried out, or not.
pub(crate) fn carried_out<T>(operation: Operation, began: Instant, done: &Result<T, Error>) {
    let metrics = &*METRICS;
    if let Err(e) = done {
        metrics.errors.get_or_create(&ByReason { reason: e.kind.text() }).inc();
        return;
    }
    let seconds = began.elapsed().as_secs_f64();
    match operation {
        Operation::Create => {
            metrics.created.inc();
            metrics.create.observe(seconds);
        }
        Operation::Exec => metrics.start.observe(seconds),
        Operation::File(operation) => {
            metrics.files.get_or_create(&ByOperation { operation }).observe(seconds);
        }
        Operation::Other => {}
    }
}

pub(crate) fn deleted() {
    METRICS.deleted.inc();
}

/// A sandbox ended that nobody ended.
pub(crate) fn lost(reason: &str) {
    let reason = ENDS.into_iter().find(|known| *known == reason).unwrap_or("other");
    METRICS.ends.get_or_create(&ByReason { reason }).inc();
}

/// A command ended.
pub(crate) fn ended(end: &Ended) {
    let metrics = &*METRICS;
    let reason = match end.reason.as_str() {
        "exit" => "exit",
        "signal" => "signal",
        "timeout" => "timeout",
        "killed" => "killed",
        "sandbox" => "sandbox",
        _ => "other",
    };
    metrics.execs.get_or_create(&ByReason { reason }).inc();
    metrics.exec.observe(seconds(end.duration_us));
    metrics.exec_cpu.inc_by(seconds(end.usage.user_us + end.usage.system_us));
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

/// A request was answered with this status.
pub fn answered(interface: Interface, status: u16) {
    let status = match status {
        0..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    };
    METRICS.requests.get_or_create(&Answered { interface: interface.text(), status }).inc();
}

/// What is looked up when somebody asks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    /// By the order of [`State::ALL`].
    pub states: [u64; State::ALL.len()],
    pub commands: u64,
    pub mounts: u64,
    pub memory: u64,
    pub pids: u64,
    pub cpu_us: u64,
    pub read: u64,
    pub written: u64,
    pub daemon: ringfence_api::DaemonStats,
}

/// As Prometheus and OpenMetrics have it.
pub(crate) fn render(now: &Now) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    let all = registry.sub_registry_with_prefix("ringfence");
    measured(all, &METRICS);
    looked_up(all, now);
    own(registry.sub_registry_with_prefix("process"), now);
    let mut text = String::with_capacity(16 << 10);
    encode(&mut text, &registry)?;
    Ok(text)
}

fn measured(to: &mut Registry, metrics: &Metrics) {
    to.register("sandboxes_created", "Sandboxes that were made", metrics.created.clone());
    to.register("sandboxes_deleted", "Sandboxes that were deleted", metrics.deleted.clone());
    to.register("pool_hits", "What was made before it was asked for", metrics.hits.clone());
    to.register("pool_misses", "What had to be made when it was asked for", metrics.misses.clone());
    to.register("sandbox_ends", "Sandboxes that ended by themselves", metrics.ends.clone());
    to.register("errors", "Requests that were not carried out", metrics.errors.clone());
    to.register("execs", "Commands that ended", metrics.execs.clone());
    to.register("requests", "Requests that were answered", metrics.requests.clone());
    to.register_with_unit(
        "exec_cpu",
        "CPU time of commands that ended",
        Unit::Seconds,
        metrics.exec_cpu.clone(),
    );
    to.register_with_unit(
        "create",
        "Until a sandbox is made",
        Unit::Seconds,
        metrics.create.clone(),
    );
    to.register_with_unit(
        "exec_start",
        "Until a command runs",
        Unit::Seconds,
        metrics.start.clone(),
    );
    to.register_with_unit("exec", "Until a command has ended", Unit::Seconds, metrics.exec.clone());
    to.register_with_unit(
        "file",
        "Until a file operation is done",
        Unit::Seconds,
        metrics.files.clone(),
    );
}

fn gauge(to: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: u64) {
    let gauge = ConstGauge::new(value as i64);
    match unit {
        Some(unit) => to.register_with_unit(name, help, unit, gauge),
        None => to.register(name, help, gauge),
    }
}

fn looked_up(to: &mut Registry, now: &Now) {
    let states: Family<ByState, prometheus_client::metrics::gauge::Gauge> = Family::default();
    for (state, count) in State::ALL.into_iter().zip(now.states) {
        states.get_or_create(&ByState { state: state.text() }).set(count as i64);
    }
    to.register("sandboxes", "Sandboxes there are", states);
    gauge(to, "commands", "Commands that run", None, now.commands);
    gauge(to, "mounts", "Mounts in sandboxes", None, now.mounts);
    gauge(to, "pids", "Processes and threads in sandboxes", None, now.pids);
    gauge(to, "memory", "Memory of sandboxes", Some(Unit::Bytes), now.memory);
    let cpu = ConstGauge::new(seconds(now.cpu_us));
    to.register_with_unit("cpu", "CPU time of the sandboxes there are", Unit::Seconds, cpu);
    gauge(
        to,
        "disk_read",
        "Read from disks by the sandboxes there are",
        Some(Unit::Bytes),
        now.read,
    );
    gauge(
        to,
        "disk_written",
        "Written to disks by the sandboxes there are",
        Some(Unit::Bytes),
        now.written,
    );
}

/// By the names that dashboards know.
fn own(to: &mut Registry, now: &Now) {
    let daemon = &now.daemon;
    gauge(to, "resident_memory", "Memory of the daemon", Some(Unit::Bytes), daemon.memory_bytes);
    gauge(to, "open_fds", "Open files of the daemon", None, daemon.open_files);
    let cpu: Counter<f64, std::sync::atomic::AtomicU64> = Counter::default();
    cpu.inc_by(seconds(daemon.cpu_us));
    to.register_with_unit("cpu", "CPU time of the daemon", Unit::Seconds, cpu);
}
