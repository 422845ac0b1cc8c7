//! Operation by operation: find the path, ask the rules, do it by descriptor. Nothing in the tree is
//! trusted to stay as it is: every path is walked from the root without following a link, and what is
//! found must be what the kernel means.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ringfence_policy::{CompiledRules, Permission};
use ringfence_sys::fuse as sys;
use rustix::fs::{
    self, AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    SeekFrom, Statx, StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::nodes::{Identity, Nodes, Place, ROOT, below};
use super::wire::{self, Answer, Attributes, Body, Request, Valid, fattr, fopen, init, op};
use super::{Options, Owners};

/// Bytes of a path handed to the kernel in one call (`PATH_MAX` less the final NUL and some room).
const PATH_CHUNK: usize = 4000;
/// Names of no more bytes are allowed everywhere.
const LONGEST_NAME: usize = 255;
/// How often a walk is begun again when the tree moved under it.
const WALKS: usize = 16;
/// Levels below a directory that is renamed. Deeper trees are refused: a walk must end.
const DEEPEST: usize = 2000;
/// Bytes that one request to copy a range copies at most, so that others get their turn.
const COPY_CHUNK: usize = 64 << 20;
/// Bytes of a directory that are read at once.
const LISTING: usize = 32 * 1024;
/// A walk of the kernel asks for a name and then, to check the mode, for what it was just told. The
/// shortest time that it counts (a clock tick or two) keeps it from that.
const WALK: Duration = Duration::from_millis(1);
/// From this size on a file is worth being read by the kernel itself, which costs more to begin with.
const LARGE: u64 = 256 * 1024;
/// `S_IFDIR`.
const DIRECTORY: u16 = 0o040_000;
/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY: u64 = 0x794c_7630;
/// `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`.
const XATTR_MAX: usize = 64 << 10;
const UTIME_NOW: i64 = (1 << 30) - 1;
const UTIME_OMIT: i64 = (1 << 30) - 2;

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    fd: OwnedFd,
    node: u64,
    /// When it was last decided that it may be used, and as what it was opened.
    decided: AtomicU64,
    write: bool,
    passthrough: bool,
    /// A listing moves the descriptor's position.
    listing: Mutex<()>,
}

impl Handle {
    fn new(fd: OwnedFd, node: u64, write: bool, passthrough: bool) -> Self {
        let decided = AtomicU64::new(u64::MAX);
        Self { fd, node, decided, write, passthrough, listing: Mutex::new(()) }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub nodes: Nodes,
    handles: HashMap<u64, Arc<Handle>>,
    next_handle: u64,
}

/// What outlives the rules.
#[derive(Debug)]
pub(super) struct Shared {
    pub device: OwnedFd,
    root: OwnedFd,
    dev: u64,
    /// The root lies in an overlay.
    overlay: bool,
    owners: Owners,
    /// Of the server, and so of the user.
    groups: Vec<u32>,
    /// How long the kernel may believe a name, and attributes.
    names: Valid,
    attributes: Valid,
    state: Mutex<State>,
    /// Held for writing while names move: a path that was found must stay true until it is used.
    shape: RwLock<()>,
    passthrough: AtomicBool,
    /// Workers are to stop after the request that they are at.
    pub pause: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(device: OwnedFd, root: OwnedFd, options: &Options) -> Result<Self, Errno> {
        let stat = stat(root.as_fd())?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        // What is written there is copied first, and born anew.
        let overlay = fs::fstatfs(&root)?.f_type as u64 == OVERLAY;
        let mut shared = Self {
            device,
            root,
            dev: dev(&stat),
            overlay,
            owners: options.owners,
            groups: rustix::process::getgroups()?
                .into_iter()
                .chain([rustix::process::getegid()])
                .map(Gid::as_raw)
                .collect(),
            names: valid(options.fresh),
            attributes: valid(options.fresh.max(WALK)),
            state: Mutex::new(State {
                nodes: Nodes::default(),
                handles: HashMap::new(),
                next_handle: 1,
            }),
            shape: RwLock::new(()),
            passthrough: AtomicBool::new(options.passthrough),
            pause: AtomicBool::new(false),
        };
        let root = shared.identity(&stat);
        let state = shared.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.nodes = Nodes::new(root);
        Ok(shared)
    }

    fn identity(&self, stat: &Statx) -> Identity {
        let told = !self.overlay && stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Identity {
            dev: dev(stat),
            ino: stat.stx_ino,
            kind: stat.stx_mode & 0o170_000,
            born: if told { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) },
        }
    }

    fn shown(&self, stat: &Statx) -> (u32, u32) {
        // Whoever owns a link means nothing, and every link has every mode.
        let mode = if kind(stat) == FileType::Symlink { 0 } else { stat.stx_mode.into() };
        self.owners.shown(stat.stx_uid, stat.stx_gid, mode, &self.groups)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Whether the kernel believes for a while what it was told.
    pub fn believed(&self) -> bool {
        self.names.seconds > 0 || self.names.nanoseconds > 0
    }
}

fn valid(time: Duration) -> Valid {
    Valid { seconds: time.as_secs(), nanoseconds: time.subsec_nanos() }
}

fn stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    fs::statx(fd, c"", AtFlags::EMPTY_PATH, ASKED)
}

fn stat_at(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    fs::statx(directory, name, flags, ASKED)
}

/// What is asked of everything.
const ASKED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

fn dev(stat: &Statx) -> u64 {
    fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)
}

fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// A path that names what a descriptor holds, for calls that take no descriptor opened by `O_PATH`.
fn by_descriptor(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What one request comes to.
pub(super) enum Done {
    Answer,
    /// The kernel expects none.
    Silence,
    /// The last request.
    End,
}

/// The server with one set of rules.
pub(super) struct Server<'a> {
    pub shared: &'a Shared,
    pub rules: &'a CompiledRules<'a>,
    /// Where the root stands for the rules.
    pub base: &'a Path,
}

type Op = Result<(), Errno>;

impl Server<'_> {
    /// Carries out one request.
    pub fn serve(&self, request: &Request<'_>, answer: &mut Answer) -> (Done, Op) {
        answer.clear();
        let mut body = request.body;
        let node = request.node;
        let done = match request.opcode {
            op::FORGET => {
                if let Ok(times) = body.u64() {
                    self.shared.state().nodes.forget(node, times);
                }
                return (Done::Silence, Ok(()));
            }
            op::BATCH_FORGET => {
                let _ = self.forget_many(body);
                return (Done::Silence, Ok(()));
            }
            op::DESTROY => return (Done::End, Ok(())),
            // Names move, and with them the paths of everything below.
            op::RENAME | op::RENAME2 => {
                let _moving = self.shared.shape.write().unwrap_or_else(PoisonError::into_inner);
                self.rename(node, body, request.opcode == op::RENAME2)
            }
            op::READ => self.read(body, answer),
            op::WRITE => self.write(body, answer),
            op::INIT => self.init(body, answer),
            _ => {
                let _still = self.shared.shape.read().unwrap_or_else(PoisonError::into_inner);
                self.other(request, answer)
            }
        };
        (Done::Answer, done)
    }

    fn other(&self, request: &Request<'_>, answer: &mut Answer) -> Op {
        let (node, body) = (request.node, request.body);
        match request.opcode {
            op::LOOKUP => self.lookup(node, body, answer),
            op::GETATTR => self.getattr(node, answer),
            op::SETATTR => self.setattr(node, body, answer),
            op::READLINK => self.readlink(node, answer),
            op::SYMLINK => self.symlink(request, answer),
            op::MKNOD => self.mknod(request, answer),
            op::MKDIR => self.mkdir(request, answer),
            op::UNLINK => self.remove(node, body, false),
            op::RMDIR => self.remove(node, body, true),
            op::LINK => self.link(node, body, answer),
            op::OPEN => self.open(node, body, answer),
            op::CREATE => self.create(request, answer),
            op::TMPFILE => self.tmpfile(request, answer),
            op::RELEASE | op::RELEASEDIR => self.release(body),
            op::FSYNC | op::FSYNCDIR => self.fsync(body),
            op::OPENDIR => self.opendir(node, answer),
            op::READDIR => self.readdir(body, answer),
            op::STATFS => self.statfs(answer),
            op::SETXATTR => self.setxattr(node, body),
            op::GETXATTR => self.getxattr(node, body, answer),
            op::LISTXATTR => self.listxattr(node, body, answer),
            op::REMOVEXATTR => self.removexattr(node, body),
            op::FALLOCATE => self.fallocate(body),
            op::LSEEK => self.lseek(body, answer),
            op::COPY_FILE_RANGE => self.copy_range(body, answer, false),
            op::COPY_FILE_RANGE_64 => self.copy_range(body, answer, true),
            op::IOCTL => Err(Errno::NOTTY),
            // Locks, access checks and flushes are the kernel's own business then.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&self, mut body: Body<'_>, answer: &mut Answer) -> Op {
        /// Requests that the kernel keeps waiting without a process that waits for them.
        const BACKGROUND: u16 = 64;
        let (major, minor) = (body.u32()?, body.u32()?);
        let (ahead, low) = (body.u32()?, body.u32()?);
        let high = body.u32().unwrap_or(0);
        // Older ones lack what a listing with large offsets or a write of more than a page needs.
        if major != wire::MAJOR || minor < 31 {
            return Err(Errno::PROTO);
        }
        let offered = u64::from(low) | u64::from(high) << 32;
        let mut wanted = init::ASYNC_READ
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2
            | init::INIT_EXT
            | init::DIRECT_IO_ALLOW_MMAP;
        if self.shared.passthrough.load(Ordering::Relaxed) {
            wanted |= init::PASSTHROUGH;
        }
        let agreed = offered & wanted;
        if agreed & init::PASSTHROUGH == 0 {
            self.shared.passthrough.store(false, Ordering::Relaxed);
        }
        answer.u32(wire::MAJOR);
        answer.u32(minor.min(wire::MINOR));
        answer.u32(ahead);
        answer.u32(agreed as u32);
        answer.u16(BACKGROUND);
        answer.u16(BACKGROUND * 3 / 4);
        answer.u32(wire::MOST as u32);
        answer.u32(1);
        answer.u16((wire::MOST / 4096) as u16);
        answer.u16(0);
        answer.u32((agreed >> 32) as u32);
        // The served tree may itself be an overlay.
        answer.u32(if agreed & init::PASSTHROUGH != 0 { 2 } else { 0 });
        answer.put(&[0; 24]);
        Ok(())
    }

    fn forget_many(&self, mut body: Body<'_>) -> Op {
        let count = body.u32()?;
        body.skip(4)?;
        let mut state = self.shared.state();
        for _ in 0..count {
            let (node, times) = (body.u64()?, body.u64()?);
            state.nodes.forget(node, times);
        }
        Ok(())
    }

    // Paths and permissions.

    fn absolute(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.base.to_owned() } else { self.base.join(OsStr::from_bytes(path)) }
    }

    /// What the rules say of a path. Whether it is reachable is another question.
    pub fn judge(&self, path: &[u8]) -> Permission {
        self.rules.decide(&self.absolute(path)).permission
    }

    /// Where a node is, if it still is anywhere and may be known.
    fn place(&self, node: u64) -> Result<Place, Errno> {
        let place = self.shared.state().nodes.place(node, &|path| self.judge(path));
        match place {
            Some(place) if place.permission > Permission::None => Ok(place),
            _ => Err(Errno::NOENT),
        }
    }

    fn place_for(&self, node: u64, least: Permission) -> Result<Place, Errno> {
        let place = self.place(node)?;
        if place.permission < least { Err(Errno::ACCESS) } else { Ok(place) }
    }

    /// Opens what lies at a path, never through a link.
    fn open_path(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut walked: Option<OwnedFd> = None;
        let mut rest = path;
        loop {
            let from = walked.as_ref().map_or(self.shared.root.as_fd(), AsFd::as_fd);
            let (now, later) = match rest.len() {
                0 => (&b"."[..], None),
                n if n <= PATH_CHUNK => (rest, None),
                _ => {
                    let slash = rest[..PATH_CHUNK].iter().rposition(|b| *b == b'/');
                    let slash = slash.ok_or(Errno::NAMETOOLONG)?;
                    (&rest[..slash], Some(&rest[slash + 1..]))
                }
            };
            let with = if later.is_some() { through } else { flags };
            let mut tries = 0;
            let opened = loop {
                match fs::openat2(from, now, with, Mode::empty(), resolve) {
                    // Something was renamed meanwhile.
                    Err(Errno::AGAIN) if tries < WALKS => tries += 1,
                    Err(Errno::INTR) => {}
                    // A link or something else, where the path had a directory.
                    Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => return Err(Errno::NOENT),
                    opened => break opened?,
                }
            };
            match later {
                None => return Ok(opened),
                Some(later) => {
                    walked = Some(opened);
                    rest = later;
                }
            }
        }
    }

    /// What a node stands for; another object at its path by now is not that.
    fn object(&self, place: &Place, flags: OFlags) -> Result<(OwnedFd, Statx), Errno> {
        let fd = self.open_path(&place.path, flags)?;
        let stat = stat(fd.as_fd())?;
        if self.shared.identity(&stat) == place.identity {
            Ok((fd, stat))
        } else {
            Err(Errno::STALE)
        }
    }

    /// Of a directory in whose place another is now. The kernel would only ask again about something
    /// stale; it should, where it believed a name for a while.
    fn replaced(&self) -> Errno {
        if self.shared.believed() { Errno::STALE } else { Errno::NOENT }
    }

    /// A directory that the command may reach, and where it is.
    fn directory(&self, node: u64) -> Result<(OwnedFd, Place), Errno> {
        let place = self.place(node)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.object(&place, flags) {
            Ok((fd, _)) => Ok((fd, place)),
            Err(Errno::STALE) => Err(self.replaced()),
            Err(errno) => Err(errno),
        }
    }

    /// The directory of a name that may be made, removed or moved.
    fn writable_name(
        &self,
        parent: u64,
        name: &OsStr,
        hidden: Errno,
    ) -> Result<(OwnedFd, Vec<u8>), Errno> {
        let (directory, place) = self.directory(parent)?;
        let path = below(&place.path, name);
        match self.judge(&path) {
            Permission::Write => Ok((directory, path)),
            Permission::None => Err(hidden),
            _ => Err(Errno::ACCESS),
        }
    }

    /// A descriptor of what a node stands for, that of an open file where there is one: its name may
    /// be gone.
    fn any_handle(&self, node: u64, write: bool) -> Option<Arc<Handle>> {
        let state = self.shared.state();
        let handles = &state.nodes.get(node)?.handles;
        handles.iter().find(|h| h.write || !write).cloned()
    }

    fn nameless(&self, node: u64) -> bool {
        node != ROOT && self.shared.state().nodes.get(node).is_some_and(|n| n.link.is_none())
    }

    fn handle(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.shared.state().handles.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// An open file, if what it is wanted for is still permitted. A file without a name may be used as
    /// it was opened: no rule speaks of it.
    fn usable(&self, number: u64, least: Permission) -> Result<Arc<Handle>, Errno> {
        let mut state = self.shared.state();
        let handle = state.handles.get(&number).cloned().ok_or(Errno::BADF)?;
        let stamp = state.nodes.epoch() << 2 | least as u64;
        if handle.decided.load(Ordering::Relaxed) == stamp {
            return Ok(handle);
        }
        let nameless = state.nodes.get(handle.node).is_none_or(|n| n.link.is_none());
        if !(nameless && handle.node != ROOT) {
            let place = state.nodes.place(handle.node, &|path| self.judge(path));
            if place.is_some_and(|p| p.permission < least) {
                return Err(Errno::ACCESS);
            }
        }
        handle.decided.store(stamp, Ordering::Relaxed);
        Ok(handle)
    }

    // Attributes.

    /// Pipes and sockets the kernel opens itself, by their mode: it shows no more than the rules allow.
    fn attributes(&self, stat: &Statx, permission: Permission) -> Attributes {
        let asked =
            matches!(kind(stat), FileType::RegularFile | FileType::Directory | FileType::Symlink);
        let withheld = match permission {
            _ if asked => 0,
            Permission::None | Permission::View => 0o777,
            Permission::Read => 0o333,
            Permission::Write => 0,
        };
        let id_dev = dev(stat);
        // One number for one object, also of another file system below the root.
        let ino = if id_dev == self.shared.dev {
            stat.stx_ino
        } else {
            (stat.stx_ino ^ id_dev.rotate_left(40)) | 1 << 63
        };
        let time = |t: rustix::fs::StatxTimestamp| (t.tv_sec, t.tv_nsec);
        let (uid, gid) = self.shared.shown(stat);
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        Attributes {
            ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            times: [time(stat.stx_atime), time(stat.stx_mtime), time(stat.stx_ctime)],
            mode: u32::from(stat.stx_mode) & !withheld,
            links: stat.stx_nlink,
            uid,
            gid,
            device: (minor & 0xff) | major << 8 | (minor & !0xff) << 12,
            block: stat.stx_blksize,
        }
    }

    fn lookup(&self, parent: u64, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let name = body.name()?;
        let place = self.place(parent)?;
        let permission = self.judge(&below(&place.path, name));
        if permission == Permission::None {
            return Err(self.absent(parent, name));
        }
        let (directory, _) = self.directory(parent)?;
        self.meet(parent, name, directory.as_fd(), permission, answer)
    }

    /// What is said of a hidden name: as of one that is not there. How long a name may be, each file system says
    /// for itself.
    fn absent(&self, parent: u64, name: &OsStr) -> Errno {
        let too_long = name.len() > LONGEST_NAME
            && self.directory(parent).is_ok_and(|(directory, _)| {
                stat_at(directory.as_fd(), name).is_err_and(|errno| errno == Errno::NAMETOOLONG)
            });
        if too_long { Errno::NAMETOOLONG } else { Errno::NOENT }
    }

    /// Tells the kernel of what lies at a name.
    fn meet(
        &self,
        parent: u64,
        name: &OsStr,
        directory: BorrowedFd<'_>,
        permission: Permission,
        answer: &mut Answer,
    ) -> Op {
        let stat = stat_at(directory, name)?;
        let is_directory = kind(&stat) == FileType::Directory;
        let mut state = self.shared.state();
        let node =
            state.nodes.met(parent, name, self.shared.identity(&stat), is_directory, permission);
        drop(state);
        let attributes = self.attributes(&stat, permission);
        answer.entry(node, self.shared.names, self.shared.attributes, &attributes);
        Ok(())
    }

    fn getattr(&self, node: u64, answer: &mut Answer) -> Op {
        let (stat, permission) = if let Some(handle) = self.any_handle(node, false) {
            // What is open has attributes though its name be gone, unless that is hidden.
            let place = self.shared.state().nodes.place(node, &|path| self.judge(path));
            if place.is_some_and(|p| p.permission == Permission::None) {
                return Err(Errno::NOENT);
            }
            // A pipe is never open here.
            (stat(handle.fd.as_fd())?, Permission::Write)
        } else {
            let place = self.place(node)?;
            let found = match self.object(&place, OFlags::PATH) {
                Err(Errno::STALE) if place.identity.kind == DIRECTORY => {
                    return Err(self.replaced());
                }
                found => found?.1,
            };
            (found, place.permission)
        };
        answer.attributes_for(self.shared.attributes, &self.attributes(&stat, permission));
        Ok(())
    }

    fn setattr(&self, node: u64, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let valid = body.u32()?;
        body.skip(4)?;
        let (handle, size, _owner) = (body.u64()?, body.u64()?, body.u64()?);
        let (atime, mtime, _ctime) = (body.u64()?, body.u64()?, body.u64()?);
        let (atime_nsec, mtime_nsec, _) = (body.u32()?, body.u32()?, body.u32()?);
        let mode = body.u32()?;
        body.skip(4)?;
        let (uid, gid) = (body.u32()?, body.u32()?);
        let has = |bits: u32| valid & bits != 0;

        let open = if has(fattr::FH) { Some(self.handle(handle)?) } else { None };
        let open = match open {
            Some(open) => Some(open),
            // Through another descriptor, while the name is gone.
            None if self.nameless(node) => {
                Some(self.any_handle(node, has(fattr::SIZE)).ok_or(Errno::NOENT)?)
            }
            None => None,
        };
        let path = if let Some(open) = &open {
            if !self.nameless(open.node) {
                self.place_for(open.node, Permission::Write)?;
            }
            None
        } else {
            let place = self.place_for(node, Permission::Write)?;
            Some((self.object(&place, OFlags::PATH)?.0, place))
        };
        let fd = match (&open, &path) {
            (Some(open), _) => open.fd.as_fd(),
            (None, Some((fd, _))) => fd.as_fd(),
            (None, None) => return Err(Errno::BADF),
        };

        if has(fattr::UID | fattr::GID) {
            let uid = if has(fattr::UID) { Some(self.shared.owners.given_uid(uid)?) } else { None };
            let gid = if has(fattr::GID) { Some(self.shared.owners.given_gid(gid)?) } else { None };
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(fattr::MODE) {
            self.chmod(fd, mode)?;
        }
        if has(fattr::SIZE) {
            match &path {
                Some((_, place)) => {
                    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                    let (writable, _) = self.object(place, flags)?;
                    fs::ftruncate(&writable, size)?;
                }
                None => fs::ftruncate(fd, size)?,
            }
            if has(fattr::KILL_SUIDGID) {
                drop_set_ids(fd)?;
            }
        }
        if has(fattr::ATIME | fattr::MTIME) {
            let time = |set: bool, now: bool, seconds: u64, nanoseconds: u32| Timespec {
                tv_sec: seconds as i64,
                tv_nsec: match (set, now) {
                    (false, _) => UTIME_OMIT,
                    (true, true) => UTIME_NOW,
                    (true, false) => i64::from(nanoseconds),
                },
            };
            let times = Timestamps {
                last_access: time(has(fattr::ATIME), has(fattr::ATIME_NOW), atime, atime_nsec),
                last_modification: time(
                    has(fattr::MTIME),
                    has(fattr::MTIME_NOW),
                    mtime,
                    mtime_nsec,
                ),
            };
            fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        answer.attributes_for(
            self.shared.attributes,
            &self.attributes(&stat(fd)?, Permission::Write),
        );
        Ok(())
    }

    fn chmod(&self, fd: BorrowedFd<'_>, mode: u32) -> Op {
        let stat = stat(fd)?;
        if kind(&stat) == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        self.shared.owners.may_have(mode, kind(&stat))?;
        fs::chmod(by_descriptor(fd), Mode::from_raw_mode(mode & 0o7777))
    }

    fn readlink(&self, node: u64, answer: &mut Answer) -> Op {
        let (fd, _) = self.object(&self.place(node)?, OFlags::PATH)?;
        answer.put(fs::readlinkat(&fd, c"", Vec::new())?.to_bytes());
        Ok(())
    }

    // Names.

    /// After a name was made: its owner, where every id exists, and what the kernel is told.
    fn made(
        &self,
        request: &Request<'_>,
        name: &OsStr,
        directory: BorrowedFd<'_>,
        answer: &mut Answer,
    ) -> Op {
        self.give(request, directory, name)?;
        self.meet(request.node, name, directory, Permission::Write, answer)
    }

    /// With every id there is, what is made belongs to whoever made it.
    fn give(&self, request: &Request<'_>, directory: BorrowedFd<'_>, name: &OsStr) -> Op {
        if self.shared.owners != Owners::Host {
            return Ok(());
        }
        let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
        let before = fs::statx(directory, name, flags, ASKED)?;
        let inherited = !name.is_empty() && stat(directory)?.stx_mode & 0o2000 != 0;
        let gid = (!inherited).then(|| Gid::from_raw(request.gid));
        fs::chownat(directory, name, Some(Uid::from_raw(request.uid)), gid, flags)?;
        // That took the set-id bits away.
        if before.stx_mode & 0o6000 != 0 && kind(&before) == FileType::RegularFile {
            let mode = Mode::from_raw_mode(u32::from(before.stx_mode) & 0o7777);
            fs::chmodat(directory, name, mode, AtFlags::empty())?;
        }
        Ok(())
    }

    fn symlink(&self, request: &Request<'_>, answer: &mut Answer) -> Op {
        let mut body = request.body;
        let (name, target) = (body.name()?, body.text()?);
        let (directory, _) = self.writable_name(request.node, name, Errno::ACCESS)?;
        fs::symlinkat(target, &directory, name)?;
        self.made(request, name, directory.as_fd(), answer)
    }

    fn mknod(&self, request: &Request<'_>, answer: &mut Answer) -> Op {
        let mut body = request.body;
        let (mode, device) = (body.u32()?, body.u32()?);
        body.skip(8)?;
        let name = body.name()?;
        let kind = FileType::from_raw_mode(mode);
        let plain = matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket);
        // A device for the command would be the server's doing.
        if !plain && self.shared.owners != Owners::Host {
            return Err(Errno::PERM);
        }
        self.shared.owners.may_have(mode, kind)?;
        let (directory, _) = self.writable_name(request.node, name, Errno::ACCESS)?;
        let (major, minor) = (device >> 8 & 0xfff, (device & 0xff) | (device >> 12 & 0xfff00));
        let device = if plain { 0 } else { fs::makedev(major, minor) };
        fs::mknodat(&directory, name, kind, Mode::from_raw_mode(mode & 0o7777), device)?;
        self.made(request, name, directory.as_fd(), answer)
    }

    fn mkdir(&self, request: &Request<'_>, answer: &mut Answer) -> Op {
        let mut body = request.body;
        let mode = body.u32()?;
        body.skip(4)?;
        let name = body.name()?;
        let (directory, _) = self.writable_name(request.node, name, Errno::ACCESS)?;
        fs::mkdirat(&directory, name, Mode::from_raw_mode(mode & 0o7777))?;
        self.made(request, name, directory.as_fd(), answer)
    }

    fn remove(&self, parent: u64, mut body: Body<'_>, is_directory: bool) -> Op {
        let name = body.name()?;
        let (directory, _) = self.writable_name(parent, name, Errno::NOENT)?;
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        fs::unlinkat(&directory, name, flags)?;
        let mut state = self.shared.state();
        if let Some(node) = state.nodes.named(parent, name) {
            state.nodes.detach(node);
        }
        Ok(())
    }

    fn rename(&self, parent: u64, mut body: Body<'_>, with_flags: bool) -> Op {
        let new_parent = body.u64()?;
        let mut flags = RenameFlags::empty();
        if with_flags {
            flags = RenameFlags::from_bits_retain(body.u32()?);
            body.skip(4)?;
        }
        let (name, new_name) = (body.name()?, body.name()?);
        let exchange = flags == RenameFlags::EXCHANGE;
        if !(flags.is_empty() || exchange || flags == RenameFlags::NOREPLACE) {
            return Err(Errno::INVAL);
        }
        let missing = if exchange { Errno::NOENT } else { Errno::ACCESS };
        let (from, path) = self.writable_name(parent, name, Errno::NOENT)?;
        let (to, new_path) = self.writable_name(new_parent, new_name, missing)?;
        let moved = stat_at(from.as_fd(), name)?;
        if kind(&moved) == FileType::Directory {
            self.may_move(from.as_fd(), name, &path, &new_path)?;
        }
        if exchange && kind(&stat_at(to.as_fd(), new_name)?) == FileType::Directory {
            self.may_move(to.as_fd(), new_name, &new_path, &path)?;
        }
        fs::renameat_with(&from, name, &to, new_name, flags)?;
        // Two names of one file: the kernel has left both as they are.
        let stayed = !exchange
            && stat_at(from.as_fd(), name)
                .is_ok_and(|s| self.shared.identity(&s) == self.shared.identity(&moved));
        if !stayed {
            let mut state = self.shared.state();
            state.nodes.moved((parent, name), (new_parent, new_name), exchange);
        }
        Ok(())
    }

    /// Whether everything below a directory may be changed where it is and where it would be.
    fn may_move(&self, at: BorrowedFd<'_>, name: &OsStr, path: &[u8], to: &[u8]) -> Op {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Directories that are still to be read, as what to append to either path. A stack of names,
        // not of descriptors: the tree may be deep.
        let root = fs::openat(at, name, flags, Mode::empty())?;
        let mut rest: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
        let mut buffer = Vec::with_capacity(LISTING);
        while let Some((inner, depth)) = rest.pop() {
            if depth > DEEPEST {
                return Err(Errno::ACCESS);
            }
            let fd = if inner.is_empty() {
                root.try_clone().map_err(|_| Errno::MFILE)?
            } else {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                self.open_path(&join(path, &inner), flags)?
            };
            let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let inner = below(&inner, OsStr::from_bytes(name));
                for whole in [join(path, &inner), join(to, &inner)] {
                    if self.judge(&whole) != Permission::Write {
                        return Err(Errno::ACCESS);
                    }
                }
                if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                    rest.push((inner, depth + 1));
                }
            }
        }
        Ok(())
    }

    fn link(&self, parent: u64, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let node = body.u64()?;
        let name = body.name()?;
        let nameless = self.nameless(node);
        let source = if nameless {
            let handle = self.any_handle(node, false).ok_or(Errno::NOENT)?;
            handle.fd.try_clone().map_err(|_| Errno::MFILE)?
        } else {
            self.object(&self.place_for(node, Permission::Write)?, OFlags::PATH)?.0
        };
        let (directory, _) = self.writable_name(parent, name, Errno::ACCESS)?;
        let link = by_descriptor(source.as_fd());
        fs::linkat(fs::CWD, link, &directory, name, AtFlags::SYMLINK_FOLLOW)?;
        if !nameless {
            return self.meet(parent, name, directory.as_fd(), Permission::Write, answer);
        }
        let stat = stat(source.as_fd())?;
        self.shared.state().nodes.adopt(node, parent, name);
        let attributes = self.attributes(&stat, Permission::Write);
        answer.entry(node, self.shared.names, self.shared.attributes, &attributes);
        Ok(())
    }

    // Open files.

    fn keep(&self, handle: Handle) -> (u64, Arc<Handle>) {
        let handle = Arc::new(handle);
        let mut state = self.shared.state();
        let number = state.next_handle;
        state.next_handle += 1;
        state.handles.insert(number, handle.clone());
        if let Some(node) = state.nodes.get_mut(handle.node) {
            node.handles.push(handle.clone());
        }
        (number, handle)
    }

    /// How the kernel treats a file that was opened, and the number of what it reads and writes itself.
    fn treatment(&self, node: u64, fd: BorrowedFd<'_>, stat: &Statx) -> (u32, u32, bool) {
        let flags = fopen::NOFLUSH;
        if self.shared.passthrough.load(Ordering::Relaxed) {
            let mut state = self.shared.state();
            if let Some(known) = state.nodes.get_mut(node) {
                if let Some((id, users)) = &mut known.backing {
                    *users += 1;
                    return (flags | fopen::PASSTHROUGH, *id, true);
                }
                // A file is either read through us or not: all who have it open are treated alike.
                if stat.stx_size >= LARGE
                    && known.handles.is_empty()
                    && let Ok(id) = sys::backing_open(self.shared.device.as_fd(), fd)
                {
                    known.backing = Some((id, 1));
                    return (flags | fopen::PASSTHROUGH, id, true);
                }
            }
        }
        // Under another name the kernel would keep another copy of the content.
        if stat.stx_nlink > 1 {
            return (flags | fopen::DIRECT_IO, 0, false);
        }
        let now = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec, stat.stx_size);
        let mut state = self.shared.state();
        let Some(known) = state.nodes.get_mut(node) else { return (flags, 0, false) };
        let same = known.read_at.replace(now) == Some(now);
        (if same { flags | fopen::KEEP_CACHE } else { flags }, 0, false)
    }

    fn open(&self, node: u64, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let asked = OFlags::from_bits_retain(body.u32()?);
        let write = asked & OFlags::RWMODE != OFlags::RDONLY;
        let least = if write { Permission::Write } else { Permission::Read };
        let flags = (asked & (OFlags::RWMODE | OFlags::SYNC | OFlags::DSYNC))
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        let (fd, stat) = if self.nameless(node) {
            // By way of /proc/self/fd: the file is open elsewhere.
            let other = self.any_handle(node, write).ok_or(Errno::NOENT)?;
            let flags = flags | OFlags::CLOEXEC;
            let fd = fs::open(by_descriptor(other.fd.as_fd()), flags, Mode::empty())?;
            let stat = stat(fd.as_fd())?;
            (fd, stat)
        } else {
            let place = self.place_for(node, least)?;
            self.object(&place, flags)?
        };
        if kind(&stat) != FileType::RegularFile {
            return Err(Errno::STALE);
        }
        let (flags, backing, passthrough) = self.treatment(node, fd.as_fd(), &stat);
        let (number, _) = self.keep(Handle::new(fd, node, write, passthrough));
        answer.opened(number, flags, backing);
        Ok(())
    }

    fn create(&self, request: &Request<'_>, answer: &mut Answer) -> Op {
        let mut body = request.body;
        let (asked, mode) = (OFlags::from_bits_retain(body.u32()?), body.u32()?);
        body.skip(8)?;
        let name = body.name()?;
        self.shared.owners.may_have(mode, FileType::RegularFile)?;
        let (directory, _) = self.writable_name(request.node, name, Errno::ACCESS)?;
        let kept = OFlags::RWMODE | OFlags::EXCL | OFlags::SYNC | OFlags::DSYNC;
        let flags = (asked & kept)
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let existed =
            self.shared.owners == Owners::Host && stat_at(directory.as_fd(), name).is_ok();
        let fd = fs::openat(&directory, name, flags, Mode::from_raw_mode(mode & 0o7777))?;
        if kind(&stat(fd.as_fd())?) != FileType::RegularFile {
            return Err(Errno::EXIST);
        }
        if !existed {
            self.give(request, directory.as_fd(), name)?;
        }
        let stat = stat(fd.as_fd())?;
        let mut state = self.shared.state();
        let id = self.shared.identity(&stat);
        let node = state.nodes.met(request.node, name, id, false, Permission::Write);
        drop(state);
        let attributes = self.attributes(&stat, Permission::Write);
        answer.entry(node, self.shared.names, self.shared.attributes, &attributes);
        let write = asked & OFlags::RWMODE != OFlags::RDONLY;
        let (flags, backing, passthrough) = self.treatment(node, fd.as_fd(), &stat);
        let (number, _) = self.keep(Handle::new(fd, node, write, passthrough));
        answer.opened(number, flags, backing);
        Ok(())
    }

    fn tmpfile(&self, request: &Request<'_>, answer: &mut Answer) -> Op {
        let mut body = request.body;
        let (asked, mode) = (OFlags::from_bits_retain(body.u32()?), body.u32()?);
        self.shared.owners.may_have(mode, FileType::RegularFile)?;
        let place = self.place_for(request.node, Permission::Write)?;
        let (directory, _) = self.object(&place, OFlags::PATH | OFlags::DIRECTORY)?;
        let flags = (asked & (OFlags::RWMODE | OFlags::EXCL | OFlags::SYNC | OFlags::DSYNC))
            | OFlags::TMPFILE
            | OFlags::CLOEXEC;
        let fd = fs::openat(&directory, c".", flags, Mode::from_raw_mode(mode & 0o7777))?;
        self.give(request, fd.as_fd(), OsStr::new(""))?;
        let stat = stat(fd.as_fd())?;
        let node = self.shared.state().nodes.nameless(self.shared.identity(&stat));
        let attributes = self.attributes(&stat, Permission::Write);
        answer.entry(node, self.shared.names, self.shared.attributes, &attributes);
        let (flags, backing, passthrough) = self.treatment(node, fd.as_fd(), &stat);
        let (number, _) = self.keep(Handle::new(fd, node, true, passthrough));
        answer.opened(number, flags, backing);
        Ok(())
    }

    fn release(&self, mut body: Body<'_>) -> Op {
        let number = body.u64()?;
        let mut state = self.shared.state();
        let Some(handle) = state.handles.remove(&number) else { return Ok(()) };
        if handle.passthrough
            && let Some(node) = state.nodes.get_mut(handle.node)
            && let Some((id, users)) = &mut node.backing
        {
            *users -= 1;
            if *users == 0 {
                sys::backing_close(self.shared.device.as_fd(), *id);
                node.backing = None;
            }
        }
        state.nodes.closed(handle.node, &handle);
        Ok(())
    }

    fn read(&self, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let (number, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let handle = self.usable(number, Permission::Read)?;
        let size = (size as usize).min(wire::MOST);
        let mut done = 0;
        while done < size {
            let room = answer.room(size - done);
            match rustix::io::pread(&handle.fd, room, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => {
                    answer.filled(n);
                    done += n;
                }
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn write(&self, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let (number, offset) = (body.u64()?, body.u64()?);
        let (size, flags) = (body.u32()?, body.u32()?);
        body.skip(16)?;
        let data = body.take(size as usize)?;
        let handle = self.usable(number, Permission::Write)?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&handle.fd, &data[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        if flags & wire::WRITE_KILL_SUIDGID != 0 {
            drop_set_ids(handle.fd.as_fd())?;
        }
        answer.u32(done as u32);
        answer.u32(0);
        Ok(())
    }

    fn fsync(&self, mut body: Body<'_>) -> Op {
        const DATA_ONLY: u32 = 1;
        let (number, flags) = (body.u64()?, body.u32()?);
        let handle = self.handle(number)?;
        if flags & DATA_ONLY != 0 { fs::fdatasync(&handle.fd) } else { fs::fsync(&handle.fd) }
    }

    fn fallocate(&self, mut body: Body<'_>) -> Op {
        let (number, offset, length) = (body.u64()?, body.u64()?, body.u64()?);
        let mode = FallocateFlags::from_bits_retain(body.u32()?);
        let handle = self.usable(number, Permission::Write)?;
        fs::fallocate(&handle.fd, mode, offset, length)
    }

    fn lseek(&self, mut body: Body<'_>, answer: &mut Answer) -> Op {
        const DATA: u32 = 3;
        const HOLE: u32 = 4;
        let (number, offset, whence) = (body.u64()?, body.u64()?, body.u32()?);
        let handle = self.usable(number, Permission::Read)?;
        let to = match whence {
            DATA => SeekFrom::Data(offset),
            HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        answer.u64(fs::seek(&handle.fd, to)?);
        Ok(())
    }

    fn copy_range(&self, mut body: Body<'_>, answer: &mut Answer, wide: bool) -> Op {
        let (from, mut from_offset) = (body.u64()?, body.u64()?);
        let (_node, to, mut to_offset) = (body.u64()?, body.u64()?, body.u64()?);
        let length = usize::try_from(body.u64()?).unwrap_or(usize::MAX).min(COPY_CHUNK);
        let from = self.usable(from, Permission::Read)?;
        let to = self.usable(to, Permission::Write)?;
        let (a, b) = (Some(&mut from_offset), Some(&mut to_offset));
        let n = fs::copy_file_range(&from.fd, a, &to.fd, b, length)?;
        if wide {
            answer.u64(n as u64);
        } else {
            answer.u32(n as u32);
            answer.u32(0);
        }
        Ok(())
    }

    // Directories.

    fn opendir(&self, node: u64, answer: &mut Answer) -> Op {
        let place = self.place(node)?;
        let (fd, _) = match self.object(&place, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::STALE) => return Err(self.replaced()),
            opened => opened?,
        };
        let (number, _) = self.keep(Handle::new(fd, node, false, false));
        answer.opened(number, 0, 0);
        Ok(())
    }

    fn readdir(&self, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let (number, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let handle = self.handle(number)?;
        // A directory that was removed is empty, one that was moved away by the host is gone.
        if self.nameless(handle.node) {
            return Ok(());
        }
        let place = self.place(handle.node)?;
        let size = (size as usize).min(wire::MOST);
        let _listing = locked(&handle.listing);
        fs::seek(&handle.fd, SeekFrom::Start(offset))?;
        let dev = dev(&stat(handle.fd.as_fd())?);
        let mut buffer = Vec::with_capacity(LISTING);
        let mut entries = RawDir::new(handle.fd.as_fd(), buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let known = matches!(name, b"." | b"..");
            let path = below(&place.path, OsStr::from_bytes(name));
            if !known && self.judge(&path) == Permission::None {
                continue;
            }
            let ino = if dev == self.shared.dev {
                entry.ino()
            } else {
                (entry.ino() ^ dev.rotate_left(40)) | 1 << 63
            };
            let kind = entry.file_type().as_raw_mode() >> 12;
            if !answer.listed(ino, entry.next_entry_cookie(), kind, name, size) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self, answer: &mut Answer) -> Op {
        let s = fs::fstatvfs(&self.shared.root)?;
        for value in [s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree] {
            answer.u64(value);
        }
        for value in [s.f_bsize, s.f_namemax, s.f_frsize] {
            answer.u32(value as u32);
        }
        answer.put(&[0; 28]);
        Ok(())
    }

    // Extended attributes.

    fn with_attributes(&self, node: u64, least: Permission) -> Result<OwnedFd, Errno> {
        if self.nameless(node) {
            let handle = self.any_handle(node, false).ok_or(Errno::NOENT)?;
            return handle.fd.try_clone().map_err(|_| Errno::MFILE);
        }
        Ok(self.object(&self.place_for(node, least)?, OFlags::PATH)?.0)
    }

    /// What is only listed has none. To change one needs the name space of users: the server may have
    /// rights that the command has not.
    fn getxattr(&self, node: u64, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let size = body.u32()?;
        body.skip(4)?;
        let name = body.text()?;
        let fd = match self.with_attributes(node, Permission::Read) {
            Err(Errno::ACCESS) => return Err(Errno::NODATA),
            fd => fd?,
        };
        let mut value = vec![0u8; XATTR_MAX];
        let n = fs::getxattr(by_descriptor(fd.as_fd()), name, value.as_mut_slice())?;
        answer_sized(&value[..n], size, answer)
    }

    fn listxattr(&self, node: u64, mut body: Body<'_>, answer: &mut Answer) -> Op {
        let size = body.u32()?;
        let fd = match self.with_attributes(node, Permission::Read) {
            Err(Errno::ACCESS) => return answer_sized(&[], size, answer),
            fd => fd?,
        };
        let mut names = vec![0u8; XATTR_MAX];
        let n = fs::listxattr(by_descriptor(fd.as_fd()), names.as_mut_slice())?;
        answer_sized(&names[..n], size, answer)
    }

    fn setxattr(&self, node: u64, mut body: Body<'_>) -> Op {
        let (size, flags) = (body.u32()?, body.u32()?);
        let name = body.text()?;
        let value = body.take(size as usize)?;
        users_own(name)?;
        let fd = self.with_attributes(node, Permission::Write)?;
        let flags = XattrFlags::from_bits_retain(flags);
        fs::setxattr(by_descriptor(fd.as_fd()), name, value, flags)
    }

    fn removexattr(&self, node: u64, mut body: Body<'_>) -> Op {
        let name = body.text()?;
        users_own(name)?;
        let fd = self.with_attributes(node, Permission::Write)?;
        fs::removexattr(by_descriptor(fd.as_fd()), name)
    }
}

/// Attributes that a command may set: what an overlay reads would change the tree for others.
fn users_own(name: &OsStr) -> Op {
    let name = name.as_bytes();
    if !name.starts_with(b"user.") {
        Err(Errno::OPNOTSUPP)
    } else if name.starts_with(b"user.overlay.") {
        Err(Errno::PERM)
    } else {
        Ok(())
    }
}

fn answer_sized(bytes: &[u8], size: u32, answer: &mut Answer) -> Op {
    if size == 0 {
        answer.u32(bytes.len() as u32);
        answer.u32(0);
    } else if bytes.len() > size as usize {
        return Err(Errno::RANGE);
    } else {
        answer.put(bytes);
    }
    Ok(())
}

fn join(path: &[u8], inner: &[u8]) -> Vec<u8> {
    below(path, &OsString::from_vec(inner.to_vec()))
}

/// A write by somebody without the right to keep them takes set-id bits away. The server may have it.
fn drop_set_ids(fd: BorrowedFd<'_>) -> Op {
    const SET_UID: u32 = 0o4000;
    const SET_GID: u32 = 0o2000;
    const GROUP_EXECUTES: u32 = 0o010;
    let mode = u32::from(stat(fd)?.stx_mode) & 0o7777;
    let mut kept = mode & !SET_UID;
    if mode & GROUP_EXECUTES != 0 {
        kept &= !SET_GID;
    }
    if kept == mode { Ok(()) } else { fs::chmod(by_descriptor(fd), Mode::from_raw_mode(kept)) }
}

/// Sends one message to the kernel. An answer to a request that was given up is nobody's loss.
pub(super) fn send(device: BorrowedFd<'_>, message: &[u8]) -> Result<(), Errno> {
    match rustix::io::writev(device, &[IoSlice::new(message)]) {
        Ok(_) | Err(Errno::NOENT | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
