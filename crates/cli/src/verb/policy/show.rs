//! `policy show`: every rule with its origin, then the other chapters.

use crate::exit::ExitCode;
use std::fmt::Write as _;

use clap::ArgMatches;
use ringfence_policy::net::Upstream;
use ringfence_policy::{LayerWanted, Network, Policy, Rule, SecretSource, builtin_rule};
use serde_json::{Value, json};

use crate::layers::Layered;
use crate::output::{self, printable};

pub fn main(m: &ArgMatches) -> ExitCode {
    let typed = super::typed(m);
    let layered = match super::layered(&typed) {
        Ok(l) => l,
        Err(e) => return super::refused(&e),
    };
    if m.get_flag("json") {
        return output::print_json(&json(&layered));
    }
    for note in &layered.notes {
        output::say(printable(note));
    }
    output::print(&text(&layered.policy))
}

/// A rule as JSON, the same in `show` and in `explain`.
pub fn rule_json(rule: &Rule) -> Value {
    json!({
        "effect": rule.effect,
        "permission": rule.permission,
        "pattern": rule.written(),
        "kind": rule.kind,
        "priority": rule.priority,
        "id": rule.id,
        "layer": rule.origin.layer,
        "line": rule.origin.line,
        "reason": rule.id.as_deref().and_then(builtin_rule).map(|b| b.reason),
    })
}

fn json(layered: &Layered) -> Value {
    let p = &layered.policy;
    json!({
        "layers": p.layers,
        "read": layered.files.iter().map(|f| f.to_string_lossy()).collect::<Vec<_>>(),
        "files": {
            "rules": p.files.rules.iter().map(rule_json).collect::<Vec<_>>(),
            "guard_git": p.files.guard_git,
            "system": p.files.system,
            "toolchains": p.files.toolchains,
            "tmp_bytes": p.files.tmp_bytes,
            "shm_bytes": p.files.shm_bytes,
            "devices": p.files.devices.iter().map(|d| d.to_string_lossy()).collect::<Vec<_>>(),
        },
        "network": network_json(&p.network),
        "ssh": p.ssh,
        "environment": p.environment,
        "limits": p.limits,
        "processes": p.processes,
        "pty": p.pty,
        "layer": p.layer,
        "accept_missing": p.accept_missing,
        "notes": layered.notes,
    })
}

/// The chapter, without the password of a proxy.
fn network_json(network: &Network) -> Value {
    let mut value = json!(network);
    if let Some(url) = value.pointer_mut("/egress/upstream_proxy")
        && let Some(text) = url.as_str()
    {
        *url = shown(text).into();
    }
    value
}

fn shown(url: &str) -> String {
    Upstream::parse(url).map_or_else(|problem| problem, |u| u.to_string())
}

fn source(from: &SecretSource) -> String {
    match from {
        SecretSource::Env(name) => format!("env:{name}"),
        SecretSource::File(path) => format!("file:{}", path.display()),
    }
}

/// Where writes land, in words.
fn layer(wanted: &LayerWanted) -> String {
    let limit = |what: &str, limit: Option<u64>| match limit {
        None => String::new(),
        Some(u64::MAX) => format!(", {what} unlimited"),
        Some(n) => format!(", {what} {n}"),
    };
    let name = wanted.name.as_deref().unwrap_or("none: writes go to the real files");
    let quota = limit("bytes", wanted.quota) + &limit("inodes", wanted.inodes);
    let checkpoint = if wanted.checkpoint { ", a checkpoint for each run" } else { "" };
    let exact = if wanted.exact { ", exact" } else { "" };
    format!("{name}{quota}{checkpoint}{exact}")
}

fn text(p: &Policy) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        let _ = writeln!(out, "{}", printable(text));
    };
    line("layers, lowest first");
    for layer in &p.layers {
        line(&format!("  {layer}"));
    }
    line("");
    line("files");
    line(&format!("  {:<11} {:<36} {}", "may", "pattern", "from"));
    // People's own rules first; the built-in ones are many and always the same.
    let mut rules: Vec<&Rule> = p.files.rules.iter().collect();
    rules.sort_by_key(|r| r.id.is_some());
    let row =
        |effect: &str, pattern: &str, from: &str| format!("  {effect:<11} {pattern:<36} {from}");
    for rule in rules {
        let id = rule.id.as_deref().map(|id| format!("  [{id}]")).unwrap_or_default();
        let priority = match rule.priority {
            0 => String::new(),
            _ if rule.id.is_some() => String::new(),
            n => format!("  priority {n}"),
        };
        line(&row(
            &format!("{} {}", rule.effect, rule.permission),
            &rule.written(),
            &format!("{}{id}{priority}", rule.origin),
        ));
    }
    if p.files.guard_git {
        line(&row("cap read", "executable git state, each repository", "built-in  [guard.git]"));
    }
    if p.files.system {
        line(&row("grant read", "system directories", "files.system"));
    }
    if p.files.toolchains {
        line(&row("grant read", "toolchains found in home", "files.toolchains"));
    }
    for device in &p.files.devices {
        line(&row("use", &printable(device), "files.devices"));
    }
    line(&row("private", "/tmp", &format!("at most {} bytes", p.files.tmp_bytes)));
    line(&row("private", "/dev/shm", &format!("at most {} bytes", p.files.shm_bytes)));
    line("");
    match &p.network {
        Network::None => line("network       none (a loopback of its own)"),
        Network::Host => line("network       the host's"),
        Network::Filtered { allow, deny, egress } => {
            line("network       filtered: these hosts only");
            for (word, hosts) in [("allow", allow), ("deny", deny), ("inspect", &egress.inspect)] {
                for host in hosts {
                    line(&row(word, &host.host, &host.origin.to_string()));
                }
            }
            for rule in &egress.requests {
                let any = |list: &[String]| {
                    if list.is_empty() { "any".to_owned() } else { list.join(" ") }
                };
                let what = format!("{} {}", any(&rule.methods), any(&rule.paths));
                let from = format!("{}, of {}", rule.origin, rule.hosts.join(" "));
                line(&row("request", &what, &from));
            }
            for secret in &egress.secrets {
                let what =
                    format!("{}: {} -> {}", secret.name, source(&secret.from), secret.header);
                let from = format!("{}, to {}", secret.origin, secret.hosts.join(" "));
                line(&row("secret", &what, &from));
            }
            if let Some(url) = &egress.upstream_proxy {
                line(&row("through", &shown(url), "network.upstream_proxy"));
            }
            if !egress.proxies {
                line("  proxy variables are not set (network.proxies = false)");
            }
        }
    }
    line("");
    if !p.ssh.agent.is_empty() {
        line("ssh agent     these keys, sign only");
        for key in &p.ssh.agent {
            line(&row("key", &printable(&key.key), &key.origin.to_string()));
        }
        if !p.ssh.sign.is_empty() {
            line(&format!("  namespaces  {}", p.ssh.sign.join(" ")));
        }
        line("");
    }
    line("environment");
    line(&format!("  pass        {}", p.environment.pass.join(" ")));
    if !p.environment.deny.is_empty() {
        line(&format!("  deny        {}", p.environment.deny.join(" ")));
    }
    for (name, value) in &p.environment.set {
        line(&format!("  set         {name}={value}"));
    }
    line("");
    line("limits");
    let l = &p.limits;
    let cpu = l.cpu_percent.map(|c| format!("{}.{:02}", c / 100, c % 100));
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    let with = |n: Option<u64>, unit: &str| n.map(|n| format!("{n} {unit}"));
    for (name, value) in [
        ("memory", with(l.memory, "bytes")),
        ("cpu", cpu),
        ("pids", number(l.pids)),
        ("file_size", with(l.file_size, "bytes")),
        ("open_files", number(l.open_files)),
        ("core", with(l.core, "bytes")),
        ("timeout", with(l.timeout_ms, "ms")),
        ("grace", with(l.grace_ms, "ms")),
    ] {
        line(&format!("  {name:<11} {}", value.as_deref().unwrap_or("not limited")));
    }
    line("");
    let switches = [
        ("nested_namespaces", p.processes.nested_namespaces),
        ("ptrace", p.processes.ptrace),
        ("io_uring", p.processes.io_uring),
    ];
    let on: Vec<&str> = switches.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    line(&format!(
        "processes     {}",
        if on.is_empty() { "nothing beyond the usual".into() } else { on.join(" ") }
    ));
    line(&format!("terminal      pty {}", format!("{:?}", p.pty).to_lowercase()));
    line(&format!("layer         {}", layer(&p.layer)));
    if !p.accept_missing.is_empty() {
        line(&format!("may be missing  {}", p.accept_missing.join(" ")));
    }
    out
}
