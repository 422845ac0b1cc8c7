//! `policy explain`: the decision, the rule with its line, what the plan does about it on this host,
//! and which flag would change it.

use crate::exit::ExitCode;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use ringfence_policy::{Explanation, Permission, Places, Policy, Rule, builtin_rule};
use ringfence_sandbox::held::{Outcome, by_steps, covering};
use ringfence_sandbox::plan::{Action, Plan, Step};
use ringfence_sandbox::prepare::{Request, places, prepare};
use ringfence_sandbox::run::RunError;
use serde_json::{Value, json};

use super::show::rule_json;
use crate::output::{self, printable};
use crate::verb::run::POLICY_OF_THE_RUN;

pub fn main(m: &ArgMatches) -> ExitCode {
    let typed = super::typed(m);
    let Some(what) = m.get_one::<std::ffi::OsString>("what") else {
        return output::fail("nothing to explain");
    };
    let layered = match super::layered(&typed) {
        Ok(l) => l,
        Err(e) => return super::refused(&e),
    };
    for note in &layered.notes {
        output::say(printable(note));
    }
    let request = super::request(&typed);
    let as_json = m.get_flag("json");
    if is_path(what) {
        match path(&layered.policy, &request, what) {
            Ok(answer) if as_json => output::print_json(&answer.json()),
            Ok(answer) => output::print(&answer.text()),
            Err(problem) => output::fail(problem),
        }
    } else {
        host(&layered.policy, &what.to_string_lossy(), as_json)
    }
}

/// A path has a slash, begins with `.` or `~`, or exists; the rest could be a host.
fn is_path(what: &OsStr) -> bool {
    let bytes = what.as_bytes();
    bytes.is_empty()
        || bytes.contains(&b'/')
        || matches!(bytes[0], b'.' | b'~')
        || std::fs::symlink_metadata(what).is_ok()
}

/// As the shell would have it: `~` is home, the rest relative to where it was typed.
fn as_typed(what: &OsStr, places: &Places) -> Result<PathBuf, String> {
    let bytes = what.as_bytes();
    let path = match bytes.strip_prefix(b"~") {
        Some(b"") => places.home.clone(),
        Some([b'/', rest @ ..]) => places.home.join(OsStr::from_bytes(rest)),
        _ => {
            let here = std::env::current_dir().map_err(|e| format!("current directory: {e}"))?;
            here.join(what)
        }
    };
    Ok(clean(&path))
}

/// Without `.` and `..`, as far as that can be said without following symlinks.
pub fn clean(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// Everything known of one path.
struct Answer<'a> {
    rules: Explanation<'a>,
    /// What it leads to, where that is another place; with the decision there.
    target: Option<Explanation<'a>>,
    exists: bool,
    /// What a run would find, in words, and what may be done there; or why there is no plan.
    plan: Result<Outcome, String>,
    remedy: Option<String>,
}

fn path<'a>(policy: &'a Policy, request: &Request, what: &OsStr) -> Result<Answer<'a>, String> {
    if what.is_empty() {
        return Err("empty path".into());
    }
    let places = places(request).map_err(|e| e.to_string())?;
    let asked = as_typed(what, &places)?;
    // Directories that lead elsewhere are followed; the name itself is kept.
    let asked = match (asked.parent().map(std::fs::canonicalize), asked.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => asked,
    };
    let rules = policy.explain_path(&places, &asked);
    let real = std::fs::canonicalize(&asked).ok();
    let target = real.filter(|r| *r != asked).map(|r| policy.explain_path(&places, &r));
    let exists = std::fs::symlink_metadata(&asked).is_ok();
    let plan = prepare(policy, request)
        .map(|plan| {
            let at = target.as_ref().map_or(&rules.path, |t| &t.path);
            let rule = target.as_ref().unwrap_or(&rules);
            outcome(&plan, at, rule, exists)
        })
        .map_err(|e| RunError::from(e).to_string());
    let may = plan.as_ref().map_or(rules.permission, |p| p.permission);
    let remedy = if !exists && rules.permission > may {
        Some("the rule applies to what exists when a run starts: make it first".to_owned())
    } else if plan.as_ref().is_ok_and(|p| p.words == NOT_FOR_THAT_ID) {
        None
    } else {
        remedy(policy, &places, &rules, target.as_ref(), may)
    };
    Ok(Answer { rules, target, exists, plan, remedy })
}

/// What the steps of a plan make of a path. The last that covers it counts.
fn outcome(plan: &Plan, path: &Path, rules: &Explanation<'_>, exists: bool) -> Outcome {
    let plain = by_steps(plan, path);
    let guarded = rules.decided.is_some_and(Rule::is_guard);
    if !exists && guarded && rules.permission < plain.permission {
        return Outcome {
            permission: rules.permission,
            words: "a guarded name that does not exist: what a run creates there is moved aside at its end".into(),
            why: plain.why,
        };
    }
    // A system file that only the host's root may read: the sandbox of a root caller is not root there.
    if plan.identity.demoted
        && rules.permission < plain.permission
        && matches!(covering(plan, path), Some(Step { action: Action::System { .. }, .. }))
        && rules.decided.is_some_and(|r| r.id.is_some())
    {
        return Outcome {
            permission: rules.permission,
            words: NOT_FOR_THAT_ID.into(),
            why: String::new(),
        };
    }
    plain
}

/// No flag changes this one.
const NOT_FOR_THAT_ID: &str = "a system file that the sandbox's unprivileged host id may not read";

/// The flag that would allow more, tried out on the policy before it is named.
fn remedy(
    policy: &Policy,
    places: &Places,
    rules: &Explanation<'_>,
    target: Option<&Explanation<'_>>,
    may: Permission,
) -> Option<String> {
    let (wanted, flag) = match may {
        Permission::Write => return None,
        Permission::Read => (Permission::Write, "--allow-write"),
        _ => (Permission::Read, "--allow-read"),
    };
    // What counts is the lower of the two; that is where something must give.
    let held = target.filter(|t| t.permission < rules.permission).unwrap_or(rules);
    let path = &held.path;
    let grant = Rule::grant_path(path, wanted, "try")?;
    let allows = |rules: Vec<Rule>| {
        let mut tried = policy.clone();
        tried.files.rules = rules;
        tried.decide_path(places, path).permission >= wanted
    };
    let with = |rules: &[Rule]| rules.iter().cloned().chain([grant.clone()]).collect::<Vec<_>>();
    let verb = if wanted == Permission::Write { "written" } else { "read" };
    let say = |what: &str| Some(format!("to let it be {verb}: {what}"));
    let shown = shell_word(path);
    if allows(with(&policy.files.rules)) {
        return say(&format!("{flag} {shown}"));
    }
    let rule = held.decided?;
    let Some(id) = rule.id.as_deref() else {
        let place = printable(&rule.origin.to_string()).into_owned();
        return say(&format!("change the rule at {place}; no flag goes over it"));
    };
    if builtin_rule(id).is_none_or(|b| b.by_mechanism) {
        return if id == "guard.git" { say("--lift guard.git") } else { None };
    }
    let stays = |r: &&Rule| r.id.as_deref() != Some(id) || r.origin.layer == POLICY_OF_THE_RUN;
    let lifted: Vec<Rule> = policy.files.rules.iter().filter(stays).cloned().collect();
    let with_grant = with(&lifted);
    if allows(lifted) {
        say(&format!("--lift {id}"))
    } else if allows(with_grant) {
        say(&format!("--lift {id} {flag} {shown}"))
    } else {
        None
    }
}

/// A path as it can be pasted into a shell.
fn shell_word(path: &Path) -> String {
    let text = printable(path);
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:=,".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn meaning(permission: Permission) -> &'static str {
    match permission {
        Permission::None => "not readable",
        Permission::View => "listed, content refused",
        Permission::Read => "readable, not writable",
        Permission::Write => "readable and writable",
    }
}

impl Answer<'_> {
    fn permission(&self) -> Permission {
        let by_rules = self
            .target
            .as_ref()
            .map_or(self.rules.permission, |t| t.permission.min(self.rules.permission));
        self.plan.as_ref().map_or(by_rules, |p| p.permission)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: &str| {
            let _ = writeln!(out, "{}", printable(text));
        };
        let p = self.permission();
        line(&format!("{}: {p} ({})", self.rules.path.display(), meaning(p)));
        if !self.exists {
            line("  it does not exist now; the answer is for when it does");
        }
        reasons(&self.rules, "", &mut line);
        if let Some(target) = &self.target {
            line(&format!("  leads to {}: {}", target.path.display(), target.permission));
            reasons(target, "  ", &mut line);
        }
        match &self.plan {
            Ok(o) => {
                let why =
                    if o.why.is_empty() { String::new() } else { format!(", for: {}", o.why) };
                line(&format!("  in the sandbox: {}{why}", o.words));
            }
            Err(e) => line(&format!("  this host cannot hold the policy: {e}")),
        }
        if let Some(remedy) = &self.remedy {
            line(&format!("  {remedy}"));
        }
        out
    }

    fn json(&self) -> Value {
        json!({
            "path": self.rules.path.to_string_lossy(),
            "exists": self.exists,
            "permission": self.permission(),
            "rules": explanation_json(&self.rules),
            "target": self.target.as_ref().map(explanation_json),
            "plan": self.plan.as_ref().ok().map(|o| json!({
                "permission": o.permission,
                "outcome": o.words,
                "why": o.why,
            })),
            "problem": self.plan.as_ref().err(),
            "remedy": self.remedy,
        })
    }
}

fn reasons(e: &Explanation<'_>, indent: &str, line: &mut impl FnMut(&str)) {
    match e.decided {
        None if e.root_visible => {
            line(&format!("{indent}  the workspace root is always listed under ordered rules"));
        }
        None => line(&format!("{indent}  no rule names it")),
        Some(rule) => {
            line(&format!("{indent}  decided by: {rule}"));
            if e.capped {
                line(&format!("{indent}  a deny binds ordered rules of any priority"));
            }
            if let Some(builtin) = rule.id.as_deref().and_then(builtin_rule) {
                line(&format!("{indent}  reason: {}", builtin.reason));
            }
        }
    }
    if e.steps.len() > 1 {
        line(&format!("{indent}  rules in the order of application:"));
        for step in &e.steps {
            line(&format!("{indent}    {} -> {}", step.rule, step.after));
        }
    }
}

fn explanation_json(e: &Explanation<'_>) -> Value {
    json!({
        "path": e.path.to_string_lossy(),
        "permission": e.permission,
        "decided": e.decided.map(rule_json),
        "capped": e.capped,
        "steps": e.steps.iter().map(|s| json!({
            "rule": rule_json(s.rule),
            "before": s.before,
            "after": s.after,
        })).collect::<Vec<_>>(),
    })
}

/// What the policy says of a host: the decision of a run, as far as it goes without resolving.
fn host(policy: &Policy, what: &str, as_json: bool) -> ExitCode {
    let d = policy.explain_host(what);
    if as_json {
        return output::print_json(&json!({
            "host": d.host,
            "port": d.port,
            "allowed": d.allowed,
            "word": d.word,
            "rule": d.rule.as_ref().map(|r| json!({
                "host": r.host,
                "layer": r.origin.layer,
                "line": r.origin.line,
            })),
            "reason": d.reason,
            "notes": d.notes,
            "remedy": d.remedy,
        }));
    }
    let text: Vec<String> = d.to_string().lines().map(|l| format!("{}\n", printable(l))).collect();
    output::print(&text.concat())
}
