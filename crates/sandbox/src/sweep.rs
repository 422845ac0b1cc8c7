//! What a run may leave behind, and taking it away: guarded names that it created, and the private
//! temporary directory of the rung without namespaces.

use std::path::PathBuf;

use crate::discover::{self, Absent};
use crate::plan::{Access, LandlockRule, Plan};

/// Remembers which guarded names were absent at the start.
#[derive(Debug, Default)]
pub struct Watch {
    roots: Vec<(PathBuf, Absent)>,
}

impl Watch {
    pub fn new(plan: &Plan) -> Self {
        let mut roots: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
        for path in &plan.absent {
            // Names inside the workspace (the usual case) share one root; others have their parent.
            let root = if path.starts_with(&plan.workspace) {
                plan.workspace.clone()
            } else {
                path.parent().map(PathBuf::from).unwrap_or_default()
            };
            let Ok(relative) = path.strip_prefix(&root) else { continue };
            match roots.iter_mut().find(|(r, _)| *r == root) {
                Some((_, names)) => names.push(relative.to_owned()),
                None => roots.push((root, vec![relative.to_owned()])),
            }
        }
        let open = |root: &PathBuf| {
            rustix::fs::open(
                root,
                rustix::fs::OFlags::PATH
                    | rustix::fs::OFlags::DIRECTORY
                    | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
        };
        let roots = roots
            .into_iter()
            .filter_map(|(root, names)| {
                let fd = open(&root).ok()?;
                let absent = discover::absent_names(std::os::fd::AsFd::as_fd(&fd), &names).ok()?;
                Some((root, absent))
            })
            .collect();
        Self { roots }
    }

    /// Moves aside what appeared. Answers one line for each.
    pub fn finish(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for (root, absent) in &self.roots {
            for a in discover::sweep(absent) {
                let name = root.join(&a.path);
                match discover::hold(absent.root(), &a.path) {
                    Ok(new) => lines.push(format!(
                        "{} is a guarded name that the run created; it is now {}",
                        name.display(),
                        root.join(new).display()
                    )),
                    Err(e) => lines.push(format!(
                        "{} is a guarded name that the run created and could not be moved aside: {e}",
                        name.display()
                    )),
                }
            }
        }
        lines
    }
}

/// A private temporary directory on the rung without namespaces; removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes it and points the plan's environment and rules at it.
    pub fn new(plan: &mut Plan) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let mut tries = 0u32;
        let base = std::env::temp_dir();
        let path = loop {
            let nanos = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.subsec_nanos());
            let path = base.join(format!("ringfence-{}-{nanos:08x}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break path,
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && tries < 16 => tries += 1,
                Err(e) => return Err(e),
            }
        };
        for (name, value) in &mut plan.environment {
            if name == "TMPDIR" {
                *value = path.clone().into();
            }
        }
        plan.landlock.push(LandlockRule {
            path: path.clone(),
            access: Access::Write,
            optional: false,
        });
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
