//! Which variables a command inherits. Evaluation starts empty: what `pass` matches is copied,
//! except loaders' variables and secrets; an exact name in `pass` brings even those.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::Environment;

/// A variable that was not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripped {
    pub name: OsString,
    pub why: StripReason,
}

/// Why a variable was not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StripReason {
    /// No entry of `pass` matches.
    NotPassed,
    /// An entry of `deny` matches.
    Denied,
    /// Its name looks like a credential.
    Secret,
    /// It makes programs load or run something.
    Loader,
    /// It leads to the caller's desktop, agents or daemons.
    HostService,
    /// Empty name, or a name holding `=`: no program can look it up.
    Malformed,
}

impl std::fmt::Display for StripReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotPassed => "not in environment.pass",
            Self::Denied => "denied by environment.deny",
            Self::Secret => "looks like a secret; name it in environment.pass to copy it",
            Self::Loader => {
                "makes programs load or run code; name it in environment.pass to copy it"
            }
            Self::HostService => {
                "leads to a service of the host; name it in environment.pass to copy it"
            }
            Self::Malformed => "malformed name",
        })
    }
}

/// Variables by which a program is made to load or run something else.
pub const LOADERS: &[&str] = &[
    "LD_*",
    "DYLD_*",
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "GETCONF_DIR",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "BASH_ENV",
    "BASH_FUNC_*",
    "BASHOPTS",
    "SHELLOPTS",
    "ENV",
    "ZDOTDIR",
    "PROMPT_COMMAND",
    "PS0",
    "PS4",
    "IFS",
    "PYTHONSTARTUP",
    "PYTHONHOME",
    "PYTHONINSPECT",
    "PYTHONBREAKPOINT",
    "PYTHONEXECUTABLE",
    "PERL5OPT",
    "PERL5DB",
    "PERL5LIB",
    "RUBYOPT",
    "RUBYLIB",
    "NODE_OPTIONS",
    "NODE_REPL_EXTERNAL_MODULE",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "DOTNET_STARTUP_HOOKS",
    "CORECLR_PROFILER*",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_EXTERNAL_DIFF",
    "GIT_EXEC_PATH",
    "GIT_TEMPLATE_DIR",
    "GIT_PROXY_COMMAND",
    "GIT_ASKPASS",
    "GIT_EDITOR",
    "GIT_SEQUENCE_EDITOR",
    "GIT_CONFIG*",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "SSH_ASKPASS",
    "SUDO_ASKPASS",
    "LESSOPEN",
    "LESSCLOSE",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
];

/// Variables that lead to services of the host.
pub const HOST_SERVICES: &[&str] = &[
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "SSH_CONNECTION",
    "SSH_CLIENT",
    "SSH_TTY",
    "GPG_AGENT_INFO",
    "GNUPGHOME",
    "DBUS_*",
    "DISPLAY",
    "WAYLAND_*",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_*",
    "PULSE_*",
    "PIPEWIRE_*",
    "DOCKER_*",
    "CONTAINER_HOST",
    "CONTAINERD_ADDRESS",
    "KUBECONFIG",
    "KUBERNETES_*",
    "TMUX",
    "TMUX_PANE",
    "STY",
    "VSCODE_*",
    "NVIM",
    "NVIM_LISTEN_ADDRESS",
    "I3SOCK",
    "SWAYSOCK",
    "HYPRLAND_*",
    "ICEAUTHORITY",
    "SESSION_MANAGER",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "LISTEN_*",
    "INVOCATION_ID",
    "SYSTEMD_*",
];

/// Names that look like credentials: `*` at either end. Compared without regard to case.
pub const SECRETS: &[&str] = &[
    "*_API_KEY",
    "*_APIKEY",
    "*APIKEY",
    "API_KEY",
    "*_API_KEY_*",
    "*SECRET*",
    "*_TOKEN",
    "*_TOKEN_*",
    "TOKEN",
    "*TOKEN",
    "*PASSWORD*",
    "*PASSWD*",
    "*PASSPHRASE*",
    "*_PASS",
    "*_PWD",
    "*_PRIVATE_KEY*",
    "PRIVATE_KEY",
    "*_ACCESS_KEY*",
    "ACCESS_KEY",
    "*_SIGNING_KEY*",
    "*_ENCRYPTION_KEY*",
    "*_MASTER_KEY*",
    "*_SSH_KEY*",
    "*_DEPLOY_KEY*",
    "*_AUTH_KEY",
    "*_AUTH",
    "*_AUTHTOKEN",
    "*CREDENTIAL*",
    "*_CREDS",
    "*_COOKIE",
    "*_SESSION_KEY",
    "*_BEARER*",
    "*_JWT",
    "*_PAT",
    "*_DSN",
    "*_WEBHOOK_URL",
    "*_CONNECTION_STRING",
    "DATABASE_URL",
    "*_DATABASE_URL",
    "POSTGRES_URL",
    "MONGODB_URI",
    "MONGO_URL",
    "REDIS_URL",
    "AMQP_URL",
    "AWS_*",
    "AZURE_*",
    "ARM_CLIENT_*",
    "GOOGLE_APPLICATION_*",
    "GCP_*",
    "GCLOUD_*",
    "CLOUDSDK_*",
    "DIGITALOCEAN_*",
    "DO_API_*",
    "HCLOUD_*",
    "CLOUDFLARE_*",
    "CF_API_*",
    "VAULT_*",
    "CONSUL_HTTP_*",
    "NOMAD_*",
    "GITHUB_PAT",
    "GH_ENTERPRISE_*",
    "CI_JOB_*",
    "ACTIONS_*",
    "OP_SESSION_*",
    "OP_SERVICE_*",
    "BW_SESSION",
    "SOPS_*",
    "TF_VAR_*",
    "PGPASSFILE",
    "NETRC",
    "DOCKER_AUTH_CONFIG",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_INDEX*",
    "UV_EXTRA_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "npm_config__auth*",
    "npm_config_//*",
    "*_PROXY_AUTH*",
];

/// Names that a secret pattern catches although they hold none.
const NOT_SECRET: &[&str] = &["AWS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"];

impl Environment {
    /// Splits the caller's variables into those to copy (with `set` applied last) and those left
    /// out, with the reason for each. Names and values need not be UTF-8. The result is sorted by
    /// name; of a name given twice the first counts, as for `getenv`.
    pub fn filter(
        &self,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> (Vec<(OsString, OsString)>, Vec<Stripped>) {
        let mut kept: Vec<(OsString, OsString)> = Vec::new();
        let mut stripped: Vec<Stripped> = Vec::new();
        for (name, value) in vars {
            match self.judge(&name) {
                Ok(()) => kept.push((name, value)),
                Err(why) => stripped.push(Stripped { name, why }),
            }
        }
        kept.sort_by(|a, b| a.0.cmp(&b.0));
        kept.dedup_by(|later, earlier| later.0 == earlier.0);
        for (name, value) in &self.set {
            let pair = (OsString::from(name), OsString::from(value));
            match kept.binary_search_by(|probe| probe.0.cmp(&pair.0)) {
                Ok(at) => kept[at] = pair,
                Err(at) => kept.insert(at, pair),
            }
        }
        stripped.retain(|s| !s.name.to_str().is_some_and(|n| self.set.contains_key(n)));
        stripped.sort_by(|a, b| a.name.cmp(&b.name));
        stripped.dedup();
        (kept, stripped)
    }

    /// Whether the variable called `name` is copied, or why not.
    pub fn judge(&self, name: &OsStr) -> Result<(), StripReason> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.contains(&b'=') || bytes.contains(&0) {
            return Err(StripReason::Malformed);
        }
        let exact = self.pass.iter().any(|p| p.as_bytes() == bytes);
        if self.deny.iter().any(|p| wild(p.as_bytes(), bytes, false)) {
            return Err(StripReason::Denied);
        }
        if exact {
            return Ok(());
        }
        if !self.pass.iter().any(|p| wild(p.as_bytes(), bytes, false)) {
            return Err(why_dangerous(bytes).unwrap_or(StripReason::NotPassed));
        }
        match why_dangerous(bytes) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

/// Whether a variable with this name holds a credential, as far as names tell.
pub fn names_a_secret(name: &str) -> bool {
    why_dangerous(name.as_bytes()) == Some(StripReason::Secret)
}

fn why_dangerous(name: &[u8]) -> Option<StripReason> {
    let any = |list: &[&str]| list.iter().any(|p| wild(p.as_bytes(), name, true));
    if any(LOADERS) {
        Some(StripReason::Loader)
    } else if any(HOST_SERVICES) {
        Some(StripReason::HostService)
    } else if any(SECRETS) && !any(NOT_SECRET) {
        Some(StripReason::Secret)
    } else {
        None
    }
}

/// Shell-like match with `*` only. Values of the caller's environment are not secret here, names
/// are short; the greedy two-pointer walk is linear in practice.
fn wild(pattern: &[u8], name: &[u8], fold: bool) -> bool {
    let same = |a: u8, b: u8| if fold { a.eq_ignore_ascii_case(&b) } else { a == b };
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| same(*c, name[n])) {
            p += 1;
            n += 1;
        } else if let Some((after, from)) = retry {
            retry = Some((after, from + 1));
            p = after;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}
