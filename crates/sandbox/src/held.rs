//! What a plan gives for a path, and how, in words.

use std::fmt::Write as _;
use std::path::Path;

use ringfence_policy::Permission;

use crate::plan::{Action, Plan, Step, shown};

/// What a plan gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub permission: Permission,
    pub words: String,
    /// For what the step is there; may be empty.
    pub why: String,
}

/// The last step that covers a path.
pub fn covering<'p>(plan: &'p Plan, path: &Path) -> Option<&'p Step> {
    plan.steps.iter().rfind(|s| {
        path.starts_with(&s.path) && !matches!(s.action, Action::Directory | Action::Pin { .. })
    })
}

/// The permission that a plan gives, and how, in words.
pub fn held(plan: &Plan, path: &Path) -> (Permission, String) {
    let outcome = by_steps(plan, path);
    let why =
        if outcome.why.is_empty() { String::new() } else { format!(", for: {}", outcome.why) };
    (outcome.permission, outcome.words + &why)
}

/// What the steps of a plan make of a path.
pub fn by_steps(plan: &Plan, path: &Path) -> Outcome {
    let pinned =
        plan.steps.iter().any(|s| s.path == path && matches!(s.action, Action::Pin { .. }));
    let Some(step) = covering(plan, path) else {
        let scaffold = plan.steps.iter().any(|s| s.path == path || s.path.starts_with(path));
        return if scaffold {
            Outcome {
                permission: Permission::View,
                words: "a directory of the private root that holds only what is granted below it"
                    .into(),
                why: String::new(),
            }
        } else {
            Outcome {
                permission: Permission::None,
                words: "not there: nothing grants it".into(),
                why: String::new(),
            }
        };
    };
    let exactly = step.path == path;
    let (permission, words) = match &step.action {
        Action::Mask { .. } if exactly => {
            (Permission::None, "masked: its name stays, opening it answers \"permission denied\"")
        }
        Action::Mask { .. } => (Permission::None, "not there: the directory around it is masked"),
        Action::Seal { .. } => (Permission::Read, "mounted read-only"),
        Action::Copy { .. } => (
            Permission::Read,
            "a private copy is read and written, and gone afterwards; the file itself stays as it is",
        ),
        Action::Cover { .. } => {
            (Permission::Read, "covered by the same with the authority of inspection, read-only")
        }
        Action::File { .. } => (Permission::Read, "the sandbox's own, for inspection"),
        Action::System { .. } => (Permission::Read, "part of the system, mounted read-only"),
        Action::Bind { permission, .. } | Action::Over { permission, .. } => (
            *permission,
            match permission {
                Permission::None => "not there",
                Permission::View => "listed, content refused",
                Permission::Read => "mounted read-only",
                Permission::Write => "mounted read-write",
            },
        ),
        Action::Layer { read_only: true, .. } => (Permission::Read, ""),
        Action::View { .. } => (
            plan.in_view(path).unwrap_or(Permission::None),
            "served by its path, operation by operation",
        ),
        Action::Reopen { .. } | Action::Layer { .. } | Action::LayerFile { .. } => {
            (Permission::Write, "written in a layer, the host's stays as it is")
        }
        Action::Cache { .. } => {
            (Permission::Write, "a tool's cache: the host's is read, what is written stays inside")
        }
        Action::Private { .. } | Action::Writable => (
            Permission::None,
            "not there: a private, empty directory of the sandbox stands here, writable and gone afterwards",
        ),
        Action::Proc { .. } | Action::Pts => {
            (Permission::Read, "the sandbox's own, not the host's")
        }
        Action::Device { .. } => (Permission::Write, "a device, usable"),
        Action::Link { .. } => (Permission::Read, "a link that the sandbox makes"),
        Action::Agent => {
            (Permission::Write, "the socket to your ssh agent: chosen keys, sign only")
        }
        Action::Directory | Action::Pin { .. } => (Permission::View, ""),
    };
    let mut words = words.to_owned();
    if !exactly {
        let _ = write!(words, " (with {})", shown(&step.path));
    }
    if pinned {
        words.push_str("; cannot be renamed or removed");
    }
    Outcome { permission, words, why: step.why.clone() }
}
