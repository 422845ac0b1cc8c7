//! What the head of a request says of the state of a file that it is about, and of a part of it (RFC 9110).

use axum::http::{HeaderMap, HeaderName, header};
use ringfence_supervisor::{Part, Tags, When};

use super::Handled;
use crate::problem::Problem;

/// `If-Match` and `If-None-Match`.
pub(super) fn when(headers: &HeaderMap) -> Handled<When> {
    let is = tags(headers, &header::IF_MATCH)?;
    let is_not = tags(headers, &header::IF_NONE_MATCH)?;
    Ok(When { is, is_not })
}

/// For who reads: only what they have already.
pub(super) fn known(headers: &HeaderMap) -> Handled<When> {
    Ok(When { is: None, is_not: tags(headers, &header::IF_NONE_MATCH)? })
}

/// `*`, or tags with commas between them. Weak ones are compared as they stand: what is asked is whether somebody
/// else was there, and for that they are exact as far as we can see it.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Handled<Option<Tags>> {
    let wrong = || Problem::invalid(format!("{name}: neither * nor tags such as ETag has"));
    let mut found = Vec::new();
    let mut is_there = false;
    for value in headers.get_all(name) {
        is_there = true;
        let text = value.to_str().map_err(|_| wrong())?.trim();
        if text == "*" {
            return Ok(Some(Tags::Any));
        }
        let mut rest = text;
        while !rest.is_empty() {
            let quoted = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"');
            let (tag, after) = quoted.and_then(|q| q.split_once('"')).ok_or_else(wrong)?;
            found.push(tag.to_owned());
            rest = after.trim_start_matches([' ', '\t', ',']);
        }
    }
    if is_there && found.is_empty() {
        return Err(wrong());
    }
    Ok(is_there.then_some(Tags::These(found)))
}

/// The one range of bytes that is asked for. Of several, or of another kind, the whole is answered; so it is where
/// somebody has a part of an older state (`If-Range`), since no tag of ours is strong.
pub(super) fn range(headers: &HeaderMap) -> Option<Part> {
    if headers.contains_key(header::IF_RANGE) {
        return None;
    }
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first, last) {
        ("", last) => number(last).map(Part::Last),
        (first, "") => number(first).map(|first| Part::Range(first, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Part::Range(first, Some(last)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn ranges_are_read_as_they_are_meant() {
        let of = |text: &str| range(&with(header::RANGE, text));
        assert_eq!(of("bytes=0-99"), Some(Part::Range(0, Some(99))));
        assert_eq!(of("bytes=5-"), Some(Part::Range(5, None)));
        assert_eq!(of("bytes=-5"), Some(Part::Last(5)));
        assert_eq!(of("bytes=0-99999999999999999999"), Some(Part::Range(0, Some(u64::MAX))));
        for other in
            ["bytes=0-1,3-4", "bytes=3-1", "bytes=-", "bytes=a-b", "bytes=+1-2", "lines=1-2", ""]
        {
            assert_eq!(of(other), None, "{other}");
        }
        let mut both = with(header::RANGE, "bytes=0-1");
        both.insert(header::IF_RANGE, "W/\"x\"".parse().unwrap());
        assert_eq!(range(&both), None);
    }

    #[test]
    fn tags_are_read_as_they_are_meant() {
        let of = |text: &str| tags(&with(header::IF_MATCH, text), &header::IF_MATCH);
        let these = |all: &[&str]| Some(Tags::These(all.iter().map(|t| (*t).into()).collect()));
        assert_eq!(of("*").unwrap(), Some(Tags::Any));
        assert_eq!(of("\"a\"").unwrap(), these(&["a"]));
        assert_eq!(of("W/\"a\", \"b\" ,W/\"c,d\"").unwrap(), these(&["a", "b", "c,d"]));
        for wrong in ["", "a", "\"a", "W/a", "\"a\" b"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert_eq!(tags(&HeaderMap::new(), &header::IF_MATCH).unwrap(), None);
    }
}
