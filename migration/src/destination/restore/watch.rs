//! What others see of a restore while memory is read, and how they end it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::Control;
use crate::stats::{Report, Status};
use crate::vm::PAGE_BYTES;

/// Between two reports.
const SHOWN_EVERY_US: u64 = 100_000;

/// Shared by the threads that read.
pub(super) struct Watch<'a> {
    control: &'a Control,
    report: &'a Report,
    pages_left: AtomicU64,
    shown_us: AtomicU64,
}

impl<'a> Watch<'a> {
    pub(super) fn new(control: &'a Control, report: &'a Report) -> Self {
        let pages_left = AtomicU64::new(report.memory_bytes / PAGE_BYTES);
        Self { control, report, pages_left, shown_us: AtomicU64::new(control.elapsed_us()) }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.control.cancel.is_cancelled()
    }

    /// So many pages more are done. Shows that now and then, whoever is first.
    pub(super) fn done(&self, pages: u64) {
        let left = self.pages_left.fetch_sub(pages, Ordering::Relaxed).saturating_sub(pages);
        let (now, shown) = (self.control.elapsed_us(), self.shown_us.load(Ordering::Relaxed));
        if now.saturating_sub(shown) < SHOWN_EVERY_US {
            return;
        }
        if self.shown_us.compare_exchange(shown, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let remaining_bytes = Some(left.saturating_mul(PAGE_BYTES));
            let report = Report { status: Status::Active, remaining_bytes, ..self.report.clone() };
            self.control.publish(report);
        }
    }
}
