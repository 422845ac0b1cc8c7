//! The pictures: bars with spread, distributions, curves, waterfalls. Plain SVG, colours by the page.

use std::fmt::Write as _;

use super::escaped;
use crate::model::{Case, Curve, Group, Timeline};
use crate::stats;
use crate::text::figure;

const WIDTH: f64 = 520.0;
/// Of what has the page's whole width, so that words have the same size everywhere.
const WIDE: f64 = 1060.0;
/// Colours of the page, `--c0` for the baseline.
const COLOURS: usize = 8;

fn colour(i: usize) -> String {
    let i = if i < COLOURS { i } else { 1 + (i - 1) % (COLOURS - 1) };
    format!("var(--c{i})")
}

/// Dashes, where colours begin again.
fn dash(i: usize) -> &'static str {
    match i.saturating_sub(1) / (COLOURS - 1) {
        0 => "",
        1 => " stroke-dasharray=\"6 3\"",
        _ => " stroke-dasharray=\"2 2\"",
    }
}

fn open(height: f64, label: &str) -> String {
    open_as(WIDTH, height, label)
}

fn open_as(width: f64, height: f64, label: &str) -> String {
    let label = escaped(label);
    format!("<svg viewBox=\"0 0 {width} {height:.0}\" role=\"img\" aria-label=\"{label}\">\n")
}

/// A round number at or above: 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    if !value.is_finite() || value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|m| *m >= value * 0.999_999)
        .unwrap_or(value)
}

/// Marks of a linear axis from 0.
fn marks(most: f64) -> Vec<f64> {
    let step = round_up(most / 4.5);
    (0..=20).map(|i| f64::from(i) * step).take_while(|m| *m <= most * 1.000_1).collect()
}

/// A scale, linear or by powers of ten.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln().max(1e-9)
        } else {
            (value - self.low) / (self.high - self.low).max(1e-9)
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn marks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return marks(self.high);
        }
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = if decades < 1.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let first = self.low.log10().floor() as i32;
        (first..first + 12)
            .flat_map(|p| steps.iter().map(move |s| s * 10_f64.powi(p)))
            .filter(|m| *m >= self.low * 0.999 && *m <= self.high * 1.001)
            .collect()
    }
}

/// Medians as bars from 0, or by powers of ten where they differ by more than that.
pub fn bars(group: &Group) -> String {
    const LEFT: f64 = 150.0;
    const ROW: f64 = 24.0;
    let measured: Vec<(usize, &Case)> =
        group.cases.iter().enumerate().filter(|(_, c)| c.summary.is_some()).collect();
    let ends = |case: &Case| {
        let s = case.summary?;
        let sorted = stats::sorted(&case.samples);
        let or = |q, other| if sorted.len() > 1 { stats::quantile(&sorted, q) } else { other };
        Some((or(0.05, s.p50), or(0.25, s.p50), s.p50, or(0.75, s.p50), or(0.95, s.p50)))
    };
    let all: Vec<_> = measured.iter().filter_map(|(_, c)| ends(c)).collect();
    let most = all.iter().map(|e| e.4).fold(0.0, f64::max);
    let least = all.iter().map(|e| e.0).fold(f64::INFINITY, f64::min);
    let logarithmic = least > 0.0 && most / least > 25.0;
    let low = if logarithmic { 10_f64.powf((least * 0.7).log10().floor()) } else { 0.0 };
    let high = if most > 0.0 { most * 1.02 } else { 1.0 };
    let scale = Scale { low, high, logarithmic, from: LEFT, to: WIDTH - 80.0 };
    let height = ROW * (measured.len() as f64) + 34.0;
    let mut out = open(height, &group.title);
    for mark in scale.marks() {
        let (x, end) = (scale.at(mark), height - 26.0);
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"4\" y2=\"{end:.1}\"/>"
        );
        let text = figure(mark, &group.unit);
        let _ = writeln!(
            out,
            "<text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            height - 10.0
        );
    }
    for (row, (i, case)) in measured.iter().enumerate() {
        let Some((p5, p25, p50, p75, p95)) = ends(case) else { continue };
        let (y, middle) = (row as f64 * ROW + 6.0, row as f64 * ROW + 6.0 + ROW * 0.35);
        let (x, end) = (scale.from, scale.at(p50));
        let name = escaped(&case.name);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 8.0,
            middle + 4.0
        );
        let _ = writeln!(
            out,
            "<rect class=\"bar\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" style=\"fill:{}\" opacity=\".75\"><title>{name}: {}</title></rect>",
            (end - x).max(1.0),
            ROW * 0.7,
            colour(*i),
            escaped(&case.what),
        );
        let [far, near, beyond, last] = [p5, p25, p75, p95].map(|p| scale.at(p));
        let _ = writeln!(
            out,
            "<path class=\"whisker\" d=\"M{far:.1} {0:.1}V{1:.1}M{far:.1} {middle:.1}H{near:.1}M{beyond:.1} {middle:.1}H{last:.1}M{last:.1} {0:.1}V{1:.1}\"/><path class=\"whisker\" style=\"stroke-width:4\" d=\"M{near:.1} {middle:.1}H{2:.1}\"/>",
            middle - 4.0,
            middle + 4.0,
            beyond.max(near + 1.0),
        );
        let value = figure(p50, &group.unit);
        let _ = writeln!(
            out,
            "<text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\">{value}</text>",
            last.max(end) + 6.0,
            middle + 4.0
        );
    }
    out.push_str("</svg>\n");
    out
}

/// Left, top, right, bottom of a plot with two axes, and room below for names.
struct Frame {
    x: Scale,
    y: Scale,
    height: f64,
}

fn frame(out: &mut String, frame: &Frame, x: &dyn Fn(f64) -> String, y: &dyn Fn(f64) -> String) {
    let (left, right, top, bottom) = (frame.x.from, frame.x.to, frame.y.to, frame.y.from);
    for mark in frame.x.marks() {
        let at = frame.x.at(mark);
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/><text class=\"dim\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            escaped(&x(mark))
        );
    }
    for mark in frame.y.marks() {
        let at = frame.y.at(mark);
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            escaped(&y(mark))
        );
    }
}

fn names(out: &mut String, names: &[(usize, &str)], top: f64) {
    for (at, (i, name)) in names.iter().enumerate() {
        let (x, y) = (50.0 + (at % 3) as f64 * 155.0, top + (at / 3) as f64 * 17.0);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" style=\"stroke:{}\" stroke-width=\"3\"{}/><text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            x + 18.0,
            y - 4.0,
            y - 4.0,
            colour(*i),
            dash(*i),
            x + 23.0,
            escaped(name)
        );
    }
}

/// What part of the samples is below: steps, across by powers of ten.
pub fn cdf(group: &Group) -> String {
    let drawn: Vec<(usize, &Case)> =
        group.cases.iter().enumerate().filter(|(_, c)| c.samples.len() > 1).collect();
    let values = || drawn.iter().flat_map(|(_, c)| &c.samples).copied().filter(|v| *v > 0.0);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if high <= 0.0 {
        return String::new();
    }
    let rows = drawn.len().div_ceil(3) as f64;
    let (low, high) = (low * 0.95, (high * 1.05).max(low * 1.2));
    let x = Scale { low, high, logarithmic: high / low > 3.0, from: 50.0, to: WIDTH - 14.0 };
    let x = if x.logarithmic { x } else { Scale { low: 0.0, ..x } };
    let y = Scale { low: 0.0, high: 1.0, logarithmic: false, from: 200.0, to: 8.0 };
    let all = Frame { x, y, height: 232.0 + rows * 17.0 };
    let mut out = open(all.height, &format!("distribution: {}", group.title));
    frame(&mut out, &all, &|v| figure(v, &group.unit), &|v| format!("{:.0} %", v * 100.0));
    for (i, case) in &drawn {
        let sorted = stats::sorted(&case.samples);
        let mut path = format!("M{:.1} {:.1}", all.x.at(sorted[0]), all.y.at(0.0));
        for (k, value) in sorted.iter().enumerate() {
            let up = (k + 1) as f64 / sorted.len() as f64;
            let _ = write!(path, "H{:.1}V{:.1}", all.x.at(*value), all.y.at(up));
        }
        let _ = writeln!(
            out,
            "<path class=\"curve\" d=\"{path}\" fill=\"none\" style=\"stroke:{}\" stroke-width=\"1.8\"{}/>",
            colour(*i),
            dash(*i)
        );
    }
    let named: Vec<(usize, &str)> = drawn.iter().map(|(i, c)| (*i, c.name.as_str())).collect();
    names(&mut out, &named, 240.0);
    out.push_str("</svg>\n");
    out
}

/// Lines through points.
pub fn curve(curve: &Curve) -> String {
    let points = || curve.lines.iter().flat_map(|l| &l.points);
    let far = points().map(|p| p.0).fold(1.0, f64::max);
    let near = points().map(|p| p.0).fold(f64::INFINITY, f64::min).max(1.0);
    let most = points().map(|p| p.1).fold(0.0, f64::max);
    let rows = curve.lines.len().div_ceil(3) as f64;
    let doubling = near <= 2.0 && far >= 16.0 && points().count() <= 16 * curve.lines.len();
    let x = Scale {
        low: if doubling { near } else { 0.0 },
        high: far,
        logarithmic: doubling,
        from: 60.0,
        to: WIDTH - 14.0,
    };
    let y = Scale {
        low: 0.0,
        high: if most > 0.0 { most * 1.05 } else { 1.0 },
        logarithmic: false,
        from: 200.0,
        to: 20.0,
    };
    let all = Frame { x, y, height: 250.0 + rows * 17.0 };
    let mut out = open(all.height, &curve.title);
    let plain = |v: f64| if v >= 10.0 || v == 0.0 { format!("{v:.0}") } else { format!("{v:.2}") };
    frame(&mut out, &all, &plain, &plain);
    let _ = writeln!(
        out,
        "<text class=\"dim\" x=\"6\" y=\"12\">{}</text><text class=\"dim\" x=\"{:.1}\" y=\"234\" text-anchor=\"end\">{}</text>",
        escaped(&curve.y),
        WIDTH - 14.0,
        escaped(&curve.x)
    );
    for (i, line) in curve.lines.iter().enumerate() {
        let at = if curve.lines.len() == 1 { 1 } else { i };
        let mut path = String::new();
        for (k, (x, y)) in line.points.iter().enumerate() {
            let (x, y) = (all.x.at(*x), all.y.at(*y));
            let _ = write!(path, "{}{x:.1} {y:.1}", if k == 0 { "M" } else { "L" });
            let _ = writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" style=\"fill:{}\"/>",
                colour(at)
            );
        }
        let _ = writeln!(
            out,
            "<path class=\"curve\" d=\"{path}\" fill=\"none\" style=\"stroke:{}\" stroke-width=\"2\"{}/>",
            colour(at),
            dash(at)
        );
    }
    let single = curve.lines.len() == 1;
    let named: Vec<(usize, &str)> = curve
        .lines
        .iter()
        .enumerate()
        .map(|(i, l)| (if single { 1 } else { i }, l.name.as_str()))
        .collect();
    names(&mut out, &named, 258.0);
    out.push_str("</svg>\n");
    out
}

/// Steps of a start as bars, one below the other, each in its process's colour.
pub fn waterfall(timeline: &Timeline) -> String {
    const LEFT: f64 = 260.0;
    const ROW: f64 = 18.0;
    let most = timeline.steps.iter().map(|s| s.end_us).fold(1.0, f64::max);
    let scale = Scale { low: 0.0, high: most, logarithmic: false, from: LEFT, to: WIDE - 70.0 };
    let mut lanes: Vec<&str> = Vec::new();
    for step in &timeline.steps {
        if !lanes.contains(&step.lane.as_str()) {
            lanes.push(&step.lane);
        }
    }
    let end = timeline.steps.len() as f64 * ROW + 8.0;
    let mut out = open_as(WIDE, end + 46.0, &timeline.name);
    for mark in scale.marks() {
        let x = scale.at(mark);
        let _ = writeln!(
            out,
            "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"4\" y2=\"{end:.1}\"/><text class=\"dim\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            end + 15.0,
            figure(mark, "us")
        );
    }
    for (row, step) in timeline.steps.iter().enumerate() {
        let lane = lanes.iter().position(|l| *l == step.lane).unwrap_or(0) + 1;
        let y = row as f64 * ROW + 6.0;
        let (from, to) = (scale.at(step.start_us), scale.at(step.end_us));
        let took = figure(step.end_us - step.start_us, "us");
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"bar\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" style=\"fill:{}\"/><text class=\"dim\" x=\"{:.1}\" y=\"{:.1}\">{took}</text>",
            LEFT - 8.0,
            y + ROW * 0.6,
            escaped(&step.name),
            (to - from).max(1.0),
            ROW * 0.7,
            colour(lane),
            to + 5.0,
            y + ROW * 0.6,
        );
    }
    let named: Vec<(usize, &str)> = lanes.iter().enumerate().map(|(i, l)| (i + 1, *l)).collect();
    names(&mut out, &named, end + 38.0);
    out.push_str("</svg>\n");
    out
}
