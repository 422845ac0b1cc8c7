//! One page with everything: `report.html`, which needs nothing beside it, and `report.md`.

mod svg;

use std::fmt::Write as _;
use std::path::Path;

use crate::model::{FORMAT, Report, Timeline};
use crate::suite::density::RATE;
use crate::text;
use crate::{join, published};

/// The result that is made of all others of a directory.
pub const MERGED: &str = "merged.json";

/// Every result of a directory, in the order of their names. Other JSON files are passed over.
pub fn gather(dir: &Path) -> Result<Vec<Report>, String> {
    let problem = |e: std::io::Error| format!("{}: {}", dir.display(), e.kind());
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .map_err(problem)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let mut reports = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file)
            .map_err(|e| format!("{}: {}", file.display(), e.kind()))?;
        // What says that it is one has to be one; MERGED is made of the others.
        if text.contains(FORMAT) && !file.ends_with(MERGED) {
            reports.push(Report::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?);
        }
    }
    if reports.is_empty() {
        return Err(format!("{}: no results here ({FORMAT})", dir.display()));
    }
    Ok(reports)
}

pub fn markdown(reports: &[Report]) -> String {
    let mut out = String::new();
    for report in reports {
        let _ = write!(out, "## {}\n\n{}\n", text::cell(&report.name), text::document(report));
    }
    out
}

/// What would end an attribute or begin a tag.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "
:root{--back:#fff;--text:#1b1f24;--dim:#59636e;--line:#d1d9e0;--box:#f6f8fa;
--c0:#59636e;--c1:#0969da;--c2:#1a7f37;--c3:#9a6700;--c4:#8250df;--c5:#cf222e;--c6:#1b7c83;--c7:#bf3989}
@media(prefers-color-scheme:dark){:root{--back:#0d1117;--text:#e6edf3;--dim:#9198a1;--line:#3d444d;--box:#151b23;
--c0:#9198a1;--c1:#4493f8;--c2:#3fb950;--c3:#d29922;--c4:#ab7df8;--c5:#f85149;--c6:#39c5cf;--c7:#db61a2}}
body{background:var(--back);color:var(--text);font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:0 auto;padding:1.5em}
h1{font-size:1.6em}h2{border-bottom:1px solid var(--line);padding-bottom:.2em;margin-top:2em}h3{margin:1.6em 0 .4em}
figure{margin:0 0 1em;background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.6em}
figcaption{color:var(--dim);font-size:.9em;margin-bottom:.3em}
.two{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:1em}
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--text)}
svg .axis{stroke:var(--line);stroke-width:1}svg .dim{fill:var(--dim)}svg .whisker{stroke:var(--text);stroke-width:1.5;fill:none}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9em;display:block;overflow-x:auto}
td,th{border:1px solid var(--line);padding:.2em .6em;text-align:left}th{background:var(--box)}
.warn{border:2px solid var(--c5);padding:.6em 1em;border-radius:6px}
code{background:var(--box);padding:.1em .3em;border-radius:3px;overflow-wrap:anywhere}
details{margin:.6em 0}
";

fn shell(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
}

/// One page, drawn without scripts and without anything from elsewhere.
pub fn html(reports: &[Report]) -> String {
    let mut body = String::from("<h1>ringfence: benchmarks</h1>\n");
    // Where they are of one machine and binary, what they say together.
    if let Ok(all) = join::merge(reports.to_vec())
        && published::concerns(&all)
    {
        let _ = write!(
            body,
            "<h2>Beside what others publish</h2>\n<p>{}</p>\n{}",
            inline(text::PUBLISHED),
            table(&published::table(&all))
        );
    }
    for report in reports {
        section(&mut body, report);
    }
    shell("ringfence: benchmarks", &body)
}

/// A page with one start alone.
pub fn timeline(timeline: &Timeline) -> String {
    let mut body = String::new();
    let _ = writeln!(body, "<h1>{}</h1>", escaped(&timeline.name));
    figure(&mut body, "step by step", &svg::waterfall(timeline));
    shell(&escaped(&timeline.name), &body)
}

fn figure(out: &mut String, caption: &str, drawn: &str) {
    let caption = escaped(caption);
    let _ = writeln!(out, "<figure><figcaption>{caption}</figcaption>\n{drawn}</figure>");
}

fn section(out: &mut String, report: &Report) {
    let _ = writeln!(out, "<section><h2>{}</h2>", escaped(&report.name));
    if report.tool.profile == crate::model::Profile::Debug {
        out.push_str(
            "<p class=\"warn\">Measured with a debug build: these figures are of no worth.</p>\n",
        );
    }
    let _ = writeln!(out, "<p>{}</p>", inline(&text::provenance(report)));
    if report.groups.iter().any(|g| g.base().is_some() && g.case("ringfence").is_some()) {
        out.push_str(&table(&text::overhead(report)));
    }
    if !report.peers.is_empty() {
        out.push_str("<h3>Side by side</h3>\n");
        let beside = text::beside(report);
        if !beside.is_empty() {
            out.push_str(&table(&beside));
        }
        out.push_str(&table(&text::peers(report)));
    }
    for timeline in &report.timelines {
        let _ = writeln!(out, "<h3>{}</h3>", escaped(&timeline.name));
        figure(out, &timeline.what, &svg::waterfall(timeline));
    }
    if !report.curves.is_empty() {
        out.push_str("<h3>Density</h3>\n<div class=\"two\">\n");
        for curve in &report.curves {
            figure(out, &curve.title, &svg::curve(curve));
        }
        out.push_str("</div>\n");
        let rate = report.curves.iter().filter(|curve| curve.name == RATE);
        for line in rate.flat_map(|curve| &curve.lines) {
            if let Some(why) = &line.absent {
                let _ = writeln!(out, "<p>{}: {}</p>", escaped(&line.name), escaped(why));
            }
        }
    }
    for group in &report.groups {
        let _ = writeln!(out, "<h3>{}</h3>\n<div class=\"two\">", escaped(&group.title));
        figure(
            out,
            "median; the line is where half of the samples lie, the ends are p5 and p95",
            &svg::bars(group),
        );
        if group.cases.iter().any(|c| c.samples.len() > 1) {
            figure(out, "part of the samples below", &svg::cdf(group));
        }
        out.push_str("</div>\n");
    }
    let _ = writeln!(
        out,
        "<details><summary>All figures</summary>\n{}</details></section>",
        tables(&text::tables(report))
    );
}

/// Code and strong words of one line of Markdown that this crate wrote.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in escaped(text).split('`').enumerate() {
        if i % 2 == 1 {
            let _ = write!(out, "<code>{part}</code>");
            continue;
        }
        for (j, part) in part.split("**").enumerate() {
            let _ = if j % 2 == 1 {
                write!(out, "<strong>{part}</strong>")
            } else {
                write!(out, "{part}")
            };
        }
    }
    out
}

/// Tables and headings of Markdown that this crate wrote.
fn tables(markdown: &str) -> String {
    let mut out = String::new();
    for part in markdown.split("\n### ").filter(|p| !p.trim().is_empty()) {
        let (title, rest) = part.trim_start_matches('\n').split_once('\n').unwrap_or((part, ""));
        let _ =
            writeln!(out, "<h4>{}</h4>\n{}", inline(title.trim_start_matches("### ")), table(rest));
    }
    out
}

fn table(markdown: &str) -> String {
    let mut out = String::from("<table>\n");
    for (i, line) in markdown.lines().filter(|l| l.starts_with('|')).enumerate() {
        if i == 1 {
            continue;
        }
        let cell = if i == 0 { "th" } else { "td" };
        out.push_str("<tr>");
        let held = line.replace("\\|", "\u{1}");
        let inner = held.trim_start_matches('|').strip_suffix('|').unwrap_or(&held);
        for text in inner.split('|') {
            let text = text.trim().replace('\u{1}', "|").replace("&lt;", "<").replace("\\\\", "\\");
            let _ = write!(out, "<{cell}>{}</{cell}>", inline(&text));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
    out
}
