//! Which requests may be made on an inspected connection.

use std::fmt::Write as _;
use std::net::IpAddr;

use hyper::header::{HeaderMap, HeaderName};
use ringfence_policy::net::{Host, HostPattern, Name};

use super::path::{PathPattern, readings};
use crate::gate::Finding;

/// Headers by which some frameworks let a `POST` stand for another method.
static METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Headers by which some front ends let another path stand for the request's.
static PATH_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-override-url"),
];

/// How much of a path stands in a record.
const LONGEST_SHOWN: usize = 256;

/// Requests that are allowed. A host that any rule names gets no other request through.
#[derive(Clone, Debug)]
pub struct RequestRule {
    pub hosts: Vec<HostPattern>,
    /// As in the request line, case counts; none: any method.
    pub methods: Vec<String>,
    /// None: any path.
    pub paths: Vec<PathPattern>,
    /// File and line, for records.
    pub origin: Option<String>,
}

/// Whether a pattern means `host`. Ports are not its business: the connection was judged before.
pub(super) fn covers(pattern: &HostPattern, host: &Host) -> bool {
    match (pattern, host) {
        (HostPattern::Any, _) => true,
        (HostPattern::Exact(exact), Host::Name(name)) => exact == name,
        (HostPattern::Subdomains(base), Host::Name(name)) => is_below(name, base),
        (HostPattern::Network(network), Host::Address(address)) => {
            network.contains(&IpAddr::to_canonical(address))
        }
        _ => false,
    }
}

pub(super) fn any_covers(patterns: &[HostPattern], host: &Host) -> bool {
    patterns.iter().any(|pattern| covers(pattern, host))
}

fn is_below(name: &Name, base: &Name) -> bool {
    name.as_str().strip_suffix(base.as_str()).is_some_and(|labels| labels.ends_with('.'))
}

/// Judges one request.
pub(super) fn judge(
    rules: &[RequestRule],
    host: &Host,
    method: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<(), Finding> {
    let mut rules = rules.iter().filter(|rule| any_covers(&rule.hosts, host)).peekable();
    if rules.peek().is_none() {
        return Ok(());
    }
    let shown = show(method, path);
    let origin = rules.peek().and_then(|rule| rule.origin.clone());
    let finding =
        |reason, detail, remedy| Finding { reason, detail, origin: origin.clone(), remedy };
    let readings = readings(path).map_err(|why| {
        finding(
            "path-ambiguous",
            format!("{shown}: the path cannot be judged: {why}"),
            Some("ask for the path in its plain form".to_owned()),
        )
    })?;
    if let Some(name) = PATH_OVERRIDES.iter().find(|name| headers.contains_key(*name)) {
        return Err(finding(
            "path-ambiguous",
            format!("{shown}: the header {name} would let another path stand for the judged one"),
            Some(format!("leave {name} out")),
        ));
    }
    let rules: Vec<&RequestRule> = rules.collect();
    let overrides = METHOD_OVERRIDES.iter().flat_map(|name| headers.get_all(name));
    let methods = std::iter::once(method.to_owned()).chain(
        // An override is not case-sensitive where it is obeyed.
        overrides
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_uppercase()),
    );
    for method in methods {
        let fitting =
            rules.iter().filter(|rule| rule.methods.is_empty() || rule.methods.contains(&method));
        let anything = fitting.clone().any(|rule| rule.paths.is_empty());
        if anything || readings.all_covered(&fitting.flat_map(|rule| &rule.paths)) {
            continue;
        }
        let other = rules
            .iter()
            .any(|rule| rule.paths.is_empty() || readings.all_covered(&rule.paths.iter()));
        let (reason, what) = if other { ("method", "this method") } else { ("path", "this path") };
        return Err(finding(
            reason,
            format!("{shown}: no entry of network.rules for {host} allows {what}"),
            Some(format!(
                "add to the policy: [[network.rules]] hosts = [\"{host}\"], methods = [\"{}\"], paths = [\"{}\"]",
                limited(&method, 32),
                limited(path, LONGEST_SHOWN),
            )),
        ));
    }
    Ok(())
}

/// Method and path for a record: no query, nothing unprintable, not too long.
pub(super) fn show(method: &str, path: &str) -> String {
    format!("{} {}", limited(method, 32), limited(path, LONGEST_SHOWN))
}

fn limited(text: &str, length: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= length {
            out.push('…');
            break;
        }
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text.as_bytes()).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    fn rule(hosts: &[HostPattern], methods: &[&str], paths: &[&str]) -> RequestRule {
        RequestRule {
            hosts: hosts.to_vec(),
            methods: methods.iter().map(ToString::to_string).collect(),
            paths: paths.iter().map(|path| PathPattern::parse(path).unwrap()).collect(),
            origin: Some("policy.toml:7".to_owned()),
        }
    }

    #[test]
    fn hosts_by_label() {
        let below = HostPattern::Subdomains(name("a.example"));
        assert!(covers(&below, &host("x.a.example")));
        assert!(!covers(&below, &host("a.example")));
        assert!(!covers(&below, &host("xa.example")));
        assert!(!covers(&HostPattern::HostLoopback, &host("localhost")));
        let network = HostPattern::Network("192.0.2.0/24".parse().unwrap());
        assert!(covers(&network, &host("192.0.2.7")));
        assert!(!covers(&network, &host("a.example")));
    }

    #[test]
    fn deny_by_default_once_a_host_has_rules() {
        let exact = HostPattern::Exact(name("a.example"));
        let rules = [
            rule(std::slice::from_ref(&exact), &["GET", "HEAD"], &["/v1/**"]),
            rule(std::slice::from_ref(&exact), &["POST"], &["/v1/messages"]),
        ];
        let none = HeaderMap::new();
        let ask = |at: &str, method, path| judge(&rules, &host(at), method, path, &none);
        assert_eq!(ask("a.example", "GET", "/v1/x"), Ok(()));
        assert_eq!(ask("a.example", "POST", "/v1/messages"), Ok(()));
        assert_eq!(ask("b.example", "DELETE", "/anything/../x"), Ok(()));
        assert_eq!(ask("a.example", "POST", "/v1/x").unwrap_err().reason, "method");
        assert_eq!(ask("a.example", "get", "/v1/x").unwrap_err().reason, "method");
        assert_eq!(ask("a.example", "GET", "/v2").unwrap_err().reason, "path");
        assert_eq!(ask("a.example", "GET", "/v1/../v2").unwrap_err().reason, "path-ambiguous");
        let found = ask("a.example", "PUT", "/v1/x").unwrap_err();
        assert!(found.detail.starts_with("PUT /v1/x: no entry"), "{found:?}");
        assert_eq!(found.origin.as_deref(), Some("policy.toml:7"));
        assert!(found.remedy.unwrap().contains("methods = [\"PUT\"]"));
    }

    #[test]
    fn override_headers_do_not_help() {
        let rules = [rule(&[HostPattern::Any], &["POST"], &["/v1/**"])];
        let mut headers = HeaderMap::new();
        headers.insert("x-http-method-override", "delete".parse().unwrap());
        let found = judge(&rules, &host("a.example"), "POST", "/v1/x", &headers).unwrap_err();
        assert_eq!(found.reason, "method");
        headers.clear();
        headers.insert("x-original-url", "/admin".parse().unwrap());
        let found = judge(&rules, &host("a.example"), "POST", "/v1/x", &headers).unwrap_err();
        assert_eq!(found.reason, "path-ambiguous");
    }
}
