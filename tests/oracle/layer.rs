//! A layer without rules: an overlay of the workspace, the real tree as it was.
//!
//! Deviations, each of which the model expects and nothing else:
//!
//! | where | exact | here |
//! |---|---|---|
//! | moving a directory that was there before the layer | moves | EXDEV, on which programs copy |
//! | a file that had several names before the layer | one file | each name is copied by itself when it is changed |
//! | modes of a file from before the layer that got another name in this run | one mode | each name may go by the mode that it knew |
//! | renaming one name of a file onto another of its names | nothing happens | nothing, or ESTALE |
//! | what the host changes during a run | is seen | is not made here: it is undefined below an overlay |

use crate::harness::as_each_user;
use crate::play::Mechanism;
use crate::{again, games};

#[test]
fn layers_agree_with_the_model() {
    as_each_user(|place| games(Mechanism::Layer, place.user));
}

#[test]
fn seeds_that_failed() {
    // Of a file with two names one was changed and the other removed: applied, that was a conflict.
    // Of another the mode of one name was changed: applied, both had it.
    // Of a link with two names one was replaced, and the directory of the other removed: a conflict.
    // Of a pipe with three names the mode of one was changed: applied, all had it.
    again(Mechanism::Layer, &[2, 200, 236, 40156]);
}
