//! What is asked of files from outside the sandbox ([`crate::resident`]), where rules speak of names: judged
//! as a call of a command, and made at the same place. Reading is native here as there.

use std::ffi::CStr;

use ringfence_sys::notify::Held;
use ringfence_sys::raw::{self, Errno};

use super::{Allowed, Broker, Place, Res, Text, What};

impl Broker<'_> {
    /// New names are made as a command's first would be.
    pub(crate) fn begin_as_first(&mut self) {
        if self.umask != self.first_umask {
            ringfence_sys::notify::umask(self.first_umask);
            self.umask = self.first_umask;
        }
    }

    fn own_place(&self, path: &CStr, follow: bool) -> Res<Place> {
        // No caller: what only one of those has, such as `/proc/self`, is not there.
        let place = self.settle_text(&Held::default(), -1, Text::of(path.to_bytes())?, follow)?;
        if place.what == What::Name { Ok(place) } else { Err(Errno(libc::EACCES)) }
    }

    fn own_may_change(&self, place: &Place) -> Res<()> {
        if self.judged(place)? < Allowed::Write { Err(Errno(libc::EACCES)) } else { Ok(()) }
    }

    /// An open that writes or makes.
    pub(crate) fn open_own(&mut self, path: &CStr, flags: i32, mode: u32) -> Res<i32> {
        let alone = flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0;
        let place = self.own_place(path, flags & libc::O_NOFOLLOW == 0 && !alone)?;
        if alone && place.status.is_some() {
            return Err(Errno(libc::EEXIST));
        }
        if place.status.is_none() && flags & libc::O_CREAT == 0 {
            return Err(Errno(libc::ENOENT));
        }
        if place.slash {
            return Err(Errno(libc::EISDIR));
        }
        self.own_may_change(&place)?;
        self.begin_as_first();
        raw::openat(place.parent.0, place.name.c(), flags | libc::O_NOFOLLOW, mode)
    }

    pub(crate) fn mkdir_own(&mut self, path: &CStr, mode: u32) -> Res<()> {
        let place = self.own_place(path, false)?;
        self.may_make(&place)?;
        self.begin_as_first();
        raw::mkdirat(place.parent.0, place.name.c(), mode)
    }

    pub(crate) fn unlink_own(&mut self, path: &CStr, flags: i32) -> Res<()> {
        let place = self.own_place(path, false)?;
        if place.status.is_none() {
            return Err(Errno(libc::ENOENT));
        }
        self.own_may_change(&place)?;
        raw::unlinkat(place.parent.0, place.name.c(), flags)
    }

    /// What a link leads to keeps its permissions: there is nothing to set of a link itself.
    pub(crate) fn chmod_own(&mut self, path: &CStr, mode: u32) -> Res<()> {
        let place = self.own_place(path, false)?;
        if place.status.is_none() {
            return Err(Errno(libc::ENOENT));
        }
        self.own_may_change(&place)?;
        crate::resident::chmod(place.parent.0, place.name.c(), mode)
    }

    pub(crate) fn rename_own(&mut self, from: &CStr, to: &CStr, flags: u32) -> Res<()> {
        let (source, target) = (self.own_place(from, false)?, self.own_place(to, false)?);
        self.rename_places(&source, &target, flags).map(drop)
    }
}
