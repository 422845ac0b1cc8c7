//! Caches of tools in home: read warm, written privately, shared only when asked.

use crate::harness::{Place, as_each_user, has};
use crate::residue::snapshot::{self, Snapshot};

/// A home in which tools have been used.
fn used_home(p: &Place) {
    for (path, content) in [
        (".npm/_cacache/index", "npm\n"),
        (".cargo/registry/cache/index/a.crate", "crate\n"),
        (".cargo/bin/tool", "#!/bin/sh\necho tool\n"),
        (".cargo/credentials.toml", "token = \"SECRET\"\n"),
        (".cache/pip/http/x", "pip\n"),
        (".cache/other/x", "not a cache of a tool\n"),
        ("go/pkg/mod/m@v1/a.go", "package a\n"),
        (".m2/repository/a.jar", "jar\n"),
        (".m2/settings.xml", "SECRET\n"),
        ("private", "SECRET\n"),
    ] {
        p.write(p.home().join(path), content);
    }
    p.bare("chmod 755 ~/.cargo/bin/tool").ok();
}

fn home(p: &Place) -> Snapshot {
    // Home itself gets the store.
    snapshot::only(&p.home(), &|path| !path.starts_with(".local") && !path.as_os_str().is_empty())
}

const WRITE: &str = "set -e; echo more >> ~/.npm/_cacache/index; echo new > ~/.npm/new
    rm ~/.cargo/registry/cache/index/a.crate; mkdir ~/.cargo/registry/src
    mv ~/.cache/pip/http/x ~/.cache/pip/http/y; chmod 700 ~/go/pkg/mod/m@v1; echo x > ~/.m2/repository/b.jar
    cat ~/.npm/_cacache/index; ls ~/.cargo/registry ~/.cache/pip/http";

#[test]
fn caches_are_read_warm_and_written_privately() {
    as_each_user(|p| {
        used_home(p);
        let before = home(p);
        for flags in [vec![], vec!["--layer", "l"]] {
            let ran = p.shell(&flags, WRITE).ok();
            assert!(ran.out.starts_with("npm\nmore\n"), "{ran:#?}");
            assert!(ran.out.contains("src") && ran.out.contains('y'), "{ran:#?}");
            snapshot::assert_same(&before, &home(p), "after a run that writes to caches");
            // Gone with the run.
            let again = p.shell(&flags, "cat ~/.npm/_cacache/index; ls ~/.npm").ok();
            assert_eq!(again.out, "npm\n_cacache\n");
        }
        // Nothing else of home comes along.
        let ran = p.shell(
            &[],
            "cat ~/private ~/.m2/settings.xml ~/.cargo/credentials.toml ~/.cache/other/x; grep -rs SECRET ~",
        );
        assert_eq!(ran.out, "", "{ran:#?}");
        // Nor is what the host runs writable.
        p.shell(&[], "~/.cargo/bin/tool && ! echo x > ~/.cargo/bin/tool").ok().says("tool");
    });
}

#[test]
fn a_cache_is_shared_when_asked_for() {
    as_each_user(|p| {
        used_home(p);
        let before = home(p);
        p.shell(&["--share-cache", "npm"], "echo new > ~/.npm/new; echo x > ~/.m2/repository/x")
            .ok();
        assert!(p.home().join(".npm/new").exists());
        assert!(!p.home().join(".m2/repository/x").exists(), "only that of npm");
        p.shell(&["--share-cache", "all"], "rm ~/.npm/new; echo x > ~/.cargo/registry/x").ok();
        assert!(p.home().join(".cargo/registry/x").exists());
        p.shell(&["--share-cache", "all"], "rm ~/.cargo/registry/x; echo x > ~/.cargo/bin/tool")
            .failed_with(2);
        // In a layer it is one more place whose changes wait there.
        p.shell(&["--share-cache", "npm", "--layer", "l"], "echo new > ~/.npm/new").ok();
        p.shell(&["--share-cache", "npm", "--layer", "l"], "cat ~/.npm/new").ok().says("new");
        let mut after = home(p);
        // Times of directories that were written to and tidied.
        for dir in [".npm", ".cargo/registry"] {
            after.insert(dir.into(), before[std::path::Path::new(dir)].clone());
        }
        snapshot::assert_same(&before, &after, "after shared caches were tidied");
        p.shell(&["--share-cache", "nmp"], "true").failed_with(125).says("is not one of all");
    });
}

#[test]
fn what_the_policy_says_of_a_cache_wins() {
    as_each_user(|p| {
        used_home(p);
        p.write(p.home().join(".npm/_logs/token"), "SECRET\n");
        let before = home(p);
        for deny in ["~/.npm", "~/.npm/_logs", "~/.npm/_logs/token", "~/.n*", "~/.npm/**/token"] {
            let ran = p.shell(&["--deny-read", deny], "cat ~/.npm/_logs/token");
            assert_eq!(ran.out, "", "{deny}: {ran:#?}");
        }
        let ran = p.shell(
            &["--deny-write", "~/.npm/_logs"],
            "echo x > ~/.npm/_logs/new; echo x > ~/.npm/x; cat ~/.npm/x",
        );
        assert_eq!(ran.out, "x\n", "{ran:#?}");
        assert!(ran.err.contains("Read-only"), "{ran:#?}");
        // A profile that shows nothing of home shows no cache of it.
        let ran = p.shell(&["-t", "strict"], "ls -A ~/.npm ~/.cargo");
        assert_eq!(ran.out, "", "{ran:#?}");
        snapshot::assert_same(&before, &home(p), "after all runs");
        // Control: it was there to be read.
        p.shell(&[], "cat ~/.npm/_logs/token").ok().says("SECRET");
    });
}

#[test]
fn a_cache_that_is_a_link_is_not_followed() {
    as_each_user(|p| {
        p.write(p.outside().join("elsewhere/x"), "SECRET\n");
        p.write(p.home().join(".cache/pip/x"), "pip\n");
        let elsewhere = p.outside().join("elsewhere");
        p.bare(&format!("ln -s {0} ~/.npm; ln -s {0} ~/.cache/uv", elsewhere.display())).ok();
        let before = snapshot::of(&p.outside());
        let ran = p.shell(&[], "cat ~/.npm/x ~/.cache/uv/x; echo a > ~/.npm/a; cat ~/.cache/pip/x");
        assert_eq!(ran.out, "pip\n", "{ran:#?}");
        snapshot::assert_same(&before, &snapshot::of(&p.outside()), "what the links lead to");
    });
}

#[test]
fn npm_installs_from_the_warm_cache() {
    if !has("npm") || !has("node") {
        return;
    }
    as_each_user(|p| {
        p.write("dep/package.json", r#"{"name":"dep","version":"1.0.0"}"#);
        p.write("package.json", r#"{"name":"app","version":"1.0.0"}"#);
        // Into the host's cache, then installed by its content alone.
        p.bare(
            "set -e; (cd dep && npm pack --silent >/dev/null); npm cache add ./dep/dep-1.0.0.tgz; \
             npm install --silent --no-audit --no-fund ./dep/dep-1.0.0.tgz; rm -r node_modules dep/*.tgz",
        )
        .ok();
        let before = home(p);
        let script = "npm ci --silent --no-audit --no-fund --offline && ls node_modules";
        p.shell(&[], script).ok().says("dep");
        snapshot::assert_same(&before, &home(p), "after npm ci from the cache");
    });
}
