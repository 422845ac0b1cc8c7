//! Tools in a layer do what they do on the host: each script runs in a layer, then without ringfence
//! on the same tree, and says the same. What the layer shows afterwards is what the host then has.

use crate::harness::{Place, Ran, User, as_each_user, has};
use crate::residue::snapshot;

/// Names and content of everything, but for what differs from one run to the next.
const LIST: &str = "find . -path ./.git -prune -o -type f ! -name '*.pyc' ! -name '*.d' \
    ! -name '.package-lock.json' -print0 | sort -z | xargs -0 -r sha256sum; \
    find . -path ./.git -prune -o -type l -printf '%p %l\\n' | sort; \
    find . -path ./.git -prune -o -type d -printf '%p %m\\n' | sort";

/// Runs `script` in a layer and then on the host, and compares what it says; and, with `trees`, what
/// is there.
#[track_caller]
fn as_on_the_host(p: &Place, script: &str, trees: bool) -> Ran {
    let before = snapshot::of(&p.workspace());
    let inside = p.shell(&["--layer", "tools"], script).ok();
    let seen = trees.then(|| p.shell(&["--layer", "tools"], LIST).ok().out);
    snapshot::assert_same(&before, &snapshot::of(&p.workspace()), "after a run in a layer");
    let outside = p.bare(script).ok();
    assert_eq!(inside.out, outside.out, "{inside:#?}");
    if let Some(seen) = seen {
        assert_eq!(seen, p.bare(LIST).ok().out, "what is there afterwards");
    }
    inside
}

fn git(p: &Place) {
    p.write(
        p.home().join(".gitconfig"),
        "[user]\n\tname = Tester\n\temail = tester@example.com\n[init]\n\tdefaultBranch = main\n\
         [advice]\n\tdetachedHead = false\n[gc]\n\tauto = 0\n",
    );
}

#[test]
fn git_works_on_a_repository_with_history() {
    if !has("git") {
        return;
    }
    as_each_user(|p| {
        git(p);
        p.bare(
            "set -e; git init -q; mkdir -p src/deep; \
             for i in $(seq 60); do echo $i > src/f$i; echo $i > src/deep/g$i; done; \
             echo top > top; git add -A; git commit -qm one; \
             for i in 2 3 4 5; do echo $i >> top; git commit -qam $i; done; git gc -q",
        )
        .ok();
        as_on_the_host(
            p,
            "set -e; export GIT_AUTHOR_DATE='2026-01-01 00:00' GIT_COMMITTER_DATE='2026-01-01 00:00'
             git status --porcelain; echo x >> top; rm src/f1; git add -A; git commit -qm more
             git checkout -q -b side HEAD~2; echo s > s; git add s; git commit -qm s
             git rebase -q main; git checkout -q main; git merge -q --no-edit side
             echo st >> top; git stash -q; git status --porcelain; git stash pop -q; git diff --stat
             git checkout -q -- top; git reset -q --hard HEAD~1; git cherry-pick side
             git worktree add -q tree -b tree; echo t > tree/t; git -C tree add t
             git -C tree commit -qm t; git worktree remove tree; git gc -q; git fsck --no-progress
             git clone -q . copy; git -C copy log --oneline; rm -rf copy
             git mv top renamed; git commit -qm renamed; git rm -rq src/deep; git commit -qm fewer
             git log --oneline --all; git status --porcelain",
            true,
        );
    });
}

#[test]
fn git_in_a_worktree_whose_repository_lies_elsewhere() {
    if !has("git") {
        return;
    }
    as_each_user(|p| {
        git(p);
        let main = p.outside().join("main");
        p.bare(&format!(
            "set -e; git init -q {0}; cd {0}; echo a > a; git add a; git commit -qm one; \
             git worktree add -q {1}/tree",
            main.display(),
            p.workspace().display()
        ))
        .ok();
        let (outside, project) = (snapshot::of(&p.outside()), snapshot::of(&p.workspace()));
        let script =
            "set -e; echo b >> a; git commit -qam two; git gc -q; git log --oneline | wc -l";
        let args = ["run", "--layer", "tools", "--", "/bin/sh", "-c"];
        let run = |script: &str| {
            let args = args.iter().copied().chain([script]);
            Ran::of(p.ringfence(args).current_dir(p.workspace().join("tree")))
        };
        assert_eq!(run(script).ok().out, "2\n");
        assert_eq!(run("git log --oneline | wc -l; git status --porcelain").ok().out, "2\n");
        run(&format!("echo x > {}/.git/hooks/pre-commit", main.display())).failed_with(2);
        snapshot::assert_same(&outside, &snapshot::of(&p.outside()), "the repository");
        snapshot::assert_same(&project, &snapshot::of(&p.workspace()), "the working tree");
    });
}

#[test]
fn a_directory_of_the_host_is_moved_by_copying() {
    as_each_user(|p| {
        p.write("dir/below/a", "a\n");
        p.write("dir/b", "b\n");
        // mv copies where a rename is refused, which it is for directories of the host only.
        as_on_the_host(p, "set -e; mv dir moved; mkdir new; mv new newer; cat moved/below/a", true);
        let script = "python3 -c 'import os; os.rename(\"moved\", \"again\")'";
        if has("python3") {
            p.shell(&["--layer", "rename"], script).failed_with(1).says("cross-device");
            p.bare(script).ok();
        }
    });
}

#[test]
fn npm_installs_updates_and_runs() {
    if !has("npm") || !has("node") {
        return;
    }
    as_each_user(|p| {
        for (name, version) in [("one", "1.0.0"), ("two", "1.0.0")] {
            let package = format!(r#"{{"name":"{name}","version":"{version}"}}"#);
            p.write(format!("packages/{name}/package.json"), package);
            p.write(format!("packages/{name}/index.js"), format!("module.exports='{name}'\n"));
        }
        p.write(
            "package.json",
            r#"{"name":"app","version":"1.0.0","dependencies":{"one":"file:one.tgz"},
                "scripts":{"test":"node -e \"console.log(require('one'))\""}}"#,
        );
        // Packed, so that they are unpacked into node_modules and not linked; installed on the host.
        p.bare(
            "set -e; export npm_config_cache=$HOME/npm; for d in one two; do \
             (cd packages/$d && npm pack --silent >/dev/null && mv *.tgz ../../$d.tgz); done; \
             npm install --silent --no-audit --no-fund --offline; test -f node_modules/one/index.js",
        )
        .ok();
        let script = "set -e; export npm_config_cache=/tmp/npm-cache
             npm install --silent --no-audit --no-fund --offline ./two.tgz; npm test --silent
             rm -rf node_modules; npm ci --silent --no-audit --no-fund --offline; npm test --silent
             npm uninstall --silent --no-audit --no-fund --offline two; ls node_modules
             rm -rf /tmp/npm-cache";
        as_on_the_host(p, script, true);
    });
}

#[test]
fn a_python_environment_installs_and_tests() {
    let modules = ["-c", "import venv, ensurepip"];
    if !has("python3")
        || Ran::of(Place::new(User::Me).command("python3").args(modules)).code != Some(0)
    {
        println!("skipped: python3 has no venv");
        return;
    }
    as_each_user(|p| {
        p.write("test_it.py", "import unittest\nclass T(unittest.TestCase):\n def test(self):\n  open('out', 'w').write('x')\n");
        // Made on the host, used and made anew in the layer.
        p.bare("python3 -m venv env").ok();
        let script = "set -e; env/bin/python -m unittest -q 2>/dev/null; cat out; rm -r env
            python3 -m venv env; env/bin/python -c 'import sys; print(sys.prefix)'
            env/bin/pip --version";
        as_on_the_host(p, script, false);
    });
}

#[test]
fn make_and_cargo_build() {
    as_each_user(|p| {
        if has("make") && has("gcc") {
            p.write("main.c", "#include <stdio.h>\nint f(void);\nint main(void) { printf(\"%d\\n\", f()); return 0; }\n");
            p.write("f.c", "int f(void) { return 42; }\n");
            p.write(
                "Makefile",
                "app: main.o f.o\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O2 -pipe -c $<\n\
                 clean:\n\trm -f app *.o\n",
            );
            p.bare("make").ok();
            // What was built on the host is up to date, until something changes.
            as_on_the_host(
                p,
                "make -q; echo 'int f(void) { return 43; }' > f.c; make; ./app; make -q",
                true,
            );
        }
        if std::path::Path::new("/usr/bin/cargo").exists() || p.user == User::Me && has("cargo") {
            cargo(p);
        }
    });
}

fn cargo(p: &Place) {
    p.write(
        "crate/Cargo.toml",
        "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    );
    p.write("crate/src/main.rs", "fn main() { println!(\"{}\", 6 * 7); }\n");
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from).unwrap_or_default();
    let bin = home.join(".cargo/bin");
    if !std::path::Path::new("/usr/bin/cargo").exists() && !bin.join("cargo").exists() {
        println!("skipped: no cargo that user {} may run", p.ids().0);
        return;
    }
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display());
    let run = |mut command: std::process::Command| {
        command
            .env("PATH", &path)
            .env("HOME", &home)
            .env("RINGFENCE_STATE", p.home().join("state"));
        Ran::of(&mut command)
    };
    let script = "cd crate && cargo build -q && cargo test -q 2>&1 | grep -c 'test result: ok'; target/debug/app";
    let mut bare = p.command("/bin/sh");
    bare.args(["-c", "cd crate && cargo build -q"]);
    run(bare).ok();
    let before = snapshot::of(&p.workspace());
    let args = ["run", "--layer", "tools", "--", "/bin/sh", "-c"];
    let touched = format!("echo '// more' >> crate/src/main.rs; {script}");
    let ran = run(p.ringfence(args.iter().copied().chain([&*touched]))).ok();
    assert_eq!(ran.out, "1\n42\n", "{ran:#?}");
    snapshot::assert_same(&before, &snapshot::of(&p.workspace()), "after a build in a layer");
    // What the layer has is up to date in the next run.
    let again = "cd crate && cargo build 2>&1";
    let ran = run(p.ringfence(args.iter().copied().chain([again]))).ok();
    assert!(!ran.out.contains("Compiling"), "{ran:#?}");
}
