//! Pages as they were sent last, so that the next time only their changes have to be.
//!
//! A set of 16 places, each with a lock of its own, is chosen by region and page. The number of sets is odd, so
//! neither a run of pages nor one in every 2^n of them crowds into few sets, and threads that send
//! different pages hardly ever meet.
//!
//! In round 0 pages are let in as long as there is room, so that those that are dirty in round 1 are deltas already. What
//! was only sent in round 0 goes first: what was dirty once is likely to be again. In a full set another page goes only if it
//! was not sent in the round before; of those the one that was sent longest ago goes, since its rate is the lowest. If
//! there is none the newcomer stays out. So of a working set that is too large for the cache a part stays and hits, where
//! the oldest page in turn would always just have gone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::proof::PageBytes;
use crate::vm::PAGE_BYTES;

const WAYS: usize = 16;

/// What a page costs: its content, and what is known of it.
const PLACE_BYTES: u64 = PAGE_BYTES + (size_of::<Mutex<Set>>() / WAYS) as u64;

/// The round in which pages are sent for the first time: they come in where there is room, and none can be found.
const FIRST_ROUND: u32 = 0;

/// Content of pages as the destination has them. Shared by all threads that send.
#[derive(Debug)]
pub(crate) struct PageCache {
    sets: Box<[Mutex<Set>]>,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
    refusals: AtomicU64,
}

/// What has happened so far, in pages; of round 0 nothing is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CacheCounts {
    /// The old content was there.
    pub(crate) hits: u64,
    /// It was not.
    pub(crate) misses: u64,
    /// Of the misses: let in, and another one went.
    pub(crate) evictions: u64,
    /// Of the misses: not let in, all others are in use.
    pub(crate) refusals: u64,
}

/// What the destination has of a page.
#[derive(Debug)]
pub(crate) struct Base<'c> {
    /// The round in which it was sent.
    pub(crate) round: u32,
    pub(crate) content: &'c PageBytes,
}

#[derive(Debug)]
struct Set {
    tags: [Tag; WAYS],
    /// Made when the first page comes in, and kept.
    pages: Option<Box<[PageBytes]>>,
}

/// Whose content is in a place, and since when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tag {
    page: u64,
    region: u16,
    /// The round in which it was sent, and 1; 0: nobody's.
    since: u32,
}

impl PageCache {
    /// A cache that never holds more than `bytes` of memory, except that it has room for 16 pages at least. It takes memory
    /// as pages come in.
    pub(crate) fn new(bytes: u64) -> Self {
        let sets = (bytes / (PLACE_BYTES * WAYS as u64)).max(1);
        let odd = usize::try_from(sets - (1 - sets % 2)).unwrap_or(usize::MAX);
        let set = || Mutex::new(Set { tags: [Tag::default(); WAYS], pages: None });
        let sets = std::iter::repeat_with(set).take(odd).collect();
        let (hits, misses, evictions, refusals) = Default::default();
        Self { sets, hits, misses, evictions, refusals }
    }

    /// Keeps what is about to be sent in `round`, after `encode` has seen what the destination has, if that is
    /// known. What it returns comes back. The page's set is locked meanwhile.
    pub(crate) fn exchange<T>(
        &self,
        (region, page): (u16, u64),
        round: u32,
        content: &PageBytes,
        encode: impl FnOnce(Base<'_>) -> T,
    ) -> Option<T> {
        let mut set = self.set(region, page).lock().unwrap_or_else(PoisonError::into_inner);
        let Set { tags, pages } = &mut *set;
        let pages = pages.get_or_insert_with(|| vec![[0; PAGE_BYTES as usize]; WAYS].into());
        let new = Tag { page, region, since: round.saturating_add(1) };
        if round == FIRST_ROUND {
            let own = tags.iter().position(|tag| tag.is(region, page));
            let place = own.or_else(|| tags.iter().position(|tag| tag.since == 0));
            if let Some((tag, kept)) = place.and_then(|at| tags.get_mut(at).zip(pages.get_mut(at))) {
                kept.copy_from_slice(content);
                *tag = new;
            }
            return None;
        }
        let found = tags.iter_mut().zip(pages.iter_mut()).find(|(tag, _)| tag.is(region, page));
        if let Some((tag, kept)) = found {
            self.hits.fetch_add(1, Relaxed);
            let result = encode(Base { round: tag.since.saturating_sub(1), content: kept });
            kept.copy_from_slice(content);
            *tag = new;
            return Some(result);
        }
        self.misses.fetch_add(1, Relaxed);
        let oldest = tags.iter_mut().zip(pages.iter_mut()).min_by_key(|(tag, _)| tag.since);
        match oldest {
            Some((tag, kept)) if tag.may_go(round) => {
                self.evictions.fetch_add(u64::from(tag.was_written()), Relaxed);
                kept.copy_from_slice(content);
                *tag = new;
            }
            _ => _ = self.refusals.fetch_add(1, Relaxed),
        }
        None
    }

    /// The page is about to be sent without its content coming by here: as a zero page, say.
    pub(crate) fn forget(&self, region: u16, page: u64) {
        let mut set = self.set(region, page).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tag) = set.tags.iter_mut().find(|tag| tag.is(region, page)) {
            *tag = Tag::default();
        }
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        let [hits, misses, evictions, refusals] =
            [&self.hits, &self.misses, &self.evictions, &self.refusals].map(|count| count.load(Relaxed));
        CacheCounts { hits, misses, evictions, refusals }
    }

    fn set(&self, region: u16, page: u64) -> &Mutex<Set> {
        // Regions begin far apart, so that equal pages of two don't meet in one set.
        let place = page.wrapping_add(u64::from(region).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
        // There is at least one set, and the remainder is one of them.
        &self.sets[(place % self.sets.len() as u64) as usize]
    }
}

impl Tag {
    fn is(&self, region: u16, page: u64) -> bool {
        self.since != 0 && (self.region, self.page) == (region, page)
    }

    /// Sent after round 0.
    fn was_written(&self) -> bool {
        self.since > FIRST_ROUND + 1
    }

    /// Nobody's, only sent in round 0, or not sent in this round nor in the one before.
    fn may_go(&self, round: u32) -> bool {
        !self.was_written() || self.since < round
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn content(number: u64) -> PageBytes {
        let mut page = [number as u8; 4096];
        page[..8].copy_from_slice(&number.to_le_bytes());
        page
    }

    fn counts(hits: u64, misses: u64, evictions: u64, refusals: u64) -> CacheCounts {
        CacheCounts { hits, misses, evictions, refusals }
    }

    #[test]
    fn a_page_is_known_from_its_first_round_on() {
        let cache = PageCache::new(1 << 20);
        let sent = |round, number| {
            cache.exchange((1, 7), round, &content(number), |base| (base.round, *base.content))
        };
        assert_eq!(sent(0, 1), None);
        assert_eq!(sent(1, 2), Some((0, content(1))));
        assert_eq!(sent(2, 3), Some((1, content(2))));
        assert_eq!(sent(5, 4), Some((2, content(3))));
        assert_eq!(cache.exchange((0, 7), 5, &content(0), |_| ()), None);
        cache.forget(1, 7);
        assert_eq!(sent(6, 5), None);
        assert_eq!(sent(6, 6), Some((6, content(5))));
        assert_eq!(cache.counts(), counts(4, 2, 0, 0));
    }

    #[test]
    fn what_was_only_sent_in_round_0_makes_room_and_pushes_nothing_out() {
        let cache = PageCache::new(0);
        let sent = |round, page| cache.exchange((0, page), round, &content(page), |base| base.round);
        (0..40).for_each(|page| assert_eq!(sent(0, page), None));
        // The first 16 have come in. One of them is written, and all the others go.
        assert_eq!(sent(1, 5), Some(0));
        (100..115).for_each(|page| assert_eq!(sent(1, page), None));
        assert_eq!(cache.counts(), counts(1, 15, 0, 0));
        assert_eq!(sent(1, 115), None);
        assert_eq!(cache.counts().refusals, 1);
        assert!([5].into_iter().chain(100..115).all(|page| sent(2, page) == Some(1)));
    }

    #[test]
    fn its_size_is_kept_and_a_run_of_pages_fills_it() {
        for bytes in [0, 1 << 16, 1 << 20, 1_234_567] {
            let cache = PageCache::new(bytes);
            let places = (cache.sets.len() * WAYS) as u64;
            assert!(places * PLACE_BYTES <= bytes.max(WAYS as u64 * PLACE_BYTES));
            assert!((places + 2 * WAYS as u64) * PLACE_BYTES > bytes && cache.sets.len() % 2 == 1);
            for step in [1, 2, 64, 512] {
                let cache = PageCache::new(bytes);
                for round in 1..3 {
                    (0..places).for_each(|n| _ = cache.exchange((2, n * step), round, &content(n), |_| ()));
                }
                assert_eq!(cache.counts(), counts(places, places, 0, 0), "{bytes} {step}");
            }
        }
    }

    #[test]
    fn of_a_working_set_too_large_a_part_hits() {
        let cache = PageCache::new(0);
        let round =
            |round| (0..32).for_each(|page| _ = cache.exchange((0, page), round, &content(page), |_| ()));
        (1..=10).for_each(round);
        assert_eq!(cache.counts(), counts(9 * 16, 32 + 9 * 16, 0, 16 + 9 * 16));
        // Other pages are let in as soon as the old ones have missed a round, and not before.
        let other =
            |round| (100..116).for_each(|page| _ = cache.exchange((0, page), round, &content(page), |_| ()));
        other(11);
        assert_eq!(cache.counts().evictions, 0);
        other(12);
        assert_eq!(cache.counts().evictions, 16);
        other(13);
        assert_eq!(cache.counts().hits, 9 * 16 + 16);
    }

    proptest! {
        /// Whatever comes in which order: a base is what was sent last, with its round.
        #[test]
        fn a_base_is_what_was_sent_last(
            sent in prop::collection::vec((0u16..2, 0u64..40, 0u32..2, prop::bool::weighted(0.1)), 0..400),
        ) {
            let cache = PageCache::new(0);
            let mut last = HashMap::new();
            let mut round = 0;
            for (number, (region, page, step, zero)) in sent.into_iter().enumerate() {
                round += step;
                if zero {
                    cache.forget(region, page);
                    last.remove(&(region, page));
                    continue;
                }
                let new = content(number as u64);
                let base = cache.exchange((region, page), round, &new, |base| (base.round, *base.content));
                if let Some(base) = base {
                    prop_assert_eq!(Some(&base), last.get(&(region, page)));
                }
                last.insert((region, page), (round, new));
            }
        }
    }

    #[test]
    fn threads_share_it() {
        let cache = PageCache::new(4 << 20);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 1..20 {
                        for page in (thread..256).step_by(4) {
                            let new = content(page << 32 | u64::from(round));
                            let base = cache.exchange((0, page), round, &new, |base| *base.content);
                            let expected = content(page << 32 | u64::from(round - 1));
                            assert_eq!(base, (round > 1).then_some(expected));
                        }
                    }
                });
            }
        });
        assert_eq!(cache.counts(), counts(18 * 256, 256, 0, 0));
    }
}
