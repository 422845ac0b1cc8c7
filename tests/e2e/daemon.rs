//! Sandboxes that the daemon keeps: as people use them by the command line, as programs do over the
//! socket (curl, as the user), through kills, and under attack.

mod agentfense;
mod agentkernel;
mod attacks;
mod batch;
mod clients;
mod codebases;
mod exec;
mod faults;
mod files;
mod layers;
mod life;
mod names;
mod sdk;
mod sessions;
mod terminal;
mod trees;
mod verbs;
mod watch;
mod world;
