//! Inspection of chosen hosts: TLS ends here, so that methods and paths can be judged and credentials
//! put in where the sandbox cannot see them.
//!
//! ```text
//! sandbox ══TLS, our certificate══▶ [serve] ─▶ host? ─▶ [rules]: method, path ─▶ [secrets] ─▶ [upstream] ══TLS, verified══▶ server
//!          [authority], per run        421        403                            403             502
//! ```
//!
//! What is asked for is rebuilt, never forwarded as bytes: both sides are spoken by `hyper`, so a request
//! that two parsers could read differently does not exist on the outer side. Where the sandbox finds the
//! authority's certificate is the matter of [`trust`].
//!
//! # Limits
//!
//! - A program that brings its own roots or pins certificates does not accept the authority and fails.
//! - Client certificates cannot be passed on.
//! - Query strings, bodies and what flows after an upgrade (WebSocket) are not judged.
//! - Placeholders are replaced in headers only. In responses, values are replaced by placeholders in
//!   headers, trailers and, if the request carried a secret, in bodies that are not compressed (such
//!   requests ask for uncompressed ones). A server that shows a credential in another form than as it
//!   was sent or percent-encoded still shows it: name hosts that do not echo.

mod authority;
mod body;
mod io;
mod path;
mod rules;
mod secrets;
mod serve;
mod settings;
#[cfg(test)]
mod tests;
pub mod trust;
mod upstream;

use std::fmt;
use std::sync::{Arc, OnceLock};

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, UPGRADE};
use ringfence_policy::net::Host;
use rustls::{ClientConfig, RootCertStore};

use crate::gate::{Finding, Why};

pub use authority::{Authority, AuthorityError};
pub use path::{PathPattern, PatternError};
pub use rules::RequestRule;
pub use secrets::{Secret, SecretError};
pub(crate) use serve::serve;
pub use settings::{Settings, SettingsError, read_secret};

/// Whom servers may be vouched for by.
#[derive(Default)]
pub enum Roots {
    /// The host's own store, as OpenSSL programs find it (`SSL_CERT_FILE`, `SSL_CERT_DIR`, the
    /// system's bundle); read when the first connection needs it.
    #[default]
    Host,
    These(RootCertStore),
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("Host"),
            Self::These(store) => write!(f, "These({})", store.len()),
        }
    }
}

/// Everything that inspection needs. When the policy is reloaded, another one is made with the same
/// [`Authority`].
#[derive(Debug)]
pub struct Inspector {
    authority: Arc<Authority>,
    settings: Settings,
    roots: Roots,
    client: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Inspector {
    pub fn new(authority: Arc<Authority>, settings: Settings, roots: Roots) -> Self {
        Self { authority, settings, roots, client: OnceLock::new() }
    }

    /// The same for a policy that was changed. What the sandbox has in its hands stays valid: its
    /// authority, and the placeholders of secrets that keep their names.
    #[must_use]
    pub fn renewed(&self, mut settings: Settings) -> Self {
        for secret in &mut settings.secrets {
            if let Some(known) = self.settings.secrets.iter().find(|s| s.name() == secret.name()) {
                secret.keep_placeholder_of(known);
            }
        }
        let roots = match &self.roots {
            Roots::Host => Roots::Host,
            Roots::These(store) => Roots::These(store.clone()),
        };
        Self::new(Arc::clone(&self.authority), settings, roots)
    }

    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Names of the secrets and what the sandbox gets instead of them.
    pub fn placeholders(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.secrets.iter().map(|secret| (secret.name(), secret.placeholder()))
    }

    /// `text` with placeholders instead of the secrets in it; `None` if there are none.
    pub fn hide(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut hidden: Option<Vec<u8>> = None;
        for secret in &self.settings.secrets {
            hidden = secret.hide(hidden.as_deref().unwrap_or(text)).or(hidden);
        }
        hidden
    }

    /// Whether connections to `host` are inspected: listed, or named by a rule or a secret.
    pub fn inspects(&self, host: &Host) -> bool {
        rules::any_covers(&self.settings.hosts, host)
            || self.has_rules(host)
            || self.settings.secrets.iter().any(|secret| secret.is_for(host))
    }

    /// Whether only chosen requests may be made of `host`. What is neither TLS nor HTTP cannot be judged
    /// and is then to be refused.
    pub fn has_rules(&self, host: &Host) -> bool {
        self.settings.rules.iter().any(|rule| rules::any_covers(&rule.hosts, host))
    }

    /// Judges a request that is sent in the clear, by whatever code: rules hold there too, and no
    /// placeholder leaves. `target` as in the request line.
    pub(crate) fn judge_plain<'a>(
        &self,
        host: &Host,
        method: &str,
        target: &str,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<(), Why> {
        let malformed = |what: &str| Why::Malformed(format!("{what} that cannot be judged"));
        let uri: Uri = target.parse().map_err(|_| malformed("a request target"))?;
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes());
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else {
                return Err(malformed("a header"));
            };
            headers.append(name, value);
        }
        let rules = &self.settings.rules;
        rules::judge(rules, host, method, uri.path(), &headers).map_err(Why::from)?;
        let shown = rules::show(method, uri.path());
        let free = headers
            .get_all(UPGRADE)
            .iter()
            .all(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if self.has_rules(host) && !free {
            return Err(Why::from(Finding {
                reason: "opaque",
                detail: format!(
                    "{shown}: what follows an upgrade to another protocol cannot be judged"
                ),
                origin: None,
                remedy: None,
            }));
        }
        secrets::apply(&self.settings.secrets, host, false, &shown, target, &mut headers)
            .map_err(Why::from)?;
        Ok(())
    }

    /// How servers are verified. Clones share the session cache.
    fn client(&self) -> Result<ClientConfig, String> {
        let config = self.client.get_or_init(|| {
            let roots = match &self.roots {
                Roots::These(store) => store.clone(),
                Roots::Host => host_roots()?,
            };
            let config = ClientConfig::builder_with_provider(self.authority.provider().clone())
                .with_safe_default_protocol_versions()
                .map_err(|e| e.to_string())?
                .with_root_certificates(roots)
                .with_no_client_auth();
            Ok(Arc::new(config))
        });
        config.as_ref().map(|config| ClientConfig::clone(config)).map_err(Clone::clone)
    }
}

/// Why a connection that is neither TLS nor HTTP is refused to a host that has rules.
pub(crate) fn unjudgeable(host: &Host) -> Why {
    Why::from(Finding {
        reason: "opaque",
        detail: format!(
            "{host} is reached by chosen requests only, and this is neither TLS nor HTTP"
        ),
        origin: None,
        remedy: Some(format!("remove {host} from hosts of network.rules, or use https")),
    })
}

/// The host's store; what in it cannot be read or parsed is left out, an empty one is an error.
fn host_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |e| format!(": {e}"));
        return Err(format!("the host has no root certificates{why}"));
    }
    Ok(store)
}
