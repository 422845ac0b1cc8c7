//! What is kept of a measurement: one JSON document, `bench/schema.json`, for everything that measures.
//!
//! A report is groups of cases. The cases of a group do the same work and were measured in turn, sample
//! `i` of each in round `i`; one of them, the baseline, is what the others are compared with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stats;

/// Name and version of the format; a reader refuses others.
pub const FORMAT: &str = "ringfence-bench/1";

/// Everything of one measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Results of ringfence's benchmarks")]
pub struct Report {
    /// `ringfence-bench/1`.
    pub format: String,
    /// What it is about: `cold`, `quick`, `stress`, ...
    pub name: String,
    /// When it began, UTC: `2026-11-22T04:05:06Z`.
    pub started: String,
    /// The command line that measured.
    pub command: String,
    pub tool: Tool,
    pub machine: Machine,
    pub settings: Settings,
    /// Whom it was measured beside, and who was absent and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Single starts, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timelines: Vec<Timeline>,
    /// Something against something else: memory against sandboxes, for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<Curve>,
}

/// The binary that was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Of the binary's bytes.
    pub sha256: String,
    pub profile: Profile,
}

/// How the binary was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    Release,
    /// Figures of no worth: made to try the suite itself.
    Debug,
    /// It does not say.
    #[default]
    Unknown,
}

/// Where it was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The same for two runs on the same machine; says nothing else about it.
    pub id: String,
    pub system: String,
    pub kernel: String,
    pub architecture: String,
    pub processor: String,
    pub processors: usize,
    pub memory_mib: u64,
    /// `root` or `user`.
    pub user: String,
    /// `/proc/loadavg` at the start.
    pub load: String,
}

/// How it was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Samples of each case, unless its group says otherwise.
    pub rounds: usize,
    /// Rounds before them that do not count.
    pub warmups: usize,
    /// Each round asks every case of the group once, in an order drawn anew.
    pub interleaved: bool,
    /// The processors that commands were kept to; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processors: Vec<usize>,
    /// Seconds that a case may take; one that needs more has fewer samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// The same in two results that were measured in the same rounds: sample by sample they belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<String>,
}

/// Another sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub name: String,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// What its figures stand for: what of the work it does and does not do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    #[default]
    Lower,
    Higher,
}

/// Cases that do the same work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Short and the same in every report: `cold/true`.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// Of every figure of the group: `us`, `KiB`, `/s`, ...
    pub unit: String,
    #[serde(default)]
    pub better: Better,
    /// Name of the case that the others are compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    pub cases: Vec<Case>,
}

/// One contestant of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `host`, `ringfence`, the name of a peer, ...
    pub name: String,
    /// The command line, or what was done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// Why there is no figure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// In the order of the rounds. Empty where only a summary is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// What was odd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What the samples say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub samples: usize,
    pub min: f64,
    pub p25: f64,
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
    pub mean: f64,
    pub deviation: f64,
    /// Median absolute deviation.
    pub mad: f64,
    /// The median lies between these with 95 % confidence.
    pub low: f64,
    pub high: f64,
}

impl Summary {
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = stats::sorted(samples);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let at = |q| stats::quantile(&sorted, q);
        let (low, high) = stats::median_interval(samples, 0.95);
        Some(Self {
            samples: samples.len(),
            min,
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max,
            mean: stats::mean(samples),
            deviation: stats::deviation(samples),
            mad: stats::mad(samples),
            low,
            high,
        })
    }
}

/// A part of outliers worth a word: fewer are to be expected of any tail.
const MANY_OUTLIERS: f64 = 0.05;

impl Case {
    pub fn of(name: &str, what: &str, samples: Vec<f64>) -> Self {
        let mut notes = Vec::new();
        let found = stats::outliers(&samples);
        let n = samples.len();
        let part = |k: usize| f64::from(u32::try_from(k).unwrap_or(u32::MAX)) / n.max(1) as f64;
        if n >= 10 && (part(found.low + found.high) > MANY_OUTLIERS || found.severe > 0) {
            let (low, high, severe) = (found.low, found.high, found.severe);
            notes.push(format!("outliers: {high} slow, {low} fast, {severe} far out, of {n}"));
        }
        let summary = Summary::of(&samples);
        Self { name: name.into(), what: what.into(), absent: None, samples, summary, notes }
    }

    pub fn absent(name: &str, what: &str, why: impl Into<String>) -> Self {
        let (name, what, absent) = (name.into(), what.into(), Some(why.into()));
        Self { name, what, absent, samples: Vec::new(), summary: None, notes: Vec::new() }
    }

    pub fn p50(&self) -> Option<f64> {
        self.summary.map(|s| s.p50)
    }
}

impl Group {
    pub fn case(&self, name: &str) -> Option<&Case> {
        self.cases.iter().find(|c| c.name == name)
    }

    /// The baseline, where it was measured.
    pub fn base(&self) -> Option<&Case> {
        self.case(self.baseline.as_deref()?).filter(|c| c.summary.is_some())
    }

    /// How many times the baseline's median a case takes.
    pub fn factor(&self, case: &Case) -> Option<f64> {
        let (base, of) = (self.base()?.p50()?, case.p50()?);
        (base > 0.0).then(|| of / base)
    }

    /// The same round by round, which takes out whatever slowed both down. One of them may have been
    /// measured in the first rounds only.
    pub fn factors(&self, case: &Case) -> Option<Vec<f64>> {
        let base = &self.base()?.samples;
        let paired = !base.is_empty() && !case.samples.is_empty() && base.iter().all(|b| *b > 0.0);
        paired.then(|| case.samples.iter().zip(base).map(|(of, base)| of / base).collect())
    }
}

/// A group of what could not be measured, and why.
pub fn failed(name: &str, title: &str, why: &str) -> Group {
    Group {
        name: name.into(),
        title: title.into(),
        unit: "us".into(),
        better: Better::Lower,
        baseline: None,
        cases: vec![Case::absent("ringfence", "", format!("failed: {why}"))],
    }
}

/// One start, step by step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    pub name: String,
    /// The command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub name: String,
    /// Which process it was in.
    pub lane: String,
    pub start_us: f64,
    pub end_us: f64,
}

/// Lines in one picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    pub name: String,
    pub title: String,
    /// What is across, and what is up.
    pub x: String,
    pub y: String,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Line {
    pub name: String,
    /// Each: across, up.
    pub points: Vec<(f64, f64)>,
    /// Why there are none, or not as many as of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
}

/// Name and version of the details' format.
pub const DETAILS_FORMAT: &str = "ringfence-bench-details/1";

/// What each sandbox of a stress test went through, beside its report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Details of a stress test")]
pub struct Details {
    /// `ringfence-bench-details/1`.
    pub format: String,
    /// Of every figure: `us`.
    pub unit: String,
    pub sandboxes: Vec<Life>,
}

/// How long each step of one sandbox's life took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Life {
    pub create: f64,
    pub start: f64,
    pub exec: f64,
    pub stop: f64,
    pub remove: f64,
}

/// The schema of details, as `bench/details.schema.json` has it.
pub fn details_schema() -> String {
    text_of(&schemars::schema_for!(Details))
}

/// The schema, as `bench/schema.json` has it.
pub fn schema() -> String {
    text_of(&schemars::schema_for!(Report))
}

fn text_of(schema: &schemars::Schema) -> String {
    let mut text = serde_json::to_string_pretty(schema).unwrap_or_default();
    text.push('\n');
    text
}

impl Report {
    /// Reads one, and says what is wrong with it by name.
    pub fn read(path: &std::path::Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{shown}: {}", e.kind()))?;
        Self::parse(&text).map_err(|e| format!("{shown}: {e}"))
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            format: String,
        }
        let head: Head = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if head.format != FORMAT {
            return Err(format!("format {:?} is not {FORMAT:?}", head.format));
        }
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    pub fn write(&self, path: &std::path::Path) -> Result<(), String> {
        let problem = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let mut text = serde_json::to_string_pretty(self).map_err(|e| problem(&e))?;
        text.push('\n');
        std::fs::write(path, text).map_err(|e| problem(&e))
    }
}
