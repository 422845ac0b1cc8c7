//! `ringfence policy`: show, check and explain what a run would be allowed.

mod check;
mod explain;
mod reload;
mod show;

pub use explain::clean;

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::ArgMatches;
use ringfence_policy::{builtin_rules, net, profiles};
use ringfence_sandbox::prepare::Request;
use serde_json::json;

use crate::flags::{Id, Typed};
use crate::layers::{self, LayerError, Layered};
use crate::{help, output};

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    match matches.subcommand_matches("policy").and_then(ArgMatches::subcommand) {
        Some(("show", m)) => show::main(m),
        Some(("check", m)) => check::main(m),
        Some(("explain", m)) => explain::main(m),
        Some(("reload", m)) => reload::main(m),
        Some(("schema", _)) => output::print_json(&ringfence_policy::schema()),
        Some(("profiles", m)) => list(m.get_flag("json")),
        Some(("groups", m)) => groups(m.get_flag("json")),
        _ => output::fail("no such part of policy"),
    }
}

/// `-s`, `-t` and `-w` as `run` would have got them.
pub fn typed(m: &ArgMatches) -> Typed {
    let mut typed = Typed::default();
    for (name, id) in
        [("settings", Id::Settings), ("profile", Id::Profile), ("workspace", Id::Workspace)]
    {
        let values = m.get_many::<OsString>(name).into_iter().flatten();
        typed.flags.extend(values.map(|v| (id, v.clone())));
    }
    typed
}

/// The request that `run` would make of the same flags.
pub fn request(typed: &Typed) -> Request {
    Request { workspace: typed.last(Id::Workspace).map(PathBuf::from), ..Request::current() }
}

/// The policy that `run` would use, its own files guarded.
pub fn layered(typed: &Typed) -> Result<Layered, LayerError> {
    let mut layered = layers::layered(typed)?;
    super::run::protect_policy_files(&mut layered, &request(typed)).map_err(LayerError::Flag)?;
    Ok(layered)
}

pub fn refused(e: &LayerError) -> ExitCode {
    output::say(e);
    ExitCode::from(e.exit_code())
}

/// `policy groups`.
fn groups(as_json: bool) -> ExitCode {
    if as_json {
        let groups: Vec<_> = net::GROUPS
            .iter()
            .map(
                |g| json!({ "name": g.name, "about": g.about, "ports": g.ports, "hosts": g.hosts }),
            )
            .collect();
        return output::print_json(&json!({ "groups": groups }));
    }
    let mut text = String::from("Groups of hosts (--allow-host NAME, or network.allow):\n");
    for g in net::GROUPS {
        let ports: Vec<String> = g.ports.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  {:<12} {} (ports {})", g.name, g.about, ports.join(", "));
        for host in g.hosts {
            let _ = writeln!(text, "  {:<12}   {host}", "");
        }
    }
    output::print(&text)
}

/// `policy profiles`.
fn list(as_json: bool) -> ExitCode {
    if as_json {
        let profiles: Vec<_> = profiles::all()
            .iter()
            .map(|p| json!({ "name": p.name, "about": p.about, "default": p.name == profiles::DEFAULT }))
            .collect();
        let rules: Vec<_> = builtin_rules()
            .iter()
            .map(|r| {
                json!({
                    "id": r.id,
                    "reason": r.reason,
                    "effect": r.effect,
                    "permission": r.permission,
                    "patterns": r.patterns,
                })
            })
            .collect();
        return output::print_json(&json!({ "profiles": profiles, "rules": rules }));
    }
    let mut text = String::from("Profiles (-t NAME, or extends = \"NAME\"):\n");
    for p in profiles::all() {
        let _ = writeln!(text, "  {:<14} {}", p.name, p.about);
    }
    text.push_str(
        "\nBuilt-in rules (--lift ID removes one, or a whole group: secret, guard, identity):\n",
    );
    for r in builtin_rules() {
        let _ = writeln!(text, "  {:<18} {} {}: {}", r.id, r.effect, r.permission, r.reason);
    }
    output::print(&text)
}
