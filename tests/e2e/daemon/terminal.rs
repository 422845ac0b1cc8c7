//! Commands with a terminal, shown in a real one.

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use serde_json::json;

use super::world::{Daemon, until};
use crate::harness::{Place, Ran, as_each_user, has};
use crate::terminal::{CTRL_C, CTRL_Z, Shell};

/// A shell at a terminal, and a daemon with sandboxes of these names.
pub fn in_a_terminal(sandboxes: &[&str], case: impl Fn(&Place, &Daemon<'_>, &mut Shell)) {
    if !has("bash") || !has("setsid") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        for name in sandboxes {
            daemon.create(&["--name", name]);
        }
        let mut shell = Shell::new(place);
        shell.run(&format!(
            "export XDG_RUNTIME_DIR={}/run RINGFENCE_STATE={}/state; before=$(stty -g)",
            place.root().display(),
            place.home().display()
        ));
        case(place, &daemon, &mut shell);
    });
}

/// This terminal is as it was.
fn is_as_before(t: &mut Shell) {
    let out = t.run("[ \"$before\" = \"$(stty -g)\" ] && echo \"as\" before");
    assert!(out.contains("as before"), "{out}");
}

#[test]
fn a_command_has_a_terminal_of_its_sandbox() {
    in_a_terminal(&["box"], |_, _, t| {
        t.resize(31, 97);
        let out = t.run("\"$RF\" exec -t box -- sh -c 'test -t 0 && test -t 1 && test -t 2 && tty && stty size; echo x >/dev/tty; exit 7'; echo code=$?");
        assert!(out.contains("/dev/pts/0\r\n31 97\r\nx\r\ncode=7\r\n"), "{out}");
        is_as_before(t);
        // The control: without it there is none.
        let out = t.run("\"$RF\" exec box -- sh -c 'tty; test -t 1 || echo none' </dev/null");
        assert!(out.contains("not a tty\r\nnone"), "{out}");
    });
}

#[test]
fn attach_is_a_shell_with_job_control() {
    in_a_terminal(&["box"], |_, _, t| {
        t.send("\"$RF\" attach box --shell bash --env PS1='% '\n");
        t.send("PS1='%''% '\n");
        t.expect("%% ");
        // Ctrl-Z and Ctrl-C go to what runs inside, and not to this program.
        t.send("sleep 1000\n");
        t.send("");
        std::thread::sleep(std::time::Duration::from_millis(300));
        t.send(CTRL_Z);
        t.expect("Stopped");
        t.expect("%% ");
        t.send("fg\n");
        t.expect("sleep 1000\r\n");
        std::thread::sleep(std::time::Duration::from_millis(300));
        t.send(CTRL_C);
        t.expect("%% ");
        t.send("echo code=$?\n");
        t.expect("code=130\r\n");
        // The size follows.
        t.resize(40, 120);
        t.send("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo re\"\"sized\n");
        t.expect("resized\r\n");
        t.send("exit 9\n");
        t.prompt();
        let out = t.run("echo code=$?");
        assert!(out.contains("code=9"), "{out}");
        is_as_before(t);
    });
}

#[test]
fn the_terminal_is_put_back_however_it_ends() {
    in_a_terminal(&["box"], |_, daemon, t| {
        // Killed from inside, its time over, told to end, without its sandbox.
        let out = t.run("\"$RF\" exec -t box -- sh -c 'kill -9 $$'; echo code=$?");
        assert!(out.contains("code=137"), "{out}");
        is_as_before(t);
        let out = t.run("\"$RF\" exec -t --timeout 300ms box -- sleep 1000; echo code=$?");
        assert!(out.contains("its time was over") && out.contains("code=137"), "{out}");
        is_as_before(t);
        let out = t.run("(sleep 0.5; pkill -TERM -f 'exec -t box -- sleep 1001') & \"$RF\" exec -t box -- sleep 1001; echo code=$?");
        assert!(out.contains("code=143"), "{out}");
        is_as_before(t);
        until("what it showed was hung up", || {
            !daemon
                .ringfence(&[
                    "exec",
                    "box",
                    "--",
                    "sh",
                    "-c",
                    "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
                ])
                .out
                .contains("sleep 1001")
        });
        t.send("\"$RF\" exec -t box -- sh -c 'echo rea\"\"dy; sleep 1000'; echo code=\"$?\"x\n");
        t.expect("ready");
        daemon.ringfence(&["stop", "box"]).ok();
        t.expect("code=");
        t.prompt();
        is_as_before(t);
        daemon.ringfence(&["start", "box"]).ok();
    });
}

#[test]
fn who_comes_back_sees_what_was_kept() {
    in_a_terminal(&["box"], |place, daemon, t| {
        let body = json!({
            "shell": "stty -echo; echo one; read line; echo got $line; stty size",
            "terminal": { "rows": 10, "columns": 20 }, "background": true,
        });
        let started = if has("curl") {
            daemon.post("/v1/sandboxes/box/exec", &body).is(202).json()
        } else {
            return;
        };
        let exec = started["id"].as_str().unwrap().to_owned();
        let at = format!("/v1/sandboxes/box/execs/{exec}");
        until("the first line", || daemon.get(&at).json()["stdout_bytes"] == 5);
        // Looked at, and left again.
        t.send(&format!("\"$RF\" attach box --keep --exec {exec}\n"));
        t.expect("one\r\n");
        Ran::of(place.command("pkill").args([
            "-TERM",
            "-f",
            &format!("attach box --keep --exec {exec}"),
        ]))
        .ok();
        t.prompt();
        assert_eq!(daemon.get(&at).json().get("ended"), None);
        t.send(&format!("\"$RF\" attach box --exec {exec}\n"));
        t.expect("one\r\n");
        t.send("hello\n");
        t.expect("got hello\r\n10 20\r\n");
        t.prompt();
        is_as_before(t);
        // Not of a command that has none, and not without the protocol.
        let plain = daemon.post(
            "/v1/sandboxes/box/exec",
            &json!({ "argv": ["sleep", "1000"], "background": true }),
        );
        let plain = plain.is(202).json()["id"].as_str().unwrap().to_owned();
        let answer = daemon.get(&format!("/v1/sandboxes/box/execs/{plain}/terminal"));
        assert_eq!(answer.is(409).reason(), "conflict");
        daemon.get(&format!("{at}/terminal")).is(426);
        let mut without = daemon.command(&["exec", "-t", "box", "--", "true"]);
        Ran::of(without.stdin(Stdio::null()).arg0("ringfence"))
            .failed_with(125)
            .says("not a terminal");
    });
}

/// What is written to the terminal is shown and never obeyed, and nobody inside types for others.
#[test]
fn a_command_at_the_terminal() {
    if !has("python3") {
        return;
    }
    in_a_terminal(&["box"], |_, _, t| {
        let script = "import fcntl,termios,sys\nfor fd in (0,1,2):\n  try:\n    fcntl.ioctl(fd,termios.TIOCSTI,b\"x\"); print(\"typed\")\n  except OSError as e: print(\"refused\",e.errno)";
        let out = t.run(
            &format!("\"$RF\" exec -t box -- python3 -c '{script}'").replace('\n', "'$'\\n''"),
        );
        assert!(out.contains("refused") && !out.contains("typed\r\n"), "{out}");
        // The terminal of one command is not another's to open: each has a number of its own and there
        // are none but the sandbox's.
        let out = t.run("\"$RF\" exec -t box -- sh -c 'ls /dev/pts; (: </dev/tty) && echo own'");
        assert!(out.contains("own"), "{out}");
        let shown = out.split_whitespace().filter(|word| word.parse::<u32>().is_ok()).count();
        assert!(shown <= 2, "the sandbox's own alone: {out}");
    });
}

/// A page in a browser cannot open a socket to it.
#[test]
fn a_page_at_the_terminal_of_a_command() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.create(&["--name", "box"]);
        let body =
            json!({ "argv": ["cat"], "terminal": { "rows": 9, "columns": 9 }, "background": true });
        let started = daemon.post("/v1/sandboxes/box/exec", &body).is(202).json();
        let at = format!("/v1/sandboxes/box/execs/{}/terminal", started["id"].as_str().unwrap());
        let upgrade = [
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "-H",
            "Sec-WebSocket-Version: 13",
            "-H",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "--max-time",
            "1",
        ];
        let page: Vec<&str> =
            upgrade.iter().copied().chain(["-H", "Origin: http://localhost"]).collect();
        assert_eq!(daemon.curl(&page, &at).is(403).reason(), "forbidden");
        // The control: a program.
        daemon.curl(&upgrade, &at).is(101);
    });
}
