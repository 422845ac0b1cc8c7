//! How many: starts a second with more and more of them at a time, and what idle sandboxes take.

use std::time::{Duration, Instant};

use super::work::{self, Work};
use super::{Bench, by_peer, warm};
use crate::model::{Better, Case, Curve, Group, Line};
use crate::runner::{self, Timed};

/// How many at a time.
const RAMP: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const QUICK_RAMP: [usize; 2] = [1, 4];
/// Idle sandboxes.
const IDLE: usize = 500;
const QUICK_IDLE: usize = 10;
/// How many are made between two looks at memory.
const STEPS: usize = 10;

pub fn curves(bench: &mut Bench<'_>, groups: &mut Vec<Group>) -> Result<Vec<Curve>, String> {
    let mut all = ramp(bench)?;
    all.extend(idle(bench, groups)?);
    Ok(all)
}

fn ramp(bench: &mut Bench<'_>) -> Result<Vec<Curve>, String> {
    let (steps, time) = if bench.ask.quick {
        (&QUICK_RAMP[..], Duration::from_millis(200))
    } else {
        (&RAMP[..], Duration::from_secs(1))
    };
    let place = &bench.place;
    let found = work::all(place, true)?;
    let Some(work): Option<&Work> = found.first() else { return Ok(Vec::new()) };
    let mut cases = vec![place.timed("host", work, &[])];
    cases.push(place.confined("ringfence", work, super::WAYS[0].1));
    // One bundle is one container at a time: those with a script for each command are left out.
    let peers =
        bench.peers.iter_mut().filter(|p| p.adapter.each.is_none() && p.adapter.server.is_none());
    cases.extend(peers.map(|peer| by_peer(place, peer, work)));
    cases.retain(|case| case.check().is_ok());
    let bar =
        runner::bar("starts at a time", (steps.len() * cases.len()) as u64, bench.plan.progress);
    let mut rates: Vec<Line> = Vec::new();
    let mut latencies: Vec<Line> = Vec::new();
    for case in &cases {
        let (mut rate, mut latency) = (Vec::new(), Vec::new());
        for &at_once in steps {
            let times = together(case, at_once, time)?;
            let across = at_once as f64;
            rate.push((across, times.len() as f64 / time.as_secs_f64()));
            latency.push((across, crate::stats::median(&times) / 1000.0));
            bar.inc(1);
        }
        rates.push(Line { name: case.name.clone(), points: rate });
        latencies.push(Line { name: case.name.clone(), points: latency });
    }
    bar.finish_and_clear();
    let curve = |name: &str, title: &str, y: &str, lines| Curve {
        name: name.into(),
        title: title.into(),
        x: "at a time".into(),
        y: y.into(),
        lines,
    };
    Ok(vec![
        curve("density/rate", "starts of true a second", "starts a second", rates),
        curve("density/latency", "time of a start of true", "p50, ms", latencies),
    ])
}

/// Threads that start the same command one after the other until the time is over; microseconds of all.
fn together(case: &Timed, at_once: usize, time: Duration) -> Result<Vec<f64>, String> {
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(move || {
                    let mut times = Vec::new();
                    while times.is_empty() || Instant::now() < end {
                        times.push(case.sampled()?);
                    }
                    Ok::<_, String>(times)
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a thread panicked".to_owned())??);
        }
        Ok(all)
    })
}

/// `MemAvailable`, KiB.
fn available() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn idle(bench: &Bench<'_>, groups: &mut Vec<Group>) -> Result<Vec<Curve>, String> {
    let place = &bench.place;
    let most = if bench.ask.quick { QUICK_IDLE } else { IDLE };
    let daemon = warm::Daemon::start(place)?;
    let mut client = daemon.client()?;
    // The first pays for what all share.
    let mut ids = vec![warm::create(&mut client, place)?];
    let before = available().ok_or("/proc/meminfo names no MemAvailable")?;
    let bar = runner::bar("idle sandboxes", most as u64, bench.plan.progress);
    let (mut memory, mut latency, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for i in 1..=most {
        let start = Instant::now();
        ids.push(warm::create(&mut client, place)?);
        times.push(start.elapsed().as_nanos() as f64 / 1000.0);
        bar.inc(1);
        if i % (most / STEPS).max(1) == 0 {
            let across = i as f64;
            let now = available().unwrap_or(before);
            memory.push((across, (before - now).max(0.0) / 1024.0));
            let last = &times[times.len().saturating_sub(most / STEPS)..];
            latency.push((across, crate::stats::median(last) / 1000.0));
        }
    }
    let each = (before - available().unwrap_or(before)).max(0.0) / most as f64;
    for id in ids {
        warm::remove(&mut client, &id)?;
    }
    bar.finish_and_clear();
    let group = |name: &str, title: &str, unit: &str, case: Case| Group {
        name: name.into(),
        title: title.into(),
        unit: unit.into(),
        better: Better::Lower,
        baseline: None,
        cases: vec![case],
    };
    let what = format!("MemAvailable before and after {most} sandboxes");
    groups.push(group(
        "density/memory",
        "memory of an idle sandbox",
        "KiB",
        Case::of("ringfence", &what, vec![each]),
    ));
    let what = format!("POST /v1/sandboxes, up to {most}");
    groups.push(group(
        "density/create",
        "making one more sandbox",
        "us",
        Case::of("ringfence", &what, times),
    ));
    let curve = |name: &str, title: &str, y: &str, points| Curve {
        name: name.into(),
        title: title.into(),
        x: "idle sandboxes".into(),
        y: y.into(),
        lines: vec![Line { name: "ringfence".into(), points }],
    };
    Ok(vec![
        curve("density/idle-memory", "memory that idle sandboxes take", "MiB", memory),
        curve("density/idle-create", "making one more beside idle ones", "p50, ms", latency),
    ])
}
