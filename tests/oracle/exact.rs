//! The real tree through FUSE: every operation decided by its path.
//!
//! Deviations, each of which the model expects and nothing else:
//!
//! | where | exact | here |
//! |---|---|---|
//! | a held directory that the host moves | is where it is now | not promised: not used any more |
//! | the mode of a pipe | its own | without what its permission does not allow: the kernel opens it by that |
//! | at a start, what a hidden symlink leads to | by its own path | hidden too; not made here |
//! | a native pattern that begins with a symlink | by its own path | where that leads, too; not made here |

use crate::harness::as_each_user;
use crate::play::Mechanism;
use crate::{again, can, games, notices};

#[test]
fn exact_views_agree_with_the_model() {
    if can(Mechanism::Exact) {
        as_each_user(|place| games(Mechanism::Exact, place.user));
    }
}

#[test]
fn a_rule_that_the_exact_view_does_not_hold_is_noticed() {
    if can(Mechanism::Exact) {
        notices(Mechanism::Exact);
    }
}

#[test]
fn seeds_that_failed() {
    // A hidden name that is longer than any can be was not there, and had to be too long.
    // `tmp/*` holds where the symlink `tmp` leads; the model knew nothing of it.
    again(Mechanism::Exact, &[30192, 40148]);
}
