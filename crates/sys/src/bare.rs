//! System calls that touch nothing but registers: no errno, no thread-local storage. For a process
//! that shares its memory with another one that is running at the same time.

/// Answers the kernel's return value: negative is an errno.
///
/// # Safety
/// As the call itself.
#[inline]
pub unsafe fn syscall(number: libc::c_long, [a, b, c, d]: [usize; 4]) -> isize {
    // SAFETY: the kernel does not look at arguments that a call does not have.
    unsafe { syscall6(number, [a, b, c, d, 0, 0]) }
}

/// As [`syscall`], for calls with more arguments.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "x86_64")]
pub unsafe fn syscall6(number: libc::c_long, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
            in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    ret
}

/// As [`syscall`], for calls with more arguments.
///
/// # Safety
/// As the call itself.
#[cfg(target_arch = "aarch64")]
pub unsafe fn syscall6(number: libc::c_long, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel preserves all registers but x0.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a[0] as isize => ret,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack)
        );
    }
    ret
}
