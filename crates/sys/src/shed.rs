//! Giving back memory that a process inherited and will never look at again. PID 1 of a sandbox is a copy
//! of what made it; of that it needs its stack and little else, and there may be thousands of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{arena, raw};

/// Around thread-local storage, which a static program has in the heap: it and what belongs to the thread.
const THREAD: usize = 16 << 10;
/// Of the stack below the caller: what is in use, and what calls may need without asking for it anew.
const STACK: usize = 16 << 10;
/// How far below that earlier calls may have reached.
const REACH: usize = 1 << 20;

static HEAP: AtomicUsize = AtomicUsize::new(0);
/// Where the stack of the first thread begins, from where it grows down.
static TOP: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Its address shows where the thread's memory is.
    static MARK: u8 = const { 0 };
}

/// Looks where this process's heap and stack begin, for copies of it that cannot look any more.
pub fn remember() {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second is a name in parentheses that may hold anything.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = |n: usize| rest.split_ascii_whitespace().nth(n - 3)?.parse().ok();
    HEAP.store(field(47).unwrap_or(0), Ordering::Relaxed);
    TOP.store(field(28).unwrap_or(0), Ordering::Relaxed);
}

/// Gives the heap back, and the stack below the caller, or where it runs on a stack of its own below `given`,
/// the address of what it was given. Nothing is unmapped: the memory reads as zeros.
///
/// # Safety
/// The caller is the only thread, never returns, and from now on neither it nor what it calls looks at
/// anything in the heap or allocates.
pub unsafe fn shed(given: usize) {
    let page = raw::page_size();
    let mark = MARK.with(|mark| std::ptr::from_ref(mark) as usize);
    let (heap, end) = (HEAP.load(Ordering::Relaxed), raw::heap_end());
    if heap != 0 && heap < end {
        let begin = if (heap..end).contains(&mark) { mark + THREAD } else { heap };
        // SAFETY: as promised.
        unsafe { give_back(begin, end, page) };
    }
    if let Some((begin, end)) = arena::memory() {
        // SAFETY: as promised.
        unsafe { give_back(begin, end, page) };
    }
    let here = std::ptr::from_ref(&page) as usize;
    // Who runs on another stack looks at nothing of the first below what it was given there.
    let begin = TOP.load(Ordering::Relaxed);
    let is_on_first = |address: usize| address < begin && begin - address < REACH;
    let below = if is_on_first(here) { here - STACK } else { given };
    if is_on_first(below) {
        // SAFETY: below everything that is in use, since the stack grows down; so much is its own.
        unsafe { give_back(below - REACH, below, page) };
    }
}

/// The whole pages in between. What is not mapped is passed over.
///
/// # Safety
/// As for [`raw::give_back`].
unsafe fn give_back(begin: usize, end: usize, page: usize) {
    let begin = begin.next_multiple_of(page);
    let end = end / page * page;
    if begin < end {
        // More memory is in use than need be, otherwise.
        // SAFETY: passed on from our caller.
        let _ = unsafe { raw::give_back(begin, end - begin) };
    }
}
