//! Counts what a piece of work allocates, so that a test can say how much an input may cost.

#![allow(unsafe_code, reason = "an allocator that counts has no safe form")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes that this thread holds now, and the most since the last [`most_bytes`] began.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(change: impl Fn(usize) -> usize) {
    // Without a value the thread is ending, and nothing is measured any more.
    let _ = HELD.try_with(|cell| {
        let (held, most) = cell.get();
        let held = change(held);
        cell.set((held, most.max(held)));
    });
}

// SAFETY: all that is asked for is passed on to the system's allocator; counting allocates nothing, since the
// cell needs neither initialisation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|held| held.saturating_add(layout.size()));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(|held| held.saturating_sub(layout.size()));
        // SAFETY: `start` came from the system's allocator, for the same layout.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(|held| held.saturating_add(layout.size()));
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(|held| held.saturating_sub(layout.size()).saturating_add(bytes));
        // SAFETY: `start` came from the system's allocator, for the same layout.
        unsafe { System.realloc(start, layout, bytes) }
    }
}

/// What `work` gives back, and the most bytes that this thread held during it beyond those it held before.
/// Other threads, and memory that is mapped, are not counted.
pub fn most_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    // What was held before may be freed by the work; counted from a middle, that can't go below zero.
    const MIDDLE: usize = usize::MAX / 2;
    HELD.with(|cell| cell.set((MIDDLE, MIDDLE)));
    let result = work();
    let (_, most) = HELD.with(Cell::get);
    (result, most - MIDDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_is_counted_and_not_the_sum() {
        let ((), most) = most_bytes(|| {
            for _ in 0..10 {
                drop(std::hint::black_box(vec![1u8; 10_000]));
            }
        });
        assert!((10_000..20_000).contains(&most), "{most}");
        let (kept, most) = most_bytes(|| std::hint::black_box(vec![0u8; 1 << 20]));
        assert_eq!((kept.len(), most), (1 << 20, 1 << 20));
    }
}
