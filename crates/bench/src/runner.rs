//! How commands are timed: all cases of a group in turn, in an order drawn anew for every round, so that
//! whatever slows the machine down slows all of them down.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Seek as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::model::{Better, Case, Group};
use crate::stats::Random;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub warmups: usize,
    /// What one case may take; it gets fewer rounds where it needs more.
    pub budget: Duration,
    /// A bar on the terminal.
    pub progress: bool,
}

/// So many samples a case has however long they take.
pub const LEAST: usize = 3;
/// This part of the time that a case may take is for its warm-ups.
const WARM: u32 = 10;
/// A command that takes longer than this is not waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// A command to time.
#[derive(Clone, Debug)]
pub struct Timed {
    pub name: String,
    pub argv: Vec<OsString>,
    pub dir: PathBuf,
    pub env: Vec<(OsString, OsString)>,
    /// It has to fail: what is measured is a refusal.
    pub fails: bool,
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

    /// Once, into this; what it complained of last where it failed.
    fn once(&self, stdout: Stdio) -> Result<Duration, String> {
        let problem = |e: std::io::Error| format!("does not start: {}", e.kind());
        let mut command = self.command();
        let mut said = memory()?;
        command.stdout(stdout).stderr(said.try_clone().map_err(problem)?);
        let start = Instant::now();
        let status = command.spawn().and_then(|mut child| within(&mut child));
        let time = start.elapsed();
        match status {
            Ok(Some(status)) if self.right(status) => Ok(time),
            Ok(Some(status)) => {
                let text = read(&mut said);
                let last = text.lines().rev().map(str::trim).find(|l| !l.is_empty());
                Err(last.map_or_else(|| status.to_string(), |last| format!("{status}: {last}")))
            }
            Ok(None) => Err(format!("did not end within {} s", LIMIT.as_secs())),
            Err(e) => Err(problem(e)),
        }
    }

    fn sample(&self) -> Result<Duration, String> {
        self.once(Stdio::null())
    }

    /// What it writes, once.
    pub fn writes(&self) -> Result<String, String> {
        let mut out = memory()?;
        let to = out.try_clone().map_err(|e| e.kind().to_string())?;
        self.once(to.into())?;
        Ok(read(&mut out))
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
        let problem = |why: String| {
            if why.starts_with("does not") { why } else { format!("does not run here: {why}") }
        };
        self.sample().map(drop).map_err(problem)
    }
}

/// A file that nobody has to empty, as a pipe would have to be, for what a command writes.
fn memory() -> Result<File, String> {
    let made = memfd_create("said", MemfdFlags::CLOEXEC);
    made.map(File::from).map_err(|e| format!("memfd_create: {e}"))
}

fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.rewind().and_then(|()| file.take(1 << 20).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Its end, or none where it did not come in time; it is killed then.
fn within(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let Ok(fd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else {
        return child.wait().map(Some);
    };
    let end = Instant::now() + LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) | Err(_) => return child.wait().map(Some),
        }
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

/// Whether a contestant has had what it may have: its time, and the samples that it has in any case.
fn is_over(spent: Duration, samples: usize, warming: bool, plan: &Plan) -> bool {
    if warming { spent > plan.budget / WARM } else { spent > plan.budget && samples >= LEAST }
}

/// A word about fewer samples than rounds.
fn fewer(case: &mut Case, plan: &Plan) {
    let (n, of) = (case.samples.len(), plan.rounds);
    if n < of {
        let one = crate::text::figure(case.p50().unwrap_or(f64::NAN), "us");
        case.notes.push(format!(
            "{n} of {of} rounds: one takes {one}, and a case {} s",
            plan.budget.as_secs()
        ));
    }
}

/// Measures contestants, each once in every round, those that take long only in the first of them. The
/// first contestant is the baseline.
pub fn in_turn(
    name: &str,
    title: &str,
    unit: &str,
    mut contestants: Vec<Contestant<'_>>,
    plan: &Plan,
) -> Group {
    let mut samples = vec![Vec::with_capacity(plan.rounds); contestants.len()];
    let mut spent = vec![Duration::ZERO; contestants.len()];
    let turns = (plan.rounds + plan.warmups) * contestants.len();
    let bar = bar(title, turns as u64, plan.progress);
    // The same order each time, so that a run can be repeated.
    let mut random =
        Random::new(name.bytes().fold(1, |sum, b| sum * 31 % 0xffff_fffb + u64::from(b)));
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    for round in 0..plan.warmups + plan.rounds {
        random.shuffle(&mut order);
        for &i in &order {
            bar.inc(1);
            let Ok(sampler) = &mut contestants[i].sampler else { continue };
            if is_over(spent[i], samples[i].len(), round < plan.warmups, plan) {
                continue;
            }
            let start = Instant::now();
            let taken = sampler();
            spent[i] += start.elapsed();
            match taken {
                Ok(sample) if round >= plan.warmups => samples[i].push(sample),
                Ok(_) => {}
                // It worked before. Half of its samples would not pair with those of the others.
                Err(e) => {
                    contestants[i].sampler = Err(format!("failed in round {round}: {e}"));
                }
            }
        }
    }
    bar.finish_and_clear();
    let cases = contestants.into_iter().zip(samples);
    let cases = cases.map(|(c, samples)| {
        if let Err(why) = c.sampler {
            return Case::absent(&c.name, &c.what, why);
        }
        let mut case = Case::of(&c.name, &c.what, samples);
        fewer(&mut case, plan);
        case
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
        Timed { name: name.into(), argv, dir, env, fails, absent: None }
    }

    const PLAN: Plan =
        Plan { rounds: 3, warmups: 1, budget: Duration::from_secs(20), progress: false };

    /// Fails for good from the third time on.
    const TIRED: &str =
        "echo >>$0; [ $(wc -l <$0) -lt 3 ] || { echo one; echo tired >&2; exit 9; }";

    #[test]
    fn who_fails_in_the_middle_does_not_end_it() {
        let file = tempfile::NamedTempFile::new().unwrap_or_else(|e| panic!("{e}"));
        let count = file.path().to_string_lossy().into_owned();
        let cases =
            [timed("host", &["true"], false), timed("tired", &["sh", "-c", TIRED, &count], false)];
        let group = group("test/tired", "true", &cases, &PLAN);
        assert_eq!(group.cases[0].samples.len(), 3);
        assert!(group.cases[0].notes.is_empty(), "{:?}", group.cases[0].notes);
        let why = group.cases[1].absent.as_deref().unwrap_or_default();
        assert_eq!(why, "failed in round 1: exit status: 9: tired");
        assert!(group.cases[1].samples.is_empty() && group.cases[1].summary.is_none());
    }

    #[test]
    fn who_takes_long_has_fewer_rounds_and_says_so() {
        // No time at all: what is measured in any case, without more warm-ups than one.
        let plan = Plan { rounds: 8, warmups: 4, budget: Duration::ZERO, progress: false };
        let counted = std::cell::Cell::new(0);
        let contestant = |name: &str, sampler| Contestant {
            name: name.into(),
            what: String::new(),
            sampler: Ok(sampler),
        };
        let slow: Sampler<'_> = Box::new(|| {
            counted.set(counted.get() + 1);
            Ok(2e6)
        });
        let group = in_turn("test/slow", "slow", "us", vec![contestant("slow", slow)], &plan);
        assert_eq!(group.cases[0].samples.len(), LEAST);
        assert_eq!(counted.get(), LEAST + 1);
        assert_eq!(group.cases[0].notes, ["3 of 8 rounds: one takes 2.00 s, and a case 0 s"]);
        // The control: with time enough it has all of them, and its factor is of the rounds of both.
        let all: Sampler<'_> = Box::new(|| Ok(2e6));
        let plan = Plan { budget: Duration::from_secs(20), ..plan };
        let mut group = in_turn("test/slow", "slow", "us", vec![contestant("host", all)], &plan);
        assert_eq!(group.cases[0].samples.len(), 8);
        assert!(group.cases[0].notes.is_empty());
        group.cases.push(Case::of("few", "", vec![4e6; 3]));
        assert_eq!(group.factors(&group.cases[1]), Some(vec![2.0; 3]));
    }

    #[test]
    fn a_group_is_measured_in_turn_and_says_what_does_not_run() {
        let cases = [
            timed("host", &["true"], false),
            timed("refused", &["sh", "-c", "exit 7"], true),
            timed("broken", &["sh", "-c", "echo no good >&2; exit 1"], false),
            timed("gone", &["/nowhere/at/all"], false),
        ];
        let group = group("test/true", "true", &cases, &PLAN);
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
