//! Other sandboxes, each described by a file of `bench/peers`.
//!
//! An adapter says which programs it needs, how it is asked for its version, and what is put before a
//! command. `{workspace}`, `{dir}` (where in it the command begins), `{home}`, `{place}` (a directory for
//! what it makes) and `{unique}` are replaced; `{command}` is the command's words, after the prefix where
//! it is not named, `{line}` the same as one line for a shell. Shell scripts make and remove what has to be
//! there first: `prepare` once, `each` for every command, which it gets as arguments.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::{model, runner};

/// One file of `bench/peers`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    pub name: String,
    /// Programs that have to be there.
    pub needs: Vec<String>,
    /// Its own program, of `needs`, as `{program}`.
    pub version: Vec<String>,
    pub command: Vec<String>,
    /// How it is installed.
    pub install: String,
    pub licence: String,
    pub source: String,
    /// What of the work it does and does not do.
    pub scope: String,
    #[serde(default)]
    pub root_only: bool,
    #[serde(default)]
    pub user_only: bool,
    #[serde(default)]
    pub prepare: Option<String>,
    #[serde(default)]
    pub each: Option<String>,
    #[serde(default)]
    pub cleanup: Option<String>,
    /// A server of its own, for as long as it is measured; `ready` is asked until it succeeds.
    #[serde(default)]
    pub server: Option<Server>,
    #[serde(default)]
    pub env: Vec<(String, String)>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub command: Vec<String>,
    pub ready: Vec<String>,
}

macro_rules! adapters {
    ($($name:literal),* $(,)?) => {
        /// The adapters as they lie in the source.
        const FILES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../bench/peers/", $name, ".toml")))),*];
    };
}

adapters!(
    "bubblewrap",
    "firejail",
    "unshare",
    "systemd-nspawn",
    "runc",
    "docker",
    "podman",
    "gvisor",
    "srt",
    "nono",
);

/// Every adapter, in the order of the tables.
pub fn all() -> Vec<Adapter> {
    FILES.iter().filter_map(|(_, text)| toml::from_str(text).ok()).collect()
}

/// Where programs are looked for: what the caller has, and where those lie that are not for everybody.
fn search(program: &str, path: &OsStr) -> Option<PathBuf> {
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].into_iter().map(PathBuf::from);
    std::env::split_paths(path).chain(more).map(|dir| dir.join(program)).find(|file| {
        rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
    })
}

/// What is replaced in an adapter's words.
#[derive(Clone, Debug)]
pub struct Room {
    pub workspace: PathBuf,
    pub home: PathBuf,
    pub place: PathBuf,
    pub env: Vec<(OsString, OsString)>,
}

/// A peer that is there, and ready.
#[derive(Debug)]
pub struct Ready {
    pub adapter: Adapter,
    pub version: Option<String>,
    programs: Vec<(String, PathBuf)>,
    server: Option<Child>,
    /// Where the next command begins.
    dir: PathBuf,
    room: Room,
    count: usize,
}

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Adapter {
    /// Looks whether it is there, asks for its version, prepares it.
    pub fn ready(self, room: &Room) -> Result<Ready, Box<(Self, String)>> {
        let root = rustix::process::geteuid().is_root();
        if self.root_only && !root {
            return Err(Box::new((self, "needs root".into())));
        }
        if self.user_only && root {
            return Err(Box::new((self, "does not run as root".into())));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut programs = Vec::new();
        for program in &self.needs {
            let Some(found) = search(program, &path) else {
                let why = format!("no {program}; install it: {}", self.install);
                return Err(Box::new((self, why)));
            };
            programs.push((program.clone(), found));
        }
        let place = room.place.join(&self.name);
        if let Err(e) = std::fs::create_dir_all(&place) {
            return Err(Box::new((self, format!("{}: {}", place.display(), e.kind()))));
        }
        let room = Room { place, ..room.clone() };
        let dir = room.workspace.clone();
        let mut ready =
            Ready { adapter: self, version: None, programs, server: None, dir, room, count: 0 };
        match ready.begin() {
            Ok(()) => Ok(ready),
            Err(why) => {
                let adapter = ready.adapter.clone();
                Err(Box::new((adapter, why)))
            }
        }
    }
}

impl Ready {
    fn begin(&mut self) -> Result<(), String> {
        let version = self.words(&self.adapter.version.clone(), &[]);
        let said = self.run(&version)?;
        self.version = said.lines().map(str::trim).find(|l| !l.is_empty()).map(str::to_owned);
        if let Some(server) = self.adapter.server.clone() {
            self.serve(&server)?;
        }
        if let Some(script) = self.adapter.prepare.clone() {
            self.script(&script, &[])?;
        }
        Ok(())
    }

    fn serve(&mut self, server: &Server) -> Result<(), String> {
        let (start, ask) = (self.words(&server.command, &[]), self.words(&server.ready, &[]));
        let log = self.room.place.join("log");
        let log =
            std::fs::File::create(&log).map_err(|e| format!("{}: {}", log.display(), e.kind()))?;
        // It ends with this process, however that ends.
        let mut command = runner::kept(&start);
        command.stderr(log);
        let child =
            command.spawn().map_err(|e| format!("its server does not start: {}", e.kind()))?;
        let child = self.server.insert(child);
        let end = Instant::now() + PATIENCE;
        loop {
            let mut ask_it = Command::new(&ask[0]);
            ask_it.args(&ask[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if ask_it.status().is_ok_and(|s| s.success()) {
                return Ok(());
            }
            let gone = child.try_wait().ok().flatten();
            if gone.is_some() || Instant::now() > end {
                let text = std::fs::read_to_string(self.room.place.join("log")).unwrap_or_default();
                let last =
                    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it says nothing");
                return Err(format!("its server does not come up: {last}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn words(&self, words: &[String], command: &[OsString]) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        let mut placed = false;
        for word in words {
            if word == "{line}" {
                placed = true;
                all.push(runner::shell_words(command).into());
                continue;
            }
            if word == "{command}" {
                placed = true;
                all.extend(command.iter().cloned());
                continue;
            }
            all.push(self.filled(word).into());
        }
        if !placed {
            all.extend(command.iter().cloned());
        }
        // By where it was found, so that commands may have another path.
        if let Some((_, found)) =
            self.programs.iter().find(|(name, _)| all.first().is_some_and(|w| w == name.as_str()))
        {
            all[0] = found.clone().into();
        }
        all
    }

    fn filled(&self, word: &str) -> String {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        word.replace("{workspace}", &text(&self.room.workspace))
            .replace("{dir}", &text(&self.dir))
            .replace("{home}", &text(&self.room.home))
            .replace("{place}", &text(&self.room.place))
            .replace("{unique}", &format!("rfbench-{}-{}", std::process::id(), self.count))
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let more = self.adapter.env.iter().map(|(k, v)| (k.into(), self.filled(v).into()));
        self.room.env.iter().cloned().chain(more).collect()
    }

    fn run(&self, argv: &[OsString]) -> Result<String, String> {
        let output = Command::new(&argv[0])
            .args(&argv[1..])
            .current_dir(&self.room.workspace)
            .env_clear()
            .envs(self.environment())
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("{}: {}", argv[0].to_string_lossy(), e.kind()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            return Ok(if out.trim().is_empty() { err } else { out });
        }
        let said = text(&output.stderr);
        let said = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().to_owned();
        Err(format!("does not run here ({}): {}", output.status, said.trim()))
    }

    fn script(&self, script: &str, command: &[OsString]) -> Result<String, String> {
        let mut argv: Vec<OsString> =
            vec!["/bin/sh".into(), "-euc".into(), self.filled(script).into(), "sh".into()];
        argv.extend(command.iter().cloned());
        self.run(&argv)
    }

    /// The command line that runs a command in it, in a directory of the workspace.
    pub fn wrap(&mut self, command: &[OsString], dir: &Path) -> Result<Vec<OsString>, String> {
        self.count += 1;
        self.dir = dir.into();
        if let Some(script) = &self.adapter.each {
            self.script(script, command)?;
            return Ok(self.words(&self.adapter.command, &[]));
        }
        Ok(self.words(&self.adapter.command, command))
    }

    pub fn env(&self) -> Vec<(OsString, OsString)> {
        self.environment()
    }

    pub fn described(&self) -> model::Peer {
        model::Peer {
            name: self.adapter.name.clone(),
            version: self.version.clone(),
            absent: None,
            scope: self.adapter.scope.clone(),
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(script) = &self.adapter.cleanup {
            let _ = self.script(script, &[]);
        }
        if let Some(server) = &mut self.server {
            drop(server.stdin.take());
            let end = Instant::now() + Duration::from_secs(10);
            while Instant::now() < end && matches!(server.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// An adapter that is not one of ours.
fn other(file: &Path) -> Result<Adapter, String> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| format!("{shown}: {}", e.kind()))?;
    toml::from_str(&text).map_err(|e| format!("{shown}: {}", e.message()))
}

/// Those wanted that are there, and all of them described. `None` wants all, an empty list none; those of
/// files are wanted in any case.
pub fn gather(
    wanted: Option<&[String]>,
    files: &[PathBuf],
    room: &Room,
) -> Result<(Vec<Ready>, Vec<model::Peer>), String> {
    let all = all();
    for name in wanted.unwrap_or_default() {
        if !all.iter().any(|a| a.name == *name) {
            let names: Vec<&str> = all.iter().map(|a| a.name.as_str()).collect();
            return Err(format!("--peers: no adapter {name} (there are {})", names.join(", ")));
        }
    }
    let (mut found, mut described) = (Vec::new(), Vec::new());
    let chosen = all.into_iter().filter(|a| wanted.is_none_or(|w| w.contains(&a.name)));
    let others = files.iter().map(|file| other(file)).collect::<Result<Vec<_>, _>>()?;
    for adapter in chosen.chain(others) {
        match adapter.ready(room) {
            Ok(ready) => {
                described.push(ready.described());
                found.push(ready);
            }
            Err(absent) => described.push({
                let (adapter, why) = *absent;
                model::Peer {
                    name: adapter.name,
                    version: None,
                    absent: Some(why),
                    scope: adapter.scope,
                }
            }),
        }
    }
    Ok((found, described))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_adapter_can_be_read_and_says_what_it_must() {
        for (name, text) in FILES {
            let adapter: Adapter = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(adapter.name, *name);
            assert!(!adapter.command.is_empty() && !adapter.version.is_empty(), "{name}");
            assert!(adapter.source.starts_with("https://"), "{name}");
            for text in [&adapter.install, &adapter.licence, &adapter.scope] {
                assert!(!text.is_empty(), "{name}");
            }
            let first = &adapter.command[0];
            assert!(adapter.needs.contains(first), "{name}: {first} is not in needs");
        }
    }

    #[test]
    fn every_file_of_the_directory_is_an_adapter() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/peers");
        let mut there: Vec<String> = std::fs::read_dir(dir)
            .unwrap_or_else(|e| panic!("{e}"))
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
            .collect();
        let mut known: Vec<String> = all().into_iter().map(|a| a.name).collect();
        there.sort();
        known.sort();
        assert_eq!(there, known);
    }
}
