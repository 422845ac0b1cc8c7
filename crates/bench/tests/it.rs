//! Results as they were recorded, the schema that they keep to, and the page drawn of them.
#![allow(clippy::unwrap_used)] // tests

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringfence_bench::compare::{Options, Verdict, compare};
use ringfence_bench::model::{Case, Curve, Line, Report, Step, Timeline, details_schema, schema};
use ringfence_bench::page;

fn bench() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench")
}

fn recorded(name: &str) -> Report {
    Report::read(&bench().join("recorded").join(name)).unwrap()
}

fn names() -> Vec<String> {
    let all = std::fs::read_dir(bench().join("recorded")).unwrap().flatten();
    let mut names: Vec<String> = all.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[test]
fn the_schema_in_the_tree_is_the_models() {
    let there = std::fs::read_to_string(bench().join("schema.json")).unwrap();
    assert!(there == schema(), "ringfence bench schema >bench/schema.json");
    let there = std::fs::read_to_string(bench().join("details.schema.json")).unwrap();
    assert!(
        there == details_schema(),
        "ringfence bench schema --details >bench/details.schema.json"
    );
}

#[test]
fn recorded_results_keep_to_the_schema_and_others_do_not() {
    let schema = serde_json::from_str(&schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(!names().is_empty());
    for name in names() {
        let text = std::fs::read_to_string(bench().join("recorded").join(&name)).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let problems: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(problems.is_empty(), "{name}: {problems:?}");
        let report = Report::parse(&text).unwrap();
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            value,
            "{name} is read as it was written"
        );
        value["tool"]["profile"] = "quick".into();
        assert!(!validator.is_valid(&value), "{name}: the control");
    }
}

#[test]
fn what_is_no_result_is_refused_by_its_format() {
    for text in ["{}", r#"{"format": "ringfence-bench/0"}"#] {
        assert!(Report::parse(text).unwrap_err().contains("ringfence-bench/1"));
    }
    assert!(Report::parse("[").is_err());
}

/// `first.json` and `again.json` are two runs of one build on a machine with much else to do, `slower.json`
/// is of the same build with a busy loop of 4 ms before it. A twentieth, which such a machine hides, is
/// found in `crates/bench/src/compare_tests.rs`.
#[test]
fn two_recorded_runs_of_one_build_are_quiet_and_a_planted_regression_is_found() {
    let (first, again, slower) =
        (recorded("first.json"), recorded("again.json"), recorded("slower.json"));
    let quiet = compare(&first, &again, &Options::default());
    assert!(!quiet.rows.is_empty());
    for row in &quiet.rows {
        assert!(!matches!(row.verdict, Verdict::Slower | Verdict::Faster), "{}", quiet.markdown());
    }
    assert!(!quiet.regressed());
    for before in [&first, &again] {
        let found = compare(before, &slower, &Options::default());
        assert!(found.regressed(), "{}", found.markdown());
        let worse = found.rows.iter().filter(|r| r.verdict == Verdict::Slower);
        for row in worse {
            assert!(row.own, "only what was slowed down: {}", found.markdown());
            assert!(row.low > 0.0, "{}", found.markdown());
        }
    }
}

/// Everything that a page can show.
fn full() -> Report {
    let mut report = recorded("first.json");
    let step = |name: &str, start_us, end_us| Step {
        name: name.into(),
        lane: "supervisor".into(),
        start_us,
        end_us,
    };
    report.timelines = vec![Timeline {
        name: "a cold start".into(),
        what: "ringfence run -- true".into(),
        steps: vec![
            step("policy", 0.0, 400.0),
            step("plan", 400.0, 1500.0),
            step("command", 1500.0, 4000.0),
        ],
    }];
    let line = |name: &str, by: f64| Line {
        name: name.into(),
        points: [1.0, 2.0, 4.0, 8.0, 16.0].iter().map(|x| (*x, x * by)).collect(),
        absent: None,
    };
    report.curves = vec![Curve {
        name: "density/rate".into(),
        title: "starts a second".into(),
        x: "at a time".into(),
        y: "starts".into(),
        lines: vec![
            line("host", 100.0),
            line("ringfence", 20.0),
            Line {
                name: "tired".into(),
                points: vec![(1.0, 9.0)],
                absent: Some("no <more>".into()),
            },
        ],
    }];
    let hostile = "<script>alert(1)</script>|`x`";
    report.groups[0].cases.push(Case::absent(hostile, "", hostile));
    report
}

#[test]
fn a_page_needs_nothing_beside_it_and_runs_nothing() {
    let html = page::html(&[full()]);
    for word in ["<script", "http://", "src=", "@import", "url("] {
        assert!(!html.contains(word), "{word}");
    }
    assert!(html.contains("&lt;script&gt;"), "what was absent is named");
    assert!(html.contains("tired: no &lt;more&gt;"), "and who ended early");
    for what in [
        "class=\"bar\"",
        "class=\"curve\"",
        "class=\"whisker\"",
        "<circle",
        "prefers-color-scheme:dark",
    ] {
        assert!(html.contains(what), "{what}");
    }
    let markdown = page::markdown(&[full()]);
    assert!(markdown.contains("| Benchmark | Unsandboxed | Sandboxed | Overhead |"));
    assert!(!markdown.contains("<script"));
    assert!(markdown.contains("| at a time: starts | host | ringfence | tired |"), "{markdown}");
    assert!(markdown.contains("| 2 | 200 | 40.0 | - |"), "{markdown}");
    assert!(markdown.contains("- tired: no &lt;more>"), "{markdown}");
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Takes a picture of a page, as red, green and blue of each point, and how many are in a row.
fn picture(dir: &Path, page: &Path, dark: bool) -> Option<(Vec<[u8; 3]>, usize)> {
    let Some(chromium) = program("chromium") else {
        println!("skipped: no chromium to draw the page with");
        return None;
    };
    let shot = dir.join(if dark { "dark.png" } else { "light.png" });
    let mut command = Command::new("timeout");
    command.arg("120").arg(chromium);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--window-size=1200,4000",
    ]);
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    command.arg(format!("--screenshot={}", shot.display()));
    command.arg(format!("file://{}", page.display()));
    command.env("HOME", dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(shot.is_file(), "chromium drew nothing ({}): {said}", output.status);
    if let Some(kept) = std::env::var_os("RINGFENCE_KEEP_PICTURES") {
        std::fs::copy(&shot, Path::new(&kept).join(shot.file_name().unwrap())).unwrap();
    }
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&shot).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    let step = info.color_type.samples();
    let points = bytes[..info.buffer_size()].chunks_exact(step).map(|p| [p[0], p[1], p[2]]);
    Some((points.collect(), info.width as usize))
}

/// The plots are there: areas in the colours that only they have.
#[test]
fn plots_are_drawn_light_and_dark() {
    let dir = tempfile::Builder::new().prefix("ringfence-bench-page").tempdir().unwrap();
    let file = dir.path().join("report.html");
    std::fs::write(&file, page::html(&[full()])).unwrap();
    // Of the style: background; the baseline's and ringfence's bars are these, mixed with the box's own.
    for (dark, back, base, own) in [
        (false, [255, 255, 255], [0x59, 0x63, 0x6e], [0x09, 0x69, 0xda]),
        (true, [0x0d, 0x11, 0x17], [0x91, 0x98, 0xa1], [0x44, 0x93, 0xf8]),
    ] {
        let Some((points, width)) = picture(dir.path(), &file, dark) else { return };
        assert_eq!(width, 1200);
        let near = |a: [u8; 3], b: [u8; 3]| (0..3).all(|i| a[i].abs_diff(b[i]) <= 6);
        let count = |of: [u8; 3]| points.iter().filter(|p| near(**p, of)).count();
        // As the browser mixes them: three quarters of the colour over the box.
        let boxed: [u8; 3] = if dark { [0x15, 0x1b, 0x23] } else { [0xf6, 0xf8, 0xfa] };
        let mixed = |c: [u8; 3]| {
            [0, 1, 2].map(|i| (u16::from(c[i]) * 3 / 4 + u16::from(boxed[i]) / 4) as u8)
        };
        assert!(count(back) > points.len() / 10, "{dark}: the page is in its colours");
        assert!(count(mixed(base)) > 100, "{dark}: bars of the baseline: {}", count(mixed(base)));
        assert!(count(mixed(own)) > 1000, "{dark}: bars of ringfence: {}", count(mixed(own)));
        assert!(count(own) > 300, "{dark}: curves of ringfence: {}", count(own));
        // Without the plots nothing of that is there.
        let empty = dir.path().join("empty.html");
        let html = page::html(&[full()]);
        let without: String = html
            .split("<svg")
            .map(|p| p.split_once("</svg>").map_or(p, |(_, rest)| rest))
            .collect();
        std::fs::write(&empty, without).unwrap();
        let Some((control, _)) = picture(dir.path(), &empty, dark) else { return };
        let colours = control.iter().filter(|p| near(**p, mixed(own))).count();
        assert!(colours < 100, "{dark}: the control has {colours} points in ringfence's colour");
    }
}
