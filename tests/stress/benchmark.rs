//! Lives of sandboxes one by one, commands in one, and the same with many at a time:
//! `cargo test --test benchmark_test -- --nocapture --ignored`, with `BENCH_SANDBOXES` (10),
//! `BENCH_ITERATIONS` (10) and `BENCH_MAX_CONCURRENT` (50). A little of it runs with every other test.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // tests
#![allow(clippy::cast_precision_loss)] // figures for people

mod harness;

use std::path::Path;
use std::time::Instant;

use harness::{World, exec, groups, life, many, number, report, results, write};
use ringfence_bench::model::{Better, Case, Group};
use ringfence_bench::text;

fn benchmark(sandboxes: usize, iterations: usize, at_once: usize, dir: &Path) {
    let world = World::start();
    let mut client = world.client();
    // One after the other.
    let lives: Vec<_> = (0..sandboxes).map(|_| life(&world, &mut client).unwrap()).collect();
    let mut all = groups("benchmark", &lives);
    let group = |name: &str, title: &str, what: &str, samples: Vec<f64>| Group {
        name: format!("benchmark/{name}"),
        title: title.into(),
        unit: "us".into(),
        better: Better::Lower,
        baseline: None,
        cases: vec![Case::of("ringfence", what, samples)],
    };
    // Commands in one sandbox, over one connection, then over many.
    let id = world.create(&mut client).unwrap();
    let timed = |client: &mut _| {
        let start = Instant::now();
        exec(client, &id)?;
        Ok::<_, String>(start.elapsed().as_nanos() as f64 / 1000.0)
    };
    let alone: Vec<f64> = (0..iterations).map(|_| timed(&mut client).unwrap()).collect();
    all.push(group("exec-alone", "exec in a sandbox that is there", "/bin/echo", alone));
    let together = many(&world, iterations * at_once, at_once, |client, _| timed(client));
    let together: Vec<f64> = together.into_iter().map(Result::unwrap).collect();
    all.push(group(
        "exec-together",
        &format!("the same, {at_once} at a time"),
        "/bin/echo",
        together,
    ));
    let command = format!(
        "BENCH_SANDBOXES={sandboxes} BENCH_ITERATIONS={iterations} BENCH_MAX_CONCURRENT={at_once} benchmark_test"
    );
    let report = report("benchmark", &command, iterations, all);
    let file = write(dir, &report, &lives);
    println!("{}\n{}", text::tables(&report), file.display());
}

#[test]
fn a_little_of_it_works() {
    let dir = tempfile::Builder::new().prefix("ringfence-stress-results").tempdir().unwrap();
    benchmark(2, 2, 2, dir.path());
}

/// By request alone, since it takes all of the machine.
#[test]
#[ignore = "takes all of the machine: --ignored"]
fn as_much_as_asked_for() {
    let at_once = number("BENCH_MAX_CONCURRENT", 50);
    benchmark(number("BENCH_SANDBOXES", 10), number("BENCH_ITERATIONS", 10), at_once, &results());
}
