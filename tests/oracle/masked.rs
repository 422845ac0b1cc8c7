//! A layer with rules: a mask hides what is there, names are checked as they are made.
//!
//! Deviations, each of which the model expects and nothing else, beside those of a layer without rules:
//!
//! | where | exact | here |
//! |---|---|---|
//! | a file that is `view` | its mode | mode 0 |
//! | a grant inside what is not `write`, for a name that does not exist | holds when it appears | may hold for what was there at the start only: EACCES, EROFS, and EXDEV for what is moved or linked out of it |
//! | removing what is not there, where nothing may be removed | ENOENT | ENOENT or EROFS |
//! | what exists and may not be changed | EACCES; other names move freely | a mount: also EBUSY, and EXDEV for what is moved or linked past it |
//! | removing a directory in which everything is hidden | ENOTEMPTY | may be removed, in the layer; the real one stays |
//! | `O_TMPFILE` in a directory that is not `write` | EACCES | may work; the name that it gets is checked |
//! | at a start, other names of a hidden file and what a hidden symlink leads to | each by its own path | hidden too; not made here |
//! | a native pattern that begins with a symlink | by its own path | where that leads, too; not made here |

use crate::harness::as_each_user;
use crate::play::Mechanism;
use crate::{again, can, games, notices};

#[test]
fn masked_layers_agree_with_the_model() {
    if can(Mechanism::Masked) {
        as_each_user(|place| games(Mechanism::Masked, place.user));
    }
}

#[test]
fn a_rule_that_a_masked_layer_does_not_hold_is_noticed() {
    if can(Mechanism::Masked) {
        notices(Mechanism::Masked);
    }
}

#[test]
fn seeds_that_failed() {
    // A directory that may only be read by pattern, in one that may be written: its time was changed.
    // A directory that holds such a thing was renamed to its own name.
    // A link that leads through itself, by a long way.
    // A rule that lets one directory be written, and not what lies in it: its modes and attributes could be.
    // Of a directory that ordered rules let be read alone, what others hide in it was shown.
    // So was what is hidden in a directory that a mount makes read-only, and what could not be read there failed
    // otherwise.
    again(Mechanism::Masked, &[42, 49, 20063, 40194, 40212, 50001, 51011, 52007]);
}
