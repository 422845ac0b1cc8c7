//! The address of a proxy outside.

use std::fmt;

use super::name::Host;

/// `http://[user:password@]host[:port]`. `Debug` and `Display` hide the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    pub host: Host,
    pub port: u16,
    /// User and password as they go into `Proxy-Authorization: Basic`.
    pub credentials: Option<(String, String)>,
}

impl Upstream {
    pub fn parse(text: &str) -> Result<Self, String> {
        const DEFAULT_PORT: u16 = 80;
        // The text may hold a password, so it is not repeated.
        let wrong = || "write the proxy as http://[user:password@]host[:port]".to_owned();
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(match text.split_once("://") {
                Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                    format!("a proxy is spoken to by http, not {scheme}")
                }
                _ => wrong(),
            });
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(wrong());
        }
        let (credentials, authority) = match rest.rsplit_once('@') {
            Some((user, authority)) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                (Some((unescape(user)?, unescape(password)?)), authority)
            }
            None => (None, rest),
        };
        let split = match authority.rfind(']') {
            Some(at) => at + 1,
            None => authority.find(':').unwrap_or(authority.len()),
        };
        let (host, port) = authority.split_at(split);
        let port = match port.strip_prefix(':') {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
                port.parse().ok().filter(|p| *p > 0).ok_or_else(wrong)?
            }
            None if port.is_empty() => DEFAULT_PORT,
            _ => return Err(wrong()),
        };
        let host = Host::parse(host.as_bytes()).map_err(|e| e.to_string())?;
        Ok(Self { host, port, credentials })
    }
}

/// Percent escapes, as passwords with `@` or `/` need them.
fn unescape(text: &str) -> Result<String, String> {
    let wrong = || "user or password is not well escaped".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(wrong);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    if text.chars().any(char::is_control) { Err(wrong()) } else { Ok(text) }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://")?;
        if self.credentials.is_some() {
            f.write_str("...@")?;
        }
        match &self.host {
            Host::Address(a) if a.is_ipv6() => write!(f, "[{a}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_shown_without_password() {
        for (text, shown) in [
            ("http://proxy.example", "http://proxy.example:80"),
            ("http://Proxy.example:3128/", "http://proxy.example:3128"),
            ("http://u:p@10.0.0.1:8080", "http://...@10.0.0.1:8080"),
            ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
        ] {
            assert_eq!(Upstream::parse(text).unwrap().to_string(), shown);
        }
        let upstream = Upstream::parse("http://a%40b:c%2Fd@x.example:1").unwrap();
        assert_eq!(upstream.credentials, Some(("a@b".to_owned(), "c/d".to_owned())));
        assert!(!format!("{upstream:?}").contains("c/d"));
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_repeating_it() {
        for text in [
            "",
            "proxy:3128",
            "http://",
            "http://u:p@",
            "http://x.example:0",
            "http://x.example:99999",
            "http://x.example:+1",
            "http://x.example/path",
            "http://u:%0a@x.example",
            "http://u:%zz@x.example",
            "socks5://x.example:1",
        ] {
            let error = Upstream::parse(text).unwrap_err();
            assert!(!error.contains("u:"), "{text}: {error}");
        }
        assert_eq!(
            Upstream::parse("https://x.example").unwrap_err(),
            "a proxy is spoken to by http, not https"
        );
    }
}
