//! `--help` teaches by example. Made by clap from the same table as the hot path's parser.

use crate::exit::ExitCode;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use crate::flags;
use crate::output;
use crate::verb;

const ABOUT: &str = "Confine what AI agents run: one binary, nothing beside it";

const EXAMPLES: &str = "Examples:
  ringfence -- npm test                      run a command; the current directory is writable,
                                             home and secrets are not there, no network
  ringfence -c \"npm ci && npm test\"          run a shell string
  ringfence -t read-only -- rg TODO          let it look, not touch
  ringfence --allow-write ../out -- make     one more writable place
  ringfence --allow-host npm -- npm ci       reach npm's registry and nothing else
  ringfence --timeout 10m --memory 2g -- cargo test
  ringfence --explain -- npm test            print what would be set up, run nothing
  ringfence --status - -- true               what is enforced, as JSON
  ringfence policy explain .env              who may read this file, and which rule says so
  ringfence daemon start                     keep sandboxes: create, exec, list, stop, remove
  ringfence doctor                           can this host sandbox? if not, which command mends it
  ringfence selftest                         attack a sandbox on this host, print the table

Exit codes:
  the command's own; 128+N when signal N ended it; 127 not found; 126 refused by policy or not
  executable; 125 ringfence itself failed";

const RUN_USAGE: &str =
    "ringfence [run] [FLAGS] -- COMMAND [ARGS]...\n       ringfence [run] [FLAGS] -c STRING";

pub fn run_command() -> Command {
    Command::new("run")
        .about("Run a command confined (also without the verb: ringfence -- CMD)")
        .args(flags::clap_args())
        .after_help(EXAMPLES)
        .override_usage(RUN_USAGE)
        .disable_version_flag(true)
}

/// Only the flags of `run`, for wording what is wrong with them.
pub fn flags_command() -> Command {
    Command::new("run")
        .args(flags::clap_flags())
        .override_usage(RUN_USAGE)
        .disable_version_flag(true)
}

fn json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

fn context() -> [Arg; 3] {
    [
        Arg::new("settings")
            .short('s')
            .long("settings")
            .value_name("FILE")
            .value_parser(clap::value_parser!(OsString))
            .help("Policy file instead of the one that `run` would find"),
        Arg::new("profile")
            .short('t')
            .long("profile")
            .value_name("NAME")
            .action(ArgAction::Append)
            .value_parser(clap::value_parser!(OsString))
            .help("Built-in profile; repeat to layer"),
        Arg::new("workspace")
            .short('w')
            .long("workspace")
            .value_name("DIR")
            .value_parser(clap::value_parser!(OsString))
            .help("Workspace (default: the current directory)"),
    ]
}

fn layer_name(help: &'static str) -> Arg {
    Arg::new("name").value_name("LAYER").help(help)
}

fn paths(help: &'static str) -> Arg {
    Arg::new("paths")
        .value_name("PATH")
        .num_args(0..)
        .value_parser(clap::value_parser!(OsString))
        .help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Flags of `run` by which more may be applied.
fn wider() -> [Arg; 2] {
    let many = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .action(ArgAction::Append)
            .value_parser(clap::value_parser!(OsString))
            .help(help)
    };
    [
        many("allow-write", "PATH", "As for `run`: PATH may be changed; repeatable"),
        many("lift", "ID", "As for `run`: remove a built-in rule (guard.git); repeatable"),
    ]
}

/// The verbs of layers: what is in them, and what becomes of it.
fn layer_verbs() -> [Command; 4] {
    [
        Command::new("layers")
            .about("List layers: what `run --layer` keeps apart from the real files")
            .arg(json())
            .subcommand(
                Command::new("compact")
                    .about("Make one of a layer's sealed deltas; files are shared, not copied")
                    .arg(layer_name("The layer (default: the only one)"))
                    .arg(json())
                    .after_help("Happens by itself after a run when there are many; snapshots and checkpoints stay."),
            )
            .after_help(
                "Examples:\n  ringfence layers\n  ringfence layers --json",
            ),
        Command::new("diff")
            .about("Show what a layer changed, against the files as they are now")
            .arg(layer_name("The layer (default: the only one)"))
            .arg(paths("Only these files and directories"))
            .arg(
                Arg::new("patch")
                    .short('p')
                    .long("patch")
                    .action(ArgAction::SetTrue)
                    .help("A unified patch that `git apply` and `patch -p1` take"),
            )
            .arg(
                switch("binary", "With --patch: binary files too, which `git apply` takes")
                    .requires("patch"),
            )
            .arg(switch("stat", "Lines added and removed, by file").conflicts_with("patch"))
            .arg(json().conflicts_with_all(["patch", "stat"]))
            .after_help(
                "A added, M changed, D deleted, T another kind of file, m mode, time or attributes only.\nWhat the host may run later (hooks, build scripts, editor tasks) is marked with its reason.\n\nExamples:\n  ringfence diff work\n  ringfence diff work src --patch\n  ringfence diff work --patch | git apply --check",
            ),
        Command::new("apply")
            .about("Bring a layer's changes to the real files")
            .arg(layer_name("The layer (default: the only one)"))
            .arg(paths("Only these files and directories"))
            .arg(
                Arg::new("hunk")
                    .long("hunk")
                    .value_name("PATH:N[,N]")
                    .action(ArgAction::Append)
                    .value_parser(clap::value_parser!(OsString))
                    .help("Only these hunks of PATH, as `diff --patch` shows them; repeatable"),
            )
            .arg(switch("dry-run", "Say what would be done, and do nothing"))
            .arg(switch("theirs", "Where both changed a file, take the layer's").requires("paths"))
            .arg(switch("resume", "Go on with an apply that was interrupted").conflicts_with("rollback"))
            .arg(switch("rollback", "Take an interrupted apply back"))
            .args(context())
            .args(wider())
            .arg(json())
            .after_help(
                "What the host changed meanwhile is merged where that is clear; the rest is a conflict, stays in the\nlayer and is never overwritten. What the policy would not let a command write (flags as for `run`) is\nrefused. Either all files that can be applied are, or, after a kill, `--resume` or `--rollback`.\n\nExamples:\n  ringfence apply work --dry-run\n  ringfence apply work\n  ringfence apply work src/main.rs docs\n  ringfence apply work --hunk src/main.rs:1,3\n  ringfence apply work --theirs src/main.rs\n\nExit codes:\n  0 all applied; 1 conflicts or refusals are left; 125 nothing was done",
            ),
        Command::new("discard")
            .about("Throw a layer away, or some of its changes; the real files stay as they are")
            .arg(layer_name("The layer"))
            .arg(paths("Only these files and directories"))
            .arg(switch("all", "Every layer that is not in use").conflicts_with_all(["name", "paths"]))
            .arg(json())
            .after_help(
                "Examples:\n  ringfence discard work\n  ringfence discard work build\n  ringfence discard --all",
            ),
    ]
}

/// The whole command line, for help, errors and completions.
pub fn command() -> Command {
    let policy = Command::new("policy")
        .about("Show, check and explain policies")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("show")
                .about("Print the policy that `run` would use here, and where each part comes from")
                .args(context())
                .arg(json()),
        )
        .subcommand(
            Command::new("check")
                .about("Check policy files: syntax, keys, values, whether this host can hold them")
                .arg(
                    Arg::new("files")
                        .value_name("FILE")
                        .num_args(0..)
                        .value_parser(clap::value_parser!(OsString)),
                )
                .args(context()),
        )
        .subcommand(
            Command::new("explain")
                .about("Say what may be done with a path or a host, and which rule says so")
                .arg(
                    Arg::new("what")
                        .value_name("PATH|HOST")
                        .required(true)
                        .value_parser(clap::value_parser!(OsString)),
                )
                .args(context())
                .arg(json())
                .after_help("What is said of a path is for hosts with namespaces; where a host refuses them, landlock\nholds less, and `run` says what.\n\nExamples:\n  ringfence policy explain .env\n  ringfence policy explain ~/.ssh/id_rsa\n  ringfence policy explain api.github.com:443"),
        )
        .subcommand(
            Command::new("reload")
                .about("Have a running sandbox read its rules again")
                .arg(
                    Arg::new("pid")
                        .value_name("PID")
                        .value_parser(clap::value_parser!(u32))
                        .help("Of the `ringfence` that runs it (default: the only one that runs)"),
                )
                .arg(
                    Arg::new("all")
                        .long("all")
                        .action(ArgAction::SetTrue)
                        .conflicts_with("pid")
                        .help("Every run of yours; of root's: everybody's"),
                )
                .arg(json())
                .after_help("The policy is read as at the start: same flags, same files, same trust. Connections to\nhosts that are no longer allowed are closed. File rules change in an exact view, and rules\nof names in a layer as far as init decides. If anything is wrong, or cannot change in a\nrunning sandbox (mounts), the old rules stay, all of them, and the reason is said.\nEnvironment and limits stay as they are.\n\nExit codes:\n  0 reloaded; 126 refused, or wrong: the old rules stay; 125 no such run"),
        )
        .subcommand(Command::new("schema").about("Print the JSON Schema of policy files"))
        .subcommand(Command::new("profiles").about("List the built-in profiles and rules").arg(json()))
        .subcommand(Command::new("groups").about("List the named groups of hosts").arg(json()));
    Command::new("ringfence")
        .about(ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(EXAMPLES)
        .subcommand(run_command())
        .subcommand(
            Command::new("doctor")
                .about("Start a real sandbox on this host; say what works, what refuses, what mends it")
                .arg(json())
                .after_help("Exit codes:\n  0 every layer works; 125 a lower rung is used here, or none (the text says what is lost)"),
        )
        .subcommand(
            Command::new("selftest")
                .about("Attack a sandbox on this very host; each attack has a control without it")
                .arg(json())
                .arg(
                    Arg::new("only")
                        .long("only")
                        .value_name("NAME")
                        .action(ArgAction::Append)
                        .help("Only attacks whose name contains NAME"),
                )
                .after_help("Exit codes:\n  0 no attack succeeded inside; 125 one did, or a sandbox did not start\n  Attacks that fail outside as well are told apart: they show nothing on this host"),
        )
        .subcommands(layer_verbs())
        .subcommands(verb::history::commands())
        .subcommand(verb::export::command())
        .subcommand(verb::import::command())
        .subcommand(verb::codebase::command())
        .subcommand(verb::daemon::command())
        .subcommands(verb::sandboxes::commands())
        .subcommand(verb::attach::command())
        .subcommand(verb::batch::command())
        .subcommands(verb::execs::commands())
        .subcommand(verb::files::command())
        .subcommand(verb::sessions::command())
        .subcommands(verb::events::commands())
        .subcommands(verb::top::commands())
        .subcommand(verb::limits::command())
        .subcommand(verb::bench::command())
        .subcommand(policy)
        .subcommand(
            Command::new("init")
                .about("Write a commented ringfence.toml for this project")
                .arg(
                    Arg::new("profile")
                        .short('t')
                        .long("profile")
                        .value_name("NAME")
                        .help("Profile to start from (default: workspace)"),
                )
                .arg(
                    Arg::new("print")
                        .long("print")
                        .action(ArgAction::SetTrue)
                        .help("Print it instead of writing"),
                ),
        )
        .subcommand(
            Command::new("trust")
                .about("Record that a policy file, as it is now, may be obeyed")
                .arg(
                    Arg::new("file")
                        .value_name("FILE")
                        .value_parser(clap::value_parser!(OsString))
                        .help("Default: the file that `run` finds from here"),
                )
                .arg(
                    Arg::new("list")
                        .long("list")
                        .action(ArgAction::SetTrue)
                        .help("List what is trusted"),
                )
                .arg(
                    Arg::new("revoke")
                        .long("revoke")
                        .action(ArgAction::SetTrue)
                        .help("Take the trust back"),
                )
                .arg(json()),
        )
        .subcommand(
            Command::new("completions").about("Print a completion script").arg(
                Arg::new("shell")
                    .value_name("SHELL")
                    .required(true)
                    .value_parser(clap::value_parser!(clap_complete::Shell)),
            ),
        )
}

/// Lets clap word the outcome of arguments that are not for the hot path.
pub fn by_clap(args: &[OsString]) -> ExitCode {
    let words = std::iter::once(OsString::from("ringfence")).chain(args.iter().cloned());
    match command().try_get_matches_from(words) {
        Ok(_) => print_short(),
        Err(e) => clap_error(&e),
    }
}

/// Prints a clap error or help text; usage errors are ours (125).
pub fn clap_error(e: &clap::Error) -> ExitCode {
    let _ = e.print();
    if e.use_stderr() { ExitCode::from(crate::exit::FAILED) } else { ExitCode::SUCCESS }
}

/// Parses the arguments of a verb other than `run`.
pub fn matches(args: &[OsString]) -> Result<clap::ArgMatches, ExitCode> {
    let words = std::iter::once(OsString::from("ringfence")).chain(args.iter().cloned());
    command().try_get_matches_from(words).map_err(|e| clap_error(&e))
}

pub fn main(args: &[OsString]) -> ExitCode {
    let first = args.first().and_then(|a| a.to_str()).unwrap_or_default();
    match first {
        "-V" | "-v" | "--version" | "version" => {
            output::print(&format!("ringfence {}\n", env!("CARGO_PKG_VERSION")))
        }
        _ => by_clap(args),
    }
}

/// Called without arguments.
pub fn print_short() -> ExitCode {
    let _ = command().print_help();
    ExitCode::from(crate::exit::FAILED)
}
