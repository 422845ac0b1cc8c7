//! Real tools do their work inside, with the default profile, and leave alone what is guarded.

mod build;
mod git;
mod places;
mod system;
