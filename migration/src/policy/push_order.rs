//! In which order post-copy sends what nobody has asked for yet: a decision from the pages that are left and the newest
//! requests.
//!
//! 1. Where the newest requests lie at equal distances, the pages that would be next: a loop over memory with a stride.
//! 2. What lies around the newest request: ahead of it, then behind it.
//! 3. Pages that were written in both of the last rounds: the guest will want them soon.
//! 4. Everything else, in the order of memory.

use std::collections::VecDeque;
use std::ops::Range;

use crate::dirty::DirtyBitmap;
use crate::postcopy::pages::PagePool;

/// What is sent around a request before anything else: 2 MiB, the reach of most loops over memory.
const NEAR_PAGES: u64 = 512;
/// So many requests at equal distances are a stride.
const STRIDE_REQUESTS: usize = 3;
/// Pages that are sent ahead of a stride.
const STRIDE_AHEAD: u64 = 16;
/// Requests that are looked at.
const REMEMBERED: usize = 8;

/// A page of a region.
type Place = (usize, u64);

/// Where the push is.
#[derive(Debug)]
pub(crate) struct PushOrder {
    hot: DirtyBitmap,
    /// All hot pages before it were taken.
    hot_at: Place,
    /// All pages before it were taken.
    sequence: Place,
    requests: VecDeque<Place>,
    /// Pages ahead of a stride.
    ahead: VecDeque<Place>,
    near: [(usize, Range<u64>); 2],
}

impl PushOrder {
    /// `hot`: pages that were written in both of the last rounds.
    pub(crate) fn new(hot: DirtyBitmap) -> Self {
        let (requests, ahead) = (VecDeque::with_capacity(REMEMBERED), VecDeque::new());
        Self { hot, hot_at: (0, 0), sequence: (0, 0), requests, ahead, near: Default::default() }
    }

    /// Somebody has asked for this page.
    pub(crate) fn requested(&mut self, region: usize, page: u64) {
        if self.requests.len() >= REMEMBERED {
            self.requests.pop_front();
        }
        self.requests.push_back((region, page));
        let first = page / NEAR_PAGES * NEAR_PAGES;
        self.near = [(region, page..first.saturating_add(NEAR_PAGES)), (region, first..page)];
        self.ahead.clear();
        if let Some(stride) = self.stride() {
            let next = |step: u64| page.checked_add_signed(stride.checked_mul(i64::try_from(step).ok()?)?);
            self.ahead.extend((1..=STRIDE_AHEAD).map_while(next).map(|page| (region, page)));
        }
    }

    /// The distance of the newest requests, if it is one and more than a page.
    fn stride(&self) -> Option<i64> {
        let newest: Vec<&Place> = self.requests.iter().rev().take(STRIDE_REQUESTS).collect();
        let step = |pair: &[&Place]| match pair {
            [(region, page), (other, before)] if region == other => {
                i64::try_from(*page).ok()?.checked_sub(i64::try_from(*before).ok()?)
            }
            _ => None,
        };
        let mut steps = newest.windows(2).map(step);
        let first = steps.next()??;
        let all = newest.len() == STRIDE_REQUESTS && steps.all(|step| step == Some(first));
        (all && first.unsigned_abs() > 1).then_some(first)
    }

    /// Takes the next pages from `left`, `most` at most; none: nothing is left. They rise by region and page.
    pub(crate) fn next(&mut self, left: &PagePool, most: usize) -> Vec<Place> {
        let mut taken = Vec::with_capacity(most);
        while taken.len() < most
            && let Some((region, page)) = self.ahead.pop_front()
        {
            if left.take(region, page) {
                taken.push((region, page));
            }
        }
        if taken.is_empty() {
            for (region, pages) in &mut self.near {
                take(left, *region, pages, most, &mut taken);
            }
        }
        if taken.is_empty() {
            self.take_hot(left, most, &mut taken);
        }
        while taken.is_empty() && self.sequence.0 < left.regions() {
            let (region, page) = self.sequence;
            let mut pages = page..left.pages(region);
            take(left, region, &mut pages, most, &mut taken);
            self.sequence = if pages.is_empty() { (region + 1, 0) } else { (region, pages.start) };
        }
        taken.sort_unstable();
        taken
    }

    fn take_hot(&mut self, left: &PagePool, most: usize, taken: &mut Vec<Place>) {
        while taken.len() < most && self.hot_at.0 < self.hot.regions() {
            let (region, page) = self.hot_at;
            let group = usize::try_from(page / 64).unwrap_or(usize::MAX);
            let Some(group) = self.hot.next_dirty_group(region, group) else {
                self.hot_at = (region + 1, 0);
                continue;
            };
            let first = page.max(group as u64 * 64);
            let end = (group as u64 + 1) * 64;
            self.hot_at = (region, end);
            for page in first..end {
                if taken.len() >= most {
                    self.hot_at = (region, page);
                    return;
                }
                if self.hot.get(region, page) && left.take(region, page) {
                    taken.push((region, page));
                }
            }
        }
    }
}

/// Takes what is left of `pages`, up to `most` in all, and moves their start behind it.
fn take(left: &PagePool, region: usize, pages: &mut Range<u64>, most: usize, taken: &mut Vec<Place>) {
    while taken.len() < most {
        let Some(page) = left.next(region, pages.clone()) else {
            pages.start = pages.end;
            return;
        };
        pages.start = page + 1;
        if left.take(region, page) {
            taken.push((region, page));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(pages: u64) -> PagePool {
        let mut set = DirtyBitmap::new([pages]);
        set.set_all();
        PagePool::new(&set)
    }

    fn order(pages: u64, hot: &[u64]) -> PushOrder {
        let mut set = DirtyBitmap::new([pages]);
        hot.iter().for_each(|page| set.set(0, *page));
        PushOrder::new(set)
    }

    fn pages(places: Vec<Place>) -> Vec<u64> {
        places.into_iter().map(|(_, page)| page).collect()
    }

    #[test]
    fn hot_pages_go_first_and_then_memory_in_order() {
        let (left, mut order) = (all(200), order(200, &[70, 71, 150]));
        assert_eq!(pages(order.next(&left, 2)), [70, 71]);
        assert_eq!(pages(order.next(&left, 2)), [150]);
        assert_eq!(pages(order.next(&left, 3)), [0, 1, 2]);
    }

    #[test]
    fn a_request_draws_what_lies_around_it() {
        let (left, mut order) = (all(4096), order(4096, &[]));
        assert_eq!(pages(order.next(&left, 2)), [0, 1]);
        assert!(left.take(0, 1000));
        order.requested(0, 1000);
        assert_eq!(pages(order.next(&left, 20)), (1001..1021).collect::<Vec<_>>(), "ahead of it");
        assert_eq!(pages(order.next(&left, 5)), [512, 513, 1021, 1022, 1023], "then behind it");
    }

    #[test]
    fn a_stride_is_gone_on_with_both_ways() {
        let (left, mut order) = (all(10_000), order(10_000, &[]));
        [100, 400, 700].into_iter().for_each(|page| order.requested(0, page));
        assert_eq!(pages(order.next(&left, 3)), [1000, 1300, 1600]);
        [9000, 8000, 7000].into_iter().for_each(|page| order.requested(0, page));
        assert_eq!(pages(order.next(&left, 64)), [0, 2000, 3000, 4000, 5000, 6000]);
    }

    proptest! {
        #[test]
        fn each_page_is_sent_once_whatever_is_asked_for(
            missing in prop::collection::btree_set(0u64..3000, 0..500),
            hot in prop::collection::vec(0u64..3000, 0..50),
            requests in prop::collection::vec((0u64..4000, 1usize..70), 0..40),
        ) {
            let mut set = DirtyBitmap::new([10, 3000]);
            missing.iter().for_each(|page| set.set(1, *page));
            let mut warm = DirtyBitmap::new([10, 3000]);
            hot.iter().for_each(|page| warm.set(1, *page));
            let (left, mut order) = (PagePool::new(&set), PushOrder::new(warm));
            let mut sent = Vec::new();
            for (page, most) in requests {
                order.requested(1, page);
                let next = order.next(&left, most);
                prop_assert!(next.len() <= most && next.is_sorted());
                sent.extend(next);
            }
            loop {
                let next = order.next(&left, 64);
                if next.is_empty() {
                    break;
                }
                sent.extend(next);
            }
            sent.sort_unstable();
            prop_assert_eq!(sent, missing.into_iter().map(|page| (1, page)).collect::<Vec<_>>());
            prop_assert_eq!(left.left(), 0);
        }
    }
}
