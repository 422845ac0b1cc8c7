//! `ringfence attach` and `exec -t`: a command's terminal, shown in this one.
//!
//! This terminal is raw meanwhile, so that every key goes inside, and is put back whichever way it ends.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd};

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::{Attach, Exec, ExecRequest, ExecResult, TerminalSize};
use ringfence_client::terminal::{Left, relay};
use ringfence_client::{GET, NOTHING, POST, segment};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::daemon::{connect, places};
use super::sandboxes::{code, pairs, sandbox, text, value};
use crate::exit::ExitCode;
use crate::help;
use crate::output;

pub fn command() -> Command {
    Command::new("attach")
        .about("Open a shell with a terminal in a sandbox, or go back to one")
        .arg(sandbox())
        .arg(value("shell", "SHELL", "Which shell (default: /bin/sh)").conflicts_with("exec"))
        .arg(
            value("env", "KEY=VALUE", "A variable of the shell; repeatable")
                .action(ArgAction::Append),
        )
        .arg(value("exec", "EXEC", "Show the terminal of this command, from what is kept of it on"))
        .arg(
            Arg::new("keep")
                .long("keep")
                .action(ArgAction::SetTrue)
                .help("Let it go on when this terminal is closed"),
        )
        .after_help(
            "Ctrl-C, Ctrl-Z and all other keys go inside; the end of the shell ends it.\n\nExit codes:\n  the command's own; 128+N when signal N ended it; 125 it was not run\n\nExamples:\n  ringfence attach box\n  ringfence attach box --keep --shell bash\n  ringfence attach box --exec ex_5f0c",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("attach") else { return output::fail("not attach") };
    attach(m).unwrap_or_else(output::fail)
}

fn attach(m: &ArgMatches) -> Result<ExitCode, String> {
    let name = text(m, "sandbox").unwrap_or_default();
    let hangup = !m.get_flag("keep");
    if let Some(exec) = text(m, "exec") {
        let path = format!("/v1/sandboxes/{}/execs/{}", segment(name), segment(exec));
        let _: Exec = connect()?.call(GET, &path, NOTHING).map_err(|e| e.to_string())?;
        return show(name, exec, hangup);
    }
    let shell = text(m, "shell").unwrap_or("/bin/sh").to_owned();
    let request = ExecRequest {
        argv: vec![shell, "-i".into()],
        environment: pairs(m, "env")?,
        ..ExecRequest::default()
    };
    start(name, request, hangup)
}

pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Starts a command with a terminal as large as this one.
pub(super) fn start(
    name: &str,
    mut request: ExecRequest,
    hangup: bool,
) -> Result<ExitCode, String> {
    let size = size().ok_or("standard input is not a terminal")?;
    request.terminal = Some(size);
    request.background = true;
    if let Some(kind) = std::env::var_os("TERM").and_then(|kind| kind.into_string().ok()) {
        request.environment.entry("TERM".into()).or_insert(kind);
    }
    let path = format!("/v1/sandboxes/{}/exec", segment(name));
    let started: ExecResult =
        connect()?.call(POST, &path, Some(&request)).map_err(|e| e.to_string())?;
    show(name, &started.exec.id, hangup)
}

/// A terminal that passes every key on as it is; what it was is put back when this is dropped.
pub(super) struct Raw<'a>(BorrowedFd<'a>, Termios);

impl<'a> Raw<'a> {
    pub(super) fn new(terminal: BorrowedFd<'a>) -> Result<Self, String> {
        let wrong = |e: rustix::io::Errno| format!("standard input is not a terminal: {e}");
        let before = tcgetattr(terminal).map_err(wrong)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Drain, &raw).map_err(wrong)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.0, OptionalActions::Drain, &self.1);
    }
}

fn show(name: &str, exec: &str, hangup: bool) -> Result<ExitCode, String> {
    let stdin = std::io::stdin();
    let raw = Raw::new(stdin.as_fd())?;
    let attach = Attach { offset: 0, hangup };
    let mut screen = std::io::stdout();
    let left = relay(&places().socket(), (name, exec), attach, stdin.as_fd(), &mut screen, &size);
    drop(raw);
    match left.map_err(|e| e.to_string())? {
        Left::Ended(exec) => {
            let ended = exec.ended.as_ref().ok_or("the daemon does not say how it ended")?;
            if ended.reason == "timeout" {
                output::say("the command was killed: its time was over");
            }
            Ok(ExitCode::from(code(ended)))
        }
        Left::Told(signal) => Ok(ExitCode::from((128 + signal) as u8)),
    }
}
