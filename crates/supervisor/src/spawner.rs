//! The process that makes jails and waits for them: small, of one thread, and without anything of the
//! daemon's memory or descriptors. PID 1 of every sandbox is a copy of it.
//!
//! It takes orders over the socket that is its standard input and ends with it, and with it end all
//! sandboxes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use ringfence_api::CreateSandbox;
use ringfence_policy::{
    Effect, Entry, Format, Fragment, NoFiles, Origin, Permission, Policy, Rule, priority,
    resolve_layers,
};
use ringfence_proxy::Config;
use ringfence_sandbox::lower::{Command, Resident};
use ringfence_sandbox::network::Filter;
use ringfence_sandbox::plan::{Action, Plan, Step};
use ringfence_sandbox::prepare::{Request, prepare};
use ringfence_sandbox::run::{self, RunError, Running};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::channel;
use crate::complain;
use crate::error::{Error, Kind};
use crate::tended::{self, Tended};

/// The largest order or word. A socket takes 208 KiB by default.
pub(crate) const MOST: usize = 192 << 10;

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Make {
        number: u64,
        made_of: Box<CreateSandbox>,
        /// Its owner is not the daemon's user.
        guest: bool,
        /// Directories of the daemon's that no sandbox may see.
        hidden: Vec<String>,
        tended: Option<Box<Tended>>,
    },
    /// Its control groups hold it to this.
    Limit { number: u64, memory: Option<u64>, cpu_percent: Option<u32>, pids: Option<u64> },
    /// Its init did not end by itself.
    Kill { number: u64 },
}

/// To the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// With the channel to its init.
    Made {
        number: u64,
        made: Made,
    },
    Refused {
        number: u64,
        kind: String,
        message: String,
    },
    /// Nothing was changed where this says why.
    Limited {
        number: u64,
        refused: Option<String>,
    },
    Ended {
        number: u64,
        reason: String,
        held: Vec<String>,
    },
}

/// What is to be known of a sandbox that was made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Made {
    pub environment: BTreeMap<String, String>,
    pub cwd: String,
    /// Of each command, by the policy.
    pub timeout_ms: Option<u64>,
    pub degraded: Vec<String>,
}

/// Serves until the daemon is gone. `open_files` is the soft limit of commands. Answers the exit code.
pub fn serve(orders: &OwnedFd, open_files: u64) -> u8 {
    more_files();
    // The daemon's terminal, if it has one, is not ours: who interrupts it ends us by its end.
    let _ = rustix::process::setsid();
    if let Err(e) = std::env::set_current_dir("/") {
        complain(&format!("the spawner cannot enter /: {e}"));
        return 125;
    }
    let mut spawner = Spawner { running: BTreeMap::new(), open_files, alone: false };
    let served = spawner.run(orders.as_fd());
    spawner.end_all();
    match served {
        Ok(()) => 0,
        Err(e) => {
            complain(&format!("the spawner lost the daemon: {e}"));
            125
        }
    }
}

/// Each sandbox takes some descriptors, here and in the daemon. Answers the soft limit as it was.
pub fn more_files() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    // With the old limit there are fewer sandboxes.
    let _ = setrlimit(Resource::Nofile, raised);
    limit.current.unwrap_or(u64::MAX)
}

/// A sandbox and what serves it.
struct Kept {
    running: Running,
    filter: Option<ringfence_proxy::Filter>,
}

struct Spawner {
    running: BTreeMap<u64, Kept>,
    open_files: u64,
    /// It is there for one sandbox, and ends with it.
    alone: bool,
}

impl Spawner {
    fn run(&mut self, orders: BorrowedFd<'_>) -> io::Result<()> {
        let mut buffer = vec![0u8; MOST];
        loop {
            let (ordered, ended) = self.wait(orders)?;
            for number in ended {
                if let Some(kept) = self.running.remove(&number) {
                    say(orders, &ended_word(number, kept), None)?;
                    if self.alone {
                        return Ok(());
                    }
                }
            }
            if !ordered {
                continue;
            }
            let (length, _) = channel::receive(orders, &mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            let order = buffer.get(..length).unwrap_or_default();
            match serde_json::from_slice(order).map_err(io::Error::other)? {
                Order::Kill { number } => {
                    if let Some(kept) = self.running.get(&number) {
                        kept.running.jailed.kill();
                    }
                }
                Order::Limit { number, memory, cpu_percent, pids } => {
                    let request = ringfence_sys::cgroup::Request { memory, cpu_percent, pids };
                    let refused = match self.running.get(&number) {
                        Some(kept) => kept.running.limit(&request).err(),
                        None => Some("the sandbox ended".into()),
                    };
                    say(orders, &Word::Limited { number, refused }, None)?;
                }
                Order::Make { number, made_of, guest, hidden, tended } => {
                    let alone = tended.as_ref().is_some_and(|t| t.alone);
                    let of = (&*made_of, guest);
                    match make(of, &hidden, tended.as_deref(), self.open_files) {
                        Ok((kept, made, channel)) => {
                            self.running.insert(number, kept);
                            say(orders, &Word::Made { number, made }, Some(&channel))?;
                        }
                        Err(Error { kind, message, .. }) => {
                            let kind = kind.text().to_owned();
                            say(orders, &Word::Refused { number, kind, message }, None)?;
                            if alone {
                                return Ok(());
                            }
                        }
                    }
                    self.alone |= alone;
                }
            }
        }
    }

    /// Whether there is an order, and which sandboxes have ended.
    fn wait(&self, orders: BorrowedFd<'_>) -> io::Result<(bool, Vec<u64>)> {
        let mut fds = Vec::with_capacity(self.running.len() + 1);
        fds.push(PollFd::from_borrowed_fd(orders, PollFlags::IN));
        let pidfds = self.running.values().map(|kept| kept.running.jailed.pidfd());
        fds.extend(pidfds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let ordered = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        let ended = self.running.keys().zip(fds.iter().skip(1));
        let ended = ended.filter(|(_, fd)| !fd.revents().is_empty()).map(|(n, _)| *n).collect();
        Ok((ordered, ended))
    }

    /// All at once, then the bookkeeping of each.
    fn end_all(&mut self) {
        for kept in self.running.values() {
            kept.running.jailed.kill();
        }
        for (number, kept) in std::mem::take(&mut self.running) {
            let _ = ended_word(number, kept);
        }
    }
}

fn say(to: BorrowedFd<'_>, word: &Word, fd: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(word).map_err(io::Error::other)?;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().map(|fd| fd.as_fd()).collect();
    channel::send(to, &bytes, &fds)
}

fn ended_word(number: u64, Kept { mut running, filter }: Kept) -> Word {
    drop(filter);
    let waited = running.jailed.wait();
    let (reason, held) = match running.finish(waited, None) {
        Ok((_, status)) => status.end.map(|end| (end.reason, end.held)).unwrap_or_default(),
        Err(failed) => (failed.error.to_string(), Vec::new()),
    };
    Word::Ended { number, reason, held }
}

/// The policy that is asked for. Reads no file.
pub(crate) fn policy_of(made_of: &CreateSandbox) -> Result<Policy, Error> {
    let wrong = |e: ringfence_policy::PolicyError| Error::invalid(e.to_string());
    let origin = Origin { layer: "the request".into(), line: None };
    let mut profiles = Fragment::named("profiles");
    for name in &made_of.profiles {
        profiles.extends.0.push(Entry::new(name.clone(), origin.clone()));
    }
    profiles.layers.clear();
    let mut layers = vec![(profiles, None)];
    if let Some(policy) = &made_of.policy {
        let text = serde_json::to_vec(policy).map_err(|e| Error::invalid(e.to_string()))?;
        let fragment = Fragment::parse_as("the request", &text, Format::Jsonc).map_err(wrong)?;
        layers.push((fragment, None));
    }
    if !made_of.rules.is_empty() {
        layers.push((tended::rules(&made_of.rules), None));
    }
    let policy = resolve_layers(layers, &NoFiles).and_then(Fragment::finish).map_err(wrong)?;
    if policy.network.inspects() {
        return Err(Error::invalid("network.inspect: the daemon's sandboxes are not inspected")
            .with("leave network.inspect out, or use `ringfence run`"));
    }
    if !policy.ssh.agent.is_empty() {
        return Err(Error::invalid("ssh: the daemon's sandboxes have no ssh agent")
            .with("leave ssh out, or use `ringfence run`"));
    }
    Ok(policy)
}

/// Whatever the rules grant, this stays hidden.
pub(crate) fn hide(policy: &mut Policy, directory: &str) -> Result<(), Error> {
    let path = PathBuf::from(directory);
    let path = std::fs::canonicalize(&path).unwrap_or(path);
    let rule = Rule::grant_path(&path, Permission::None, "the daemon").ok_or_else(|| {
        Error::internal(format!("cannot hide {}: its path is not utf-8", path.display()))
    })?;
    policy.files.rules.push(Rule {
        effect: Effect::Cap,
        priority: priority::GUARD,
        id: Some("guard.ringfence".into()),
        ..rule
    });
    Ok(())
}

fn refused(e: impl Into<RunError>) -> Error {
    let e = e.into();
    let kind = if e.exit_code() == 126 { Kind::Refused } else { Kind::Invalid };
    Error::new(kind, e.to_string())
}

fn make(
    (made_of, guest): (&CreateSandbox, bool),
    hidden: &[String],
    tended: Option<&Tended>,
    open_files: u64,
) -> Result<(Kept, Made, OwnedFd), Error> {
    let mut policy = policy_of(made_of)?;
    if guest {
        crate::guest::confine(&mut policy);
    }
    for directory in hidden {
        hide(&mut policy, directory)?;
    }
    let mut request =
        Request { workspace: Some(PathBuf::from(&made_of.workspace)), ..Request::current() };
    if let Some(tended) = tended {
        tended.ask(&mut policy, &mut request)?;
    }
    request.filter = Filter::of(&policy.network).map_err(refused)?;
    let mut plan = prepare(&policy, &request).map_err(refused)?;
    link(&mut plan, made_of);
    if tended.is_none_or(|t| !t.alone) && (plan.has_view() || plan.filter.is_some()) {
        // What serves it is a thread that may wait, and its end has to be this sandbox's alone.
        return Err(Error::new(Kind::Alone, "needs a spawner of its own"));
    }
    let mut made = described(&plan, &policy);
    let internal = |e: io::Error| Error::internal(e.to_string());
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|e| internal(e.into()))?;
    let command = Command {
        argv: vec!["ringfence-daemon".into()],
        stdio: ringfence_sandbox::lower::stdio([false; 3]),
        die_with_parent: true,
        connector: None,
        resident: Some(Resident { channel: Arc::new(theirs), open_files }),
        agent_events: None,
    };
    let filter = plan.filter.clone();
    let mut running = run::start(plan, &policy, &command, None).map_err(|f| refused(f.error))?;
    let filter = filter_of(filter, &mut running, &policy)?;
    made.degraded = running.status.degraded.iter().map(words).collect();
    if running.has_view() {
        // Its threads are ours; init keeps the limit that it was given.
        ringfence_sandbox::view::room_for_files();
    }
    let running = ready(running)?;
    // Init has its own copy now, and not earlier: it begins in our descriptor table. Ours would keep its
    // channel open after it.
    drop(command);
    Ok((Kept { running, filter }, made, ours))
}

/// Without it nothing leaves the sandbox; where it ends, its sockets close and nothing does any more.
fn filter_of(
    wanted: Option<Filter>,
    running: &mut Running,
    policy: &Policy,
) -> Result<Option<ringfence_proxy::Filter>, Error> {
    let (Some(wanted), Some(made)) = (wanted, running.network.take()) else { return Ok(None) };
    let config = Config::of(&policy.network, wanted.rules, made, Arc::new(|_| {}));
    let config = Config { init: Some(running.jailed.pid()), ..config };
    ringfence_proxy::Filter::start(config)
        .map(Some)
        .map_err(|e| Error::internal(format!("the egress filter cannot start: {e}")))
}

/// The names at the root that lead into the workspace. What has its place there already stays.
fn link(plan: &mut Plan, made_of: &CreateSandbox) {
    for (name, target) in &made_of.links {
        let path = PathBuf::from(name);
        if plan.steps.iter().any(|s| s.path.starts_with(&path)) {
            continue;
        }
        let action = Action::Link { target: plan.workspace.join(target) };
        plan.steps.push(Step { path, action, why: "the request".into(), layered: false });
    }
}

fn words(p: &ringfence_sandbox::status::Protection) -> String {
    format!("{}: {}", p.name, p.detail)
}

/// Waits until its init can be asked.
fn ready(mut running: Running) -> Result<Running, Error> {
    if running.jailed.wait_until_ready().is_ok() {
        return Ok(running);
    }
    running.jailed.kill();
    let waited = running.jailed.wait();
    Err(match running.finish(waited, None) {
        Err(failed) => {
            let error = refused(failed.error);
            match failed.refusal {
                Some(refusal) => Error::new(
                    Kind::Refused,
                    format!("this host refuses namespaces, which the daemon needs: {refusal}"),
                ),
                None => error,
            }
        }
        Ok((_, status)) => {
            let reason = status.end.map(|end| end.reason).unwrap_or_default();
            Error::new(Kind::Refused, format!("the sandbox ended while it was made: {reason}"))
        }
    })
}

fn described(plan: &Plan, policy: &Policy) -> Made {
    let text = |s: &std::ffi::OsStr| s.to_str().map(ToOwned::to_owned);
    Made {
        environment: plan
            .environment
            .iter()
            .filter_map(|(k, v)| Some((text(k)?, text(v)?)))
            .collect(),
        cwd: plan.cwd.to_string_lossy().into_owned(),
        timeout_ms: policy.limits.timeout_ms,
        degraded: Vec::new(),
    }
}
