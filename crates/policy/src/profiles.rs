//! Profiles: named fragments that come with ringfence. Rust tables instead of files, since the
//! default profile lies on the hot path of every start.

use crate::layer::{Entry, Fragment, Located, NetworkMode, OrderedKind, OrderedRule};
use crate::quantity::{Bytes, Count, Cpu};
use crate::{Origin, Permission, Policy, PolicyError};

/// A built-in profile.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub name: &'static str,
    /// One line, lower case.
    pub about: &'static str,
    build: fn() -> Fragment,
}

/// Used where no layer extends anything.
pub const DEFAULT: &str = "workspace";

static PROFILES: &[Profile] = &[
    Profile {
        name: "workspace",
        about: "the default: workspace writable, system and toolchains readable, home and secrets hidden, no network",
        build: workspace_fragment,
    },
    Profile {
        name: "strict",
        about: "workspace read-only, system readable, nothing of home, no network, small limits",
        build: strict,
    },
    Profile {
        name: "code",
        about: "workspace plus an agent's own directories and the hosts agents need (filtered)",
        build: code,
    },
    Profile {
        name: "permissive",
        about: "agentkernel's: workspace and home writable, environment passed, host network; secrets stay hidden",
        build: permissive,
    },
    Profile {
        name: "moderate",
        about: "agentkernel's: no workspace, no home, bare environment, host network, 512 MiB, one cpu",
        build: moderate,
    },
    Profile {
        name: "restrictive",
        about: "agentkernel's: as moderate without network, 256 MiB, half a cpu",
        build: restrictive,
    },
    Profile {
        name: "agent-safe",
        about: "AgentFense's: read all, write output/ and tmp/, hide secrets and .git",
        build: || preset("agent-safe", AGENT_SAFE),
    },
    Profile {
        name: "development",
        about: "AgentFense's: write all, hide secrets",
        build: || preset("development", DEVELOPMENT),
    },
    Profile {
        name: "read-only",
        about: "AgentFense's: read all",
        build: || preset("read-only", &[("**/*", Permission::Read, 0)]),
    },
    Profile {
        name: "full-access",
        about: "AgentFense's: write all",
        build: || preset("full-access", &[("**/*", Permission::Write, 0)]),
    },
    Profile {
        name: "view-only",
        about: "AgentFense's: names without content",
        build: || preset("view-only", &[("**/*", Permission::View, 0)]),
    },
];

/// All built-in profiles.
pub fn all() -> &'static [Profile] {
    PROFILES
}

/// Names of all built-in profiles.
pub fn names() -> Vec<String> {
    PROFILES.iter().map(|p| p.name.to_owned()).collect()
}

/// The fragment of the profile called `name`, with everything it builds upon merged in.
pub fn fragment(name: &str) -> Option<Fragment> {
    PROFILES.iter().find(|p| p.name == name).map(|p| (p.build)())
}

/// The finished policy of the profile called `name`.
pub fn policy(name: &str) -> Result<Policy, PolicyError> {
    fragment(name)
        .ok_or_else(|| PolicyError::UnknownProfile {
            at: Origin::default(),
            name: name.to_owned(),
            known: names(),
        })?
        .finish()
}

/// The default policy.
pub fn workspace() -> Result<Policy, PolicyError> {
    workspace_fragment().finish()
}

fn layer(name: &str) -> Fragment {
    Fragment { complete: true, ..Fragment::named(&format!("built-in {name}")) }
}

fn entries(name: &str, values: &[&str]) -> Vec<Entry> {
    let origin = Origin { layer: format!("built-in {name}"), line: None };
    let located = |value: &&str| Located { value: (*value).to_owned(), origin: origin.clone() };
    values.iter().map(located).collect()
}

/// Variables that programs need and that tell nothing secret.
pub const PASS: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "HOSTNAME",
    "TERM",
    "TERMINFO",
    "TERM_PROGRAM",
    "TERM_PROGRAM_VERSION",
    "COLORTERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "LS_COLORS",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "MANPAGER",
    "LESS",
    "GIT_PAGER",
    "GIT_AUTHOR_*",
    "GIT_COMMITTER_*",
    "GIT_TERMINAL_PROMPT",
    "CI",
    "DEBUG",
    "VERBOSE",
    "SOURCE_DATE_EPOCH",
    "MAKEFLAGS",
    "MAKELEVEL",
    "CC",
    "CXX",
    "AR",
    "LD",
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "PKG_CONFIG_PATH",
    "PKG_CONFIG_LIBDIR",
    "CMAKE_*",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_*",
    "CARGO_INCREMENTAL",
    "CARGO_NET_OFFLINE",
    "CARGO_PROFILE_*",
    "CARGO_TERM_*",
    "RUSTUP_*",
    "RUSTFLAGS",
    "RUSTDOCFLAGS",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "RUST_TEST_THREADS",
    "PYENV_*",
    "PYTHONPATH",
    "PYTHONUNBUFFERED",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
    "PYTHONWARNINGS",
    "VIRTUAL_ENV",
    "VIRTUAL_ENV_PROMPT",
    "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV",
    "CONDA_EXE",
    "CONDA_PYTHON_EXE",
    "CONDA_SHLVL",
    "PIPENV_*",
    "POETRY_HOME",
    "POETRY_CACHE_DIR",
    "POETRY_VIRTUALENVS_*",
    "UV_CACHE_DIR",
    "UV_OFFLINE",
    "UV_PYTHON",
    "UV_PYTHON_INSTALL_DIR",
    "UV_TOOL_DIR",
    "PIP_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_FIND_LINKS",
    "PIP_DISABLE_PIP_VERSION_CHECK",
    "PIP_NO_INPUT",
    "NVM_*",
    "FNM_*",
    "VOLTA_HOME",
    "N_PREFIX",
    "NODE_ENV",
    "NODE_PATH",
    "NODE_NO_WARNINGS",
    "npm_config_cache",
    "npm_config_offline",
    "npm_config_prefix",
    "npm_config_loglevel",
    "PNPM_HOME",
    "BUN_INSTALL",
    "DENO_DIR",
    "DENO_INSTALL",
    "COREPACK_HOME",
    "GOPATH",
    "GOROOT",
    "GOBIN",
    "GOCACHE",
    "GOMODCACHE",
    "GOFLAGS",
    "GOOS",
    "GOARCH",
    "GOTOOLCHAIN",
    "GOMAXPROCS",
    "CGO_ENABLED",
    "JAVA_HOME",
    "JDK_HOME",
    "MAVEN_HOME",
    "M2_HOME",
    "GRADLE_HOME",
    "GRADLE_USER_HOME",
    "ANDROID_HOME",
    "ANDROID_SDK_ROOT",
    "SDKMAN_DIR",
    "RBENV_*",
    "GEM_HOME",
    "GEM_PATH",
    "BUNDLE_PATH",
    "RAILS_ENV",
    "RACK_ENV",
    "PHPENV_ROOT",
    "COMPOSER_HOME",
    "DOTNET_ROOT",
    "DOTNET_CLI_HOME",
    "DOTNET_CLI_TELEMETRY_OPTOUT",
    "ASDF_DIR",
    "ASDF_DATA_DIR",
    "MISE_DATA_DIR",
    "MISE_SHELL",
    "GHCUP_INSTALL_BASE_PREFIX",
    "OPAM_SWITCH_PREFIX",
    "NIX_PATH",
    "NIX_PROFILES",
    "NIX_SSL_CERT_FILE",
    "IN_NIX_SHELL",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_DIRS",
    "XDG_CONFIG_DIRS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "DO_NOT_TRACK",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "DEBIAN_FRONTEND",
];

/// The default profile.
pub fn workspace_fragment() -> Fragment {
    let mut f = layer("workspace");
    f.files.write = entries("workspace", &["."]);
    f.files.system = Some(true);
    f.files.toolchains = Some(true);
    f.network.mode = Some(NetworkMode::None);
    f.environment.pass = entries("workspace", PASS);
    f.processes.ptrace = Some(true);
    f
}

const STRICT_PASS: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "COLORTERM",
    "LANG",
    "LC_*",
    "TZ",
    "NO_COLOR",
];

fn strict() -> Fragment {
    let mut f = layer("strict");
    f.lift = entries("strict", &["identity"]);
    f.files.read = entries("strict", &["."]);
    f.files.system = Some(true);
    f.files.toolchains = Some(false);
    f.files.tmp_size = Some(Bytes::new(64 << 20));
    f.files.shm_size = Some(Bytes::new(16 << 20));
    f.network.mode = Some(NetworkMode::None);
    f.environment.pass = entries("strict", STRICT_PASS);
    f.limits.pids = Some(Count::new(512));
    f.limits.core = Some(Bytes::new(0));
    f.processes.ptrace = Some(false);
    f.processes.io_uring = Some(false);
    f.processes.nested_namespaces = Some(false);
    f
}

/// Hosts that coding agents and their package managers talk to: groups, and agents that have none.
/// No pattern under which a stranger can rent a name (`*.amazonaws.com` and the like).
pub const CODE_HOSTS: &[&str] = &[
    // Models.
    "anthropic",
    "openai",
    "google",
    "models",
    "copilot",
    // Agents.
    "cursor",
    "ampcode.com:443",
    "opencode.ai:443",
    "api.opencode.ai:443",
    "app.factory.ai:443",
    "api.factory.ai:443",
    // Forges.
    "github",
    "gitlab",
    "bitbucket",
    "codeberg",
    // Registries.
    "npm",
    "node",
    "pypi",
    "crates",
    "go",
    "rubygems",
    "maven",
    "brew",
    "ghcr",
];

/// State directories of agents in home.
pub const AGENT_DIRS: &[&str] = &[
    "~/.claude",
    "~/.claude.json",
    "~/.claude.json.backup",
    "~/.cache/claude-cli-nodejs",
    "~/.codex",
    "~/.config/opencode",
    "~/.local/share/opencode",
    "~/.local/state/opencode",
    "~/.cache/opencode",
    "~/.opencode",
    "~/.gemini",
    "~/.cursor",
    "~/.config/cursor",
    "~/.amp",
    "~/.config/amp",
    "~/.local/share/amp",
    "~/.factory",
    "~/.pi",
    "~/.copilot",
    "~/.config/github-copilot",
    "~/.kiro",
    "~/.config/goose",
    "~/.local/share/goose",
    "~/.aider",
];

fn code() -> Fragment {
    let mut f = layer("code");
    f.files.write = entries("code", AGENT_DIRS);
    f.network.mode = Some(NetworkMode::Filtered);
    f.network.allow = entries("code", CODE_HOSTS);
    f.network.deny = entries(
        "code",
        &["169.254.169.254", "metadata.google.internal", "instance-data.ec2.internal"],
    );
    f.environment.pass = entries("code", &["CLAUDE_CONFIG_DIR", "CODEX_HOME", "CLAUDE_CODE_*"]);
    workspace_fragment().merge(f)
}

fn permissive() -> Fragment {
    let mut f = layer("permissive");
    f.files.write = entries("permissive", &[".", "~"]);
    f.files.system = Some(true);
    f.files.toolchains = Some(true);
    f.network.mode = Some(NetworkMode::Host);
    f.environment.pass = entries("permissive", &["*"]);
    f.processes.ptrace = Some(true);
    f
}

fn moderate() -> Fragment {
    let mut f = layer("moderate");
    f.lift = entries("moderate", &["identity"]);
    f.files.system = Some(true);
    f.files.toolchains = Some(false);
    f.network.mode = Some(NetworkMode::Host);
    f.environment.pass = entries("moderate", STRICT_PASS);
    f.limits.memory = Some(Bytes::new(512 << 20));
    f.limits.cpu = Some(Cpu::percent(100));
    f
}

fn restrictive() -> Fragment {
    let mut f = layer("restrictive");
    f.lift = entries("restrictive", &["identity"]);
    f.files.system = Some(true);
    f.files.toolchains = Some(false);
    f.network.mode = Some(NetworkMode::None);
    f.environment.pass = entries("restrictive", STRICT_PASS);
    f.limits.memory = Some(Bytes::new(256 << 20));
    f.limits.cpu = Some(Cpu::percent(50));
    f.processes.ptrace = Some(false);
    f
}

type PresetRule = (&'static str, Permission, i32);

const AGENT_SAFE: &[PresetRule] = &[
    ("**/*", Permission::Read, 0),
    ("/output/**", Permission::Write, 10),
    ("/tmp/**", Permission::Write, 10),
    ("**/.env*", Permission::None, 100),
    ("**/secrets/**", Permission::None, 100),
    ("**/*.key", Permission::None, 100),
    ("**/*.pem", Permission::None, 100),
    ("**/credentials*", Permission::None, 100),
    ("**/.git/**", Permission::None, 50),
];

const DEVELOPMENT: &[PresetRule] = &[
    ("**/*", Permission::Write, 0),
    ("**/.env*", Permission::None, 100),
    ("**/secrets/**", Permission::None, 100),
    ("**/*.key", Permission::None, 100),
    ("**/*.pem", Permission::None, 100),
];

/// A preset of AgentFense: exactly its rules for the workspace. ringfence's own secret patterns are
/// lifted, its guards are not (they exist because the workspace is the host's).
fn preset(name: &str, rules: &[PresetRule]) -> Fragment {
    let mut f = layer(name);
    f.lift = entries(name, &["secret.env", "secret.keys"]);
    f.files.system = Some(true);
    f.files.rules = rules
        .iter()
        .map(|(pattern, permission, priority)| Located {
            value: OrderedRule {
                pattern: (*pattern).to_owned(),
                permission: *permission,
                priority: *priority,
                kind: OrderedKind::Glob,
            },
            origin: Origin { layer: format!("built-in {name}"), line: None },
        })
        .collect();
    f.files.toolchains = Some(true);
    f.network.mode = Some(NetworkMode::None);
    f.environment.pass = entries(name, PASS);
    f.processes.ptrace = Some(true);
    f
}
