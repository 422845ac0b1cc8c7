//! Path patterns: their grammar, and a matcher on bytes (names need not be UTF-8) that needs no
//! regular expressions, so that compiling a policy costs microseconds.
//!
//! Two grammars share one engine. **Native** patterns are relative to the workspace, to home (`~/`)
//! or absolute, know `*`, `?`, `[a-z]`, `[!a]`, `{a,b}`, `!(a|b)` (any text but these), `\` and `**`
//! as a whole component, and cover all that lies below a match. **Ordered** patterns are those of
//! the AgentFense protocol: always relative to the workspace, no braces, `**` anywhere, no
//! inheritance.

use crate::Base;

/// Longest pattern, bytes: the kernel's `PATH_MAX`.
pub const MAX_PATTERN_BYTES: usize = 4096;
/// Most alternatives that the braces of one pattern may unfold to.
const MAX_ALTERNATIVES: usize = 256;
/// Most components after the first wildcard: the matcher's state is one machine word.
const MAX_WILD_PARTS: usize = 60;

/// One alternative of a pattern, split into components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob {
    /// Leading components without wildcards.
    pub prefix: Vec<Vec<u8>>,
    /// The rest, starting with the first wildcard.
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(Vec<u8>),
    Wild(Vec<Token>),
    /// `**`: any number of components, none included.
    Deep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Text(Vec<u8>),
    /// `?`
    One,
    /// `*`
    Many,
    Class {
        negated: bool,
        ranges: Vec<(u32, u32)>,
    },
    /// `!(a|b)`
    Not(Vec<Vec<u8>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grammar {
    Native,
    Ordered,
}

/// Splits a native pattern as written into its base and the cleaned pattern below that base.
pub fn parse_native(text: &str) -> Result<(Base, String), String> {
    check_text(text)?;
    let (base, rest) = if let Some(rest) = text.strip_prefix('/') {
        (Base::Root, rest)
    } else if text == "~" {
        (Base::Home, "")
    } else if let Some(rest) = text.strip_prefix("~/") {
        (Base::Home, rest)
    } else if text.starts_with('~') {
        return Err(format!(
            "\"{text}\": another user's home is not looked up; write the absolute path, or \
             \"./{text}\" for a file of that name"
        ));
    } else if text.starts_with('$') {
        return Err(format!(
            "\"{text}\": variables are not expanded; write \"~/...\" for home, an absolute path, or \
             \"./{text}\" for a file of that name"
        ));
    } else if text.starts_with('!') && !text.starts_with("!(") {
        return Err(format!(
            "\"{text}\": `!` takes nothing back; list the exception in `read` or `write`, where the \
             more specific rule wins, or write \"./{text}\" for a file of that name"
        ));
    } else {
        (Base::Workspace, text)
    };
    if is_plain(rest) {
        return Ok((base, rest.to_owned()));
    }
    let cleaned = clean(base, text, rest)?;
    let cleaned = strip_subtree(&cleaned);
    compile(&cleaned, Grammar::Native)?;
    Ok((base, cleaned))
}

/// A clean path without wildcards, as most patterns are: nothing to clean, nothing to compile.
fn is_plain(rest: &str) -> bool {
    let mut name = 0usize;
    let mut dots = 0usize;
    for byte in rest.bytes() {
        match byte {
            b'*' | b'?' | b'[' | b'{' | b'\\' | b'!' => return false,
            b'/' => {
                if name == 0 || (name == dots && dots <= 2) {
                    return false;
                }
                (name, dots) = (0, 0);
            }
            _ => {
                name += 1;
                dots += usize::from(byte == b'.');
            }
        }
    }
    name > 0 && !(name == dots && dots <= 2)
}

/// Checks an ordered (AgentFense) pattern; it is kept as written, since its specificity is computed
/// on that. Rules for files and directories are names, whatever characters are in them.
pub fn check_ordered(text: &str, is_glob: bool) -> Result<(), String> {
    check_text(text)?;
    if text.split('/').any(|part| part == "..") {
        return Err(format!("\"{text}\": `..` is not used in ordered rules"));
    }
    if is_glob { compile(&ordered_clean(text), Grammar::Ordered).map(drop) } else { Ok(()) }
}

/// A path as a pattern that matches only itself.
pub fn literally(path: &str) -> String {
    if !has_meta(path) {
        return path.to_owned();
    }
    let special = |c: char| matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\' | '!' | ',');
    path.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty pattern; write \".\" for the workspace itself".to_owned());
    }
    if text.contains('\0') {
        return Err("pattern contains a nul byte".to_owned());
    }
    if text.len() > MAX_PATTERN_BYTES {
        return Err(format!(
            "pattern of {} bytes is too long, the limit is {MAX_PATTERN_BYTES}",
            text.len()
        ));
    }
    Ok(())
}

/// Removes `.`, empty components and `..`, refusing what climbs out of the base.
fn clean(base: Base, whole: &str, rest: &str) -> Result<String, String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.pop() {
                Some(popped) if has_meta(popped) => {
                    return Err(format!("\"{whole}\": `..` after a wildcard has no one meaning"));
                }
                Some(_) => {}
                None => {
                    return Err(match base {
                        Base::Workspace => format!(
                            "\"{whole}\" climbs out of the workspace; write an absolute path"
                        ),
                        Base::Home => {
                            format!("\"{whole}\" climbs out of home; write an absolute path")
                        }
                        Base::Root => format!("\"{whole}\" climbs out above the root"),
                    });
                }
            },
            _ => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// A native pattern covers what lies below it, so `x/**` and `x/**/*` say the same as `x`.
fn strip_subtree(cleaned: &str) -> String {
    let mut rest = cleaned;
    loop {
        let shorter = match rest {
            "**" | "**/*" => "",
            _ => match rest.strip_suffix("/**").or_else(|| rest.strip_suffix("/**/*")) {
                Some(shorter) => shorter,
                None => return rest.to_owned(),
            },
        };
        rest = shorter;
    }
}

/// An ordered pattern for matching: no leading slash, no `.`, no doubled or trailing slash.
pub(crate) fn ordered_clean(text: &str) -> String {
    let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    parts.join("/")
}

/// Specificity of an ordered pattern, computed on the pattern as written.
pub fn ordered_specificity(pattern: &str) -> u32 {
    let mut score = 0;
    if pattern.starts_with('/') {
        score += 100;
    }
    if !pattern.starts_with("**") {
        score += 50;
    }
    if let Some(index) = pattern.find("**") {
        score += index as u32;
    }
    if !pattern.contains('*') {
        score += 200;
    }
    score
}

/// Whether the text holds a character that the native grammar reads as more than itself.
pub fn has_meta(text: &str) -> bool {
    text.contains(['*', '?', '[', '{', '\\']) || text.contains("!(")
}

/// Compiles a cleaned pattern into its alternatives.
pub(crate) fn compile(cleaned: &str, grammar: Grammar) -> Result<Vec<Glob>, String> {
    if grammar == Grammar::Native && !has_meta(cleaned) {
        let prefix = cleaned.split('/').filter(|p| !p.is_empty()).map(|p| p.as_bytes().to_vec());
        return Ok(vec![Glob { prefix: prefix.collect(), parts: Vec::new() }]);
    }
    let texts = match grammar {
        Grammar::Native => unfold_braces(cleaned)?,
        Grammar::Ordered => vec![cleaned.to_owned()],
    };
    let mut globs = Vec::new();
    for text in &texts {
        let mut alternatives: Vec<Vec<Part>> = vec![Vec::new()];
        for component in split_components(text) {
            let choices = component_parts(component, grammar)
                .map_err(|message| format!("\"{cleaned}\": {message}"))?;
            if alternatives.len() * choices.len() > MAX_ALTERNATIVES {
                return Err(format!(
                    "\"{cleaned}\" unfolds to more than {MAX_ALTERNATIVES} patterns"
                ));
            }
            alternatives = alternatives
                .iter()
                .flat_map(|before| {
                    choices.iter().map(move |choice| {
                        before.iter().chain(choice).cloned().collect::<Vec<Part>>()
                    })
                })
                .collect();
        }
        for parts in alternatives {
            globs.push(finish(cleaned, parts, grammar)?);
        }
    }
    Ok(globs)
}

fn finish(cleaned: &str, mut parts: Vec<Part>, grammar: Grammar) -> Result<Glob, String> {
    parts.dedup_by(|a, b| *a == Part::Deep && *b == Part::Deep);
    if grammar == Grammar::Native {
        // Braces can end an alternative in `/**`.
        loop {
            let ends = match parts.as_slice() {
                [.., Part::Deep] => 1,
                [.., Part::Deep, Part::Wild(tokens)] if *tokens == [Token::Many] => 2,
                _ => break,
            };
            parts.truncate(parts.len() - ends);
        }
    }
    let first_wild =
        parts.iter().position(|p| !matches!(p, Part::Literal(_))).unwrap_or(parts.len());
    let rest = parts.split_off(first_wild);
    if rest.len() > MAX_WILD_PARTS {
        return Err(format!(
            "\"{cleaned}\" has more than {MAX_WILD_PARTS} components after its first wildcard"
        ));
    }
    let prefix = parts
        .into_iter()
        .map(|p| match p {
            Part::Literal(name) => name,
            Part::Wild(_) | Part::Deep => Vec::new(),
        })
        .collect();
    Ok(Glob { prefix, parts: rest })
}

/// Components; a `/` separates even inside `[...]`, as in every shell.
fn split_components(text: &str) -> Vec<&str> {
    text.split('/').filter(|part| !part.is_empty()).collect()
}

/// What one component stands for; more than one choice where `**` is glued to other text.
fn component_parts(component: &str, grammar: Grammar) -> Result<Vec<Vec<Part>>, String> {
    if component == "**" {
        return Ok(vec![vec![Part::Deep]]);
    }
    if !has_double_star(component, grammar) {
        return Ok(vec![vec![tokens_part(tokens(component, grammar)?)]]);
    }
    if grammar == Grammar::Native {
        return Err("`**` must stand alone between slashes".to_owned());
    }
    // Glued: `a**b` is `a*b` or `a*/**/*b`.
    let mut choices = vec![Vec::new()];
    for (index, text) in component.split("**").enumerate() {
        let mut next = Vec::new();
        for choice in &choices {
            if index == 0 {
                let mut tokens = tokens(text, grammar)?;
                tokens.push(Token::Many);
                next.push(vec![PartTokens::Name(tokens)]);
                continue;
            }
            let piece = tokens(text, grammar)?;
            // Within the same component.
            let mut same: Vec<PartTokens> = choice.clone();
            if let Some(PartTokens::Name(last)) = same.last_mut() {
                last.extend(piece.iter().cloned());
            }
            next.push(same);
            // Across components.
            let mut across: Vec<PartTokens> = choice.clone();
            across.push(PartTokens::Deep);
            let mut name = vec![Token::Many];
            name.extend(piece);
            across.push(PartTokens::Name(name));
            next.push(across);
        }
        choices = next;
        if choices.len() > MAX_ALTERNATIVES {
            return Err(format!("unfolds to more than {MAX_ALTERNATIVES} patterns"));
        }
    }
    Ok(choices
        .into_iter()
        .map(|parts| {
            parts
                .into_iter()
                .map(|p| match p {
                    PartTokens::Name(tokens) => tokens_part(tokens),
                    PartTokens::Deep => Part::Deep,
                })
                .collect()
        })
        .collect())
}

/// Whether two stars stand side by side, the first not escaped. Those in a class are two characters of it.
fn has_double_star(component: &str, grammar: Grammar) -> bool {
    let mut chars = component.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // What comes after a backslash is taken as it is.
            '\\' => {
                chars.next();
            }
            '*' if chars.peek() == Some(&'*') => return true,
            '[' => {
                chars.next_if(|c| *c == '^' || (*c == '!' && grammar == Grammar::Native));
                // A bracket that comes first does not close it.
                let mut first = true;
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => {
                            chars.next();
                        }
                        ']' if !first => break,
                        _ => {}
                    }
                    first = false;
                }
            }
            _ => {}
        }
    }
    false
}

#[derive(Clone)]
enum PartTokens {
    Name(Vec<Token>),
    Deep,
}

fn tokens_part(mut tokens: Vec<Token>) -> Part {
    tokens.dedup_by(|a, b| *a == Token::Many && *b == Token::Many);
    match tokens.as_slice() {
        [] => Part::Literal(Vec::new()),
        [Token::Text(text)] => Part::Literal(text.clone()),
        _ => Part::Wild(tokens),
    }
}

fn tokens(component: &str, grammar: Grammar) -> Result<Vec<Token>, String> {
    let mut out: Vec<Token> = Vec::new();
    let mut chars = component.chars().peekable();
    let text = |out: &mut Vec<Token>, c: char| {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        match out.last_mut() {
            Some(Token::Text(text)) => text.extend_from_slice(bytes),
            _ => out.push(Token::Text(bytes.to_vec())),
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push(Token::Many),
            '?' => out.push(Token::One),
            '\\' => match chars.next() {
                Some(escaped) => text(&mut out, escaped),
                None => return Err("ends in a lone `\\`".to_owned()),
            },
            '[' => out.push(class(&mut chars, grammar)?),
            '!' if grammar == Grammar::Native && chars.peek() == Some(&'(') => {
                chars.next();
                out.push(not(&mut chars)?);
            }
            c => text(&mut out, c),
        }
    }
    Ok(out)
}

fn class(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    grammar: Grammar,
) -> Result<Token, String> {
    const UNCLOSED: &str = "`[` is not closed";
    let negated = match chars.peek() {
        Some('^') => true,
        Some('!') => grammar == Grammar::Native,
        _ => false,
    };
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    let mut first = true;
    loop {
        let low = match chars.next() {
            None => return Err(UNCLOSED.to_owned()),
            Some(']') if !first => break,
            Some('\\') => chars.next().ok_or(UNCLOSED)?,
            Some(c) => c,
        };
        first = false;
        let mut high = low;
        if chars.peek() == Some(&'-') {
            chars.next();
            match chars.peek() {
                Some(']') => {
                    ranges.push((low as u32, low as u32));
                    ranges.push(('-' as u32, '-' as u32));
                    continue;
                }
                Some('\\') => {
                    chars.next();
                    high = chars.next().ok_or(UNCLOSED)?;
                }
                Some(_) => high = chars.next().ok_or(UNCLOSED)?,
                None => return Err(UNCLOSED.to_owned()),
            }
        }
        if low > high {
            return Err(format!("range `{low}-{high}` runs backwards"));
        }
        ranges.push((low as u32, high as u32));
    }
    Ok(Token::Class { negated, ranges })
}

fn not(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, String> {
    let mut names = vec![String::new()];
    loop {
        match chars.next() {
            None => return Err("`!(` is not closed".to_owned()),
            Some(')') => break,
            Some('|') => names.push(String::new()),
            Some('\\') => match (chars.next(), names.last_mut()) {
                (Some(c), Some(name)) => name.push(c),
                _ => return Err("`!(` is not closed".to_owned()),
            },
            Some('*' | '?' | '[') => {
                return Err("wildcards inside `!(...)` are not known".to_owned());
            }
            Some(c) => {
                if let Some(name) = names.last_mut() {
                    name.push(c);
                }
            }
        }
    }
    Ok(Token::Not(names.into_iter().map(String::into_bytes).collect()))
}

/// `a{b,c}` to `ab`, `ac`; nested braces too.
fn unfold_braces(text: &str) -> Result<Vec<String>, String> {
    let mut done: Vec<String> = Vec::new();
    let mut todo: Vec<String> = vec![text.to_owned()];
    while let Some(next) = todo.pop() {
        match first_brace(&next).map_err(|m| format!("\"{text}\": {m}"))? {
            None => done.push(next),
            Some((open, commas, close)) => {
                let mut from = open + 1;
                for to in commas.into_iter().chain([close]) {
                    todo.push(format!(
                        "{}{}{}",
                        &next[..open],
                        &next[from..to],
                        &next[close + 1..]
                    ));
                    from = to + 1;
                }
            }
        }
        if done.len() + todo.len() > MAX_ALTERNATIVES {
            return Err(format!("\"{text}\" unfolds to more than {MAX_ALTERNATIVES} patterns"));
        }
    }
    done.reverse();
    Ok(done)
}

type Brace = (usize, Vec<usize>, usize);

/// Byte offsets of the first `{`, its commas and its `}`.
fn first_brace(text: &str) -> Result<Option<Brace>, String> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut open = 0;
    let mut commas = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b'[' => {
                // A class may hold braces; skip to its end (the first character is never the end).
                let start = i + 1 + usize::from(matches!(bytes.get(i + 1), Some(b'!' | b'^')));
                let mut end = start + 1;
                while end < bytes.len() && bytes[end] != b']' {
                    end += 1 + usize::from(bytes[end] == b'\\');
                }
                if end >= bytes.len() {
                    return Err("`[` is not closed".to_owned());
                }
                i = end;
            }
            b'{' => {
                if depth == 0 {
                    open = i;
                }
                depth += 1;
            }
            b',' if depth == 1 => commas.push(i),
            b'}' if depth == 1 => return Ok(Some((open, commas, i))),
            b'}' if depth > 1 => depth -= 1,
            _ => {}
        }
        i += 1;
    }
    if depth > 0 { Err("`{` is not closed".to_owned()) } else { Ok(None) }
}

impl Glob {
    pub fn is_literal(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether `names` (below the pattern's base) matches in full.
    pub fn matches(&self, names: &[&[u8]]) -> bool {
        self.below_prefix(names).is_some_and(|rest| deepest(&self.parts, rest) == Some(rest.len()))
    }

    /// The most leading components of `names` that match the pattern in full.
    pub fn deepest(&self, names: &[&[u8]]) -> Option<usize> {
        let rest = self.below_prefix(names)?;
        deepest(&self.parts, rest).map(|depth| depth + self.prefix.len())
    }

    /// As [`Self::deepest`], but what the trailing wildcards matched does not count: a grant for
    /// `src/*.py` is as specific as `src`.
    pub fn deepest_named(&self, names: &[&[u8]]) -> Option<usize> {
        let rest = self.below_prefix(names)?;
        deepest(&self.parts, rest)?;
        let named = self
            .parts
            .iter()
            .rposition(|p| matches!(p, Part::Literal(_)))
            .map_or(0, |index| index + 1);
        deepest(&self.parts[..named], rest).map(|depth| depth + self.prefix.len())
    }

    fn below_prefix<'n, 'b>(&self, names: &'n [&'b [u8]]) -> Option<&'n [&'b [u8]]> {
        if names.len() < self.prefix.len() {
            return None;
        }
        let (head, rest) = names.split_at(self.prefix.len());
        head.iter().zip(&self.prefix).all(|(a, b)| *a == b.as_slice()).then_some(rest)
    }
}

/// Runs the parts as a small automaton over the names; bit i set: the first i parts have matched.
fn deepest(parts: &[Part], names: &[&[u8]]) -> Option<usize> {
    let close = |mut states: u64| {
        for (i, part) in parts.iter().enumerate() {
            if *part == Part::Deep && states & (1 << i) != 0 {
                states |= 1 << (i + 1);
            }
        }
        states
    };
    let accept = 1u64 << parts.len();
    let mut states = close(1);
    let mut best = (states & accept != 0).then_some(0);
    for (index, name) in names.iter().enumerate() {
        let mut next = 0u64;
        for (i, part) in parts.iter().enumerate() {
            if states & (1 << i) == 0 {
                continue;
            }
            match part {
                Part::Deep => next |= 1 << i,
                Part::Literal(text) if text.as_slice() == *name => next |= 1 << (i + 1),
                Part::Wild(tokens) if name_matches(tokens, name) => next |= 1 << (i + 1),
                Part::Literal(_) | Part::Wild(_) => {}
            }
        }
        states = close(next);
        if states == 0 {
            break;
        }
        if states & accept != 0 {
            best = Some(index + 1);
        }
    }
    best
}

/// Whether one name matches; linear in name times tokens, whatever the pattern.
fn name_matches(tokens: &[Token], name: &[u8]) -> bool {
    /// Names of files fit on the stack: nothing is allocated for them.
    const ROOM: usize = 256;
    // The shapes nearly all patterns have.
    match tokens {
        [Token::Many] => return true,
        [Token::Many, Token::Text(end)] => return name.ends_with(end),
        [Token::Text(start), Token::Many] => return name.starts_with(start),
        [Token::Text(start), ..] if !name.starts_with(start) => return false,
        [.., Token::Text(end)] if !name.ends_with(end) => return false,
        _ => {}
    }
    if name.len() < ROOM {
        let mut room = [[false; ROOM]; 3];
        run(tokens, name, room.each_mut().map(|bits| &mut bits[..=name.len()]))
    } else {
        let mut room = [(); 3].map(|()| vec![false; name.len() + 1]);
        run(tokens, name, room.each_mut().map(Vec::as_mut_slice))
    }
}

/// Works on three lists of bits, all unset, with one more than the name has bytes. Bit i of the first:
/// what stands before byte i has matched.
fn run(tokens: &[Token], name: &[u8], [mut at, mut next, whole]: [&mut [bool]; 3]) -> bool {
    // Nothing ends within a character: else `*[!é]` would match `é` by the half of it.
    mark_boundaries(name, whole);
    at[0] = true;
    for token in tokens {
        next.fill(false);
        match token {
            Token::Many => {
                let mut seen = false;
                for ((here, whole), out) in at.iter().zip(whole.iter()).zip(next.iter_mut()) {
                    seen |= *here;
                    *out = seen && *whole;
                }
            }
            Token::Text(text) => {
                for start in positions(at) {
                    if name[start..].starts_with(text) {
                        next[start + text.len()] = true;
                    }
                }
            }
            Token::One => {
                for start in positions(at).filter(|s| *s < name.len()) {
                    next[start + decode(&name[start..]).1] = true;
                }
            }
            Token::Class { negated, ranges } => {
                for start in positions(at).filter(|s| *s < name.len()) {
                    let (c, length) = decode(&name[start..]);
                    let inside = c.is_some_and(|c| {
                        ranges.iter().any(|(low, high)| (*low..=*high).contains(&(c as u32)))
                    });
                    if inside != *negated {
                        next[start + length] = true;
                    }
                }
            }
            Token::Not(names) => {
                for start in positions(at) {
                    for end in (start..=name.len()).filter(|end| whole[*end]) {
                        let text = &name[start..end];
                        if !text.is_empty() && !names.iter().any(|n| n == text) {
                            next[end] = true;
                        }
                    }
                }
            }
        }
        std::mem::swap(&mut at, &mut next);
    }
    at[name.len()]
}

/// Where characters begin, and the end.
fn mark_boundaries(name: &[u8], out: &mut [bool]) {
    if name.is_ascii() {
        return out.fill(true);
    }
    let mut next = 0;
    while next < name.len() {
        out[next] = true;
        next += decode(&name[next..]).1;
    }
    out[name.len()] = true;
}

fn positions(at: &[bool]) -> impl Iterator<Item = usize> + '_ {
    at.iter().enumerate().filter(|(_, here)| **here).map(|(i, _)| i)
}

/// The first character of `bytes` and its length; a byte that is no UTF-8 counts as one character
/// that no class names.
fn decode(bytes: &[u8]) -> (Option<char>, usize) {
    let window = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(window) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&window[..e.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(c) => (Some(c), c.len_utf8()),
        None => (None, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_is_clean_already() {
        for text in ["a", "a/b.c", ".env", "..a/b..", "...", "a b/ü", "$x", ""] {
            if is_plain(text) {
                assert_eq!(clean(Base::Workspace, text, text).as_deref(), Ok(text));
                assert_eq!(strip_subtree(text), text);
                assert!(!has_meta(text) && compile(text, Grammar::Native).is_ok());
            }
            assert_eq!(is_plain(text), !text.is_empty(), "{text}");
        }
        for text in ["/a", "a/", "a//b", ".", "..", "./a", "a/./b", "a/..", "a*", "**", "{a,b}"] {
            assert!(!is_plain(text), "{text}");
        }
    }
}
