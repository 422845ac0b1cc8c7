//! `ringfence run --layer`: the real tree cannot be written, protections hold over whatever an earlier
//! run left in the layer, and tools work as on the host.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{ORDINARY_ID, Place, Ran, User, as_each_user, has, is_root, mode};
use crate::residue::snapshot::{self, Snapshot};

/// Everything of the project and of home that a user could notice, and more: the time of the last
/// change of any kind, and extended attributes. Without the store, which lies in home.
#[derive(Debug, PartialEq, Eq)]
struct Host {
    trees: [Snapshot; 3],
    exact: BTreeMap<PathBuf, String>,
}

fn is_store(path: &Path) -> bool {
    path.starts_with(".local")
}

fn host(p: &Place) -> Host {
    // Home itself and what leads to the store is made by the first run.
    let outside = |path: &Path| !is_store(path) && !path.as_os_str().is_empty();
    let trees = [
        snapshot::of(&p.workspace()),
        snapshot::only(&p.home(), &outside),
        snapshot::of(&p.outside()),
    ];
    let mut exact = BTreeMap::new();
    for (base, tree) in [p.workspace(), p.home(), p.outside()].iter().zip(&trees) {
        for relative in tree.keys() {
            let path = base.join(relative);
            let meta = path.symlink_metadata().unwrap();
            let mut names = vec![0u8; 4096];
            let n = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
            let seen = format!("{}.{:09} {:?}", meta.ctime(), meta.ctime_nsec(), &names[..n]);
            exact.insert(path, seen);
        }
    }
    Host { trees, exact }
}

#[track_caller]
fn assert_untouched(before: &Host, after: &Host, what: &str) {
    for (a, b) in before.trees.iter().zip(&after.trees) {
        snapshot::assert_same(a, b, what);
    }
    for (path, seen) in &before.exact {
        assert_eq!(Some(seen), after.exact.get(path), "{what}: {}", path.display());
    }
}

/// A project with something of everything.
fn project(p: &Place) {
    p.write("src/deep/a.txt", "a\n");
    p.write("src/b.txt", "b\n");
    p.write("big", vec![b'x'; 3 << 20]);
    p.write("empty", "");
    p.write("run.sh", "#!/bin/sh\necho run\n");
    mode(&p.workspace().join("run.sh"), 0o755);
    p.write(".env", "TOKEN=hidden\n");
    p.write("conf/local.key", "hidden\n");
    p.write(p.outside().join("shared/list"), "one\n");
    p.write(p.outside().join("single"), "single\n");
    p.write(p.home().join(".profile"), "# mine\n");
    p.bare("ln -s src/b.txt link; ln src/b.txt src/hard; mkdir -p gone/below; touch gone/below/x")
        .ok();
}

const DAMAGE: &str = "set -e
    echo more >> src/deep/a.txt; echo other > src/b.txt; : > big; echo new > new
    chmod 700 run.sh; touch -d '2001-01-01' empty; rm -r gone; mkdir gone; echo other > gone/y
    ln -sf nowhere link; rm src/hard; mv src/deep moved; mkdir -p n/e/w; mkfifo pipe
    mv run.sh n/e/w/run.sh; ln new new2; rmdir n/e/w 2>/dev/null || true
    sed -i s/o/0/ src/b.txt; truncate -s 1m sparse; echo t > \"$(printf 'a\\nb')\"";

#[test]
fn what_is_written_lands_in_the_layer_and_nowhere_else() {
    as_each_user(|p| {
        project(p);
        let shared = p.outside().join("shared");
        let single = p.outside().join("single");
        let flags: Vec<String> = ["--layer", "work", "--allow-write"]
            .map(String::from)
            .into_iter()
            .chain([shared.display().to_string(), "--allow-write".into()])
            .chain([single.display().to_string()])
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let before = host(p);
        let grants = format!(
            "{DAMAGE}; echo two >> {0}/list; echo new > {0}/new; echo changed > {1}",
            shared.display(),
            single.display()
        );
        p.shell(&flags, &grants).ok();
        assert_untouched(&before, &host(p), "after a run in a layer");
        // The next run in the layer goes on from there.
        let see = format!(
            "set -e; cat moved/a.txt src/b.txt new new2 gone/y {0}/list {0}/new {1}; \
             test ! -e src/hard; test ! -e src/deep; test ! -e gone/below; readlink link; \
             stat -c %a n/e/w/run.sh; test -p pipe; test $(stat -c %s sparse) = 1048576",
            shared.display(),
            single.display()
        );
        let seen = p.shell(&flags, &see).ok();
        assert_eq!(
            seen.out,
            "a\nmore\n0ther\nnew\nnew\nother\none\ntwo\nnew\nchanged\nnowhere\n700\n"
        );
        // Another layer knows nothing of it, and a run without one sees the host.
        let other = p.shell(&["--layer", "other"], "cat src/deep/a.txt; ls gone; cat new").out;
        assert_eq!(other, "a\nbelow\n");
        assert_untouched(&before, &host(p), "after all runs");
        // Control: the same without a layer changes the project.
        p.shell(&[], DAMAGE).ok();
        assert_ne!(before, host(p));
    });
}

#[test]
fn a_killed_run_leaves_the_host_as_it_was_and_the_layer_usable() {
    as_each_user(|p| {
        project(p);
        let before = host(p);
        // Moments from before the sandbox stands to long after.
        for (round, ms) in [0, 1, 2, 3, 5, 8, 12, 20, 40, 80].into_iter().enumerate() {
            let script = format!(
                "i=0; while :; do i=$((i+1)); echo $i > f$i; echo $i >> big; rm -f f$((i-3)); \
                 mkdir -p d$i; mv f$i d$i/; echo {round} > last; done"
            );
            let args = ["run", "--layer", "killed", "--", "/bin/sh", "-c", &script];
            let mut child =
                p.ringfence(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(ms));
            child.kill().unwrap();
            child.wait().unwrap();
            // At once: the next run gets the layer when the last process of this one has ended.
            p.shell(&["--layer", "killed"], "echo alive > alive; cat alive; test -d src").ok();
            crate::residue::no_process_of(p.root());
            assert_untouched(&before, &host(p), "after kill -9");
        }
        assert_untouched(&before, &host(p), "after all kills");
        assert_eq!(leftovers(p), Vec::<PathBuf>::new());
    });
}

/// What only a mounted overlay needs: content of work directories.
fn leftovers(p: &Place) -> Vec<PathBuf> {
    let deltas = p.home().join(".local/state/ringfence/deltas");
    let mut found = Vec::new();
    for delta in std::fs::read_dir(deltas).into_iter().flatten().flatten() {
        for root in std::fs::read_dir(delta.path()).into_iter().flatten().flatten() {
            let inside = std::fs::read_dir(root.path().join("work")).into_iter().flatten();
            found.extend(inside.flatten().map(|entry| entry.path()));
        }
    }
    found
}

#[test]
fn nothing_but_the_layer_is_left_of_a_run() {
    as_each_user(|p| {
        project(p);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        p.shell(&["--layer", "clean"], "rm -r src; echo x > x").ok();
        assert_eq!(leftovers(p), Vec::<PathBuf>::new());
        crate::residue::no_process_of(p.root());
        assert_eq!(mounts, std::fs::read_to_string("/proc/self/mountinfo").unwrap());
    });
}

#[test]
fn hidden_files_stay_hidden_whatever_the_layer_holds() {
    as_each_user(|p| {
        project(p);
        p.write("a/secret.txt", "TOP SECRET\n");
        p.write("b/plain.txt", "plain\n");
        p.write("c/secret.txt", "TOP SECRET\n");
        p.write("d/e/secret.txt", "TOP SECRET\n");
        // An earlier run, to which nothing of it was hidden, arranges the layer.
        let arrange =
            "set -e; rm -r a; ln -s b a; rm c/secret.txt; ln -s ../d/e/secret.txt c/secret.txt
            mkdir x; rm -r d; mkdir d; echo mine > d/e";
        p.shell(&["--layer", "l"], arrange).ok();
        let hide = [
            "--layer",
            "l",
            "--deny-read",
            "a/secret.txt",
            "--deny-read",
            "c/secret.txt",
            "--deny-read",
            "d/e/secret.txt",
            "--deny-read",
            "**/plain.key",
        ];
        let ran = p.shell(
            &hide,
            "cat a/secret.txt c/secret.txt d/e/secret.txt; cat a/plain.txt d/e;
            find . -type f -exec cat {} + 2>/dev/null",
        );
        assert!(!ran.out.contains("SECRET"), "{ran:#?}");
        assert!(ran.out.contains("plain") && ran.out.contains("mine"), "{ran:#?}");
        // What is where it was is covered as without a layer.
        let ran = p.shell(
            &["--layer", "l", "--deny-read", "src/b.txt"],
            "cat src/b.txt; cat .env; cat conf/local.key",
        );
        assert_eq!(ran.out, "", "{ran:#?}");
        // Control: it is the rule that hides.
        p.shell(&["--layer", "fresh"], "cat a/secret.txt").ok().says("TOP SECRET");
    });
}

#[test]
fn a_hidden_file_that_the_layer_removed_needs_no_cover() {
    as_each_user(|p| {
        p.write("a/secret.txt", "TOP SECRET\n");
        // The layer has no such directory, so the rule has nothing to cover; that the host still has
        // the file where it was looked at is checked below the overlay.
        p.shell(&["--layer", "l"], "rm -r a").ok();
        let hide = ["--layer", "l", "--deny-read", "a/secret.txt"];
        p.shell(&hide, "test ! -e a; ls").ok();
        p.bare("rm -r a").ok();
        p.shell(&hide, "test ! -e a").ok();
    });
}

#[test]
fn guards_hold_over_what_an_earlier_run_left() {
    if !has("git") {
        return;
    }
    as_each_user(|p| {
        p.bare("git init -q . && git init -q sub && mkdir .vscode && echo {} > .vscode/tasks.json")
            .ok();
        p.write(".git/hooks/pre-commit", "#!/bin/sh\necho host\n");
        // Hidden in both, by a mask that lies over the host's own.
        p.write(".git/hooks/in/a.key", "TOP SECRET\n");
        p.write(".vscode/a.key", "TOP SECRET\n");
        let before = host(p);
        let lifted = ["--layer", "l", "--lift", "guard.git", "--lift", "guard.editors"];
        // With the guards lifted a run may do all of this, in the layer.
        p.shell(
            &lifted,
            "set -e; echo evil > .git/hooks/pre-commit; echo evil > .git/hooks/post-commit
             echo evil > .vscode/tasks.json",
        )
        .ok();
        // The next has the host's own objects there, and cannot change them.
        let ran = p.shell(
            &["--layer", "l"],
            "cat .git/hooks/pre-commit .vscode/tasks.json; ls .git/hooks/post-commit
             cat .git/hooks/in/a.key .vscode/a.key; ls .git/hooks/in; echo evil > .git/hooks/x; echo evil > .vscode/tasks.json; mv .git .git2; rm -rf .vscode",
        );
        assert_eq!(ran.out, "#!/bin/sh\necho host\n{}\n", "{ran:#?}");
        p.shell(&["--layer", "l"], "test ! -e .git2 && test -e .vscode/tasks.json").ok();
        // Taken away or replaced by a link they have no place, and nothing runs unguarded.
        for (layer, damage) in [
            ("removed", "rm -r .git/hooks"),
            ("renamed", "rm -r .git; mkdir .git; echo x > .git/HEAD"),
            ("linked", "rm -r .git/hooks; ln -s /tmp .git/hooks"),
            ("parent", "rm -rf sub; mkdir -p other/.git/hooks; ln -s other sub"),
            ("file", "rm -r .vscode; echo x > .vscode"),
        ] {
            let flags = ["--layer", layer, "--lift", "guard.git", "--lift", "guard.editors"];
            p.shell(&flags, damage).ok();
            let ran = p.shell(&["--layer", layer], "echo ran").failed_with(125);
            assert_eq!(ran.out, "", "{ran:#?}");
            assert!(ran.err.contains("guard") && ran.err.contains(layer), "{ran:#?}");
            // Control: the layer itself is fine.
            p.shell(&flags, "echo ran").ok().says("ran");
        }
        assert_untouched(&before, &host(p), "after attacks on guards");
    });
}

#[test]
fn what_may_be_read_only_cannot_be_written_in_a_layer_either() {
    as_each_user(|p| {
        project(p);
        p.write("vendor/keep/x", "x\n");
        p.write("vendor/out/y", "y\n");
        p.write("vendor/keep/file", "f\n");
        // Hidden by the policy, in both.
        p.write("vendor/keep/s.key", "TOP SECRET\n");
        p.write("vendor/out/s.key", "TOP SECRET\n");
        let before = host(p);
        let [out, file] = ["vendor/out", "vendor/keep/file"].map(|name| p.workspace().join(name));
        let [out, file] = [&out, &file].map(|path| path.to_str().unwrap());
        let granted = ["--allow-write", out, "--allow-write", file];
        let flags = [&["--layer", "l", "--deny-write", "vendor"][..], &granted].concat();
        let ran = p.shell(
            &flags,
            "echo a > vendor/keep/x; echo a > vendor/new; echo a > vendor/out/y; cat vendor/out/y
             echo a > /usr/x; echo a > src/b.txt && cat src/b.txt; mv vendor v
             cat vendor/keep/s.key vendor/out/s.key; echo a > vendor/keep/file",
        );
        assert_eq!(ran.out, "a\na\n", "{ran:#?}");
        let seen = "cat vendor/keep/x vendor/keep/file vendor/out/y; test ! -e vendor/new";
        assert_eq!(p.shell(&flags, seen).ok().out, "x\na\na\n");
        assert_untouched(&before, &host(p), "after a run with a read-only part");
    });
}

#[test]
fn a_layer_is_used_by_one_run_at_a_time() {
    as_each_user(|p| {
        let args = ["run", "--layer", "busy", "--", "sh", "-c", "echo on; sleep 60"];
        let mut first = p.ringfence(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = first.id().to_string();
        p.shell(&["--layer", "busy"], "echo ran").failed_with(125).says(&format!("pid {pid}"));
        p.shell(&["--layer", "idle"], "echo ran").ok().says("ran");
        first.kill().unwrap();
        first.wait().unwrap();
        crate::residue::no_process_of(p.root());
        p.shell(&["--layer", "busy"], "echo ran").ok().says("ran");
    });
}

#[test]
fn a_checkpoint_seals_what_was_there_before() {
    as_each_user(|p| {
        p.write("f", "0\n");
        for n in 1..=3 {
            let script = format!("echo {n} >> f; echo {n} > n{n}; rm -f n{}", n - 2);
            p.shell(&["--layer", "l", "--checkpoint"], &script).ok();
        }
        assert_eq!(
            p.shell(&["--layer", "l"], "cat f n2 n3; ls").ok().out,
            "0\n1\n2\n3\n2\n3\nf\nn2\nn3\n"
        );
        let record = p.home().join(".local/state/ringfence/layers/l/record.json");
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        assert_eq!(record["stack"].as_array().unwrap().len(), 2, "{record:#}");
        let last = record["checkpoints"].as_array().unwrap().last().unwrap();
        let command = last["command"].as_str().unwrap();
        assert!(command.starts_with("/bin/sh -c echo 3 >> f"), "{record:#}");
    });
}

#[test]
fn a_name_is_made_up_and_goes_with_a_layer_that_holds_nothing() {
    as_each_user(|p| {
        p.write("f", "x");
        let layers = || -> Vec<String> {
            let dir = p.home().join(".local/state/ringfence/layers");
            let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
            names.map(|e| e.file_name().into_string().unwrap()).collect()
        };
        p.shell(&["--layer", "auto"], "cat f").ok();
        assert_eq!(layers(), Vec::<String>::new());
        Ran::of(&mut p.ringfence(["run", "--layer", "auto", "--", "no-such-program"]))
            .failed_with(127);
        assert_eq!(layers(), Vec::<String>::new());
        p.shell(&["--layer", "auto"], "echo y > f").ok();
        let made = layers();
        assert!(made.len() == 1 && made[0].starts_with("auto-"), "{made:?}");
    });
}

#[test]
fn names_that_cannot_be_are_refused() {
    let p = Place::new(User::Me);
    for name in ["", "../up", ".hidden", "a/b", "a b", &"x".repeat(65)] {
        p.shell(&["--layer", name], "echo ran").failed_with(125).says("is not a name");
    }
    p.shell(&["--checkpoint"], "echo ran").failed_with(125).says("--layer");
    assert!(!p.home().join(".local").exists());
}

#[test]
fn without_namespaces_a_layer_is_refused() {
    if !has("unshare") {
        return;
    }
    as_each_user(|p| {
        // In a namespace with no right to make another.
        let mut command = p.command("unshare");
        command.args([
            "-Ur",
            "sh",
            "-c",
            "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"",
            "sh",
        ]);
        command.arg(crate::harness::binary()).args(["run", "--layer", "l", "--", "echo", "ran"]);
        let ran = Ran::of(&mut command);
        if ran.err.contains("max_user_namespaces") || ran.err.contains("unshare") {
            println!("skipped: user namespaces cannot be limited here: {}", ran.err);
            return;
        }
        let ran = ran.failed_with(126).says("--layer").says("remedy");
        assert!(!ran.out.contains("ran"));
    });
}

#[test]
fn the_store_is_not_seen_inside() {
    as_each_user(|p| {
        p.write("f", "x");
        p.shell(&["--layer", "mine"], "echo private > f").ok();
        let home = p.home().display().to_string();
        for flags in [
            vec!["--allow-read", &home],
            vec!["--allow-write", &home, "--layer", "other"],
            vec!["-t", "permissive", "--layer", "third"],
        ] {
            let ran = p.shell(&flags, "find ~/.local/state/ringfence -type f; grep -rs private ~");
            assert_eq!(ran.out, "", "{flags:?} {ran:#?}");
        }
    });
}

#[test]
fn file_systems_below_a_root_are_shown_and_not_written() {
    if !is_root() || !has("unshare") {
        println!("skipped: only root can mount something for a moment");
        return;
    }
    for user in [User::Me, User::Ordinary] {
        let p = Place::new(user);
        p.write("f", "x");
        p.write("mnt/under", "below the mount");
        p.write("granted/under", "below the mount");
        let (uid, _) = p.ids();
        let run = |flags: &str, script: &str| {
            let demote = if uid == ORDINARY_ID {
                format!("setpriv --reuid {uid} --regid {uid} --clear-groups")
            } else {
                String::new()
            };
            let script = format!(
                "mount -t tmpfs -o mode=777 t mnt; mount -t tmpfs -o mode=777 t granted; \
                 echo inner > mnt/f; echo inner > granted/f; chown {uid}:{uid} mnt/f granted/f; \
                 {demote} {} run {flags} -- sh -c '{script}'; code=$?; \
                 echo after: $(cat mnt/f granted/f); exit $code",
                crate::harness::binary().display()
            );
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", &script]).current_dir(p.workspace());
            Ran::of(command.env("HOME", p.home()))
        };
        let script =
            "cat mnt/f; echo a > mnt/f; echo a > mnt/new; echo a > granted/f; cat granted/f f";
        let flags = format!("--layer l --allow-write {}", p.workspace().join("granted").display());
        let ran = run(&flags, script);
        if user == User::Ordinary {
            // The kernel does not let an ordinary user look below mounts that somebody else made.
            ran.failed_with(126).says("mnt").says("a file system of its own");
            continue;
        }
        assert!(ran.out.starts_with("inner\na\nx"), "{ran:#?}");
        assert!(ran.out.ends_with("after: inner inner\n"), "{ran:#?}");
        run(&format!("{flags} --explain"), "true").ok().says("which the layer does not cover");
    }
}

#[test]
fn files_of_other_owners_are_not_changed_and_it_is_said_why() {
    if !is_root() {
        println!("skipped: only root can make a file of somebody else");
        return;
    }
    as_each_user(|p| {
        p.write("mine", "mine\n");
        let group = p.write("of-a-group", "group\n");
        std::os::unix::fs::chown(&group, None, Some(12345)).unwrap();
        mode(&group, 0o666);
        let before = host(p);
        let ran = p
            .shell(&["--layer", "l", "-m"], "echo x >> mine; cat of-a-group; echo x >> of-a-group");
        assert!(ran.err.contains("too large"), "{ran:#?}");
        assert!(ran.err.contains("belongs to another user or group"), "{ran:#?}");
        assert_eq!(ran.out, "group\n");
        // Through an idmapped mount its owner is nobody, and then it cannot be removed either.
        let ran = p.shell(&["--layer", "l"], "rm -f of-a-group");
        match p.user {
            User::Me => ran.failed_with(1).says("too large"),
            User::Ordinary => ran.ok(),
        };
        assert_eq!(p.shell(&["--layer", "l"], "cat mine").ok().out, "mine\nx\n");
        assert_untouched(&before, &host(p), "after runs over files of others");
    });
}

#[test]
fn a_store_where_none_can_be_is_refused_with_a_remedy() {
    if !is_root() || !has("unshare") {
        println!("skipped: only root can mount a file system that takes no overlay");
        return;
    }
    as_each_user(|p| {
        let state = p.root().join("state");
        std::fs::create_dir(&state).unwrap();
        p.own(&state);
        let (uid, gid) = p.ids();
        let script = format!(
            "mkdir {0}.u {0}.w && chown {uid}:{gid} {0}.u && chmod 700 {0}.u &&
             mount -t overlay -o lowerdir=/usr/share/doc,upperdir={0}.u,workdir={0}.w o {0} &&
             exec setpriv --reuid {uid} --regid {gid} --clear-groups \
             env RINGFENCE_STATE={0} HOME={1} {2} run --layer l -- echo ran",
            state.display(),
            p.home().display(),
            crate::harness::binary().display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).current_dir(p.workspace());
        let ran = Ran::of(&mut command).failed_with(125).says("RINGFENCE_STATE");
        assert_eq!(ran.out, "", "{ran:#?}");
    });
}

#[test]
fn what_is_in_force_is_said() {
    as_each_user(|p| {
        p.write("f", "x");
        let plan = p.shell(&["--layer", "l", "--explain"], "true").ok();
        assert!(plan.out.contains("layer       l: over "), "{plan:#?}");
        assert!(plan.out.contains("changes go to the layer (overlay)"), "{plan:#?}");
        assert!(!p.home().join(".local/state/ringfence").exists(), "a plan makes no layer");
        let ran = p.shell(&["--layer", "l", "--status", "-"], "echo y > f").ok();
        let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let enforced = status["enforced"].as_array().unwrap();
        assert!(enforced.iter().any(|e| e["name"] == "layer"), "{status:#}");
        assert_eq!(status["end"]["layer"]["name"], "l", "{status:#}");
        assert_eq!(status["end"]["layer"]["changed"], 1, "{status:#}");
        // A line for whoever asks; nothing in a pipe else.
        let told = p.shell(&["--layer", "l", "-m"], "echo z > new; rm f").ok();
        assert!(
            told.err.contains("layer l: 1 added, 0 changed, 1 deleted; see: ringfence diff l"),
            "{told:#?}"
        );
        assert_eq!(p.shell(&["--layer", "l"], "echo z > new").ok().err, "");
        p.shell(&["--layer", "auto"], "echo z > new").ok().says("layer auto-");
    });
}

#[test]
fn keys_of_a_policy_say_what_the_flags_say() {
    as_each_user(|p| {
        p.write("plain", "plain\n");
        p.write("../home/.npm/there", "cached\n");
        let settings = |text: &str| {
            let file = p.outside().join("policy.toml");
            std::fs::write(&file, format!("extends = \"workspace\"\n[layer]\n{text}")).unwrap();
            p.own(&file);
            file.to_str().unwrap().to_owned()
        };
        let plan = |flags: &[&str]| {
            let args = ["run"].iter().chain(flags).chain(&["--explain", "--", "true"]);
            let ran = Ran::of(&mut p.ringfence(args)).ok();
            let own = ["layers ", "identity "];
            let lines = ran.out.lines().filter(|l| !own.iter().any(|o| l.starts_with(o)));
            // Who granted a cache is told; what it comes to counts.
            lines.map(|l| l.split("  (rule").next().unwrap()).collect::<Vec<_>>().join("\n")
        };
        let file = settings("name = \"work\"\ncheckpoint = true\nshare_cache = [\"npm\"]\n");
        let flags = ["--no-config", "--layer", "work", "--checkpoint", "--share-cache", "npm"];
        assert_eq!(plan(&["-s", &file]), plan(&flags));

        // Two runs of the policy, the second of which is undone by itself.
        for n in 1..3 {
            p.shell(&["-s", &file], &format!("echo {n} >> n")).ok();
        }
        assert!(!p.workspace().join("n").exists());
        Ran::of(&mut p.ringfence(["undo", "work"])).ok();
        assert_eq!(p.shell(&["-s", &file], "cat n").ok().out, "1\n");
        // The flag wins, and takes back.
        assert_eq!(p.shell(&["-s", &file, "--layer", "other"], "cat n; true").ok().out, "");
        p.shell(&["-s", &file, "--layer", "none"], "echo host > n").ok();
        assert_eq!(std::fs::read_to_string(p.workspace().join("n")).unwrap(), "host\n");
        // Limits.
        let file = settings("name = \"small\"\nquota = \"64k\"\ninodes = \"1k\"\n");
        let ran = p.shell(&["-s", &file], "head -c 4000000 /dev/zero > big; sleep 20");
        ran.failed_with(137).says("layer small");
        // A limit in the policy is for whichever layer a flag names.
        let file = settings("quota = \"64k\"\n");
        p.shell(&["-s", &file], "head -c 400000 /dev/zero > big && rm big").ok();
        let ran = p
            .shell(&["-s", &file, "--layer", "three"], "head -c 4000000 /dev/zero > big; sleep 20");
        ran.failed_with(137);

        let file = settings("name = \"../up\"\n");
        p.shell(&["-s", &file], "true").failed_with(125).says("layer.name").says("policy.toml");
        let file = settings("name = \"l\"\nshare_cache = [\"nosuch\"]\n");
        let ran = p.shell(&["-s", &file], "true").failed_with(125);
        ran.says("layer.share_cache").says("`nosuch` is not one of all");
        // Exactness.
        let file = settings("exact = true\n");
        let ran = Ran::of(&mut p.ringfence(["run", "-s", &file, "--explain", "--", "true"]));
        let view = ran.out.contains("(fuse)") || ran.err.contains("/dev/fuse");
        assert!(view, "{ran:#?}");
        let ran = p.shell(&["-s", &file, "--layer", "work"], "echo ran");
        assert!(!ran.out.contains("ran"), "{ran:#?}");
        ran.failed_with(126).says("not together with a layer");
        let shown = Ran::of(&mut p.ringfence(["policy", "show", "-s", &file])).ok();
        assert!(shown.out.contains("exact"), "{shown:#?}");
    });
}

#[test]
fn a_project_may_ask_for_a_layer_of_its_own_and_not_for_one_by_name() {
    as_each_user(|p| {
        let file = p.write("ringfence.toml", "[layer]\nname = \"work\"\n");
        let ran = p.shell(&[], "echo ran");
        assert!(!ran.out.contains("ran"), "{ran:#?}");
        ran.failed_with(126).says("layer.name");
        std::fs::write(&file, "[layer]\nshare_cache = [\"npm\"]\n").unwrap();
        p.shell(&[], "true").failed_with(126).says("layer.share_cache");
        std::fs::write(&file, "[layer]\nname = \"auto\"\nquota = \"1g\"\n").unwrap();
        p.shell(&[], "echo x > made").ok().says("1 added");
        assert!(!p.workspace().join("made").exists());
    });
}

#[test]
fn what_a_layer_holds_is_applied_by_a_preset_without_its_device() {
    as_each_user(|p| {
        p.write("plain", "plain\n");
        let flags = ["-t", "development", "--layer", "l"];
        p.shell(&flags, "echo changed > plain; echo new > new").ok();
        // The layer came to hold it by rules that allowed more.
        p.shell(&["-t", "full-access", "--layer", "l"], "echo k > a.key").ok();
        let ran = Ran::of(&mut p.ringfence(["apply", "l", "-t", "development"]));
        assert_eq!(
            std::fs::read_to_string(p.workspace().join("new")).unwrap(),
            "new\n",
            "{ran:#?}"
        );
        assert_eq!(std::fs::read_to_string(p.workspace().join("plain")).unwrap(), "changed\n");
        assert!(!p.workspace().join("a.key").exists(), "{ran:#?}");
    });
}
