//! The exact view of a run: what serves it, from the moment that init hands out the connection.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ringfence_layers::fuse::{Options, Owners, Rules, View};
use ringfence_policy::{ANY_NAME, CompiledRules, Kind, Permission, Places, Policy, Rule};
use ringfence_sys::raw;
use rustix::event::{PollFd, PollFlags, poll};

use crate::plan::{Identity, describe};
use crate::survey::Object;

/// What a view is asked about: the policy, and what was found on this host.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub policy: Arc<Policy>,
    pub places: Places,
    pub extra: Vec<Rule>,
    /// Why nothing cheaper will do.
    pub why: String,
}

impl Wanted {
    /// What the view makes of a path below it: nothing is reached through what is hidden.
    pub fn permission(&self, path: &Path) -> Permission {
        let rules = CompiledRules::with_extra(&self.policy, &self.places, &self.extra);
        let workspace = &self.places.workspace;
        let around = path.ancestors().skip(1).take_while(|a| a.starts_with(workspace));
        let mut hiding = around.filter(|a| *a != workspace);
        if hiding.any(|a| rules.decide(a).permission == Permission::None) {
            return Permission::None;
        }
        let least = if path == workspace { Permission::View } else { Permission::None };
        rules.decide(path).permission.max(least)
    }
}

/// A policy that speaks by ordered rules is held exactly, for names that come later too: why mounts do
/// not do that here. `None` where they do: whole directories that are there, to be read or written. The
/// native rules of a policy without ordered ones are for what exists at the start.
pub(crate) fn needed(
    policy: &Policy,
    rules: &CompiledRules<'_>,
    places: &Places,
) -> Option<String> {
    if policy.files.rules.iter().all(|rule| rule.kind == Kind::Path) {
        return None;
    }
    let workspace = &places.workspace;
    let later = |rule: &Rule| Some(format!("{}: for names that appear later too", describe(rule)));
    let globs = rules.glob_rules();
    let speaks = |base: &Path| base.starts_with(workspace) || workspace.starts_with(base);
    let mut globs = globs.iter().filter(|g| speaks(&g.base));
    if let Some(glob) = globs.clone().find(|g| g.rule.kind != Kind::Path) {
        return later(glob.rule);
    }
    let mut points = rules.literal_points();
    points.extend(rules.subtree_only_globs());
    for point in points.iter().filter(|p| p.rule.kind != Kind::Path) {
        if point.path == *workspace || !point.path.starts_with(workspace) {
            continue;
        }
        if matches!(point.rule.permission, Permission::None | Permission::View) {
            return Some(format!("{}: hidden and listed names", describe(point.rule)));
        }
        let there = std::fs::symlink_metadata(&point.path)
            .is_ok_and(|meta| if point.subtree { meta.is_dir() } else { meta.is_file() });
        if !there {
            return later(point.rule);
        }
    }
    // What no rule names is hidden by default, and so each name of it.
    let root = rules.decide(workspace).permission;
    let inner = rules.decide(&workspace.join(ANY_NAME)).permission;
    if root != inner {
        return Some("names that no rule speaks of are hidden".to_owned());
    }
    // Guards have means of their own for names that do not exist.
    globs.find(|g| !g.rule.is_guard()).and_then(|g| later(g.rule))
}

pub(crate) const DETAIL: &str =
    "the workspace is served through fuse: every operation is decided by its path";
pub(crate) const WHY: &str = "asked for: rules hold for names that appear later, by patterns too";

/// Why no view can be served here, with what helps.
pub fn refusal() -> Option<String> {
    let device = ringfence_sys::fuse::DEVICE.to_string_lossy();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    match rustix::fs::open(&*device, flags, rustix::fs::Mode::empty()) {
        Ok(_) => None,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Some(format!(
            "the exact view needs {device}, which only others may open here\n  remedy: have the \
             administrator run `chmod 0666 {device}`, which is what distributions ship; or run with \
             --layer NAME, which holds rules of names without it"
        )),
        Err(errno) => Some(format!(
            "the exact view needs {device}: {}\n  remedy: have the administrator run `modprobe fuse`; \
             in a container, give it the device; or run with --layer NAME, which holds rules of names \
             without it",
            raw::Errno(errno.raw_os_error())
        )),
    }
}

/// What the command opens in a view, the supervisor has open: as much as it is allowed to, not as much
/// as programs that use `select` are given to begin with.
pub fn room_for_files() {
    if let Ok((soft, hard)) = raw::getrlimit(libc::RLIMIT_NOFILE)
        && soft < hard
    {
        // Refused, fewer files can be open at a time.
        let _ = raw::setrlimit(libc::RLIMIT_NOFILE, hard, hard);
    }
}

/// The two ends that a view needs before the jail is made.
#[derive(Debug)]
pub(crate) struct Channel {
    ours: OwnedFd,
    theirs: OwnedFd,
    /// Its number is that of the connection in init.
    place: OwnedFd,
}

impl Channel {
    pub fn new() -> raw::Result<Self> {
        let (ours, theirs) = raw::seqpacket_owned()?;
        let place = theirs.try_clone().map_err(|_| raw::Errno(libc::EMFILE))?;
        Ok(Self { ours, theirs, place })
    }

    /// Init's end, and the number that the connection gets there.
    pub fn numbers(&self) -> (i32, i32) {
        (self.theirs.as_raw_fd(), self.place.as_raw_fd())
    }
}

/// Reaches the view of a run, as long as there is one.
#[derive(Clone, Debug)]
pub(crate) struct Handle(Arc<Mutex<Option<View>>>);

impl Handle {
    /// The next operation is decided by `wanted`.
    pub fn set(&self, wanted: Wanted, root: PathBuf) -> std::io::Result<()> {
        let view = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(view) = &*view else { return Err(rustix::io::Errno::NOTCONN.into()) };
        let Wanted { policy, places, extra, .. } = wanted;
        view.set_rules(Rules { policy, places, extra, root })
    }
}

/// A view at work. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Serving {
    handle: Handle,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    /// The child of a root caller shares our table of descriptors for a while, and nobody knows how
    /// long.
    _theirs: [OwnedFd; 2],
}

impl Serving {
    pub fn start(
        channel: Channel,
        object: &Object,
        wanted: Wanted,
        identity: Identity,
    ) -> std::io::Result<Self> {
        let Channel { ours, theirs, place } = channel;
        let (stop, stopped) = UnixStream::pair()?;
        let directory = object.open()?;
        let root = object.path.clone();
        let Wanted { policy, places, extra, .. } = wanted;
        let rules = Rules { policy, places, extra, root };
        let options = Options::new(Owners::One {
            uid: identity.inside_uid,
            gid: identity.inside_gid,
            demoted: identity.demoted,
        });
        let handle = Handle(Arc::default());
        let slot = Arc::clone(&handle.0);
        let set = move |view| *slot.lock().unwrap_or_else(PoisonError::into_inner) = view;
        let serve = move || {
            let Some(device) = receive(&ours, &stopped) else { return };
            drop(ours);
            // Without a server the connection ends here, and the command gets errors.
            let Ok(view) = View::serve(device, directory, rules, options) else { return };
            set(Some(view));
            // Readable at the end of the run.
            let mut end = [PollFd::new(&stopped, PollFlags::IN)];
            while poll(&mut end, None) == Err(rustix::io::Errno::INTR) {}
            set(None);
        };
        let thread = std::thread::Builder::new().name("exact-view".into()).spawn(serve)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread), _theirs: [theirs, place] })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

/// The connection, once it is mounted.
fn receive(channel: &OwnedFd, stop: &UnixStream) -> Option<OwnedFd> {
    let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    if !fds[0].revents().contains(PollFlags::IN) {
        return None;
    }
    let mut byte = [0u8; 1];
    raw::recv_owned(channel.as_fd(), &mut byte).ok()?.1
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
