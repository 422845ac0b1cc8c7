//! What leaves a sandbox: an internet of our own in network namespaces ([`world`]), clients as people
//! use them, and attacks, each with its control. Tests ask the servers' log what arrived, not only the
//! client what it believes.

mod attacks;
mod channels;
mod clients;
mod inspect;
mod life;
mod probe;
mod reload;
mod said;
mod world;
