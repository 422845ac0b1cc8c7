use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::super::{absent_names, hold, inspect_new_repository, sweep};
use super::{git, temporary, write};

#[test]
fn names_that_appear_are_found_and_held() {
    let (_keep, root) = temporary();
    write(root.join("there"), "");
    symlink("x", root.join("link")).unwrap();
    symlink("x", root.join("same")).unwrap();
    let dir = File::open(&root).unwrap();
    let names = [".vscode/tasks.json", ".envrc", "there", "link", "same", "never", ".husky"];
    let absent = absent_names(dir.as_fd(), &names).unwrap();
    assert_eq!(absent.names().len(), 6);
    assert_eq!(sweep(&absent), []);
    // A link stands for the directory, so the link is what must go.
    write(root.join("elsewhere/tasks.json"), "");
    symlink("elsewhere", root.join(".vscode")).unwrap();
    write(root.join(".envrc"), "");
    std::fs::create_dir(root.join(".husky")).unwrap();
    std::fs::remove_file(root.join("link")).unwrap();
    symlink("y", root.join("link")).unwrap();
    let found = sweep(&absent);
    let paths: Vec<_> = found.iter().map(|a| a.path.to_str().unwrap()).collect();
    assert_eq!(paths, [".vscode", ".envrc", "link", ".husky"]);
    assert!(found[0].is_symlink && found[3].is_dir);
    write(root.join(".envrc.ringfence-held"), "older");
    for appeared in &found {
        hold(absent.root(), &appeared.path).unwrap();
    }
    assert_eq!(sweep(&absent).len(), 0);
    assert!(root.join(".envrc.ringfence-held-1").exists());
    assert_eq!(std::fs::read(root.join(".envrc.ringfence-held")).unwrap(), b"older");
    assert!(root.join("elsewhere/tasks.json").exists());
}

#[test]
fn holding_never_leaves_the_root() {
    let (_keep, top) = temporary();
    write(top.join("outside/f"), "");
    std::fs::create_dir(top.join("w")).unwrap();
    symlink("../outside", top.join("w/out")).unwrap();
    let root = File::open(top.join("w")).unwrap();
    assert!(hold(root.as_fd(), Path::new("out/f")).is_err());
    assert!(hold(root.as_fd(), Path::new("../outside/f")).is_err());
    assert!(top.join("outside/f").exists());
    assert!(absent_names(root.as_fd(), &["../x"]).is_err());
    let long = "n".repeat(255);
    write(top.join("w").join(&long), "");
    let held = hold(root.as_fd(), Path::new(&long)).unwrap();
    assert!(held.to_str().unwrap().ends_with(".ringfence-held"));
}

#[test]
fn a_new_repository_is_disarmed() {
    let (_keep, root) = temporary();
    git(&root, &["init", "-q", "r"]);
    let hook = |name: &str, mode| {
        let path = root.join("r/.git/hooks").join(name);
        write(&path, "#!/bin/sh\n");
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    hook("pre-commit", 0o755);
    hook("not-executable", 0o644);
    hook("x.sample", 0o755);
    symlink("/bin/sh", root.join("r/.git/hooks/post-merge")).unwrap();
    git(&root.join("r"), &["config", "core.fsmonitor", "./evil"]);
    write(root.join("r/.git/modules/a/b/HEAD"), "");
    write(root.join("r/.git/modules/a/b/config"), "[diff]\nexternal = x\n");
    let dir = File::open(&root).unwrap();
    let new = inspect_new_repository(dir.as_fd(), Path::new("r")).unwrap();
    let held: Vec<_> = new.held.iter().map(|(from, _)| from.file_name().unwrap()).collect();
    assert_eq!(held, ["post-merge", "pre-commit"]);
    let keys: Vec<_> = new.keys.iter().map(|(_, key)| &**key).collect();
    assert_eq!(keys, ["core.fsmonitor", "diff.external"]);
    assert!(!root.join("r/.git/hooks/pre-commit").exists());
    assert_eq!(new.suspicious, []);
    let again = inspect_new_repository(dir.as_fd(), Path::new("r")).unwrap();
    assert_eq!(again.held, []);
}

#[test]
fn a_new_repository_that_leads_out_is_told() {
    let (_keep, top) = temporary();
    let root = top.join("w");
    git(&top, &["init", "-q", "victim"]);
    write(root.join("a/.git"), format!("gitdir: {}\n", top.join("victim/.git").display()));
    write(root.join("c/.git/commondir"), "../../../victim/.git\n");
    std::fs::create_dir_all(root.join("b")).unwrap();
    symlink("../../victim/.git", root.join("b/.git")).unwrap();
    super::fifo(&root.join("c/.git/config"));
    write(root.join("d/.git"), "gitdir: ../c/.git");
    let dir = File::open(&root).unwrap();
    for (name, count) in [("a", 1), ("b", 1), ("c", 2), ("d", 2)] {
        let new = inspect_new_repository(dir.as_fd(), Path::new(name)).unwrap();
        assert_eq!(new.suspicious.len(), count, "{name}: {new:?}");
        assert_eq!(new.held, []);
    }
}
