//! The agent protocol (draft-miller-ssh-agent) as far as it passes: what a client may ask, what the
//! agent may answer. Strict: a message with a byte too few or too many is none.

/// Longest message, as OpenSSH has it.
pub const LONGEST: usize = 256 * 1024;

pub const FAILURE: u8 = 5;
pub const SUCCESS: u8 = 6;
pub const EXTENSION_FAILURE: u8 = 28;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;

/// What asks the agent for its keys.
pub const LIST: [u8; 5] = [0, 0, 0, 1, REQUEST_IDENTITIES];

/// Reads what it is told to and remembers nothing else.
#[derive(Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    /// The protocol knows other values; nobody sends them.
    fn boolean(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u32> {
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    pub fn string(&mut self) -> Option<&'a [u8]> {
        let n = self.number()?;
        self.take(n as usize)
    }

    fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

/// A message with its length in front.
pub fn framed(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 4);
    put_string(&mut out, body);
    out
}

/// What a client may ask, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    List,
    Sign { key: &'a [u8], data: Data<'a> },
    Bind { host_key: &'a [u8], session: &'a [u8] },
}

/// What is to be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// A login over ssh.
    Login { session: &'a [u8], user: &'a str, host_key: Option<&'a [u8]> },
    /// What `ssh-keygen -Y sign` makes.
    Namespace(&'a str),
}

/// Why a request does not pass, in words.
pub type Refused = &'static str;

const MALFORMED: Refused = "malformed request";

/// Takes a message of the client (without its length) apart.
pub fn request(body: &[u8]) -> Result<Request<'_>, Refused> {
    let mut r = Reader(body);
    match r.byte().ok_or(MALFORMED)? {
        REQUEST_IDENTITIES => r.end().map(|()| Request::List).ok_or(MALFORMED),
        SIGN_REQUEST => sign(r),
        EXTENSION => extension(r),
        7 | 17 | 20 | 25 | 26 => Err("keys cannot be added"),
        8 | 9 | 18 | 19 | 21 => Err("keys cannot be removed"),
        22 | 23 => Err("the agent cannot be locked or unlocked"),
        _ => Err("unknown operation"),
    }
}

fn sign(mut r: Reader<'_>) -> Result<Request<'_>, Refused> {
    const SHA2: u32 = 2 | 4;
    let parts = (r.string(), r.string(), r.number(), r.end());
    let (Some(key), Some(data), Some(flags), Some(())) = parts else { return Err(MALFORMED) };
    if flags & !SHA2 != 0 {
        return Err("unknown signature flags");
    }
    let data = namespace(data)
        .map(Data::Namespace)
        .or_else(|| login(data, key))
        .ok_or("what is to be signed is neither a login with this key nor a named signature")?;
    Ok(Request::Sign { key, data })
}

/// RFC 4252, section 7: what a client signs to log in; and OpenSSH's form that names the host's key.
fn login<'a>(data: &'a [u8], key: &[u8]) -> Option<Data<'a>> {
    const USERAUTH_REQUEST: u8 = 50;
    /// Hashes of the key exchange: from SHA-1 to SHA-512.
    const SESSION: std::ops::RangeInclusive<usize> = 20..=64;
    const LONGEST_USER: usize = 1024;
    let mut r = Reader(data);
    let session = r.string().filter(|s| SESSION.contains(&s.len()))?;
    if r.byte()? != USERAUTH_REQUEST {
        return None;
    }
    let user = r.string().filter(|u| u.len() <= LONGEST_USER)?;
    let user = std::str::from_utf8(user).ok()?;
    if r.string()? != b"ssh-connection" {
        return None;
    }
    let method = r.string()?;
    if !r.boolean()? {
        return None;
    }
    let algorithm = r.string()?;
    let named = r.string()?;
    if named != key || !fits(algorithm, Reader(key).string()?) {
        return None;
    }
    let host_key = match method {
        b"publickey" => None,
        b"publickey-hostbound-v00@openssh.com" => Some(r.string()?),
        _ => return None,
    };
    r.end()?;
    Some(Data::Login { session, user, host_key })
}

/// The algorithm is the key's own, or one of those that an RSA key has besides.
fn fits(algorithm: &[u8], kind: &[u8]) -> bool {
    algorithm == kind
        || match kind {
            b"ssh-rsa" => matches!(algorithm, b"rsa-sha2-256" | b"rsa-sha2-512"),
            b"ssh-rsa-cert-v01@openssh.com" => matches!(
                algorithm,
                b"rsa-sha2-256-cert-v01@openssh.com" | b"rsa-sha2-512-cert-v01@openssh.com"
            ),
            _ => false,
        }
}

/// OpenSSH's PROTOCOL.sshsig: what is signed for a namespace.
fn namespace(data: &[u8]) -> Option<&str> {
    let mut r = Reader(data.strip_prefix(b"SSHSIG")?);
    let namespace = r.string().filter(|n| !n.is_empty())?;
    let reserved = r.string()?;
    let length = match r.string()? {
        b"sha256" => 32,
        b"sha512" => 64,
        _ => return None,
    };
    let digest = r.string()?;
    r.end()?;
    if !reserved.is_empty() || digest.len() != length {
        return None;
    }
    std::str::from_utf8(namespace).ok()
}

/// The one extension that passes: it ties this connection to a session with a host, for keys that
/// the user has limited to destinations.
fn extension(mut r: Reader<'_>) -> Result<Request<'_>, Refused> {
    if r.string().ok_or(MALFORMED)? != b"session-bind@openssh.com" {
        return Err("unknown extension");
    }
    let parts = (r.string(), r.string(), r.string(), r.boolean(), r.end());
    let (Some(host_key), Some(session), Some(_), Some(_), Some(())) = parts else {
        return Err(MALFORMED);
    };
    Ok(Request::Bind { host_key, session })
}

/// The keys of an answer: blob and comment of each. `None`: not such an answer.
pub fn identities(body: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut r = Reader(body);
    if r.byte()? != IDENTITIES_ANSWER {
        return None;
    }
    let n = r.number()?;
    let mut all = Vec::new();
    for _ in 0..n {
        all.push((r.string()?, r.string()?));
    }
    r.end()?;
    Some(all)
}

/// An answer with only those keys.
pub fn answer(keys: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = vec![IDENTITIES_ANSWER];
    out.extend((keys.len() as u32).to_be_bytes());
    for (blob, comment) in keys {
        put_string(&mut out, blob);
        put_string(&mut out, comment);
    }
    out
}

/// Whether the agent answered with a signature, and nothing besides.
pub fn is_signature(body: &[u8]) -> bool {
    let mut r = Reader(body);
    r.byte() == Some(SIGN_RESPONSE) && r.string().is_some() && r.end().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(kind: &str) -> Vec<u8> {
        let mut blob = Vec::new();
        put_string(&mut blob, kind.as_bytes());
        put_string(&mut blob, &[7; 32]);
        blob
    }

    struct Login<'a> {
        session: &'a [u8],
        user: &'a [u8],
        service: &'a str,
        method: &'a str,
        algorithm: &'a str,
        key: &'a [u8],
        host: Option<&'a [u8]>,
    }

    impl Login<'_> {
        fn data(&self) -> Vec<u8> {
            let mut d = Vec::new();
            put_string(&mut d, self.session);
            d.push(50);
            put_string(&mut d, self.user);
            put_string(&mut d, self.service.as_bytes());
            put_string(&mut d, self.method.as_bytes());
            d.push(1);
            put_string(&mut d, self.algorithm.as_bytes());
            put_string(&mut d, self.key);
            if let Some(host) = self.host {
                put_string(&mut d, host);
            }
            d
        }
    }

    fn usual(key: &[u8]) -> Login<'_> {
        Login {
            session: &[1; 32],
            user: b"git",
            service: "ssh-connection",
            method: "publickey",
            algorithm: "ssh-ed25519",
            key,
            host: None,
        }
    }

    fn asking(key: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
        let mut body = vec![SIGN_REQUEST];
        put_string(&mut body, key);
        put_string(&mut body, data);
        body.extend(flags.to_be_bytes());
        body
    }

    fn sshsig(namespace: &str, reserved: &str, hash: &str, digest: usize) -> Vec<u8> {
        let mut d = b"SSHSIG".to_vec();
        put_string(&mut d, namespace.as_bytes());
        put_string(&mut d, reserved.as_bytes());
        put_string(&mut d, hash.as_bytes());
        put_string(&mut d, &vec![3; digest]);
        d
    }

    #[test]
    fn logins_pass_in_both_forms() {
        let key = key("ssh-ed25519");
        let body = asking(&key, &usual(&key).data(), 0);
        let data = Data::Login { session: &[1; 32], user: "git", host_key: None };
        assert_eq!(request(&body), Ok(Request::Sign { key: &key, data }));
        let bound = Login {
            method: "publickey-hostbound-v00@openssh.com",
            host: Some(b"host"),
            ..usual(&key)
        };
        let body = asking(&key, &bound.data(), 0);
        let data = Data::Login { session: &[1; 32], user: "git", host_key: Some(b"host") };
        assert_eq!(request(&body), Ok(Request::Sign { key: &key, data }));
    }

    #[test]
    fn nothing_that_only_resembles_a_login_passes() {
        let mine = key("ssh-ed25519");
        let other = key("ecdsa-sha2-nistp256");
        let data = [
            Login { session: &[1; 8], ..usual(&mine) }.data(),
            Login { session: &[], ..usual(&mine) }.data(),
            Login { user: b"\xff", ..usual(&mine) }.data(),
            Login { service: "ssh-userauth", ..usual(&mine) }.data(),
            Login { method: "hostbased", ..usual(&mine) }.data(),
            Login { method: "password", ..usual(&mine) }.data(),
            Login { algorithm: "rsa-sha2-256", ..usual(&mine) }.data(),
            Login { key: &other, ..usual(&mine) }.data(),
            Login { host: Some(b"host"), ..usual(&mine) }.data(),
            Login { method: "publickey-hostbound-v00@openssh.com", ..usual(&mine) }.data(),
            b"hello".to_vec(),
            Vec::new(),
        ];
        for data in data {
            assert!(request(&asking(&mine, &data, 0)).is_err(), "{data:?}");
        }
        assert!(request(&asking(&mine, &usual(&mine).data(), 1)).is_err(), "flags");
        let mut long = asking(&mine, &usual(&mine).data(), 0);
        long.push(0);
        assert!(request(&long).is_err(), "a byte too many");
    }

    #[test]
    fn rsa_keys_have_more_algorithms() {
        let key = key("ssh-rsa");
        for (algorithm, passes) in
            [("ssh-rsa", true), ("rsa-sha2-256", true), ("rsa-sha2-512", true), ("x", false)]
        {
            let data = Login { algorithm, ..usual(&key) }.data();
            assert_eq!(request(&asking(&key, &data, 4)).is_ok(), passes, "{algorithm}");
        }
    }

    #[test]
    fn named_signatures_are_told_from_logins() {
        let key = key("ssh-ed25519");
        let body = asking(&key, &sshsig("git", "", "sha512", 64), 0);
        let data = Data::Namespace("git");
        assert_eq!(request(&body), Ok(Request::Sign { key: &key, data }));
        for data in [
            sshsig("", "", "sha512", 64),
            sshsig("git", "x", "sha512", 64),
            sshsig("git", "", "md5", 16),
            sshsig("git", "", "sha512", 32),
        ] {
            assert!(request(&asking(&key, &data, 0)).is_err());
        }
    }

    #[test]
    fn every_other_operation_is_refused() {
        for kind in 0..=255u8 {
            let known = matches!(kind, REQUEST_IDENTITIES);
            assert_eq!(request(&[kind]).is_ok(), known, "{kind}");
        }
        let mut body = vec![EXTENSION];
        put_string(&mut body, b"query");
        assert_eq!(request(&body), Err("unknown extension"));
        let mut body = vec![EXTENSION];
        put_string(&mut body, b"session-bind@openssh.com");
        put_string(&mut body, b"host");
        put_string(&mut body, b"session");
        put_string(&mut body, b"signature");
        assert!(request(&body).is_err(), "cut short");
        body.push(0);
        assert_eq!(request(&body), Ok(Request::Bind { host_key: b"host", session: b"session" }));
    }

    #[test]
    fn answers_are_read_and_written() {
        let keys: Vec<(&[u8], &[u8])> = vec![(b"one", b"a"), (b"two", b"")];
        let body = answer(&keys);
        assert_eq!(identities(&body), Some(keys));
        assert_eq!(identities(&[12, 0xff, 0xff, 0xff, 0xff]), None, "a count that is not there");
        assert!(is_signature(&[14, 0, 0, 0, 1, 9]));
        assert!(!is_signature(&[14, 0, 0, 0, 1, 9, 9]));
        assert!(!is_signature(&[5]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..40) {
            let _ = request(&bytes);
            let _ = identities(&bytes);
            let mut with_kind = vec![kind];
            with_kind.extend(&bytes);
            let _ = request(&with_kind);
            let _ = identities(&with_kind);
            let _ = is_signature(&with_kind);
        }

        /// Whatever passes as a login is exactly the bytes of that login: no other reading of them.
        #[test]
        fn what_passes_as_a_login_has_one_form(
            session in proptest::collection::vec(any::<u8>(), 0..80),
            user in proptest::collection::vec(any::<u8>(), 0..20),
            host in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            at in any::<prop::sample::Index>(),
            change in any::<u8>(),
        ) {
            let key = key("ssh-ed25519");
            let method = if host.is_some() {
                "publickey-hostbound-v00@openssh.com"
            } else {
                "publickey"
            };
            let made =
                Login { session: &session, user: &user, method, host: host.as_deref(), ..usual(&key) };
            let mut data = made.data();
            let i = at.index(data.len());
            data[i] ^= change;
            if let Ok(Request::Sign { data: Data::Login { session, user, host_key }, .. }) =
                request(&asking(&key, &data, 0))
            {
                let method = if host_key.is_some() {
                    "publickey-hostbound-v00@openssh.com"
                } else {
                    "publickey"
                };
                let user = user.as_bytes();
                let again = Login { session, user, method, host: host_key, ..usual(&key) };
                prop_assert_eq!(again.data(), data);
            }
        }

        #[test]
        fn a_login_cut_short_or_grown_is_none(cut in 1usize..60, more in 1usize..60) {
            let key = key("ssh-ed25519");
            let whole = usual(&key).data();
            let short = &whole[..whole.len() - cut];
            prop_assert!(request(&asking(&key, short, 0)).is_err());
            let mut long = whole.clone();
            long.extend(vec![0; more]);
            prop_assert!(request(&asking(&key, &long, 0)).is_err());
        }
    }
}
