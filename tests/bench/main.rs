//! A little of the whole suite, to see that it works: nothing is passed or failed by a time. The components
//! (`bench/components.rs`) and the stress tests (`tests/stress`) do the same for themselves.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

fn binary() -> PathBuf {
    std::env::var_os("RINGFENCE_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ringfence")), PathBuf::from)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn place() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ringfence-bench-smoke").tempdir().unwrap()
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Whether a document keeps to the schema in the tree.
fn problems(document: &Value) -> Vec<String> {
    static VALIDATOR: OnceLock<jsonschema::Validator> = OnceLock::new();
    let validator = VALIDATOR.get_or_init(|| {
        jsonschema::validator_for(&read(&root().join("bench/schema.json"))).unwrap()
    });
    validator.iter_errors(document).map(|e| e.to_string()).collect()
}

fn read(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap()
}

/// Whether the binary says that its figures are of no worth.
fn is_debug() -> bool {
    let output = run(Command::new(binary()).args(["bench", "about"]));
    String::from_utf8_lossy(&output.stdout).contains("debug")
}

#[test]
fn a_debug_build_is_not_measured_unless_somebody_insists() {
    if !is_debug() {
        println!("skipped: {} is no debug build", binary().display());
        return;
    }
    let dir = place();
    let mut command = Command::new(binary());
    command.args(["bench", "quick", "--peers", "none", "--output"]).arg(dir.path());
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(125), "{}", said(&output));
    assert!(said(&output).contains("debug build"), "{}", said(&output));
    assert!(!dir.path().join("quick.json").exists());
}

/// One command, and there is the whole report.
#[test]
fn the_script_measures_every_part_and_draws_the_report() {
    let dir = place();
    let mut command = Command::new(root().join("scripts/benchmark.sh"));
    command.args(["--quick", "--runs", "1", "--peers", "unshare", "--network", "--allow-debug"]);
    command.arg("--binary").arg(binary()).arg("--output").arg(dir.path());
    let output = run(&mut command);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("| Benchmark | Unsandboxed | Sandboxed | Overhead |"));
    for part in ["cold", "warm", "server", "files", "network", "density", "merged"] {
        let file = dir.path().join(format!("{part}.json"));
        let document = read(&file);
        assert!(problems(&document).is_empty(), "{part}: {:?}", problems(&document));
        let groups = document["groups"].as_array().unwrap();
        assert!(!groups.is_empty(), "{part}");
        for group in groups {
            let cases = group["cases"].as_array().unwrap();
            let own = cases.iter().filter(|c| c["name"].as_str().unwrap().contains("ringfence"));
            for case in own {
                // FUSE is not everywhere; everything else of ringfence's own has to work.
                let exact = case["name"] == "ringfence exact";
                assert!(exact || case.get("absent").is_none(), "{}: {case}", group["name"]);
            }
        }
    }
    let merged = read(&dir.path().join("merged.json"));
    assert!(merged["peers"].as_array().is_some_and(|p| p[0]["name"] == "unshare"));
    let lanes = merged["timelines"][0]["steps"].as_array().unwrap();
    for lane in ["supervisor", "init", "command"] {
        assert!(lanes.iter().any(|step| step["lane"] == lane), "{lane}: {lanes:?}");
    }
    // Every published figure has its own beside it, but for tools that are not measured in little time.
    let text = std::fs::read_to_string(dir.path().join("merged.md")).unwrap();
    assert!(text.contains("### Beside what others publish"), "{text}");
    assert!(!text.contains("not in this run"), "{text}");
    let html = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("Beside what others publish") && html.contains("class=\"bar\""));
    // A control of the schema, and of whoever reads results.
    let mut broken = merged.clone();
    broken["groups"][0]["cases"][0]["summary"]["p50"] = "fast".into();
    assert!(!problems(&broken).is_empty());
    let file = dir.path().join("merged.json");
    let other = dir.path().join("broken.json");
    std::fs::write(&other, broken.to_string()).unwrap();
    let compare = |a: &Path, b: &Path| {
        run(Command::new(binary()).args(["bench", "compare"]).arg(a).arg(b)).status.code()
    };
    assert_eq!(compare(&file, &file), Some(0));
    assert_eq!(compare(&file, &other), Some(125));
}

/// A sandbox of a test's own: a script that runs what it is given, as often as it is told, and then fails
/// with a word on standard error. `each` is done before every command.
fn scripted(dir: &Path, name: &str, often: usize, each: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let script = dir.join(format!("{name}.sh"));
    let count = dir.join(format!("{name}.count"));
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != version ] || {{ echo 1.0; exit; }}\necho >>{0}\n\
         [ $(wc -l <{0}) -le {often} ] || {{ echo first >&2; echo tired of it >&2; exit 7; }}\n\
         {each}\nexec \"$@\"\n",
        count.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let adapter = dir.join(format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\nneeds = [{0:?}]\nversion = [{0:?}, \"version\"]\ncommand = [{0:?}]\n\
         install = \"-\"\nlicence = \"-\"\nsource = \"-\"\nscope = \"of a test\"\n",
        script.display().to_string()
    );
    std::fs::write(&adapter, text).unwrap();
    adapter
}

fn measured(dir: &Path, part: &str, args: &[&str], adapters: &[PathBuf]) -> Value {
    let mut command = Command::new(binary());
    command.args(["bench", part, "--quick", "--peers", "none", "--allow-debug", "--output"]);
    command.arg(dir).args(args);
    for adapter in adapters {
        command.arg("--adapter").arg(adapter);
    }
    let output = run(&mut command);
    assert!(output.status.success(), "{part}: {}", said(&output));
    let document = read(&dir.join(format!("{part}.json")));
    assert!(problems(&document).is_empty(), "{part}: {:?}", problems(&document));
    document
}

fn named<'a>(all: &'a Value, name: &str) -> &'a Value {
    let found = all.as_array().unwrap().iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name}: {all:#}"))
}

/// A peer that fails the first time, in the middle, or with many at a time is absent with what it said, and
/// everybody else is measured.
#[test]
fn a_peer_that_fails_is_absent_and_nothing_else_is() {
    let dir = place();
    let at = dir.path();
    let broken = scripted(at, "broken", 0, "");
    let samples = |case: &Value| case["samples"].as_array().map_or(0, Vec::len);
    for (part, work) in [("cold", "true"), ("files", "metadata")] {
        // One look, one warm-up, one round.
        let tired = scripted(at, &format!("tired-{part}"), 3, "");
        let steady = scripted(at, &format!("steady-{part}"), 1000, "");
        let adapters = [broken.clone(), tired, steady];
        let document = measured(at, part, &["--runs", "3", "--only", work], &adapters);
        assert_eq!(document["groups"].as_array().map(Vec::len), Some(1), "{document:#}");
        let cases = &named(&document["groups"], &format!("{part}/{work}"))["cases"];
        let why = |name: &str| named(cases, name)["absent"].as_str().unwrap_or_default().to_owned();
        assert_eq!(why("broken"), "does not run here: exit status: 7: tired of it");
        assert_eq!(why(&format!("tired-{part}")), "failed in round 2: exit status: 7: tired of it");
        for name in ["host", "ringfence", &format!("steady-{part}")] {
            assert_eq!(samples(named(cases, name)), 3, "{part}, {name}: {cases:#}");
        }
        let peers = &document["peers"];
        assert_eq!(named(peers, "broken")["version"], "1.0", "{peers:#}");
    }
    // One look, and one at a time at least once; never four.
    let together =
        scripted(at, "together", 1000, "mkdir $0.lock || exit 6; sleep 0.2; rmdir $0.lock");
    let steady = scripted(at, "steady", 100_000, "");
    let document = measured(at, "density", &[], &[broken, together, steady]);
    for curve in ["density/rate", "density/latency"] {
        let lines = &named(&document["curves"], curve)["lines"];
        let points = |name: &str| named(lines, name)["points"].as_array().map_or(0, Vec::len);
        let why = |name: &str| named(lines, name)["absent"].as_str().unwrap_or_default().to_owned();
        assert_eq!((points("broken"), points("together")), (0, 1), "{lines:#}");
        assert!(why("broken").contains("tired of it"), "{lines:#}");
        assert!(
            why("together").starts_with("failed with 4 at a time: exit status: 6: mkdir:"),
            "{lines:#}"
        );
        for name in ["host", "ringfence", "steady"] {
            assert_eq!((points(name), why(name).as_str()), (2, ""), "{name}: {lines:#}");
        }
    }
    named(&document["groups"], "density/memory");
}

/// What takes long is measured less often than the rest, and says so.
#[test]
fn a_slow_peer_has_fewer_rounds() {
    let dir = place();
    let slow = scripted(dir.path(), "slow", 1000, "sleep 1.1");
    let asked = ["--runs", "6", "--budget", "1", "--only", "true"];
    let document = measured(dir.path(), "cold", &asked, &[slow]);
    assert_eq!(document["settings"]["budget"], 1);
    let cases = &named(&document["groups"], "cold/true")["cases"];
    let slow = named(cases, "slow");
    assert_eq!(slow["summary"]["samples"], 3, "{slow:#}");
    assert!(slow["notes"][0].as_str().is_some_and(|n| n.starts_with("3 of 6 rounds")), "{slow:#}");
    assert_eq!(named(cases, "host")["summary"]["samples"], 6);
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let dir = place();
    for (part, args, word) in [
        ("cold", ["--only", "tru"], "--only: no work tru"),
        ("cold", ["--adapter", "/nowhere.toml"], "/nowhere.toml"),
        ("cold", ["--peers", "nobody"], "--peers: no adapter nobody"),
        ("cold", ["--against", "/nowhere"], "/nowhere"),
        ("warm", ["--against", "/bin/true"], "--against"),
        ("cold", ["--budget", "0"], "--budget"),
    ] {
        let mut command = Command::new(binary());
        command.args(["bench", part, "--quick", "--allow-debug", "--output"]).arg(dir.path());
        let output = run(command.args(args));
        assert_eq!(output.status.code(), Some(125), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{args:?}: {}", said(&output));
    }
    assert!(!dir.path().join("cold.json").exists());
}

/// The script that plants a regression measures two binaries in the same rounds, and says what it found. Whether it
/// finds it is for who runs it on a quiet machine: nothing passes or fails by a time here. That `compare` finds one is
/// tested with what was recorded.
#[test]
fn a_regression_is_planted_and_measured_in_the_same_rounds() {
    let dir = place();
    let mut command = Command::new(root().join("scripts/planted.sh"));
    command.args(["--percent", "300", "--runs", "5", "--allow-debug"]);
    let output = run(command.arg("--binary").arg(binary()).arg("--output").arg(dir.path()));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", said(&output));
    let before = read(&dir.path().join("planted/against/cold.json"));
    let after = read(&dir.path().join("planted/cold.json"));
    for document in [&before, &after] {
        assert!(problems(document).is_empty(), "{:?}", problems(document));
        assert!(!document.to_string().contains("against: "), "{document:#}");
    }
    assert!(before["settings"]["together"].is_string());
    assert_eq!(before["settings"], after["settings"]);
    assert_ne!(before["tool"]["sha256"], after["tool"]["sha256"]);
    let case = |document: &Value, name: &str| {
        named(&named(&document["groups"], "cold/true")["cases"], name)["samples"].clone()
    };
    assert_eq!(case(&before, "host"), case(&after, "host"));
    assert_ne!(case(&before, "ringfence"), case(&after, "ringfence"));
    assert_eq!(case(&after, "ringfence").as_array().map(Vec::len), Some(5));
}

/// `--write` puts the tables into the document between its marks, without a word of where that was.
#[test]
fn the_script_writes_the_document() {
    let dir = place();
    let tree = dir.path().join("tree");
    for sub in ["scripts", "docs"] {
        std::fs::create_dir_all(tree.join(sub)).unwrap();
    }
    let script = tree.join("scripts/benchmark.sh");
    std::fs::copy(root().join("scripts/benchmark.sh"), &script).unwrap();
    let docs = tree.join("docs/benchmarks.md");
    std::fs::write(&docs, "before\n<!-- measured -->\nold\n<!-- end of measured -->\nafter\n")
        .unwrap();
    let mut command = Command::new(&script);
    command.args(["-q", "-n", "1", "--peers", "unshare,runc", "--allow-debug", "--write"]);
    command.arg("--binary").arg(binary()).arg("--output").arg(dir.path().join("out"));
    let output = run(&mut command);
    assert!(output.status.success(), "{}", said(&output));
    assert!(output.stderr.is_empty(), "nobody looks on: {}", said(&output));
    let text = std::fs::read_to_string(&docs).unwrap();
    assert!(text.starts_with("before\n<!-- measured -->\nMeasured "), "{text}");
    assert!(
        text.ends_with("<!-- end of measured -->\nafter\n") && !text.contains("old\n"),
        "{text}"
    );
    let typed = "`scripts/benchmark.sh -q -n 1 --peers unshare,runc --allow-debug --write`";
    assert!(text.contains(typed), "{text}");
    for word in [
        "| Benchmark | Unsandboxed | Sandboxed | Overhead |",
        "| unshare |",
        "| runc |",
        "### starts of true a second",
        "### Beside what others publish",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    for word in [dir.path().to_str().unwrap(), "ringfence-bench", binary().to_str().unwrap()] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    // The single groups are not in it, and what may not be written is said before anything is measured.
    assert!(!text.contains("| case | p50 |"), "{text}");
    assert!(dir.path().join("out/report.html").is_file());
    std::fs::remove_file(&docs).unwrap();
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("cannot be written"), "{}", said(&output));
}

/// The steps of a start, those inside too, and nothing of them where nobody asks.
#[test]
fn the_profile_says_where_a_start_goes() {
    let dir = place();
    let mut command = Command::new(root().join("scripts/profile.sh"));
    command.args(["--runs", "2"]).arg("--binary").arg(binary()).arg("--output").arg(dir.path());
    let output = run(&mut command);
    assert!(output.status.success(), "{}", said(&output));
    let trace = read(&dir.path().join("trace.json"));
    let steps = trace["steps"].as_array().unwrap();
    let of = |lane: &str| -> Vec<&Value> { steps.iter().filter(|s| s["lane"] == lane).collect() };
    let named = |lane: &str, word: &str| {
        of(lane).iter().any(|s| s["name"].as_str().is_some_and(|name| name.contains(word)))
    };
    for (lane, word) in [
        ("supervisor", "plan"),
        ("init", "view"),
        ("command", "seccomp"),
        ("command", "landlock"),
        ("command", "exec"),
    ] {
        assert!(named(lane, word), "{lane}, {word}: {trace:#}");
    }
    // Made by the helper, or where there is none by the command's own process.
    assert!(named("helper", "namespaces") || named("command", "network namespace"), "{trace:#}");
    for lane in ["init", "command"] {
        let mut end = 0.0;
        for step in of(lane) {
            let at = |key: &str| step[key].as_f64().unwrap();
            assert!(at("start_us") >= end && at("end_us") >= at("start_us"), "{step}");
            end = at("end_us");
        }
    }
    let html = std::fs::read_to_string(dir.path().join("trace.html")).unwrap();
    assert!(html.contains("landlock") && html.contains("class=\"bar\""));
}
