//! Calls of other processes that are held until a broker has answered them (seccomp user
//! notification), and what a broker needs to carry them out. As in [`crate::raw`]: no allocation, no
//! locks, no panics, descriptors are plain integers.

use std::ffi::CStr;

use crate::raw::{Errno, Result};
use crate::seccomp::SockFilter;

macro_rules! call {
    ($nr:expr $(, $arg:expr)* $(,)?) => {{
        // SAFETY: the caller of this macro (all in this file) passes arguments of the types that
        // the named call takes; pointers come from references that outlive the call.
        let ret = unsafe { libc::syscall($nr $(, $arg)*) };
        if ret < 0 { Err(Errno::last()) } else { Ok(ret as usize) }
    }};
}

/// A held call (`struct seccomp_notif`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Names the call until it is answered.
    pub id: u64,
    /// The calling thread, in the listener's process table.
    pub thread: u32,
    flags: u32,
    pub number: i32,
    pub arch: u32,
    instruction: u64,
    pub args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    from: u32,
    to: u32,
    to_flags: u32,
}

/// `_IOC` of the magic `!`: direction, size, number.
const fn request(direction: u64, size: usize, number: u64) -> u64 {
    direction << 30 | (size as u64) << 16 | 0x21 << 8 | number
}

const RECEIVE: u64 = request(3, std::mem::size_of::<Held>(), 0);
const SEND: u64 = request(3, std::mem::size_of::<Answer>(), 1);
const IS_VALID: u64 = request(1, 8, 2);
const ADD_FD: u64 = request(1, std::mem::size_of::<AddFd>(), 3);
const SET_FLAGS: u64 = request(1, 8, 4);

/// Loads `program`, whose notifications arrive at the descriptor that this answers. Needs
/// `no_new_privs`. A held call that was received cannot be interrupted but by what kills (Linux 5.19;
/// before, a signal makes the program try again what was already done).
pub fn listen(program: &[SockFilter]) -> Result<i32> {
    const SPEC_ALLOW: u64 = 1 << 2;
    const NEW_LISTENER: u64 = 1 << 3;
    const WAIT_KILLABLE: u64 = 1 << 5;
    if program.is_empty() || program.len() > crate::seccomp::MAX_INSTRUCTIONS {
        return Err(Errno(libc::EINVAL));
    }
    let prog =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    let load = |flags: u64| {
        call!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const prog)
            .map(|fd| fd as i32)
    };
    match load(SPEC_ALLOW | NEW_LISTENER | WAIT_KILLABLE) {
        Err(Errno(libc::EINVAL)) => load(SPEC_ALLOW | NEW_LISTENER),
        r => r,
    }
}

/// Has both sides woken on the processor where the other runs (Linux 6.6): a call costs a fraction of
/// what a wake-up across processors does.
pub fn wake_in_place(listener: i32) {
    let _ = call!(libc::SYS_ioctl, listener, SET_FLAGS, 1u64);
}

/// The next held call. Waits where there is none; ENOENT when it was taken back meanwhile.
pub fn receive(listener: i32) -> Result<Held> {
    let mut held = Held::default();
    call!(libc::SYS_ioctl, listener, RECEIVE, &raw mut held)?;
    Ok(held)
}

/// Whether the caller still waits: then its thread is still the one that called.
pub fn is_waiting(listener: i32, id: u64) -> bool {
    call!(libc::SYS_ioctl, listener, IS_VALID, &raw const id).is_ok()
}

fn send(listener: i32, answer: &Answer) {
    // ENOENT: the caller is gone, nobody needs the answer.
    let _ = call!(libc::SYS_ioctl, listener, SEND, std::ptr::from_ref(answer));
}

/// The call returns this.
pub fn answer(listener: i32, id: u64, result: std::result::Result<i64, Errno>) {
    let (value, error) = match result {
        Ok(value) => (value, 0),
        Err(Errno(errno)) => (0, -errno),
    };
    send(listener, &Answer { id, value, error, flags: 0 });
}

/// The call runs as it was made. Only for calls that nothing depends on: arguments in memory can
/// change until the kernel reads them.
pub fn let_run(listener: i32, id: u64) {
    send(listener, &Answer { id, value: 0, error: 0, flags: 1 });
}

/// Gives the caller a copy of `fd`; the call returns its number.
pub fn hand_over(listener: i32, id: u64, fd: i32, close_on_exec: bool) -> Result<()> {
    const SEND_TOO: u32 = 2;
    let add = AddFd {
        id,
        flags: SEND_TOO,
        from: fd as u32,
        to: 0,
        to_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    call!(libc::SYS_ioctl, listener, ADD_FD, &raw const add).map(|_| ())
}

/// Reads another process's memory, as much as there is at `address`.
pub fn read_memory(thread: u32, address: u64, into: &mut [u8]) -> Result<usize> {
    const PAGE: u64 = 4096;
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // The kernel stops between parts, not within one: one for each page.
    let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 18];
    let (mut at, mut left, mut count) = (address, into.len() as u64, 0);
    while left > 0 && count < parts.len() {
        let length = left.min(PAGE - at % PAGE);
        parts[count] =
            libc::iovec { iov_base: at as usize as *mut libc::c_void, iov_len: length as usize };
        at = at.checked_add(length).ok_or(Errno(libc::EFAULT))?;
        left -= length;
        count += 1;
    }
    call!(
        libc::SYS_process_vm_readv,
        thread,
        &raw const local,
        1usize,
        parts.as_ptr(),
        count,
        0usize
    )
}

/// A copy of a descriptor of the process behind `pidfd`.
pub fn take_descriptor(pidfd: i32, number: i32) -> Result<i32> {
    call!(libc::SYS_pidfd_getfd, pidfd, number, 0u32).map(|fd| fd as i32)
}

/// What of a file's status a broker looks at.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// `S_IFMT` part.
    pub kind: u32,
    pub links: u64,
    pub device: u64,
    pub special: u64,
    pub inode: u64,
}

#[allow(clippy::unnecessary_cast)] // wider on some processors
fn status(st: &libc::stat) -> Status {
    Status {
        kind: st.st_mode & libc::S_IFMT,
        links: st.st_nlink as u64,
        device: st.st_dev as u64,
        special: st.st_rdev as u64,
        inode: st.st_ino as u64,
    }
}

/// Of a name, a link itself.
pub fn status_of(dir: i32, name: &CStr) -> Result<Status> {
    // SAFETY: an all-zero stat is a valid value of that plain C struct.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends in nul, `st` is valid for writes of its type.
    if unsafe { libc::fstatat(dir, name.as_ptr(), &raw mut st, libc::AT_SYMLINK_NOFOLLOW) } != 0 {
        return Err(Errno::last());
    }
    Ok(status(&st))
}

/// Of an open descriptor.
pub fn status_at(fd: i32) -> Result<Status> {
    // SAFETY: an all-zero stat is a valid value of that plain C struct.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is valid for writes of its type.
    if unsafe { libc::fstat(fd, &raw mut st) } != 0 {
        return Err(Errno::last());
    }
    Ok(status(&st))
}

/// Whether `fd` lies in a process file system.
pub fn is_proc(fd: i32) -> Result<bool> {
    // SAFETY: an all-zero statfs is a valid value of that plain C struct.
    let mut st: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is valid for writes of its type.
    if unsafe { libc::fstatfs(fd, &raw mut st) } != 0 {
        return Err(Errno::last());
    }
    #[allow(clippy::unnecessary_cast)] // narrower on some processors
    let magic = st.f_type as i64;
    Ok(magic == 0x9fa0)
}

/// The text of a link; `into` must have room for more than that.
pub fn read_link(dir: i32, name: &CStr, into: &mut [u8]) -> Result<usize> {
    let n = call!(libc::SYS_readlinkat, dir, name.as_ptr(), into.as_mut_ptr(), into.len())?;
    if n >= into.len() { Err(Errno(libc::ENAMETOOLONG)) } else { Ok(n) }
}

pub fn mknodat(dir: i32, name: &CStr, mode: u32) -> Result<()> {
    call!(libc::SYS_mknodat, dir, name.as_ptr(), mode, 0).map(|_| ())
}

pub fn linkat(from: i32, from_name: &CStr, to: i32, to_name: &CStr, flags: i32) -> Result<()> {
    call!(libc::SYS_linkat, from, from_name.as_ptr(), to, to_name.as_ptr(), flags).map(|_| ())
}

pub fn renameat2(from: i32, from_name: &CStr, to: i32, to_name: &CStr, flags: u32) -> Result<()> {
    call!(libc::SYS_renameat2, from, from_name.as_ptr(), to, to_name.as_ptr(), flags).map(|_| ())
}

pub fn umask(mask: u32) {
    let _ = call!(libc::SYS_umask, mask);
}

/// The same; what it was.
pub fn replace_umask(mask: u32) -> u32 {
    call!(libc::SYS_umask, mask).unwrap_or(0o022) as u32
}

/// `address` as a `sockaddr` of any family.
pub fn bind(socket: i32, address: &[u8]) -> Result<()> {
    call!(libc::SYS_bind, socket, address.as_ptr(), address.len()).map(|_| ())
}

/// Takes `O_NONBLOCK` off an open file.
pub fn make_blocking(fd: i32) -> Result<()> {
    let flags = call!(libc::SYS_fcntl, fd, libc::F_GETFL)? as i32;
    call!(libc::SYS_fcntl, fd, libc::F_SETFL, flags & !libc::O_NONBLOCK).map(|_| ())
}

/// Raw directory entries (`struct linux_dirent64`); 0 at the end.
pub fn list(dir: i32, into: &mut [u8]) -> Result<usize> {
    call!(libc::SYS_getdents64, dir, into.as_mut_ptr(), into.len())
}

/// The largest file that a process may make.
pub fn file_size_limit(thread: u32) -> Result<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    call!(
        libc::SYS_prlimit64,
        thread,
        libc::RLIMIT_FSIZE,
        std::ptr::null::<libc::rlimit64>(),
        &raw mut limit
    )?;
    Ok(limit.rlim_cur)
}

pub fn ftruncate(fd: i32, length: i64) -> Result<()> {
    call!(libc::SYS_ftruncate, fd, length).map(|_| ())
}

/// Of what `name` is; never of a link.
pub fn chmodat(dir: i32, name: &CStr, mode: u32) -> Result<()> {
    call!(libc::SYS_fchmodat, dir, name.as_ptr(), mode).map(|_| ())
}

/// `flags`: 0 or `AT_SYMLINK_NOFOLLOW`.
pub fn chownat(dir: i32, name: &CStr, ids: (u32, u32), flags: i32) -> Result<()> {
    call!(libc::SYS_fchownat, dir, name.as_ptr(), ids.0, ids.1, flags).map(|_| ())
}

/// Seconds and nanoseconds of access and change; `None`: now.
pub fn utimensat(
    dir: i32,
    name: &CStr,
    times: Option<&[libc::timespec; 2]>,
    flags: i32,
) -> Result<()> {
    let times = times.map_or(std::ptr::null(), |t| t.as_ptr());
    call!(libc::SYS_utimensat, dir, name.as_ptr(), times, flags).map(|_| ())
}

/// By path, since an `O_PATH` descriptor is refused. `follow` false: of a link itself.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: i32, follow: bool) -> Result<()> {
    let number = if follow { libc::SYS_setxattr } else { libc::SYS_lsetxattr };
    call!(number, path.as_ptr(), name.as_ptr(), value.as_ptr(), value.len(), flags).map(|_| ())
}

pub fn removexattr(path: &CStr, name: &CStr, follow: bool) -> Result<()> {
    let number = if follow { libc::SYS_removexattr } else { libc::SYS_lremovexattr };
    call!(number, path.as_ptr(), name.as_ptr()).map(|_| ())
}

/// Changes to the directory for calls that know no other way to name one.
pub fn enter(dir: i32) -> Result<()> {
    call!(libc::SYS_fchdir, dir).map(|_| ())
}
