//! A daemon of its own, what each sandbox went through, and the results as JSON.

#![allow(dead_code)] // each test uses a part

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_api::{CreateSandbox, ExecRequest, Sandbox};
use ringfence_bench::machine;
use ringfence_bench::model::{
    Better, Case, DETAILS_FORMAT, Details, FORMAT, Group, Life, Report, Settings,
};
use ringfence_client::{Client, DELETE, NOTHING, POST};

/// Until something that must happen has happened; generous, since nothing is judged by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A number that the environment may choose.
pub fn number(name: &str, otherwise: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        Err(_) => otherwise,
    }
}

fn binary() -> PathBuf {
    std::env::var_os("RINGFENCE_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ringfence")), PathBuf::from)
}

/// A daemon with a home and a workspace of its own.
pub struct World {
    child: Child,
    root: tempfile::TempDir,
    socket: PathBuf,
    /// Of its sandboxes.
    work: PathBuf,
}

impl World {
    pub fn start() -> Self {
        let root = tempfile::Builder::new().prefix("ringfence-stress").tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        for dir in ["home", "work", "run"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        std::fs::set_permissions(root.path().join("run"), std::fs::Permissions::from_mode(0o700))
            .unwrap();
        let command = |args: &[&str]| {
            let mut command = Command::new(binary());
            command.args(args).env("HOME", root.path().join("home"));
            command.env("XDG_RUNTIME_DIR", root.path().join("run")).env_remove("XDG_STATE_HOME");
            command.stdin(Stdio::null());
            command
        };
        let child = command(&["daemon"]).stdout(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        let socket = loop {
            let said = command(&["daemon", "status"]).output().unwrap();
            let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            if let Some((_, socket)) = text.rsplit_once(", socket ") {
                break socket.into();
            }
            assert!(Instant::now() < end, "the daemon does not start: {said:?}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let work = root.path().join("work");
        Self { child, root, socket, work }
    }

    /// The same with sandboxes on somebody's workspace.
    pub fn start_in(work: &Path) -> Self {
        let mut world = Self::start();
        work.clone_into(&mut world.work);
        world
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    pub fn create(&self, client: &mut Client) -> Result<String, String> {
        let workspace = self.work.to_string_lossy().into_owned();
        let asked = CreateSandbox { workspace, ..CreateSandbox::default() };
        let made: Sandbox =
            client.call(POST, "/v1/sandboxes", Some(&asked)).map_err(|e| e.to_string())?;
        Ok(made.id)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// The steps of a life, and where each is kept.
type Step = (&'static str, fn(&mut Life) -> &mut f64);

const STEPS: [Step; 5] = [
    ("create", |life| &mut life.create),
    ("start", |life| &mut life.start),
    ("exec", |life| &mut life.exec),
    ("stop", |life| &mut life.stop),
    ("remove", |life| &mut life.remove),
];

/// Create (stopped), start, exec, stop, remove.
pub fn life(world: &World, client: &mut Client) -> Result<Life, String> {
    let mut life = Life::default();
    let mut timed = |(step, of): Step, done: &mut dyn FnMut() -> Result<(), String>| {
        let start = Instant::now();
        done().map_err(|e| format!("{step}: {e}"))?;
        *of(&mut life) = start.elapsed().as_nanos() as f64 / 1000.0;
        Ok::<_, String>(())
    };
    let mut id = String::new();
    timed(STEPS[0], &mut || {
        let workspace = world.work.to_string_lossy().into_owned();
        let asked = CreateSandbox { workspace, stopped: true, ..CreateSandbox::default() };
        let made: Sandbox =
            client.call(POST, "/v1/sandboxes", Some(&asked)).map_err(|e| e.to_string())?;
        id = made.id;
        Ok(())
    })?;
    let path = format!("/v1/sandboxes/{id}");
    for step in &STEPS[1..] {
        timed(*step, &mut || {
            let done = match step.0 {
                "exec" => return exec(client, &id),
                "remove" => client.call::<serde_json::Value>(DELETE, &path, NOTHING),
                verb => client.call::<serde_json::Value>(POST, &format!("{path}/{verb}"), NOTHING),
            };
            done.map(drop).map_err(|e| e.to_string())
        })?;
    }
    Ok(life)
}

pub fn exec(client: &mut Client, id: &str) -> Result<(), String> {
    let argv = vec!["/bin/echo".to_owned(), id.to_owned()];
    let done = client.exec(id, &ExecRequest { argv, ..ExecRequest::default() });
    let done = done.map_err(|e| e.to_string())?;
    // What it said is the sandbox's own: answers of others must not be mixed in.
    if done.stdout.data.trim() == id { Ok(()) } else { Err(format!("said {done:?}")) }
}

/// Carries out `count` pieces of work, so many at a time, each thread over a connection of its own.
pub fn many<T: Send>(
    world: &World,
    count: usize,
    at_once: usize,
    work: impl Fn(&mut Client, usize) -> Result<T, String> + Sync,
) -> Vec<Result<T, String>> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once.min(count))
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut done) = (world.client(), Vec::new());
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= count {
                            return done;
                        }
                        done.push(work(&mut client, i));
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    })
}

/// One group for each step.
pub fn groups(name: &str, lives: &[Life]) -> Vec<Group> {
    let of = |step: &Step| lives.iter().copied().map(|mut life| *step.1(&mut life)).collect();
    let group = |step: &str, samples: Vec<f64>| Group {
        name: format!("{name}/{step}"),
        title: format!("{step}, many at a time"),
        unit: "us".into(),
        better: Better::Lower,
        baseline: None,
        cases: vec![Case::of("ringfence", step, samples)],
    };
    STEPS
        .iter()
        .map(|step| group(step.0, of(step)))
        .filter(|g| !g.cases[0].samples.is_empty())
        .collect()
}

pub fn report(name: &str, command: &str, at_once: usize, groups: Vec<Group>) -> Report {
    Report {
        format: FORMAT.into(),
        name: name.into(),
        started: machine::now(),
        command: command.into(),
        tool: machine::tool(&binary(), None).unwrap(),
        machine: machine::machine(),
        settings: Settings { rounds: at_once, ..Settings::default() },
        peers: Vec::new(),
        groups,
        timelines: Vec::new(),
        curves: Vec::new(),
    }
}

/// `benchmark-results/NAME_YYYYMMDD_HHMMSS.json` and its details; both are read back.
pub fn write(dir: &Path, report: &Report, lives: &[Life]) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let stamp: String = report.started.chars().filter(char::is_ascii_digit).collect();
    let stem = format!("{}_{}_{}", report.name, &stamp[..8], &stamp[8..14]);
    let file = dir.join(format!("{stem}.json"));
    report.write(&file).unwrap();
    assert_eq!(Report::read(&file).unwrap().groups.len(), report.groups.len());
    let details =
        Details { format: DETAILS_FORMAT.into(), unit: "us".into(), sandboxes: lives.to_vec() };
    let beside = dir.join(format!("{stem}_details.json"));
    std::fs::write(&beside, serde_json::to_string_pretty(&details).unwrap() + "\n").unwrap();
    keeps_to("schema.json", &file, "/groups/0/cases/0/summary/p50");
    keeps_to("details.schema.json", &beside, "/sandboxes/0/exec");
    file
}

/// A document is as its schema in the tree says; as a control, with a word for a figure it is not.
fn keeps_to(schema: &str, document: &Path, figure: &str) {
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench");
    let validator = jsonschema::validator_for(&read(&bench.join(schema))).unwrap();
    let mut value = read(document);
    let problems: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
    assert!(problems.is_empty(), "{}: {problems:?}", document.display());
    // Nothing to break where every sandbox failed.
    if let Some(figure) = value.pointer_mut(figure) {
        *figure = "fast".into();
        assert!(!validator.is_valid(&value), "{}: the control", document.display());
    }
}

pub fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benchmark-results")
}
