//! How many: starts a second with more and more of them at a time, and what idle sandboxes take.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::work::{self, Work};
use super::{Bench, by_peer, warm};
use crate::model::{Better, Case, Curve, Group, Line, Report, failed};
use crate::runner::{self, Timed};

/// The curve of starts a second.
pub const RATE: &str = "density/rate";
/// How many at a time.
const RAMP: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const QUICK_RAMP: [usize; 2] = [1, 4];
/// Idle sandboxes.
const IDLE: usize = 500;
const QUICK_IDLE: usize = 10;
/// How many are made between two looks at memory.
const STEPS: usize = 10;

pub fn part(bench: &mut Bench<'_>, report: &mut Report) {
    match ramp(bench) {
        Ok(curves) => report.curves.extend(curves),
        Err(why) => report.groups.push(failed("density/starts", "starts at a time", &why)),
    }
    match idle(bench, &mut report.groups) {
        Ok(curves) => report.curves.extend(curves),
        Err(why) => report.groups.push(failed("density/idle", "idle sandboxes", &why)),
    }
}

/// How often a second, and how long each takes, for as many at a time as can be started.
#[derive(Debug, Default)]
struct Ramped {
    rate: Vec<(f64, f64)>,
    latency: Vec<(f64, f64)>,
    /// Why there is not more.
    absent: Option<String>,
}

/// Every step with commands that are not the same for two at a time: names, bundles.
fn ramped(
    steps: &[usize],
    time: Duration,
    budget: Duration,
    step: impl Fn(),
    mut command: impl FnMut() -> Timed,
) -> Ramped {
    let mut found = Ramped::default();
    let mut commands = vec![command()];
    if let Err(why) = commands[0].check() {
        found.absent = Some(why);
        return found;
    }
    for (i, &at_once) in steps.iter().enumerate() {
        commands.resize_with(at_once.max(commands.len()), &mut command);
        let begin = Instant::now();
        let done = match commands.iter().find_map(|c| c.absent.clone()) {
            Some(why) => Err(why),
            None => together(&commands[..at_once], time),
        };
        let took = begin.elapsed();
        match done {
            Ok(times) => {
                let across = at_once as f64;
                found.rate.push((across, times.len() as f64 / took.as_secs_f64()));
                found.latency.push((across, crate::stats::median(&times) / 1000.0));
            }
            Err(why) => {
                found.absent = Some(format!("failed with {at_once} at a time: {why}"));
                return found;
            }
        }
        step();
        if took > budget && i + 1 < steps.len() {
            let took = took.as_secs();
            found.absent = Some(format!("no more than {at_once} at a time, which took {took} s"));
            return found;
        }
    }
    found
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
    let contestants = bench.peers.len() + 2;
    let bar =
        runner::bar("starts at a time", (steps.len() * contestants) as u64, bench.plan.progress);
    let budget = bench.plan.budget;
    let step = || bar.inc(1);
    let own = |name: &str| match name {
        "host" => place.timed(name, work, &[]),
        _ => place.confined(name, work, super::WAYS[0].1),
    };
    let mut found: Vec<(String, Ramped)> = ["host", "ringfence"]
        .into_iter()
        .map(|name| (name.to_owned(), ramped(steps, time, budget, step, || own(name))))
        .collect();
    for peer in &mut bench.peers {
        let name = peer.adapter.name.clone();
        let ramped = ramped(steps, time, budget, step, || by_peer(place, peer, work));
        found.push((name, ramped));
    }
    bar.finish_and_clear();
    let lines = |points: &dyn Fn(&Ramped) -> Vec<(f64, f64)>| -> Vec<Line> {
        let line = |(name, ramped): &(String, Ramped)| Line {
            name: name.clone(),
            points: points(ramped),
            absent: ramped.absent.clone(),
        };
        found.iter().map(line).collect()
    };
    let curve = |name: &str, title: &str, y: &str, lines| Curve {
        name: name.into(),
        title: title.into(),
        x: "at a time".into(),
        y: y.into(),
        lines,
    };
    Ok(vec![
        curve(RATE, "starts of true a second", "starts a second", lines(&|r| r.rate.clone())),
        curve(
            "density/latency",
            "time of a start of true",
            "p50, ms",
            lines(&|r| r.latency.clone()),
        ),
    ])
}

/// Threads that start a command each, again and again until the time is over; microseconds of all. Where
/// one fails, none starts another.
fn together(commands: &[Timed], time: Duration) -> Result<Vec<f64>, String> {
    let end = Instant::now() + time;
    let failed = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = commands
            .iter()
            .map(|case| {
                scope.spawn(move || {
                    let mut times = Vec::new();
                    while times.is_empty()
                        || (Instant::now() < end && !failed.load(Ordering::Relaxed))
                    {
                        let taken = case.sampled();
                        failed.fetch_or(taken.is_err(), Ordering::Relaxed);
                        times.push(taken?);
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

/// How many processes there are; that of another user is one too, where they are shown.
fn processes() -> f64 {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_one = |name: std::ffi::OsString| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    all.filter(|e| is_one(e.file_name())).count() as f64
}

fn idle(bench: &Bench<'_>, groups: &mut Vec<Group>) -> Result<Vec<Curve>, String> {
    let place = &bench.place;
    let most = if bench.ask.quick { QUICK_IDLE } else { IDLE };
    let daemon = warm::Daemon::start(place)?;
    let mut client = daemon.client()?;
    // The first pays for what all share.
    let mut ids = vec![warm::create(&mut client, place)?];
    let there = processes();
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
    let processes = (processes() - there).max(0.0) / most as f64;
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
    let what = format!("processes of the host before and after {most} sandboxes");
    groups.push(group(
        "density/processes",
        "processes of an idle sandbox",
        "",
        Case::of("ringfence", &what, vec![processes]),
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
        lines: vec![Line { name: "ringfence".into(), points, absent: None }],
    };
    Ok(vec![
        curve("density/idle-memory", "memory that idle sandboxes take", "MiB", memory),
        curve("density/idle-create", "making one more beside idle ones", "p50, ms", latency),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, count: &std::path::Path) -> Timed {
        let argv = ["/bin/sh", "-c", script].into_iter().map(Into::into);
        Timed {
            name: "peer".into(),
            argv: argv.chain([count.as_os_str().to_owned()]).collect(),
            dir: "/".into(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            fails: false,
            absent: None,
        }
    }

    #[test]
    fn who_cannot_start_many_is_listed_with_what_it_reached_and_said() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let count = dir.path().join("count");
        let run = |script: &str| {
            let _ = std::fs::write(&count, "");
            let time = Duration::from_millis(1);
            ramped(&[1, 4], time, Duration::from_secs(20), || {}, || shell(script, &count))
        };
        // It was looked at once before, and started until the time was over.
        let tired = run("echo >>$0; [ $(wc -l <$0) -lt 4 ] || { echo tired >&2; exit 7; }");
        let why = tired.absent.unwrap_or_default();
        assert!(why.ends_with("at a time: exit status: 7: tired"), "{why}");
        assert!(why.starts_with("failed with "), "{why}");
        let broken = run("echo no good >&2; exit 7");
        assert_eq!(
            broken.absent.as_deref(),
            Some("does not run here: exit status: 7: no good"),
            "{broken:?}"
        );
        assert!(broken.rate.is_empty());
        let well = run("true");
        assert!(well.absent.is_none() && well.rate.len() == 2 && well.latency.len() == 2);
        let time = Duration::from_millis(1);
        let slow = ramped(&[1, 4], time, Duration::ZERO, || {}, || shell("true", &count));
        assert_eq!(slow.absent.as_deref(), Some("no more than 1 at a time, which took 0 s"));
        assert_eq!(slow.rate.len(), 1);
    }
}
