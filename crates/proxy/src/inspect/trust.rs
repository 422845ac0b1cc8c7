//! Where the programs of the sandbox look for authorities, and what they must find there.
//!
//! Nothing of the host is changed: files are covered inside the sandbox ([`Stores::masks`]), files of our
//! own are added ([`Stores::files`]), and variables point to them ([`Stores::environment`]). The two
//! overlap on purpose: a program started with an empty environment reads the system's bundle, a program
//! with a bundle of its own (Python's `certifi`, Node) obeys a variable.
//!
//! Deciding is pure ([`Stores::new`]); what the host has is looked up before ([`survey`]).
//!
//! Left out, so that TLS to inspected hosts fails there: the databases of NSS (Firefox, Chrome, some
//! Fedora programs) and p11-kit modules, directories of hashed names (`/etc/ssl/certs/HASH.0`, which
//! OpenSSL reads besides its file) for programs without environment, JDKs at unusual places unless
//! [`java_options`] are passed, and programs with authorities or pins compiled in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::Authority;

/// Bundles of the system, as distributions place them. Several may be names of one file.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Alpine, Arch, Gentoo, NixOS
    "/etc/ssl/cert.pem",                  // Alpine, and LibreSSL's habit elsewhere
    "/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL, NixOS
    "/etc/pki/tls/cert.pem",              // RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora, RHEL, Amazon Linux
    "/etc/ssl/ca-bundle.pem",             // SUSE
    "/var/lib/ca-certificates/ca-bundle.pem", // SUSE, behind a link
    "/etc/ca-certificates/extracted/tls-ca-bundle.pem", // Arch
    "/etc/ssl/certs/ca-bundle.crt",       // NixOS
    "/etc/pki/tls/cacert.pem",            // OpenELEC
    "/etc/certs/ca-certificates.crt",     // Solaris-like layouts in containers
    "/usr/lib/ssl/cert.pem",              // OpenSSL's own place on Debian
    "/usr/share/ssl/certs/ca-bundle.crt",
    "/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt",
];

/// Java's stores, as distributions place them; those of installed JDKs are mostly links to them.
const JAVA_STORES: &[&str] = &[
    "/etc/ssl/certs/java/cacerts",                     // Debian, Alpine
    "/etc/pki/java/cacerts",                           // Fedora, RHEL
    "/etc/pki/ca-trust/extracted/java/cacerts",        // Fedora, RHEL, behind a link
    "/etc/ca-certificates/extracted/java-cacerts.jks", // Arch
    "/var/lib/ca-certificates/java-cacerts",           // SUSE
];

/// Where JDKs are installed: `DIRECTORY/*/lib/security/cacerts` (and below `jre`, up to Java 8).
const JAVA_DIRECTORIES: &[&str] = &["/usr/lib/jvm", "/usr/java", "/opt/java"];

/// Variables that name a file that replaces a program's authorities.
const BUNDLE_VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",      // OpenSSL, Go, Rust's native certificates, uv, .NET, Ruby
    "CURL_CA_BUNDLE",     // curl's command line
    "REQUESTS_CA_BUNDLE", // Python's requests
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "PERL_LWP_SSL_CA_FILE",
    "BUNDLE_SSL_CA_CERT", // Ruby's bundler
    "COMPOSER_CAFILE",
    "HEX_CACERTS_PATH",
    "JULIA_SSL_CA_ROOTS_PATH",
    "npm_config_cafile", // npm and pnpm, over a cafile of the user's .npmrc
    "YARN_HTTPS_CA_FILE_PATH",
];

/// Variables that name a file that is added to a program's authorities.
const EXTRA_VARIABLES: &[&str] = &["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

/// The password that Java's stores are not really protected by.
const JAVA_PASSWORD: &str = "changeit";

/// What Java's store type `JKS` begins with.
const JKS_MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];

/// No bundle is nearly as large; what is, is something else.
const LARGEST: u64 = 16 * 1024 * 1024;

/// What a file of authorities is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PEM certificates of the whole system.
    System,
    /// PEM certificates that a variable of the caller names.
    Named,
    /// A Java key store.
    Java,
}

/// A file of authorities that the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Without links: what can be covered.
    pub path: PathBuf,
    pub kind: Kind,
    pub contents: Vec<u8>,
}

/// What the sandbox gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stores {
    /// Files of the host, to be covered by these contents, read-only.
    pub masks: BTreeMap<PathBuf, Arc<[u8]>>,
    /// Files to be added, read-only: the authority alone and the whole bundle.
    pub files: BTreeMap<PathBuf, Arc<[u8]>>,
    /// Variables, over what the caller's environment passes.
    pub environment: BTreeMap<&'static str, PathBuf>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Stores {
    /// Decides. `own`: a directory inside the sandbox where files of ours may stand.
    pub fn new(found: &[Found], authority: &Authority, own: &Path) -> Self {
        let pem = authority.certificate_pem();
        let mut stores = Self::default();
        for store in found {
            let contents = match store.kind {
                Kind::System | Kind::Named => with_pem(&store.contents, pem),
                Kind::Java => with_java(&store.contents, authority.certificate_der())
                    .unwrap_or_else(|| java_store(found, authority)),
            };
            stores.masks.insert(store.path.clone(), contents.into());
        }
        let bundle = bundle(found);
        if bundle.is_empty() {
            stores.notes.push(
                "the host has no bundle of authorities at a known place: inside, only inspected hosts can be verified"
                    .to_owned(),
            );
        }
        let (alone, whole) = (own.join("authority.pem"), own.join("authorities.pem"));
        stores.files.insert(alone.clone(), pem.as_bytes().into());
        stores.files.insert(whole.clone(), with_pem(&bundle, pem).into());
        // What the caller adds is in the bundle; a program that takes one file only gets all of it.
        let extra =
            if found.iter().any(|store| store.kind == Kind::Named) { &whole } else { &alone };
        stores.environment = (BUNDLE_VARIABLES.iter().map(|name| (*name, whole.clone())))
            .chain(EXTRA_VARIABLES.iter().map(|name| (*name, extra.clone())))
            .collect();
        stores
    }
}

/// The system's bundle and what the caller's variables name; each file once.
fn bundle(found: &[Found]) -> Vec<u8> {
    // One system bundle: hosts that have several have the same certificates in each.
    let system = found.iter().find(|store| store.kind == Kind::System);
    let named = found.iter().filter(|store| store.kind == Kind::Named);
    let mut out: Vec<u8> = Vec::new();
    for store in system.into_iter().chain(named) {
        out = with_pem(&out, "");
        out.extend_from_slice(&store.contents);
    }
    out
}

/// `bundle` with one more certificate, beginning on a line of its own.
fn with_pem(bundle: &[u8], pem: &str) -> Vec<u8> {
    let mut out = bundle.to_vec();
    if out.last().is_some_and(|&byte| byte != b'\n') {
        out.push(b'\n');
    }
    out.extend_from_slice(pem.as_bytes());
    out
}

/// A Java store with one more certificate; `None` if it is not of the type that can be extended without
/// its password.
fn with_java(store: &[u8], certificate: &[u8]) -> Option<Vec<u8>> {
    let (body, _digest) = store.split_at_checked(store.len().checked_sub(20)?)?;
    let (magic, rest) = body.split_first_chunk::<4>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let (count, entries) = rest.split_first_chunk::<4>()?;
    if *magic != JKS_MAGIC || u32::from_be_bytes(*version) != 2 {
        return None;
    }
    let count = u32::from_be_bytes(*count).checked_add(1)?;
    let mut out = java_head(count);
    out.extend_from_slice(entries);
    java_entry(&mut out, "ringfence", certificate)?;
    Some(java_seal(out))
}

/// A Java store (type JKS, password `changeit`) of everything in the bundle and the authority. No
/// `keytool` is needed: the type is simple, and every JDK since the first reads it.
pub fn java_store(found: &[Found], authority: &Authority) -> Vec<u8> {
    let bundle = bundle(found);
    let certificates = CertificateDer::pem_slice_iter(&bundle).filter_map(Result::ok);
    let mut entries = Vec::new();
    let mut count = 0;
    for certificate in certificates.chain([authority.certificate_der().to_vec().into()]) {
        if java_entry(&mut entries, &format!("ringfence-{count}"), &certificate).is_some() {
            count += 1;
        }
    }
    let mut out = java_head(count);
    out.append(&mut entries);
    java_seal(out)
}

/// What a JDK at an unusual place needs to hear to use a store that [`java_store`] made.
pub fn java_options(store: &Path) -> String {
    format!(
        "-Djavax.net.ssl.trustStore={} -Djavax.net.ssl.trustStoreType=JKS -Djavax.net.ssl.trustStorePassword={JAVA_PASSWORD}",
        store.display()
    )
}

fn java_head(count: u32) -> Vec<u8> {
    [JKS_MAGIC, 2u32.to_be_bytes(), count.to_be_bytes()].concat()
}

/// A trusted certificate: tag, alias, date, type, bytes. `None`, and nothing is written, if it is too large.
fn java_entry(out: &mut Vec<u8>, alias: &str, certificate: &[u8]) -> Option<()> {
    let length = u32::try_from(certificate.len()).ok()?;
    let alias_length = u16::try_from(alias.len()).ok()?;
    out.extend(2u32.to_be_bytes());
    out.extend(alias_length.to_be_bytes());
    out.extend(alias.as_bytes());
    // The date says when the entry was made; nobody uses it.
    out.extend(0u64.to_be_bytes());
    out.extend(5u16.to_be_bytes());
    out.extend(b"X.509");
    out.extend(length.to_be_bytes());
    out.extend(certificate);
    Some(())
}

/// Appends the digest that a program with the password compares.
fn java_seal(mut store: Vec<u8>) -> Vec<u8> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    for unit in JAVA_PASSWORD.encode_utf16() {
        digest.update(&unit.to_be_bytes());
    }
    digest.update(b"Mighty Aphrodite");
    digest.update(&store);
    store.extend_from_slice(digest.finish().as_ref());
    store
}

/// Looks what the host has. `variable`: the caller's environment.
pub fn survey(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut look = |path: &Path, kind: Kind| {
        let Some(store) = read(path, kind) else { return };
        if !found.iter().any(|known| known.path == store.path) {
            found.push(store);
        }
    };
    for path in BUNDLES {
        look(Path::new(path), Kind::System);
    }
    for name in BUNDLE_VARIABLES.iter().chain(EXTRA_VARIABLES) {
        if let Some(path) = variable(name) {
            look(Path::new(&path), Kind::Named);
        }
    }
    for path in JAVA_STORES {
        look(Path::new(path), Kind::Java);
    }
    let installed = JAVA_DIRECTORIES.iter().filter_map(|path| std::fs::read_dir(path).ok());
    let installed = installed.flatten().filter_map(Result::ok).map(|entry| entry.path());
    for home in installed.chain(variable("JAVA_HOME").map(PathBuf::from)) {
        look(&home.join("lib/security/cacerts"), Kind::Java);
        look(&home.join("jre/lib/security/cacerts"), Kind::Java);
    }
    found
}

/// A regular file of its kind that can be read.
fn read(path: &Path, kind: Kind) -> Option<Found> {
    let path = path.canonicalize().ok()?;
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let mut contents = Vec::new();
    std::fs::File::open(&path).ok()?.take(LARGEST).read_to_end(&mut contents).ok()?;
    // A variable may name anything, a secret as well; only certificates are taken over.
    let begins = b"-----BEGIN ";
    let is_pem = contents.windows(begins.len()).any(|window| window == begins)
        && !contents.windows(12).any(|window| window == b"PRIVATE KEY-");
    (kind == Kind::Java || is_pem).then_some(Found { path, kind, contents })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::SystemTime;

    use super::*;

    fn authority() -> Authority {
        Authority::new(SystemTime::now()).unwrap()
    }

    fn found(path: &str, kind: Kind, contents: &[u8]) -> Found {
        Found { path: path.into(), kind, contents: contents.to_vec() }
    }

    #[test]
    fn bundles_are_extended_and_variables_point_to_them() {
        let authority = authority();
        let pem = authority.certificate_pem();
        let stores = Stores::new(
            &[
                found("/etc/bundle", Kind::System, b"SYSTEM"),
                found("/etc/other", Kind::System, b"SAME\n"),
            ],
            &authority,
            Path::new("/run/own"),
        );
        let text = |bytes: &Arc<[u8]>| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(text(&stores.masks[Path::new("/etc/bundle")]), format!("SYSTEM\n{pem}"));
        assert_eq!(text(&stores.masks[Path::new("/etc/other")]), format!("SAME\n{pem}"));
        assert_eq!(text(&stores.files[Path::new("/run/own/authority.pem")]), pem);
        assert_eq!(
            text(&stores.files[Path::new("/run/own/authorities.pem")]),
            format!("SYSTEM\n{pem}")
        );
        assert_eq!(stores.environment["SSL_CERT_FILE"], Path::new("/run/own/authorities.pem"));
        assert_eq!(stores.environment["NODE_EXTRA_CA_CERTS"], Path::new("/run/own/authority.pem"));
        assert!(!stores.environment.contains_key("SSL_CERT_DIR"));
        assert!(stores.notes.is_empty());
    }

    #[test]
    fn what_the_caller_names_is_kept() {
        let authority = authority();
        let files =
            [found("/etc/b", Kind::System, b"SYSTEM"), found("/home/corp", Kind::Named, b"CORP")];
        let stores = Stores::new(&files, &authority, Path::new("/own"));
        let whole = &stores.files[Path::new("/own/authorities.pem")];
        assert!(whole.starts_with(b"SYSTEM\nCORP\n-----BEGIN CERTIFICATE-----"));
        assert_eq!(stores.environment["NODE_EXTRA_CA_CERTS"], Path::new("/own/authorities.pem"));
    }

    #[test]
    fn a_host_without_bundle_is_told() {
        let stores = Stores::new(&[], &authority(), Path::new("/own"));
        assert!(stores.masks.is_empty());
        assert_eq!(stores.notes.len(), 1);
        assert_eq!(stores.files.len(), 2);
    }

    #[test]
    fn other_stores_and_broken_ones_are_made_anew() {
        let authority = authority();
        for contents in [&b"\x30\x82pkcs12"[..], b"", &JKS_MAGIC, &[0; 40]] {
            assert_eq!(with_java(contents, authority.certificate_der()), None);
            let stores =
                Stores::new(&[found("/j", Kind::Java, contents)], &authority, Path::new("/own"));
            assert!(stores.masks[Path::new("/j")].starts_with(&JKS_MAGIC));
        }
    }

    #[test]
    fn java_s_own_tool_reads_both_ways_of_making_a_store() {
        let authority = authority();
        let directory = tempfile::tempdir().unwrap();
        let one = java_store(&[], &authority);
        let two = with_java(&one, authority.certificate_der()).unwrap();
        for (store, count) in [(&one, 1), (&two, 2)] {
            let path = directory.path().join("cacerts");
            std::fs::write(&path, store).unwrap();
            let mut keytool = Command::new("keytool");
            keytool.args(["-list", "-storepass", JAVA_PASSWORD, "-keystore"]).arg(&path);
            let Ok(output) = keytool.output() else {
                println!("skipped: keytool is not installed");
                return;
            };
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{out}");
            assert_eq!(out.matches("trustedCertEntry").count(), count, "{out}");
        }
    }

    #[test]
    fn the_host_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) =
            (directory.path().join("corp.pem"), directory.path().join("key.pem"));
        std::fs::write(&certificate, authority().certificate_pem()).unwrap();
        std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
            .unwrap();
        let found = survey(&|name| match name {
            "PIP_CERT" | "AWS_CA_BUNDLE" => Some(certificate.clone().into()),
            "GIT_SSL_CAINFO" => Some(key.clone().into()),
            "CURL_CA_BUNDLE" => Some("/dev/zero".into()),
            _ => None,
        });
        let named: Vec<_> = found.iter().filter(|store| store.kind == Kind::Named).collect();
        assert_eq!(named.len(), 1, "{:?}", named.iter().map(|n| &n.path).collect::<Vec<_>>());
        for (n, store) in found.iter().enumerate() {
            assert!(found[..n].iter().all(|earlier| earlier.path != store.path));
            assert!(!store.path.is_symlink());
        }
    }
}
