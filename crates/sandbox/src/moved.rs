//! A workspace that the command sees at another place than it has on the host: a codebase, which lies
//! in the store. Rules, layers and guards are all said and decided of the place on the host; the very
//! last of deciding is to write the other one where the command will look.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::plan::{Action, LandlockRule, Step};

/// What is seen where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Of the codebase, for people.
    pub name: String,
    /// On the host.
    #[serde(skip)]
    pub from: PathBuf,
    /// As the command sees it.
    pub to: PathBuf,
}

/// `path` with `to` for `from`, where it lies there.
fn swapped(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    Some(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) })
}

impl Moved {
    /// Where the command sees what the host has at `path`.
    pub fn inside(&self, path: &Path) -> PathBuf {
        swapped(path, &self.from, &self.to).unwrap_or_else(|| path.to_owned())
    }

    /// Where the host has what the command sees at `path`.
    pub fn outside(&self, path: &Path) -> PathBuf {
        swapped(path, &self.to, &self.from).unwrap_or_else(|| path.to_owned())
    }

    /// Writes the place of the view into what was decided. An error if something else has its place
    /// there.
    pub fn carry(&self, steps: &mut Vec<Step>, rules: &mut [LandlockRule]) -> Result<(), PathBuf> {
        let taken = |step: &&Step| {
            // Directories of the private root, and private ones, take more names.
            let ours = matches!(step.action, Action::Directory | Action::Private { .. });
            step.path.starts_with(&self.to) || (!ours && self.to.starts_with(&step.path))
        };
        if let Some(step) = steps.iter().find(taken) {
            return Err(step.path.clone());
        }
        let first = steps.iter().position(|s| s.path.starts_with(&self.from));
        for step in &mut *steps {
            step.path = self.inside(&step.path);
        }
        let Some(first) = first else { return Ok(()) };
        let missing: Vec<Step> = self
            .to
            .ancestors()
            .skip(1)
            .filter(|a| *a != Path::new("/") && !steps[..first].iter().any(|s| s.path == *a))
            .map(|a| Step {
                path: a.to_owned(),
                action: Action::Directory,
                why: String::new(),
                layered: false,
            })
            .collect();
        steps.splice(first..first, missing.into_iter().rev());
        for rule in rules {
            rule.path = self.inside(&rule.path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Access;

    fn moved() -> Moved {
        Moved { name: "n".into(), from: "/home/u/s/cb/tree".into(), to: "/in/workspace".into() }
    }

    fn step(path: &str) -> Step {
        Step { path: path.into(), action: Action::Directory, why: String::new(), layered: false }
    }

    #[test]
    fn both_ways() {
        let m = moved();
        assert_eq!(m.inside(Path::new("/home/u/s/cb/tree")), Path::new("/in/workspace"));
        assert_eq!(m.inside(Path::new("/home/u/s/cb/tree2")), Path::new("/home/u/s/cb/tree2"));
        assert_eq!(m.outside(Path::new("/in/workspace/a")), Path::new("/home/u/s/cb/tree/a"));
        assert_eq!(m.outside(Path::new("/in")), Path::new("/in"));
    }

    #[test]
    fn only_the_tree_goes_along() {
        let m = moved();
        let mut steps = vec![
            step("/home"),
            Step { action: Action::Proc { writable: false }, ..step("/home/u") },
            step("/home/u/s/cb/tree"),
            Step { action: Action::Writable, ..step("/home/u/s/cb/tree") },
            Step { action: Action::Writable, ..step("/home/u/s/cb/tree/.git") },
        ];
        let rule =
            |path: &str| LandlockRule { path: path.into(), access: Access::Write, optional: false };
        let mut rules = [rule("/home/u"), rule("/home/u/s/cb/tree")];
        m.carry(&mut steps, &mut rules).unwrap();
        let paths: Vec<_> = steps.iter().map(|s| s.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            ["/home", "/home/u", "/in", "/in/workspace", "/in/workspace", "/in/workspace/.git"]
        );
        assert_eq!(rules[1].path, Path::new("/in/workspace"));
        let mut steps = vec![step("/in/workspace/taken")];
        assert!(m.carry(&mut steps, &mut []).is_err());
        let mut steps = vec![Step { action: Action::Proc { writable: false }, ..step("/in") }];
        assert!(m.carry(&mut steps, &mut []).is_err());
    }
}
