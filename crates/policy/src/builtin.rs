//! The rules that ringfence brings along: secrets, guards, git identity, system directories. Each
//! has a stable id, by which a trusted layer can lift it, and a reason.

use std::sync::LazyLock;

use crate::{Base, Effect, Kind, Origin, Permission, Rule, priority};

/// One built-in protection or grant: an id, why it exists, and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuiltinRule {
    pub id: &'static str,
    /// One line, lower case.
    pub reason: &'static str,
    pub effect: Effect,
    pub permission: Permission,
    pub priority: i32,
    /// Patterns as a policy file would write them.
    pub patterns: &'static [&'static str],
    /// Listed for `explain`, enforced by a mechanism of its own instead of by pattern: git guards
    /// (found per repository) and system directories (mounted as a set).
    pub by_mechanism: bool,
}

const fn secret(
    id: &'static str,
    reason: &'static str,
    patterns: &'static [&'static str],
) -> BuiltinRule {
    BuiltinRule {
        id,
        reason,
        effect: Effect::Cap,
        permission: Permission::None,
        priority: 0,
        patterns,
        by_mechanism: false,
    }
}

const fn guard(
    id: &'static str,
    reason: &'static str,
    patterns: &'static [&'static str],
) -> BuiltinRule {
    BuiltinRule {
        id,
        reason,
        effect: Effect::Cap,
        permission: Permission::Read,
        priority: priority::GUARD,
        patterns,
        by_mechanism: false,
    }
}

/// Layer name of built-in rules in messages.
pub const LAYER: &str = "built-in";

/// Directories that `files.system` mounts read-only, where they exist.
/// (A policy only says that they are wanted; symbolic links such as `/bin` are the mounter's matter.)
pub const SYSTEM_DIRS: &[&str] = &[
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu",
    "/snap",
];

static BUILTIN: &[BuiltinRule] = &[
    // Secrets: invisible unless a more specific grant names them or the id is lifted.
    secret("secret.ssh", "ssh private keys, configuration and known hosts", &["~/.ssh"]),
    secret("secret.gnupg", "gpg private keys and agent sockets", &["~/.gnupg"]),
    secret("secret.aws", "aws credentials and single sign-on tokens", &["~/.aws"]),
    secret(
        "secret.cloud",
        "credentials of cloud command lines",
        &[
            "~/.config/gcloud",
            "~/.azure",
            "~/.config/doctl",
            "~/.oci",
            "~/.aliyun",
            "~/.config/hcloud",
            "~/.config/scw",
            "~/.config/linode-cli",
            "~/.linode-cli",
            "~/.vultr-cli.yaml",
            "~/.bluemix",
            "~/.fly",
            "~/.config/fly",
            "~/.config/heroku",
            "~/.local/share/heroku",
            "~/.railway",
            "~/.config/netlify",
            "~/.local/share/com.vercel.cli",
            "~/.config/cloudflared",
            "~/.cloudflared",
            "~/.wrangler",
            "~/.config/.wrangler",
            "~/.terraform.d/credentials.tfrc.json",
            "~/.terraformrc",
            "~/.pulumi/credentials.json",
            "~/.boto",
            "~/.s3cfg",
            "~/.config/rclone",
            "~/.vault-token",
            "~/.config/op",
            "~/.config/Bitwarden CLI",
            "~/.databrickscfg",
            "~/.snowflake",
        ],
    ),
    secret("secret.kube", "cluster credentials", &["~/.kube", "~/.minikube", "~/.config/helm"]),
    secret(
        "secret.docker",
        "registry credentials",
        &["~/.docker", "~/.config/containers/auth.json", "~/.config/docker", "~/.dockercfg"],
    ),
    secret(
        "secret.netrc",
        "passwords by host",
        &["~/.netrc", "~/_netrc", "~/.authinfo", "~/.authinfo.gpg"],
    ),
    secret(
        "secret.keyrings",
        "password stores and desktop keyrings",
        &[
            "~/.local/share/keyrings",
            "~/.local/share/kwalletd",
            "~/.kde/share/apps/kwallet",
            "~/.password-store",
            "~/.pki",
            "~/.config/keepassxc",
            "~/.config/1Password",
            "~/.config/Bitwarden",
            "~/.config/sops",
            "~/.config/age",
            "~/.age",
            "~/Library/Keychains",
            "~/.step",
        ],
    ),
    secret(
        "secret.browsers",
        "browser profiles hold cookies and passwords",
        &[
            "~/.mozilla",
            "~/.thunderbird",
            "~/.config/google-chrome",
            "~/.config/google-chrome-beta",
            "~/.config/google-chrome-unstable",
            "~/.config/chromium",
            "~/.config/BraveSoftware",
            "~/.config/microsoft-edge",
            "~/.config/vivaldi",
            "~/.config/opera",
            "~/.config/zen",
            "~/.zen",
            "~/.librewolf",
            "~/.waterfox",
            "~/.var/app",
            "~/snap/firefox",
            "~/snap/chromium",
            "~/.config/Slack",
            "~/.config/discord",
            "~/.config/Signal",
            "~/.local/share/TelegramDesktop",
        ],
    ),
    secret(
        "secret.history",
        "typed commands often hold passwords",
        &[
            "~/.bash_history",
            "~/.zsh_history",
            "~/.zhistory",
            "~/.histfile",
            "~/.history",
            "~/.local/share/fish/fish_history",
            "~/.python_history",
            "~/.node_repl_history",
            "~/.psql_history",
            "~/.mysql_history",
            "~/.sqlite_history",
            "~/.rediscli_history",
            "~/.mongosh",
            "~/.dbshell",
            "~/.irb_history",
            "~/.lesshst",
            "~/.viminfo",
            "~/.wget-hsts",
            "~/.local/share/atuin",
            "~/.local/share/mcfly",
        ],
    ),
    secret(
        "secret.tokens",
        "tokens of registries, forges and databases",
        &[
            "~/.npmrc",
            "~/.yarnrc.yml",
            "~/.pypirc",
            "~/.config/pypoetry/auth.toml",
            "~/.local/share/uv/credentials",
            "~/.cargo/credentials",
            "~/.cargo/credentials.toml",
            "~/.gem/credentials",
            "~/.local/share/gem/credentials",
            "~/.bundle/config",
            "~/.m2/settings.xml",
            "~/.m2/settings-security.xml",
            "~/.gradle/gradle.properties",
            "~/.config/composer/auth.json",
            "~/.composer/auth.json",
            "~/.nuget/NuGet/NuGet.Config",
            "~/.git-credentials",
            "~/.config/git/credentials",
            "~/.config/gh/hosts.yml",
            "~/.config/glab-cli",
            "~/.config/hub",
            "~/.config/tea",
            "~/.pgpass",
            "~/.my.cnf",
            "~/.mylogin.cnf",
            "~/.config/rclone/rclone.conf",
            "~/.config/huggingface",
            "~/.cache/huggingface/token",
            "~/.cache/huggingface/stored_tokens",
            "~/.kaggle",
            "~/.config/sentry",
            "~/.sentryclirc",
            "~/.config/stripe",
            "~/.config/ngrok",
            "~/.ngrok2",
            "~/.hex/hex.config",
            "~/.config/configstore",
        ],
    ),
    secret(
        "secret.env",
        "env files of the workspace hold credentials; examples stay readable",
        &["**/.env", "**/.env.!(example|sample|template|dist|defaults|schema)"],
    ),
    secret(
        "secret.keys",
        "private keys and key stores in the workspace; well-known bundles of public certificates stay readable",
        &[
            "**/*.key",
            "**/!(cacert|cacerts|ca-bundle|ca-certificates|ca|cert|roots|isrgrootx1|fullchain|chain).pem",
            "**/*.p12",
            "**/*.pfx",
            "**/*.jks",
            "**/*.keystore",
            "**/*.ppk",
            "**/*.kdbx",
            "**/{id_rsa,id_dsa,id_ecdsa,id_ed25519,id_ecdsa_sk,id_ed25519_sk}",
            "**/.git-credentials",
            "**/.netrc",
            "**/.htpasswd",
            "**/{service-account,service_account,serviceaccount,credentials}.json",
        ],
    ),
    secret(
        "secret.shadow",
        "password hashes, host keys and administrators' rules",
        &[
            "/etc/shadow",
            "/etc/shadow-",
            "/etc/gshadow",
            "/etc/gshadow-",
            "/etc/security/opasswd",
            "/etc/sudoers",
            "/etc/sudoers.d",
            "/etc/ssh/ssh_host_rsa_key",
            "/etc/ssh/ssh_host_ecdsa_key",
            "/etc/ssh/ssh_host_ed25519_key",
            "/etc/ssh/ssh_host_dsa_key",
            "/etc/ssl/private",
            "/etc/pki/tls/private",
            "/etc/krb5.keytab",
            "/etc/wireguard",
            "/etc/openvpn",
            "/etc/ipsec.secrets",
            "/etc/NetworkManager/system-connections",
            "/etc/wpa_supplicant",
            "/etc/letsencrypt/archive",
            "/etc/letsencrypt/live",
            "/etc/kubernetes",
            "/etc/rancher",
            "/etc/docker/key.json",
        ],
    ),
    secret(
        "secret.sockets",
        "sockets of the host's daemons hand out the host's powers",
        &[
            "/run/user",
            "/run/docker.sock",
            "/run/docker",
            "/run/podman",
            "/run/containerd",
            "/run/crio",
            "/run/k3s",
            "/run/libvirt",
            "/run/lxd.socket",
            "/run/incus",
            "/run/snapd.socket",
            "/run/snapd-snap.socket",
            "/run/dbus",
            "/run/systemd",
            "/run/udev",
            "/run/avahi-daemon",
            "/run/cups",
            "/run/pcscd",
            "/run/secrets",
            "/run/credentials",
            "/run/screen",
            "/run/tmux",
            "/var/run/docker.sock",
            "/var/lib/docker",
            "/var/lib/containerd",
            "/var/snap/lxd/common/lxd/unix.socket",
        ],
    ),
    // Guards: not writable, whatever a policy file grants. What the host runs or obeys later.
    guard(
        "guard.editors",
        "editors run tasks and settings of the folder they open",
        &[
            ".vscode",
            ".idea",
            ".zed",
            ".fleet",
            ".vs",
            ".nvim.lua",
            ".nvimrc",
            ".exrc",
            ".vimrc",
            ".lvimrc",
            ".dir-locals.el",
            ".dir-locals-2.el",
            ".devcontainer",
            ".devcontainer.json",
            "*.code-workspace",
        ],
    ),
    guard(
        "guard.agents",
        "agents on the host obey these settings, hooks, commands and tool servers",
        &[
            ".claude",
            ".cursor",
            ".codex",
            ".gemini",
            ".opencode",
            "opencode.json",
            "opencode.jsonc",
            ".windsurf",
            ".kiro",
            ".factory",
            ".amp",
            ".pi",
            ".copilot",
            ".goose",
            ".roo",
            ".kilocode",
            ".continue",
            ".crush.json",
            "crush.json",
            ".aider.conf.yml",
            ".mcp.json",
            ".agents",
        ],
    ),
    guard(
        "guard.agents-home",
        "settings and hooks of agents in home run commands outside the sandbox",
        &[
            "~/.claude/settings.json",
            "~/.claude/settings.local.json",
            "~/.claude/hooks",
            "~/.claude/commands",
            "~/.claude/agents",
            "~/.claude/skills",
            "~/.claude/plugins",
            "~/.codex/config.toml",
            "~/.codex/hooks.json",
            "~/.cursor/mcp.json",
            "~/.cursor/hooks.json",
            "~/.gemini/settings.json",
            "~/.gemini/extensions",
            "~/.config/opencode/opencode.json",
            "~/.config/opencode/opencode.jsonc",
            "~/.config/opencode/plugin",
            "~/.config/opencode/plugins",
            "~/.codeium/windsurf/hooks.json",
            "~/.codeium/windsurf/mcp_config.json",
            "~/.copilot/mcp-config.json",
            "~/.hermes/config.yaml",
        ],
    ),
    guard(
        "guard.shell",
        "shells and tools run these files of the directory they enter",
        &[
            ".envrc",
            ".bashrc",
            ".bash_profile",
            ".bash_login",
            ".bash_logout",
            ".bash_aliases",
            ".profile",
            ".zshrc",
            ".zshenv",
            ".zprofile",
            ".zlogin",
            ".zlogout",
            ".gitconfig",
            ".ripgreprc",
            ".inputrc",
            "mise.toml",
            ".mise.toml",
            "mise.local.toml",
            ".mise.local.toml",
            ".mise",
            ".config/mise",
            ".config/mise.toml",
        ],
    ),
    guard(
        "guard.shell-home",
        "start-up files in home run at the next login or command",
        &[
            "~/.bashrc",
            "~/.bash_profile",
            "~/.bash_login",
            "~/.bash_logout",
            "~/.bash_aliases",
            "~/.profile",
            "~/.zshrc",
            "~/.zshenv",
            "~/.zprofile",
            "~/.zlogin",
            "~/.zlogout",
            "~/.xprofile",
            "~/.xinitrc",
            "~/.xsessionrc",
            "~/.inputrc",
            "~/.gitconfig",
            "~/.config/git",
            "~/.ripgreprc",
            "~/.config/fish",
            "~/.config/environment.d",
            "~/.config/autostart",
            "~/.config/systemd",
            "~/.config/mise",
            "~/.config/direnv",
            "~/.config/nvim",
            "~/.vimrc",
            "~/.vim",
            "~/.emacs.d",
            "~/.tmux.conf",
            "~/.config/tmux",
            "~/.config/Code/User",
            "~/.local/share/applications",
        ],
    ),
    guard(
        "guard.hooks",
        "hook managers run what these files name when the host uses git",
        &[
            ".husky",
            ".githooks",
            ".pre-commit-config.yaml",
            ".pre-commit-config.yml",
            ".pre-commit-hooks.yaml",
            "lefthook.yml",
            "lefthook.yaml",
            "lefthook.toml",
            "lefthook-local.yml",
            ".lefthook.yml",
            ".lefthook",
            ".overcommit.yml",
            ".simple-git-hooks.json",
        ],
    ),
    guard(
        "guard.ringfence",
        "a sandbox does not write the policy of the next one",
        &[
            "ringfence.toml",
            "ringfence.jsonc",
            "ringfence.json",
            ".ringfence",
            "fence.json",
            "fence.jsonc",
            "greywall.json",
            "~/.config/ringfence",
            "~/.local/share/ringfence",
            "~/.config/fence",
            "~/.config/greywall",
        ],
    ),
    BuiltinRule {
        id: "guard.git",
        reason: "git runs hooks and keys of its configuration; commits, refs and index stay writable",
        effect: Effect::Cap,
        permission: Permission::Read,
        priority: priority::GUARD,
        patterns: &[
            "**/.git/hooks",
            "**/.git/config",
            "**/.git/config.worktree",
            "**/.git/info/attributes",
            "**/.git/worktrees/*/config.worktree",
            "**/.git/modules/**/hooks",
            "**/.git/modules/**/config",
            "**/.git/modules/**/info/attributes",
        ],
        by_mechanism: true,
    },
    // Grants.
    BuiltinRule {
        id: "identity.git",
        reason: "git needs the committer's name and ignore list",
        effect: Effect::Grant,
        permission: Permission::Read,
        priority: 0,
        patterns: &[
            "~/.gitconfig",
            "~/.config/git",
            "~/.gitignore",
            "~/.gitignore_global",
            "~/.gitattributes",
            "~/.gitmessage",
        ],
        by_mechanism: false,
    },
    BuiltinRule {
        id: "system",
        reason: "programs and libraries (files.system)",
        effect: Effect::Grant,
        permission: Permission::Read,
        priority: 0,
        patterns: SYSTEM_DIRS,
        by_mechanism: true,
    },
];

/// Every built-in rule, for `ringfence policy show` and the documentation.
pub fn builtin_rules() -> &'static [BuiltinRule] {
    BUILTIN
}

/// The built-in rule called `id`.
pub fn builtin_rule(id: &str) -> Option<&'static BuiltinRule> {
    BUILTIN.iter().find(|rule| rule.id == id)
}

/// Ids that `lift` may name: every rule but `system` (which has a key of its own), and the groups.
pub(crate) fn liftable_ids() -> Vec<&'static str> {
    ["guard", "secret", "identity"]
        .into_iter()
        .chain(BUILTIN.iter().map(|r| r.id).filter(|id| *id != "system"))
        .collect()
}

pub(crate) fn is_liftable(id: &str) -> bool {
    matches!(id, "guard" | "secret" | "identity")
        || BUILTIN.iter().any(|rule| rule.id == id && id != "system")
}

fn rules_of(builtin: &BuiltinRule) -> impl Iterator<Item = Rule> + '_ {
    builtin.patterns.iter().map(|written| {
        // The table is written in cleaned form (a test holds it), so that start-up pays no parsing.
        let (base, pattern) = match (written.strip_prefix('/'), written.strip_prefix("~/")) {
            (Some(rest), _) => (Base::Root, rest),
            (None, Some(rest)) => (Base::Home, rest),
            (None, None) => (Base::Workspace, *written),
        };
        Rule {
            base,
            pattern: pattern.to_owned(),
            kind: Kind::Path,
            effect: builtin.effect,
            permission: builtin.permission,
            priority: builtin.priority,
            id: Some(builtin.id.to_owned()),
            origin: Origin { layer: LAYER.to_owned(), line: None },
        }
    })
}

/// Adds the rules that a policy carries: all that are enforced by pattern and not lifted.
pub(crate) fn add_rules(rules: &mut Vec<Rule>, is_lifted: &dyn Fn(&str) -> bool) {
    for builtin in BUILTIN.iter().filter(|b| !b.by_mechanism && !is_lifted(b.id)) {
        rules.extend(rules_of(builtin));
    }
}

static GIT: LazyLock<Vec<Rule>> = LazyLock::new(|| mechanism_rules("guard.git"));
static SYSTEM: LazyLock<Vec<Rule>> = LazyLock::new(|| mechanism_rules("system"));

fn mechanism_rules(id: &str) -> Vec<Rule> {
    BUILTIN.iter().filter(|b| b.id == id).flat_map(rules_of).collect()
}

/// What the git guards amount to, as rules.
pub(crate) fn git_rules() -> &'static [Rule] {
    &GIT
}

/// What `files.system` amounts to, as rules.
pub(crate) fn system_rules() -> &'static [Rule] {
    &SYSTEM
}
