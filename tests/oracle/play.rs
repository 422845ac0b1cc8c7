//! Plays random operations inside a sandbox and on the host beside the model, and tells where they
//! part.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use serde_json::json;

use crate::harness::{self, Place, User};
use crate::law::{Kind, Law, PRESETS, Permission, Places, Rule};
use crate::model::{self, Hidden, Model, Names, View, What};
use crate::ops::{self, At, Data, How, Op, Reply, SLOTS, Seen};
use crate::random::Random;

/// What holds the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Binds, masks and Landlock over the real tree; rules name what exists.
    Direct,
    /// An overlay without rules.
    Layer,
    /// An overlay over a mask of what rules hide, names checked as they are made.
    Masked,
    /// The real tree through FUSE, every operation decided by its path.
    Exact,
}

impl Mechanism {
    /// What is written lands in a layer.
    fn is_layer(self) -> bool {
        matches!(self, Self::Layer | Self::Masked)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Inside,
    Host,
    /// The sandbox ends and starts again.
    Restart,
}

pub type Step = (Who, Op);

/// Everything that decides a game but the operations.
#[derive(Clone, Debug)]
pub struct Case {
    pub mechanism: Mechanism,
    pub user: User,
    pub seed: u64,
    /// By the host, before anything starts: the tree.
    pub before: Vec<Op>,
    pub rules: Vec<Rule>,
    /// The rules as the model has them; others than `rules` where the oracle is to fail.
    pub judged: Vec<Rule>,
}

/// Names that people use, names that look alike, and names that nobody expects.
fn name(r: &mut Random) -> Vec<u8> {
    const NAMES: [&[u8]; 18] = [
        b"a",
        b"A",
        b"b",
        b"c d",
        b"e\nf",
        b"\xff\xfe",
        b"-rf",
        b".env",
        b".ENV",
        b"secrets",
        b".g",
        b"x.key",
        b"y.txt",
        b"output",
        b"tmp",
        b"z",
        b"*",
        "é".as_bytes(),
    ];
    match r.below(60) {
        0 => vec![b'l'; 256],
        1 | 2 => vec![b'n'; 255],
        _ => r.pick(&NAMES).to_vec(),
    }
}

fn data(r: &mut Random) -> Data {
    let length = *r.pick(&[0, 1, 5, 20, 5000]);
    let first = (r.next() % 26) as u8 + b'a';
    Data(vec![first; length])
}

/// What can be named, looked up once for many operations.
pub struct Scene {
    paths: Vec<Names>,
    directories: Vec<Names>,
    /// Where the open directories lie.
    slots: [Option<Names>; SLOTS],
}

impl Scene {
    pub fn of(model: &Model) -> Self {
        let all = model.tree.all();
        let directories = all.iter().filter(|(_, n)| model.tree.entries(*n).is_some());
        Self {
            directories: directories.map(|(path, _)| path.clone()).collect(),
            slots: model.slots.map(|slot| slot.map(|n| model.tree.path_of(n).unwrap_or_default())),
            paths: all.into_iter().map(|(path, _)| path).collect(),
        }
    }
}

/// A path, mostly to something that is there.
fn at(r: &mut Random, scene: &Scene) -> At {
    let slot = r.one_in(6).then(|| r.below(SLOTS));
    let prefix: &[Vec<u8>] = match slot.map(|slot| &scene.slots[slot]) {
        None => &[],
        Some(Some(path)) => path,
        Some(None) => return At { slot: slot.map(|s| s as u8), path: name(r) },
    };
    let slot = slot.map(|slot| slot as u8);
    // One that is not below the open directory stands for the directory itself.
    let mut path = match scene.paths.len() {
        0 => Vec::new(),
        n => scene.paths[r.below(n)].strip_prefix(prefix).unwrap_or_default().to_vec(),
    };
    match r.below(10) {
        // As it is.
        0..6 if !path.is_empty() => {}
        // Beside it.
        6 if !path.is_empty() => {
            path.pop();
            path.push(name(r));
        }
        // Below it, whatever it is.
        7 => {
            path.push(name(r));
            path.push(name(r));
        }
        // Up and down again.
        8 if !path.is_empty() => {
            let last = path.pop().unwrap_or_default();
            path.extend([name(r), b"..".to_vec(), last]);
        }
        _ => path.push(name(r)),
    }
    At { slot, path: model::joined(&path) }
}

fn directory(r: &mut Random, scene: &Scene) -> At {
    if r.one_in(4) || scene.directories.is_empty() {
        return At { slot: None, path: b".".to_vec() };
    }
    let path = &scene.directories[r.below(scene.directories.len())];
    At { slot: None, path: model::joined(path) }
}

/// Where a link leads: within its directory or below it, to nothing, or to itself.
fn target(r: &mut Random) -> Data {
    let mut target = name(r);
    if r.one_in(3) {
        target.push(b'/');
        target.extend(name(r));
    }
    target.truncate(200);
    Data(target)
}

pub fn operation(r: &mut Random, scene: &Scene) -> Op {
    let here = |r: &mut Random| at(r, scene);
    match r.below(40) {
        0..4 => Op::Write { at: here(r), data: data(r), new: r.one_in(3) },
        4 | 5 => Op::Append { at: here(r), data: data(r) },
        6 => Op::Truncate { at: here(r), length: *r.pick(&[0, 3, 6000]) },
        7..10 => Op::Read { at: here(r) },
        10 | 11 => Op::List { at: if r.one_in(2) { directory(r, scene) } else { here(r) } },
        12..15 => Op::Stat { at: here(r), follow: r.one_in(2) },
        15 => Op::Readlink { at: here(r) },
        16..22 => {
            let how = *r.pick(&[How::Plain, How::Plain, How::Plain, How::NoReplace, How::Exchange]);
            Op::Rename { from: here(r), to: here(r), how }
        }
        22 | 23 => Op::Link { from: here(r), to: here(r) },
        24 => Op::Symlink { target: target(r), at: here(r) },
        25..28 => Op::Unlink { at: here(r) },
        28 | 29 => Op::Rmdir { at: here(r) },
        30..33 => Op::Mkdir { at: here(r) },
        33 => Op::Fifo { at: here(r) },
        34 => Op::Chmod { at: here(r), mode: *r.pick(&[0o644, 0o755, 0o600, 0o444, 0o000, 0o700]) },
        35 => Op::Utimes { at: here(r), seconds: 1_000_000 + r.below(1_000_000) as u32 },
        36 => Op::Attribute { at: here(r), value: Data(data(r).0.into_iter().take(20).collect()) },
        37 | 38 => Op::OpenDirectory { slot: r.below(SLOTS) as u8, at: directory(r, scene) },
        _ => Op::Nameless { directory: directory(r, scene), to: here(r), data: data(r) },
    }
}

/// A tree to begin with: the operations that make it, and what they come to.
fn tree(r: &mut Random) -> (Vec<Op>, Model) {
    let host = View::of_host(true);
    let mut model = Model::default();
    let mut made = Vec::new();
    for _ in 0..20 + r.below(20) {
        let inside = directory(r, &Scene::of(&model));
        let mut path = if inside.path == b"." { Vec::new() } else { inside.path };
        if path.split(|b| *b == b'/').count() > 4 {
            continue;
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name(r));
        let at = At { slot: None, path };
        let op = match r.below(12) {
            0..4 => Op::Mkdir { at },
            4..9 => Op::Write { at, data: data(r), new: true },
            9 => Op::Symlink { target: target(r), at },
            10 => Op::Fifo { at },
            _ => Op::Link { from: self::at(r, &Scene::of(&model)), to: at },
        };
        if model.expect(&host, &op).fails == 0 && model.follow(&host, &op, &Reply::Done).is_ok() {
            made.push(op);
        }
    }
    (made, model)
}

fn literal(path: &str) -> String {
    let special = |c| matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | ',' | '!' | '\\');
    let escaped: String =
        path.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
    format!("./{escaped}")
}

/// Rules that binds can hold: paths of what is there, and whole trees.
fn direct_rules(r: &mut Random, model: &Model) -> Vec<Rule> {
    let base = *r.pick(&[
        Permission::Write,
        Permission::Write,
        Permission::Write,
        Permission::Read,
        // What is only listed is not held by binds below /tmp, where the games are.
        Permission::Read,
    ]);
    let rule = |pattern: &str, kind, permission| Rule {
        pattern: pattern.to_owned(),
        kind,
        permission,
        priority: 0,
    };
    let mut rules = vec![if r.one_in(3) {
        rule("**/*", Kind::Glob, base)
    } else {
        rule(".", Kind::Grant, base)
    }];
    let all = model.tree.all();
    let mut hidden: Vec<Names> = Vec::new();
    for _ in 0..r.below(5) {
        if all.is_empty() {
            break;
        }
        let (path, node) = r.pick(&all);
        let names = all.iter().filter(|(_, n)| n == node).count();
        let inode = &model.tree.nodes[*node];
        let Ok(text) = String::from_utf8(model::joined(path)) else { continue };
        let plain = matches!(inode.what, What::File(_) | What::Directory(_));
        // Another name of the same file has another permission: that is a case of its own.
        if !plain || names > 1 || self::shared_below(model, path) {
            continue;
        }
        let (kind, permission) = *r.pick(&[
            (Kind::Cap, Permission::None),
            (Kind::Cap, Permission::Read),
            (Kind::Grant, Permission::Read),
            (Kind::Grant, Permission::Write),
        ]);
        // Nothing is shown inside what is hidden; that is refused at the start.
        if hidden.iter().any(|h| path.starts_with(h)) && kind == Kind::Grant {
            continue;
        }
        if permission == Permission::None {
            hidden.push(path.clone());
        }
        rules.push(rule(&literal(&text), kind, permission));
    }
    rules
}

/// Whether a file below has other names.
fn shared_below(model: &Model, path: &[Vec<u8>]) -> bool {
    let all = model.tree.all();
    all.iter().any(|(p, node)| {
        p.starts_with(path)
            && model.tree.entries(*node).is_none()
            && all.iter().filter(|(_, n)| n == node).count() > 1
    })
}

/// Rules about names, wherever they are.
fn name_rules(r: &mut Random) -> Vec<Rule> {
    const PATTERNS: [&str; 14] = [
        "**/.env*",
        "**/secrets",
        "**/*.key",
        "a",
        "a/b",
        "**/[ab]",
        "**/.[!e]*",
        "output/**",
        "*/x.key",
        "**/{y.txt,z}",
        "c d",
        "**/a/**/b",
        "tmp/*",
        "A",
    ];
    let ordered = |pattern: &str, permission, priority| Rule {
        pattern: pattern.to_owned(),
        kind: Kind::Glob,
        permission,
        priority,
    };
    let mut rules: Vec<Rule> = if r.one_in(3) {
        let preset = r.pick(&PRESETS).1;
        preset.iter().map(|p| ordered(p.pattern, p.permission, p.priority)).collect()
    } else {
        let base = *r.pick(&[Permission::Write, Permission::Write, Permission::Read]);
        vec![Rule { kind: Kind::Grant, ..ordered(".", base, 0) }]
    };
    for _ in 0..r.below(4) {
        let (kind, permission) = *r.pick(&[
            (Kind::Cap, Permission::None),
            (Kind::Cap, Permission::None),
            (Kind::Cap, Permission::Read),
            (Kind::Grant, Permission::Write),
            (Kind::Grant, Permission::Read),
        ]);
        let pattern = (*r.pick(&PATTERNS)).to_owned();
        rules.push(Rule { pattern, kind, permission, priority: 0 });
    }
    for _ in 0..r.below(6) / 3 {
        // Braces are no part of the protocol's patterns.
        let pattern = *r.pick(&["/a/**", "**/b", "/output/*", "**/x.key", "**/c d/**", "A", "/z"]);
        let permission = *r.pick(&Permission::ALL);
        rules.push(ordered(pattern, permission, 1 + r.below(20) as i32));
    }
    rules
}

/// Directories that mounts make read-only, and names that are hidden in them, too.
fn sealed_rules(r: &mut Random, model: &Model) -> Vec<Rule> {
    let rule = |pattern: String, kind, permission| Rule { pattern, kind, permission, priority: 0 };
    let mut rules = vec![rule(".".to_owned(), Kind::Grant, Permission::Write)];
    let all = model.tree.all();
    let directories: Vec<String> = all
        .iter()
        .filter(|(_, node)| model.tree.entries(*node).is_some())
        .filter_map(|(path, _)| String::from_utf8(model::joined(path)).ok())
        .collect();
    for _ in 0..=r.below(3) {
        if directories.is_empty() {
            break;
        }
        let permission = *r.pick(&[Permission::Read, Permission::Read, Permission::None]);
        let directory: &String = r.pick(&directories);
        rules.push(rule(literal(directory), Kind::Cap, permission));
    }
    for _ in 0..=r.below(3) {
        let pattern = *r.pick(&["**/*.key", "**/secrets", "**/.env*", "**/[ab]", "**/z", "**/y.*"]);
        rules.push(rule(pattern.to_owned(), Kind::Cap, Permission::None));
    }
    rules
}

/// Whether only paths decide. At its start a sandbox also hides what a hidden symlink leads to and the
/// other names of a hidden file, and holds a rule whose beginning leads through a symlink at the place
/// where that leads, which the law knows nothing of.
fn begins_plainly(model: &Model, rules: &[Rule]) -> bool {
    let law = Law::new(rules, &PLACES).unwrap();
    let view = View::of_sandbox(&law, Hidden::Absent, BTreeSet::new(), false);
    let all = model.tree.all();
    let around = |path: &[Vec<u8>]| view.permission(&path[..path.len() - 1]);
    let special = |node: usize| {
        matches!(model.tree.nodes[node].what, What::Symlink(_))
            || all.iter().filter(|(_, n)| *n == node).count() > 1
    };
    let begins_a_rule = |path: &[Vec<u8>]| {
        rules.iter().filter(|rule| !rule.kind.is_ordered()).any(|rule| {
            let names: Vec<&[u8]> = rule.pattern.split('/').map(str::as_bytes).collect();
            names.len() > path.len() && names.iter().zip(path).all(|(a, b)| a == b)
        })
    };
    all.iter().all(|(path, node)| {
        !special(*node) || view.permission(path) == around(path) && !begins_a_rule(path)
    })
}

impl Case {
    pub fn new(mechanism: Mechanism, user: User, seed: u64) -> Self {
        let mut r = Random::new(seed);
        let (before, model) = tree(&mut r);
        let rules = match mechanism {
            Mechanism::Direct => direct_rules(&mut r, &model),
            // What an earlier seed stands for stays as it was.
            Mechanism::Masked if seed >= 50_000 && seed % 2 == 1 => sealed_rules(&mut r, &model),
            Mechanism::Masked | Mechanism::Exact => name_rules(&mut r),
            Mechanism::Layer => vec![Rule {
                pattern: ".".to_owned(),
                kind: Kind::Grant,
                permission: Permission::Write,
                priority: 0,
            }],
        };
        let mut before = before;
        if mechanism != Mechanism::Direct && !begins_plainly(&model, &rules) {
            before.retain(|op| !matches!(op, Op::Link { .. } | Op::Symlink { .. }));
        }
        Self { mechanism, user, seed, before, judged: rules.clone(), rules }
    }

    /// Where something is mounted inside: every place whose permission differs from what surrounds
    /// it, and the directories that lead to what a cap names, which are held in place.
    fn mounts(&self, law: &Law, model: &Model) -> BTreeSet<Names> {
        let mut mounts = BTreeSet::new();
        if self.mechanism != Mechanism::Direct {
            return mounts;
        }
        let view = View::of_sandbox(law, Hidden::Masked, BTreeSet::new(), false);
        let mut gone: Option<Names> = None;
        for (path, _) in model.tree.all() {
            if gone.as_ref().is_some_and(|g| path.starts_with(g)) {
                continue;
            }
            let permission = view.permission(&path);
            if permission != view.permission(&path[..path.len() - 1]) {
                if permission == Permission::None {
                    gone = Some(path.clone());
                }
                mounts.insert(path);
            }
        }
        for rule in self.judged.iter().filter(|r| r.kind == Kind::Cap) {
            let named = model.tree.all().into_iter().find(|(p, _)| {
                String::from_utf8(model::joined(p)).is_ok_and(|text| literal(&text) == rule.pattern)
            });
            for above in named.iter().flat_map(|(p, _)| (1..p.len()).map(|n| p[..n].to_vec())) {
                if view.permission(&above) == Permission::Write {
                    mounts.insert(above);
                }
            }
        }
        mounts
    }
}

/// Copies of the binary and of this one, where every user can reach them.
fn executor() -> &'static Path {
    static EXECUTOR: OnceLock<PathBuf> = OnceLock::new();
    EXECUTOR.get_or_init(|| {
        let copy = harness::binary().with_file_name("oracle");
        let own = std::env::current_exe().unwrap();
        assert!(Command::new("cp").arg(own).arg(&copy).status().unwrap().success());
        harness::mode(&copy, 0o755);
        copy
    })
}

pub const ARGUMENTS: [&str; 4] = ["inside::executor", "--exact", "--nocapture", "--test-threads=1"];
pub const MARK: &str = "RINGFENCE_ORACLE_INSIDE";

/// A process that carries operations out.
#[derive(Debug)]
struct Player {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Player {
    fn start(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .env(MARK, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let (input, mut output) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(ops::READY) {
            if output.read(&mut byte).unwrap_or(0) == 0 {
                let mut error = String::from_utf8_lossy(&said).into_owned();
                let _ = child.stderr.take().unwrap().read_to_string(&mut error);
                let _ = child.wait();
                return Err(error);
            }
            said.push(byte[0]);
        }
        Ok(Self { child, input, output })
    }

    fn ask(&mut self, ops: &[Op]) -> Result<Vec<Reply>, String> {
        let input = self.input.as_mut().ok_or("ended")?;
        ops::send(input, ops).map_err(|e| e.to_string())?;
        ops::receive(&mut self.output).map_err(|e| {
            let mut said = String::new();
            if let Some(mut error) = self.child.stderr.take() {
                let _ = self.child.kill();
                let _ = error.read_to_string(&mut said);
            }
            format!("{e}: {said}")
        })
    }

    fn tree(&mut self) -> Result<Vec<Seen>, String> {
        match self.ask(&[Op::Dump])?.pop() {
            Some(Reply::Tree(seen)) => Ok(seen),
            other => Err(format!("{other:?} to a dump")),
        }
    }

    fn end(mut self) -> Result<(), String> {
        drop(self.input.take());
        let mut rest = Vec::new();
        let _ = self.output.read_to_end(&mut rest);
        let mut said = String::new();
        let _ = self.child.stderr.take().map(|mut e| e.read_to_string(&mut said));
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("ended with {status}: {said}")) }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary, by a user who can open the device of FUSE. Where only root can, an ordinary user gets a
/// node of its own, in a mount namespace that ends with the command.
fn with_device(place: &Place, arguments: Vec<OsString>) -> Command {
    if place.user == User::Me {
        return place.ringfence(arguments);
    }
    let id = harness::ORDINARY_ID;
    let script = format!(
        "d=$(mktemp -d) && mount -t tmpfs -o mode=755 private \"$d\" \
         && mknod -m 666 \"$d/fuse\" c 10 229 && mount --bind \"$d/fuse\" /dev/fuse \
         && umount -l \"$d\" && rmdir \"$d\" \
         && exec setpriv --reuid {id} --regid {id} --clear-groups -- \"$@\""
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--", "/bin/sh", "-c", &script, "sh"])
        .arg(harness::binary())
        .args(arguments)
        .current_dir(place.workspace())
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", place.home())
        .env("LANG", "C.UTF-8");
    command
}

/// Whether the binary brings the changes of a layer to the real files.
fn applies() -> bool {
    static APPLIES: OnceLock<bool> = OnceLock::new();
    *APPLIES.get_or_init(|| {
        let help = Command::new(harness::binary()).args(["apply", "--help"]).output();
        let offered = help.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("--rollback"));
        if !offered {
            println!("skipped: this binary does not apply layers");
        }
        offered
    })
}

/// Why a game ended.
#[derive(Debug)]
pub enum End {
    Agreed,
    /// The policy cannot be held by this mechanism, and was refused before anything ran.
    Refused(String),
    Disagreed {
        step: usize,
        why: String,
    },
}

/// What a game needs, and what it leaves.
pub struct Game {
    case: Case,
    place: Place,
    law: Law,
}

const PLACES: Places = Places { workspace: "/w", home: "/h" };
/// Operations sent at a time; the trees are compared after each.
const BATCH: usize = 64;

impl Game {
    pub fn new(case: &Case) -> Self {
        let law = Law::new(&case.judged, &PLACES).unwrap();
        Self { case: case.clone(), place: Place::new(case.user), law }
    }

    fn host(&self) -> Player {
        let mut command = self.place.command(executor());
        command.args(ARGUMENTS);
        Player::start(command).unwrap()
    }

    fn sandbox(&self) -> Result<Player, String> {
        let mut rules = self.case.rules.clone();
        rules.push(Rule {
            pattern: executor().display().to_string(),
            kind: Kind::Grant,
            permission: Permission::Read,
            priority: 0,
        });
        let policy = self.place.root().join("policy.jsonc");
        let rest = json!({
            // It grants nothing of the workspace.
            "extends": "restrictive",
            "limits": { "memory": "unlimited", "cpu": "unlimited" },
            "lift": ["guard", "secret", "identity"],
            "files": { "git": "open" },
            "environment": { "set": { MARK: "1" } },
        });
        std::fs::write(&policy, crate::policy::file(&rules, &rest)).unwrap();
        harness::mode(&policy, 0o644);
        let state = self.place.root().join("state");
        if !state.exists() {
            std::fs::create_dir(&state).unwrap();
            harness::mode(&state, 0o700);
            self.place.own(&state);
        }
        let mut arguments: Vec<OsString> = vec!["run".into(), "-s".into(), policy.into_os_string()];
        if self.case.mechanism == Mechanism::Exact {
            arguments.push("--exact".into());
        }
        if self.case.mechanism.is_layer() {
            arguments.extend(["--layer".into(), "oracle".into()]);
        }
        arguments.extend(["--".into(), executor().as_os_str().to_owned()]);
        arguments.extend(ARGUMENTS.iter().map(Into::into));
        let mut command = if self.case.mechanism == Mechanism::Exact {
            with_device(&self.place, arguments)
        } else {
            self.place.ringfence(arguments)
        };
        command.env("RINGFENCE_STATE", &state);
        Player::start(command)
    }

    /// Plays what `next` gives until it gives nothing; `played` gets what was sent.
    pub fn play(&self, mut next: impl FnMut(&Model) -> Vec<Step>, played: &mut Vec<Step>) -> End {
        let case = &self.case;
        let is_root = self.place.ids().0 == 0;
        let eyes = View::of_host(is_root);
        let mut host = self.host();
        let mut outside = Model::default();
        let replies = host.ask(&case.before).unwrap();
        for (op, reply) in case.before.iter().zip(&replies) {
            if let Err(why) = outside.follow(&eyes, op, reply) {
                return End::Disagreed { step: 0, why: format!("making the tree: {op:?}: {why}") };
            }
        }
        let layered = case.mechanism.is_layer();
        let mut inside = Model {
            tree: if layered { outside.tree.as_lower() } else { outside.tree.clone() },
            ..Model::default()
        };
        let hidden = match case.mechanism {
            Mechanism::Direct => Hidden::Masked,
            _ => Hidden::Absent,
        };
        let view = View::of_sandbox(&self.law, hidden, case.mounts(&self.law, &outside), layered);
        let mut sandbox = match self.sandbox() {
            Ok(sandbox) => sandbox,
            Err(said) => return End::Refused(said),
        };
        loop {
            let steps = next(&inside);
            if steps.is_empty() {
                break;
            }
            for batch in steps.chunk_by(|a, b| a.0 == b.0) {
                let first = played.len();
                played.extend_from_slice(batch);
                let lost = |why: String| End::Disagreed { step: first, why };
                let known = |op: &Op| batch[0].0 != Who::Inside || !inside.is_lost(op);
                let ops: Vec<Op> =
                    batch.iter().map(|(_, op)| op).filter(|op| known(op)).cloned().collect();
                match batch[0].0 {
                    Who::Restart if !begins_plainly(&inside, &case.judged) => {}
                    Who::Restart => {
                        if let Err(why) = sandbox.end() {
                            return lost(why);
                        }
                        inside.restarts();
                        sandbox = match self.sandbox() {
                            Ok(sandbox) => sandbox,
                            Err(why) => return lost(format!("does not start again: {why}")),
                        };
                    }
                    Who::Inside => {
                        let replies = match sandbox.ask(&ops) {
                            Ok(replies) => replies,
                            Err(why) => return lost(why),
                        };
                        for (i, (op, reply)) in ops.iter().zip(&replies).enumerate() {
                            if let Err(why) = inside.follow(&view, op, reply) {
                                return End::Disagreed { step: first + i, why };
                            }
                        }
                    }
                    Who::Host => {
                        // One tree: what the host does is done to it, with the host's own slots.
                        for (i, op) in ops.iter().enumerate() {
                            let held = inside.held();
                            outside.tree = std::mem::take(&mut inside.tree);
                            // What the host moves takes along what is mounted on it; rules are about
                            // what was there at the start.
                            let followed = if outside.moves_any(&eyes, op, &view.mounts) {
                                Ok(())
                            } else {
                                let reply = host.ask(std::slice::from_ref(op)).unwrap().remove(0);
                                outside.follow(&eyes, op, &reply)
                            };
                            inside.tree = outside.tree.clone();
                            match case.mechanism {
                                Mechanism::Exact => inside.lose(&held, None),
                                Mechanism::Direct => inside.lose(&held, Some(&view.mounts)),
                                Mechanism::Layer | Mechanism::Masked => {}
                            }
                            if let Err(why) = followed {
                                let why = format!("host: {why}");
                                return End::Disagreed { step: first + i, why };
                            }
                        }
                    }
                }
                let last = played.len() - 1;
                let compared = sandbox.tree().and_then(|seen| {
                    inside.compare(&view, &seen).map_err(|why| format!("the tree inside: {why}"))
                });
                if let Err(why) = compared {
                    return End::Disagreed { step: last, why };
                }
                if !layered {
                    outside.tree = inside.tree.clone();
                }
                let compared = host.tree().and_then(|seen| {
                    outside.compare(&eyes, &seen).map_err(|why| format!("the host's tree: {why}"))
                });
                if let Err(why) = compared {
                    return End::Disagreed { step: last, why };
                }
            }
        }
        let ended = sandbox.end().and_then(|()| host.tree()).and_then(|seen| {
            let compared = outside.compare(&eyes, &seen);
            compared.map_err(|why| format!("the host's tree after the run: {why}"))
        });
        let applied = ended.and_then(|()| {
            if case.mechanism != Mechanism::Layer || !applies() {
                return Ok(());
            }
            self.apply()?;
            inside.restarts();
            let compared = inside.compare(&eyes, &host.tree()?);
            compared.map_err(|why| format!("the host's tree after the layer was applied: {why}"))
        });
        match applied {
            Ok(()) => End::Agreed,
            Err(why) => End::Disagreed { step: played.len(), why },
        }
    }

    /// Brings the layer's changes to the host's tree.
    fn apply(&self) -> Result<(), String> {
        let root = self.place.root();
        let mut command = self.place.ringfence(["apply", "oracle", "-s"]);
        command.arg(root.join("policy.jsonc")).env("RINGFENCE_STATE", root.join("state"));
        let ran = harness::Ran::of(&mut command);
        // A layer in which nothing changed leaves none.
        if ran.code == Some(0) || ran.err.contains("there is no layer") {
            return Ok(());
        }
        Err(format!("apply: {ran:?}"))
    }
}

/// Random steps of one game.
fn steps<'a>(case: &Case, count: usize) -> impl FnMut(&Model) -> Vec<Step> + use<'a> {
    let mut r = Random::new(case.seed ^ 0x5eed);
    let mut left = count;
    let layered = case.mechanism.is_layer();
    move |model| {
        let n = left.min(BATCH);
        left -= n;
        let who = match r.below(6) {
            0 if layered => return vec![(Who::Restart, Op::Dump)],
            0 => Who::Host,
            _ => Who::Inside,
        };
        let scene = Scene::of(model);
        (0..n).map(|_| (who, operation(&mut r, &scene))).collect()
    }
}

fn replay(case: &Case, steps: &[Step]) -> End {
    let mut given = Some(steps.to_vec());
    Game::new(case).play(|_| given.take().unwrap_or_default(), &mut Vec::new())
}

/// Leaves out as many steps as possible so that the two still disagree.
fn shrunk(case: &Case, mut steps: Vec<Step>, mut why: String) -> (Vec<Step>, String) {
    let mut tries = 300;
    let mut size = steps.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < steps.len() && tries > 0 {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            tries -= 1;
            match replay(case, &fewer) {
                End::Disagreed { step, why: now } => {
                    fewer.truncate(step + 1);
                    (steps, why) = (fewer, now);
                }
                _ => at += size,
            }
        }
        size /= 2;
    }
    (steps, why)
}

fn lines<T: std::fmt::Debug>(all: &[T]) -> String {
    all.iter().fold(String::new(), |text, one| format!("{text}\n  {one:?}"))
}

/// What a list of games came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub operations: usize,
    pub games: usize,
    pub refused: usize,
}

/// Plays one game; the description of the smallest disagreement, if there is one.
pub fn game(case: &Case, operations: usize, tally: &mut Tally) -> Option<String> {
    let mut played = Vec::new();
    let end = Game::new(case).play(steps(case, operations), &mut played);
    tally.games += 1;
    tally.operations += played.len();
    match end {
        End::Agreed => None,
        End::Refused(said) => {
            assert!(
                said.contains("cannot be"),
                "seed {}: the sandbox does not start: {said}\n{:#?}",
                case.seed,
                case.rules
            );
            tally.refused += 1;
            None
        }
        End::Disagreed { step, why } => {
            played.truncate(step + 1);
            let (played, why) = shrunk(case, played, why);
            Some(format!(
                "seed {} as {:?}, {:?}: {why}\ntree:{}\nrules: {:#?}\nsteps:{}",
                case.seed,
                case.user,
                case.mechanism,
                lines(&case.before),
                case.rules,
                lines(&played)
            ))
        }
    }
}
