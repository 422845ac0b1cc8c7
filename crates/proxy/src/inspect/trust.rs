//! Where the sandbox's programs look for authorities.
