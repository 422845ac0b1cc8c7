//! What `docs/policy.md` says of patterns and precedence, written a second time: as plainly as
//! possible, slowly, and without a line of the policy crate.
//!
//! A pattern is parsed into items, its braces are multiplied out, and each alternative is tried by
//! backtracking over the characters of the path. A rule set is decided by collecting what matches,
//! sorting by the order that the documentation gives, and applying one after the other.

use std::path::{Component, Path};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    None,
    View,
    Read,
    Write,
}

use Permission::{Read, View, Write};

impl Permission {
    pub const ALL: [Self; 4] = [Self::None, View, Read, Write];

    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            View => "view",
            Read => "read",
            Write => "write",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ordered rules (the protocol's): exactly this permission.
    Glob,
    Directory,
    File,
    /// At least this permission.
    Grant,
    /// At most this permission.
    Cap,
}

impl Kind {
    pub fn is_ordered(self) -> bool {
        matches!(self, Self::Glob | Self::Directory | Self::File)
    }
}

/// A rule as somebody wrote it.
#[derive(Clone, Debug)]
pub struct Rule {
    pub pattern: String,
    pub kind: Kind,
    pub permission: Permission,
    pub priority: i32,
}

/// The pattern is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// One character of a path; a byte that is no UTF-8 is one of its own, which no pattern names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Char(char),
    Byte(u8),
}

pub fn units(bytes: &[u8]) -> Vec<Unit> {
    let mut out = Vec::new();
    for chunk in bytes.utf8_chunks() {
        out.extend(chunk.valid().chars().map(Unit::Char));
        out.extend(chunk.invalid().iter().map(|b| Unit::Byte(*b)));
    }
    out
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Char(char),
    /// `?`
    One,
    /// `*`
    Many,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// `!(a|b)`
    Not(Vec<String>),
    Slash,
    /// `{a,b}`
    Either(Vec<Vec<Item>>),
}

struct Parser {
    text: Vec<char>,
    at: usize,
    native: bool,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += 1;
        c
    }

    /// Up to the end, or to `,` or `}` of the brace that we are in.
    fn sequence(&mut self, in_brace: bool) -> Result<Vec<Item>, Malformed> {
        let mut items = Vec::new();
        while let Some(c) = self.peek() {
            if in_brace && (c == ',' || c == '}') {
                break;
            }
            self.at += 1;
            items.push(match c {
                '/' => Item::Slash,
                '*' => Item::Many,
                '?' => Item::One,
                // Slashes separate, whatever stands before them.
                '\\' => Item::Char(
                    self.next().filter(|c| *c != '/').ok_or(Malformed("lone backslash"))?,
                ),
                '[' => self.class()?,
                '{' if self.native => self.either()?,
                '!' if self.native && self.peek() == Some('(') => {
                    self.at += 1;
                    self.not()?
                }
                c => Item::Char(c),
            });
        }
        Ok(items)
    }

    fn either(&mut self) -> Result<Item, Malformed> {
        let mut all = Vec::new();
        loop {
            all.push(self.sequence(true)?);
            match self.next() {
                Some(',') => {}
                Some('}') => return Ok(Item::Either(all)),
                _ => return Err(Malformed("brace not closed")),
            }
        }
    }

    fn class(&mut self) -> Result<Item, Malformed> {
        const OPEN: Malformed = Malformed("class not closed");
        let negated = self.peek() == Some('^') || (self.native && self.peek() == Some('!'));
        self.at += usize::from(negated);
        let mut ranges = Vec::new();
        let one = |parser: &mut Self| match parser.next() {
            None | Some('/') => Err(OPEN),
            Some('\\') => parser.next().filter(|c| *c != '/').ok_or(OPEN),
            Some(c) => Ok(c),
        };
        loop {
            if self.peek() == Some(']') && !ranges.is_empty() {
                self.at += 1;
                return Ok(Item::Class { negated, ranges });
            }
            let low = one(self)?;
            let range = self.peek() == Some('-') && self.text.get(self.at + 1) != Some(&']');
            if range {
                self.at += 1;
                let high = one(self)?;
                if low > high {
                    return Err(Malformed("range backwards"));
                }
                ranges.push((low, high));
            } else {
                ranges.push((low, low));
            }
        }
    }

    fn not(&mut self) -> Result<Item, Malformed> {
        let mut names = vec![String::new()];
        loop {
            let last = names.len() - 1;
            match self.next() {
                None | Some('/') => return Err(Malformed("`!(` not closed")),
                Some(')') => return Ok(Item::Not(names)),
                Some('|') => names.push(String::new()),
                Some('*' | '?' | '[') => return Err(Malformed("wildcard in `!(`")),
                Some('\\') => {
                    let c = self.next().ok_or(Malformed("`!(` not closed"))?;
                    names[last].push(c);
                }
                Some(c) => names[last].push(c),
            }
        }
    }
}

/// Multiplies braces out.
fn alternatives(items: &[Item]) -> Vec<Vec<Item>> {
    let Some((first, rest)) = items.split_first() else { return vec![Vec::new()] };
    let heads = match first {
        Item::Either(all) => all.iter().flat_map(|one| alternatives(one)).collect(),
        other => vec![vec![other.clone()]],
    };
    let tails = alternatives(rest);
    let mut out = Vec::new();
    for head in &heads {
        for tail in &tails {
            out.push([head.as_slice(), tail.as_slice()].concat());
        }
    }
    out
}

/// One component of an alternative; the empty list is `**` by itself.
type Part = Vec<Item>;

fn is_deep(part: &Part) -> bool {
    *part == [Item::Many, Item::Many]
}

fn is_literal(part: &Part) -> bool {
    part.iter().all(|item| matches!(item, Item::Char(_)))
}

fn has_double_star(part: &Part) -> bool {
    part.windows(2).any(|two| two == [Item::Many, Item::Many])
}

fn parts(items: &[Item]) -> Vec<Part> {
    items.split(|i| *i == Item::Slash).filter(|p| !p.is_empty()).map(<[Item]>::to_vec).collect()
}

/// An alternative of a pattern, absolute.
#[derive(Clone, Debug)]
struct Whole {
    parts: Vec<Part>,
    /// `**` may be glued to other text and then crosses slashes.
    native: bool,
}

/// Where relative patterns begin.
#[derive(Clone, Debug)]
pub struct Places {
    pub workspace: &'static str,
    pub home: &'static str,
}

fn literal_parts(path: &str) -> Vec<Part> {
    let names = path.split('/').filter(|n| !n.is_empty());
    names.map(|n| n.chars().map(Item::Char).collect()).collect()
}

fn parse_native(text: &str, places: &Places) -> Result<Vec<Whole>, Malformed> {
    if text.is_empty() || text.contains('\0') || text.len() > 4096 {
        return Err(Malformed("empty, nul or too long"));
    }
    let (base, rest) = match text.as_bytes()[0] {
        b'/' => ("", &text[1..]),
        b'~' if text == "~" => (places.home, ""),
        b'~' if text.starts_with("~/") => (places.home, &text[2..]),
        b'!' if !text.starts_with("!(") => return Err(Malformed("negation")),
        b'~' | b'$' => return Err(Malformed("another home, or a variable")),
        _ => (places.workspace, text),
    };
    let mut names: Vec<&str> = Vec::new();
    for name in rest.split('/') {
        match name {
            "" | "." => {}
            ".." => match names.pop() {
                None => return Err(Malformed("climbs out")),
                Some(popped) if popped.contains(['*', '?', '[', '{', '\\', '!']) => {
                    return Err(Malformed("`..` after a wildcard"));
                }
                Some(_) => {}
            },
            name => names.push(name),
        }
    }
    let text: Vec<char> = names.join("/").chars().collect();
    let items = Parser { text, at: 0, native: true }.sequence(false)?;
    let mut out = Vec::new();
    for alternative in alternatives(&items) {
        let mut below = parts(&alternative);
        if below.iter().any(|p| has_double_star(p) && !is_deep(p)) {
            return Err(Malformed("`**` glued to text"));
        }
        // A pattern covers what lies below it, so `x/**` and `x/**/*` are `x`.
        loop {
            match below.as_slice() {
                [.., deep] if is_deep(deep) => below.truncate(below.len() - 1),
                [.., deep, many] if is_deep(deep) && *many == [Item::Many] => {
                    below.truncate(below.len() - 2);
                }
                _ => break,
            }
        }
        let parts = [literal_parts(base), below].concat();
        out.push(Whole { parts, native: true });
    }
    Ok(out)
}

fn parse_ordered(text: &str, kind: Kind, places: &Places) -> Result<Vec<Whole>, Malformed> {
    if text.is_empty() || text.contains('\0') || text.len() > 4096 {
        return Err(Malformed("empty, nul or too long"));
    }
    if text.split('/').any(|name| name == "..") {
        return Err(Malformed("`..` in an ordered rule"));
    }
    let names: Vec<&str> = text.split('/').filter(|n| !n.is_empty() && *n != ".").collect();
    let below = if kind == Kind::Glob {
        let text = names.join("/").chars().collect();
        parts(&Parser { text, at: 0, native: false }.sequence(false)?)
    } else {
        // Files and directories are names, whatever is in them.
        names.iter().map(|n| n.chars().map(Item::Char).collect()).collect()
    };
    let parts = [literal_parts(places.workspace), below].concat();
    Ok(vec![Whole { parts, native: false }])
}

/// Whether `items` match all of `text`. `deep`: two stars cross slashes.
fn text_matches(items: &[Item], text: &[Unit], deep: bool) -> bool {
    const SLASH: Unit = Unit::Char('/');
    let Some((first, rest)) = items.split_first() else { return text.is_empty() };
    match first {
        Item::Many if deep && rest.first() == Some(&Item::Many) => {
            (0..=text.len()).any(|n| text_matches(&rest[1..], &text[n..], deep))
        }
        Item::Many => {
            let most = text.iter().position(|u| *u == SLASH).unwrap_or(text.len());
            (0..=most).any(|n| text_matches(rest, &text[n..], deep))
        }
        Item::Not(names) => {
            let most = text.iter().position(|u| *u == SLASH).unwrap_or(text.len());
            (1..=most).any(|n| {
                !names.iter().any(|name| units(name.as_bytes()) == text[..n])
                    && text_matches(rest, &text[n..], deep)
            })
        }
        Item::Char(c) => {
            text.first() == Some(&Unit::Char(*c)) && text_matches(rest, &text[1..], deep)
        }
        Item::One => {
            text.first().is_some_and(|u| *u != SLASH) && text_matches(rest, &text[1..], deep)
        }
        Item::Class { negated, ranges } => {
            let Some(unit) = text.first().filter(|u| **u != SLASH) else { return false };
            let named = match unit {
                Unit::Char(c) => ranges.iter().any(|(low, high)| low <= c && c <= high),
                Unit::Byte(_) => false,
            };
            named != *negated && text_matches(rest, &text[1..], deep)
        }
        // Both are gone: `parts` splits at slashes, `alternatives` multiplies braces out.
        Item::Slash | Item::Either(_) => false,
    }
}

/// Whether `parts` match exactly `names`.
fn whole_matches(parts: &[Part], names: &[Vec<Unit>], native: bool) -> bool {
    let Some((first, rest)) = parts.split_first() else { return names.is_empty() };
    if is_deep(first) {
        return (0..=names.len()).any(|n| whole_matches(rest, &names[n..], native));
    }
    if native || !has_double_star(first) {
        return !names.is_empty()
            && text_matches(first, &names[0], false)
            && whole_matches(rest, &names[1..], native);
    }
    // Glued: this component may cover several names.
    (1..=names.len()).any(|n| {
        text_matches(first, &names[..n].join(&Unit::Char('/')), true)
            && whole_matches(rest, &names[n..], native)
    })
}

/// The protocol's score of a pattern as written.
fn score(pattern: &str) -> u32 {
    let mut score = 0;
    if pattern.starts_with('/') {
        score += 100;
    }
    if !pattern.starts_with("**") {
        score += 50;
    }
    score += pattern.find("**").unwrap_or(0) as u32;
    if !pattern.contains('*') {
        score += 200;
    }
    score
}

/// Where a rule stands in the order of application: priority, kind, specificity, effect.
type Key = (i32, u8, u32, u8, u8);

/// A rule that was understood.
#[derive(Clone, Debug)]
struct Understood {
    rule: Rule,
    wholes: Vec<Whole>,
    /// An ordered rule that covers the workspace itself.
    root: bool,
}

/// A rule set that was understood.
#[derive(Clone, Debug)]
pub struct Law {
    rules: Vec<Understood>,
    workspace: Vec<Vec<Unit>>,
}

/// An absolute path without `.` and `..`, as names; relative ones begin in the workspace.
fn names(path: &Path, workspace: &[Vec<Unit>]) -> Vec<Vec<Unit>> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = if path.is_absolute() { Vec::new() } else { workspace.to_vec() };
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(units(name.as_bytes())),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

impl Law {
    /// Understands `rules`, or says which one is malformed.
    pub fn new(rules: &[Rule], places: &Places) -> Result<Self, (usize, Malformed)> {
        let mut understood = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let wholes = if rule.kind.is_ordered() {
                parse_ordered(&rule.pattern, rule.kind, places)
            } else {
                parse_native(&rule.pattern, places)
            };
            let names: Vec<&str> =
                rule.pattern.split('/').filter(|n| !n.is_empty() && *n != ".").collect();
            understood.push(Understood {
                rule: rule.clone(),
                wholes: wholes.map_err(|e| (index, e))?,
                root: rule.kind.is_ordered()
                    && (names.is_empty()
                        || (rule.kind == Kind::Glob && matches!(names[..], ["**"] | ["**", "*"]))),
            });
        }
        Ok(Self { rules: understood, workspace: names(Path::new(places.workspace), &[]) })
    }

    /// The keys with which a rule matches; a rule with braces counts once for each alternative.
    fn keys(&self, rule: &Understood, path: &[Vec<Unit>]) -> Vec<Key> {
        let Rule { kind, permission, priority, .. } = rule.rule;
        let rising = permission as u8;
        if kind.is_ordered() {
            if !path.starts_with(&self.workspace) {
                return Vec::new();
            }
            let hit = rule.wholes.iter().any(|whole| match kind {
                Kind::Directory => {
                    (0..=path.len()).any(|n| whole_matches(&whole.parts, &path[..n], false))
                }
                _ => whole_matches(&whole.parts, path, false),
            }) || (rule.root && path.len() == self.workspace.len());
            let order = match kind {
                Kind::Glob => 0,
                Kind::Directory => 1,
                _ => 2,
            };
            // At an equal key the lower permission has the last word.
            return hit
                .then_some((priority, order, score(&rule.rule.pattern), 1, 3 - rising))
                .into_iter()
                .collect();
        }
        let mut keys = Vec::new();
        for whole in &rule.wholes {
            let deepest = |parts: &[Part]| {
                (0..=path.len()).rev().find(|n| whole_matches(parts, &path[..*n], whole.native))
            };
            let Some(mut depth) = deepest(&whole.parts) else { continue };
            let literal = whole.parts.iter().all(is_literal);
            if kind == Kind::Grant && !literal {
                // The wildcards at its end do not count.
                let named = whole.parts.iter().rposition(is_literal).map_or(0, |i| i + 1);
                depth = deepest(&whole.parts[..named]).unwrap_or(0);
            }
            let specificity = depth as u32 * 2 + u32::from(literal);
            keys.push(if kind == Kind::Grant {
                (priority, 3, specificity, 0, rising)
            } else {
                (priority, 3, specificity, 2, 3 - rising)
            });
        }
        keys
    }

    pub fn decide(&self, path: &Path) -> Permission {
        let path = names(path, &self.workspace);
        let mut found: Vec<(Key, &Understood)> = Vec::new();
        for rule in &self.rules {
            found.extend(self.keys(rule, &path).into_iter().map(|key| (key, rule)));
        }
        found.sort_by_key(|(key, _)| *key);
        let apply = |value: Permission, rule: &Rule| match rule.kind {
            Kind::Grant => value.max(rule.permission),
            Kind::Cap => value.min(rule.permission),
            _ => rule.permission,
        };
        let mut value = Permission::None;
        let mut ceiling = Write;
        for (_, rule) in &found {
            value = apply(value, &rule.rule);
            if !rule.rule.kind.is_ordered() {
                ceiling = apply(ceiling, &rule.rule);
            }
        }
        let decided = value.min(ceiling);
        let ordered = self.rules.iter().any(|r| r.rule.kind.is_ordered());
        if decided == Permission::None
            && ceiling != Permission::None
            && ordered
            && path == self.workspace
        {
            return View;
        }
        decided
    }

    /// Whether some rule keeps what it names from being changed.
    pub fn seals(&self) -> bool {
        self.rules.iter().any(|r| r.rule.kind == Kind::Cap && r.rule.permission == Read)
    }

    /// Whether a native pattern with wildcards, or an ordered glob, matches exactly this path.
    pub fn wildcard_matches_exactly(&self, path: &Path) -> bool {
        let path = names(path, &self.workspace);
        self.rules.iter().any(|r| {
            !matches!(r.rule.kind, Kind::Directory | Kind::File)
                && r.wholes.iter().any(|w| {
                    !w.parts.iter().all(is_literal) && whole_matches(&w.parts, &path, w.native)
                })
        })
    }
}

const fn rule(pattern: &'static str, permission: Permission, priority: i32) -> PresetRule {
    PresetRule { pattern, permission, priority }
}

/// A rule of the protocol's presets; each is a glob.
#[derive(Debug)]
pub struct PresetRule {
    pub pattern: &'static str,
    pub permission: Permission,
    pub priority: i32,
}

/// The protocol's presets, as its clients have them.
pub const PRESETS: [(&str, &[PresetRule]); 5] = [
    (
        "agent-safe",
        &[
            rule("**/*", Read, 0),
            rule("/output/**", Write, 10),
            rule("/tmp/**", Write, 10),
            rule("**/.env*", Permission::None, 100),
            rule("**/secrets/**", Permission::None, 100),
            rule("**/*.key", Permission::None, 100),
            rule("**/*.pem", Permission::None, 100),
            rule("**/credentials*", Permission::None, 100),
            rule("**/.git/**", Permission::None, 50),
        ],
    ),
    (
        "development",
        &[
            rule("**/*", Write, 0),
            rule("**/.env*", Permission::None, 100),
            rule("**/secrets/**", Permission::None, 100),
            rule("**/*.key", Permission::None, 100),
            rule("**/*.pem", Permission::None, 100),
        ],
    ),
    ("read-only", &[rule("**/*", Read, 0)]),
    ("full-access", &[rule("**/*", Write, 0)]),
    ("view-only", &[rule("**/*", View, 0)]),
];
