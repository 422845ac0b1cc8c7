//! The real tree through FUSE: every operation decided by its path.
//!
//! Deviations, each of which the model expects and nothing else:
//!
//! | where | exact | here |
//! |---|---|---|
//! | a held directory that the host moves | is where it is now | not promised: not used any more |
//! | opening a pipe | as its permission says | as its mode says: the kernel opens it and asks nobody |
//! | at a start, what a hidden symlink leads to | by its own path | hidden too; not made here |

use crate::games;
use crate::harness::as_each_user;
use crate::play::Mechanism;

#[test]
fn exact_views_agree_with_the_model() {
    as_each_user(|place| games(Mechanism::Exact, place.user));
}
