//! Post-copy in the report.

use serde::Serialize;

use crate::pager::{BlockedReport, LatencyClass, LatencyReport, PagerReport};

/// What became of the pages that were still at the source when the guest went on at the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PostcopyReport {
    /// Source: why it began when it began.
    pub reason: Option<String>,
    /// When the guest was stopped for it, since the start.
    pub switched_at_us: u64,
    /// Pages that were missing at the destination then.
    pub pages_missing: u64,
    /// Of them, those that are missing still; at the source, those that were not sent yet.
    pub pages_left: u64,
    /// Questions for a page that somebody waits for.
    pub requests: u64,
    /// Pages that came because of that.
    pub pages_by_request: u64,
    /// Pages that came before anybody asked.
    pub pages_by_push: u64,
    /// Destination: pages that came more than once; the first one counted.
    pub pages_duplicate: u64,
    /// Destination: waits for a page that wasn't there; several may be for the same page.
    pub faults: u64,
    /// Destination: from the moment that a wait was heard of to its end.
    pub fault_latency: Option<LatencyReport>,
    /// The same as a histogram.
    pub fault_classes: Vec<LatencyClass>,
    /// Destination: of that, what the kernel took to place the page.
    pub placing: Option<LatencyReport>,
    /// Destination: how long vCPUs stood still for pages.
    pub blocked: Option<BlockedReport>,
    /// How often the connections have broken, or a person has paused it.
    pub pauses: u64,
    /// How long each of these took until pages moved again.
    pub healing_us: Vec<u64>,
    /// Why it is paused now.
    pub paused_by: Option<String>,
}

impl PostcopyReport {
    /// Destination: takes in what the pager has done so far.
    pub fn note_pager(&mut self, pager: PagerReport) {
        (self.pages_missing, self.pages_left) = (pager.pages, pager.pages_left);
        (self.pages_by_request, self.pages_by_push) = (pager.pages_by_fault, pager.pages_by_prefetch);
        (self.pages_duplicate, self.faults) = (pager.pages_duplicate, pager.faults);
        self.fault_latency = Some(pager.fault_latency);
        self.fault_classes = pager.fault_classes;
        self.placing = Some(pager.placing);
        self.blocked = Some(pager.blocked);
    }
}
