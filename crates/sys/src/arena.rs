//! An allocator for a program that lives for one run: small blocks come from a fixed arena, in a few
//! sizes; what is given back is kept for the next of the same size. Everything else goes to the system's
//! allocator.
//!
//! Planning a run makes some thousand short strings. With a general allocator half of the instructions
//! between `main` and `clone3` were spent on keeping books; and every page of memory that is touched
//! costs three processes: the supervisor gets it, the other two inherit it, and all give it back.
//!
//! What is kept belongs to the thread that allocated first, so it needs no lock. Other threads take new
//! room, and what they give back is lost: they come late and do little, or use large blocks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for planning; pages that are not touched cost nothing.
const SIZE: usize = 1 << 20;
/// Larger blocks would fill the arena for no gain.
const LARGEST: usize = 16 << 10;
/// Of all blocks.
const ALIGN: usize = 16;

/// Sizes in steps: up to `below` bytes, each `step` larger than the one before. The steps divide.
const STEPS: [(usize, usize); 4] = [(256, 16), (1024, 64), (4096, 512), (LARGEST, 2048)];
const CLASSES: usize = classes();

const fn classes() -> usize {
    let (mut count, mut from, mut i) = (0, 0, 0);
    while i < STEPS.len() {
        count += (STEPS[i].0 - from) / STEPS[i].1;
        from = STEPS[i].0;
        i += 1;
    }
    count
}

/// Which of the sizes, and how many bytes that is; `None`: not from the arena.
fn class(layout: Layout) -> Option<(usize, usize)> {
    let size = layout.size();
    if layout.align() > ALIGN || size > LARGEST {
        return None;
    }
    let (mut first, mut from) = (0, 0);
    for (below, step) in STEPS {
        if size <= below {
            let steps = (size.max(1) - from).div_ceil(step);
            return Some((first + steps - 1, from + steps * step));
        }
        first += (below - from) / step;
        from = below;
    }
    None
}

/// Install with `#[global_allocator]`.
#[derive(Debug)]
pub struct Arena {
    next: AtomicUsize,
    /// The mark of the thread that allocated first; 0 before.
    owner: AtomicUsize,
    kept: UnsafeCell<[Link; CLASSES]>,
    memory: UnsafeCell<Memory>,
}

/// Offset of a block that was given back, plus one; it begins with the next such link. 0: none.
type Link = usize;

/// Where a block that was given back has its link.
// All blocks are aligned to `ALIGN`.
#[allow(clippy::cast_ptr_alignment)]
fn link(block: *mut u8) -> *mut Link {
    block.cast()
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Memory([u8; SIZE]);

// SAFETY: the memory is only handed out in disjoint pieces, by an atomic cursor; what was given back is
// only touched by the owner.
unsafe impl Sync for Arena {}

/// The one that is in use: where its memory is.
static INSTALLED: AtomicUsize = AtomicUsize::new(0);

/// Where all blocks of the arena lie, from where to where.
pub(crate) fn memory() -> Option<(usize, usize)> {
    let base = INSTALLED.load(Ordering::Relaxed);
    (base != 0).then_some((base, base + SIZE))
}

thread_local! {
    /// Its address stands for the thread.
    static MARK: u8 = const { 0 };
}

impl Arena {
    // Only ever evaluated at compile time, for a static.
    #[allow(clippy::large_stack_arrays)]
    pub const fn new() -> Self {
        Self {
            next: AtomicUsize::new(0),
            owner: AtomicUsize::new(0),
            kept: UnsafeCell::new([0; CLASSES]),
            memory: UnsafeCell::new(Memory([0; SIZE])),
        }
    }

    fn base(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    /// Offset of a pointer into the arena.
    fn offset(&self, ptr: *mut u8) -> Option<usize> {
        let offset = (ptr as usize).wrapping_sub(self.base() as usize);
        (offset < SIZE).then_some(offset)
    }

    /// Whether the calling thread owns what was given back.
    fn is_owner(&self) -> bool {
        let me = MARK.with(|mark| std::ptr::from_ref(mark) as usize);
        match self.owner.load(Ordering::Relaxed) {
            0 => {
                INSTALLED.store(self.base() as usize, Ordering::Relaxed);
                self.owner.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            }
            owner => owner == me,
        }
    }

    /// The link to the blocks of a size that were given back.
    ///
    /// # Safety
    /// Only for the owner, and one at a time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn kept(&self, class: usize) -> &mut Link {
        // SAFETY: nobody else has a reference, as promised.
        unsafe { &mut (*self.kept.get())[class] }
    }

    /// Room that nobody had before.
    fn fresh(&self, size: usize) -> Option<usize> {
        let mut now = self.next.load(Ordering::Relaxed);
        loop {
            let end = now + size;
            if end > SIZE {
                return None;
            }
            match self.next.compare_exchange_weak(now, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(now),
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
        let Some((class, size)) = class(layout) else {
            // SAFETY: passed on.
            return unsafe { System.alloc(layout) };
        };
        if self.is_owner() {
            // SAFETY: the owner's, and no other reference lives.
            let kept = unsafe { self.kept(class) };
            if let Some(start) = kept.checked_sub(1) {
                // SAFETY: a block of the arena that was given back, so it begins with a link.
                unsafe {
                    let block = self.base().add(start);
                    *kept = link(block).read();
                    return block;
                }
            }
        }
        match self.fresh(size) {
            // SAFETY: `fresh` answers offsets inside the arena; all sizes are multiples of `ALIGN`.
            Some(start) => unsafe { self.base().add(start) },
            // SAFETY: passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let (Some(start), Some((class, _))) = (self.offset(ptr), class(layout)) else {
            // SAFETY: not from the arena, so from the system.
            return unsafe { System.dealloc(ptr, layout) };
        };
        if self.is_owner() {
            // SAFETY: the owner's, and no other reference lives; the block is nobody's now, aligned and
            // large enough for a link.
            unsafe {
                let kept = self.kept(class);
                link(ptr).write(*kept);
                *kept = start + 1;
            }
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (Some(start), Some((_, had))) = (self.offset(ptr), class(layout)) else {
            // SAFETY: not from the arena, so from the system.
            return unsafe { System.realloc(ptr, layout, size) };
        };
        // SAFETY: the caller promises that the size is not 0 and does not overflow with the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if let Some((_, has)) = class(wanted) {
            if has == had {
                return ptr;
            }
            // The last block grows where it is.
            let (end, grown) = (start + had, start + has);
            if has > had
                && grown <= SIZE
                && self
                    .next
                    .compare_exchange(end, grown, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                return ptr;
            }
        }
        // SAFETY: the new block is at least as large as what is copied; the old one stays valid.
        unsafe {
            let new = self.alloc(wanted);
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
    fn sizes_are_the_next_larger_and_none_is_skipped() {
        let mut last = None;
        for size in 0..=LARGEST {
            let (number, bytes) = class(layout(size)).unwrap();
            assert!(bytes >= size && bytes.is_multiple_of(ALIGN) && number < CLASSES, "{size}");
            match last {
                Some((n, b)) if n == number => assert_eq!(b, bytes, "{size}"),
                Some((n, b)) => assert!(n + 1 == number && b < size, "{size}"),
                None => assert_eq!(number, 0),
            }
            last = Some((number, bytes));
        }
        assert_eq!(last, Some((CLASSES - 1, LARGEST)));
        assert_eq!(class(layout(LARGEST + 1)), None);
        assert_eq!(class(Layout::from_size_align(10, 64).unwrap()), None);
    }

    #[test]
    fn blocks_are_disjoint_and_what_was_given_back_is_used_again() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        // SAFETY: layouts are not empty; blocks are freed with the layout they were made with.
        unsafe {
            let a = arena.alloc(layout(10));
            let b = arena.alloc(layout(16));
            let c = arena.alloc(layout(17));
            assert_eq!((a as usize % ALIGN, b as usize - a as usize), (0, 16));
            arena.dealloc(a, layout(10));
            arena.dealloc(b, layout(16));
            arena.dealloc(c, layout(17));
            let again = [arena.alloc(layout(1)), arena.alloc(layout(3)), arena.alloc(layout(20))];
            assert_eq!(again, [b, a, c], "the last one first, each in its size");
            let new = arena.alloc(layout(9));
            assert!(![a, b, c].contains(&new));
            let wide = Layout::from_size_align(10, 64).unwrap();
            let d = arena.alloc(wide);
            assert!((d as usize).is_multiple_of(64) && arena.offset(d).is_none());
            arena.dealloc(d, wide);
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
            assert_eq!(arena.realloc(a, layout(8), 15), a, "the same size of block");
            let grown = arena.realloc(a, layout(15), 4000);
            assert_eq!(grown, a, "in place");
            let _other = arena.alloc(layout(8));
            let moved = arena.realloc(grown, layout(4000), LARGEST * 2);
            assert!(arena.offset(moved).is_none(), "large blocks are the system's");
            assert_eq!(std::slice::from_raw_parts(moved, 8), [7; 8]);
            assert_eq!(arena.alloc(layout(3900)), a, "what it had before");
            let large = arena.alloc(layout(900));
            large.write_bytes(9, 900);
            let small = arena.realloc(large, layout(900), 10);
            assert_eq!(std::slice::from_raw_parts(small, 10), [9; 10]);
            assert_eq!(arena.alloc(layout(900)), large, "given back when it shrank");
            arena.dealloc(moved, layout(LARGEST * 2));
        }
    }

    #[test]
    fn another_thread_takes_nothing_that_was_given_back() {
        static ARENA: Arena = Arena::new();
        let arena = &ARENA;
        // SAFETY: as above.
        let ours = unsafe {
            let p = arena.alloc(layout(100));
            arena.dealloc(p, layout(100));
            p as usize
        };
        let theirs = std::thread::spawn(|| {
            // SAFETY: as above.
            unsafe {
                let p = ARENA.alloc(layout(100));
                ARENA.dealloc(p, layout(100));
                p as usize
            }
        });
        assert_ne!(theirs.join().unwrap(), ours);
        // SAFETY: as above.
        assert_eq!(unsafe { arena.alloc(layout(100)) } as usize, ours);
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

    mod random {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

            /// Every block keeps what was written to it, whatever others do.
            #[test]
            fn no_block_is_handed_out_twice(
                acts in proptest::collection::vec((0usize..3, 1usize..3000, any::<u16>()), 1..300)
            ) {
                let arena: Box<Arena> = {
                    // Too large for a test's stack.
                    // SAFETY: all parts of an arena may be zero.
                    unsafe {
                        let all = Layout::new::<Arena>();
                        Box::from_raw(System.alloc_zeroed(all).cast())
                    }
                };
                let mut live: Vec<(*mut u8, usize, u8)> = Vec::new();
                let holds = |&(p, size, mark): &(*mut u8, usize, u8)| {
                    // SAFETY: a live block of that size.
                    unsafe { std::slice::from_raw_parts(p, size) }.iter().all(|b| *b == mark)
                };
                for (number, (act, size, which)) in acts.into_iter().enumerate() {
                    let mark = number as u8;
                    // SAFETY: as above.
                    unsafe {
                        if act == 0 || live.is_empty() {
                            let p = arena.alloc(layout(size));
                            p.write_bytes(mark, size);
                            live.push((p, size, mark));
                            continue;
                        }
                        let at = usize::from(which) % live.len();
                        let (p, had, was) = live.swap_remove(at);
                        prop_assert!(holds(&(p, had, was)));
                        if act == 1 {
                            arena.dealloc(p, layout(had));
                        } else {
                            let p = arena.realloc(p, layout(had), size);
                            prop_assert!(holds(&(p, had.min(size), was)));
                            p.write_bytes(mark, size);
                            live.push((p, size, mark));
                        }
                    }
                }
                prop_assert!(live.iter().all(holds));
            }
        }
    }
}
