//! The real tree through FUSE: every operation decided by its path.

use crate::games;
use crate::harness::as_each_user;
use crate::play::Mechanism;

#[test]
fn exact_views_agree_with_the_model() {
    as_each_user(|place| games(Mechanism::Exact, place.user));
}
