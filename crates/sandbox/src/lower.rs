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
use crate::survey::Object;

/// A string with a NUL byte cannot be passed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} contains a nul byte")]
pub struct Nul(pub OsString);

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
    /// Who is told what the ssh agent was asked for, where the policy grants one.
    pub agent_events: Option<crate::agent::Sink>,
}

/// The caller's own standard descriptors, those marked replaced by a terminal of the sandbox.
pub fn stdio(pty: [bool; 3]) -> jail::Stdio {
    jail::Stdio { pty, ..jail::Stdio::default() }
}

/// Lowers a plan. The second part is what the parent must hold open for it. `agent`: init's end of the
/// channel for the agent's socket.
pub fn lower(
    plan: &Plan,
    limits: &Limits,
    nproc_fallback: bool,
    command: &Command,
    cgroup_procs: Vec<i32>,
    agent: i32,
) -> Result<(jail::JailSpec, jail::Parent<'static>), Nul> {
    let mut parent = jail::Parent::default();
    let demoted = plan.identity.demoted;
    let view = match plan.rung {
        Rung::Namespaces => Some(view(plan, demoted, agent, &mut parent)?),
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
    let spec = jail::JailSpec {
        namespaces,
        ids,
        view,
        loopback: namespaces & flags::NET != 0,
        egress: plan.filter.as_ref().map(|filter| filter.config.clone()),
        landlock: landlock(plan)?,
        watch: Vec::new(),
        init_seccomp: Vec::new(),
        seccomp: seccomp::native().map(|a| seccomp::compile(a, &plan.seccomp)).unwrap_or_default(),
        rlimits: rlimits(limits, nproc_fallback),
        exec: exec(plan, command)?,
        stdio: command.stdio,
        cgroup_procs,
        connector: command.connector.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        die_with_parent: command.die_with_parent,
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

fn exec(plan: &Plan, command: &Command) -> Result<jail::Exec, Nul> {
    let program = command.argv.first().cloned().unwrap_or_default();
    let path = plan
        .environment
        .iter()
        .find(|(k, _)| k == "PATH")
        .map_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"), |(_, v)| v.clone());
    let candidates = if program.as_bytes().contains(&b'/') {
        vec![c(&program)?]
    } else {
        std::env::split_paths(&path)
            // An empty element would mean the current directory: hostile content decides then.
            .filter(|dir| dir.is_absolute())
            .map(|dir| c(dir.join(&program).as_os_str()))
            .collect::<Result<_, _>>()?
    };
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
    agent: i32,
    parent: &mut jail::Parent<'_>,
) -> Result<jail::View, Nul> {
    let mut steps = Vec::with_capacity(plan.steps.len() + 8);
    let masks = plan.steps.iter().any(|s| matches!(s.action, Action::Mask { .. }));
    if masks {
        let file = jail::MASK_FILE.to_owned();
        steps.push(jail::Step::File { path: file, mode: 0, content: Vec::new() });
        steps.push(jail::Step::Dir { path: jail::MASK_DIR.to_owned(), mode: 0 });
    }
    for step in &plan.steps {
        lower_step(step, demoted, agent, parent, &mut steps)?;
    }
    if masks {
        steps.push(jail::Step::Remove { path: jail::MASK_FILE.to_owned(), directory: false });
        steps.push(jail::Step::Remove { path: jail::MASK_DIR.to_owned(), directory: true });
    }
    steps.push(jail::Step::ReadOnly { path: c".".to_owned() });
    let given: usize = plan
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
        root_options: match given {
            0 => c"mode=755,size=16m,nr_inodes=65536".to_owned(),
            _ => c(OsStr::new(&format!("mode=755,size={},nr_inodes=65536", ROOT_BYTES + given)))?,
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
            Action::Bind { object, .. } | Action::Over { object, .. } => {
                object.path.starts_with(dir)
            }
            Action::System { source } | Action::Device { source } => source.starts_with(dir),
            _ => false,
        })
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
    if demoted && let Ok(fd) = object.open() {
        parent.trees.push(jail::Tree { object: fd, recursive: object.id.is_dir, idmap: true });
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
        Action::Proc => out.push(jail::Step::Proc { path }),
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
        Action::Seal { object } => out.push(jail::Step::Rebind {
            path,
            expect: Some(object.id),
            attributes: mnt::ATTR_RDONLY,
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
            out.push(jail::Step::Rebind { path, expect: None, attributes: 0 });
        }
        Action::Pin { object } => {
            out.push(jail::Step::Rebind { path, expect: Some(object.id), attributes: 0 });
        }
        Action::Mask { object } => out.push(jail::Step::Mask {
            path,
            expect: Some(object.id),
            directory: object.id.is_dir,
        }),
    }
    Ok(())
}
