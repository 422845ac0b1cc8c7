//! The library as a program uses it. Needs a kernel; runs as whoever runs the tests.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use ringfence::{Error, Network, Sandbox, Stdio};

fn place() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ringfence-lib").tempdir().unwrap()
}

fn sandbox(dir: &tempfile::TempDir) -> Sandbox {
    Sandbox::builder().workspace(dir.path()).build().unwrap()
}

#[test]
fn output_status_and_streams_are_the_commands() {
    let dir = place();
    let out =
        sandbox(&dir).command("sh").arg("-c").arg("echo o; echo e >&2; exit 3").output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"o\n"[..], &b"e\n"[..]));
    assert_eq!(out.report.end.unwrap().code, Some(3));
    let status = sandbox(&dir).command("sh").args(["-c", "kill -TERM $$"]).status().unwrap();
    assert_eq!(status.signal(), Some(15));
}

#[test]
fn stdin_is_empty_unless_asked_for() {
    let dir = place();
    let out = sandbox(&dir).command("cat").output().unwrap();
    assert!(out.status.success() && out.stdout.is_empty());
    let mut child =
        sandbox(&dir).command("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let megabyte = vec![b'x'; 1 << 20];
    let mut stdin = child.stdin.take().unwrap();
    let sent = megabyte.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(out.stdout, megabyte);
}

#[test]
fn a_pipe_ends_with_its_command() {
    // A copy of the write end that stayed open here would make this hang.
    let dir = place();
    let mut child = sandbox(&dir).command("echo").arg("x").stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "x\n");
    assert!(child.wait().unwrap().success());
    assert!(child.wait().unwrap().success(), "can be asked again");
    assert!(child.report().unwrap().end.is_some());
}

#[test]
fn files_can_stand_in_for_streams() {
    let dir = place();
    let file = tempfile::tempfile().unwrap();
    let copy = file.try_clone().unwrap();
    sandbox(&dir).command("echo").arg("to a file").stdout(copy).status().unwrap();
    let mut text = String::new();
    std::io::Seek::rewind(&mut &file).unwrap();
    (&file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "to a file\n");
}

#[test]
fn grants_denials_and_environment_are_honoured() {
    let (dir, other, odd) = (place(), place(), place());
    let odd = odd.path().join("a [b] *c");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(dir.path().join("x.token"), "secret").unwrap();
    std::fs::write(dir.path().join("absolute"), "secret").unwrap();
    std::fs::write(dir.path().join("kept"), "kept").unwrap();
    std::fs::write(odd.join("f"), "odd").unwrap();
    let sandbox = Sandbox::builder()
        .workspace(dir.path())
        .allow_write(other.path())
        .allow_read(&odd)
        .deny_read("**/*.token")
        .deny_read(dir.path().canonicalize().unwrap().join("absolute").to_str().unwrap())
        .deny_write("kept")
        .env("A", "1")
        .build()
        .unwrap();
    let shell = |script: &str| {
        let script = script.replace("OTHER", other.path().to_str().unwrap());
        sandbox
            .command("sh")
            .args(["-c", &script])
            .env("B", "2")
            .env_remove("LANG")
            .output()
            .unwrap()
    };
    let said = shell("echo $A $B ${LANG-none}; pwd");
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        format!("1 2 none\n{}\n", dir.path().canonicalize().unwrap().display())
    );
    assert!(!shell("cat x.token").status.success());
    assert!(!shell("cat absolute").status.success());
    assert!(!shell("echo x > kept").status.success());
    assert!(shell("echo x > OTHER/f").status.success());
    assert!(other.path().join("f").exists());
    let read = sandbox.command("cat").arg(odd.join("f")).output().unwrap();
    assert_eq!(read.stdout, b"odd");
    assert!(!sandbox.command("touch").arg(odd.join("g")).output().unwrap().status.success());
}

#[test]
fn a_timeout_holds_though_nobody_waits() {
    let dir = place();
    let sandbox = Sandbox::builder()
        .workspace(dir.path())
        .timeout(Duration::from_millis(200))
        .grace(Duration::from_millis(200))
        .build()
        .unwrap();
    let mut child = sandbox
        .command("sh")
        .args(["-c", "trap '' TERM; while :; do sleep 0.05; done"])
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "still running");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.report().unwrap().end.as_ref().unwrap().reason, "timeout");
    assert!(sandbox.command("sleep").arg("100").output().unwrap().timed_out());
}

#[test]
fn dropping_a_child_kills_and_reaps_it() {
    let dir = place();
    let child = sandbox(&dir).command("sleep").arg("1000").spawn().unwrap();
    let id = child.id();
    assert!(std::path::Path::new(&format!("/proc/{id}")).exists());
    drop(child);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
}

#[test]
fn problems_are_typed() {
    let dir = place();
    let missing = sandbox(&dir).command("no-such-program").output().unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let missing = sandbox(&dir).command("no-such-program").spawn().and_then(|mut c| c.wait());
    assert!(missing.unwrap_err().is_not_found());
    assert!(matches!(Sandbox::builder().profile("nope").build(), Err(Error::Policy(_))));
    let gone = Sandbox::builder().workspace("/nonexistent/x").build().unwrap();
    assert!(matches!(gone.command("true").status(), Err(Error::Run(_))));
    let mut policy = ringfence::profile("strict").unwrap();
    policy.network = Network::Host;
    let both = Sandbox::builder().policy(policy.clone()).profile("strict").build();
    assert!(matches!(both, Err(Error::TwoPolicies)), "{both:?}");
    let refused = Sandbox::builder().allow_host("npn").build();
    assert!(matches!(refused, Err(Error::Policy(_))), "{refused:?}");
}

#[test]
fn what_only_the_command_line_can_do_is_refused() {
    let dir = place();
    let layer = "[network]\nallow = [\"a.example\"]\ninspect = [\"a.example\"]\n";
    let layer = ringfence::Fragment::parse("layer", layer.as_bytes()).unwrap();
    let sandbox = Sandbox::builder().workspace(dir.path()).layer(layer).build().unwrap();
    let error = sandbox.command("touch").arg("ran").status().unwrap_err().to_string();
    assert!(error.contains("network.inspect: "), "{error}");
    assert!(!dir.path().join("ran").exists());
}

#[test]
fn hosts_need_a_network_that_is_filtered() {
    let dir = place();
    let builder = || Sandbox::builder().workspace(dir.path());
    for wrong in [
        builder().host_network().deny_host("evil.example"),
        builder().deny_host("evil.example").host_network(),
        builder().allow_host("good.example").host_network(),
        builder().allow_host("good.example").no_network(),
    ] {
        assert!(matches!(wrong.build(), Err(Error::Network(_))));
    }
    builder().deny_host("evil.example").no_network().build().unwrap();
    builder().deny_host("evil.example").build().unwrap();

    // A filter is a thread; without a host that is allowed there is none, nor after the end.
    let filters = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
        names.filter(|name| name == "egress\n").count()
    };
    for (sandbox, expected) in [
        (builder().deny_host("evil.example").build().unwrap(), 0),
        (builder().allow_host("good.example").build().unwrap(), 1),
    ] {
        let mut child = sandbox.command("sleep").arg("1000").spawn().unwrap();
        // A thread names itself.
        let begin = Instant::now();
        while filters() != expected && begin.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(filters(), expected);
        child.kill();
        child.wait().unwrap();
        assert_eq!(filters(), 0);
    }
}

#[test]
fn many_threads_may_run_commands_at_once() {
    let dir = place();
    let sandbox = sandbox(&dir);
    std::thread::scope(|scope| {
        for t in 0..8 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for i in 0..10 {
                    let word = format!("{t}-{i}");
                    let out = sandbox.command("echo").arg(&word).output().unwrap();
                    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), word);
                    // Memory is taken and given meanwhile, so that a lock held at the clone shows.
                    drop(vec![0u8; 1 << 16]);
                }
            });
        }
    });
}

#[test]
fn no_descriptor_thread_or_child_is_left_behind() {
    let dir = place();
    let sandbox =
        Sandbox::builder().workspace(dir.path()).timeout(Duration::from_secs(60)).build().unwrap();
    let run = || assert!(sandbox.command("true").output().unwrap().status.success());
    run();
    let mine = format!("{:?}", std::thread::current().id());
    let dead = || {
        let children = std::fs::read_to_string(format!("/proc/self/task/{}/children", tid()));
        children.unwrap_or_default().split_ascii_whitespace().count()
    };
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count() + dead();
    // Other tests of this process open and close descriptors at the same time: look for a trend.
    let least = |n: usize| {
        (0..n)
            .map(|_| {
                run();
                count()
            })
            .min()
            .unwrap()
    };
    let before = least(20);
    let after = least(40);
    assert!(after < before + 20, "{mine}: {before} descriptors and children before, {after} after");
}

/// This thread's id, by which the kernel lists its children.
fn tid() -> u32 {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn deciding_ends_before_confining() {
    let dir = place();
    std::fs::create_dir_all(dir.path().join("names/inner")).unwrap();
    // What is granted inside something hidden cannot be shown: said by the plan, before anything is made.
    let mut policy = ringfence::profile("strict").unwrap();
    let names = dir.path().join("names").canonicalize().unwrap();
    let rule = |path: &std::path::Path, permission, effect| ringfence_policy::Rule {
        effect,
        ..ringfence_policy::Rule::grant_path(path, permission, "test").unwrap()
    };
    let hidden = ringfence_policy::Effect::Cap;
    let shown = ringfence_policy::Effect::Grant;
    policy.files.rules.push(rule(&names, ringfence::Permission::None, hidden));
    policy.files.rules.push(rule(&names.join("inner"), ringfence::Permission::Read, shown));
    let sandbox = Sandbox::builder().workspace(dir.path()).policy(policy).build().unwrap();
    let planned = sandbox.plan().unwrap_err();
    assert!(planned.is_refused(), "{planned}");
    let ran = sandbox.command("touch").arg("/tmp/x").status().unwrap_err();
    assert_eq!(ran.to_string(), planned.to_string());
}

#[test]
fn nothing_is_degraded_silently() {
    let dir = place();
    let out = sandbox(&dir).command("true").output().unwrap();
    // Guarded names that do not exist yet can be created for a while.
    assert!(out.report.degraded.iter().any(|d| d.name == "absent-guards"));
    // A limit is in force, or weaker and said, or the run is refused by its name.
    let limited =
        Sandbox::builder().workspace(dir.path()).pids(4000).memory(1 << 30).build().unwrap();
    match limited.command("true").output() {
        Ok(out) => {
            let said = |name: &str| {
                let r = &out.report;
                r.enforced.iter().chain(&r.degraded).any(|p| p.name == name)
            };
            assert!(said("pids-limit") && said("memory-limit"), "{:?}", out.report);
        }
        Err(e) => assert!(e.is_refused() && e.to_string().contains("memory-limit"), "{e}"),
    }
}

#[test]
fn a_plan_does_not_grow_with_the_tree() {
    let (small, large) = (place(), place());
    for i in 0..2000 {
        std::fs::write(large.path().join(format!("f{i}")), "").unwrap();
    }
    let steps = |dir: &tempfile::TempDir| sandbox(dir).plan().unwrap().steps.len();
    assert_eq!(steps(&small), steps(&large));
}

#[test]
fn a_command_that_keeps_stopping_ends_all_the_same() {
    // Each stop is a message from init; more of them than the channel holds.
    let dir = place();
    let script = "(while kill -CONT $$ 2>/dev/null; do :; done) & \
                  i=0; while [ $i -lt 2000 ]; do kill -STOP $$; i=$((i+1)); done; exit 5";
    let mut child = sandbox(&dir).command("sh").args(["-c", script]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(child.wait().unwrap().code(), Some(5));
}
