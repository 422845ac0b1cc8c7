//! Nothing stays behind: no file, mount, control group, namespace or process; whatever way it ends.

use std::collections::BTreeSet;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process};

use crate::harness::{Place, Ran, as_each_user, binary, has};

pub mod snapshot;

/// How long the kernel may take to end what was killed, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

/// Waits until there is nothing to complain about.
#[track_caller]
pub fn eventually(mut complaint: impl FnMut() -> Option<String>) {
    let start = Instant::now();
    while let Some(text) = complaint() {
        assert!(start.elapsed() < PATIENCE, "{text}");
        std::thread::sleep(20 * MS);
    }
}

/// Every process: pid and parent.
pub fn processes() -> Vec<(i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let after = &stat[stat.rfind(')')? + 2..];
            let mut fields = after.split(' ');
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            (state != "Z" && state != "X").then_some((pid, parent))
        })
        .collect()
}

/// Processes that name this directory or stand in it. Every process of a run is found: the supervisor
/// and its copy, init, name it, and the command starts in the workspace.
fn ours(place: &Path) -> Vec<String> {
    processes()
        .into_iter()
        .filter_map(|(pid, _)| {
            let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).ok();
            let mine = link("cwd").is_some_and(|c| c.starts_with(place));
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let place = place.to_str().unwrap();
            let named = line.contains(place);
            (mine || named).then(|| format!("{pid}: {line}"))
        })
        .collect()
}

/// A variable name that every run of a loop carries on its command line.
const MARK: &str = "ringfence_e2e_residue";

#[track_caller]
pub fn no_process_of(place: &Path) {
    eventually(|| {
        let left = ours(place);
        (!left.is_empty()).then(|| format!("processes are left: {left:#?}"))
    });
}

/// Namespaces that any process is in, whatever kind.
fn namespaces() -> BTreeSet<String> {
    const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let mut all = BTreeSet::new();
    for (pid, _) in processes() {
        for kind in KINDS {
            if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
                all.insert(link.display().to_string());
            }
        }
    }
    all
}

/// Directories of the control group trees that carry our name.
fn control_groups() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_string_lossy().contains("ringfence") {
                    found.insert(entry.path());
                }
                pending.push(entry.path());
            }
        }
    }
    found
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// Names in the host's temporary directories that a run could have made.
fn temporary() -> BTreeSet<PathBuf> {
    ["/tmp", "/var/tmp", "/dev/shm", "/run"]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| {
            // `ringfence-PID-...`; tests and benches have words there.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_prefix("ringfence-")
                .is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect()
}

/// A project and a home with something of every kind in them.
fn lived_in(p: &Place) {
    for (name, text) in [
        ("src/main.rs", "fn main() {}"),
        (".env", "SECRET=1"),
        ("deep/er/server.key", "key"),
        (".vscode/tasks.json", "{}"),
        ("ringfence.toml", ""),
    ] {
        p.write(name, text);
    }
    std::fs::remove_file(p.workspace().join("ringfence.toml")).unwrap();
    for (name, text) in [
        (".ssh/id_ed25519", "secret"),
        (".bashrc", "echo hello"),
        (".config/app/settings", "a=b"),
        (".cargo/bin/tool", "#!/bin/sh\n"),
        (".cargo/credentials.toml", "token"),
        (".cache/thing", "cached"),
        (".gitconfig", "[user]\n\tname = t\n\temail = t@example.com\n"),
    ] {
        p.write(p.home().join(name), text);
    }
    Ran::of(p.command("ln").args(["-s", "src/main.rs", "link"])).ok();
    if has("git") {
        p.bare("git init -q && git add -Af . && git commit -qm one && rm -rf .git/hooks").ok();
    }
}

#[test]
fn a_project_and_home_are_byte_identical_after_a_run() {
    as_each_user(|p| {
        lived_in(p);
        let before = (snapshot::of(&p.workspace()), snapshot::of(&p.home()));
        let groups = control_groups();
        let temporary_before = temporary();
        // Looks at everything, tries to write everything, makes what stays private.
        let script = "find . ~ -type f -exec cat {} + >/dev/null 2>&1; ls -laR . ~ /dev /tmp >/dev/null 2>&1; \
             for f in ~/.bashrc ~/.gitconfig ~/.cargo/bin/tool .env .vscode/tasks.json deep/er/server.key; do \
               echo x >> $f; rm -rf $f; mv $f $f.away; done 2>/dev/null; \
             echo t > /tmp/t; echo h > ~/h; mkdir -p ~/.cache/c ~/.new; echo s > /dev/shm/s; true";
        p.shell(&[], script).ok();
        p.shell(&["--memory", "500m", "--pids", "100"], "true");
        p.shell(&["-t", "read-only"], "echo x > new; true").ok();
        p.shell(&["-t", "strict"], "true");
        p.shell(&["-t", "code"], "true");
        p.shell(&["--timeout", "100ms", "--grace", "50ms"], "trap '' TERM; sleep 30")
            .failed_with(137);
        Ran::of(&mut p.ringfence(["--", "/no/such/program"])).failed_with(127);
        Ran::of(&mut p.ringfence(["--explain", "--", "true"])).ok();
        let after = (snapshot::of(&p.workspace()), snapshot::of(&p.home()));
        snapshot::assert_same(&before.0, &after.0, "project");
        snapshot::assert_same(&before.1, &after.1, "home");
        no_group_but(&groups);
        assert_eq!(temporary_before, temporary());
        no_process_of(p.root());
        // What a command writes is exactly what is new.
        p.shell(&[], "echo x > only-this").ok();
        let mut after = snapshot::of(&p.workspace());
        assert!(after.remove(Path::new("only-this")).is_some());
        let mut before = before.0;
        // The directory itself got an entry, so its time moved.
        before.remove(Path::new(""));
        after.remove(Path::new(""));
        snapshot::assert_same(&before, &after, "project");
    });
}

/// A small generator: the moments of the kills must differ, not be unpredictable.
struct Moments(u64);

impl Moments {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Runs many times, kills some, and looks for anything left.
fn many(p: &Place, runs: u64, kills: u64) {
    lived_in(p);
    let files = (snapshot::of(&p.workspace()), snapshot::of(&p.home()));
    let (mounts_before, temporary_before) = (mounts(), temporary());
    let groups_before = control_groups();
    let namespaces_before = namespaces();
    let mut moments = Moments(0x9e37_79b9_7f4a_7c15);
    let every = runs / kills;
    let (mut killed, mut started, mut finished) = (0u64, 0u64, 0u64);
    let clock = Instant::now();
    for i in 0..runs {
        let kill = i % every == every - 1;
        // Killed runs last, so that the kill meets set-up, the command, or the end of neither.
        let command = if kill { "echo s > /tmp/s; sleep 30" } else { "echo s > /tmp/s" };
        let mark = format!("{MARK}={}", p.root().display());
        let limits: &[&str] = if i % 5 == 0 { &["--pids", "500"] } else { &[] };
        let mut child = p
            .ringfence(["run", "-e", &mark].iter().chain(limits).chain(&["-c", command]))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        started += 1;
        if kill {
            std::thread::sleep(Duration::from_micros(moments.next(5_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        } else {
            let ran = Ran::from(child.wait_with_output().unwrap());
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "run {i}");
            finished += 1;
        }
    }
    println!(
        "user {}: {started} runs, {finished} finished, {killed} killed, {:.1} s",
        p.ids().0,
        clock.elapsed().as_secs_f64()
    );
    assert_eq!((killed, finished), (kills, runs - kills));
    no_process_of(p.root());
    // The next run with limits takes away the groups of those that were killed.
    p.shell(&["--pids", "500"], "true").ok();
    no_group_but(&groups_before);
    eventually(|| {
        let new: Vec<_> = namespaces().difference(&namespaces_before).cloned().collect();
        let holders = holders(&new, p.root());
        (!holders.is_empty()).then(|| format!("namespaces are left: {holders:?}"))
    });
    assert_eq!(mounts_before, mounts(), "mounts");
    let new: Vec<_> = temporary().difference(&temporary_before).cloned().collect();
    assert!(new.is_empty(), "temporary files: {new:?}");
    snapshot::assert_same(&files.0, &snapshot::of(&p.workspace()), "project");
    snapshot::assert_same(&files.1, &snapshot::of(&p.home()), "home");
}

/// Other tests make groups at the same time: theirs have processes in them, or are gone soon.
#[track_caller]
fn no_group_but(before: &BTreeSet<PathBuf>) {
    eventually(|| {
        let new: Vec<_> =
            control_groups().difference(before).filter(|g| empty_group(g)).cloned().collect();
        (!new.is_empty()).then(|| format!("control groups are left: {new:?}"))
    });
}

fn empty_group(group: &Path) -> bool {
    std::fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|procs| procs.trim().is_empty())
}

/// Processes in these namespaces that are ours: other tests start and end at the same time.
fn holders(namespaces: &[String], place: &Path) -> Vec<String> {
    ours(place)
        .into_iter()
        .filter(|line| {
            let pid = line.split(':').next().unwrap_or_default();
            std::fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten().any(|ns| {
                std::fs::read_link(ns.path())
                    .is_ok_and(|l| namespaces.contains(&l.display().to_string()))
            })
        })
        .collect()
}

#[test]
fn a_loop_of_runs_some_of_them_killed_leaves_nothing() {
    let full = std::env::var_os("RINGFENCE_E2E_FULL").is_some();
    as_each_user(|p| if full { many(p, 10_000, 100) } else { many(p, 300, 30) });
}

/// A run in a pid and mount namespace of its own, so that what it leaves can be counted exactly.
#[test]
fn the_kernel_holds_no_namespace_after_the_last_run() {
    if !has("unshare") || !Path::new("/proc/self/ns/net").exists() {
        return;
    }
    as_each_user(|p| {
        // Limits of a user namespace of our own count what is alive in it. They are far below the
        // number of runs, so what a run left behind would soon keep the next from its namespaces.
        let script = "set -e
            for kind in user mnt pid net ipc uts cgroup; do
              echo 6 > /proc/sys/user/max_${kind}_namespaces; done
            i=0; while [ $i -lt 12 ]; do i=$((i + 1))
              n=0; until \"$0\" -c 'test $$ -lt 10'; do n=$((n + 1)); test $n -lt 40; sleep 0.25; done 2>/dev/null
              \"$0\" -c 'sleep 9' 2>/dev/null & sleep 0.0$i; kill -KILL $!; wait $! || true
            done; echo all ran";
        let mut command = p.command("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(binary());
        // The rung without namespaces, tried where they are refused, makes a directory here.
        command.env("TMPDIR", p.outside());
        let ran = Ran::of(&mut command);
        if ran.err.contains("unshare") || ran.err.contains("max_user_namespaces") {
            println!("skipped: namespaces cannot be nested here: {}", ran.err);
            return;
        }
        ran.ok().says("all ran");
        no_process_of(p.root());
    });
}

#[test]
fn background_processes_do_not_outlive_the_run() {
    as_each_user(|p| {
        let place = p.root().to_str().unwrap();
        for (name, script) in [
            ("plain", format!("sleep 300 {place} 2>/dev/null & sh -c 'sleep 301; : {place}' &")),
            ("nohup", format!("nohup sh -c 'sleep 302; : {place}' >/dev/null 2>&1 &")),
            ("setsid", format!("setsid sh -c 'sleep 303; : {place}' >/dev/null 2>&1 </dev/null &")),
            (
                "double fork",
                format!("(setsid sh -c '(trap \"\" HUP TERM INT; sleep 304; : {place}) &' &) &"),
            ),
            ("stopped", format!("sh -c 'kill -STOP $$; : {place}' & sleep 0.1; kill -STOP $!")),
            (
                "ignores all",
                format!(
                    "sh -c 'trap \"\" HUP INT TERM QUIT; while :; do sleep 1; done; : {place}' &"
                ),
            ),
            ("held output", format!("sh -c 'sleep 305; : {place}' & disown 2>/dev/null; true")),
        ] {
            let clock = Instant::now();
            let ran = p.shell(&[], &format!("{script}\nsleep 0.1; echo started")).ok();
            assert_eq!(ran.out, "started\n", "{name}: {ran:?}");
            assert!(clock.elapsed() < PATIENCE, "{name}: waited for what it left");
            no_process_of(p.root());
        }
    });
}

/// Whether this process, and so what it starts, ignores a signal.
fn ignored_here(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    mask & (1 << (signal.as_raw() - 1)) != 0
}

#[test]
fn a_run_dies_with_its_supervisor_and_with_its_parents_terminal() {
    as_each_user(|p| {
        for signal in [Signal::KILL, Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
            if ignored_here(signal) {
                // As under nohup: the command is meant to survive it, and does.
                println!("skipped: {signal:?} is ignored where the tests run");
                continue;
            }
            let mut child = p
                .ringfence(["-c", "setsid sleep 300 & echo ready; exec sleep 301"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = [0u8; 6];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            kill_process(Pid::from_child(&child), signal).unwrap();
            let status = child.wait().unwrap();
            let number = signal.as_raw();
            if signal == Signal::KILL {
                assert_eq!(status.signal(), Some(number));
            } else {
                assert_eq!(status.code(), Some(128 + number), "{status:?}");
            }
            no_process_of(p.root());
        }
    });
}

#[test]
fn a_run_whose_parent_shell_is_killed_dies_too() {
    if !has("setsid") {
        return;
    }
    as_each_user(|p| {
        // The shell leads a session with the run in it and no terminal; it is killed with its group,
        // as a terminal or an agent that ends does.
        let script = "\"$0\" -c 'setsid sleep 300 & echo ready; sleep 301' & wait";
        let mut command = p.command("sh");
        command.args(["-c", script]).arg(binary()).stdout(Stdio::piped()).process_group(0);
        let mut shell = command.spawn().unwrap();
        let mut line = [0u8; 6];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut line).unwrap();
        rustix::process::kill_process_group(Pid::from_child(&shell), Signal::KILL).unwrap();
        shell.wait().unwrap();
        no_process_of(p.root());
    });
}

#[test]
fn orphans_inside_are_reaped() {
    as_each_user(|p| {
        let script = "i=0; while [ $i -lt 200 ]; do i=$((i + 1)); (true &) ; done; sleep 0.3
             cat /proc/[0-9]*/stat 2>/dev/null | grep -c ' Z '; true";
        let ran = p.shell(&[], script).ok();
        assert_eq!(ran.out, "0\n", "{ran:?}");
    });
}

/// A supervisor that is stopped does not keep the command from ending, nor loses it.
#[test]
fn a_stopped_supervisor_finds_the_end_when_it_goes_on() {
    as_each_user(|p| {
        let mut child: std::process::Child =
            Command::spawn(&mut p.ringfence(["-c", "sleep 0.4; exit 9"])).unwrap();
        let pid = Pid::from_child(&child);
        std::thread::sleep(100 * MS);
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(600 * MS);
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG | WaitOptions::UNTRACED);
        kill_process(pid, Signal::CONT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9));
        no_process_of(p.root());
    });
}
