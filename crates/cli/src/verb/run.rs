//! `ringfence run [FLAGS] -- COMMAND`: what was typed, what it means, the run, the report.

use crate::exit::ExitCode;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use ringfence_layers::Quota;
use ringfence_layers::names::Names;
use ringfence_policy::{
    Base, Effect, LayerFragment, LayerWanted, Permission, Policy, Rule, priority,
};
use ringfence_proxy::control;
use ringfence_proxy::inspect::Inspector;
use ringfence_sandbox::layer::{Changed, LayerRequest};
use ringfence_sandbox::lower::Command;
use ringfence_sandbox::moved::Moved;
use ringfence_sandbox::network::Filter;
use ringfence_sandbox::plan::{NetworkPlan, Plan};
use ringfence_sandbox::prepare::{Request, prepare};
use ringfence_sandbox::run::{self, Deadline, Failed, RunError, Running};
use ringfence_sandbox::status::{Rung, Status};
use ringfence_sandbox::terminal::{self, Io, Signals};
use ringfence_sandbox::{Early, agent, trace};

use crate::egress::{Ears, Egress};
use crate::flags::{self, Id, Problem, Typed};
use crate::layers::{self, Layered};
use crate::output::printable;
use crate::ports::{self, Port};
use crate::reload::Again;
use crate::{help, inspect, output};

pub fn main(args: &[OsString]) -> ExitCode {
    if trace_wanted(args) {
        trace::begin();
    }
    // Before anything else: namespaces are being made while arguments, policy and project are read.
    let mut early = Early::start();
    trace::mark("helper is started");
    let typed = match flags::parse(args) {
        Ok(t) => t,
        Err(problem) => return usage(args, &problem),
    };
    if typed.has(Id::Keep) {
        drop(early);
        return match argv(&typed) {
            Ok(argv) => super::keep::main(&typed, &argv),
            Err(code) => code,
        };
    }
    let meant = meant(typed, &mut early);
    trace::mark("arguments and policy are read");
    match meant {
        // Shared: the policy of a run with a filter can be read again while it runs.
        Ok(meant) => go(&Arc::new(meant), early),
        Err(code) => code,
    }
}

/// Asked of the words alone, so that a start without it pays nothing.
fn trace_wanted(args: &[OsString]) -> bool {
    let ours = args.iter().take_while(|a| *a != "--");
    ours.map(|a| a.as_encoded_bytes()).any(|a| a.starts_with(b"--trace-startup"))
}

/// Lets clap print help, or words the problem with the nearest flag.
fn usage(args: &[OsString], problem: &Problem) -> ExitCode {
    if *problem == Problem::ForClap {
        let version = args.iter().any(|a| a == "-V" || a == "-v" || a == "--version");
        if version {
            return help::main(&["--version".into()]);
        }
    }
    let outcome = if *problem == Problem::ForClap {
        let words = ["ringfence".into(), "run".into()].into_iter().chain(args.iter().cloned());
        help::command().try_get_matches_from(words)
    } else {
        // Without a place for the command, or an unknown flag would be taken for one.
        let flags = args.iter().take_while(|a| *a != "--").cloned();
        help::flags_command()
            .try_get_matches_from(std::iter::once("ringfence run".into()).chain(flags))
    };
    match outcome {
        Err(e) => help::clap_error(&e),
        Ok(_) => output::fail(format_args!("cannot understand the arguments: {problem:?}")),
    }
}

/// What the flags mean together.
pub struct Meant {
    pub typed: Typed,
    pub layered: Layered,
    pub request: Request,
    argv: Vec<OsString>,
    inspector: Option<Arc<Inspector>>,
}

/// The command that was typed.
fn argv(typed: &Typed) -> Result<Vec<OsString>, ExitCode> {
    let argv = match (typed.last(Id::Shell), typed.command.is_empty()) {
        (Some(_), false) => {
            return Err(output::fail("-c and a command after -- exclude each other"));
        }
        (Some(text), true) => vec!["/bin/sh".into(), "-c".into(), text.to_owned()],
        (None, true) => {
            return Err(output::fail(
                "no command: write it after --, or give a shell string with -c\n  example: ringfence -- npm test",
            ));
        }
        (None, false) => typed.command.clone(),
    };
    if argv.first().is_some_and(|program| program.is_empty()) {
        return Err(output::fail("the command is empty"));
    }
    Ok(argv)
}

fn meant(mut typed: Typed, early: &mut Option<Early>) -> Result<Meant, ExitCode> {
    let argv = argv(&typed)?;
    let moved = codebase(&mut typed).map_err(output::fail)?;
    let mut layered = layers::layered(&typed).map_err(|e| {
        output::say(&e);
        ExitCode::from(e.exit_code())
    })?;
    let path = |id: Id| typed.last(id).map(PathBuf::from);
    let mut request =
        Request { workspace: path(Id::Workspace), cwd: path(Id::Cwd), ..Request::current() };
    if let Some((moved, index)) = moved {
        (request.moved, request.index) = (Some(moved), index);
    }
    request.layer = layer(&typed, &layered.policy.layer, &request).map_err(output::fail)?;
    request.filter = Filter::of(&layered.policy.network).map_err(output::fail)?;
    // Set up by the helper while the rest is planned.
    if let (Some(filter), Some(early)) = (&request.filter, early) {
        filter.prepare(early);
    }
    let inspector = inspect::prepare(&mut layered.policy, &mut request).map_err(output::fail)?;
    protect_policy_files(&mut layered, &request).map_err(output::fail)?;
    Ok(Meant { typed, layered, request, argv, inspector })
}

/// Where a codebase is shown, and its index.
type Shown = (Moved, Option<Arc<Names>>);

/// The codebase to work in: its tree becomes the workspace, and what is written goes to a layer.
fn codebase(typed: &mut Typed) -> Result<Option<Shown>, String> {
    let Some(value) = typed.last(Id::Codebase) else { return Ok(None) };
    if typed.has(Id::Workspace) {
        return Err("--codebase and --workspace exclude each other".into());
    }
    let text = value.to_str().ok_or("--codebase: the name is not utf-8")?;
    let (name, place) = layers::codebase_named(text);
    let to = PathBuf::from(place);
    let plain = |c: &Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    // The system's own places are refused where they are known: by the plan.
    if !to.is_absolute() || to == Path::new("/") || !to.components().all(|c| plain(&c)) {
        return Err(format!("--codebase: {} is not an absolute directory", printable(place)));
    }
    let all = super::codebase::open().map_err(|e| format!("--codebase: {e}"))?;
    let codebase = all.get(name).map_err(|e| format!("--codebase: {e}"))?;
    let tree = codebase.tree();
    let from = std::fs::canonicalize(&tree)
        .map_err(|e| format!("--codebase: {}: {e}", printable(&tree)))?;
    let index = codebase.index().map(Arc::new);
    let moved = Moved { name: codebase.record.name, from: from.clone(), to };
    if let Some(cwd) = typed.last(Id::Cwd).map(PathBuf::from) {
        // As the command would see it: relative to the codebase, or below the place of it.
        let asked = moved.outside(&moved.to.join(&cwd));
        let real = std::fs::canonicalize(&asked)
            .map_err(|e| format!("--cwd: {}: {}", printable(&cwd), e.kind()))?;
        if !real.starts_with(&from) {
            return Err(format!("--cwd: {} is not in the codebase", printable(&cwd)));
        }
        typed.flags.retain(|(id, _)| *id != Id::Cwd);
        typed.flags.push((Id::Cwd, real.into()));
    }
    typed.flags.push((Id::Workspace, from.into()));
    Ok(Some((moved, index)))
}

/// The layer that is to get what the command writes. What a codebase's run writes always goes to one.
fn layer(
    typed: &Typed,
    wanted: &LayerWanted,
    request: &Request,
) -> Result<Option<LayerRequest>, String> {
    let auto = LayerFragment::AUTO;
    let name = wanted.name.as_deref().or(request.moved.as_ref().map(|_| auto));
    let Some(name) = name else {
        let alone = [
            (Id::Checkpoint, "--checkpoint"),
            (Id::LayerQuota, "--layer-quota"),
            (Id::LayerInodes, "--layer-inodes"),
        ];
        return match alone.iter().find(|(id, _)| typed.has(*id)) {
            Some((_, flag)) => Err(format!("{flag} needs --layer")),
            None => Ok(None),
        };
    };
    let name = (name != auto).then_some(name);
    let mut layer =
        LayerRequest::new(name, request.store(), wanted.checkpoint).map_err(|e| e.to_string())?;
    let LayerWanted { quota: bytes, inodes, .. } = *wanted;
    layer.quota = (bytes.is_some() || inodes.is_some()).then_some(Quota { bytes, inodes });
    Ok(Some(layer))
}

/// Layer name of the rules that guard the policy in use; they are not lifted by id.
pub const POLICY_OF_THE_RUN: &str = "the policy of this run";

/// The policy that confines this run must not be changed by it, wherever its file lies: neither the
/// file nor, where it was named through a symlink, the link.
pub fn protect_policy_files(layered: &mut Layered, request: &Request) -> Result<(), String> {
    let workspace = request.workspace.as_deref().or(request.cwd.as_deref());
    let workspace = std::fs::canonicalize(workspace.unwrap_or(Path::new("."))).ok();
    for file in &layered.files {
        let Ok(real) = std::fs::canonicalize(file) else { continue };
        let named = crate::trust::key_path(file);
        for path in [Some(&named), (named != real).then_some(&real)].into_iter().flatten() {
            let Some(rule) = guard(path, workspace.as_deref()) else {
                return Err(format!(
                    "cannot guard the policy {} against the run: its path is not utf-8; move it, or its directory, to one that is",
                    printable(path)
                ));
            };
            layered.policy.files.rules.push(rule);
        }
    }
    Ok(())
}

fn guard(path: &Path, workspace: Option<&Path>) -> Option<Rule> {
    let rule = Rule::grant_path(path, Permission::Read, POLICY_OF_THE_RUN).or_else(|| {
        // Patterns are text; below a directory whose name is not, they can be relative to it.
        let inside = Path::new("/").join(path.strip_prefix(workspace?).ok()?);
        Some(Rule {
            base: Base::Workspace,
            ..Rule::grant_path(&inside, Permission::Read, POLICY_OF_THE_RUN)?
        })
    })?;
    let id = Some("guard.ringfence".into());
    Some(Rule { effect: Effect::Cap, priority: priority::GUARD, id, ..rule })
}

fn go(meant: &Arc<Meant>, mut early: Option<Early>) -> ExitCode {
    let Meant { typed, layered, request, .. } = &**meant;
    let loud = typed.has(Id::Debug) || typed.has(Id::Monitor);
    if loud || !layered.notes.is_empty() {
        for note in &layered.notes {
            output::say(printable(note));
        }
    }
    if typed.has(Id::Explain) {
        return explain(typed, &layered.policy, request);
    }
    let mut log = match Log::open(typed.last(Id::Log)) {
        Ok(log) => log,
        Err(code) => return code,
    };
    let exposed = match ports::parse(typed.all(Id::Port)) {
        Ok(exposed) => exposed,
        Err(e) => return output::fail(e),
    };
    let signals = Signals::take();
    let given = Given { meant, signals: &signals, ports: &exposed };
    let mut told = Vec::new();
    let outcome = run::with_ladder(&layered.policy, request, |plan| {
        trace::mark("the host is looked at, the plan made");
        announce(typed, &plan, &mut told);
        attempt(&given, &mut log, early.take(), plan)
    });
    match outcome {
        Ok((code, status)) => {
            let held = status.end.as_ref().map(|e| e.held.clone()).unwrap_or_default();
            for line in held {
                output::say(printable(&line));
            }
            if let Some(changed) = status.end.as_ref().and_then(|e| e.layer.as_ref()) {
                tell_layer(typed, request, changed);
            }
            let written = write_status(typed.last(Id::Status), &status);
            if let Err(e) = written.and_then(|()| write_trace(typed.last(Id::TraceStartup))) {
                return output::fail(e);
            }
            ExitCode::from(code as u8)
        }
        Err(e) => {
            log.event("refused", || serde_json::json!({ "error": e.to_string() }));
            output::say(&e);
            ExitCode::from(e.exit_code() as u8)
        }
    }
}

/// What the layer holds after the run: for whoever looks at a terminal, asked, or did not choose its
/// name.
fn tell_layer(typed: &Typed, request: &Request, changed: &Changed) {
    if let Some(problem) = &changed.problem {
        output::say(format_args!("layer {}: {}", changed.name, printable(problem)));
    }
    if let Some(exceeded) = &changed.exceeded {
        output::say(format_args!("layer {}: {exceeded}", changed.name));
    }
    let asked = typed.has(Id::Monitor) || typed.has(Id::Debug);
    let auto = request.layer.as_ref().is_some_and(|layer| layer.auto);
    let told = asked || auto || std::io::stderr().is_terminal();
    if told && !changed.is_empty() {
        output::say(changed);
    }
    if told && let Some(foreign) = &changed.foreign {
        output::say(format_args!("layer {}: {}", changed.name, printable(foreign)));
    }
}

fn explain(typed: &Typed, policy: &Policy, request: &Request) -> ExitCode {
    match prepare(policy, request) {
        Ok(plan) if typed.has(Id::Json) => match serde_json::to_string_pretty(&plan) {
            Ok(text) => output::print(&format!("{text}\n")),
            Err(e) => output::fail(e),
        },
        Ok(plan) => output::print(&output::lines(&plan.to_string())),
        Err(e) => {
            let e = RunError::from(e);
            output::say(&e);
            ExitCode::from(e.exit_code() as u8)
        }
    }
}

/// What is the same on every rung of the ladder.
struct Given<'a> {
    meant: &'a Arc<Meant>,
    signals: &'a Signals,
    ports: &'a [Port],
}

/// One plan, from start to end.
fn attempt(
    given: &Given<'_>,
    log: &mut Log,
    early: Option<Early>,
    plan: Plan,
) -> Result<(i32, Status), Failed> {
    let Given { meant, signals, ports } = *given;
    let Meant { typed, layered: Layered { policy, .. }, argv, inspector, .. } = &**meant;
    let fatal = |error: RunError| Failed { error, refusal: None };
    let io = Io::new(policy.pty);
    let (ours, theirs) = connector(ports, &plan).map_err(fatal)?;
    let command = Command {
        argv: argv.clone(),
        stdio: ringfence_sandbox::lower::stdio(io.pty()),
        die_with_parent: true,
        connector: theirs,
        resident: None,
        agent_events: plan.ssh_agent.as_ref().map(|_| agent_events(typed, log)),
    };
    log.event("start", || {
        serde_json::json!({
            "command": argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>(),
            "rung": plan.rung,
            "enforced": plan.status.enforced,
            "degraded": plan.status.degraded,
            "missing": plan.status.missing,
        })
    });
    let listeners = match ours {
        Some(_) => ports::listen(ports).map_err(|what| fatal(RunError::Port(what)))?,
        None => Vec::new(),
    };
    let filter = plan.filter.clone();
    let announced = plan.status.degraded.len();
    let mut running = run::start(plan, policy, &command, early)?;
    if running.has_view() {
        // After the command was made, which keeps the limit it was given.
        ringfence_sandbox::view::room_for_files();
    }
    if typed.has(Id::Monitor) || typed.has(Id::Debug) {
        // What only the attempt showed.
        degraded(&running.status, announced);
    }
    let told = typed.has(Id::Monitor) || typed.has(Id::Debug);
    let raw = io.wants_pty() && std::io::stderr().is_terminal();
    let made = running.network.take();
    let renewal = Arc::new(running.renewal());
    let again = Again {
        meant: Arc::clone(meant),
        filter: filter.as_ref().zip(made.as_ref()).map(|(f, m)| (Arc::clone(&f.rules), m.way)),
        files: Arc::default(),
        log: log.share(),
        told,
        raw,
        renewal,
    };
    let (mut egress, mut ear) = (None, None);
    if let (Some(filter), Some(made)) = (filter, made) {
        let ears = Ears { log: log.share(), monitor: told, debug: typed.has(Id::Debug), raw };
        let init = running.jailed.pid();
        let control = again.control();
        let inspector = inspector.clone();
        let started = Egress::start(&filter, policy, inspector, made, init, ears, control);
        egress = Some(started.map_err(fatal)?);
    } else if again.renewal.decides() {
        let problem = |e| RunError::Supervise(format!("cannot listen for new rules: {e}"));
        ear = Some(control::Ear::open(again.control()).map_err(|e| fatal(problem(e)))?);
    }
    let forwarder = ports::serve(listeners, ours);
    trace::mark("what serves it is started");
    let deadline =
        Deadline::of(&policy.limits).and_then(|d| terminal::Deadline::after(d.timeout, d.grace));
    let supervised = terminal::supervise(&mut running.jailed, io, signals, deadline);
    trace::mark("waits while the command runs");
    trace::inside(&running.jailed);
    drop(forwarder);
    drop(ear);
    // Nothing is left that it could serve; it ends while the sandbox is taken down.
    if let Some(egress) = &mut egress {
        egress.stop();
    }
    let ended = finish(running, supervised);
    trace::mark("sandbox is taken down");
    for line in egress.map(Egress::finish).unwrap_or_default() {
        output::say(printable(&line));
    }
    let (code, status) = ended?;
    log.event("end", || serde_json::json!(status.end));
    Ok((code, status))
}

/// Where the ssh agent's filter tells what it signed and what it refused.
fn agent_events(typed: &Typed, log: &Log) -> agent::Sink {
    let monitor = typed.has(Id::Debug) || typed.has(Id::Monitor);
    let log = Mutex::new(Log { file: log.share() });
    agent::Sink(Arc::new(move |event| {
        if let Ok(mut log) = log.lock() {
            log.event("ssh-agent", || serde_json::json!(event));
        }
        if monitor {
            output::say(printable(&event.to_string()));
        }
    }))
}

type Channel = (Option<OwnedFd>, Option<Arc<OwnedFd>>);

/// The channel for `-p`, where there is a port to expose and a network namespace to expose it from.
fn connector(ports: &[Port], plan: &Plan) -> Result<Channel, RunError> {
    let Some(first) = ports.first() else { return Ok((None, None)) };
    match &plan.network {
        NetworkPlan::Loopback => {}
        NetworkPlan::Filtered { .. } => {
            let loopback = plan.filter.as_ref().map(|f| f.rules.host_loopback_ports());
            if let Some(problem) = ports
                .iter()
                .find_map(|p| ports::taken(p.inside, loopback.as_deref().unwrap_or(&[])))
            {
                return Err(RunError::Port(problem));
            }
        }
        // The command listens on the host itself.
        NetworkPlan::Host if ports.iter().all(|p| p.inside == p.host.port()) => {
            return Ok((None, None));
        }
        NetworkPlan::Host => {
            return Err(RunError::Port(format!(
                "--port: {} cannot be mapped to {}: the command uses the host's network",
                first.host, first.inside
            )));
        }
        NetworkPlan::NoSockets => {
            return Err(RunError::Port("--port: needs namespaces, which this host refuses".into()));
        }
    }
    let (ours, theirs) = ringfence_sys::raw::seqpacket_owned()
        .map_err(|e| RunError::Port(format!("--port: cannot make a channel: {e}")))?;
    Ok((Some(ours), Some(Arc::new(theirs))))
}

fn finish(
    mut running: Running,
    supervised: Result<terminal::Outcome, terminal::Error>,
) -> Result<(i32, Status), Failed> {
    let outcome = match supervised {
        Ok(o) => o,
        Err(e) => {
            running.jailed.kill();
            let _ = running.jailed.wait();
            let error = RunError::Supervise(e.to_string());
            return Err(Failed { error, refusal: None });
        }
    };
    running.look_for_leavings();
    let waited = running.jailed.wait();
    let reason = match outcome {
        terminal::Outcome { timed_out: true, .. } => Some("timeout"),
        terminal::Outcome { killed: true, .. } => Some("killed"),
        _ => None,
    };
    let (ended, status) = running.finish(waited, reason)?;
    Ok((ended.code(), status))
}

/// What is to be known of a plan, before anything of the command can be seen. `told`: the notes that
/// were said already, of a plan that this host refused.
fn announce(typed: &Typed, plan: &Plan, told: &mut Vec<String>) {
    if plan.rung == Rung::Landlock {
        output::say(
            "this host refuses namespaces: landlock and the system call filter hold the policy",
        );
    }
    for m in &plan.status.missing {
        output::say(format_args!("missing, as accepted: {}: {}", m.name, printable(&m.detail)));
    }
    for note in &plan.notes {
        if !told.contains(note) {
            output::say(printable(note));
            told.push(note.clone());
        }
    }
    if typed.has(Id::Debug) {
        for line in plan.to_string().lines() {
            output::say(line);
        }
        let withheld = &plan.status.withheld_environment;
        if !withheld.is_empty() {
            output::say(format_args!("withheld variables: {}", withheld.join(" ")));
        }
    } else if typed.has(Id::Monitor) {
        degraded(&plan.status, 0);
    }
}

/// Says what is weaker than it should be, from the one after the first `known`.
fn degraded(status: &Status, known: usize) {
    for d in status.degraded.iter().skip(known) {
        output::say(format_args!("degraded: {}: {}", d.name, printable(&d.detail)));
    }
}

/// Writes the status as JSON. The run is over; a failure to report is still a failure.
fn write_status(target: Option<&OsStr>, status: &Status) -> Result<(), String> {
    let Some(target) = target else { return Ok(()) };
    let mut text = serde_json::to_string_pretty(status).map_err(|e| e.to_string())?;
    text.push('\n');
    if target == "-" {
        return std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|e| format!("cannot write the status to stdout: {e}"));
    }
    std::fs::write(Path::new(target), text)
        .map_err(|e| format!("cannot write the status to {}: {e}", printable(target)))
}

/// Where the time of the start went.
fn write_trace(target: Option<&OsStr>) -> Result<(), String> {
    let Some(target) = target else { return Ok(()) };
    let steps = trace::steps().into_iter().map(|s| {
        serde_json::json!({
            "name": s.name, "lane": s.lane, "start_us": s.start_us, "end_us": s.end_us,
        })
    });
    let text = serde_json::json!({ "steps": steps.collect::<Vec<_>>() });
    std::fs::write(Path::new(target), format!("{text:#}\n"))
        .map_err(|e| format!("cannot write the trace to {}: {e}", printable(target)))
}

/// Events as JSON lines.
struct Log {
    file: Option<File>,
}

impl Log {
    fn open(target: Option<&OsStr>) -> Result<Self, ExitCode> {
        use std::os::unix::fs::OpenOptionsExt;
        let Some(target) = target else { return Ok(Self { file: None }) };
        let mut options = std::fs::OpenOptions::new();
        match options.create(true).append(true).mode(0o600).open(Path::new(target)) {
            Ok(file) => Ok(Self { file: Some(file) }),
            Err(e) => {
                Err(output::fail(format_args!("--log: cannot open {}: {e}", printable(target))))
            }
        }
    }

    /// For filters, which write from threads of their own.
    fn share(&self) -> Option<File> {
        self.file.as_ref().and_then(|file| file.try_clone().ok())
    }

    fn event(&mut self, kind: &str, detail: impl FnOnce() -> serde_json::Value) {
        if let Some(file) = &self.file {
            log_event(file, kind, detail);
        }
    }
}

/// One line of `--log`.
pub fn log_event(mut file: &File, kind: &str, detail: impl FnOnce() -> serde_json::Value) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let line = serde_json::json!({
        "time_ms": now,
        "pid": std::process::id(),
        "event": kind,
        "detail": detail(),
    });
    // One write, so that lines of parallel runs do not mix.
    let _ = file.write_all(format!("{line}\n").as_bytes());
}
