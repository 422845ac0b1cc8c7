//! Which files the host may run later without anybody asking for it: data, with a reason each. A list
//! of what is known to be run, not a proof that nothing else is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::object::{Kind, Meta};

/// How a path is recognised.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// The last component.
    Name(&'static str),
    /// The last component begins with this.
    Begins(&'static str),
    /// The last component ends with this.
    Ends(&'static str),
    /// Anything in a directory of this name.
    In(&'static str),
    /// These components follow each other, at the end.
    Tail(&'static [&'static str]),
    /// These components follow each other, with something below.
    Below(&'static [&'static str]),
}

use Form::{Begins, Below, Ends, In, Name, Tail};

const GIT: &str = "git runs it, or what it names";
const SHELL: &str = "a shell reads it when it starts";
const EDITOR: &str = "an editor runs what it says when the folder is opened";
const CI: &str = "a build service runs it";
const MAKE: &str = "make and its kin run it";
const NODE: &str = "a package manager runs or obeys it";
const PYTHON: &str = "python runs it on its own";
const RUST: &str = "cargo runs or obeys it";
const HOOKS: &str = "a hook manager runs it";
const AGENT: &str = "an agent obeys it";
const CONTAINER: &str = "an image build or a development container runs it";

const TABLE: &[(Form, &str)] = &[
    (Below(&[".git", "hooks"]), GIT),
    (Tail(&[".git", "config"]), GIT),
    (Tail(&[".git", "config.worktree"]), GIT),
    (Tail(&[".git", "info", "attributes"]), GIT),
    (Below(&[".git", "modules"]), GIT),
    (Name(".gitattributes"), GIT),
    (Name(".gitmodules"), GIT),
    (Name(".gitconfig"), GIT),
    (Below(&[".config", "git"]), GIT),
    (In(".githooks"), HOOKS),
    (In(".husky"), HOOKS),
    (Name(".pre-commit-config.yaml"), HOOKS),
    (Name("lefthook.yml"), HOOKS),
    (Name("lefthook.yaml"), HOOKS),
    (Name(".lefthook.yml"), HOOKS),
    (Name(".overcommit.yml"), HOOKS),
    (Name(".lintstagedrc"), HOOKS),
    (Name(".envrc"), "direnv runs it when a shell enters the folder"),
    (Name("mise.toml"), "mise runs or obeys it when a shell enters the folder"),
    (Name(".mise.toml"), "mise runs or obeys it when a shell enters the folder"),
    (Name(".tool-versions"), "a version manager obeys it"),
    (Name(".bashrc"), SHELL),
    (Name(".bash_profile"), SHELL),
    (Name(".bash_login"), SHELL),
    (Name(".bash_aliases"), SHELL),
    (Name(".bash_logout"), SHELL),
    (Name(".profile"), SHELL),
    (Name(".zshrc"), SHELL),
    (Name(".zshenv"), SHELL),
    (Name(".zprofile"), SHELL),
    (Name(".zlogin"), SHELL),
    (Name(".kshrc"), SHELL),
    (Name(".inputrc"), SHELL),
    (Tail(&["fish", "config.fish"]), SHELL),
    (Below(&["fish", "conf.d"]), SHELL),
    (Below(&["fish", "functions"]), SHELL),
    (Below(&[".config", "autostart"]), "the desktop starts it"),
    (Below(&["systemd", "user"]), "the service manager starts it"),
    (In(".vscode"), EDITOR),
    (In(".idea"), EDITOR),
    (In(".zed"), EDITOR),
    (In(".fleet"), EDITOR),
    (Name(".vimrc"), EDITOR),
    (Name(".exrc"), EDITOR),
    (Name(".nvim.lua"), EDITOR),
    (Name(".dir-locals.el"), EDITOR),
    (Name(".sublime-project"), EDITOR),
    (Ends(".code-workspace"), EDITOR),
    (In(".cursor"), AGENT),
    (In(".claude"), AGENT),
    (In(".codex"), AGENT),
    (In(".gemini"), AGENT),
    (Name(".mcp.json"), AGENT),
    (Name("CLAUDE.md"), AGENT),
    (Name("AGENTS.md"), AGENT),
    (Name(".cursorrules"), AGENT),
    (Below(&[".github", "workflows"]), CI),
    (Below(&[".github", "actions"]), CI),
    (Name(".gitlab-ci.yml"), CI),
    (Name("Jenkinsfile"), CI),
    (Below(&[".circleci"]), CI),
    (Name(".travis.yml"), CI),
    (Name("azure-pipelines.yml"), CI),
    (Name("Makefile"), MAKE),
    (Name("makefile"), MAKE),
    (Name("GNUmakefile"), MAKE),
    (Ends(".mk"), MAKE),
    (Name("justfile"), MAKE),
    (Name("Justfile"), MAKE),
    (Name(".justfile"), MAKE),
    (Name("Taskfile.yml"), MAKE),
    (Name("Rakefile"), MAKE),
    (Name("CMakeLists.txt"), MAKE),
    (Ends(".cmake"), MAKE),
    (Name("meson.build"), MAKE),
    (Name("SConstruct"), MAKE),
    (Name("configure"), MAKE),
    (Name("WORKSPACE"), MAKE),
    (Name("BUILD.bazel"), MAKE),
    (Name("build.gradle"), MAKE),
    (Name("build.gradle.kts"), MAKE),
    (Name("settings.gradle"), MAKE),
    (Name("pom.xml"), MAKE),
    (Name("Gemfile"), "bundler runs it"),
    (Name("package.json"), "npm and its kin run its scripts"),
    (Name(".npmrc"), NODE),
    (Name(".yarnrc"), NODE),
    (Name(".yarnrc.yml"), NODE),
    (Below(&[".yarn"]), NODE),
    (Name(".pnpmfile.cjs"), NODE),
    (Name("pnpmfile.js"), NODE),
    (Name("pnpm-workspace.yaml"), NODE),
    (Name("bunfig.toml"), NODE),
    (Below(&["node_modules", ".bin"]), NODE),
    (Begins("webpack.config."), NODE),
    (Begins("vite.config."), NODE),
    (Begins("vitest.config."), NODE),
    (Begins("jest.config."), NODE),
    (Begins("rollup.config."), NODE),
    (Begins("eslint.config."), NODE),
    (Begins(".eslintrc"), NODE),
    (Begins("babel.config."), NODE),
    (Begins("next.config."), NODE),
    (Name("setup.py"), PYTHON),
    (Name("setup.cfg"), PYTHON),
    (Name("conftest.py"), PYTHON),
    (Name("pyproject.toml"), PYTHON),
    (Name("noxfile.py"), PYTHON),
    (Name("tox.ini"), PYTHON),
    (Name("pytest.ini"), PYTHON),
    (Name("sitecustomize.py"), PYTHON),
    (Name("usercustomize.py"), PYTHON),
    (Ends(".pth"), PYTHON),
    (Tail(&["bin", "activate"]), SHELL),
    (Name("build.rs"), RUST),
    (Tail(&[".cargo", "config.toml"]), RUST),
    (Tail(&[".cargo", "config"]), RUST),
    (Name("Cargo.toml"), RUST),
    (Name("rust-toolchain.toml"), RUST),
    (Name("rust-toolchain"), RUST),
    (Name("Dockerfile"), CONTAINER),
    (Name("docker-compose.yml"), CONTAINER),
    (Name("compose.yaml"), CONTAINER),
    (In(".devcontainer"), CONTAINER),
    (Name("ringfence.toml"), "ringfence obeys it"),
    (Name("ringfence.jsonc"), "ringfence obeys it"),
    (Name("fence.json"), "ringfence obeys it"),
];

const BIT: &str = "it has an execute bit";
const ON_PATH: &str = "a shell finds it as a program";

/// Why the host may run what is at `path` (`relative` to its root), or `None`. `search`: directories
/// in which a shell finds programs.
pub fn reason(
    path: &Path,
    relative: &Path,
    meta: &Meta,
    search: &[PathBuf],
) -> Option<&'static str> {
    // A root may itself be one of these directories (a home's `.config`), so the whole path counts.
    let parts: Vec<&OsStr> = path.iter().collect();
    let name = relative.file_name().or_else(|| path.file_name())?;
    if let Some((_, reason)) = TABLE.iter().find(|(form, _)| form.matches(&parts, name)) {
        return Some(reason);
    }
    if path.parent().is_some_and(|dir| search.iter().any(|s| s == dir)) {
        return Some(ON_PATH);
    }
    (meta.kind == Kind::File && meta.mode & 0o111 != 0).then_some(BIT)
}

impl Form {
    fn matches(self, parts: &[&OsStr], name: &OsStr) -> bool {
        // Where case does not count, `.Git/Hooks` is the same place.
        let is = |a: &OsStr, b: &str| a.as_bytes().eq_ignore_ascii_case(b.as_bytes());
        let run = |at: usize, run: &[&str]| {
            parts.len() >= at + run.len() && run.iter().zip(&parts[at..]).all(|(b, a)| is(a, b))
        };
        let lower = |n: usize| name.as_bytes().get(..n).unwrap_or_default();
        match self {
            Name(known) => is(name, known),
            Begins(start) => lower(start.len()).eq_ignore_ascii_case(start.as_bytes()),
            Ends(end) => name
                .len()
                .checked_sub(end.len())
                .is_some_and(|at| name.as_bytes()[at..].eq_ignore_ascii_case(end.as_bytes())),
            In(dir) => parts[..parts.len() - 1].iter().any(|p| is(p, dir)),
            Tail(tail) => parts.len() >= tail.len() && run(parts.len() - tail.len(), tail),
            Below(dirs) => (0..parts.len().saturating_sub(dirs.len())).any(|at| run(at, dirs)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamp;

    fn meta(mode: u32) -> Meta {
        Meta {
            kind: Kind::File,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Stamp(0, 0),
            ctime: Stamp(0, 0),
            dev: 0,
            ino: 0,
            nlink: 1,
            rdev: 0,
        }
    }

    #[test]
    fn what_the_host_may_run_is_marked() {
        let path = [PathBuf::from("/w/bin")];
        for known in [
            ".git/hooks/pre-commit",
            "sub/.git/config",
            ".Git/Hooks/post-checkout",
            ".envrc",
            "Makefile",
            "package.json",
            "a/build.rs",
            "setup.py",
            "conftest.py",
            ".vscode/tasks.json",
            ".idea/x.xml",
            ".github/workflows/ci.yml",
            ".husky/pre-push",
            ".bashrc",
            ".npmrc",
            ".cargo/config.toml",
            ".pnpmfile.cjs",
            ".yarnrc.yml",
            "bin/tool",
            ".pre-commit-config.yaml",
        ] {
            let relative = Path::new(known);
            let found = reason(&Path::new("/w").join(relative), relative, &meta(0o644), &path);
            assert!(found.is_some(), "{known}");
        }
        for harmless in ["src/main.c", "README.md", "hooks/x", "git/config", "config.toml"] {
            let relative = Path::new(harmless);
            assert_eq!(
                reason(&Path::new("/w").join(relative), relative, &meta(0o644), &path),
                None
            );
        }
        let any = Path::new("data/x");
        assert_eq!(reason(&Path::new("/w").join(any), any, &meta(0o755), &[]), Some(BIT));
    }
}
