//! When each step of a start was over, for `run --trace-startup`. Off, a mark is one load of a flag.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

static ON: AtomicBool = AtomicBool::new(false);
static MARKS: Mutex<Vec<(&'static str, Instant)>> = Mutex::new(Vec::new());

/// From now on steps are noted.
pub fn begin() {
    ON.store(true, Ordering::Relaxed);
    mark("");
}

/// A step is over.
pub fn mark(step: &'static str) {
    if ON.load(Ordering::Relaxed) {
        note(step);
    }
}

#[cold]
fn note(step: &'static str) {
    let now = Instant::now();
    if let Ok(mut marks) = MARKS.lock() {
        marks.push((step, now));
    }
}

/// What was noted: each step with the microseconds, from the beginning, at which it began and ended.
pub fn steps() -> Vec<(&'static str, f64, f64)> {
    let Ok(marks) = MARKS.lock() else { return Vec::new() };
    let Some((_, zero)) = marks.first() else { return Vec::new() };
    let since = |at: &Instant| at.duration_since(*zero).as_secs_f64() * 1e6;
    marks.windows(2).map(|two| (two[1].0, since(&two[0].1), since(&two[1].1))).collect()
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
            steps.iter().map(|s| s.0).filter(|n| ["first", "second"].contains(n)).collect();
        assert_eq!(names, ["first", "second"]);
        assert!(steps.windows(2).all(|two| (two[0].2 - two[1].1).abs() < 1e-6));
    }
}
