//! What is said of every connection: one typed record, however it is shown.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Via;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    pub port: u16,
    /// Stable word for programs: `not-listed`, `denied`, `port`, `special-address`,
    /// `resolved-special`, `sni-mismatch`, `host-mismatch`, `ech`, `unresolvable`, `unreachable`, `malformed`,
    /// `limit`, `udp`, …
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

impl fmt::Display for Record {
    /// One readable line for `-m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "allowed" } else { "refused" };
        write!(f, "{verdict} {}", self.name.as_deref().unwrap_or("-"))?;
        write!(f, ":{}: {}", self.port, self.detail)
    }
}

impl Record {
    pub(crate) fn new(
        asked: &crate::Asked,
        allowed: bool,
        reason: &'static str,
        detail: &str,
    ) -> Self {
        use ringfence_policy::net::Host;
        let (name, address) = match &asked.host {
            Host::Name(name) => (Some(name.to_string()), None),
            Host::Address(address) => (None, Some(*address)),
        };
        Self {
            time_ms: 0,
            allowed,
            via: asked.via,
            process: None,
            name,
            address,
            port: asked.port,
            reason,
            detail: detail.to_owned(),
            rule: None,
            origin: None,
            remedy: None,
            bytes_out: 0,
            bytes_in: 0,
            duration_ms: 0,
        }
    }
}

/// Stand-in.
pub(crate) fn explain_json(record: &Record) -> String {
    serde_json::to_string(record).unwrap_or_default()
}
