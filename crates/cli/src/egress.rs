//! The egress filter of a run: started on the sockets that the sandbox handed out, heard where the
//! caller wants to hear it.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use ringfence_policy::Policy;
use ringfence_proxy::control::Control;
use ringfence_proxy::inspect::Inspector;
use ringfence_proxy::{Config, Record, Sink};
use ringfence_sandbox::network::Filter;
use ringfence_sandbox::run::RunError;
use ringfence_sys::egress::Made;

use crate::verb::run::log_event;

/// Refusals that are told at the end of a run that was not watched.
const TOLD: usize = 3;

/// The running filter.
#[derive(Debug)]
pub struct Egress {
    /// Dropped first: no record comes after it.
    filter: ringfence_proxy::Filter,
    refused: Arc<Mutex<Refused>>,
    watched: bool,
    /// It was gone when the run ended.
    ended_early: bool,
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
        inspector: Option<Arc<Inspector>>,
        made: Made,
        init: i32,
        ears: Ears,
        control: Control,
    ) -> Result<Self, RunError> {
        let refused = Arc::new(Mutex::new(Refused::default()));
        let watched = ears.monitor;
        let all = ears.log.is_some() || ears.debug;
        let rules = Arc::clone(&filter.rules);
        let config = Config::of(&policy.network, rules, made, sink(ears, Arc::clone(&refused)));
        let config = Config { init: Some(init), control: Some(control), inspector, ..config };
        let filter = ringfence_proxy::Filter::start(config).map_err(|e| failed(&e))?;
        filter.name_processes(all);
        Ok(Self { filter, refused, watched, ended_early: false })
    }

    /// Tells the filter to end, while there is other work to do.
    pub fn stop(&mut self) {
        self.ended_early = !self.filter.is_running();
        self.filter.stop();
    }

    /// Ends the filter. What was refused, in words, if nobody watched.
    pub fn finish(self) -> Vec<String> {
        let Self { filter, refused, watched, ended_early } = self;
        drop(filter);
        let mut lines = Vec::new();
        if ended_early {
            lines.push(
                "the egress filter ended before the run did: since then nothing could leave it"
                    .into(),
            );
        }
        if watched {
            return lines;
        }
        let refused = std::mem::take(&mut *refused.lock().unwrap_or_else(PoisonError::into_inner));
        let more = refused.seen.len().saturating_sub(refused.lines.len());
        lines.extend(refused.lines);
        if more > 0 {
            lines.push(format!("and {more} more refused; -m shows each as it happens"));
        }
        lines
    }
}

fn failed(problem: &std::io::Error) -> RunError {
    RunError::Supervise(format!("the egress filter cannot start: {problem}"))
}

/// A line on the terminal from beside the run. `raw`: the terminal does not go back to the first column
/// by itself.
pub fn line(text: &str, raw: bool) {
    let end = if raw { "\r\n" } else { "\n" };
    let _ = std::io::stderr().write_all(format!("{text}{end}").as_bytes());
}

fn sink(ears: Ears, refused: Arc<Mutex<Refused>>) -> Sink {
    Arc::new(move |record: &Record| {
        if let Some(log) = &ears.log {
            let event = if record.allowed { "connection" } else { "refusal" };
            log_event(log, event, || serde_json::json!(record));
        }
        if (ears.monitor && !record.allowed) || ears.debug {
            line(&record.to_string(), ears.raw);
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
