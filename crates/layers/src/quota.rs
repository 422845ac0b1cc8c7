//! Quotas of deltas.

/// Bytes that stay free on the file system of the store.
pub const FREE_FLOOR: u64 = 256 << 20;
