//! When to stop the guest.
//!
//! After each round: if what is dirty could be sent within the downtime limit, the guest may be stopped. It
//! is stopped at once when nothing is dirty, or when another round would not make the downtime noticeably
//! shorter; as long as it would, a few more rounds are worth it, for the limit is what is accepted and not
//! what is wanted. If the limit can't be met, rounds go on until `max-total-time`; then the migration
//! fails and the guest runs on. Without `max-total-time` they go on until somebody cancels or raises the
//! limit.

/// Rounds that are spent on making an acceptable downtime shorter.
const ROUNDS_WITHIN_LIMIT_MAX: u32 = 6;
/// Sending the rest faster than this isn't worth a round.
const NOT_WORTH_A_ROUND_US: u64 = 500;
/// Parts of the downtime that don't depend on what is dirty: stop, save, load, start.
pub(crate) const FIXED_COST_US: u64 = 3_000;
/// Times that the stopped phase waits for the peer: state, then COMMIT.
const ROUND_TRIPS: u64 = 2;

/// What is known at the end of a round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) dirty_bytes: u64,
    /// The same at the end of the round before; none after the first.
    pub(crate) dirty_bytes_before: Option<u64>,
    pub(crate) link_bytes_per_s: u64,
    pub(crate) round_trip_us: u64,
    pub(crate) elapsed_us: u64,
    /// Rounds so far whose end was within the limit.
    pub(crate) rounds_within_limit: u32,
    pub(crate) downtime_limit_ms: u64,
    /// 0: none.
    pub(crate) max_total_time_ms: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Stop the guest.
    Stop,
    /// Another round. `within_limit`: though the guest could be stopped.
    Another {
        /// Counts towards [`Figures::rounds_within_limit`].
        within_limit: bool,
    },
    /// The time is over.
    GiveUp,
}

/// Time to send `dirty_bytes`.
fn variable_us(dirty_bytes: u64, link_bytes_per_s: u64) -> u64 {
    let us = u128::from(dirty_bytes) * 1_000_000 / u128::from(link_bytes_per_s.max(1));
    u64::try_from(us).unwrap_or(u64::MAX)
}

impl Figures {
    /// Downtime if the guest were stopped now.
    pub(crate) fn expected_us(&self) -> u64 {
        let fixed = FIXED_COST_US.saturating_add(ROUND_TRIPS.saturating_mul(self.round_trip_us));
        variable_us(self.dirty_bytes, self.link_bytes_per_s).saturating_add(fixed)
    }

    /// What to do now.
    pub(crate) fn decide(&self) -> Decision {
        if self.dirty_bytes == 0 {
            return Decision::Stop;
        }
        let late = is_late(self.elapsed_us, self.max_total_time_ms);
        if self.expected_us() > self.downtime_limit_ms.saturating_mul(1000) {
            return if late { Decision::GiveUp } else { Decision::Another { within_limit: false } };
        }
        let shrinking = self.dirty_bytes_before.is_none_or(|before| self.dirty_bytes < before / 4 * 3);
        let worth_it = variable_us(self.dirty_bytes, self.link_bytes_per_s) > NOT_WORTH_A_ROUND_US;
        if shrinking && worth_it && !late && self.rounds_within_limit < ROUNDS_WITHIN_LIMIT_MAX {
            Decision::Another { within_limit: true }
        } else {
            Decision::Stop
        }
    }
}

/// Is `max-total-time` over?
pub(crate) fn is_late(elapsed_us: u64, max_total_time_ms: u64) -> bool {
    max_total_time_ms != 0 && elapsed_us / 1000 >= max_total_time_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn figures(dirty_bytes: u64) -> Figures {
        Figures {
            dirty_bytes,
            dirty_bytes_before: None,
            link_bytes_per_s: 100 * MIB,
            round_trip_us: 100,
            elapsed_us: 1_000_000,
            rounds_within_limit: 0,
            downtime_limit_ms: 300,
            max_total_time_ms: 0,
        }
    }

    #[test]
    fn a_clean_guest_is_stopped_whatever_the_limit() {
        let clean = Figures { downtime_limit_ms: 0, ..figures(0) };
        assert_eq!(clean.decide(), Decision::Stop);
        let dirty = Figures { downtime_limit_ms: 0, ..figures(1) };
        assert_eq!(dirty.decide(), Decision::Another { within_limit: false });
    }

    #[test]
    fn fixed_cost_and_round_trips_count() {
        assert_eq!(figures(10 * MIB).expected_us(), 100_000 + FIXED_COST_US + 200);
        let tight = Figures { downtime_limit_ms: 100, dirty_bytes_before: Some(0), ..figures(10 * MIB) };
        assert_eq!(tight.decide(), Decision::Another { within_limit: false });
        assert_eq!(Figures { downtime_limit_ms: 104, ..tight }.decide(), Decision::Stop);
    }

    #[test]
    fn rounds_that_shorten_the_downtime_are_made_a_few_times() {
        let shrinking = Figures { dirty_bytes_before: Some(4 * MIB), ..figures(MIB) };
        assert_eq!(shrinking.decide(), Decision::Another { within_limit: true });
        let stuck = Figures { dirty_bytes_before: Some(MIB), ..shrinking };
        assert_eq!(stuck.decide(), Decision::Stop);
        let tired = Figures { rounds_within_limit: ROUNDS_WITHIN_LIMIT_MAX, ..shrinking };
        assert_eq!(tired.decide(), Decision::Stop);
        assert_eq!(figures(8 * 4096).decide(), Decision::Stop);
    }

    #[test]
    fn when_the_time_is_over_it_stops_if_it_may_and_else_gives_up() {
        let late = Figures { max_total_time_ms: 1000, ..figures(MIB) };
        assert_eq!(late.decide(), Decision::Stop);
        assert_eq!(Figures { dirty_bytes: 100 * MIB, ..late }.decide(), Decision::GiveUp);
        let early = Figures { max_total_time_ms: 1001, ..late };
        assert_eq!(early.decide(), Decision::Another { within_limit: true });
    }

    proptest! {
        /// A guest that dirties `percent` of what the link carries, and at most its whole memory.
        #[test]
        fn a_guest_slower_than_the_link_always_converges(percent in 0u64..80, memory_mib in 1u64..4096) {
            let mut now = figures(memory_mib * MIB);
            let mut rounds = 0;
            while let Decision::Another { within_limit } = now.decide() {
                now.dirty_bytes_before = Some(now.dirty_bytes);
                now.dirty_bytes = now.dirty_bytes * percent / 100;
                now.rounds_within_limit += u32::from(within_limit);
                rounds += 1;
            }
            prop_assert!(now.expected_us() <= 300_000 && rounds < 60, "{rounds} rounds");
        }
    }
}
