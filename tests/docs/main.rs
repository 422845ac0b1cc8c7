//! The documents say what is so: paths and tests that they name exist, commands that they show run.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every document: its path below the root and its text.
fn documents() -> Vec<(String, String)> {
    let root = root();
    let mut names: Vec<String> = Vec::new();
    for dir in ["", "docs"] {
        for entry in std::fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "md") {
                names.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names
        .into_iter()
        .map(|n| (n.clone(), std::fs::read_to_string(root.join(&n)).unwrap()))
        .collect()
}

/// What stands between single backticks, outside code blocks.
fn quoted(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut all = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            all.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    all
}

const ROOMS: [&str; 6] = ["crates/", "tests/", "docs/", "bench/", ".ci/", ".config/"];

fn names_a_path(word: &str) -> bool {
    ROOMS.iter().any(|room| word.starts_with(room)) && !word.contains([' ', '*', '{', '<'])
}

#[test]
fn every_path_in_the_documents_exists() {
    let root = root();
    let mut missing = Vec::new();
    for (name, text) in documents() {
        for word in quoted(&text).iter().filter(|w| names_a_path(w)) {
            let path = word.split("::").next().unwrap();
            if !root.join(path).exists() {
                missing.push(format!("{name}: `{word}`"));
            }
        }
        let here = root.join(&name);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !here.parent().unwrap().join(target).exists() {
                missing.push(format!("{name}: link to {target}"));
            }
        }
    }
    assert!(missing.is_empty(), "named but not there:\n{}", missing.join("\n"));
}

#[test]
fn every_test_in_the_documents_exists() {
    let root = root();
    let mut missing = Vec::new();
    let mut count = 0;
    for (name, text) in documents() {
        for word in quoted(&text).iter().filter(|w| names_a_path(w) && w.contains("::")) {
            count += 1;
            let (path, test) = word.split_once("::").unwrap();
            let test = test.rsplit("::").next().unwrap();
            let source = std::fs::read_to_string(root.join(path)).unwrap_or_default();
            if !source.contains(&format!("fn {test}(")) {
                missing.push(format!("{name}: `{word}`"));
            }
        }
    }
    assert!(missing.is_empty(), "tests that are named but not there:\n{}", missing.join("\n"));
    assert!(count > 40, "the promises name their tests, yet only {count} were found");
}

#[test]
fn every_promise_names_a_test() {
    let text = std::fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let rows = text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| promise"));
    for row in rows {
        assert!(row.contains(".rs::"), "a promise without a test: {row}");
    }
}

/// Lines of `sh` blocks, continuation lines joined.
fn commands() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, text) in documents() {
        let mut inside = false;
        for line in text.replace("\\\n", " ").lines() {
            if line.starts_with("```") {
                inside = line == "```sh";
            } else if inside && !line.trim().is_empty() && !line.trim_start().starts_with('#') {
                all.push((name.clone(), line.trim().to_owned()));
            }
        }
    }
    all
}

#[test]
fn commands_that_build_are_run_by_ci() {
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    for (name, command) in commands() {
        let command = command.split("  #").next().unwrap().trim();
        let builds = ["cargo ", "bash .ci"].iter().any(|p| command.starts_with(p));
        let known = ci.contains(command) || command == "bash .ci/run";
        assert!(!builds || known, "{name} shows `{command}`, which .ci/run does not run");
    }
}

/// The documents' `ringfence` commands, in a small project. `# exit N` at the end of a line says
/// what is expected when that is not success.
#[test]
fn commands_in_the_documents_run() {
    let place = tempfile::Builder::new().prefix("ringfence-docs").tempdir().unwrap();
    let (project, home, bin) =
        (place.path().join("project"), place.path().join("home"), place.path().join("bin"));
    for dir in [&project, &home, &bin, &place.path().join("out"), &project.join("src")] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_ringfence"), bin.join("ringfence")).unwrap();
    for (name, text) in [
        ("Makefile", "all:\n\t@echo built\ntest:\n\t@echo tested\n"),
        ("test_small.py", "import unittest\nclass T(unittest.TestCase):\n  def test(self): pass\n"),
        ("src/main.c", "/* TODO */ int main(void) { return 0; }\n"),
        (".env", "TOKEN=secret\n"),
    ] {
        std::fs::write(project.join(name), text).unwrap();
    }
    let has_fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let mut wrong = Vec::new();
    let mut ran = 0;
    for (name, command) in commands().into_iter().filter(|(_, c)| c.starts_with("ringfence ")) {
        let expected = command
            .rsplit_once("# exit ")
            .and_then(|(_, code)| code.trim().parse::<i32>().ok())
            .unwrap_or(0);
        ran += 1;
        let output = Command::new("/bin/sh")
            .args(["-c", &command])
            .current_dir(&project)
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()))
            .env("HOME", &home)
            .env("LANG", "C.UTF-8")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(126) && said.contains("/dev/fuse") && !has_fuse {
            println!("skipped: {command}: this user may not open /dev/fuse");
            continue;
        }
        if output.status.code() != Some(expected) {
            wrong.push(format!(
                "{name}: {command}\n  expected exit code {expected}, got {}\n{}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ran >= 8, "the readme teaches by example, yet only {ran} commands were found");
}

/// Rooms whose `unsafe` blocks are reviewed; everywhere else there is none.
const UNSAFE: [&str; 3] = ["crates/sys/", "crates/jail/src/spawn.rs", "crates/jail/src/init.rs"];

#[test]
fn unsafe_code_is_where_the_file_list_says() {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut files = Vec::new();
    for room in ["crates", "bench"] {
        walk(&root.join(room), &mut files);
    }
    let mut wrong = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        if UNSAFE.iter().any(|room| name.starts_with(room)) || name.contains("tests") {
            continue;
        }
        for (i, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let opens = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
            if opens.iter().any(|o| code.contains(o)) {
                wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe code outside its rooms:\n{}", wrong.join("\n"));
}

/// Whatever the interface can do, a person can do at the command line, or it is said that they cannot.
#[test]
fn every_route_has_its_verb_in_the_table() {
    let text = std::fs::read_to_string(root().join("docs/daemon.md")).unwrap();
    let rows: std::collections::HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | ").map(|(route, _)| route))
        .collect();
    let routes = ringfence_api::openapi::routes();
    let missing: Vec<String> = routes
        .map(|(method, path)| format!("{} {path}", method.to_uppercase()))
        .filter(|route| !rows.contains(route.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/daemon.md names no verb for {missing:?}");
}

/// Every class of attack on the daemon has a test that makes it.
#[test]
fn every_attack_on_the_daemon_names_a_test() {
    let text = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let table = text.split("| attack on the daemon |").nth(1).unwrap();
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() >= 25, "{} rows", rows.len());
    for row in rows {
        assert!(row.contains(".rs::"), "an attack without a test: {row}");
    }
}
