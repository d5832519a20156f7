//! Memory that comes when it is needed: a guest runs while its pages are still elsewhere.
//!
//! ```text
//! guest, devices, KVM itself --touch--> missing page
//!                                        | userfaultfd
//!        fault thread   <----------------'  one page, at once
//!        prefetcher     batches: around the newest fault first, then everything in order
//!             | fetch
//!        PageSource     a file (a network later): content, zero, or an error
//!             | placed, waiters woken
//!        all pages there: memory is unregistered, both threads end
//! ```
//!
//! **A page that can't be had is never replaced by another.** Nothing is placed there: whoever waits for it
//! goes on waiting, and [`Ending::Failed`] is told once. The owner must end the process, which ends the
//! waits too (they are killable); to unregister the memory, or to drop the [`Pager`], would let the waiters
//! go on with a zero page. UFFDIO_POISON would not do better: KVM answers it with SIGBUS to the vCPU's
//! thread, and a device's worker that reads the page dies the same way, both without a word about the cause.

mod fault;
mod latency;
mod order;
mod placed;
mod prefetch;
mod shared;
#[cfg(test)]
mod tests;
mod uffd;

use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::Serialize;
use thiserror::Error;

pub use latency::LatencyReport;

use crate::vm::GuestRam;
use shared::Shared;

/// Most pages that a source is asked for at once: 256 KiB. From 64 KiB on, a page costs half of what it
/// costs alone (UFFDIO_COPY on Linux 6.18: 0.94 us alone, 0.48 us in 16, 0.45 us in 512).
pub const BATCH_PAGES: usize = 64;

/// What a source knows of the first of the pages that it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// So many pages, at least one, are zero.
    Zero(u64),
    /// So many pages, at least one, were written to the buffer.
    Content(u64),
}

/// Where pages come from. Asked from two threads at once.
pub trait PageSource: Send + Sync {
    /// Brings the first pages of `pages`, at most as many as asked for and as fit into `into`, verified: what
    /// this returns is what the guest gets. Blocks as long as it takes.
    ///
    /// # Errors
    /// The first page can't be had, or is not what it was. The text names where it was looked for.
    fn fetch(
        &self,
        region: usize,
        pages: Range<u64>,
        into: &mut [u8],
    ) -> Result<Fetched, Box<dyn Error + Send + Sync>>;
}

/// Why memory can't be had on demand.
#[derive(Debug, Error)]
pub enum PagerError {
    /// No userfaultfd here.
    #[error("memory on demand needs userfaultfd, {remedy}")]
    Unavailable {
        /// Why, and what to do.
        remedy: String,
    },
    /// The kernel refused an operation.
    #[error("userfaultfd: {operation} failed for {length_bytes} bytes at {address:#x}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// Address in this process.
        address: u64,
        /// Length.
        length_bytes: u64,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor can't be had.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A page can't be had: the guest can't go on.
    #[error("nothing was placed from page {page} of memory region {region} on")]
    Page {
        /// Region's number.
        region: usize,
        /// Page's number in it; if it was brought ahead, the first of a batch.
        page: u64,
        /// The source's reason.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// How it ended.
#[derive(Debug)]
pub enum Ending {
    /// All pages are there; the memory is ordinary memory now.
    Complete,
    /// A page can't be had. Its waiters wait until the process ends.
    Failed(PagerError),
}

/// Called once, in a thread of the pager. It must not drop the pager.
pub type OnEnd = Box<dyn FnOnce(Ending) + Send>;

/// What it did so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PagerReport {
    /// Pages of the guest's memory.
    pub pages: u64,
    /// Of them, not there yet.
    pub pages_left: u64,
    /// Pages that were brought because somebody waited for them.
    pub pages_by_fault: u64,
    /// Pages that were brought ahead.
    pub pages_by_prefetch: u64,
    /// Of all brought, those that are zero.
    pub pages_zero: u64,
    /// Waits for a page.
    pub faults: u64,
    /// From the moment that the pager heard of a wait to its end.
    pub fault_latency: LatencyReport,
    /// From the start until all pages were there; none while some are missing.
    pub total_us: Option<u64>,
}

/// Fills a guest's memory on demand. Dropped before all is there, it leaves memory that must not be used:
/// the vCPUs and devices stand still then.
pub struct Pager {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pager {
    /// Makes all of `ram` missing, and serves those who touch it. `held` are the pages of each region that this
    /// process has touched already, if only to read them: they are dropped. A page that is left out of it would
    /// keep what it holds.
    ///
    /// # Errors
    /// No userfaultfd, no permission, no thread: the memory is as it was, though dropped.
    pub fn start(
        ram: &GuestRam,
        held: &[(usize, Range<u64>)],
        source: Arc<dyn PageSource>,
        on_end: OnEnd,
    ) -> Result<Self, PagerError> {
        let shared = Arc::new(Shared::new(ram, source, on_end)?);
        shared.register(held)?;
        let pager = Self { shared, threads: Mutex::default() };
        pager.spawn("pager", fault::serve)?;
        Ok(pager)
    }

    /// Starts to bring what nobody waits for. Called once the guest runs: its first instruction doesn't
    /// compete with it.
    ///
    /// # Errors
    /// No thread to be had; faults are served all the same.
    pub fn prefetch(&self) -> Result<(), PagerError> {
        self.spawn("prefetch", prefetch::bring)
    }

    fn spawn(&self, name: &str, body: fn(&Shared)) -> Result<(), PagerError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || body(&shared));
        let thread = thread
            .map_err(|source| PagerError::Host { what: "a pager's thread can't be started", source })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Are all pages there?
    pub fn is_complete(&self) -> bool {
        self.shared.placed.left() == 0
    }

    /// Appends those of `pages` that are not there yet, as runs in order. A page that comes meanwhile may be
    /// among them; one that is not is there.
    pub fn missing(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) {
        if !self.is_complete() {
            self.shared.placed.missing(region, pages, out);
        }
    }

    /// What it did so far.
    pub fn report(&self) -> PagerReport {
        self.shared.report()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.shared.stop();
        let threads = std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic was reported by its own hook.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("report", &self.report()).finish_non_exhaustive()
    }
}
