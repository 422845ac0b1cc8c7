//! System calls that must be callable between `clone3` and `execve`: no allocation, no locks, no
//! panics. Descriptors are plain integers here, because ownership types would close them on paths
//! that end in `_exit`.

use std::ffi::CStr;
use std::fmt;

/// An errno. Zero never occurs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        write!(f, "{text}")
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(e: Errno) -> Self {
        Self::from_raw_os_error(e.0)
    }
}

pub type Result<T> = std::result::Result<T, Errno>;

/// Turns the libc convention (-1 and errno) into a result.
fn check(ret: libc::c_long) -> Result<usize> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret as usize) }
}

macro_rules! call {
    ($nr:expr $(, $arg:expr)* $(,)?) => {{
        // SAFETY: the caller of this macro (all in this file) passes arguments of the types that
        // the named call takes; pointers come from references that outlive the call.
        check(unsafe { libc::syscall($nr $(, $arg)*) })
    }};
}

/// Resolution flags of openat2.
pub mod resolve {
    pub const NO_XDEV: u64 = 0x01;
    pub const NO_MAGICLINKS: u64 = 0x02;
    pub const NO_SYMLINKS: u64 = 0x04;
    pub const BENEATH: u64 = 0x08;
    pub const IN_ROOT: u64 = 0x10;
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub fn openat2(dir: i32, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Result<i32> {
    let how = OpenHow { flags: flags as u64, mode: u64::from(mode), resolve };
    loop {
        match call!(
            libc::SYS_openat2,
            dir,
            path.as_ptr(),
            &raw const how,
            std::mem::size_of::<OpenHow>()
        ) {
            // EAGAIN: the kernel could not prove a `..` safe because of a concurrent rename.
            Err(Errno(libc::EAGAIN | libc::EINTR)) => {}
            r => return r.map(|fd| fd as i32),
        }
    }
}

/// As [`openat2`], without trying again: what is asked for may be hostile and change all the time.
pub fn openat2_once(dir: i32, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Result<i32> {
    let how = OpenHow { flags: flags as u64, mode: u64::from(mode), resolve };
    let size = std::mem::size_of::<OpenHow>();
    call!(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size).map(|fd| fd as i32)
}

/// Opens an absolute path as `O_PATH` without following any symlink (ELOOP when there is one).
pub fn open_path(path: &CStr) -> Result<std::os::fd::OwnedFd> {
    let fd = openat2(
        libc::AT_FDCWD,
        path,
        libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        0,
        resolve::NO_SYMLINKS | resolve::NO_MAGICLINKS,
    )?;
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

pub fn openat(dir: i32, path: &CStr, flags: i32, mode: u32) -> Result<i32> {
    call!(libc::SYS_openat, dir, path.as_ptr(), flags, mode).map(|fd| fd as i32)
}

pub fn close(fd: i32) {
    let _ = call!(libc::SYS_close, fd);
}

pub fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    call!(libc::SYS_write, fd, bytes.as_ptr(), bytes.len())
}

pub fn read(fd: i32, bytes: &mut [u8]) -> Result<usize> {
    call!(libc::SYS_read, fd, bytes.as_mut_ptr(), bytes.len())
}

/// Opens, writes once, closes. For `/proc` and cgroup files.
pub fn write_file(dir: i32, path: &CStr, bytes: &[u8]) -> Result<()> {
    let fd = openat(dir, path, libc::O_WRONLY | libc::O_CLOEXEC, 0)?;
    let r = write(fd, bytes);
    close(fd);
    r.map(|_| ())
}

pub fn mkdirat(dir: i32, path: &CStr, mode: u32) -> Result<()> {
    call!(libc::SYS_mkdirat, dir, path.as_ptr(), mode).map(|_| ())
}

/// `mode` with its type; no device numbers, since a sandbox makes none.
pub fn mknodat(dir: i32, path: &CStr, mode: u32) -> Result<()> {
    call!(libc::SYS_mknodat, dir, path.as_ptr(), mode, 0).map(|_| ())
}

pub fn unlinkat(dir: i32, path: &CStr, flags: i32) -> Result<()> {
    call!(libc::SYS_unlinkat, dir, path.as_ptr(), flags).map(|_| ())
}

/// The same on every architecture; the C library's names do not have it for all of them.
const FCHMODAT2: libc::c_long = 452;

/// Sets permissions of what is open, also by `O_PATH`; ENOSYS before Linux 6.6.
pub fn chmod_open(fd: i32, mode: u32) -> Result<()> {
    call!(FCHMODAT2, fd, c"".as_ptr(), mode, libc::AT_EMPTY_PATH).map(|_| ())
}

pub fn fchmod(fd: i32, mode: u32) -> Result<()> {
    call!(libc::SYS_fchmod, fd, mode).map(|_| ())
}

pub fn symlinkat(target: &CStr, dir: i32, path: &CStr) -> Result<()> {
    call!(libc::SYS_symlinkat, target.as_ptr(), dir, path.as_ptr()).map(|_| ())
}

pub fn fchdir(fd: i32) -> Result<()> {
    call!(libc::SYS_fchdir, fd).map(|_| ())
}

pub fn chdir(path: &CStr) -> Result<()> {
    call!(libc::SYS_chdir, path.as_ptr()).map(|_| ())
}

/// What identifies a file across mount namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
    pub is_dir: bool,
}

/// Stat of an open descriptor (`O_PATH` will do).
pub fn file_id(fd: i32) -> Result<FileId> {
    // SAFETY: an all-zero stat is a valid value of that plain C struct.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is valid for writes of its type.
    if unsafe { libc::fstat(fd, &raw mut st) } != 0 {
        return Err(Errno::last());
    }
    Ok(FileId {
        dev: st.st_dev,
        ino: st.st_ino,
        is_dir: st.st_mode & libc::S_IFMT == libc::S_IFDIR,
    })
}

/// Kind and permissions of an open descriptor (`O_PATH` will do).
pub fn file_mode(fd: i32) -> Result<u32> {
    // SAFETY: an all-zero stat is a valid value of that plain C struct.
    let mut st: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `st` is valid for writes of its type.
    if unsafe { libc::fstat(fd, &raw mut st) } != 0 {
        return Err(Errno::last());
    }
    Ok(st.st_mode)
}

/// `MS_*`, `MNT_*`: classic mount calls, used where one call replaces nine of the new API.
pub fn mount(
    source: &CStr,
    target: &CStr,
    fstype: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> Result<()> {
    call!(libc::SYS_mount, source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr())
        .map(|_| ())
}

pub fn umount2(target: &CStr, flags: i32) -> Result<()> {
    call!(libc::SYS_umount2, target.as_ptr(), flags).map(|_| ())
}

pub fn pivot_root(new_root: &CStr, put_old: &CStr) -> Result<()> {
    call!(libc::SYS_pivot_root, new_root.as_ptr(), put_old.as_ptr()).map(|_| ())
}

/// Flags of the new mount API. Their values are kernel ABI.
pub mod mnt {
    pub const OPEN_TREE_CLONE: u32 = 1;
    pub const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
    pub const AT_RECURSIVE: u32 = 0x8000;
    pub const AT_EMPTY_PATH: u32 = 0x1000;
    pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;
    pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
    pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
    pub const ATTR_RDONLY: u64 = 0x01;
    pub const ATTR_NOSUID: u64 = 0x02;
    pub const ATTR_NODEV: u64 = 0x04;
    pub const ATTR_NOEXEC: u64 = 0x08;
    pub const ATTR_IDMAP: u64 = 0x0010_0000;
}

pub fn open_tree(dir: i32, path: &CStr, flags: u32) -> Result<i32> {
    call!(libc::SYS_open_tree, dir, path.as_ptr(), flags).map(|fd| fd as i32)
}

pub fn move_mount(from: i32, from_path: &CStr, to: i32, to_path: &CStr, flags: u32) -> Result<()> {
    call!(libc::SYS_move_mount, from, from_path.as_ptr(), to, to_path.as_ptr(), flags).map(|_| ())
}

/// A context in which a file system is configured, see [`fsconfig`].
pub fn fsopen(name: &CStr, flags: u32) -> Result<i32> {
    call!(libc::SYS_fsopen, name.as_ptr(), flags).map(|fd| fd as i32)
}

/// `FSCONFIG_*` commands that take no descriptor.
pub fn fsconfig(
    context: i32,
    command: u32,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> Result<()> {
    let pointer = |c: Option<&CStr>| c.map_or(std::ptr::null(), CStr::as_ptr);
    call!(libc::SYS_fsconfig, context, command, pointer(key), pointer(value), 0).map(|_| ())
}

/// A detached mount of what was configured.
pub fn fsmount(context: i32, flags: u32, attributes: u32) -> Result<i32> {
    call!(libc::SYS_fsmount, context, flags, attributes).map(|fd| fd as i32)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `userns` is only looked at when `set` has [`mnt::ATTR_IDMAP`].
pub fn mount_setattr(
    dir: i32,
    path: &CStr,
    flags: u32,
    set: u64,
    propagation: u64,
    userns: i32,
) -> Result<()> {
    let attr = MountAttr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: if userns < 0 { 0 } else { userns as u64 },
    };
    call!(
        libc::SYS_mount_setattr,
        dir,
        path.as_ptr(),
        flags,
        &raw const attr,
        std::mem::size_of::<MountAttr>()
    )
    .map(|_| ())
}

/// Takes attributes off the mount at a descriptor, not off what is mounted below it.
pub fn mount_clear(fd: i32, clear: u64) -> Result<()> {
    let attr = MountAttr { attr_set: 0, attr_clr: clear, propagation: 0, userns_fd: 0 };
    call!(
        libc::SYS_mount_setattr,
        fd,
        c"".as_ptr(),
        mnt::AT_EMPTY_PATH,
        &raw const attr,
        std::mem::size_of::<MountAttr>()
    )
    .map(|_| ())
}

pub fn setgroups_none() -> Result<()> {
    call!(libc::SYS_setgroups, 0usize, std::ptr::null::<u32>()).map(|_| ())
}

/// Raw calls: the glibc wrappers would broadcast to threads that the clone does not have.
pub fn setresuid(id: u32) -> Result<()> {
    call!(libc::SYS_setresuid, id, id, id).map(|_| ())
}

pub fn setresgid(id: u32) -> Result<()> {
    call!(libc::SYS_setresgid, id, id, id).map(|_| ())
}

pub fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> Result<usize> {
    call!(libc::SYS_prctl, option, a, b, c, d)
}

pub fn setsid() -> Result<()> {
    call!(libc::SYS_setsid).map(|_| ())
}

pub fn setpgid(pid: i32, pgid: i32) -> Result<()> {
    call!(libc::SYS_setpgid, pid, pgid).map(|_| ())
}

pub fn getpgid(pid: i32) -> Result<i32> {
    call!(libc::SYS_getpgid, pid).map(|group| group as i32)
}

pub fn kill(pid: i32, signal: i32) -> Result<()> {
    call!(libc::SYS_kill, pid, signal).map(|_| ())
}

pub fn getppid() -> i32 {
    call!(libc::SYS_getppid).map_or(0, |pid| pid as i32)
}

/// The value of an extended attribute; says how many bytes it has.
pub fn getxattr(path: &CStr, key: &CStr, value: &mut [u8]) -> Result<usize> {
    call!(libc::SYS_getxattr, path.as_ptr(), key.as_ptr(), value.as_mut_ptr(), value.len())
}

pub fn getpid() -> i32 {
    // SAFETY: cannot fail.
    unsafe { libc::getpid() }
}

pub fn page_size() -> usize {
    // SAFETY: cannot fail.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Where the heap of `brk` ends.
pub fn heap_end() -> usize {
    call!(libc::SYS_brk, 0usize).unwrap_or(0)
}

/// Lets go of what is in these pages.
///
/// # Safety
/// Nobody looks at them any more, or expects anything but zeros.
pub unsafe fn give_back(begin: usize, length: usize) -> Result<()> {
    call!(libc::SYS_madvise, begin, length, libc::MADV_DONTNEED).map(|_| ())
}

pub fn dup3(from: i32, to: i32, flags: i32) -> Result<()> {
    call!(libc::SYS_dup3, from, to, flags).map(|_| ())
}

/// Closes every descriptor from `first` up. `unshare` also leaves a descriptor table that is shared
/// with another process.
pub fn close_from(first: u32, unshare: bool) -> Result<()> {
    const CLOSE_RANGE_UNSHARE: u32 = 2;
    let flags = if unshare { CLOSE_RANGE_UNSHARE } else { 0 };
    call!(libc::SYS_close_range, first, u32::MAX, flags).map(|_| ())
}

pub fn unshare(flags: i32) -> Result<()> {
    call!(libc::SYS_unshare, flags).map(|_| ())
}

/// `RLIMIT_*` by number, both limits.
pub fn setrlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    call!(
        libc::SYS_prlimit64,
        0,
        resource,
        &raw const limit,
        std::ptr::null_mut::<libc::rlimit64>()
    )
    .map(|_| ())
}

pub fn getrlimit(resource: u32) -> Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    call!(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut limit)?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Waits for any (`pid` -1) or one child. Returns `(0, _)` with `WNOHANG` when nothing is ready.
pub fn wait4(pid: i32, options: i32) -> Result<(i32, i32)> {
    let mut status = 0i32;
    loop {
        match call!(
            libc::SYS_wait4,
            pid,
            &raw mut status,
            options,
            std::ptr::null_mut::<libc::rusage>()
        ) {
            Err(Errno(libc::EINTR)) => {}
            r => return r.map(|p| (p as i32, status)),
        }
    }
}

/// Drops every capability set; the bounding set too, so that an exec by uid 0 regains nothing.
pub fn drop_capabilities() -> Result<()> {
    const PR_CAPBSET_DROP: i32 = 24;
    const PR_CAP_AMBIENT: i32 = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;
    const CAP_LAST: u64 = 63;
    for cap in 0..=CAP_LAST {
        match prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) {
            Ok(_) => {}
            // Past the last capability that this kernel knows.
            Err(Errno(libc::EINVAL)) => break,
            Err(e) => return Err(e),
        }
    }
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)?;
    clear_capability_sets()
}

/// Empties the permitted, effective and inheritable sets of the calling thread.
pub fn clear_capability_sets() -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let data = [0u32; 6];
    call!(libc::SYS_capset, header.as_ptr(), data.as_ptr()).map(|_| ())
}

/// Not dumpable: `/proc/PID/{environ,mem,fd}` of the caller belong to root and ptrace is refused, so
/// that the sandboxed command cannot look into the memory that its PID 1 inherited.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, u64::from(dumpable), 0, 0, 0).map(|_| ())
}

pub fn set_no_new_privs() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).map(|_| ())
}

/// Brings the loopback interface of the current network namespace up.
pub fn loopback_up() -> Result<()> {
    // SAFETY: an all-zero ifreq is a valid value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    req.ifr_name[0] = b'l' as libc::c_char;
    req.ifr_name[1] = b'o' as libc::c_char;
    req.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let fd = call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    let r = call!(libc::SYS_ioctl, fd, libc::SIOCSIFFLAGS, &raw const req).map(|_| ());
    close(fd as i32);
    r
}

/// Sleeps until `word` no longer holds `expected` (or something wakes the sleeper; callers loop).
pub fn futex_wait(word: &std::sync::atomic::AtomicU32, expected: u32) {
    let _ = call!(
        libc::SYS_futex,
        word.as_ptr(),
        libc::FUTEX_WAIT,
        expected,
        std::ptr::null::<libc::timespec>()
    );
}

/// Waits until `word` is not zero: a short spin (the other side usually is microseconds away, and a
/// sleep costs a cross-CPU wake-up), then a futex.
pub fn wait_until_set(word: &std::sync::atomic::AtomicU32) {
    use std::sync::atomic::Ordering;
    const SPINS: u32 = 2000;
    for _ in 0..SPINS {
        if word.load(Ordering::Acquire) != 0 {
            return;
        }
        std::hint::spin_loop();
    }
    while word.load(Ordering::Acquire) == 0 {
        futex_wait(word, 0);
    }
}

/// Sets `word` and wakes whoever waits for it.
pub fn set_and_wake(word: &std::sync::atomic::AtomicU32) {
    word.store(1, std::sync::atomic::Ordering::Release);
    futex_wake(word);
}

/// Joins namespaces of the process behind a pidfd.
pub fn setns(pidfd: i32, flags: i32) -> Result<()> {
    call!(libc::SYS_setns, pidfd, flags).map(|_| ())
}

/// As [`futex_wait`], at most `ms` milliseconds.
pub fn futex_wait_for(word: &std::sync::atomic::AtomicU32, expected: u32, ms: u32) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::from((ms / 1000) as i32),
        tv_nsec: libc::c_long::from((ms % 1000 * 1_000_000) as i32),
    };
    let _ = call!(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout);
}

pub fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    let _ = call!(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
}

/// Ends the process without running anything of the parent's (atexit handlers, buffers).
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A null-terminated array of C string pointers for `execve`.
#[derive(Debug)]
pub struct CStringArray {
    // Keeps the pointers below alive.
    _strings: Vec<std::ffi::CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CStringArray {
    pub fn new(strings: Vec<std::ffi::CString>) -> Self {
        let pointers =
            strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect();
        Self { _strings: strings, pointers }
    }

    pub fn as_slice(&self) -> &[*const libc::c_char] {
        &self.pointers
    }
}

/// Only returns on failure.
pub fn execve(path: &CStr, argv: &CStringArray, envp: &CStringArray) -> Errno {
    // SAFETY: both arrays are null-terminated and their strings live as long as the arrays.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    Errno::last()
}

/// Runs a script that has no `#!` line by `/bin/sh`, as `execvp` does. Only returns on failure.
pub fn exec_script(path: &CStr, argv: &CStringArray, envp: &CStringArray) -> Errno {
    const MOST: usize = 1024;
    let mut args: [*const libc::c_char; MOST] = [std::ptr::null(); MOST];
    let rest = argv.pointers.get(1..).unwrap_or_default();
    if rest.len() + 2 > MOST {
        return Errno(libc::E2BIG);
    }
    args[0] = c"/bin/sh".as_ptr();
    args[1] = path.as_ptr();
    args[2..2 + rest.len()].copy_from_slice(rest);
    // SAFETY: `args` is null-terminated (the copied tail ends in null) and outlives the call.
    unsafe { libc::execve(c"/bin/sh".as_ptr(), args.as_ptr(), envp.pointers.as_ptr()) };
    Errno::last()
}

/// Polls for input; `timeout_ms` -1 waits without end. Answers how many descriptors are ready.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> Result<usize> {
    loop {
        // SAFETY: `fds` is a valid array of its length.
        let r = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
        match check(r as libc::c_long) {
            Err(Errno(libc::EINTR)) => {}
            r => return r,
        }
    }
}

/// Milliseconds of a clock that nobody sets.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes of its type.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

pub fn pollin(fd: i32) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Whether the process behind a pidfd has ended.
pub fn is_dead(pidfd: i32) -> bool {
    let mut fds = [pollin(pidfd)];
    matches!(poll(&mut fds, 0), Ok(n) if n > 0)
}

pub fn pidfd_open(pid: i32) -> Result<i32> {
    call!(libc::SYS_pidfd_open, pid, 0u32).map(|fd| fd as i32)
}

pub fn pidfd_send_signal(pidfd: i32, signal: i32) -> Result<()> {
    call!(libc::SYS_pidfd_send_signal, pidfd, signal, std::ptr::null::<libc::siginfo_t>(), 0u32)
        .map(|_| ())
}

/// Duplicates to the lowest free descriptor not below `least`, close-on-exec.
pub fn dup_from(fd: i32, least: i32) -> Result<i32> {
    call!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, least).map(|fd| fd as i32)
}

/// Blocks every signal of the calling thread; returns the former mask.
pub fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are valid for writes; sigfillset initialises the first.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

pub fn set_signal_mask(mask: &libc::sigset_t) {
    // SAFETY: `mask` is an initialised set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Empty mask, default dispositions except for signals that are ignored on purpose (nohup):
/// what a freshly executed program expects. SIGPIPE, which the Rust runtime ignores, is default.
pub fn reset_signals() {
    // SAFETY: plain calls on initialised structures; sigaction with a null new action only reads.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// SIGPIPE, which the Rust runtime ignores, ends a program again.
pub fn default_pipe_signal() {
    // SAFETY: a plain call; no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// A descriptor that reports `signal`, which must be blocked.
pub fn signalfd(signal: i32) -> Result<i32> {
    // SAFETY: the set is initialised before use.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    check(fd as libc::c_long).map(|fd| fd as i32)
}

/// Pair of connected `SOCK_SEQPACKET` sockets, close-on-exec.
pub fn seqpacket_pair() -> Result<(i32, i32)> {
    let mut fds = [-1i32; 2];
    call!(
        libc::SYS_socketpair,
        libc::AF_UNIX,
        libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
        0,
        fds.as_mut_ptr()
    )?;
    Ok((fds[0], fds[1]))
}

/// Sends `bytes`, and `fd` with it when it is not negative.
pub fn send_with_fd(socket: i32, bytes: &[u8], fd: i32) -> Result<()> {
    let mut control = [0u64; 4];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid; the control buffer is aligned for cmsghdr and larger
    // than CMSG_SPACE of one descriptor.
    let n = unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        if fd >= 0 {
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = libc::CMSG_SPACE(4) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const msg);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(head).cast::<i32>().write_unaligned(fd);
        }
        libc::sendmsg(socket, &raw const msg, libc::MSG_NOSIGNAL)
    };
    check(n as libc::c_long).map(|_| ())
}

/// Sends `bytes`, or nothing (EAGAIN) where that would have to wait.
pub fn send_now(socket: i32, bytes: &[u8]) -> Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let to = std::ptr::null::<libc::sockaddr>();
    call!(libc::SYS_sendto, socket, bytes.as_ptr(), bytes.len(), flags, to, 0).map(|_| ())
}

/// Receives one message and at most one descriptor (close-on-exec); `(0, _)` at end of stream.
pub fn recv_with_fd(socket: i32, bytes: &mut [u8], flags: i32) -> Result<(usize, Option<i32>)> {
    let mut control = [0u64; 4];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as in `send_with_fd`; control messages are walked by the libc macros only.
    unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = std::mem::size_of_val(&control) as _;
        let n = libc::recvmsg(socket, &raw mut msg, libc::MSG_CMSG_CLOEXEC | flags);
        let n = check(n as libc::c_long)?;
        let head = libc::CMSG_FIRSTHDR(&raw const msg);
        let fd = if !head.is_null()
            && (*head).cmsg_level == libc::SOL_SOCKET
            && (*head).cmsg_type == libc::SCM_RIGHTS
        {
            Some(libc::CMSG_DATA(head).cast::<i32>().read_unaligned())
        } else {
            None
        };
        Ok((n, fd))
    }
}

/// Receives one message and up to three descriptors (close-on-exec, -1 for none), without waiting.
/// What is more than three, or did not fit, is an error (EMSGSIZE), and every descriptor of that message
/// is closed.
pub fn recv_with_three(socket: i32, bytes: &mut [u8]) -> Result<(usize, [i32; 3])> {
    const INT: usize = std::mem::size_of::<i32>();
    // Room for three, rounded up to four by the alignment: a fourth may arrive, and is closed.
    let mut control = [0u64; 4];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut fds = [-1; 3];
    let mut wrong = false;
    // SAFETY: as in `recv_with_fd`; the count of descriptors comes from the header's length.
    let n = unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = std::mem::size_of_val(&control) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        let n = check(libc::recvmsg(socket, &raw mut msg, flags) as libc::c_long)?;
        wrong |= msg.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        let head = libc::CMSG_FIRSTHDR(&raw const msg);
        if !head.is_null()
            && (*head).cmsg_level == libc::SOL_SOCKET
            && (*head).cmsg_type == libc::SCM_RIGHTS
        {
            let count = ((*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / INT;
            for i in 0..count {
                let fd = libc::CMSG_DATA(head).add(i * INT).cast::<i32>().read_unaligned();
                if let Some(slot) = fds.get_mut(i) {
                    *slot = fd;
                } else {
                    wrong = true;
                    close(fd);
                }
            }
        }
        n
    };
    if wrong {
        for fd in fds.into_iter().filter(|fd| *fd >= 0) {
            close(fd);
        }
        return Err(Errno(libc::EMSGSIZE));
    }
    Ok((n, fds))
}

/// What a process and those below it that it waited for have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub user_us: u64,
    pub system_us: u64,
    /// Kibibytes of the largest one at its largest.
    pub peak_kib: u64,
}

/// Collects any child that has ended; `(0, ..)` when none has.
pub fn reap_any() -> Result<(i32, i32, Usage)> {
    let mut status = 0i32;
    // SAFETY: an all-zero rusage is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = call!(libc::SYS_wait4, -1, &raw mut status, libc::WNOHANG, &raw mut usage)?;
    let us = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    let usage = Usage {
        user_us: us(usage.ru_utime),
        system_us: us(usage.ru_stime),
        peak_kib: usage.ru_maxrss as u64,
    };
    Ok((pid as i32, status, usage))
}

pub fn renameat(from_dir: i32, from: &CStr, to_dir: i32, to: &CStr) -> Result<()> {
    call!(libc::SYS_renameat2, from_dir, from.as_ptr(), to_dir, to.as_ptr(), 0u32).map(|_| ())
}

/// A TCP socket of `family` that is connecting to `port` of the loopback; never blocks.
pub fn connect_loopback(ipv6: bool, port: u16) -> Result<i32> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = call!(libc::SYS_socket, family, kind, 0)? as i32;
    let r = if ipv6 {
        // SAFETY: an all-zero sockaddr_in6 is valid.
        let mut a: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        a.sin6_family = family as libc::sa_family_t;
        a.sin6_port = port.to_be();
        a.sin6_addr.s6_addr[15] = 1;
        call!(libc::SYS_connect, fd, &raw const a, std::mem::size_of_val(&a))
    } else {
        // SAFETY: an all-zero sockaddr_in is valid.
        let mut a: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        a.sin_family = family as libc::sa_family_t;
        a.sin_port = port.to_be();
        a.sin_addr.s_addr = u32::from_be_bytes([127, 0, 0, 1]).to_be();
        call!(libc::SYS_connect, fd, &raw const a, std::mem::size_of_val(&a))
    };
    match r {
        Ok(_) | Err(Errno(libc::EINPROGRESS)) => Ok(fd),
        Err(e) => {
            close(fd);
            Err(e)
        }
    }
}

/// A socket that listens at `path`, a new name in the file system; it never blocks. `mode` is the
/// name's.
pub fn listen_unix(path: &CStr, mode: u32, backlog: i32) -> Result<i32> {
    // SAFETY: an all-zero sockaddr_un is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(Errno(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = call!(libc::SYS_socket, libc::AF_UNIX, kind, 0)? as i32;
    let done = call!(libc::SYS_bind, fd, &raw const address, std::mem::size_of_val(&address))
        // Before it listens, so that nobody connects who may not.
        .and_then(|_| call!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), mode))
        .and_then(|_| call!(libc::SYS_listen, fd, backlog));
    match done {
        Ok(_) => Ok(fd),
        Err(e) => {
            close(fd);
            Err(e)
        }
    }
}

/// As [`recv_with_fd`], owning what was received.
pub fn recv_owned(
    socket: std::os::fd::BorrowedFd<'_>,
    bytes: &mut [u8],
) -> Result<(usize, Option<std::os::fd::OwnedFd>)> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let (n, fd) = recv_with_fd(socket.as_raw_fd(), bytes, 0)?;
    // SAFETY: recvmsg installed it for this call; nobody else knows it.
    Ok((n, fd.map(|fd| unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })))
}

/// As [`seqpacket_pair`], owned.
pub fn seqpacket_owned() -> Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
    use std::os::fd::{FromRawFd, OwnedFd};
    let (a, b) = seqpacket_pair()?;
    // SAFETY: both were just made and are owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(a), OwnedFd::from_raw_fd(b)) })
}
