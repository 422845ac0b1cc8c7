//! Lines: what differs, as hunks and as a unified patch; and two changes of one text made into one.
#![allow(clippy::many_single_char_names, reason = "two sides and their counters")]

use std::io::Write as _;
use std::ops::Range;

use imara_diff::{Algorithm, Diff, InternedInput};

/// Largest file that is looked at line by line; larger ones count as binary.
pub const MAX_TEXT: u64 = 4 << 20;
/// Lines around a change, as everybody prints them.
pub const CONTEXT: usize = 3;
/// git's rule: a NUL in the beginning makes a file binary.
const LOOKED_AT: usize = 8000;

pub fn is_text(bytes: &[u8]) -> bool {
    bytes.len() as u64 <= MAX_TEXT && !bytes[..bytes.len().min(LOOKED_AT)].contains(&0)
}

/// With their line ends.
pub fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').collect()
}

/// Lines of one text that stand for lines of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub before: Range<usize>,
    pub after: Range<usize>,
}

pub fn edits(before: &[u8], after: &[u8]) -> Vec<Edit> {
    let input = InternedInput::new(before, after);
    let mut diff = Diff::compute(Algorithm::Histogram, &input);
    diff.postprocess_lines(&input);
    let wide = |r: Range<u32>| r.start as usize..r.end as usize;
    diff.hunks().map(|h| Edit { before: wide(h.before), after: wide(h.after) }).collect()
}

/// Edits that are shown together, with their context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hunk {
    pub edits: Vec<Edit>,
    pub before: Range<usize>,
    pub after: Range<usize>,
}

/// Edits closer than two contexts share a hunk.
pub fn hunks(edits: &[Edit], before_lines: usize, after_lines: usize) -> Vec<Hunk> {
    let mut all: Vec<Hunk> = Vec::new();
    for edit in edits {
        let start = edit.before.start.saturating_sub(CONTEXT);
        let lead = edit.before.start - start;
        match all.last_mut() {
            Some(last) if last.before.end >= start => last.edits.push(edit.clone()),
            _ => all.push(Hunk {
                edits: vec![edit.clone()],
                before: start..0,
                after: edit.after.start - lead..0,
            }),
        }
        if let Some(last) = all.last_mut() {
            last.before.end = (edit.before.end + CONTEXT).min(before_lines);
            last.after.end = (edit.after.end + CONTEXT).min(after_lines);
        }
    }
    all
}

/// Lines that a change adds and removes.
pub fn count(edits: &[Edit]) -> (usize, usize) {
    edits.iter().fold((0, 0), |(plus, minus), e| (plus + e.after.len(), minus + e.before.len()))
}

/// The `@@` part of a patch.
pub fn unified(before: &[u8], after: &[u8], out: &mut Vec<u8>) {
    let (old, new) = (lines(before), lines(after));
    for hunk in hunks(&edits(before, after), old.len(), new.len()) {
        let range = |r: &Range<usize>| match r.len() {
            0 => format!("{},0", r.start),
            1 => format!("{}", r.start + 1),
            n => format!("{},{n}", r.start + 1),
        };
        let _ = writeln!(out, "@@ -{} +{} @@", range(&hunk.before), range(&hunk.after));
        let mut at = hunk.before.start;
        for edit in &hunk.edits {
            put(out, b' ', &old[at..edit.before.start]);
            put(out, b'-', &old[edit.before.clone()]);
            put(out, b'+', &new[edit.after.clone()]);
            at = edit.before.end;
        }
        put(out, b' ', &old[at..hunk.before.end]);
    }
}

fn put(out: &mut Vec<u8>, sign: u8, lines: &[&[u8]]) {
    for line in lines {
        out.push(sign);
        out.extend_from_slice(line);
        if line.last() != Some(&b'\n') {
            out.extend_from_slice(b"\n\\ No newline at end of file\n");
        }
    }
}

/// `before` with some of the hunks that lead to `after` (numbered from 1); the error is a number that
/// is not there, and how many there are.
pub fn take(before: &[u8], after: &[u8], chosen: &[usize]) -> Result<Vec<u8>, (usize, usize)> {
    let (old, new) = (lines(before), lines(after));
    let hunks = hunks(&edits(before, after), old.len(), new.len());
    if let Some(bad) = chosen.iter().find(|n| **n == 0 || **n > hunks.len()) {
        return Err((*bad, hunks.len()));
    }
    let mut out = Vec::with_capacity(before.len().max(after.len()));
    let mut at = 0;
    for (n, hunk) in hunks.iter().enumerate() {
        if !chosen.contains(&(n + 1)) {
            continue;
        }
        for edit in &hunk.edits {
            out.extend(old[at..edit.before.start].concat());
            out.extend(new[edit.after.clone()].concat());
            at = edit.before.end;
        }
    }
    out.extend(old[at..].concat());
    Ok(out)
}

/// What both made of `base`, if they do not touch the same or neighbouring lines differently.
pub fn merge(base: &[u8], ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    let old = lines(base);
    let (a_lines, b_lines) = (lines(ours), lines(theirs));
    let (a, b) = (edits(base, ours), edits(base, theirs));
    let (mut i, mut j) = (0, 0);
    let mut at = 0;
    let mut out = Vec::with_capacity(ours.len().max(theirs.len()));
    loop {
        // The next stretch of the base that either changed, with everything that touches it.
        let first = match (a.get(i), b.get(j)) {
            (None, None) => break,
            (Some(x), Some(y)) => x.before.start.min(y.before.start),
            (Some(x), None) => x.before.start,
            (None, Some(y)) => y.before.start,
        };
        let mut end = first;
        let (from_i, from_j) = (i, j);
        loop {
            if let Some(x) = a.get(i).filter(|x| x.before.start <= end) {
                end = end.max(x.before.end);
                i += 1;
            } else if let Some(y) = b.get(j).filter(|y| y.before.start <= end) {
                end = end.max(y.before.end);
                j += 1;
            } else {
                break;
            }
        }
        let made = |edits: &[Edit], new: &[&[u8]]| {
            let mut text = Vec::new();
            let mut at = first;
            for e in edits {
                text.extend(old[at..e.before.start].concat());
                text.extend(new[e.after.clone()].concat());
                at = e.before.end;
            }
            text.extend(old[at..end].concat());
            text
        };
        out.extend(old[at..first].concat());
        let (x, y) = (&a[from_i..i], &b[from_j..j]);
        if y.is_empty() {
            out.extend(made(x, &a_lines));
        } else if x.is_empty() {
            out.extend(made(y, &b_lines));
        } else {
            let (x, y) = (made(x, &a_lines), made(y, &b_lines));
            if x != y {
                return None;
            }
            out.extend(x);
        }
        at = end;
    }
    out.extend(old[at..].concat());
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(lines: &[u8], newline: bool) -> Vec<u8> {
        let mut text = Vec::new();
        for line in lines {
            text.extend([b'a' + line, b'\n']);
        }
        if !newline {
            text.pop();
        }
        text
    }

    #[test]
    fn changes_far_apart_merge_and_neighbours_do_not() {
        let base = text(&[0, 1, 2, 3, 4, 5, 6], true);
        let ours = text(&[9, 1, 2, 3, 4, 5, 6], true);
        let theirs = text(&[0, 1, 2, 3, 4, 5, 8], true);
        assert_eq!(merge(&base, &ours, &theirs), Some(text(&[9, 1, 2, 3, 4, 5, 8], true)));
        let near = text(&[0, 8, 2, 3, 4, 5, 6], true);
        assert_eq!(merge(&base, &ours, &near), None);
        assert_eq!(merge(&base, &ours, &ours), Some(ours));
        // Two insertions at one place have no order.
        let (x, y) = (text(&[0, 7, 1], true), text(&[0, 8, 1], true));
        assert_eq!(merge(&text(&[0, 1], true), &x, &y), None);
    }

    #[test]
    fn a_patch_says_where_no_newline_is() {
        let mut out = Vec::new();
        unified(b"a\nb", b"a\nc\n", &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n");
        let mut out = Vec::new();
        unified(b"", b"x\n", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "@@ -0,0 +1 @@\n+x\n");
    }

    proptest! {
        #[test]
        fn all_hunks_make_the_other_text(
            a in proptest::collection::vec(0u8..6, 0..60),
            b in proptest::collection::vec(0u8..6, 0..60),
            ends in any::<(bool, bool)>(),
        ) {
            let (a, b) = (text(&a, ends.0), text(&b, ends.1));
            let n = hunks(&edits(&a, &b), lines(&a).len(), lines(&b).len()).len();
            let all: Vec<usize> = (1..=n).collect();
            prop_assert_eq!(take(&a, &b, &all).unwrap(), b.clone());
            prop_assert_eq!(take(&a, &b, &[]).unwrap(), a.clone());
            prop_assert_eq!(take(&a, &b, &[n + 1]), Err((n + 1, n)));
            // The rest after one hunk leads to the same.
            if n > 1 {
                let half = take(&a, &b, &[1]).unwrap();
                let rest = hunks(&edits(&half, &b), lines(&half).len(), lines(&b).len()).len();
                let all: Vec<usize> = (1..=rest).collect();
                prop_assert_eq!(take(&half, &b, &all).unwrap(), b.clone());
            }
        }

        #[test]
        fn a_merge_with_what_did_not_change_is_the_other(
            a in proptest::collection::vec(0u8..6, 0..40),
            b in proptest::collection::vec(0u8..6, 0..40),
        ) {
            let (a, b) = (text(&a, true), text(&b, true));
            prop_assert_eq!(merge(&a, &a, &b), Some(b.clone()));
            prop_assert_eq!(merge(&a, &b, &a), Some(b.clone()));
            prop_assert_eq!(merge(&a, &b, &b), Some(b.clone()));
        }
    }
}
