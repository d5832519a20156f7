//! Dirty logs that behave as KVM's: with manual protect, where a page stays logged until it is cleared, and
//! plain, where fetching clears.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::dirty::DirtyBitmap;

/// How a log behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMode {
    /// A page is reported until it is cleared.
    Manual {
        /// All pages are logged as dirty at the start.
        initially_set: bool,
    },
    /// A page is reported once.
    Plain,
}

/// A bit a page, for threads.
#[derive(Debug)]
pub(super) struct PageBits {
    regions: Vec<Vec<AtomicU64>>,
}

impl PageBits {
    pub(super) fn new(region_pages: &[u64]) -> Self {
        let words = |pages: &u64| (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { regions: region_pages.iter().map(words).collect() }
    }

    fn word(&self, region: usize, page: u64) -> Option<&AtomicU64> {
        self.regions.get(region)?.get((page / 64) as usize)
    }

    pub(super) fn set(&self, region: usize, page: u64) {
        if let Some(word) = self.word(region, page) {
            word.fetch_or(1 << (page % 64), Ordering::SeqCst);
        }
    }

    pub(super) fn get(&self, region: usize, page: u64) -> bool {
        self.word(region, page).is_some_and(|word| word.load(Ordering::SeqCst) & (1 << (page % 64)) != 0)
    }

    fn unset(&self, region: usize, page: u64) {
        if let Some(word) = self.word(region, page) {
            word.fetch_and(!(1 << (page % 64)), Ordering::SeqCst);
        }
    }

    fn fill(&self, value: u64) {
        self.regions.iter().flatten().for_each(|word| word.store(value, Ordering::SeqCst));
    }

    /// All words, region by region.
    pub(super) fn words(&self) -> Vec<u64> {
        self.regions.iter().flatten().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// The reverse of [`Self::words`].
    pub(super) fn load(&self, words: &[u64]) {
        let all = self.regions.iter().flatten().zip(words);
        all.for_each(|(word, value)| word.store(*value, Ordering::SeqCst));
    }
}

#[derive(Debug)]
pub(super) struct DirtyLog {
    mode: LogMode,
    running: AtomicBool,
    dirty: PageBits,
    /// Reported and not cleared since: all that a clear may touch.
    reported: PageBits,
}

impl DirtyLog {
    pub(super) fn new(region_pages: &[u64], mode: LogMode) -> Self {
        let (dirty, reported) = (PageBits::new(region_pages), PageBits::new(region_pages));
        Self { mode, running: AtomicBool::new(false), dirty, reported }
    }

    pub(super) fn start(&self) {
        let set = self.mode == LogMode::Manual { initially_set: true };
        self.dirty.fill(if set { u64::MAX } else { 0 });
        self.reported.fill(0);
        self.running.store(true, Ordering::SeqCst);
    }

    pub(super) fn stop(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    pub(super) fn mark(&self, region: usize, page: u64) {
        if self.running.load(Ordering::SeqCst) {
            self.dirty.set(region, page);
        }
    }

    pub(super) fn fetch(&self, out: &mut DirtyBitmap) {
        let regions = self.dirty.regions.iter().zip(&self.reported.regions).enumerate();
        for (region, (dirty, reported)) in regions {
            let take = |(dirty, reported): (&AtomicU64, &AtomicU64)| match self.mode {
                LogMode::Plain => dirty.swap(0, Ordering::SeqCst),
                LogMode::Manual { .. } => {
                    let found = dirty.load(Ordering::SeqCst);
                    reported.fetch_or(found, Ordering::SeqCst);
                    found
                }
            };
            out.add_words(region, &dirty.iter().zip(reported).map(take).collect::<Vec<_>>());
        }
    }

    pub(super) fn clear(&self, region: usize, pages: Range<u64>) {
        for page in pages.filter(|page| self.reported.get(region, *page)) {
            self.reported.unset(region, page);
            self.dirty.unset(region, page);
        }
    }
}
