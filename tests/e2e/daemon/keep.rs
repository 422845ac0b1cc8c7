//! `ringfence run --keep`: a run whose sandbox stays.

use super::world::{Daemon, until};
use crate::harness::as_each_user;

/// The id that is said at the end.
#[track_caller]
fn kept(said: &str) -> String {
    let id = said.lines().find_map(|line| line.split_once("kept: "));
    id.unwrap_or_else(|| panic!("{said}")).1.trim().to_owned()
}

#[test]
fn what_a_kept_run_made_stays_and_its_policy_with_it() {
    as_each_user(|place| {
        let mut daemon = Daemon::start(place);
        let script = "echo $A; echo in > file; echo t > /tmp/t; echo bad >&2; exit 7";
        let ran = daemon.ringfence(&[
            "run",
            "--keep",
            "--no-config",
            "-e",
            "A=b",
            "--pids",
            "64",
            "--",
            "/bin/sh",
            "-c",
            script,
        ]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(7), "b\n"), "{ran:?}");
        assert!(ran.err.contains("bad\n"), "{ran:?}");
        let id = kept(&ran.err);
        // Its files, its variables and its private ones are those of the run.
        assert_eq!(daemon.shell(&id, "cat file /tmp/t; echo $A").ok().out, "in\nt\nb\n");
        // It comes back with the daemon.
        let family = daemon.kill();
        until("all ended", || family.iter().all(|p| !p.is_there()));
        daemon.start_again();
        until("it is back", || daemon.sandbox(&id)["state"] == "idle");
        assert_eq!(daemon.shell(&id, "cat file; echo $A").ok().out, "in\nb\n");
        daemon.ringfence(&["remove", &id]).ok();

        // What the flags say holds for every command: the control is the run without them.
        place.write("secret.key", "KEY");
        let held =
            ["run", "-k", "-t", "workspace", "--deny-read", "**/*.key", "-c", "cat secret.key"];
        let ran = daemon.ringfence(&held);
        assert!(
            ran.code != Some(0) && ran.code != Some(125) && !ran.out.contains("KEY"),
            "{ran:?}"
        );
        let id = kept(&ran.err);
        assert!(!daemon.shell(&id, "cat secret.key; cat *.key").out.contains("KEY"));
        daemon.ringfence(&["remove", &id]).ok();
        let open = daemon.ringfence(&["run", "-k", "-t", "workspace", "-c", "cat secret.key"]);
        assert_eq!(open.ok().out, "KEY");
        daemon
            .ringfence(&[
                "remove",
                &kept(&daemon.ringfence(&["run", "-k", "-t", "workspace", "-c", "true"]).ok().err),
            ])
            .ok();
    });
}

#[test]
fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
    as_each_user(|place| {
        let without = place.ringfence(["run", "--keep", "--no-config", "--", "true"]);
        let mut without = without;
        super::world::environment(place, &mut without);
        crate::harness::Ran::of(&mut without).failed_with(125).says("daemon");
        let daemon = Daemon::start(place);
        for (flags, word) in [
            (&["--port", "3000"][..], "--port"),
            (&["--explain"], "--explain"),
            (&["--env", "HOME"], "--env HOME"),
            (&["--codebase", "app:/src"], "/workspace"),
        ] {
            let mut all = vec!["run", "--keep", "--no-config"];
            all.extend(flags);
            all.extend(["--", "true"]);
            daemon.ringfence(&all).failed_with(125).says(word);
        }
        // A project's policy is not left out in silence.
        place.write("ringfence.toml", "[files]\ndeny = [\"**/*.key\"]\n");
        place.write("secret.key", "KEY");
        let run = |more: &[&str]| {
            let mut all = vec!["run", "--keep"];
            all.extend(more);
            all.extend(["-c", "cat secret.key"]);
            daemon.ringfence(&all)
        };
        run(&[]).failed_with(125).says("ringfence.toml");
        let named = run(&["-s", "ringfence.toml"]);
        assert!(!named.out.contains("KEY") && named.err.contains("kept: "), "{named:?}");
        daemon.ringfence(&["remove", &kept(&named.err)]).ok();
        // A program that is not there: nothing ran, nothing is kept.
        let ran = daemon.ringfence(&["run", "--keep", "--no-config", "--", "nonesuch"]);
        ran.failed_with(125).says("not found");
        assert_eq!(daemon.ringfence(&["list"]).ok().out, "");
    });
}
