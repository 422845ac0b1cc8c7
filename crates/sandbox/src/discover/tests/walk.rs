use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::{Matcher, Shape, Verdict, Walk, WalkOptions, walk};
use super::{temporary, write};

/// `.env*` and `*.key` files; `secret` directories as a whole; `kept` directories and below.
struct Secrets;

impl Matcher for Secrets {
    fn verdict(&self, path: &[u8], is_dir: bool) -> Verdict {
        let name = path.rsplit(|&b| b == b'/').next().unwrap();
        match name {
            b"secret" if is_dir => Verdict::Match { rule: 1, descend: false },
            b"kept" if is_dir => Verdict::Match { rule: 2, descend: true },
            b"skipped" if is_dir => Verdict::Skip,
            _ if !is_dir && (name.starts_with(b".env") || name.ends_with(b".key")) => {
                Verdict::Match { rule: 3, descend: false }
            }
            _ => Verdict::Pass,
        }
    }

    fn fingerprint(&self) -> [u8; 16] {
        *b"secrets-of-tests"
    }
}

fn look(root: &Path, cache: Option<&Path>, threads: u32) -> Walk {
    let dir = File::open(root).unwrap();
    walk(dir.as_fd(), &Secrets, &WalkOptions { cache, threads }).unwrap()
}

fn paths(walk: &Walk) -> BTreeSet<PathBuf> {
    walk.matches.iter().map(|m| m.path.clone()).collect()
}

/// The same by plain recursion.
fn naive(root: &Path, at: &Path, out: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(root.join(at)).unwrap() {
        let entry = entry.unwrap();
        let path = at.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        let bytes = path.as_os_str().as_bytes();
        let mut verdict = Secrets.verdict(bytes, kind.is_dir());
        if kind.is_symlink() && verdict == Verdict::Pass {
            verdict = Secrets.verdict(bytes, true);
        }
        let matched = matches!(verdict, Verdict::Match { .. });
        if matched {
            out.insert(path.clone());
        }
        let below = matches!(verdict, Verdict::Pass | Verdict::Match { descend: true, .. });
        if kind.is_dir() && below {
            naive(root, &path, out);
        }
    }
}

fn reference(root: &Path) -> BTreeSet<PathBuf> {
    let mut out = BTreeSet::new();
    naive(root, Path::new(""), &mut out);
    out
}

/// A small generator, so that a failing tree can be made again from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next(from.len() as u64) as usize]
    }
}

const DIRS: [&str; 8] = ["a", "b", "a-b", "kept", "secret", "skipped", "node_modules", ".git"];
const FILES: [&str; 6] = [".env", ".env.local", "x.key", "main.rs", "HEAD", "b"];

fn grow(random: &mut Random, root: &Path, count: u64) {
    let mut dirs = vec![root.to_owned()];
    for _ in 0..count {
        let from = random.pick(&(0..dirs.len()).collect::<Vec<_>>());
        let dir = dirs[from].clone();
        if random.next(3) == 0 {
            let name = random.pick(&DIRS);
            let path = dir.join(format!("{name}{}", ["", "1", "2"][random.next(3) as usize]));
            if std::fs::create_dir(&path).is_ok() {
                dirs.push(path);
            }
        } else if random.next(8) == 0 {
            let name = random.pick(&DIRS);
            let _ = std::os::unix::fs::symlink("..", dir.join(name));
        } else {
            let _ = std::fs::write(dir.join(random.pick(&FILES)), "x");
        }
    }
}

#[test]
fn finds_what_plain_recursion_finds() {
    for seed in 0..30 {
        let (_keep, root) = temporary();
        grow(&mut Random(seed), &root, 400);
        for threads in [1, 2, 5] {
            let walk = look(&root, None, threads);
            assert_eq!(paths(&walk), reference(&root), "seed {seed}, {threads} threads");
            assert_eq!(walk.truncated, None);
        }
    }
}

/// A tree with more directories than the bound below which nothing is remembered.
fn wide(root: &Path) {
    for a in 0..20 {
        for b in 0..16 {
            let dir = root.join(format!("d{a}/s{b}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("f"), "").unwrap();
        }
        std::fs::write(root.join(format!("d{a}/.env")), "").unwrap();
    }
}

/// Lets every timestamp become older than the walk distrusts.
fn settle() {
    std::thread::sleep(Duration::from_millis(80));
}

#[test]
fn warm_walks_list_nothing() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c/walk"));
    wide(&root);
    settle();
    let cold = look(&root, Some(&cache), 2);
    assert!(cold.statistics.cache_written, "{:?}", cold.statistics);
    let warm = look(&root, Some(&cache), 2);
    assert_eq!(warm.statistics.listed, 0, "{:?}", warm.statistics);
    assert_eq!((&warm.matches, &warm.repositories), (&cold.matches, &cold.repositories));
}

#[test]
fn small_trees_leave_no_cache() {
    let (_keep, top) = temporary();
    write(top.join("w/.env"), "");
    settle();
    look(&top.join("w"), Some(&top.join("c")), 1);
    assert!(!top.join("c").exists());
}

#[test]
fn a_cache_inside_the_workspace_is_not_used() {
    let (_keep, top) = temporary();
    wide(&top);
    settle();
    assert!(!look(&top, Some(&top.join("c/walk")), 1).statistics.cache_written);
    assert!(!top.join("c").exists());
}

#[test]
fn a_recent_change_is_listed_again() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c"));
    wide(&root);
    settle();
    // Written within the clock tick of the walk: nothing may be believed of this directory.
    for round in 0..20 {
        std::fs::write(root.join("d0/s0/round"), "").unwrap();
        look(&root, Some(&cache), 1);
        let new = root.join(format!("d0/s0/.env.{round}"));
        std::fs::write(&new, "").unwrap();
        assert_eq!(paths(&look(&root, Some(&cache), 1)), reference(&root), "round {round}");
    }
}

#[test]
fn the_cache_follows_every_kind_of_change() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c"));
    wide(&root);
    look(&root, Some(&cache), 2);
    let check = |what: &str| {
        let walk = look(&root, Some(&cache), 2);
        assert_eq!(paths(&walk), reference(&root), "{what}");
        settle();
        let again = look(&root, Some(&cache), 2);
        assert_eq!(paths(&again), reference(&root), "{what}, again");
        settle();
    };
    check("nothing");
    write(root.join("d1/s1/new/.env"), "");
    check("created below");
    std::fs::remove_file(root.join("d1/.env")).unwrap();
    check("removed");
    std::fs::rename(root.join("d2"), root.join("moved")).unwrap();
    check("renamed directory");
    std::fs::rename(root.join("moved/s1"), root.join("d3/s1x")).unwrap();
    check("moved directory");
    std::fs::rename(root.join("d4/s0"), root.join("t")).unwrap();
    std::fs::rename(root.join("d4/s1"), root.join("d4/s0")).unwrap();
    std::fs::rename(root.join("t"), root.join("d4/s1")).unwrap();
    check("swapped directories");
    write(root.join("d5/s0/deep/.env"), "");
    check("prepared");
    std::fs::rename(root.join("d5/s0"), root.join("d5/real")).unwrap();
    std::os::unix::fs::symlink("real", root.join("d5/s0")).unwrap();
    check("a directory replaced by a link to it");
    std::fs::remove_dir_all(root.join("d6")).unwrap();
    std::fs::write(root.join("d6"), "").unwrap();
    check("a directory replaced by a file");
    std::fs::remove_dir_all(root.join("d7")).unwrap();
    wide(&root.join("d7"));
    check("a directory replaced by a larger one");
    std::fs::create_dir(root.join("d8/s0/.git")).unwrap();
    let walk = look(&root, Some(&cache), 1);
    assert!(walk.repositories.iter().any(|r| r.path == Path::new("d8/s0")));
}

#[test]
fn setting_the_mtime_back_does_not_help() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c"));
    wide(&root);
    settle();
    look(&root, Some(&cache), 1);
    let dir = File::open(root.join("d1/s1")).unwrap();
    let before = dir.metadata().unwrap().modified().unwrap();
    std::fs::write(root.join("d1/s1/.env"), "").unwrap();
    dir.set_times(std::fs::FileTimes::new().set_modified(before)).unwrap();
    assert_eq!(dir.metadata().unwrap().modified().unwrap(), before);
    assert!(paths(&look(&root, Some(&cache), 1)).contains(Path::new("d1/s1/.env")));
}

#[test]
fn random_changes_never_leave_the_cache_behind() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c"));
    wide(&root);
    let mut random = Random(7);
    for round in 0..60 {
        for _ in 0..random.next(6) {
            let place = |random: &mut Random| {
                root.join(format!("d{}/s{}", random.next(20), random.next(16)))
            };
            let (from, to) = (place(&mut random), place(&mut random));
            match random.next(5) {
                0 => drop(std::fs::rename(&from, &to)),
                1 => drop(std::fs::write(from.join(".env"), "")),
                2 => drop(std::fs::remove_file(from.join(".env"))),
                3 => drop(std::fs::remove_dir_all(&from)),
                _ => drop(std::fs::create_dir_all(to.join("secret/x"))),
            }
        }
        let walk = look(&root, Some(&cache), 1 + round % 3);
        assert_eq!(paths(&walk), reference(&root), "round {round}");
        if round % 4 == 0 {
            settle();
        }
    }
}

#[test]
fn a_damaged_or_foreign_cache_is_ignored() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c"));
    wide(&root);
    settle();
    look(&root, Some(&cache), 1);
    let file = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 31) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        std::fs::write(&file, &bytes).unwrap();
        let walk = look(&root, Some(&cache), 1);
        assert!(!walk.statistics.cache_read, "byte {at}");
        assert_eq!(paths(&walk), reference(&root));
        std::fs::write(&file, &whole[..at]).unwrap();
        assert!(!look(&root, Some(&cache), 1).statistics.cache_read, "cut at {at}");
    }
    std::fs::write(&file, &whole).unwrap();
    assert!(look(&root, Some(&cache), 1).statistics.cache_read);
    std::fs::set_permissions(&cache, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(!look(&root, Some(&cache), 1).statistics.cache_read);
}

#[test]
fn other_names_of_a_match_are_found() {
    let (_keep, top) = temporary();
    let (root, cache) = (top.join("w"), top.join("c"));
    wide(&root);
    std::fs::hard_link(root.join("d0/.env"), root.join("d9/harmless")).unwrap();
    std::fs::hard_link(root.join("d0/.env"), top.join("outside")).unwrap();
    settle();
    let found = |cache| {
        let walk = look(&root, cache, 2);
        walk.matches.into_iter().find(|m| m.path == Path::new("d0/.env")).unwrap()
    };
    for cache in [None, Some(&*cache), Some(&*cache)] {
        let found = found(cache);
        assert_eq!((found.nlink, found.unseen), (3, 1));
        assert_eq!(found.aliases, [Path::new("d9/harmless")]);
    }
    // A new name elsewhere, while the match's own directory stays as it was.
    std::fs::hard_link(root.join("d1/.env"), root.join("d8/also")).unwrap();
    let walk = look(&root, Some(&cache), 2);
    let new = walk.matches.iter().find(|m| m.path == Path::new("d1/.env")).unwrap();
    assert_eq!(new.aliases, [Path::new("d8/also")]);
    std::fs::rename(root.join("d9/harmless"), root.join("d10/renamed")).unwrap();
    assert_eq!(found(Some(&cache)).aliases, [Path::new("d10/renamed")]);
}

#[test]
fn repositories_links_and_odd_names_are_reported() {
    let (_keep, root) = temporary();
    write(root.join("n/.git/HEAD"), "");
    write(root.join("f/.git"), "gitdir: /etc");
    for part in ["objects/x", "refs/x", "HEAD"] {
        write(root.join("bare").join(part), "");
    }
    write(root.join("bare/.env"), "");
    write(root.join("n/.git/x/.env"), "");
    write(root.join("n/.git/refs/heads/.env"), "");
    std::os::unix::fs::symlink("/etc/shadow", root.join("my.key")).unwrap();
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    write(root.join(odd).join(".env"), "");
    super::fifo(&root.join(".env.fifo"));
    let walk = look(&root, None, 1);
    let shapes: Vec<_> = walk.repositories.iter().map(|r| (&*r.path, r.shape)).collect();
    let expected = [("bare", Shape::Bare), ("f", Shape::DotGit), ("n", Shape::DotGit)];
    assert_eq!(shapes, expected.map(|(p, s)| (Path::new(p), s)));
    assert!(walk.matches.iter().any(|m| m.path == odd.join(".env")));
    assert!(walk.matches.iter().any(|m| m.path == Path::new(".env.fifo")));
    let link = walk.matches.iter().find(|m| m.path == Path::new("my.key")).unwrap();
    assert!(link.is_symlink);
    let hidden = walk.matches.iter().find(|m| m.path == Path::new("n/.git/x/.env")).unwrap();
    assert!(!hidden.is_ref);
    let branch = Path::new("n/.git/refs/heads/.env");
    assert!(walk.matches.iter().any(|m| m.path == branch && m.is_ref));
    assert!(walk.matches.iter().any(|m| m.path == Path::new("bare/.env")));
}

#[test]
fn deep_trees_are_walked_or_told() {
    let (_keep, root) = temporary();
    // 40 levels of 200 bytes: longer than one path may be.
    let make = |levels: usize, name: &str| {
        let mut at = rustix::fs::open(&root, super::super::fd::DIRECTORY, 0.into()).unwrap();
        for _ in 0..levels {
            let _ = rustix::fs::mkdirat(&at, name, 0o755.into());
            at = rustix::fs::openat(&at, name, super::super::fd::DIRECTORY, 0.into()).unwrap();
        }
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        rustix::fs::openat(&at, ".env", flags, 0o644.into()).unwrap();
    };
    make(40, &"x".repeat(200));
    let walk = look(&root, None, 2);
    assert_eq!(walk.matches.len(), 1);
    assert_eq!(walk.truncated, None);
    make(1_100, "y");
    assert!(look(&root, None, 2).truncated.is_some());
    // The clean-up of the standard library cannot handle paths this long.
    let removed = std::process::Command::new("rm").arg("-rf").arg(&root).status().unwrap();
    assert!(removed.success());
}

#[test]
fn unreadable_directories_are_told() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let (_keep, root) = temporary();
    write(root.join("closed/.env"), "");
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(root.join("closed"), mode).unwrap();
    };
    mode(0o000);
    let walk = look(&root, None, 1);
    mode(0o755);
    assert_eq!(walk.unreadable.len(), 1);
}

#[test]
fn a_file_is_not_a_workspace() {
    let (_keep, root) = temporary();
    write(root.join("f"), "");
    let file = File::open(root.join("f")).unwrap();
    assert!(walk(file.as_fd(), &Secrets, &WalkOptions::default()).is_err());
}
