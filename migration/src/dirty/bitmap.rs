//! One bit a page. A bit that was taken for sending comes back with [`DirtyBitmap::add`] if the attempt
//! fails: no bit is lost.

use std::ops::Range;

const WORD_PAGES: u64 = u64::BITS as u64;

/// The dirty pages of all regions of a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyBitmap {
    regions: Vec<Region>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Region {
    pages: u64,
    words: Vec<u64>,
}

impl DirtyBitmap {
    /// All pages clean; `region_pages` has the number of pages of each region.
    pub fn new(region_pages: impl IntoIterator<Item = u64>) -> Self {
        let region = |pages: u64| Region { pages, words: vec![0; words_of(pages)] };
        Self { regions: region_pages.into_iter().map(region).collect() }
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Number of pages of a region; 0 for one that doesn't exist.
    pub fn pages(&self, region: usize) -> u64 {
        self.regions.get(region).map_or(0, |r| r.pages)
    }

    /// Number of dirty pages in all regions.
    pub fn count(&self) -> u64 {
        self.regions.iter().map(|region| ones(&region.words)).sum()
    }

    /// Marks all pages dirty.
    pub fn set_all(&mut self) {
        for region in &mut self.regions {
            region.words.fill(u64::MAX);
            region.trim();
        }
    }

    /// Marks all pages clean.
    pub fn clear_all(&mut self) {
        for region in &mut self.regions {
            region.words.fill(0);
        }
    }

    /// Marks one page dirty; one that doesn't exist is ignored.
    pub fn set(&mut self, region: usize, page: u64) {
        let Some(region) = self.regions.get_mut(region) else { return };
        if page < region.pages
            && let Some(word) = region.words.get_mut((page / WORD_PAGES) as usize)
        {
            *word |= 1 << (page % WORD_PAGES);
        }
    }

    /// Is this page dirty?
    pub fn get(&self, region: usize, page: u64) -> bool {
        let word = self.regions.get(region).and_then(|r| r.words.get((page / WORD_PAGES) as usize));
        word.is_some_and(|w| w & (1 << (page % WORD_PAGES)) != 0)
    }

    /// Adds the dirty pages of `words` (bit n of word k is page 64 k + n) to a region's.
    pub fn add_words(&mut self, region: usize, words: &[u64]) {
        if let Some(region) = self.regions.get_mut(region) {
            region.words.iter_mut().zip(words).for_each(|(mine, more)| *mine |= more);
            region.trim();
        }
    }

    /// Likewise, for `words` of which the first is word `first` of the region.
    pub fn add_words_from(&mut self, region: usize, first: usize, words: &[u64]) {
        if let Some(region) = self.regions.get_mut(region) {
            let mine = region.words.get_mut(first..).unwrap_or_default();
            mine.iter_mut().zip(words).for_each(|(mine, more)| *mine |= more);
            region.trim();
        }
    }

    /// Takes away all pages that `other`, which has the same regions, has as well.
    pub fn remove(&mut self, other: &Self) {
        for (region, other) in self.regions.iter_mut().zip(&other.regions) {
            region.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine &= !theirs);
        }
    }

    /// Takes away all pages that `other`, which has the same regions, doesn't have.
    pub fn keep(&mut self, other: &Self) {
        for (region, other) in self.regions.iter_mut().zip(&other.regions) {
            region.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine &= theirs);
        }
    }

    /// The pages of a region, as runs in order.
    pub fn runs(&self, region: usize) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        self.clone_of(region).take_runs(0, 0..self.words(region).len(), &mut out);
        out
    }

    fn clone_of(&self, region: usize) -> Self {
        Self { regions: self.regions.get(region).cloned().into_iter().collect() }
    }

    /// Adds all dirty pages of `other`, which has the same regions.
    pub fn add(&mut self, other: &Self) {
        for (index, region) in other.regions.iter().enumerate() {
            self.add_words(index, &region.words);
        }
    }

    /// A region's words: bit n of word k is page 64 k + n.
    pub fn words(&self, region: usize) -> &[u64] {
        self.regions.get(region).map_or(&[], |r| &r.words)
    }

    /// Takes the dirty pages of 64-page groups `groups` of a region: they are clean here afterwards.
    /// Appends them to `out` as runs in order.
    pub fn take_runs(&mut self, region: usize, groups: Range<usize>, out: &mut Vec<Range<u64>>) {
        let Some(region) = self.regions.get_mut(region) else { return };
        let end = groups.end.min(region.words.len());
        let Some(mut words) = region.words.get_mut(groups.start..end) else { return };
        let mut first = groups.start as u64 * WORD_PAGES;
        while let Some(word) = words.first_mut() {
            let taken = match *word {
                0 => equal_words(words, 0),
                u64::MAX => {
                    let full = equal_words(words, u64::MAX);
                    words.iter_mut().take(full).for_each(|word| *word = 0);
                    push_run(first..first + full as u64 * WORD_PAGES, out);
                    full
                }
                _ => {
                    runs_of_word(std::mem::take(word), first, out);
                    1
                }
            };
            first += taken as u64 * WORD_PAGES;
            words = words.get_mut(taken..).unwrap_or_default();
        }
    }

    /// Dirty pages of a region in 64-page groups `groups`.
    pub fn count_in(&self, region: usize, groups: Range<usize>) -> u64 {
        ones(self.words_in(region, groups))
    }

    /// Pages of those groups that are dirty here and in `other`.
    pub fn count_common(&self, other: &Self, region: usize, groups: Range<usize>) -> u64 {
        let (mine, theirs) = (self.words_in(region, groups.clone()), other.words_in(region, groups));
        mine.iter().zip(theirs).map(|(mine, theirs)| u64::from((mine & theirs).count_ones())).sum()
    }

    /// The first 64-page group of a region, from `group` on, with a dirty page.
    pub fn next_dirty_group(&self, region: usize, group: usize) -> Option<usize> {
        let words = self.words(region);
        let found = group + equal_words(words.get(group..)?, 0);
        (found < words.len()).then_some(found)
    }

    /// A region's words of those groups that exist.
    fn words_in(&self, region: usize, groups: Range<usize>) -> &[u64] {
        let words = self.words(region);
        words.get(groups.start..groups.end.min(words.len())).unwrap_or_default()
    }
}

impl Region {
    /// No bits behind the last page, whatever was added.
    fn trim(&mut self) {
        let tail = self.pages % WORD_PAGES;
        if tail != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << tail) - 1;
        }
    }
}

fn words_of(pages: u64) -> usize {
    pages.div_ceil(WORD_PAGES) as usize
}

fn ones(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// How many words at the start are `value`. Eight at a time, without a branch for each: as fast as memory is read.
fn equal_words(words: &[u64], value: u64) -> usize {
    let (chunks, _) = words.as_chunks::<8>();
    let differs = |chunk: &[u64; 8]| chunk.iter().fold(0, |all, word| all | (word ^ value)) != 0;
    let whole = chunks.iter().position(differs).unwrap_or(chunks.len()) * 8;
    let rest = words.get(whole..).unwrap_or_default();
    whole + rest.iter().position(|word| *word != value).unwrap_or(rest.len())
}

fn runs_of_word(mut word: u64, first: u64, out: &mut Vec<Range<u64>>) {
    while word != 0 {
        let start = u64::from(word.trailing_zeros());
        let length = u64::from((word >> start).trailing_ones());
        word &= if start + length == WORD_PAGES { (1 << start) - 1 } else { u64::MAX << (start + length) };
        push_run(first + start..first + start + length, out);
    }
}

fn push_run(run: Range<u64>, out: &mut Vec<Range<u64>>) {
    match out.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => out.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_behind_the_last_page_do_not_exist() {
        let mut dirty = DirtyBitmap::new([70]);
        dirty.set_all();
        assert_eq!(dirty.count(), 70);
        dirty.add_words(0, &[u64::MAX, u64::MAX]);
        dirty.set(0, 70);
        assert_eq!(dirty.count(), 70);
    }

    proptest! {
        #[test]
        fn taken_runs_are_the_pages_that_were_set(pages in prop::collection::btree_set(0u64..500, 0..300)) {
            let mut dirty = DirtyBitmap::new([500]);
            pages.iter().for_each(|page| dirty.set(0, *page));
            let mut runs = Vec::new();
            dirty.take_runs(0, 0..4, &mut runs);
            dirty.take_runs(0, 4..100, &mut runs);
            let taken: Vec<u64> = runs.iter().cloned().flatten().collect();
            prop_assert_eq!(taken, pages.into_iter().collect::<Vec<_>>());
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(dirty.count(), 0);
        }

        #[test]
        fn stretches_are_runs_like_any_other(
            stretches in prop::collection::vec((0usize..40, prop_oneof![Just(0), Just(u64::MAX), any::<u64>()]), 1..12),
            pages_less in 0u64..64,
            from in 0usize..30,
        ) {
            let words: Vec<u64> = stretches.iter().flat_map(|(count, word)| vec![*word; *count]).collect();
            let pages = (words.len() as u64 * 64).saturating_sub(pages_less);
            let mut dirty = DirtyBitmap::new([pages]);
            dirty.add_words(0, &words);
            let plain: Vec<u64> = (0..pages).filter(|page| dirty.get(0, *page)).collect();
            let from_page = from as u64 * 64;
            let first = plain.iter().find(|page| **page >= from_page).map(|page| *page as usize / 64);
            prop_assert_eq!(dirty.next_dirty_group(0, from), first);
            let behind = plain.iter().filter(|page| **page >= from_page).count() as u64;
            prop_assert_eq!(dirty.count_in(0, from..1000), behind);
            prop_assert_eq!(dirty.count_common(&dirty, 0, from..1000), behind);
            let mut runs = Vec::new();
            dirty.take_runs(0, 0..from, &mut runs);
            dirty.take_runs(0, from..1000, &mut runs);
            prop_assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), plain);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(dirty.count(), 0);
        }

        #[test]
        fn what_is_added_back_is_there_again(pages in prop::collection::btree_set(0u64..500, 0..300)) {
            let mut dirty = DirtyBitmap::new([100, 500]);
            pages.iter().for_each(|page| dirty.set(1, *page));
            let kept = dirty.clone();
            dirty.clear_all();
            dirty.add(&kept);
            prop_assert_eq!(dirty, kept);
        }
    }
}
