//! `policy check` tells every problem, not only the first.

use ringfence_policy::problems;

fn texts(name: &str, text: &str) -> Vec<String> {
    problems(name, text.as_bytes()).iter().map(ToString::to_string).collect()
}

#[test]
fn every_problem_is_told_with_its_line() {
    let found = texts(
        "p.toml",
        "lift = [\"guard.git\",\n  \"guard.gti\"]\nnonsense = 1\n[files]\nwirte = [\".\"]\nread = [\"a\",\n  \"$HOME/x\",\n  7]\n[limits]\nmemory = \"99999999999t\"\npids = -1\n",
    );
    let starts = [
        "p.toml:2: unknown built-in rule `guard.gti`",
        "p.toml:3: unknown key `nonsense`",
        "p.toml:5: unknown key `files.wirte`, did you mean `write`?",
        "p.toml:7: files.read: ",
        "p.toml:8: files.read",
        "p.toml:10: limits.memory: ",
        "p.toml:11: limits.pids: ",
    ];
    for start in starts {
        assert!(found.iter().any(|f| f.starts_with(start)), "{start} is not in {found:#?}");
    }
    assert_eq!(found.len(), starts.len(), "{found:#?}");
}

#[test]
fn a_good_file_has_none_and_bad_syntax_has_one() {
    assert!(texts("p.toml", "[files]\nwrite = [\".\"]\n").is_empty());
    assert_eq!(texts("p.toml", "files = [\nx\n[y]").len(), 1);
    let fence = texts(
        "fence.json",
        "{\n \"network\": {\"defaultAction\": \"proxy\"},\n \"ssh\": {\"allowedHosts\": [\"x\"]},\n \"nope\": 1,\n \"nope2\": 1\n}",
    );
    assert_eq!(fence.len(), 3, "{fence:#?}");
    assert!(
        fence.iter().any(|f| f.contains("ssh.allowedHosts") && f.contains("network.defaultAction"))
    );
}

#[test]
fn every_bad_host_is_told_even_of_one_line() {
    let found = texts(
        "p.toml",
        "[network]\nallow = [\"*.com\", \"npm\", \"npn\", \"a..b\"]\ndeny = [\n  \"a b\"]\ninspect = \
         [\"10.0.0.1\"]\n[network.secrets.x]\nhosts = [\"a.b\"]\nfrom = \"zzz\"\n",
    );
    let starts = [
        "p.toml:2: network.allow: \"*.com\": ",
        "p.toml:2: network.allow: \"npn\": ",
        "p.toml:2: network.allow: \"a..b\": ",
        "p.toml:4: network.deny: \"a b\": ",
        "p.toml:5: network.inspect: \"10.0.0.1\": ",
        "p.toml:6: network.secrets.x.from: ",
    ];
    for start in starts {
        assert!(found.iter().any(|f| f.starts_with(start)), "{start} is not in {found:#?}");
    }
    assert_eq!(found.len(), starts.len(), "{found:#?}");
}
