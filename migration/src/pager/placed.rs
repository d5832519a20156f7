//! Which pages have been placed: one bit a page, set by the threads that place, read by whoever asks.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dirty::DirtyBitmap;

const WORD_PAGES: u64 = u64::BITS as u64;

/// The placed pages of all regions.
#[derive(Debug)]
pub(super) struct Placed {
    regions: Vec<Region>,
    /// Pages that are not placed yet, in all regions.
    left: AtomicU64,
}

#[derive(Debug)]
struct Region {
    pages: u64,
    words: Vec<AtomicU64>,
}

impl Placed {
    /// No page is placed.
    pub(super) fn new(region_pages: &[u64]) -> Self {
        // Zeroed memory that nobody has touched yet, and that stays so: how long this takes doesn't depend on how
        // much memory the guest has.
        let words = |pages: u64| {
            let zeroes = vec![0; usize::try_from(pages.div_ceil(WORD_PAGES)).unwrap_or(usize::MAX)];
            zeroes.into_iter().map(AtomicU64::new).collect()
        };
        let region = |pages: &u64| Region { pages: *pages, words: words(*pages) };
        Self {
            regions: region_pages.iter().map(region).collect(),
            left: AtomicU64::new(region_pages.iter().sum()),
        }
    }

    /// All pages are placed but those of `missing`.
    pub(super) fn set_all_but(&self, missing: &DirtyBitmap) {
        for (region, found) in self.regions.iter().enumerate() {
            let absent = missing.words(region).iter().copied().chain(std::iter::repeat(0));
            for (word, absent) in found.words.iter().zip(absent) {
                word.store(!absent, Ordering::Release);
            }
        }
        let left = (0..self.regions.len()).map(|region| {
            let groups = 0..missing.words(region).len();
            missing.count_in(region, groups)
        });
        self.left.store(left.sum(), Ordering::Release);
    }

    /// Number of pages of a region; 0 for one that doesn't exist.
    pub(super) fn pages(&self, region: usize) -> u64 {
        self.regions.get(region).map_or(0, |region| region.pages)
    }

    /// Number of regions.
    pub(super) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Pages that are not placed yet.
    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Marks pages as placed; returns how many of them were not before.
    pub(super) fn set(&self, region: usize, pages: Range<u64>) -> u64 {
        let Some(found) = self.regions.get(region) else { return 0 };
        let pages = pages.start..pages.end.min(found.pages);
        let mut fresh = 0;
        for (index, mask) in masks(pages) {
            if let Some(word) = found.words.get(index) {
                let before = word.fetch_or(mask, Ordering::AcqRel);
                fresh += u64::from((mask & !before).count_ones());
            }
        }
        self.left.fetch_sub(fresh, Ordering::AcqRel);
        fresh
    }

    /// Is this page placed? One that doesn't exist is.
    pub(super) fn get(&self, region: usize, page: u64) -> bool {
        let Some(found) = self.regions.get(region) else { return true };
        let word = usize::try_from(page / WORD_PAGES).ok().and_then(|index| found.words.get(index));
        page >= found.pages || word.is_none_or(|w| w.load(Ordering::Acquire) >> (page % WORD_PAGES) & 1 == 1)
    }

    /// The first run of pages within `pages` that are not placed.
    pub(super) fn first_missing(&self, region: usize, pages: Range<u64>) -> Option<Range<u64>> {
        let end = pages.end.min(self.pages(region));
        let start = self.find(region, pages.start..end, false)?;
        let end = self.find(region, start..end, true).unwrap_or(end);
        Some(start..end)
    }

    /// The first stretch of `pages` that begins and ends with a missing page and has fewer than `gap` pages in a row
    /// that aren't missing.
    pub(super) fn missing_hull(&self, region: usize, pages: Range<u64>, gap: u64) -> Option<Range<u64>> {
        let mut hull = self.first_missing(region, pages.clone())?;
        while let Some(next) = self.first_missing(region, hull.end..pages.end) {
            if next.start - hull.end >= gap {
                break;
            }
            hull.end = next.end;
        }
        Some(hull)
    }

    /// Appends the runs of pages within `pages` that are not placed.
    pub(super) fn missing(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) {
        let mut rest = pages;
        while let Some(run) = self.first_missing(region, rest.clone()) {
            rest.start = run.end;
            out.push(run);
        }
    }

    /// The first page of `pages` that is (or is not) placed.
    fn find(&self, region: usize, pages: Range<u64>, placed: bool) -> Option<u64> {
        let words = &self.regions.get(region)?.words;
        for (index, mask) in masks(pages) {
            let word = words.get(index)?.load(Ordering::Acquire);
            let found = if placed { word } else { !word } & mask;
            if found != 0 {
                return Some(index as u64 * WORD_PAGES + u64::from(found.trailing_zeros()));
            }
        }
        None
    }
}

/// The words that `pages` covers, with the bits of each.
fn masks(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = pages.start / WORD_PAGES..pages.end.div_ceil(WORD_PAGES).max(pages.start / WORD_PAGES);
    words.filter_map(move |word| {
        let first = word * WORD_PAGES;
        let low = pages.start.saturating_sub(first);
        let high = (pages.end - first).min(WORD_PAGES);
        let mask = (u64::MAX << low) & (u64::MAX >> (WORD_PAGES - high));
        Some((usize::try_from(word).ok()?, mask))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_pages(
            pages in 1u64..300,
            runs in prop::collection::vec((0u64..300, 0u64..150), 0..6),
        ) {
            let placed = Placed::new(&[7, pages]);
            let mut model = BTreeSet::new();
            for (start, length) in runs {
                let run = start.min(pages)..(start + length).min(pages);
                let fresh = run.clone().filter(|page| model.insert(*page)).count() as u64;
                prop_assert_eq!(placed.set(1, run), fresh);
            }
            prop_assert_eq!(placed.left(), 7 + pages - model.len() as u64);
            let mut missing = Vec::new();
            placed.missing(1, 0..pages, &mut missing);
            let found: Vec<u64> = missing.into_iter().flatten().collect();
            let expected: Vec<u64> = (0..pages).filter(|page| !model.contains(page)).collect();
            prop_assert_eq!(&found, &expected);
            prop_assert!((0..pages).all(|page| placed.get(1, page) == model.contains(&page)));
        }
    }

    #[test]
    fn only_what_is_named_is_missing_and_far_apart_it_makes_two_hulls() {
        let mut missing = DirtyBitmap::new([70, 2000]);
        for (region, page) in [(0, 69), (1, 3), (1, 500), (1, 1011), (1, 1999)] {
            missing.set(region, page);
        }
        let placed = Placed::new(&[70, 2000]);
        placed.set_all_but(&missing);
        assert_eq!(placed.left(), 5);
        assert!((0..2000).all(|page| placed.get(1, page) != missing.get(1, page)));
        let hulls = |region, end| {
            let mut next = 0;
            std::iter::from_fn(|| {
                let hull = placed.missing_hull(region, next..end, 512)?;
                next = hull.end;
                Some(hull)
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(hulls(0, 70), std::slice::from_ref(&(69..70)));
        assert_eq!(hulls(1, 2000), [3..1012, 1999..2000], "510 pages between are not worth a gap, 987 are");
    }

    #[test]
    fn what_does_not_exist_is_not_missing() {
        let placed = Placed::new(&[10]);
        assert!(placed.get(1, 0) && placed.get(0, 10) && !placed.get(0, 9));
        assert_eq!((placed.set(1, 0..5), placed.set(0, 8..99)), (0, 2));
        assert_eq!(placed.first_missing(0, 7..99), Some(7..8));
        assert_eq!(placed.first_missing(3, 0..9), None);
    }
}
