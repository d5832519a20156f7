//! What the link can carry: the best of the latest windows of busy time.
//!
//! Time in which nothing was being sent (looking for zero pages, waiting for the limit) isn't in a window,
//! so neither a bandwidth limit nor a slow guest makes the link look slow.

use std::collections::VecDeque;

/// Shorter windows measure the socket's buffer.
const WINDOW_US: u64 = 20_000;
const WINDOWS_KEPT: usize = 8;
/// Less than this says nothing.
const LEAST_BYTES: u64 = 256 << 10;
/// What is assumed before anything is known: 1 Gbit/s.
const ASSUMED_BYTES_PER_S: u64 = 125_000_000;

/// The meter.
#[derive(Debug, Clone)]
pub(crate) struct LinkMeter {
    windows: VecDeque<u64>,
    bytes: u64,
    busy_us: u64,
}

impl LinkMeter {
    pub(crate) fn new() -> Self {
        Self { windows: VecDeque::with_capacity(WINDOWS_KEPT + 1), bytes: 0, busy_us: 0 }
    }

    /// Sending `bytes` took `busy_us`.
    pub(crate) fn add(&mut self, bytes: u64, busy_us: u64) {
        self.bytes += bytes;
        self.busy_us += busy_us;
        if self.busy_us >= WINDOW_US {
            self.windows.push_back(rate(self.bytes, self.busy_us));
            if self.windows.len() > WINDOWS_KEPT {
                self.windows.pop_front();
            }
            (self.bytes, self.busy_us) = (0, 0);
        }
    }

    /// Bytes a second, if enough was sent to tell.
    pub(crate) fn measured_bytes_per_s(&self) -> Option<u64> {
        let unfinished = (self.bytes >= LEAST_BYTES).then(|| rate(self.bytes, self.busy_us));
        self.windows.iter().copied().max().or(unfinished)
    }

    /// The same, or what is assumed of a link on which nothing was sent yet.
    pub(crate) fn bytes_per_s(&self) -> u64 {
        self.measured_bytes_per_s().unwrap_or(ASSUMED_BYTES_PER_S)
    }
}

/// An amount a second.
pub(crate) fn rate(amount: u64, time_us: u64) -> u64 {
    let per_s = u128::from(amount) * 1_000_000 / u128::from(time_us.max(1));
    u64::try_from(per_s).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_the_latest_windows_counts() {
        let mut meter = LinkMeter::new();
        assert_eq!((meter.measured_bytes_per_s(), meter.bytes_per_s()), (None, ASSUMED_BYTES_PER_S));
        meter.add(1 << 20, 1000);
        assert_eq!(meter.bytes_per_s(), (1 << 20) * 1000);
        meter.add(0, WINDOW_US);
        (0..WINDOWS_KEPT).for_each(|_| meter.add(2_000_000, WINDOW_US));
        assert_eq!(meter.bytes_per_s(), 100_000_000);
        meter.add(1_000_000, WINDOW_US);
        assert_eq!(meter.bytes_per_s(), 100_000_000);
        (0..WINDOWS_KEPT).for_each(|_| meter.add(1_000_000, WINDOW_US));
        assert_eq!(meter.bytes_per_s(), 50_000_000);
    }
}
