use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::compile::{AND, JA, JEQ, JGE, JGT, LD, OFFSET_ARCH, OFFSET_ARGS, OFFSET_NR, RET};
use super::*;

const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const EPERM: u16 = libc::EPERM as u16;

fn all_options() -> impl Iterator<Item = Options> {
    (0u32..128).map(|bits| {
        let bit = |index: u32| bits & (1 << index) != 0;
        Options {
            ptrace: bit(0),
            io_uring: bit(1),
            nested_namespaces: bit(2),
            inet: bit(3),
            fake_chown: bit(4),
            unix: bit(5),
            reserve: bit(6),
        }
    })
}

/// What the kernel does with a program: runs it. Also counts the instructions taken.
fn interpret(program: &[SockFilter], audit: u32, number: u32, args: &[u64; 6]) -> (u32, usize) {
    let mut accumulator = 0u32;
    let mut at = 0usize;
    let mut steps = 0;
    loop {
        let op = program[at];
        at += 1;
        steps += 1;
        let branch = |holds: bool| usize::from(if holds { op.jt } else { op.jf });
        match op.code {
            LD => {
                accumulator = match op.k {
                    OFFSET_NR => number,
                    OFFSET_ARCH => audit,
                    offset => {
                        let word = (offset - OFFSET_ARGS) / 4;
                        let arg = args[(word / 2) as usize];
                        if word.is_multiple_of(2) { arg as u32 } else { (arg >> 32) as u32 }
                    }
                }
            }
            AND => accumulator &= op.k,
            JA => at += op.k as usize,
            JEQ => at += branch(accumulator == op.k),
            JGT => at += branch(accumulator > op.k),
            JGE => at += branch(accumulator >= op.k),
            RET => return (op.k, steps),
            code => panic!("instruction {code:#x} at {}", at - 1),
        }
    }
}

/// The row that decides about the call first has to let it through: arguments that pass its
/// tests, built from the values the table itself compares with.
fn interesting_args() -> impl Strategy<Value = [u64; 6]> {
    let values: Vec<u32> = RULES
        .iter()
        .flat_map(|rule| rule.tests)
        .flat_map(|test| test.values.iter().copied().chain([test.mask]))
        .collect();
    let word = prop_oneof![
        4 => prop::sample::select(values),
        2 => 0u32..300,
        1 => any::<u32>(),
        1 => (0u32..32).prop_map(|bit| 1 << bit),
    ];
    let high = prop_oneof![3 => Just(0u32), 1 => any::<u32>(), 1 => Just(1u32)];
    prop::array::uniform6((word, high))
        .prop_map(|words| words.map(|(low, high)| u64::from(high) << 32 | u64::from(low)))
}

fn interesting_number(arch: Arch) -> impl Strategy<Value = u32> {
    let named: Vec<u32> = RULES.iter().filter_map(|rule| rule.number(arch)).collect();
    let edges = vec![NEWEST, NEWEST + 1, X32_BIT, X32_BIT + 16, u32::MAX, u32::MAX - 1];
    prop_oneof![
        6 => prop::sample::select(named.clone()),
        2 => (prop::sample::select(named), 0u32..3).prop_map(|(n, d)| (n + d).saturating_sub(1)),
        2 => 0u32..600,
        1 => prop::sample::select(edges),
        1 => any::<u32>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn seccomp_program_means_what_the_table_says(
        (arch, number) in prop::sample::select(&Arch::ALL[..])
            .prop_flat_map(|arch| (Just(arch), interesting_number(arch))),
        audit in prop_oneof![
            8 => Just(None),
            1 => prop::sample::select(vec![I386, 0x4000_0028, 0xC000_003E, 0xC000_00B7]).prop_map(Some),
            1 => any::<u32>().prop_map(Some),
        ],
        args in interesting_args(),
        index in 0usize..64,
    ) {
        let options = all_options().nth(index).unwrap();
        let audit = audit.unwrap_or(arch.audit());
        let program = compile(arch, &options);
        let (code, _) = interpret(&program, audit, number, &args);
        prop_assert_eq!(code, evaluate(arch, &options, audit, number, &args).code());
    }
}

#[test]
fn seccomp_program_agrees_for_every_number_and_option() {
    for arch in Arch::ALL {
        for options in all_options() {
            let program = compile(arch, &options);
            for number in (0..1024).chain(X32_BIT..X32_BIT + 600) {
                for args in [[0; 6], [u64::MAX; 6], [1, 1, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0]] {
                    let (code, _) = interpret(&program, arch.audit(), number, &args);
                    let meant = evaluate(arch, &options, arch.audit(), number, &args);
                    assert_eq!(code, meant.code(), "{arch:?} {options:?} {number} {args:?}");
                }
            }
        }
    }
}

#[test]
fn seccomp_every_row_decides_some_call() {
    for (index, rule) in RULES.iter().enumerate() {
        // Search the values that any row of this call compares with for a witness.
        let mut values = vec![0u64, 1, 2, 3, 0x10, 0xFFFF, u64::from(u32::MAX)];
        for test in RULES.iter().filter(|r| r.call == rule.call).flat_map(|r| r.tests) {
            values.extend(test.values.iter().map(|&value| u64::from(value)));
            values.push(u64::from(test.mask));
        }
        let mut candidates = Vec::new();
        for &a in &values {
            for &b in &values {
                candidates.extend(values.iter().map(|&c| [a, b, c, 0, 0, 0]));
            }
        }
        let decides = |options: &Options, args: &[u64; 6]| {
            let matches = |r: &Rule| {
                r.call == rule.call
                    && r.when.holds(options)
                    && r.tests.iter().all(|test| test.holds(args))
            };
            matches(rule) && !RULES[..index].iter().any(matches)
        };
        let witness = all_options().find_map(|options| {
            Some((options, *candidates.iter().find(|args| decides(&options, args))?))
        });
        let (options, args) = witness.unwrap_or_else(|| panic!("{}: never decides", rule.call));
        for arch in Arch::ALL {
            let Some(number) = rule.number(arch) else { continue };
            let program = compile(arch, &options);
            let (code, _) = interpret(&program, arch.audit(), number, &args);
            assert_eq!(code, rule.action.code(), "{} on {arch:?}", rule.call);
        }
    }
}

#[test]
fn seccomp_programs_are_well_formed_and_small() {
    for arch in Arch::ALL {
        let mut longest = 0;
        let mut deepest = 0;
        for options in all_options() {
            let program = compile(arch, &options);
            assert!(program.len() <= MAX_INSTRUCTIONS);
            longest = longest.max(program.len());
            let mut reached = HashSet::from([0]);
            for (at, op) in program.iter().enumerate() {
                assert!(reached.contains(&at), "{at} cannot be reached");
                let targets = match op.code {
                    RET => vec![],
                    JA => vec![at + 1 + op.k as usize],
                    JEQ | JGT | JGE => {
                        vec![at + 1 + usize::from(op.jt), at + 1 + usize::from(op.jf)]
                    }
                    _ => vec![at + 1],
                };
                for target in targets {
                    assert!(target < program.len(), "{at} jumps out of the program");
                    reached.insert(target);
                }
            }
            for number in 0..=NEWEST {
                let (_, steps) = interpret(&program, arch.audit(), number, &[0; 6]);
                deepest = deepest.max(steps);
            }
        }
        println!("{arch:?}: at most {longest} instructions, {deepest} steps");
        assert!(longest < 512 && deepest < 40);
        println!("{arch:?}: {} by default", compile(arch, &Options::default()).len());
    }
}

/// Calls that are always allowed must be seen to be so by the kernel's dry run, which gives up at
/// the first look at an argument.
#[test]
fn seccomp_plain_calls_are_decided_by_number_alone() {
    for arch in Arch::ALL {
        for options in all_options() {
            let tested: HashSet<u32> = RULES
                .iter()
                .filter(|rule| !rule.tests.is_empty())
                .filter_map(|rule| rule.number(arch))
                .collect();
            let program = compile(arch, &options);
            for number in (0..=NEWEST).filter(|number| !tested.contains(number)) {
                let mut at = 0;
                let mut accumulator = 0;
                while program[at].code != RET {
                    let op = program[at];
                    at += 1;
                    let branch = |holds: bool| usize::from(if holds { op.jt } else { op.jf });
                    match op.code {
                        LD if op.k == OFFSET_ARCH => accumulator = arch.audit(),
                        LD if op.k == OFFSET_NR => accumulator = number,
                        JA => at += op.k as usize,
                        JEQ => at += branch(accumulator == op.k),
                        JGT => at += branch(accumulator > op.k),
                        JGE => at += branch(accumulator >= op.k),
                        code => panic!("{number} meets instruction {code:#x}"),
                    }
                }
            }
        }
    }
}

#[test]
fn seccomp_long_jumps_go_through_trampolines() {
    // Real programs are too short to need them; a filter with many rows of one call is not.
    use super::table::{Rule, Test, When};
    const TESTS: &[Test] = &[Test { arg: 0, mask: 0xFF, values: &[1, 2, 3, 4, 5], member: true }];
    let rule = Rule {
        call: "x",
        x86_64: Some(7),
        aarch64: Some(7),
        when: When::Always,
        tests: TESTS,
        condition: "",
        action: Action::Errno(1),
        reason: "",
    };
    let rules: Vec<Rule> = (0..240)
        .map(|index| Rule {
            x86_64: Some(7 + index / 120 * 10),
            action: Action::Errno(index as u16 + 1),
            tests: Box::leak(Box::new([Test {
                values: Box::leak(Box::new([index, index + 1000])),
                mask: u32::MAX,
                ..TESTS[0]
            }])),
            ..rule
        })
        .collect();
    let program = compile::compile_rules(Arch::X86_64, Options::default(), &rules);
    assert!(program.len() > 400 && program.iter().any(|op| op.code == JA));
    for (index, rule) in rules.iter().enumerate() {
        for value in [index as u64, index as u64 + 1000, index as u64 + (1 << 32)] {
            let args = [value, 0, 0, 0, 0, 0];
            let (code, _) = interpret(&program, Arch::X86_64.audit(), rule.x86_64.unwrap(), &args);
            assert_eq!(code, rule.action.code(), "{index}");
        }
    }
    for number in [6, 7, 8, 17, 18] {
        let (code, _) = interpret(&program, Arch::X86_64.audit(), number, &[999, 0, 0, 0, 0, 0]);
        assert_eq!(code, Action::Allow.code(), "{number}");
    }
}

#[test]
fn seccomp_high_bits_of_an_argument_do_not_matter() {
    for arch in Arch::ALL {
        let options = Options::default();
        let number =
            |call: &str| RULES.iter().find(|rule| rule.call == call).unwrap().number(arch).unwrap();
        let verdict = |call: &str, args: [u64; 6]| {
            let (code, _) = interpret(&compile(arch, &options), arch.audit(), number(call), &args);
            code
        };
        let eperm = Action::Errno(EPERM).code();
        let allow = Action::Allow.code();
        for high in [0, 1u64 << 32, 0xDEAD_BEEF << 32] {
            assert_eq!(verdict("ioctl", [0, high | 0x5412, 0, 0, 0, 0]), eperm);
            assert_eq!(verdict("ioctl", [0, high | 0x541C, 0, 0, 0, 0]), eperm);
            assert_eq!(verdict("ioctl", [0, high | 0x5401, 0, 0, 0, 0]), allow);
            assert_eq!(verdict("unshare", [high | 0x1000_0000, 0, 0, 0, 0, 0]), eperm);
            assert_eq!(verdict("clone", [high | 0x1000_0011, 0, 0, 0, 0, 0]), eperm);
            assert_eq!(verdict("socket", [high | 2, high | 3, 0, 0, 0, 0]), eperm);
            assert_eq!(verdict("socket", [high | 2, high | 1, 0, 0, 0, 0]), allow);
        }
    }
}

#[test]
fn seccomp_everyday_calls_pass_by_default() {
    let (tcp, udp) = (6, 17);
    let passes = |call: &str, args: [u64; 6]| {
        for arch in Arch::ALL {
            let number = RULES.iter().find(|rule| rule.call == call).unwrap().number(arch).unwrap();
            let action = evaluate(arch, &Options::default(), arch.audit(), number, &args);
            assert_eq!(action, Action::Allow, "{call} {args:x?}");
        }
    };
    let (cloexec, nonblock) = (0o2000000, 0o4000);
    passes("clone", [0x003D_0F00, 0, 0, 0, 0, 0]); // pthread_create
    passes("clone", [0x0120_0011, 0, 0, 0, 0, 0]); // fork
    passes("clone", [0x4111, 0, 0, 0, 0, 0]); // posix_spawn
    passes("unshare", [0x600, 0, 0, 0, 0, 0]); // files and working directory
    passes("personality", [0, 0, 0, 0, 0, 0]);
    passes("personality", [0xFFFF_FFFF, 0, 0, 0, 0, 0]);
    passes("personality", [0x4_0000, 0, 0, 0, 0, 0]); // gdb, setarch -R
    passes("ptrace", [0, 0, 0, 0, 0, 0]);
    passes("socket", [1, 1 | cloexec, 0, 0, 0, 0]);
    passes("socket", [1, 2, 0, 0, 0, 0]);
    passes("socket", [2, 1 | cloexec | nonblock, tcp, 0, 0, 0]);
    passes("socket", [2, 2 | cloexec, udp, 0, 0, 0]);
    passes("socket", [10, 1, 0, 0, 0, 0]);
    passes("socket", [2, 2, 1, 0, 0, 0]); // ping
    passes("socket", [16, 3 | cloexec, 0, 0, 0, 0]); // getifaddrs
    passes("socketpair", [1, 1 | cloexec, 0, 0, 0, 0]);
    passes("ioctl", [0, 0x5413, 0, 0, 0, 0]); // window size
    passes("ioctl", [0, 0x540E, 0, 0, 0, 0]); // controlling terminal
}

#[test]
fn seccomp_numbers_match_libc() {
    macro_rules! numbers {
        ($($call:ident)*) => { vec![$((&stringify!($call)[4..], libc::$call)),*] };
    }
    let mut known = numbers![
        SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_unshare SYS_clone SYS_clone3
        SYS_setns SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_open_tree SYS_move_mount
        SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_mount_setattr SYS_open_by_handle_at
        SYS_fanotify_init SYS_ioctl SYS_vhangup SYS_socket SYS_socketpair SYS_ptrace
        SYS_process_vm_readv SYS_process_vm_writev SYS_process_madvise SYS_pidfd_getfd SYS_kcmp
        SYS_prlimit64 SYS_setpriority SYS_ioprio_set SYS_bpf SYS_perf_event_open SYS_userfaultfd
        SYS_add_key SYS_request_key SYS_keyctl SYS_personality SYS_lookup_dcookie
        SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load
        SYS_reboot SYS_swapon SYS_swapoff SYS_syslog SYS_acct SYS_quotactl SYS_quotactl_fd
        SYS_settimeofday SYS_clock_settime SYS_sethostname SYS_setdomainname SYS_fchown SYS_fchownat
        SYS_fallocate
    ];
    #[cfg(target_arch = "x86_64")]
    known.extend(numbers![
        SYS_modify_ldt SYS_uselib SYS_iopl SYS_ioperm SYS_chown SYS_lchown
    ]);
    #[cfg(target_arch = "x86_64")]
    known.extend([("create_module", 174), ("get_kernel_syms", 177), ("query_module", 178)]);
    // Newer than libc's tables, as those above are too old for them.
    known.push(("open_tree_attr", 467));
    let arch = native().expect("a table for this machine");
    let mut checked = HashSet::new();
    for rule in RULES {
        let expected = known.iter().find(|(name, _)| *name == rule.call);
        let expected = expected.map(|&(_, number)| number as u32);
        assert_eq!(rule.number(arch), expected, "{}", rule.call);
        checked.insert(rule.call);
    }
    assert!(known.iter().all(|(name, _)| checked.contains(name)));
    // Numbers are shared from 424 on.
    for rule in RULES {
        if rule.x86_64.max(rule.aarch64) >= Some(424) {
            assert_eq!(rule.x86_64, rule.aarch64, "{}", rule.call);
        }
    }
}

/// The numbers of both architectures against a list taken from the kernel's own headers
/// (`asm/unistd_64.h` for x86_64, `asm-generic/unistd.h` for aarch64).
#[test]
fn seccomp_numbers_match_the_kernel_headers() {
    let listed = include_str!("numbers.txt");
    let mut rows: Vec<String> = RULES
        .iter()
        .map(|rule| {
            let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
            format!("{} {} {}", rule.call, number(rule.x86_64), number(rule.aarch64))
        })
        .collect();
    rows.sort();
    rows.dedup();
    let mut expected: Vec<&str> =
        listed.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    expected.sort_unstable();
    assert_eq!(rows, expected);
}

/// The table as documentation shows it. After a change on purpose, run with `UPDATE_GOLDEN=1`.
#[test]
fn seccomp_table_is_as_documented() {
    let mut text = String::new();
    let strict = Options {
        ptrace: false,
        io_uring: false,
        nested_namespaces: false,
        inet: false,
        fake_chown: true,
        unix: false,
        reserve: false,
    };
    for (title, options) in [("default", Options::default()), ("everything refused", strict)] {
        let _ = writeln!(text, "[{title}]");
        for row in table(&options) {
            assert!(!row.reason.is_empty());
            let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
            let condition = if row.condition.is_empty() {
                String::new()
            } else {
                format!(" if {}", row.condition)
            };
            let _ = writeln!(
                text,
                "{} ({}/{}){condition}: {}. {}",
                row.call,
                number(row.x86_64),
                number(row.aarch64),
                row.action,
                row.reason
            );
        }
        text.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/table.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap(), "run with UPDATE_GOLDEN=1");
    assert!(text.contains(&format!("number is above {NEWEST}")));
}

// From here on against the kernel. A filter cannot be taken off, so each is installed in a child.

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// What the probe returned: not negative, or a negated errno.
    Returned(i64),
    /// The signal that ended the child.
    Killed(i32),
}

/// Runs `probe` in a forked child, behind `program` if there is one. `probe` must not allocate.
fn in_child(program: Option<&[SockFilter]>, probe: impl FnOnce() -> i64) -> Outcome {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the child makes system calls only, until it leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let ready = match program {
            Some(program) => set_no_new_privs().and_then(|()| install(program, Flags::SPEC_ALLOW)),
            None => Ok(()),
        };
        let result = match ready {
            Ok(()) => probe(),
            Err(_) => i64::MIN,
        };
        let _ = rustix::io::write(&writer, &result.to_ne_bytes());
        // SAFETY: leaves the process without running anything of the parent's.
        unsafe { libc::_exit(0) }
    }
    drop(writer);
    let mut bytes = [0; 8];
    let got = std::io::Read::read_exact(&mut reader, &mut bytes);
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is a local integer.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if libc::WIFSIGNALED(status) {
        return Outcome::Killed(libc::WTERMSIG(status));
    }
    got.unwrap();
    let result = i64::from_ne_bytes(bytes);
    assert_ne!(result, i64::MIN, "the filter could not be installed");
    Outcome::Returned(result)
}

fn call(number: i64, args: [u64; 4]) -> i64 {
    // SAFETY: the tests pass null or integers where the kernel might write.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3]) };
    if result >= 0 {
        return result;
    }
    // SAFETY: errno is a thread-local integer that always exists.
    -i64::from(unsafe { *libc::__errno_location() })
}

fn native_program(options: Options) -> Vec<SockFilter> {
    compile(native().expect("a table for this machine"), &options)
}

#[test]
fn seccomp_kernel_refuses_what_the_table_refuses() {
    let program = native_program(Options::default());
    // In the control the same call must do something else, or the test shows nothing.
    let probes: &[(&str, i64, [u64; 4], i32)] = &[
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0], libc::ENOSYS),
        ("unshare user", libc::SYS_unshare, [0x1000_0000, 0, 0, 0], libc::EPERM),
        ("unshare high bits", libc::SYS_unshare, [0x1_1000_0000, 0, 0, 0], libc::EPERM),
        ("clone3", libc::SYS_clone3, [0, 0, 0, 0], libc::ENOSYS),
        ("TIOCSTI", libc::SYS_ioctl, [u64::MAX, 0x5412, 0, 0], libc::EPERM),
        ("TIOCSTI high bits", libc::SYS_ioctl, [u64::MAX, 0x1_0000_5412, 0, 0], libc::EPERM),
        ("TIOCLINUX", libc::SYS_ioctl, [u64::MAX, 0x541C, 0, 0], libc::EPERM),
        ("keyctl", libc::SYS_keyctl, [u64::MAX, 0, 0, 0], libc::EPERM),
        ("open_tree", libc::SYS_open_tree, [u64::MAX, 0, 0, 0], libc::EPERM),
        ("setns", libc::SYS_setns, [u64::MAX, 0, 0, 0], libc::EPERM),
        ("personality", libc::SYS_personality, [0x0040_0000, 0, 0, 0], libc::EPERM),
        ("packet socket", libc::SYS_socket, [17, 2, 0, 0], libc::EAFNOSUPPORT),
        ("vsock socket", libc::SYS_socket, [40, 1, 0, 0], libc::EAFNOSUPPORT),
        ("invalid family", libc::SYS_socket, [9999, 1, 0, 0], libc::EAFNOSUPPORT),
        ("raw socket", libc::SYS_socket, [2, 3, 9999, 0], libc::EPERM),
        ("netlink audit", libc::SYS_socket, [16, 3, 9, 0], libc::EPROTONOSUPPORT),
        ("mptcp", libc::SYS_socket, [2, 1, 262, 0], libc::EPROTONOSUPPORT),
        ("a call of the future", i64::from(NEWEST) + 200, [0; 4], libc::ENOSYS),
    ];
    for &(name, number, args, errno) in probes {
        let confined = in_child(Some(&program), || call(number, args));
        assert_eq!(confined, Outcome::Returned(-i64::from(errno)), "{name}");
        let control = in_child(None, || call(number, args));
        let same_anyway = control == confined;
        println!("{name}: {confined:?}, without the filter {control:?}");
        // A kernel without the family, protocol or call refuses in the same way.
        let may_be_absent =
            ["a call of the future", "invalid family", "netlink audit", "mptcp", "vsock socket"]
                .contains(&name);
        // An ordinary user is refused raw and packet sockets, and in some places namespaces.
        let may_lack_right = !rustix::process::geteuid().is_root();
        assert!(!same_anyway || may_be_absent || may_lack_right, "{name} proves nothing");
    }
}

#[test]
fn seccomp_kernel_lets_pass_what_tools_need() {
    let program = native_program(Options::default());
    let behind = |probe: fn() -> i64| in_child(Some(&program), probe);
    assert_eq!(behind(|| call(libc::SYS_unshare, [0x600, 0, 0, 0])), Outcome::Returned(0));
    assert_eq!(
        behind(|| call(libc::SYS_personality, [0x4_0000, 0, 0, 0]).signum()),
        Outcome::Returned(0)
    );
    for domain in [1, 2, 10] {
        let made = in_child(Some(&program), || {
            call(libc::SYS_socket, [domain, 1 | 0o2000000, 0, 0]).signum()
        });
        // Hosts without IPv6 answer EAFNOSUPPORT of their own accord.
        let control =
            in_child(None, || call(libc::SYS_socket, [domain, 1 | 0o2000000, 0, 0]).signum());
        assert_eq!(made, control, "{domain}");
    }
    // A filter of its own, as browsers and other sandboxes bring.
    let nested = native_program(Options { ptrace: false, ..Options::default() });
    let twice = in_child(Some(&program), || match install(&nested, Flags::NONE) {
        Ok(()) => call(libc::SYS_getpid, [0; 4]).signum(),
        Err(errno) => -i64::from(errno.raw_os_error()),
    });
    assert_eq!(twice, Outcome::Returned(1));
}

#[test]
fn seccomp_kernel_pretends_chown() {
    let chown = || call(libc::SYS_fchownat, [u64::MAX, 0, 12345, 12345]);
    let pretending = native_program(Options { fake_chown: true, ..Options::default() });
    assert_eq!(in_child(Some(&pretending), chown), Outcome::Returned(0));
    let plain = native_program(Options::default());
    let error = in_child(Some(&plain), chown);
    assert!(matches!(error, Outcome::Returned(errno) if errno < 0), "{error:?}");
}

#[test]
fn seccomp_kernel_refuses_to_reserve_space_on_request() {
    let bounded = native_program(Options { reserve: false, ..Options::default() });
    let reserve = |mode: u64| move || call(libc::SYS_fallocate, [u64::MAX, mode, 0, 1 << 40]);
    let refused = Outcome::Returned(-i64::from(libc::EOPNOTSUPP));
    for mode in [0, 1, 0x10, 0x11, 0x20, 0x40] {
        assert_eq!(in_child(Some(&bounded), reserve(mode)), refused, "{mode}");
    }
    // Punching holes frees; and without a quota all pass, as far as the bad descriptor.
    let passed = Outcome::Returned(-i64::from(libc::EBADF));
    assert_eq!(in_child(Some(&bounded), reserve(3)), passed);
    let plain = native_program(Options::default());
    assert_eq!(in_child(Some(&plain), reserve(0)), passed);
}

#[test]
fn seccomp_kernel_refuses_network_and_names_on_request() {
    let closed = native_program(Options { inet: false, unix: false, ..Options::default() });
    let acces = Outcome::Returned(-i64::from(libc::EACCES));
    for domain in [1, 2, 10] {
        let made = in_child(Some(&closed), || call(libc::SYS_socket, [domain, 1, 0, 0]));
        assert_eq!(made, acces, "{domain}");
    }
    let pair = |kind: u64| {
        in_child(Some(&closed), || {
            let mut fds = [0i32; 2];
            call(libc::SYS_socketpair, [1, kind, 0, fds.as_mut_ptr() as u64])
        })
    };
    assert_eq!(pair(1), Outcome::Returned(0));
    assert_eq!(pair(5), Outcome::Returned(0));
    assert_eq!(pair(2), acces);
}

#[test]
fn seccomp_install_says_what_is_wrong() {
    let program = native_program(Options::default());
    assert_eq!(install(&[], Flags::NONE), Err(rustix::io::Errno::INVAL));
    let long = vec![program[0]; MAX_INSTRUCTIONS + 1];
    assert_eq!(install(&long, Flags::NONE), Err(rustix::io::Errno::INVAL));
    if !rustix::process::geteuid().is_root() {
        let bare = in_child(None, || match install(&program, Flags::NONE) {
            Ok(()) => 0,
            Err(errno) => -i64::from(errno.raw_os_error()),
        });
        assert_eq!(bare, Outcome::Returned(-i64::from(libc::EACCES)));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn seccomp_kernel_closes_the_other_entries() {
    let program = native_program(Options::default());
    // The x32 numbering.
    let x32 = || call(i64::from(X32_BIT) + libc::SYS_getpid, [0; 4]);
    assert_eq!(in_child(Some(&program), x32), Outcome::Returned(-i64::from(libc::ENOSYS)));
    // The 32-bit entry, where 20 is getpid.
    let i386 = || {
        let result: u64;
        // SAFETY: getpid through the 32-bit gate; it takes no pointer. The gate may clobber r8 to r11.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("rax") 20u64 => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result as i64
    };
    assert_eq!(in_child(Some(&program), i386), Outcome::Killed(libc::SIGSYS));
    let control = in_child(None, i386);
    println!("int 0x80 without the filter: {control:?}");
    // Kernels without 32-bit support end it by another signal.
    assert_ne!(control, Outcome::Killed(libc::SIGSYS));
}

/// The filter as a list of comparisons, for the measurement only.
fn linear(arch: Arch, options: Options) -> Vec<SockFilter> {
    let op = |code, jt, jf, k| SockFilter { code, jt, jf, k };
    let mut out = vec![
        op(LD, 0, 0, OFFSET_ARCH),
        op(JEQ, 1, 0, arch.audit()),
        op(RET, 0, 0, Action::Kill.code()),
        op(LD, 0, 0, OFFSET_NR),
    ];
    for rule in RULES.iter().filter(|rule| rule.when.holds(&options) && rule.tests.is_empty()) {
        if let Some(number) = rule.number(arch) {
            out.push(op(JEQ, 0, 1, number));
            out.push(op(RET, 0, 0, rule.action.code()));
        }
    }
    out.push(op(RET, 0, 0, Action::Allow.code()));
    out
}

/// `cargo test --release -p ringfence-sys seccomp_measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn seccomp_measure() {
    let arch = native().expect("a table for this machine");
    let options = Options::default();
    let mut times: Vec<Duration> = (0..2000)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(compile(arch, std::hint::black_box(&options)));
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("compile: {:?} / {:?}", times[0], times[1000]);
    let tree = compile(arch, &options);
    let list = linear(arch, options);
    let nothing = vec![SockFilter { code: RET, jt: 0, jf: 0, k: Action::Allow.code() }];
    let programs = [("tree", &tree), ("list", &list), ("nothing", &nothing)];
    for (name, program) in programs.into_iter().chain(programs) {
        let mut times: Vec<i64> = (0..300)
            .map(|_| {
                let took = in_child(None, || {
                    let _ = set_no_new_privs();
                    let start = Instant::now();
                    let done = install(program, Flags::SPEC_ALLOW);
                    let took = start.elapsed().as_nanos() as i64;
                    if done.is_ok() { took } else { -1 }
                });
                let Outcome::Returned(took) = took else { panic!("{took:?}") };
                assert!(took >= 0);
                took
            })
            .collect();
        times.sort_unstable();
        println!(
            "install {name} of {}: {} / {} ns",
            program.len(),
            times[0],
            times[times.len() / 2]
        );
    }
}
