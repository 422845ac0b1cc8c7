//! How long the list of changes takes: 1,000 changed files of 50,000.
//!
//! `cargo run --release -p ringfence-layers --example diff_time [DIRECTORY]`

use std::path::PathBuf;
use std::time::Instant;

use ringfence_layers::{Outcome, Root, Stamp, Store, diff, review::review};

const FILES: usize = 50_000;
const CHANGED: usize = 1_000;
const PER_DIRECTORY: usize = 50;

/// Time of a processor: of an hour in which others use it too, the clock says little.
fn processor() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(base)?;
    let root = std::fs::canonicalize(dir.path())?.join("tree");
    let name = |n: usize| format!("d{}/f{}", n / PER_DIRECTORY, n % PER_DIRECTORY);
    for n in 0..FILES {
        if n % PER_DIRECTORY == 0 {
            std::fs::create_dir_all(root.join(name(n)).with_file_name(""))?;
        }
        std::fs::write(root.join(name(n)), format!("{n}\n").repeat(200))?;
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    let store = Store::open(&dir.path().join("state"))?;
    let start = Instant::now();
    let session = store.begin("l", &[Root::new(&root)], Stamp::now())?;
    let begun = start.elapsed();
    let upper = session.mounts()[0].upper.clone();
    for n in (0..FILES).step_by(FILES / CHANGED) {
        let path = upper.join(name(n));
        std::fs::create_dir_all(path.with_file_name(""))?;
        // Of the same size: only a comparison of the content shows it.
        std::fs::write(path, format!("{n}\n").repeat(200).replacen('\n', " ", 1))?;
    }
    let start = Instant::now();
    session.finish(&Outcome::default())?;
    println!("begin {begun:?}, finish {:?}", start.elapsed());
    for _ in 0..5 {
        let (start, used) = (Instant::now(), processor());
        let review = review(&store.layer("l")?, None, &[])?;
        let (names, used) = (start.elapsed(), processor().saturating_sub(used));
        let items: Vec<_> = review.items.iter().collect();
        let patch = diff::patch(&review, &items, false)?;
        println!(
            "{} changes in {names:?} ({used:?} of a processor), patch of {} bytes in {:?}",
            items.len(),
            patch.len(),
            start.elapsed().saturating_sub(names)
        );
    }
    Ok(())
}
