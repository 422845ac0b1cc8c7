//! `ringfence discard`: throws a layer away, or a part of one.

use crate::exit::ExitCode;
use std::ffi::OsString;

use clap::ArgMatches;
use ringfence_layers::apply;
use serde_json::json;

use super::layers::{meant, place, short, store};
use crate::output;
use crate::{exit, help};

pub fn main(args: &[OsString]) -> ExitCode {
    let matches = match help::matches(args) {
        Ok(m) => m,
        Err(code) => return code,
    };
    let Some(m) = matches.subcommand_matches("discard") else { return output::fail("not discard") };
    let done = if m.get_flag("all") { everything(m) } else { one(m) };
    done.unwrap_or_else(output::fail)
}

fn one(m: &ArgMatches) -> Result<ExitCode, String> {
    if m.get_one::<String>("name").is_none() {
        return Err("name a layer of `ringfence layers`, or say --all".into());
    }
    let (store, name) = meant(m)?;
    let text = |e: ringfence_layers::Error| e.to_string();
    let typed: Vec<&OsString> = m.get_many::<OsString>("paths").into_iter().flatten().collect();
    if typed.is_empty() {
        store.discard(&name).map_err(text)?;
        return Ok(said(m, &[name], &[]));
    }
    let layer = store.layer(&name).map_err(text)?;
    let places = typed.iter().map(|t| place(&layer.record, t)).collect::<Result<Vec<_>, _>>()?;
    let roots: Vec<_> = layer.record.roots.iter().map(|r| r.path.clone()).collect();
    let thrown = apply::discard(&store, &name, &places).map_err(text)?;
    let paths: Vec<_> = thrown.iter().map(|p| p.shown(&roots)).collect();
    Ok(said(m, &[], &paths))
}

fn everything(m: &ArgMatches) -> Result<ExitCode, String> {
    let mut gone = Vec::new();
    let mut worst = ExitCode::SUCCESS;
    if let Some(store) = store()? {
        for name in store.names().map_err(|e| e.to_string())? {
            match store.discard(&name) {
                Ok(()) => gone.push(name),
                Err(e) => {
                    output::say(&e);
                    worst = ExitCode::from(exit::FAILED);
                }
            }
        }
    }
    let printed = said(m, &gone, &[]);
    Ok(if worst == ExitCode::SUCCESS { printed } else { worst })
}

fn said(m: &ArgMatches, layers: &[String], paths: &[std::path::PathBuf]) -> ExitCode {
    if m.get_flag("json") {
        let paths: Vec<_> = paths.iter().map(|p| p.to_string_lossy()).collect();
        return output::print_json(&json!({ "layers": layers, "paths": paths }));
    }
    let text: String = layers
        .iter()
        .map(|name| format!("layer {name} is gone\n"))
        .chain(paths.iter().map(|p| format!("{} is out of the layer\n", short(p))))
        .collect();
    output::print(&text)
}
