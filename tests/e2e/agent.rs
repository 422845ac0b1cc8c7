//! The caller's ssh agent, filtered: chosen keys, sign only. Real agents, real clients, a real server.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{Place, Ran, User, as_each_user, binary, has};

/// Speaks to the agent byte by byte; prints the kind of its answer.
const RAW: &str = r#"
import base64, os, socket, struct, sys
def s(b): return struct.pack(">I", len(b)) + b
def whole(c, n):
    got = b""
    while len(got) < n:
        more = c.recv(n - len(got))
        if not more: sys.exit("closed")
        got += more
    return got
def ask(body):
    c = socket.socket(socket.AF_UNIX)
    c.connect(os.environ["SSH_AUTH_SOCK"])
    c.sendall(s(body))
    print(whole(c, struct.unpack(">I", whole(c, 4))[0])[0])
def sign(key, data): ask(b"\x0d" + s(key) + s(data) + b"\0\0\0\0")
what = sys.argv[1]
key = base64.b64decode(open(sys.argv[2]).read().split()[1])
if what == "data": sign(key, b"any data")
if what == "lock": ask(b"\x16" + s(b"x"))
if what == "login":
    sign(key, s(b"\1" * 32) + b"\x32" + s(b"git") + s(b"ssh-connection") + s(b"publickey") + b"\1"
         + s(b"ssh-ed25519") + s(key))
"#;

/// A process that ends with its case.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent that holds the keys `one` and `two`.
struct Agent<'a> {
    place: &'a Place,
    socket: PathBuf,
    _daemon: Daemon,
}

impl<'a> Agent<'a> {
    fn new(place: &'a Place) -> Self {
        let socket = place.outside().join("agent");
        let mut command = place.command("ssh-agent");
        command.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = Daemon(command.spawn().unwrap());
        wait_for(|| socket.exists(), "the agent's socket");
        let agent = Self { place, socket, _daemon: daemon };
        for (dir, name) in [("outside", "one"), ("outside", "two"), ("project", "three")] {
            let key = place.root().join(dir).join(name);
            keygen(&key);
            place.own(&key);
            place.own(&key.with_extension("pub"));
        }
        agent.bare("cp ../outside/*.pub . && ssh-add -q ../outside/one ../outside/two").ok();
        place.write("raw.py", RAW);
        agent
    }

    fn bare(&self, script: &str) -> Ran {
        let mut command = self.place.command("/bin/sh");
        Ran::of(command.args(["-c", script]).env("SSH_AUTH_SOCK", &self.socket))
    }

    fn inside(&self, flags: &[&str], script: &str) -> Ran {
        let mut args = vec!["run"];
        args.extend(flags);
        args.extend(["--", "/bin/sh", "-c", script]);
        Ran::of(self.place.ringfence(args).env("SSH_AUTH_SOCK", &self.socket))
    }

    fn fingerprint(&self, key: &str) -> String {
        fingerprint_of(&self.place.outside().join(key).with_extension("pub"))
    }
}

/// Made by whoever runs the tests: ssh-keygen refuses users that are not in /etc/passwd.
fn keygen(key: &Path) {
    let comment = key.file_name().unwrap();
    let mut command = Command::new("ssh-keygen");
    Ran::of(command.args(["-qt", "ed25519", "-N", "", "-C"]).arg(comment).arg("-f").arg(key)).ok();
}

fn fingerprint_of(file: &Path) -> String {
    let listed = Ran::of(Command::new("ssh-keygen").arg("-lf").arg(file)).ok().out;
    listed.split_whitespace().nth(1).unwrap().to_owned()
}

/// Whether ssh and ssh-keygen talk to this user at all.
fn is_known(agent: &Agent<'_>) -> bool {
    let known = agent.place.user == User::Me;
    if !known {
        println!("skipped for the ordinary user: ssh refuses one that is not in /etc/passwd");
    }
    known
}

fn wait_for(done: impl Fn() -> bool, what: &str) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn each_user(programs: &[&str], case: impl Fn(&Agent<'_>)) {
    // Before anything is forked: a descriptor on the copy that is being written would leak into it.
    binary();
    // Of whoever runs the tests, who makes the keys.
    if !Command::new("id").arg("-un").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: ssh-keygen refuses a user that is not in /etc/passwd");
        return;
    }
    if ["ssh-agent", "ssh-add", "ssh-keygen"].iter().chain(programs).all(|p| has(p)) {
        as_each_user(|place| case(&Agent::new(place)));
    }
}

#[test]
fn only_chosen_keys_are_listed() {
    each_user(&[], |agent| {
        let all = agent.bare("ssh-add -l").ok().out;
        assert!(all.contains(" one ") && all.contains(" two "), "{all}");
        let fingerprint = agent.fingerprint("one");
        let file = agent.place.outside().join("one.pub");
        for key in [fingerprint.as_str(), "one", file.to_str().unwrap(), "../outside/one.pub"] {
            let ran = agent.inside(&["--ssh-agent", key], "ssh-add -l").ok();
            assert!(ran.out.contains(&fingerprint) && !ran.out.contains(" two "), "{ran:#?}");
        }
        let ran = agent.inside(&["--ssh-agent", "*"], "ssh-add -l").ok();
        assert_eq!(ran.out, all);
        let ran = agent.inside(&["--ssh-agent=one", "--ssh-agent=two"], "ssh-add -l").ok();
        assert_eq!(ran.out, all);
        agent
            .inside(&["--ssh-agent", "one", "--status", "-"], "true")
            .ok()
            .says("\"ssh-agent\"")
            .says("1 key, sign only");
    });
}

#[test]
fn without_a_chosen_key_there_is_no_agent_and_it_is_said() {
    each_user(&[], |agent| {
        let look = "echo \"[$SSH_AUTH_SOCK]\"; ls -d /run/ringfence-agent";
        let without = |ran: Ran| {
            assert!(ran.out.starts_with("[]"), "{ran:#?}");
            ran.says("No such file")
        };
        without(agent.inside(&[], look));
        without(agent.inside(&["--ssh-agent", "nobody"], look))
            .says("does not hold `nobody`")
            .says("none of the chosen keys");
        // A file that a run could have exchanged for another key's names none.
        without(agent.inside(&["--ssh-agent", "two.pub"], look)).says("could exchange it");
        let mut bare = agent.place.ringfence(["--ssh-agent", "one", "--", "/bin/sh", "-c", look]);
        without(Ran::of(&mut bare)).says("SSH_AUTH_SOCK is not set");
        let mut gone = agent.place.ringfence(["--ssh-agent", "one", "--", "/bin/sh", "-c", look]);
        without(Ran::of(gone.env("SSH_AUTH_SOCK", agent.place.outside().join("nothing"))))
            .says("does not answer");
        for bad in ["", "SHA256:abc", "MD5:00:11"] {
            agent.inside(&["--ssh-agent", bad], "true").failed_with(125).says("ssh.agent");
        }
    });
}

#[test]
fn the_agent_cannot_be_changed_from_inside() {
    each_user(&["python3"], |agent| {
        let before = agent.bare("ssh-add -l").ok().out;
        let flags = ["-m", "--ssh-agent", "*"];
        for (attempt, reason) in [
            ("ssh-add -D", "keys cannot be removed"),
            ("ssh-add -d one.pub", "keys cannot be removed"),
            ("ssh-add three", "keys cannot be added"),
            ("ssh-add -t 10 three", "keys cannot be added"),
            ("test $(python3 raw.py lock one.pub) = 6", "cannot be locked"),
        ] {
            let ran = agent.inside(&flags, attempt);
            assert_ne!(ran.code, Some(0), "{attempt}: {ran:#?}");
            ran.says(reason);
            assert_eq!(agent.bare("ssh-add -l").ok().out, before, "{attempt}");
        }
        // The controls: outside the agent does all of it.
        assert_eq!(agent.bare("python3 raw.py lock one.pub").ok().out, "6\n");
        assert!(!agent.bare("ssh-add -l").out.contains("one"), "locked");
    });
    each_user(&[], |agent| {
        agent.bare("ssh-add -q three && ssh-add -q -d three.pub && ssh-add -q -D").ok();
        assert!(!agent.bare("ssh-add -l").out.contains("one"));
    });
}

#[test]
fn nothing_but_logins_with_chosen_keys_is_signed() {
    each_user(&["python3"], |agent| {
        let flags = ["-m", "--ssh-agent", "one"];
        // Controls: the agent itself signs anything with both.
        for key in ["one", "two"] {
            for what in ["data", "login"] {
                let asked = agent.bare(&format!("python3 raw.py {what} {key}.pub")).ok();
                assert_eq!(asked.out, "14\n", "{what} {key}");
            }
        }
        let inside = |what: &str| agent.inside(&flags, &format!("python3 raw.py {what}")).ok();
        let ran = inside("login one.pub");
        assert_eq!(ran.out, "14\n", "{ran:#?}");
        ran.says("signed a login as git").says(&agent.fingerprint("one"));
        for (what, reason) in [
            ("login two.pub", "not chosen"),
            ("data one.pub", "neither a login"),
            ("data two.pub", "neither a login"),
        ] {
            let ran = inside(what);
            assert_eq!(ran.out, "5\n", "{what}: {ran:#?}");
            ran.says(reason);
        }
    });
}

#[test]
fn signatures_of_a_namespace_need_the_policy() {
    each_user(&[], |agent| {
        if !is_known(agent) {
            return;
        }
        let sign = |namespace: &str| {
            format!(
                "echo text > text; rm -f text.sig; ssh-keygen -Y sign -n {namespace} -f one.pub text"
            )
        };
        agent.bare(&sign("git")).ok();
        let ran = agent.inside(&["--ssh-agent", "one"], &sign("git"));
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        let policy = agent.place.outside().join("policy.toml");
        let text = "extends = \"workspace\"\n[ssh]\nagent = [\"one\"]\nsign = [\"git\"]\n";
        agent.place.write(&policy, text);
        let flags = ["-m", "-s", policy.to_str().unwrap()];
        agent.inside(&flags, &sign("git")).ok().says("signed for the namespace git");
        agent.bare("ssh-keygen -Y check-novalidate -n git -s text.sig < text").ok().says("Good");
        let ran = agent.inside(&flags, &sign("file"));
        assert_ne!(ran.code, Some(0), "{ran:#?}");
        ran.says("ssh.sign does not list it");
    });
}

#[test]
fn a_project_policy_grants_no_key_until_it_is_trusted() {
    each_user(&[], |agent| {
        agent.place.write("ringfence.toml", "[ssh]\nagent = [\"one\"]\n");
        agent.inside(&[], "true").failed_with(126).says("ssh.agent = \"one\"").says("trust");
        Ran::of(&mut agent.place.ringfence(["trust"])).ok();
        agent.inside(&[], "ssh-add -l").ok().says(" one ");
        Ran::of(&mut agent.place.ringfence(["policy", "show"])).ok().says("ssh agent").says("one");
    });
}

#[test]
fn the_socket_ends_with_the_run_and_never_lies_on_the_host() {
    each_user(&[], |agent| {
        let list = |p: &Place| {
            let mut names: Vec<_> =
                [p.workspace(), p.home(), p.outside(), "/run".into(), "/".into()]
                    .iter()
                    .flat_map(|d| fs::read_dir(d).unwrap().map(|e| e.unwrap().path()))
                    .filter(|path| path.to_string_lossy().contains("agent"))
                    .collect();
            names.sort();
            names
        };
        let before = list(agent.place);
        let script = "ssh-add -l > listed; sleep 1000";
        let mut command = agent.place.ringfence(["--ssh-agent", "one", "--", "sh", "-c", script]);
        let mut run = command.env("SSH_AUTH_SOCK", &agent.socket).spawn().unwrap();
        let listed = agent.place.workspace().join("listed");
        let there = || fs::read_to_string(&listed).is_ok_and(|text| text.contains(" one "));
        wait_for(there, "the list of keys");
        assert_eq!(list(agent.place), before, "while it runs");
        run.kill().unwrap();
        run.wait().unwrap();
        assert_eq!(list(agent.place), before, "after its supervisor was killed");
        // It can be neither removed nor replaced inside.
        let ran = agent.inside(
            &["--ssh-agent", "one"],
            "rm -f $SSH_AUTH_SOCK; mv /run/ringfence-agent /run/x; ssh-add -l",
        );
        ran.ok().says(" one ");
        assert_eq!(list(agent.place), before, "after a run");
    });
}

#[test]
fn a_wide_grant_leaves_the_agent_reachable_or_is_refused() {
    each_user(&[], |agent| {
        let ran = agent.inside(&["--ssh-agent", "one", "--allow-read", "/run"], "ssh-add -l");
        ran.ok().says(" one ");
        assert!(!PathBuf::from("/run/ringfence-agent").exists());
        assert!(!PathBuf::from("/.ringfence-agent").exists());
    });
}

/// An ssh server on the loopback that lets in who holds `one`.
struct Server {
    port: u16,
    _daemon: Daemon,
}

fn server(agent: &Agent<'_>) -> Option<Server> {
    let place = agent.place;
    if !is_known(agent) {
        return None;
    }
    let dir = place.outside();
    keygen(&dir.join("host"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = fs::read_to_string(dir.join("host.pub")).unwrap();
    place.write("known", format!("[127.0.0.1]:{port} {host}"));
    fs::copy(dir.join("one.pub"), dir.join("authorized")).unwrap();
    let config = place.write(
        dir.join("sshd_config"),
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\n\
             StrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\n",
            dir.display()
        ),
    );
    // As root it wants a directory in /run: in a mount namespace of its own.
    let mut command = if crate::harness::is_root() {
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -e -f \"$0\"";
        command.args(["-m", "/bin/sh", "-c", script]).arg(&config);
        command
    } else {
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(&config);
        command
    };
    let log = fs::File::create(dir.join("sshd.log")).unwrap();
    let daemon =
        Daemon(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    let start = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            let why = fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
            println!("skipped: sshd does not start here: {why}");
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(Server { port, _daemon: daemon })
}

fn git_works_over_ssh(agent: &Agent<'_>, server: &Server) {
    if !has("git") {
        return;
    }
    let bare = agent.place.outside().join("bare.git");
    agent.bare(&format!("git init -q --bare -b main {}", bare.display())).ok();
    let script = format!(
        "set -e; export GIT_SSH_COMMAND='ssh -p {} -o UserKnownHostsFile='$PWD'/known \
         -o BatchMode=yes'; git clone -q $(id -un)@127.0.0.1:{} clone; cd clone; \
         git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m one; \
         git push -q origin HEAD:main; git fetch -q; git log --format=%s origin/main",
        server.port,
        bare.display()
    );
    agent.inside(&["--network", "host", "--ssh-agent", "one"], &script).ok().says("one");
    agent.bare(&format!("git -C {} log --format=%s main", bare.display())).ok().says("one");
}

#[test]
fn ssh_logs_in_with_the_chosen_key_only() {
    if !has("ssh") || !PathBuf::from("/usr/sbin/sshd").exists() {
        println!("skipped: no ssh client and server here");
        return;
    }
    each_user(&[], |agent| {
        let Some(server) = server(agent) else { return };
        let login = format!(
            "ssh -p {} -o UserKnownHostsFile=known -o GlobalKnownHostsFile=/dev/null \
             -o StrictHostKeyChecking=yes -o BatchMode=yes $(id -un)@127.0.0.1 echo logged in",
            server.port
        );
        let control = agent.bare(&login);
        if control.code != Some(0) {
            let why = fs::read_to_string(agent.place.outside().join("sshd.log"));
            println!("skipped: sshd lets nobody in here: {control:#?} {why:?}");
            return;
        }
        let log = agent.place.outside().join("log");
        let flags =
            ["--network", "host", "-m", "--log", log.to_str().unwrap(), "--ssh-agent", "one"];
        agent.inside(&flags, &login).ok().says("logged in").says("signed a login as");
        let log = fs::read_to_string(&log).unwrap();
        let event = log.lines().find(|l| l.contains("\"event\":\"ssh-agent\"")).unwrap();
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        let detail = &event["detail"];
        assert_eq!(detail["outcome"], "signed", "{event}");
        assert_eq!(detail["key"], agent.fingerprint("one").as_str(), "{event}");
        let host = fingerprint_of(&agent.place.outside().join("host.pub"));
        assert_eq!(detail["host_key"], host.as_str(), "{event}");
        git_works_over_ssh(agent, &server);
        // The other key, which this server does not know, and none.
        for flags in [&["--network", "host", "--ssh-agent", "two"][..], &["--network", "host"]] {
            let ran = agent.inside(flags, &login);
            assert_eq!(ran.code, Some(255), "{ran:#?}");
            ran.says("Permission denied");
        }
        // A key limited to this host works through the filter, since bindings are passed on.
        let limited = format!(
            "ssh-add -q -D; ssh-add -q -H known -h '[127.0.0.1]:{}' ../outside/one",
            server.port
        );
        if agent.bare(&limited).code == Some(0) {
            agent.inside(&["--network", "host", "--ssh-agent", "one"], &login).ok();
        } else {
            println!("skipped: this ssh-add cannot limit keys to hosts");
        }
    });
}
