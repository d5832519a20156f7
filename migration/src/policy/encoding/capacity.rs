//! How fast the link is, as far as that is known. Only a window in which the source waited for the link says it;
//! another one was bound by something else, and its bytes are but a lower bound.

use std::collections::VecDeque;

/// Windows that count; of them the median.
const KEPT: usize = 3;
/// Part of the threads' time in which sends must have waited.
const WAITING_SHARE: f64 = 0.3;
/// Sends that are faster than this, in bytes/s of a thread, copy and don't wait.
const COPYING_BYTES_PER_S: f64 = 800e6;
/// A measurement without a newer one is believed for so long at first, and twice as long each time that it
/// turns out to be true still.
const BELIEVED_US: u64 = 4_000_000;
const BELIEVED_US_MAX: u64 = 64_000_000;
/// Measurements that differ by less confirm each other.
const SAME: f64 = 0.2;

/// What was sent in a while.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Window {
    pub(crate) wall_us: u64,
    pub(crate) pages: u64,
    pub(crate) bytes: u64,
    /// Time that all threads together were sending, waits for the limit not counted.
    pub(crate) sending_us: u64,
    /// The same for encoding, and looking at pages.
    pub(crate) encoding_us: u64,
}

/// The link's speed.
#[derive(Debug, Clone)]
pub(crate) struct Capacity {
    latest: VecDeque<f64>,
    measured_us: u64,
    believed_us: u64,
    /// What it was when it was last doubted.
    before: Option<f64>,
}

impl Window {
    pub(crate) fn pages_per_s(&self) -> f64 {
        self.pages as f64 * 1e6 / self.wall_us.max(1) as f64
    }

    fn time_us(&self, threads: f64) -> f64 {
        self.wall_us.max(1) as f64 * threads
    }

    /// The link, or whatever is behind it, kept the threads waiting.
    fn waits(&self, threads: f64) -> bool {
        let share = self.sending_us as f64 / self.time_us(threads);
        let rate = self.bytes as f64 * 1e6 / self.sending_us.max(1) as f64;
        share >= WAITING_SHARE && rate < COPYING_BYTES_PER_S
    }
}

impl Capacity {
    pub(crate) fn new() -> Self {
        Self {
            latest: VecDeque::with_capacity(KEPT + 1),
            measured_us: 0,
            believed_us: BELIEVED_US,
            before: None,
        }
    }

    /// A window is over. `other_bound`: the samples say that the destination's processors were the limit, which looks
    /// from here as a slow link does.
    pub(crate) fn add(&mut self, now_us: u64, window: &Window, threads: f64, other_bound: bool) {
        if window.waits(threads) && !other_bound {
            self.latest.push_back(window.bytes as f64 * 1e6 / window.wall_us.max(1) as f64);
            if self.latest.len() > KEPT {
                self.latest.pop_front();
            }
            self.measured_us = now_us;
            self.confirm();
        } else if now_us.saturating_sub(self.measured_us) > self.believed_us {
            self.before = self.bytes_per_s().or(self.before);
            self.latest.clear();
        }
    }

    /// None: it isn't known to be a limit.
    pub(crate) fn bytes_per_s(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.latest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        // Of two the lower one: the first was likely to fill a buffer as well.
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }

    fn confirm(&mut self) {
        if self.latest.len() < KEPT {
            return;
        }
        if let (Some(before), Some(now)) = (self.before.take(), self.bytes_per_s()) {
            let same = (now - before).abs() <= SAME * before;
            self.believed_us = if same { (2 * self.believed_us).min(BELIEVED_US_MAX) } else { BELIEVED_US };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 50 ms of one thread that was sending for this part of it, in percent.
    fn window(bytes: u64, sending: u64) -> Window {
        let wall_us = 50_000;
        Window { wall_us, pages: 100, bytes, sending_us: wall_us * sending / 100, encoding_us: 0 }
    }

    #[test]
    fn only_waiting_says_how_fast_the_link_is() {
        let mut capacity = Capacity::new();
        // Bound by the processor; by copying; by the destination.
        capacity.add(1, &window(500_000, 10), 1.0, false);
        capacity.add(2, &window(60_000_000, 90), 1.0, false);
        capacity.add(3, &window(500_000, 90), 1.0, true);
        // Of four threads one sends.
        capacity.add(4, &window(500_000, 90), 4.0, false);
        assert_eq!(capacity.bytes_per_s(), None);
        capacity.add(5, &window(625_000, 90), 1.0, false);
        assert_eq!(capacity.bytes_per_s(), Some(12.5e6));
        // The median: one window that filled a buffer doesn't count.
        capacity.add(6, &window(5_000_000, 90), 1.0, false);
        capacity.add(7, &window(600_000, 90), 1.0, false);
        assert_eq!(capacity.bytes_per_s(), Some(12.5e6));
    }

    #[test]
    fn an_old_measurement_is_doubted_and_believed_longer_if_it_was_true() {
        let mut capacity = Capacity::new();
        let mut now = 0;
        for believed in [4_000_000, 8_000_000, 16_000_000] {
            (0..3).for_each(|_| capacity.add(now, &window(625_000, 90), 1.0, false));
            capacity.add(now + believed, &window(1, 1), 1.0, false);
            assert!(capacity.bytes_per_s().is_some());
            now += believed + 1;
            capacity.add(now, &window(1, 1), 1.0, false);
            assert_eq!(capacity.bytes_per_s(), None);
        }
        // Another speed: everything is new.
        (0..3).for_each(|_| capacity.add(now, &window(6_250_000, 90), 1.0, false));
        capacity.add(now + 4_000_001, &window(1, 1), 1.0, false);
        assert_eq!(capacity.bytes_per_s(), None);
    }
}
