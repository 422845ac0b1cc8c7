//! How it ends, and what stays: nothing. Ports inward.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::probe::{filtered_places, places};
use super::world::{HOST, World, filtered_world, fresh_address, token};
use crate::harness::{Place, binary, has, is_root};
use crate::residue::{eventually, no_process_of, processes};

/// Holds one connection and makes new ones, and tells in which network namespace.
const BUSY: &str = "
import os, socket, sys, time
word = sys.argv[1]
try:
    os.setsid()
except OSError:
    pass  # it leads one already
with open('namespace', 'w') as f:
    f.write(os.readlink('/proc/self/ns/net'))
held = socket.create_connection(('good.example.com', 6379), 10)
while True:
    held.sendall(f'{word}held\\n'.encode())
    held.recv(100)
    s = socket.create_connection(('good.example.com', 6379), 10)
    s.sendall(f'{word}new\\n'.encode())
    s.recv(100)
    s.close()
    time.sleep(0.02)
";

/// Starts it and kills the process that was started.
fn killed(world: &World, p: &Place, signal: Signal) {
    let word = token();
    p.write("busy.py", BUSY);
    let script = format!("python3 busy.py {word} & python3 busy.py {word}; wait");
    let mut child = world
        .command(p, binary())
        .args(["run", "--allow-host", "good.example.com:6379", "--", "/bin/sh", "-c", &script])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    world.soon("connections", |w| w.reached(&word).len() > 10);
    let namespace = std::fs::read_to_string(p.workspace().join("namespace")).unwrap();
    let members = || -> Vec<i32> {
        let ours = |pid: &i32| {
            std::fs::read_link(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|n| n.as_os_str() == namespace.as_str())
        };
        processes().into_iter().map(|(pid, _)| pid).filter(ours).collect()
    };
    // Others may not look into namespaces that are not theirs.
    assert!(!is_root() || !members().is_empty(), "the sandbox's namespace is seen from here");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let begin = Instant::now();
    kill_process(pid, signal).unwrap();
    child.wait().unwrap();
    // The network is closed with it: what arrives now was on its way.
    std::thread::sleep(Duration::from_millis(500));
    let last = world.reached(&word).len();
    eventually(|| {
        let left = members();
        (!left.is_empty()).then(|| format!("still in the sandbox's network: {left:?}"))
    });
    no_process_of(p.root());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(world.reached(&word).len(), last, "something still gets out");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn without_its_supervisor_a_run_has_no_network_and_ends() {
    for (world, p) in filtered_places() {
        killed(world, &p, Signal::KILL);
        killed(world, &p, Signal::TERM);
    }
}

#[test]
fn the_end_of_a_run_ends_its_connections() {
    for (world, p) in places() {
        let word = token();
        p.write("busy.py", BUSY);
        // The control goes on after the script, for three seconds in all.
        let script = format!(
            "setsid timeout 3 python3 busy.py {word} >/dev/null 2>&1 & \
             while ! test -s namespace; do sleep 0.1; done"
        );
        let control = world.bare(&p, &script).ok();
        let first = world.reached(&word).len();
        world.soon("what outlives the control", |w| w.reached(&word).len() > first);
        drop(control);
        let Some(world) = filtered_world() else { continue };
        let word = token();
        let script = format!(
            "setsid python3 busy.py {word} >/dev/null 2>&1 & \
             while ! test -s namespace; do sleep 0.1; done; sleep 0.5"
        );
        let _ = std::fs::remove_file(p.workspace().join("namespace"));
        let ran = world.fenced(&p, &["--allow-host", "good.example.com:6379"], &script).ok();
        world.something_of(&word, &ran);
        std::thread::sleep(Duration::from_millis(300));
        let last = world.reached(&word).len();
        no_process_of(p.root());
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(world.reached(&word).len(), last, "something still gets out");
    }
}

#[test]
fn runs_with_a_filter_leave_nothing() {
    for (world, p) in filtered_places() {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = (entries(&p), descriptors());
        for n in 0..6 {
            let script =
                format!("curl -sS --max-time 10 http://good.example.com/ >/dev/null; exit {n}");
            world.fenced(&p, &["--allow-host", "good.example.com"], &script).failed_with(n);
        }
        no_process_of(p.root());
        assert_eq!(entries(&p), before.0);
    }
}

fn entries(p: &Place) -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> = [p.root().to_owned(), p.workspace(), p.home(), p.outside()]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    all.sort();
    all
}

#[test]
fn ports_inward_beside_a_filter() {
    if !has("curl") {
        return;
    }
    for (n, (world, p)) in places().into_iter().enumerate() {
        let port = 9100 + n;
        let serve = |script: &str| {
            format!(
                "echo served >served; python3 -m http.server --bind 127.0.0.1 9000 >/dev/null 2>&1 & {script}"
            )
        };
        let fetch = |at: &str| {
            world.bare(&p, &format!("curl -sS --max-time 5 --retry 20 --retry-delay 1 --retry-all-errors --retry-max-time 15 http://{at}/served"))
        };
        // The control: on the host the port is open as it is.
        let mut bare = world
            .command(&p, "/bin/sh")
            .args([
                "-c",
                &format!(
                    "echo served >served; exec python3 -m http.server --bind 127.0.0.1 {}",
                    port + 50
                ),
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let control = fetch(&format!("127.0.0.1:{}", port + 50));
        bare.kill().unwrap();
        bare.wait().unwrap();
        assert_eq!(control.out, "served\n", "{control:#?}");
        let Some(world) = filtered_world() else { continue };
        let (good, bad) = (token(), fresh_address());
        let script = serve(&format!(
            "curl -sS --max-time 10 http://good.example.com/{good}; curl -sS --max-time 5 http://{bad}/; read _"
        ));
        let mut child = world
            .command(&p, binary())
            .args([
                "run",
                "--allow-host",
                "good.example.com",
                "-p",
                &format!("{port}:9000"),
                "--",
                "/bin/sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let inward = fetch(&format!("127.0.0.1:{port}"));
        assert_eq!(inward.out, "served\n", "{inward:#?}");
        // Not on other addresses of the host, and only the port that was asked for.
        for closed in [format!("{HOST}:{port}"), "127.0.0.1:9000".to_owned()] {
            let ran = world.bare(&p, &format!("curl -sS --max-time 5 http://{closed}/served"));
            assert_ne!(ran.code, Some(0), "{ran:#?}");
        }
        world.soon("the allowed host", |w| !w.reached(&good).is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        world.nothing_of(&bad, &inward);
        no_process_of(p.root());
    }
}

/// What would expose the filter, or the host's own loopback, to whoever reaches the port outside.
#[test]
fn ports_of_the_filter_are_not_exposed() {
    for (world, p) in filtered_places() {
        for (port, allowed) in [
            ("9198:808", "good.example.com"),
            ("9198:53", "good.example.com"),
            ("7001", "localhost:7001"),
            ("9198:7001", "localhost:7000-7002"),
        ] {
            let ran = world.fenced(&p, &["--allow-host", allowed, "-p", port], "echo ran");
            assert!(ran.code != Some(0) && ran.out.is_empty(), "{port}: {ran:#?}");
            ran.says("--port: port ");
        }
    }
}

/// However many connections a sandbox opens and however few descriptors the supervisor may have:
/// they wait, and the run goes on and ends in order.
#[test]
fn more_connections_than_descriptors() {
    const HOLD: &str = "
import socket, time
held = []
for n in range(150):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex(('45.10.0.1', 6379))
    held.append(s)
time.sleep(0.5)
for s in held:
    s.close()
s = socket.create_connection(('good.example.com', 6379), 20)
s.settimeout(20)
s.sendall(b'WORD\\n')
print(s.recv(100).decode())
";
    for (world, p) in filtered_places() {
        let word = token();
        p.write("hold.py", HOLD.replace("WORD", &word));
        let mut command = world.command(&p, "/bin/sh");
        command.args(["-c", "ulimit -n 300; exec \"$@\"", "sh", "timeout", "-k1", "60"]);
        command.arg(binary()).args(["run", "--allow-host", "good.example.com:6379"]);
        command.args(["--allow-host", "45.10.0.1:6379", "--", "python3", "hold.py"]);
        let ran = crate::harness::Ran::of(&mut command).ok();
        assert!(ran.out.contains(&format!("reached {word}")), "{ran:#?}");
    }
}
