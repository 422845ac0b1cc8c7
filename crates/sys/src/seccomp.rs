//! System call filter.
