//! What a view of a project costs: the same work done on the tree itself, inside sandboxes with and
//! without a layer, and on what others mount.
//!
//! One worker process for each view, started once, so that the start does not count; every round asks
//! each of them in turn. What this binary, this host or this user cannot do is a row that says why.

#![allow(clippy::cast_precision_loss)] // figures for people

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Case, FILES, Place, group, has};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Files of the largest tree.
const MANY: usize = 50_000;
const PER_DIRECTORY: usize = 50;
const KILOBYTE: usize = 1024;
/// Bytes of the large file.
const LARGE: u64 = 256 << 20;
/// Small files read in one round, and made and removed.
const READ: usize = 5000;
const WRITTEN: usize = 2000;
/// For one task in one view.
const PATIENCE: Duration = Duration::from_secs(10);
/// Files of the large tree that a layer has changed.
const CHANGED: usize = 1000;

/// What is done in a view: the word on the wire, what the table calls it, and what is aimed at with a
/// layer and `agent-safe`.
const TASKS: [(&str, &str, &str); 7] = [
    ("large", "read a file of 256 MiB", "<= 1.02"),
    ("small", "read 5,000 files of 1 KiB", "<= 1.5"),
    ("stat", "stat 20,000 files", "<= 1.5"),
    ("git", "git status, 20,000 files", "<= 1.4"),
    ("search", "search 20,000 files", "<= 1.4"),
    ("write", "create, write and remove 2,000 files", "<= 2.3, or 4 where names are checked"),
    ("cargo", "cargo build of a small project", "<= 1.05"),
];

/// Does as it is told in the directory where it was started, and says how long that took.
pub fn worker() -> Result<()> {
    let mut files = None;
    println!("ready");
    for line in std::io::stdin().lines() {
        let task = line?;
        // The list of names is part of no task.
        if files.is_none() && matches!(task.as_str(), "stat" | "small") {
            let mut all = Vec::new();
            walk(Path::new("."), &mut all)?;
            files = Some(all);
        }
        let start = Instant::now();
        match work(&task, files.as_deref().unwrap_or_default()) {
            Ok(()) => println!("{}", start.elapsed().as_micros()),
            Err(e) => println!("not possible: {}", e.to_string().replace('\n', " ")),
        }
    }
    Ok(())
}

/// The small files of the project.
fn walk(directory: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() && name.starts_with('d') {
            walk(&entry.path(), all)?;
        } else if name.starts_with('f') {
            all.push(entry.path());
        }
    }
    Ok(())
}

fn work(task: &str, files: &[PathBuf]) -> Result<()> {
    match task {
        "large" => {
            let mut file = std::fs::File::open("large.bin")?;
            let mut buffer = vec![0; 1 << 20];
            let mut all = 0;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => all += n as u64,
                }
            }
            if all != LARGE {
                return Err(format!("{all} bytes").into());
            }
        }
        "small" => {
            let mut buffer = Vec::with_capacity(2 * KILOBYTE);
            for file in files.iter().take(READ) {
                buffer.clear();
                std::fs::File::open(file)?.read_to_end(&mut buffer)?;
            }
        }
        "stat" => {
            for file in files {
                std::fs::symlink_metadata(file)?;
            }
        }
        "write" => {
            let directory = Path::new("output/written");
            std::fs::create_dir(directory)?;
            let content = [b'w'; KILOBYTE];
            for i in 0..WRITTEN {
                std::fs::write(directory.join(i.to_string()), content)?;
            }
            std::fs::remove_dir_all(directory)?;
        }
        "git" => run(Command::new("git").args(["status", "--porcelain"]))?,
        "search" => {
            let word = if has("rg") { "rg" } else { "grep" };
            let how = if has("rg") { "-c" } else { "-rc" };
            run(Command::new(word).args([how, "needle", "."]))?;
        }
        "cargo" => {
            let _ = std::fs::remove_dir_all("output/crate/target");
            let mut cargo = Command::new("cargo");
            cargo.args(["build", "--offline", "-q"]).current_dir("output/crate");
            run(cargo.env("CARGO_TARGET_DIR", "target"))?;
        }
        other => return Err(format!("nobody knows how to do {other}").into()),
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| format!("{name} does not start: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{name}: {}", said.lines().next().unwrap_or("fails")).into())
}

/// A project: directories of fifty files of one kilobyte, a large file, a crate, and a repository.
fn project(place: &Place, name: &str, files: usize) -> Result<PathBuf> {
    let root = place.dir(name);
    for i in 0..files {
        let directory = root.join(format!("d{}/d{}", i / (PER_DIRECTORY * 20), i / PER_DIRECTORY));
        if i % PER_DIRECTORY == 0 {
            std::fs::create_dir_all(&directory)?;
        }
        let mut content = format!("// file {i}\nfn f{i}() {{}}\n").into_bytes();
        content.resize(KILOBYTE, b'\n');
        std::fs::write(directory.join(format!("f{i}.rs")), content)?;
    }
    // What the rules of `agent-safe` are about.
    std::fs::write(root.join(".env"), "TOKEN=1\n")?;
    std::fs::create_dir_all(root.join("d0/secrets"))?;
    std::fs::write(root.join("d0/secrets/key.pem"), "secret\n")?;
    std::fs::write(root.join("d0/hit.txt"), "needle\n")?;
    let source = root.join("output/crate/src");
    std::fs::create_dir_all(&source)?;
    std::fs::write(
        root.join("output/crate/Cargo.toml"),
        "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    let mut main = String::from("fn main() {\n");
    for i in 0..200 {
        std::fs::write(
            source.join(format!("m{i}.rs")),
            format!("pub fn f(x: u64) -> Vec<u64> {{ (0..x).map(|y| y * {i}).collect() }}\n"),
        )?;
        main = format!("mod m{i};\n{main}    println!(\"{{:?}}\", m{i}::f({i}));\n");
    }
    std::fs::write(source.join("main.rs"), main + "}\n")?;
    Ok(root)
}

fn repository(root: &Path, home: &Path) -> Result<()> {
    std::fs::write(root.join(".gitignore"), "/large.bin\n/worker\n/output\n.env\nsecrets\n")?;
    for arguments in [&["init", "-q"][..], &["add", "."], &["commit", "-qm", "all"]] {
        let identity = ["-c", "user.name=b", "-c", "user.email=b@example.org", "-c", "gc.auto=0"];
        run(Command::new("git")
            .args(identity)
            .args(arguments)
            .current_dir(root)
            .env("HOME", home))?;
    }
    Ok(())
}

/// A worker in one of the views.
struct Worker {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    times: Vec<Duration>,
    problem: Option<String>,
}

impl Worker {
    fn start(name: &'static str, command: &mut Command) -> std::result::Result<Self, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("has no pipes".into());
        };
        let times = Vec::new();
        let mut worker =
            Self { name, child, input, output: BufReader::new(output), times, problem: None };
        match worker.line().as_str() {
            "ready" => Ok(worker),
            other => {
                let mut said = other.to_owned();
                if let Some(mut error) = worker.child.stderr.take() {
                    let _ = worker.child.kill();
                    let _ = error.read_to_string(&mut said);
                }
                Err(said.lines().next().unwrap_or("does not start").to_owned())
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.output.read_line(&mut line);
        line.trim_end().to_owned()
    }

    /// Once; the first one only fills caches.
    fn ask(&mut self, task: &str, counts: bool) {
        // A view that is slow is not asked as often.
        let spent: Duration = self.times.iter().sum();
        if self.problem.is_some() || spent > PATIENCE {
            return;
        }
        let _ = writeln!(self.input, "{task}");
        let line = self.line();
        match line.parse() {
            Ok(time) if counts => self.times.push(Duration::from_micros(time)),
            Ok(_) => {}
            Err(_) if line.is_empty() => self.problem = Some("ended".into()),
            Err(_) => {
                self.problem = Some(line.trim_start_matches("not possible: ").to_owned());
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Something mounted by another program, until it is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        for command in [["fusermount3", "-u"], ["umount", "-l"]] {
            let ended = Command::new(command[0])
                .arg(command[1])
                .arg(&self.0)
                .stderr(Stdio::null())
                .status();
            if ended.is_ok_and(|s| s.success()) {
                return;
            }
        }
    }
}

impl Mounted {
    fn by(program: &str, arguments: &[OsString], at: PathBuf) -> std::result::Result<Self, String> {
        if !has(program) {
            return Err(format!("{program} is not installed"));
        }
        run(Command::new(program).args(arguments).arg(&at)).map_err(|e| e.to_string())?;
        Ok(Self(at))
    }
}

/// The user's own home where it can be had: toolchains are found there.
fn home(place: &Place) -> PathBuf {
    let own = std::env::var_os("HOME").map(PathBuf::from);
    own.filter(|h| std::fs::read_dir(h).is_ok()).unwrap_or_else(|| place.dir("home"))
}

fn path(home: &Path) -> OsString {
    let mut path = home.join(".cargo/bin").into_os_string();
    path.push(":/usr/local/bin:/usr/bin:/bin");
    path
}

fn absent(name: &str, why: &str) -> Value {
    json!({ "case": name, "absent": why })
}

/// A view: what the table calls it, and how a worker in it is started.
type View = (&'static str, std::result::Result<Command, String>);

fn views(place: &Place, tree: &Path, mounts: &mut Vec<Mounted>) -> Vec<View> {
    let home = home(place);
    let dress = |mut command: Command, directory: &Path| {
        command
            .current_dir(directory)
            .env_clear()
            .env("PATH", path(&home))
            .env("HOME", &home)
            .env("RINGFENCE_STATE", place.dir("state"))
            .env("LANG", "C.UTF-8");
        command
    };
    let mut views = vec![("the tree itself", {
        let mut command = dress(Command::new("./worker"), tree);
        command.arg("--files-worker");
        Ok(command)
    })];
    let sandboxes: [(&'static str, &[&str]); 6] = [
        ("ringfence, workspace", &["-t", "workspace"]),
        ("ringfence, a layer without rules of names", &["-t", "full-access", "--layer", "plain"]),
        ("ringfence, a layer, agent-safe", &["-t", "agent-safe", "--layer", "safe"]),
        ("ringfence, a layer, development", &["-t", "development", "--layer", "development"]),
        ("ringfence, exact, agent-safe", &["-t", "agent-safe", "--exact"]),
        ("ringfence, exact, development", &["-t", "development", "--exact"]),
    ];
    for (name, flags) in sandboxes {
        let mut command = dress(Command::new(&place.binary), tree);
        command.arg("run").args(flags).args(["--", "./worker", "--files-worker"]);
        views.push((name, Ok(command)));
    }
    for (name, program) in [("fuse-overlayfs", "fuse-overlayfs"), ("plain FUSE (bindfs)", "bindfs")]
    {
        let at = place.dir(&format!("mounted-{program}"));
        let mounted = overlay_arguments(place, tree, program, &at)
            .map_err(|e| e.to_string())
            .and_then(|arguments| Mounted::by(program, &arguments, at.clone()));
        views.push((
            name,
            mounted.map(|mounted| {
                mounts.push(mounted);
                let mut command = dress(Command::new("./worker"), &at);
                command.arg("--files-worker");
                command
            }),
        ));
    }
    views
}

fn overlay_arguments(
    place: &Place,
    tree: &Path,
    program: &str,
    at: &Path,
) -> Result<Vec<OsString>> {
    std::fs::create_dir_all(at)?;
    if program == "bindfs" {
        return Ok(vec![tree.into()]);
    }
    let (upper, work) = (place.dir("overlay-upper"), place.dir("overlay-work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir_all(&work)?;
    let mut options = OsString::from("lowerdir=");
    for part in [tree.as_os_str(), ",upperdir=".as_ref(), upper.as_os_str(), ",workdir=".as_ref()] {
        options.push(part);
    }
    options.push(work);
    Ok(vec!["-o".into(), options])
}

/// Work inside views, starts, and what is done with layers.
pub fn groups(place: &Place, rounds: usize) -> Vec<Value> {
    let few = (rounds / 40).max(3);
    let mut groups = inside(place, few).unwrap_or_else(|e| problem("work inside views", &e));
    groups.extend(starts(place, few * 2).unwrap_or_else(|e| problem("starts", &e)));
    groups.push(layers(place, few * 2));
    groups
}

fn problem(what: &str, error: &impl ToString) -> Vec<Value> {
    vec![json!({ "group": what, "rows": [absent(what, &error.to_string())] })]
}

fn inside(place: &Place, rounds: usize) -> Result<Vec<Value>> {
    let tree = project(place, "files", FILES)?;
    let large = std::fs::File::create(tree.join("large.bin"))?;
    std::io::copy(&mut std::io::repeat(b'x').take(LARGE), &mut &large)?;
    std::fs::copy(std::env::current_exe()?, tree.join("worker"))?;
    if has("git") {
        repository(&tree, &place.dir("home"))?;
    }
    let mut mounts = Vec::new();
    let mut workers = Vec::new();
    let mut missing = Vec::new();
    for (name, command) in views(place, &tree, &mut mounts) {
        match command.and_then(|mut command| Worker::start(name, &mut command)) {
            Ok(worker) => workers.push(worker),
            Err(why) => missing.push((name, why)),
        }
    }
    let mut groups = Vec::new();
    for (task, name, aim) in TASKS {
        eprintln!("{name}: {} views, {rounds} rounds", workers.len());
        for worker in &mut workers {
            worker.times.clear();
            worker.problem = None;
        }
        for round in 0..=rounds {
            for worker in &mut workers {
                worker.ask(task, round > 0);
            }
        }
        let mut rows = Vec::new();
        for worker in &mut workers {
            worker.times.sort_unstable();
            rows.push(match (&worker.problem, worker.times.get(worker.times.len() / 2)) {
                (None, Some(median)) => json!({
                    "case": worker.name,
                    "value": median.as_secs_f64() * 1000.0,
                    "unit": "ms",
                }),
                (problem, _) => absent(worker.name, problem.as_deref().unwrap_or("no answer")),
            });
        }
        rows.extend(missing.iter().map(|(name, why)| absent(name, why)));
        groups.push(json!({ "group": name, "rounds": rounds, "aim": aim, "rows": rows }));
    }
    // Before what they work in goes.
    drop(workers);
    drop(mounts);
    Ok(groups)
}

/// Cases that run; the others as rows that say why they do not.
fn those_that_run(name: &str, aim: &str, cases: Vec<Case>, rounds: usize) -> Value {
    let mut running = Vec::new();
    let mut rows = Vec::new();
    for case in cases {
        match run(case.command().stderr(Stdio::piped())) {
            Ok(()) => running.push(case),
            Err(e) => rows.push(absent(case.name, &e.to_string())),
        }
    }
    let mut measured = group(name, &running, rounds);
    measured["aim"] = aim.into();
    if let Some(all) = measured["rows"].as_array_mut() {
        all.extend(rows);
    }
    measured
}

fn starts(place: &Place, rounds: usize) -> Result<Vec<Value>> {
    let mut groups = Vec::new();
    for (directory, files, title) in [
        ("starts-20k", FILES, "starts in 20,000 files"),
        ("starts-50k", MANY, "starts in 50,000 files"),
    ] {
        project(place, directory, files)?;
        let run = |name, flags: &[&str]| {
            let all: Vec<&str> =
                ["run"].iter().chain(flags).chain(&["--", "true"]).copied().collect();
            place.confined(name, directory, &all)
        };
        let mut first =
            run("a layer, agent-safe, first start", &["-t", "agent-safe", "--layer", "first"]);
        first.home = place.dir(&format!("home-{directory}"));
        std::fs::create_dir_all(&first.home)?;
        first.clear = vec![first.home.join(".cache"), first.home.join(".local")];
        let cases = vec![
            run("the tree itself, full-access", &["-t", "full-access"]),
            run("the tree itself, workspace", &["-t", "workspace"]),
            run("exact, agent-safe", &["-t", "agent-safe"]),
            run("a layer, full-access", &["-t", "full-access", "--layer", "plain"]),
            run("a layer, agent-safe, later starts", &["-t", "agent-safe", "--layer", "later"]),
            first,
        ];
        let aim = "first <= 60 ms in 50,000 files, later 1 ms more, a layer 0.5 ms more";
        groups.push(those_that_run(title, aim, cases, rounds));
    }
    Ok(groups)
}

/// Verbs that work on layers, in the tree of 50,000 files.
fn layers(place: &Place, rounds: usize) -> Value {
    let directory = "starts-50k";
    let change = format!(
        "find . -name 'f*.rs' | head -n {CHANGED} | while read f; do echo changed >> \"$f\"; done"
    );
    let flags = ["run", "-t", "full-access", "--layer", "changed", "--", "sh", "-c", &change];
    let made = place.confined("changes", directory, &flags);
    let mut rows = Vec::new();
    let verbs: [(&'static str, &[&str]); 4] = [
        ("list the layers", &["layers"]),
        ("diff of 1,000 changed files in 50,000", &["diff", "changed"]),
        ("snapshot", &["snapshot", "changed"]),
        ("fork", &["fork", "changed"]),
    ];
    if let Err(e) = run(&mut made.command()) {
        let why = e.to_string();
        rows.extend(verbs.iter().map(|(name, _)| absent(name, &why)));
    } else {
        for (name, arguments) in verbs {
            rows.push(verb(place, directory, name, arguments, rounds));
        }
    }
    let aim = "diff <= 50 ms, fork <= 1 ms and snapshot without copying, beside listing";
    json!({ "group": "layers of 50,000 files", "rounds": rounds, "aim": aim, "rows": rows })
}

fn verb(
    place: &Place,
    directory: &str,
    name: &'static str,
    arguments: &[&str],
    rounds: usize,
) -> Value {
    let mut times = Vec::new();
    for round in 0..=rounds {
        // Snapshots and forks get a name of their own.
        let own = format!("n{round}");
        let mut all = arguments.to_vec();
        if matches!(arguments, ["snapshot" | "fork", ..]) {
            all.push(&own);
        }
        let case = place.confined(name, directory, &all);
        let start = Instant::now();
        if let Err(e) = run(&mut case.command()) {
            return absent(name, &e.to_string());
        }
        if round > 0 {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let at = |percent: usize| crate::micros(times[(times.len() - 1) * percent / 100]);
    json!({ "case": name, "min": at(0), "p50": at(50), "p90": at(90), "p99": at(99) })
}
