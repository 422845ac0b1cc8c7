//! Binds, masks and Landlock over the real tree, with rules that name what exists.
//!
//! Deviations from the exact meaning of permissions, each of which the model expects and nothing else:
//!
//! | where | exact | here |
//! |---|---|---|
//! | a name that is `none` | absent: ENOENT | listed, mode 0, no content; passing through it EACCES or ENOTDIR |
//! | a place with a rule of its own, or that leads to one | moves as its permission says | stays: EBUSY |
//! | a name is made, removed, moved | as its own permission says | its directory must be `write`, too |
//! | moving or linking between places with other rules | as the permissions say | EXDEV |
//! | a rule for a name that does not exist | holds when it appears | is not made here: what is there at the start counts |
//! | the host moves a directory that is held open behind a mask | hidden from then on | still used by who holds it |
//! | the host moves such a directory out of what is mounted | as the place where it is | as the one where it was opened: EXDEV, EROFS |
//! | two names of one file with other permissions | each its own | are not made here: hiding finds the other names, sealing does not |

use crate::harness::as_each_user;
use crate::play::Mechanism;
use crate::{again, games, notices};

#[test]
fn mounts_agree_with_the_model() {
    as_each_user(|place| games(Mechanism::Direct, place.user));
}

#[test]
fn a_rule_that_binds_do_not_hold_is_noticed() {
    notices(Mechanism::Direct);
}

/// Each seed failed before something was mended.
#[test]
fn seeds_that_failed() {
    // A directory that leads to what is protected, named by a grant, could be moved away; the host moved a
    // directory that was held open behind a mask; names that are too long were moved to another mount; the host
    // moved a directory that was held open out of a mount.
    again(Mechanism::Direct, &[133, 7055, 20088, 60049]);
}
