//! Macro benches of the release binary: what a run costs beside a bare spawn and beside bubblewrap.
//!
//! Every group is measured in one process and interleaved, one sample of each case in turn, so that
//! a machine that slows down slows down all of them. `bench/run` builds what is needed and calls
//! this; the table it prints is the one in `docs/benchmarks.md`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a bench that cannot set up its place has nothing to say

mod client;
mod daemon;
mod egress;
mod files;
mod looks;
mod soak;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::looks::{children, pss};

/// An id that no distribution gives to a person or a service.
const ORDINARY_ID: u32 = 54_321;
/// Files of the large workspace.
const FILES: usize = 20_000;
/// Deny rules beyond the built-in ones.
const RULES: usize = 300;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).map(String::as_str)
    };
    if args.first().is_some_and(|a| a == "--server") {
        return egress::server().unwrap();
    }
    if args.first().is_some_and(|a| a == "--client") {
        let port = value("--client").unwrap().parse().unwrap();
        return egress::client(port, args.iter().any(|a| a == "--proxied")).unwrap();
    }
    if args.first().is_some_and(|a| a == "--files-worker") {
        return files::worker().unwrap();
    }
    let srt = egress::path(value("--srt"));
    let only = value("--only");
    let binary = PathBuf::from(value("--binary").expect("--binary RINGFENCE"));
    if args.iter().any(|a| a == "--soak") {
        let number = |name: &str, default| value(name).map_or(default, |n| n.parse().unwrap());
        // With `--shared` others make mounts and control groups meanwhile, which then are not counted.
        let shared = args.iter().any(|a| a == "--shared");
        let machine = if shared { soak::Machine::Shared } else { soak::Machine::Ours };
        let report =
            soak::run(&binary, number("--seconds", 1800), number("--sandboxes", 200), machine);
        if let Some(file) = value("--json") {
            std::fs::write(file, serde_json::to_string_pretty(&report).unwrap() + "\n").unwrap();
        }
        return;
    }
    let rounds: usize = value("--rounds").map_or(400, |n| n.parse().unwrap());
    if args.iter().any(|a| a == "--part") {
        let idle = value("--idle").map_or(2000, |n| n.parse().unwrap());
        println!("{}", Value::Array(measure(&binary, rounds, srt.as_deref(), (only, idle))));
        return;
    }
    let mut results = vec![part(&args, None)];
    if rustix::process::geteuid().is_root() {
        results.push(part(&args, Some(ORDINARY_ID)));
    }
    let report = json!({ "machine": machine(), "rounds": rounds, "runs": results });
    if let Some(file) = value("--json") {
        std::fs::write(file, serde_json::to_string_pretty(&report).unwrap() + "\n").unwrap();
    }
    print!("{}", markdown(&report));
}

/// Measures in a fresh process: a small parent, and another user without forking a large one.
fn part(args: &[String], user: Option<u32>) -> Value {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(args).arg("--part").stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(id) = user {
        command.uid(id).gid(id);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "a part failed");
    let who = match user {
        None if rustix::process::geteuid().is_root() => "root",
        _ => "ordinary user",
    };
    json!({ "user": who, "groups": serde_json::from_slice::<Value>(&output.stdout).unwrap() })
}

fn machine() -> Value {
    let read = |p: &str| std::fs::read_to_string(p).unwrap_or_default().trim().to_owned();
    let processor = read("/proc/cpuinfo").lines().find_map(|l| {
        l.strip_prefix("model name").map(|l| l.trim_start_matches([' ', '\t', ':']).to_owned())
    });
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let date = date.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).ok();
    json!({
        "date": date,
        "kernel": read("/proc/sys/kernel/osrelease").split('-').next(),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "processor": processor,
        "load": read("/proc/loadavg"),
        "bubblewrap": version("bwrap"),
    })
}

fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command to time.
struct Case {
    name: &'static str,
    argv: Vec<OsString>,
    dir: PathBuf,
    home: PathBuf,
    /// Removed before each sample, outside the measured time.
    clear: Vec<PathBuf>,
}

impl Case {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .current_dir(&self.dir)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.home)
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn sample(&self) -> Duration {
        for dir in &self.clear {
            let _ = std::fs::remove_dir_all(dir);
        }
        let mut command = self.command();
        let start = Instant::now();
        let status = command.status();
        let time = start.elapsed();
        assert!(status.is_ok_and(|s| s.success()), "{}: {:?} fails", self.name, self.argv);
        time
    }
}

/// A place with a binary that this user can run.
struct Place {
    root: tempfile::TempDir,
    binary: PathBuf,
}

impl Place {
    fn new(built: &Path) -> Self {
        let root = tempfile::Builder::new().prefix("ringfence-bench").tempdir().unwrap();
        let binary = root.path().join("ringfence");
        std::fs::copy(built, &binary).unwrap();
        std::fs::create_dir(root.path().join("home")).unwrap();
        std::fs::create_dir(root.path().join("empty")).unwrap();
        Self { root, binary }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn case(&self, name: &'static str, dir: &str, argv: &[&str]) -> Case {
        let (dir, home) = (self.dir(dir), self.dir("home"));
        Case { name, argv: argv.iter().map(OsString::from).collect(), dir, home, clear: Vec::new() }
    }

    fn confined(&self, name: &'static str, dir: &str, argv: &[&str]) -> Case {
        let mut case = self.case(name, dir, argv);
        case.argv.insert(0, self.binary.clone().into());
        case
    }
}

fn has(program: &str) -> bool {
    ["/usr/local/bin", "/usr/bin", "/bin"].iter().any(|d| Path::new(d).join(program).is_file())
}

fn measure(
    binary: &Path,
    rounds: usize,
    srt: Option<&Path>,
    (only, idle): (Option<&str>, usize),
) -> Vec<Value> {
    if let Some(part) = only.and_then(|only| only.strip_prefix("daemon")) {
        let part = part.strip_prefix('.');
        return daemon::groups(binary, rounds, part, idle);
    }
    let place = Place::new(binary);
    let few = (rounds / 4).max(10);
    if only == Some("egress") {
        return network(&place, rounds, srt);
    }
    if only == Some("files") {
        return files::groups(&place, rounds);
    }
    if only == Some("layers") {
        return layers(&place, rounds);
    }
    let mut groups = Vec::new();

    let mut start = vec![
        place.case("/bin/true", "empty", &["/bin/true"]),
        place.confined("ringfence run -- true", "empty", &["run", "--", "true"]),
    ];
    if has("bwrap") {
        const ALL: &str = "bwrap --unshare-all --ro-bind / / --dev /dev --proc /proc true";
        start.push(place.case(ALL, "empty", &ALL.split(' ').collect::<Vec<_>>()));
    }
    groups.push(group("start", &start, rounds));

    if has("python3") {
        let python = ["python3", "-c", "pass"];
        let inside = ["run", "--", "python3", "-c", "pass"];
        let cases = [
            place.case("python3 -c pass", "empty", &python),
            place.confined("ringfence run -- python3 -c pass", "empty", &inside),
        ];
        groups.push(group("python", &cases, few));
    }

    tree(&place.dir("tree"), FILES);
    if has("git") {
        repository(&place);
        let cases = [
            place.case("git status", "repository", &["git", "status"]),
            place.confined(
                "ringfence run -- git status",
                "repository",
                &["run", "--", "git", "status"],
            ),
        ];
        groups.push(group("git status, 2,000 files", &cases, few));
    }
    groups.push(group("deny rules", &rules(&place), few));
    groups.push(group("large workspace", &large(&place), few));

    // Five times in one run, so that the start counts little: this is about work, not about starting.
    std::fs::write(place.dir("tree").join("d0/hit.txt"), "needle\n").unwrap();
    let (name, once) =
        if has("rg") { ("rg", "rg -c needle .") } else { ("grep -r", "grep -rc needle .") };
    let five = format!("for i in 1 2 3 4 5; do {once} >/dev/null; done");
    let cases = [
        place.case(name, "tree", &["sh", "-c", &five]),
        place.confined("the same, confined", "tree", &["run", "--", "sh", "-c", &five]),
    ];
    groups.push(group("search 20,000 files, five times", &cases, few / 8 + 3));
    if has("cc") {
        source(&place.dir("empty"));
        let cc = ["cc", "-O2", "-c", "-o", "/dev/null", "bench.c"];
        let inside: Vec<&str> = ["run", "--"].into_iter().chain(cc).collect();
        let cases = [
            place.case("cc -O2", "empty", &cc),
            place.confined("the same, confined", "empty", &inside),
        ];
        groups.push(group("compile", &cases, few / 4 + 3));
    }
    groups.push(memory(&place));
    groups.extend(files::groups(&place, rounds));
    groups.extend(layers(&place, rounds));
    groups.extend(network(&place, rounds, srt));
    groups.extend(daemon::groups(&place.binary, rounds, None, idle));
    groups
}

/// Runs in a layer: what the layer adds to a start, and what its overlay costs work on 20,000 files. Each
/// kind of work is done several times in one run, so that the start counts little.
fn layers(place: &Place, rounds: usize) -> Vec<Value> {
    const LAYER: [&str; 3] = ["run", "--layer", "bench"];
    let few = (rounds / 32).max(5);
    let layered = |name, dir, command: &[&str]| {
        let args: Vec<&str> =
            LAYER.iter().copied().chain(["--"]).chain(command.iter().copied()).collect();
        place.confined(name, dir, &args)
    };
    let start = [
        place.confined("ringfence run -- true", "empty", &["run", "--", "true"]),
        layered("ringfence run --layer bench -- true", "empty", &["true"]),
    ];
    let mut groups = vec![group("start in a layer", &start, rounds)];
    let tree_dir = place.dir("tree");
    if !tree_dir.join("d0").exists() {
        tree(&tree_dir, FILES);
    }
    let large = place.dir("empty").join("large");
    std::fs::write(&large, vec![0x5a; 256 << 20]).unwrap();
    let work = [
        (
            "layer: read 256 MiB, five times",
            "empty",
            "for i in 1 2 3 4 5; do cat large >/dev/null; done",
        ),
        ("layer: read 20,000 files", "tree", "find . -type f -exec cat {} + >/dev/null"),
        (
            "layer: stat 20,000 files, five times",
            "tree",
            "for i in 1 2 3 4 5; do find . -printf %s >/dev/null; done",
        ),
        (
            "layer: create, write and remove 2,000 files",
            "tree",
            "mkdir new; i=0; while [ $i -lt 2000 ]; do echo $i >new/$i; i=$((i+1)); done; rm -r new",
        ),
    ];
    for (name, dir, script) in work {
        let cases = [
            place.case("on the host", dir, &["sh", "-c", script]),
            layered("in a layer", dir, &["sh", "-c", script]),
        ];
        groups.push(group(name, &cases, few));
    }
    let _ = std::fs::remove_file(large);
    groups
}

/// With the egress filter.
fn network(place: &Place, rounds: usize, srt: Option<&Path>) -> Vec<Value> {
    let run = |name, flags: [&str; 2]| {
        place.confined(name, "empty", &["run", flags[0], flags[1], "--", "true"])
    };
    let start = [
        place.case("/bin/true", "empty", &["/bin/true"]),
        run("ringfence run --network none -- true", ["--network", "none"]),
        run("ringfence run --allow-host example.com -- true", ["--allow-host", "example.com"]),
    ];
    let mut groups = vec![group("start with the filter", &start, rounds)];
    groups.extend(egress::groups(place, srt));
    groups
}

/// A tree like a project's: directories of fifty small files.
fn tree(dir: &Path, files: usize) {
    const PER_DIRECTORY: usize = 50;
    for i in 0..files {
        let sub = dir.join(format!("d{}", i / PER_DIRECTORY));
        if i % PER_DIRECTORY == 0 {
            std::fs::create_dir_all(&sub).unwrap();
        }
        std::fs::write(sub.join(format!("f{i}.rs")), format!("// file {i}\nfn f{i}() {{}}\n"))
            .unwrap();
    }
}

fn repository(place: &Place) {
    tree(&place.dir("repository"), FILES / 10);
    let git = |args: &[&str]| {
        let all = ["git", "-c", "user.name=b", "-c", "user.email=b@example.org"];
        let argv: Vec<&str> = all.iter().chain(args).copied().collect();
        place.case("git", "repository", &argv).sample();
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "all"]);
}

fn source(dir: &Path) {
    let mut text = String::new();
    for i in 0..400 {
        let _ = writeln!(
            text,
            "int f{i}(int a, int b) {{ int s = 0; for (int k = a; k < b; k++) s += k * {i} ^ (s >> 3); return s; }}"
        );
    }
    std::fs::write(dir.join("bench.c"), text).unwrap();
}

/// The same policy file, without and with deny rules for files that exist.
fn rules(place: &Place) -> [Case; 2] {
    let dir = place.dir("rules");
    std::fs::create_dir(&dir).unwrap();
    let mut deny = String::new();
    for i in 0..RULES {
        std::fs::write(dir.join(format!("s{i}")), "secret").unwrap();
        let _ = write!(deny, "\"s{i}\",");
    }
    let files = [("few.toml", String::new()), ("many.toml", deny)];
    for (name, list) in files {
        std::fs::write(place.dir(name), format!("[files]\ndeny = [{list}]\n")).unwrap();
    }
    let run = |name, file| place.confined(name, "rules", &["run", "-s", file, "--", "true"]);
    [run("policy file without rules", "../few.toml"), run("with 300 deny rules", "../many.toml")]
}

fn large(place: &Place) -> [Case; 5] {
    // Every built-in rule that is a pattern is lifted, so that only paths are left.
    const PATTERNS: [&str; 3] = ["secret.env", "secret.keys", "guard.editors"];
    let mut paths = vec!["run"];
    paths.extend(PATTERNS.iter().flat_map(|id| ["--lift", id]));
    paths.extend(["--", "true"]);
    let patterns = ["run", "--", "true"];
    let mut cold = place.confined("20,000 files, default patterns, first run", "tree", &patterns);
    // A home of its own, so that it forgets nothing of the others'.
    cold.home = place.dir("home-cold");
    std::fs::create_dir(&cold.home).unwrap();
    cold.clear = vec![cold.home.join(".cache")];
    [
        place.confined("empty workspace, path rules", "empty", &paths),
        place.confined("20,000 files, path rules", "tree", &paths),
        place.confined("empty workspace, default patterns", "empty", &patterns),
        cold,
        place.confined("20,000 files, default patterns, remembered", "tree", &patterns),
    ]
}

fn group(name: &str, cases: &[Case], rounds: usize) -> Value {
    eprintln!("{name}: {} cases, {rounds} rounds", cases.len());
    let mut times: Vec<Vec<Duration>> = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..rounds + 3 {
        for (case, times) in cases.iter().zip(&mut times) {
            let time = case.sample();
            // The first ones fill caches.
            if round >= 3 {
                times.push(time);
            }
        }
    }
    let rows: Vec<Value> = cases
        .iter()
        .zip(&mut times)
        .map(|(case, times)| {
            times.sort_unstable();
            let at = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
            json!({ "case": case.name, "min": at(0), "p50": at(50), "p90": at(90), "p99": at(99) })
        })
        .collect();
    json!({ "group": name, "rounds": rounds, "unit": "us", "rows": rows })
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

/// Proportional set size of supervisor and init while a command runs.
fn memory(place: &Place) -> Value {
    let mut child = place
        .confined("memory", "empty", &["run", "--", "sleep", "100"])
        .command()
        .spawn()
        .unwrap();
    let supervisor = child.id();
    std::thread::sleep(Duration::from_millis(300));
    let init = children(supervisor).first().copied();
    let command = init.and_then(|init| children(init).first().copied());
    let rows: Vec<Value> = [("supervisor", Some(supervisor)), ("init", init), ("sleep", command)]
        .into_iter()
        .map(|(name, pid)| json!({ "case": name, "pss_kib": pid.and_then(pss) }))
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    json!({ "group": "memory", "unit": "KiB", "rows": rows })
}

fn markdown(report: &Value) -> String {
    let mut out = String::new();
    let m = &report["machine"];
    let _ = writeln!(
        out,
        "\nMeasured on {}, Linux {}, {} processors ({}), {}; {} rounds of the first group.\n",
        m["date"].as_str().unwrap_or("?"),
        m["kernel"].as_str().unwrap_or("?"),
        m["processors"],
        m["processor"].as_str().unwrap_or("unknown"),
        m["bubblewrap"].as_str().unwrap_or("no bubblewrap"),
        report["rounds"],
    );
    for run in report["runs"].as_array().unwrap() {
        let _ = writeln!(out, "### As {}\n", run["user"].as_str().unwrap());
        let _ = writeln!(
            out,
            "| what | min | p50 | p90 | p99 | ratio of p50 | ratio of min | added at p50 |"
        );
        let _ = writeln!(out, "|---|---|---|---|---|---|---|---|");
        for group in run["groups"].as_array().unwrap() {
            let rows = group["rows"].as_array().unwrap();
            let aim = group["aim"].as_str().filter(|aim| !aim.is_empty());
            let aim = aim.map(|aim| format!(" (aim {aim})")).unwrap_or_default();
            let name = group["group"].as_str().unwrap();
            let _ = writeln!(out, "| **{name}**{aim} | | | | | | | |");
            for row in rows {
                table_row(&mut out, row, &rows[0]);
            }
        }
        out.push('\n');
    }
    out
}

fn table_row(out: &mut String, row: &Value, first: &Value) {
    let name = row["case"].as_str().unwrap();
    if let Some(why) = row["absent"].as_str() {
        let _ = writeln!(out, "| {name} | | absent: {why} | | | | | |");
        return;
    }
    if let Some(value) = row["value"].as_f64() {
        let unit = row["unit"].as_str().unwrap_or_default();
        let ratio = match first["value"].as_f64() {
            Some(direct) if row["unit"] == first["unit"] => format!("{:.2}", value / direct),
            _ => String::new(),
        };
        let _ = writeln!(out, "| {name} | | {value:.1} {unit} | | | {ratio} | | |");
        return;
    }
    if row.get("p50").is_none() {
        let pss = row["pss_kib"].as_u64().map_or("not readable".to_owned(), |k| format!("{k} KiB"));
        let _ = writeln!(out, "| {name} | | {pss} PSS | | | | | |");
        return;
    }
    let ms = |key: &str| row[key].as_f64().unwrap_or(0.0) / 1000.0;
    let ratio = |key: &str| row[key].as_f64().unwrap_or(0.0) / first[key].as_f64().unwrap_or(1.0);
    let added = ms("p50") - first["p50"].as_f64().unwrap_or(0.0) / 1000.0;
    let _ = writeln!(
        out,
        "| {name} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} | {:.2} | {added:+.2} ms |",
        ms("min"),
        ms("p50"),
        ms("p90"),
        ms("p99"),
        ratio("p50"),
        ratio("min"),
    );
}
