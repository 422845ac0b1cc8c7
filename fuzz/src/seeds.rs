//! Writes the seeds: `corpus/TARGET/seed-N` below the current directory.

use std::{fs, io};

fn main() -> io::Result<()> {
    for target in ["dns", "socks", "http", "client_hello", "host_name"] {
        let folder = format!("corpus/{target}");
        fs::create_dir_all(&folder)?;
        for (n, seed) in ringfence_proxy::fuzzing::seeds(target).iter().enumerate() {
            fs::write(format!("{folder}/seed-{n}"), seed)?;
        }
    }
    Ok(())
}
