//! Properties, over random policies and paths.

use std::path::PathBuf;

use proptest::prelude::*;
use ringfence_policy::{
    ANY_NAME, Base, Bytes, CompiledRules, Count, Effect, Entry, Files, Fragment, Git, Kind,
    Located, NetworkMode, OrderedKind, OrderedRule, Origin, Permission, Places, Policy,
    RequestFragment, Rule, SecretFragment, profiles,
};

fn places() -> Places {
    Places { workspace: PathBuf::from("/w/s"), home: PathBuf::from("/h") }
}

fn permission() -> impl Strategy<Value = Permission> {
    prop_oneof![
        Just(Permission::None),
        Just(Permission::View),
        Just(Permission::Read),
        Just(Permission::Write)
    ]
}

fn part() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => prop_oneof![Just("a"), Just("b"), Just("ab"), Just("a.k")],
        1 => prop_oneof![Just("*"), Just("a*"), Just("*.k"), Just("?"), Just("[ab]")],
        1 => Just("**"),
    ]
}

fn pattern() -> impl Strategy<Value = String> {
    proptest::collection::vec(part(), 0..4).prop_map(|parts| parts.join("/"))
}

fn rule() -> impl Strategy<Value = Rule> {
    (pattern(), permission(), 0..3i32, 0..6u8, 0..3u8, any::<bool>()).prop_map(
        |(pattern, permission, priority, kind, effect, slash)| {
            let (kind, effect) = match (kind, effect) {
                (0, _) => (Kind::Glob, Effect::Set),
                (1, _) => (Kind::Directory, Effect::Set),
                (2, _) => (Kind::File, Effect::Set),
                (_, 0) => (Kind::Path, Effect::Cap),
                (_, _) => (Kind::Path, Effect::Grant),
            };
            let pattern = match kind {
                Kind::Path => {
                    ringfence_policy::pattern::parse_native(&format!("./{pattern}")).unwrap().1
                }
                _ if slash || pattern.is_empty() => format!("/{pattern}"),
                _ => pattern,
            };
            Rule {
                base: Base::Workspace,
                pattern,
                kind,
                effect,
                permission,
                priority,
                id: None,
                origin: Origin::default(),
            }
        },
    )
}

fn path() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::collection::vec(
        prop_oneof![Just("a"), Just("b"), Just("ab"), Just("a.k"), Just("c")],
        0..5,
    )
}

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("c"), Just("ab"), Just("b.k"), Just("zz"), Just(".x"), Just("*")]
}

fn with(rules: Vec<Rule>) -> Policy {
    let mut policy = Fragment::default().finish().unwrap();
    policy.files = Files { rules, system: false, guard_git: false, ..policy.files };
    policy
}

fn decide(rules: &[Rule], path: &[&str]) -> Permission {
    let policy = with(rules.to_vec());
    CompiledRules::new(&policy, &places()).decide(&PathBuf::from(path.join("/"))).permission
}

/// The law, written a second time and as plainly as possible.
mod reference {
    use super::*;

    fn name(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => (0..=text.len()).any(|i| name(rest, &text[i..])),
            ['?', rest @ ..] => !text.is_empty() && name(rest, &text[1..]),
            ['[', 'a', 'b', ']', rest @ ..] => {
                matches!(text, ['a' | 'b', ..]) && name(rest, &text[1..])
            }
            [c, rest @ ..] => text.first() == Some(c) && name(rest, &text[1..]),
        }
    }

    fn whole(pattern: &[&str], path: &[&str]) -> bool {
        match pattern {
            [] => path.is_empty(),
            ["**", rest @ ..] => (0..=path.len()).any(|i| whole(rest, &path[i..])),
            [first, rest @ ..] => {
                let chars = |s: &str| s.chars().collect::<Vec<_>>();
                !path.is_empty() && name(&chars(first), &chars(path[0])) && whole(rest, &path[1..])
            }
        }
    }

    fn split(pattern: &str) -> Vec<&str> {
        pattern.split('/').filter(|p| !p.is_empty()).collect()
    }

    fn wild(part: &str) -> bool {
        part.contains(['*', '?', '['])
    }

    const WORKSPACE_DEPTH: u32 = 2;

    fn native(rule: &Rule, path: &[&str]) -> Option<u32> {
        let parts = split(&rule.pattern);
        let deepest = |parts: &[&str]| (0..=path.len()).rev().find(|n| whole(parts, &path[..*n]));
        let mut depth = deepest(&parts)?;
        let is_wild = parts.iter().any(|p| wild(p));
        if is_wild && rule.effect == Effect::Grant {
            let named = parts.iter().rposition(|p| !wild(p)).map_or(0, |i| i + 1);
            depth = deepest(&parts[..named])?;
        }
        Some((depth as u32 + WORKSPACE_DEPTH) * 2 + u32::from(!is_wild))
    }

    fn ordered(rule: &Rule, path: &[&str]) -> Option<u32> {
        let parts = split(&rule.pattern);
        let everything = parts.is_empty()
            || (rule.kind == Kind::Glob && matches!(parts.as_slice(), ["**"] | ["**", "*"]));
        let hit = match rule.kind {
            Kind::File => parts == path,
            Kind::Directory => path.starts_with(&parts),
            _ => whole(&parts, path),
        } || (path.is_empty() && everything);
        let p = &rule.pattern;
        let mut score = 0;
        score += if p.starts_with('/') { 100 } else { 0 };
        score += if p.starts_with("**") { 0 } else { 50 };
        score += p.find("**").unwrap_or(0) as u32;
        score += if p.contains('*') { 0 } else { 200 };
        hit.then_some(score)
    }

    pub fn decide(rules: &[Rule], path: &[&str]) -> Permission {
        let mut found: Vec<(i32, u8, u32, u8, i8, &Rule)> = Vec::new();
        for rule in rules {
            let hit =
                if rule.kind == Kind::Path { native(rule, path) } else { ordered(rule, path) };
            let Some(specificity) = hit else { continue };
            let kind = [Kind::Glob, Kind::Directory, Kind::File, Kind::Path]
                .iter()
                .position(|k| *k == rule.kind)
                .unwrap() as u8;
            let effect = match rule.effect {
                Effect::Grant => 0,
                Effect::Set => 1,
                Effect::Cap => 2,
            };
            found.push((rule.priority, kind, specificity, effect, -(rule.permission as i8), rule));
        }
        found.sort_by_key(|f| (f.0, f.1, f.2, f.3, f.4));
        let run = |start: Permission, only_native: bool| {
            found.iter().filter(|f| !only_native || f.5.kind == Kind::Path).fold(
                start,
                |value, f| match f.5.effect {
                    Effect::Grant => value.max(f.5.permission),
                    Effect::Cap => value.min(f.5.permission),
                    Effect::Set => f.5.permission,
                },
            )
        };
        let ceiling = run(Permission::Write, true);
        let value = run(Permission::None, false).min(ceiling);
        let any_ordered = rules.iter().any(|r| r.kind != Kind::Path);
        if path.is_empty() && any_ordered && ceiling != Permission::None {
            value.max(Permission::View)
        } else {
            value
        }
    }
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")], 0..4)
        .prop_map(|list| list.into_iter().map(Entry::from).collect())
}

fn fragment() -> impl Strategy<Value = Fragment> {
    let files = (entries(), entries(), entries(), proptest::option::of(any::<bool>()));
    let scalars = (
        proptest::option::of(1..9u64),
        proptest::option::of(1..9u64),
        proptest::option::of(any::<bool>()),
        proptest::option::of(prop_oneof![Just(NetworkMode::None), Just(NetworkMode::Host)]),
    );
    let sets = proptest::collection::btree_map("[AB]", "[xy]", 0..3);
    (files, scalars, sets, entries(), proptest::collection::vec((0..3i32, permission()), 0..3))
        .prop_map(|((write, deny, pass, git), (pids, memory, flag, mode), set, hosts, rules)| {
            let mut f = Fragment::default();
            f.files.write = write;
            f.files.deny = deny;
            f.files.git = git.map(|g| if g { Git::Guard } else { Git::Open });
            f.files.rules = rules
                .into_iter()
                .map(|(priority, permission)| {
                    let pattern = "x".to_owned();
                    let kind = OrderedKind::Glob;
                    Located::new(
                        OrderedRule { pattern, permission, priority, kind },
                        Origin::default(),
                    )
                })
                .collect();
            f.environment.pass = pass;
            f.environment.set = set;
            f.limits.pids = pids.map(Count::new);
            f.limits.memory = memory.map(|m| Bytes::new(m << 20));
            f.processes.ptrace = flag;
            f.complete = flag == Some(true);
            f.network.mode = mode;
            // The later of two upstream proxies and secrets wins, lists append.
            f.network.upstream_proxy = hosts.first().cloned();
            f.network.proxies = flag;
            f.network.rules = hosts
                .iter()
                .map(|h| {
                    let hosts = vec![h.value.clone()];
                    Located::new(
                        RequestFragment { hosts, ..RequestFragment::default() },
                        h.origin.clone(),
                    )
                })
                .collect();
            f.network.secrets = hosts
                .iter()
                .map(|h| {
                    let from = format!("env:{}", hosts.len());
                    let secret = SecretFragment { from, ..SecretFragment::default() };
                    (h.value.clone(), Located::new(secret, h.origin.clone()))
                })
                .collect();
            f.network.inspect.clone_from(&hosts);
            f.network.deny.clone_from(&hosts);
            f.network.allow = hosts;
            f.layers = f.network.allow.iter().map(|e| e.value.clone()).collect();
            Fragment::default().merge(f)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_matcher_agrees_with_the_reference(
        rules in proptest::collection::vec(rule(), 0..7),
        path in path(),
    ) {
        prop_assert_eq!(decide(&rules, &path), reference::decide(&rules, &path));
    }

    #[test]
    fn order_of_rules_is_irrelevant(
        (rules, shuffled) in proptest::collection::vec(rule(), 0..7)
            .prop_flat_map(|r| (Just(r.clone()), Just(r).prop_shuffle())),
        path in path(),
    ) {
        let (a, b) = (with(rules), with(shuffled));
        let path = PathBuf::from(path.join("/"));
        let (places, other) = (places(), places());
        let a = a.decide_path(&places, &path);
        let b = b.decide_path(&other, &path);
        prop_assert_eq!(a, b);
    }

    #[test]
    fn a_deny_added_never_allows_more(
        rules in proptest::collection::vec(rule(), 0..6),
        pattern in pattern(),
        path in path(),
    ) {
        let before = decide(&rules, &path);
        let mut more = rules;
        more.push(Rule {
            base: Base::Workspace,
            pattern: ringfence_policy::pattern::parse_native(&format!("./{pattern}")).unwrap().1,
            kind: Kind::Path,
            effect: Effect::Cap,
            permission: Permission::None,
            priority: 0,
            id: None,
            origin: Origin::default(),
        });
        prop_assert!(decide(&more, &path) <= before);
    }

    #[test]
    fn what_is_asked_without_allocating_is_what_is_decided(
        rules in proptest::collection::vec(rule(), 0..8),
        path in path(),
    ) {
        let policy = with(rules);
        let rules = CompiledRules::new(&policy, &places());
        let mut room = rules.room();
        let absolute = PathBuf::from("/w/s").join(path.join("/"));
        let bytes = absolute.as_os_str().as_encoded_bytes();
        for _ in 0..2 {
            prop_assert_eq!(rules.permission(bytes, &mut room), rules.decide(&absolute).permission);
        }
    }

    #[test]
    fn names_that_no_pattern_singles_out_are_decided_alike(
        rules in proptest::collection::vec(rule(), 0..8),
        path in path(),
        one in name(),
        other in name(),
    ) {
        let policy = with(rules);
        let rules = CompiledRules::new(&policy, &places());
        let directory = PathBuf::from("/w/s").join(path.join("/"));
        let decide = |name: &str| rules.decide(&directory.join(name)).permission;
        if !rules.name_may_differ(one.as_ref()) && !rules.name_may_differ(other.as_ref()) {
            prop_assert_eq!(decide(one), decide(other));
        }
    }

    #[test]
    fn what_has_no_marked_name_is_decided_by_its_depth(
        rules in proptest::collection::vec((rule(), any::<bool>()), 0..6),
        path in path(),
        root in prop_oneof![Just("/"), Just("/w"), Just("/w/s"), Just("/w/s/a"), Just("/x")],
    ) {
        let rebased = |(rule, from_root): (Rule, bool)| match rule.kind {
            Kind::Path if from_root => Rule { base: Base::Root, ..rule },
            _ => rule,
        };
        let policy = with(rules.into_iter().map(rebased).collect());
        let rules = CompiledRules::new(&policy, &places());
        let root = PathBuf::from(root);
        if let Some(marks) = rules.marks(&root)
            && !path.iter().any(|name| marks.iter().any(|mark| mark.is_on(name.as_bytes())))
        {
            let any: PathBuf = path.iter().map(|_| ANY_NAME).collect();
            let (found, any) = (root.join(path.join("/")), root.join(any));
            prop_assert_eq!(rules.decide(&found).permission, rules.decide(&any).permission);
        }
    }

    #[test]
    fn rules_that_are_owned_decide_as_those_that_are_lent(
        rules in proptest::collection::vec(rule(), 0..8),
        path in path(),
        switches in any::<(bool, bool)>(),
    ) {
        let mut policy = with(rules.clone());
        (policy.files.guard_git, policy.files.system) = switches;
        let owned = CompiledRules::owning(rules, &places(), switches.0, switches.1);
        let lent = CompiledRules::new(&policy, &places());
        let path = PathBuf::from(path.join("/"));
        prop_assert_eq!(owned.explain(&path), lent.explain(&path));
        prop_assert_eq!(owned.decide(&path), policy.decide_path(&places(), &path));
        prop_assert_eq!(owned.literal_points(), lent.literal_points());
        prop_assert_eq!(owned.glob_rules().len(), lent.glob_rules().len());
    }

    #[test]
    fn deny_over_allow_at_equal_specificity(path in path(), granted in permission()) {
        let literal = |effect, permission| Rule {
            base: Base::Workspace, pattern: path.join("/"), kind: Kind::Path, effect, permission,
            priority: 0, id: None, origin: Origin::default(),
        };
        let rules = [literal(Effect::Cap, Permission::None), literal(Effect::Grant, granted)];
        prop_assert_eq!(decide(&rules, &path), Permission::None);
    }

    #[test]
    fn more_specific_over_less(path in path(), below in "[xyz]", granted in permission()) {
        let literal = |pattern: String, effect, permission| Rule {
            base: Base::Workspace, pattern, kind: Kind::Path, effect, permission,
            priority: 0, id: None, origin: Origin::default(),
        };
        let deeper: Vec<&str> = path.iter().copied().chain([below.as_str()]).collect();
        let rules = [
            literal(path.join("/"), Effect::Cap, Permission::None),
            literal(deeper.join("/"), Effect::Grant, granted),
        ];
        prop_assert_eq!(decide(&rules, &deeper), granted);
        let rules = [
            literal(path.join("/"), Effect::Grant, Permission::Write),
            literal(deeper.join("/"), Effect::Cap, granted),
        ];
        prop_assert_eq!(decide(&rules, &deeper), granted);
    }

    #[test]
    fn layering_is_associative(a in fragment(), b in fragment(), c in fragment()) {
        let left = a.clone().merge(b.clone()).merge(c.clone());
        let right = a.merge(b.merge(c));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn the_empty_layer_changes_nothing(a in fragment()) {
        prop_assert_eq!(a.clone().merge(Fragment::default()), a.clone());
        prop_assert_eq!(Fragment::default().merge(a.clone()), a);
    }

    #[test]
    fn what_only_narrows_never_widens(layer in fragment(), path in path()) {
        if layer.narrowing_only().is_ok() {
            let base = profiles::workspace_fragment();
            let before = base.clone().finish().unwrap();
            let after = base.merge(layer).finish().unwrap();
            let path = PathBuf::from(path.join("/"));
            prop_assert!(
                after.decide_path(&places(), &path).permission
                    <= before.decide_path(&places(), &path).permission
            );
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Fragment::parse("p.toml", &bytes);
        let _ = ringfence_policy::import::load("p.json", &bytes);
    }

    #[test]
    fn no_pattern_panics(text in "[ab*?/{},!()\\[\\]\\\\.~-]{0,24}", path in "[ab/.]{0,24}") {
        if let Ok((base, pattern)) = ringfence_policy::pattern::parse_native(&text) {
            let rule = Rule {
                base, pattern, kind: Kind::Path, effect: Effect::Grant,
                permission: Permission::Read, priority: 0, id: None, origin: Origin::default(),
            };
            let policy = with(vec![rule]);
            let compiled_places = places();
            let compiled = CompiledRules::new(&policy, &compiled_places);
            compiled.decide(&PathBuf::from(&path));
            compiled.glob_rules();
            compiled.literal_points();
        }
    }
}
