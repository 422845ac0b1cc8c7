use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use Permission::{None as Hidden, Read, View, Write};
use ringfence_policy::net::{Name, Rules};
use ringfence_policy::{CompiledRules, Fragment, Permission, Places, Policy, Rule, profiles};

fn places() -> Places {
    Places { workspace: PathBuf::from("/home/u/ws"), home: PathBuf::from("/home/u") }
}

fn policy(text: &str) -> Policy {
    Fragment::parse("p.toml", text.as_bytes()).unwrap().finish().unwrap()
}

fn perm(policy: &Policy, path: &str) -> Permission {
    policy.decide_path(&places(), Path::new(path)).permission
}

#[track_caller]
fn check(policy: &Policy, table: &[(&str, Permission)]) {
    for (path, expected) in table {
        let explanation = policy.explain_path(&places(), Path::new(path));
        assert_eq!(explanation.permission, *expected, "{explanation}");
    }
}

#[test]
fn deny_by_default() {
    check(&policy(""), &[("x", Hidden), ("/", Hidden), ("/home/u/x", Hidden), ("/usr/bin", Read)]);
    check(&policy("[files]\nsystem = false"), &[("/usr/bin", Hidden)]);
}

#[test]
fn the_default_profile() {
    let policy = profiles::workspace().unwrap();
    check(
        &policy,
        &[
            (".", Write),
            ("src/main.rs", Write),
            ("/home/u/ws/a/../b", Write),
            ("..", Hidden),
            ("/home/u/.bashrc", Hidden),
            ("/home/u/.ssh/id_rsa", Hidden),
            ("/home/u/.gitconfig", Read),
            ("/home/u/.config/git/ignore", Read),
            ("/home/u/.config/git/credentials", Hidden),
            ("/usr/lib/x.so", Read),
            ("/etc/passwd", Read),
            ("/etc/shadow", Hidden),
            ("/etc/sudoers.d/x", Hidden),
            ("/var/lib", Hidden),
            (".env", Hidden),
            ("a/b/.env", Hidden),
            (".env.local", Hidden),
            (".env.production.local", Hidden),
            (".env.example", Write),
            ("a/.env.sample", Write),
            (".env.template", Write),
            (".envrc", Read),
            ("tls/server.key", Hidden),
            ("server.pem", Hidden),
            (".venv/lib/python3/site-packages/certifi/cacert.pem", Write),
            ("a/id_ed25519", Hidden),
            ("a/id_ed25519.pub", Write),
            (".vscode/settings.json", Read),
            (".claude/settings.json", Read),
            ("sub/.vscode/settings.json", Write),
            ("CLAUDE.md", Write),
            (".gitmodules", Write),
            ("x.code-workspace", Read),
            ("ringfence.toml", Read),
            (".git/hooks/pre-commit", Read),
            (".git/config", Read),
            (".git/index", Write),
            ("vendor/lib/.git/hooks", Read),
            (".git/modules/a/b/hooks/x", Read),
            (".git/modules/a/b/config", Read),
            (".git/modules/a/b/objects/x", Write),
        ],
    );
}

#[test]
fn lifted_guards_let_go() {
    let p = policy("lift = [\"guard.editors\"]\n[files]\nwrite = [\".\"]");
    check(&p, &[(".vscode/x", Write), (".claude/x", Read)]);
    let p = policy("[files]\nwrite = [\".\", \".vscode\", \".vscode/settings.json\"]");
    check(&p, &[(".vscode/settings.json", Read)]);
}

#[test]
fn deny_inside_allow_inside_deny() {
    let p = policy(
        "[files]\nwrite = [\"~\", \"~/.ssh/config\"]\nread = [\"data\"]\ndeny = [\"data/private\"]\n\
         protect = [\"Makefile\"]\nview = [\"data/private/index\"]",
    );
    check(
        &p,
        &[
            ("/home/u/x", Write),
            ("/home/u/.ssh/id", Hidden),
            ("/home/u/.ssh/config", Write),
            ("/home/u/.bashrc", Read),
            ("data/x", Write),
            ("data/private/x", Hidden),
            ("data/private/index", View),
            ("Makefile", Read),
            ("sub/Makefile", Write),
        ],
    );
}

#[test]
fn equal_specificity_denies() {
    check(&policy("[files]\nwrite = [\"a\"]\ndeny = [\"a\"]"), &[("a", Hidden), ("a/b", Hidden)]);
    check(
        &policy("[files]\nwrite = [\"a/*.x\"]\ndeny = [\"a/b*\"]"),
        &[("a/b.x", Hidden), ("a/c.x", Write)],
    );
}

#[test]
fn a_wildcard_grant_does_not_undo_a_named_deny() {
    let p = policy("[files]\nwrite = [\"**/*.py\", \"**/*\"]\ndeny = [\"secrets\"]");
    check(&p, &[("a.py", Write), ("secrets/a.py", Hidden), ("secrets/deep/a.py", Hidden)]);
    // A name inside does.
    let p = policy("[files]\nwrite = [\".\", \"secrets/*/public\"]\ndeny = [\"secrets\"]");
    check(&p, &[("secrets/a/public/x", Write), ("secrets/a/x", Hidden)]);
}

#[test]
fn subtree_spellings_are_one() {
    for spelling in
        ["secrets", "secrets/", "./secrets", "secrets/**", "secrets/**/*", "x/../secrets"]
    {
        let p = policy(&format!("[files]\nwrite = [\".\"]\ndeny = [\"{spelling}\"]"));
        check(&p, &[("secrets", Hidden), ("secrets/a/b", Hidden), ("secretsx", Write)]);
    }
    for spelling in [".", "./", "**", "**/*", "./**"] {
        let p = policy(&format!("[files]\nread = [\"{spelling}\"]"));
        check(&p, &[(".", Read), ("a/b", Read), ("..", Hidden)]);
    }
    check(&policy("[files]\nread = [\"/\"]"), &[("/", Read), ("/x/y", Read)]);
    check(&policy("[files]\nread = [\"~\"]"), &[("/home/u", Read), ("/home", Hidden)]);
}

#[test]
fn native_globs() {
    let p = policy(
        "[files]\nread = [\"*.txt\", \"src/**/*.rs\", \"a?c\", \"x[0-9]\", \"y[!0-9]\", \
         \"{one,two/three}\", \"lit\\\\*\", \"pre!(fix|pare)\"]",
    );
    check(
        &p,
        &[
            ("a.txt", Read),
            ("d/a.txt", Hidden),
            ("src/a.rs", Read),
            ("src/a/b/c.rs", Read),
            ("src/a/b/c.rb", Hidden),
            ("abc", Read),
            ("aßc", Read),
            ("abbc", Hidden),
            ("x7/below", Read),
            ("xa", Hidden),
            ("ya", Read),
            ("y1", Hidden),
            ("one", Read),
            ("two", Hidden),
            ("two/three/four", Read),
            ("lit*", Read),
            ("lita", Hidden),
            ("prefix", Hidden),
            ("prefixed", Read),
            ("prelude", Read),
        ],
    );
}

#[test]
fn exceptions_are_grants_and_not_negations() {
    let text = "[files]\nwrite = [\"src\"]\nread = [\"test.key\"]\ndeny = [\"**/*.key\"]";
    check(&policy(text), &[("test.key", Read), ("a.key", Hidden), ("src/a.key", Hidden)]);
    let wrong = Fragment::parse("p.toml", b"[files]\ndeny = [\"*.key\", \"!test.key\"]");
    let said = wrong.and_then(Fragment::finish).unwrap_err().to_string();
    assert!(said.contains("takes nothing back"), "{said}");
    check(&policy("[files]\nread = [\"./!a\", \"!(b)\"]"), &[("!a", Read), ("b", Hidden)]);
}

#[test]
fn names_that_are_not_utf8() {
    let p = policy("[files]\nread = [\"d\"]\ndeny = [\"d/*.key\"]");
    let name = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let at = |bytes: &[u8]| p.decide_path(&places(), &name(bytes)).permission;
    assert_eq!(at(b"d/\xff\xfe"), Read);
    assert_eq!(at(b"d/\xff.key"), Hidden);
    assert_eq!(at(b"d/\xff.key/below"), Hidden);
    let p = policy("[files]\nread = [\"d/?\"]");
    assert_eq!(p.decide_path(&places(), &name(b"d/\xff")).permission, Read);
    assert_eq!(p.decide_path(&places(), &name(b"d/\xff\xff")).permission, Hidden);
}

#[test]
fn agent_safe_means_what_it_says() {
    let p = profiles::policy("agent-safe").unwrap();
    check(
        &p,
        &[
            (".", Read),
            ("README.md", Read),
            ("src/a.py", Read),
            ("output", Write),
            ("output/a/b", Write),
            ("outputx", Read),
            ("tmp/x", Write),
            ("a/output/x", Read),
            (".env", Hidden),
            ("a/.envrc", Hidden),
            ("output/.env.local", Hidden),
            // Hidden in the reference only where exactly one directory stands before.
            ("secrets/x", Hidden),
            ("a/b/secrets/x", Hidden),
            ("a/b/secrets/c/d", Hidden),
            ("secrets", Hidden),
            ("a/x.key", Hidden),
            ("credentials.json", Hidden),
            (".git/config", Hidden),
            ("a/.git/HEAD", Hidden),
            // Guards stay.
            (".vscode/x", Read),
            ("/usr/bin/env", Read),
            ("/home/u/.ssh", Hidden),
        ],
    );
    check(&profiles::policy("view-only").unwrap(), &[(".", View), ("a/b", View)]);
    check(&profiles::policy("full-access").unwrap(), &[("a", Write), (".env", Write)]);
    check(&profiles::policy("read-only").unwrap(), &[("a/b", Read)]);
    check(&profiles::policy("development").unwrap(), &[("a/b", Write), (".env", Hidden)]);
}

fn ordered(rules: &[(&str, &str, i32, &str)]) -> Policy {
    use std::fmt::Write as _;
    let mut text = String::from("lift = [\"secret\", \"guard\", \"identity\"]\n");
    for (pattern, permission, priority, kind) in rules {
        write!(
            text,
            "[[files.rules]]\npattern = \"{pattern}\"\npermission = \"{permission}\"\npriority = {priority}\ntype = \"{kind}\"\n"
        )
        .unwrap();
    }
    policy(&text)
}

#[test]
fn ordered_rules() {
    // Kind beats specificity, priority beats kind.
    let p = ordered(&[
        ("**/*", "read", 0, "glob"),
        ("/docs/", "write", 0, "directory"),
        ("/docs/a.md", "none", 0, "file"),
        ("/docs/b*", "view", 1, "glob"),
    ]);
    check(
        &p,
        &[
            ("x", Read),
            ("docs", Write),
            ("docs/c", Write),
            ("docs/a.md", Hidden),
            ("docs/b", View),
            ("docsx", Read),
        ],
    );
    // No matching rule is none; the root is visible; no inheritance, no implicit ancestors.
    let p = ordered(&[("/a/*.py", "read", 0, "glob"), ("/b", "read", 0, "glob")]);
    check(
        &p,
        &[
            (".", View),
            ("a", Hidden),
            ("a/x.py", Read),
            ("a/b/x.py", Hidden),
            ("b", Read),
            ("b/below", Hidden),
        ],
    );
    // `**` in any place.
    let p = ordered(&[
        ("/src/**/*.py", "read", 0, "glob"),
        ("/lib/**.so", "read", 0, "glob"),
        ("/x/**/tail/name", "read", 0, "glob"),
        ("pre**post", "read", 0, "glob"),
    ]);
    check(
        &p,
        &[
            ("src/a.py", Read),
            ("src/a/b/c.py", Read),
            ("src/a/b/c.pyc", Hidden),
            ("lib/a.so", Read),
            ("lib/a/b.so", Read),
            ("lib/a/b.sox", Hidden),
            ("x/tail/name", Read),
            ("x/1/2/tail/name", Read),
            ("x/1/tail", Hidden),
            ("prepost", Read),
            ("pre/a/b/xpost", Read),
            ("pre/a/b", Hidden),
        ],
    );
    // At an equal key the lower permission wins.
    let p = ordered(&[("/a*", "write", 0, "glob"), ("/*a", "view", 0, "glob")]);
    check(&p, &[("aa", View)]);
}

#[test]
fn ordered_specificity_as_the_protocol_scores() {
    use ringfence_policy::pattern::ordered_specificity as score;
    for (pattern, expected) in [
        ("/config.yaml", 350),
        ("/docs/", 350),
        ("README.md", 250),
        ("/output/**", 158),
        ("/src/*.py", 150),
        ("docs/**", 55),
        ("*.md", 50),
        ("**/*", 0),
        ("**/.env*", 0),
        ("**/secrets/**", 0),
    ] {
        assert_eq!(score(pattern), expected, "{pattern}");
    }
}

#[test]
fn native_rules_adjust_a_preset() {
    let p = profiles::fragment("agent-safe")
        .unwrap()
        .merge(
            Fragment::parse(
                "p.toml",
                b"[files]\nwrite = [\"src\"]\ndeny = [\"output/private\", \"notes\"]",
            )
            .unwrap(),
        )
        .finish()
        .unwrap();
    check(
        &p,
        &[
            ("src/a", Write),
            ("src/.env", Hidden),
            ("notes/x", Hidden),
            // The preset's rule has priority 10; a deny binds all the same.
            ("output/private/x", Hidden),
            ("output/x", Write),
        ],
    );
}

#[test]
fn what_the_lowering_needs() {
    let p = profiles::fragment("agent-safe")
        .unwrap()
        .merge(
            Fragment::parse(
                "p.toml",
                b"lift = [\"secret\", \"guard\"]\n[files]\nread = [\"{a,b/c}\", \"/x\", \"src/*/gen\", \"~/t/*\"]\n\
                  [[files.rules]]\npattern = \"/d/\"\npermission = \"view\"\ntype = \"directory\"\n\
                  [[files.rules]]\npattern = \"f\"\npermission = \"view\"\ntype = \"file\"",
            )
            .unwrap(),
        )
        .finish()
        .unwrap();
    let compiled = CompiledRules::new(&p, &places());
    let points: Vec<(String, bool)> = compiled
        .literal_points()
        .iter()
        .filter(|p| p.rule.id.is_none())
        .map(|p| (p.path.display().to_string(), p.subtree))
        .collect();
    assert_eq!(
        points,
        [
            ("/home/u/ws/a".to_owned(), true),
            ("/home/u/ws/b/c".to_owned(), true),
            ("/x".to_owned(), true),
            ("/home/u/ws/d".to_owned(), true),
            ("/home/u/ws/f".to_owned(), false),
        ]
    );
    let subtrees: Vec<(String, bool)> = compiled
        .subtree_only_globs()
        .iter()
        .map(|p| (p.path.display().to_string(), p.subtree))
        .collect();
    assert_eq!(
        subtrees,
        [
            ("/home/u/ws".to_owned(), true),
            ("/home/u/ws/output".to_owned(), true),
            ("/home/u/ws/tmp".to_owned(), true),
        ]
    );
    let globs: Vec<(String, String, Option<usize>)> = compiled
        .glob_rules()
        .iter()
        .map(|g| (g.rule.written(), g.base.display().to_string(), g.max_depth()))
        .collect();
    let walk = |p: &str| (p.to_owned(), "/home/u/ws".to_owned(), None);
    assert_eq!(
        globs,
        [
            ("src/*/gen".to_owned(), "/home/u/ws/src".to_owned(), Some(2)),
            ("~/t/*".to_owned(), "/home/u/t".to_owned(), Some(1)),
            walk("**/.env*"),
            walk("**/secrets/**"),
            walk("**/*.key"),
            walk("**/*.pem"),
            walk("**/credentials*"),
            walk("**/.git/**"),
        ]
    );
    let rules = compiled.glob_rules();
    assert!(rules[0].matches(Path::new("/home/u/ws/src/x/gen")));
    assert!(!rules[0].matches(Path::new("/home/u/ws/src/x/gen/below")));
    // `**/x/**` can end in any name.
    assert!(compiled.name_may_matter(OsStr::new("anything")));
    let p = profiles::workspace().unwrap();
    let compiled = CompiledRules::new(&p, &places());
    assert!(compiled.name_may_matter(OsStr::new(".env.local")));
    assert!(compiled.name_may_matter(OsStr::new("a.key")));
    assert!(compiled.name_may_matter(OsStr::new("id_rsa")));
    assert!(!compiled.name_may_matter(OsStr::new("main.rs")));
    assert!(!compiled.name_may_matter(OsStr::new(".env.example")));
}

#[test]
fn caps_that_bind() {
    let points = |p: &Policy| -> Vec<String> {
        CompiledRules::new(p, &places())
            .binding_points()
            .iter()
            .map(|p| p.path.display().to_string())
            .collect()
    };
    let has = |p: &Policy, path: &str| points(p).iter().any(|p| p == path);
    let p = profiles::workspace().unwrap();
    assert!(has(&p, "/home/u/ws/.vscode"));
    assert!(has(&p, "/etc/shadow"));
    assert!(has(&p, "/home/u/.config/git/credentials"));
    assert!(has(&p, "/home/u/.gitconfig"));
    assert!(!has(&p, "/home/u/.ssh"));
    assert!(!has(&p, "/run/docker.sock"));
    let p = policy("[files]\nread = [\"/\"]");
    assert!(has(&p, "/home/u/.ssh"));
    assert!(has(&p, "/run/docker.sock"));
    let p = policy("[files]\nwrite = [\"~/.claude/hooks/*/x\"]");
    assert!(has(&p, "/home/u/.claude/hooks"));
    assert!(!has(&p, "/home/u/.ssh"));
}

#[test]
fn rules_found_on_the_host_join_in() {
    let p = profiles::workspace().unwrap();
    let extra = [Rule::grant_path(Path::new("/home/u/.cargo/[bin]*"), Read, "toolchains").unwrap()];
    let compiled = CompiledRules::with_extra(&p, &places(), &extra);
    assert_eq!(compiled.decide(Path::new("/home/u/.cargo/[bin]*/rustc")).permission, Read);
    assert_eq!(compiled.decide(Path::new("/home/u/.cargo/b")).permission, Hidden);
    assert_eq!(compiled.decide(Path::new("/home/u/.cargo/credentials.toml")).permission, Hidden);
}

#[test]
fn explanations_read_well() {
    let p = Fragment::parse("/p/ringfence.toml", b"[files]\n\nwrite = [\".\"]\n")
        .unwrap()
        .finish()
        .unwrap();
    let text = p.explain_path(&places(), Path::new("a/.env")).to_string();
    assert_eq!(
        text,
        "/home/u/ws/a/.env: none (invisible)\n\
         decided by: cap none on **/.env (secret.env, built-in)\n\
         reason: env files of the workspace hold credentials; examples stay readable\n\
         applied in this order:\n\
         \x20 grant write on . (/p/ringfence.toml:3) -> write\n\
         \x20 cap none on **/.env (secret.env, built-in) -> none\n"
    );
    assert_eq!(
        p.explain_path(&places(), Path::new("/srv")).to_string(),
        "/srv: none (invisible)\nno rule grants it\n"
    );
    assert_eq!(
        p.explain_path(&places(), Path::new("a")).to_string(),
        "/home/u/ws/a: write (readable and writable)\n\
         decided by: grant write on . (/p/ringfence.toml:3)\n"
    );
    let ssh = p.explain_path(&places(), Path::new("/home/u/.ssh/id")).to_string();
    assert!(ssh.contains("decided by: cap none on ~/.ssh (secret.ssh, built-in)"), "{ssh}");
}

#[test]
fn hosts() {
    let p = policy("");
    assert_eq!(
        p.explain_host("example.com").to_string(),
        "example.com: refused, network none: nothing is reached\n  remedy: allow it with --allow-host \
         example.com:443 or network.allow = [\"example.com:443\"], or everything with --network host"
    );
    let p = policy("[network]\nmode = \"host\"");
    assert!(p.explain_host("example.com:443").allowed);
    let p = policy(
        "[network]\nallow = [\"api.example.com\", \"*.good.example\", \"10.0.0.1\"]\n\
         deny = [\"bad.good.example\"]",
    );
    let allowed = |host: &str| p.explain_host(host).allowed;
    assert!(allowed("api.example.com"));
    assert!(allowed("API.Example.com.:443"));
    assert!(allowed("a.good.example"));
    assert!(allowed("a.b.good.example"));
    assert!(allowed("10.0.0.1:80"));
    for refused in [
        "good.example",
        "notgood.example",
        "bad.good.example",
        "api.example.com.evil.example",
        "xapi.example.com",
        "",
        "evil\0.good.example",
        "a..good.example",
        "api.example.com:99999",
        "10.0.0.2",
        "[::1]:80",
        "::1",
    ] {
        assert!(!allowed(refused), "{refused:?}");
    }
    assert_eq!(
        p.explain_host("bad.good.example:443").to_string(),
        "bad.good.example:443: refused, denied by `bad.good.example` (p.toml:3)\n  remedy: take \
         `bad.good.example` out of network.deny (p.toml:3)"
    );
    assert_eq!(
        p.explain_host("other.example").to_string(),
        "other.example: refused, not in network.allow\n  remedy: allow it with --allow-host \
         other.example:443 or network.allow = [\"other.example:443\"]"
    );
    let p = policy(
        "[network]\nallow = [\"github\", \"*.b.example:8000-8100,443\"]\n\
         inspect = [\"api.github.com\"]\n\
         [[network.rules]]\nhosts = [\"api.github.com\"]\nmethods = [\"get\"]\n\
         [network.secrets.gh]\nhosts = [\"api.github.com\"]\nfrom = \"env:GH_TOKEN\"",
    );
    assert_eq!(
        p.explain_host("API.github.com.").to_string(),
        "api.github.com: allowed, allowed by `github` (p.toml:2)\n  on ports 22, 443 only\n  each \
         address that the name leads to is judged too: special and denied ones are refused\n  \
         inspected by `api.github.com` (p.toml:3), requests are judged by network.rules\n  the \
         header authorization gets the secret `gh` (p.toml:7)"
    );
    assert_eq!(
        p.explain_host("a.b.example:80").to_string(),
        "a.b.example:80: refused, allowed on other ports only, by `*.b.example:8000-8100,443` \
         (p.toml:2)\n  remedy: allow it with --allow-host a.b.example:80 or network.allow = \
         [\"a.b.example:80\"]"
    );
    assert_eq!(
        p.explain_host("0xa9fea9fe:80").to_string(),
        "169.254.169.254:80: refused, a special address that network.allow does not list (metadata \
         service)\n  remedy: allow it with --allow-host 169.254.169.254:80 or network.allow = \
         [\"169.254.169.254:80\"]"
    );
    assert_eq!(
        p.explain_host("npm").notes,
        ["`npm` is a group too; ask for a host of it: registry.npmjs.org, registry.yarnpkg.com, \
             repo.yarnpkg.com"]
    );
    assert_eq!(
        p.explain_host("evil\0.github.com").reason,
        "the host name holds a control, space or NUL byte"
    );
}

#[test]
fn compiling_and_deciding_is_quick() {
    // Generous bounds for a debug build on a shared machine; benches measure properly.
    let p = profiles::workspace().unwrap();
    let start = std::time::Instant::now();
    let compiled = CompiledRules::new(&p, &places());
    for i in 0..2000 {
        compiled.decide(Path::new(&format!("/home/u/ws/a/b/c/d/file{i}.rs")));
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    // Patterns made to blow up a backtracking matcher.
    let evil = policy(&format!(
        "[files]\ndeny = [\"{}b\", \"**/{}\"]",
        "*a".repeat(60),
        "**/a/".repeat(25)
    ));
    let start = std::time::Instant::now();
    evil.decide_path(&places(), Path::new(&"a".repeat(250)));
    evil.decide_path(&places(), Path::new(&"a/".repeat(1000)));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert_eq!(perm(&evil, "x"), Hidden);
}

#[test]
#[ignore = "prints numbers; run with --release -- --ignored --nocapture"]
fn cost() {
    let rounds = 1000;
    let time = |what: &str, f: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            f();
        }
        println!("{what}: {:?}", start.elapsed() / rounds);
    };
    time("build the default policy", &mut || {
        std::hint::black_box(profiles::workspace().unwrap());
    });
    let p = profiles::workspace().unwrap();
    let places = places();
    time("compile it", &mut || {
        std::hint::black_box(CompiledRules::new(&p, &places));
    });
    let compiled = CompiledRules::new(&p, &places);
    time("literal points", &mut || {
        std::hint::black_box(compiled.literal_points());
    });
    time("binding points", &mut || {
        std::hint::black_box(compiled.binding_points());
    });
    println!("{} of {}", compiled.binding_points().len(), compiled.literal_points().len());
    time("glob rules", &mut || {
        std::hint::black_box(compiled.glob_rules());
    });
    let path = Path::new("/home/u/ws/a/b/c/d/e/file.rs");
    time("decide a deep path", &mut || {
        std::hint::black_box(compiled.decide(path));
    });
    time("sift a name", &mut || {
        std::hint::black_box(compiled.name_may_matter(OsStr::new("component.test.tsx")));
    });
    let network = profiles::policy("code").unwrap().network;
    time("compile the hosts of `code`", &mut || {
        std::hint::black_box(Rules::compile(&network).unwrap());
    });
    let rules = Rules::compile(&network).unwrap();
    time("read and judge a name", &mut || {
        let name = Name::parse(b"release-assets.githubusercontent.com").unwrap();
        std::hint::black_box(rules.name(&name, Some(443)));
    });
}
