//! Homes and workspaces that are not where they seem to be.

use std::os::unix::fs::symlink;

use crate::harness::{Ran, User, as_each_user, is_root};
use crate::residue::snapshot;

#[test]
fn a_workspace_reached_through_a_link_is_the_same_workspace() {
    as_each_user(|p| {
        let link = p.root().join("link");
        symlink(p.workspace(), &link).unwrap();
        let script = "echo in > made && pwd -P && cat made";
        let mut command = p.ringfence(["-c", script]);
        command.current_dir(&link).env("PWD", &link);
        let ran = Ran::of(&mut command).ok();
        assert_eq!(ran.out, format!("{}\nin\n", p.workspace().display()), "{ran:?}");
        assert!(p.workspace().join("made").exists());
        let given = link.to_str().unwrap();
        let ran = p.shell(&["-w", given], "echo again >> made; cat made").ok();
        assert_eq!(ran.out, "in\nagain\n", "{ran:?}");
        // A link on the way to the workspace, named by its path inside.
        p.shell(&["-w", given, "--deny-read", &format!("{given}/made")], "cat made").failed_with(1);
    });
}

#[test]
fn a_home_reached_through_a_link_is_guarded_as_home() {
    as_each_user(|p| {
        let link = p.root().join("homelink");
        symlink(p.home(), &link).unwrap();
        p.write(p.home().join(".ssh/id_ed25519"), "secret");
        p.write(p.home().join("notes.txt"), "private");
        let tool = p.write(p.home().join(".local/bin/mytool"), "#!/bin/sh\necho tool ran\n");
        Ran::of(p.command("chmod").arg("755").arg(&tool)).ok();
        let before = snapshot::of(&p.home());
        let script = "cat ~/.ssh/id_ed25519; cat ~/notes.txt; cat $REAL/notes.txt $REAL/.ssh/id_ed25519; \
             echo x > ~/new && cat ~/new; echo x > ~/.bashrc; ~/.local/bin/mytool; mytool";
        let path = format!("{}/.local/bin:/usr/bin:/bin", link.display());
        let mut command = p.ringfence(["-e", "REAL", "-c", script]);
        command.env("HOME", &link).env("REAL", p.home()).env("PATH", path);
        let ran = Ran::of(&mut command).ok();
        assert_eq!(ran.out, "x\ntool ran\ntool ran\n", "{ran:?}");
        assert_eq!(ran.err.matches("No such file").count(), 4, "hidden, not refused: {ran:?}");
        snapshot::assert_same(&before, &snapshot::of(&p.home()), "home");
    });
}

#[test]
fn links_in_home_that_lead_elsewhere_do_not_break_a_run() {
    as_each_user(|p| {
        symlink("/no/such/place", p.home().join(".gitconfig")).unwrap();
        symlink(p.outside(), p.home().join(".cargo")).unwrap();
        symlink(".loop", p.home().join(".loop")).unwrap();
        symlink(p.outside(), p.home().join(".aws")).unwrap();
        p.write(p.outside().join("credentials"), "secret");
        p.write("deep/.env", "S=1");
        symlink("deep/.env", p.workspace().join("alias")).unwrap();
        symlink("/etc/shadow", p.workspace().join("shadow.pem")).unwrap();
        symlink("nowhere", p.workspace().join("dangling.key")).unwrap();
        let ran = p.shell(&[], "cat ~/.aws/credentials alias shadow.pem; echo fine").ok();
        assert_eq!(ran.out, "fine\n", "{ran:?}");
    });
}

#[test]
fn a_workspace_below_tmp_is_shown_and_the_rest_of_tmp_is_not() {
    as_each_user(|p| {
        if !p.workspace().starts_with("/tmp") {
            println!("skipped: temporary files do not lie in /tmp here");
            return;
        }
        p.write("mine", "mine");
        p.write(p.outside().join("other"), "other");
        let ran = p.shell(&[], "cat mine; ls -A /tmp; cat ../outside/other; mktemp; rmdir .. 2>/dev/null; mv ../project ../away");
        let place = p.root().file_name().unwrap().to_str().unwrap();
        assert!(ran.out.starts_with(&format!("mine{place}\n/tmp/tmp.")), "{ran:?}");
        assert!(p.workspace().join("mine").exists());
    });
}

#[test]
fn a_workspace_on_another_mount_works() {
    as_each_user(|p| {
        let shm = std::path::Path::new("/dev/shm");
        let Ok(dir) = tempfile::Builder::new().prefix("ringfence-e2e").tempdir_in(shm) else {
            println!("skipped: /dev/shm cannot be written");
            return;
        };
        p.own(dir.path());
        let mut command = p.ringfence(["-c", "echo in > made && pwd && ls -A /dev/shm"]);
        let ran = Ran::of(command.current_dir(dir.path())).ok();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(ran.out, format!("{}\n{name}\n", dir.path().display()), "{ran:?}");
        assert_eq!(std::fs::read_to_string(dir.path().join("made")).unwrap(), "in\n");
        let meta = std::fs::metadata(dir.path().join("made")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), p.ids().0);
    });
}

/// What is mounted inside the workspace comes along and is held by the same rules.
#[test]
fn a_mount_inside_the_workspace_comes_along() {
    if !is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let p = crate::harness::Place::new(User::Me);
    p.write("below/.keep", "");
    let script = "set -e; mount -t tmpfs none below; echo in > below/file; echo s > below/.env
         \"$0\" -c 'cat below/file; echo more >> below/file; cat below/.env; true'; cat below/file";
    let ran = Ran::of(
        p.command("unshare").args(["-m", "sh", "-c", script]).arg(crate::harness::binary()),
    );
    if ran.err.contains("unshare") {
        println!("skipped: {}", ran.err);
        return;
    }
    assert_eq!(ran.ok().out, "in\nin\nmore\n");
}

#[test]
fn old_and_merged_system_directories_lead_to_the_same_programs() {
    as_each_user(|p| {
        let native = p.bare("readlink -f /bin/sh /sbin /lib; ls -ld /lib64 | cut -c1").ok();
        let inside = p.shell(&[], "readlink -f /bin/sh /sbin /lib; ls -ld /lib64 | cut -c1").ok();
        assert_eq!(inside.out, native.out);
        p.shell(&[], "/bin/echo a && /usr/bin/env echo b").ok();
    });
}
