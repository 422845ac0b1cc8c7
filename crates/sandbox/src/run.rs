//! A run on this host: plan, ladder, supervision, end.
//!
//! ```text
//! Request + Policy --prepare--> Plan --lower--> JailSpec --spawn--> Running --supervise--> Outcome
//!        ^                                                   |
//!        +------ namespaces refused: the lower rung ---------+
//! ```

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfence_jail::{self as jail, Failure, Stage, egress};
use ringfence_policy::{Limits, Policy};
use ringfence_sys::cgroup;
use ringfence_sys::raw::Errno;

use crate::agent::{Agent, Channel};
use crate::answers::Answers;
use crate::copies::After;
use crate::layer::{InLayer, LayerError};
use crate::lower::{self, Command};
use crate::names::NameJudge;
use crate::plan::{Action, Plan, PlanError};
use crate::prepare::{PrepareError, Request, prepare};
use crate::renew::Renewal;
use crate::status::{End, Rung, Status};
use crate::sweep;
use crate::terminal::{Child as _, Event};
use crate::trace;
use crate::view;
use ringfence_layers::quota::{self, Watch};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Why a run did not happen. In every case nothing of the command has run, except for
/// [`RunError::Supervise`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Lower(#[from] lower::LowerError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A layer of the sandbox could not be set up.
    #[error("cannot {what}: {errno}{hint}")]
    Setup { what: String, errno: Errno, hint: String },
    /// The host refuses namespaces and the lower rung cannot hold the policy either.
    #[error(
        "this host refuses namespaces ({refusal}) and landlock alone cannot hold the policy: {below}"
    )]
    Ladder { refusal: String, below: Box<RunError> },
    /// `execve` failed inside.
    #[error("{program}: {problem}")]
    Exec { program: String, problem: String, not_found: bool },
    /// A port could not be exposed.
    #[error("{0}")]
    Port(String),
    #[error("lost control of the sandbox, it was killed: {0}")]
    Supervise(String),
}

impl RunError {
    /// The exit code that says the same: 127 not found, 126 refused by policy or not executable,
    /// 125 ringfence failed.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Exec { not_found: true, .. } => 127,
            Self::Exec { .. }
            | Self::Plan(_)
            | Self::Ladder { .. }
            | Self::Prepare(PrepareError::Plan(_)) => 126,
            _ => 125,
        }
    }
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
}

impl Ended {
    pub fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signaled(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }

    /// The shell's convention: the code, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// A run in progress.
#[derive(Debug)]
pub struct Running {
    pub jailed: jail::Jailed,
    pub status: Status,
    /// The sockets at which everything arrives that leaves the sandbox, with
    /// [`crate::plan::NetworkPlan::Filtered`]: for whoever runs the filter. Dropped, they refuse.
    pub network: Option<egress::Made>,
    scope: Option<cgroup::Scope>,
    started: Instant,
    sweep: sweep::Watch,
    program: String,
    /// For messages: what step `n` of the view was.
    spec: jail::JailSpec,
    rung: Rung,
    scratch: Option<sweep::Scratch>,
    /// The ssh agent's filter; ends with the run.
    agent: Option<Agent>,
    /// What [`Running::look_for_leavings`] found.
    held: Option<Vec<String>>,
    layer: Option<InLayer>,
    forgets: bool,
    /// Ends the run when its layer holds too much.
    quota: Option<Watch>,
    /// What serves the exact view; ends with the run.
    view: Option<view::Serving>,
    /// For rules of names that are replaced.
    answers: Option<Arc<Answers>>,
}

/// Starts a planned run.
pub fn start(
    mut plan: Plan,
    policy: &Policy,
    command: &Command,
    early: Option<jail::Early>,
) -> Result<Running, Failed> {
    let started = Instant::now();
    let limits = &policy.limits;
    if policy.network.inspects() && !plan.inspected {
        let problem = "network.inspect: only the command line can inspect";
        return Err(RunError::from(PlanError::Unsupported(problem.into())).into());
    }
    let wanted = &policy.layer;
    if wanted.name.is_some() && plan.layer.is_none() || !wanted.share_cache.is_empty() {
        let problem =
            "layer.name, layer.share_cache: only the command line keeps layers and shares caches";
        return Err(RunError::from(PlanError::Unsupported(problem.into())).into());
    }
    let (scope, nproc) = limit(limits, &mut plan.status);
    plan.refuse_what_is_missing(policy).map_err(RunError::from)?;
    let scratch = match plan.rung {
        Rung::Landlock => Some(
            sweep::Scratch::new(&mut plan)
                .map_err(|e| setup("make a private temporary directory", &e))?,
        ),
        Rung::Namespaces => None,
    };
    let procs: Vec<i32> = scope
        .iter()
        .flat_map(|s| s.procs_fds(false).map(|fd| fd.as_raw_fd()).collect::<Vec<_>>())
        .collect();
    let watch = sweep::Watch::new(&plan);
    let channel = plan.ssh_agent.as_ref().map(|_| Channel::new()).transpose();
    let channel = channel.map_err(|e| setup("make a channel for the ssh agent", &e.into()))?;
    let layer = plan
        .layer
        .as_ref()
        .map(|l| InLayer::begin(l, &plan.layers, &command.argv, plan.names.as_ref()));
    let layer = layer.transpose().map_err(RunError::from)?;
    if let Some(layer) = &layer {
        hold_quota(layer, policy, &mut plan);
    }
    let exact = plan.view.as_ref().map(|_| view::Channel::new()).transpose();
    let exact = exact.map_err(|e| setup("make a channel for the exact view", &e.into()))?;
    let named = plan.names.as_ref().zip(plan.layer.as_ref()).zip(layer.as_ref());
    let answers = named.map(|((names, planned), layer)| {
        let mounts = layer.plain_mounts();
        Answers::new(names, planned, plan.moved.as_ref(), mounts).map(Arc::new)
    });
    let answers =
        answers.transpose().map_err(|e| setup("make a channel for rules of names", &e))?;
    let given = lower::Given {
        view: exact.as_ref().map_or((-1, -1), view::Channel::numbers),
        agent: channel.as_ref().map_or(-1, Channel::number),
        asks: answers.as_ref().map_or(-1, |answers| answers.number()),
        lock: layer.as_ref().map_or(-1, InLayer::lock),
        mounts: layer.as_ref().map_or(&[], InLayer::mounts),
    };
    let (spec, mut parent) =
        lower::lower(&plan, limits, nproc, command, procs, &given).map_err(RunError::from)?;
    let program =
        command.argv.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let judge = plan.names.as_ref().zip(plan.layer.as_ref());
    let judge = judge.map(|(names, layer)| NameJudge::new(names, layer, plan.moved.as_ref()));
    parent.judge = judge.as_ref().map(|judge| judge as &dyn jail::Judge);
    trace::mark("words and descriptors for the jail");
    let mut jailed = jail::spawn(&spec, &parent, early)
        .map_err(|f| failed(&f, &program, &spec, plan.rung, layer.as_ref()))?;
    trace::mark("init is made");
    let view = serve(&mut plan, exact).map_err(|e| setup("serve the exact view", &e))?;
    let Plan { mut status, rung, ssh_agent, .. } = plan;
    let network = jailed.network.take();
    if let Some(made) = &network {
        tell(made, &spec, &mut status);
    }
    let agent = ssh_agent
        .zip(channel)
        .map(|(granted, channel)| Agent::start(granted, channel, command.agent_events.clone()))
        .transpose()
        .map_err(|e| setup("start the ssh agent's filter", &e))?;
    // Last, since it may wait.
    let quota = match &layer {
        Some(layer)
            if layer.quota().is_some() || command.resident.is_some() || !ends_soon(&jailed) =>
        {
            Some(watch_layer(layer, &jailed)?)
        }
        _ => None,
    };
    Ok(Running {
        jailed,
        status,
        network,
        scope,
        started,
        sweep: watch,
        program,
        spec,
        rung,
        scratch,
        agent,
        held: None,
        layer,
        forgets: false,
        quota,
        view,
        answers,
    })
}

/// Says in the plan how the quota of its layer is held, and takes from the command what would get
/// around it.
fn hold_quota(layer: &InLayer, policy: &Policy, plan: &mut Plan) {
    let Some(quota) = layer.quota() else { return };
    plan.seccomp.reserve = false;
    let bytes = quota.bytes.map(|bytes| format!("{bytes} bytes"));
    let inodes = quota.inodes.map(|inodes| format!("{inodes} files and directories"));
    let limits: Vec<String> = bytes.into_iter().chain(inodes).collect();
    plan.status.enforce(
        "layer-quota",
        format!("{}: the run ends when its layer holds more", limits.join(", ")),
    );
    if policy.processes.io_uring {
        plan.status.degrade(
            "layer-quota",
            "io_uring is allowed, through which space can be taken faster than it is counted",
        );
    }
}

/// Whether the run is over before a watch of the disk alone pays: its thread costs a short run a tenth of
/// its time.
fn ends_soon(jailed: &jail::Jailed) -> bool {
    // Only that init closes its end is asked for, not what it may say before.
    let control = jailed.control();
    let mut fds = [PollFd::new(&control, PollFlags::empty())];
    let wait = Timespec { tv_sec: 0, tv_nsec: quota::HEAD_START.subsec_nanos().into() };
    matches!(rustix::event::poll(&mut fds, Some(&wait)), Ok(n) if n > 0)
}

fn watch_layer(layer: &InLayer, jailed: &jail::Jailed) -> Result<Watch, RunError> {
    let init = jailed.pidfd().try_clone_to_owned();
    let init = init.map_err(|e| setup("watch the quota of the layer", &e))?;
    let end = move |_: &_| {
        // Gone already is as good.
        let _ = rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL);
    };
    Ok(layer.watch(jailed.pid() as u32, end)?)
}

/// Serves the exact view, where the plan has one.
fn serve(
    plan: &mut Plan,
    channel: Option<view::Channel>,
) -> std::io::Result<Option<view::Serving>> {
    let viewed = plan.steps.iter().find_map(|step| match &step.action {
        Action::View { object, .. } => Some(object),
        _ => None,
    });
    match (viewed, plan.view.take(), channel) {
        (Some(object), Some(wanted), Some(channel)) => {
            view::Serving::start(channel, object, wanted, plan.identity).map(Some)
        }
        _ => Ok(None),
    }
}

/// What this host's kernel lacks of the egress filter.
fn tell(made: &egress::Made, spec: &jail::JailSpec, status: &mut Status) {
    if let Some(why) = &made.without_nftables {
        let ports = spec.egress.iter().flat_map(|c| &c.ports).map(u16::to_string);
        let ports: Vec<String> = ports.take(egress::MOST_PORTS).collect();
        status.degrade(
            "network",
            format!(
                "this host has no nftables ({why}): hosts are reached on the ports {} only, or through the proxy; these ports of the sandbox's loopback are taken",
                ports.join(", ")
            ),
        );
    }
    if !made.ipv6 {
        status.degrade("network", "this host has no ipv6: hosts are reached by ipv4 only");
    }
}

fn setup(what: &str, e: &std::io::Error) -> RunError {
    let errno = Errno(e.raw_os_error().unwrap_or(libc::EIO));
    RunError::Setup { what: what.into(), errno, hint: String::new() }
}

/// Control groups for what was asked. The second part: RLIMIT_NPROC has to stand in for `pids`.
fn limit(limits: &Limits, status: &mut Status) -> (Option<cgroup::Scope>, bool) {
    let request = cgroup::Request {
        memory: limits.memory,
        cpu_percent: limits.cpu_percent,
        pids: limits.pids,
    };
    if request.is_empty() {
        return (None, false);
    }
    let outcome = cgroup::create(&request, "run");
    let mut nproc = false;
    for c in &outcome.enforced {
        status.enforce(&format!("{}-limit", c.name()), "by control group");
    }
    for m in &outcome.missing {
        if matches!(m.controller, cgroup::Controller::Pids) {
            nproc = true;
            status.degrade(
                "pids-limit",
                format!("by RLIMIT_NPROC, which counts per user: no control group ({})", m.reason),
            );
        } else {
            status.miss(&format!("{}-limit", m.controller.name()), m.reason.clone());
        }
    }
    (outcome.scope, nproc)
}

/// What a person knows of step `index` of the view.
fn step_in_words(spec: &jail::JailSpec, index: u32) -> Option<(PathBuf, &'static str)> {
    let step = spec.view.as_ref()?.steps.get(index as usize)?;
    Some(match step {
        jail::Step::Dir { path, .. }
        | jail::Step::File { path, .. }
        | jail::Step::Symlink { path, .. } => (cpath(path), "create"),
        jail::Step::Tmpfs { path, .. } => (cpath(path), "mount a private tmpfs on"),
        jail::Step::Proc { path, .. } => (cpath(path), "mount proc on"),
        jail::Step::DevPts { path } => (cpath(path), "mount devpts on"),
        jail::Step::Bind { path, .. } | jail::Step::Over { path, .. } => (cpath(path), "bind"),
        jail::Step::Rebind { path, .. } => (cpath(path), "guard"),
        jail::Step::Reopen { path, .. } => (cpath(path), "make writable"),
        jail::Step::Copy(copy) => (cpath(&copy.path), "put a private copy over"),
        jail::Step::Listen { path, .. } => (cpath(path), "listen at"),
        jail::Step::Overlay(overlay) => match &overlay.place {
            jail::Place::Root { path, .. } => (cpath(path), "lay the layer over"),
            jail::Place::Stage(_) => (PathBuf::from("/"), "lay the layer over a directory below"),
        },
        jail::Step::Fuse(fuse) => (cpath(&fuse.path), "serve the exact view at"),
        jail::Step::Mask { path, .. } => (cpath(path), "hide"),
        jail::Step::Cover { path, .. } => (cpath(path), "put authorities over"),
        jail::Step::ReadOnly { path } => (cpath(path), "make read-only"),
        jail::Step::Remove { path, .. } => (cpath(path), "tidy"),
    })
}

fn cpath(path: &std::ffi::CStr) -> PathBuf {
    PathBuf::from(format!("/{}", path.to_string_lossy()))
}

/// Words for a set-up failure: which layer refused, what to do.
fn failure(
    f: &Failure,
    program: &str,
    spec: &jail::JailSpec,
    rung: Rung,
    layer: Option<&InLayer>,
) -> RunError {
    if f.stage == Stage::Exec {
        let not_found = f.errno.0 == libc::ENOENT;
        let problem = match f.errno.0 {
            libc::ENOENT => "not found inside the sandbox (is its directory readable there? `ringfence policy explain PATH` tells)".to_owned(),
            libc::EACCES => "not executable, or not readable inside the sandbox".to_owned(),
            _ => f.errno.to_string(),
        };
        return RunError::Exec { program: program.to_owned(), problem, not_found };
    }
    if f.stage == Stage::Chdir {
        return RunError::Setup {
            what: "enter the working directory, which is not visible inside".into(),
            errno: f.errno,
            hint: String::new(),
        };
    }
    let what = match f.stage {
        Stage::Egress => match egress::Step::from_u32(f.index) {
            Some(step) => format!("{}, {}", f.stage.text(), step.text()),
            None => f.stage.text().to_owned(),
        },
        Stage::Step => step_in_words(spec, f.index).map_or_else(
            || f.stage.text().to_owned(),
            |(path, what)| format!("{what} {}", path.display()),
        ),
        stage => stage.text().to_owned(),
    };
    if let Some(layer) = layer
        && is_covered_in_layer(f, spec)
    {
        let hint = format!(
            "; layer {0} changed what is guarded there, nothing was run: apply or discard that change (`ringfence diff {0}` shows it), or use another layer",
            layer.name()
        );
        return RunError::Setup { what, errno: f.errno, hint };
    }
    let step = spec.view.as_ref().and_then(|view| view.steps.get(f.index as usize));
    let overlay = f.stage == Stage::Step && matches!(step, Some(jail::Step::Overlay(_)));
    let hint = if overlay && f.errno.0 != libc::ESTALE {
        "; overlayfs must know the file systems of the directory and of the store of layers (RINGFENCE_STATE names another place for it: ext4, xfs, btrfs or tmpfs), and a root caller needs Linux 5.19"
    } else if f.errno.0 == libc::ESTALE {
        "; it was replaced while the sandbox was being set up, nothing was run"
    } else if namespace_refusal(f, spec) && rung == Rung::Namespaces {
        "; `ringfence doctor` finds out which layer of this host refuses"
    } else {
        ""
    };
    RunError::Setup { what, errno: f.errno, hint: hint.into() }
}

/// A guard has no place in the view: only an earlier run in the same layer, to which less was guarded,
/// or the host since then can have made it so.
fn is_covered_in_layer(f: &Failure, spec: &jail::JailSpec) -> bool {
    const NO_PLACE: [i32; 4] = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EINVAL];
    let step = spec.view.as_ref().and_then(|view| view.steps.get(f.index as usize));
    let guard = match step {
        Some(jail::Step::Over { expect, .. }) => expect.is_none(),
        Some(jail::Step::Copy(copy)) => copy.expect.is_none(),
        _ => false,
    };
    f.stage == Stage::Step && guard && NO_PLACE.contains(&f.errno.0)
}

/// A set-up failure, and whether the lower rung may be tried after it.
fn failed(
    f: &Failure,
    program: &str,
    spec: &jail::JailSpec,
    rung: Rung,
    layer: Option<&InLayer>,
) -> Failed {
    let refusal = rung == Rung::Namespaces && namespace_refusal(f, spec);
    let error = failure(f, program, spec, rung, layer);
    Failed { error, refusal: refusal.then(|| f.to_string()) }
}

/// Whether the failure says that this host does not let us have namespaces (as opposed to a real
/// mistake), so that the lower rung may be tried.
fn namespace_refusal(f: &Failure, spec: &jail::JailSpec) -> bool {
    const REFUSALS: [i32; 7] = [
        libc::EPERM,
        libc::EACCES,
        libc::ENOSPC,
        libc::EUSERS,
        libc::EINVAL,
        libc::ENOSYS,
        libc::ENOTSUP,
    ];
    let stage = match f.stage {
        Stage::Clone
        | Stage::IdMap
        | Stage::Ids
        | Stage::Propagation
        | Stage::Root
        | Stage::Pivot
        | Stage::Network
        | Stage::Tree
        | Stage::Loopback => true,
        // A container that masks parts of /proc may not mount a fresh one.
        Stage::Step => step_in_words(spec, f.index).is_some_and(|(_, what)| what.contains("mount")),
        _ => false,
    };
    stage && REFUSALS.contains(&f.errno.0)
}

impl Running {
    /// The workspace is served by path, with a descriptor for each file that is open inside.
    pub fn has_view(&self) -> bool {
        self.view.is_some()
    }

    /// Holds what runs to other limits, where a control group holds it to them already. Why not, else; then
    /// nothing is changed.
    pub fn limit(&self, request: &cgroup::Request) -> Result<(), String> {
        let missing = |c: cgroup::Controller| {
            format!("{c}: no control group holds it to such a limit, so it cannot be changed now")
        };
        match &self.scope {
            Some(scope) => match request.controllers().find(|c| !scope.limits(*c)) {
                Some(controller) => Err(missing(controller)),
                None => scope.change(request),
            },
            None => request.controllers().next().map_or(Ok(()), |c| Err(missing(c))),
        }
    }

    /// What can change of the file rules of this run.
    pub fn renewal(&self) -> Renewal {
        let view = self.view.as_ref().map(view::Serving::handle);
        Renewal::new(self.rung, view, self.answers.clone())
    }

    /// Looks for guarded names that the run created, if nothing inside can create another any more:
    /// while the kernel takes the namespaces down. Otherwise [`Running::finish`] does it.
    pub fn look_for_leavings(&mut self) {
        if self.jailed.emptied() {
            let after = self.after();
            self.held = Some(self.sweep.finish(self.started.elapsed(), &after));
        }
    }

    /// What became of private copies.
    fn after(&mut self) -> After {
        if !self.sweep.has_copies() {
            return After::Same;
        }
        // Init may have ended before anybody listened to its last words.
        while let Ok(Some(event)) = self.jailed.read_event() {
            if matches!(event, Event::Closed) {
                break;
            }
        }
        match self.jailed.take_copies() {
            Some(directory) => After::Changed(directory),
            None if self.jailed.emptied() => After::Same,
            None => After::Unknown,
        }
    }

    /// The layer will be discarded: nothing is noted in it at the end.
    pub fn forget_layer(&mut self) {
        self.forgets = true;
    }

    /// Ends the bookkeeping after PID 1 was waited for: sweeps guarded names, removes the control
    /// group, fills in [`Status::end`].
    pub fn finish(
        mut self,
        waited: Result<i32, Failure>,
        reason: Option<&str>,
    ) -> Result<(Ended, Status), Failed> {
        let oom = self.scope.as_ref().is_some_and(cgroup::Scope::oom_killed);
        if let Some(scope) = self.scope.take() {
            scope.kill();
            let _ = scope.remove();
        }
        let held = if let Some(held) = self.held.take() {
            held
        } else {
            let after = self.after();
            self.sweep.finish(self.started.elapsed(), &after)
        };
        drop(self.scratch.take());
        drop(self.agent.take());
        drop(self.view.take());
        drop(self.answers.take());
        // Let go of, where nothing is noted: whoever discards it takes it then.
        let layer = self.layer.take().filter(|_| !self.forgets);
        let exceeded = self.quota.take().and_then(Watch::stop);
        match waited {
            Err(f) => {
                let failed = failed(&f, &self.program, &self.spec, self.rung, layer.as_ref());
                if let Some(layer) = layer {
                    layer.abandon();
                }
                Err(failed)
            }
            Ok(status) => {
                let ended = Ended::from_wait_status(status);
                let mut layer = layer.map(|layer| layer.finish(ended.code() != 0));
                if let Some(layer) = &mut layer {
                    layer.exceeded = exceeded.as_ref().map(ToString::to_string);
                }
                let (code, signal) = match ended {
                    Ended::Exited(code) => (Some(code), None),
                    Ended::Signaled(signal) => (None, Some(signal)),
                };
                let natural = if signal.is_some() { "signal" } else { "exit" };
                let reason = match exceeded {
                    _ if oom => "oom",
                    Some(_) if signal.is_some() => "disk quota",
                    _ => reason.unwrap_or(natural),
                };
                self.status.end = Some(End {
                    reason: reason.to_owned(),
                    code,
                    signal,
                    wall_ms: self.started.elapsed().as_millis() as u64,
                    held,
                    layer,
                });
                Ok((ended, self.status))
            }
        }
    }
}

/// A run that failed before the command ran.
#[derive(Debug)]
pub struct Failed {
    pub error: RunError,
    /// Set when namespaces were refused by the host.
    pub refusal: Option<String>,
}

impl From<RunError> for Failed {
    /// Not a refusal by the host.
    fn from(error: RunError) -> Self {
        Self { error, refusal: None }
    }
}

/// The whole of a run, down the ladder. `attempt` starts and supervises one plan.
pub fn with_ladder<T>(
    policy: &Policy,
    request: &Request,
    mut attempt: impl FnMut(Plan) -> Result<T, Failed>,
) -> Result<T, RunError> {
    let plan = prepare(policy, request)?;
    let first = match attempt(plan) {
        Ok(t) => return Ok(t),
        Err(f) => f,
    };
    let Some(refusal) = first.refusal else { return Err(first.error) };
    let lower = Request { rung: Rung::Landlock, ..request.clone() };
    let below = match prepare(policy, &lower) {
        Err(e) => RunError::from(e),
        Ok(plan) => match attempt(plan) {
            Ok(t) => return Ok(t),
            // The command itself was reached: its own error, not the ladder's.
            Err(Failed { error: error @ RunError::Exec { .. }, .. }) => return Err(error),
            Err(f) => f.error,
        },
    };
    Err(RunError::Ladder { refusal, below: Box::new(below) })
}

/// Wall-clock limits of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub timeout: Duration,
    pub grace: Duration,
}

impl Deadline {
    pub fn of(limits: &Limits) -> Option<Self> {
        const DEFAULT_GRACE_MS: u64 = 5000;
        limits.timeout_ms.map(|ms| Self {
            timeout: Duration::from_millis(ms),
            grace: Duration::from_millis(limits.grace_ms.unwrap_or(DEFAULT_GRACE_MS)),
        })
    }
}
