//! Raw calls that an attacker would make, for `selftest` and the attack tests: each tries one thing
//! and says what the kernel answered. Nothing here is used by a run.
//!
//! None of these changes anything that outlives the calling process or that lies outside of it,
//! except where its name says so.

use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::raw::{self, Errno, Result};

fn check(ret: libc::c_long) -> Result<i64> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret) }
}

/// Closes a descriptor that an attack was given.
fn drop_fd(fd: i64) {
    raw::close(fd as i32);
}

/// `io_uring_setup` with two entries.
pub fn io_uring_setup() -> Result<()> {
    // Larger than `struct io_uring_params` (120 bytes), all zero.
    let mut params = [0u64; 32];
    // SAFETY: the kernel reads and writes no more than the size of its own struct.
    let r = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2u32, params.as_mut_ptr()) };
    check(r).map(drop_fd)
}

/// `bpf(BPF_MAP_CREATE)` of a one-element array.
pub fn bpf_map() -> Result<()> {
    const BPF_MAP_CREATE: i32 = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    // map_type, key_size, value_size, max_entries, flags, and zeroes for later fields.
    let attr: [u32; 32] = {
        let mut a = [0; 32];
        a[..4].copy_from_slice(&[BPF_MAP_TYPE_ARRAY, 4, 8, 1]);
        a
    };
    // SAFETY: `attr` is valid for the size that is passed.
    let r = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attr.as_ptr(), 48u32) };
    check(r).map(drop_fd)
}

/// `perf_event_open` of a software counter on the caller itself, user space only: what an ordinary
/// user may do on a default kernel.
pub fn perf_event_open() -> Result<()> {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const PERF_COUNT_SW_TASK_CLOCK: u64 = 1;
    const SIZE_VER0: u32 = 64;
    const EXCLUDE_KERNEL_AND_HV: u64 = (1 << 5) | (1 << 6);
    let mut attr = [0u64; 16];
    attr[0] = u64::from(PERF_TYPE_SOFTWARE) | (u64::from(SIZE_VER0) << 32);
    attr[1] = PERF_COUNT_SW_TASK_CLOCK;
    attr[5] = EXCLUDE_KERNEL_AND_HV;
    // SAFETY: `attr` is larger than the size it names.
    let r = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), 0, -1, -1, 0u64) };
    check(r).map(drop_fd)
}

/// `userfaultfd` for faults of user mode only, which needs no privilege.
pub fn userfaultfd() -> Result<()> {
    const UFFD_USER_MODE_ONLY: i32 = 1;
    // SAFETY: takes one integer.
    let r = unsafe { libc::syscall(libc::SYS_userfaultfd, UFFD_USER_MODE_ONLY | libc::O_CLOEXEC) };
    check(r).map(drop_fd)
}

/// Asks for the session keyring.
pub fn session_keyring() -> Result<()> {
    const KEYCTL_GET_KEYRING_ID: i32 = 0;
    const KEY_SPEC_SESSION_KEYRING: i32 = -3;
    // SAFETY: integers only.
    let r = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
    };
    check(r).map(|_| ())
}

/// Namespaces by `clone`, with bits set above the 32 that the kernel looks at.
pub fn clone_user_namespace() -> Result<()> {
    const ABOVE: u64 = 1 << 40;
    let flags = libc::CLONE_NEWUSER as u64 | libc::SIGCHLD as u64 | ABOVE;
    // SAFETY: no shared memory and no stack: as a fork. The child ends at once.
    let r = unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) };
    end_child(r)
}

/// Namespaces by `clone3`, whose flags a filter cannot see.
pub fn clone3_user_namespace() -> Result<()> {
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    let args: [u64; 8] = [libc::CLONE_NEWUSER as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    // SAFETY: a clone_args of the first version, as a fork. The child ends at once.
    let r = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), std::mem::size_of_val(&args)) };
    end_child(r)
}

fn end_child(r: libc::c_long) -> Result<()> {
    match check(r)? {
        0 => raw::exit(0),
        pid => raw::wait4(pid as i32, 0).map(|_| ()),
    }
}

/// `fsopen` of tmpfs: the first step of the new mount interface.
pub fn fsopen() -> Result<()> {
    // SAFETY: a string that outlives the call, and an integer.
    let r = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 1u32) };
    check(r).map(drop_fd)
}

/// `chroot`.
pub fn chroot(path: &CStr) -> Result<()> {
    // SAFETY: a string that outlives the call.
    check(unsafe { libc::chroot(path.as_ptr()) }.into()).map(|_| ())
}

/// Makes a character device node (`/dev/null`'s numbers) at `path`.
pub fn mknod_null(path: &CStr) -> Result<()> {
    let device = libc::makedev(1, 3);
    // SAFETY: a string that outlives the call, and integers.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, device) }.into()).map(|_| ())
}

/// A file opened by its number, past every path.
pub fn open_by_handle(path: &CStr) -> Result<()> {
    const MOST: usize = 128;
    // handle_bytes, handle_type, then the handle.
    let mut handle = [0u32; 2 + MOST / 4];
    handle[0] = MOST as u32;
    let mut mount = 0i32;
    // SAFETY: the buffer holds the header and as many bytes as the header says.
    let r = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        )
    };
    check(r)?;
    let dir = raw::openat(libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    // SAFETY: the handle was filled in by the kernel.
    let r =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, dir, handle.as_ptr(), libc::O_RDONLY) };
    let r = check(r);
    raw::close(dir);
    r.map(drop_fd)
}

/// A socket of any family.
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<()> {
    // SAFETY: integers only.
    let r = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    check(r.into()).map(drop_fd)
}

/// Types one character into the terminal behind `fd`. With `above`, the request number has a bit set
/// that the kernel drops and a careless filter compares.
pub fn type_into_terminal(fd: i32, above: bool) -> Result<()> {
    const ABOVE: u64 = 1 << 32;
    let request = libc::TIOCSTI | if above { ABOVE } else { 0 };
    let letter = b"x";
    // SAFETY: the request reads one byte.
    let r = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, letter.as_ptr()) };
    check(r).map(|_| ())
}

/// Attaches to a process and lets it go again.
pub fn ptrace_seize(pid: i32) -> Result<()> {
    const PTRACE_SEIZE: libc::c_uint = 0x4206;
    // SAFETY: seizing stops nothing and takes integers only.
    let r = unsafe { libc::ptrace(PTRACE_SEIZE as _, pid, 0usize, 0usize) };
    // The kernel lets go when the caller ends.
    check(r).map(|_| ())
}

/// Reads another process's memory.
pub fn read_memory(pid: i32, address: usize, into: &mut [u8]) -> Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: the local vector is valid for writes; the remote one is the kernel's to check.
    let r = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    check(r as libc::c_long).map(|n| n as usize)
}

/// Lets any process of the same user attach to the caller, where a security module asks for that.
pub fn allow_tracing_me() {
    const PR_SET_PTRACER: i32 = 0x5961_6d61;
    let _ = raw::prctl(PR_SET_PTRACER, u64::MAX, 0, 0, 0);
}

/// `getpid` through the 32-bit entry. `None` where the processor has none. Where the kernel has it
/// switched off, the caller dies of SIGSEGV; where a filter refuses it, of SIGSYS.
pub fn getpid_by_int80() -> Option<i32> {
    #[cfg(target_arch = "x86_64")]
    {
        const I386_GETPID: i64 = 20;
        let pid: i64;
        // SAFETY: getpid has no arguments; the entry clobbers r8 to r11 on some kernels.
        unsafe {
            std::arch::asm!(
                "int 0x80",
                inlateout("rax") I386_GETPID => pid,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        Some(pid as i32)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// `getpid` by its x32 number. `None` where the processor has none.
pub fn getpid_by_x32() -> Option<Result<i32>> {
    #[cfg(target_arch = "x86_64")]
    {
        const X32_BIT: libc::c_long = 0x4000_0000;
        // SAFETY: getpid has no arguments.
        let r = unsafe { libc::syscall(X32_BIT | libc::SYS_getpid) };
        Some(check(r).map(|pid| pid as i32))
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Forks until `wanted` children live at the same time or the kernel refuses, then ends them.
/// Answers how many there were. The children do nothing but wait.
pub fn fork_many(wanted: usize) -> (usize, Option<Errno>) {
    let mut children = Vec::with_capacity(wanted);
    let mut refused = None;
    while children.len() < wanted {
        // SAFETY: the child only waits for a signal.
        match check(unsafe { libc::fork() }.into()) {
            Ok(0) => loop {
                // SAFETY: no preconditions.
                unsafe { libc::pause() };
            },
            Ok(pid) => children.push(pid as i32),
            Err(e) => {
                refused = Some(e);
                break;
            }
        }
    }
    for pid in &children {
        let _ = raw::kill(*pid, libc::SIGKILL);
    }
    for pid in &children {
        let _ = raw::wait4(*pid, 0);
    }
    (children.len(), refused)
}

/// Leaves a process behind the way a daemon does (two forks, a session of its own, every signal
/// ignored that can be) that makes the file `late` after `ms` milliseconds. Returns at once.
pub fn leave_behind(ms: u32, late: &CStr) -> Result<()> {
    // SAFETY: both children make raw calls only and end in _exit.
    match check(unsafe { libc::fork() }.into())? {
        0 => {
            let _ = raw::setsid();
            // SAFETY: as above.
            if check(unsafe { libc::fork() }.into()).is_ok_and(|pid| pid == 0) {
                ignore_signals();
                let _ = raw::close_from(0, false);
                sleep(ms);
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC;
                let _ = raw::openat(libc::AT_FDCWD, late, flags, 0o600);
            }
            raw::exit(0)
        }
        pid => raw::wait4(pid as i32, 0).map(|_| ()),
    }
}

/// Ignores every signal that can be ignored.
pub fn ignore_signals() {
    const LAST: i32 = 64;
    for signal in 1..=LAST {
        // SAFETY: setting a disposition to "ignore"; SIGKILL and SIGSTOP answer EINVAL.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn sleep(ms: u32) {
    let time = libc::timespec {
        tv_sec: libc::time_t::from((ms / 1000) as i32),
        tv_nsec: libc::c_long::from((ms % 1000 * 1_000_000) as i32),
    };
    // SAFETY: a valid timespec; the rest is not asked for.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// A pseudo terminal: master and the slave's path.
pub fn terminal() -> Result<(OwnedFd, std::ffi::CString)> {
    // SAFETY: integers only.
    let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    check(fd.into())?;
    // SAFETY: just made, owned by nobody else.
    let master = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut name = [0u8; 64];
    // SAFETY: a valid descriptor; the buffer is valid for its length.
    let r = unsafe {
        libc::grantpt(fd);
        libc::unlockpt(fd);
        libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len())
    };
    if r != 0 {
        return Err(Errno(r));
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno(libc::ENAMETOOLONG))?;
    Ok((master, name.to_owned()))
}

/// Makes the terminal at `path` the controlling terminal of a new session and the caller's standard
/// input; the session's leader is the caller.
pub fn take_terminal(path: &CStr) -> Result<()> {
    raw::setsid()?;
    let fd = raw::openat(libc::AT_FDCWD, path, libc::O_RDWR, 0)?;
    crate::tty::make_controlling(fd)?;
    raw::dup3(fd, 0, 0).or_else(|e| if fd == 0 { Ok(()) } else { Err(e) })
}

/// What a launcher refuses to what it starts, to play a host that lacks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refuse {
    /// Namespaces answer EPERM and `clone3` ENOSYS, as under a container's filter.
    pub namespaces: bool,
    /// Landlock answers ENOSYS, as on a kernel without it.
    pub landlock: bool,
    /// Mounting answers EPERM, as under AppArmor's restriction.
    pub mounts: bool,
    /// `clone3` alone answers ENOSYS.
    pub clone3: bool,
    /// A kernel without netfilter's netlink.
    pub nftables: bool,
}

/// Installs the filter for [`Refuse`] on the caller and what it starts.
pub fn refuse(what: Refuse) -> Result<()> {
    use crate::seccomp::{Flags, SockFilter, install, native};
    const LD: u16 = 0x20;
    const JEQ: u16 = 0x15;
    const JSET: u16 = 0x45;
    const RET: u16 = 0x06;
    const ARG0: u32 = 16;
    const ARG2: u32 = 32;
    const ALLOW: u32 = 0x7FFF_0000;
    const ERRNO: u32 = 0x0005_0000;
    const NEW_ANY: u32 = 0x7E02_0000;
    let op = |code, k| SockFilter { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| SockFilter { code, jt, jf, k };
    let arch = native().ok_or(Errno(libc::ENOSYS))?;
    let mut program = vec![op(LD, 4), jump(JEQ, arch.audit(), 1, 0), op(RET, ALLOW)];
    let mut deny = |nr: libc::c_long, errno: i32| {
        program.push(op(LD, 0));
        program.push(jump(JEQ, nr as u32, 0, 1));
        program.push(op(RET, ERRNO | errno as u32));
    };
    if what.namespaces || what.clone3 {
        deny(libc::SYS_clone3, libc::ENOSYS);
    }
    if what.namespaces {
        deny(libc::SYS_setns, libc::EPERM);
    }
    if what.landlock {
        deny(libc::SYS_landlock_create_ruleset, libc::ENOSYS);
        deny(libc::SYS_landlock_add_rule, libc::ENOSYS);
        deny(libc::SYS_landlock_restrict_self, libc::ENOSYS);
    }
    if what.mounts {
        deny(libc::SYS_mount, libc::EPERM);
        deny(libc::SYS_mount_setattr, libc::EPERM);
        deny(libc::SYS_move_mount, libc::EPERM);
    }
    if what.namespaces {
        for nr in [libc::SYS_clone, libc::SYS_unshare] {
            program.push(op(LD, 0));
            program.push(jump(JEQ, nr as u32, 0, 3));
            program.push(op(LD, ARG0));
            program.push(jump(JSET, NEW_ANY, 0, 1));
            program.push(op(RET, ERRNO | libc::EPERM as u32));
        }
    }
    if what.nftables {
        program.push(op(LD, 0));
        program.push(jump(JEQ, libc::SYS_socket as u32, 0, 5));
        program.push(op(LD, ARG0));
        program.push(jump(JEQ, libc::AF_NETLINK as u32, 0, 3));
        program.push(op(LD, ARG2));
        program.push(jump(JEQ, libc::NETLINK_NETFILTER as u32, 0, 1));
        program.push(op(RET, ERRNO | libc::EPROTONOSUPPORT as u32));
    }
    program.push(op(RET, ALLOW));
    raw::set_no_new_privs()?;
    install(&program, Flags::NONE).map_err(|e| Errno(e.raw_os_error()))
}
