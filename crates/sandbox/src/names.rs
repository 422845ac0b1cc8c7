//! Rules of names in a layer: which names are covered by a mask, and what init, who carries out the
//! calls that make and move names, may do where.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_jail::{Allowed, Judge};
use ringfence_layers::index::{self, Covering, Seen};
use ringfence_layers::mask::{Cover, Entry, Mask};
use ringfence_layers::names::Names as Index;
use ringfence_layers::{Mount, Store};
use ringfence_policy::{
    ANY_NAME, CompiledRules, Effect, Kind, Permission, Places, Policy, Room, Rule,
};
use ringfence_sys::{fd, seccomp};
use rustix::fs::{Mode, OFlags};

use crate::discover::{self, Matcher, Verdict, Walk, WalkOptions};
use crate::layer::{LayerPlan, LayerRoot};
use crate::moved::Moved;
use crate::survey::lies_in;

/// How rules of names are held in a layer.
#[derive(Debug)]
pub struct NamesPlan {
    /// The policy's without guards: those hold what exists, by mounts; what a run makes at a guarded
    /// name is shown when its layer is reviewed. Compiled once for all who ask.
    rules: Arc<CompiledRules<'static>>,
    cache: Option<PathBuf>,
    /// Some rule gives less than a directory around it gives by pattern: opens for writing and changes
    /// of attributes are carried out by init too.
    pub changes: bool,
    /// And so the workspace as a whole is writable for the kernel, init alone says no.
    pub by_broker: bool,
    index: Option<Arc<Index>>,
    /// What planning found in the workspace, and whether in its index.
    known: Option<(PathBuf, Vec<Entry>)>,
    by_index: bool,
    /// The workspace is a codebase.
    shared: bool,
}

/// Where rules of names are to hold.
#[derive(Debug)]
pub struct Of<'a> {
    pub places: &'a Places,
    /// Where walks are remembered.
    pub cache: Option<PathBuf>,
    /// The names of the workspace.
    pub index: Option<Arc<Index>>,
    /// The workspace is a codebase, which others change by ringfence, but not while a layer over it is
    /// in use.
    pub shared: bool,
}

/// What cannot be had of the masks.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    #[error("cannot look for names by rule in {path}: {problem}")]
    Walk { path: String, problem: String },
    #[error("{0} was changed while the run was planned; start it again")]
    Changed(String),
    #[error(transparent)]
    Layer(#[from] ringfence_layers::Error),
}

impl NamesPlan {
    /// `None` where no rule speaks of names in what a layer may lie over, unless the run has the
    /// `means` already: whether init says what may be changed.
    pub fn new(policy: &Policy, extra: &[Rule], of: Of<'_>, means: Option<bool>) -> Option<Self> {
        let Of { places, cache, index, shared } = of;
        let own = policy.files.rules.iter().filter(|rule| !rule.is_guard());
        let views = own.clone().any(|rule| rule.permission == Permission::View);
        let hides = own.clone().any(|rule| rule.permission == Permission::None);
        let own: Vec<Rule> = own.chain(extra).cloned().collect();
        let rules = CompiledRules::owning(own, places, false, policy.files.system);
        let around = rules.decide(&places.workspace).permission;
        let inside = |path: &Path| lies_in(path, &places.workspace);
        let globs: Vec<(Permission, i32)> = rules
            .glob_rules()
            .iter()
            .filter(|g| inside(&g.base) || lies_in(&places.workspace, &g.base))
            .map(|g| (g.rule.permission, g.rule.priority))
            .collect();
        let points: Vec<(Permission, i32)> = rules
            .binding_points()
            .iter()
            .chain(&rules.subtree_only_globs())
            .filter(|p| inside(&p.path))
            .map(|p| (p.rule.permission, p.rule.priority))
            .collect();
        let literal = points.iter().any(|(permission, _)| *permission < Permission::Write);
        // A rule for a directory alone: a mount would open what lies in it, too.
        let alone = rules.binding_points().iter().chain(&rules.subtree_only_globs()).any(|p| {
            let writable = |path: &Path| rules.decide(path).permission == Permission::Write;
            !p.subtree
                && p.rule.permission == Permission::Write
                && inside(&p.path)
                && writable(&p.path)
                && !writable(&p.path.join(ANY_NAME))
                && std::fs::symlink_metadata(&p.path).is_ok_and(|meta| meta.is_dir())
        });
        if globs.is_empty() && !literal && !alone && means.is_none() {
            return None;
        }
        // A grant by pattern in what may only be read, or less than writing by pattern in what may be
        // written: no mount says either.
        let mixed = globs.iter().any(|(permission, priority)| match permission {
            Permission::Write => around < Permission::Write,
            // Or in a directory inside that may be written.
            Permission::Read => {
                around != Permission::Read
                    || points.iter().any(|(p, below)| *p == Permission::Write && below <= priority)
            }
            Permission::View => true,
            Permission::None => false,
        });
        // What may be made where nothing else may be written: once it is there it is mounted so.
        let to_make = around < Permission::Write
            && rules.binding_points().iter().chain(&rules.subtree_only_globs()).any(|p| {
                p.rule.permission == Permission::Write
                    && p.rule.effect != Effect::Cap
                    && p.path != places.workspace
                    && inside(&p.path)
                    && std::fs::symlink_metadata(&p.path).is_err()
            });
        // A directory that may only be read would be mounted as the host has it, without the mask: with what rules
        // hide in it.
        let bare = hides
            && rules.binding_points().iter().chain(&rules.subtree_only_globs()).any(|p| {
                p.rule.kind != Kind::Path
                    && p.rule.permission == Permission::Read
                    && inside(&p.path)
                    && std::fs::symlink_metadata(&p.path).is_ok_and(|meta| meta.is_dir())
            });
        let by_broker = mixed || to_make || alone || bare || views || means == Some(true);
        let rules = Arc::new(rules);
        Some(Self {
            rules,
            cache,
            changes: by_broker,
            by_broker,
            index,
            known: None,
            by_index: false,
            shared,
        })
    }

    pub fn rules(&self) -> &CompiledRules<'static> {
        &self.rules
    }

    /// In words, for status and `--explain`.
    pub fn detail(&self) -> &'static str {
        if self.by_broker {
            "hidden and listed names by a mask in the layer; what makes, moves or changes names, and opens for writing, are carried out by init as the rules say"
        } else {
            "hidden names by a mask in the layer; what may only be read by mounts and landlock; what makes or moves names is carried out by init as the rules say"
        }
    }

    /// The second filter, and init's own.
    pub fn filters(
        &self,
        options: &seccomp::Options,
    ) -> (Vec<seccomp::SockFilter>, Vec<seccomp::SockFilter>) {
        let Some(arch) = seccomp::native() else { return (Vec::new(), Vec::new()) };
        let own = seccomp::Options { ptrace: true, ..*options };
        let watch = seccomp::Watch { changes: self.changes };
        (seccomp::watch(arch, watch), seccomp::compile(arch, &own))
    }

    /// Whether a mask covers this name.
    pub fn covers(&self, path: &Path, is_dir: bool) -> bool {
        match self.rules.decide(path).permission {
            Permission::None => true,
            Permission::View => !is_dir,
            _ => false,
        }
    }

    /// What is covered of a tree that is seen at `shown`.
    pub fn walk(&self, tree: &OwnedFd, shown: &Path) -> std::io::Result<Walk> {
        let print = index::fingerprint(&self.rules, shown);
        let matcher = Names { covering: Covering::new(&self.rules, shown), print };
        let options = WalkOptions { cache: self.cache.as_deref(), ..WalkOptions::default() };
        discover::walk(tree.as_fd(), &matcher, &options)
    }

    /// Looks at the workspace, which [`Self::masks`] then need not do again.
    pub fn look(&mut self, tree: &OwnedFd, shown: &Path) -> std::io::Result<Walk> {
        let indexed = self.index.as_deref();
        let indexed =
            indexed.and_then(|index| discover::indexed(&self.rules, index, tree.as_fd(), shown));
        self.by_index = indexed.is_some();
        let walk = match indexed {
            Some(walk) => walk,
            None => self.walk(tree, shown)?,
        };
        if walk.truncated.is_none() {
            self.known = Some((shown.to_owned(), entries_of(&walk)));
        }
        Ok(walk)
    }

    fn entries(&self, tree: &Path, shown: &Path) -> Result<(OwnedFd, Vec<Entry>), NamesError> {
        let wrong = |problem: String| NamesError::Walk { path: crate::plan::shown(tree), problem };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(tree, flags, Mode::empty()).map_err(|e| wrong(e.to_string()))?;
        let entries = self.entries_in(&dir, tree, shown)?;
        Ok((dir, entries))
    }

    /// As [`Self::entries`], of a directory that is open.
    fn entries_in(
        &self,
        dir: &OwnedFd,
        tree: &Path,
        shown: &Path,
    ) -> Result<Vec<Entry>, NamesError> {
        let wrong = |problem: String| NamesError::Walk { path: crate::plan::shown(tree), problem };
        // What an index was asked is checked by whether that is kept. What a walk found in a codebase
        // may have changed until the layer was in use.
        let lasts = self.by_index || !self.shared;
        if let Some((_, entries)) = self.known.as_ref().filter(|(known, _)| lasts && known == tree)
        {
            return Ok(entries.clone());
        }
        let walk = self.walk(dir, shown).map_err(|e| wrong(e.to_string()))?;
        if let Some(bound) = &walk.truncated {
            return Err(wrong(bound.to_string()));
        }
        Ok(entries_of(&walk))
    }

    /// Puts the masks between the directories of a layer. They stay as long as what is answered does.
    /// The mask of what the layer lies over is one of the very directory that will be mounted, whatever
    /// has its name by then.
    pub fn masks(
        &self,
        store: &Store,
        roots: &[LayerRoot],
        mounts: &mut [Mount],
    ) -> Result<Vec<Mask>, NamesError> {
        // From here on nobody changes the codebase, since the layer over it is in use.
        if let Some((tree, _)) = self.known.as_ref().filter(|_| self.by_index)
            && !self.index.as_ref().is_some_and(|index| index.is_kept())
        {
            return Err(NamesError::Changed(crate::plan::shown(tree)));
        }
        let mut held = Vec::new();
        for mount in mounts.iter_mut().filter(|m| self.speaks_of(&m.root)) {
            let mut lower = Vec::with_capacity(mount.lower.len() + 1);
            for tree in &mount.lower {
                let (dir, entries) = match roots.iter().find(|root| root.path == *tree) {
                    Some(root) => {
                        let path = || crate::plan::shown(tree);
                        let problem = |problem| NamesError::Walk { path: path(), problem };
                        let dir = root.object.open().map_err(|e| problem(e.to_string()))?;
                        let dir = rustix::fs::openat(&dir, ".", fd::DIRECTORY, Mode::empty())
                            .map_err(|e| problem(e.to_string()))?;
                        let entries = self.entries_in(&dir, tree, &mount.root)?;
                        (dir, entries)
                    }
                    None => self.entries(tree, &mount.root)?,
                };
                if let Some(mask) = store.mask(dir.as_fd(), &entries)? {
                    lower.push(mask.tree().to_owned());
                    if *tree == mount.root {
                        mount.mask = Some(mask.tree().to_owned());
                    }
                    held.push(mask);
                }
                lower.push(tree.clone());
            }
            mount.lower = lower;
        }
        Ok(held)
    }

    /// A name that one of two sets of rules covers and the other does not, in what the layer is made of:
    /// no mask can be put there, or taken away, while the layer is mounted.
    pub fn covers_otherwise(
        &self,
        other: &Self,
        mounts: &[Mount],
    ) -> Result<Option<PathBuf>, NamesError> {
        for mount in mounts {
            if self.speaks_of(&mount.root) != other.speaks_of(&mount.root) {
                return Ok(Some(mount.root.clone()));
            }
            if !self.speaks_of(&mount.root) {
                continue;
            }
            for tree in mount.lower.iter().chain([&mount.upper]) {
                let (_, here) = self.entries(tree, &mount.root)?;
                let (_, there) = other.entries(tree, &mount.root)?;
                let here: BTreeSet<Entry> = here.into_iter().collect();
                let there: BTreeSet<Entry> = there.into_iter().collect();
                if let Some(entry) = here.symmetric_difference(&there).next() {
                    return Ok(Some(mount.root.join(OsStr::from_bytes(&entry.path))));
                }
            }
        }
        Ok(None)
    }

    /// Whether the open delta holds what rules cover, from a run under other rules: a mask lies below
    /// it only once it is sealed.
    pub fn must_seal(&self, mounts: &[Mount]) -> Result<bool, NamesError> {
        for mount in mounts.iter().filter(|m| self.speaks_of(&m.root)) {
            if !self.entries(&mount.upper, &mount.root)?.1.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Some roots are there for what was found on the host and no rule speaks of, such as the repository
    /// of a linked working tree.
    fn speaks_of(&self, root: &Path) -> bool {
        self.rules.decide(root).permission > Permission::None
    }
}

/// What could not be looked into may hold anything; nobody inside can look either.
fn entries_of(walk: &Walk) -> Vec<Entry> {
    let entry = |found: &discover::Found| Entry {
        path: found.path.as_os_str().as_bytes().to_vec(),
        cover: if found.rule == HIDDEN { Cover::Hidden } else { Cover::Listed },
    };
    walk.matches.iter().map(entry).collect()
}

/// Numbers of "rules" in a walk.
pub(crate) const HIDDEN: u32 = 0;
pub(crate) const LISTED: u32 = 1;

struct Names<'a> {
    covering: Covering<'a>,
    print: [u8; 16],
}

impl Matcher for Names<'_> {
    fn verdict(&self, path: &[u8], is_dir: bool) -> Verdict {
        match self.covering.seen(path, is_dir) {
            Seen::Plain => Verdict::Pass,
            Seen::Covered(Cover::Hidden) => Verdict::Match { rule: HIDDEN, descend: false },
            Seen::Covered(Cover::Listed) => Verdict::Match { rule: LISTED, descend: false },
        }
    }

    fn fingerprint(&self) -> [u8; 16] {
        self.print
    }
}

/// What init asks. Everything that deciding needs was made before the clone.
pub struct NameJudge {
    rules: Arc<CompiledRules<'static>>,
    room: RefCell<Room>,
    /// As the sandbox sees them.
    roots: Vec<Vec<u8>>,
    /// Where the sandbox sees the workspace, and where rules speak of it; room for such a path.
    moved: Option<(Vec<u8>, Vec<u8>)>,
    real: RefCell<Vec<u8>>,
}

/// Bytes of a path that is decided about: more than the kernel takes, and the place of a codebase.
const MAX_PATH: usize = 16 << 10;

impl std::fmt::Debug for NameJudge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NameJudge").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl NameJudge {
    pub fn new(plan: &NamesPlan, layer: &LayerPlan, moved: Option<&Moved>) -> Self {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let rules = Arc::clone(&plan.rules);
        let room = RefCell::new(rules.room());
        let roots = layer
            .roots
            .iter()
            .filter(|root| !root.files_only && plan.speaks_of(&root.path))
            .map(|root| moved.map_or_else(|| bytes(&root.path), |m| bytes(&m.inside(&root.path))))
            .collect();
        let moved = moved.map(|m| (bytes(&m.to), bytes(&m.from)));
        let real = RefCell::new(Vec::with_capacity(if moved.is_some() { MAX_PATH } else { 0 }));
        Self { rules, room, roots, moved, real }
    }
}

/// Whether a clean path is `directory` or lies below it.
fn below(path: &[u8], directory: &[u8]) -> bool {
    directory == b"/"
        || path.strip_prefix(directory).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
}

impl Judge for NameJudge {
    fn allowed(&self, path: &[u8]) -> Allowed {
        if !self.roots.iter().any(|root| below(path, root)) {
            // Mounts and Landlock hold the rest, and init has no more rights than the command.
            return Allowed::Write;
        }
        let Ok(mut room) = self.room.try_borrow_mut() else { return Allowed::Nothing };
        let Ok(mut real) = self.real.try_borrow_mut() else { return Allowed::Nothing };
        let path = match &self.moved {
            Some((to, from)) if below(path, to) => {
                let rest = &path[to.len()..];
                // Room was made before the clone; nothing is allocated here.
                if from.len() + rest.len() > real.capacity() {
                    return Allowed::Nothing;
                }
                real.clear();
                real.extend_from_slice(from);
                real.extend_from_slice(rest);
                &real[..]
            }
            _ => path,
        };
        match self.rules.permission(path, &mut room) {
            Permission::None => Allowed::Nothing,
            Permission::View => Allowed::List,
            Permission::Read => Allowed::Read,
            Permission::Write => Allowed::Write,
        }
    }

    fn covers(&self, path: &[u8]) -> bool {
        self.roots.iter().any(|root| below(path, root) || below(root, path))
    }
}

/// Whether init could look into the memory of the sandbox's processes.
pub fn broker_problem() -> Option<String> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    let scope: u32 = scope.trim().parse().ok()?;
    (scope >= 2).then(|| {
        format!("kernel.yama.ptrace_scope is {scope}: names cannot be checked as they are made")
    })
}
