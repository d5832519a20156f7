//! The proof that both sides have the same memory: a hash of each page, and their sum.
//!
//! ```text
//! hash of a page = 0 if it is all zero, else XXH3-64 of its 4096 bytes, seeded by region and page
//! proof          = sum of the hashes of all pages, modulo 2^64
//! ```
//!
//! The sum doesn't depend on the order in which pages come, and a page that comes again replaces its old hash. A
//! page that was never touched is zero and costs nothing. Region and page are in the seed, so that two pages
//! that have changed places are found.

#![allow(unsafe_code, reason = "memory that is zero when it is first touched, as atomic numbers")]

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Instant;

use twox_hash::XxHash3_64;

use super::batch::PageRecord;
use super::encode::Encoding;
use super::guest::RamView;
use crate::dirty::DirtyBitmap;
use crate::error::MigrationError;
use crate::vm::PAGE_BYTES;

/// Bit of this proof in the offer's set.
pub(crate) const PROOF_XXH3: u64 = 1;

/// One page's bytes.
pub(crate) type PageBytes = [u8; PAGE_BYTES as usize];

/// A region has less than 2^48 pages: guest-physical addresses have 52 bits at most.
const REGION_SHIFT: u32 = 48;

/// Hash of a page that isn't all zero; of one that is, it is 0 without looking.
pub(crate) fn page_hash(region: u16, page: u64, bytes: &PageBytes) -> u64 {
    XxHash3_64::oneshot_with_seed((u64::from(region) << REGION_SHIFT) ^ page, bytes)
}

/// Hash of a whole encoded state.
pub(crate) fn state_hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(0, bytes)
}

/// The hashes of all pages as one side knows them, for several threads: a page is one thread's at a time, and between
/// two threads that have it is a barrier. Memory for untouched pages is never touched either.
#[derive(Debug)]
pub(crate) struct MemoryProof {
    regions: Vec<Box<[AtomicU64]>>,
    sum: AtomicU64,
    /// Of all threads together.
    spent_ns: AtomicU64,
}

impl MemoryProof {
    /// All pages are zero.
    pub(crate) fn new(region_pages: impl Iterator<Item = u64>) -> Self {
        let regions = region_pages.map(zeroed).collect();
        Self { regions, sum: AtomicU64::new(0), spent_ns: AtomicU64::new(0) }
    }

    /// The page has this hash now. Returns by how much the sum changes, modulo 2^64.
    fn replace(&self, region: u16, page: u64, hash: u64) -> u64 {
        let place = self.regions.get(usize::from(region));
        let place = place.and_then(|pages| pages.get(usize::try_from(page).ok()?));
        place.map_or(0, |place| hash.wrapping_sub(place.swap(hash, Relaxed)))
    }

    /// The page has this hash now.
    pub(crate) fn set(&self, region: u16, page: u64, hash: u64) {
        self.sum.fetch_add(self.replace(region, page, hash), Relaxed);
    }

    /// The hash of a page as it was set last; 0 for one that doesn't exist.
    pub(crate) fn get(&self, region: u16, page: u64) -> u64 {
        let place = self.regions.get(usize::from(region));
        let place = place.and_then(|pages| pages.get(usize::try_from(page).ok()?));
        place.map_or(0, |place| place.load(Relaxed))
    }

    /// These pages don't count any more, until they are set again.
    pub(crate) fn forget(&self, pages: &DirtyBitmap) {
        let started = Instant::now();
        for region in 0..pages.regions() {
            let Ok(number) = u16::try_from(region) else { return };
            pages.runs(region).into_iter().flatten().for_each(|page| self.set(number, page, 0));
        }
        self.spent(started);
    }

    /// The pages of these records are now as they are in memory; `copy` is room for one.
    pub(crate) fn add(
        &self,
        ram: &RamView,
        records: &[PageRecord],
        copy: &mut PageBytes,
    ) -> Result<(), MigrationError> {
        let started = Instant::now();
        let mut change = 0u64;
        for PageRecord { region, page, encoding, .. } in records {
            let hash = match encoding {
                Encoding::Zero => 0,
                _ => {
                    ram.read(usize::from(*region), *page, copy)?;
                    page_hash(*region, *page, copy)
                }
            };
            change = change.wrapping_add(self.replace(*region, *page, hash));
        }
        self.sum.fetch_add(change, Relaxed);
        self.spent(started);
        Ok(())
    }

    /// Time since `started` went into hashing.
    pub(crate) fn spent(&self, started: Instant) {
        self.spent_ns.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
    }

    /// Hash of the state, with its time counted here too.
    pub(crate) fn state(&self, bytes: &[u8]) -> u64 {
        let started = Instant::now();
        let hash = state_hash(bytes);
        self.spent(started);
        hash
    }

    /// Time that hashing has taken so far, of all threads together.
    pub(crate) fn spent_us(&self) -> u64 {
        self.spent_ns.load(Relaxed) / 1000
    }

    /// The sum over all pages.
    pub(crate) fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }
}

/// A number that is 0 when all its bytes are.
pub(super) trait Zeroed {}
impl Zeroed for AtomicU32 {}
impl Zeroed for AtomicU64 {}

/// One number a page of a region, 0 at first, in memory that the system gives when it is first written.
pub(super) fn zeroed<N: Zeroed>(pages: u64) -> Box<[N]> {
    let slots = Box::new_zeroed_slice(usize::try_from(pages).unwrap_or(usize::MAX));
    // SAFETY: `Zeroed` are integers without padding, of which any bytes are a value.
    unsafe { slots.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(fill: u8) -> PageBytes {
        [fill; PAGE_BYTES as usize]
    }

    #[test]
    fn it_is_the_published_hash() {
        // Found with another implementation: a proof has to be the same on every host and in every release.
        assert_eq!(state_hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(page_hash(0, 0, &page(0)), 0x93d7_6fe1_48c6_89ba);
        assert_eq!(page_hash(3, 5, &page(7)), 0xd166_5cc9_9eb7_c77c);
    }

    #[test]
    fn place_and_every_bit_count() {
        let mut bytes = page(7);
        let hash = page_hash(1, 2, &bytes);
        assert!(hash != page_hash(2, 1, &bytes) && hash != page_hash(1, 3, &bytes));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(page_hash(1, 2, &bytes), hash, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_page_that_does_not_exist_changes_nothing() {
        let proof = MemoryProof::new([2].into_iter());
        for (region, page) in [(1, 0), (0, 2), (0, u64::MAX)] {
            proof.set(region, page, 1);
        }
        assert_eq!(proof.sum(), 0);
    }

    proptest! {
        /// Whatever was sent before, and in which order: only what the pages are in the end counts.
        #[test]
        fn the_sum_is_that_of_the_last_contents(
            sent in prop::collection::vec((0u16..2, 0u64..8, 0u8..3), 0..60), rotated: usize,
        ) {
            let hash = |region, number, fill| match fill {
                0 => 0,
                fill => page_hash(region, number, &page(fill)),
            };
            let proof = MemoryProof::new([8, 8].into_iter());
            let mut last = std::collections::BTreeMap::new();
            for (region, number, fill) in sent {
                proof.set(region, number, hash(region, number, fill));
                last.insert((region, number), fill);
            }
            let mut ends: Vec<_> = last.into_iter().collect();
            if !ends.is_empty() {
                let by = rotated % ends.len();
                ends.rotate_left(by);
            }
            let fresh = MemoryProof::new([8, 8].into_iter());
            ends.iter().for_each(|((region, number), fill)| {
                fresh.set(*region, *number, hash(*region, *number, *fill));
            });
            prop_assert_eq!(proof.sum(), fresh.sum());
        }
    }
}
