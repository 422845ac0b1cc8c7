//! git, npm, pip, cargo and friends work as if the sandbox were not there.
