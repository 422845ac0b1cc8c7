//! The audit log: rows that are added, read, and at last dropped for their age or for room.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ringfence_api::Event;
use rusqlite::{Connection, params};

use super::Owner;
use crate::now_ms;

/// Bytes of records that are kept, and for how long. Whoever has most loses its oldest first, so nobody
/// pushes out what others did.
const MOST_BYTES: u64 = 64 << 20;
const MOST_AGE_MS: u64 = 90 * 24 * 3600 * 1000;
/// What a row takes besides its text.
const ROW: u64 = 120;
/// Dropped at once when there is no room.
const DROPPED: usize = 256;

const VERSION: i64 = 1;
const TABLES: &str = "
CREATE TABLE events (
    owner INTEGER NOT NULL,
    id INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    sandbox TEXT,
    event TEXT NOT NULL,
    PRIMARY KEY (owner, id)
) WITHOUT ROWID;
CREATE INDEX of_sandbox ON events (owner, sandbox, id) WHERE sandbox IS NOT NULL;
CREATE TRIGGER nothing_is_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
";

/// A record on its way.
#[derive(Debug)]
pub(crate) struct Kept {
    pub owner: Owner,
    pub event: Arc<Event>,
}

/// What is to be read.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub owner: Owner,
    pub sandbox: Option<String>,
    pub kind: Option<String>,
    pub since_ms: u64,
    pub until_ms: u64,
    pub after: u64,
    pub limit: usize,
}

impl Wanted {
    pub(crate) fn of(owner: Owner) -> Self {
        Self {
            owner,
            sandbox: None,
            kind: None,
            since_ms: 0,
            until_ms: i64::MAX as u64,
            after: 0,
            limit: 100,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Log {
    connection: Connection,
    /// Bytes by owner.
    sizes: HashMap<i64, u64>,
    most_bytes: u64,
    /// When the old ones were last looked for.
    swept_ms: u64,
}

impl Log {
    /// And the largest id in it.
    pub(crate) fn open(file: &Path) -> rusqlite::Result<(Self, u64)> {
        let connection = Connection::open(file)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A commit survives the end of the daemon; the last ones may not survive that of the machine.
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            connection.execute_batch(TABLES)?;
            connection.pragma_update(None, "user_version", VERSION)?;
        }
        let mut sizes = HashMap::new();
        let mut last = 0;
        {
            let mut statement = connection.prepare(
                "SELECT owner, SUM(LENGTH(CAST(event AS BLOB))), COUNT(*), MAX(id) FROM events GROUP BY owner",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (text, count): (i64, i64) = (row.get(1)?, row.get(2)?);
                sizes.insert(row.get(0)?, text as u64 + count as u64 * ROW);
                last = last.max(row.get::<_, i64>(3)? as u64);
            }
        }
        Ok((Self { connection, sizes, most_bytes: MOST_BYTES, swept_ms: 0 }, last))
    }

    /// `lost`: how many were not kept since the last time.
    pub(crate) fn write(&mut self, batch: &[Kept], lost: u64) -> rusqlite::Result<()> {
        if batch.is_empty() && lost == 0 {
            return Ok(());
        }
        let transaction = self.connection.unchecked_transaction()?;
        let mut added: Vec<(i64, u64)> = Vec::with_capacity(batch.len() + 1);
        {
            let mut insert = transaction
                .prepare("INSERT OR IGNORE INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            let mut add = |owner: Owner, event: &Event| -> rusqlite::Result<()> {
                let text = serde_json::to_string(event)
                    .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
                added.push((owner.raw(), text.len() as u64 + ROW));
                let (id, at) = (event.id as i64, event.at_ms as i64);
                insert
                    .execute(params![owner.raw(), id, at, event.kind, event.sandbox, text])
                    .map(drop)
            };
            for Kept { owner, event } in batch {
                add(*owner, event)?;
            }
            if lost > 0 {
                let at_ms = now_ms();
                let last = batch.iter().rev().find(|k| k.owner == Owner::user());
                let gap = Event {
                    // Before any that a daemon gives later, and of none that this one gave.
                    id: last.map_or(0, |k| k.event.id),
                    at_ms,
                    kind: "audit.lost".into(),
                    owner: Owner::user().raw().to_string(),
                    interface: "daemon".into(),
                    count: Some(lost),
                    ..Event::default()
                };
                transaction.execute(
                    "INSERT INTO events SELECT ?1, MAX(COALESCE(MAX(id), 0), ?2) + 1, ?3, ?4, NULL, ?5 FROM events WHERE owner = ?1",
                    params![
                        Owner::user().raw(),
                        gap.id as i64,
                        at_ms as i64,
                        gap.kind,
                        serde_json::to_string(&gap)
                            .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?
                    ],
                )?;
            }
        }
        transaction.commit()?;
        for (owner, bytes) in added {
            *self.sizes.entry(owner).or_default() += bytes;
        }
        self.sweep()
    }

    /// Drops what is too old, and what is too much.
    fn sweep(&mut self) -> rusqlite::Result<()> {
        let now = now_ms();
        if now.saturating_sub(self.swept_ms) > 3_600_000 {
            self.swept_ms = now;
            let owners: Vec<i64> = self.sizes.keys().copied().collect();
            for owner in owners {
                let before = now.saturating_sub(MOST_AGE_MS);
                // From the oldest on: ids are in the order of time.
                while self.drop_oldest(owner, before)? >= DROPPED {}
            }
        }
        while self.sizes.values().sum::<u64>() > self.most_bytes {
            let most = self.sizes.iter().max_by_key(|(_, bytes)| **bytes).map(|(owner, _)| *owner);
            let Some(owner) = most else { break };
            if self.drop_oldest(owner, u64::MAX >> 1)? == 0 {
                self.sizes.remove(&owner);
            }
        }
        Ok(())
    }

    fn drop_oldest(&mut self, owner: i64, before_ms: u64) -> rusqlite::Result<usize> {
        let (dropped, bytes) = {
            let mut statement = self.connection.prepare(
                "DELETE FROM events WHERE owner = ?1 AND id IN
                   (SELECT id FROM events WHERE owner = ?1 ORDER BY id LIMIT ?2) AND at_ms < ?3
                 RETURNING LENGTH(CAST(event AS BLOB))",
            )?;
            let gone = statement
                .query_map(params![owner, DROPPED as i64, before_ms as i64], |row| {
                    row.get::<_, i64>(0)
                })?;
            let mut dropped = 0;
            let mut bytes = 0;
            for length in gone {
                dropped += 1;
                bytes += length? as u64 + ROW;
            }
            (dropped, bytes)
        };
        if let Some(size) = self.sizes.get_mut(&owner) {
            *size = size.saturating_sub(bytes);
        }
        Ok(dropped)
    }

    pub(crate) fn read(&self, wanted: &Wanted) -> rusqlite::Result<Vec<Event>> {
        let kind = wanted.kind.as_deref().unwrap_or_default();
        let (kind, begins) = match kind.strip_suffix('.') {
            Some(_) => ("", kind),
            None => (kind, ""),
        };
        let mut statement = self.connection.prepare(
            "SELECT event FROM events WHERE owner = ?1 AND id > ?2 AND at_ms >= ?3 AND at_ms <= ?4
               AND (?5 IS NULL OR sandbox = ?5) AND (?6 = '' OR kind = ?6)
               AND (?7 = '' OR SUBSTR(kind, 1, LENGTH(?7)) = ?7)
             ORDER BY id LIMIT ?8",
        )?;
        let clamp = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let rows = statement.query_map(
            params![
                wanted.owner.raw(),
                clamp(wanted.after),
                clamp(wanted.since_ms),
                clamp(wanted.until_ms),
                wanted.sandbox,
                kind,
                begins,
                wanted.limit as i64,
            ],
            |row| row.get::<_, String>(0),
        )?;
        let mut all = Vec::new();
        for text in rows {
            let text: String = text?;
            // Of a newer version, perhaps.
            if let Ok(event) = serde_json::from_str(&text) {
                all.push(event);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(owner: u32, id: u64, length: usize) -> Kept {
        let event = Event {
            id,
            at_ms: now_ms(),
            kind: "exec.ended".into(),
            subject: Some("x".repeat(length)),
            ..Event::default()
        };
        Kept { owner: Owner::named(owner), event: Arc::new(event) }
    }

    #[test]
    fn whoever_writes_most_loses_its_own_and_the_log_stays_bounded() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("audit.db");
        let (mut log, _) = Log::open(&file).unwrap();
        log.most_bytes = 1 << 20;
        let quiet: Vec<Kept> = (1..=20).map(|id| kept(1, id, 100)).collect();
        log.write(&quiet, 0).unwrap();
        for round in 0..40u64 {
            let loud: Vec<Kept> = (1..=500).map(|n| kept(2, round * 500 + n, 400)).collect();
            log.write(&loud, 0).unwrap();
        }
        let all = |log: &Log, owner| {
            log.read(&Wanted { limit: 100_000, ..Wanted::of(Owner::named(owner)) }).unwrap()
        };
        assert_eq!(all(&log, 1).len(), 20);
        let rest = all(&log, 2);
        assert!(rest.len() < 3000 && !rest.is_empty());
        // The newest are there.
        assert_eq!(rest.last().unwrap().id, 20_000);
        assert!(std::fs::metadata(&file).unwrap().len() < 8 << 20);
        // As it counts after a restart.
        let (again, last) = Log::open(&file).unwrap();
        assert_eq!((again.sizes, last), (log.sizes.clone(), 20_000));
    }

    #[test]
    fn what_is_old_goes_and_nothing_is_changed() {
        let place = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(&place.path().join("audit.db")).unwrap();
        let old = Event { id: 1, at_ms: now_ms() - MOST_AGE_MS - 1000, ..Event::default() };
        log.write(&[Kept { owner: Owner::named(1), event: Arc::new(old) }], 0).unwrap();
        log.swept_ms = 0;
        log.write(&[kept(1, 2, 1)], 3).unwrap();
        let read = log.read(&Wanted::of(Owner::named(1))).unwrap();
        assert_eq!(read.iter().map(|e| e.id).collect::<Vec<_>>(), [2]);
        let lost = log.read(&Wanted::of(Owner::user())).unwrap();
        assert_eq!((lost[0].kind.as_str(), lost[0].count), ("audit.lost", Some(3)));
        let changed = log.connection.execute("UPDATE events SET at_ms = 1", []);
        assert!(changed.unwrap_err().to_string().contains("only added to"));
    }

    #[test]
    fn records_are_found_by_sandbox_kind_time_and_page() {
        let place = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(&place.path().join("audit.db")).unwrap();
        let event = |id: u64, kind: &str, sandbox: &str| {
            let sandbox = Some(sandbox.to_owned());
            let event =
                Event { id, at_ms: id * 10, kind: kind.into(), sandbox, ..Event::default() };
            Kept { owner: Owner::named(1), event: Arc::new(event) }
        };
        log.swept_ms = now_ms();
        let all =
            [event(1, "exec.ended", "a"), event(2, "exec.started", "b"), event(3, "refused", "a")];
        log.write(&all, 0).unwrap();
        let ids = |wanted: Wanted| -> Vec<u64> {
            log.read(&wanted).unwrap().iter().map(|e| e.id).collect()
        };
        let of = || Wanted::of(Owner::named(1));
        assert_eq!(ids(Wanted { sandbox: Some("a".into()), ..of() }), [1, 3]);
        assert_eq!(ids(Wanted { kind: Some("exec.".into()), ..of() }), [1, 2]);
        assert_eq!(ids(Wanted { kind: Some("refused".into()), ..of() }), [3]);
        assert_eq!(ids(Wanted { kind: Some("%".into()), ..of() }), [0u64; 0]);
        assert_eq!(ids(Wanted { since_ms: 20, until_ms: 20, ..of() }), [2]);
        assert_eq!(ids(Wanted { limit: 2, ..of() }), [1, 2]);
        assert_eq!(ids(Wanted { after: 2, ..of() }), [3]);
        assert_eq!(ids(Wanted::of(Owner::named(2))), [0u64; 0]);
    }
}
