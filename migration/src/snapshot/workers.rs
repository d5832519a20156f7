//! The threads that write pages: each looks for zero pages in its job, copies the others out of guest memory, hashes them
//! and writes them.
//!
//! ```text
//! engine --job--> pool --> thread: zero? copy, hash --> file, ledger
//! ```
//!
//! A page is copied before it is hashed and written, so the file and the hash agree whatever the guest writes
//! meanwhile. The first error is kept, and no job after it is begun.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::ledger::Ledger;
use super::medium::Medium;
use super::slot_writer::{SlotLocks, SlotWriter};
use super::{Layout, PageEntry};
use crate::channel::throttle::Throttle;
use crate::control::Control;
use crate::error::MigrationError;
use crate::ram::compress::Method;
use crate::ram::job::{Doing, Job, Tally};
use crate::ram::pool::{Panicked, Pool, Worker};
use crate::ram::proof::PageBytes;
use crate::ram::{BATCH_PAGES_MAX, Encoding, PageRecord, RECORD_BYTES, RamView};
use crate::vm::{GuestRam, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;

/// What went wrong in a thread.
#[derive(Debug)]
pub(super) enum Fault {
    /// With the file: what was done, and the system's words.
    File(&'static str, std::io::Error),
    /// Anything else, a cancel included.
    Other(MigrationError),
}

impl Panicked for Fault {
    fn panicked() -> Self {
        Self::Other(MigrationError::panicked())
    }
}

impl From<MigrationError> for Fault {
    fn from(error: MigrationError) -> Self {
        Self::Other(error)
    }
}

/// What all threads share.
pub(super) struct Shared {
    pub(super) medium: Box<dyn Medium>,
    pub(super) layout: Layout,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) tally: Tally,
    pub(super) ram: RamView,
    pub(super) throttle: Throttle,
    control: Arc<Control>,
    /// What hashing has cost all threads together.
    pub(super) hash_ns: AtomicU64,
    pub(super) slots: SlotLocks,
}

/// The threads. Dropped, they end after the job that they are at.
pub(super) struct Workers {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Pool<Job, Fault>,
}

impl Shared {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What hashing has cost so far.
    pub(super) fn hash_us(&self) -> u64 {
        self.hash_ns.load(Ordering::Relaxed) / 1000
    }
}

impl Workers {
    pub(super) fn start(
        medium: Box<dyn Medium>,
        layout: Layout,
        ram: &GuestRam,
        (threads, compression): (u64, Option<(&'static Method, u32)>),
        throttle: Throttle,
        control: &Arc<Control>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            medium,
            ledger: Mutex::new(Ledger::new(&layout)),
            layout,
            tally: Tally::new(0, control),
            ram: RamView::new(ram),
            throttle,
            control: Arc::clone(control),
            hash_ns: AtomicU64::new(0),
            slots: SlotLocks::new(),
        });
        let threads = usize::try_from(threads).unwrap_or(usize::MAX);
        let writer = |_| compression.map(|(method, level)| SlotWriter::new(method, level)).transpose();
        let writers = (0..threads.max(1)).map(writer).collect::<Result<Vec<_>, _>>();
        let mut writers = writers.map_err(std::io::Error::other)?.into_iter();
        let make = |_| -> Worker<Job, Fault> {
            let shared = Arc::clone(&shared);
            if let Some(mut writer) = writers.next().flatten() {
                return Box::new(move |job| save_compressed(&shared, &job, &mut writer));
            }
            let mut buffer = PageBuffer::new();
            Box::new(move |job| save_job(&shared, &job, &mut buffer))
        };
        Ok(Self { pool: Pool::start(control, "save", threads, make)?, shared })
    }
}

fn save_compressed(shared: &Shared, job: &Job, writer: &mut SlotWriter) -> Result<(), Fault> {
    shared.control.check("saving memory")?;
    let records = shared.tally.timed(Doing::Sending, || writer.save(shared, job))?;
    shared.tally.add(0, records);
    Ok(())
}

fn save_job(shared: &Shared, job: &Job, buffer: &mut PageBuffer) -> Result<(), Fault> {
    shared.control.check("saving memory")?;
    let record = |(region, page)| {
        let zero = shared.ram.is_zero(usize::from(region), page)?;
        let (encoding, data_bytes) =
            if zero { (Encoding::Zero, 0) } else { (Encoding::Raw, PAGE_BYTES as u32) };
        Ok(PageRecord { region, page, encoding, data_bytes })
    };
    let records = job.pages().map(record).collect::<Result<Vec<_>, MigrationError>>()?;
    let bytes: usize = records.iter().map(|record| RECORD_BYTES + record.data_bytes as usize).sum();
    if job.live {
        shared.throttle.pass(bytes as u64)?;
    }
    shared.tally.timed(Doing::Sending, || write_batch(shared, &records, buffer))?;
    shared.tally.add(0, &records);
    Ok(())
}

/// Writes what has data, makes what is zero read as zeroes, and notes both.
fn write_batch(shared: &Shared, batch: &[PageRecord], buffer: &mut PageBuffer) -> Result<(), Fault> {
    let joins = |one: &PageRecord, next: &PageRecord| {
        one.region == next.region
            && one.encoding == next.encoding
            && one.page.checked_add(1) == Some(next.page)
    };
    for run in batch.chunk_by(joins) {
        let Some(first) = run.first() else { continue };
        match first.encoding {
            Encoding::Zero => clear(shared, run)?,
            _ => write(shared, first, run.len(), buffer)?,
        }
    }
    Ok(())
}

/// A page that had data in an earlier round must not show it again, neither to a reader nor to who maps the file.
fn clear(shared: &Shared, run: &[PageRecord]) -> Result<(), Fault> {
    let ledger = shared.ledger();
    let stored = run.iter().filter(|record| !ledger.get(record.region, record.page).is_zero());
    let stored: Vec<u64> = stored.map(|record| record.page).collect();
    drop(ledger);
    let place = run.first().and_then(|first| shared.layout.regions.get(usize::from(first.region)));
    for part in stored.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
        let (Some(place), Some(first), Some(last)) = (place, part.first(), part.last()) else { continue };
        let range = place.page_offset(*first)..place.page_offset(last.saturating_add(1));
        shared.medium.clear(range).map_err(|error| Fault::File("making a hole in", error))?;
    }
    let mut ledger = shared.ledger();
    run.iter().for_each(|record| ledger.set(record.region, record.page, &PageEntry::default()));
    Ok(())
}

fn write(shared: &Shared, first: &PageRecord, pages: usize, buffer: &mut PageBuffer) -> Result<(), Fault> {
    let region = usize::from(first.region);
    let missing = || Fault::File("placing memory in", std::io::Error::other("it has no such region"));
    let place = shared.layout.regions.get(region).ok_or_else(missing)?;
    let bytes = buffer.pages(pages);
    for (page, copy) in (first.page..).zip(bytes.as_chunks_mut::<PAGE>().0) {
        shared.ram.read(region, page, copy)?;
    }
    let hash = |(page, bytes): (u64, &PageBytes)| {
        let hash = super::reader::content_hash(region, page, bytes);
        (page, PageEntry { encoding: Encoding::Raw as u8, data_bytes: PAGE as u16, hash })
    };
    let started = Instant::now();
    let entries: Vec<_> = (first.page..).zip(bytes.as_chunks::<PAGE>().0).map(hash).collect();
    shared.hash_ns.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    shared
        .medium
        .write_pages(bytes, place.page_offset(first.page))
        .map_err(|error| Fault::File("writing", error))?;
    let mut ledger = shared.ledger();
    entries.iter().for_each(|(page, entry)| ledger.set(first.region, *page, entry));
    Ok(())
}

/// Room for the pages of a batch at an address that O_DIRECT takes.
pub(super) struct PageBuffer {
    bytes: Vec<u8>,
}

impl PageBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; (BATCH_PAGES_MAX + 1) * PAGE] }
    }

    pub(super) fn pages(&mut self, pages: usize) -> &mut [u8] {
        let start = self.bytes.as_ptr().align_offset(PAGE);
        let end = start.saturating_add(pages.min(BATCH_PAGES_MAX) * PAGE);
        self.bytes.get_mut(start..end).unwrap_or_default()
    }
}
