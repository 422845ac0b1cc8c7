//! The exact view: a directory served through FUSE with the permission that the rules give each path,
//! decided again at each operation. `docs/layers.md`, "Exact view", says what each permission means.
//!
//! ```text
//! command -> kernel -> /dev/fuse -> worker: path -> rules -> openat2 beneath the root, by descriptor
//! ```
//!
//! The server knows nothing of mounts: it is given a directory and a connection, whoever made them. The
//! directory may be the real tree or the merged one of an overlay.

mod nodes;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ringfence_policy::{CompiledRules, Permission, Places, Policy, Rule};
use ringfence_sys::fuse as sys;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use serve::{Done, Server, Shared, send};
use wire::{Answer, REQUEST, Request};

/// What decides.
#[derive(Clone, Debug)]
pub struct Rules {
    pub policy: Arc<Policy>,
    pub places: Places,
    /// Rules that were found on this host.
    pub extra: Vec<Rule>,
    /// Where the served directory stands for the rules, absolute.
    pub root: PathBuf,
}

/// Whose the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Every id means what it means on the host: a mount in the initial user namespace.
    Host,
    /// There is one user. Files of that owner are the user's, all others nobody's.
    One {
        uid: u32,
        gid: u32,
        /// The server may do more than the user: what it makes never runs as its owner.
        demoted: bool,
    },
}

impl Owners {
    /// The owner as the user sees it. The kernel lets nobody write what belongs to an id that the user's
    /// namespace does not know; so the group of the user's own files is the user's, and so is the owner
    /// of what the user may write as one of a group or as anybody. What that comes to is checked where
    /// it is done, with the server's rights, which are the user's.
    fn shown(self, uid: u32, gid: u32, mode: u32, groups: &[u32]) -> (u32, u32) {
        const NOBODY: u32 = u32::MAX;
        let Self::One { uid: user, gid: group, demoted } = self else { return (uid, gid) };
        let class = if groups.contains(&gid) { 0o020 } else { 0o002 };
        let owned = uid == user || !demoted && mode & class != 0;
        match (owned, gid == group) {
            (true, _) => (user, group),
            (false, true) => (NOBODY, gid),
            (false, false) => (NOBODY, NOBODY),
        }
    }

    fn given_uid(self, uid: u32) -> Result<u32, Errno> {
        match self {
            Self::One { uid: user, .. } if uid != user => Err(Errno::PERM),
            _ => Ok(uid),
        }
    }

    fn given_gid(self, gid: u32) -> Result<u32, Errno> {
        match self {
            Self::One { gid: group, .. } if gid != group => Err(Errno::PERM),
            _ => Ok(gid),
        }
    }

    fn may_have(self, mode: u32, kind: FileType) -> Result<(), Errno> {
        match self {
            Self::One { demoted: true, .. }
                if mode & 0o6000 != 0 && kind != FileType::Directory =>
            {
                Err(Errno::PERM)
            }
            _ => Ok(()),
        }
    }
}

/// How a view is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub owners: Owners,
    /// How long the kernel may believe that a name is there and has these attributes. Zero is exact also
    /// for what the host removes or renames. Whether a file may be opened, listed or changed is asked
    /// each time in any case.
    pub fresh: Duration,
    /// Let the kernel read and write open files itself where it will; it does so for a server with
    /// CAP_SYS_ADMIN in the initial namespace.
    pub passthrough: bool,
    pub workers: usize,
}

impl Options {
    pub fn new(owners: Owners) -> Self {
        /// More than one, so that a slow `fsync` keeps nobody waiting.
        const MOST_WORKERS: usize = 4;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            owners,
            fresh: Duration::ZERO,
            passthrough: true,
            workers: processors.clamp(2, MOST_WORKERS),
        }
    }
}

/// A view at work. Dropped, it ends, and whoever still uses it gets ENOTCONN.
#[derive(Debug)]
pub struct View {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    /// Workers stop while it can be read.
    bell: Arc<OwnedFd>,
    keeper: Option<JoinHandle<()>>,
}

enum Order {
    /// Answered with what the kernel must forget.
    Rules(Box<Rules>, Sender<Vec<Vec<u8>>>),
    End,
}

impl View {
    /// Serves `root` on `device`, which was opened and mounted by whoever uses it.
    pub fn serve(
        device: OwnedFd,
        root: OwnedFd,
        rules: Rules,
        options: Options,
    ) -> std::io::Result<Self> {
        let flags = fcntl_getfl(&device)?;
        fcntl_setfl(&device, flags | OFlags::NONBLOCK)?;
        let shared = Arc::new(Shared::new(device, root, &options)?);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = channel();
        let keeper = {
            let (shared, bell) = (shared.clone(), bell.clone());
            let keep = move || keep(&shared, &bell, &inbox, rules, options.workers.max(1));
            std::thread::Builder::new().name("view".into()).spawn(keep)?
        };
        Ok(Self { shared, orders, bell, keeper: Some(keeper) })
    }

    /// Replaces the rules. The next operation is decided by the new ones; of what may no longer be read
    /// the kernel has forgotten the content when this returns.
    pub fn set_rules(&self, rules: Rules) -> std::io::Result<()> {
        let ended = || std::io::Error::from(Errno::NOTCONN);
        let (answer, forget) = channel();
        self.orders.send(Order::Rules(Box::new(rules), answer)).map_err(|_| ended())?;
        self.ring();
        for message in forget.recv().map_err(|_| ended())? {
            match send(self.shared.device.as_fd(), &message) {
                // The kernel has forgotten it by itself.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::BUSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn ring(&self) {
        self.shared.pause.store(true, Ordering::Release);
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        self.ring();
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Keeps workers at work, with one set of rules after another. The rules are borrowed by what is
/// compiled from them, so workers begin anew with each set.
fn keep(shared: &Shared, bell: &OwnedFd, inbox: &Receiver<Order>, first: Rules, workers: usize) {
    let mut rules = first;
    let mut told: Option<Sender<Vec<Vec<u8>>>> = None;
    loop {
        let Rules { policy, places, extra, root } = &rules;
        let compiled = CompiledRules::with_extra(policy, places, extra);
        let server = Server { shared, rules: &compiled, base: root };
        if let Some(told) = told.take() {
            let _ = told.send(to_forget(&server));
        }
        let over = std::thread::scope(|scope| {
            let hands: Vec<_> = (0..workers)
                .filter_map(|n| {
                    let name = format!("view-{n}");
                    let work = || work(&server, bell);
                    std::thread::Builder::new().name(name).spawn_scoped(scope, work).ok()
                })
                .collect();
            // Without a single worker nothing would ever answer: end, so that users get an error.
            hands.is_empty() | hands.into_iter().any(|hand| hand.join().unwrap_or(true))
        });
        // In this order: an order that is given from here on is either seen below or rings again.
        shared.pause.store(false, Ordering::Release);
        let mut count = [0u8; 8];
        let _ = rustix::io::read(bell, &mut count);
        if over {
            return;
        }
        match inbox.try_recv() {
            Ok(Order::Rules(new, answer)) => {
                rules = *new;
                told = Some(answer);
                shared.state().nodes.expire();
            }
            Err(TryRecvError::Empty) => {}
            Ok(Order::End) | Err(TryRecvError::Disconnected) => return,
        }
    }
}

/// What the kernel must forget under new rules: content of files that may no longer be read, and names
/// where it believes them for a while.
fn to_forget(server: &Server<'_>) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut state = server.shared.state();
    for id in state.nodes.ids() {
        let place = state.nodes.place(id, &|path| server.judge(path));
        let Some(node) = state.nodes.get(id) else { continue };
        let readable = place.is_some_and(|p| p.permission >= Permission::Read);
        if !node.directory && !readable && node.link.is_some() {
            messages.push(wire::forget_content(id));
        }
        if server.shared.believed()
            && let Some((parent, name)) = &node.link
        {
            messages.push(wire::forget_name(*parent, name));
        }
    }
    messages
}

/// Serves until the bell rings (false) or the connection ends (true).
fn work(server: &Server<'_>, bell: &OwnedFd) -> bool {
    // What is created gets the mode that was asked for. A server that cannot do that would narrow it.
    let _ = sys::no_umask();
    let device = &server.shared.device;
    let mut request = vec![0u8; REQUEST];
    let mut answer = Answer::new();
    loop {
        // Not only while nothing is asked: there may always be something.
        if server.shared.pause.load(Ordering::Acquire) {
            return false;
        }
        let n = match rustix::io::read(device, request.as_mut_slice()) {
            Ok(n) => n,
            Err(Errno::AGAIN) => {
                let mut both =
                    [PollFd::new(device, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
                match poll(&mut both, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(_) => return true,
                }
                if !both[1].revents().is_empty() {
                    return false;
                }
                continue;
            }
            // A request that was interrupted before it was read.
            Err(Errno::INTR | Errno::NOENT) => continue,
            // ENODEV: unmounted, nobody will ask again.
            Err(_) => return true,
        };
        let Ok(parsed) = Request::parse(&request[..n]) else { return true };
        let (done, result) = server.serve(&parsed, &mut answer);
        if matches!(done, Done::Silence) {
            continue;
        }
        let message = answer.finish(parsed.unique, result);
        if send(device.as_fd(), message).is_err() || matches!(done, Done::End) {
            return true;
        }
    }
}
