//! A run's ear towards the host: by an abstract socket of the host's network namespace its rules can be
//! replaced while it goes on. The filter's thread listens; a run without one that has file rules to
//! replace has a thread for it ([`Ear`]).
//!
//! There is no file to leave behind, and the sandbox, which has a network namespace of its own, cannot
//! reach it. Whoever asks only says *that* the rules shall be read again, never what they are: they
//! come from where the run's own came from, by [`Reload`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use ringfence_policy::net::Rules;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::judge::Judge;
use crate::limits::ACCEPT_PAUSE;

/// What is asked; so far there is nothing else.
const RELOAD: &[u8] = b"reload\n";
/// For a caller that does not say what it wants.
const PATIENCE: Duration = Duration::from_secs(2);
/// For the files, and for an answer to be read.
const LONGEST: Duration = Duration::from_secs(20);
/// Of an answer.
const MOST_BYTES: u64 = 1 << 20;
const PREFIX: &str = "ringfence-";

/// The ear of one run.
pub struct Control {
    /// Whose it is: the name that it is found by.
    pub id: Id,
    pub reload: Arc<dyn Reload>,
}

/// A supervisor: its user and its process, as its socket's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Id {
    pub uid: u32,
    pub pid: u32,
}

/// Where new rules come from. Called on a thread that may block.
pub trait Reload: Send + Sync {
    /// The rules as they are to be now; after an error the old ones stay.
    fn read(&self) -> Result<Renewed, String>;
    /// What came of it.
    fn done(&self, answer: &Answer);
    /// Nobody will be heard.
    fn deaf(&self, problem: &io::Error);
}

/// What puts other rules than the network's in force; after an error the old ones hold.
pub type Commit = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// What [`Reload::read`] found. Nothing is in force yet.
pub struct Renewed {
    /// Of the filter, where there is one.
    pub rules: Option<Arc<Rules>>,
    /// File rules, where they are others.
    pub files: Option<Commit>,
    /// Entries of the two lists, for the answer.
    pub allowed: usize,
    pub denied: usize,
    /// What else changed and cannot while it runs, and what else is to be known.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Renewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewed").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Renewed {
    /// Puts the file rules in force, which can fail, and so comes before the network's.
    fn commit(mut self) -> Result<(Option<Arc<Rules>>, Answer), String> {
        let commit = self.files.take();
        let files = commit.is_some();
        commit.map_or(Ok(()), |commit| commit())?;
        let Self { rules, allowed, denied, notes, .. } = self;
        let network = rules.is_some();
        let pid = std::process::id();
        let reloaded = true;
        let answer =
            Answer { pid, reloaded, network, files, allowed, denied, notes, ..Answer::default() };
        Ok((rules, answer))
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub pid: u32,
    pub reloaded: bool,
    /// Why not; the old rules hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The run has a filter, whose rules were replaced.
    #[serde(default)]
    pub network: bool,
    /// The file rules were replaced.
    #[serde(default)]
    pub files: bool,
    pub allowed: usize,
    pub denied: usize,
    /// Connections that the new rules do not let be.
    pub closed: usize,
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Id {
    /// Of this process.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), pid: std::process::id() }
    }

    /// The abstract name, without the null byte before it.
    pub fn name(self) -> String {
        format!("{PREFIX}{}-{}", self.uid, self.pid)
    }

    fn parse(name: &str) -> Option<Self> {
        let (uid, pid) = name.strip_prefix(PREFIX)?.split_once('-')?;
        let id = Self { uid: uid.parse().ok()?, pid: pid.parse().ok()? };
        // Only as it would be written: one name for one run.
        (id.name() == name).then_some(id)
    }

    fn address(self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(self.name())
    }
}

/// The runs of this network namespace that can be asked, whoever's they are, by the kernel's list of
/// sockets.
pub fn running() -> io::Result<Vec<Id>> {
    Ok(listed(&std::fs::read_to_string("/proc/net/unix")?))
}

fn listed(table: &str) -> Vec<Id> {
    // `Num RefCount Protocol Flags Type St Inode Path`; accepted connections have the name, too.
    const LISTENING: &str = "00010000";
    let mut ids: Vec<Id> = table
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let listens = words.get(3) == Some(&LISTENING);
            Id::parse(words.get(7).filter(|_| listens)?.strip_prefix('@')?)
        })
        .collect();
    ids.sort_unstable_by_key(|id| (id.uid, id.pid));
    ids.dedup();
    ids
}

/// Has a run read its rules again.
pub fn ask(id: Id) -> io::Result<Answer> {
    let mut stream = UnixStream::connect_addr(&id.address()?)?;
    // Anybody can take a name; the kernel says who did.
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if peer.uid.as_raw() != id.uid {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("the name of that run was taken by user {}", peer.uid.as_raw()),
        ));
    }
    stream.set_read_timeout(Some(2 * LONGEST))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Who is refused is answered without being listened to; then this fails, and so does the end of
    // what can be read.
    let asked = stream.write_all(RELOAD);
    let mut text = Vec::new();
    let read = stream.take(MOST_BYTES).read_to_end(&mut text);
    serde_json::from_slice(&text).map_err(|_| {
        let ended = || io::Error::new(io::ErrorKind::InvalidData, "it ended without an answer");
        asked.err().or(read.err()).unwrap_or_else(ended)
    })
}

/// Hears until the filter ends. One caller at a time: two replacements must not cross.
pub(crate) async fn serve(judge: Arc<Judge>, control: Control) {
    let Control { id, reload } = control;
    let listener = match listen(id) {
        Ok(listener) => listener,
        Err(e) => return reload.deaf(&e),
    };
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let _ = one(&judge, &reload, stream).await;
    }
}

fn listen(id: Id) -> io::Result<tokio::net::UnixListener> {
    let listener = UnixListener::bind_addr(&id.address()?)?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

async fn one(
    judge: &Judge,
    reload: &Arc<dyn Reload>,
    mut stream: tokio::net::UnixStream,
) -> io::Result<()> {
    let answer = match may(stream.as_fd()) {
        Ok(()) => {
            let mut asked = [0; RELOAD.len()];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut asked)).await??;
            if asked != RELOAD {
                return Ok(());
            }
            let answer = renew(judge, reload).await;
            reload.done(&answer);
            answer
        }
        Err(problem) => refusal(problem),
    };
    let text = serde_json::to_vec(&answer)?;
    tokio::time::timeout(PATIENCE, stream.write_all(&text)).await?
}

/// The ear of a run without a filter. Dropped, nobody is heard any more.
#[derive(Debug)]
pub struct Ear {
    stop: Option<UnixStream>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ear {
    pub fn open(control: Control) -> io::Result<Self> {
        let Control { id, reload } = control;
        let (stop, stopped) = UnixStream::pair()?;
        let hear = move || {
            let listener = match UnixListener::bind_addr(&match id.address() {
                Ok(address) => address,
                Err(e) => return reload.deaf(&e),
            }) {
                Ok(listener) => listener,
                Err(e) => return reload.deaf(&e),
            };
            while is_asked(&listener, &stopped) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(ACCEPT_PAUSE);
                    continue;
                };
                let _ = one_alone(&*reload, stream);
            }
        };
        let thread = std::thread::Builder::new().name("control".into()).spawn(hear)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// False when the run has ended.
fn is_asked(listener: &UnixListener, stopped: &UnixStream) -> bool {
    let mut both = [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
    while poll(&mut both, None) == Err(rustix::io::Errno::INTR) {}
    both[1].revents().is_empty()
}

/// As [`one`], without a filter.
fn one_alone(reload: &dyn Reload, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match may(stream.as_fd()) {
        Ok(()) => {
            let mut asked = [0; RELOAD.len()];
            stream.read_exact(&mut asked)?;
            if asked != RELOAD {
                return Ok(());
            }
            let done = reload.read().and_then(Renewed::commit);
            let answer = done.map_or_else(refusal, |(_, answer)| answer);
            reload.done(&answer);
            answer
        }
        Err(problem) => refusal(problem),
    };
    stream.write_all(&serde_json::to_vec(&answer)?)
}

fn refusal(problem: String) -> Answer {
    Answer { pid: std::process::id(), problem: Some(problem), ..Answer::default() }
}

/// Whether this caller may: the same user, or root. A sandbox that has the host's network reaches the
/// socket, and its processes are the same user to the kernel; their user namespace tells them apart.
fn may(stream: BorrowedFd<'_>) -> Result<(), String> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|e| format!("cannot tell who asks: {e}"))?;
    let own = rustix::process::geteuid();
    if peer.uid != own && !peer.uid.is_root() {
        return Err(format!(
            "only user {} and root may change the rules of this run, not user {}",
            own.as_raw(),
            peer.uid.as_raw()
        ));
    }
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user"));
    let asks = namespace(&peer.pid.as_raw_nonzero().to_string());
    match (asks, namespace("self")) {
        (Ok(asks), Ok(own)) if asks == own => Ok(()),
        // Root's processes are not for others to look at. Its sandboxes have another id.
        (Err(_), _) if peer.uid.is_root() && !own.is_root() => Ok(()),
        _ => Err("the rules of a run are not changed from inside a sandbox".to_owned()),
    }
}

async fn renew(judge: &Judge, reload: &Arc<dyn Reload>) -> Answer {
    let from = Arc::clone(reload);
    let read = tokio::task::spawn_blocking(move || from.read());
    let found = match tokio::time::timeout(LONGEST, read).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err("the policy could not be read again".to_owned()),
        Err(_) => Err("the policy could not be read in time".to_owned()),
    };
    // What is begun here is not given up: nobody would know which rules hold.
    let committed = match found {
        Ok(found) => tokio::task::spawn_blocking(move || found.commit())
            .await
            .unwrap_or_else(|_| Err("the rules could not be replaced".to_owned())),
        Err(problem) => Err(problem),
    };
    match committed {
        Ok((rules, answer)) => {
            Answer { closed: rules.map_or(0, |rules| judge.replace(rules)), ..answer }
        }
        Err(problem) => refusal(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs() {
        let id = Id { uid: 1000, pid: 77 };
        assert_eq!(id.name(), "ringfence-1000-77");
        assert_eq!(Id::parse("ringfence-1000-77"), Some(id));
        for other in ["ringfence-1000", "ringfence-01000-77", "ringfence-1000-77-1", "ringfence--7"]
        {
            assert_eq!(Id::parse(other), None, "{other}");
        }
    }

    #[test]
    fn runs_in_the_kernels_list() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 8812 @ringfence-1000-77\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 8813 @ringfence-1000-77\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 8814 @ringfence-1000-78\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 8815 /run/ringfence-1000-79\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 8816\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 8817 @ringfence-0-5\n";
        assert_eq!(listed(table), [Id { uid: 0, pid: 5 }, Id { uid: 1000, pid: 77 }]);
    }
}
