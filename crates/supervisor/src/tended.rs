//! What a sandbox with a layer, a codebase or hosts needs besides its policy. Each has a spawner of its own
//! that stays beside it: what serves it (threads for quota, exact view and hosts), and what is written
//! down when it ends, is no other sandbox's business. If that spawner ends, the sandbox does.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ringfence_api::CreateSandbox;
use ringfence_api::codebases::{FilePermission, FileRule, Layer, PatternType};
use ringfence_codebases::Codebase;
use ringfence_layers::{Quota, Store};
use ringfence_policy::{Fragment, Located, OrderedKind, OrderedRule, Origin, Permission, Policy};
use ringfence_sandbox::layer::LayerRequest;
use ringfence_sandbox::moved::Moved;
use ringfence_sandbox::prepare::Request;
use serde::{Deserialize, Serialize};

use crate::codebases::Found;
use crate::error::{Error, Kind};
use crate::files::blocking;
use crate::sandbox::Sandbox;
use crate::{layers, lock};

/// With an order to make a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tended {
    /// The spawner makes this one only, and ends with it.
    pub alone: bool,
    pub layer: Option<String>,
    /// Of layers and codebases.
    pub store: PathBuf,
    /// Name, tree and version.
    pub codebase: Option<(String, PathBuf, u64)>,
}

impl Tended {
    pub(crate) fn of(sandbox: &Sandbox, codebase: Option<&Found>, store: &Path) -> Self {
        Self {
            alone: true,
            store: store.to_owned(),
            layer: layer_of(&sandbox.made_of, &sandbox.id).map(ToOwned::to_owned),
            codebase: codebase.map(|f| (f.name.clone(), f.tree.clone(), f.version)),
        }
    }

    /// As the command line does for `run --codebase` and `run --layer`.
    pub(crate) fn ask(&self, policy: &mut Policy, request: &mut Request) -> Result<(), Error> {
        if let Some((name, tree, version)) = &self.codebase {
            request.index = Codebase::index_of(tree, *version).map(Arc::new);
            request.workspace = Some(tree.clone());
            request.moved = Some(Moved {
                name: name.clone(),
                from: tree.clone(),
                to: PathBuf::from(ringfence_codebases::WORKSPACE),
            });
        }
        let wanted = &mut policy.layer;
        let Some(name) = &self.layer else { return Ok(()) };
        let mut layer = LayerRequest::new(Some(name), self.store.clone(), wanted.checkpoint)
            .map_err(|e| Error::invalid(e.to_string()))?;
        let (bytes, inodes) = (wanted.quota, wanted.inodes);
        layer.quota = (bytes.is_some() || inodes.is_some()).then_some(Quota { bytes, inodes });
        request.layer = Some(layer);
        Ok(())
    }
}

/// The layer of a sandbox, its own by its id.
pub(crate) fn layer_of<'a>(made_of: &'a CreateSandbox, id: &'a str) -> Option<&'a str> {
    match &made_of.layer {
        Some(Layer::Named(name)) => Some(name),
        Some(Layer::Own(true)) => Some(id),
        Some(Layer::Own(false)) | None => made_of.codebase.is_some().then_some(id),
    }
}

/// Whether that layer goes with the sandbox.
pub(crate) fn is_own(made_of: &CreateSandbox) -> bool {
    !matches!(made_of.layer, Some(Layer::Named(_)))
}

/// What can be seen to be wrong without looking at the host.
pub(crate) fn check(made_of: &CreateSandbox) -> Result<(), Error> {
    match (&made_of.codebase, made_of.workspace.as_str()) {
        // The codebase, or a directory of its own.
        (_, "") => {}
        (Some(_), _) => return Err(Error::invalid("workspace and codebase exclude each other")),
        (None, path) if !path.starts_with('/') => {
            return Err(Error::invalid("workspace: not an absolute path")
                .with("name the directory to work in, or a codebase"));
        }
        (None, _) => {}
    }
    match &made_of.layer {
        Some(Layer::Own(false)) if made_of.codebase.is_some() => {
            Err(Error::invalid("layer: what is written over a codebase goes to a layer")
                .with("leave layer out, or name one"))
        }
        Some(Layer::Named(name)) if name.starts_with("sb_") => {
            Err(Error::invalid("layer: names that begin with sb_ are of sandboxes"))
        }
        Some(Layer::Named(name)) => {
            ringfence_layers::check_name(name).map_err(|e| Error::invalid(format!("layer: {e}")))
        }
        _ => Ok(()),
    }
}

/// Rules of a request as those of a policy.
pub(crate) fn rules(all: &[FileRule]) -> Fragment {
    let mut fragment = Fragment::named("the rules of the request");
    let origin = Origin { layer: "the rules of the request".into(), line: None };
    fragment.files.rules = all
        .iter()
        .map(|rule| Located {
            value: OrderedRule {
                pattern: rule.pattern.clone(),
                permission: match rule.permission {
                    FilePermission::None => Permission::None,
                    FilePermission::View => Permission::View,
                    FilePermission::Read => Permission::Read,
                    FilePermission::Write => Permission::Write,
                },
                priority: rule.priority,
                kind: match rule.kind {
                    PatternType::Glob => OrderedKind::Glob,
                    PatternType::Directory => OrderedKind::Directory,
                    PatternType::File => OrderedKind::File,
                },
            },
            origin: origin.clone(),
        })
        .collect();
    fragment
}

/// Which layers are sandboxes' own: an empty file for each beside the daemon's store, there before the
/// layer and gone after it, so that what a killed daemon left is found.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    directory: PathBuf,
    /// Of the layers.
    store: PathBuf,
    /// Those that nobody finds any more but that still take room.
    aside: Arc<Mutex<Aside>>,
}

#[derive(Debug, Default)]
struct Aside {
    names: Vec<String>,
    /// Somebody is at it.
    busy: bool,
}

fn failed(path: &std::path::Path, e: &std::io::Error) -> Error {
    Error::internal(format!("{}: {e}", path.display()))
}

impl Own {
    pub(crate) fn new(directory: PathBuf, store: PathBuf) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed(&directory, &e));
            }
            _ => {}
        }
        Ok(Self { directory, store, aside: Arc::default() })
    }

    pub(crate) async fn remember(&self, layer: &str) -> Result<(), Error> {
        let path = self.directory.join(layer);
        blocking(move || std::fs::write(&path, "").map_err(|e| failed(&path, &e))).await
    }

    /// Discards the layer: when this returns nobody finds it any more; what it holds is removed soon after, or
    /// by the next start.
    pub(crate) async fn forget(&self, layer: &str) -> Result<(), Error> {
        let (own, layer) = (self.clone(), layer.to_owned());
        blocking(move || {
            match Store::open(&own.store).and_then(|store| store.set_aside(&layer)) {
                Ok(()) | Err(ringfence_layers::Error::NoLayer(_)) => {}
                Err(e @ ringfence_layers::Error::InUse { .. }) => {
                    return Err(Error::new(Kind::Busy, e.to_string()));
                }
                Err(e) => return Err(Error::internal(e.to_string())),
            }
            let mut aside = lock(&own.aside);
            aside.names.push(layer);
            if !std::mem::replace(&mut aside.busy, true) {
                let own = own.clone();
                tokio::task::spawn_blocking(move || own.clear());
            }
            Ok(())
        })
        .await
    }

    /// Removes what was set aside.
    fn clear(&self) {
        loop {
            let names = {
                let mut aside = lock(&self.aside);
                if aside.names.is_empty() {
                    aside.busy = false;
                    return;
                }
                std::mem::take(&mut aside.names)
            };
            let cleared = Store::open(&self.store).and_then(|store| store.collect(store.lock()?));
            if let Err(e) = cleared {
                crate::complain(&format!("layers that were removed: {e}"));
                continue;
            }
            for name in names {
                // The next start tries again.
                let _ = std::fs::remove_file(self.directory.join(name));
            }
        }
    }

    fn discard(&self, layer: &str) -> Result<(), Error> {
        let store = Store::open(&self.store).map_err(|e| Error::internal(e.to_string()))?;
        match store.discard(layer) {
            Ok(()) => {}
            // Set aside, perhaps.
            Err(ringfence_layers::Error::NoLayer(_)) => {
                let collected = store.lock().and_then(|lock| store.collect(lock));
                collected.map_err(|e| Error::internal(e.to_string()))?;
            }
            Err(e) => return Err(Error::internal(e.to_string())),
        }
        let path = self.directory.join(layer);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, &e)),
            _ => Ok(()),
        }
    }

    /// Of what a killed daemon left of its own layers: see [`layers::mend`]. Says what could not be.
    pub(crate) fn mend(&self) {
        let Ok(names) = std::fs::read_dir(&self.directory) else { return };
        for name in names.flatten() {
            let name = name.file_name();
            let Some(name) = name.to_str().filter(|n| n.starts_with("sb_")) else { continue };
            let mended = Store::open(&self.store).and_then(|store| layers::mend(&store, name));
            if let Err(e) = mended {
                crate::complain(&format!("layer {name}: {e}"));
            }
        }
    }

    /// Discards what no sandbox has any more. Says what could not be.
    pub(crate) fn sweep(&self, known: impl Fn(&str) -> bool) {
        let Ok(names) = std::fs::read_dir(&self.directory) else { return };
        for name in names.flatten() {
            let name = name.file_name();
            let Some(name) = name.to_str().filter(|n| n.starts_with("sb_") && !known(n)) else {
                continue;
            };
            if let Err(e) = self.discard(name) {
                crate::complain(&format!("layer {name}: {e}"));
            }
        }
    }
}
