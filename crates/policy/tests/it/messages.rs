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
        [layer]
        name = "work"
        quota = "2g"
        inodes = "100k"
        checkpoint = true
        exact = false
        share_cache = ["npm"]
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
fn hosts() {
    let allow = |entry: &str, problem: &str| {
        let text = format!("[network]\nallow = [{}]", toml_text(entry));
        let got = toml(&text);
        if problem.is_empty() {
            says(&got, "accepted");
        } else {
            says(&got, &format!("p.toml:2: network.allow: {entry:?}: {problem}"));
        }
    };
    for fine in [
        "example.com",
        "Example.COM.",
        "bücher.example",
        "*.example.com:443",
        "*",
        "*:443",
        "wiki.",
        "wiki.:8080",
        "npm",
        "npm:8443",
        "192.0.2.1",
        "192.0.2.1:80,443,8000-8100",
        "10.0.0.0/8:5432",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::1",
        "[2001:db8::1]",
        "[2001:db8::1]:443",
        "2001:db8::/32",
        "[2001:db8::/32]:443",
        "[2001:db8::]/32:443",
        "169.254.169.254",
        "localhost:5432",
        "localhost:8000-8100",
        "*.internal",
        "*.amazonaws.com",
    ] {
        allow(fine, "");
    }
    let url = "a host is written without scheme and path";
    let star = "`*` stands alone or is the whole first label, as in `*.example.com`";
    let control = "the host name holds a control, space or NUL byte";
    let public = |base: &str| {
        format!(
            "anybody can have a name below {base}; name the domain (`*.example.{base}`), or allow \
             every host with `*`"
        )
    };
    allow("", "the host is empty");
    allow("https://x.example", url);
    allow("x.example/path", &format!("{url}, a range as 10.0.0.0/8"));
    allow("a.*.example", star);
    allow("*example.com", star);
    allow("**.example.com", star);
    allow("*.com", &public("com"));
    allow("*.co.uk", &public("co.uk"));
    allow("*.github.io", &public("github.io"));
    allow("*.10.0.0.1", "addresses have no subdomains; write a range such as 10.0.0.0/8");
    allow("evil\0.good.example", control);
    allow("a b", control);
    allow("a..b", "the host name is not valid: it has an empty label");
    allow(
        "npn",
        "unknown group `npn`, did you mean `npm`? a host whose name is one word is written with a \
         dot at its end: `npn.`",
    );
    allow(
        "localhost",
        "this is the host's loopback; say which ports of it, as in `localhost:5432` or \
         `localhost:8000-8100`",
    );
    allow("localhost:1-65535", "more than 1024 ports of the host's loopback");
    allow("localhost:53", "port 53 of the sandbox's loopback is the filter's own");
    allow("db.localhost", "names of the loopback are allowed as `localhost:PORT` only");
    let loopback = "a loopback address means the sandbox's own; write `localhost:PORT` for a port of \
                    the host's";
    allow("127.0.0.1:80", loopback);
    allow("127.0.0.0/8", loopback);
    allow("[::1]:80", loopback);
    allow("0.0.0.0", "unspecified addresses cannot be reached");
    allow("198.18.0.0/16", "these addresses stand for names inside the sandbox");
    allow("0x7f.1", "this is an odd spelling of 127.0.0.1; write that");
    allow("2130706433", "this is an odd spelling of 127.0.0.1; write that");
    allow("::ffff:10.0.0.1", "this is an odd spelling of 10.0.0.1; write that");
    allow("::ffff:10.0.0.0/104", "v4-mapped addresses are v4 here; write 10.0.0.0/8");
    allow("10.0.0.1/8", "bits are set beyond the prefix; write 10.0.0.0/8");
    allow("10.0.0.0/33", "a prefix of 33 bits, 32 are the most");
    allow("[2001:db8::1", "a bracket is not closed");
    allow("[2001:db8::1]443", "after `]` comes `/LENGTH`, `:PORT` or nothing");
    allow("[example.com]", "brackets are for ipv6 addresses and ranges");
    allow(
        "fe80::1%eth0",
        "the host name is not valid: `%` stands for a zone or an escape, neither is taken here",
    );
    allow(
        "example.com:https",
        "`https` is not a port; write one (443), a range (8000-8100) or a list (80,443)",
    );
    allow("example.com:0", "port 0 is not between 1 and 65535");
    allow("example.com:70000", "port 70000 is not between 1 and 65535");
    allow("example.com:90-80", "`90-80` goes backwards");
    // What is too wide to be allowed may be denied.
    for wide in ["*.com", "localhost", "127.0.0.0/8", "*.localhost", "npm", "0.0.0.0/8"] {
        says(&toml(&format!("[network]\ndeny = [\"{wide}\"]")), "accepted");
    }
}

#[test]
fn inspection_and_secrets() {
    let finish =
        |text: &str| match Fragment::parse("p.toml", text.as_bytes()).and_then(Fragment::finish) {
            Ok(_) => "accepted".to_owned(),
            Err(e) => e.to_string(),
        };
    let head = "[network]\nallow = [\"a.example\"]\ninspect = [\"a.example\", \"*.b.example\"]\n";
    let rule = |text: &str| finish(&format!("{head}[[network.rules]]\n{text}"));
    says(&rule("hosts = [\"a.example\"]\nmethods = [\"GET\"]\npaths = [\"/x/**\"]"), "accepted");
    says(&rule("hosts = [\"x.b.example\", \"*.c.b.example\"]"), "accepted");
    says(&rule("hosts = []"), "p.toml:4: network.rules.hosts: no host is named");
    says(
        &rule("hosts = [\"b.example\"]"),
        "p.toml:4: network.rules.hosts: \"b.example\" is not inspected, so this would have no effect; \
         add it to network.inspect",
    );
    says(
        &rule("hosts = [\"a.example\"]\npaths = [\"x\"]"),
        "p.toml:4: network.rules.paths: \"x\" does not begin with `/`",
    );
    says(
        &rule("hosts = [\"a.example\"]\nmethods = [\"GET /\"]"),
        "p.toml:4: network.rules.methods: \"GET /\" is not a method; write GET",
    );
    says(
        &finish("[network]\ninspect = [\"10.0.0.1\"]"),
        "p.toml:2: network.inspect: \"10.0.0.1\": only hosts with a name can be inspected",
    );
    let secret = |text: &str| finish(&format!("{head}[network.secrets.gh]\n{text}"));
    let good = "hosts = [\"a.example\"]\nfrom = \"env:GH\"\n";
    says(&secret(&format!("{good}env = \"GH\"")), "accepted");
    says(&secret("hosts = [\"a.example\"]\nfrom = \"file:~/.token\""), "accepted");
    let at = "p.toml:4: network.secrets.gh";
    says(
        &secret("hosts = [\"a.example\"]\nfrom = \"ghp_abc\""),
        &format!("{at}.from: write \"env:NAME\" or \"file:PATH\", never the credential itself"),
    );
    says(
        &secret("hosts = [\"a.example\"]\nfrom = \"file:x\""),
        &format!("{at}.from: a file is named by an absolute path, or below home as `~/...`"),
    );
    says(
        &secret("hosts = [\"*\"]\nfrom = \"env:GH\""),
        &format!("{at}.hosts: a credential is for hosts that are named"),
    );
    says(
        &secret("hosts = [\"c.example\"]\nfrom = \"env:GH\""),
        &format!(
            "{at}.hosts: \"c.example\" is not inspected, so this would have no effect; add it to \
             network.inspect"
        ),
    );
    says(
        &secret(&format!("{good}header = \"Host\"")),
        &format!("{at}.header: `host` is the connection's own"),
    );
    says(
        &secret(&format!("{good}format = \"Bearer\"")),
        &format!(
            "{at}.format: write ascii text with `{{}}` once, where the credential goes, as in \"Bearer \
             {{}}\""
        ),
    );
    says(
        &secret(&format!(
            "{good}env = \"GH\"\n[network.secrets.other]\nhosts = [\"a.example\"]\nfrom = \
             \"env:GH\"\nenv = \"GH\""
        )),
        "p.toml:8: network.secrets.other.env: GH holds the placeholder of `gh` already",
    );
    says(
        &finish("[network]\nupstream_proxy = \"https://p.example\""),
        "p.toml:2: network.upstream_proxy: a proxy is spoken to by http, not https",
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
         files, network, environment, limits, processes, terminal, layer, ssh",
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
