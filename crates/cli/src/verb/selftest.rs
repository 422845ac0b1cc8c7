//! `ringfence selftest`: attacks a sandbox on this very host.
//!
//! Each attack runs twice, each time on a fresh stage: outside, as its control, where it must
//! succeed, and inside, where it must not. A refusal without a control that succeeds proves nothing
//! and is reported as such; a sandbox that did not start is an error and not a pass.

mod attacker;
mod stage;
mod table;

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write;
use std::io::{IsTerminal, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_sandbox::run::Ended;
use serde::Serialize;

use crate::output;
use attacker::{MARK, code};
use stage::Stage;
use table::{Attack, Side, Start};

/// Longest time that one side of an attack may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The hidden verb that the attacks are made with.
pub fn attack(args: &[OsString]) -> ExitCode {
    attacker::main(args)
}

/// What came of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Succeeds outside, fails inside.
    Held,
    /// Succeeds inside.
    Hole,
    /// Cannot succeed outside either, so nothing was shown. It failed inside, too.
    NoControl,
    /// The limit cannot be had on this host: the run was refused instead of being unlimited.
    NotHad,
    /// The sandbox did not start, or ordinary work failed in it.
    Error,
}

#[derive(Debug, Serialize)]
struct Report {
    name: &'static str,
    class: &'static str,
    what: &'static str,
    control: String,
    inside: String,
    verdict: Verdict,
}

/// What one side came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Succeeded(String),
    Refused(String),
    NotHad(String),
    Broken(String),
}

impl Answer {
    fn text(&self) -> &str {
        match self {
            Self::Succeeded(t) | Self::Refused(t) | Self::NotHad(t) | Self::Broken(t) => t,
        }
    }
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match crate::help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(matches) = matches.subcommand_matches("selftest") else {
        return output::fail("no arguments");
    };
    let only: Vec<String> =
        matches.get_many::<String>("only").unwrap_or_default().cloned().collect();
    let chosen: Vec<&Attack> = table::ATTACKS
        .iter()
        .filter(|a| only.is_empty() || only.iter().any(|o| a.name.contains(o.as_str())))
        .collect();
    if chosen.is_empty() {
        return output::fail(format_args!(
            "no attack has {} in its name",
            only.iter()
                .map(|o| format!("{:?}", output::printable(o)))
                .collect::<Vec<_>>()
                .join(" or ")
        ));
    }
    let binary = match std::env::current_exe() {
        Ok(path) => path,
        Err(e) => {
            return output::fail(format_args!(
                "cannot find this program's file: {}",
                attacker::plain(&e)
            ));
        }
    };
    let json = matches.get_flag("json");
    let progress = !json && std::io::stdout().is_terminal();
    let mut reports = Vec::with_capacity(chosen.len());
    for attack in chosen {
        let report = try_attack(attack, &binary);
        if !json {
            let code = output::print(&row(&report, progress));
            if code != ExitCode::SUCCESS {
                return code;
            }
        }
        reports.push(report);
    }
    let printed = if json { print_json(&reports) } else { output::print(&summary(&reports)) };
    if reports.iter().any(|r| matches!(r.verdict, Verdict::Hole | Verdict::Error)) {
        return ExitCode::from(crate::exit::FAILED);
    }
    printed
}

/// One probe for `doctor`: what was tried inside and whether it was refused there.
#[derive(Debug, Serialize)]
pub struct Probe {
    pub what: &'static str,
    pub held: bool,
    pub detail: String,
}

/// Tries these attacks inside a sandbox, without their controls.
pub fn probe(names: &[&str], binary: &Path) -> Vec<Probe> {
    let chosen = table::ATTACKS.iter().filter(|a| names.contains(&a.name));
    chosen
        .map(|attack| {
            let answer = side(attack, binary, Side::Inside);
            Probe {
                what: attack.what,
                held: matches!(answer, Answer::Refused(_)),
                detail: answer.text().to_owned(),
            }
        })
        .collect()
}

/// The status of a real run of `true`, or why there was none.
pub fn status(binary: &Path) -> Result<serde_json::Value, String> {
    let stage = Stage::new(binary).map_err(|e| attacker::plain(&e))?;
    let _ = std::fs::remove_dir_all(stage.project());
    std::fs::create_dir(stage.project()).map_err(|e| attacker::plain(&e))?;
    let mut command = stage.command(binary);
    command.args(["run", "--no-config", "--status", "-", "--", "true"]);
    let ran = run(&mut command).map_err(|e| attacker::plain(&e))?;
    serde_json::from_str(&ran.out)
        .map_err(|_| first_line(&ran.err).unwrap_or("it said nothing").to_owned())
}

fn try_attack(attack: &Attack, binary: &Path) -> Report {
    let control = side(attack, binary, Side::Control);
    let inside = side(attack, binary, Side::Inside);
    Report {
        name: attack.name,
        class: attack.class,
        what: attack.what,
        verdict: judge(&control, &inside),
        control: control.text().to_owned(),
        inside: inside.text().to_owned(),
    }
}

fn judge(control: &Answer, inside: &Answer) -> Verdict {
    match (control, inside) {
        (_, Answer::Succeeded(_)) => Verdict::Hole,
        (_, Answer::Broken(_)) | (Answer::Broken(_) | Answer::NotHad(_), _) => Verdict::Error,
        (_, Answer::NotHad(_)) => Verdict::NotHad,
        (Answer::Succeeded(_), Answer::Refused(_)) => Verdict::Held,
        (Answer::Refused(_), Answer::Refused(_)) => Verdict::NoControl,
    }
}

fn side(attack: &Attack, binary: &Path, side: Side) -> Answer {
    match Stage::new(binary).and_then(|stage| play(attack, &stage, side)) {
        Ok(answer) => answer,
        Err(e) => Answer::Broken(format!("cannot set the stage: {}", attacker::plain(&e))),
    }
}

fn play(attack: &Attack, stage: &Stage, side: Side) -> std::io::Result<Answer> {
    let mut command = match attack.custom {
        Some(custom) => custom(stage, side),
        None => on_stage(attack, stage, side),
    };
    let ran = run(&mut command)?;
    std::thread::sleep(Duration::from_millis(attack.settle_ms.into()));
    Ok(answer(attack, stage, side, &ran))
}

fn on_stage(attack: &Attack, stage: &Stage, side: Side) -> Command {
    if attack.start == Start::WithDescriptor {
        stage.leak_descriptor();
    }
    let mut words: Vec<OsString> = Vec::new();
    if let (Start::OnTerminal, Some(path)) = (attack.start, stage.terminal()) {
        words.extend(["__attack".into(), "on-terminal".into(), path.into()]);
        words.push(stage.binary.clone().into());
    }
    if side == Side::Inside {
        words.extend(["run", "--no-config", "--pty", "never", "--allow-read"].map(OsString::from));
        words.push(stage.binary.clone().into());
        words.extend((attack.flags)(stage));
        words.push("--".into());
        words.push(stage.binary.clone().into());
    }
    words.extend(["__attack".into(), attack.name.into()]);
    words.extend((attack.args)(stage));
    let mut command = stage.command(&stage.binary);
    command.args(words);
    if side == Side::Inside {
        command.env(MARK, "1");
    }
    command
}

/// What a finished side printed and how it ended.
struct Ran {
    out: String,
    err: String,
    ended: Option<Ended>,
}

fn run(command: &mut Command) -> std::io::Result<Ran> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait()? {
            Some(status) => break Some(Ended::from_wait_status(status.into_raw())),
            None if Instant::now() >= until => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut out)?;
    }
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_end(&mut err)?;
    }
    Ok(Ran {
        out: String::from_utf8_lossy(&out).into_owned(),
        err: String::from_utf8_lossy(&err).into_owned(),
        ended,
    })
}

fn answer(attack: &Attack, stage: &Stage, side: Side, ran: &Ran) -> Answer {
    let complaint = || first_line(&ran.err).unwrap_or("it said nothing").to_owned();
    let Some(ended) = ran.ended else {
        return Answer::Broken(format!("did not end within {} s", PATIENCE.as_secs()));
    };
    let started = ran.out.starts_with(&attacker::banner(attack.name));
    if attack.custom.is_none() && !started {
        let refused = i32::from(crate::exit::REFUSED);
        if side == Side::Inside && attack.may_refuse && ended == Ended::Exited(refused) {
            return Answer::NotHad(complaint());
        }
        return Answer::Broken(format!("did not start: {}", complaint()));
    }
    let last = ran.out.lines().skip(1).last();
    if ended == Ended::Exited(code::LEGITIMATE.into()) {
        return Answer::Broken(last.map_or_else(complaint, str::to_owned));
    }
    let printed = if attack.custom.is_some() { &ran.err } else { &ran.out };
    let succeeded = match attack.harm {
        Some(harm) => harm(stage, printed),
        None => ended == Ended::Exited(0),
    };
    if succeeded {
        return Answer::Succeeded("succeeds".to_owned());
    }
    // Through `run`, a signal shows as 128 + its number.
    let signal = match ended {
        Ended::Signaled(n) => Some(n),
        Ended::Exited(n) if n > 128 => Some(n - 128),
        Ended::Exited(_) => None,
    };
    Answer::Refused(match (signal, last) {
        (Some(n), _) => format!("ended by {}", signal_name(n)),
        (None, Some(text)) if ended == Ended::Exited(code::REFUSED.into()) => text.to_owned(),
        (None, Some(_)) => "without effect on the host".to_owned(),
        (None, None) => first_line(&ran.err).map_or_else(|| "nothing happened".to_owned(), short),
    })
}

fn first_line(text: &str) -> Option<&str> {
    text.lines().next().map(|l| l.strip_prefix("ringfence: ").unwrap_or(l))
}

fn short(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST - 1).chain(std::iter::once('\u{2026}')).collect()
}

fn signal_name(n: i32) -> String {
    match n {
        libc::SIGSYS => "SIGSYS".into(),
        libc::SIGKILL => "SIGKILL".into(),
        libc::SIGTERM => "SIGTERM".into(),
        libc::SIGSEGV => "SIGSEGV".into(),
        libc::SIGXFSZ => "SIGXFSZ".into(),
        n => format!("signal {n}"),
    }
}

fn row(report: &Report, progress: bool) -> String {
    let on = progress && output::colours(&std::io::stdout());
    let control = match report.verdict {
        Verdict::NoControl => format!("none: {}", report.control),
        _ => report.control.clone(),
    };
    let verdict = match report.verdict {
        Verdict::Held => output::green("held", on),
        Verdict::Hole => output::red("HOLE", on),
        Verdict::NoControl => output::yellow("no control", on),
        Verdict::NotHad => output::yellow("not to be had", on),
        Verdict::Error => output::red("error", on),
    };
    let inside = short(&report.inside);
    let inside = output::printable(&inside);
    let control = short(&control);
    let control = output::printable(&control);
    format!("{:<10} {:<22} {control:<40} {inside:<44} {verdict}\n", report.class, report.name)
}

fn count(reports: &[Report], verdict: Verdict) -> usize {
    reports.iter().filter(|r| r.verdict == verdict).count()
}

fn summary(reports: &[Report]) -> String {
    let mut text = format!(
        "{} attacks: {} held, {} succeeded inside, {} errors\n",
        reports.len(),
        count(reports, Verdict::Held),
        count(reports, Verdict::Hole),
        count(reports, Verdict::Error),
    );
    let bare = count(reports, Verdict::NoControl);
    if bare > 0 {
        let _ = writeln!(
            text,
            "{bare} without control: they fail on this host without a sandbox, too, so nothing was shown"
        );
    }
    for r in reports.iter().filter(|r| r.verdict == Verdict::NotHad) {
        let _ = writeln!(text, "{}: {}", r.name, output::printable(&r.inside));
    }
    text
}

fn print_json(reports: &[Report]) -> ExitCode {
    let value = serde_json::json!({
        "version": 1,
        "attacks": reports,
        "held": count(reports, Verdict::Held),
        "holes": count(reports, Verdict::Hole),
        "without_control": count(reports, Verdict::NoControl),
        "not_had": count(reports, Verdict::NotHad),
        "errors": count(reports, Verdict::Error),
    });
    output::print(&format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yes() -> Answer {
        Answer::Succeeded("succeeds".into())
    }

    fn no() -> Answer {
        Answer::Refused("operation not permitted".into())
    }

    fn broken() -> Answer {
        Answer::Broken("did not start".into())
    }

    #[test]
    fn only_a_control_that_succeeds_makes_a_refusal_count() {
        assert_eq!(judge(&yes(), &no()), Verdict::Held);
        assert_eq!(judge(&no(), &no()), Verdict::NoControl);
        assert_eq!(judge(&yes(), &yes()), Verdict::Hole);
        assert_eq!(judge(&no(), &yes()), Verdict::Hole);
        assert_eq!(judge(&broken(), &yes()), Verdict::Hole);
        assert_eq!(judge(&yes(), &broken()), Verdict::Error, "a sandbox that did not start");
        assert_eq!(judge(&broken(), &no()), Verdict::Error);
        assert_eq!(judge(&yes(), &Answer::NotHad("no cgroup".into())), Verdict::NotHad);
    }

    #[test]
    fn attacks_have_names_of_their_own() {
        let mut names: Vec<_> = table::ATTACKS.iter().map(|a| a.name).collect();
        assert!(names.len() >= 30, "{}", names.len());
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), table::ATTACKS.len());
        assert!(table::ATTACKS.iter().all(|a| !a.what.is_empty() && !a.class.is_empty()));
    }
}
