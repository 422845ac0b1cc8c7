//! `ringfence completions SHELL`.

use crate::exit::ExitCode;
use std::ffi::OsString;

use crate::{help, output};

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(shell) = matches
        .subcommand_matches("completions")
        .and_then(|m| m.get_one::<clap_complete::Shell>("shell").copied())
    else {
        return output::fail("no shell named");
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut help::command(), "ringfence", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
