//! How long to wait so that no more than so many bytes a second are sent: a token bucket without a clock.

/// A thread that woke late may catch up by so much time's bytes, so that the rate is met on average.
const CATCH_UP_US: i128 = 20_000;
const MICRO: i128 = 1_000_000;

/// The bucket. Its unit is a byte-microsecond per second: whole numbers, so nothing is lost by rounding.
#[derive(Debug, Clone)]
pub(crate) struct Pacer {
    rate_bytes_per_s: u64,
    credit: i128,
    last_us: u64,
}

impl Pacer {
    /// 0 is no limit.
    pub(crate) fn new(rate_bytes_per_s: u64, now_us: u64) -> Self {
        Self { rate_bytes_per_s, credit: 0, last_us: now_us }
    }

    /// Another limit from now on. What was earned or overdrawn under the old one is forgotten.
    pub(crate) fn set_rate(&mut self, rate_bytes_per_s: u64, now_us: u64) {
        if rate_bytes_per_s != self.rate_bytes_per_s {
            *self = Self::new(rate_bytes_per_s, now_us);
        }
    }

    /// Microseconds until the next bytes may be sent.
    pub(crate) fn wait_us(&mut self, now_us: u64) -> u64 {
        let rate = i128::from(self.rate_bytes_per_s);
        if rate == 0 {
            return 0;
        }
        let passed = i128::from(now_us.saturating_sub(self.last_us));
        self.last_us = now_us;
        self.credit = (self.credit + passed * rate).min(rate * CATCH_UP_US);
        u64::try_from((-self.credit + rate - 1).max(0) / rate).unwrap_or(u64::MAX)
    }

    /// Notes that bytes were sent.
    pub(crate) fn sent(&mut self, bytes: u64) {
        if self.rate_bytes_per_s != 0 {
            self.credit -= i128::from(bytes) * MICRO;
        }
    }

    /// Most bytes that may go at once at this rate, so that they are under 1 % of a second; none: there is no limit.
    pub(crate) fn piece_bytes(rate_bytes_per_s: u64) -> Option<usize> {
        let piece = rate_bytes_per_s / 128;
        (rate_bytes_per_s > 0).then(|| usize::try_from(piece).unwrap_or(usize::MAX).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends batches as fast as the pacer allows, waking `late_us` late; returns (time, bytes) of each.
    fn run(pacer: &mut Pacer, from_us: u64, to_us: u64, late_us: u64) -> Vec<(u64, u64)> {
        let (mut now, mut sent) = (from_us, Vec::new());
        while now < to_us {
            let wait = pacer.wait_us(now);
            if wait > 0 {
                now += wait + late_us;
                continue;
            }
            let bytes = Pacer::piece_bytes(pacer.rate_bytes_per_s).unwrap_or(1 << 20).min(1 << 20) as u64;
            pacer.sent(bytes);
            sent.push((now, bytes));
        }
        sent
    }

    fn within(sent: &[(u64, u64)], from: u64) -> u64 {
        sent.iter().filter(|(at, _)| (from..from + 1_000_000).contains(at)).map(|(_, bytes)| bytes).sum()
    }

    proptest! {
        #[test]
        fn any_second_carries_the_rate_to_3_percent(
            rate in 262_144u64..20_000_000_000, late_us in 0u64..5000, from in 0u64..2_000_000,
        ) {
            let mut pacer = Pacer::new(rate, 0);
            let sent = run(&mut pacer, 0, 4_000_000, late_us);
            let bytes = within(&sent, 100_000 + from) as f64;
            prop_assert!((bytes / rate as f64 - 1.0).abs() < 0.03, "{bytes} of {rate}");
        }
    }

    /// Lanes that each reserve a piece, wait for it and reserve the next one, as `Throttle` does.
    fn run_lanes(rate: u64, lanes: usize, to_us: u64, late_us: u64) -> Vec<(u64, u64)> {
        let mut pacer = Pacer::new(rate, 0);
        let bytes = Pacer::piece_bytes(rate).unwrap_or(1).min(1 << 20) as u64;
        let (mut ready_us, mut sent) = (vec![0u64; lanes], Vec::new());
        while let Some(lane) = ready_us.iter_mut().min().filter(|now| **now < to_us) {
            let due_us = *lane + pacer.wait_us(*lane);
            pacer.sent(bytes);
            let at = if due_us > *lane { due_us + late_us } else { due_us };
            sent.push((at, bytes));
            *lane = at;
        }
        sent
    }

    proptest! {
        #[test]
        fn lanes_together_keep_the_rate_to_3_percent(
            rate in 262_144u64..2_000_000_000, lanes in 1usize..64, late_us in 0u64..2000, from in 0u64..1_000_000,
        ) {
            let bytes = within(&run_lanes(rate, lanes, 4_000_000, late_us), 1_000_000 + from) as f64;
            prop_assert!((bytes / rate as f64 - 1.0).abs() < 0.03, "{bytes} of {rate}");
        }
    }

    #[test]
    fn a_change_counts_from_its_moment() {
        let mut pacer = Pacer::new(100_000_000, 0);
        run(&mut pacer, 0, 2_000_000, 100);
        pacer.set_rate(1_000_000, 2_000_000);
        let slow = within(&run(&mut pacer, 2_000_000, 4_000_000, 100), 2_000_000);
        assert!((970_000..1_030_000).contains(&slow), "{slow}");
        pacer.set_rate(0, 4_000_000);
        pacer.sent(u64::MAX);
        assert_eq!(pacer.wait_us(4_000_000), 0);
    }
}
