//! The rows: which calls are refused, when, and why.

use serde::Serialize;

use super::{Action, Arch, Options};

/// The newest system call the table has been reviewed against (`file_setattr`, Linux 6.17). From 424
/// on both architectures share their numbers. Raise it only together with a decision, row or no row,
/// on each call in between.
pub const NEWEST: u32 = 469;

/// One row. Every row refuses; a call that no row matches is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Name of the call.
    pub call: &'static str,
    /// Its number on 64-bit x86, if it exists there.
    pub x86_64: Option<u32>,
    /// Its number on 64-bit Arm, if it exists there.
    pub aarch64: Option<u32>,
    /// The options under which the row is in force.
    pub when: When,
    /// All must hold for the row to match. None: always.
    pub tests: &'static [Test],
    /// The tests in words.
    pub condition: &'static str,
    /// What happens to the call. Rows of one call are tried in order and the first match decides.
    pub action: Action,
    /// Why.
    pub reason: &'static str,
}

impl Rule {
    /// The number of the call on `arch`.
    pub const fn number(&self, arch: Arch) -> Option<u32> {
        match arch {
            Arch::X86_64 => self.x86_64,
            Arch::Aarch64 => self.aarch64,
        }
    }

    /// The listener decides.
    pub(super) const fn asks(mut self) -> Self {
        self.action = Action::Ask;
        self
    }

    const fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    pub(super) const fn only_if(mut self, condition: &'static str, tests: &'static [Test]) -> Self {
        self.condition = condition;
        self.tests = tests;
        self
    }
}

/// A test on one argument: is its low half, after masking, one of the values?
///
/// Only the low 32 bits are looked at. The kernel takes each argument tested here as a 32-bit
/// integer and drops the rest; a filter that compares all 64 bits is passed by setting a high bit.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Which argument, from 0.
    pub arg: u8,
    /// Bits that count.
    pub mask: u32,
    /// What to compare with.
    pub values: &'static [u32],
    /// True: must be one of the values. False: must be none of them.
    pub member: bool,
}

impl Test {
    /// Whether the test holds for these arguments.
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let value = args[usize::from(self.arg)] as u32 & self.mask;
        self.values.contains(&value) == self.member
    }
}

pub(super) const fn is(arg: u8, values: &'static [u32]) -> Test {
    Test { arg, mask: u32::MAX, values, member: true }
}

const fn is_not(arg: u8, values: &'static [u32]) -> Test {
    Test { arg, mask: u32::MAX, values, member: false }
}

pub(super) const fn has_any(arg: u8, mask: u32) -> Test {
    Test { arg, mask, values: &[0], member: false }
}

/// The options under which a row is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Under all.
    Always,
    /// Without [`Options::ptrace`].
    NoPtrace,
    /// Without [`Options::io_uring`].
    NoIoUring,
    /// Without [`Options::nested_namespaces`].
    NoNested,
    /// Without [`Options::inet`].
    NoInet,
    /// Without [`Options::unix`].
    NoUnix,
    /// With [`Options::fake_chown`].
    FakeChown,
    /// Without [`Options::reserve`].
    NoReserve,
}

impl When {
    /// Whether rows with this mark are in force under `options`.
    pub const fn holds(self, options: &Options) -> bool {
        match self {
            Self::Always => true,
            Self::NoPtrace => !options.ptrace,
            Self::NoIoUring => !options.io_uring,
            Self::NoNested => !options.nested_namespaces,
            Self::NoInet => !options.inet,
            Self::NoUnix => !options.unix,
            Self::FakeChown => options.fake_chown,
            Self::NoReserve => !options.reserve,
        }
    }
}

// The same on both architectures.
const EPERM: u16 = 1;
const EACCES: u16 = 13;
pub(super) const ENOSYS: u16 = 38;
const EPROTONOSUPPORT: u16 = 93;
const EOPNOTSUPP: u16 = 95;
const EAFNOSUPPORT: u16 = 97;

pub(super) const fn errno_name(errno: u16) -> Option<&'static str> {
    Some(match errno {
        EPERM => "EPERM",
        EACCES => "EACCES",
        ENOSYS => "ENOSYS",
        EPROTONOSUPPORT => "EPROTONOSUPPORT",
        EAFNOSUPPORT => "EAFNOSUPPORT",
        _ => return None,
    })
}

const fn row(
    call: &'static str,
    x86_64: Option<u32>,
    aarch64: Option<u32>,
    errno: u16,
    reason: &'static str,
) -> Rule {
    Rule {
        call,
        x86_64,
        aarch64,
        when: When::Always,
        tests: &[],
        condition: "",
        action: Action::Errno(errno),
        reason,
    }
}

/// A call with a number on both architectures.
pub(super) const fn deny(
    call: &'static str,
    x86_64: u32,
    aarch64: u32,
    errno: u16,
    reason: &'static str,
) -> Rule {
    row(call, Some(x86_64), Some(aarch64), errno, reason)
}

/// A call from 424 on, where the numbers are shared.
pub(super) const fn deny_new(
    call: &'static str,
    number: u32,
    errno: u16,
    reason: &'static str,
) -> Rule {
    row(call, Some(number), Some(number), errno, reason)
}

/// A call that only 64-bit x86 has.
pub(super) const fn deny_x86(
    call: &'static str,
    number: u32,
    errno: u16,
    reason: &'static str,
) -> Rule {
    row(call, Some(number), None, errno, reason)
}

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u32 = 0x7E02_0000;
/// For `unshare` alone; in `clone` the bit belongs to the exit signal.
const NEWTIME: u32 = 0x80;

const UNIX: u32 = 1;
const INET: u32 = 2;
const INET6: u32 = 10;
const NETLINK: u32 = 16;
const STREAM: u32 = 1;
const DGRAM: u32 = 2;
const SEQPACKET: u32 = 5;
/// The part of a socket's type that is not SOCK_CLOEXEC or SOCK_NONBLOCK (`SOCK_TYPE_MASK`).
const TYPE_MASK: u32 = 0xF;
/// 0, ICMP, TCP, UDP, ICMPv6, UDP-Lite.
const PROTOCOLS: &[u32] = &[0, 1, 6, 17, 58, 136];

const IO_URING: &str = "operations on a ring never reach this filter; programs fall back";
const NESTED: &str = "a namespace of one's own gives capabilities over much kernel code";
const MOUNTING: &str = "the mount tree is fixed when the sandbox starts";
const KEYRING: &str = "keyrings are shared across namespaces and may hold the caller's keys";
const MODULES: &str = "loads or removes kernel code";
const KEXEC: &str = "replaces the running kernel";
const PORTS: &str = "direct access to hardware ports";
const CLOCK: &str = "the clock belongs to the host";
const HOST_NAME: &str = "the name is fixed when the sandbox starts";
const SWAP: &str = "swap belongs to the host";
const QUOTA: &str = "quotas belong to the host";
const OTHERS_MEMORY: &str = "reaches into processes outside where they can be named";
const OBSOLETE: &str = "obsolete; current kernels no longer have it";
const NO_OWNERS: &str = "the sandbox has one id only; pretends to change ownership";
const RESERVES: &str = "takes any amount of the disk in one call, before anybody can count it";

/// All rows, grouped by what they protect.
pub const RULES: &[Rule] = &[
    // Past the filter.
    deny_new("io_uring_setup", 425, ENOSYS, IO_URING).when(When::NoIoUring),
    deny_new("io_uring_enter", 426, ENOSYS, IO_URING).when(When::NoIoUring),
    deny_new("io_uring_register", 427, ENOSYS, IO_URING).when(When::NoIoUring),
    // Into other namespaces.
    deny("unshare", 272, 97, EPERM, NESTED)
        .when(When::NoNested)
        .only_if("flags has any CLONE_NEW*", &[has_any(0, NEW_NAMESPACES | NEWTIME)]),
    deny("clone", 56, 220, EPERM, NESTED)
        .when(When::NoNested)
        .only_if("flags has any CLONE_NEW*", &[has_any(0, NEW_NAMESPACES)]),
    deny_new(
        "clone3",
        435,
        ENOSYS,
        "its flags lie behind a pointer, which a filter cannot follow; libraries fall back to clone",
    )
    .when(When::NoNested),
    deny("setns", 308, 268, EPERM, "enters namespaces that a descriptor leads to")
        .when(When::NoNested),
    // The mount tree.
    deny("mount", 165, 40, EPERM, MOUNTING).when(When::NoNested),
    deny("umount2", 166, 39, EPERM, MOUNTING).when(When::NoNested),
    deny("pivot_root", 155, 41, EPERM, MOUNTING).when(When::NoNested),
    deny("chroot", 161, 51, EPERM, MOUNTING).when(When::NoNested),
    deny_new("open_tree", 428, EPERM, MOUNTING).when(When::NoNested),
    deny_new("move_mount", 429, EPERM, MOUNTING).when(When::NoNested),
    deny_new("fsopen", 430, EPERM, MOUNTING).when(When::NoNested),
    deny_new("fsconfig", 431, EPERM, MOUNTING).when(When::NoNested),
    deny_new("fsmount", 432, EPERM, MOUNTING).when(When::NoNested),
    deny_new("fspick", 433, EPERM, MOUNTING).when(When::NoNested),
    deny_new("mount_setattr", 442, EPERM, MOUNTING).when(When::NoNested),
    deny_new("open_tree_attr", 467, EPERM, MOUNTING).when(When::NoNested),
    // Files past their path.
    deny("open_by_handle_at", 304, 265, EPERM, "opens files by number, past every path rule"),
    deny("fanotify_init", 300, 262, EPERM, "watches or holds up file access of a whole mount"),
    // The terminal.
    deny("ioctl", 16, 29, EPERM, "types into, or takes over, the terminal the sandbox was started from")
        .only_if(
            "request is TIOCSTI, TIOCLINUX, TIOCCONS or TIOCSETD",
            &[is(1, &[0x5412, 0x541C, 0x541D, 0x5423])],
        ),
    deny("vhangup", 153, 58, EPERM, "hangs up the terminal for everyone"),
    // Sockets. Families first, then what a permitted family may do.
    deny("socket", 41, 198, EAFNOSUPPORT, "reaches the hypervisor, raw devices or rarely used kernel code")
        .only_if(
            "domain is not AF_UNIX, AF_INET, AF_INET6 or AF_NETLINK",
            &[is_not(0, &[UNIX, INET, INET6, NETLINK])],
        ),
    deny("socket", 41, 198, EPROTONOSUPPORT, "the route family is all that address look-ups need")
        .only_if("domain is AF_NETLINK and protocol is not NETLINK_ROUTE", &[
            is(0, &[NETLINK]),
            is_not(2, &[0]),
        ]),
    deny("socket", 41, 198, EACCES, "no network without a network namespace to hold it")
        .when(When::NoInet)
        .only_if("domain is AF_INET or AF_INET6", &[is(0, &[INET, INET6])]),
    deny("socket", 41, 198, EPERM, "raw packets; other types reach rarely used kernel code")
        .only_if("domain is AF_INET or AF_INET6 and type is not SOCK_STREAM or SOCK_DGRAM", &[
            is(0, &[INET, INET6]),
            Test { arg: 1, mask: TYPE_MASK, values: &[STREAM, DGRAM], member: false },
        ]),
    deny(
        "socket",
        41,
        198,
        EPROTONOSUPPORT,
        "other protocols escape port rules (MPTCP) or reach rarely used kernel code (SCTP, L2TP, SMC)",
    )
    .only_if(
        "domain is AF_INET or AF_INET6 and protocol is not 0, TCP, UDP, UDP-Lite or ICMP",
        &[is(0, &[INET, INET6]), is_not(2, PROTOCOLS)],
    ),
    deny("socket", 41, 198, EACCES, "named unix sockets lead to services of the host")
        .when(When::NoUnix)
        .only_if("domain is AF_UNIX", &[is(0, &[UNIX])]),
    deny("socketpair", 53, 199, EAFNOSUPPORT, "only unix pairs are of use")
        .only_if("domain is not AF_UNIX", &[is_not(0, &[UNIX])]),
    deny("socketpair", 53, 199, EACCES, "a datagram pair can be reconnected to a named socket")
        .when(When::NoUnix)
        .only_if("type is not SOCK_STREAM or SOCK_SEQPACKET", &[Test {
            arg: 1,
            mask: TYPE_MASK,
            values: &[STREAM, SEQPACKET],
            member: false,
        }]),
    // Other processes.
    deny("ptrace", 101, 117, EPERM, OTHERS_MEMORY).when(When::NoPtrace),
    deny("process_vm_readv", 310, 270, EPERM, OTHERS_MEMORY).when(When::NoPtrace),
    deny("process_vm_writev", 311, 271, EPERM, OTHERS_MEMORY).when(When::NoPtrace),
    deny_new("process_madvise", 440, EPERM, OTHERS_MEMORY).when(When::NoPtrace),
    deny_new("pidfd_getfd", 438, EPERM, "takes descriptors of processes outside")
        .when(When::NoPtrace),
    deny("kcmp", 312, 272, EPERM, "compares kernel addresses of other processes")
        .when(When::NoPtrace),
    deny("prlimit64", 302, 261, EPERM, "changes the limits of processes outside")
        .when(When::NoPtrace)
        .only_if("pid is not 0", &[is_not(0, &[0])]),
    deny("setpriority", 141, 140, EPERM, "slows every process of the user")
        .when(When::NoPtrace)
        .only_if("which is PRIO_USER", &[is(0, &[2])]),
    deny("ioprio_set", 251, 30, EPERM, "slows every process of the user")
        .when(When::NoPtrace)
        .only_if("which is IOPRIO_WHO_USER", &[is(0, &[3])]),
    // Kernel code of little use and a long history of holes.
    deny("bpf", 321, 280, EPERM, "runs code in the kernel"),
    deny("perf_event_open", 298, 241, EPERM, "large kernel surface; observes other processes"),
    deny("userfaultfd", 323, 282, EPERM, "stops the kernel at a chosen moment, which exploits rely on"),
    deny("add_key", 248, 217, EPERM, KEYRING),
    deny("request_key", 249, 218, EPERM, KEYRING),
    deny("keyctl", 250, 219, EPERM, KEYRING),
    deny("personality", 135, 92, EPERM, "old execution domains weaken memory protection").only_if(
        "persona has other bits than ADDR_NO_RANDOMIZE (debuggers), PER_LINUX32, UNAME26; not a query",
        &[has_any(0, !0x0006_0008), is_not(0, &[u32::MAX])],
    ),
    deny_x86("modify_ldt", 154, EPERM, "segments for 16-bit programs; a long history of holes"),
    deny_x86("uselib", 134, ENOSYS, OBSOLETE),
    deny("lookup_dcookie", 212, 18, ENOSYS, OBSOLETE),
    // The host. The kernel asks for capabilities that the sandbox lacks; this is the second wall.
    // Three that no kernel has any more join their neighbours into one run of numbers.
    deny_x86("create_module", 174, EPERM, MODULES),
    deny_x86("get_kernel_syms", 177, EPERM, MODULES),
    deny_x86("query_module", 178, EPERM, MODULES),
    deny("init_module", 175, 105, EPERM, MODULES),
    deny("finit_module", 313, 273, EPERM, MODULES),
    deny("delete_module", 176, 106, EPERM, MODULES),
    deny("kexec_load", 246, 104, EPERM, KEXEC),
    deny("kexec_file_load", 320, 294, EPERM, KEXEC),
    deny("reboot", 169, 142, EPERM, "stops the host"),
    deny("swapon", 167, 224, EPERM, SWAP),
    deny("swapoff", 168, 225, EPERM, SWAP),
    deny("syslog", 103, 116, EPERM, "the kernel log tells addresses and what other users do"),
    deny("acct", 163, 89, EPERM, "accounting belongs to the host"),
    deny("quotactl", 179, 60, EPERM, QUOTA),
    deny_new("quotactl_fd", 443, EPERM, QUOTA),
    deny("settimeofday", 164, 170, EPERM, CLOCK),
    deny("clock_settime", 227, 112, EPERM, CLOCK),
    deny("sethostname", 170, 161, EPERM, HOST_NAME).when(When::NoNested),
    deny("setdomainname", 171, 162, EPERM, HOST_NAME).when(When::NoNested),
    deny_x86("iopl", 172, EPERM, PORTS),
    deny_x86("ioperm", 173, EPERM, PORTS),
    // A root caller with one id.
    deny_x86("chown", 92, 0, NO_OWNERS).when(When::FakeChown),
    deny_x86("lchown", 94, 0, NO_OWNERS).when(When::FakeChown),
    deny("fchown", 93, 55, 0, NO_OWNERS).when(When::FakeChown),
    deny("fchownat", 260, 54, 0, NO_OWNERS).when(When::FakeChown),
    // A layer with a quota.
    deny("fallocate", 285, 47, EOPNOTSUPP, RESERVES)
        .only_if("mode is not FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE or FALLOC_FL_COLLAPSE_RANGE", &[is_not(1, &[3, 8])])
        .when(When::NoReserve),
];

/// The meaning of the filter: what happens to call `number` with `args`, entered through the
/// architecture that the kernel reports as `audit`, under the filter for `arch`.
pub fn evaluate(arch: Arch, options: &Options, audit: u32, number: u32, args: &[u64; 6]) -> Action {
    if audit != arch.audit() {
        return Action::Kill;
    }
    // A call that a debugger cancelled: the kernel runs nothing, and its answer is the debugger's.
    if number == u32::MAX {
        return Action::Allow;
    }
    if number > NEWEST {
        return Action::Errno(ENOSYS);
    }
    RULES
        .iter()
        .find(|rule| {
            rule.number(arch) == Some(number)
                && rule.when.holds(options)
                && rule.tests.iter().all(|test| test.holds(args))
        })
        .map_or(Action::Allow, |rule| rule.action)
}

/// A row in force, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableRow {
    /// Name of the call, or in parentheses what the row stands for.
    pub call: &'static str,
    /// Its number on 64-bit x86.
    pub x86_64: Option<u32>,
    /// Its number on 64-bit Arm.
    pub aarch64: Option<u32>,
    /// When it is refused; empty for always.
    pub condition: &'static str,
    /// What it answers: the name of an error number, `kill` or `pretend success`.
    pub action: String,
    /// Why.
    pub reason: &'static str,
}

/// The rows in force under `options`, general ones first, then in the order in which they are tried.
pub fn table(options: &Options) -> Vec<TableRow> {
    let general = |call, condition, action: Action, reason| TableRow {
        call,
        x86_64: None,
        aarch64: None,
        condition,
        action: action.to_string(),
        reason,
    };
    let mut rows = vec![
        general(
            "(any)",
            "entered by another architecture, as 32-bit programs do",
            Action::Kill,
            "other numbers for the same calls would pass the filter",
        ),
        general(
            "(any)",
            "number has the x32 bit",
            Action::Errno(ENOSYS),
            "other numbers for the same calls would pass the filter",
        ),
        general(
            "(any)",
            "number is above 469",
            Action::Errno(ENOSYS),
            "a call newer than this table; programs fall back as on an older kernel",
        ),
    ];
    rows.extend(RULES.iter().filter(|rule| rule.when.holds(options)).map(|rule| TableRow {
        call: rule.call,
        x86_64: rule.x86_64,
        aarch64: rule.aarch64,
        condition: rule.condition,
        action: rule.action.to_string(),
        reason: rule.reason,
    }));
    rows
}
