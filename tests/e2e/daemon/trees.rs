//! Many files of a sandbox at once: search, move, archives; and who tries to get more by them.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::world::Daemon;
use crate::harness::{Place, as_each_user, has};

fn search(daemon: &Daemon<'_>, args: &[&str]) -> Vec<String> {
    let ran = daemon.ringfence(&[&["files", "search", "box"], args].concat()).ok();
    ran.out.lines().map(ToOwned::to_owned).collect()
}

/// A tree with a file that is hidden by a rule and a link that leads out of it.
fn with_a_secret(place: &Place) -> Value {
    place.write("src/a.rs", "fn a() {}\n// needle one\n");
    place.write("src/deep/b.rs", "x\nneedle two\n");
    place.write("src/deep/binary", b"needle\0needle\n");
    place.write("notes.md", "a needle\n");
    place.write("hidden/secret.txt", "needle secret\n");
    let outside = place.outside().join("far.txt");
    std::fs::write(&outside, "needle far\n").unwrap();
    place.own(&outside);
    symlink(place.outside(), place.workspace().join("link")).unwrap();
    json!({
        "name": "box", "workspace": place.workspace(),
        "policy": { "files": { "deny": [place.workspace().join("hidden")] } },
    })
}

#[test]
fn names_and_lines_are_found_and_nothing_that_is_hidden() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.post("/v1/sandboxes", &with_a_secret(place)).is(201);
        assert_eq!(search(&daemon, &["--name", "*.rs"]), ["src/a.rs", "src/deep/b.rs"]);
        assert_eq!(search(&daemon, &["src", "--name", "deep/*.rs"]), ["deep/b.rs"]);
        assert_eq!(
            search(&daemon, &["--content", "needle"]),
            ["notes.md:1:a needle", "src/a.rs:2:// needle one", "src/deep/b.rs:2:needle two"]
        );
        // The control: without the rule they are there.
        let bare = place.bare("grep -rl needle . ; grep -rl needle link/").ok().out;
        assert!(bare.contains("secret.txt") && bare.contains("far.txt"), "{bare}");
        let some =
            daemon.get("/v1/sandboxes/box/files/search?content=needle&limit=1").is(200).json();
        assert_eq!(
            (&some["truncated"], some["found"].as_array().unwrap().len()),
            (&json!(true), 1)
        );
        for path in ["hidden", "link", place.outside().to_str().unwrap()] {
            let ran = daemon.ringfence(&["files", "search", "box", path]);
            assert!(!ran.out.contains("secret") && !ran.out.contains("far"), "{ran:?}");
        }
        assert!(search(&daemon, &["/proc", "--name", "environ"]).is_empty());
        daemon.get("/v1/sandboxes/box/files/search?name=%5Bx").is(400);
        daemon.get("/v1/sandboxes/box/files/search?nonsense=1").is(400);
    });
}

#[test]
fn a_file_is_moved_where_the_rules_allow_it() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        place.write("a", "one");
        place.write("b", "two");
        daemon.ringfence(&["files", "move", "box", "a", "b"]).ok();
        assert_eq!(std::fs::read_to_string(place.workspace().join("b")).unwrap(), "one");
        let far = place.outside().join("b").display().to_string();
        assert_ne!(daemon.ringfence(&["files", "move", "box", "b", &far]).code, Some(0));
        daemon
            .ringfence(&["files", "move", "box", "nowhere", "c"])
            .failed_with(125)
            .says("no such");
        assert!(place.workspace().join("b").exists() && !place.outside().join("b").exists());
    });
}

#[test]
fn what_is_packed_is_unpacked_the_same() {
    if !has("tar") || !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.post("/v1/sandboxes", &with_a_secret(place)).is(201);
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        place.write(&long, vec![7u8; 200_001]);
        let script = place.write("run.sh", "#!/bin/sh\n");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let packed = daemon.command(&["files", "pack", "box"]).output().unwrap();
        assert!(packed.status.success(), "{packed:?}");
        let archive = place.write("../outside/all.tar", &packed.stdout);
        // Another program reads it; what is hidden is not in it, and a link is one.
        let listed = place.bare(&format!("tar tf {}", archive.display())).ok().out;
        assert!(listed.contains(&long) && listed.contains("src/deep/b.rs"), "{listed}");
        assert!(!listed.contains("secret") && !listed.contains("far.txt"), "{listed}");
        // What another program packs is unpacked.
        let packed = format!("tar cf - -C {} src run.sh {long}", place.workspace().display());
        let unpack = daemon
            .command(&["files", "unpack", "box", "copy"])
            .stdin(Stdio::from(
                Command::new("sh")
                    .args(["-c", &packed])
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
                    .stdout
                    .unwrap(),
            ))
            .output()
            .unwrap();
        assert!(unpack.status.success(), "{unpack:?}");
        let same = format!(
            "cd copy && for f in src/a.rs src/deep/b.rs run.sh {long}; do cmp $f ../$f || exit 1; done; test -x run.sh"
        );
        place.bare(&same).ok();
        daemon.shell("box", &same).ok();
    });
}

/// Archives that want out of the directory, by names, links and devices, or that claim more than they have.
#[test]
fn hostile_archives() {
    if !has("python3") || !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        symlink(place.outside(), place.workspace().join("link")).unwrap();
        symlink("/etc", place.workspace().join("etc")).unwrap();
        let outside = place.outside().display().to_string();
        let make = |script: &str| {
            let path = place.root().join("hostile.tar");
            let script = format!(
                "import tarfile,io,sys\nt=tarfile.open({path:?},'w')\ndef f(n,**k):\n  i=tarfile.TarInfo(n); i.size=1\n  [setattr(i,a,v) for a,v in k.items()]\n  t.addfile(i,io.BytesIO(b'x'))\n{script}\nt.close()"
            );
            assert!(Command::new("python3").args(["-c", &script]).status().unwrap().success());
            place.own(&path);
            path
        };
        let put = |path: &std::path::Path| {
            let from = format!("@{}", path.display());
            daemon.curl(&["-X", "PUT", "--data-binary", &from], "/v1/sandboxes/box/files/archive")
        };
        for hostile in [
            format!("f('{outside}/x')"),
            "f('../outside/x')".into(),
            "f('a/../../outside/x')".into(),
            "f('link/x')".into(),
            "f('etc/x')".into(),
            format!("f('l',type=tarfile.SYMTYPE,size=0,linkname='{outside}'); f('l/x')"),
            "f('h',type=tarfile.LNKTYPE,size=0,linkname='/etc/passwd')".into(),
            "f('d',type=tarfile.CHRTYPE,size=0,devmajor=1,devminor=3)".into(),
            "f('p',type=tarfile.FIFOTYPE,size=0)".into(),
        ] {
            let answer = put(&make(&hostile));
            assert!((400..500).contains(&answer.status), "{hostile}: {answer:?}");
            assert!(!place.outside().join("x").exists(), "{hostile}");
        }
        // A header that claims 8 GiB, half a header, and noise.
        let path = make("f('ok')");
        let mut bytes = std::fs::read(&path).unwrap();
        for change in [
            &mut |b: &mut Vec<u8>| b.truncate(700),
            &mut |b: &mut Vec<u8>| b.truncate(100),
            &mut |b: &mut Vec<u8>| b.iter_mut().for_each(|b| *b ^= 0x5a),
        ] as [&mut dyn FnMut(&mut Vec<u8>); 3]
        {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            let answer = put(&path);
            assert_eq!(answer.is(400).reason(), "invalid");
        }
        // The control, and that nothing of a draft is left.
        std::fs::write(&path, &bytes).unwrap();
        bytes.clear();
        assert_eq!(put(&path).is(200).json()["files"], 1);
        let left = place.bare("ls -A").ok().out;
        assert!(left.contains("ok") && !left.contains(".ringfence-"), "{left}");
    });
}
