//! The slowest part of a sandbox, its network namespace, made while the supervisor still plans.
//!
//! [`Early::start`] makes a helper that shares the supervisor's memory. It enters new namespaces, all
//! but that of processes, brings loopback up, and waits. When the plan is ready, [`Early::fork`] lets it
//! make PID 1 of the sandbox, as a copy of the supervisor's memory at that moment, inside those
//! namespaces and as a child of the supervisor; then it ends. In between it can be given an
//! [`egress::Program`] to carry out.
//!
//! ```text
//! supervisor   start ── parse ── policy ── prepare ── plan ── id maps ── network ── fork ···· waits
//!                 └─ helper: namespaces, loopback ───────────┴─ egress ──┴─ waits ──┴─ clone3 ── ends
//!                                                                                         └─ PID 1
//! ```
//!
//! The helper runs at the same time in the same memory, so until `fork` it makes bare system calls on
//! a stack of its own and touches no thread-local storage. While it forks, the supervisor sleeps, so
//! that the copy holds no half-made change.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use crate::bare;
use crate::egress::{self, Program};
use crate::moments::Moments;
use crate::ns::flags;
use crate::processors::{Processors, WORDS};
use crate::raw::{self, Errno, Result};

/// What the new process does; never returns.
pub type Entry = extern "C" fn(*const libc::c_void) -> !;

/// The namespaces that the helper is in.
pub const MADE: u64 = flags::ALL & !flags::PID;

/// Bits of an order: the second may be given before the helper has seen the first.
const GO: u32 = 1;
const QUIT: u32 = 2;
const PREPARE: u32 = 4;

/// Of its moments.
const BEGUN: usize = 0;
const MADE_THEM: usize = 1;

/// In memory that both processes see.
#[derive(Debug, Default)]
struct Shared {
    /// 0 while namespaces are being made, 1 ready, 2 failed.
    state: AtomicU32,
    /// Why namespaces could not be made.
    refusal: AtomicI32,
    order: AtomicU32,
    /// A [`Program`], once `PREPARE` is ordered; 1 in `network` when its outcome is there.
    program: AtomicUsize,
    network: AtomicU32,
    /// 1 when `pid` and `pidfd` (or `errno`) are valid.
    done: AtomicU32,
    pid: AtomicI32,
    pidfd: AtomicI32,
    errno: AtomicI32,
    flags: AtomicUsize,
    entry: AtomicUsize,
    argument: AtomicUsize,
    parent: AtomicI32,
    /// 1 once the helper may run: it sits on another processor.
    placed: AtomicU32,
    /// Processors that the caller may use; the helper takes them back before it forks.
    processors: [AtomicUsize; WORDS],
    /// When it began to make namespaces and when they were there, where a trace is wanted.
    moments: Moments,
}

/// The helper.
#[derive(Debug)]
pub struct Early {
    pid: i32,
    pidfd: OwnedFd,
    shared: NonNull<Shared>,
    stack: NonNull<libc::c_void>,
    spread: Option<Processors>,
    /// Shared with the helper.
    program: Option<NonNull<Program>>,
    reaped: bool,
}

/// Looks at whether the process is made, before sleeping: somewhat longer than that takes.
const SPINS: u32 = 6000;

/// Enough for PID 1's set-up, which runs on the copy of this stack.
const STACK: usize = 256 << 10;

impl Early {
    /// Starts the helper. `None` where it would not help (no other processor is free) or cannot be made:
    /// the namespaces are then made later, and whatever is wrong shows there.
    pub fn start() -> Option<Self> {
        Self::make(Some(Processors::free()?)).ok()
    }

    /// As [`Early::start`], but also with one processor, and as late as it is needed: nothing else
    /// can set up a network namespace that PID 1 is born into. Whether namespaces could be had says
    /// [`Early::ready`].
    pub fn start_anyway() -> Result<Self> {
        Self::make(Processors::free())
    }

    /// `spread`: the caller's, when one is free for the helper.
    fn make(spread: Option<Processors>) -> Result<Self> {
        grow_descriptor_table();
        let shared = NonNull::from(Box::leak(Box::<Shared>::default()));
        // SAFETY: a fresh anonymous mapping, no address asked for.
        let stack = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        let failed = stack == libc::MAP_FAILED;
        let Some(stack) = NonNull::new(stack).filter(|_| !failed) else {
            return Err(Errno(libc::ENOMEM));
        };
        // Other processes that are made meanwhile need no copy of it. Refused, it only takes memory there.
        // SAFETY: the mapping that was just made.
        unsafe { libc::madvise(stack.as_ptr(), STACK, libc::MADV_DONTFORK) };
        let mut pidfd: i32 = -1;
        // SAFETY: valid while the helper lives: freed only after it was reaped.
        let words = unsafe { shared.as_ref() };
        words.parent.store(raw::getpid(), Ordering::Relaxed);
        for (word, value) in words.processors.iter().zip(spread.unwrap_or_default().0) {
            word.store(value, Ordering::Relaxed);
        }
        let signals = raw::block_signals();
        // The descriptor table is shared, so that what the supervisor opens later reaches PID 1, and
        // PID 1's pidfd the supervisor.
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the stack is large enough, grows down from its end and is freed only after the
        // helper was reaped; the helper touches nothing but `shared` and registers.
        let pid = unsafe {
            libc::clone(
                helper,
                stack.as_ptr().byte_add(STACK),
                flags,
                shared.as_ptr().cast(),
                &raw mut pidfd,
            )
        };
        let errno = Errno::last();
        raw::set_signal_mask(&signals);
        if pid < 0 {
            // SAFETY: no helper exists, so both are unused.
            unsafe { release(shared, stack, None) };
            return Err(errno);
        }
        if let Some(processors) = spread {
            processors.move_away(pid);
        }
        words.placed.store(1, Ordering::Release);
        raw::futex_wake(&words.placed);
        // SAFETY: the kernel stored a new descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid, pidfd, shared, stack, spread, program: None, reaped: false })
    }

    fn shared(&self) -> &Shared {
        // SAFETY: freed only in drop.
        unsafe { self.shared.as_ref() }
    }

    /// Pid of the helper, whose user namespace PID 1 will be in: for `/proc/PID/uid_map`.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The caller's processors, where one was free for the helper.
    pub fn spread(&self) -> Option<Processors> {
        self.spread
    }

    /// When it began to make the namespaces and when they were there, where a trace is wanted.
    pub fn moments(&self) -> Option<(u64, u64)> {
        let moments = &self.shared().moments;
        Some((moments.at(BEGUN)?, moments.at(MADE_THEM)?))
    }

    /// Whether the namespaces could be made. Waits until that is known.
    pub fn ready(&self) -> bool {
        raw::wait_until_set(&self.shared().state);
        self.shared().state.load(Ordering::Acquire) == 1
    }

    /// Whether the helper is still there.
    pub fn is_alive(&self) -> bool {
        !raw::is_dead(raw_fd(&self.pidfd))
    }

    /// Why [`Early::ready`] said no.
    pub fn refusal(&self) -> Errno {
        Errno(self.shared().refusal.load(Ordering::Acquire))
    }

    /// Lets the helper carry out `program` as soon as the namespaces are there; does not wait. Only
    /// the first is taken.
    pub fn prepare(&mut self, program: Program) {
        if self.program.is_some() {
            return;
        }
        let program = NonNull::from(Box::leak(Box::new(program)));
        self.program = Some(program);
        let shared = self.shared();
        shared.program.store(program.as_ptr() as usize, Ordering::Relaxed);
        shared.order.fetch_or(PREPARE, Ordering::Release);
        raw::futex_wake(&shared.order);
    }

    pub fn is_prepared(&self) -> bool {
        self.program.is_some()
    }

    /// Waits for what [`Early::prepare`] began and hands out the sockets.
    pub fn network(&self) -> std::result::Result<egress::Made, egress::Error> {
        let lost = |errno| egress::Error { step: egress::Step::Namespace, errno };
        let Some(program) = self.program else { return Err(lost(Errno(libc::EINVAL))) };
        if !self.ready() {
            return Err(lost(self.refusal()));
        }
        let done = &self.shared().network;
        while done.load(Ordering::Acquire) == 0 {
            raw::futex_wait_for(done, 0, 100);
            if done.load(Ordering::Acquire) == 0 && raw::is_dead(raw_fd(&self.pidfd)) {
                return Err(lost(Errno(libc::ECHILD)));
            }
        }
        // SAFETY: freed only in drop; the helper has let go of it.
        unsafe { program.as_ref() }.result()
    }

    /// Makes the process: in the helper's namespaces plus those of `flags` (`CLONE_NEW*`), a child of
    /// the caller. It runs `entry(argument)` on a copy of the caller's memory.
    ///
    /// # Safety
    /// `entry` may only do what the child of a multi-threaded process may (raw calls on prepared
    /// memory), and must not return.
    pub unsafe fn fork(
        &mut self,
        flags: u64,
        entry: Entry,
        argument: *const libc::c_void,
    ) -> Result<(i32, OwnedFd)> {
        // SAFETY: our own mapping; what is made begins on its copy.
        if unsafe { libc::madvise(self.stack.as_ptr(), STACK, libc::MADV_DOFORK) } != 0 {
            return Err(Errno::last());
        }
        let shared = self.shared();
        shared.flags.store(flags as usize, Ordering::Relaxed);
        shared.entry.store(entry as usize, Ordering::Relaxed);
        shared.argument.store(argument as usize, Ordering::Relaxed);
        shared.order.fetch_or(GO, Ordering::Release);
        raw::futex_wake(&shared.order);
        // The copy is made while this process loops on this word or sleeps. Awake it keeps its processor,
        // and what is made starts on the helper's, which is free then; asleep it would be woken on the
        // processor where the new process has just begun, and hold it up.
        let spins = if self.spread.is_some() { SPINS } else { 0 };
        for _ in 0..spins {
            if shared.done.load(Ordering::Acquire) != 0 {
                break;
            }
            std::hint::spin_loop();
        }
        while shared.done.load(Ordering::Acquire) == 0 {
            raw::futex_wait_for(&shared.done, 0, 100);
            if shared.done.load(Ordering::Acquire) == 0 && raw::is_dead(raw_fd(&self.pidfd)) {
                return Err(Errno(libc::ECHILD));
            }
        }
        match shared.errno.load(Ordering::Relaxed) {
            0 => {
                let pidfd = shared.pidfd.load(Ordering::Relaxed);
                // SAFETY: the helper's clone3 put it into the table that we share.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok((shared.pid.load(Ordering::Relaxed), pidfd))
            }
            errno => Err(Errno(errno)),
        }
    }
}

fn raw_fd(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

impl Drop for Early {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let shared = self.shared();
        shared.order.fetch_or(QUIT, Ordering::AcqRel);
        raw::futex_wake(&shared.order);
        if raw::wait4(self.pid, 0).is_ok() {
            // SAFETY: the helper has ended.
            unsafe { release(self.shared, self.stack, self.program) };
        }
        self.reaped = true;
    }
}

/// # Safety
/// Nobody may use any of them any more.
unsafe fn release(
    shared: NonNull<Shared>,
    stack: NonNull<libc::c_void>,
    program: Option<NonNull<Program>>,
) {
    // SAFETY: made by Box::leak and mmap in `make`, by Box::leak in `prepare`.
    unsafe {
        drop(Box::from_raw(shared.as_ptr()));
        libc::munmap(stack.as_ptr(), STACK);
        if let Some(program) = program {
            drop(Box::from_raw(program.as_ptr()));
        }
    }
}

/// Makes the descriptor table large before it is shared: while it is, the kernel waits for a grace
/// period of RCU each time it must grow, some 5 to 15 ms.
fn grow_descriptor_table() {
    /// Of descriptors: far more than planning holds open at once, and two pages of table.
    const ROOM: i32 = 1024;
    let limit = raw::getrlimit(libc::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let last = ROOM.min(i32::try_from(limit).unwrap_or(ROOM)) - 1;
    // Any open descriptor will do; where there is none, the table only grows later.
    if let Ok(high) = raw::dup_from(0, last) {
        raw::close(high);
    }
}

/// The helper's whole life. Bare system calls only.
extern "C" fn helper(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes a Shared that outlives this process.
    let shared = unsafe { &*argument.cast::<Shared>() };
    let kill = libc::SIGKILL as usize;
    // SAFETY: plain integers.
    unsafe { bare::syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, kill, 0, 0]) };
    // A new process may run at once in the place of the one that made it; that one goes on first.
    while shared.placed.load(Ordering::Acquire) == 0 {
        let timeout = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        let word = shared.placed.as_ptr() as usize;
        let args = [word, libc::FUTEX_WAIT as usize, 0, (&raw const timeout) as usize];
        // SAFETY: the word and the timeout outlive the call.
        unsafe { bare::syscall(libc::SYS_futex, args) };
        // Killed before it could say so, and before we asked to be told of its end.
        if !has_parent(shared) {
            return 0;
        }
    }
    shared.moments.note(BEGUN);
    let refusal = namespaces();
    shared.moments.note(MADE_THEM);
    // What it makes may run anywhere again.
    let size = std::mem::size_of_val(&shared.processors);
    let mask = shared.processors.as_ptr() as usize;
    // SAFETY: the mask outlives the call.
    unsafe { bare::syscall(libc::SYS_sched_setaffinity, [0, size, mask, 0]) };
    shared.refusal.store(refusal, Ordering::Relaxed);
    shared.state.store(if refusal == 0 { 1 } else { 2 }, Ordering::Release);
    wake(&shared.state);
    if refusal != 0 {
        return 1;
    }
    let mut orders = order(shared, 0);
    if orders & PREPARE != 0 && orders & QUIT == 0 {
        let program = shared.program.load(Ordering::Relaxed) as *const Program;
        // SAFETY: `prepare` stored a valid one before the order; it outlives this process.
        egress::carry_out(unsafe { &*program });
        shared.network.store(1, Ordering::Release);
        wake(&shared.network);
        if orders & GO == 0 {
            orders = order(shared, orders);
        }
    }
    if orders & QUIT != 0 {
        return 0;
    }
    let mut pidfd: i32 = -1;
    let mut args = [0u64; 11];
    // With CLONE_PARENT the exit signal is inherited and must not be given.
    args[0] = shared.flags.load(Ordering::Relaxed) as u64
        | libc::CLONE_PARENT as u64
        | libc::CLONE_PIDFD as u64;
    args[1] = (&raw mut pidfd) as u64;
    let size = std::mem::size_of_val(&args);
    // SAFETY: `args` is a clone_args; without CLONE_VM the child gets a copy of all memory.
    let mut pid = unsafe { bare::syscall(libc::SYS_clone3, [args.as_ptr() as usize, size, 0, 0]) };
    if pid == -(libc::ENOSYS as isize) || pid == -(libc::EPERM as isize) {
        // A filter around us that refuses the newer call, as in `ns::clone`: the older one takes the
        // same flags, and the place for the pidfd third.
        let place = (&raw mut pidfd) as usize;
        // SAFETY: as above.
        pid = unsafe { bare::syscall(libc::SYS_clone, [args[0] as usize, 0, place, 0]) };
    }
    if pid == 0 {
        let entry = shared.entry.load(Ordering::Relaxed);
        // SAFETY: `fork` stored a function of exactly this type.
        let entry: Entry = unsafe { std::mem::transmute::<usize, Entry>(entry) };
        entry(shared.argument.load(Ordering::Relaxed) as *const libc::c_void);
    }
    if pid < 0 {
        shared.errno.store(-pid as i32, Ordering::Relaxed);
    } else {
        shared.pid.store(pid as i32, Ordering::Relaxed);
        shared.pidfd.store(pidfd, Ordering::Relaxed);
    }
    shared.done.store(1, Ordering::Release);
    wake(&shared.done);
    0
}

/// 0, or why not.
fn namespaces() -> i32 {
    let flags = MADE as usize;
    let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize;
    // SAFETY: plain integers, and a pointer to an ifreq that outlives the call.
    unsafe {
        let r = bare::syscall(libc::SYS_unshare, [flags, 0, 0, 0]);
        if r != 0 {
            return -r as i32;
        }
        let fd = bare::syscall(libc::SYS_socket, [libc::AF_INET as usize, kind, 0, 0]);
        if fd < 0 {
            return -fd as i32;
        }
        // struct ifreq: 16 bytes of name, then the flags.
        let mut request = [0u64; 5];
        request[0] = u64::from_ne_bytes(*b"lo\0\0\0\0\0\0");
        let up = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
        request[2] =
            u64::from_ne_bytes([up.to_ne_bytes()[0], up.to_ne_bytes()[1], 0, 0, 0, 0, 0, 0]);
        let set = libc::SIOCSIFFLAGS as usize;
        let r = bare::syscall(libc::SYS_ioctl, [fd as usize, set, request.as_ptr() as usize, 0]);
        bare::syscall(libc::SYS_close, [fd as usize, 0, 0, 0]);
        -r as i32
    }
}

/// Waits until there is more to do than `known`; ends when the supervisor is gone.
fn order(shared: &Shared, known: u32) -> u32 {
    loop {
        let order = shared.order.load(Ordering::Acquire);
        if order != known {
            return order;
        }
        let timeout = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        let word = shared.order.as_ptr() as usize;
        let wait = libc::FUTEX_WAIT as usize;
        // SAFETY: the word and the timeout outlive the call.
        unsafe {
            let args = [word, wait, known as usize, (&raw const timeout) as usize];
            bare::syscall(libc::SYS_futex, args);
        }
        if !has_parent(shared) {
            return QUIT;
        }
    }
}

/// Whether the supervisor still lives.
fn has_parent(shared: &Shared) -> bool {
    // SAFETY: no arguments.
    let parent = unsafe { bare::syscall(libc::SYS_getppid, [0; 4]) } as i32;
    parent == shared.parent.load(Ordering::Relaxed)
}

fn wake(word: &AtomicU32) {
    let args = [word.as_ptr() as usize, libc::FUTEX_WAKE as usize, i32::MAX as usize, 0];
    // SAFETY: the word outlives the call.
    unsafe { bare::syscall(libc::SYS_futex, args) };
}
