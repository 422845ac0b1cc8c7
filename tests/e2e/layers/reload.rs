//! File rules that change while a sandbox runs: what decides at each operation takes them, what is
//! mounted refuses them as a whole.

use std::path::PathBuf;
use std::process::Command;

use super::fuse::with_device;
use crate::harness::{Place, Ran, Session, as_each_user, binary, has};

fn rule(pattern: &str, permission: &str) -> String {
    format!(
        "[[files.rules]]\npattern = \"{pattern}\"\npermission = \"{permission}\"\npriority = 10\n"
    )
}

/// Everything writable but what is said; beside the project, where the run cannot write.
fn policy(p: &Place, rules: &[(&str, &str)]) -> PathBuf {
    let rules: String = rules.iter().map(|(pattern, says)| rule(pattern, says)).collect();
    policy_text(p, &format!("extends = \"full-access\"\n{rules}"))
}

fn policy_text(p: &Place, text: &str) -> PathBuf {
    let file = p.outside().join("policy.toml");
    std::fs::write(&file, text).unwrap();
    p.own(&file);
    file
}

fn session(p: &Place, command: &mut Command) -> Session {
    Session::start(command).listening(|| {
        let mut sockets = p.command("cat");
        sockets.arg("/proc/net/unix");
        sockets
    })
}

fn reload(p: &Place, run: &Session) -> Ran {
    Ran::of(&mut p.ringfence(["policy", "reload", &run.pid()]))
}

fn project(p: &Place) {
    p.write("a.key", "KEY\n");
    p.write("sub/b.key", "KEY\n");
    p.write("plain", "plain\n");
    p.write("my.lock", "lock\n");
}

#[test]
fn an_exact_view_takes_new_rules_at_the_next_operation() {
    as_each_user(|p| {
        project(p);
        let file = policy(p, &[("**/*.secret", "none")]);
        let args = ["run", "--exact", "-s", file.to_str().unwrap(), "--", "/bin/sh"];
        let Some(mut command) = with_device(p, binary(), &args) else { return };
        let mut run = session(p, &mut command);
        assert_eq!(run.does("cat a.key sub/b.key"), "KEY\nKEY\n");
        run.does("exec 3<plain 4<a.key");

        // Lost: names that are there, names that come, what is open.
        policy(p, &[("**/*.key", "none"), ("/my.lock", "read")]);
        reload(p, &run).ok().says("file rules replaced");
        let gone = run.does("cat a.key sub/b.key; ls . sub; echo x > c.key");
        assert!(!gone.contains("KEY\n") && !gone.contains("b.key\n"), "{gone}");
        assert!(gone.contains("c.key: Permission denied"), "{gone}");
        let open = run.does("cat <&4");
        assert!(!open.contains("KEY") && open.starts_with("cat: "), "{open}");
        assert_eq!(run.does("cat <&3"), "plain\n", "what is open and allowed stays open");
        assert!(run.does("echo x >> my.lock").contains("Permission denied"));
        // Told that nothing has changed; nothing does.
        reload(p, &run).ok().says("nothing that can change has changed");

        // Gained.
        policy(p, &[("/my.lock", "write")]);
        reload(p, &run).ok().says("file rules replaced");
        assert_eq!(
            run.does("cat a.key sub/b.key; echo x >> my.lock; cat my.lock"),
            "KEY\nKEY\nlock\nx\n"
        );

        // What no view decides is refused as a whole, by name: also what could have been had.
        let outside = p.outside();
        policy_text(
            p,
            &format!(
                "extends = \"full-access\"\n[files]\nread = [\"{}\"]\n{}",
                outside.display(),
                rule("**/*.key", "none")
            ),
        );
        let ran = reload(p, &run).failed_with(126).says("its rules stay");
        let ran = ran.says("need a new start").says(outside.to_str().unwrap());
        assert!(!ran.out.contains("replaced"), "{ran:#?}");
        assert_eq!(run.does("cat a.key"), "KEY\n");
    });
}

#[test]
fn in_a_layer_names_are_decided_by_new_rules_and_covers_stay() {
    as_each_user(|p| {
        project(p);
        let start = [("**/*.secret", "none"), ("**/*.lock", "read")];
        let file = policy(p, &start);
        let settings = file.to_str().unwrap();
        let mut command = p.ringfence(["run", "--layer", "l", "-s", settings, "--", "/bin/sh"]);
        let mut run = session(p, &mut command);
        assert!(run.does("echo x >> my.lock").contains("Permission denied"));
        assert!(run.does("echo x > new.secret").contains("Permission denied"));
        assert_eq!(run.does("echo x > sub/new; cat sub/new"), "x\n");

        // What init decides: opens for writing, new names.
        policy(p, &[("**/*.secret", "none"), ("**/*.lock", "write"), ("/sub/**", "read")]);
        reload(p, &run).ok().says("file rules replaced");
        assert_eq!(run.does("echo x >> my.lock; cat my.lock"), "lock\nx\n");
        assert!(run.does("echo x > sub/new").contains("Permission denied"));
        assert!(run.does("mv plain sub/").contains("Permission denied"));
        assert!(run.does("echo x > new.secret").contains("Permission denied"));
        policy(p, &start);
        reload(p, &run).ok();
        assert_eq!(run.does("echo y > sub/new; cat sub/new"), "y\n");
        assert!(run.does("echo x >> my.lock").contains("Permission denied"));

        // What a mask holds: nothing that is there is hidden or comes to light, and then nothing of
        // the new rules holds. Neither the host's nor what the run itself made.
        for (pattern, named) in [("**/*.key", "a.key"), ("/sub/new", "sub/new")] {
            policy(p, &[("**/*.lock", "write"), ("**/*.secret", "none"), (pattern, "none")]);
            reload(p, &run).failed_with(126).says("need a new start").says(named);
            assert!(run.does("echo x >> my.lock").contains("Permission denied"), "{pattern}");
            assert_eq!(run.does("cat a.key sub/new"), "KEY\ny\n");
        }
        // Mounts.
        let outside = p.outside().display().to_string();
        policy_text(p, &format!("extends = \"full-access\"\n[files]\nread = [\"{outside}\"]\n"));
        reload(p, &run).failed_with(126).says("need a new start");
        assert!(run.does("echo x >> my.lock").contains("Permission denied"));
        drop(run);
        // The control: a new start has them.
        policy(p, &[("**/*.key", "none")]);
        let ran = p.shell(&["--layer", "l", "-s", settings], "cat a.key; ls");
        assert!(!ran.out.contains("key"), "{ran:#?}");
    });
}

#[test]
fn rules_change_under_a_writer_without_a_gap() {
    as_each_user(|p| {
        project(p);
        let file = policy(p, &[("**/*.lock", "read")]);
        std::fs::create_dir(p.workspace().join("on")).unwrap();
        std::fs::create_dir(p.workspace().join("off")).unwrap();
        for directory in ["on", "off"] {
            p.own(&p.workspace().join(directory));
        }
        let settings = file.to_str().unwrap();
        let mut command = p.ringfence(["run", "--layer", "l", "-s", settings, "--", "/bin/sh"]);
        let mut run = session(p, &mut command);
        // Makes names as fast as it can, while rules come and go.
        run.does("(n=0; while [ ! -e on/stop ] && [ $n -lt 100000 ]; do n=$((n+1)); : > on/f$((n%50)); done) 2>>on/log &");
        for round in 0..6 {
            let closed = round % 2 == 0;
            let pattern = if closed { "/on/f*" } else { "/off/f*" };
            policy(p, &[(pattern, "read")]);
            reload(p, &run).ok().says("file rules replaced");
            let ran = run.does("echo x > on/f1 && echo made");
            assert_eq!(ran.contains("made"), !closed, "round {round}: {ran}");
        }
        run.does("echo > on/stop; wait");
    });
}

#[test]
fn a_run_of_mounts_alone_has_nothing_that_can_change() {
    as_each_user(|p| {
        project(p);
        let file = policy_text(p, "extends = \"workspace\"\n");
        let settings = file.to_str().unwrap();
        let mut run = Session::start(&mut p.ringfence(["run", "-s", settings, "--", "/bin/sh"]));
        reload(p, &run).failed_with(125).says("no run");
        assert_eq!(run.does("cat plain"), "plain\n");
    });
}

#[test]
fn from_inside_a_sandbox_no_run_without_a_filter_is_reloaded_either() {
    if !has("python3") {
        return;
    }
    as_each_user(|p| {
        project(p);
        let file = policy(p, &[("**/*.lock", "read")]);
        let settings = file.to_str().unwrap();
        let log = p.outside().join("log");
        let flags = ["run", "--layer", "l", "-s", settings, "--log", log.to_str().unwrap()];
        let mut command = p.ringfence(flags.iter().chain(&["--", "/bin/sh"]));
        let run = session(p, &mut command);
        let knock = run.knock(p);
        for network in ["host", "none"] {
            let ran = p.shell(&["--network", network], &knock);
            assert!(!ran.out.contains("\"reloaded\":true"), "{network}: {ran:#?}");
        }
        let heard = || std::fs::read_to_string(&log).unwrap().contains("\"event\":\"reload\"");
        assert!(!heard());
        // The control: whoever began it may.
        let ran = p.bare(&knock).ok();
        assert!(ran.out.contains("\"reloaded\":true") && heard(), "{ran:#?}");
    });
}
