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

/// Sends `signal` to what `pid` started after the process `since` was started, with everything below it:
/// to its children, and to the caller's own that are in its session, which have lost their parents.
/// Nothing where `since` is gone.
pub fn signal_since(pid: i32, since: i32, signal: i32) {
    let Some((_, began)) = session_and_start(since) else { return };
    let is_newer = |child: i32, session: Option<i32>| {
        child != since
            && session_and_start(child).is_some_and(|(its, start)| {
                (start, child) > (began, since) && session.is_none_or(|session| session == its)
            })
    };
    for (parent, session) in [(pid, None), (raw::getpid(), Some(pid))] {
        each_child(parent, &mut |child| {
            if child != pid && is_newer(child, session) {
                signal_tree(child, signal);
            }
        });
    }
}

fn signal_below(pid: i32, signal: i32, depth: u32) {
    const DEEPEST: u32 = 64;
    if depth > DEEPEST {
        return;
    }
    each_child(pid, &mut |child| {
        signal_below(child, signal, depth + 1);
        let _ = raw::kill(child, signal);
    });
}

fn each_child(pid: i32, each: &mut dyn FnMut(i32)) {
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
                each(number);
                number = 0;
                digits = false;
            }
        }
    }
    raw::close(fd);
}

/// Of which session a process is, and when it was started, in ticks.
fn session_and_start(pid: i32) -> Option<(i32, u64)> {
    if pid <= 0 {
        return None;
    }
    let mut path = [0u8; 64];
    let path = proc_path(pid, &[b"/stat\0"], &mut path)?;
    let fd = raw::openat(libc::AT_FDCWD, path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    let mut text = [0u8; 1024];
    let read = raw::read(fd, &mut text);
    raw::close(fd);
    session_and_start_in(text.get(..read.ok()?)?)
}

/// The name, in parentheses, may hold anything; what follows are numbers.
fn session_and_start_in(stat: &[u8]) -> Option<(i32, u64)> {
    let name_ends = stat.iter().rposition(|b| *b == b')')?;
    let mut fields = stat.get(name_ends + 2..)?.split(|b| *b == b' ');
    let mut number = |skip: usize| {
        fields.nth(skip)?.iter().try_fold(0u64, |n, b| {
            b.is_ascii_digit().then(|| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')))
        })
    };
    Some((number(3)? as i32, number(15)?))
}

fn children_path(pid: i32, buffer: &mut [u8; 64]) -> Option<&std::ffi::CStr> {
    let (mut digits, from) = decimal(pid);
    proc_path(pid, &[b"/task/", digits.get_mut(from..)?, b"/children\0"], buffer)
}

/// `/proc/PID` and these parts; the last ends with a NUL.
fn proc_path<'b>(
    pid: i32,
    parts: &[&[u8]],
    buffer: &'b mut [u8; 64],
) -> Option<&'b std::ffi::CStr> {
    let (digits, from) = decimal(pid);
    let mut n = 0;
    let first: [&[u8]; 2] = [b"/proc/", digits.get(from..)?];
    for part in first.iter().chain(parts) {
        buffer.get_mut(n..n + part.len())?.copy_from_slice(part);
        n += part.len();
    }
    std::ffi::CStr::from_bytes_until_nul(&buffer[..n]).ok()
}

/// The digits of a pid, and where they begin.
fn decimal(pid: i32) -> ([u8; 10], usize) {
    let mut digits = [0u8; 10];
    let mut from = digits.len();
    let mut rest = pid.unsigned_abs();
    while rest > 0 || from == digits.len() {
        from -= 1;
        digits[from] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    (digits, from)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_confuse_what_is_read_of_a_process() {
        let rest = "S 1 22 33 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 777 99 1";
        for name in ["sh", ") S 9 9 9 (", "a b)"] {
            let stat = format!("12 ({name}) {rest}");
            assert_eq!(session_and_start_in(stat.as_bytes()), Some((33, 777)), "{name}");
        }
        assert_eq!(session_and_start_in(b"12 (sh) S 1 2"), None);
        let own = std::process::id() as i32;
        assert!(session_and_start(own).is_some_and(|(_, start)| start > 0));
        assert_eq!(session_and_start(-1), None);
    }
}
