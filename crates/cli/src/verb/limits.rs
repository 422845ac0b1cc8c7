//! `ringfence limits`: what limits a sandbox that the daemon keeps, also changed while it runs.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{ArgMatches, Command};
use ringfence_api::{Sandbox, SandboxLimits};
use ringfence_client::{GET, NOTHING, PATCH};
use ringfence_policy::Bytes;

use super::daemon::connect;
use super::sandboxes::{json, place, sandbox, text, time, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};

pub fn command() -> Command {
    let number =
        |name, help| value(name, "N", help).value_parser(clap::value_parser!(u64).range(1..));
    Command::new("limits")
        .about("Show or change what limits a sandbox, also while it runs")
        .arg(sandbox())
        .arg(value("memory", "SIZE", "Memory of all its processes (512m, 2g)"))
        .arg(value("cpu", "N", "CPUs (0.5, 1.5)").value_parser(clap::value_parser!(f64)))
        .arg(number("pids", "Processes and threads"))
        .arg(value("disk", "SIZE", "What its layer may hold; the sandbox must be stopped"))
        .arg(number("open-files", "Open files of a process; the sandbox must be stopped"))
        .arg(value("timeout", "TIME", "Time of each command (30s, 10m)"))
        .arg(json())
        .after_help(
            "What cannot be changed is refused by its name, and then nothing is.\n\nExamples:\n  ringfence limits box\n  ringfence limits box --memory 1g --pids 200\n  ringfence limits box --cpu 0.5 --timeout 5m",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("limits") else { return output::fail("not limits") };
    limits(m).unwrap_or_else(output::fail)
}

fn bytes(m: &ArgMatches, flag: &str) -> Result<Option<u64>, String> {
    let Some(given) = text(m, flag) else { return Ok(None) };
    match Bytes::parse(given).map_err(|e| format!("--{flag}: {e}"))?.0 {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(format!("--{flag}: a limit is not taken away while the sandbox is there")),
    }
}

fn limits(m: &ArgMatches) -> Result<ExitCode, String> {
    let cpu_percent = match m.get_one::<f64>("cpu") {
        Some(cpu) if *cpu >= 0.01 && *cpu <= 10_000.0 => Some((cpu * 100.0).round() as u32),
        Some(cpu) => return Err(format!("--cpu: {cpu} is not from 0.01 to 10000")),
        None => None,
    };
    let wanted = SandboxLimits {
        memory: bytes(m, "memory")?,
        cpu_percent,
        cpu_shares: None,
        pids: m.get_one::<u64>("pids").copied(),
        disk: bytes(m, "disk")?,
        open_files: m.get_one::<u64>("open-files").copied(),
        timeout_ms: time(m, "timeout")?,
    };
    let mut client = connect()?;
    let sandbox: Sandbox = if wanted == SandboxLimits::default() {
        client.call(GET, &place(m), NOTHING)
    } else {
        client.call(PATCH, &format!("{}/limits", place(m)), Some(&wanted))
    }
    .map_err(|e| e.to_string())?;
    if m.get_flag("json") {
        return Ok(output::print_json(&sandbox.limits));
    }
    let SandboxLimits { memory, cpu_percent, cpu_shares, pids, disk, open_files, timeout_ms } =
        sandbox.limits;
    let mut out = String::new();
    for (name, value) in [
        ("memory", memory),
        ("cpu-percent", cpu_percent.map(u64::from)),
        ("cpu-shares", cpu_shares.map(u64::from)),
        ("pids", pids),
        ("disk", disk),
        ("open-files", open_files),
        ("timeout-ms", timeout_ms),
    ] {
        let value = value.map_or("-".to_owned(), |n| n.to_string());
        let _ = writeln!(out, "{name:12} {value}");
    }
    for line in &sandbox.degraded {
        let _ = writeln!(out, "degraded     {}", printable(line));
    }
    Ok(output::print(&out))
}
