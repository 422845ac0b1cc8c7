//! What is said of the daemon itself.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::Path;
use axum::http::header;
use ringfence_supervisor::{Command, Reply};
use serde_json::{Value, json};

use super::exec::code;
use super::{Ask, BACKEND, Handled, sandboxes, success, unexpected};
use crate::stamp::rfc3339;

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
                "snapshots": false,
                "resume": true,
                "full_state_pause_resume": true,
                "full_state_fork": false,
                "endpoints": false,
            },
        }],
    }))
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Counted since the daemon started.
pub(super) async fn stats(ask: Ask) -> Handled<Json<Value>> {
    let all = sandboxes::all(&ask).await?;
    let counts = &ask.dialect.counts;
    let day = |ms: u64| rfc3339(ms).chars().take(10).collect::<String>();
    Ok(success(json!({
        "total_executions": get(&counts.commands),
        "executions_last_30d": get(&counts.commands),
        "sandboxes_created": get(&counts.created),
        "sandboxes_removed": get(&counts.removed),
        "sandboxes_active": all.len(),
        "top_images": [],
        "top_backends": [[BACKEND, get(&counts.created)]],
        "first_entry": all.iter().map(|s| s.created_ms).min().map(day),
        "last_entry": all.iter().map(|s| s.created_ms).max().map(day),
    })))
}

/// As Prometheus reads it.
pub(super) async fn metrics(
    ask: Ask,
) -> Handled<([(header::HeaderName, &'static str); 1], String)> {
    let active = sandboxes::all(&ask).await?.len() as u64;
    let counts = &ask.dialect.counts;
    let mut text = format!(
        "# TYPE agentkernel_build_info gauge\nagentkernel_build_info{{version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    let lifecycle = |action: &str| {
        format!("agentkernel_sandbox_lifecycle_total{{action=\"{action}\",backend=\"{BACKEND}\"}}")
    };
    let of = |name: &str| format!("{name}{{backend=\"{BACKEND}\"}}");
    for (kind, series, value) in [
        ("gauge", "agentkernel_sandboxes_active".to_owned(), active),
        ("counter", "agentkernel_http_requests_total".to_owned(), get(&counts.requests)),
        ("counter", of("agentkernel_commands_total"), get(&counts.commands)),
        ("counter", lifecycle("created"), get(&counts.created)),
        ("", lifecycle("removed"), get(&counts.removed)),
    ] {
        let name = series.split('{').next().unwrap_or_default();
        if !kind.is_empty() {
            let _ = writeln!(text, "# TYPE {name} {kind}");
        }
        let _ = writeln!(text, "{series} {value}");
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// What is known of a sandbox's past.
pub(super) async fn logs(ask: Ask, Path(name): Path<String>) -> Handled<Json<Value>> {
    let sandbox = ask.find(&name).await?;
    let created = json!({
        "timestamp": rfc3339(sandbox.created_ms),
        "event": "sandbox_created",
        "sandbox": name,
    });
    match ask.run(Command::Execs(sandbox.id)).await? {
        Reply::Execs(execs) => {
            let ran = execs.iter().map(|exec| {
                json!({
                    "timestamp": rfc3339(exec.started_ms),
                    "event": "command_executed",
                    "sandbox": name,
                    "command": exec.argv,
                    "exit_code": exec.ended.as_ref().map(|ended| code(Some(ended))),
                })
            });
            Ok(success(std::iter::once(created).chain(ran).collect::<Vec<_>>()))
        }
        other => Err(unexpected(&other)),
    }
}
