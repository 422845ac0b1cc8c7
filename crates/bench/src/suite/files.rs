//! What work on files, and starting programs, costs inside: the worker takes the time itself, so that starts do not count.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::work::Work;
use super::{Bench, by_peer};
use crate::model::Report;
use crate::runner::{self, Contestant, Sampler, Timed};

/// The hidden verb of the worker.
pub const WORKER: &str = "worker";

const SMALL: usize = 1000;
const LARGE: usize = 64 << 20;
/// Programs that are started.
const CHILDREN: usize = 100;
/// What is read and written at a time.
const PIECE: usize = 256 << 10;

/// What is done: a name of the group, one of the operation, and what it says.
pub const WORKS: [(&str, &str); 6] = [
    ("read-small", "read 1,000 files of 1 KiB"),
    ("read-large", "read a file of 64 MiB"),
    ("write-small", "write 1,000 files of 1 KiB"),
    ("write-large", "write a file of 64 MiB"),
    ("metadata", "stat 1,000 files and list their directory"),
    ("children", "start 100 programs"),
];

const WAYS: [(&str, &[&str]); 4] = [
    ("ringfence", &["run", "--no-config", "--"]),
    ("ringfence development", &["run", "--no-config", "-t", "development", "--"]),
    ("ringfence layer", &["run", "--no-config", "--layer", "bench", "--"]),
    ("ringfence exact", &["run", "--no-config", "--exact", "--"]),
];

/// Does one piece of work in the current directory and says how many microseconds it took.
pub fn worker(name: &str) -> Result<f64, String> {
    let done = || -> std::io::Result<f64> {
        let bytes = vec![7_u8; PIECE];
        let mut room = vec![0_u8; PIECE];
        let start = Instant::now();
        match name {
            "read-small" => {
                for i in 0..SMALL {
                    let _ = File::open(format!("small/f{i}"))?.read(&mut room)?;
                }
            }
            "read-large" => {
                let mut file = File::open("large")?;
                while file.read(&mut room)? > 0 {}
            }
            "write-small" => {
                std::fs::create_dir("new")?;
                for i in 0..SMALL {
                    File::create(format!("new/f{i}"))?.write_all(&bytes[..1024])?;
                }
            }
            "write-large" => {
                let mut file = File::create("written")?;
                for _ in 0..LARGE / PIECE {
                    file.write_all(&bytes)?;
                }
            }
            "metadata" => {
                for entry in std::fs::read_dir("small")? {
                    entry?;
                }
                for i in 0..SMALL {
                    std::fs::metadata(format!("small/f{i}"))?;
                }
            }
            "children" => {
                for _ in 0..CHILDREN {
                    let status = Command::new("/bin/true").status()?;
                    if !status.success() {
                        return Err(std::io::Error::other(format!("/bin/true: {status}")));
                    }
                }
            }
            _ => return Err(std::io::Error::other("no such work")),
        }
        let took = start.elapsed().as_nanos() as f64 / 1000.0;
        for made in ["written", "new"] {
            let _ = if made == "new" {
                std::fs::remove_dir_all(made)
            } else {
                std::fs::remove_file(made)
            };
        }
        Ok(took)
    };
    done().map_err(|e| format!("{name}: {e}"))
}

fn tree(root: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(root.join("small"))?;
    for i in 0..SMALL {
        std::fs::write(root.join(format!("small/f{i}")), [1; 1024])?;
    }
    std::fs::write(root.join("large"), vec![1; LARGE])
}

pub fn part(bench: &mut Bench<'_>, report: &mut Report) -> Result<(), String> {
    let workspace = bench.place.workspace();
    let problem = |e: std::io::Error| format!("{}: {e}", workspace.display());
    let root = workspace.join("files");
    tree(&root).map_err(problem)?;
    // In the workspace, since that is what every sandbox shows.
    let worker = root.join("worker");
    std::fs::copy(bench.place.binary(), &worker).map_err(problem)?;
    for (name, title) in WORKS {
        if !bench.wants(name) {
            continue;
        }
        let argv = [worker.clone().into(), "bench".into(), WORKER.into(), name.into()];
        let work = of(name, title, argv.to_vec());
        let mut cases = vec![bench.place.timed("host", &work, &[])];
        cases.extend(bench.own(&work, &WAYS));
        let place = &bench.place;
        cases.extend(bench.peers.iter_mut().map(|peer| by_peer(place, peer, &work)));
        let contestants = cases.iter().map(|case| Contestant {
            name: case.name.clone(),
            what: case.what(),
            sampler: case.check().map(|()| Box::new(|| inside(case)) as Sampler<'_>),
        });
        let name = format!("files/{name}");
        let group = runner::in_turn(&name, title, "us", contestants.collect(), &bench.plan);
        report.groups.push(group);
    }
    Ok(())
}

fn of(name: &str, title: &str, argv: Vec<OsString>) -> Work {
    let (name, title, dir) = (name.into(), title.into(), "files".into());
    Work { name, title, argv, dir, env: Vec::new(), flags: Vec::new() }
}

/// What the worker says that it took.
fn inside(case: &Timed) -> Result<f64, String> {
    let said = case.writes()?;
    said.trim().parse().map_err(|_| format!("said {:?}", said.trim()))
}
