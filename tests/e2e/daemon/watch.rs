//! Watched directories, permissions and durable writes: as the sandbox sees its files, and no further.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::world::Daemon;
use crate::harness::{as_each_user, has, mode};

/// What a watch tells; its curl ends with it.
struct Watched {
    events: Receiver<(String, Value)>,
    curl: Child,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

impl Watched {
    fn start(daemon: &Daemon<'_>, id: &str, query: &str) -> Self {
        let mut curl = daemon.place.command("curl");
        curl.arg("--unix-socket").arg(daemon.socket()).args(["-sS", "-N"]);
        curl.arg(format!("http://localhost/v1/sandboxes/{id}/files/watch?{query}"));
        let mut curl = curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(curl.stdout.take().unwrap());
        let (tell, events) = channel();
        std::thread::spawn(move || {
            let mut name = String::new();
            for line in out.lines().map_while(Result::ok) {
                if let Some(event) = line.strip_prefix("event: ") {
                    event.clone_into(&mut name);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    let _ = tell.send((name.clone(), serde_json::from_str(data).unwrap()));
                }
            }
        });
        let mut watched = Self { events, curl };
        assert_eq!(watched.next().0, "ready");
        watched
    }

    #[track_caller]
    fn next(&mut self) -> (String, Value) {
        self.events.recv_timeout(Duration::from_secs(60)).expect("an event")
    }

    /// The events up to one, which must come.
    #[track_caller]
    fn until(&mut self, name: &str, path: &str) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        loop {
            let event = self.next();
            let last = event.0 == name && event.1["path"] == path;
            all.push(event);
            if last {
                return all;
            }
        }
    }
}

fn has_path(all: &[(String, Value)], part: &str) -> bool {
    all.iter().any(|(_, data)| data.to_string().contains(part))
}

#[test]
fn what_changes_is_told_as_it_comes() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        daemon.shell(&id, "mkdir -p deep/er").ok();
        let mut flat = Watched::start(&daemon, &id, "");
        let mut all = Watched::start(&daemon, &id, "path=.&recursive=true");
        // By a command, over the socket, and from outside.
        daemon.shell(&id, "echo 1 > one; mv one two; chmod 600 two; rm two").ok();
        for watch in [&mut flat, &mut all] {
            watch.until("created", "one");
            let moved = watch.until("moved", "two");
            assert_eq!(moved.last().unwrap().1["from"], "one");
            watch.until("attributes", "two");
            watch.until("removed", "two");
        }
        let path = format!("/v1/sandboxes/{id}/files?path=put");
        daemon.curl(&["-X", "PUT", "--data-binary", "x"], &path).is(204);
        let put = all.until("changed", "put");
        // No draft is told.
        assert!(!has_path(&put, ".ringfence-"), "{put:?}");
        daemon.shell(&id, "echo 1 > deep/er/x; mkdir -p new/below; echo 1 > new/below/y").ok();
        all.until("created", "deep/er/x");
        all.until("created", "new/below");
        all.until("created", "new/below/y");
        place.write("new/below/outside", "text");
        all.until("created", "new/below/outside");
        // A directory has its new name afterwards, and what leaves is not followed.
        daemon.shell(&id, "mv new newer").ok();
        all.until("moved", "newer");
        daemon.shell(&id, "echo 2 > newer/below/y").ok();
        all.until("changed", "newer/below/y");
        daemon.shell(&id, "rm -r newer").ok();
        let last = all.until("removed", "newer");
        assert!(!has_path(&last, "new/below"), "{last:?}");
        // Not what lies below, without that being asked.
        daemon.shell(&id, "touch last").ok();
        let told = flat.until("created", "last");
        assert!(!has_path(&told, "/"), "{told:?}");
        all.until("created", "last");
        // It ends with the sandbox.
        daemon.ringfence(&["stop", &id]).ok();
        for mut watch in [flat, all] {
            let ended = std::iter::repeat_with(|| watch.next()).find(|e| e.0 == "ended");
            assert_eq!(ended.unwrap().1["reason"], "sandbox");
        }
    });
}

/// Names that rules hide, what the sandbox cannot reach, and what is no directory.
#[test]
fn a_watch_sees_no_more_than_the_sandbox() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        place.write(".env", "SECRET=1");
        place.write("secrets/key", "1");
        place.write("seen", "1");
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let outside = place.outside().join("d");
        std::fs::create_dir(&outside).unwrap();
        place.own(&outside);
        let shown = outside.display().to_string();
        let lead =
            format!("ln -s {shown} away; ln -s /proc/1/root/{shown} proc; mkdir in; ln -s in link");
        daemon.shell(&id, &lead).ok();
        let status =
            |path: &str| daemon.get(&format!("/v1/sandboxes/{id}/files/watch?path={path}")).status;
        let up = format!("../../../../..{shown}");
        for way in [&shown, &up, "../outside/d", "away", "proc", "nothing", "seen"] {
            assert!(matches!(status(way), 403 | 404), "{way}");
        }
        for kernels in ["/proc", "/proc/self", "/proc/1/root", "/proc/self/fd"] {
            assert!(matches!(status(kernels), 403 | 404), "{kernels}");
        }
        assert_eq!(status("a%00b"), 400);
        let mut watch = Watched::start(&daemon, &id, "recursive=true");
        // From outside, where nothing is hidden; then the control.
        place.write(".env", "SECRET=2");
        std::fs::write(outside.join("x"), "1").unwrap();
        place.write("seen", "2");
        let told = watch.until("changed", "seen");
        for name in [".env", "away", "proc"] {
            assert!(!has_path(&told, name), "{name}: {told:?}");
        }
        std::fs::remove_file(place.workspace().join(".env")).unwrap();
        place.write("seen", "3");
        let told = watch.until("changed", "seen");
        assert!(!has_path(&told, ".env"), "{told:?}");
        // Rules of names: whoever tries inside fails, and nothing is told.
        let ruled = daemon.create(&["--layer", "--rule", "none:/secrets/**:10"]);
        let mut names = Watched::start(&daemon, &ruled, "recursive=true");
        let attempt = "mkdir -p secrets; echo 2 > secrets/key; touch secrets/new; mv seen secrets/x; echo 4 > seen";
        daemon.shell(&ruled, attempt);
        let told = names.until("changed", "seen");
        assert!(!has_path(&told, "secrets"), "{told:?}");
        // A link to a place inside is followed, where it is the one that is named.
        let mut linked = Watched::start(&daemon, &id, "path=link");
        daemon.shell(&id, "touch in/x").ok();
        linked.until("created", "x");
        // Moved away and another put there: that is not what was watched.
        daemon.shell(&id, "mkdir gone").ok();
        let mut gone = Watched::start(&daemon, &id, "path=gone");
        std::fs::rename(place.workspace().join("gone"), place.outside().join("gone")).unwrap();
        std::fs::write(place.outside().join("gone/x"), "1").unwrap();
        let (name, data) = gone.next();
        assert_eq!((name.as_str(), &data), ("ended", &json!({ "reason": "gone" })));
    });
}

/// The reader is slow, so that not all can be kept: then that is told, and the sandbox is not held up.
#[test]
fn what_cannot_be_told_is_said_to_be_lost() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let mut watch = Watched::start(&daemon, &id, "");
        let pid = rustix::process::Pid::from_child(&watch.curl);
        let signal = |s| rustix::process::kill_process(pid, s).unwrap();
        signal(rustix::process::Signal::STOP);
        let name = "n".repeat(200);
        let script = format!("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); : > {name}$i; done");
        daemon.shell(&id, &script).ok();
        signal(rustix::process::Signal::CONT);
        while watch.next().0 != "overflow" {}
        // And it goes on. What is still waiting may be too much once more, which is told again.
        let told = |n| {
            let name = format!("after{n}");
            daemon.shell(&id, &format!("touch {name}")).ok();
            loop {
                match watch.next() {
                    (what, _) if what == "overflow" => return false,
                    (what, data) if what == "created" && data["path"] == name => return true,
                    _ => {}
                }
            }
        };
        assert!((0..100).any(told), "nothing but losses is told");
        // So many watches and no more; one that ended makes room.
        let mut more: Vec<_> = (0..7).map(|_| Watched::start(&daemon, &id, "path=.")).collect();
        let path = format!("/v1/sandboxes/{id}/files/watch");
        assert_eq!(daemon.get(&path).is(429).reason(), "limit");
        more.pop();
        super::world::until("a watch ended", || {
            let mut curl = daemon.place.command("curl");
            curl.arg("--unix-socket").arg(daemon.socket()).args(["-sS", "-o", "/dev/null"]);
            curl.args(["-m", "1", "-w", "%{http_code}"]);
            let ran = curl.arg(format!("http://localhost{path}")).output().unwrap();
            String::from_utf8_lossy(&ran.stdout) == "200"
        });
    });
}

#[test]
fn permissions_are_set_and_nothing_more() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        place.write("read/only", "1");
        let secret = place.outside().join("secret");
        std::fs::write(&secret, "1").unwrap();
        place.own(&secret);
        mode(&secret, 0o600);
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let chmod = |id: &str, path: &str, mode: &str| {
            let path = format!("/v1/sandboxes/{id}/files/chmod?path={path}&mode={mode}");
            daemon.curl(&["-X", "POST"], &path)
        };
        let shown = secret.display().to_string();
        let lead = format!(
            "echo 1 > file; mkdir d; ln -s file link; ln -s {shown} away; ln -s /proc/1/exe exe"
        );
        daemon.shell(&id, &lead).ok();
        for mode in ["640", "000", "755"] {
            chmod(&id, "file", mode).is(204);
            let seen = daemon.shell(&id, "stat -c %03a file").ok();
            assert_eq!(seen.out.trim(), mode);
        }
        chmod(&id, "d", "700").is(204);
        for wrong in ["4755", "2755", "1777", "8", "", "+6", "u+x"] {
            assert_eq!(chmod(&id, "file", wrong).is(400).reason(), "invalid", "{wrong}");
        }
        // No link is followed: not one of a command's, nor one of the kernel's.
        for way in
            ["link", "away", "exe", "/proc/1/exe", "/proc/self/fd/10", &shown, "../outside/secret"]
        {
            let answer = chmod(&id, way, "777");
            assert!(matches!(answer.status, 403 | 404), "{way}: {answer:?}");
        }
        let now = std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777;
        assert_eq!(now, 0o600);
        // As a command may: neither a way around the policy, nor around rules of names.
        let strict = daemon.create(&["-t", "read-only"]);
        assert_eq!(chmod(&strict, "read/only", "777").is(403).reason(), "refused");
        let ruled = daemon.create(&["--layer", "--rule", "read:/read/**:10"]);
        assert_eq!(chmod(&ruled, "read/only", "777").is(403).reason(), "refused");
        chmod(&ruled, "file", "600").is(204);
        assert_eq!(daemon.shell(&ruled, "stat -c %a file").ok().out.trim(), "600");
        // The control: the layer took it.
        assert_eq!(daemon.shell(&id, "stat -c %a file").ok().out.trim(), "755");
    });
}

#[test]
fn a_durable_write_is_a_write() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        for flags in [&[][..], &["--layer"]] {
            let id = daemon.create(flags);
            for (durable, text) in [("true", "kept"), ("false", "more")] {
                let path = format!("/v1/sandboxes/{id}/files?path=file&durable={durable}");
                daemon.curl(&["-X", "PUT", "--data-binary", text], &path).is(204);
                assert_eq!(daemon.shell(&id, "cat file").ok().out, text);
            }
            let path = format!("/v1/sandboxes/{id}/files?path=file&durable=perhaps");
            assert_eq!(daemon.curl(&["-X", "PUT", "-d", "x"], &path).is(400).reason(), "invalid");
        }
    });
}
