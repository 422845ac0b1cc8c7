//! `ringfence import`: a layer of the layer of an image, whoever made it.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ringfence_layers::pack::{self, Limits};
use ringfence_layers::{Root, Stamp};
use ringfence_policy::Bytes;

use super::history::store;
use crate::help;
use crate::output::{self, printable};
use crate::progress::{self, Bar};

/// Content for each byte that may be written: holes cost nothing but time.
const HOLES: u64 = 4;

pub fn command() -> Command {
    Command::new("import")
        .about("Make a layer of a file that `export` wrote, or of a layer of an OCI image")
        .arg(Arg::new("name").value_name("LAYER").required(true).help("The name of the new layer"))
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .required(true)
                .value_parser(clap::value_parser!(OsString))
                .help("tar or tar.zst; - is the standard input"),
        )
        .arg(
            Arg::new("root")
                .long("root")
                .value_name("DIR")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(OsString))
                .help("The directory it lies over (default: the current one); repeat where there are several"),
        )
        .arg(
            Arg::new("max-size")
                .long("max-size")
                .value_name("SIZE")
                .help("Refuse more than this on the disk (default: 64g)"),
        )
        .after_help("The file may be anybody's: nothing of it gets out of the layer, devices and names that lead\nelsewhere refuse it, setuid and attributes that give rights are left out. Nothing reaches the real\nfiles before `ringfence apply`.\n\nExamples:\n  ringfence import work work.tar.zst\n  ringfence import work work.tar.zst --root ~/project --root ~/.npm")
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("import") else { return output::fail("not import") };
    run(m).unwrap_or_else(output::fail)
}

fn run(m: &ArgMatches) -> Result<ExitCode, String> {
    let name = m.get_one::<String>("name").map_or("", String::as_str);
    let file = m.get_one::<OsString>("file").map(PathBuf::from).unwrap_or_default();
    let here = [OsString::from(".")];
    let named: Vec<&OsString> = m.get_many::<OsString>("root").into_iter().flatten().collect();
    let named = if named.is_empty() { here.iter().collect() } else { named };
    let mut roots = Vec::new();
    for root in named {
        let real =
            std::fs::canonicalize(root).map_err(|e| format!("--root {}: {e}", printable(root)))?;
        roots.push(Root::new(real));
    }
    let mut limits = Limits::default();
    if let Some(text) = m.get_one::<String>("max-size") {
        let size = Bytes::parse(text).map_err(|e| format!("--max-size: {e}"))?;
        limits.written = size.0.unwrap_or(u64::MAX);
        limits.content = limits.written.saturating_mul(HOLES);
    }
    let stdin = std::io::stdin();
    let (total, from): (_, Box<dyn Read + Send>) = if file.as_os_str() == "-" {
        (progress::rest_of(&stdin), Box::new(&stdin))
    } else {
        let open = File::open(&file);
        let file = open.map_err(|e| format!("cannot read {}: {e}", printable(&file)))?;
        (progress::rest_of(&file), Box::new(file))
    };
    let bar = Bar::new("imported", total);
    let from = bar.counts(from);
    let done = pack::read_layer(&store()?, name, &roots, from, limits, Stamp::now())
        .map_err(|e| e.to_string())?;
    drop(bar);
    for (n, what) in [
        (done.privileged, "file(s) lost setuid or setgid"),
        (done.owners, "object(s) belong to you instead of their owner"),
        (done.attributes, "extended attribute(s) were left out"),
    ] {
        if n > 0 {
            output::say(format_args!("{n} {what}"));
        }
    }
    Ok(output::print(&format!(
        "layer {name} has what the archive held; see: ringfence diff {name}\n"
    )))
}
