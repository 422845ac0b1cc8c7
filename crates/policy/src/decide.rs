//! What a policy says of a path or a host. Total, and independent of the order of rules.
//!
//! All rules that match are sorted by (priority, kind, specificity, effect) and applied in that
//! order to "none": a grant raises to its permission, a cap lowers to it, a set makes it exactly
//! that. At an equal key caps come last and lower permissions win. What native caps leave (after the
//! native grants that are more specific than they) is also a ceiling for ordered rules, so that a
//! deny is never undone by a preset. `docs/policy.md`, "Precedence", says the same for people.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::pattern::{self, Glob, Grammar, Part, Token};
use crate::{Base, Decision, Effect, Kind, Permission, Places, Policy, Rule, builtin};

/// Where a rule stands in the order of application; a greater key has the later word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    priority: i32,
    /// Ordered kinds first (glob, directory, file), then native rules: what a person adds to a
    /// preset of the same priority adjusts it.
    kind: u8,
    specificity: u32,
    /// Grants, then sets, then caps.
    effect: u8,
    /// Within an effect the rule that decides comes last: the highest grant, the lowest set or cap.
    permission: u8,
}

fn key(rule: &Rule, specificity: u32) -> Key {
    let rising = rule.permission as u8;
    let falling = Permission::Write as u8 - rising;
    let (effect, permission) = match rule.effect {
        Effect::Grant => (0, rising),
        Effect::Set => (1, falling),
        Effect::Cap => (2, falling),
    };
    let kind = match rule.kind {
        Kind::Glob => 0,
        Kind::Directory => 1,
        Kind::File => 2,
        Kind::Path => 3,
    };
    Key { priority: rule.priority, kind, specificity, effect, permission }
}

/// A rule that needs no walk: it names one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point<'a> {
    /// Absolute and clean.
    pub path: PathBuf,
    pub rule: &'a Rule,
    /// Whether the rule also covers all below the path.
    pub subtree: bool,
}

/// A rule with wildcards: which paths it names is known only after a walk.
#[derive(Clone, Debug)]
pub struct GlobRule<'a> {
    pub rule: &'a Rule,
    /// Absolute; every match lies in or below it.
    pub base: PathBuf,
    globs: Vec<Glob>,
}

impl GlobRule<'_> {
    /// Whether the pattern matches exactly this path (not because it matches a parent).
    pub fn matches(&self, path: &Path) -> bool {
        let clean = Clean::new(path, Path::new("/"));
        let names = clean.names();
        self.globs.iter().any(|g| g.matches(&names))
    }

    /// Names of which every match below `root` has one; `None` where that cannot be said.
    pub fn marks(&self, root: &Path) -> Option<BTreeSet<Mark>> {
        let root = Clean::new(root, Path::new("/"));
        let above = root.names();
        let mut marks = BTreeSet::new();
        for glob in &self.globs {
            let mut own = BTreeSet::new();
            mark(glob, &above, &mut own)?;
            let elsewhere = glob.prefix.iter().zip(&above).any(|(part, name)| part != name);
            if own.is_empty() && !elsewhere {
                return None;
            }
            // Some parts may be met above the root; without any of them nothing tells.
            let inside = glob.prefix.len() >= above.len();
            if !inside && !elsewhere {
                return None;
            }
            marks.append(&mut own);
        }
        Some(marks)
    }

    /// How many components below `base` a match can lie at most; `None` for any depth.
    pub fn max_depth(&self) -> Option<usize> {
        let base = self.base.components().count().saturating_sub(1);
        self.globs
            .iter()
            .map(|g| {
                (!g.parts.contains(&Part::Deep))
                    .then(|| (g.prefix.len() + g.parts.len()).saturating_sub(base))
            })
            .collect::<Option<Vec<_>>>()
            .map(|depths| depths.into_iter().max().unwrap_or(0))
    }
}

/// A rule that matched a path, with the value before and after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    pub rule: &'a Rule,
    pub before: Permission,
    pub after: Permission,
}

/// The whole reasoning for one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<'a> {
    pub path: PathBuf,
    pub permission: Permission,
    /// Matching rules in the order they were applied.
    pub steps: Vec<Step<'a>>,
    /// The rule that had the last word; `None` where none matches.
    pub decided: Option<&'a Rule>,
    /// The decision was made by a native cap over ordered rules.
    pub capped: bool,
    /// The workspace root under ordered rules is always visible.
    pub root_visible: bool,
}

/// The number of a rule in [`Rules`].
type Number = u32;

/// The rules that were compiled, theirs or borrowed.
#[derive(Debug)]
struct Rules<'a> {
    owned: Vec<Rule>,
    /// After those that are owned.
    borrowed: Vec<&'a Rule>,
    /// The last of those that a policy lists or that were found; what its switches stand for follows.
    listed: usize,
}

impl<'a> Rules<'a> {
    fn get(&self, number: Number) -> &Rule {
        let number = number as usize;
        match self.owned.get(number) {
            Some(rule) => rule,
            None => self.borrowed[number - self.owned.len()],
        }
    }

    /// As [`Self::get`], for rules that all are borrowed.
    fn lent(&self, number: Number) -> &'a Rule {
        self.borrowed[number as usize]
    }

    fn len(&self) -> usize {
        self.owned.len() + self.borrowed.len()
    }

    fn listed(&self) -> impl Iterator<Item = (Number, &Rule)> {
        (0..self.listed as Number).map(|number| (number, self.get(number)))
    }
}

#[derive(Debug)]
struct Native {
    rule: Number,
    glob: Glob,
}

#[derive(Debug)]
struct Ordered {
    rule: Number,
    kind: Kind,
    globs: Vec<Glob>,
    specificity: u32,
    /// Covers the workspace root too (`**/*`, `**`, the directory `/`).
    root: bool,
}

/// Names that a rule singles out, see [`CompiledRules::marks`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    Exactly(Vec<u8>),
    Starts(Vec<u8>),
    Ends(Vec<u8>),
}

impl Mark {
    /// Every name that the part matches, and perhaps others; `None` where no such thing can be said.
    fn of(part: &Part) -> Option<Self> {
        match part {
            Part::Literal(name) => Some(Self::Exactly(name.clone())),
            Part::Wild(tokens) => match (tokens.first(), tokens.last()) {
                (Some(Token::Text(start)), _) => Some(Self::Starts(start.clone())),
                (_, Some(Token::Text(end))) => Some(Self::Ends(end.clone())),
                _ => None,
            },
            Part::Deep => None,
        }
    }

    pub fn is_on(&self, name: &[u8]) -> bool {
        match self {
            Self::Exactly(whole) => name == whole,
            Self::Starts(start) => name.starts_with(start),
            Self::Ends(end) => name.ends_with(end),
        }
    }
}

/// Stands for a name of a path that no rule singles out.
pub const ANY_NAME: &str = "\u{1}";

/// A part that every name matches.
fn says_nothing(part: &Part) -> bool {
    match part {
        Part::Deep => true,
        Part::Wild(tokens) => *tokens == [Token::Many],
        Part::Literal(_) => false,
    }
}

/// Adds what has to be met below `above` for the glob to match; nothing where it then matches by depth
/// alone, or not at all. `None` where that cannot be said by names.
fn mark(glob: &Glob, above: &[&[u8]], marks: &mut BTreeSet<Mark>) -> Option<()> {
    let shared = glob.prefix.len().min(above.len());
    if glob.prefix.iter().zip(above).any(|(part, name)| part != name) {
        return Some(());
    }
    let mut speaking = glob.parts.iter().filter(|part| !says_nothing(part)).peekable();
    if shared < above.len() {
        // What follows may be met above as well as below.
        for part in speaking {
            marks.insert(Mark::of(part)?);
        }
        return Some(());
    }
    // All that follows is met below, and one name without which nothing matches is enough.
    let any = speaking.peek().is_some();
    match speaking.filter_map(Mark::of).next_back() {
        Some(one) => drop(marks.insert(one)),
        None if any => return None,
        None => {
            let below = glob.prefix[shared..].last();
            marks.extend(below.map(|name| Mark::Exactly(name.clone())));
        }
    }
    Some(())
}

/// Most components of a path for [`CompiledRules::permission`]: they lie on the stack.
pub const MAX_LEVELS: usize = 512;

/// Memory that deciding needs, made in advance.
#[derive(Debug)]
pub struct Room {
    found: Vec<(Key, Number)>,
}

/// A policy compiled for deciding many paths. `'static` where it owns its rules.
#[derive(Debug)]
pub struct CompiledRules<'a> {
    workspace: PathBuf,
    /// Rules that name one path, found by the hash of that path.
    literal: Literals,
    /// What each rule that can raise a permission starts from, absolute; the empty path is the root.
    raising: Vec<Vec<u8>>,
    bases: Bases,
    /// Native rules with wildcards, prefixes made absolute.
    globs: Vec<Native>,
    ordered: Vec<Ordered>,
    rules: Rules<'a>,
    guard_git: bool,
    system: bool,
    places: Places,
    names: NameFilter,
    distinct: NameFilter,
}

/// The absolute paths that patterns are relative to, in the form of [`Clean`].
#[derive(Debug)]
struct Bases {
    workspace: Vec<u8>,
    home: Vec<u8>,
}

impl Bases {
    fn of(&self, base: Base) -> &[u8] {
        match base {
            Base::Workspace => &self.workspace,
            Base::Home => &self.home,
            Base::Root => &[],
        }
    }
}

/// A multimap from paths to rules that stores no path where the rule itself spells it: most of what
/// compiling the default policy would cost is copying paths that nobody asks about.
#[derive(Debug, Default)]
struct Literals {
    first: HashMap<u64, u32, BuildHasherDefault<Prehashed>>,
    entries: Vec<Literal>,
}

#[derive(Debug)]
struct Literal {
    rule: Number,
    /// The path, where base and pattern do not spell it (escapes, braces).
    path: Option<Vec<u8>>,
    /// The next entry of the same hash; `u32::MAX` ends the chain.
    next: u32,
}

/// Keys are hashes already.
#[derive(Default)]
pub(crate) struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// FNV-1a, which can go on where it stopped: one pass over a path hashes all its parents.
pub(crate) const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

pub(crate) fn hash_on(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

fn hash_name(name: &[u8]) -> u64 {
    hash_end(hash_on(HASH_START, name))
}

/// FNV's low bits are good, the table also looks at the high ones.
pub(crate) fn hash_end(hash: u64) -> u64 {
    hash ^ hash.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Literals {
    fn add(&mut self, number: Number, rule: &Rule, path: Option<Vec<u8>>, bases: &Bases) {
        let hash = if let Some(path) = &path {
            hash_on(HASH_START, path)
        } else {
            let base = hash_on(HASH_START, bases.of(rule.base));
            match rule.pattern.as_str() {
                "" => base,
                pattern => hash_on(hash_on(base, b"/"), pattern.as_bytes()),
            }
        };
        let index = self.entries.len() as u32;
        let next = self.first.insert(hash_end(hash), index).unwrap_or(u32::MAX);
        self.entries.push(Literal { rule: number, path, next });
    }

    /// Calls `found` for each rule that names `path`; `hash` is that of the path.
    fn each(
        &self,
        hash: u64,
        path: &[u8],
        (bases, rules): (&Bases, &Rules<'_>),
        mut found: impl FnMut(Number, &Rule),
    ) {
        let mut at = self.first.get(&hash_end(hash)).copied().unwrap_or(u32::MAX);
        while let Some(entry) = self.entries.get(at as usize) {
            let rule = rules.get(entry.rule);
            let same = match &entry.path {
                Some(own) => own == path,
                None => spells(bases.of(rule.base), &rule.pattern, path),
            };
            if same {
                found(entry.rule, rule);
            }
            at = entry.next;
        }
    }
}

fn spells(base: &[u8], pattern: &str, path: &[u8]) -> bool {
    match path.strip_prefix(base) {
        Some([]) => pattern.is_empty(),
        Some([b'/', rest @ ..]) => !pattern.is_empty() && rest == pattern.as_bytes(),
        _ => false,
    }
}

/// Whether one of two paths is the other or lies below it.
fn on_one_line(a: &[u8], b: &[u8]) -> bool {
    let shorter = a.len().min(b.len());
    a[..shorter] == b[..shorter]
        && a.get(shorter).or_else(|| b.get(shorter)).is_none_or(|next| *next == b'/')
}

/// Quick answer to "can a rule with wildcards end in this name?".
#[derive(Debug, Default)]
struct NameFilter {
    any: bool,
    /// Hashes of names: two names of one hash only cost a closer look.
    exact: HashSet<u64, BuildHasherDefault<Prehashed>>,
    starts: Vec<Vec<u8>>,
    ends: Vec<Vec<u8>>,
    rest: Vec<Glob>,
}

impl NameFilter {
    /// As [`Self::add`], but a pattern that covers every name of a directory alike adds nothing, and
    /// one without wildcards adds its last name.
    fn add_distinct(&mut self, glob: &Glob) {
        let named = glob.parts.iter().rposition(|p| *p != Part::Deep);
        match named.map(|at| &glob.parts[at]) {
            None => {
                if let Some(name) = glob.prefix.last() {
                    self.exact.insert(hash_name(name));
                }
            }
            Some(Part::Wild(tokens)) if *tokens == [Token::Many] => {}
            Some(part) => {
                self.add(&Glob { prefix: Vec::new(), parts: vec![part.clone()] });
            }
        }
    }

    fn add(&mut self, glob: &Glob) {
        match glob.parts.last() {
            None => {}
            Some(Part::Deep) => self.any = true,
            Some(Part::Literal(name)) => {
                self.exact.insert(hash_name(name));
            }
            Some(Part::Wild(tokens)) => match tokens.as_slice() {
                [Token::Many] => self.any = true,
                [Token::Many, Token::Text(end)] => self.ends.push(end.clone()),
                [Token::Text(start), Token::Many] => self.starts.push(start.clone()),
                _ => self
                    .rest
                    .push(Glob { prefix: Vec::new(), parts: vec![Part::Wild(tokens.clone())] }),
            },
        }
    }

    fn may_match(&self, name: &[u8]) -> bool {
        self.any
            || self.exact.contains(&hash_name(name))
            || self.ends.iter().any(|e| name.ends_with(e))
            || self.starts.iter().any(|s| name.starts_with(s))
            || self.rest.iter().any(|g| g.matches(&[name]))
    }
}

/// A path made absolute and free of `.`, `..` and doubled slashes, without asking the file system.
struct Clean {
    bytes: Vec<u8>,
    /// End of each component in `bytes`.
    ends: Vec<usize>,
}

impl Clean {
    fn new(path: &Path, relative_to: &Path) -> Self {
        let mut clean = Self { bytes: Vec::with_capacity(64), ends: Vec::with_capacity(16) };
        if !path.is_absolute() {
            clean.push_all(relative_to);
        }
        clean.push_all(path);
        clean
    }

    fn push_all(&mut self, path: &Path) {
        for component in path.components() {
            match component {
                Component::Normal(name) => {
                    self.bytes.push(b'/');
                    self.bytes.extend_from_slice(name.as_bytes());
                    self.ends.push(self.bytes.len());
                }
                Component::ParentDir => {
                    self.ends.pop();
                    self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }

    fn names(&self) -> Vec<&[u8]> {
        let mut start = 1;
        self.ends
            .iter()
            .map(|end| {
                let name = &self.bytes[start..*end];
                start = end + 1;
                name
            })
            .collect()
    }

    fn into_path(self) -> PathBuf {
        to_path(&self.bytes)
    }
}

fn to_path(bytes: &[u8]) -> PathBuf {
    if bytes.is_empty() {
        PathBuf::from("/")
    } else {
        PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()))
    }
}

fn join(names: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in names {
        bytes.push(b'/');
        bytes.extend_from_slice(name);
    }
    bytes
}

fn point_bytes(base: &[u8], pattern: &str) -> Vec<u8> {
    let mut path = Vec::with_capacity(base.len() + 1 + pattern.len());
    path.extend_from_slice(base);
    if !pattern.is_empty() {
        path.push(b'/');
        path.extend_from_slice(pattern.as_bytes());
    }
    path
}

fn owned_names(path: &Path) -> Vec<Vec<u8>> {
    Clean::new(path, Path::new("/")).names().into_iter().map(<[u8]>::to_vec).collect()
}

impl<'a> CompiledRules<'a> {
    /// Compiles the rules of `policy` for these places, with what `guard_git` and `system` stand for.
    pub fn new(policy: &'a Policy, places: &Places) -> Self {
        Self::with_extra(policy, places, &[])
    }

    /// As [`Self::new`], with rules that were found on this host (toolchains).
    pub fn with_extra(policy: &'a Policy, places: &Places, extra: &'a [Rule]) -> Self {
        let borrowed = policy.files.rules.iter().chain(extra).collect();
        Self::compile(Vec::new(), borrowed, places, (policy.files.guard_git, policy.files.system))
    }

    /// Compiles rules that the result keeps, so that it borrows nothing.
    pub fn owning(
        rules: Vec<Rule>,
        places: &Places,
        guard_git: bool,
        system: bool,
    ) -> CompiledRules<'static> {
        CompiledRules::compile(rules, Vec::new(), places, (guard_git, system))
    }

    fn compile(
        owned: Vec<Rule>,
        mut borrowed: Vec<&'a Rule>,
        places: &Places,
        (guard_git, system): (bool, bool),
    ) -> Self {
        let listed = owned.len() + borrowed.len();
        if guard_git {
            borrowed.extend(builtin::git_rules());
        }
        if system {
            borrowed.extend(builtin::system_rules());
        }
        // Compiling asks for rules while it adds to the rest.
        let rules = Rules { owned, borrowed, listed };
        let mut compiled = Self {
            workspace: places.workspace.clone(),
            literal: Literals::default(),
            raising: Vec::new(),
            bases: Bases {
                workspace: Clean::new(&places.workspace, Path::new("/")).bytes,
                home: Clean::new(&places.home, Path::new("/")).bytes,
            },
            globs: Vec::new(),
            ordered: Vec::new(),
            rules: Rules { owned: Vec::new(), borrowed: Vec::new(), listed: 0 },
            guard_git,
            system,
            places: places.clone(),
            names: NameFilter::default(),
            distinct: NameFilter::default(),
        };
        compiled.literal.first.reserve(rules.len());
        compiled.literal.entries.reserve(rules.len());
        for number in 0..rules.len() {
            let rule = rules.get(number as Number);
            compiled.add(number as Number, rule, number < listed);
        }
        compiled.rules = rules;
        compiled
    }

    /// Which of the rules that a policy does not list are among these: git guards, system directories.
    pub fn switches(&self) -> (bool, bool) {
        (self.guard_git, self.system)
    }

    /// A pattern that does not compile matches nothing if it grants and everything below its base
    /// if it denies. Fragments are checked before; this is for policies that came another way.
    fn add(&mut self, number: Number, rule: &Rule, walked: bool) {
        match rule.kind {
            Kind::Path if !pattern::has_meta(&rule.pattern) => {
                if rule.effect != Effect::Cap {
                    let path = point_bytes(self.bases.of(rule.base), &rule.pattern);
                    self.raising.push(path);
                }
                self.literal.add(number, rule, None, &self.bases);
                if let Some(name) = rule.pattern.rsplit('/').next() {
                    self.distinct.exact.insert(hash_name(name.as_bytes()));
                }
            }
            Kind::Path => {
                let base = owned_names(self.places.base(rule.base));
                let globs = match pattern::compile(&rule.pattern, Grammar::Native) {
                    Ok(globs) => globs,
                    Err(_) if rule.effect == Effect::Cap => {
                        vec![Glob { prefix: Vec::new(), parts: Vec::new() }]
                    }
                    Err(_) => Vec::new(),
                };
                for mut glob in globs {
                    glob.prefix = base.iter().cloned().chain(glob.prefix).collect();
                    if rule.effect != Effect::Cap {
                        self.raising.push(join(&glob.prefix));
                    }
                    self.distinct.add_distinct(&glob);
                    if glob.is_literal() {
                        self.literal.add(number, rule, Some(join(&glob.prefix)), &self.bases);
                    } else {
                        if walked {
                            self.names.add(&glob);
                        }
                        self.globs.push(Native { rule: number, glob });
                    }
                }
            }
            Kind::Glob | Kind::Directory | Kind::File => {
                let ordered = self.ordered(number, rule);
                for glob in &ordered.globs {
                    self.distinct.add_distinct(glob);
                }
                if rule.kind == Kind::Glob {
                    for glob in &ordered.globs {
                        self.names.add(glob);
                    }
                }
                self.ordered.push(ordered);
                self.raising.push(self.bases.workspace.clone());
            }
        }
    }

    fn ordered(&self, number: Number, rule: &Rule) -> Ordered {
        let clean = pattern::ordered_clean(&rule.pattern);
        let mut globs = if rule.kind == Kind::Glob {
            // A malformed glob never matches, as the protocol has it.
            pattern::compile(&clean, Grammar::Ordered).unwrap_or_default()
        } else {
            let names = clean.split('/').filter(|p| !p.is_empty());
            vec![Glob { prefix: names.map(|p| p.as_bytes().to_vec()).collect(), parts: vec![] }]
        };
        let root =
            clean.is_empty() || (rule.kind == Kind::Glob && (clean == "**" || clean == "**/*"));
        let workspace = owned_names(&self.places.workspace);
        for glob in &mut globs {
            glob.prefix =
                workspace.iter().cloned().chain(std::mem::take(&mut glob.prefix)).collect();
        }
        let specificity = pattern::ordered_specificity(&rule.pattern);
        Ordered { rule: number, kind: rule.kind, globs, specificity, root }
    }

    /// Decides one path. Relative paths are taken from the workspace; `..` is resolved lexically.
    pub fn decide(&self, path: &Path) -> Decision<'_> {
        self.decision(path, |number| self.rules.get(number))
    }

    fn decision<'r>(&self, path: &Path, rule: impl Fn(Number) -> &'r Rule) -> Decision<'r> {
        let clean = Clean::new(path, &self.workspace);
        let outcome = self.fold(&clean.bytes, &clean.names(), &mut Vec::new(), None);
        Decision { permission: outcome.permission, rule: outcome.decided.map(rule) }
    }

    /// Decides one path and tells how.
    pub fn explain(&self, path: &Path) -> Explanation<'_> {
        self.explanation(path, |number| self.rules.get(number))
    }

    fn explanation<'r>(&self, path: &Path, rule: impl Fn(Number) -> &'r Rule) -> Explanation<'r> {
        let clean = Clean::new(path, &self.workspace);
        let mut steps = Vec::new();
        let found = &mut Vec::new();
        let outcome = self.fold(&clean.bytes, &clean.names(), found, Some(&mut steps));
        let step = |(number, before, after)| Step { rule: rule(number), before, after };
        Explanation {
            path: clean.into_path(),
            permission: outcome.permission,
            steps: steps.into_iter().map(step).collect(),
            decided: outcome.decided.map(&rule),
            capped: outcome.capped,
            root_visible: outcome.root_visible,
        }
    }

    /// Every rule that matches a clean absolute path (the root is empty), in the order of
    /// application. Allocates nothing as long as `found` has room.
    fn matching(&self, path: &[u8], names: &[&[u8]], found: &mut Vec<(Key, Number)>) {
        found.clear();
        let depth = names.len();
        let mut hash = HASH_START;
        let mut end = 0;
        for level in 0..=depth {
            let start = end;
            if level > 0 {
                end += 1 + names[level - 1].len();
            }
            hash = hash_on(hash, &path[start..end]);
            let places = (&self.bases, &self.rules);
            self.literal.each(hash, &path[..end], places, |number, rule| {
                found.push((key(rule, level as u32 * 2 + 1), number));
            });
        }
        for native in &self.globs {
            let rule = self.rules.get(native.rule);
            let level = if rule.effect == Effect::Grant {
                native.glob.deepest_named(names)
            } else {
                native.glob.deepest(names)
            };
            if let Some(level) = level {
                found.push((key(rule, level as u32 * 2), native.rule));
            }
        }
        if !self.ordered.is_empty() && self.is_in_workspace(path) {
            let root = path == self.bases.workspace;
            for ordered in &self.ordered {
                let hit = match ordered.kind {
                    Kind::Directory => ordered
                        .globs
                        .iter()
                        .any(|g| (0..=depth).any(|level| g.matches(&names[..level]))),
                    _ => ordered.globs.iter().any(|g| g.matches(names)),
                };
                if hit || (root && ordered.root) {
                    let rule = self.rules.get(ordered.rule);
                    found.push((key(rule, ordered.specificity), ordered.rule));
                }
            }
        }
        // The last tie-breaks decide nothing; they make the rule that is named reproducible.
        found.sort_unstable_by(|(ka, a), (kb, b)| {
            ka.cmp(kb).then_with(|| {
                let tie = |r: &Number| {
                    let r = self.rules.get(*r);
                    (&r.origin.layer, r.origin.line, &r.id, &r.pattern)
                };
                tie(a).cmp(&tie(b))
            })
        });
    }

    fn is_in_workspace(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.bases.workspace.as_slice())
            .is_some_and(|rest| rest.first().is_none_or(|next| *next == b'/'))
    }

    /// Room for [`Self::permission`].
    pub fn room(&self) -> Room {
        Room {
            found: Vec::with_capacity(
                self.literal.entries.len() + self.globs.len() + self.ordered.len(),
            ),
        }
    }

    /// What [`Self::decide`] answers, for a path that the kernel gave: absolute, without `.`, `..` or
    /// doubled slashes. Neither allocates nor locks, so that it may be asked after a fork of a program
    /// with threads. A path of more than [`MAX_LEVELS`] components gets nothing.
    pub fn permission(&self, path: &[u8], room: &mut Room) -> Permission {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let mut names: [&[u8]; MAX_LEVELS] = [&[]; MAX_LEVELS];
        let mut count = 0;
        if let Some(rest) = path.strip_prefix(b"/") {
            for name in rest.split(|b| *b == b'/') {
                let Some(slot) = names.get_mut(count) else { return Permission::None };
                *slot = name;
                count += 1;
            }
        } else if !path.is_empty() {
            return Permission::None;
        }
        self.fold(path, &names[..count], &mut room.found, None).permission
    }

    fn fold(
        &self,
        path: &[u8],
        names: &[&[u8]],
        found: &mut Vec<(Key, Number)>,
        mut steps: Option<&mut Vec<(Number, Permission, Permission)>>,
    ) -> Outcome {
        self.matching(path, names, found);
        let mut value = Permission::None;
        let mut decided = None;
        let mut ceiling = Permission::Write;
        let mut ceiling_by = None;
        let apply = |rule: &Rule, value: Permission| match rule.effect {
            Effect::Grant => value.max(rule.permission),
            Effect::Cap => value.min(rule.permission),
            Effect::Set => rule.permission,
        };
        for &(_, number) in found.iter() {
            let rule = self.rules.get(number);
            let after = apply(rule, value);
            // The one to name: a set decides alone, a cap where it binds, a grant where it raises.
            let speaks = match rule.effect {
                Effect::Set => true,
                Effect::Cap => after == rule.permission,
                Effect::Grant => after != value,
            };
            if speaks {
                decided = Some(number);
            }
            if let Some(steps) = steps.as_deref_mut() {
                steps.push((number, value, after));
            }
            value = after;
            if rule.kind == Kind::Path {
                let lowered = apply(rule, ceiling);
                if lowered < ceiling || (rule.effect == Effect::Cap && lowered == rule.permission) {
                    ceiling_by = Some(number);
                }
                ceiling = lowered;
            }
        }
        let mut outcome =
            Outcome { permission: value, decided, capped: false, root_visible: false };
        if ceiling < value {
            outcome.permission = ceiling;
            outcome.decided = ceiling_by;
            outcome.capped = true;
        }
        if outcome.permission == Permission::None
            && ceiling != Permission::None
            && !self.ordered.is_empty()
            && path == self.bases.workspace
        {
            outcome.permission = Permission::View;
            outcome.root_visible = true;
        }
        outcome
    }

    /// Calls `seen` with every rule of the policy and what was found on the host, and the place that
    /// its pattern begins at.
    pub fn each(&self, mut seen: impl FnMut(&Rule, &Path)) {
        for (_, rule) in self.rules.listed() {
            seen(rule, self.places.base(rule.base));
        }
    }

    /// Every path that a rule names without wildcards: native literals, and ordered rules of the
    /// kinds file and directory. What is enforced by a mechanism of its own (git guards, system
    /// directories) is left out.
    pub fn literal_points(&self) -> Vec<Point<'_>> {
        self.points(false)
    }

    /// As [`Self::literal_points`], without the caps that change nothing because no rule raises
    /// anything above, at or below their path (most secrets, as long as home is not granted). Caps
    /// that people wrote are all there: their path may lead through a link to something raised.
    pub fn binding_points(&self) -> Vec<Point<'_>> {
        self.points(true)
    }

    fn points(&self, binding: bool) -> Vec<Point<'_>> {
        let mut points = Vec::with_capacity(if binding { 64 } else { self.rules.listed });
        for (number, rule) in self.rules.listed() {
            // People may name a place by a link that leads to it; built-in rules do not.
            let binding = binding && rule.id.is_some() && rule.origin.line.is_none();
            let mut add = |path: &[u8], subtree: bool| {
                let idle = binding
                    && rule.effect == Effect::Cap
                    && !self.raising.iter().any(|r| on_one_line(path, r));
                if !idle {
                    points.push(Point { path: to_path(path), rule, subtree });
                }
            };
            if rule.kind == Kind::Path && !pattern::has_meta(&rule.pattern) {
                let base = self.bases.of(rule.base);
                // Most caps of home are idle; tell so before spelling their paths.
                if !(binding && rule.effect == Effect::Cap && !self.raised_near(base)) {
                    add(&point_bytes(base, &rule.pattern), true);
                }
            } else if rule.kind == Kind::Path {
                let base = self.bases.of(rule.base);
                for glob in pattern::compile(&rule.pattern, Grammar::Native).unwrap_or_default() {
                    if glob.is_literal() {
                        add(&[base, &join(&glob.prefix)].concat(), true);
                    }
                }
            } else if rule.kind != Kind::Glob {
                for glob in &self.ordered(number, rule).globs {
                    add(&join(&glob.prefix), rule.kind == Kind::Directory);
                }
            }
        }
        points
    }

    fn raised_near(&self, base: &[u8]) -> bool {
        self.raising.iter().any(|r| on_one_line(base, r))
    }

    /// Ordered globs that say the same as a subtree rule (`**/*`, `/dir/**`) or name one path, so
    /// that they need no walk.
    pub fn subtree_only_globs(&self) -> Vec<Point<'_>> {
        let mut points = Vec::new();
        for ordered in self.ordered.iter().filter(|o| o.kind == Kind::Glob) {
            if let Some((path, subtree)) = subtree_of(ordered) {
                let rule = self.rules.get(ordered.rule);
                points.push(Point { path: to_path(&join(path)), rule, subtree });
            }
        }
        points
    }

    /// Rules whose paths are known only after a walk of `base`.
    pub fn glob_rules(&self) -> Vec<GlobRule<'_>> {
        let mut rules = Vec::new();
        for (number, rule) in self.rules.listed() {
            let globs: Vec<Glob> = match rule.kind {
                Kind::Path => {
                    self.globs.iter().filter(|n| n.rule == number).map(|n| n.glob.clone()).collect()
                }
                Kind::Glob => self
                    .ordered
                    .iter()
                    .filter(|o| o.rule == number && subtree_of(o).is_none())
                    .flat_map(|o| o.globs.clone())
                    .collect(),
                Kind::Directory | Kind::File => continue,
            };
            let Some(first) = globs.first() else { continue };
            // The common part of the literal prefixes.
            let shared = globs.iter().skip(1).fold(first.prefix.len(), |length, g| {
                let same = first.prefix.iter().zip(&g.prefix).take_while(|(a, b)| a == b).count();
                length.min(same)
            });
            let base = to_path(&join(&first.prefix[..shared]));
            rules.push(GlobRule { rule, base, globs });
        }
        rules
    }

    /// Names that single a path below `root` out: one that has none of them is decided as any other
    /// of as many names is, such as [`ANY_NAME`] so many times. `None` where rules cannot be put so.
    pub fn marks(&self, root: &Path) -> Option<BTreeSet<Mark>> {
        let root = Clean::new(root, Path::new("/"));
        let above = root.names();
        let mut marks = BTreeSet::new();
        let mut place = |path: &[u8]| {
            let below = path.strip_prefix(&*root.bytes).and_then(|rest| rest.strip_prefix(b"/"));
            let last = below.and_then(|rest| rest.rsplit(|b| *b == b'/').next());
            marks.extend(last.map(|name| Mark::Exactly(name.to_vec())));
        };
        for entry in &self.literal.entries {
            let rule = self.rules.get(entry.rule);
            let base = self.bases.of(rule.base);
            match &entry.path {
                Some(path) => place(path),
                None if on_one_line(base, &root.bytes) => place(&point_bytes(base, &rule.pattern)),
                None => {}
            }
        }
        if !self.ordered.is_empty() {
            place(&self.bases.workspace);
        }
        let ordered = self.ordered.iter().flat_map(|ordered| &ordered.globs);
        for glob in self.globs.iter().map(|native| &native.glob).chain(ordered) {
            mark(glob, &above, &mut marks)?;
        }
        (!marks.iter().any(|mark| mark.is_on(ANY_NAME.as_bytes()))).then_some(marks)
    }

    /// Whether a path that ends in `name` can be decided in another way than other names of the same
    /// directory. Those for which this says no are decided alike.
    pub fn name_may_differ(&self, name: &OsStr) -> bool {
        self.distinct.may_match(name.as_bytes())
    }

    /// Whether a path that ends in `name` can match a rule with wildcards at all; a walk asks this
    /// before it asks anything dearer. (Paths below a match are covered by the match.)
    pub fn name_may_matter(&self, name: &OsStr) -> bool {
        self.names.may_match(name.as_bytes())
    }
}

struct Outcome {
    permission: Permission,
    decided: Option<Number>,
    capped: bool,
    root_visible: bool,
}

/// The one path that an ordered glob amounts to, and whether with all below it.
fn subtree_of(ordered: &Ordered) -> Option<(&[Vec<u8>], bool)> {
    let [glob] = ordered.globs.as_slice() else { return None };
    match glob.parts.as_slice() {
        [] => Some((&glob.prefix, false)),
        [Part::Deep] => Some((&glob.prefix, true)),
        // Only at the root does `**/*` cover the directory itself.
        [Part::Deep, Part::Wild(tokens)] if ordered.root && *tokens == [Token::Many] => {
            Some((&glob.prefix, true))
        }
        _ => None,
    }
}

impl Policy {
    /// Decides one path. For many paths, compile once with [`CompiledRules::new`].
    pub fn decide_path(&self, places: &Places, path: &Path) -> Decision<'_> {
        let compiled = CompiledRules::new(self, places);
        compiled.decision(path, |number| compiled.rules.lent(number))
    }

    /// Decides one path and tells how.
    pub fn explain_path(&self, places: &Places, path: &Path) -> Explanation<'_> {
        let compiled = CompiledRules::new(self, places);
        compiled.explanation(path, |number| compiled.rules.lent(number))
    }
}
