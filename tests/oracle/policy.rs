//! The compiled rules against the law, on random rule sets and paths.
//!
//! `RINGFENCE_ORACLE_PAIRS` sets how many pairs of rule set and path are tried,
//! `RINGFENCE_ORACLE_SEED` where the numbers begin.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ringfence_policy as policy;
use serde_json::{Value, json};

use crate::law::{Kind, Law, PRESETS, Permission, Places, Rule};
use crate::random::{Random, number};

/// Pairs in every test run; the long run sets the variable.
const PAIRS: u64 = 20_000;
const PATHS_PER_SET: usize = 20;

const PLACES: Places = Places { workspace: "/home/u/ws", home: "/home/u" };

fn places() -> policy::Places {
    policy::Places { workspace: PLACES.workspace.into(), home: PLACES.home.into() }
}

/// Names that people and tools use, names that look alike, and names that nobody expects.
const NAMES: [&str; 26] = [
    "a",
    "b",
    "ab",
    "A",
    "aB",
    "c",
    ".env",
    ".env.local",
    ".ENV",
    "secrets",
    "Secrets",
    "x.key",
    ".key",
    "credentials",
    ".git",
    "output",
    "a b",
    "-rf",
    "é",
    "éa",
    "a\nb",
    "*",
    "[a]",
    "{a,b}",
    "!(a)",
    "\\",
];

/// Pieces of names, as text and as the bytes that match it.
const PIECES: [&str; 10] = ["a", "b", "ab", ".", "é", "env", ".key", "-", "_", "A"];

/// Escapes what the grammar reads as more than itself.
fn escaped(name: &str) -> String {
    let special =
        |c| matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | ',' | '!' | '(' | '|' | ')' | '\\');
    name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// A component of a pattern and a name that it matches, mostly.
fn component(r: &mut Random, native: bool) -> (String, Vec<u8>) {
    if r.below(2) == 0 {
        let name = *r.pick(&NAMES);
        return (escaped(name), name.as_bytes().to_vec());
    }
    let (mut text, mut sample) = (String::new(), Vec::new());
    let mut star = false;
    for _ in 0..=r.below(4) {
        let was_star = std::mem::take(&mut star);
        match r.below(if native { 10 } else { 7 }) {
            // Two stars are another thing; ordered patterns may have them anywhere.
            0..3 if !was_star || !native => {
                text.push('*');
                star = true;
                if r.one_in(2) {
                    sample.extend_from_slice(r.pick(&PIECES).as_bytes());
                }
            }
            3 => {
                text.push('?');
                sample.extend_from_slice(r.pick(&["a", "é", "."]).as_bytes());
            }
            4 => {
                let (class, inside) = *r.pick(&[
                    ("[ab]", "b"),
                    ("[a-c]", "c"),
                    ("[^a]", "b"),
                    ("[^é]", "a"),
                    ("[a-]", "-"),
                    ("[]a]", "]"),
                    ("[\\]-]", "]"),
                    ("[.-_]", "A"),
                    ("[é-ü]", "é"),
                ]);
                let text_class =
                    if native && r.one_in(2) { class.replace('^', "!") } else { class.to_owned() };
                text.push_str(&text_class);
                sample.extend_from_slice(inside.as_bytes());
            }
            7 => {
                let first = *r.pick(&PIECES);
                let second = *r.pick(&["", "b", "local"]);
                text.push_str(&format!("!({first}|{second})"));
                sample.extend_from_slice(r.pick(&PIECES).as_bytes());
            }
            8 | 9 => {
                let (one, two) = (*r.pick(&PIECES), *r.pick(&["", "b", "x*", "c/d", "{a,b}c"]));
                // A star that ends a brace must not meet another.
                if two.ends_with('*') || was_star {
                    text.push_str(one);
                    sample.extend_from_slice(one.as_bytes());
                } else {
                    text.push_str(&format!("{{{one},{two}}}"));
                    let two = if two.contains('{') { "ac" } else { two };
                    sample.extend_from_slice(r.pick(&[one, two]).as_bytes());
                }
            }
            _ => {
                let piece = *r.pick(&PIECES);
                text.push_str(piece);
                sample.extend_from_slice(piece.as_bytes());
            }
        }
    }
    (text, sample)
}

/// A pattern and a path that it matches, mostly.
fn pattern(r: &mut Random, kind: Kind) -> (String, PathBuf) {
    let native = !kind.is_ordered();
    let (mut text, mut path) = match r.below(8) {
        0 if native => ("~/".to_owned(), b"/home/u/".to_vec()),
        1 if native => ("/".to_owned(), b"/".to_vec()),
        2 if native => ("/home/u/ws/".to_owned(), b"/home/u/ws/".to_vec()),
        3 => ("./".to_owned(), b"/home/u/ws/".to_vec()),
        4 if !native => ("/".to_owned(), b"/home/u/ws/".to_vec()),
        _ => (String::new(), b"/home/u/ws/".to_vec()),
    };
    let count = r.below(5);
    for i in 0..count {
        if i > 0 {
            text.push('/');
            path.push(b'/');
        }
        if r.one_in(5) {
            text.push_str("**");
            for _ in 0..r.below(3) {
                path.extend_from_slice(r.pick(&NAMES).as_bytes());
                path.push(b'/');
            }
            // An empty name is no name.
            path.extend_from_slice(b".");
        } else if matches!(kind, Kind::Directory | Kind::File) {
            let name = r.pick(&["a", "b", "ab", ".env", "secrets", "output", "é"]).to_owned();
            text.push_str(name);
            path.extend_from_slice(name.as_bytes());
        } else {
            let (piece, sample) = component(r, native);
            text.push_str(&piece);
            path.extend_from_slice(&sample);
        }
    }
    let end: &&str = r.pick(&["", "", "", "", "/", "/**", "/**/*", "/."]);
    text.push_str(end);
    if text.is_empty() {
        text.push('.');
    }
    (text, PathBuf::from(OsStr::from_bytes(&path)))
}

/// Text that is hardly a pattern.
fn noise(r: &mut Random) -> String {
    const MARKS: [char; 20] = [
        'a', 'b', 'é', '*', '*', '?', '[', ']', '{', '}', ',', '!', '(', ')', '|', '\\', '/', '-',
        '.', '^',
    ];
    (0..=r.below(9)).map(|_| *r.pick(&MARKS)).collect()
}

fn rule(r: &mut Random) -> (Rule, PathBuf) {
    let kind = *r.pick(&[
        Kind::Glob,
        Kind::Glob,
        Kind::Directory,
        Kind::File,
        Kind::Grant,
        Kind::Grant,
        Kind::Grant,
        Kind::Cap,
        Kind::Cap,
    ]);
    let permission = match kind {
        Kind::Grant => *r.pick(&[Permission::View, Permission::Read, Permission::Write]),
        Kind::Cap => *r.pick(&[Permission::None, Permission::None, Permission::Read]),
        _ => *r.pick(&Permission::ALL),
    };
    let priority =
        if kind.is_ordered() { *r.pick(&[0, 0, 0, 1, 10, -5, 100, 1_000_001]) } else { 0 };
    let (pattern, path) = pattern(r, kind);
    (Rule { pattern, kind, permission, priority }, path)
}

/// A path near one that a rule was made for.
fn path(r: &mut Random, samples: &[PathBuf]) -> PathBuf {
    let mut bytes = if samples.is_empty() || r.one_in(5) {
        let mut path = r.pick(&["/home/u/ws", "/home/u", "", "."]).as_bytes().to_vec();
        for _ in 0..r.below(5) {
            path.push(b'/');
            path.extend_from_slice(r.pick(&NAMES).as_bytes());
        }
        path
    } else {
        r.pick(samples).as_os_str().as_bytes().to_vec()
    };
    for _ in 0..r.below(3) {
        match r.below(5) {
            0 => {
                bytes.push(b'/');
                bytes.extend_from_slice(r.pick(&NAMES).as_bytes());
            }
            1 => bytes.truncate(bytes.iter().rposition(|b| *b == b'/').unwrap_or(0)),
            2 if !bytes.is_empty() => {
                let at = r.below(bytes.len());
                bytes[at] = *r.pick(b"ab/.\xff\xc3A");
            }
            3 => {
                bytes.extend_from_slice(r.pick::<&[u8]>(&[b"\xff", b"\xc3", b"a", "é".as_bytes()]));
            }
            _ => bytes.extend_from_slice(b"/../b"),
        }
    }
    if bytes.is_empty() {
        bytes.push(b'/');
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// The policy file that says these rules and nothing else.
pub fn file(rules: &[Rule], rest: &Value) -> Vec<u8> {
    let list = |kind: Kind, permission: Permission| -> Vec<&str> {
        let same = rules.iter().filter(|r| r.kind == kind && r.permission == permission);
        same.map(|r| r.pattern.as_str()).collect()
    };
    let ordered: Vec<Value> = rules
        .iter()
        .filter(|r| r.kind.is_ordered())
        .map(|r| {
            json!({
                "pattern": r.pattern,
                "permission": r.permission.word(),
                "priority": r.priority,
                "type": match r.kind { Kind::File => "file", Kind::Directory => "directory", _ => "glob" },
            })
        })
        .collect();
    let mut text = json!({
        "files": {
            "write": list(Kind::Grant, Permission::Write),
            "read": list(Kind::Grant, Permission::Read),
            "view": list(Kind::Grant, Permission::View),
            "deny": list(Kind::Cap, Permission::None),
            "protect": list(Kind::Cap, Permission::Read),
            "rules": ordered,
        },
    });
    if let (Value::Object(text), Value::Object(rest)) = (&mut text, rest) {
        for (key, value) in rest {
            match (text.get_mut(key), value) {
                (Some(Value::Object(old)), Value::Object(new)) => old.extend(new.clone()),
                _ => {
                    text.insert(key.clone(), value.clone());
                }
            }
        }
    }
    serde_json::to_vec(&text).unwrap()
}

fn bare() -> Value {
    json!({
        "lift": ["guard", "secret", "identity"],
        "files": { "system": false, "git": "open" },
    })
}

/// Over the profile that `rest` extends, if any.
fn compiled(rules: &[Rule], rest: &Value) -> Result<policy::Policy, String> {
    let below = rest["extends"].as_str().and_then(policy::profiles::fragment);
    policy::Fragment::parse("p.jsonc", &file(rules, rest))
        .and_then(|own| below.unwrap_or_default().merge(own).finish())
        .map_err(|e| e.to_string())
}

pub fn same(permission: policy::Permission) -> Permission {
    match permission {
        policy::Permission::None => Permission::None,
        policy::Permission::View => Permission::View,
        policy::Permission::Read => Permission::Read,
        policy::Permission::Write => Permission::Write,
    }
}

/// What the two say of one rule set; a description of the first path on which they disagree.
fn disagreement(
    rules: &[Rule],
    judged: &[Rule],
    rest: &Value,
    paths: &[PathBuf],
) -> Option<String> {
    let law = Law::new(judged, &PLACES);
    let policy = compiled(rules, rest);
    match (law, policy) {
        (Err(_), Err(_)) => None,
        (Err((index, malformed)), Ok(_)) => {
            Some(format!("accepted, but malformed: {:?}: {}", judged[index], malformed.0))
        }
        (Ok(_), Err(message)) => Some(format!("refused: {message}")),
        (Ok(law), Ok(policy)) => {
            let compiled = policy::CompiledRules::new(&policy, &places());
            paths.iter().find_map(|path| {
                let found = same(compiled.decide(path).permission);
                let expected = law.decide(path);
                if found != expected {
                    return Some(format!(
                        "{path:?}: should be {expected:?}, is {found:?}\n{}",
                        compiled.explain(path)
                    ));
                }
                let name = path.file_name()?;
                (law.wildcard_matches_exactly(path) && !compiled.name_may_matter(name))
                    .then(|| format!("{path:?}: matched, but a walk would not ask about its name"))
            })
        }
    }
}

/// Leaves out rules as long as the two go on disagreeing.
fn shrunk(mut rules: Vec<Rule>, rest: &Value, paths: &[PathBuf]) -> (Vec<Rule>, String) {
    let mut why = disagreement(&rules, &rules, rest, paths).unwrap();
    let mut at = 0;
    while at < rules.len() {
        let mut fewer = rules.clone();
        fewer.remove(at);
        match disagreement(&fewer, &fewer, rest, paths) {
            Some(still) => (rules, why) = (fewer, still),
            None => at += 1,
        }
    }
    (rules, why)
}

/// Tries one seed.
fn try_seed(seed: u64) {
    let mut r = Random::new(seed);
    let mut rules = Vec::new();
    let mut samples = Vec::new();
    for _ in 0..r.below(7) {
        let (rule, sample) = rule(&mut r);
        rules.push(rule);
        samples.push(sample);
    }
    let malformed = r.one_in(10);
    if malformed {
        let (mut one, _) = rule(&mut r);
        one.pattern = noise(&mut r);
        samples.push(PathBuf::from(&one.pattern));
        rules.push(one);
    }
    let paths: Vec<PathBuf> = (0..PATHS_PER_SET).map(|_| path(&mut r, &samples)).collect();
    if disagreement(&rules, &rules, &bare(), &paths).is_some() {
        let (rules, why) = shrunk(rules, &bare(), &paths);
        panic!("seed {seed}: {rules:#?}\n{why}");
    }
}

#[test]
fn decisions_follow_the_law() {
    let pairs = number("RINGFENCE_ORACLE_PAIRS", PAIRS);
    let first = number("RINGFENCE_ORACLE_SEED", 1);
    let sets = pairs.div_ceil(PATHS_PER_SET as u64);
    println!("{sets} rule sets from seed {first}, {PATHS_PER_SET} paths each");
    for seed in first..first + sets {
        try_seed(seed);
    }
}

/// Rules of a preset, and the built-in ones that stay in it, as the law reads them.
fn preset(name: &str) -> Vec<Rule> {
    let own = PRESETS.iter().find(|(n, _)| *n == name).unwrap().1;
    let mut rules: Vec<Rule> = own
        .iter()
        .map(|r| Rule {
            pattern: r.pattern.to_owned(),
            kind: Kind::Glob,
            permission: r.permission,
            priority: r.priority,
        })
        .collect();
    for built_in in policy::builtin_rules() {
        if matches!(built_in.id, "secret.env" | "secret.keys") {
            continue;
        }
        rules.extend(built_in.patterns.iter().map(|pattern| Rule {
            pattern: (*pattern).to_owned(),
            kind: match built_in.effect {
                policy::Effect::Cap => Kind::Cap,
                _ => Kind::Grant,
            },
            permission: same(built_in.permission),
            priority: built_in.priority,
        }));
    }
    rules
}

#[test]
fn presets_follow_the_protocol() {
    let rounds = number("RINGFENCE_ORACLE_PAIRS", PAIRS) / 100;
    for (name, _) in PRESETS {
        let rules = preset(name);
        let law = Law::new(&rules, &PLACES).unwrap();
        let policy = compiled(&[], &json!({ "extends": name })).unwrap();
        let compiled = policy::CompiledRules::new(&policy, &places());
        let mut r = Random::new(7);
        let mut samples: Vec<PathBuf> = [
            ".env",
            "a/.env.local",
            "secrets",
            "secrets/k",
            "a/b/secrets/c/d",
            "x.key",
            "a/b.pem",
            "credentials.json",
            ".git",
            "a/.git/hooks/x",
            ".git/config",
            "output",
            "output/.env",
            "output/a/b",
            "tmp/x",
            "a/output",
            "outputx",
            ".vscode/x",
            ".claude/settings.json",
            "ringfence.toml",
            ".",
            "/home/u/.ssh/id",
            "/etc/shadow",
            "/usr/bin/env",
            "/",
        ]
        .iter()
        .map(PathBuf::from)
        .collect();
        for _ in 0..rounds {
            let path = path(&mut r, &samples);
            let (found, expected) = (same(compiled.decide(&path).permission), law.decide(&path));
            assert_eq!(found, expected, "{name}: {path:?}\n{}", compiled.explain(&path));
            if samples.len() < 200 {
                samples.push(path);
            }
        }
    }
}

#[test]
fn a_deny_added_to_a_preset_denies() {
    let rounds = number("RINGFENCE_ORACLE_PAIRS", PAIRS) / 200;
    let mut r = Random::new(11);
    for round in 0..rounds {
        let name = r.pick(&PRESETS).0;
        let (mut extra, sample) = rule(&mut r);
        if extra.kind.is_ordered() {
            continue;
        }
        extra.priority = 0;
        let mut judged = preset(name);
        judged.push(extra.clone());
        let paths: Vec<PathBuf> =
            (0..PATHS_PER_SET).map(|_| path(&mut r, std::slice::from_ref(&sample))).collect();
        let rest = json!({ "extends": name });
        if let Some(why) = disagreement(std::slice::from_ref(&extra), &judged, &rest, &paths) {
            panic!("round {round}: {name} and {extra:?}\n{why}");
        }
    }
}

/// What the oracle found once. Each seed failed before it was mended.
#[test]
fn seeds_that_failed() {
    for seed in FAILED {
        try_seed(seed);
    }
}

const FAILED: [u64; 6] = [
    224,  // a name with a bracket, in a rule for a directory
    1093, // a backslash before a slash (the law took it)
    2117, // `*[!é]` matched half of a character
    4054, 10776, // so did `!(...)`
    28388, // two stars in a class were taken for `**`
];

/// The oracle can fail: a law with one sign changed is told apart within a few hundred sets.
#[test]
fn a_law_that_is_wrong_is_noticed() {
    let wrong: [(&str, fn(&mut Rule)); 5] = [
        ("denies protect", |r| {
            if r.kind == Kind::Cap {
                r.permission = Permission::Read;
            }
        }),
        ("no priorities", |r| r.priority = 0),
        ("directories are files", |r| {
            if r.kind == Kind::Directory {
                r.kind = Kind::File;
            }
        }),
        ("a negated class is a class", |r| r.pattern = r.pattern.replace("[^", "[")),
        ("two stars are one", |r| r.pattern = r.pattern.replace("**", "*")),
    ];
    for (what, change) in wrong {
        let noticed = (1..2000).any(|seed| {
            let mut r = Random::new(seed);
            let (rules, samples): (Vec<Rule>, Vec<PathBuf>) = (0..4).map(|_| rule(&mut r)).unzip();
            let paths: Vec<PathBuf> = (0..PATHS_PER_SET).map(|_| path(&mut r, &samples)).collect();
            let mut judged = rules.clone();
            judged.iter_mut().for_each(change);
            Law::new(&judged, &PLACES).is_ok()
                && compiled(&rules, &bare()).is_ok()
                && disagreement(&rules, &judged, &bare(), &paths).is_some()
        });
        assert!(noticed, "{what}: nobody noticed");
    }
}

/// What the law itself must say, from the protocol's description of its own mistakes and from what
/// people expect of such patterns.
#[test]
fn the_law_says_what_people_expect() {
    let say = |pattern: &str, kind: Kind, path: &[u8]| {
        let rule =
            Rule { pattern: pattern.to_owned(), kind, permission: Permission::Read, priority: 0 };
        let law = Law::new(&[rule], &PLACES).unwrap();
        law.decide(Path::new(OsStr::from_bytes(path))) == Permission::Read
    };
    for (pattern, matched, not) in [
        ("**/secrets/**", &["secrets/x", "a/b/secrets/x", "secrets"][..], &["secretsx", "a"][..]),
        ("/x/**/t/n", &["x/t/n", "x/1/2/t/n"], &["x/t", "x/n"]),
        ("/src/**.py", &["src/a.py", "src/a/b.py"], &["src/a.pyc"]),
        ("**/*", &["a", "a/b", "."], &[]),
        ("dir/**", &["dir", "dir/a"], &["dirx"]),
        ("*.md", &["a.md"], &["d/a.md"]),
        ("[^a]", &["b", "é"], &["a", "bb"]),
    ] {
        for path in matched {
            assert!(say(pattern, Kind::Glob, path.as_bytes()), "{pattern} {path}");
        }
        for path in not {
            assert!(!say(pattern, Kind::Glob, path.as_bytes()), "{pattern} {path}");
        }
    }
    assert!(say("{a,b/c}*", Kind::Grant, b"axe") && say("{a,b/c}*", Kind::Grant, b"b/cd/e"));
    assert!(
        say("*[!\u{e9}]", Kind::Grant, b"a") && !say("*[!\u{e9}]", Kind::Grant, "é".as_bytes())
    );
    assert!(say("?", Kind::Grant, b"\xff") && !say("?", Kind::Grant, b"\xff\xff"));
    assert!(say("[!a]", Kind::Grant, b"\xff") && !say("[a-z]", Kind::Grant, b"\xff"));
}
