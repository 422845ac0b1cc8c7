//! Paths of requests and the patterns that they are judged by.
//!
//! Servers do not agree on what a path means: some decode `%2f` before they split it, some collapse
//! `//`, some take `\` for `/`, some decode twice. So a path is not brought into one canonical form but
//! into every [reading](readings) that a server may make of it, and each of them must be allowed. A path
//! whose readings would differ in where they lead (dot segments in any spelling, NUL) is refused.

use std::fmt;

/// Rounds of percent-decoding that a server may be guilty of. A path that still changes after them is
/// refused.
const ROUNDS: usize = 3;

/// A path pattern: literal text, `*` for any run within one segment, `**` as a whole segment for any
/// number of segments (none included: `/v1/**` is `/v1`, `/v1/` and everything below).
#[derive(Clone, PartialEq, Eq)]
pub struct PathPattern {
    written: String,
    /// Compared with the literal reading.
    encoded: Vec<Segment>,
    /// Compared with the other readings.
    decoded: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// `**`
    Many,
    /// The pieces between `*`; one piece is literal.
    Pieces(Vec<Vec<u8>>),
}

/// Why a text is not a path pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{written}: {problem}")]
pub struct PatternError {
    pub written: String,
    pub problem: &'static str,
}

/// What makes a path unfit to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ambiguous {
    NoSlash,
    Escape,
    Control,
    Dots,
    Layers,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlash => "it does not begin with a slash",
            Self::Escape => "it holds a percent sign that begins no escape",
            Self::Control => "it holds a control character",
            Self::Dots => "it holds a dot segment, which servers resolve differently",
            Self::Layers => "it is percent-encoded many times over",
        })
    }
}

/// What servers may make of a path, without query. The first is the literal one: unreserved characters
/// decoded, other escapes in upper case.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Readings {
    literal: Vec<u8>,
    /// Decoded once, twice, …; backslashes as slashes; each also with `//` collapsed.
    loose: Vec<Vec<u8>>,
}

/// All readings of `path`.
pub(super) fn readings(path: &str) -> Result<Readings, Ambiguous> {
    if !path.starts_with('/') {
        return Err(Ambiguous::NoSlash);
    }
    let literal = normalise(path.as_bytes())?;
    refuse_dots(&literal)?;
    let mut loose: Vec<Vec<u8>> = Vec::new();
    let mut keep = |reading: Vec<u8>| {
        if !loose.contains(&reading) {
            loose.push(reading);
        }
    };
    let mut current = path.as_bytes().to_vec();
    for round in 0..=ROUNDS {
        let next = decode(&current);
        // A reading with its escapes: what a server sees that decodes not at all.
        let slashed: Vec<u8> =
            current.iter().map(|&byte| if byte == b'\\' { b'/' } else { byte }).collect();
        if slashed.iter().any(u8::is_ascii_control) {
            return Err(Ambiguous::Control);
        }
        refuse_dots(&current)?;
        refuse_dots(&slashed)?;
        if round > 0 || next == current {
            keep(current.clone());
            keep(collapse(&slashed));
            keep(slashed);
        }
        if next == current {
            return Ok(Readings { literal, loose });
        }
        current = next;
    }
    Err(Ambiguous::Layers)
}

/// Unreserved characters decoded, escapes in upper case; bytes that a path may not hold, escaped.
fn normalise(path: &[u8]) -> Result<Vec<u8>, Ambiguous> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let value = escape(tail).ok_or(Ambiguous::Escape)?;
            rest = &tail[2..];
            push(&mut out, value, is_unreserved(value));
        } else if byte.is_ascii_control() {
            return Err(Ambiguous::Control);
        } else {
            push(&mut out, byte, byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte));
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<u8>, byte: u8, plain: bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if plain {
        out.push(byte);
    } else {
        out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The byte that two hexadecimal digits stand for.
fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    Some((digit(digits.first()?)? * 16 + digit(digits.get(1)?)?) as u8)
}

/// One round of decoding of everything; what is no escape stays.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%'
            && let Some(value) = escape(tail)
        {
            out.push(value);
            rest = &tail[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

/// Refuses `.` and `..`, also with parameters (`..;x`), which some servers cut off first.
fn refuse_dots(path: &[u8]) -> Result<(), Ambiguous> {
    let dots = |segment: &[u8]| {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        name == b"." || name == b".."
    };
    if path.split(|&byte| byte == b'/').any(dots) { Err(Ambiguous::Dots) } else { Ok(()) }
}

fn collapse(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for &byte in path {
        if byte != b'/' || out.last() != Some(&b'/') {
            out.push(byte);
        }
    }
    out
}

impl PathPattern {
    /// Takes a pattern as written in a policy.
    pub fn parse(written: &str) -> Result<Self, PatternError> {
        let problem = |problem| PatternError { written: written.to_owned(), problem };
        let Some(rest) = written.strip_prefix('/') else {
            return Err(problem("a path pattern begins with a slash"));
        };
        if rest.contains('?') || rest.contains('#') {
            return Err(problem(
                "a path pattern has neither query nor fragment: `?` and `#` stand as %3F and %23",
            ));
        }
        let (mut encoded, mut decoded) = (Vec::new(), Vec::new());
        for segment in rest.split('/') {
            if segment == "**" {
                encoded.push(Segment::Many);
                decoded.push(Segment::Many);
                continue;
            }
            if segment.contains("**") {
                return Err(problem("`**` is a segment of its own"));
            }
            let pieces = segment.split('*').map(|piece| normalise(piece.as_bytes()));
            let pieces: Vec<_> = pieces.collect::<Result<_, _>>().map_err(|e| {
                problem(match e {
                    Ambiguous::Control => "it holds a control character",
                    _ => "it holds a percent sign that begins no escape (%25 is the percent sign)",
                })
            })?;
            // Where a server decodes before it splits, an encoded slash separates segments.
            let mut open: Vec<Vec<u8>> = Vec::new();
            for piece in &pieces {
                for (n, part) in decode(piece).split(|&byte| byte == b'/').enumerate() {
                    if n > 0 {
                        decoded.push(Segment::Pieces(std::mem::take(&mut open)));
                    }
                    open.push(part.to_vec());
                }
            }
            decoded.push(Segment::Pieces(open));
            encoded.push(Segment::Pieces(pieces));
        }
        if readings(&written.replace('*', "x")).is_err() {
            return Err(problem(
                "no request matches it: dot segments and control characters are always refused",
            ));
        }
        Ok(Self { written: written.to_owned(), encoded, decoded })
    }

    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Whether it covers the literal reading.
    fn covers_literal(&self, path: &[u8]) -> bool {
        covers(&self.encoded, path)
    }

    fn covers_loose(&self, path: &[u8]) -> bool {
        covers(&self.decoded, path) || covers(&self.encoded, path)
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Readings {
    /// Whether each reading is covered by one of the patterns.
    pub(super) fn all_covered<'a>(
        &self,
        patterns: &(impl Iterator<Item = &'a PathPattern> + Clone),
    ) -> bool {
        patterns.clone().any(|pattern| pattern.covers_literal(&self.literal))
            && self
                .loose
                .iter()
                .all(|reading| patterns.clone().any(|pattern| pattern.covers_loose(reading)))
    }
}

/// Matches without backtracking over more than one `**`: the last one seen is widened, which is enough
/// because an earlier one can only give back what the later one may take as well.
fn covers(pattern: &[Segment], path: &[u8]) -> bool {
    let Some(path) = path.strip_prefix(b"/") else { return false };
    let segments: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    let (mut at, mut seen) = (0, 0);
    let mut widen: Option<(usize, usize)> = None;
    while seen < segments.len() {
        match pattern.get(at) {
            Some(Segment::Many) => {
                widen = Some((at, seen));
                at += 1;
                continue;
            }
            Some(Segment::Pieces(pieces)) if fits(pieces, segments[seen]) => {
                at += 1;
                seen += 1;
                continue;
            }
            _ => {}
        }
        let Some((star, from)) = widen else { return false };
        widen = Some((star, from + 1));
        at = star + 1;
        seen = from + 1;
    }
    pattern[at..].iter().all(|segment| *segment == Segment::Many)
}

/// One segment against the pieces between `*`. Leftmost matches suffice.
fn fits(pieces: &[Vec<u8>], segment: &[u8]) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only == segment);
    };
    let Some(mut rest) = segment.strip_prefix(first.as_slice()) else { return false };
    for piece in middle.iter().filter(|piece| !piece.is_empty()) {
        let Some(at) = rest.windows(piece.len()).position(|window| window == piece) else {
            return false;
        };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(written: &str) -> PathPattern {
        PathPattern::parse(written).unwrap()
    }

    fn allowed(patterns: &[&str], path: &str) -> bool {
        let patterns: Vec<_> = patterns.iter().map(|p| pattern(p)).collect();
        readings(path).is_ok_and(|readings| readings.all_covered(&patterns.iter()))
    }

    #[test]
    fn patterns() {
        for (written, yes, no) in [
            ("/", &["/"][..], &["/a", "//a"][..]),
            ("/a", &["/a", "/%61"], &["/a/", "/A", "/ab", "/b"]),
            ("/a/*", &["/a/b", "/a/"], &["/a", "/a/b/c"]),
            ("/a/**", &["/a", "/a/", "/a/b", "/a/b/c", "/a//b"], &["/ab", "/b/a"]),
            ("/**", &["/", "/x", "/x/y"], &[]),
            ("/**/z", &["/z", "/x/z", "/x/y/z"], &["/z/x"]),
            ("/a/**/b/**/c", &["/a/b/c", "/a/x/b/y/b/c", "/a/b/b/c/c"], &["/a/c", "/a/b/c/d"]),
            ("/pkg-*.tgz", &["/pkg-1.2.tgz", "/pkg-.tgz"], &["/pkg-1.tgz.exe", "/pkg-a/b.tgz"]),
            ("/*x*y*", &["/axbyc", "/xy"], &["/yx", "/x"]),
            ("/@types%2fnode", &["/@types%2Fnode"], &["/@types/other"]),
            ("/a*%2fb*c", &["/ax%2fbyc"], &["/ax/byc", "/a%2fbc%2fc"]),
            ("/a b", &["/a%20b"], &["/ab"]),
        ] {
            for path in yes {
                assert!(allowed(&[written], path), "{written} should cover {path}");
            }
            for path in no {
                assert!(!allowed(&[written], path), "{written} should not cover {path}");
            }
        }
    }

    #[test]
    fn each_reading_must_be_allowed() {
        // As one segment allowed, as two not.
        assert!(!allowed(&["/public/*"], "/public/a%2fsecret"));
        assert!(!allowed(&["/public/*"], "/public/a%5csecret"));
        assert!(!allowed(&["/public/*"], "/public/a\\secret"));
        assert!(!allowed(&["/public/*"], "/public/a%252fsecret"));
        // Wherever it leads it is allowed.
        assert!(allowed(&["/public/**"], "/public/a%2fb"));
        assert!(allowed(&["/**"], "/@types%2fnode"));
        assert!(allowed(&["/@types/*", "/@types%2fnode"], "/@types%2fnode"));
        assert!(!allowed(&["/a/b"], "/a//b"));
        assert!(allowed(&["/a/b", "/a//b"], "/a//b"));
    }

    #[test]
    fn the_ambiguous_is_refused_whatever_the_patterns() {
        for path in [
            "/a/../b",
            "/a/./b",
            "/..",
            "/a/%2e%2e/b",
            "/a/.%2E/b",
            "/a/..%2fb",
            "/a%2f..%2fb",
            "/a/..\\b",
            "/a/..%5cb",
            "/a/%252e%252e/b",
            "/a/%25252e%25252e/b",
            "/a/..;x=1/b",
            "/a/%2e%2e%3bx/b",
            "/a/%00",
            "/a/%0d%0ab",
            "/a%",
            "/a%zz",
            "/a%2",
            "*",
            "",
            "a",
            "/%2525252525252e",
        ] {
            assert!(!allowed(&["/**"], path), "{path} should be refused");
        }
    }

    #[test]
    fn patterns_that_are_none() {
        for written in ["", "a", "**", "/a**", "/a?b", "/a#b", "/%", "/a/../b", "/\u{7}"] {
            assert!(PathPattern::parse(written).is_err(), "{written}");
        }
    }

    /// The obvious matcher, exponential.
    fn slowly(pattern: &[Segment], segments: &[&[u8]]) -> bool {
        match (pattern.split_first(), segments.split_first()) {
            (None, None) => true,
            (Some((Segment::Many, rest)), _) => {
                (0..=segments.len()).any(|n| slowly(rest, &segments[n..]))
            }
            (Some((Segment::Pieces(pieces), rest)), Some((first, others))) => {
                fits(pieces, first) && slowly(rest, others)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_quick_matcher_agrees_with_the_obvious_one(
            segments in prop::collection::vec(prop_oneof!["[ab]{0,2}", Just("**".into()), Just("a*".into())], 1..6),
            path in prop::collection::vec("[ab]{0,2}", 1..7),
        ) {
            let pattern = pattern(&format!("/{}", segments.join("/")));
            let text = format!("/{}", path.join("/"));
            let parts: Vec<&[u8]> = path.iter().map(String::as_bytes).collect();
            prop_assert_eq!(covers(&pattern.encoded, text.as_bytes()), slowly(&pattern.encoded, &parts));
        }

        #[test]
        fn no_reading_holds_dots_or_controls(path in "/([a./%\\\\;2ef50]){0,24}") {
            if let Ok(readings) = readings(&path) {
                for reading in readings.loose.iter().chain([&readings.literal]) {
                    prop_assert!(refuse_dots(reading).is_ok());
                    prop_assert!(!reading.iter().any(u8::is_ascii_control));
                    prop_assert!(refuse_dots(&decode(reading)).is_ok());
                }
            }
        }

        #[test]
        fn what_needs_no_escape_is_judged_as_it_is(path in "(/[a-z0-9_-]{1,4}){1,4}") {
            prop_assert!(allowed(&[&path], &path));
            let other = format!("{path}x");
            prop_assert!(!allowed(&[&path], &other));
        }
    }
}
