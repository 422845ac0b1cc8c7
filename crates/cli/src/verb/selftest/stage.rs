//! Where attacks take place: a directory with a home, a project and a place outside, made anew for
//! each side of each attack, and services of the "host" to be reached from it. All of it is removed
//! at the end, also when an attack goes wrong.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::attacker::{MARK, SECRET};

/// One side of one attack.
#[derive(Debug)]
pub struct Stage {
    root: PathBuf,
    pub binary: PathBuf,
    services: OnceCell<Services>,
    victim: OnceCell<Option<Victim>>,
    terminal: OnceCell<Option<(OwnedFd, PathBuf)>>,
    descriptor: OnceCell<Option<OwnedFd>>,
}

/// Listeners of the host. Some are only there to be connected to.
#[derive(Debug)]
#[allow(dead_code)] // held, not read
pub struct Services {
    pub tcp: TcpListener,
    pub udp: UdpSocket,
    pub abstract_name: String,
    pub abstract_socket: UnixListener,
    pub stream: UnixListener,
    pub datagram: UnixDatagram,
}

/// A process outside.
#[derive(Debug)]
pub struct Victim {
    pub child: Child,
    pub address: String,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A directory that nobody else can enter or guess.
fn fresh_directory() -> std::io::Result<PathBuf> {
    const TRIES: u32 = 64;
    let mut tries = 0;
    loop {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos());
        let name = format!("ringfence-selftest-{}-{nanos:x}", std::process::id());
        let path = std::env::temp_dir().join(name);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return std::fs::canonicalize(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
            Err(e) => return Err(e),
        }
    }
}

const GIT_CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tbare = false\n";

impl Stage {
    pub fn new(binary: &Path) -> std::io::Result<Self> {
        let stage = Self {
            root: fresh_directory()?,
            binary: binary.to_owned(),
            services: OnceCell::new(),
            victim: OnceCell::new(),
            terminal: OnceCell::new(),
            descriptor: OnceCell::new(),
        };
        let secret = format!("{SECRET}\n");
        for (path, content) in [
            ("home/.ssh/id_ed25519", secret.as_str()),
            ("home/.aws/credentials", &secret),
            ("home/.bash_history", &secret),
            ("outside/secret", &secret),
            ("outside/shared/read-only", "shared\n"),
            ("project/.env", &secret),
            ("project/keys/server.key", &secret),
            ("project/private/data", &secret),
            ("project/deploy/prod/plan", "plan\n"),
            ("project/.git/HEAD", "ref: refs/heads/main\n"),
            ("project/.git/config", GIT_CONFIG),
            ("project/.git/hooks/pre-commit", "#!/bin/sh\n"),
            ("project/.git/objects/info/alternates", ""),
            ("project/.git/refs/heads/main", ""),
            ("project/.claude/settings.json", "{}\n"),
            ("project/ringfence.toml", "version = 1\n"),
            ("project/README.md", "a project\n"),
        ] {
            let path = stage.root.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
        }
        std::fs::remove_dir_all(stage.project().join(".git/objects/info"))?;
        std::fs::remove_file(stage.project().join(".git/refs/heads/main"))?;
        std::fs::hard_link(stage.project().join(".env"), stage.project().join("alias.txt"))?;
        Ok(stage)
    }

    pub fn project(&self) -> PathBuf {
        self.root.join("project")
    }

    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    pub fn outside(&self) -> PathBuf {
        self.root.join("outside")
    }

    /// A command in the project with a small environment that holds what must not get inside.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.project())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.home())
            .env("LANG", "C.UTF-8")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("GITHUB_TOKEN", SECRET)
            .env("SSH_AUTH_SOCK", self.outside().join("stream.sock"))
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/1/bus")
            .env("DOCKER_HOST", "unix:///run/docker.sock")
            .env("BASH_ENV", self.outside().join("rc"))
            .env("PYTHONSTARTUP", self.outside().join("rc.py"))
            .env("GIT_SSH_COMMAND", "false")
            .stdin(Stdio::null());
        command
    }

    pub fn services(&self) -> std::io::Result<&Services> {
        if let Some(s) = self.services.get() {
            return Ok(s);
        }
        let made = self.listen()?;
        Ok(self.services.get_or_init(|| made))
    }

    fn listen(&self) -> std::io::Result<Services> {
        use std::os::linux::net::SocketAddrExt;
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        tcp.set_nonblocking(true)?;
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        udp.set_nonblocking(true)?;
        let abstract_name =
            self.root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name)?;
        let abstract_socket = UnixListener::bind_addr(&address)?;
        let stream = UnixListener::bind(self.outside().join("stream.sock"))?;
        let datagram = UnixDatagram::bind(self.outside().join("datagram.sock"))?;
        Ok(Services { tcp, udp, abstract_name, abstract_socket, stream, datagram })
    }

    pub fn victim(&self) -> Option<&Victim> {
        self.victim.get_or_init(|| self.start_victim().ok()).as_ref()
    }

    fn start_victim(&self) -> std::io::Result<Victim> {
        let mut child = self
            .command(&self.binary)
            .args(["__attack", "victim"])
            .env(MARK, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let address = line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned();
        Ok(Victim { child, address })
    }

    /// Process id and the address of the secret in it.
    pub fn victim_arguments(&self) -> Vec<OsString> {
        match self.victim() {
            Some(v) => vec![v.child.id().to_string().into(), v.address.clone().into()],
            None => Vec::new(),
        }
    }

    /// Whether the process outside still lives.
    pub fn victim_lives(&self) -> bool {
        let Some(victim) = self.victim() else { return false };
        let pid = rustix::process::Pid::from_child(&victim.child);
        let options = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOHANG
            | rustix::process::WaitIdOptions::NOWAIT;
        matches!(rustix::process::waitid(rustix::process::WaitId::Pid(pid), options), Ok(None))
    }

    /// The path of a terminal that the attacker is started on.
    pub fn terminal(&self) -> Option<&Path> {
        let made = self.terminal.get_or_init(|| {
            let (master, path) = ringfence_sys::attack::terminal().ok()?;
            Some((master, PathBuf::from(path.to_string_lossy().into_owned())))
        });
        made.as_ref().map(|(_, path)| path.as_path())
    }

    /// Opens the outside directory so that children inherit the descriptor.
    pub fn leak_descriptor(&self) {
        self.descriptor.get_or_init(|| {
            let dir = std::fs::File::open(self.outside()).ok()?;
            let fd = OwnedFd::from(dir);
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).ok()?;
            Some(fd)
        });
    }
}
