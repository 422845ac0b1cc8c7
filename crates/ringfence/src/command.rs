//! A command to run in a sandbox: what `std::process::Command` is outside.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use ringfence_jail as jail;
use ringfence_proxy::Config;
use ringfence_sandbox::lower;
use ringfence_sandbox::plan::Plan;
use ringfence_sandbox::prepare::Request;
use ringfence_sandbox::run::{self, Deadline, Failed, RunError, Running};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::builder::Sandbox;
use crate::child::{Child, Output};
use crate::error::Error;
use crate::stdio::Stdio;
use crate::watchdog::Watchdog;

/// How long between two looks whether the set-up is over. It takes one to two milliseconds.
const LOOK: Duration = Duration::from_micros(100);

/// A command to run in a sandbox.
#[derive(Debug)]
#[must_use]
pub struct Command<'a> {
    sandbox: &'a Sandbox,
    argv: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    stdio: [Option<Stdio>; 3],
}

impl<'a> Command<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, program: &OsStr) -> Self {
        Self {
            sandbox,
            argv: vec![program.to_owned()],
            environment: Vec::new(),
            cwd: None,
            stdio: [None, None, None],
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.argv.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable for this command, whatever the policy says of its name: the program says it,
    /// not the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Withholds a variable that the policy passes or sets.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), None));
        self
    }

    /// Where the command starts; must be visible inside. Default: the current directory where that
    /// lies in the workspace, else the workspace.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    /// Standard input; default: empty.
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Self {
        self.stdio[0] = Some(stdio.into());
        self
    }

    /// Standard output; default: inherited by `spawn` and `status`, a pipe for `output`.
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Self {
        self.stdio[1] = Some(stdio.into());
        self
    }

    /// Standard error; default: inherited by `spawn` and `status`, a pipe for `output`.
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Self {
        self.stdio[2] = Some(stdio.into());
        self
    }

    /// Makes the sandbox and starts the command in it. Returns when the set-up is over, so that every
    /// refusal of the host or the policy shows here; a program that cannot be executed may show here
    /// or at the first wait.
    ///
    /// ```
    /// use std::io::Write;
    /// use ringfence::{Sandbox, Stdio};
    /// # let dir = tempfile::tempdir()?;
    /// let sandbox = Sandbox::builder().workspace(dir.path()).build()?;
    /// let mut child =
    ///     sandbox.command("wc").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    /// child.stdin.take().unwrap().write_all(b"four")?;
    /// assert_eq!(child.wait_with_output()?.stdout, b"4\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn(&self) -> Result<Child, Error> {
        self.spawn_with(&Stdio::inherit())
    }

    /// Runs the command and waits for its end.
    pub fn status(&self) -> Result<ExitStatus, Error> {
        self.spawn()?.wait()
    }

    /// Runs the command, waits for its end and collects what it wrote.
    pub fn output(&self) -> Result<Output, Error> {
        self.spawn_with(&Stdio::piped())?.wait_with_output()
    }

    fn spawn_with(&self, default: &Stdio) -> Result<Child, Error> {
        let empty = Stdio::null();
        let stdio = |i: usize| {
            let default = if i == 0 { &empty } else { default };
            self.stdio[i].as_ref().unwrap_or(default).open(i as i32)
        };
        let mut ends = [stdio(0)?, stdio(1)?, stdio(2)?];
        let command = lower::Command {
            argv: self.argv.clone(),
            stdio: jail::Stdio { fds: [0, 1, 2].map(|i: usize| ends[i].number()), pty: [false; 3] },
            // The thread that spawns may end before the command; init watches the whole program.
            die_with_parent: false,
            connector: None,
            resident: None,
            agent_events: None,
        };
        let request = Request { cwd: self.cwd.clone(), ..self.sandbox.request() };
        let policy = self.sandbox.policy();
        let (mut running, filter) = run::with_ladder(policy, &request, |mut plan| {
            self.change_environment(&mut plan);
            let filter = plan.filter.clone();
            Ok((set_up(run::start(plan, policy, &command, None)?)?, filter))
        })?;
        // Only now: until it leaves it, the child of a root caller shares our table of descriptors.
        let [stdin, stdout, stderr] = ends.each_mut().map(|end| end.ours.take());
        drop(ends);
        let watchdog = match Deadline::of(&policy.limits) {
            Some(deadline) => Some(Watchdog::start(&running.jailed, deadline)?),
            None => None,
        };
        // What leaves the sandbox has waited for it.
        let filter = match (filter, running.network.take()) {
            (Some(filter), Some(made)) => {
                let sink = self.sandbox.ear.0.clone().unwrap_or_else(|| Arc::new(|_| {}));
                let config = Config::of(&policy.network, filter.rules, made, sink);
                let config = Config { init: Some(running.jailed.pid()), ..config };
                let started = ringfence_proxy::Filter::start(config);
                Some(started.map_err(|e| Error::io("start the egress filter", e))?)
            }
            _ => None,
        };
        Ok(Child::new(running, filter, watchdog, [stdin, stdout, stderr]))
    }

    fn change_environment(&self, plan: &mut Plan) {
        for (name, value) in &self.environment {
            plan.environment.retain(|(n, _)| n != name);
            if let Some(value) = value {
                plan.environment.push((name.clone(), value.clone()));
            }
        }
    }
}

/// Waits until the command is about to be executed, or the set-up has failed.
fn set_up(mut running: Running) -> Result<Running, Failed> {
    let fatal = |error: RunError| Failed { error, refusal: None };
    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
    while !running.jailed.started() {
        let pidfd = running.jailed.pidfd();
        let ended = match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&look)) {
            Ok(ready) => ready > 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(e) => return Err(fatal(RunError::Supervise(e.to_string()))),
        };
        if !ended || running.jailed.started() {
            continue;
        }
        // A command can start and end between two looks; then its status is as good as any.
        return match running.jailed.wait() {
            Ok(_) => Ok(running),
            Err(failure) => match running.finish(Err(failure), None) {
                Err(failed) => Err(failed),
                Ok(_) => Err(fatal(RunError::Supervise("its init ended without a word".into()))),
            },
        };
    }
    Ok(running)
}

/// Our ends of the pipes, as [`Child`] takes them.
pub(crate) type Pipes = [Option<OwnedFd>; 3];
