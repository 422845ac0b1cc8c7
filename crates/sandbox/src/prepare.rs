//! From a policy and a request to a plan: the looks at the host that planning needs.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_layers::Store;
use ringfence_layers::names::Names;
use ringfence_policy::{
    ANY_NAME, Base, CompiledRules, Effect, GlobRule, Kind, Network, Permission, Places, Policy,
    Rule, pattern, priority,
};
use ringfence_sys::raw::Errno;

use crate::agent;
use crate::discover::{
    self, Contents, GitOptions, Matcher, PRIVATE_CACHES, RepositoryHint, Shape, TOOL_ENVIRONMENT,
    Verdict, WalkOptions,
};
use crate::inspection::Inspection;
use crate::layer::{self, LayerRequest, LayerSurvey};
use crate::moved::Moved;
use crate::names::{self, NamesPlan};
use crate::network::{self, Filter, Keep};
use crate::plan::{Caches, Plan, PlanError, Point, Survey, describe, shown};
use crate::status::Rung;
use crate::survey::{self, Caller, Object, Objects, SystemEntry};
use crate::view::{self, Wanted};

/// What to run, where, for whom.
#[derive(Clone, Debug)]
pub struct Request {
    /// Absolute or relative; `None` is the current directory.
    pub workspace: Option<PathBuf>,
    /// Where the command starts; `None` is the current directory.
    pub cwd: Option<PathBuf>,
    /// The caller's environment; the policy decides what of it passes.
    pub environment: Vec<(OsString, OsString)>,
    /// Only this rung (tests, `doctor`); `None` tries namespaces.
    pub rung: Rung,
    /// Whether to remember what a walk of a large workspace found.
    pub cache: bool,
    /// Where the caller has made it already ([`Filter::of`]) to prepare it early; `None`: made here.
    pub filter: Option<Filter>,
    /// For a policy that inspects hosts ([`Network::inspects`]): what that needs inside.
    pub inspection: Option<Arc<Inspection>>,
    /// What is written lands in this layer instead of the real tree.
    pub layer: Option<LayerRequest>,
    /// The workspace, a codebase, is seen at another place than the host has it. Only with a layer.
    pub moved: Option<Moved>,
    /// What the workspace holds, from whoever alone changes it ([`Self::moved`]): rules need no walk.
    pub index: Option<Arc<Names>>,
    /// The workspace is served with the permission of each path, decided at each operation.
    pub exact: bool,
    /// Only the plan is wanted, as if this host had what serves a workspace so.
    pub asks: bool,
}

impl Request {
    /// The calling process's directory and environment.
    pub fn current() -> Self {
        Self {
            workspace: None,
            cwd: None,
            environment: std::env::vars_os().collect(),
            rung: Rung::Namespaces,
            cache: true,
            filter: None,
            inspection: None,
            layer: None,
            moved: None,
            index: None,
            exact: false,
            asks: false,
        }
    }

    /// The store of layers of this environment.
    pub fn store(&self) -> PathBuf {
        let home = self.variable("HOME").map_or_else(|| PathBuf::from("/nonexistent"), Into::into);
        let directory = Store::default_directory(
            self.variable("RINGFENCE_STATE"),
            self.variable("XDG_STATE_HOME"),
            &home,
        );
        std::fs::canonicalize(&directory).unwrap_or(directory)
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_os_str())
    }
}

/// Why no plan could be made. Nothing has run.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("{path}: {problem}")]
    Path { path: String, problem: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot look for files by pattern in {path}: {problem}")]
    Walk { path: String, problem: String },
}

fn path_error(path: &Path, problem: impl std::fmt::Display) -> PrepareError {
    PrepareError::Path { path: shown(path), problem: problem.to_string() }
}

/// Home, workspace and working directory, canonical.
struct Where {
    places: Places,
    workspace: Option<Object>,
    cwd: PathBuf,
    notes: Vec<String>,
}

/// Not a project, however it is spelled.
const TOO_WIDE: [&str; 14] = [
    "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev", "/boot", "/run",
    "/var", "/tmp", "/opt",
];

fn whereabouts(request: &Request) -> Result<Where, PrepareError> {
    let mut notes = Vec::new();
    let home = request
        .variable("HOME")
        .filter(|h| h.as_bytes().starts_with(b"/"))
        .map_or_else(|| PathBuf::from("/nonexistent"), PathBuf::from);
    let home = std::fs::canonicalize(&home).unwrap_or(home);
    let current = match &request.cwd {
        Some(dir) => std::fs::canonicalize(dir).map_err(|e| path_error(dir, plain(&e)))?,
        None => std::env::current_dir()
            .map_err(|e| path_error(Path::new("."), format!("current directory: {}", plain(&e))))?,
    };
    let asked = match &request.workspace {
        Some(dir) => std::fs::canonicalize(dir).map_err(|e| path_error(dir, plain(&e)))?,
        None => current.clone(),
    };
    let object = survey::look(&asked)
        .map_err(|e| path_error(&asked, e))?
        .ok_or_else(|| path_error(&asked, "does not exist"))?;
    if !object.id.is_dir {
        return Err(path_error(&asked, "the workspace is not a directory"));
    }
    let too_wide = home.starts_with(&asked)
        || TOO_WIDE.iter().any(|d| asked == Path::new(d))
        || asked == Path::new("/dev/shm")
        || ["/proc", "/sys", "/dev", "/usr", "/etc", "/boot"].iter().any(|d| asked.starts_with(d))
            && !asked.starts_with("/dev/shm");
    let workspace = if !too_wide {
        Some(object)
    } else if request.workspace.is_some() {
        return Err(path_error(
            &asked,
            "too wide for a workspace: it holds your home or the system; name a project directory, or grant single paths with --allow-write",
        ));
    } else {
        notes.push(format!(
            "{} is not shared with the command: it holds your home or the system; change to a project directory, or name one with --workspace",
            asked.display()
        ));
        None
    };
    let cwd = match (&workspace, &request.cwd, &request.workspace) {
        (Some(w), None, _) if !current.starts_with(&w.path) => w.path.clone(),
        (None, ..) if home.starts_with("/nonexistent") => PathBuf::from("/tmp"),
        (None, ..) if !current.starts_with(&home) => PathBuf::from("/tmp"),
        (None, ..) => home.clone(),
        _ => current,
    };
    let places = Places {
        workspace: workspace.as_ref().map_or_else(|| cwd.clone(), |w| w.path.clone()),
        home,
    };
    Ok(Where { places, workspace, cwd, notes })
}

/// The places that the patterns of a run are relative to, for explaining a policy.
pub fn places(request: &Request) -> Result<Places, PrepareError> {
    whereabouts(request).map(|w| w.places)
}

/// An I/O error without its `(os error 2)`.
fn plain(e: &std::io::Error) -> String {
    e.raw_os_error().map_or_else(|| e.to_string().to_lowercase(), |n| Errno(n).to_string())
}

/// Looks at the host and lowers the policy.
pub fn prepare(policy: &Policy, request: &Request) -> Result<Plan, PrepareError> {
    let refused = match prepare_for(policy, request, Means::default()) {
        Err(PrepareError::Plan(e @ PlanError::CannotList { .. })) => e,
        made => return made,
    };
    let PlanError::CannotList { path, problem, rule } = &refused else {
        return Err(refused.into());
    };
    let here = request.rung == Rung::Namespaces
        && request.layer.is_none()
        && !(request.exact || policy.layer.exact);
    if !here || !survey::lies_in(&path.0, &places(request)?.workspace) {
        return Err(refused.into());
    }
    if let Some(problem_there) = refusal_of_view(request) {
        let device = problem_there.lines().next().unwrap_or_default();
        let problem = format!("{problem}, and {device}; --layer NAME holds it without");
        let (path, rule) = (path.clone(), rule.clone());
        return Err(PlanError::CannotList { path, problem, rule }.into());
    }
    let why = Some(format!("{rule}: {problem}"));
    prepare_for(policy, request, Means { view: why, ..Means::default() })
}

/// By what a plan has to hold its rules, whatever they need.
#[derive(Clone, Debug, Default)]
pub(crate) struct Means {
    /// Rules of names in a layer are held, and whether init says what may be changed
    /// ([`NamesPlan::new`]).
    pub names: Option<bool>,
    /// The workspace is served by path, and why.
    pub view: Option<String>,
}

/// As [`prepare`], by these means.
pub(crate) fn prepare_for(
    policy: &Policy,
    request: &Request,
    means: Means,
) -> Result<Plan, PrepareError> {
    let Where { places, workspace, cwd, mut notes } = whereabouts(request)?;
    let caller = Caller::current();
    let mut hints = Vec::new();
    let tools = tools(policy, request, &places, workspace.is_some(), &mut hints)?;
    let mut extra: Vec<Rule> = tools
        .tools
        .iter()
        .filter_map(|t| Rule::grant_path(&t.path, Permission::Read, t.what))
        .collect();
    for rule in &policy.files.rules {
        extra.extend(behind_links(rule, &places)?);
    }
    let caches = caches(policy, request, &places, &caller, &mut hints);
    extra.extend(caches.iter().flat_map(|c| &c.rules).cloned());
    let rules = CompiledRules::with_extra(policy, &places, &extra);
    let (exact, inexact) = match &workspace {
        Some(_) if means.view.is_some() => (means.view, None),
        Some(_) => exactness(policy, request, &rules, &places)?,
        None => (None, None),
    };
    let listing = workspace.as_ref().and_then(Listing::of);
    let mut found = Findings::new(&rules, workspace.is_some(), listing);
    if request.layer.is_some() && request.rung == Rung::Namespaces && workspace.is_some() {
        let cache = walk_cache(request, &places);
        let shared = request.moved.is_some();
        let of = names::Of { places: &places, cache, index: request.index.clone(), shared };
        found.names = NamesPlan::new(policy, &extra, of, means.names);
    }

    let system = if policy.files.system { survey::system_entries() } else { Vec::new() };
    found.visible.extend(system.iter().filter_map(|s| match s {
        SystemEntry::Directory(p) => Some(p.clone()),
        SystemEntry::Link(..) => None,
    }));
    if let Some(w) = &workspace {
        found.visible.push(w.path.clone());
    }
    let idmap = workspace.is_none() || !caller.maps_ids || can_idmap(workspace.as_ref());
    let demoted = caller.maps_ids && idmap && request.rung == Rung::Namespaces;
    found.literal_points(&places, demoted)?;
    found.toolchains(tools)?;
    found.name_of_home(request, &places);
    if let Some(w) = &workspace {
        let needs_walk = exact.is_none();
        found.patterns(policy, &places, w, (request, needs_walk), &mut notes)?;
    }
    found.patterns_elsewhere(&places, request, &mut notes)?;

    found.store(request)?;
    let layer = match &request.layer {
        Some(wanted) => Some(found.layer(wanted.clone(), workspace.as_ref(), demoted)?),
        None => None,
    };
    if let Some(layer) = &layer {
        found.names_in_mounts(&layer.mounts, &mut notes)?;
    }
    let names = found.names.take();
    let covered = match &names {
        Some(names) => {
            let covers = |o: &Object| names.covers(&o.path, o.id.is_dir);
            let points = found.points.iter().filter(|p| covers(&p.object));
            points.map(|p| p.object.path.clone().into_os_string()).collect()
        }
        None => std::collections::BTreeSet::new(),
    };

    let view = match (&workspace, exact) {
        (Some(w), Some(why)) => Some(found.view(policy, &places, w, &extra, why)?),
        _ => None,
    };
    let no_view = view.as_ref().and_then(|_| refusal_of_view(request));
    if view.is_some() {
        // They are the view's now, but for what lies over it.
        let inside = |p: &Point| survey::lies_in(&p.object.path, &places.workspace);
        found.points.retain(|p| !inside(p) || p.copy.is_some());
    }

    let filter = match &request.filter {
        Some(filter) => Some(filter.clone()),
        None => Filter::of(&policy.network)?,
    };
    let online = policy.network == Network::Host || filter.is_some();
    let moved = request.moved.clone();
    let cwd = moved.as_ref().map_or_else(|| cwd.clone(), |moved| moved.inside(&cwd));
    let (environment, withheld) = environment(policy, request, &places, &cwd, online);
    let resolver = resolver(policy, filter.as_ref());
    let agent = (!policy.ssh.agent.is_empty())
        .then(|| agent::choose(policy, &places, request.variable("SSH_AUTH_SOCK"), &mut notes));
    let foreign_id =
        if caller.maps_ids { survey::foreign_id(std::process::id()) } else { caller.uid };
    let devices = devices(policy)?;
    let mut covers = Vec::new();
    if let Some(inspection) = &request.inspection {
        notes.extend(inspection.notes.iter().cloned());
        for path in inspection.covers.keys() {
            covers.extend(found.identify(path)?.filter(|object| object.path == *path));
        }
    }
    let workspace_permission = match &workspace {
        Some(w) => rules.decide(&w.path).permission,
        None => Permission::None,
    };
    let system = match request.rung {
        Rung::Namespaces => system,
        // Landlock cannot take back what it grants to a directory, so the secrets in /etc are left
        // out of what is granted.
        Rung::Landlock => {
            let hidden: Vec<&Path> = found
                .points
                .iter()
                .filter(|p| p.permission == Permission::None)
                .map(|p| p.object.path.as_path())
                .collect();
            survey::split(system, &hidden)
        }
    };
    // Working trees of one repository share names.
    found.absent.sort_unstable();
    found.absent.dedup();
    // The walk could not see everything: what it did not see may hold what must be hidden.
    let truncated = found.truncated.take();
    let lists_only = workspace_permission == Permission::View && view.is_none()
        || found.points.iter().any(|p| p.permission == Permission::View);
    let survey = Survey {
        caller,
        rung: request.rung,
        landlock_abi: ringfence_sys::landlock::abi(),
        system,
        workspace_permission,
        workspace,
        points: found.points,
        pins: found.pins,
        absent: found.absent,
        links: found.links,
        home_directories: home_directories(lists_only),
        devices,
        resolver,
        agent,
        filter,
        inspection: request.inspection.clone(),
        covers,
        cwd,
        environment,
        withheld,
        notes,
        foreign_id,
        idmap,
        layer,
        moved,
        names,
        covered,
        view,
        no_view,
        caches,
        places,
    };
    let git = found.git;
    let mut plan = Plan::new(policy, survey)?;
    plan.git = git;
    plan.listing = found.listing;
    plan.hints = hints;
    plan.directories = found.directories;
    if let Some(problem) = truncated {
        plan.status.miss("pattern-walk", problem);
        plan.refuse_what_is_missing(policy)?;
    }
    if let Some(problem) = inexact {
        plan.status.miss(EXACT_VIEW, problem);
        plan.refuse_what_is_missing(policy)?;
    }
    Ok(plan)
}

/// The protection that [`view::needed`] speaks of.
const EXACT_VIEW: &str = "exact-view";

fn refusal_of_view(request: &Request) -> Option<String> {
    if request.asks { None } else { view::refusal() }
}

/// Why the workspace is served by path, if it is; and what is lost, as accepted, if it should be and
/// cannot.
fn exactness(
    policy: &Policy,
    request: &Request,
    rules: &CompiledRules<'_>,
    places: &Places,
) -> Result<(Option<String>, Option<String>), PrepareError> {
    if request.exact || policy.layer.exact {
        return Ok((Some(view::WHY.to_owned()), None));
    }
    if request.layer.is_some() {
        // Held by a mask and by init.
        return Ok((None, None));
    }
    let Some(why) = view::needed(policy, rules, places) else { return Ok((None, None)) };
    let refusal = match request.rung {
        Rung::Namespaces => refusal_of_view(request),
        Rung::Landlock => Some("needs namespaces, which this host refuses".to_owned()),
    };
    let Some(refusal) = refusal else { return Ok((Some(why), None)) };
    if policy.accept_missing.iter().any(|accepted| accepted == EXACT_VIEW) {
        let refusal = refusal.lines().next().unwrap_or_default();
        let weaker = format!("{why}; {refusal}; held for what exists at the start only");
        return Ok((None, Some(weaker)));
    }
    let problem = format!("{EXACT_VIEW}: {why}; {refusal}");
    Err(PlanError::Missing(vec![problem], vec![EXACT_VIEW.into()]).into())
}

/// A deny with wildcards that begins behind a symlink, as it is said of the place where that leads: a
/// walk finds files by where they lie. Built-in rules name places as they lie.
fn behind_links(rule: &Rule, places: &Places) -> Result<Option<Rule>, PrepareError> {
    let built_in = rule.id.is_some() && rule.origin.line.is_none();
    if rule.effect != Effect::Cap || rule.kind != Kind::Path || built_in {
        return Ok(None);
    }
    let parts: Vec<&str> = rule.pattern.split('/').collect();
    let Some(plain @ 1..) = parts.iter().position(|part| pattern::has_meta(part)) else {
        return Ok(None);
    };
    let (plain, rest) = (parts[..plain].join("/"), parts[plain..].join("/"));
    let named = places.base(rule.base).join(plain);
    let Ok(real) = std::fs::canonicalize(&named) else { return Ok(None) };
    if real == named {
        return Ok(None);
    }
    let Some(text) = real.to_str() else {
        return Err(path_error(
            &named,
            "leads to a path that is not utf-8, which no pattern names",
        ));
    };
    let pattern = format!("{}/{rest}", pattern::literally(text.trim_matches('/')));
    Ok(Some(Rule { base: Base::Root, pattern, ..rule.clone() }))
}

/// Toolchains in home, where the policy wants them.
fn tools(
    policy: &Policy,
    request: &Request,
    places: &Places,
    has_workspace: bool,
    hints: &mut Vec<String>,
) -> Result<discover::Toolchains, PrepareError> {
    if !policy.files.toolchains || places.home == Path::new("/") {
        return Ok(discover::Toolchains::default());
    }
    let variable = |name: &str| request.variable(name).map(OsStr::to_owned);
    let mut tools = discover::toolchains(&places.home, &variable)
        .map_err(|e| path_error(&places.home, plain(&e)))?;
    if has_workspace {
        tools.drop_inside(&places.workspace);
    }
    for (path, why) in tools.refused.drain(..) {
        hints.push(format!("{} is not shown: {why}", path.display()));
    }
    Ok(tools)
}

/// Caches of tools in home that the policy says nothing of: they are shown, and what is written there
/// stays inside. Only by an overlay, so not where none can be.
fn caches(
    policy: &Policy,
    request: &Request,
    places: &Places,
    caller: &Caller,
    hints: &mut Vec<String>,
) -> Option<Caches> {
    let wanted = policy.files.toolchains && request.rung == Rung::Namespaces;
    if !wanted || places.home == Path::new("/") {
        return None;
    }
    let home = survey::look(&places.home).ok().flatten().filter(|home| home.id.is_dir)?;
    let fd = home.fd.as_ref()?;
    let place = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    let mut found: Vec<&str> = PRIVATE_CACHES
        .iter()
        .filter(|c| c.contents == Contents::CopyOnWrite)
        .filter(|c| ringfence_sys::fd::open_beneath(fd.as_fd(), c.path.as_bytes(), place).is_ok())
        .map(|c| c.path)
        .collect();
    if found.is_empty() {
        return None;
    }
    let alone = CompiledRules::new(policy, places);
    // Outside the workspace nobody looks for what a pattern hides, so a cache that one may speak of
    // stays as it was: not there.
    let patterns = alone.glob_rules();
    let hides = |cache: &Path| {
        let hiding = patterns.iter().filter(|g| g.rule.effect == Effect::Cap);
        hiding.map(|g| &g.base).any(|base| base.starts_with(cache) || cache.starts_with(base))
    };
    found.retain(|path| {
        let path = places.home.join(path);
        alone.decide(&path).permission == Permission::None && !hides(&path)
    });
    let rules: Vec<Rule> = found
        .iter()
        .filter_map(|path| {
            let rule = Rule::grant_path(&places.home.join(path), Permission::Write, "tool cache")?;
            // Whatever is said of it in the policy comes after this, and wins.
            Some(Rule { priority: -1, ..rule })
        })
        .collect();
    if rules.is_empty() || caller.maps_ids && !can_idmap(Some(&home)) {
        return None;
    }
    if !caller.maps_ids
        && let Ok(mounts) = layer::mounts_below(&[&places.home])
        && let Some(mount) = mounts.iter().find(|m| m.path != places.home)
    {
        hints.push(format!(
            "caches of tools start empty: {} is a file system of its own in home, which only root can lay an overlay around",
            shown(&mount.path)
        ));
        return None;
    }
    let paths = found.iter().map(|path| places.home.join(path)).collect();
    Some(Caches { home, rules, paths })
}

/// The names directly in the workspace. Taken once before a run and once after.
#[derive(Debug)]
pub(crate) struct Listing {
    names: std::collections::HashSet<OsString>,
    /// The first of its subdirectories.
    directories: Vec<OsString>,
}

/// Subdirectories that are looked into without a walk.
const MOST_SHALLOW: usize = 64;

impl Listing {
    /// `None` where listing would cost more than asking for single names.
    pub(crate) fn of(workspace: &Object) -> Option<Self> {
        /// Bytes of a directory: some thousand names.
        const LARGE: i64 = 128 * 1024;
        let directory = workspace.fd.as_ref()?;
        let st = rustix::fs::fstat(directory).ok()?;
        if st.st_size as i64 > LARGE {
            return None;
        }
        Self::read(directory.as_fd())
    }

    pub(crate) fn read(directory: std::os::fd::BorrowedFd<'_>) -> Option<Self> {
        use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, statat};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory, ".", flags, Mode::empty()).ok()?;
        let mut buffer = Vec::with_capacity(16 * 1024);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = std::collections::HashSet::new();
        let mut directories = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.ok()?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if directories.len() < MOST_SHALLOW
                && !matches!(name.as_bytes(), b"." | b".." | b".git")
            {
                let kind = match entry.file_type() {
                    FileType::Unknown => statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                        .map_or(FileType::Unknown, |st| FileType::from_raw_mode(st.st_mode)),
                    known => known,
                };
                if kind.is_dir() {
                    directories.push(name.to_owned());
                }
            }
            names.insert(name.to_owned());
        }
        Some(Self { names, directories })
    }

    /// Certain that `path` does not exist, because its first part in the workspace does not.
    pub(crate) fn lacks(&self, workspace: &Path, path: &Path) -> bool {
        let path = path.as_os_str().as_bytes();
        let Some(rest) = path.strip_prefix(workspace.as_os_str().as_bytes()) else { return false };
        let Some(rest) = rest.strip_prefix(b"/") else { return false };
        match rest.split(|b| *b == b'/').next() {
            None | Some(b"" | b"." | b"..") => false,
            Some(first) => !self.names.contains(OsStr::from_bytes(first)),
        }
    }
}

struct Findings<'a> {
    rules: &'a CompiledRules<'a>,
    has_workspace: bool,
    objects: Objects,
    /// Directories whose content is visible somehow; caps elsewhere need no look.
    visible: Vec<PathBuf>,
    points: Vec<Point>,
    pins: Vec<Object>,
    /// Directories whose parents are pinned, and they.
    pinned: HashSet<OsString>,
    absent: Vec<PathBuf>,
    listing: Option<Listing>,
    links: Vec<(PathBuf, PathBuf)>,
    git: discover::GitGuards,
    directories: u64,
    truncated: Option<String>,
    /// In a layer: names are covered by masks, and held by the overlay where they are.
    names: Option<NamesPlan>,
}

impl<'a> Findings<'a> {
    fn new(rules: &'a CompiledRules<'a>, has_workspace: bool, listing: Option<Listing>) -> Self {
        Self {
            rules,
            has_workspace,
            objects: Objects::default(),
            visible: Vec::with_capacity(16),
            points: Vec::with_capacity(16),
            pins: Vec::new(),
            pinned: HashSet::new(),
            absent: Vec::new(),
            listing,
            links: Vec::new(),
            git: discover::GitGuards::default(),
            directories: u64::MAX,
            truncated: None,
            names: None,
        }
    }

    fn is_visible(&self, path: &Path) -> bool {
        self.visible.iter().any(|v| survey::lies_in(path, v))
    }

    fn look(&mut self, path: &Path) -> Result<Option<Object>, PrepareError> {
        match self.objects.look(path) {
            Ok(found) => Ok(found),
            // Not reachable by us: not reachable by the sandbox either, which has no more rights.
            Err(Errno(libc::EACCES)) => Ok(None),
            Err(e) => Err(path_error(path, e)),
        }
    }

    /// As [`Self::look`], for what is covered or held where it lies.
    fn identify(&mut self, path: &Path) -> Result<Option<Object>, PrepareError> {
        match self.objects.identify(path) {
            Ok(found) => Ok(found),
            Err(Errno(libc::EACCES)) => Ok(None),
            Err(e) => Err(path_error(path, e)),
        }
    }

    /// Links and secrets of the toolchains; the directories themselves are grants like others.
    fn toolchains(&mut self, tools: discover::Toolchains) -> Result<(), PrepareError> {
        for tool in tools.tools {
            if tool.at != tool.path {
                self.links.push((tool.at, tool.path));
            }
        }
        for path in tools.masked {
            if let Some(object) = self.identify(&path)? {
                let permission = Permission::None;
                let why = "secret of a toolchain".to_owned();
                self.points.push(Point { object, permission, why, guard: false, copy: None });
            }
        }
        Ok(())
    }

    fn literal_points(&mut self, places: &Places, demoted: bool) -> Result<(), PrepareError> {
        let rules = self.rules;
        let mut points = rules.binding_points();
        points.extend(rules.subtree_only_globs());
        // Grants first: they decide what is visible, and so which caps need a look.
        for point in points.iter().filter(|p| p.rule.effect != Effect::Cap) {
            let (path, rule) = (&point.path, point.rule);
            if *path == places.workspace {
                continue;
            }
            if path == Path::new("/") {
                self.whole_root(rule)?;
                continue;
            }
            let Some(object) = self.look(path)? else { continue };
            // An ordered rule such as `/out/**` speaks of what lies below, not of the directory.
            let decide = |p: &Path| {
                let child = p.join(ANY_NAME);
                rules.decide(if object.id.is_dir && point.subtree { &child } else { p })
            };
            let decision = decide(path);
            let canonical = decide(&object.path);
            let permission = match (object.path == *path, canonical.rule) {
                (true, _) | (false, None) => decision.permission,
                (false, Some(_)) => decision.permission.min(canonical.permission),
            };
            if permission == Permission::None {
                continue;
            }
            let object = self.place(path, object);
            self.visible.push(object.path.clone());
            let why = describe(rule);
            self.points.push(Point { object, permission, why, guard: false, copy: None });
        }
        for point in points.iter().filter(|p| p.rule.effect == Effect::Cap) {
            let (path, rule) = (&point.path, point.rule);
            let guard = rule.is_guard();
            if guard && !self.has_workspace {
                continue;
            }
            // Built-in rules name places as they lie; people also by links that lead there.
            let linked = !self.is_visible(path);
            let built_in = rule.id.is_some() && rule.origin.line.is_none();
            if linked && (built_in || !self.leads_to_visible(path)?) {
                continue;
            }
            // What the sandbox's host id cannot read anyway needs no mask. That is known of the
            // built-in secrets of the system only: what people name may be readable by everyone.
            if demoted && rule.base == ringfence_policy::Base::Root && rule.id.is_some() && !guard {
                continue;
            }
            // One listing of the workspace answers for most of the many guarded names.
            if self.listing.as_ref().is_some_and(|l| l.lacks(&places.workspace, path)) {
                if guard {
                    self.absent.push(path.clone());
                }
                continue;
            }
            let Some(object) = self.identify(path)? else {
                if guard && path.starts_with(&places.workspace) {
                    self.absent.push(path.clone());
                }
                continue;
            };
            let here = if linked { rule.permission } else { rules.decide(path).permission };
            let permission = if object.path == *path {
                here
            } else {
                here.min(rules.decide(&object.path).permission)
            };
            let why = describe(rule);
            let stays =
                rule.permission < Permission::Write && survey::lies_in(path, &places.workspace);
            if stays && (guard || self.names.is_none()) {
                self.pin_parents(path, &places.workspace)?;
            }
            // A name that must not change and is a symlink: the link is held where it is, too.
            if stays
                && rule.permission == Permission::Read
                && std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink())
                && let Some(link) = survey::look_at_link(path).map_err(|e| path_error(path, e))?
            {
                let permission = rules.decide(path).permission.min(Permission::Read);
                self.points.push(Point {
                    object: link,
                    permission,
                    why: why.clone(),
                    guard,
                    copy: None,
                });
            }
            self.points.push(Point { object, permission, why, guard, copy: None });
        }
        Ok(())
    }

    /// What must not change must not be moved away with its parents and made anew either; and what is
    /// hidden by its path would be shown to the next run at another.
    fn pin_parents(&mut self, path: &Path, workspace: &Path) -> Result<(), PrepareError> {
        for parent in survey::above(path).map(Path::new) {
            let outside =
                parent.as_os_str() == workspace.as_os_str() || !survey::lies_in(parent, workspace);
            // Once pinned, so are all above it.
            if outside || !self.pinned.insert(parent.as_os_str().to_owned()) {
                break;
            }
            if let Some(object) = self.identify(parent)? {
                self.pins.push(object);
            }
        }
        Ok(())
    }

    /// Home under the name that PATH and configuration know it by, where that is a link or lies
    /// behind one.
    fn name_of_home(&mut self, request: &Request, places: &Places) {
        use std::path::Component::{Normal, RootDir};
        let Some(name) = request.variable("HOME").map(Path::new) else { return };
        let plain = name.components().all(|c| matches!(c, RootDir | Normal(_)));
        let same = name == places.home || name.starts_with(&places.home);
        if plain && name.is_absolute() && !same && places.home.is_dir() && !self.is_visible(name) {
            self.links.push((name.to_owned(), places.home.clone()));
        }
    }

    fn leads_to_visible(&mut self, path: &Path) -> Result<bool, PrepareError> {
        Ok(self.identify(path)?.is_some_and(|object| self.is_visible(&object.path)))
    }

    /// A grant of `/` is one of each directory in it. What the sandbox has of its own stays its own,
    /// and the sockets of the host's services in `/run` are not files to read.
    fn whole_root(&mut self, rule: &Rule) -> Result<(), PrepareError> {
        const OWN: [&str; 5] = ["/proc", "/dev", "/sys", "/run", "/tmp"];
        const OWN_IN_VAR: [&str; 3] = ["/var/tmp", "/var/run", "/var/lock"];
        let list = |directory: &str| std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = list("/")
            .map(|e| e.path())
            .filter(|p| p != Path::new("/var") && !OWN.iter().any(|o| p == Path::new(o)))
            .collect();
        paths.extend(
            list("/var")
                .map(|e| e.path())
                .filter(|p| !OWN_IN_VAR.iter().any(|o| p == Path::new(o))),
        );
        paths.sort_unstable();
        for path in paths {
            if let Ok(target) = std::fs::read_link(&path) {
                self.links.push((path, target));
                continue;
            }
            let permission = self.rules.decide(&path).permission;
            let shown = permission == Permission::Read && self.visible.contains(&path);
            if shown || permission == Permission::None {
                continue;
            }
            let Some(object) = self.look(&path)? else { continue };
            self.visible.push(path);
            self.points.push(Point {
                object,
                permission,
                why: describe(rule),
                guard: false,
                copy: None,
            });
        }
        Ok(())
    }

    /// What other runs changed in their layers is not for this one to see.
    fn store(&mut self, request: &Request) -> Result<(), PrepareError> {
        let path = request.layer.as_ref().map_or_else(|| request.store(), |l| l.store.clone());
        if self.is_visible(&path)
            && let Some(object) = self.identify(&path)?
        {
            let why = "the store of layers".to_owned();
            let permission = Permission::None;
            self.points.push(Point { object, permission, why, guard: true, copy: None });
        }
        Ok(())
    }

    /// What decides in a view of the workspace. Repositories that are there are guarded as found; one
    /// that the run makes is looked at afterwards, as without a view: to make it, git writes what is
    /// guarded.
    fn view(
        &self,
        policy: &Policy,
        places: &Places,
        workspace: &Object,
        extra: &[Rule],
        why: String,
    ) -> Result<Wanted, PrepareError> {
        let mut policy = policy.clone();
        policy.files.guard_git = false;
        let mut caps = Vec::new();
        {
            let rules = CompiledRules::with_extra(&policy, places, extra);
            for point in &self.points {
                let path = &point.object.path;
                let inside = path != &workspace.path && survey::lies_in(path, &workspace.path);
                if !inside || rules.decide(path).permission <= point.permission {
                    continue;
                }
                let cap =
                    Rule::grant_path(path, point.permission, &point.why).ok_or_else(|| {
                        path_error(
                            path,
                            "is guarded, but its path is not utf-8, which no rule names",
                        )
                    })?;
                caps.push(Rule { effect: Effect::Cap, priority: priority::GUARD, ..cap });
            }
        }
        let extra = extra.iter().cloned().chain(caps).collect();
        Ok(Wanted { policy: Arc::new(policy), places: places.clone(), extra, why })
    }

    /// What a layer needs to know: directories of single files, and what is mounted where.
    fn layer(
        &mut self,
        request: LayerRequest,
        workspace: Option<&Object>,
        demoted: bool,
    ) -> Result<LayerSurvey, PrepareError> {
        let writable: Vec<Object> = self
            .points
            .iter()
            .filter(|p| p.permission == Permission::Write)
            .map(|p| p.object.clone())
            .collect();
        let mut parents: Vec<Object> = Vec::new();
        for file in writable.iter().filter(|o| !o.id.is_dir) {
            let Some(parent) = file.path.parent() else { continue };
            if parents.iter().all(|p| p.path != parent) {
                parents.extend(self.look(parent)?.filter(|object| object.path == parent));
            }
        }
        let directories: Vec<&Path> =
            writable.iter().chain(&parents).chain(workspace).map(|o| &*o.path).collect();
        if demoted {
            // Where it will be made if it is not there.
            let store = request.store.ancestors().find_map(|dir| survey::look(dir).ok().flatten());
            if !can_idmap(store.as_ref()) {
                return Err(path_error(
                    &request.store,
                    "the store of layers lies on a file system that cannot translate owners, which a root caller needs; name another place with RINGFENCE_STATE",
                ));
            }
        }
        let mounts = layer::mounts_below(&directories)
            .map_err(|e| path_error(Path::new("/proc/self/mountinfo"), plain(&e)))?;
        Ok(LayerSurvey { request, mounts, parents })
    }

    /// An object reached through a symlink is shown at the name that was asked for, unless it lies
    /// in something that is visible anyway.
    fn place(&self, asked: &Path, mut object: Object) -> Object {
        if object.path != asked
            && !self.is_visible(&object.path)
            && let (Some(parent), Some(name)) = (asked.parent(), asked.file_name())
        {
            let parent = std::fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned());
            object.path = parent.join(name);
        }
        object
    }

    /// Per-file patterns and git repositories in the workspace.
    fn patterns(
        &mut self,
        policy: &Policy,
        places: &Places,
        workspace: &Object,
        (request, walks): (&Request, bool),
        notes: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        let rules = self.rules;
        let globs: Vec<GlobRule<'_>> = rules
            .glob_rules()
            .into_iter()
            .filter(|g| g.base.starts_with(&workspace.path) || workspace.path.starts_with(&g.base))
            .collect();
        // The view needs no list of what there is.
        let needs_walk = !globs.is_empty() && walks;
        let mut hints = Vec::new();
        if self.names.is_some() {
            hints = self.names_in_layer(workspace, notes)?;
        } else if needs_walk {
            let cache = walk_cache(request, places);
            let matcher = PatternMatcher { rules, globs: &globs, workspace: &workspace.path };
            let options = WalkOptions { cache: cache.as_deref(), ..WalkOptions::default() };
            let root = workspace.open().map_err(|e| path_error(&workspace.path, e))?;
            let indexed = request.index.as_deref().and_then(|index| {
                discover::indexed_patterns(&globs, index, root.as_fd(), &workspace.path)
            });
            let walk = match indexed {
                Some(walk) => Ok(walk),
                None => discover::walk(root.as_fd(), &matcher, &options),
            };
            let walk = walk.map_err(|e| PrepareError::Walk {
                path: workspace.path.display().to_string(),
                problem: plain(&e),
            })?;
            self.matches(&walk, &workspace.path, notes)?;
            self.directories = walk.statistics.directories;
            hints = walk.repositories;
        } else if policy.files.guard_git {
            let root = workspace.open().map_err(|e| path_error(&workspace.path, e))?;
            let listing = self.listing.take().or_else(|| Listing::read(root.as_fd()));
            hints = shallow_repositories(root.as_fd(), listing.as_ref());
            self.listing = listing;
        }
        if policy.files.guard_git {
            self.git(places, &workspace.path, &hints, notes)?;
        }
        Ok(())
    }

    /// What a walk of `root` found.
    fn matches(
        &mut self,
        walk: &discover::Walk,
        root: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        if let Some(t) = &walk.truncated {
            self.truncated = Some(format!("{}: {t:?}", root.display()));
        }
        for (path, why) in &walk.unreadable {
            notes.push(format!("{}: not looked into: {why}", path.display()));
        }
        for f in &walk.matches {
            if f.is_ref {
                continue;
            }
            self.matched(root, &root.join(&f.path), f.is_symlink)?;
            for alias in &f.aliases {
                let permission = self.rules.decide(&root.join(&f.path)).permission;
                if let Some(object) = self.identify(&root.join(alias))? {
                    let why = format!("another name of {}", f.path.display());
                    self.points.push(Point { object, permission, why, guard: false, copy: None });
                }
            }
            if f.unseen > 0 {
                notes.push(format!(
                    "{} has {} more hard links outside {}",
                    f.path.display(),
                    f.unseen,
                    root.display()
                ));
            }
        }
        Ok(())
    }

    /// Denies and protections by pattern in what is shown besides the workspace. No built-in rule is
    /// one, so only who writes such a pattern waits for a walk.
    fn patterns_elsewhere(
        &mut self,
        places: &Places,
        request: &Request,
        notes: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        let rules = self.rules;
        let workspace = self.has_workspace.then_some(&*places.workspace);
        let elsewhere = |path: &Path| workspace.is_none_or(|w| !survey::lies_in(path, w));
        let written_by_people = |rule: &Rule| {
            rule.effect == Effect::Cap && !(rule.id.is_some() && rule.origin.line.is_none())
        };
        // Asked first, since it costs nothing: what is relative to the workspace stays in it.
        let mut any = false;
        rules.each(|rule, base| {
            any |= written_by_people(rule) && elsewhere(base) && pattern::has_meta(&rule.pattern);
        });
        if !any {
            return Ok(());
        }
        let globs: Vec<GlobRule<'_>> = rules
            .glob_rules()
            .into_iter()
            .filter(|g| written_by_people(g.rule) && elsewhere(&g.base))
            .collect();
        // In a layer a mask covers what lies in its roots.
        let written = |path: &Path| rules.decide(path).permission == Permission::Write;
        let masked = |path: &Path| self.names.is_some() && written(path);
        let mut starts: Vec<PathBuf> = Vec::new();
        for glob in &globs {
            for shown in self.visible.iter().filter(|v| elsewhere(v) && !masked(v)) {
                if survey::lies_in(&glob.base, shown) {
                    starts.push(glob.base.clone());
                } else if survey::lies_in(shown, &glob.base) {
                    starts.push(shown.clone());
                }
            }
        }
        starts.sort_unstable();
        starts.dedup_by(|inner, outer| survey::lies_in(inner, outer));
        let cache = walk_cache(request, places);
        for start in starts {
            let Some(object) = self.look(&start)?.filter(|o| o.id.is_dir && o.path == start) else {
                continue;
            };
            let matcher = PatternMatcher { rules, globs: &globs, workspace: &start };
            let options = WalkOptions { cache: cache.as_deref(), ..WalkOptions::default() };
            let root = object.open().map_err(|e| path_error(&start, e))?;
            let walk = discover::walk(root.as_fd(), &matcher, &options)
                .map_err(|e| PrepareError::Walk { path: shown(&start), problem: plain(&e) })?;
            self.matches(&walk, &start, notes)?;
        }
        Ok(())
    }

    /// As a walk for patterns, for what a mask will cover.
    fn names_in_layer(
        &mut self,
        workspace: &Object,
        notes: &mut Vec<String>,
    ) -> Result<Vec<RepositoryHint>, PrepareError> {
        let Some(mut names) = self.names.take() else { return Ok(Vec::new()) };
        let root = workspace.open().map_err(|e| path_error(&workspace.path, e))?;
        let walk = names.look(&root, &workspace.path).map_err(|e| PrepareError::Walk {
            path: workspace.path.display().to_string(),
            problem: plain(&e),
        })?;
        self.names = Some(names);
        if let Some(t) = &walk.truncated {
            self.truncated = Some(format!("{}: {t:?}", workspace.path.display()));
        }
        for (path, why) in &walk.unreadable {
            notes.push(format!("{}: not looked into: {why}", path.display()));
        }
        for found in walk.matches.iter().filter(|f| f.rule == crate::names::HIDDEN) {
            for alias in &found.aliases {
                if let Some(object) = self.identify(&workspace.path.join(alias))? {
                    let why = format!("another name of {}", found.path.display());
                    let permission = Permission::None;
                    self.points.push(Point { object, permission, why, guard: false, copy: None });
                }
            }
            if found.unseen > 0 {
                notes.push(format!(
                    "{} has {} more hard links outside the workspace",
                    found.path.display(),
                    found.unseen
                ));
            }
        }
        self.directories = walk.statistics.directories;
        Ok(walk.repositories)
    }

    /// No mask covers names in the file systems of their own that are shown beside an overlay.
    fn names_in_mounts(
        &mut self,
        mounts: &[Object],
        notes: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        let Some(names) = self.names.take() else { return Ok(()) };
        for mount in mounts.iter().filter(|mount| mount.id.is_dir) {
            // One that an overlay lies over is looked at with it.
            let under =
                |p: &Point| p.permission == Permission::Write && p.object.path == mount.path;
            if names.rules().decide(&mount.path).permission < Permission::Read
                || self.points.iter().any(under)
            {
                continue;
            }
            let root = mount.open().map_err(|e| path_error(&mount.path, e))?;
            let walk = names
                .walk(&root, &mount.path)
                .map_err(|e| PrepareError::Walk { path: shown(&mount.path), problem: plain(&e) })?;
            self.matches(&walk, &mount.path, notes)?;
        }
        self.names = Some(names);
        Ok(())
    }

    fn matched(
        &mut self,
        workspace: &Path,
        path: &Path,
        is_symlink: bool,
    ) -> Result<(), PrepareError> {
        let decision = self.rules.decide(path);
        // Moved elsewhere with its directory, it is still covered, but the next run might not find it.
        let by_place = decision.rule.is_some_and(|rule| !matches_anywhere(rule));
        if by_place && decision.permission < Permission::Write {
            self.pin_parents(path, workspace)?;
        }
        let why = decision.rule.map_or_else(String::new, describe);
        let permission = decision.permission;
        // A link cannot be masked; what it leads to can, where it is visible at all.
        let Some(object) = self.identify(path)? else { return Ok(()) };
        if is_symlink && !self.is_visible(&object.path) {
            return Ok(());
        }
        self.points.push(Point { object, permission, why, guard: false, copy: None });
        Ok(())
    }

    fn git(
        &mut self,
        places: &Places,
        workspace: &Path,
        hints: &[RepositoryHint],
        notes: &mut Vec<String>,
    ) -> Result<(), PrepareError> {
        let user_config = [places.home.join(".gitconfig"), places.home.join(".config/git/config")];
        let options = GitOptions { home: Some(&places.home), user_config: &user_config };
        let git = discover::discover_git(workspace, hints, &options)
            .map_err(|e| path_error(workspace, plain(&e)))?;
        let writable = self.rules.decide(workspace).permission == Permission::Write;
        for repository in &git.repositories {
            if writable {
                for outside in &repository.outside {
                    if let Some(object) = self.look(outside)? {
                        self.visible.push(outside.clone());
                        self.points.push(Point {
                            object,
                            permission: Permission::Write,
                            why: "git directory of a linked working tree".into(),
                            guard: false,
                            copy: None,
                        });
                    }
                }
            }
            for guard in &repository.guards {
                let seen = if guard.is_symlink {
                    // The link is held where it is; what it leads to has a guard of its own.
                    survey::look_at_link(&guard.path).map_err(|e| path_error(&guard.path, e))?
                } else {
                    self.identify(&guard.path)?
                };
                let Some(object) = seen else { continue };
                let decided = self.rules.decide(&guard.path).permission;
                // Outside the workspace the rules say nothing; the grant above is what surrounds.
                let permission =
                    if decided == Permission::None && !guard.path.starts_with(workspace) {
                        Permission::Read
                    } else {
                        decided.min(Permission::Read)
                    };
                let why = guard.what.to_owned();
                // What was read is what the copy is put over; else it stays read-only.
                let id = (object.id.dev, object.id.ino);
                let copy = git.configs.get(&guard.path).filter(|c| c.id == id).cloned();
                self.points.push(Point { object, permission, why, guard: true, copy });
            }
            for pin in &repository.pins {
                if let Some(object) = self.identify(pin)? {
                    self.pins.push(object);
                }
            }
            self.absent.extend(repository.absent.iter().cloned());
        }
        if let Some(enclosing) = &git.enclosing
            && let Some(object) = self.look(&enclosing.git_dir)?
        {
            self.visible.push(enclosing.git_dir.clone());
            self.points.push(Point {
                object,
                permission: Permission::Read,
                why: "the repository around the workspace".into(),
                guard: true,
                copy: None,
            });
        }
        for (path, why) in &git.refused {
            notes.push(format!("{}: not granted: {why}", path.display()));
        }
        self.git = git;
        Ok(())
    }
}

fn walk_cache(request: &Request, places: &Places) -> Option<PathBuf> {
    request
        .cache
        .then(|| discover::cache_directory(request.variable("XDG_CACHE_HOME"), &places.home))
}

/// Whether a pattern speaks of a name alone, wherever in the workspace it is.
fn matches_anywhere(rule: &Rule) -> bool {
    rule.base == Base::Workspace
        && rule.pattern.strip_prefix("**/").is_some_and(|name| !name.contains('/'))
}

/// Without a walk: the workspace itself and its direct subdirectories.
pub(crate) fn shallow_repositories(
    workspace: std::os::fd::BorrowedFd<'_>,
    listing: Option<&Listing>,
) -> Vec<RepositoryHint> {
    let mut hints = Vec::new();
    let mut check = |relative: &OsStr| {
        let git = Path::new(relative).join(".git");
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        if rustix::fs::statat(workspace, &git, flags).is_ok() {
            hints.push(RepositoryHint { path: relative.into(), shape: Shape::DotGit });
        }
    };
    check(OsStr::new(""));
    for name in listing.iter().flat_map(|l| &l.directories) {
        check(name);
    }
    hints
}

struct PatternMatcher<'a> {
    rules: &'a CompiledRules<'a>,
    globs: &'a [GlobRule<'a>],
    workspace: &'a Path,
}

impl Matcher for PatternMatcher<'_> {
    fn verdict(&self, path: &[u8], _is_dir: bool) -> Verdict {
        let relative = Path::new(OsStr::from_bytes(path));
        if !relative.file_name().is_some_and(|name| self.rules.name_may_matter(name)) {
            return Verdict::Pass;
        }
        let absolute = self.workspace.join(relative);
        match self.globs.iter().position(|g| g.matches(&absolute)) {
            Some(rule) => Verdict::Match { rule: rule as u32, descend: true },
            None => Verdict::Pass,
        }
    }

    fn fingerprint(&self) -> [u8; 16] {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let half = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            seed.hash(&mut hasher);
            for g in self.globs {
                (g.rule.base, &g.rule.pattern, g.rule.kind).hash(&mut hasher);
            }
            hasher.finish().to_le_bytes()
        };
        let mut both = [0; 16];
        both[..8].copy_from_slice(&half(1));
        both[8..].copy_from_slice(&half(2));
        both
    }
}

/// Directories that exist in the private home from the start. Tools make what else they need; only
/// where the policy lists something without showing it must every place that they may write to be
/// there beforehand (see `Builder::home`). Each costs 4 us.
fn home_directories(all: bool) -> Vec<String> {
    const USUAL: [&str; 3] = [".cache", ".config", ".local/share"];
    let mut list: Vec<String> = USUAL.iter().map(|s| (*s).to_owned()).collect();
    if all {
        list.extend(PRIVATE_CACHES.iter().map(|c| c.path.to_owned()));
        list.sort_unstable();
        list.dedup();
    }
    list
}

fn environment(
    policy: &Policy,
    request: &Request,
    places: &Places,
    cwd: &Path,
    online: bool,
) -> (Vec<(OsString, OsString)>, Vec<String>) {
    let (mut passed, stripped) = policy.environment.filter(request.environment.iter().cloned());
    let withheld = stripped.into_iter().map(|s| s.name.to_string_lossy().into_owned()).collect();
    let fixed: [(&str, Option<OsString>); 6] = [
        ("HOME", Some(places.home.clone().into())),
        ("PWD", Some(cwd.into())),
        ("OLDPWD", None),
        // Names a host directory that is not shown; its absence makes programs use /tmp.
        ("XDG_RUNTIME_DIR", None),
        ("TMPDIR", Some("/tmp".into())),
        ("RINGFENCE", Some("1".into())),
    ];
    let put = |passed: &mut Vec<(OsString, OsString)>, name: &str, value: Option<OsString>| {
        let pinned = policy.environment.set.contains_key(name);
        if pinned {
            return;
        }
        passed.retain(|(k, _)| k != name);
        if let Some(value) = value {
            passed.push((name.into(), value));
        }
    };
    for (name, value) in fixed {
        put(&mut passed, name, value);
    }
    for v in TOOL_ENVIRONMENT.iter().filter(|v| !(v.offline_only && online)) {
        put(&mut passed, v.name, Some(v.value.into()));
    }
    if request.filter.as_ref().is_some_and(|f| f.proxies) {
        for (name, value, keep) in network::proxy_environment() {
            if keep == Keep::Ours || !passed.iter().any(|(k, _)| k == name) {
                put(&mut passed, name, Some(value.into()));
            }
        }
    }
    if let Some(inspection) = &request.inspection {
        // Without a private view those files are not there.
        if request.rung == Rung::Namespaces {
            for (name, path) in &inspection.environment {
                put(&mut passed, name, Some(path.into()));
            }
        }
        for (name, placeholder) in &inspection.placeholders {
            put(&mut passed, name, Some(placeholder.into()));
        }
    }
    (passed, withheld)
}

/// A resolver configuration that leads out of `/etc` (systemd-resolved) must come along when the
/// host's network is used, or the filter, which answers for whatever server stands there.
fn resolver(policy: &Policy, filter: Option<&Filter>) -> Option<Object> {
    if policy.network != Network::Host && filter.is_none() {
        return None;
    }
    let real = std::fs::canonicalize("/etc/resolv.conf").ok()?;
    if real.starts_with("/etc") || real.starts_with("/usr") {
        return None;
    }
    survey::look(&real).ok().flatten()
}

fn devices(policy: &Policy) -> Result<Vec<PathBuf>, PrepareError> {
    for d in &policy.files.devices {
        if !d.starts_with("/dev/") {
            return Err(path_error(d, "not a device node under /dev"));
        }
        if !d.exists() {
            return Err(path_error(d, "no such device on this host"));
        }
    }
    Ok(policy.files.devices.clone())
}

/// Whether the workspace's file system can translate owners. Known by its magic number; others are
/// refused by the kernel at mount time, which is an error and not a fall-back.
fn can_idmap(workspace: Option<&Object>) -> bool {
    const CANNOT: [i64; 6] = [
        0x6969,      // nfs
        0x0102_1997, // 9p
        0x6573_5546, // fuse
        0x794c_7630, // overlayfs
        0xff53_4d42, // cifs
        0xfe53_4d42, // smb2
    ];
    workspace.is_none_or(|w| {
        w.fd.as_ref().and_then(|fd| rustix::fs::fstatfs(fd).ok()).is_some_and(|s| {
            let kind = i64::from(s.f_type as u32);
            !CANNOT.contains(&kind)
        })
    })
}
