//! Clients of other daemons, as their registries have them, unchanged.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::world::{Answer, answer};
use crate::harness::{Place, Ran, has, lasting};

/// What is installed; nothing of it is changed.
const PYTHON: [&str; 6] = [
    "agentkernel-sdk==0.21.0",
    "agentfense==0.2.1",
    "httpx==0.28.1",
    "pytest==8.4.2",
    "grpcio-tools==1.85.1",
    "googleapis-common-protos==1.76.0",
];
const NODE: [&str; 1] = ["agentkernel@0.18.1"];

/// The directory that they are in: one that is named, or one of this test run, which goes with it.
fn installed() -> Option<&'static Path> {
    static DIRECTORY: OnceLock<Option<(Option<std::process::Child>, PathBuf)>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        if let Some(named) = std::env::var_os("RINGFENCE_CLIENTS").filter(|n| !n.is_empty()) {
            return Some((None, PathBuf::from(named)));
        }
        let (broom, directory) = lasting("ringfence-e2e-clients");
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-cache-dir"]);
        pip.args(["--only-binary", ":all:", "--target"]).arg(directory.join("python")).args(PYTHON);
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]);
        npm.arg("--cache").arg(directory.join("npm-cache"));
        npm.arg("--prefix").arg(directory.join("node")).args(NODE);
        for command in [&mut pip, &mut npm] {
            let output = command.stdin(Stdio::null()).output();
            if !output.is_ok_and(|output| output.status.success()) {
                drop(broom);
                return None;
            }
        }
        Some((Some(broom), directory))
    });
    directory.as_ref().map(|(_, directory)| directory.as_path())
}

fn ready(program: &str) -> Option<&'static Path> {
    if !has(program) {
        return None;
    }
    let directory = installed();
    if directory.is_none() {
        println!("skipped: the clients cannot be installed: the registries do not answer here");
    }
    directory
}

/// A script with the Python clients at hand, as the user; `None` where it cannot be run.
pub fn python(place: &Place, script: &str, environment: &[(&str, String)]) -> Option<Ran> {
    let directory = ready("python3")?;
    let mut command = place.command("/usr/bin/python3");
    command.env("PYTHONPATH", directory.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.envs(environment.iter().map(|(k, v)| (k, v)));
    Some(Ran::of(command.args(["-c", script])))
}

/// The same with the clients for Node.
pub fn node(place: &Place, script: &str, environment: &[(&str, String)]) -> Option<Ran> {
    let directory = ready("node")?;
    let module = directory.join("node/node_modules/agentkernel/dist/index.js");
    let script = script.replace("CLIENT", module.to_str().unwrap());
    let mut command = place.command("node");
    command.envs(environment.iter().map(|(k, v)| (k, v)));
    Some(Ran::of(command.args(["--input-type=module", "-e", &script])))
}

/// A request at a dialect's port, by curl.
pub fn ask(place: &Place, port: u16, args: &[&str], path: &str) -> Answer {
    let mut command = place.command("curl");
    answer(command.args(args).arg(format!("http://127.0.0.1:{port}{path}")))
}

pub fn post(place: &Place, port: u16, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    ask(place, port, &["-H", "Content-Type: application/json", "-d", &body], path)
}
