//! The network part of a plan: what the policy's host rules come to.

use std::net::IpAddr;
use std::sync::Arc;

use ringfence_jail::egress;
use ringfence_policy::Network;
use ringfence_policy::net::Rules;

use crate::plan::PlanError;

/// An egress filter to be set up. Made once for each run, as soon as the policy is known, so that the
/// namespace can be prepared while the rest is planned ([`Filter::prepare`]).
#[derive(Clone, Debug)]
pub struct Filter {
    pub rules: Arc<Rules>,
    pub(crate) config: egress::Config,
}

impl Filter {
    /// `None` when the policy lets no host through: the filter is then not even started.
    pub fn of(network: &Network) -> Result<Option<Self>, PlanError> {
        if !matches!(network, Network::Filtered { .. }) {
            return Ok(None);
        }
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
        Ok(Some(Self { rules: Arc::new(rules), config }))
    }

    /// Lets the helper set the namespace up, without waiting for it.
    pub fn prepare(&self, early: &mut ringfence_jail::Early) {
        early.prepare(egress::Program::new(&self.config));
    }
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
