//! What must outlive the daemon: persistent sandboxes, in SQLite. What [`Store::put`] has returned for
//! survives a crash of the daemon and of the machine.

use std::path::Path;
use std::sync::mpsc;

use ringfence_api::{CreateSandbox, State};
use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::journal::Owner;

/// Version of the tables, kept as `user_version`.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY,
    owner INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    made_of TEXT NOT NULL,
    key TEXT
) WITHOUT ROWID;
";

/// A sandbox as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub id: String,
    pub owner: Owner,
    pub created_ms: u64,
    pub state: State,
    pub reason: String,
    pub made_of: CreateSandbox,
    /// The idempotency key that it was made with.
    pub key: Option<String>,
}

enum Write {
    Put(Box<Row>),
    Remove(String),
}

type Done = oneshot::Sender<Result<(), Error>>;

/// A thread of its own: SQLite waits for the disk.
#[derive(Clone, Debug)]
pub(crate) struct Store(mpsc::Sender<(Write, Done)>);

impl Store {
    /// Opens or makes the file; what it holds.
    pub(crate) fn open(file: &Path) -> Result<(Self, Vec<Row>), Error> {
        let wrong = |e: rusqlite::Error| {
            Error::internal(format!("{}: {e}", file.display()))
                .with("move the file away to begin without the persistent sandboxes in it")
        };
        let connection = Connection::open(file).map_err(wrong)?;
        prepare(&connection).map_err(wrong)?;
        let version: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(wrong)?;
        if version != VERSION {
            return Err(Error::internal(format!(
                "{}: made by another version of ringfence (tables {version}, known {VERSION})",
                file.display()
            )));
        }
        let rows = read(&connection).map_err(wrong)?;
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || serve(&connection, &receiver))
            .map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
        Ok((Self(sender), rows))
    }

    pub(crate) async fn put(&self, row: Row) -> Result<(), Error> {
        self.write(Write::Put(Box::new(row))).await
    }

    pub(crate) async fn remove(&self, id: String) -> Result<(), Error> {
        self.write(Write::Remove(id)).await
    }

    async fn write(&self, write: Write) -> Result<(), Error> {
        let gone = || Error::internal("the store ended");
        let (done, wait) = oneshot::channel();
        self.0.send((write, done)).map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // A commit is on the disk when it returns.
    connection.pragma_update(None, "synchronous", "full")?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version == 0 {
        connection.execute_batch(TABLES)?;
        connection.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(())
}

fn read(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection
        .prepare("SELECT id, owner, created_ms, state, reason, made_of, key FROM sandboxes")?;
    let rows = statement.query_map([], |row| {
        let state: String = row.get(3)?;
        let made_of: String = row.get(5)?;
        Ok(Row {
            id: row.get(0)?,
            owner: Owner::of_raw(row.get(1)?),
            created_ms: row.get::<_, i64>(2)? as u64,
            state: State::ALL.into_iter().find(|s| s.text() == state).unwrap_or(State::Failed),
            reason: row.get(4)?,
            made_of: serde_json::from_str(&made_of).map_err(|e| {
                rusqlite::Error::FromSqlConversionFailure(
                    5,
                    rusqlite::types::Type::Text,
                    Box::new(e),
                )
            })?,
            key: row.get(6)?,
        })
    })?;
    rows.collect()
}

/// Until every sender is gone. What waits goes into one transaction: one wait for the disk.
fn serve(connection: &Connection, receiver: &mpsc::Receiver<(Write, Done)>) {
    while let Ok(first) = receiver.recv() {
        let all: Vec<(Write, Done)> = std::iter::once(first).chain(receiver.try_iter()).collect();
        crate::fault::point("store.begun");
        let outcome = carry_out(connection, all.iter().map(|(write, _)| write))
            .map_err(|e| Error::internal(format!("cannot write to the store: {e}")));
        crate::fault::point("store.committed");
        for (_, done) in all {
            // Who does not wait does not need to know.
            let _ = done.send(outcome.clone());
        }
    }
}

fn carry_out<'a>(
    connection: &Connection,
    writes: impl Iterator<Item = &'a Write>,
) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    for write in writes {
        match write {
            Write::Put(row) => {
                let made_of = serde_json::to_string(&row.made_of)
                    .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
                transaction
                    .prepare(
                        "INSERT OR REPLACE INTO sandboxes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        row.id,
                        row.owner.raw(),
                        row.created_ms as i64,
                        row.state.text(),
                        row.reason,
                        made_of,
                        row.key,
                    ])?;
            }
            Write::Remove(id) => {
                transaction.prepare("DELETE FROM sandboxes WHERE id = ?1")?.execute(params![id])?;
            }
        }
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_opening_again() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("state.db");
        let row = |id: &str| Row {
            id: id.into(),
            owner: Owner::named(7),
            created_ms: 8,
            state: State::Idle,
            reason: "created".into(),
            made_of: CreateSandbox { workspace: "/x".into(), ..CreateSandbox::default() },
            key: Some("k".into()),
        };
        let (store, rows) = Store::open(&file).unwrap();
        assert!(rows.is_empty());
        store.put(row("a")).await.unwrap();
        store.put(row("b")).await.unwrap();
        store.put(Row { state: State::Stopped, ..row("b") }).await.unwrap();
        store.remove("a".into()).await.unwrap();
        // As after a kill: nothing was closed.
        let (_other, rows) = Store::open(&file).unwrap();
        assert_eq!(rows, [Row { state: State::Stopped, ..row("b") }]);
    }
}
