//! The egress filter of a run: started on the sockets that the sandbox handed out, heard where the
//! caller wants to hear it.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use ringfence_policy::{Network, Policy};
use ringfence_proxy::{Config, Record, Sink, Sockets, Way};
use ringfence_sandbox::network::{self, Filter};
use ringfence_sandbox::run::RunError;
use ringfence_sys::egress::{self, Made};

/// Refusals that are told at the end of a run that was not watched.
const TOLD: usize = 3;

/// The running filter.
#[derive(Debug)]
pub struct Egress {
    /// Dropped first: no record comes after it.
    filter: ringfence_proxy::Filter,
    refused: Arc<Mutex<Refused>>,
    watched: bool,
}

/// What was refused, each only once.
#[derive(Debug, Default)]
struct Refused {
    lines: Vec<String>,
    seen: std::collections::HashSet<(Option<String>, Option<std::net::IpAddr>, u16)>,
}

/// Who hears of it.
#[derive(Debug)]
pub struct Ears {
    /// `--log`: every record.
    pub log: Option<File>,
    /// `-m`: refusals, as they happen.
    pub monitor: bool,
    /// `-d`: what was let through, too.
    pub debug: bool,
    /// The terminal is relayed, so a line has to go back to its first column by itself.
    pub raw: bool,
}

impl Egress {
    /// Starts the filter. Until then, and if it fails, whatever leaves the sandbox waits or fails.
    pub fn start(
        filter: &Filter,
        policy: &Policy,
        made: Made,
        init: i32,
        ears: Ears,
    ) -> Result<Self, RunError> {
        let Network::Filtered { egress: chosen, .. } = &policy.network else {
            return Err(failed("the policy has no filter"));
        };
        let refused = Arc::new(Mutex::new(Refused::default()));
        let watched = ears.monitor;
        let all = ears.log.is_some() || ears.debug;
        // Its thread must not take the signals that the supervisor waits for, nor end of a peer that
        // closed.
        let mask = ringfence_sys::raw::block_signals();
        let started = ringfence_proxy::Filter::start(Config {
            sockets: Sockets {
                tcp: made.tcp,
                udp: made.udp,
                diagnosis: made.diagnosis,
                way: match made.way {
                    egress::Way::Redirect => Way::Redirect,
                    egress::Way::Local => Way::Local,
                },
            },
            rules: Arc::clone(&filter.rules),
            inspector: None,
            sink: sink(ears, Arc::clone(&refused)),
            upstream: chosen.upstream_proxy.clone(),
            proxy_port: network::PROXY_PORT,
            init: Some(init),
        });
        ringfence_sys::raw::set_signal_mask(&mask);
        let filter = started.map_err(|e| failed(&e.to_string()))?;
        filter.name_processes(all);
        Ok(Self { filter, refused, watched })
    }

    /// Tells the filter to end, while there is other work to do.
    pub fn stop(&self) {
        self.filter.stop();
    }

    /// Ends the filter. What was refused, in words, if nobody watched.
    pub fn finish(self) -> Vec<String> {
        let Self { filter, refused, watched } = self;
        drop(filter);
        if watched {
            return Vec::new();
        }
        let refused = std::mem::take(&mut *refused.lock().unwrap_or_else(PoisonError::into_inner));
        let more = refused.seen.len().saturating_sub(refused.lines.len());
        let mut lines = refused.lines;
        if more > 0 {
            lines.push(format!("and {more} more refused; -m shows each as it happens"));
        }
        lines
    }
}

fn failed(problem: &str) -> RunError {
    RunError::Supervise(format!("the egress filter cannot start: {problem}"))
}

fn sink(ears: Ears, refused: Arc<Mutex<Refused>>) -> Sink {
    Arc::new(move |record: &Record| {
        if let Some(mut log) = ears.log.as_ref() {
            let event = if record.allowed { "connection" } else { "refusal" };
            let line = serde_json::json!({
                "time_ms": record.time_ms,
                "pid": std::process::id(),
                "event": event,
                "detail": record,
            });
            // One write, so that lines of parallel runs do not mix.
            let _ = log.write_all(format!("{line}\n").as_bytes());
        }
        if (ears.monitor && !record.allowed) || ears.debug {
            let end = if ears.raw { "\r\n" } else { "\n" };
            let _ = std::io::stderr().write_all(format!("{record}{end}").as_bytes());
        }
        if !record.allowed {
            let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
            // A loop inside must not fill our memory.
            if refused.seen.len() < 10_000
                && refused.seen.insert((record.name.clone(), record.address, record.port))
                && refused.lines.len() < TOLD
            {
                let line = record.to_string();
                let line = line.strip_prefix("ringfence: ").unwrap_or(&line);
                refused.lines.push(line.to_owned());
            }
        }
    })
}
