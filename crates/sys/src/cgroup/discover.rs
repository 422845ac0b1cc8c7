//! Where the caller stands: its own group in every hierarchy, as a directory.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::Controller;

/// One line of `/proc/self/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// Controllers of a v1 hierarchy, or `name=...`; empty for v2.
    pub controllers: Vec<Vec<u8>>,
    /// The group, as seen from the root of the cgroup namespace.
    pub path: PathBuf,
}

/// A mounted hierarchy, from `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub v2: bool,
    /// The group that is mounted, as seen from the root of the cgroup namespace.
    pub root: PathBuf,
    pub point: PathBuf,
    pub read_only: bool,
    /// Controllers of a v1 hierarchy, among other options of its superblock.
    pub options: Vec<Vec<u8>>,
}

/// The caller's group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The highest group that can be seen.
    pub top: PathBuf,
    /// The caller's own.
    pub own: PathBuf,
}

/// Everything known about the caller's groups.
#[derive(Debug)]
pub(super) struct Hierarchies {
    memberships: Vec<Membership>,
    mounts: Vec<Mount>,
}

impl Hierarchies {
    /// Reads `/proc`.
    pub fn read() -> Result<Self, String> {
        let read = |path: &str| {
            std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))
        };
        Ok(Self::parse(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?))
    }

    pub fn parse(cgroup: &[u8], mountinfo: &[u8]) -> Self {
        Self { memberships: parse_memberships(cgroup), mounts: parse_mounts(mountinfo) }
    }

    /// Another process's, by its `/proc/PID/cgroup`.
    pub fn of(&self, cgroup: &[u8]) -> Self {
        Self { memberships: parse_memberships(cgroup), mounts: self.mounts.clone() }
    }

    /// Whether `controller` belongs to a v1 hierarchy.
    pub fn on_v1(&self, controller: Controller) -> bool {
        self.memberships.iter().any(|line| contains(&line.controllers, controller))
    }

    /// The caller's place in the v1 hierarchy of `controller`.
    pub fn v1(&self, controller: Controller) -> Result<Place, String> {
        let line = self
            .memberships
            .iter()
            .find(|line| contains(&line.controllers, controller))
            .ok_or_else(|| format!("the kernel has no {controller} controller"))?;
        self.locate(&line.path, |mount| !mount.v2 && contains(&mount.options, controller))
    }

    /// The caller's place in the v2 hierarchy.
    pub fn v2(&self) -> Result<Place, String> {
        let line = self
            .memberships
            .iter()
            .find(|line| line.controllers.is_empty())
            .ok_or("the kernel has no cgroup v2")?;
        self.locate(&line.path, |mount| mount.v2)
    }

    fn locate(&self, path: &Path, belongs: impl Fn(&Mount) -> bool) -> Result<Place, String> {
        let mut reason = "the hierarchy is not mounted".to_owned();
        // Later mounts lie over earlier ones.
        for mount in self.mounts.iter().rev().filter(|mount| belongs(mount)) {
            if mount.read_only {
                reason = format!("{} is mounted read-only", mount.point.display());
                continue;
            }
            match below(path, &mount.root) {
                Some(rest) => {
                    return Ok(Place {
                        top: mount.point.clone(),
                        own: if rest.as_os_str().is_empty() {
                            mount.point.clone()
                        } else {
                            mount.point.join(rest)
                        },
                    });
                }
                None => {
                    reason = format!(
                        "the group {} is not visible under {}",
                        path.display(),
                        mount.point.display()
                    );
                }
            }
        }
        Err(reason)
    }
}

fn contains(list: &[Vec<u8>], controller: Controller) -> bool {
    list.iter().any(|entry| entry == controller.name().as_bytes())
}

/// `path` relative to `root`. Neither may climb: a `..` names a group outside of the cgroup
/// namespace, and following it through the mount point would end up somewhere else.
fn below<'a>(path: &'a Path, root: &Path) -> Option<&'a Path> {
    let climbs = |path: &Path| path.components().any(|component| component == Component::ParentDir);
    if climbs(path) || climbs(root) {
        return None;
    }
    path.strip_prefix(root).ok()
}

fn parse_memberships(text: &[u8]) -> Vec<Membership> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':');
            let _id = fields.next()?;
            let controllers = fields.next()?;
            let path = fields.next()?;
            Some(Membership {
                controllers: list(controllers),
                path: PathBuf::from(OsString::from_vec(path.to_vec())),
            })
        })
        .collect()
}

/// See proc_pid_mountinfo(5): `id parent major:minor root point options [tag]... - type source super`.
fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let root = fields.nth(3)?;
            let point = fields.next()?;
            let options = list(fields.next()?);
            let mut fields = fields.skip_while(|field| *field != b"-");
            fields.next()?;
            let v2 = match fields.next()? {
                b"cgroup" => false,
                b"cgroup2" => true,
                _ => return None,
            };
            let super_options = list(fields.nth(1)?);
            let read_only = |list: &[Vec<u8>]| list.iter().any(|option| option == b"ro");
            Some(Mount {
                v2,
                root: unescape(root),
                point: unescape(point),
                read_only: read_only(&options) || read_only(&super_options),
                options: super_options,
            })
        })
        .collect()
}

fn list(text: &[u8]) -> Vec<Vec<u8>> {
    text.split(|&byte| byte == b',').filter(|entry| !entry.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) if byte == b'\\' => {
                let value =
                    digits.iter().fold(0u16, |sum, digit| sum * 8 + u16::from(digit - b'0'));
                out.push(value as u8);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The name of a run's group: whose it is, so that [`super::sweep_stale`] can tell the groups of the
/// dead from those of the living. A process id alone would not do: ids are used again, and other PID
/// namespaces share the hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub started: u64,
    /// Inode number of its PID namespace.
    pub namespace: u64,
}

const PREFIX: &str = "ringfence-";

/// Longest part of a group's name that the caller chooses, in bytes. The kernel takes 255 in all.
const MAX_LABEL: usize = 64;

impl Owner {
    /// The calling process.
    pub fn current() -> Result<Self, String> {
        let pid = std::process::id();
        let namespace = std::fs::metadata("/proc/self/ns/pid")
            .map(|data| std::os::unix::fs::MetadataExt::ino(&data))
            .map_err(|error| format!("cannot read /proc/self/ns/pid: {error}"))?;
        let started = started(pid).ok_or("cannot read /proc/self/stat")?;
        Ok(Self { pid, started, namespace })
    }

    /// A name for its group number `count`; `label` is for people.
    pub fn name(&self, count: u64, label: &str) -> String {
        let Self { pid, started, namespace } = self;
        let label: String = label
            .bytes()
            .take(MAX_LABEL)
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte),
                _ => '_',
            })
            .collect();
        format!("{PREFIX}{pid}.{started}.{namespace}.{count}-{label}")
    }

    /// Reads a name back. `None` for whatever [`Owner::name`] did not make.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?.strip_prefix(PREFIX)?;
        let (numbers, _label) = name.split_once('-')?;
        let mut numbers = numbers.split('.');
        let owner = Self {
            pid: numbers.next()?.parse().ok()?,
            started: numbers.next()?.parse().ok()?,
            namespace: numbers.next()?.parse().ok()?,
        };
        let _count: u64 = numbers.next()?.parse().ok()?;
        numbers.next().is_none().then_some(owner)
    }

    /// Whether the process is gone for certain. Only those of the caller's own PID namespace can be.
    pub fn is_dead(&self, caller: &Self) -> bool {
        if self.namespace != caller.namespace {
            return false;
        }
        let Some(pid) = rustix::process::Pid::from_raw(self.pid.cast_signed()) else {
            return false;
        };
        match rustix::process::test_kill_process(pid) {
            Err(rustix::io::Errno::SRCH) => true,
            // The id is in use: by the same process, or by a later one?
            _ => started(self.pid).is_some_and(|started| started != self.started),
        }
    }
}

/// Field 22 of `/proc/PID/stat`. The name in field 2 may hold anything, so count from its end.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 2..)?).ok()?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// Groups of dead owners directly under `parent`.
pub(super) fn stale_under(parent: &Path, caller: &Owner) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            Owner::parse(entry.file_name().as_bytes()).is_some_and(|owner| owner.is_dead(caller))
        })
        .map(|entry| entry.path())
        .collect()
}
