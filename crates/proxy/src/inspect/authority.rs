//! The certificate authority of one run.
//!
//! Its key exists only in this process's memory and its certificate is trusted only inside the
//! sandbox, so it can vouch for nothing to anybody else and needs no name constraints.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use ringfence_policy::net::Host;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// How long the authority and what it signs are valid. Longer than any run should be; the key does
/// not outlive the supervisor anyway.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Certificates begin this much earlier, for programs inside that turn their clock back (`faketime`).
const EARLIER: Duration = Duration::from_secs(24 * 3600);

/// Names whose certificates are kept. A wildcard rule lets the sandbox invent names; each entry takes
/// some 8 KiB.
const KEPT: usize = 256;

/// The longest common name of a certificate (RFC 5280); longer names stand in the alternative name only.
const LONGEST_COMMON_NAME: usize = 64;

/// Makes the certificates that the sandbox sees.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    from: SystemTime,
    until: SystemTime,
    provider: Arc<CryptoProvider>,
    leaves: Mutex<Leaves>,
}

/// The bounded cache: the oldest goes first.
#[derive(Default)]
struct Leaves {
    by_name: HashMap<Host, Leaf>,
    order: VecDeque<Host>,
}

/// What the TLS server of one name is made of.
#[derive(Clone)]
pub(super) struct Leaf {
    pub http1: Arc<ServerConfig>,
    pub http2: Arc<ServerConfig>,
}

/// The authority or one of its certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("cannot make a certificate for inspection: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot use a certificate for inspection: {0}")]
    Tls(#[from] rustls::Error),
}

impl fmt::Debug for Authority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new key and its self-signed certificate.
    pub fn new(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let (from, until) = (now - EARLIER, now + LIFE);
        let mut params = CertificateParams::default();
        params.not_before = from.into();
        params.not_after = until.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("ringfence sandbox {}", fingerprint(&key)));
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            pem: certificate.pem().replace("\r\n", "\n"),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            from,
            until,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            leaves: Mutex::default(),
        })
    }

    /// What the sandbox has to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The same, as binary.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// The certificate of `host`, made when it is first asked for.
    pub(super) fn leaf(&self, host: &Host) -> Result<Leaf, AuthorityError> {
        // A panic elsewhere leaves the maps whole, so a poisoned lock is usable.
        if let Some(leaf) = self.leaves().by_name.get(host) {
            return Ok(leaf.clone());
        }
        let leaf = self.sign(host)?;
        let mut leaves = self.leaves();
        if leaves.by_name.insert(host.clone(), leaf.clone()).is_none() {
            leaves.order.push_back(host.clone());
        }
        if leaves.order.len() > KEPT
            && let Some(oldest) = leaves.order.pop_front()
        {
            leaves.by_name.remove(&oldest);
        }
        Ok(leaf)
    }

    fn leaves(&self) -> std::sync::MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign(&self, host: &Host) -> Result<Leaf, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Strict verifiers (Python 3.13 by default) want it.
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address as IpAddr),
        }];
        let name = host.to_string();
        let common = if name.len() <= LONGEST_COMMON_NAME { name.as_str() } else { "ringfence" };
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));

        let mut http1 = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Leaf { http1: http1.into(), http2: http2.into() })
    }
}

/// Tells the authorities of runs apart for who looks at a certificate.
fn fingerprint(key: &KeyPair) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key_raw());
    hexadecimal(&digest.as_ref()[..6])
}

/// Two digits for each byte.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host::parse(name.as_bytes()).unwrap()
    }

    #[test]
    fn certificates_are_kept_and_bounded() {
        let authority = Authority::new(SystemTime::now()).unwrap();
        let first = authority.leaf(&host("a.example")).unwrap();
        let again = authority.leaf(&host("a.example")).unwrap();
        assert!(Arc::ptr_eq(&first.http1, &again.http1));
        for n in 0..KEPT {
            authority.leaf(&host(&format!("{n}.example"))).unwrap();
        }
        assert_eq!(authority.leaves().by_name.len(), KEPT);
        assert_eq!(authority.leaves().order.len(), KEPT);
        let anew = authority.leaf(&host("a.example")).unwrap();
        assert!(!Arc::ptr_eq(&first.http1, &anew.http1));
    }

    #[test]
    fn two_runs_have_different_authorities_and_debug_shows_no_key() {
        let (a, b) = (
            Authority::new(SystemTime::now()).unwrap(),
            Authority::new(SystemTime::now()).unwrap(),
        );
        assert_ne!(a.certificate_pem(), b.certificate_pem());
        assert!(a.certificate_pem().starts_with("-----BEGIN CERTIFICATE-----\n"));
        let shown = format!("{a:?}");
        assert!(shown.starts_with("Authority { until: ") && shown.len() < 200, "{shown}");
    }

    #[test]
    fn names_at_the_limit_and_addresses_get_certificates() {
        let authority = Authority::new(SystemTime::now()).unwrap();
        let long = format!("{0}.{0}.{0}.example", "a".repeat(63));
        for name in [long.as_str(), "_srv.example", "192.0.2.1", "2001:db8::1"] {
            authority.leaf(&host(name)).unwrap();
        }
    }
}
