//! The layer of a sandbox over the interface, and hosts that a sandbox may reach.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::world::{Daemon, until};
use crate::harness::{as_each_user, has};

fn changes(daemon: &Daemon<'_>, sandbox: &str) -> Vec<(String, String)> {
    let diff = daemon.get(&format!("/v1/sandboxes/{sandbox}/layer/diff")).is(200).json();
    let one = |c: &Value| {
        (c["status"].as_str().unwrap().to_owned(), c["relative"].as_str().unwrap().to_owned())
    };
    diff["changes"].as_array().unwrap().iter().map(one).collect()
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

/// Compared while it runs; kept, taken back, forked and brought to the real files when it is stopped. What
/// the policy guards is not applied.
#[test]
fn what_a_sandbox_changed_is_compared_kept_and_applied() {
    if !has("curl") || !has("tar") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        place.bare("echo one > file; echo two > other; git init -q . 2>/dev/null || mkdir -p .git/hooks").ok();
        daemon.create(&["--name", "box", "--layer"]);
        daemon.shell("box", "echo changed > file; rm other; echo n > new").ok();
        let all = pairs(&[("M", "file"), ("A", "new"), ("D", "other")]);
        assert_eq!(changes(&daemon, "box"), all);
        let at = "/v1/sandboxes/box/layer";
        let patch = daemon.get(&format!("{at}/patch?path=file")).is(200).body;
        assert!(patch.contains("-one") && patch.contains("+changed"), "{patch}");
        let post = |path: &str| daemon.curl(&["-X", "POST"], &format!("{at}/{path}"));
        let put = |path: &str| daemon.curl(&["-X", "PUT"], &format!("{at}/{path}"));
        // While it runs nothing is moved under it.
        assert_eq!(put("snapshots/early").is(409).reason(), "conflict");
        assert_eq!(daemon.post(&format!("{at}/apply"), &json!({})).is(409).reason(), "conflict");
        daemon.ringfence(&["stop", "box"]).ok();
        put("snapshots/first").is(204);
        post("checkpoint").is(204);
        daemon.ringfence(&["start", "box"]).ok();
        daemon.shell("box", "echo later > later; echo again > file").ok();
        daemon.ringfence(&["stop", "box"]).ok();
        let info = daemon.get(at).is(200).json();
        assert_eq!(info["snapshots"][0]["name"], "first", "{info}");
        daemon.post(&format!("{at}/fork"), &json!({ "layer": "other" })).is(204);
        daemon.post(&format!("{at}/undo"), &json!({ "steps": 1 })).is(204);
        assert_eq!(changes(&daemon, "box"), all);
        post("snapshots/first/restore").is(204);
        assert_eq!(post("snapshots/none/restore").is(403).reason(), "refused");
        let forked = daemon.ringfence(&["diff", "other", "--json"]).ok().out;
        assert!(forked.contains("later"), "{forked}");
        let archive = place.home().join("layer.tar");
        let archive = archive.display().to_string();
        daemon.curl(&["-o", &archive], &format!("{at}/archive")).is(200);
        place.bare(&format!("tar -tf {archive}")).ok().says("new");
        // A guarded name, which the sandbox may make in its layer.
        daemon.ringfence(&["start", "box"]).ok();
        daemon.shell("box", "mkdir -p .git/hooks && echo evil > .git/hooks/pre-commit; true").ok();
        daemon.ringfence(&["stop", "box"]).ok();
        let dry = daemon.post(&format!("{at}/apply"), &json!({ "dry_run": true })).is(200).json();
        assert!(!place.workspace().join("new").exists(), "{dry}");
        let done = daemon.post(&format!("{at}/apply"), &json!({ "paths": ["new"] })).is(200).json();
        assert_eq!(done["applied"][0]["status"], "A", "{done}");
        assert!(place.workspace().join("new").exists() && place.workspace().join("other").exists());
        let done = daemon.post(&format!("{at}/apply"), &json!({})).is(200).json();
        let hooks: Vec<&Value> = done["refused"].as_array().unwrap().iter().collect();
        let hook = |l: &&Value| l["path"].as_str().is_some_and(|p| p.contains(".git/hooks"));
        assert!(!place.workspace().join(".git/hooks/pre-commit").exists(), "{done}");
        assert!(hooks.iter().all(hook), "{done}");
        let text = std::fs::read_to_string(place.workspace().join("file")).unwrap();
        assert_eq!((text.as_str(), place.workspace().join("other").exists()), ("changed\n", false));
        daemon.post(&format!("{at}/discard"), &json!({})).is(204);
        for path in ["../../etc/passwd", "/etc/passwd"] {
            let asked = daemon.post(&format!("{at}/discard"), &json!({ "paths": [path] }));
            assert!((400..500).contains(&asked.status), "{asked:?}");
        }
        daemon.create(&["--name", "plain"]);
        let none = daemon.get("/v1/sandboxes/plain/layer/diff").is(409);
        assert_eq!(none.reason(), "conflict");
    });
}

/// Over a codebase nothing is applied, and the paths are those inside.
#[test]
fn a_layer_over_a_codebase_is_compared_and_exported() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        daemon.post("/v1/codebases", &json!({ "name": "app" })).is(201);
        let file = "/v1/codebases/app/files?path=a";
        daemon.curl(&["-X", "PUT", "--data-binary", "old"], file).is(200);
        daemon.ringfence(&["create", "--codebase", "app", "--name", "box"]).ok();
        daemon.shell("box", "echo new > a; echo b > b").ok();
        assert_eq!(changes(&daemon, "box"), pairs(&[("M", "a"), ("A", "b")]));
        let one = daemon.get("/v1/sandboxes/box/layer/diff?path=/workspace/b").is(200).json();
        assert_eq!(one["changes"].as_array().map(Vec::len), Some(1), "{one}");
        // Compared with what the codebase is by now.
        daemon
            .curl(&["-X", "PUT", "--data-binary", "b\n"], "/v1/codebases/app/files?path=b")
            .is(200);
        assert_eq!(changes(&daemon, "box")[0], ("M".into(), "a".into()));
        daemon.ringfence(&["stop", "box"]).ok();
        let at = "/v1/sandboxes/box/layer";
        assert_eq!(daemon.post(&format!("{at}/apply"), &json!({})).is(403).reason(), "refused");
        daemon.curl(&["-o", "/dev/null"], &format!("{at}/archive?zstd=true")).is(200);
    });
}

/// What a layer may hold ends the sandbox, not the daemon or a neighbour.
#[test]
fn a_sandbox_over_its_quota_ends_alone() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let made = |name: &str, quota: &str| {
            json!({ "name": name, "workspace": place.workspace(), "layer": true,
                    "policy": { "extends": ["workspace"], "layer": { "quota": quota } } })
        };
        daemon.post("/v1/sandboxes", &made("small", "8m")).is(201);
        daemon.post("/v1/sandboxes", &made("large", "1g")).is(201);
        daemon
            .shell("large", "head -c 30000000 /dev/zero > fill && echo filled")
            .ok()
            .says("filled");
        let _ = daemon.shell("small", "head -c 300000000 /dev/zero > fill; sleep 60");
        until("it ended", || daemon.sandbox("small")["state"] == "failed");
        assert_eq!(daemon.sandbox("small")["reason"], "disk quota");
        daemon.shell("large", "ls").ok().says("fill");
    });
}

/// A server on the host's loopback that says `word`.
fn serve(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                word.len()
            );
            let _ =
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(word.as_bytes()));
        }
    });
    port
}

/// Only what is listed, only through the filter, and nothing once whoever filters is gone.
#[test]
fn hosts_are_reached_through_the_filter_only() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let (listed, other) = (serve("listed"), serve("unlisted"));
        let made = |name: &str, allow: Value| {
            json!({ "name": name, "workspace": place.workspace(),
                    "policy": { "extends": ["workspace"], "network": { "allow": allow } } })
        };
        let first =
            daemon.post("/v1/sandboxes", &made("box", json!([format!("localhost:{listed}")])));
        if first.status != 201 && first.body.contains("namespace") {
            println!("skipped: {}", first.body);
            return;
        }
        first.is(201);
        daemon.post("/v1/sandboxes", &made("none", json!([]))).is(201);
        let ask = |sandbox: &str, port: u16| {
            daemon.shell(sandbox, &format!("curl -sS -m 20 http://localhost:{port}/"))
        };
        assert_eq!(ask("box", listed).ok().out, "listed");
        assert!(!ask("box", other).out.contains("unlisted"));
        assert!(!ask("none", listed).out.contains("listed"));
        let direct = format!("curl -sS -m 20 --noproxy '*' http://127.0.0.1:{other}/; true");
        assert!(!daemon.shell("box", &direct).ok().out.contains("unlisted"));
        // Whoever filters for it is killed: the sandbox ends with its network; the other goes on.
        let own = daemon.spawner_beside();
        let inside = own.below();
        own.kill();
        until("it is lost", || daemon.sandbox("box")["state"] == "failed");
        until("nothing of it is left", || inside.iter().all(|p| !p.is_there()));
        daemon.shell("none", "echo on").ok().says("on");
        daemon.ringfence(&["start", "box"]).ok();
        assert_eq!(ask("box", listed).ok().out, "listed");
    });
}
