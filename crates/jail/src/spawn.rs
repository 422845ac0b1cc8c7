//! The supervisor's side of making a jail.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use ringfence_sys::early::{self, Early};
use ringfence_sys::egress::{self, Program};
use ringfence_sys::ns::{self, Side};
use ringfence_sys::processors::Processors;
use ringfence_sys::raw::{self, Errno, mnt};
use ringfence_sys::shared::SharedPage;

use crate::broker::Judge;
use crate::child::{self, Line};
use crate::init;
use crate::message;
use crate::moments::{self, Moment, Noted, note};
use crate::spec::{Ids, JailSpec, Parent, Tree};
use crate::stage::{Failure, Stage};

/// A running jail: the supervisor's handle on PID 1.
#[derive(Debug)]
pub struct Jailed {
    pid: i32,
    pidfd: OwnedFd,
    control: OwnedFd,
    page: SharedPage,
    reaped: bool,
    /// See [`message::COPIES`].
    copies: Option<OwnedFd>,
    /// What the child may still use through the descriptor table that it shares until it leaves it;
    /// nobody waits for that moment, so these stay open as long as the jail.
    #[allow(dead_code)] // held, not read
    shared_table: Vec<OwnedFd>,
    /// Reaped with the jail, not on the way to the command's start.
    early: Option<Early>,
    /// What [`JailSpec::egress`] asked for: whoever runs the filter takes it. Closed with the jail,
    /// and then nothing leaves any more.
    pub network: Option<egress::Made>,
}

/// What the new process needs of the supervisor's memory.
pub(crate) struct Birth<'a> {
    pub(crate) spec: &'a JailSpec,
    pub(crate) trees: &'a [i32],
    pub(crate) control: i32,
    pub(crate) supervisor: i32,
    pub(crate) page: &'a ringfence_sys::shared::Page,
    /// The network namespace exists already.
    pub(crate) has_network: bool,
    /// The caller's processors, where another is free for the command's first steps.
    pub(crate) spread: Option<Processors>,
    pub(crate) judge: Option<&'a dyn Judge>,
}

/// The new process's first and last function.
extern "C" fn born(birth: *const libc::c_void) -> ! {
    // SAFETY: `spawn` passes a Birth that lives on its stack while this process is made; here it is
    // read from the copy of that memory.
    let b = unsafe { &*birth.cast::<Birth<'_>>() };
    if b.spec.namespaces & ns::flags::PID == 0 {
        let _ = ringfence_sys::subreaper::become_subreaper();
    }
    note(b.page, Moment::Born);
    match child::enter(b.spec, b.supervisor, b.page) {
        Ok(()) => {
            note(b.page, Moment::Entered);
            init::run(b)
        }
        Err(f) => init::fail_and_exit(b.page, &f),
    }
}

/// Makes the processes. Returns as soon as PID 1 exists; set-up failures show when it ends
/// ([`Jailed::wait`]), because waiting here for the command to start would cost a wake-up.
///
/// `early`: namespaces that were made in advance; used where they fit the plan.
pub fn spawn(
    spec: &JailSpec,
    parent: &Parent<'_>,
    early: Option<Early>,
) -> Result<Jailed, Failure> {
    let fail = |stage: Stage| move |errno: Errno| Failure { stage, index: 0, errno };
    // Held calls that nobody answers would hang.
    if !spec.watch.is_empty() && (parent.judge.is_none() || spec.view.is_none()) {
        return Err(fail(Stage::Broker)(Errno(libc::EINVAL)));
    }
    let resident_fits =
        !spec.stdio.wants_pty() && spec.view.is_some() && spec.namespaces & ns::flags::PID != 0;
    if spec.resident >= 0 && !resident_fits {
        return Err(fail(Stage::Resident)(Errno(libc::EINVAL)));
    }
    let wants = early::MADE | ns::flags::PID;
    let usable = spec.namespaces & wants == wants && spec.loopback;
    let early = early.filter(|e| usable && e.ready());
    let (early, network) = match &spec.egress {
        Some(config) if usable => {
            let (early, made) = filtered(early, config)?;
            (Some(early), Some(made))
        }
        Some(_) => return Err(fail(Stage::Egress)(Errno(libc::EINVAL))),
        None => (early, None),
    };
    let page = SharedPage::new().map_err(fail(Stage::Clone))?;
    let (control, theirs) = raw::seqpacket_owned().map_err(fail(Stage::Clone))?;
    let me = raw::pidfd_open(raw::getpid()).map_err(fail(Stage::Clone))?;
    // SAFETY: just made.
    let me = unsafe { OwnedFd::from_raw_fd(me) };

    let by_parent = spec.ids.filter(|ids| ids.by_parent);
    let mut trees = Vec::with_capacity(parent.trees.len());
    for (i, tree) in parent.trees.iter().enumerate() {
        trees.push(clone_tree(tree).map_err(|errno| Failure {
            stage: Stage::Tree,
            index: i as u32,
            errno,
        })?);
    }
    let numbers: Vec<i32> = trees.iter().map(AsRawFd::as_raw_fd).collect();
    let mut birth = Birth {
        spec,
        trees: &numbers,
        control: theirs.as_raw_fd(),
        supervisor: me.as_raw_fd(),
        page: &page,
        has_network: false,
        spread: match &early {
            Some(early) => early.spread(),
            None => Processors::free(),
        },
        judge: parent.judge,
    };

    if let Some(mut early) = early {
        if let Some(ids) = by_parent {
            give_ids(early.pid(), &ids, &parent.trees, &trees, &page)?;
        }
        birth.has_network = true;
        let flags = spec.namespaces & !early::MADE;
        // SAFETY: `born` makes only raw calls on prepared memory and ends in execve or _exit; `birth`
        // lives until the copy is made.
        let made = unsafe { early.fork(flags, born, (&raw const birth).cast()) };
        let (pid, pidfd) = made.map_err(fail(Stage::Clone))?;
        return Ok(Jailed {
            pid,
            pidfd,
            control,
            page,
            reaped: false,
            copies: None,
            shared_table: Vec::new(),
            early: Some(early),
            network,
        });
    }

    // Signals stay blocked until the child has set its own dispositions, so that one that arrives
    // in between is not lost on a half-made process.
    let mask = raw::block_signals();
    // The network namespace, the slowest to make, is made by the command's process meanwhile.
    let shared = if by_parent.is_some() { ns::flags::FILES } else { 0 };
    let flags = (spec.namespaces & !ns::flags::NET) | shared;
    // SAFETY: the child makes only raw calls on prepared memory and ends in execve or _exit.
    let side = unsafe { ns::clone(flags) };
    let (pid, pidfd) = match side {
        Ok(Side::Child) => born((&raw const birth).cast()),
        Ok(Side::Parent { pid, pidfd }) => (pid, pidfd),
        Err(errno) => {
            raw::set_signal_mask(&mask);
            return Err(fail(Stage::Clone)(errno));
        }
    };
    raw::set_signal_mask(&mask);
    let mut jailed = Jailed {
        pid,
        pidfd,
        control,
        page,
        reaped: false,
        copies: None,
        shared_table: Vec::new(),
        early: None,
        network: None,
    };
    if let Some(ids) = by_parent {
        give_ids(pid, &ids, &parent.trees, &trees, &jailed.page)?;
        trees.push(theirs);
        trees.push(me);
        jailed.shared_table = trees;
    }
    Ok(jailed)
}

/// The network namespace with what the egress filter needs in it. Without all of it there is no jail.
fn filtered(
    early: Option<Early>,
    config: &egress::Config,
) -> Result<(Early, egress::Made), Failure> {
    let mut early = match early {
        Some(early) => early,
        None => Early::start_anyway().map_err(|errno| Failure {
            stage: Stage::Network,
            index: 0,
            errno,
        })?,
    };
    if !early.is_prepared() {
        early.prepare(Program::new(config));
    }
    match early.network() {
        Ok(made) => Ok((early, made)),
        Err(egress::Error { step, errno }) => {
            let stage = match step {
                egress::Step::Namespace => Stage::Network,
                _ => Stage::Egress,
            };
            Err(Failure { stage, index: step as u32, errno })
        }
    }
}

/// Writes the id maps of the user namespace of `pid` and translates the owners of the trees that ask
/// for it, then lets the child go on.
fn give_ids(
    pid: i32,
    ids: &Ids,
    specs: &[Tree],
    trees: &[OwnedFd],
    page: &ringfence_sys::shared::Page,
) -> Result<(), Failure> {
    let fail = |index: u32| move |errno| Failure { stage: Stage::IdMap, index, errno };
    let path =
        |name: &str| std::ffi::CString::new(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let mut line = Line::default();
    let text = line.map(ids.inside_uid, ids.outside_uid);
    raw::write_file(libc::AT_FDCWD, &path("uid_map"), text).map_err(fail(1))?;
    let text = line.map(ids.inside_gid, ids.outside_gid);
    raw::write_file(libc::AT_FDCWD, &path("gid_map"), text).map_err(fail(2))?;
    if specs.iter().any(|t| t.idmap) {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let user = raw::openat(libc::AT_FDCWD, &path("ns/user"), flags, 0).map_err(fail(3))?;
        for (i, (spec, tree)) in specs.iter().zip(trees).enumerate() {
            if !spec.idmap {
                continue;
            }
            let recursive = if spec.recursive { mnt::AT_RECURSIVE } else { 0 };
            let flags = mnt::AT_EMPTY_PATH | recursive;
            let set = mnt::ATTR_IDMAP;
            raw::mount_setattr(tree.as_raw_fd(), c"", flags, set, 0, user)
                .map_err(|errno| Failure { stage: Stage::Tree, index: i as u32, errno })?;
        }
        raw::close(user);
    }
    raw::set_and_wake(&page.go);
    Ok(())
}

fn clone_tree(tree: &Tree) -> raw::Result<OwnedFd> {
    let recursive = if tree.recursive { mnt::AT_RECURSIVE } else { 0 };
    let flags = mnt::OPEN_TREE_CLONE | mnt::OPEN_TREE_CLOEXEC | mnt::AT_EMPTY_PATH | recursive;
    let fd = raw::open_tree(tree.object.as_raw_fd(), c"", flags)?;
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Jailed {
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable when PID 1 has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The control channel; see [`message`].
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Whether `execve` of the command was reached and not (yet) reported as failed.
    pub fn started(&self) -> bool {
        self.page.started.load(Ordering::Acquire) != 0
    }

    /// Where the time of the set-up went, by the processes that did it; nothing unless
    /// [`ringfence_sys::moments::begin`] was called before.
    pub fn steps(&self) -> Vec<Noted> {
        let helper = self.early.as_ref().and_then(Early::moments);
        let helper =
            helper.map(|(start, end)| Noted { name: "namespaces", lane: "helper", start, end });
        helper.into_iter().chain(moments::steps(&self.page)).collect()
    }

    /// Whether every process of the sandbox but its PID 1 has ended, and that is about to.
    pub fn emptied(&self) -> bool {
        self.page.emptied.load(Ordering::Acquire) != 0
    }

    /// What came with [`message::COPIES`], for whom it concerns.
    pub fn keep_copies(&mut self, directory: OwnedFd) {
        self.copies = Some(directory);
    }

    /// The directory of private copies, where the command changed one.
    pub fn take_copies(&mut self) -> Option<OwnedFd> {
        self.copies.take()
    }

    /// Waits until a resident init is ready. An error: it ends, and [`Jailed::wait`] says why.
    pub fn wait_until_ready(&mut self) -> Result<(), Errno> {
        let mut fds = [raw::pollin(self.control.as_raw_fd()), raw::pollin(self.pidfd.as_raw_fd())];
        raw::poll(&mut fds, -1)?;
        let mut message = [0u8; 2];
        match raw::recv_with_fd(self.control.as_raw_fd(), &mut message, libc::MSG_DONTWAIT)? {
            (2, None) if message[0] == crate::message::READY => {
                // It has a table of its own by now.
                self.shared_table.clear();
                // Ended when it had made it.
                self.early = None;
                Ok(())
            }
            (_, fd) => {
                if let Some(fd) = fd {
                    raw::close(fd);
                }
                Err(Errno(libc::EPIPE))
            }
        }
    }

    fn send(&self, kind: u8, value: i32) {
        // A closed channel means that init is gone; the caller sees that at the pidfd.
        let _ = raw::send_with_fd(self.control.as_raw_fd(), &[kind, value as u8], -1);
    }

    /// Signals the command.
    pub fn signal(&self, signal: i32) {
        self.send(message::SIGNAL, signal);
    }

    /// Signals every process of the sandbox but its PID 1.
    pub fn signal_all(&self, signal: i32) {
        self.send(message::SIGNAL_ALL, signal);
    }

    /// Kills PID 1; the kernel kills the rest of the namespace with it.
    pub fn kill(&self) {
        let _ = raw::pidfd_send_signal(self.pidfd.as_raw_fd(), libc::SIGKILL);
    }

    /// Waits for PID 1 to end (every process of the sandbox is gone then) and answers the command's
    /// wait status, as `wait4` gives it.
    pub fn wait(&mut self) -> Result<i32, Failure> {
        let errno_failure = |errno| Failure { stage: Stage::Fork, index: 0, errno };
        let init = if self.reaped {
            0
        } else {
            let (_, status) = raw::wait4(self.pid, 0).map_err(errno_failure)?;
            self.reaped = true;
            status
        };
        let page = &self.page;
        if let Some(stage) = Stage::from_u32(page.failed_stage.load(Ordering::Acquire)) {
            return Err(Failure {
                stage,
                index: page.failed_index.load(Ordering::Relaxed),
                errno: Errno(page.failed_errno.load(Ordering::Relaxed)),
            });
        }
        if page.ended.load(Ordering::Acquire) != 0 {
            return Ok(page.wait_status.load(Ordering::Relaxed));
        }
        // Init itself was killed: by us (timeout), by the kernel (memory), or by an administrator.
        Ok(init)
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = raw::wait4(self.pid, 0);
        }
    }
}
