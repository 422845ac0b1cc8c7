//! Malformed input: each has its message, nothing runs, nothing is lost.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::harness::{Place, Ran, User, as_each_user, binary};

/// Exit codes of ringfence itself.
const FAILED: i32 = 125;
const REFUSED: i32 = 126;

/// Runs `touch ran` under the policy file and asserts that it did not happen.
#[track_caller]
fn refuses(p: &Place, file: &str, content: impl AsRef<[u8]>, texts: &[&str]) -> Ran {
    p.write(file, content);
    let mut ran =
        Ran::of(&mut p.ringfence(["run", "-s", file, "--", "touch", "ran"])).failed_with(FAILED);
    for text in texts {
        ran = ran.says(text);
    }
    assert!(!p.workspace().join("ran").exists(), "nothing runs: {ran:?}");
    assert!(!ran.err.contains("panicked"), "{ran:?}");
    ran
}

fn run(p: &Place, args: &[&str]) -> Ran {
    Ran::of(&mut p.ringfence(args))
}

#[test]
fn malformed_policies_name_file_line_and_key() {
    as_each_user(|p| {
        refuses(
            p,
            "p.toml",
            "[files]\nwirte = [\".\"]\n",
            &["p.toml:2: unknown key `files.wirte`, did you mean `write`?"],
        );
        refuses(p, "p.toml", "[files]\nwrite = [\".\"\n[limits]\n", &["p.toml:"]);
        refuses(
            p,
            "p.jsonc",
            "{\n  // a comment\n  \"files\": {\"write\": [\".\"]\n",
            &["p.jsonc:"],
        );
        refuses(
            p,
            "p.jsonc",
            "{\n  \"files\": {\"write\": [\".\"]},\n  \"files\": {}\n}",
            &["p.jsonc:3", "written twice"],
        );
        refuses(
            p,
            "p.toml",
            "[files]\nwrite = 7\n",
            &["p.toml:2: files.write: expected a list, found number 7"],
        );
        refuses(
            p,
            "p.toml",
            "\n[limits]\nmemory = \"99999999999t\"\n",
            &["p.toml:3: limits.memory: ", "absurdly large"],
        );
        refuses(p, "p.toml", "[limits]\npids = -1\n", &["p.toml:2: limits.pids"]);
        refuses(p, "p.toml", "[limits]\npids = 99999999999999999999999\n", &["p.toml:2: "]);
        refuses(
            p,
            "p.toml",
            "[files]\ndeny = [\"a\\u0000b\"]\n",
            &["p.toml:2: files.deny: pattern contains a nul byte"],
        );
        refuses(p, "p.toml", b"[files]\ndeny = [\"caf\xe9\"]\n", &["p.toml:2: not utf-8 text"]);
        refuses(
            p,
            "p.toml",
            vec![b'#'; 2 << 20],
            &["too large for a policy file, the limit is 1048576"],
        );
        refuses(
            p,
            "p.toml",
            "extends = \"workspcae\"\n",
            &["p.toml:1: unknown profile `workspcae`; known profiles: workspace, strict"],
        );
        refuses(
            p,
            "p.toml",
            "lift = [\"guard.gti\"]\n",
            &["p.toml:1: unknown built-in rule `guard.gti`, did you mean `guard.git`?"],
        );
        refuses(
            p,
            "p.toml",
            "accept_missing = [\"everything\"]\n",
            &["p.toml:1: accept_missing: unknown protection \"everything\"; allowed: "],
        );
        refuses(
            p,
            "p.toml",
            "[files]\nread = [\"$HOME/x\"]\n",
            &["p.toml:2", "variables are not expanded"],
        );
        refuses(
            p,
            "p.toml",
            "[network]\nallow = [\"npn\"]\n",
            &["p.toml:2: network.allow: \"npn\": unknown group `npn`, did you mean `npm`?"],
        );
    });
}

#[test]
fn an_escape_in_a_policy_does_not_reach_the_terminal() {
    as_each_user(|p| {
        let ran =
            refuses(p, "p.toml", "\"\\u001b[2Jkey\\nringfence: fine\" = 1\n", &["unknown key"]);
        assert!(!ran.err.contains('\u{1b}'), "{ran:?}");
        p.write("ringfence.toml", "[files]\nread = [\"/a\\u001b]0;x\\u0007\\nringfence: fine\"]\n");
        let ran = run(p, &["--", "true"]).failed_with(REFUSED).says("\\u{1b}]0;x");
        assert!(!ran.err.contains('\u{1b}'), "{ran:?}");
        assert!(!ran.err.lines().any(|l| l.starts_with("ringfence: fine")), "{ran:?}");
    });
}

#[test]
fn odd_policy_files_are_refused_without_blocking() {
    as_each_user(|p| {
        let go = |file: &str| run(p, &["-s", file, "--", "true"]).failed_with(FAILED);
        go("none.toml").says("cannot read none.toml: no such file");
        fs::create_dir(p.workspace().join("dir.toml")).unwrap();
        go("dir.toml").says("cannot read dir.toml: is a directory");
        p.bare("mkfifo fifo.toml").ok();
        go("fifo.toml").says("cannot read fifo.toml: not a regular file");
        go("/dev/zero").says("cannot read /dev/zero: not a regular file");
        p.bare("ln -s loop.toml loop.toml").ok();
        go("loop.toml").says("cannot read loop.toml: ");
        let closed = p.write("closed.toml", "");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        if p.ids().0 != 0 {
            go("closed.toml").says("cannot read closed.toml: permission denied");
        }
        // The same for the file that is found, not named.
        fs::rename(&closed, p.workspace().join("ringfence.toml")).unwrap();
        if p.ids().0 != 0 {
            run(p, &["--", "true"]).failed_with(FAILED).says("permission denied");
            run(p, &["--no-config", "--", "true"]).ok();
        }
    });
}

#[test]
fn extends_that_goes_in_a_circle_or_nowhere_is_refused() {
    as_each_user(|p| {
        p.write("b.toml", "extends = \"./a.toml\"\n");
        refuses(
            p,
            "a.toml",
            "extends = \"./b.toml\"\n",
            &["b.toml:1: extends goes in a circle: a.toml -> b.toml -> a.toml"],
        );
        refuses(p, "a.toml", "extends = \"./a.toml\"\n", &["goes in a circle"]);
        refuses(
            p,
            "a.toml",
            "extends = \"./none.toml\"\n",
            &["a.toml:1: cannot read none.toml: no such file"],
        );
        for i in 0..12 {
            p.write(format!("d{i}.toml"), format!("extends = \"./d{}.toml\"\n", i + 1));
        }
        refuses(p, "a.toml", "extends = \"./d0.toml\"\n", &["extends goes deeper than 10"]);
    });
}

#[test]
fn policies_of_other_tools_work_or_name_every_key_that_cannot() {
    as_each_user(|p| {
        refuses(
            p,
            "fence.json",
            "{\n \"network\": {\"allowedDomains\": [\"example.com\"]},\n \"ssh\": {\"allowedHosts\": [\"x\"]},\n \"command\": {\"deny\": [\"git push\"]}\n}",
            &[
                "not supported yet, refused rather than ignored",
                "ssh.allowedHosts (fence.json:3",
                "command.deny (fence.json:4",
            ],
        );
        refuses(
            p,
            "fence.json",
            "{\"filesystem\": {\"allowWrte\": [\".\"]}}",
            &["fence.json:1: unknown key `filesystem.allowWrte`, did you mean `allowWrite`?"],
        );
        p.write("secret.txt", "hidden");
        p.write("fence.json", "{\n // as it is\n \"filesystem\": {\"allowWrite\": [\".\"], \"denyRead\": [\"secret.txt\"]},\n \"network\": {\"allowedDomains\": [\"example.com\"]},\n}");
        let ran = run(p, &["-s", "fence.json", "-c", "echo made > new; cat secret.txt"]);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert!(!ran.out.contains("hidden"), "{ran:?}");
        assert_eq!(fs::read(p.workspace().join("new")).unwrap(), b"made\n");
    });
}

#[test]
fn check_reports_every_problem_and_whether_the_host_can_hold_it() {
    as_each_user(|p| {
        p.write(
            "bad.toml",
            "nonsense = 1\n[files]\nwirte = [\".\"]\nread = [7]\n[limits]\nmemory = \"-1\"\n",
        );
        p.write("good.toml", "[files]\ndeny = [\"x\"]\n");
        p.write("hosts.toml", "[network]\nallow = [\"example.com\"]\n");
        p.write("worse.toml", "[network]\nallow = [\"npm\", \"*.com\",\n\"localhost\"]\n");
        run(p, &["policy", "check", "worse.toml"])
            .failed_with(FAILED)
            .says("worse.toml:2: network.allow: \"*.com\": ")
            .says("worse.toml:3: network.allow: \"localhost\": ");
        run(p, &["policy", "check", "bad.toml", "good.toml", "none.toml"])
            .failed_with(FAILED)
            .says("bad.toml:1: unknown key `nonsense`")
            .says("bad.toml:3: unknown key `files.wirte`, did you mean `write`?")
            .says("bad.toml:4: files.read[0]: expected text, found number 7")
            .says("bad.toml:6: limits.memory: ")
            .says("good.toml: fine, and this host can hold it")
            .says("cannot read none.toml: no such file");
        run(p, &["policy", "check", "good.toml"]).ok();
        run(p, &["policy", "check"]).ok().says("fine");
        run(p, &["policy", "check", "hosts.toml"]).ok().says("hosts.toml: fine");
    });
}

#[test]
fn missing_places_are_told_or_harmless() {
    as_each_user(|p| {
        run(p, &["--allow-read", "/no/such/place", "--allow-write", "nor/this", "--", "true"]).ok();
        assert!(!p.workspace().join("nor").exists(), "no phantom files");
        run(p, &["-w", "/no/such/dir", "--", "true"]).failed_with(FAILED).says("/no/such/dir: ");
        p.write("file", "x");
        run(p, &["-w", "file", "--", "true"])
            .failed_with(FAILED)
            .says("the workspace is not a directory");
        run(p, &["-w", "/", "--", "true"]).failed_with(FAILED).says("too wide for a workspace");
        run(p, &["-C", "/no/such/dir", "--", "true"]).failed_with(FAILED).says("/no/such/dir");
        let outside = p.outside();
        let ran = run(p, &["-w", ".", "-C", outside.to_str().unwrap(), "--", "true"]);
        assert_eq!(ran.code, Some(FAILED), "{ran:?}");
        assert!(ran.err.contains("not visible inside"), "{ran:?}");
        run(p, &["--device", "/dev/no-such-node", "--", "true"])
            .failed_with(FAILED)
            .says("/dev/no-such-node: no such device on this host");
    });
}

#[test]
fn a_deny_rule_for_a_missing_or_odd_path_never_bricks_the_run() {
    as_each_user(|p| {
        let w = p.workspace();
        symlink("loop2", w.join("loop1")).unwrap();
        symlink("loop1", w.join("loop2")).unwrap();
        symlink("/no/where", w.join("dangling")).unwrap();
        p.write("file", "x");
        p.write("hidden.txt", "hidden");
        for odd in [
            "missing",
            "a/b/c/d",
            "loop1",
            "loop1/x",
            "dangling",
            "file/below",
            "/no/such",
            "/proc/1/mem",
            "/proc/self/environ",
            "/sys/kernel",
            "/dev/null/x",
            "/dev/mem",
            "~/none",
            "~",
            "**/nothing-*",
            "./a//b/../c",
            "[x]",
            "{a,b}",
            "/tmp",
            "/var/tmp",
            "/run/user",
            "/tmp/none",
            "/etc/shadow",
        ] {
            for flag in ["--deny-read", "--deny-write"] {
                let ran = run(
                    p,
                    &[flag, odd, "--deny-read", "hidden.txt", "-c", "cat hidden.txt; echo ran"],
                );
                assert_eq!(ran.code, Some(0), "{flag} {odd}: {ran:?}");
                assert_eq!(ran.out, "ran\n", "{flag} {odd}: others hold: {ran:?}");
            }
        }
        let long = "x".repeat(3000);
        let ran = run(p, &["--deny-read", &long, "--", "true"]);
        assert!(matches!(ran.code, Some(0 | FAILED)), "{ran:?}");
        assert!(!ran.err.contains("panicked"), "{ran:?}");
    });
}

#[test]
fn denies_typed_on_the_command_line_hold() {
    as_each_user(|p| {
        p.write("secret.txt", "hidden");
        p.write("[odd]/{dir}/secret.txt", "hidden");
        run(p, &["--deny-read", "secret.txt", "-c", "cat secret.txt"]).failed_with(1);
        run(p, &["--deny-read", "/etc/hostname", "-c", "cat /etc/hostname"]).failed_with(1);
        run(
            p,
            &[
                "--deny-write",
                "secret.txt",
                "-c",
                "echo x > secret.txt || mv secret.txt y || rm secret.txt",
            ],
        )
        .failed_with(1);
        assert_eq!(fs::read(p.workspace().join("secret.txt")).unwrap(), b"hidden");
        // The directory in which it was typed is no pattern.
        let odd = p.workspace().join("[odd]/{dir}");
        let mut command = p.ringfence(["--deny-read", "secret.txt", "-c", "cat secret.txt"]);
        Ran::of(command.current_dir(&odd)).failed_with(1);
    });
}

#[test]
fn symlinks_in_deny_paths_hide_what_they_lead_to() {
    as_each_user(|p| {
        p.write("real/secret.txt", "hidden");
        symlink("real", p.workspace().join("link")).unwrap();
        symlink("real/secret.txt", p.workspace().join("name")).unwrap();
        run(p, &["--deny-read", "link/secret.txt", "-c", "cat real/secret.txt"]).failed_with(1);
        run(p, &["--deny-read", "name", "-c", "cat real/secret.txt"]).failed_with(1);
        // A name that must not change is held even where it is a link.
        run(p, &["--deny-write", "name", "-c", "rm name || mv name other"]).failed_with(1);
        assert!(p.workspace().join("name").is_symlink());
    });
}

/// Names that text cannot hold.
fn odd_names() -> Vec<PathBuf> {
    let name = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    vec![
        name(b"caf\xe9.txt"),
        name(b"two\nlines"),
        name(b"\x1b[31mred"),
        name(b"-rf"),
        name(b" "),
        name(b"back\\slash*?[x]"),
        name(&[b'n'; 255]),
        name("näme-日本".as_bytes()),
    ]
}

#[test]
fn odd_names_in_the_workspace_survive_and_stay_readable() {
    as_each_user(|p| {
        for name in odd_names() {
            p.write(&name, "content");
        }
        let bad_directory = Path::new(OsStr::from_bytes(b"dir\xff"));
        p.write(bad_directory.join(".env"), "hidden");
        p.write(bad_directory.join("plain"), "content");
        p.write("line\nbreak/.env", "hidden");
        let ran = p.shell(&["-d"], "for f in * ' '; do [ -d \"$f\" ] || cat < \"$f\" || exit 9; echo; done | grep -c content").ok();
        assert!(ran.out.trim().parse::<usize>().unwrap() >= odd_names().len(), "{ran:?}");
        assert!(!ran.err.contains('\u{1b}'), "names on the terminal are spelled out: {ran:?}");
        let ran = p.shell(&[], "cat dir*/plain; cat dir*/.env line*/.env").failed_with(1);
        assert_eq!(ran.out, "content", "{ran:?}");
        for name in odd_names() {
            assert_eq!(fs::read(p.workspace().join(&name)).unwrap(), b"content", "{name:?}");
        }
        let explained = run(p, &["policy", "explain", "./\u{1b}[31mred"]).ok();
        assert!(!explained.out.contains('\u{1b}'), "{explained:?}");
        // To work in a directory whose name is not text is possible, and its secrets are hidden.
        let mut command = p.ringfence(["-c", "cat plain && ! cat .env && echo made > new"]);
        Ran::of(command.current_dir(p.workspace().join(bad_directory))).ok();
        assert!(p.workspace().join(bad_directory).join("new").exists());
        // A deny that cannot be said is an error, not a rule that never matches.
        let mut command = p.ringfence(["--deny-read", "plain", "--", "true"]);
        Ran::of(command.current_dir(p.workspace().join(bad_directory)))
            .failed_with(FAILED)
            .says("--deny-read: the current directory")
            .says("is not utf-8");
    });
}

#[test]
fn a_policy_with_a_name_that_is_not_text_is_read_and_guarded() {
    as_each_user(|p| {
        let directory = Path::new(OsStr::from_bytes(b"dir\xff"));
        p.write(directory.join("p.toml"), "[files]\ndeny = [\"secret\"]\n");
        p.write(directory.join("secret"), "hidden");
        let here = p.workspace().join(directory);
        let mut command =
            p.ringfence(["-s", "p.toml", "-c", "echo x > p.toml; rm -f p.toml; cat secret"]);
        let ran = Ran::of(command.current_dir(&here));
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert!(!ran.out.contains("hidden"));
        assert_eq!(
            fs::read(here.join("p.toml")).unwrap(),
            b"[files]\ndeny = [\"secret\"]\n",
            "{ran:?}"
        );
    });
}

#[test]
fn deep_paths_are_walked() {
    as_each_user(|p| {
        // 4000 bytes of path below the workspace, made step by step since no call takes it whole.
        let script = "i=0; while [ $i -lt 20 ]; do mkdir -p d && cd -P d || exit 1; i=$((i+1)); done; pwd | wc -c";
        let script = script.replace(" d ", &format!(" {} ", "d".repeat(190)));
        p.bare(&script).ok();
        p.bare(&format!("cd {0}/{0}/{0} && echo hidden > .env", "d".repeat(190))).ok();
        p.shell(&[], "true").ok();
        p.shell(&[], &format!("cat {0}/{0}/{0}/.env", "d".repeat(190))).failed_with(1);
    });
}

#[test]
fn command_lines_that_make_no_sense_say_so() {
    as_each_user(|p| {
        run(p, &["run"]).failed_with(FAILED).says("no command: write it after --");
        run(p, &["--"]).failed_with(FAILED).says("no command: write it after --");
        run(p, &["--", ""]).failed_with(FAILED).says("the command is empty");
        run(p, &["-c", "true", "--", "true"])
            .failed_with(FAILED)
            .says("-c and a command after -- exclude each other");
        run(p, &["--memroy", "1g", "--", "true"]).failed_with(FAILED).says("--memory");
        run(p, &["-s"]).failed_with(FAILED).says("--settings");
        run(p, &["--debug=yes", "--", "true"]).failed_with(FAILED).says("--debug");
        run(p, &["-t", "workspcae", "--", "true"])
            .failed_with(FAILED)
            .says("unknown profile `workspcae`");
        run(p, &["--timeout", "0", "--", "true"]).failed_with(FAILED).says("limits.timeout");
        run(p, &["--timeout", "soon", "--", "true"])
            .failed_with(FAILED)
            .says("\"soon\" is not a time");
        run(p, &["--timeout", "-5", "--", "true"]).failed_with(FAILED).says("is negative");
        run(p, &["--memory", "99999999999t", "--", "true"])
            .failed_with(FAILED)
            .says("absurdly large");
        run(p, &["--memory", "1", "--", "true"]).failed_with(FAILED).says("too small");
        run(p, &["--pids", "0", "--", "true"]).failed_with(FAILED).says("too small");
        run(p, &["--cpu", "lots", "--", "true"]).failed_with(FAILED).says("--cpu");
        run(p, &["--network", "all", "--", "true"])
            .failed_with(FAILED)
            .says("--network: `all` is not one of none, filtered, host");
        run(p, &["--pty", "maybe", "--", "true"])
            .failed_with(FAILED)
            .says("not one of auto, always, never");
        run(p, &["--env", "=x", "--", "true"]).failed_with(FAILED).says("--env: empty name");
        run(p, &["--allow-read", "", "--", "true"])
            .failed_with(FAILED)
            .says("--allow-read: empty path");
        run(p, &["--allow-read", "~root/x", "--", "true"]).failed_with(FAILED);
        run(p, &["-p", "99999", "--", "true"]).failed_with(FAILED).says("99999");
        run(p, &["--lift", "everything", "--", "true"])
            .failed_with(FAILED)
            .says("unknown built-in rule `everything`");
        let mut command = p.ringfence(["-t"]);
        Ran::of(command.arg(OsStr::from_bytes(b"\xff")).args(["--", "true"]))
            .failed_with(FAILED)
            .says("\\xff is not utf-8");
        // No argument holds a nul byte: the kernel ends it there. Other bytes pass as they are.
        let mut command = p.ringfence(["--", "printf", "%s"]);
        let ran = Ran::of(command.arg(OsStr::from_bytes(b"\xc3\xa4\x01")));
        assert_eq!(ran.out, "ä\u{1}");
    });
}

#[test]
fn reports_that_cannot_be_written_are_errors() {
    as_each_user(|p| {
        run(p, &["--log", "/no/such/dir/log", "--", "touch", "ran"])
            .failed_with(FAILED)
            .says("--log: cannot open /no/such/dir/log");
        assert!(!p.workspace().join("ran").exists(), "nothing runs without its log");
        run(p, &["--log", ".", "--", "true"]).failed_with(FAILED).says("--log: cannot open");
        run(p, &["--status", "/no/such/dir/status", "--", "true"])
            .failed_with(FAILED)
            .says("cannot write the status to /no/such/dir/status");
    });
}

#[test]
fn a_project_policy_that_widens_waits_for_trust() {
    as_each_user(|p| {
        let outside = p.outside();
        let wide = format!("[files]\nwrite = [\"{}\"]\n", outside.display());
        p.write("ringfence.toml", &wide);
        let go = || p.shell(&[], &format!("echo x > {}/made", outside.display()));
        go().failed_with(REFUSED)
            .says(
                "ringfence.toml is not trusted yet, and it asks for more than the default allows:",
            )
            .says("files.write = ")
            .says("ringfence.toml:2")
            .says("run `ringfence trust ");
        run(p, &["policy", "show"]).failed_with(REFUSED);
        p.shell(&["--no-config"], "true").ok();
        run(p, &["trust"])
            .ok()
            .says("asks for more than the default allows")
            .says("trusted as it is now");
        run(p, &["trust", "--list"]).ok().says("trusted");
        go().ok();
        assert!(outside.join("made").exists());
        // Other content, other decision.
        p.write("ringfence.toml", format!("{wide}\n# and more\n"));
        go().failed_with(REFUSED).says("was changed since it was trusted");
        run(p, &["trust", "--list"]).ok().says("changed since");
        p.write("ringfence.toml", &wide);
        go().ok();
        run(p, &["trust", "--revoke"]).ok().says("is no longer trusted");
        run(p, &["trust", "--revoke"]).ok().says("was not trusted");
        go().failed_with(REFUSED);
        run(p, &["trust", "none.toml"]).failed_with(FAILED).says("no such file");
    });
}

#[test]
fn trust_in_one_file_is_not_trust_in_what_it_extends() {
    as_each_user(|p| {
        let wide = format!("[files]\nwrite = [\"{}\"]\n", p.outside().display());
        p.write("ringfence.toml", "extends = \"./base.toml\"\n");
        p.write("base.toml", &wide);
        p.shell(&[], "true").failed_with(REFUSED).says("base.toml");
        run(p, &["trust"]).ok().says("base.toml");
        p.shell(&[], "true").ok();
        p.write("base.toml", "[network]\nmode = \"host\"\n");
        p.shell(&[], "true")
            .failed_with(REFUSED)
            .says("base.toml was changed since it was trusted");
    });
}

#[test]
fn an_untrusted_policy_that_only_narrows_applies() {
    as_each_user(|p| {
        p.write("ringfence.toml", "[files]\ndeny = [\"private\"]\n[limits]\nopen_files = 64\n");
        p.write("private/x", "hidden");
        p.shell(&[], "cat private/x").failed_with(1).says("it only narrows, so it applies");
        p.shell(&[], "ulimit -n").ok().says("64");
        // From a directory below, too.
        let mut command = p.ringfence(["-c", "true"]);
        p.write("sub/file", "");
        Ran::of(command.current_dir(p.workspace().join("sub"))).ok().says("it only narrows");
    });
}

#[test]
fn a_run_cannot_change_the_policy_that_confines_it() {
    as_each_user(|p| {
        let text = "[files]\ndeny = [\"private\"]\n";
        let attack = "for f in sub/p.toml link.toml ringfence.toml; do echo '[files]' > $f; rm -f $f; mv $f $f.old; ln -sf /dev/null $f; done; mv sub sub2; mkdir sub; echo > sub/p.toml; true";
        p.write("sub/p.toml", text);
        p.write("other.toml", text);
        p.write("ringfence.toml", text);
        symlink("other.toml", p.workspace().join("link.toml")).unwrap();
        for file in ["sub/p.toml", "link.toml", "./ringfence.toml"] {
            let path = p.workspace().join(file);
            let was_link = path.is_symlink();
            p.shell(&["-s", file], attack).ok();
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "{file}");
            assert_eq!(path.is_symlink(), was_link, "{file}");
            // What was not in use may have gone.
            p.write("sub/p.toml", text);
            p.write("other.toml", text);
            p.write("ringfence.toml", text);
            let _ = fs::remove_file(p.workspace().join("link.toml"));
            symlink("other.toml", p.workspace().join("link.toml")).unwrap();
        }
    });
}

#[test]
fn a_sandbox_cannot_give_trust() {
    as_each_user(|p| {
        let wide = format!("[files]\nwrite = [\"{}\"]\n", p.outside().display());
        p.write("ringfence.toml", &wide);
        let store = p.home().join(".local/state/ringfence/trust.json");
        let exe = binary().parent().unwrap().to_str().unwrap();
        let flags = ["--no-config", "--allow-read", exe];
        let exe = binary().display();
        p.shell(&flags, &format!("{exe} trust"))
            .failed_with(FAILED)
            .says("refused inside a sandbox");
        // The variable is only a hint; without it the store that is written is the sandbox's own.
        let _ = p.shell(&flags, &format!("env -u RINGFENCE {exe} trust"));
        assert!(!store.exists());
        p.shell(&[], "true").failed_with(REFUSED);
        // Neither can a store that exists be changed.
        let before = "{}";
        p.write(&store, before);
        let _ =
            p.shell(&flags, &format!("env -u RINGFENCE {exe} trust; echo x > {}", store.display()));
        assert_eq!(fs::read_to_string(&store).unwrap(), before);
        p.shell(&[], "true").failed_with(REFUSED);
    });
}

#[test]
fn a_damaged_trust_store_is_not_overwritten() {
    as_each_user(|p| {
        let store = p.home().join(".local/state/ringfence/trust.json");
        p.write(&store, "not json");
        p.write("ringfence.toml", "[network]\nmode = \"host\"\n");
        run(p, &["--", "true"]).failed_with(FAILED).says("trust store").says("trust.json");
        run(p, &["trust"]).failed_with(FAILED).says("trust store");
        assert_eq!(fs::read_to_string(&store).unwrap(), "not json");
    });
}

#[test]
fn init_writes_a_trusted_starter_once() {
    as_each_user(|p| {
        run(p, &["init", "-t", "nonsense"]).failed_with(FAILED).says("unknown profile `nonsense`");
        let printed = run(p, &["init", "--print"]).ok();
        assert!(!p.workspace().join("ringfence.toml").exists());
        run(p, &["init"]).ok().says("recorded as trusted");
        assert_eq!(fs::read_to_string(p.workspace().join("ringfence.toml")).unwrap(), printed.out);
        run(p, &["trust", "--list"]).ok().says("trusted");
        let ran = run(p, &["--", "true"]).ok();
        assert!(!ran.err.contains("trust"), "{ran:?}");
        run(p, &["init"]).failed_with(FAILED).says("is there already; it is left as it is");
        assert_eq!(fs::read_to_string(p.workspace().join("ringfence.toml")).unwrap(), printed.out);
        fs::remove_file(p.workspace().join("ringfence.toml")).unwrap();
        symlink("/no/where", p.workspace().join("ringfence.jsonc")).unwrap();
        run(p, &["init"]).failed_with(FAILED).says("ringfence.jsonc is there already");
    });
}

#[test]
fn explain_names_rule_line_and_remedy() {
    as_each_user(|p| {
        p.write(".env", "hidden");
        p.write("own.txt", "x");
        fs::create_dir(p.home().join(".ssh")).unwrap();
        p.own(&p.home().join(".ssh"));
        p.write("p.toml", "[files]\ndeny = [\"own.txt\"]\n");
        let explain = |what: &str| run(p, &["policy", "explain", "-s", "p.toml", what]).ok();
        explain(".env").says(".env: none").says("[secret.env]").says("--allow-read").says("masked");
        explain("own.txt").says("own.txt: none").says("cap none on own.txt (p.toml:2)");
        explain("~/.ssh").says("secret.ssh").says("--lift secret.ssh");
        explain("src/new.rs").says("write (readable and writable)").says("does not exist now");
        explain(".git/hooks").says("guard.git").says("--lift guard.git");
        explain("p.toml").says("p.toml: read").says("guard.ringfence");
        explain("/etc/passwd").says("/etc/passwd: read");
        explain("/no/such").says("/no/such: none").says("--allow-read /no/such");
        explain("example.com:443")
            .says("example.com:443: refused, network none")
            .says("--allow-host example.com:443")
            .says("--network host");
        explain("not a host!").says("refused, the host name holds a control, space or NUL byte");
        symlink(".env", p.workspace().join("link")).unwrap();
        explain("link").says("leads to").says("[secret.env]");
        symlink("loop", p.workspace().join("loop")).unwrap();
        explain("loop");
        let json = run(p, &["policy", "explain", "--json", ".env"]).ok();
        let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(json["permission"], "none");
        assert_eq!(json["rules"]["decided"]["id"], "secret.env");
        // The remedy that is named works.
        let path = p.workspace().join(".env");
        p.shell(&["--allow-read", path.to_str().unwrap()], "cat .env").ok().says("hidden");
    });
}

#[test]
fn flags_for_hosts_that_nothing_would_hold_are_refused() {
    as_each_user(|p| {
        for (args, says) in [
            (&["--network", "none", "--allow-host", "npm"][..], "--network none reaches no host"),
            (&["--network", "host", "--deny-host", "npm"], "--network host is not filtered"),
            (&["-t", "permissive", "--deny-host", "npm"], "add --network filtered"),
            (&["--network", "host", "--upstream-proxy", "http://p.example"], "is not filtered"),
            (
                &["--allow-host", "npn"],
                "--allow-host: npn: unknown group `npn`, did you mean `npm`?",
            ),
            (&["--upstream-proxy", "socks5://u:hunter2@p"], "is spoken to by http, not socks5"),
        ] {
            let ran = run(p, &[args, &["--", "true"]].concat()).failed_with(FAILED).says(says);
            assert!(!ran.err.contains("hunter2"), "{ran:?}");
        }
        p.write(
            "p.toml",
            "[network]\nupstream_proxy = \"http://u:hunter2@p.example\"\nallow = [\"npm\"]\n",
        );
        for json in [&[][..], &["--json"]] {
            let ran = run(p, &[&["policy", "show", "-s", "p.toml"], json].concat()).ok();
            assert!(ran.out.contains("p.example:80") && !ran.out.contains("hunter2"), "{ran:?}");
        }
        let ran = run(p, &["policy", "explain", "-s", "p.toml", "registry.npmjs.org:443"]).ok();
        ran.says("registry.npmjs.org:443: allowed, allowed by `npm` (p.toml:3)");
        run(p, &["policy", "groups"]).ok().says("registry.npmjs.org");
        let json = run(p, &["policy", "groups", "--json"]).ok();
        let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        assert!(json["groups"].as_array().is_some_and(|groups| groups.len() > 10));
    });
}

#[test]
fn nothing_offers_to_lift_the_guard_of_the_policy_in_use() {
    as_each_user(|p| {
        p.write("p.toml", "");
        let ran = run(p, &["policy", "explain", "-s", "p.toml", "p.toml"]).ok();
        assert!(ran.out.contains("guard.ringfence") && !ran.out.contains("--lift"), "{ran:?}");
    });
}

#[test]
fn a_project_below_var_tmp_or_beside_the_one_here_works() {
    as_each_user(|p| {
        let below =
            tempfile::Builder::new().prefix("ringfence-e2e").tempdir_in("/var/tmp").unwrap();
        p.own(below.path());
        p.write(below.path().join(".env"), "hidden");
        let script = "echo made > new && echo x > /var/tmp/other && ! cat .env";
        let mut command = p.ringfence(["-c", script]);
        Ran::of(command.current_dir(below.path())).ok();
        assert!(below.path().join("new").exists());
        assert!(!Path::new("/var/tmp/other").exists(), "the rest of /var/tmp is private");
        // As in the help: relative to where it was typed, upward too.
        run(p, &["--allow-write", "../outside", "-c", "echo x > ../outside/made"]).ok();
        assert!(p.outside().join("made").exists());
    });
}

#[test]
fn lists_have_json() {
    let p = Place::new(User::Me);
    for args in [
        &["policy", "show", "--json"][..],
        &["policy", "profiles", "--json"],
        &["policy", "schema"],
        &["trust", "--list", "--json"],
        &["policy", "explain", "--json", "example.com"],
        &["policy", "explain", "--json", "/etc"],
    ] {
        let ran = run(&p, args).ok();
        serde_json::from_str::<serde_json::Value>(&ran.out)
            .unwrap_or_else(|e| panic!("{args:?}: {e}"));
    }
    let show = run(&p, &["policy", "show"]).ok();
    for text in [
        "layers, lowest first",
        "built-in workspace",
        "[secret.ssh]",
        "[guard.git]",
        "network",
        "limits",
    ] {
        assert!(show.out.contains(text), "{text}: {}", show.out);
    }
}

#[test]
fn three_hundred_more_rules_work() {
    as_each_user(|p| {
        p.write("last", "hidden");
        let rules: Vec<String> =
            (0..299).map(|i| format!("deny-{i}/file.txt")).chain(["last".into()]).collect();
        for name in rules.iter().take(150) {
            p.write(name, "hidden");
        }
        let mut command = p.ringfence(["run"]);
        for rule in &rules {
            command.args(["--deny-read", rule]);
        }
        let ran =
            Ran::of(command.args(["-c", "cat deny-0/file.txt deny-149/file.txt last; echo ran"]))
                .ok();
        assert_eq!(ran.out, "ran\n", "{ran:?}");
    });
}

/// Whole texts, so that a change of words shows up in review.
#[test]
fn error_texts_in_full() {
    let p = Place::new(User::Me);
    let root = p.root().display().to_string();
    let text = |args: &[&str]| run(&p, args).err.replace(&root, "[ROOT]");
    p.write("typo.toml", "[files]\nwirte = [\".\"]\n");
    p.write("fence.json", "{\n \"network\": {\"allowedDomains\": [\"example.com\"]},\n \"ssh\": {\"allowedHosts\": [\"x\"]}\n}");
    p.write("deep/ringfence.toml", "[files]\nwrite = [\"~\"]\n[network]\nmode = \"host\"\n");
    insta::assert_snapshot!("unknown_key", text(&["-s", "typo.toml", "--", "true"]));
    insta::assert_snapshot!("not_yet", text(&["-s", "fence.json", "--", "true"]));
    insta::assert_snapshot!("untrusted", text(&["-w", "deep", "--", "true"]));
    insta::assert_snapshot!("no_command", text(&["run"]));
    insta::assert_snapshot!("unknown_flag", text(&["--memroy", "1g", "--", "true"]));
}
