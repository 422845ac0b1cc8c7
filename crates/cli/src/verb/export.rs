//! `ringfence export`: a layer as the layer of an image.

use crate::exit::ExitCode;
use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use ringfence_layers::pack::{self, Exported, Format};

use super::history::store;
use crate::help;
use crate::output::{self, printable};

pub fn command() -> Command {
    Command::new("export")
        .about("Write a layer to a file: a layer of an OCI image, as tar.zst")
        .arg(Arg::new("name").value_name("LAYER").required(true).help("A layer of `ringfence layers`"))
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .required(true)
                .value_parser(clap::value_parser!(OsString))
                .help("Where to; - is the standard output"),
        )
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(["tar", "tar.zst"])
                .help("Default: tar for FILE.tar, else tar.zst"),
        )
        .arg(
            Arg::new("snapshot")
                .long("snapshot")
                .value_name("SNAPSHOT")
                .help("What it held at this snapshot instead of what it holds now"),
        )
        .after_help("The same layer always gives the same bytes. What was deleted is a whiteout (.wh.NAME). Where a layer\nlies over several directories, they are numbered, and ringfence.json says which they were.\n\nExamples:\n  ringfence export work work.tar.zst\n  ringfence export work - --format tar | tar -tv")
}

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("export") else { return output::fail("not export") };
    run(m).unwrap_or_else(output::fail)
}

fn run(m: &ArgMatches) -> Result<ExitCode, String> {
    let name = m.get_one::<String>("name").map_or("", String::as_str);
    let file = m.get_one::<OsString>("file").map(PathBuf::from).unwrap_or_default();
    let snapshot = m.get_one::<String>("snapshot").map(String::as_str);
    let plain = file.extension().is_some_and(|e| e == "tar");
    let format = match m.get_one::<String>("format").map(String::as_str) {
        Some("tar") => Format::Tar,
        None if plain => Format::Tar,
        _ => Format::TarZstd,
    };
    let store = store()?;
    let done = if file.as_os_str() == "-" {
        let out = std::io::stdout();
        if out.is_terminal() {
            return Err("an archive is not for a terminal; name a file, or pipe it".into());
        }
        pack::write_layer(&store, name, snapshot, out.lock(), format).map_err(|e| e.to_string())?
    } else {
        // Whole, or not there.
        let draft = draft_of(&file)?;
        let cannot = |e: std::io::Error| format!("cannot write {}: {e}", printable(&file));
        let out = File::create_new(&draft).map_err(cannot)?;
        let written = pack::write_layer(&store, name, snapshot, &out, format)
            .map_err(|e| e.to_string())
            .and_then(|done| {
                out.sync_all().and_then(|()| std::fs::rename(&draft, &file)).map_err(cannot)?;
                Ok(done)
            });
        if written.is_err() {
            let _ = std::fs::remove_file(&draft);
        }
        written?
    };
    report(&done);
    Ok(ExitCode::SUCCESS)
}

fn draft_of(file: &Path) -> Result<PathBuf, String> {
    let name = file.file_name().ok_or("name a file to write to")?;
    let mut draft = OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}", std::process::id()));
    Ok(file.with_file_name(draft))
}

fn report(done: &Exported) {
    for path in &done.skipped {
        output::say(format_args!("left out, no archive holds it: {}", printable(path)));
    }
    let _ = std::io::stdout().flush();
}
