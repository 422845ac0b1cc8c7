//! The executor, as a test of this binary: that is how it gets into a sandbox.

use crate::ops;
use crate::play::MARK;

/// Passes at once unless it was started to serve.
#[test]
fn executor() {
    if std::env::var_os(MARK).is_some() {
        ops::serve();
    }
}
