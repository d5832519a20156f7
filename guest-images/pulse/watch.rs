//! Each vCPU's watch on time: the largest gap between two turns, and that the TSC never goes back.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;
use crate::page::Wrong;

/// The newest TSC that any vCPU has seen, for the check across vCPUs.
static NEWEST_TSC: AtomicU64 = AtomicU64::new(0);
/// How often a turn compares with the other vCPUs: their cache line is not free.
const TURNS_PER_COMPARISON: u32 = 32;
/// 5 to 10 us: what TSCs that are not quite in step may differ by.
const TOLERANCE_CYCLES: u64 = 20_000;

pub(crate) struct Watch {
    last_tsc: u64,
    /// When the next turn should come: the last turn, or the end of a sleep.
    due_tsc: u64,
    gap_tsc: u64,
    turns: u32,
    wrong: Option<Wrong>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let now = cpu::rdtsc();
        Self { last_tsc: now, due_tsc: now, gap_tsc: 0, turns: 0, wrong: None }
    }

    /// Called as often as possible; returns the TSC.
    pub(crate) fn turn(&mut self) -> u64 {
        self.turns = self.turns.wrapping_add(1);
        let compare = self.turns.is_multiple_of(TURNS_PER_COMPARISON);
        let newest = if compare { NEWEST_TSC.load(Ordering::Acquire) } else { 0 };
        let now = cpu::rdtsc();
        if now < self.last_tsc {
            self.wrong = Some(Wrong { field: "tsc", expected: self.last_tsc, found: now });
        }
        if compare {
            if now.saturating_add(TOLERANCE_CYCLES) < newest {
                self.wrong = Some(Wrong { field: "tsc_of_other_cpu", expected: newest, found: now });
            }
            NEWEST_TSC.fetch_max(now, Ordering::Release);
        }
        self.gap_tsc = self.gap_tsc.max(now.saturating_sub(self.due_tsc));
        self.last_tsc = now;
        self.due_tsc = now;
        now
    }

    /// Says that the next turn is not due before `tsc`: time spent asleep on purpose is no gap.
    pub(crate) fn asleep_until(&mut self, tsc: u64) {
        self.due_tsc = tsc;
    }

    /// The largest gap since this was last asked.
    pub(crate) fn take_gap(&mut self) -> u64 {
        core::mem::take(&mut self.gap_tsc)
    }

    /// What was wrong with the TSC, once.
    pub(crate) fn take_wrong(&mut self) -> Option<Wrong> {
        self.wrong.take()
    }
}
