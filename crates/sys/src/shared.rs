//! One page shared between the supervisor and the processes it makes: how far set-up came, what
//! failed, how the command ended. Cheaper than a pipe, and readable after the writer died.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU32};

use crate::moments::Moments;
use crate::raw::{Errno, Result};

/// All fields start as zero.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Page {
    /// Set to 1 by the parent when the id maps are written (and trees are ready).
    pub go: AtomicU32,
    /// Non-zero: set-up failed in this stage (`jail::Stage as u32`).
    pub failed_stage: AtomicU32,
    /// Index of the failing step, rule or limit within its stage.
    pub failed_index: AtomicU32,
    pub failed_errno: AtomicI32,
    /// 1 once the command's `execve` is about to run; stays 1 when it succeeded.
    pub started: AtomicU32,
    /// 1 when `wait_status` is valid.
    pub ended: AtomicU32,
    /// 1 when PID 1 has killed and collected everything else: it is alone and about to end.
    pub emptied: AtomicU32,
    /// As `wait4` gave it to PID 1.
    pub wait_status: AtomicI32,
    /// Pid of the command inside the sandbox's namespace.
    pub command: AtomicI32,
    /// Set by the command's process once it is in its own network namespace with loopback up.
    pub net_ready: AtomicU32,
    /// The view is complete: its objects can be named from `/` on.
    pub view_ready: AtomicU32,
    /// Nothing else can be reached any more, init is out of reach and sits in the command's network
    /// namespace: the command may start.
    pub sealed: AtomicU32,
    /// When which step of the set-up was over, where a trace is wanted.
    pub moments: Moments,
}

/// Owns the mapping.
#[derive(Debug)]
pub struct SharedPage {
    page: NonNull<Page>,
}

const SIZE: usize = 4096;

impl SharedPage {
    pub fn new() -> Result<Self> {
        // SAFETY: a fresh anonymous mapping, no address asked for.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(p.cast::<Page>()).map(|page| Self { page }).ok_or(Errno(libc::ENOMEM))
    }
}

impl std::ops::Deref for SharedPage {
    type Target = Page;
    fn deref(&self) -> &Page {
        // SAFETY: the mapping is zeroed (a valid Page: all fields are atomics), aligned to a page,
        // larger than Page, and lives as long as self.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size and not unmapped since.
        unsafe { libc::munmap(self.page.as_ptr().cast(), SIZE) };
    }
}
