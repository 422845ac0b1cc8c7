//! Which parts of the caller's home the installed tools need in order to run, for reading only, and
//! where they expect to write.
//!
//! Home itself is not shown to a sandbox. What is named here is shown because a table, PATH or a
//! well-known variable says so, and never more than that: a value that is home, an ancestor of home,
//! a place of secrets, or a link that leads elsewhere is refused and told.
//!
//! How tools behave when these places are read-only (tried with the real programs):
//!
//! | tool | read-only home | what it takes |
//! |---|---|---|
//! | cargo build --offline | works: the lock on CARGO_HOME falls back to reading | unpacked sources; a crate that is only in `registry/cache` fails (`registry/src` must be writable: copy-on-write, or an empty `src` beside read-only `index` and `cache`) |
//! | rustup shims, `rustup show` | work | nothing; installing a toolchain fails, as it should |
//! | npm install --offline | works; logs and the update check are given up silently | copy-on-write cache to install what is cached and keep what is fetched |
//! | pip, python -m venv | work; the cache is switched off with a warning when not writable | a private cache directory |
//! | pyenv shims | work | `pyenv rehash` fails, which only new versions need |
//! | git config --global | fails: the lock file cannot be made | intended |

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags};

use super::fd;

/// PATH entries looked at; a shell's PATH has some dozens.
const MAX_PATH_ENTRIES: usize = 256;
/// Names of home listed to see what may exist; in a larger home each place is looked at instead.
const MAX_HOME_NAMES: usize = 1_024;

/// A directory or file in home that a tool needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Where tools look: absolute, inside home.
    pub at: PathBuf,
    /// Where it really is: the same, or what a link at `at` leads to (inside home, or in a system
    /// directory). When they differ the sandbox's home needs such a link.
    pub path: PathBuf,
    pub what: &'static str,
    /// The variable that named it.
    pub env: Option<&'static str>,
    pub is_dir: bool,
}

/// What a private directory shows at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing.
    Empty,
    /// The real directory, copy-on-write where an overlay can be mounted, else read-only.
    CopyOnWrite,
}

/// A place in home where tools expect to write: something private appears there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateCache {
    /// Relative to home; parents before children.
    pub path: &'static str,
    pub what: &'static str,
    pub contents: Contents,
    /// The tool by whose name its caches are shared.
    pub tool: &'static str,
}

const fn cache(
    path: &'static str,
    tool: &'static str,
    what: &'static str,
    contents: Contents,
) -> PrivateCache {
    PrivateCache { path, what, contents, tool }
}

/// Places where tools write in home. `Empty` ones may be made whether or not they exist outside;
/// `CopyOnWrite` ones only matter when they exist.
pub const PRIVATE_CACHES: &[PrivateCache] = &[
    cache(".bun/install/cache", "bun", "bun packages", Contents::CopyOnWrite),
    cache(".cache", "", "caches", Contents::Empty),
    cache(".cache/ccache", "ccache", "ccache", Contents::CopyOnWrite),
    cache(".cache/deno", "deno", "deno modules", Contents::CopyOnWrite),
    cache(".cache/go-build", "go", "go build cache", Contents::CopyOnWrite),
    cache(".cache/ms-playwright", "playwright", "playwright browsers", Contents::CopyOnWrite),
    cache(".cache/node/corepack", "corepack", "corepack", Contents::CopyOnWrite),
    cache(".cache/pip", "pip", "pip", Contents::CopyOnWrite),
    cache(".cache/pypoetry", "poetry", "poetry", Contents::CopyOnWrite),
    cache(".cache/uv", "uv", "uv", Contents::CopyOnWrite),
    cache(".cache/yarn", "yarn", "yarn", Contents::CopyOnWrite),
    cache(".cargo", "cargo", "cargo locks", Contents::Empty),
    cache(".cargo/git", "cargo", "cargo git sources", Contents::CopyOnWrite),
    cache(".cargo/registry", "cargo", "cargo registry", Contents::CopyOnWrite),
    cache(".gradle", "gradle", "gradle state", Contents::Empty),
    cache(".gradle/caches", "gradle", "gradle caches", Contents::CopyOnWrite),
    cache(".gradle/wrapper", "gradle", "gradle distributions", Contents::CopyOnWrite),
    cache(".local/share/pnpm/store", "pnpm", "pnpm store", Contents::CopyOnWrite),
    cache(".local/state", "", "state", Contents::Empty),
    cache(".m2", "maven", "maven state", Contents::Empty),
    cache(".m2/repository", "maven", "maven repository", Contents::CopyOnWrite),
    cache(".npm", "npm", "npm cache and logs", Contents::CopyOnWrite),
    cache(".nuget/packages", "nuget", "nuget packages", Contents::CopyOnWrite),
    cache(".pub-cache", "dart", "dart packages", Contents::CopyOnWrite),
    cache(".yarn/berry/cache", "yarn", "yarn packages", Contents::CopyOnWrite),
    cache("go/pkg/mod", "go", "go modules", Contents::CopyOnWrite),
];

/// A variable to set inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolVariable {
    pub name: &'static str,
    pub value: &'static str,
    /// Only where the sandbox has no network: otherwise it would forbid what the policy allows.
    pub offline_only: bool,
    pub why: &'static str,
}

const fn offline(name: &'static str, value: &'static str, why: &'static str) -> ToolVariable {
    ToolVariable { name, value, offline_only: true, why }
}

/// Variables to set inside unless the caller's environment or policy sets them.
pub const TOOL_ENVIRONMENT: &[ToolVariable] = &[
    offline("CARGO_NET_OFFLINE", "true", "cargo would try the index and fail"),
    offline("GOPROXY", "off", "go would wait for the module proxy"),
    offline("GOTOOLCHAIN", "local", "go would try to download the toolchain go.mod names"),
    offline("PIP_RETRIES", "0", "pip would try five times with growing pauses"),
    offline("UV_OFFLINE", "1", "uv would retry"),
    offline("npm_config_offline", "true", "npm would retry for more than half a minute"),
    ToolVariable {
        name: "GIT_DISCOVERY_ACROSS_FILESYSTEM",
        value: "1",
        offline_only: false,
        why: "every place shown is a mount, so git would not find the repository around a workspace",
    },
    ToolVariable {
        name: "PIP_DISABLE_PIP_VERSION_CHECK",
        value: "1",
        offline_only: false,
        why: "pip would ask for its newest version, which is nothing a build needs",
    },
    ToolVariable {
        name: "npm_config_update_notifier",
        value: "false",
        offline_only: false,
        why: "npm would ask for its newest version, which is nothing a build needs",
    },
];

/// Toolchains found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toolchains {
    /// In the order of the table, then of PATH; none lies inside another.
    pub tools: Vec<Tool>,
    /// Files below `tools` that hold secrets, to be masked by the caller.
    pub masked: Vec<PathBuf>,
    /// What was asked for and not accepted, and why.
    pub refused: Vec<(PathBuf, String)>,
}

impl Toolchains {
    /// Leaves out what lies in `workspace`, which has its own rules (a virtual environment or
    /// `node_modules/.bin` in PATH must stay writable there).
    pub fn drop_inside(&mut self, workspace: &Path) {
        self.tools.retain(|tool| !tool.path.starts_with(workspace));
        self.masked.retain(|path| !path.starts_with(workspace));
    }
}

/// One root of a tool: a variable, its default, and the parts shown (empty: all of it).
struct Row {
    env: Option<&'static str>,
    /// Relative to home; empty: none.
    default: &'static str,
    parts: &'static [&'static str],
    what: &'static str,
}

const fn row(
    env: &'static str,
    default: &'static str,
    parts: &'static [&'static str],
    what: &'static str,
) -> Row {
    let env = if env.is_empty() { None } else { Some(env) };
    Row { env, default, parts, what }
}

/// Parts are named where the root also holds secrets, state or other people's data.
const ROWS: &[Row] = &[
    row("ASDF_DATA_DIR", ".asdf", &[], "asdf"),
    row("BUN_INSTALL", ".bun", &["bin", "install/global", "install/cache"], "bun"),
    row(
        "CARGO_HOME",
        ".cargo",
        &["bin", "env", "config", "config.toml", "git", "registry"],
        "cargo",
    ),
    row("DENO_INSTALL", ".deno", &["bin"], "deno"),
    row("DOTNET_ROOT", ".dotnet", &[], ".NET"),
    row("ELAN_HOME", ".elan", &[], "elan"),
    row("FNM_DIR", ".local/share/fnm", &[], "fnm"),
    row("GEM_HOME", ".gem", &[], "ruby gems"),
    row("GOPATH", "go", &["bin", "pkg/mod"], "go"),
    row("GOROOT", "", &[], "go"),
    row("JAVA_HOME", "", &[], "java"),
    row("JENV_ROOT", ".jenv", &[], "jenv"),
    row("MISE_DATA_DIR", ".local/share/mise", &[], "mise"),
    row("NODENV_ROOT", ".nodenv", &[], "nodenv"),
    row("NVM_DIR", ".nvm", &[], "nvm"),
    row("PIPX_HOME", ".local/share/pipx", &[], "pipx"),
    row("PNPM_HOME", ".local/share/pnpm", &[], "pnpm"),
    row("PYENV_ROOT", ".pyenv", &[], "pyenv"),
    row("RBENV_ROOT", ".rbenv", &[], "rbenv"),
    row("RUSTUP_HOME", ".rustup", &[], "rustup"),
    row("SDKMAN_DIR", ".sdkman", &["bin", "candidates", "etc", "libexec", "src", "var"], "sdkman"),
    row("UV_PYTHON_INSTALL_DIR", ".local/share/uv/python", &[], "uv python"),
    row("UV_TOOL_DIR", ".local/share/uv/tools", &[], "uv tools"),
    row("VIRTUAL_ENV", "", &[], "python environment"),
    row("VOLTA_HOME", ".volta", &[], "volta"),
    row("", ".cabal", &["bin"], "cabal"),
    row("", ".claude/local", &[], "claude"),
    row("", ".config/composer", &["vendor"], "composer"),
    row("", ".foundry", &["bin"], "foundry"),
    row("", ".ghcup", &["bin", "ghc", "env"], "ghcup"),
    row("", ".goenv", &[], "goenv"),
    row("", ".gradle", &["caches", "wrapper"], "gradle"),
    row("", ".juliaup", &[], "juliaup"),
    row("", ".krew", &["bin", "store"], "krew"),
    row("", ".linuxbrew", &[], "homebrew"),
    row("", ".local/bin", &[], "programs of the user"),
    row("", ".local/lib", &[], "libraries of the user"),
    row("", ".local/share/claude", &["versions"], "claude"),
    row("", ".m2", &["repository", "wrapper"], "maven"),
    row("", ".npm-global", &[], "npm global packages"),
    row("", ".nix-profile", &[], "nix profile"),
    row("", ".nuget", &["packages"], "nuget"),
    row("", ".opam", &[], "opam"),
    row("", ".opencode", &["bin"], "opencode"),
    row("", ".pixi", &["bin", "envs"], "pixi"),
    row("", ".pub-cache", &[], "dart"),
    row("", ".rvm", &[], "rvm"),
    row("", ".rye", &["py", "self", "shims", "tools"], "rye"),
    row("", ".yarn", &["berry/cache", "bin", "releases"], "yarn"),
    row("", "anaconda3", &[], "conda"),
    row("", "bin", &[], "programs of the user"),
    row("", "miniconda3", &[], "conda"),
    row("", "miniforge3", &[], "conda"),
];

/// Files with secrets that may lie in what is shown.
const SECRETS: &[&str] = &[
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".gem/credentials",
    ".gradle/gradle.properties",
    ".m2/settings-security.xml",
    ".m2/settings.xml",
    ".pub-cache/credentials.json",
    ".yarn/berry/.yarnrc.yml",
];

/// Never shown because a variable or PATH names them, nor anything below.
const PRIVATE: &[&str] = &[
    ".aws",
    ".azure",
    ".config/gcloud",
    ".config/gh",
    ".docker",
    ".gnupg",
    ".kube",
    ".local/share/keyrings",
    ".mozilla",
    ".password-store",
    ".pki",
    ".ssh",
    ".config/google-chrome",
    ".config/chromium",
];

/// Never shown as a whole: they hold everything.
const WHOLE: &[&str] = &[
    "",
    ".cache",
    ".config",
    ".local",
    ".local/share",
    ".local/state",
    "Desktop",
    "Documents",
    "Downloads",
    ".cargo",
    "go",
];

/// Where a link in home may lead: mounted read-only for every sandbox, or a package store.
const SYSTEM: &[&str] =
    &["/usr", "/opt", "/nix", "/gnu", "/snap", "/bin", "/lib", "/lib64", "/home/linuxbrew"];

/// Looks for toolchains in `home` (absolute, free of links). `variable` answers for the caller's
/// environment. One listing of home, and a few calls for each place that exists.
///
/// # Errors
/// Only when home cannot be opened.
pub fn toolchains(
    home: &Path,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> std::io::Result<Toolchains> {
    let fd = fd::open_absolute(home, fd::PLACE | OFlags::DIRECTORY)?;
    let names = fd::open_beneath(fd.as_fd(), b"", fd::DIRECTORY)
        .and_then(|dir| fd::list(dir.as_fd(), MAX_HOME_NAMES))
        .ok()
        .and_then(|(names, more)| (!more).then_some(names));
    let mut finder = Finder { home, fd, names, out: Toolchains::default() };
    for row in ROWS {
        finder.row(row, variable);
    }
    let path = variable("PATH").unwrap_or_default();
    for entry in path.as_bytes().split(|&b| b == b':').take(MAX_PATH_ENTRIES) {
        let entry = Path::new(OsStr::from_bytes(entry));
        if entry.is_absolute() {
            finder.asked(entry, "in PATH", Some("PATH"));
        }
    }
    finder.finish();
    Ok(finder.out)
}

struct Finder<'a> {
    home: &'a Path,
    fd: OwnedFd,
    /// What lies directly in home, sorted; `None` when that is not known.
    names: Option<Vec<(OsString, FileType)>>,
    out: Toolchains,
}

impl Finder<'_> {
    fn row(&mut self, row: &Row, variable: &dyn Fn(&str) -> Option<OsString>) {
        let asked = row.env.and_then(variable).filter(|value| !value.is_empty());
        let Some(value) = asked else {
            if !row.default.is_empty() {
                self.parts(Path::new(row.default), row, None);
            }
            return;
        };
        // GOPATH is a list; the others are lists of one.
        for value in value.as_bytes().split(|&b| b == b':') {
            let value = Path::new(OsStr::from_bytes(value));
            let Some(clean) = clean(value) else { continue };
            match clean.strip_prefix(self.home) {
                Ok(_) if row.parts.is_empty() => self.asked(value, row.what, row.env),
                // The parts are shown, not the root: so a root that holds everything is no harm
                // unless it is home.
                Ok(relative) if relative.as_os_str().is_empty() || is_private(relative) => {
                    self.refuse(value, "is home itself, or a place of secrets");
                }
                Ok(relative) => self.parts(relative, row, row.env),
                Err(_) => self.elsewhere(value),
            }
        }
    }

    /// One listing of home spares a call for each tool that is not installed.
    fn may_exist(&self, relative: &Path) -> bool {
        let (Some(names), Some(first)) = (&self.names, relative.components().next()) else {
            return true;
        };
        names.binary_search_by(|(name, _)| (**name).cmp(first.as_os_str())).is_ok()
    }

    fn parts(&mut self, root: &Path, row: &Row, env: Option<&'static str>) {
        if !self.may_exist(root) {
            return;
        }
        if row.parts.is_empty() {
            self.show(root, row.what, env);
            return;
        }
        // Most tools are not installed: one look decides for all parts.
        if rustix::fs::statat(&self.fd, root, AtFlags::empty()).is_err() {
            return;
        }
        for part in row.parts {
            self.show(&root.join(part), row.what, env);
        }
    }

    /// PATH or a variable names `value` as a whole.
    fn asked(&mut self, value: &Path, what: &'static str, env: Option<&'static str>) {
        let Some(clean) = clean(value) else {
            self.refuse(value, "is not a clean absolute path");
            return;
        };
        match clean.strip_prefix(self.home) {
            Ok(relative) if is_whole(relative) => self.refuse(value, "holds more than tools"),
            Ok(relative) if is_private(relative) => self.refuse(value, "is a place of secrets"),
            Ok(relative) => self.show(relative, what, env),
            Err(_) if env == Some("PATH") && !self.home.starts_with(&clean) => {}
            Err(_) => self.elsewhere(value),
        }
    }

    fn elsewhere(&mut self, value: &Path) {
        if self.home.starts_with(value) {
            self.refuse(value, "contains home");
        } else if !SYSTEM.iter().any(|system| value.starts_with(system)) {
            self.refuse(value, "lies outside home and the system directories");
        }
    }

    fn refuse(&mut self, path: &Path, why: &str) {
        self.out.refused.push((path.to_owned(), why.to_owned()));
    }

    /// Adds what is at `relative`, if anything is.
    fn show(&mut self, relative: &Path, what: &'static str, env: Option<&'static str>) {
        if !self.may_exist(relative) {
            return;
        }
        let at = self.home.join(relative);
        if self.out.tools.iter().any(|t| at.starts_with(&t.at) && t.is_dir) {
            return;
        }
        let Ok(stat) = fd::stat_name(&self.fd, relative) else { return };
        let mut kind = fd::kind(&stat);
        let mut path = at.clone();
        // The last component or one on the way may be a link; only an open can tell the latter.
        let name = relative.as_os_str().as_bytes();
        let linked = kind == FileType::Symlink
            || relative.components().nth(1).is_some()
                && fd::open_beneath(self.fd.as_fd(), name, fd::PLACE).is_err();
        if linked {
            let Ok(real) = std::fs::canonicalize(&at) else { return };
            let refusal = match real.strip_prefix(self.home) {
                Ok(inside) if is_whole(inside) => Some("a link to more than tools"),
                Ok(inside) if is_private(inside) => Some("a link to a place of secrets"),
                Ok(_) => None,
                Err(_) if SYSTEM.iter().any(|s| real.starts_with(s) && real != Path::new(s)) => {
                    None
                }
                Err(_) => Some("a link that leads out of home"),
            };
            if let Some(why) = refusal {
                self.refuse(&at, &format!("{why}: {}", real.display()));
                return;
            }
            let Ok(meta) = real.symlink_metadata() else { return };
            kind = if meta.is_dir() { FileType::Directory } else { FileType::RegularFile };
            if !meta.is_dir() && !meta.is_file() {
                return;
            }
            path = real;
        }
        let is_dir = kind == FileType::Directory;
        if is_dir || kind == FileType::RegularFile {
            self.out.tools.push(Tool { at, path, what, env, is_dir });
        }
    }

    fn finish(&mut self) {
        // A later, larger place swallows earlier parts of it.
        let tools = std::mem::take(&mut self.out.tools);
        for (index, tool) in tools.iter().enumerate() {
            let inside = tools.iter().enumerate().any(|(other, t)| {
                other != index && t.is_dir && tool.at != t.at && tool.at.starts_with(&t.at)
            });
            if !inside {
                self.out.tools.push(tool.clone());
            }
        }
        for secret in SECRETS {
            let path = self.home.join(secret);
            let shown = self.out.tools.iter().any(|t| path.starts_with(&t.path));
            if shown && fd::stat_name(&self.fd, *secret).is_ok() {
                self.out.masked.push(path);
            }
        }
        self.out.refused.sort();
        self.out.refused.dedup();
    }
}

/// An absolute path without `.`, double or trailing slashes; `None` for a relative one or with `..`.
fn clean(path: &Path) -> Option<PathBuf> {
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_) | Component::CurDir));
    (path.is_absolute() && plain).then(|| path.components().collect())
}

fn is_whole(relative: &Path) -> bool {
    WHOLE.iter().any(|whole| relative == Path::new(whole))
        || PRIVATE.iter().any(|private| Path::new(private).starts_with(relative))
}

fn is_private(relative: &Path) -> bool {
    PRIVATE.iter().any(|private| relative.starts_with(private))
}
