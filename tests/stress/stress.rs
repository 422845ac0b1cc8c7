//! Many sandboxes at a time, from making to removing; every one of them has to succeed:
//! `cargo test --test stress_test -- --nocapture --ignored`, with `STRESS_VM_COUNT` (10) and
//! `STRESS_MAX_CONCURRENT` (50). A few of them run with every other test.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests
#![allow(clippy::cast_precision_loss)] // figures for people

mod harness;

use std::path::Path;
use std::time::Instant;

use harness::{World, groups, life, many, number, report, results, write};
use ringfence_bench::model::{Better, Case, Group};
use ringfence_bench::text;

fn stress(count: usize, at_once: usize, dir: &Path) {
    let world = World::start();
    let start = Instant::now();
    let done = many(&world, count, at_once, |client, _| life(&world, client));
    let took = start.elapsed();
    let (lives, failed): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
    let lives: Vec<_> = lives.into_iter().flatten().collect();
    let mut all = groups("stress", &lives);
    let rate = lives.len() as f64 / took.as_secs_f64();
    all.push(Group {
        name: "stress/rate".into(),
        title: "whole lives a second".into(),
        unit: "/s".into(),
        better: Better::Higher,
        baseline: None,
        cases: vec![Case::of("ringfence", "", vec![rate])],
    });
    let command = format!("STRESS_VM_COUNT={count} STRESS_MAX_CONCURRENT={at_once} stress_test");
    let report = report("stress", &command, at_once, all);
    let file = write(dir, &report, &lives);
    println!("{}", text::tables(&report));
    println!("{} of {count} succeeded in {took:.1?}; {}", lives.len(), file.display());
    let failed: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {count} failed: {:?}", failed.len(), failed.first());
    assert_eq!(lives.len(), count);
}

#[test]
fn a_few_sandboxes_at_a_time_live_and_end() {
    let dir = tempfile::Builder::new().prefix("ringfence-stress-results").tempdir().unwrap();
    stress(6, 3, dir.path());
}

/// By request alone, since it takes minutes and all of the machine.
#[test]
#[ignore = "takes all of the machine: --ignored"]
fn as_many_as_asked_for() {
    stress(number("STRESS_VM_COUNT", 10), number("STRESS_MAX_CONCURRENT", 50), &results());
}
