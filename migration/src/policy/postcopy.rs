//! When pre-copy gives way to post-copy.
//!
//! Another round costs the time in which what is dirty is sent, and leaves what the guest writes meanwhile. It pays while
//! that is clearly less; once a round takes away less than three tenths of what it began with, the pages that are left are
//! those that the guest works on, and they come sooner one by one than by sending all of them again. Behind the switch
//! there is no way back, so it isn't made where the guest could be stopped, moved and started as quickly without it.

use std::fmt;

/// When post-copy begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostcopyMode {
    /// When somebody asks for it; that is possible in all modes.
    Manual,
    /// Before a page was sent.
    AtOnce,
    /// When all pages were sent once.
    AfterFirstPass,
    /// When another round wouldn't make what is left noticeably less.
    WhenPrecopyStopsPaying,
}

impl PostcopyMode {
    /// Of the parameter's value; none: post-copy never begins.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "manual" => Some(Self::Manual),
            "at-once" => Some(Self::AtOnce),
            "auto" | "after-first-pass" => Some(Self::AfterFirstPass),
            "when-precopy-stops-paying" => Some(Self::WhenPrecopyStopsPaying),
            _ => None,
        }
    }
}

/// To stop the guest and send so much isn't worth post-copy: it costs what a dozen faults do.
const SHORT_ENOUGH_US: u64 = 5_000;
/// A round pays if at most so many hundredths of what it began with are left.
const PAYS_PERCENT: u64 = 70;

/// What is known at the start, at the end of a round, and whenever somebody asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) mode: PostcopyMode,
    /// Somebody has asked for it.
    pub(crate) asked: bool,
    /// Whole rounds so far.
    pub(crate) rounds: u32,
    /// Of the guest's memory, not sent yet, or written since.
    pub(crate) dirty_bytes: u64,
    /// The same when the last round began.
    pub(crate) dirty_bytes_before: u64,
    pub(crate) link_bytes_per_s: u64,
    /// Downtime if the guest were stopped now and all of it sent.
    pub(crate) expected_us: u64,
    pub(crate) downtime_limit_ms: u64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Go on as without post-copy.
    PreCopy,
    /// Stop the guest, and hand it over.
    PostCopy(Reason),
}

/// Why post-copy begins now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Somebody said so.
    Asked,
    /// Before a page was sent.
    AtOnce,
    /// All pages were sent once, and too many are dirty to send them with the guest stopped.
    FirstPass {
        /// What is left.
        dirty_bytes: u64,
        /// How long that would take.
        us: u64,
    },
    /// Another round doesn't pay.
    NotPaying {
        /// How many there were.
        rounds: u32,
        /// What the last one began with.
        before_bytes: u64,
        /// What it left.
        dirty_bytes: u64,
        /// How long another one would take.
        us: u64,
    },
}

impl Figures {
    /// What to do now.
    pub(crate) fn decide(&self) -> Decision {
        if self.asked {
            return Decision::PostCopy(Reason::Asked);
        }
        let (dirty_bytes, us) = (self.dirty_bytes, self.send_us());
        match (self.mode, self.rounds) {
            (PostcopyMode::AtOnce, _) => Decision::PostCopy(Reason::AtOnce),
            (PostcopyMode::Manual, _) | (_, 0) => Decision::PreCopy,
            _ if self.is_nearly_there() => Decision::PreCopy,
            (PostcopyMode::AfterFirstPass, _) => Decision::PostCopy(Reason::FirstPass { dirty_bytes, us }),
            // The first round began with memory that nobody had written since: it says nothing.
            (PostcopyMode::WhenPrecopyStopsPaying, 1) => Decision::PreCopy,
            (PostcopyMode::WhenPrecopyStopsPaying, rounds) if !self.last_paid() => {
                let before_bytes = self.dirty_bytes_before;
                Decision::PostCopy(Reason::NotPaying { rounds, before_bytes, dirty_bytes, us })
            }
            (PostcopyMode::WhenPrecopyStopsPaying, _) => Decision::PreCopy,
        }
    }

    /// Time to send what is dirty.
    fn send_us(&self) -> u64 {
        let us = u128::from(self.dirty_bytes) * 1_000_000 / u128::from(self.link_bytes_per_s.max(1));
        u64::try_from(us).unwrap_or(u64::MAX)
    }

    /// The guest may be stopped for as long as it takes, and that is short.
    fn is_nearly_there(&self) -> bool {
        self.send_us() <= SHORT_ENOUGH_US && self.expected_us <= self.downtime_limit_ms.saturating_mul(1000)
    }

    fn last_paid(&self) -> bool {
        let (left, before) = (u128::from(self.dirty_bytes), u128::from(self.dirty_bytes_before));
        left * 100 <= before * u128::from(PAYS_PERCENT)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes / 1024;
        let ms = |us: u64| us.div_ceil(1000);
        match *self {
            Self::Asked => f.write_str("it was asked for"),
            Self::AtOnce => f.write_str("at once, before a page was sent (postcopy=at-once)"),
            Self::FirstPass { dirty_bytes, us } => write!(
                f,
                "all pages were sent once, and {} KiB were written since, which would take {} ms to send",
                kib(dirty_bytes),
                ms(us)
            ),
            Self::NotPaying { rounds, before_bytes, dirty_bytes, us } => write!(
                f,
                "another round doesn't pay: round {rounds} began with {} KiB and left {} KiB, which would take {} ms \
                 to send",
                kib(before_bytes),
                kib(dirty_bytes),
                ms(us)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Two rounds at 100 MiB/s; the second has halved 100 MiB.
    fn figures(mode: PostcopyMode) -> Figures {
        Figures {
            mode,
            asked: false,
            rounds: 2,
            dirty_bytes: 50 * MIB,
            dirty_bytes_before: 100 * MIB,
            link_bytes_per_s: 100 * MIB,
            expected_us: 503_000,
            downtime_limit_ms: 300,
        }
    }

    fn reason(figures: Figures) -> Option<String> {
        match figures.decide() {
            Decision::PreCopy => None,
            Decision::PostCopy(reason) => Some(reason.to_string()),
        }
    }

    #[test]
    fn whoever_asks_gets_it_and_in_manual_nobody_else() {
        let manual = figures(PostcopyMode::Manual);
        assert_eq!(manual.decide(), Decision::PreCopy);
        assert_eq!(reason(Figures { asked: true, rounds: 0, ..manual }).unwrap(), "it was asked for");
    }

    #[test]
    fn at_once_waits_for_nothing() {
        let start = Figures { rounds: 0, dirty_bytes_before: 0, ..figures(PostcopyMode::AtOnce) };
        assert!(reason(start).unwrap().starts_with("at once"));
    }

    #[test]
    fn after_the_first_pass_what_is_left_decides() {
        let mode = PostcopyMode::AfterFirstPass;
        assert_eq!(Figures { rounds: 0, ..figures(mode) }.decide(), Decision::PreCopy);
        let first = Figures { rounds: 1, ..figures(mode) };
        let said =
            "all pages were sent once, and 51200 KiB were written since, which would take 500 ms to send";
        assert_eq!(reason(first).unwrap(), said);
        let little = Figures { dirty_bytes: MIB / 2, expected_us: 8_000, ..first };
        assert_eq!(little.decide(), Decision::PreCopy, "5 ms");
        let strict = Figures { downtime_limit_ms: 7, ..little };
        assert!(reason(strict).is_some(), "it fits, but may not take so long");
    }

    #[test]
    fn a_round_that_hardly_helps_is_the_last() {
        let mode = PostcopyMode::WhenPrecopyStopsPaying;
        assert_eq!(figures(mode).decide(), Decision::PreCopy, "half is gone");
        let slow = Figures { rounds: 4, dirty_bytes: 71 * MIB, ..figures(mode) };
        let said = "another round doesn't pay: round 4 began with 102400 KiB and left 72704 KiB, which would take 710 \
                    ms to send";
        assert_eq!(reason(slow).unwrap(), said);
        assert_eq!(Figures { rounds: 1, ..slow }.decide(), Decision::PreCopy, "the first round says nothing");
    }

    proptest! {
        #[test]
        fn the_less_a_round_helps_the_sooner_it_ends(
            rounds in 0u32..9, left in 0u64..1 << 40, before in 0u64..1 << 40, more in 0u64..1 << 40,
            link in 0u64..1 << 40, expected_us: u64, downtime_limit_ms: u64, asked: bool,
        ) {
            for mode in ["manual", "at-once", "auto", "when-precopy-stops-paying"] {
                let mode = PostcopyMode::named(mode).unwrap();
                let now = Figures {
                    mode, asked, rounds, dirty_bytes: left, dirty_bytes_before: before, link_bytes_per_s: link, expected_us,
                    downtime_limit_ms,
                };
                let worse = Figures { dirty_bytes: left.saturating_add(more), ..now };
                let is_over = |figures: &Figures| figures.decide() != Decision::PreCopy;
                prop_assert!(!is_over(&now) || is_over(&worse));
                prop_assert!(is_over(&now) || !asked);
            }
        }
    }

    #[test]
    fn off_is_no_mode() {
        assert_eq!(PostcopyMode::named("off"), None);
        assert_eq!(PostcopyMode::named("auto"), Some(PostcopyMode::AfterFirstPass));
    }
}
