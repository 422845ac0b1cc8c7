//! A daemon of the bench's own and the leanest way to ask it: HTTP/1.1 over its socket, one connection for
//! each client, nothing parsed that is not needed. A client that does more measures itself.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// A daemon with a state of its own; both end with this.
pub struct Daemon {
    child: Child,
    pub root: tempfile::TempDir,
}

impl Daemon {
    pub fn start(binary: &Path) -> Self {
        let root = tempfile::Builder::new().prefix("ringfence-bench").tempdir().unwrap();
        for name in ["home", "run", "state", "work"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let child = Self::command(binary, root.path())
            .arg("daemon")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self { child, root };
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(daemon.socket()).is_err() {
            assert!(Instant::now() < end, "the daemon does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn command(binary: &Path, root: &Path) -> Command {
        let mut command = Command::new(binary);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", root.join("home"))
            .env("XDG_RUNTIME_DIR", root.join("run"))
            .env("XDG_STATE_HOME", root.join("state"))
            .current_dir(root.join("work"));
        command
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    fn socket(&self) -> PathBuf {
        self.root.path().join("run/ringfence/daemon.sock")
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    /// Whether it is still there.
    pub fn serves(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// A connection.
pub struct Client {
    socket: PathBuf,
    stream: UnixStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    piece: Vec<u8>,
}

/// Read at once.
const PIECE: usize = 64 << 10;

/// Status and body.
pub type Answer<'a> = (u16, &'a [u8]);

impl Client {
    fn new(socket: PathBuf) -> Self {
        let stream = connect(&socket);
        let piece = vec![0; PIECE];
        Self { socket, stream, request: Vec::new(), answer: Vec::new(), piece }
    }

    /// Lets go of the connection in the middle of a request.
    pub fn leave(&mut self, method: &str, path: &str, body: &[u8]) {
        self.write(method, path, "application/json", body);
        self.stream = connect(&self.socket);
    }

    fn write(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) {
        let mut head = String::with_capacity(256);
        let _ = write!(
            head,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.request.clear();
        self.request.extend(head.as_bytes());
        self.request.extend(body);
        self.stream.write_all(&self.request).unwrap();
    }

    pub fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Answer<'_> {
        self.ask_as(method, path, "application/json", body)
    }

    pub fn ask_as(&mut self, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer<'_> {
        self.write(method, path, kind, body);
        self.answer.clear();
        let mut whole = None;
        loop {
            let n = match self.stream.read(&mut self.piece) {
                // Stopped for a while.
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert!(n > 0, "the daemon hung up on {method} {path}");
            self.answer.extend(&self.piece[..n]);
            if whole.is_none()
                && let Some(end) = self.answer.windows(4).position(|w| w == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&self.answer[..end]).unwrap();
                let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
                let length = head
                    .lines()
                    .filter_map(|l| l.split_once(':'))
                    .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                    .map_or(0, |(_, n)| n.trim().parse::<usize>().unwrap());
                whole = Some((status, end + 4, end + 4 + length));
            }
            if let Some((status, from, to)) = whole
                && self.answer.len() >= to
            {
                return (status, &self.answer[from..to]);
            }
        }
    }

    /// The answer as JSON; a refusal is the end of the bench.
    pub fn json(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method, path, body.to_string().as_bytes());
        let text = String::from_utf8_lossy(answer);
        assert!(status < 300, "{method} {path}: {status} {text}");
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// Makes a sandbox; its id.
    pub fn create(&mut self, of: &Value) -> String {
        self.json("POST", "/v1/sandboxes", of)["id"].as_str().unwrap().to_owned()
    }

    pub fn exec(&mut self, id: &str, body: &[u8]) {
        let (status, answer) = self.ask("POST", &format!("/v1/sandboxes/{id}/exec"), body);
        assert!(status == 200, "exec: {status} {}", String::from_utf8_lossy(answer));
    }

    pub fn delete(&mut self, id: &str) {
        let (status, answer) = self.ask("DELETE", &format!("/v1/sandboxes/{id}"), b"");
        assert!(status < 300, "delete: {status} {}", String::from_utf8_lossy(answer));
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}
