//! Each thing that can be wrong with a file, with its message.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ringfence_policy::{Fragment, Loader, MAX_FILE_BYTES, PolicyError, resolve};

fn toml(text: &str) -> String {
    match Fragment::parse("p.toml", text.as_bytes()) {
        Ok(_) => "accepted".to_owned(),
        Err(e) => e.to_string(),
    }
}

fn jsonc(text: &str) -> String {
    match Fragment::parse("p.jsonc", text.as_bytes()) {
        Ok(_) => "accepted".to_owned(),
        Err(e) => e.to_string(),
    }
}

#[track_caller]
fn says(got: &str, expected: &str) {
    assert_eq!(got, expected);
    assert!(!got.ends_with('.'), "full stop: {got}");
}

#[test]
fn the_documented_example_is_accepted() {
    let text = r#"
        "$schema" = "x"
        extends = ["code", "./other.toml"]
        lift = ["guard.editors", "secret"]
        accept_missing = ["cgroup"]
        [files]
        write = ["."]
        read = ["~/.config/foo"]
        view = []
        deny = ["**/*.secret"]
        protect = ["Makefile"]
        git = "guard"
        system = true
        toolchains = true
        tmp_size = "1g"
        shm_size = "512m"
        devices = ["/dev/kvm"]
        [[files.rules]]
        pattern = "**/*"
        permission = "read"
        priority = 0
        type = "glob"
        [network]
        mode = "none"
        allow = []
        deny = ["*.evil.example"]
        [environment]
        pass = ["FOO", "BAR_*"]
        deny = ["BAR_BAZ"]
        set = { A = "b" }
        [limits]
        memory = "2g"
        cpu = 1.5
        pids = 512
        file_size = "1g"
        open_files = 4096
        core = 0
        timeout = "10m"
        grace = "5s"
        [processes]
        nested_namespaces = false
        ptrace = true
        io_uring = false
        [terminal]
        pty = "auto"
    "#;
    says(&toml(text), "accepted");
}

#[test]
fn the_example_of_the_documentation_is_accepted() {
    let page = include_str!("../../../../docs/policy.md");
    let example = page.split("```toml").nth(1).unwrap().split("```").next().unwrap();
    says(&toml(example), "accepted");
    for builtin in ringfence_policy::builtin_rules() {
        let id = builtin.id;
        assert!(id == "system" || page.contains(&format!("`{id}`")), "{id} is not documented");
    }
    for profile in ringfence_policy::profiles::all() {
        assert!(page.contains(&format!("`{}`", profile.name)), "{}", profile.name);
    }
}

#[test]
fn camel_case_comments_and_trailing_commas_are_accepted() {
    says(
        &jsonc(
            r#"{
                // a comment
                "$schema": "x", "acceptMissing": ["cgroup"],
                "files": {"tmpSize": "1g", "shmSize": 4096,},
                "limits": {"fileSize": "1g", "openFiles": 64, "timeout": 1.5},
                "processes": {"nestedNamespaces": true, "ioUring": false},
            }"#,
        ),
        "accepted",
    );
}

#[test]
fn unknown_keys_name_the_nearest() {
    says(
        &toml("[files]\nwirte = [\".\"]"),
        "p.toml:2: unknown key `files.wirte`, did you mean `write`?",
    );
    says(
        &jsonc("{\n  \"files\": {\n    \"zzz\": 1\n  }\n}"),
        "p.jsonc:3: unknown key `files.zzz`; known here: write, read, view, deny, protect, git, \
         system, toolchains, tmp_size, shm_size, devices, rules",
    );
    says(&toml("netwrok = {}"), "p.toml:1: unknown key `netwrok`, did you mean `network`?");
    says(
        &toml("[[files.rules]]\npattern = \"x\"\npermission = \"read\"\nprio = 1"),
        "p.toml:4: unknown key `files.rules[0].prio`; known here: pattern, permission, priority, type",
    );
}

#[test]
fn wrong_types_and_values() {
    says(
        &toml("[files]\nwrite = \".\""),
        "p.toml:2: files.write: expected a list, found text \".\"",
    );
    says(
        &toml("[files]\nwrite = [\n \".\",\n 3]"),
        "p.toml:4: files.write[1]: expected text, found number 3",
    );
    says(&toml("files = 3"), "p.toml:1: files: expected a table, found number 3");
    says(
        &toml("[files]\nsystem = \"yes\""),
        "p.toml:2: files.system: expected true or false, found text \"yes\"",
    );
    says(
        &toml("[files]\ngit = \"gaurd\""),
        "p.toml:2: files.git: unknown value \"gaurd\", did you mean \"guard\"?",
    );
    says(
        &toml("[network]\nmode = \"internet\""),
        "p.toml:2: network.mode: unknown value \"internet\"; allowed: none, filtered, host",
    );
    says(&toml("[files]\nsystem = 1979-05-27"), "p.toml:2: files.system: dates are not used here");
    says(
        &toml("[[files.rules]]\npattern = \"x\""),
        "p.toml:1: files.rules[0]: missing field `permission`",
    );
}

#[test]
fn syntax_says_the_line() {
    says(&toml("\n\n[files"), "p.toml:3: unclosed table, expected `]`");
    says(&jsonc("{\n \"a\": \n}"), "p.jsonc:3: unexpected close brace");
    says(&jsonc("[]"), "p.jsonc:1: expected an object `{ ... }`");
    says(&jsonc("{\"files\": {},\n \"files\": {}}"), "p.jsonc:2: key `files` is written twice");
    assert!(toml("[files]\nsystem = true\nsystem = false").starts_with("p.toml:3: duplicate key"));
    let deep = format!("{{\"files\": {}{}}}", "[".repeat(60), "]".repeat(60));
    says(&jsonc(&deep), "p.jsonc:1: nested deeper than 32");
}

#[test]
fn patterns() {
    let deny = |p: &str| toml(&format!("[files]\ndeny = [{}]", toml_text(p)));
    says(&deny(""), "p.toml:2: files.deny: empty pattern; write \".\" for the workspace itself");
    says(&deny("a\0b"), "p.toml:2: files.deny: pattern contains a nul byte");
    says(&deny("a[b"), "p.toml:2: files.deny: \"a[b\": `[` is not closed");
    says(&deny("a{b"), "p.toml:2: files.deny: \"a{b\": `{` is not closed");
    says(&deny("a/b**"), "p.toml:2: files.deny: \"a/b**\": `**` must stand alone between slashes");
    says(&deny("[z-a]"), "p.toml:2: files.deny: \"[z-a]\": range `z-a` runs backwards");
    says(&deny("x\\"), "p.toml:2: files.deny: \"x\\\": ends in a lone `\\`");
    says(&deny("!(a"), "p.toml:2: files.deny: \"!(a\": `!(` is not closed");
    says(
        &deny("../x"),
        "p.toml:2: files.deny: \"../x\" climbs out of the workspace; write an absolute path",
    );
    says(
        &deny("~/a/../../x"),
        "p.toml:2: files.deny: \"~/a/../../x\" climbs out of home; write an absolute path",
    );
    says(&deny("/../x"), "p.toml:2: files.deny: \"/../x\" climbs out above the root");
    says(
        &deny("*/../x"),
        "p.toml:2: files.deny: \"*/../x\": `..` after a wildcard has no one meaning",
    );
    says(
        &deny("~bob/x"),
        "p.toml:2: files.deny: \"~bob/x\": another user's home is not looked up; write the absolute \
         path, or \"./~bob/x\" for a file of that name",
    );
    says(
        &deny("$HOME/x"),
        "p.toml:2: files.deny: \"$HOME/x\": variables are not expanded; write \"~/...\" for home, an \
         absolute path, or \"./$HOME/x\" for a file of that name",
    );
    says(
        &deny(&"x".repeat(4097)),
        "p.toml:2: files.deny: pattern of 4097 bytes is too long, the limit is 4096",
    );
    assert!(deny(&"{a,b}".repeat(9)).ends_with("unfolds to more than 256 patterns"));
    assert!(
        deny(&format!("**{}", "/x".repeat(60)))
            .ends_with("has more than 60 components after its first wildcard")
    );
    says(&deny("a/./b//../c/"), "accepted");
    says(
        &toml("[[files.rules]]\npattern = \"a/../b\"\npermission = \"read\""),
        "p.toml:1: files.rules.pattern: \"a/../b\": `..` is not used in ordered rules",
    );
}

fn toml_text(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '\0' => "\\u0000".to_owned(),
            '\\' => "\\\\".to_owned(),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

#[test]
fn sizes_times_and_counts() {
    let limit = |text: &str| toml(&format!("[limits]\n{text}"));
    says(
        &limit("memory = \"2x\""),
        "p.toml:2: limits.memory: \"2x\" is not a size; write bytes or a number with k, m, g or t \
         (\"512m\")",
    );
    says(
        &limit("memory = \"99999999999g\""),
        "p.toml:2: limits.memory: \"99999999999g\" is absurdly large; the largest size is 1024 \
         pebibytes",
    );
    says(
        &limit("memory = \"99999999999999999999999999\""),
        "p.toml:2: limits.memory: \"99999999999999999999999999\" is absurdly large; the largest size \
         is 1024 pebibytes",
    );
    says(&limit("memory = -1"), "p.toml:2: limits.memory: -1 is negative");
    says(
        &limit("memory = \"-1g\""),
        "p.toml:2: limits.memory: \"-1g\" is negative; a size is 0 or more",
    );
    says(&limit("memory = 2"), "p.toml:2: limits.memory: 2 is too small; the least is 1048576");
    says(&limit("memory = 1.5"), "p.toml:2: limits.memory: 1.5 is not a whole number of bytes");
    says(
        &limit("memory = true"),
        "p.toml:2: limits.memory: expected a size such as 1048576, \"512m\" or \"2GiB\", found true",
    );
    says(&limit("pids = 0"), "p.toml:2: limits.pids: 0 is too small; the least is 1");
    says(
        &limit("pids = 99999999"),
        "p.toml:2: limits.pids: 99999999 is absurdly large; the most is 4194304",
    );
    says(&limit("pids = -5"), "p.toml:2: limits.pids: -5 is negative");
    says(&limit("open_files = 2"), "p.toml:2: limits.open_files: 2 is too small; the least is 4");
    says(&limit("cpu = 0"), "p.toml:2: limits.cpu: a number of cpus lies between 0.01 and 1024");
    says(&limit("cpu = nan"), "p.toml:2: limits.cpu: a number of cpus lies between 0.01 and 1024");
    says(&limit("timeout = 0"), "p.toml:2: limits.timeout: 0 is too small; the least is 1");
    says(
        &limit("timeout = \"10 parsecs\""),
        "p.toml:2: limits.timeout: \"10 parsecs\" is not a time; write seconds or a number with ms, \
         s, m, h or d (\"10m\")",
    );
    says(
        &limit("timeout = \"1000d\""),
        "p.toml:2: limits.timeout: \"1000d\" is absurdly long; the longest time is 365 days",
    );
    assert_eq!(
        limit("pids = 99999999999999999999999999999999999999999999"),
        "p.toml:2: number 99999999999999999999999999999999999999999999 is too large"
    );
    says(
        &toml("[files]\ntmp_size = \"unlimited\""),
        "p.toml:2: files.tmp_size: a private tmpfs has a size; write one such as \"1g\"",
    );
    says(
        &jsonc("{\"files\": {\n\"tmpSize\": 1}}"),
        "p.jsonc:2: files.tmp_size: 1 is too small; the least is 4096",
    );
}

#[test]
fn hosts_devices_variables_rules() {
    says(
        &toml("[network]\nallow = [\"https://x.example\"]"),
        "p.toml:2: network.allow: \"https://x.example\" is not a host; write it without scheme and \
         path",
    );
    says(
        &toml("[network]\nallow = [\"a.*.example\"]"),
        "p.toml:2: network.allow: \"a.*.example\": `*` stands only in front, as in \"*.example.com\"",
    );
    says(
        &toml("[network]\nallow = [\"evil\\u0000.good.example\"]"),
        "p.toml:2: network.allow: host contains '\\0'",
    );
    says(
        &toml("[files]\ndevices = [\"/dev\"]"),
        "p.toml:2: files.devices: \"/dev\" is not a device; write a path such as \"/dev/kvm\"",
    );
    says(
        &toml("[files]\ndevices = [\"/dev/../etc/shadow\"]"),
        "p.toml:2: files.devices: \"/dev/../etc/shadow\" is not a device; write a path such as \
         \"/dev/kvm\"",
    );
    says(
        &toml("[environment]\npass = [\"A=b\"]"),
        "p.toml:2: environment.pass: \"A=b\" is not a variable's name",
    );
    says(
        &toml("lift = [\"guard.editor\"]"),
        "p.toml:1: unknown built-in rule `guard.editor`, did you mean `guard.editors`?",
    );
    says(
        &toml("accept_missing = [\"cgroups\"]"),
        "p.toml:1: accept_missing: unknown protection \"cgroups\", did you mean \"cgroup\"?",
    );
}

#[test]
fn size_and_encoding_of_files() {
    let big = vec![b'#'; MAX_FILE_BYTES as usize + 1];
    says(
        &Fragment::parse("p.toml", &big).unwrap_err().to_string(),
        "p.toml: 1048577 bytes is too large for a policy file, the limit is 1048576",
    );
    says(
        &Fragment::parse("p.toml", b"# a\n# \xff\n").unwrap_err().to_string(),
        "p.toml:2: not utf-8 text",
    );
    says(&toml("\u{feff}[files]\n"), "accepted");
    says(&toml(""), "accepted");
    says(&jsonc("// nothing\n"), "accepted");
}

struct Files(HashMap<PathBuf, String>);

impl Loader for Files {
    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        self.0.get(path).map(|t| t.clone().into_bytes()).ok_or("no such file".to_owned())
    }
    fn user_config(&self) -> Option<PathBuf> {
        Some(PathBuf::from("/u/ringfence.toml"))
    }
}

fn files(list: &[(&str, &str)]) -> Files {
    Files(list.iter().map(|(p, t)| (PathBuf::from(p), (*t).to_owned())).collect())
}

fn resolved(start: &str, list: &[(&str, &str)]) -> Result<Fragment, PolicyError> {
    let loader = files(list);
    let fragment = Fragment::parse(start, &loader.read(Path::new(start)).unwrap())?;
    resolve(fragment, Some(Path::new(start)), &loader)
}

#[test]
fn extends() {
    says(
        &resolved("/p/a.toml", &[("/p/a.toml", "\nextends = \"cdoe\"")]).unwrap_err().to_string(),
        "/p/a.toml:2: unknown profile `cdoe`; known profiles: workspace, strict, code, permissive, \
         moderate, restrictive, agent-safe, development, read-only, full-access, view-only",
    );
    says(
        &resolved("/p/a.toml", &[("/p/a.toml", "extends = \"./b.toml\"")]).unwrap_err().to_string(),
        "/p/a.toml:1: cannot read /p/b.toml: no such file",
    );
    says(
        &resolved(
            "/p/a.toml",
            &[
                ("/p/a.toml", "extends = \"./b.toml\""),
                ("/p/b.toml", "extends = \"../p/./a.toml\""),
            ],
        )
        .unwrap_err()
        .to_string(),
        "/p/b.toml:1: extends goes in a circle: /p/a.toml -> /p/b.toml -> /p/a.toml",
    );
    says(
        &resolved("/u/ringfence.toml", &[("/u/ringfence.toml", "extends = \"@user\"")])
            .unwrap_err()
            .to_string(),
        "/u/ringfence.toml:1: extends goes in a circle: /u/ringfence.toml -> /u/ringfence.toml",
    );
    let long: Vec<(String, String)> = (0..12)
        .map(|i| (format!("/{i}.toml"), format!("extends = \"./{}.toml\"", i + 1)))
        .collect();
    let long: Vec<(&str, &str)> = long.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let message = resolved("/0.toml", &long).unwrap_err().to_string();
    assert!(
        message.starts_with("/9.toml:1: extends goes deeper than 10: /0.toml -> "),
        "{message}"
    );
    // An error in an extended file names that file.
    says(
        &resolved(
            "/p/a.toml",
            &[("/p/a.toml", "extends = \"./b.toml\""), ("/p/b.toml", "\n\nx = 1")],
        )
        .unwrap_err()
        .to_string(),
        "/p/b.toml:3: unknown key `x`; known here: $schema, extends, lift, accept_missing, \
         files, network, environment, limits, processes, terminal, ssh",
    );
    let fragment = resolved(
        "/p/a.toml",
        &[
            ("/p/a.toml", "extends = [\"@user\", \"./sub/b.toml\"]\n[limits]\npids = 3"),
            ("/u/ringfence.toml", "[limits]\npids = 1\ncpu = 1"),
            ("/p/sub/b.toml", "extends = \"./c.toml\"\n[limits]\npids = 2"),
            ("/p/sub/c.toml", "[files]\nread = [\"c\"]"),
        ],
    )
    .unwrap();
    assert!(fragment.extends.0.is_empty());
    let policy = fragment.finish().unwrap();
    assert_eq!(policy.limits.pids, Some(3));
    assert_eq!(policy.limits.cpu_percent, Some(100));
    assert_eq!(policy.layers, ["/u/ringfence.toml", "/p/sub/c.toml", "/p/sub/b.toml", "/p/a.toml"]);
}
