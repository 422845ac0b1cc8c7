//! Landlock by its three system calls. The `landlock` crate opens, allocates and owns; here the
//! ruleset is made after `clone3`, from constant tables, without allocation, because rules for the
//! private mounts can only be made once these exist.

use std::ffi::CStr;

use crate::raw::{self, Errno, Result};

/// File rights. Values are kernel ABI.
pub mod fs {
    pub const EXECUTE: u64 = 1 << 0;
    pub const WRITE_FILE: u64 = 1 << 1;
    pub const READ_FILE: u64 = 1 << 2;
    pub const READ_DIR: u64 = 1 << 3;
    pub const REMOVE_DIR: u64 = 1 << 4;
    pub const REMOVE_FILE: u64 = 1 << 5;
    pub const MAKE_CHAR: u64 = 1 << 6;
    pub const MAKE_DIR: u64 = 1 << 7;
    pub const MAKE_REG: u64 = 1 << 8;
    pub const MAKE_SOCK: u64 = 1 << 9;
    pub const MAKE_FIFO: u64 = 1 << 10;
    pub const MAKE_BLOCK: u64 = 1 << 11;
    pub const MAKE_SYM: u64 = 1 << 12;
    pub const REFER: u64 = 1 << 13;
    pub const TRUNCATE: u64 = 1 << 14;
    pub const IOCTL_DEV: u64 = 1 << 15;

    /// Rights that make sense on a file rather than a directory.
    pub const ON_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
    pub const READ: u64 = EXECUTE | READ_FILE | READ_DIR;
    /// Listing without content (`view`).
    pub const VIEW: u64 = READ_DIR;
    pub const WRITE: u64 = READ
        | WRITE_FILE
        | REMOVE_DIR
        | REMOVE_FILE
        | MAKE_DIR
        | MAKE_REG
        | MAKE_SOCK
        | MAKE_FIFO
        | MAKE_SYM
        | REFER
        | TRUNCATE;

    /// All file rights that an ABI version knows.
    pub const fn known(abi: u32) -> u64 {
        match abi {
            0 => 0,
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        }
    }
}

pub mod net {
    pub const BIND_TCP: u64 = 1;
    pub const CONNECT_TCP: u64 = 2;
}

pub mod scope {
    pub const ABSTRACT_UNIX: u64 = 1;
    pub const SIGNAL: u64 = 2;
    pub const fn known(abi: u32) -> u64 {
        if abi >= 6 { ABSTRACT_UNIX | SIGNAL } else { 0 }
    }
}

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// The ABI version of the running kernel; 0 where Landlock is absent or off.
pub fn abi() -> u32 {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes a null pointer and size 0 and only answers a number.
    let v = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(v).unwrap_or(0)
}

/// Creates a ruleset that handles what `abi` knows of the given rights. Returns its descriptor.
pub fn create(abi: u32, handled_fs: u64, handled_net: u64, scoped: u64) -> Result<i32> {
    let attr = RulesetAttr {
        handled_access_fs: handled_fs & fs::known(abi),
        handled_access_net: if abi >= 4 { handled_net } else { 0 },
        scoped: scoped & scope::known(abi),
    };
    // Older kernels refuse a longer struct only when the part they do not know is not zero.
    // SAFETY: `attr` is a valid landlock_ruleset_attr for its size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attr,
            std::mem::size_of::<RulesetAttr>(),
            0u32,
        )
    };
    if fd < 0 { Err(Errno::last()) } else { Ok(fd as i32) }
}

/// Allows `access` beneath (or on) the object that `object` refers to.
pub fn allow_fd(ruleset: i32, object: i32, access: u64) -> Result<()> {
    const RULE_PATH_BENEATH: i32 = 1;
    let attr = PathBeneath { allowed_access: access, parent_fd: object };
    // SAFETY: `attr` is a valid landlock_path_beneath_attr.
    let r = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset,
            RULE_PATH_BENEATH,
            &raw const attr,
            0u32,
        )
    };
    if r < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Allows `access` beneath `path` (symlinks in the last component are not followed). Rights that a
/// file cannot have are dropped when `path` is one.
pub fn allow_path(ruleset: i32, abi: u32, path: &CStr, access: u64) -> Result<()> {
    let fd =
        raw::openat(libc::AT_FDCWD, path, libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0)?;
    let mut access = access & fs::known(abi);
    let r = match allow_fd(ruleset, fd, access) {
        Err(Errno(libc::EINVAL)) => {
            access &= fs::ON_FILE;
            if access == 0 { Ok(()) } else { allow_fd(ruleset, fd, access) }
        }
        r => r,
    };
    raw::close(fd);
    r
}

/// Confines the calling thread (and what it will create). Needs `no_new_privs`.
pub fn restrict(ruleset: i32) -> Result<()> {
    // SAFETY: takes two integers.
    let r = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0u32) };
    if r < 0 { Err(Errno::last()) } else { Ok(()) }
}
