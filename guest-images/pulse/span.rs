//! The RAM of the guest, as the memory map gives it: a few ranges with holes between.

use crate::options::PAGE_BYTES;

const MAX_RANGES: usize = 8;

/// RAM from some address up, in whole pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    ranges: [(u64, u64); MAX_RANGES],
    len: usize,
}

impl Span {
    /// Adds the part of `base..base + bytes` that is in `from..to`. Ranges come in rising order.
    pub(crate) fn add(&mut self, base: u64, bytes: u64, from: u64, to: u64) {
        let first = base.max(from).min(to).next_multiple_of(PAGE_BYTES);
        let end = base.saturating_add(bytes).min(to) / PAGE_BYTES * PAGE_BYTES;
        if first < end && self.len < MAX_RANGES {
            self.ranges[self.len] = (first, (end - first) / PAGE_BYTES);
            self.len += 1;
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.ranges[..self.len].iter().map(|(_, pages)| pages).sum()
    }

    /// Address of the page with this index, counted from the lowest.
    pub(crate) fn address(&self, mut index: u64) -> Option<u64> {
        for (base, pages) in &self.ranges[..self.len] {
            if index < *pages {
                return Some(base + index * PAGE_BYTES);
            }
            index -= pages;
        }
        None
    }
}
