//! Shells that stay: what they keep, what they say exactly, how they end.

use serde_json::{Value, json};

use super::world::{Daemon, until};
use crate::harness::{Place, Ran, as_each_user, has};

/// Both kinds of shell that there are, where they are.
fn shells() -> impl Iterator<Item = &'static str> {
    ["/bin/sh", "bash"].into_iter().filter(|shell| has(shell.trim_start_matches("/bin/")))
}

struct Shell<'d, 'p> {
    daemon: &'d Daemon<'p>,
    sandbox: String,
    id: String,
}

impl<'d, 'p> Shell<'d, 'p> {
    fn start(daemon: &'d Daemon<'p>, sandbox: &str, shell: &str) -> Self {
        let made = daemon.ringfence(&["session", "create", sandbox, "--shell", shell]).ok();
        let id = made.out.trim().to_owned();
        assert!(id.starts_with("se_"), "{id}");
        Self { daemon, sandbox: sandbox.into(), id }
    }

    fn does(&self, text: &str) -> Ran {
        self.daemon.ringfence(&["session", "exec", &self.sandbox, &self.id, "--", text])
    }

    fn within(&self, time: &str, text: &str) -> (Option<i32>, Value) {
        let args =
            ["session", "exec", &self.sandbox, &self.id, "--timeout", time, "--json", "--", text];
        let ran = self.daemon.ringfence(&args);
        let result = serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        (ran.code, result)
    }

    fn state(&self) -> Value {
        let listed = self.daemon.ringfence(&["session", "list", &self.sandbox, "--json"]).ok();
        let listed: Vec<Value> = serde_json::from_str(&listed.out).unwrap();
        listed.into_iter().find(|s| s["id"] == self.id.as_str()).unwrap()
    }
}

fn in_each_shell(case: impl Fn(&Place, &Shell<'_, '_>)) {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        for shell in shells() {
            case(place, &Shell::start(&daemon, "box", shell));
        }
    });
}

#[test]
fn a_session_keeps_what_a_shell_keeps() {
    in_each_shell(|_, shell| {
        shell.does("mkdir -p sub/x; cd sub; A='a  b'; export B=2; f() { echo \"f $1 $A\"; }").ok();
        assert!(shell.does("pwd").ok().out.ends_with("/sub\n"));
        assert_eq!(shell.does("f \"it's\"; sh -c 'echo $B'").ok().out, "f it's a  b\n2\n");
        shell.does("exit_code() { return 7; }; exit_code").failed_with(7);
        shell.does("umask 077; set -- one two").ok();
        assert_eq!(shell.does("umask; echo $2").ok().out, "0077\ntwo\n");
        // A text of many lines, with what has a meaning for shells.
        let text = "for i in 1 2; do\n  cat <<'END'\nit's $i \"x\" \\\nEND\ndone\n# the end";
        assert_eq!(shell.does(text).ok().out, "it's $i \"x\" \\\nit's $i \"x\" \\\n");
        // The control: a command of its own keeps nothing.
        assert!(!shell.daemon.shell("box", "pwd; echo $B").ok().out.contains("sub"));
    });
}

#[test]
fn what_a_line_says_is_exact_and_its_own() {
    in_each_shell(|place, shell| {
        let noise: Vec<u8> =
            (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        place.write("noise", &noise);
        let script = "cat noise & head -c 200000 noise >&2; wait; printf end";
        let args = ["session", "exec", "box", &shell.id, "--", script];
        let output = shell.daemon.command(&args).output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, [&noise[..], b"end"].concat());
        assert_eq!(output.stderr, &noise[..200_000]);
        let ran = shell.does("true & sleep 0.01; echo out; echo err >&2").ok();
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
        // What stays behind writes to the line that started it.
        shell.does("(while ! [ -e go ]; do sleep 0.02; done; echo late; : > gone) &").ok();
        let ran =
            shell.does(": > go; while ! [ -e gone ]; do sleep 0.02; done; rm go gone; echo on");
        assert_eq!(ran.ok().out, "on\n");
        // Text that a shell does not take is its own problem only.
        for wrong in ["if", "echo 'x", "nosuchprogram", ". /nonexistent", "break; return 3"] {
            assert_ne!(shell.does(wrong).code, Some(125), "{wrong}");
            assert_eq!(shell.does("echo fine").ok().out, "fine\n", "after {wrong}");
        }
    });
}

/// What a line writes looks like a record, and it tries the descriptors by which records come.
#[test]
fn output_is_no_record() {
    in_each_shell(|_, shell| {
        let forged =
            "for n in 1 2 3 4 5 6 7 8; do echo \"e $n 0\"; echo \"e $n 0\" >&2; done; false";
        let ran = shell.does(forged).failed_with(1);
        assert_eq!(ran.out, ran.err);
        assert!(ran.out.starts_with("e 1 0\ne 2 0\n"), "{ran:?}");
        // No program that it starts has the pipe.
        let script = "sh -c 'for fd in 3 4 5 6 7 8 9 10 11 12 13; do eval \"echo e 2 0 >&$fd\" 2>/dev/null && echo wrote $fd; done'; ls /proc/self/fd | tail -n 1; false";
        let ran = shell.does(script).failed_with(1);
        assert!(!ran.out.contains("wrote"), "{ran:?}");
        assert_eq!(ran.out.trim(), "3", "only what ls opens itself");
    });
}

#[test]
fn a_line_that_takes_too_long_ends_and_the_session_goes_on() {
    in_each_shell(|_, shell| {
        shell.does("A=kept; sleep 1000 & echo $!").ok();
        let before = shell.does("echo $!").ok().out.trim().to_owned();
        for text in [
            "sleep 1001; echo after",
            "while :; do :; done",
            "f() { while :; do sleep 0.01; done; }; f",
            "(sleep 1001; sleep 1002) | cat",
            "setsid sleep 1001 & sleep 1002",
            "sh -c 'trap \"\" INT; sleep 1001' & sleep 1002",
            "trap 'echo trapped' TERM; while sleep 0.01; do :; done",
        ] {
            let (code, result) = shell.within("500ms", text);
            assert_eq!(result["ended"]["reason"], "timeout", "{text}: {result}");
            assert_eq!(code, Some(128 + 9), "{text}");
            assert_eq!(result["stdout"]["data"], "", "nothing of {text} ran after that");
            let next = shell.does("echo $A");
            assert_eq!((next.out.as_str(), next.code), ("kept\n", Some(0)), "{text}: {next:?}");
        }
        // What it started is gone, what an earlier line started is not.
        let left = "ls /proc | grep '^[0-9]*$' | while read p; do tr '\\0' ' ' < /proc/$p/cmdline; echo; done 2>/dev/null | grep -c 'sleep 100[12]'";
        until("what was killed is gone", || shell.does(left).out.trim() == "0");
        shell.does(&format!("kill -0 {before}")).ok();
    });
}

#[test]
fn a_shell_that_does_not_give_up_ends_with_its_line() {
    in_each_shell(|_, shell| {
        // Deaf before the time runs, however late the shell comes to a line.
        shell.does("trap '' INT").ok();
        let (_, result) = shell.within("500ms", "while :; do :; done");
        assert_eq!(result["ended"]["reason"], "timeout", "{result}");
        until("it is closed", || shell.state()["state"] == "closed");
        assert_eq!(shell.state()["reason"], "timeout");
        shell.does("true").failed_with(125).says("closed");
    });
}

#[test]
fn the_end_of_the_shell_is_the_end_of_the_session() {
    in_each_shell(|_, shell| {
        assert_eq!(shell.state()["state"], "active");
        shell.does("exit 5").failed_with(5);
        until("it is closed", || shell.state()["state"] == "closed");
        assert_eq!(shell.state()["reason"], "exit");
        shell.does("true").failed_with(125).says("closed: exit");
        // Deleted: the shell and what it started are gone.
        let other = Shell::start(shell.daemon, "box", "/bin/sh");
        let pid = other.does("sleep 1000 & echo $!").ok().out.trim().to_owned();
        shell.daemon.ringfence(&["session", "remove", "box", &other.id]).ok();
        assert_eq!(other.state()["reason"], "deleted");
        let alive = format!("kill -0 {pid}");
        until("it is gone", || shell.daemon.shell("box", &alive).code != Some(0));
        // Stopped with its sandbox.
        let third = Shell::start(shell.daemon, "box", "/bin/sh");
        shell.daemon.ringfence(&["stop", "box"]).ok();
        until("it is closed", || third.state()["reason"] == "sandbox");
        shell.daemon.ringfence(&["start", "box"]).ok();
        third.does("true").failed_with(125).says("closed");
    });
}

#[test]
fn sessions_over_http() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&["--name", "box"]);
        let at = format!("/v1/sandboxes/{id}/sessions");
        let made = daemon.post(&at, &json!({ "environment": { "A": "1" }, "cwd": "/" })).is(201);
        let session = made.json()["id"].as_str().unwrap().to_owned();
        let at = format!("{at}/{session}");
        let result = daemon.post(
            &format!("{at}/exec"),
            &json!({ "command": "pwd; echo $A; cat; exec 3>&1", "stdin": "in" }),
        );
        let result = result.is(200).json();
        assert_eq!(result["stdout"]["data"], "/\n1\nin", "{result}");
        assert_eq!(result["ended"]["exit_code"], 0);
        let streamed = daemon.post(
            &format!("{at}/exec/stream"),
            &json!({ "command": "echo one; echo two >&2; (exit 4)" }),
        );
        let streamed = streamed.is(200).body;
        for part in ["event: stdout", "one\\n", "event: stderr", "two\\n", "\"exit_code\":4"] {
            assert!(streamed.contains(part), "{part}: {streamed}");
        }
        // Lines of two askers come one after the other.
        let slow = json!({ "command": "B=1; sleep 0.3; B=" });
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| daemon.post(&format!("{at}/exec"), &slow));
            until("it is busy", || daemon.get(&at).json()["busy"] == true);
            let quick = daemon.post(&format!("{at}/exec"), &json!({ "command": "echo [$B]" }));
            assert_eq!(quick.is(200).json()["stdout"]["data"], "[]\n");
            slow.join().unwrap().is(200);
        });
        for (path, body) in [
            (at.replace("se_", "se_0"), json!({})),
            (format!("{at}x/exec"), json!({ "command": "true" })),
        ] {
            let answer =
                if body == json!({}) { daemon.get(&path) } else { daemon.post(&path, &body) };
            assert_eq!(answer.is(404).reason(), "not-found");
        }
        let wrong =
            daemon.post(&format!("/v1/sandboxes/{id}/sessions"), &json!({ "shell": "/bin/true" }));
        assert_eq!(wrong.is(403).reason(), "refused");
        daemon.curl(&["-X", "DELETE"], &at).is(204);
        daemon.curl(&["-X", "DELETE"], &at).is(204);
        assert_eq!(daemon.get(&at).is(200).json()["state"], "closed");
        daemon.post(&format!("{at}/exec"), &json!({ "command": "true" })).is(409);
    });
}
