//! What a policy lets a command write, asked of changes that are to be applied: what a run could not
//! have written to the host does not get there by way of a layer either.

use std::path::{Path, PathBuf};

use ringfence_layers::review::Judge;
use ringfence_policy::{CompiledRules, Permission, Places, Policy, Rule};

use crate::held::held;
use crate::plan::{Plan, shown};
use crate::prepare::{Request, places, prepare};
use crate::run::RunError;

/// The rules, and the plan that a run here would have.
pub struct OfPolicy<'a> {
    rules: CompiledRules<'a>,
    /// The same, as if each root of the layer were the workspace: guards hold in all of them.
    roots: Vec<(PathBuf, CompiledRules<'a>)>,
    plan: Plan,
}

impl<'a> OfPolicy<'a> {
    pub fn new(policy: &'a Policy, request: &Request, roots: &[PathBuf]) -> Result<Self, String> {
        let places = places(request).map_err(|e| e.to_string())?;
        // Nothing runs: a device that a view would need is not needed.
        let request = &Request { asks: true, ..request.clone() };
        let plan = prepare(policy, request).map_err(|e| RunError::from(e).to_string())?;
        let at = |root: &PathBuf| {
            let places = Places { workspace: root.clone(), home: places.home.clone() };
            (root.clone(), CompiledRules::new(policy, &places))
        };
        let others = roots.iter().filter(|r| **r != places.workspace);
        Ok(Self {
            rules: CompiledRules::new(policy, &places),
            roots: others.map(at).collect(),
            plan,
        })
    }
}

impl std::fmt::Debug for OfPolicy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfPolicy").finish_non_exhaustive()
    }
}

impl Judge for OfPolicy<'_> {
    fn refusal(&self, path: &Path) -> Option<String> {
        let decision = self.rules.decide(path);
        if decision.permission < Permission::Write {
            return Some(by_rule(decision.permission, decision.rule));
        }
        for (root, rules) in &self.roots {
            let guarded = path.starts_with(root).then(|| rules.decide(path)).filter(|d| {
                let id = d.rule.and_then(|r| r.id.as_deref());
                d.permission < Permission::Write && id.is_some_and(|id| id.starts_with("guard."))
            });
            if let Some(d) = guarded {
                return Some(by_rule(d.permission, d.rule));
            }
        }
        // What only a look at the host shows: where git's files really are, and what they name.
        let (permission, words) = held(&self.plan, path);
        (permission < Permission::Write).then(|| format!("the policy: {words}"))
    }
}

fn by_rule(permission: Permission, rule: Option<&Rule>) -> String {
    match rule {
        Some(rule) => {
            format!("the policy gives {permission} only: {}", shown(Path::new(&rule.to_string())))
        }
        None => "the policy gives nothing here".into(),
    }
}
