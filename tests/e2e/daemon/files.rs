//! Files of a sandbox over the socket: as the sandbox sees them, and no way past its policy.

use serde_json::json;

use super::world::{Answer, Daemon};
use crate::harness::{as_each_user, has};

fn at(id: &str, path: &str) -> String {
    format!("/v1/sandboxes/{id}/files{path}")
}

fn put(daemon: &Daemon<'_>, id: &str, path: &str, bytes: &str) -> Answer {
    daemon.curl(&["-X", "PUT", "--data-binary", bytes], &at(id, &format!("?path={path}")))
}

#[test]
fn what_is_written_is_there_and_the_other_way_round() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        put(&daemon, &id, "new", "hello").is(204);
        assert_eq!(daemon.shell(&id, "cat new").ok().out, "hello");
        daemon.shell(&id, "echo more >> new; chmod 750 new; ln -s new link; mkfifo fifo").ok();
        assert_eq!(daemon.get(&at(&id, "?path=new")).is(200).body, "hellomore\n");
        assert_eq!(daemon.get(&at(&id, "?path=new&offset=5&length=2")).is(200).body, "mo");
        assert_eq!(daemon.get(&at(&id, "?path=link")).is(200).body, "hellomore\n");
        put(&daemon, &id, "new", "again").is(204);
        let info = daemon.get(&at(&id, "/stat?path=new")).is(200).json();
        assert_eq!((&info["size"], &info["mode"]), (&json!(5), &json!(0o750)), "{info}");
        let link = daemon.get(&at(&id, "/stat?path=link")).is(200).json();
        assert_eq!(link["kind"], "symlink");
        daemon.curl(&["-X", "POST"], &at(&id, "/directory?path=d")).is(204);
        put(&daemon, &id, "d/x", "1").is(204);
        let listing = daemon.get(&at(&id, "/list?path=.")).is(200).json();
        let names: Vec<_> =
            listing["entries"].as_array().unwrap().iter().map(|e| e["name"].clone()).collect();
        for name in ["d", "fifo", "link", "new"] {
            assert!(names.contains(&json!(name)), "{listing}");
        }
        // No draft is left.
        assert!(!names.iter().any(|n| n.as_str().unwrap().starts_with(".ringfence-")), "{listing}");
        let remove =
            |path: &str| daemon.curl(&["-X", "DELETE"], &at(&id, &format!("?path={path}")));
        assert_eq!(remove("d").is(409).reason(), "conflict");
        remove("d/x").is(204);
        remove("d").is(204);
        assert_eq!(remove("d").is(404).reason(), "not-found");
        // What would wait, or is no file, is refused at once.
        for path in ["fifo", ".", "/dev/null", "/proc/self/status"] {
            assert_eq!(daemon.get(&at(&id, &format!("?path={path}"))).is(403).reason(), "refused");
        }
        assert_eq!(put(&daemon, &id, "fifo", "x").is(403).reason(), "refused");
        assert_eq!(daemon.get(&at(&id, "?path=")).is(400).reason(), "invalid");
        assert_eq!(daemon.get(&at(&id, "")).is(400).reason(), "invalid");
    });
}

/// By `..`, by links and by the process file system: what leads out of a sandbox leads nowhere.
#[test]
fn nothing_beyond_the_view_is_reached() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let secret = place.outside().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        place.own(&secret);
        let shown = secret.display().to_string();
        let links = format!(
            "ln -s {shown} abs; ln -s ../outside/secret rel; ln -s ../outside dir; ln -s /proc/1/root/{shown} proc"
        );
        daemon.shell(&id, &links).ok();
        // The control: outside the links lead there.
        let control = place.bare("cat abs rel dir/secret").ok();
        assert_eq!(control.out, "secretsecretsecret");
        let up = format!("../../../../../../../../..{shown}");
        let ways = ["../outside/secret", &shown, &up, "abs", "rel", "dir/secret", "proc"];
        for way in ways {
            let read = daemon.get(&at(&id, &format!("?path={way}")));
            assert!(matches!(read.status, 403 | 404), "{way}: {read:?}");
            let written = put(&daemon, &id, way, "overwritten");
            assert!(matches!(written.status, 403 | 404), "{way}: {written:?}");
            let stat = daemon.get(&at(&id, &format!("/list?path={way}/..")));
            assert!(!stat.body.contains("\"name\":\"secret\""), "{way}: {stat:?}");
        }
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
        // A link in the workspace that leads to a place in it is followed, with the same rights.
        daemon.shell(&id, "echo in > inside; ln -s inside good").ok();
        assert_eq!(daemon.get(&at(&id, "?path=good")).is(200).body, "in\n");
    });
}

/// The files interface is not a way around the permissions of the policy.
#[test]
fn what_the_policy_hides_or_protects_stays_so() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        place.write(".env", "SECRET=1");
        place.write("readable", "text");
        let daemon = Daemon::start(place);
        let id = daemon.create(&[]);
        let hidden = daemon.get(&at(&id, "?path=.env"));
        assert!(!hidden.body.contains("SECRET"), "{hidden:?}");
        assert!(matches!(hidden.status, 403 | 404), "{hidden:?}");
        let read_only = daemon.create(&["-t", "read-only"]);
        assert_eq!(daemon.get(&at(&read_only, "?path=readable")).is(200).body, "text");
        assert_eq!(put(&daemon, &read_only, "readable", "x").is(403).reason(), "refused");
        assert_eq!(put(&daemon, &read_only, "new", "x").is(403).reason(), "refused");
        let remove = daemon.curl(&["-X", "DELETE"], &at(&read_only, "?path=readable"));
        assert_eq!(remove.is(403).reason(), "refused");
        // The control.
        put(&daemon, &id, "readable", "changed").is(204);
        let text = std::fs::read_to_string(place.workspace().join("readable")).unwrap();
        assert_eq!(text, "changed");
    });
}
