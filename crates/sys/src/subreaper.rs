//! Killing a whole tree of processes without a pid namespace: the killer is a child subreaper, so
//! whatever loses its parent becomes its child.

use crate::raw::{self, Result};

/// Orphans of the caller's descendants are re-parented to the caller from now on.
pub fn become_subreaper() -> Result<()> {
    raw::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0).map(|_| ())
}

const MOST_CHILDREN_BYTES: usize = 64 * 1024;

/// Sends `signal` to the direct children and everything below them, as
/// `/proc/PID/task/PID/children` lists it. New processes may appear meanwhile; callers that must end
/// all use [`end_all`], which repeats.
pub fn kill_descendants(signal: i32) {
    signal_below(raw::getpid(), signal, 0);
}

/// Sends `signal` to everything below `pid`, as [`kill_descendants`], and then to `pid`.
pub fn signal_tree(pid: i32, signal: i32) {
    signal_below(pid, signal, 0);
    let _ = raw::kill(pid, signal);
}

fn signal_below(pid: i32, signal: i32, depth: u32) {
    const DEEPEST: u32 = 64;
    if depth > DEEPEST {
        return;
    }
    let mut path = [0u8; 64];
    let Some(path) = children_path(pid, &mut path) else { return };
    let Ok(fd) = raw::openat(libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_CLOEXEC, 0) else {
        return;
    };
    let mut number: i32 = 0;
    let mut digits = false;
    let mut total = 0;
    let mut chunk = [0u8; 512];
    while let Ok(n) = raw::read(fd, &mut chunk) {
        if n == 0 || total > MOST_CHILDREN_BYTES {
            break;
        }
        total += n;
        for b in &chunk[..n] {
            if b.is_ascii_digit() {
                number = number.wrapping_mul(10).wrapping_add(i32::from(b - b'0'));
                digits = true;
            } else if digits {
                signal_below(number, signal, depth + 1);
                let _ = raw::kill(number, signal);
                number = 0;
                digits = false;
            }
        }
    }
    raw::close(fd);
}

fn children_path(pid: i32, buffer: &mut [u8; 64]) -> Option<&std::ffi::CStr> {
    let mut n = 0;
    let mut put = |bytes: &[u8], n: &mut usize| {
        buffer[*n..*n + bytes.len()].copy_from_slice(bytes);
        *n += bytes.len();
    };
    let mut digits = [0u8; 10];
    let mut count = 0;
    let mut rest = pid.unsigned_abs();
    while rest > 0 || count == 0 {
        digits[count] = b'0' + (rest % 10) as u8;
        rest /= 10;
        count += 1;
    }
    digits[..count].reverse();
    put(b"/proc/", &mut n);
    put(&digits[..count], &mut n);
    put(b"/task/", &mut n);
    put(&digits[..count], &mut n);
    put(b"/children\0", &mut n);
    std::ffi::CStr::from_bytes_until_nul(&buffer[..n]).ok()
}

/// Kills and reaps until no child is left. Bounded: a fork bomb that outruns it is stopped first
/// (SIGSTOP to all), then killed.
pub fn end_all() {
    const ROUNDS: u32 = 10_000;
    for _ in 0..ROUNDS {
        kill_descendants(libc::SIGSTOP);
        kill_descendants(libc::SIGKILL);
        loop {
            match raw::wait4(-1, libc::WNOHANG) {
                Ok((0, _)) => break,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}
