//! When each step of a start was over, for `run --trace-startup`: those of the supervisor, and those that
//! its helper, init and the command's process took. Off, a mark is one load of a flag.

use std::sync::Mutex;

use ringfence_jail::{Jailed, Noted};
use ringfence_sys::moments;

/// The lane of what this process does.
const SUPERVISOR: &str = "supervisor";

static MARKS: Mutex<Vec<(&'static str, u64)>> = Mutex::new(Vec::new());
static INSIDE: Mutex<Vec<Noted>> = Mutex::new(Vec::new());

/// One step; microseconds from the beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub name: &'static str,
    /// Which process took it.
    pub lane: &'static str,
    pub start_us: f64,
    pub end_us: f64,
}

/// From now on steps are noted.
pub fn begin() {
    moments::begin();
    mark("");
}

/// A step is over.
pub fn mark(step: &'static str) {
    if moments::wanted() {
        note(step);
    }
}

#[cold]
fn note(step: &'static str) {
    let now = moments::now();
    if let Ok(mut marks) = MARKS.lock() {
        marks.push((step, now));
    }
}

/// The command has ended: what went on in its sandbox before it ran.
pub fn inside(jailed: &Jailed) {
    if moments::wanted()
        && let Ok(mut steps) = INSIDE.lock()
    {
        *steps = jailed.steps();
    }
}

/// What was noted, in the order of its beginnings.
pub fn steps() -> Vec<Step> {
    let Ok(marks) = MARKS.lock() else { return Vec::new() };
    let Some((_, zero)) = marks.first() else { return Vec::new() };
    let own = marks.windows(2).map(|two| Noted {
        name: two[1].0,
        lane: SUPERVISOR,
        start: two[0].1,
        end: two[1].1,
    });
    let inside = INSIDE.lock().map(|steps| steps.clone()).unwrap_or_default();
    let mut all: Vec<Noted> = own.chain(inside).collect();
    all.sort_by_key(|step| step.start);
    let since =
        |at: u64| std::time::Duration::from_nanos(at.saturating_sub(*zero)).as_secs_f64() * 1e6;
    all.iter()
        .map(|s| Step {
            name: s.name,
            lane: s.lane,
            start_us: since(s.start),
            end_us: since(s.end),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn steps_follow_one_another_and_nothing_is_noted_before() {
        super::mark("before");
        assert!(super::steps().is_empty());
        super::begin();
        super::mark("first");
        super::mark("second");
        let steps = super::steps();
        let names: Vec<_> =
            steps.iter().map(|s| s.name).filter(|n| ["first", "second"].contains(n)).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(steps.windows(2).all(|two| (two[0].end_us - two[1].start_us).abs() < 1e-6));
    }
}
