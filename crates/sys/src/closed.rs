//! What its mode closes even to its owner, reached without touching the mode.
//!
//! A helper in a user namespace of its own, in which nobody but the caller exists, has the right to
//! pass over mode bits (`CAP_DAC_OVERRIDE`) for what is the caller's user's and group's and for nothing
//! else. It shares the caller's table of descriptors: what it opens, the caller has. So nothing is
//! changed that a kill could leave changed. It is started when it is first needed, one for a thread,
//! and ends with it.
//!
//! Where there is no such namespace every call answers `EACCES`, as the plain call did.

use std::cell::RefCell;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::ns::{self, Side};
use crate::raw;

/// The longest path of one call, its NUL included.
const MAX_PATH: usize = 4096;
/// The kernel's limit of an attribute's value.
const MAX_VALUE: usize = 64 << 10;
/// The kernel's limit of an attribute's name, its NUL included.
const MAX_KEY: usize = 256;

/// `openat2` in or beneath `dir`.
pub fn open(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let call = Call {
        what: OPEN,
        dir: dir.as_raw_fd(),
        flags: u64::from(flags.bits()),
        resolve: resolve.bits(),
    };
    let (answer, _) = ask(call, path, b"")?;
    let number = i32::try_from(answer).map_err(|_| Errno::IO)?;
    // SAFETY: the helper opened it in the table of descriptors that is ours too, and forgot it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The value of an extended attribute of what `path` leads to.
pub fn attribute(path: &CStr, key: &OsStr) -> Result<Vec<u8>, Errno> {
    let call = Call { what: ATTRIBUTE, dir: libc::AT_FDCWD, flags: 0, resolve: 0 };
    ask(call, path.to_bytes(), key.as_bytes()).map(|(_, value)| value)
}

/// Takes a name out of a directory that its mode closes.
pub fn unlink(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
    let call =
        Call { what: UNLINK, dir: dir.as_raw_fd(), flags: u64::from(flags.bits()), resolve: 0 };
    ask(call, name.as_bytes(), b"").map(|_| ())
}

const OPEN: u32 = 1;
const ATTRIBUTE: u32 = 2;
const UNLINK: u32 = 3;

#[derive(Clone, Copy)]
struct Call {
    what: u32,
    dir: i32,
    flags: u64,
    resolve: u64,
}

/// What was answered, and the bytes that come with it.
type Answer = Result<(i64, Vec<u8>), Errno>;

/// Bytes of an answer before a value.
const ANSWER: usize = 8;
/// Bytes of a call before its path: what, descriptor, flags, resolution, length of the path.
const HEAD: usize = 4 + 4 + 8 + 8 + 4;

thread_local! {
    static HELPER: RefCell<Option<Helper>> = const { RefCell::new(None) };
}

fn ask(call: Call, path: &[u8], key: &[u8]) -> Result<(i64, Vec<u8>), Errno> {
    if path.len() >= MAX_PATH || key.len() >= MAX_KEY {
        return Err(Errno::NAMETOOLONG);
    }
    if path.contains(&0) || key.contains(&0) {
        return Err(Errno::INVAL);
    }
    HELPER.with_borrow_mut(|held| {
        // The helper of a process that we were forked from answers that one.
        if held.as_ref().is_some_and(|h| h.owner != std::process::id()) {
            std::mem::forget(held.take());
        }
        let helper = match held {
            Some(helper) => helper,
            None => held.insert(Helper::start().map_err(|_| Errno::ACCESS)?),
        };
        helper.ask(call, path, key).unwrap_or_else(|_| {
            // Somebody ended it.
            *held = None;
            Err(Errno::ACCESS)
        })
    })
}

struct Helper {
    socket: OwnedFd,
    /// The helper's end: in the one table that both use.
    _theirs: OwnedFd,
    pidfd: OwnedFd,
    owner: u32,
}

impl Helper {
    fn start() -> Result<Self, Errno> {
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let mut maps = ([0; 32], [0; 32]);
        let maps = (line(&mut maps.0, uid.as_raw()), line(&mut maps.1, gid.as_raw()));
        let parent = raw::getpid();
        // No handler of ours runs in the helper, and no signal of a terminal ends it before us.
        let mask = block_all();
        // SAFETY: the child does nothing but system calls on its own stack, and ends in `_exit`.
        let side = unsafe { ns::clone(ns::flags::USER | ns::flags::FILES) };
        if matches!(side, Ok(Side::Child)) {
            serve(theirs.as_raw_fd(), parent, maps);
        }
        restore(&mask);
        match side {
            Ok(Side::Parent { pidfd, .. }) => {
                Ok(Self { socket, _theirs: theirs, pidfd, owner: std::process::id() })
            }
            Ok(Side::Child) => Err(Errno::ACCESS),
            Err(errno) => Err(Errno::from_raw_os_error(errno.0)),
        }
    }

    /// The outer error is about the helper, the inner one is the call's.
    fn ask(&self, call: Call, path: &[u8], key: &[u8]) -> Result<Answer, Errno> {
        let mut message = Vec::with_capacity(HEAD + path.len() + key.len() + 2);
        message.extend(call.what.to_ne_bytes());
        message.extend(call.dir.to_ne_bytes());
        message.extend(call.flags.to_ne_bytes());
        message.extend(call.resolve.to_ne_bytes());
        message.extend((path.len() as u32 + 1).to_ne_bytes());
        message.extend(path);
        message.push(0);
        message.extend(key);
        message.push(0);
        retry(|| rustix::net::send(&self.socket, &message, SendFlags::NOSIGNAL))?;
        let mut poll =
            [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
        retry(|| rustix::event::poll(&mut poll, None))?;
        let mut answer = vec![0; ANSWER + MAX_VALUE];
        let (n, _) =
            retry(|| rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT))?;
        answer.truncate(n);
        let Some((head, value)) = answer.split_first_chunk::<ANSWER>() else {
            return Err(Errno::IO);
        };
        let number = i64::from_ne_bytes(*head);
        Ok(match i32::try_from(-number) {
            Ok(errno) if errno > 0 => Err(Errno::from_raw_os_error(errno)),
            _ => Ok((number, value.to_vec())),
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.owner != std::process::id() {
            return;
        }
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = retry(|| {
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
        });
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// "ID ID 1": the one id that exists in the namespace.
fn line(buffer: &mut [u8; 32], id: u32) -> &[u8] {
    use std::io::Write as _;
    let mut rest = &mut buffer[..];
    // Two ids of at most ten digits fit.
    let _ = write!(rest, "{id} {id} 1");
    let left = rest.len();
    &buffer[..32 - left]
}

fn block_all() -> libc::sigset_t {
    // SAFETY: a set of signals is plain data, filled before it is used.
    unsafe {
        let (mut all, mut was) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut was);
        was
    }
}

fn restore(mask: &libc::sigset_t) {
    // SAFETY: as in `block_all`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

#[allow(clippy::large_stack_arrays, reason = "nothing can be allocated, and the stack is a copy")]
/// The helper: a copy of a process that may have other threads, so nothing is allocated here and no
/// lock is taken.
fn serve(socket: i32, parent: i32, maps: (&[u8], &[u8])) -> ! {
    if rights(parent, maps).is_ok() {
        let mut call = [0u8; HEAD + MAX_PATH + MAX_KEY];
        let mut answer = [0u8; ANSWER + MAX_VALUE];
        while let Ok(n @ 1..) = raw::read(socket, &mut call) {
            let (number, length) = carry_out(&call[..n], &mut answer[ANSWER..]);
            answer[..ANSWER].copy_from_slice(&number.to_ne_bytes());
            if raw::write(socket, &answer[..ANSWER + length]).is_err() {
                break;
            }
        }
    }
    raw::exit(0)
}

fn rights(parent: i32, (uid, gid): (&[u8], &[u8])) -> raw::Result<()> {
    raw::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0)?;
    if raw::getppid() != parent {
        return Err(raw::Errno(libc::ESRCH));
    }
    raw::write_file(libc::AT_FDCWD, c"/proc/self/setgroups", b"deny")?;
    raw::write_file(libc::AT_FDCWD, c"/proc/self/uid_map", uid)?;
    raw::write_file(libc::AT_FDCWD, c"/proc/self/gid_map", gid)
}

/// What the kernel answers, negative for an errno, and how many bytes of a value there are.
fn carry_out(message: &[u8], value: &mut [u8]) -> (i64, usize) {
    const NO: (i64, usize) = (-(libc::EINVAL as i64), 0);
    let Some((head, rest)) = message.split_first_chunk::<HEAD>() else { return NO };
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | (u64::from(word(at + 4)) << 32);
    let (dir, flags, resolve) = (word(4).cast_signed(), long(8), long(16));
    let Some((path, key)) = rest.split_at_checked(word(24) as usize) else { return NO };
    let (Ok(path), Ok(key)) = (CStr::from_bytes_with_nul(path), CStr::from_bytes_with_nul(key))
    else {
        return NO;
    };
    let done = match word(0) {
        OPEN => raw::openat2(dir, path, flags as i32, 0, resolve).map(|fd| (i64::from(fd), 0)),
        ATTRIBUTE => raw::getxattr(path, key, value).map(|n| (n as i64, n)),
        UNLINK => raw::unlinkat(dir, path, flags as i32).map(|()| (0, 0)),
        _ => return NO,
    };
    done.unwrap_or_else(|errno| (-i64::from(errno.0), 0))
}

#[cfg(test)]
mod tests;
