//! Plans of a fixed, invented place: a change of the plan shows up in review as a changed snapshot.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_policy::{
    CompiledRules, Fragment, NoFiles, Permission, Places, Policy, profiles, resolve_layers,
};
use ringfence_sys::raw::FileId;

use crate::discover::ConfigFile;
use crate::inspection::{Inspection, OWN};
use crate::plan::{Access, Action, Plan, PlanError, Point, Survey, describe};
use crate::status::Rung;
use crate::survey::{Caller, Object, SystemEntry};

const HOME: &str = "/home/user";
const WORKSPACE: &str = "/home/user/project";

fn places() -> Places {
    Places { workspace: WORKSPACE.into(), home: HOME.into() }
}

/// A directory where the name ends in `/`. The descriptor is never looked at here.
fn object(path: &str) -> Object {
    let is_dir = path.ends_with('/');
    Object {
        path: PathBuf::from(path.trim_end_matches('/')),
        id: FileId { dev: 1, ino: 1, is_dir },
        uid: 1000,
        nlink: 1,
        fd: None,
    }
}

/// What survey and discovery would have found of `path`.
fn point(rules: &CompiledRules<'_>, path: &str) -> Point {
    let object = object(path);
    let decision = rules.decide(&object.path);
    Point {
        permission: decision.permission,
        why: decision.rule.map_or_else(String::new, describe),
        guard: decision.rule.is_some_and(|r| r.priority > 0),
        copy: None,
        object,
    }
}

fn toolchain(path: &str) -> Point {
    let why = "toolchain".to_owned();
    Point { object: object(path), permission: Permission::Read, why, guard: false, copy: None }
}

/// An ordinary user's project with a repository, secrets and settings, on a usr-merged host.
fn survey(policy: &Policy, paths: &[&str]) -> Survey {
    let places = places();
    let rules = CompiledRules::new(policy, &places);
    let workspace = object("/home/user/project/");
    let workspace_permission = rules.decide(&workspace.path).permission;
    let mut points: Vec<Point> = paths.iter().map(|p| point(&rules, p)).collect();
    if policy.files.toolchains {
        points.push(toolchain("/home/user/.cargo/"));
    }
    let link = |at: &str, to: &str| SystemEntry::Link(at.into(), to.into());
    Survey {
        caller: Caller { uid: 1000, gid: 1000, maps_ids: false },
        rung: Rung::Namespaces,
        landlock_abi: 6,
        system: if policy.files.system {
            vec![
                SystemEntry::Directory("/usr".into()),
                SystemEntry::Directory("/etc".into()),
                link("/bin", "usr/bin"),
                link("/lib64", "usr/lib64"),
            ]
        } else {
            Vec::new()
        },
        workspace: Some(workspace),
        workspace_permission,
        points,
        pins: vec![object("/home/user/project/.git/")],
        absent: vec![Path::new(WORKSPACE).join(".mcp.json")],
        links: Vec::new(),
        home_directories: vec![".cache".into(), ".config".into()],
        devices: Vec::new(),
        resolver: None,
        agent: None,
        filter: crate::network::Filter::of(&policy.network).unwrap(),
        inspection: None,
        covers: Vec::new(),
        cwd: WORKSPACE.into(),
        environment: Vec::new(),
        withheld: vec!["AWS_SECRET_ACCESS_KEY".into()],
        notes: Vec::new(),
        foreign_id: 1000,
        idmap: true,
        layer: None,
        moved: None,
        names: None,
        covered: std::collections::BTreeSet::new(),
        view: None,
        no_view: None,
        caches: None,
        places,
    }
}

const USUAL: &[&str] = &[
    "/home/user/.gitconfig",
    "/home/user/.ssh/",
    "/home/user/project/.env",
    "/home/user/project/.git/config",
    "/home/user/project/.git/hooks/",
    "/home/user/project/.vscode/",
    "/home/user/project/certs/server.key",
    "/home/user/project/ringfence.toml",
];

fn policy(profile: &str, toml: &str) -> Policy {
    let base = profiles::fragment(profile).unwrap();
    let over = Fragment::parse("p.toml", toml.as_bytes()).unwrap();
    resolve_layers(vec![(base, None), (over, None)], &NoFiles).unwrap().finish().unwrap()
}

fn plan(profile: &str, toml: &str, paths: &[&str]) -> Result<Plan, PlanError> {
    let policy = policy(profile, toml);
    let paths: Vec<&str> = USUAL.iter().chain(paths).copied().collect();
    Plan::new(&policy, survey(&policy, &paths))
}

#[test]
fn the_default_profile() {
    insta::assert_snapshot!(plan("workspace", "", &[]).unwrap());
}

#[test]
fn the_strict_profile() {
    insta::assert_snapshot!(plan("strict", "", &[]).unwrap());
}

#[test]
fn the_view_only_profile() {
    insta::assert_snapshot!(plan("view-only", "", &[]).unwrap());
}

#[test]
fn a_root_caller_becomes_an_unprivileged_host_id() {
    let policy = policy("workspace", "");
    let mut survey = survey(&policy, USUAL);
    survey.caller = Caller { uid: 0, gid: 0, maps_ids: true };
    survey.foreign_id = 1_900_000_000;
    insta::assert_snapshot!(Plan::new(&policy, survey).unwrap());
}

#[test]
fn the_lower_rung_refuses_what_landlock_cannot_take_back() {
    let policy = policy("workspace", "");
    let mut lower = survey(&policy, USUAL);
    lower.rung = Rung::Landlock;
    insta::assert_snapshot!(Plan::new(&policy, lower).unwrap_err());
    let mut bare = survey(&policy, &["/home/user/.gitconfig"]);
    bare.rung = Rung::Landlock;
    insta::assert_snapshot!(Plan::new(&policy, bare).unwrap());
}

#[test]
fn what_is_missing_can_be_accepted_by_the_names_that_the_refusal_gives() {
    let lower = |policy: &Policy| {
        let mut survey = survey(policy, USUAL);
        survey.rung = Rung::Landlock;
        Plan::new(policy, survey)
    };
    let Err(PlanError::Missing(_, names)) = lower(&policy("workspace", "")) else {
        panic!("should be refused");
    };
    let quoted: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
    let accepting = policy("workspace", &format!("accept_missing = [{}]\n", quoted.join(", ")));
    let made = lower(&accepting).unwrap();
    assert_eq!(made.status.missing.len(), 6, "accepted is still told");
    assert!(lower(&policy("workspace", "accept_missing = [\"guards\"]\n")).is_err());
}

#[test]
fn without_namespaces_and_landlock_nothing_runs() {
    let policy = policy("workspace", "");
    let mut survey = survey(&policy, &[]);
    survey.rung = Rung::Landlock;
    survey.landlock_abi = 0;
    let refusal = Plan::new(&policy, survey).unwrap_err().to_string();
    assert!(refusal.contains("nothing is left to hold a policy with"), "{refusal}");
}

#[test]
fn grants_inside_denies_and_denies_inside_grants() {
    let toml = "[files]\nwrite = [\"~/data\"]\ndeny = [\"~/data/private\"]\nread = [\"certs/server.key\"]\nprotect = [\"docs\"]\n";
    let made = plan(
        "workspace",
        toml,
        &["/home/user/data/", "/home/user/data/private/", "/home/user/project/docs/"],
    )
    .unwrap();
    let at = |path: &str| made.steps.iter().rfind(|s| s.path == Path::new(path)).map(|s| &s.action);
    assert!(matches!(
        at("/home/user/data"),
        Some(Action::Bind { permission: Permission::Write, .. })
    ));
    assert!(matches!(at("/home/user/data/private"), Some(Action::Mask { .. })));
    assert!(matches!(at("/home/user/project/docs"), Some(Action::Seal { .. })));
    assert!(!matches!(at("/home/user/project/certs/server.key"), Some(Action::Mask { .. })));
}

#[test]
fn what_no_mechanism_holds_is_refused_with_its_rule() {
    let e = plan(
        "workspace",
        "[[files.rules]]\npattern = \"/notes\"\ntype = \"directory\"\npermission = \"view\"\npriority = 5\n",
        &["/home/user/project/notes/"],
    )
    .unwrap_err();
    assert!(matches!(e, PlanError::CannotList { .. }), "{e}");
    assert!(e.to_string().contains("p.toml:"), "{e}");
}

#[test]
fn a_grant_does_not_let_go_of_a_pinned_directory() {
    let policy = policy("workspace", "");
    let mut survey = survey(&policy, &[]);
    survey.pins.push(object("/home/user/project/a/"));
    survey
        .points
        .push(Point { permission: Permission::Write, ..toolchain("/home/user/project/a/") });
    let made = Plan::new(&policy, survey).unwrap();
    let pinned = |s: &crate::plan::Step| matches!(s.action, Action::Pin { .. });
    assert!(made.steps.iter().any(|s| s.path == Path::new("/home/user/project/a") && pinned(s)));
}

#[test]
fn what_is_only_listed_is_refused_where_it_could_be_read() {
    let policy = policy("view-only", "");
    for place in ["/tmp/project/", "/var/tmp/project/", "/dev/shm/project/"] {
        let mut survey = survey(&policy, &[]);
        survey.workspace = Some(object(place));
        survey.places.workspace = place.trim_end_matches('/').into();
        let e = Plan::new(&policy, survey).unwrap_err();
        assert!(matches!(e, PlanError::CannotList { .. }), "{e}");
    }
}

#[test]
fn nothing_is_mounted_where_a_link_of_ours_stands() {
    // `/var/tmp` is a link to `/tmp` unless the project lies below it.
    let policy = policy("workspace", "");
    let mut survey = survey(&policy, &[]);
    survey.workspace = Some(object("/var/tmp/project/"));
    survey.places.workspace = "/var/tmp/project".into();
    survey.pins.clear();
    let made = Plan::new(&policy, survey).unwrap();
    for link in made.steps.iter().filter(|s| matches!(s.action, Action::Link { .. })) {
        let below =
            made.steps.iter().find(|s| s.path != link.path && s.path.starts_with(&link.path));
        assert!(below.is_none(), "{below:?} stands on the link {link:?}");
    }
}

/// A configuration file of git, and what else the plan was told of.
fn with_copy(profile: &str, more: &[&str]) -> Plan {
    let policy = policy(profile, "");
    let mut survey = survey(&policy, &[]);
    let config = ConfigFile { bytes: b"[core]\n".to_vec(), id: (1, 1), mode: 0o644 };
    survey.points.push(Point {
        object: object("/home/user/project/.git/config"),
        permission: Permission::Read,
        why: "git config".into(),
        guard: true,
        copy: Some(Arc::new(config)),
    });
    survey.points.extend(more.iter().map(|path| toolchain(path)));
    Plan::new(&policy, survey).unwrap()
}

#[test]
fn configuration_of_git_is_a_private_copy_where_its_surroundings_are_writable() {
    let place = |made: &Plan| {
        made.steps.iter().find_map(|s| match &s.action {
            Action::Copy { directory, .. } => Some(directory.clone()),
            _ => None,
        })
    };
    let made = with_copy("workspace", &[]);
    assert_eq!(place(&made).unwrap(), Path::new("/run/ringfence/git-0"));
    let last = made.steps.last().unwrap();
    assert!(matches!(last.action, Action::Writable) && last.path == Path::new("/run/ringfence"));
    assert!(made.landlock.iter().any(|r| r.path == last.path && r.access == Access::Write));
    // What is read-only anyway needs none.
    assert_eq!(place(&with_copy("read-only", &[])), None);
    // Never in a directory of the host.
    let made = with_copy("workspace", &["/run/"]);
    assert_eq!(place(&made).unwrap(), Path::new("/.ringfence/git-0"));
    let made = with_copy("workspace", &["/run/ringfence/x", "/.ringfence/"]);
    assert_eq!(place(&made), None);
    let config = Path::new("/home/user/project/.git/config");
    let held = made.steps.iter().find(|s| s.path == config).unwrap();
    assert!(matches!(held.action, Action::Seal { .. }));
}

/// A plan with inspection: what the host has, and what else is shown.
fn inspected(host: &[&str], more: &[&str]) -> Result<Plan, PlanError> {
    let policy =
        policy("workspace", "[network]\nallow = [\"a.example\"]\ninspect = [\"a.example\"]\n");
    let mut survey = survey(&policy, &["/home/user/project/.env"]);
    survey.points.extend(more.iter().map(|path| toolchain(path)));
    let whole = Path::new(OWN).join("authorities.pem");
    let content: Arc<[u8]> = b"authorities"[..].into();
    let other: Arc<[u8]> = b"other"[..].into();
    survey.covers = host.iter().map(|path| object(path)).collect();
    survey.inspection = Some(Arc::new(Inspection {
        hosts: 1,
        files: [(whole, content.clone())].into(),
        covers: host
            .iter()
            .map(|path| {
                let content = if path.contains("java") { &other } else { &content };
                (PathBuf::from(path), content.clone())
            })
            .collect(),
        ..Inspection::default()
    }));
    Plan::new(&policy, survey)
}

#[test]
fn authorities_are_covered_where_they_can_be_read_and_not_written() {
    let made = inspected(
        &[
            "/etc/ssl/bundle.crt",
            "/etc/java/cacerts",
            "/home/user/.tool/cacerts",
            "/home/user/corp.pem",
            "/home/user/project/corp.pem",
            "/home/user/project/.env",
        ],
        &["/home/user/.tool/"],
    )
    .unwrap();
    let covers: Vec<_> = made
        .steps
        .iter()
        .filter_map(|s| match &s.action {
            Action::Cover { file, .. } => Some((s.path.to_str().unwrap(), file.to_str().unwrap())),
            _ => None,
        })
        .collect();
    assert_eq!(
        covers,
        [
            ("/etc/ssl/bundle.crt", "/.ringfence-trust/authorities.pem"),
            ("/etc/java/cacerts", "/.ringfence-trust/store-1"),
            ("/home/user/.tool/cacerts", "/.ringfence-trust/authorities.pem"),
        ]
    );
    let files = made.steps.iter().filter(|s| matches!(s.action, Action::File { .. }));
    assert_eq!(files.count(), 2);
    assert!(made.landlock.iter().any(|r| r.path == Path::new(OWN) && r.access == Access::Read));
    assert!(made.status.enforced.iter().any(|p| p.name == "inspection"));
}

#[test]
fn authorities_are_never_put_into_a_directory_of_the_host() {
    let error = inspected(&[], &["/.ringfence-trust/"]).unwrap_err();
    assert!(error.to_string().contains("inspection needs this name"), "{error}");
    let made = inspected(&[], &["/run/"]).unwrap();
    assert!(made.steps.iter().any(|s| matches!(s.action, Action::File { .. })));
}

#[test]
fn every_mount_point_is_made_before_it_is_used() {
    for profile in profiles::names() {
        let policy = policy(&profile, "");
        let Ok(made) = Plan::new(&policy, survey(&policy, USUAL)) else { continue };
        for (i, step) in made.steps.iter().enumerate() {
            let parent = step.path.parent().unwrap();
            let covered = parent == Path::new("/")
                || made.steps[..i].iter().any(|s| s.path == parent || parent.starts_with(&s.path));
            assert!(covered, "{profile}: {} has no parent", step.path.display());
        }
    }
}

fn granted() -> crate::agent::Granted {
    let key =
        crate::agent::Key { blob: vec![1], fingerprint: "SHA256:x".into(), comment: "mine".into() };
    crate::agent::Granted { agent: "/tmp/agent".into(), keys: vec![key], sign: Vec::new() }
}

#[test]
fn the_agents_socket_lies_in_the_private_root_and_is_told_inside() {
    let policy = policy("workspace", "");
    let place = |points: &[&str]| {
        let mut survey = survey(&policy, points);
        survey.agent = Some(Ok(granted()));
        survey.environment.push(("SSH_AUTH_SOCK".into(), "/tmp/agent".into()));
        let plan = Plan::new(&policy, survey)?;
        let step = plan.steps.iter().find(|s| matches!(s.action, Action::Agent));
        let path = step.map(|s| s.path.clone()).unwrap_or_default();
        let told: Vec<_> =
            plan.environment.iter().filter(|(name, _)| name == "SSH_AUTH_SOCK").collect();
        assert_eq!(told, [&("SSH_AUTH_SOCK".into(), path.clone().into_os_string())]);
        let enforced = plan.status.enforced.iter().find(|p| p.name == "ssh-agent");
        assert_eq!(enforced.map(|p| p.detail.as_str()), Some("1 key, sign only"));
        Ok::<_, PlanError>(path)
    };
    assert_eq!(place(USUAL).unwrap(), Path::new("/run/ringfence-agent/agent.sock"));
    // Nothing is made in what is the host's.
    assert_eq!(place(&["/run/"]).unwrap(), Path::new("/.ringfence-agent/agent.sock"));
    assert!(place(&["/run/", "/.ringfence-agent/"]).is_err());
}

#[test]
fn an_agent_that_cannot_be_had_is_said_and_without_namespaces_refused() {
    let policy = policy("workspace", "");
    let mut without = survey(&policy, USUAL);
    without.agent = Some(Err("there is no ssh agent here".into()));
    let plan = Plan::new(&policy, without).unwrap();
    assert!(plan.ssh_agent.is_none());
    assert!(plan.status.degraded.iter().any(|p| p.name == "ssh-agent"));
    assert!(plan.notes.iter().any(|n| n.contains("the command gets no agent")));
    assert!(!plan.environment.iter().any(|(name, _)| name == "SSH_AUTH_SOCK"));
    let mut lower = survey(&policy, &[]);
    lower.agent = Some(Ok(granted()));
    lower.rung = Rung::Landlock;
    let Err(PlanError::Unsupported(why)) = Plan::new(&policy, lower) else {
        panic!("should be refused");
    };
    assert!(why.contains("ssh.agent"), "{why}");
}
