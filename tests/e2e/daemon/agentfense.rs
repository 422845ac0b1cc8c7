//! AgentFense's own client at the daemon, its gateway, and who else comes to those doors.

use serde_json::json;

use super::attacks::free_port;
use super::clients::{self, ask, post};
use super::world::Daemon;
use crate::harness::{Place, User, as_each_user, has, is_root};

fn start(place: &Place) -> (Daemon<'_>, u16, u16) {
    let (grpc, rest) = (free_port(), free_port());
    let [first, second] = [grpc, rest].map(|port| format!("127.0.0.1:{port}"));
    (Daemon::with(place, &["--agentfense", &first, &second]), grpc, rest)
}

/// Whether rules of names can be held over a layer here: they are refused where they cannot.
fn has_rules(place: &Place) -> bool {
    let ran = place.shell(&["-t", "view-only", "--layer", "probe"], "true");
    if ran.code != Some(0) {
        println!("skipped: no rules of names here: {}", ran.err.trim());
    }
    ran.code == Some(0)
}

#[test]
fn the_client_as_it_is() {
    as_each_user(|place| {
        if !has_rules(place) {
            return;
        }
        let (_daemon, grpc, _) = start(place);
        let script = include_str!("agentfense.py");
        let Some(ran) = clients::python(place, script, &[("PORT", grpc.to_string())]) else {
            return;
        };
        assert_eq!(ran.ok().out, "all is well\n");
    });
}

#[test]
fn the_gateway() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        if !has_rules(place) {
            return;
        }
        let (_daemon, _, rest) = start(place);
        let made = json!({ "name": "c", "owner_id": "u" });
        let codebase = post(place, rest, "/v1/codebases", &made).is(200).json();
        assert_eq!((&codebase["name"], &codebase["ownerId"]), (&json!("c"), &json!("u")));
        assert_eq!(codebase["size"], "0");
        let id = codebase["id"].as_str().unwrap();
        let made = json!({
            "codebaseId": id,
            "permissions": [{ "pattern": "**/*", "permission": "PERMISSION_WRITE" }],
            "expiresIn": "3600s",
            "resources": { "pidsLimit": "100" },
        });
        let sandbox = post(place, rest, "/v1/sandboxes", &made).is(200).json();
        assert_eq!(sandbox["status"], "SANDBOX_STATUS_PENDING", "{sandbox}");
        assert_eq!(sandbox["permissions"][0]["type"], "PATTERN_TYPE_GLOB");
        assert_eq!(sandbox["resources"]["pidsLimit"], "100");
        let at = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
        let started = ask(place, rest, &["-X", "POST"], &format!("{at}/start")).is(200).json();
        assert_eq!(started["status"], "SANDBOX_STATUS_RUNNING");
        let run = json!({ "command": "echo x > new; cat new; exit 3", "timeout": "20s" });
        let ran = post(place, rest, &format!("{at}/exec"), &run).is(200).json();
        assert_eq!((&ran["stdout"], &ran["exitCode"]), (&json!("x\n"), &json!(3)), "{ran}");
        assert!(ran["duration"].as_str().unwrap().ends_with('s'), "{ran}");
        let slow = json!({ "command": "sleep 100", "timeout": "0.2s" });
        let slow = post(place, rest, &format!("{at}/exec"), &slow).is(504).json();
        assert_eq!(slow["code"], 4, "{slow}");
        let session = post(place, rest, &format!("{at}/sessions"), &json!({})).is(200).json();
        let shell = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
        let run = |command: &str| {
            let run = json!({ "command": command });
            post(place, rest, &format!("{shell}/exec"), &run).is(200).json()["stdout"].clone()
        };
        run("A=1");
        assert_eq!(run("echo $A"), "1");
        let all = ask(place, rest, &[], &format!("{at}/sessions")).is(200).json();
        assert_eq!(all["sessions"].as_array().unwrap().len(), 1);
        ask(place, rest, &["-X", "DELETE"], &shell).is(200);
        let files = ask(place, rest, &[], &format!("/v1/codebases/{id}/files")).is(200).json();
        assert_eq!(files["files"][0]["path"], "new", "{files}");
        let listed = ask(place, rest, &[], &format!("/v1/sandboxes?codebase_id={id}")).is(200);
        assert_eq!(listed.json()["sandboxes"].as_array().unwrap().len(), 1);
        // Corners of their gateway.
        let files =
            |query: &str| ask(place, rest, &[], &format!("/v1/codebases/{id}/files?{query}"));
        files("recursive=1&path=").is(200);
        for wrong in ["recursive=", "recursive=yes"] {
            assert_eq!(files(wrong).is(400).json()["code"], 3, "{wrong}");
        }
        assert_eq!(ask(place, rest, &["-X", "PUT"], &at).is(501).json()["code"], 12);
        let again = ask(place, rest, &["-X", "POST"], &format!("{at}/start")).is(400).json();
        assert_eq!(again["message"], "sandbox is already running");
        let null = json!({ "command": "echo x", "env": null, "timeout": null });
        assert_eq!(post(place, rest, &format!("{at}/exec"), &null).is(200).json()["stdout"], "x\n");
        let text = json!({ "codebaseId": id, "permissions": [{ "pattern": "**/*", "permission": 4, "priority": "10" }] });
        let text = post(place, rest, "/v1/sandboxes", &text).is(200).json();
        assert_eq!(text["permissions"][0]["priority"], 10);
        let second = format!("/v1/sandboxes/{}", text["id"].as_str().unwrap());
        ask(place, rest, &["-X", "DELETE"], &second).is(200);
        ask(place, rest, &["-X", "DELETE"], &at).is(200);
        assert_eq!(ask(place, rest, &[], &at).is(404).json()["code"], 5);
        ask(place, rest, &["-X", "DELETE"], &format!("/v1/codebases/{id}")).is(200);
        post(place, rest, "/v1/sandboxes", &json!({ "permissions": 1 })).is(400);
        post(place, rest, "/v1/sandboxes", &made).is(404);
    });
}

/// What the status of a call with an empty message is; 0 is that it was carried out.
fn call(place: &Place, port: u16, headers: &[&str]) -> Option<String> {
    let mut command = place.command("sh");
    let headers: Vec<String> = headers.iter().map(|h| format!("-H '{h}'")).collect();
    let headers = headers.join(" ");
    let script = format!(
        "printf '\\0\\0\\0\\0\\0' | curl -sS -o /dev/null -D - --http2-prior-knowledge --data-binary @- -H 'Content-Type: application/grpc' -H 'TE: trailers' {headers} http://127.0.0.1:{port}/sandbox.v1.SandboxService/ListSandboxes"
    );
    let ran = crate::harness::Ran::of(command.args(["-c", &script]));
    if ran.err.contains("unsupported") || ran.err.contains("does not support") {
        println!("skipped: curl here has no HTTP/2");
        return None;
    }
    let status = ran.out.lines().find_map(|line| line.strip_prefix("grpc-status: "));
    Some(status.unwrap_or_else(|| panic!("{ran:?}")).trim().to_owned())
}

/// A page in a browser, a name that was made to lead here, a form, another user, a command of a sandbox:
/// none gets anything at either door. The control is the same request without it.
#[test]
fn pages_names_forms_other_users_and_sandboxes() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let (daemon, grpc, rest) = start(place);
        for header in ["Origin: https://evil.example", "Origin: null", "Host: evil.example"] {
            for path in ["/v1/sandboxes", "/v1/codebases", "/nonexistent"] {
                let said = ask(place, rest, &["-H", header], path).is(403).json();
                assert_eq!(said["code"], 7, "{said}");
            }
            if let Some(status) = call(place, grpc, &[header]) {
                assert_eq!(status, "7", "{header}");
            }
        }
        ask(place, rest, &[], "/v1/sandboxes").is(200);
        if let Some(status) = call(place, grpc, &[]) {
            assert_eq!(status, "0");
        }
        let form = ["-H", "Content-Type: text/plain", "-d", r#"{"name":"c"}"#];
        ask(place, rest, &form, "/v1/codebases").is(400);
        if is_root() {
            let other = match place.user {
                User::Me => Place::new(User::Ordinary),
                User::Ordinary => Place::new(User::Me),
            };
            ask(&other, rest, &[], "/v1/sandboxes").is(403);
            if let Some(status) = call(&other, grpc, &[]) {
                assert_eq!(status, "7");
            }
        } else {
            println!("skipped: needs root, to be two users");
        }
        let script =
            format!("curl -sS -w '\\n%{{http_code}}' http://127.0.0.1:{rest}/v1/sandboxes");
        let ran = place.shell(&["-t", "permissive"], &script).ok();
        assert!(ran.out.ends_with("\n403"), "{ran:?}");
        assert!(place.bare(&script).ok().out.ends_with("\n200"));
        // A file that is too large for it, and names of sandboxes that are not this interface's.
        let large = place.write("large", vec![b' '; (32 << 20) + 1]);
        let large = format!("@{}", large.display());
        let kind = "Content-Type: application/json";
        let data = ["-H", kind, "-H", "Expect:", "--data-binary", &large];
        ask(place, rest, &data, "/v1/codebases").is(429);
        daemon.create(&["--name", "native"]);
        ask(place, rest, &[], "/v1/sandboxes/native").is(404);
        assert_eq!(ask(place, rest, &[], "/v1/sandboxes").json()["sandboxes"], json!([]));
        drop(daemon);
        for addresses in [["0.0.0.0:0", "127.0.0.1:0"], ["127.0.0.1:0", "0.0.0.0:0"]] {
            let [first, second] = addresses;
            let mut wide = place.ringfence(["daemon", "--agentfense", first, second]);
            super::world::environment(place, &mut wide);
            crate::harness::Ran::of(&mut wide).failed_with(125).says("loopback");
        }
    });
}
