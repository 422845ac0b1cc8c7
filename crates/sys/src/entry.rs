//! The program's entry without the standard library's runtime around `main`.
//!
//! That runtime reads `/proc/self/maps` to find the guard page of the main thread, and makes an
//! alternative stack for the message on stack overflow: a twentieth of the whole start of a sandbox,
//! for a message. What it does that matters is done here: closed standard descriptors are filled, so
//! that no file opened later becomes stdout, and SIGPIPE is ignored.

use crate::raw;

/// Bytes behind the initialised data that a run writes to before it is planned: most of what it takes
/// of the [arena](crate::arena), which lies there.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
const EARLY: usize = 0x22000;

// The first instructions of the static release binary, in place of the C library's `_start` (see
// build.rs of the command line). Relocating a position independent program writes to each of its pages
// with pointers, planning to each page of the arena, and every first write is a trap: a hundred. One call
// makes all these pages at once. Where it fails (before Linux 5.14), they come one by one.
//
// Nothing is relocated yet and no C library is there, so it is written without both. rsp and rdx are what
// `_start` is given; the call preserves all but rax, rcx and r11.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
std::arch::global_asm!(
    ".globl ringfence_start",
    ".hidden ringfence_start",
    ".type ringfence_start, @function",
    "ringfence_start:",
    ".hidden __ehdr_start",
    ".hidden __bss_start",
    "lea r8, [rip + __ehdr_start]",
    // The program headers: where, how many.
    "mov rax, [r8 + 32]",
    "movzx ecx, word ptr [r8 + 56]",
    "add rax, r8",
    "2: cmp dword ptr [rax], {relro}",
    "je 3f",
    "add rax, 56",
    "dec ecx",
    "jnz 2b",
    "jmp 4f",
    // From the first page with relocated pointers on.
    "3: mov rdi, [rax + 16]",
    "add rdi, r8",
    "and rdi, -4096",
    "lea rsi, [rip + __bss_start]",
    "add rsi, {early} + 4095",
    "sub rsi, rdi",
    "and rsi, -4096",
    "mov r9, rdx",
    "mov edx, {populate_write}",
    "mov eax, {madvise}",
    "syscall",
    "mov rdx, r9",
    "4: jmp _start",
    ".size ringfence_start, . - ringfence_start",
    relro = const 0x6474_e552_u32,
    early = const EARLY,
    populate_write = const libc::MADV_POPULATE_WRITE,
    madvise = const libc::SYS_madvise,
);

/// Called by [`entry_point!`](crate::entry_point).
pub fn run(main: impl FnOnce() -> u8) -> i32 {
    fill_standard_descriptors();
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    i32::from(main())
}

fn fill_standard_descriptors() {
    let closed = |fd: i32| libc::pollfd { fd, events: 0, revents: 0 };
    let mut fds = [closed(0), closed(1), closed(2)];
    if !matches!(raw::poll(&mut fds, 0), Ok(n) if n > 0) {
        return;
    }
    for fd in fds.iter().filter(|f| f.revents & libc::POLLNVAL != 0) {
        // The lowest free number is this one, since they are filled in order.
        match raw::openat(libc::AT_FDCWD, c"/dev/null", libc::O_RDWR, 0) {
            Ok(opened) if opened == fd.fd => {}
            _ => raw::exit(125),
        }
    }
}

/// Makes `$main`, a function without arguments that answers an exit code (`u8`), the program's entry.
/// The crate needs `#![no_main]`.
#[macro_export]
macro_rules! entry_point {
    ($main:path) => {
        /// What the C library calls.
        #[unsafe(no_mangle)]
        pub extern "C" fn main(_count: i32, _arguments: *const *const std::ffi::c_char) -> i32 {
            $crate::entry::run($main)
        }
    };
}
