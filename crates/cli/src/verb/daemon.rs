//! `ringfence daemon`: serves sandboxes to this user's programs.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_api::Health;
use ringfence_client::{Client, Error};
use ringfence_daemon::tls::Files;
use ringfence_daemon::{Options, Places, agentfense, agentkernel};
use ringfence_sandbox::prepare::Request;

use crate::exit::ExitCode;
use crate::help;
use crate::output::{self, printable};

/// The hidden verb of the process that makes jails.
pub const SPAWNER: &str = "__spawner";
/// The variable that agentkernel's own server takes its key from.
const KEY: &str = "AGENTKERNEL_API_KEY";
/// How long a daemon may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);

fn json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

fn listen() -> Arg {
    Arg::new("listen")
        .long("listen")
        .value_name("ADDRESS:PORT")
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(SocketAddr))
        .help("Listen there too, for callers with the token; beyond loopback with TLS only")
}

fn tls() -> [Arg; 2] {
    let file = |name: &'static str, other: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .requires(other)
            .value_parser(clap::value_parser!(PathBuf))
            .help(help)
    };
    [
        file("tls-cert", "tls-key", "Speak TLS at --listen, with this chain of certificates (PEM)"),
        file("tls-key", "tls-cert", "The private key of the certificate (PEM)"),
    ]
}

fn files(m: &ArgMatches) -> Option<Files> {
    let file = |name: &str| m.get_one::<PathBuf>(name).cloned();
    Some(Files { certificate: file("tls-cert")?, key: file("tls-key")? })
}

fn dialects() -> [Arg; 2] {
    let fense = Arg::new("agentfense")
        .long("agentfense")
        .value_name("ADDRESS:PORT")
        .num_args(0..=2)
        .default_missing_values([agentfense::GRPC, agentfense::REST])
        .value_parser(clap::value_parser!(SocketAddr))
        .help("Serve AgentFense's clients too, gRPC at 127.0.0.1:9000 and REST at 127.0.0.1:8080");
    [kernel(), fense]
}

fn kernel() -> Arg {
    Arg::new("agentkernel")
        .long("agentkernel")
        .value_name("ADDRESS:PORT")
        .num_args(0..=1)
        .default_missing_value(agentkernel::ADDRESS)
        .value_parser(clap::value_parser!(SocketAddr))
        .help("Serve agentkernel's clients too, at 127.0.0.1:18888 or where said")
}

pub fn command() -> Command {
    let start = Command::new("start").about("Start it in the background");
    Command::new("daemon")
        .about("Serve sandboxes that stay, to this user's programs")
        .arg(listen())
        .args(tls())
        .args(dialects())
        .arg(
            Arg::new("private")
                .long("private")
                .action(ArgAction::SetTrue)
                .help("Serve one program alone: a socket of its own, until standard input ends"),
        )
        .subcommand(start.arg(listen()).args(tls()).args(dialects()))
        .subcommand(Command::new("status").about("Say whether it runs").arg(json()))
        .subcommand(super::tokens::command())
        .subcommand(Command::new("stop").about("End it, and every sandbox that it keeps"))
        .after_help(
            "Without a verb it runs in the foreground until it is interrupted.\n\nExamples:\n  ringfence daemon start\n  ringfence create --name box\n  ringfence exec box -- make test\n  ringfence remove box\n  ringfence daemon stop",
        )
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("daemon") else { return output::fail("not daemon") };
    match m.subcommand() {
        None => foreground(m),
        Some(("start", m)) => start(m),
        Some(("status", m)) => status(m),
        Some(("token", m)) => super::tokens::run(m),
        Some(("stop", _)) => stop(),
        Some((other, _)) => output::fail(format_args!("daemon: no verb {other}")),
    }
}

/// Where this user's daemon is.
pub fn places() -> Places {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    Places::of(&Request::current().store(), runtime.as_deref())
}

/// A connection to it.
pub fn connect() -> Result<Client, String> {
    Client::connect(&places().socket()).map_err(|e| match e {
        Error::Absent { .. } => format!("{e}; start one: ringfence daemon start"),
        e => e.to_string(),
    })
}

/// This very program, whatever its name leads to by now.
fn myself() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

fn addresses(m: &ArgMatches) -> Vec<SocketAddr> {
    m.get_many::<SocketAddr>("listen").into_iter().flatten().copied().collect()
}

/// Both addresses of AgentFense's interface, where it is asked for.
fn pair(m: &ArgMatches) -> Result<Option<agentfense::Options>, &'static str> {
    let mut all = m.get_many::<SocketAddr>("agentfense").into_iter().flatten().copied();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(grpc), Some(rest)) => Ok(Some(agentfense::Options { grpc, rest })),
        (Some(_), None) => Err("--agentfense: two addresses, of gRPC and of REST, or none"),
    }
}

fn foreground(m: &ArgMatches) -> ExitCode {
    let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
    let address = m.get_one::<SocketAddr>("agentkernel").copied();
    let private = m.get_flag("private");
    let made = match private.then(Places::of_one_program).transpose() {
        Ok(made) => made,
        Err(e) => return output::fail(e),
    };
    let fense = match pair(m) {
        Ok(fense) => fense,
        Err(e) => return output::fail(e),
    };
    let options = Options {
        places: made.clone().unwrap_or_else(places),
        private,
        listen: addresses(m),
        tls: files(m),
        agentfense: fense,
        agentkernel: address.map(|address| agentkernel::Options { address, key }),
        spawner: (myself(), vec![SPAWNER.into()]),
    };
    let result = ringfence_daemon::run(&options);
    if let Some(made) = made {
        made.remove();
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => output::fail(e),
    }
}

/// What makes jails; its standard input is the daemon's other end.
pub fn spawner(args: &[OsString]) -> ExitCode {
    let argument = args.get(1).and_then(|a| a.to_str()).unwrap_or_default();
    match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(orders) => ExitCode::from(ringfence_daemon::spawner(&orders, argument)),
        Err(e) => output::fail(e),
    }
}

fn start(m: &ArgMatches) -> ExitCode {
    if connect().is_ok() {
        return output::print("the daemon runs already\n");
    }
    let mut daemon = std::process::Command::new(myself());
    daemon.arg0("ringfence").arg("daemon").current_dir("/");
    for address in addresses(m) {
        daemon.arg("--listen").arg(address.to_string());
    }
    if let Some(Files { certificate, key }) = files(m) {
        // It starts elsewhere.
        let whole = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        daemon.arg("--tls-cert").arg(whole(certificate)).arg("--tls-key").arg(whole(key));
    }
    if let Some(address) = m.get_one::<SocketAddr>("agentkernel") {
        daemon.arg("--agentkernel").arg(address.to_string());
    }
    if let Some(addresses) = m.get_many::<SocketAddr>("agentfense") {
        daemon.arg("--agentfense").args(addresses.map(ToString::to_string));
    }
    let (log, path) = match places().log() {
        Ok(opened) => opened,
        Err(e) => return output::fail(e),
    };
    daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    let mut child = match daemon.spawn() {
        Ok(child) => child,
        Err(e) => return output::fail(format_args!("cannot start the daemon: {e}")),
    };
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Ok(Some(status)) = child.try_wait() {
            let said = std::fs::read_to_string(&path).unwrap_or_default();
            let said = said.trim().trim_start_matches("ringfence: ").to_owned();
            return output::fail(format_args!("the daemon ended ({status}): {}", printable(&said)));
        }
        if connect().is_ok() {
            return output::print("the daemon runs\n");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    output::fail("the daemon does not answer; run `ringfence daemon` to see why")
}

fn health() -> Result<Health, String> {
    connect()?
        .call(ringfence_client::GET, "/v1/health", ringfence_client::NOTHING)
        .map_err(|e| e.to_string())
}

fn status(m: &ArgMatches) -> ExitCode {
    match health() {
        Ok(health) if m.get_flag("json") => output::print_json(&health),
        Ok(health) => {
            let socket = places().socket();
            let Health { version, pid, .. } = health;
            output::print(&format!(
                "the daemon runs: version {version}, process {pid}, socket {}\n",
                printable(&socket)
            ))
        }
        Err(e) => output::fail(e),
    }
}

fn stop() -> ExitCode {
    let pid = match health() {
        Ok(health) => health.pid,
        Err(e) => return output::fail(e),
    };
    let Some(process) = rustix::process::Pid::from_raw(pid as i32) else {
        return output::fail("the daemon does not say which process it is");
    };
    let flags = rustix::process::PidfdFlags::empty();
    let ended = rustix::process::pidfd_open(process, flags).and_then(|fd| {
        rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::TERM)?;
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec::try_from(PATIENCE).ok();
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, patience.as_ref()))
    });
    match ended {
        Ok(0) => output::fail("the daemon does not end"),
        Ok(_) | Err(rustix::io::Errno::SRCH) => output::print("the daemon ended\n"),
        Err(e) => output::fail(format_args!("cannot end the daemon: {e}")),
    }
}
