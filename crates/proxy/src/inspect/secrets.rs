//! Credentials that the sandbox never holds: it has a placeholder, and the real value takes its place in
//! a header of a request that goes to one of the secret's hosts over verified TLS.

use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use ringfence_policy::net::{Host, HostPattern};
use rustls::crypto::CryptoProvider;
use zeroize::Zeroizing;

use super::authority::hexadecimal;
use super::rules::any_covers;
use crate::gate::Finding;

/// Values shorter than this are not searched for in responses: they would be found by chance.
const SHORTEST_SEARCHED: usize = 8;

/// The longest name: it is part of each placeholder.
const LONGEST_NAME: usize = 64;

/// One credential.
pub struct Secret {
    name: String,
    value: Zeroizing<Vec<u8>>,
    placeholder: String,
    hosts: Vec<HostPattern>,
    header: Option<HeaderName>,
    format: Option<String>,
}

/// Why a secret cannot be used. Never shows the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network.secrets.{name}: {problem}")]
pub struct SecretError {
    pub name: String,
    pub problem: &'static str,
}

impl fmt::Debug for Secret {
    /// Without the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("hosts", &self.hosts)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Secret {
    /// A secret for `hosts`, with a fresh placeholder. `header`: the only header in which the
    /// placeholder is replaced; `None`: any. `format`: what the header gets when the request has none,
    /// `{}` standing for the value (`Bearer {}`); needs `header`.
    pub fn new(
        name: &str,
        value: Zeroizing<Vec<u8>>,
        hosts: Vec<HostPattern>,
        header: Option<&str>,
        format: Option<&str>,
    ) -> Result<Self, SecretError> {
        let error = |problem| SecretError { name: name.to_owned(), problem };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(is_plain) {
            return Err(error("the name is not 1 to 64 letters, digits, `-` and `_`"));
        }
        if value.is_empty() {
            return Err(error("the value is empty"));
        }
        if value.iter().any(|&byte| byte.is_ascii_control()) {
            return Err(error("the value holds a control character or a line end"));
        }
        let header = match header.map(|text| HeaderName::from_bytes(text.as_bytes())) {
            None => None,
            Some(Ok(name)) if name != HOST => Some(name),
            Some(_) => {
                return Err(error("header is not the name of a header that can hold a secret"));
            }
        };
        if let Some(format) = format {
            if header.is_none() {
                return Err(error("format needs header"));
            }
            if format.matches("{}").count() != 1 || format.chars().any(char::is_control) {
                return Err(error("format holds `{}` exactly once, and no control character"));
            }
        }
        let placeholder = placeholder(name).ok_or_else(|| error("no random numbers can be had"))?;
        Ok(Self {
            name: name.to_owned(),
            value,
            placeholder,
            hosts,
            header,
            format: format.map(str::to_owned),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the sandbox gets instead of the value.
    pub fn placeholder(&self) -> &str {
        &self.placeholder
    }

    /// Takes over what the sandbox has in its environment already.
    pub(super) fn keep_placeholder_of(&mut self, other: &Self) {
        self.placeholder.clone_from(&other.placeholder);
    }

    /// `text` with the placeholder where the value stands; `None` where it does not. Short values would
    /// be found by chance.
    pub(super) fn hide(&self, text: &[u8]) -> Option<Vec<u8>> {
        if self.value.len() < SHORTEST_SEARCHED {
            return None;
        }
        replace(text, &self.value, self.placeholder.as_bytes()).map(|text| text.to_vec())
    }

    pub(super) fn is_for(&self, host: &Host) -> bool {
        any_covers(&self.hosts, host)
    }

    /// Puts the value into `headers`; says with which text it went out, by which it is found when it
    /// comes back.
    fn inject(&self, headers: &mut HeaderMap, needles: &mut Needles) -> bool {
        let mut injected = false;
        for (name, value) in headers.iter_mut() {
            if name == HOST || self.header.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            let plain = replace(value.as_bytes(), self.placeholder.as_bytes(), &self.value);
            let changed = match plain {
                Some(changed) => changed,
                None if name == AUTHORIZATION => {
                    let Some((prefix, decoded)) = basic(value.as_bytes()) else { continue };
                    let Some(real) = replace(&decoded, self.placeholder.as_bytes(), &self.value)
                    else {
                        continue;
                    };
                    let encoded = Zeroizing::new(STANDARD.encode(&*real).into_bytes());
                    needles.add(encoded.clone(), value.as_bytes()[prefix.len()..].to_vec());
                    let mut whole = Zeroizing::new(value.as_bytes()[prefix].to_vec());
                    whole.extend_from_slice(&encoded);
                    whole
                }
                None => continue,
            };
            if let Some(changed) = sensitive(&changed) {
                *value = changed;
                injected = true;
            }
        }
        if let (Some(name), Some(format)) = (&self.header, &self.format)
            && !headers.contains_key(name)
            && let Some(whole) = replace(format.as_bytes(), b"{}", &self.value)
            && let Some(whole) = sensitive(&whole)
        {
            headers.insert(name, whole);
            injected = true;
        }
        injected
    }
}

/// Random enough that no guess and no accident hits it.
fn placeholder(name: &str) -> Option<String> {
    let provider: CryptoProvider = rustls::crypto::ring::default_provider();
    let mut random = [0; 16];
    provider.secure_random.fill(&mut random).ok()?;
    Some(format!("ringfence-secret-{name}-{}", hexadecimal(&random)))
}

/// Marked so that `Debug` hides it and HTTP/2 does not put it into its table.
fn sensitive(bytes: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The credentials of basic authentication, decoded, and what stands before them.
fn basic(value: &[u8]) -> Option<(Range<usize>, Zeroizing<Vec<u8>>)> {
    let (scheme, _) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let start = 6 + value[6..].iter().take_while(|&&byte| byte == b' ').count();
    let text = &value[start..];
    let decoded = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
    Some((0..start, Zeroizing::new(decoded)))
}

/// `text` with each `from` as `to`; `None` if there is none.
fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut at = find(text, from)?;
    // Room for all of it, so that no half-grown copy stays behind in freed memory.
    let most = text.len() + (text.len() / from.len().max(1)) * to.len();
    let mut out = Zeroizing::new(Vec::with_capacity(most));
    let mut rest = text;
    loop {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
        match find(rest, from) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.extend_from_slice(rest);
    Some(out)
}

pub(super) fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    if what.is_empty() { None } else { memchr::memmem::find(text, what) }
}

/// What must not come back, and what is shown instead.
#[derive(Clone, Default)]
pub(super) struct Needles(Vec<(Zeroizing<Vec<u8>>, Vec<u8>)>);

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Needles({})", self.0.len())
    }
}

impl Needles {
    fn add(&mut self, needle: Zeroizing<Vec<u8>>, shown: Vec<u8>) {
        if needle.len() >= SHORTEST_SEARCHED && !self.0.iter().any(|(known, _)| *known == needle) {
            self.0.push((needle, shown));
        }
    }

    #[cfg(test)]
    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        let pair = |(needle, shown): &(&str, &str)| {
            (Zeroizing::new(needle.as_bytes().to_vec()), shown.as_bytes().to_vec())
        };
        Self(pairs.iter().map(pair).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first needle in `text`: where, its length, what is shown instead.
    pub(super) fn first(&self, text: &[u8]) -> Option<(usize, usize, &[u8])> {
        self.0
            .iter()
            .filter_map(|(needle, shown)| {
                Some((find(text, needle)?, needle.len(), shown.as_slice()))
            })
            .min_by_key(|&(at, length, _)| (at, std::cmp::Reverse(length)))
    }

    /// How many bytes at the end of `text` may be the beginning of a needle.
    pub(super) fn begun(&self, text: &[u8]) -> usize {
        self.0
            .iter()
            .map(|(needle, _)| {
                let most = text.len().min(needle.len() - 1);
                (1..=most).rev().find(|&n| text.ends_with(&needle[..n])).unwrap_or(0)
            })
            .max()
            .unwrap_or(0)
    }

    /// Shows placeholders instead of secrets in the headers (or trailers) of a response.
    pub(super) fn scrub(&self, headers: &mut HeaderMap) {
        if self.is_empty() {
            return;
        }
        for value in headers.values_mut() {
            for (needle, shown) in &self.0 {
                if let Some(changed) = replace(value.as_bytes(), needle, shown) {
                    // What held a header value and a placeholder is a header value.
                    *value = HeaderValue::from_bytes(&changed)
                        .unwrap_or_else(|_| HeaderValue::from_static(""));
                }
            }
        }
    }
}

/// What became of a request's secrets.
#[derive(Debug, Default)]
pub(super) struct Injected {
    /// Whether any value was put in.
    pub any: bool,
    pub needles: Needles,
}

/// Puts the values of all secrets of `host` into a request that was allowed. A placeholder that is on its
/// way to another host, or over a connection that is not encrypted, refuses the request.
pub(super) fn apply(
    secrets: &[Secret],
    host: &Host,
    encrypted: bool,
    shown: &str,
    target: &str,
    headers: &mut HeaderMap,
) -> Result<Injected, Finding> {
    let mut injected = Injected::default();
    for secret in secrets {
        let at_home = secret.is_for(host);
        if at_home && encrypted {
            secret.remember(&mut injected.needles);
            continue;
        }
        if !secret.occurs(target, headers) {
            continue;
        }
        let name = &secret.name;
        return Err(if at_home {
            Finding {
                reason: "secret-plaintext",
                detail: format!(
                    "{shown}: the secret {name} is not sent over a connection without TLS"
                ),
                origin: None,
                remedy: Some("use https".to_owned()),
            }
        } else {
            Finding {
                reason: "secret-elsewhere",
                detail: format!("{shown}: the secret {name} is not for {host}"),
                origin: None,
                remedy: Some(format!(
                    "add {host} to hosts of network.secrets.{name} if it shall get it"
                )),
            }
        });
    }
    if encrypted {
        // After all were looked at: a value is never taken for another secret's placeholder's place.
        for secret in secrets.iter().filter(|secret| secret.is_for(host)) {
            injected.any |= secret.inject(headers, &mut injected.needles);
        }
    }
    Ok(injected)
}

impl Secret {
    /// Whether the placeholder stands anywhere in the head of a request.
    fn occurs(&self, target: &str, headers: &HeaderMap) -> bool {
        let placeholder = self.placeholder.as_bytes();
        find(target.as_bytes(), placeholder).is_some()
            || headers.values().any(|value| {
                find(value.as_bytes(), placeholder).is_some()
                    || basic(value.as_bytes())
                        .is_some_and(|(_, decoded)| find(&decoded, placeholder).is_some())
            })
    }

    /// The forms in which the value is looked for in responses.
    fn remember(&self, needles: &mut Needles) {
        needles.add(self.value.clone(), self.placeholder.clone().into_bytes());
        let mut escaped = Zeroizing::new(Vec::with_capacity(self.value.len() * 3));
        for &byte in self.value.iter() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                escaped.push(byte);
            } else {
                escaped.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
        }
        needles.add(escaped, self.placeholder.clone().into_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_policy::net::Name;

    fn host(text: &str) -> Host {
        Host::parse(text.as_bytes()).unwrap()
    }

    fn secret(header: Option<&str>, format: Option<&str>) -> Secret {
        let hosts = vec![HostPattern::Exact(Name::parse(b"api.example").unwrap())];
        let value = Zeroizing::new(b"s3cret/value+1".to_vec());
        Secret::new("TOKEN", value, hosts, header, format).unwrap()
    }

    fn headers(of: &[(&'static str, String)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn run(
        secret: Secret,
        at: &str,
        encrypted: bool,
        headers: &mut HeaderMap,
    ) -> Result<Injected, Finding> {
        apply(&[secret], &host(at), encrypted, "GET /", "/", headers)
    }

    #[test]
    fn the_value_takes_the_placeholder_s_place_in_its_header_only() {
        let secret = secret(Some("Authorization"), None);
        let placeholder = secret.placeholder.clone();
        let mut sent = headers(&[
            ("authorization", format!("Bearer {placeholder}")),
            ("x-other", placeholder.clone()),
        ]);
        assert!(run(secret, "api.example", true, &mut sent).unwrap().any);
        assert_eq!(sent["authorization"], "Bearer s3cret/value+1");
        assert_eq!(sent["x-other"], placeholder.as_str());
        assert!(!format!("{sent:?}").contains("s3cret"));
    }

    #[test]
    fn basic_credentials_are_opened() {
        let secret = secret(None, None);
        let form = STANDARD.encode(format!("user:{}", secret.placeholder));
        let mut sent = headers(&[("authorization", format!("basic {form}"))]);
        let injected = run(secret, "api.example", true, &mut sent).unwrap();
        let real = STANDARD.encode("user:s3cret/value+1");
        assert_eq!(sent["authorization"], format!("basic {real}"));
        // And hidden when they come back.
        let mut back = headers(&[("x-echo", format!("basic {real}"))]);
        injected.needles.scrub(&mut back);
        assert_eq!(back["x-echo"], format!("basic {form}"));
    }

    #[test]
    fn a_missing_header_is_added_when_a_format_is_given() {
        let mut sent = HeaderMap::new();
        run(secret(Some("authorization"), Some("Bearer {}")), "api.example", true, &mut sent)
            .unwrap();
        assert_eq!(sent["authorization"], "Bearer s3cret/value+1");
        let mut own = headers(&[("authorization", "Bearer own".to_owned())]);
        run(secret(Some("authorization"), Some("Bearer {}")), "api.example", true, &mut own)
            .unwrap();
        assert_eq!(own["authorization"], "Bearer own");
        let mut elsewhere = HeaderMap::new();
        run(secret(Some("authorization"), Some("Bearer {}")), "b.example", true, &mut elsewhere)
            .unwrap();
        assert!(elsewhere.is_empty());
    }

    #[test]
    fn elsewhere_and_in_the_clear_the_request_is_refused() {
        for (at, encrypted, reason) in
            [("b.example", true, "secret-elsewhere"), ("api.example", false, "secret-plaintext")]
        {
            let one = secret(Some("authorization"), None);
            let mut sent = headers(&[("x-any", format!("a{}b", one.placeholder))]);
            assert_eq!(run(one, at, encrypted, &mut sent).unwrap_err().reason, reason);
            let one = secret(Some("authorization"), None);
            let form = STANDARD.encode(format!("{}:x", one.placeholder));
            let mut sent = headers(&[("authorization", format!("Basic {form}"))]);
            assert_eq!(run(one, at, encrypted, &mut sent).unwrap_err().reason, reason);
            let one = secret(None, None);
            let target = format!("/?q={}", one.placeholder);
            let found =
                apply(&[one], &host(at), encrypted, "GET /", &target, &mut HeaderMap::new())
                    .unwrap_err();
            assert_eq!(found.reason, reason);
            assert!(!format!("{found:?}").contains("s3cret"));
        }
    }

    #[test]
    fn what_is_no_secret() {
        let make = |name, value: &[u8], header, format| {
            Secret::new(name, Zeroizing::new(value.to_vec()), vec![], header, format)
        };
        assert!(make("a b", b"x", None, None).is_err());
        assert!(make("a", b"", None, None).is_err());
        assert!(make("a", b"x\r\ny: z", None, None).is_err());
        assert!(make("a", b"x", Some("Host"), None).is_err());
        assert!(make("a", b"x", Some("a b"), None).is_err());
        assert!(make("a", b"x", None, Some("{}")).is_err());
        assert!(make("a", b"x", Some("x"), Some("none")).is_err());
        let shown = format!("{:?}", make("a", b"hidden", Some("x"), Some("{}")).unwrap());
        assert!(!shown.contains("hidden"), "{shown}");
    }

    #[test]
    fn needles_are_found_at_chunk_ends() {
        let mut needles = Needles::default();
        secret(None, None).remember(&mut needles);
        assert_eq!(needles.begun(b"abc s3cret/val"), 10);
        assert_eq!(needles.begun(b"abc s3cret%2Fva"), 11);
        assert_eq!(needles.begun(b"abc"), 0);
        let (at, length, _) = needles.first(b"xx s3cret/value+1 yy").unwrap();
        assert_eq!((at, length), (3, 14));
    }
}
