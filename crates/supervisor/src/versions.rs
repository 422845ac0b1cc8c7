//! Which state of a file somebody means: tags, conditions on them, and parts of it.

use rustix::fs::Stat;

use crate::error::{Error, Kind};

/// States of a file, by their tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// Whatever it is, as long as it is there.
    Any,
    These(Vec<String>),
}

impl Tags {
    /// Whether a file that is so, or is not there, is meant.
    fn mean(&self, tag: Option<&str>) -> bool {
        match (self, tag) {
            (_, None) => false,
            (Self::Any, _) => true,
            (Self::These(all), Some(tag)) => all.iter().any(|one| one == tag),
        }
    }
}

/// How a file has to be for something to be done with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// One of these.
    pub is: Option<Tags>,
    /// None of these.
    pub is_not: Option<Tags>,
}

impl When {
    pub(crate) fn is_always(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it may be written. `tag`: what is there.
    pub(crate) fn admits(&self, path: &str, tag: Option<&str>) -> Result<(), Error> {
        let changed =
            |what: String| Err(Error::new(Kind::Changed, what).with("read it again, then decide"));
        if self.is.as_ref().is_some_and(|is| !is.mean(tag)) {
            return changed(match tag {
                Some(_) => format!("{path} is not what it was"),
                None => format!("{path} is not there"),
            });
        }
        if self.is_not.as_ref().is_some_and(|is_not| is_not.mean(tag)) {
            return changed(format!("{path} is there already"));
        }
        Ok(())
    }

    /// Whether who reads it has this state of it.
    pub(crate) fn has(&self, tag: &str) -> bool {
        self.is_not.as_ref().is_some_and(|is_not| is_not.mean(Some(tag)))
    }
}

/// Of a state of a file: another file under the name, other bytes, another mode or owner give another one. A
/// program that writes through a mapping of it does not, until the kernel writes that down.
pub(crate) fn tag(stat: &Stat) -> String {
    #[allow(clippy::unnecessary_cast, reason = "not unnecessary on every architecture")]
    let numbers = [
        stat.st_dev as u64,
        stat.st_ino as u64,
        stat.st_size as u64,
        stat.st_mtime as u64,
        stat.st_mtime_nsec as u64,
        stat.st_ctime as u64,
        stat.st_ctime_nsec as u64,
    ];
    numbers.map(|n| format!("{n:x}")).join("-")
}

/// As HTTP has it: weak, since a file can have other bytes for a while with the same times.
pub fn etag(tag: &str) -> String {
    format!("W/\"{tag}\"")
}

/// What of a file is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Nothing, where that is behind its end.
    From { offset: u64, length: Option<u64> },
    /// From this byte to that one, or to the end.
    Range(u64, Option<u64>),
    /// So many at its end.
    Last(u64),
}

impl Part {
    pub const WHOLE: Self = Self::From { offset: 0, length: None };

    /// The first byte and how many, of a file of this size. `None` where there is nothing of it.
    pub(crate) fn of(self, size: u64) -> Option<(u64, u64)> {
        match self {
            Self::From { offset, length } => {
                Some((offset, size.saturating_sub(offset).min(length.unwrap_or(u64::MAX))))
            }
            Self::Range(first, last) if first < size => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                end.checked_sub(first).filter(|n| *n > 0).map(|n| (first, n))
            }
            Self::Last(n) if n > 0 && size > 0 => Some((size - n.min(size), n.min(size))),
            Self::Range(..) | Self::Last(_) => None,
        }
    }
}

/// What was read of a file.
#[derive(Debug)]
pub struct Read {
    /// Of the state that it was in when the reading began.
    pub tag: String,
    /// How large it was then.
    pub size: u64,
    pub got: Got,
}

#[derive(Debug)]
pub enum Got {
    Bytes {
        offset: u64,
        bytes: Vec<u8>,
    },
    /// It is what who asks has already.
    Same,
    /// There is nothing of the part that is wanted.
    Beyond,
}

impl Read {
    /// The bytes alone.
    pub fn bytes(self) -> Vec<u8> {
        match self.got {
            Got::Bytes { bytes, .. } => bytes,
            Got::Same | Got::Beyond => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_what_is_there() {
        let of = |part: Part| part.of(10);
        assert_eq!(of(Part::WHOLE), Some((0, 10)));
        assert_eq!(of(Part::From { offset: 4, length: Some(3) }), Some((4, 3)));
        assert_eq!(of(Part::From { offset: 11, length: None }), Some((11, 0)));
        assert_eq!(of(Part::Range(0, Some(0))), Some((0, 1)));
        assert_eq!(of(Part::Range(2, Some(5))), Some((2, 4)));
        assert_eq!(of(Part::Range(2, None)), Some((2, 8)));
        assert_eq!(of(Part::Range(9, Some(u64::MAX))), Some((9, 1)));
        assert_eq!(of(Part::Last(3)), Some((7, 3)));
        assert_eq!(of(Part::Last(30)), Some((0, 10)));
        for part in [Part::Range(10, None), Part::Range(5, Some(4)), Part::Last(0)] {
            assert_eq!(of(part), None, "{part:?}");
        }
        assert_eq!(Part::Range(0, None).of(0), None);
        assert_eq!(Part::Last(1).of(0), None);
        assert_eq!(Part::WHOLE.of(0), Some((0, 0)));
    }

    #[test]
    fn conditions_mean_states() {
        let these = |tag: &str| Some(Tags::These(vec!["x".into(), tag.into()]));
        let is = |is| When { is, is_not: None };
        let is_not = |is_not| When { is: None, is_not };
        let ok = |when: &When, tag| when.admits("f", tag).is_ok();
        assert!(ok(&When::default(), None) && ok(&When::default(), Some("a")));
        assert!(ok(&is(these("a")), Some("a")) && !ok(&is(these("a")), Some("b")));
        assert!(!ok(&is(these("a")), None) && !ok(&is(Some(Tags::Any)), None));
        assert!(ok(&is(Some(Tags::Any)), Some("b")));
        assert!(ok(&is_not(Some(Tags::Any)), None) && !ok(&is_not(Some(Tags::Any)), Some("a")));
        assert!(ok(&is_not(these("a")), Some("b")) && !ok(&is_not(these("a")), Some("a")));
        assert!(is_not(these("a")).has("a") && !is(these("a")).has("a"));
    }

    #[test]
    fn another_state_has_another_tag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let now = || tag(&rustix::fs::stat(file.path()).unwrap());
        let empty = now();
        assert_eq!(now(), empty);
        std::fs::write(file.path(), "1").unwrap();
        let one = now();
        assert_ne!(one, empty);
        let other = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(other.path(), "1").unwrap();
        std::fs::rename(other.path(), file.path()).unwrap();
        assert_ne!(now(), one);
    }
}
