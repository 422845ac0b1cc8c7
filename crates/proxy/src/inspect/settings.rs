//! The policy's network chapter, as far as it is about requests, made ready.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use ringfence_policy::net::{HostPattern, patterns};
use ringfence_policy::{Egress, SecretSource};
use zeroize::Zeroizing;

use super::{PathPattern, RequestRule, Secret, SecretError};

/// No credential is longer.
const LARGEST_SECRET: u64 = 64 * 1024;

/// What is inspected and what is allowed there.
#[derive(Debug, Default)]
pub struct Settings {
    /// Hosts that are inspected though no rule and no secret names them.
    pub hosts: Vec<HostPattern>,
    pub rules: Vec<RequestRule>,
    pub secrets: Vec<Secret>,
}

/// Why a policy's chapter cannot be used. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{origin}: {key}: {problem}")]
    Entry { origin: String, key: String, problem: String },
    #[error("{origin}: {source}")]
    Secret { origin: String, source: SecretError },
}

impl Settings {
    /// Compiles. `read` gets the value of a secret, for which see [`read_secret`].
    pub fn compile(
        egress: &Egress,
        mut read: impl FnMut(&SecretSource) -> Result<Zeroizing<Vec<u8>>, String>,
    ) -> Result<Self, SettingsError> {
        let hosts = |texts: &[String], key: &'static str, origin: &dyn ToString| {
            let mut all = Vec::new();
            for text in texts {
                let found = patterns(text).map_err(|problem| SettingsError::Entry {
                    origin: origin.to_string(),
                    key: key.to_owned(),
                    problem: format!("{text}: {problem}"),
                })?;
                all.extend(found);
            }
            Ok(all)
        };
        let mut settings = Self::default();
        for rule in &egress.inspect {
            let texts = std::slice::from_ref(&rule.host);
            settings.hosts.extend(hosts(texts, "network.inspect", &rule.origin)?);
        }
        for rule in &egress.requests {
            let paths = rule.paths.iter().map(|path| PathPattern::parse(path));
            settings.rules.push(RequestRule {
                hosts: hosts(&rule.hosts, "network.rules.hosts", &rule.origin)?,
                methods: rule.methods.clone(),
                paths: paths.collect::<Result<_, _>>().map_err(|problem| SettingsError::Entry {
                    origin: rule.origin.to_string(),
                    key: "network.rules.paths".to_owned(),
                    problem: problem.to_string(),
                })?,
                origin: Some(rule.origin.to_string()),
            });
        }
        for secret in &egress.secrets {
            let origin = secret.origin.to_string();
            let value = read(&secret.from).map_err(|problem| SettingsError::Entry {
                origin: origin.clone(),
                key: format!("network.secrets.{}.from", secret.name),
                problem,
            })?;
            let hosts = hosts(&secret.hosts, "network.secrets.hosts", &secret.origin)?;
            let (header, format) = (Some(secret.header.as_str()), Some(secret.format.as_str()));
            let secret = Secret::new(&secret.name, value, hosts, header, format)
                .map_err(|source| SettingsError::Secret { origin, source })?;
            settings.secrets.push(secret);
        }
        Ok(settings)
    }
}

/// Reads a credential where the policy says. One line end after it does not count. `variable`: the
/// caller's environment.
pub fn read_secret(
    from: &SecretSource,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let value = match from {
        SecretSource::Env(name) => {
            variable(name).ok_or_else(|| format!("the variable {name} is not set"))?.into_vec()
        }
        SecretSource::File(path) => {
            let path = match path.strip_prefix("~/") {
                Ok(rest) => PathBuf::from(variable("HOME").ok_or("HOME is not set")?).join(rest),
                Err(_) => path.clone(),
            };
            let told = |e: std::io::Error| {
                let text = e.to_string().to_lowercase();
                let text = text.split_once(" (os error").map_or(&*text, |(text, _)| text);
                format!("{}: {text}", path.display())
            };
            let metadata = path.metadata().map_err(told)?;
            if !metadata.is_file() || metadata.len() > LARGEST_SECRET {
                return Err(format!("{}: not a file of at most 64 KiB", path.display()));
            }
            std::fs::read(&path).map_err(told)?
        }
    };
    let mut value = Zeroizing::new(value);
    if value.ends_with(b"\n") {
        value.pop();
    }
    if value.ends_with(b"\r") {
        value.pop();
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use ringfence_policy::{HostRule, Origin, RequestRule as WrittenRule, Secret as WrittenSecret};

    use super::*;

    fn egress() -> Egress {
        let origin = Origin::default();
        Egress {
            inspect: vec![HostRule { host: "*.a.example".into(), origin: origin.clone() }],
            requests: vec![WrittenRule {
                hosts: vec!["b.example".into()],
                methods: vec!["GET".into()],
                paths: vec!["/v1/**".into()],
                origin: origin.clone(),
            }],
            secrets: vec![WrittenSecret {
                name: "TOKEN".into(),
                hosts: vec!["c.example".into()],
                header: "Authorization".into(),
                format: "Bearer {}".into(),
                from: SecretSource::Env("REAL_TOKEN".into()),
                env: None,
                origin,
            }],
            ..Egress::default()
        }
    }

    #[test]
    fn the_chapter_is_compiled() {
        let variable = |name: &str| (name == "REAL_TOKEN").then(|| OsString::from("value\n"));
        let settings = Settings::compile(&egress(), |from| read_secret(from, &variable)).unwrap();
        assert_eq!((settings.hosts.len(), settings.rules.len(), settings.secrets.len()), (1, 1, 1));
        let error = Settings::compile(&egress(), |from| read_secret(from, &|_| None)).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("network.secrets.TOKEN.from: the variable REAL_TOKEN is not set"),
            "{error}"
        );
        let mut bad = egress();
        bad.requests[0].paths[0] = "v1".into();
        let error = Settings::compile(&bad, |from| read_secret(from, &variable)).unwrap_err();
        assert!(error.to_string().contains("network.rules.paths: v1: "), "{error}");
    }

    #[test]
    fn a_secret_is_read_from_a_file_below_home() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "value\r\n").unwrap();
        let variable = |name: &str| (name == "HOME").then(|| home.path().into());
        let read = |path: &str| read_secret(&SecretSource::File(path.into()), &variable);
        assert_eq!(**read("~/token").unwrap(), *b"value");
        assert!(read("~/none").unwrap_err().contains("none"));
        assert!(read("/dev/zero").is_err());
    }
}
