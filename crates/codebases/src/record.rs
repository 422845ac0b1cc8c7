//! What is known about codebases, in SQLite: several processes read and write it at once, and a crash
//! leaves the one or the other state.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_layers::Stamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};
use serde::Serialize;

use crate::Error;

/// How long a process waits for another one's change.
const PATIENCE: Duration = Duration::from_secs(20);
/// The format of the tables.
const FORMAT: i64 = 1;

/// A codebase as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// `cb_` and 16 hexadecimal digits.
    pub id: String,
    pub name: String,
    pub owner: String,
    pub created: Stamp,
    pub updated: Stamp,
    /// Bytes of all files.
    pub size: u64,
    pub files: u64,
    /// Files, directories, links: everything with a name.
    pub entries: u64,
    pub sealed: bool,
    /// Raised by every change of the tree.
    pub version: u64,
}

#[derive(Debug)]
pub(crate) struct Database {
    connection: Connection,
    path: PathBuf,
}

const COLUMNS: &str = "id, name, owner, created, created_ns, updated, updated_ns, size, files, entries, sealed, version";

impl Database {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |e: &rusqlite::Error| wrong(path, e);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NOFOLLOW
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|e| wrong(&e))?;
        let ready = || -> Result<i64, rusqlite::Error> {
            connection.busy_timeout(PATIENCE)?;
            let format: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
            if format == 0 {
                connection.pragma_update(None, "journal_mode", "WAL")?;
                connection.execute_batch(&format!(
                    "BEGIN IMMEDIATE;
                     CREATE TABLE IF NOT EXISTS codebases (
                         id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
                         created INTEGER NOT NULL, created_ns INTEGER NOT NULL,
                         updated INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
                         size INTEGER NOT NULL, files INTEGER NOT NULL, entries INTEGER NOT NULL,
                         sealed INTEGER NOT NULL, version INTEGER NOT NULL
                     ) STRICT;
                     CREATE TABLE IF NOT EXISTS remotes (
                         id TEXT NOT NULL REFERENCES codebases (id), url TEXT NOT NULL,
                         theirs INTEGER NOT NULL, ours INTEGER NOT NULL, PRIMARY KEY (id, url)
                     ) STRICT;
                     PRAGMA user_version = {FORMAT};
                     COMMIT;"
                ))?;
                return Ok(FORMAT);
            }
            Ok(format)
        };
        let format = ready().map_err(|e| wrong(&e))?;
        if format != FORMAT {
            let problem = format!("written by another version of ringfence (format {format})");
            return Err(Error::Database { path: path.into(), problem });
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    fn wrong(&self) -> impl FnOnce(rusqlite::Error) -> Error {
        |e| wrong(&self.path, &e)
    }

    pub fn all(&self) -> Result<Vec<Record>, Error> {
        let sql = format!("SELECT {COLUMNS} FROM codebases ORDER BY name");
        let read = || -> Result<Vec<Record>, rusqlite::Error> {
            self.connection.prepare(&sql)?.query_map([], record)?.collect()
        };
        read().map_err(self.wrong())
    }

    /// By name or id.
    pub fn find(&self, name: &str) -> Result<Option<Record>, Error> {
        // A name wins: whoever calls a codebase like another one's id means what he called so.
        let sql = format!(
            "SELECT {COLUMNS} FROM codebases WHERE name = ?1 OR id = ?1 ORDER BY name <> ?1 LIMIT 1"
        );
        self.connection.query_row(&sql, [name], record).optional().map_err(self.wrong())
    }

    pub fn insert(&self, new: &Record) -> Result<(), Error> {
        let sql = format!(
            "INSERT INTO codebases ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)"
        );
        let done = self.connection.execute(
            &sql,
            params![
                new.id,
                new.name,
                new.owner,
                new.created.0,
                new.created.1,
                new.updated.0,
                new.updated.1,
                new.size as i64,
                new.files as i64,
                new.entries as i64,
                new.sealed,
                new.version as i64,
            ],
        );
        match done {
            Ok(_) => Ok(()),
            Err(rusqlite::Error::SqliteFailure(e, _))
                if e.code == rusqlite::ErrorCode::ConstraintViolation =>
            {
                Err(Error::Taken(new.name.clone()))
            }
            Err(e) => Err(self.wrong()(e)),
        }
    }

    /// After a change of the tree.
    pub fn changed(&self, now: &Record) -> Result<(), Error> {
        self.connection
            .execute(
                "UPDATE codebases SET updated = ?2, updated_ns = ?3, size = ?4, files = ?5,
                 entries = ?6, version = ?7 WHERE id = ?1",
                params![
                    now.id,
                    now.updated.0,
                    now.updated.1,
                    now.size as i64,
                    now.files as i64,
                    now.entries as i64,
                    now.version as i64
                ],
            )
            .map(drop)
            .map_err(self.wrong())
    }

    pub fn seal(&self, id: &str) -> Result<(), Error> {
        self.connection
            .execute("UPDATE codebases SET sealed = 1 WHERE id = ?1", [id])
            .map(drop)
            .map_err(self.wrong())
    }

    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let remove = || -> Result<(), rusqlite::Error> {
            let all = self.connection.unchecked_transaction()?;
            all.execute("DELETE FROM remotes WHERE id = ?1", [id])?;
            all.execute("DELETE FROM codebases WHERE id = ?1", [id])?;
            all.commit()
        };
        remove().map_err(self.wrong())
    }

    /// Which version in an object store the tree came from or went to, and which version it was here
    /// then.
    pub fn remote(&self, id: &str, url: &str) -> Result<Option<(u64, u64)>, Error> {
        let sql = "SELECT theirs, ours FROM remotes WHERE id = ?1 AND url = ?2";
        let number = |row: &Row<'_>, at| row.get::<_, i64>(at).map(|n| n as u64);
        self.connection
            .query_row(sql, [id, url], |row| Ok((number(row, 0)?, number(row, 1)?)))
            .optional()
            .map_err(self.wrong())
    }

    pub fn set_remote(&self, of: &Record, url: &str, theirs: u64) -> Result<(), Error> {
        let sql = "INSERT OR REPLACE INTO remotes (id, url, theirs, ours) VALUES (?1, ?2, ?3, ?4)";
        self.connection
            .execute(sql, params![of.id, url, theirs as i64, of.version as i64])
            .map(drop)
            .map_err(self.wrong())
    }
}

fn wrong(path: &Path, e: &rusqlite::Error) -> Error {
    Error::Database { path: path.into(), problem: e.to_string().to_lowercase() }
}

fn record(row: &Row<'_>) -> Result<Record, rusqlite::Error> {
    let number = |at: usize| row.get::<_, i64>(at).map(|n| n as u64);
    Ok(Record {
        id: row.get(0)?,
        name: row.get(1)?,
        owner: row.get(2)?,
        created: Stamp(row.get(3)?, row.get(4)?),
        updated: Stamp(row.get(5)?, row.get(6)?),
        size: number(7)?,
        files: number(8)?,
        entries: number(9)?,
        sealed: row.get(10)?,
        version: number(11)?,
    })
}
