//! The program's entry without the standard library's runtime around `main`.
//!
//! That runtime reads `/proc/self/maps` to find the guard page of the main thread, and makes an
//! alternative stack for the message on stack overflow: a twentieth of the whole start of a sandbox,
//! for a message. What it does that matters is done here: closed standard descriptors are filled, so
//! that no file opened later becomes stdout, and SIGPIPE is ignored.

use crate::raw;

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
