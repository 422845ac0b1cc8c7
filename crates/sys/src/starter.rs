//! Starts programs from a small process that must never wait for what it starts.
//!
//! As with `vfork` the new process runs in the caller's memory until it executes the program, so that
//! nothing is copied; unlike with `vfork` the caller goes on meanwhile. So each start has a place of its
//! own ([`PLACES`]) for what the new process reads and for its stack, and the kernel clears a word in it
//! when the memory is no longer used: the program is executed, or the process is gone. One that is stopped
//! in between (any process of the sandbox may do that to it) keeps its place and nobody waits.
//!
//! The new process makes bare system calls only: it shares the caller's errno and thread-local storage.
//! Nothing here allocates.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use crate::bare;
use crate::raw::{self, Errno, Result};
use crate::seccomp::SockFilter;

/// Starts that may be under way at once.
pub const PLACES: usize = 8;
/// The most that one request may hold: its strings with their NULs. What a socket takes as one message
/// by default is 208 KiB.
pub const MOST_BYTES: usize = 160 << 10;
/// Strings of one request.
const MOST_STRINGS: usize = 8192;
const STACK: usize = 32 << 10;

/// What the strings of a request are, in this order: working directory, paths to try, arguments,
/// environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub candidates: u16,
    pub arguments: u16,
    pub variables: u16,
}

/// Where a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    Descriptors = 1,
    Directory = 2,
    Execute = 3,
    /// The filters of [`Watched`].
    Filter = 4,
}

/// What each new process is put under before it executes, besides what it inherits.
#[derive(Clone, Copy, Debug)]
pub struct Watched<'a> {
    /// A filter of system calls; may be empty.
    pub filter: &'a [SockFilter],
    /// A filter that holds calls ([`crate::notify`]).
    pub watch: &'a [SockFilter],
    /// Where the listener of that one is sent, with one byte: the other end is the caller's.
    pub socket: i32,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The program is not yet executed.
    Pending,
    Executed,
    Failed(Step, Errno),
}

#[repr(C, align(64))]
struct Place {
    stack: [u8; STACK],
    bytes: [u8; MOST_BYTES],
    pointers: [*const libc::c_char; MOST_STRINGS],
    counts: Counts,
    fds: [i32; 3],
    /// The first of them is to control the new session.
    terminal: bool,
    /// Of [`Watched`]: the filters, and the socket; without, no instructions.
    filters: [libc::sock_fprog; 2],
    socket: i32,
    /// Not zero while the new process may use this place. Cleared by the kernel.
    used: AtomicU32,
    step: AtomicI32,
    errno: AtomicI32,
}

/// The places. Zeroed memory that is only there once it is used.
#[derive(Debug)]
pub struct Starter<'a> {
    places: NonNull<Place>,
    watched: Option<Watched<'a>>,
}

impl<'a> Starter<'a> {
    pub fn new(watched: Option<Watched<'a>>) -> Result<Self> {
        let fits = |f: &[SockFilter]| f.len() <= crate::seccomp::MAX_INSTRUCTIONS;
        if watched.is_some_and(|w| w.watch.is_empty() || !fits(w.watch) || !fits(w.filter)) {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: a fresh anonymous mapping, no address asked for.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                std::mem::size_of::<Place>() * PLACES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(memory.cast::<Place>())
            .map(|places| Self { places, watched })
            .ok_or(Errno(libc::ENOMEM))
    }

    fn place(&self, index: usize) -> *mut Place {
        // SAFETY: within the mapping, which never goes; an index beyond it is the last place.
        unsafe { self.places.as_ptr().add(index.min(PLACES - 1)) }
    }

    /// A place that nobody uses.
    pub fn free(&self) -> Option<usize> {
        // SAFETY: only the atomic word is referred to; zeros are valid.
        (0..PLACES).find(|i| unsafe { &(*self.place(*i)).used }.load(Ordering::Acquire) == 0)
    }

    /// The bytes of a free place, to be filled with the strings of a request.
    pub fn bytes(&mut self, place: usize) -> &mut [u8] {
        // SAFETY: the place is free, so no other process uses it; zeros are valid bytes.
        unsafe { &mut (*self.place(place)).bytes }
    }

    /// Starts what the bytes from `offset` to `len` of a free place say, with `fds` (3 or above) as 0, 1
    /// and 2, as the leader of a session of its own, which the first of these controls where it is a
    /// `terminal`. Answers its pid; it may still fail.
    pub fn start(
        &mut self,
        place: usize,
        len: usize,
        offset: usize,
        counts: Counts,
        (fds, terminal): ([i32; 3], bool),
    ) -> Result<i32> {
        let at = self.place(place);
        // SAFETY: the place is free, so nobody else refers to it until the clone below.
        let p = unsafe { &mut *at };
        if p.used.load(Ordering::Acquire) != 0 {
            return Err(Errno(libc::EBUSY));
        }
        let strings = p.bytes.get(offset..len).ok_or(Errno(libc::EINVAL))?;
        point(strings, counts, &mut p.pointers)?;
        p.counts = counts;
        p.fds = fds;
        p.terminal = terminal;
        let (filter, watch, socket) = match self.watched {
            Some(Watched { filter, watch, socket }) => (filter, watch, socket),
            None => (&[][..], &[][..], -1),
        };
        p.filters = [filter, watch].map(|program| libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut().cast(),
        });
        p.socket = socket;
        p.step.store(0, Ordering::Relaxed);
        p.errno.store(0, Ordering::Relaxed);
        p.used.store(1, Ordering::Release);
        let word = (&raw const p.used).cast_mut();
        let top = (&raw mut p.stack).cast::<u8>();
        let flags = libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
        // SAFETY: the stack is large enough, its end is aligned to 16 and nobody else uses it while
        // `used` is set; the word lives as long as the mapping; `start` follows the rules above.
        let pid = unsafe {
            libc::clone(
                start,
                top.add(STACK).cast(),
                flags,
                at.cast(),
                std::ptr::null_mut::<libc::pid_t>(),
                std::ptr::null_mut::<libc::c_void>(),
                word,
            )
        };
        if pid < 0 {
            let errno = Errno::last();
            p.used.store(0, Ordering::Release);
            return Err(errno);
        }
        Ok(pid)
    }

    /// Waits for the start at a place, at most `ms` milliseconds.
    pub fn wait(&self, place: usize, ms: u32) {
        // SAFETY: only the atomic word is referred to.
        let used = unsafe { &(*self.place(place)).used };
        let word = used.load(Ordering::Acquire);
        if word != 0 {
            raw::futex_wait_for(used, word, ms);
        }
    }

    /// How the start at a place stands. After anything but [`Progress::Pending`] the place is free.
    pub fn progress(&self, place: usize) -> Progress {
        // SAFETY: only atomics are referred to.
        let (used, step, errno) = unsafe {
            let p = self.place(place);
            (&(*p).used, &(*p).step, &(*p).errno)
        };
        if used.load(Ordering::Acquire) != 0 {
            return Progress::Pending;
        }
        let errno = Errno(errno.load(Ordering::Relaxed));
        match step.load(Ordering::Relaxed) {
            0 => Progress::Executed,
            1 => Progress::Failed(Step::Descriptors, errno),
            2 => Progress::Failed(Step::Directory, errno),
            4 => Progress::Failed(Step::Filter, errno),
            _ => Progress::Failed(Step::Execute, errno),
        }
    }
}

/// Fills in where each string begins, with a null after paths, arguments and variables. The strings must
/// be exactly as many as `counts` says.
fn point(
    strings: &[u8],
    counts: Counts,
    pointers: &mut [*const libc::c_char; MOST_STRINGS],
) -> Result<()> {
    let invalid = Errno(libc::EINVAL);
    let mut rest = strings;
    let mut at = 0;
    let mut put = |pointer: *const libc::c_char| -> Result<()> {
        *pointers.get_mut(at).ok_or(Errno(libc::E2BIG))? = pointer;
        at += 1;
        Ok(())
    };
    let groups = [1, counts.candidates, counts.arguments, counts.variables];
    for (group, count) in groups.into_iter().enumerate() {
        for _ in 0..count {
            let end = rest.iter().position(|b| *b == 0).ok_or(invalid)?;
            put(rest.as_ptr().cast())?;
            rest = rest.get(end + 1..).ok_or(invalid)?;
        }
        if group > 0 {
            put(std::ptr::null())?;
        }
    }
    if rest.is_empty() && counts.candidates > 0 && counts.arguments > 0 {
        Ok(())
    } else {
        Err(invalid)
    }
}

/// For the fuzzer: whether strings are taken. Every pointer then leads into them, to a text that ends there.
#[cfg(feature = "fuzzing")]
pub fn is_taken(strings: &[u8], counts: Counts) -> bool {
    let mut pointers = [std::ptr::null(); MOST_STRINGS];
    if point(strings, counts, &mut pointers).is_err() {
        return false;
    }
    let begin = strings.as_ptr().addr();
    for pointer in pointers.iter().filter(|p| !p.is_null()) {
        let rest = pointer.addr().checked_sub(begin).and_then(|at| strings.get(at..));
        assert!(rest.is_some_and(|rest| rest.contains(&0)), "a pointer leads out");
    }
    true
}

/// The new process, in the memory of its parent.
extern "C" fn start(place: *mut libc::c_void) -> libc::c_int {
    let place = place.cast::<Place>();
    // SAFETY: the place belongs to this process until it executes or ends; its parent only looks at
    // `used`. Every call takes pointers into it or integers.
    unsafe {
        let call = |number: libc::c_long, a: [usize; 4]| -> i32 { bare::syscall(number, a) as i32 };
        let fail = |step: Step, code: i32| -> ! {
            (*place).errno.store(-code, Ordering::Relaxed);
            (*place).step.store(step as i32, Ordering::Relaxed);
            loop {
                call(libc::SYS_exit_group, [127, 0, 0, 0]);
            }
        };
        call(libc::SYS_setsid, [0; 4]);
        for i in 0..3 {
            let r = call(libc::SYS_dup3, [(*place).fds[i] as usize, i, 0, 0]);
            if r < 0 {
                fail(Step::Descriptors, r);
            }
        }
        if (*place).terminal {
            let r = call(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0, 0]);
            if r < 0 {
                fail(Step::Descriptors, r);
            }
        }
        let r = watch(place);
        if r < 0 {
            fail(Step::Filter, r);
        }
        let r = call(libc::SYS_close_range, [3, u32::MAX as usize, 0, 0]);
        if r < 0 {
            fail(Step::Descriptors, r);
        }
        let pointers = (&raw const (*place).pointers).cast::<*const libc::c_char>();
        let r = call(libc::SYS_chdir, [*pointers as usize, 0, 0, 0]);
        if r < 0 {
            fail(Step::Directory, r);
        }
        let none = 0u64;
        let mask = (&raw const none) as usize;
        call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, mask, 0, 8]);
        let counts = (*place).counts;
        let candidates = pointers.add(1);
        let arguments = candidates.add(usize::from(counts.candidates) + 1);
        let variables = arguments.add(usize::from(counts.arguments) + 1);
        // As `execvp` does: a missing one is passed over, a forbidden one remembered.
        let mut worst = -libc::ENOENT;
        for i in 0..usize::from(counts.candidates) {
            let path = *candidates.add(i);
            let r =
                call(libc::SYS_execve, [path as usize, arguments as usize, variables as usize, 0]);
            match -r {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = r,
                libc::ENOEXEC => fail(Step::Execute, by_shell(path, arguments, variables)),
                _ => fail(Step::Execute, r),
            }
        }
        fail(Step::Execute, worst)
    }
}

/// A control message with one descriptor.
#[repr(C)]
struct Control {
    head: libc::cmsghdr,
    fd: libc::c_int,
    rest: libc::c_int,
}

/// Puts this process under the filters of its place and sends the listener away.
///
/// # Safety
/// The place is this process's; its filters and socket are those of a [`Watched`] that lives.
unsafe fn watch(place: *const Place) -> i32 {
    const SPEC_ALLOW: usize = 1 << 2;
    const NEW_LISTENER: usize = 1 << 3;
    const WAIT_KILLABLE: usize = 1 << 5;
    // SAFETY: as promised by the caller; the messages live on this stack during the call.
    unsafe {
        let load = |program: *const libc::sock_fprog, flags: usize| -> i32 {
            let mode = libc::SECCOMP_SET_MODE_FILTER as usize;
            bare::syscall(libc::SYS_seccomp, [mode, flags, program as usize, 0]) as i32
        };
        let first = &raw const (*place).filters[0];
        let second = &raw const (*place).filters[1];
        if (*second).len == 0 {
            return 0;
        }
        if (*first).len > 0 {
            let r = load(first, SPEC_ALLOW);
            if r < 0 {
                return r;
            }
        }
        let mut listener = load(second, SPEC_ALLOW | NEW_LISTENER | WAIT_KILLABLE);
        if listener == -libc::EINVAL {
            listener = load(second, SPEC_ALLOW | NEW_LISTENER);
        }
        if listener < 0 {
            return listener;
        }
        let mut control: Control = std::mem::zeroed();
        let head = std::mem::size_of::<libc::cmsghdr>();
        control.head.cmsg_len = (head + std::mem::size_of::<libc::c_int>()) as _;
        control.head.cmsg_level = libc::SOL_SOCKET;
        control.head.cmsg_type = libc::SCM_RIGHTS;
        control.fd = listener;
        let mut byte = 1u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = std::mem::size_of::<Control>() as _;
        let at = (&raw const message) as usize;
        let flags = libc::MSG_NOSIGNAL as usize;
        bare::syscall(libc::SYS_sendmsg, [(*place).socket as usize, at, flags, 0]) as i32
    }
}

/// A script without `#!`, by `/bin/sh`. Only returns on failure.
///
/// # Safety
/// The arrays are null-terminated and live until the call returns.
unsafe fn by_shell(
    path: *const libc::c_char,
    arguments: *const *const libc::c_char,
    variables: *const *const libc::c_char,
) -> i32 {
    const MOST: usize = 512;
    const SHELL: &CStr = c"/bin/sh";
    let mut list: [*const libc::c_char; MOST] = [std::ptr::null(); MOST];
    list[0] = SHELL.as_ptr();
    list[1] = path;
    let mut n = 2;
    // SAFETY: as promised by the caller; there always is a first argument.
    unsafe {
        let mut from = arguments.add(1);
        while !(*from).is_null() {
            let Some(slot) = list.get_mut(n) else { return -libc::E2BIG };
            *slot = *from;
            n += 1;
            from = from.add(1);
        }
        if n == MOST {
            return -libc::E2BIG;
        }
        bare::syscall(
            libc::SYS_execve,
            [SHELL.as_ptr() as usize, list.as_ptr() as usize, variables as usize, 0],
        ) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(starter: &mut Starter<'_>, strings: &[&str]) -> usize {
        let mut len = 0;
        for s in strings {
            let bytes = starter.bytes(0);
            bytes[len..len + s.len()].copy_from_slice(s.as_bytes());
            bytes[len + s.len()] = 0;
            len += s.len() + 1;
        }
        len
    }

    fn run(strings: &[&str], counts: Counts) -> Result<(Progress, i32)> {
        let mut starter = Starter::new(None).unwrap();
        let len = fill(&mut starter, strings);
        let fds = [0, 1, 2].map(|fd| raw::dup_from(fd, 10).unwrap());
        let pid = starter.start(0, len, 0, counts, (fds, false));
        fds.into_iter().for_each(raw::close);
        let pid = pid?;
        while starter.progress(0) == Progress::Pending {
            starter.wait(0, 100);
        }
        let (_, status) = raw::wait4(pid, 0).unwrap();
        Ok((starter.progress(0), status))
    }

    #[test]
    fn starts_a_program_and_says_what_failed() {
        let counts = Counts { candidates: 2, arguments: 3, variables: 1 };
        let script = "test \"$A\" = b && exit 7";
        let done =
            run(&["/", "/nonexistent/sh", "/bin/sh", "sh", "-c", script, "A=b"], counts).unwrap();
        assert_eq!(done, (Progress::Executed, 7 << 8));
        let counts = Counts { candidates: 1, arguments: 1, variables: 0 };
        let (progress, _) = run(&["/", "/nonexistent", "x"], counts).unwrap();
        assert_eq!(progress, Progress::Failed(Step::Execute, Errno(libc::ENOENT)));
        let (progress, _) = run(&["/nonexistent", "/bin/sh", "x"], counts).unwrap();
        assert_eq!(progress, Progress::Failed(Step::Directory, Errno(libc::ENOENT)));
    }

    #[test]
    fn a_request_must_have_the_strings_that_it_says() {
        let counts = Counts { candidates: 1, arguments: 1, variables: 1 };
        for strings in [&["/", "/bin/true", "x"][..], &["/", "/bin/true", "x", "A=b", "more"]] {
            assert_eq!(run(strings, counts).unwrap_err(), Errno(libc::EINVAL));
        }
        let none = Counts { candidates: 1, arguments: 0, variables: 0 };
        assert_eq!(run(&["/", "/bin/true"], none).unwrap_err(), Errno(libc::EINVAL));
    }
}
