//! Snapshots, checkpoints, forks, archives and quotas, through the binary.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Place, Ran, as_each_user, has, is_root};

fn rf(p: &Place, args: &[&str]) -> Ran {
    Ran::of(&mut p.ringfence(args))
}

fn shown(p: &Place, layer: &str) -> String {
    // Everything that a program can see of the workspace, but the numbers that the kernel gives.
    let script = "find . -printf '%P %y %m %U %G %s %l %n ' -type f -exec cat {} \\; -o -printf '\\n' \
                  | sed 's/^\\(.* d .*\\) [0-9]* $/\\1/' | LC_ALL=C sort";
    p.shell(&["--layer", layer], script).ok().out
}

fn project(p: &Place) {
    p.write("a", "host\n");
    p.write("d/f", "host\n");
    p.write("d/g", "host\n");
}

#[test]
fn undo_takes_back_what_checkpointed_runs_wrote() {
    as_each_user(|p| {
        project(p);
        let before = p.bare("find . -type f -exec cat {} +").out;
        let flags = ["--layer", "work", "--checkpoint"];
        p.shell(&flags, "echo 1 > a; rm d/f").ok();
        let first = shown(p, "work");
        p.shell(&flags, "echo 2 > a; rm -r d; mkdir d; echo new > d/new").ok();
        p.shell(&flags, "echo 3 > a; chmod 700 .").ok();
        let listed = rf(p, &["undo", "work", "--list"]).ok().out;
        assert_eq!(listed.lines().count(), 3, "{listed}");
        assert!(listed.starts_with("   1  /bin/sh -c echo 3 > a"), "{listed}");
        rf(p, &["undo", "work", "4"]).failed_with(125).says("takes a number from 1 to 3");
        rf(p, &["undo", "work", "2"]).ok().says("taken back: /bin/sh -c echo 2");
        assert_eq!(shown(p, "work"), first);
        let json = rf(p, &["undo", "work", "--json"]).ok().out;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["undone"][0]["command"], "/bin/sh -c echo 1 > a; rm d/f");
        p.shell(&["--layer", "work"], "test $(cat a) = host && test -e d/f").ok();
        rf(p, &["undo", "work"]).failed_with(125).says("has no checkpoint");
        // Control: nothing of all this was ever on the host.
        assert_eq!(p.bare("find . -type f -exec cat {} +").out, before);
    });
}

#[test]
fn snapshots_come_back_and_a_restore_can_be_taken_back() {
    as_each_user(|p| {
        project(p);
        p.shell(&["--layer", "work"], "echo 1 > a; rm -r d").ok();
        let one = shown(p, "work");
        rf(p, &["snapshot", "work", "one"]).ok();
        rf(p, &["snapshot", "work", "one"]).failed_with(125).says("already");
        rf(p, &["snapshot", "work", "../one"]).failed_with(125).says("is not a name");
        rf(p, &["snapshot", "nobody", "one"]).failed_with(125).says("no layer is called nobody");
        p.shell(&["--layer", "work"], "echo 2 > a; mkdir d; echo 2 > d/f").ok();
        let two = shown(p, "work");
        assert_ne!(one, two);
        rf(p, &["restore", "work", "one"]).ok();
        assert_eq!(shown(p, "work"), one);
        rf(p, &["undo", "work"]).ok();
        assert_eq!(shown(p, "work"), two);
        rf(p, &["snapshot", "--remove", "work", "one"]).ok();
        rf(p, &["restore", "work", "one"]).failed_with(125).says("no snapshot called one");
    });
}

#[test]
fn forks_go_on_apart_and_one_in_use_is_refused() {
    as_each_user(|p| {
        project(p);
        p.shell(
            &["--layer", "work"],
            "echo 1 > a; dd if=/dev/urandom of=big bs=1M count=32 2>/dev/null",
        )
        .ok();
        let used = |p: &Place| {
            let store = p.home().join(".local/state/ringfence");
            let out = p.bare(&format!("du -sk {}", store.display())).ok().out;
            out.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let before = used(p);
        rf(p, &["fork", "work", "other"]).ok();
        assert!(used(p) < before + 1024, "a fork copies nothing");
        p.shell(&["--layer", "other"], "test $(stat -c %s big) = 33554432; echo other > a; rm big")
            .ok();
        p.shell(&["--layer", "work"], "test $(cat a) = 1 && test -e big && echo work > a").ok();
        p.shell(&["--layer", "other"], "test $(cat a) = other && test ! -e big").ok();
        rf(p, &["fork", "work", "other"]).failed_with(125).says("exists already");
        // While a run has it.
        let args = ["run", "--layer", "work", "--", "/bin/sh", "-c", "echo ready; read _ || :"];
        let mut held =
            p.ringfence(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(held.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let told = format!("layer work is in use by pid {}", held.id());
        for args in [
            &["fork", "work", "third"][..],
            &["snapshot", "work", "s"],
            &["undo", "work"],
            &["export", "work", "-"],
            &["discard", "work"],
        ] {
            rf(p, args).failed_with(125).says(&told);
        }
        drop(held.stdin.take());
        assert!(held.wait().unwrap().success());
        rf(p, &["fork", "work", "third"]).ok();
    });
}

const EVERYTHING: &str = "set -e
    echo more >> a; rm d/f; rm -r d; mkdir d; echo again > d/h; ln d/h d/hard; ln -s ../a d/link
    mkfifo pipe; : > empty; truncate -s 20m sparse; printf x | dd of=sparse bs=1 seek=9M conv=notrunc 2>/dev/null
    touch -d '2001-02-03 04:05:06.789' empty; chmod 2750 d; chmod 400 empty; mkdir -p deep/er; chmod 711 deep
    echo n > \"$(printf 'new\\nline')\"; echo b > \"$(printf 'caf\\351')\"; touch \"$(printf '%0255d' 7)\"";

#[test]
fn an_exported_layer_comes_back_as_it_was() {
    if !has("tar") || !has("zstd") {
        return;
    }
    as_each_user(|p| {
        project(p);
        p.shell(&["--layer", "work"], EVERYTHING).ok();
        let file = p.home().join("l.tar.zst");
        let file = file.to_str().unwrap();
        rf(p, &["export", "work", file]).ok();
        // The same bytes again, also through a pipe.
        rf(p, &["export", "work", &format!("{file}.2")]).ok();
        p.bare(&format!("cmp {file} {file}.2")).ok();
        let listed = p.bare(&format!("zstd -dqc {file} | tar -tf - | LC_ALL=C sort")).ok().out;
        assert!(listed.contains("d/.wh..wh..opq\n"), "{listed}");
        rf(p, &["import", "back", file]).ok();
        assert_eq!(shown(p, "back"), shown(p, "work"));
        let times = |layer: &str| {
            let script =
                "stat -c '%n %y' d d/h empty deep; du -k sparse | awk '{ print $1 < 1024 }'";
            p.shell(&["--layer", layer], script).ok().out
        };
        assert_eq!(times("back"), times("work"));
        rf(p, &["export", "back", &format!("{file}.3")]).ok();
        p.bare(&format!("cmp {file} {file}.3")).ok();
        rf(p, &["import", "back", file]).failed_with(125).says("exists already");
        // Cut off: nothing is left of it.
        p.bare(&format!("head -c 300 {file} > {file}.cut")).ok();
        rf(p, &["import", "cut", &format!("{file}.cut")]).failed_with(125);
        rf(p, &["undo", "cut"]).failed_with(125).says("no layer is called cut");
        p.bare("test $(cat a) = host && test ! -e empty").ok();
    });
}

#[test]
fn a_hostile_archive_reaches_nothing() {
    if !has("python3") {
        return;
    }
    as_each_user(|p| {
        project(p);
        let outside = p.outside();
        let kept = p.write(outside.join("kept"), "kept");
        let make = |name: &str, body: &str| {
            let file = outside.join(name);
            let script = format!(
                "import tarfile, io
def put(t, name, **how):
    m = tarfile.TarInfo(name)
    data = how.pop('data', b'')
    for k, v in how.items(): setattr(m, k, v)
    m.size = len(data)
    t.addfile(m, io.BytesIO(data))
L, H, C = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
with tarfile.open({file:?}, 'w') as t:
    {body}
"
            );
            Ran::of(p.command("python3").args(["-c", &script])).ok();
            file.to_str().unwrap().to_owned()
        };
        let up = outside.to_str().unwrap();
        for (body, why) in [
            ("put(t, '../outside/evil', data=b'x')".to_owned(), "a name with .."),
            (format!("put(t, '{up}/evil', data=b'x')"), "an absolute name"),
            (
                format!("put(t, 'l', type=L, linkname='{up}'); put(t, 'l/evil', data=b'x')"),
                "used as one",
            ),
            (
                format!(
                    "put(t, 'l', type=L, linkname='{up}'); put(t, 'x', type=H, linkname='l/kept')"
                ),
                "further name",
            ),
            (format!("put(t, 'x', type=H, linkname='{up}/kept')"), "an absolute name"),
            ("put(t, 'x', type=C, devmajor=1, devminor=3)".to_owned(), "a device"),
        ] {
            let file = make("evil.tar", &body);
            rf(p, &["import", "evil", &file]).failed_with(125).says(why);
            assert!(!outside.join("evil").exists(), "{body}");
            assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
        }
        assert!(p.bare("ls -A ../home/.local/state/ringfence/deltas").ok().out.is_empty());
        // Control: the same program makes one that is taken, without its setuid bit.
        let file = make("good.tar", "put(t, 'good', data=b'#!/bin/sh\\n', mode=0o4755)");
        rf(p, &["import", "good", &file]).ok().says("lost setuid");
        p.shell(&["--layer", "good"], "test $(stat -c %a good) = 755").ok();
    });
}

#[test]
fn a_quota_ends_the_run_before_it_holds_much_more() {
    as_each_user(|p| {
        project(p);
        let status = p.home().join("status");
        let status = status.to_str().unwrap();
        let limit = 32;
        let flags = ["--layer", "work", "--layer-quota", "32m", "--status", status];
        let write = "dd if=/dev/zero of=big bs=1M count=2000 2>/dev/null; echo survived";
        let ran = p.shell(&flags, write).failed_with(137);
        assert!(!ran.out.contains("survived"));
        let ran = ran.says("layer work: disk quota: the layer holds");
        let told: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(status).unwrap()).unwrap();
        assert_eq!(told["end"]["reason"], "disk quota");
        let enforced = told["enforced"].as_array().unwrap();
        assert!(enforced.iter().any(|e| e["name"] == "layer-quota"), "{told}");
        let out = p.bare("du -sm ../home/.local/state/ringfence/deltas").ok().out;
        let held: u64 = out.split_whitespace().next().unwrap().parse().unwrap();
        println!("slack {} MiB", held.saturating_sub(limit));
        assert!((limit..limit + 512).contains(&held), "{held}: {ran:?}");
        // It stays with the layer, until it is taken back.
        let again = p.shell(&["--layer", "work"], "sleep 20");
        again.failed_with(137).says("disk quota");
        p.shell(&["--layer", "work", "--layer-quota", "unlimited"], "sleep 0.3; rm big").ok();
        // Control: without a quota the same is written.
        p.shell(&["--layer", "free"], "dd if=/dev/zero of=big bs=1M count=64 2>/dev/null").ok();
    });
}

#[test]
fn no_way_of_taking_space_gets_around_a_quota() {
    as_each_user(|p| {
        project(p);
        for (n, script) in [
            // Many small ones; in a directory that is closed; under a name that is gone.
            "i=0; while :; do i=$((i+1)); mkdir d$i; dd if=/dev/zero of=d$i/f bs=64k count=16 2>/dev/null; done",
            "mkdir c; cd c; exec 3>f; chmod 0 .; while :; do dd if=/dev/zero bs=1M count=1 >&3 2>/dev/null; done",
            "exec 3>f; rm f; while :; do dd if=/dev/zero bs=1M count=1 >&3 2>/dev/null; done",
            "mkdir -p a1/b/c/d/e; cd a1/b/c/d/e; yes > y",
        ]
        .into_iter()
        .enumerate()
        {
            let layer = format!("q{n}");
            let begun = Instant::now();
            let flags = ["--layer", &layer, "--layer-quota", "24m", "--timeout", "60s"];
            p.shell(&flags, script).failed_with(137).says("disk quota");
            assert!(begun.elapsed() < Duration::from_secs(50), "{script}");
            rf(p, &["discard", &layer]).ok();
        }
        let flags = ["--layer", "n", "--layer-inodes", "1k", "--timeout", "60s"];
        p.shell(&flags, "i=0; while :; do i=$((i+1)); : > f$i; done")
            .failed_with(137)
            .says("its quota is 1000");
        // Space cannot be reserved in one call; tools then write.
        if has("fallocate") {
            let flags = ["--layer", "r", "--layer-quota", "24m"];
            let ran = p.shell(&flags, "fallocate -l 100g x || echo refused").ok();
            assert_eq!(ran.out, "refused\n");
            // Control: without a quota it is a call like any other.
            p.shell(&["--layer", "free"], "fallocate -l 1m x").ok();
        }
        p.shell(&[], "true").ok();
    });
}

#[test]
fn quotas_need_a_layer_and_a_disk_with_room() {
    as_each_user(|p| {
        p.shell(&["--layer-quota", "1g"], "true")
            .failed_with(125)
            .says("--layer-quota needs --layer");
        p.shell(&["--layer", "x", "--layer-inodes", "many"], "true")
            .failed_with(125)
            .says("--layer-inodes");
    });
    if !is_root() {
        println!("skipped: only root makes a small disk");
        return;
    }
    let p = Place::new(crate::harness::User::Me);
    // In a mount namespace of its own, so that nothing of it stays.
    let script = format!(
        "mkdir {0}/small && mount -t tmpfs -o size=64m,mode=700 none {0}/small && \
         RINGFENCE_STATE={0}/small {1} run --layer x -- echo ran",
        p.home().display(),
        crate::harness::binary().display()
    );
    let ran = Ran::of(p.command("unshare").args(["-m", "/bin/sh", "-c", &script]));
    if ran.err.contains("unshare") || ran.err.contains("mount:") {
        println!("skipped: no small disk can be made here: {}", ran.err);
        return;
    }
    ran.failed_with(125).says("256 MiB must stay so");
}
