//! Sandboxes that the daemon keeps: as people use them by the command line, as programs do over the
//! socket (curl, as the user), through kills, and under attack.

mod agentfense;
mod agentkernel;
mod attacks;
mod batch;
mod clients;
mod codebases;
mod events;
mod exec;
mod exhaustion;
mod faults;
mod files;
mod grpc;
mod keep;
mod layer_faults;
mod layers;
mod life;
mod names;
mod owners;
mod reuse;
mod sdk;
mod sessions;
mod terminal;
mod transports;
mod trees;
mod verbs;
mod watch;
mod watching;
mod world;
