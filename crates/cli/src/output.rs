//! How ringfence speaks: messages on stderr with its name in front, colours only where wanted.

use crate::exit::ExitCode;
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{Display, Write as _};
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

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

/// A name from outside (a path, a key, a host) as it may be shown: control characters, newlines,
/// what turns text around or hides it, and bytes that are not UTF-8 are spelled out, so that a file's
/// name can neither command the terminal nor pose as a line of ours.
pub fn printable(name: &(impl AsRef<OsStr> + ?Sized)) -> Cow<'_, str> {
    let name = name.as_ref();
    match name.to_str() {
        Some(text) if !text.chars().any(misleads) => Cow::Borrowed(text),
        _ => {
            let mut out = String::with_capacity(name.len() + 16);
            for chunk in name.as_bytes().utf8_chunks() {
                escape(chunk.valid(), false, &mut out);
                for byte in chunk.invalid() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            Cow::Owned(out)
        }
    }
}

/// As [`printable`] for a text of several lines, whose names were made printable where they were put
/// in, or could not be: newlines stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    if text.chars().any(|c| c != '\n' && misleads(c)) {
        let mut out = String::with_capacity(text.len() + 16);
        escape(text, true, &mut out);
        Cow::Owned(out)
    } else {
        Cow::Borrowed(text)
    }
}

/// Control characters, and the format characters that reorder or hide what stands around them.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{61c}' | '\u{feff}')
}

fn escape(text: &str, keep_newlines: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '\n' if keep_newlines => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if misleads(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

/// One message on stderr. A closed stderr is not a reason to fail.
pub fn say(text: impl Display) {
    let text = text.to_string();
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "ringfence: {}", lines(&text));
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

/// A value as indented JSON on stdout.
pub fn print_json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(e) => fail(format_args!("cannot write json: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_the_terminal() {
        assert_eq!(printable("plain/näme.txt"), "plain/näme.txt");
        assert_eq!(printable("a\x1b[2Jb\nringfence: fine"), "a\\u{1b}[2Jb\\nringfence: fine");
        assert_eq!(printable("\u{202e}gpj.exe\u{9b}"), "\\u{202e}gpj.exe\\u{9b}");
        assert_eq!(printable(OsStr::from_bytes(b"caf\xe9/\x07")), "caf\\xe9/\\u{7}");
        assert_eq!(lines("one\n  two\x1b[31m"), "one\n  two\\u{1b}[31m");
    }
}
