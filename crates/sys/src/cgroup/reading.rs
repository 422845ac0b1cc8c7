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
        let text = std::fs::read(format!("/proc/{pid}/cgroup"));
        text.map(|text| self.member(&text)).unwrap_or_default()
    }

    /// The same of a process with this `/proc/PID/cgroup`.
    fn member(&self, text: &[u8]) -> Reading {
        let theirs = self.hierarchies.of(text);
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
pub(super) fn ours(path: PathBuf) -> Option<PathBuf> {
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

    /// Both versions, as files that look like theirs.
    #[test]
    fn the_files_of_a_group_are_read() {
        let root = tempfile::tempdir().unwrap();
        let name = "ringfence-1.2.3.4-run";
        let put = |hierarchy: &str, file: &str, text: &str| {
            let group = root.path().join(hierarchy).join(name);
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join(file), text).unwrap();
        };
        put("new", "memory.current", "4096\n");
        put("new", "cpu.stat", "usage_usec 77\nuser_usec 70\n");
        put("new", "pids.current", "3\n");
        put("new", "io.stat", "8:0 rbytes=1 wbytes=2 rios=1\n");
        put("memory", "memory.usage_in_bytes", "8192\n");
        put("cpu", "cpuacct.usage", "5000\n");
        let mount = |hierarchy: &str, kind: &str, options: &str| {
            let point = root.path().join(hierarchy);
            format!("1 1 0:1 / {} rw - {kind} {kind} {options}\n", point.display())
        };
        let new = mount("new", "cgroup2", "rw");
        let old =
            mount("memory", "cgroup", "rw,memory") + &mount("cpu", "cgroup", "rw,cpu,cpuacct");
        let reader =
            |mounts: &str| Reader { hierarchies: Hierarchies::parse(b"", mounts.as_bytes()) };
        let member = format!("0::/{name}\n");
        let reading = reader(&new).member(member.as_bytes());
        let io = Some((1, 2));
        let expected = Reading { memory: Some(4096), cpu_us: Some(77), pids: Some(3), io };
        assert_eq!(reading, expected);
        let member = format!("2:memory:/{name}\n1:cpu,cpuacct:/{name}\n0::/\n");
        let reading = reader(&(new.clone() + &old)).member(member.as_bytes());
        let expected = Reading { memory: Some(8192), cpu_us: Some(5), ..Reading::default() };
        assert_eq!(reading, expected);
        // In the group above, of everybody.
        assert_eq!(reader(&new).member(b"0::/\n"), Reading::default());
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
