//! How ringfence speaks: messages on stderr with its name in front, colours only where wanted.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use crate::exit;

/// Colours: a terminal, `NO_COLOR` unset or empty, `TERM` not dumb.
pub fn colours(stream: &impl IsTerminal) -> bool {
    let unset = |name: &str| std::env::var_os(name).is_none_or(|v| v.is_empty());
    stream.is_terminal()
        && unset("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

fn paint(code: &str, text: &str, on: bool) -> String {
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

pub fn bold(text: &str, on: bool) -> String {
    paint("1", text, on)
}

pub fn green(text: &str, on: bool) -> String {
    paint("32", text, on)
}

pub fn red(text: &str, on: bool) -> String {
    paint("31", text, on)
}

pub fn yellow(text: &str, on: bool) -> String {
    paint("33", text, on)
}

/// One line on stderr. A closed stderr is not a reason to fail.
pub fn say(text: impl Display) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "ringfence: {text}");
}

/// Says what went wrong and gives the exit code for it.
pub fn fail(text: impl Display) -> ExitCode {
    say(text);
    ExitCode::from(exit::FAILED)
}

/// Writes to stdout; a closed pipe ends quietly.
pub fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => fail(format!("cannot write to stdout: {e}")),
    }
}
