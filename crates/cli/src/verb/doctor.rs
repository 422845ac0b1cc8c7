//! `ringfence doctor`: can this host sandbox? Each layer is measured by doing it, a real sandbox is
//! started and attacked a little, and what refuses is told apart, with the command that mends it.

mod decide;
mod facts;
mod trials;

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write;

use ringfence_sandbox::view;
use ringfence_sys::raw::Errno;

use crate::output;
use crate::verb::selftest::{self, Probe};
use decide::{Best, Finding};
use facts::Facts;
use trials::{Layer, Trial};

/// Attacks that show that a sandbox is one: a read, a write, a system call, the network.
const PROBES: [&str; 4] = ["ssh-key", "write-outside", "io-uring", "host-tcp"];

/// The hidden side: one layer, in a process of its own.
pub fn trial(args: &[OsString]) -> ExitCode {
    trials::main(args)
}

struct Report {
    facts: Facts,
    trials: Vec<Trial>,
    landlock_abi: u32,
    limits: Vec<(&'static str, Option<String>)>,
    /// Why no workspace can be served by path, which rules of names need outside a layer.
    no_view: Option<String>,
    findings: Vec<Finding>,
    best: Best,
    /// A real run: its status, or why there was none.
    run: Result<serde_json::Value, String>,
    probes: Vec<Probe>,
}

impl Report {
    /// The full rung works: by its parts and as a whole.
    fn is_well(&self) -> bool {
        self.best == Best::Full
            && self.run.as_ref().is_ok_and(|s| s["rung"] == "namespaces")
            && self.probes.iter().all(|p| p.held)
    }
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match crate::help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let json = matches.subcommand_matches("doctor").is_some_and(|m| m.get_flag("json"));
    let binary = match std::env::current_exe() {
        Ok(path) => path,
        Err(e) => return output::fail(format_args!("cannot find this program's file: {e}")),
    };
    let facts = Facts::read(&binary);
    let trials: Vec<Trial> = Layer::ALL.into_iter().map(|l| trials::run(l, &binary)).collect();
    let best = Best::of(&trials);
    let report = Report {
        findings: decide::diagnose(&facts, &trials),
        best,
        landlock_abi: ringfence_sys::landlock::abi(),
        limits: trials::limits(),
        no_view: view::refusal().map(|why| why.replace("\n  remedy: ", "; remedy: ")),
        run: selftest::status(&binary),
        // On a lower rung the stage, a git workspace with secrets, is refused as a whole.
        probes: match best {
            Best::Full | Best::WithoutLandlock => selftest::probe(&PROBES, &binary),
            Best::Landlock | Best::Nothing => Vec::new(),
        },
        facts,
        trials,
    };
    let printed = if json { print_json(&report) } else { output::print(&text(&report)) };
    if report.is_well() { printed } else { ExitCode::from(crate::exit::FAILED) }
}

fn identity(report: &Report) -> Option<&str> {
    let status = report.run.as_ref().ok()?;
    let all = ["enforced", "degraded"].into_iter().filter_map(|k| status[k].as_array()).flatten();
    all.into_iter().find(|p| p["name"] == "identity")?["detail"].as_str()
}

fn text(report: &Report) -> String {
    let on = output::colours(&std::io::stdout());
    let ok = output::green("works", on);
    let bad = output::red("refused", on);
    let mut out = String::new();
    let mut line = |name: &str, said: &str| {
        let _ = writeln!(out, "{name:<20} {said}");
    };
    let facts = &report.facts;
    let mut place = format!("linux {}", facts.kernel);
    if let Some(c) = &facts.container {
        let _ = write!(place, ", in a container ({c})");
    }
    if facts.nested {
        place += ", in a user namespace";
    }
    if facts.filtered {
        place += ", under a system call filter";
    }
    line("host", &place);
    for t in &report.trials {
        let said = match &t.failed {
            None if t.layer == Layer::Landlock => format!("{ok}, abi {}", report.landlock_abi),
            None => ok.clone(),
            Some((step, errno)) => format!("{bad}: {step}: {}", Errno(*errno)),
        };
        line(t.layer.name(), &said);
    }
    for (name, missing) in &report.limits {
        let said = match missing {
            None => ok.clone(),
            Some(why) => {
                format!("{}: {}", output::yellow("not to be had", on), output::printable(why))
            }
        };
        line(&format!("{name}-limit"), &said);
    }
    let view = match &report.no_view {
        None => ok.clone(),
        Some(why) => {
            format!("{}: {}", output::yellow("not to be had", on), output::printable(why))
        }
    };
    line("exact-view", &view);
    if let Some(detail) = identity(report) {
        line("identity", detail);
    }
    match &report.run {
        Ok(status) => {
            line("a real run", &format!("{ok}, by {}", status["rung"].as_str().unwrap_or("?")));
        }
        Err(why) => line("a real run", &format!("{bad}: {}", output::printable(why))),
    }
    for p in &report.probes {
        let said = if p.held {
            output::green("refused inside", on)
        } else {
            output::red("NOT REFUSED", on)
        };
        line("", &format!("{}: {said} ({})", p.what, output::printable(&p.detail)));
    }
    let _ = writeln!(out, "\nbest mechanism here  {}", report.best.text());
    for loss in report.best.losses() {
        let _ = writeln!(out, "  - {loss}");
    }
    for f in &report.findings {
        let _ = writeln!(out, "\n{}: {}", output::bold(f.layer.name(), on), f.problem);
        if !f.command.is_empty() {
            let _ = writeln!(out, "mend it with:\n\n{}\n", f.command);
        }
        if !f.note.is_empty() {
            let _ = writeln!(out, "({})", f.note);
        }
    }
    if report.is_well() {
        out += "\nthis host can sandbox; `ringfence selftest` attacks it thoroughly\n";
    }
    out
}

fn print_json(report: &Report) -> ExitCode {
    let limits: Vec<_> = report
        .limits
        .iter()
        .map(|(name, missing)| serde_json::json!({ "name": name, "missing": missing }))
        .collect();
    let trials: Vec<_> = report
        .trials
        .iter()
        .map(|t| {
            serde_json::json!({
                "layer": t.layer,
                "works": t.failed.is_none(),
                "step": t.failed.as_ref().map(|f| &f.0),
                "error": t.failed.as_ref().map(|f| Errno(f.1).to_string()),
            })
        })
        .collect();
    let value = serde_json::json!({
        "version": 1,
        "well": report.is_well(),
        "best": report.best,
        "losses": report.best.losses(),
        "layers": trials,
        "landlock_abi": report.landlock_abi,
        "limits": limits,
        "exact_view": { "works": report.no_view.is_none(), "problem": report.no_view },
        "findings": report.findings,
        "run": report.run.as_ref().ok(),
        "refused": report.run.as_ref().err(),
        "probes": report.probes,
        "facts": report.facts,
    });
    output::print(&format!("{value:#}\n"))
}
