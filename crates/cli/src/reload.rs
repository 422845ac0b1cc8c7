//! Rules that change while a run goes on: its policy is read again, as it was at the start, by whoever
//! asks for it with `ringfence policy reload`.
//!
//! What was read at the start is guarded against the run. Nothing else is read now: a file that
//! appeared since, or that a policy refers to since, may be the run's own work.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringfence_policy::net::Rules;
use ringfence_policy::{Egress, Files, Network, Origin, Permission, Places, Policy, Rule};
use ringfence_proxy::Way;
use ringfence_proxy::control::{Answer, Commit, Control, Id, Reload, Renewed};
use ringfence_sandbox::prepare::places;
use ringfence_sandbox::renew::Renewal;

use crate::egress::line;
use crate::inspect::SECRETS;
use crate::layers::{self, LayerError, Layered};
use crate::output::printable;
use crate::trust;
use crate::verb::run::{Meant, POLICY_OF_THE_RUN, log_event, protect_policy_files};

/// What a run needs to read its policy again.
pub struct Again {
    pub meant: Arc<Meant>,
    /// The filter's rules at the start, where there is one.
    pub filter: Option<(Arc<Rules>, Way)>,
    pub renewal: Arc<Renewal>,
    /// What is said of files, where that is no longer what was said at the start.
    pub files: Arc<Mutex<Option<Files>>>,
    pub log: Option<File>,
    /// Whether outcomes are told on the terminal, and how it ends its lines.
    pub told: bool,
    pub raw: bool,
}

impl Again {
    pub fn control(self) -> Control {
        Control { id: Id::own(), reload: Arc::new(self) }
    }

    fn say(&self, text: &str) {
        if self.told {
            line(&format!("ringfence: {}", printable(text)), self.raw);
        }
    }

    /// The layers as they are now, by the same flags.
    fn layered(&self) -> Result<Layered, LayerError> {
        let Meant { typed, layered: before, request, .. } = &*self.meant;
        let places = places(request).map_err(|e| LayerError::Flag(e.to_string()))?;
        let free = without_guards(&before.policy);
        let known = before.files.clone();
        let mut now = layers::again(typed, move |file, bytes| {
            if !known.iter().any(|k| k == file) {
                return Err(LayerError::Again(format!(
                    "{} was not part of the policy when the run started, so that nothing kept the run from writing it",
                    printable(file)
                )));
            }
            vouched(&free, &places, file, bytes)
        })?;
        if now.files.first() != before.files.first() {
            let gone = before.files.first().map_or_else(String::new, |f| printable(f).into_owned());
            return Err(LayerError::Again(format!("{gone} is no longer the policy that applies")));
        }
        // Files with credentials are hidden as they were found at the start.
        let withheld = before.policy.files.rules.iter().filter(|r| r.origin.layer == SECRETS);
        now.policy.files.rules.extend(withheld.cloned());
        protect_policy_files(&mut now, request).map_err(LayerError::Flag)?;
        Ok(now)
    }
}

impl Reload for Again {
    fn read(&self) -> Result<Renewed, String> {
        let before = &self.meant.layered.policy;
        let now = self.layered().map_err(|e| e.to_string())?;
        let (allowed, denied) = match (&now.policy.network, &before.network) {
            (Network::Host, Network::None | Network::Filtered { .. }) => {
                return Err("the policy asks for the host's network now, which a sandbox that runs cannot be given".into());
            }
            (
                Network::Filtered { allow, deny, egress },
                Network::Filtered { egress: before, .. },
            ) => {
                if let Some(what) = other_filter(before, egress) {
                    return Err(format!(
                        "{what} changed, which hosts may rely on and which only a new start can give"
                    ));
                }
                (allow.len(), deny.len())
            }
            _ => (0, 0),
        };
        let rules = Rules::compile(&now.policy.network).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            problems.join("; ")
        })?;
        let Layered { policy, mut notes, .. } = now;
        notes.extend(unchanged(before, &policy));
        let rules = match &self.filter {
            Some(filter) => {
                notes.extend(out_of_reach(&rules, filter));
                Some(Arc::new(rules))
            }
            // Nothing would judge it.
            None if (allowed, denied) != (0, 0) => return Err("the run has no filter".into()),
            None => None,
        };
        let files = self.files(&policy, &mut notes)?;
        Ok(Renewed { rules, files, allowed, denied, notes })
    }

    fn done(&self, answer: &Answer) {
        if let Some(log) = &self.log {
            log_event(log, "reload", || serde_json::json!(answer));
        }
        match &answer.problem {
            None => self.say(&format!("rules replaced: {}", summary(answer))),
            Some(problem) => self.say(&format!("rules not replaced, the old ones hold: {problem}")),
        }
    }

    fn deaf(&self, problem: &io::Error) {
        let text = format!("`policy reload` will not find this run: {problem}");
        if let Some(log) = &self.log {
            log_event(log, "note", || serde_json::json!({ "note": text }));
        }
        self.say(&text);
    }
}

impl Again {
    /// The file rules, where others hold; refused as a whole where the run cannot hold them.
    fn files(&self, policy: &Policy, notes: &mut Vec<String>) -> Result<Option<Commit>, String> {
        let Meant { layered, request, .. } = &*self.meant;
        let now = plain_files(policy);
        let held = self.files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if now == held.unwrap_or_else(|| plain_files(&layered.policy)) {
            return Ok(None);
        }
        let change = self.renewal.change(&layered.policy, request, policy);
        let change = change.map_err(|e| e.to_string())?;
        if !self.renewal.decides() {
            notes.push(
                "files changed in the policy, and nothing of what is there now is shown otherwise for it; patterns are held for what exists when a run starts"
                    .to_owned(),
            );
            return Ok(None);
        }
        let held = Arc::clone(&self.files);
        Ok(Some(Box::new(move || {
            change.commit().map_err(|e| e.to_string())?;
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            Ok(())
        })))
    }
}

/// What was set up in the sandbox's network for the rules of the start.
fn out_of_reach(rules: &Rules, (start, way): &(Arc<Rules>, Way)) -> Vec<String> {
    let missing = |now: Vec<u16>, then: &[u16]| -> Vec<String> {
        now.into_iter().filter(|p| !then.contains(p)).map(|p| p.to_string()).collect()
    };
    let mut notes = Vec::new();
    let local = missing(rules.host_loopback_ports(), &start.host_loopback_ports());
    if !local.is_empty() {
        notes.push(format!(
            "localhost:{} needs a new start: until then these ports are the sandbox's own",
            local.join(", ")
        ));
    }
    let listed = missing(rules.listed_ports(), &start.listed_ports());
    if *way == Way::Local && !listed.is_empty() {
        notes.push(format!(
            "this host has no nftables: the ports {} need a new start, or the proxy",
            listed.join(", ")
        ));
    }
    notes
}

/// `2 allowed, 1 denied; 3 connections closed; file rules replaced`.
pub fn summary(answer: &Answer) -> String {
    let mut text = String::new();
    if answer.network {
        let connections = if answer.closed == 1 { "connection" } else { "connections" };
        let _ = write!(
            text,
            "{} allowed, {} denied; {} {connections} closed",
            answer.allowed, answer.denied, answer.closed
        );
    }
    let files = match (answer.files, answer.network) {
        (true, true) => "; file rules replaced",
        (true, false) => "file rules replaced",
        (false, true) => "",
        (false, false) => "nothing that can change has changed",
    };
    text.push_str(files);
    text
}

/// The policy as it would be if nothing kept the run from its policy files.
///
/// Guards are mounts, and a mount is gone once the host renames another file over what it covers, as
/// editors do when they save. From then on a file in a writable place is the run's to write.
fn without_guards(policy: &Policy) -> Policy {
    let mut free = policy.clone();
    free.files.rules.retain(|rule| rule.origin.layer != POLICY_OF_THE_RUN && !rule.is_guard());
    free
}

/// Content of a file in such a place has to be trusted, word for word.
fn vouched(free: &Policy, places: &Places, file: &Path, bytes: &[u8]) -> Result<(), LayerError> {
    let named = trust::key_path(file);
    let real = std::fs::canonicalize(file).unwrap_or_else(|_| named.clone());
    let writable = |path: &PathBuf| free.decide_path(places, path).permission >= Permission::Write;
    if ![&named, &real].into_iter().any(writable) {
        return Ok(());
    }
    let store = trust::Store::open()
        .map_err(|e| LayerError::Read { file: "the trust store".into(), problem: e.to_string() })?;
    if store.trusts(&named, bytes) {
        return Ok(());
    }
    let file = printable(&named).into_owned();
    Err(LayerError::Again(format!(
        "{file} lies where the run may write, and its content is not trusted; read it, then run `ringfence trust {file}`"
    )))
}

/// What else the filter was started with and hosts may be allowed in view of.
fn other_filter(before: &Egress, now: &Egress) -> Option<&'static str> {
    let plain = |e: &Egress| {
        let mut e = e.clone();
        e.inspect.iter_mut().for_each(|r| r.origin = Origin::default());
        e.requests.iter_mut().for_each(|r| r.origin = Origin::default());
        e.secrets.iter_mut().for_each(|s| s.origin = Origin::default());
        e
    };
    let (before, now) = (plain(before), plain(now));
    [
        ("network.upstream_proxy", before.upstream_proxy != now.upstream_proxy),
        ("network.inspect", before.inspect != now.inspect),
        ("network.rules", before.requests != now.requests),
        ("network.secrets", before.secrets != now.secrets),
    ]
    .into_iter()
    .find_map(|(what, differs)| differs.then_some(what))
}

/// Where a rule stands in its file is not what it says.
fn plain_files(policy: &Policy) -> Files {
    let mut files = policy.files.clone();
    let plain = |rule: &mut Rule| rule.origin = Origin::default();
    files.rules.iter_mut().for_each(plain);
    files
}

/// Chapters that are set up once.
fn unchanged(before: &Policy, now: &Policy) -> Option<String> {
    let ssh = |policy: &Policy| {
        let mut ssh = policy.ssh.clone();
        ssh.agent.iter_mut().for_each(|key| key.origin = Origin::default());
        ssh
    };
    let proxies = |policy: &Policy| match &policy.network {
        Network::Filtered { egress, .. } => egress.proxies,
        _ => true,
    };
    let changed: Vec<&str> = [
        ("environment", before.environment != now.environment || proxies(before) != proxies(now)),
        ("limits", before.limits != now.limits),
        ("processes", before.processes != now.processes),
        ("terminal", before.pty != now.pty),
        ("layer", before.layer != now.layer),
        ("ssh", ssh(before) != ssh(now)),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect();
    (!changed.is_empty()).then(|| {
        format!("{} changed in the policy; in this run they stay as they are", changed.join(", "))
    })
}
