//! What the cloned child does, as a story: one function per stage, in order.

use std::ffi::CStr;
use std::sync::atomic::Ordering;

use ringfence_sys::raw::{self, Errno, FileId, mnt, resolve};
use ringfence_sys::seccomp::SockFilter;
use ringfence_sys::shared::Page;
use ringfence_sys::{fuse, landlock, ns, overlay};

use crate::moments::{Moment, note};
use crate::spec::{
    self, Copy, Fuse, Ids, JailSpec, Landlock, MASK_DIR, MASK_FILE, Overlay, Rlimit, Source, Step,
    View,
};
use crate::stage::Stage;

/// A failure inside the child, on its way to the shared page.
pub(crate) struct Fail {
    stage: Stage,
    index: u32,
    errno: Errno,
}

impl Fail {
    pub(crate) fn new(stage: Stage, errno: Errno) -> Self {
        Self { stage, index: 0, errno }
    }
}

pub(crate) type Res = Result<(), Fail>;

pub(crate) fn at<T>(stage: Stage, r: raw::Result<T>) -> Result<T, Fail> {
    r.map_err(|errno| Fail { stage, index: 0, errno })
}

pub(crate) fn nth<T>(stage: Stage, index: usize, r: raw::Result<T>) -> Result<T, Fail> {
    r.map_err(|errno| Fail { stage, index: index as u32, errno })
}

pub(crate) fn report(page: &Page, fail: &Fail) {
    page.failed_index.store(fail.index, Ordering::Relaxed);
    page.failed_errno.store(fail.errno.0, Ordering::Relaxed);
    page.failed_stage.store(fail.stage as u32, Ordering::Release);
}

/// First part of PID 1 (or of the plain child on the rung without namespaces): identity and memory.
/// What comes next runs on two processors at once, see [`view`] and [`private`].
pub(crate) fn enter(spec: &JailSpec, supervisor: i32, page: &Page) -> Res {
    die_with_parent(spec)?;
    for (i, fd) in spec.cgroup_procs.iter().enumerate() {
        nth(Stage::Cgroup, i, raw::write(*fd, b"0"))?;
    }
    if let Some(ids) = &spec.ids {
        take_ids(spec, ids, supervisor, page)?;
        // Changing ids cleared it.
        die_with_parent(spec)?;
    }
    // Changing ids cleared this, and init could not join the command's network namespace without it.
    at(Stage::Dumpable, raw::set_dumpable(true))
}

/// What init does while the command's process makes its network namespace: the file view. The host's
/// is still below it, see [`leave_host`].
pub(crate) fn view(spec: &JailSpec, trees: &[i32]) -> Res {
    match &spec.view {
        Some(view) => build_view(view, trees),
        None => Ok(()),
    }
}

/// Takes the host's view away. The kernel waits for all processors there, a tenth of the start, so the
/// command's process goes on meanwhile, up to the last thing before it becomes the command.
pub(crate) fn leave_host(spec: &JailSpec) -> Res {
    if spec.view.is_none() {
        return Ok(());
    }
    at(Stage::Detach, raw::umount2(c".", libc::MNT_DETACH))?;
    at(Stage::Detach, raw::chdir(c"/"))
}

/// What the command's process does while init builds the view: network namespace, limits,
/// capabilities, system call filter. None of it needs the view.
pub(crate) fn private(spec: &JailSpec, page: &Page, has_network: bool) -> Res {
    if network(spec, has_network)? {
        note(page, Moment::Network);
    }
    raw::set_and_wake(&page.net_ready);
    for (i, l) in spec.rlimits.iter().enumerate() {
        nth(Stage::Rlimit, i, lower_rlimit(l))?;
    }
    // Init of a sandbox that stays carries out calls; its commands take the other filter themselves.
    let init = spec.resident >= 0 && !spec.watch.is_empty();
    unprivileged(spec)?;
    note(page, Moment::Limits);
    filter(if init { &spec.init_seccomp } else { &spec.seccomp })?;
    note(page, Moment::Filter);
    Ok(())
}

/// The network namespace, where it was not made before; whether it was made.
pub(crate) fn network(spec: &JailSpec, has_network: bool) -> Result<bool, Fail> {
    if has_network || spec.namespaces & ns::flags::NET == 0 {
        return Ok(false);
    }
    at(Stage::Network, raw::unshare(libc::CLONE_NEWNET))?;
    if spec.loopback {
        at(Stage::Loopback, raw::loopback_up())?;
    }
    Ok(true)
}

/// No capabilities, no way to get any, the filter.
pub(crate) fn harden(spec: &JailSpec, program: &[SockFilter]) -> Res {
    unprivileged(spec)?;
    filter(program)
}

fn unprivileged(spec: &JailSpec) -> Res {
    at(Stage::NoNewPrivs, raw::set_no_new_privs())?;
    if spec.namespaces != 0 {
        at(Stage::Capabilities, raw::drop_capabilities())?;
    } else {
        // Without a user namespace an ordinary caller has none, and the bounding set is not ours
        // to change; `no_new_privs` already keeps an exec from gaining any.
        at(Stage::Capabilities, raw::clear_capability_sets())?;
    }
    Ok(())
}

fn filter(program: &[SockFilter]) -> Res {
    if program.is_empty() { Ok(()) } else { at(Stage::Seccomp, install_filter(program)) }
}

/// The last layer, for which the view must be finished: its rules name objects.
pub(crate) fn landlock(spec: &JailSpec) -> Res {
    match &spec.landlock {
        Some(l) => apply_landlock(l),
        None => Ok(()),
    }
}

/// The thread that made us ends: so do we. A second line of defence; the first is that init watches
/// the supervisor's pidfd, which also covers a supervisor that died before this call.
fn die_with_parent(spec: &JailSpec) -> Res {
    if !spec.die_with_parent {
        return Ok(());
    }
    let kill = libc::SIGKILL as u64;
    at(Stage::ParentDeath, raw::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0)).map(|_| ())
}

fn take_ids(spec: &JailSpec, ids: &Ids, supervisor: i32, page: &Page) -> Res {
    if ids.by_parent {
        while page.go.load(Ordering::Acquire) == 0 {
            raw::futex_wait_for(&page.go, 0, 100);
            if raw::is_dead(supervisor) {
                raw::exit(1);
            }
        }
        // Leaves the supervisor's descriptor table, where it is shared.
        at(Stage::Ids, raw::unshare(libc::CLONE_FILES))?;
        // While it still is the caller's: the device may be root's alone.
        connect(spec)?;
        at(Stage::Ids, raw::setgroups_none())?;
        at(Stage::Ids, raw::setresgid(ids.inside_gid))?;
        return at(Stage::Ids, raw::setresuid(ids.inside_uid));
    }
    let mut line = Line::default();
    nth(Stage::IdMap, 0, raw::write_file(libc::AT_FDCWD, c"/proc/self/setgroups", b"deny"))?;
    let uid = line.map(ids.inside_uid, ids.outside_uid);
    nth(Stage::IdMap, 1, raw::write_file(libc::AT_FDCWD, c"/proc/self/uid_map", uid))?;
    let gid = line.map(ids.inside_gid, ids.outside_gid);
    nth(Stage::IdMap, 2, raw::write_file(libc::AT_FDCWD, c"/proc/self/gid_map", gid))?;
    connect(spec)
}

/// Opens the connection of each FUSE file system of the view. In the descriptor table of init's own.
fn connect(spec: &JailSpec) -> Res {
    for (i, step) in spec.view.iter().flat_map(|view| &view.steps).enumerate() {
        if let Step::Fuse(fuse) = step {
            let device = nth(Stage::Step, i, fuse::open_device())?;
            nth(Stage::Step, i, raw::dup3(device, fuse.device, libc::O_CLOEXEC))?;
            raw::close(device);
        }
    }
    Ok(())
}

/// Formats `inside outside 1` without allocating.
#[derive(Default)]
pub(crate) struct Line {
    bytes: [u8; 32],
}

impl Line {
    pub(crate) fn map(&mut self, inside: u32, outside: u32) -> &[u8] {
        let mut n = self.number(0, inside);
        self.bytes[n] = b' ';
        n = self.number(n + 1, outside);
        self.bytes[n..n + 2].copy_from_slice(b" 1");
        &self.bytes[..n + 2]
    }

    fn number(&mut self, start: usize, value: u32) -> usize {
        let mut digits = [0u8; 10];
        let mut rest = value;
        let mut count = 0;
        loop {
            digits[count] = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        for i in 0..count {
            self.bytes[start + i] = digits[count - 1 - i];
        }
        start + count
    }
}

fn build_view(view: &View, trees: &[i32]) -> Res {
    const NO_SUID_NO_DEV: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;
    // Nothing that is mounted on the host later may appear inside, and the other way round.
    at(
        Stage::Propagation,
        raw::mount_setattr(libc::AT_FDCWD, c"/", mnt::AT_RECURSIVE, 0, libc::MS_PRIVATE, -1),
    )?;
    let private = |options: &CStr| {
        raw::mount(c"ringfence", &view.scaffold, c"tmpfs", NO_SUID_NO_DEV, options)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        raw::openat(libc::AT_FDCWD, &view.scaffold, flags, 0)
    };
    // Under the root: nothing inside sees it, and it goes when the host's root is detached.
    let stage = if view.steps.iter().any(|step| matches!(step, Step::Overlay(_))) {
        at(Stage::Root, private(c"mode=700,size=1m,nr_inodes=8192"))?
    } else {
        -1
    };
    let root = at(Stage::Root, private(&view.root_options))?;
    at(Stage::Root, raw::fchdir(root))?;
    let mut place = Place::new(root, stage, trees);
    for (i, step) in view.steps.iter().enumerate() {
        nth(Stage::Step, i, run_step(step, &mut place))?;
        if !step.leaves_directories() {
            place.directory = None;
        }
    }
    // pivot_root(".", ".") stacks the old root over the new one; detaching "." leaves the new one.
    // From here on "/" is the new one for the command's process, too.
    at(Stage::Pivot, raw::pivot_root(c".", c"."))?;
    raw::close(root);
    if stage >= 0 {
        raw::close(stage);
    }
    Ok(())
}

/// Where the steps are carried out, and what one leaves for the next.
struct Place<'a> {
    root: i32,
    /// Where overlays are put together, see [`Overlay`]; -1 without one.
    stage: i32,
    trees: &'a [i32],
    /// The directory that the last step looked into, with a descriptor once two steps did.
    directory: Option<(&'a [u8], Option<i32>)>,
    /// The first mask for a file and for a directory: what is cloned from a mask in place needs no
    /// attributes set.
    masks: [Option<i32>; 2],
    /// Descriptors above this are closed at once.
    most: i32,
    /// An optional overlay could not be mounted.
    without: bool,
}

impl<'a> Place<'a> {
    fn new(root: i32, stage: i32, trees: &'a [i32]) -> Self {
        /// Left free below the limit.
        const SPARE: i32 = 64;
        /// Descriptors that init may leave open until its view is ready.
        const MOST: u64 = 1024;
        let limit = raw::getrlimit(libc::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft.min(MOST));
        Self {
            root,
            stage,
            trees,
            directory: None,
            masks: [None; 2],
            most: limit as i32 - SPARE,
            without: false,
        }
    }

    fn goes_without(&self, source: &Source) -> bool {
        self.without && matches!(source, Source::Stage(_))
    }

    /// Opens a path of the new view for mounting on it. Names in one directory are looked up from
    /// there, so that many in a deep one cost one walk.
    fn open_inside(&mut self, path: &'a CStr, expect: Option<FileId>) -> raw::Result<i32> {
        let bytes = path.to_bytes();
        let Some(slash) = bytes.iter().rposition(|b| *b == b'/') else {
            return open_inside(self.root, path, expect);
        };
        let (parent, rest) = (&bytes[..slash], &path.to_bytes_with_nul()[slash + 1..]);
        let known = match self.directory {
            Some((known, fd)) if known == parent => match fd {
                Some(fd) => Some(fd),
                None => self.open_directory(parent),
            },
            _ => {
                self.directory = Some((parent, None));
                None
            }
        };
        match (known, CStr::from_bytes_with_nul(rest)) {
            (Some(directory), Ok(name)) => open_inside(directory, name, expect),
            _ => open_inside(self.root, path, expect),
        }
    }

    /// As [`Self::open_inside`], where `lower` says that the object lies below an overlay; `None` where
    /// nothing of it is seen there any more.
    fn open_layered(
        &mut self,
        path: &'a CStr,
        expect: Option<FileId>,
        lower: Option<&CStr>,
    ) -> raw::Result<Option<i32>> {
        let Some(lower) = lower else { return self.open_inside(path, expect).map(Some) };
        match self.open_inside(path, None) {
            Err(Errno(libc::ENOENT)) if self.without => Ok(None),
            Err(Errno(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                // By a change in the layer, and not because the host moved it since it was looked at:
                // then it is shown where nobody knows.
                open_inside(self.stage, lower, expect).map(raw::close)?;
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// `None` where the whole path must be walked.
    fn open_directory(&mut self, parent: &'a [u8]) -> Option<i32> {
        let mut copy = [0u8; libc::PATH_MAX as usize];
        copy.get_mut(..parent.len())?.copy_from_slice(parent);
        let path = CStr::from_bytes_until_nul(&copy).ok()?;
        let fd = open_inside(self.root, path, None).ok()?;
        self.directory = Some((parent, Some(fd)));
        Some(fd)
    }

    /// A new mask for a file or a directory.
    fn mask(&mut self, directory: bool) -> raw::Result<i32> {
        let known = &mut self.masks[usize::from(directory)];
        if let Some(mask) = known {
            return clone_tree(*mask, false);
        }
        let name = if directory { MASK_DIR } else { MASK_FILE };
        let flags = mnt::OPEN_TREE_CLONE | mnt::OPEN_TREE_CLOEXEC;
        let tree = raw::open_tree(self.root, name, flags)?;
        set_attributes(tree, 0, mnt::ATTR_RDONLY | mnt::ATTR_NOEXEC)?;
        // The descriptor goes on naming the mount once that is in its place.
        *known = Some(tree);
        Ok(tree)
    }

    /// Init closes everything before it waits, off the way to the command's start; until then a few
    /// descriptors more do no harm. Many would hit the limit.
    fn close_soon(&self, fd: i32) {
        if fd > self.most && !self.masks.contains(&Some(fd)) {
            raw::close(fd);
        }
    }
}

fn run_step<'a>(step: &'a Step, place: &mut Place<'a>) -> raw::Result<()> {
    let root = place.root;
    match step {
        Step::Dir { path, mode } => match raw::mkdirat(root, path, *mode) {
            Err(Errno(libc::EEXIST)) => Ok(()),
            r => r,
        },
        // The usual case, a place to bind on: one call instead of open and close.
        Step::File { path, mode, content } if content.is_empty() => {
            match raw::mknodat(root, path, libc::S_IFREG | *mode) {
                Err(Errno(libc::EEXIST)) => Ok(()),
                r => r,
            }
        }
        Step::File { path, mode, content } => write_new(root, path, *mode, content),
        Step::Symlink { path, target } => raw::symlinkat(target, root, path),
        Step::Tmpfs { path, options } => {
            raw::mount(c"tmpfs", path, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options)
        }
        Step::Proc { path, writable } => {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            if *writable {
                return raw::mount(c"proc", path, c"proc", flags, c"")
                    .and_then(|()| seal_kernel(place, path));
            }
            raw::mount(c"proc", path, c"proc", flags | libc::MS_RDONLY, c"")
        }
        Step::DevPts { path } => raw::mount(
            c"devpts",
            path,
            c"devpts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            c"newinstance,ptmxmode=0666,mode=620,max=128",
        ),
        Step::Bind { source, path, recursive, attributes } => {
            let tree = match open_tree_of(source, *recursive, place, *attributes) {
                Err(Errno(libc::ENOENT)) if place.goes_without(source) => return Ok(()),
                tree => tree?,
            };
            let r = raw::move_mount(tree, c"", root, path, mnt::MOVE_MOUNT_F_EMPTY_PATH);
            place.close_soon(tree);
            r
        }
        Step::Over { source, path, expect, recursive, attributes } => {
            let target = place.open_inside(path, *expect)?;
            let tree = open_tree_of(source, *recursive, place, *attributes)?;
            let r = attach(tree, target);
            place.close_soon(tree);
            place.close_soon(target);
            r
        }
        Step::Overlay(overlay) => match mount_overlay(place, overlay) {
            Err(_) if overlay.optional => {
                place.without = true;
                Ok(())
            }
            r => r,
        },
        Step::Fuse(fuse) => mount_fuse(place, fuse),
        Step::Rebind { path, expect, attributes, lower } => {
            let Some(target) = place.open_layered(path, *expect, lower.as_deref())? else {
                return Ok(());
            };
            let tree = clone_tree(target, true)?;
            let r = set_attributes(tree, mnt::AT_RECURSIVE, *attributes)
                .and_then(|()| attach(tree, target));
            place.close_soon(tree);
            place.close_soon(target);
            r
        }
        Step::Reopen { path, expect, lower } => {
            let Some(target) = place.open_layered(path, *expect, lower.as_deref())? else {
                return Ok(());
            };
            let tree = clone_tree(target, false)?;
            let r = raw::mount_clear(tree, mnt::ATTR_RDONLY).and_then(|()| attach(tree, target));
            place.close_soon(tree);
            place.close_soon(target);
            r
        }
        Step::Mask { path, expect, directory, lower } => {
            let Some(target) = place.open_layered(path, *expect, lower.as_deref())? else {
                return Ok(());
            };
            let directory = match lower {
                Some(_) => raw::file_id(target)?.is_dir,
                None => *directory,
            };
            let mask = place.mask(directory)?;
            let r = attach(mask, target);
            place.close_soon(mask);
            place.close_soon(target);
            r
        }
        Step::Cover { file, path, expect } => {
            let target = place.open_inside(path, *expect)?;
            let flags = mnt::OPEN_TREE_CLONE | mnt::OPEN_TREE_CLOEXEC;
            let tree = raw::open_tree(root, file, flags)?;
            let r = set_attributes(tree, 0, mnt::ATTR_RDONLY | mnt::ATTR_NOEXEC)
                .and_then(|()| attach(tree, target));
            place.close_soon(tree);
            place.close_soon(target);
            r
        }
        Step::Listen { path, channel } => hand_out_listener(path, *channel),
        Step::Copy(copy) => mount_copy(place, copy),
        Step::ReadOnly { path } => raw::mount_setattr(root, path, 0, mnt::ATTR_RDONLY, 0, -1),
        Step::Remove { path, directory } => {
            raw::unlinkat(root, path, if *directory { libc::AT_REMOVEDIR } else { 0 })
        }
    }
}

/// The current directory is the new root while steps are carried out; a bind knows no other.
fn hand_out_listener(path: &CStr, channel: i32) -> raw::Result<()> {
    /// Connections that wait to be accepted.
    const BACKLOG: i32 = 64;
    let listener = raw::listen_unix(path, 0o600, BACKLOG)?;
    let sent = raw::send_with_fd(channel, &[1], listener);
    raw::close(listener);
    sent
}

fn mount_fuse<'a>(place: &mut Place<'a>, spec: &'a Fuse) -> raw::Result<()> {
    let target = place.open_inside(&spec.path, spec.expect)?;
    let made = fuse::mount(spec.device, &spec.options)?;
    let r = attach(made, target).and_then(|()| raw::send_with_fd(spec.channel, &[1], spec.device));
    place.close_soon(made);
    place.close_soon(target);
    // The supervisor's alone: when it ends, so does the file system.
    raw::close(spec.device);
    r
}

fn write_new(root: i32, path: &CStr, mode: u32, content: &[u8]) -> raw::Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    let fd = raw::openat(root, path, flags, mode)?;
    let mut rest = content;
    while !rest.is_empty() {
        match raw::write(fd, rest) {
            Ok(n) => rest = &rest[n.min(rest.len())..],
            Err(e) => {
                raw::close(fd);
                return Err(e);
            }
        }
    }
    // Now: a mount with a file open for writing cannot be made read-only.
    raw::close(fd);
    Ok(())
}

fn mount_copy<'a>(place: &mut Place<'a>, copy: &'a Copy) -> raw::Result<()> {
    let root = place.root;
    let target = place.open_inside(&copy.path, copy.expect)?;
    let r = raw::mkdirat(root, &copy.directory, 0o700)
        .and_then(|()| write_new(root, &copy.file, copy.mode, &copy.content))
        .and_then(|()| raw::symlinkat(&copy.target, root, &copy.link))
        .and_then(|()| {
            let flags = mnt::OPEN_TREE_CLONE | mnt::OPEN_TREE_CLOEXEC | mnt::AT_SYMLINK_NOFOLLOW;
            raw::open_tree(root, &copy.link, flags)
        })
        .and_then(|tree| {
            let r = attach(tree, target);
            place.close_soon(tree);
            r
        });
    place.close_soon(target);
    r
}

/// The current directory is the stage for a moment: an overlay's parts are named by paths.
fn mount_overlay<'a>(place: &mut Place<'a>, spec: &'a Overlay) -> raw::Result<()> {
    let (root, stage) = (place.root, place.stage);
    for staged in &spec.sources {
        raw::mkdirat(stage, &staged.name, 0o700)?;
        let tree = open_tree_of(&staged.source, false, place, 0)?;
        let flags = mnt::MOVE_MOUNT_F_EMPTY_PATH;
        let moved = raw::move_mount(tree, c"", stage, &staged.name, flags);
        place.close_soon(tree);
        moved?;
    }
    if let (Some(private), Some((upper, work))) = (&spec.private, &spec.upper) {
        raw::mkdirat(stage, &private.name, 0o700)?;
        raw::fchdir(stage)?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        let made = raw::mount(c"tmpfs", &private.name, c"tmpfs", flags, &private.options)
            .and_then(|()| raw::mkdirat(stage, upper, 0o755))
            .and_then(|()| raw::mkdirat(stage, work, 0o700));
        raw::fchdir(root)?;
        made?;
    }
    let mut lower = [c""; overlay::MOST_LOWER];
    let lower = lower.get_mut(..spec.lower.len()).ok_or(Errno(libc::E2BIG))?;
    for (to, from) in lower.iter_mut().zip(&spec.lower) {
        *to = from;
    }
    let upper = spec.upper.as_ref().map(|(upper, work)| (upper.as_c_str(), work.as_c_str()));
    let parts = overlay::Overlay { lower, upper, volatile: true };
    raw::fchdir(stage)?;
    let made = overlay::mount(&parts, spec.attributes);
    raw::fchdir(root)?;
    let tree = made?;
    let attached = match &spec.place {
        spec::Place::Root { path, expect } => place.open_inside(path, *expect).and_then(|target| {
            let r = attach(tree, target);
            place.close_soon(target);
            r
        }),
        spec::Place::Stage(name) => raw::mkdirat(stage, name, 0o700)
            .and_then(|()| raw::move_mount(tree, c"", stage, name, mnt::MOVE_MOUNT_F_EMPTY_PATH)),
    };
    place.close_soon(tree);
    attached
}

/// Whether the command left a copy as it was given. Anything may lie at its name by now.
pub(crate) fn is_as_given(copy: &Copy) -> bool {
    let flags =
        libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    // Relative to the root of the sandbox, where init stands.
    let Ok(fd) = raw::openat(libc::AT_FDCWD, &copy.file, flags, 0) else { return false };
    let mut buffer = [0u8; 2048];
    let mut rest = copy.content.as_slice();
    let same = loop {
        match raw::read(fd, &mut buffer) {
            Ok(0) => break rest.is_empty(),
            Ok(n) => match rest.strip_prefix(&buffer[..n]) {
                Some(after) => rest = after,
                None => break false,
            },
            Err(_) => break false,
        }
    };
    raw::close(fd);
    same
}

/// Opens (or takes) the source tree and sets its attributes.
fn open_tree_of(
    source: &Source,
    recursive: bool,
    place: &Place<'_>,
    attributes: u64,
) -> raw::Result<i32> {
    let tree = match source {
        Source::Tree(i) => place.trees.get(*i).copied().ok_or(Errno(libc::EBADF))?,
        Source::Stage(path) => {
            let object = open_inside(place.stage, path, None)?;
            let tree = clone_tree(object, false);
            raw::close(object);
            tree?
        }
        Source::Path { path, expect } => open_source(path, *expect, recursive)?,
    };
    let flag = if recursive { mnt::AT_RECURSIVE } else { 0 };
    set_attributes(tree, flag, attributes)?;
    Ok(tree)
}

/// What in a process table speaks to the kernel and not to a process.
const KERNEL: [&CStr; 8] =
    [c"sys", c"sysrq-trigger", c"irq", c"bus", c"fs", c"acpi", c"scsi", c"driver"];

/// Makes [`KERNEL`] read-only again in a process table that is not.
fn seal_kernel(place: &mut Place, path: &CStr) -> raw::Result<()> {
    let table = open_inside(place.root, path, None)?;
    for name in KERNEL {
        let target = match open_inside(table, name, None) {
            Err(Errno(libc::ENOENT)) => continue,
            target => target?,
        };
        let tree = clone_tree(target, true)?;
        set_attributes(tree, mnt::AT_RECURSIVE, mnt::ATTR_RDONLY)
            .and_then(|()| attach(tree, target))?;
        place.close_soon(tree);
        place.close_soon(target);
    }
    place.close_soon(table);
    Ok(())
}

fn attach(tree: i32, target: i32) -> raw::Result<()> {
    raw::move_mount(
        tree,
        c"",
        target,
        c"",
        mnt::MOVE_MOUNT_F_EMPTY_PATH | mnt::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

fn set_attributes(tree: i32, recursive: u32, attributes: u64) -> raw::Result<()> {
    if attributes == 0 {
        return Ok(());
    }
    raw::mount_setattr(tree, c"", mnt::AT_EMPTY_PATH | recursive, attributes, 0, -1)
}

fn clone_tree(object: i32, recursive: bool) -> raw::Result<i32> {
    let recursive = if recursive { mnt::AT_RECURSIVE } else { 0 };
    raw::open_tree(
        object,
        c"",
        mnt::OPEN_TREE_CLONE | mnt::OPEN_TREE_CLOEXEC | mnt::AT_EMPTY_PATH | recursive,
    )
}

fn open_source(path: &CStr, expect: Option<FileId>, recursive: bool) -> raw::Result<i32> {
    let Some(expect) = expect else {
        // System directories: nobody but root can change them, so the path is as good as the object.
        let recursive = if recursive { mnt::AT_RECURSIVE } else { 0 };
        let flags = mnt::OPEN_TREE_CLONE | mnt::OPEN_TREE_CLOEXEC | mnt::AT_SYMLINK_NOFOLLOW;
        return raw::open_tree(libc::AT_FDCWD, path, flags | recursive);
    };
    let object = raw::openat2(
        libc::AT_FDCWD,
        path,
        libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        0,
        resolve::NO_SYMLINKS | resolve::NO_MAGICLINKS,
    )?;
    let r = same(object, expect).and_then(|()| clone_tree(object, recursive));
    raw::close(object);
    r
}

/// Opens a path of the new view for mounting on it.
fn open_inside(root: i32, path: &CStr, expect: Option<FileId>) -> raw::Result<i32> {
    let object = raw::openat2(
        root,
        path,
        libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        0,
        resolve::NO_SYMLINKS | resolve::NO_MAGICLINKS | resolve::BENEATH,
    )?;
    if let Some(expect) = expect
        && let Err(e) = same(object, expect)
    {
        raw::close(object);
        return Err(e);
    }
    Ok(object)
}

/// ESTALE: the object is not the one that was decided about.
fn same(object: i32, expect: FileId) -> raw::Result<()> {
    if raw::file_id(object)? == expect { Ok(()) } else { Err(Errno(libc::ESTALE)) }
}

fn lower_rlimit(l: &Rlimit) -> raw::Result<()> {
    // Raising needs a privilege that even root may lack; never ask for it.
    let (_, hard) = raw::getrlimit(l.resource)?;
    let value = l.value.min(hard);
    raw::setrlimit(l.resource, value, value)
}

fn apply_landlock(l: &Landlock) -> Res {
    let ruleset =
        at(Stage::Landlock, landlock::create(l.abi, l.handled_fs, l.handled_net, l.scoped))?;
    for (i, rule) in l.rules.iter().enumerate() {
        match landlock::allow_path(ruleset, l.abi, &rule.path, rule.access & l.handled_fs) {
            Err(Errno(libc::ENOENT)) if rule.optional => {}
            r => nth(Stage::Landlock, i + 1, r)?,
        }
    }
    at(Stage::Landlock, landlock::restrict(ruleset))?;
    raw::close(ruleset);
    Ok(())
}

fn install_filter(program: &[SockFilter]) -> raw::Result<()> {
    use ringfence_sys::seccomp::{Flags, install};
    install(program, Flags::SPEC_ALLOW).map_err(|e| Errno(e.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn id_map_lines_are_what_the_kernel_reads() {
        assert_eq!(Line::default().map(0, 1879048192), b"0 1879048192 1");
        assert_eq!(Line::default().map(1000, 1000), b"1000 1000 1");
        assert_eq!(Line::default().map(u32::MAX, u32::MAX), b"4294967295 4294967295 1");
    }
}
