//! `policy check`: is the file well formed, and can this host hold it?

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use clap::ArgMatches;
use ringfence_policy::PolicyError;
use ringfence_sandbox::prepare::prepare;
use ringfence_sandbox::run::RunError;

use crate::exit;
use crate::flags::{Id, Typed};
use crate::layers::{self, LayerError};
use crate::output::{self, lines, printable};

pub fn main(m: &ArgMatches) -> ExitCode {
    let typed = super::typed(m);
    let files: Vec<OsString> =
        m.get_many::<OsString>("files").into_iter().flatten().cloned().collect();
    let mut worst = 0;
    let mut text = String::new();
    if files.is_empty() {
        worst = one(&typed, "the policy that applies here", &mut text);
    }
    for file in &files {
        let mut this = typed.clone();
        this.flags.retain(|(id, _)| *id != Id::Settings);
        this.flags.push((Id::Settings, file.clone()));
        let found = match problems(Path::new(file)) {
            Ok(found) => found,
            Err(e) => {
                output::say(e);
                worst = exit::FAILED;
                continue;
            }
        };
        if found.is_empty() {
            worst = worse(worst, one(&this, &printable(file), &mut text));
        } else {
            for problem in &found {
                output::say(problem);
            }
            worst = exit::FAILED;
        }
    }
    let printed = output::print(&lines(&text));
    if worst == 0 { printed } else { ExitCode::from(worst) }
}

/// Malformed weighs more than refused, which is the larger number.
fn worse(a: u8, b: u8) -> u8 {
    if a == exit::FAILED || b == exit::FAILED { exit::FAILED } else { a.max(b) }
}

/// All that is wrong with one file.
fn problems(file: &Path) -> Result<Vec<PolicyError>, LayerError> {
    let bytes = layers::read(file)?;
    Ok(ringfence_policy::problems(&file.display().to_string(), &bytes))
}

/// One well-formed policy: what it builds upon, and whether this host can hold it.
fn one(typed: &Typed, name: &str, text: &mut String) -> u8 {
    let layered = match super::layered(typed) {
        Ok(l) => l,
        Err(e) => {
            output::say(&e);
            return e.exit_code();
        }
    };
    for note in &layered.notes {
        let _ = writeln!(text, "{}", printable(note));
    }
    let plan = match prepare(&layered.policy, &super::request(typed)) {
        Ok(plan) => plan,
        Err(e) => {
            let e = RunError::from(e);
            output::say(format_args!("{name}: {e}"));
            return e.exit_code() as u8;
        }
    };
    let _ = writeln!(text, "{name}: fine, and this host can hold it");
    let mut more = |word: &str, what: &str| {
        let _ = writeln!(text, "  {word}: {}", printable(what));
    };
    for note in &plan.notes {
        more("note", note);
    }
    for d in &plan.status.degraded {
        more("degraded", &format!("{}: {}", d.name, d.detail));
    }
    for d in &plan.status.missing {
        more("missing, as accepted", &format!("{}: {}", d.name, d.detail));
    }
    0
}
