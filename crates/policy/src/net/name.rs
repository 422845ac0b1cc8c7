//! The canonical form of a host.

use std::fmt;
use std::net::IpAddr;

/// A host name in canonical form: ASCII (IDNA A-labels), lower case, no trailing dot, labels of 1 to
/// 63 letters, digits, `-` and `_`, at most 253 bytes in all, and never an address in any spelling.
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
        let text = std::str::from_utf8(text).map_err(|e| NameError::Invalid(e.to_string()))?;
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        Ok(Self::Name(Name(text.to_ascii_lowercase().into())))
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
