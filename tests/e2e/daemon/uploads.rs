//! Long ways: what is sent is read as it is sent, and how far it has come is shown to people alone.

use std::process::Stdio;

use super::terminal::in_a_terminal;
use super::world::Daemon;
use crate::harness::{Place, Ran, as_each_user, has};

/// More than a command line's memory may grow to, which holds none of it.
const BYTES: u64 = 128 << 20;
const MOST_KIB: u64 = 96 << 10;

/// The most that a process has had in memory, as long as it is there.
fn peak_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn large(place: &Place, bytes: u64) {
    std::fs::create_dir(place.outside().join("large")).unwrap();
    let file = std::fs::File::create(place.outside().join("large/file")).unwrap();
    file.set_len(bytes).unwrap();
    place.own(&place.outside().join("large"));
    place.own(&place.outside().join("large/file"));
}

#[test]
fn what_is_sent_is_never_in_memory_as_a_whole() {
    if !has("tar") || !has("curl") {
        return;
    }
    as_each_user(|place| {
        large(place, BYTES);
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        daemon.ringfence(&["codebase", "create", "tree"]).ok();
        for (tree, path) in [("box", "/tmp"), ("codebase:tree", ".")] {
            let mut tar = place.command("tar");
            tar.args(["-cf", "-", "-C"]).arg(place.outside().join("large")).arg("file");
            let mut tar = tar.stdout(Stdio::piped()).spawn().unwrap();
            let mut command = daemon.command(&["files", "unpack", tree, path]);
            command.stdin(tar.stdout.take().unwrap());
            let (ran, peak) = watched(&mut command);
            tar.wait().unwrap();
            assert_eq!(ran.out, format!("1 files, {BYTES} bytes\n"), "{tree}");
            // Nothing but what it says: in a pipe nobody looks.
            assert_eq!(ran.err, "", "{tree}");
            assert!((1..MOST_KIB).contains(&peak), "{tree}: {peak} KiB");
        }
        let size = daemon.shell("box", "stat -c %s /tmp/file").ok().out;
        assert_eq!(size.trim(), BYTES.to_string());
        // What cannot be sent is said, and the answer of who does not want it comes through.
        let mut command = daemon.command(&["files", "unpack", "nobody", "/tmp"]);
        Ran::of(&mut command).failed_with(125).says("no such sandbox");
        let mut command = daemon.command(&["files", "unpack", "box", "/tmp"]);
        command.stdin(std::fs::File::open(place.outside()).unwrap());
        Ran::of(&mut command).failed_with(125).says("cannot read what is to be sent");
        // The daemon goes on.
        daemon.shell("box", "true").ok();
    });
}

/// What it did, without an error, and the most memory that it was seen to take, in KiB.
fn watched(command: &mut std::process::Command) -> (Ran, u64) {
    let mut sends = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut peak = 0;
    while sends.try_wait().unwrap().is_none() {
        peak = peak_kib(sends.id()).unwrap_or(0).max(peak);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    (Ran::from(sends.wait_with_output().unwrap()).ok(), peak)
}

/// One file, larger than what was once taken and than what is in memory of either side; and what is not allowed to
/// be as large is not there afterwards.
#[test]
fn one_file_of_any_size_is_never_in_memory_as_a_whole() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        large(place, BYTES);
        let daemon = Daemon::start(place);
        place.write("limits.json", r#"{ "layer": { "quota": "32m" } }"#);
        daemon.create(&["--name", "box"]);
        daemon.create(&["--name", "small", "--layer", "-s", "limits.json"]);
        let local = place.outside().join("large/file");
        let mut command = daemon.command(&["files", "upload", "box"]);
        command.arg(&local).args(["there", "--durable"]);
        let (ran, peak) = watched(&mut command);
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
        assert!((1..MOST_KIB).contains(&peak), "{peak} KiB");
        // In parts without a length, as a program sends them that does not know it.
        let from = format!("@{}", local.display());
        let chunked = ["-H", "Transfer-Encoding: chunked", "-X", "PUT", "-T", &from[1..]];
        daemon.curl(&chunked, "/v1/sandboxes/box/files?path=chunked").is(204);
        for name in ["there", "chunked"] {
            let size = std::fs::metadata(place.workspace().join(name)).unwrap().len();
            assert_eq!(size, BYTES, "{name}");
        }
        let daemons = peak_kib(daemon.process().pid as u32).unwrap();
        assert!((1..MOST_KIB).contains(&daemons), "{daemons} KiB");
        // More than its layer may hold.
        let refused =
            daemon.curl(&["-X", "PUT", "-T", &from[1..]], "/v1/sandboxes/small/files?path=x");
        assert_eq!(refused.is(413).reason(), "too-large");
        assert_eq!(daemon.sandbox("small")["state"], "idle");
        let left = daemon.shell("small", "ls -A | grep -e ringfence- -e '^x$' || echo none").ok();
        assert_eq!(left.out, "none\n");
        // Who goes away in the middle leaves what was there.
        daemon.shell("box", "echo kept > cut").ok();
        let mut cut = place.command("curl");
        cut.arg("--unix-socket").arg(daemon.socket());
        cut.args(["-sS", "-m", "2", "--limit-rate", "1M", "-X", "PUT", "-T"]).arg(&local);
        let _ = Ran::of(cut.arg("http://localhost/v1/sandboxes/box/files?path=cut"));
        let left = || daemon.shell("box", "cat cut; ls -A | grep ringfence- || echo none").ok().out;
        super::world::until("nothing of it is left", || left() == "kept\nnone\n");
    });
}

#[test]
fn how_far_it_is_is_shown_on_a_terminal() {
    if !has("tar") || !has("curl") {
        return;
    }
    in_a_terminal(&["box"], |place, _, t| {
        large(place, 2 << 20);
        let directory = place.outside().join("large");
        let tar = place.outside().join("large.tar");
        let mut command = place.command("tar");
        Ran::of(command.arg("-cf").arg(&tar).arg("-C").arg(&directory).arg("file")).ok();
        let (tar, directory) = (tar.display(), directory.display());
        let program = "\"$RF\"";
        let out = t.run(&format!("{program} files unpack box /tmp < {tar}"));
        assert!(out.contains("sent [") && out.contains("1 files, "), "{out}");
        let out = t.run(&format!("{program} codebase create shown --from {directory}"));
        assert!(out.contains("copied"), "{out}");
        // What is waited for and has no length is named too.
        let slow = r#"{"items": [{"sandbox": "box", "exec": {"shell": "sleep 2"}}]}"#;
        let out = t.run(&format!("echo '{slow}' | {program} batch exec"));
        assert!(out.contains("running commands, "), "{out}");
        let out = t.run(&format!("echo '{slow}' | {program} batch exec 2>&1 >/dev/null | wc -c"));
        assert!(out.contains("\r\n0\r\n") || out.starts_with("0\r\n"), "{out}");
        // It is gone when it is over: the last line is what was to be said.
        let out = t.run(&format!("{program} files unpack box /tmp < {tar} 2>/dev/null"));
        assert!(!out.contains("sent ["), "{out}");
    });
}
