//! What is measured: cold starts, warm ones, files, the network, density.

pub mod density;
pub mod files;
pub mod network;
pub mod place;
pub mod warm;
pub mod work;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::machine;
use crate::model::{FORMAT, Profile, Report, Settings, Timeline};
use crate::peer::{self, Ready};
use crate::runner::{self, Plan, Timed};
use crate::trace;
use place::Place;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The ringfence to measure.
    pub binary: PathBuf,
    pub commit: Option<String>,
    pub rounds: Option<usize>,
    /// Little of everything.
    pub quick: bool,
    /// `None`: every peer that is there.
    pub peers: Option<Vec<String>>,
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
    Files,
    Network,
    Density,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Cold, Self::Warm, Self::Files, Self::Network, Self::Density];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Files => "files",
            Self::Network => "network",
            Self::Density => "density",
        }
    }
}

/// Samples of each case.
const ROUNDS: usize = 30;
const QUICK_ROUNDS: usize = 5;

impl Ask {
    fn plan(&self) -> Plan {
        let rounds = self.rounds.unwrap_or(if self.quick { QUICK_ROUNDS } else { ROUNDS });
        let warmups = if self.quick { 1 } else { 3 };
        Plan { rounds: rounds.max(1), warmups, progress: self.progress }
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

/// Measures some parts. A build that is no release build is refused.
pub fn measure(ask: &Ask, name: &str, parts: &[Part]) -> Result<Report, String> {
    let tool = machine::tool(&ask.binary, ask.commit.clone())?;
    if tool.profile == Profile::Debug && !ask.debug {
        return Err(format!(
            "{}: is a debug build, whose figures say nothing; build it with --release",
            ask.binary.display()
        ));
    }
    let (started, machine) = (machine::now(), machine::machine());
    let processors = runner::pin(ask.cpus.as_deref())?;
    let place = Place::new(&ask.binary)?;
    let room = place.room();
    let (ready, peers) = peer::gather(ask.peers.as_deref(), &room)?;
    let plan = ask.plan();
    let settings =
        Settings { rounds: plan.rounds, warmups: plan.warmups, interleaved: true, processors };
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
        match part {
            Part::Cold => bench.cold(&mut report)?,
            Part::Warm => report.groups.extend(warm::groups(&bench)?),
            Part::Files => report.groups.extend(files::groups(&mut bench)?),
            Part::Network => report.groups.extend(network::groups(&bench)?),
            Part::Density => report.curves.extend(density::curves(&mut bench, &mut report.groups)?),
        }
    }
    Ok(report)
}

/// Words before a command that run it confined: a name and ringfence's flags.
const WAYS: [(&str, &[&str]); 4] = [
    ("ringfence", &["run", "--no-config", "--"]),
    ("ringfence agent-safe", &["run", "--no-config", "-t", "agent-safe", "--"]),
    ("ringfence full-access", &["run", "--no-config", "-t", "full-access", "--"]),
    ("ringfence layer", &["run", "--no-config", "--layer", "bench", "--"]),
];

impl Bench<'_> {
    fn cold(&mut self, report: &mut Report) -> Result<(), String> {
        for work in work::all(&self.place, self.ask.quick)? {
            let mut cases = vec![self.place.timed("host", &work, &[])];
            for (name, flags) in WAYS {
                cases.push(self.place.confined(name, &work, flags));
            }
            let mut peers = std::mem::take(&mut self.peers);
            cases.extend(peers.iter_mut().map(|peer| by_peer(&self.place, peer, &work)));
            self.peers = peers;
            let name = format!("cold/{}", work.name);
            if let Some(dir) = &self.ask.hyperfine {
                hyperfine(dir, &work.name, &cases, &self.plan)?;
            }
            report.groups.push(runner::group(&name, &work.title, &cases, &self.plan));
        }
        report.timelines.extend(self.timeline());
        Ok(())
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
    match peer.wrap(&work.argv) {
        Ok(argv) => timed.argv = argv,
        Err(why) => timed.absent = Some(why),
    }
    timed
}

/// The same commands by hyperfine, as a second opinion: one after the other, by its own rules.
fn hyperfine(
    dir: &std::path::Path,
    name: &str,
    cases: &[Timed],
    plan: &Plan,
) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {}", dir.display(), e.kind()))?;
    let works: Vec<&Timed> = cases.iter().filter(|c| c.check().is_ok()).collect();
    let Some(first) = works.first() else { return Ok(()) };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|d| d.join("hyperfine")).find(|f| f.is_file());
    let mut command = Command::new(found.ok_or("hyperfine is not in the path")?);
    command
        .args(["--shell=none", "--style=none", "--warmup"])
        .arg(plan.warmups.to_string())
        .arg("--runs")
        .arg(plan.rounds.max(2).to_string())
        .arg("--export-json")
        .arg(dir.join(format!("{name}.json")));
    for case in &works {
        command.arg("--command-name").arg(&case.name).arg(case.what());
    }
    command.current_dir(&first.dir).env_clear().envs(first.env.iter().map(|(k, v)| (k, v)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(|e| format!("hyperfine: {}", e.kind()))?;
    if status.success() { Ok(()) } else { Err(format!("hyperfine: {name}: {status}")) }
}
