use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::super::git::Kind;
use super::super::{
    GitGuards, GitOptions, Matcher, Repository, RepositoryHint, Verdict, WalkOptions,
};
use super::super::{discover_git, walk};
use super::{fifo, git, temporary, write};

struct Nothing;

impl Matcher for Nothing {
    fn verdict(&self, _: &[u8], _: bool) -> Verdict {
        Verdict::Pass
    }

    fn fingerprint(&self) -> [u8; 16] {
        [0; 16]
    }
}

fn hints(workspace: &Path) -> Vec<RepositoryHint> {
    use std::os::fd::AsFd as _;
    let root = std::fs::File::open(workspace).unwrap();
    walk(root.as_fd(), &Nothing, &WalkOptions::default()).unwrap().repositories
}

fn discover(workspace: &Path) -> GitGuards {
    discover_git(workspace, &hints(workspace), &GitOptions::default()).unwrap()
}

fn repository<'a>(found: &'a GitGuards, git_dir: &Path) -> &'a Repository {
    let found = found.repositories.iter().find(|r| r.git_dir == git_dir);
    found.unwrap_or_else(|| panic!("no repository at {}", git_dir.display()))
}

fn guarded(found: &GitGuards, path: &Path) -> bool {
    found.guards().iter().any(|g| g.path == path)
}

fn commit(dir: &Path) {
    git(dir, &["commit", "-q", "--allow-empty", "-m", "x"]);
}

#[test]
fn plain() {
    let (_keep, top) = temporary();
    git(&top, &["init", "-q", "w"]);
    let w = top.join("w");
    let found = discover(&w);
    assert_eq!(found.refused, []);
    assert_eq!(found.enclosing, None);
    let r = repository(&found, &w.join(".git"));
    assert_eq!((r.kind, r.worktree.as_deref()), (Kind::Plain, Some(&*w)));
    let names: Vec<_> = r
        .guards
        .iter()
        .map(|g| g.path.strip_prefix(&r.git_dir).unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names, ["config", "hooks"]);
    let absent: Vec<_> =
        r.absent.iter().map(|p| p.strip_prefix(&r.git_dir).unwrap().to_str().unwrap()).collect();
    let expected = ["commondir", "config.worktree", "info/attributes", "objects/info/alternates"];
    assert_eq!(absent, expected);
    assert_eq!(r.pins, [w.join(".git")]);
}

#[test]
fn linked_worktree_outside_and_inside() {
    let (_keep, top) = temporary();
    git(&top, &["init", "-q", "main"]);
    commit(&top.join("main"));
    git(&top.join("main"), &["worktree", "add", "-q", "../wt"]);
    let (common, wt) = (top.join("main/.git"), top.join("wt"));
    let found = discover(&wt);
    assert_eq!(found.refused, []);
    let r = repository(&found, &common.join("worktrees/wt"));
    assert_eq!((r.kind, &r.common_dir), (Kind::Worktree, &common));
    assert_eq!(r.outside, [&*common]);
    for path in ["config", "hooks", "worktrees/wt/commondir", "worktrees/wt/gitdir"] {
        assert!(guarded(&found, &common.join(path)), "{path}");
    }
    assert!(guarded(&found, &wt.join(".git")));
    // Both below one workspace: nothing outside is needed.
    let found = discover(&top);
    assert_eq!(found.outside(), Vec::<&Path>::new());
    assert_eq!(found.repositories.len(), 2);
    assert!(guarded(&found, &wt.join(".git")));
}

#[test]
fn relative_worktree_links_verify_too() {
    let (_keep, top) = temporary();
    git(&top, &["init", "-q", "main"]);
    commit(&top.join("main"));
    git(&top.join("main"), &["worktree", "add", "-q", "../wt"]);
    write(top.join("wt/.git"), "gitdir: ../main/.git/worktrees/wt\n");
    write(top.join("main/.git/worktrees/wt/gitdir"), "../../../../wt/.git\n");
    assert_eq!(discover(&top.join("wt")).outside(), [top.join("main/.git")]);
}

#[test]
fn submodules_nested_ones_too() {
    let (_keep, top) = temporary();
    for name in ["leaf", "middle", "w"] {
        git(&top, &["init", "-q", name]);
        commit(&top.join(name));
    }
    let add = |to: &str, what: &str, name: &str| {
        let from = top.join(what).to_str().unwrap().to_owned();
        git(&top.join(to), &["submodule", "--quiet", "add", &from, name]);
        git(&top.join(to), &["commit", "-q", "-m", "sub"]);
    };
    add("middle", "leaf", "deps/leaf");
    add("w", "middle", "mid");
    git(&top.join("w"), &["submodule", "--quiet", "update", "--init", "--recursive"]);
    let w = top.join("w");
    let found = discover(&w);
    assert_eq!(found.refused, []);
    let module = w.join(".git/modules/mid");
    let nested = module.join("modules/deps/leaf");
    assert_eq!(repository(&found, &module).kind, Kind::Submodule);
    let r = repository(&found, &nested);
    assert_eq!((r.kind, r.worktree.as_deref()), (Kind::Submodule, Some(&*w.join("mid/deps/leaf"))));
    for path in [
        nested.join("config"),
        nested.join("hooks"),
        w.join("mid/.git"),
        w.join("mid/deps/leaf/.git"),
        module.join("config"),
    ] {
        assert!(guarded(&found, &path), "{}", path.display());
    }
    for pin in [w.join(".git/modules"), module.clone(), module.join("modules/deps"), nested.clone()]
    {
        assert!(found.pins().contains(&&*pin), "{}", pin.display());
    }
    // The submodule as the workspace: its git directory lies in the superproject.
    let found = discover(&w.join("mid"));
    assert_eq!(found.refused, []);
    assert_eq!(found.outside(), [&*module]);
    assert!(guarded(&found, &module.join("config")));
    assert!(guarded(&found, &nested.join("config")));
}

#[test]
fn bare_and_bare_with_worktree() {
    let (_keep, top) = temporary();
    git(&top, &["init", "-q", "main"]);
    commit(&top.join("main"));
    git(&top, &["clone", "-q", "--bare", "main", "w/b.git"]);
    git(&top.join("w/b.git"), &["worktree", "add", "-q", "../wt"]);
    let w = top.join("w");
    let found = discover(&w);
    assert_eq!(found.refused, []);
    let bare = repository(&found, &w.join("b.git"));
    assert_eq!((bare.kind, &bare.worktree), (Kind::Bare, &None));
    assert!(guarded(&found, &w.join("b.git/config")));
    assert!(guarded(&found, &w.join("b.git/worktrees/wt/commondir")));
    assert_eq!(repository(&found, &w.join("b.git/worktrees/wt")).common_dir, w.join("b.git"));
    let found = discover(&w.join("wt"));
    assert_eq!(found.outside(), [w.join("b.git")]);
}

#[test]
fn separate_git_directory() {
    let (_keep, top) = temporary();
    let w = top.join("w");
    std::fs::create_dir(&w).unwrap();
    let separate = top.join("sep");
    git(&w, &["init", "-q", &format!("--separate-git-dir={}", separate.display())]);
    // It does not say whose it is, so it cannot be granted.
    let found = discover(&w);
    assert_eq!(found.outside(), Vec::<&Path>::new());
    assert_eq!(found.refused.len(), 1);
    assert!(guarded(&found, &w.join(".git")));
    git(&w, &["config", "core.worktree", w.to_str().unwrap()]);
    assert_eq!(discover(&w).outside(), [&*separate]);
}

#[test]
fn hostile_git_files_are_granted_nothing() {
    let (_keep, top) = temporary();
    let w = top.join("w");
    git(&top, &["init", "-q", "victim"]);
    commit(&top.join("victim"));
    git(&top.join("victim"), &["worktree", "add", "-q", "../other"]);
    let victim = top.join("victim/.git");
    let shown = victim.display();
    for (name, text) in [
        ("etc", "gitdir: /etc\n".to_owned()),
        ("root", "gitdir: /\n".to_owned()),
        ("parent", "gitdir: ..\n".to_owned()),
        ("plain", format!("gitdir: {shown}\n")),
        ("stolen", format!("gitdir: {shown}/worktrees/other\n")),
        ("missing", "gitdir: /nonexistent/x\n".to_owned()),
        ("empty", String::new()),
        ("huge", "gitdir: /".to_owned() + &"x".repeat(1 << 20)),
    ] {
        write(w.join(name).join(".git"), text);
    }
    // An inner git directory that borrows the victim's common directory.
    write(w.join("inner/.git"), "gitdir: fake\n");
    write(w.join("inner/fake/commondir"), format!("{shown}\n"));
    write(w.join("inner/fake/HEAD"), "");
    // And one whose commondir is itself, and a pair that lead to each other.
    write(w.join("loop/.git/commondir"), ".\n");
    write(w.join("a/.git/commondir"), "../../b/.git\n");
    write(w.join("b/.git/commondir"), "../../a/.git\n");
    std::fs::create_dir_all(w.join("pipe/.git")).unwrap();
    fifo(&w.join("pipe/.git/config"));
    fifo(&w.join("pipe/.git/commondir"));
    std::fs::create_dir_all(w.join("pipe2")).unwrap();
    fifo(&w.join("pipe2/.git"));
    std::fs::create_dir_all(w.join("out")).unwrap();
    symlink(&victim, w.join("out/.git")).unwrap();
    write(w.join("big/.git/config"), vec![b'#'; 10 << 20]);
    let found = discover(&w);
    assert_eq!(found.outside(), Vec::<&Path>::new());
    assert!(!found.pins().contains(&&*w));
    let refused: Vec<_> =
        found.refused.iter().filter_map(|(p, _)| p.strip_prefix(&w).ok()?.to_str()).collect();
    for name in [
        "etc/.git",
        "root/.git",
        "plain/.git",
        "stolen/.git",
        "missing/.git",
        "empty/.git",
        "huge/.git",
        "inner/.git",
        "pipe/.git/config",
        "pipe/.git/commondir",
        "pipe2/.git",
        "out/.git",
        "big/.git/config",
    ] {
        assert!(refused.contains(&name), "{name}: {:?}", found.refused);
    }
    for name in [
        "loop/.git/commondir",
        "a/.git/commondir",
        "b/.git/commondir",
        "big/.git/config",
        "pipe/.git/config",
        "etc/.git",
        "parent/.git",
    ] {
        assert!(guarded(&found, &w.join(name)), "{name}");
    }
}

#[test]
fn symbolic_links_in_git_directories_are_followed_to_guards() {
    let (_keep, top) = temporary();
    let w = top.join("w");
    git(&top, &["init", "-q", "w"]);
    std::fs::rename(w.join(".git/hooks"), w.join("tracked-hooks")).unwrap();
    symlink("../tracked-hooks", w.join(".git/hooks")).unwrap();
    git(&top, &["init", "-q", "w/real"]);
    std::fs::create_dir(w.join("link")).unwrap();
    symlink("../real/.git", w.join("link/.git")).unwrap();
    let found = discover(&w);
    let guards = found.guards();
    assert!(guards.iter().any(|g| g.path == w.join(".git/hooks") && g.is_symlink));
    assert!(guards.iter().any(|g| g.path == w.join("tracked-hooks") && g.is_dir));
    assert!(guards.iter().any(|g| g.path == w.join("link/.git") && g.is_symlink));
    assert!(guarded(&found, &w.join("real/.git/config")));
}

#[test]
fn hooks_includes_and_programs_of_the_configuration() {
    let (_keep, top) = temporary();
    let w = top.join("w");
    git(&top, &["init", "-q", "w"]);
    write(w.join(".husky/_/pre-commit"), "");
    write(w.join("tools/filter.sh"), "");
    write(w.join(".gitconfig"), "[include]\npath = more\n[core]\nhooksPath = .husky/_\n");
    git(&w, &["config", "include.path", "../.gitconfig"]);
    git(&w, &["config", "filter.x.clean", "tools/filter.sh %f"]);
    git(&w, &["config", "includeIf.gitdir:/x/.path", "../not-yet"]);
    // A circle, which git refuses.
    write(w.join("more"), "[include]\npath = .gitconfig\n");
    let found = discover(&w);
    for path in [".husky", ".gitconfig", "more", "tools/filter.sh"] {
        assert!(guarded(&found, &w.join(path)), "{path}: {:?}", found.guards());
    }
    assert!(found.absent().contains(&&*w.join("not-yet")));
    // The caller's own configuration applies where the repository's says nothing.
    git(&top, &["init", "-q", "v"]);
    let own = top.join("gitconfig");
    write(&own, "[core]\nhooksPath = .githooks\n");
    let user_config = [own];
    let options = GitOptions { home: None, user_config: &user_config };
    let v = top.join("v");
    let found = discover_git(&v, &hints(&v), &options).unwrap();
    assert!(found.absent().contains(&&*v.join(".githooks")));
}

#[test]
fn the_repository_around_the_workspace() {
    let (_keep, top) = temporary();
    git(&top, &["init", "-q", "r"]);
    let sub = top.join("r/a/b");
    std::fs::create_dir_all(&sub).unwrap();
    let found = discover(&sub);
    assert_eq!(found.enclosing.unwrap().git_dir, top.join("r/.git"));
    let home = top.join("r/a");
    let options = GitOptions { home: Some(&home), user_config: &[] };
    assert_eq!(discover_git(&sub, &[], &options).unwrap().enclosing, None);
    // A repository of its own hides the one around it.
    git(&sub, &["init", "-q"]);
    assert_eq!(discover(&sub).enclosing, None);
}

#[test]
fn repositories_made_or_moved_during_a_run_are_new() {
    let (_keep, top) = temporary();
    let w = top.join("w");
    git(&top, &["init", "-q", "w"]);
    git(&w, &["init", "-q", "old"]);
    let before = discover(&w);
    assert!(before.new_since(&w, &hints(&w)).is_empty());
    std::fs::rename(w.join("old"), w.join("moved")).unwrap();
    git(&w, &["init", "-q", "old"]);
    let now = hints(&w);
    let new: Vec<_> = before.new_since(&w, &now).iter().map(|h| h.path.clone()).collect();
    assert_eq!(new, [PathBuf::from("moved"), PathBuf::from("old")]);
}

#[test]
fn names_that_are_not_unicode() {
    let (_keep, top) = temporary();
    let w = top.join(std::ffi::OsStr::from_bytes(b"w\xff"));
    std::fs::create_dir(&w).unwrap();
    git(&w, &["init", "-q"]);
    let found = discover(&w);
    assert!(guarded(&found, &w.join(".git/config")));
}
