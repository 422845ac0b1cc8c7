//! Many requests in one.

use std::process::Stdio;

use serde_json::{Value, json};

use super::world::Daemon;
use crate::harness::{as_each_user, has};

#[test]
fn a_batch_answers_for_each() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let made_of = |name: &str| json!({ "name": name, "workspace": place.workspace() });
        let items = [made_of("one"), made_of("two"), made_of("one"), json!({ "workspace": "x" })];
        let made = daemon.post("/v1/batch/sandboxes", &json!({ "items": items, "concurrency": 1 }));
        let made = made.is(200).json();
        let results = made["results"].as_array().unwrap();
        assert_eq!(results[0]["result"]["name"], "one", "{made}");
        assert_eq!(results[1]["result"]["state"], "idle");
        assert_eq!(results[2]["error"]["reason"], "conflict");
        assert_eq!(results[3]["error"]["reason"], "invalid");
        // In the order of the items, however long each takes.
        let item = |sandbox: &str, script: &str| json!({ "sandbox": sandbox, "exec": { "shell": script } });
        let items = [
            item("one", "sleep 0.3; echo first"),
            item("two", "echo second; exit 3"),
            item("nobody", "true"),
            item("two", "echo fourth >&2"),
        ];
        let ran = daemon.post("/v1/batch/exec", &json!({ "items": items })).is(200).json();
        let results = ran["results"].as_array().unwrap();
        assert_eq!(results[0]["result"]["stdout"]["data"], "first\n", "{ran}");
        assert_eq!(results[1]["result"]["ended"]["exit_code"], 3);
        assert_eq!(results[2]["error"]["reason"], "not-found");
        assert_eq!(results[3]["result"]["stderr"]["data"], "fourth\n");
        // By the command line.
        let mut command = daemon.command(&["batch", "exec"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let asked = json!({ "items": [item("one", "echo by line")] }).to_string();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), asked.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout.windows(7).any(|w| w == b"by line"));
        let many: Vec<Value> = (0..257).map(|_| item("one", "true")).collect();
        daemon.post("/v1/batch/exec", &json!({ "items": many })).is(400);
        daemon.post("/v1/batch/exec", &json!({ "items": [], "concurrency": 0 })).is(400);
        assert_eq!(
            daemon.post("/v1/batch/exec", &json!({ "items": [] })).is(200).json()["results"],
            json!([])
        );
    });
}
