//! Runs in a layer: what the plan has to know of it, the session in the store, the words at the end.

use std::ffi::OsString;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ringfence_layers::delta::ChangeKind;
use ringfence_layers::mask::Mask;
use ringfence_layers::quota::{self, Exceeded, Watch, Watched};
use ringfence_layers::{Mount, Outcome, Quota, Root, Session, Stamp, Store, history};
use serde::Serialize;

use crate::names::{NamesError, NamesPlan};
use crate::survey::{self, Object};

/// The layer that a run is to write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRequest {
    pub name: String,
    /// The caller did not choose the name: the layer goes at the end if nothing was changed.
    pub auto: bool,
    /// The store's directory.
    pub store: PathBuf,
    /// Seal the changes of this run at its end, so that it can be undone alone.
    pub checkpoint: bool,
    /// What the layer may hold; `None` leaves the limit that it has.
    pub quota: Option<Quota>,
}

impl LayerRequest {
    /// Without a name one is made up that no layer has.
    pub fn new(name: Option<&str>, store: PathBuf, checkpoint: bool) -> Result<Self, LayerError> {
        let auto = name.is_none();
        let name = match name {
            Some(name) => name.to_owned(),
            None => free_name(&store)?,
        };
        ringfence_layers::check_name(&name)?;
        Ok(Self { name, auto, store, checkpoint, quota: None })
    }
}

fn free_name(store: &Path) -> Result<String, LayerError> {
    loop {
        let id = ringfence_layers::random_id()?;
        let name = format!("auto-{}", id.get(..4).unwrap_or(&id));
        if std::fs::symlink_metadata(store.join("layers").join(&name)).is_err() {
            return Ok(name);
        }
    }
}

/// What the survey found out for a layer.
#[derive(Debug)]
pub struct LayerSurvey {
    pub request: LayerRequest,
    /// File systems of their own at or below what could become a root.
    pub mounts: Vec<Object>,
    /// The directories of writable single files.
    pub parents: Vec<Object>,
}

/// A layer in the plan.
#[derive(Clone, Debug, Serialize)]
pub struct LayerPlan {
    pub name: String,
    #[serde(skip)]
    pub request: LayerRequest,
    /// What it lies over, in the order in which the store is told of it.
    pub roots: Vec<LayerRoot>,
}

/// A directory that a layer lies over.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRoot {
    pub path: PathBuf,
    #[serde(skip)]
    pub object: Object,
    /// Not shown itself, only single files of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub files_only: bool,
}

impl LayerPlan {
    pub fn new(request: LayerRequest) -> Self {
        Self { name: request.name.clone(), request, roots: Vec::new() }
    }

    pub fn detail(&self) -> String {
        let roots: Vec<String> = self.roots.iter().map(|r| crate::plan::shown(&r.path)).collect();
        match roots.as_slice() {
            [] => format!("{}: nothing of the host is writable", self.name),
            _ => format!(
                "{}: over {}; the host's files stay as they are",
                self.name,
                roots.join(", ")
            ),
        }
    }

    /// What is recorded as in use must be what was planned for and will be mounted.
    fn lies_over(&self, session: &Session) -> Result<(), NamesError> {
        let recorded = &session.record().roots;
        let other = self.roots.iter().find(|root| {
            !recorded.iter().any(|r| r.path == root.path && r.ino == root.object.id.ino)
        });
        other.map_or(Ok(()), |root| Err(NamesError::Changed(crate::plan::shown(&root.path))))
    }

    /// The number of a root, which is entered if it is new.
    pub fn root(&mut self, object: &Object, files_only: bool) -> usize {
        if let Some(known) = self.roots.iter().position(|r| r.path == object.path) {
            return known;
        }
        self.roots.push(LayerRoot {
            path: object.path.clone(),
            object: object.clone(),
            files_only,
        });
        self.roots.len() - 1
    }

    /// The root whose overlay shows a path, and the path in it.
    pub fn shows<'p>(&self, path: &'p Path) -> Option<(usize, &'p Path)> {
        self.roots
            .iter()
            .enumerate()
            .filter(|(_, root)| !root.files_only)
            .filter_map(|(i, root)| Some((i, path.strip_prefix(&root.path).ok()?)))
            .min_by_key(|(_, rest)| rest.as_os_str().len())
    }
}

/// What a run changed in its layer, for [`crate::status::End`] and the last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Changed {
    pub name: String,
    pub added: usize,
    pub changed: usize,
    pub deleted: usize,
    /// Nothing was changed and nobody gave it its name: it is gone again.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub removed: bool,
    /// Why the run was ended before its end: a limit of what the layer may hold.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exceeded: Option<String>,
    /// After a failure: a file that the command could not have changed, and why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub foreign: Option<String>,
    /// What could not be found out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
}

impl Changed {
    pub fn is_empty(&self) -> bool {
        (self.added, self.changed, self.deleted) == (0, 0, 0)
    }
}

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, added, changed, deleted, .. } = self;
        write!(
            f,
            "layer {name}: {added} added, {changed} changed, {deleted} deleted; see: ringfence diff {name}"
        )
    }
}

/// A session and what it takes to end it.
#[derive(Debug)]
pub struct InLayer {
    session: Session,
    request: LayerRequest,
    policy: Vec<String>,
    mounts: Vec<Mount>,
    /// In use as long as the run lasts.
    masks: Vec<Mask>,
}

/// Why no session could be begun.
#[derive(Debug, thiserror::Error)]
#[error("--layer: {0}")]
pub struct LayerError(#[from] NamesError);

impl From<ringfence_layers::Error> for LayerError {
    fn from(e: ringfence_layers::Error) -> Self {
        Self(NamesError::Layer(e))
    }
}

impl InLayer {
    pub fn begin(
        plan: &LayerPlan,
        policy: &[String],
        argv: &[OsString],
        names: Option<&NamesPlan>,
    ) -> Result<Self, LayerError> {
        quota::refuse_full(existing(&plan.request.store), quota::FREE_FLOOR)?;
        let store = Store::open(&plan.request.store)?;
        if plan.request.checkpoint {
            history::checkpoint(&store, &plan.name, Some(in_short(argv)), Stamp::now())?;
        }
        let roots: Vec<Root> = plan.roots.iter().map(|r| Root::new(&r.path)).collect();
        let mut session = store.begin(&plan.name, &roots, Stamp::now())?;
        if let Some(names) = names
            && names.must_seal(session.mounts())?
        {
            // What an earlier run was allowed to make is hidden from this one: the delta becomes one of
            // those below the run's own.
            session.finish(&Outcome { policy: policy.to_vec() })?;
            history::seal_open(&store, &plan.name)?;
            session = store.begin(&plan.name, &roots, Stamp::now())?;
            if names.must_seal(session.mounts())? {
                let problem = "an open delta holds names that the rules hide".to_owned();
                return Err(ringfence_layers::Error::Refused(problem).into());
            }
        }
        let mounts = session.mounts().to_vec();
        let (request, policy) = (plan.request.clone(), policy.to_vec());
        let mut begun = Self { session, request, policy, mounts, masks: Vec::new() };
        if let Err(e) = begun.cover(plan, &store, names) {
            begun.abandon();
            return Err(e);
        }
        Ok(begun)
    }

    fn cover(
        &mut self,
        plan: &LayerPlan,
        store: &Store,
        names: Option<&NamesPlan>,
    ) -> Result<(), LayerError> {
        plan.lies_over(&self.session)?;
        if let Some(names) = names {
            self.masks = names.masks(store, &plan.roots, &mut self.mounts)?;
        }
        if let Some(quota) = plan.request.quota {
            self.session.limit(quota)?;
        }
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.request.name
    }

    pub fn mounts(&self) -> &[ringfence_layers::Mount] {
        &self.mounts
    }

    /// The same without masks.
    pub fn plain_mounts(&self) -> &[Mount] {
        self.session.mounts()
    }

    pub fn lock(&self) -> i32 {
        self.session.lock().as_raw_fd()
    }

    /// The limit that holds for this run.
    pub fn quota(&self) -> Option<Quota> {
        self.session.record().quota.filter(|q| q.bytes.is_some() || q.inodes.is_some())
    }

    /// What holds that limit, and the floor of the disk, while the sandbox of `init` runs.
    pub fn watch(
        &self,
        init: u32,
        end: impl FnOnce(&Exceeded) + Send + 'static,
    ) -> Result<Watch, LayerError> {
        let none = Quota { bytes: None, inodes: None };
        let watched = Watched::of(&self.session, self.quota().unwrap_or(none), Some(init));
        Ok(Watch::start(watched, end)?)
    }

    /// Ends the session. What goes wrong here loses nothing, and is told.
    pub fn finish(self, failed: bool) -> Changed {
        let Self { session, request, policy, masks, .. } = self;
        drop(masks);
        let foreign = failed.then(|| foreign(session.mounts())).flatten();
        let untouched = request.auto && is_untouched(&session);
        let ended = session.finish(&Outcome { policy });
        let mut changed = Changed {
            name: request.name.clone(),
            added: 0,
            changed: 0,
            deleted: 0,
            removed: false,
            foreign: foreign.map(|path| {
                format!(
                    "{} belongs to another user or group, so it cannot be changed in a layer; programs say \"value too large for defined data type\" or \"permission denied\"",
                    crate::plan::shown(&path)
                )
            }),
            problem: None,
            exceeded: None,
        };
        let ended = match ended {
            Ok(_) if untouched => discard(&request).map(|()| changed.removed = true),
            Ok(walks) => {
                for kind in walks.iter().flat_map(|w| &w.held).filter_map(|h| h.change) {
                    match kind {
                        ChangeKind::Added => changed.added += 1,
                        ChangeKind::Deleted => changed.deleted += 1,
                        _ => changed.changed += 1,
                    }
                }
                Ok(())
            }
            Err(e) => Err(e),
        };
        changed.problem = ended.err().map(|e| e.to_string());
        changed
    }

    /// Nothing has run.
    pub fn abandon(self) {
        let Self { session, request, policy, .. } = self;
        let untouched = request.auto && is_untouched(&session);
        let checkpointed = request.checkpoint.then(|| Store::open(&request.store));
        if session.finish(&Outcome { policy }).is_ok() && untouched {
            let _ = discard(&request);
        } else if let Some(Ok(store)) = checkpointed {
            // Nothing was done that could be undone.
            let _ = history::undo(&store, &request.name, 1);
        }
    }
}

/// Bytes of a command that are kept with its checkpoint.
const MAX_COMMAND: usize = 200;

fn in_short(argv: &[OsString]) -> String {
    let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    let whole = words.join(" ");
    let end = whole.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = end.take_while(|end| *end <= MAX_COMMAND).last().unwrap_or(0);
    if end < whole.len() { format!("{}…", &whole[..end]) } else { whole }
}

/// The store, or what it will be made in.
fn existing(store: &Path) -> &Path {
    store.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn discard(request: &LayerRequest) -> Result<(), ringfence_layers::Error> {
    Store::open(&request.store)?.discard(&request.name)
}

/// The first object below the roots that the sandbox's ids cannot own a copy of. Looks for a moment only.
fn foreign(mounts: &[ringfence_layers::Mount]) -> Option<PathBuf> {
    const MOST: std::time::Duration = std::time::Duration::from_millis(20);
    let begun = std::time::Instant::now();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut pending: std::collections::VecDeque<PathBuf> =
        mounts.iter().map(|m| m.root.clone()).collect();
    while let Some(path) = pending.pop_front() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if (meta.uid(), meta.gid()) != (uid.as_raw(), gid.as_raw()) {
            return Some(path);
        }
        if begun.elapsed() > MOST {
            break;
        }
        if meta.is_dir() {
            let below = std::fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(below.map(|entry| entry.path()));
        }
    }
    None
}

/// Nothing was changed but perhaps the times of the roots.
fn is_untouched(session: &Session) -> bool {
    session.mounts().iter().all(|mount| {
        mount.lower.len() == 1
            && std::fs::read_dir(&mount.upper).is_ok_and(|mut names| names.next().is_none())
    })
}

/// Mount points below directories, from `/proc/self/mountinfo`.
pub fn mounts_below(directories: &[&Path]) -> std::io::Result<Vec<Object>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<Object> = Vec::new();
    for point in mount_points(&text) {
        let below = directories.iter().any(|d| survey::lies_in(&point, d));
        if !below || found.iter().any(|known| known.path == point) {
            continue;
        }
        // One that cannot be reached by its name is covered by another.
        if let Ok(Some(object)) = survey::look_at_link(&point) {
            found.push(object);
        }
    }
    Ok(found)
}

/// See proc_pid_mountinfo(5): `id parent major:minor root point ...`; space, tab, newline and
/// backslash are written as three octal digits.
fn mount_points(text: &[u8]) -> impl Iterator<Item = PathBuf> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let escaped = line.split(|b| *b == b' ').nth(4)?;
        let mut plain = Vec::with_capacity(escaped.len());
        let mut rest = escaped;
        while let Some((&byte, after)) = rest.split_first() {
            let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
            let value = octal
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| u8::from_str_radix(digits, 8).ok());
            plain.push(value.unwrap_or(byte));
            rest = if value.is_some() { &after[3..] } else { after };
        }
        Some(PathBuf::from(OsString::from_vec(plain)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringfence_layers::names::{self, Named, Names};
    use ringfence_policy::{Base, Effect, Fragment, Kind, Origin, Permission, Policy, Rule};

    use super::*;
    use crate::moved::Moved;
    use crate::prepare::{Request, prepare};

    /// A project with a secret, planned for a layer; what happens between planning and beginning.
    struct World {
        _dir: tempfile::TempDir,
        tree: PathBuf,
        request: Request,
        policy: Policy,
    }

    impl World {
        fn new(moved: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().canonicalize().unwrap();
            let tree = at.join("tree");
            std::fs::create_dir(&tree).unwrap();
            std::fs::write(tree.join("a.key"), "secret").unwrap();
            let rule = |effect, permission, pattern: &str| Rule {
                base: Base::Workspace,
                pattern: pattern.to_owned(),
                kind: Kind::Path,
                effect,
                permission,
                priority: 0,
                id: None,
                origin: Origin::default(),
            };
            let mut policy = Fragment::default().finish().unwrap();
            policy.files.rules = vec![
                rule(Effect::Grant, Permission::Write, ""),
                rule(Effect::Cap, Permission::None, "**/*.key"),
            ];
            let mut request = Request::current();
            request.environment = vec![("HOME".into(), at.join("home").into())];
            request.workspace = Some(tree.clone());
            request.layer = Some(LayerRequest::new(Some("l"), at.join("state"), false).unwrap());
            request.moved = moved.then(|| Moved {
                name: "n".into(),
                from: tree.clone(),
                to: "/workspace".into(),
            });
            Self { _dir: dir, tree, request, policy }
        }

        /// The hidden names of the mask, or why there is none.
        fn masked(
            &mut self,
            between: impl FnOnce(&Path),
            index: Option<Names>,
        ) -> Result<Vec<String>, String> {
            self.request.index = index.map(Arc::new);
            let plan = prepare(&self.policy, &self.request).map_err(|e| e.to_string())?;
            between(&self.tree);
            let layer = InLayer::begin(plan.layer.as_ref().unwrap(), &[], &[], plan.names.as_ref())
                .map_err(|e| e.to_string())?;
            let mut names: Vec<String> = layer
                .masks
                .iter()
                .flat_map(|mask| std::fs::read_dir(mask.tree()).unwrap())
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort_unstable();
            Ok(names)
        }
    }

    fn index_of(tree: &Path) -> (PathBuf, Names) {
        let at = tree.parent().unwrap();
        let named = Named {
            path: b"a.key".to_vec(),
            kind: rustix::fs::FileType::RegularFile,
            size: 6,
            mtime: (0, 0),
        };
        let mut file = std::fs::File::create(at.join("names")).unwrap();
        names::write(&mut [named], [0; 4], &mut file).unwrap();
        let opened = std::fs::File::open(at).unwrap();
        (
            at.join("names"),
            Names::open(std::os::fd::AsFd::as_fd(&opened), "names").unwrap().unwrap(),
        )
    }

    #[test]
    fn masks_are_of_what_will_be_mounted_as_it_is_when_the_layer_is_in_use() {
        let late = |tree: &Path| std::fs::write(tree.join("late.key"), "secret").unwrap();
        let other = |tree: &Path| {
            std::fs::rename(tree, tree.with_extension("was")).unwrap();
            std::fs::create_dir(tree).unwrap();
        };
        // The control: nothing happens.
        assert_eq!(World::new(false).masked(|_| {}, None).unwrap(), ["a.key"]);
        assert_eq!(World::new(true).masked(|_| {}, None).unwrap(), ["a.key"]);
        let mut world = World::new(true);
        let (_, index) = index_of(&world.tree);
        assert_eq!(world.masked(|_| {}, Some(index)).unwrap(), ["a.key"]);
        // A codebase that was walked, and changed before the layer over it was in use.
        assert_eq!(World::new(true).masked(late, None).unwrap(), ["a.key", "late.key"]);
        // One whose index was asked: a change has taken that away.
        let mut world = World::new(true);
        let (file, index) = index_of(&world.tree);
        let change = |tree: &Path| {
            std::fs::remove_file(&file).unwrap();
            late(tree);
        };
        let why = world.masked(change, Some(index)).unwrap_err();
        assert!(why.contains("was changed while the run was planned"), "{why}");
        // Another directory has its name.
        for moved in [false, true] {
            let why = World::new(moved).masked(other, None).unwrap_err();
            assert!(why.contains("was changed while the run was planned"), "{why}");
        }
        // What was not begun leaves nothing.
        let mut world = World::new(true);
        let state = world.tree.parent().unwrap().join("state");
        world.request.layer = Some(LayerRequest::new(None, state.clone(), false).unwrap());
        world.masked(other, None).unwrap_err();
        assert_eq!(std::fs::read_dir(state.join("layers")).unwrap().count(), 0);
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let text = b"23 1 8:1 / / rw - ext4 /dev/sda rw\n\
            24 23 0:5 / /w/a\\040b\\134c rw,nosuid shared:3 - tmpfs t rw\n\n";
        let points: Vec<PathBuf> = mount_points(text).collect();
        assert_eq!(points, [Path::new("/"), Path::new("/w/a b\\c")]);
    }
}
