//! What machine this is, and which binary.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::model::{Machine, Profile, Tool};

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn after(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.trim_start_matches([' ', '\t', ':', '=']).trim_matches('"').trim().to_owned())
}

pub fn machine() -> Machine {
    let info = read("/proc/cpuinfo");
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = after(&info, "model name").unwrap_or_else(|| "unknown".into());
    let memory = after(&read("/proc/meminfo"), "MemTotal")
        .and_then(|t| t.split_whitespace().next()?.parse::<u64>().ok());
    let kernel = read("/proc/sys/kernel/osrelease");
    // Names neither the host nor its owner: the machine's own id is hashed with what it is made of.
    let what = format!("{}|{processor}|{processors}", read("/etc/machine-id"));
    Machine {
        id: hex(&Sha256::digest(what.as_bytes()))[..16].into(),
        system: after(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(|| "linux".into()),
        kernel: kernel.split('-').next().unwrap_or_default().into(),
        architecture: std::env::consts::ARCH.into(),
        processor,
        processors,
        memory_mib: memory.unwrap_or_default() / 1024,
        user: if rustix::process::geteuid().is_root() { "root" } else { "user" }.into(),
        load: read("/proc/loadavg"),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// The hidden verb by which a binary says how it was built.
pub const ABOUT: &str = "about";

/// What this very program is, as JSON, for [`tool`] of another.
pub fn about() -> String {
    let profile = if cfg!(debug_assertions) { Profile::Debug } else { Profile::Release };
    serde_json::json!({ "version": env!("CARGO_PKG_VERSION"), "profile": profile }).to_string()
}

/// What a binary says of itself, and what its bytes are.
pub fn tool(binary: &Path, commit: Option<String>) -> Result<Tool, String> {
    let bytes = std::fs::read(binary).map_err(|e| format!("{}: {}", binary.display(), e.kind()))?;
    let ask = |args: &[&str]| {
        let out = Command::new(binary).args(args).stdin(Stdio::null()).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let said =
        ask(&["bench", ABOUT]).and_then(|t| serde_json::from_str::<serde_json::Value>(&t).ok());
    let profile = said.as_ref().and_then(|s| serde_json::from_value(s["profile"].clone()).ok());
    let version = said.as_ref().and_then(|s| s["version"].as_str().map(str::to_owned));
    let version =
        version.or_else(|| ask(&["--version"])?.split(' ').next_back().map(str::to_owned));
    Ok(Tool {
        version: version.ok_or_else(|| format!("{}: is not ringfence", binary.display()))?,
        commit,
        sha256: hex(&Sha256::digest(&bytes)),
        profile: profile.unwrap_or_default(),
    })
}

/// Now, UTC, to the second: `2026-11-22T04:05:06Z`.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_told_to_the_second() {
        assert_eq!(now().len(), "2026-11-22T04:05:06Z".len());
    }

    #[test]
    fn a_machine_is_the_same_twice() {
        let machine = machine();
        assert_eq!(machine.id, super::machine().id);
        assert!(machine.processors > 0 && machine.memory_mib > 0);
    }
}
