//! What `ringfence create` takes to make a sandbox from a codebase, with rules and a layer.

use clap::{Arg, ArgAction, ArgMatches};
use ringfence_api::codebases::{FilePermission, FileRule, Layer, PatternType};

use crate::output::printable;

pub fn flags() -> [Arg; 3] {
    [
        Arg::new("codebase")
            .long("codebase")
            .value_name("NAME")
            .help("Work in a codebase, seen at /workspace; what is written goes to a layer"),
        Arg::new("layer")
            .long("layer")
            .value_name("NAME")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("")
            .help("Keep what is written apart, in a layer that goes with the sandbox; with =NAME in one that stays"),
        Arg::new("rule")
            .long("rule")
            .value_name("PERMISSION:PATTERN[:PRIORITY]")
            .action(ArgAction::Append)
            .help("none, view, read or write for names of the workspace; the highest priority decides; repeatable"),
    ]
}

pub fn layer(m: &ArgMatches) -> Option<Layer> {
    m.get_one::<String>("layer").map(|name| match name.as_str() {
        "" => Layer::Own(true),
        name => Layer::Named(name.to_owned()),
    })
}

pub fn rules(m: &ArgMatches) -> Result<Vec<FileRule>, String> {
    m.get_many::<String>("rule").into_iter().flatten().map(|text| rule(text)).collect()
}

fn rule(text: &str) -> Result<FileRule, String> {
    let wrong = || format!("--rule: {} is not PERMISSION:PATTERN[:PRIORITY]", printable(text));
    let (permission, rest) = text.split_once(':').ok_or_else(wrong)?;
    let permission = match permission {
        "none" => FilePermission::None,
        "view" => FilePermission::View,
        "read" => FilePermission::Read,
        "write" => FilePermission::Write,
        _ => return Err(wrong()),
    };
    // A colon may be part of a pattern.
    let (pattern, priority) = match rest.rsplit_once(':').map(|(p, n)| (p, n.parse())) {
        Some((pattern, Ok(priority))) => (pattern, priority),
        _ => (rest, 0),
    };
    if pattern.is_empty() {
        return Err(wrong());
    }
    Ok(FileRule { pattern: pattern.to_owned(), permission, priority, kind: PatternType::Glob })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_a_permission_a_pattern_and_perhaps_a_priority() {
        let parsed = rule("none:**/.env*:100").unwrap();
        assert_eq!((parsed.pattern.as_str(), parsed.priority), ("**/.env*", 100));
        let parsed = rule("read:/a:b").unwrap();
        assert_eq!((parsed.pattern.as_str(), parsed.priority), ("/a:b", 0));
        for wrong in ["all:/x", "read", "read:", "read::5"] {
            rule(wrong).unwrap_err();
        }
    }
}
