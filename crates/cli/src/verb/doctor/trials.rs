//! Each layer measured by doing it, in a process of its own, because what is done cannot be undone.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use ringfence_sys::raw::{self, Errno};
use ringfence_sys::{attack, cgroup, landlock, seccomp};

/// What came of one layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Trial {
    pub layer: Layer,
    /// The step that failed and the kernel's answer.
    pub failed: Option<(String, i32)>,
}

/// In the order in which one needs the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    UserNamespace,
    MountNamespace,
    ProcMount,
    NetworkNamespace,
    Landlock,
    Seccomp,
}

impl Layer {
    pub const ALL: [Self; 6] = [
        Self::UserNamespace,
        Self::MountNamespace,
        Self::ProcMount,
        Self::NetworkNamespace,
        Self::Landlock,
        Self::Seccomp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::UserNamespace => "user-namespace",
            Self::MountNamespace => "mount-namespace",
            Self::ProcMount => "proc-mount",
            Self::NetworkNamespace => "network-namespace",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        }
    }
}

/// Tries one layer in a child process.
pub fn run(layer: Layer, binary: &Path) -> Trial {
    let output = Command::new(binary)
        .args(["__attack", "trial", layer.name()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let failed = match output {
        Ok(o) if o.status.success() => None,
        Ok(o) => Some(parse(&String::from_utf8_lossy(&o.stdout))),
        Err(e) => Some(("start a process".into(), e.raw_os_error().unwrap_or(libc::EIO))),
    };
    Trial { layer, failed }
}

/// `ERRNO STEP`, as the child prints it.
fn parse(line: &str) -> (String, i32) {
    let (errno, step) = line.trim().split_once(' ').unwrap_or(("", "end well"));
    (step.to_owned(), errno.parse().unwrap_or(libc::EIO))
}

/// The child's side.
pub fn main(args: &[OsString]) -> ExitCode {
    let name = args.first().and_then(|a| a.to_str()).unwrap_or_default();
    let done = match name {
        "user-namespace" => user_namespace(0),
        "mount-namespace" => mount_namespace(),
        "proc-mount" => proc_mount(),
        "proc-mount-inside" => proc_mount_inside(),
        "network-namespace" => network_namespace(),
        "landlock" => landlock_holds(),
        "seccomp" => seccomp_holds(),
        _ => Err(("know this trial".into(), Errno(libc::EINVAL))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((step, errno)) => {
            let _ = crate::output::print(&format!("{} {step}\n", errno.0));
            ExitCode::from(crate::exit::FAILED)
        }
    }
}

type Step = Result<(), (String, Errno)>;

fn at<T>(step: &str, result: raw::Result<T>) -> Step {
    result.map(|_| ()).map_err(|e| (step.to_owned(), e))
}

fn io<T>(step: &str, result: std::io::Result<T>) -> Step {
    at(step, result.map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EIO))))
}

/// With uid 0 inside, so that rights in the namespace outlive an exec.
fn user_namespace(more: i32) -> Step {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    at("unshare", raw::unshare(libc::CLONE_NEWUSER | more))?;
    io("write setgroups", std::fs::write("/proc/self/setgroups", "deny"))?;
    io("write uid_map", std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")))?;
    io("write gid_map", std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")))
}

fn mount_namespace() -> Step {
    user_namespace(libc::CLONE_NEWNS)?;
    let private = libc::MS_PRIVATE | libc::MS_REC;
    at("make mounts private", raw::mount(c"none", c"/", c"none", private, c""))?;
    at("mount tmpfs", raw::mount(c"none", c"/proc", c"tmpfs", 0, c""))
}

fn proc_mount() -> Step {
    user_namespace(libc::CLONE_NEWNS | libc::CLONE_NEWPID)?;
    let private = libc::MS_PRIVATE | libc::MS_REC;
    at("make mounts private", raw::mount(c"none", c"/", c"none", private, c""))?;
    let binary =
        std::env::current_exe().map_err(|_| ("find itself".into(), Errno(libc::ENOENT)))?;
    // The first child is PID 1 of the new namespace.
    match run_inside(&binary) {
        None => Ok(()),
        Some((step, errno)) => Err((step, Errno(errno))),
    }
}

fn run_inside(binary: &Path) -> Option<(String, i32)> {
    let output = Command::new(binary).args(["__attack", "trial", "proc-mount-inside"]).output();
    match output {
        Ok(o) if o.status.success() => None,
        Ok(o) => Some(parse(&String::from_utf8_lossy(&o.stdout))),
        Err(e) => Some(("start PID 1".into(), e.raw_os_error().unwrap_or(libc::EIO))),
    }
}

fn proc_mount_inside() -> Step {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    at("mount proc", raw::mount(c"proc", c"/proc", c"proc", flags, c""))
}

fn network_namespace() -> Step {
    user_namespace(libc::CLONE_NEWNET)?;
    at("bring loopback up", raw::loopback_up())?;
    let connected = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| std::net::TcpStream::connect(l.local_addr()?));
    io("connect over loopback", connected)
}

fn landlock_holds() -> Step {
    let abi = landlock::abi();
    if abi == 0 {
        return Err(("ask for its version".into(), Errno(libc::ENOSYS)));
    }
    at("set no_new_privs", raw::set_no_new_privs())?;
    let ruleset = landlock::create(abi, landlock::fs::known(abi), 0, landlock::scope::known(abi));
    let ruleset = ruleset.map_err(|e| ("make a ruleset".to_owned(), e))?;
    at("restrict", landlock::restrict(ruleset))?;
    match std::fs::read("/etc/passwd") {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => Ok(()),
        _ => Err(("refuse a read".into(), Errno(libc::EIO))),
    }
}

fn seccomp_holds() -> Step {
    let arch =
        seccomp::native().ok_or_else(|| ("know this processor".to_owned(), Errno(libc::ENOSYS)))?;
    let program = seccomp::compile(arch, &seccomp::Options::default());
    at("set no_new_privs", raw::set_no_new_privs())?;
    let installed = seccomp::install(&program, seccomp::Flags::NONE);
    at("install the filter", installed.map_err(|e| Errno(e.raw_os_error())))?;
    match attack::io_uring_setup() {
        Err(Errno(libc::ENOSYS)) => Ok(()),
        _ => Err(("refuse a call".into(), Errno(libc::EIO))),
    }
}

/// Which limits can be had by control groups: name, and why not.
pub fn limits() -> Vec<(&'static str, Option<String>)> {
    let request =
        cgroup::Request { memory: Some(1 << 30), cpu_percent: Some(100), pids: Some(1000) };
    let outcome = cgroup::create(&request, "doctor");
    if let Some(scope) = outcome.scope {
        let _ = scope.remove();
    }
    cgroup::Controller::ALL
        .into_iter()
        .map(|c| {
            let missing = outcome.missing.iter().find(|m| m.controller == c);
            (c.name(), missing.map(|m| m.reason.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn what_a_trial_prints_is_read_back() {
        assert_eq!(parse("1 mount proc\n"), ("mount proc".into(), libc::EPERM));
        assert_eq!(parse(""), ("end well".into(), libc::EIO));
    }
}
