//! Writes the seeds: `corpus/TARGET/seed-N` below the current directory.

use std::{fs, io};

fn main() -> io::Result<()> {
    for target in ["tar", "archive"] {
        write(target, &ringfence_layers::fuzzing::seeds())?;
    }
    for target in ["dns", "socks", "http", "client_hello", "host_name"] {
        write(target, &ringfence_proxy::fuzzing::seeds(target))?;
    }
    write("resident", &ringfence_jail::fuzzing::seeds())?;
    for target in ["spawner", "requests", "offsets"] {
        write(target, &ringfence_supervisor::fuzzing::seeds(target))?;
    }
    write("unpack", &ringfence_layers::fuzzing::seeds())?;
    for target in ["queries", "bodies"] {
        write(target, &ringfence_daemon::fuzzing::seeds(target))?;
    }
    Ok(())
}

fn write(target: &str, seeds: &[Vec<u8>]) -> io::Result<()> {
    let folder = format!("corpus/{target}");
    fs::create_dir_all(&folder)?;
    for (n, seed) in seeds.iter().enumerate() {
        fs::write(format!("{folder}/seed-{n}"), seed)?;
    }
    Ok(())
}
