//! From a run in a layer to the real files: what differs, what is applied, what is not, and that a kill
//! loses nothing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Place, Ran, as_each_user, has, mode};

/// The binary in the workspace.
fn rf(place: &Place, args: &[&str]) -> Ran {
    Ran::of(&mut place.ringfence(args))
}

/// Content and mode of all files below a directory.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let text = if meta.is_dir() {
                pending.push(path.clone());
                String::new()
            } else if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else {
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
            };
            let relative = path.strip_prefix(root).unwrap().to_owned();
            all.insert(relative, format!("{:o} {text}", meta.mode()));
        }
    }
    all
}

/// What a run in a layer would be refused on this host for want of namespaces or overlayfs.
fn layers_work(place: &Place) -> bool {
    let ran = rf(place, &["run", "--layer", "probe", "--", "true"]);
    if ran.code != Some(0) {
        println!("skipped: no layers on this host: {}", ran.err);
        return false;
    }
    rf(place, &["discard", "probe"]).ok();
    true
}

/// Waits until a file's time differs from that of one written before.
fn settle() {
    std::thread::sleep(Duration::from_millis(15));
}

const CHANGES: &str = "sed -i 's/three/THREE/' text; rm gone; rm -r olddir; mkdir -p new/deep; \
    echo x > new/deep/x; ln new/deep/x new/hard; ln -s text link; echo b >> plain; chmod 600 mode; \
    rm -r redone; mkdir redone; echo again > redone/y; printf '#!/bin/sh\n' > tool; chmod 755 tool; \
    mv tofile/a moved; rm -r tofile; echo file > tofile; : > empty; touch -d @1000000000.5 plain";

fn project(place: &Place) {
    place.write("text", "one\ntwo\nthree\nfour\n");
    place.write("gone", "gone");
    place.write("olddir/a/b", "b");
    place.write("plain", "a\n");
    place.write("mode", "m");
    place.write("redone/x", "x");
    place.write("tofile/a", "a\n");
    settle();
}

#[test]
fn apply_reproduces_what_the_command_made() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        // The control: the same without a layer.
        let control = Place::new(place.user);
        project(&control);
        control.bare(CHANGES).ok();
        project(place);
        let before = tree(&place.workspace());
        place.shell(&["--layer", "work"], CHANGES).ok();
        assert_eq!(tree(&place.workspace()), before, "a run in a layer changes nothing");
        let ran = rf(place, &["diff", "work"]).ok();
        for line in [
            "M  text\n",
            "D  gone\n",
            "D  olddir/\n",
            "A  new/deep/x\n",
            "m  mode\n",
            "T  tofile\n",
            "D  redone/x\n",
            "A  redone/y\n",
            "A  tool  ! it has an execute bit\n",
        ] {
            assert!(ran.out.contains(line), "{line:?}: {}", ran.out);
        }
        rf(place, &["apply", "work", "--dry-run"]).ok().says("M  text");
        assert_eq!(tree(&place.workspace()), before, "a dry run changes nothing");
        rf(place, &["apply", "work"]).ok().says("A tool: ! it has an execute bit");
        assert_eq!(tree(&place.workspace()), tree(&control.workspace()));
        let ino = |p: &str| place.workspace().join(p).metadata().unwrap().ino();
        assert_eq!(ino("new/hard"), ino("new/deep/x"));
        let plain = place.workspace().join("plain").metadata().unwrap();
        assert_eq!((plain.mtime(), plain.mtime_nsec()), (1_000_000_000, 500_000_000));
        assert_eq!((plain.uid(), plain.gid()), place.ids());
        assert_eq!(rf(place, &["diff", "work"]).ok().out, "");
        rf(place, &["discard", "work"]).ok();
        let state = place.home().join(".local/state/ringfence");
        for part in ["layers", "deltas"] {
            assert_eq!(std::fs::read_dir(state.join(part)).unwrap().count(), 0);
        }
    });
}

#[test]
fn git_and_patch_take_the_patch() {
    if !has("git") || !has("patch") {
        return;
    }
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        // `patch` cannot make a file of a directory.
        let simpler = CHANGES.replace("rm -r tofile; echo file > tofile", "true");
        for (tool, args, script) in
            [("git", &["apply", "-p1"][..], CHANGES), ("patch", &["-p1", "-s"], &*simpler)]
        {
            let made = Place::new(place.user);
            project(&made);
            made.shell(&["--layer", "work"], script).ok();
            let patch = rf(&made, &["diff", "work", "--patch"]).ok().out;
            assert!(
                patch.contains("deleted file mode 100644\n")
                    && patch.contains("new file mode 120000\n")
            );
            let other = Place::new(place.user);
            project(&other);
            let file = other.outside().join("patch");
            std::fs::write(&file, &patch).unwrap();
            let mut command = other.command(tool);
            command.args(args).stdin(std::fs::File::open(&file).unwrap());
            Ran::of(&mut command).ok();
            rf(&made, &["apply", "work"]).ok();
            // git keeps no mode but the execute bit, and no directory without files.
            let text = |root: &Path| {
                tree(root)
                    .into_iter()
                    .filter(|(p, t)| !t.starts_with('4') && p != Path::new("mode"))
                    .collect::<BTreeMap<_, _>>()
            };
            assert_eq!(text(&other.workspace()), text(&made.workspace()), "{tool}");
        }
    });
}

#[test]
fn git_takes_binary_files_of_a_patch_and_gives_them_back() {
    const BINARY: &str = "printf 'a\\000b%s' 2 > changed; printf '\\000' > new; : > empty; rm gone; \
        chmod 755 mode; head -c 200000 /dev/zero > large; echo text > totext; printf '\\000' > tobinary; \
        rm -r dir; mkdir closed; printf '\\000\\001' > closed/x; chmod 000 closed/x closed; ln -s new link";
    if !has("git") {
        return;
    }
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        let start = |place: &Place| {
            for path in ["changed", "gone", "mode", "totext", "dir/deep/b"] {
                place.write(path, b"a\0b");
            }
            place.write("tobinary", "text\n");
            settle();
        };
        let made = Place::new(place.user);
        start(&made);
        made.shell(&["--layer", "work"], BINARY).ok();
        let plain = rf(&made, &["diff", "work", "--patch"]).ok().out;
        assert!(plain.contains("Binary files a/changed and b/changed differ\n"), "{plain}");
        let patch = rf(&made, &["diff", "work", "--patch", "--binary"]).ok().out;
        assert!(patch.contains("GIT binary patch\n") && !patch.contains("Binary files"), "{patch}");
        let other = Place::new(place.user);
        start(&other);
        let before = tree(&other.workspace());
        let file = other.outside().join("patch");
        std::fs::write(&file, &patch).unwrap();
        let git = |args: &[&str]| {
            let mut command = other.command("git");
            Ran::of(command.arg("apply").args(args).arg(&file)).ok();
        };
        git(&[]);
        rf(&made, &["apply", "work"]).ok();
        mode(&made.workspace().join("closed"), 0o755);
        mode(&made.workspace().join("closed/x"), 0o644);
        assert_eq!(tree(&other.workspace()), tree(&made.workspace()));
        git(&["-R"]);
        assert_eq!(tree(&other.workspace()), before);
        rf(&made, &["diff", "work", "--binary"]).failed_with(125);
    });
}

#[test]
fn what_both_changed_is_merged_or_shown_and_never_overwritten() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        let text = (0..30).map(|n| format!("{n}\n")).collect::<Vec<_>>().concat();
        place.write("both", &text);
        place.write("same-line", &text);
        place.write("fine", "1\n");
        settle();
        let script = "sed -i 's/^3$/layer/' both same-line; echo 2 > fine";
        place.shell(&["--layer", "work"], script).ok();
        settle();
        place.write("both", text.replace("\n25\n", "\nhost\n"));
        place.write("same-line", text.replace("\n3\n", "\nhost\n"));
        rf(place, &["diff", "work"]).ok().says("conflict: the host changed the same lines");
        let ran = rf(place, &["apply", "work"]).failed_with(1);
        assert!(
            ran.err.contains("conflict: same-line: the host changed the same lines"),
            "{ran:?}"
        );
        let read = |p: &str| std::fs::read_to_string(place.workspace().join(p)).unwrap();
        assert!(read("both").contains("\nlayer\n") && read("both").contains("\nhost\n"));
        assert_eq!(read("same-line"), text.replace("\n3\n", "\nhost\n"));
        assert_eq!(read("fine"), "2\n");
        rf(place, &["apply", "work", "--theirs", "same-line"]).ok();
        assert_eq!(read("same-line"), text.replace("\n3\n", "\nlayer\n"));
        rf(place, &["apply", "work", "nothing-here"])
            .failed_with(125)
            .says("the layer changes nothing at");
    });
}

#[test]
fn a_hook_in_a_delta_is_not_applied() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        place.write(".git/HEAD", "ref: refs/heads/main\n");
        place.write(".git/config", "[core]\n");
        place.write(".git/hooks/old", "x");
        place.write(".git/objects/x", "");
        place.write(".git/refs/x", "");
        settle();
        // A repository of the command's own has its hooks in the delta.
        let script = "mkdir -p sub/.git/hooks sub/.git/objects sub/.git/refs; echo evil > sub/.git/hooks/pre-commit; \
            echo '[core]' > sub/.git/config; echo 'ref: x' > sub/.git/HEAD; echo fine > fine";
        place.shell(&["--layer", "work"], script).ok();
        // And as if the guard had not held: into the delta by hand.
        let deltas = place.home().join(".local/state/ringfence/deltas");
        let delta = std::fs::read_dir(deltas).unwrap().next().unwrap().unwrap().path();
        let git = delta.join("0/tree/.git");
        for dir in [git.clone(), git.join("hooks")] {
            if !dir.exists() {
                std::fs::create_dir(&dir).unwrap();
                place.own(&dir);
            }
        }
        for file in [git.join("hooks/pre-commit"), git.join("config")] {
            std::fs::write(&file, "evil").unwrap();
            place.own(&file);
        }
        let ran = rf(place, &["apply", "work", "--json"]).failed_with(1);
        let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let refused: Vec<&str> = report["refused"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["path"].as_str().unwrap())
            .collect();
        for path in
            [".git/hooks/pre-commit", ".git/config", "sub/.git/hooks/pre-commit", "sub/.git/config"]
        {
            assert!(
                refused.iter().any(|r| r.ends_with(&format!("project/{path}"))),
                "{path}: {refused:?}"
            );
        }
        let now = tree(&place.workspace());
        assert_eq!(now[Path::new(".git/config")], "100644 [core]\n");
        assert!(!now.contains_key(Path::new(".git/hooks/pre-commit")));
        assert!(!now.contains_key(Path::new("sub/.git/hooks/pre-commit")));
        assert!(
            now.contains_key(Path::new("fine")) && now.contains_key(Path::new("sub/.git/HEAD"))
        );
        rf(place, &["diff", "work"]).ok().says("! git runs it");
        // The control: with the guard lifted nothing else is in the way.
        rf(place, &["apply", "work", "--lift", "guard.git", "--theirs", "sub"]).ok();
        assert!(place.workspace().join("sub/.git/hooks/pre-commit").exists());
    });
}

#[test]
fn a_place_that_the_policy_lets_nobody_write_stays() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        place.write("data/x", "1");
        place.write("kept/x", "1");
        settle();
        place.shell(&["--layer", "work"], "echo 2 > data/x; echo 2 > kept/x").ok();
        place.write("ringfence.toml", "[files]\nprotect = [\"kept\"]\n");
        let ran = rf(place, &["apply", "work"]).failed_with(1);
        assert!(ran.err.contains("refused: kept/x: the policy gives read only"), "{ran:?}");
        let read = |p: &str| std::fs::read_to_string(place.workspace().join(p)).unwrap();
        assert_eq!((read("data/x").as_str(), read("kept/x").as_str()), ("2\n", "1"));
        // By profile too.
        rf(place, &["apply", "work", "-t", "read-only"]).failed_with(1);
        assert_eq!(read("kept/x"), "1");
    });
}

#[test]
fn a_symlink_made_on_the_host_leads_no_change_out() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        place.write("d/x", "1");
        settle();
        place.shell(&["--layer", "work"], "echo 2 > d/x; echo 3 > d/y").ok();
        std::fs::remove_dir_all(place.workspace().join("d")).unwrap();
        symlink(place.outside(), place.workspace().join("d")).unwrap();
        rf(place, &["apply", "work"]).failed_with(1);
        rf(place, &["apply", "work", "d/x", "d/y"]).failed_with(1);
        assert_eq!(std::fs::read_dir(place.outside()).unwrap().count(), 0);
        // The control: through the link, writing would have come out there.
        std::fs::write(place.workspace().join("d/control"), "").unwrap();
        assert!(place.outside().join("control").exists());
    });
}

#[test]
fn names_of_any_bytes_are_lossless_in_json_and_harmless_in_text() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        settle();
        let script = "f=$(printf 'caf\\351\\033[2J'); echo x > \"$f\"";
        place.shell(&["--layer", "work"], script).ok();
        let ran = rf(place, &["diff", "work"]).ok();
        assert!(ran.out.contains("\\xe9\\u{1b}[2J") && !ran.out.contains('\u{1b}'), "{ran:?}");
        let ran = rf(place, &["diff", "work", "--json"]).ok();
        let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        // "/caf\xe9\x1b[2J" ends so in base64, whatever stands before.
        let name = OsStr::from_bytes(b"caf\xe9\x1b[2J");
        let bytes = value["changes"][0]["path_bytes"].as_str().unwrap().to_owned();
        let mut decode = place.command("base64");
        decode.arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = decode.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), bytes.as_bytes()).unwrap();
        let decoded = child.wait_with_output().unwrap().stdout;
        let whole = std::fs::canonicalize(place.workspace()).unwrap().join(name);
        assert_eq!(OsStr::from_bytes(&decoded), whole.as_os_str());
        rf(place, &["apply", "work"]).ok();
        assert!(place.workspace().join(name).exists());
    });
}

#[test]
fn a_layer_in_use_is_left_alone() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        let go = place.workspace().join("go");
        let mut running = place
            .ringfence(["run", "--layer", "work", "--", "/bin/sh", "-c", "echo started; read _"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0u8; 8];
        std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = format!("in use by pid {}", running.id());
        for verb in [&["discard", "work"][..], &["apply", "work"], &["discard", "work", "go"]] {
            rf(place, verb).failed_with(125).says(&pid);
        }
        rf(place, &["discard", "--all"]).failed_with(125).says(&pid);
        rf(place, &["layers"]).ok().says(&format!("pid {}", running.id()));
        drop(running.stdin.take());
        running.wait().unwrap();
        assert!(!go.exists());
        rf(place, &["discard", "--all"]).ok().says("layer work is gone");
        rf(place, &["discard", "work"]).failed_with(125).says("no layer is called work");
    });
}

#[test]
fn the_layer_of_a_killed_run_is_whole() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        place.write("text", "1\n2\n3\n4\n5\n6\n7\n8\n9\n");
        settle();
        let script = "sed -i s/1/layer/ text; echo done; sleep 60";
        let mut running = place
            .ringfence(["run", "--layer", "work", "--", "/bin/sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0u8; 5];
        std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut line).unwrap();
        running.kill().unwrap();
        running.wait().unwrap();
        rf(place, &["diff", "work"]).ok().says("M  text");
        rf(place, &["apply", "work"]).ok();
        let text = std::fs::read_to_string(place.workspace().join("text")).unwrap();
        assert!(text.starts_with("layer\n2\n"), "{text}");
    });
}

/// Kills at moments that differ from round to round; a test in the crate kills at every step.
#[test]
fn a_killed_apply_is_resumed_or_taken_back() {
    const ROUNDS: u32 = 10;
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        for n in 0..40 {
            place.write(format!("d{}/f{n}", n % 4), format!("{n}\n"));
        }
        settle();
        let original = tree(&place.workspace());
        let mut unfinished = 0;
        let mut took = Duration::from_millis(60);
        for round in 0..ROUNDS {
            let script = "for f in d0/* d1/*; do echo changed >> $f; done; rm -r d2; mkdir n; \
                for i in 1 2 3 4 5 6 7 8; do echo $i > n/$i; done; chmod 600 d3/*";
            place.shell(&["--layer", "work"], script).ok();
            let started = std::time::Instant::now();
            let mut child = place
                .ringfence(["apply", "work"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            if round == 0 {
                // How long it takes; the kills are spread over that.
                child.wait().unwrap();
                took = started.elapsed();
            } else {
                std::thread::sleep(took * round / ROUNDS);
                child.kill().unwrap();
                child.wait().unwrap();
            }
            let ran = rf(place, &["diff", "work"]).ok();
            if ran.err.contains("was interrupted") {
                unfinished += 1;
                rf(place, &["apply", "work"]).failed_with(125).says("unfinished apply");
                if round % 2 == 0 {
                    let back = rf(place, &["apply", "work", "--rollback"]);
                    if back.code == Some(0) {
                        assert_eq!(tree(&place.workspace()), original, "round {round}");
                        rf(place, &["apply", "work"]).ok();
                    } else {
                        back.says("complete but for its tidying");
                        rf(place, &["apply", "work", "--resume"]).ok();
                    }
                } else {
                    let resumed = rf(place, &["apply", "work", "--resume"]);
                    if resumed.code != Some(0) {
                        resumed.says("had not begun");
                        rf(place, &["apply", "work"]).ok();
                    }
                }
            } else if !ran.out.is_empty() {
                rf(place, &["apply", "work"]).ok();
            }
            let now = tree(&place.workspace());
            assert_eq!(now.len(), original.len() + 9 - 11, "{now:#?}");
            assert!(now.keys().all(|p| !p.to_string_lossy().contains("ringfence-apply")));
            assert_eq!(now[Path::new("d0/f0")], "100644 0\nchanged\n");
            assert_eq!(now[Path::new("d3/f3")], "100600 3\n");
            assert_eq!(rf(place, &["diff", "work"]).ok().out, "");
            // Back to the start.
            rf(place, &["discard", "work"]).ok();
            for dir in ["d0", "d1", "d2", "d3", "n"] {
                let _ = std::fs::remove_dir_all(place.workspace().join(dir));
            }
            for n in 0..40 {
                place.write(format!("d{}/f{n}", n % 4), format!("{n}\n"));
            }
            settle();
        }
        println!("{unfinished} of {ROUNDS} were interrupted half-way");
    });
}

#[test]
fn directories_have_the_times_that_the_command_gave_them() {
    const TIMES: &str = "echo b >> text; rm olddir/a/b; mkdir -p new/deep; echo x > redone/new; \
        chmod 700 tofile; touch -d @1000000000.25 new/deep new olddir/a olddir redone tofile .";
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        project(place);
        let times = |place: &Place| {
            ["new", "new/deep", "olddir", "olddir/a", "redone", "tofile", ""].map(|dir| {
                let meta = place.workspace().join(dir).metadata().unwrap();
                (dir, meta.mtime(), meta.mtime_nsec())
            })
        };
        place.shell(&["--layer", "work"], TIMES).ok();
        let ran = rf(place, &["diff", "work"]).ok();
        assert!(!ran.out.contains("olddir/\n"), "a time alone is no change: {}", ran.out);
        rf(place, &["apply", "work"]).ok();
        for (dir, seconds, nanos) in times(place) {
            assert_eq!((seconds, nanos), (1_000_000_000, 250_000_000), "{dir:?}");
        }
        // A layer in which nothing else was changed.
        place.shell(&["--layer", "work"], "touch -d @1100000000 redone").ok();
        rf(place, &["apply", "work"]).ok();
        assert_eq!(times(place)[4], ("redone", 1_100_000_000, 0));
        rf(place, &["diff", "work"]).ok();
    });
}

/// Modes, texts and file times, also of what is closed to its owner: it is opened where it must be.
fn opened(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_dir() {
                mode(&path, meta.mode() | 0o700);
                pending.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                mode(&path, meta.mode() | 0o600);
                std::fs::read(&path).unwrap()
            };
            let content = String::from_utf8_lossy(&content);
            // It can be read now.
            let text = format!("{:o} {content} {:?}", meta.mode(), attribute(&path));
            all.insert(path.strip_prefix(root).unwrap().to_owned(), text);
        }
    }
    all
}

fn attribute(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 16];
    let n = rustix::fs::lgetxattr(path, "user.note", &mut value[..]).ok()?;
    Some(value[..n].to_vec())
}

const CLOSING: &str = "mkdir closed closed/deep; echo in > closed/in; echo x > closed/deep/x; \
    ln -s in closed/link; ln closed/in closed/same; echo zero > zero; chmod 000 zero; \
    echo more >> text; chmod 000 text; chmod 200 plain; echo two > dir/two; rm dir/gone; \
    touch -d @1000000000 closed/deep; chmod 000 closed/deep/x closed/deep closed/in closed dir";

#[test]
fn what_is_closed_to_its_owner_is_applied_as_it_is() {
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        let start = |place: &Place| {
            place.write("text", "text\n");
            place.write("plain", "plain\n");
            place.write("dir/one", "one\n");
            place.write("dir/gone", "gone\n");
            settle();
        };
        let control = Place::new(place.user);
        start(&control);
        control.bare(CLOSING).ok();
        start(place);
        let marks = "f=setfattr; command -v $f >/dev/null || exit 0; \
            for n in zero closed; do chmod u+w $n; $f -n user.note -v kept $n; chmod 000 $n; done";
        control.bare(marks).ok();
        place.shell(&["--layer", "work"], CLOSING).ok();
        place.shell(&["--layer", "work"], marks).ok();
        let ctimes = || {
            let delta = only_delta(place);
            ["zero", "closed", "text", "dir"].map(|n| {
                let meta = delta.join(n).symlink_metadata().unwrap();
                (n, meta.mode(), meta.ctime(), meta.ctime_nsec())
            })
        };
        let before = ctimes();
        let ran = rf(place, &["diff", "work"]).ok();
        for line in [
            "A  closed/\n",
            "A  closed/deep/x\n",
            "A  closed/link\n",
            "A  zero\n",
            "M  text\n",
            "m  plain\n",
            "m  dir/\n",
            "A  dir/two\n",
            "D  dir/gone\n",
        ] {
            assert!(ran.out.contains(line), "{line:?}: {}", ran.out);
        }
        rf(place, &["diff", "work", "--patch"]).ok().says("+zero\n").says("+more\n");
        rf(place, &["apply", "work", "--dry-run"]).ok();
        // Not opened for a moment and closed again either: a kill in between changes nothing.
        assert_eq!(ctimes(), before);
        rf(place, &["fork", "work", "other"]).ok();
        let archive = place.home().join("layer.tar");
        rf(place, &["export", "other", archive.to_str().unwrap()]).ok();
        rf(place, &["snapshot", "other", "s"]).ok();
        assert_eq!(ctimes(), before);
        rf(place, &["apply", "work"]).ok();
        rf(place, &["diff", "work"]).ok();
        let again = rf(place, &["run", "--layer", "work", "--", "true"]).ok();
        assert!(!again.err.contains("changed"), "{again:?}");
        assert_eq!(opened(&place.workspace()), opened(&control.workspace()));
    });
}

#[test]
fn directories_that_their_owner_may_not_write_are_applied_to_and_stay_so() {
    const CHANGES: &str = "chmod u+w ro ro/deep none; echo two > ro/two; rm ro/one; echo x > ro/deep/x; \
        chmod 555 ro/deep ro; chmod u+rwx none; echo y > none/y; chmod 000 none; \
        chmod u+w other; echo z > other/z; chmod 700 other";
    as_each_user(|place| {
        if !layers_work(place) {
            return;
        }
        let start = |place: &Place| {
            for path in ["ro/one", "ro/deep/one", "none/one", "other/one"] {
                place.write(path, "one\n");
            }
            for (dir, bits) in [("ro/deep", 0o555), ("ro", 0o555), ("none", 0), ("other", 0o500)] {
                mode(&place.workspace().join(dir), bits);
            }
            settle();
        };
        let control = Place::new(place.user);
        start(&control);
        control.bare(CHANGES).ok();
        start(place);
        place.shell(&["--layer", "work"], CHANGES).ok();
        rf(place, &["apply", "work"]).ok();
        assert_eq!(rf(place, &["diff", "work"]).ok().out, "");
        assert_eq!(opened(&place.workspace()), opened(&control.workspace()));
    });
}

/// The tree of the one delta that there is.
fn only_delta(place: &Place) -> PathBuf {
    let deltas = place.home().join(".local/state/ringfence/deltas");
    let found: Vec<_> = std::fs::read_dir(deltas).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].join("0/tree")
}
