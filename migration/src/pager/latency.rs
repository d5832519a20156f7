//! How long faults took: counts in classes of about an eighth, so that a percentile needs no list.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Classes of each power of two.
const STEPS: u64 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Up to 2^36 us, which is 19 hours.
const CLASSES: usize = 34 * STEPS as usize;

/// Many durations.
#[derive(Debug)]
pub(super) struct Latency {
    classes: [AtomicU64; CLASSES],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

/// What they come to, in microseconds; percentiles are the upper end of their class, 12 % off at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LatencyReport {
    /// All together, divided by how many there were.
    pub mean_us: u64,
    /// Half took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// How many took no longer than that, and longer than the class before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LatencyClass {
    /// The longest of the class, in microseconds.
    pub up_to_us: u64,
    /// How many.
    pub count: u64,
}

impl Latency {
    pub(super) fn new() -> Self {
        let classes = std::array::from_fn(|_| AtomicU64::new(0));
        Self { classes, sum_us: AtomicU64::new(0), max_us: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(class) = self.classes.get(class_of(us)) {
            class.fetch_add(1, Ordering::Relaxed);
        }
        // What would overflow it is of no use in a mean.
        self.sum_us.fetch_add(us.min(1 << 36), Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    /// The histogram: a class for each power of two that has any.
    pub(super) fn classes(&self) -> Vec<LatencyClass> {
        let mut all: Vec<LatencyClass> = Vec::new();
        for (class, count) in self.classes.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            let up_to_us = (most_of(class) + 1).next_power_of_two() - 1;
            match all.last_mut() {
                Some(last) if last.up_to_us == up_to_us => last.count += count,
                _ if count > 0 => all.push(LatencyClass { up_to_us, count }),
                _ => {}
            }
        }
        all
    }

    pub(super) fn report(&self) -> LatencyReport {
        let counts: Vec<u64> = self.classes.iter().map(|class| class.load(Ordering::Relaxed)).collect();
        let max_us = self.max_us.load(Ordering::Relaxed);
        let total: u64 = counts.iter().sum();
        let percentile = |percent: u64| {
            let due = (total * percent).div_ceil(100);
            let mut seen = 0;
            let class = counts.iter().position(|count| {
                seen += count;
                total > 0 && seen >= due
            });
            class.map_or(0, |class| most_of(class).min(max_us))
        };
        let mean_us = self.sum_us.load(Ordering::Relaxed).checked_div(total).unwrap_or(0);
        LatencyReport { mean_us, p50_us: percentile(50), p99_us: percentile(99), max_us }
    }
}

/// Exact below 8, then eight classes for each power of two.
fn class_of(us: u64) -> usize {
    let class = match us.checked_ilog2() {
        Some(log) if log >= STEP_BITS => {
            let shift = log - STEP_BITS;
            u64::from(shift) * STEPS + (us >> shift)
        }
        _ => us,
    };
    usize::try_from(class).unwrap_or(usize::MAX).min(CLASSES - 1)
}

/// The greatest value of a class.
fn most_of(class: usize) -> u64 {
    let class = class as u64;
    if class < 2 * STEPS {
        return class;
    }
    let shift = class / STEPS - 1;
    ((class % STEPS + STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_class_holds_its_values_and_is_an_eighth_wide(us in 0u64..1 << 36) {
            let most = most_of(class_of(us));
            prop_assert!(most >= us && most <= us + us / 8 + 1, "{us} in a class up to {most}");
        }
    }

    #[test]
    fn percentiles() {
        let latency = Latency::new();
        assert_eq!(latency.report(), LatencyReport::default());
        (0..98).for_each(|_| latency.add(Duration::from_micros(5)));
        latency.add(Duration::from_micros(1000));
        latency.add(Duration::from_secs(3));
        let LatencyReport { mean_us, p50_us, p99_us, max_us } = latency.report();
        assert_eq!((mean_us, p50_us, max_us), (30_014, 5, 3_000_000));
        assert!((1000..1125).contains(&p99_us), "{p99_us}");
        let classes: Vec<_> = latency.classes().iter().map(|class| (class.up_to_us, class.count)).collect();
        assert_eq!(classes, [(7, 98), (1023, 1), ((1 << 22) - 1, 1)]);
        latency.add(Duration::MAX);
    }
}
