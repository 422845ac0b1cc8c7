//! What is run: starts, interpreters, files, real tools.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::place::{PATH, Place};

/// A command and where it is run.
#[derive(Clone, Debug)]
pub struct Work {
    pub name: String,
    pub title: String,
    pub argv: Vec<OsString>,
    /// Below the workspace.
    pub dir: PathBuf,
    pub env: Vec<(OsString, OsString)>,
    /// What ringfence has to be told besides.
    pub flags: Vec<String>,
}

fn work(name: &str, title: &str, argv: &[&str]) -> Work {
    let argv = argv.iter().map(OsString::from).collect();
    let (name, title) = (name.into(), title.into());
    Work { name, title, argv, dir: "".into(), env: Vec::new(), flags: Vec::new() }
}

/// Where a program lies that everybody has.
pub fn has(program: &str) -> bool {
    std::env::split_paths(PATH).any(|dir| dir.join(program).is_file())
}

/// All work that there may be.
pub const NAMES: [&str; 8] = ["true", "echo", "python", "node", "create", "rg", "git", "cargo"];

/// Files of the tree that is searched and looked at by git.
const FILES: usize = 2000;

/// Whoever may not make them fails, and is not quick.
const CREATE: &str =
    "set -e; i=0; while [ $i -lt 1000 ]; do echo $i >f$i; i=$((i+1)); done; rm -f f*";

/// All work that this machine has the programs for; quick, only what starts.
pub fn all(place: &Place, quick: bool) -> Result<Vec<Work>, String> {
    let mut all =
        vec![work("true", "true", &["true"]), work("echo", "echo", &["/bin/echo", "hello"])];
    if has("python3") {
        all.push(work("python", "python3 -c pass", &["python3", "-c", "pass"]));
    }
    if quick {
        return Ok(all);
    }
    if has("node") {
        all.push(work("node", "node -e 0", &["node", "-e", "0"]));
    }
    all.push(Work {
        dir: "create".into(),
        ..work("create", "create 1,000 files", &["sh", "-c", CREATE])
    });
    let problem = |e: std::io::Error| format!("{}: {e}", place.workspace().display());
    std::fs::create_dir(place.workspace().join("create")).map_err(problem)?;
    tree(&place.workspace().join("tree")).map_err(problem)?;
    if has("rg") {
        let search = work("rg", "rg in 2,000 files", &["rg", "-c", "needle", "."]);
        all.push(Work { dir: "tree".into(), ..search });
    }
    if has("git") && repository(place) {
        let status = work("git", "git status, 2,000 files", &["git", "status"]);
        all.push(Work { dir: "tree".into(), ..status });
    }
    if let Some(check) = cargo(place) {
        all.push(check);
    }
    Ok(all)
}

fn tree(root: &Path) -> std::io::Result<()> {
    for i in 0..FILES {
        let dir = root.join(format!("d{}", i / 50));
        if i % 50 == 0 {
            std::fs::create_dir_all(&dir)?;
        }
        let word = if i == 7 { "needle" } else { "hay" };
        std::fs::write(dir.join(format!("f{i}.txt")), format!("{word}\n").repeat(100))?;
    }
    Ok(())
}

fn git(place: &Place, args: &[&str]) -> bool {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=b", "-c", "user.email=b@example.com"]).args(args);
    command.current_dir(place.workspace().join("tree")).env_clear().envs(place.env());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

fn repository(place: &Place) -> bool {
    git(place, &["init", "-q"])
        && git(place, &["add", "."])
        && git(place, &["commit", "-qm", "all"])
}

/// `cargo check` of a small project by the toolchain itself, since what stands before it (rustup) is
/// somebody's home.
fn cargo(place: &Place) -> Option<Work> {
    let found = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(found.stdout).ok()?.trim().to_owned();
    let bin = Path::new(&sysroot).join("bin");
    if !bin.join("cargo").is_file() {
        return None;
    }
    let project = place.workspace().join("project");
    std::fs::create_dir_all(project.join("src")).ok()?;
    let manifest = "[package]\nname = \"small\"\nversion = \"0.0.0\"\nedition = \"2021\"\n";
    std::fs::write(project.join("Cargo.toml"), manifest).ok()?;
    let function =
        |i| format!("pub fn f{i}(a: &[u64]) -> u64 {{ a.iter().map(|x| x ^ {i}).sum() }}\n");
    let source: Vec<String> = (0..300).map(function).collect();
    std::fs::write(project.join("src/lib.rs"), source.concat()).ok()?;
    let program = bin.join("cargo").to_string_lossy().into_owned();
    // What was checked before goes first, by the command itself: a layer has its own.
    let again = "rm -rf target && exec \"$0\" check -q --offline";
    let mut check = work("cargo", "cargo check", &["sh", "-c", again, &program]);
    check.dir = "project".into();
    check.env = vec![
        ("PATH".into(), format!("{}:{PATH}", bin.display()).into()),
        ("CARGO_HOME".into(), project.join("home").into()),
    ];
    check.flags = vec!["--allow-read".into(), sysroot];
    Some(check)
}
