//! What is one owner's: its store of layers and codebases, and what it may have. Another's is not looked
//! for at all.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ringfence_api::{CreateSandbox, OwnerLimits};

use crate::codebases::Shelf;
use crate::error::{Error, Kind};
use crate::journal::Owner;
use crate::owners::Owners;
use crate::supervisor::Settings;
use crate::tended::Own;
use crate::{guest, lock, quota};

#[derive(Clone, Debug)]
pub(crate) struct Realm {
    pub name: String,
    owner: Owner,
    /// Of layers and codebases.
    pub store: PathBuf,
    pub shelf: Shelf,
    pub own: Own,
    pub limits: OwnerLimits,
}

impl Realm {
    pub(crate) fn is_guest(&self) -> bool {
        self.owner.number().is_some()
    }

    pub(crate) fn may_create(&self, made_of: &CreateSandbox) -> Result<(), Error> {
        if !self.is_guest() {
            return Ok(());
        }
        guest::check(made_of, &self.limits)?;
        quota::says_enough(made_of, &self.limits)
    }
}

#[derive(Debug)]
pub(crate) struct Realms {
    pub owners: Owners,
    user: Arc<Realm>,
    /// Below it those of owners with names, by their numbers.
    root: PathBuf,
    made: Mutex<HashMap<Owner, Arc<Realm>>>,
}

fn private(directory: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| Error::internal(format!("cannot make {}: {e}", directory.display())))
}

fn realm(owner: Owner, name: String, own: PathBuf, store: PathBuf) -> Result<Realm, Error> {
    Ok(Realm {
        name,
        owner,
        shelf: Shelf::new(store.clone()),
        own: Own::new(own, store.clone())?,
        store,
        limits: OwnerLimits::default(),
    })
}

impl Realms {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let own = settings.store.with_file_name("layers");
        let user = Owner::user();
        Ok(Self {
            owners: Owners::new(settings.owners.clone()),
            user: Arc::new(realm(user, user.raw().to_string(), own, settings.layers.clone())?),
            root: settings.workspaces.with_file_name("owners"),
            made: Mutex::default(),
        })
    }

    /// That of an owner, with the limits that it has now.
    pub(crate) fn of(&self, owner: Owner) -> Result<Arc<Realm>, Error> {
        if owner == Owner::user() {
            return Ok(self.user.clone());
        }
        let gone = || Error::new(Kind::Refused, "no such owner");
        let record = self.owners.get(owner).ok_or_else(gone)?;
        let mut made = lock(&self.made);
        let realm = match made.get(&owner) {
            Some(realm) if realm.limits == record.limits => return Ok(realm.clone()),
            // Of one store there is one shelf: whoever waits for a change of it waits for all of them.
            Some(realm) => Realm { limits: record.limits, ..Realm::clone(realm) },
            None => {
                let base = self.root.join(record.number.to_string());
                let store = base.join("store");
                private(&store)?;
                let realm = realm(owner, record.name, base.join("own"), store)?;
                Realm { limits: record.limits, ..realm }
            }
        };
        let realm = Arc::new(realm);
        made.insert(owner, realm.clone());
        Ok(realm)
    }

    /// An owner by name, for the daemon's user; others have only themselves.
    pub(crate) fn named_by(&self, caller: Owner, name: &str) -> Result<Owner, Error> {
        let all = self.owners.all();
        let found = all.iter().find(|r| r.name == name).map(crate::owners::Record::owner);
        match found {
            Some(found) if caller == Owner::user() || caller == found => Ok(found),
            _ if caller == Owner::user() && name == self.user.name => Ok(caller),
            _ => Err(Error::new(Kind::NotFound, "no such owner")),
        }
    }

    /// The layers that go with sandboxes, of all owners that there are.
    pub(crate) fn all_own(&self) -> Vec<Own> {
        let all = self.owners.all();
        let named = all.iter().filter_map(|record| self.of(record.owner()).ok());
        std::iter::once(self.user.clone()).chain(named).map(|realm| realm.own.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whoever waits until nobody changes a codebase is not passed by because the owner's limits were changed
    /// meanwhile.
    #[tokio::test]
    async fn what_is_changed_is_known_when_limits_have_changed() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let settings = Settings {
            store: at("daemon/state.db"),
            layers: at("layers"),
            spawner: (at("program"), Vec::new()),
            hidden: Vec::new(),
            workspaces: at("workspaces"),
            owners: at("owners.json"),
        };
        private(&at("daemon")).unwrap();
        private(&at("layers")).unwrap();
        let realms = Realms::new(&settings).unwrap();
        realms.owners.create("web", |_| {}, false).unwrap();
        let owner = realms.owners.all()[0].owner();
        let before = realms.of(owner).unwrap();
        realms.owners.limit("web", |has| has.commands = Some(5)).unwrap();
        let after = realms.of(owner).unwrap();
        assert_eq!((before.limits.commands, after.limits.commands), (None, Some(5)));
        let quiet = before.shelf.quiet(Duration::from_secs(60)).await;
        assert!(quiet.is_some());
        assert!(after.shelf.quiet(Duration::from_millis(50)).await.is_none());
        // The control.
        drop(quiet);
        assert!(after.shelf.quiet(Duration::from_secs(60)).await.is_some());
    }
}
