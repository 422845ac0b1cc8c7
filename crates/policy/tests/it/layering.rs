use ringfence_policy::{
    Bytes, Effect, Fragment, Git, Millis, Network, NetworkMode, NoFiles, Permission, SecretSource,
    resolve_layers,
};

fn toml(text: &str) -> Fragment {
    Fragment::parse("p.toml", text.as_bytes()).unwrap()
}

#[test]
fn later_scalars_win_lists_append_and_both_formats_are_one_schema() {
    let a = toml(
        "[files]\nread = [\"a\", \"b\"]\ngit = \"open\"\n[limits]\npids = 1\n[environment]\nset = {A = \"1\", B = \"1\"}",
    );
    let b = Fragment::parse(
        "p.jsonc",
        br#"{"files": {"read": ["b", "c"], "git": "guard"}, "environment": {"set": {"B": "2"}}}"#,
    )
    .unwrap();
    let merged = a.merge(b);
    let values: Vec<&str> = merged.files.read.iter().map(|e| e.value.as_str()).collect();
    assert_eq!(values, ["a", "b", "c"]);
    assert_eq!(merged.files.git, Some(Git::Guard));
    assert_eq!(merged.environment.set["A"], "1");
    assert_eq!(merged.environment.set["B"], "2");
    assert_eq!(merged.finish().unwrap().limits.pids, Some(1));
}

#[test]
fn an_empty_allow_list_allows_nothing() {
    let policy = toml("[network]\nmode = \"filtered\"\nallow = []").finish().unwrap();
    assert_eq!(
        policy.network,
        Network::Filtered { allow: vec![], deny: vec![], egress: Box::default() }
    );
    assert!(!policy.explain_host("example.com").allowed);
    let policy = toml("[network]\nallow = []").finish().unwrap();
    assert_eq!(policy.network, Network::None);
    let policy = toml("[files]\nwrite = []\nread = []").finish().unwrap();
    assert!(
        !policy.files.rules.iter().any(|r| r.effect == Effect::Grant && r.id.is_none()),
        "no grant from an empty list"
    );
    let policy = toml("[environment]\npass = []").finish().unwrap();
    let (kept, _) = policy.environment.filter([("PATH".into(), "/bin".into())]);
    assert!(kept.is_empty());
}

#[test]
fn rules_know_file_and_line() {
    let policy = toml("[files]\nwrite = [\n  \".\",\n  \"x\",\n]\n").finish().unwrap();
    let rule = policy.files.rules.iter().find(|r| r.pattern == "x").unwrap();
    assert_eq!(rule.origin.to_string(), "p.toml:4");
    let policy = Fragment::parse("p.jsonc", b"{\n\"files\": {\n\"deny\": [\"y\"]}}").unwrap();
    assert_eq!(policy.files.deny[0].origin.to_string(), "p.jsonc:3");
}

#[test]
fn lifting_removes_a_rule_or_a_group() {
    let has = |text: &str, id: &str| {
        toml(text).finish().unwrap().files.rules.iter().any(|r| r.id.as_deref() == Some(id))
    };
    assert!(has("", "guard.editors"));
    assert!(!has("lift = [\"guard.editors\"]", "guard.editors"));
    assert!(has("lift = [\"guard.editors\"]", "guard.agents"));
    assert!(!has("lift = [\"guard\"]", "guard.agents"));
    assert!(has("lift = [\"guard\"]", "secret.ssh"));
    assert!(toml("").finish().unwrap().files.guard_git);
    assert!(!toml("lift = [\"guard.git\"]").finish().unwrap().files.guard_git);
    assert!(!toml("lift = [\"guard\"]").finish().unwrap().files.guard_git);
    assert!(!toml("[files]\ngit = \"open\"").finish().unwrap().files.guard_git);
}

#[test]
fn layers_without_extends_lie_over_the_default_profile() {
    let policy = resolve_layers(vec![(toml("[limits]\npids = 9"), None)], &NoFiles)
        .unwrap()
        .finish()
        .unwrap();
    assert_eq!(policy.layers, ["built-in workspace", "p.toml"]);
    assert_eq!(policy.limits.pids, Some(9));
    assert!(policy.files.toolchains);
    let policy = resolve_layers(vec![(toml("extends = \"strict\""), None)], &NoFiles)
        .unwrap()
        .finish()
        .unwrap();
    assert_eq!(policy.layers, ["built-in strict", "p.toml"]);
    assert!(!policy.files.toolchains);
}

#[test]
fn limits_and_defaults() {
    let policy = toml("").finish().unwrap();
    assert_eq!(policy.limits.core, Some(0));
    assert_eq!(policy.limits.grace_ms, Some(5000));
    assert_eq!(policy.limits.memory, None);
    assert_eq!(policy.network, Network::None);
    let policy = toml("[limits]\nmemory = \"2GiB\"\ntimeout = \"1m30s\"\ncore = \"unlimited\"\ncpu = \"150%\"\ngrace = 0.5")
        .finish()
        .unwrap();
    assert_eq!(policy.limits.memory, Some(2 << 30));
    assert_eq!(policy.limits.timeout_ms, Some(90_000));
    assert_eq!(policy.limits.core, None);
    assert_eq!(policy.limits.cpu_percent, Some(150));
    assert_eq!(policy.limits.grace_ms, Some(500));
    for (text, bytes) in
        [("1k", 1 << 10), ("1.5m", 3 << 19), ("2 GB", 2 << 30), ("7", 7), ("3TiB", 3 << 40)]
    {
        assert_eq!(Bytes::parse(text), Ok(Bytes::new(bytes)), "{text}");
    }
    for (text, millis) in [("500ms", 500), ("90", 90_000), ("2h", 7_200_000), ("0.25s", 250)] {
        assert_eq!(Millis::parse(text), Ok(Millis::new(millis)), "{text}");
    }
}

#[test]
fn an_untrusted_layer_may_only_narrow() {
    toml(
        "[files]\ndeny = [\"x\"]\nprotect = [\"y\"]\ngit = \"guard\"\nsystem = false\n\
         [network]\nmode = \"none\"\ndeny = [\"a.example\"]\n[environment]\ndeny = [\"A\"]\n\
         [processes]\nptrace = false\n[limits]\ncore = 0\n[terminal]\npty = \"always\"",
    )
    .narrowing_only()
    .unwrap();
    let wide = toml(
        "extends = \"code\"\nlift = [\"guard\"]\naccept_missing = [\"guards\"]\n\
         [files]\nwrite = [\"/\"]\nread = [\"~\"]\nview = [\"v\"]\ngit = \"open\"\ntmp_size = \"9g\"\n\
         devices = [\"/dev/kvm\"]\n[[files.rules]]\npattern = \"**/*\"\npermission = \"write\"\n\
         [network]\nmode = \"host\"\nallow = [\"x.example\"]\n\
         [environment]\npass = [\"*\"]\nset = {LD_PRELOAD = \"x\"}\n\
         [limits]\nmemory = \"9g\"\ncore = 1\n[processes]\nnested_namespaces = true\nptrace = true\n\
         io_uring = true\n[terminal]\npty = \"never\"",
    )
    .narrowing_only()
    .unwrap_err();
    for key in [
        "extends = \"code\" (p.toml:1)",
        "lift = \"guard\" (p.toml:2)",
        "accept_missing = \"guards\" (p.toml:3)",
        "files.write = \"/\" (p.toml:5)",
        "files.read = \"~\" (p.toml:6)",
        "files.view = \"v\" (p.toml:7)",
        "files.git = \"open\"",
        "files.tmp_size",
        "files.devices = \"/dev/kvm\" (p.toml:10)",
        "files.rules \"**/*\" (p.toml:11)",
        "network.mode",
        "network.allow = \"x.example\" (p.toml:16)",
        "environment.pass = \"*\" (p.toml:18)",
        "environment.set.LD_PRELOAD",
        "limits.memory",
        "limits.core",
        "processes.nested_namespaces",
        "processes.ptrace",
        "processes.io_uring",
        "terminal.pty",
    ] {
        assert!(wide.iter().any(|w| w == key), "{key} not in {wide:#?}");
    }
    assert_eq!(wide.len(), 20);
}

#[test]
fn only_a_trusted_layer_names_a_layer_or_shares_caches() {
    let below = toml("[layer]\nquota = \"1g\"\nname = \"mine\"\nexact = true\n");
    for narrow in [
        "[layer]\nname = \"auto\"\ncheckpoint = true\nexact = true",
        "[layer]\nname = \"mine\"\nquota = \"512m\"\ninodes = 7",
    ] {
        toml(narrow).narrowing_over(&below).unwrap();
    }
    for (wide, key) in [
        ("name = \"other\"", "layer.name"),
        ("name = \"none\"", "layer.name"),
        ("quota = \"2g\"", "layer.quota"),
        ("quota = \"unlimited\"", "layer.quota"),
        ("exact = false", "layer.exact = false"),
        ("share_cache = [\"npm\"]", "layer.share_cache = \"npm\" (p.toml:2)"),
    ] {
        let wants = toml(&format!("[layer]\n{wide}")).narrowing_over(&below).unwrap_err();
        assert_eq!(wants, [key], "{wide}");
    }
    // Layers over each other.
    let over = toml("[layer]\nname = \"none\"\ninodes = \"unlimited\"\n");
    let policy = below.merge(over).finish().unwrap();
    assert_eq!(policy.layer.name, None);
    assert_eq!((policy.layer.quota, policy.layer.inodes), (Some(1 << 30), Some(u64::MAX)));
    assert!(policy.layer.exact);
}

#[test]
fn only_a_trusted_layer_inspects_sends_and_holds_secrets() {
    let file = toml(
        "[network]\ndeny = [\"a.example\"]\nproxies = false\n\
         upstream_proxy = \"http://u:p@p.example\"\ninspect = [\"b.example\"]\n\
         [[network.rules]]\nhosts = [\"b.example\"]\n\
         [network.secrets.s]\nhosts = [\"b.example\"]\nfrom = \"env:S\"",
    );
    // The password of the proxy is not repeated.
    let wide = [
        "network.inspect = \"b.example\" (p.toml:5)",
        "network.upstream_proxy (p.toml:4)",
        "network.rules (p.toml:6)",
        "network.secrets.s (p.toml:8)",
    ];
    assert_eq!(file.narrowing_only().unwrap_err(), wide);
    let below = ringfence_policy::profiles::workspace_fragment();
    assert_eq!(file.narrowing_over(&below).unwrap_err(), wide);
    file.narrowing_over(&below.merge(file.clone())).unwrap();
    // A secret of the same name for other hosts is another secret.
    let other = toml(
        "[network]\ninspect = [\"b.example\"]\n\
         [network.secrets.s]\nhosts = [\"c.example\"]\nfrom = \"env:S\"",
    );
    let wide = other.narrowing_over(&file).unwrap_err();
    assert_eq!(wide, ["network.secrets.s (p.toml:3)"]);
}

#[test]
fn the_filter_is_finished_from_every_layer() {
    let below = toml(
        "[network]\nallow = [\"npm\"]\nupstream_proxy = \"http://p.example\"\n\
         inspect = [\"b.example\"]\n[network.secrets.s]\nhosts = [\"b.example\"]\nfrom = \"env:S\"",
    );
    let over = toml(
        "[network]\nproxies = false\nupstream_proxy = \"none\"\ndeny = [\"c.example\"]\n\
         [[network.rules]]\nhosts = [\"b.example\"]\nmethods = [\"get\"]\n\
         [network.secrets.s]\nhosts = [\"b.example\"]\nfrom = \"file:/s\"\nheader = \"X-Key\"",
    );
    let Network::Filtered { allow, deny, egress } =
        below.clone().merge(over).finish().unwrap().network
    else {
        panic!("not filtered")
    };
    assert_eq!((allow.len(), deny.len()), (1, 1));
    assert!(!egress.proxies && egress.upstream_proxy.is_none());
    assert_eq!(egress.requests[0].methods, ["GET"]);
    let [secret] = &egress.secrets[..] else { panic!("{egress:?}") };
    assert_eq!((secret.header.as_str(), secret.format.as_str()), ("x-key", "{}"));
    assert_eq!(secret.from, SecretSource::File("/s".into()));
    let Network::Filtered { egress, .. } = below.finish().unwrap().network else {
        panic!("not filtered")
    };
    assert!(egress.proxies);
    assert_eq!(egress.upstream_proxy.as_deref(), Some("http://p.example"));
    assert_eq!(egress.secrets[0].format, "Bearer {}");
    // None and host take no part of it along.
    let host = toml("[network]\nmode = \"host\"\ninspect = [\"b.example\"]");
    assert_eq!(host.finish().unwrap().network, Network::Host);
}

#[test]
fn narrowing_knows_what_lies_below() {
    let below = ringfence_policy::profiles::workspace_fragment();
    toml("[files]\nwrite = [\".\"]\ntmp_size = \"1g\"\n[limits]\nmemory = \"1g\"\npids = 10")
        .narrowing_over(&below)
        .unwrap();
    let limited = below.clone().merge(toml("[limits]\nmemory = \"1g\""));
    toml("[limits]\nmemory = \"512m\"").narrowing_over(&limited).unwrap();
    assert_eq!(
        toml("[limits]\nmemory = \"2g\"").narrowing_over(&limited).unwrap_err(),
        ["limits.memory"]
    );
    assert_eq!(
        toml("[limits]\nmemory = \"unlimited\"").narrowing_over(&limited).unwrap_err(),
        ["limits.memory"]
    );
    assert_eq!(
        toml("[files]\ntmp_size = \"3g\"").narrowing_over(&below).unwrap_err(),
        ["files.tmp_size"]
    );
}

#[test]
fn fragments_filled_by_hand() {
    let mut flags = Fragment::default();
    flags.files.deny = vec!["secrets".into()];
    flags.network.mode = Some(NetworkMode::Host);
    let policy = flags.with_origin("command line").finish().unwrap();
    let rule = policy.files.rules.iter().find(|r| r.pattern == "secrets").unwrap();
    assert_eq!(rule.origin.layer, "command line");
    assert_eq!((rule.effect, rule.permission), (Effect::Cap, Permission::None));
    assert_eq!(policy.network, Network::Host);
    let mut bad = Fragment::default();
    bad.files.write = vec!["../x".into()];
    assert!(
        bad.with_origin("command line")
            .finish()
            .unwrap_err()
            .to_string()
            .starts_with("command line: files.write: \"../x\" climbs out of the workspace")
    );
}

#[test]
fn a_fragment_survives_serde() {
    let fragment = toml(
        "extends = \"code\"\n[files]\nwrite = [\"a\"]\ntmp_size = \"1g\"\n[limits]\ntimeout = \"1500ms\"\n[[files.rules]]\npattern = \"x\"\npermission = \"view\"",
    );
    let json = serde_json::to_value(&fragment).unwrap();
    let back: Fragment = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
    let policy = fragment.finish().unwrap();
    let back: ringfence_policy::Policy =
        serde_json::from_value(serde_json::to_value(&policy).unwrap()).unwrap();
    assert_eq!(back, policy);
}
