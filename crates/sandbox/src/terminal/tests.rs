//! A shell with job control in a terminal of its own types what a user would type. `rf` in it is
//! this very test binary: the supervisor over a stand-in for init that speaks the real protocol but
//! confines nothing.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;

use ringfence_jail::message;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};
use rustix::process::{Pid, WaitOptions};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

// ---------------------------------------------------------------- the two helper roles

/// Not a test: the entry of the helper processes.
#[test]
fn helper() {
    match std::env::var("RF_ROLE").as_deref() {
        Ok("supervisor") => supervisor(),
        Ok("init") => init(),
        _ => {}
    }
}

fn milliseconds(name: &str) -> Option<Duration> {
    std::env::var(name).ok().map(|v| MS * v.parse().unwrap())
}

fn supervisor() -> ! {
    let signals = Signals::take();
    let io = Io::new(match std::env::var("RF_PTY").as_deref() {
        Ok("always") => Pty::Always,
        Ok("never") => Pty::Never,
        _ => Pty::Auto,
    });
    let deadline = milliseconds("RF_TIMEOUT")
        .and_then(|timeout| Deadline::after(timeout, milliseconds("RF_GRACE").unwrap_or_default()));
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    // Init's own stdin is the control channel; the command's is found by this number.
    let stdin = rustix::io::dup(rustix::stdio::stdin()).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["terminal::tests::helper", "--exact", "--nocapture", "-q"])
        .env("RF_ROLE", "init")
        .env("RF_STDIN", std::os::fd::AsRawFd::as_raw_fd(&stdin).to_string())
        .env("RF_PTYS", io.pty().map(|p| if p { "1" } else { "0" }).concat())
        .stdin(theirs)
        .spawn()
        .unwrap();
    drop(stdin);
    let pid = Pid::from_child(&process);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let mut child = Stand { control: ours, pidfd };
    let outcome = supervise(&mut child, io, &signals, deadline).unwrap();
    let status = process.wait().unwrap();
    if outcome.timed_out || outcome.killed {
        eprintln!("outcome: timed_out={} killed={}", outcome.timed_out, outcome.killed);
    }
    std::process::exit(exit_code(status.into_raw()));
}

struct Stand {
    control: OwnedFd,
    pidfd: OwnedFd,
}

impl Stand {
    fn send(&self, kind: u8, value: u8) {
        let _ = rustix::net::send(&self.control, &[kind, value], SendFlags::NOSIGNAL);
    }
}

impl Child for Stand {
    fn control_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
    fn read_event(&mut self) -> io::Result<Option<Event>> {
        jailed::read_event(self.control.as_fd())
    }
    fn signal(&mut self, signal: i32) {
        assert!(std::env::var_os("RF_PANIC").is_none(), "as asked");
        self.send(message::SIGNAL, signal as u8);
    }
    fn signal_all(&mut self, signal: i32) {
        self.send(message::SIGNAL_ALL, signal as u8);
    }
    fn resume(&mut self, ground: Ground) {
        self.send(message::RESUME, u8::from(ground == Ground::Front));
    }
    fn kill(&mut self) {
        // There is no pid namespace whose end would kill the command.
        self.send(message::SIGNAL_ALL, libc::SIGKILL as u8);
    }
}

/// The protocol of the module's page, in safe calls.
#[allow(clippy::zombie_processes, reason = "waited for by number, to see stops too")]
fn init() -> ! {
    let control = rustix::stdio::stdin();
    let ptys: Vec<bool> = std::env::var("RF_PTYS").unwrap().chars().map(|c| c == '1').collect();
    rustix::process::setsid().unwrap();
    let mut front = false;
    let peer = ptys.contains(&true).then(|| {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let peer = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        rustix::process::ioctl_tiocsctty(&peer).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [master.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [IoSlice::new(&[message::TERMINAL, 0])];
        rustix::net::sendmsg(control, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
        let mut answer = [0u8; 2];
        let (n, _) = rustix::net::recv(control, &mut answer, RecvFlags::empty()).unwrap();
        assert_eq!((n, answer[0]), (2, message::RESUME));
        front = answer[1] == 1;
        peer
    });
    let stdio = |i: usize, other: Stdio| match &peer {
        Some(peer) if ptys[i] => Stdio::from(peer.try_clone().unwrap()),
        _ => other,
    };
    let given = std::env::var("RF_STDIN").unwrap();
    let stdin = match File::open(format!("/proc/self/fd/{given}")) {
        Ok(file) => Stdio::from(file),
        Err(_) => Stdio::null(),
    };
    // The jail's command takes the foreground itself; this one waits until it was given to it.
    let gate = format!("gate.{}", std::process::id());
    let text = std::env::var("RF_CMD").unwrap();
    // Bash: see `User::script`. An empty mask, as the jail gives it; `env` also unblocks what it sets to default.
    let mut command = Command::new("env");
    command
        .arg(format!("--default-signal={BLOCK}"))
        .args([
            "bash",
            "-c",
            &format!("while ! [ -e {gate} ]; do kill -0 $PPID || exit; done\n{text}"),
        ])
        .stdin(stdio(0, stdin))
        .stdout(stdio(1, Stdio::inherit()))
        .stderr(stdio(2, Stdio::inherit()))
        .process_group(0);
    let process = command.spawn().unwrap();
    drop(command);
    let pid = Pid::from_child(&process);
    if let (Some(peer), true) = (&peer, front) {
        rustix::termios::tcsetpgrp(peer, pid).unwrap();
    }
    File::create(gate).unwrap();
    let group = |signal: u8| {
        if let Some(signal) = Signal::from_named_raw(i32::from(signal)) {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    };
    loop {
        let wait = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        if let Some((_, status)) = rustix::process::waitpid(Some(pid), wait).unwrap() {
            if let Some(signal) = status.stopping_signal() {
                let _ = rustix::net::send(
                    control,
                    &[message::STOPPED, signal as u8],
                    SendFlags::NOSIGNAL,
                );
            } else {
                std::process::exit(exit_code(status.as_raw()));
            }
        }
        let mut m = [0u8; 2];
        match rustix::net::recv(control, &mut m, RecvFlags::DONTWAIT) {
            Ok((2, _)) => match m[0] {
                message::RESUME => {
                    if let Some(peer) = &peer {
                        let whose = if m[1] == 1 { pid } else { rustix::process::getpgrp() };
                        let _ = rustix::termios::tcsetpgrp(peer, whose);
                    }
                    group(libc::SIGCONT as u8);
                }
                message::SIGNAL | message::SIGNAL_ALL => group(m[1]),
                _ => {}
            },
            Ok(_) => {
                group(libc::SIGKILL as u8);
                std::process::exit(1);
            }
            Err(_) => sleep(3 * MS),
        }
    }
}

// ---------------------------------------------------------------- the user

/// A shell in a terminal, and somebody who types and looks.
struct User {
    master: Arc<OwnedFd>,
    screen: Arc<Mutex<Vec<u8>>>,
    seen: usize,
    shell: std::process::Child,
    directory: tempfile::TempDir,
}

const BLOCK: &str = "HUP,INT,QUIT,TERM,USR1,USR2,WINCH,TSTP,CONT,TTIN,TTOU";

/// The prompt shows the last exit code: `@@0@@`.
const RC: &str = "PS1='@@$?@@ '\nPATH=$PWD:$PATH\nset +o history\n";

/// Test threads have a mask of their own, so the helper starts with the signals blocked for all.
fn write_rf(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let exe = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\necho $$ > supervisor.pid\nexport RF_CMD=\"$*\" RF_ROLE=supervisor\n\
         exec env --block-signal={BLOCK} {} terminal::tests::helper --exact --nocapture -q\n",
        exe.display()
    );
    let path = directory.join("rf");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

impl User {
    fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let peer = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        resize(&master, 30, 90);
        let directory = tempfile::tempdir().unwrap();
        write_rf(directory.path());
        std::fs::write(directory.path().join("rc"), RC).unwrap();
        let shell = Command::new("setsid")
            .args(["-c", "bash", "--noprofile", "--noediting", "--rcfile", "rc", "-i"])
            .current_dir(directory.path())
            .env("TERM", "xterm")
            .stdin(peer.try_clone().unwrap())
            .stdout(peer.try_clone().unwrap())
            .stderr(peer)
            .spawn()
            .unwrap();
        let master = Arc::new(master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (from, to) = (Arc::downgrade(&master), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = vec![0; 65536];
            // Holds the master only while it reads, so that dropping `User` hangs up.
            while let Some(master) = from.upgrade() {
                let mut fds = [PollFd::new(&*master, PollFlags::IN)];
                let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                if rustix::event::poll(&mut fds, Some(&soon)).unwrap_or(0) == 0 {
                    continue;
                }
                match rustix::io::read(&*master, &mut bytes) {
                    Ok(n) if n > 0 => to.lock().unwrap().extend_from_slice(&bytes[..n]),
                    _ => return,
                }
            }
        });
        let mut user = Self { master, screen, seen: 0, shell, directory };
        user.sees("@@0@@");
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a script that `rf exec bash NAME` runs. Not `sh`, where that is dash: a Ctrl-Z between
    /// its vfork and exec stops the child while the parent cannot stop, so the job hangs, sandbox or
    /// not.
    fn script(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn types(&self, keys: &str) {
        write_all(&self.master, keys.as_bytes());
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()[self.seen..]).into_owned()
    }

    /// Waits for the text after everything seen so far.
    fn sees(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            let found = {
                let screen = self.screen.lock().unwrap();
                screen[self.seen..].windows(text.len()).position(|w| w == text.as_bytes())
            };
            if let Some(at) = found {
                self.seen += at + text.len();
                return;
            }
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {:?}", self.screen());
            sleep(5 * MS);
        }
    }

    fn does_not_see(&self, text: &str, within: Duration) {
        sleep(within);
        assert!(!self.screen().contains(text), "{text:?} in {:?}", self.screen());
    }

    fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&*self.master).unwrap().local_modes;
        !modes.contains(LocalModes::ICANON) && !modes.contains(LocalModes::ISIG)
    }

    fn is_in_front(&self) -> bool {
        rustix::termios::tcgetpgrp(&*self.master).is_ok_and(|group| group == self.supervisor())
    }

    fn supervisor(&self) -> Pid {
        let text = std::fs::read_to_string(self.path("supervisor.pid")).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    fn kills(&self, signal: Signal) {
        rustix::process::kill_process(self.supervisor(), signal).unwrap();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        bytes = &bytes[rustix::io::write(to, bytes).unwrap()..];
    }
}

fn resize(master: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}

fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        sleep(5 * MS);
    }
}

/// Runs until a file `go` appears, then exits with 4. Says so when it is continued: a Ctrl-Z that
/// comes before SIGCONT is discarded by it, with or without a sandbox.
const WAIT_FOR_GO: &str = "trap 'echo again' CONT\necho ready\nwhile ! [ -e go ]; do sleep 0.05; done\necho went\nexit 4\n";

// ---------------------------------------------------------------- interactive runs

#[test]
fn a_command_has_a_terminal_of_its_own() {
    let mut user = User::new();
    user.types("echo out''er $(tty)\n");
    user.sees("outer /dev/pts/");
    let outer: String = user.screen().chars().take_while(char::is_ascii_digit).collect();
    user.script("s", "echo in''ner $(tty)\n[ -t 1 ] && [ -t 2 ] && echo all''three\nstty size\n: </dev/tty && exit 7\n");
    user.types("rf exec bash s\n");
    user.sees("inner /dev/pts/");
    let inner: String = user.screen().chars().take_while(char::is_ascii_digit).collect();
    user.sees("allthree");
    user.sees("30 90");
    user.sees("@@7@@");
    assert_ne!(inner, outer);
    assert!(!user.is_raw());
}

#[test]
fn a_fatal_signal_is_128_and_its_number() {
    let mut user = User::new();
    user.types("rf 'kill -KILL $$'\n");
    user.sees("@@137@@");
    user.types("rf 'kill -TERM $$'\n");
    user.sees("@@143@@");
}

#[test]
fn ctrl_c_interrupts_the_command() {
    let mut user = User::new();
    user.script("s", "trap 'echo caught; exit 3' INT\necho ready\nwhile :; do sleep 0.05; done\n");
    user.types("rf exec bash s\n");
    user.sees("ready");
    assert!(user.is_raw());
    user.types("\x03");
    user.sees("caught");
    user.sees("@@3@@");
    assert!(!user.is_raw());
    user.types("rf sleep 50\n");
    eventually("raw", || user.is_raw());
    sleep(200 * MS);
    user.types("\x03");
    user.sees("@@130@@");
}

#[test]
fn ctrl_z_stops_and_fg_continues() {
    let mut user = User::new();
    user.script("s", WAIT_FOR_GO);
    for round in ["first", "second"] {
        user.types("rf exec bash s\n");
        user.sees("ready");
        for _ in 0..2 {
            user.types("\x1a");
            user.sees("Stopped");
            user.sees("@@148@@");
            assert!(!user.is_raw(), "{round}");
            if round == "first" {
                user.types("fg\n");
                user.sees("again");
                assert!(user.is_raw());
            } else {
                user.types("true\n");
                user.sees("@@0@@");
                user.types("bg\n");
                user.sees("again");
                assert!(!user.is_raw());
                user.types("fg\n");
                // It does not ask for the keyboard, so the terminal's own Ctrl-Z reaches us.
                eventually("in the foreground", || user.is_in_front());
            }
        }
        user.types("\x1a");
        user.sees("Stopped");
        user.types("touch go\n");
        user.does_not_see("went", 300 * MS);
        user.types("fg\n");
        user.sees("went");
        user.sees("@@4@@");
        std::fs::remove_file(user.path("go")).unwrap();
    }
}

#[test]
fn a_shell_inside_keeps_its_own_jobs() {
    let mut user = User::new();
    user.script("inner", "PS1='##$?## '\n");
    user.types("rf exec bash --noprofile --noediting --rcfile inner -i\n");
    user.sees("##0##");
    user.types("sleep 50\n");
    sleep(300 * MS);
    user.types("\x1a");
    user.sees("Stopped");
    user.sees("##148##");
    user.types("fg\n");
    sleep(300 * MS);
    user.types("\x03");
    user.sees("##130##");
    user.types("suspend\n");
    user.sees("Stopped");
    user.sees("@@");
    user.types("fg\n");
    user.sees("##");
    user.types("exit 6\n");
    user.sees("@@6@@");
}

#[test]
fn a_resize_arrives() {
    let mut user = User::new();
    user.script(
        "s",
        // Not in the trap: bash drops a signal that comes while its own trap runs.
        "trap w=1 WINCH\necho ready\nwhile ! [ -e go ]; do\nsleep 0.05\n\
         [ \"$w\" ] && { w=; stty size; }\ndone\nexit 0\n",
    );
    user.types("rf exec bash s\n");
    user.sees("ready");
    resize(&user.master, 41, 101);
    user.sees("41 101");
    user.types("\x1a");
    user.sees("Stopped");
    resize(&user.master, 42, 102);
    user.types("fg\n");
    user.sees("42 102");
    std::fs::write(user.path("go"), "").unwrap();
    user.sees("@@0@@");
}

#[test]
fn ctrl_d_ends_the_input() {
    let mut user = User::new();
    user.types("rf cat\n");
    eventually("raw", || user.is_raw());
    user.types("abc\n");
    user.sees("abc");
    user.sees("abc");
    user.types("\x04");
    user.sees("@@0@@");
}

#[test]
fn a_large_paste_and_a_large_output_arrive_whole() {
    let mut user = User::new();
    let big: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(user.path("big"), &big).unwrap();
    user.script(
        "s",
        "stty raw -echo\necho ready\nhead -c 1048576 >received\necho sta''rt\ncat big\nexit 2\n",
    );
    user.types("rf exec bash s\n");
    user.sees("ready");
    write_all(&user.master, &big);
    user.sees("start\n");
    user.sees("@@2@@");
    assert!(std::fs::read(user.path("received")).unwrap() == big, "input differs");
    let screen = user.screen.lock().unwrap();
    let at = screen.windows(6).position(|w| w == b"start\n").unwrap() + 6;
    assert!(screen[at..].starts_with(&big), "output differs");
}

#[test]
fn the_last_words_are_not_lost() {
    let mut user = User::new();
    for _ in 0..10 {
        user.types("rf 'seq 20000; exec true'\n");
        user.sees("19999\r\n20000\r\n@@0@@");
    }
}

#[test]
fn the_terminal_is_restored_after_a_termination() {
    let mut user = User::new();
    user.types("rf 'echo rea\"\"dy; exec sleep 50'\n");
    user.sees("ready");
    eventually("raw", || user.is_raw());
    user.kills(Signal::TERM);
    user.sees("@@143@@");
    assert!(!user.is_raw());
}

#[test]
fn a_supervisor_that_was_stopped_takes_the_terminal_again() {
    let mut user = User::new();
    user.script("s", WAIT_FOR_GO);
    user.types("rf exec bash s\n");
    user.sees("ready");
    user.kills(Signal::STOP);
    user.sees("Stopped");
    eventually("the shell's modes", || !user.is_raw());
    user.types("fg\n");
    eventually("raw", || user.is_raw());
    std::fs::write(user.path("go"), "").unwrap();
    user.sees("@@4@@");
    assert!(!user.is_raw());
}

#[test]
fn two_on_one_terminal_leave_it_as_it_was() {
    let mut user = User::new();
    for (first, second) in [("0.5", "1"), ("1", "0.5")] {
        let text = format!("rf exec sleep {first} </dev/tty &\nrf exec sleep {second}\nwait\n");
        user.script("s", &text);
        user.types("sh s\n");
        eventually("raw", || user.is_raw());
        user.sees("@@0@@");
        assert!(!user.is_raw());
    }
}

#[test]
fn a_panic_restores_the_terminal() {
    let mut user = User::new();
    user.types("RF_PANIC=1 rf exec sleep 50\n");
    eventually("raw", || user.is_raw());
    user.kills(Signal::USR1);
    user.sees("as asked");
    user.sees("@@101@@");
    assert!(!user.is_raw());
}

#[test]
fn a_hangup_reaches_the_command() {
    let mut user = User::new();
    user.script("s", "trap 'touch hup; exit' HUP\necho ready\nwhile :; do sleep 0.05; done\n");
    user.types("rf exec bash s\n");
    user.sees("ready");
    let file = user.path("hup");
    // Only the supervisor is left to tell: the shell is gone without a word.
    let _ = user.shell.kill();
    let User { ref mut master, .. } = user;
    *master = Arc::new(File::open("/dev/null").unwrap().into());
    eventually("hup", || file.exists());
}

// ---------------------------------------------------------------- redirections

#[test]
fn a_pipeline_leaves_the_keys_to_others() {
    let mut user = User::new();
    user.script("s", WAIT_FOR_GO);
    user.types("rf exec bash s | cat\n");
    user.sees("ready");
    assert!(!user.is_raw());
    user.types("echo ke''pt\n");
    sleep(200 * MS);
    std::fs::write(user.path("go"), "").unwrap();
    user.sees("went");
    user.sees("kept");
}

#[test]
fn ctrl_c_and_ctrl_z_reach_a_pipeline() {
    let mut user = User::new();
    user.script(
        "s",
        "trap 'echo again' CONT\ntrap 'exit 3' INT\necho ready\nwhile :; do sleep 0.05; done\n",
    );
    user.types("rf exec bash s | cat\n");
    user.sees("ready");
    user.types("\x1a");
    user.sees("Stopped");
    user.types("fg\n");
    user.sees("again");
    user.types("\x03");
    // Of the pipeline the shell tells the last one's.
    user.sees("@@130@@");
}

#[test]
fn a_pipeline_that_reads_gets_the_keys() {
    let mut user = User::new();
    user.script("s", "echo ready\nread x\necho \"got:$x\"\n");
    user.types("rf exec bash s | cat\n");
    user.sees("ready");
    eventually("raw", || user.is_raw());
    user.types("hello\n");
    // Written by `cat`, which knows nothing of raw modes.
    user.sees("got:hello\r\n");
    user.sees("@@0@@");
    assert!(!user.is_raw());
}

#[test]
fn a_full_screen_program_in_a_pipeline_writes_raw() {
    let mut user = User::new();
    user.script("s", "stty raw </dev/tty\nprintf 'a\\nb' >/dev/tty\nread x </dev/tty\n");
    user.types("rf exec bash s | cat\n");
    user.sees("a\nb");
    user.types("\n");
    user.sees("@@0@@");
    assert!(!user.is_raw());
}

#[test]
fn a_command_with_piped_input_reads_keys_from_its_terminal() {
    let mut user = User::new();
    user.script(
        "s",
        "cat\nstty -echo </dev/tty\nread x </dev/tty\nstty echo </dev/tty\necho \"key:$x\"\n",
    );
    user.types("echo pip''ed | rf exec bash s\n");
    user.sees("piped");
    eventually("raw", || user.is_raw());
    user.types("hidden\n");
    user.sees("key:hidden");
    user.sees("@@0@@");
}

#[test]
fn errors_to_a_file_go_there() {
    let mut user = User::new();
    user.types("rf 'echo to-err >&2; test -t 1; exit $?' 2>log\n");
    user.sees("@@0@@");
    assert!(std::fs::read_to_string(user.path("log")).unwrap().contains("to-err\n"));
}

#[test]
fn a_background_job_that_reads_stops_until_fg() {
    let mut user = User::new();
    user.script("s", "echo ready\nread x\necho \"got:$x\"\nexit 5\n");
    user.types("rf exec bash s &\n");
    user.sees("ready");
    assert!(!user.is_raw());
    eventually("stopped", || {
        user.types("jobs\n");
        sleep(50 * MS);
        user.screen().contains("Stopped")
    });
    user.types("fg\n");
    eventually("raw", || user.is_raw());
    user.types("hello\n");
    user.sees("got:hello");
    user.sees("@@5@@");
}

#[test]
fn a_background_job_does_not_inherit_the_modes_of_the_command_line() {
    let mut user = User::new();
    user.script("s", "echo ready\nread x\necho \"got:$x\"\nexit 5\n");
    // As a shell that edits its command line has it.
    user.types("stty -icrnl -echo\n");
    user.sees("@@0@@");
    user.types("rf exec bash s &\n");
    user.sees("ready");
    user.types("stty icrnl echo\n");
    user.sees("@@0@@");
    user.types("fg\n");
    eventually("raw", || user.is_raw());
    user.types("hello\r");
    user.sees("hello\r\n");
    user.sees("got:hello");
    user.sees("@@5@@");
}

#[test]
fn pipes_are_transparent() {
    let mut user = User::new();
    let big: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(user.path("big"), &big).unwrap();
    user.types("cat big | rf 'cat; exec 1>&-' | tail -c 1048576 | cmp - big && echo sa''me\n");
    user.sees("same");
    user.sees("@@0@@");
}

#[test]
fn a_pty_can_be_forced_on_pipes() {
    let mut user = User::new();
    user.types("printf 'one\\ntwo' | RF_PTY=always rf 'test -t 0 && test -t 1 && cat' | tr o 0\n");
    user.sees("0ne");
    user.sees("tw0");
    user.sees("@@0@@");
}

#[test]
fn a_real_terminal_is_passed_on_only_when_asked() {
    let mut user = User::new();
    user.types("RF_PTY=never rf 'tty; ls -l /proc/self/fd | grep -c dev/pts/; (: </dev/tty) || echo no''ctty'\n");
    user.sees("/dev/pts/");
    user.sees("noctty");
    user.sees("@@0@@");
}

// ---------------------------------------------------------------- signals and deadlines

/// Without any terminal, as in CI.
fn batch(command: &str, environment: &[(&str, &str)]) -> (tempfile::TempDir, std::process::Child) {
    let directory = tempfile::tempdir().unwrap();
    write_rf(directory.path());
    let process = Command::new("./rf")
        .arg(command)
        .envs(environment.iter().copied())
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (directory, process)
}

fn read_until(from: &mut impl Read, text: &str) -> String {
    let mut got = String::new();
    let mut byte = [0u8; 1];
    while !got.contains(text) && from.read(&mut byte).unwrap() == 1 {
        got.push(char::from(byte[0]));
    }
    got
}

fn rest(mut process: std::process::Child) -> (i32, String) {
    let (mut out, mut err) = (String::new(), String::new());
    process.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    process.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (process.wait().unwrap().code().unwrap(), out + &err)
}

#[test]
fn signals_are_handed_on_without_a_terminal() {
    for (name, signal) in [
        ("TERM", Signal::TERM),
        ("INT", Signal::INT),
        ("HUP", Signal::HUP),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("WINCH", Signal::WINCH),
    ] {
        let script =
            format!("trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done");
        let (_dir, mut process) = batch(&script, &[]);
        read_until(process.stdout.as_mut().unwrap(), "ready");
        rustix::process::kill_process(Pid::from_child(&process), signal).unwrap();
        let (code, text) = rest(process);
        assert_eq!(code, 9, "{name}: {text}");
        assert!(text.contains("got"), "{name}");
    }
}

#[test]
fn a_stop_without_a_terminal_stops_both() {
    let (dir, mut process) =
        batch("echo ready; while ! [ -e go ]; do sleep 0.05; done; echo went", &[]);
    let pid = Pid::from_child(&process);
    read_until(process.stdout.as_mut().unwrap(), "ready");
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    rustix::process::kill_process(pid, Signal::TSTP).unwrap();
    // The test runner may itself be an orphan; then the kernel refuses to stop us.
    let start = Instant::now();
    while state() != 'T' && start.elapsed() < Duration::from_secs(2) {
        sleep(5 * MS);
    }
    let stopped = state() == 'T';
    std::fs::write(dir.path().join("go"), "").unwrap();
    if stopped {
        sleep(200 * MS);
        assert_eq!(state(), 'T');
        rustix::process::kill_process(pid, Signal::CONT).unwrap();
    }
    let (code, text) = rest(process);
    assert_eq!(code, 0);
    assert!(text.contains("went"));
}

#[test]
fn insisting_kills() {
    let (_dir, mut process) =
        batch("trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done", &[]);
    read_until(process.stdout.as_mut().unwrap(), "ready");
    for _ in 0..3 {
        rustix::process::kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        sleep(150 * MS);
    }
    let (code, text) = rest(process);
    assert_eq!(code, 137, "{text}");
    assert_eq!(text.matches("no\n").count(), 2, "{text}");
    assert!(text.contains("killed=true"));
}

#[test]
fn the_deadline_asks_first() {
    let (_dir, process) = batch(
        "trap 'echo bye; exit 1' TERM; while :; do sleep 0.05; done",
        &[("RF_TIMEOUT", "300"), ("RF_GRACE", "10000")],
    );
    let (code, text) = rest(process);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("bye") && text.contains("timed_out=true killed=false"), "{text}");
}

#[test]
fn the_deadline_kills_after_the_grace() {
    let start = Instant::now();
    let (_dir, process) = batch(
        "trap '' TERM; while :; do sleep 0.05; done",
        &[("RF_TIMEOUT", "300"), ("RF_GRACE", "300")],
    );
    let (code, text) = rest(process);
    assert_eq!(code, 137, "{text}");
    assert!(text.contains("timed_out=true killed=true"), "{text}");
    assert!(start.elapsed() >= Duration::from_millis(600));
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn the_deadline_holds_while_stopped() {
    let mut user = User::new();
    user.script("s", "echo $$ >command.pid\necho ready\nwhile :; do sleep 0.05; done\n");
    user.types("RF_TIMEOUT=1500 RF_GRACE=200 rf exec bash s\n");
    user.sees("ready");
    user.types("\x1a");
    user.sees("Stopped");
    let pid = std::fs::read_to_string(user.path("command.pid")).unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    assert!(process.exists());
    eventually("killed", || !process.exists());
    assert!(!user.is_raw());
}

#[test]
fn insisting_is_soon_and_the_same() {
    let start = Instant::now();
    let mut insist = Insist::default();
    assert!(!insist.again(libc::SIGINT, start));
    assert!(!insist.again(libc::SIGINT, start + MS));
    assert!(!insist.again(libc::SIGTERM, start + 2 * MS));
    assert!(!insist.again(libc::SIGINT, start + 3 * MS));
    assert!(!insist.again(libc::SIGINT, start + 2004 * MS));
    assert!(!insist.again(libc::SIGINT, start + 2005 * MS));
    assert!(insist.again(libc::SIGINT, start + 2006 * MS));
}

#[test]
fn wait_statuses_become_exit_codes() {
    assert_eq!(exit_code(7 << 8), 7);
    assert_eq!(exit_code(libc::SIGKILL), 137);
    assert_eq!(exit_code(libc::SIGSEGV | 0x80), 139);
}

#[test]
fn nothing_is_replaced_when_never() {
    assert!(!wants_pty(Pty::Never));
    assert!(wants_pty(Pty::Always));
    let mut sink = std::io::sink();
    sink.write_all(format!("{:?}", Io::new(Pty::Auto)).as_bytes()).unwrap();
}
