//! Which keys of the caller's agent a policy means. A look at the host, before anything is confined.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_policy::{AgentKey, KeyName, Permission, Places, Policy};
use ringfence_sys::raw::Errno;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{connect, wire};

/// A key that may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    #[serde(skip)]
    pub blob: Vec<u8>,
    pub fingerprint: String,
    pub comment: String,
}

/// The agent as granted: at least one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Granted {
    /// The agent's socket on the host.
    pub agent: PathBuf,
    pub keys: Vec<Key>,
    /// Namespaces that may be signed besides logins.
    pub sign: Vec<String>,
}

impl Granted {
    /// `2 keys, sign only`.
    pub fn in_words(&self) -> String {
        let also = match self.sign.as_slice() {
            [] => String::new(),
            names => format!(", logins and namespaces {}", names.join(" ")),
        };
        match self.keys.len() {
            1 => format!("1 key, sign only{also}"),
            n => format!("{n} keys, sign only{also}"),
        }
    }
}

/// `SHA256:...` of a public key, as `ssh-add -l` prints it.
pub fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", base64(&Sha256::digest(blob)))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Without padding.
fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 4 / 3 + 3);
    for chunk in bytes.chunks(3) {
        let b = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let n = u32::from_be_bytes([0, b[0], b[1], b[2]]);
        for i in 0..=chunk.len() {
            let digit = n >> (18 - 6 * i) & 0x3f;
            out.push(char::from(DIGITS[digit as usize]));
        }
    }
    out
}

fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    for chunk in text.chunks(4) {
        let mut n = 0u32;
        for c in chunk {
            n = n << 6 | DIGITS.iter().position(|d| d == c)? as u32;
        }
        n <<= 6 * (4 - chunk.len());
        let bytes = n.to_be_bytes();
        out.extend(bytes.get(1..chunk.len()).filter(|b| !b.is_empty())?);
    }
    Some(out)
}

/// The agent with the keys that the policy names. `Err`: why there is none, in words; the run goes on
/// without. What is named and not held goes to `notes`.
pub fn choose(
    policy: &Policy,
    places: &Places,
    socket: Option<&OsStr>,
    notes: &mut Vec<String>,
) -> Result<Granted, String> {
    let socket = socket
        .filter(|s| !s.is_empty())
        .ok_or("there is no ssh agent here: SSH_AUTH_SOCK is not set")?;
    let agent = PathBuf::from(socket);
    if !agent.is_absolute() {
        return Err("there is no ssh agent here: SSH_AUTH_SOCK is not an absolute path".into());
    }
    let held = ask(&agent)
        .map_err(|problem| format!("the ssh agent at {} {problem}", crate::plan::shown(&agent)))?;
    let mut keys: Vec<Key> = Vec::new();
    for wanted in &policy.ssh.agent {
        let before = keys.len();
        let found = matching(wanted, policy, places, &held);
        match found {
            Ok(found) if found.is_empty() => notes.push(format!(
                "ssh.agent: the agent does not hold `{}` ({}); {}",
                wanted.key,
                wanted.origin,
                holds(&held)
            )),
            Ok(found) => {
                for key in found {
                    if !keys[..before].contains(key) && !keys.contains(key) {
                        keys.push(key.clone());
                    }
                }
            }
            Err(problem) => {
                notes.push(format!("ssh.agent: {}: {problem} ({})", wanted.key, wanted.origin));
            }
        }
    }
    if keys.is_empty() {
        return Err("the ssh agent holds none of the chosen keys".into());
    }
    Ok(Granted { agent, keys, sign: policy.ssh.sign.clone() })
}

fn holds(held: &[Key]) -> String {
    const MOST_TOLD: usize = 5;
    if held.is_empty() {
        return "it holds no key".into();
    }
    let told: Vec<String> =
        held.iter().take(MOST_TOLD).map(|k| format!("{} ({})", k.fingerprint, k.comment)).collect();
    let more = if held.len() > MOST_TOLD { " and more" } else { "" };
    format!("it holds {}{more}", told.join(", "))
}

fn matching<'a>(
    wanted: &AgentKey,
    policy: &Policy,
    places: &Places,
    held: &'a [Key],
) -> Result<Vec<&'a Key>, String> {
    Ok(match KeyName::parse(&wanted.key)? {
        KeyName::All => held.iter().collect(),
        KeyName::Fingerprint(f) => held.iter().filter(|k| k.fingerprint == f).collect(),
        KeyName::Comment(c) => held.iter().filter(|k| k.comment == c).collect(),
        KeyName::File(file) => {
            let blob = public_key(file, policy, places)?;
            held.iter().filter(|k| k.blob == blob).collect()
        }
    })
}

/// Reads a public key file that no run can have exchanged for that of another key.
fn public_key(file: &str, policy: &Policy, places: &Places) -> Result<Vec<u8>, String> {
    use std::os::unix::fs::OpenOptionsExt;
    const LARGEST: u64 = 64 * 1024;
    let path = match file.strip_prefix("~/") {
        Some(rest) => places.home.join(rest),
        None => Path::new(file).to_owned(),
    };
    let plain = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => e.to_string(),
    };
    let real = std::fs::canonicalize(&path).map_err(plain)?;
    let writable = |path: &Path| policy.decide_path(places, path).permission == Permission::Write;
    if writable(&path) || writable(&real) {
        return Err("lies where the command may write, so a run could exchange it".into());
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&real)
        .map_err(plain)?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err("not a regular file".into());
    }
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).map_err(plain)?;
    parse_public_key(&text).ok_or_else(|| "not an openssh public key file".into())
}

fn parse_public_key(text: &[u8]) -> Option<Vec<u8>> {
    let line = text.split(|b| *b == b'\n').find(|l| !l.trim_ascii().is_empty())?;
    let mut words = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    let kind = words.next()?;
    let blob = from_base64(words.next()?)?;
    (wire::Reader(&blob).string()? == kind).then_some(blob)
}

/// The keys that the agent holds.
fn ask(agent: &Path) -> Result<Vec<Key>, String> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let refused = |e: std::io::Error| {
        let why = e.raw_os_error().map_or_else(|| e.to_string(), |n| Errno(n).to_string());
        format!("does not answer: {why}")
    };
    let mut stream = connect(agent).map_err(refused)?;
    stream.set_nonblocking(false).map_err(refused)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(refused)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(refused)?;
    stream.write_all(&wire::LIST).map_err(refused)?;
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).map_err(refused)?;
    let length = u32::from_be_bytes(length) as usize;
    let odd = || "answers what no ssh agent answers".to_owned();
    if length > wire::LONGEST {
        return Err(odd());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(refused)?;
    let keys = wire::identities(&body).ok_or_else(odd)?;
    Ok(keys
        .into_iter()
        .map(|(blob, comment)| Key {
            blob: blob.to_vec(),
            fingerprint: fingerprint(blob),
            comment: String::from_utf8_lossy(comment).into_owned(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_public_key_file_is_read_and_its_fingerprint_is_that_of_openssh() {
        let text = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl github\n";
        let blob = parse_public_key(text).unwrap();
        // The fingerprint that github.com publishes for its host key.
        assert_eq!(fingerprint(&blob), "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
        for bad in
            [&b""[..], b"ssh-ed25519", b"ssh-rsa AAAAC3NzaC1lZDI1NTE5", b"a b c", b"\xff \xff"]
        {
            assert_eq!(parse_public_key(bad), None);
        }
    }

    proptest! {
        #[test]
        fn base64_goes_both_ways(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(from_base64(base64(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn no_key_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse_public_key(&bytes);
            let _ = from_base64(&bytes);
        }
    }
}
