//! A daemon of a case's own, as its user, and ways to ask it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Place, Ran, binary};

/// Until something that must happen has happened; generous, since nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub struct Daemon<'a> {
    pub place: &'a Place,
    child: Child,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Drop for Daemon<'_> {
    /// As a person ends it; then nothing of it may be left.
    fn drop(&mut self) {
        let family = self.family();
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
        if !std::thread::panicking() {
            until("everything ended with the daemon", || family.iter().all(|p| !p.is_there()));
        }
    }
}

/// A process, not to be confused with a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    started: String,
}

fn stat(pid: i32) -> Option<(i32, Process)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // A zombie has ended.
    (rest[0] != "Z").then(|| (rest[1].parse().unwrap(), Process { pid, started: rest[19].into() }))
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, process)| process)
    }

    pub fn is_there(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub fn kill(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// What it started, at any depth.
    pub fn below(&self) -> Vec<Self> {
        let all: Vec<(i32, Self)> = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter_map(stat)
            .collect();
        let mut found = vec![self.clone()];
        let mut at = 0;
        while at < found.len() {
            let parent = found[at].pid;
            found.extend(all.iter().filter(|(of, _)| *of == parent).map(|(_, p)| p.clone()));
            at += 1;
        }
        found.split_off(1)
    }
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: u32,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    #[track_caller]
    pub fn is(self, status: u32) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Whether it says, with its headers (`-i`), that there is no room now and when to come back.
    pub fn is_busy(&self) -> bool {
        let text = self.body.to_lowercase();
        self.status == 503 && text.contains("retry-after:") && text.contains("\"reason\":\"busy\"")
    }

    /// The machine-readable reason of an error, whose shape is the one of all.
    #[track_caller]
    pub fn reason(&self) -> String {
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["status"], self.status, "{self:?}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{self:?}");
        error["reason"].as_str().unwrap().to_owned()
    }
}

impl<'a> Daemon<'a> {
    pub fn start(place: &'a Place) -> Self {
        Self::listening(place, &[])
    }

    pub fn listening(place: &'a Place, listen: &[String]) -> Self {
        let flags: Vec<&str> = listen.iter().flat_map(|a| ["--listen", a.as_str()]).collect();
        Self::with(place, &flags)
    }

    /// With these flags.
    pub fn with(place: &'a Place, flags: &[&str]) -> Self {
        Self::with_environment(place, flags, &[])
    }

    pub fn with_environment(place: &'a Place, flags: &[&str], extra: &[(&str, &str)]) -> Self {
        room(place);
        let flags: Vec<String> = flags.iter().map(|&f| f.to_owned()).collect();
        let environment: Vec<_> =
            extra.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let child = spawn(place, &flags, &environment);
        let mut daemon = Self { place, child, flags, environment };
        daemon.wait();
        daemon
    }

    /// One that was started in a way of its own.
    pub fn of(place: &'a Place, child: Child) -> Self {
        let mut daemon = Self { place, child, flags: Vec::new(), environment: Vec::new() };
        daemon.wait();
        daemon
    }

    fn wait(&mut self) {
        until("the daemon serves", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended");
            self.ringfence(&["daemon", "status"]).code == Some(0)
        });
    }

    /// After a kill.
    pub fn start_again(&mut self) {
        self.child = spawn(self.place, &self.flags, &self.environment);
        self.wait();
    }

    /// After a kill; this one dies at a labelled step.
    pub fn start_to_die(&mut self, step: &str) {
        let mut environment = self.environment.clone();
        environment.push(("RINGFENCE_FAULT".into(), step.into()));
        self.child = spawn(self.place, &self.flags, &environment);
        self.wait();
    }

    /// Whether it died, as by `kill -9`.
    pub fn has_died(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn process(&self) -> Process {
        Process::of(self.child.id() as i32).unwrap()
    }

    pub fn family(&self) -> Vec<Process> {
        Process::of(self.child.id() as i32).map(|p| p.below()).unwrap_or_default()
    }

    /// The spawner that serves one sandbox with a layer, view or hosts: it has threads, unlike those that
    /// wait to be asked, and helpers in prepared places.
    pub fn spawner_beside(&self) -> Process {
        let found = self.process().below().into_iter().rfind(|p| {
            let line = std::fs::read(format!("/proc/{}/cmdline", p.pid)).unwrap_or_default();
            let threads = std::fs::read_dir(format!("/proc/{}/task", p.pid));
            line.windows(9).any(|w| w == b"__spawner") && threads.is_ok_and(|all| all.count() > 1)
        });
        found.unwrap()
    }

    /// `kill -9` of the daemon alone; what it had started.
    pub fn kill(&mut self) -> Vec<Process> {
        let family = self.family();
        self.process().kill();
        self.child.wait().unwrap();
        family
    }

    pub fn socket(&self) -> PathBuf {
        self.place.root().join("run/ringfence/daemon.sock")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.ringfence(args);
        environment(self.place, &mut command);
        command
    }

    pub fn ringfence(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// A new sandbox over the workspace.
    #[track_caller]
    pub fn create(&self, args: &[&str]) -> String {
        let mut all = vec!["create"];
        all.extend(args);
        self.ringfence(&all).ok().out.trim().to_owned()
    }

    pub fn shell(&self, sandbox: &str, script: &str) -> Ran {
        self.ringfence(&["exec", sandbox, "--", "/bin/sh", "-c", script])
    }

    #[track_caller]
    pub fn sandbox(&self, id: &str) -> Value {
        self.get(&format!("/v1/sandboxes/{id}")).is(200).json()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.curl(&[], path)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.curl(&["-H", "Content-Type: application/json", "-d", &body], path)
    }

    /// Over the socket, as the user.
    pub fn curl(&self, args: &[&str], path: &str) -> Answer {
        let mut command = self.place.command("curl");
        command.arg("--unix-socket").arg(self.socket()).args(args);
        answer(command.arg(format!("http://localhost{path}")))
    }
}

pub fn answer(curl: &mut Command) -> Answer {
    let ran = Ran::of(curl.args(["-sS", "-N", "-w", "\n%{http_code}"]));
    let (body, status) = ran.out.rsplit_once('\n').unwrap_or_else(|| panic!("{ran:?}"));
    Answer { status: status.parse().unwrap(), body: body.to_owned() }
}

pub fn environment(place: &Place, command: &mut Command) {
    command
        .env("XDG_RUNTIME_DIR", place.root().join("run"))
        .env("RINGFENCE_STATE", place.home().join("state"));
}

/// The directory of the daemon's socket.
pub fn room(place: &Place) {
    let run = place.root().join("run");
    if !run.exists() {
        std::fs::create_dir(&run).unwrap();
        crate::harness::mode(&run, 0o700);
        place.own(&run);
    }
}

fn spawn(place: &Place, flags: &[String], extra: &[(String, String)]) -> Child {
    let mut command = place.command(binary());
    environment(place, &mut command);
    command.arg("daemon").args(flags).stdout(Stdio::null());
    for (name, value) in extra {
        command.env(name, value);
    }
    command.spawn().unwrap()
}
