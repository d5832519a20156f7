//! Memory that comes when it is needed: a guest runs while its pages are still elsewhere.
//!
//! ```text
//! guest, devices, KVM itself --touch--> missing page
//!                                        | userfaultfd
//!        fault thread   <----------------'  "wanted", once a page
//!             |
//!        PageProvider   a file is read at once; a source of a post-copy is asked, and answers later
//!             |                 prefetcher (files) and channels (post-copy): what nobody waits for yet
//!        Placer         from any thread: placed unless it is there, waiters woken
//!        all pages there: memory is unregistered, the threads end
//! ```
//!
//! **A page that can't be had is never replaced by another.** Nothing is placed there: whoever waits for it
//! goes on waiting, and [`Ending::Failed`] is told once. The owner must end the process, which ends the
//! waits too (they are killable); to unregister the memory, or to drop the [`Pager`], would let the waiters
//! go on with a zero page. UFFDIO_POISON would not do better: KVM answers it with SIGBUS to the vCPU's
//! thread, and a device's worker that reads the page dies the same way, both without a word about the cause.

mod fault;
mod fetch;
mod latency;
mod order;
mod placed;
mod prefetch;
mod shared;
#[cfg(test)]
mod tests;
mod uffd;
mod waiting;

use std::error::Error;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::Serialize;
use thiserror::Error;

pub use latency::{LatencyClass, LatencyReport};
pub use waiting::BlockedReport;

use crate::dirty::DirtyBitmap;
use crate::vm::GuestRam;
use fetch::Fetching;
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

/// Why a page can't be had.
pub type ProviderError = Box<dyn Error + Send + Sync>;

/// A page that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Region's number.
    pub region: usize,
    /// Page's number in it.
    pub page: u64,
    /// To write it?
    pub is_write: bool,
}

/// Has pages brought, now or later.
pub trait PageProvider: Send + Sync {
    /// Somebody waits for a missing page. Called in the fault thread, once for each page until it is placed; while
    /// it blocks, nobody else's wait is heard of.
    ///
    /// # Errors
    /// The page can never be had: [`Ending::Failed`]. A link that is broken is no such error: what waits is in
    /// [`Placer::waiting`].
    fn wanted(&self, wanted: Wanted, placer: &Placer) -> Result<(), ProviderError>;
}

/// Because of whom a page was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody waits for it.
    Wanted,
    /// Somebody may.
    Ahead,
}

/// What pages hold.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Nothing but zeroes.
    Zero,
    /// These bytes, all pages' in order.
    Bytes(&'a [u8]),
}

impl Content<'_> {
    /// What the pages hold that begin at this byte.
    fn from(&self, start: usize) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Bytes(bytes) => Self::Bytes(bytes.get(start..).unwrap_or_default()),
        }
    }
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
    /// Pages that aren't in memory, or not as many as came.
    #[error(
        "{pages} pages from page {first} on can't be placed in memory region {region}: they are not all there"
    )]
    Outside {
        /// Region's number.
        region: usize,
        /// First page.
        first: u64,
        /// How many.
        pages: u64,
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

/// Called once, in a thread of the pager or the one that placed the last page. It must not drop the pager.
pub type OnEnd = Box<dyn FnOnce(Ending) + Send>;

/// What it did so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PagerReport {
    /// Pages that were missing at the start.
    pub pages: u64,
    /// Of them, not there yet.
    pub pages_left: u64,
    /// Pages that were brought because somebody waited for them.
    pub pages_by_fault: u64,
    /// Pages that were brought ahead.
    pub pages_by_prefetch: u64,
    /// Of all brought, those that are zero.
    pub pages_zero: u64,
    /// Pages that were brought though they were there; they stayed as they were.
    pub pages_duplicate: u64,
    /// Waits for a page.
    pub faults: u64,
    /// From the moment that the pager heard of a wait to its end.
    pub fault_latency: LatencyReport,
    /// The same as a histogram.
    pub fault_classes: Vec<LatencyClass>,
    /// Of that, what the kernel took to place the page.
    pub placing: LatencyReport,
    /// How long vCPUs stood still for pages.
    pub blocked: BlockedReport,
    /// From the start until all pages were there; none while some are missing.
    pub total_us: Option<u64>,
}

/// May this process have a pager?
///
/// # Errors
/// Why not, and what helps.
pub fn available() -> Result<(), PagerError> {
    uffd::Uffd::open().map(drop)
}

/// Fills a guest's memory on demand. Dropped before all is there, it leaves memory that must not be used:
/// the vCPUs and devices stand still then.
pub struct Pager {
    placer: Placer,
    /// Where nobody brings pages by himself, there is something to ask.
    fetching: Option<Arc<Fetching>>,
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
        let fetching = Arc::new(Fetching::new(source));
        let mut pager = Self::make(ram, None, held, Arc::clone(&fetching) as _, on_end)?;
        pager.fetching = Some(fetching);
        Ok(pager)
    }

    /// Makes the pages of `missing` so, and serves those who touch them. The others keep what they hold, which is zero
    /// where nobody has touched them yet. `held`, as in [`Self::start`], lies within `missing`. If nothing is missing,
    /// it ends at once.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn serve(
        ram: &GuestRam,
        missing: &DirtyBitmap,
        held: &[(usize, Range<u64>)],
        provider: Arc<dyn PageProvider>,
        on_end: OnEnd,
    ) -> Result<Self, PagerError> {
        let pager = Self::make(ram, Some(missing.clone()), held, provider, on_end)?;
        if pager.is_complete() {
            pager.placer.0.complete()?;
        }
        Ok(pager)
    }

    fn make(
        ram: &GuestRam,
        missing: Option<DirtyBitmap>,
        held: &[(usize, Range<u64>)],
        provider: Arc<dyn PageProvider>,
        on_end: OnEnd,
    ) -> Result<Self, PagerError> {
        let shared = Shared::new(ram, missing, provider, on_end)?;
        shared.register(held)?;
        let placer = Placer(Arc::new(shared));
        let pager = Self { placer, fetching: None, threads: Mutex::default() };
        let placer = pager.placer.clone();
        pager.spawn("pager", move || fault::serve(&placer))?;
        Ok(pager)
    }

    /// Starts to bring what nobody waits for, from a source that is to be asked. Called once the guest runs: its first
    /// instruction doesn't compete with it.
    ///
    /// # Errors
    /// No thread to be had; faults are served all the same.
    pub fn prefetch(&self) -> Result<(), PagerError> {
        let Some(fetching) = self.fetching.clone() else { return Ok(()) };
        let placer = self.placer.clone();
        self.spawn("prefetch", move || prefetch::bring(&placer, &fetching))
    }

    /// Says which threads (gettid) run vCPUs, in order: from here on it is counted how long they wait.
    pub fn name_vcpus(&self, threads: &[u64]) {
        self.placer.0.waiting().name_vcpus(threads);
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), PagerError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread
            .map_err(|source| PagerError::Host { what: "a pager's thread can't be started", source })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Places pages, from any thread, for as long as the pager is there.
    pub fn placer(&self) -> Placer {
        self.placer.clone()
    }

    /// Are all pages there?
    pub fn is_complete(&self) -> bool {
        self.placer.is_complete()
    }

    /// Appends those of `pages` that are not there yet, as runs in order. A page that comes meanwhile may be
    /// among them; one that is not is there.
    pub fn missing(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) {
        self.placer.missing(region, pages, out);
    }

    /// What it did so far.
    pub fn report(&self) -> PagerReport {
        self.placer.report()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.placer.0.stop();
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

/// Places pages in the memory of a [`Pager`], from any number of threads. It keeps the memory mapped, not the
/// pager's threads running.
#[derive(Clone)]
pub struct Placer(Arc<Shared>);

impl Placer {
    /// Places pages, and wakes who waits for them; the last one ends the pager. Returns how many were missing: the
    /// others are counted as duplicates and stay as they are. Several pages at once cost half (see [`BATCH_PAGES`]).
    ///
    /// # Errors
    /// The pages aren't in memory, or `content` is of another length; the kernel refused.
    pub fn place(
        &self,
        region: usize,
        pages: Range<u64>,
        content: Content<'_>,
        cause: Cause,
    ) -> Result<u64, PagerError> {
        self.0.place(region, pages, content, cause)
    }

    /// Are all pages there?
    pub fn is_complete(&self) -> bool {
        self.left() == 0
    }

    /// Pages that are not there yet.
    pub fn left(&self) -> u64 {
        self.0.placed.left()
    }

    /// Is this page missing?
    pub fn is_missing(&self, region: usize, page: u64) -> bool {
        !self.0.placed.get(region, page)
    }

    /// As [`Pager::missing`].
    pub fn missing(&self, region: usize, pages: Range<u64>, out: &mut Vec<Range<u64>>) {
        if !self.is_complete() {
            self.0.placed.missing(region, pages, out);
        }
    }

    /// The pages that somebody waits for, the longest wait first: what has to be asked for again after a link broke.
    pub fn waiting(&self) -> Vec<(usize, u64)> {
        self.0.waiting().pages()
    }

    /// The guest can't go on: some page can never be had. Only the first reason is told.
    pub fn fail(&self, error: PagerError) {
        self.0.fail(error);
    }

    /// Gives this memory up before a guest has ever run in it: whoever waits goes on, over pages that are zero, and nobody
    /// is told of an end.
    pub(crate) fn release(&self) {
        self.0.release();
    }

    /// What the pager did so far.
    pub fn report(&self) -> PagerReport {
        self.0.report()
    }
}

impl std::fmt::Debug for Placer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placer").field("left", &self.left()).finish_non_exhaustive()
    }
}
