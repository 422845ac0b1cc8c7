//! A run is transparent: output, exit codes, signals, pipes, environment.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{Ran, as_each_user};

#[test]
fn output_and_exit_codes_are_the_commands_own() {
    as_each_user(|p| {
        let ran = p.shell(&[], "echo out; echo err >&2; exit 7").failed_with(7);
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
        // Beside a filter, too.
        let ran = p.shell(&["--allow-host", "a.example"], "echo out; echo err >&2; exit 7");
        let ran = ran.failed_with(7);
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("out\n", "err\n"));
        p.shell(&[], "kill -TERM $$").failed_with(128 + 15);
        p.shell(&[], "kill -SEGV $$").failed_with(128 + 11);
        let ran = Ran::of(&mut p.ringfence(["--", "no-such-program"])).failed_with(127);
        assert!(ran.err.contains("not found"), "{ran:?}");
        p.write("plain.txt", "not a program");
        Ran::of(&mut p.ringfence(["--", "./plain.txt"])).failed_with(126);
    });
}

#[test]
fn without_a_verb_the_flags_of_run_apply() {
    as_each_user(|p| {
        let ran = Ran::of(&mut p.ringfence(["-c", "echo $0 $((1 + 1))"])).ok();
        assert_eq!(ran.out, "/bin/sh 2\n");
        let ran = Ran::of(&mut p.ringfence(["--", "echo", "--", "-s"])).ok();
        assert_eq!(ran.out, "-- -s\n");
    });
}

#[test]
fn stdin_and_pipes_pass_through() {
    as_each_user(|p| {
        let mut child = p
            .ringfence(["--", "wc", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let megabyte = vec![b'x'; 1 << 20];
        child.stdin.take().unwrap().write_all(&megabyte).unwrap();
        let ran = Ran::from(child.wait_with_output().unwrap()).ok();
        assert_eq!(ran.out.trim(), "1048576");
    });
}

#[test]
fn files_come_out_owned_by_the_caller() {
    use std::os::unix::fs::MetadataExt;
    as_each_user(|p| {
        p.shell(&[], "mkdir d && echo x > d/f").ok();
        let meta = std::fs::metadata(p.workspace().join("d/f")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), p.ids());
    });
}

/// Of a binary that is linked statically a library left shared shows only at the first call of it.
#[test]
fn what_nothing_would_load_is_not_needed() {
    const DYNAMIC: u64 = 2;
    const INTERPRETER: u64 = 3;
    const NEEDED: u64 = 1;
    let elf = std::fs::read(crate::harness::binary()).unwrap();
    let number = |at: u64, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&elf[at as usize..at as usize + size]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64 bits, little endian");
    let segments = |wanted: u64| {
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        let all = (0..count).map(move |n| table + n * size);
        all.filter(move |at| number(*at, 4) == wanted)
    };
    if segments(INTERPRETER).next().is_some() {
        println!("skipped: this binary is linked dynamically");
        return;
    }
    for segment in segments(DYNAMIC) {
        let (from, length) = (number(segment + 8, 8), number(segment + 32, 8));
        let tags = (from..from + length).step_by(16).map(|at| number(at, 8));
        let needed = tags.take_while(|tag| *tag != 0).filter(|tag| *tag == NEEDED).count();
        assert_eq!(needed, 0, "the binary needs shared libraries, and nobody loads them");
    }
}
