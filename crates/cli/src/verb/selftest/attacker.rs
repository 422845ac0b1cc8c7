//! The attacker: what `ringfence __attack NAME ARGS` does, the same inside the sandbox and, as its
//! control, outside. It first says that it started and does something legitimate, so that a sandbox
//! that did not start, or that forbids ordinary work, is never taken for one that holds.

use crate::exit::ExitCode;
use std::ffi::{CString, OsStr, OsString};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_sys::attack;
use ringfence_sys::raw::{self, Errno};

use super::table;

/// In every secret of the stage.
pub const SECRET: &str = "ringfence-selftest-secret";
/// In the environment of processes outside.
pub const MARK: &str = "RINGFENCE_SELFTEST_MARK";

/// Exit codes of the attacker.
pub mod code {
    pub const REFUSED: u8 = 10;
    pub const LEGITIMATE: u8 = 12;
    pub const UNKNOWN: u8 = 13;
}

/// What the attacker got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(String),
    Refused(String),
}

pub use Outcome::{Done, Refused};

impl Outcome {
    fn of<T, E: Into<std::io::Error>>(result: Result<T, E>, done: &str) -> Self {
        match result {
            Ok(_) => Done(done.to_owned()),
            Err(e) => Refused(plain(&e.into())),
        }
    }
}

pub fn plain(e: &std::io::Error) -> String {
    e.raw_os_error().map_or_else(|| e.to_string(), |n| Errno(n).to_string())
}

pub type Args<'a> = &'a [OsString];
pub type Op = fn(Args<'_>) -> Outcome;
pub type Legit = fn() -> std::io::Result<()>;

/// What is printed before anything is tried.
pub fn banner(name: &str) -> String {
    format!("attack {name} started")
}

/// `ringfence __attack NAME ARGS`.
pub fn main(args: &[OsString]) -> ExitCode {
    let Some((name, rest)) = args.split_first() else { return ExitCode::from(code::UNKNOWN) };
    match name.to_str() {
        Some("victim") => return victim(),
        Some("whoami") => return whoami(),
        Some("on-terminal") => return on_terminal(rest),
        Some("under") => return under(rest),
        Some("trial") => return crate::verb::doctor::trial(rest),
        _ => {}
    }
    let Some(found) = table::ATTACKS.iter().find(|a| *name == *a.name) else {
        crate::output::say("no such attack");
        return ExitCode::from(code::UNKNOWN);
    };
    line(&banner(found.name));
    for legit in [files as Legit, found.legit] {
        if let Err(e) = legit() {
            line(&format!("legitimate work fails: {}", plain(&e)));
            return ExitCode::from(code::LEGITIMATE);
        }
    }
    match (found.op)(rest) {
        Done(what) => {
            line(&what);
            ExitCode::SUCCESS
        }
        Refused(why) => {
            line(&why);
            ExitCode::from(code::REFUSED)
        }
    }
}

fn line(text: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

// Helpers that are processes outside.

/// A process of the same user with a secret in its memory and its environment; ends with its stdin.
fn victim() -> ExitCode {
    attack::allow_tracing_me();
    let secret = format!("{SECRET}-in-memory");
    line(&format!("{} {}", std::process::id(), secret.as_ptr() as usize));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::hint::black_box(&secret);
    ExitCode::SUCCESS
}

fn whoami() -> ExitCode {
    line(&rustix::process::geteuid().as_raw().to_string());
    ExitCode::SUCCESS
}

/// `on-terminal PATH COMMAND...`: runs the command with PATH as controlling terminal and stdin.
fn on_terminal(args: Args<'_>) -> ExitCode {
    let [path, program, rest @ ..] = args else { return ExitCode::from(code::UNKNOWN) };
    let taken = CString::new(path.as_bytes())
        .map_err(|_| Errno(libc::EINVAL))
        .and_then(|path| attack::take_terminal(&path));
    if let Err(e) = taken {
        return crate::output::fail(format_args!("cannot take the terminal: {e}"));
    }
    replace(program, rest)
}

/// `under WHAT,... COMMAND...`: plays a host that refuses something to the command.
fn under(args: Args<'_>) -> ExitCode {
    let [what, program, rest @ ..] = args else { return ExitCode::from(code::UNKNOWN) };
    let mut refuse = attack::Refuse::default();
    for word in what.to_string_lossy().split(',') {
        match word {
            "namespaces" => refuse.namespaces = true,
            "landlock" => refuse.landlock = true,
            "mounts" => refuse.mounts = true,
            "clone3" => refuse.clone3 = true,
            "nftables" => refuse.nftables = true,
            _ => return ExitCode::from(code::UNKNOWN),
        }
    }
    match attack::refuse(refuse) {
        Ok(()) => replace(program, rest),
        Err(e) => crate::output::fail(format_args!("cannot install the filter: {e}")),
    }
}

fn replace(program: &OsStr, rest: Args<'_>) -> ExitCode {
    let e = Command::new(program).args(rest).exec();
    crate::output::fail(format_args!("{}: {}", Path::new(program).display(), plain(&e)))
}

// Legitimate work.

/// The workspace can be worked in, the system can be read.
fn files() -> std::io::Result<()> {
    std::fs::create_dir("legit.dir")?;
    std::fs::write("legit.dir/new", "text")?;
    std::fs::rename("legit.dir/new", "legit.dir/file")?;
    let text = std::fs::read("legit.dir/file");
    std::fs::remove_dir_all("legit.dir")?;
    std::fs::read("/etc/passwd")?;
    if text? == b"text" { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[allow(clippy::unnecessary_wraps)] // one signature for all
pub fn nothing_more() -> std::io::Result<()> {
    Ok(())
}

/// git can write its index.
pub fn git_index() -> std::io::Result<()> {
    std::fs::write(".git/index.lock", "new index")?;
    std::fs::rename(".git/index.lock", ".git/index")
}

/// Servers on the sandbox's own loopback.
pub fn loopback() -> std::io::Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    std::net::TcpStream::connect(listener.local_addr()?)?;
    Ok(())
}

/// Unix sockets of one's own, with a name and without.
pub fn unix_sockets() -> std::io::Result<()> {
    std::os::unix::net::UnixStream::pair()?;
    let listener = std::os::unix::net::UnixListener::bind("legit.sock")?;
    let connected = std::os::unix::net::UnixStream::connect("legit.sock");
    std::fs::remove_file("legit.sock")?;
    drop(listener);
    connected.map(|_| ())
}

/// Threads and children, and signals among them.
pub fn processes() -> std::io::Result<()> {
    std::thread::Builder::new()
        .spawn(|| {})?
        .join()
        .map_err(|_| std::io::Error::other("a thread could not be joined"))?;
    match attack::fork_many(1) {
        (1, None) => Ok(()),
        (_, e) => Err(e.unwrap_or(Errno(libc::EAGAIN)).into()),
    }
}

/// stdin still is a terminal.
pub fn is_terminal() -> std::io::Result<()> {
    if std::io::stdin().is_terminal() {
        Ok(())
    } else {
        Err(std::io::Error::other("stdin is no terminal"))
    }
}

// The attacks.

fn c(path: &OsStr) -> CString {
    CString::new(path.as_bytes()).unwrap_or_default()
}

fn number(arg: Option<&OsString>) -> usize {
    arg.and_then(|a| a.to_str()).and_then(|a| a.parse().ok()).unwrap_or_default()
}

fn path(args: Args<'_>, at: usize) -> PathBuf {
    args.get(at).map(PathBuf::from).unwrap_or_default()
}

/// Tries each until one succeeds; the last refusal otherwise.
fn any<T>(items: impl IntoIterator<Item = T>, attempt: impl Fn(T) -> Outcome) -> Outcome {
    let mut worst = Refused("nothing of the kind here".to_owned());
    for item in items {
        match attempt(item) {
            Refused(why) => worst = Refused(why),
            done @ Done(_) => return done,
        }
    }
    worst
}

/// Some file among the arguments can be read and holds a secret.
pub fn read_secret(args: Args<'_>) -> Outcome {
    any(args, |p| holds_secret(&std::fs::read(p)))
}

fn holds_secret(read: &std::io::Result<Vec<u8>>) -> Outcome {
    match read {
        Ok(bytes) if contains(bytes, SECRET) => Done("read the secret".into()),
        Ok(_) => Refused("something else is there".into()),
        Err(e) => Refused(plain(e)),
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle.as_bytes())
}

/// Some file among the arguments can be opened for reading.
pub fn open_read(args: Args<'_>) -> Outcome {
    any(args, |p| Outcome::of(std::fs::File::open(p), &format!("opened {}", p.display())))
}

/// Some file among the arguments can be opened for writing. Opens and closes; never writes.
pub fn open_write(args: Args<'_>) -> Outcome {
    any(args, |p| {
        let opened = std::fs::OpenOptions::new().write(true).open(p);
        Outcome::of(opened, &format!("opened {}", p.display()))
    })
}

/// A file without a name in a directory: shows that it can be written and leaves nothing.
pub fn nameless_file(args: Args<'_>) -> Outcome {
    use rustix::fs::{Mode, OFlags};
    any(args, |p| {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        Outcome::of(rustix::fs::open(p, flags, Mode::RUSR), &format!("wrote in {}", p.display()))
    })
}

/// Writes the first argument's file.
pub fn write(args: Args<'_>) -> Outcome {
    let target = path(args, 0);
    if let Some(parent) = target.parent() {
        let _ = std::fs::create_dir_all(parent);
    }
    Outcome::of(std::fs::write(target, "attack"), "wrote it")
}

/// Puts a new file in the place of the first argument's.
pub fn replace_file(args: Args<'_>) -> Outcome {
    let target = path(args, 0);
    let new = target.with_extension("attack");
    let replaced = std::fs::write(&new, "attack").and_then(|()| std::fs::rename(&new, &target));
    let _ = std::fs::remove_file(&new);
    Outcome::of(replaced, "replaced it")
}

/// Renames the first argument to the second.
pub fn rename(args: Args<'_>) -> Outcome {
    Outcome::of(std::fs::rename(path(args, 0), path(args, 1)), "renamed it")
}

/// Renames a directory away and makes it anew.
pub fn recreate(args: Args<'_>) -> Outcome {
    let target = path(args, 0);
    let done = std::fs::rename(&target, target.with_extension("away"))
        .and_then(|()| std::fs::create_dir(&target));
    Outcome::of(done, "renamed it and made it anew")
}

/// Removes the file that hides a secret, or renames what is above it, and reads the secret.
pub fn unmask(args: Args<'_>) -> Outcome {
    let target = path(args, 0);
    let parent = target.parent().unwrap_or(Path::new("."));
    let moved = parent.with_extension("moved");
    let _ = std::fs::rename(parent, &moved);
    let name = target.file_name().unwrap_or_default();
    let read = holds_secret(&std::fs::read(moved.join(name)));
    if matches!(read, Done(_)) {
        return read;
    }
    let aside = target.with_extension("aside");
    if let Err(e) = std::fs::rename(&target, &aside) {
        return Outcome::of(std::fs::remove_file(&target), "removed it").or(plain(&e));
    }
    holds_secret(&std::fs::read(aside))
}

impl Outcome {
    fn or(self, why: String) -> Self {
        match self {
            Refused(_) => Refused(why),
            done @ Done(_) => done,
        }
    }
}

/// A symlink in the workspace to a place outside.
pub fn symlink_out(args: Args<'_>) -> Outcome {
    match std::os::unix::fs::symlink(path(args, 0), "way-out") {
        Ok(()) => holds_secret(&std::fs::read("way-out")),
        Err(e) => Refused(plain(&e)),
    }
}

/// A second name in the workspace for a file that can only be read, then written by that name.
pub fn hardlink_out(args: Args<'_>) -> Outcome {
    let linked = std::fs::hard_link(path(args, 0), "second-name")
        .and_then(|()| std::fs::write("second-name", "attack"));
    Outcome::of(linked, "wrote by a second name")
}

/// Past path checks by the kernel's own links to roots and directories of processes.
pub fn by_magic_link(args: Args<'_>) -> Outcome {
    let target = path(args, 0);
    let relative = target.strip_prefix("/").unwrap_or(&target);
    let ways = ["/proc/self/root", "/proc/1/root", "/proc/1/cwd", "/proc/self/cwd/../../../../.."];
    any(ways, |way| holds_secret(&std::fs::read(Path::new(way).join(relative))))
}

/// Reads through an inherited directory descriptor: all of them, the number may differ.
pub fn inherited_descriptor(_: Args<'_>) -> Outcome {
    const MOST: i32 = 64;
    any(3..MOST, |fd| {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        match raw::openat(fd, c"secret", flags, 0) {
            Ok(file) => {
                raw::close(file);
                Done(format!("opened a file through descriptor {fd}"))
            }
            Err(e) => Refused(e.to_string()),
        }
    })
}

/// A device node of one's own.
pub fn mknod(_: Args<'_>) -> Outcome {
    Outcome::of(
        attack::mknod_null(c"device")
            .and_then(|()| raw::openat(libc::AT_FDCWD, c"device", libc::O_RDWR, 0)),
        "made and opened a device",
    )
}

pub fn open_by_handle(_: Args<'_>) -> Outcome {
    Outcome::of(attack::open_by_handle(c"."), "opened a file by its number")
}

/// A mount namespace by whatever right there is; whether it was had shows in what follows.
fn try_namespaces(more: i32) {
    if raw::unshare(libc::CLONE_NEWNS | more).is_err() {
        let _ = raw::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | more);
    }
    let _ = raw::mount(c"none", c"/", c"none", libc::MS_PRIVATE | libc::MS_REC, c"");
}

pub fn mount(_: Args<'_>) -> Outcome {
    try_namespaces(0);
    let target = c("mount-here".as_ref());
    let _ = std::fs::create_dir("mount-here");
    Outcome::of(raw::mount(c"none", &target, c"tmpfs", 0, c""), "mounted a file system")
}

/// Makes a read-only mount writable again.
pub fn remount(args: Args<'_>) -> Outcome {
    try_namespaces(0);
    let target = c(path(args, 0).as_os_str());
    let again = libc::MS_REMOUNT | libc::MS_BIND;
    // Only for the control, where nothing is read-only yet.
    let _ = raw::mount(&target, &target, c"none", libc::MS_BIND, c"");
    let _ = raw::mount(c"none", &target, c"none", again | libc::MS_RDONLY, c"");
    Outcome::of(raw::mount(c"none", &target, c"none", again, c""), "made it writable")
}

pub fn open_tree(_: Args<'_>) -> Outcome {
    try_namespaces(0);
    let flags = raw::mnt::OPEN_TREE_CLONE | raw::mnt::OPEN_TREE_CLOEXEC;
    Outcome::of(raw::open_tree(libc::AT_FDCWD, c"/usr", flags), "cloned a mount")
}

pub fn fsopen(_: Args<'_>) -> Outcome {
    try_namespaces(0);
    Outcome::of(attack::fsopen(), "opened a file system")
}

/// The classic way out: change the root, keep a descriptor of the old one, climb.
pub fn chroot(_: Args<'_>) -> Outcome {
    try_namespaces(0);
    let _ = std::fs::create_dir("new-root");
    Outcome::of(attack::chroot(c"new-root"), "changed the root")
}

pub fn pivot_root(_: Args<'_>) -> Outcome {
    try_namespaces(0);
    let _ = std::fs::create_dir("new-root");
    let _ = raw::mount(c"new-root", c"new-root", c"none", libc::MS_BIND, c"");
    Outcome::of(raw::pivot_root(c"new-root", c"new-root"), "changed the root")
}

pub fn unshare(_: Args<'_>) -> Outcome {
    Outcome::of(raw::unshare(libc::CLONE_NEWUSER), "made a user namespace")
}

pub fn clone_high_bits(_: Args<'_>) -> Outcome {
    Outcome::of(attack::clone_user_namespace(), "made a user namespace")
}

pub fn clone3(_: Args<'_>) -> Outcome {
    Outcome::of(attack::clone3_user_namespace(), "made a user namespace")
}

/// Into a namespace that a descriptor names: of PID 1, or one's own again.
pub fn setns(_: Args<'_>) -> Outcome {
    try_namespaces(libc::CLONE_NEWNET);
    any(["/proc/1/ns/net", "/proc/self/ns/net"], |ns| {
        let joined = raw::openat(libc::AT_FDCWD, &c(ns.as_ref()), libc::O_RDONLY, 0)
            .and_then(|fd| raw::setns(fd, libc::CLONE_NEWNET));
        Outcome::of(joined, &format!("joined {ns}"))
    })
}

pub fn io_uring(_: Args<'_>) -> Outcome {
    Outcome::of(attack::io_uring_setup(), "made a ring")
}

pub fn bpf(_: Args<'_>) -> Outcome {
    Outcome::of(attack::bpf_map(), "made a map")
}

pub fn perf(_: Args<'_>) -> Outcome {
    Outcome::of(attack::perf_event_open(), "made a counter")
}

pub fn userfaultfd(_: Args<'_>) -> Outcome {
    Outcome::of(attack::userfaultfd(), "holds page faults")
}

pub fn keyring(_: Args<'_>) -> Outcome {
    Outcome::of(attack::session_keyring(), "has the session keyring")
}

pub fn int80(_: Args<'_>) -> Outcome {
    match attack::getpid_by_int80() {
        Some(pid) if pid > 0 => Done("the 32-bit entry answers".into()),
        Some(e) => Refused(Errno(-e).to_string()),
        None => Refused("this processor has no such entry".into()),
    }
}

pub fn x32(_: Args<'_>) -> Outcome {
    match attack::getpid_by_x32() {
        Some(result) => Outcome::of(result, "the x32 numbers answer"),
        None => Refused("this processor has no such numbers".into()),
    }
}

/// Sockets of other families: some can only be had with a namespace of one's own.
pub fn socket(args: Args<'_>) -> Outcome {
    let numbers: Vec<i32> = args.iter().map(|a| number(Some(a)) as i32).collect();
    let [family, kind, protocol] = numbers[..] else { return Refused("no family".into()) };
    let direct = attack::socket(family, kind, protocol);
    if direct.is_err() {
        try_namespaces(libc::CLONE_NEWNET);
    }
    let socket = direct.or_else(|_| attack::socket(family, kind, protocol));
    Outcome::of(socket, "made the socket")
}

pub fn type_into_terminal(_: Args<'_>) -> Outcome {
    Outcome::of(attack::type_into_terminal(0, false), "typed into the terminal")
}

pub fn type_with_high_bit(_: Args<'_>) -> Outcome {
    Outcome::of(attack::type_into_terminal(0, true), "typed into the terminal")
}

pub fn ptrace(args: Args<'_>) -> Outcome {
    let pid = number(args.first()) as i32;
    Outcome::of(attack::ptrace_seize(pid), "attached to a process outside")
}

pub fn read_memory(args: Args<'_>) -> Outcome {
    let mut bytes = [0u8; SECRET.len()];
    let pid = number(args.first()) as i32;
    match attack::read_memory(pid, number(args.get(1)), &mut bytes) {
        Ok(_) if bytes == SECRET.as_bytes() => Done("read the memory of a process outside".into()),
        Ok(_) => Refused("other memory".into()),
        Err(e) => Refused(e.to_string()),
    }
}

pub fn proc_mem(args: Args<'_>) -> Outcome {
    use std::os::unix::fs::FileExt;
    let address = number(args.get(1)) as u64;
    let pid = number(args.first()).to_string();
    any([pid.as_str(), "1"], |pid| {
        let mut bytes = [0u8; SECRET.len()];
        let read = std::fs::File::open(format!("/proc/{pid}/mem"))
            .and_then(|f| f.read_exact_at(&mut bytes, address));
        match read {
            Ok(()) if bytes == SECRET.as_bytes() => Done(format!("read memory of process {pid}")),
            Ok(()) => Refused("other memory".into()),
            Err(e) => Refused(plain(&e)),
        }
    })
}

/// The environment of every process in sight.
pub fn scan_environments(_: Args<'_>) -> Outcome {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Refused("no /proc".into()) };
    any(entries.flatten(), |entry| match std::fs::read(entry.path().join("environ")) {
        Ok(bytes) if contains(&bytes, MARK) => {
            Done(format!("read the environment of process {}", entry.file_name().display()))
        }
        Ok(_) => Refused("not in any environment in sight".into()),
        Err(e) => Refused(plain(&e)),
    })
}

/// Ends the process whose id is the first argument.
pub fn kill(args: Args<'_>) -> Outcome {
    Outcome::of(raw::kill(number(args.first()) as i32, libc::SIGKILL), "killed it")
}

/// Some variable among the arguments is set.
pub fn variables(args: Args<'_>) -> Outcome {
    any(args, |name| match std::env::var_os(name) {
        Some(_) => Done(format!("{} is set", name.display())),
        None => Refused("not set".into()),
    })
}

pub fn connect_tcp(args: Args<'_>) -> Outcome {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
    let port = number(args.first()) as u16;
    let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    any(loopbacks, |ip| {
        let to = SocketAddr::new(ip, port);
        let connected = TcpStream::connect_timeout(&to, Duration::from_secs(2));
        Outcome::of(connected, &format!("connected to {to}"))
    })
}

pub fn send_udp(args: Args<'_>) -> Outcome {
    let port = number(args.first()) as u16;
    let sent = std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|s| s.send_to(SECRET.as_bytes(), ("127.0.0.1", port)));
    Outcome::of(sent, "sent it")
}

pub fn connect_abstract(args: Args<'_>) -> Outcome {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let name = path(args, 0);
    let connected = SocketAddr::from_abstract_name(name.as_os_str().as_bytes())
        .and_then(|a| UnixStream::connect_addr(&a));
    Outcome::of(connected, "connected")
}

pub fn connect_unix(args: Args<'_>) -> Outcome {
    Outcome::of(std::os::unix::net::UnixStream::connect(path(args, 0)), "connected")
}

pub fn send_unix(args: Args<'_>) -> Outcome {
    let sent = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|s| s.send_to(SECRET.as_bytes(), path(args, 0)));
    Outcome::of(sent, "sent it")
}

/// Runs a set-user-id program and looks at who it became.
pub fn set_user_id(args: Args<'_>) -> Outcome {
    let me = rustix::process::geteuid().as_raw();
    let ours = path(args, 0);
    if !ours.as_os_str().is_empty() {
        return match Command::new(ours).args(["__attack", "whoami"]).output() {
            Ok(o) => {
                let text = String::from_utf8_lossy(&o.stdout).trim().to_owned();
                match text.parse::<u32>() {
                    Ok(id) if id != me => Done(format!("became user {id}")),
                    Ok(_) => Refused("stayed the same user".into()),
                    Err(_) => Refused("could not be run".into()),
                }
            }
            Err(e) => Refused(plain(&e)),
        };
    }
    // `su` waits for a password long enough to be looked at.
    let child = Command::new("/usr/bin/su")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => return Refused(plain(&e)),
    };
    let until = Instant::now() + Duration::from_millis(500);
    let mut outcome = Refused("stayed the same user".into());
    while Instant::now() < until {
        if effective_user(child.id()).is_some_and(|id| id != me) {
            outcome = Done("a set-user-id program gained its owner's rights".into());
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    drop(child.stdin.take());
    let _ = child.wait();
    outcome
}

fn effective_user(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

pub fn fork_bomb(_: Args<'_>) -> Outcome {
    const WANTED: usize = 120;
    match attack::fork_many(WANTED) {
        (_, None) => Done(format!("{WANTED} processes at one time")),
        (n, Some(e)) => Refused(format!("{e} after {n} processes")),
    }
}

/// Takes 256 MiB and writes to every page.
pub fn memory_hog(_: Args<'_>) -> Outcome {
    const PAGE: usize = 4096;
    const WANTED: usize = 256 << 20;
    let mut hog: Vec<u8> = Vec::new();
    if let Err(e) = hog.try_reserve_exact(WANTED) {
        return Refused(e.to_string());
    }
    hog.resize(WANTED, 1);
    Done(format!("{} pages", std::hint::black_box(&hog).len() / PAGE))
}

/// Writes 8 MiB to one file.
pub fn large_file(_: Args<'_>) -> Outcome {
    let written = std::fs::write("large", vec![0u8; 8 << 20]);
    let length = std::fs::metadata("large").map_or(0, |m| m.len());
    let _ = std::fs::remove_file("large");
    match written {
        Ok(()) => Done(format!("{length} bytes in one file")),
        Err(e) => Refused(plain(&e)),
    }
}

/// A process that outlives the run: makes the file `late` when it is over.
pub fn outlive(args: Args<'_>) -> Outcome {
    Outcome::of(
        attack::leave_behind(table::LATE_MS, &c(path(args, 0).as_os_str())),
        "left a process behind",
    )
}

/// Does not listen to the end of its time.
pub fn ignore_timeout(args: Args<'_>) -> Outcome {
    attack::ignore_signals();
    std::thread::sleep(Duration::from_millis(table::STUBBORN_MS.into()));
    Outcome::of(std::fs::write(path(args, 0), "late"), "went on after its time")
}
