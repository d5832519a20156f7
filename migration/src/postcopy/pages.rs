//! A set of pages that several threads take pages from: each page is taken once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dirty::DirtyBitmap;

const WORD_PAGES: u64 = u64::BITS as u64;

/// The pages that are still in it.
#[derive(Debug)]
pub(crate) struct PagePool {
    regions: Vec<Region>,
    left: AtomicU64,
}

#[derive(Debug)]
struct Region {
    pages: u64,
    words: Vec<AtomicU64>,
}

impl PagePool {
    /// All pages of `set`.
    pub(crate) fn new(set: &DirtyBitmap) -> Self {
        let region = |region| Region {
            pages: set.pages(region),
            words: set.words(region).iter().map(|word| AtomicU64::new(*word)).collect(),
        };
        let left = AtomicU64::new(set.count());
        Self { regions: (0..set.regions()).map(region).collect(), left }
    }

    /// How many are left.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    pub(crate) fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Pages of a region; 0 for one that doesn't exist.
    pub(crate) fn pages(&self, region: usize) -> u64 {
        self.regions.get(region).map_or(0, |region| region.pages)
    }

    /// Takes this page; false: it isn't there, or somebody was first.
    pub(crate) fn take(&self, region: usize, page: u64) -> bool {
        let before = self.word(region, page).map_or(0, |word| word.fetch_and(!bit(page), Ordering::AcqRel));
        let taken = before & bit(page) != 0;
        if taken {
            self.left.fetch_sub(1, Ordering::AcqRel);
        }
        taken
    }

    /// The first page of `pages` that is left.
    pub(crate) fn next(&self, region: usize, pages: Range<u64>) -> Option<u64> {
        let found = self.regions.get(region)?;
        let end = pages.end.min(found.pages);
        let mut page = pages.start;
        while page < end {
            let word = found.words.get(index(page)?)?.load(Ordering::Acquire) >> (page % WORD_PAGES);
            if word != 0 {
                let page = page + u64::from(word.trailing_zeros());
                return (page < end).then_some(page);
            }
            page = (page / WORD_PAGES + 1) * WORD_PAGES;
        }
        None
    }

    #[cfg(test)]
    fn to_bitmap(&self) -> DirtyBitmap {
        let mut set = DirtyBitmap::new(self.regions.iter().map(|region| region.pages));
        for (number, region) in self.regions.iter().enumerate() {
            let words: Vec<u64> = region.words.iter().map(|word| word.load(Ordering::Acquire)).collect();
            set.add_words(number, &words);
        }
        set
    }

    fn word(&self, region: usize, page: u64) -> Option<&AtomicU64> {
        let region = self.regions.get(region).filter(|region| page < region.pages)?;
        region.words.get(index(page)?)
    }
}

fn index(page: u64) -> Option<usize> {
    usize::try_from(page / WORD_PAGES).ok()
}

fn bit(page: u64) -> u64 {
    1 << (page % WORD_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_page_is_taken_once_by_whoever_is_first() {
        let mut set = DirtyBitmap::new([1000]);
        set.set_all();
        let pool = PagePool::new(&set);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let own = (0..1000).filter(|page| pool.take(0, *page)).count() as u64;
                    taken.fetch_add(own, Ordering::SeqCst)
                });
            }
        });
        assert_eq!((taken.into_inner(), pool.left(), pool.next(0, 0..1000)), (1000, 0, None));
        assert!(!pool.take(0, 1000) && !pool.take(1, 0));
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_pages(
            pages in prop::collection::btree_set(0u64..300, 0..100),
            takes in prop::collection::vec(0u64..320, 0..100),
            from in 0u64..300, to in 0u64..400,
        ) {
            let mut set = DirtyBitmap::new([10, 300]);
            pages.iter().for_each(|page| set.set(1, *page));
            let (pool, mut model): (_, BTreeSet<u64>) = (PagePool::new(&set), pages);
            for page in takes {
                prop_assert_eq!(pool.take(1, page), model.remove(&page));
            }
            prop_assert_eq!(pool.left(), model.len() as u64);
            let next = if from < to { model.range(from..to).next().copied() } else { None };
            prop_assert_eq!(pool.next(1, from..to), next);
            prop_assert_eq!(pool.to_bitmap().runs(1).into_iter().flatten().collect::<BTreeSet<_>>(), model);
        }
    }
}
