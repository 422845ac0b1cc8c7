//! A layer with rules: a mask hides what is there, names are checked as they are made.

use crate::games;
use crate::harness::as_each_user;
use crate::play::Mechanism;

#[test]
fn masked_layers_agree_with_the_model() {
    as_each_user(|place| games(Mechanism::Masked, place.user));
}
