//! The flags of `run`, once: a cheap parser for the hot path, and clap for `--help`, error texts and
//! completions, both made from the same table. Deriving thirty clap flags costs 0.2 ms at each start;
//! walking this table costs nothing that can be measured.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction};

/// What was typed, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    pub flags: Vec<(Id, OsString)>,
    pub command: Vec<OsString>,
    /// A command was started by `--` (even if nothing followed).
    pub separator: bool,
}

impl Typed {
    pub fn has(&self, id: Id) -> bool {
        self.flags.iter().any(|(i, _)| *i == id)
    }

    pub fn last(&self, id: Id) -> Option<&OsStr> {
        self.flags.iter().rev().find(|(i, _)| *i == id).map(|(_, v)| v.as_os_str())
    }

    pub fn all(&self, id: Id) -> impl Iterator<Item = &OsStr> {
        self.flags.iter().filter(move |(i, _)| *i == id).map(|(_, v)| v.as_os_str())
    }
}

macro_rules! flags {
    ($($id:ident, $long:literal, $short:expr, $alias:expr, $value:expr, $group:literal, $help:literal;)*) => {
        /// Every flag of `run`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Id { $($id,)* }

        /// The table.
        pub const FLAGS: &[Flag] = &[
            $(Flag { id: Id::$id, long: $long, short: $short, alias: $alias, value: $value, group: $group, help: $help },)*
        ];
    };
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub id: Id,
    pub long: &'static str,
    pub short: Option<char>,
    /// Spellings of other tools that mean the same.
    pub alias: &'static [&'static str],
    /// Name of its value; `None` for a switch.
    pub value: Option<&'static str>,
    pub group: &'static str,
    pub help: &'static str,
}

flags! {
    Shell, "command", Some('c'), &[], Some("STRING"), "Command", "Run STRING by /bin/sh -c instead of a command after --";
    Cwd, "cwd", Some('C'), &["working-directory"], Some("DIR"), "Command", "Directory to start in (default: the current one)";
    Timeout, "timeout", None, &[], Some("TIME"), "Command", "End the run after TIME (30s, 10m, 1h30m): SIGTERM, then SIGKILL after the grace";
    Grace, "grace", None, &[], Some("TIME"), "Command", "Time between SIGTERM and SIGKILL at the timeout (default 5s)";
    Keep, "keep", Some('k'), &[], None, "Command", "Run it in a sandbox of the daemon's, which stays: its id is said at the end (ringfence exec, attach, remove)";
    Pty, "pty", None, &[], Some("auto|always|never"), "Command", "Give the command a terminal of its own (default: when stdin and stdout are terminals)";

    Settings, "settings", Some('s'), &["config"], Some("FILE"), "Policy", "Policy file: ringfence.toml, .jsonc, fence.json or greywall.json";
    Profile, "profile", Some('t'), &["template"], Some("NAME"), "Policy", "Built-in profile; repeat to layer (`ringfence policy profiles` lists them)";
    NoConfig, "no-config", None, &[], None, "Policy", "Do not look for policy files; only flags and built-in profiles";
    Lift, "lift", None, &[], Some("ID"), "Policy", "Remove a built-in rule by its id (`ringfence policy show` lists them); repeatable";
    AcceptMissing, "accept-missing", None, &[], Some("NAME,..."), "Policy", "Run although these protections cannot be had on this host";

    Workspace, "workspace", Some('w'), &[], Some("DIR"), "Files", "The directory to work in, writable (default: the current one)";
    AllowRead, "allow-read", Some('r'), &["expose-host-path", "allow-read-path"], Some("PATH"), "Files", "Let the command read PATH; repeatable";
    AllowWrite, "allow-write", None, &["expose-host-path-rw", "allow-path"], Some("PATH"), "Files", "Let the command read and write PATH; repeatable";
    DenyRead, "deny-read", None, &["deny"], Some("PATH"), "Files", "Hide PATH (a path or a pattern such as **/*.key); repeatable";
    DenyWrite, "deny-write", None, &["protect"], Some("PATH"), "Files", "Keep PATH from being changed; repeatable";
    Codebase, "codebase", None, &[], Some("NAME[:DIR]"), "Files", "Work in a codebase instead of a directory: its tree is seen at /workspace (or DIR), what is written goes to a layer (default: auto)";
    Layer, "layer", None, &[], Some("NAME|auto"), "Files", "Keep what the command writes in a layer; the real files stay as they are (ringfence diff, apply, discard)";
    Checkpoint, "checkpoint", None, &[], None, "Files", "With --layer: seal what this run changes, so that it can be undone by itself";
    LayerQuota, "layer-quota", None, &[], Some("SIZE"), "Files", "With --layer: end the run when the layer holds more than SIZE (2g)";
    LayerInodes, "layer-inodes", None, &[], Some("N"), "Files", "With --layer: end the run when the layer holds more than N files and directories (100k)";
    Exact, "exact", None, &[], None, "Files", "Decide every operation in the workspace by its path, also for names that appear later (FUSE: exact, slower on small files)";
    ShareCache, "share-cache", None, &[], Some("TOOL|all"), "Files", "Let the command write a tool's real cache (npm, pip, cargo, go, ...) instead of a private layer over it; repeatable";
    Device, "device", None, &[], Some("NODE"), "Files", "Let the command use a device node; repeatable";

    Env, "env", Some('e'), &[], Some("NAME[=VALUE]"), "Environment", "Set a variable, or pass the caller's by name; repeatable";
    DenyEnv, "deny-env", None, &[], Some("NAME"), "Environment", "Do not pass a variable (name or PREFIX_*); repeatable";

    Network, "network", None, &["net"], Some("none|filtered|host"), "Network", "none: private loopback only (default); filtered: the hosts that are allowed; host: the host's network";
    AllowHost, "allow-host", None, &["allow-domain", "allow-net"], Some("HOST[:PORTS]"), "Network", "Let the command reach a host: example.com, *.example.com, 192.0.2.0/24, a group such as npm, localhost:PORT; repeatable";
    DenyHost, "deny-host", None, &["deny-domain"], Some("HOST[:PORTS]"), "Network", "Refuse a host whatever allows it; repeatable";
    Inspect, "inspect", None, &[], Some("HOST"), "Network", "End TLS to an allowed host outside, so that requests are judged and recorded; repeatable (rules and secrets: policy file)";
    UpstreamProxy, "upstream-proxy", None, &[], Some("URL"), "Network", "Send what is allowed through a proxy outside: http://[user:password@]host[:port]";
    Port, "port", Some('p'), &["publish"], Some("PORT"), "Network", "Expose a port of the sandbox on the host's loopback: PORT, ADDR:PORT or HOST:SANDBOX; repeatable";
    SshAgent, "ssh-agent", None, &[], Some("KEY"), "Network", "Let the command log in with this key of your ssh agent (SHA256:..., its comment, a .pub file, or *); repeatable";

    Memory, "memory", None, &[], Some("SIZE"), "Limits", "Memory of the whole sandbox (512m, 2g)";
    Cpu, "cpu", None, &["cpus"], Some("N"), "Limits", "CPUs of the whole sandbox (1.5)";
    Pids, "pids", None, &["max-processes"], Some("N"), "Limits", "Processes and threads of the whole sandbox";
    FileSize, "file-size", None, &[], Some("SIZE"), "Limits", "Largest file that can be written";
    OpenFiles, "open-files", None, &[], Some("N"), "Limits", "Open files per process";

    Explain, "explain", None, &["dry-run"], None, "Report", "Print the plan and run nothing";
    Json, "json", None, &[], None, "Report", "With --explain: as JSON";
    Status, "status", None, &[], Some("FILE|-"), "Report", "Write what is enforced, as JSON (- is stdout)";
    Log, "log", None, &["event-log", "fence-log-file"], Some("FILE"), "Report", "Append events as JSON lines";
    TraceStartup, "trace-startup", None, &[], Some("FILE"), "Report", "Write when each step of the start was over, as JSON (`bench trace` draws it)";
    Debug, "debug", Some('d'), &[], None, "Report", "Say on stderr what is set up, and what was withheld";
    Monitor, "monitor", Some('m'), &[], None, "Report", "Say on stderr what was refused or moved aside";
}

/// Why the cheap parser gave up; clap then words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    Unknown(OsString),
    NoValue(&'static str),
    UnexpectedValue(&'static str),
    /// `-h`, `--help`, `-V`, `--version`, ...: for clap.
    ForClap,
}

/// Parses the arguments of `run` (without the program name and the verb). Flags end at `--` or at the
/// first word that is not one.
pub fn parse(args: &[OsString]) -> Result<Typed, Problem> {
    let mut typed = Typed::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            typed.separator = true;
            typed.command = rest.cloned().collect();
            return Ok(typed);
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|b| *b == b'=') {
                Some(at) => (&long[..at], Some(&long[at + 1..])),
                None => (long, None),
            };
            let flag = by_long(name).ok_or_else(|| unknown(arg))?;
            take(flag, value, &mut rest, &mut typed)?;
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            let mut cluster = &bytes[1..];
            while let Some((&short, after)) = cluster.split_first() {
                let flag = FLAGS
                    .iter()
                    .find(|f| f.short.is_some_and(|s| s as u32 == u32::from(short)))
                    .ok_or_else(|| unknown(arg))?;
                if flag.value.is_some() {
                    let value = after.strip_prefix(b"=").unwrap_or(after);
                    let value = (!after.is_empty()).then_some(value);
                    take(flag, value, &mut rest, &mut typed)?;
                    break;
                }
                typed.flags.push((flag.id, OsString::new()));
                cluster = after;
            }
        } else {
            typed.command = std::iter::once(arg.clone()).chain(rest.cloned()).collect();
            return Ok(typed);
        }
    }
    Ok(typed)
}

fn by_long(name: &[u8]) -> Option<&'static Flag> {
    FLAGS.iter().find(|f| f.long.as_bytes() == name || f.alias.iter().any(|a| a.as_bytes() == name))
}

fn unknown(arg: &OsStr) -> Problem {
    match arg.as_bytes() {
        b"-h" | b"--help" | b"-V" | b"-v" | b"--version" => Problem::ForClap,
        _ => Problem::Unknown(arg.to_owned()),
    }
}

fn take<'a>(
    flag: &'static Flag,
    value: Option<&[u8]>,
    rest: &mut impl Iterator<Item = &'a OsString>,
    typed: &mut Typed,
) -> Result<(), Problem> {
    let value = match (flag.value, value) {
        (None, None) => OsString::new(),
        (None, Some(_)) => return Err(Problem::UnexpectedValue(flag.long)),
        (Some(_), Some(v)) => OsString::from_vec(v.to_vec()),
        (Some(_), None) => rest.next().cloned().ok_or(Problem::NoValue(flag.long))?,
    };
    typed.flags.push((flag.id, value));
    Ok(())
}

/// The same flags for clap, and the command after them.
pub fn clap_args() -> Vec<Arg> {
    let mut args = clap_flags();
    args.push(
        Arg::new("cmd")
            .value_name("COMMAND")
            .help("The command and its arguments, after --")
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true)
            .value_parser(clap::value_parser!(OsString)),
    );
    args
}

/// The same flags for clap.
pub fn clap_flags() -> Vec<Arg> {
    FLAGS
        .iter()
        .map(|f| {
            let mut arg = Arg::new(f.long).long(f.long).help(f.help).help_heading(f.group);
            if let Some(s) = f.short {
                arg = arg.short(s);
            }
            arg = arg.aliases(f.alias.iter().copied());
            match f.value {
                Some(v) => arg
                    .value_name(v)
                    .action(ArgAction::Append)
                    .value_parser(clap::value_parser!(OsString))
                    .allow_hyphen_values(true),
                // Said twice is said.
                None => arg.action(ArgAction::SetTrue).overrides_with(f.long),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(s: &str) -> Vec<OsString> {
        s.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn fence_command_lines_parse_as_typed() {
        let t =
            parse(&words("-d -m -p 3000 -s fence.json -t code -- npm test -- --watch")).unwrap();
        assert_eq!(t.command, words("npm test -- --watch"));
        assert!(t.has(Id::Debug) && t.has(Id::Monitor));
        assert_eq!(t.last(Id::Port), Some(OsStr::new("3000")));
        assert_eq!(t.last(Id::Settings), Some(OsStr::new("fence.json")));
        assert_eq!(t.last(Id::Profile), Some(OsStr::new("code")));
    }

    #[test]
    fn clusters_attached_values_and_aliases() {
        let t = parse(&words("-dmtcode --template=strict --allow-path /x npm -d")).unwrap();
        let profiles: Vec<_> = t.all(Id::Profile).collect();
        assert_eq!(profiles, ["code", "strict"]);
        assert_eq!(t.last(Id::AllowWrite), Some(OsStr::new("/x")));
        assert_eq!(t.command, words("npm -d"), "flags end at the first word");
    }

    #[test]
    fn a_flag_of_the_command_is_not_ours() {
        let t = parse(&words("-- --help -s x")).unwrap();
        assert_eq!(t.command, words("--help -s x"));
        assert!(t.flags.is_empty());
    }

    #[test]
    fn problems_are_told_apart() {
        assert_eq!(parse(&words("--nope")), Err(Problem::Unknown("--nope".into())));
        assert_eq!(parse(&words("-s")), Err(Problem::NoValue("settings")));
        assert_eq!(parse(&words("--debug=1")), Err(Problem::UnexpectedValue("debug")));
        assert_eq!(parse(&words("--help")), Err(Problem::ForClap));
    }

    #[test]
    fn the_two_parsers_know_the_same_flags() {
        let command = clap::Command::new("run").args(clap_args());
        for f in FLAGS {
            let arg = command.get_arguments().find(|a| a.get_id() == f.long);
            let arg = arg.unwrap_or_else(|| panic!("{} is not in clap", f.long));
            assert_eq!(arg.get_short(), f.short);
            assert_eq!(arg.get_action().takes_values(), f.value.is_some());
        }
        command.debug_assert();
    }
}
