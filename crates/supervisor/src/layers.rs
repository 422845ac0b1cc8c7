//! What a sandbox changed: compared, brought to the real files, thrown away, kept under names.

use std::path::{Component, Path, PathBuf};

use ringfence_api::layers::{Applied, Checkpoint, Chosen, LayerChanges, LayerInfo, Line, Snapshot};
use ringfence_layers::journal::{Place, Request as Wanted};
use ringfence_layers::pack::{Format, write_layer};
use ringfence_layers::review::{Item, review, selects};
use ringfence_layers::{Record, Stamp, Store, apply, diff, history};
use ringfence_sandbox::judge::OfPolicy;
use ringfence_sandbox::prepare::Request;

use crate::codebases::{Download, download};
use crate::error::{Error, Kind};
use crate::spawner;

/// What can be asked of a sandbox's layer.
#[derive(Clone, Debug)]
pub enum Ask {
    Info,
    Diff {
        path: Option<String>,
    },
    /// For `git apply` and `patch`.
    Patch {
        path: Option<String>,
        binary: bool,
    },
    Export {
        snapshot: Option<String>,
        zstd: bool,
    },
    Apply(Chosen),
    Discard(Chosen),
    Checkpoint,
    Undo {
        steps: usize,
    },
    Snapshot(String),
    Forget(String),
    Restore(String),
    Fork(String),
}

impl Ask {
    /// There is more on the disk afterwards, which no quota of a sandbox counts.
    pub(crate) fn adds(&self) -> bool {
        matches!(self, Self::Fork(_) | Self::Snapshot(_) | Self::Checkpoint)
    }

    /// It changes what lies below a sandbox, or cannot be told while it changes.
    pub(crate) fn needs_rest(&self) -> bool {
        let dry = matches!(self, Self::Apply(chosen) if chosen.dry_run);
        !(dry || matches!(self, Self::Info | Self::Diff { .. } | Self::Patch { .. }))
    }
}

/// What comes of it.
#[derive(Debug)]
pub enum Answer {
    Done,
    Info(LayerInfo),
    Changes(LayerChanges),
    Applied(Applied),
    Patch(Vec<u8>),
    Bytes(Download),
}

/// A sandbox's layer, at work.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub store: PathBuf,
    pub name: String,
    /// Of the sandbox, for its policy.
    pub made_of: ringfence_api::CreateSandbox,
    pub hidden: Vec<String>,
    /// What is seen at which place, for a codebase.
    pub moved: Option<(PathBuf, PathBuf)>,
}

fn said(e: &ringfence_layers::Error) -> Error {
    use ringfence_layers::Error as E;
    match e {
        E::NoLayer(_) => Error::new(Kind::NotFound, "the sandbox has changed nothing yet"),
        E::InUse { .. } | E::Unfinished(_) | E::OtherRoot { .. } => {
            Error::new(Kind::Conflict, e.to_string())
        }
        E::Name(_) => Error::invalid(e.to_string()),
        E::Refused(_) => Error::new(Kind::Refused, e.to_string()),
        _ => Error::internal(e.to_string()),
    }
}

fn told<T>(done: Result<T, ringfence_layers::Error>) -> Result<T, Error> {
    done.map_err(|e| said(&e))
}

fn ms(stamp: Stamp) -> i64 {
    stamp.0.saturating_mul(1000) + i64::from(stamp.1 / 1_000_000)
}

/// Directories in which a shell finds programs.
fn search() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|p| p.is_absolute()).collect()
}

impl Layer {
    fn open(&self) -> Result<Store, Error> {
        told(Store::open(&self.store))
    }

    /// Waits for the disk.
    pub(crate) fn carry_out(&self, ask: Ask) -> Result<Answer, Error> {
        let store = self.open()?;
        let name = self.name.as_str();
        let done = |done| told(done).map(|()| Answer::Done);
        match ask {
            Ask::Info => self.info(&store),
            Ask::Diff { path } => self.diff(&store, path.as_deref()),
            Ask::Patch { path, binary } => self.patch(&store, path.as_deref(), binary),
            Ask::Export { snapshot, zstd } => {
                // Whether there is one is said at once.
                let layer = told(store.layer(name))?;
                if let Some(snapshot) = &snapshot
                    && !layer.record.snapshots.contains_key(snapshot)
                {
                    return Err(Error::new(Kind::NotFound, "no such snapshot"));
                }
                if layer.record.roots.is_empty() {
                    return Err(Error::new(Kind::NotFound, "the sandbox has changed nothing yet"));
                }
                let name = name.to_owned();
                let format = if zstd { Format::TarZstd } else { Format::Tar };
                Ok(Answer::Bytes(download(move |out| {
                    write_layer(&store, &name, snapshot.as_deref(), out, format)
                        .map(drop)
                        .map_err(|e| e.to_string())
                })))
            }
            Ask::Apply(chosen) => self.apply(&store, &chosen),
            Ask::Discard(chosen) if chosen.paths.is_empty() => match store.discard(name) {
                Err(ringfence_layers::Error::NoLayer(_)) => Ok(Answer::Done),
                other => done(other),
            },
            Ask::Discard(chosen) => {
                let record = told(store.layer(name))?.record;
                let places = self.places(&record, &chosen.paths)?;
                told(apply::discard(&store, name, &places)).map(|_| Answer::Done)
            }
            Ask::Checkpoint => {
                told(history::checkpoint(&store, name, None, Stamp::now())).map(|_| Answer::Done)
            }
            Ask::Undo { steps } => told(history::undo(&store, name, steps)).map(|_| Answer::Done),
            Ask::Snapshot(snapshot) => {
                told(history::snapshot(&store, name, &snapshot, Stamp::now()))?;
                done(history::settle(&store, name))
            }
            Ask::Forget(snapshot) => done(history::forget(&store, name, &snapshot)),
            Ask::Restore(snapshot) => done(history::restore(&store, name, &snapshot, Stamp::now())),
            Ask::Fork(new) if new.starts_with("sb_") => {
                Err(Error::invalid("layer: names that begin with sb_ are of sandboxes"))
            }
            Ask::Fork(new) => done(history::fork(&store, name, &new, Stamp::now())),
        }
    }

    fn info(&self, store: &Store) -> Result<Answer, Error> {
        let record = told(store.layer(&self.name))?.record;
        let usage = told(store.usage(&record))?;
        let snapshots = record
            .snapshots
            .iter()
            .map(|(name, s)| Snapshot { name: name.clone(), created_ms: ms(s.created) });
        let checkpoints = record.checkpoints.iter().rev().enumerate().map(|(n, c)| Checkpoint {
            steps: n + 1,
            created_ms: ms(c.created),
            command: c.command.clone(),
        });
        Ok(Answer::Info(LayerInfo {
            layer: self.name.clone(),
            bytes: usage.bytes,
            inodes: usage.inodes,
            snapshots: snapshots.collect(),
            checkpoints: checkpoints.collect(),
        }))
    }

    fn diff(&self, store: &Store, path: Option<&str>) -> Result<Answer, Error> {
        let layer = told(store.layer(&self.name))?;
        let in_use = told(store.holder(&self.name))?.is_some();
        let places = self.places(&layer.record, path.map(ToOwned::to_owned).as_slice())?;
        let review = told(review(&layer, None, &search()))?;
        let one = |item: &Item| match diff::json(&review, item) {
            serde_json::Value::Object(map) => map,
            _ => serde_json::Map::new(),
        };
        let changes = review.items.iter().filter(|i| is_among(&places, i)).map(one).collect();
        Ok(Answer::Changes(LayerChanges { layer: self.name.clone(), in_use, changes }))
    }

    fn patch(&self, store: &Store, path: Option<&str>, binary: bool) -> Result<Answer, Error> {
        let layer = told(store.layer(&self.name))?;
        let places = self.places(&layer.record, path.map(ToOwned::to_owned).as_slice())?;
        let review = told(review(&layer, None, &search()))?;
        let items: Vec<&Item> = review.items.iter().filter(|i| is_among(&places, i)).collect();
        told(diff::patch(&review, &items, binary)).map(Answer::Patch)
    }

    /// By the sandbox's own policy: what a run without the layer could not have written is not applied.
    fn apply(&self, store: &Store, chosen: &Chosen) -> Result<Answer, Error> {
        let layer = told(store.layer(&self.name))?;
        let mut policy = spawner::policy_of(&self.made_of)?;
        for directory in &self.hidden {
            spawner::hide(&mut policy, directory)?;
        }
        let request = Request {
            workspace: Some(PathBuf::from(&self.made_of.workspace)),
            ..Request::current()
        };
        let roots: Vec<PathBuf> = layer.record.roots.iter().map(|r| r.path.clone()).collect();
        let wanted = Wanted {
            paths: self.places(&layer.record, &chosen.paths)?,
            theirs: chosen.theirs,
            ..Wanted::default()
        };
        let search = search();
        let judge =
            OfPolicy::new(&policy, &request, &roots).map_err(|e| Error::new(Kind::Refused, e))?;
        let report = if chosen.dry_run {
            told(apply::preview(&told(review(&layer, Some(&judge), &search))?, &wanted))?
        } else {
            let mut tell = |_: &apply::Report| {};
            let mut context =
                apply::Context { judge: Some(&judge), search: &search, tell: &mut tell };
            told(apply::apply(store, &self.name, &wanted, &mut context))?
        };
        Ok(Answer::Applied(Applied {
            applied: lines(&report.applied),
            conflicts: lines(&report.conflicts),
            refused: lines(&report.refused),
            notes: lines(&report.notes),
        }))
    }

    /// Paths as the sandbox sees them, in the layer's directories.
    fn places(&self, record: &Record, paths: &[String]) -> Result<Vec<Place>, Error> {
        paths.iter().map(|path| self.place(record, path)).collect()
    }

    fn place(&self, record: &Record, path: &str) -> Result<Place, Error> {
        let (outside, inside) = match &self.moved {
            Some((outside, inside)) => (outside.clone(), inside.clone()),
            None => (PathBuf::from(&self.made_of.workspace), PathBuf::new()),
        };
        let path = match Path::new(path).strip_prefix(&inside) {
            Ok(rest) if self.moved.is_some() => outside.join(rest),
            _ => outside.join(path),
        };
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        if !path.components().all(plain) {
            return Err(Error::invalid(format!("path: {} leads up", path.display())));
        }
        let roots = record.roots.iter().enumerate();
        roots
            .filter_map(|(n, root)| Some((n, root, path.strip_prefix(&root.path).ok()?)))
            .max_by_key(|(_, root, _)| root.path.as_os_str().len())
            .map(|(n, _, rest)| Place::new(n, rest.to_owned()))
            .ok_or_else(|| {
                Error::invalid(format!("path: {} is in no directory of the layer", path.display()))
            })
    }
}

fn is_among(places: &[Place], item: &Item) -> bool {
    let within = |p: &Place| {
        p.root == item.root && selects(std::slice::from_ref(&p.path), &item.change.path)
    };
    places.is_empty() || places.iter().any(within)
}

fn lines(lines: &[apply::Line]) -> Vec<Line> {
    let one = |line: &apply::Line| Line {
        path: line.path.to_string_lossy().into_owned(),
        status: line.letter.to_string(),
        reason: line.text.clone(),
        executable: line.executable.map(ToOwned::to_owned),
    };
    lines.iter().map(one).collect()
}
