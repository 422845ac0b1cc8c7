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
//! | applying a layer with files that their owner may not read or write | reproduces the tree | may be refused to an ordinary user, and does nothing |
//! | applying the time of a directory | reproduced | not asked for |
//! | what the host changes during a run | is seen | is not made here: it is undefined below an overlay |

use crate::games;
use crate::harness::as_each_user;
use crate::play::Mechanism;

#[test]
fn layers_agree_with_the_model() {
    as_each_user(|place| games(Mechanism::Layer, place.user));
}
