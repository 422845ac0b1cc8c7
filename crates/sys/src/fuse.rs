//! FUSE: mounting one whose server is another process, and the few calls of a server that rustix lacks.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::raw::{self, Errno, Result, mnt};

/// Where the kernel hands out connections.
pub const DEVICE: &CStr = c"/dev/fuse";

/// Numbers of the new mount API that only a new file system needs; kernel ABI.
mod fs {
    pub const CLOEXEC: u32 = 1;
    pub const SET_FLAG: u32 = 0;
    pub const SET_STRING: u32 = 1;
    pub const CREATE: u32 = 6;
}

/// How a FUSE file system is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Of whoever may use it, as the mounter's user namespace counts.
    pub uid: u32,
    pub gid: u32,
    /// Everybody may use it.
    pub others: bool,
    /// `mnt::ATTR_*`.
    pub attributes: u64,
}

/// Opens the device. The kernel wants the connection opened and mounted in one user namespace, so this
/// is for the process that mounts, before it gives up the right to open it.
pub fn open_device() -> Result<i32> {
    raw::openat(libc::AT_FDCWD, DEVICE, libc::O_RDWR | libc::O_CLOEXEC, 0)
}

/// A detached mount that answers by `device`. Modes and owners are checked by the kernel
/// (`default_permissions`). Callable after a clone: nothing is allocated.
pub fn mount(device: i32, options: &Options) -> Result<i32> {
    // SAFETY: a system call with a constant C string.
    let context =
        check(unsafe { libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), fs::CLOEXEC) })? as i32;
    let made = configure(context, device, options).and_then(|()| {
        // SAFETY: a system call without pointers.
        check(unsafe {
            libc::syscall(libc::SYS_fsmount, context, fs::CLOEXEC, options.attributes as u32)
        })
    });
    raw::close(context);
    made.map(|fd| fd as i32)
}

fn configure(context: i32, device: i32, options: &Options) -> Result<()> {
    let mut text = Number::default();
    set(context, c"source", c"ringfence")?;
    set(context, c"fd", text.of(device as u32))?;
    set(context, c"rootmode", c"40000")?;
    set(context, c"user_id", text.of(options.uid))?;
    set(context, c"group_id", text.of(options.gid))?;
    flag(context, c"default_permissions")?;
    if options.others {
        flag(context, c"allow_other")?;
    }
    command(context, fs::CREATE, std::ptr::null(), std::ptr::null())
}

fn set(context: i32, key: &CStr, value: &CStr) -> Result<()> {
    command(context, fs::SET_STRING, key.as_ptr(), value.as_ptr())
}

fn flag(context: i32, key: &CStr) -> Result<()> {
    command(context, fs::SET_FLAG, key.as_ptr(), std::ptr::null())
}

fn command(
    context: i32,
    command: u32,
    key: *const libc::c_char,
    value: *const libc::c_char,
) -> Result<()> {
    // SAFETY: both pointers are null or come from C strings that outlive the call.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, command, key, value, 0) }).map(|_| ())
}

fn check(ret: libc::c_long) -> Result<usize> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret as usize) }
}

/// Formats a number as a C string without allocating.
#[derive(Default)]
struct Number {
    bytes: [u8; 12],
}

impl Number {
    fn of(&mut self, value: u32) -> &CStr {
        let mut rest = value;
        let mut at = self.bytes.len() - 1;
        self.bytes[at] = 0;
        loop {
            at -= 1;
            self.bytes[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        CStr::from_bytes_until_nul(&self.bytes[at..]).unwrap_or(c"0")
    }
}

/// Attaches a detached mount to `place`, a path below `root`.
pub fn attach(mount: i32, root: i32, place: &CStr) -> Result<()> {
    raw::move_mount(mount, c"", root, place, mnt::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Mounts at `place`, in the caller's own mount namespace, and answers the connection.
pub fn mount_at(place: &CStr, options: &Options) -> Result<OwnedFd> {
    let device = open_device()?;
    // SAFETY: just opened, owned by nobody else.
    let device = unsafe { OwnedFd::from_raw_fd(device) };
    let made = mount(device.as_raw_fd(), options)?;
    let attached = attach(made, libc::AT_FDCWD, place);
    raw::close(made);
    attached.map(|()| device)
}

/// Gives the calling thread a file creation mask of its own, and makes it empty: a server creates with
/// the modes that it is told.
pub fn no_umask() -> Result<()> {
    raw::unshare(libc::CLONE_FS)?;
    // SAFETY: cannot fail, and concerns this thread alone since the line above.
    unsafe { libc::umask(0) };
    Ok(())
}

/// Tells the kernel of a file that it may read and write itself in the name of the server
/// (passthrough). Needs CAP_SYS_ADMIN in the initial namespace.
pub fn backing_open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    #[repr(C)]
    struct Map {
        fd: i32,
        flags: u32,
        padding: u64,
    }
    // _IOW(229, 1, struct fuse_backing_map)
    const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
    let map = Map { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads one such structure.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
    check(libc::c_long::from(id)).map(|id| id as u32)
}

/// Ends what [`backing_open`] began; files that are open keep it.
pub fn backing_close(device: BorrowedFd<'_>, id: u32) {
    // _IOW(229, 2, uint32_t)
    const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
    // SAFETY: the request reads one such number.
    unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, &raw const id) };
}

#[cfg(test)]
mod tests {
    use super::Number;

    #[test]
    fn numbers_are_written_in_full() {
        assert_eq!(Number::default().of(0), c"0");
        assert_eq!(Number::default().of(1_879_048_192), c"1879048192");
        assert_eq!(Number::default().of(u32::MAX), c"4294967295");
    }
}
