use std::collections::BTreeSet;

use ringfence_policy::{Kind, Network, Permission, PolicyError, builtin_rules, pattern, profiles};

#[test]
fn every_profile_finishes() {
    for profile in profiles::all() {
        let policy = profiles::policy(profile.name).unwrap();
        assert!(policy.accept_missing.is_empty(), "{}", profile.name);
        assert!(policy.files.guard_git, "{}", profile.name);
        assert!(!profile.about.ends_with('.'));
        assert!(
            policy.files.rules.iter().any(|r| r.id.as_deref() == Some("guard.ringfence")),
            "{}: guards stay",
            profile.name
        );
    }
    assert!(matches!(profiles::policy("nope"), Err(PolicyError::UnknownProfile { .. })));
}

#[test]
fn the_default_profile_needs_no_network_and_no_limits() {
    let policy = profiles::workspace().unwrap();
    assert_eq!(policy.network, Network::None);
    assert_eq!(policy.layers, ["built-in workspace"]);
    assert!(policy.files.system && policy.files.toolchains && policy.files.guard_git);
    assert_eq!(policy.limits.core, Some(0));
}

#[test]
fn agentkernel_levels() {
    let moderate = profiles::policy("moderate").unwrap();
    assert_eq!(moderate.limits.memory, Some(512 << 20));
    assert_eq!(moderate.limits.cpu_percent, Some(100));
    assert_eq!(moderate.network, Network::Host);
    let restrictive = profiles::policy("restrictive").unwrap();
    assert_eq!(restrictive.limits.memory, Some(256 << 20));
    assert_eq!(restrictive.limits.cpu_percent, Some(50));
    assert_eq!(restrictive.network, Network::None);
}

#[test]
fn presets_carry_exactly_their_rules() {
    let rules = |name: &str| -> Vec<(String, Permission, i32)> {
        let policy = profiles::policy(name).unwrap();
        policy
            .files
            .rules
            .iter()
            .filter(|r| r.kind == Kind::Glob)
            .map(|r| (r.pattern.clone(), r.permission, r.priority))
            .collect()
    };
    let safe = [
        ("**/*", Permission::Read, 0),
        ("/output/**", Permission::Write, 10),
        ("/tmp/**", Permission::Write, 10),
        ("**/.env*", Permission::None, 100),
        ("**/secrets/**", Permission::None, 100),
        ("**/*.key", Permission::None, 100),
        ("**/*.pem", Permission::None, 100),
        ("**/credentials*", Permission::None, 100),
        ("**/.git/**", Permission::None, 50),
    ];
    assert_eq!(rules("agent-safe"), safe.map(|(p, m, n)| (p.to_owned(), m, n)));
    let development = [
        ("**/*", Permission::Write, 0),
        ("**/.env*", Permission::None, 100),
        ("**/secrets/**", Permission::None, 100),
        ("**/*.key", Permission::None, 100),
        ("**/*.pem", Permission::None, 100),
    ];
    assert_eq!(rules("development"), development.map(|(p, m, n)| (p.to_owned(), m, n)));
    for (name, permission) in [
        ("read-only", Permission::Read),
        ("full-access", Permission::Write),
        ("view-only", Permission::View),
    ] {
        assert_eq!(rules(name), [("**/*".to_owned(), permission, 0)]);
    }
}

#[test]
fn builtin_rules_are_in_order() {
    let mut ids = BTreeSet::new();
    for builtin in builtin_rules() {
        assert!(ids.insert(builtin.id), "{} twice", builtin.id);
        assert!(!builtin.reason.is_empty() && !builtin.reason.ends_with('.'), "{}", builtin.id);
        assert!(!builtin.reason.contains('\n'));
        for written in builtin.patterns {
            // Start-up takes them as they stand: they must already be clean.
            let (_, clean) = pattern::parse_native(written).unwrap();
            let bare = written.trim_start_matches("~/").trim_start_matches('/');
            assert_eq!(clean, bare, "{}", builtin.id);
        }
    }
}

#[test]
fn no_rented_names_among_the_hosts() {
    for host in profiles::CODE_HOSTS {
        assert!(!host.contains('*'), "{host}");
        assert!(!host.ends_with("amazonaws.com"), "{host}");
    }
}
