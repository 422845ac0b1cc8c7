//! What is said of the daemon itself.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::Fault;
use super::{Ask, BACKEND, Handled, Path, Query, audit as log, sandboxes, success};
pub(super) async fn health() -> Json<Value> {
    success("ok")
}

pub(super) async fn backends() -> Json<Value> {
    success(json!({
        "default_backend": BACKEND,
        "backends": [{
            "backend": BACKEND,
            "configured": true,
            "usable": true,
            "readiness_reason": "ready",
            "capabilities": {
                "mount_cwd": false,
                "mount_home": false,
                "attach": false,
                "host_volumes": false,
                "ssh": false,
                "proxy_secret_bindings": false,
                "secret_files": false,
                "snapshots": true,
                "resume": true,
                "full_state_pause_resume": false,
                "full_state_fork": false,
                "endpoints": false,
            },
        }],
    }))
}

/// How long the processors are looked at.
const LOOKED: Duration = Duration::from_millis(200);
/// Entries of the audit where nobody says how many.
const LAST: usize = 100;

pub(super) async fn status(ask: Ask) -> Json<Value> {
    success(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "backend": BACKEND,
        "api_key_configured": ask.dialect.key.is_some(),
    }))
}

/// Busy and all ticks of the processors.
fn ticks() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let words = text.lines().next()?.split_whitespace().skip(1).take(8);
    let each: Vec<u64> = words.filter_map(|n| n.parse().ok()).collect();
    let all: u64 = each.iter().sum();
    Some((all.saturating_sub(each.get(3)? + each.get(4)?), all))
}

/// MiB of memory: used, and all.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (all, free) = (of("MemTotal:")?, of("MemAvailable:")?);
    Some((all.saturating_sub(free) / 1024, all / 1024))
}

/// MiB that are used where the root is.
fn disk() -> u64 {
    rustix::fs::statvfs("/")
        .map_or(0, |s| s.f_blocks.saturating_sub(s.f_bfree).saturating_mul(s.f_frsize) >> 20)
}

pub(super) async fn stats(ask: Ask) -> Handled<Json<Value>> {
    let before = ticks();
    tokio::time::sleep(LOOKED).await;
    let cpu = match (before, ticks()) {
        (Some((b0, a0)), Some((b1, a1))) if a1 > a0 => {
            // In tenths, which is more than anybody reads.
            let tenths = b1.saturating_sub(b0).saturating_mul(1000) / (a1 - a0);
            f64::from(u16::try_from(tenths).unwrap_or(1000)) / 10.0
        }
        _ => 0.0,
    };
    let (used, all) = memory().unwrap_or_default();
    Ok(success(json!({
        "sandbox_count": sandboxes::all(&ask).await?.len(),
        "sandbox_limit": 0,
        "backend": BACKEND,
        "uptime_seconds": ask.dialect.began.elapsed().as_secs(),
        "version": env!("CARGO_PKG_VERSION"),
        "resource_usage": {
            "cpu_percent": cpu,
            "memory_used_mb": used,
            "memory_total_mb": all,
            "disk_used_mb": disk(),
        },
    })))
}

/// Whoever gets this answer has a daemon that serves. What a host can hold, `ringfence doctor` tells.
pub(super) async fn doctor(ask: Ask) -> Handled<Json<Value>> {
    let sandboxes = sandboxes::all(&ask).await?.len();
    let check = |name: &str, status: &str, message: String| json!({ "name": name, "status": status, "message": message });
    Ok(success(json!({
        "checks": [
            check("daemon", "ok", format!("ringfence {}", env!("CARGO_PKG_VERSION"))),
            check("backend", "ok", format!("{BACKEND}: {sandboxes} sandboxes")),
            check("host", "info", "`ringfence doctor` tells what it can hold".into()),
        ],
        "healthy": true,
    })))
}

/// Nothing is left behind: what ends is removed with that.
pub(super) async fn gc() -> Json<Value> {
    success(json!({ "removed": [], "count": 0 }))
}

/// As theirs without a webhook.
pub(super) async fn events() -> Fault {
    Fault::new(StatusCode::SERVICE_UNAVAILABLE, "Events are not enabled")
}

pub(super) async fn metrics(
    ask: Ask,
) -> Handled<([(header::HeaderName, &'static str); 1], String)> {
    let active = sandboxes::all(&ask).await?.len();
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], ask.dialect.counts.text(active)))
}

/// What is known of a sandbox's past.
pub(super) async fn logs(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    let mut all = ask.dialect.audit.of(Some(&sandbox.id), usize::MAX);
    // One that is older than this daemon, or than what is kept.
    if all.first().is_none_or(|first| first["type"] != sandboxes::CREATED) {
        let created = sandboxes::creation(&sandbox);
        all.insert(0, log::entry(sandbox.created_ms, sandboxes::CREATED, created));
    }
    Ok(success(all))
}

#[derive(Debug, Deserialize)]
pub(super) struct Last {
    #[serde(default)]
    last: Option<usize>,
}

pub(super) async fn audit(ask: Ask, Query(Last { last }): Query<Last>) -> Json<Value> {
    success(ask.dialect.audit.of(None, last.unwrap_or(LAST)))
}
