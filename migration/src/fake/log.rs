//! Dirty logs that behave as KVM's: with manual protect, where a page stays logged until it is cleared;
//! plain, where fetching clears; and a ring, where it does too and says how much each vCPU wrote.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::dirty::{DirtyBitmap, DirtyLogMode, VcpuDirty};

/// What the machine's log can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMode {
    /// A page is reported until it is cleared.
    Manual {
        /// All pages are logged as dirty at the start.
        initially_set: bool,
    },
    /// A page is reported once.
    Plain,
    /// As `Plain`, and it counts.
    Ring,
}

impl LogMode {
    /// What it does when it is told so; none: it can't.
    fn can(self, wanted: Option<DirtyLogMode>) -> Option<DirtyLogMode> {
        let legal: &[DirtyLogMode] = match self {
            Self::Manual { .. } => &[DirtyLogMode::ManualClear, DirtyLogMode::Bitmap],
            Self::Plain => &[DirtyLogMode::Bitmap],
            Self::Ring => &[DirtyLogMode::Ring],
        };
        let best = legal.first().copied();
        wanted.map_or(best, |wanted| legal.contains(&wanted).then_some(wanted))
    }
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
    /// Reading leaves what it reports.
    manual: AtomicBool,
    marked: AtomicU64,
    dirty: PageBits,
    /// Reported and not cleared since: all that a clear may touch.
    reported: PageBits,
}

impl DirtyLog {
    pub(super) fn new(region_pages: &[u64], mode: LogMode) -> Self {
        let (dirty, reported) = (PageBits::new(region_pages), PageBits::new(region_pages));
        let (running, manual) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { mode, running, manual, marked: AtomicU64::new(0), dirty, reported }
    }

    /// None: this log can't do that.
    pub(super) fn start(&self, wanted: Option<DirtyLogMode>) -> Option<DirtyLogMode> {
        let mode = self.mode.can(wanted)?;
        let manual = mode == DirtyLogMode::ManualClear;
        let set = manual && self.mode == LogMode::Manual { initially_set: true };
        self.manual.store(manual, Ordering::SeqCst);
        self.marked.store(0, Ordering::SeqCst);
        self.dirty.fill(if set { u64::MAX } else { 0 });
        self.reported.fill(0);
        self.running.store(true, Ordering::SeqCst);
        Some(mode)
    }

    pub(super) fn by_vcpu(&self) -> Vec<VcpuDirty> {
        let pages = self.marked.load(Ordering::SeqCst);
        if self.mode == LogMode::Ring { vec![VcpuDirty { pages, ring_full_exits: 0 }] } else { Vec::new() }
    }

    pub(super) fn stop(&self) {
        self.running.store(false, Ordering::SeqCst);
    }

    pub(super) fn mark(&self, region: usize, page: u64) {
        if self.running.load(Ordering::SeqCst) {
            self.dirty.set(region, page);
            self.marked.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(super) fn fetch(&self, out: &mut DirtyBitmap) {
        let manual = self.manual.load(Ordering::SeqCst);
        let regions = self.dirty.regions.iter().zip(&self.reported.regions).enumerate();
        for (region, (dirty, reported)) in regions {
            let take = |(dirty, reported): (&AtomicU64, &AtomicU64)| match manual {
                false => dirty.swap(0, Ordering::SeqCst),
                true => {
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
