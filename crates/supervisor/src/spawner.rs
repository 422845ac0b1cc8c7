//! The process that makes jails and waits for them: small, of one thread, and without anything of the
//! daemon's memory or descriptors. PID 1 of every sandbox is a copy of it.
//!
//! It takes orders over the socket that is its standard input and ends with it, and with it end all
//! sandboxes.

mod prepared;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringfence_api::CreateSandbox;
use ringfence_policy::{
    Effect, Entry, Format, Fragment, NoFiles, Origin, Permission, Policy, Rule, priority,
    resolve_layers,
};
use ringfence_proxy::Config;
use ringfence_sandbox::Early;
use ringfence_sandbox::lower::{Command, Resident};
use ringfence_sandbox::network::Filter;
use ringfence_sandbox::plan::{Action, Plan, Step};
use ringfence_sandbox::prepare::{Request, prepare};
use ringfence_sandbox::run::{self, RunError, Running};
use ringfence_sys::{ns, raw, shed, signal};
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::channel;
use crate::complain;
use crate::error::{Error, Kind};
use crate::stats;
use crate::tended::{self, Tended};
use prepared::Prepared;

/// The largest order or word. A socket takes 208 KiB by default.
pub(crate) const MOST: usize = 192 << 10;

/// Descriptors that the table has room for from the start.
const ROOM: u64 = 16_384;

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
    /// Its layer goes with it: nothing has to be noted in that at its end.
    Forget { number: u64 },
    /// Make a spawner like this one, for one sandbox. It takes its orders at the descriptor that comes with
    /// this.
    Divide { number: u64 },
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
    /// There is another spawner, a child of the daemon's; without a pid there is none.
    Divided {
        number: u64,
        pid: Option<i32>,
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
    /// Its PID 1 as the host numbers it, and when that started.
    pub init: Option<(u32, u64)>,
    /// Its namespaces were there before it was asked for.
    pub prepared: bool,
}

/// Serves until the daemon is gone. `open_files` is the soft limit of commands. Answers the exit code.
pub fn serve(orders: &OwnedFd, open_files: u64) -> u8 {
    // How the daemon was started is no business of commands, which can be interrupted.
    signal::ignore_nothing();
    more_files();
    shed::remember();
    obey(orders, open_files, false)
}

/// A copy of another spawner is there for one sandbox.
fn obey(orders: &OwnedFd, open_files: u64, is_copy: bool) -> u8 {
    // The daemon's terminal, if it has one, is not ours: who interrupts it ends us by its end.
    let _ = rustix::process::setsid();
    if let Err(e) = std::env::set_current_dir("/") {
        complain(&format!("the spawner cannot enter /: {e}"));
        return 125;
    }
    let served = Ends::new(orders.as_fd()).map(|ends| Spawner {
        running: BTreeMap::new(),
        born: BTreeMap::new(),
        prepared: Prepared::new(is_copy),
        ends,
        open_files,
        alone: false,
    });
    let served = served.and_then(|mut spawner| {
        let served = spawner.run(orders.as_fd());
        spawner.end_all();
        served
    });
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
    // Made large now: as soon as several threads use the table, or a process that is being made, the kernel
    // waits for all processors each time it has to grow, some 5 to 15 ms.
    let last = limit.maximum.unwrap_or(u64::MAX).min(ROOM) - 1;
    if let Ok(high) = raw::dup_from(0, last as i32) {
        raw::close(high);
    }
    limit.current.unwrap_or(u64::MAX)
}

/// A sandbox and what serves it.
struct Kept {
    running: Running,
    filter: Option<ringfence_proxy::Filter>,
}

/// One whose init is at work on it and has not said yet that it can be asked.
struct Born {
    kept: Kept,
    made: Made,
    /// What it was made by. Init begins in our descriptor table and closes what is not its own when it has
    /// one; until it says that it is ready, its end of the channel is here.
    command: Command,
    /// Ours.
    channel: OwnedFd,
}

/// Waits for orders and for ends of sandboxes, at a price that does not grow with their number.
struct Ends(OwnedFd);

/// Stands for orders among numbers of sandboxes, which begin at 1.
const ORDERS: u64 = 0;
/// With the number of a sandbox: it is ready, or has ended before it was.
const BORN: u64 = 1 << 63;
/// The host's mounts changed.
const MOUNTS: u64 = u64::MAX;

impl Ends {
    fn new(orders: BorrowedFd<'_>) -> io::Result<Self> {
        let ends = Self(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        ends.add(ORDERS, orders)?;
        Ok(ends)
    }

    fn add(&self, number: u64, fd: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.0, fd, data, epoll::EventFlags::IN)?)
    }

    /// Tells of what is exceptional there, and of nothing else.
    fn add_changes(&self, number: u64, fd: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.0, fd, data, epoll::EventFlags::PRI)?)
    }

    /// Before it is closed: what is being made may have a copy of it for a moment.
    fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Whether there is an order, and which sandboxes have ended or are ready. Neither, after a time.
    fn wait(&self, at_most: Option<Duration>) -> io::Result<(bool, Vec<u64>)> {
        let mut events = Vec::with_capacity(64);
        let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
        rustix::io::retry_on_intr(|| {
            epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), at_most.as_ref())
        })?;
        let numbers = events.iter().map(|event| event.data.u64());
        let ended = numbers.clone().filter(|number| *number != ORDERS).collect();
        Ok((numbers.into_iter().any(|number| number == ORDERS), ended))
    }
}

struct Spawner {
    running: BTreeMap<u64, Kept>,
    born: BTreeMap<u64, Born>,
    prepared: Prepared,
    ends: Ends,
    open_files: u64,
    /// It is there for one sandbox, and ends with it.
    alone: bool,
}

impl Spawner {
    fn run(&mut self, orders: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(mounts) = self.prepared.mounts() {
            self.ends.add_changes(MOUNTS, mounts)?;
        }
        let mut buffer = vec![0u8; MOST];
        loop {
            // Who is there for one sandbox has it, or will be asked for it at once.
            let at_most = if self.alone { None } else { self.prepared.due() };
            let (ordered, happened) = self.ends.wait(at_most)?;
            let nothing = !ordered && happened.is_empty();
            for number in happened {
                if !self.happened(orders, number)? {
                    return Ok(());
                }
            }
            if ordered && !self.obey(orders, &mut buffer)? {
                return Ok(());
            }
            if nothing {
                self.prepared.tend();
            }
        }
    }

    /// A sandbox has ended or is ready. False when nothing is left to do.
    fn happened(&mut self, orders: BorrowedFd<'_>, number: u64) -> io::Result<bool> {
        if number == MOUNTS {
            self.prepared.clear();
            return Ok(true);
        }
        if number & BORN != 0 {
            return self.grown(orders, number & !BORN);
        }
        let Some(kept) = self.running.remove(&number) else { return Ok(true) };
        self.ends.remove(kept.running.jailed.pidfd());
        say(orders, &ended_word(number, kept), None)?;
        Ok(!self.alone)
    }

    /// One order. False when there will be none, or this was the only one.
    fn obey(&mut self, orders: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<bool> {
        let (length, fds) = channel::receive(orders, buffer)?;
        if length == 0 {
            return Ok(false);
        }
        let order = buffer.get(..length).unwrap_or_default();
        match serde_json::from_slice(order).map_err(io::Error::other)? {
            Order::Kill { number } => {
                let born = self.born.get(&number).map(|born| &born.kept);
                if let Some(kept) = self.running.get(&number).or(born) {
                    kept.running.jailed.kill();
                }
            }
            Order::Forget { number } => {
                if let Some(kept) = self.running.get_mut(&number) {
                    kept.running.forget_layer();
                }
            }
            Order::Divide { number } => self.divide(orders, number, fds)?,
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
                let (mut early, prepared) = self.prepared.take();
                match make(of, &hidden, tended.as_deref(), self.open_files, &mut early) {
                    Ok(mut born) => {
                        born.made.prepared = prepared;
                        self.ends.add(number | BORN, born.kept.running.jailed.control())?;
                        self.ends.add(number | BORN, born.kept.running.jailed.pidfd())?;
                        self.born.insert(number, born);
                    }
                    Err(e) => {
                        // Nothing was done in it.
                        self.prepared.give_back(early);
                        say_refused(orders, number, e)?;
                        return Ok(!alone);
                    }
                }
                self.alone |= alone;
            }
        }
        Ok(true)
    }

    /// Its init is ready, or has ended.
    fn grown(&mut self, orders: BorrowedFd<'_>, number: u64) -> io::Result<bool> {
        let Some(Born { kept: Kept { running, filter }, mut made, command, channel }) =
            self.born.remove(&number)
        else {
            return Ok(true);
        };
        self.ends.remove(running.jailed.control());
        self.ends.remove(running.jailed.pidfd());
        match ready(running) {
            Ok(running) => {
                made.init = stats::init(running.jailed.pid());
                // Init has its own copy now. Ours would keep its channel open after it.
                drop(command);
                self.ends.add(number, running.jailed.pidfd())?;
                self.running.insert(number, Kept { running, filter });
                say(orders, &Word::Made { number, made }, Some(&channel))?;
                Ok(true)
            }
            Err(e) => {
                say_refused(orders, number, e)?;
                Ok(!self.alone)
            }
        }
    }

    /// Another spawner is a copy of this one: nothing has to be loaded and set up again.
    fn divide(&mut self, orders: BorrowedFd<'_>, number: u64, fds: Vec<OwnedFd>) -> io::Result<()> {
        let divided = fds.first().and_then(|own| ns::divide(own.as_fd()).ok());
        let pid = match divided {
            Some(ns::Divided::Copy(own)) => {
                // The original's: here they are closed, and nothing of them is to be ended.
                let others = (std::mem::take(&mut self.running), std::mem::take(&mut self.born));
                std::mem::forget((fds, others));
                self.prepared.forget();
                std::process::exit(obey(&own, self.open_files, true).into());
            }
            Some(ns::Divided::Original(pid)) => Some(pid),
            None => None,
        };
        say(orders, &Word::Divided { number, pid }, None)
    }

    /// All at once, then the bookkeeping of each.
    fn end_all(&mut self) {
        let born = std::mem::take(&mut self.born).into_iter();
        self.running.extend(born.map(|(number, born)| (number, born.kept)));
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

fn say_refused(to: BorrowedFd<'_>, number: u64, refused: Error) -> io::Result<()> {
    let Error { kind, message, .. } = refused;
    say(to, &Word::Refused { number, kind: kind.text().to_owned(), message }, None)
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
    // Where none was ready, its namespaces are made while the rest is planned. Taken when it is used.
    early: &mut Option<Early>,
) -> Result<Born, Error> {
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
    let mut running =
        run::start(plan, &policy, &command, early.take()).map_err(|f| refused(f.error))?;
    let filter = filter_of(filter, &mut running, &policy)?;
    made.degraded = running.status.degraded.iter().map(words).collect();
    if running.has_view() {
        // Its threads are ours; init keeps the limit that it was given.
        ringfence_sandbox::view::room_for_files();
    }
    Ok(Born { kept: Kept { running, filter }, made, command, channel: ours })
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

/// Its init can be asked, or has ended: that is known already.
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
        init: None,
        prepared: false,
    }
}
