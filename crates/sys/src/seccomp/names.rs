//! The rows of a second filter, where names are checked as they are made: calls that make, move or
//! (where rules say so) change names are held until the broker has answered them.
//!
//! A filter cannot read a path, but it sees flags: an open that makes nothing runs at once.

use super::compile::compile_rules;
use super::table::{Rule, Test, deny, deny_new, deny_x86, has_any, is};
use super::{Arch, Options, SockFilter};

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watch {
    /// Opens for writing, removals and changes of attributes too, not only new names.
    pub changes: bool,
}

const O_CREAT: u32 = 0o100;
const O_TRUNC: u32 = 0o1000;
const O_ACCMODE: u32 = 0o3;
const O_PATH: u32 = 0o10_000_000;
const ENOSYS: u16 = 38;
const ENOTTY: u16 = 25;

const fn without(arg: u8, mask: u32) -> Test {
    Test { arg, mask, values: &[0], member: true }
}

const NEW: &str = "makes a name";
const MOVE: &str = "moves a name";
const CHANGE: &str = "changes what a rule may protect";
const UNSEEN: &str = "its arguments lie in memory; programs fall back to openat";
const NESTED: &str = "what the broker does for a process would not be held by it";

/// The errno of a row that asks is not looked at.
const NONE: u16 = 0;

/// In force always.
const NAMES: &[Rule] = &[
    deny_x86("open", 2, NONE, NEW)
        .asks()
        .only_if("flags have O_CREAT", &[has_any(1, O_CREAT), without(1, O_PATH)]),
    deny("openat", 257, 56, NONE, NEW)
        .asks()
        .only_if("flags have O_CREAT", &[has_any(2, O_CREAT), without(2, O_PATH)]),
    deny_new("openat2", 437, ENOSYS, UNSEEN),
    deny_x86("creat", 85, NONE, NEW).asks(),
    deny_x86("mkdir", 83, NONE, NEW).asks(),
    deny("mkdirat", 258, 34, NONE, NEW).asks(),
    deny_x86("mknod", 133, NONE, NEW).asks(),
    deny("mknodat", 259, 33, NONE, NEW).asks(),
    deny_x86("symlink", 88, NONE, NEW).asks(),
    deny("symlinkat", 266, 36, NONE, NEW).asks(),
    deny_x86("link", 86, NONE, NEW).asks(),
    deny("linkat", 265, 37, NONE, NEW).asks(),
    deny("bind", 49, 200, NONE, NEW).asks(),
    deny_x86("rename", 82, NONE, MOVE).asks(),
    deny("renameat", 264, 38, NONE, MOVE).asks(),
    deny("renameat2", 316, 276, NONE, MOVE).asks(),
    deny("umask", 95, 166, NONE, "the broker makes names with it").asks(),
    deny_new("landlock_create_ruleset", 444, ENOSYS, NESTED),
    deny_new("landlock_add_rule", 445, ENOSYS, NESTED),
    deny_new("landlock_restrict_self", 446, ENOSYS, NESTED),
];

/// With [`Watch::changes`].
const CHANGES: &[Rule] = &[
    deny_x86("open", 2, NONE, CHANGE).asks().only_if(
        "flags have O_WRONLY, O_RDWR or O_TRUNC",
        &[has_any(1, O_ACCMODE | O_TRUNC), without(1, O_PATH)],
    ),
    deny("openat", 257, 56, NONE, CHANGE).asks().only_if(
        "flags have O_WRONLY, O_RDWR or O_TRUNC",
        &[has_any(2, O_ACCMODE | O_TRUNC), without(2, O_PATH)],
    ),
    deny("truncate", 76, 45, NONE, CHANGE).asks(),
    deny_x86("unlink", 87, NONE, CHANGE).asks(),
    deny_x86("rmdir", 84, NONE, CHANGE).asks(),
    deny("unlinkat", 263, 35, NONE, CHANGE).asks(),
    deny_x86("chmod", 90, NONE, CHANGE).asks(),
    deny("fchmod", 91, 52, NONE, CHANGE).asks(),
    deny("fchmodat", 268, 53, NONE, CHANGE).asks(),
    deny_new(
        "fchmodat2",
        452,
        ENOSYS,
        "newer than what the broker carries out; programs fall back",
    ),
    deny_x86("chown", 92, NONE, CHANGE).asks(),
    deny_x86("lchown", 94, NONE, CHANGE).asks(),
    deny("fchown", 93, 55, NONE, CHANGE).asks(),
    deny("fchownat", 260, 54, NONE, CHANGE).asks(),
    deny_x86("utime", 132, NONE, CHANGE).asks(),
    deny_x86("utimes", 235, NONE, CHANGE).asks(),
    deny_x86("futimesat", 261, NONE, CHANGE).asks(),
    deny("utimensat", 280, 88, NONE, CHANGE).asks(),
    deny("setxattr", 188, 5, NONE, CHANGE).asks(),
    deny("lsetxattr", 189, 6, NONE, CHANGE).asks(),
    deny("fsetxattr", 190, 7, NONE, CHANGE).asks(),
    deny("removexattr", 197, 14, NONE, CHANGE).asks(),
    deny("lremovexattr", 198, 15, NONE, CHANGE).asks(),
    deny("fremovexattr", 199, 16, NONE, CHANGE).asks(),
    deny_new(
        "setxattrat",
        463,
        ENOSYS,
        "newer than what the broker carries out; programs fall back",
    ),
    deny_new(
        "removexattrat",
        466,
        ENOSYS,
        "newer than what the broker carries out; programs fall back",
    ),
    deny_new(
        "file_setattr",
        469,
        ENOSYS,
        "newer than what the broker carries out; programs fall back",
    ),
    deny("ioctl", 16, 29, ENOTTY, "changes attributes through a descriptor that only reads")
        // FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR.
        .only_if("request sets attributes of a file", &[is(1, &[0x4008_6602, 0x401C_5820])]),
];

/// The program for `arch`. To be loaded besides [`super::compile`]'s, whose refusals go before.
pub fn watch(arch: Arch, watch: Watch) -> Vec<SockFilter> {
    let mut rules = NAMES.to_vec();
    if watch.changes {
        rules.extend_from_slice(CHANGES);
    }
    compile_rules(arch, Options::default(), &rules)
}
