//! Owners with tokens: two of them cannot see or touch what is the other's, nor what is the daemon's
//! user's, by id, by name or by path.

use std::process::Command;

use serde_json::{Value, json};

use super::events::audit;
use super::world::{Answer, Daemon, answer};
use crate::harness::{Place, Ran, as_each_user, has};

/// Somebody with a token.
pub struct Owner<'a> {
    daemon: &'a Daemon<'a>,
    pub token: String,
}

impl<'a> Owner<'a> {
    pub fn new(daemon: &'a Daemon<'a>, name: &str, limits: &[&str]) -> Self {
        let mut args = vec!["daemon", "token", "create", name];
        args.extend(limits);
        let token = daemon.ringfence(&args).ok().out.trim().to_owned();
        Self { daemon, token }
    }

    pub fn curl(&self, args: &[&str], path: &str) -> Answer {
        let header = format!("Authorization: Bearer {}", self.token);
        let mut all = vec!["-H", &header];
        all.extend(args);
        self.daemon.curl(&all, path)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.curl(&[], path)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.curl(&["-H", "Content-Type: application/json", "-d", &body], path)
    }

    pub fn ringfence(&self, args: &[&str]) -> Ran {
        Ran::of(self.daemon.command(args).env("RINGFENCE_TOKEN", &self.token))
    }

    #[track_caller]
    pub fn create(&self, made_of: &Value) -> String {
        let made = self.post("/v1/sandboxes", made_of).is(201).json();
        made["id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn shell(&self, sandbox: &str, script: &str) -> Value {
        self.post(&format!("/v1/sandboxes/{sandbox}/exec"), &json!({ "shell": script }))
            .is(200)
            .json()
    }
}

/// Everything that one owner has, to be put in the place of a parameter.
struct Things {
    sandbox: String,
    exec: String,
    session: String,
    codebase: String,
}

fn things(owner: &Owner<'_>, name: &str) -> Things {
    let codebase = owner.post("/v1/codebases", &json!({ "name": name })).is(201).json();
    let file = format!("/v1/codebases/{name}/files?path=secret-{name}");
    owner.curl(&["-X", "PUT", "-d", "secret"], &file).is(200);
    let sandbox =
        owner.create(&json!({ "name": name, "codebase": name, "labels": { "of": name } }));
    let path = format!("/v1/sandboxes/{sandbox}");
    let exec = owner
        .post(&format!("{path}/exec"), &json!({ "argv": ["sleep", "1000"], "background": true }))
        .is(202)
        .json();
    let session = owner.post(&format!("{path}/sessions"), &json!({})).is(201).json();
    owner.curl(&["-X", "PUT", "-d", "mine"], &format!("{path}/files?path=mine-{name}")).is(204);
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    Things { sandbox, exec: id(&exec), session: id(&session), codebase: id(&codebase) }
}

/// A body that the route takes.
fn body(id: &str, sandbox: &str) -> Option<Value> {
    Some(match id {
        "createSandbox" | "createSession" | "applyLayer" | "discardLayer" | "killExec"
        | "undoLayer" => json!({}),
        "extendSandbox" => json!({ "seconds": 1 }),
        "limitSandbox" => json!({ "pids": 5 }),
        "exec" | "execStream" => json!({ "argv": ["true"] }),
        "sessionExec" | "sessionExecStream" => json!({ "command": "true" }),
        "moveFile" => json!({ "from": "a", "to": "b" }),
        "forkLayer" => json!({ "layer": "fork" }),
        "createCodebase" => json!({ "name": "x" }),
        "batchCreate" => json!({ "items": [] }),
        "batchExec" => json!({ "items": [{ "sandbox": sandbox, "exec": { "argv": ["true"] } }] }),
        _ => return None,
    })
}

/// One request to every path and method of the document, with these in the place of its parameters.
/// `inner`: only where something in a sandbox is named.
fn walk(
    owner: &Owner<'_>,
    document: &Value,
    (of, inner): (&Things, bool),
) -> Vec<(String, Answer)> {
    let mut answers = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            let url = path
                .replace("{id}", &of.sandbox)
                .replace("{exec}", &of.exec)
                .replace("{session}", &of.session)
                .replace("{codebase}", &of.codebase)
                .replace("{snapshot}", "one");
            let names_something = path.contains('{') || id == "batchExec" || url.contains("batch");
            let is_inner = path.contains("{exec}") || path.contains("{session}");
            if !names_something || (inner && !is_inner) {
                continue;
            }
            let mut query = Vec::new();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["in"] == "query" && parameter["required"] == true {
                    let name = parameter["name"].as_str().unwrap();
                    let value = if name == "mode" { "644" } else { "mine" };
                    query.push(format!("{name}={value}"));
                }
            }
            let url = if query.is_empty() { url } else { format!("{url}?{}", query.join("&")) };
            let verb = method.to_uppercase();
            let mut args = vec!["-X", &verb, "-m", "60"];
            let text = body(id, &of.sandbox).map(|b| b.to_string());
            if let Some(text) = &text {
                args.extend(["-H", "Content-Type: application/json", "-d", text]);
            } else if operation.get("requestBody").is_some() {
                args.extend(["-d", "content"]);
            }
            if id == "attachTerminal" {
                args.extend(["-H", "Connection: Upgrade", "-H", "Upgrade: websocket"]);
                args.extend(["-H", "Sec-WebSocket-Version: 13"]);
                args.extend(["-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]);
            }
            answers.push((format!("{id} {method} {path}"), owner.curl(&args, &url)));
        }
    }
    answers
}

fn replaced(answer: &Answer, of: &Things) -> (u32, String) {
    let mut body = answer.body.clone();
    for id in [&of.sandbox, &of.exec, &of.session, &of.codebase] {
        body = body.replace(id, "ID");
    }
    (answer.status, body)
}

/// Every path of the document, with what is another owner's: as with what is not there.
#[test]
fn what_is_anothers_is_as_what_is_not_there() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let document = daemon.get("/v1/openapi.json").is(200).json();
        let (web, ci) = (Owner::new(&daemon, "web", &[]), Owner::new(&daemon, "ci", &[]));
        let of_web = things(&web, "web");
        let of_ci = things(&ci, "ci");
        let number = |id: &str| format!("{}_{}", id.split_once('_').unwrap().0, "0".repeat(32));
        let absent = Things {
            sandbox: number(&of_web.sandbox),
            exec: number(&of_web.exec),
            session: number(&of_web.session),
            codebase: format!("cb_{}", "0".repeat(of_web.codebase.len() - 3)),
        };
        let named = |things: &Things, name: &str| Things {
            sandbox: name.to_owned(),
            exec: things.exec.clone(),
            session: things.session.clone(),
            codebase: name.to_owned(),
        };
        // What is inside a sandbox of one's own too.
        let mixed = |things: &Things| Things {
            sandbox: of_ci.sandbox.clone(),
            exec: things.exec.clone(),
            session: things.session.clone(),
            codebase: things.codebase.clone(),
        };
        let user = Owner { daemon: &daemon, token: String::new() };
        assert_eq!(user.get("/v1/sandboxes").is(401).reason(), "unauthorized");
        let mut walked = 0;
        for (foreign, missing, inner) in [
            (&of_web, &absent, false),
            (&named(&of_web, "web"), &named(&absent, "nobody"), false),
            (&mixed(&of_web), &mixed(&absent), true),
        ] {
            let theirs = walk(&ci, &document, (foreign, inner));
            let nothing = walk(&ci, &document, (missing, inner));
            assert_eq!(theirs.len(), nothing.len());
            for ((what, theirs), (_, nothing)) in theirs.iter().zip(&nothing) {
                assert_eq!(
                    replaced(theirs, foreign).0,
                    replaced(nothing, missing).0,
                    "{what}: {theirs:?}"
                );
                let mut texts = [replaced(theirs, foreign).1, replaced(nothing, missing).1];
                for text in &mut texts {
                    *text = text.replace("nobody", "ID").replace("\"web\"", "\"ID\"");
                }
                assert_eq!(texts[0], texts[1], "{what}");
                let deletes = what.starts_with("deleteSandbox")
                    || what.starts_with("deleteCodebase")
                    || what.starts_with("deleteSession");
                let wanted: &[u32] = match what.as_str() {
                    _ if deletes => &[204, 404],
                    w if w.starts_with("batch") => &[200],
                    _ => &[404],
                };
                assert!(wanted.contains(&theirs.status), "{what}: {theirs:?}");
                walked += 1;
            }
        }
        assert!(walked > 80, "{walked}");
        // It is all still there, and its owner's.
        let path = format!("/v1/sandboxes/{}", of_web.sandbox);
        assert_ne!(web.get(&path).is(200).json()["state"], "failed");
        let exec = web.get(&format!("{path}/execs/{}", of_web.exec)).is(200).json();
        assert!(exec.get("ended").is_none());
        let session = web.get(&format!("{path}/sessions/{}", of_web.session)).is(200).json();
        assert_eq!(session["state"], "active");
        assert_eq!(web.get(&format!("{path}/files?path=mine-web")).is(200).body, "mine");
        web.get(&format!("/v1/codebases/{}", of_web.codebase)).is(200);
        // Lists, the record, the events: one's own only, for the daemon's user too.
        for (owner, own, other) in [(&web, "web", "ci"), (&ci, "ci", "web")] {
            for list in ["/v1/sandboxes", "/v1/codebases", "/v1/audit?limit=1000", "/v1/owner"] {
                let text = owner.get(list).is(200).body;
                let ids = if own == "web" { &of_ci } else { &of_web };
                for id in [&ids.sandbox, &ids.exec, &ids.session, &ids.codebase] {
                    assert!(!text.contains(id.as_str()), "{own} {list}: {text}");
                }
            }
            let seen: Value = owner.get("/v1/audit?limit=1000").json();
            for event in seen["events"].as_array().unwrap() {
                assert_eq!(event["owner"], own);
            }
            let foreign = owner.get(&format!("/v1/audit?owner={other}")).is(404);
            assert_eq!(foreign.body, owner.get("/v1/audit?owner=nobody").is(404).body);
            let one = if own == "web" { &of_ci.sandbox } else { &of_web.sandbox };
            let of_other = owner.get(&format!("/v1/audit?sandbox={one}")).is(200).json();
            assert_eq!(of_other, json!({ "events": [] }));
            let args = ["-m", "1", "-H", "Last-Event-ID: 0"];
            let events = events_of(owner, &args);
            assert!(events.contains(&format!("\"owner\":\"{own}\"")), "{events}");
            assert!(!events.contains(&format!("\"owner\":\"{other}\"")), "{events}");
        }
        let all = daemon.get("/v1/sandboxes").is(200).json();
        assert_eq!(all, json!({ "sandboxes": [] }));
        daemon.get(&path).is(404);
        let user = place.ids().0.to_string();
        assert!(audit(&daemon, &[]).iter().all(|e| e["owner"].as_str() == Some(&*user)));
        assert!(!audit(&daemon, &["--owner", "web"]).is_empty());
        // Names are each one's own, and so are idempotency keys.
        let key = ["-H", "Idempotency-Key: k", "-H", "Content-Type: application/json", "-d", "{}"];
        let of = |owner: &Owner<'_>| owner.curl(&key, "/v1/sandboxes").is(201).json()["id"].clone();
        let (first, second) = (of(&web), of(&ci));
        assert_ne!(first, second);
        assert_eq!(of(&web), first);
        ci.create(&json!({ "name": "web" }));
        daemon.create(&["--name", "web"]);
    });
}

/// Until curl gives up.
fn events_of(owner: &Owner<'_>, args: &[&str]) -> String {
    let header = format!("Authorization: Bearer {}", owner.token);
    let mut command = owner.daemon.place.command("curl");
    command.args(["-sS", "-N", "--unix-socket"]).arg(owner.daemon.socket()).args(args);
    command.args(["-H", &header]).arg("http://localhost/v1/events");
    Ran::of(&mut command).out
}

/// What is on the host is the daemon's user's: no name, path or policy leads there, from inside or outside.
#[test]
fn an_owner_at_the_files_of_the_daemons_user() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        place.write("secret.txt", "treasure");
        std::fs::write(place.home().join(".gitconfig"), "[user]\nname = treasure\n").unwrap();
        place.own(&place.home().join(".gitconfig"));
        let (web, ci) = (Owner::new(&daemon, "web", &[]), Owner::new(&daemon, "ci", &[]));
        let root = place.root().display().to_string();
        for made_of in [
            json!({ "workspace": place.workspace() }),
            json!({ "workspace": "/" }),
            json!({ "profiles": ["permissive"] }),
            json!({ "policy": { "files": { "read": [root] } } }),
            json!({ "policy": { "files": { "write": ["~"] } } }),
            json!({ "policy": { "network": { "mode": "host" } } }),
            json!({ "policy": { "network": { "allow": ["example.com"] } } }),
            json!({ "policy": { "environment": { "pass": ["*"] } } }),
            json!({ "policy": { "lift": ["guard"] } }),
        ] {
            assert_eq!(
                web.post("/v1/sandboxes", &made_of).is(403).reason(),
                "refused",
                "{made_of}"
            );
        }
        let directory = json!({ "name": "x", "directory": place.workspace() });
        assert_eq!(web.post("/v1/codebases", &directory).is(403).reason(), "refused");
        let path = format!("{}", place.workspace().display());
        web.ringfence(&["create", "-w", &path]).failed_with(125).says("workspace");
        // The control: the daemon's user may.
        daemon.create(&["--name", "own", "-w", &path]);
        assert_eq!(daemon.shell("own", "cat secret.txt").ok().out, "treasure");
        // From inside: all that the user owns, and all of another owner.
        let box_of_web = web.create(&json!({}));
        let box_of_ci = ci.create(&json!({}));
        web.curl(
            &["-X", "PUT", "-d", "treasure"],
            &format!("/v1/sandboxes/{box_of_web}/files?path=t"),
        )
        .is(204);
        ci.shell(&box_of_ci, &format!("ln -s {path}/secret.txt a; ln -s {root} b; ln -s / c"));
        let script = format!(
            "cat a b/project/secret.txt c{path}/secret.txt; grep -rs treasure {root} $HOME /tmp /proc/1/root{root}; \
             find / -name 'secret.txt' -o -name '{box_of_web}' -o -name 'owners.json' -o -name .gitconfig 2>/dev/null; env"
        );
        let ran = ci.shell(&box_of_ci, &script);
        let out = ran["stdout"]["data"].as_str().unwrap();
        assert!(!out.contains("treasure") && !out.contains("secret.txt\n"), "{out}");
        assert!(!out.contains(&box_of_web) && !out.contains("owners.json"), "{out}");
        assert!(!out.contains("gitconfig"), "{out}");
        // By the interface.
        let files = format!("/v1/sandboxes/{box_of_ci}/files");
        for at in [
            format!("{path}/secret.txt"),
            "a".into(),
            "b/project/secret.txt".into(),
            format!("c{path}/secret.txt"),
            "../../../home/state/daemon/owners.json".into(),
            format!("{root}/home/state/workspaces/{box_of_web}/t"),
            format!("../{box_of_web}/t"),
        ] {
            let read = ci.curl(&["-G", "--data-urlencode", &format!("path={at}")], &files);
            assert!(matches!(read.status, 403 | 404), "{at}: {read:?}");
            assert!(!read.body.contains("treasure"), "{at}");
        }
        // The control: its own.
        let own = web.get(&format!("/v1/sandboxes/{box_of_web}/files?path=t")).is(200);
        assert_eq!(own.body, "treasure");
        let places = place.home().join("state/workspaces").join(&box_of_web).join("t");
        assert_eq!(std::fs::read_to_string(places).unwrap(), "treasure");
    });
}

/// Tokens: shown once, kept as a hash, ended by revocation and rotation; and no way around one that is wrong.
#[test]
fn a_token_ends_and_a_wrong_one_is_nobodys() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let port = super::attacks::free_port();
        let daemon = Daemon::listening(place, &[format!("127.0.0.1:{port}")]);
        let web = Owner::new(&daemon, "web", &["--sandboxes", "7"]);
        daemon.ringfence(&["daemon", "token", "create", "web"]).failed_with(125).says("--rotate");
        let state = place.home().join("state/daemon");
        for file in std::fs::read_dir(&state).unwrap().flatten() {
            let bytes = std::fs::read(file.path()).unwrap_or_default();
            let token = web.token.trim_start_matches("rfo_").as_bytes();
            assert!(!bytes.windows(token.len()).any(|w| w == token), "{file:?}");
        }
        let meta = std::fs::metadata(state.join("owners.json")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777, 0o600);
        let id = web.create(&json!({ "name": "box" }));
        let over_tcp = |token: &str| {
            let mut command = Command::new("curl");
            command.args(["-H", &format!("Authorization: Bearer {token}")]);
            answer(command.arg(format!("http://127.0.0.1:{port}/v1/sandboxes/box")))
        };
        assert_eq!(over_tcp(&web.token).is(200).json()["id"], id.as_str());
        let changed = format!("{}0", &web.token[..web.token.len() - 1]);
        for wrong in
            ["", "rfo_", "web", &web.token[..20], &changed, &format!("{} ", &web.token[1..])]
        {
            if wrong != web.token {
                let other = Owner { daemon: &daemon, token: wrong.to_owned() };
                assert_eq!(other.get("/v1/sandboxes").is(401).reason(), "unauthorized", "{wrong}");
                over_tcp(wrong).is(401);
            }
        }
        // Two at once, or another scheme, are none.
        let twice = format!("Authorization: Bearer {}", web.token);
        daemon.curl(&["-H", &twice, "-H", &twice], "/v1/sandboxes").is(401);
        daemon.curl(&["-H", "Authorization: Basic eDp5"], "/v1/sandboxes").is(401);
        let again = daemon.ringfence(&["daemon", "token", "create", "web", "--rotate"]).ok().out;
        web.get("/v1/sandboxes").is(401);
        let newer = Owner { daemon: &daemon, token: again.trim().to_owned() };
        newer.get(&format!("/v1/sandboxes/{id}")).is(200);
        let shown = newer.ringfence(&["daemon", "token", "show", "--json"]).ok().out;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown["owner"], &shown["limits"]["sandboxes"]), (&json!("web"), &json!(7)));
        daemon.ringfence(&["daemon", "token", "revoke", "web"]).ok();
        newer.get("/v1/sandboxes").is(401);
        over_tcp(&newer.token).is(401);
        let listed = daemon.ringfence(&["daemon", "token", "list", "--json"]).ok().out;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!((&listed[0]["name"], &listed[0]["active"]), (&json!("web"), &json!(false)));
        assert!(listed[0].get("token").is_none());
        // Without any, it is still the daemon's user.
        daemon.get("/v1/sandboxes").is(200);
    });
}

/// What an owner may have: each limit is held, says what to do, and is told.
#[test]
fn an_owner_has_no_more_than_it_may() {
    if !has("curl") {
        return;
    }
    as_each_user(|place: &Place| {
        let daemon = Daemon::start(place);
        let limits = ["--sandboxes", "2", "--commands", "2", "--sessions", "1", "--disk", "64m"];
        let web = Owner::new(&daemon, "web", &limits);
        let of = |quota: &str| json!({ "layer": true, "policy": { "layer": { "quota": quota } } });
        let refused = web.post("/v1/sandboxes", &json!({})).is(400).json();
        assert!(refused["error"]["message"].as_str().unwrap().contains("quota"), "{refused}");
        let first = web.create(&of("40m"));
        assert_eq!(web.post("/v1/sandboxes", &of("40m")).is(429).reason(), "limit");
        let second = web.create(&of("20m"));
        let third = web.post("/v1/sandboxes", &of("1m")).is(429).json();
        assert!(third["error"]["remedy"].as_str().unwrap().contains("token limit"), "{third}");
        // Another owner, and the daemon's user, have what they had.
        let ci = Owner::new(&daemon, "ci", &[]);
        ci.create(&json!({}));
        daemon.create(&["--name", "own"]);
        let sleep = json!({ "argv": ["sleep", "1000"], "background": true });
        let exec = |id: &str| web.post(&format!("/v1/sandboxes/{id}/exec"), &sleep);
        let running = exec(&first).is(202).json();
        exec(&second).is(202);
        assert_eq!(exec(&first).is(429).reason(), "limit");
        let header = web.curl(
            &["-i", "-H", "Content-Type: application/json", "-d", &sleep.to_string()],
            &format!("/v1/sandboxes/{first}/exec"),
        );
        assert!(header.body.to_lowercase().contains("retry-after:"), "{header:?}");
        let kill = format!("/v1/sandboxes/{first}/execs/{}/kill", running["id"].as_str().unwrap());
        web.post(&kill, &json!({})).is(204);
        super::world::until("there is room again", || exec(&first).status == 202);
        let session = format!("/v1/sandboxes/{second}/sessions");
        let made = web.post(&session, &json!({})).is(201).json();
        assert_eq!(web.post(&session, &json!({})).is(429).reason(), "limit");
        let made = format!("{session}/{}", made["id"].as_str().unwrap());
        web.curl(&["-X", "DELETE"], &made).is(204);
        web.post(&session, &json!({})).is(201);
        let info = web.get("/v1/owner").is(200).json();
        assert_eq!(info["used"]["sandboxes"], 2);
        assert_eq!(info["used"]["disk"], 60 << 20);
        assert_eq!((&info["used"]["commands"], &info["used"]["sessions"]), (&json!(2), &json!(1)));
        // What is more is allowed at once.
        daemon.ringfence(&["daemon", "token", "limit", "web", "--sandboxes", "3"]).ok();
        web.create(&of("1m"));
        let refused = web.get("/v1/audit?kind=refused").is(200).json();
        let actions: Vec<&str> = refused["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["action"].as_str().unwrap_or("-"))
            .collect();
        assert!(actions.contains(&"create") && actions.contains(&"exec"), "{refused}");
    });
}
