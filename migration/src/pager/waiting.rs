//! Who waits for which page, since when, and how long each vCPU has stood still for it. Time is an argument.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::latency::Latency;
use super::order::Place;

/// The waits that are going on.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pages: HashMap<Place, Vec<Wait>>,
    blocked: Blocked,
}

/// What a wait is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// Nobody waited for this page before.
    First,
    /// Somebody else does.
    Another,
    /// This thread has waited for it already.
    Again,
}

#[derive(Debug)]
struct Wait {
    thread: u64,
    since: Instant,
    is_write: bool,
}

/// How long vCPUs stood still for pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BlockedReport {
    /// Each vCPU, in order. Empty where it isn't known which threads are vCPUs.
    pub vcpus_us: Vec<u64>,
    /// All of them at the same time: the guest as a whole stood still.
    pub all_us: u64,
}

impl Waiting {
    /// The threads that run vCPUs, in order.
    pub(super) fn name_vcpus(&mut self, threads: &[u64]) {
        let vcpu = |thread: &u64| Vcpu { thread: *thread, ..Vcpu::default() };
        self.blocked.vcpus = threads.iter().map(vcpu).collect();
    }

    /// A thread waits for a page that is not there.
    pub(super) fn begin(&mut self, place: Place, thread: u64, is_write: bool, now: Instant) -> Begun {
        self.blocked.begin(place, thread, now);
        let waits = self.pages.entry(place).or_default();
        // Whoever has a signal pending while the kernel touches the page for him asks again and again.
        if let Some(known) = waits.iter_mut().find(|wait| wait.thread == thread) {
            known.is_write |= is_write;
            return Begun::Again;
        }
        waits.push(Wait { thread, since: now, is_write });
        if waits.len() == 1 { Begun::First } else { Begun::Another }
    }

    /// Pages have come: whoever waited for them goes on.
    pub(super) fn end(&mut self, region: usize, pages: &Range<u64>, latency: &Latency, now: Instant) {
        if self.pages.is_empty() {
            return;
        }
        let came: Vec<Place> = if pages.end.saturating_sub(pages.start) == 1 {
            vec![(region, pages.start)]
        } else {
            let inside = |place: &&Place| place.0 == region && pages.contains(&place.1);
            self.pages.keys().filter(inside).copied().collect()
        };
        for place in came {
            for wait in self.pages.remove(&place).unwrap_or_default() {
                latency.add(now.saturating_duration_since(wait.since));
            }
            self.blocked.end(place, now);
        }
    }

    /// Does somebody wait to write this page?
    pub(super) fn is_write(&self, place: Place) -> bool {
        self.pages.get(&place).is_some_and(|waits| waits.iter().any(|wait| wait.is_write))
    }

    /// All pages that somebody waits for, the longest wait first.
    pub(super) fn pages(&self) -> Vec<Place> {
        let since = |waits: &Vec<Wait>| waits.first().map(|wait| wait.since);
        let mut all: Vec<_> = self.pages.iter().map(|(place, waits)| (since(waits), *place)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, place)| place).collect()
    }

    pub(super) fn report(&self, now: Instant) -> BlockedReport {
        self.blocked.report(now)
    }
}

/// A vCPU waits for one page at a time.
#[derive(Debug, Default)]
struct Blocked {
    vcpus: Vec<Vcpu>,
    all: Duration,
    all_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Vcpu {
    thread: u64,
    total: Duration,
    waits: Option<(Place, Instant)>,
}

impl Vcpu {
    fn settle(&mut self, now: Instant) {
        if let Some((_, since)) = self.waits.take() {
            self.total += now.saturating_duration_since(since);
        }
    }
}

impl Blocked {
    fn begin(&mut self, place: Place, thread: u64, now: Instant) {
        let Some(vcpu) = self.vcpus.iter_mut().find(|vcpu| vcpu.thread == thread) else { return };
        if vcpu.waits.is_some_and(|(at, _)| at == place) {
            return;
        }
        // A signal ends a wait of KVM's; the vCPU comes again, perhaps for another page.
        vcpu.settle(now);
        vcpu.waits = Some((place, now));
        self.note_all(now);
    }

    fn end(&mut self, place: Place, now: Instant) {
        let waits_here = |vcpu: &&mut Vcpu| vcpu.waits.is_some_and(|(at, _)| at == place);
        self.vcpus.iter_mut().filter(waits_here).for_each(|vcpu| vcpu.settle(now));
        self.note_all(now);
    }

    fn note_all(&mut self, now: Instant) {
        let all = !self.vcpus.is_empty() && self.vcpus.iter().all(|vcpu| vcpu.waits.is_some());
        match (all, self.all_since) {
            (true, None) => self.all_since = Some(now),
            (false, Some(since)) => {
                self.all += now.saturating_duration_since(since);
                self.all_since = None;
            }
            _ => {}
        }
    }

    fn report(&self, now: Instant) -> BlockedReport {
        let us = |done: Duration, since: Option<Instant>| {
            let open = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            u64::try_from((done + open).as_micros()).unwrap_or(u64::MAX)
        };
        let vcpu = |vcpu: &Vcpu| us(vcpu.total, vcpu.waits.map(|(_, since)| since));
        BlockedReport {
            vcpus_us: self.vcpus.iter().map(vcpu).collect(),
            all_us: us(self.all, self.all_since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, us: u64) -> Instant {
            self.0 + Duration::from_micros(us)
        }
    }

    #[test]
    fn each_vcpu_is_counted_and_all_of_them_only_while_all_wait() {
        let (clock, latency) = (Clock(Instant::now()), Latency::new());
        let mut waiting = Waiting::default();
        waiting.name_vcpus(&[70, 71]);
        assert_eq!(waiting.begin((0, 5), 70, false, clock.at(0)), Begun::First);
        assert_eq!(waiting.begin((0, 9), 71, true, clock.at(10)), Begun::First);
        // Another thread of the process, such as a disk's worker.
        assert_eq!(waiting.begin((0, 9), 99, false, clock.at(12)), Begun::Another);
        assert!(waiting.is_write((0, 9)) && !waiting.is_write((0, 5)));
        assert_eq!(waiting.pages(), [(0, 5), (0, 9)]);
        assert_eq!(waiting.report(clock.at(15)), BlockedReport { vcpus_us: vec![15, 5], all_us: 5 });
        waiting.end(0, &(0..6), &latency, clock.at(30));
        waiting.end(1, &(0..20), &latency, clock.at(31));
        waiting.end(0, &(9..10), &latency, clock.at(50));
        assert_eq!(waiting.report(clock.at(99)), BlockedReport { vcpus_us: vec![30, 40], all_us: 20 });
        assert_eq!((waiting.pages(), latency.report().max_us), (Vec::new(), 40));
    }

    #[test]
    fn a_vcpu_that_was_called_off_and_waits_for_another_page_is_counted_once() {
        let (clock, latency) = (Clock(Instant::now()), Latency::new());
        let mut waiting = Waiting::default();
        waiting.name_vcpus(&[70]);
        waiting.begin((0, 5), 70, false, clock.at(0));
        waiting.begin((0, 6), 70, false, clock.at(10));
        waiting.end(0, &(5..6), &latency, clock.at(20));
        assert_eq!(waiting.pages(), [(0, 6)]);
        waiting.end(0, &(6..7), &latency, clock.at(30));
        assert_eq!(waiting.report(clock.at(40)), BlockedReport { vcpus_us: vec![30], all_us: 30 });
    }

    #[test]
    fn who_asks_again_and_again_waits_once() {
        let (clock, latency) = (Clock(Instant::now()), Latency::new());
        let mut waiting = Waiting::default();
        let begun: Vec<_> =
            (0..1000).map(|us| waiting.begin((0, 5), 70, us % 2 == 1, clock.at(us))).collect();
        assert!(begun[0] == Begun::First && begun[1..].iter().all(|begun| *begun == Begun::Again));
        assert!(waiting.is_write((0, 5)));
        waiting.end(0, &(5..6), &latency, clock.at(1000));
        let counts: Vec<_> = latency.classes().iter().map(|class| class.count).collect();
        assert_eq!((counts, latency.report().max_us), (vec![1], 1000));
    }

    #[test]
    fn without_vcpus_nothing_stands_still() {
        let mut waiting = Waiting::default();
        let now = Instant::now();
        waiting.begin((0, 5), 1, false, now);
        assert_eq!(waiting.report(now + Duration::from_secs(1)), BlockedReport::default());
    }
}
