//! A place that one sandbox had is no other's: whatever it leaves behind, the next ones find nothing of it.

use super::world::Daemon;
use crate::harness::{as_each_user, has};

/// A mark wherever a command can leave one that outlives it.
const MARK: &str = "for d in /tmp /dev/shm /run /var/tmp $HOME; do echo $1 > $d/mark; done 2>/dev/null; \
    ipcmk -M 64 >/dev/null 2>&1; sleep 1000 >/dev/null 2>&1 </dev/null & true";
/// What is found of marks, of processes besides one's own, and of shared memory.
const LOOK: &str = "for d in /tmp /dev/shm /run /var/tmp $HOME; do cat $d/mark; done 2>/dev/null; \
    grep -l sleep /proc/[0-9]*/comm 2>/dev/null | wc -l; \
    grep -c . /proc/sysvipc/shm; cat /proc/net/unix | wc -l";

#[test]
fn nothing_of_a_sandbox_is_found_in_the_next() {
    if !has("curl") {
        return;
    }
    as_each_user(|place| {
        let daemon = Daemon::start(place);
        let look = |name: &str| daemon.shell(name, LOOK).ok().out;
        let kinds: [&[&str]; 2] = [&[], &["--layer"]];
        for kind in kinds {
            let create = |name: &str| {
                let mut args = vec!["--name", name];
                args.extend(kind);
                daemon.create(&args);
            };
            create("clean");
            let clean = look("clean");
            for round in 0..4 {
                // Side by side, and one in the place of the other.
                for name in ["one", "two"] {
                    create(name);
                    assert_eq!(look(name), clean, "{name}, round {round}, {kind:?}");
                    daemon.ringfence(&["exec", name, "--", "sh", "-c", MARK, "sh", name]).ok();
                }
                // Control: what is left is found where it was left, and there only.
                let found = look("one");
                assert!(found != clean && !found.contains("two"), "{found}");
                daemon.ringfence(&["remove", "one", "two"]).ok();
            }
            assert_eq!(look("clean"), clean);
            daemon.ringfence(&["remove", "clean"]).ok();
        }
    });
}
