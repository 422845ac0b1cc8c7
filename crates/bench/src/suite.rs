//! What is measured: cold starts, warm ones, the daemon's answers, files, the network, density.

pub mod density;
pub mod files;
pub mod network;
pub mod place;
pub mod server;
pub mod warm;
pub mod work;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::machine;
use crate::model::{FORMAT, Group, Profile, Report, Settings, Timeline, Tool, failed};
use crate::peer::{self, Ready};
use crate::runner::{self, Plan, Timed};
use crate::trace;
use place::{AGAINST, Place};
use work::Work;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The ringfence to measure.
    pub binary: PathBuf,
    pub commit: Option<String>,
    /// Another ringfence, measured in the same rounds.
    pub against: Option<PathBuf>,
    pub rounds: Option<usize>,
    /// What one case may take.
    pub budget: Option<Duration>,
    /// Only this work; `None`: all of it.
    pub only: Option<Vec<String>>,
    /// Little of everything.
    pub quick: bool,
    /// `None`: every peer that is there.
    pub peers: Option<Vec<String>>,
    /// Peers besides, each a file as those of `bench/peers`.
    pub adapters: Vec<PathBuf>,
    pub cpus: Option<Vec<usize>>,
    /// Directory for hyperfine's figures of the same commands, where it is to measure too.
    pub hyperfine: Option<PathBuf>,
    /// Measure a build that is no release build, and mark the result.
    pub debug: bool,
    pub progress: bool,
    /// As typed.
    pub command: String,
}

/// The parts, as the verbs are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Cold,
    Warm,
    Server,
    Files,
    Network,
    Density,
}

impl Part {
    pub const ALL: [Self; 6] =
        [Self::Cold, Self::Warm, Self::Server, Self::Files, Self::Network, Self::Density];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Server => "server",
            Self::Files => "files",
            Self::Network => "network",
            Self::Density => "density",
        }
    }
}

/// Samples of each case.
const ROUNDS: usize = 30;
const QUICK_ROUNDS: usize = 5;
/// A case may take so long.
const BUDGET: Duration = Duration::from_secs(20);
/// Hyperfine has an opinion on these, in so many runs, of whatever takes no longer than this (microseconds).
const HYPERFINE: ([&str; 3], usize, f64) = (["true", "python", "git"], 5, 2e6);

impl Ask {
    fn plan(&self) -> Plan {
        let rounds = self.rounds.unwrap_or(if self.quick { QUICK_ROUNDS } else { ROUNDS });
        let warmups = if self.quick { 1 } else { 3 };
        let budget = self.budget.unwrap_or(BUDGET);
        Plan { rounds: rounds.max(1), warmups, budget, progress: self.progress }
    }

    /// Only work that there is can be asked for, and two binaries only where commands are run by both.
    fn check(&self, parts: &[Part]) -> Result<(), String> {
        if self.against.is_some() && !parts.iter().all(|p| matches!(p, Part::Cold | Part::Files)) {
            return Err("--against: only cold and files run the commands of two".into());
        }
        let known: Vec<&str> = work::NAMES.into_iter().chain(files::WORKS.map(|w| w.0)).collect();
        match self.only.iter().flatten().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(format!("--only: no work {name} (there is {})", known.join(", "))),
            None => Ok(()),
        }
    }

    fn tool(&self, binary: &Path) -> Result<Tool, String> {
        let tool = machine::tool(binary, self.commit.clone())?;
        if tool.profile == Profile::Debug && !self.debug {
            return Err(format!(
                "{}: is a debug build, whose figures say nothing; build it with --release",
                binary.display()
            ));
        }
        Ok(tool)
    }
}

/// Everything that the parts share.
#[derive(Debug)]
pub struct Bench<'a> {
    ask: &'a Ask,
    plan: Plan,
    place: Place,
    peers: Vec<Ready>,
}

/// Measures some parts; the second result is of the other binary, where there is one. A build that is no
/// release build is refused. A part that fails is in the result as failed.
pub fn measure(ask: &Ask, name: &str, parts: &[Part]) -> Result<(Report, Option<Report>), String> {
    ask.check(parts)?;
    let tool = ask.tool(&ask.binary)?;
    let against = ask.against.as_deref().map(|binary| ask.tool(binary)).transpose()?;
    let (started, machine) = (machine::now(), machine::machine());
    let processors = runner::pin(ask.cpus.as_deref())?;
    let place = Place::new(&ask.binary, ask.against.as_deref())?;
    let room = place.room();
    let (ready, peers) = peer::gather(ask.peers.as_deref(), &ask.adapters, &room)?;
    let plan = ask.plan();
    let together = against.as_ref().map(|old| format!("{started} {} {}", tool.sha256, old.sha256));
    let settings = Settings {
        rounds: plan.rounds,
        warmups: plan.warmups,
        interleaved: true,
        processors,
        budget: Some(plan.budget.as_secs()),
        together,
    };
    let mut report = Report {
        format: FORMAT.into(),
        name: name.into(),
        started,
        command: ask.command.clone(),
        tool,
        machine,
        settings,
        peers,
        groups: Vec::new(),
        timelines: Vec::new(),
        curves: Vec::new(),
    };
    let mut bench = Bench { ask, plan, place, peers: ready };
    for part in parts {
        if let Err(why) = bench.part(*part, &mut report) {
            let (name, title) = (format!("{}/failed", part.name()), part.name());
            report.groups.push(failed(&name, title, &why));
        }
    }
    tidy(&mut report, &bench.place.path(""));
    let other = against.map(|tool| split(&mut report, tool));
    Ok((report, other))
}

/// The result of the other binary: what is its own, and what was measured beside both.
fn split(report: &mut Report, tool: Tool) -> Report {
    let mut other = Report { tool, timelines: Vec::new(), curves: Vec::new(), ..report.clone() };
    for group in &mut report.groups {
        group.cases.retain(|case| !case.name.starts_with(AGAINST));
    }
    for group in &mut other.groups {
        group.cases.retain(|case| !case.name.starts_with("ringfence"));
        for case in &mut group.cases {
            if let Some(name) = case.name.strip_prefix(AGAINST) {
                case.name = name.into();
            }
        }
    }
    other
}

/// Takes out where it was measured: directories that are gone afterwards, and somebody's home.
fn tidy(report: &mut Report, place: &Path) {
    let home = std::env::var("HOME").unwrap_or_default();
    let place = place.to_string_lossy();
    let place = place.trim_end_matches('/');
    let clean = |text: &mut String| {
        *text = text.replace(place, "PLACE");
        if home.len() > 1 {
            *text = text.replace(&format!("{home}/"), "~/");
        }
    };
    for case in report.groups.iter_mut().flat_map(|group| &mut group.cases) {
        clean(&mut case.what);
        case.absent.iter_mut().for_each(clean);
    }
    for timeline in &mut report.timelines {
        clean(&mut timeline.what);
    }
    for peer in &mut report.peers {
        peer.absent.iter_mut().for_each(clean);
    }
    for line in report.curves.iter_mut().flat_map(|curve| &mut curve.lines) {
        line.absent.iter_mut().for_each(clean);
    }
}

/// Words before a command that run it confined: a name and ringfence's flags.
const WAYS: [(&str, &[&str]); 4] = [
    ("ringfence", &["run", "--no-config", "--"]),
    ("ringfence agent-safe", &["run", "--no-config", "-t", "agent-safe", "--"]),
    ("ringfence full-access", &["run", "--no-config", "-t", "full-access", "--"]),
    ("ringfence layer", &["run", "--no-config", "--layer", "bench", "--"]),
];

/// What a host that is allowed adds to a start: a filter, and sockets for it. Nothing is asked of the host.
const HOSTS: (&str, &[&str]) =
    ("ringfence hosts", &["run", "--no-config", "--allow-host", "allowed.example", "--"]);

impl Bench<'_> {
    fn part(&mut self, part: Part, report: &mut Report) -> Result<(), String> {
        match part {
            Part::Cold => self.cold(report)?,
            Part::Warm => report.groups.extend(warm::groups(self)?),
            Part::Server => server::part(self, report)?,
            Part::Files => files::part(self, report)?,
            Part::Network => report.groups.extend(network::groups(self)?),
            Part::Density => density::part(self, report),
        }
        Ok(())
    }

    /// Whether this work is asked for.
    fn wants(&self, name: &str) -> bool {
        self.ask.only.as_ref().is_none_or(|only| only.iter().any(|o| o == name))
    }

    /// This work by every one of ringfence's ways.
    fn own(&self, work: &Work, ways: &[(&str, &[&str])]) -> Vec<Timed> {
        let mut cases = Vec::new();
        for (name, flags) in ways {
            cases.push(self.place.confined(name, work, flags));
            if self.ask.against.is_some() {
                cases.push(self.place.against(name, work, flags));
            }
        }
        cases
    }

    fn cold(&mut self, report: &mut Report) -> Result<(), String> {
        let mut all = work::all(&self.place, self.ask.quick)?;
        all.retain(|work| self.wants(&work.name));
        for work in &all {
            let mut cases = vec![self.place.timed("host", work, &[])];
            cases.extend(self.own(work, &WAYS));
            if work.name == "true" {
                cases.extend(self.own(work, &[HOSTS]));
            }
            let place = &self.place;
            cases.extend(self.peers.iter_mut().map(|peer| by_peer(place, peer, work)));
            let name = format!("cold/{}", work.name);
            let mut group = runner::group(&name, &work.title, &cases, &self.plan);
            if let Some(dir) = &self.ask.hyperfine
                && let Err(why) = self.hyperfine(dir, &work.name, &cases, &group)
                && let Some(first) = group.cases.first_mut()
            {
                first.notes.push(why);
            }
            report.groups.push(group);
        }
        report.timelines.extend(self.timeline());
        Ok(())
    }

    /// The same commands by hyperfine, as a second opinion, one after the other, by its own rules: some of
    /// the work, by ringfence and its peers, as far as it was measured and is quick.
    fn hyperfine(
        &self,
        dir: &Path,
        name: &str,
        cases: &[Timed],
        group: &Group,
    ) -> Result<(), String> {
        let (works, runs, longest) = HYPERFINE;
        let is_wanted = |case: &&Timed| {
            let beside = self.peers.iter().any(|peer| peer.adapter.name == case.name);
            let time = group.case(&case.name).and_then(crate::model::Case::p50);
            (beside || case.name == "host" || case.name == "ringfence")
                && time.is_some_and(|time| time <= longest)
        };
        let chosen: Vec<&Timed> = cases.iter().filter(is_wanted).collect();
        match chosen.first() {
            Some(first) if works.contains(&name) => {
                hyperfine(dir, name, first, &chosen, runs.min(self.plan.rounds).max(2))
            }
            _ => Ok(()),
        }
    }

    /// A cold start as ringfence's own trace has it: of a few the one in the middle.
    fn timeline(&self) -> Option<Timeline> {
        let file = self.place.path("trace.json");
        let flags = ["run", "--no-config", "--trace-startup"].map(Into::into);
        let mut argv: Vec<std::ffi::OsString> = vec![self.place.binary().into()];
        argv.extend(flags);
        argv.extend([file.clone().into(), "--".into(), "true".into()]);
        let timed = self.place.command("trace", argv);
        let mut all: Vec<Timeline> = (0..5)
            .filter_map(|_| {
                let done = timed.command().status().is_ok_and(|s| s.success());
                done.then(|| trace::read(&file, &timed.what()).ok()).flatten()
            })
            .collect();
        let length = |t: &Timeline| t.steps.iter().map(|s| s.end_us).fold(0.0, f64::max);
        all.sort_by(|a, b| length(a).total_cmp(&length(b)));
        (!all.is_empty()).then(|| all.swap_remove(all.len() / 2))
    }
}

fn by_peer(place: &Place, peer: &mut Ready, work: &work::Work) -> Timed {
    let mut timed = place.timed(&peer.adapter.name.clone(), work, &[]);
    timed.env = peer.env();
    timed.env.extend(work.env.iter().cloned());
    // Absolute words go in as they are; the peer's own view decides whether they are there.
    match peer.wrap(&work.argv, &timed.dir) {
        Ok(argv) => timed.argv = argv,
        Err(why) => timed.absent = Some(why),
    }
    timed
}

fn hyperfine(
    dir: &Path,
    name: &str,
    first: &Timed,
    cases: &[&Timed],
    runs: usize,
) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {}", dir.display(), e.kind()))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|d| d.join("hyperfine")).find(|f| f.is_file());
    let mut command = Command::new(found.ok_or("hyperfine is not in the path")?);
    command
        .args(["--shell=none", "--style=none", "--ignore-failure", "--warmup=1", "--runs"])
        .arg(runs.to_string())
        .arg("--export-json")
        .arg(std::path::absolute(dir).unwrap_or_else(|_| dir.into()).join(format!("{name}.json")));
    for case in cases {
        command.arg("--command-name").arg(&case.name).arg(case.what());
    }
    command.current_dir(&first.dir).env_clear().envs(first.env.iter().map(|(k, v)| (k, v)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(|e| format!("hyperfine: {}", e.kind()))?;
    if status.success() { Ok(()) } else { Err(format!("hyperfine: {name}: {status}")) }
}
