//! What processes use, from one look through `/proc`.

use std::collections::HashMap;

/// A process as `/proc/PID/stat` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    /// As one letter: see proc_pid_stat(5).
    state: u8,
    /// Its CPU time, in clock ticks.
    own: u64,
    /// With that of children that it waited for.
    ticks: u64,
    threads: u64,
    /// Clock ticks since boot.
    started: u64,
    /// Bytes in memory.
    memory: u64,
}

/// What a process and all below it use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub memory: u64,
    pub cpu_us: u64,
    pub pids: u64,
    /// Read and written. `None` where we may not look.
    pub io: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Processes {
    all: HashMap<u32, Process>,
    below: HashMap<u32, Vec<u32>>,
}

/// Whether a process of this number and this age is stopped, or held by a debugger: it obeys nobody then.
pub(crate) fn is_stopped((pid, started): (u32, u64)) -> bool {
    look(pid).is_some_and(|p| p.started == started && matches!(p.state, b'T' | b't'))
}

/// When a process started, which tells it from a later one with its number.
pub(crate) fn started(pid: u32) -> Option<u64> {
    look(pid).map(|process| process.started)
}

impl Processes {
    /// All that there are. Costs some microseconds for each.
    pub(crate) fn read() -> Self {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found = Self::default();
        for process in pids.filter_map(look) {
            found.all.insert(process.pid, process);
            found.below.entry(process.parent).or_default().push(process.pid);
        }
        found
    }

    /// What one process uses.
    pub(crate) fn alone(&self, pid: u32) -> Used {
        self.all.get(&pid).map_or_else(Used::default, |process| Used {
            memory: process.memory,
            cpu_us: microseconds(process.own),
            pids: process.threads,
            io: None,
        })
    }

    /// How many of those below a process of this number and this age run, or would when what they wait for comes.
    /// Who waits where no signal is taken (`D`) will find SIGSTOP first.
    pub(crate) fn moving_below(&self, (pid, started): (u32, u64)) -> usize {
        if self.all.get(&pid).is_none_or(|process| process.started != started) {
            return 0;
        }
        let mut moving = 0;
        let mut left = vec![pid];
        while let Some(at) = left.pop() {
            for below in self.below.get(&at).into_iter().flatten() {
                let state = self.all.get(below).map(|process| process.state);
                moving += usize::from(matches!(state, Some(b'R' | b'S')));
                left.push(*below);
            }
        }
        moving
    }

    /// What a process of this number and this age uses, and all below it; nothing where it is gone. The
    /// init of a sandbox is above everything in it: what loses its parent becomes its child.
    pub(crate) fn used(&self, (pid, started): (u32, u64)) -> Used {
        let mut used = Used::default();
        if self.all.get(&pid).is_none_or(|process| process.started != started) {
            return used;
        }
        used.io = io(pid);
        let mut left = vec![pid];
        while let Some(at) = left.pop() {
            let Some(process) = self.all.get(&at) else { continue };
            used.memory += process.memory;
            used.cpu_us += microseconds(process.ticks);
            used.pids += process.threads;
            if at != pid
                && let (Some(sum), Some(more)) = (&mut used.io, io(at))
            {
                *sum = (sum.0 + more.0, sum.1 + more.1);
            }
            left.extend(self.below.get(&at).into_iter().flatten());
        }
        used
    }
}

fn microseconds(ticks: u64) -> u64 {
    ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second().max(1)
}

fn look(pid: u32) -> Option<Process> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parsed(pid, &text)
}

/// See proc_pid_stat(5). The name may hold anything, so fields are counted from its end.
fn parsed(pid: u32, text: &[u8]) -> Option<Process> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 2..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at - 3)?.parse::<u64>().ok();
    Some(Process {
        pid,
        state: fields.first()?.bytes().next()?,
        parent: number(4)? as u32,
        own: number(14)? + number(15)?,
        ticks: (14..=17).map(number).sum::<Option<u64>>()?,
        threads: number(20)?,
        started: number(22)?,
        memory: number(24)? * rustix::param::page_size() as u64,
    })
}

/// With what ended children had read and written.
fn io(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let of = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
    Some((of("read_bytes:")?, of("write_bytes:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_fields() {
        let line = b"7 (a) R 1 1) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 5 0 999 4096 6 18446744073709551615";
        let process = parsed(7, line).unwrap();
        let page = rustix::param::page_size() as u64;
        let expected = Process {
            pid: 7,
            parent: 3,
            state: b'S',
            own: 30,
            ticks: 100,
            threads: 5,
            started: 999,
            memory: 6 * page,
        };
        assert_eq!(process, expected);
        assert_eq!(parsed(7, b"7 (sh) S 3"), None);
        assert_eq!(parsed(7, b""), None);
    }

    #[test]
    fn what_a_process_started_counts_and_a_later_one_of_its_number_does_not() {
        let me = std::process::id();
        let age = started(me).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let all = Processes::read();
        let (with, alone) =
            (all.used((me, age)), all.used((child.id(), started(child.id()).unwrap())));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(alone.pids, 1);
        assert!(with.pids > alone.pids && with.memory > alone.memory, "{with:?} {alone:?}");
        assert!(with.io.is_some());
        assert_eq!(all.used((me, age + 1)), Used::default());
    }
}
