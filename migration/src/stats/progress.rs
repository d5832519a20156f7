//! How far a migration is, and when it will be over: computed from its report alone, the same way on both sides.

use super::{Report, Side, Status};

/// Rounds that are looked ahead; a migration that needs more isn't about to end.
const ROUNDS_AHEAD: u32 = 200;
/// All but the answer that the guest runs.
const ALMOST_PERCENT: u64 = 99;

impl Report {
    /// Fills in progress and remaining time. Progress never falls below `before`, whatever the guest does.
    pub(crate) fn foresee(&mut self, before: Option<&Self>) {
        let before = before.map_or(0, |before| before.progress_percent);
        self.eta_ms = None;
        if self.status == Status::Completed {
            self.progress_percent = 100;
            return;
        }
        if !self.status.is_final() {
            self.eta_ms = self.time_left_us().map(|left_us| left_us.div_ceil(1000));
        }
        let share = self.share_done_percent().unwrap_or(0).min(ALMOST_PERCENT);
        self.progress_percent = before.max(share);
    }

    fn share_done_percent(&self) -> Option<u64> {
        let percent =
            |done: u64, all: u64| (u128::from(done) * 100).checked_div(all.into()).map(|p| p as u64);
        if let Some(eta_ms) = self.eta_ms {
            let left_us = eta_ms.saturating_mul(1000);
            return percent(self.live_us, self.live_us.saturating_add(left_us));
        }
        // Pages that came again don't count twice: more than all is all.
        let moved = self.pages.sent().saturating_add(self.pages.untouched.unwrap_or(0));
        percent(moved.saturating_mul(self.page_bytes), self.memory_bytes)
    }

    /// With a constant rate of writing, each round is shorter than the one before by the same factor; the guest is
    /// stopped when the rest fits into the limit. None: not known yet, or it doesn't converge.
    fn time_left_us(&self) -> Option<u64> {
        if self.side == Side::Destination || !matches!(self.status, Status::Active | Status::Device) {
            return None;
        }
        let page_bytes = self.page_bytes as f64;
        let rate = self.pages_per_s()? * page_bytes;
        let dirtied = self.dirty_pages_per_s.unwrap_or(0) as f64 * page_bytes;
        let mut left = self.remaining_bytes? as f64;
        let fits = rate * self.downtime_limit_ms.unwrap_or(0) as f64 / 1e3;
        if self.rounds.iter().any(|round| round.stopped) {
            return Some((left / rate * 1e6) as u64);
        }
        let mut seconds = 0.0;
        // The rest of the present round is sent in any case.
        for _ in 0..ROUNDS_AHEAD {
            let round = left / rate;
            seconds += round;
            left = (round * dirtied).min(self.memory_bytes as f64);
            if left <= fits {
                return Some(((seconds + left / rate) * 1e6) as u64);
            }
        }
        None
    }

    /// Pages a second that the present or last round has moved, or all so far.
    fn pages_per_s(&self) -> Option<f64> {
        let pages =
            |round: &super::Round| round.pages_raw + round.pages_zero + round.pages_untouched.unwrap_or(0);
        let rounds = || self.rounds.iter().rev().filter(|round| pages(round) > 0 && round.duration_us > 0);
        let round = rounds().find(|round| round.finished).or_else(|| rounds().next())?;
        Some(pages(round) as f64 / (round.duration_us as f64 / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Round;
    use super::*;
    use proptest::prelude::*;

    /// 1 GiB, of which `left` bytes are left; rounds move 100,000 pages a second.
    fn report(left: u64, dirty_pages_per_s: Option<u64>) -> Report {
        let mut report = Report::new(Side::Source);
        (report.status, report.memory_bytes, report.live_us) = (Status::Active, 1 << 30, 1_000_000);
        (report.remaining_bytes, report.dirty_pages_per_s) = (Some(left), dirty_pages_per_s);
        report.downtime_limit_ms = Some(10);
        let finished = dirty_pages_per_s.is_some();
        report.push_round(Round { pages_raw: 100_000, duration_us: 1_000_000, finished, ..Round::default() });
        report
    }

    fn foreseen(mut report: Report) -> (Option<u64>, u64) {
        report.foresee(None);
        (report.eta_ms, report.progress_percent)
    }

    #[test]
    fn the_rest_of_a_round_and_the_ones_after_it_take_their_time() {
        assert_eq!(foreseen(report(4096 * 100_000, None)), (Some(1000), 50));
        // Half of what is sent becomes dirty meanwhile: 1 + 1/2 + ... s until 1,000 pages are left.
        let (eta_ms, _) = foreseen(report(4096 * 100_000, Some(50_000)));
        assert!((1980..=2000).contains(&eta_ms.unwrap()), "{eta_ms:?}");
        // As much as is sent.
        assert_eq!(foreseen(report(4096 * 100_000, Some(100_000))).0, None);
        assert_eq!(foreseen(report(0, Some(0))), (Some(0), 99));
    }

    #[test]
    fn the_end_is_all_and_a_failure_stays_where_it_was() {
        let mut ended = report(0, Some(0));
        ended.status = Status::Completed;
        assert_eq!(foreseen(ended.clone()), (None, 100));
        let mut failed = report(4096 * 100_000, None);
        failed.progress_percent = 70;
        let before = failed.clone();
        failed.status = Status::Failed;
        failed.foresee(Some(&before));
        assert_eq!((failed.eta_ms, failed.progress_percent), (None, 70));
    }

    proptest! {
        #[test]
        fn progress_never_falls(steps in prop::collection::vec(
            (0u64..1 << 31, prop::option::of(0u64..300_000), 0u64..100_000_000), 1..30)) {
            let mut before: Option<Report> = None;
            for (left, dirty, live_us) in steps {
                let mut next = report(left, dirty);
                next.live_us = live_us;
                next.foresee(before.as_ref());
                prop_assert!(next.progress_percent <= ALMOST_PERCENT);
                prop_assert!(before.is_none_or(|b| b.progress_percent <= next.progress_percent));
                before = Some(next);
            }
        }
    }
}
