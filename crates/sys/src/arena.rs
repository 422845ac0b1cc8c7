//! An allocator for a program that lives for one run: small blocks come from a fixed arena and are
//! only given back when they were the last one, everything else goes to the system's allocator.
//!
//! Planning a run makes some thousand short strings. With a general allocator half of the
//! instructions between `main` and `clone3` were spent on keeping books about memory that the process
//! never needs back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for planning; pages that are not touched cost nothing.
const SIZE: usize = 1 << 20;
/// Larger blocks would fill the arena for no gain.
const LARGEST: usize = 16 << 10;

/// Install with `#[global_allocator]`.
#[derive(Debug)]
pub struct Arena {
    next: AtomicUsize,
    memory: UnsafeCell<Memory>,
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Memory([u8; SIZE]);

// SAFETY: the memory is only handed out in disjoint pieces, by an atomic cursor.
unsafe impl Sync for Arena {}

impl Arena {
    // Only ever evaluated at compile time, for a static.
    #[allow(clippy::large_stack_arrays)]
    pub const fn new() -> Self {
        Self { next: AtomicUsize::new(0), memory: UnsafeCell::new(Memory([0; SIZE])) }
    }

    fn base(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    /// Offset of a pointer into the arena.
    fn offset(&self, ptr: *mut u8) -> Option<usize> {
        let offset = (ptr as usize).wrapping_sub(self.base() as usize);
        (offset < SIZE).then_some(offset)
    }

    fn take(&self, layout: Layout) -> Option<usize> {
        if layout.size() > LARGEST || layout.align() > 64 {
            return None;
        }
        let mut now = self.next.load(Ordering::Relaxed);
        loop {
            let start = (now + layout.align() - 1) & !(layout.align() - 1);
            let end = start + layout.size();
            if end > SIZE {
                return None;
            }
            match self.next.compare_exchange_weak(now, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start),
                Err(other) => now = other,
            }
        }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every block lies inside the arena, aligned and disjoint from all others that were not given
// back, or comes from the system allocator, to which it returns.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: `take` answers offsets inside the arena.
            Some(start) => unsafe { self.base().add(start) },
            // SAFETY: passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        match self.offset(ptr) {
            Some(start) => {
                // The last block can be taken back; of others the space is lost.
                let end = start + layout.size();
                let _ =
                    self.next.compare_exchange(end, start, Ordering::Relaxed, Ordering::Relaxed);
            }
            // SAFETY: not from the arena, so from the system.
            None => unsafe { System.dealloc(ptr, layout) },
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(start) = self.offset(ptr) else {
            // SAFETY: not from the arena, so from the system.
            return unsafe { System.realloc(ptr, layout, size) };
        };
        let end = start + layout.size();
        if size <= LARGEST && start + size <= SIZE {
            // The last block grows (or shrinks) where it is.
            let moved =
                self.next.compare_exchange(end, start + size, Ordering::Relaxed, Ordering::Relaxed);
            if moved.is_ok() {
                return ptr;
            }
        }
        // SAFETY: the new block is at least as large as what is copied; the old one stays valid.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(ptr, new, layout.size().min(size));
                self.dealloc(ptr, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn blocks_are_disjoint_aligned_and_the_last_is_reused() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        // SAFETY: layouts are not empty; blocks are freed with the layout they were made with.
        unsafe {
            let a = arena.alloc(layout(10));
            let b = arena.alloc(Layout::from_size_align(10, 64).unwrap());
            assert_eq!(b as usize % 64, 0);
            assert!(b as usize >= a as usize + 10);
            arena.dealloc(b, Layout::from_size_align(10, 64).unwrap());
            let c = arena.alloc(Layout::from_size_align(4, 1).unwrap());
            assert_eq!(c, b, "the last block is taken back");
        }
    }

    #[test]
    fn growing_keeps_the_content() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        // SAFETY: as above.
        unsafe {
            let a = arena.alloc(layout(8));
            a.write_bytes(7, 8);
            let grown = arena.realloc(a, layout(8), 4000);
            assert_eq!(grown, a, "in place");
            let _other = arena.alloc(layout(8));
            let moved = arena.realloc(grown, layout(4000), LARGEST * 2);
            assert!(arena.offset(moved).is_none(), "large blocks are the system's");
            assert_eq!(std::slice::from_raw_parts(moved, 8), [7; 8]);
            arena.dealloc(moved, layout(LARGEST * 2));
        }
    }

    #[test]
    fn a_full_arena_falls_back_to_the_system() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        let mut outside = 0;
        for _ in 0..200 {
            // SAFETY: as above; blocks are leaked on purpose.
            let p = unsafe { arena.alloc(layout(LARGEST)) };
            assert!(!p.is_null());
            outside += usize::from(arena.offset(p).is_none());
        }
        assert!(outside >= 200 - SIZE / LARGEST);
    }
}
