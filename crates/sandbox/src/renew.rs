//! File rules of a run that goes on.
//!
//! What a start would set up is planned twice, by the rules of the start and by the new ones, both on
//! the host as it is now. Mounts and Landlock cannot change in a running sandbox: where the two plans
//! differ there, nothing changes, and the difference is told. What is decided at each operation can:
//! the exact view takes every rule; in a layer with rules of names, what init decides changes, and
//! what a mask covers cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ringfence_policy::{Network, Policy};

use crate::answers::Answers;
use crate::names::NamesPlan;
use crate::plan::{Plan, shown};
use crate::prepare::{Means, Request, prepare_for};
use crate::status::Rung;
use crate::view::{Handle, Wanted};

/// Differences that a refusal spells out.
const MOST_TOLD: usize = 8;

/// What a run's file rules are held by.
#[derive(Debug)]
pub struct Renewal {
    rung: Rung,
    view: Option<Handle>,
    answers: Option<Arc<Answers>>,
    /// Rules of names that were put in the place of those of the start.
    in_force: Mutex<Option<Arc<NamesPlan>>>,
}

/// Why the rules of the start stay.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("{0}")]
    Plan(String),
    #[error("the file rules need a new start, since this cannot change in a running sandbox: {}", .0.join("; "))]
    Fixed(Vec<String>),
    #[error("the file rules need a new start: {} is covered by the ones and not by the others, and what a layer covers stays so while it is mounted", shown(.0))]
    Covered(PathBuf),
    #[error("the file rules could not be replaced: {0}")]
    Failed(String),
}

/// New rules, found to be such as the run can hold.
#[derive(Debug)]
pub struct Change {
    of: Arc<Renewal>,
    view: Option<(Wanted, PathBuf)>,
    names: Option<(Arc<NamesPlan>, Arc<NamesPlan>)>,
}

impl Renewal {
    pub(crate) fn new(rung: Rung, view: Option<Handle>, answers: Option<Arc<Answers>>) -> Self {
        Self { rung, view, answers, in_force: Mutex::default() }
    }

    /// Rules can change in this run whatever else it has.
    pub fn decides(&self) -> bool {
        self.view.is_some() || self.answers.is_some()
    }

    /// Whether the run, which began by `start` and `request`, can hold the file rules of `policy`;
    /// nothing has changed yet.
    pub fn change(
        self: &Arc<Self>,
        start: &Policy,
        request: &Request,
        policy: &Policy,
    ) -> Result<Change, RenewError> {
        let mut before = self.plan(start, request)?;
        let mut after = self.plan(policy, request)?;
        let fixed = differences(&before, &after);
        if !fixed.is_empty() {
            return Err(RenewError::Fixed(fixed));
        }
        let names = match (before.names.take(), after.names.take()) {
            (Some(before), Some(after)) => Some((Arc::new(before), Arc::new(after))),
            _ => None,
        };
        if let (Some((before, after)), Some(answers)) = (&names, &self.answers) {
            covers_alike(before, after, answers)?;
        }
        let view = after.view.take().map(|wanted| (wanted, after.workspace));
        Ok(Change { of: Arc::clone(self), view, names })
    }

    fn plan(&self, policy: &Policy, request: &Request) -> Result<Plan, RenewError> {
        // What files are shown does not depend on these.
        let mut policy = policy.clone();
        policy.network = Network::None;
        policy.ssh.agent.clear();
        let (rung, exact) = (self.rung, self.view.is_some());
        let request = Request { rung, exact, filter: None, inspection: None, ..request.clone() };
        let names = self.answers.as_ref().map(|answers| answers.by_broker());
        prepare_for(&policy, &request, Means { names, view: None })
            .map_err(|e| RenewError::Plan(e.to_string()))
    }
}

impl Change {
    /// From its return on the new rules decide. After an error those of before do.
    pub fn commit(self) -> Result<(), RenewError> {
        let failed = |e: std::io::Error| RenewError::Failed(e.to_string());
        if let (Some((wanted, root)), Some(view)) = (self.view, &self.of.view) {
            view.set(wanted, root).map_err(failed)?;
        }
        if let (Some((before, after)), Some(answers)) = (self.names, &self.of.answers) {
            let mut in_force = self.of.in_force.lock().unwrap_or_else(PoisonError::into_inner);
            let set = answers.set(Arc::clone(&after)).map_err(failed);
            // What the command made while this was looked at was decided by the old rules, and what the
            // new ones hide of it has no cover.
            if let Err(e) = set.and_then(|()| covers_alike(&before, &after, answers)) {
                answers.set(in_force.clone().unwrap_or(before)).map_err(failed)?;
                return Err(e);
            }
            *in_force = Some(after);
        }
        Ok(())
    }
}

fn covers_alike(
    before: &NamesPlan,
    after: &NamesPlan,
    answers: &Answers,
) -> Result<(), RenewError> {
    if let Some(path) = answers.replaced() {
        return Err(RenewError::Plan(format!(
            "{} is another directory than the one that the run began on",
            shown(path)
        )));
    }
    match before.covers_otherwise(after, answers.mounts()) {
        Ok(None) => Ok(()),
        Ok(Some(path)) => Err(RenewError::Covered(path)),
        Err(e) => Err(RenewError::Plan(e.to_string())),
    }
}

/// What is set up once and would be other.
fn differences(before: &Plan, after: &Plan) -> Vec<String> {
    let mut all = Vec::new();
    let steps = |plan: &Plan| {
        let mut steps: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for step in &plan.steps {
            steps.entry(step.path.clone()).or_default().extend(step.action.words());
        }
        steps
    };
    let (was, would) = (steps(before), steps(after));
    let paths: BTreeSet<&PathBuf> = was.keys().chain(would.keys()).collect();
    for path in paths {
        let words = |of: Option<&Vec<String>>| match of {
            None => "as what is around it".to_owned(),
            Some(words) => words.join(", "),
        };
        if was.get(path) != would.get(path) {
            all.push(format!(
                "{} ({}, and would be {})",
                shown(path),
                words(was.get(path)),
                words(would.get(path))
            ));
        }
    }
    if all.is_empty() {
        let rules = |plan: &Plan| -> BTreeSet<(PathBuf, String)> {
            plan.landlock.iter().map(|r| (r.path.clone(), format!("{:?}", r.access))).collect()
        };
        for (path, _) in rules(before).symmetric_difference(&rules(after)) {
            all.push(format!("{} (landlock)", shown(path)));
        }
    }
    let absent = |plan: &Plan| -> BTreeSet<PathBuf> { plan.absent.iter().cloned().collect() };
    for path in absent(before).symmetric_difference(&absent(after)) {
        all.push(format!("{} (a guarded name that does not exist)", shown(path)));
    }
    let names = |plan: &Plan| plan.names.as_ref().map(|n| (n.changes, n.by_broker));
    if names(before) != names(after) {
        all.push("what holds rules of names in the layer".to_owned());
    }
    let more = all.len().saturating_sub(MOST_TOLD);
    if more > 0 {
        all.truncate(MOST_TOLD);
        all.push(format!("and {more} more"));
    }
    all
}
