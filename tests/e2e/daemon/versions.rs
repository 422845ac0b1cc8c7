//! States of files over HTTP: who has one is not sent it again, who expects one does not overwrite another, and parts.

use super::world::{Answer, Daemon};
use crate::harness::{as_each_user, has};

fn at(path: &str) -> String {
    format!("/v1/sandboxes/box/files?path={path}")
}

fn get(daemon: &Daemon<'_>, path: &str, headers: &[&str]) -> Answer {
    let mut all = vec!["-i"];
    for header in headers {
        all.extend(["-H", header]);
    }
    daemon.curl(&all, &at(path))
}

fn put(daemon: &Daemon<'_>, path: &str, bytes: &str, headers: &[&str]) -> Answer {
    let mut all = vec!["-i", "-X", "PUT", "--data-binary", bytes];
    for header in headers {
        all.extend(["-H", header]);
    }
    daemon.curl(&all, &at(path))
}

/// A head of an answer (`-i`).
fn head(answer: &Answer, name: &str) -> Option<String> {
    let lines = answer.body.lines().take_while(|line| !line.trim().is_empty());
    lines.into_iter().find_map(|line| {
        let (told, value) = line.split_once(':')?;
        told.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn content(answer: &Answer) -> &str {
    answer.body.split_once("\r\n\r\n").map_or("", |(_, content)| content)
}

fn tag(daemon: &Daemon<'_>, path: &str) -> String {
    head(&get(daemon, path, &[]).is(200), "etag").unwrap()
}

#[test]
fn who_has_a_file_is_not_sent_it_again() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        place.write("file", "one");
        let one = tag(&daemon, "file");
        // No more is said of it than is true.
        assert!(one.starts_with("W/\""), "{one}");
        let known = format!("If-None-Match: \"other\", {one}");
        let same = get(&daemon, "file", &[&known]).is(304);
        assert_eq!((content(&same), head(&same, "etag")), ("", Some(one.clone())));
        assert_eq!(daemon.get("/v1/sandboxes/box/files/stat?path=file").json()["etag"], one);
        // Whoever changes it, and however: other bytes, as many bytes, another file, back in time.
        let ways = [
            "echo more >> file",
            "printf 12345678 | dd of=file conv=notrunc status=none",
            "cp file other; touch -r file other; mv other file",
            "touch -d '2001-01-01' file",
            "chmod 600 file",
        ];
        let mut before = one;
        for way in ways {
            // Longer than a tick of the kernel's clock.
            daemon.shell("box", &format!("sleep 0.05; {way}")).ok();
            let changed = get(&daemon, "file", &[&format!("If-None-Match: {before}")]).is(200);
            let now = head(&changed, "etag").unwrap();
            assert_ne!(now, before, "{way}");
            before = now;
        }
        assert_eq!(get(&daemon, "file", &["If-None-Match: *"]).is(304).status, 304);
        get(&daemon, "none", &["If-None-Match: *"]).is(404);
        get(&daemon, "file", &["If-None-Match: bare"]).is(400);
    });
}

#[test]
fn who_expects_a_state_does_not_overwrite_another() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        for layer in [&[][..], &["--layer"]] {
            let daemon = Daemon::start(place);
            daemon.create(&[&["--name", "box"], layer].concat());
            put(&daemon, "shared", "first", &["If-None-Match: *"]).is(204);
            let again = put(&daemon, "shared", "again", &["If-None-Match: *"]).is(412);
            assert!(again.body.contains("\"reason\":\"changed\""), "{again:?}");
            put(&daemon, "absent", "x", &["If-Match: *"]).is(412);
            put(&daemon, "absent", "x", &["If-Match: \"some\""]).is(412);
            let known = tag(&daemon, "shared");
            let expects = format!("If-Match: {known}");
            // One of two that both know it; what it is then is told.
            let written = put(&daemon, "shared", "one's", &[&expects]).is(204);
            let refused = put(&daemon, "shared", "two's", &[&expects]).is(412);
            assert!(refused.body.contains("shared is not what it was"), "{refused:?}");
            let now = head(&written, "etag").unwrap();
            assert_eq!(now, tag(&daemon, "shared"));
            put(&daemon, "shared", "one's second", &[&format!("If-Match: {now}")]).is(204);
            put(&daemon, "shared", "x", &[&format!("If-None-Match: {}", tag(&daemon, "shared"))])
                .is(412);
            // A command inside is a writer too.
            let known = tag(&daemon, "shared");
            daemon.shell("box", "sleep 0.05; echo inside > shared").ok();
            put(&daemon, "shared", "x", &[&format!("If-Match: {known}")]).is(412);
            assert_eq!(daemon.shell("box", "cat shared").ok().out, "inside\n");
            // The control: without a condition the last one wins. Nothing of the others is left.
            put(&daemon, "shared", "last", &[]).is(204);
            assert_eq!(
                daemon.shell("box", "cat shared; ls -A | grep ringfence- || :").ok().out,
                "last"
            );
            daemon.ringfence(&["remove", "box"]).ok();
            let _ = std::fs::remove_file(place.workspace().join("shared"));
        }
    });
}

/// Many at once, who all know the same: one of them writes.
#[test]
fn of_many_writers_at_once_one_writes() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        for round in 0..5 {
            // Small ones, and such as are read as they come.
            let size = if round % 2 == 0 { 10 } else { 200 << 10 };
            place.write("shared", format!("round {round}"));
            let known = format!("If-Match: {}", tag(&daemon, "shared"));
            let done: Vec<(String, u32)> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..8)
                    .map(|n| {
                        let (daemon, known) = (&daemon, &known);
                        scope.spawn(move || {
                            let text = format!("{n}").repeat(size);
                            let from = daemon.place.outside().join(format!("of-{n}"));
                            std::fs::write(&from, &text).unwrap();
                            daemon.place.own(&from);
                            let from = format!("@{}", from.display());
                            let status = put(daemon, "shared", &from, &[known]).status;
                            (text, status)
                        })
                    })
                    .collect();
                writers.into_iter().map(|w| w.join().unwrap()).collect()
            });
            let written: Vec<_> = done.iter().filter(|(_, status)| *status == 204).collect();
            assert_eq!(written.len(), 1, "round {round}");
            assert!(done.iter().all(|(_, status)| matches!(status, 204 | 412)));
            let there = std::fs::read_to_string(place.workspace().join("shared")).unwrap();
            assert!(there == written[0].0, "round {round}");
        }
    });
}

#[test]
fn a_range_of_a_file_is_read() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        place.write("digits", "0123456789");
        place.write("empty", "");
        let whole = get(&daemon, "digits", &[]).is(200);
        assert_eq!(head(&whole, "accept-ranges").as_deref(), Some("bytes"));
        assert_eq!(head(&whole, "content-range"), None);
        for (range, bytes, told) in [
            ("0-3", "0123", "bytes 0-3/10"),
            ("4-", "456789", "bytes 4-9/10"),
            ("-3", "789", "bytes 7-9/10"),
            ("8-100", "89", "bytes 8-9/10"),
            ("-100", "0123456789", "bytes 0-9/10"),
        ] {
            let part = get(&daemon, "digits", &[&format!("Range: bytes={range}")]).is(206);
            assert_eq!(
                (content(&part), head(&part, "content-range").unwrap()),
                (bytes, told.into())
            );
            assert_eq!(head(&part, "etag"), head(&whole, "etag"));
        }
        for (path, range, size) in [("digits", "10-", 10), ("digits", "-0", 10), ("empty", "0-", 0)]
        {
            let none = get(&daemon, path, &[&format!("Range: bytes={range}")]).is(416);
            assert_eq!(head(&none, "content-range").unwrap(), format!("bytes */{size}"));
            assert!(none.body.contains("\"reason\":\"range\""), "{none:?}");
        }
        // What is not one range of bytes is passed over, and so is one of a state that may be gone.
        let tag = head(&whole, "etag").unwrap();
        let since = format!("If-Range: {tag}");
        for headers in [
            &["Range: bytes=0-1,4-5"][..],
            &["Range: lines=1-2"],
            &["Range: bytes=3-1"],
            &["Range: bytes=0-1", &since],
        ] {
            assert_eq!(content(&get(&daemon, "digits", headers).is(200)), "0123456789");
        }
        let told = get(&daemon, "digits&offset=2&length=3", &["Range: bytes=0-0"]).is(200);
        assert_eq!(content(&told), "234");
        assert_eq!(
            get(&daemon, "digits", &["Range: bytes=0-1", &format!("If-None-Match: {tag}")]).status,
            304
        );
    });
}

#[test]
fn the_command_line_writes_only_what_is_as_expected() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let local = place.outside().join("local");
        std::fs::write(&local, "text").unwrap();
        place.own(&local);
        let local = local.display().to_string();
        let upload = |flags: &[&str]| {
            daemon.ringfence(&[&["files", "upload", "box", &local, "there"], flags].concat())
        };
        upload(&["--new"]).ok();
        upload(&["--new"]).failed_with(125).says("there is there already; read it again");
        let stat = daemon.ringfence(&["files", "stat", "box", "there", "--json"]).ok().out;
        let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
        let known = stat["etag"].as_str().unwrap();
        upload(&["--if-match", known]).ok();
        upload(&["--if-match", known]).failed_with(125).says("there is not what it was");
        upload(&["--if-match", known, "--new"]).failed_with(125);
    });
}
