//! Malformed input: each has its message, nothing runs, nothing is lost.
