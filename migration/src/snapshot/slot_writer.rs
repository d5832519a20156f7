//! Writes compressed memory: a slot of 16 pages (`slot.rs`) at a time, and the whole slot again when one of its pages has
//! been written. Two threads never write the same slot at once.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::slot::{Block, SLOT_PAGES, blocks_of, slot_pages};
use super::workers::{Fault, PageBuffer, Shared};
use super::{PageEntry, RegionPlace};
use crate::ram::compress::{Compressor, Method};
use crate::ram::job::Job;
use crate::ram::{Encoding, PageRecord, RECORD_BYTES};
use crate::vm::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;
/// More than there are threads.
const LOCKS: usize = 64;

/// Held while a slot is read, encoded and written.
#[derive(Debug)]
pub(super) struct SlotLocks(Vec<Mutex<()>>);

impl SlotLocks {
    pub(super) fn new() -> Self {
        Self(std::iter::repeat_with(Mutex::default).take(LOCKS).collect())
    }

    fn hold(&self, region: u16, slot: u64) -> Option<MutexGuard<'_, ()>> {
        let lock = self.0.get((slot.wrapping_add(u64::from(region)) % LOCKS as u64) as usize);
        lock.map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a thread writes slots with.
pub(super) struct SlotWriter {
    compressor: Box<dyn Compressor>,
    encoding: Encoding,
    /// The pages that aren't zero, one behind the other.
    pages: PageBuffer,
    block: Vec<u8>,
    /// The same where O_DIRECT takes it.
    aligned: PageBuffer,
    records: Vec<PageRecord>,
}

/// A slot on its way: what is in the file, and what is to be.
struct Slot<'s> {
    shared: &'s Shared,
    place: RegionPlace,
    region: u16,
    start: u64,
    /// Bit n: the guest has written page n.
    written: u32,
    old: Vec<PageEntry>,
    new: Vec<PageEntry>,
    /// Which pages are in the buffer, in its order.
    stored: Vec<usize>,
}

impl SlotWriter {
    pub(super) fn new(method: &'static Method, level: u32) -> Result<Self, String> {
        let row = Encoding::from_number(method.encoding)
            .ok_or_else(|| format!("{} has no encoding", method.name))?;
        Ok(Self {
            compressor: (method.compressor)(level).map_err(|error| error.to_string())?,
            encoding: row.encoding,
            pages: PageBuffer::new(),
            block: Vec::new(),
            aligned: PageBuffer::new(),
            records: Vec::new(),
        })
    }

    /// Writes all slots that have pages of the job. Returns a record for each of those pages.
    pub(super) fn save(&mut self, shared: &Shared, job: &Job) -> Result<&[PageRecord], Fault> {
        self.records.clear();
        let pages: Vec<(u16, u64)> = job.pages().collect();
        for slot in pages.chunk_by(|one, next| (one.0, one.1 / SLOT_PAGES) == (next.0, next.1 / SLOT_PAGES)) {
            let Some((region, page)) = slot.first().copied() else { continue };
            let written = slot.iter().fold(0, |bits, (_, page)| bits | 1 << (page % SLOT_PAGES));
            self.save_slot(shared, region, page / SLOT_PAGES, written, job.live)?;
        }
        Ok(&self.records)
    }

    fn save_slot(
        &mut self,
        shared: &Shared,
        region: u16,
        slot: u64,
        written: u32,
        live: bool,
    ) -> Result<(), Fault> {
        let _held = shared.slots.hold(region, slot);
        let mut slot = Slot::new(shared, region, slot, written)?;
        slot.read(&mut self.pages)?;
        self.encode(&mut slot);
        let first = self.records.len();
        self.records.extend(slot.records());
        if live {
            let records = self.records.get(first..).unwrap_or_default();
            let bytes: usize = records.iter().map(|record| RECORD_BYTES + record.data_bytes as usize).sum();
            shared.tally.untimed(|| shared.throttle.pass(bytes as u64))?;
        }
        self.write(&slot)?;
        slot.clear_rest()?;
        slot.note();
        Ok(())
    }

    /// Compresses the slot if that makes it shorter by a place at least.
    fn encode(&mut self, slot: &mut Slot<'_>) {
        let count = slot.stored.len();
        self.block.clear();
        let shorter = count > 1 && self.compressor.compress(self.pages.pages(count), &mut self.block);
        let block_bytes =
            u16::try_from(self.block.len()).ok().filter(|_| shorter && blocks_of(self.block.len()) < count);
        let (encoding, first, others) = match block_bytes {
            Some(bytes) => (self.encoding, bytes, 0),
            None => (Encoding::Raw, PAGE as u16, PAGE as u16),
        };
        for (place, at) in slot.stored.iter().enumerate() {
            if let Some(entry) = slot.new.get_mut(*at) {
                (entry.encoding, entry.data_bytes) =
                    (encoding as u8, if place == 0 { first } else { others });
            }
        }
        if encoding == Encoding::Raw {
            slot.keep_raw();
        }
    }

    fn write(&mut self, slot: &Slot<'_>) -> Result<(), Fault> {
        let failed = |error| Fault::File("writing", error);
        let medium = &slot.shared.medium;
        if slot.new.iter().any(|entry| !entry.is_zero() && !entry.is_raw()) {
            let aligned = self.aligned.pages(blocks_of(self.block.len()));
            let (content, rest) = aligned.split_at_mut(self.block.len().min(aligned.len()));
            content.copy_from_slice(self.block.get(..content.len()).unwrap_or_default());
            rest.fill(0);
            return medium.write_pages(aligned, slot.place.page_offset(slot.start)).map_err(failed);
        }
        let all = self.pages.pages(slot.stored.len());
        let mut done = 0;
        for run in slot.stored.chunk_by(|one, next| one + 1 == *next && slot.kept(*one) == slot.kept(*next)) {
            let bytes = all.get(done * PAGE..(done + run.len()) * PAGE).unwrap_or_default();
            done += run.len();
            if let Some(first) = run.first().filter(|first| !slot.kept(**first)) {
                medium
                    .write_pages(bytes, slot.place.page_offset(slot.start + *first as u64))
                    .map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl<'s> Slot<'s> {
    fn new(shared: &'s Shared, region: u16, slot: u64, written: u32) -> Result<Self, Fault> {
        let missing = || Fault::File("placing memory in", std::io::Error::other("it has no such region"));
        let place = *shared.layout.regions.get(usize::from(region)).ok_or_else(missing)?;
        let pages = slot_pages(&place, slot);
        let ledger = shared.ledger();
        let old: Vec<_> = pages.clone().map(|page| ledger.get(region, page)).collect();
        drop(ledger);
        let new = vec![PageEntry::default(); old.len()];
        Ok(Self { shared, place, region, start: pages.start, written, old, new, stored: Vec::new() })
    }

    fn is_written(&self, at: usize) -> bool {
        self.written >> at & 1 == 1
    }

    /// Copies the pages that aren't zero. One that is zero in the file and was not written may never have been touched: it
    /// is not read. One that was written again after this round began comes again anyway.
    fn read(&mut self, buffer: &mut PageBuffer) -> Result<(), Fault> {
        let (region, mut hash_ns) = (usize::from(self.region), 0);
        let room = buffer.pages(self.old.len()).as_chunks_mut::<PAGE>().0;
        for (at, old) in self.old.iter().enumerate() {
            let page = self.start + at as u64;
            let Some(copy) = room.get_mut(self.stored.len()) else { continue };
            if (old.is_zero() && self.written >> at & 1 == 0) || self.shared.ram.is_zero(region, page)? {
                continue;
            }
            self.shared.ram.read(region, page, copy)?;
            let started = Instant::now();
            let hash = super::reader::content_hash(region, page, copy);
            hash_ns += started.elapsed().as_nanos() as u64;
            if hash != 0 {
                self.stored.push(at);
                if let Some(entry) = self.new.get_mut(at) {
                    entry.hash = hash;
                }
            }
        }
        self.shared.hash_ns.fetch_add(hash_ns, Ordering::Relaxed);
        Ok(())
    }

    /// Is the page in the file as it has to be, and where?
    fn kept(&self, at: usize) -> bool {
        !self.is_written(at) && self.old.get(at).is_some_and(PageEntry::is_raw)
    }

    /// Raw pages that nobody has written stay as they are, with the hash that they have.
    fn keep_raw(&mut self) {
        for at in 0..self.old.len() {
            if self.kept(at)
                && let (Some(old), Some(new)) = (self.old.get(at), self.new.get_mut(at))
            {
                *new = *old;
            }
        }
    }

    /// Which places have data, for entries of this slot.
    fn used(entries: &[PageEntry]) -> u32 {
        let raw = entries.iter().enumerate().filter(|(_, entry)| entry.is_raw());
        let raw = raw.fold(0, |bits, (at, _)| bits | 1u32 << at);
        match Block::of(entries) {
            Ok(Some(block)) => (1 << blocks_of(block.bytes)) - 1,
            _ => raw,
        }
    }

    /// What had data and has none any more becomes a hole.
    fn clear_rest(&self) -> Result<(), Fault> {
        let mut stale = Self::used(&self.old) & !Self::used(&self.new);
        while stale != 0 {
            let first = stale.trailing_zeros();
            let count = (stale >> first).trailing_ones();
            let offset = |at: u32| self.place.page_offset(self.start + u64::from(at));
            let cleared = self.shared.medium.clear(offset(first)..offset(first + count));
            cleared.map_err(|error| Fault::File("making a hole in", error))?;
            stale &= !(((1u32 << count) - 1) << first);
        }
        Ok(())
    }

    fn note(&self) {
        let mut ledger = self.shared.ledger();
        (self.start..).zip(&self.new).for_each(|(page, entry)| ledger.set(self.region, page, entry));
    }

    /// Of the pages that the guest has written. A block counts with the first of them.
    fn records(&self) -> Vec<PageRecord> {
        let mut block = self.new.iter().find(|entry| !entry.is_zero()).map_or(0, |entry| entry.data_bytes);
        let written = self.new.iter().enumerate().filter(|(at, _)| self.is_written(*at));
        let record = |(at, entry): (usize, &PageEntry)| {
            let encoding = Encoding::from_number(entry.encoding).map_or(Encoding::Raw, |row| row.encoding);
            let data_bytes = match encoding {
                Encoding::Zero => 0,
                Encoding::Raw => PAGE as u16,
                _ => std::mem::take(&mut block),
            };
            let page = self.start + at as u64;
            PageRecord { region: self.region, page, encoding, data_bytes: data_bytes.into() }
        };
        written.map(record).collect()
    }
}
