//! From plan to jail: strings become C strings, objects become descriptors, words become bits.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ringfence_jail as jail;
use ringfence_policy::{Limits, Permission};
use ringfence_sys::landlock::{fs, scope};
use ringfence_sys::ns::flags;
use ringfence_sys::raw::{CStringArray, mnt};
use ringfence_sys::seccomp;

use crate::plan::{Access, Action, LandlockRule, NetworkPlan, Plan, Step};
use crate::status::Rung;
use crate::survey::{self, Object};

/// A string with a NUL byte cannot be passed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} contains a nul byte")]
pub struct Nul(pub OsString);

/// Why a plan cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    #[error(transparent)]
    Nul(#[from] Nul),
    /// A part of the layer is not as the store said.
    #[error("{}: {problem}", crate::plan::shown(path))]
    Layer { path: PathBuf, problem: String },
}

fn c(s: &OsStr) -> Result<CString, Nul> {
    CString::new(s.as_bytes()).map_err(|_| Nul(s.to_owned()))
}

/// Relative to the new root; the root itself is `.`.
fn inside(path: &Path) -> Result<CString, Nul> {
    let rest = path.strip_prefix("/").unwrap_or(path);
    if rest.as_os_str().is_empty() { c(OsStr::new(".")) } else { c(rest.as_os_str()) }
}

/// What runs.
#[derive(Clone, Debug)]
pub struct Command {
    pub argv: Vec<OsString>,
    pub stdio: jail::Stdio,
    pub die_with_parent: bool,
    /// Init's end of the channel for connections to the sandbox's ports.
    pub connector: Option<std::sync::Arc<std::os::fd::OwnedFd>>,
    /// Init stays, and there is no first command.
    pub resident: Option<Resident>,
    /// Who is told what the ssh agent was asked for, where the policy grants one.
    pub agent_events: Option<crate::agent::Sink>,
}

/// An init that stays.
#[derive(Clone, Debug)]
pub struct Resident {
    /// Its end of the channel over which it is asked for commands.
    pub channel: std::sync::Arc<std::os::fd::OwnedFd>,
    /// See [`jail::JailSpec::resident_files`].
    pub open_files: u64,
}

/// The caller's own standard descriptors, those marked replaced by a terminal of the sandbox.
pub fn stdio(pty: [bool; 3]) -> jail::Stdio {
    jail::Stdio { pty, ..jail::Stdio::default() }
}

/// What was made for one run of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// Init's end of the channel for the agent's socket.
    pub agent: i32,
    /// The lock on the layer, -1 without one.
    pub lock: i32,
    /// For each of [`crate::layer::LayerPlan::roots`].
    pub mounts: &'a [ringfence_layers::Mount],
    /// Init's end of the channel for rules of names that are replaced.
    pub asks: i32,
    /// Init's end of the channel for the exact view, and the number of its connection there.
    pub view: (i32, i32),
}

/// Lowers a plan. The second part is what the parent must hold open for it.
pub fn lower(
    plan: &Plan,
    limits: &Limits,
    nproc_fallback: bool,
    command: &Command,
    cgroup_procs: Vec<i32>,
    given: &Given<'_>,
) -> Result<(jail::JailSpec, jail::Parent<'static>), LowerError> {
    let mut parent = jail::Parent::default();
    let demoted = plan.identity.demoted;
    let view = match plan.rung {
        Rung::Namespaces => Some(view(plan, demoted, given, &mut parent)?),
        Rung::Landlock => None,
    };
    let mut namespaces = 0;
    if plan.rung == Rung::Namespaces {
        namespaces = flags::ALL;
        if plan.network == NetworkPlan::Host {
            namespaces &= !flags::NET;
        }
    }
    let ids = (plan.rung == Rung::Namespaces).then_some(jail::Ids {
        inside_uid: plan.identity.inside_uid,
        outside_uid: plan.identity.host_uid,
        inside_gid: plan.identity.inside_gid,
        outside_gid: plan.identity.host_gid,
        by_parent: demoted,
    });
    let (watch, init_seccomp) =
        plan.names.as_ref().map(|names| names.filters(&plan.seccomp)).unwrap_or_default();
    let spec = jail::JailSpec {
        namespaces,
        ids,
        view,
        loopback: namespaces & flags::NET != 0,
        egress: plan.filter.as_ref().map(|filter| filter.config.clone()),
        landlock: landlock(plan)?,
        watch,
        init_seccomp,
        seccomp: seccomp::native().map(|a| seccomp::compile(a, &plan.seccomp)).unwrap_or_default(),
        rlimits: rlimits(limits, nproc_fallback),
        exec: exec(plan, command)?,
        stdio: command.stdio,
        cgroup_procs,
        connector: command.connector.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        lock: given.lock,
        asks: given.asks,
        resident: command.resident.as_ref().map_or(-1, |r| r.channel.as_raw_fd()),
        resident_files: command.resident.as_ref().map_or(0, |r| r.open_files),
        die_with_parent: command.die_with_parent && given.lock < 0,
    };
    Ok((spec, parent))
}

fn landlock(plan: &Plan) -> Result<Option<jail::Landlock>, Nul> {
    if plan.landlock_abi == 0 {
        return Ok(None);
    }
    let rules = plan.landlock.iter().map(landlock_rule).collect::<Result<_, _>>()?;
    Ok(Some(jail::Landlock {
        abi: plan.landlock_abi,
        handled_fs: fs::known(plan.landlock_abi),
        // Loopback inside a private namespace is free; without one, sockets are refused by seccomp.
        handled_net: 0,
        scoped: scope::known(plan.landlock_abi),
        rules,
    }))
}

fn landlock_rule(rule: &LandlockRule) -> Result<jail::LandlockRule, Nul> {
    let access = match rule.access {
        Access::List => fs::VIEW,
        Access::Read => fs::READ,
        Access::Write => fs::WRITE,
        Access::Device => {
            fs::READ_FILE | fs::WRITE_FILE | fs::READ_DIR | fs::IOCTL_DEV | fs::TRUNCATE
        }
    };
    Ok(jail::LandlockRule { path: c(rule.path.as_os_str())?, access, optional: rule.optional })
}

fn rlimits(limits: &Limits, nproc_fallback: bool) -> Vec<jail::Rlimit> {
    let mut all = vec![jail::Rlimit {
        resource: libc::RLIMIT_CORE,
        name: "core",
        value: limits.core.unwrap_or(0),
    }];
    if let Some(value) = limits.file_size {
        all.push(jail::Rlimit { resource: libc::RLIMIT_FSIZE, name: "file_size", value });
    }
    if let Some(value) = limits.open_files {
        all.push(jail::Rlimit { resource: libc::RLIMIT_NOFILE, name: "open_files", value });
    }
    if let (true, Some(value)) = (nproc_fallback, limits.pids) {
        all.push(jail::Rlimit { resource: libc::RLIMIT_NPROC, name: "pids", value });
    }
    all
}

/// Where a program is looked for.
pub fn candidates(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    std::env::split_paths(path)
        // An empty element would mean the current directory: hostile content decides then.
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(program))
        .collect()
}

fn exec(plan: &Plan, command: &Command) -> Result<jail::Exec, Nul> {
    let program = command.argv.first().cloned().unwrap_or_default();
    let path = plan
        .environment
        .iter()
        .find(|(k, _)| k == "PATH")
        .map_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"), |(_, v)| v.clone());
    let candidates = candidates(&program, &path)
        .iter()
        .map(|path| c(path.as_os_str()))
        .collect::<Result<_, _>>()?;
    let argv = command.argv.iter().map(|a| c(a)).collect::<Result<_, _>>()?;
    let envp = plan
        .environment
        .iter()
        .map(|(k, v)| {
            let mut pair = k.clone();
            pair.push("=");
            pair.push(v);
            c(&pair)
        })
        .collect::<Result<_, _>>()?;
    Ok(jail::Exec {
        candidates,
        argv: CStringArray::new(argv),
        envp: CStringArray::new(envp),
        cwd: c(plan.cwd.as_os_str())?,
    })
}

/// The private root without what inspection puts there.
const ROOT_BYTES: usize = 16 * 1024 * 1024;

const PLAIN: u64 = mnt::ATTR_NOSUID | mnt::ATTR_NODEV;

fn attributes(permission: Permission) -> u64 {
    if permission == Permission::Write { PLAIN } else { PLAIN | mnt::ATTR_RDONLY }
}

fn view(
    plan: &Plan,
    demoted: bool,
    given: &Given<'_>,
    parent: &mut jail::Parent<'_>,
) -> Result<jail::View, LowerError> {
    let mut steps = Vec::with_capacity(plan.steps.len() + 8);
    let masks = plan.steps.iter().any(|s| matches!(s.action, Action::Mask { .. }));
    if masks {
        let file = jail::MASK_FILE.to_owned();
        steps.push(jail::Step::File { path: file, mode: 0, content: Vec::new() });
        steps.push(jail::Step::Dir { path: jail::MASK_DIR.to_owned(), mode: 0 });
    }
    let mut stage = Stage::new(plan, demoted, given.mounts);
    for step in &plan.steps {
        match &step.action {
            Action::Layer { object, root, over, read_only } => {
                // What is inside another overlay is what an earlier run left there.
                let expect = (*over && !step.layered).then_some(object.id);
                let place = jail::Place::Root { path: inside(&step.path)?, expect };
                let mut overlay = stage.overlay(*root, place, parent)?;
                if *read_only {
                    overlay.attributes |= mnt::ATTR_RDONLY;
                }
                steps.push(jail::Step::Overlay(overlay));
            }
            Action::LayerFile { object, root, over } => {
                stage.file(step, object, (*root, *over), parent, &mut steps)?;
            }
            Action::Cache { object } => stage.cache(step, object, parent, &mut steps)?,
            _ if step.layered => stage.covered(step, given.agent, parent, &mut steps)?,
            Action::View { object, over } => steps.push(jail::Step::Fuse(jail::Fuse {
                path: inside(&step.path)?,
                // In a directory of the host, that must be the one.
                expect: over.then_some(object.id),
                device: given.view.1,
                channel: given.view.0,
                options: ringfence_sys::fuse::Options {
                    uid: plan.identity.inside_uid,
                    gid: plan.identity.inside_gid,
                    others: false,
                    attributes: PLAIN,
                },
            })),
            Action::Copy { .. }
                if plan.view.is_some() && step.path.starts_with(&plan.workspace) =>
            {
                lower_step(step, demoted, given.agent, parent, &mut steps)?;
                // What the view shows has identities of its own.
                if let Some(jail::Step::Copy(copy)) = steps.last_mut() {
                    copy.expect = None;
                }
            }
            _ => lower_step(step, demoted, given.agent, parent, &mut steps)?,
        }
    }
    if masks {
        steps.push(jail::Step::Remove { path: jail::MASK_FILE.to_owned(), directory: false });
        steps.push(jail::Step::Remove { path: jail::MASK_DIR.to_owned(), directory: true });
    }
    steps.push(jail::Step::ReadOnly { path: c".".to_owned() });
    let content: usize = plan
        .steps
        .iter()
        .map(|s| match &s.action {
            // Rounded up to pages.
            Action::File { content } => content.len() + 4096,
            _ => 0,
        })
        .sum();
    Ok(jail::View {
        scaffold: c(scaffold(plan).as_os_str())?,
        root_options: match content {
            0 => c"mode=755,size=16m,nr_inodes=65536".to_owned(),
            _ => c(OsStr::new(&format!("mode=755,size={},nr_inodes=65536", ROOT_BYTES + content)))?,
        },
        steps,
        copies: plan
            .steps
            .iter()
            .find(|s| matches!(s.action, Action::Writable))
            .map(|s| inside(&s.path))
            .transpose()?,
    })
}

/// A directory of the host under which nothing lies that is bound later.
fn scaffold(plan: &Plan) -> PathBuf {
    let sources = |dir: &Path| {
        plan.steps.iter().any(|s| match &s.action {
            Action::Bind { object, .. }
            | Action::Over { object, .. }
            | Action::Layer { object, .. }
            | Action::LayerFile { object, .. }
            | Action::Cache { object } => object.path.starts_with(dir),
            Action::Seal { object, .. } if s.layered => object.path.starts_with(dir),
            Action::System { source } | Action::Device { source } => source.starts_with(dir),
            _ => false,
        }) || plan.layer.as_ref().is_some_and(|l| l.request.store.starts_with(dir))
    };
    ["/proc", "/sys", "/run", "/tmp", "/mnt"]
        .map(Path::new)
        .into_iter()
        .find(|d| !sources(d) && d.is_dir())
        .unwrap_or(Path::new("/proc"))
        .to_owned()
}

fn source(
    object: &Object,
    demoted: bool,
    parent: &mut jail::Parent<'_>,
) -> Result<jail::Source, Nul> {
    source_of(object, demoted, object.id.is_dir, parent)
}

fn source_of(
    object: &Object,
    demoted: bool,
    recursive: bool,
    parent: &mut jail::Parent<'_>,
) -> Result<jail::Source, Nul> {
    if demoted && let Ok(fd) = object.open() {
        parent.trees.push(jail::Tree { object: fd, recursive, idmap: true });
        return Ok(jail::Source::Tree(parent.trees.len() - 1));
    }
    Ok(jail::Source::Path { path: c(object.path.as_os_str())?, expect: Some(object.id) })
}

fn lower_step(
    step: &Step,
    demoted: bool,
    agent: i32,
    parent: &mut jail::Parent<'_>,
    out: &mut Vec<jail::Step>,
) -> Result<(), Nul> {
    let path = inside(&step.path)?;
    match &step.action {
        Action::Directory => out.push(jail::Step::Dir { path, mode: 0o755 }),
        Action::Link { target } => {
            out.push(jail::Step::Symlink { path, target: c(target.as_os_str())? });
        }
        Action::Private { bytes, shared } => {
            let mode = if *shared { "1777" } else { "700" };
            let options = format!("mode={mode},size={bytes},nr_inodes=1048576");
            out.push(jail::Step::Tmpfs { path, options: c(OsStr::new(&options))? });
        }
        Action::Proc { writable } => {
            out.push(jail::Step::Proc { path, writable: *writable });
        }
        Action::Pts => out.push(jail::Step::DevPts { path }),
        Action::Device { source } => {
            let empty = Vec::new();
            out.push(jail::Step::File { path: path.clone(), mode: 0o666, content: empty });
            let source = jail::Source::Path { path: c(source.as_os_str())?, expect: None };
            let attributes = mnt::ATTR_NOSUID | mnt::ATTR_NOEXEC;
            out.push(jail::Step::Bind { source, path, recursive: false, attributes });
        }
        Action::System { source } => {
            let source = jail::Source::Path { path: c(source.as_os_str())?, expect: None };
            let attributes = attributes(Permission::Read);
            out.push(jail::Step::Bind { source, path, recursive: true, attributes });
        }
        Action::Bind { object, permission } => {
            if !object.id.is_dir {
                let empty = Vec::new();
                out.push(jail::Step::File { path: path.clone(), mode: 0o600, content: empty });
            }
            let source = source(object, demoted, parent)?;
            let attributes = attributes(*permission);
            let recursive = object.id.is_dir;
            out.push(jail::Step::Bind { source, path, recursive, attributes });
        }
        Action::Over { object, permission } => {
            let source = source(object, demoted, parent)?;
            let attributes = attributes(*permission);
            let recursive = object.id.is_dir;
            out.push(jail::Step::Over {
                source,
                path,
                expect: Some(object.id),
                recursive,
                attributes,
            });
        }
        Action::Seal { object, .. } => out.push(jail::Step::Rebind {
            path,
            expect: Some(object.id),
            attributes: mnt::ATTR_RDONLY,
            lower: None,
        }),
        Action::Copy { object, config, directory } => {
            let file = directory.join("config");
            out.push(jail::Step::Copy(jail::Copy {
                path,
                expect: Some(object.id),
                directory: inside(directory)?,
                file: inside(&file)?,
                // The command may write its own copy whatever the mode says.
                mode: config.mode | 0o600,
                content: config.bytes.clone(),
                link: inside(&directory.join("link"))?,
                target: c(file.as_os_str())?,
            }));
        }
        Action::File { content } => {
            out.push(jail::Step::File { path, mode: 0o444, content: content.to_vec() });
        }
        Action::Cover { object, file } => {
            out.push(jail::Step::Cover { file: inside(file)?, path, expect: Some(object.id) });
        }
        Action::Agent => out.push(jail::Step::Listen { path, channel: agent }),
        Action::Writable => {
            out.push(jail::Step::Rebind { path, expect: None, attributes: 0, lower: None });
        }
        Action::Pin { object } => {
            let expect = Some(object.id);
            out.push(jail::Step::Rebind { path, expect, attributes: 0, lower: None });
        }
        Action::Mask { object } => out.push(jail::Step::Mask {
            path,
            expect: Some(object.id),
            directory: object.id.is_dir,
            lower: None,
        }),
        // Lowered by the stage.
        Action::Reopen { .. }
        | Action::View { .. }
        | Action::Layer { .. }
        | Action::LayerFile { .. }
        | Action::Cache { .. } => {}
    }
    Ok(())
}

/// Puts together what the overlays of a layer are made of.
struct Stage<'a> {
    plan: &'a Plan,
    demoted: bool,
    mounts: &'a [ringfence_layers::Mount],
    /// Names given out in the stage.
    names: usize,
    /// Where each root's real directory is in the stage, and its overlay, where that stays there.
    real: Vec<Option<String>>,
    /// The same of home, for caches.
    home: Option<(String, String)>,
    shared: Vec<Option<String>>,
}

impl<'a> Stage<'a> {
    fn new(plan: &'a Plan, demoted: bool, mounts: &'a [ringfence_layers::Mount]) -> Self {
        let roots = plan.layer.as_ref().map_or(0, |l| l.roots.len());
        Self {
            plan,
            demoted,
            mounts,
            names: 0,
            real: vec![None; roots],
            home: None,
            shared: vec![None; roots],
        }
    }

    fn name(&mut self) -> String {
        self.names += 1;
        self.names.to_string()
    }

    /// A directory of the store or the host for the stage.
    fn staged(
        &mut self,
        object: &Object,
        parent: &mut jail::Parent<'_>,
        sources: &mut Vec<jail::Staged>,
    ) -> Result<String, Nul> {
        let name = self.name();
        let source = source_of(object, self.demoted, false, parent)?;
        sources.push(jail::Staged { name: c(OsStr::new(&name))?, source });
        Ok(name)
    }

    fn overlay(
        &mut self,
        root: usize,
        place: jail::Place,
        parent: &mut jail::Parent<'_>,
    ) -> Result<jail::Overlay, LowerError> {
        let none = || LowerError::Layer {
            path: PathBuf::from("/"),
            problem: "the store knows nothing of this root of the layer".into(),
        };
        let mount = self.mounts.get(root).ok_or_else(none)?;
        let layer = self.plan.layer.as_ref().ok_or_else(none)?;
        let real = layer.roots.get(root).ok_or_else(none)?;
        let Some((last, sealed)) = mount.lower.split_last() else { return Err(none()) };
        let problem =
            |path: &Path, problem: String| LowerError::Layer { path: path.to_owned(), problem };
        if *last != real.path {
            return Err(problem(last, "is not what the layer lies over".into()));
        }
        if mount.lower.len() > ringfence_sys::overlay::MOST_LOWER {
            return Err(problem(
                &real.path,
                format!(
                    "the layer has {} sealed deltas, more than the {} that can be mounted",
                    sealed.len(),
                    ringfence_sys::overlay::MOST_LOWER - 1
                ),
            ));
        }
        // One mount for both, as the kernel wants it.
        let delta = mount.upper.parent().filter(|d| mount.work.parent() == Some(*d));
        let (Some(delta), Some(upper), Some(work)) =
            (delta, mount.upper.file_name(), mount.work.file_name())
        else {
            return Err(problem(&mount.upper, "has its work directory elsewhere".into()));
        };
        let mut sources = Vec::with_capacity(mount.lower.len() + 1);
        let look = |path: &Path| match survey::look_at_link(path) {
            Ok(Some(object)) if object.id.is_dir => Ok(object),
            Ok(_) => Err(problem(path, "is not a directory".into())),
            Err(e) => Err(problem(path, e.to_string())),
        };
        let at = self.staged(&look(delta)?, parent, &mut sources)?;
        let mut lower = Vec::with_capacity(mount.lower.len());
        for path in sealed {
            let name = self.staged(&look(path)?, parent, &mut sources)?;
            lower.push(c(OsStr::new(&name))?);
        }
        let name = self.staged(&real.object, parent, &mut sources)?;
        lower.push(c(OsStr::new(&name))?);
        self.real[root] = Some(name);
        let part = |name: &OsStr| c(Path::new(&at).join(name).as_os_str());
        let (upper, work) = (part(upper)?, part(work)?);
        Ok(jail::Overlay {
            sources,
            lower,
            upper: Some((upper, work)),
            place,
            attributes: PLAIN,
            private: None,
            optional: false,
        })
    }

    /// A directory of an overlay of home, of which nothing else is shown: one overlay for all caches.
    fn cache(
        &mut self,
        step: &Step,
        object: &Object,
        parent: &mut jail::Parent,
        out: &mut Vec<jail::Step>,
    ) -> Result<(), LowerError> {
        let Some(caches) = &self.plan.caches else { return Ok(()) };
        let Ok(relative) = object.path.strip_prefix(&caches.home.path) else { return Ok(()) };
        let (_, shared) = if let Some(known) = &self.home {
            known.clone()
        } else {
            let (tmpfs, shared) = (self.name(), self.name());
            let mut sources = Vec::new();
            let real = self.staged(&caches.home, parent, &mut sources)?;
            let part = |name: &str| c(Path::new(&tmpfs).join(name).as_os_str());
            let options = format!("mode=700,size={},nr_inodes=1048576", self.plan.private_bytes);
            out.push(jail::Step::Overlay(jail::Overlay {
                sources,
                lower: vec![c(OsStr::new(&real))?],
                upper: Some((part("tree")?, part("work")?)),
                place: jail::Place::Stage(c(OsStr::new(&shared))?),
                attributes: PLAIN,
                private: Some(jail::Private {
                    name: c(OsStr::new(&tmpfs))?,
                    options: c(OsStr::new(&options))?,
                }),
                // Without it they are empty, as on a host that has none.
                optional: true,
            }));
            self.home = Some((real, shared));
            self.home.clone().unwrap_or_default()
        };
        let source = jail::Source::Stage(c(Path::new(&shared).join(relative).as_os_str())?);
        let attributes = attributes(Permission::Write);
        out.push(jail::Step::Bind {
            source,
            path: inside(&step.path)?,
            recursive: false,
            attributes,
        });
        Ok(())
    }

    /// A file of an overlay of its directory, which nobody sees else.
    fn file(
        &mut self,
        step: &Step,
        object: &Object,
        (root, over): (usize, bool),
        parent: &mut jail::Parent<'_>,
        out: &mut Vec<jail::Step>,
    ) -> Result<(), LowerError> {
        let shared = if let Some(shared) = self.shared.get(root).cloned().flatten() {
            shared
        } else {
            let name = self.name();
            let place = jail::Place::Stage(c(OsStr::new(&name))?);
            let overlay = self.overlay(root, place, parent)?;
            out.push(jail::Step::Overlay(overlay));
            self.shared[root] = Some(name.clone());
            name
        };
        let path = inside(&step.path)?;
        let name = object.path.file_name().unwrap_or_default();
        let source = jail::Source::Stage(c(Path::new(&shared).join(name).as_os_str())?);
        let attributes = attributes(Permission::Write);
        if over {
            // What an overlay shows has another identity.
            let expect = (!step.layered).then_some(object.id);
            out.push(jail::Step::Over { source, path, expect, recursive: false, attributes });
        } else {
            out.push(jail::Step::File { path: path.clone(), mode: 0o600, content: Vec::new() });
            out.push(jail::Step::Bind { source, path, recursive: false, attributes });
        }
        Ok(())
    }

    /// Where the real directory has a path, in the stage.
    fn lower_of(&self, path: &Path) -> Option<PathBuf> {
        let caches = self.plan.caches.as_ref();
        if let (Some((real, _)), Some(caches)) = (&self.home, caches)
            && caches.paths.iter().any(|c| survey::lies_in(path, c))
        {
            return Some(Path::new(real).join(path.strip_prefix(&caches.home.path).ok()?));
        }
        let (root, rest) = self.plan.layer.as_ref()?.shows(path)?;
        Some(Path::new(self.real.get(root)?.as_ref()?).join(rest))
    }

    /// What hides names in a directory that a layer lies over.
    fn mask_of(&self, path: &Path) -> Result<Option<Object>, LowerError> {
        let shows = self.plan.layer.as_ref().and_then(|layer| layer.shows(path));
        let mask = shows.and_then(|(root, rest)| Some((self.mounts.get(root)?, rest)));
        let Some((Some(mask), rest)) = mask.map(|(mount, rest)| (&mount.mask, rest)) else {
            return Ok(None);
        };
        let path = mask.join(rest);
        let found = survey::look_at_link(&path)
            .map_err(|e| LowerError::Layer { path, problem: e.to_string() })?;
        Ok(found.filter(|object| object.id.is_dir))
    }

    /// The host's directory with its mask, read-only, in the stage.
    fn masked(
        &mut self,
        mask: &Object,
        object: &Object,
        parent: &mut jail::Parent<'_>,
        out: &mut Vec<jail::Step>,
    ) -> Result<jail::Source, LowerError> {
        let mut sources = Vec::with_capacity(2);
        let mut lower = Vec::with_capacity(2);
        for part in [mask, object] {
            let name = self.staged(part, parent, &mut sources)?;
            lower.push(c(OsStr::new(&name))?);
        }
        let name = c(OsStr::new(&self.name()))?;
        out.push(jail::Step::Overlay(jail::Overlay {
            sources,
            lower,
            upper: None,
            place: jail::Place::Stage(name.clone()),
            attributes: PLAIN,
            private: None,
            optional: false,
        }));
        Ok(jail::Source::Stage(name))
    }

    /// What lies over something in an overlay, whatever an earlier run put there.
    fn covered(
        &mut self,
        step: &Step,
        agent: i32,
        parent: &mut jail::Parent<'_>,
        out: &mut Vec<jail::Step>,
    ) -> Result<(), LowerError> {
        let path = inside(&step.path)?;
        let real = match &self.plan.moved {
            Some(moved) => moved.outside(&step.path),
            None => step.path.clone(),
        };
        let lower = self.lower_of(&real).map(|path| c(path.as_os_str())).transpose()?;
        match &step.action {
            // The host's object itself, not what the layer has there.
            Action::Seal { object, masked } => {
                let mask = if *masked { self.mask_of(&real)? } else { None };
                let recursive = object.id.is_dir && mask.is_none();
                let source = match mask {
                    Some(mask) => self.masked(&mask, object, parent, out)?,
                    None => source(object, self.demoted, parent)?,
                };
                let attributes = attributes(Permission::Read);
                out.push(jail::Step::Over { source, path, expect: None, recursive, attributes });
            }
            Action::Pin { object } => {
                let expect = Some(object.id);
                out.push(jail::Step::Rebind { path, expect, attributes: 0, lower });
            }
            Action::Reopen { object } => {
                out.push(jail::Step::Reopen { path, expect: Some(object.id), lower });
            }
            Action::Mask { object } => out.push(jail::Step::Mask {
                path,
                expect: Some(object.id),
                directory: object.id.is_dir,
                lower,
            }),
            _ => {
                lower_step(step, self.demoted, agent, parent, out)?;
                if let Some(jail::Step::Copy(copy)) = out.last_mut() {
                    copy.expect = None;
                }
            }
        }
        Ok(())
    }
}
