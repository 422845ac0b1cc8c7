use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use super::discover::{Hierarchies, Owner, Place, stale_under};
use super::scope::{Parent, choose_parent, keyed, parse_cpu_max};
use super::*;

const MIB: u64 = 1024 * 1024;

fn place(top: &str, own: &str) -> Place {
    Place { top: PathBuf::from(top), own: PathBuf::from(own) }
}

#[test]
fn cgroup_finds_v1_with_an_empty_v2() {
    let found = Hierarchies::parse(
        b"9:name=systemd:/\n8:pids:/\n4:memory:/jobs/e711\n2:cpuacct:/\n1:cpu:/\n0::/\n",
        b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
          32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
          33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n\
          35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
          39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
          40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
          41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
    );
    assert!(Controller::ALL.iter().all(|&controller| found.on_v1(controller)));
    assert_eq!(
        found.v1(Controller::Memory),
        Ok(place("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/jobs/e711"))
    );
    assert_eq!(found.v1(Controller::Pids), Ok(place("/sys/fs/cgroup/pids", "/sys/fs/cgroup/pids")));
    assert_eq!(found.v2(), Ok(place("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified")));
}

#[test]
fn cgroup_finds_a_hybrid_host_with_joint_controllers() {
    let found = Hierarchies::parse(
        b"12:pids:/user.slice/user-1000.slice/session-2.scope\n\
          5:cpu,cpuacct:/user.slice\n3:memory:/user.slice/user-1000.slice/session-2.scope\n\
          1:name=systemd:/user.slice/user-1000.slice/session-2.scope\n\
          0::/user.slice/user-1000.slice/session-2.scope\n",
        b"25 20 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755\n\
          26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n\
          30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:13 master:2 - cgroup cgroup rw,cpu,cpuacct\n\
          31 25 0:28 / /sys/fs/cgroup/memory rw shared:14 - cgroup cgroup rw,memory\n",
    );
    assert_eq!(
        found.v1(Controller::Cpu),
        Ok(place("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/user.slice"))
    );
    assert_eq!(found.v1(Controller::Pids), Err("the hierarchy is not mounted".to_owned()));
    assert!(found.v2().is_ok_and(|place| place.own.ends_with("session-2.scope")));
}

#[test]
fn cgroup_finds_v2_alone_in_a_user_session() {
    let scope = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-term-1.scope";
    let found = Hierarchies::parse(
        format!("0::{scope}\n").as_bytes(),
        b"34 25 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
    );
    assert!(!Controller::ALL.iter().any(|&controller| found.on_v1(controller)));
    assert_eq!(found.v2(), Ok(place("/sys/fs/cgroup", &format!("/sys/fs/cgroup{scope}"))));
}

#[test]
fn cgroup_finds_its_place_in_containers() {
    // Own cgroup namespace, writable.
    let own = b"600 590 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    assert_eq!(
        Hierarchies::parse(b"0::/\n", own).v2(),
        Ok(place("/sys/fs/cgroup", "/sys/fs/cgroup"))
    );
    // The usual container: read-only.
    let read_only = b"600 590 0:29 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n";
    assert_eq!(
        Hierarchies::parse(b"0::/\n", read_only).v2(),
        Err("/sys/fs/cgroup is mounted read-only".to_owned())
    );
    // No cgroup namespace: the container's group is bound, not the whole tree.
    let bound =
        b"600 590 0:29 /docker/4f\\040x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    assert_eq!(
        Hierarchies::parse(b"4:memory:/docker/4f x/inner\n", bound).v1(Controller::Memory),
        Ok(place("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/inner"))
    );
    assert!(Hierarchies::parse(b"4:memory:/other\n", bound).v1(Controller::Memory).is_err());
}

#[test]
fn cgroup_never_climbs_out_of_its_namespace() {
    let outer = b"600 590 0:29 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    assert!(Hierarchies::parse(b"0::/\n", outer).v2().is_err());
    let plain = b"600 590 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    assert!(Hierarchies::parse(b"0::/../elsewhere\n", plain).v2().is_err());
}

#[test]
fn cgroup_survives_odd_input() {
    for text in [&b""[..], b"\n\n", b"0::", b"::::", b"1:x", b"a b c d e f - cgroup2", b"\xff\\4 -"]
    {
        let found = Hierarchies::parse(text, text);
        let _ = (found.v2(), found.v1(Controller::Memory));
    }
    assert!(Hierarchies::parse(b"", b"").v2().is_err());
}

#[test]
fn cgroup_reads_counters() {
    let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
    assert_eq!(keyed(events, "oom_kill"), Some(2));
    assert_eq!(keyed(events, "oom"), Some(3));
    assert_eq!(keyed(events, "absent"), None);
    assert_eq!(parse_cpu_max("max 100000\n"), None);
    assert_eq!(parse_cpu_max("150000 100000\n"), Some(150));
    assert_eq!(parse_cpu_max("1 100000\n"), Some(1));
    assert_eq!(parse_cpu_max("5 0\n"), None);
}

#[test]
fn cgroup_names_tell_the_dead_from_the_living() {
    let me = Owner::current().unwrap();
    let name = me.name(7, "npm test/\u{e9}");
    assert_eq!(Owner::parse(name.as_bytes()), Some(me));
    assert!(name.ends_with(".7-npm_test___"), "{name}");
    assert!(me.name(7, &"x".repeat(1000)).len() < 200);
    assert!(!me.is_dead(&me));
    let later = Owner { started: me.started + 1, ..me };
    assert!(later.is_dead(&me), "the id was used again");
    assert!(!Owner { namespace: 1, ..later }.is_dead(&me), "another namespace cannot be judged");
    let mut child = Command::new("true").spawn().unwrap();
    let gone = Owner { pid: child.id(), ..me };
    child.wait().unwrap();
    assert!(gone.is_dead(&me));
    for odd in [
        "ringfence-",
        "ringfence-x",
        "ringfence-1.2.3-x",
        "ringfence-1.2.3.4",
        "x-1.2.3.4-y",
        "ringfence-1.2.3.4.5-x",
        "ringfence-1.2.3.-x",
    ] {
        assert_eq!(Owner::parse(odd.as_bytes()), None, "{odd}");
    }
    let tmp = tempfile::tempdir().unwrap();
    for name in [&gone.name(0, "a"), &me.name(1, "b"), "system.slice"] {
        std::fs::create_dir(tmp.path().join(name)).unwrap();
    }
    assert_eq!(stale_under(tmp.path(), &me), [tmp.path().join(gone.name(0, "a"))]);
}

/// A directory that looks like a v2 group; without a file `cgroup.procs` it cannot be written.
fn fake_group(path: &Path, procs: Option<&str>, controllers: &str, hands_on: &str) {
    std::fs::create_dir_all(path).unwrap();
    std::fs::write(path.join("cgroup.type"), "domain\n").unwrap();
    std::fs::write(path.join("cgroup.controllers"), controllers).unwrap();
    std::fs::write(path.join("cgroup.subtree_control"), hands_on).unwrap();
    if let Some(procs) = procs {
        std::fs::write(path.join("cgroup.procs"), procs).unwrap();
    }
}

#[test]
fn cgroup_v2_parent_is_the_nearest_that_can_serve() {
    use Controller::{Cpu, Memory, Pids};
    let tmp = tempfile::tempdir().unwrap();
    let top = tmp.path();
    let service = top.join("user.slice/user@1000.service");
    let slice = service.join("app.slice");
    let own = slice.join("app-term.scope");
    fake_group(top, None, "cpu io memory pids", "cpu io memory pids");
    fake_group(&top.join("user.slice"), None, "cpu io memory pids", "cpu io memory pids");
    fake_group(&service, Some(""), "cpu memory pids", "cpu memory pids");
    fake_group(&slice, Some(""), "memory pids", "memory pids");
    fake_group(&own, Some("17\n"), "memory pids", "");
    let place = Place { top: top.to_owned(), own: own.clone() };
    // Not the own group, which has processes, although writing to its files would succeed here, as
    // it does on a real kernel for cpu and pids.
    let near = choose_parent(&place, &[Memory, Pids]).unwrap();
    assert_eq!(near.path, slice);
    assert_eq!(std::fs::read(own.join("cgroup.subtree_control")).unwrap(), b"");
    let all = choose_parent(&place, &[Memory, Cpu, Pids]).unwrap();
    assert_eq!(all, Parent { path: service.clone(), hands_on: vec![Memory, Cpu, Pids] });

    // Threaded groups are passed by.
    std::fs::write(slice.join("cgroup.type"), "domain threaded\n").unwrap();
    assert_eq!(choose_parent(&place, &[Memory, Pids]).unwrap().path, service);

    // Nothing that can be written: the reason names the own group.
    for path in [&service, &slice, &own] {
        std::fs::remove_file(path.join("cgroup.procs")).unwrap();
    }
    let reason = choose_parent(&place, &[Memory]).unwrap_err();
    assert!(reason.contains("app-term.scope") && reason.contains("cannot write"), "{reason}");
}

#[test]
fn cgroup_v2_parent_may_serve_in_part() {
    use Controller::{Cpu, Memory, Pids};
    let tmp = tempfile::tempdir().unwrap();
    let own = tmp.path().join("own");
    fake_group(tmp.path(), Some(""), "memory", "memory");
    fake_group(&own, Some("17\n"), "memory", "");
    let place = Place { top: tmp.path().to_owned(), own };
    let parent = choose_parent(&place, &[Memory, Cpu]).unwrap();
    assert_eq!(parent, Parent { path: tmp.path().to_owned(), hands_on: vec![Memory] });
    assert!(choose_parent(&place, &[Pids]).unwrap_err().contains("hands on"));
}

#[test]
fn cgroup_refuses_limits_of_zero() {
    let request = Request { memory: Some(0), cpu_percent: Some(0), pids: Some(0) };
    let outcome = create(&request, "zero");
    assert!(outcome.scope.is_none() && outcome.enforced.is_empty());
    assert_eq!(outcome.missing.len(), 3);
    let nothing = create(&Request::default(), "nothing");
    assert!(nothing.scope.is_none() && nothing.missing.is_empty());
}

// From here on against the kernel, where a group can be had.

/// The scope with exactly these limits, or `None`, with the reason printed, where this host or user
/// cannot have them.
fn scope(request: Request, name: &str) -> Option<Scope> {
    let outcome = create(&request, name);
    assert_eq!(
        outcome.enforced.len() + outcome.missing.len(),
        request.controllers().count(),
        "{outcome:?}"
    );
    for missing in &outcome.missing {
        println!("skipped: no limit of {}: {}", missing.controller, missing.reason);
    }
    outcome.scope.filter(|_| outcome.missing.is_empty())
}

/// Runs a shell script inside the scope.
fn run(scope: &Scope, script: &str) -> ExitStatus {
    inside(scope, script).status().unwrap()
}

fn inside(scope: &Scope, script: &str) -> Command {
    let fds: Vec<std::os::fd::RawFd> =
        scope.procs_fds(false).map(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd)).collect();
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command.stderr(std::process::Stdio::null());
    // SAFETY: only writes to descriptors, which stay open as long as the scope that outlives the
    // command; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            for &fd in &fds {
                enter(std::os::fd::BorrowedFd::borrow_raw(fd))?;
            }
            Ok(())
        });
    }
    command
}

/// Every group with this label that this process made, in every hierarchy.
fn left_behind(label: &str) -> Vec<PathBuf> {
    fn search(dir: &Path, label: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let mine = format!("ringfence-{}.", std::process::id());
                if name.starts_with(&mine) && name.ends_with(label) {
                    found.push(entry.path());
                }
                search(&entry.path(), label, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), &format!("-{label}"), &mut found);
    found
}

#[test]
fn cgroup_memory_limit_kills_a_hog() {
    let request = Request { memory: Some(32 * MIB), ..Request::default() };
    let Some(scope) = scope(request, "test-memory") else { return };
    let hog = "exec dd if=/dev/zero of=/dev/null bs=200M count=1";
    assert!(run(&scope, "true").success());
    assert!(!scope.oom_killed());
    let status = run(&scope, hog);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    assert!(scope.oom_killed());
    let usage = scope.usage();
    println!("{usage:?}");
    assert!(usage.memory_peak.is_none_or(|peak| peak > 8 * MIB && peak <= 33 * MIB));
    scope.remove().unwrap();
    assert_eq!(left_behind("test-memory"), Vec::<PathBuf>::new());
    // The control: without the limit it ends well.
    assert!(Command::new("sh").args(["-c", hog]).status().unwrap().success());
}

#[test]
fn cgroup_pids_limit_holds() {
    let request = Request { pids: Some(8), ..Request::default() };
    let Some(scope) = scope(request, "test-pids") else { return };
    let forks = "i=0; while [ $i -lt 20 ]; do sleep 60 & i=$((i+1)); done";
    let mut child = inside(&scope, forks).spawn().unwrap();
    let start = Instant::now();
    while scope.usage().forks_refused == Some(0) && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(scope.usage().forks_refused.is_some_and(|refused| refused > 0));
    assert!(!scope.is_empty());
    // What still runs is killed, and the group is gone.
    let start = Instant::now();
    scope.remove().unwrap();
    println!("removed with its processes in {:?}", start.elapsed());
    child.wait().unwrap();
    assert_eq!(left_behind("test-pids"), Vec::<PathBuf>::new());
}

#[test]
fn cgroup_cpu_limit_slows() {
    let request = Request { cpu_percent: Some(10), ..Request::default() };
    let Some(scope) = scope(request, "test-cpu") else { return };
    let before = Instant::now();
    let mut child = inside(&scope, "while :; do :; done").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    // The child's own account, which needs no cpuacct.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let ticks: u32 = stat.split(' ').skip(13).take(2).map(|t| t.parse::<u32>().unwrap()).sum();
    let share = f64::from(ticks) / 100.0 / before.elapsed().as_secs_f64();
    scope.kill();
    child.wait().unwrap();
    println!("share of a CPU: {share:.2}");
    assert!(share < 0.3, "{share}");
    drop(scope);
    assert_eq!(left_behind("test-cpu"), Vec::<PathBuf>::new());
}

#[test]
fn cgroup_kill_takes_the_whole_tree() {
    let request = Request { memory: Some(256 * MIB), pids: Some(64), cpu_percent: Some(100) };
    let Some(scope) = scope(request, "test-kill") else { return };
    // A double fork in a session of its own, so that no process group leads to it.
    let mut child = inside(&scope, "setsid sleep 1000 & setsid sh -c 'sleep 1000 & wait' & wait");
    let mut child = child.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!scope.is_empty());
    scope.kill();
    child.wait().unwrap();
    let start = Instant::now();
    while !scope.is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(1));
    }
    scope.remove().unwrap();
    assert_eq!(left_behind("test-kill"), Vec::<PathBuf>::new());
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    before: [u64; 4],
    exit_signal: u64,
    middle: [u64; 5],
    cgroup: u64,
}

#[test]
fn cgroup_children_are_born_into_v2() {
    let request = Request { pids: Some(64), ..Request::default() };
    let Some(scope) = scope(request, "test-born") else { return };
    let Some(dir) = scope.dir_fd() else {
        println!("skipped: no writable v2 group");
        return;
    };
    let args = CloneArgs {
        before: [0x2_0000_0000, 0, 0, 0], // CLONE_INTO_CGROUP
        exit_signal: libc::SIGCHLD as u64,
        cgroup: std::os::fd::AsRawFd::as_raw_fd(&dir) as u64,
        ..CloneArgs::default()
    };
    // SAFETY: a fork; the child only sleeps and leaves by _exit. `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: system calls only.
        unsafe {
            libc::pause();
            libc::_exit(0)
        }
    }
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let last = group.lines().find(|line| line.starts_with("0::")).unwrap().to_owned();
    assert!(scope.procs_fds(true).count() < scope.procs_fds(false).count());
    scope.kill();
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is a local integer.
    unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
    assert!(last.ends_with("-test-born"), "{group}");
    assert!(libc::WIFSIGNALED(status), "killed through the group");
}

#[test]
fn cgroup_sweep_removes_what_a_killed_supervisor_left() {
    let request = Request { pids: Some(64), ..Request::default() };
    let Some(mine) = scope(request, "test-sweep") else { return };
    // A group of a supervisor that is dead, with a process still in it.
    let me = Owner::current().unwrap();
    let mut dead = Command::new("true").spawn().unwrap();
    let owner = Owner { pid: dead.id(), ..me };
    dead.wait().unwrap();
    let mine_at = left_behind("test-sweep");
    let parent = mine_at.first().and_then(|path| path.parent()).unwrap().to_owned();
    let stale = parent.join(owner.name(0, "test-swept"));
    std::fs::create_dir(&stale).unwrap();
    let mut orphan = Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(stale.join("cgroup.procs"), orphan.id().to_string()).unwrap();
    // Reaped as an orphan would be by init.
    let reaper = std::thread::spawn(move || orphan.wait().unwrap());
    let start = Instant::now();
    assert!(sweep_stale() >= 1);
    println!("swept in {:?}", start.elapsed());
    assert!(!reaper.join().unwrap().success());
    assert!(!stale.exists());
    assert_eq!(left_behind("test-sweep"), mine_at, "the living keep theirs");
    mine.remove().unwrap();
}

/// `cargo test --release -p ringfence-sys cgroup_measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn cgroup_measure() {
    let request = Request { memory: Some(256 * MIB), pids: Some(64), cpu_percent: Some(100) };
    let (mut made, mut entered, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..100 {
        let start = Instant::now();
        let Some(scope) = scope(request, "test-measure") else { return };
        made.push(start.elapsed());
        let start = Instant::now();
        assert!(run(&scope, ":").success());
        entered.push(start.elapsed());
        let start = Instant::now();
        scope.remove().unwrap();
        removed.push(start.elapsed());
    }
    for (name, mut times) in [("create", made), ("sh inside", entered), ("remove", removed)] {
        times.sort();
        println!("{name}: {:?} / {:?} / {:?}", times[0], times[50], times[99]);
    }
}

/// What forks and wakes others all the time stands still at once, what is spared goes on, and so does all afterwards.
#[test]
fn cgroup_freezer_holds_all_but_one() {
    let request = Request { pids: Some(64), ..Request::default() };
    let Some(scope) = scope(request, "test-freeze") else { return };
    let directory = tempfile::tempdir().unwrap();
    let count =
        |name: &str| format!("while :; do echo >> {}/{name}; done", directory.path().display());
    let script = format!("{} & while :; do kill -CONT 0; (:) & wait $!; done", count("held"));
    let mut held =
        inside(&scope, &format!("trap '' CONT; {script}")).process_group(0).spawn().unwrap();
    let mut spared = inside(&scope, &count("spared")).spawn().unwrap();
    let spared_pid = rustix::process::Pid::from_child(&spared);
    let Some(freezer) = Freezer::of(spared.id()) else {
        println!("skipped: no group of cgroup v2 can be had here");
        scope.kill();
        held.wait().unwrap();
        spared.wait().unwrap();
        return;
    };
    let size = |name: &str| std::fs::metadata(directory.path().join(name)).map_or(0, |m| m.len());
    let moves = |name: &str| {
        let before = size(name);
        std::thread::sleep(Duration::from_millis(200));
        size(name) != before
    };
    while size("held") == 0 || size("spared") == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..3 {
        freezer.freeze(spared_pid).unwrap();
        assert!(!moves("held") && moves("spared"));
        // Again is no error.
        freezer.freeze(spared_pid).unwrap();
        freezer.thaw().unwrap();
        assert!(moves("held") && moves("spared"));
    }
    // Killed while it is frozen.
    freezer.freeze(spared_pid).unwrap();
    let start = Instant::now();
    scope.remove().unwrap();
    println!("removed while it was frozen in {:?}", start.elapsed());
    held.wait().unwrap();
    spared.wait().unwrap();
    assert_eq!(left_behind("test-freeze"), Vec::<PathBuf>::new());
    assert!(Freezer::of(std::process::id()).is_none(), "the tests are in no group of a run");
}
