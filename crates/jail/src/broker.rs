//! Carries out what makes, moves or changes names for the sandbox's processes, where rules speak of
//! names by pattern: such calls are held (`ringfence_sys::seccomp::watch`) until init, PID 1 of the
//! sandbox, has asked the rules and made the call itself. The caller gets the result, a descriptor
//! included.
//!
//! What makes this exact:
//! - Nothing is decided about memory that can change: the path is read once, and that copy is both
//!   judged and used. No held call that anything depends on ever runs as it was made.
//! - Every new name and every rename of the sandbox comes through here, one at a time, so what a path
//!   leads to cannot be changed from inside between the look and the act. Directories are reached by
//!   descriptor, the last name never through a link.
//! - Init has the command's own rights and no more: the same ids, no capabilities, the same Landlock
//!   domain (it confines itself before it forks), the same view. What neither of them may do fails
//!   here as it would there.
//! - `/proc/self` means the caller. Init's own `/proc/1` is out of reach, and nothing in a process
//!   file system is opened but what a link of the caller's leads to.
//! - Files that would make init wait (pipes without a reader, leases) are tried again and again.
//! - If init dies, the kernel ends the sandbox.
//!
//! As all of this crate that runs after the clone: no allocation, no locks, no panics.

mod own;

use std::ffi::CStr;

use ringfence_sys::notify::{self, Held, Status};
use ringfence_sys::raw::{self, Errno, resolve};

use crate::asks::Asks;

/// What rules say of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowed {
    Nothing,
    List,
    Read,
    Write,
}

/// The rules of names. Asked after the clone: must neither allocate, lock nor panic.
pub trait Judge: std::fmt::Debug {
    /// Of a path as the kernel spells it in the sandbox; [`Allowed::Write`] where no rule speaks.
    fn allowed(&self, path: &[u8]) -> Allowed;
    /// Whether rules speak of anything at or below this directory or around it.
    fn covers(&self, path: &[u8]) -> bool;
}

/// Symbolic links followed in one path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Names below a directory that are looked at before it may be renamed; beyond, EXDEV, so that
/// programs copy file by file.
const MAX_MOVED: u32 = 50_000;
/// Levels of the same.
const MAX_LEVELS: u32 = 100;
/// Calls that wait for another process at once.
const MAX_PARKED: usize = 32;
/// How often those are tried again, milliseconds.
pub(crate) const AGAIN_MS: i32 = 5;
/// Longest path with its NUL.
pub(crate) const PATH: usize = libc::PATH_MAX as usize;

type Res<T> = Result<T, Errno>;

/// What became of a held call.
enum Done {
    /// It returns this.
    Value(i64),
    /// It has been answered, or nobody waits for the answer.
    Already,
}

/// A descriptor that is closed at the end of its scope.
struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        raw::close(self.0);
    }
}

/// Bytes with a NUL behind them, on the stack.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn of(bytes: &[u8]) -> Res<Self> {
        let mut text = Self::new();
        text.push(bytes)?;
        Ok(text)
    }

    fn push(&mut self, bytes: &[u8]) -> Res<()> {
        let end = self.len + bytes.len();
        if end >= N {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.bytes[end] = 0;
        self.len = end;
        Ok(())
    }

    fn push_number(&mut self, number: u64) -> Res<()> {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..])
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.bytes[self.len] = 0;
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn c(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[..=self.len]).unwrap_or_default()
    }
}

/// Where a path leads, all but its last name resolved.
struct Place {
    parent: Fd,
    name: Text<256>,
    /// The path ended in a slash.
    slash: bool,
    /// Of what lies there; a link only where links were not to be followed.
    status: Option<Status>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Name,
    /// `.`, `..` or the root: exists, and is never made, moved or removed.
    Dot,
    /// A link of a process file system, which leads to an object and not to a name.
    Magic,
}

impl Place {
    fn is(&self, kind: u32) -> bool {
        self.status.is_some_and(|s| s.kind == kind)
    }
}

/// An open that would have to wait.
struct Parked {
    listener: i32,
    id: u64,
    /// What to open, `O_PATH`; or already open for reading, and its first byte or end awaited.
    object: Fd,
    reading: bool,
    /// A pipe with a name: no such device means that nobody reads.
    pipe: bool,
    flags: i32,
    close_on_exec: bool,
}

pub(crate) struct Broker<'a> {
    /// Where the call that is being carried out came from. A sandbox that stays has one for each command.
    listener: i32,
    judge: &'a dyn Judge,
    /// Who decides once the rules were replaced.
    asks: Asks,
    /// `/proc` and `/`, `O_PATH`.
    proc: Fd,
    root: Fd,
    parked: [Option<Parked>; MAX_PARKED],
    umask: u32,
    /// As it was before any call was carried out.
    first_umask: u32,
    masks: Masks,
}

/// Umasks of threads that were looked up lately. Any change of one forgets all.
struct Masks {
    known: [(u32, u32); 8],
    next: usize,
    /// Nothing is remembered until then (milliseconds of the monotonic clock): a thread that was let
    /// change its mask may not have done so yet.
    not_before: u64,
    /// Thread numbers are used again, but not that soon.
    since: u64,
}

const MASK_SETTLES_MS: u64 = 100;
const MASKS_LAST_MS: u64 = 50;

impl Masks {
    fn forget(&mut self) {
        self.known = [(0, 0); 8];
    }
}

impl<'a> Broker<'a> {
    /// Before init leaves anything behind that this needs: `/proc` of the sandbox is mounted.
    pub(crate) fn new(listener: i32, judge: &'a dyn Judge, asks: Asks) -> Res<Self> {
        let open = |path: &CStr| {
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            raw::openat(libc::AT_FDCWD, path, flags, 0).map(Fd)
        };
        notify::wake_in_place(listener);
        let first_umask = notify::replace_umask(0);
        Ok(Self {
            listener,
            judge,
            asks,
            proc: open(c"/proc")?,
            root: open(c"/")?,
            parked: [const { None }; MAX_PARKED],
            umask: 0,
            first_umask,
            masks: Masks { known: [(0, 0); 8], next: 0, not_before: 0, since: 0 },
        })
    }

    /// How long init may wait for the next event.
    pub(crate) fn patience(&self) -> i32 {
        if self.parked.iter().any(Option::is_some) { AGAIN_MS } else { -1 }
    }

    /// Hears whether the rules were replaced.
    pub(crate) fn hear(&self) {
        self.asks.hear();
    }

    /// From now on calls come from there too.
    pub(crate) fn adopt(listener: i32) {
        notify::wake_in_place(listener);
    }

    /// Every process that it concerned has ended.
    pub(crate) fn dismiss(&mut self, listener: i32) {
        for slot in &mut self.parked {
            if slot.as_ref().is_some_and(|parked| parked.listener == listener) {
                *slot = None;
            }
        }
    }

    /// As [`Self::serve`], of one of several listeners.
    pub(crate) fn serve_at(&mut self, listener: i32) {
        self.listener = listener;
        self.serve();
    }

    /// Answers the next held call. Only when there is one.
    pub(crate) fn serve(&mut self) {
        let Ok(held) = notify::receive(self.listener) else { return };
        match self.carry_out(&held) {
            Ok(Done::Already) => {}
            Ok(Done::Value(value)) => notify::answer(self.listener, held.id, Ok(value)),
            Err(errno) => notify::answer(self.listener, held.id, Err(errno)),
        }
        self.asks.pay();
    }

    /// Tries again what waits.
    pub(crate) fn retry(&mut self) {
        for slot in &mut self.parked {
            let Some(parked) = slot else { continue };
            let done = if notify::is_waiting(parked.listener, parked.id) {
                let path = fd_path(parked.object.0);
                try_parked(parked.listener, self.proc.0, parked, &path)
            } else {
                Some(Ok(()))
            };
            if let Some(result) = done {
                if let Err(errno) = result {
                    notify::answer(parked.listener, parked.id, Err(errno));
                }
                *slot = None;
            }
        }
    }

    fn carry_out(&mut self, held: &Held) -> Res<Done> {
        #[cfg(target_arch = "x86_64")]
        const CWD: i32 = libc::AT_FDCWD;
        let a = &held.args;
        let int = |n: usize| a[n] as i32;
        let long = libc::c_long::from(held.number);
        #[cfg(target_arch = "x86_64")]
        match long {
            libc::SYS_open => return self.open(held, CWD, a[0], int(1), a[2] as u32),
            libc::SYS_creat => {
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
                return self.open(held, CWD, a[0], flags, a[1] as u32);
            }
            libc::SYS_mkdir => return self.mkdir(held, CWD, a[0], a[1] as u32),
            libc::SYS_mknod => return self.mknod(held, CWD, a[0], a[1] as u32),
            libc::SYS_symlink => return self.symlink(held, a[0], CWD, a[1]),
            libc::SYS_link => return self.link(held, (CWD, a[0]), (CWD, a[1]), 0),
            libc::SYS_rename => return self.rename(held, (CWD, a[0]), (CWD, a[1]), 0),
            libc::SYS_unlink => return self.unlink(held, CWD, a[0], 0),
            libc::SYS_rmdir => return self.unlink(held, CWD, a[0], libc::AT_REMOVEDIR),
            libc::SYS_chmod => return self.chmod(held, CWD, a[0], a[1] as u32),
            libc::SYS_chown => return self.chown(held, (CWD, a[0]), (a[1], a[2]), 0),
            libc::SYS_lchown => {
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                return self.chown(held, (CWD, a[0]), (a[1], a[2]), flags);
            }
            libc::SYS_utime => return self.utimes(held, (CWD, a[0]), (a[1], Times::Seconds), 0),
            libc::SYS_utimes => return self.utimes(held, (CWD, a[0]), (a[1], Times::Micros), 0),
            libc::SYS_futimesat => {
                return self.utimes(held, (int(0), a[1]), (a[2], Times::Micros), 0);
            }
            _ => {}
        }
        match long {
            libc::SYS_openat => self.open(held, int(0), a[1], int(2), a[3] as u32),
            libc::SYS_mkdirat => self.mkdir(held, int(0), a[1], a[2] as u32),
            libc::SYS_mknodat => self.mknod(held, int(0), a[1], a[2] as u32),
            libc::SYS_symlinkat => self.symlink(held, a[0], int(1), a[2]),
            libc::SYS_linkat => self.link(held, (int(0), a[1]), (int(2), a[3]), int(4)),
            libc::SYS_renameat => self.rename(held, (int(0), a[1]), (int(2), a[3]), 0),
            libc::SYS_renameat2 => self.rename(held, (int(0), a[1]), (int(2), a[3]), a[4] as u32),
            libc::SYS_bind => self.bind(held, int(0), a[1], a[2] as u32),
            libc::SYS_umask => {
                self.masks.forget();
                self.masks.not_before = now_ms() + MASK_SETTLES_MS;
                // Its argument is a number, and no rule depends on it.
                notify::let_run(self.listener, held.id);
                Ok(Done::Already)
            }
            libc::SYS_unlinkat => self.unlink(held, int(0), a[1], int(2)),
            libc::SYS_truncate => self.truncate(held, a[0], a[1] as i64),
            libc::SYS_fchmodat => self.chmod(held, int(0), a[1], a[2] as u32),
            libc::SYS_fchmod => {
                let object = self.descriptor(held, int(0))?;
                self.may_change(&object)?;
                notify::chmodat(self.proc.0, fd_path(object.0).c(), a[1] as u32).map(nothing)
            }
            libc::SYS_fchownat => self.chown(held, (int(0), a[1]), (a[2], a[3]), int(4)),
            libc::SYS_fchown => {
                let object = self.descriptor(held, int(0))?;
                self.may_change(&object)?;
                let ids = (a[1] as u32, a[2] as u32);
                notify::chownat(self.proc.0, fd_path(object.0).c(), ids, 0).map(nothing)
            }
            libc::SYS_utimensat => self.utimes(held, (int(0), a[1]), (a[2], Times::Nanos), int(3)),
            libc::SYS_setxattr => self.setxattr(held, None, Some((a[0], true))),
            libc::SYS_lsetxattr => self.setxattr(held, None, Some((a[0], false))),
            libc::SYS_fsetxattr => self.setxattr(held, Some(int(0)), None),
            libc::SYS_removexattr => self.removexattr(held, None, Some((a[0], true))),
            libc::SYS_lremovexattr => self.removexattr(held, None, Some((a[0], false))),
            libc::SYS_fremovexattr => self.removexattr(held, Some(int(0)), None),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    // Opens.

    fn open(&mut self, held: &Held, dir: i32, path: u64, flags: i32, mode: u32) -> Res<Done> {
        let create = flags & libc::O_CREAT != 0;
        let alone = create && flags & libc::O_EXCL != 0;
        let nameless = flags & libc::O_TMPFILE == libc::O_TMPFILE;
        let follow = flags & libc::O_NOFOLLOW == 0 && !alone;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
        let place = self.settle(held, dir, path, follow)?;
        if create && place.slash {
            return Err(Errno(libc::EISDIR));
        }
        let own = (flags & !libc::O_CLOEXEC) | libc::O_CLOEXEC | libc::O_NOCTTY;
        if place.what == What::Magic {
            if alone {
                return Err(Errno(libc::EEXIST));
            }
            if !follow {
                return Err(Errno(libc::ELOOP));
            }
            let object = Self::magic(&place)?;
            self.may_open(&object, writes)?;
            let status = notify::status_at(object.0)?;
            let own = own & !(libc::O_CREAT | libc::O_NOFOLLOW);
            return self.open_object(held, object, &status, own, flags);
        }
        if let Some(status) = place.status.filter(|_| !nameless) {
            if alone {
                return Err(Errno(libc::EEXIST));
            }
            if place.what == What::Dot || status.kind == libc::S_IFDIR {
                // Nothing that is held here opens a directory.
                return Err(Errno(if flags & libc::O_DIRECTORY != 0 && create {
                    libc::EINVAL
                } else {
                    libc::EISDIR
                }));
            }
            if status.kind == libc::S_IFLNK {
                return Err(Errno(libc::ELOOP));
            }
            if notify::is_proc(place.parent.0)? {
                return Err(Errno(libc::EACCES));
            }
            let needed = if writes { Allowed::Write } else { Allowed::Read };
            if self.judged(&place)? < needed {
                return Err(Errno(libc::EACCES));
            }
            if status.kind == libc::S_IFREG {
                let own = (own & !libc::O_CREAT) | libc::O_NOFOLLOW | libc::O_NONBLOCK;
                match raw::openat(place.parent.0, place.name.c(), own, 0) {
                    Ok(fd) => {
                        let fd = Fd(fd);
                        if flags & libc::O_NONBLOCK == 0 {
                            notify::make_blocking(fd.0)?;
                        }
                        return self.give(held, &fd, flags);
                    }
                    // Somebody holds a lease.
                    Err(Errno(libc::EWOULDBLOCK)) if flags & libc::O_NONBLOCK == 0 => {}
                    Err(errno) => return Err(errno),
                }
            }
            let reach = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let object = Fd(raw::openat(place.parent.0, place.name.c(), reach, 0)?);
            let own = own & !(libc::O_CREAT | libc::O_NOFOLLOW);
            return self.open_object(held, object, &status, own, flags);
        }
        if nameless {
            self.take_umask(held)?;
            let fd = Fd(raw::openat(place.parent.0, place.name.c(), own, mode & 0o7777)?);
            return self.give(held, &fd, flags);
        }
        if !create {
            return Err(Errno(libc::ENOENT));
        }
        self.may_make(&place)?;
        self.take_umask(held)?;
        let own = own | libc::O_NOFOLLOW;
        let fd = Fd(raw::openat(place.parent.0, place.name.c(), own, mode & 0o7777)?);
        self.give(held, &fd, flags)
    }

    /// Opens what an `O_PATH` descriptor names, without waiting.
    fn open_object(
        &mut self,
        held: &Held,
        object: Fd,
        status: &Status,
        own: i32,
        flags: i32,
    ) -> Res<Done> {
        let waits = flags & libc::O_NONBLOCK == 0;
        let (major, minor) = (libc::major(status.special), libc::minor(status.special));
        let object = match (status.kind, major, minor) {
            // `/dev/tty` is the terminal of whoever opens it.
            (libc::S_IFCHR, 5, 0) => self.terminal(held)?,
            _ => object,
        };
        let mut parked = Parked {
            listener: self.listener,
            id: held.id,
            object,
            reading: false,
            pipe: status.kind == libc::S_IFIFO,
            flags: own,
            close_on_exec: flags & libc::O_CLOEXEC != 0,
        };
        if !waits {
            let fd = Fd(raw::openat(self.proc.0, fd_path(parked.object.0).c(), own, 0)?);
            return self.give(held, &fd, flags);
        }
        if status.kind == libc::S_IFIFO && own & libc::O_ACCMODE == libc::O_RDONLY {
            // A reader that does not wait opens at once; then the first writer is waited for.
            let own = own | libc::O_NONBLOCK;
            let fd = raw::openat(self.proc.0, fd_path(parked.object.0).c(), own, 0)?;
            parked.object = Fd(fd);
            parked.reading = true;
        }
        let path = fd_path(parked.object.0);
        match try_parked(self.listener, self.proc.0, &parked, &path) {
            Some(result) => result.map(|()| Done::Already),
            None => match self.parked.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => {
                    *slot = Some(parked);
                    Ok(Done::Already)
                }
                None => Err(Errno(libc::EAGAIN)),
            },
        }
    }

    fn give(&self, held: &Held, fd: &Fd, flags: i32) -> Res<Done> {
        match notify::hand_over(self.listener, held.id, fd.0, flags & libc::O_CLOEXEC != 0) {
            // Taken back meanwhile.
            Ok(()) | Err(Errno(libc::ENOENT)) => Ok(Done::Already),
            Err(errno) => Err(errno),
        }
    }

    /// The controlling terminal of the caller.
    fn terminal(&self, held: &Held) -> Res<Fd> {
        let mut path = Self::of_thread(held)?;
        path.push(b"stat")?;
        let mut buffer = [0u8; 512];
        let stat = self.read_proc(&path, &mut buffer)?;
        // pid (name) state parent group session terminal; the name may hold anything.
        let after = stat.iter().rposition(|b| *b == b')').unwrap_or(0);
        let number = stat[after..].split(|b| *b == b' ').nth(5).and_then(number);
        let number = number.filter(|n| *n != 0).ok_or(Errno(libc::ENXIO))?;
        let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00));
        if major != 136 {
            return Err(Errno(libc::ENXIO));
        }
        let mut path = Text::<48>::of(b"/dev/pts/")?;
        path.push_number(minor)?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        raw::openat(libc::AT_FDCWD, path.c(), flags, 0).map(Fd)
    }

    // New names.

    fn mkdir(&mut self, held: &Held, dir: i32, path: u64, mode: u32) -> Res<Done> {
        let place = self.settle(held, dir, path, false)?;
        self.may_make(&place)?;
        self.take_umask(held)?;
        raw::mkdirat(place.parent.0, place.name.c(), mode & 0o7777).map(nothing)
    }

    fn mknod(&mut self, held: &Held, dir: i32, path: u64, mode: u32) -> Res<Done> {
        let place = self.settle(held, dir, path, false)?;
        let kind = mode & libc::S_IFMT;
        if kind == libc::S_IFDIR {
            return Err(Errno(libc::EPERM));
        }
        if !matches!(kind, 0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) {
            // Devices; among them the mark that hides names in a layer.
            return Err(Errno(libc::EPERM));
        }
        self.may_make_file(&place)?;
        self.take_umask(held)?;
        notify::mknodat(place.parent.0, place.name.c(), mode).map(nothing)
    }

    fn symlink(&mut self, held: &Held, target: u64, dir: i32, path: u64) -> Res<Done> {
        let target = self.text(held, target)?;
        let place = self.settle(held, dir, path, false)?;
        self.may_make_file(&place)?;
        raw::symlinkat(target.c(), place.parent.0, place.name.c()).map(nothing)
    }

    fn link(&mut self, held: &Held, from: (i32, u64), to: (i32, u64), flags: i32) -> Res<Done> {
        if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let text = self.text(held, from.1)?;
        let follow = flags & libc::AT_SYMLINK_FOLLOW != 0;
        let object = if text.get().is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            let object = self.descriptor(held, from.0)?;
            // Else a privilege is needed.
            if notify::status_at(object.0)?.links != 0 {
                return Err(Errno(libc::ENOENT));
            }
            Some(object)
        } else {
            None
        };
        let place = self.settle(held, to.0, to.1, false)?;
        if let Some(object) = object {
            self.may_make_file(&place)?;
            return self.link_object(&object, &place);
        }
        let source = self.settle_text(held, from.0, text, follow)?;
        if source.what == What::Magic {
            let object = Self::magic(&source)?;
            self.may_make_file(&place)?;
            self.may_change(&object)?;
            return self.link_object(&object, &place);
        }
        let status = source.status.ok_or(Errno(libc::ENOENT))?;
        self.may_make_file(&place)?;
        if source.what == What::Dot || status.kind == libc::S_IFDIR {
            return Err(Errno(libc::EPERM));
        }
        if source.slash {
            return Err(Errno(libc::ENOTDIR));
        }
        // Another name would be another way to change it.
        if self.judged(&source)? < Allowed::Write {
            return Err(Errno(libc::EACCES));
        }
        let (from, to) = (source.parent.0, place.parent.0);
        notify::linkat(from, source.name.c(), to, place.name.c(), 0).map(nothing)
    }

    fn link_object(&self, object: &Fd, place: &Place) -> Res<Done> {
        let from = fd_path(object.0);
        let flags = libc::AT_SYMLINK_FOLLOW;
        notify::linkat(self.proc.0, from.c(), place.parent.0, place.name.c(), flags).map(nothing)
    }

    fn bind(&mut self, held: &Held, socket: i32, address: u64, length: u32) -> Res<Done> {
        const UNIX: usize = 110;
        if socket < 0 {
            return Err(Errno(libc::EBADF));
        }
        if length as usize > 128 {
            return Err(Errno(libc::EINVAL));
        }
        let mut buffer = [0u8; 128];
        let bytes = &mut buffer[..length as usize];
        if notify::read_memory(held.thread, address, bytes)? < bytes.len() {
            return Err(Errno(libc::EFAULT));
        }
        self.still(held)?;
        let process = Fd(raw::pidfd_open(self.process(held)? as i32)?);
        let own = Fd(notify::take_descriptor(process.0, socket)?);
        self.still(held)?;
        let family = bytes.get(..2).map_or(0, |f| i32::from(u16::from_ne_bytes([f[0], f[1]])));
        let path = bytes.get(2..).unwrap_or_default();
        if family != libc::AF_UNIX || path.first().is_none_or(|b| *b == 0) {
            return notify::bind(own.0, bytes).map(nothing);
        }
        if bytes.len() > UNIX {
            return Err(Errno(libc::EINVAL));
        }
        let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
        let path = &path[..end];
        let place = self.settle_text(held, libc::AT_FDCWD, Text::of(path)?, false)?;
        match self.may_make_file(&place) {
            Err(Errno(libc::EEXIST)) => return Err(Errno(libc::EADDRINUSE)),
            r => r?,
        }
        self.take_umask(held)?;
        // The address is what others will be told: it is kept as it was given where the kernel finds
        // the same place by it. Nothing but this broker could change that.
        let plain = !path.split(|b| *b == b'/').any(|part| part == b"proc" || part == b"fd");
        let bound = if plain && path.starts_with(b"/") {
            notify::bind(own.0, bytes)
        } else {
            let from = if plain { self.base(held, libc::AT_FDCWD)? } else { place.parent };
            let short;
            let bytes = if plain {
                &bytes[..]
            } else {
                let mut address = Text::<128>::of(&bytes[..2])?;
                address.push(place.name.get())?;
                short = address;
                short.get()
            };
            notify::enter(from.0)?;
            let bound = notify::bind(own.0, bytes);
            notify::enter(self.root.0)?;
            bound
        };
        bound.map(nothing)
    }

    // Renames.

    fn rename(&mut self, held: &Held, from: (i32, u64), to: (i32, u64), flags: u32) -> Res<Done> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let source = self.settle(held, from.0, from.1, false)?;
        let target = self.settle(held, to.0, to.1, false)?;
        self.rename_places(&source, &target, flags)
    }

    fn rename_places(&self, source: &Place, target: &Place, flags: u32) -> Res<Done> {
        if source.what != What::Name || target.what != What::Name {
            return Err(Errno(libc::EBUSY));
        }
        let status = source.status.ok_or(Errno(libc::ENOENT))?;
        if status.kind != libc::S_IFDIR && (source.slash || target.slash) {
            return Err(Errno(libc::ENOTDIR));
        }
        if flags & libc::RENAME_NOREPLACE != 0 && target.status.is_some() {
            return Err(Errno(libc::EEXIST));
        }
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        if exchange && target.status.is_none() {
            return Err(Errno(libc::ENOENT));
        }
        let (mut here, mut there) = (self.path(source)?, self.path(target)?);
        for path in [&here, &there] {
            if self.says(path.get()) < Allowed::Write {
                return Err(Errno(libc::EACCES));
            }
        }
        let devices = notify::status_at(source.parent.0)?.device
            == notify::status_at(target.parent.0)?.device;
        if !devices {
            return Err(Errno(libc::EXDEV));
        }
        // Onto itself: nothing moves, whatever lies below.
        let same =
            target.status.is_some_and(|t| (t.device, t.inode) == (status.device, status.inode));
        if !same && (self.judge.covers(here.get()) || self.judge.covers(there.get())) {
            let mut left = MAX_MOVED;
            if status.kind == libc::S_IFDIR {
                self.may_move(source, &mut here, &mut there, &mut left)?;
            }
            if exchange && target.is(libc::S_IFDIR) {
                self.may_move(target, &mut there, &mut here, &mut left)?;
            }
        }
        let (from, to) = (source.parent.0, target.parent.0);
        notify::renameat2(from, source.name.c(), to, target.name.c(), flags).map(nothing)
    }

    /// Whether all below a directory may be removed there and made anew at its new place.
    fn may_move(
        &self,
        place: &Place,
        from: &mut Text<PATH>,
        to: &mut Text<PATH>,
        left: &mut u32,
    ) -> Res<()> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let dir = Fd(raw::openat(place.parent.0, place.name.c(), flags, 0)?);
        self.may_move_content(&dir, from, to, left, 0)
    }

    fn may_move_content(
        &self,
        dir: &Fd,
        from: &mut Text<PATH>,
        to: &mut Text<PATH>,
        left: &mut u32,
        level: u32,
    ) -> Res<()> {
        /// `struct linux_dirent64`: number, offset, length of the entry, type, name.
        const NAME: usize = 19;
        if level == MAX_LEVELS {
            return Err(Errno(libc::EXDEV));
        }
        let (here, there) = (from.len, to.len);
        let mut buffer = [0u8; 2048];
        loop {
            let filled = notify::list(dir.0, &mut buffer)?;
            if filled == 0 {
                return Ok(());
            }
            let mut rest = &buffer[..filled];
            while rest.len() > NAME {
                let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
                if length <= NAME || length > rest.len() {
                    return Err(Errno(libc::EIO));
                }
                let (entry, after) = rest.split_at(length);
                rest = after;
                let name = &entry[NAME..];
                let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
                let name = &name[..end];
                if name == b"." || name == b".." {
                    continue;
                }
                *left = left.checked_sub(1).ok_or(Errno(libc::EXDEV))?;
                for text in [&mut *from, &mut *to] {
                    text.push(b"/")?;
                    text.push(name)?;
                    if self.says(text.get()) < Allowed::Write {
                        return Err(Errno(libc::EACCES));
                    }
                }
                if matches!(entry[18], libc::DT_DIR | libc::DT_UNKNOWN) {
                    let name = Text::<256>::of(name)?;
                    let flags =
                        libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
                    match raw::openat(dir.0, name.c(), flags, 0) {
                        Ok(fd) => self.may_move_content(&Fd(fd), from, to, left, level + 1)?,
                        Err(Errno(libc::ENOTDIR | libc::ELOOP | libc::ENOENT)) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                from.truncate(here);
                to.truncate(there);
            }
        }
    }

    // Changes.

    fn unlink(&mut self, held: &Held, dir: i32, path: u64, flags: i32) -> Res<Done> {
        let place = self.settle(held, dir, path, false)?;
        if place.what == What::Name {
            let status = place.status.ok_or(Errno(libc::ENOENT))?;
            if self.judged(&place)? < Allowed::Write {
                return Err(Errno(libc::EACCES));
            }
            if place.slash && flags & libc::AT_REMOVEDIR == 0 {
                let directory = status.kind == libc::S_IFDIR;
                return Err(Errno(if directory { libc::EISDIR } else { libc::ENOTDIR }));
            }
        }
        raw::unlinkat(place.parent.0, place.name.c(), flags).map(nothing)
    }

    fn truncate(&mut self, held: &Held, path: u64, length: i64) -> Res<Done> {
        let (object, _) = self.object(held, libc::AT_FDCWD, path, true)?;
        match notify::status_at(object.0)?.kind {
            libc::S_IFDIR => return Err(Errno(libc::EISDIR)),
            libc::S_IFREG => {}
            _ => return Err(Errno(libc::EINVAL)),
        }
        self.may_change(&object)?;
        if length < 0 {
            return Err(Errno(libc::EINVAL));
        }
        if length as u64 > notify::file_size_limit(held.thread)? {
            return Err(Errno(libc::EFBIG));
        }
        let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let fd = Fd(raw::openat(self.proc.0, fd_path(object.0).c(), flags, 0)?);
        notify::ftruncate(fd.0, length).map(nothing)
    }

    fn chmod(&mut self, held: &Held, dir: i32, path: u64, mode: u32) -> Res<Done> {
        let (object, _) = self.object(held, dir, path, true)?;
        self.may_change(&object)?;
        notify::chmodat(self.proc.0, fd_path(object.0).c(), mode & 0o7777).map(nothing)
    }

    fn chown(&mut self, held: &Held, at: (i32, u64), ids: (u64, u64), flags: i32) -> Res<Done> {
        let ids = (ids.0 as u32, ids.1 as u32);
        if flags & libc::AT_EMPTY_PATH != 0 && self.text(held, at.1)?.get().is_empty() {
            let object = self.descriptor(held, at.0)?;
            self.may_change(&object)?;
            return notify::chownat(self.proc.0, fd_path(object.0).c(), ids, 0).map(nothing);
        }
        let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
        let (object, place) = self.object(held, at.0, at.1, follow)?;
        self.may_change(&object)?;
        match place {
            Some(place) if place.is(libc::S_IFLNK) => {
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                notify::chownat(place.parent.0, place.name.c(), ids, flags).map(nothing)
            }
            _ => notify::chownat(self.proc.0, fd_path(object.0).c(), ids, 0).map(nothing),
        }
    }

    fn utimes(
        &mut self,
        held: &Held,
        at: (i32, u64),
        times: (u64, Times),
        flags: i32,
    ) -> Res<Done> {
        let read = Self::times(held, times)?;
        if at.1 == 0 {
            let object = self.descriptor(held, at.0)?;
            self.may_change(&object)?;
            return notify::utimensat(self.proc.0, fd_path(object.0).c(), read.as_ref(), 0)
                .map(nothing);
        }
        let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
        let (object, place) = self.object(held, at.0, at.1, follow)?;
        self.may_change(&object)?;
        match place {
            Some(place) if place.is(libc::S_IFLNK) => {
                let flags = libc::AT_SYMLINK_NOFOLLOW;
                notify::utimensat(place.parent.0, place.name.c(), read.as_ref(), flags).map(nothing)
            }
            _ => {
                notify::utimensat(self.proc.0, fd_path(object.0).c(), read.as_ref(), 0).map(nothing)
            }
        }
    }

    fn times(held: &Held, times: (u64, Times)) -> Res<Option<[libc::timespec; 2]>> {
        let (address, form) = times;
        if address == 0 {
            return Ok(None);
        }
        let mut buffer = [0u8; 32];
        let length = if form == Times::Seconds { 16 } else { 32 };
        if notify::read_memory(held.thread, address, &mut buffer[..length])? < length {
            return Err(Errno(libc::EFAULT));
        }
        let mut words = [0i64; 4];
        for (word, bytes) in words.iter_mut().zip(buffer.chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = i64::from_ne_bytes(eight);
        }
        let time = |seconds: i64, rest: i64| libc::timespec { tv_sec: seconds, tv_nsec: rest };
        if form == Times::Micros && [words[1], words[3]].iter().any(|n| !(0..1_000_000).contains(n))
        {
            return Err(Errno(libc::EINVAL));
        }
        Ok(Some(match form {
            Times::Seconds => [time(words[0], 0), time(words[1], 0)],
            Times::Micros => [time(words[0], words[1] * 1000), time(words[2], words[3] * 1000)],
            Times::Nanos => [time(words[0], words[1]), time(words[2], words[3])],
        }))
    }

    fn setxattr(&mut self, held: &Held, fd: Option<i32>, path: Option<(u64, bool)>) -> Res<Done> {
        const MOST: usize = 65_536;
        let object = self.attributed(held, fd, path)?;
        let name = self.text(held, held.args[1])?;
        let length = held.args[3] as usize;
        if length > MOST {
            return Err(Errno(libc::E2BIG));
        }
        // Nothing can be allocated here, and init's stack has room.
        #[allow(clippy::large_stack_arrays)]
        let mut buffer = [0u8; MOST];
        let value = &mut buffer[..length];
        if length > 0 && notify::read_memory(held.thread, held.args[2], value)? < length {
            return Err(Errno(libc::EFAULT));
        }
        self.still(held)?;
        self.may_change(&object)?;
        let path = absolute_fd_path(object.0);
        notify::setxattr(path.c(), name.c(), value, held.args[4] as i32, true).map(nothing)
    }

    fn removexattr(
        &mut self,
        held: &Held,
        fd: Option<i32>,
        path: Option<(u64, bool)>,
    ) -> Res<Done> {
        let object = self.attributed(held, fd, path)?;
        let name = self.text(held, held.args[1])?;
        self.may_change(&object)?;
        notify::removexattr(absolute_fd_path(object.0).c(), name.c(), true).map(nothing)
    }

    /// What attributes are to be changed of; never a link, which has none that users may set.
    fn attributed(&self, held: &Held, fd: Option<i32>, path: Option<(u64, bool)>) -> Res<Fd> {
        match (fd, path) {
            (Some(fd), _) => self.descriptor(held, fd),
            (None, Some((path, follow))) => {
                let (object, place) = self.object(held, libc::AT_FDCWD, path, follow)?;
                match place {
                    Some(place) if place.is(libc::S_IFLNK) => Err(Errno(libc::EPERM)),
                    _ => Ok(object),
                }
            }
            (None, None) => Err(Errno(libc::EINVAL)),
        }
    }

    /// An existing object, `O_PATH`, and where it lies.
    fn object(&self, held: &Held, dir: i32, path: u64, follow: bool) -> Res<(Fd, Option<Place>)> {
        let place = self.settle(held, dir, path, follow)?;
        if place.what == What::Magic {
            return Ok((Self::magic(&place)?, None));
        }
        if place.slash && !place.is(libc::S_IFDIR) && place.what == What::Name {
            let missing = place.status.is_none();
            return Err(Errno(if missing { libc::ENOENT } else { libc::ENOTDIR }));
        }
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let fd = Fd(raw::openat(place.parent.0, place.name.c(), flags, 0)?);
        Ok((fd, Some(place)))
    }

    // Rules.

    /// The path of a place as the kernel spells it.
    fn path(&self, place: &Place) -> Res<Text<PATH>> {
        let mut path = self.path_of(&place.parent)?;
        if path.get() != b"/" {
            path.push(b"/")?;
        }
        path.push(place.name.get())?;
        Ok(path)
    }

    fn path_of(&self, fd: &Fd) -> Res<Text<PATH>> {
        let mut path = Text::<PATH>::new();
        path.len = notify::read_link(self.proc.0, fd_path(fd.0).c(), &mut path.bytes)?;
        path.bytes[path.len] = 0;
        Ok(path)
    }

    /// The rules as they are now.
    fn says(&self, path: &[u8]) -> Allowed {
        self.asks.allowed(path).unwrap_or_else(|| self.judge.allowed(path))
    }

    fn judged(&self, place: &Place) -> Res<Allowed> {
        Ok(self.says(self.path(place)?.get()))
    }

    /// A new name. What exists is said first, since `mkdir -p` and others rely on it.
    fn may_make(&self, place: &Place) -> Res<()> {
        if place.what != What::Name || place.status.is_some() {
            return Err(Errno(libc::EEXIST));
        }
        if self.judged(place)? < Allowed::Write {
            return Err(Errno(libc::EACCES));
        }
        Ok(())
    }

    /// As [`Self::may_make`], of what is no directory.
    fn may_make_file(&self, place: &Place) -> Res<()> {
        self.may_make(place)?;
        if place.slash { Err(Errno(libc::ENOENT)) } else { Ok(()) }
    }

    /// An object that was reached through a descriptor. One without a name is in nobody's tree, and
    /// what is no file has no path.
    fn allowed(&self, object: &Fd) -> Res<Allowed> {
        let status = notify::status_at(object.0)?;
        if status.links == 0 && status.kind != libc::S_IFDIR {
            return Ok(Allowed::Write);
        }
        if notify::is_proc(object.0)? {
            return Err(Errno(libc::EACCES));
        }
        let path = self.path_of(object)?;
        Ok(if path.get().starts_with(b"/") { self.says(path.get()) } else { Allowed::Write })
    }

    fn may_open(&self, object: &Fd, writes: bool) -> Res<()> {
        let needed = if writes { Allowed::Write } else { Allowed::Read };
        if self.allowed(object)? < needed { Err(Errno(libc::EACCES)) } else { Ok(()) }
    }

    fn may_change(&self, object: &Fd) -> Res<()> {
        self.may_open(object, true)
    }

    // Callers.

    /// The caller is still who called: what was read of it was the caller's.
    fn still(&self, held: &Held) -> Res<()> {
        if notify::is_waiting(self.listener, held.id) { Ok(()) } else { Err(Errno(libc::ESRCH)) }
    }

    /// A string in the caller's memory.
    fn text(&self, held: &Held, address: u64) -> Res<Text<PATH>> {
        const FIRST: usize = 256;
        let mut text = Text::<PATH>::new();
        let mut have = 0;
        for wanted in [FIRST, PATH] {
            let more = &mut text.bytes[have..wanted];
            let asked = more.len();
            let n = notify::read_memory(held.thread, address.wrapping_add(have as u64), more)?;
            let n = n.min(asked);
            if let Some(end) = text.bytes[have..have + n].iter().position(|b| *b == 0) {
                text.len = have + end;
                self.still(held)?;
                return Ok(text);
            }
            have += n;
            if n < asked {
                return Err(Errno(libc::EFAULT));
            }
        }
        Err(Errno(libc::ENAMETOOLONG))
    }

    /// `TID/` below `/proc`.
    fn of_thread(held: &Held) -> Res<Text<48>> {
        let mut path = Text::new();
        path.push_number(u64::from(held.thread))?;
        path.push(b"/")?;
        Ok(path)
    }

    /// What a directory descriptor of the caller, or its working directory, is.
    fn base(&self, held: &Held, dir: i32) -> Res<Fd> {
        let mut path = Self::of_thread(held)?;
        let missing = if dir == libc::AT_FDCWD {
            path.push(b"cwd")?;
            libc::ENOENT
        } else if dir < 0 {
            return Err(Errno(libc::EBADF));
        } else {
            path.push(b"fd/")?;
            path.push_number(dir as u64)?;
            libc::EBADF
        };
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let fd = match raw::openat(self.proc.0, path.c(), flags, 0) {
            Err(Errno(libc::ENOENT)) => return Err(Errno(missing)),
            r => Fd(r?),
        };
        self.still(held)?;
        Ok(fd)
    }

    /// What a descriptor of the caller names.
    fn descriptor(&self, held: &Held, number: i32) -> Res<Fd> {
        if number < 0 {
            return Err(Errno(libc::EBADF));
        }
        let mut path = Self::of_thread(held)?;
        path.push(b"fd/")?;
        path.push_number(number as u64)?;
        match raw::openat(self.proc.0, path.c(), libc::O_PATH | libc::O_CLOEXEC, 0) {
            Err(Errno(libc::ENOENT)) => Err(Errno(libc::EBADF)),
            r => {
                let fd = Fd(r?);
                self.still(held)?;
                Ok(fd)
            }
        }
    }

    fn read_proc<'b>(&self, path: &Text<48>, buffer: &'b mut [u8]) -> Res<&'b [u8]> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let fd = Fd(raw::openat(self.proc.0, path.c(), flags, 0)?);
        let n = raw::read(fd.0, buffer)?;
        Ok(&buffer[..n.min(buffer.len())])
    }

    /// A line of the caller's `status`.
    fn status_line(&self, held: &Held, name: &[u8], octal: bool) -> Res<u64> {
        let mut path = Self::of_thread(held)?;
        path.push(b"status")?;
        let mut buffer = [0u8; 1024];
        let text = self.read_proc(&path, &mut buffer)?;
        let line = text.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(name));
        let value = line.map(<[u8]>::trim_ascii).and_then(|digits| {
            if octal {
                digits.iter().try_fold(0u64, |sum, d| {
                    (b'0'..=b'7').contains(d).then(|| sum * 8 + u64::from(d - b'0'))
                })
            } else {
                number(digits)
            }
        });
        value.ok_or(Errno(libc::ESRCH))
    }

    /// The caller's process.
    fn process(&self, held: &Held) -> Res<u64> {
        let process = self.status_line(held, b"Tgid:", false)?;
        self.still(held)?;
        Ok(process)
    }

    /// Makes names as the caller would.
    fn take_umask(&mut self, held: &Held) -> Res<()> {
        let now = now_ms();
        if now.saturating_sub(self.masks.since) > MASKS_LAST_MS {
            self.masks.forget();
            self.masks.since = now;
        }
        let known = self.masks.known.iter().find(|(thread, _)| *thread == held.thread);
        let mask = if let Some((_, mask)) = known {
            *mask
        } else {
            let mask = self.status_line(held, b"Umask:", true)? as u32;
            self.still(held)?;
            if now >= self.masks.not_before {
                self.masks.known[self.masks.next] = (held.thread, mask);
                self.masks.next = (self.masks.next + 1) % self.masks.known.len();
            }
            mask
        };
        if self.umask != mask {
            notify::umask(mask);
            self.umask = mask;
        }
        Ok(())
    }

    // Paths.

    fn settle(&self, held: &Held, dir: i32, path: u64, follow: bool) -> Res<Place> {
        let text = self.text(held, path)?;
        self.settle_text(held, dir, text, follow)
    }

    /// Resolves all but the last name, and that too while it is a link that is to be followed.
    fn settle_text(&self, held: &Held, dir: i32, mut text: Text<PATH>, follow: bool) -> Res<Place> {
        let mut slash = false;
        let mut base: Option<Fd> = None;
        for _ in 0..=MAX_LINKS {
            let whole = text.get();
            let Some(first) = whole.first() else { return Err(Errno(libc::ENOENT)) };
            let absolute = *first == b'/';
            let end = whole.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
            slash |= end < whole.len();
            let path = &whole[..end];
            let cut = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            let (above, name) = path.split_at(cut);
            if base.is_none() && !absolute {
                base = Some(self.base(held, dir)?);
            }
            let from = match &base {
                Some(base) if !absolute => base.0,
                _ => self.root.0,
            };
            let parent = self.directory(held, from, above)?;
            if name.is_empty() || name == b"." || name == b".." {
                let name = Text::of(if name.is_empty() { b"." } else { name })?;
                let status = Some(notify::status_of(parent.0, name.c())?);
                return Ok(Place { parent, name, slash, status, what: What::Dot });
            }
            if name.len() > 255 {
                return Err(Errno(libc::ENAMETOOLONG));
            }
            let name = Text::<256>::of(name)?;
            let mut place = Place { parent, name, slash, status: None, what: What::Name };
            match notify::status_of(place.parent.0, place.name.c()) {
                Ok(status) => place.status = Some(status),
                Err(Errno(libc::ENOENT)) => return Ok(place),
                Err(errno) => return Err(errno),
            }
            if !place.is(libc::S_IFLNK) || !(follow || slash) {
                return Ok(place);
            }
            if notify::is_proc(place.parent.0)? {
                place.what = What::Magic;
                return Ok(place);
            }
            let mut target = Text::<PATH>::new();
            target.len = notify::read_link(place.parent.0, place.name.c(), &mut target.bytes)?;
            target.bytes[target.len] = 0;
            text = target;
            base = Some(place.parent);
        }
        Err(Errno(libc::ELOOP))
    }

    /// What a link of a process file system leads to.
    fn magic(place: &Place) -> Res<Fd> {
        const ROOT: u64 = 1;
        // `/proc/self` and the like are links by name.
        if notify::status_at(place.parent.0)?.inode == ROOT {
            return Err(Errno(libc::EACCES));
        }
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        raw::openat(place.parent.0, place.name.c(), flags, 0).map(Fd)
    }

    /// A directory, as the caller would reach it. `from` is where a relative path begins.
    fn directory(&self, held: &Held, from: i32, path: &[u8]) -> Res<Fd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let text = Text::<PATH>::of(if path.is_empty() { b"." } else { path })?;
        match raw::openat2(from, text.c(), flags, 0, resolve::NO_MAGICLINKS) {
            Ok(fd) => {
                let fd = Fd(fd);
                // `/proc/self` was init's on the way there.
                if notify::is_proc(fd.0)? { self.by_component(held, from, text) } else { Ok(fd) }
            }
            Err(Errno(libc::ELOOP)) => self.by_component(held, from, text),
            Err(errno) => Err(errno),
        }
    }

    /// As the kernel walks, with the caller's `/proc/self`.
    fn by_component(&self, held: &Held, from: i32, mut rest: Text<PATH>) -> Res<Fd> {
        const ROOT: u64 = 1;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let start = if rest.get().starts_with(b"/") { self.root.0 } else { from };
        let mut at = Fd(raw::openat(start, c".", flags, 0)?);
        let mut links = 0;
        loop {
            let path = rest.get();
            let Some(begin) = path.iter().position(|b| *b != b'/') else { return Ok(at) };
            let path = &path[begin..];
            let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
            let (name, after) = path.split_at(end);
            let after = Text::<PATH>::of(after)?;
            if name == b"." {
                rest = after;
                continue;
            }
            if name.len() > 255 {
                return Err(Errno(libc::ENAMETOOLONG));
            }
            let mut name = Text::<256>::of(name)?;
            let in_proc = notify::is_proc(at.0)?;
            let top = in_proc && notify::status_at(at.0)?.inode == ROOT;
            if top {
                match name.get() {
                    b"self" => {
                        name = Text::new();
                        name.push_number(self.process(held)?)?;
                    }
                    b"thread-self" => {
                        let mut longer = Text::<PATH>::new();
                        longer.push_number(self.process(held)?)?;
                        longer.push(b"/task/")?;
                        longer.push_number(u64::from(held.thread))?;
                        longer.push(after.get())?;
                        rest = longer;
                        continue;
                    }
                    _ => {}
                }
                // Init's own: nobody else may look in there, but init may.
                if name.get() == b"1" {
                    return Err(Errno(libc::EACCES));
                }
            }
            let step = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let next = Fd(raw::openat(at.0, name.c(), step, 0)?);
            match notify::status_at(next.0)?.kind {
                libc::S_IFDIR => {
                    at = next;
                    rest = after;
                }
                libc::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno(libc::ELOOP));
                    }
                    if in_proc && !top {
                        at = Fd(raw::openat(at.0, name.c(), flags, 0)?);
                        rest = after;
                        continue;
                    }
                    let mut target = Text::<PATH>::new();
                    target.len = notify::read_link(at.0, name.c(), &mut target.bytes)?;
                    target.bytes[target.len] = 0;
                    if target.get().starts_with(b"/") {
                        at = Fd(raw::openat(self.root.0, c".", flags, 0)?);
                    }
                    // What is left grows with each link. The kernel keeps it in pieces, and ends such walks by
                    // their number of links: one that leads through itself gets the same answer here.
                    target.push(after.get()).map_err(|_| Errno(libc::ELOOP))?;
                    rest = target;
                }
                _ => return Err(Errno(libc::ENOTDIR)),
            }
        }
    }
}

/// How a call gives times.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // older calls than that have
enum Times {
    Seconds,
    Micros,
    Nanos,
}

fn nothing((): ()) -> Done {
    Done::Value(0)
}

/// `self/fd/N`, below `/proc`.
fn fd_path(fd: i32) -> Text<48> {
    let mut path = Text::new();
    // Cannot be too long.
    let _ = path.push(b"self/fd/").and_then(|()| path.push_number(fd as u64));
    path
}

fn absolute_fd_path(fd: i32) -> Text<48> {
    let mut path = Text::new();
    let _ = path.push(b"/proc/self/fd/").and_then(|()| path.push_number(fd as u64));
    path
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, d| {
        d.is_ascii_digit().then(|| sum.wrapping_mul(10).wrapping_add(u64::from(d - b'0')))
    })
}

fn now_ms() -> u64 {
    raw::monotonic_ms()
}

/// Opens without waiting and hands over; `None`: it would have to wait.
fn try_parked(listener: i32, proc: i32, parked: &Parked, path: &Text<48>) -> Option<Res<()>> {
    let opened;
    let fd = if parked.reading {
        let mut fds = [raw::pollin(parked.object.0)];
        // Data, or a writer that has come and gone.
        if !matches!(raw::poll(&mut fds, 0), Ok(n) if n > 0) {
            return None;
        }
        parked.object.0
    } else {
        match raw::openat(proc, path.c(), parked.flags | libc::O_NONBLOCK, 0) {
            Ok(fd) => {
                opened = Fd(fd);
                opened.0
            }
            Err(Errno(libc::ENXIO)) if parked.pipe => return None,
            // A lease.
            Err(Errno(libc::EWOULDBLOCK)) => return None,
            Err(errno) => return Some(Err(errno)),
        }
    };
    if let Err(errno) = notify::make_blocking(fd) {
        return Some(Err(errno));
    }
    match notify::hand_over(listener, parked.id, fd, parked.close_on_exec) {
        Ok(()) | Err(Errno(libc::ENOENT)) => Some(Ok(())),
        Err(errno) => Some(Err(errno)),
    }
}
