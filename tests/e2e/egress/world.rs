//! The internet in namespaces that `world.py` makes: one for all cases of this process, gone with it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{ORDINARY_ID, Place, Ran, User, binary, has, is_root};

/// The host's address, as the internet sees it.
pub const HOST: &str = "93.184.0.2";
/// A proxy of the host that decides nothing; the controls go through it.
pub const NAIVE_PROXY: &str = "127.0.0.1:3128";

#[derive(Debug)]
pub struct World {
    dir: PathBuf,
    /// Lives until its standard input ends, which is when this process does, however that happens.
    holder: Child,
}

/// `None` (with the reason printed) where namespaces cannot be had.
pub fn world() -> Option<&'static World> {
    static WORLD: OnceLock<Result<World, String>> = OnceLock::new();
    for program in ["python3", "unshare", "nsenter", "ip", "openssl", "ssh-keygen", "git"] {
        if !has(program) {
            return None;
        }
    }
    match WORLD.get_or_init(World::make) {
        Ok(world) => Some(world),
        Err(problem) => {
            println!("skipped: no internet of our own: {problem}");
            None
        }
    }
}

/// The world, and a binary with an egress filter.
pub fn filtered_world() -> Option<&'static World> {
    static FILTERS: OnceLock<bool> = OnceLock::new();
    let filters = FILTERS.get_or_init(|| {
        let help = Ran::of(Command::new(binary()).args(["run", "--help"]));
        help.out.contains("--allow-host")
    });
    let world = world()?;
    if !filters {
        println!("skipped: this binary has no egress filter");
        return None;
    }
    Some(world)
}

/// A word that appears in one case only.
pub fn token() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}x", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A public address that one case only uses.
pub fn fresh_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("45.{}.{}.{}", 100 + n / 62_500, 1 + n / 250 % 250, 1 + n % 250)
}

/// The name of a fresh address.
pub fn name_of(address: &str) -> String {
    format!("{}.addr.example.com", address.replace('.', "-"))
}

impl World {
    fn make() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("ringfence-e2e-world").tempdir().unwrap().keep();
        crate::harness::mode(&dir, 0o755);
        let program = dir.join("world.py");
        std::fs::write(&program, include_str!("world.py")).unwrap();
        let mut command = Command::new("unshare");
        if !is_root() {
            command.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        let python = ["/usr/bin/python3", "python3"]
            .into_iter()
            .find(|p| !p.starts_with('/') || Path::new(p).exists());
        let uid = rustix::process::geteuid().as_raw();
        let mut holder = command
            .args(["--net", "--mount", python.unwrap_or("python3"), "-I"])
            .arg(&program)
            .args(["hold".as_ref(), dir.as_os_str()])
            .args([uid.to_string(), ORDINARY_ID.to_string()])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.join("problems")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line == "ready\n" {
            return Ok(Self { dir, holder });
        }
        let _ = holder.wait();
        let problems = std::fs::read_to_string(dir.join("problems"))
            .unwrap_or_else(|e| format!("no reason given: {e}"));
        let _ = std::fs::remove_dir_all(&dir);
        // Only where it is the host that refuses may the cases be skipped.
        let refused = ["Operation not permitted", "Permission denied", "No space left on device"];
        let why = refused.iter().find(|r| problems.contains(*r));
        assert!(why.is_some() && !is_root(), "the world did not come up: {problems}");
        Err(problems.lines().last().unwrap_or_default().to_owned())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The abstract socket that a process of the host listens on.
    pub fn abstract_socket(&self) -> String {
        format!("ringfence-world-{}", self.dir.file_name().unwrap().to_str().unwrap())
    }

    /// Any command on the "host", as the user, in the workspace, with a small clean environment. The
    /// process that is started becomes it: no pid between.
    pub fn command(&self, p: &Place, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "--net", "--mount"]);
        if !is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg(format!("--wdns={}", p.workspace().display())).arg("--");
        if p.user == User::Ordinary {
            let id = ORDINARY_ID.to_string();
            command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
        }
        command
            .arg(program)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", p.home())
            .env("LANG", "C.UTF-8")
            .env("USER", "tester")
            .stdin(Stdio::null());
        command
    }

    /// The control: a script on the host without ringfence.
    pub fn bare(&self, p: &Place, script: &str) -> Ran {
        Ran::of(self.command(p, "timeout").args(["-k1", "90", "/bin/sh", "-c", script]))
    }

    /// `ringfence run FLAGS -- sh -c SCRIPT` on the host.
    pub fn fenced<S: AsRef<OsStr>>(&self, p: &Place, flags: &[S], script: &str) -> Ran {
        let mut command = self.command(p, "timeout");
        command.args(["-k1", "90"]).arg(binary()).arg("run").args(flags);
        Ran::of(command.args(["--", "/bin/sh", "-c", script]))
    }

    /// What reached a server, in order: the lines of the log that hold this text.
    pub fn log(&self, text: &str) -> Vec<Value> {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        let log = String::from_utf8(log).unwrap();
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter(|l| l.contains(text));
        lines.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Everything but questions to the DNS server that carries this text in any field, the ssh
    /// server's log included. Addresses match as a whole.
    pub fn reached(&self, text: &str) -> Vec<String> {
        let ssh = std::fs::read_to_string(self.dir.join("sshd.log")).unwrap_or_default();
        let ssh = ssh.lines().filter(|l| l.split(' ').any(|word| word == text)).map(str::to_owned);
        let address = text.parse::<std::net::IpAddr>().is_ok();
        let carries = |v: &Value| {
            v.as_str().is_some_and(|s| if address { s == text } else { s.contains(text) })
        };
        self.log(text)
            .iter()
            .filter(|e| e["event"] != "dns" && e.as_object().unwrap().values().any(carries))
            .map(Value::to_string)
            .chain(ssh)
            .collect()
    }

    /// Questions to the DNS server for names with this text.
    pub fn asked(&self, text: &str) -> Vec<String> {
        let lines = self.log(&text.to_lowercase());
        lines.iter().filter(|e| e["event"] == "dns").map(Value::to_string).collect()
    }

    /// Fails when anything of this ever got out: a connection, a datagram, a question.
    #[track_caller]
    pub fn nothing_of(&self, text: &str, ran: &Ran) {
        let (reached, asked) = (self.reached(text), self.asked(text));
        assert!(reached.is_empty(), "{text} reached a server: {reached:#?}\n{ran:#?}");
        assert!(asked.is_empty(), "{text} reached the DNS server: {asked:#?}\n{ran:#?}");
    }

    #[track_caller]
    pub fn something_of(&self, text: &str, ran: &Ran) {
        assert!(!self.reached(text).is_empty(), "{text} should reach a server: {ran:#?}");
    }

    /// Waits until the log has it.
    #[track_caller]
    pub fn soon(&self, what: &str, mut found: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !found(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
