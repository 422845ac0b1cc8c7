//! Linux as typed, fd-owning calls for what rustix lacks, and the probe of what this host can do.
//! Knows no policy. The only room (with a few lines of `jail`) where `unsafe` is at home.

pub mod arena;
#[cfg(target_os = "linux")]
pub mod attack;
#[cfg(target_os = "linux")]
pub mod bare;
#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod early;
#[cfg(target_os = "linux")]
pub mod egress;
#[cfg(target_os = "linux")]
pub mod entry;
#[cfg(target_os = "linux")]
pub mod fd;
#[cfg(target_os = "linux")]
pub mod landlock;
#[cfg(target_os = "linux")]
pub mod ns;
#[cfg(target_os = "linux")]
pub mod overlay;
#[cfg(target_os = "linux")]
pub mod processors;
#[cfg(target_os = "linux")]
pub mod raw;
#[cfg(target_os = "linux")]
pub mod seccomp;
#[cfg(target_os = "linux")]
pub mod shared;
#[cfg(target_os = "linux")]
pub mod signal;
#[cfg(target_os = "linux")]
pub mod subreaper;
#[cfg(target_os = "linux")]
pub mod tty;
