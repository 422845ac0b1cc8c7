//! Overlay mounts through the new mount API. Callable between `clone3` and `execve`, as
//! [`crate::raw`]: no allocation, no locks.
//!
//! Layers are named by paths relative to the current directory: kernels before 6.15 take attached
//! mounts only, and none takes a detached one that another user namespace made.

use std::ffi::CStr;

use crate::raw::{self, Errno, Result};

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const SET_FLAG: u32 = 0;
const SET_STRING: u32 = 1;
const CMD_CREATE: u32 = 6;
/// Bytes of one string that `fsconfig` takes, with its NUL.
const MOST: usize = 256;

/// Sealed deltas and the directory below them that one overlay may have. The kernel's own limit is
/// 500; every one of them costs each lookup of a name that does not exist.
pub const MOST_LOWER: usize = 480;

/// What one overlay is made of.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// Top first; paths relative to the current directory.
    pub lower: &'a [&'a CStr],
    /// What gets the changes, and an empty directory on the same mount. `None`: read-only, and at least
    /// two are below.
    pub upper: Option<(&'a CStr, &'a CStr)>,
    /// Nothing is written back when it is unmounted or asked to be by `fsync`: what is written lies in
    /// the page cache like that of any other program, and the delta is made durable elsewhere.
    pub volatile: bool,
}

/// Makes the mount, attached nowhere. `attributes`: [`raw::mnt`].
pub fn mount(overlay: &Overlay<'_>, attributes: u64) -> Result<i32> {
    let context = raw::fsopen(c"overlay", FSOPEN_CLOEXEC)?;
    let made = configure(context, overlay)
        .and_then(|()| raw::fsmount(context, FSMOUNT_CLOEXEC, attributes as u32));
    raw::close(context);
    made
}

fn configure(context: i32, overlay: &Overlay<'_>) -> Result<()> {
    lower(context, overlay.lower)?;
    if let Some((upper, work)) = overlay.upper {
        string(context, c"upperdir", upper)?;
        string(context, c"workdir", work)?;
    }
    // Only the owner of the file system could set attributes of the other kind.
    flag(context, c"userxattr")?;
    if overlay.volatile && overlay.upper.is_some() {
        flag(context, c"volatile")?;
    }
    raw::fsconfig(context, CMD_CREATE, None, None)
}

fn lower(context: i32, paths: &[&CStr]) -> Result<()> {
    let (first, rest) = paths.split_first().ok_or(Errno(libc::EINVAL))?;
    match string(context, c"lowerdir+", first) {
        Ok(()) => rest.iter().try_for_each(|path| string(context, c"lowerdir+", path)),
        // Before Linux 6.7: all in one.
        Err(Errno(libc::EINVAL)) => {
            let mut joined = [0u8; MOST];
            string(context, c"lowerdir", join(paths, &mut joined)?)
        }
        Err(e) => Err(e),
    }
}

fn join<'a>(paths: &[&CStr], into: &'a mut [u8; MOST]) -> Result<&'a CStr> {
    let mut n = 0;
    for path in paths {
        let bytes = path.to_bytes();
        if n > 0 {
            *into.get_mut(n).ok_or(Errno(libc::E2BIG))? = b':';
            n += 1;
        }
        into.get_mut(n..n + bytes.len()).ok_or(Errno(libc::E2BIG))?.copy_from_slice(bytes);
        n += bytes.len();
    }
    CStr::from_bytes_until_nul(into).map_err(|_| Errno(libc::E2BIG))
}

fn string(context: i32, key: &CStr, value: &CStr) -> Result<()> {
    raw::fsconfig(context, SET_STRING, Some(key), Some(value))
}

fn flag(context: i32, key: &CStr) -> Result<()> {
    raw::fsconfig(context, SET_FLAG, Some(key), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_get_one_string() {
        let mut buffer = [0u8; MOST];
        assert_eq!(join(&[c"0", c"1/tree", c"22"], &mut buffer), Ok(c"0:1/tree:22"));
        let mut buffer = [0u8; MOST];
        assert_eq!(join(&[c"123"; 65], &mut buffer), Err(Errno(libc::E2BIG)));
        // 64 names of three letters, 63 colons and a NUL are 256.
        let mut buffer = [0u8; MOST];
        assert_eq!(join(&[c"123"; 64], &mut buffer).map(CStr::count_bytes), Ok(255));
        let mut buffer = [0u8; MOST];
        assert_eq!(
            join(&[c"12345"; 43], &mut buffer),
            Err(Errno(libc::E2BIG)),
            "no room for a NUL"
        );
    }
}
