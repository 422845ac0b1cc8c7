//! Holding what runs in a group where it stands, by the freezer of cgroup v2 (Linux 5.2).
//!
//! Unlike SIGSTOP it cannot be undone from inside, by SIGCONT or a fork at the right moment, and nobody
//! inside can see it. SIGKILL ends what is frozen.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::process::Pid;

use super::discover::Hierarchies;
use super::reading::ours;
use super::scope::{is_unused, keyed, may_write, members, refusal, write_at};

/// The group beneath that of the run which what is held is moved to, and stays in.
const STILL: &str = "still";

/// How long the kernel may take to freeze a group, each time. A process that waits for one that is frozen already
/// holds it up; that passes when both go on.
const PATIENCE: Duration = Duration::from_millis(700);
const TRIES: usize = 3;

/// The freezer of one run's group.
#[derive(Clone, Debug)]
pub struct Freezer {
    group: PathBuf,
}

impl Freezer {
    /// That of the group that process `pid` is in. `None` where it is in none that was made for one run, where
    /// that is not to be written by us, or the kernel freezes no groups.
    pub fn of(pid: u32) -> Option<Self> {
        let theirs = std::fs::read(format!("/proc/{pid}/cgroup")).ok()?;
        let place = Hierarchies::read().ok()?.of(&theirs).v2().ok()?;
        let group = ours(place.own)?;
        let writable = [group.clone(), group.join("cgroup.freeze"), group.join("cgroup.procs")];
        writable.iter().all(|path| may_write(path).is_ok()).then_some(Self { group })
    }

    /// Everything in the group stands still when this is answered, but for `spared`, which goes on. Where that
    /// cannot be had, everything goes on.
    pub fn freeze(&self, spared: Pid) -> Result<(), String> {
        let still = self.still();
        match rustix::fs::mkdir(&still, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(refusal("make a group in", &self.group, errno)),
        }
        let mut held = Ok(());
        for _ in 0..TRIES {
            held = self.hold(&still, spared);
            if held.is_ok() {
                return Ok(());
            }
            self.thaw()?;
        }
        held
    }

    fn hold(&self, still: &Path, spared: Pid) -> Result<(), String> {
        // All at once: then nothing forks, and nothing is woken, while it is sorted.
        set(&self.group, true)?;
        wait(&self.group)?;
        set(still, true)?;
        let procs = still.join("cgroup.procs");
        for pid in members(&self.group).into_iter().filter(|pid| *pid != spared) {
            match write_at(CWD, &procs, &pid.as_raw_nonzero().to_string()) {
                // It was killed meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(refusal("move a process to", still, errno)),
            }
        }
        let left: Vec<Pid> = members(&self.group).into_iter().filter(|p| *p != spared).collect();
        if !left.is_empty() {
            return Err(format!("{} has processes that cannot be moved", self.group.display()));
        }
        set(&self.group, false)?;
        if is_unused(still) { Ok(()) } else { wait(still) }
    }

    /// Everything goes on.
    pub fn thaw(&self) -> Result<(), String> {
        let still = self.still();
        let below = if still.exists() { set(&still, false) } else { Ok(()) };
        set(&self.group, false).and(below)
    }

    fn still(&self) -> PathBuf {
        self.group.join(STILL)
    }
}

fn set(group: &Path, frozen: bool) -> Result<(), String> {
    let path = group.join("cgroup.freeze");
    write_at(CWD, &path, if frozen { "1" } else { "0" })
        .map_err(|errno| refusal("write", &path, errno))
}

/// Until the kernel says that all of it stands still.
fn wait(group: &Path) -> Result<(), String> {
    let path = group.join("cgroup.events");
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        let text = std::fs::read_to_string(&path)
            .map_err(|e| format!("cannot read {}: {}", path.display(), e.kind()))?;
        if keyed(&text, "frozen") == Some(1) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(format!("{}: not frozen within {PATIENCE:?}", path.display()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
