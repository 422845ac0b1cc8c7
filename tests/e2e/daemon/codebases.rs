//! Codebases behind the daemon, and sandboxes made from them.

use serde_json::{Value, json};

use super::world::{Answer, Daemon};
use crate::harness::{Place, as_each_user, has};

/// An upload of bytes.
fn put(daemon: &Daemon<'_>, path: &str, bytes: &str) -> Answer {
    daemon.curl(&["-X", "PUT", "--data-binary", bytes], path)
}

fn delete(daemon: &Daemon<'_>, path: &str) -> Answer {
    daemon.curl(&["-X", "DELETE"], path)
}

fn listed(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let entries = json["entries"].as_array().unwrap();
    entries.iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect()
}

/// A codebase `app` with a few files, by the host's own directory.
fn app(place: &Place, daemon: &Daemon<'_>) -> Value {
    let from = place.root().join("from");
    std::fs::create_dir_all(from.join("src")).unwrap();
    std::fs::write(from.join("src/main.c"), "int main;\n").unwrap();
    std::fs::write(from.join(".env"), "TOKEN=hidden\n").unwrap();
    std::fs::write(from.join("README"), "read me\n").unwrap();
    let made = daemon.post("/v1/codebases", &json!({ "name": "app", "directory": from }));
    made.is(201).json()
}

#[test]
fn files_of_a_codebase_are_put_read_moved_and_removed() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let made = daemon.post("/v1/codebases", &json!({ "name": "c" })).is(201).json();
        assert_eq!(made["files"], 0, "{made}");
        let at = "/v1/codebases/c/files";
        let info = put(&daemon, &format!("{at}?path=a/b/one&mode=755"), "first").is(200).json();
        assert_eq!((&info["size"], &info["mode"]), (&json!(5), &json!(0o755)));
        put(&daemon, &format!("{at}?path=/workspace/two"), "second").is(200);
        assert_eq!(daemon.get(&format!("{at}?path=a/b/one")).is(200).body, "first");
        assert_eq!(daemon.get(&format!("{at}?path=two&offset=2&length=3")).is(200).body, "con");
        assert_eq!(listed(&daemon.get(&format!("{at}/list")).is(200)), ["a", "two"]);
        let all = listed(&daemon.get(&format!("{at}/list?recursive=true")).is(200));
        assert_eq!(all, ["a", "a/b", "a/b/one", "two"]);
        daemon.curl(&["-X", "POST"], &format!("{at}/directory?path=d/e")).is(204);
        daemon.curl(&["-X", "POST"], &format!("{at}/move?path=a/b/one&to=d/e/three")).is(204);
        assert_eq!(daemon.get(&format!("{at}/stat?path=d/e/three")).is(200).json()["size"], 5);
        assert_eq!(daemon.get(&format!("{at}?path=a/b/one")).is(404).reason(), "not-found");
        assert_eq!(delete(&daemon, &format!("{at}?path=d")).is(400).reason(), "invalid");
        delete(&daemon, &format!("{at}?path=d&recursive=true")).is(204);
        delete(&daemon, &format!("{at}?path=two")).is(204);
        let shown = daemon.get("/v1/codebases/c").is(200).json();
        assert_eq!((&shown["files"], &shown["entries"]), (&json!(0), &json!(2)), "{shown}");
        assert!(shown["version"].as_u64() > made["version"].as_u64());
        delete(&daemon, "/v1/codebases/c").is(204);
        delete(&daemon, "/v1/codebases/c").is(204);
        assert_eq!(daemon.get("/v1/codebases/c").is(404).reason(), "not-found");
        // It is the store of the command line.
        daemon.ringfence(&["codebase", "create", "other"]).ok();
        let listed = daemon.get("/v1/codebases").is(200).json();
        assert_eq!(listed["codebases"][0]["name"], "other", "{listed}");
    });
}

/// Names that lead out, through links of the codebase's own or as paths; nothing outside is read, made or
/// removed. The control is the same below a directory.
#[test]
fn no_path_leads_out_of_a_codebase() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let outside = place.root().join("beyond");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "of the host").unwrap();
        place.own(&outside);
        let from = place.root().join("from");
        std::fs::create_dir_all(from.join("plain")).unwrap();
        std::os::unix::fs::symlink(&outside, from.join("door")).unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), from.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../..", from.join("up")).unwrap();
        place.own(&from);
        let daemon = Daemon::start(place);
        daemon.post("/v1/codebases", &json!({ "name": "c", "directory": from })).is(201);
        let at = "/v1/codebases/c/files";
        for path in ["door/secret", "link", "up/etc/passwd", "../../codebases.db", "a/../../x"] {
            for answer in [
                daemon.get(&format!("{at}?path={path}")),
                put(&daemon, &format!("{at}?path={path}"), "overwritten"),
                daemon.curl(&["-X", "POST"], &format!("{at}/directory?path={path}/new")),
                daemon.curl(&["-X", "POST"], &format!("{at}/move?path=plain&to={path}/new")),
                put(&daemon, &format!("/v1/codebases/c/archive?path={path}"), ""),
            ] {
                assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
                assert!(!answer.body.contains("of the host"), "{path}: {answer:?}");
            }
        }
        for path in ["door/secret", "../x", "up/tmp"] {
            let answer = delete(&daemon, &format!("{at}?path={path}&recursive=true"));
            assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        }
        let text = std::fs::read_to_string(outside.join("secret")).unwrap();
        assert_eq!(text, "of the host");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        put(&daemon, &format!("{at}?path=plain/new"), "x").is(200);
        // The link itself may be removed; what it leads to stays.
        delete(&daemon, &format!("{at}?path=door&recursive=true")).is(204);
        assert!(outside.join("secret").exists());
        for name in ["..", "a/b", "", ".hidden", "%2e%2e", "-x"] {
            let made = daemon.post("/v1/codebases", &json!({ "name": name }));
            assert_eq!(made.is(400).reason(), "invalid", "{name}");
        }
    });
}

/// Archives: in, out, over what is there; hostile ones change nothing.
#[test]
fn archives_go_in_as_a_whole_or_not_at_all() {
    if !has("curl") || !has("tar") || !has("python3") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let script = "cd $HOME && mkdir -p t/d && echo one > t/d/one && echo two > t/two && tar -C t -cf t.tar . && \
            python3 - <<'E'\nimport tarfile,io\n\
            def a(name,*members):\n\
            \x20t=tarfile.open(name,'w')\n\
            \x20for m in members:\n\
            \x20\x20i=tarfile.TarInfo(m[0]); b=b'evil'\n\
            \x20\x20if len(m)>1: i.type=m[1]; i.linkname=m[2] if len(m)>2 else ''\n\
            \x20\x20else: i.size=len(b)\n\
            \x20\x20t.addfile(i,io.BytesIO(b) if i.size else None)\n\
            \x20t.close()\n\
            a('up.tar',('fine',),('../../../evil',))\n\
            a('absolute.tar',('fine',),('/tmp/../etc/evil',))\n\
            a('through.tar',('fine',),('l',tarfile.SYMTYPE,'/tmp'),('l/evil',))\n\
            a('hard.tar',('fine',),('h',tarfile.LNKTYPE,'/etc/passwd'))\n\
            a('device.tar',('fine',),('null',tarfile.CHRTYPE))\n\
            a('twice.tar',('fine',),('fine',))\n\
            a('directory.tar',('fine',),('two/below',))\n\
            E";
        place.bare(script).ok();
        let send = |file: &str, query: &str| {
            let file = format!("{}", place.home().join(file).display());
            daemon.curl(&["-T", &file], &format!("/v1/codebases/c/archive{query}"))
        };
        let made = send("t.tar", "?create=true").is(200).json();
        assert_eq!(made["files"], 2, "{made}");
        assert_eq!(send("t.tar", "?create=true").is(409).reason(), "conflict");
        for hostile in ["up", "absolute", "through", "hard", "device", "twice", "directory"] {
            let answer = send(&format!("{hostile}.tar"), "");
            assert!((400..500).contains(&answer.status), "{hostile}: {answer:?}");
        }
        let cut = "head -c 700 $HOME/t.tar > $HOME/cut.tar";
        place.bare(cut).ok();
        assert!((400..500).contains(&send("cut.tar", "").status));
        let list = || listed(&daemon.get("/v1/codebases/c/files/list?recursive=true").is(200));
        assert_eq!(list(), ["d", "d/one", "two"]);
        send("t.tar", "?path=deep/below").is(200);
        assert_eq!(
            list(),
            [
                "d",
                "d/one",
                "deep",
                "deep/below",
                "deep/below/d",
                "deep/below/d/one",
                "deep/below/two",
                "two"
            ]
        );
        let out = place.home().join("out.tar.zst");
        let out = out.display().to_string();
        daemon.curl(&["-o", &out], "/v1/codebases/c/archive?zstd=true").is(200);
        let again = send("out.tar.zst", "?path=again").is(200).json();
        assert_eq!(again["files"], 8, "{again}");
        // Nothing of what was refused stays in the store.
        let left = place.bare("find $HOME/state/codebases -name '.put-*' -o -name '.new-*'").ok();
        assert_eq!(left.out, "", "{left:?}");
    });
}

/// Two sandboxes on one codebase: each sees its own writes at once, over the interface too, and nothing of
/// the other's; the codebase stays as it is.
#[test]
fn sandboxes_on_one_codebase_are_apart() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        app(place, &daemon);
        for name in ["one", "two"] {
            let made = daemon
                .post("/v1/sandboxes", &json!({ "name": name, "codebase": "app" }))
                .is(201)
                .json();
            assert_eq!(made["workspace"], "/workspace", "{made}");
            assert_eq!(made["layer"], made["id"], "{made}");
        }
        daemon.shell("one", "echo mine > new; rm README; echo x >> src/main.c").ok();
        let read = |sandbox: &str, path: &str| {
            daemon.get(&format!("/v1/sandboxes/{sandbox}/files?path={path}"))
        };
        assert_eq!(read("one", "new").is(200).body, "mine\n");
        assert_eq!(read("one", "src/main.c").is(200).body, "int main;\nx\n");
        assert_eq!(read("one", "README").is(404).reason(), "not-found");
        assert_eq!(read("two", "new").is(404).reason(), "not-found");
        assert_eq!(read("two", "README").is(200).body, "read me\n");
        assert_eq!(read("two", "src/main.c").is(200).body, "int main;\n");
        let names = listed(&daemon.get("/v1/codebases/app/files/list").is(200));
        assert_eq!(names, [".env", "README", "src"]);
        // What is written over the interface is as what a command writes.
        put(&daemon, "/v1/sandboxes/two/files?path=/workspace/src/main.c", "two\n").is(204);
        assert_eq!(daemon.shell("two", "cat src/main.c").ok().out, "two\n");
        assert_eq!(daemon.shell("one", "cat src/main.c").ok().out, "int main;\nx\n");
        // A stop keeps it; a deletion takes it.
        daemon.ringfence(&["stop", "one"]).ok();
        daemon.ringfence(&["start", "one"]).ok();
        assert_eq!(daemon.shell("one", "cat new; ls").ok().out, "mine\nnew\nsrc\n");
        assert_eq!(delete(&daemon, "/v1/codebases/app").is(409).reason(), "conflict");
        daemon.ringfence(&["remove", "one", "two"]).ok();
        let layers = daemon.ringfence(&["layers", "--json"]).ok();
        assert!(!layers.out.contains("sb_"), "{layers:?}");
        delete(&daemon, "/v1/codebases/app").is(204);
    });
}

/// Uploads while a sandbox runs: it keeps what it was started on, and gets the new at its next start; one
/// that starts later has it at once.
#[test]
fn uploads_reach_sandboxes_at_their_next_start() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        app(place, &daemon);
        daemon.ringfence(&["create", "--codebase", "app", "--name", "early"]).ok();
        daemon.shell("early", "cat README; echo mine > mine").ok().says("read me");
        let at = "/v1/codebases/app/files";
        put(&daemon, &format!("{at}?path=README"), "newer\n").is(200);
        put(&daemon, &format!("{at}?path=added"), "added\n").is(200);
        delete(&daemon, &format!("{at}?path=src&recursive=true")).is(204);
        assert_eq!(daemon.get(&format!("{at}?path=README")).is(200).body, "newer\n");
        let seen = daemon.shell("early", "cat README src/main.c; ls").ok().out;
        assert_eq!(seen, "read me\nint main;\nREADME\nmine\nsrc\n");
        daemon.ringfence(&["create", "--codebase", "app", "--name", "late"]).ok();
        assert_eq!(daemon.shell("late", "cat README; ls").ok().out, "newer\nREADME\nadded\n");
        daemon.ringfence(&["stop", "early"]).ok();
        daemon.ringfence(&["start", "early"]).ok();
        assert_eq!(
            daemon.shell("early", "cat README; ls").ok().out,
            "newer\nREADME\nadded\nmine\n"
        );
        // Nobody runs on the former tree any more: the next change takes it away.
        put(&daemon, &format!("{at}?path=more"), "x").is(200);
        put(&daemon, &format!("{at}?path=more"), "y").is(200);
        daemon.ringfence(&["remove", "early", "late"]).ok();
        put(&daemon, &format!("{at}?path=more"), "z").is(200);
        let left = place.bare("find $HOME/state/codebases -maxdepth 2 -name '.was-*'").ok();
        assert_eq!(left.out, "", "{left:?}");
    });
}

/// A killed daemon: the layer of a persistent sandbox is there again, that of another is gone.
#[test]
fn a_killed_daemon_keeps_the_layers_of_what_stays() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let mut daemon = Daemon::start(place);
        app(place, &daemon);
        let flags = ["create", "--codebase", "app", "--name"];
        daemon.ringfence(&[&flags[..], &["stays", "--persistent"]].concat()).ok();
        daemon.ringfence(&[&flags[..], &["goes"]].concat()).ok();
        for name in ["stays", "goes"] {
            daemon.shell(name, "echo kept > kept").ok();
        }
        let family = daemon.kill();
        super::world::until("everything ended", || family.iter().all(|p| !p.is_there()));
        daemon.start_again();
        super::world::until("it runs again", || daemon.sandbox("stays")["state"] == "idle");
        assert_eq!(daemon.shell("stays", "cat kept").ok().out, "kept\n");
        let id = daemon.sandbox("stays")["id"].as_str().unwrap().to_owned();
        super::world::until("the other's layer is gone", || {
            let layers = daemon.ringfence(&["layers", "--json"]).ok().out;
            layers.matches("\"sb_").count() == 1 && layers.contains(&id)
        });
    });
}

/// A layer over a plain directory: the host's files stay.
#[test]
fn a_layer_over_a_workspace() {
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        std::fs::write(place.workspace().join("file"), "as it was\n").unwrap();
        place.own(&place.workspace().join("file"));
        daemon.create(&["--name", "own", "--layer"]);
        daemon.create(&["--name", "named", "--layer=work"]);
        daemon.shell("own", "echo own > file; echo n > new").ok();
        daemon.shell("named", "echo named > file").ok();
        let text = std::fs::read_to_string(place.workspace().join("file")).unwrap();
        assert_eq!(text, "as it was\n");
        assert!(!place.workspace().join("new").exists());
        // One at a time.
        daemon.ringfence(&["create", "--layer=work"]).failed_with(125).says("in use");
        daemon.ringfence(&["remove", "own", "named"]).ok();
        let layers = daemon.ringfence(&["layers", "--json"]).ok().out;
        assert!(layers.contains("work") && !layers.contains("sb_"), "{layers}");
        daemon.ringfence(&["diff", "work"]).ok().says("file");
    });
}

/// Made without being started: nothing runs, what is wrong is said, and its start is as any.
#[test]
fn a_sandbox_that_is_made_stopped() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        app(place, &daemon);
        let made_of = json!({ "name": "later", "codebase": "app", "stopped": true });
        let made = daemon.post("/v1/sandboxes", &made_of).is(201).json();
        assert_eq!((&made["state"], &made["reason"]), (&json!("stopped"), &json!("created")));
        daemon.shell("later", "true").failed_with(125).says("start it first");
        daemon.ringfence(&["start", "later"]).ok();
        assert_eq!(daemon.shell("later", "cat README").ok().out, "read me\n");
        for wrong in [
            json!({ "codebase": "app", "workspace": "/" }),
            json!({ "codebase": "app", "layer": false }),
            json!({ "codebase": "app", "layer": "sb_0123" }),
            json!({ "codebase": "app", "layer": "../x" }),
            json!({ "codebase": "app", "profiles": ["nonesuch"], "stopped": true }),
        ] {
            assert_eq!(daemon.post("/v1/sandboxes", &wrong).is(400).reason(), "invalid", "{wrong}");
        }
        let none = json!({ "codebase": "nonesuch", "stopped": true });
        assert_eq!(daemon.post("/v1/sandboxes", &none).is(404).reason(), "not-found");
        // A deletion of what never ran.
        daemon
            .post("/v1/sandboxes", &json!({ "name": "never", "codebase": "app", "stopped": true }));
        daemon.ringfence(&["remove", "never", "later"]).ok();
        // An upload that breaks off leaves nothing.
        let cut = place.bare(&format!(
            "(printf 'PUT /v1/codebases/app/files?path=cut HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 1000\\r\\n\\r\\nsome'; sleep 1) | timeout 5 python3 -c \"import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('{}'); s.sendall(sys.stdin.buffer.read()); s.close()\"",
            daemon.socket().display()
        ));
        if cut.code == Some(0) {
            super::world::until("its draft is gone", || {
                place.bare("find $HOME/state/codebases -name '.put-*'").ok().out.is_empty()
            });
            assert_eq!(daemon.get("/v1/codebases/app/files?path=cut").status, 404);
        }
    });
}

/// The store of layers and codebases, from inside, whatever the policy grants.
#[test]
fn a_command_inside_at_the_layers_of_others() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        app(place, &daemon);
        let made_of = |name: &str| {
            json!({
                "name": name, "codebase": "app",
                "policy": { "files": { "read": [place.home()] } },
            })
        };
        daemon.post("/v1/sandboxes", &made_of("victim")).is(201);
        daemon.shell("victim", "echo private-of-victim > private").ok();
        daemon.post("/v1/sandboxes", &made_of("attacker")).is(201);
        let state = place.home().join("state").display().to_string();
        let script = format!(
            "grep -rl private-of-victim {state} /workspace /proc/*/root/workspace; find {state} -name private; ls {state}/layers {state}/deltas {state}/codebases; echo x > {state}/codebases.db; mkdir {state}/layers/evil; true"
        );
        // The control: outside it is found.
        assert!(
            place
                .bare(&script.replace("echo x >", ": ").replace("mkdir", ":"))
                .out
                .contains("private")
        );
        let ran = daemon.shell("attacker", &script).ok();
        assert!(!ran.out.contains("private") && !ran.out.contains("sb_"), "{ran:?}");
        assert!(!place.home().join("state/layers/evil").exists());
        daemon.get("/v1/codebases/app").is(200);
    });
}
