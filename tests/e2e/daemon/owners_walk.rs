//! Owners at the interfaces besides REST: every call of `ringfence.v1`, and those of other daemons' interfaces,
//! with what is another owner's.

use std::collections::BTreeSet;

use serde_json::json;

use super::attacks::free_port;
use super::clients::{ask, python};
use super::owners::Owner;
use super::world::{Answer, Daemon};
use crate::harness::{as_each_user, has};

const SCRIPT: &str = include_str!("owners.py");
const PROTO: &str = include_str!("../../../crates/daemon/proto/ringfence.proto");
const AGENTKERNEL: &str = include_str!("../../../crates/daemon/src/agentkernel/mod.rs");

#[test]
fn every_call_that_names_something() {
    as_each_user(|place| {
        let (fence, rest) = (free_port(), free_port());
        let [first, second] = [fence, rest].map(|port| format!("127.0.0.1:{port}"));
        let daemon = Daemon::with(place, &["--agentfense", &first, &second]);
        let (web, ci) = (Owner::new(&daemon, "web", &[]), Owner::new(&daemon, "ci", &[]));
        let made = place.home().join("made");
        std::fs::create_dir(&made).unwrap();
        std::fs::write(made.join("ringfence.proto"), PROTO).unwrap();
        place.own(&made);
        let made = made.to_str().unwrap().to_owned();
        let environment = [
            ("SOCKET", daemon.socket().to_str().unwrap().to_owned()),
            ("FENCE", fence.to_string()),
            ("WEB", web.token.clone()),
            ("CI", ci.token.clone()),
            ("PROTO", made.clone()),
            ("OUT", made),
        ];
        if let Some(ran) = python(place, SCRIPT, &environment) {
            assert_eq!(ran.ok().out, "all is well\n");
        }
    });
}

/// The paths of agentkernel's interface that name something, as its router has them.
fn paths() -> BTreeSet<&'static str> {
    let quoted = AGENTKERNEL.split('"').skip(1).step_by(2);
    let names = |text: &&str| ["{name}", "{uuid}"].iter().any(|part| text.contains(part));
    quoted.filter(|text| text.starts_with('/')).filter(names).collect()
}

/// agentkernel's interface knows no owners: what an owner with a token has is not there, by name or by id, whatever
/// token is shown.
#[test]
fn no_owner_is_there_for_agentkernel() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let port = free_port();
        let daemon = Daemon::with(place, &["--agentkernel", &format!("127.0.0.1:{port}")]);
        let web = Owner::new(&daemon, "web", &[]);
        let id = web.create(&json!({ "name": "web" }));
        let sleep = json!({ "argv": ["sleep", "1000"], "background": true });
        let exec = web.post(&format!("/v1/sandboxes/{id}/exec"), &sleep).is(202).json();
        let exec = exec["id"].as_str().unwrap();
        let absent = format!("sb_{}", "0".repeat(id.len() - 3));
        let no_exec = format!("ex_{}", "0".repeat(exec.len() - 3));
        let header = format!("Authorization: Bearer {}", web.token);
        let request = |method: &str, path: &str, token: bool| -> Answer {
            let body = json!({
                "command": ["true"], "content": "x", "files": { "/app/x": "x" }, "by": "1h", "duration": "1h",
                "sandbox": "web", "name": "of-web",
            })
            .to_string();
            let mut args = vec!["-m", "60", "-X", method];
            if token {
                args.extend(["-H", &header]);
            }
            if method != "GET" {
                args.extend(["-H", "Content-Type: application/json", "-d", &body]);
            }
            ask(place, port, &args, path)
        };
        let paths = paths();
        assert!(paths.len() > 15, "{paths:?}");
        let mut walked = 0;
        for path in paths {
            let of = |name: &str, id: &str, exec: &str| {
                path.replace("{name}", name)
                    .replace("{uuid}", id)
                    .replace("{command}", exec)
                    .replace("{*path}", "app/x")
            };
            for (theirs, nothing, token) in [
                (of("web", &id, exec), of("zzz", &absent, &no_exec), false),
                (of(&id, &id, exec), of(&absent, &absent, &no_exec), true),
            ] {
                for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
                    let [a, b] = [&theirs, &nothing].map(|path| request(method, path, token));
                    let said = |answer: &Answer| {
                        let ids = [id.as_str(), exec, &absent, &no_exec, "web", "zzz"];
                        let body = answer.body.clone();
                        let body = ids.iter().fold(body, |body, id| body.replace(id, "ID"));
                        (answer.status, body)
                    };
                    assert_eq!(said(&a), said(&b), "{method} {theirs}");
                    assert!(a.status >= 400, "{method} {theirs}: {a:?}");
                    walked += 1;
                }
            }
        }
        assert!(walked > 150, "{walked}");
        for list in ["/sandboxes", "/snapshots", "/audit", "/stats"] {
            let listed = request("GET", list, true);
            assert!(
                !listed.body.contains(&id) && !listed.body.contains(exec),
                "{list}: {listed:?}"
            );
        }
        // The control: its owner's it still is, and one that is made here is there.
        let sandbox = web.get(&format!("/v1/sandboxes/{id}")).is(200).json();
        assert_eq!(sandbox["state"], "running");
        let made = json!({ "name": "zzz" }).to_string();
        let args = ["-H", "Content-Type: application/json", "-d", &made];
        ask(place, port, &args, "/sandboxes").is(201);
        ask(place, port, &[], "/sandboxes/zzz").is(200);
    });
}
