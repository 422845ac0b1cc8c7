//! Named groups of hosts: what one tool needs, by full name. No pattern under which a stranger can
//! rent a name (`*.amazonaws.com` and the like), with few wildcards at all. Everything here is
//! reachable for upload as well as download wherever the service takes uploads: a group is a channel
//! to that service, and listing it says so.

/// A group of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// As an entry of `network.allow` or `network.deny` says it.
    pub name: &'static str,
    /// What it is for; one line, lower case.
    pub about: &'static str,
    /// Ports that the group is allowed on; an entry `name:PORTS` says others. A denied group is
    /// denied on every port.
    pub ports: &'static [u16],
    pub hosts: &'static [&'static str],
}

const HTTPS: &[u16] = &[443];
/// Package mirrors whose indexes are signed are fetched without TLS.
const WEB: &[u16] = &[80, 443];
/// Forges: git over ssh too.
const FORGE: &[u16] = &[22, 443];

const fn https(name: &'static str, about: &'static str, hosts: &'static [&'static str]) -> Group {
    Group { name, about, ports: HTTPS, hosts }
}

/// By name.
pub const GROUPS: &[Group] = &[
    // Claude Code: models, login, its updates.
    https(
        "anthropic",
        "anthropic's models, login and claude code",
        &[
            "api.anthropic.com",
            "claude.ai",
            "console.anthropic.com",
            "platform.claude.com",
            "downloads.claude.ai",
        ],
    ),
    // Forge of Atlassian; ssh on 22 and, behind firewalls, altssh on 443.
    Group {
        name: "bitbucket",
        about: "bitbucket.org: git and API",
        ports: FORGE,
        hosts: &["bitbucket.org", "api.bitbucket.org", "altssh.bitbucket.org"],
    },
    // Homebrew's metadata and bottles.
    https(
        "brew",
        "homebrew's formulae and bottles",
        &["formulae.brew.sh", "ghcr.io", "pkg-containers.githubusercontent.com"],
    ),
    Group {
        name: "codeberg",
        about: "codeberg.org: git and API",
        ports: FORGE,
        hosts: &["codeberg.org"],
    },
    // Conda packages.
    https(
        "conda",
        "conda packages",
        &["conda.anaconda.org", "repo.anaconda.com", "api.anaconda.org"],
    ),
    // GitHub Copilot's endpoints.
    https(
        "copilot",
        "github copilot's models",
        &[
            "api.githubcopilot.com",
            "api.individual.githubcopilot.com",
            "api.business.githubcopilot.com",
            "api.enterprise.githubcopilot.com",
            "copilot-proxy.githubusercontent.com",
        ],
    ),
    // cargo's sparse index and downloads; rustup's toolchains.
    https(
        "crates",
        "crates.io and rust toolchains",
        &["crates.io", "index.crates.io", "static.crates.io", "static.rust-lang.org"],
    ),
    // Cursor's agent.
    https("cursor", "cursor's agent", &["api2.cursor.sh", "api.cursor.com"]),
    // apt on Debian.
    Group {
        name: "debian",
        about: "debian's package mirrors",
        ports: WEB,
        hosts: &[
            "deb.debian.org",
            "security.debian.org",
            "ftp.debian.org",
            "cdn-fastly.deb.debian.org",
        ],
    },
    // Docker Hub: registry, login, blobs.
    https(
        "docker",
        "docker hub images",
        &[
            "registry-1.docker.io",
            "auth.docker.io",
            "index.docker.io",
            "production.cloudflare.docker.com",
            "download.docker.com",
        ],
    ),
    // Images of GitHub's registry.
    https(
        "ghcr",
        "github's container registry",
        &["ghcr.io", "pkg-containers.githubusercontent.com"],
    ),
    // git over https and ssh, API, archives, releases, raw files. Gists are github.com's too.
    Group {
        name: "github",
        about: "github.com: git, API, archives, releases",
        ports: FORGE,
        hosts: &[
            "github.com",
            "api.github.com",
            "codeload.github.com",
            "ssh.github.com",
            "uploads.github.com",
            "objects.githubusercontent.com",
            "raw.githubusercontent.com",
            "release-assets.githubusercontent.com",
            "github-cloud.githubusercontent.com",
        ],
    },
    Group {
        name: "gitlab",
        about: "gitlab.com: git, API, packages",
        ports: FORGE,
        hosts: &["gitlab.com", "altssh.gitlab.com", "registry.gitlab.com"],
    },
    // Modules by proxy, their checksums, toolchains.
    https(
        "go",
        "go modules and toolchains",
        &["proxy.golang.org", "sum.golang.org", "go.dev", "golang.org", "dl.google.com"],
    ),
    // Gemini: models and login. No wildcard: anybody has a name below googleapis.com's storage.
    https(
        "google",
        "google's models (gemini) and login",
        &[
            "generativelanguage.googleapis.com",
            "cloudcode-pa.googleapis.com",
            "aiplatform.googleapis.com",
            "oauth2.googleapis.com",
            "accounts.google.com",
        ],
    ),
    // Models and data sets; large files come from the content hosts.
    https(
        "huggingface",
        "hugging face models and data sets",
        &[
            "huggingface.co",
            "hf.co",
            "cdn-lfs.huggingface.co",
            "cdn-lfs.hf.co",
            "cdn-lfs-us-1.hf.co",
            "cas-bridge.xethub.hf.co",
            "cas-server.xethub.hf.co",
            "transfer.xethub.hf.co",
        ],
    ),
    // Maven Central, the Gradle plugin portal and distributions.
    https(
        "maven",
        "maven central and gradle",
        &[
            "repo.maven.apache.org",
            "repo1.maven.org",
            "plugins.gradle.org",
            "plugins-artifacts.gradle.org",
            "services.gradle.org",
            "downloads.gradle.org",
            "dl.google.com",
            "maven.google.com",
        ],
    ),
    // Models of others, each by the name that its documentation gives.
    https(
        "models",
        "other model services and their catalogue",
        &[
            "api.mistral.ai",
            "codestral.mistral.ai",
            "api.deepseek.com",
            "api.x.ai",
            "api.groq.com",
            "api.cohere.com",
            "api.together.xyz",
            "api.fireworks.ai",
            "openrouter.ai",
            "models.dev",
        ],
    ),
    // Node's own downloads, for nvm, fnm and node-gyp.
    https("node", "node.js releases and headers", &["nodejs.org", "iojs.org"]),
    // npm and yarn packages.
    https(
        "npm",
        "npm and yarn packages",
        &["registry.npmjs.org", "registry.yarnpkg.com", "repo.yarnpkg.com"],
    ),
    // Codex and ChatGPT login.
    https(
        "openai",
        "openai's models and login",
        &["api.openai.com", "auth.openai.com", "chatgpt.com"],
    ),
    // PHP packages (archives come from forges).
    https("packagist", "php packages", &["packagist.org", "repo.packagist.org", "getcomposer.org"]),
    // pip and uv.
    https("pypi", "python packages", &["pypi.org", "files.pythonhosted.org"]),
    // gem and bundler.
    https("rubygems", "ruby packages", &["rubygems.org", "index.rubygems.org"]),
    // apt on Ubuntu.
    Group {
        name: "ubuntu",
        about: "ubuntu's package mirrors",
        ports: WEB,
        hosts: &[
            "archive.ubuntu.com",
            "security.ubuntu.com",
            "ports.ubuntu.com",
            "ppa.launchpadcontent.net",
        ],
    },
];

/// The group called `name`.
pub fn group(name: &str) -> Option<&'static Group> {
    GROUPS.binary_search_by(|g| g.name.cmp(name)).ok().map(|at| &GROUPS[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{HostPattern, Name};

    #[test]
    fn groups_are_sorted_and_their_hosts_are_plain_names() {
        assert!(GROUPS.windows(2).all(|w| w[0].name < w[1].name), "sorted, no repeats");
        for g in GROUPS {
            assert_eq!(group(g.name), Some(g));
            assert!(!g.ports.is_empty() && !g.hosts.is_empty());
            for host in g.hosts {
                let name = Name::parse(host.as_bytes()).unwrap();
                assert_eq!(name.as_str(), *host);
                assert!(host.contains('.'));
                assert_eq!(HostPattern::parse(host), Ok(HostPattern::Exact(name)));
            }
        }
        assert_eq!(group("npn"), None);
    }
}
