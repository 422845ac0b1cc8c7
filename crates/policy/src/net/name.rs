//! The canonical form of a host.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest text that is looked at: a name of 253 bytes as A-labels may be longer as UTF-8.
const LONGEST_TEXT: usize = 1024;
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// A host name in canonical form: ASCII (IDNA A-labels), lower case, no trailing dot, labels of 1 to
/// 63 letters, digits, `-` and `_` that neither begin nor end with `-`, at most 253 bytes in all, and
/// never an address in any spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<str>);

/// Why a text is not a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the host is empty")]
    Empty,
    #[error("the host name holds a control, space or NUL byte")]
    Control,
    #[error("the host name is not valid: {0}")]
    Invalid(String),
}

impl NameError {
    fn invalid(problem: impl Into<String>) -> Self {
        Self::Invalid(problem.into())
    }
}

impl Name {
    /// Takes what came over the wire. NUL and control bytes, spaces, `%` zones, empty labels and
    /// what looks like an address are refused.
    pub fn parse(text: &[u8]) -> Result<Self, NameError> {
        match Host::parse(text)? {
            Host::Name(name) => Ok(name),
            Host::Address(a) => Err(NameError::Invalid(format!("{a} is an address"))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `localhost` or below it, which resolvers answer by themselves.
    pub fn is_local(&self) -> bool {
        *self.0 == *"localhost" || self.0.ends_with(".localhost")
    }

    /// The names above this one, nearest first: `b.c` and `c` of `a.b.c`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        let mut rest: &str = &self.0;
        std::iter::from_fn(move || {
            rest = rest.split_once('.')?.1;
            Some(rest)
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Name(Name),
    /// Every odd spelling (decimal, octal, hexadecimal, short forms as `inet_aton` takes them,
    /// v4-mapped v6 in brackets or not) ends here, as the address that it means.
    Address(IpAddr),
}

impl Host {
    /// A host as it stands in a URL, a Host header, a CONNECT line, a SOCKS request, an SNI: without
    /// port; an IPv6 address with or without brackets.
    pub fn parse(text: &[u8]) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > LONGEST_TEXT {
            return Err(NameError::invalid(format!("{} bytes are too many", text.len())));
        }
        if text.iter().any(|b| *b <= b' ' || *b == 0x7f) {
            return Err(NameError::Control);
        }
        let text = std::str::from_utf8(text)
            .map_err(|_| NameError::invalid("it is neither ascii nor utf-8"))?;
        if text.contains('%') {
            return Err(NameError::invalid(
                "`%` stands for a zone or an escape, neither is taken here",
            ));
        }
        if text.starts_with('[') || text.contains(':') {
            let inner = match text.strip_prefix('[') {
                Some(rest) => rest.strip_suffix(']').ok_or_else(|| {
                    NameError::invalid("a bracket is opened and not closed at the end")
                })?,
                None => text,
            };
            let address: Ipv6Addr = inner
                .parse()
                .map_err(|_| NameError::invalid(format!("`{inner}` is not an ipv6 address")))?;
            return Ok(Self::Address(fold(address.into())));
        }
        // UTS 46 maps other digits and dots to ascii's, so addresses are looked for after it. Its
        // tables stay untouched for plain names.
        let ascii = if text.is_ascii() && !has_a_label(text) {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(to_ascii(text)?)
        };
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if ends_in_number(name) {
            return inet_aton(name).map(|a| Self::Address(a.into())).ok_or_else(|| {
                NameError::invalid("its last label is a number, and it is not an ipv4 address")
            });
        }
        check_labels(name)?;
        Ok(Self::Name(Name(name.to_ascii_lowercase().into())))
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(fold(address))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// v4-mapped v6 is v4 for the kernel, so it is for the rules.
pub(super) fn fold(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

fn has_a_label(text: &str) -> bool {
    text.split('.').any(|l| l.get(..4).is_some_and(|p| p.eq_ignore_ascii_case("xn--")))
}

fn to_ascii(text: &str) -> Result<String, NameError> {
    use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
    let wrong = || NameError::invalid("it is not an internationalized name (idna)");
    let ascii = Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| wrong())?;
    // What comes out must stand by itself.
    if ascii.is_ascii() { Ok(ascii.into_owned()) } else { Err(wrong()) }
}

/// A resolver would take such a name for an address.
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
        || hex.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// One to four parts, decimal, octal (leading zero) or hexadecimal; the last fills what is left.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let mut value: u64 = 0;
    let count = text.split('.').count();
    if count > 4 {
        return None;
    }
    for (i, part) in text.split('.').enumerate() {
        let number = number(part)?;
        if i + 1 < count {
            if number > 0xff {
                return None;
            }
            value |= number << (24 - 8 * i);
        } else {
            if number >= 1 << (8 * (4 - i)) {
                return None;
            }
            value |= number;
        }
    }
    u32::try_from(value).ok().map(Ipv4Addr::from_bits)
}

fn number(part: &str) -> Option<u64> {
    let (digits, radix) = if let Some(hex) = part.strip_prefix("0x").or(part.strip_prefix("0X")) {
        (hex, 16)
    } else if part.len() > 1 && part.starts_with('0') {
        (&part[1..], 8)
    } else {
        (part, 10)
    };
    // `from_str_radix` takes a sign.
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

fn check_labels(name: &str) -> Result<(), NameError> {
    if name.len() > LONGEST_NAME {
        return Err(NameError::invalid(format!(
            "{} bytes are too many, {LONGEST_NAME} are the most",
            name.len()
        )));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(NameError::invalid("it has an empty label"));
        }
        if label.len() > LONGEST_LABEL {
            return Err(NameError::invalid(format!(
                "a label of {} bytes, {LONGEST_LABEL} are the most",
                label.len()
            )));
        }
        if let Some(bad) =
            label.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
        {
            return Err(NameError::invalid(format!("it holds {bad:?}")));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(NameError::invalid(format!("label `{label}` begins or ends with `-`")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> String {
        match Host::parse(text.as_bytes()) {
            Ok(Host::Name(n)) => format!("name {n}"),
            Ok(Host::Address(a)) => format!("address {a}"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn names_get_one_form() {
        for (text, want) in [
            ("Example.COM", "name example.com"),
            ("example.com.", "name example.com"),
            ("bücher.example", "name xn--bcher-kva.example"),
            ("BÜCHER.example", "name xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "name xn--bcher-kva.example"),
            ("ex\u{ad}ample.com", "name example.com"),
            ("ｅｘａｍｐｌｅ。com", "name example.com"),
            ("_dmarc.example.com", "name _dmarc.example.com"),
            ("r3---sn-4g5.example.com", "name r3---sn-4g5.example.com"),
            ("wiki", "name wiki"),
            ("1.example", "name 1.example"),
            ("0x7f.example", "name 0x7f.example"),
        ] {
            assert_eq!(host(text), want, "{text}");
        }
    }

    #[test]
    fn every_spelling_of_an_address_is_that_address() {
        for text in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0X7F.1",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "017700000001",
            "0x7f.0x0.0x0.0x1",
            "127.0.0.01",
            "::ffff:127.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:FFFF:7F00:0001]",
            "１２７.０.０.１",
            "①②⑦.0.0.1",
            "127。0。0。1",
        ] {
            assert_eq!(host(text), "address 127.0.0.1", "{text}");
        }
        assert_eq!(host("[2001:DB8::1]"), "address 2001:db8::1");
        assert_eq!(host("2001:db8:0::1"), "address 2001:db8::1");
        assert_eq!(host("64:ff9b::10.0.0.1"), "address 64:ff9b::a00:1");
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "evil\0.allowed.com",
            "a b",
            "a\tb",
            "a\r\nb",
            "a\u{7f}",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "[::1",
            "::1]",
            "[example.com]",
            "[127.0.0.1]",
            "a:80",
            "1.2.3.4:80",
            "256.1.1.1",
            "1.2.3.4.5",
            "example.1",
            "example.0x1",
            "08.0.0.1",
            "0x",
            "4294967296",
            "1.16777216",
            "+1.2.3.4",
            "-a.com",
            "a-.com",
            "a/b",
            "a@b",
            "a*b",
            "*.example.com",
            "a\\b",
            "xn--a.com",
            "xn--.com",
            "a\u{200b}\u{2060}.\u{ad}.com",
            "a\u{ff0f}b.com",
        ] {
            assert!(Host::parse(text.as_bytes()).is_err(), "{text:?} -> {}", host(text));
        }
        assert!(Host::parse(b"\xff.com").is_err());
        let label = "a".repeat(64);
        assert!(Host::parse(label.as_bytes()).is_err());
        let long = ["a"; 128].join(".");
        assert!(Host::parse(long.as_bytes()).is_err());
        assert!(Host::parse(&long.as_bytes()[2..]).is_ok());
        assert!(Name::parse(b"127.1").is_err());
    }
}
