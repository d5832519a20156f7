//! What the pager's threads share: where the memory is, which pages are there, and how they get there.

#![allow(unsafe_code, reason = "eventfd(2) has no safe wrapper in std")]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::latency::Latency;
use super::order::Place;
use super::placed::Placed;
use super::uffd::{Span, Uffd, Wait};
use super::waiting::{Begun, Waiting};
use super::{Cause, Content, Ending, OnEnd, PageProvider, PagerError, PagerReport};
use crate::dirty::DirtyBitmap;
use crate::vm::{GuestRam, PAGE_BYTES};

/// A zero run from here on becomes ordinary memory, in place of being mapped page by page; so do as many pages in a
/// row that are there from the start.
const RELEASE_PAGES: u64 = 512;
/// Each such run may split a mapping: a process has 65,530 (vm.max_map_count).
const RELEASES_MAX: u64 = 8192;

/// What a fault was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It has been there since before the fault was heard of.
    Placed,
    /// It never was anything but zero.
    Zero,
    /// It is on its way already.
    Asked,
    /// It must be brought.
    Missing,
}

pub(super) struct Shared {
    pub(super) uffd: Uffd,
    pub(super) placed: Placed,
    regions: Vec<Region>,
    /// The pages that were missing at the start; none: all.
    missing: Option<DirtyBitmap>,
    missing_pages: u64,
    pub(super) provider: Arc<dyn PageProvider>,
    waiting: Mutex<Waiting>,
    latency: Latency,
    placing: Latency,
    faults: AtomicU64,
    by_fault: AtomicU64,
    by_prefetch: AtomicU64,
    zero: AtomicU64,
    duplicate: AtomicU64,
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

struct Region {
    /// Its address in this process.
    base: u64,
    /// A mapping of a file in memory: what is dropped must be dropped from the file.
    shared: bool,
}

impl Shared {
    pub(super) fn new(
        ram: &GuestRam,
        missing: Option<DirtyBitmap>,
        provider: Arc<dyn PageProvider>,
        on_end: OnEnd,
    ) -> Result<Self, PagerError> {
        let ram = ram.clone();
        let pages: Vec<u64> = ram.iter().map(|region| region.len() / PAGE_BYTES).collect();
        let placed = Placed::new(&pages);
        if let Some(missing) = &missing {
            placed.set_all_but(missing);
        }
        let region = |region: &vm_memory::GuestRegionMmap<_>| Region {
            base: region.as_ptr().expose_provenance() as u64,
            shared: region.flags() & libc::MAP_SHARED != 0,
        };
        let eventfd = |source| PagerError::Host { what: "an eventfd can't be had", source };
        Ok(Self {
            uffd: Uffd::open()?,
            missing_pages: placed.left(),
            placed,
            regions: ram.iter().map(region).collect(),
            missing,
            provider,
            waiting: Mutex::default(),
            latency: Latency::new(),
            placing: Latency::new(),
            faults: AtomicU64::new(0),
            by_fault: AtomicU64::new(0),
            by_prefetch: AtomicU64::new(0),
            zero: AtomicU64::new(0),
            duplicate: AtomicU64::new(0),
            releases: AtomicU64::new(0),
            started: Instant::now(),
            total_us: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            wake: event().map_err(eventfd)?,
            on_end: Mutex::new(Some(on_end)),
            _ram: ram,
        })
    }

    /// Drops what `held` names, and makes what isn't there missing. Between the two nobody touches the memory.
    pub(super) fn register(&self, held: &[(usize, Range<u64>)]) -> Result<(), PagerError> {
        for (region, pages) in held {
            if let (Some(span), Some(found)) = (self.span(*region, pages.clone()), self.regions.get(*region))
            {
                self.uffd.drop_pages(span, found.shared)?;
            }
        }
        for region in 0..self.regions.len() {
            let end = self.placed.pages(region);
            let mut next = 0;
            while let Some(hull) = self.placed.missing_hull(region, next..end, RELEASE_PAGES) {
                next = hull.end;
                if let Some(span) = self.span(region, hull) {
                    self.uffd.register(span)?;
                }
            }
        }
        Ok(())
    }

    /// Addresses of pages; none if they are not all there are.
    fn span(&self, region: usize, pages: Range<u64>) -> Option<Span> {
        let base = self.regions.get(region)?.base;
        let inside = pages.start < pages.end && pages.end <= self.placed.pages(region);
        inside.then(|| Span { address: base + pages.start * PAGE_BYTES, pages: pages.end - pages.start })
    }

    /// The page at an address of this process.
    pub(super) fn place_of(&self, address: u64) -> Option<Place> {
        self.regions.iter().enumerate().find_map(|(region, found)| {
            let page = address.checked_sub(found.base)? / PAGE_BYTES;
            (page < self.placed.pages(region)).then_some((region, page))
        })
    }

    /// Somebody waits for a page.
    pub(super) fn begin_wait(&self, place: Place, wait: &Wait, now: Instant) -> Found {
        let (region, page) = place;
        let count = || self.faults.fetch_add(1, Ordering::Relaxed);
        if self.missing.as_ref().is_some_and(|missing| !missing.get(region, page)) {
            count();
            return Found::Zero;
        }
        // Looked at under the lock: who places it takes the lock afterwards, and finds the wait.
        let mut waiting = self.waiting();
        if self.placed.get(region, page) {
            count();
            return Found::Placed;
        }
        let begun = waiting.begin(place, wait.thread, wait.is_write, now);
        if begun != Begun::Again {
            count();
        }
        if begun == Begun::First { Found::Missing } else { Found::Asked }
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A wait is over that never had to be noted.
    pub(super) fn answer(&self, heard: Instant, done: Result<(), PagerError>) -> Result<(), PagerError> {
        self.latency.add(heard.elapsed());
        done
    }

    /// Wakes who waits for a page that is there.
    pub(super) fn wake_page(&self, (region, page): Place) -> Result<(), PagerError> {
        self.span(region, page..page + 1).map_or(Ok(()), |span| self.uffd.wake(span))
    }

    /// Gives memory to a page that never had any.
    pub(super) fn put_zero(&self, (region, page): Place, is_write: bool) -> Result<(), PagerError> {
        match self.span(region, page..page + 1) {
            Some(span) if is_write => self.uffd.copy(span, &[0; PAGE_BYTES as usize]),
            Some(span) => self.uffd.zero(span),
            None => Ok(()),
        }
    }

    /// Places pages, and returns how many of them were missing; the others stay as they are.
    pub(super) fn place(
        &self,
        region: usize,
        pages: Range<u64>,
        content: Content<'_>,
        cause: Cause,
    ) -> Result<u64, PagerError> {
        let count = pages.end.saturating_sub(pages.start);
        let fits = match content {
            Content::Zero => true,
            Content::Bytes(bytes) => count.checked_mul(PAGE_BYTES) == Some(bytes.len() as u64),
        };
        if self.span(region, pages.clone()).is_none() || !fits {
            return Err(PagerError::Outside { region, first: pages.start, pages: count });
        }
        let started = Instant::now();
        let (mut rest, mut fresh) = (pages.clone(), 0);
        while let Some(run) = self.placed.first_missing(region, rest.clone()) {
            rest.start = run.end;
            if let Some(span) = self.span(region, run.clone()) {
                let from = usize::try_from((run.start - pages.start) * PAGE_BYTES).unwrap_or(usize::MAX);
                self.put(span, (region, run.start), content.from(from))?;
            }
            fresh += self.note(region, run, matches!(content, Content::Zero), cause);
        }
        if cause == Cause::Wanted {
            self.placing.add(started.elapsed());
        }
        self.duplicate.fetch_add(count - fresh, Ordering::Relaxed);
        if fresh > 0 && self.placed.left() == 0 {
            self.complete()?;
        }
        Ok(fresh)
    }

    fn put(&self, span: Span, first: Place, content: Content<'_>) -> Result<(), PagerError> {
        match content {
            Content::Bytes(bytes) => self.uffd.copy(span, bytes),
            // Who waits to write gets memory at once.
            Content::Zero if span.pages == 1 && self.waiting().is_write(first) => {
                self.uffd.copy(span, &[0; PAGE_BYTES as usize])
            }
            Content::Zero if span.pages >= RELEASE_PAGES && self.may_release() => self.uffd.unregister(span),
            Content::Zero => self.uffd.zero(span),
        }
    }

    fn may_release(&self) -> bool {
        self.releases.fetch_add(1, Ordering::Relaxed) < RELEASES_MAX
    }

    /// They are there.
    fn note(&self, region: usize, pages: Range<u64>, zero: bool, cause: Cause) -> u64 {
        let fresh = self.placed.set(region, pages.clone());
        self.waiting().end(region, &pages, &self.latency, Instant::now());
        let counter = if cause == Cause::Ahead { &self.by_prefetch } else { &self.by_fault };
        counter.fetch_add(fresh, Ordering::Relaxed);
        if zero {
            self.zero.fetch_add(fresh, Ordering::Relaxed);
        }
        fresh
    }

    /// Whoever places the last page ends it all.
    pub(super) fn complete(&self) -> Result<(), PagerError> {
        // More than one thread may see that nothing is left.
        let mut on_end = self.on_end.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tell) = on_end.take() else { return Ok(()) };
        for region in 0..self.regions.len() {
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

    /// Makes all of it ordinary memory though pages are missing; nobody is told.
    pub(super) fn release(&self) {
        drop(self.on_end.lock().unwrap_or_else(PoisonError::into_inner).take());
        for region in 0..self.regions.len() {
            // What isn't registered any more keeps nobody waiting.
            let _ = self.span(region, 0..self.placed.pages(region)).map(|span| self.uffd.unregister(span));
        }
        self.stop();
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
            pages: self.missing_pages,
            pages_left: self.placed.left(),
            pages_by_fault: load(&self.by_fault),
            pages_by_prefetch: load(&self.by_prefetch),
            pages_zero: load(&self.zero),
            faults: load(&self.faults),
            pages_duplicate: load(&self.duplicate),
            fault_latency: self.latency.report(),
            fault_classes: self.latency.classes(),
            placing: self.placing.report(),
            blocked: self.waiting().report(Instant::now()),
            total_us: Some(load(&self.total_us)).filter(|us| *us > 0),
        }
    }
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
