//! `ringfence trust`: the user has read a policy file, and it may be obeyed as it is now.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ringfence_policy::{PolicyError, import, profiles, resolve};
use serde_json::json;

use crate::flags::Typed;
use crate::layers::{self, Files};
use crate::output::{self, printable};
use crate::trust::{Store, key_path};
use crate::{exit, help};

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("trust") else { return output::fail("not trust") };
    let as_json = m.get_flag("json");
    let file = m.get_one::<OsString>("file").map(PathBuf::from);
    let done = if m.get_flag("list") {
        list(as_json)
    } else if m.get_flag("revoke") {
        revoke(file, as_json)
    } else {
        record(file, as_json)
    };
    done.unwrap_or_else(output::fail)
}

fn store() -> Result<Store, String> {
    Store::open().map_err(|e| format!("cannot read the trust store: {e}"))
}

/// Inside a sandbox the user's store is neither visible nor writable, whatever the environment says;
/// the variable is for a message that tells so.
fn refuse_inside() -> Result<(), String> {
    if std::env::var_os("RINGFENCE").is_some_and(|v| v == "1") {
        return Err("refused inside a sandbox: trust is given by the user, outside".into());
    }
    Ok(())
}

fn list(as_json: bool) -> Result<ExitCode, String> {
    let store = store()?;
    let state = |path: &Path| match layers::read(path) {
        Ok(bytes) if store.trusts(path, &bytes) => "trusted",
        Ok(_) => "changed since",
        Err(_) => "not there",
    };
    if as_json {
        let all: Vec<_> = store
            .entries()
            .map(|(path, hash)| json!({ "file": path.to_string_lossy(), "hash": hash, "state": state(path) }))
            .collect();
        return Ok(output::print_json(&all));
    }
    let mut text = String::new();
    for (path, _) in store.entries() {
        let _ = writeln!(text, "{:<14} {}", state(path), printable(path));
    }
    Ok(output::print(&text))
}

/// The file that was named, else the one that `run` finds from here.
fn which(file: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(file) = file {
        return Ok(file);
    }
    match layers::find_project(&Typed::default()).map_err(|e| e.to_string())? {
        Some((path, _)) => Ok(path),
        None => {
            Err("no ringfence.toml here or above; name a file, or make one with `ringfence init`"
                .into())
        }
    }
}

fn revoke(file: Option<PathBuf>, as_json: bool) -> Result<ExitCode, String> {
    refuse_inside()?;
    // A file that is gone can still be taken from the list.
    let path = key_path(&which(file)?);
    let was = store()?.revoke(&path).map_err(|e| format!("cannot write the trust store: {e}"))?;
    if as_json {
        return Ok(output::print_json(&json!({ "file": path.to_string_lossy(), "revoked": was })));
    }
    let shown = printable(&path);
    Ok(output::print(&if was {
        format!("{shown} is no longer trusted\n")
    } else {
        format!("{shown} was not trusted\n")
    }))
}

fn record(file: Option<PathBuf>, as_json: bool) -> Result<ExitCode, String> {
    refuse_inside()?;
    let file = which(file)?;
    let path = key_path(&file);
    // Read once: what is shown is what is recorded, whatever happens to the file meanwhile.
    let bytes = layers::read(&path).map_err(|e| e.to_string())?;
    let fragment = import::load(&path.display().to_string(), &bytes).map_err(|e| e.to_string())?;
    let loader = Files::keeping();
    let resolved =
        resolve(fragment, Some(&path), &loader).map_err(|e: PolicyError| e.to_string())?;
    let wants = resolved.narrowing_over(&profiles::workspace_fragment()).err().unwrap_or_default();
    let extended = loader.kept();
    let mut text = String::new();
    if wants.is_empty() {
        let _ = writeln!(text, "{} only narrows what the default allows", printable(&path));
    } else {
        let _ = writeln!(text, "{} asks for more than the default allows:", printable(&path));
        for want in &wants {
            let _ = writeln!(text, "  {}", printable(want));
        }
    }
    // Said before it is done.
    if !as_json {
        let code = output::print(&text);
        if code != ExitCode::SUCCESS {
            return Ok(ExitCode::from(exit::FAILED));
        }
    }
    let mut store = store()?;
    let mut files = vec![(path, bytes)];
    files.extend(extended.into_iter().map(|(p, b)| (key_path(&p), b)));
    for (path, bytes) in &files {
        store.record(path, bytes).map_err(|e| format!("cannot write the trust store: {e}"))?;
    }
    if as_json {
        let names: Vec<_> = files.iter().map(|(p, _)| p.to_string_lossy()).collect();
        return Ok(output::print_json(&json!({ "trusted": names, "wants": wants })));
    }
    let names: Vec<_> = files.iter().map(|(p, _)| printable(p)).collect();
    Ok(output::print(&format!("trusted as it is now: {}\n", names.join(", "))))
}
