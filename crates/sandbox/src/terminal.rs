//! Pty relay.
