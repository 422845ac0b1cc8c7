//! Figures and tables for people: Markdown.

use std::fmt::Write as _;

use crate::model::{Case, Curve, Group, Profile, Report};
use crate::published;
use crate::suite::density::RATE;

/// A figure with its unit, times in the unit that reads best.
pub fn figure(value: f64, unit: &str) -> String {
    let plain = |value: f64| match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if !value.is_finite() {
        return "-".into();
    }
    match unit {
        _ if value == 0.0 => "0".into(),
        "us" if value >= 1e6 => format!("{} s", plain(value / 1e6)),
        "us" if value >= 1e3 => format!("{} ms", plain(value / 1e3)),
        "us" => format!("{} us", plain(value)),
        "KiB" if value >= 10_240.0 => format!("{} MiB", plain(value / 1024.0)),
        "x" => format!("{}x", plain(value)),
        "" => plain(value),
        unit => format!("{} {unit}", plain(value)),
    }
}

/// What stands in a cell of a table: without what would end the cell or be taken for markup.
pub fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;")
}

fn spread(case: &Case) -> String {
    case.summary.map_or_else(String::new, |s| {
        if s.samples < 2 || s.p50 <= 0.0 {
            return String::new();
        }
        format!("± {:.0} %", (s.high - s.low) / 2.0 / s.p50 * 100.0)
    })
}

/// The headline: *Benchmark | Unsandboxed | Sandboxed | Overhead*.
pub fn overhead(report: &Report) -> String {
    let mut out =
        String::from("| Benchmark | Unsandboxed | Sandboxed | Overhead |\n|---|---|---|---|\n");
    for group in report.groups.iter().filter(|g| g.base().is_some()) {
        let (Some(base), Some(own)) = (group.base(), group.case("ringfence")) else { continue };
        let shown = |case: &Case| case.p50().map_or("-".into(), |v| figure(v, &group.unit));
        let factor = group.factor(own).map_or_else(
            || own.absent.as_deref().map_or("-".into(), |why| format!("absent: {}", cell(why))),
            |f| figure(f, "x"),
        );
        let _ = writeln!(
            out,
            "| {} | {} | {} | {factor} |",
            cell(&group.title),
            shown(base),
            shown(own)
        );
    }
    out
}

/// One row for each group, one column for each contestant, what each takes beside the baseline.
pub fn beside(report: &Report) -> String {
    let groups: Vec<&Group> = report.groups.iter().filter(|g| g.base().is_some()).collect();
    if groups.is_empty() {
        return String::new();
    }
    let mut names: Vec<&str> = Vec::new();
    for case in groups.iter().flat_map(|g| &g.cases) {
        if !names.contains(&case.name.as_str()) {
            names.push(&case.name);
        }
    }
    let mut out = format!(
        "| Benchmark | {} |\n|---|{}\n",
        names.iter().map(|name| cell(name)).collect::<Vec<_>>().join(" | "),
        "---|".repeat(names.len())
    );
    for group in groups {
        let _ = write!(out, "| {} |", cell(&group.title));
        for name in &names {
            let case = group.case(name);
            let text = match (case.and_then(Case::p50), case.and_then(|c| group.factor(c))) {
                (Some(v), _) if group.baseline.as_deref() == Some(*name) => figure(v, &group.unit),
                (Some(v), Some(f)) => format!("{} ({})", figure(v, &group.unit), figure(f, "x")),
                (Some(v), None) => figure(v, &group.unit),
                _ => "-".into(),
            };
            let _ = write!(out, " {text} |");
        }
        out.push('\n');
    }
    out
}

/// Everything, group by group.
pub fn tables(report: &Report) -> String {
    let mut out = String::new();
    for group in &report.groups {
        let _ = writeln!(out, "\n### {}\n", cell(&group.title));
        out.push_str("| case | p50 | | min | p90 | p95 | p99 | factor | samples | |\n|---|---|---|---|---|---|---|---|---|---|\n");
        for case in &group.cases {
            let notes = case.notes.join("; ");
            let name = cell(&case.name);
            let Some(s) = case.summary else {
                let why = case.absent.as_deref().unwrap_or("nothing was measured");
                let _ = writeln!(out, "| {name} | absent: {} | | | | | | | | |", cell(why));
                continue;
            };
            let f = |v: f64| figure(v, &group.unit);
            let factor = group.factor(case).map_or(String::new(), |f| figure(f, "x"));
            let _ = writeln!(
                out,
                "| {name} | {} | {} | {} | {} | {} | {} | {factor} | {} | {} |",
                f(s.p50),
                spread(case),
                f(s.min),
                f(s.p90),
                f(s.p95),
                f(s.p99),
                s.samples,
                cell(&notes),
            );
        }
    }
    out
}

/// Who was measured beside it, and who was not and why.
pub fn peers(report: &Report) -> String {
    let mut out = String::from("| Peer | Version | |\n|---|---|---|\n");
    for peer in &report.peers {
        let version = peer.version.as_deref().unwrap_or("-");
        let word = match &peer.absent {
            Some(why) => format!("absent: {}", cell(why)),
            None => cell(&peer.scope),
        };
        let _ = writeln!(out, "| {} | {} | {word} |", cell(&peer.name), cell(version));
    }
    out
}

/// A curve as a table, a column for each line; who is absent, or ends early, and why.
pub fn points(curve: &Curve) -> String {
    let mut across: Vec<f64> =
        curve.lines.iter().flat_map(|line| line.points.iter().map(|p| p.0)).collect();
    across.sort_by(f64::total_cmp);
    across.dedup();
    let names: Vec<String> = curve.lines.iter().map(|line| cell(&line.name)).collect();
    let mut out = format!(
        "| {}: {} | {} |\n|---|{}\n",
        cell(&curve.x),
        cell(&curve.y),
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for x in across {
        let _ = write!(out, "| {x:.0} |");
        for line in &curve.lines {
            let y = line.points.iter().find(|p| p.0.total_cmp(&x).is_eq()).map(|p| p.1);
            let _ = write!(out, " {} |", y.map_or("-".into(), |y| figure(y, "")));
        }
        out.push('\n');
    }
    for line in &curve.lines {
        if let Some(why) = &line.absent {
            let _ = writeln!(out, "\n- {}: {}", cell(&line.name), cell(why));
        }
    }
    out
}

/// Date, machine, binary, command: what every figure needs beside it.
pub fn provenance(report: &Report) -> String {
    let (m, t, s) = (&report.machine, &report.tool, &report.settings);
    let commit =
        t.commit.as_deref().map(|c| format!(" ({})", &c[..c.len().min(12)])).unwrap_or_default();
    let profile = match t.profile {
        Profile::Release => "",
        Profile::Debug => ", **a debug build: these figures are of no worth**",
        Profile::Unknown => ", build unknown",
    };
    let kept = match s.processors.as_slice() {
        [] => String::new(),
        some => format!(", kept to processors {some:?}"),
    };
    format!(
        "Measured {} as {} with ringfence {}{commit}{profile}, on {}, Linux {}, {} x {}, {} MiB: `{}`. {} rounds after {} that do not count, cases of a group in turn{kept}; load {}.",
        report.started,
        m.user,
        t.version,
        m.system,
        m.kernel,
        m.processors,
        m.processor,
        m.memory_mib,
        report.command.replace('`', "'"),
        s.rounds,
        s.warmups,
        m.load,
    )
}

/// What a table with others' figures needs beside it.
pub const PUBLISHED: &str =
    "As published by them, on their machines; never measured here. The last column is of this run.";

/// What a reader wants first: the headline, the peers, what others publish.
pub fn headline(report: &Report) -> String {
    let mut out = format!("{}\n\n{}", provenance(report), overhead(report));
    if !report.peers.is_empty() {
        let _ = write!(out, "\n{}\n{}", beside(report), peers(report));
    }
    for curve in report.curves.iter().filter(|curve| curve.name == RATE) {
        let _ = write!(out, "\n### {}\n\n{}", cell(&curve.title), points(curve));
    }
    if published::concerns(report) {
        let _ = write!(
            out,
            "\n### Beside what others publish\n\n{PUBLISHED}\n\n{}",
            published::table(report)
        );
    }
    out
}

/// The report as one Markdown document.
pub fn document(report: &Report) -> String {
    let mut out = headline(report);
    out.push_str(&tables(report));
    for curve in report.curves.iter().filter(|curve| curve.name != RATE) {
        let _ = write!(out, "\n### {}\n\n{}", cell(&curve.title), points(curve));
    }
    for timeline in &report.timelines {
        let _ = writeln!(
            out,
            "\n### {}\n\n| step | process | from | for |\n|---|---|---|---|",
            cell(&timeline.name)
        );
        for step in &timeline.steps {
            let (from, took) =
                (figure(step.start_us, "us"), figure(step.end_us - step.start_us, "us"));
            let _ =
                writeln!(out, "| {} | {} | {from} | {took} |", cell(&step.name), cell(&step.lane));
        }
    }
    out
}
