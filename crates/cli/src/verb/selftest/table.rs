//! The attacks, as data.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::attacker::{self as a, Legit, Op};
use super::stage::Stage;

/// When the process that was left behind acts.
pub const LATE_MS: u32 = 150;
/// How long the attack on the timeout goes on.
pub const STUBBORN_MS: u32 = 700;

/// Outside, as control, or inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Control,
    Inside,
}

/// What the attacker is started with.
pub type Arguments = fn(&Stage) -> Vec<OsString>;
/// A look at the host afterwards: is the harm done? Gets what the started command printed.
pub type Harm = fn(&Stage, &str) -> bool;

/// One attack.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    pub name: &'static str,
    pub class: &'static str,
    /// What is tried, in a few words.
    pub what: &'static str,
    pub op: Op,
    pub args: Arguments,
    /// Flags of `run` beyond the default.
    pub flags: Arguments,
    /// Decides instead of the attacker's own word.
    pub harm: Option<Harm>,
    /// Ordinary work of the same kind that must go on.
    pub legit: Legit,
    pub custom: Option<fn(&Stage, Side) -> Command>,
    pub start: Start,
    /// What to wait for before looking.
    pub settle_ms: u32,
    /// A limit that a host may be unable to give: then ringfence refuses to run, which is no pass
    /// and no hole.
    pub may_refuse: bool,
}

/// How the attacker gets onto the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Plain,
    /// On a terminal that belongs to the host.
    OnTerminal,
    /// With a descriptor of the outside directory inherited.
    WithDescriptor,
}

fn none(_: &Stage) -> Vec<OsString> {
    Vec::new()
}

const fn attack(class: &'static str, name: &'static str, what: &'static str, op: Op) -> Attack {
    Attack {
        name,
        class,
        what,
        op,
        args: none,
        flags: none,
        harm: None,
        legit: a::nothing_more,
        custom: None,
        start: Start::Plain,
        settle_ms: 0,
        may_refuse: false,
    }
}

impl Attack {
    const fn args(mut self, args: Arguments) -> Self {
        self.args = args;
        self
    }
    const fn flags(mut self, flags: Arguments) -> Self {
        self.flags = flags;
        self
    }
    const fn harm(mut self, harm: Harm) -> Self {
        self.harm = Some(harm);
        self
    }
    const fn legit(mut self, legit: Legit) -> Self {
        self.legit = legit;
        self
    }
    const fn custom(mut self, custom: fn(&Stage, Side) -> Command) -> Self {
        self.custom = Some(custom);
        self
    }
    const fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }
    const fn settle(mut self, ms: u32) -> Self {
        self.settle_ms = ms;
        self
    }
    const fn may_refuse(mut self) -> Self {
        self.may_refuse = true;
        self
    }
}

fn words(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

fn one(path: PathBuf) -> Vec<OsString> {
    vec![path.into()]
}

fn content(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Files of cgroup hierarchies that exist here.
fn cgroup_files(name: &str) -> Vec<OsString> {
    let base = Path::new("/sys/fs/cgroup");
    let mut found = vec![base.join(name)];
    if let Ok(entries) = std::fs::read_dir(base) {
        found.extend(entries.flatten().map(|e| e.path().join(name)));
    }
    found.into_iter().filter(|p| p.exists()).map(OsString::from).collect()
}

fn socket_numbers(family: i32, kind: i32, protocol: i32) -> Vec<OsString> {
    [family, kind, protocol].map(|n| OsString::from(n.to_string())).into()
}

const LATE: &str = "late";
const TOOL: &str = "ringfence-selftest-tool";

/// Started by name, with the current directory in `PATH` and a program of that name in it.
fn by_relative_path(stage: &Stage, side: Side) -> Command {
    use std::os::unix::fs::PermissionsExt;
    let tool = stage.project().join(TOOL);
    let _ = std::fs::write(&tool, format!("#!/bin/sh\necho ran > {LATE}\n"));
    let _ = std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755));
    let mut command = match side {
        Side::Control => {
            let mut c = stage.command(Path::new("/usr/bin/env"));
            c.arg(TOOL);
            c
        }
        Side::Inside => {
            let mut c = stage.command(&stage.binary);
            c.args(["run", "--no-config", "--", TOOL]);
            c
        }
    };
    command.env("PATH", ".::/usr/bin:/bin");
    command
}

/// A working directory that the policy does not mention.
fn foreign_directory(stage: &Stage, side: Side) -> Command {
    let script = format!("echo x > {LATE}");
    let mut command = match side {
        Side::Control => {
            let mut c = stage.command(Path::new("/bin/sh"));
            c.current_dir(stage.outside());
            c
        }
        Side::Inside => {
            let mut c = stage.command(&stage.binary);
            c.args(["run", "--no-config", "--workspace", ".", "--cwd", "../outside", "--"]);
            c.arg("/bin/sh");
            c
        }
    };
    command.args(["-c", &script]);
    command
}

/// A name that a terminal would obey, in a message of ours.
fn hostile_name(stage: &Stage, side: Side) -> Command {
    const NAME: &str = "no-such-\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m";
    let mut command = match side {
        Side::Control => {
            let mut c = stage.command(Path::new("/bin/sh"));
            c.args(["-c", "printf '%s\\n' \"$1\" >&2", "sh"]);
            c
        }
        Side::Inside => {
            let mut c = stage.command(&stage.binary);
            c.args(["run", "--no-config", "--"]);
            c
        }
    };
    command.arg(NAME);
    command
}

/// A program that belongs to somebody else and is to run with their rights. Only root can make one;
/// others try `su`.
fn foreign_program(stage: &Stage) -> Vec<OsString> {
    use std::os::unix::fs::{PermissionsExt, chown};
    const SOMEBODY: u32 = 54_321;
    let copy = stage.project().join("somebody");
    if !rustix::process::geteuid().is_root()
        || std::fs::copy(&stage.binary, &copy).is_err()
        || chown(&copy, Some(SOMEBODY), Some(SOMEBODY)).is_err()
        || std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755)).is_err()
    {
        return Vec::new();
    }
    one(copy)
}

const HOST_DEVICES: [&str; 8] = [
    "/dev/kmsg",
    "/dev/mem",
    "/dev/port",
    "/dev/vda",
    "/dev/sda",
    "/dev/nvme0n1",
    "/dev/net/tun",
    "/proc/kcore",
];
const SYSFS: [&str; 5] = [
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/cpu/cpu0/online",
    "/sys/module/kernel/parameters/panic",
];

/// In the order in which they are tried.
pub const ATTACKS: &[Attack] = &[
    attack("secrets", "ssh-key", "read ~/.ssh/id_ed25519", a::read_secret)
        .args(|s| one(s.home().join(".ssh/id_ed25519"))),
    attack("secrets", "aws-credentials", "read ~/.aws/credentials", a::read_secret)
        .args(|s| one(s.home().join(".aws/credentials"))),
    attack("secrets", "shell-history", "read ~/.bash_history", a::read_secret)
        .args(|s| one(s.home().join(".bash_history"))),
    attack("secrets", "dotenv", "read .env and a key in the workspace", a::read_secret)
        .args(|_| words(&[".env", "keys/server.key"])),
    attack("secrets", "dotenv-alias", "read .env by another name of it", a::read_secret)
        .args(|_| words(&["alias.txt", "/proc/self/cwd/alias.txt"])),
    attack("secrets", "unhide", "rename a hidden file or its directory away", a::unmask)
        .args(|_| words(&["keys/server.key"])),
    attack(
        "secrets",
        "unhide-later",
        "rename a directory so that the next run shows it",
        a::rename,
    )
    .args(|_| words(&["private", "public"]))
    .flags(|s| vec!["--deny-read".into(), s.project().join("private/data").into()])
    .harm(|s, _| s.project().join("public/data").exists()),
    attack("secrets", "shadow", "read /etc/shadow", a::open_read)
        .args(|_| words(&["/etc/shadow", "/etc/gshadow"])),
    attack("secrets", "variables", "find tokens in the environment", a::variables)
        .args(|_| words(&["AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"])),
    attack("secrets", "other-environments", "read /proc/*/environ", a::scan_environments)
        .args(Stage::victim_arguments),
    attack("files", "write-outside", "write outside the workspace", a::write)
        .args(|s| one(s.outside().join("new")))
        .harm(|s, _| s.outside().join("new").exists()),
    attack("files", "read-outside", "read outside the workspace", a::read_secret)
        .args(|s| vec![s.outside().join("secret").into(), "../outside/secret".into()]),
    attack("files", "write-home", "leave a shell start-up file in home", a::write)
        .args(|s| one(s.home().join(".bashrc")))
        .harm(|s, _| s.home().join(".bashrc").exists()),
    attack("files", "write-system", "write in /usr and /etc", a::nameless_file)
        .args(|_| words(&["/usr", "/usr/bin", "/etc"])),
    attack("files", "symlink-out", "a symlink from the workspace to outside", a::symlink_out)
        .args(|s| one(s.outside().join("secret"))),
    attack("files", "hardlink-out", "a second name for a read-only file", a::hardlink_out)
        .args(|s| one(s.outside().join("shared/read-only")))
        .flags(|s| vec!["--allow-read".into(), s.outside().join("shared").into()])
        .harm(|s, _| content(&s.outside().join("shared/read-only")) != "shared\n"),
    attack("files", "write-shared", "write what may only be read", a::write)
        .args(|s| one(s.outside().join("shared/read-only")))
        .flags(|s| vec!["--allow-read".into(), s.outside().join("shared").into()])
        .harm(|s, _| content(&s.outside().join("shared/read-only")) != "shared\n"),
    attack("files", "magic-links", "go round paths by /proc/self/root", a::by_magic_link)
        .args(|s| one(s.outside().join("secret"))),
    attack("files", "open-by-handle", "open files by number", a::open_by_handle),
    attack("files", "leaked-descriptor", "use an inherited directory", a::inherited_descriptor)
        .start(Start::WithDescriptor),
    attack("files", "foreign-directory", "a working directory adds no right", a::variables)
        .custom(foreign_directory)
        .harm(|s, _| s.outside().join(LATE).exists()),
    attack("git", "git-hook", "write .git/hooks/pre-commit", a::write)
        .args(|_| words(&[".git/hooks/pre-commit"]))
        .legit(a::git_index)
        .harm(|s, _| content(&s.project().join(".git/hooks/pre-commit")).contains("attack")),
    attack("git", "git-new-hook", "add .git/hooks/post-checkout", a::write)
        .args(|_| words(&[".git/hooks/post-checkout"]))
        .legit(a::git_index)
        .harm(|s, _| s.project().join(".git/hooks/post-checkout").exists()),
    attack("git", "git-config", "write .git/config", a::write)
        .args(|_| words(&[".git/config"]))
        .legit(a::git_index)
        .harm(|s, _| content(&s.project().join(".git/config")).contains("attack")),
    attack("git", "git-config-replaced", "put another .git/config in its place", a::replace_file)
        .args(|_| words(&[".git/config"]))
        .legit(a::git_index)
        .harm(|s, _| content(&s.project().join(".git/config")).contains("attack")),
    attack("git", "git-renamed", "rename .git away and make it anew", a::recreate)
        .args(|_| words(&[".git"]))
        .legit(a::git_index)
        .harm(|s, _| !s.project().join(".git/config").exists()),
    attack("git", "agent-settings", "write .claude/settings.json", a::write)
        .args(|_| words(&[".claude/settings.json"]))
        .harm(|s, _| content(&s.project().join(".claude/settings.json")).contains("attack")),
    attack("git", "agent-settings-renamed", "put another .claude in its place", a::recreate)
        .args(|_| words(&[".claude"]))
        .harm(|s, _| !s.project().join(".claude/settings.json").exists()),
    attack("git", "protected-renamed", "put another directory in its place", a::recreate)
        .args(|_| words(&["deploy/prod"]))
        .flags(|s| vec!["--deny-write".into(), s.project().join("deploy/prod/plan").into()])
        .harm(|s, _| !s.project().join("deploy/prod/plan").exists()),
    attack("git", "new-agent-settings", "make settings that are not there", a::write)
        .args(|_| words(&[".mcp.json"]))
        .harm(|s, _| s.project().join(".mcp.json").exists()),
    attack("git", "own-policy", "rewrite ringfence.toml", a::write)
        .args(|_| words(&["ringfence.toml"]))
        .harm(|s, _| content(&s.project().join("ringfence.toml")).contains("attack")),
    attack("host", "core-pattern", "open kernel.core_pattern for writing", a::open_write)
        .args(|_| words(&["/proc/sys/kernel/modprobe", "/proc/sys/kernel/core_pattern"])),
    attack("host", "sysrq", "open /proc/sysrq-trigger for writing", a::open_write)
        .args(|_| words(&["/proc/sysrq-trigger"])),
    attack("host", "sysfs", "open files of /sys for writing", a::open_write)
        .args(|_| words(&SYSFS)),
    attack("host", "cgroup-files", "open cgroup.procs for writing", a::open_write)
        .args(|_| cgroup_files("cgroup.procs")),
    attack("host", "release-agent", "open release_agent for writing", a::open_write)
        .args(|_| cgroup_files("release_agent")),
    attack("host", "devices", "open disks, memory, the kernel's log", a::open_read)
        .args(|_| words(&HOST_DEVICES)),
    attack("host", "mknod", "make and open a device node", a::mknod),
    attack("host", "set-user-id", "gain rights by a set-user-id program", a::set_user_id)
        .args(foreign_program),
    attack("mounts", "mount", "mount a file system", a::mount),
    attack("mounts", "remount", "make a read-only mount writable", a::remount)
        .args(|_| words(&[".git/hooks"])),
    attack("mounts", "open-tree", "clone a mount by open_tree", a::open_tree),
    attack("mounts", "fsopen", "the new mount interface", a::fsopen),
    attack("mounts", "chroot", "chroot", a::chroot),
    attack("mounts", "pivot-root", "pivot_root", a::pivot_root),
    attack("kernel", "user-namespace", "unshare(CLONE_NEWUSER)", a::unshare).legit(a::processes),
    attack(
        "kernel",
        "user-namespace-clone",
        "clone with bits that are dropped",
        a::clone_high_bits,
    )
    .legit(a::processes),
    attack("kernel", "user-namespace-clone3", "clone3, flags behind a pointer", a::clone3)
        .legit(a::processes),
    attack("kernel", "setns", "join a namespace", a::setns),
    attack("kernel", "io-uring", "io_uring_setup", a::io_uring),
    attack("kernel", "bpf", "bpf", a::bpf),
    attack("kernel", "perf", "perf_event_open", a::perf),
    attack("kernel", "userfaultfd", "userfaultfd", a::userfaultfd),
    attack("kernel", "keyring", "the caller's session keyring", a::keyring),
    attack("kernel", "int80", "the 32-bit system call entry", a::int80),
    attack("kernel", "x32", "x32 system call numbers", a::x32),
    attack("kernel", "vsock", "a socket to the hypervisor", a::socket)
        .args(|_| socket_numbers(libc::AF_VSOCK, libc::SOCK_STREAM, 0))
        .legit(a::unix_sockets),
    attack("kernel", "packet-socket", "a packet socket", a::socket)
        .args(|_| socket_numbers(libc::AF_PACKET, libc::SOCK_RAW, 0))
        .legit(a::unix_sockets),
    attack("kernel", "raw-socket", "a raw IP socket", a::socket)
        .args(|_| socket_numbers(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP))
        .legit(a::loopback),
    attack("kernel", "crypto-socket", "AF_ALG", a::socket)
        .args(|_| socket_numbers(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    attack("kernel", "netlink", "kernel events by netlink", a::socket)
        .args(|_| socket_numbers(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT))
        .legit(a::loopback),
    attack("terminal", "tiocsti", "type into the parent's terminal", a::type_into_terminal)
        .start(Start::OnTerminal)
        .legit(a::is_terminal),
    attack("terminal", "tiocsti-high-bit", "the same, request with bit 32", a::type_with_high_bit)
        .start(Start::OnTerminal)
        .legit(a::is_terminal),
    attack("processes", "ptrace", "attach to a process outside", a::ptrace)
        .args(Stage::victim_arguments),
    attack("processes", "read-memory", "process_vm_readv of a process outside", a::read_memory)
        .args(Stage::victim_arguments),
    attack("processes", "proc-mem", "/proc/PID/mem of a process outside", a::proc_mem)
        .args(Stage::victim_arguments),
    attack("processes", "kill", "kill a process outside", a::kill)
        .args(Stage::victim_arguments)
        .legit(a::processes)
        .harm(|s, _| !s.victim_lives()),
    attack("processes", "outlive", "a daemon that outlives the run", a::outlive)
        .args(|_| words(&[LATE]))
        .settle(LATE_MS + 150)
        .harm(|s, _| s.project().join(LATE).exists()),
    attack("processes", "ignore-timeout", "go on after the timeout", a::ignore_timeout)
        .args(|_| words(&[LATE]))
        .flags(|_| words(&["--timeout", "200ms", "--grace", "100ms"]))
        .harm(|s, _| s.project().join(LATE).exists()),
    attack("services", "host-tcp", "a server on the host's loopback", a::connect_tcp)
        .args(tcp_port)
        .legit(a::loopback)
        .harm(|s, _| s.services().is_ok_and(|s| s.tcp.accept().is_ok())),
    attack("services", "host-udp", "a datagram to the host's loopback", a::send_udp)
        .args(udp_port)
        .legit(a::loopback)
        .settle(20)
        .harm(|s, _| s.services().is_ok_and(|s| s.udp.recv(&mut [0; 8]).is_ok())),
    attack("services", "abstract-socket", "an abstract unix socket", a::connect_abstract)
        .args(|s| match s.services() {
            Ok(services) => words(&[&services.abstract_name]),
            Err(_) => Vec::new(),
        })
        .legit(a::unix_sockets),
    attack("services", "engine-socket", "a unix socket such as docker's", a::connect_unix)
        .args(|s| {
            let _ = s.services();
            one(s.outside().join("stream.sock"))
        })
        .legit(a::unix_sockets),
    attack("services", "datagram-socket", "a datagram to a unix socket", a::send_unix)
        .args(|s| {
            let _ = s.services();
            one(s.outside().join("datagram.sock"))
        })
        .legit(a::unix_sockets),
    attack("services", "agent-addresses", "addresses of agents and buses", a::variables)
        .args(|_| words(&["SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST"])),
    attack("services", "loader-variables", "variables that run code", a::variables)
        .args(|_| words(&["BASH_ENV", "PYTHONSTARTUP", "GIT_SSH_COMMAND"])),
    attack("limits", "fork-bomb", "more processes than --pids", a::fork_bomb)
        .flags(|_| words(&["--pids", "40"]))
        .may_refuse(),
    attack("limits", "memory", "more memory than --memory", a::memory_hog)
        .flags(|_| words(&["--memory", "96m"]))
        .may_refuse(),
    attack("limits", "file-size", "a larger file than --file-size", a::large_file)
        .flags(|_| words(&["--file-size", "1m"])),
    attack("launcher", "relative-path", "a program in the current directory", a::variables)
        .custom(by_relative_path)
        .harm(|s, _| s.project().join(LATE).exists()),
    attack("launcher", "hostile-name", "escape sequences in our messages", a::variables)
        .custom(hostile_name)
        .harm(|_, printed| {
            printed.chars().any(|c| c.is_control() && c != '\n') || printed.is_empty()
        }),
];

fn tcp_port(stage: &Stage) -> Vec<OsString> {
    let port = stage.services().and_then(|s| s.tcp.local_addr()).map(|a| a.port());
    port.map_or_else(|_| Vec::new(), |p| words(&[&p.to_string()]))
}

fn udp_port(stage: &Stage) -> Vec<OsString> {
    let port = stage.services().and_then(|s| s.udp.local_addr()).map(|a| a.port());
    port.map_or_else(|_| Vec::new(), |p| words(&[&p.to_string()]))
}
