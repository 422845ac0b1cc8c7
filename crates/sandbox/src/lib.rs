//! The noun itself: plan, status, discovery, backends.

#[cfg(unix)]
pub mod discover;
#[cfg(unix)]
pub mod terminal;
