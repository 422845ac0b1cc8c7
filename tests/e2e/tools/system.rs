//! Shells, interpreters, servers and what looks at the system.

use crate::harness::{Place, as_each_user, has};

/// A script that must print exactly this inside, for each user; skipped without the program.
#[track_caller]
fn prints(program: &str, script: &str, expected: &str) {
    if !has(program) {
        return;
    }
    as_each_user(|p| {
        let ran = p.shell(&[], script).ok();
        assert_eq!(ran.out, expected, "{script}: {ran:?}");
    });
}

#[test]
fn here_documents_work_in_every_shell() {
    for shell in ["sh", "bash", "zsh", "dash"] {
        prints(
            shell,
            &format!(
                "{shell} -c 'cat <<X\nhello $((6 * 7))\nX\n' && {shell} -c 'cat <<Y | wc -c\n{}\nY\n'",
                "x".repeat(70_000)
            ),
            "hello 42\n70001\n",
        );
    }
}

#[test]
fn temporary_places_are_there_from_the_first_instruction() {
    as_each_user(|p| {
        let script = "set -e; for d in \"$TMPDIR\" /tmp /var/tmp /dev/shm; do test -d $d; \
             f=$(mktemp -p $d); echo x > $f; cat $f; done; test -z \"${TMPPREFIX-}${XDG_RUNTIME_DIR-}\"; \
             ls -A /dev/shm | wc -l; mktemp -d";
        // Whatever the caller's own variables say.
        let mut command = p.ringfence(["-c", script]);
        command
            .env("TMPDIR", "/no/such")
            .env("XDG_RUNTIME_DIR", "/run/user/none")
            .env("TMPPREFIX", "/no");
        let ran = crate::harness::Ran::of(&mut command).ok();
        assert!(ran.out.starts_with("x\nx\nx\nx\n1\n/tmp/"), "{ran:?}");
        // Private: nothing of it is on the host, nothing of the host's is inside.
        let mark = tempfile::Builder::new().prefix("ringfence-e2e-mark").tempfile().unwrap();
        let name = mark.path().file_name().unwrap().to_str().unwrap();
        p.shell(&[], &format!("test ! -e /tmp/{name} && echo in > /tmp/{name}")).ok();
        assert_eq!(std::fs::read_to_string(mark.path()).unwrap(), "");
        p.shell(
            &[],
            "head -c 40000000 /dev/zero > /tmp/big && head -c 40000000 /dev/zero > /dev/shm/big",
        )
        .ok();
    });
}

#[test]
fn what_looks_at_the_system_answers() {
    as_each_user(|p| {
        let (uid, gid) = p.ids();
        let ran =
            p.shell(&[], "id -u; id -g; hostname; nproc; test -n \"$(date)\" && echo dated").ok();
        let lines: Vec<_> = ran.out.lines().collect();
        assert_eq!(lines[..2], [uid.to_string(), gid.to_string()], "{ran:?}");
        let native = p.bare("hostname; nproc").ok();
        assert_eq!(lines[2..4].join("\n"), native.out.trim(), "{ran:?}");
        p.shell(&[], "df -P . /tmp /dev/shm && locale >/dev/null && getent passwd root")
            .ok()
            .says("root:");
        let who = p.bare("whoami");
        if who.code == Some(0) {
            p.shell(&[], "whoami").ok().says(who.out.trim());
        }
    });
}

#[test]
fn processes_see_themselves_and_nothing_else() {
    if !has("ps") || !has("top") {
        return;
    }
    as_each_user(|p| {
        // The shell's child is a shell until it has become sleep.
        let look = "sleep 5 & while ! ps -e -o pid,comm > /tmp/l || ! grep -q sleep /tmp/l; do :; done; cat /tmp/l; kill $!";
        let ran = p.shell(&[], look).ok();
        assert!(ran.out.contains("sleep") && ran.out.lines().count() < 8, "{ran:?}");
        p.shell(&[], "top -bn1 | head -20").ok().says("PID");
    });
}

#[test]
fn small_programs_work() {
    prints("perl", "perl -e 'print 6 * 7, qq(\\n)'", "42\n");
    prints(
        "sqlite3",
        "sqlite3 t.db 'create table t(x); insert into t values (42); select x from t'; sqlite3 t.db 'pragma integrity_check'",
        "42\nok\n",
    );
    prints(
        "vim",
        "echo hello > f; vim -es -u NONE -c '%s/hello/bye/' -c wq f; cat f; ls -A",
        "bye\nf\n",
    );
    prints("less", "echo paged > f; less f", "paged\n");
    prints(
        "openssl",
        "echo x | openssl dgst -sha256 | grep -c 73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac",
        "1\n",
    );
    prints("tar", "mkdir d; echo x > d/f; tar czf d.tgz d; rm -r d; tar xzf d.tgz; cat d/f", "x\n");
    prints("xargs", "seq 40 | xargs -P8 -n1 echo | sort -n | tail -1", "40\n");
    prints("rg", "echo needle > f; rg -l needle", "f\n");
}

#[test]
fn ssh_says_its_version() {
    if !has("ssh") {
        return;
    }
    as_each_user(|p| {
        // A user without a name cannot use ssh anywhere.
        if p.bare("ssh -V").code == Some(0) {
            p.shell(&[], "ssh -V").ok().says("OpenSSH");
        } else {
            println!("skipped: ssh refuses user {} on this host", p.ids().0);
        }
    });
}

#[test]
fn python_processes_share_memory_and_locks() {
    prints(
        "python3",
        "cat > m.py <<'X'\nimport multiprocessing as m\nfrom multiprocessing import shared_memory\n\
         def f(x): return x * x\nif __name__ == '__main__':\n with m.Pool(2) as p: print(p.map(f, [1, 2, 3]))\n \
         s = shared_memory.SharedMemory(create=True, size=1 << 20); s.buf[5] = 9; print(s.buf[5]); s.close(); s.unlink()\n\
         X\npython3 m.py; ls -A /dev/shm",
        "[1, 4, 9]\n9\n",
    );
}

#[test]
fn a_server_and_its_client_meet_on_the_loopback_inside() {
    prints(
        "node",
        "node -e \"const h=require('http');const s=h.createServer((q,r)=>r.end('hi\\n'));\
         s.listen(0,'localhost',()=>h.get({port:s.address().port},r=>r.pipe(process.stdout).on('unpipe',()=>s.close())))\"",
        "hi\n",
    );
    prints(
        "python3",
        "python3 -c \"
import socket
for family, address in ((socket.AF_INET, ('127.0.0.1', 0)), (socket.AF_INET6, ('::1', 0)), (socket.AF_UNIX, '/tmp/s'), (socket.AF_UNIX, 'here.sock'), (socket.AF_UNIX, '\\0abstract')):
    server = socket.socket(family); server.bind(address); server.listen()
    client = socket.socket(family); client.connect(server.getsockname()); client.sendall(b'x')
    print(server.accept()[0].recv(1))
\"",
        "b'x'\nb'x'\nb'x'\nb'x'\nb'x'\n",
    );
}

#[test]
fn terminals_can_be_made_inside() {
    prints(
        "script",
        "script -qec 'tty; stty size' /dev/null </dev/null | tr -d '\\r' | head -1",
        "/dev/pts/0\n",
    );
    if !has("tmux") {
        return;
    }
    as_each_user(|p| {
        let ran = p
            .shell(
                &[],
                "tmux -f /dev/null new-session -d -x 80 -y 20 sh || exit 1
                 tmux send-keys 'echo a$((6 * 7))b' Enter
                 for i in $(seq 100); do tmux capture-pane -p | grep -q a42b && break; sleep 0.1; done
                 tmux capture-pane -p; tmux display -p '#{window_width}x#{window_height}'; tmux kill-server",
            )
            .ok();
        assert!(ran.out.contains("a42b") && ran.out.contains("80x20"), "{ran:?}");
    });
}

/// The same tools without anything of the caller's environment but PATH and HOME.
#[test]
fn a_bare_environment_is_enough() {
    as_each_user(|p: &Place| {
        let mut command = p.ringfence(["-c", "echo $HOME; ls -d ~; echo $PWD"]);
        command.env_clear().env("HOME", p.home());
        let ran = crate::harness::Ran::of(&mut command).ok();
        let (home, here) = (p.home(), p.workspace());
        let expected = format!("{0}\n{0}\n{1}\n", home.display(), here.display());
        assert_eq!(ran.out, expected, "{ran:?}");
    });
}

/// Settings of a policy under which a program may make user namespaces.
fn nesting(p: &Place) -> String {
    let policy = p.write("nesting.toml", "[processes]\nnested_namespaces = true\n");
    policy.to_str().unwrap().to_owned()
}

#[test]
fn namespaces_can_be_nested_where_the_policy_says_so_and_hold_no_more() {
    if !has("unshare") {
        return;
    }
    as_each_user(|p| {
        let policy = nesting(p);
        let make = "unshare --user --map-user=77 --map-group=77";
        p.shell(&[], &format!("! {make} true")).ok();
        if p.ids().0 == 0 {
            // The kernel lets only those map a root who had a right that nobody has inside.
            p.shell(&["-s", &policy], &format!("! {make} true")).ok();
        } else {
            p.shell(&["-s", &policy], &format!("test $({make} id -u) = 77")).ok();
        }
        // As somebody with every right inside his own, where he can be made; else without.
        let inside =
            "for f in /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sysrq-trigger \
              /proc/sys/user/max_user_namespaces /proc/irq/default_smp_affinity; do
              test ! -e $f || ! (echo 1 > $f) 2>/dev/null || echo wrote $f
            done
            ! umount /proc/sys 2>/dev/null || echo took away
            ! mount -o remount,rw /proc/sys 2>/dev/null || echo opened
            ! mount -t tmpfs more /tmp 2>/dev/null || echo mounted";
        let ran = p
            .shell(
                &["-s", &policy],
                &format!(
                    "unshare --user --map-root-user --mount sh -c '{inside}' || {{ {inside}; }}"
                ),
            )
            .ok();
        assert_eq!(ran.out, "", "{ran:?}");
    });
}

#[test]
fn a_browser_keeps_its_own_sandbox_inside() {
    if !has("chromium") {
        return;
    }
    as_each_user(|p| {
        if p.ids().0 == 0 {
            return println!("skipped: Chromium wants no sandbox of its own for root");
        }
        let policy = nesting(p);
        let page = "mkdir /tmp/profile; chromium --headless --disable-gpu --user-data-dir=/tmp/profile \
             --dump-dom 'data:text/html,<p>written by a page' 2>&1";
        p.shell(&["-s", &policy], page).ok().says("<p>written by a page</p>");
        let refused = p.shell(&[], page);
        assert!(refused.out.contains("No usable sandbox"), "{refused:?}");
    });
}
