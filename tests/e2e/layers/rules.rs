//! Rules of names in a layer: what they hide does not exist, what they only list is not read, what
//! they make read-only does not change, whatever way a program takes; also for names that come later.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Place, Ran, User, as_each_user, has, is_root};

/// Everything writable but what the rules below say.
const RULES: &str = r#"
extends = "full-access"
[[files.rules]]
pattern = "**/*.key"
permission = "none"
priority = 10
[[files.rules]]
pattern = "**/secrets/**"
permission = "none"
priority = 10
[[files.rules]]
pattern = "/vendor/*/token"
permission = "none"
priority = 10
"#;

/// The same with names that may only be read or listed.
const CHANGES: &str = r#"
[[files.rules]]
pattern = "**/*.lock"
permission = "read"
priority = 10
[[files.rules]]
pattern = "**/*.pdf"
permission = "view"
priority = 10
"#;

const FREE: &str = "extends = \"full-access\"\n";

/// An ordered rule, at the end of a policy.
fn rule(pattern: &str, permission: &str, priority: i32) -> String {
    format!(
        "[[files.rules]]\npattern = \"{pattern}\"\npermission = \"{permission}\"\npriority = {priority}\n"
    )
}

fn policy(p: &Place, name: &str, text: &str) -> String {
    let path = p.root().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn tree(p: &Place) {
    p.write("plain.txt", "plain\n");
    p.write("top.key", "TOP SECRET\n");
    p.write("a/b/deep.key", "TOP SECRET\n");
    p.write("a/b/plain.txt", "plain\n");
    p.write("a/secrets/one/two", "TOP SECRET\n");
    p.write("secrets/x", "TOP SECRET\n");
    p.write("vendor/one/token", "TOP SECRET\n");
    p.write("vendor/one/other", "other\n");
    p.write("UPPER.KEY", "upper\n");
    p.write(Path::new(std::ffi::OsStr::from_bytes(b"odd\xff\n.key")), "TOP SECRET\n");
    p.write(Path::new(std::ffi::OsStr::from_bytes(b"odd\xff\nname")), "odd\n");
}

/// Names in all deltas of the store, relative to the directory that each lies over.
fn names_in_deltas(p: &Place) -> Vec<PathBuf> {
    let mut todo = vec![p.home().join(".local/state/ringfence/deltas")];
    let mut found = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

fn hidden_in_deltas(p: &Place) -> Vec<PathBuf> {
    let hidden = |path: &PathBuf| {
        let name = path.file_name().unwrap().as_bytes();
        name.ends_with(b".key") || name == b"secrets"
    };
    names_in_deltas(p).into_iter().filter(hidden).collect()
}

fn python(p: &Place, flags: &[&str], script: &str) -> Ran {
    let mut args = vec!["run"];
    args.extend(flags);
    args.extend(["--", "python3", "-c", script]);
    Ran::of(&mut p.ringfence(args))
}

#[test]
fn what_rules_hide_does_not_exist() {
    as_each_user(|p| {
        tree(p);
        let rules = policy(p, "rules.toml", RULES);
        let script = "find . | tr -d '\\377' | sort; echo; cat plain.txt a/b/plain.txt UPPER.KEY vendor/one/other
            for name in top.key a/b/deep.key a/secrets a/secrets/one/two secrets secrets/x \
                vendor/one/token ./a/../top.key /proc/self/cwd/top.key; do
              for how in 'cat' 'stat' 'ls -d' 'test -e' 'readlink' 'chmod 600' 'touch -c -h' 'rm'; do
                $how \"$name\" 2>/dev/null && [ \"$how\" != 'touch -c -h' ] && echo \"$how $name\"
              done
              stat \"$name\" 2>&1 | grep -v 'No such file or directory'
            done; true";
        let ran = p.shell(&["--layer", "l", "-s", &rules], script).ok();
        assert!(!ran.out.contains("SECRET"), "{ran:#?}");
        let (listed, rest) = ran.out.split_once("\n\n").unwrap();
        assert_eq!(rest, "plain\nplain\nupper\nother\n", "{ran:#?}");
        assert!(!listed.contains(".key") && !listed.contains("secrets"), "{listed}");
        assert!(!listed.contains("token") && listed.contains("./vendor/one/other"), "{listed}");
        assert!(listed.contains("UPPER.KEY") && listed.contains("./a/b/plain.txt"), "{listed}");
        // Directories look like the host's.
        let stat = "stat -c '%a %U %Y %n' . a a/b vendor vendor/one";
        let inside = p.shell(&["--layer", "fresh", "-s", &rules], stat).ok().out;
        assert_eq!(inside, p.bare(stat).ok().out);
        // Control: it is the rules that hide.
        let free = policy(p, "free.toml", FREE);
        let ran = p.shell(&["--layer", "free", "-s", &free], "cat top.key a/secrets/one/two").ok();
        assert_eq!(ran.out, "TOP SECRET\nTOP SECRET\n");
    });
}

/// Guards have a high priority; a rule that has it too, or a higher one, is a rule.
#[test]
fn a_rule_of_any_priority_is_held() {
    as_each_user(|p| {
        tree(p);
        for priority in ["10", "999999", "1000000", "2000000", "2147483647"] {
            let text = format!(
                "{FREE}[[files.rules]]\npattern = \"**/*.key\"\npermission = \"none\"\npriority = {priority}\n\
                 [[files.rules]]\npattern = \"**/*.key\"\npermission = \"write\"\npriority = 5\n"
            );
            let rules = policy(p, "any.toml", &text);
            let script =
                "find . -name '*.key'; cat top.key a/b/deep.key; echo x >new.key; ls new.key";
            let ran = p.shell(&["--layer", &format!("l{priority}"), "-s", &rules], script);
            assert_eq!(ran.out, "", "priority {priority}: {ran:#?}");
        }
        // Control: a rule that is lower than another one loses.
        let text = format!(
            "{FREE}[[files.rules]]\npattern = \"**/*.key\"\npermission = \"none\"\npriority = 4\n\
             [[files.rules]]\npattern = \"**/*.key\"\npermission = \"write\"\npriority = 5\n"
        );
        let rules = policy(p, "low.toml", &text);
        let ran = p.shell(&["--layer", "low", "-s", &rules], "cat top.key").ok();
        assert_eq!(ran.out, "TOP SECRET\n");
    });
}

/// Ways to a name that rules hide. Each prints `made N` where it got through.
const WAYS: &str = r#"
import ctypes, os, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
def way(n, act):
    try:
        act()
        print("made", n)
    except OSError as e:
        if e.errno not in (13, 2, 1): print("odd", n, e)
def call(number, *args):
    if libc.syscall(number, *args) < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
def write(path, flags=os.O_WRONLY | os.O_CREAT):
    os.close(os.open(path, flags, 0o600))
os.mkdir("w"); write("w/file"); os.mkdir("w/dir"); write("w/dir/token")
here = os.open(".", os.O_PATH)
sub = os.open("w", os.O_RDONLY)
os.symlink("made.key", "dangling")
os.symlink(os.getcwd() + "/made.key", "w/absolute")
os.symlink("..", "w/up")
os.symlink(".", "w/self")
way("open", lambda: write("made.key"))
way("exclusive", lambda: write("made.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
way("read-only create", lambda: write("made.key", os.O_RDONLY | os.O_CREAT))
way("creat", lambda: call(85, b"made.key", 0o600))
way("old open", lambda: call(2, b"made.key", os.O_WRONLY | os.O_CREAT, 0o600))
way("absolute", lambda: write(os.getcwd() + "/made.key"))
way("dots", lambda: write("w/../w/./../made.key"))
way("slashes", lambda: write("w//..///made.key"))
way("through a link", lambda: write("dangling"))
way("through an absolute link", lambda: write("w/absolute"))
way("through linked directories", lambda: write("w/self/up/self/../made.key"))
way("dirfd", lambda: os.close(os.open("made.key", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=here)))
way("dirfd below", lambda: os.close(os.open("../made.key", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=sub)))
way("proc cwd", lambda: write("/proc/self/cwd/made.key"))
way("proc root", lambda: write("/proc/self/root" + os.getcwd() + "/made.key"))
way("proc fd", lambda: write(f"/proc/self/fd/{here}/made.key"))
way("dev fd", lambda: write(f"/dev/fd/{sub}/../made.key"))
way("thread-self", lambda: write("/proc/thread-self/cwd/made.key"))
way("pid", lambda: write(f"/proc/{os.getpid()}/cwd/made.key"))
way("task", lambda: write(f"/proc/{os.getpid()}/task/{os.getpid()}/cwd/made.key"))
way("mkdir", lambda: os.mkdir("made.key"))
way("mkdir secrets", lambda: os.mkdir("w/secrets"))
way("mkdirat", lambda: os.mkdir("made.key", dir_fd=here))
way("mkdir slash", lambda: os.mkdir("w/secrets/"))
way("mkfifo", lambda: os.mkfifo("made.key"))
way("mknod", lambda: os.mknod("made.key", stat.S_IFREG | 0o600))
way("symlink", lambda: os.symlink("x", "made.key"))
way("link", lambda: os.link("w/file", "made.key"))
way("rename", lambda: os.rename("w/file", "made.key"))
way("rename directory", lambda: os.rename("w/dir", "w/secrets"))
way("renameat2", lambda: call(316, -100, b"w/file", -100, b"made.key", 0))
way("exchange", lambda: call(316, -100, b"w/file", -100, b"top.key", 2))
way("rename over", lambda: os.rename("w/file", "top.key"))
way("into a pattern", lambda: os.rename("w/dir", "vendor/two"))
s = socket.socket(socket.AF_UNIX)
way("bind", lambda: s.bind("made.key"))
way("bind absolute", lambda: s.bind(os.getcwd() + "/made.key"))
def nameless(how):
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    how(fd)
way("link a nameless file", lambda: nameless(lambda fd: call(265, -100, b"/proc/self/fd/%d" % fd, -100, b"made.key", 0x400)))
way("link an empty path", lambda: nameless(lambda fd: call(265, fd, b"", -100, b"made.key", 0x1000)))
way("open_by_handle", lambda: call(304, here, 0, 0))
class How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]
how = How(os.O_WRONLY | os.O_CREAT, 0o600, 0)
try:
    call(437, -100, b"made.key", ctypes.byref(how), ctypes.sizeof(how))
    print("made openat2")
except OSError as e:
    print("openat2", e.errno)
print("\n".join(sorted(os.listdir("."))))
"#;

#[test]
fn no_way_leads_to_a_new_name_that_rules_hide() {
    if !cfg!(target_arch = "x86_64") || !has("python3") {
        println!("skipped: the calls are numbered for 64-bit x86, and python3 makes them");
        return;
    }
    as_each_user(|p| {
        tree(p);
        let rules = policy(p, "rules.toml", RULES);
        let ran = python(p, &["--layer", "l", "-s", &rules], WAYS).ok();
        assert!(!ran.out.contains("made ") && !ran.out.contains("odd "), "{}", ran.out);
        assert!(ran.out.contains("openat2 38"), "{}", ran.out);
        assert!(!ran.out.contains(".key"), "{}", ran.out);
        assert_eq!(hidden_in_deltas(p), Vec::<PathBuf>::new());
        // Control: without the rules nearly all of these make a name.
        let free = policy(p, "free.toml", FREE);
        let ran = python(p, &["--layer", "free", "-s", &free], WAYS).ok();
        for way in ["open", "through a link", "dirfd", "proc fd", "mkdir secrets", "rename"] {
            assert!(ran.out.contains(&format!("made {way}\n")), "{way}: {}", ran.out);
        }
    });
}

/// One thread rewrites the path while the other makes the call.
const RACE: &str = r#"
import ctypes, os, threading, time
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(b"good1.txt", 64)
stop = False
def flip():
    while not stop:
        ctypes.memmove(buffer, b"evil1.key", 9)
        ctypes.memmove(buffer, b"good1.txt", 9)
thread = threading.Thread(target=flip); thread.start()
end = time.time() + 3
good = 0
while time.time() < end:
    fd = libc.open(buffer, os.O_WRONLY | os.O_CREAT, 0o600)
    if fd >= 0:
        good += 1
        os.close(fd)
    libc.mkdir(buffer, 0o700)
    libc.rename(b"good1.txt", buffer)
    libc.unlink(b"good1.txt")
    libc.rmdir(b"good1.txt")
stop = True; thread.join()
print("good" if good else "never", [n for n in os.listdir(".") if n.endswith(".key")])
"#;

#[test]
fn a_path_that_changes_during_the_call_gains_nothing() {
    if !has("python3") {
        println!("skipped: python3 makes the race");
        return;
    }
    as_each_user(|p| {
        let rules = policy(p, "rules.toml", RULES);
        let ran = python(p, &["--layer", "l", "-s", &rules], RACE).ok();
        assert_eq!(ran.out, "good []\n");
        assert_eq!(hidden_in_deltas(p), Vec::<PathBuf>::new());
        // Control: the other name is reached without the rules.
        let free = policy(p, "free.toml", FREE);
        let ran = python(p, &["--layer", "free", "-s", &free], RACE).ok();
        assert!(ran.out.contains("evil1.key"), "{ran:#?}");
    });
}

/// Directories are swapped for links, and descriptors for others, while calls are made.
const SWAPS: &str = r#"
import os, threading, time
os.mkdir("safe"); os.mkdir("vendor/one/x"); os.mkdir("other")
os.symlink("vendor/one", "link")
stop = False
def swap():
    while not stop:
        try:
            os.rename("link", "link2"); os.rename("safe", "link"); os.rename("link", "safe"); os.rename("link2", "link")
        except OSError: pass
def dups():
    a = os.open("safe", os.O_PATH); b = os.open("vendor/one", os.O_PATH)
    while not stop:
        os.dup2(a, 99); os.dup2(b, 99)
threads = [threading.Thread(target=t) for t in (swap, dups)]
[t.start() for t in threads]
end = time.time() + 3
while time.time() < end:
    for make in (lambda: os.close(os.open("link/token", os.O_WRONLY | os.O_CREAT)),
                 lambda: os.close(os.open("token", os.O_WRONLY | os.O_CREAT, dir_fd=99)),
                 lambda: os.mkdir("link/token"),
                 lambda: os.rename("safe/token", "link/token")):
        try: make()
        except OSError: pass
stop = True; [t.join() for t in threads]
print(os.path.exists("vendor/one/token"))
"#;

#[test]
fn swapped_directories_and_descriptors_gain_nothing() {
    if !has("python3") {
        println!("skipped: python3 makes the race");
        return;
    }
    as_each_user(|p| {
        tree(p);
        std::fs::remove_file(p.workspace().join("vendor/one/token")).unwrap();
        let rules = policy(p, "rules.toml", RULES);
        let ran = python(p, &["--layer", "l", "-s", &rules], SWAPS).ok();
        assert_eq!(ran.out, "False\n");
        let made = |path: &PathBuf| path.ends_with("vendor/one/token");
        assert!(!names_in_deltas(p).iter().any(made));
        let free = policy(p, "free.toml", FREE);
        let ran = python(p, &["--layer", "free", "-s", &free], SWAPS).ok();
        assert_eq!(ran.out, "True\n", "control");
    });
}

/// Ways to change or read what rules protect.
const PROTECTED: &str = r#"
import ctypes, os, mmap, shutil
libc = ctypes.CDLL(None, use_errno=True)
def way(n, act):
    try:
        act()
        print("did", n)
    except OSError as e:
        if e.errno not in (13, 22, 25, 1): print("odd", n, e)
def c(result):
    if result < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
def writes(path, flags):
    fd = os.open(path, flags); os.write(fd, b"changed"); os.close(fd)
for name in ("x.lock", "y.pdf"):
    f = os.open(name, os.O_RDONLY | os.O_PATH)
    way("write", lambda: writes(name, os.O_WRONLY))
    way("read-write", lambda: writes(name, os.O_RDWR))
    way("append", lambda: writes(name, os.O_WRONLY | os.O_APPEND))
    way("create", lambda: writes(name, os.O_WRONLY | os.O_CREAT))
    way("truncating read", lambda: os.close(os.open(name, os.O_RDONLY | os.O_TRUNC)))
    way("truncate", lambda: os.truncate(name, 0))
    way("chmod", lambda: os.chmod(name, 0o777))
    if os.getuid():  # for root it is a pretence
        way("chown", lambda: c(libc.syscall(92, name.encode(), os.getuid(), os.getgid())))
    way("utime", lambda: os.utime(name))
    way("setxattr", lambda: os.setxattr(name, "user.a", b"b"))
    way("removexattr", lambda: os.removexattr(name, "user.a"))
    way("unlink", lambda: os.unlink(name))
    way("rename", lambda: os.rename(name, "free"))
    way("replace", lambda: (open("new", "w").close(), os.rename("new", name)))
    way("link", lambda: os.link(name, "free"))
    way("move the directory", lambda: (os.mkdir("d"), os.rename("d", "held/e"), os.rename("held", "other")))
    way("proc fd", lambda: writes(f"/proc/self/fd/{f}", os.O_WRONLY))
    way("link proc fd", lambda: c(libc.linkat(-100, b"/proc/self/fd/%d" % f, -100, b"free", 0x400)))
os.symlink("x.lock", "to"); os.symlink("y.pdf", "pdf")
way("through a link", lambda: writes("to", os.O_WRONLY))
way("chmod through a link", lambda: os.chmod("to", 0o777))
f = os.open("x.lock", os.O_RDONLY)
way("fchmod", lambda: os.fchmod(f, 0o777))
way("futimens", lambda: os.utime(f))
way("fsetxattr", lambda: os.setxattr(f, "user.a", b"b"))
way("ftruncate", lambda: os.ftruncate(f, 0))
way("set flags", lambda: c(libc.ioctl(f, 0x40086602, ctypes.byref(ctypes.c_int(0x80)))))
way("reopen", lambda: writes(f"/proc/self/fd/{f}", os.O_WRONLY))
for how in (lambda: os.open("y.pdf", os.O_RDONLY), lambda: os.open("pdf", os.O_RDONLY),
            lambda: os.open("/proc/self/fd/%d" % os.open("y.pdf", os.O_PATH), os.O_RDONLY)):
    way("read what is listed", how)
print(open("x.lock").read(), os.stat("y.pdf").st_size, sorted(n for n in os.listdir(".") if "." in n))
with open("free.txt", "w") as g: g.write("free")
os.chmod("free.txt", 0o640); os.truncate("free.txt", 2); os.utime("free.txt", (1, 2))
os.rename("free.txt", "moved.txt"); os.link("moved.txt", "linked.txt"); os.unlink("moved.txt")
os.setxattr("linked.txt", "user.k", b"v"); assert os.getxattr("linked.txt", "user.k") == b"v"
os.removexattr("linked.txt", "user.k")
s = os.stat("linked.txt")
print(open("linked.txt").read(), oct(s.st_mode), s.st_mtime)
shutil.rmtree("held", ignore_errors=True)
print(sorted(os.listdir("held")))
"#;

#[test]
fn what_rules_protect_by_pattern_does_not_change_in_any_way() {
    if !cfg!(target_arch = "x86_64") || !has("python3") {
        println!("skipped: the calls are numbered for 64-bit x86, and python3 makes them");
        return;
    }
    as_each_user(|p| {
        p.write("x.lock", "locked");
        p.write("y.pdf", "TOP SECRET");
        p.write("held/z.lock", "locked");
        p.write("held/w", "w");
        let rules = policy(p, "rules.toml", &format!("{RULES}{CHANGES}"));
        let ran = python(p, &["--layer", "l", "-s", &rules], PROTECTED).ok();
        let expected = "locked 10 ['x.lock', 'y.pdf']\nfr 0o100640 2.0\n['z.lock']\n";
        assert_eq!(ran.out, expected, "{ran:#?}");
        // What was refused changed nothing: the next run sees the host's.
        let ran = p.shell(&["--layer", "l", "-s", &rules], "cat x.lock; stat -c %s y.pdf").ok();
        assert_eq!(ran.out, "locked10\n");
        // Control: the same calls work without the rules.
        let free = policy(p, "free.toml", FREE);
        let ran = python(p, &["--layer", "free", "-s", &free], PROTECTED);
        for way in ["write", "fchmod", "read what is listed", "unlink"] {
            assert!(ran.out.contains(&format!("did {way}")), "{way}: {ran:#?}");
        }
    });
}

/// Init carries out calls in its own name: what only it may see must stay out of reach.
const INIT: &str = r#"
import os
def get(path):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CREAT)
        print("opened", path, b"CANARY" in os.read(fd, 1 << 20))
    except OSError as e:
        print(e.errno)
for path in ("/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/task/1/environ", "/proc/1/fd/3",
             "/proc/self/../1/environ", "/proc/1/cwd/etc/passwd", "/proc/1/root/etc/passwd",
             "/proc/self/environ", "/proc/thread-self/environ", "/proc/self/mem", "/proc/self"):
    get(path)
"#;

#[test]
fn init_opens_nothing_of_its_own_for_anybody() {
    if !has("python3") {
        println!("skipped: python3 makes the calls");
        return;
    }
    as_each_user(|p| {
        let rules = policy(p, "rules.toml", RULES);
        let args = ["run", "--layer", "l", "-s", &rules, "--", "python3", "-c", INIT];
        let ran = Ran::of(p.ringfence(args).env("A_SECRET_TOKEN", "CANARY")).ok();
        assert!(!ran.out.contains("opened"), "{ran:#?}");
    });
}

#[test]
fn what_an_earlier_run_made_under_other_rules_is_covered_too() {
    as_each_user(|p| {
        tree(p);
        let free = policy(p, "free.toml", FREE);
        let rules = policy(p, "rules.toml", RULES);
        let (free, rules) = (["--layer", "l", "-s", &free], ["--layer", "l", "-s", &rules]);
        let arrange = "echo MINE > mine.key; mkdir -p q/secrets; echo MINE > q/secrets/z; rm -r a;
            mkdir a; echo MINE > a/other.key; echo seen > a/seen; rm plain.txt; ln -s q/secrets s";
        p.shell(&free, arrange).ok();
        let see =
            "find . | grep -v -e odd -e '^name' | sort; cat s/z q/secrets/z mine.key a/other.key";
        let listed =
            ".\n./UPPER.KEY\n./a\n./a/seen\n./q\n./s\n./vendor\n./vendor/one\n./vendor/one/other\n";
        assert_eq!(p.shell(&rules, see).out, listed);
        // And once more: the run itself left nothing that has to be covered.
        assert_eq!(p.shell(&rules, &format!("echo more > q/more; rm q/more; {see}")).out, listed);
        // Nothing is lost.
        let ran = p.shell(&free, "cat mine.key q/secrets/z a/other.key").ok();
        assert_eq!(ran.out, "MINE\nMINE\nMINE\n");
    });
}

#[test]
fn names_that_the_host_adds_are_covered_by_the_next_run() {
    as_each_user(|p| {
        tree(p);
        let rules = policy(p, "rules.toml", RULES);
        let flags = ["--layer", "l", "-s", rules.as_str()];
        let see = "find . -name '*.key' -o -name secrets | wc -l; stat -c %a a";
        assert_eq!(p.shell(&flags, see).ok().out, "0\n755\n");
        p.write("a/b/later.key", "TOP SECRET\n");
        p.write("new/secrets/x", "TOP SECRET\n");
        p.bare("mv plain.txt renamed.key; chmod 700 a").ok();
        assert_eq!(p.shell(&flags, see).ok().out, "0\n700\n");
        // What stops matching is seen again.
        p.bare("mv renamed.key plain.txt").ok();
        assert_eq!(p.shell(&flags, "cat plain.txt").ok().out, "plain\n");
    });
}

#[test]
fn renamed_and_removed_directories_carry_nothing_hidden_anywhere() {
    as_each_user(|p| {
        tree(p);
        let rules = policy(p, "rules.toml", RULES);
        let flags = ["--layer", "l", "-s", rules.as_str()];
        let script = "mv a moved; find moved | sort; rm -r vendor; mkdir vendor; find vendor
            mkdir -p n/d; echo t > n/d/token; mv n/d vendor/y; mv n vendor/x; find vendor | sort
            mv vendor/x/d vendor/y; mv vendor other; find other | sort";
        let ran = p.shell(&flags, script);
        let expected = "moved\nmoved/b\nmoved/b/plain.txt\nvendor\n\
            vendor\nvendor/x\nvendor/x/d\nvendor/x/d/token\n\
            other\nother/x\nother/x/d\nother/x/d/token\n";
        assert_eq!(ran.out, expected, "{ran:#?}");
        let see = "find . -name token -path '*vendor/*/token'; find . -name '*.key'";
        assert_eq!(p.shell(&flags, see).ok().out, "");
        // The host has what it had.
        assert!(p.workspace().join("vendor/one/token").exists());
    });
}

#[test]
fn a_preset_gives_each_part_its_permission() {
    as_each_user(|p| {
        tree(p);
        p.write("src/main.c", "main\n");
        p.write("output/o", "o\n");
        p.write("tmp/t", "t\n");
        let flags = ["--layer", "l", "-t", "agent-safe"];
        let script = "cat src/main.c; echo x > src/main.c; echo x > src/new; rm src/main.c; chmod 600 src/main.c
            touch src/main.c; mkdir src/d; mv src/main.c output/; ln src/main.c output/l; ls src
            echo y > output/y; rm output/o; mkdir output/d; mv output/d tmp/d; ls output tmp
            echo k > output/k.key; mkdir tmp/.git; ls -a output tmp | grep -e key -e git";
        let ran = p.shell(&flags, script);
        assert_eq!(ran.out, "main\nmain.c\noutput:\ny\n\ntmp:\nd\nt\n", "{ran:#?}");
        // What was written is there in the next run, and the host is as it was.
        assert_eq!(p.shell(&flags, "cat output/y src/main.c; ls output").out, "y\nmain\ny\n");
        assert!(
            p.workspace().join("output/o").exists() && !p.workspace().join("output/y").exists()
        );
    });
}

#[test]
fn what_waits_does_not_keep_others_waiting() {
    as_each_user(|p| {
        let rules = policy(p, "rules.toml", RULES);
        let flags = ["--layer", "l", "-s", rules.as_str()];
        // A pipe without a reader, for longer than everything else takes.
        let script = "mkfifo pipe; (echo through > pipe) & for i in 1 2 3 4 5 6 7 8; do echo $i > f$i; done
            cat f8; cat pipe; wait; (cat < pipe > got) & sleep 0.1; echo again > pipe; wait; cat got
            umask 077; echo > private; mkdir closed; umask 002; echo > group; stat -c %a private closed group
            (umask 0; echo > all; stat -c %a all); echo > after; stat -c %a after";
        let ran = p.shell(&flags, script).ok();
        assert_eq!(ran.out, "8\nthrough\nagain\n600\n700\n664\n666\n664\n", "{ran:#?}");
        // A call that waits ends with its process, and with the run.
        let begun = Instant::now();
        p.shell(&flags, "(echo never > pipe) & pid=$!; sleep 0.2; kill $pid; wait $pid; echo $?")
            .ok()
            .says("143");
        let args = ["run", "--layer", "l", "-s", &rules, "--", "/bin/sh", "-c", "echo > pipe"];
        let mut child =
            p.ringfence(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        child.kill().unwrap();
        child.wait().unwrap();
        crate::residue::no_process_of(p.root());
        assert!(begun.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn a_directory_that_may_only_be_read_shows_nothing_hidden() {
    as_each_user(|p| {
        p.write("docs/in/a.key", "TOP SECRET\n");
        p.write("docs/in/x.key/deep", "TOP SECRET\n");
        p.write("docs/plain", "plain\n");
        let attempts = "cat docs/plain docs/in/a.key docs/in/x.key/deep; ls docs/in; \
            echo x >> docs/plain; touch docs/new; echo x > top && cat top";
        for (n, docs) in ["docs", "docs/**"].into_iter().enumerate() {
            let run = |hidden: &str| {
                let text = "extends = \"full-access\"\n".to_owned()
                    + &rule(docs, "read", 10)
                    + &rule("**/*.key", hidden, 100);
                let file = p.write("../outside/policy.toml", text).display().to_string();
                let layer = format!("l{n}{hidden}");
                p.shell(&["-s", &file, "--layer", &layer], attempts)
            };
            let ran = run("none");
            assert_eq!(ran.out, "plain\nx\n", "{docs}: {ran:#?}");
            // The control: where it is not hidden, it is read.
            let ran = run("read");
            assert!(ran.out.contains("SECRET") && ran.out.ends_with("x\n"), "{docs}: {ran:#?}");
        }
    });
}

/// Guards and protections of whole directories are mounts: of what the host has, with the layer's mask.
#[test]
fn what_is_read_only_in_a_layer_shows_nothing_hidden() {
    as_each_user(|p| {
        let names = [
            "docs/in/a.hid",
            "docs/in/x.hid/deep",
            ".vscode/a.hid",
            ".git/hooks/h.hid",
            ".git/info/i.hid",
        ];
        for name in ["HEAD", "objects/x", "refs/x"] {
            p.write(format!(".git/{name}"), "ref: refs/heads/main\n");
        }
        for name in names {
            p.write(name, "TOP SECRET\n");
        }
        p.write("docs/plain", "plain\n");
        let attempts = format!(
            "cat {}; ls docs/in .vscode .git/hooks | grep hid; echo x >> docs/plain; touch docs/new .vscode/new; \
             mv docs moved; rm -r .vscode; echo changed > .git/hooks/h; ls -A docs .vscode; cat docs/plain",
            names.join(" ")
        );
        let none = ["deny = [\"**/*.hid\"]\n".to_owned(), rule("**/*.hid", "none", 9)];
        for (n, rule) in none.into_iter().chain([String::new()]).enumerate() {
            let text = format!("extends = \"code\"\n[files]\nprotect = [\"docs\"]\n{rule}");
            let file = p.write("../outside/policy.toml", text).display().to_string();
            // Again over what the first run left in the layer.
            for again in [false, true] {
                let layer = format!("l{n}");
                let ran = p.shell(&["-s", &file, "--layer", &layer], &attempts);
                assert!(ran.out.ends_with("docs:\nin\nplain\nplain\n") || n == 2, "{ran:#?}");
                let seen = ran.out.matches("SECRET").count();
                // The control: without a rule, all of it is there.
                assert_eq!(seen, if n == 2 { names.len() } else { 0 }, "{rule} {again}: {ran:#?}");
                assert_eq!(ran.out.contains("hid"), n == 2, "{rule} {again}: {ran:#?}");
            }
            let left = Ran::of(&mut p.ringfence(["diff", &format!("l{n}"), "--json"])).ok().out;
            assert!(!left.contains("docs") && !left.contains(".vscode"), "{left}");
        }
    });
}

/// A file system below the workspace is shown beside the layer, which has no mask there.
#[test]
fn what_is_mounted_below_a_layer_shows_nothing_hidden() {
    if !is_root() || !has("unshare") {
        println!("skipped: only root can mount something for a moment");
        return;
    }
    let p = Place::new(User::Me);
    p.write("f", "x");
    let run = |policy: &str, n: u32| {
        let file = p.write("../outside/policy.toml", policy).display().to_string();
        let script = format!(
            "for m in mnt hidden listed; do mkdir -p $m; mount -t tmpfs none $m; mkdir $m/in; \
             echo TOP SECRET > $m/in/a.hid; done; echo shown > mnt/plain; \
             {} run -s {file} --layer l{n} -- \
             sh -c 'cat mnt/plain */in/*.hid mnt/in/a.hid hidden/in/a.hid; echo x > mnt/in/new'",
            crate::harness::binary().display()
        );
        let mut command = std::process::Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).current_dir(p.workspace());
        Ran::of(command.env("HOME", p.home()))
    };
    for (n, base) in ["code", "read-only"].into_iter().enumerate() {
        let text = format!(
            "extends = \"{base}\"\n[files]\ndeny = [\"**/*.hid\", \"**/hidden\", \"listed\"]\n"
        );
        let ran = run(&text, n as u32);
        assert_eq!(ran.out, "shown\n", "{base}: {ran:#?}");
    }
    let ran = run(&("extends = \"code\"\n".to_owned() + &rule("listed/**", "view", 9)), 2);
    ran.failed_with(126).says("listed").says("cannot be held by mounts");
    // The control.
    let ran = run("extends = \"code\"\n", 3);
    assert_eq!(ran.out.matches("SECRET").count(), 5, "{ran:#?}");
}

/// A glob or file rule that names a directory speaks of that alone.
#[test]
fn a_rule_for_a_directory_alone_opens_nothing_in_it() {
    as_each_user(|p| {
        p.write("z/plain", "plain\n");
        p.write("z/d/in", "in\n");
        let attempts = "chmod 600 z/plain; touch -d @1 z/plain; echo x >> z/plain; rm -f z/plain; \
            mv z/d z/e; chmod 700 z/d; echo x > z/d/in; touch z/new; ln z/plain z/second; \
            cat z/plain z/d/in; stat -c %a-%Y z/plain z/d; ls z";
        let seen = p.bare("stat -c %a-%Y z/plain z/d").ok().out;
        let rules = |write: &str, last: &str| {
            let text = format!(
                "extends = \"restrictive\"\n[limits]\nmemory = \"unlimited\"\ncpu = \"unlimited\"\n\
                 [files]\nread = [\".\"]\n{write}{last}"
            );
            p.write("../outside/policy.toml", text).display().to_string()
        };
        let alone = rules("", &rule("/z", "write", 9));
        let ran = p.shell(&["-s", &alone, "--layer", "l"], attempts);
        assert_eq!(ran.out, format!("plain\nin\n{seen}d\nplain\n"), "{ran:#?}");
        let with_another = rules("deny = [\"**/secrets\"]\n", &rule("/z", "write", 9));
        let ran = p.shell(&["-s", &with_another, "--layer", "m"], attempts);
        assert_eq!(ran.out, format!("plain\nin\n{seen}d\nplain\n"), "{ran:#?}");
        // The control: a rule for what lies in it.
        let all = rules("", &(rule("/z", "write", 9) + &rule("/z/**", "write", 9)));
        let ran = p.shell(&["-s", &all, "--layer", "n"], attempts);
        assert!(ran.out.ends_with("e\nnew\n"), "{ran:#?}");
    });
}

#[test]
fn what_rules_let_be_written_can_be_made_where_nothing_else_can() {
    as_each_user(|p| {
        p.write("src/plain", "plain\n");
        p.write("src/a.key", "TOP SECRET\n");
        let flags = ["-t", "agent-safe", "--layer", "l"];
        let ran = p.shell(
            &flags,
            "mkdir output && echo out > output/made && cat output/made; mkdir -p tmp/a/b; echo x > tmp/a/b/c; \
             mkdir other; mkdir src/output; echo x > src/new; echo x > top; mv src output/; mv src tmp; \
             ln -s ../src output/link; echo x > output/link/new; echo x >> output/link/plain; \
             echo x > output/new.key; chmod 700 src; rm -rf src; ln src/plain output/plain; ls -A output",
        );
        assert_eq!(ran.out, "out\nlink\nmade\n", "{ran:#?}");
        for refused in
            ["'other'", "'src/output'", "cannot create src/new", "cannot create top", "new.key"]
        {
            let text = ran.err.replace(['\u{2018}', '\u{2019}'], "'");
            assert!(text.contains(refused), "{refused}: {ran:#?}");
        }
        assert!(!ran.err.contains("Read-only"), "{ran:#?}");
        // Nothing of the host changed; the next run goes on, also when it has a directory of its own.
        assert!(!p.workspace().join("output").exists());
        let again = "cat output/made tmp/a/b/c && echo more >> output/made";
        assert_eq!(p.shell(&flags, again).ok().out, "out\nx\n");
        let applied = Ran::of(&mut p.ringfence(["apply", "l", "-t", "agent-safe"])).ok();
        assert_eq!(
            std::fs::read_to_string(p.workspace().join("output/made")).unwrap(),
            "out\nmore\n",
            "{applied:#?}"
        );
        let there = "echo x > output/second && cat output/second; echo x > src/new";
        let ran = p.shell(&flags, there);
        assert!(ran.out == "x\n" && !ran.err.is_empty(), "{ran:#?}");
        // The control: a preset that lets nothing be written.
        let ran = p.shell(&["-t", "read-only", "--layer", "r"], "mkdir output");
        assert!(ran.code != Some(0), "{ran:#?}");
    });
}
