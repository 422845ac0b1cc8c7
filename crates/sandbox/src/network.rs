//! The network part of a plan: what the policy's host rules come to.

use std::net::IpAddr;
use std::sync::Arc;

use ringfence_jail::egress;
use ringfence_policy::Network;
use ringfence_policy::net::Rules;

use crate::plan::PlanError;

/// Where the sandbox finds the proxies, on its own loopback: a port that nothing inside can bind.
pub const PROXY_PORT: u16 = egress::PORT;

/// An egress filter to be set up. Made once for each run, as soon as the policy is known, so that the
/// namespace can be prepared while the rest is planned ([`Filter::prepare`]).
#[derive(Clone, Debug)]
pub struct Filter {
    pub rules: Arc<Rules>,
    /// Tell programs of the proxies by their variables.
    pub proxies: bool,
    pub(crate) config: egress::Config,
}

impl Filter {
    /// `None` when the policy lets no host through: the filter is then not even started.
    pub fn of(network: &Network) -> Result<Option<Self>, PlanError> {
        let Network::Filtered { egress: chosen, .. } = network else { return Ok(None) };
        let rules = Rules::compile(network).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            PlanError::Unsupported(problems.join("\n"))
        })?;
        if rules.is_empty() {
            return Ok(None);
        }
        let config = egress::Config {
            host_loopback: rules.host_loopback_ports(),
            ports: rules.listed_ports(),
            nameservers: std::fs::read("/etc/resolv.conf")
                .map(|text| nameservers(&text))
                .unwrap_or_default(),
        };
        Ok(Some(Self { rules: Arc::new(rules), proxies: chosen.proxies, config }))
    }

    /// Lets the helper set the namespace up, without waiting for it.
    pub fn prepare(&self, early: &mut ringfence_jail::Early) {
        early.prepare(egress::Program::new(&self.config));
    }
}

/// Variables that tell programs of the proxies, a courtesy: what does not know them is filtered all the
/// same. A program that does gets an answer in words where a connection would only be reset.
///
/// - `ALL_PROXY` is an `http` one too: Python's clients fail on `socks5h` where a package is missing.
/// - Java prints `JAVA_TOOL_OPTIONS` at every start, so only its build tools are told.
pub fn proxy_environment() -> Vec<(&'static str, String, Keep)> {
    const BOTH: &str = "localhost,127.0.0.1,::1";
    let port = PROXY_PORT;
    let url = format!("http://127.0.0.1:{port}");
    let java = format!(
        "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={port} -Dhttps.proxyHost=127.0.0.1 \
         -Dhttps.proxyPort={port} -Dhttp.nonProxyHosts=localhost|127.*|[::1]"
    );
    let mut all = Vec::new();
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "GRPC_PROXY",
        "grpc_proxy",
        "YARN_HTTP_PROXY",
        "YARN_HTTPS_PROXY",
    ] {
        all.push((name, url.clone(), Keep::Ours));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        all.push((name, BOTH.to_owned(), Keep::Ours));
    }
    all.push(("NODE_USE_ENV_PROXY", "1".to_owned(), Keep::Ours));
    for name in ["MAVEN_OPTS", "GRADLE_OPTS"] {
        all.push((name, java.clone(), Keep::Theirs));
    }
    all
}

/// Whose value stands where the caller passed a variable of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// A proxy of the host's is not to be reached from inside.
    Ours,
    /// The caller's says more than ours.
    Theirs,
}

/// The servers of a resolver configuration. Scoped addresses are passed over: the links that they
/// mean do not exist inside.
fn nameservers(text: &[u8]) -> Vec<IpAddr> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::nameservers;

    #[test]
    fn servers_of_a_resolver_configuration() {
        let text = b"# nameserver 1.1.1.1\nsearch example.com\nnameserver 127.0.0.53\n\
            nameserver\t2001:db8::53 # second\nnameserver fe80::1%eth0\nnameserver\noptions edns0\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "2001:db8::53"]);
    }
}
