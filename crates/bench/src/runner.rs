//! How commands are timed: all cases of a group in turn, in an order drawn anew for every round, so that
//! whatever slows the machine down slows all of them down.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::model::{Better, Case, Group};
use crate::stats::Random;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub warmups: usize,
    /// A bar on the terminal.
    pub progress: bool,
}

/// A command to time.
#[derive(Clone, Debug)]
pub struct Timed {
    pub name: String,
    pub argv: Vec<OsString>,
    pub dir: PathBuf,
    pub env: Vec<(OsString, OsString)>,
    /// It has to fail: what is measured is a refusal.
    pub fails: bool,
    /// Carried out before each sample, outside the measured time.
    pub before: Option<Vec<OsString>>,
    /// It was found not to be there: why.
    pub absent: Option<String>,
}

impl Timed {
    pub fn what(&self) -> String {
        shell_words(&self.argv)
    }

    fn right(&self, status: ExitStatus) -> bool {
        // What a signal ended or could not be started has refused nothing.
        if self.fails { matches!(status.code(), Some(1..125)) } else { status.success() }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .current_dir(&self.dir)
            .env_clear()
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn sample(&self) -> Result<Duration, String> {
        if let Some(before) = &self.before {
            let _ = Command::new(&before[0]).args(&before[1..]).stdin(Stdio::null()).status();
        }
        let mut command = self.command();
        let start = Instant::now();
        let status = command.status();
        let time = start.elapsed();
        match status {
            Ok(status) if self.right(status) => Ok(time),
            Ok(status) => Err(status.to_string()),
            Err(e) => Err(format!("does not start: {}", e.kind())),
        }
    }

    /// One sample, in microseconds.
    pub fn sampled(&self) -> Result<f64, String> {
        self.sample().map(|time| time.as_nanos() as f64 / 1000.0)
    }

    /// Once, to see that it works; what it said if it does not.
    pub fn check(&self) -> Result<(), String> {
        if let Some(why) = &self.absent {
            return Err(why.clone());
        }
        let output = self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = output.map_err(|e| format!("does not start: {}", e.kind()))?;
        if self.right(output.status) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said =
            said.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default().to_owned();
        Err(format!("does not run here ({}): {said}", output.status))
    }
}

/// Starts a server, and ends it when nobody holds standard input any more. The process group of a
/// terminal's interrupt may be its own; `exec 3<&0` since what goes to the background reads nothing.
const KEEPER: &str = "trap '' INT; exec 3<&0; \"$@\" </dev/null 3<&- & read _ <&3; kill $!; wait";

/// A server that ends when whoever started it drops its standard input, or ends.
pub fn kept(argv: &[OsString]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", KEEPER, "sh"]).args(argv);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A command line that a shell would read as these words.
pub fn shell_words(argv: &[OsString]) -> String {
    let quoted = argv.iter().map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            return word.into_owned();
        }
        format!("'{}'", word.replace('\'', "'\\''"))
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Something that takes one sample each time it is asked.
pub type Sampler<'a> = Box<dyn FnMut() -> Result<f64, String> + 'a>;

/// A contestant: name, what it does, and its sampler, or why there is none.
pub struct Contestant<'a> {
    pub name: String,
    pub what: String,
    pub sampler: Result<Sampler<'a>, String>,
}

impl std::fmt::Debug for Contestant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contestant").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Measures commands. What does not run is in the group as absent, with what it said.
pub fn group(name: &str, title: &str, cases: &[Timed], plan: &Plan) -> Group {
    let contestants = cases.iter().map(|case| Contestant {
        name: case.name.clone(),
        what: case.what(),
        sampler: case.check().map(|()| Box::new(|| case.sampled()) as Sampler<'_>),
    });
    in_turn(name, title, "us", contestants.collect(), plan)
}

/// Measures contestants, each once in every round. The first is the baseline.
pub fn in_turn(
    name: &str,
    title: &str,
    unit: &str,
    mut contestants: Vec<Contestant<'_>>,
    plan: &Plan,
) -> Group {
    let mut samples = vec![Vec::with_capacity(plan.rounds); contestants.len()];
    let bar = bar(title, (plan.rounds + plan.warmups) as u64, plan.progress);
    // The same order each time, so that a run can be repeated.
    let mut random =
        Random::new(name.bytes().fold(1, |sum, b| sum * 31 % 0xffff_fffb + u64::from(b)));
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    for round in 0..plan.warmups + plan.rounds {
        random.shuffle(&mut order);
        for &i in &order {
            let Ok(sampler) = &mut contestants[i].sampler else { continue };
            match sampler() {
                Ok(sample) if round >= plan.warmups => samples[i].push(sample),
                Ok(_) => {}
                // It worked before. Half of its samples would not pair with those of the others.
                Err(e) => {
                    contestants[i].sampler = Err(format!("failed in round {round}: {e}"));
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let cases = contestants.into_iter().zip(samples);
    let cases = cases.map(|(c, samples)| match c.sampler {
        Err(why) => Case::absent(&c.name, &c.what, why),
        Ok(_) => Case::of(&c.name, &c.what, samples),
    });
    let cases: Vec<Case> = cases.collect();
    let baseline = cases.first().map(|c| c.name.clone());
    let (name, title, unit) = (name.into(), title.into(), unit.into());
    Group { name, title, unit, better: Better::Lower, baseline, cases }
}

/// A bar that says what is measured, on a terminal only.
pub fn bar(title: &str, length: u64, wanted: bool) -> ProgressBar {
    if !wanted || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{msg:32!} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(title.to_owned());
    bar
}

/// Keeps this process, and so what it starts, to some processors: those asked for, else the last two
/// where there are four or more, so that the rest of the machine has the others. Says which.
pub fn pin(wanted: Option<&[usize]>) -> Result<Vec<usize>, String> {
    let allowed = sched_getaffinity(None).map_err(|e| format!("sched_getaffinity: {e}"))?;
    let have: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|i| allowed.is_set(*i)).collect();
    let chosen: Vec<usize> = match wanted {
        Some(some) => some.to_vec(),
        None if have.len() >= 4 => have[have.len() - 2..].to_vec(),
        None => return Ok(Vec::new()),
    };
    if let Some(other) = chosen.iter().find(|i| !have.contains(i)) {
        return Err(format!("--cpus: processor {other} is not available here ({have:?} are)"));
    }
    let mut set = CpuSet::new();
    for &i in &chosen {
        set.set(i);
    }
    sched_setaffinity(None, &set).map_err(|e| format!("sched_setaffinity: {e}"))?;
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(name: &str, argv: &[&str], fails: bool) -> Timed {
        let argv = argv.iter().map(OsString::from).collect();
        let (dir, env) = ("/".into(), vec![("PATH".into(), "/usr/bin:/bin".into())]);
        Timed { name: name.into(), argv, dir, env, fails, before: None, absent: None }
    }

    #[test]
    fn a_group_is_measured_in_turn_and_says_what_does_not_run() {
        let plan = Plan { rounds: 3, warmups: 1, progress: false };
        let cases = [
            timed("host", &["true"], false),
            timed("refused", &["sh", "-c", "exit 7"], true),
            timed("broken", &["sh", "-c", "echo no good >&2; exit 1"], false),
            timed("gone", &["/nowhere/at/all"], false),
        ];
        let group = group("test/true", "true", &cases, &plan);
        assert_eq!(group.baseline.as_deref(), Some("host"));
        assert_eq!(group.cases[0].samples.len(), 3);
        assert_eq!(group.cases[1].samples.len(), 3);
        assert!(group.factors(&group.cases[1]).is_some());
        assert!(group.cases[2].absent.as_ref().is_some_and(|why| why.contains("no good")));
        assert!(group.cases[3].absent.as_ref().is_some_and(|why| why.contains("does not start")));
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let words: Vec<OsString> =
            ["sh", "-c", "echo 'a b'", ""].iter().map(OsString::from).collect();
        assert_eq!(shell_words(&words), r"sh -c 'echo '\''a b'\''' ''");
    }
}
