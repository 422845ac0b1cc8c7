//! A run in a real terminal: a shell with job control, and keys typed into it.

use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::harness::{Place, Ran, as_each_user, binary, has};

const PATIENCE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);
pub const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
pub const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";

/// An interactive shell in a terminal; `$RF` is the binary.
pub struct Shell {
    master: OwnedFd,
    child: Child,
    seen: Vec<u8>,
    /// What was waited for lies before this.
    from: usize,
    marks: u32,
}

impl Shell {
    pub fn new(p: &Place) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        p.own(std::path::Path::new(name.to_str().unwrap()));
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        // `setsid --ctty` makes the terminal the shell's.
        let mut command = p.command("setsid");
        command
            .args(["--ctty", "bash", "--norc", "--noprofile", "-i"])
            .env("RF", binary())
            .env("TERM", "xterm")
            .env("PS1", "@ ")
            .env("HISTFILE", "/dev/null")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio());
        let child = command.spawn().unwrap();
        let mut shell = Self { master, child, seen: Vec::new(), from: 0, marks: 0 };
        shell.resize(24, 80);
        shell.run("bind 'set enable-bracketed-paste off'; stty -a > /dev/null");
        shell
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    pub fn send(&self, keys: &str) {
        let mut left = keys.as_bytes();
        while !left.is_empty() {
            let n = rustix::io::write(&self.master, left).unwrap();
            left = &left[n..];
        }
    }

    /// Waits until the terminal shows this after what was waited for before. Answers what came
    /// in between.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let new = &self.seen[self.from..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.from += at + text.len();
                return before;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no {text:?} on the terminal after {:?}; all of it:\n{}",
                String::from_utf8_lossy(new),
                String::from_utf8_lossy(&self.seen)
            );
            self.read(50 * MS);
        }
    }

    /// Waits for the shell to be back.
    #[track_caller]
    pub fn prompt(&mut self) {
        self.expect("@ ");
    }

    fn read(&mut self, wait: Duration) {
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 };
        if poll(&mut fds, Some(&wait)).is_ok_and(|n| n > 0) {
            let mut buffer = [0u8; 16_384];
            if let Ok(n) = rustix::io::read(&self.master, &mut buffer) {
                self.seen.extend_from_slice(&buffer[..n]);
            }
        }
    }

    /// Types a line at the prompt and waits until the shell has run it. Answers what it printed.
    /// One line: what is typed while a command runs goes to the command.
    #[track_caller]
    pub fn run(&mut self, line: &str) -> String {
        self.marks += 1;
        // Written so that the echo of the line is not taken for its output.
        self.send(&format!("{line}; echo =\"{}\"=\n", self.marks));
        let mark = format!("={}=\r\n", self.marks);
        let printed = self.expect(&mark);
        self.expect("@ ");
        printed
    }

    /// Types a line that starts a run whose command prints `ready`.
    #[track_caller]
    fn start(&mut self, line: &str) {
        self.send(&format!("{line}\n"));
        self.expect("ready\r\n");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Hanging up ends what runs in it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A case in a terminal for each user.
fn in_a_terminal(case: impl Fn(&Place, &mut Shell)) {
    if !has("bash") || !has("setsid") {
        return;
    }
    as_each_user(|p| {
        let mut shell = Shell::new(p);
        case(p, &mut shell);
    });
}

/// Prints `ready` (in a way that its echo does not) and goes on.
const READY: &str = "echo rea\"\"dy;";

#[test]
fn the_command_has_a_terminal_of_its_own() {
    in_a_terminal(|_, t| {
        t.resize(31, 97);
        let out = t.run("\"$RF\" -c 'test -t 0 && test -t 1 && test -t 2 && tty && stty size; echo x >/dev/tty'");
        assert!(out.contains("/dev/pts/0\r\n31 97\r\nx\r\n"), "{out}");
        let out = t.run("\"$RF\" -c 'ls /dev/pts | tr \"\\n\" \" \"'");
        assert!(out.contains("0 ptmx "), "the host's terminals are not there: {out}");
    });
}

#[test]
fn ctrl_c_and_ctrl_backslash_end_the_command() {
    in_a_terminal(|_, t| {
        for (key, code) in [(CTRL_C, 130), (CTRL_BACKSLASH, 131)] {
            t.start(&format!("ulimit -c 0; \"$RF\" -c '{READY} exec sleep 100'"));
            t.send(key);
            t.prompt();
            let out = t.run("echo code=$?");
            assert!(out.contains(&format!("code={code}")), "{out}");
        }
        // A command that handles it goes on, and the sandbox with it.
        t.start(&format!(
            "\"$RF\" -c 'trap \"echo caught; exit 7\" INT; {READY} while :; do sleep 0.05; done'"
        ));
        t.send(CTRL_C);
        t.expect("caught");
        t.prompt();
        let out = t.run("echo code=$?");
        assert!(out.contains("code=7"), "{out}");
    });
}

#[test]
fn ctrl_z_stops_and_fg_resumes() {
    in_a_terminal(|_, t| {
        t.start(&format!(
            "\"$RF\" -c '{READY} read line; echo got:$line; read line; echo and:$line'"
        ));
        for word in ["got", "and"] {
            t.send(CTRL_Z);
            t.expect("Stopped");
            t.prompt();
            let out = t.run("jobs");
            assert!(out.contains("Stopped"), "{out}");
            t.send("fg\n");
            t.expect("$RF");
            t.send(&format!("{word}-line\n"));
            t.expect(&format!("{word}:{word}-line\r\n"));
        }
        t.expect("@ ");
        let out = t.run("echo code=$?; jobs");
        assert!(out.contains("code=0") && !out.contains("Stopped"), "{out}");
    });
}

#[test]
fn bg_lets_a_stopped_run_go_on_behind_the_prompt() {
    in_a_terminal(|_, t| {
        // Not sh: one that starts its children by vfork cannot be stopped while it does.
        let script = format!("{READY} sleep 0.5; echo finished behind");
        t.start(&format!("\"$RF\" -- bash -c '{script}'"));
        t.send(CTRL_Z);
        t.expect("Stopped");
        t.prompt();
        t.send("bg\n");
        t.expect("finished behind");
        t.run("true");
    });
}

#[test]
fn a_background_run_writes_and_stops_when_it_reads() {
    in_a_terminal(|_, t| {
        let out = t.run("\"$RF\" -c 'echo from behind' & wait");
        assert!(out.contains("from behind\r"), "{out}");
        t.run("\"$RF\" -c 'read line; echo got:$line' & sleep 0.1");
        let start = Instant::now();
        while !t.run("jobs").contains("Stopped") {
            assert!(start.elapsed() < PATIENCE, "a reading background job should stop");
            std::thread::sleep(50 * MS);
        }
        t.send("fg\n");
        t.expect("$RF");
        t.send("typed\n");
        t.expect("got:typed\r");
        t.expect("@ ");
        t.run("true");
    });
}

#[test]
fn a_resize_reaches_the_command() {
    in_a_terminal(|_, t| {
        t.start(&format!(
            "\"$RF\" -- bash -c 'trap \"stty size\" WINCH; {READY} while :; do sleep 0.05; done'"
        ));
        t.resize(50, 132);
        t.expect("50 132\r\n");
        // A shell does not take a signal while it runs the trap of the one before.
        std::thread::sleep(300 * MS);
        // Also one that happens while the run is stopped.
        t.send(CTRL_Z);
        t.expect("Stopped");
        t.prompt();
        t.run("true");
        t.resize(40, 100);
        t.send("fg\n");
        t.expect("40 100\r\n");
        std::thread::sleep(300 * MS);
        t.send(CTRL_C);
        t.prompt();
        t.run("true");
    });
}

#[test]
fn the_terminals_settings_are_as_they_were() {
    in_a_terminal(|p, t| {
        let same = |t: &mut Shell, what: &str| {
            let out = t.run("stty -a > after; cmp before after && echo unchanged");
            assert!(out.contains("unchanged\r\n"), "{what}: {out}");
        };
        t.run("stty -a > before");
        t.run("\"$RF\" -- true");
        same(t, "after a short run");
        t.run("\"$RF\" -c 'stty raw -echo -isig; exit 3'");
        same(t, "after a command that set its terminal raw");
        t.run("\"$RF\" -- no-such-program");
        same(t, "after a failure");
        t.run("\"$RF\" --timeout 100ms --grace 50ms -c 'trap \"\" TERM; sleep 30'");
        same(t, "after a timeout");
        t.start(&format!(
            "\"$RF\" -c 'stty -echo -icanon; {READY} kill -STOP $$; stty -a | grep -o \".icanon\"'"
        ));
        t.expect("Stopped");
        t.prompt();
        same(t, "while stopped");
        t.send("fg\n");
        t.expect("-icanon");
        t.prompt();
        same(t, "at the end");
        t.start(&format!("\"$RF\" -c '{READY} kill -KILL $$'"));
        t.expect("@ ");
        same(t, "after a command that was killed");
        assert!(p.workspace().join("before").metadata().unwrap().len() > 100);
    });
}

#[test]
fn pipes_stay_pipes() {
    in_a_terminal(|p, t| {
        let out = t.run("\"$RF\" -c 'seq 100000' | head -n 2 | tail -n 1; echo ${PIPESTATUS[0]}");
        assert!(out.contains("2\r\n"), "{out}");
        let out =
            t.run("echo through | \"$RF\" -- cat; echo bytes | \"$RF\" -- cat | od -c | head -1");
        assert!(out.contains("through\r") && out.contains("b   y   t   e   s  \\n"), "{out}");
        t.run("\"$RF\" -c 'test -t 1 || echo no terminal' > out 2> err < /dev/null");
        assert_eq!(std::fs::read_to_string(p.workspace().join("out")).unwrap(), "no terminal\n");
        assert_eq!(std::fs::read_to_string(p.workspace().join("err")).unwrap(), "");
        // The keyboard is taken the moment the command asks for it.
        t.send("\"$RF\" -c 'read line; echo got:$line' | cat\n");
        t.expect("| cat\r\n");
        std::thread::sleep(300 * MS);
        t.send("typed\n");
        t.expect("got:typed\r");
        t.expect("@ ");
        t.run("true");
    });
}

#[test]
fn a_run_without_terminal_cannot_reach_the_callers() {
    in_a_terminal(|p, t| {
        let script =
            "echo stolen > /dev/tty; cat /dev/tty; ls -l /proc/self/fd /dev/pts; ps -o tty= -p $$";
        t.run(&format!("\"$RF\" -c '{script}' < /dev/null > out 2>&1"));
        let out = std::fs::read_to_string(p.workspace().join("out")).unwrap();
        assert_eq!(out.matches("No such device or address").count(), 2, "{out}");
        let seen = String::from_utf8_lossy(&t.seen).into_owned();
        assert!(!seen.contains("\nstolen"), "{seen}");
        // The control: without ringfence the terminal is at hand.
        let native = t.run("sh -c 'echo reached > /dev/tty' < /dev/null > out 2>&1");
        assert!(native.contains("reached\r\n"), "{native}");
    });
}

#[test]
fn vim_draws_stops_resumes_resizes_and_saves() {
    if !has("vim") {
        return;
    }
    in_a_terminal(|p, t| {
        p.write("f", "first line\n");
        t.run("stty -a > before");
        t.send("\"$RF\" -- vim -u NONE -N f\n");
        t.expect("first line");
        t.expect("~");
        t.send("Onew text\x1b");
        t.expect("new text");
        // Escape and a key at once are one key with Alt.
        std::thread::sleep(1200 * MS);
        t.send(CTRL_Z);
        t.expect("Stopped");
        t.prompt();
        let out = t.run("stty -a > after; cmp before after && echo unchanged");
        assert!(out.contains("unchanged\r\n"), "{out}");
        t.resize(35, 111);
        t.send("fg\n");
        t.expect("new text");
        t.send(":echo 'size' &lines &columns\r");
        t.expect("size 35 111");
        t.send(CTRL_C);
        // The terminal throws away what was typed before the interrupt was noticed.
        t.expect("exit Vim");
        std::thread::sleep(500 * MS);
        t.send("\x1b:wq\r");
        t.expect("@ ");
        let out = t.run("echo code=$?");
        assert!(out.contains("code=0"), "{out}\nall of it:\n{}", String::from_utf8_lossy(&t.seen));
        let text = std::fs::read_to_string(p.workspace().join("f")).unwrap();
        assert_eq!(text, "new text\nfirst line\n");
        let out = t.run("stty -a | tr -d '\\n' | sed 's/rows.*columns [0-9]*//' > after; tr -d '\\n' < before | sed 's/rows.*columns [0-9]*//' | cmp - after && echo unchanged");
        assert!(out.contains("unchanged\r\n"), "{out}");
    });
}

#[test]
fn less_pages_inside_and_behind_a_pipe() {
    if !has("less") {
        return;
    }
    in_a_terminal(|_, t| {
        t.run("seq -f 'line %g.' 300 > f");
        t.send("\"$RF\" -- less f\n");
        t.expect("line 23.");
        t.send("G");
        t.expect("line 300.");
        // Until it waits for a key, less only remembers the signal.
        std::thread::sleep(300 * MS);
        t.send(CTRL_Z);
        t.expect("Stopped");
        t.prompt();
        t.run("true");
        t.send("fg\n");
        t.expect("line 300.");
        t.send("q");
        t.expect("@ ");
        t.run("true");
        // less outside reads the keys, although a run writes to it.
        t.send("\"$RF\" -- cat f | less\n");
        t.expect("line 23.");
        t.send("G");
        t.expect("line 300.");
        t.send("q");
        t.expect("@ ");
        t.run("true");
    });
}

#[test]
fn a_shell_inside_has_job_control_of_its_own() {
    in_a_terminal(|_, t| {
        t.send("\"$RF\" -e PS1='i''n ' -- bash --norc --noprofile -i\n");
        t.expect("in ");
        t.send("sh -c 'echo rea\"\"dy; exec sleep 100'\n");
        t.expect("ready\r\n");
        t.send(CTRL_Z);
        t.expect("Stopped");
        t.expect("in ");
        t.send("jobs; echo still \"\"here\n");
        t.expect("still here\r\n");
        t.expect("in ");
        t.send("fg\n");
        t.expect("sleep 100");
        // The shell says what it resumes before it hands over the terminal.
        std::thread::sleep(300 * MS);
        t.send(CTRL_C);
        t.expect("in ");
        t.send("echo code=$?\n");
        t.expect("code=130\r\n");
        t.expect("in ");
        t.send(CTRL_D);
        t.expect("@ ");
        let out = t.run("echo outside=${RINGFENCE-yes}");
        assert!(out.contains("outside=yes"), "{out}");
    });
}

/// The editor in a window of tmux, as agents and people use it.
#[test]
fn vim_under_tmux_survives_ctrl_z_resize_and_ctrl_c() {
    if !has("tmux") || !has("vim") || !has("bash") {
        return;
    }
    as_each_user(|p| {
        p.write("f", "first line\n");
        let socket = p.outside().join("tmux");
        let socket = socket.to_str().unwrap();
        let tmux = |args: &[&str]| {
            let mut command = p.command("tmux");
            Ran::of(command.args(["-f", "/dev/null", "-S", socket]).args(args).env("RF", binary()))
        };
        let screen = || tmux(&["capture-pane", "-p"]).out;
        let wait = |text: &str| {
            let start = Instant::now();
            while !screen().contains(text) {
                assert!(start.elapsed() < PATIENCE, "no {text:?} on the screen:\n{}", screen());
                std::thread::sleep(50 * MS);
            }
        };
        let keys = |keys: &[&str]| {
            tmux(&[&["send-keys"], keys].concat()).ok();
        };
        tmux(&["new-session", "-d", "-x", "80", "-y", "24", "bash --norc --noprofile -i"]).ok();
        keys(&["\"$RF\" -- vim -u NONE -N f", "Enter"]);
        wait("first line");
        keys(&["O", "typed here", "Escape"]);
        wait("typed here");
        std::thread::sleep(1200 * MS);
        keys(&["C-z"]);
        wait("Stopped");
        keys(&["echo prompt $((6 * 7))", "Enter"]);
        wait("prompt 42");
        keys(&["fg", "Enter"]);
        wait("typed here");
        tmux(&["resize-window", "-x", "101", "-y", "33"]).ok();
        keys(&["C-c"]);
        wait("exit Vim");
        std::thread::sleep(500 * MS);
        keys(&["Escape", ":set nomore | echo 'is' &columns 'by' &lines", "Enter"]);
        wait("is 101 by 33");
        keys(&[":wq", "Enter"]);
        wait("prompt 42");
        std::thread::sleep(500 * MS);
        keys(&["clear; echo code=$?", "Enter"]);
        wait("code=0");
        tmux(&["kill-server"]);
        let text = std::fs::read_to_string(p.workspace().join("f")).unwrap();
        assert_eq!(text, "typed here\nfirst line\n");
    });
}
