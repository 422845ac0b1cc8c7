//! git in every layout a repository can have: work goes on, hooks do not change, and configuration
//! changes for the run only.

use std::path::Path;

use crate::harness::{Place, Ran, as_each_user, has};
use crate::residue::snapshot::{self, Snapshot};

/// A home with the identity that git asks for.
fn identity(p: &Place) {
    p.write(
        p.home().join(".gitconfig"),
        "[user]\n\tname = Tester\n\temail = tester@example.com\n[init]\n\tdefaultBranch = main\n\
         [advice]\n\tdetachedHead = false\n[protocol \"file\"]\n\tallow = always\n",
    );
}

fn each_user(case: impl Fn(&Place)) {
    if !has("git") {
        return;
    }
    as_each_user(|p| {
        identity(p);
        case(p);
    });
}

/// A repository with some history, made without the sandbox.
fn repository(p: &Place, dir: &str) {
    p.bare(&format!(
        "set -e; mkdir -p {dir}; cd {dir}; git init -q; mkdir -p src/deep; \
         for i in $(seq 150); do echo $i > src/f$i; echo $i > src/deep/g$i; done; \
         echo top > top; git add -A; git commit -qm one; \
         for i in 2 3 4 5; do echo $i >> top; git commit -qam $i; done"
    ))
    .ok();
}

/// A repository of one file.
fn small(p: &Place, dir: &str) {
    p.bare(&format!(
        "set -e; mkdir -p {dir}; cd {dir}; git init -q; echo a > a; git add a; git commit -qm one"
    ))
    .ok();
}

/// What git on the host runs or obeys, in every repository below `root`.
fn guarded(root: &Path) -> Snapshot {
    snapshot::only(root, &|path| {
        let in_git = path.components().any(|c| {
            Path::new(c.as_os_str()).extension().is_some_and(|e| e == "git")
                || c.as_os_str() == ".git"
        });
        let name = path.file_name().unwrap_or_default();
        in_git
            && (path.components().any(|c| c.as_os_str() == "hooks")
                || name == "config"
                || name == "config.worktree"
                || path.ends_with("info/attributes"))
    })
}

/// Runs a script inside and checks that no guarded file of an existing repository changed.
#[track_caller]
fn unchanged(p: &Place, flags: &[&str], script: &str) -> Ran {
    let before = guarded(p.root());
    assert!(!before.is_empty(), "there is nothing to guard");
    let ran = p.shell(flags, script);
    let mut after = guarded(p.root());
    // Repositories that the run made have guards of their own.
    after.retain(|path, _| before.contains_key(path));
    snapshot::assert_same(&before, &after, "guarded git state");
    ran
}

#[test]
fn everyday_work_on_a_repository_with_history() {
    each_user(|p| {
        repository(p, ".");
        let ran = unchanged(
            p,
            &[],
            "set -e
             test -z \"$(git status --porcelain)\"
             echo x >> top; git add -A; git commit -qm more; git log --oneline | wc -l
             git diff --stat HEAD~1 | tail -1
             git checkout -q -b side; echo s > s; git add s; git commit -qm s
             git checkout -q main; echo m > m; git add m; git commit -qm m
             git merge -q -m merge side; git tag v1; git describe --tags
             echo st >> top; git stash -q; test -z \"$(git status --porcelain)\"; git stash pop -q
             git checkout -q -- top; git checkout -q -b topic HEAD~1
             echo t > t; git add t; git commit -qm t; git rebase -q main
             git log --oneline | wc -l
             git revert --no-edit HEAD >/dev/null; git reset -q --hard HEAD~1
             git gc -q; git fsck --no-progress; git grep -c top -- top
             git clone -q . /tmp/clone; git -C /tmp/clone log --oneline | wc -l
             git archive HEAD | tar -t | wc -l; git bundle create -q /tmp/b main
             git status --porcelain",
        )
        .ok();
        let lines: Vec<_> = ran.out.lines().map(str::trim).collect();
        let stat = "1 file changed, 1 insertion(+)";
        assert_eq!(lines[..4], ["6", stat, "v1", "10"], "{ran:?}");
        assert!(lines.contains(&"top:1") && lines.contains(&"10"), "{ran:?}");
        // What was committed inside is there outside, and sound.
        p.bare("git fsck --no-progress && git log --oneline topic | wc -l").ok().says("10");
        let clean = p.bare("git status --porcelain").ok();
        assert_eq!(clean.out, "");
    });
}

#[test]
fn a_clone_made_inside_is_complete_and_has_no_live_hook() {
    each_user(|p| {
        repository(p, "origin");
        small(p, "lib");
        p.bare("cd origin && git submodule --quiet add ../lib sub && git commit -qm sub").ok();
        unchanged(
            p,
            &[],
            "set -e; git clone -q --recurse-submodules origin copy 2>&1; cd copy; cat sub/a
             echo n > n; git add n; git commit -qm n; git push -q origin HEAD:refs/heads/from-copy
             test -z \"$(git status --porcelain)\"",
        )
        .ok()
        .says("a\n");
        p.bare("git -C copy fsck --no-progress && git -C origin log --oneline from-copy | wc -l")
            .ok()
            .says("7");
        p.bare("cat copy/sub/a").ok().says("a\n");
        let ran = p.shell(
            &[],
            "git clone -q origin trap && cd trap && git config core.fsmonitor ./x.sh \
             && printf '#!/bin/sh\\n' > .git/hooks/post-checkout && chmod +x .git/hooks/post-checkout",
        );
        let ran = ran.ok().says("post-checkout").says("core.fsmonitor");
        assert!(!p.workspace().join("trap/.git/hooks/post-checkout").exists(), "{ran:?}");
    });
}

#[test]
fn a_linked_worktree_whose_repository_lies_outside_commits() {
    each_user(|p| {
        let main = p.outside().join("main");
        small(p, &main.display().to_string());
        p.bare(&format!(
            "git -C {} worktree add -q {}/tree",
            main.display(),
            p.workspace().display()
        ))
        .ok();
        let mut args = vec!["run", "--", "/bin/sh", "-c"];
        let script = format!(
            "set -e; echo b >> a; git commit -qam two; git checkout -q -b other; git gc -q
             git log --oneline | wc -l; test -z \"$(git status --porcelain)\"
             ! echo x > {main}/.git/hooks/pre-commit
             ! mv {main}/.git/hooks {main}/.git/away
             ! mv {main}/.git/config {main}/.git/away
             echo '[a] x = y' >> {main}/.git/config; test $(git config a.x) = y
             git config core.fsmonitor x
             ls -A {main}",
            main = main.display()
        );
        args.push(&script);
        let before = guarded(p.root());
        let ran = Ran::of(p.ringfence(args).current_dir(p.workspace().join("tree"))).ok();
        // Of the main working tree only the git directory is shown.
        assert_eq!(ran.out, "2\n.git\n", "{ran:?}");
        let ran = ran.says("main/.git/config: the run changed a private copy of it");
        ran.says("core.fsmonitor (makes git run something");
        snapshot::assert_same(&before, &guarded(p.root()), "guarded git state");
        p.bare(&format!("git -C {} log --oneline other", main.display())).ok().says("two");
    });
}

#[test]
fn a_worktree_added_inside_commits_and_is_known_outside() {
    each_user(|p| {
        small(p, ".");
        unchanged(
            p,
            &[],
            "set -e; git worktree add -q tree -b tree; cd tree; echo b >> a; git commit -qam two
             test -z \"$(git status --porcelain)\"",
        )
        .ok();
        // The next run finds it as a repository of its own.
        unchanged(p, &[], "cd tree && echo c >> a && git commit -qam three").ok();
        p.bare("git worktree list && git log --oneline tree --").ok().says("three").says("/tree");
        let trap = unchanged(p, &[], "echo x > .git/worktrees/tree/config.worktree").ok();
        let trap = trap.says("config.worktree is a guarded name that the run created");
        assert_eq!(trap.err.lines().count(), 1, "said once: {trap:?}");
        assert!(!p.workspace().join(".git/worktrees/tree/config.worktree").exists());
    });
}

#[test]
fn submodules_commit_and_their_configuration_stays() {
    each_user(|p| {
        small(p, "lib");
        small(p, "app");
        p.bare("cd app && git submodule --quiet add ../lib sub && git commit -qm sub").ok();
        let ran = unchanged(
            p,
            &[],
            "set -e; cd app/sub; echo b >> a; git commit -qam two; cd ..
             git add sub; git commit -qm bump; git submodule status; test -z \"$(git status --porcelain)\"
             ! echo x > .git/modules/sub/hooks/pre-commit
             ! mv .git/modules/sub .git/modules/away
             ! mv .git/modules .git/away
             git -C sub remote add other ../x; git -C sub remote get-url other",
        );
        let ran = ran.ok().says(" sub (heads/main)").says("modules/sub/config: the run changed");
        ran.says("remote.other.url");
        p.bare("git -C app/sub log --oneline && git -C app fsck --no-progress").ok().says("two");
    });
}

#[test]
fn nested_and_bare_repositories_and_separate_git_directories() {
    each_user(|p| {
        small(p, ".");
        small(p, "vendor/deep/nested");
        p.bare(
            "set -e; git clone -q --bare . bare.git; git clone -q bare.git clone
             git init -q --separate-git-dir=sep.git separate; cd separate
             echo a > a; git add a; git commit -qm one",
        )
        .ok();
        unchanged(
            p,
            &[],
            "set -e
             cd vendor/deep/nested; echo b >> a; git commit -qam two; git config a.b c; cd ../../..
             ! git config a.b
             cd separate; echo b >> a; git commit -qam two; git config a.b d; git config a.b
             ! echo x > ../sep.git/hooks/pre-commit; cd ..
             cd clone; echo b >> a; git commit -qam pushed; git push -q; cd ..
             ! echo x > bare.git/hooks/post-receive; git -C bare.git config a.b e
             git -C bare.git config a.b; git -C vendor/deep/nested config a.b
             ! mv bare.git/hooks bare.git/away",
        )
        .ok();
        p.bare("git -C bare.git log --oneline && git -C vendor/deep/nested log --oneline")
            .ok()
            .says("pushed")
            .says("two");
        // A git directory outside that does not name its working tree is not opened for one that
        // merely points at it, and the run says so.
        p.bare("git init -q --separate-git-dir=../outside/far.git far").ok();
        p.shell(&[], "cd far && git status")
            .failed_with(128)
            .says("far.git lies outside the workspace");
    });
}

#[test]
fn a_directory_of_a_larger_repository_can_look_at_it_and_not_change_it() {
    each_user(|p| {
        repository(p, ".");
        let before = snapshot::of(&p.workspace().join(".git"));
        let ran = Ran::of(
            p.ringfence(["-c", "git log --oneline | wc -l; echo x >> f1; git diff --stat -- . | tail -1; git commit -qam no"])
                .current_dir(p.workspace().join("src")),
        );
        assert_ne!(ran.code, Some(0), "{ran:?}");
        ran.says("5\n").says("1 file changed");
        snapshot::assert_same(
            &before,
            &snapshot::of(&p.workspace().join(".git")),
            "the repository",
        );
    });
}

/// Each writes where git on the host would obey; natively it works (the control), inside it does not.
const REFUSED: &[&str] = &[
    "echo x > .git/hooks/pre-commit",
    "echo x >> .git/hooks/pre-push.sample",
    "chmod 777 .git/hooks",
    "rm -rf .git/hooks",
    "mv .git/hooks .git/away",
    "mv .git away",
    "rm -rf .git/hooks; ln -s /tmp .git/hooks",
    "ln -sfn /tmp .git/config",
    "ln -sf ../a .git/new && mv -T .git/new .git/config",
    "rm -f .git/config",
    "rm -f .git/config && cp a .git/config",
    "mv .git/config .git/away",
    "cp a .git/new && mv .git/new .git/config",
    "ln .git/config hard && echo x >> hard",
    "ln -f a .git/config",
    "sed -i s/bare/fsmonitor/ .git/config",
    "mkdir away && mv .git/hooks away",
    "python3 -c 'import os; os.rename(\".git\", \"g\"); os.mkdir(\".git\")'",
    "python3 -c 'import os; os.replace(\"a\", \".git/config\")'",
];

/// The same for configuration: inside they work as natively, on a private copy.
const DIVERTED: &[&str] = &[
    "git config core.fsmonitor ./x",
    "git config core.hooksPath /tmp",
    "git config alias.status '!sh -c id'",
    "git config filter.f.smudge ./x",
    "git config include.path ../a",
    "git config --unset core.bare",
    "git remote add evil ext::sh",
    "echo '[core] fsmonitor = ./x' >> .git/config",
    "printf '[core]\\nfsmonitor = ./x\\n' > .git/config",
    "cp a .git/config",
    "ln -L .git/config hard && rm -f hard; git config core.editor ./x",
    "dd if=a of=.git/config conv=notrunc 2>/dev/null",
    "truncate -s 0 .git/config",
    "touch -d 2001-01-01 .git/config",
    "chmod 777 .git/config",
    "python3 -c 'import os; os.chmod(\".git/config\", 0o666); open(\".git/config\", \"r+\").write(\"#\")'",
    // Behind the link: what the copy lies in, and the host's file through it.
    "git config core.pager ./x; d=$(dirname $(readlink .git/config || echo .git/config)); \
     mv $d/config $d/x && ln -s \"$PWD/a\" $d/config",
];

/// A pattern speaks of the directory of a repository too, but for the names of git's own in it.
#[test]
fn what_patterns_hide_is_hidden_in_a_repository_and_branches_have_any_name() {
    each_user(|p| {
        small(p, ".");
        for name in [".git/x.key", ".git/hooks/y.key", ".git/info/.env", ".git/own.hid"] {
            p.write(name, "TOP SECRET\n");
        }
        let cat = "cat .git/x.key .git/hooks/y.key .git/info/.env .git/own.hid";
        let file =
            p.write("../outside/deny.toml", "extends = \"code\"\n[files]\ndeny = [\"**/*.hid\"]\n");
        let ran = p.shell(&["-s", &file.display().to_string()], cat);
        assert!(!ran.out.contains("SECRET"), "{ran:#?}");
        let work = "set -e; git checkout -qb of/server.key; echo b > a; git commit -qam two; \
            git checkout -q -; git branch -D of/server.key";
        p.shell(&["-s", &file.display().to_string()], work).ok();
        p.bare("git branch of/server.key").ok();
        p.shell(
            &["-s", &file.display().to_string()],
            "git rev-parse of/server.key && git log of/server.key",
        )
        .ok();
        // The control: what is hidden is there.
        assert_eq!(p.bare(cat).out.matches("SECRET").count(), 4);
        let ran = p.shell(&["-t", "permissive"], cat);
        assert!(ran.out.contains("SECRET"), "{ran:#?}");
    });
}

#[test]
fn hooks_and_configuration_cannot_be_written_replaced_or_moved_away() {
    each_user(|p| {
        small(p, "pristine");
        let cases = REFUSED.iter().map(|a| (a, true)).chain(DIVERTED.iter().map(|a| (a, false)));
        for (i, (attack, refused)) in cases.enumerate() {
            let program = attack.split_whitespace().next().unwrap();
            if program == "python3" && !has("python3") {
                continue;
            }
            p.bare(&format!("cp -a pristine victim{i}; cp -a pristine control{i}")).ok();
            let state = |name: &str| guarded_in(&p.workspace().join(format!("{name}{i}")));
            let control = state("control");
            p.bare(&format!("cd control{i}; {attack}"));
            assert_ne!(control, state("control"), "the control of {attack:?} should succeed");
            let victim = state("victim");
            let ran = p.shell(&[], &format!("cd victim{i}; {attack}"));
            assert_eq!(ran.code != Some(0), refused, "{attack:?}: {ran:?}");
            snapshot::assert_same(&victim, &state("victim"), attack);
            p.bare(&format!("rm -rf victim{i} control{i} away")).ok();
        }
    });
}

/// A repository with submodules that a clone has not got yet, one with a module, and a library.
fn to_be_cloned(p: &Place) {
    small(p, "lib");
    small(p, "origin");
    p.bare("cd origin && git submodule --quiet add ../lib sub && git commit -qm sub").ok();
    p.bare("git clone -q origin app").ok();
}

#[test]
fn submodules_remotes_and_branches_are_set_up_in_an_existing_repository() {
    each_user(|p| {
        to_be_cloned(p);
        let config = p.workspace().join("app/.git/config");
        let before = std::fs::read(&config).unwrap();
        let ran = unchanged(
            p,
            &[],
            "set -e; cd app
             git submodule --quiet update --init; cat sub/a
             git submodule --quiet add ../lib more; git commit -qm more
             git remote add up ../lib; git fetch -q up
             git config user.name Inside; git config user.name
             git checkout -q -b look origin/HEAD 2>/dev/null; git checkout -q -
             git checkout -q -b side; git branch -q --set-upstream-to origin/HEAD
             echo s > s; git add s; git commit -qm s; git push -q -u origin side
             git branch -m side renamed; git rev-parse --abbrev-ref '@{upstream}'
             git worktree add -q ../tree -b tree; git -C ../tree config user.name
             git submodule status | wc -l
             test -z \"$(git status --porcelain)\"",
        )
        .ok();
        let mark = "; to have it: ";
        assert_eq!(ran.out, "a\nInside\norigin/side\nInside\n2\n", "{ran:?}");
        assert_eq!(std::fs::read(&config).unwrap(), before);
        let told: Vec<&str> = ran.err.lines().filter(|l| l.contains("app/.git/config")).collect();
        assert_eq!(told.len(), 1, "{ran:?}");
        for key in [
            "branch.look.merge",
            "branch.renamed.merge",
            "remote.up.url",
            "submodule.more.url",
            "user.name",
        ] {
            assert!(told[0].contains(key), "{key}: {ran:?}");
        }
        // Nothing else is worth a word: what was made of the modules is as it should be.
        assert_eq!(ran.err.lines().filter(|l| l.starts_with("ringfence:")).count(), 1, "{ran:?}");
        // What was made is there outside, too, and the commands that are told make git know it.
        p.bare("cd app && git fsck --no-progress && cat sub/a more/a && git log -1 renamed").ok();
        p.bare("cd app && git submodule status").ok().says("\n-");
        p.bare(told[0].split_once(mark).unwrap().1).ok();
        let known = p.bare("cd app && git submodule status && git fetch up && git pull -q").ok();
        assert!(!known.out.contains("\n-"), "{known:?}");
        assert_eq!(p.bare("cd app && git config user.name").ok().out, "Inside\n");
    });
}

#[test]
fn configuration_of_one_worktree_is_a_copy_too() {
    each_user(|p| {
        small(p, ".");
        p.bare(
            "set -e; git config extensions.worktreeConfig true; git config --worktree a.b main
             git worktree add -q tree; git -C tree config --worktree a.b tree; git -C tree config a.b",
        )
        .ok()
        .says("tree\n");
        let ran = unchanged(
            p,
            &[],
            "set -e; git config --worktree a.b x; git -C tree config --worktree a.b y
             git config a.b; git -C tree config a.b; git -C tree config user.name z; git config user.name",
        )
        .ok();
        assert_eq!(ran.out, "x\ny\nz\n", "{ran:?}");
        for file in [".git/config:", ".git/config.worktree:", "worktrees/tree/config.worktree:"] {
            assert!(ran.err.contains(file), "{file} {ran:?}");
        }
    });
}

#[test]
fn configuration_that_cannot_be_copied_or_is_named_stays_read_only() {
    each_user(|p| {
        small(p, ".");
        let refused = "git config a.b c 2>&1; ! echo x >> .git/config; ! git config a.b";
        unchanged(p, &["--deny-write", ".git/config"], refused).ok().says("busy");
        // Too much to copy, which is said.
        p.bare("cp .git/config keep; yes '# fill' | head -c 1100000 >> .git/config").ok();
        unchanged(p, &[], refused).ok().says("busy").says("larger than 1048576 bytes");
        // A link keeps where it leads, and what it leads to its content.
        p.bare("mv keep .git/config; mv .git/config settings && ln -s ../settings .git/config")
            .ok();
        unchanged(p, &[], &format!("{refused}; ! echo x >> settings; ! mv settings s")).ok();
        assert!(p.workspace().join(".git/config").is_symlink());
        // Nothing to copy: the name appears, and is moved aside.
        p.bare("rm .git/config settings").ok();
        p.shell(&[], "git config core.fsmonitor ./x").ok().says("config is a guarded name");
        assert!(p.workspace().join(".git/config").symlink_metadata().is_err());
    });
}

#[test]
fn configuration_that_the_host_replaces_meanwhile_is_told() {
    each_user(|p| {
        small(p, ".");
        let script =
            "touch ready; while [ -e ready ]; do sleep 0.02; done; git config a.b; echo end";
        let run = std::thread::scope(|s| {
            let run = s.spawn(|| p.shell(&[], script));
            let host = "while ! [ -e ready ]; do sleep 0.02; done; git config a.b c; rm ready";
            p.bare(host).ok();
            run.join().unwrap()
        });
        let run = run.ok().says("end\n");
        run.says(".git/config was replaced on the host during the run");
    });
}

#[test]
fn what_was_not_kept_is_told_and_cannot_deceive() {
    each_user(|p| {
        small(p, ".");
        let said = |script: &str| p.shell(&[], script).err;
        assert_eq!(said("git config user.name >/dev/null; git status -s; touch .git/config"), "");
        assert_eq!(said("git config a.b c; git config --unset a.b"), "");
        let evil =
            said("printf '[user]\\nname = \"a\\33[2J\\\\nringfence: fine\"\\n' >> .git/config");
        assert!(evil.contains("user.name") && !evil.contains("to have it"), "{evil}");
        assert!(!evil.contains('\u{1b}') && evil.lines().count() == 1, "{evil}");
        // Whatever lies in the copy's place afterwards is not followed, and waited for no longer.
        let d = "d=$(dirname $(readlink .git/config)); rm $d/config; ";
        let secret = p.outside().join("secret");
        std::fs::write(&secret, "[secret]\n\tkey = told\n").unwrap();
        for (swap, problem) in [
            (format!("ln -s {} $d/config", secret.display()), "not a regular file"),
            ("mkfifo $d/config".to_owned(), "not a regular file"),
            ("mkdir $d/config".to_owned(), "not a regular file"),
            ("head -c 2000000 /dev/zero > $d/config".to_owned(), "larger than"),
            (format!("rm -r $d; ln -s {} $d", p.outside().display()), "cannot be compared"),
            ("rm -r $d".to_owned(), "cannot be compared"),
        ] {
            let told = said(&format!("{d}{swap}"));
            assert!(told.contains(problem) && !told.contains("secret"), "{swap}: {told}");
        }
        // Killed, so that nobody could look.
        let flags = ["--timeout", "1", "--grace", "0"];
        let killed = p.shell(&flags, "git config a.b c; sleep 60");
        killed.says("was not kept, and not looked at since it was killed");
        // A copy of a whole repository holds the link, which leads nowhere outside.
        let copied = p.shell(&[], "mkdir copy && cp -a .git copy/.git").ok();
        copied.says("copy/.git/config was created by the run: not a regular file");
        let link = std::fs::read_link(p.workspace().join("copy/.git/config")).unwrap();
        assert!(link.starts_with("/run/ringfence") && !link.exists(), "{link:?}");
    });
}

fn guarded_in(repository: &Path) -> Snapshot {
    snapshot::only(repository, &|path| {
        path == Path::new(".git")
            || path.starts_with(".git/hooks")
            || path == Path::new(".git/config")
    })
    .into_iter()
    .filter(|(path, _)| path != Path::new(".git"))
    .collect()
}

#[test]
fn guarded_names_that_the_run_creates_are_moved_aside() {
    each_user(|p| {
        small(p, ".");
        p.bare("rm -rf .git/hooks").ok();
        p.write(".cursor/rules", "mine");
        let ran = p
            .shell(
                &[],
                "set -e; mkdir .vscode; echo v > .vscode/tasks.json; echo m > .mcp.json; echo e > .envrc
                 mkdir .git/hooks; printf '#!/bin/sh\\n' > .git/hooks/pre-commit
                 chmod +x .git/hooks/pre-commit; echo c > .git/config.worktree; echo i > .git/info/attributes
                 ln -s /etc/passwd .bashrc; ! echo x >> .cursor/rules; ! mv .cursor away",
            )
            .ok();
        let names = [
            ".vscode",
            ".mcp.json",
            ".envrc",
            ".git/hooks",
            ".git/config.worktree",
            ".git/info/attributes",
            ".bashrc",
        ];
        for name in names {
            assert!(!p.workspace().join(name).exists(), "{name}: {ran:?}");
            let held = p.workspace().join(format!("{name}.ringfence-held"));
            assert!(held.symlink_metadata().is_ok(), "{name}: nothing is lost: {ran:?}");
            assert!(ran.err.contains(&format!("{name} is a guarded name")), "{name}: {ran:?}");
        }
        let tasks = p.workspace().join(".vscode.ringfence-held/tasks.json");
        assert_eq!(std::fs::read_to_string(tasks).unwrap(), "v\n");
        assert_eq!(std::fs::read_to_string(p.workspace().join(".cursor/rules")).unwrap(), "mine");
        // Again: what was held before is not overwritten.
        p.shell(&[], "echo second > .envrc").ok().says(".envrc");
        let first = std::fs::read_to_string(p.workspace().join(".envrc.ringfence-held")).unwrap();
        assert_eq!(first, "e\n");
        assert!(!p.workspace().join(".envrc").exists());
    });
}

#[test]
fn status_inside_shows_no_foreign_entry() {
    each_user(|p| {
        small(p, ".");
        for (name, text) in [(".env", "S=1"), ("server.key", "k"), (".vscode/settings.json", "{}")]
        {
            p.write(name, text);
        }
        p.bare("git add -Af . && git commit -qm all").ok();
        let outside = p.bare("git status --porcelain --ignored").ok();
        let inside =
            p.shell(&[], "git status --porcelain --ignored | grep -v '^ [MTD] '; true").ok();
        assert_eq!(inside.out, outside.out, "nothing untracked appears");
        assert_eq!(std::fs::read_to_string(p.workspace().join(".env")).unwrap(), "S=1");
    });
}
