//! What was done through this interface, as their audit has it. Kept in memory, the last of it: words of
//! commands can be secrets.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::stamp::{now_ms, rfc3339};

/// Bytes of all that is kept, and entries.
const MOST_BYTES: usize = 4 << 20;
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Audit {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: usize,
    /// Each with the sandbox that it is about, and its length as text.
    entries: VecDeque<(String, usize, Value)>,
}

/// An entry of that kind and time.
pub(super) fn entry(ms: u64, kind: &str, of: Value) -> Value {
    let mut entry = match of {
        Value::Object(of) => of,
        _ => Map::new(),
    };
    entry.insert("timestamp".into(), rfc3339(ms).into());
    entry.insert("pid".into(), std::process::id().into());
    entry.insert("user".into(), std::env::var("USER").unwrap_or_default().into());
    entry.insert("type".into(), kind.into());
    Value::Object(entry)
}

impl Audit {
    /// Of a sandbox, by its id.
    pub(super) fn note(&self, sandbox: &str, kind: &str, of: Value) {
        let entry = entry(now_ms(), kind, of);
        let bytes = entry.to_string().len();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.bytes += bytes;
        inner.entries.push_back((sandbox.to_owned(), bytes, entry));
        while inner.bytes > MOST_BYTES || inner.entries.len() > MOST {
            let Some((_, bytes, _)) = inner.entries.pop_front() else { return };
            inner.bytes -= bytes;
        }
    }

    pub(super) fn ran(&self, id: &str, name: &str, command: &[String], code: i32) {
        let of = json!({ "sandbox": name, "command": command, "exit_code": code });
        self.note(id, "command_executed", of);
    }

    /// Oldest first: of a sandbox, or of all the last so many.
    pub(super) fn of(&self, sandbox: Option<&str>, most: usize) -> Vec<Value> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let its = |(of, _, _): &&(String, usize, Value)| sandbox.is_none_or(|id| id == of);
        let chosen = inner.entries.iter().rev().filter(its).take(most);
        let mut chosen: Vec<Value> = chosen.map(|(_, _, entry)| entry.clone()).collect();
        chosen.reverse();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_is_kept_and_no_more() {
        let audit = Audit::default();
        for n in 0..MOST + 5 {
            audit.note(if n % 2 == 0 { "even" } else { "odd" }, "x", json!({ "n": n }));
        }
        let all = audit.of(None, usize::MAX);
        assert_eq!((all.len(), &all[0]["n"]), (MOST, &json!(5)));
        let last = audit.of(Some("odd"), 2);
        assert_eq!((&last[0]["n"], &last[1]["n"]), (&json!(MOST + 1), &json!(MOST + 3)));
        audit.note("large", "x", json!({ "text": "x".repeat(MOST_BYTES) }));
        assert!(audit.of(None, usize::MAX).is_empty());
    }
}
