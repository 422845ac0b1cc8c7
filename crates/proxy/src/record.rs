//! What is said of every connection: one typed record, however it is shown.
//!
//! Whatever in it comes from the sandbox (names it asked for, its programs' names and arguments)
//! was made printable: a record in a terminal or a log must not be able to do anything there.

use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringfence_policy::HostRule;
use ringfence_policy::net::Host;

use crate::{Asked, Via};

/// Receives records.
pub type Sink = Arc<dyn Fn(&Record) + Send + Sync>;

/// One refusal, or one connection that was let through and has ended.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Record {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    pub allowed: bool,
    pub via: Via,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it went, or what was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    pub port: u16,
    /// Stable word for programs: `allowed`, `request` (one of an inspected connection), `not-listed`, `denied`, `port`, `special-address`,
    /// `resolved-special`, `sni-mismatch`, `host-mismatch`, `ech`, `unresolvable`, `unreachable`,
    /// `upstream`, `malformed`, `limit`, `udp`.
    pub reason: &'static str,
    /// Lower-case sentence without full stop.
    pub detail: String,
    /// The deciding entry, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Its file and line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// From the sandbox outward.
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub duration_ms: u64,
}

/// Who asked.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Process {
    /// On the host.
    pub pid: i32,
    pub program: String,
    pub command: Vec<String>,
}

/// Longest text that a record takes from the sandbox.
const TEXT: usize = 512;

/// `text` with everything escaped that could do more than be read, cut to `most` bytes.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        if out.len() >= most {
            out.push('…');
            break;
        }
        if c.is_control() || invisible(c) {
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Marks that change direction or hide text, and line separators.
fn invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

impl Record {
    pub(crate) fn new(asked: &Asked, allowed: bool, reason: &'static str, detail: &str) -> Self {
        let (name, address) = match &asked.host {
            Host::Name(name) => (Some(name.to_string()), None),
            Host::Address(address) => (None, Some(*address)),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            time_ms: now.as_millis() as u64,
            allowed,
            via: asked.via,
            process: None,
            name,
            address,
            port: asked.port,
            reason,
            detail: printable(detail, TEXT),
            rule: None,
            origin: None,
            remedy: None,
            bytes_out: 0,
            bytes_in: 0,
            duration_ms: 0,
        }
    }

    pub(crate) fn by(mut self, rule: Option<&HostRule>) -> Self {
        self.rule = rule.map(|r| r.host.clone());
        self.origin = rule.map(|r| r.origin.to_string());
        self
    }

    pub(crate) fn remedy(mut self, remedy: Option<String>) -> Self {
        self.remedy = remedy;
        self
    }

    /// `name:port`, `address:port`, or the name alone for a lookup.
    fn target(&self) -> String {
        let host = match (&self.name, self.address) {
            (Some(name), _) => name.clone(),
            (None, Some(IpAddr::V6(a))) => format!("[{a}]"),
            (None, Some(a)) => a.to_string(),
            (None, None) => "-".to_owned(),
        };
        if self.via == Via::Dns || (self.name.is_none() && self.address.is_none()) {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for Record {
    /// One readable line for `-m`:
    /// `ringfence: refused evil.example:443 (curl, pid 123): not in network.allow; allow it: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.allowed, self.via) {
            (true, _) => "allowed",
            (false, Via::Dns) => "refused the name",
            (false, _) => "refused",
        };
        write!(f, "ringfence: {verdict} {}", self.target())?;
        if let Some(process) = &self.process {
            let program = process.program.rsplit('/').next().unwrap_or_default();
            write!(f, " ({program}, pid {})", process.pid)?;
        }
        write!(f, ": {}", self.detail)?;
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        if self.allowed && self.reason == "request" {
            write!(f, "; {} ms", self.duration_ms)?;
        } else if self.allowed {
            let (out, back) = (self.bytes_out, self.bytes_in);
            write!(f, "; {out} bytes out, {back} bytes in, {} ms", self.duration_ms)?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// The body of a 403: the record, and the same as a sentence.
pub(crate) fn explain_json(record: &Record) -> String {
    #[derive(serde::Serialize)]
    struct Body<'a> {
        error: &'static str,
        message: String,
        #[serde(flatten)]
        record: &'a Record,
    }
    let body = Body { error: "refused by ringfence", message: record.to_string(), record };
    let mut text = serde_json::to_string_pretty(&body)
        .unwrap_or_else(|_| String::from(r#"{"error":"refused by ringfence"}"#));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use ringfence_policy::net::Name;

    use super::*;

    fn record() -> Record {
        let asked = Asked {
            host: Host::Name(Name::parse(b"evil.example").unwrap()),
            port: 443,
            via: Via::Direct,
            client: "127.0.0.1:1".parse().unwrap(),
        };
        let mut record = Record::new(&asked, false, "not-listed", "not in network.allow")
            .remedy(Some("allow it: --allow-host evil.example:443".into()));
        record.process = Some(Process {
            pid: 123,
            program: "/usr/bin/curl".into(),
            command: vec!["curl".into()],
        });
        record
    }

    #[test]
    fn a_refusal_is_one_line() {
        assert_eq!(
            record().to_string(),
            "ringfence: refused evil.example:443 (curl, pid 123): not in network.allow; \
             allow it: --allow-host evil.example:443"
        );
    }

    #[test]
    fn a_body_says_what_to_do() {
        let body: serde_json::Value = serde_json::from_str(&explain_json(&record())).unwrap();
        assert_eq!(body["reason"], "not-listed");
        assert_eq!(body["name"], "evil.example");
        assert_eq!(body["process"]["pid"], 123);
        assert!(body["message"].as_str().unwrap().starts_with("ringfence: refused"));
        assert!(body.get("rule").is_none());
    }

    #[test]
    fn nothing_from_the_sandbox_reaches_a_terminal_raw() {
        let text = printable("a\x1b[2J\r\n\u{202e}b\u{0}é", 100);
        assert_eq!(text, "a\\u{1b}[2J\\u{d}\\u{a}\\u{202e}b\\u{0}é");
        assert!(printable(&"x".repeat(1000), 10).len() < 20);
    }
}
