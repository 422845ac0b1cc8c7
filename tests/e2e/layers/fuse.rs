//! `ringfence run --exact`: every operation in the workspace is decided by its path.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{ORDINARY_ID, Place, Ran, User, as_each_user, binary, has};

/// Rules with something of everything, beside the built-in ones.
const POLICY: &str = r#"extends = "workspace"

[[files.rules]]
pattern = "**/*"
permission = "write"

[[files.rules]]
pattern = "/listed/**"
permission = "view"
priority = 10

[[files.rules]]
pattern = "/fixed/**"
permission = "read"
priority = 10

[[files.rules]]
pattern = "**/*.secret"
permission = "none"
priority = 20
"#;

/// A command as the user of the place, who can open the device. Where only root can, an ordinary user
/// gets a node of its own, in a mount namespace that ends with the command.
pub fn with_device(p: &Place, program: &Path, args: &[&str]) -> Option<Command> {
    let device = "/dev/fuse";
    if !Path::new(device).exists() {
        println!("skipped: there is no {device}");
        return None;
    }
    if p.user == User::Me {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        if let Err(e) = rustix::fs::open(device, flags, rustix::fs::Mode::empty()) {
            println!("skipped: {device} cannot be opened: {e}");
            return None;
        }
        let mut command = p.command(program);
        command.args(args);
        return Some(command);
    }
    if !has("unshare") || !has("setpriv") {
        return None;
    }
    let script = format!(
        "d=$(mktemp -d) && mount -t tmpfs -o mode=755 private \"$d\" && mknod -m 666 \"$d/fuse\" c 10 229 \
         && mount --bind \"$d/fuse\" {device} && umount -l \"$d\" && rmdir \"$d\" \
         && exec setpriv --reuid {ORDINARY_ID} --regid {ORDINARY_ID} --clear-groups -- \"$@\""
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--", "/bin/sh", "-c", &script, "sh"])
        .arg(program)
        .args(args)
        .current_dir(p.workspace())
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", p.home())
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null());
    Some(command)
}

/// The project's policy is the user's own here, beside the project.
fn policy(p: &Place) -> String {
    let file = p.outside().join("policy.toml");
    std::fs::write(&file, POLICY).unwrap();
    p.own(&file);
    file.to_str().unwrap().to_owned()
}

fn command(p: &Place, script: &str) -> Option<Command> {
    let policy = policy(p);
    with_device(p, binary(), &["run", "--exact", "-s", &policy, "--", "/bin/sh", "-c", script])
}

fn shell(p: &Place, script: &str) -> Option<Ran> {
    Some(Ran::of(&mut command(p, script)?))
}

fn project(p: &Place) {
    p.write("listed/file", "listed");
    p.write("fixed/file", "fixed");
    p.write("free/plain", "plain");
    p.write("free/a.secret", "SECRET");
    p.write(".env", "SECRET");
}

#[test]
fn hidden_names_are_nowhere_and_are_not_made() {
    as_each_user(|p| {
        project(p);
        let Some(ran) = shell(
            p,
            "find . | sort; cat free/a.secret .env; echo x > new.secret; mkdir m.secret; \
             mv free/plain b.secret; ln free/plain c.secret; ln -s free/plain d.secret; mv free moved; \
             rm -rf free; ls -a free",
        ) else {
            return;
        };
        assert!(!ran.out.contains("secret") && !ran.out.contains(".env"), "{ran:#?}");
        assert!(!ran.out.contains("SECRET"), "{ran:#?}");
        for refusal in ["new.secret: Permission denied", "cannot create directory", "'moved'"] {
            assert!(ran.err.contains(refusal), "{refusal}: {ran:#?}");
        }
        let left = |path: &str| p.workspace().join(path);
        assert!(left("free/a.secret").exists() && left(".env").exists());
        assert!(!left("moved").exists() && !left("new.secret").exists());
        // The control: without rules all of that is there and can be had.
        p.bare("cat free/a.secret .env && mv free moved && mv moved free").ok().says("SECRET");
    });
}

#[test]
fn what_may_be_listed_is_not_read_and_what_may_be_read_is_not_changed() {
    as_each_user(|p| {
        project(p);
        let Some(ran) = shell(
            p,
            "stat -c %s listed/file; cat listed/file; cat fixed/file; echo; echo x >> fixed/file; \
             touch fixed/new; chmod 777 fixed/file; mv fixed/file free/; ln fixed/file free/l; \
             truncate -s 0 fixed/file; rm -f fixed/file; cp fixed/file free/copy && cat free/copy",
        ) else {
            return;
        };
        assert_eq!(ran.out, "6\nfixed\nfixed", "{ran:#?}");
        assert!(ran.err.contains("listed/file: Permission denied"), "{ran:#?}");
        let fixed = p.workspace().join("fixed");
        assert_eq!(std::fs::read_to_string(fixed.join("file")).unwrap(), "fixed");
        assert_eq!(std::fs::read_dir(&fixed).unwrap().count(), 1);
        p.bare("echo x >> fixed/file && cat listed/file").ok().says("listed");
    });
}

#[test]
fn names_that_the_host_makes_later_are_decided_too() {
    as_each_user(|p| {
        project(p);
        let script = "until [ -e go ]; do sleep 0.02; done; ls free; cat free/late.secret free/was-plain; \
                      cat free/late";
        let Some(mut command) = command(p, script) else { return };
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        p.write("free/late.secret", "SECRET");
        p.write("free/late", "late");
        let free = p.workspace().join("free");
        std::fs::rename(free.join("plain"), free.join("plain.secret")).unwrap();
        p.write("go", "");
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.out, "late\nlate", "{ran:#?}");
    });
}

#[test]
fn files_keep_their_owner_and_show_as_the_users() {
    as_each_user(|p| {
        project(p);
        let (uid, gid) = p.ids();
        let script = "umask 027; echo x > free/new; mkdir free/dir; stat -c '%u %g %a' . free/plain \
                      free/new free/dir";
        let Some(ran) = shell(p, script) else { return };
        let ran = ran.ok();
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!(lines[2], format!("{uid} {gid} 640"), "{ran:#?}");
        assert_eq!(lines[3], format!("{uid} {gid} 750"), "{ran:#?}");
        assert!(lines.iter().all(|l| l.starts_with(&uid.to_string())), "{ran:#?}");
        let meta = std::fs::metadata(p.workspace().join("free/new")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (uid, gid, 0o640));
    });
}

#[test]
fn git_and_python_work() {
    if !has("git") || !has("python3") {
        return;
    }
    as_each_user(|p| {
        project(p);
        p.bare(
            "git init -q -b main . && git add free/plain && git -c user.name=a -c user.email=a@b commit -qm one",
        )
        .ok();
        let script = "set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a \
            GIT_COMMITTER_EMAIL=a@b; echo more > free/more; git add free/more; git commit -qm two; \
            git log --oneline | wc -l; git checkout -q -b side HEAD~1; echo s > free/side; git add free/side; \
            git commit -qm side; git rebase -q main; git log --oneline | wc -l; \
            python3 -c \"import sqlite3,mmap,os
c=sqlite3.connect('free/db'); c.execute('create table t(a)'); c.execute('insert into t values(1)'); c.commit()
print(c.execute('select * from t').fetchone())
f=open('free/m','w+b'); f.truncate(8192); m=mmap.mmap(f.fileno(),8192); m[4096:4099]=b'abc'; m.flush()
print(os.pread(f.fileno(),3,4096))\"; echo touched > .git/hooks/x && exit 9; exit 0";
        let Some(ran) = shell(p, script) else { return };
        let ran = ran.ok();
        assert_eq!(ran.out, "2\n3\n(1,)\nb'abc'\n", "{ran:#?}");
        assert!(!p.workspace().join(".git/hooks/x").exists());
        let mapped = std::fs::read(p.workspace().join("free/m")).unwrap();
        assert_eq!(&mapped[4096..4099], b"abc");
    });
}

#[test]
fn without_its_supervisor_a_view_is_gone_with_the_run() {
    as_each_user(|p| {
        project(p);
        let Some(mut command) = command(p, "echo started > free/started; sleep 60") else { return };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = p.workspace().join("free/started");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !started.exists() {
            assert!(Instant::now() < deadline, "did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = p.workspace();
        assert!(!mounts().contains(place.to_str().unwrap()), "the host sees the mount");
        let inside = loop {
            let inside = processes_in(&place);
            if !inside.is_empty() {
                break inside;
            }
            assert!(Instant::now() < deadline, "nothing runs in the view");
            std::thread::sleep(Duration::from_millis(10));
        };
        // By every wrapper the same process: each replaces itself.
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while inside.iter().any(|pid| Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok()) {
            assert!(Instant::now() < deadline, "something outlived its supervisor");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!mounts().contains(place.to_str().unwrap()));
        // What was written before is there.
        assert_eq!(std::fs::read_to_string(started).unwrap(), "started\n");
    });
}

/// Processes that stand in a directory of this path, in whatever namespace.
fn processes_in(path: &Path) -> Vec<String> {
    let list = std::fs::read_dir("/proc").unwrap().flatten();
    let names = list.filter_map(|entry| entry.file_name().into_string().ok());
    let pids = names.filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    pids.filter(|pid| {
        let own = pid.parse() == Ok(std::process::id());
        let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == path);
        !own && program.trim() == "sleep" && here
    })
    .collect()
}

#[test]
fn where_it_cannot_be_had_nothing_runs_and_the_remedy_is_told() {
    as_each_user(|p| {
        project(p);
        if p.user == User::Me {
            // Nobody else's device to hide.
            return;
        }
        let can = |p: &Place| {
            let mut test = p.command("/bin/sh");
            Ran::of(test.args(["-c", "test -r /dev/fuse && test -w /dev/fuse"])).code == Some(0)
        };
        if can(p) {
            println!("skipped: every user may open /dev/fuse here");
            return;
        }
        let ran = p.shell(&["--exact"], "echo ran");
        assert!(!ran.out.contains("ran"), "{ran:#?}");
        ran.failed_with(126).says("/dev/fuse").says("remedy").says("chmod 0666");
    });
}

#[test]
fn the_plan_names_the_mechanism_and_why() {
    let p = Place::new(User::Me);
    project(&p);
    let Some(mut command) =
        with_device(&p, binary(), &["run", "--exact", "--explain", "--", "true"])
    else {
        return;
    };
    let ran = Ran::of(&mut command).ok();
    let line = ran.out.lines().find(|l| l.contains("fuse")).unwrap_or_default();
    assert!(line.contains("each path by the rules"), "{ran:#?}");
    assert!(line.contains("names that appear later"), "{ran:#?}");
}

#[test]
fn presets_with_patterns_are_exact_without_being_asked() {
    as_each_user(|p| {
        p.write("src/plain", "plain");
        p.write("src/a.key", "SECRET");
        let script = "until [ -e go ]; do sleep 0.02; done; ls -a . src secrets src/secrets; \
            cat src/late.key secrets/x src/secrets/x .env.late; echo x > src/new; \
            mkdir output && echo out > output/made && cat output/made; echo x > output/new.key";
        let args = ["run", "-t", "agent-safe", "--", "/bin/sh", "-c", script];
        let Some(mut command) = with_device(p, binary(), &args) else { return };
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        for late in ["src/late.key", "secrets/x", "src/secrets/x", ".env.late"] {
            p.write(late, "SECRET");
        }
        p.write("go", "");
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert!(!ran.out.contains("SECRET") && !ran.out.contains("key"), "{ran:#?}");
        assert!(!ran.out.contains("late") && !ran.out.contains("secrets\n"), "{ran:#?}");
        assert!(ran.out.contains("plain\n") && ran.out.ends_with("out\n"), "{ran:#?}");
        assert!(ran.err.contains("cannot create src/new"), "{ran:#?}");
        let output = p.workspace().join("output");
        assert!(output.join("made").exists() && !output.join("new.key").exists());
        // The control: all of it is there.
        p.bare("cat src/late.key secrets/x .env.late").ok().says("SECRETSECRETSECRET");
    });
}

/// The line of the plan for the workspace, and the whole.
fn explained(p: &Place, flags: &[&str]) -> Option<(String, Ran)> {
    let args: Vec<&str> =
        ["run"].iter().chain(flags).chain(&["--explain", "--", "true"]).copied().collect();
    let ran = Ran::of(&mut with_device(p, binary(), &args)?);
    let place = format!("  {} ", p.workspace().display());
    let line = ran.out.lines().find(|l| l.starts_with(&place)).unwrap_or_default().to_owned();
    Some((line, ran))
}

#[test]
fn the_plan_serves_by_path_only_what_nothing_cheaper_holds() {
    as_each_user(|p| {
        project(p);
        p.write("kept/file", "kept");
        let settings = |text: &str| {
            let file = p.outside().join("rules.toml");
            std::fs::write(&file, text).unwrap();
            p.own(&file);
            file.to_str().unwrap().to_owned()
        };
        let rule = |pattern: &str, permission: &str| {
            settings(&format!(
                "extends = \"full-access\"\n[[files.rules]]\npattern = \"{pattern}\"\n\
                 permission = \"{permission}\"\npriority = 10\n"
            ))
        };
        // Whole directories that are there, and native patterns: mounts.
        for profile in ["workspace", "code", "strict", "permissive", "read-only", "full-access"] {
            let Some((line, _)) = explained(p, &["-t", profile]) else { return };
            assert!(!line.contains("fuse"), "{profile}: {line}");
        }
        let (line, _) = explained(p, &["-s", &rule("/kept/**", "read")]).unwrap();
        assert!(line.contains("read-write") && !line.contains("fuse"), "{line}");
        // Patterns, what is not there yet, what is hidden or listed.
        for (pattern, permission) in [
            ("**/*.key", "none"),
            ("/later/**", "read"),
            ("/kept/**", "none"),
            ("/kept/**", "view"),
        ] {
            let (line, ran) = explained(p, &["-s", &rule(pattern, permission)]).unwrap();
            assert!(line.contains("(fuse)") && line.contains(pattern), "{pattern}: {ran:#?}");
        }
        let only = settings("[[files.rules]]\npattern = \"/kept/**\"\npermission = \"read\"\n");
        let (line, ran) = explained(p, &["-t", "restrictive", "-s", &only]).unwrap();
        assert!(line.contains("(fuse)") && line.contains("hidden"), "{ran:#?}");
        // In a layer a mask holds them.
        let (line, ran) = explained(p, &["-t", "agent-safe", "--layer", "l"]).unwrap();
        assert!(!line.contains("fuse") && line.contains("layer"), "{ran:#?}");
        // A native rule that mounts cannot hold.
        let listed = settings(
            "extends = \"workspace\"\n[files]\nview = [\"listed\"]\nprotect = []\n[[files.rules]]\npattern = \"/listed\"\ntype = \"directory\"\npermission = \"view\"\n",
        );
        let (line, ran) = explained(p, &["-s", &listed]).unwrap();
        assert!(line.contains("(fuse)"), "{ran:#?}");
    });
}

#[test]
fn what_is_listed_below_tmp_is_not_read() {
    as_each_user(|p| {
        project(p);
        assert!(p.workspace().starts_with("/tmp"), "the private /tmp is around it");
        let script = "stat -c %s listed/file; ls free; cat listed/file free/plain; echo x > new; \
                      cp free/plain /tmp/own; echo own > /tmp/own && cat /tmp/own";
        let args = ["run", "-t", "view-only", "--", "/bin/sh", "-c", script];
        let Some(mut command) = with_device(p, binary(), &args) else { return };
        let viewed = Ran::of(&mut command);
        let masked = p.shell(&["-t", "view-only", "--layer", "l"], script);
        for ran in [viewed, masked] {
            assert_eq!(ran.out, "6\na.secret\nplain\nown\n", "{ran:#?}");
            assert!(ran.err.contains("listed/file: Permission denied"), "{ran:#?}");
            assert!(!p.workspace().join("new").exists());
        }
        p.bare("cat listed/file free/plain").ok().says("listedplain");
    });
}

#[test]
fn without_a_device_rules_of_names_are_refused_or_accepted_by_name() {
    as_each_user(|p| {
        project(p);
        let mut test = p.command("/bin/sh");
        if Ran::of(test.args(["-c", "test -r /dev/fuse && test -w /dev/fuse"])).code == Some(0) {
            println!("skipped: this user may open /dev/fuse");
            return;
        }
        let ran = p.shell(&["-t", "development"], "echo ran");
        assert!(!ran.out.contains("ran"), "{ran:#?}");
        ran.failed_with(126).says("exact-view").says("/dev/fuse").says("--layer NAME");
        p.shell(&["-t", "development", "--layer", "l"], "cat free/plain").ok().says("plain");
        let status = p.outside().join("status");
        let flags = [
            "-t",
            "development",
            "--accept-missing",
            "exact-view",
            "--status",
            status.to_str().unwrap(),
        ];
        let ran = p.shell(&flags, "cat free/plain .env").says("plain");
        assert!(
            !ran.out.contains("SECRET") && ran.err.contains("missing, as accepted"),
            "{ran:#?}"
        );
        let status = std::fs::read_to_string(status).unwrap();
        assert!(status.contains("exact-view"), "{status}");
    });
}

#[test]
fn pipes_and_sockets_open_as_their_permission_says() {
    if !has("python3") {
        return;
    }
    as_each_user(|p| {
        project(p);
        p.bare("chmod 777 listed fixed; mkfifo -m 666 listed/pipe fixed/pipe free/pipe free/hidden.secret; mkfifo -m 600 listed/own")
            .ok();
        let script = "python3 -c \"
import os, socket
def tried(what, how):
    try:
        fd = how()
        print(what, 'done')
        return fd
    except OSError as e:
        print(what, e.strerror)
for name in ('listed/pipe', 'listed/own', 'fixed/pipe', 'free/pipe', 'free/hidden.secret'):
    read = tried('read ' + name, lambda: os.open(name, os.O_RDONLY | os.O_NONBLOCK))
    tried('write ' + name, lambda: os.open(name, os.O_WRONLY | os.O_NONBLOCK))
    tried('both ' + name, lambda: os.open(name, os.O_RDWR | os.O_NONBLOCK))
    tried('chmod ' + name, lambda: os.chmod(name, 0o777))
s = socket.socket(socket.AF_UNIX); s.bind('free/socket'); s.listen()
tried('connect', lambda: socket.socket(socket.AF_UNIX).connect('free/socket'))
\"";
        let Some(ran) = shell(p, script) else { return };
        let ran = ran.ok();
        let expected: String = [
            ("listed/pipe", ["Permission denied"; 4]),
            ("listed/own", ["Permission denied"; 4]),
            ("fixed/pipe", ["done", "Permission denied", "Permission denied", "Permission denied"]),
            ("free/pipe", ["done"; 4]),
            ("free/hidden.secret", ["No such file or directory"; 4]),
        ]
        .iter()
        .flat_map(|(name, said)| {
            ["read", "write", "both", "chmod"]
                .iter()
                .zip(said)
                .map(move |(how, said)| format!("{how} {name} {said}\n"))
        })
        .collect();
        assert_eq!(ran.out, format!("{expected}connect done\n"), "{ran:#?}");
        let mode = std::fs::metadata(p.workspace().join("fixed/pipe")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o666, "the host's mode is its own");
        // The control: without rules each opens.
        p.bare("python3 -c \"import os; os.open('listed/pipe', os.O_RDWR); os.open('fixed/pipe', os.O_RDWR)\"").ok();
    });
}
