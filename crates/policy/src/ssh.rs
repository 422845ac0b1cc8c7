//! The ssh chapter: which keys of the caller's agent a command may sign with.

use std::ffi::OsStr;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Entry, Origin};

/// Keys of the caller's ssh agent, for signing only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SshFragment {
    /// `SHA256:...` as `ssh-add -l` prints it, the comment of a key, a public key file (`/x.pub`,
    /// `~/x.pub`), or `*` for every key that the agent holds when the run starts. An empty list
    /// grants no agent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agent: Vec<Entry>,
    /// Namespaces of `ssh-keygen -Y sign` that may be signed besides logins: `git` for commits and
    /// tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sign: Vec<Entry>,
}

/// Ssh chapter of a finished policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ssh {
    /// Empty: no agent.
    pub agent: Vec<AgentKey>,
    /// Namespaces of signatures that are not logins.
    pub sign: Vec<String>,
}

/// A key as the policy names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentKey {
    pub key: String,
    pub origin: Origin,
}

/// What a text in `ssh.agent` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyName<'a> {
    All,
    /// Without padding, with its `SHA256:`.
    Fingerprint(&'a str),
    /// Of a public key; begins with `/` or `~/`.
    File(&'a str),
    Comment(&'a str),
}

impl<'a> KeyName<'a> {
    pub fn parse(text: &'a str) -> Result<Self, String> {
        const DIGITS: usize = 43;
        if text.is_empty() {
            return Err("empty key".to_owned());
        }
        if let Some(bad) = text.chars().find(|c| c.is_control()) {
            return Err(format!("key contains {bad:?}"));
        }
        if text == "*" {
            return Ok(Self::All);
        }
        if let Some(digest) = text.strip_prefix("SHA256:") {
            let digest = digest.trim_end_matches('=');
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
            if digest.len() != DIGITS || !digest.chars().all(plain) {
                return Err(format!(
                    "\"{text}\" is not a whole fingerprint; write it as `ssh-add -l` prints it"
                ));
            }
            return Ok(Self::Fingerprint(text.trim_end_matches('=')));
        }
        if text.starts_with("MD5:") {
            return Err(format!(
                "\"{text}\": md5 does not tell keys apart; write SHA256:... as `ssh-add -l` prints it"
            ));
        }
        if Path::new(text).extension() == Some(OsStr::new("pub")) {
            if text.starts_with('/') || text.starts_with("~/") {
                return Ok(Self::File(text));
            }
            return Err(format!(
                "\"{text}\": a public key file is named from `/` or `~/`, since one in the workspace could be exchanged by a run"
            ));
        }
        Ok(Self::Comment(text))
    }
}

impl SshFragment {
    pub(crate) fn check(&self) -> Result<(), (&'static str, &Entry, String)> {
        for entry in &self.agent {
            KeyName::parse(&entry.value).map_err(|m| ("ssh.agent", entry, m))?;
        }
        for entry in &self.sign {
            let bad = |c: char| c.is_control() || c.is_whitespace() || c == '*';
            if entry.value.is_empty() || entry.value.chars().any(bad) {
                let message = format!(
                    "{:?} is not a namespace; write one such as \"git\", without wildcards",
                    entry.value
                );
                return Err(("ssh.sign", entry, message));
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Ssh {
        Ssh {
            agent: self
                .agent
                .into_iter()
                .map(|e| AgentKey { key: e.value, origin: e.origin })
                .collect(),
            sign: self.sign.into_iter().map(|e| e.value).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fragment;

    const KEY: &str = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    #[test]
    fn the_names_of_a_key() {
        assert_eq!(KeyName::parse("*"), Ok(KeyName::All));
        assert_eq!(KeyName::parse(KEY), Ok(KeyName::Fingerprint(KEY)));
        assert_eq!(KeyName::parse(&format!("{KEY}=")), Ok(KeyName::Fingerprint(KEY)));
        assert_eq!(KeyName::parse("~/.ssh/a.pub"), Ok(KeyName::File("~/.ssh/a.pub")));
        assert_eq!(KeyName::parse("me@host"), Ok(KeyName::Comment("me@host")));
        assert_eq!(KeyName::parse("/home/me/key"), Ok(KeyName::Comment("/home/me/key")));
        for bad in ["", "SHA256:", "SHA256:abc", "MD5:aa:bb", "keys/a.pub", "a\nb"] {
            assert!(KeyName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_add_up_and_an_empty_list_grants_none() {
        let parse = |text: &str| Fragment::parse("a.toml", text.as_bytes());
        let below = parse("[ssh]\nagent = [\"a\"]\nsign = [\"git\"]").unwrap();
        let above = parse("[ssh]\nagent = [\"a\", \"b\"]").unwrap();
        let ssh = below.merge(above).finish().unwrap().ssh;
        assert_eq!(ssh.agent.iter().map(|k| k.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(ssh.sign, ["git"]);
        let empty = parse("[ssh]\nagent = []").unwrap().finish().unwrap().ssh;
        assert_eq!(empty, Ssh::default());
    }

    #[test]
    fn an_untrusted_layer_grants_no_key() {
        let ask = |text: &str| Fragment::parse("a.toml", text.as_bytes()).unwrap();
        let wants = ask("[ssh]\nagent = [\"*\"]\nsign = [\"git\"]");
        let told = wants.narrowing_only().unwrap_err();
        assert_eq!(told, ["ssh.agent = \"*\" (a.toml:2)", "ssh.sign = \"git\" (a.toml:3)"]);
        assert_eq!(wants.narrowing_over(&Fragment::default()).unwrap_err(), told);
        assert_eq!(wants.narrowing_over(&wants), Ok(()));
        assert_eq!(ask("[ssh]\nagent = []").narrowing_only(), Ok(()));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, key) in
            [("[ssh]\nagent = [\"SHA256:x\"]", "ssh.agent"), ("[ssh]\nsign = [\"*\"]", "ssh.sign")]
        {
            let told = Fragment::parse("a.toml", text.as_bytes()).unwrap_err().to_string();
            assert!(told.contains("a.toml:2") && told.contains(key), "{told}");
        }
    }
}
