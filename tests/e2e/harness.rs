//! A place to run in, a user to run as, the binary, and what came out.
#![allow(dead_code)] // each module uses a part

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

/// Who runs a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The user that runs the tests.
    Me,
    /// An ordinary user without any right, when the tests run as root.
    Ordinary,
}

/// An id that no distribution gives to a person or a service.
pub const ORDINARY_ID: u32 = 54_321;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `case` as whoever runs the tests and, for root, as an ordinary user too.
pub fn as_each_user(case: impl Fn(&Place)) {
    case(&Place::new(User::Me));
    if is_root() {
        case(&Place::new(User::Ordinary));
    } else {
        println!("ran as an ordinary user only: the tests were not started by root");
    }
}

/// A directory that every user can reach, and a shell that removes it once this process ends: nothing drops
/// a static.
pub fn lasting(prefix: &str) -> (std::process::Child, PathBuf) {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir().unwrap().keep();
    let broom = Command::new("/bin/sh")
        .args(["-c", "read _; rm -rf \"$0\""])
        .arg(&directory)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    mode(&directory, 0o755);
    (broom, directory)
}

/// A copy of the binary that every user can reach, wherever the build directory lies.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<(std::process::Child, PathBuf)> = OnceLock::new();
    &BINARY
        .get_or_init(|| {
            let built = std::env::var_os("RINGFENCE_BIN")
                .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ringfence")), PathBuf::from);
            let (broom, dir) = lasting("ringfence-e2e-bin");
            let copy = dir.join("ringfence");
            // By another process: a descriptor of ours that may write to it would be inherited by what
            // other threads start meanwhile, and then it could not be run.
            let copied = Command::new("cp").arg(&built).arg(&copy).status().unwrap();
            assert!(copied.success());
            mode(&copy, 0o755);
            (broom, copy)
        })
        .1
}

/// Sets permissions.
pub fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A workspace and a home of its own, owned by the user.
#[derive(Debug)]
pub struct Place {
    pub user: User,
    root: tempfile::TempDir,
}

impl Drop for Place {
    /// What the kernel leaves in the work directory of a killed layer's overlay is closed to its own
    /// owner, who must open it to remove it.
    fn drop(&mut self) {
        open_up(self.root.path());
    }
}

fn open_up(directory: &Path) {
    let Ok(meta) = std::fs::symlink_metadata(directory) else { return };
    if meta.permissions().mode() & 0o700 != 0o700 {
        let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
    }
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            open_up(&entry.path());
        }
    }
}

impl Place {
    pub fn new(user: User) -> Self {
        let root = tempfile::Builder::new().prefix("ringfence-e2e").tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self { user, root };
        for dir in [place.workspace(), place.home(), place.outside()] {
            std::fs::create_dir(&dir).unwrap();
            place.own(&dir);
        }
        place
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The project.
    pub fn workspace(&self) -> PathBuf {
        self.root.path().join("project")
    }

    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// A directory of the same user that no policy mentions.
    pub fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    pub fn ids(&self) -> (u32, u32) {
        match self.user {
            User::Me => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            User::Ordinary => (ORDINARY_ID, ORDINARY_ID),
        }
    }

    pub fn own(&self, path: &Path) {
        if self.user == User::Ordinary {
            chown(path, Some(ORDINARY_ID), Some(ORDINARY_ID)).unwrap();
        }
    }

    /// Writes a file owned by the user; parents are made as needed.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.workspace().join(path);
        let missing: Vec<PathBuf> =
            path.ancestors().skip(1).take_while(|a| !a.exists()).map(Path::to_owned).collect();
        for dir in missing.iter().rev() {
            std::fs::create_dir(dir).unwrap();
            self.own(dir);
        }
        std::fs::write(&path, content).unwrap();
        self.own(&path);
        path
    }

    /// Any command as the user, in the workspace, with a small clean environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.workspace())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.home())
            .env("LANG", "C.UTF-8")
            .env("USER", "tester")
            .stdin(Stdio::null());
        if self.user == User::Ordinary {
            command.uid(ORDINARY_ID).gid(ORDINARY_ID);
        }
        command
    }

    /// The binary, as the user, in the workspace.
    pub fn ringfence<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command(binary());
        command.args(args);
        command
    }

    /// `ringfence run FLAGS -- sh -c SCRIPT`.
    pub fn shell(&self, flags: &[&str], script: &str) -> Ran {
        let mut args = vec!["run"];
        args.extend(flags);
        args.extend(["--", "/bin/sh", "-c", script]);
        Ran::of(&mut self.ringfence(args))
    }

    /// The same script without ringfence: the control.
    pub fn bare(&self, script: &str) -> Ran {
        Ran::of(self.command("/bin/sh").args(["-c", script]))
    }
}

/// What came out of a finished process.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self::from(output)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "should succeed: {self:#?}");
        self
    }

    #[track_caller]
    pub fn failed_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.out.contains(text) || self.err.contains(text),
            "should mention {text:?}: {self:#?}"
        );
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        Self {
            code: output.status.code(),
            signal: output.status.signal(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Whether a program is there; prints why a case is skipped when not.
pub fn has(program: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .any(|dir| dir.join(program).is_file());
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// A shell in a sandbox that is told what to do while it runs.
pub struct Session {
    child: Child,
    orders: Option<ChildStdin>,
    out: BufReader<ChildStdout>,
}

impl Session {
    /// `command` runs a shell.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let orders = child.stdin.take();
        let mut session = Self { child, orders, out };
        assert_eq!(session.does("echo ready"), "ready\n");
        session
    }

    /// Of ringfence, or of what becomes it.
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Waits until the run can be asked to read its rules again: it listens for that beside the command, and
    /// not before. `sockets` prints `/proc/net/unix` of its network.
    #[track_caller]
    pub fn listening(self, sockets: impl Fn() -> Command) -> Self {
        let name = format!("-{}", self.pid());
        let ours = |line: &str| line.contains(" 00010000 ") && line.ends_with(&name);
        for _ in 0..400 {
            if Ran::of(&mut sockets()).out.lines().any(ours) {
                return self;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("the run {} does not listen for new rules", self.pid());
    }

    /// A script that asks for a reload by the socket itself, past whatever the program checks.
    pub fn knock(&self, p: &Place) -> String {
        format!(
            "python3 -c \"
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('\\0ringfence-{}-{}')
try:
    s.sendall(b'reload\\n')
except OSError:
    pass
print(s.recv(1000).decode())\"",
            p.ids().0,
            self.pid()
        )
    }

    /// What a command printed.
    #[track_caller]
    pub fn does(&mut self, script: &str) -> String {
        let orders = self.orders.as_mut().unwrap();
        writeln!(orders, "{{ {script}\n}} 2>&1; echo; echo :done").unwrap();
        let mut text = String::new();
        while !text.ends_with("\n:done\n") {
            let mut line = String::new();
            if self.out.read_line(&mut line).unwrap() == 0 {
                let mut problem = String::new();
                let err = self.child.stderr.take().unwrap();
                std::io::Read::read_to_string(&mut { err }, &mut problem).unwrap();
                panic!("the run ended: {text}{problem}");
            }
            text.push_str(&line);
        }
        text.trim_end_matches(":done\n").strip_suffix('\n').unwrap_or_default().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
