//! Policy x what this host can do, lowered to an ordered list of set-up steps. No I/O happens here:
//! what the plan needs to know of the host is in [`Survey`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_policy::{Network, Permission, Places, Policy, Rule};
use ringfence_sys::seccomp;
use serde::Serialize;

use crate::agent::Granted;
use crate::discover::ConfigFile;
use crate::inspection::{Inspection, OWN};
use crate::layer::{LayerPlan, LayerSurvey};
use crate::moved::Moved;
use crate::names::NamesPlan;
use crate::network::Filter;
use crate::status::{Rung, Status};
use crate::survey::{Caller, Object, SystemEntry, above, lies_in};
use crate::view::{self, Wanted};

/// Where a rule or discovery asks for something else than what surrounds it.
#[derive(Clone, Debug)]
pub struct Point {
    pub object: Object,
    pub permission: Permission,
    pub why: String,
    /// Must stay where it is: its parents inside the workspace are pinned, so that they cannot be
    /// renamed away with it.
    pub guard: bool,
    /// Configuration of git, which its commands must be able to write: where it may only be read, the
    /// command gets a copy of this.
    pub copy: Option<Arc<ConfigFile>>,
}

/// Everything the plan was told about the host.
#[derive(Debug)]
pub struct Survey {
    pub caller: Caller,
    pub rung: Rung,
    pub landlock_abi: u32,
    pub system: Vec<SystemEntry>,
    pub places: Places,
    /// The workspace directory; `None` when the caller stands in home or `/`, which are not shared.
    pub workspace: Option<Object>,
    /// What the workspace's own entries get by default.
    pub workspace_permission: Permission,
    /// Existing objects with a decision of their own, in any order, system directories excluded.
    pub points: Vec<Point>,
    /// Directories to pin (git directories), inside the workspace.
    pub pins: Vec<Object>,
    /// Guarded names inside the workspace that do not exist now.
    pub absent: Vec<PathBuf>,
    /// Links in the private home: place and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Private directories in home that should exist.
    pub home_directories: Vec<String>,
    /// Devices that exist, beyond the minimal set.
    pub devices: Vec<PathBuf>,
    /// The host's `/etc/resolv.conf` when it leads out of `/etc` and hosts can be reached.
    pub resolver: Option<Object>,
    /// The ssh agent with the keys that the policy grants, or why there is none; `None` where the
    /// policy grants none.
    pub agent: Option<Result<Granted, String>>,
    /// The egress filter that the policy's host rules ask for.
    pub filter: Option<Filter>,
    /// What the inspection of hosts needs inside.
    pub inspection: Option<Arc<Inspection>>,
    /// What of [`Inspection::covers`] exists.
    pub covers: Vec<Object>,
    pub cwd: PathBuf,
    pub environment: Vec<(OsString, OsString)>,
    pub withheld: Vec<String>,
    pub notes: Vec<String>,
    pub foreign_id: u32,
    /// The file system of the workspace can translate owners.
    pub idmap: bool,
    /// What is written is to land in a layer.
    pub layer: Option<LayerSurvey>,
    /// The workspace is seen at another place.
    pub moved: Option<Moved>,
    /// How rules of names are held in the layer.
    pub names: Option<NamesPlan>,
    /// Paths of points that a mask of the layer covers.
    pub covered: BTreeSet<OsString>,
    /// The workspace is to be served with the permission of each path.
    pub view: Option<Wanted>,
    /// Why that cannot be had here.
    pub no_view: Option<String>,
    pub caches: Option<Caches>,
}

/// Caches of tools that are shown copy-on-write.
#[derive(Clone, Debug)]
pub struct Caches {
    /// What the overlay lies over; nothing else of it is shown.
    pub home: Object,
    pub rules: Vec<Rule>,
    pub paths: Vec<PathBuf>,
}

impl Caches {
    fn has(&self, path: &Path) -> bool {
        self.paths.iter().any(|p| p == path)
    }
}

/// One mount or entry of the private root, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Absolute path as the command sees it.
    pub path: PathBuf,
    #[serde(flatten)]
    pub action: Action,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// It covers something in an overlay, where an earlier run in the same layer may have put or
    /// taken away anything.
    #[serde(skip)]
    pub layered: bool,
}

/// See [`Step`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum Action {
    Directory,
    Link {
        target: PathBuf,
    },
    /// Empty, writable, gone afterwards. Size in bytes.
    Private {
        bytes: u64,
        /// Like `/tmp`: everyone may write, sticky.
        shared: bool,
    },
    /// The process table of the sandbox.
    Proc {
        writable: bool,
    },
    Pts,
    Device {
        source: PathBuf,
    },
    /// A system directory, read-only.
    System {
        source: PathBuf,
    },
    /// A host object at a place that only we can change.
    Bind {
        #[serde(skip)]
        object: Object,
        permission: Permission,
    },
    /// A host object over what lies there, inside another bind.
    Over {
        #[serde(skip)]
        object: Object,
        permission: Permission,
    },
    /// A directory of the host, served with the permission of each path (FUSE).
    View {
        #[serde(skip)]
        object: Object,
        /// Inside another directory of the host.
        #[serde(skip)]
        over: bool,
    },
    /// What is written lands in the layer: an overlay of this directory.
    Layer {
        #[serde(skip)]
        object: Object,
        /// In [`LayerPlan::roots`].
        #[serde(skip)]
        root: usize,
        /// Over what lies there, inside another bind.
        #[serde(skip)]
        over: bool,
        /// Only what is reopened in it can be written.
        read_only: bool,
    },
    /// What lies here in a read-only layer can be written.
    Reopen {
        #[serde(skip)]
        object: Object,
    },
    /// As [`Self::Layer`], of a single file.
    LayerFile {
        #[serde(skip)]
        object: Object,
        #[serde(skip)]
        root: usize,
        #[serde(skip)]
        over: bool,
    },
    /// The host's, with what is written kept in memory and gone afterwards.
    Cache {
        #[serde(skip)]
        object: Object,
    },
    /// Read-only from here down.
    Seal {
        #[serde(skip)]
        object: Object,
        /// With the layer's mask over what rules of names hide in it.
        #[serde(skip)]
        masked: bool,
    },
    /// The command reads and writes a private copy; what lies here stays as it is.
    Copy {
        #[serde(skip)]
        object: Object,
        #[serde(skip)]
        config: Arc<ConfigFile>,
        /// Where the copy lies, with nothing else beside it.
        directory: PathBuf,
    },
    /// A private file, read-only.
    File {
        #[serde(skip)]
        content: Arc<[u8]>,
    },
    /// A private file is seen instead of what lies here.
    Cover {
        #[serde(skip)]
        object: Object,
        file: PathBuf,
    },
    /// A socket that leads to the ssh agent, through the filter.
    Agent,
    /// Of the private root, which is read-only else.
    Writable,
    /// Cannot be renamed or removed.
    Pin {
        #[serde(skip)]
        object: Object,
    },
    /// Neither readable nor replaceable.
    Mask {
        #[serde(skip)]
        object: Object,
    },
}

impl Action {
    /// For people; `None` where nothing is to be told.
    pub(crate) fn words(&self) -> Option<String> {
        Some(match self {
            Self::Directory => return None,
            Self::Link { target } => format!("link to {}", shown(target)),
            Self::Private { bytes, .. } => format!("private, at most {bytes} bytes"),
            Self::Proc { writable: false } => "proc".into(),
            Self::Proc { writable: true } => "proc, read-write for processes".into(),
            Self::Pts => "pts".into(),
            Self::Device { .. } => "device".into(),
            Self::System { .. } => "system, read-only".into(),
            Self::Bind { permission, .. } => match permission {
                Permission::Write => "read-write".into(),
                Permission::View => "listed only".into(),
                _ => "read-only".into(),
            },
            Self::Over { permission, .. } => format!("{permission:?} again").to_lowercase(),
            Self::Layer { read_only: true, .. } => "read-only in the layer (overlay)".into(),
            Self::Reopen { .. } => "read-write, changes go to the layer".into(),
            Self::View { .. } => "each path by the rules, new ones too (fuse)".into(),
            Self::Layer { .. } => "read-write, changes go to the layer (overlay)".into(),
            Self::Cache { .. } => "the host's, changes stay inside (overlay)".into(),
            Self::LayerFile { .. } => {
                "read-write, changes go to the layer (overlay of its directory)".into()
            }
            Self::Seal { .. } => "read-only".into(),
            Self::Copy { .. } => "a private copy, written inside only".into(),
            Self::File { .. } => "private, read-only".into(),
            Self::Cover { file, .. } => format!("covered by {}", shown(file)),
            Self::Agent => "socket to the ssh agent".into(),
            Self::Writable => "private, read-write".into(),
            Self::Pin { .. } => "pinned in place".into(),
            Self::Mask { .. } => "hidden".into(),
        })
    }
}

/// A Landlock rule in words.
#[derive(Clone, Debug, Serialize)]
pub struct LandlockRule {
    pub path: PathBuf,
    pub access: Access,
    pub optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    List,
    Read,
    Write,
    /// Device nodes: read, write, ioctl.
    Device,
}

/// The finished plan.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub rung: Rung,
    pub layers: Vec<String>,
    pub identity: Identity,
    pub network: NetworkPlan,
    /// With [`NetworkPlan::Filtered`].
    #[serde(skip)]
    pub filter: Option<Filter>,
    /// Hosts are inspected, and the sandbox has what that needs.
    #[serde(skip)]
    pub(crate) inspected: bool,
    pub steps: Vec<Step>,
    pub landlock: Vec<LandlockRule>,
    pub landlock_abi: u32,
    #[serde(serialize_with = "debug")]
    pub seccomp: seccomp::Options,
    pub cwd: PathBuf,
    pub workspace: PathBuf,
    #[serde(skip)]
    pub environment: Vec<(OsString, OsString)>,
    /// The ssh agent as granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_agent: Option<Granted>,
    pub status: Status,
    pub notes: Vec<String>,
    /// As notes, but of no interest unless something is looked for: shown when asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// Guarded names that do not exist; looked at again after the run.
    pub absent: Vec<PathBuf>,
    /// Repositories as they were, to tell the ones that the run makes.
    #[serde(skip)]
    pub git: crate::discover::GitGuards,
    /// The policy guards git state in a workspace that can be written.
    #[serde(skip)]
    pub guards_git: bool,
    /// Directories of the workspace, where they were counted; else a large number.
    #[serde(skip)]
    pub directories: u64,
    /// What lay directly in the workspace.
    #[serde(skip)]
    pub(crate) listing: Option<crate::prepare::Listing>,
    /// Where what is written lands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerPlan>,
    /// The workspace is seen at another place.
    #[serde(rename = "codebase", skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// How rules of names are held in it.
    #[serde(skip)]
    pub names: Option<NamesPlan>,
    /// What decides for [`Action::View`].
    #[serde(skip)]
    pub(crate) view: Option<Wanted>,
    #[serde(skip)]
    pub(crate) caches: Option<Caches>,
    /// Bytes that private places may hold.
    #[serde(skip)]
    pub(crate) private_bytes: u64,
}

fn debug<T: fmt::Debug, S: serde::Serializer>(v: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&format_args!("{v:?}"))
}

/// How ids map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    pub inside_uid: u32,
    pub host_uid: u32,
    pub inside_gid: u32,
    pub host_gid: u32,
    /// A root caller mapped to an unprivileged host id, with its writable places translated.
    pub demoted: bool,
}

/// What becomes of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPlan {
    /// A namespace with loopback only.
    Loopback,
    /// A namespace with loopback, from which everything that leaves arrives at the egress filter.
    Filtered {
        /// Entries of the policy.
        allowed: usize,
        denied: usize,
        /// What can be reached on a host without nftables.
        listed_ports: Vec<u16>,
        /// Ports of the sandbox's loopback that lead to the host's.
        host_loopback_ports: Vec<u16>,
    },
    /// The host's.
    Host,
    /// No namespace: IPv4 and IPv6 sockets are refused.
    NoSockets,
}

/// Why a policy cannot be held here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The rule cannot be enforced by any mechanism of this rung.
    #[error("{path}: {problem} ({rule})")]
    CannotHold { path: PathBuf2, problem: String, rule: String },
    /// Neither mounts nor Landlock show names without content here; an exact view does.
    #[error("{path}: {problem} ({rule})")]
    CannotList { path: PathBuf2, problem: String, rule: String },
    #[error("{0}")]
    Unsupported(String),
    #[error(
        "this host cannot give the protections that the policy needs: {}\n  remedy: run `ringfence \
         doctor`; or choose a policy that can be held (`-t strict`, `-t read-only`); or accept the \
         loss with `--accept-missing {}`",
        .0.join("; "), .1.join(",")
    )]
    Missing(Vec<String>, Vec<String>),
}

/// A path that displays itself (thiserror wants Display).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathBuf2(pub PathBuf);

impl fmt::Display for PathBuf2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0))
    }
}

/// A path on one line: control characters (a newline, an escape) are spelled out, since names come
/// from whoever wrote the workspace.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(char::is_control) {
        text.chars()
            .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
            .collect()
    } else {
        text.into_owned()
    }
}

/// A rule in one line: pattern and where it stands.
pub fn describe(rule: &Rule) -> String {
    let line = rule.origin.line.map(|l| format!(":{l}")).unwrap_or_default();
    let id = rule.id.as_deref().map(|i| format!(" [{i}]")).unwrap_or_default();
    format!("rule `{}`{id}, {}{line}", rule.written(), rule.origin.layer)
}

/// Missing protections that a refusal spells out; a project can have thousands of hidden files.
const MOST_TOLD: usize = 8;

/// Where private copies lie, the first that is free. On the host only root makes names there: a link
/// to a copy that was itself copied must not come to lead to what somebody else puts there.
const COPIES: [&str; 2] = ["/run/ringfence", "/.ringfence"];

/// Where the agent's socket lies, the first that is free; not with the copies, since that directory
/// can be written.
const AGENT: [&str; 2] = ["/run/ringfence-agent", "/.ringfence-agent"];
const SOCKET: &str = "agent.sock";

/// Neither in a host object nor around one.
fn free_place(survey: &Survey, places: &[&'static str]) -> Option<&'static Path> {
    let apart = |place: &Path, other: &Path| !lies_in(place, other) && !lies_in(other, place);
    places.iter().map(|p| Path::new(*p)).find(|place| {
        let home = &survey.places.home;
        (home == Path::new("/") || apart(place, home))
            && survey.workspace.iter().all(|w| apart(place, &w.path))
            && survey.points.iter().all(|p| apart(place, &p.object.path))
    })
}

fn agent_place(survey: &Survey) -> Option<&'static Path> {
    free_place(survey, &AGENT)
}

/// The agent, where it can be had; the command is told where.
fn ssh_agent(survey: &mut Survey, status: &mut Status) -> Result<Option<Granted>, PlanError> {
    match survey.agent.take() {
        None => Ok(None),
        // Stricter than asked for, and said so.
        Some(Err(problem)) => {
            survey.notes.push(format!("ssh.agent: {problem}; the command gets no agent"));
            status.degrade("ssh-agent", format!("not granted: {problem}"));
            Ok(None)
        }
        Some(Ok(_)) if survey.rung == Rung::Landlock => Err(PlanError::Unsupported(
            "ssh.agent: needs namespaces, which this host refuses\n  remedy: run `ringfence doctor`; or take ssh.agent out of the policy"
                .into(),
        )),
        Some(Ok(granted)) => {
            status.enforce("ssh-agent", granted.in_words());
            if let Some(place) = agent_place(survey) {
                const NAME: &str = "SSH_AUTH_SOCK";
                survey.environment.retain(|(name, _)| name != NAME);
                survey.environment.push((NAME.into(), place.join(SOCKET).into()));
                survey.withheld.retain(|name| name != NAME);
                status.withheld_environment.retain(|name| name != NAME);
            }
            Ok(Some(granted))
        }
    }
}

/// Top-level names of the private root that are ours.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

impl Plan {
    /// The workspace is served by path, by threads of whoever starts it.
    pub fn has_view(&self) -> bool {
        self.view.is_some()
    }

    /// Lowers a policy. Everything is decided here; a plan that exists can be carried out.
    pub fn new(policy: &Policy, mut survey: Survey) -> Result<Self, PlanError> {
        let rung = survey.rung;
        let mut status = Status::new(rung, policy.layers.clone());
        status.withheld_environment.clone_from(&survey.withheld);
        let identity = identity(&survey, &mut status);
        let network = network(policy, rung, survey.filter.as_ref(), &mut status);
        let ssh_agent = ssh_agent(&mut survey, &mut status)?;
        if survey.layer.is_some() && rung == Rung::Landlock {
            return Err(PlanError::Unsupported(
                "--layer: needs namespaces, which this host refuses; nothing was run\n  remedy: run `ringfence doctor`; or run without a layer".into(),
            ));
        }
        if survey.view.is_some() {
            let refusal = if rung == Rung::Landlock {
                Some("--exact: needs namespaces, which this host refuses; nothing was run\n  remedy: run `ringfence doctor`; or leave --exact away".to_owned())
            } else if survey.layer.is_some() {
                Some(
                    "--exact, layer.exact: not together with a layer, which holds rules of names by a mask and by init; leave one of the two away"
                        .to_owned(),
                )
            } else {
                survey.no_view.take()
            };
            if let Some(refusal) = refusal {
                return Err(PlanError::Unsupported(refusal));
            }
            // The view guards names whether they exist or not.
            survey.absent.retain(|path| !lies_in(path, &survey.places.workspace));
        }
        let mut builder = Builder::new(policy, &survey);
        match rung {
            Rung::Namespaces => builder.private_root(ssh_agent.is_some())?,
            Rung::Landlock => builder.landlock_only(&mut status)?,
        }
        let Builder { mut steps, mut landlock, layer, .. } = builder;
        if let Some(moved) = &survey.moved {
            // Without a view everything is where the host has it.
            if rung == Rung::Landlock {
                return Err(PlanError::Unsupported(
                    "--codebase: needs namespaces, which this host refuses; nothing was run\n  remedy: run `ringfence doctor`".into(),
                ));
            }
            moved.carry(&mut steps, &mut landlock).map_err(|path| {
                PlanError::Unsupported(format!(
                    "--codebase: {} is shown to the command, where the codebase would be",
                    shown(&path)
                ))
            })?;
            status.enforce(
                "codebase",
                format!("{} at {}; its own files stay as they are", moved.name, shown(&moved.to)),
            );
        }
        let options = seccomp::Options {
            ptrace: policy.processes.ptrace && rung == Rung::Namespaces,
            io_uring: policy.processes.io_uring,
            nested_namespaces: policy.processes.nested_namespaces,
            inet: !matches!(network, NetworkPlan::NoSockets),
            fake_chown: identity.demoted,
            // No mount hides the sockets of host services (docker, D-Bus, agents) on the lower
            // rung, and landlock does not hold a connection to one by its path.
            unix: rung == Rung::Namespaces,
            // Taken back where the layer turns out to have a quota.
            reserve: true,
        };
        if let (Some(inspection), NetworkPlan::Filtered { .. }) = (&survey.inspection, &network) {
            status.enforce("inspection", inspection.detail());
        }
        if let Some(secrets) = survey.inspection.as_ref().and_then(|i| i.secrets()) {
            status.enforce("secrets", secrets);
        }
        report(policy, &survey, &mut status);
        if let Some(layer) = &layer {
            status.enforce("layer", layer.detail());
        }
        let names = survey.names.take().filter(|_| layer.is_some());
        report_names(names.as_ref(), options, &mut status)?;
        if survey.view.is_some() {
            status.enforce("exact-view", view::DETAIL);
        }
        let plan = Self {
            rung,
            layers: policy.layers.clone(),
            identity,
            filter: match network {
                NetworkPlan::Filtered { .. } => survey.filter,
                _ => None,
            },
            network,
            inspected: survey.inspection.is_some(),
            steps,
            landlock,
            landlock_abi: survey.landlock_abi,
            seccomp: options,
            cwd: survey.cwd,
            workspace: survey.places.workspace,
            environment: survey.environment,
            ssh_agent,
            status,
            notes: survey.notes,
            hints: Vec::new(),
            absent: survey.absent,
            git: crate::discover::GitGuards::default(),
            guards_git: policy.files.guard_git
                && survey.workspace.is_some()
                && survey.workspace_permission == Permission::Write,
            directories: u64::MAX,
            listing: None,
            layer,
            moved: survey.moved,
            names,
            view: survey.view,
            caches: survey.caches,
            private_bytes: policy.files.tmp_bytes,
        };
        plan.refuse_what_is_missing(policy)?;
        Ok(plan)
    }

    /// What an exact view, where the workspace has one, makes of a path.
    pub fn in_view(&self, path: &Path) -> Option<Permission> {
        self.view.as_ref().map(|view| view.permission(path))
    }

    /// Never fail open: whatever is missing must have been accepted by name.
    pub fn refuse_what_is_missing(&self, policy: &Policy) -> Result<(), PlanError> {
        let unaccepted: Vec<_> = self
            .status
            .missing
            .iter()
            .filter(|m| {
                let group = if m.name.ends_with("-limit") { "cgroup" } else { "" };
                !policy.accept_missing.iter().any(|a| *a == m.name || a == group)
            })
            .collect();
        if unaccepted.is_empty() {
            return Ok(());
        }
        let mut names: Vec<String> = unaccepted.iter().map(|m| m.name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let mut details: Vec<String> = unaccepted
            .iter()
            .take(MOST_TOLD)
            .map(|m| format!("{}: {}", m.name, m.detail))
            .collect();
        if unaccepted.len() > MOST_TOLD {
            details.push(format!("and {} more", unaccepted.len() - MOST_TOLD));
        }
        Err(PlanError::Missing(details, names))
    }
}

impl Survey {
    /// A root caller becomes an unprivileged host id.
    fn demotes(&self) -> bool {
        self.caller.maps_ids && self.idmap && self.rung == Rung::Namespaces
    }
}

fn identity(survey: &Survey, status: &mut Status) -> Identity {
    let Caller { uid, gid, maps_ids } = survey.caller;
    let demoted = survey.demotes();
    if demoted {
        // Inside, the ids stay those of the owner of the files, so that tools see their own files.
        status.enforce(
            "identity",
            format!("root caller runs as unprivileged host id {}", survey.foreign_id),
        );
        Identity {
            inside_uid: uid,
            host_uid: survey.foreign_id,
            inside_gid: gid,
            host_gid: survey.foreign_id,
            demoted,
        }
    } else {
        if uid == 0 {
            status.degrade(
                "identity",
                if survey.rung == Rung::Landlock {
                    "without namespaces the sandbox of a root caller keeps host id 0, without capabilities; writes are held by landlock"
                } else if maps_ids {
                    "the workspace's file system cannot translate owners, so the sandbox keeps host id 0 without capabilities; writes are held by mounts and landlock"
                } else {
                    "the caller is root without the right to map ids, so the sandbox keeps host id 0 without capabilities; writes are held by mounts and landlock"
                },
            );
        } else {
            status.enforce(
                "identity",
                format!("runs as the caller, uid {uid}, without capabilities"),
            );
        }
        Identity { inside_uid: uid, host_uid: uid, inside_gid: gid, host_gid: gid, demoted }
    }
}

fn network(
    policy: &Policy,
    rung: Rung,
    filter: Option<&Filter>,
    status: &mut Status,
) -> NetworkPlan {
    match (&policy.network, rung) {
        (Network::Filtered { allow, deny, .. }, rung) if filter.is_some() => {
            let (allowed, denied) = (allow.len(), deny.len());
            if rung == Rung::Landlock {
                // Never the host's network instead: without sockets nothing is reached.
                status.miss(
                    "network-filter",
                    format!(
                        "{allowed} allowed hosts cannot be reached: the egress filter needs a network namespace, which this host refuses; sockets are refused"
                    ),
                );
                return NetworkPlan::NoSockets;
            }
            status.enforce("network", filter_detail(allowed, denied));
            let config = filter.map(|f| f.config.clone()).unwrap_or_default();
            NetworkPlan::Filtered {
                allowed,
                denied,
                listed_ports: config.ports,
                host_loopback_ports: config.host_loopback,
            }
        }
        // With no host allowed the filter would have nothing to do.
        (Network::None | Network::Filtered { .. }, Rung::Namespaces) => {
            status.enforce("network", "private network namespace with loopback only");
            NetworkPlan::Loopback
        }
        (Network::None | Network::Filtered { .. }, Rung::Landlock) => {
            status
                .enforce("network", "ipv4 and ipv6 sockets are refused by the system call filter");
            NetworkPlan::NoSockets
        }
        (Network::Host, _) => {
            status.degrade("network", "the host's network, as the policy asks");
            NetworkPlan::Host
        }
    }
}

/// What holds rules of names in a layer.
fn report_names(
    names: Option<&NamesPlan>,
    options: seccomp::Options,
    status: &mut Status,
) -> Result<(), PlanError> {
    let Some(names) = names else { return Ok(()) };
    let refuse = |problem: &str| Err(PlanError::Unsupported(problem.into()));
    if options.nested_namespaces || options.io_uring {
        return refuse(
            "--layer: names cannot be checked with processes.nested_namespaces or processes.io_uring, which go around the check\n  remedy: leave them off, or run without --layer",
        );
    }
    if let Some(problem) = crate::names::broker_problem() {
        return Err(PlanError::Unsupported(format!("--layer: {problem}")));
    }
    status.enforce("names", names.detail());
    status.degrade(
        "names-live",
        "a name that the host adds to the real directory while the command runs is covered from the next start on",
    );
    Ok(())
}

fn filter_detail(allowed: usize, denied: usize) -> String {
    format!("egress filter: {allowed} allowed, {denied} denied; nothing else leaves")
}

fn report(policy: &Policy, survey: &Survey, status: &mut Status) {
    if survey.rung == Rung::Namespaces {
        status.enforce("mount-namespace", "private root, read-only system, private /tmp and home");
        status.enforce("pid-namespace", "own process table; nothing outlives the run");
        status.enforce("ipc-uts-cgroup-namespaces", "private");
    }
    if survey.landlock_abi > 0 {
        status.enforce("landlock", format!("abi {}", survey.landlock_abi));
        if survey.landlock_abi < 6 && survey.rung == Rung::Landlock {
            status.miss(
                "landlock-scope",
                "the kernel's landlock cannot keep signals and abstract sockets inside (needs abi 6)",
            );
        }
    } else if survey.rung == Rung::Namespaces {
        status.degrade("landlock", "this kernel has none; mounts hold the file policy alone");
    }
    status.enforce("seccomp", "system call filter");
    status.enforce("no-new-privs", "set-user-id programs gain nothing");
    status.enforce("capabilities", "none, bounding set empty");
    status.enforce("descriptors", "none inherited above 2");
    if !survey.absent.is_empty() && survey.rung == Rung::Namespaces && survey.layer.is_none() {
        status.degrade(
            "absent-guards",
            format!(
                "{} guarded names do not exist yet: a run that creates one has it moved aside at its end",
                survey.absent.len()
            ),
        );
    }
    if policy.processes.nested_namespaces {
        status.degrade(
            "nested-namespaces",
            match survey.caller.uid {
                0 => "allowed by the policy; a caller who is root gets none that holds a user",
                _ => "allowed by the policy",
            },
        );
    }
    if policy.processes.io_uring {
        status.degrade("io-uring", "allowed by the policy");
    }
}

/// Builds the steps of the private root.
struct Builder<'a> {
    policy: &'a Policy,
    survey: &'a Survey,
    steps: Vec<Step>,
    landlock: Vec<LandlockRule>,
    made: BTreeSet<PathBuf>,
    /// Places where host objects were bound: nothing is made below them.
    bound: Vec<PathBuf>,
    /// How many private copies there are.
    copies: usize,
    layer: Option<LayerPlan>,
}

impl<'a> Builder<'a> {
    fn new(policy: &'a Policy, survey: &'a Survey) -> Self {
        Self {
            policy,
            survey,
            steps: Vec::with_capacity(64),
            landlock: Vec::with_capacity(16),
            made: BTreeSet::from([PathBuf::from("/")]),
            bound: Vec::new(),
            copies: 0,
            layer: survey.layer.as_ref().map(|l| LayerPlan::new(l.request.clone())),
        }
    }

    fn push(&mut self, path: impl Into<PathBuf>, action: Action, why: impl Into<String>) {
        self.steps.push(Step { path: path.into(), action, why: why.into(), layered: false });
    }

    /// As [`Self::push`], for what covers something that may lie in an overlay.
    fn cover(&mut self, path: &Path, action: Action, why: &str, layered: bool) {
        self.steps.push(Step { path: path.to_owned(), action, why: why.to_owned(), layered });
    }

    fn allow(&mut self, path: impl Into<PathBuf>, access: Access) {
        self.landlock.push(LandlockRule { path: path.into(), access, optional: false });
    }

    /// Makes the directories above `path` in the private root.
    fn parents(&mut self, path: &Path) {
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
    }

    fn directory(&mut self, path: &Path) {
        if self.made.contains(path) {
            return;
        }
        self.parents(path);
        self.made.insert(path.to_owned());
        self.push(path, Action::Directory, "");
    }

    fn link(&mut self, path: &str, target: &str) {
        self.parents(Path::new(path));
        self.made.insert(PathBuf::from(path));
        self.push(path, Action::Link { target: target.into() }, "");
    }

    fn has_view(&self) -> bool {
        self.survey.workspace_permission == Permission::View && self.survey.view.is_none()
            || self.survey.points.iter().any(|p| p.permission == Permission::View)
    }

    /// Whether a host object or the private home has its place in `directory`.
    fn shows_below(&self, directory: &Path) -> bool {
        let survey = self.survey;
        survey.places.home.starts_with(directory)
            || survey.workspace.iter().any(|w| w.path.starts_with(directory))
            || survey
                .points
                .iter()
                .any(|p| p.permission > Permission::None && p.object.path.starts_with(directory))
    }

    fn private_root(&mut self, agent: bool) -> Result<(), PlanError> {
        self.allow("/", Access::List);
        self.system();
        self.basics()?;
        self.home();
        self.places()?;
        self.views_hold()?;
        if agent {
            self.agent()?;
        }
        for (place, target) in &self.survey.links {
            // Only where the directory around it is ours.
            let ours = place.parent().is_some_and(|p| !self.bound.iter().any(|b| p.starts_with(b)));
            if ours && !self.made.contains(place) {
                self.parents(place);
                self.made.insert(place.clone());
                self.push(place, Action::Link { target: target.clone() }, "");
            }
        }
        Ok(())
    }

    /// Landlock rights add up along the path: what is only listed would be readable below a directory
    /// that may be read, such as the private `/tmp`.
    fn views_hold(&self) -> Result<(), PlanError> {
        let survey = self.survey;
        let workspace = survey
            .workspace
            .iter()
            .filter(|_| survey.workspace_permission == Permission::View)
            .map(|w| (&w.path, "workspace"));
        let points = survey.points.iter().filter(|p| p.permission == Permission::View);
        // An exact view needs nothing of Landlock, nor does what a mask covers.
        let masked = survey.names.as_ref().is_some_and(|names| names.by_broker);
        let viewed = |path: &Path| {
            let covered =
                path == survey.places.workspace || survey.covered.contains(path.as_os_str());
            lies_in(path, &survey.places.workspace) && (survey.view.is_some() || masked && covered)
        };
        for (path, why) in workspace.chain(points.map(|p| (&p.object.path, p.why.as_str()))) {
            if viewed(path) {
                continue;
            }
            let around = |rule: &&LandlockRule| {
                rule.access != Access::List && rule.path != *path && path.starts_with(&rule.path)
            };
            if let Some(rule) = self.landlock.iter().find(around) {
                return Err(PlanError::CannotList {
                    path: PathBuf2(path.clone()),
                    problem: format!(
                        "`view` cannot be held below {}, whose files the command may read",
                        rule.path.display()
                    ),
                    rule: why.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn system(&mut self) {
        for entry in &self.survey.system {
            match entry {
                SystemEntry::Link(path, target) => {
                    self.parents(path);
                    self.made.insert(path.clone());
                    self.push(path, Action::Link { target: target.clone() }, "");
                }
                SystemEntry::Directory(path) => {
                    self.directory(path);
                    self.push(path, Action::System { source: path.clone() }, "");
                    self.allow(path, Access::Read);
                }
            }
        }
    }

    fn basics(&mut self) -> Result<(), PlanError> {
        let files = &self.policy.files;
        self.directory(Path::new("/proc"));
        // Whoever makes a user namespace says in its process's files whom it holds.
        let writable = self.policy.processes.nested_namespaces;
        let (access, why) = if writable {
            (Access::Write, "own process table; processes.nested_namespaces")
        } else {
            (Access::Read, "own process table, read-only")
        };
        self.push("/proc", Action::Proc { writable }, why);
        self.allow("/proc", access);
        self.directory(Path::new("/dev"));
        for name in DEVICES {
            let path = Path::new("/dev").join(name);
            self.push(&path, Action::Device { source: path.clone() }, "");
        }
        for path in &self.survey.devices {
            self.parents(path);
            self.push(path, Action::Device { source: path.clone() }, "files.devices");
        }
        self.allow("/dev", Access::Device);
        self.directory(Path::new("/dev/pts"));
        self.push("/dev/pts", Action::Pts, "");
        for (path, target) in [
            ("/dev/ptmx", "pts/ptmx"),
            ("/dev/fd", "/proc/self/fd"),
            ("/dev/stdin", "/proc/self/fd/0"),
            ("/dev/stdout", "/proc/self/fd/1"),
            ("/dev/stderr", "/proc/self/fd/2"),
        ] {
            self.link(path, target);
        }
        for (path, bytes) in [("/dev/shm", files.shm_bytes), ("/tmp", files.tmp_bytes)] {
            self.directory(Path::new(path));
            self.push(path, Action::Private { bytes, shared: true }, "");
            self.allow(path, Access::Write);
        }
        for path in ["/run", "/var/cache", "/var/lib", "/var/log"] {
            self.directory(Path::new(path));
        }
        // One place for both, unless something of the host is to be shown below the second.
        if self.shows_below(Path::new("/var/tmp")) {
            self.directory(Path::new("/var/tmp"));
            self.push("/var/tmp", Action::Private { bytes: files.tmp_bytes, shared: true }, "");
            self.allow("/var/tmp", Access::Write);
        } else {
            self.link("/var/tmp", "/tmp");
        }
        self.link("/var/run", "/run");
        if let Some(resolver) = &self.survey.resolver {
            self.bind(resolver.clone(), Permission::Read, "the host's resolver configuration")?;
        }
        Ok(())
    }

    fn home(&mut self) {
        let home = self.survey.places.home.clone();
        if home == Path::new("/") || self.survey.workspace.as_ref().is_some_and(|w| w.path == home)
        {
            return;
        }
        if self.made.contains(&home) {
            return;
        }
        self.directory(&home);
        let bytes = self.policy.files.tmp_bytes;
        self.push(&home, Action::Private { bytes, shared: false }, "private home, gone afterwards");
        let directories: Vec<PathBuf> =
            self.survey.home_directories.iter().map(|d| home.join(d)).collect();
        for d in &directories {
            self.directory(d);
        }
        if self.has_view() {
            // Landlock rights add up along the path: a writable home would make what is only listed
            // below it readable.
            self.allow(&home, Access::List);
            for d in directories {
                self.allow(d, Access::Write);
            }
        } else {
            self.allow(&home, Access::Write);
        }
    }

    /// The workspace, where it is seen at another place.
    fn is_moved(&self, path: &Path) -> bool {
        self.survey.moved.as_ref().is_some_and(|moved| moved.from == path)
    }

    /// Binds a host object at its own path.
    fn bind(&mut self, object: Object, permission: Permission, why: &str) -> Result<(), PlanError> {
        let path = object.path.clone();
        if self.is_moved(&path) {
            // The directories around it are where it will be seen.
            self.made.insert(path.clone());
            self.push(&path, Action::Directory, "");
        } else if object.id.is_dir {
            self.directory(&path);
        } else {
            self.parents(&path);
            self.made.insert(path.clone());
        }
        let access = match permission {
            Permission::None => return Ok(()),
            Permission::View => Access::List,
            Permission::Read => Access::Read,
            Permission::Write => Access::Write,
        };
        self.bound.push(path.clone());
        let cache = self.survey.caches.as_ref().is_some_and(|c| c.has(&path));
        let action = match permission {
            Permission::Write if cache && object.id.is_dir => Action::Cache { object },
            Permission::Write => {
                self.writable(object, false, |object| Action::Bind { object, permission })?
            }
            _ => match self.masked(&object) {
                Some(action) => action,
                None => Action::Bind { object, permission },
            },
        };
        self.push(&path, action, why);
        self.allow(path, access);
        Ok(())
    }

    /// Serves a directory by name. Landlock leaves to the view what only that can tell.
    fn view(&mut self, object: Object, over: bool, why: &str) {
        let path = object.path.clone();
        if !over {
            self.directory(&path);
        }
        self.bound.push(path.clone());
        self.push(&path, Action::View { object, over }, why);
        self.allow(path, Access::Write);
    }

    /// How a host object becomes writable: itself, or in the layer.
    fn writable(
        &mut self,
        object: Object,
        over: bool,
        itself: impl FnOnce(Object) -> Action,
    ) -> Result<Action, PlanError> {
        let (Some(layer), Some(survey)) = (&mut self.layer, &self.survey.layer) else {
            return Ok(itself(object));
        };
        let refuse = |path: &Path, problem: &str| {
            Err(PlanError::CannotHold {
                path: PathBuf2(path.to_owned()),
                problem: problem.into(),
                rule: "--layer".into(),
            })
        };
        let (directory, is_file) = if object.id.is_dir {
            (&object, false)
        } else {
            let parent = object.path.parent();
            let Some(parent) = survey.parents.iter().find(|p| Some(&*p.path) == parent) else {
                return refuse(&object.path, "is writable, but its directory cannot be looked at");
            };
            (parent, true)
        };
        // The kernel hides what lies under a mount from whoever did not make it.
        let within = |m: &&Object| m.path != directory.path && lies_in(&m.path, &directory.path);
        if !self.survey.demotes()
            && let Some(mount) = survey.mounts.iter().find(within)
        {
            return refuse(
                &mount.path,
                "is a file system of its own; only root can lay a layer over a directory with one below it",
            );
        }
        let root = layer.root(directory, is_file);
        Ok(if is_file {
            Action::LayerFile { object, root, over }
        } else {
            Action::Layer { object, root, over, read_only: false }
        })
    }

    /// The workspace where names in it are covered by a mask, which needs an overlay also where nothing
    /// of it can be written.
    fn masked(&mut self, object: &Object) -> Option<Action> {
        self.survey.names.as_ref()?;
        let workspace = self.survey.workspace.as_ref()?;
        let layer = self.layer.as_mut().filter(|_| workspace.path == object.path)?;
        let root = layer.root(object, false);
        let read_only = true;
        Some(Action::Layer { object: object.clone(), root, over: false, read_only })
    }

    /// The workspace, everything granted, and what is capped or hidden inside.
    fn places(&mut self) -> Result<(), PlanError> {
        // Parents before children, so that each point knows what surrounds it.
        // By bytes, which keeps parents before children and compares fast.
        let mut points: BTreeMap<&OsStr, &Point> = BTreeMap::new();
        for p in &self.survey.points {
            points
                .entry(p.object.path.as_os_str())
                .and_modify(|old| {
                    // The same object named twice: the decision is a function of the path, so only
                    // a forced cap (a guard) can differ; the lower wins.
                    if p.permission < old.permission {
                        *old = p;
                    }
                })
                .or_insert(p);
        }
        let workspace = self.survey.workspace.clone().map(|object| Point {
            object,
            permission: match &self.survey.names {
                // Init says no, not the mount.
                Some(names) if names.by_broker => Permission::Write,
                _ => self.survey.workspace_permission,
            },
            why: "workspace".to_owned(),
            guard: false,
            copy: None,
        });
        if let Some(w) = &workspace {
            points.insert(w.object.path.as_os_str(), w);
        }
        let survey = self.survey;
        // An overlay does not show what is mounted below its directory.
        let mut mounted: Vec<Point> =
            survey.layer.iter().flat_map(|l| &l.mounts).map(mounted).collect();
        if let Some(names) = &survey.names {
            mounted.retain_mut(|point| {
                let wanted = names.rules().decide(&point.object.path).permission;
                point.permission = wanted.min(Permission::Read);
                wanted > Permission::None
            });
        }
        let mut own_mounts: BTreeSet<&OsStr> = BTreeSet::new();
        for p in &mounted {
            let name = p.object.path.as_os_str();
            own_mounts.insert(name);
            points.entry(name).or_insert(p);
        }
        let by_broker = survey.names.as_ref().is_some_and(|n| n.by_broker);
        // Where names are covered, the workspace is an overlay; but for what is bound over it.
        let overlay = survey.names.as_ref().and(workspace.as_ref()).map(|w| &*w.object.path);
        // Read-only, as the host has it, and such with a mask.
        let mut sealed: Vec<&Path> = Vec::new();
        let mut masked: Vec<&Path> = Vec::new();
        let mut around = Around::of(&survey.system);
        let pins: BTreeMap<&OsStr, &Object> =
            survey.pins.iter().map(|o| (o.path.as_os_str(), o)).collect();
        let ordered: BTreeSet<&OsStr> =
            points.keys().copied().chain(pins.keys().copied()).collect();
        let copies =
            survey.points.iter().any(|p| p.copy.is_some()).then(|| self.copies_place()).flatten();
        let viewed = survey.view.as_ref().map(|_| &*survey.places.workspace);
        for name in ordered {
            let path = Path::new(name);
            let inherited = around.inherited(path);
            // Everything writable is.
            let bare = sealed.iter().any(|s| lies_in(path, s));
            let in_masked = !bare && masked.iter().any(|m| lies_in(path, m));
            let in_overlay =
                overlay.is_some_and(|w| path != w && lies_in(path, w) && !bare && !in_masked);
            let written = inherited == Permission::Write;
            let cached = || survey.caches.iter().flat_map(|c| &c.paths).any(|c| lies_in(path, c));
            let layered =
                self.layer.is_some() && (written || in_overlay || in_masked) || written && cached();
            if let Some(object) = pins.get(name)
                && viewed.is_none_or(|w| !lies_in(path, w))
                && inherited == Permission::Write
                // A grant that says what is granted anyway does not let go of it.
                && points.get(name).is_none_or(|p| p.permission == Permission::Write)
            {
                let object = (*object).clone();
                self.cover(path, Action::Pin { object }, "git directory", layered);
                continue;
            }
            if viewed.is_some_and(|w| path != w && lies_in(path, w)) {
                // The view decides by name. Only what the command writes elsewhere lies over it.
                let copy = points.get(name).and_then(|p| Some((*p, p.copy.as_ref()?, copies?)));
                if let Some((point, config, base)) = copy
                    && around.inherited(path) == Permission::Write
                    && point.permission == Permission::Read
                {
                    self.copy(base, path, point.object.clone(), config.clone(), &point.why);
                }
                continue;
            }
            let Some(point) = points.get(name) else { continue };
            let wanted = point.permission;
            let object = point.object.clone();
            if (in_overlay || in_masked) && !own_mounts.contains(name) {
                let covered = wanted <= Permission::View && survey.covered.contains(name);
                let by_init = in_overlay && by_broker && !point.guard;
                if covered || by_init && wanted > Permission::None {
                    continue;
                }
            }
            if viewed == Some(path) && wanted > Permission::None {
                let over = inherited > Permission::None;
                let why = survey.view.as_ref().map_or("", |view| &view.why);
                self.view(object, over, why);
                around.0.insert(name, Permission::Write);
                continue;
            }
            if own_mounts.contains(name) {
                if !layered && mounted.iter().any(|m| std::ptr::eq(m, *point)) {
                    // A bind brings it along.
                    continue;
                }
                let seal = |object| Action::Seal { object, masked: false };
                if layered && wanted == Permission::Write {
                    let action = self.writable(object, true, seal)?;
                    self.cover(path, action, &point.why, layered);
                    continue;
                }
                if layered && (inherited, wanted) == (Permission::Read, Permission::Read) {
                    // The overlay around it, which is read-only already, does not show it.
                    self.cover(path, seal(object), &point.why, layered);
                    sealed.push(path);
                    around.0.insert(name, wanted);
                    continue;
                }
            }
            match (inherited, wanted) {
                (Permission::None, Permission::None) => {
                    around.0.insert(name, wanted);
                    continue;
                }
                (Permission::None, _) => {
                    let masked = above(path).any(|a| {
                        points.get(a).is_some_and(|p| p.permission == Permission::None)
                            && !self.made.contains(Path::new(a))
                    });
                    // What hides the store hides nothing at another place.
                    if masked && !self.is_moved(path) {
                        return Err(PlanError::CannotHold {
                            path: PathBuf2(path.to_owned()),
                            problem: "cannot be shown inside a hidden directory of the workspace"
                                .into(),
                            rule: point.why.clone(),
                        });
                    }
                    self.bind(object, wanted, &point.why)?;
                }
                (a, b) if a == b => {}
                (_, Permission::None) => {
                    self.cover(path, Action::Mask { object }, &point.why, layered);
                }
                (Permission::Read | Permission::View, Permission::Write) if in_overlay => {
                    self.cover(path, Action::Reopen { object }, &point.why, layered);
                    self.allow(path, Access::Write);
                }
                (Permission::View, Permission::Read) if in_overlay => {
                    self.allow(path, Access::Read);
                }
                (Permission::Write, Permission::Read) => {
                    if let (Some(config), Some(base)) = (&point.copy, copies) {
                        self.copy(base, path, object, config.clone(), &point.why);
                        if let Some(step) = self.steps.last_mut() {
                            step.layered = layered;
                        }
                    } else {
                        let by_mask = layered
                            && object.id.is_dir
                            && survey.names.is_some()
                            && !own_mounts.contains(name);
                        let list = if by_mask { &mut masked } else { &mut sealed };
                        list.push(path);
                        let action = Action::Seal { object, masked: by_mask };
                        self.cover(path, action, &point.why, layered);
                    }
                }
                (Permission::Read, Permission::Write) => {
                    let over = |object| Action::Over { object, permission: wanted };
                    let action = self.writable(object, true, over)?;
                    self.cover(path, action, &point.why, in_masked);
                    self.allow(path, Access::Write);
                }
                (Permission::View, Permission::Read | Permission::Write) => {
                    let over = |object| Action::Over { object, permission: wanted };
                    let action = match wanted {
                        Permission::Write => self.writable(object, true, over)?,
                        _ => over(object),
                    };
                    self.push(path, action, &point.why);
                    let access =
                        if wanted == Permission::Read { Access::Read } else { Access::Write };
                    self.allow(path, access);
                }
                (_, Permission::View) => {
                    return Err(PlanError::CannotList {
                        path: PathBuf2(path.to_owned()),
                        problem: "`view` inside a readable directory cannot be held by mounts"
                            .into(),
                        rule: point.why.clone(),
                    });
                }
                (_, Permission::Read | Permission::Write) => {}
            }
            around.0.insert(name, wanted);
        }
        if let Some(base) = copies.filter(|_| self.copies > 0) {
            self.push(base, Action::Writable, "private copies");
        }
        self.authorities(&around)
    }

    /// The authority of inspection, in files of our own and over those of the host that can be read
    /// inside. What the command may write stays as it is: it could keep what it sees there.
    fn authorities(&mut self, around: &Around<'_>) -> Result<(), PlanError> {
        let survey = self.survey;
        let Some(inspection) = &survey.inspection else { return Ok(()) };
        let own = Path::new(OWN);
        // Never a file in a directory of the host.
        if self.bound.iter().any(|bound| lies_in(own, bound)) {
            return Err(PlanError::CannotHold {
                path: PathBuf2(own.to_owned()),
                problem: "is shown, but inspection needs this name for itself".into(),
                rule: "network.inspect".into(),
            });
        }
        self.directory(own);
        self.allow(own, Access::Read);
        let why = "authorities of inspection";
        for (path, content) in &inspection.files {
            self.push(path, Action::File { content: content.clone() }, why);
        }
        for (n, object) in survey.covers.iter().enumerate() {
            let place = object.path.as_os_str();
            let here = std::iter::once(place).chain(above(&object.path));
            let shown = here.into_iter().find_map(|p| around.0.get(p).copied());
            let content = inspection.covers.get(&object.path);
            let (Some(content), Some(Permission::Read)) = (content, shown) else { continue };
            let file = inspection.file_with(content).map_or_else(
                || {
                    let file = own.join(format!("store-{n}"));
                    self.push(&file, Action::File { content: content.clone() }, why);
                    file
                },
                Path::to_owned,
            );
            self.push(&object.path, Action::Cover { object: object.clone(), file }, why);
        }
        Ok(())
    }

    /// Where copies can lie.
    fn copies_place(&self) -> Option<&'static Path> {
        free_place(self.survey, &COPIES)
    }

    /// The socket of the agent, in a directory of its own that cannot be written.
    fn agent(&mut self) -> Result<(), PlanError> {
        let Some(place) = agent_place(self.survey) else {
            return Err(PlanError::Unsupported(
                "ssh.agent: there is no place for its socket: the workspace, home or a grant covers /run and /"
                    .into(),
            ));
        };
        self.directory(place);
        self.push(place.join(SOCKET), Action::Agent, "chosen keys, sign only");
        Ok(())
    }

    fn copy(
        &mut self,
        base: &Path,
        path: &Path,
        object: Object,
        config: Arc<ConfigFile>,
        why: &str,
    ) {
        if self.copies == 0 {
            self.directory(base);
            self.allow(base, Access::Write);
        }
        // A directory for each: git makes `config.lock` beside what it writes.
        let directory = base.join(format!("git-{}", self.copies));
        self.copies += 1;
        self.push(path, Action::Copy { object, config, directory }, why);
    }

    /// Without namespaces: the view is the host's, and only what Landlock can say is held.
    fn landlock_only(&mut self, status: &mut Status) -> Result<(), PlanError> {
        if self.survey.landlock_abi == 0 {
            return Err(PlanError::Unsupported(
                "this kernel has no landlock either, so nothing is left to hold a policy with\n  \
                 remedy: run `ringfence doctor`"
                    .into(),
            ));
        }
        for entry in &self.survey.system {
            if let SystemEntry::Directory(path) = entry {
                self.allow(path, Access::Read);
            }
        }
        self.allow("/proc", Access::Read);
        for name in DEVICES {
            self.landlock.push(LandlockRule {
                path: Path::new("/dev").join(name),
                access: Access::Device,
                optional: true,
            });
        }
        for name in ["/dev/pts", "/dev/ptmx"] {
            self.landlock.push(LandlockRule {
                path: name.into(),
                access: Access::Device,
                optional: true,
            });
        }
        status.degrade("mount-namespace", "none: hidden files answer EACCES, names stay visible");
        status.degrade(
            "pid-namespace",
            "none: other processes are visible; signals and ptrace to them are refused by landlock",
        );
        let mut around = Around::of(&self.survey.system);
        let mut points: Vec<&Point> = self.survey.points.iter().collect();
        let workspace = self.survey.workspace.clone().map(|object| Point {
            object,
            permission: self.survey.workspace_permission,
            why: "workspace".into(),
            guard: false,
            copy: None,
        });
        points.extend(workspace.as_ref());
        points.sort_by(|a, b| a.object.path.cmp(&b.object.path));
        for p in points {
            let path = &p.object.path;
            if p.permission < around.inherited(path) {
                let name = if p.guard { "guards" } else { "hidden-files" };
                status.miss(
                    name,
                    format!(
                        "{}: landlock cannot take back what the directory around it grants ({})",
                        path.display(),
                        p.why
                    ),
                );
                continue;
            }
            around.0.insert(path.as_os_str(), p.permission);
            match p.permission {
                Permission::None => {}
                Permission::View => self.allow(path, Access::List),
                Permission::Read => self.allow(path, Access::Read),
                Permission::Write => self.allow(path, Access::Write),
            }
        }
        if !self.survey.absent.is_empty() {
            status.degrade(
                "absent-guards",
                "guarded names that do not exist yet are only looked at after the run",
            );
        }
        Ok(())
    }
}

/// A file system of its own below what a layer lies over, as far as nothing else is said of it.
fn mounted(object: &Object) -> Point {
    let why = "a file system of its own, which the layer does not cover".to_owned();
    Point { object: object.clone(), permission: Permission::Read, why, guard: false, copy: None }
}

/// What surrounds a path: the nearest point above it that was made visible or hidden.
struct Around<'a>(HashMap<&'a OsStr, Permission>);

impl<'a> Around<'a> {
    fn of(system: &'a [SystemEntry]) -> Self {
        let readable = system.iter().filter_map(|entry| match entry {
            SystemEntry::Directory(path) => Some((path.as_os_str(), Permission::Read)),
            SystemEntry::Link(..) => None,
        });
        Self(readable.collect())
    }

    fn inherited(&self, path: &Path) -> Permission {
        above(path).find_map(|a| self.0.get(a).copied()).unwrap_or(Permission::None)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rung = match self.rung {
            Rung::Namespaces => "namespaces + landlock + seccomp",
            Rung::Landlock => "landlock + seccomp, no namespaces",
        };
        writeln!(f, "mechanism   {rung}")?;
        writeln!(f, "layers      {}", self.layers.join(" < "))?;
        let i = &self.identity;
        writeln!(f, "identity    uid {} inside is {} on the host", i.inside_uid, i.host_uid)?;
        match &self.network {
            NetworkPlan::Loopback => writeln!(f, "network     none (private loopback)")?,
            NetworkPlan::Filtered { allowed, denied, host_loopback_ports, .. } => {
                writeln!(f, "network     {}", filter_detail(*allowed, *denied))?;
                for port in host_loopback_ports {
                    writeln!(f, "  127.0.0.1:{port:<34} the host's")?;
                }
            }
            NetworkPlan::Host => writeln!(f, "network     the host's")?,
            NetworkPlan::NoSockets => writeln!(f, "network     none (sockets refused)")?,
        }
        for p in self
            .status
            .enforced
            .iter()
            .filter(|p| matches!(&*p.name, "inspection" | "secrets" | "names"))
        {
            writeln!(f, "{:<11} {}", p.name, p.detail)?;
        }
        if let Some(agent) = &self.ssh_agent {
            writeln!(f, "ssh agent   {}", agent.in_words())?;
            for key in &agent.keys {
                writeln!(f, "  {}  {}", key.fingerprint, shown(Path::new(&key.comment)))?;
            }
        }
        if let Some(layer) = &self.layer {
            writeln!(f, "layer       {}", layer.detail())?;
        }
        if let Some(moved) = &self.moved {
            writeln!(f, "codebase    {}, seen at {}", moved.name, shown(&moved.to))?;
        }
        writeln!(f, "directory   {}", shown(&self.cwd))?;
        if !self.steps.is_empty() {
            writeln!(f, "view")?;
        }
        for step in &self.steps {
            let Some(what) = step.action.words() else { continue };
            write!(f, "  {:<44} {what}", shown(&step.path))?;
            if step.why.is_empty() { writeln!(f)? } else { writeln!(f, "  ({})", step.why)? }
        }
        if self.rung == Rung::Landlock {
            writeln!(f, "landlock")?;
            for rule in &self.landlock {
                writeln!(f, "  {:<44} {:?}", shown(&rule.path), rule.access)?;
            }
        }
        for m in &self.status.degraded {
            writeln!(f, "degraded    {}: {}", m.name, m.detail)?;
        }
        for m in &self.status.missing {
            writeln!(f, "missing     {}: {} (accepted)", m.name, m.detail)?;
        }
        for n in self.notes.iter().chain(&self.hints) {
            writeln!(f, "note        {n}")?;
        }
        Ok(())
    }
}
