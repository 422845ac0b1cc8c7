//! A running command.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::time::Duration;

use ringfence_proxy::Filter;
use ringfence_sandbox::run::{Ended, RunError, Running};
use ringfence_sandbox::status::Status;
use ringfence_sandbox::terminal::{Child as _, Event};
use rustix::event::{PollFd, PollFlags, poll};

use crate::command::Pipes;
use crate::error::Error;
use crate::watchdog::{Watchdog, ended_within};

/// A command in its sandbox. Dropping it kills everything in there and waits for the end.
///
/// ```
/// use std::time::{Duration, Instant};
/// # let dir = tempfile::tempdir()?;
/// let sandbox = ringfence::Sandbox::builder().workspace(dir.path()).build()?;
/// let mut child = sandbox.command("sleep").arg("1000").spawn()?;
/// assert!(child.try_wait()?.is_none());
/// child.kill();
/// let status = child.wait()?;
/// assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Child {
    /// Our end of the command's standard input, where [`crate::Stdio::piped`] was asked for.
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    id: u32,
    /// Ended before the end is told.
    filter: Option<Filter>,
    watchdog: Option<Watchdog>,
    killed: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(Box<Running>),
    Ended(ExitStatus, Box<Status>),
    /// The command could not be executed, or was lost; said once.
    Failed,
}

impl Child {
    pub(crate) fn new(
        running: Running,
        filter: Option<Filter>,
        watchdog: Option<Watchdog>,
        pipes: Pipes,
    ) -> Self {
        let [stdin, stdout, stderr] = pipes;
        Self {
            stdin: stdin.map(ChildStdin::from),
            stdout: stdout.map(ChildStdout::from),
            stderr: stderr.map(ChildStderr::from),
            id: running.jailed.pid() as u32,
            filter,
            watchdog,
            killed: false,
            state: State::Running(Box::new(running)),
        }
    }

    /// The host's process id of the sandbox's init. When it ends, the kernel ends all of it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What is enforced; with [`Status::end`] once the command was waited for. None when it could
    /// not be executed.
    pub fn report(&self) -> Option<&Status> {
        match &self.state {
            State::Running(running) => Some(&running.status),
            State::Ended(_, status) => Some(status),
            State::Failed => None,
        }
    }

    /// Kills everything in the sandbox. The end shows at the next wait.
    pub fn kill(&mut self) {
        if let State::Running(running) = &self.state {
            self.killed = true;
            running.jailed.kill();
        }
    }

    /// Sends a signal to the command (not to its children).
    pub fn signal(&self, signal: i32) {
        if let State::Running(running) = &self.state {
            running.jailed.signal(signal);
        }
    }

    /// Closes standard input and waits for the end of the command; everything else in the sandbox
    /// has ended then too. Can be asked again.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        if let State::Running(running) = &mut self.state {
            end(running);
        }
        self.collect()
    }

    /// The exit status, if the command has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        if let State::Running(running) = &mut self.state {
            hear(running);
            if !ended_within(running.jailed.pidfd(), Duration::ZERO) {
                return Ok(None);
            }
        }
        self.collect().map(Some)
    }

    /// Waits for the end and collects what came through the pipes.
    pub fn wait_with_output(mut self) -> Result<Output, Error> {
        drop(self.stdin.take());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        read_both(self.stdout.take(), self.stderr.take(), [&mut out, &mut err])
            .map_err(|e| Error::io("read the command's output", e))?;
        let status = self.wait()?;
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Ended(_, report) => {
                Ok(Output { status, stdout: out, stderr: err, report: *report })
            }
            State::Running(_) | State::Failed => Err(lost()),
        }
    }

    /// Init has ended: takes its status and tidies up.
    fn collect(&mut self) -> Result<ExitStatus, Error> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Ended(status, report) => {
                self.state = State::Ended(status, report);
                Ok(status)
            }
            State::Failed => Err(lost()),
            State::Running(mut running) => {
                let waited = running.jailed.wait();
                drop(self.filter.take());
                let timed_out = self.watchdog.take().is_some_and(Watchdog::timed_out);
                let reason = match (timed_out, self.killed) {
                    (true, _) => Some("timeout"),
                    (_, true) => Some("killed"),
                    _ => None,
                };
                let (ended, report) = running.finish(waited, reason).map_err(|f| f.error)?;
                let status = ExitStatus::from_raw(match ended {
                    Ended::Exited(code) => code << 8,
                    Ended::Signaled(signal) => signal,
                });
                self.state = State::Ended(status, Box::new(report));
                Ok(status)
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.state, State::Running(_)) {
            self.kill();
            let _ = self.collect();
        }
    }
}

/// Reads what init reports, that the command stopped for example, so that it is never kept waiting
/// by a full channel. False when nothing will come any more.
fn hear(running: &mut Running) -> bool {
    loop {
        match running.jailed.read_event() {
            Ok(Some(Event::Closed)) | Err(_) => return false,
            Ok(Some(_)) => {}
            Ok(None) => return true,
        }
    }
}

/// Waits for the end of init.
fn end(running: &mut Running) {
    while hear(running) {
        let jailed = &running.jailed;
        let mut fds = [
            PollFd::from_borrowed_fd(jailed.pidfd(), PollFlags::IN),
            PollFd::from_borrowed_fd(jailed.control(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    ended_within(running.jailed.pidfd(), Duration::MAX);
}

fn lost() -> Error {
    RunError::Supervise("the command did not start, as was said before".into()).into()
}

/// What a finished command was and wrote.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What was enforced, and how it ended.
    pub report: Status,
}

impl Output {
    /// The deadline passed before the end.
    pub fn timed_out(&self) -> bool {
        self.report.end.as_ref().is_some_and(|end| end.reason == "timeout")
    }
}

/// Reads both pipes to their ends, whichever has something.
fn read_both(
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    into: [&mut Vec<u8>; 2],
) -> io::Result<()> {
    let mut pipes =
        [out.map(OwnedFd::from), err.map(OwnedFd::from)].map(|p| p.map(std::fs::File::from));
    let mut chunk = vec![0u8; 64 << 10];
    let [out, err] = into;
    let mut into = [out, err];
    while pipes.iter().any(Option::is_some) {
        let ready: Vec<bool> = {
            let open: Vec<&std::fs::File> = pipes.iter().flatten().collect();
            let mut fds: Vec<PollFd<'_>> =
                open.iter().map(|f| PollFd::new(*f, PollFlags::IN)).collect();
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let mut ready = fds.iter().map(|f| !f.revents().is_empty());
            pipes.iter().map(|p| p.is_some() && ready.next().unwrap_or(false)).collect()
        };
        for ((pipe, into), ready) in pipes.iter_mut().zip(&mut into).zip(ready) {
            let Some(file) = pipe.as_mut().filter(|_| ready) else { continue };
            match file.read(&mut chunk) {
                Ok(0) => *pipe = None,
                Ok(n) => into.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}
