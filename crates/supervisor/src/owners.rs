//! Owners with names: who has a token, and what each may have. Kept in a file that the command line writes
//! and the daemon reads again when it has changed.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ringfence_api::OwnerLimits;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind};
use crate::journal::Owner;
use crate::{lock, now_ms};

/// Stands for all owners together, the daemon's user too.
pub const EVERYBODY: &str = "everybody";
/// What a token begins with.
const PREFIX: &str = "rfo_";
/// Bytes of the file.
const MOST: u64 = 4 << 20;

/// An owner as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub name: String,
    /// Never given to another.
    pub number: u32,
    /// SHA-256 of its token, in hexadecimal digits. None: revoked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<String>,
    pub created_ms: u64,
    #[serde(default)]
    pub limits: OwnerLimits,
}

impl Record {
    pub fn owner(&self) -> Owner {
        Owner::named(self.number)
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// The last number that was given.
    last: u32,
    owners: Vec<Record>,
}

/// What tells one state of the file from another.
type Stamp = (u64, i64, i64, u64);

/// The owners, as they stand in the file.
#[derive(Debug)]
pub struct Owners {
    file: PathBuf,
    read: Mutex<(Option<Stamp>, Arc<Vec<Record>>)>,
}

fn wrong(path: &Path, e: &std::io::Error) -> Error {
    let text = e.to_string().to_lowercase();
    Error::internal(format!(
        "{}: {}",
        path.display(),
        text.split(" (os error").next().unwrap_or_default()
    ))
}

fn hash(token: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(token.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Reads the file; none is an empty one.
fn load(file: &Path) -> Result<(Option<Stamp>, Kept), Error> {
    let opened = match std::fs::File::open(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((None, Kept::default())),
        Err(e) => return Err(wrong(file, &e)),
        Ok(opened) => opened,
    };
    let meta = opened.metadata().map_err(|e| wrong(file, &e))?;
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(Error::internal(format!("{}: not a file of yours alone", file.display()))
            .with("chmod 600"));
    }
    let mut text = String::new();
    opened.take(MOST).read_to_string(&mut text).map_err(|e| wrong(file, &e))?;
    let kept = serde_json::from_str(&text)
        .map_err(|e| Error::internal(format!("{}: {e}", file.display())))?;
    Ok((Some(stamp(&meta)), kept))
}

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len())
}

impl Owners {
    pub fn new(file: PathBuf) -> Self {
        Self { file, read: Mutex::default() }
    }

    /// As they are now. A file that cannot be read is one without owners: nobody gets in by it.
    pub fn all(&self) -> Arc<Vec<Record>> {
        let now = std::fs::symlink_metadata(&self.file).ok().map(|meta| stamp(&meta));
        let mut read = lock(&self.read);
        if read.0 != now || (now.is_none() && !read.1.is_empty()) {
            match load(&self.file) {
                Ok((at, kept)) => *read = (at, Arc::new(kept.owners)),
                Err(e) => {
                    crate::complain(&format!("no owner has a token that holds: {e}"));
                    *read = (now, Arc::default());
                }
            }
        }
        read.1.clone()
    }

    /// Whose token it is.
    pub fn by_token(&self, token: &str) -> Option<Record> {
        if !token.starts_with(PREFIX) {
            return None;
        }
        let given = hash(token);
        // Of a hash nothing is learnt from the time that it takes.
        self.all().iter().find(|r| r.token.as_deref() == Some(&given)).cloned()
    }

    pub fn get(&self, owner: Owner) -> Option<Record> {
        let number = owner.number()?;
        self.all().iter().find(|r| r.number == number).cloned()
    }

    /// What all may have together.
    pub fn everybody(&self) -> OwnerLimits {
        let all = self.all();
        all.iter().find(|r| r.name == EVERYBODY).map(|r| r.limits.clone()).unwrap_or_default()
    }

    /// Makes a token: of a new owner, or where `again`, another one of an owner whose old one ends.
    pub fn create(
        &self,
        name: &str,
        limits: impl FnOnce(&mut OwnerLimits),
        again: bool,
    ) -> Result<(Record, String), Error> {
        check(name)?;
        let token = format!("{PREFIX}{}{}", crate::random()?, crate::random()?);
        let record = self.change(|kept| {
            let at = if let Some(at) = kept.owners.iter().position(|r| r.name == name) {
                if kept.owners.get(at).is_some_and(|r| r.token.is_some()) && !again {
                    return Err(Error::new(
                        Kind::Conflict,
                        format!("{name} has a token already: --rotate makes a new one and ends it"),
                    ));
                }
                at
            } else {
                kept.last += 1;
                let (number, created_ms) = (kept.last, now_ms());
                let name = name.to_owned();
                kept.owners.push(Record { name, number, created_ms, ..Record::default() });
                kept.owners.len() - 1
            };
            let record = kept.owners.get_mut(at).ok_or_else(|| Error::internal("no owner"))?;
            record.token = Some(hash(&token));
            limits(&mut record.limits);
            Ok(record.clone())
        })?;
        Ok((record, token))
    }

    /// Changes what an owner may have.
    pub fn limit(
        &self,
        name: &str,
        limits: impl FnOnce(&mut OwnerLimits),
    ) -> Result<Record, Error> {
        self.change(|kept| {
            if name == EVERYBODY && !kept.owners.iter().any(|r| r.name == name) {
                kept.owners.push(Record { name: name.to_owned(), ..Record::default() });
            }
            let record = find(kept, name)?;
            limits(&mut record.limits);
            let OwnerLimits { sandboxes: _, commands: _, sessions: _, memory, disk, hosts } =
                &record.limits;
            if name == EVERYBODY && (memory.is_some() || disk.is_some() || !hosts.is_empty()) {
                return Err(Error::invalid("everybody: only sandboxes, commands and sessions"));
            }
            Ok(record.clone())
        })
    }

    /// Its token holds no more. What it owns stays, and is its again with a new token.
    pub fn revoke(&self, name: &str) -> Result<(), Error> {
        self.change(|kept| {
            find(kept, name)?.token = None;
            Ok(())
        })
    }

    /// One at a time, and the file is the old or the new one at any moment.
    fn change<T>(&self, change: impl FnOnce(&mut Kept) -> Result<T, Error>) -> Result<T, Error> {
        let mut private = std::fs::OpenOptions::new();
        private.create(true).write(true).truncate(false).mode(0o600);
        let guard = self.file.with_extension("lock");
        let lock = private.open(&guard).map_err(|e| wrong(&guard, &e))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| wrong(&guard, &e.into()))?;
        let (_, mut kept) = load(&self.file)?;
        let changed = change(&mut kept)?;
        let text =
            serde_json::to_string_pretty(&kept).map_err(|e| Error::internal(e.to_string()))?;
        let draft = self.file.with_extension("draft");
        let _ = std::fs::remove_file(&draft);
        let mut file = private.open(&draft).map_err(|e| wrong(&draft, &e))?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&draft, &self.file))
            .map_err(|e| wrong(&self.file, &e))?;
        Ok(changed)
    }
}

fn find<'a>(kept: &'a mut Kept, name: &str) -> Result<&'a mut Record, Error> {
    kept.owners
        .iter_mut()
        .find(|r| r.name == name)
        .ok_or_else(|| Error::new(Kind::NotFound, format!("no owner {name}")))
}

fn check(name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    // Not as a number, which is the daemon's user.
    if name == EVERYBODY
        || !name.starts_with(|c: char| c.is_ascii_alphabetic())
        || name.len() > 64
        || !name.chars().all(plain)
    {
        return Err(Error::invalid(format!(
            "{name:?} is not of at most 64 letters, digits, dashes, dots and underscores, with a letter first"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_owners_until_it_is_revoked_and_is_not_in_the_file() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("owners.json");
        let (daemon, verb) = (Owners::new(file.clone()), Owners::new(file.clone()));
        assert!(daemon.by_token("rfo_").is_none());
        let (web, token) = verb.create("web", |l| l.sandboxes = Some(3), false).unwrap();
        let (ci, other) = verb.create("ci", |_| {}, false).unwrap();
        assert_ne!(web.owner(), ci.owner());
        assert_eq!(daemon.by_token(&token), Some(web.clone()));
        assert_eq!(daemon.by_token(&other), Some(ci));
        for wrong in [&token[..token.len() - 1], &format!("{token}0"), "", "web", &hash(&token)] {
            assert_eq!(daemon.by_token(wrong), None, "{wrong}");
        }
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&token[PREFIX.len()..]));
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(verb.create("web", |_| {}, false).unwrap_err().kind, Kind::Conflict);
        let (again, newer) = verb.create("web", |_| {}, true).unwrap();
        assert_eq!((again.number, again.limits.sandboxes), (web.number, Some(3)));
        assert_eq!((daemon.by_token(&token), daemon.by_token(&newer).unwrap().number), (None, 1));
        verb.revoke("web").unwrap();
        assert_eq!(daemon.by_token(&newer), None);
        assert_eq!(daemon.get(web.owner()).unwrap().name, "web");
        assert_eq!(verb.revoke("nobody").unwrap_err().kind, Kind::NotFound);
        for wrong in ["", "everybody", "0", "1000", "-a", "a/b", "a b", &"a".repeat(65)] {
            assert!(verb.create(wrong, |_| {}, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_wrong_or_open_to_others_lets_nobody_in() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("owners.json");
        let owners = Owners::new(file.clone());
        let (_, token) = owners.create("web", |_| {}, false).unwrap();
        assert!(owners.by_token(&token).is_some());
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"owners\"", "\"others\"")).unwrap();
        assert!(owners.by_token(&token).is_none());
        std::fs::write(&file, format!("{text} ")).unwrap();
        assert!(owners.by_token(&token).is_some());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(&file, format!("{text}  ")).unwrap();
        assert!(owners.by_token(&token).is_none());
        std::fs::remove_file(&file).unwrap();
        assert!(owners.by_token(&token).is_none());
    }
}
