//! Rules of a running sandbox change while it runs, for whoever may, and only as the files say that
//! were its policy from the start.

use std::process::Command;
use std::sync::{PoisonError, RwLock};

use serde_json::Value;

use super::probe::filtered_places;
use super::world::{World, token};
use crate::harness::{Place, Ran, Session, User, binary, has, is_root};

fn start(world: &World, p: &Place, flags: &[&str]) -> Session {
    let mut command = world.command(p, binary());
    command.arg("run").args(flags).args(["--", "/bin/sh"]);
    Session::start(&mut command).listening(|| {
        let mut sockets = world.command(p, "cat");
        sockets.arg("/proc/net/unix");
        sockets
    })
}

impl Session {
    /// Whether a host is reached, as both sides see it.
    #[track_caller]
    fn reaches(&mut self, world: &World, host: &str) -> bool {
        let word = token();
        let said = self.does(&format!(
            "curl -fsS -o /dev/null --max-time 10 http://{host}/{word} && printf yes || printf no"
        ));
        let reached = !world.reached(&word).is_empty();
        assert_eq!(said.ends_with("yes"), reached, "{host}: {said}");
        reached
    }
}

fn reload(world: &World, p: &Place, args: &[&str]) -> Ran {
    Ran::of(world.command(p, binary()).args(["policy", "reload"]).args(args))
}

/// Held to write by what has every run read its rules, and to read by cases that count on being the only
/// ones who ask theirs: all cases share one network, in which runs are found.
static EVERY_RUN: RwLock<()> = RwLock::new(());

const START: &str = "[network]\nallow = [\"good.example.com\"]\n";

#[test]
fn rules_change_while_a_sandbox_runs() {
    if !has("curl") {
        return;
    }
    for (world, p) in filtered_places() {
        let _alone = EVERY_RUN.read().unwrap_or_else(PoisonError::into_inner);
        let rules = p.write("../outside/rules.toml", START).display().to_string();
        let log = p.outside().join("log");
        let flags = ["--settings", &rules, "--log", log.to_str().unwrap()];
        let mut run = start(world, &p, &flags);
        let pid = run.pid();
        assert!(run.reaches(world, "good.example.com"));
        assert!(!run.reaches(world, "some.wild.example.com"));
        run.does(
            "python3 -c \"
import socket
s = socket.create_connection(('good.example.com', 6379), 10)
s.sendall(b':held for long'); s.recv(100); open('open', 'w')
try:
    print('end', s.recv(1))
except OSError as e:
    print('end', e)
\" >closed 2>&1 & for n in $(seq 200); do test -e open && break; sleep 0.05; done",
        );

        // Told that nothing has changed; nothing does.
        reload(world, &p, &[&pid]).ok().says("1 allowed, 0 denied; 0 connections closed");
        assert!(run.reaches(world, "good.example.com"));

        // A deny, a new host, and a chapter that has to wait.
        let more = "[network]\nallow = [\"good.example.com\", \"*.wild.example.com\"]\n\
                    deny = [\"good.example.com\"]\n[limits]\npids = 77\n";
        p.write(&rules, more);
        let ran = reload(world, &p, &[&pid]).ok();
        // What an earlier request used may not have been taken apart yet, and is closed too.
        let ran = ran.says("2 allowed, 1 denied; ").says(" closed").says("limits changed");
        assert!(!ran.out.contains("; 0 connections"), "{ran:#?}");
        assert!(ran.err.is_empty(), "{ran:#?}");
        assert!(run.does("wait; cat closed").starts_with("end "));
        assert!(!run.reaches(world, "good.example.com"));
        assert!(run.reaches(world, "some.wild.example.com"));

        // What is wrong changes nothing.
        for (wrong, said) in [
            ("[network]\nallow = [", "rules.toml"),
            ("[network]\nallow = [\"bad host\"]\n", "bad host"),
            ("[network]\nmode = \"host\"\n", "the host's network"),
            (
                "extends = \"./new.toml\"\n[network]\nallow = [\"good.example.com\"]\n",
                "not part of",
            ),
            (
                "[network]\nallow = [\"good.example.com\"]\n[files]\nread = [\"/var/lib\"]\n",
                "/var/lib",
            ),
        ] {
            p.write(&rules, wrong);
            p.write("../outside/new.toml", START);
            reload(world, &p, &[&pid]).failed_with(126).says("its rules stay").says(said);
            assert!(!run.reaches(world, "good.example.com"), "{wrong}");
            assert!(run.reaches(world, "some.wild.example.com"), "{wrong}");
        }
        std::fs::remove_file(&rules).unwrap();
        reload(world, &p, &[&pid]).failed_with(126).says("no such file");
        assert!(run.reaches(world, "some.wild.example.com"));

        // Nothing is allowed, and then what was at the start.
        p.write(&rules, "[network]\nmode = \"none\"\n");
        let ran = reload(world, &p, &["--json", &pid]).ok();
        let answer: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(answer["runs"][0]["reloaded"], true, "{ran:#?}");
        assert!(!run.reaches(world, "some.wild.example.com"));
        p.write(&rules, START);
        reload(world, &p, &[&pid]).ok();
        assert!(run.reaches(world, "good.example.com"));

        drop(run);
        let log = std::fs::read_to_string(log).unwrap();
        let events: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let reloads: Vec<_> = events.iter().filter(|e| e["event"] == "reload").collect();
        assert_eq!(reloads.len(), 10, "{reloads:#?}");
        assert!(reloads[1]["detail"]["closed"].as_u64() > Some(0), "{reloads:#?}");
        reload(world, &p, &[&pid]).failed_with(125).says("no run");
    }
}

#[test]
fn runs_are_found_and_only_their_user_is_heard() {
    for (world, p) in filtered_places() {
        let rules = p.write("../outside/rules.toml", START).display().to_string();
        let one = start(world, &p, &["--settings", &rules]);
        let two = start(world, &p, &["--settings", &rules]);
        let list = reload(world, &p, &[]).failed_with(125).says("--all");
        for run in [&one, &two] {
            let ours = |line: &&str| line.trim_start().starts_with(&run.pid());
            let line = list.out.lines().find(ours);
            assert!(line.is_some_and(|l| l.contains("--settings")), "{list:#?}");
        }
        let all = {
            let _all = EVERY_RUN.write().unwrap_or_else(PoisonError::into_inner);
            reload(world, &p, &["--all", "--json"])
        };
        let answer: Value = serde_json::from_str(&all.out).unwrap();
        for run in [&one, &two] {
            let of = |a: &&Value| a["pid"].as_u64() == run.pid().parse().ok();
            let answer = answer["runs"].as_array().unwrap().iter().find(of);
            assert!(answer.is_some_and(|a| a["reloaded"] == true), "{all:#?}");
        }
        if !is_root() {
            println!("skipped: another user, for want of one");
            continue;
        }
        let other = ["--reuid", "54322", "--regid", "54322", "--clear-groups", "--"];
        let me = Place::new(User::Me);
        let mut command = world.command(&me, "setpriv");
        command.args(other).arg(binary()).args(["policy", "reload", &one.pid()]);
        Ran::of(&mut command).failed_with(126).says("only user").says("not user 54322");
        // Root may everything.
        reload(world, &me, &[&one.pid()]).ok();
    }
}

/// A policy that the run could get at, once its guard is gone: the host renames another file over it,
/// as editors do when they save.
#[test]
fn a_run_cannot_have_its_own_policy_reloaded() {
    if !has("curl") {
        return;
    }
    for (world, p) in filtered_places() {
        let file = p.write("ringfence.toml", "[network]\ndeny = [\"good.example.com\"]\n");
        let hosts = ["--allow-host", "good.example.com", "--allow-host", "some.wild.example.com"];
        let mut run = start(world, &p, &hosts);
        assert!(!run.reaches(world, "good.example.com"), "a file that narrows applies untrusted");
        assert!(run.reaches(world, "some.wild.example.com"));
        let attack = "echo >ringfence.toml && printf written || printf held";
        assert!(run.does(attack).ends_with("held"), "guarded while nobody replaces it");

        // The host's user edits: not obeyed before it is trusted.
        let edited = p.write("edited", "# mine\n[network]\ndeny = [\"good.example.com\"]\n");
        std::fs::rename(&edited, &file).unwrap();
        reload(world, &p, &[&run.pid()]).failed_with(126).says("ringfence trust");
        let trust = |p: &Place| Ran::of(world.command(p, binary()).args(["trust"]).arg(&file)).ok();
        trust(&p);
        reload(world, &p, &[&run.pid()]).ok();
        assert!(!run.reaches(world, "good.example.com"));

        // Now the guard may be gone, and the run gets rid of the deny; nobody obeys.
        let wrote = run.does(attack).ends_with("written");
        println!("the run could write its policy after the rename: {wrote}");
        if wrote {
            reload(world, &p, &[&run.pid()]).failed_with(126).says("ringfence trust");
        }
        let _ = run.does("mv ringfence.toml gone; rm -f ringfence.toml gone");
        if !file.exists() {
            reload(world, &p, &[&run.pid()]).failed_with(126).says("no longer the policy");
        }
        assert!(!run.reaches(world, "good.example.com"));

        // A trusted file that allows, then an edit that is not.
        drop(run);
        p.write("ringfence.toml", START);
        trust(&p);
        let mut run = start(world, &p, &[]);
        p.write("ringfence.toml", "[network]\nallow = [\"some.wild.example.com\"]\n");
        reload(world, &p, &[&run.pid()]).failed_with(126).says("ringfence trust");
        assert!(run.reaches(world, "good.example.com"));
        assert!(!run.reaches(world, "some.wild.example.com"));
        trust(&p);
        reload(world, &p, &[&run.pid()]).ok();
        assert!(!run.reaches(world, "good.example.com"));
        assert!(run.reaches(world, "some.wild.example.com"));
        // A policy that appears beside it is another one.
        std::fs::remove_file(&file).unwrap();
        let _ = run.does("mkdir -p .ringfence; echo '[network]' >ringfence.toml");
        reload(world, &p, &[&run.pid()]).failed_with(126);
        assert!(run.reaches(world, "some.wild.example.com"));
    }
}

#[test]
fn from_inside_a_sandbox_no_run_is_reloaded() {
    for (world, p) in filtered_places() {
        let _alone = EVERY_RUN.read().unwrap_or_else(PoisonError::into_inner);
        let rules = p.write("../outside/rules.toml", START).display().to_string();
        let log = p.outside().join("log");
        let flags = ["--settings", &rules, "--log", log.to_str().unwrap()];
        let run = start(world, &p, &flags);
        let program = binary().display().to_string();
        let script = format!("{program} policy reload {}", run.pid());
        for network in ["host", "none"] {
            let flags = ["--network", network, "--allow-read", &program];
            let ran = world.fenced(&p, &flags, &script);
            assert!(matches!(ran.code, Some(125 | 126)), "{network}: {ran:#?}");
        }
        // Past the name as well, where nothing but the ear's own check is left.
        let knock = run.knock(&p);
        let ran = world.fenced(&p, &["--network", "host"], &knock);
        assert!(!ran.out.contains("\"reloaded\":true"), "{ran:#?}");
        // The ear's answer, where no other layer stands before it.
        if is_root() && p.user == User::Me {
            let mut command = Command::new("nsenter");
            command.args(["-t", &run.pid(), "--net", "--", "unshare", "--user"]);
            let ran = Ran::of(command.args(["/bin/sh", "-c", &knock]));
            assert!(ran.out.contains("not changed from inside"), "{ran:#?}");
        }
        let heard = || std::fs::read_to_string(&log).unwrap().contains("\"event\":\"reload\"");
        assert!(!heard(), "{}", std::fs::read_to_string(&log).unwrap());
        world.bare(&p, &knock).ok().says("\"reloaded\":true");
        assert!(heard());
    }
}
