//! What the prefetcher brings next: first what lies around the newest fault, then everything in order.
//! A pure decision: it sees which pages are missing, and where the last fault was.

use std::ops::Range;

use super::placed::Placed;

/// What is brought around a fault before the sequence goes on: 2 MiB, the reach of most loops over memory.
const NEAR_PAGES: u64 = 512;

/// A page of a region.
pub(super) type Place = (usize, u64);

/// Where the prefetcher is.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// All pages before it are there.
    sequence: Place,
    /// What is still to be brought around a fault: ahead of it, then behind it.
    near: [(usize, Range<u64>); 2],
}

impl Order {
    /// The next run to bring, of `most` pages at most; none if nothing is missing. What of it is not placed
    /// by the next call is missing still, and comes again. `fault`: where one was since the last call.
    pub(super) fn next(
        &mut self,
        placed: &Placed,
        fault: Option<Place>,
        most: u64,
    ) -> Option<(usize, Range<u64>)> {
        if let Some((region, page)) = fault {
            let first = page / NEAR_PAGES * NEAR_PAGES;
            self.near = [(region, page..first + NEAR_PAGES), (region, first..page)];
        }
        for (region, pages) in &mut self.near {
            if let Some(run) = placed.first_missing(*region, pages.clone()) {
                let run = run.start..run.end.min(run.start.saturating_add(most));
                pages.start = run.start;
                return Some((*region, run));
            }
            pages.start = pages.end;
        }
        self.next_in_sequence(placed, most)
    }

    fn next_in_sequence(&mut self, placed: &Placed, most: u64) -> Option<(usize, Range<u64>)> {
        loop {
            let (region, page) = self.sequence;
            if region >= placed.regions() {
                return None;
            }
            if let Some(run) = placed.first_missing(region, page..placed.pages(region)) {
                let run = run.start..run.end.min(run.start.saturating_add(most));
                self.sequence = (region, run.start);
                return Some((region, run));
            }
            self.sequence = (region + 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bring(order: &mut Order, placed: &Placed, fault: Option<Place>) -> Option<(usize, Range<u64>)> {
        let next = order.next(placed, fault, 64)?;
        placed.set(next.0, next.1.clone());
        Some(next)
    }

    #[test]
    fn everything_is_brought_once_and_in_order() {
        let placed = Placed::new(&[100, 30]);
        placed.set(0, 10..20);
        let mut order = Order::default();
        let runs: Vec<_> = std::iter::from_fn(|| bring(&mut order, &placed, None)).collect();
        assert_eq!(runs, [(0, 0..10), (0, 20..84), (0, 84..100), (1, 0..30)]);
        assert_eq!(placed.left(), 0);
    }

    #[test]
    fn a_fault_draws_what_lies_around_it() {
        let placed = Placed::new(&[4096]);
        let mut order = Order::default();
        assert_eq!(bring(&mut order, &placed, None), Some((0, 0..64)));
        placed.set(0, 2000..2001);
        assert_eq!(bring(&mut order, &placed, Some((0, 2000))), Some((0, 2001..2048)), "ahead, to its end");
        assert_eq!(bring(&mut order, &placed, None), Some((0, 1536..1600)), "then behind it");
        let rest: Vec<_> = (0..7).map(|_| bring(&mut order, &placed, None)).collect();
        assert_eq!(rest[5], Some((0, 1920..1984)));
        assert_eq!(rest[6], Some((0, 1984..2000)));
        assert_eq!(bring(&mut order, &placed, None), Some((0, 64..128)), "the sequence goes on");
    }

    #[test]
    fn faults_at_the_ends_and_outside_do_no_harm() {
        let placed = Placed::new(&[600]);
        let mut order = Order::default();
        assert_eq!(bring(&mut order, &placed, Some((0, 599))), Some((0, 599..600)));
        assert_eq!(bring(&mut order, &placed, Some((9, 5))), Some((0, 0..64)));
        while bring(&mut order, &placed, None).is_some() {}
        assert_eq!(placed.left(), 0);
    }
}
