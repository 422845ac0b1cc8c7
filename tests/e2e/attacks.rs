//! Attacks by class: each is refused inside and works in its control, the same script without
//! ringfence. What needs system calls of its own is in `selftest`, which is run here as each user.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Place, Ran, User, as_each_user, binary, is_root};

/// Works outside and must not inside.
#[track_caller]
fn refused(p: &Place, flags: &[&str], script: &str) -> Ran {
    let control = p.bare(script);
    assert_eq!(control.code, Some(0), "the control must succeed: {script}\n{control:#?}");
    let ran = p.shell(flags, &format!("echo started; {script}"));
    assert!(ran.out.starts_with("started\n"), "the sandbox must start: {ran:#?}");
    assert_ne!(ran.code, Some(0), "must be refused: {script}\n{ran:#?}");
    ran
}

fn repository(p: &Place) {
    for (path, content) in [
        (".git/HEAD", "ref: refs/heads/main\n"),
        (".git/config", "[core]\n\trepositoryformatversion = 0\n\tbare = false\n"),
        (".git/hooks/pre-commit", "#!/bin/sh\n"),
        (".git/objects/keep", ""),
        (".git/refs/heads/keep", ""),
        (".claude/settings.json", "{}\n"),
    ] {
        p.write(path, content);
    }
}

/// Neither a rename of a directory nor a way through a link leads around them, in this run or the next.
#[test]
fn rules_with_wildcards_hold_their_place() {
    as_each_user(by_place);
}

fn by_place(p: &Place) {
    p.write("keys/deep/a.txt", "secret text\n");
    p.write("conf/x.yml", "as it was\n");
    let hide = ["--deny-read", "keys/**/*.txt"];
    let hidden = |flags: &[&str]| {
        let ran = p.shell(flags, "grep -r 'secret text' . && exit 3; true");
        assert_ne!(ran.code, Some(3), "{ran:#?}");
    };
    hidden(&hide);
    for attack in ["mv keys away", "mv keys/deep keys/other", "mv keys/deep/a.txt b"] {
        p.shell(&hide, &format!("{attack}; grep -r 'secret text' . && exit 3; true")).ok();
        hidden(&hide);
        assert_eq!(read(p, "keys/deep/a.txt"), "secret text\n", "{attack}");
    }
    refused(p, &hide, "mv keys k && mv k keys");
    refused(p, &hide, "mv keys/deep keys/k && mv keys/k keys/deep");
    // Where the pattern is of a name alone, the directory may move, and the mask moves along.
    let anywhere = ["--deny-read", "**/a.txt"];
    p.shell(&anywhere, "mv keys moved && ! cat moved/deep/a.txt && mv moved keys").ok();
    hidden(&anywhere);
    let protect = ["--deny-write", "conf/*.yml"];
    refused(
        p,
        &protect,
        "mv conf c && mkdir conf && echo new >conf/x.yml; rm -r conf && mv c conf",
    );
    assert_eq!(read(p, "conf/x.yml"), "as it was\n");

    // The same by a name that is a link.
    p.bare("ln -s keys link; ln -s \"$PWD/keys\" ../outside/link").ok();
    let outside = p.outside().join("link").join("**/*.txt");
    for pattern in ["link/deep/*.txt", "link/**/a.txt", outside.to_str().unwrap()] {
        refused(p, &["--deny-read", pattern], "cat link/deep/a.txt");
        refused(p, &["--deny-read", pattern], "cat keys/deep/a.txt");
        refused(p, &["--deny-read", pattern], "mv keys k && mv k keys");
    }
    p.bare("rm -r keys conf link ../outside/link").ok();
}

fn read(p: &Place, path: &str) -> String {
    std::fs::read_to_string(p.workspace().join(path)).unwrap()
}

#[test]
fn selftest_holds_for_each_user() {
    as_each_user(|p| {
        let ran = Ran::of(&mut p.ringfence(["selftest", "--json"]));
        let report: serde_json::Value = serde_json::from_str(&ran.out)
            .unwrap_or_else(|e| panic!("not a report: {e}: {ran:#?}"));
        let wrong: Vec<_> = report["attacks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|a| a["verdict"] == "hole" || a["verdict"] == "error")
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        assert!(report["held"].as_u64().unwrap() >= 30, "{report:#}");
        assert_eq!(left_over("ringfence-selftest"), Vec::<String>::new());
    });
}

fn left_over(prefix: &str) -> Vec<String> {
    // Other tests may be at it at the same time; only what stays counts.
    for _ in 0..100 {
        let names = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        let names: Vec<String> = names
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| n.starts_with(prefix))
            .collect();
        if names.is_empty() {
            return names;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    vec![prefix.to_owned()]
}

#[test]
fn selftest_says_when_no_attack_is_chosen() {
    as_each_user(|p| {
        let ran = Ran::of(&mut p.ringfence(["selftest", "--only", "no\u{1b}[2Jsuch"]));
        let ran = ran.failed_with(125).says("no attack");
        assert!(!ran.err.contains('\u{1b}'), "{ran:#?}");
        Ran::of(&mut p.ringfence(["selftest", "--only", "ssh-key"])).ok().says("held");
    });
}

#[test]
fn secrets_are_neither_read_nor_uncovered() {
    as_each_user(|p| {
        p.write("../home/.ssh/id_rsa", "secret");
        p.write("../home/.aws/credentials", "secret");
        p.write(".env", "secret");
        p.write("deep/server.key", "secret");
        refused(p, &[], "cat ~/.ssh/id_rsa");
        refused(p, &[], "cat ~/.aws/credentials");
        refused(p, &[], "cat .env");
        refused(p, &[], "cat /proc/self/cwd/.env");
        refused(p, &[], "ln .env second && cat second && rm second");
        refused(p, &[], "mv deep deeper && cat deeper/server.key && mv deeper deep");
        let _ = std::fs::rename(p.workspace().join("deeper"), p.workspace().join("deep"));
        refused(p, &[], "mv .env other && mv other .env");
        assert_eq!(
            (read(p, ".env"), read(p, "deep/server.key")),
            ("secret".into(), "secret".into())
        );
    });
}

#[test]
fn what_a_path_rule_hides_stays_hidden_in_the_next_run() {
    as_each_user(|p| {
        p.write("private/data", "secret");
        let hidden = p.workspace().join("private/data");
        let flags = ["--deny-read", hidden.to_str().unwrap()];
        refused(p, &flags, "mv private public && mv public private");
        assert!(hidden.exists());
        p.shell(&flags, "mkdir new && mv new newer && rmdir newer").ok();
    });
}

#[test]
fn nothing_outside_is_seen_or_written() {
    as_each_user(|p| {
        p.write("../outside/secret", "secret");
        let outside = p.outside();
        let outside = outside.display();
        refused(p, &[], &format!("cat {outside}/secret"));
        refused(p, &[], &format!("ln -s {outside}/secret out && cat out && rm out"));
        let _ = std::fs::remove_file(p.workspace().join("out"));
        refused(p, &[], &format!("cat /proc/self/root{outside}/secret"));
        refused(p, &[], &format!("test -e {outside}"));
        refused(p, &[], "echo x > ../outside/new && rm ../outside/new");
        p.shell(&[], "echo x > ~/.bashrc; echo x > /tmp/ringfence-e2e-trace");
        assert!(!p.home().join(".bashrc").exists());
        assert!(!std::path::Path::new("/tmp/ringfence-e2e-trace").exists());
        let shared = outside.to_string();
        let flags = ["--allow-read", shared.as_str()];
        p.shell(&flags, &format!("cat {outside}/secret")).ok();
        refused(p, &flags, &format!("ln {outside}/secret link && rm link"));
        refused(p, &flags, &format!(": >> {outside}/secret"));
        refused(p, &flags, &format!("chmod 600 {outside}/secret"));
    });
}

#[test]
fn a_working_directory_adds_no_right() {
    as_each_user(|p| {
        let run = |args: &[&str]| Ran::of(&mut p.ringfence(args));
        let ran = run(&["-w", ".", "-C", "../outside", "--", "sh", "-c", "echo x > trace"]);
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(!p.outside().join("trace").exists());
        p.bare("cd ../outside && echo x > trace").ok();
        assert!(p.outside().join("trace").exists());
    });
}

#[test]
fn a_checkout_does_not_decide_its_own_trust() {
    as_each_user(|p| {
        let policy = "[files]\nallow_write = [\"../outside\"]\n";
        p.write("ringfence.toml", policy);
        let ran = p.shell(&[], "echo x > ../outside/trace");
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(!p.outside().join("trace").exists());
        let script = "echo x >> ringfence.toml";
        let ran = p.shell(&["--no-config"], script);
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert_eq!(read(p, "ringfence.toml"), policy);
        p.bare(script).ok();
    });
}

#[test]
fn what_the_host_would_run_later_does_not_change() {
    as_each_user(|p| {
        repository(p);
        refused(p, &[], "cp .git/config copy && echo >> .git/config && mv copy .git/config");
        refused(p, &[], "echo x > .git/hooks/post-merge && rm .git/hooks/post-merge");
        refused(p, &[], "mv .git away && mkdir .git && rmdir .git && mv away .git");
        refused(p, &[], "mv .git/hooks .git/h && mv .git/h .git/hooks");
        refused(p, &[], "mv .claude away && mv away .claude");
        refused(p, &[], ": >> .claude/settings.json");
        p.shell(&[], "echo x > .git/index.lock && mv .git/index.lock .git/index").ok();
        // A guarded name that does not exist yet is moved aside at the end, and that is said.
        let ran = p.shell(&[], "echo '{}' > .mcp.json").ok();
        assert!(!p.workspace().join(".mcp.json").exists(), "{ran:#?}");
        assert!(ran.err.contains(".mcp.json"), "{ran:#?}");
    });
}

#[test]
fn inherited_descriptors_lead_nowhere() {
    as_each_user(|p| {
        p.write("../outside/secret", "secret");
        p.bare("exec 9< ../outside; cat /proc/self/fd/9/secret").ok();
        let script = format!(
            "exec 9< ../outside; exec {} run -- sh -c 'echo started; ls /proc/self/fd; cat /proc/self/fd/9/secret'",
            binary().display()
        );
        let ran = p.bare(&script);
        assert!(ran.out.starts_with("started\n") && !ran.out.contains("secret"), "{ran:#?}");
        assert_ne!(ran.code, Some(0), "{ran:#?}");
    });
}

/// Opens and closes; nothing is ever written there.
#[test]
fn files_of_the_hosts_kernel_do_not_open_for_writing() {
    let p = Place::new(User::Me);
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/memory/cgroup.procs",
    ];
    let mut shown = 0;
    for file in files {
        let script = format!(": >> {file}");
        if p.bare(&script).code == Some(0) {
            refused(&p, &[], &script);
            shown += 1;
        }
    }
    assert!(shown > 0 || !is_root(), "root must have a control");
}

#[test]
fn processes_outside_are_out_of_reach() {
    as_each_user(|p| {
        let mut victim =
            p.command("sleep").arg("60").env("TOKEN_OUTSIDE", "secret").spawn().unwrap();
        let pid = victim.id();
        refused(p, &[], &format!("kill -0 {pid}"));
        refused(p, &[], &format!("grep -q TOKEN_OUTSIDE /proc/{pid}/environ"));
        refused(p, &[], &format!("test -d /proc/{pid}"));
        let ran = p.shell(&[], "cat /proc/1/environ /proc/1/maps; ls -l /proc/1/fd /proc/1/cwd/");
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        victim.kill().unwrap();
        victim.wait().unwrap();
    });
}

#[test]
fn nothing_outlives_the_run() {
    as_each_user(|p| {
        let leave = "(trap '' HUP TERM INT; setsid sh -c 'sleep 0.3; echo x > late' > /dev/null 2>&1 &) ; true";
        p.bare(leave).ok();
        std::thread::sleep(Duration::from_millis(800));
        assert!(p.workspace().join("late").exists(), "the control");
        std::fs::remove_file(p.workspace().join("late")).unwrap();
        p.shell(&[], leave).ok();
        std::thread::sleep(Duration::from_millis(800));
        assert!(!p.workspace().join("late").exists());
    });
}

#[test]
fn services_of_the_host_are_out_of_reach() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    as_each_user(|p| {
        let connect = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'");
        refused(p, &[], &connect);
        refused(p, &["--network", "none"], &connect);
        let mut open = p.ringfence(["run", "--network", "host", "--", "sh", "-c", &connect]);
        Ran::of(&mut open).ok();
    });
    assert!(tcp.as_raw_fd() >= 0);
}

#[test]
fn the_environment_brings_nothing_in() {
    as_each_user(|p| {
        let names = [
            "AWS_SECRET_ACCESS_KEY",
            "SSH_AUTH_SOCK",
            "DBUS_SESSION_BUS_ADDRESS",
            "BASH_ENV",
            "PYTHONSTARTUP",
            "GIT_SSH_COMMAND",
            "LD_LIBRARY_PATH",
        ];
        for name in names {
            let script = format!("test -z \"${name}\" && echo absent");
            let mut command = p.ringfence(["run", "--", "sh", "-c", &script]);
            Ran::of(command.env(name, "/nonexistent")).ok().says("absent");
            let control = Ran::of(p.command("sh").args(["-c", &script]).env(name, "/nonexistent"));
            assert_ne!(control.code, Some(0), "the control: {control:#?}");
        }
    });
}

#[test]
fn a_program_in_the_current_directory_is_not_found_by_name() {
    use std::os::unix::fs::PermissionsExt;
    as_each_user(|p| {
        let tool = p.write("ringfence-e2e-tool", "#!/bin/sh\necho ran > trace\n");
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        for path in [".:/usr/bin:/bin", "/usr/bin:", ":/usr/bin:/bin"] {
            let mut command = p.ringfence(["--", "ringfence-e2e-tool"]);
            Ran::of(command.env("PATH", path)).failed_with(127);
            assert!(!p.workspace().join("trace").exists(), "PATH={path}");
        }
        let mut control = p.command("/usr/bin/env");
        Ran::of(control.arg("ringfence-e2e-tool").env("PATH", ".:/usr/bin:/bin")).ok();
        assert!(p.workspace().join("trace").exists());
    });
}

#[test]
fn limits_hold() {
    as_each_user(|p| {
        let large = "dd if=/dev/zero of=large bs=1M count=8 2> /dev/null && rm large";
        refused(p, &["--file-size", "1m"], large);
        let _ = std::fs::remove_file(p.workspace().join("large"));
        let stubborn = "trap '' TERM; sleep 1; sleep 1; echo x > late";
        let began = std::time::Instant::now();
        let ran = p.shell(&["--timeout", "300ms", "--grace", "200ms"], stubborn);
        assert!(began.elapsed() < Duration::from_millis(1900), "{ran:#?}");
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        assert!(!p.workspace().join("late").exists());
        p.bare(stubborn).ok();
        assert!(p.workspace().join("late").exists());
    });
}

/// A workspace that is replaced by a link to a place outside while sandboxes are being set up.
#[test]
fn a_workspace_swapped_during_set_up_leads_nowhere() {
    as_each_user(|p| {
        let real = p.root().join("real");
        let link = p.root().join("link");
        let project = p.root().join("swapped");
        std::fs::create_dir(&project).unwrap();
        p.own(&project);
        std::os::unix::fs::symlink(p.outside(), &link).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = std::fs::rename(&project, &real);
                    let _ = std::fs::rename(&link, &project);
                    let _ = std::fs::rename(&project, &link);
                    let _ = std::fs::rename(&real, &project);
                }
            });
            for _ in 0..25 {
                let inner = "[ \"$PWD\" = \"$1\" ] && echo x > trace";
                let mut command = p.ringfence(["run", "--no-config", "-w"]);
                command.arg(&project).arg("-C").arg(&project);
                command.args(["--", "sh", "-c", inner, "sh"]).arg(&project);
                // It may work or be refused, for the place is one thing or the other.
                Ran::of(&mut command);
            }
            let during = p.outside().join("trace").exists();
            // The control: who goes by the path alone ends up outside.
            let until = std::time::Instant::now() + Duration::from_secs(10);
            while !p.outside().join("trace").exists() && std::time::Instant::now() < until {
                let _ = std::fs::write(project.join("trace"), "x");
            }
            stop.store(true, Ordering::Relaxed);
            assert!(!during, "a run wrote outside");
        });
        assert!(p.outside().join("trace").exists(), "the control");
    });
}

#[test]
fn messages_of_ours_hold_no_escape_sequences() {
    as_each_user(|p| {
        const HOSTILE: &str = "no-such\u{1b}]0;owned\u{7}\u{9b}31m";
        for args in [
            vec!["--", HOSTILE],
            vec!["--allow-read", HOSTILE, "--", "true"],
            vec!["-C", HOSTILE, "--", "true"],
            vec!["-s", HOSTILE, "--", "true"],
            vec!["-t", HOSTILE, "--", "true"],
            vec!["--timeout", HOSTILE, "--", "true"],
        ] {
            let ran = Ran::of(&mut p.ringfence(args.clone()));
            let bad = |c: char| c.is_control() && c != '\n';
            assert!(!ran.err.contains(bad) && !ran.out.contains(bad), "{args:?}: {ran:#?}");
        }
    });
}

/// A deny or a protection with wildcards is as good outside the workspace as in it, wherever something
/// is shown.
#[test]
fn rules_with_wildcards_hold_in_what_else_is_shown() {
    as_each_user(|p| {
        let shown = p.outside().join("data");
        p.write("../outside/data/sub/b.key", "SECRET");
        p.write("../outside/data/a.key", "SECRET");
        p.write("../outside/data/Makefile", "plain");
        p.write("../outside/data/sub/Makefile", "plain");
        std::os::unix::fs::symlink(&shown, p.outside().join("link")).unwrap();
        let at = shown.display();
        let link = p.outside().join("link").display().to_string();
        let rules = |grant: &str, base: &str, with: bool| {
            let caps =
                format!("deny = [\"{base}/**/*.key\"]\nprotect = [\"{base}/**/Makefile\"]\n");
            let caps = if with { caps } else { String::new() };
            let file = p.root().join("p.toml");
            let text = format!("extends = \"workspace\"\n[files]\n{grant} = [\"{at}\"]\n{caps}");
            std::fs::write(&file, text).unwrap();
            file.display().to_string()
        };
        let read = format!("cd {at}; cat a.key sub/b.key ../data/./a.key; cat Makefile");
        let write = format!(
            "cd {at}; echo x >> Makefile; echo x >> sub/Makefile; mv sub sub2; cat sub2/b.key; \
             mv a.key c; cat c; ln a.key d && cat d; rm -f Makefile; echo free > sub/free"
        );
        let layer: &[&str] = &["--layer", "l"];
        for (base, flags) in [(at.to_string(), &[][..]), (link, &[]), (at.to_string(), layer)] {
            for grant in ["read", "write"] {
                let file = rules(grant, &base, true);
                let flags: Vec<&str> = ["-s", &file].iter().chain(flags).copied().collect();
                let ran = p.shell(&flags, &read);
                assert!(
                    !ran.out.contains("SECRET") && ran.out.contains("plain"),
                    "{base}: {ran:#?}"
                );
                let ran = p.shell(&flags, &write);
                assert!(!ran.out.contains("SECRET"), "{base}: {ran:#?}");
                for kept in ["Makefile", "sub/Makefile"] {
                    assert_eq!(std::fs::read_to_string(shown.join(kept)).unwrap(), "plain");
                }
                // Hidden from the next run as well.
                let ran = p.shell(&flags, &format!("cat $(find {at} -type f)"));
                assert!(!ran.out.contains("SECRET"), "{base}: {ran:#?}");
            }
        }
        // The control: without the rules all of it is to be had.
        let file = rules("write", "", false);
        p.shell(&["-s", &file], &read).says("SECRETSECRETSECRET");
        p.shell(&["-s", &file], &format!("echo x >> {at}/Makefile")).ok();
        assert!(std::fs::read_to_string(shown.join("Makefile")).unwrap().ends_with("x\n"));
    });
}
