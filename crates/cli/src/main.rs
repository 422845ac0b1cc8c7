//! `ringfence`: confine what AI agents run.
//!
//! `main` is a table of contents: which verb, which file.
#![deny(unsafe_code)]
#![cfg_attr(not(test), no_main)]

#[cfg(not(target_os = "linux"))]
compile_error!("this version of the ringfence binary runs on linux only");

mod egress;
mod flags;
mod help;
#[cfg(test)]
mod help_tests;
mod inspect;
mod layers;
mod output;
mod ports;
mod progress;
mod reload;
mod trust;
mod verb;

use std::ffi::OsString;

use crate::exit::ExitCode;

/// Planning a run allocates thousands of short strings and lives for milliseconds.
#[global_allocator]
static ARENA: ringfence_sys::arena::Arena = ringfence_sys::arena::Arena::new();

/// Exit codes of ringfence itself; else the command's own, or 128 + signal.
pub mod exit {
    /// ringfence failed: bad usage, bad policy, set-up failed.
    pub const FAILED: u8 = 125;
    /// Refused by policy, or found but not executable.
    pub const REFUSED: u8 = 126;

    /// As the standard library's, which can only be used by the standard library's `main`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExitCode(u8);

    impl ExitCode {
        pub const SUCCESS: Self = Self(0);

        pub fn code(self) -> u8 {
            self.0
        }
    }

    impl From<u8> for ExitCode {
        fn from(code: u8) -> Self {
            Self(code)
        }
    }
}

#[cfg(not(test))]
ringfence_sys::entry_point!(entry);

#[cfg_attr(test, allow(dead_code))]
fn entry() -> u8 {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    verb_of(&args).code()
}

fn verb_of(args: &[OsString]) -> ExitCode {
    let Some(first) = args.first().and_then(|a| a.to_str()) else {
        return if args.is_empty() { help::print_short() } else { verb::run::main(args) };
    };
    match first {
        "run" => verb::run::main(&args[1..]),
        "doctor" => verb::doctor::main(args),
        "selftest" => verb::selftest::main(args),
        // Hidden: what `selftest` starts inside and outside the sandbox.
        "__attack" => verb::selftest::attack(&args[1..]),
        "policy" => verb::policy::main(args),
        "layers" => verb::layers::main(args),
        "diff" => verb::diff::main(args),
        "apply" => verb::apply::main(args),
        "discard" => verb::discard::main(args),
        "snapshot" | "restore" | "fork" | "undo" => verb::history::main(args),
        "export" => verb::export::main(args),
        "import" => verb::import::main(args),
        "codebase" => verb::codebase::main(args),
        "init" => verb::init::main(args),
        "trust" => verb::trust::main(args),
        "daemon" => verb::daemon::main(args),
        "create" | "start" | "exec" | "stop" | "remove" | "list" => verb::sandboxes::main(args),
        "attach" => verb::attach::main(args),
        "files" => verb::files::main(args),
        "execs" | "show" | "freeze" | "extend" => verb::execs::main(args),
        "batch" => verb::batch::main(args),
        "session" => verb::sessions::main(args),
        "limits" => verb::limits::main(args),
        "audit" | "events" => verb::events::main(args),
        "top" | "stats" => verb::top::main(args),
        "bench" => verb::bench::main(args),
        // Hidden: the daemon's process that makes jails.
        verb::daemon::SPAWNER => verb::daemon::spawner(args),
        "completions" => verb::completions::main(args),
        "help" | "-h" | "--help" | "-V" | "-v" | "--version" | "version" => help::main(args),
        // As people type it with Fence: without a verb the flags of `run` apply.
        _ => verb::run::main(args),
    }
}
