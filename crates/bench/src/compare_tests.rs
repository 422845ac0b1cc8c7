//! Two runs of one build are quiet, a planted regression of 5 % is found: on made-up data over many
//! seeds here, on recorded data in `crates/bench/tests/it.rs`.
#![allow(clippy::unwrap_used)] // tests

use super::*;
use crate::model::{FORMAT, Machine, Settings, Tool};
use crate::stats::Random;

/// Rounds in which the machine drifts, a baseline and three cases; the noise is skewed as that of starts.
fn report(seed: u64, machine: &str, speed: f64, own: f64) -> Report {
    let mut random = Random::new(seed);
    let mut noise = |scale: f64| {
        let unit = (random.draw() >> 11) as f64 / (1u64 << 53) as f64;
        1.0 - scale * (1.0 - unit).ln()
    };
    let mut groups = Vec::new();
    for name in ["cold/true", "cold/python", "cold/git"] {
        let mut samples = vec![Vec::new(), Vec::new(), Vec::new()];
        for round in 0..100 {
            let drift = speed * if round % 40 < 20 { 1.0 } else { 1.04 };
            samples[0].push(700.0 * drift * noise(0.06));
            samples[1].push(4500.0 * drift * own * noise(0.05));
            samples[2].push(5000.0 * drift * noise(0.05));
        }
        let cases = ["host", "ringfence", "bubblewrap"]
            .into_iter()
            .zip(samples)
            .map(|(name, samples)| Case::of(name, "", samples))
            .collect();
        let (title, unit) = (name.into(), "us".into());
        let baseline = Some("host".into());
        groups.push(Group {
            name: name.into(),
            title,
            unit,
            better: Better::Lower,
            baseline,
            cases,
        });
    }
    Report {
        format: FORMAT.into(),
        name: "cold".into(),
        started: String::new(),
        command: String::new(),
        tool: Tool { sha256: format!("{own}"), profile: Profile::Release, ..Tool::default() },
        machine: Machine { id: machine.into(), ..Machine::default() },
        settings: Settings::default(),
        peers: Vec::new(),
        groups,
        timelines: Vec::new(),
        curves: Vec::new(),
    }
}

fn verdicts(comparison: &Comparison, of: Verdict) -> Vec<String> {
    let rows = comparison.rows.iter().filter(|r| r.verdict == of);
    rows.map(|r| format!("{} {}", r.group, r.case)).collect()
}

#[test]
fn two_runs_of_one_build_are_quiet() {
    let loud = (0..20)
        .filter(|i| {
            let (a, b) = (report(2 * i, "m", 1.0, 1.0), report(2 * i + 1, "m", 1.0, 1.0));
            let found = compare(&a, &b, &Options::default());
            assert_eq!(found.rows.len(), 9);
            !verdicts(&found, Verdict::Slower).is_empty()
                || !verdicts(&found, Verdict::Faster).is_empty()
        })
        .count();
    assert!(loud <= 1, "{loud} of 20 quiet pairs cried wolf");
}

#[test]
fn a_planted_regression_is_found_and_only_it() {
    for seed in 0..4 {
        let (a, b) = (report(100 + seed, "m", 1.0, 1.0), report(200 + seed, "m", 1.0, 1.05));
        let found = compare(&a, &b, &Options::default());
        let slower = verdicts(&found, Verdict::Slower);
        assert!(
            slower.len() >= 2 && slower.iter().all(|s| s.ends_with(" ringfence")),
            "{slower:?}"
        );
        assert!(found.regressed());
        let back = compare(&b, &a, &Options::default());
        assert!(!back.regressed() && !verdicts(&back, Verdict::Faster).is_empty());
    }
}

/// Two builds in the same rounds: whatever the machine does, it does to both.
fn together(seed: u64, rounds: usize, own: f64) -> (Report, Report) {
    let (mut old, mut new) = (report(seed, "m", 1.0, 1.0), report(seed, "m", 1.0, 1.0));
    let mut random = Random::new(seed);
    let mut noise = |scale: f64| {
        let unit = (random.draw() >> 11) as f64 / (1u64 << 53) as f64;
        1.0 - scale * (1.0 - unit).ln()
    };
    for (before, after) in old.groups.iter_mut().zip(&mut new.groups) {
        let (mut samples, mut others) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // A tenth more from one round to the next, twice as much now and then.
            let drift = (1.0 + round as f64 / 10.0) * noise(0.3);
            samples.push(4500.0 * drift * noise(0.05));
            others.push(4500.0 * drift * own * noise(0.05));
        }
        before.cases[1] = Case::of("ringfence", "", samples);
        after.cases[1] = Case::of("ringfence", "", others);
    }
    for report in [&mut old, &mut new] {
        report.settings.together = Some("one".into());
    }
    (old, new)
}

#[test]
fn rounds_that_were_shared_are_compared_round_by_round() {
    for seed in 0..8 {
        let (old, same) = together(seed, 60, 1.0);
        let quiet = compare(&old, &same, &Options::default());
        assert_eq!(quiet.rows.len(), 3, "host and peers are the very same");
        assert!(quiet.rows.iter().all(|r| r.by == By::Rounds));
        assert!(!quiet.regressed(), "{}", quiet.markdown());
        assert!(
            quiet.notes.iter().any(|n| n.contains("would be found in 80")),
            "{:?}",
            quiet.notes
        );
        let (old, slower) = together(seed, 60, 1.05);
        let found = compare(&old, &slower, &Options::default());
        assert_eq!(verdicts(&found, Verdict::Slower).len(), 3, "{}", found.markdown());
        // The control: the same samples by themselves drift too much to tell.
        let alone = |mut report: Report| {
            report.settings.together = None;
            report
        };
        let missed = compare(&alone(old), &alone(slower), &Options::default());
        assert!(!missed.regressed(), "{}", missed.markdown());
    }
}

#[test]
fn too_few_rounds_say_how_many_are_needed() {
    let (old, new) = together(5, 6, 1.0);
    let found = compare(&old, &new, &Options::default());
    assert!(found.notes.iter().any(|n| n.contains("5 % need some ")), "{:?}", found.notes);
}

#[test]
fn a_slower_machine_is_not_a_slower_binary() {
    let (a, b) = (report(31, "m", 1.0, 1.0), report(32, "m", 1.3, 1.0));
    let found = compare(&a, &b, &Options::default());
    assert!(!found.regressed(), "{}", found.markdown());
    assert!(!verdicts(&found, Verdict::Machine).is_empty());
    assert!(found.notes.iter().any(|n| n.contains("machine changed")), "{:?}", found.notes);
}

#[test]
fn machines_are_compared_by_overhead() {
    let (a, b) = (report(41, "m", 1.0, 1.0), report(42, "n", 2.5, 1.0));
    let found = compare(&a, &b, &Options::default());
    assert!(!found.same_machine && !found.regressed(), "{}", found.markdown());
    assert!(found.rows.iter().all(|r| r.by == By::Factor && r.unit == "x"));
    let c = report(43, "n", 2.5, 1.1);
    assert!(compare(&a, &c, &Options::default()).regressed());
}

#[test]
fn little_data_says_nothing() {
    let (mut a, mut b) = (report(51, "m", 1.0, 1.0), report(52, "m", 1.0, 3.0));
    for report in [&mut a, &mut b] {
        for case in report.groups.iter_mut().flat_map(|g| &mut g.cases) {
            *case = Case::of(&case.name, "", case.samples[..3].to_vec());
        }
    }
    let found = compare(&a, &b, &Options::default());
    assert!(found.rows.iter().all(|r| r.verdict == Verdict::Unknown));
    assert!(!found.regressed());
    b.groups.clear();
    assert!(compare(&a, &b, &Options::default()).notes.iter().any(|n| n.contains("in common")));
}

#[test]
fn what_is_better_depends_on_the_unit() {
    let turned = |own: f64, seed| {
        let mut report = report(seed, "m", 1.0, own);
        for group in &mut report.groups {
            group.better = Better::Higher;
        }
        report
    };
    let found = compare(&turned(1.0, 61), &turned(1.1, 62), &Options::default());
    assert!(!found.regressed() && !verdicts(&found, Verdict::Faster).is_empty());
}
