//! Two reports, old and new: what changed, by how much, and how sure that is.
//!
//! On one machine a case counts as changed when three things agree: its samples come from other
//! distributions (Mann-Whitney, adjusted for the number of cases, since thirty comparisons at 5 % would
//! cry wolf every time); the interval of the change of its median does not hold 0; and, where the group
//! has a baseline that was measured in the same rounds, the same two are true of its overhead factor,
//! so that a machine that became slower does not count against the binary. Between machines only the
//! overhead factor is compared. A change below the threshold is none. Two results of the same rounds
//! (`--against`) are compared round by round: by Wilcoxon's signed-rank test, and by the interval of the
//! median of what one took beside the other.

use std::fmt::Write as _;

use serde::Serialize;

use crate::model::{Better, Case, Group, Profile, Report};
use crate::stats;
use crate::text;

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Chance of a single false alarm in the whole comparison.
    pub alpha: f64,
    /// The least change that counts.
    pub threshold: f64,
    /// Compare overhead factors although it is one machine.
    pub by_factor: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { alpha: 0.05, threshold: 0.02, by_factor: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Faster,
    Slower,
    /// No difference that could be told from chance, or none of size.
    Same,
    /// Its time changed as the baseline's did.
    Machine,
    /// Too few samples on a side, or none.
    Unknown,
}

/// By what two cases were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Time,
    Factor,
    /// Time beside time, of the same rounds.
    Rounds,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub group: String,
    pub case: String,
    pub unit: String,
    pub by: By,
    pub old: f64,
    pub new: f64,
    /// New beside old, less 1, and the interval that holds it with 95 % confidence.
    pub change: f64,
    pub low: f64,
    pub high: f64,
    /// Adjusted for the number of rows.
    pub p: f64,
    pub samples: (usize, usize),
    pub verdict: Verdict,
    /// Whether it is ringfence's own.
    pub own: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub same_machine: bool,
    pub rows: Vec<Row>,
    /// What the reader should know before believing it.
    pub notes: Vec<String>,
}

/// Fewer samples on a side say nothing about a change.
const LEAST: usize = 5;

/// Two samples of one case in both reports.
struct Pair<'a> {
    group: &'a Group,
    old: &'a Case,
    new: &'a Case,
    by: By,
    times: (Vec<f64>, Vec<f64>),
    factors: Option<(Vec<f64>, Vec<f64>)>,
}

pub fn compare(old: &Report, new: &Report, options: &Options) -> Comparison {
    let same_machine = old.machine.id == new.machine.id;
    let together =
        old.settings.together.is_some() && old.settings.together == new.settings.together;
    let by = match (together, same_machine && !options.by_factor) {
        (true, _) => By::Rounds,
        (false, true) => By::Time,
        (false, false) => By::Factor,
    };
    let pairs = pairs(old, new, by);
    // One family of tests for each kind, adjusted together.
    let p = |of: &dyn Fn(&Pair<'_>) -> Option<f64>| {
        let found: Vec<Option<f64>> = pairs.iter().map(of).collect();
        let mut adjusted =
            stats::holm(&found.iter().flatten().copied().collect::<Vec<_>>()).into_iter();
        found.iter().map(|f| f.and_then(|_| adjusted.next())).collect::<Vec<_>>()
    };
    let by_time = p(&|pair| {
        enough(&pair.times).then(|| match pair.by {
            By::Rounds => stats::signed_rank(&logarithms(&pair.times)),
            By::Time | By::Factor => stats::mann_whitney(&pair.times.0, &pair.times.1),
        })
    });
    let by_factor = p(&|pair| {
        let (a, b) = pair.factors.as_ref().filter(|f| enough(f))?;
        Some(stats::mann_whitney(a, b))
    });
    let rows: Vec<Row> = pairs
        .iter()
        .zip(by_time.iter().zip(&by_factor))
        .map(|(pair, (time, factor))| row(pair, *time, *factor, options))
        .collect();
    let mut notes = notes(old, new, same_machine, &rows);
    notes.extend(power(&rows, options));
    Comparison { same_machine, rows, notes }
}

/// What each round's times are beside each other, on a scale where twice and half are as far.
fn logarithms((old, new): &(Vec<f64>, Vec<f64>)) -> Vec<f64> {
    old.iter().zip(new).map(|(old, new)| (new / old).ln()).collect()
}

/// The part of changes of a size that would be found.
const POWER: f64 = 0.8;
/// The size that is spoken of.
const SIZE: f64 = 0.05;

/// What may have been missed: of ringfence's own that did not change, the least sure.
fn power(rows: &[Row], options: &Options) -> Option<String> {
    let tests = rows.iter().filter(|r| !r.p.is_nan()).count().max(1);
    let sure =
        stats::deviations(options.alpha / 2.0 / tests as f64) + stats::deviations(1.0 - POWER);
    // The interval is 1.96 deviations to each side.
    let least = |row: &Row| (row.high - row.low) / 2.0 / 1.96 * sure;
    let quiet = rows.iter().filter(|r| r.own && r.verdict == Verdict::Same && !r.low.is_nan());
    let worst = quiet.max_by(|a, b| least(a).total_cmp(&least(b)))?;
    let (found, n) = (least(worst), worst.samples.0.min(worst.samples.1) as f64);
    let mut text = format!(
        "what did not change may have changed by less than can be told: in {}, {}, {:.1} % would be found \
         in {:.0} of 100 such comparisons",
        worst.group,
        worst.case,
        found * 100.0,
        POWER * 100.0
    );
    if found > SIZE {
        let rounds = (n * (found / SIZE).powi(2)).ceil();
        let _ = write!(text, "; {:.0} % need some {rounds:.0} rounds", SIZE * 100.0);
    }
    Some(text)
}

fn enough((a, b): &(Vec<f64>, Vec<f64>)) -> bool {
    a.len().min(b.len()) >= LEAST
}

fn pairs<'a>(old: &'a Report, new: &'a Report, by: By) -> Vec<Pair<'a>> {
    let mut all = Vec::new();
    for group in &new.groups {
        let Some(before) = old.groups.iter().find(|g| g.name == group.name && g.unit == group.unit)
        else {
            continue;
        };
        for case in &group.cases {
            let Some(was) = before.case(&case.name) else { continue };
            if case.summary.is_none() || was.summary.is_none() {
                continue;
            }
            let is_base = group.baseline.as_deref() == Some(case.name.as_str());
            if by == By::Factor && (is_base || group.base().is_none() || before.base().is_none()) {
                continue;
            }
            let factors =
                (!is_base).then(|| before.factors(was).zip(group.factors(case))).flatten();
            // What was measured once beside both is one and the same.
            if by == By::Rounds && was.samples == case.samples {
                continue;
            }
            let times = (was.samples.clone(), case.samples.clone());
            all.push(Pair { group, old: was, new: case, by, times, factors });
        }
    }
    all
}

fn row(pair: &Pair<'_>, time: Option<f64>, factor: Option<f64>, options: &Options) -> Row {
    let is_base = pair.group.baseline.as_deref() == Some(pair.new.name.as_str());
    let measured = match pair.by {
        By::Time | By::Rounds => Some(&pair.times),
        By::Factor => pair.factors.as_ref(),
    };
    let p50 = |case: &Case| case.p50().unwrap_or(f64::NAN);
    let (old, new) = match measured.filter(|m| enough(m)) {
        Some((a, b)) => (stats::median(a), stats::median(b)),
        None => (p50(pair.old), p50(pair.new)),
    };
    let changed = |samples: &(Vec<f64>, Vec<f64>), p: Option<f64>| {
        let (change, (low, high)) = if pair.by == By::Rounds {
            let each: Vec<f64> =
                samples.0.iter().zip(&samples.1).map(|(old, new)| new / old - 1.0).collect();
            (stats::median(&each), stats::median_interval(&each, 0.95))
        } else {
            let change = stats::median(&samples.1) / stats::median(&samples.0) - 1.0;
            (change, stats::change_interval(&samples.0, &samples.1, 0.95))
        };
        let sure = p.is_some_and(|p| p < options.alpha) && (low > 0.0 || high < 0.0);
        (change, low, high, sure && change.abs() >= options.threshold)
    };
    let p = if pair.by == By::Factor { factor } else { time };
    let (mut change, mut low, mut high) = (new / old - 1.0, f64::NAN, f64::NAN);
    let mut verdict = Verdict::Unknown;
    if let Some(samples) = measured.filter(|m| enough(m)) {
        let first = changed(samples, p);
        (change, low, high) = (first.0, first.1, first.2);
        // On one machine the factor has to agree.
        let second = match pair.by {
            By::Time => pair.factors.as_ref().filter(|f| enough(f)).map(|f| changed(f, factor)),
            // The same rounds were slow for both.
            By::Factor | By::Rounds => None,
        };
        let agreed = second.is_none_or(|s| s.3 && s.0.signum() == change.signum());
        let worse = (change > 0.0) == (pair.group.better == Better::Lower);
        verdict = match (first.3, agreed) {
            (false, _) => Verdict::Same,
            // The baseline is the machine's own.
            (true, _) if is_base => Verdict::Machine,
            (true, false) => Verdict::Machine,
            (true, true) if worse => Verdict::Slower,
            (true, true) => Verdict::Faster,
        };
    }
    Row {
        group: pair.group.name.clone(),
        case: pair.new.name.clone(),
        unit: if pair.by == By::Factor { "x".into() } else { pair.group.unit.clone() },
        by: pair.by,
        old,
        new,
        change,
        low,
        high,
        p: p.unwrap_or(f64::NAN),
        samples: (pair.old.samples.len(), pair.new.samples.len()),
        verdict,
        own: pair.new.name.starts_with("ringfence"),
    }
}

fn notes(old: &Report, new: &Report, same_machine: bool, rows: &[Row]) -> Vec<String> {
    let mut notes = Vec::new();
    for (which, report) in [("old", old), ("new", new)] {
        if report.tool.profile != Profile::Release {
            notes.push(format!(
                "the {which} binary is not known to be a release build: its figures are of no worth"
            ));
        }
    }
    if old.tool.sha256 == new.tool.sha256 {
        notes.push("both measured the very same binary".into());
    }
    if !same_machine {
        notes.push(
            "measured on different machines: overhead factors are compared, not times".into(),
        );
    }
    if rows.iter().any(|r| r.by == By::Rounds) {
        notes.push("measured in the same rounds: compared round by round".into());
    }
    if old.machine.user != new.machine.user {
        notes.push(format!("measured as {} and as {}", old.machine.user, new.machine.user));
    }
    if old.settings.processors != new.settings.processors {
        notes.push("measured on different processors".into());
    }
    if rows.iter().any(|r| r.verdict == Verdict::Machine) {
        notes.push("the machine changed between the two: baselines moved".into());
    }
    for peer in &new.peers {
        let was = old.peers.iter().find(|p| p.name == peer.name);
        if let Some(was) = was.filter(|w| w.version != peer.version) {
            let word = |v: &Option<String>| v.clone().unwrap_or_else(|| "absent".into());
            notes.push(format!(
                "{}: {} before, {} now",
                peer.name,
                word(&was.version),
                word(&peer.version)
            ));
        }
    }
    if rows.is_empty() {
        notes.push("the two have nothing in common".into());
    }
    notes
}

impl Comparison {
    /// Whether something of ringfence's own became worse.
    pub fn regressed(&self) -> bool {
        self.rows.iter().any(|r| r.own && r.verdict == Verdict::Slower)
    }

    /// A table as benchstat prints it.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| group | case | old | new | change | p | |\n|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let figure = |x: f64| text::figure(x, &row.unit);
            let change = if row.low.is_nan() {
                format!("{:+.1} %", row.change * 100.0)
            } else {
                let (c, l, h) = (row.change * 100.0, row.low * 100.0, row.high * 100.0);
                format!("{c:+.1} % ({l:+.1} to {h:+.1})")
            };
            let p = if row.p.is_nan() { "-".into() } else { format!("{:.3}", row.p) };
            let word = match row.verdict {
                Verdict::Faster => "**faster**",
                Verdict::Slower => "**slower**",
                Verdict::Same => "~",
                Verdict::Machine => "the machine",
                Verdict::Unknown => "too few samples",
            };
            let (old, new) = (figure(row.old), figure(row.new));
            let _ = writeln!(
                out,
                "| {} | {} | {old} | {new} | {change} | {p} | {word} |",
                row.group, row.case
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "\n- {note}");
        }
        out
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
