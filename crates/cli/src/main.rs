//! `ringfence`: confine what AI agents run.
//!
//! `main` is a table of contents: which verb, which file.
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("this version of the ringfence binary runs on linux only");

mod flags;
mod help;
#[cfg(test)]
mod help_tests;
mod layers;
mod output;
mod ports;
mod trust;
mod verb;

use std::ffi::OsString;
use std::process::ExitCode;

/// Planning a run allocates thousands of short strings and lives for milliseconds.
#[global_allocator]
static ARENA: ringfence_sys::arena::Arena = ringfence_sys::arena::Arena::new();

/// Exit codes of ringfence itself; else the command's own, or 128 + signal.
pub mod exit {
    /// ringfence failed: bad usage, bad policy, set-up failed.
    pub const FAILED: u8 = 125;
    /// Refused by policy, or found but not executable.
    pub const REFUSED: u8 = 126;
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some(first) = args.first().and_then(|a| a.to_str()) else {
        return if args.is_empty() { help::print_short() } else { verb::run::main(&args) };
    };
    match first {
        "run" => verb::run::main(&args[1..]),
        "doctor" => verb::doctor::main(&args),
        "selftest" => verb::selftest::main(&args),
        // Hidden: what `selftest` starts inside and outside the sandbox.
        "__attack" => verb::selftest::attack(&args[1..]),
        "policy" => verb::policy::main(&args),
        "init" => verb::init::main(&args),
        "trust" => verb::trust::main(&args),
        "completions" => verb::completions::main(&args),
        "help" | "-h" | "--help" | "-V" | "-v" | "--version" | "version" => help::main(&args),
        // As people type it with Fence: without a verb the flags of `run` apply.
        _ => verb::run::main(&args),
    }
}
