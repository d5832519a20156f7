//! The threads that write pages: each copies a batch out of guest memory, hashes it and writes it.
//!
//! ```text
//! engine --put--> queue of batches --> thread: copy, hash --> file, ledger
//! engine --wait--> until the queue is empty and all threads are idle
//! ```
//!
//! A page is copied before it is hashed and written, so the file and the hash agree whatever the guest writes
//! meanwhile. The first error is kept, and no batch after it is written.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use vm_memory::{Bytes, GuestMemoryBackend, MemoryRegionAddress};

use super::ledger::Ledger;
use super::medium::Medium;
use super::{Layout, PageEntry};
use crate::control::Control;
use crate::ram::proof::PageBytes;
use crate::ram::{BATCH_PAGES_MAX, Encoding, PageRecord};
use crate::vm::{GuestRam, PAGE_BYTES};

const PAGE: usize = PAGE_BYTES as usize;
/// Batches that wait for a thread, for each of them: enough that none is idle while the next one is made.
const WAITING_PER_THREAD: usize = 2;

/// What went wrong in a thread: what it did, and the system's words.
pub(super) type Fault = (&'static str, std::io::Error);

/// What all threads share.
pub(super) struct Shared {
    pub(super) medium: Box<dyn Medium>,
    pub(super) layout: Layout,
    pub(super) ledger: Mutex<Ledger>,
    ram: GuestRam,
    /// What hashing has cost all threads together.
    hash_ns: AtomicU64,
    queue: Mutex<Queue>,
    /// There is work, or no more will come.
    work: Condvar,
    /// A batch is done.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<PageRecord>>,
    busy: usize,
    closed: bool,
    fault: Option<Fault>,
}

/// The threads. Dropped, they end after the batch that they are at.
pub(super) struct Workers {
    pub(super) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        locked(&self.ledger)
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
        ram: GuestRam,
        threads: u64,
        control: &Control,
    ) -> std::io::Result<Self> {
        let ledger = Mutex::new(Ledger::new(&layout));
        let (queue, work, done) = (Mutex::default(), Condvar::new(), Condvar::new());
        let hash_ns = AtomicU64::new(0);
        let shared = Arc::new(Shared { medium, layout, ledger, ram, hash_ns, queue, work, done });
        let mut workers = Self { shared, threads: Vec::new() };
        for number in 0..threads {
            let shared = Arc::clone(&workers.shared);
            workers.threads.push(control.spawn(format!("save-{number}"), move || serve(&shared))?);
        }
        Ok(workers)
    }

    /// Hands a batch to the threads; waits while enough of them wait already.
    pub(super) fn put(&self, batch: Vec<PageRecord>) -> Result<(), Fault> {
        let most = self.threads.len() * WAITING_PER_THREAD;
        let mut queue = locked(&self.shared.queue);
        while queue.waiting.len() >= most && queue.fault.is_none() {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(fault) = queue.fault.take() {
            return Err(fault);
        }
        queue.waiting.push_back(batch);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Waits until all batches are written.
    pub(super) fn wait(&self) -> Result<(), Fault> {
        let mut queue = locked(&self.shared.queue);
        while queue.busy > 0 || (!queue.waiting.is_empty() && queue.fault.is_none()) {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.fault.take().map_or(Ok(()), Err)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut queue = locked(&self.shared.queue);
        queue.closed = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has said so with a fault.
            let _ = thread.join();
        }
    }
}

/// Counts a batch as done even if its thread panics, so that nobody waits for it for ever.
struct Busy<'s> {
    shared: &'s Shared,
    result: Option<Result<(), Fault>>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let unexpected = || Err(("writing", std::io::Error::other("a thread has panicked")));
        let result = self.result.take().unwrap_or_else(unexpected);
        let mut queue = locked(&self.shared.queue);
        queue.busy -= 1;
        if let (Err(fault), None) = (result, &queue.fault) {
            queue.fault = Some(fault);
            queue.waiting.clear();
        }
        self.shared.done.notify_all();
    }
}

/// A thread's life.
fn serve(shared: &Shared) {
    let mut buffer = PageBuffer::new();
    loop {
        let mut queue = locked(&shared.queue);
        let batch = loop {
            if queue.closed {
                return;
            }
            match queue.waiting.pop_front() {
                Some(batch) => break batch,
                None => queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        queue.busy += 1;
        drop(queue);
        let mut busy = Busy { shared, result: None };
        shared.done.notify_all();
        busy.result = Some(write_batch(shared, &batch, &mut buffer));
    }
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
            Encoding::Raw => write(shared, first, run.len(), buffer)?,
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
        shared.medium.clear(range).map_err(|error| ("making a hole in", error))?;
    }
    let mut ledger = shared.ledger();
    run.iter().for_each(|record| ledger.set(record.region, record.page, &PageEntry::default()));
    Ok(())
}

fn write(shared: &Shared, first: &PageRecord, pages: usize, buffer: &mut PageBuffer) -> Result<(), Fault> {
    let region = usize::from(first.region);
    let missing = || ("reading guest memory for", std::io::Error::other("there is no such memory"));
    let place = shared.layout.regions.get(region).ok_or_else(missing)?;
    let memory = shared.ram.iter().nth(region).ok_or_else(missing)?;
    let bytes = buffer.pages(pages);
    let start = MemoryRegionAddress(first.page.saturating_mul(PAGE_BYTES));
    memory
        .read_slice(bytes, start)
        .map_err(|error| ("reading guest memory for", std::io::Error::other(error)))?;
    let hash = |(page, bytes): (u64, &PageBytes)| {
        let hash = super::reader::content_hash(region, page, bytes);
        (page, PageEntry { encoding: Encoding::Raw as u8, data_bytes: PAGE as u16, hash })
    };
    let started = Instant::now();
    let entries: Vec<_> = (first.page..).zip(bytes.as_chunks::<PAGE>().0).map(hash).collect();
    shared.hash_ns.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    shared.medium.write_pages(bytes, place.page_offset(first.page)).map_err(|error| ("writing", error))?;
    let mut ledger = shared.ledger();
    entries.iter().for_each(|(page, entry)| ledger.set(first.region, *page, entry));
    Ok(())
}

/// Room for the pages of a batch at an address that O_DIRECT takes.
struct PageBuffer {
    bytes: Vec<u8>,
}

impl PageBuffer {
    fn new() -> Self {
        Self { bytes: vec![0; (BATCH_PAGES_MAX + 1) * PAGE] }
    }

    fn pages(&mut self, pages: usize) -> &mut [u8] {
        let start = self.bytes.as_ptr().align_offset(PAGE);
        let end = start.saturating_add(pages.min(BATCH_PAGES_MAX) * PAGE);
        self.bytes.get_mut(start..end).unwrap_or_default()
    }
}
