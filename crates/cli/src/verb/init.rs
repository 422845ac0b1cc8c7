//! `ringfence init`: a commented policy to start from.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::io::Write;

use ringfence_policy::{profiles, search};

use crate::output::{self, printable};
use crate::{help, trust};

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("init") else { return output::fail("not init") };
    let profile = m.get_one::<String>("profile").map_or(profiles::DEFAULT, String::as_str);
    if profiles::fragment(profile).is_none() {
        return output::fail(format_args!(
            "unknown profile `{}`; known profiles: {}",
            printable(profile),
            profiles::names().join(", ")
        ));
    }
    let text = starter(profile);
    if m.get_flag("print") {
        return output::print(&text);
    }
    write(&text).unwrap_or_else(output::fail)
}

fn write(text: &str) -> Result<ExitCode, String> {
    let here = std::env::current_dir().map_err(|e| format!("current directory: {e}"))?;
    for name in search::PROJECT_NAMES {
        if std::fs::symlink_metadata(here.join(name)).is_ok() {
            return Err(format!(
                "{} is there already; it is left as it is (`ringfence init --print` shows the starter)",
                printable(&here.join(name))
            ));
        }
    }
    let path = here.join("ringfence.toml");
    // Never through a symlink, never over what appeared meanwhile.
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| format!("cannot write {}: {e}", printable(&path)))?;
    let recorded = trust::Store::open().and_then(|mut store| store.record(&path, text.as_bytes()));
    let shown = printable(&path);
    let second = match recorded {
        Ok(()) => {
            "recorded as trusted, since you just made it; after a change run `ringfence trust`"
                .to_owned()
        }
        // As it is it only narrows, so it applies untrusted too.
        Err(e) => format!(
            "could not be recorded as trusted: {e}; run `ringfence trust` before it may allow more than the default"
        ),
    };
    Ok(output::print(&format!(
        "wrote {shown}\n{second}\n`ringfence policy show` prints what it amounts to\n"
    )))
}

/// The starter. What it says itself is only which profile it builds upon; each example is a line
/// that works when its `# ` is taken away.
fn starter(profile: &str) -> String {
    STARTER.replace("{profile}", profile)
}

const STARTER: &str = r#"# What commands run by `ringfence` in this directory may do. Everything here is optional.
# `ringfence policy explain PATH|HOST` says what is decided and by which line, `ringfence policy check`
# finds mistakes, `ringfence policy profiles` lists profiles and built-in rules.
# This file is obeyed only as far as it narrows, until `ringfence trust` has recorded its content.

extends = "{profile}"

# Built-in rules to remove, by id, and protections that may be missing on this host.
# lift = ["guard.editors"]
# accept_missing = ["cgroup"]

[files]
# Relative to the workspace, `~/` is home, `/` the host. A deny wins over an allow unless the allow is
# more specific.
# write = ["~/.cache/my-build"]
# read = ["~/.config/my-tool"]
# deny = ["**/*.secret", "customers/"]
# protect = ["Makefile", "deploy/"]
# tmp_size = "1g"

[network]
# "none": a loopback of its own. "filtered": what `allow` lists. "host": the host's network, unfiltered.
# Groups (`ringfence policy groups`), names, `*.example.com` for what lies below, addresses, ranges,
# `localhost:PORT` for a port of the host; on any port or on those named. A deny wins.
# mode = "filtered"
# allow = ["npm", "api.example.com:443", "*.cdn.example.com", "10.0.0.0/8:5432", "localhost:3000"]
# deny = ["telemetry.example.com"]

[environment]
# Names or PREFIX_*; secrets pass only by their exact name.
# pass = ["CI", "MY_TOOL_*"]
# deny = ["AWS_*"]
# set = { NODE_ENV = "test" }

[limits]
# memory = "2g"
# cpu = 1.5
# pids = 512
# timeout = "10m"

[processes]
# ptrace = true
# nested_namespaces = false
"#;

#[cfg(test)]
mod tests {
    use ringfence_policy::Fragment;

    use super::*;

    #[test]
    fn the_starter_parses_and_so_do_its_examples() {
        for profile in profiles::all() {
            let text = starter(profile.name);
            Fragment::parse("ringfence.toml", text.as_bytes()).unwrap();
        }
        let uncommented: String = starter("workspace")
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let all = Fragment::parse("ringfence.toml", uncommented.as_bytes()).unwrap();
        assert!(!all.files.protect.is_empty() && all.processes.ptrace == Some(true));
    }

    #[test]
    fn the_starter_only_narrows() {
        let fragment = Fragment::parse("ringfence.toml", starter("workspace").as_bytes()).unwrap();
        let resolved =
            ringfence_policy::resolve(fragment, None, &ringfence_policy::NoFiles).unwrap();
        resolved.narrowing_over(&profiles::workspace_fragment()).unwrap();
    }
}
