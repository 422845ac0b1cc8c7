//! Hosts that refuse namespaces, Landlock, or both: the policy is held by what is left, or nothing
//! runs. Never unconfined.
//!
//! The hosts are played by the binary's hidden launcher, which installs a filter that answers as such
//! a host does, and by user namespaces of the test's own whose limits it lowers.

use std::process::Command;

use crate::harness::{Place, Ran, as_each_user, binary, has};

/// `ringfence` on a host that refuses `what`.
fn under(p: &Place, what: &str, args: &[&str]) -> Command {
    let mut command = p.ringfence(["__attack", "under", what]);
    command.arg(binary()).args(args);
    command
}

/// In a user namespace that allows no further one.
fn without_user_namespaces(p: &Place, args: &[&str]) -> Command {
    let mut command = p.command("unshare");
    command.args(["-Ur", "sh", "-c"]);
    // A namespaced limit: the host's stays what it is.
    command.arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"");
    command.arg("sh").arg(binary()).args(args);
    command
}

/// In namespaces whose /proc is partly covered, as in a container: a fresh one is refused.
fn with_covered_proc(p: &Place, args: &[&str]) -> Command {
    let mut command = p.command("unshare");
    command.args(["-Urmpf", "--mount-proc", "sh", "-c"]);
    command.arg("mount -t tmpfs none /proc/sys && exec \"$@\"");
    command.arg("sh").arg(binary()).args(args);
    command
}

/// A host that refuses namespaces.
type Host = fn(&Place, &[&str]) -> Command;

fn filtered(p: &Place, args: &[&str]) -> Command {
    under(p, "namespaces", args)
}

fn hosts() -> Vec<(&'static str, Host)> {
    let mut hosts: Vec<(&'static str, Host)> =
        vec![("filter", filtered), ("mounts refused", |p, args| under(p, "mounts", args))];
    if has("unshare") {
        hosts.push(("max_user_namespaces", without_user_namespaces));
        hosts.push(("covered /proc", with_covered_proc));
    }
    hosts
}

/// A Landlock that also keeps signals inside: without it the lower rung refuses by default.
fn has_scopes() -> bool {
    let there = ringfence_abi() >= 6;
    if !there {
        println!("skipped: this kernel's landlock has no scopes");
    }
    there
}

fn ringfence_abi() -> i64 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no pointer and only answers a number.
    unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION)
    }
}

const FLAGS: [&str; 2] = ["run", "--no-config"];

fn shell<'a>(flags: &[&'a str], script: &'a str) -> Vec<&'a str> {
    let mut args = FLAGS.to_vec();
    args.extend(flags);
    args.extend(["--", "/bin/sh", "-c", script]);
    args
}

#[test]
fn landlock_and_the_filter_hold_what_they_can() {
    if !has_scopes() {
        return;
    }
    for (name, host) in hosts() {
        as_each_user(|p| {
            p.write("../outside/secret", "secret");
            p.write("../home/.ssh/id_rsa", "secret");
            let run = |flags: &[&str], script: &str| Ran::of(&mut host(p, &shell(flags, script)));
            let status = run(&["--status", "-"], "true").ok();
            assert!(status.out.contains("\"rung\": \"landlock\""), "{name}: {status:#?}");
            run(&[], "echo x > trace && cat trace && head -1 /etc/passwd").ok();
            for script in [
                "cat ../outside/secret",
                "echo x > ../outside/new",
                "cat ~/.ssh/id_rsa",
                "echo x > ~/.bashrc",
                ": >> /proc/sys/kernel/core_pattern",
                "head -1 /etc/shadow",
                "kill -0 $PPID && kill -TERM $PPID",
                "exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/1' 2>&1 | grep -q refused",
                "unshare -Ur true",
            ] {
                let ran = run(&[], &format!("echo started; {script}"));
                assert!(ran.out.contains("started"), "{name}: {ran:#?}");
                assert_ne!(ran.code, Some(0), "{name}: {script}: {ran:#?}");
            }
            let looking = run(&["-t", "read-only"], "echo started; echo x > other");
            assert!(
                looking.out.contains("started") && looking.code != Some(0),
                "{name}: {looking:#?}"
            );
            assert!(!p.workspace().join("other").exists());
        });
    }
}

/// Without a mount namespace nothing hides the sockets of services, and Landlock does not hold a
/// connection to one by its path: such sockets are refused altogether.
#[test]
fn sockets_of_services_are_refused_on_the_lower_rung() {
    if !has_scopes() || !has("python3") {
        return;
    }
    as_each_user(|p| {
        let path = p.outside().join("service.sock");
        let _service = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        let script = format!(
            "import socket; socket.socket(socket.AF_UNIX).connect({:?})",
            path.to_str().unwrap()
        );
        let python = "/usr/bin/python3";
        if Ran::of(p.command(python).args(["-c", &script])).code != Some(0) {
            println!("skipped: no python3 of the system");
            return;
        }
        let mut args = FLAGS.to_vec();
        args.extend(["--", python, "-c", &script]);
        let ran = Ran::of(&mut filtered(p, &args));
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(ran.err.contains("PermissionError"), "{ran:#?}");
    });
}

#[test]
fn nothing_outlives_a_run_without_a_pid_namespace() {
    if !has_scopes() {
        return;
    }
    as_each_user(|p| {
        let leave =
            "(trap '' HUP TERM; setsid sh -c 'sleep 0.4; echo x > late' > /dev/null 2>&1 &) ; true";
        let ran = Ran::of(&mut filtered(p, &shell(&[], leave)));
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        std::thread::sleep(std::time::Duration::from_millis(900));
        assert!(!p.workspace().join("late").exists());
    });
}

#[test]
fn what_cannot_be_held_is_refused_and_nothing_runs() {
    for (name, host) in hosts() {
        as_each_user(|p| {
            p.write(".git/HEAD", "ref: refs/heads/main\n");
            p.write(".git/config", "[core]\n");
            p.write(".git/hooks/pre-commit", "#!/bin/sh\n");
            p.write(".git/objects/keep", "");
            p.write(".git/refs/keep", "");
            p.write(".env", "secret");
            let ran = Ran::of(&mut host(p, &shell(&[], "echo x > marker"))).failed_with(126);
            assert!(!p.workspace().join("marker").exists(), "{name}");
            let ran = ran.says("refuses namespaces").says("landlock").says("doctor");
            assert!(ran.err.contains("--accept-missing"), "{name}: {ran:#?}");
        });
    }
}

#[test]
fn without_landlock_as_well_nothing_runs() {
    as_each_user(|p| {
        for flags in [
            &[][..],
            &["-t", "read-only"],
            &["--accept-missing", "guards,hidden-files,landlock-scope"],
        ] {
            let args = shell(flags, "echo x > marker; echo ran");
            let ran = Ran::of(&mut under(p, "namespaces,landlock", &args)).failed_with(126);
            assert_eq!(ran.out, "");
            assert!(!p.workspace().join("marker").exists());
            ran.says("refuses namespaces").says("no landlock").says("doctor");
        }
    });
}

#[test]
fn without_landlock_namespaces_hold_and_the_status_says_so() {
    as_each_user(|p| {
        p.write("../outside/secret", "secret");
        let args = shell(&["--status", "-"], "cat ../outside/secret || echo refused");
        let ran = Ran::of(&mut under(p, "landlock", &args)).ok().says("refused");
        assert!(ran.out.contains("\"rung\": \"namespaces\""), "{ran:#?}");
        assert!(ran.out.contains("this kernel has none"), "{ran:#?}");
    });
}

/// As in containers, whose filters cannot see the newer call's flags.
#[test]
fn without_clone3_the_older_call_serves() {
    as_each_user(|p| {
        let args = shell(&["--status", "-"], "true");
        let ran = Ran::of(&mut under(p, "clone3", &args)).ok();
        assert!(ran.out.contains("\"rung\": \"namespaces\""), "{ran:#?}");
    });
}

/// Root of a rootless container is not the host's: it cannot translate owners, and need not.
#[test]
fn root_of_a_user_namespace_is_served() {
    if !has("unshare") {
        return;
    }
    as_each_user(|p| {
        let mut command = p.command("unshare");
        command.args(["-Ur"]).arg(binary()).args(shell(&["--status", "-"], "echo x > trace"));
        let ran = Ran::of(&mut command).ok();
        assert!(ran.out.contains("\"rung\": \"namespaces\""), "{ran:#?}");
        assert!(p.workspace().join("trace").exists());
    });
}

#[test]
fn what_is_missing_can_be_accepted_by_name_and_is_reported() {
    if !has_scopes() {
        return;
    }
    as_each_user(|p| {
        p.write(".env", "secret");
        let refused = Ran::of(&mut filtered(p, &shell(&[], "true"))).failed_with(126);
        refused.says("hidden-files");
        let wrong = shell(&["--accept-missing", "something-else"], "echo x > marker");
        let ran = Ran::of(&mut filtered(p, &wrong));
        assert!(!p.workspace().join("marker").exists(), "{ran:#?}");
        let flags = ["--accept-missing", "hidden-files", "--status", "-"];
        let ran = Ran::of(&mut filtered(p, &shell(&flags, "echo x > marker"))).ok();
        assert!(p.workspace().join("marker").exists());
        let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(status["missing"][0]["name"], "hidden-files", "{status:#}");
        assert!(ran.err.contains("missing, as accepted"), "{ran:#?}");
    });
}

/// Without namespaces there is nothing to filter in: no network, and only where that was accepted.
#[test]
fn hosts_cannot_be_filtered_without_namespaces() {
    if !has_scopes() {
        return;
    }
    let connect = "echo x > marker; bash -c 'exec 3<>/dev/tcp/127.0.0.1/9' 2>&1 || true";
    as_each_user(|p| {
        let host = ["--allow-host", "localhost:9"];
        let ran = Ran::of(&mut filtered(p, &shell(&host, connect))).failed_with(126);
        assert!(!p.workspace().join("marker").exists(), "{ran:#?}");
        ran.says("network-filter");
        let flags = ["--allow-host", "localhost:9", "--accept-missing", "network-filter"];
        let ran = Ran::of(&mut filtered(p, &shell(&flags, connect))).ok();
        assert!(p.workspace().join("marker").exists());
        // Not "connection refused", which a network would say.
        assert!(!ran.out.contains("refused") && !ran.out.is_empty(), "{ran:#?}");
        ran.says("missing, as accepted");
    });
}

fn doctor(mut command: Command) -> (Ran, serde_json::Value) {
    let ran = Ran::of(&mut command);
    let report = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
    (ran, report)
}

#[test]
fn doctor_finds_nothing_wrong_where_the_full_rung_works() {
    as_each_user(|p| {
        let (ran, report) = doctor(p.ringfence(["doctor", "--json"]));
        assert_eq!(ran.code, Some(0), "{report:#}");
        assert_eq!(report["best"], "full");
        assert_eq!(report["run"]["rung"], "namespaces");
        assert_eq!(report["findings"], serde_json::json!([]));
        Ran::of(&mut p.ringfence(["doctor"])).ok().says("this host can sandbox");
    });
}

#[test]
fn doctor_tells_refusals_apart() {
    for (name, host) in hosts() {
        let (problem, command) = match name {
            "max_user_namespaces" => ("user.max_user_namespaces is 0", "sysctl -w"),
            "covered /proc" => ("/proc are covered", "--security-opt"),
            _ => ("system call filter", "--security-opt"),
        };
        as_each_user(|p| {
            let (ran, report) = doctor(host(p, &["doctor", "--json"]));
            assert_eq!(ran.code, Some(125), "{name}: {report:#}");
            assert_eq!(report["best"], "landlock", "{name}: {report:#}");
            let finding = &report["findings"][0];
            assert!(finding["problem"].as_str().unwrap().contains(problem), "{name}: {report:#}");
            assert!(finding["command"].as_str().unwrap().contains(command), "{name}: {report:#}");
            assert!(!report["losses"].as_array().unwrap().is_empty());
        });
    }
    as_each_user(|p| {
        let (ran, report) = doctor(under(p, "namespaces,landlock", &["doctor", "--json"]));
        assert_eq!(ran.code, Some(125));
        assert_eq!(report["best"], "nothing", "{report:#}");
        assert!(report["refused"].as_str().unwrap().contains("refuses namespaces"), "{report:#}");
    });
}
