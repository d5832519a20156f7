//! What the pager's threads share: where the memory is, which pages are there, and how they get there.

#![allow(unsafe_code, reason = "eventfd(2) has no safe wrapper in std")]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::latency::Latency;
use super::order::Place;
use super::placed::Placed;
use super::uffd::{Span, Uffd};
use super::{BATCH_PAGES, Ending, Fetched, OnEnd, PageSource, PagerError, PagerReport};
use crate::vm::{GuestRam, PAGE_BYTES};

/// A zero run from here on becomes ordinary memory, in place of being mapped page by page.
const RELEASE_PAGES: u64 = 512;
/// Each such run may split a mapping: a process has 65,530 (vm.max_map_count).
const RELEASES_MAX: u64 = 8192;

/// Because of whom a page is brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody waits for it. Who waits to write gets memory at once.
    Fault {
        /// To write it?
        is_write: bool,
    },
    /// Somebody may.
    Prefetch,
}

pub(super) struct Shared {
    pub(super) uffd: Uffd,
    pub(super) placed: Placed,
    /// Addresses in this process.
    bases: Vec<u64>,
    source: Arc<dyn PageSource>,
    /// The newest fault that the prefetcher hasn't heard of.
    pub(super) newest_fault: Mutex<Option<Place>>,
    pub(super) latency: Latency,
    pub(super) faults: AtomicU64,
    by_fault: AtomicU64,
    by_prefetch: AtomicU64,
    zero: AtomicU64,
    releases: AtomicU64,
    started: Instant,
    /// 0 until all is there.
    total_us: AtomicU64,
    stopping: AtomicBool,
    /// Readable when the threads are to end.
    wake: File,
    on_end: Mutex<Option<OnEnd>>,
    /// Keeps the memory mapped.
    _ram: GuestRam,
}

impl Shared {
    pub(super) fn new(
        ram: &GuestRam,
        source: Arc<dyn PageSource>,
        on_end: OnEnd,
    ) -> Result<Self, PagerError> {
        let ram = ram.clone();
        let pages: Vec<u64> = ram.iter().map(|region| region.len() / PAGE_BYTES).collect();
        let eventfd = |source| PagerError::Host { what: "an eventfd can't be had", source };
        Ok(Self {
            uffd: Uffd::open()?,
            placed: Placed::new(&pages),
            bases: ram.iter().map(|region| region.as_ptr().expose_provenance() as u64).collect(),
            source,
            newest_fault: Mutex::new(None),
            latency: Latency::new(),
            faults: AtomicU64::new(0),
            by_fault: AtomicU64::new(0),
            by_prefetch: AtomicU64::new(0),
            zero: AtomicU64::new(0),
            releases: AtomicU64::new(0),
            started: Instant::now(),
            total_us: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            wake: event().map_err(eventfd)?,
            on_end: Mutex::new(Some(on_end)),
            _ram: ram,
        })
    }

    /// Makes all memory missing; `held`: the runs of a region that hold something now.
    pub(super) fn register(&self, held: &[(usize, Range<u64>)]) -> Result<(), PagerError> {
        for (region, pages) in held {
            if let Some(span) = self.span(*region, pages.clone()) {
                self.uffd.drop_pages(span)?;
            }
        }
        (0..self.bases.len()).try_for_each(|region| match self.span(region, 0..self.placed.pages(region)) {
            Some(span) => self.uffd.register(span),
            None => Ok(()),
        })
    }

    /// Addresses of pages; none if they are not all there are.
    fn span(&self, region: usize, pages: Range<u64>) -> Option<Span> {
        let base = self.bases.get(region)?;
        let inside = pages.start < pages.end && pages.end <= self.placed.pages(region);
        inside.then(|| Span { address: base + pages.start * PAGE_BYTES, pages: pages.end - pages.start })
    }

    /// The page at an address of this process.
    pub(super) fn place_of(&self, address: u64) -> Option<Place> {
        self.bases.iter().enumerate().find_map(|(region, base)| {
            let page = address.checked_sub(*base)? / PAGE_BYTES;
            (page < self.placed.pages(region)).then_some((region, page))
        })
    }

    /// Wakes who waits for a page that is there.
    pub(super) fn wake_page(&self, (region, page): Place) -> Result<(), PagerError> {
        self.span(region, page..page + 1).map_or(Ok(()), |span| self.uffd.wake(span))
    }

    /// Brings the first pages of `pages`; returns how many.
    pub(super) fn bring(
        &self,
        region: usize,
        pages: Range<u64>,
        buffer: &mut [u8],
        cause: Cause,
    ) -> Result<u64, PagerError> {
        let page = pages.start;
        let lost = |source| PagerError::Page { region, page, source };
        let asked = pages.end - pages.start;
        let fetched = self.source.fetch(region, pages, buffer).map_err(lost)?;
        let (count, most) = match fetched {
            Fetched::Zero(count) => (count, asked),
            Fetched::Content(count) => (count, asked.min(buffer.len() as u64 / PAGE_BYTES)),
        };
        let span = self.span(region, page..page.saturating_add(count)).filter(|_| count <= most);
        let Some(span) = span else {
            return Err(lost(format!("its source answered with {count} pages, 1 to {most} were due").into()));
        };
        match (fetched, cause) {
            (Fetched::Content(_), _) => self.uffd.copy(span, buffer)?,
            (Fetched::Zero(1), Cause::Fault { is_write: true }) => {
                self.uffd.copy(span, &[0; PAGE_BYTES as usize])?;
            }
            (Fetched::Zero(_), _) if count >= RELEASE_PAGES && self.may_release() => {
                self.uffd.unregister(span)?;
            }
            (Fetched::Zero(_), _) => self.uffd.zero(span)?,
        }
        self.note(region, page..page + count, matches!(fetched, Fetched::Zero(_)), cause)?;
        Ok(count)
    }

    fn may_release(&self) -> bool {
        self.releases.fetch_add(1, Ordering::Relaxed) < RELEASES_MAX
    }

    /// They are there. Whoever brings the last one ends it all.
    fn note(&self, region: usize, pages: Range<u64>, zero: bool, cause: Cause) -> Result<(), PagerError> {
        let fresh = self.placed.set(region, pages);
        let counter = if cause == Cause::Prefetch { &self.by_prefetch } else { &self.by_fault };
        counter.fetch_add(fresh, Ordering::Relaxed);
        if zero {
            self.zero.fetch_add(fresh, Ordering::Relaxed);
        }
        if fresh > 0 && self.placed.left() == 0 { self.complete() } else { Ok(()) }
    }

    fn complete(&self) -> Result<(), PagerError> {
        // More than one thread may see that nothing is left.
        let mut on_end = self.on_end.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tell) = on_end.take() else { return Ok(()) };
        for region in 0..self.bases.len() {
            if let Some(span) = self.span(region, 0..self.placed.pages(region)) {
                self.uffd.unregister(span)?;
            }
        }
        drop(on_end);
        let us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.total_us.store(us.max(1), Ordering::Relaxed);
        self.stop();
        tell(Ending::Complete);
        Ok(())
    }

    /// The guest can't go on. The first reason counts.
    pub(super) fn fail(&self, error: PagerError) {
        self.stopping.store(true, Ordering::SeqCst);
        let tell = self.on_end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tell) = tell {
            tell(Ending::Failed(error));
        }
    }

    /// Ends both threads.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // An eventfd refuses a write only when its counter is full, and then it is readable anyway.
        let _ = (&self.wake).write_all(&1u64.to_ne_bytes());
    }

    /// Nothing is to be brought ahead any more.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Readable when the threads are to end.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn report(&self) -> PagerReport {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PagerReport {
            pages: (0..self.placed.regions()).map(|region| self.placed.pages(region)).sum(),
            pages_left: self.placed.left(),
            pages_by_fault: load(&self.by_fault),
            pages_by_prefetch: load(&self.by_prefetch),
            pages_zero: load(&self.zero),
            faults: load(&self.faults),
            fault_latency: self.latency.report(),
            total_us: Some(load(&self.total_us)).filter(|us| *us > 0),
        }
    }
}

/// Room for what a source brings at once.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; BATCH_PAGES * PAGE_BYTES as usize]
}

fn event() -> io::Result<File> {
    // SAFETY: eventfd takes two integers and touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
