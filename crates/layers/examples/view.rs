//! Serves a directory as an exact view at a mount point until standard input ends: for conformance
//! suites and measurements outside a sandbox. It mounts, so it wants a mount namespace in which it may:
//! `unshare -m` as root, `unshare -Urm` as anybody who can open /dev/fuse.
//!
//! `view DIRECTORY MOUNTPOINT [POLICY.toml] [fresh-milliseconds] [plain]`

use std::ffi::CString;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ringfence_layers::fuse::{Options, Owners, Rules, View};
use ringfence_policy::{Fragment, Places};
use ringfence_sys::{fuse, raw};

const EVERYTHING: &str =
    "lift = [\"guard\", \"secret\"]\n[files]\nwrite = [\".\"]\ngit = \"open\"\n";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = "usage: view DIRECTORY MOUNTPOINT [POLICY.toml] [fresh-milliseconds] [plain]";
    let directory = PathBuf::from(arguments.next().ok_or(usage)?).canonicalize()?;
    let place = arguments.next().ok_or(usage)?;
    let policy = match arguments.next() {
        Some(file) if file != "-" => std::fs::read_to_string(file)?,
        _ => EVERYTHING.to_owned(),
    };
    let fresh = arguments.next().and_then(|ms| ms.to_str()?.parse().ok()).unwrap_or(0);
    let plain = arguments.next().is_some();

    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // With one id in the map there is one user.
    let single =
        std::fs::read_to_string("/proc/self/uid_map")?.split_whitespace().last() == Some("1");
    let owners = if single { Owners::One { uid, gid, demoted: false } } else { Owners::Host };
    let options = fuse::Options { uid, gid, others: true, attributes: raw::mnt::ATTR_NODEV };
    let place = CString::new(place.as_bytes())?;
    let device = fuse::mount_at(&place, &options)?;

    let root: OwnedFd = std::fs::File::open(&directory)?.into();
    let rules = Rules {
        policy: Arc::new(Fragment::parse("policy.toml", policy.as_bytes())?.finish()?),
        places: Places { workspace: directory.clone(), home: "/nonexistent".into() },
        extra: Vec::new(),
        root: directory,
    };
    let mut options = Options::new(owners);
    options.fresh = Duration::from_millis(fresh);
    options.passthrough = !plain;
    let view = View::serve(device, root, rules, options)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(view);
    Ok(())
}
