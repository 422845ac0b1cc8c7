//! Places that are made before they are asked for: each is one sandbox's, and none outlives the daemon.

use std::collections::BTreeSet;

use super::world::{Daemon, Process, until};
use crate::harness::{as_each_user, has};

const LOOK: &str = "for n in net mnt ipc uts user pid cgroup; do readlink /proc/self/ns/$n; done";

fn hits(daemon: &Daemon<'_>, pool: &str) -> u64 {
    let text = daemon.get("/metrics").is(200).body;
    let name = format!("ringfence_pool_hits_total{{pool=\"{pool}\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_prepared_place_is_one_sandboxs_and_ends_with_it() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let mut daemon = Daemon::start(place);
        // The host's own, as a control: none of them is any sandbox's.
        let host = ["net", "mnt", "ipc", "uts", "user", "pid"];
        let host = host.map(|n| std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap());
        let mut seen: BTreeSet<String> =
            host.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let kinds: [(&[&str], &str); 2] = [(&[], "namespaces"), (&["--layer"], "spawners")];
        for (kind, pool) in kinds {
            // All stay, so that the kernel gives no number to two.
            until("a place was there before it was asked for", || {
                let id = daemon.create(kind);
                let own = daemon.shell(&id, LOOK).ok().out;
                assert_eq!(own.lines().count(), 7, "{own}");
                for namespace in own.lines().filter(|l| !l.starts_with("cgroup:")) {
                    assert!(seen.insert(namespace.to_owned()), "{namespace} is another's");
                }
                hits(&daemon, pool) > 1
            });
        }
        // Unused ones too.
        let all = daemon.family();
        daemon.kill();
        until("all of it has ended", || !all.iter().any(Process::is_there));
        daemon.start_again();
    });
}
