//! What the group of another process used, for whoever watches it.

use std::path::{Path, PathBuf};

use super::Controller;
use super::discover::{Hierarchies, Owner};
use super::scope::keyed;

/// What a group used. `None` where no group of the process's own counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes in use now, page cache included.
    pub memory: Option<u64>,
    /// CPU time so far, in microseconds.
    pub cpu_us: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from disks, and written.
    pub io: Option<(u64, u64)>,
}

/// Reads groups that [`super::create`] made, those of other supervisors too.
#[derive(Debug)]
pub struct Reader {
    hierarchies: Hierarchies,
}

impl Reader {
    /// `None` where there are no control groups.
    pub fn new() -> Option<Self> {
        Hierarchies::read().ok().map(|hierarchies| Self { hierarchies })
    }

    /// What the groups of process `pid` used. Only groups that were made for one run say something of it.
    pub fn of(&self, pid: u32) -> Reading {
        let Ok(text) = std::fs::read(format!("/proc/{pid}/cgroup")) else {
            return Reading::default();
        };
        let theirs = self.hierarchies.of(&text);
        let mut reading = Reading::default();
        if let Some(group) = theirs.v2().ok().and_then(|place| ours(place.own)) {
            reading.memory = number(&group, "memory.current");
            reading.cpu_us = read(&group, "cpu.stat").and_then(|t| keyed(&t, "usage_usec"));
            reading.pids = number(&group, "pids.current");
            reading.io = read(&group, "io.stat").as_deref().map(disks);
        }
        let v1 = |controller| theirs.v1(controller).ok().and_then(|place| ours(place.own));
        if let Some(group) = v1(Controller::Memory) {
            reading.memory = number(&group, "memory.usage_in_bytes");
        }
        if let Some(group) = v1(Controller::Pids) {
            reading.pids = number(&group, "pids.current");
        }
        if let Some(group) = v1(Controller::Cpu) {
            // Only where cpuacct is mounted together with cpu.
            let spent = number(&group, "cpuacct.usage").map(|ns| ns / 1000);
            reading.cpu_us = spent.or(reading.cpu_us);
        }
        reading
    }
}

/// A group whose name says that it was made for one run.
fn ours(path: PathBuf) -> Option<PathBuf> {
    let name = path.file_name()?;
    Owner::parse(std::os::unix::ffi::OsStrExt::as_bytes(name))?;
    Some(path)
}

fn read(group: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(group.join(file)).ok()
}

fn number(group: &Path, file: &str) -> Option<u64> {
    read(group, file)?.trim().parse().ok()
}

/// `8:0 rbytes=1 wbytes=2 rios=3 ...`, a line for each disk.
fn disks(text: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let fields = text.split_ascii_whitespace().filter_map(|field| field.strip_prefix(name));
        fields.filter_map(|bytes| bytes.parse::<u64>().ok()).sum()
    };
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_all_disks_are_added() {
        let text = "8:0 rbytes=10 wbytes=20 rios=1\n254:0 rbytes=1 wbytes=2 dbytes=9\n";
        assert_eq!(disks(text), (11, 22));
        assert_eq!(disks(""), (0, 0));
    }

    /// A group that nobody made for a run says nothing of one: it would be of everybody in it.
    #[test]
    fn the_group_of_everybody_says_nothing() {
        let Some(reader) = Reader::new() else {
            println!("skipped: there are no control groups here");
            return;
        };
        let path = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if path.contains("/ringfence-") {
            println!("skipped: the tests run in a group of a run");
            return;
        }
        assert_eq!(reader.of(std::process::id()), Reading::default());
    }

    #[test]
    fn a_group_of_a_run_tells_what_its_process_used() {
        let request = super::super::Request { pids: Some(1000), ..Default::default() };
        let made = super::super::create(&request, "reading");
        let Some(scope) = made.scope else {
            println!("skipped: no group can be made here: {:?}", made.missing);
            return;
        };
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        scope.add(pid).unwrap();
        let reading = Reader::new().unwrap().of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(reading.pids, Some(1));
    }
}
