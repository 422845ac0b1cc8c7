//! Paths in JSON without loss, and paths for people without surprises.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Bytes { base64: String },
}

/// For `#[serde(with)]`: text where the path is UTF-8, else `{"base64": ...}`.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => Form::Text(text.to_owned()),
        None => Form::Bytes { base64: STANDARD.encode(path.as_os_str().as_bytes()) },
    }
    .serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    match Form::deserialize(deserializer)? {
        Form::Text(text) => Ok(text.into()),
        Form::Bytes { base64 } => STANDARD
            .decode(base64)
            .map(|bytes| OsString::from_vec(bytes).into())
            .map_err(serde::de::Error::custom),
    }
}

/// Base64 of a path that is not UTF-8, for documents that people's programs read beside a readable
/// spelling.
pub fn bytes_of(path: &Path) -> Option<String> {
    path.to_str().is_none().then(|| STANDARD.encode(path.as_os_str().as_bytes()))
}

/// A path as it may be shown: one whose bytes could command a terminal or pose as another line is
/// quoted with everything spelled out.
pub fn shown(path: &Path) -> String {
    let misleads = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
    };
    match path.to_str() {
        Some(text) if !text.chars().any(misleads) => text.to_owned(),
        _ => {
            let mut out = String::from("\"");
            for chunk in path.as_os_str().as_bytes().utf8_chunks() {
                for c in chunk.valid().chars() {
                    if misleads(c) || matches!(c, '"' | '\\') {
                        out.extend(c.escape_default());
                    } else {
                        out.push(c);
                    }
                }
                for byte in chunk.invalid() {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            out.push('"');
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] PathBuf);

    #[test]
    fn any_bytes_survive() {
        for bytes in [&b"plain"[..], b"caf\xe9", b"new\nline", "näme".as_bytes(), b""] {
            let path = Holder(OsStr::from_bytes(bytes).into());
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), path);
        }
    }

    #[test]
    fn what_is_shown_is_one_line_without_commands() {
        assert_eq!(shown(Path::new("a/b c")), "a/b c");
        assert_eq!(shown(Path::new("a\nb\x1b[2J")), "\"a\\nb\\u{1b}[2J\"");
        assert_eq!(shown(Path::new(OsStr::from_bytes(b"\xff"))), "\"\\xff\"");
    }
}
