//! What others publish beside what was measured here: `bench/published.toml`.
//!
//! A row's last column is text with figures in it, `{group|case|figure}`, taken from the results. What a
//! result does not have is said, with how it is measured; nothing is typed by hand.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::model::Report;
use crate::suite::Part;
use crate::text::{cell, figure};

/// One published figure, or a few that belong together.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub what: String,
    pub published: String,
    pub by: String,
    /// What stands beside it.
    pub here: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    row: Vec<Row>,
}

const ELSEWHERE: &str = "not in this run: ";

const TEXT: &str = include_str!("../../../bench/published.toml");

/// Every row, in the order of the table.
pub fn rows() -> Vec<Row> {
    toml::from_str::<Rows>(TEXT).map(|all| all.row).unwrap_or_default()
}

/// A figure that a row asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub group: &'a str,
    pub case: &'a str,
    pub figure: &'a str,
}

/// A row's last column in pieces: text, or a figure that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Wanted(Wanted<'a>),
}

impl Row {
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        for part in self.here.split_inclusive('}') {
            let (text, wanted) = match part.split_once('{') {
                Some((text, wanted)) => (text, wanted.strip_suffix('}')),
                None => (part, None),
            };
            pieces.push(Piece::Text(text));
            let mut words = wanted.unwrap_or_default().split('|');
            if let (Some(group), Some(case), Some(figure)) =
                (words.next(), words.next(), words.next())
            {
                pieces.push(Piece::Wanted(Wanted { group, case, figure }));
            }
        }
        pieces
    }

    /// What was measured, or which part of the suite measures it. A figure alone may be missing where this
    /// machine cannot have it.
    pub fn here(&self, report: &Report) -> String {
        let mut out = String::new();
        for piece in self.pieces() {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Wanted(wanted) => match wanted.found(report) {
                    Found::Figure(text) => out.push_str(&text),
                    Found::Absent(why) => {
                        let _ = write!(out, "(not here: {why})");
                    }
                    Found::Elsewhere => {
                        let part = wanted.group.split('/').next().unwrap_or_default();
                        return format!("{ELSEWHERE}`ringfence bench {part}`");
                    }
                },
            }
        }
        out
    }
}

enum Found {
    Figure(String),
    /// It was tried.
    Absent(String),
    /// Nobody tried.
    Elsewhere,
}

impl Wanted<'_> {
    fn found(&self, report: &Report) -> Found {
        // Of a curve: how far it goes, or how high it begins.
        if let "most" | "first" = self.figure {
            let curve = report.curves.iter().find(|c| c.name == self.group);
            let line = curve.and_then(|c| c.lines.iter().find(|l| l.name == self.case));
            let found = line.and_then(|l| match self.figure {
                "most" => l.points.last().map(|(x, _)| format!("{x:.0}")),
                _ => l.points.first().map(|(_, y)| figure(*y, "")),
            });
            let absent = line.and_then(|l| l.absent.clone()).map(Found::Absent);
            return found.map(Found::Figure).or(absent).unwrap_or(Found::Elsewhere);
        }
        let Some(group) = report.groups.iter().find(|g| g.name == self.group) else {
            // Tools that are not on the machine have no groups, where the part was measured.
            let part = self.group.split('/').next().unwrap_or_default();
            let measured = report.groups.iter().any(|g| g.name.split('/').next() == Some(part));
            let tool = self.group.split('/').nth(1).unwrap_or_default();
            return if measured {
                Found::Absent(format!("{tool} was not measured"))
            } else {
                Found::Elsewhere
            };
        };
        let Some(case) = group.case(self.case) else { return Found::Elsewhere };
        let Some(s) = case.summary else {
            return Found::Absent(case.absent.clone().unwrap_or_else(|| "nothing came".into()));
        };
        let shown = |value: f64| figure(value, &group.unit);
        let factor = group.factor(case);
        Found::Figure(match self.figure {
            "p50" => shown(s.p50),
            "p95" => shown(s.p95),
            "p99" => shown(s.p99),
            "factor" => factor.map_or_else(|| "no baseline".into(), |f| figure(f, "x")),
            "percent" => factor
                .map_or_else(|| "no baseline".into(), |f| format!("{:+.0} %", (f - 1.0) * 100.0)),
            other => format!("no figure {other}"),
        })
    }
}

/// Whether a report has anything that stands beside a published figure.
pub fn concerns(report: &Report) -> bool {
    let has = |w: &Wanted<'_>| report.groups.iter().any(|g| g.name == w.group);
    rows().iter().flat_map(Row::pieces).any(|p| matches!(p, Piece::Wanted(w) if has(&w)))
}

/// The table, as Markdown. Of a part of the suite only the rows that it measures.
pub fn table(report: &Report) -> String {
    let part = Part::ALL.iter().any(|part| part.name() == report.name);
    let mut out = String::from("| what | published | by | here |\n|---|---|---|---|\n");
    for row in rows() {
        let here = row.here(report);
        if part && (here.starts_with(ELSEWHERE) || !row.here.contains('{')) {
            continue;
        }
        let [what, published, by, here] =
            [&row.what, &row.published, &row.by, &here].map(|text| cell(text));
        let _ = writeln!(out, "| {what} | {published} | {by} | {here} |");
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;
    use crate::model::{Better, Case, Curve, Group, Line};

    fn wanted(rows: &[Row]) -> Vec<Wanted<'_>> {
        let of = |p| if let Piece::Wanted(w) = p { Some(w) } else { None };
        rows.iter().flat_map(Row::pieces).filter_map(of).collect()
    }

    /// A report with everything that the rows ask for.
    fn full() -> Report {
        let rows = rows();
        let mut report = Report::default();
        for w in wanted(&rows) {
            if let "most" | "first" = w.figure {
                let points = vec![(1.0, 9.0), (2000.0, 7.0)];
                let line = Line { name: w.case.into(), points, absent: None };
                let name = w.group.into();
                report.curves.push(Curve { name, lines: vec![line], ..Curve::default() });
                continue;
            }
            if !report.groups.iter().any(|g| g.name == w.group) {
                let cases = vec![Case::of("host", "", vec![1000.0; 3])];
                let (name, baseline) = (w.group.to_owned(), Some("host".to_owned()));
                let (title, unit) = (w.group.to_owned(), "us".to_owned());
                let better = Better::Lower;
                report.groups.push(Group { name, title, unit, better, baseline, cases });
            }
            let group = report.groups.iter_mut().find(|g| g.name == w.group).unwrap();
            if group.case(w.case).is_none() {
                group.cases.push(Case::of(w.case, "", vec![4000.0; 3]));
            }
        }
        report
    }

    #[test]
    fn every_row_has_a_figure_or_a_sentence() {
        let all: Rows = toml::from_str(TEXT).unwrap();
        assert!(all.row.len() >= 25);
        let figures = ["p50", "p95", "p99", "factor", "percent", "most", "first"];
        for row in &all.row {
            for text in [&row.what, &row.published, &row.by] {
                assert!(!text.is_empty() && !text.contains('{'), "{row:?}");
            }
            let wants = wanted(std::slice::from_ref(row));
            assert_eq!(wants.len(), row.here.matches('{').count(), "{}", row.what);
            assert!(!wants.is_empty() || row.here.starts_with("not measured: "), "{}", row.what);
            for w in wants {
                assert!(figures.contains(&w.figure), "{w:?}");
                let part = w.group.split('/').next();
                assert!(Part::ALL.iter().any(|p| Some(p.name()) == part), "{w:?}");
            }
        }
    }

    #[test]
    fn figures_come_from_the_results() {
        let report = full();
        assert!(concerns(&report) && !concerns(&Report::default()));
        let table = table(&report);
        assert!(table.contains("| 4.00 ms, 4.00x |"), "{table}");
        assert!(table.contains("+300 %") && table.contains("| 2000 made"), "{table}");
        assert!(table.contains(", 9.00 a second of `true`"), "{table}");
        assert!(!table.contains("not in this run") && !table.contains("not here"), "{table}");
        assert!(!table.contains('{'), "{table}");
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let mut report = full();
        let none = super::table(&Report::default());
        assert!(none.contains("not in this run: `ringfence bench cold`"), "{none}");
        let mut part = full();
        part.groups.retain(|g| g.name.starts_with("warm/"));
        part.name = "warm".into();
        let part = super::table(&part);
        assert!(part.contains("warm `true`") && !part.contains("not in this run"), "{part}");
        report.groups.retain(|g| g.name != "cold/git");
        assert!(super::table(&report).contains("(not here: git was not measured)"));
        let group = report.groups.iter_mut().find(|g| g.name == "files/metadata").unwrap();
        let at = group.cases.iter().position(|c| c.name == "ringfence exact").unwrap();
        group.cases[at] = Case::absent("ringfence exact", "", "no /dev/fuse");
        assert!(super::table(&report).contains("(not here: no /dev/fuse)"));
    }
}
